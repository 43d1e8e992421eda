//! Images into real engines: Docker 20.10 and podman.

use std::process::Command;

use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Stage, path};

use crate::support::docker;
use crate::support::run::{Outcome, Sandbox, outcome};

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
