//! What the other tests stand on works: a judge that is not there would judge nothing.

use std::fs;
use std::process::Command;

use crate::support::debs::{Deb, Repository};
use crate::support::docker::engine;
use crate::support::run::{outcome, tool};
use crate::support::server::{Files, get};
use crate::support::shared::in_trixie;

#[test]
fn real_docker_runs_an_image_and_reports_its_exit_status() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/sh")).unwrap();
    let archive = folder.path().join("root.tar");
    tool("tar", ["-cf", archive.to_str().unwrap(), "-C", root.to_str().unwrap(), "."]);
    engine().docker(["import", archive.to_str().unwrap(), "support:sh"]);
    let ran = engine().run("support:sh", &[], &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out\n", "err\n"));
    let container = engine().start_container("support:sh", &[], &["/bin/sh", "-c", "sleep 100"]);
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
}

#[test]
fn real_trixie_is_a_second_machine_with_its_own_python() {
    let said = outcome(&mut in_trixie(
        &[],
        ". /etc/os-release; echo $VERSION_CODENAME; python3 --version; apt-get --version | head -1",
    ));
    let said = said.success();
    assert!(said.starts_with("trixie\nPython 3.13") && said.contains("apt 3."), "{said}");
}

#[test]
fn real_arm64_programs_run_under_emulation() {
    let registered = fs::read_to_string("/proc/sys/fs/binfmt_misc/qemu-aarch64").unwrap();
    assert!(
        registered.starts_with("enabled") && registered.contains("flags:") && registered.contains('F'),
        "{registered}"
    );
}

#[test]
fn real_apt_accepts_a_repository_made_by_a_test() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::new(folder.path());
    Deb::new("tiny", "1:2.0-1").file("/usr/share/tiny/file", 0o644, "hello\n").build(&repository.pool());
    let now = tool("date", ["+%s"]).trim().parse().unwrap();
    repository.publish(&["amd64", "arm64"], now);
    let files = Files::serve(folder.path());
    assert!(get(&format!("{}/dists/trixie/InRelease", files.url())).unwrap().contains("Codename: trixie"));
    // apt of this machine, with folders of the test's own.
    let apt = tempfile::tempdir().unwrap();
    let (state, key) = (apt.path().display(), repository.keyring());
    let list = format!("deb [signed-by={}] {} trixie main\n", key.display(), files.url());
    fs::write(apt.path().join("sources.list"), list).unwrap();
    for dir in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.path().join(dir)).unwrap();
    }
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        for option in [
            format!("Dir::Etc::SourceList={state}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State={state}/state"),
            format!("Dir::Cache={state}/cache"),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::http::Proxy::127.0.0.1=DIRECT".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        outcome(command.args(arguments)).success()
    };
    apt_get(&["update"]);
    let simulated = apt_get(&["-s", "install", "tiny"]);
    assert!(simulated.contains("Inst tiny (1:2.0-1"), "{simulated}");
    assert!(files.asked().iter().any(|asked| asked.contains("InRelease")));
}
