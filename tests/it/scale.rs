//! Large contexts, locks and layers. A copy is divided into parts, and a change is one of its own part.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use layers::lock::Lock;
use layers::source::{files, python};
use layers::{Catalogue, Digest, Stage, path};

use crate::support::cache::bucket;
use crate::support::layout::{Layout, Member};
use crate::support::random::Random;
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::wheels::{Index, Wheel, poetry_lock};

const SMALL: usize = 3_000;
const LARGE: usize = 9 << 20;

/// A project that copies 3,000 small files, a large one that cannot be compressed, links and an empty folder.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    for at in 0..SMALL {
        sandbox.write(&format!("src/{:02}/{at:04}.txt", at / 100), format!("{at}\n").repeat(at % 40));
    }
    let mut random = Random::of(1);
    sandbox.write("src/10/large", (0..LARGE).map(|_| random.below(256) as u8).collect::<Vec<u8>>());
    fs::create_dir_all(sandbox.work().join("src/empty/inside")).unwrap();
    std::os::unix::fs::symlink("0000.txt", sandbox.work().join("src/00/link")).unwrap();
    let all = layers::source::Files { dir_mode: 0o750, ..files("src", path!("/data")).owner(7, 8) };
    let app = Stage::scratch().layer(all);
    sandbox.write("plan.json", Catalogue::new("test").with("app", app.image()).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox
}

/// Builds with so many threads and a cache of this name; the digest of the image, and all that it holds.
fn build(sandbox: &Sandbox, cache: &str, jobs: &str) -> (String, BTreeMap<String, Member>) {
    let _ = fs::remove_dir_all(sandbox.work().join("dist"));
    let cache = sandbox.path().join(cache);
    let words = ["build", "--catalogue", "plan.json", "--platform", "linux/amd64", "-j", jobs, "--cache-dir"];
    sandbox.imgbuild([&words[..], &[cache.to_str().unwrap()]].concat()).success();
    let image = Layout::open(&sandbox.work().join("dist")).image("app").remove(0);
    assert_eq!(image.faults(), [""; 0]);
    let members = image.layers[0].members().into_iter();
    (image.digest, members.map(|it| (it.path.trim_end_matches('/').to_owned(), it)).collect())
}

/// The blobs of a cache with their lengths.
fn blobs(cache: &Path) -> BTreeMap<PathBuf, u64> {
    let length = |blob: &PathBuf| blob.metadata().unwrap().len();
    bucket(cache, "blobs-v1").into_iter().map(|blob| (blob.clone(), length(&blob))).collect()
}

/// Puts other states into what a cache knows of the beginnings of layers; how many it knows.
fn lie_of_beginnings(cache: &Path) -> usize {
    let kind = format!("\nbeginning {}\n", layers::encode::LAYER_FORMAT);
    let mut found = 0;
    for file in bucket(cache, "ledger-v1") {
        let text = fs::read_to_string(&file).unwrap();
        if let Some(start) = text.find(&kind) {
            // The record's digest and length, itself, and the text of its key.
            let (_, record) = text[..start].split_once('\n').unwrap();
            let mut record: serde_json::Value = serde_json::from_str(record).unwrap();
            for state in record["prefixes"].as_array_mut().unwrap() {
                let state_text = state.as_str().unwrap();
                let other = if state_text.starts_with('0') { "1" } else { "0" };
                *state = format!("{other}{}", &state_text[1..]).into();
            }
            let record = record.to_string();
            let (digest, length) = (Digest::of(record.as_bytes()).hex(), record.len());
            fs::remove_file(&file).unwrap();
            fs::write(&file, format!("{digest} {length:010}\n{record}{}", &text[start..])).unwrap();
            found += 1;
        }
    }
    found
}

/// What was made between two looks at a cache.
fn made(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>) -> Vec<u64> {
    let mut lengths: Vec<u64> =
        after.iter().filter(|(path, _)| !before.contains_key(*path)).map(|(_, length)| *length).collect();
    lengths.sort_unstable();
    lengths
}

#[test]
fn what_is_copied_in_parts_is_whole_and_the_same_for_any_number_of_threads() {
    let sandbox = project();
    let (digest, members) = build(&sandbox, "one", "1");
    assert_eq!(build(&sandbox, "four", "4"), (digest, members.clone()));
    let mut found = 0;
    for (path, member) in &members {
        assert!(path == "data" || member.owner == (7, 8), "{path}");
        let source = sandbox.work().join(path.replacen("data", "src", 1));
        match member.kind {
            tar::EntryType::Directory => assert!(path == "data" || member.mode == 0o750, "{path}: {:o}", member.mode),
            tar::EntryType::Symlink => assert_eq!(member.link.as_deref(), Some("0000.txt")),
            _ => assert_eq!(member.sha256, crate::support::layout::sha256(&fs::read(source).unwrap()), "{path}"),
        }
        found += 1;
    }
    // The folders: the target, one of each hundred files, and the two empty ones; and the link and the large file.
    assert_eq!(found, SMALL + 1 + SMALL / 100 + 2 + 2);
}

#[test]
fn an_edit_reads_and_compresses_its_own_part() {
    let sandbox = project();
    let cache = sandbox.path().join("cache-of-edits");
    build(&sandbox, "cache-of-edits", "2");
    let mut before = blobs(&cache);
    assert!(before.values().filter(|length| **length > LARGE as u64).count() >= 2, "the large file and the layer");
    let edits: [(&str, &[u8]); 4] = [
        ("src/07/0777.txt", b"edited\n"),
        ("src/10/1000a.txt", b"new\n"),
        ("src/10/.hidden", b""),
        ("src/29/zz", b"the last\n"),
    ];
    for (path, content) in edits {
        sandbox.write(path, content);
        let (digest, members) = build(&sandbox, "cache-of-edits", "2");
        let after = blobs(&cache);
        let lengths = made(&before, &after);
        // A part or two with their indexes, the layer, and documents of the image.
        let (layer, others) = lengths.split_last().unwrap();
        assert!(*layer > LARGE as u64 && others.iter().all(|length| *length < 100_000), "{path}: {lengths:?}");
        assert!(lengths.len() <= 8, "{path}: {lengths:?}");
        assert_eq!(build(&sandbox, "from nothing", "2"), (digest, members), "{path}");
        fs::remove_dir_all(sandbox.path().join("from nothing")).unwrap();
        before = after;
    }
    // An empty folder is of a part, too.
    fs::create_dir(sandbox.work().join("src/one-more")).unwrap();
    let (_, members) = build(&sandbox, "cache-of-edits", "2");
    assert_eq!(members["data/one-more"].mode, 0o750);
    let lengths = made(&before, &blobs(&cache));
    let (layer, others) = lengths.split_last().unwrap();
    assert!(*layer > LARGE as u64 && others.iter().all(|length| *length < 100_000), "{lengths:?}");
}

#[test]
fn a_layer_that_begins_as_the_last_one_is_hashed_on_from_there() {
    let sandbox = Sandbox::new();
    let mut random = Random::of(2);
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| random.below(256) as u8).collect() };
    for name in ["a", "b", "c", "d"] {
        sandbox.write(&format!("src/large-{name}"), noise(9 << 20));
    }
    // Parts of more than 8 MiB are no large files.
    for at in 0..120 {
        sandbox.write(&format!("src/small/{at:03}"), vec![at; 100_000]);
    }
    let app = Stage::scratch().layer(files("src", path!("/data")));
    sandbox.write("plan.json", Catalogue::new("test").with("app", app.image()).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let is_right = |cache: &str| {
        let _ = fs::remove_dir_all(sandbox.work().join("dist"));
        let folder = sandbox.path().join(cache);
        let words = ["build", "--catalogue", "plan.json", "--platform", "linux/amd64", "--cache-dir"];
        sandbox.imgbuild([&words[..], &[folder.to_str().unwrap()]].concat()).success();
        let image = Layout::open(&sandbox.work().join("dist")).image("app").remove(0);
        image.faults().is_empty()
    };
    assert!(is_right("cache-1"));
    // Whatever is edited, what comes before it is believed: a lie is in the outcome.
    for (path, content) in [("src/small/119", vec![1]), ("src/small/000", vec![2]), ("src/large-c", noise(9 << 20))] {
        sandbox.write(path, content);
        let copy = sandbox.path().join("cache-2");
        let _ = fs::remove_dir_all(&copy);
        tool("cp", [Path::new("-a"), &sandbox.path().join("cache-1"), &copy]);
        assert_eq!(lie_of_beginnings(&copy), 1);
        assert!(!is_right("cache-2"), "{path}");
        assert!(is_right("cache-1"), "{path}");
    }
    // What changed comes first: nothing is known.
    sandbox.write("src/large-a", noise(9 << 20));
    assert_eq!(lie_of_beginnings(&sandbox.path().join("cache-1")), 1);
    assert!(is_right("cache-1"));
}

/// Lengths and places in it need more than 32 bits.
#[test]
fn slow_a_file_beyond_four_gibibytes_is_whole() {
    const SIZE: u64 = (4 << 30) + 1;
    let sandbox = Sandbox::new();
    let large = fs::File::create(sandbox.write("src/large", "")).unwrap();
    large.set_len(SIZE).unwrap();
    sandbox.write("src/small", "small\n");
    let app = Stage::scratch().layer(files("src", path!("/data")));
    sandbox.write("plan.json", Catalogue::new("test").with("app", app.image()).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let words = ["build", "--catalogue", "plan.json", "--platform", "linux/amd64"];
    sandbox.imgbuild(words).success();
    // gzip and GNU tar read all of it. The layer is the largest blob of the layout.
    let blobs = fs::read_dir(sandbox.work().join("dist/blobs/sha256")).unwrap();
    let layer = blobs.map(|blob| blob.unwrap()).max_by_key(|blob| blob.metadata().unwrap().len()).unwrap().path();
    let read = "set -o pipefail; gzip --decompress --stdout \"$1\" | tee >(openssl dgst -sha256 -r >&2) | tar --list --verbose";
    let read = outcome(Command::new("bash").args(["-c", read, "bash"]).arg(&layer));
    // Standard error is read to the end of both.
    let diff_id = format!("sha256:{}", read.stderr.split_whitespace().next().unwrap());
    let listing = read.success();
    let sizes: Vec<(&str, &str)> = listing
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<&str>>())
        .map(|words| (*words.last().unwrap(), words[2]))
        .collect();
    assert_eq!(sizes, [("data/", "0"), ("data/large", &*SIZE.to_string()), ("data/small", "6")], "{listing}");
    let configs = fs::read_dir(sandbox.work().join("dist/blobs/sha256")).unwrap();
    let small = configs.map(|blob| blob.unwrap()).filter(|blob| blob.metadata().unwrap().len() < 100_000);
    let texts: Vec<String> = small.map(|blob| fs::read_to_string(blob.path()).unwrap_or_default()).collect();
    assert!(texts.iter().any(|text| text.contains("diff_ids") && text.contains(&diff_id)), "{diff_id}: {texts:#?}");
}

#[test]
fn slow_a_lock_of_two_thousand_packages_is_built_and_one_of_them_replaced() {
    const COUNT: usize = 2_000;
    let sandbox = Sandbox::new();
    let index = Index::new(&sandbox.path().join("index"));
    let write = |changed: Option<usize>| {
        let wheel = |at: usize| -> Wheel {
            let name = format!("package{at:04}");
            let version = if changed == Some(at) { "1.1" } else { "1.0" };
            let module = format!("{name}/__init__.py={}", format!("NAME = '{name}'\n").repeat(at % 9));
            (name, version.to_owned(), vec![module])
        };
        let wheels: Vec<Wheel> = (0..COUNT).map(wheel).collect();
        sandbox.write("poetry.lock", poetry_lock(&index.wheels(&wheels)));
    };
    let stage = Stage::scratch().layer(python(layers::poetry_lock("poetry.lock")));
    sandbox.write("plan.json", Catalogue::new("many").with("app", stage.image()).plan().to_json());
    let run = |words: &[&str]| {
        let mut command = sandbox.command(["--catalogue", "plan.json"]);
        index.configure(command.args(words));
        outcome(&mut command).success();
    };
    let built = || {
        let _ = fs::remove_dir_all(sandbox.work().join("dist"));
        run(&["lock"]);
        run(&["build", "--platform", "linux/amd64"]);
        let image = Layout::open(&sandbox.work().join("dist")).image("app").remove(0);
        assert_eq!(image.faults(), [""; 0]);
        let named = |it: &Member| it.path.ends_with(".dist-info/METADATA");
        let versions = image.layers.iter().flat_map(|layer| layer.members()).filter(named).map(|it| it.path);
        let layers: Vec<String> = image.layers.iter().map(|layer| layer.digest.clone()).collect();
        (versions.collect::<Vec<String>>(), layers)
    };
    write(None);
    let (before, layers) = built();
    assert_eq!(before.len(), COUNT);
    write(Some(1000));
    let (after, others) = built();
    let new: Vec<&String> = after.iter().filter(|path| !before.contains(path)).collect();
    assert!(after.len() == COUNT && new.len() == 1 && new[0].contains("package1000-1.1."), "{new:?}");
    assert_eq!(others.iter().filter(|layer| !layers.contains(layer)).count(), 1, "{layers:?} {others:?}");
}
