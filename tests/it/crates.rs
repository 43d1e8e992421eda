//! The crates: which may know which, how much a catalogue has to compile, and that a stranger's catalogue works.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::layout::{Layout, applied};
use crate::support::run::{Sandbox, outcome};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).parse().unwrap()
}

/// Names of our own crates that a manifest depends on, by any kind of dependency.
fn inner_dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let ours = ["layers", "cache", "images", "deployments"];
    let mut found = BTreeSet::new();
    let mut look = |table: &toml::Table| {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            if let Some(table) = table.get(kind).and_then(toml::Value::as_table) {
                found.extend(table.keys().filter(|name| ours.contains(&name.as_str())).cloned());
            }
        }
    };
    look(manifest);
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        targets.values().filter_map(toml::Value::as_table).for_each(&mut look);
    }
    found
}

/// Distinct crates that `cargo tree` lists, the first of them itself.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--edges", "normal,build"])
        .args(["--format", "{p}"])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_depend_only_downwards() {
    let workspace = manifest(".");
    let members: BTreeSet<&str> =
        workspace["workspace"]["members"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("layers", [].as_slice()),
        ("images", ["layers"].as_slice()),
        ("images/stack", ["images", "layers"].as_slice()),
        ("cache", ["layers"].as_slice()),
        ("deployments", ["layers"].as_slice()),
    ]);
    for member in members {
        let allowed = allowed.get(member).unwrap_or_else(|| panic!("{member} has no place in the order of crates"));
        for found in inner_dependencies(&manifest(member)) {
            assert!(allowed.contains(&found.as_str()), "{member} must not depend on {found}");
        }
    }
}

#[test]
fn a_catalogue_depends_on_the_words_alone() {
    for folder in ["images", "examples/hello-catalogue"] {
        let manifest = manifest(folder);
        let names: Vec<&String> = manifest["dependencies"].as_table().unwrap().keys().collect();
        assert_eq!(names, ["layers"], "{folder}");
        assert!(manifest.get("build-dependencies").is_none(), "{folder}");
    }
    // Compiling them must stay a matter of seconds.
    let words = tree(&["--package", "imgbuild-layers", "--no-default-features"]);
    assert!(words.contains("serde_json"), "{words:?}");
    assert!(words.len() <= 24, "{} crates below the words: {words:?}", words.len());
    for heavy in ["zstd", "liblzma", "flate2", "tokio", "reqwest", "clap"] {
        assert!(!words.contains(heavy), "the words alone need {heavy}");
    }
    let images = tree(&["--package", "imgbuild-images"]);
    assert_eq!(images.difference(&words).map(String::as_str).collect::<Vec<_>>(), ["imgbuild-images"]);
}

/// Builds the example as a stranger would and gives its plan.
fn example_plan() -> layers::Plan {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hello-catalogue");
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--manifest-path", "examples/hello-catalogue/Cargo.toml"])
        .env("CARGO_TARGET_DIR", target)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    layers::Plan::from_json(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

#[test]
fn a_catalogue_outside_the_workspace_prints_its_plan() {
    let plan = example_plan();
    assert_eq!(plan.catalogue, "hello");
    let labels = |image: &str| -> Vec<String> {
        plan.steps(plan.images[image].stage)
            .into_iter()
            .filter_map(|(_, stage)| match &stage.step {
                layers::StageStep::Layer { source, .. } => Some(source.label()),
                _ => None,
            })
            .collect()
    };
    let hello = [
        "dir /srv",
        "take /assets/www -> /srv/www",
        "link /srv/htdocs -> www",
        "inline /etc/passwd",
        "inline /etc/group",
        "dir /srv/upload",
    ];
    assert_eq!(labels("hello"), hello);
    assert_eq!(labels("greeting"), [hello.as_slice(), &["inline /srv/greeting.txt"]].concat());
}

#[test]
fn the_engine_builds_a_catalogue_from_outside_the_workspace() {
    let sandbox = Sandbox::new();
    sandbox.write("hello.json", example_plan().to_json());
    sandbox.imgbuild(["--catalogue", "hello.json", "lock"]).success();
    let context = root().join("examples/hello-catalogue/context");
    let mut command = sandbox.command(["--catalogue", "hello.json", "build", "--context"]);
    let said = outcome(command.arg(context)).success();
    let layout = Layout::open(&sandbox.work().join("dist"));
    let images: Vec<_> = ["greeting", "hello"].map(|name| layout.image(name).remove(0)).into();
    let lines = |at: usize, name: &str| format!("{name} {}\n", images[at].digest);
    assert_eq!(said, lines(0, "greeting") + &lines(1, "hello"));
    assert_eq!(images[1].faults(), [""; 0]);
    let held: Vec<String> = applied(&images[0].layers).into_keys().collect();
    let expected = [
        "etc",
        "etc/group",
        "etc/passwd",
        "srv",
        "srv/greeting.txt",
        "srv/htdocs",
        "srv/upload",
        "srv/www",
        "srv/www/index.html",
        "srv/www/style.css",
    ];
    assert_eq!(held, expected);
}

#[test]
fn the_program_needs_no_shared_library_but_the_c_librarys() {
    let bytes = std::fs::read(env!("CARGO_BIN_EXE_imgbuild")).unwrap();
    let facts = imgbuild::debian::elf::facts(&bytes).expect("the program is an ELF file");
    let of_libc =
        |name: &&String| ["libc.so.", "libm.so.", "ld-linux-"].iter().any(|library| name.starts_with(library));
    let others: Vec<&String> = facts.needed.iter().filter(|name| !of_libc(name)).collect();
    assert!(facts.needed.iter().any(|name| name.starts_with("libc.so.")), "{:?}", facts.needed);
    assert_eq!(others, Vec::<&String>::new());
}
