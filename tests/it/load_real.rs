//! Images into real engines: Docker 20.10 and podman.

use std::process::Command;

use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Stage, path};

use crate::registry_real::{certificates, client_certificate};
use crate::support::docker;
use crate::support::run::{Outcome, Sandbox, outcome};
use crate::support::server::{Server, free_port};

/// Two images with a large layer in common.
fn project(own: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let large: Vec<u8> = (0..2_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    sandbox.write("context/shared/data", large);
    sandbox.write("context/own/hello", own);
    let large = Stage::scratch().layer(files("shared", path!("/shared")));
    let one = large.layer(files("own", path!("/own"))).image();
    let catalogue = Catalogue::new("test").with("load-one", one).with("load-two", large.image().env("A", "1"));
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox
}

fn load(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context", "load"]);
    command.args(words).env("DOCKER_HOST", docker::engine().host());
    outcome(&mut command)
}

#[test]
fn real_docker_gets_what_it_does_not_have() {
    let engine = docker::engine();
    let sandbox = project("first");
    let done = load(&sandbox, &["--tag", "t1"]);
    assert!(done.stderr.contains("load-one:t1: sent 2 of 2 layers"), "{}", done.stderr);
    assert!(done.stderr.contains("load-two:t1: sent 0 of 1 layers"), "{}", done.stderr);
    let stdout = done.success();
    for (line, name) in stdout.lines().zip(["load-one:t1", "load-two:t1"]) {
        let id = engine.docker(["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(line, format!("{name} {}", id.trim()));
    }
    // Nothing changed: nothing is sent; another name costs a request.
    let again = load(&sandbox, &["--tag", "t1"]);
    assert_eq!(again.stderr.matches("it is there already").count(), 2, "{}", again.stderr);
    assert_eq!(again.success(), stdout);
    let renamed = load(&sandbox, &["load-one", "--tag", "example.org/x/{image}:t2"]);
    assert!(renamed.stderr.contains("it is there already and got another name"), "{}", renamed.stderr);
    renamed.success();
    engine.docker(["image", "inspect", "example.org/x/load-one:t2"]);
    // One small layer changed: the large one is not sent again, and the image is whole nevertheless.
    sandbox.write("context/own/hello", "second");
    let changed = load(&sandbox, &["load-one", "--tag", "t3"]);
    assert!(changed.stderr.contains("sent 1 of 2 layers, the engine has the others"), "{}", changed.stderr);
    changed.success();
    let container = engine.docker(["create", "load-one:t3", "/none"]);
    let container = container.trim();
    let copied = sandbox.path().join("copied");
    engine.docker(["cp", &format!("{container}:/own/hello"), &copied.display().to_string()]);
    assert_eq!(std::fs::read_to_string(&copied).unwrap(), "second");
    engine.docker(["cp", &format!("{container}:/shared/data"), &copied.display().to_string()]);
    assert_eq!(std::fs::metadata(&copied).unwrap().len(), 2_000_000);
    engine.docker(["rm", container]);
    // What Docker saves is read back, whatever its format.
    let layout = sandbox.path().join("layout");
    let mut copy = sandbox.command(["copy", "docker-daemon:load-one:t3", &format!("oci:{}:back", layout.display())]);
    outcome(copy.env("DOCKER_HOST", engine.host())).success();
    let bundle = sandbox.path().join("bundle");
    let unpacked = Command::new("umoci")
        .args(["unpack", "--rootless", "--image", &format!("{}:back", layout.display())])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(std::fs::read_to_string(bundle.join("rootfs/own/hello")).unwrap(), "second");
}

#[test]
fn real_podman_loads_one_stream() {
    let sandbox = project("podman");
    // `podman` as the user of this test has it: a store of its own.
    let storage = sandbox.path().join("podman");
    sandbox.write(
        "storage.conf",
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n", storage.display()),
    );
    let conf = sandbox.work().join("storage.conf");
    let load = || {
        let mut command = sandbox.command([
            "--catalogue",
            "plan.json",
            "--context",
            "context",
            "load",
            "load-one",
            "--into",
            "podman",
        ]);
        outcome(command.env("CONTAINERS_STORAGE_CONF", &conf))
    };
    let first = load();
    assert!(first.stderr.contains("sent whole in one stream"), "{}", first.stderr);
    first.success();
    let again = load();
    assert!(again.stderr.contains("it is there already"), "{}", again.stderr);
    let mut inspect = Command::new("podman");
    inspect.args(["image", "inspect", "--format", "{{.Id}}", "load-one:latest"]).env("CONTAINERS_STORAGE_CONF", &conf);
    let id = outcome(&mut inspect).success();
    assert_eq!(again.success(), format!("load-one:latest sha256:{}\n", id.trim()));
}

#[test]
fn real_docker_that_reads_no_zstd_gets_plain_layers() {
    let engine = docker::engine();
    let version = engine.docker(["version", "--format", "{{.Server.APIVersion}}"]);
    assert_eq!(version.trim(), "1.41", "this is the engine that reads no zstd");
    let sandbox = project("zstd");
    // Not the layer that the other tests load into the same engine.
    let large: Vec<u8> = (0..2_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 12) as u8).collect();
    sandbox.write("context/shared/data", large);
    let zstd = ["--compression", "zstd", "--tag", "z1"];
    let done = load(&sandbox, &zstd);
    assert!(done.stderr.contains("load-one:z1: sent 2 of 2 layers; unpacked, because Docker 20.10"), "{}", done.stderr);
    // Its second image has nothing that has to be sent.
    assert!(done.stderr.contains("load-two:z1: sent 0 of 1 layers, the engine has the others\n"), "{}", done.stderr);
    let stdout = done.success();
    for (line, name) in stdout.lines().zip(["load-one:z1", "load-two:z1"]) {
        let id = engine.docker(["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(line, format!("{name} {}", id.trim()), "the configuration is the same");
    }
    let container = engine.docker(["create", "load-one:z1", "/none"]);
    let container = container.trim();
    let copied = sandbox.path().join("copied");
    engine.docker(["cp", &format!("{container}:/own/hello"), &copied.display().to_string()]);
    assert_eq!(std::fs::read_to_string(&copied).unwrap(), "zstd");
    engine.docker(["rm", container]);
    assert_eq!(load(&sandbox, &zstd).stderr.matches("it is there already").count(), 2);
    engine.docker(["image", "rm", "--force", "load-one:z1", "load-two:z1"]);
}

/// A way to an engine that breaks once so many bytes have gone there.
fn bad_way(to: &std::path::Path, breaks: usize) -> (tempfile::TempDir, String) {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let to = to.to_owned();
    std::thread::spawn(move || {
        let passed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for mut client in listener.incoming().flatten() {
            let mut server = UnixStream::connect(&to).unwrap();
            let (mut back, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back, &mut to_client));
            let passed = passed.clone();
            std::thread::spawn(move || {
                let mut piece = [0; 8 << 10];
                while let Ok(count @ 1..) = client.read(&mut piece) {
                    let before = passed.fetch_add(count, std::sync::atomic::Ordering::SeqCst);
                    if before + count > breaks || server.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
                let _ = (client.shutdown(std::net::Shutdown::Both), server.shutdown(std::net::Shutdown::Both));
            });
        }
    });
    let host = format!("unix://{}", path.display());
    (folder, host)
}

#[test]
fn real_a_load_that_breaks_off_leaves_no_image_and_the_next_succeeds() {
    let engine = docker::engine();
    let socket = engine.host().trim_start_matches("unix://").to_owned();
    let sandbox = project("broken");
    let mut noise = 1_u64;
    let large = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 56) as u8
    });
    sandbox.write("context/shared/data", large.take(1_000_000).collect::<Vec<u8>>());
    for breaks in [2_000, 20_000, 300_000, 900_000] {
        let (_way, host) = bad_way(std::path::Path::new(&socket), breaks);
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context", "load", "load-one"]);
        let done = outcome(command.args(["--tag", "broken"]).env("DOCKER_HOST", &host));
        done.failure(1, &[&format!("docker at {host}")]);
        assert_ne!(engine.try_docker(["image", "inspect", "load-one:broken"]).status, 0, "{breaks}");
        let left: Vec<_> = std::fs::read_dir(sandbox.cache().join("tmp")).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    load(&sandbox, &["load-one", "--tag", "broken"]).success();
    engine.docker(["image", "inspect", "load-one:broken"]);
    engine.docker(["image", "rm", "--force", "load-one:broken"]);
}

#[test]
fn real_containerd_takes_what_it_lacks_once() {
    let sandbox = project("containerd");
    let folder = sandbox.path().join("containerd");
    std::fs::create_dir_all(&folder).unwrap();
    // A socket's path holds at most 107 bytes, so it does not lie below `target`.
    let sockets = tempfile::tempdir().unwrap();
    let address = sockets.path().join("containerd.sock");
    let config = folder.join("config.toml");
    let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n";
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(&config).arg("--address").arg(&address);
    command.arg("--root").arg(folder.join("root")).arg("--state").arg(sockets.path().join("state"));
    let ctr = |words: &[&str]| {
        let mut command = Command::new("ctr");
        command.args(words).env("CONTAINERD_ADDRESS", &address).env("CONTAINERD_SNAPSHOTTER", "native");
        outcome(&mut command)
    };
    let _server = Server::start(&command, &folder.join("log"), || {
        let asked = Command::new("ctr").arg("--address").arg(&address).arg("version").output();
        asked.is_ok_and(|it| it.status.success())
    });
    let load = |words: &[&str]| {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context", "load"]);
        command.args(["--into", "containerd"]).args(words);
        outcome(command.env("CONTAINERD_ADDRESS", &address).env("CONTAINERD_SNAPSHOTTER", "native"))
    };
    let first = load(&[]);
    assert_eq!(first.stderr.matches("sent whole in one stream").count(), 2, "{}", first.stderr);
    let stdout = first.success();
    assert!(stdout.starts_with("load-one:latest sha256:"), "{stdout}");
    let listed = ctr(&["images", "check"]).success();
    let full = "docker.io/library/load-one:latest";
    let line = listed.lines().find(|line| line.starts_with(full)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("complete (3/3)") && line.trim_end().ends_with("true"), "whole and unpacked: {line}");
    let again = load(&[]);
    assert_eq!(again.stderr.matches("it is there already").count(), 2, "{}", again.stderr);
    assert_eq!(again.success(), stdout);
    // What it keeps is what was built, byte for byte.
    let exported = sandbox.path().join("exported.tar");
    ctr(&["images", "export", &exported.display().to_string(), full]).success();
    let mut copy = sandbox.command(["copy".into(), format!("oci-archive:{}", exported.display()), "oci:back:x".into()]);
    let digest = outcome(&mut copy).success();
    let built = sandbox.imgbuild(["--catalogue", "plan.json", "--context", "context", "build", "load-one"]).success();
    assert_eq!(built, format!("load-one {digest}"));
    // The name moves when the content does; other compressions and platforms are taken as well.
    sandbox.write("context/own/hello", "changed");
    load(&["load-one"]).success();
    let moved = ctr(&["images", "list", &format!("name=={full}")]).success();
    assert!(!moved.contains(digest.trim()), "{moved}");
    load(&["load-one", "--tag", "z", "--compression", "zstd"]).success();
    load(&["load-one", "--tag", "arm", "--platform", "arm64"]).success();
    load(&["load-one", "--tag", "amd", "--platform", "amd64"]).success();
    let listed = ctr(&["images", "list", "--quiet"]).success();
    for tag in ["latest", "z", "arm", "amd"] {
        assert!(listed.contains(&format!("docker.io/library/load-one:{tag}")), "{listed}");
    }
}

#[test]
fn real_docker_behind_tls_is_found_by_variables_and_by_contexts() {
    let sandbox = project("tls");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    certificates(folder.path());
    client_certificate(folder.path());
    std::fs::create_dir(folder.path().join("client")).unwrap();
    for (from, to) in [("ca.pem", "ca.pem"), ("client.cert", "cert.pem"), ("client.key", "key.pem")] {
        std::fs::copy(at(from), at(&format!("client/{to}"))).unwrap();
    }
    let host = format!("tcp://127.0.0.1:{}", free_port());
    let mut command = Command::new("dockerd");
    command.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    command.args(["--storage-driver", "vfs", "--host", &host, "--tlsverify", "--tlscacert", &at("ca.pem")]);
    command.args(["--tlscert", &at("server.pem"), "--tlskey", &at("server.key"), "--pidfile", &at("pid")]);
    command.args(["--data-root", &at("data"), "--exec-root", &at("exec")]);
    let client = |words: &[&str]| {
        let mut command = Command::new("/usr/bin/docker");
        command.args(words).env("HOME", sandbox.home()).env_remove("DOCKER_CONFIG").env_remove("DOCKER_HOST");
        command
    };
    let verified = |command: &mut Command| {
        let command = command.env("DOCKER_HOST", &host).env("DOCKER_TLS_VERIFY", "1");
        outcome(command.env("DOCKER_CERT_PATH", at("client")))
    };
    let log = folder.path().join("log");
    let _server = Server::start(&command, &log, || verified(&mut client(&["info"])).status == 0);
    let load =
        || sandbox.command(["--catalogue", "plan.json", "--context", "context", "load", "load-one", "--tag", "t"]);
    let refused = outcome(load().env("DOCKER_HOST", &host));
    refused.failure(1, &[&format!("docker at {host}")]);
    let none = outcome(load().env("DOCKER_HOST", &host).env("DOCKER_TLS_VERIFY", "1"));
    none.failure(1, &["ca.pem"]);
    let done = verified(&mut load());
    assert!(done.stderr.contains("sent 2 of 2 layers"), "{}", done.stderr);
    let id = verified(&mut client(&["image", "inspect", "--format", "{{.Id}}", "load-one:t"])).success();
    assert_eq!(done.success(), format!("load-one:t {id}"));
    // The context that Docker's own client keeps.
    let (ca, cert, key) = (at("client/ca.pem"), at("client/cert.pem"), at("client/key.pem"));
    let endpoint = format!("host={host},ca={ca},cert={cert},key={key}");
    outcome(&mut client(&["context", "create", "far", "--docker", &endpoint])).success();
    let named = outcome(load().env("DOCKER_CONTEXT", "far"));
    assert!(named.stderr.contains("it is there already"), "{}", named.stderr);
    outcome(&mut client(&["context", "use", "far"])).success();
    let current = outcome(&mut load());
    assert!(current.stderr.contains("it is there already"), "{}", current.stderr);
    // A server that somebody else vouches for.
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    std::fs::copy(other.path().join("ca.pem"), at("client/ca.pem")).unwrap();
    verified(&mut load()).failure(1, &[&format!("docker at {host}"), "certificate"]);
}

#[test]
fn an_engine_that_cannot_be_reached_is_named() {
    let sandbox = project("none");
    let load = |host: &str, more: &[&str]| {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context", "load"]);
        outcome(command.args(more).env("DOCKER_HOST", host))
    };
    load("unix:///nonexistent.sock", &[]).failure(1, &["docker at unix:///nonexistent.sock: cannot connect"]);
    load("ssh://somewhere", &[]).failure(1, &["only unix:// and tcp:// are spoken"]);
    load("unix:///x", &["--tag", "x/one:v1"]).failure(2, &["is one name for 2 images"]);
    load("unix:///x", &["--into", "nothing"]).failure(2, &["invalid value 'nothing'"]);
}
