//! Wheels from an index of the test's own, through lock and build.

use std::fs;

use layers::{Catalogue, Stage, python};

use crate::support::layout::Layout;
use crate::support::run::{Outcome, Sandbox, outcome};
use crate::support::wheels::{Index, entry, poetry_lock};

/// An index, and a catalogue of one image whose wheels `poetry.lock` names.
struct Wheels {
    sandbox: Sandbox,
    index: Index,
}

impl Wheels {
    fn new() -> Wheels {
        let sandbox = Sandbox::new();
        let index = Index::new(&sandbox.path().join("index"));
        let stage = Stage::scratch().layer(python(layers::poetry_lock("poetry.lock")));
        let plan = Catalogue::new("wheels").with("app", stage.image()).plan().to_json();
        sandbox.write("plan.json", plan);
        Wheels { sandbox, index }
    }

    /// Puts a wheel onto the index; gives its entry in poetry.lock.
    fn wheel(&self, name: &str, files: &[&str]) -> String {
        self.index.wheel(name, "1.0", files)
    }

    fn run(&self, words: &[&str]) -> Outcome {
        let mut command = self.sandbox.command(["--catalogue", "plan.json"]);
        self.index.configure(command.args(words));
        outcome(&mut command)
    }
}

#[test]
fn a_file_that_two_wheels_install_alike_is_there_once() {
    let index = Wheels::new();
    let shared = "space/__init__.py=# of both\n";
    let one = index.wheel("one", &["space/one.py=1\n", shared]);
    let two = index.wheel("two", &["space/two.py=2\n", shared]);
    index.sandbox.write("poetry.lock", poetry_lock(&[one, two]));
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
    let index = Wheels::new();
    let one = index.wheel("one", &["tests/__init__.py=1\n"]);
    let two = index.wheel("two", &["tests/__init__.py=2\n"]);
    index.sandbox.write("poetry.lock", poetry_lock(&[one, two]));
    index.run(&["lock"]).success();
    let path = "/opt/venv/lib/python3.13/site-packages/tests/__init__.py";
    index.run(&["build"]).failure(1, &["`one-1.0", "`two-1.0", path, "`.without([..])`"]);
    assert!(!index.sandbox.work().join("dist").exists());
}

#[test]
fn a_context_with_a_package_that_has_only_an_sdist_is_refused_by_name() {
    let index = Wheels::new();
    let one = index.wheel("one", &["one.py=1\n"]);
    index.sandbox.write("poetry.lock", poetry_lock(std::slice::from_ref(&one)));
    index.run(&["lock"]).success();
    let sdist = entry("jsmin", "1.0", "jsmin-1.0.tar.gz", &"a".repeat(64));
    index.sandbox.write("other/poetry.lock", poetry_lock(&[sdist, one.clone()]));
    let said = ["jsmin 1.0", "only an sdist, `jsmin-1.0.tar.gz`", "linux/amd64", "ways out"];
    index.run(&["build", "--context", "other", "--platform", "linux/amd64"]).failure(1, &said);
    assert!(!index.sandbox.work().join("other/imgbuild.lock").exists());
    // What is not recorded is not built with `--locked`, and is recorded without.
    let two = index.wheel("two", &["two.py=2\n"]);
    index.sandbox.write("other/poetry.lock", poetry_lock(&[one, two]));
    index.run(&["build", "--context", "other", "--locked"]).failure(1, &["imgbuild.lock", "without `--locked`"]);
    index.run(&["build", "--context", "other"]).success();
    let recorded = fs::read_to_string(index.sandbox.work().join("other/imgbuild.lock")).unwrap();
    assert!(recorded.contains("two-1.0-py3-none-any.whl"), "{recorded}");
    index.run(&["build", "--context", "other", "--locked"]).success();
}
