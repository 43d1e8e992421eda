//! This repository's images, built once for all tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use super::docker::{Engine, engine};
use super::layout::Layout;
use super::run::{Outcome, Sandbox, outcome, repository};
use super::shared;

/// The images that the catalogue has.
pub const IMAGES: [&str; 4] = ["base", "core", "init", "rag"];

/// A copy of the project with everything built into layouts.
#[derive(Debug)]
pub struct Obelisk {
    sandbox: Sandbox,
}

/// Builds what all tests look at: four images for amd64, base and init for arm64.
pub fn obelisk() -> &'static Obelisk {
    static OBELISK: OnceLock<Obelisk> = OnceLock::new();
    OBELISK.get_or_init(|| {
        // The lock may have to be resolved anew, where a mirror has moved on: that must not touch the repository's own.
        let sandbox = Sandbox::new();
        copy_project(&sandbox.work());
        let obelisk = Obelisk { sandbox };
        // Downloads are kept between runs. What is made of them is not: another engine made it.
        let downloads = shared::folder("downloads");
        obelisk.link(&downloads, obelisk.sandbox.cache());
        let amd64 = ["build", "--platform", "linux/amd64", "--output", "oci:dist"];
        let archives = ["--output", "docker-archive:docker.tar", "--output", "oci-archive:oci.tar"];
        let printed = obelisk.sandbox.imgbuild([&amd64[..], &archives].concat()).success();
        obelisk.link(obelisk.sandbox.cache(), &downloads);
        let names: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, IMAGES, "{printed}");
        obelisk
            .imgbuild(&["build", "base", "init", "--platform", "linux/arm64", "--output", "oci:dist-arm64"])
            .success();
        let both = ["build", "base", "--platform", "linux/amd64,linux/arm64", "--output", "oci:dist-both"];
        obelisk.imgbuild(&both).success();
        let init = ["build", "init", "--platform", "linux/amd64", "--output", "oci-archive:init.tar"];
        obelisk.imgbuild(&init).success();
        obelisk
    })
}

/// Copies what a build of this repository reads: definitions' files, the lock and the context.
pub fn copy_project(to: &Path) {
    outcome(Command::new("cp").arg("-a").arg(repository().join("images")).arg(to)).success();
}

impl Obelisk {
    /// The copy of the project.
    pub fn folder(&self) -> PathBuf {
        self.sandbox.work()
    }

    /// A file that building left.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Runs imgbuild in the copy of the project, with the cache that has everything.
    #[track_caller]
    pub fn imgbuild(&self, arguments: &[&str]) -> Outcome {
        self.sandbox.imgbuild(arguments)
    }

    /// The lock that they were built from.
    pub fn lock(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file("images/images.lock")).unwrap()).unwrap()
    }

    /// The wheels of an image for amd64: the lock's entries.
    pub fn wheels(&self, image: &str) -> Vec<Value> {
        let lock = self.lock();
        let sources = lock["python"].as_array().unwrap().iter();
        let of = sources.filter(|it| it["images"].as_array().unwrap().iter().any(|name| name == image));
        of.flat_map(|it| it["wheels"]["linux/amd64"].as_array().unwrap().clone()).collect()
    }

    /// Where a locked archive lies in the cache.
    pub fn blob(&self, archive: &Value) -> PathBuf {
        blob(self.sandbox.cache(), archive)
    }

    /// A sandbox with the cache of these images.
    pub fn sandbox(&self) -> Sandbox {
        Sandbox::sharing(self.sandbox.cache())
    }

    /// Links what the lock names for amd64 into a cache, and nothing else.
    pub fn seed(&self, cache: &Path) {
        self.link(self.sandbox.cache(), cache);
    }

    /// Links what the lock names for amd64 from one cache to another, as far as it is there.
    fn link(&self, from: &Path, to: &Path) {
        link_downloads(&self.lock(), &["linux/amd64"], from, to);
    }

    /// All images for amd64.
    pub fn layout(&self) -> Layout {
        Layout::open(&self.file("dist"))
    }
}

/// Links what a lock names for these platforms from one cache to another, as far as it is there, and nothing else.
pub fn link_downloads(lock: &Value, platforms: &[&str], from: &Path, to: &Path) {
    let of = |by_platform: &Value| -> Vec<Value> {
        platforms.iter().flat_map(|platform| by_platform[*platform].as_array().cloned().unwrap_or_default()).collect()
    };
    let wheels = lock["python"].as_array().unwrap().iter().flat_map(|it| of(&it["wheels"]));
    for archive in of(&lock["debian"]).into_iter().chain(wheels) {
        let (from, to) = (blob(from, &archive), blob(to, &archive));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if from.exists() && !to.exists() {
            fs::hard_link(from, to).unwrap();
        }
    }
}

fn blob(cache: &Path, archive: &Value) -> PathBuf {
    let digest = archive["sha256"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    cache.join("blobs-v1").join(&digest[..2]).join(digest)
}

/// The engine with all four images of amd64 loaded, as `base:latest` and so on.
pub fn loaded() -> &'static Engine {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        let said = engine().load(&obelisk().file("docker.tar"), "base:latest");
        for name in IMAGES {
            assert!(said.contains(&format!("Loaded image: {name}:latest")), "{said}");
        }
    });
    engine()
}
