//! Small steps that share a layer come to what they come to in layers of their own.

use std::fs;
use std::os::unix::fs::symlink;

use layers::lock::Lock;
use layers::source::{dir, files, inline, link, user};
use layers::{Catalogue, ImagePath, Stage, path};

use crate::support::layout::Layout;
use crate::support::listing::{assert_same, of_layers};
use crate::support::random::Random;
use crate::support::run::{Outcome, Sandbox, outcome};

type Step = fn(Stage) -> Stage;

/// Steps that write beside, above, below and in the place of each other, some through links.
const STEPS: [Step; 25] = [
    |below| below.layer(inline("a", path!("/a"))),
    |below| below.layer(inline("ax", path!("/a/x"))),
    |below| below.layer(inline("axy", path!("/a/x/y"))),
    |below| below.layer(dir(path!("/a")).owner(7, 8).mode(0o750)),
    |below| below.layer(dir(path!("/a/x")).mode(0o700)),
    |below| below.layer(link(path!("/a/x"), "../b")),
    |below| below.layer(inline("other", path!("/a/other")).owner(1, 2)),
    |below| below.layer(inline("via", path!("/via/x"))),
    |below| below.layer(dir(path!("/via/x")).owner(3, 3)),
    |below| below.layer(link(path!("/via/y"), "x")),
    |below| below.layer(inline("b", path!("/b/z")).mode(0o600)),
    |below| below.layer(link(path!("/b"), "a")),
    |below| below.layer(user("one", 7).home(path!("/home/one"))),
    |below| below.layer(user("two", 8)),
    |below| below.layer(inline("root:x:0:0::/:/bin/sh\n", path!("/etc/passwd"))),
    |below| below.layer(dir(path!("/etc")).mode(0o711)),
    |below| below.layer(inline("", path!("/home/one/.profile"))),
    |below| below.layer(dir(path!("/home")).mode(0o700)),
    // Links on the way to others.
    |below| below.layer(link(path!("/real/current"), "v2")),
    |below| below.layer(link(path!("/d/current"), "v2")),
    |below| below.layer(inline("a file now", path!("/real/current"))),
    |below| below.layer(inline("conf", path!("/opt/conf"))),
    |below| below.layer(inline("other", path!("/real/current/conf"))),
    |below| below.layer(dir(path!("/opt/plugins")).mode(0o700)),
    |below| below.layer(dir(path!("/d/v1/plugins")).mode(0o755)),
];

/// On a folder with a link to another one.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("images.lock", Lock::default().to_text());
    for file in ["a/there", "real/v1/there", "real/v2/there"] {
        sandbox.write(&format!("below/{file}"), "");
    }
    for (link, target) in [("via", "a"), ("real/current", "v1"), ("d", "real"), ("opt", "/real/current")] {
        symlink(target, sandbox.work().join("below").join(link)).unwrap();
    }
    sandbox.write("apart/file", "");
    sandbox
}

fn bottom() -> Stage {
    Stage::scratch().layer(files("below", path!("/")))
}

/// A step that shares its layer with nobody.
fn apart(stage: Stage) -> Stage {
    stage.layer(files("apart", path!("/apart")))
}

fn build(sandbox: &Sandbox, name: &str, stage: Stage) -> Outcome {
    let catalogue = Catalogue::new("test").with(name, stage.image());
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.imgbuild(["build", "--catalogue", "plan.json", "--progress", "quiet"])
}

#[test]
fn steps_that_share_a_layer_come_to_what_each_alone_comes_to() {
    let sandbox = project();
    let mut random = Random::of(1);
    let (mut same, mut met, mut met_in_vain) = (0, 0, 0);
    // Of the last ones, which concern each other, and of all.
    for round in 0..120 {
        let first = if round % 2 == 0 { 18 } else { 0 };
        let drawn = |random: &mut Random| first + random.below(STEPS.len() - first);
        let chosen: Vec<usize> = (0..2 + random.below(4)).map(|_| drawn(&mut random)).collect();
        let together = apart(chosen.iter().fold(bottom(), |stage, at| STEPS[*at](stage)));
        let alone = chosen.iter().fold(bottom(), |stage, at| apart(STEPS[*at](stage)));
        let _ = fs::remove_dir_all(sandbox.work().join("dist"));
        let (one, other) = (build(&sandbox, "together", together), build(&sandbox, "alone", alone));
        if one.stderr.contains("through a symbolic link") {
            // Something else would come in the place of a full directory, or of a user's file.
            met += 1;
            met_in_vain += usize::from(other.status == 0);
            one.failure(1, &["another step just below puts something else", "tests/it/sharing.rs:"]);
            continue;
        }
        assert_eq!(one.status, other.status, "{chosen:?}\n{}\n{}", one.stderr, other.stderr);
        if one.status != 0 {
            continue;
        }
        let layout = Layout::open(&sandbox.work().join("dist"));
        let image = |name: &str| layout.image(name).remove(0);
        let (one, other) = (image("together"), image("alone"));
        assert_eq!(one.faults(), [""; 0], "{chosen:?}");
        assert_same(&of_layers(&one.layers), &of_layers(&other.layers), &format!("{chosen:?}"));
        same += usize::from(one.layers.len() * 2 < other.layers.len() + 2);
    }
    assert!(same >= 40, "{same} images whose steps shared layers");
    // A file in the place of an empty directory that another step has just made: what nobody writes.
    assert!(
        met >= 1 && met_in_vain < 4,
        "{met} whose paths met, {met_in_vain} of which would build in layers of their own"
    );
}

/// What is in the cache of the same user on other files makes no difference.
/// With an account file that is found at `link`, through it.
fn accounts(target: &str, at: &str, shell: &str) -> Stage {
    let passwd = format!("root:x:0:0::/root:{shell}\n");
    let at = ImagePath::new(at).unwrap();
    Stage::scratch().layer(inline(passwd, path!("/conf/passwd"))).layer(link(at, target))
}

/// With `/home/bob` that leads to `/p/x`.
fn around(name: &str) -> Stage {
    let beside = path!("/p").join(name).unwrap();
    let stage = Stage::scratch().layer(dir(path!("/p/q"))).layer(dir(beside)).layer(link(path!("/home/l"), "/p/q"));
    stage.layer(link(path!("/home/bob"), "l/../x"))
}

#[test]
fn a_users_layer_follows_from_what_is_below_it() {
    let sandbox = project();
    let user = |stage: Stage| stage.layer(user("bob", 7).home(path!("/home/bob")));
    let stages = [
        user(Stage::scratch()),
        user(Stage::scratch().layer(dir(path!("/home/bob")).mode(0o700))),
        user(Stage::scratch().layer(dir(path!("/home")).mode(0o711))),
        user(Stage::scratch().layer(dir(path!("/etc")).mode(0o711))),
        user(Stage::scratch().layer(link(path!("/home"), "var/home"))),
        user(Stage::scratch().layer(link(path!("/home/bob"), "../other"))),
        user(Stage::scratch().layer(link(path!("/home/bob"), "../other")).layer(dir(path!("/other")).mode(0o700))),
        // Account files behind links, whose length stays.
        user(accounts("conf", "/etc", "/bin/bash")),
        user(accounts("conf", "/etc", "/bin/fish")),
        user(accounts("../conf/passwd", "/etc/passwd", "/bin/bash")),
        user(accounts("../conf/passwd", "/etc/passwd", "/bin/fish")),
        // A home behind a link whose target goes through another one, and back.
        user(around("x")),
        user(around("y")),
    ];
    let image = |cache: &Sandbox, stage: &Stage| {
        sandbox.write("plan.json", Catalogue::new("test").with("app", stage.clone().image()).plan().to_json());
        let mut command = sandbox.command(["build", "--catalogue", "plan.json", "--progress", "quiet"]);
        outcome(command.env("IMGBUILD_CACHE_DIR", cache.cache()))
    };
    for stage in stages.iter().chain(&stages) {
        let (used, new) = (image(&sandbox, stage), image(&Sandbox::new(), stage));
        assert_eq!((used.status, used.stdout), (new.status, new.stdout), "{}", used.stderr);
    }
}

#[test]
fn what_fails_in_a_shared_layer_is_told_with_its_own_place() {
    let sandbox = project();
    let stage = bottom().layer(dir(path!("/fine")));
    let (stage, line) = (stage.layer(inline("", path!("/a/there/x"))), line!());
    let told = format!("tests/it/sharing.rs:{line}");
    build(&sandbox, "image", stage.layer(dir(path!("/fine/too")))).failure(1, &["`inline /a/there/x`", &told]);
}
