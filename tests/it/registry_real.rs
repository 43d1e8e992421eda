//! Debian's own registry, and other people's clients that read what was pushed.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imgbuild::output::NamedImage;
use imgbuild::registry::auth::{Credential, Given, Secret, Sources};
use imgbuild::registry::{ClientConfig, Registries, Supply};
use layers::oci::{self, ImageParts, LayerPart};
use layers::{DiffId, Digest, ImageConfig, Platform};

use crate::registry::{Images, deliveries, hurried};
use crate::support::docker;
use crate::support::random::Random;
use crate::support::run::{outcome, tool};
use crate::support::server::Server;

/// A running `docker-registry`.
pub struct Real {
    pub folder: tempfile::TempDir,
    port: u16,
    _server: Server,
}

impl Real {
    pub fn start(more: &str) -> Real {
        Real::start_in(tempfile::tempdir().unwrap(), more)
    }

    pub fn start_in(folder: tempfile::TempDir, more: &str) -> Real {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = folder.path().join("data");
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            root.display(),
            more.replace("FOLDER", &folder.path().display().to_string())
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path);
        let server =
            Server::start(&command, &folder.path().join("log"), || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Real { folder, port, _server: server }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// An image that clients can unpack: one layer with these files.
fn real_image(images: &Images, name: &str, platforms: &[Platform], files: &[(&str, &[u8])]) -> NamedImage {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let blob = images.store.put(&gzip.finish().unwrap()).unwrap();
    let built: Vec<_> = platforms
        .iter()
        .map(|platform| {
            let layer = LayerPart {
                digest: blob.digest,
                size: blob.size,
                diff_id: DiffId(Digest::of(&tar)),
                media_type: oci::LAYER_GZIP.into(),
                created_by: "a test".into(),
            };
            ImageParts {
                platform: *platform,
                created: oci::rfc3339(1_700_000_000),
                config: &ImageConfig { cmd: Some(vec!["/hello".into()]), ..ImageConfig::default() },
                labels: BTreeMap::from([("name".to_owned(), name.to_owned())]),
                base: None,
                layers: vec![layer],
            }
            .build()
        })
        .collect();
    let index = (built.len() > 1).then(|| oci::index(&built));
    NamedImage { name: name.into(), platforms: built, index, layers: vec![(blob.digest, blob.size)] }
}

fn push(host: &str, config: ClientConfig, images: &Images, named: &[NamedImage]) -> Result<Registries, String> {
    let registries = Registries::new(config);
    let supply = Supply::of(named, &images.store);
    let pushed = registries.push(&deliveries(host, named, "v1"), &supply, &imgbuild::observe::Silent);
    pushed.map(|_| registries).map_err(crate::registry::shown)
}

fn patient() -> ClientConfig {
    ClientConfig { patience: imgbuild::registry::Patience::default(), ..hurried() }
}

/// What skopeo says that a reference is.
fn seen_by_skopeo(reference: &str, more: &[&str]) -> String {
    let mut words = vec!["inspect", "--format", "{{.Digest}}"];
    words.extend(more);
    let reference = format!("docker://{reference}");
    words.push(&reference);
    tool("skopeo", words).trim().to_owned()
}

#[test]
fn real_clients_read_what_was_pushed_to_debians_registry() {
    let real = Real::start("");
    let images = Images::new();
    let one = real_image(&images, "team/one", &[Platform::Amd64], &[("hello", b"hi"), ("data", &[9; 100_000])]);
    let two = real_image(&images, "team/two", &Platform::ALL, &[("hello", b"hi"), ("data", &[9; 100_000])]);
    push(&real.host(), patient(), &images, &[one.clone(), two.clone()]).unwrap();
    let host = real.host();
    for image in [&one, &two] {
        let found = seen_by_skopeo(&format!("{host}/{}:v1", image.name), &["--tls-verify=false"]);
        assert_eq!(found, image.top().digest.to_string());
    }
    // skopeo copies every blob and umoci unpacks it.
    let layout = real.folder.path().join("layout");
    let to = format!("oci:{}:v1", layout.display());
    let from = format!("docker://{host}/team/two:v1");
    tool("skopeo", ["copy", "--quiet", "--src-tls-verify=false", &from, &to]);
    let bundle = real.folder.path().join("bundle");
    tool(
        "umoci",
        ["unpack", "--rootless", "--image", &format!("{}:v1", layout.display()), &bundle.display().to_string()],
    );
    assert_eq!(std::fs::read(bundle.join("rootfs/hello")).unwrap(), b"hi");
    // podman pulls it into a store of its own.
    let storage = real.folder.path().join("podman");
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        command.args([
            "--root",
            &storage.display().to_string(),
            "--runroot",
            &storage.join("run").display().to_string(),
        ]);
        command.args(["--storage-driver", "vfs", "--runtime", "runc"]).args(words);
        outcome(&mut command).success()
    };
    podman(&["pull", "--quiet", "--tls-verify=false", &format!("{host}/team/two:v1")]);
    let label = podman(&["image", "inspect", "--format", "{{.Labels.name}}", &format!("{host}/team/two:v1")]);
    assert_eq!(label.trim(), "team/two");
    // The engine takes registries on this machine without TLS.
    let engine = docker::engine();
    engine.docker(["pull", "--quiet", &format!("{host}/team/one:v1")]);
    let label =
        engine.docker(["image", "inspect", "--format", "{{.Config.Labels.name}}", &format!("{host}/team/one:v1")]);
    assert_eq!(label.trim(), "team/one");
}

#[test]
fn real_unchanged_images_and_mounts_at_debians_registry() {
    let real = Real::start("");
    let images = Images::new();
    let named: Vec<_> = ["a", "b", "c", "d"]
        .map(|name| real_image(&images, name, &Platform::ALL, &[("hello", b"hi"), ("data", &[7; 400_000])]))
        .into();
    let first = push(&real.host(), patient(), &images, &named).unwrap();
    let again = push(&real.host(), patient(), &images, &named).unwrap();
    assert_eq!(again.client().counters().requests.load(Ordering::Relaxed), 8, "one a manifest and one a tag");
    assert!(first.client().counters().requests.load(Ordering::Relaxed) > 8);
    let other = Images::new();
    // Another machine, without a memo: everything is found by asking.
    let named: Vec<_> = ["a", "b", "c", "d"]
        .map(|name| real_image(&other, name, &Platform::ALL, &[("hello", b"hi"), ("data", &[7; 400_000])]))
        .into();
    let elsewhere = push(&real.host(), patient(), &other, &named).unwrap();
    assert_eq!(elsewhere.client().counters().requests.load(Ordering::Relaxed), 8);
}

#[test]
fn real_passwords_of_htpasswd_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let line = tool("htpasswd", ["-nbB", "user", crate::support::registry::CANARY_PASSWORD]);
    std::fs::write(folder.path().join("htpasswd"), line).unwrap();
    let real = Real::start_in(folder, "auth: {htpasswd: {realm: test, path: FOLDER/htpasswd}}\n");
    let images = Images::new();
    let image = real_image(&images, "team/one", &[Platform::Amd64], &[("hello", b"hi")]);
    let with = |password: &str| {
        let credential = Credential::Password { user: "user".into(), password: Secret::new(password) };
        let sources = Sources { given: Given::For(real.host(), credential), ..Sources::default() };
        push(&real.host(), ClientConfig { sources, ..patient() }, &images, std::slice::from_ref(&image)).map(drop)
    };
    let error = push(&real.host(), patient(), &images, std::slice::from_ref(&image)).map(drop).unwrap_err();
    assert!(error.contains("as anonymous"), "{error}");
    let error = with("canary-password-wrong").unwrap_err();
    assert!(error.contains("as user `user` with a password"), "{error}");
    with(crate::support::registry::CANARY_PASSWORD).unwrap();
    let creds = format!("user:{}", crate::support::registry::CANARY_PASSWORD);
    let found = seen_by_skopeo(&format!("{}/team/one:v1", real.host()), &["--tls-verify=false", "--creds", &creds]);
    assert_eq!(found, image.top().digest.to_string());
}

/// A certificate authority of the test's own, and a server's certificate.
pub fn certificates(folder: &Path) -> PathBuf {
    let at = |name: &str| folder.join(name).display().to_string();
    tool(
        "openssl",
        [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=a test's authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-keyout",
            &at("ca.key"),
            "-out",
            &at("ca.pem"),
        ],
    );
    tool(
        "openssl",
        [
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            &at("server.key"),
            "-out",
            &at("server.csr"),
        ],
    );
    std::fs::write(
        folder.join("ext"),
        "subjectAltName=DNS:localhost,DNS:registry.example,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n",
    )
    .unwrap();
    tool(
        "openssl",
        [
            "x509",
            "-req",
            "-in",
            &at("server.csr"),
            "-CA",
            &at("ca.pem"),
            "-CAkey",
            &at("ca.key"),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &at("ext"),
            "-out",
            &at("server.pem"),
        ],
    );
    folder.join("ca.pem")
}

/// A certificate for a client, by the same authority; its files are `client.cert` and `client.key`.
pub fn client_certificate(folder: &Path) {
    let at = |name: &str| folder.join(name).display().to_string();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a client"];
    let files = ["-keyout", &at("client.key"), "-out", &at("client.csr")];
    tool("openssl", ["req"].iter().chain(&key).chain(&files));
    std::fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let (request, authority) = (at("client.csr"), at("ca.pem"));
    let (ca_key, extensions, out) = (at("ca.key"), at("client.ext"), at("client.cert"));
    let words = ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &ca_key, "-CAcreateserial"];
    tool("openssl", words.iter().chain(&["-days", "2", "-extfile", &extensions, "-out", &out]));
}

#[test]
fn real_a_registry_that_wants_to_know_its_clients_is_shown_the_certificate_that_is_kept_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let authority = certificates(folder.path());
    client_certificate(folder.path());
    let tls = "  tls: {certificate: FOLDER/server.pem, key: FOLDER/server.key, clientcas: [FOLDER/ca.pem]}\n";
    let real = Real::start_in(folder, tls);
    let images = Images::new();
    let image = real_image(&images, "team/one", &[Platform::Amd64], &[("hello", b"hi"), ("data", &[1; 3_000_000])]);
    let one = std::slice::from_ref(&image);
    let trusting = ClientConfig { extra_ca: vec![authority.clone()], ..hurried() };
    let error = push(&real.host(), trusting, &images, one).map(drop).unwrap_err();
    assert!(error.contains("wants to see a client's certificate") && error.contains("put `client.cert`"), "{error}");
    // Docker's layout: certs.d/HOST/ca.crt, client.cert, client.key.
    let all = real.folder.path().join("certs.d");
    let own = all.join(real.host());
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(&authority, own.join("ca.crt")).unwrap();
    for name in ["client.cert", "client.key"] {
        std::fs::copy(real.folder.path().join(name), own.join(name)).unwrap();
    }
    let config = ClientConfig { certificates: vec![all.clone()], ..patient() };
    push(&real.host(), config, &images, one).unwrap();
    let found = seen_by_skopeo(&format!("{}/team/one:v1", real.host()), &["--cert-dir", &own.display().to_string()]);
    assert_eq!(found, image.top().digest.to_string());
    // A key that is none is named, and its content is not shown.
    std::fs::write(own.join("client.key"), "canary-password-5f0c").unwrap();
    let config = ClientConfig { certificates: vec![all], ..hurried() };
    let error = push(&real.host(), config, &images, one).map(drop).unwrap_err();
    assert!(error.contains("client.key` are not a PEM certificate and its key"), "{error}");
}

#[test]
fn real_uploads_over_http_2_survive_a_line_that_breaks() {
    let folder = tempfile::tempdir().unwrap();
    let authority = certificates(folder.path());
    let real = Real::start_in(folder, "  tls: {certificate: FOLDER/server.pem, key: FOLDER/server.key}\n");
    let images = Images::new();
    let noise = Random::of(1).bytes(6_000_000);
    let named: Vec<_> = ["team/one", "team/two"]
        .map(|name| real_image(&images, name, &Platform::ALL, &[("data", &noise), ("name", name.as_bytes())]))
        .into();
    // All streams of a connection break at once.
    let (port, passed) = bad_line(real.port, vec![2_000, 1_500_000, 60_000, 4_000_000, 900_000]);
    let host = format!("127.0.0.1:{port}");
    let config = ClientConfig { extra_ca: vec![authority], ..patient() };
    push(&host, config, &images, &named).unwrap();
    assert!(passed.load(Ordering::Relaxed) > 7_000_000, "it broke on its way");
    let log = std::fs::read_to_string(real.folder.path().join("log")).unwrap();
    assert!(log.contains("HTTP/2.0\" 201") && !log.contains("HTTP/1.1\" 201"), "{log}");
    let own = real.folder.path().join("trusted");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(real.folder.path().join("ca.pem"), own.join("ca.crt")).unwrap();
    for image in &named {
        let name = format!("{}/{}:v1", real.host(), image.name);
        let found = seen_by_skopeo(&name, &["--cert-dir", &own.display().to_string()]);
        assert_eq!(found, image.top().digest.to_string());
    }
}

#[test]
fn real_tls_is_verified_with_an_authority_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let authority = certificates(folder.path());
    let real = Real::start_in(folder, "  tls: {certificate: FOLDER/server.pem, key: FOLDER/server.key}\n");
    let images = Images::new();
    let image = real_image(&images, "team/one", &[Platform::Amd64], &[("hello", b"hi"), ("data", &[1; 3_000_000])]);
    let error = push(&real.host(), hurried(), &images, std::slice::from_ref(&image)).map(drop).unwrap_err();
    assert!(error.contains("it wants TLS, and its certificate is not trusted"), "{error}");
    let trusting = ClientConfig { extra_ca: vec![authority.clone()], ..patient() };
    push(&real.host(), trusting, &images, std::slice::from_ref(&image)).unwrap();
    // The same by the folder that Docker keeps for a registry, and without verification where that is asked for.
    let own = real.folder.path().join("certs.d").join(real.host());
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(&authority, own.join("ca.crt")).unwrap();
    let config = ClientConfig { certificates: vec![real.folder.path().join("certs.d")], ..patient() };
    push(&real.host(), config, &images, std::slice::from_ref(&image)).unwrap();
    push(
        &real.host(),
        ClientConfig { insecure: vec![real.host()], ..patient() },
        &images,
        std::slice::from_ref(&image),
    )
    .unwrap();
    let found = seen_by_skopeo(&format!("{}/team/one:v1", real.host()), &["--cert-dir", &own.display().to_string()]);
    assert_eq!(found, image.top().digest.to_string());
}

/// Passes bytes on to a server and breaks each connection after so many from the client; the last ones hold.
fn bad_line(to: u16, breaks: Vec<u64>) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let passed = Arc::new(AtomicU64::new(0));
    let (counted, left) = (passed.clone(), Arc::new(std::sync::Mutex::new(breaks)));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (mut back, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back, &mut to_client));
            let (counted, left) = (counted.clone(), left.clone());
            std::thread::spawn(move || {
                let (mut client, mut server) = (client, server);
                let mut piece = vec![0; 16 << 10];
                let mut here = 0;
                while let Ok(count) = client.read(&mut piece) {
                    if count == 0 || server.write_all(&piece[..count]).is_err() {
                        break;
                    }
                    here += count as u64;
                    counted.fetch_add(count as u64, Ordering::Relaxed);
                    let mut left = left.lock().unwrap();
                    if left.first().is_some_and(|limit| here > *limit) {
                        left.remove(0);
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, passed)
}

#[test]
fn real_uploads_to_debians_registry_survive_a_line_that_breaks() {
    let real = Real::start("");
    let images = Images::new();
    let noise = Random::of(1).bytes(12_000_000);
    let image = real_image(&images, "team/one", &[Platform::Amd64], &[("data", &noise)]);
    let (port, passed) = bad_line(real.port, vec![3_000_000, 2_000_000, 4_000_000]);
    let registries = push(&format!("127.0.0.1:{port}"), patient(), &images, std::slice::from_ref(&image)).unwrap();
    let size = image.layers[0].1;
    assert!(registries.client().counters().sent.load(Ordering::Relaxed) >= size);
    let passed = passed.load(Ordering::Relaxed);
    // This registry forgets an upload whose connection broke (its `_state` holds the offset of before), so each begins
    // anew; nothing more is lost than what had passed.
    assert!(passed < size + 9_000_000 + 200_000, "{passed} bytes for a blob of {size}");
    let found = seen_by_skopeo(&format!("{}/team/one:v1", real.host()), &["--tls-verify=false"]);
    assert_eq!(found, image.top().digest.to_string());
}
