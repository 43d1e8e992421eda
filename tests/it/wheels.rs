//! Wheels from an index of the test's own, through lock and build.

use std::fs;
use std::process::Command;

use layers::{Catalogue, Digest, Stage, poetry_lock, python};

use crate::support::layout::Layout;
use crate::support::run::{Outcome, Sandbox, outcome};
use crate::support::server::Files;

/// Writes a wheel of these files, `path=content`, as its RECORD lists them.
const WHEEL: &str = r#"
import base64, hashlib, sys, zipfile
folder, name, *files = sys.argv[1:]
info = f"{name}-1.0.dist-info"
held = [file.split("=", 1) for file in files]
held.append((f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"))
held.append((f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"))
record = ""
with zipfile.ZipFile(f"{folder}/{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    for path, content in held:
        wheel.writestr(path, content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
"#;

/// An index on loopback, and a catalogue of one image whose wheels `poetry.lock` names.
struct Index {
    sandbox: Sandbox,
    files: Files,
}

impl Index {
    fn new() -> Index {
        let sandbox = Sandbox::new();
        fs::create_dir_all(sandbox.path().join("index")).unwrap();
        let files = Files::serve(&sandbox.path().join("index"));
        let stage = Stage::scratch().layer(python(poetry_lock("poetry.lock")));
        let plan = Catalogue::new("wheels").with("app", stage.image()).plan().to_json();
        sandbox.write("plan.json", plan);
        Index { sandbox, files }
    }

    /// Puts a wheel onto the index; gives its entry in poetry.lock.
    fn wheel(&self, name: &str, files: &[&str]) -> String {
        let folder = self.sandbox.path().join("index").join(name);
        fs::create_dir_all(&folder).unwrap();
        outcome(Command::new("python3").args(["-c", WHEEL]).arg(&folder).arg(name).args(files)).success();
        let file = format!("{name}-1.0-py3-none-any.whl");
        let hash = Digest::of(&fs::read(folder.join(&file)).unwrap()).hex();
        fs::write(folder.join("index.html"), format!("<a href=\"{file}#sha256={hash}\">{file}</a>")).unwrap();
        entry(name, &file, &hash)
    }

    fn run(&self, words: &[&str]) -> Outcome {
        let mut command = self.sandbox.command(["--catalogue", "plan.json"]);
        command.args(words).env("UV_INDEX_URL", self.files.url()).env("UV_DEFAULT_INDEX", self.files.url());
        outcome(command.env("NO_PROXY", "127.0.0.1"))
    }
}

fn entry(name: &str, file: &str, hash: &str) -> String {
    format!(
        "[[package]]\nname = \"{name}\"\nversion = \"1.0\"\ndescription = \"\"\noptional = false\n\
         python-versions = \">=3.8\"\ngroups = [\"main\"]\nfiles = [{{file = \"{file}\", hash = \"sha256:{hash}\"}}]\n\n"
    )
}

fn lock(entries: &[String]) -> String {
    let end = "[metadata]\nlock-version = \"2.1\"\npython-versions = \">=3.13\"\ncontent-hash = \"0\"\n";
    entries.concat() + end
}

#[test]
fn a_file_that_two_wheels_install_alike_is_there_once() {
    let index = Index::new();
    let shared = "space/__init__.py=# of both\n";
    let one = index.wheel("one", &["space/one.py=1\n", shared]);
    let two = index.wheel("two", &["space/two.py=2\n", shared]);
    index.sandbox.write("poetry.lock", lock(&[one, two]));
    index.run(&["lock"]).success();
    index.run(&["build"]).success();
    let image = &Layout::open(&index.sandbox.work().join("dist")).image("app")[0];
    let mut held: Vec<String> =
        image.layers.iter().flat_map(|layer| layer.members()).map(|member| member.path).collect();
    held.retain(|path| path.contains("/space/") && !path.ends_with('/'));
    held.sort();
    let site = "opt/venv/lib/python3.13/site-packages/space";
    let expected = ["__init__.py", "one.py", "two.py"].map(|name| format!("{site}/{name}"));
    assert_eq!(held, expected);
}

#[test]
fn files_that_two_wheels_install_differently_are_refused() {
    let index = Index::new();
    let one = index.wheel("one", &["tests/__init__.py=1\n"]);
    let two = index.wheel("two", &["tests/__init__.py=2\n"]);
    index.sandbox.write("poetry.lock", lock(&[one, two]));
    index.run(&["lock"]).success();
    let path = "/opt/venv/lib/python3.13/site-packages/tests/__init__.py";
    index.run(&["build"]).failure(1, &["`one-1.0", "`two-1.0", path, "`.without([..])`"]);
    assert!(!index.sandbox.work().join("dist").exists());
}

#[test]
fn a_context_with_a_package_that_has_only_an_sdist_is_refused_by_name() {
    let index = Index::new();
    let one = index.wheel("one", &["one.py=1\n"]);
    index.sandbox.write("poetry.lock", lock(std::slice::from_ref(&one)));
    index.run(&["lock"]).success();
    let sdist = entry("jsmin", "jsmin-1.0.tar.gz", &"a".repeat(64));
    index.sandbox.write("other/poetry.lock", lock(&[sdist, one.clone()]));
    let said = ["jsmin 1.0", "only an sdist, `jsmin-1.0.tar.gz`", "linux/amd64", "ways out"];
    index.run(&["build", "--context", "other", "--platform", "linux/amd64"]).failure(1, &said);
    assert!(!index.sandbox.work().join("other/imgbuild.lock").exists());
    // What is not recorded is not built with `--locked`, and is recorded without.
    let two = index.wheel("two", &["two.py=2\n"]);
    index.sandbox.write("other/poetry.lock", lock(&[one, two]));
    index.run(&["build", "--context", "other", "--locked"]).failure(1, &["imgbuild.lock", "without `--locked`"]);
    index.run(&["build", "--context", "other"]).success();
    let recorded = fs::read_to_string(index.sandbox.work().join("other/imgbuild.lock")).unwrap();
    assert!(recorded.contains("two-1.0-py3-none-any.whl"), "{recorded}");
    index.run(&["build", "--context", "other", "--locked"]).success();
}
