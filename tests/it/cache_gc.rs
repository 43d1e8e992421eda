//! `cache gc`: what goes, what stays, and what is said of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use layers::lock::Lock;
use layers::source::{fetch, files};
use layers::{Catalogue, Digest, Stage, path};
use serde_json::Value;

use crate::cache::Project;
use crate::support::layout::Layout;
use crate::support::processes::wait_until;
use crate::support::run::{Outcome, Sandbox, outcome};
use crate::support::server::Files;

/// Every file below a folder, with the bytes that it takes on the disk.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let (path, metadata) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
        match metadata.is_dir() {
            true => found.extend(files_below(&path)),
            false => drop(found.insert(path, metadata.blocks() * 512)),
        }
    }
    found
}

/// The class that `cache gc` counts a file among; those of blobs are told apart by what they are for, which paths do not say.
fn class(cache: &Path, path: &Path) -> &'static str {
    let below = path.strip_prefix(cache).unwrap().to_str().unwrap();
    match below.split_once('/').map_or("", |(bucket, _)| bucket) {
        "blobs-v1" => "blobs",
        "ledger-v1" => "records",
        "partial-v1" => "partial",
        "stat-v2" => "stats",
        "commands-v1" => "commands",
        "blobs-v7" => "otherVersions",
        "tmp-v1" | "" => "leftovers",
        other => panic!("{other}"),
    }
}

/// Counts and bytes by class, as `cache gc --format json` says them.
fn said(json: &Value) -> BTreeMap<&str, (u64, u64)> {
    let amount = |value: &Value| (value["count"].as_u64().unwrap(), value["bytes"].as_u64().unwrap());
    let mut found: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (class, value) in json["removed"].as_object().unwrap() {
        let class = match class.as_str() {
            "archives" | "fragments" | "layers" => "blobs",
            other => other,
        };
        let (count, bytes) = amount(value);
        let sum = found.entry(class).or_default();
        *sum = (sum.0 + count, sum.1 + bytes);
    }
    found.insert("leftovers", amount(&json["leftovers"]));
    found.retain(|_, amount| amount.0 > 0);
    found
}

fn aged(path: &Path, hours: u64) {
    let time = SystemTime::now() - Duration::from_secs(hours * 3600);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn slow_a_dry_run_says_exactly_what_goes() {
    let project = Project::new();
    let cache = project.sandbox.cache().to_path_buf();
    // Three generations of the images: last used 50, 30 and 10 hours ago.
    let mut before: Vec<PathBuf> = Vec::new();
    for (generation, hours) in [("first", 50), ("second", 30), ("third", 10)] {
        project.sandbox.write("src/app.py", format!("print('{generation}')\n"));
        project.rebuilt();
        let now = project.entries();
        now.iter().filter(|path| !before.contains(path)).for_each(|path| aged(path, hours));
        before = now;
    }
    for file in ["tmp-v1/half", ".tmpx", "partial-v1/part", "commands-v1/log-1", "blobs-v7/x"] {
        fs::create_dir_all(cache.join(file).parent().unwrap()).unwrap();
        fs::write(cache.join(file), vec![1; 5000]).unwrap();
        aged(&cache.join(file), 20);
    }
    let saved = project.save();
    let total = |project: &Project| -> u64 {
        let info: Value =
            serde_json::from_str(&project.imgbuild(&["cache", "info", "--format", "json"]).success()).unwrap();
        info["total"].as_u64().unwrap()
    };
    let whole = total(&project);
    // Folders that stay, and what else is there in an empty cache.
    project.imgbuild(&["cache", "clear"]).success();
    let least = total(&project);
    let other = fs::metadata(saved.join("blobs-v7")).unwrap().blocks() * 512;
    let mut limits: Vec<[String; 2]> =
        ["5h", "15h", "25h", "40h", "60h"].map(|age| ["--max-age".into(), age.into()]).into();
    limits.extend([0, 1, 2, 5, 7, 9, 10].map(|tenths| ["--max-size".into(), (whole * tenths / 10).to_string()]));
    limits.extend(["1", "1000TB"].map(|free| ["--min-free".into(), free.into()]));
    let mut amounts = std::collections::BTreeSet::new();
    for limit in limits {
        project.restore(&saved);
        let gc = |more: &[&str]| -> Value {
            let words =
                [&["cache", "gc", "--format", "json"], &limit.each_ref().map(String::as_str)[..], more].concat();
            serde_json::from_str(&project.imgbuild(&words).success()).unwrap()
        };
        let there = files_below(&cache);
        let mut would = gc(&["--dry-run"]);
        assert_eq!(files_below(&cache), there, "{limit:?}: a dry run removes nothing");
        assert_eq!(would["dryRun"], true);
        would["dryRun"] = false.into();
        let did = gc(&[]);
        assert_eq!(would, did, "{limit:?}");
        let left = files_below(&cache);
        assert!(left.keys().all(|path| there.contains_key(path)), "{limit:?}: nothing new");
        let mut gone: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (path, bytes) in there.iter().filter(|(path, _)| !left.contains_key(*path)) {
            let sum = gone.entry(class(&cache, path)).or_default();
            *sum = (sum.0 + 1, sum.1 + bytes);
        }
        // A folder that goes as a whole counts with it.
        gone.entry("otherVersions").and_modify(|sum| sum.1 += other);
        assert_eq!(said(&did), gone, "{limit:?}");
        assert_eq!(did["kept"].as_u64(), Some(total(&project)), "{limit:?}");
        if limit[0] == "--max-size" {
            let most: u64 = limit[1].parse().unwrap();
            assert!(total(&project) <= most.max(least), "{limit:?}");
        }
        amounts.insert(gone.values().map(|amount| amount.0).sum::<u64>());
    }
    assert!(amounts.len() >= 6, "limits differ in what they leave: {amounts:?}");
}

#[test]
fn what_a_running_build_needs_stays_whoever_collects() {
    let sandbox = Sandbox::new();
    sandbox.write("src/app.py", "print('hello')\n");
    let served = sandbox.path().join("served");
    fs::create_dir(&served).unwrap();
    fs::write(served.join("late"), "what comes late").unwrap();
    let server = Files::serve(&served);
    let url = format!("{}/late", server.url().trim_end_matches('/'));
    let app = Stage::scratch().layer(files("src", path!("/app")));
    let late = app.layer(fetch(url, Digest::of(b"what comes late"), path!("/late")));
    let catalogue = Catalogue::new("test").with("app", app.image()).with("late", late.image());
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let build = |words: &[&str]| {
        let mut command = sandbox.command(["build", "--catalogue", "plan.json"]);
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1").args(words);
        command
    };
    outcome(&mut build(&["app", "--output", "oci:first"])).success();
    let blobs = || files_below(&sandbox.cache().join("blobs-v1"));
    let used = blobs();
    server.hold("/late");
    let running = build(&["--output", "oci:both"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the build waits for the server", || server.asked().iter().any(|asked| asked.contains("/late")));
    // A build within a ceiling ends meanwhile, and collects nothing. It makes a layer, or it would not look.
    sandbox.write("imgbuild.toml", "[cache]\nmax-size = '1'\n");
    sandbox.write("src/more.py", "");
    outcome(&mut build(&["app", "--output", "oci:beside"])).success();
    assert!(used.keys().all(|path| blobs().contains_key(path)), "nothing is collected");
    let begin = |command: &mut Command, said: &str| {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut waits = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut waits).unwrap();
        assert_eq!(waits, said);
        child
    };
    let collector = begin(&mut sandbox.command(["cache", "gc", "--max-size", "1"]), "waiting until no build runs\n");
    // Who begins now waits behind the collector: builds that overlap for ever would keep it waiting for ever.
    let mut behind = build(&["app", "--output", "oci:behind", "--progress", "plain"]);
    let behind = begin(&mut behind, "waiting until the cache is collected\n");
    assert!(used.keys().all(|path| blobs().contains_key(path)), "nothing is collected");
    server.let_go();
    Outcome::of(running.wait_with_output().unwrap()).success();
    Outcome::of(behind.wait_with_output().unwrap()).success();
    assert_eq!(Layout::open(&sandbox.work().join("behind")).image("app")[0].faults(), [""; 0]);
    for name in ["app", "late"] {
        assert_eq!(Layout::open(&sandbox.work().join("both")).image(name)[0].faults(), [""; 0]);
    }
    assert_eq!(Layout::open(&sandbox.work().join("beside")).image("app")[0].faults(), [""; 0]);
    Outcome::of(collector.wait_with_output().unwrap()).success();
    outcome(&mut sandbox.command(["cache", "gc", "--max-size", "1"])).success();
    assert_eq!(blobs().len(), 0, "what nobody uses goes");
}
