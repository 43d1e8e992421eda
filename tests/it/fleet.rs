//! One package updated under a whole catalogue: what is built, sent, mounted and asked.

use std::collections::BTreeSet;

use layers::{Catalogue, Stage, debian, inline, path};
use serde_json::Value;

use crate::registry::registry;
use crate::support::registry::{Mounting, Registry};
use crate::support::run::{Outcome, outcome};
use crate::support::tiny::{Packaged, now, packages};

const IMAGES: usize = 200;

/// 200 images with a file of their own each, on a stage of packages.
fn catalogue() -> Catalogue {
    let below = Stage::scratch().layer(debian(["app"]));
    (0..IMAGES).fold(Catalogue::new("fleet"), |all, at| {
        all.with(format!("image-{at:03}"), below.layer(inline(format!("image {at}\n"), path!("/etc/image"))).image())
    })
}

struct Fleet {
    packaged: Packaged,
    registry: Registry,
}

impl Fleet {
    fn run(&self, words: &[&str]) -> Outcome {
        let mut command = self.packaged.sandbox.command(["--catalogue", "fleet.json", "--progress", "json"]);
        self.packaged.configure(command.args(words));
        outcome(&mut command)
    }

    fn push(&self) -> Outcome {
        let to = format!("{}/fleet", self.registry.host());
        self.run(&["push", "--registry", &to, "--tag", "v1", "--platform", "amd64,arm64"])
    }

    /// The layers that the tags lead to.
    fn layers(&self) -> BTreeSet<String> {
        let state = self.registry.state();
        let mut found = BTreeSet::new();
        for repo in state.repos.values() {
            let json = |digest: &str| serde_json::from_slice::<Value>(&repo.manifests[digest].1).unwrap();
            let index = json(&repo.tags["v1"]);
            for child in index["manifests"].as_array().unwrap() {
                let manifest = json(child["digest"].as_str().unwrap());
                let layers = manifest["layers"].as_array().unwrap();
                found.extend(layers.iter().map(|it| it["digest"].as_str().unwrap().to_owned()));
            }
        }
        found
    }
}

/// Updates one package under 200 images for two platforms; `most` requests an image are allowed.
fn update(mounting: Mounting, most: usize) {
    let packaged = Packaged::new(now() - 7200);
    packaged.sandbox.write("fleet.json", catalogue().plan().to_json());
    let fleet = Fleet { packaged, registry: registry(|kind| kind.mounting = mounting) };
    fleet.run(&["lock"]).success();
    fleet.push().success();
    let before = fleet.layers();

    for deb in packages("1.1-1") {
        deb.build(&fleet.packaged.repository.pool());
    }
    fleet.packaged.repository.publish(&["amd64", "arm64"], now() - 3600);
    fleet.run(&["lock", "--update", "libapp"]).success();
    fleet.registry.clear_log();
    fleet.registry.state().uploaded.clear();
    let pushed = fleet.push();
    let told = |event: &str| pushed.stderr.matches(&format!("\"event\":\"{event}\"")).count();
    assert_eq!(told("conversion-finished"), 1, "one package is converted");
    let written = told("layer-finished");
    let lines = pushed.success().lines().count();
    assert_eq!(lines, IMAGES);

    fleet.registry.assert_whole();
    let new: BTreeSet<String> = fleet.layers().difference(&before).cloned().collect();
    assert_eq!(new.len(), 1, "one layer differs, the same for both platforms: {new:?}");
    assert!(written <= 4, "{written} layers were written for two platforms");
    let log = fleet.registry.requests("");
    let uploaded = fleet.registry.state().uploaded.clone();
    assert_eq!(uploaded.len(), 1 + 2 * IMAGES, "the layer, and a configuration a platform");
    assert!(uploaded.values().all(|count| *count == 1), "nothing is sent twice");
    let mounts = log.iter().filter(|it| it.line.starts_with("POST") && it.status == 201).count();
    assert_eq!(mounts, IMAGES - 1, "everybody else takes it from the first");
    assert!(log.iter().all(|it| !it.line.starts_with("GET ")), "nothing is downloaded");
    let manifests = log.iter().filter(|it| it.line.starts_with("PUT") && it.line.contains("/manifests/")).count();
    assert_eq!(manifests, IMAGES * 3, "two manifests an image, and an index by its tag");
    let bytes: u64 = log.iter().map(|it| it.received).sum();
    assert!(bytes < 20_000_000, "{bytes} bytes were sent");
    let asked = log.len();
    assert!(asked <= IMAGES * most, "{asked} requests");
    assert!(fleet.registry.state().uploads() == 0, "no upload is left open");
}

#[test]
fn slow_one_package_under_two_hundred_images_is_converted_and_sent_once() {
    update(Mounting::Works, 20);
}

#[test]
fn slow_registries_that_mount_only_what_a_manifest_refers_to_get_it_once_as_well() {
    // For each image that came before the first was published: an attempt, and the upload that it began is cancelled.
    update(Mounting::Referenced, 22);
}
