//! Commands in build stages.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use layers::{Catalogue, ImagePath, Network, Run, Stage, command, debian, files, inline, link, path};

use crate::support::layout::{Layout, sha256};
use crate::support::run::{Outcome, Sandbox, outcome, tool};
use crate::support::shared;
use crate::support::tiny::{Packaged, now};

/// A world for commands: the machine's static busybox, and `/bin/sh`.
pub(crate) fn world(sandbox: &Sandbox) -> Stage {
    let busybox = std::fs::read("/bin/busybox").unwrap_or_else(|error| {
        panic!("/bin/busybox cannot be read ({error}): install Debian's `busybox-static`");
    });
    sandbox.write("busybox", busybox);
    let stage = Stage::scratch().layer(files("busybox", path!("/bin/busybox")).mode(0o755));
    [
        "sh", "cat", "cp", "ln", "ls", "mkdir", "rm", "sleep", "stat", "env", "id", "touch", "chmod", "grep", "wget",
        "sed", "sort",
    ]
    .into_iter()
    .fold(stage, |stage, name| stage.layer(link(ImagePath::new(format!("/bin/{name}")).unwrap(), "busybox")))
}

pub(crate) fn script(text: &str) -> Run {
    command(["sh", "-ec", text])
}

/// A sandbox with one image that takes `/out` from a stage; the stage is made by `of`.
pub(crate) fn taking(of: impl FnOnce(&Sandbox) -> Stage) -> Sandbox {
    let sandbox = Sandbox::new();
    let stage = of(&sandbox);
    write(&sandbox, &stage);
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    sandbox
}

pub(crate) fn write(sandbox: &Sandbox, stage: &Stage) {
    let image = Stage::scratch().layer(stage.take(path!("/out"))).image();
    sandbox.write("plan.json", Catalogue::new("commands").with("app", image).plan().to_json());
}

pub(crate) fn build(sandbox: &Sandbox, more: &[&str]) -> Outcome {
    sandbox.imgbuild([&["--catalogue", "plan.json", "build"], more].concat())
}

/// The members of the image below `/out`: path, mode in octal, link; all are owned by root and of one time.
pub(crate) fn made(sandbox: &Sandbox) -> Vec<String> {
    let image = &Layout::open(&sandbox.work().join("dist")).image("app")[0];
    let members = image.layers.iter().flat_map(|layer| layer.members());
    let mut told: Vec<String> = members
        .map(|member| {
            assert_eq!((member.owner, member.mtime), ((0, 0), 1_577_836_800), "{}", member.path);
            let link = member.link.map(|link| format!(" -> {link}")).unwrap_or_default();
            format!("{} {:o}{link}", member.path, member.mode)
        })
        .collect();
    told.sort();
    told
}

/// What a file of the image holds.
pub(crate) fn content(sandbox: &Sandbox, path: &str) -> String {
    let image = &Layout::open(&sandbox.work().join("dist")).image("app")[0];
    String::from_utf8(image.content(path)).unwrap()
}

#[test]
fn what_the_folder_of_the_cache_hands_on_to_new_files_is_in_no_image() {
    let of = |sandbox: &Sandbox| {
        let text = "mkdir -p /out/a/b /c/d; touch /out/a/b/file /c/d/file; cp -a /c/d /out/d";
        world(sandbox).run(script(text).cache(path!("/c")))
    };
    let (plain, handing) = (taking(of), Sandbox::new());
    build(&plain, &[]).success();
    // Its group for all that is made in it, and access for everybody (acl(5); the form is that of the kernel's posix_acl_xattr.h).
    fs::create_dir_all(handing.cache()).unwrap();
    fs::set_permissions(handing.cache(), std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
    let entry = |tag: u16| [&tag.to_le_bytes()[..], &7_u16.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    let acl = [&2_u32.to_le_bytes()[..], &entry(0x01), &entry(0x04), &entry(0x20)].concat();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(handing.cache(), "system.posix_acl_default", &acl, flags).expect("it takes access lists");
    write(&handing, &of(&handing));
    handing.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    build(&handing, &[]).success();
    assert_eq!(made(&handing), made(&plain));
    let expected = ["/out", "/out/a", "/out/a/b", "/out/a/b/file", "/out/d", "/out/d/file"];
    assert_eq!(made(&plain).len(), expected.len(), "{:?}", made(&plain));
    assert!(made(&plain).iter().all(|told| told.ends_with(" 755") || told.ends_with(" 644")));
}

#[test]
fn what_a_command_makes_is_taken_and_normalised() {
    let sandbox = taking(|sandbox| {
        world(sandbox).run(script(
            "mkdir -p /out/deep; echo hello > /out/deep/a; chmod 600 /out/deep/a; ln /out/deep/a /out/deep/b
             ln -s deep/a /out/link; touch -t 200101010000 /out/old; echo scratch > /tmp/left; chmod 700 /out/deep",
        ))
    });
    build(&sandbox, &[]).success();
    let expected = [
        "out/ 755",
        "out/deep/ 700",
        "out/deep/a 600",
        "out/deep/b 600 -> out/deep/a",
        "out/link 777 -> deep/a",
        "out/old 644",
    ];
    assert_eq!(made(&sandbox), expected);
}

#[test]
fn a_command_sees_its_stage_its_inputs_and_nothing_of_the_host() {
    let sandbox = taking(|sandbox| {
        sandbox.write("src/one", "1\n");
        let other = Stage::scratch().layer(inline("of another stage\n", path!("/x/y")).mode(0o640));
        world(sandbox).layer(inline("below\n", path!("/etc/below"))).run(
            script(
                "mkdir /out; cat /etc/below /src/one /taken/y > /out/read; env | sort > /out/env
                 touch /src/new || true; ls -a / > /out/root",
            )
            .env("OWN", "a b")
            .workdir(path!("/made/for/it"))
            .input(files("src", path!("/src")))
            .input(other.take(path!("/x")).to(path!("/taken"))),
        )
    });
    let mut command = sandbox.command(["--catalogue", "plan.json", "build"]);
    outcome(command.env("CANARY_OF_THE_HOST", "1")).success();
    assert_eq!(content(&sandbox, "out/read"), "below\n1\nof another stage\n");
    let environment = content(&sandbox, "out/env");
    let expected = "HOME=/tmp\nLANG=C.UTF-8\nOWN=a b\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/made/for/it\nSOURCE_DATE_EPOCH=1577836800\nTZ=UTC\n";
    let without_shell: String =
        environment.lines().filter(|line| !line.starts_with("SHLVL=")).map(|line| format!("{line}\n")).collect();
    assert_eq!(without_shell, expected);
    let root: Vec<String> = content(&sandbox, "out/root").split_whitespace().map(str::to_owned).collect();
    let known = [".", "..", "bin", "dev", "etc", "made", "out", "proc", "run", "src", "sys", "taken", "tmp"];
    assert!(!sandbox.work().join("src/new").exists());
    assert!(root.iter().all(|name| known.contains(&name.as_str())), "{root:?}");
}

#[test]
fn what_a_command_removes_and_replaces_is_gone() {
    let sandbox = taking(|sandbox| {
        world(sandbox)
            .layer(inline("1\n", path!("/out/gone")))
            .layer(inline("2\n", path!("/out/folder/in")))
            .layer(inline("3\n", path!("/out/kept")))
            .layer(inline("4\n", path!("/out/tree/of/things")))
            .run(script("rm /out/gone; rm -r /out/tree; rm -r /out/folder; echo file > /out/folder"))
            .run(script("test ! -e /out/gone; test -f /out/folder; mkdir /out/tree; echo new > /out/tree/new"))
    });
    build(&sandbox, &[]).success();
    assert_eq!(made(&sandbox), ["out/ 755", "out/folder 644", "out/kept 644", "out/tree/ 755", "out/tree/new 644"]);
}

#[test]
fn a_command_runs_again_only_when_what_it_reads_has_changed_and_an_equal_outcome_ends_the_work() {
    let sandbox = taking(|sandbox| {
        sandbox.write("src/lines", "b\na\n");
        let sorted = world(sandbox)
            .run(script("mkdir /sorted; sort /src/lines > /sorted/lines").input(files("src", path!("/src"))));
        world(sandbox).run(script("mkdir /out; cp /sorted/lines /out/").input(sorted.take(path!("/sorted"))))
    });
    let runs = |outcome: Outcome| {
        let text = outcome.stderr.clone();
        outcome.success();
        text.lines().filter(|line| line.starts_with("ran ")).count()
    };
    assert_eq!(runs(build(&sandbox, &[])), 2);
    assert_eq!(runs(build(&sandbox, &[])), 0);
    // Another order, the same outcome: what stands on it is not run.
    sandbox.write("src/lines", "a\nb\n");
    assert_eq!(runs(build(&sandbox, &[])), 1);
    sandbox.write("src/lines", "c\n");
    assert_eq!(runs(build(&sandbox, &[])), 2);
    assert_eq!(content(&sandbox, "out/lines"), "c\n");
    // The stage of both commands was written once.
    let kept = || -> Vec<String> {
        let all = std::fs::read_dir(sandbox.cache().join("commands-v1")).unwrap();
        let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("root-")).collect()
    };
    assert_eq!(kept().len(), 1);
    sandbox.imgbuild(["cache", "clear"]).success();
    assert_eq!(kept(), [""; 0]);
}

#[test]
fn nobody_else_looks_into_what_commands_keep() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = taking(|sandbox| world(sandbox).run(script("mkdir /out; touch /c/kept").cache(path!("/c"))));
    build(&sandbox, &[]).success();
    let folder = sandbox.cache().join("commands-v1");
    assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o7777, 0o700);
    // Nor is it given away with the cache.
    let file = sandbox.path().join("cache.tar");
    sandbox.imgbuild(["cache", "export", file.to_str().unwrap()]).success();
    let listed = tool("tar", ["-tf".as_ref(), file.as_os_str()]);
    let is_named = |line: &str| line.rsplit_once('/').is_some_and(|(_, name)| layers::Digest::from_hex(name).is_ok());
    assert!(listed.lines().count() > 3 && listed.lines().all(is_named), "{listed}");
}

#[test]
fn another_timeout_runs_nothing_again() {
    let text = "mkdir /out; echo made >/out/x";
    let sandbox = taking(|sandbox| world(sandbox).run(script(text).timeout(Duration::from_secs(50))));
    build(&sandbox, &[]).success();
    write(&sandbox, &world(&sandbox).run(script(text).timeout(Duration::from_secs(60))));
    let again = build(&sandbox, &[]);
    assert!(!again.stderr.contains("runs run"), "{}", again.stderr);
    again.success();
}

#[test]
fn a_stage_is_not_opened_through_its_links_into_the_machine() {
    let sandbox = Sandbox::new();
    let host = sandbox.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("precious"), "kept").unwrap();
    sandbox.write("src/n", "1");
    let stage = world(&sandbox).layer(link(path!("/outside"), host.to_str().unwrap()));
    let run = script("mkdir /out").input(files("src", path!("/outside/precious")));
    write(&sandbox, &stage.clone().run(run));
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    let line = |sandbox: &Sandbox| {
        let plan: serde_json::Value =
            serde_json::from_slice(&fs::read(sandbox.work().join("plan.json")).unwrap()).unwrap();
        let stages = plan["stages"].as_array().unwrap();
        let step = stages.iter().find(|stage| stage["step"] == "run").unwrap();
        format!("{}:{}", step["at"]["file"].as_str().unwrap(), step["at"]["line"])
    };
    let place = line(&sandbox);
    let shell = ["--catalogue", "plan.json", "shell", &place, "--", "/bin/true"];
    sandbox.imgbuild(shell).failure(1, &["/outside/precious", "symbolic link"]);
    build(&sandbox, &[]).failure(1, &["/outside/precious", "symbolic link"]);
    assert_eq!(fs::read_to_string(host.join("precious")).unwrap(), "kept");
    // Nor is its folder made there.
    write(&sandbox, &stage.run(script("mkdir /out").workdir(path!("/outside/made"))));
    let place = line(&sandbox);
    sandbox.imgbuild(["--catalogue", "plan.json", "shell", &place, "--", "/bin/true"]).failure(1, &["/outside/made"]);
    assert!(!host.join("made").exists());
}

#[test]
fn a_cache_may_be_where_the_sandbox_puts_files_of_its_own() {
    let sandbox = taking(|sandbox| world(sandbox).run(script("mkdir /out; touch /etc/x").cache(path!("/etc"))));
    build(&sandbox, &[]).success();
}

#[test]
fn a_cache_keeps_what_commands_write_and_is_no_part_of_the_outcome() {
    let sandbox = taking(|sandbox| {
        sandbox.write("src/n", "1");
        let text = "mkdir -p /out; echo x >> /out/cache/runs; cat /out/cache/runs > /out/seen";
        world(sandbox).run(script(text).cache(path!("/out/cache")).input(files("src", path!("/src"))))
    });
    build(&sandbox, &[]).success();
    sandbox.write("src/n", "2");
    build(&sandbox, &[]).success();
    assert_eq!(content(&sandbox, "out/seen"), "x\nx\n");
    assert!(made(&sandbox).iter().all(|member| !member.contains("runs")));
}

#[test]
fn commands_that_differ_from_run_to_run_are_found_and_shown_as_a_tree() {
    let sandbox = taking(|sandbox| {
        let text = "mkdir -p /out/a; echo run >> /kept/runs; cp /kept/runs /out/a/id; echo same > /out/same";
        world(sandbox).run(script(text).cache(path!("/kept")))
    });
    build(&sandbox, &[]).success();
    let said =
        ["run again, it made something else", "\n  out/\n    a/\n      id  644, 8 bytes, ", " | 644, 12 bytes, "];
    let failed = build(&sandbox, &["--check-deterministic"]).failure(1, &said);
    assert!(!failed.stderr.contains("same"), "{}", failed.stderr);
    write(&sandbox, &world(&sandbox).run(script("mkdir /out; echo same > /out/same")));
    build(&sandbox, &["--check-deterministic"]).success();
}

#[test]
fn metadata_tells_of_commands() {
    let sandbox = taking(|sandbox| {
        let open = world(sandbox).run(script("mkdir /x; echo 1 > /x/a").network(Network::Open));
        world(sandbox).run(script("cp -r /x /out").input(open.take(path!("/x"))))
    });
    for _ in 0..2 {
        build(&sandbox, &["--metadata-file", "built.json"]).success();
        let text = std::fs::read(sandbox.work().join("built.json")).unwrap();
        let told: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let commands = told["images"][0]["platforms"][0]["commands"].as_array().unwrap();
        let found: Vec<_> =
            commands.iter().map(|it| (it["label"].as_str().unwrap(), it["reproducible"].as_bool().unwrap())).collect();
        assert_eq!(found, [("run sh -ec 'cp -r /x /out'", true), ("run sh -ec 'mkdir /x; echo 1 > /x/a'", false)]);
        assert!(
            commands
                .iter()
                .all(|it| it["sandbox"].is_string() && it["outcome"].as_str().unwrap().starts_with("sha256:"))
        );
    }
}

#[test]
fn a_command_for_another_platform_is_refused_unless_what_it_makes_is_portable() {
    let foreign = if std::env::consts::ARCH == "x86_64" { "arm64" } else { "amd64" };
    let sandbox = taking(|sandbox| world(sandbox).run(script("mkdir /out; echo 1 > /out/a")));
    let said = ["it runs programs for linux/", ".portable()", "tests/it/commands.rs:"];
    build(&sandbox, &["--platform", foreign]).failure(1, &said);
    let stage = world(&sandbox).run(script("mkdir /out; echo 1 > /out/a"));
    let image = Stage::scratch().layer(stage.take(path!("/out")).portable()).image();
    sandbox.write("plan.json", Catalogue::new("commands").with("app", image).plan().to_json());
    build(&sandbox, &["--platform", "amd64,arm64"]).success();
    let images = Layout::open(&sandbox.work().join("dist")).image("app");
    let layers = |at: usize| images[at].layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>();
    assert_eq!(layers(0), layers(1));
}

#[test]
fn a_stage_is_opened_before_a_command_with_its_inputs_and_nothing_is_left() {
    let sandbox = taking(|sandbox| {
        sandbox.write("src/one", "1\n");
        world(sandbox)
            .layer(inline("below\n", path!("/etc/below")))
            .run(script("exit 9").env("OWN", "yes").workdir(path!("/made")).input(files("src", path!("/src"))))
    });
    let failed = build(&sandbox, &[]).failure(1, &["exit status 9"]);
    let place = failed.stderr.split("--> ").nth(1).unwrap().lines().next().unwrap();
    let words = ["--catalogue", "plan.json", "shell", place, "--"];
    let look = "cat /etc/below /src/one; echo $OWN; env | grep -c ^PWD=/made; echo new > /etc/below; exit 3";
    let looked = sandbox.imgbuild([&words[..], &["sh", "-c", look]].concat());
    assert_eq!(looked.stdout, "below\n1\nyes\n1\n");
    looked.failure(1, &["the command that comes next: sh -ec exit 9", "exit status: 3"]);
    let left: Vec<_> = std::fs::read_dir(sandbox.cache().join("tmp-v1")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    sandbox.imgbuild(["--catalogue", "plan.json", "shell", place, "--keep", "opened"]).success();
    assert_eq!(std::fs::read_to_string(sandbox.work().join("opened/etc/below")).unwrap(), "below\n");
    let again = ["--catalogue", "plan.json", "shell", place, "--keep", "opened"];
    sandbox.imgbuild(again).failure(2, &["`opened` is there already"]);
    assert_eq!(std::fs::read_to_string(sandbox.work().join("opened/src/one")).unwrap(), "1\n");
    let said = ["no stage was written at `commands.rs:1`", "imgbuild plan"];
    sandbox.imgbuild(["--catalogue", "plan.json", "shell", "commands.rs:1"]).failure(2, &said);
}

#[test]
fn dpkg_configures_only_what_is_there() {
    let packaged = Packaged::new(now());
    let image =
        |package: &str| Stage::scratch().layer(debian(["libapp"]).configure_on(&Stage::scratch()).configure(package));
    let run = |package: &str, word: &str| {
        let plan = Catalogue::new("other").with("x", image(package).image()).plan().to_json();
        let plan = packaged.sandbox.write("other.json", plan);
        let mut command = packaged.sandbox.command(["--catalogue".as_ref(), plan.as_os_str(), word.as_ref()]);
        packaged.configure(&mut command);
        outcome(&mut command)
    };
    run("absent", "lock")
        .failure(1, &["has dpkg configure `absent`, which is not among its packages", "imgbuild tree"]);
    run("libapp", "lock").success();
    let planned = run("libapp", "plan").success();
    assert!(planned.contains("dpkg --configure libapp"), "{planned}");
    run("libapp", "build").failure(1, &["layer `dpkg --configure libapp` failed", "cannot start `fakeroot`"]);
}

/// A process that is ended when the test is over.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn real_an_ssh_agent_is_asked_and_its_keys_stay_where_they_are() {
    let sandbox = Sandbox::sharing(&shared::folder("cache"));
    let key = sandbox.path().join("key");
    let words = ["-q", "-t", "ed25519", "-N", "", "-C", "comment-of-the-key", "-f"];
    outcome(Command::new("ssh-keygen").args(words).arg(&key)).success();
    let socket = sandbox.path().join("agent");
    let mut agent = Command::new("ssh-agent");
    let _agent = Ended(agent.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap());
    let add = || Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).output().unwrap();
    // It answers as soon as it listens.
    while !add().status.success() {
        std::thread::yield_now();
    }
    let client = Stage::scratch().layer(debian(["base-files", "coreutils", "dash", "grep", "openssh-client"]).slim());
    let public = fs::read_to_string(sandbox.path().join("key.pub")).unwrap();
    let asking = || {
        // With the key, so that the cache, which is shared, does not know it from another run. A client that does not know
        // who it is does not even try to connect.
        let script = "mkdir /out; ssh-add -l >/out/keys; ssh-add -L >>/out/keys
                      ! ssh -p 9 127.0.0.1 2>/tmp/said; grep refused /tmp/said";
        command(["sh", "-ec", script]).env("KEY", public.trim())
    };
    write(&sandbox, &client.clone().run(asking()));
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    let socket = socket.to_str().unwrap();
    // Whoever does not say so has none.
    build(&sandbox, &["--ssh", socket]).failure(1, &["Could not open a connection to your authentication agent"]);
    write(&sandbox, &client.run(asking().ssh()));
    build(&sandbox, &[]).failure(2, &["it needs an SSH agent", "--ssh default"]);
    build(&sandbox, &["--ssh", "plan.json"]).failure(2, &["is not the socket of an agent"]);
    let mut without = sandbox.command(["--catalogue", "plan.json", "build", "--ssh", "default"]);
    outcome(without.env_remove("SSH_AUTH_SOCK")).failure(2, &["SSH_AUTH_SOCK is not set"]);
    let mut command = sandbox.command(["--catalogue", "plan.json", "build", "--ssh", "default"]);
    outcome(command.env("SSH_AUTH_SOCK", socket)).success();
    let image = &Layout::open(&sandbox.work().join("dist")).image("app")[0];
    let keys = image.layers.iter().flat_map(|layer| layer.members()).find(|member| member.path == "out/keys").unwrap();
    let fingerprint = tool("ssh-keygen", ["-l".as_ref(), "-f".as_ref(), key.as_os_str()]);
    assert_eq!(keys.sha256, sha256(format!("{fingerprint}{public}").as_bytes()));
    // The outcome is known, whichever agent there is.
    build(&sandbox, &[]).success();
}
