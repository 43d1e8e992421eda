//! The same tests as another user, and in containers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::{add_program, helper, make_root};
use crate::support::docker;
use crate::support::run::{outcome, tool};

/// This binary's tests that run anywhere, as arguments.
const HERE: [&str; 2] = ["sandbox::here::", "--test-threads=2"];

#[test]
fn slow_another_user() {
    assert!(rustix::process::geteuid().is_root(), "only root can become another user; run the tests as root");
    let folder = tempfile::tempdir().unwrap();
    let readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), readable.clone()).unwrap();
    let (tests, program) = (folder.path().join("it"), folder.path().join("imgbuild"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(helper(), &program).unwrap();
    for file in [&tests, &program] {
        fs::set_permissions(file, readable.clone()).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups"]).arg(&tests).args(HERE);
    command.env("IMGBUILD_TEST_BINARY", &program).env("IMGBUILD_TEST_LEVELS", "namespaces proot").current_dir("/");
    command.env("HOME", "/nonexistent").env_remove("TMPDIR");
    let said = outcome(&mut command).success();
    assert!(said.contains("test sandbox::here::slow_bombs_are_bounded ... ok"), "{said}");
}

/// An image made of this machine's own files, with these tests, `/bin/imgbuild` and proot; gives its name in the tests' engine.
pub fn image() -> &'static str {
    static IMAGE: OnceLock<()> = OnceLock::new();
    let name = "imgbuild-sandbox-tests";
    IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("image");
        make_root(&root);
        // What the tests start, beside what a step needs.
        for program in ["/bin/cp", "/bin/sleep", "/bin/grep", "/usr/bin/ldd", "/bin/bash", "/usr/bin/proot"] {
            let name = format!("bin/{}", Path::new(program).file_name().unwrap().to_str().unwrap());
            let _ = fs::remove_file(root.join(&name));
            add_program(&root, Path::new(program), &name);
        }
        add_program(&root, &std::env::current_exe().unwrap(), "bin/it");
        add_program(&root, helper(), "bin/imgbuild");
        make_root(&root.join("fixture"));
        // Whoever the container runs as copies it.
        fs::set_permissions(root.join("fixture/opt/old/deep/b"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        let tar = folder.path().join("image.tar");
        tool("tar", [OsStr::new("-C"), root.as_os_str(), OsStr::new("-cf"), tar.as_os_str(), OsStr::new(".")]);
        docker::engine().docker([OsStr::new("import"), tar.as_os_str(), OsStr::new(name)]);
    });
    name
}

/// The tests in a container, without a network.
fn in_container(levels: &str, arguments: &[&str]) {
    let variables = [
        "IMGBUILD_TEST_BINARY=/bin/imgbuild".to_owned(),
        "IMGBUILD_TEST_ROOT=/fixture".to_owned(),
        format!("IMGBUILD_TEST_LEVELS={levels}"),
        "PATH=/bin".to_owned(),
    ];
    let mut command = vec!["run", "--rm", "--network", "none", "--init"];
    for variable in &variables {
        command.extend(["--env", variable]);
    }
    command.extend(arguments);
    command.extend([image(), "/bin/it"]);
    command.extend(HERE);
    let said = docker::engine().docker(command);
    assert!(said.contains("test sandbox::here::slow_bombs_are_bounded ... ok"), "{said}");
}

#[test]
fn real_docker_as_root() {
    in_container("chroot proot", &[]);
}

#[test]
fn real_docker_as_a_user() {
    in_container("proot", &["--user", "10001:10001"]);
}

#[test]
fn real_docker_without_its_filter() {
    let masked = ["--security-opt", "seccomp=unconfined", "--env", "IMGBUILD_TEST_MASKED=1"];
    in_container("namespaces chroot proot", &masked);
    let open =
        ["--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined", "--user", "10001:10001"];
    in_container("namespaces proot", &open);
}

#[test]
fn real_docker_like_a_pod() {
    let arguments = [
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--read-only",
        "--tmpfs",
        "/tmp:exec",
        "--user",
        "10001:10001",
    ];
    in_container("proot", &arguments);
}
