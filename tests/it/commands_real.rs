//! A command, a wheel from an sdist and byte-code: the same digests on every level of the sandbox, for every user, with any number
//! of threads, on another machine.

use std::path::Path;
use std::process::Command;

use layers::{Catalogue, Modules, Stage, command, debian, path, pip_requirements, python};

use crate::sandbox::image;
use crate::support::docker;
use crate::support::elsewhere::{commands, elsewhere, line, words};
use crate::support::run::{Outcome, Sandbox, outcome};
use crate::support::shared::{self, in_trixie};

const JSMIN: &str = "jsmin==3.0.1 --hash=sha256:c0959a121ef94542e807a674142606f7e90214a2b3d1eb17300244bbb5cc2bfc\n";

/// What a command can see of where it runs, and each kind of file that it can leave. proot adds `PWD`.
const SCRIPT: &str = r#"
import os, subprocess, sys
os.makedirs("/out/deep", mode=0o750)
seen = [sorted(item for item in os.environ.items() if item[0] != "PWD"), os.getuid(), os.getgid(), os.umask(0o022),
    os.cpu_count(), os.getcwd(), sorted(os.listdir("/etc")), oct(os.stat("/usr/bin").st_mode), int(os.stat("/etc").st_mtime)]
# By calls newer than those that Python makes.
seen.append(subprocess.check_output(["stat", "-c", "%s %h %f", "/etc/debian_version", "/usr/bin/perl"]))
with open("/out/deep/seen", "w") as file:
    print(*seen, sep="\n", file=file)
os.link("/out/deep/seen", "/out/again")
os.symlink("deep/seen", "/out/link")
os.chmod("/out/again", 0o600)
os.remove("/etc/debian_version")
"#;

const FILES: [&str; 3] = ["pins.txt", "plan.json", "images.lock"];

/// A project whose lock is made and whose downloads lie in a shared cache.
fn project() -> Sandbox {
    let sandbox = Sandbox::sharing(&shared::folder("sdists"));
    sandbox.write("pins.txt", JSMIN);
    let base = Stage::scratch()
        .layer(debian(["base-files", "coreutils", "perl-base", "python3.13"]).slim().compile_bytecode(Modules::All));
    let site = base.run(command(["python3.13", "-c", SCRIPT]).workdir(path!("/made/for/it")));
    let wheels = python(pip_requirements("pins.txt")).build_from_source("jsmin").compile_bytecode(Modules::All);
    let image = base.layer(wheels).layer(site.take(path!("/out"))).image();
    sandbox.write("plan.json", Catalogue::new("alike").with("all", image).plan().to_json());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    // Brings what is locked.
    sandbox.imgbuild(["--catalogue", "plan.json", "build", "--platform", "amd64"]).success();
    sandbox
}

/// What was printed, of a build whose commands ran on this level, and only there.
#[track_caller]
fn digest(sandbox: &Sandbox, level: &str, built: Outcome) -> String {
    let printed = built.success();
    let levels: Vec<String> = commands(sandbox).iter().map(|it| it["sandbox"].as_str().unwrap().to_owned()).collect();
    assert_eq!(levels, [level, level], "the command and the sdist");
    printed
}

/// A build in Docker with its default filter of system calls.
fn in_docker(sandbox: &Sandbox, arguments: &[&str], jobs: &str) -> Outcome {
    let volume = format!("{0}:{0}", sandbox.path().display());
    let run = ["run", "--rm", "--network", "none", "--init", "--volume", &volume];
    let script = line(sandbox, Path::new("/bin/imgbuild"), jobs);
    let command = ["--env", "PATH=/bin", image(), "/bin/sh", "-ec", &script];
    docker::engine().try_docker([&run[..], arguments, &command].concat())
}

#[test]
fn real_digests_are_equal_on_every_level_for_every_user_on_two_machines_and_with_any_number_of_threads() {
    assert!(rustix::process::geteuid().is_root(), "only root can become another user; run the tests as root");
    let project = project();

    let (here, _) = elsewhere(&project, &FILES, "0");
    let expected = digest(&here, "namespaces", here.imgbuild(words("8")));
    assert!(expected.starts_with("all sha256:"), "{expected}");

    let (sandbox, program) = elsewhere(&project, &FILES, "10001");
    let mut command = Command::new("setpriv");
    sandbox.place(&mut command);
    command.args(["--reuid=10001", "--regid=10001", "--clear-groups", "sh", "-c", "umask 077; exec \"$@\"", "sh"]);
    command.arg(&program).args(words("1")).env("TZ", "Pacific/Kiritimati").env("LC_ALL", "tr_TR.UTF-8");
    assert_eq!(digest(&sandbox, "namespaces", outcome(&mut command)), expected, "another user");

    // Another machine, whose root is no root of a mount namespace: the kernel gives no user namespace there.
    let (trixie, program) = elsewhere(&project, &FILES, "0");
    let script = line(&trixie, &program, "2");
    let demand = |level: &str| outcome(&mut in_trixie(&[trixie.path()], &format!("{script} --sandbox {level}")));
    demand("namespaces").failure(1, &["no sandbox here is good enough", "chroot: works, but is less"]);
    assert_eq!(digest(&trixie, "chroot", demand("chroot")), expected, "another machine");
    // What is known from there is too little here, and made again.
    let mut command = trixie.command(words("2"));
    command.args(["--sandbox", "namespaces"]);
    assert_eq!(digest(&trixie, "namespaces", outcome(&mut command)), expected, "made again");

    let (sandbox, _) = elsewhere(&project, &FILES, "0");
    assert_eq!(digest(&sandbox, "chroot", in_docker(&sandbox, &[], "1")), expected, "Docker, as root");

    let (sandbox, _) = elsewhere(&project, &FILES, "10001");
    let user = ["--user", "10001:10001"];
    assert_eq!(digest(&sandbox, "proot", in_docker(&sandbox, &user, "8")), expected, "Docker, as a user");

    let (sandbox, _) = elsewhere(&project, &FILES, "10001");
    let pod = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp:exec"];
    let pod = [&pod[..], &user].concat();
    assert_eq!(digest(&sandbox, "proot", in_docker(&sandbox, &pod, "2")), expected, "as in a pod");
}
