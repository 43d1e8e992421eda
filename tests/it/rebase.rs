//! `imgbuild rebase`: the same layers on another base, compared with what a build there makes.

use layers::lock::Lock;
use layers::source::{files, user};
use layers::{Catalogue, Image, Stage, path};

use crate::registry::registry;
use crate::support::registry::Registry;
use crate::support::run::{Outcome, Sandbox, outcome};

fn imgbuild(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
    outcome(command.args(words))
}

/// Pushes a base with this file and a directory of this mode as `team/base:<tag>`.
fn base(registry: &Registry, tag: &str, content: &str, mode: u32) {
    let sandbox = Sandbox::new();
    sandbox.write("context/files/etc/base", content);
    let stage = Stage::scratch().layer(layers::source::dir(path!("/srv")).mode(mode)).layer(files("files", path!("/")));
    let image = stage.image().env("FROM_BASE", content).env("PATH", "/bin");
    sandbox.write("plan.json", Catalogue::new("bases").with("base", image).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let to = format!("{}/team", registry.host());
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", tag, "--platform", "amd64,arm64"]).success();
}

/// An image on `team/base:v1`, locked, and pushed as `team/app:v1`.
fn project(registry: &Registry, more: impl FnOnce(Stage) -> Image) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("context/own/etc/own", "own");
    sandbox.write("context/own/srv/data", "own");
    let stage = Stage::from(format!("{}/team/base:v1", registry.host())).layer(files("own", path!("/")));
    sandbox.write("plan.json", Catalogue::new("test").with("app", more(stage)).plan().to_json());
    imgbuild(&sandbox, &["lock"]).success();
    push(&sandbox, registry, "v1");
    sandbox
}

fn push(sandbox: &Sandbox, registry: &Registry, tag: &str) {
    let to = format!("{}/team", registry.host());
    imgbuild(sandbox, &["push", "--registry", &to, "--tag", tag, "--platform", "amd64,arm64"]).success();
}

fn place(registry: &Registry, name: &str) -> String {
    format!("{}/team/{name}", registry.host())
}

#[test]
fn a_rebased_image_is_what_a_build_on_the_new_base_makes_and_no_layer_is_sent() {
    let registry = registry(|_| {});
    base(&registry, "v1", "first", 0o755);
    let sandbox = project(&registry, |stage| stage.image().env("PATH", "/own").entrypoint(["/app"]));
    base(&registry, "v1", "second", 0o755);
    let (app, new, to) = (place(&registry, "app:v1"), place(&registry, "base:v1"), place(&registry, "app:rebased"));
    let stranger = Sandbox::new();
    let before = registry.tag("team/app", "v1");
    let words = ["rebase", &app, "--onto", &new, "--to", &to];
    let said = stranger.imgbuild([&words[..], &["--dry-run"]].concat()).success();
    assert_eq!(registry.tag("team/app", "rebased"), None, "a dry run writes nothing");
    registry.state().uploaded.clear();
    assert_eq!(stranger.imgbuild(words).success(), said);
    let rebased = registry.tag("team/app", "rebased").unwrap();
    assert_eq!(said, format!("{rebased}\n"));
    assert_eq!(registry.check_tag("team/app", "rebased"), Some(Ok(())));
    assert_eq!(registry.tag("team/app", "v1"), before, "the image itself stays");
    assert_eq!(registry.state().uploaded.len(), 2, "two configurations: the new base's layers are mounted");
    // The same by a build.
    imgbuild(&sandbox, &["lock", "--update"]).success();
    push(&sandbox, &registry, "built");
    assert_eq!(registry.tag("team/app", "built"), Some(rebased));
    // Without `--to` the tag itself moves, and back.
    stranger.imgbuild(["rebase", &app, "--onto", &new]).success();
    assert_eq!(registry.tag("team/app", "v1"), registry.tag("team/app", "built"));
}

#[test]
fn layers_that_read_the_base_or_would_come_out_otherwise_are_refused() {
    let registry = registry(|_| {});
    base(&registry, "v1", "first", 0o755);
    base(&registry, "v2", "second", 0o755);
    base(&registry, "private", "second", 0o700);
    project(&registry, |stage| stage.layer(user("app", 10001)).image());
    let (app, onto) = (place(&registry, "app:v1"), place(&registry, "base:v2"));
    let stranger = Sandbox::new();
    let refused = |words: &[&str], said: &[&str]| {
        let before = registry.tag("team/app", "v1");
        stranger.imgbuild(words).failure(1, said);
        assert_eq!(registry.tag("team/app", "v1"), before);
    };
    refused(
        &["rebase", &app, "--onto", &onto],
        &["layer 4 `user app", "was made by reading the base", "build it on the new base"],
    );
    project(&registry, Stage::image);
    let private = place(&registry, "base:private");
    refused(
        &["rebase", &app, "--onto", &private],
        &["it has `/srv` as `directory 0755 0:0`, the new base as `directory 0700 0:0`"],
    );
    refused(&["rebase", &app, "--onto", &onto, "--from", &onto], &["does not stand on"]);
    refused(&["rebase", &place(&registry, "base:v1"), "--onto", &onto], &["no label that names one", "--from"]);
    refused(&["rebase", &place(&registry, "app:none"), "--onto", &onto], &["has no image"]);
    stranger.imgbuild(["rebase", &app, "--onto", &onto, "--platform", "amd64", "--dry-run"]).success();
}

#[test]
fn layouts_are_rebased_without_a_registry() {
    let registry = registry(|_| {});
    base(&registry, "v1", "first", 0o755);
    base(&registry, "v2", "second", 0o755);
    project(&registry, Stage::image);
    let stranger = Sandbox::new();
    for (from, to) in [("app:v1", "oci:all:app"), ("base:v1", "oci:all:old"), ("base:v2", "oci:all:new")] {
        stranger.imgbuild(["copy", &place(&registry, from), to]).success();
    }
    let digest = stranger.imgbuild([
        "rebase",
        "oci:all:app",
        "--from",
        "oci:all:old",
        "--onto",
        "oci:all:new",
        "--to",
        "oci:all:done",
    ]);
    let digest = digest.success();
    let copied = stranger.imgbuild(["copy", "oci:all:done", &place(&registry, "app:copied")]).success();
    assert_eq!(copied, digest);
    assert_eq!(registry.check_tag("team/app", "copied"), Some(Ok(())));
}
