//! A current Docker, whose images containerd keeps. imgbuild itself assembles the engine's root from Debian's packages.

use std::process::Command;

use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Stage, debian, path};

use crate::registry_real::Real;
use crate::support::docker::Engine;
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::server::Server;
use crate::support::shared;

/// In a mount namespace of its own: the root becomes a mount, as container engines expect, and gets what a kernel offers.
const START: &str = r#"
set -e
mount --make-rprivate /
mount --rbind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/socket
mount --bind "$2" run/socket
exec chroot . /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin dockerd --host unix:///run/socket/docker.sock \
  --bridge none --iptables=false --ip6tables=false --pidfile /run/docker.pid
"#;

/// Builds the root and starts the engine from it.
fn engine(sandbox: &Sandbox) -> Engine {
    let packages = ["base-files", "docker.io", "containerd", "runc", "iptables", "dash", "coreutils", "libc-bin"];
    let root = Stage::scratch()
        .layer(debian(packages).ignore_script("docker.io", "the engine is started by hand, its group is not needed"))
        .image();
    sandbox.write("engine.json", Catalogue::new("engine").with("engine", root).plan().to_json());
    let imgbuild = |words: &[&str]| {
        let mut command = sandbox.command(["--catalogue", "engine.json", "--lock-file", "engine.lock"]);
        outcome(command.args(words)).success()
    };
    imgbuild(&["lock"]);
    imgbuild(&["build", "--output", "oci:engine"]);
    let bundle = sandbox.path().join("bundle");
    let layout = format!("{}:engine", sandbox.work().join("engine").display());
    tool("umoci", ["unpack".as_ref(), "--image".as_ref(), layout.as_ref(), bundle.as_os_str()]);
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(root.join("etc/docker")).unwrap();
    std::fs::write(root.join("etc/docker/daemon.json"), r#"{"features": {"containerd-snapshotter": true}}"#).unwrap();
    // A socket's path holds at most 107 bytes, so it does not lie below `target`.
    let sockets = std::env::temp_dir().join(format!("imgbuild-test-engine-{}", std::process::id()));
    std::fs::create_dir_all(&sockets).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", START, "sh"]).arg(&root).arg(&sockets);
    let socket = sockets.join("docker.sock");
    let probe = socket.clone();
    let server = Server::start(&command, &sandbox.path().join("engine.log"), || Engine::answers(&probe));
    Engine::of(socket, server)
}

#[test]
fn real_a_current_docker_from_a_root_that_imgbuild_made_takes_what_imgbuild_builds() {
    let sandbox = Sandbox::sharing(&shared::folder("cache"));
    let engine = engine(&sandbox);
    let store = engine.docker(["info", "--format", "{{.ServerVersion}} {{.DriverStatus}}"]);
    assert!(store.contains("io.containerd.snapshotter"), "{store}");
    let major: u32 = store.split('.').next().unwrap().parse().unwrap();
    assert!(major >= 26, "{store}");

    // A program that needs nothing else: the engine's own init, linked statically.
    let init = sandbox.path().join("bundle/rootfs/usr/bin/tini-static");
    sandbox.write("context/own/init", std::fs::read(init).unwrap());
    sandbox.write("context/own/text", "first\n");
    tool("chmod", ["755".as_ref(), sandbox.work().join("context/own/init").as_os_str()]);
    let image = Stage::scratch().layer(files("own", path!("/"))).image().entrypoint(["/init"]).cmd(["--version"]);
    sandbox.write("plan.json", Catalogue::new("test").with("current", image).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let imgbuild = |words: &[&str]| {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
        outcome(command.args(words).env("DOCKER_HOST", engine.host()))
    };
    let loaded = imgbuild(&["load", "--tag", "t1"]);
    assert!(
        loaded.stderr.contains("sent whole (1 layers), because the engine keeps images with containerd"),
        "{}",
        loaded.stderr
    );
    loaded.success();
    let said = engine.docker(["run", "--rm", "--network", "none", "current:t1"]);
    assert!(said.contains("tini"), "{said}");
    let again = imgbuild(&["load", "--tag", "t1"]);
    assert!(again.stderr.contains("it is there already"), "{}", again.stderr);
    again.success();
    let renamed = imgbuild(&["load", "--tag", "t2"]);
    assert!(renamed.stderr.contains("it is there already and got another name"), "{}", renamed.stderr);
    renamed.success();
    // This store keeps manifests, so the image comes back byte for byte.
    let built = imgbuild(&["build", "--output", "oci:dist", "--output", "docker-archive:current.tar"]).success();
    let digest = built.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(imgbuild(&["copy", "docker-daemon:current:t1", "oci:back:current"]).success().trim(), digest);
    assert_eq!(engine.docker(["image", "inspect", "--format", "{{.Id}}", "current:t1"]).trim(), digest);
    // The archive that old engines load.
    engine.docker(["image", "rm", "--force", "current:t1", "current:t2"]);
    let said = engine.docker(["load".as_ref(), "--input".as_ref(), sandbox.work().join("current.tar").as_os_str()]);
    assert!(said.contains("current"), "{said}");
    // And an index of two platforms from a registry.
    let real = Real::start("");
    let to = format!("{}/team", real.host());
    imgbuild(&["push", "--registry", &to, "--tag", "v1", "--platform", "amd64,arm64"]).success();
    engine.docker(["pull", "--quiet", &format!("{to}/current:v1")]);
    engine.docker(["run", "--rm", "--network", "none", &format!("{to}/current:v1")]);
}
