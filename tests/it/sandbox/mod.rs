//! The sandbox of commands, on each level that the machine offers: the same outcome everywhere, and escapes tried and refused.
//!
//! The tests of [`here`] run as whoever runs them; those of [`elsewhere`] run them again as an ordinary user and in containers.

mod elsewhere;
mod here;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use imgbuild::sandbox::{self, ID, Level, Limits, Network, Outcome, SandboxError, Step};

pub use elsewhere::image;

use crate::support::run::{binary, outcome, tool};

/// A folder that any user of the machine can reach, removed at the end.
struct Place {
    folder: PathBuf,
    root: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        sandbox::remove(&self.folder).unwrap();
    }
}

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("imgbuild-sandbox-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        let root = folder.join("root");
        fs::create_dir(&folder).unwrap();
        make_root(&root);
        Place { folder, root }
    }

    /// A step with nothing but a command.
    fn step<'a>(&'a self, work: &'a Path, argv: &[&str]) -> Step<'a> {
        fs::create_dir(work).unwrap();
        Step {
            root: &self.root,
            work,
            binds: Vec::new(),
            secrets: Vec::new(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![("PATH".into(), "/bin".into())],
            workdir: "/".into(),
            uid: ID,
            gid: ID,
            network: Network::None,
            timeout: Some(Duration::from_secs(60)),
            limits: Limits { memory: 1 << 30, processes: 64, disk: 256 << 20 },
            helper: Some(helper()),
        }
    }

    /// Runs a script by busybox's shell on a level: what it wrote, and how it ended.
    fn shell(
        &self,
        level: Level,
        script: &str,
        change: impl FnOnce(&mut Step<'_>),
    ) -> (String, Result<Seen, SandboxError>) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let work = self.folder.join(format!("work-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut step = self.step(&work, &["/bin/sh", "-c", script]);
        change(&mut step);
        let (log, ended) = run(&step, level);
        let seen = ended.map(|outcome| Seen { changed: listing(&outcome.changed), removed: outcome.removed });
        sandbox::remove(&work).unwrap();
        (log, seen)
    }

    /// A script that must succeed; gives what it wrote.
    #[track_caller]
    fn says(&self, level: Level, script: &str) -> String {
        let (log, ended) = self.shell(level, script, |_| {});
        assert!(ended.is_ok(), "{level}: {ended:?}\n{log}");
        log
    }
}

/// An outcome that can be compared.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    changed: BTreeMap<String, String>,
    removed: Vec<PathBuf>,
}

fn run(step: &Step<'_>, level: Level) -> (String, Result<Outcome, SandboxError>) {
    let mut log = Vec::new();
    let ended = sandbox::run(step, level, &mut |piece| log.extend_from_slice(piece), &|| false);
    (String::from_utf8_lossy(&log).into_owned(), ended)
}

fn helper() -> &'static Path {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    HELPER.get_or_init(binary)
}

/// What the machine offers to whoever runs the tests: at least something, else they prove nothing.
fn levels() -> &'static [Level] {
    static LEVELS: OnceLock<Vec<Level>> = OnceLock::new();
    LEVELS.get_or_init(|| {
        let offers = sandbox::offers(&std::env::temp_dir(), Some(helper()));
        let levels = offers.iter().filter(|(_, offer)| offer.is_ok()).map(|(level, _)| *level).collect::<Vec<_>>();
        let expected = std::env::var("IMGBUILD_TEST_LEVELS");
        let names = levels.iter().map(Level::to_string).collect::<Vec<_>>().join(" ");
        match expected {
            Ok(expected) => assert_eq!(names, expected, "{offers:?}"),
            Err(_) => assert!(levels.contains(&Level::Namespaces) && levels.contains(&Level::Proot), "{offers:?}"),
        }
        levels
    })
}

/// A root with busybox and perl, which makes any system call, from this machine's own files.
fn make_root(root: &Path) {
    if let Some(made) = std::env::var_os("IMGBUILD_TEST_ROOT") {
        tool("cp", ["-R".as_ref(), made.as_os_str(), root.as_os_str()]);
        fs::set_permissions(root.join("opt/old/deep/b"), fs::Permissions::from_mode(0o600)).unwrap();
        return;
    }
    for folder in ["bin", "etc", "opt/old/deep", "opt/kept", "usr/share", "lib64", "tmp", "var"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    add_program(root, Path::new("/usr/bin/perl"), "bin/perl");
    add_program(root, Path::new("/bin/busybox"), "bin/busybox");
    for name in [
        "sh", "cat", "chmod", "cp", "dd", "env", "hostname", "id", "kill", "ln", "ls", "mkdir", "mount", "mv", "nc",
        "nproc", "pwd", "rm", "seq", "setsid", "sleep", "stat", "sync", "touch", "true", "umount", "unshare", "chroot",
        "mknod", "head", "grep",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    for (file, content, mode) in [
        ("etc/motd", "hello\n", 0o644),
        ("opt/old/a", "a", 0o644),
        ("opt/old/deep/b", "b", 0o600),
        ("opt/kept/c", "c", 0o444),
        ("opt/kept/d", "d", 0o755),
    ] {
        fs::write(root.join(file), content).unwrap();
        fs::set_permissions(root.join(file), fs::Permissions::from_mode(mode)).unwrap();
    }
    for folder in ["", "bin", "etc", "opt", "opt/old", "opt/old/deep", "opt/kept", "usr", "usr/share", "lib64", "var"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("motd", root.join("etc/link")).unwrap();
    symlink("/opt/kept", root.join("var/elsewhere")).unwrap();
}

/// A program with the libraries that it is linked to, where its loader looks for them.
fn add_program(root: &Path, program: &Path, name: &str) {
    fs::copy(program, root.join(name))
        .unwrap_or_else(|error| panic!("{}: {error}; run `tests/tools`", program.display()));
    let linked = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8(linked.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        if !target.exists() {
            fs::copy(word, target).unwrap();
        }
    }
}

/// Kind, mode and content, a line a path.
fn listing(folder: &Path) -> BTreeMap<String, String> {
    fn walk(top: &Path, folder: &Path, lines: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.mode() & 0o7777;
            let what = if metadata.is_dir() {
                walk(top, &path, lines);
                format!("dir {mode:04o}")
            } else if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if metadata.is_file() {
                let links = if metadata.nlink() > 1 { " linked" } else { "" };
                format!("file {mode:04o} {}{links}", String::from_utf8_lossy(&fs::read(&path).unwrap()).trim_end())
            } else {
                format!("special {mode:04o}")
            };
            lines.insert(path.strip_prefix(top).unwrap().display().to_string(), what);
        }
    }
    let mut lines = BTreeMap::new();
    walk(folder, folder, &mut lines);
    lines
}

/// On a file system that is nearly full.
fn full_disk() {
    let place = Place::new();
    for level in levels() {
        let script = "i=0; while dd if=/dev/zero of=/big$i bs=1M count=1 2>/dev/null; do i=$((i+1)); done; exit 3";
        let (log, ended) = place.shell(*level, script, |step| step.limits.disk = 16 << 30);
        assert!(
            matches!(ended, Err(SandboxError::Limit { .. } | SandboxError::Status { .. })),
            "{level}: {ended:?} {log}"
        );
        place.says(*level, "true");
    }
}

#[test]
fn a_full_disk_ends_the_step() {
    // It starts itself once more where a small disk is mounted.
    if std::env::var_os("SANDBOX_SMALL_DISK").is_some() {
        return full_disk();
    }
    assert!(rustix::process::geteuid().is_root(), "only root can mount a small disk; run the tests as root");
    let disk = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=400m,mode=1777 disk \"$1\" && TMPDIR=$1 SANDBOX_SMALL_DISK=1 exec \"$2\" --exact sandbox::a_full_disk_ends_the_step --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(disk.path()).arg(std::env::current_exe().unwrap());
    let said = outcome(&mut command).success();
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn a_program_that_cannot_become_a_guard_is_not_started() {
    let place = Place::new();
    let work = place.folder.join("work");
    let step = Step { helper: None, ..place.step(&work, &["true"]) };
    let refused = run(&step, Level::Namespaces).1.unwrap_err().to_string();
    assert!(refused.contains("does not call `enter_if_asked`"), "{refused}");
}
