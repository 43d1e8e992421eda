//! Caches in a folder of which something is no file, or that does not answer.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cache::SmallDisk;
use crate::registry::registry;
use crate::remote::{Project, STORES, files_below};
use crate::remote_faults::PATIENCE;
use crate::support::fuse::{Faulty, SILENCE};
use crate::support::layout::Layout;
use crate::support::random::Random;
use crate::support::run::tool;

#[test]
fn a_pipe_in_place_of_a_file_is_no_file() {
    let project = Project::new();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", folder.path().display());
    let right = project.machine().build(&["--cache-to", &store], &[]).0;
    let registry = registry(|_| {});
    for kind in ["names", "blobs"] {
        let files = files_below(&folder.path().join("imgbuild-cache-v1").join(kind));
        let files: Vec<_> = files.into_iter().map(|file| (fs::read(&file).unwrap(), file)).collect();
        for (_, file) in &files {
            fs::remove_file(file).unwrap();
            tool("mkfifo", [file]);
        }
        let machine = project.machine();
        let (found, said, asked) = machine.build(&["--cache-from", &store], &[(STORES, &store)]);
        assert_eq!(found, right, "{kind}: {said}");
        assert!(asked > 0 && said.contains("is passed over") && said.contains("no regular file"), "{kind}: {said}");
        let tag = format!("{}/{kind}/{{image}}:v1", registry.host());
        let words = ["push", "--tag", &tag, "--cache-from", &store];
        project.machine().run(&words, &[(STORES, &store)]).success();
        assert_eq!(registry.tag(&format!("{kind}/one"), "v1").as_ref(), right.get("one"));
        for (bytes, file) in files {
            fs::remove_file(&file).unwrap();
            fs::write(file, bytes).unwrap();
        }
    }
}

#[test]
fn real_a_folder_that_does_not_answer_is_passed_over() {
    let project = Project::new();
    let folder = tempfile::tempdir().unwrap();
    let behind = folder.path().join("behind");
    fs::create_dir(&behind).unwrap();
    let right = project.machine().build(&["--cache-to", &format!("dir:{}", behind.display())], &[]).0;
    let blobs = |path: &std::path::Path| path.to_string_lossy().contains("blobs/");
    type Stops = fn(&str, bool) -> bool;
    let cases: [(&str, &str, Stops); 4] = [
        ("a document", "--cache-from", |operation, is_blob| operation == "open" && !is_blob),
        ("a blob", "--cache-from", |operation, is_blob| operation == "read" && is_blob),
        ("a new blob", "--cache-to", |operation, _| operation == "write"),
        ("a folder", "--cache-to", |operation, _| operation == "lookup"),
    ];
    for (what, flag, stops) in cases {
        let at = folder.path().join("at");
        let disk = Faulty::mount(&behind, &at, true);
        disk.set(move |operation, path| stops(operation, blobs(path)).then_some(SILENCE));
        let store = format!("dir:{}", at.display());
        if flag == "--cache-to" {
            fs::remove_dir_all(behind.join("imgbuild-cache-v1/blobs")).unwrap_or_default();
        }
        let machine = project.machine();
        let (found, said, _) = machine.build(&[flag, &store], &[(STORES, &store), PATIENCE]);
        assert_eq!(found, right, "{what}: {said}");
        assert!(said.contains(&store) && said.contains("cache.patience"), "{what}: {said}");
    }
}

#[test]
fn real_a_layer_is_delivered_as_it_was_checked() {
    let project = Project::new();
    let machine = project.machine();
    let behind = machine.sandbox.path().join("behind");
    fs::create_dir(&behind).unwrap();
    let disk = Faulty::mount(&behind, machine.sandbox.cache(), true);
    let right = machine.build(&[], &[]).0;
    let layer = Layout::open(&machine.sandbox.work().join("dist")).image("one")[0].layers[0].digest[7..].to_owned();
    let blob = behind.join("blobs-v1").join(&layer[..2]).join(&layer);
    // Whenever it is opened by its name once more, there is another file.
    let (name, opened) = (layer.clone(), Arc::new(AtomicUsize::new(0)));
    let count = opened.clone();
    disk.set(move |operation, path| {
        if operation == "open" && path.ends_with(&name) && count.fetch_add(1, Ordering::SeqCst) == 1 {
            let mut bad = fs::read(&blob).unwrap();
            bad[100] ^= 1;
            fs::remove_file(&blob).unwrap();
            fs::write(&blob, bad).unwrap();
        }
        None
    });
    assert_eq!(machine.build(&[], &[]).0, right);
    assert!(opened.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_mistake_of_a_definition_is_no_damage_of_the_cache() {
    let project = Project::new();
    let (first, folder) = (project.machine(), tempfile::tempdir().unwrap());
    let store = format!("dir:{}", folder.path().display());
    first.build(&["--cache-to", &store], &[]);
    let machine = project.machine();
    let place = machine.sandbox.work().join("plan.json");
    let mut plan: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    let stages = plan["stages"].as_array_mut().unwrap();
    let below = stages.iter().position(|stage| stage["source"]["kind"] == "fetch").unwrap();
    // A file in the place of a folder that an archive brings: the fragments of that one are elsewhere.
    stages.push(serde_json::json!({"step": "layer", "below": below, "isImage": true, "source":
        {"kind": "inline", "text": "x", "path": "/opt", "mode": 420, "owner": {"uid": 0, "gid": 0}}}));
    let last = stages.len() - 1;
    plan["images"]["one"]["stage"] = last.into();
    machine.sandbox.write("plan.json", plan.to_string());
    let words = ["build", "one", "--cache-from", &store];
    let said = machine.run(&words, &[(STORES, &store)]).failure(1, &["/opt"]).stderr;
    assert!(!said.contains("damaged"), "{said}");
}

#[test]
fn real_a_full_disk_of_this_machine_is_no_fault_of_a_folder() {
    let project = Project::new();
    let (first, folder) = (project.machine(), tempfile::tempdir().unwrap());
    let store = format!("dir:{}", folder.path().display());
    first.sandbox.write("more/noise", Random::of(1).bytes(2_000_000));
    first.build(&["--cache-to", &store], &[]);
    let machine = project.machine_like(&first);
    let disk = SmallDisk(machine.sandbox.path().join("disk"));
    fs::create_dir(&disk.0).unwrap();
    tool("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.0.to_str().unwrap()]);
    let words = ["--cache-dir", disk.0.to_str().unwrap(), "build", "--cache-from", &store];
    let said = machine.run(&words, &[(STORES, &store)]).failure(1, &["the disk of the cache is full"]).stderr;
    assert!(!said.contains("imgbuild-cache-v1") && !said.contains("passed over"), "{said}");
}
