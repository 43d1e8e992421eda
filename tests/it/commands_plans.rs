//! Commands in plans: what is shown and refused before one is run, and when each is run.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::spawn;
use std::time::Duration;

use layers::{Catalogue, Image, Network, Stage, command, debian, files, inline, path};

use crate::commands::{script, world};
use crate::support::layout::Layout;
use crate::support::run::{Sandbox, outcome};
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
    assert!(text.contains("(tests/it/commands_plans.rs:"), "{text}");
    let dot = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "--format", "dot"]).success();
    assert!(dot.contains("[label=\"run make all\", style=rounded]"), "{dot}");
    assert_eq!(dot.matches("style=dashed").count(), 2, "{dot}");
}

#[test]
fn an_image_that_stands_on_a_command_is_refused_with_both_places() {
    let sandbox = with(Stage::scratch().run(["make"]).layer(inline("", path!("/a"))).image());
    let said = ["image `app` (tests/it/commands_plans.rs:", "`run make` (tests/it/commands_plans.rs:", "stage.take("];
    sandbox.imgbuild(["--catalogue", "plan.json", "plan"]).failure(2, &said);
}

#[test]
fn a_command_without_a_program_is_refused_with_its_place() {
    let nothing = Stage::scratch().run(command(Vec::<String>::new()));
    let sandbox = with(Stage::scratch().layer(nothing.take(path!("/a"))).image());
    let said = ["tests/it/commands_plans.rs:", "no program"];
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

/// A catalogue that is locked, and of which the cache knows nothing; gives what runs imgbuild with it.
fn locked<'a>(packaged: &'a Packaged, catalogue: &Catalogue) -> impl Fn(&[&str]) -> Command + use<'a> {
    let plan = packaged.sandbox.write("early.json", catalogue.plan().to_json());
    let run = move |words: &[&str]| {
        let mut command = packaged.sandbox.command(["--catalogue".as_ref(), plan.as_os_str()]);
        packaged.configure(&mut command);
        command.args(words);
        command
    };
    outcome(&mut run(&["lock"])).success();
    outcome(&mut run(&["cache", "clear"])).success();
    run
}

/// Two images, of which one takes from a command; the package of the other is held back until the command tells `until`. Gives
/// whether it did, all that was said, and whether the build succeeded.
fn beside_a_download(script_text: &str, until: &str) -> (bool, Vec<String>, bool) {
    let packaged = Packaged::new(now());
    let built = world(&packaged.sandbox).layer(debian(["data"])).run(script(script_text));
    let catalogue = Catalogue::new("early")
        .with("other", Stage::scratch().layer(debian(["libapp"])).image())
        .with("site", Stage::scratch().layer(built.take(path!("/out"))).image());
    let run = locked(&packaged, &catalogue);
    let lock = fs::read_to_string(packaged.lock_file()).unwrap();
    let withheld = lock.split('"').find(|text| text.ends_with(".deb") && text.contains("libapp_")).unwrap();
    let withheld = format!("/{withheld}");
    packaged.files.hold(&withheld);
    let mut build = run(&["--progress", "json", "build", "--platform", "amd64"]);
    let mut child = build.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (sender, lines) = channel();
    let said = BufReader::new(child.stderr.take().unwrap());
    let reader = spawn(move || said.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    let mut heard = Vec::new();
    let told = loop {
        match lines.recv_timeout(Duration::from_secs(60)) {
            Ok(line) if line.contains(until) => break true,
            Ok(line) => heard.push(line),
            Err(_) => break false,
        }
    };
    packaged.files.let_go();
    heard.extend(lines.iter());
    reader.join().unwrap();
    (told, heard, child.wait().unwrap().success())
}

#[test]
fn a_command_does_not_wait_for_the_archives_of_other_images() {
    let (ran, said, built) = beside_a_download("mkdir /out; cp /usr/share/data/plain /out/", "step-finished");
    assert!(ran, "the command waited: {said:#?}");
    assert!(built, "{said:#?}");
    assert_eq!(said.iter().filter(|line| line.contains("step-started")).count(), 1, "{said:#?}");
}

#[test]
fn a_command_that_fails_beside_other_work_runs_once_and_is_what_is_told() {
    // It ends after an image that takes from it has come to wait for it.
    let (_, said, built) = beside_a_download("echo tried; sleep 1; exit 3", "step-output");
    assert!(!built);
    assert!(said.iter().any(|line| line.contains("status 3")), "{said:#?}");
    assert_eq!(said.iter().filter(|line| line.contains("step-started")).count(), 1, "{said:#?}");
}

#[test]
fn two_commands_are_run_on_one_core_whichever_has_its_archives_first() {
    for names in [["data", "libapp"], ["libapp", "data"]] {
        let packaged = Packaged::new(now());
        // An archive of its own: else commands wait for all of them.
        let mut catalogue = Catalogue::new("early").with("z", Stage::scratch().layer(debian(["app"])).image());
        for (image, name) in ["a", "b"].into_iter().zip(names) {
            let built = world(&packaged.sandbox).layer(debian([name])).run(script("mkdir /out; echo > /out/a"));
            catalogue = catalogue.with(image, Stage::scratch().layer(built.take(path!("/out"))).image());
        }
        let run = locked(&packaged, &catalogue);
        let mut build = run(&["--jobs", "1", "build", "--platform", "amd64"]);
        let mut child = build.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if std::time::Instant::now() > deadline => break None,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        if ended.is_none() {
            child.kill().unwrap();
        }
        assert!(ended.is_some_and(|status| status.success()), "{names:?}: {ended:?}");
    }
}
