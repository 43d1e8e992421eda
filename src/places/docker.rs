//! The engine of Docker, by its API (over a socket or TCP): what it has, and images in and out.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cache::Store;
use http_body::Frame;
use serde_json::Value;
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::PlaceError;
use crate::fetch::chain;
use crate::registry::{Registries, RegistryError};

/// How the engine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// `unix:///var/run/docker.sock`, `tcp://host:port`.
    pub host: String,
    /// The folder with `ca.pem`, `cert.pem` and `key.pem` for TCP with TLS.
    pub certificates: Option<PathBuf>,
    /// Why it is not known, which is told once it is needed.
    pub unknown: Option<String>,
}

/// Answers are not longer than this, images apart.
const LARGEST: usize = 32 << 20;

impl Docker {
    /// An engine that is not known, because of this.
    pub fn unknown(error: &PlaceError) -> Docker {
        Docker { host: String::new(), certificates: None, unknown: Some(error.to_string()) }
    }

    /// The engine that Docker's own client would use: DOCKER_HOST, else the context, else the usual socket.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Docker, PlaceError> {
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok()).filter(|it| !it.is_empty());
        let folder =
            text("DOCKER_CONFIG").map(PathBuf::from).or_else(|| text("HOME").map(|it| Path::new(&it).join(".docker")));
        if let Some(host) = text("DOCKER_HOST") {
            // As Docker's client: the variable asks for TLS, and the files have a usual place.
            let wants_tls = text("DOCKER_TLS_VERIFY").is_some() || host.starts_with("https://");
            if !wants_tls || host.starts_with("unix://") {
                return Ok(Docker { host, certificates: None, unknown: None });
            }
            let certificates = text("DOCKER_CERT_PATH").map(PathBuf::from).or(folder);
            if certificates.is_none() {
                let why = "it is to be reached by TLS, and neither DOCKER_CERT_PATH nor HOME says where `ca.pem`, `cert.pem` and `key.pem` are";
                return Err(PlaceError::Engine { engine: format!("docker at {host}"), why: why.into() });
            }
            return Ok(Docker { host, certificates, unknown: None });
        }
        let usual = Docker { host: "unix:///var/run/docker.sock".into(), certificates: None, unknown: None };
        let Some(folder) = folder else { return Ok(usual) };
        let configured = || {
            let bytes = std::fs::read(folder.join("config.json")).ok()?;
            let value: Value = serde_json::from_slice(&bytes).ok()?;
            value.get("currentContext")?.as_str().map(str::to_owned)
        };
        let Some(context) = text("DOCKER_CONTEXT").or_else(configured).filter(|it| !it.is_empty() && it != "default")
        else {
            return Ok(usual);
        };
        let id: [u8; 32] = sha2::Sha256::digest(context.as_bytes()).into();
        let id = layers::Digest::from_bytes(id).hex();
        let path = folder.join("contexts/meta").join(&id).join("meta.json");
        let wrong = |why: String| PlaceError::Engine { engine: format!("docker's context `{context}`"), why };
        let bytes = std::fs::read(&path).map_err(|error| wrong(format!("`{}`: {error}", path.display())))?;
        let meta: Value =
            serde_json::from_slice(&bytes).map_err(|_| wrong(format!("`{}` is not JSON", path.display())))?;
        let host = meta.pointer("/Endpoints/docker/Host").and_then(Value::as_str);
        let host = host.ok_or_else(|| wrong("it names no host".into()))?.to_owned();
        let tls = folder.join("contexts/tls").join(&id).join("docker");
        Ok(Docker { host, certificates: tls.is_dir().then_some(tls), unknown: None })
    }

    fn failed(&self, why: impl Into<String>) -> PlaceError {
        PlaceError::Engine { engine: format!("docker at {}", self.host), why: why.into() }
    }

    fn client(&self) -> Result<(reqwest::Client, String), PlaceError> {
        if let Some(why) = &self.unknown {
            return Err(PlaceError::Engine { engine: "docker".into(), why: why.clone() });
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(10)).no_gzip();
        let built = |builder: reqwest::ClientBuilder| builder.build().map_err(|error| self.failed(chain(&error)));
        match self.host.split_once("://") {
            Some(("unix", path)) => {
                let client = built(builder.unix_socket(PathBuf::from(path)).tls_certs_only([]))?;
                Ok((client, "http://docker".into()))
            }
            Some(("tcp" | "http" | "https", host)) => {
                let host = host.trim_end_matches('/');
                let Some(folder) = &self.certificates else {
                    return Ok((built(builder.tls_certs_only([]))?, format!("http://{host}")));
                };
                let read = |name: &str| {
                    let path = folder.join(name);
                    std::fs::read(&path).map_err(|source| PlaceError::File { path, source })
                };
                let authorities = reqwest::Certificate::from_pem_bundle(&read("ca.pem")?)
                    .map_err(|_| self.failed("its ca.pem holds no certificate"))?;
                let mut pem = read("cert.pem")?;
                pem.push(b'\n');
                pem.extend(read("key.pem")?);
                let identity = reqwest::Identity::from_pem(&pem)
                    .map_err(|_| self.failed("its cert.pem and key.pem do not fit"))?;
                let client = built(builder.tls_certs_only(authorities).identity(identity))?;
                Ok((client, format!("https://{host}")))
            }
            _ => Err(self.failed("only unix:// and tcp:// are spoken; forward the socket with `ssh -L` for ssh://")),
        }
    }

    /// Asks for JSON; `None` where there is no such thing.
    fn get(&self, registries: &Registries, path: &str) -> Result<Option<Value>, PlaceError> {
        self.ask(registries, reqwest::Method::GET, path)
    }

    fn ask(&self, registries: &Registries, method: reqwest::Method, path: &str) -> Result<Option<Value>, PlaceError> {
        let (client, base) = self.client()?;
        let answered = registries.wait(async {
            let sent = client.request(method, format!("{base}{path}")).timeout(Duration::from_secs(60)).send().await;
            Ok(match sent {
                Ok(answer) => {
                    let status = answer.status();
                    answer.bytes().await.map(|bytes| (status, bytes)).map_err(|error| chain(&error))
                }
                Err(error) => Err(chain(&error)),
            })
        })?;
        let (status, bytes) = answered.map_err(|why| self.failed(why))?;
        if status.as_u16() == 404 {
            return Ok(None);
        }
        if !status.is_success() || bytes.len() > LARGEST {
            return Err(self.failed(format!("it answered {status}: {}", message(&bytes))));
        }
        if bytes.is_empty() {
            return Ok(Some(Value::Null));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|_| self.failed("its answer is not JSON"))
    }

    /// The image of a name or id, as the engine describes it.
    pub fn image(&self, registries: &Registries, name: &str) -> Result<Option<Value>, PlaceError> {
        self.get(registries, &format!("/images/{name}/json"))
    }

    /// Whether images are kept by containerd, which wants archives whole.
    pub fn is_containerd(&self, registries: &Registries) -> Result<bool, PlaceError> {
        let info = self.get(registries, "/info")?.unwrap_or_default();
        let status = info.get("DriverStatus").map(Value::to_string).unwrap_or_default();
        Ok(status.contains("io.containerd.snapshotter"))
    }

    /// Its version, where it reads no layers that are compressed with zstd: Docker does since 23, whose API is 1.42.
    pub fn without_zstd(&self, registries: &Registries) -> Result<Option<String>, PlaceError> {
        let said = self.get(registries, "/version")?.unwrap_or_default();
        let api = said.get("ApiVersion").and_then(Value::as_str).unwrap_or_default();
        let version = said.get("Version").and_then(Value::as_str).unwrap_or("of an unknown version");
        Ok(is_before_zstd(api).then(|| version.to_owned()))
    }

    /// The layers of all images: lists of diff ids, bottom first.
    pub fn chains(&self, registries: &Registries) -> Result<Vec<Vec<String>>, PlaceError> {
        let images = self.get(registries, "/images/json?all=1")?.unwrap_or_default();
        let ids = images.as_array().into_iter().flatten().filter_map(|it| it["Id"].as_str());
        let mut chains = Vec::new();
        // Of a machine with very many images the newest do: they come first.
        for id in ids.take(500) {
            let Some(image) = self.image(registries, id)? else { continue };
            let layers = image.pointer("/RootFS/Layers").and_then(Value::as_array);
            chains.push(layers.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect());
        }
        Ok(chains)
    }

    /// Gives an image another name.
    pub fn tag(&self, registries: &Registries, id: &str, name: &str) -> Result<(), PlaceError> {
        let (repository, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((name, "latest"));
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("repo", repository)
            .append_pair("tag", tag)
            .finish();
        self.ask(registries, reqwest::Method::POST, &format!("/images/{id}/tag?{query}")).map(drop)
    }

    /// Sends an archive, which `write` produces while it is sent.
    pub fn load(
        &self,
        registries: &Registries,
        write: impl FnOnce(Pipe) -> Result<(), PlaceError> + Send,
    ) -> Result<(), PlaceError> {
        let (client, base) = self.client()?;
        let (sender, pieces) = mpsc::channel(4);
        let pipe = Pipe { sender, buffer: Vec::with_capacity(PIECE) };
        let body = reqwest::Body::wrap(Pieces { pieces });
        std::thread::scope(|scope| {
            let writer = std::thread::Builder::new().spawn_scoped(scope, move || write(pipe));
            let writer = writer.map_err(|error| self.failed(format!("no thread can be had: {error}")))?;
            let request = client.post(format!("{base}/images/load?quiet=1"));
            let answered = registries.wait(async {
                let sent = request.header(reqwest::header::CONTENT_TYPE, "application/x-tar").body(body).send().await;
                Ok(match sent {
                    Ok(answer) => {
                        let status = answer.status();
                        answer.bytes().await.map(|bytes| (status, bytes)).map_err(|error| chain(&error))
                    }
                    Err(error) => Err(chain(&error)),
                })
            });
            let written = writer.join().unwrap_or_else(|_| Err(self.failed("writing the archive ended badly")));
            let (status, bytes) = match answered? {
                Ok(answer) => answer,
                // Where writing failed, that is why sending did.
                Err(why) => {
                    return Err(written
                        .err()
                        .filter(|error| !is_broken_pipe(error))
                        .unwrap_or_else(|| self.failed(why)));
                }
            };
            // What the engine says of an archive that ends early follows from why it does.
            if let Err(error) = &written
                && !is_broken_pipe(error)
            {
                return written;
            }
            let text = String::from_utf8_lossy(&bytes);
            let refused = text.lines().find(|line| line.contains("\"errorDetail\""));
            match (status.is_success(), refused) {
                (true, None) => written,
                (true, Some(line)) => Err(self.failed(message(line.as_bytes()))),
                (false, _) => Err(self.failed(format!("it answered {status}: {}", message(&bytes)))),
            }
        })
    }

    /// Reads an image into a temporary archive in the cache.
    pub fn save(
        &self,
        registries: &Registries,
        name: &str,
        store: &Store,
    ) -> Result<tempfile::NamedTempFile, PlaceError> {
        let (client, base) = self.client()?;
        let folder = store.scratch();
        let file_error = |source| PlaceError::File { path: folder.clone(), source };
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(file_error)?;
        let outcome = registries.wait(async {
            let mut answer = match client.get(format!("{base}/images/{name}/get")).send().await {
                Ok(answer) => answer,
                Err(error) => return Ok(Err(self.failed(chain(&error)))),
            };
            let status = answer.status();
            if !status.is_success() {
                let bytes = answer.bytes().await.unwrap_or_default();
                return Ok(Err(self.failed(format!("it answered {status}: {}", message(&bytes)))));
            }
            loop {
                match answer.chunk().await {
                    Ok(Some(piece)) => file
                        .write_all(&piece)
                        .map_err(|source| RegistryError::File { path: file.path().into(), source })?,
                    Ok(None) => return Ok(Ok(())),
                    Err(error) => return Ok(Err(self.failed(chain(&error)))),
                }
            }
        })?;
        outcome?;
        Ok(file)
    }
}

fn is_broken_pipe(error: &PlaceError) -> bool {
    match error {
        PlaceError::File { source, .. } | PlaceError::Registry(RegistryError::File { source, .. }) => {
            source.kind() == io::ErrorKind::BrokenPipe
        }
        _ => false,
    }
}

fn message(bytes: &[u8]) -> String {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let said = value.get("message").or(value.pointer("/errorDetail/message")).and_then(Value::as_str);
    said.map_or_else(|| String::from_utf8_lossy(bytes).chars().take(300).collect(), str::to_owned)
}

/// Bytes that are collected before they are passed on.
const PIECE: usize = 256 << 10;

/// The writing end of a request's body.
pub struct Pipe {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.sender.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// Whether an API's version is one of engines that read no zstd. What cannot be read is taken for one: plain layers are
/// read by all.
fn is_before_zstd(api: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    match api.split_once('.').map(|(major, minor)| (number(major), number(minor))) {
        Some((Some(major), Some(minor))) => (major, minor) < (1, 42),
        _ => true,
    }
}

/// How many layers of an image an engine has already: the longest start of its chain that some image there has too.
pub fn known_layers(diff_ids: &[String], chains: &[Vec<String>]) -> usize {
    let shared = |chain: &Vec<String>| chain.iter().zip(diff_ids).take_while(|(a, b)| a == b).count();
    chains.iter().map(shared).max().unwrap_or(0)
}

/// The blobs of an image that an engine never opens, because it has the chains they end.
pub fn left_out(blobs: &[crate::registry::AnyDigest], known: usize) -> BTreeSet<crate::registry::AnyDigest> {
    // A layer that comes again further up has to be there.
    let later: BTreeSet<_> = blobs.iter().skip(known).copied().collect();
    blobs.iter().take(known).copied().filter(|blob| !later.contains(blob)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::Digest;
    use std::collections::BTreeMap;

    #[test]
    fn the_longest_known_start_of_a_chain_is_left_out() {
        let ids = |text: &str| text.split(' ').filter(|it| !it.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(known_layers(&ids("a b c"), &[ids("b"), ids("a x"), ids("a b"), ids("")]), 2);
        assert_eq!(known_layers(&ids("a b c"), &[]), 0);
        let blob = |name: &str| crate::registry::AnyDigest::from(Digest::of(name.as_bytes()));
        assert_eq!(left_out(&[blob("a"), blob("b"), blob("a")], 2), BTreeSet::from([blob("b")]));
    }

    #[test]
    fn engines_that_read_no_zstd_are_known_by_their_api() {
        for (api, before) in
            [("1.41", true), ("1.42", false), ("1.51", false), ("2.0", false), ("", true), ("x.y", true)]
        {
            assert_eq!(is_before_zstd(api), before, "{api}");
        }
    }

    #[test]
    fn the_engine_is_found_as_dockers_client_finds_it() {
        let home = tempfile::tempdir().expect("a folder");
        let found = |more: &[(&str, &str)]| {
            let mut variables: BTreeMap<String, OsString> =
                more.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
            variables.insert("HOME".into(), home.path().into());
            Docker::from_environment(|name| variables.get(name).cloned()).map(|it| it.host).map_err(|it| it.to_string())
        };
        let usual = Ok("unix:///var/run/docker.sock".to_owned());
        assert_eq!(found(&[]), usual);
        assert_eq!(found(&[("DOCKER_HOST", "tcp://x:1")]), Ok("tcp://x:1".into()));
        assert_eq!(found(&[("DOCKER_CONTEXT", "default")]), usual);
        // Who asks for TLS never gets plain TCP instead.
        let certificates = |more: &[(&str, &str)]| {
            let variables: BTreeMap<&str, &str> = more.iter().copied().collect();
            let found = Docker::from_environment(|name| variables.get(name).map(OsString::from));
            found.map(|it| it.certificates).map_err(|it| it.to_string())
        };
        let verify = [("DOCKER_TLS_VERIFY", "1"), ("DOCKER_HOST", "tcp://x:1")];
        assert_eq!(certificates(&verify[1..]), Ok(None));
        assert!(certificates(&verify).expect_err("no folder").contains("DOCKER_CERT_PATH"));
        assert!(certificates(&[("DOCKER_HOST", "https://x:1")]).is_err());
        let usual_folder = [verify[0], verify[1], ("HOME", "/h")];
        assert_eq!(certificates(&usual_folder), Ok(Some("/h/.docker".into())));
        let named = [verify[0], verify[1], ("HOME", "/h"), ("DOCKER_CERT_PATH", "/c")];
        assert_eq!(certificates(&named), Ok(Some("/c".into())));
        let id = Digest::of(b"far").hex();
        let meta = home.path().join(".docker/contexts/meta").join(id);
        std::fs::create_dir_all(&meta).expect("makes");
        std::fs::write(meta.join("meta.json"), r#"{"Endpoints": {"docker": {"Host": "unix:///far.sock"}}}"#)
            .expect("writes");
        assert_eq!(found(&[("DOCKER_CONTEXT", "far")]), Ok("unix:///far.sock".into()));
        std::fs::write(home.path().join(".docker/config.json"), r#"{"currentContext": "far"}"#).expect("writes");
        assert_eq!(found(&[]), Ok("unix:///far.sock".into()));
        assert!(found(&[("DOCKER_CONTEXT", "none")]).is_err());
    }
}
