//! The specification, request by request.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::http::{Connection, Pause, Request, Response};
use super::{Act, Auth, CANARY_TOKEN, Kind, Logged, Mounting, Place, Registry, Repo, State, objects};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The digest of bytes by the algorithm of `like`.
pub fn hash(like: &str, bytes: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match like.starts_with("sha512:") {
        true => format!("sha512:{}", hex(&sha2::Sha512::digest(bytes))),
        false => format!("sha256:{}", hex(&sha2::Sha256::digest(bytes))),
    }
}

/// Serves a connection until its client goes away or a fault breaks it.
pub fn connection(registry: &Registry, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.request() {
        let began = Instant::now();
        let latency = registry.state().kind.latency;
        if !latency.is_zero() {
            std::thread::sleep(latency);
        }
        let fault = fault(registry, &request);
        let limit = match &fault {
            Some(Act::Reset(bytes)) => *bytes,
            _ => u64::MAX,
        };
        if let Some(Act::Stall(time)) = &fault {
            std::thread::sleep(*time);
        }
        let pause = match &fault {
            Some(Act::Drip(pause)) => Some(Pause::EachPiece(*pause)),
            Some(Act::Trickle(pause)) => Some(Pause::EachByte(*pause)),
            _ => None,
        };
        let body = match &fault {
            Some(Act::Drip(pause)) => connection.body_slowly(*pause),
            _ => connection.body(limit),
        };
        let received = body.len() as u64;
        let mut response = match &fault {
            Some(Act::Answer(response)) => response.clone(),
            Some(Act::Reset(_)) => {
                keep_part(registry, &request, &body);
                Response::new(0)
            }
            _ if !connection.is_read() => {
                // The client went away in the middle; what came is kept, as real registries do.
                keep_part(registry, &request, &body);
                Response::new(0)
            }
            _ => answer(registry, &request, body),
        };
        let mut cut = None;
        match fault {
            Some(Act::Swallow) => response.status = 0,
            Some(Act::DoneBut(other)) => response = other,
            Some(Act::Cut(bytes)) => cut = Some(bytes),
            Some(Act::Garble) => response.body.iter_mut().for_each(|byte| *byte ^= 1),
            Some(Act::Headers(headers)) => {
                for (name, value) in headers {
                    response.headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
                    if !value.is_empty() {
                        response.headers.push((name.into(), value));
                    }
                }
            }
            _ => {}
        }
        // Written down before the answer is given: who has the answer finds the request in the log.
        let body = if request.method == "HEAD" || response.status == 0 { 0 } else { response.body.len() };
        registry.state().log.push(Logged {
            line: request.line(),
            query: request.query.clone(),
            status: response.status,
            received,
            sent: body.min(cut.unwrap_or(body)) as u64,
            authorization: request.header("authorization").map(str::to_owned),
            headers: request.headers.clone(),
            began,
            ended: Instant::now(),
        });
        if response.status != 0 {
            let _ = connection.respond(&request, &response, cut, pause);
        }
        if response.status == 0 || cut.is_some() {
            return;
        }
    }
}

fn fault(registry: &Registry, request: &Request) -> Option<Act> {
    let mut state = registry.state();
    let State { faults, failed, .. } = &mut *state;
    for fault in faults {
        if fault.times > 0 && (fault.matches)(request) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times -= 1;
            *failed += 1;
            return Some(fault.act.clone());
        }
    }
    None
}

/// What came of a body that broke off stays in its upload.
fn keep_part(registry: &Registry, request: &Request, body: &[u8]) {
    let id = request.path.rsplit('/').next().unwrap_or_default();
    if let Some((_, upload)) = registry.state().uploads.get_mut(id) {
        upload.extend_from_slice(body);
    }
}

fn answer(registry: &Registry, request: &Request, body: Vec<u8>) -> Response {
    let mut state = registry.state();
    if request.path == "/token" {
        return token(&mut state, request, &body);
    }
    let Some(rest) = request.path.strip_prefix("/v2/") else { return objects::answer(&mut state, request, body) };
    let (repository, act) = split(rest);
    if let Some(refused) = refuse(registry, &mut state, request, &repository) {
        return refused;
    }
    if rest.is_empty() {
        return Response::new(200);
    }
    let largest = state.kind.largest_body.unwrap_or(u64::MAX);
    if body.len() as u64 > largest {
        return Response::error(413, "SIZE_INVALID", "the body is too large");
    }
    let parts: Vec<&str> = act.split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", ["manifests", version]) => read_manifest(&state, request, &repository, version),
        ("PUT", ["manifests", version]) => write_manifest(&mut state, request, &repository, version, body),
        ("DELETE", ["manifests", version]) => delete_manifest(&mut state, &repository, version),
        ("POST", ["blobs", "uploads", ""]) => begin(registry, &mut state, request, &repository, body),
        ("GET", ["blobs", "uploads", id]) => progress(registry, &state, &repository, id),
        ("PATCH", ["blobs", "uploads", id]) => append(registry, &mut state, request, &repository, id, &body),
        ("PUT", ["blobs", "uploads", id]) => finish(&mut state, request, &repository, id, &body),
        ("DELETE", ["blobs", "uploads", id]) => match state.uploads.remove(*id) {
            Some(_) => Response::new(204),
            None => Response::error(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload"),
        },
        ("GET" | "HEAD", ["blobs", digest]) => read_blob(&state, request, &repository, digest),
        ("DELETE", ["blobs", digest]) => match repo(&mut state, &repository).blobs.remove(*digest) {
            true => Response::new(202),
            false => Response::error(404, "BLOB_UNKNOWN", "there is no such blob"),
        },
        ("GET", ["tags", "list"]) => tags(&state, request, &repository),
        ("GET", ["referrers", digest]) if state.kind.referrers => referrers(&state, request, &repository, digest),
        _ => Response::error(404, "UNSUPPORTED", "there is no such thing"),
    }
}

fn split(rest: &str) -> (String, String) {
    for word in ["/manifests/", "/blobs/", "/tags/", "/referrers/"] {
        if let Some(at) = rest.find(word) {
            return (rest[..at].to_owned(), rest[at + 1..].to_owned());
        }
    }
    (String::new(), rest.to_owned())
}

fn repo<'a>(state: &'a mut State, name: &str) -> &'a mut Repo {
    state.repos.entry(name.to_owned()).or_default()
}

// Authorisation.

fn refuse(registry: &Registry, state: &mut State, request: &Request, repository: &str) -> Option<Response> {
    let kind = state.kind.clone();
    let unauthorized = |challenges: &[String]| {
        let mut response = Response::error(401, "UNAUTHORIZED", "authentication required");
        for challenge in challenges {
            response = response.with("WWW-Authenticate", challenge.clone());
        }
        Some(response)
    };
    let writes = !matches!(request.method.as_str(), "GET" | "HEAD");
    let action = if writes { "push" } else { "pull" };
    match &kind.auth {
        Auth::None => None,
        Auth::Raw(challenges) => unauthorized(challenges),
        Auth::Basic => match request.header("authorization") {
            Some(text) if text == basic(&kind.user, &kind.password) => None,
            _ => unauthorized(&["Basic realm=\"a registry\"".to_owned()]),
        },
        Auth::Bearer { realm, uses, .. } => {
            let token = request.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
            let needed = format!("repository:{repository}:{action}");
            let granted = token.and_then(|token| state.tokens.get_mut(token)).and_then(|(scopes, used)| {
                *used += 1;
                uses.is_none_or(|uses| *used <= uses).then_some(&*scopes)
            });
            // As distribution says it (RFC 6750, section 3.1).
            let error = match granted {
                Some(scopes) if repository.is_empty() || grants(scopes, repository, action) => return None,
                Some(_) => ",error=\"insufficient_scope\"",
                None if token.is_some() => ",error=\"invalid_token\"",
                None => "",
            };
            let realm = realm.clone().unwrap_or_else(|| format!("http://{}/token", registry.host()));
            let scope = if repository.is_empty() { String::new() } else { format!(",scope=\"{needed}\"") };
            unauthorized(&[format!("Bearer realm=\"{realm}\",service=\"a registry\"{scope}{error}")])
        }
    }
}

fn grants(scopes: &[String], repository: &str, action: &str) -> bool {
    scopes.iter().any(|scope| {
        scope
            .strip_prefix("repository:")
            .and_then(|rest| rest.rsplit_once(':'))
            .is_some_and(|(name, actions)| name == repository && actions.split(',').any(|found| found == action))
    })
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn token(state: &mut State, request: &Request, body: &[u8]) -> Response {
    let Kind { auth: Auth::Bearer { lives, oauth, .. }, user, password, identity, .. } = state.kind.clone() else {
        return Response::new(404);
    };
    let scopes: Vec<String> = if request.method == "POST" {
        if !oauth {
            return Response::new(404);
        }
        let form: std::collections::BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
        if form.get("grant_type").map(String::as_str) != Some("refresh_token")
            || form.get("refresh_token") != Some(&identity)
        {
            return Response::error(401, "UNAUTHORIZED", &format!("bad token {:?}", form.get("refresh_token")));
        }
        form.get("scope").map(|text| text.split(' ').map(str::to_owned).collect()).unwrap_or_default()
    } else {
        match request.header("authorization") {
            Some(text) if text == basic(&user, &password) || text == basic("", &identity) => {}
            None if user.is_empty() => {}
            // A careless server, which repeats what it was sent.
            other => return Response::error(401, "UNAUTHORIZED", &format!("bad credentials {other:?}")),
        }
        request.parameters("scope").into_iter().map(str::to_owned).collect()
    };
    let readable = |scope: &String| !state.kind.unreadable.iter().any(|name| scope.contains(&format!(":{name}:")));
    let scopes: Vec<String> = scopes.into_iter().filter(readable).collect();
    state.serial += 1;
    let token = format!("{CANARY_TOKEN}{}", state.serial);
    state.tokens.insert(token.clone(), (scopes, 0));
    let mut answer = json!({"token": token});
    if let Some(lives) = lives {
        answer["expires_in"] = json!(lives);
    }
    Response::new(200).with("Content-Type", "application/json").body(answer.to_string())
}

// Uploads.

fn place(registry: &Registry, state: &State, repository: &str, id: &str) -> String {
    let path = format!("/v2/{repository}/blobs/uploads/{id}");
    match &state.kind.place {
        Place::Relative => path,
        Place::Absolute => format!("http://{}{path}", registry.host()),
        Place::Query => format!("{path}?state=a%2Fb%3D&x="),
        Place::Elsewhere(base) => format!("{base}{path}"),
    }
}

fn begin(registry: &Registry, state: &mut State, request: &Request, repository: &str, body: Vec<u8>) -> Response {
    if let (Some(digest), Some(from)) = (request.parameter("mount"), request.parameter("from")) {
        let token = request.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
        let allowed = match (&state.kind.auth, token.and_then(|token| state.tokens.get(token))) {
            (Auth::Bearer { .. }, Some((scopes, _))) => grants(scopes, from, "pull"),
            (Auth::Bearer { .. }, None) => false,
            _ => true,
        };
        let source = state.repos.get(from);
        let has = source.is_some_and(|source| source.blobs.contains(digest));
        let referenced = source.is_some_and(|source| {
            source.manifests.values().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(digest))
        });
        let mounted = match state.kind.mounting {
            Mounting::Works => has && allowed,
            Mounting::Referenced => has && allowed && referenced,
            Mounting::Never => false,
            Mounting::Status(status) => return Response::error(status, "DENIED", "no mounting here"),
        };
        if mounted {
            repo(state, repository).blobs.insert(digest.to_owned());
            return Response::new(201)
                .with("Location", format!("/v2/{repository}/blobs/{digest}"))
                .with("Docker-Content-Digest", digest);
        }
    }
    if let Some(digest) = request.parameter("digest") {
        return store(state, repository, digest, body);
    }
    state.serial += 1;
    let id = format!("u{}", state.serial);
    state.uploads.insert(id.clone(), (repository.to_owned(), Vec::new()));
    let mut response =
        Response::new(202).with("Location", place(registry, state, repository, &id)).with("Range", "0-0");
    if let Some(smallest) = state.kind.smallest_chunk {
        response = response.with("OCI-Chunk-Min-Length", smallest.to_string());
    }
    response
}

fn unknown_upload() -> Response {
    Response::error(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
}

fn range(length: usize) -> String {
    format!("0-{}", length.saturating_sub(1))
}

fn progress(registry: &Registry, state: &State, repository: &str, id: &str) -> Response {
    match state.uploads.get(id) {
        Some((_, bytes)) => Response::new(204)
            .with("Location", place(registry, state, repository, id))
            .with("Range", range(bytes.len())),
        None => unknown_upload(),
    }
}

fn keeps_query(state: &State, request: &Request) -> bool {
    state.kind.place != Place::Query || request.parameter("state") == Some("a/b=") && request.parameter("x") == Some("")
}

/// Whether a chunk begins where the upload is and is as long as it says.
fn fits(request: &Request, there: usize, length: usize) -> bool {
    let range = request.header("content-range").map(|text| text.strip_prefix("bytes ").unwrap_or(text));
    range.is_none_or(|range| {
        range.split_once('-').is_some_and(|(first, last)| {
            first.parse() == Ok(there) && last.parse() == Ok((there + length).saturating_sub(1))
        })
    })
}

fn append(
    registry: &Registry,
    state: &mut State,
    request: &Request,
    repository: &str,
    id: &str,
    body: &[u8],
) -> Response {
    if !keeps_query(state, request) {
        return Response::error(400, "BLOB_UPLOAD_INVALID", "the state is lost");
    }
    let Some((_, bytes)) = state.uploads.get_mut(id) else { return unknown_upload() };
    if !fits(request, bytes.len(), body.len()) {
        return Response::error(416, "BLOB_UPLOAD_INVALID", "the chunk does not begin where the last one ended");
    }
    bytes.extend_from_slice(body);
    let length = bytes.len();
    Response::new(202).with("Location", place(registry, state, repository, id)).with("Range", range(length))
}

fn finish(state: &mut State, request: &Request, repository: &str, id: &str, body: &[u8]) -> Response {
    if !keeps_query(state, request) {
        return Response::error(400, "BLOB_UPLOAD_INVALID", "the state is lost");
    }
    let Some((_, mut bytes)) = state.uploads.remove(id) else { return unknown_upload() };
    if !fits(request, bytes.len(), body.len()) {
        state.uploads.insert(id.to_owned(), (repository.to_owned(), bytes));
        return Response::error(416, "BLOB_UPLOAD_INVALID", "the chunk does not begin where the last one ended");
    }
    bytes.extend_from_slice(body);
    match request.parameter("digest").map(str::to_owned) {
        Some(digest) => store(state, repository, &digest, bytes),
        None => Response::error(400, "DIGEST_INVALID", "a digest is missing"),
    }
}

fn store(state: &mut State, repository: &str, digest: &str, bytes: Vec<u8>) -> Response {
    if hash(digest, &bytes) != digest {
        return Response::error(400, "DIGEST_INVALID", "the content is something else");
    }
    *state.uploaded.entry(digest.to_owned()).or_default() += 1;
    state.kind.lies.remove(digest);
    state.blobs.insert(digest.to_owned(), Arc::new(bytes));
    repo(state, repository).blobs.insert(digest.to_owned());
    Response::new(201)
        .with("Location", format!("/v2/{repository}/blobs/{digest}"))
        .with("Docker-Content-Digest", digest)
}

fn is_digest(text: &str) -> bool {
    let lengths = [("sha256:", 64), ("sha512:", 128)];
    lengths.iter().any(|(name, length)| {
        text.strip_prefix(name).is_some_and(|hex| {
            hex.len() == *length && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        })
    })
}

// Reading.

fn read_blob(state: &State, request: &Request, repository: &str, digest: &str) -> Response {
    if request.method == "HEAD" && state.kind.lies.contains(digest) {
        return Response::new(200).with("Docker-Content-Digest", digest).with("Content-Length", "1");
    }
    let has = state.repos.get(repository).is_some_and(|repo| repo.blobs.contains(digest));
    let Some(bytes) = state.blobs.get(digest).filter(|_| has) else {
        return Response::error(404, "BLOB_UNKNOWN", "there is no such blob");
    };
    if let Some(base) = &state.kind.blobs_at {
        return Response::new(307)
            .with("Location", format!("{base}/v2/{repository}/blobs/{digest}?signature=canary-signature"));
    }
    let response =
        Response::new(200).with("Content-Type", "application/octet-stream").with("Docker-Content-Digest", digest);
    let total = bytes.len();
    let asked = request.header("range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    match asked.filter(|_| state.kind.ranges).and_then(|(first, last)| wanted(first, last, total)) {
        Some((first, last)) if first < total && first <= last => {
            let mut partial = response.clone();
            partial.status = 206;
            partial.with("Content-Range", format!("bytes {first}-{last}/{total}")).body(&bytes[first..=last])
        }
        Some(_) => Response::new(416).with("Content-Range", format!("bytes */{total}")),
        None => response.body(bytes.as_slice()),
    }
}

/// The first and the last byte of a range (RFC 9110, section 14.1.2); `None` where it is no range.
fn wanted(first: &str, last: &str, total: usize) -> Option<(usize, usize)> {
    match (first, last) {
        ("", count) => Some((total.saturating_sub(count.parse().ok()?), total.saturating_sub(1))),
        (first, "") => Some((first.parse().ok()?, total.saturating_sub(1))),
        (first, last) => Some((first.parse().ok()?, last.parse::<usize>().ok()?.min(total.saturating_sub(1)))),
    }
}

fn read_manifest(state: &State, request: &Request, repository: &str, version: &str) -> Response {
    if state.kind.lies.contains(version) {
        return Response::new(200).with("Docker-Content-Digest", version);
    }
    let found = state.repos.get(repository).and_then(|repo| {
        let digest = repo.tags.get(version).map_or(version, String::as_str);
        repo.manifests.get(digest).map(|found| (digest.to_owned(), found.clone()))
    });
    match found {
        // As strict as any: the type is named, or anything will do.
        Some((_, (media_type, _)))
            if !request.header("accept").is_some_and(|it| it.contains(&media_type) || it.contains("*/*")) =>
        {
            Response::error(406, "MANIFEST_INVALID", "it is of another type")
        }
        Some((digest, (media_type, bytes))) => {
            Response::new(200).with("Content-Type", media_type).with("Docker-Content-Digest", digest).body(bytes)
        }
        None => Response::error(404, "MANIFEST_UNKNOWN", "there is no such manifest"),
    }
}

fn write_manifest(state: &mut State, request: &Request, repository: &str, version: &str, body: Vec<u8>) -> Response {
    let Ok(document) = serde_json::from_slice::<Value>(&body) else {
        return Response::error(400, "MANIFEST_INVALID", "it is not JSON");
    };
    if document.get("layers").is_some() && document.get("manifests").is_some() {
        return Response::error(400, "MANIFEST_INVALID", "it is two things at once");
    }
    let digest = hash(version, &body);
    if version.contains(':') && digest != version {
        return Response::error(400, "DIGEST_INVALID", "the content is something else");
    }
    let sparse = state.kind.sparse;
    let repo = repo(state, repository);
    let blobs = document.get("layers").and_then(Value::as_array).into_iter().flatten().chain(document.get("config"));
    for blob in blobs {
        let name = blob["digest"].as_str().unwrap_or_default();
        let foreign = blob["mediaType"].as_str().is_some_and(|it| it.contains("nondistributable"));
        if !foreign && !repo.blobs.contains(name) {
            let message = format!("blob unknown to registry: {name}");
            return Response::error(400, "MANIFEST_BLOB_UNKNOWN", &message);
        }
    }
    for child in document.get("manifests").and_then(Value::as_array).into_iter().flatten() {
        let name = child["digest"].as_str().unwrap_or_default();
        if !sparse && !repo.manifests.contains_key(name) {
            let message = format!("manifest unknown to registry: {name}");
            return Response::error(400, "MANIFEST_BLOB_UNKNOWN", &message);
        }
    }
    let media_type = request.header("content-type").unwrap_or(MANIFEST).to_owned();
    repo.manifests.insert(digest.clone(), (media_type, body));
    if !version.contains(':') {
        repo.tags.insert(version.to_owned(), digest.clone());
    }
    state.kind.lies.remove(&digest);
    let mut response = Response::new(201)
        .with("Location", format!("/v2/{repository}/manifests/{digest}"))
        .with("Docker-Content-Digest", digest);
    if let Some(subject) = document.pointer("/subject/digest").and_then(Value::as_str)
        && state.kind.referrers
    {
        response = response.with("OCI-Subject", subject);
    }
    response
}

fn delete_manifest(state: &mut State, repository: &str, version: &str) -> Response {
    let repo = repo(state, repository);
    let removed = match version.contains(':') {
        true => {
            repo.tags.retain(|_, digest| digest != version);
            repo.manifests.remove(version).is_some()
        }
        false => repo.tags.remove(version).is_some(),
    };
    Response::new(if removed { 202 } else { 404 })
}

fn tags(state: &State, request: &Request, repository: &str) -> Response {
    let Some(repo) = state.repos.get(repository) else {
        return Response::error(404, "NAME_UNKNOWN", "there is no such repository");
    };
    let last = request.parameter("last").unwrap_or_default();
    let count = request.parameter("n").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let behind: Vec<&String> = repo.tags.keys().filter(|tag| tag.as_str() > last).collect();
    let names = &behind[..count.min(behind.len())];
    let mut response = Response::new(200).with("Content-Type", "application/json");
    if let (true, Some(last)) = (names.len() < behind.len(), names.last()) {
        response = response.with("Link", format!("</v2/{repository}/tags/list?n={count}&last={last}>; rel=\"next\""));
    }
    response.body(json!({"name": repository, "tags": names}).to_string())
}

fn referrers(state: &State, request: &Request, repository: &str, digest: &str) -> Response {
    if !is_digest(digest) {
        return Response::error(400, "DIGEST_INVALID", "it is not a digest");
    }
    let wanted = request.parameter("artifactType");
    let mut found = Vec::new();
    for (name, (media_type, bytes)) in state.repos.get(repository).map(|repo| &repo.manifests).into_iter().flatten() {
        let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
        if document.pointer("/subject/digest").and_then(Value::as_str) != Some(digest) {
            continue;
        }
        let own = document.get("artifactType").or(document.pointer("/config/mediaType"));
        let artifact = own.and_then(Value::as_str).unwrap_or_default();
        if wanted.is_some_and(|wanted| wanted != artifact) {
            continue;
        }
        let mut descriptor =
            json!({"mediaType": media_type, "digest": name, "size": bytes.len(), "artifactType": artifact});
        if let Some(annotations) = document.get("annotations") {
            descriptor["annotations"] = annotations.clone();
        }
        found.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": found});
    let mut response = Response::new(200).with("Content-Type", INDEX).body(index.to_string());
    if wanted.is_some() {
        response = response.with("OCI-Filters-Applied", "artifactType");
    }
    response
}
