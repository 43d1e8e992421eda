//! Commands in build stages.

use std::io::Read as _;
use std::process::Command;

use layers::{Catalogue, Image, ImagePath, Network, Run, Stage, command, debian, files, inline, link, path};

use crate::support::layout::Layout;
use crate::support::run::{Outcome, Sandbox, outcome};
use crate::support::tiny::{Packaged, now};

/// A catalogue of one image, `app`, written into a sandbox.
fn with(image: Image) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("plan.json", Catalogue::new("commands").with("app", image).plan().to_json());
    sandbox
}

#[test]
fn plan_shows_commands_below_what_is_taken_from_them() {
    let tool = Stage::scratch().run(command(["fetch-it"]).network(Network::Open));
    let made = Stage::scratch()
        .layer(inline("", path!("/a")))
        .run(command(["make", "all"]).input(tool.take(path!("/tool"))).input(files("src", path!("/src"))));
    let sandbox = with(Stage::scratch().layer(made.take(path!("/out"))).image());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    let text = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "--platform", "amd64"]).success();
    let shown: Vec<&str> = text.lines().map(|line| line.split("  (tests/").next().unwrap()).collect();
    let expected = [
        "app linux/amd64: 1 layers",
        "  take /out -> /out",
        "    run make all",
        "      run fetch-it, network open: not reproducible",
    ];
    assert_eq!(shown, expected);
    assert!(text.contains("(tests/it/commands.rs:"), "{text}");
    let dot = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "--format", "dot"]).success();
    assert!(dot.contains("[label=\"run make all\", style=rounded]"), "{dot}");
    assert_eq!(dot.matches("style=dashed").count(), 2, "{dot}");
}

#[test]
fn an_image_that_stands_on_a_command_is_refused_with_both_places() {
    let sandbox = with(Stage::scratch().run(["make"]).layer(inline("", path!("/a"))).image());
    let said = ["image `app` (tests/it/commands.rs:", "`run make` (tests/it/commands.rs:", "stage.take("];
    sandbox.imgbuild(["--catalogue", "plan.json", "plan"]).failure(2, &said);
}

#[test]
fn a_command_without_a_program_is_refused_with_its_place() {
    let nothing = Stage::scratch().run(command(Vec::<String>::new()));
    let sandbox = with(Stage::scratch().layer(nothing.take(path!("/a"))).image());
    let said = ["tests/it/commands.rs:", "no program"];
    sandbox.imgbuild(["--catalogue", "plan.json", "plan"]).failure(2, &said);
}

#[test]
fn what_a_take_says_more_reaches_the_image() {
    let made = Stage::scratch().layer(inline("a\n", path!("/out/a")));
    let sandbox =
        with(Stage::scratch().layer(made.take(path!("/out")).to(path!("/srv")).owner(7, 8).portable()).image());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    sandbox.imgbuild(["--catalogue", "plan.json", "build", "--platform", "amd64,arm64"]).success();
    let images = Layout::open(&sandbox.work().join("dist")).image("app");
    let owners = |at: usize| {
        let members = images[at].layers.iter().flat_map(|layer| layer.members());
        members.map(|member| (member.path, member.owner)).collect::<Vec<_>>()
    };
    assert_eq!(owners(0), [("srv/".to_owned(), (7, 8)), ("srv/a".to_owned(), (7, 8))]);
    assert_eq!(owners(0), owners(1));
}

#[test]
fn tree_tells_what_is_only_in_a_stage_that_an_image_takes_from() {
    let packaged = Packaged::new(now());
    let built = Stage::scratch().layer(debian(["data"])).run(["make"]);
    let image = Stage::scratch().layer(debian(["libapp"])).layer(built.take(path!("/out"))).image();
    let plan = packaged.sandbox.write("other.json", Catalogue::new("other").with("x", image).plan().to_json());
    let run = |word: &str| {
        let mut command = packaged.sandbox.command(["--catalogue".as_ref(), plan.as_os_str(), word.as_ref()]);
        packaged.configure(&mut command);
        outcome(&mut command).success()
    };
    run("lock");
    let tree = run("tree");
    let headings: Vec<&str> = tree.lines().filter(|line| line.starts_with("debian")).collect();
    assert_eq!(headings, ["debian data  (x, in a stage that it takes from)", "debian libapp  (x)"], "{tree}");
}

/// A world for commands: the machine's static busybox, and `/bin/sh`.
fn world(sandbox: &Sandbox) -> Stage {
    let busybox = std::fs::read("/bin/busybox").unwrap_or_else(|error| {
        panic!("/bin/busybox cannot be read ({error}): install Debian's `busybox-static`");
    });
    sandbox.write("busybox", busybox);
    let stage = Stage::scratch().layer(files("busybox", path!("/bin/busybox")).mode(0o755));
    [
        "sh", "cat", "cp", "ln", "ls", "mkdir", "rm", "sleep", "stat", "env", "id", "touch", "chmod", "grep", "wget",
        "sort",
    ]
    .into_iter()
    .fold(stage, |stage, name| stage.layer(link(ImagePath::new(format!("/bin/{name}")).unwrap(), "busybox")))
}

fn script(text: &str) -> Run {
    command(["sh", "-ec", text])
}

/// A sandbox with one image that takes `/out` from a stage; the stage is made by `of`.
fn taking(of: impl FnOnce(&Sandbox) -> Stage) -> Sandbox {
    let sandbox = Sandbox::new();
    let stage = of(&sandbox);
    write(&sandbox, &stage);
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    sandbox
}

fn write(sandbox: &Sandbox, stage: &Stage) {
    let image = Stage::scratch().layer(stage.take(path!("/out"))).image();
    sandbox.write("plan.json", Catalogue::new("commands").with("app", image).plan().to_json());
}

fn build(sandbox: &Sandbox, more: &[&str]) -> Outcome {
    sandbox.imgbuild([&["--catalogue", "plan.json", "build"], more].concat())
}

/// The members of the image below `/out`: path, mode in octal, link; all are owned by root and of one time.
fn made(sandbox: &Sandbox) -> Vec<String> {
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
fn content(sandbox: &Sandbox, path: &str) -> String {
    let image = &Layout::open(&sandbox.work().join("dist")).image("app")[0];
    for layer in &image.layers {
        for entry in tar::Archive::new(layer.tar.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().to_str() == Some(path) {
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                return text;
            }
        }
    }
    panic!("no layer holds `{path}`")
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
fn a_command_that_fails_says_where_and_what_and_leaves_nothing() {
    let sandbox = taking(|sandbox| {
        let text = "mkdir /out; i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); done; echo bad >&2; exit 7";
        world(sandbox).run(script(text))
    });
    for _ in 0..2 {
        let failed = build(&sandbox, &[])
            .failure(1, &["exit status 7", "tests/it/commands.rs:", "  | line 39", "  | bad", "the whole log is in `"]);
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
fn a_command_that_takes_too_long_is_ended() {
    let sandbox = taking(|sandbox| {
        world(sandbox).run(script("mkdir /out; sleep 600").timeout(std::time::Duration::from_secs(1)))
    });
    let began = std::time::Instant::now();
    build(&sandbox, &[]).failure(1, &["took longer than 1 s"]);
    assert!(began.elapsed().as_secs() < 60);
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
