//! `imgbuild inspect` and `imgbuild diff` of images wherever they are.

use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Stage, path};
use serde_json::Value;

use crate::registry::registry;
use crate::support::registry::Registry;
use crate::support::run::{Outcome, Sandbox, outcome, tool};
use crate::support::tiny::{Packaged, now, packages};

/// An image with a large layer that stays and a small one that changes, pushed as `team/app:<tag>`.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("context/large/usr/share/data", "kept\n".repeat(50_000));
    sandbox.write("context/own/etc/app/first", "1\n");
    sandbox.write("context/own/etc/app/second", "2\n");
    let image = |env: &str| {
        Stage::scratch()
            .layer(files("large", path!("/")))
            .layer(files("own", path!("/")))
            .image()
            .env("MODE", env)
            .entrypoint(["/usr/bin/app"])
    };
    let catalogue = Catalogue::new("test").with("app", image("dev")).with("other", image("prod"));
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox
}

fn run(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
    outcome(command.args(words))
}

fn push(sandbox: &Sandbox, registry: &Registry, tag: &str) {
    let to = format!("{}/team", registry.host());
    run(sandbox, &["push", "app", "--registry", &to, "--tag", tag, "--platform", "amd64,arm64"]).success();
}

fn json(outcome: Outcome) -> Value {
    serde_json::from_str(&outcome.success()).unwrap()
}

/// A machine that has built and fetched nothing.
fn stranger() -> Sandbox {
    Sandbox::new()
}

#[test]
fn an_image_in_a_registry_is_described_without_reading_a_layer() {
    let registry = registry(|_| {});
    let sandbox = project();
    push(&sandbox, &registry, "v1");
    registry.clear_log();
    let stranger = stranger();
    let place = format!("{}/team/app:v1", registry.host());
    let told = json(stranger.imgbuild(["inspect", &place, "--format", "json"]));
    assert_eq!(told["version"], 1);
    assert_eq!(told["digest"], registry.tag("team/app", "v1").unwrap());
    assert_eq!(told["mediaType"], layers::oci::INDEX);
    let members = told["platforms"].as_array().unwrap();
    assert_eq!(members.len(), 2);
    assert_eq!(members[0]["platform"], "linux/amd64");
    assert_eq!(members[0]["layers"].as_array().unwrap().len(), 2);
    assert!(members[0]["layers"][0]["createdBy"].as_str().unwrap().contains("large"));
    assert_eq!(members[0]["run"]["Env"][0], "MODE=dev");
    assert_eq!(members[0]["packages"], Value::Null);
    let blobs = registry.requests("GET").into_iter().filter(|it| it.line.contains("/blobs/"));
    assert_eq!(blobs.count(), 2, "the two configurations and nothing else");
    let text = stranger.imgbuild(["inspect", &place, "--platform", "arm64"]).success();
    assert!(text.contains("linux/arm64: ") && !text.contains("linux/amd64"), "{text}");
    assert!(text.contains("  Env MODE=dev\n") && text.contains("Entrypoint: [\"/usr/bin/app\"]"), "{text}");
    stranger.imgbuild(["inspect", &format!("{}/team/app:none", registry.host())]).failure(1, &["has no image"]);
    stranger.imgbuild(["inspect", "oci:nowhere"]).failure(1, &["nowhere/index.json"]);
    stranger.imgbuild(["inspect", "https://x/y"]).failure(2, &["is not a place of an image"]);
}

#[test]
fn layouts_archives_and_the_catalogue_tell_the_same() {
    let sandbox = project();
    run(&sandbox, &["build", "app", "--output", "oci:dist", "--output", "oci-archive:app.tar"]).success();
    let told = |place: &str| json(run(&sandbox, &["inspect", place, "--format", "json"]))["platforms"].clone();
    let layout = told("oci:dist:app");
    assert_eq!(layout[0]["run"]["Entrypoint"][0], "/usr/bin/app");
    assert_eq!(layout, told("oci-archive:app.tar"));
    for other in ["oci:dist:app", "oci-archive:app.tar"] {
        let same = json(run(&sandbox, &["diff", "app", other, "--format", "json", "--exit-code"]));
        assert_eq!(same["equal"], true, "{other}");
    }
}

#[test]
fn a_diff_names_configuration_layers_and_files_and_fetches_only_layers_that_differ() {
    let registry = registry(|_| {});
    let sandbox = project();
    push(&sandbox, &registry, "v1");
    sandbox.write("context/own/etc/app/first", "changed\n");
    sandbox.write("context/own/etc/app/third", "3\n");
    std::fs::remove_file(sandbox.work().join("context/own/etc/app/second")).unwrap();
    push(&sandbox, &registry, "v2");
    let place = |tag: &str| format!("{}/team/app:{tag}", registry.host());
    let (a, b) = (place("v1"), place("v2"));
    let stranger = stranger();
    registry.clear_log();
    let told = json(stranger.imgbuild(["diff", &a, &b, "--platform", "amd64", "--format", "json"]));
    assert_eq!(told["equal"], false);
    let within: Vec<&str> = told["layers"].as_array().unwrap().iter().map(|it| it["in"].as_str().unwrap()).collect();
    assert_eq!(within, ["both", "a", "b"]);
    let shared = told["layers"][0]["digest"].as_str().unwrap();
    assert!(registry.requests(shared).is_empty(), "the layer of both is not asked for");
    assert_eq!(told["unread"], serde_json::json!([shared]));
    let changes = |told: &Value| -> Vec<String> {
        let files = told["files"].as_array().unwrap().iter();
        files.map(|it| format!("{} {}", it["change"].as_str().unwrap(), it["path"].as_str().unwrap())).collect()
    };
    assert_eq!(
        changes(&told),
        ["changed /etc/app/first", "written-in-a /etc/app/second", "written-in-b /etc/app/third"]
    );
    assert_eq!(told["files"][0]["a"]["size"], 2);
    assert_eq!(told["files"][0]["b"]["size"], 8);
    assert_eq!(told["files"][0]["b"]["digest"], layers::Digest::of(b"changed\n").to_string());
    assert_eq!(told["files"][0]["b"]["mode"], 0o644);
    let whole = json(stranger.imgbuild(["diff", &a, &b, "--platform", "amd64", "--format", "json", "--all-layers"]));
    assert_eq!(changes(&whole), ["changed /etc/app/first", "removed /etc/app/second", "added /etc/app/third"]);
    assert_eq!(registry.requests(shared).len(), 1);
    // Now everything is at hand, and the answer is exact without being asked for.
    let text = stranger.imgbuild(["diff", &a, &b, "--platform", "amd64"]).success();
    assert!(text.contains("\nremoved /etc/app/second: file 0644 0:0 2 "), "{text}");
    assert!(text.contains("layers: 1 equal, "), "{text}");
    stranger.imgbuild(["diff", &a, &b, "--exit-code", "--platform", "amd64"]).failure(1, &["differ"]);
    let told = json(run(&sandbox, &["diff", "app", "other", "--format", "json"]));
    assert_eq!(told["config"], serde_json::json!([{"path": "config.Env.MODE", "a": "dev", "b": "prod"}]));
    assert_eq!(told["files"], serde_json::json!([]));
}

#[test]
fn packages_are_read_from_the_layers() {
    let packaged = Packaged::new(now() - 3600);
    outcome(&mut packaged.command(&["lock"])).success();
    let build = |to: &str| outcome(&mut packaged.command(&["build", "app", "--platform", "amd64", "-o", to])).success();
    build("oci:first");
    for deb in packages("1.1-1") {
        deb.build(&packaged.repository.pool());
    }
    packaged.repository.publish(&["amd64", "arm64"], now() - 1800);
    outcome(&mut packaged.command(&["lock", "--update"])).success();
    build("oci:second");
    let stranger = Sandbox::new();
    for layout in ["first", "second"] {
        let from = packaged.sandbox.work().join(layout);
        tool("cp", ["-r".as_ref(), from.as_os_str(), stranger.work().as_os_str()]);
    }
    let told = json(stranger.imgbuild(["inspect", "oci:first", "--packages", "--format", "json"]));
    let names: Vec<&str> =
        told["platforms"][0]["packages"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["app", "data", "libapp"]);
    let told = json(stranger.imgbuild(["diff", "oci:first", "oci:second", "--platform", "amd64", "--format", "json"]));
    let packages = told["packages"].as_array().unwrap();
    assert_eq!(packages.len(), 1, "{packages:?}");
    assert_eq!(
        (&packages[0]["name"], &packages[0]["a"], &packages[0]["b"]),
        (&"libapp".into(), &"1.0-1".into(), &"1.1-1".into())
    );
    let text = stranger.imgbuild(["diff", "oci:first", "oci:second", "--platform", "amd64"]).success();
    assert!(text.contains("libapp:amd64: 1.0-1 -> 1.1-1") || text.contains("libapp:all: 1.0-1 -> 1.1-1"), "{text}");
}
