//! The cache's ceiling: whatever writes into the cache, and however that ends, it is kept.

use std::fs;
use std::path::Path;

use flate2::write::GzEncoder;
use layers::lock::Lock;
use layers::source::{Unpack, fetch, files};
use layers::{Catalogue, Digest, Stage, path};
use serde_json::Value;

use crate::cache::SmallDisk;
use crate::commands::{build, script, world, write};
use crate::registry::registry;
use crate::server::Server;
use crate::support::random::Random;
use crate::support::run::{Sandbox, outcome, tool};

const CEILING: u64 = 1_000_000;

/// An image of one file that nobody can compress.
fn project(seed: u64, size: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("src/data", Random::of(seed).bytes(size));
    let app = Stage::scratch().layer(files("src", path!("/app"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", app).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox
}

fn limited(sandbox: &Sandbox, bytes: u64) {
    sandbox.write("imgbuild.toml", format!("[cache]\nmax-size = '{bytes}'\n"));
}

fn total(sandbox: &Sandbox) -> u64 {
    let info: Value = serde_json::from_str(&sandbox.imgbuild(["cache", "info", "--format", "json"]).success()).unwrap();
    info["total"].as_u64().unwrap()
}

#[test]
fn builds_that_fail_keep_it_and_say_what_failed() {
    let sandbox = project(0, 1000);
    limited(&sandbox, CEILING);
    let build = |output: &str| sandbox.imgbuild(["build", "--catalogue", "plan.json", "--output", output]);
    build("oci:dist").success();
    // Nothing can be delivered into it.
    sandbox.write("blocked/blobs", "");
    for seed in 1..4 {
        sandbox.write("src/data", Random::of(seed).bytes(600_000));
        let said = build("oci:blocked").failure(1, &["cannot write `blocked/blobs"]).stderr;
        assert!(!said.contains("warning"), "{said}");
        assert!(total(&sandbox) <= CEILING, "{}", total(&sandbox));
    }
    // What went wrong with the cache hides nothing of what went wrong with the build.
    let usage = sandbox.cache().join("usage-v1");
    fs::remove_file(&usage).unwrap();
    fs::create_dir(&usage).unwrap();
    sandbox.write("src/data", Random::of(9).bytes(600_000));
    let said = build("oci:blocked").failure(1, &["could not be kept within its limits", "cannot write `blocked/blobs"]);
    assert!(
        said.stderr.trim_end().lines().any(|line| line.starts_with("error: cannot write `blocked")),
        "{}",
        said.stderr
    );
}

#[test]
fn an_import_keeps_it() {
    let full = project(1, 2_000_000);
    full.imgbuild(["build", "--catalogue", "plan.json"]).success();
    let file = full.path().join("cache.tar");
    full.imgbuild(["cache", "export", file.to_str().unwrap()]).success();
    let sandbox = project(2, 1000);
    limited(&sandbox, CEILING);
    sandbox.imgbuild(["build", "--catalogue", "plan.json"]).success();
    sandbox.imgbuild(["cache", "import", file.to_str().unwrap()]).success();
    assert!(total(&sandbox) <= CEILING, "{}", total(&sandbox));
}

#[test]
fn a_copy_keeps_it() {
    let registry = registry(|_| {});
    let name = format!("{}/team/app:v1", registry.host());
    let pushed = project(1, 2_000_000);
    pushed.imgbuild(["push", "--catalogue", "plan.json", "--tag", &name]).success();
    let sandbox = Sandbox::new();
    limited(&sandbox, CEILING);
    sandbox.imgbuild(["copy", &name, "oci:dist"]).success();
    assert!(total(&sandbox) <= CEILING, "{}", total(&sandbox));
}

#[test]
fn what_commands_keep_counts() {
    const ROOM: u64 = 12_000_000;
    let sandbox = Sandbox::new();
    limited(&sandbox, ROOM);
    let stage = world(&sandbox);
    for (number, megabytes) in [(0, 1), (1, 15)] {
        let text =
            format!("mkdir /out; echo {number} > /out/x; busybox dd if=/dev/zero of=/c/x bs=1000000 count={megabytes}");
        write(&sandbox, &stage.run(script(&text).cache(path!("/c"))));
        if number == 0 {
            sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
        }
        build(&sandbox, &[]).success();
        assert!(total(&sandbox) <= ROOM, "{number}: {}", total(&sandbox));
    }
}

#[test]
fn real_a_full_disk_does_not_stay_full() {
    let sandbox = project(0, 1000);
    let disk = small_disk(&sandbox, "10m");
    sandbox.write("imgbuild.toml", "[cache]\nmax-size = '7MB'\nmin-free = '3MB'\n");
    let cache = disk.0.join("cache");
    let build = |seed| {
        sandbox.write("src/data", Random::of(seed).bytes(2_900_000));
        outcome(sandbox.command(["build", "--catalogue", "plan.json", "--cache-dir"]).arg(&cache))
    };
    let mut full = 0;
    for seed in 0..6 {
        let done = build(seed);
        if done.status != 0 {
            full += 1;
            let said = done.failure(1, &["the disk of the cache is full", "free some space"]).stderr;
            assert!(!said.contains("warning"), "{said}");
            build(100 + seed).success();
        }
    }
    assert!(full > 0, "the disk was never full");
}

#[test]
fn real_a_full_disk_costs_a_small_part_of_the_cache_and_offline_nothing() {
    let sandbox = project(0, 1000);
    let disk = small_disk(&sandbox, "40m");
    let cache = disk.0.join("cache");
    let build = |seed, more: &[&str]| {
        sandbox.write("src/data", Random::of(seed).bytes(1_000_000));
        outcome(sandbox.command(["build", "--catalogue", "plan.json", "--cache-dir"]).arg(&cache).args(more))
    };
    (0..8).for_each(|seed| drop(build(seed, &[]).success()));
    let held = || {
        let said = outcome(sandbox.command(["cache", "info", "--format", "json", "--cache-dir"]).arg(&cache)).success();
        serde_json::from_str::<serde_json::Value>(&said).unwrap()["total"].as_u64().unwrap()
    };
    let before = held();
    assert!(before > 16_000_000, "{before}");
    // Somebody else fills the disk.
    let full = fs::write(disk.0.join("others"), vec![1; 40 << 20]).expect_err("it is full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    build(8, &["--offline"]).failure(1, &["the disk of the cache is full"]);
    assert_eq!(held(), before);
    build(9, &[]).failure(1, &["the disk of the cache is full"]);
    assert!((before / 20 * 15..before).contains(&held()), "{} of {before}", held());
}

#[test]
fn an_export_takes_the_place_of_the_last_one_when_it_is_whole() {
    let sandbox = project(1, 100_000);
    sandbox.imgbuild(["build", "--catalogue", "plan.json"]).success();
    let out = sandbox.work().join("out");
    fs::create_dir(&out).unwrap();
    let export = |to: &str| sandbox.command(["cache", "export", to]);
    outcome(&mut export("out/cache.tar")).success();
    let whole = fs::read(out.join("cache.tar")).unwrap();
    let killed = outcome(export("out/cache.tar").env("IMGBUILD_FAILPOINT", "exported-one:3"));
    assert_eq!(killed.status, 128 + 9);
    assert!(fs::read(out.join("cache.tar")).unwrap() == whole, "it is what it was");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    // A link stays one; what was left goes.
    std::os::unix::fs::symlink("cache.tar", out.join("link")).unwrap();
    outcome(&mut export("out/link")).success();
    assert!(fs::read(out.join("cache.tar")).unwrap() == whole);
    let names = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<std::collections::BTreeSet<_>>(), ["cache.tar", "link"].map(Into::into).into());
    assert!(out.join("link").symlink_metadata().unwrap().is_symlink());
    // What is no file is written to.
    outcome(&mut export("/dev/null")).success();
    let pipe = out.join("pipe");
    tool("mkfifo", [&pipe]);
    let read = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    outcome(&mut export("out/pipe")).success();
    assert!(read.join().unwrap() == whole);
    assert!(!pipe.is_file() && !Path::new("/dev/null").is_file());
}

/// A small disk in memory.
fn small_disk(sandbox: &Sandbox, size: &str) -> SmallDisk {
    let disk = SmallDisk(sandbox.path().join("disk"));
    fs::create_dir(&disk.0).unwrap();
    tool("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", disk.0.to_str().unwrap()]);
    disk
}

#[test]
fn real_a_disk_that_a_download_fills_does_not_stay_full() {
    let sandbox = project(0, 1000);
    let disk = small_disk(&sandbox, "15m");
    let cache = disk.0.join("cache");
    let build = || outcome(sandbox.command(["build", "--catalogue", "plan.json", "--cache-dir"]).arg(&cache));
    for seed in 0..2 {
        sandbox.write("src/data", Random::of(seed).bytes(2_900_000));
        build().success();
    }
    let bytes = Random::of(9).bytes(4_800_000);
    let digest = Digest::of(&bytes);
    let server = Server::of([("/large".to_owned(), bytes)].into());
    let app = Stage::scratch().layer(fetch(server.url("/large").as_str(), digest, path!("/large"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", app).plan().to_json());
    build().failure(1, &["the disk of the cache is full while writing `", "partial-v1", "free some space"]);
    // What was made room for may be more than the download: its layer takes the same once more.
    let more = (0..3).position(|_| build().status == 0);
    assert!(more.is_some(), "no room was made");
}

#[test]
fn real_a_disk_that_a_layer_of_a_registry_fills_does_not_stay_full() {
    let sandbox = project(7, 4_800_000);
    let registry = registry(|_| {});
    let tag = format!("{}/app:v1", registry.host());
    let command = |words: &[&str]| {
        let mut command = sandbox.command(words);
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command
    };
    outcome(&mut command(&["push", "--catalogue", "plan.json", "--tag", &tag])).success();
    let disk = small_disk(&sandbox, "15m");
    let cache = disk.0.join("cache");
    for seed in 0..2 {
        sandbox.write("src/data", Random::of(seed).bytes(2_900_000));
        outcome(command(&["build", "--catalogue", "plan.json", "--cache-dir"]).arg(&cache)).success();
    }
    let inspect = || outcome(command(&["inspect", "--packages", &tag, "--cache-dir"]).arg(&cache));
    inspect().failure(1, &["the disk of the cache is full while writing `", "partial-v1"]);
    let more = (0..3).position(|_| inspect().status == 0);
    assert!(more.is_some(), "no room was made");
}

#[test]
fn real_a_disk_that_content_on_its_way_fills_is_named() {
    let sandbox = project(0, 1000);
    let disk = small_disk(&sandbox, "8m");
    // More than waits in memory.
    let content = vec![0; 40_000_000];
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "zeros", content.as_slice()).unwrap();
    let archive = tar.into_inner().unwrap().finish().unwrap();
    let digest = Digest::of(&archive);
    let server = Server::of([("/a.tar.gz".to_owned(), archive)].into());
    let archive = fetch(server.url("/a.tar.gz").as_str(), digest, path!("/opt")).unpack(Unpack::Tar);
    let app = Stage::scratch().layer(archive).image();
    sandbox.write("plan.json", Catalogue::new("test").with("app", app).plan().to_json());
    let mut command = sandbox.command(["build", "--catalogue", "plan.json", "--cache-dir"]);
    let said = outcome(command.arg(disk.0.join("cache"))).failure(1, &["the disk of the cache is full"]).stderr;
    assert!(!said.contains("damaged"), "{said}");
}

#[test]
fn what_others_put_into_the_cache_drives_nothing_out() {
    let sandbox = project(0, 1000);
    limited(&sandbox, CEILING);
    let build = || sandbox.imgbuild(["build", "--catalogue", "plan.json"]).success();
    build();
    let others = sandbox.cache().join("blobs-v1/.nfs0001");
    fs::write(&others, Random::of(1).bytes(2 * CEILING as usize)).unwrap();
    // Every file is looked at.
    fs::remove_file(sandbox.cache().join("usage-v1")).unwrap();
    sandbox.write("src/data", "another");
    build();
    let said = sandbox.imgbuild(["cache", "gc"]).success();
    assert!(!said.contains("removed") && said.contains("2.00 MB in its folder are not imgbuild's"), "{said}");
    assert!(others.exists());
}
