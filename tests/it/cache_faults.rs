//! The cache on file systems that fail: an image is right or it is not delivered, and who cannot go on says where.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::cache::Project;
use crate::support::fuse::Faulty;
use crate::support::layout::Layout;
use crate::support::run::{Outcome, binary, outcome, tool, wrapped};

/// A project whose cache is a folder behind a file system that fails as it is told to.
fn faulty(locks: bool) -> (Project, Faulty) {
    let project = Project::new();
    let behind = project.sandbox.path().join("behind");
    fs::create_dir(&behind).unwrap();
    let disk = Faulty::mount(&behind, project.sandbox.cache(), locks);
    // In this order: what is declared last is dropped first, and a folder where something is mounted cannot be removed.
    (project, disk)
}

/// Removes what is in a cache that is a mount point.
fn emptied(project: &Project) {
    for entry in fs::read_dir(project.sandbox.cache()).unwrap() {
        tool("rm", [Path::new("-rf"), &entry.unwrap().path()]);
    }
}

/// What is delivered, if anything is, is right.
fn nothing_wrong(project: &Project, right: &std::collections::BTreeMap<String, String>, what: &str) {
    if project.sandbox.work().join("dist/index.json").exists() {
        assert_eq!(project.delivered(), *right, "{what}");
    }
}

#[test]
fn real_a_disk_that_fails_at_any_operation_leaves_nothing_wrong() {
    let (project, disk) = faulty(true);
    let earlier = project.sandbox.path().join("earlier");
    project.rebuilt();
    tool("cp", [Path::new("-a"), project.sandbox.cache(), &earlier]);
    project.sandbox.write("src/app.py", "print('changed')\n");
    let right = project.rebuilt();
    let operations =
        ["lookup", "getattr", "setattr", "mkdir", "unlink", "rename", "open", "read", "write", "create", "flush"];
    let mut failed = std::collections::BTreeSet::new();
    for operation in operations {
        for cold in [true, false] {
            // The first, the fourth, the sixteenth and so on, until a build asks for it fewer times.
            for number in (0..).map(|power| 1 << (2 * power)) {
                disk.heal();
                emptied(&project);
                if !cold {
                    tool("cp", [Path::new("-a"), &earlier.join("."), project.sandbox.cache()]);
                }
                let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
                let what = format!("{operation} {number}, cold: {cold}");
                let reached = disk.fail(operation, number, Errno::IO);
                let done = project.build();
                disk.heal();
                if done.status != 0 {
                    let said = done.failure(1, &[]).stderr;
                    // Who makes folders takes one that cannot be looked at for something else.
                    let why = ["Input/output error", "cannot be used: File exists", "is damaged in the cache"];
                    assert!(why.iter().any(|why| said.contains(why)), "{what}: {said}");
                    failed.insert(operation);
                }
                nothing_wrong(&project, &right, &what);
                assert_eq!(project.rebuilt(), right, "{what}");
                if !reached.load(Ordering::SeqCst) {
                    break;
                }
            }
            project.imgbuild(&["cache", "gc", "--max-size", "1GB"]).success();
            let said = project.imgbuild(&["cache", "verify"]).success();
            assert_eq!(said.lines().count(), 1, "{operation}: {said}");
        }
    }
    for operation in ["lookup", "rename", "open", "read", "write", "create"] {
        assert!(failed.contains(operation), "no build failed by {operation}: {failed:?}");
    }
}

#[test]
fn real_a_blob_that_cannot_be_copied_into_a_layout_says_why_and_from_where() {
    let (project, disk) = faulty(true);
    let right = project.rebuilt();
    let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
    // Neither rot nor a full disk: another copy would not help.
    disk.set(|operation, path| (operation == "read" && path.starts_with("blobs-v1")).then_some(Errno::PERM));
    project.build().failure(1, &["cannot write `dist/blobs/", "not permitted", "copying `", "blobs-v1/"]);
    nothing_wrong(&project, &right, "no blob can be copied");
    disk.heal();
    assert_eq!(project.rebuilt(), right);
}

#[test]
fn real_a_blob_that_cannot_be_read_is_no_archive_that_cannot_be_written() {
    let (project, disk) = faulty(true);
    project.rebuilt();
    disk.set(|operation, path| (operation == "read" && path.starts_with("blobs-v1")).then_some(Errno::IO));
    let done = outcome(project.command().args(["--output", "oci-archive:images.tar"]));
    let said = done.failure(1, &["blobs-v1/", "Input/output error", "imgbuild cache verify"]).stderr;
    assert!(!said.contains("images.tar"), "{said}");
    assert!(!project.sandbox.work().join("images.tar").exists());
    let said =
        project.imgbuild(&["cache", "export", "cache.tar"]).failure(1, &["blobs-v1/", "Input/output error"]).stderr;
    assert!(!said.contains("cache.tar"), "{said}");
}

#[test]
fn real_what_the_disk_does_not_give_back_is_named_and_removed_by_verify() {
    let (project, disk) = faulty(true);
    let right = project.rebuilt();
    let mut failed = 0;
    for bucket in ["blobs-v1", "ledger-v1"] {
        for entry in project.bucket(bucket) {
            // Who replaces the file has good blocks; a second name keeps others from getting its number.
            let behind = project.sandbox.path().join("behind");
            let kept = project.sandbox.path().join("kept");
            let _ = fs::remove_file(&kept);
            fs::hard_link(behind.join(entry.strip_prefix(project.sandbox.cache()).unwrap()), &kept).unwrap();
            let bad = fs::metadata(&kept).unwrap().ino();
            disk.set(move |operation, path| {
                let hit = operation == "read" && fs::metadata(behind.join(path)).is_ok_and(|it| it.ino() == bad);
                hit.then_some(Errno::IO)
            });
            let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
            let done = project.build();
            if done.status != 0 {
                failed += 1;
                done.failure(1, &["Input/output error", "imgbuild cache verify"]);
            }
            nothing_wrong(&project, &right, bucket);
            project.imgbuild(&["cache", "verify"]).success();
            assert!(fs::metadata(&entry).is_err() || fs::metadata(&kept).unwrap().nlink() == 1, "{}", entry.display());
            assert_eq!(project.rebuilt(), right, "{}", entry.display());
            disk.heal();
        }
    }
    assert!(failed > 0, "nobody read what could not be read");
}

#[test]
fn real_without_locks_builders_go_on_and_nothing_is_collected_unasked() {
    let (project, disk) = faulty(false);
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    disk.set(move |operation, _| {
        *count.lock().unwrap() += u32::from(operation == "lock");
        None
    });
    let builders: Vec<_> = (0..8)
        .map(|at| {
            let mut command = project.command();
            command.args(["--output", &format!("oci:out{at}")]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for builder in builders {
        Outcome::of(builder.wait_with_output().unwrap()).success();
    }
    let right = project.rebuilt();
    for at in 0..8 {
        let layout = Layout::open(&project.sandbox.work().join(format!("out{at}")));
        assert_eq!(layout.names(), right);
        assert_eq!(layout.image("app")[0].faults(), [""; 0]);
    }
    assert!(*asked.lock().unwrap() > 0, "locks are asked for");
    let entries = project.entries();
    project.sandbox.write("imgbuild.toml", "[cache]\nmax-size = '1'\n");
    project.sandbox.write("src/app.py", "print('changed')\n");
    let said = project.build();
    assert!(said.stderr.contains("has no locks") && said.stderr.contains("imgbuild cache gc"), "{}", said.stderr);
    said.success();
    assert!(entries.iter().all(|entry| entry.exists()));
    let said = project.imgbuild(&["cache", "gc", "--max-size", "1"]);
    assert!(said.stderr.contains("has no locks") && !said.stderr.contains("waiting"), "{}", said.stderr);
    said.success();
    assert_eq!(project.entries(), Vec::<PathBuf>::new());
}

/// Something that is undone at the end of a test.
struct Undo(Vec<String>);

impl Undo {
    fn by(words: &[&str]) -> Undo {
        Undo(words.iter().map(|word| (*word).to_owned()).collect())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = Command::new(&self.0[0]).args(&self.0[1..]).status();
    }
}

#[test]
fn real_a_cache_that_can_only_be_read_serves_what_it_has() {
    let project = Project::new();
    let right = project.rebuilt();
    let cache = project.sandbox.cache().to_str().unwrap();
    tool("mount", ["--bind", cache, cache]);
    let undo = Undo::by(&["umount", cache]);
    tool("mount", ["-o", "remount,bind,ro", cache]);
    let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
    project.build().success();
    assert_eq!(project.delivered(), right);
    project.sandbox.write("src/app.py", "print('changed')\n");
    let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
    project.build().failure(1, &["Read-only file system", cache]);
    assert!(!project.sandbox.work().join("dist/index.json").exists());
    drop(undo);
    project.rebuilt();
}

#[test]
fn real_another_users_cache_is_named() {
    let project = Project::new();
    let right = project.rebuilt();
    let program = project.sandbox.path().join("imgbuild");
    fs::copy(binary(), &program).unwrap();
    fs::set_permissions(project.sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(project.sandbox.work(), fs::Permissions::from_mode(0o777)).unwrap();
    let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
    let build = || {
        let command = wrapped("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups"], &project.command());
        let words: Vec<_> =
            command.get_args().map(|word| if word == binary() { program.as_os_str() } else { word }).collect();
        let mut other = Command::new("setpriv");
        project.sandbox.place(&mut other);
        outcome(other.args(words).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1"))
    };
    // What is there serves whoever may read it.
    build().success();
    assert_eq!(project.delivered(), right);
    fs::remove_dir_all(project.sandbox.work().join("dist")).unwrap();
    let before = fs::read(project.sandbox.work().join("src/app.py")).unwrap();
    project.sandbox.write("src/app.py", "print('changed')\n");
    build().failure(1, &["Permission denied", project.sandbox.cache().to_str().unwrap(), "--cache-dir"]);
    assert!(!project.sandbox.work().join("dist/index.json").exists());
    project.sandbox.write("src/app.py", before);
    assert_eq!(project.rebuilt(), right);
}

#[test]
fn real_a_file_that_may_not_grow_is_named_and_leaves_nothing_wrong() {
    let project = Project::new();
    let right = project.rebuilt();
    let mut failed = 0;
    // Blocks of 512 bytes. With the signal ignored writing fails, else it ends the process.
    for (ignored, blocks) in [0, 1, 2, 4, 8, 64, 400].into_iter().flat_map(|blocks| [(true, blocks), (false, blocks)]) {
        fs::remove_dir_all(project.sandbox.cache()).unwrap();
        let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
        let trap = if ignored { "trap '' XFSZ; " } else { "" };
        let script = format!("{trap}ulimit -f {blocks} && exec \"$@\"");
        let done = outcome(&mut wrapped("sh", &["-c", &script, "sh"], &project.command()));
        match (done.status, ignored) {
            (0, _) => {}
            (_, true) => {
                done.failure(1, &["File too large"]);
                failed += 1;
            }
            // SIGXFSZ.
            (status, false) => assert_eq!(status, 128 + 25, "{}", done.stderr),
        }
        nothing_wrong(&project, &right, &format!("{blocks} blocks"));
        assert_eq!(project.rebuilt(), right, "{blocks} blocks");
        let said = project.imgbuild(&["cache", "verify"]).success();
        assert_eq!(said.lines().count(), 1, "{blocks} blocks: {said}");
    }
    assert!(failed > 2, "files were never too large");
}

#[test]
fn real_what_cannot_be_removed_is_named_and_is_no_stage_any_more() {
    let project = Project::new();
    let right = project.rebuilt();
    // As a command's stage is kept, with a file that nobody may remove.
    let root = project.sandbox.cache().join("commands-v1/root-0123456789abcdef0123456789abcdef");
    fs::create_dir_all(root.join("root/etc")).unwrap();
    for file in ["root/etc/fixed", "root/etc/other"] {
        fs::write(root.join(file), "x").unwrap();
    }
    let fixed = root.join("root/etc/fixed");
    tool("chattr", [Path::new("+i"), &fixed]);
    let undo = Undo::by(&["chattr", "-R", "-i", project.sandbox.cache().to_str().unwrap()]);
    project.imgbuild(&["cache", "gc", "--max-size", "1"]).failure(1, &["Operation not permitted"]);
    assert!(!root.exists(), "who looks for the stage finds none, or all of it");
    assert_eq!(project.rebuilt(), right);
    drop(undo);
    project.imgbuild(&["cache", "gc", "--max-size", "1"]).success();
    assert_eq!(fs::read_dir(project.sandbox.cache().join("tmp-v1")).unwrap().count(), 0);
    // A bucket that takes nothing new.
    let bucket = project.sandbox.cache().join("tmp-v1");
    tool("chattr", [Path::new("+i"), &bucket]);
    let undo = Undo::by(&["chattr", "-i", bucket.to_str().unwrap()]);
    let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
    project.build().failure(1, &["Operation not permitted", bucket.to_str().unwrap()]);
    assert!(!project.sandbox.work().join("dist/index.json").exists());
    drop(undo);
    assert_eq!(project.rebuilt(), right);
}
