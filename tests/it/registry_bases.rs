//! Images that stand on an image of a registry.

use std::sync::Arc;

use layers::source::{files, inline};
use layers::{Catalogue, Stage, path};
use serde_json::Value;

use crate::registry::registry;
use crate::support::random::Random;
use crate::support::registry::{Auth, Registry};
use crate::support::run::{Outcome, Sandbox, outcome};

fn imgbuild(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
    outcome(command.args(words))
}

/// A base with a layer of its own, pushed as `team/base:v1`.
fn base(registry: &Registry, content: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("context/files/etc/base", content);
    let image = Stage::scratch().layer(files("files", path!("/"))).image().env("FROM_BASE", "1");
    sandbox.write("plan.json", Catalogue::new("bases").with("base", image).plan().to_json());
    sandbox.write("images.lock", layers::lock::Lock::default().to_text());
    let to = format!("{}/team", registry.host());
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v1", "--platform", "amd64,arm64"]).success();
    sandbox
}

/// An image on top of it.
fn project(registry: &Registry) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("context/own/etc/own", "own");
    let image = Stage::from(format!("{}/team/base:v1", registry.host())).layer(files("own", path!("/"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", image).plan().to_json());
    sandbox
}

fn lock_of(sandbox: &Sandbox) -> Value {
    serde_json::from_slice(&std::fs::read(sandbox.work().join("images.lock")).unwrap()).unwrap()
}

#[test]
fn a_base_is_locked_to_its_digest_and_its_layers_are_mounted() {
    let registry = registry(|_| {});
    base(&registry, "first");
    let sandbox = project(&registry);
    imgbuild(&sandbox, &["build"]).failure(1, &["run `imgbuild lock`"]);
    imgbuild(&sandbox, &["lock"]).success();
    let locked = lock_of(&sandbox);
    let first = registry.tag("team/base", "v1").unwrap();
    assert_eq!(locked["bases"][0]["digest"], first);
    assert_eq!(locked["bases"][0]["manifests"].as_object().unwrap().len(), 2);
    assert!(
        registry.requests("GET").iter().all(|it| !it.line.contains("/blobs/") || it.sent < 1000),
        "no layer is read to lock"
    );
    registry.clear_log();
    registry.state().uploaded.clear();
    let to = format!("{}/team", registry.host());
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v1", "--platform", "amd64,arm64", "--locked"]).success();
    assert_eq!(registry.check_tag("team/app", "v1"), Some(Ok(())));
    assert_eq!(
        registry.requests("POST").iter().filter(|it| it.status == 201).count(),
        1,
        "the base's layer is mounted"
    );
    assert_eq!(registry.state().uploaded.len(), 3, "its own layer and two configurations");
    // The configuration is the base's, continued.
    let state = registry.state();
    let repo = &state.repos["team/app"];
    let index: Value = serde_json::from_slice(&repo.manifests[&repo.tags["v1"]].1).unwrap();
    let manifest: Value =
        serde_json::from_slice(&repo.manifests[index["manifests"][0]["digest"].as_str().unwrap()].1).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    let config: Value = serde_json::from_slice(&state.blobs[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
    assert_eq!(config["config"]["Env"][0], "FROM_BASE=1");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    assert_eq!(
        config["config"]["Labels"]["org.opencontainers.image.base.name"],
        format!("{}/team/base:v1", registry.host())
    );
}

#[test]
fn a_tag_that_moves_changes_nothing_until_it_is_locked_again() {
    let registry = registry(|_| {});
    base(&registry, "first");
    let sandbox = project(&registry);
    imgbuild(&sandbox, &["lock"]).success();
    let built = imgbuild(&sandbox, &["build"]).success();
    let first = lock_of(&sandbox);
    base(&registry, "second");
    imgbuild(&sandbox, &["lock"]).success();
    assert_eq!(lock_of(&sandbox), first);
    assert_eq!(imgbuild(&sandbox, &["build"]).success(), built);
    // Without the registry everything that is needed is in the cache.
    assert_eq!(imgbuild(&sandbox, &["--offline", "build"]).success(), built);
    imgbuild(&sandbox, &["lock", "--update"]).success();
    assert_ne!(lock_of(&sandbox), first);
    assert_ne!(imgbuild(&sandbox, &["build"]).success(), built);
}

#[test]
fn a_base_that_is_not_there_is_named_with_the_place_that_wants_it() {
    let registry = registry(|_| {});
    let sandbox = project(&registry);
    imgbuild(&sandbox, &["lock"]).failure(1, &["has no image", "team/base:v1", "tests/it/registry_bases.rs"]);
}

/// Reads of blobs that are no documents.
fn layer_reads(registry: &Registry) -> usize {
    registry.requests("GET").iter().filter(|it| it.line.contains("/blobs/") && it.sent > 4000).count()
}

/// Text that stays larger than any document here when it is compressed.
fn noise() -> String {
    let mut random = Random::of(7);
    (0..30_000).map(|_| format!("{:02x}", random.below(256))).collect()
}

#[test]
fn layers_that_nothing_looks_at_stay_in_the_registry() {
    let registry = registry(|_| {});
    base(&registry, &noise());
    let host = registry.host();
    // Nothing but its base with another command, and a stage that is taken from.
    let sandbox = Sandbox::new();
    let bare = Stage::from(format!("{host}/team/base:v1")).image().cmd(["/bin/other"]);
    sandbox.write("context/own", "own");
    sandbox.write("plan.json", Catalogue::new("test").with("bare", bare).plan().to_json());
    imgbuild(&sandbox, &["lock"]).success();
    registry.clear_log();
    let to = format!("{host}/team");
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v1", "--locked"]).success();
    assert_eq!(registry.check_tag("team/bare", "v1"), Some(Ok(())));
    assert_eq!(layer_reads(&registry), 0);
    assert_eq!(registry.requests("POST").iter().filter(|it| it.status == 201).count(), 1, "it is mounted");
    // What holds whole images fetches it, once.
    imgbuild(&sandbox, &["build", "--output", "oci:dist"]).success();
    assert_eq!(layer_reads(&registry), 1);
    imgbuild(&sandbox, &["--offline", "build", "--output", "docker-archive:image.tar"]).success();
    assert_eq!(layer_reads(&registry), 1);
}

#[test]
fn layers_that_were_looked_at_once_need_not_be_kept() {
    let registry = registry(|_| {});
    base(&registry, &noise());
    let sandbox = project(&registry);
    imgbuild(&sandbox, &["lock"]).success();
    let to = format!("{}/team", registry.host());
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v1", "--locked"]).success();
    assert_eq!(layer_reads(&registry), 1, "a layer is put on what the base holds");
    let held = base_layer(&registry);
    std::fs::remove_file(sandbox.cache().join("blobs-v1").join(&held[..2]).join(&held)).unwrap();
    registry.clear_log();
    sandbox.write("context/own/etc/own", "changed");
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v2", "--locked"]).success();
    assert_eq!(registry.check_tag("team/app", "v2"), Some(Ok(())));
    assert_eq!(layer_reads(&registry), 0);
    imgbuild(&sandbox, &["--offline", "build", "--output", "oci:dist"])
        .failure(1, &["team/base", "--offline forbids it"]);
    imgbuild(&sandbox, &["build", "--output", "oci:dist"]).success();
    assert_eq!(layer_reads(&registry), 1);
}

/// The digest of the base's layer, without its algorithm.
fn base_layer(registry: &Registry) -> String {
    let state = registry.state();
    let repo = &state.repos["team/base"];
    let index: Value = serde_json::from_slice(&repo.manifests[&repo.tags["v1"]].1).unwrap();
    let manifest: Value =
        serde_json::from_slice(&repo.manifests[index["manifests"][0]["digest"].as_str().unwrap()].1).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
}

#[test]
fn a_stage_on_a_base_can_be_taken_from() {
    let registry = registry(|_| {});
    base(&registry, "taken");
    let sandbox = Sandbox::new();
    sandbox.write("context/own", "own");
    let below = Stage::from(format!("{}/team/base:v1", registry.host()));
    let image = Stage::scratch().layer(below.take(path!("/etc/base"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", image).plan().to_json());
    imgbuild(&sandbox, &["lock"]).success();
    imgbuild(&sandbox, &["build", "--output", "oci:dist"]).success();
    imgbuild(&sandbox, &["--offline", "build", "--output", "oci:dist"]).success();
}

#[test]
fn what_a_base_says_of_itself_is_inherited_and_its_layers_get_names_that_all_clients_know() {
    let registry = registry(|_| {});
    base(&registry, "first");
    // The same base as Docker pushes it: other media types, and more fields in the configuration.
    let (config, manifest) = {
        let state = registry.state();
        let repo = &state.repos["team/base"];
        let index: Value = serde_json::from_slice(&repo.manifests[&repo.tags["v1"]].1).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let mut manifest: Value = serde_json::from_slice(&repo.manifests[digest].1).unwrap();
        let mut config: Value =
            serde_json::from_slice(&state.blobs[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
        config["author"] = "somebody".into();
        config["variant"] = "v1".into();
        config["os.version"] = "1.2".into();
        config["container_config"] = serde_json::json!({"Hostname": "gone"});
        let config = config.to_string().into_bytes();
        let docker = "application/vnd.docker";
        manifest["mediaType"] = format!("{docker}.distribution.manifest.v2+json").into();
        manifest["config"] = serde_json::json!({"mediaType": format!("{docker}.container.image.v1+json"),
            "digest": layers::Digest::of(&config), "size": config.len()});
        manifest["layers"][0]["mediaType"] = format!("{docker}.image.rootfs.diff.tar.gzip").into();
        (config, manifest.to_string().into_bytes())
    };
    {
        let mut state = registry.state();
        state.blobs.insert(layers::Digest::of(&config).to_string(), Arc::new(config.clone()));
        let digest = layers::Digest::of(&manifest).to_string();
        let repo = state.repos.get_mut("team/base").unwrap();
        repo.blobs.insert(layers::Digest::of(&config).to_string());
        let media_type = "application/vnd.docker.distribution.manifest.v2+json".to_owned();
        repo.manifests.insert(digest.clone(), (media_type, manifest));
        repo.tags.insert("v1".into(), digest);
    }
    let sandbox = project(&registry);
    imgbuild(&sandbox, &["lock"]).success();
    let to = format!("{}/team", registry.host());
    imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v1", "--platform", "amd64"]).success();
    imgbuild(&sandbox, &["build", "--platform", "arm64"])
        .failure(1, &["team/base:v1` has no image for linux/arm64", "choose other platforms"]);
    imgbuild(&sandbox, &["lock", "--check"]).success();
    let state = registry.state();
    let repo = &state.repos["team/app"];
    let manifest: Value = serde_json::from_slice(&repo.manifests[&repo.tags["v1"]].1).unwrap();
    let types = manifest["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].as_str().unwrap());
    assert!(types.into_iter().all(|it| it == layers::oci::LAYER_GZIP), "{manifest}");
    let config: Value = serde_json::from_slice(&state.blobs[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
    let said = ["author", "variant", "os.version", "container_config"].map(|name| config[name].as_str());
    assert_eq!(said, [Some("somebody"), Some("v1"), Some("1.2"), None]);
    assert_eq!(config["history"].as_array().unwrap().len(), 2);
}

/// Makes `team/base:v1` an image for amd64 whose configuration nobody here would write like that; gives its text.
fn written_oddly(registry: &Registry) -> String {
    let mut state = registry.state();
    let repo = &state.repos["team/base"];
    let index: Value = serde_json::from_slice(&repo.manifests[&repo.tags["v1"]].1).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let mut manifest: Value = serde_json::from_slice(&repo.manifests[digest].1).unwrap();
    let config: Value = serde_json::from_slice(&state.blobs[manifest["config"]["digest"].as_str().unwrap()]).unwrap();
    let text = serde_json::to_string_pretty(&config).unwrap();
    let text = text.replacen('{', "{\n  \"zeal\" : 1.50E+1, \"author\":\"\\u0041nna\",", 1) + "\n";
    let text = text.replace("\"comment\": \"imgbuild\"", "\"comment\"   :\"some\\u0062ody\", \"own\":[ 1e2 ]");
    assert!(serde_json::from_str::<Value>(&text).is_ok_and(|it| it["history"][0]["own"][0] == 100.0), "{text}");
    manifest["config"]["digest"] = layers::Digest::of(text.as_bytes()).to_string().into();
    manifest["config"]["size"] = text.len().into();
    let manifest = manifest.to_string().into_bytes();
    let (config, digest) = (layers::Digest::of(text.as_bytes()).to_string(), layers::Digest::of(&manifest).to_string());
    state.blobs.insert(config.clone(), Arc::new(text.clone().into_bytes()));
    let repo = state.repos.get_mut("team/base").unwrap();
    repo.blobs.insert(config);
    repo.manifests.insert(digest.clone(), (layers::oci::MANIFEST.to_owned(), manifest));
    repo.tags.insert("v1".into(), digest);
    text
}

/// The manifest of a tag and the text of its configuration.
fn documents(registry: &Registry, repository: &str, tag: &str) -> (Value, String) {
    let state = registry.state();
    let repo = &state.repos[repository];
    let manifest: Value = serde_json::from_slice(&repo.manifests[&repo.tags[tag]].1).unwrap();
    let config = &state.blobs[manifest["config"]["digest"].as_str().unwrap()];
    (manifest, String::from_utf8(config.to_vec()).unwrap())
}

#[test]
fn a_base_that_is_written_oddly_keeps_its_bytes_also_when_it_is_replaced() {
    use layers::written::{Members, elements};
    let registry = registry(|_| {});
    base(&registry, "first");
    let odd = written_oddly(&registry);
    let sandbox = Sandbox::new();
    sandbox.write("context/own/etc/own", "own");
    let below = Stage::from(format!("{}/team/base:v1", registry.host()));
    let catalogue = Catalogue::new("test").with("same", below.clone().image());
    let catalogue = catalogue.with("app", below.layer(files("own", path!("/"))).image().env("A", "1"));
    sandbox.write("plan.json", catalogue.plan().to_json());
    imgbuild(&sandbox, &["lock"]).success();
    let to = format!("{}/team", registry.host());
    let push = |tag: &str| {
        imgbuild(&sandbox, &["push", "--registry", &to, "--tag", tag, "--platform", "amd64"]).success();
    };
    push("v1");
    // What adds nothing is the base: the same configuration, the same layers.
    let (theirs, _) = documents(&registry, "team/base", "v1");
    let (manifest, text) = documents(&registry, "team/same", "v1");
    assert_eq!(text, odd);
    assert_eq!((&manifest["config"], &manifest["layers"]), (&theirs["config"], &theirs["layers"]));
    // What adds something keeps the rest.
    let check = |odd: &str, tag: &str| {
        let (_, text) = documents(&registry, "team/app", tag);
        let (ours, theirs) = (Members::of(&text).unwrap(), Members::of(odd).unwrap());
        for name in ["zeal", "author"] {
            assert!(theirs.get(name).is_some() && ours.get(name) == theirs.get(name), "{text}");
        }
        let history = |of: &Members| elements(of.get("history").unwrap()).unwrap();
        assert!(history(&ours).starts_with(&history(&theirs)) && history(&ours).len() == 2, "{text}");
    };
    check(&odd, "v1");
    // Another base, as odd: a rebase makes what a build makes, of both images.
    base(&registry, "second");
    let other = written_oddly(&registry);
    assert_ne!(other, odd);
    let onto = format!("{to}/base:v1");
    // The image that added nothing says of no base that it stands on it; it is its own.
    let old = format!("{to}/same@{}", registry.tag("team/same", "v1").unwrap());
    imgbuild(&sandbox, &["rebase", &format!("{to}/app:v1"), "--onto", &onto, "--to", &format!("{to}/app:rebased")])
        .success();
    let words =
        ["rebase", &format!("{to}/same:v1"), "--from", &old, "--onto", &onto, "--to", &format!("{to}/same:rebased")];
    imgbuild(&sandbox, &words).success();
    imgbuild(&sandbox, &["lock", "--update"]).success();
    push("built");
    for name in ["team/app", "team/same"] {
        assert_eq!(registry.tag(name, "rebased"), registry.tag(name, "built"), "{name}");
    }
    check(&other, "rebased");
    assert_eq!(documents(&registry, "team/same", "rebased").1, other);
}

#[test]
fn who_may_not_push_is_told_so_before_the_work() {
    let registry = registry(|kind| kind.auth = Auth::Basic);
    let sandbox = Sandbox::new();
    sandbox.write("context/own/etc/own", "own");
    let image = Stage::scratch().layer(files("own", path!("/"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", image).plan().to_json());
    sandbox.write("images.lock", layers::lock::Lock::default().to_text());
    let to = format!("{}/team", registry.host());
    let push = || imgbuild(&sandbox, &["push", "--registry", &to, "--tag", "v1", "--progress", "plain"]);
    let refused = push().failure(1, &["refuses to push in team/app as anonymous"]);
    assert!(!refused.stderr.contains("built app"), "{}", refused.stderr);
    // Also where what is below the files is known already, and the files alone would take their time.
    let image = Stage::scratch().layer(inline("below", path!("/below"))).layer(files("own", path!("/"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", image).plan().to_json());
    imgbuild(&sandbox, &["build"]).success();
    sandbox.write("context/own/large", vec![b'x'; 6 << 20]);
    let refused = push().failure(1, &["refuses to push in team/app as anonymous"]);
    assert!(!refused.stderr.contains("layer "), "{}", refused.stderr);
}
