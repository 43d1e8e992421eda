//! Byte-code by an interpreter from packages that the test makes of this machine's own Python.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use layers::{Catalogue, Modules, Stage, debian, python};
use serde_json::Value;

use crate::support::debs::{Deb, Repository};
use crate::support::layout::Layout;
use crate::support::random::Random;
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::server::Files;
use crate::support::tiny::now;
use crate::support::wheels::{Index, poetry_lock};

/// A mirror with an interpreter, an index with wheels, and a catalogue of one image with both.
struct Project {
    sandbox: Sandbox,
    repository: Repository,
    mirror: Files,
    index: Index,
    version: String,
}

/// What a build told.
#[derive(Debug, PartialEq)]
struct Built {
    digest: String,
    /// Modules compiled, and those taken over.
    counts: Vec<(u64, u64)>,
}

impl Project {
    fn new(modules: Modules) -> Project {
        let sandbox = Sandbox::new();
        let root = sandbox.path().join("mirror");
        let repository = Repository::new(&root);
        let (version, loader) = interpreter(&repository.pool());
        repository.publish(&["amd64", "arm64"], now());
        let index = Index::new(&sandbox.path().join("index"));
        let stage = Stage::scratch()
            .layer(debian([format!("python{version}-minimal")]).allow_missing(loader))
            .layer(python(layers::poetry_lock("poetry.lock")).compile_bytecode(modules));
        let plan = Catalogue::new("compiled").with("app", stage.image()).plan().to_json();
        sandbox.write("plan.json", plan.replace("\"3.13\"", &format!("\"{version}\"")));
        Project { sandbox, mirror: Files::serve(&root), repository, index, version }
    }

    fn run(&self, sandbox: &Sandbox, words: &[&str]) -> (String, String) {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--progress", "json"]);
        self.index.configure(command.args(words));
        command.env("IMGBUILD_DEBIAN_MIRROR", self.mirror.url());
        command.env("IMGBUILD_DEBIAN_SECURITY_MIRROR", self.mirror.url());
        command.env("IMGBUILD_DEBIAN_KEYRING", self.repository.keyring());
        let done = outcome(&mut command);
        (done.clone().success(), done.stderr)
    }

    /// Locks a release of the wheel `pack` with these modules.
    fn release(&self, version: &str, modules: &[(String, String)]) {
        let files: Vec<String> = modules.iter().map(|(name, text)| format!("pack/{name}.py={text}")).collect();
        self.sandbox.write("poetry.lock", poetry_lock(&[self.index.wheel("pack", version, &files)]));
        self.run(&self.sandbox, &["lock"]);
    }

    fn build(&self) -> Built {
        self.build_in(&self.sandbox, "2")
    }

    /// The same project on a machine that has built nothing.
    fn build_anew(&self, jobs: &str) -> Built {
        let sandbox = Sandbox::new();
        for file in ["plan.json", "poetry.lock", "images.lock"] {
            sandbox.write(file, fs::read(self.sandbox.work().join(file)).unwrap());
        }
        self.build_in(&sandbox, jobs)
    }

    fn build_in(&self, sandbox: &Sandbox, jobs: &str) -> Built {
        let host = tool("dpkg", ["--print-architecture"]);
        let (printed, said) = self.run(sandbox, &["build", "--locked", "--platform", host.trim(), "--jobs", jobs]);
        let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let counts = events.filter(|event| event["event"] == "byte-code");
        let counts = counts.map(|event| (event["compiled"].as_u64().unwrap(), event["taken"].as_u64().unwrap()));
        Built { digest: printed, counts: counts.collect() }
    }

    /// The members of the built image below `pack/`, each with its digest.
    fn pack(&self) -> Vec<(String, String)> {
        let image = &Layout::open(&self.sandbox.work().join("dist")).image("app")[0];
        let members = image.layers.iter().flat_map(|layer| layer.members());
        let mut held: Vec<(String, String)> = members
            .filter_map(|it| {
                let name = it.path.split_once("/pack/")?.1.to_owned();
                (!name.is_empty() && !name.ends_with('/')).then_some((name, it.sha256))
            })
            .collect();
        held.sort();
        held
    }

    /// The blob in the cache that holds the wheel as it is installed.
    fn fragment(&self) -> PathBuf {
        let ledger = tool("grep", ["-rlE", "^modules ", self.sandbox.cache().join("ledger-v1").to_str().unwrap()]);
        let record = fs::read_to_string(ledger.trim()).unwrap();
        let digest = record.split("\"fragment\":\"sha256:").nth(1).unwrap()[..64].to_owned();
        self.sandbox.cache().join("blobs-v1").join(&digest[..2]).join(&digest)
    }
}

/// Packages with this machine's Python and what it is linked with; gives its minor version, such as `3.13`, and the
/// loader that it names.
fn interpreter(pool: &Path) -> (String, String) {
    let program = fs::canonicalize("/usr/bin/python3").unwrap_or_else(|error| {
        panic!("/usr/bin/python3 is not there ({error}): install Debian's `python3-minimal`");
    });
    let version = program.file_name().unwrap().to_str().unwrap().strip_prefix("python").unwrap().to_owned();
    let read = |path: &Path| fs::read(path).unwrap();
    let release = format!("{version}.1-1");
    let minimal = Deb::new(&format!("python{version}-minimal"), &release)
        .field(&format!("Depends: libpython{version}-minimal, libc6, libexpat1, zlib1g"))
        .file(&format!("/usr/bin/python{version}"), 0o755, read(&program));
    minimal.build(pool);
    let mut library = Deb::new(&format!("libpython{version}-minimal"), &release);
    let root = format!("/usr/lib/python{version}");
    library = library.file(&format!("{root}/lib-dynload/empty"), 0o644, "");
    for folder in [root.clone(), format!("{root}/encodings")] {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() && !path.is_symlink() {
                library = library.file(path.to_str().unwrap(), 0o644, read(&path));
            }
        }
    }
    library.build(pool);
    // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)`, and the loader without an arrow.
    let (mut libc, mut loader) = (Deb::new("libc6", "1.0-1"), String::new());
    for line in tool("ldd", [program.to_str().unwrap()]).lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        if !line.contains("=>") {
            loader = path.to_owned();
        }
        let path = fs::canonicalize(path).unwrap();
        let name = line.split_whitespace().next().unwrap().rsplit('/').next().unwrap();
        let folder = path.parent().unwrap().to_str().unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        libc = libc.file(&format!("{folder}/{name}"), mode, read(&path));
    }
    libc.build(pool);
    for name in ["libexpat1", "zlib1g"] {
        Deb::new(name, "1.0-1").build(pool);
    }
    (version, loader)
}

/// Modules that exercise what byte-code holds, one that does not compile, and one in another encoding.
fn modules(count: usize) -> Vec<(String, String)> {
    let module = |at: usize| {
        let name = format!("m{at:03}");
        let text =
            format!("NAMES = frozenset({{'a', 'b{at}'}})\ndef f(x, *, y={at}):\n    return (x, y, '{name}', 1e{at})\n");
        (name, text)
    };
    let mut all: Vec<(String, String)> = (0..count).map(module).collect();
    all.push(("template".into(), "class {{ name }}:\n".into()));
    all.push(("windows".into(), "# -*- coding: cp1252 -*-\nx = 'y'\n".into()));
    all
}

#[test]
fn slow_modules_that_are_nested_too_deeply_are_left_out() {
    let project = Project::new(Modules::All);
    let nested = |depth| format!("x = {}1\n", "lambda: ".repeat(depth));
    // More than is followed here, and more than CPython writes.
    let all = [("plain", "x = 1\n".to_owned()), ("deep", nested(900)), ("deeper", nested(1100))];
    project.release("1.0", &all.map(|(name, text)| (name.to_owned(), text)));
    assert_eq!(project.build().counts, [(3, 0)]);
    assert_eq!(project.pack().len(), 3 + 1);
}

#[test]
fn slow_a_new_release_compiles_only_the_modules_that_changed_and_has_the_bytes_of_one_that_compiled_all() {
    let project = Project::new(Modules::All);
    let mut all = modules(60);
    project.release("1.0", &all);
    let first = project.build();
    assert_eq!(first.counts, [(62, 0)]);
    let before = project.pack();
    assert_eq!(before.len(), 62 + 61, "a template has no byte-code");
    assert_eq!(project.build().counts, [], "nothing is converted again");

    all[7].1.push_str("changed = True\n");
    all.remove(20);
    all.push(("new".into(), "import sys\n".into()));
    project.release("1.1", &all);
    let next = project.build();
    assert_eq!(next.counts, [(3, 59)], "the changed one, the new one and the template");
    let after = project.pack();
    let differ: Vec<&str> = after.iter().filter(|it| !before.contains(it)).map(|(name, _)| name.as_str()).collect();
    let pyc = |name: &str| format!("__pycache__/{name}.cpython-{}.pyc", project.version.replace('.', ""));
    assert_eq!(differ, [&pyc("m007"), &pyc("new"), "m007.py", "new.py"]);
    for jobs in ["1", "8"] {
        let anew = project.build_anew(jobs);
        assert_eq!(anew.counts, [(62, 0)]);
        assert_eq!(anew.digest, next.digest, "{jobs}");
    }
    project.run(&project.sandbox, &["cache", "verify"]);

    // Back again: it is known; and what comes then stands on what was built last.
    all.pop();
    project.release("1.2", &all);
    assert_eq!(project.build().counts, [(1, 60)]);
}

#[test]
fn slow_byte_code_that_rotted_or_was_collected_is_made_again() {
    let project = Project::new(Modules::All);
    project.release("1.0", &modules(200));
    project.build();
    project.release("1.1", &modules(201));
    let expected = project.build_anew("2").digest;

    let fragment = project.fragment();
    let good = fs::read(&fragment).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle..middle + 8].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::remove_file(&fragment).unwrap();
    fs::write(&fragment, &bad).unwrap();
    let built = project.build();
    assert_eq!(built.digest, expected, "damaged");
    assert_eq!(built.counts, [(203, 0)], "what cannot be inflated is worth nothing");

    project.release("1.2", &modules(202));
    let expected = project.build_anew("2").digest;
    fs::remove_file(project.fragment()).unwrap();
    let built = project.build();
    assert_eq!(built.digest, expected, "collected");
    assert_eq!(built.counts, [(204, 0)]);
}

#[test]
fn slow_modules_that_were_not_wanted_before_are_compiled_when_they_are() {
    let project = Project::new(Modules::imported_by(["pack.one"]));
    let texts = [("__init__", ""), ("one", "import pack.two\n"), ("two", ""), ("three", "")];
    let mut all: Vec<(String, String)> = texts.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    project.release("1.0", &all);
    assert_eq!(project.build().counts, [(3, 0)]);
    all[2].1 = "import pack.three\n".into();
    project.release("1.1", &all);
    let next = project.build();
    assert_eq!(next.counts, [(2, 2)], "`two` changed, and `three` is imported now");
    assert_eq!(project.build_anew("1").digest, next.digest);
}

#[test]
fn slow_byte_code_of_imports_is_no_hit_where_another_wheel_changed() {
    let project = Project::new(Modules::imported_by(["main"]));
    let large = format!("@{}", project.sandbox.write("large", Random::of(1).bytes(1_300_000)).display());
    let wheel = |name: &str, file: &str| {
        project.index.wheel(name, "1.0", &[file, "pack/two.py=", &format!("{name}.bin={large}")])
    };
    let lock = |main: &str| {
        let pack = wheel("pack", "pack/one.py=1\n");
        let main = project.index.wheel("main", "1.0", &[format!("main.py={main}"), format!("main.bin={large}")]);
        project.sandbox.write("poetry.lock", poetry_lock(&[pack, main]));
        project.run(&project.sandbox, &["lock"]);
    };
    let layers = || {
        let image = &Layout::open(&project.sandbox.work().join("dist")).image("app")[0];
        image.layers.iter().map(|layer| layer.digest.clone()).collect::<Vec<_>>()
    };
    lock("import pack.one\n");
    project.build();
    let before = layers();
    lock("import pack.two\n");
    let host = tool("dpkg", ["--print-architecture"]);
    let (said, _) = project.run(&project.sandbox, &["explain", "--platform", host.trim()]);
    let why = "it may be made anew: its byte-code is what other wheels import of it, and `python main` changed";
    assert!(said.contains(&format!("  miss  python pack: {why}\n")), "{said}");
    assert!(said.contains("  miss  python main: main 1.0 has other bytes\n"), "{said}");
    project.build();
    let after = layers();
    let anew = |at: usize| !before.contains(&after[after.len() - at]);
    assert!(anew(1) && anew(2), "both layers are others");
}
