//! The distribution specification as a table: each endpoint with what its section demands, asked of the in-process registry,
//! which has to answer all of it, and of Debian's, whose deviations are listed.
//!
//! The cases are those of the specification's own conformance suite (distribution-spec 1.1, folder `conformance`: pull, push,
//! content discovery and management, and its kinds of content), written down here anew. The suite itself is a Go program
//! and does not run here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use layers::oci::{CONFIG, INDEX, LAYER_GZIP, MANIFEST};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::registry::registry;
use crate::registry_real::Real;

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const BYTES: &str = "application/octet-stream";

/// An HTTP client that does nothing on its own: no redirects, no repetitions.
struct Client {
    host: String,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

type Outcome = Result<(), String>;

impl Client {
    fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, String> {
        let target = target.strip_prefix(&format!("http://{}", self.host)).unwrap_or(target);
        let mut stream = TcpStream::connect(&self.host).map_err(|error| error.to_string())?;
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.host);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !matches!(method, "GET" | "HEAD") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).map_err(|error| error.to_string())?;
        // The in-process registry keeps connections open: what is to be read follows from the head.
        let mut bytes = Vec::new();
        let mut piece = [0; 16 << 10];
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|it: &[u8]| it == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut piece).map_err(|error| error.to_string())? {
                0 => return Err(format!("{method} {target}: no answer")),
                count => bytes.extend_from_slice(&piece[..count]),
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or("no status")?;
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let headers: BTreeMap<String, String> =
            pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let mut body = bytes.split_off(end);
        let bare = method == "HEAD" || status == 204;
        let length = headers.get("content-length").and_then(|text| text.parse::<usize>().ok());
        let done = |body: &[u8]| match length {
            _ if bare => true,
            Some(length) => body.len() >= length,
            None => body.ends_with(b"0\r\n\r\n"),
        };
        while !done(&body) {
            match stream.read(&mut piece).map_err(|error| error.to_string())? {
                0 => break,
                count => body.extend_from_slice(&piece[..count]),
            }
        }
        if headers.get("transfer-encoding").is_some_and(|it| it == "chunked") && !bare {
            body = unchunked(&body);
        }
        Ok(Reply { status, headers, body })
    }

    fn get(&self, target: &str) -> Result<Reply, String> {
        self.ask("GET", target, &[("Accept", &format!("{MANIFEST}, {INDEX}"))], b"")
    }

    fn head(&self, target: &str) -> Result<Reply, String> {
        self.ask("HEAD", target, &[("Accept", &format!("{MANIFEST}, {INDEX}"))], b"")
    }

    /// POST, then PUT: `end-4a` and `end-6`.
    fn put_blob(&self, name: &str, bytes: &[u8], digest: &str) -> Outcome {
        let place = self.begin(name)?;
        let done = self.ask("PUT", &with(&place, "digest", digest), &[("Content-Type", BYTES)], bytes)?;
        done.is(&[201])?.has("location").map(drop)
    }

    fn begin(&self, name: &str) -> Result<String, String> {
        let begun = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"")?.is(&[202])?;
        begun.has("location")
    }

    fn put_manifest(&self, name: &str, version: &str, media_type: &str, bytes: &[u8]) -> Result<Reply, String> {
        self.ask("PUT", &format!("/v2/{name}/manifests/{version}"), &[("Content-Type", media_type)], bytes)
    }

    /// An image of one configuration and one layer; gives the manifest.
    fn image(&self, name: &str) -> Result<Vec<u8>, String> {
        let (config, layer) = (b"{}".as_slice(), b"a layer".as_slice());
        self.put_blob(name, config, &sha256(config))?;
        self.put_blob(name, layer, &sha256(layer))?;
        let image = manifest(descriptor(CONFIG, config), &[descriptor(LAYER_GZIP, layer)]);
        let bytes = image.to_string().into_bytes();
        self.put_manifest(name, &sha256(&bytes), MANIFEST, &bytes)?.is(&[201])?;
        Ok(bytes)
    }
}

impl Reply {
    fn is(self, allowed: &[u16]) -> Result<Reply, String> {
        match allowed.contains(&self.status) {
            true => Ok(self),
            false => {
                let said = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).into_owned();
                Err(format!("{} instead of {allowed:?}: {said}", self.status))
            }
        }
    }

    fn has(&self, name: &str) -> Result<String, String> {
        self.headers.get(name).cloned().ok_or_else(|| format!("`{name}` is missing: {:?}", self.headers))
    }

    fn says(self, name: &str, value: &str) -> Result<Reply, String> {
        match self.has(name)? {
            found if found == value => Ok(self),
            found => Err(format!("`{name}` is `{found}` instead of `{value}`")),
        }
    }

    fn holds(self, body: &[u8]) -> Result<Reply, String> {
        match self.body == body {
            true => Ok(self),
            false => Err(format!("{} bytes instead of {}", self.body.len(), body.len())),
        }
    }

    fn json(&self) -> Result<Value, String> {
        serde_json::from_slice(&self.body).map_err(|error| error.to_string())
    }

    /// "Error Codes": the body is `errors` with a code of the table.
    fn tells(self, codes: &[&str]) -> Outcome {
        let code = self.json()?["errors"][0]["code"].as_str().unwrap_or_default().to_owned();
        if codes.contains(&code.as_str()) { Ok(()) } else { Err(format!("the code is `{code}`, not one of {codes:?}")) }
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(at) = rest.windows(2).position(|it| it == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&rest[..at]).trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < at + 2 + size {
            break;
        }
        out.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[(at + 4 + size).min(rest.len())..];
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&sha2::Sha256::digest(bytes)))
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&sha2::Sha512::digest(bytes)))
}

fn with(place: &str, name: &str, value: &str) -> String {
    format!("{place}{}{name}={value}", if place.contains('?') { '&' } else { '?' })
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

fn manifest(config: Value, layers: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
}

fn blob(name: &str, digest: &str) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

/// A case: the endpoint by its id in the specification, what is demanded, and the question.
type Case = (&'static str, &'static str, fn(&Client, &str) -> Outcome);

const LARGE: usize = 3000;

fn content() -> Vec<u8> {
    (0..LARGE).map(|at| (at * 7 % 251) as u8).collect()
}

fn chunks(client: &Client, name: &str, put_last: bool, digest: &str) -> Result<Reply, String> {
    let bytes = content();
    let mut place = client.begin(name)?;
    for start in (0..LARGE).step_by(1000) {
        let last = start + 999;
        let range = format!("{start}-{last}");
        let headers = [("Content-Type", BYTES), ("Content-Range", range.as_str())];
        if put_last && last == LARGE - 1 {
            return client.ask("PUT", &with(&place, "digest", digest), &headers, &bytes[start..=last]);
        }
        let more = client.ask("PATCH", &place, &headers, &bytes[start..=last])?.is(&[202])?;
        place = more.says("range", &format!("0-{last}"))?.has("location")?;
    }
    client.ask("PUT", &with(&place, "digest", digest), &[("Content-Type", BYTES)], b"")
}

fn read_back(client: &Client, name: &str) -> Outcome {
    let digest = sha256(&content());
    client.head(&blob(name, &digest))?.is(&[200])?.says("content-length", &LARGE.to_string())?;
    client.get(&blob(name, &digest))?.is(&[200])?.says("docker-content-digest", &digest)?.holds(&content()).map(drop)
}

fn out_of_order(client: &Client, name: &str, method: &str) -> Outcome {
    let bytes = content();
    let mut place = client.begin(name)?;
    let first = [("Content-Type", BYTES), ("Content-Range", "0-999")];
    place = client.ask("PATCH", &place, &first, &bytes[..1000])?.is(&[202])?.has("location")?;
    let wrong = [("Content-Type", BYTES), ("Content-Range", "2000-2999")];
    let target = if method == "PUT" { with(&place, "digest", &sha256(&bytes)) } else { place.clone() };
    client.ask(method, &target, &wrong, &bytes[2000..])?.is(&[416])?;
    // "end-13" says where it goes on.
    let there = client.get(&place)?.is(&[204])?.says("range", "0-999")?;
    let rest = [("Content-Type", BYTES), ("Content-Range", "1000-2999")];
    let place = client.ask("PATCH", &there.has("location")?, &rest, &bytes[1000..])?.is(&[202])?.has("location")?;
    client.ask("PUT", &with(&place, "digest", &sha256(&bytes)), &[], b"")?.is(&[201])?;
    read_back(client, name)
}

fn range(client: &Client, name: &str, asked: &str, expected: Option<(usize, usize)>) -> Outcome {
    let (bytes, digest) = (content(), sha256(&content()));
    client.put_blob(name, &bytes, &digest)?;
    let reply = client.ask("GET", &blob(name, &digest), &[("Range", asked)], b"")?;
    match expected {
        Some((first, last)) => {
            let said = format!("bytes {first}-{last}/{LARGE}");
            reply.is(&[206])?.says("content-range", &said)?.holds(&bytes[first..=last]).map(drop)
        }
        None => reply.is(&[416]).map(drop),
    }
}

/// A referrer of an image: an artifact of this type.
fn refer(client: &Client, name: &str, kind: &str) -> Result<String, String> {
    let image = client.image(name)?;
    let mut artifact = manifest(descriptor(EMPTY, b"{}"), &[descriptor(EMPTY, b"{}")]);
    artifact["artifactType"] = json!(kind);
    artifact["annotations"] = json!({"org.example.of": kind});
    artifact["subject"] = descriptor(MANIFEST, &image);
    let bytes = artifact.to_string();
    let put = client.put_manifest(name, &sha256(bytes.as_bytes()), MANIFEST, bytes.as_bytes())?.is(&[201])?;
    put.says("oci-subject", &sha256(&image))?;
    Ok(sha256(&image))
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("end-1", "the registry speaks the API", |client, _| client.get("/v2/")?.is(&[200]).map(drop)),
    ("end-2", "a blob that is not there: 404 to HEAD and GET, BLOB_UNKNOWN", |client, name| {
        let target = blob(name, &sha256(b"nothing"));
        client.head(&target)?.is(&[404])?;
        client.get(&target)?.is(&[404])?.tells(&["BLOB_UNKNOWN", "NAME_UNKNOWN"])
    }),
    ("end-2", "a blob: its length and digest to HEAD, its bytes to GET", |client, name| {
        client.put_blob(name, &content(), &sha256(&content()))?;
        read_back(client, name)
    }),
    ("end-2", "a range in the middle", |client, name| range(client, name, "bytes=500-1499", Some((500, 1499)))),
    ("end-2", "a range to the end", |client, name| range(client, name, "bytes=500-", Some((500, LARGE - 1)))),
    ("end-2", "the last bytes", |client, name| range(client, name, "bytes=-500", Some((LARGE - 500, LARGE - 1)))),
    ("end-2", "a range over the end", |client, name| range(client, name, "bytes=2000-5000", Some((2000, LARGE - 1)))),
    ("end-2", "a range that is backwards", |client, name| range(client, name, "bytes=500-0", None)),
    ("end-2", "a range behind the end", |client, name| range(client, name, "bytes=5000-9000", None)),
    ("end-3", "a manifest that is not there, by tag and by digest", |client, name| {
        for version in ["none".to_owned(), sha256(b"nothing")] {
            client.head(&format!("/v2/{name}/manifests/{version}"))?.is(&[404])?;
            let reply = client.get(&format!("/v2/{name}/manifests/{version}"))?.is(&[404])?;
            reply.tells(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN"])?;
        }
        Ok(())
    }),
    ("end-3", "a manifest, by tag and by digest", |client, name| {
        let bytes = client.image(name)?;
        client.put_manifest(name, "v1", MANIFEST, &bytes)?.is(&[201])?;
        for version in ["v1".to_owned(), sha256(&bytes)] {
            let target = format!("/v2/{name}/manifests/{version}");
            let head = client.head(&target)?.is(&[200])?.says("content-type", MANIFEST)?;
            head.says("docker-content-digest", &sha256(&bytes))?.says("content-length", &bytes.len().to_string())?;
            client.get(&target)?.is(&[200])?.says("content-type", MANIFEST)?.holds(&bytes)?;
        }
        Ok(())
    }),
    ("end-3", "a digest that is none: 400 or 404", |client, name| {
        client.image(name)?;
        client.get(&format!("/v2/{name}/manifests/sha256:baddigeststring"))?.is(&[400, 404]).map(drop)
    }),
    ("end-4a", "POST, then PUT", |client, name| {
        client.put_blob(name, &content(), &sha256(&content()))?;
        read_back(client, name)
    }),
    ("end-4b", "POST alone: 201, or 202 and a PUT", |client, name| {
        let target = format!("/v2/{name}/blobs/uploads/?digest={}", sha256(&content()));
        let reply = client.ask("POST", &target, &[("Content-Type", BYTES)], &content())?.is(&[201, 202])?;
        if reply.status == 202 {
            let target = with(&reply.has("location")?, "digest", &sha256(&content()));
            client.ask("PUT", &target, &[("Content-Type", BYTES)], &content())?.is(&[201])?;
        }
        read_back(client, name)
    }),
    ("end-5", "one PATCH without a range (a stream), then PUT", |client, name| {
        let place = client.begin(name)?;
        let place = client.ask("PATCH", &place, &[("Content-Type", BYTES)], &content())?.is(&[202])?.has("location")?;
        client.ask("PUT", &with(&place, "digest", &sha256(&content())), &[], b"")?.is(&[201])?;
        read_back(client, name)
    }),
    ("end-5", "three chunks, closed by an empty PUT", |client, name| {
        chunks(client, name, false, &sha256(&content()))?.is(&[201])?.has("location")?;
        read_back(client, name)
    }),
    ("end-5", "three chunks, the last by PUT", |client, name| {
        chunks(client, name, true, &sha256(&content()))?.is(&[201])?.has("location")?;
        read_back(client, name)
    }),
    ("end-5", "a chunk out of order: 416, and it goes on", |client, name| out_of_order(client, name, "PATCH")),
    ("end-6", "a last chunk out of order: 416, and it goes on", |client, name| out_of_order(client, name, "PUT")),
    ("end-6", "other bytes than the digest says, in one PUT: 400 DIGEST_INVALID, and no blob", |client, name| {
        let place = client.begin(name)?;
        let digest = sha256(b"something else");
        let reply = client.ask("PUT", &with(&place, "digest", &digest), &[("Content-Type", BYTES)], &content())?;
        reply.is(&[400])?.tells(&["DIGEST_INVALID", "BLOB_UPLOAD_INVALID"])?;
        client.head(&blob(name, &digest))?.is(&[404])?;
        client.head(&blob(name, &sha256(&content())))?.is(&[404]).map(drop)
    }),
    ("end-6", "other bytes than the digest says, in chunks: 400", |client, name| {
        for put_last in [false, true] {
            chunks(client, name, put_last, &sha256(b"something else"))?.is(&[400])?;
        }
        Ok(())
    }),
    ("end-6", "an upload that never began: 404", |client, name| {
        client.image(name)?;
        let target = format!("/v2/{name}/blobs/uploads/0a0a0a0a-0000-4000-8000-000000000000?digest={}", sha256(b"x"));
        client.ask("PUT", &target, &[], b"x")?.is(&[404])?.tells(&["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"])
    }),
    ("end-7", "a manifest by digest and by several tags", |client, name| {
        let bytes = client.image(name)?;
        for tag in ["test0", "test1", "test2", "test3"] {
            let put = client.put_manifest(name, tag, MANIFEST, &bytes)?.is(&[201])?;
            put.has("location")?;
            put.says("docker-content-digest", &sha256(&bytes))?;
        }
        Ok(())
    }),
    ("end-7", "a manifest under another digest, or under none: 400", |client, name| {
        let mut bytes = client.image(name)?;
        let digest = sha256(&bytes);
        bytes.extend(b"  ");
        client.put_manifest(name, &digest, MANIFEST, &bytes)?.is(&[400])?.tells(&["DIGEST_INVALID", "MANIFEST_INVALID"])?;
        client.put_manifest(name, "sha256:baddigeststring", MANIFEST, &bytes)?.is(&[400, 404]).map(drop)
    }),
    ("end-7", "no manifest at all: 400 MANIFEST_INVALID", |client, name| {
        client.put_manifest(name, "v1", MANIFEST, b"blablabla")?.is(&[400])?.tells(&["MANIFEST_INVALID"])
    }),
    ("end-7", "a manifest whose blobs are missing: 400 or 404, MANIFEST_BLOB_UNKNOWN", |client, name| {
        let image = manifest(descriptor(CONFIG, b"nothing"), &[descriptor(LAYER_GZIP, b"nothing either")]).to_string();
        client.put_manifest(name, "v1", MANIFEST, image.as_bytes())?.is(&[400, 404])?.tells(&["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"])
    }),
    ("end-8a", "tags, sorted", |client, name| {
        let bytes = client.image(name)?;
        for tag in ["b", "a", "c"] {
            client.put_manifest(name, tag, MANIFEST, &bytes)?.is(&[201])?;
        }
        let list = client.get(&format!("/v2/{name}/tags/list"))?.is(&[200])?.json()?;
        if list == json!({"name": name, "tags": ["a", "b", "c"]}) { Ok(()) } else { Err(list.to_string()) }
    }),
    ("end-8a", "no such repository: 404, or no tags", |client, name| {
        client.get(&format!("/v2/{name}/none/tags/list"))?.is(&[200, 404]).map(drop)
    }),
    ("end-8b", "some tags, and those behind one", |client, name| {
        let bytes = client.image(name)?;
        for tag in ["a", "b", "c", "d"] {
            client.put_manifest(name, tag, MANIFEST, &bytes)?.is(&[201])?;
        }
        for (query, expected) in [
            ("n=2", json!(["a", "b"])), ("n=2&last=b", json!(["c", "d"])), ("last=c", json!(["d"])), ("n=9", json!(["a", "b", "c", "d"])),
        ] {
            let list = client.get(&format!("/v2/{name}/tags/list?{query}"))?.is(&[200])?.json()?;
            if list["tags"] != expected {
                return Err(format!("{query}: {list}"));
            }
        }
        Ok(())
    }),
    ("end-8b", "no tags where none are asked for", |client, name| {
        let bytes = client.image(name)?;
        client.put_manifest(name, "a", MANIFEST, &bytes)?.is(&[201])?;
        let list = client.get(&format!("/v2/{name}/tags/list?n=0"))?.is(&[200])?.json()?;
        if list["tags"].as_array().is_none_or(Vec::is_empty) { Ok(()) } else { Err(list.to_string()) }
    }),
    ("end-9", "a tag is deleted, its manifest stays", |client, name| {
        let bytes = client.image(name)?;
        client.put_manifest(name, "v1", MANIFEST, &bytes)?.is(&[201])?;
        client.ask("DELETE", &format!("/v2/{name}/manifests/v1"), &[], b"")?.is(&[202])?;
        client.head(&format!("/v2/{name}/manifests/v1"))?.is(&[404])?;
        client.head(&format!("/v2/{name}/manifests/{}", sha256(&bytes)))?.is(&[200]).map(drop)
    }),
    ("end-9", "a manifest is deleted with its tags; once more: 404", |client, name| {
        let bytes = client.image(name)?;
        client.put_manifest(name, "v1", MANIFEST, &bytes)?.is(&[201])?;
        let target = format!("/v2/{name}/manifests/{}", sha256(&bytes));
        client.ask("DELETE", &target, &[], b"")?.is(&[202])?;
        client.head(&target)?.is(&[404])?;
        client.head(&format!("/v2/{name}/manifests/v1"))?.is(&[404])?;
        client.ask("DELETE", &target, &[], b"")?.is(&[404]).map(drop)
    }),
    ("end-10", "a blob is deleted; once more: 404", |client, name| {
        client.put_blob(name, &content(), &sha256(&content()))?;
        let target = blob(name, &sha256(&content()));
        client.ask("DELETE", &target, &[], b"")?.is(&[202])?;
        client.head(&target)?.is(&[404])?;
        client.ask("DELETE", &target, &[], b"")?.is(&[404]).map(drop)
    }),
    ("end-11", "a blob is mounted from another repository", |client, name| {
        client.put_blob(&format!("{name}/source"), &content(), &sha256(&content()))?;
        let target = format!("/v2/{name}/blobs/uploads/?mount={}&from={name}/source", sha256(&content()));
        client.ask("POST", &target, &[], b"")?.is(&[201])?.has("location")?;
        read_back(client, name)
    }),
    ("end-11", "a blob that the other repository lacks: 202, and an upload", |client, name| {
        let target = format!("/v2/{name}/blobs/uploads/?mount={}&from={name}/source", sha256(&content()));
        let place = client.ask("POST", &target, &[], b"")?.is(&[202])?.has("location")?;
        client.ask("PUT", &with(&place, "digest", &sha256(&content())), &[("Content-Type", BYTES)], &content())?.is(&[201])?;
        read_back(client, name)
    }),
    ("end-11", "a blob is mounted from wherever it is: 201, or 202 and an upload", |client, name| {
        client.put_blob(&format!("{name}/source"), &content(), &sha256(&content()))?;
        let target = format!("/v2/{name}/blobs/uploads/?mount={}", sha256(&content()));
        client.ask("POST", &target, &[], b"")?.is(&[201, 202])?.has("location").map(drop)
    }),
    ("end-12a", "referrers of what is not there: an empty index", |client, name| {
        client.image(name)?;
        let reply = client.get(&format!("/v2/{name}/referrers/{}", sha256(b"nothing")))?.is(&[200])?;
        let list = reply.says("content-type", INDEX)?.json()?;
        if list["manifests"] == json!([]) && list["schemaVersion"] == 2 { Ok(()) } else { Err(list.to_string()) }
    }),
    ("end-12a", "referrers with artifact type, annotations and size; OCI-Subject at their push", |client, name| {
        let subject = refer(client, name, "application/x.one")?;
        refer(client, name, "application/x.two")?;
        let list = client.get(&format!("/v2/{name}/referrers/{subject}"))?.is(&[200])?.says("content-type", INDEX)?.json()?;
        let of = |it: &Value| (it["artifactType"].as_str().map(str::to_owned), it["annotations"]["org.example.of"].as_str().map(str::to_owned));
        let found: BTreeSet<_> = list["manifests"].as_array().into_iter().flatten().map(of).collect();
        let expected = ["application/x.one", "application/x.two"].map(|it| (Some(it.to_owned()), Some(it.to_owned())));
        if found == BTreeSet::from(expected) { Ok(()) } else { Err(list.to_string()) }
    }),
    ("end-12b", "referrers of one type, and the header that says that they were chosen", |client, name| {
        let subject = refer(client, name, "application/x.one")?;
        refer(client, name, "application/x.two")?;
        let reply = client.get(&format!("/v2/{name}/referrers/{subject}?artifactType=application%2Fx.two"))?.is(&[200])?;
        let list = reply.says("oci-filters-applied", "artifactType")?.json()?;
        let count = list["manifests"].as_array().map_or(0, Vec::len);
        if count == 1 && list["manifests"][0]["artifactType"] == "application/x.two" { Ok(()) } else { Err(list.to_string()) }
    }),
    ("end-12a", "referrers of a digest that is none: 400 or 404", |client, name| {
        client.image(name)?;
        client.get(&format!("/v2/{name}/referrers/sha256:baddigeststring"))?.is(&[400, 404]).map(drop)
    }),
    ("end-13", "where an upload is, and 404 where there is none", |client, name| {
        let place = client.begin(name)?;
        client.get(&place)?.is(&[204])?.has("range")?;
        let target = format!("/v2/{name}/blobs/uploads/0a0a0a0a-0000-4000-8000-000000000000");
        client.get(&target)?.is(&[404]).map(drop)
    }),
    ("end-14", "an upload is cancelled", |client, name| {
        let place = client.begin(name)?;
        client.ask("DELETE", &place, &[], b"")?.is(&[204])?;
        client.get(&place)?.is(&[404]).map(drop)
    }),
];

/// Content of one kind: blobs, then manifests in their order; the last one is tagged.
struct Data {
    kind: &'static str,
    blobs: Vec<Vec<u8>>,
    manifests: Vec<(&'static str, Vec<u8>)>,
    long: bool,
}

/// The kinds of content that registries have to keep as they are.
fn kinds() -> Vec<Data> {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let (layer, tar) = (b"a layer of its own".to_vec(), b"a plain one".to_vec());
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let image = manifest(descriptor(CONFIG, &config), &[descriptor(LAYER_GZIP, &layer)]);
    let other = manifest(descriptor(CONFIG, &config), &[descriptor(plain, &tar)]);
    let artifact = |kind: &str| {
        let mut artifact = manifest(descriptor(EMPTY, b"{}"), &[descriptor(kind, &layer)]);
        artifact["artifactType"] = json!(kind);
        artifact
    };
    let bytes = |document: &Value| document.to_string().into_bytes();
    let index = |children: &[&Value]| {
        let list = children.iter().map(|child| {
            let kind = if child.get("manifests").is_some() { INDEX } else { MANIFEST };
            let mut listed = descriptor(kind, &bytes(child));
            listed["platform"] = json!({"os": "linux", "architecture": "amd64"});
            listed
        });
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": list.collect::<Vec<_>>()})
    };
    let and = |mut document: Value, name: &str, value: Value| {
        document[name] = value;
        document
    };
    let all = vec![config.clone(), layer.clone(), tar.clone(), b"{}".to_vec(), Vec::new()];
    let of = |kind: &'static str, documents: &[&Value]| Data {
        kind,
        blobs: all.clone(),
        manifests: documents
            .iter()
            .map(|it| (if it.get("manifests").is_some() { INDEX } else { MANIFEST }, bytes(it)))
            .collect(),
        long: false,
    };
    let both = index(&[&image, &other]);
    let gone = json!({"mediaType": MANIFEST, "digest": sha256(b"gone"), "size": 4, "platform": {"os": "linux", "architecture": "arm64"}});
    let mut sparse = index(&[&image]);
    sparse["manifests"].as_array_mut().unwrap().push(gone);
    let foreign = json!({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": sha256(b"foreign"), "size": 7, "urls": ["https://store.example.com/blobs/x"]});
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(&layer);
    let subject = descriptor(MANIFEST, &bytes(&image));
    let missing = json!({"mediaType": MANIFEST, "digest": sha256(b"missing"), "size": 123});
    let own = artifact("application/vnd.example.v1");
    let long = json!({"mediaType": BYTES, "digest": sha512(&layer), "size": layer.len()});
    let mut sixty = of(
        "sha512",
        &[&manifest(json!({"mediaType": CONFIG, "digest": sha512(&config), "size": config.len()}), &[long])],
    );
    sixty.long = true;
    vec![
        of("image", &[&image]),
        of("image of a plain layer", &[&other]),
        of("large manifest", &[&and(image.clone(), "annotations", json!({"padding": "A".repeat(3_900_000)}))]),
        of("index", &[&image, &other, &both]),
        of("nested index", &[&image, &other, &both, &index(&[&both])]),
        of("empty index", &[&index(&[])]),
        of("artifact", &[&own]),
        of("artifact without content", &[&manifest(descriptor(EMPTY, b"{}"), &[descriptor(EMPTY, b"{}")])]),
        of("index of artifacts", &[&own, &and(index(&[&own]), "artifactType", json!("application/vnd.example.v1"))]),
        of("subject", &[&image, &and(own.clone(), "subject", subject.clone())]),
        of("index with a subject", &[&image, &other, &and(index(&[&other]), "subject", subject)]),
        of("subject that is missing", &[&and(own, "subject", missing)]),
        of(
            "data",
            &[&manifest(descriptor(CONFIG, &config), &[and(descriptor(LAYER_GZIP, &layer), "data", json!(data))])],
        ),
        of("layer that is not distributed", &[&manifest(descriptor(CONFIG, &config), &[foreign])]),
        of("fields of one's own", &[&and(image.clone(), "org.example.x", json!({"a": [1, null]}))]),
        of("no layers", &[&manifest(descriptor(CONFIG, &config), &[])]),
        of("empty blob", &[&manifest(descriptor(CONFIG, &config), &[descriptor(BYTES, b"")])]),
        of("sparse index", &[&image, &sparse]),
        sixty,
    ]
}

/// Pushes content, reads it back byte for byte, and deletes it.
fn keeps(client: &Client, name: &str, data: &Data) -> Outcome {
    let digest = |bytes: &[u8]| if data.long { sha512(bytes) } else { sha256(bytes) };
    for bytes in &data.blobs {
        client
            .put_blob(name, bytes, &digest(bytes))
            .map_err(|why| format!("a blob of {} bytes: {why}", bytes.len()))?;
        let target = blob(name, &digest(bytes));
        client.head(&target)?.is(&[200])?.says("content-length", &bytes.len().to_string())?;
        client.get(&target)?.is(&[200])?.holds(bytes)?;
    }
    for (media_type, bytes) in &data.manifests {
        client.put_manifest(name, &digest(bytes), media_type, bytes)?.is(&[201])?;
        let target = format!("/v2/{name}/manifests/{}", digest(bytes));
        client.head(&target)?.is(&[200])?.says("docker-content-digest", &digest(bytes))?;
        client.get(&target)?.is(&[200])?.says("content-type", media_type)?.holds(bytes)?;
    }
    let (media_type, last) = data.manifests.last().expect("one at least");
    if !data.long {
        // Tags of other algorithms need a parameter that 1.1 does not have.
        client.put_manifest(name, "v1", media_type, last)?.is(&[201])?;
        client.get(&format!("/v2/{name}/manifests/v1"))?.is(&[200])?.says("content-type", media_type)?.holds(last)?;
    }
    for (_, bytes) in data.manifests.iter().rev() {
        let target = format!("/v2/{name}/manifests/{}", digest(bytes));
        client.ask("DELETE", &target, &[], b"")?.is(&[202])?;
        client.head(&target)?.is(&[404])?;
    }
    for bytes in &data.blobs {
        client.ask("DELETE", &blob(name, &digest(bytes)), &[], b"")?.is(&[202])?;
        client.head(&blob(name, &digest(bytes)))?.is(&[404])?;
    }
    Ok(())
}

/// What a registry does not do as demanded: `section: what`, and how it answers.
fn deviations(host: &str) -> BTreeMap<String, String> {
    let client = Client { host: host.to_owned() };
    let mut found = BTreeMap::new();
    for (at, (section, what, ask)) in CASES.iter().enumerate() {
        if let Err(why) = ask(&client, &format!("conformance/case{at}")) {
            found.insert(format!("{section}: {what}"), why);
        }
    }
    for (at, data) in kinds().iter().enumerate() {
        if let Err(why) = keeps(&client, &format!("conformance/kind{at}"), data) {
            found.insert(format!("content: {}", data.kind), why);
        }
    }
    found
}

#[test]
fn the_in_process_registry_does_what_the_specification_demands() {
    let registry = registry(|kind| kind.sparse = true);
    assert_eq!(deviations(&registry.host()), BTreeMap::new());
    // And one that wants an index whole refuses the others.
    let whole = crate::registry::registry(|_| {});
    let found: Vec<String> = deviations(&whole.host()).into_keys().collect();
    assert_eq!(found, ["content: sparse index"]);
}

#[test]
fn real_debians_registry_does_what_the_specification_demands_but_for_these() {
    let real = Real::start("");
    let found = deviations(&real.host());
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, DEBIAN, "{found:#?}");
}

/// What distribution 2.8 does otherwise: it is from before 1.1 of the specification. It knows neither referrers nor SHA-512,
/// wants indexes whole, checks no `Content-Range`, cannot delete a tag, lists tags as they come, takes no `urls` unless it is
/// configured to, and calls some bad requests its own errors (500).
const DEBIAN: [&str; 14] = [
    "content: layer that is not distributed",
    "content: sha512",
    "content: sparse index",
    "end-12a: referrers of what is not there: an empty index",
    "end-12a: referrers with artifact type, annotations and size; OCI-Subject at their push",
    "end-12b: referrers of one type, and the header that says that they were chosen",
    "end-3: a digest that is none: 400 or 404",
    "end-5: a chunk out of order: 416, and it goes on",
    "end-6: a last chunk out of order: 416, and it goes on",
    "end-7: a manifest under another digest, or under none: 400",
    "end-8a: tags, sorted",
    "end-8b: no tags where none are asked for",
    "end-8b: some tags, and those behind one",
    "end-9: a tag is deleted, its manifest stays",
];
