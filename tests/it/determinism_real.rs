//! One lock, one digest: on another machine, as another user, whatever the surroundings.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::support::obelisk::{copy_project, obelisk};
use crate::support::run::{Sandbox, binary, outcome, tool};
use crate::support::shared::in_trixie;

const BUILD: [&str; 5] = ["build", "--offline", "--locked", "--platform", "linux/amd64"];

/// A sandbox with a copy of the project in a folder of another name, and only downloads in its cache.
fn elsewhere() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    let project = sandbox.path().join("somewhere else, naïve");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("imgbuild.toml"), "").unwrap();
    copy_project(&project);
    // The lock of the built images: a mirror may have made it newer than the repository's.
    fs::copy(obelisk().file("images/images.lock"), project.join("images/images.lock")).unwrap();
    obelisk().seed(sandbox.cache());
    (sandbox, project)
}

/// What the shared build gave.
fn expected() -> String {
    let names = obelisk().layout().names();
    names.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect()
}

#[test]
fn real_another_user_mask_time_zone_language_and_one_thread_give_the_same_digests() {
    let (sandbox, project) = elsewhere();
    for folder in [sandbox.path().to_path_buf(), sandbox.home(), project.clone()] {
        tool("chown", ["10001:10001".as_ref(), folder.as_os_str()]);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Folders only: the archives are links to files that others use.
    let blobs = sandbox.cache().to_str().unwrap().to_owned();
    tool("find", [blobs.as_str(), "-type", "d", "-exec", "chown", "10001:10001", "{}", "+"]);
    // The program lies where only its owner may look.
    let program = sandbox.path().join("imgbuild");
    fs::copy(binary(), &program).unwrap();
    let mut command = Command::new("setpriv");
    sandbox.place(&mut command);
    command.args([
        "--reuid",
        "10001",
        "--regid",
        "10001",
        "--clear-groups",
        "sh",
        "-c",
        "umask 077; exec \"$@\"",
        "sh",
    ]);
    command.arg(&program).args(BUILD).args(["-j", "1"]).current_dir(&project);
    command.env("TZ", "Pacific/Kiritimati").env("LANG", "tr_TR.UTF-8").env("LC_ALL", "tr_TR.UTF-8");
    assert_eq!(outcome(&mut command).success(), expected());
}

#[test]
fn real_a_trixie_root_as_second_machine_gives_the_same_digests() {
    let (sandbox, project) = elsewhere();
    let program = sandbox.path().join("imgbuild");
    fs::copy(binary(), &program).unwrap();
    let script = format!(
        "cd '{}'; export HOME=/tmp IMGBUILD_CACHE_DIR='{}' TZ=America/Lima; hostname; exec '{}' {} -j 8",
        project.display(),
        sandbox.cache().display(),
        program.display(),
        BUILD.join(" ")
    );
    let printed = outcome(&mut in_trixie(&[sandbox.path()], &script)).success();
    let lines: String = printed.lines().skip(1).map(|line| format!("{line}\n")).collect();
    assert_eq!(lines, expected());
}

#[test]
fn real_a_warm_cache_and_two_threads_give_the_same_digests() {
    let built = obelisk().imgbuild(&[&BUILD[..], &["-j", "2", "--output", "oci:warm"]].concat());
    assert_eq!(built.success(), expected());
}
