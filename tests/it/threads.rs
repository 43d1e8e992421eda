//! What is done where no thread can be had.

use std::fs;
use std::process::Command;

use layers::{Catalogue, Stage, debian, files, path};

use crate::cache::Project;
use crate::commands::{script, world};
use crate::support::cache::bucket;
use crate::support::run::{Outcome, outcome};
use crate::support::tiny::{Packaged, now};

/// Runs a command in which no thread begins: each would need a stack for which no machine has room.
fn alone(command: &mut Command) -> Outcome {
    outcome(command.env("RUST_MIN_STACK", (1u64 << 50).to_string()).env("IMGBUILD_JOBS", "4"))
}

/// Forgets what came of work. What was downloaded stays.
fn forget(cache: &std::path::Path) {
    for record in bucket(cache, "ledger-v1") {
        fs::remove_file(record).unwrap();
    }
}

#[test]
fn where_no_thread_can_be_had_an_image_is_the_same() {
    let project = Project::new();
    let expected = project.rebuilt();
    forget(project.sandbox.cache());
    fs::remove_dir_all(project.sandbox.work().join("dist")).unwrap();
    alone(&mut project.command()).success();
    assert_eq!(project.delivered(), expected);
    let damaged = project.bucket("blobs-v1").pop().unwrap();
    fs::remove_file(&damaged).and_then(|()| fs::write(&damaged, "other bytes")).unwrap();
    let verified = alone(&mut project.sandbox.command(["cache", "verify"])).success();
    assert!(verified.contains('1') && !damaged.exists(), "{verified}");
}

#[test]
fn where_no_thread_can_be_had_commands_run_where_something_is_taken_from_them() {
    let packaged = Packaged::new(now());
    let below = world(&packaged.sandbox);
    packaged.sandbox.write("src/a", "a\n");
    let mut catalogue = Catalogue::new("commands");
    for (at, name) in ["app", "data", "libapp"].into_iter().enumerate() {
        let made = below.layer(debian([name])).run(script(&format!("mkdir /out; echo {at} > /out/made")));
        let image = Stage::scratch().layer(made.take(path!("/out"))).layer(files("src", path!("/srv")));
        catalogue = catalogue.with(name, image.image());
    }
    // What no command waits for is converted beside them.
    let catalogue = catalogue.with("other", Stage::scratch().layer(debian(["app"]).slim()).image());
    packaged.sandbox.write("plan.json", catalogue.plan().to_json());
    outcome(&mut packaged.command(&["lock"])).success();
    let expected = outcome(&mut packaged.command(&["build", "--output", "oci:out"])).success();
    forget(packaged.sandbox.cache());
    assert_eq!(alone(&mut packaged.command(&["build", "--output", "oci:again"])).success(), expected);
}
