//! `imgbuild mirror`: everything that a lock names, kept in a registry, and builds that need nothing else.

use std::process::Command;

use layers::source::{fetch, pylock, python};
use layers::{Catalogue, Digest, Stage, debian, path};

use crate::registry::registry;
use crate::registry_real::Real;
use crate::support::cache::bucket;
use crate::support::registry::Mounting;
use crate::support::run::{Outcome, Sandbox, outcome, tool};
use crate::support::tiny::{Packaged, now};

/// Writes a wheel of one module.
const WHEEL: &str = r#"
import base64, hashlib, sys, zipfile
files = {
    "thing.py": "x = 1\n",
    "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
    "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
record = ""
for name, text in files.items():
    hash = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    record += f"{name},sha256={hash},{len(text)}\n"
files["thing-1.0.dist-info/RECORD"] = record + "thing-1.0.dist-info/RECORD,,\n"
with zipfile.ZipFile(sys.argv[1], "w") as out:
    for name, text in files.items():
        out.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), text)
"#;

/// A catalogue that takes packages, a wheel and a file from outside, locked; and the servers that have them.
struct Outside {
    packaged: Packaged,
}

impl Outside {
    fn new() -> Outside {
        let packaged = Packaged::new(now() - 3600);
        let root = packaged.sandbox.path().join("mirror");
        let (simple, files) = (root.join("simple/thing"), root.join("files"));
        std::fs::create_dir_all(&simple).unwrap();
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("tool"), "a tool\n").unwrap();
        let wheel = files.join("thing-1.0-py3-none-any.whl");
        tool("python3", ["-c".as_ref(), WHEEL.as_ref(), wheel.as_os_str()]);
        let bytes = std::fs::read(&wheel).unwrap();
        let hash = Digest::of(&bytes).hex();
        let page =
            format!("<a href=\"../../files/thing-1.0-py3-none-any.whl#sha256={hash}\">thing-1.0-py3-none-any.whl</a>");
        std::fs::write(simple.join("index.html"), format!("<html>{page}</html>")).unwrap();
        packaged.sandbox.write(
            "context/pylock.toml",
            format!(
                "lock-version = \"1.0\"\ncreated-by = \"a test\"\n[[packages]]\nname = \"thing\"\nversion = \"1.0\"\n\
                 wheels = [{{ name = \"thing-1.0-py3-none-any.whl\", size = {}, hashes = {{ sha256 = \"{hash}\" }} }}]\n",
                bytes.len()
            ),
        );
        let stage = Stage::scratch().layer(debian(["app"])).layer(python(pylock("pylock.toml"))).layer(fetch(
            format!("{}/files/tool", packaged.files.url()),
            Digest::of(b"a tool\n"),
            path!("/opt/tool"),
        ));
        packaged.sandbox.write("plan.json", Catalogue::new("outside").with("all", stage.image()).plan().to_json());
        let outside = Outside { packaged };
        outside.run(&outside.packaged.sandbox, &["lock"], "").success();
        outside
    }

    fn command(&self, sandbox: &Sandbox, words: &[&str], mirrors: &str) -> Command {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
        command.args(words).env("IMGBUILD_MIRROR_REGISTRIES", mirrors);
        self.packaged.configure(&mut command);
        let index = format!("{}/simple", self.packaged.files.url());
        command
            .env("IMGBUILD_PYTHON_INDEX", index)
            .env("UV_INDEX", "")
            .env("UV_EXTRA_INDEX_URL", "")
            .env("PIP_EXTRA_INDEX_URL", "");
        command
    }

    fn run(&self, sandbox: &Sandbox, words: &[&str], mirrors: &str) -> Outcome {
        outcome(&mut self.command(sandbox, words, mirrors))
    }

    fn build(&self, sandbox: &Sandbox, mirrors: &str) -> Outcome {
        self.run(sandbox, &["build", "--platform", "amd64,arm64", "--locked"], mirrors)
    }

    /// Another machine with the same checkout and nothing else.
    fn elsewhere(&self) -> Sandbox {
        let sandbox = Sandbox::new();
        for name in ["plan.json", "images.lock", "context"] {
            let from = self.packaged.sandbox.work().join(name);
            tool("cp", ["-r".as_ref(), from.as_os_str(), sandbox.work().as_os_str()]);
        }
        sandbox
    }

    /// From now on no package mirror, no index and no server of files answers.
    fn cut_off(&self) {
        self.packaged.files.stop();
    }
}

#[test]
fn slow_a_cold_build_needs_nothing_but_the_registry() {
    let registry = registry(|_| {});
    let outside = Outside::new();
    let here = &outside.packaged.sandbox;
    let inputs = format!("{}/team/inputs", registry.host());
    let said = outside.run(here, &["mirror", "push", &format!("{inputs}:latest")], "").success();
    assert!(said.starts_with(&format!("{inputs}:lock-")) && said.contains(" 5 archives, "), "{said}");
    assert!(said.ends_with(", 5 brought\n"), "{said}");
    let tags: Vec<String> = registry.state().repos["team/inputs"].tags.keys().cloned().collect();
    assert_eq!(tags.len(), 2, "{tags:?}");
    registry.assert_whole();
    // Every archive is the blob of the digest that the lock names.
    let lock: serde_json::Value =
        serde_json::from_slice(&std::fs::read(here.work().join("images.lock")).unwrap()).unwrap();
    let wheel = lock["python"][0]["wheels"]["linux/amd64"][0]["sha256"].as_str().unwrap();
    assert!(registry.state().blobs.contains_key(wheel));
    // Again: one question for the plan, one for the push, and the tags.
    registry.clear_log();
    let again = outside.run(here, &["mirror", "push", &format!("{inputs}:latest")], "").success();
    assert!(again.ends_with(", 0 brought\n"), "{again}");
    assert_eq!(registry.requests("").len(), 4);
    outside.run(here, &["mirror", "check", &inputs], "").success();
    let expected = outside.build(here, "").success();

    outside.cut_off();
    let without = outside.elsewhere();
    outside.build(&without, "").failure(1, &[]);
    let cold = outside.elsewhere();
    let built = outside.build(&cold, &format!("{}/team/nothing {inputs}", registry.host()));
    assert_eq!(
        built.stderr.matches("archives come from the mirrors of `mirror.registries`").count(),
        1,
        "{}",
        built.stderr
    );
    assert_eq!(built.success(), expected);
    // By hand, and then without any network at all.
    let pulled = outside.elsewhere();
    let said = outside.run(&pulled, &["mirror", "pull", &inputs], "").success();
    assert!(said.ends_with(", 5 brought\n"), "{said}");
    let offline = outside.run(&pulled, &["--offline", "build", "--platform", "amd64,arm64", "--locked"], "").success();
    assert_eq!(offline, expected);
}

#[test]
fn slow_a_mirror_that_lacks_something_or_may_lose_it_is_told() {
    let registry = registry(|_| {});
    let outside = Outside::new();
    let here = &outside.packaged.sandbox;
    let inputs = format!("{}/inputs", registry.host());
    outside.run(here, &["mirror", "check", &inputs], "").failure(1, &["lacks 5 of the lock's archives", "mirror push"]);
    let said = outside.run(here, &["mirror", "push", &inputs], "").success();
    let tag = said.split(' ').next().unwrap().rsplit(':').next().unwrap().to_owned();
    let tool = Digest::of(b"a tool\n").to_string();
    registry.state().repos.get_mut("inputs").unwrap().blobs.remove(&tool);
    outside.run(here, &["mirror", "check", &inputs], "").failure(1, &["lacks 1 of the lock's archives: tool"]);
    outside.cut_off();
    let elsewhere = outside.elsewhere();
    outside.run(&elsewhere, &["mirror", "pull", &inputs], "").failure(1, &["lacks 1 of the lock's archives: tool"]);
    outside.build(&elsewhere, &inputs).failure(1, &["tool"]);
    registry.state().repos.get_mut("inputs").unwrap().blobs.insert(tool);
    registry.state().repos.get_mut("inputs").unwrap().tags.remove(&tag);
    outside.run(here, &["mirror", "check", &inputs], "").failure(1, &["5 of them could be collected", &tag]);
    outside
        .run(here, &["mirror", "push", &format!("{inputs}@{}", Digest::of(b"x"))], "")
        .failure(2, &["names a digest"]);
    outside.run(here, &["mirror", "push", "not a reference"], "").failure(2, &["is not an image reference"]);
    outside.build(here, "UPPER/case").failure(2, &["IMGBUILD_MIRROR_REGISTRIES"]);
}

#[test]
fn archives_that_are_not_mounted_after_all_are_fetched_and_sent() {
    let registry = registry(|_| {});
    let outside = Outside::new();
    let here = &outside.packaged.sandbox;
    let (first, second) = (format!("{}/inputs", registry.host()), format!("{}/others", registry.host()));
    outside.run(here, &["mirror", "push", &first], "").success();
    // Here they are gone, and what is remembered is that the first repository has them.
    let tidy = || {
        for blob in bucket(here.cache(), "blobs-v1") {
            std::fs::remove_file(blob).unwrap();
        }
    };
    tidy();
    registry.clear_log();
    let third = format!("{}/third", registry.host());
    let said = outside.run(here, &["mirror", "push", &third], "").success();
    assert!(said.ends_with(", 0 brought\n"), "all of them are mounted: {said}");
    registry.state().kind.mounting = Mounting::Never;
    tidy();
    outside.run(here, &["mirror", "push", &second], "").success();
    outside.run(here, &["mirror", "check", &second], "").success();
    registry.assert_whole();
}

#[test]
fn real_debians_registry_keeps_inputs_through_its_collection_of_garbage() {
    let real = Real::start("");
    let outside = Outside::new();
    let here = &outside.packaged.sandbox;
    let inputs = format!("{}/team/inputs", real.host());
    outside.run(here, &["mirror", "push", &inputs], "").success();
    let config = real.folder.path().join("config.yml");
    let said = tool("docker-registry", ["garbage-collect".as_ref(), config.as_os_str()]);
    outside.run(here, &["mirror", "check", &inputs], "").success();
    outside.cut_off();
    let cold = outside.elsewhere();
    let built = outside.build(&cold, &inputs).success();
    assert_eq!(built, outside.build(here, "").success(), "{said}");
}
