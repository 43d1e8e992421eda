//! What is left of commands that fail or are ended, and of secrets: nothing. And where stages as folders lie.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use layers::{Catalogue, Stage, path};
use rustix::fs::{IFlags, fstatfs, ioctl_getflags};
use rustix::process::{Pid, Signal, kill_process};

use crate::commands::{build, content, script, taking, world, write};
use crate::support::processes::{alive, child_of, wait_until};
use crate::support::run::{Outcome, Sandbox, binary, outcome, tool};

#[test]
fn a_command_that_fails_says_where_and_what_and_leaves_nothing() {
    let sandbox = taking(|sandbox| {
        let text = "mkdir /out; i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); done; echo bad >&2; exit 7";
        world(sandbox).run(script(text))
    });
    for _ in 0..2 {
        let failed = build(&sandbox, &[]).failure(
            1,
            &["exit status 7", "tests/it/commands_left.rs:", "  | line 39", "  | bad", "the whole log is in `"],
        );
        assert!(failed.stderr.contains("line 0\n"), "streamed: {}", failed.stderr);
        let (_, error) = failed.stderr.split_once("error:").unwrap();
        assert!(!error.contains("line 0\n") && !error.contains("layer `run"), "{error}");
        let log = error.split("the whole log is in `").nth(1).unwrap().split('`').next().unwrap();
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.starts_with("line 0\nline 1\n") && log.ends_with("bad\n"), "{log}");
    }
    assert!(!sandbox.work().join("dist").exists());
    let left: Vec<_> = std::fs::read_dir(sandbox.cache().join("tmp-v1")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn stages_of_commands_lie_apart_where_the_file_system_can() {
    let (sandbox, _) = warm();
    let folder = fs::File::open(sandbox.cache().join("tmp-v1")).unwrap();
    // EXT4_SUPER_MAGIC, statfs(2).
    let is_ext = fstatfs(&folder).unwrap().f_type == 0xef53;
    assert!(!is_ext || ioctl_getflags(&folder).unwrap().contains(IFlags::TOPDIR));
}

/// What a cache remembers, and what lies on its way there.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    ledger: Vec<PathBuf>,
    blobs: Vec<PathBuf>,
    temporary: Vec<PathBuf>,
}

fn kept(cache: &Path) -> Kept {
    let below = |bucket: &str| {
        let listed = tool("find", [cache.join(bucket).as_os_str(), "-mindepth".as_ref(), "1".as_ref()]);
        let mut found: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
        found.sort();
        found
    };
    Kept { ledger: below("ledger-v1"), blobs: below("blobs-v1"), temporary: below("tmp-v1") }
}

/// A sandbox whose stage is known, so that another command in it adds nothing but itself; and what its cache holds.
fn warm() -> (Sandbox, Kept) {
    let sandbox = taking(|sandbox| world(sandbox).run(script("mkdir /out; echo good > /out/a")));
    build(&sandbox, &[]).success();
    let before = kept(sandbox.cache());
    assert_eq!(before.temporary, [""; 0].map(PathBuf::from));
    assert!(!before.ledger.is_empty());
    (sandbox, before)
}

/// Processes in the foreground, in the background and in a session of their own, which all have `marker` among their words.
fn busy(marker: &str) -> String {
    format!("mkdir /out; echo x > /out/x; setsid sleep {marker} & sleep {marker} & ")
}

fn marker(number: u32) -> String {
    format!("{}{number}", 500_000 + std::process::id())
}

#[track_caller]
fn nothing_is_left(sandbox: &Sandbox, before: &Kept, marker: &str) {
    wait_until("the command's processes are gone", || !alive(marker));
    assert_eq!(kept(sandbox.cache()), *before);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(sandbox.cache().to_str().unwrap()), "{mounts}");
}

#[test]
fn a_command_that_fails_or_is_ended_leaves_no_record_no_file_no_mount_and_no_process() {
    let (sandbox, before) = warm();
    let cases = [
        ("exit 3", "ended with exit status 3"),
        ("kill -9 $$", "was ended by signal 9"),
        ("sleep 600", "took longer than 1 s and was ended"),
    ];
    for (number, (end, said)) in (0..).zip(cases) {
        let marker = marker(number);
        let run = script(&format!("{}{end}", busy(&marker))).timeout(Duration::from_secs(1));
        write(&sandbox, &world(&sandbox).run(run));
        build(&sandbox, &[]).failure(1, &[said, "tests/it/commands_left.rs:"]);
        nothing_is_left(&sandbox, &before, &marker);
    }
}

#[test]
fn whoever_is_killed_while_a_command_runs_nothing_is_left() {
    let (sandbox, before) = warm();
    // imgbuild twice, then the guard, then the first process of the namespaces.
    for (number, generation) in (10..).zip([0, 0, 1, 2]) {
        let marker = marker(number);
        write(&sandbox, &world(&sandbox).run(script(&format!("{}sleep {marker}", busy(&marker)))));
        let mut command = sandbox.command(["--catalogue", "plan.json", "build", "--sandbox", "namespaces"]);
        let building = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the command runs", || alive(&marker));
        let victim = (0..generation).fold(building.id(), |pid, _| child_of(pid));
        kill_process(Pid::from_raw(victim.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let ended = Outcome::of(building.wait_with_output().unwrap());
        if generation == 0 {
            assert_eq!(ended.status, 128 + 9);
            // Its files are the next builder's to remove.
            wait_until("the command's processes are gone", || !alive(&marker));
            assert!(!kept(sandbox.cache()).temporary.is_empty());
            write(&sandbox, &world(&sandbox).run(script("exit 1")));
            build(&sandbox, &[]).failure(1, &["exit status 1"]);
        } else {
            ended.failure(1, &["cannot set up the sandbox", "tests/it/commands_left.rs:"]);
        }
        nothing_is_left(&sandbox, &before, &marker);
    }
    write(&sandbox, &world(&sandbox).run(script("mkdir /out; echo better > /out/a")));
    build(&sandbox, &[]).success();
    assert_eq!(content(&sandbox, "out/a"), "better\n");
}

#[test]
fn files_of_a_command_that_runs_are_not_taken_for_those_of_a_killed_builder() {
    let (sandbox, _) = warm();
    let marker = marker(20);
    let text = format!("mkdir /out; echo slow > /out/a; while test ! -e /kept/go; do sleep 0.0{marker}; done");
    write(&sandbox, &world(&sandbox).run(script(&text).cache(path!("/kept"))));
    let mut command = sandbox.command(["--catalogue", "plan.json", "build", "--output", "oci:slow"]);
    let building = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the command runs", || alive(&format!("0.0{marker}")));
    // Another builder of the same cache, which lets the first one go when it is done.
    let run = script("mkdir /out; echo quick > /out/a; touch /kept/go").cache(path!("/kept"));
    write(&sandbox, &world(&sandbox).run(run));
    build(&sandbox, &[]).success();
    Outcome::of(building.wait_with_output().unwrap()).success();
    assert_eq!(kept(sandbox.cache()).temporary, [""; 0].map(PathBuf::from));
}

#[test]
fn a_command_that_fills_the_disk_of_the_cache_is_ended_and_leaves_nothing() {
    assert!(rustix::process::geteuid().is_root(), "only root can mount a small disk; run the tests as root");
    let sandbox = taking(|sandbox| world(sandbox).run(script("mkdir /out; echo good > /out/a")));
    let marker = marker(30);
    let fill = "mkdir /out; i=0; while cat /bin/busybox > /out/$i; do i=$((i+1)); done; ";
    let image =
        Stage::scratch().layer(world(&sandbox).run(script(&format!("{fill} sleep {marker}"))).take(path!("/out")));
    sandbox.write("fill.json", Catalogue::new("commands").with("app", image.image()).plan().to_json());
    let disk = sandbox.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let script = "disk=$1; imgbuild=$2; mount -t tmpfs -o size=300m,mode=0700 disk $disk
        list() { find $disk/ledger-v1 $disk/blobs-v1 $disk/tmp-v1 | sort; }
        used() { df --output=used $disk | tail -n 1; }
        export IMGBUILD_CACHE_DIR=$disk
        $imgbuild --catalogue plan.json build
        list > before; before=$(used)
        if $imgbuild --catalogue fill.json build; then exit 9; fi
        rm $disk/commands-v1/log-*; list > after
        diff before after
        # The stat cache learns of files that are no longer quite new.
        test $(($(used) - before)) -lt 1024
        test $(grep -c $disk /proc/self/mounts) = 1
        rm -r $disk/ledger-v1/* dist
        $imgbuild --catalogue plan.json build";
    let mut command = Command::new("unshare");
    sandbox.place(&mut command);
    command.args(["--mount", "sh", "-euxc", script, "sh"]).arg(&disk).arg(binary());
    let ended = outcome(&mut command);
    assert!(ended.stderr.contains("less than 64 MiB are left and was ended"), "{}", ended.stderr);
    assert!(!alive(&marker));
    ended.success();
}

/// Every file below a folder that holds this text.
fn holding(folder: &std::path::Path, text: &str) -> Vec<String> {
    let found = Command::new("grep").args(["-rlaF", text]).arg(folder).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_secret_is_read_and_found_nowhere() {
    const CANARY: &str = "canary-5fd1c0de-of-the-secret";
    let sandbox = taking(|sandbox| {
        let text = "mkdir /out; cat /run/secrets/token; grep -c canary /run/secrets/token > /out/count";
        world(sandbox).run(script(text).secret("token"))
    });
    build(&sandbox, &[]).failure(2, &["it needs the secret `token`", "--secret token=env:"]);
    let mut command = sandbox.command(["--catalogue", "plan.json", "build", "--secret", "token=env:TOKEN"]);
    let built = outcome(command.args(["--metadata-file", "built.json"]).env("TOKEN", CANARY));
    assert!(built.stderr.contains("| ***"), "{}", built.stderr);
    assert!(!built.stderr.contains(CANARY) && !built.stdout.contains(CANARY));
    built.success();
    assert_eq!(holding(sandbox.path(), CANARY), [""; 0]);
    // Known without the secret, and whatever it holds.
    build(&sandbox, &[]).success();
    sandbox.write("secret", CANARY);
    build(&sandbox, &["--secret", "token=file:secret"]).success();
    build(&sandbox, &["--secret", "token"]).failure(2, &["`token` is not a secret"]);
    build(&sandbox, &["--secret", "token=env:ABSENT"]).failure(2, &["variable ABSENT is not set"]);
}

#[test]
fn a_secret_that_is_left_behind_is_refused() {
    let sandbox =
        taking(|sandbox| world(sandbox).run(script("mkdir /out; cp /run/secrets/token /out/x").secret("token")));
    sandbox.write("secret", "0123456789abcdef\n");
    build(&sandbox, &["--secret", "token=file:secret"]).failure(1, &["left the secret `token` in `/out/x`"]);
}

#[test]
fn a_secret_is_found_in_names_links_and_by_its_lines() {
    for (text, place) in [
        ("mkdir /out; : >/out/$(cat /run/secrets/token | sed -n 2p)", "`/out`"),
        ("mkdir /out; ln -s x-$(sed -n 2p /run/secrets/token) /out/l", "`/out/l`"),
        ("mkdir /out; sed -n 2p /run/secrets/token >/out/line", "`/out/line`"),
    ] {
        let sandbox = taking(|sandbox| world(sandbox).run(script(text).secret("token")));
        sandbox.write("secret", "[first]\nanother-line-0123456789\n");
        let said = format!("left the secret `token` in {place}");
        build(&sandbox, &["--secret", "token=file:secret"]).failure(1, &[&said]);
    }
}
