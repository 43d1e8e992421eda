//! Runs one command in a prepared root directory, without the host around it.
//!
//! It knows no stages, plans or keys: a [`Step`] names a directory tree, folders to bind into it and a command; an
//! [`Outcome`] is what the command changed, as a plain directory. How much is guaranteed is a [`Level`], chosen by trying
//! ([`offers`]) and never lowered silently: docs/sandbox.md has the table.
//!
//! ```text
//!  run ── /proc/self/exe ── guard ──────── init (process 1 of its namespaces) ── the command
//!   │      order on stdin     │ unshares, maps ids    │ mounts, pivots, gives rights up, reaps
//!   └── reads log and report, watches time, disk and `stop`; when it dies, each to the right of it dies
//! ```
//!
//! Programs that call [`run`] call [`enter_if_asked`] first in `main`: the guard is the same program.

mod emulation;
mod filter;
mod guard;
mod inner;
mod launch;
mod order;
mod probe;
mod processes;
mod proot;
mod tree;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use emulation::emulates;
use launch::{Exceeded, Overlay};
use order::{GUARD, INNER, LAST, OWN, Order, Report, Reports};

/// How a step is kept apart from the host, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Namespaces of its own (user, mount, process, network, IPC, host name) over an overlay, or a copy where there is no overlay.
    Namespaces,
    /// `chroot` into a copy, as root: another user, no capabilities, a filter of system calls that denies the network.
    Chroot,
    /// `proot`, as an ordinary user: a view and no wall. The network is denied by the same filter.
    Proot,
}

impl Level {
    /// All, best first.
    pub const ALL: [Level; 3] = [Level::Namespaces, Level::Chroot, Level::Proot];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Namespaces => "namespaces",
            Level::Chroot => "chroot",
            Level::Proot => "proot",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Level, String> {
        Level::ALL
            .into_iter()
            .find(|level| level.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no sandbox: there are namespaces, chroot and proot"))
    }
}

/// The user and group that a step sees itself as, where nothing else is wanted: a number that Debian reserves for nobody, since
/// on level [`Level::Chroot`] it is a user of the machine.
pub const ID: u32 = 65432;

/// A command, and all that it may see.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// A directory tree, seen as `/`. It is never written to. It belongs to whoever calls [`run`]; owners in it carry no
    /// meaning, the step sees everything as its own. `/dev`, `/proc`, `/sys`, `/run` and `/tmp` in it are not seen.
    pub root: &'a Path,
    /// An empty folder on a writable file system, best on the root's own: what the step writes lies here. The caller removes it
    /// with [`remove`], whatever [`run`] gives.
    pub work: &'a Path,
    /// Files and folders to show in the tree.
    pub binds: Vec<Bind>,
    /// Shown as `/run/secrets/NAME`, mode 0400, on a tmpfs.
    pub secrets: Vec<Secret>,
    /// The program and its arguments. A program without a slash is looked for on the `PATH` of `env`, inside.
    pub argv: Vec<String>,
    /// The whole environment: nothing else is set.
    pub env: Vec<(String, String)>,
    /// The working directory inside, absolute. It is created where it is missing.
    pub workdir: PathBuf,
    /// The user seen inside ([`ID`]). Level [`Level::Chroot`] refuses 0.
    pub uid: u32,
    /// The group seen inside ([`ID`]).
    pub gid: u32,
    /// Whether there is a network.
    pub network: Network,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// How much it may use.
    pub limits: Limits,
    /// The program whose `main` calls [`enter_if_asked`]; `None`: the running one.
    pub helper: Option<&'a Path>,
}

/// A file or folder of the host, shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host: a file, a folder or a socket.
    pub source: PathBuf,
    /// Inside, absolute, without `..`, not through a symbolic link of the root, and not inside of another target. It is created
    /// where it is missing. Neither it nor anything below it is part of the outcome.
    pub target: PathBuf,
    /// Whether the step may write.
    pub access: Access,
}

/// What a step may do with a [`Bind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// An input.
    Read,
    /// A cache: it keeps what steps write, and is no part of any outcome.
    Write,
}

/// Bytes that may be read inside and appear nowhere else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The file's name: no slash, not `.` or `..`.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// Whether a step has a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// None but its own loopback, or not even that.
    None,
    /// The host's, with the host's `/etc/resolv.conf`.
    Open,
}

/// How much a step may use. What goes beyond ends the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, of all its processes and its tmpfs together. `/tmp` holds at most half.
    pub memory: u64,
    /// Processes and threads at a time.
    pub processes: u64,
    /// Bytes on disk that the outcome may take; each file or folder counts for at least 1 KiB.
    pub disk: u64,
}

impl Default for Limits {
    /// 8 GiB of memory, 1024 processes, 16 GiB on disk.
    fn default() -> Limits {
        Limits { memory: 8 << 30, processes: 1024, disk: 16 << 30 }
    }
}

/// What a step left behind. Equal on every level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// A folder below `work` with what was created, or changed in content, kind or mode, and the directories above it. Times and
    /// owners carry no meaning; each directory has at least `u=rwx` and each file `u=r`. Hard links among new files are kept.
    pub changed: PathBuf,
    /// What was removed, relative to the root, sorted; of a removed directory only itself. What became another kind of file is
    /// in `changed` alone. A directory that was removed and made again is in `changed`, and here is each old entry that it
    /// lacks.
    pub removed: Vec<PathBuf>,
    /// How the step was kept apart.
    pub level: Level,
}

/// Why a step has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The machine does not offer the level.
    #[error("no sandbox `{level}` here: {lacks}")]
    Unavailable {
        /// What was asked for.
        level: Level,
        /// What is missing, and which switch would help.
        lacks: String,
    },
    /// The machine offers nothing that is good enough.
    #[error("no sandbox here is good enough:{}", lines(.offers))]
    None {
        /// Level by level, what is missing or that it is worse than what was demanded.
        offers: Vec<String>,
    },
    /// The step makes no sense.
    #[error("{0}")]
    Step(String),
    /// The sandbox could not be set up.
    #[error("cannot set up the sandbox: {0}")]
    Setup(String),
    /// The program is not there or cannot be executed.
    #[error("cannot start `{program}`: {why}")]
    Program {
        /// As given.
        program: String,
        /// The system's reason.
        why: String,
    },
    /// The command ended with a status that is not 0.
    #[error("`{program}` ended with exit status {status}")]
    Status {
        /// As given.
        program: String,
        /// 1 to 255.
        status: i32,
    },
    /// A signal ended the command.
    #[error("`{program}` was ended by signal {signal}")]
    Signal {
        /// As given.
        program: String,
        /// Its number.
        signal: i32,
    },
    /// It took too long.
    #[error("`{program}` took longer than {} s and was ended", .after.as_secs_f64())]
    Timeout {
        /// As given.
        program: String,
        /// The limit.
        after: Duration,
    },
    /// It used too much.
    #[error("`{program}` used more than {allowed} and was ended")]
    Limit {
        /// As given.
        program: String,
        /// The limit, with what it limits: `512 MiB of memory`.
        allowed: String,
    },
    /// `stop` said so.
    #[error("interrupted")]
    Stopped,
}

fn lines(offers: &[String]) -> String {
    offers.iter().fold(String::new(), |text, offer| text + "\n  " + offer)
}

/// What this machine offers, found by doing all but the command, in `scratch`, an existing folder on the file system of later work:
/// each level, or what it lacks and which switch would help. `helper` as in [`Step::helper`].
pub fn offers(scratch: &Path, helper: Option<&Path>) -> Vec<(Level, Result<(), String>)> {
    Level::ALL.into_iter().map(|level| (level, probe::offer(level, scratch, helper))).collect()
}

/// The best level that [`offers`] has and that is not below `demanded`.
///
/// # Errors
///
/// [`SandboxError::None`] with the reason of each level.
pub fn choose(offers: &[(Level, Result<(), String>)], demanded: Option<Level>) -> Result<Level, SandboxError> {
    let mut reasons = Vec::new();
    for (level, offer) in offers {
        match offer {
            Ok(()) if demanded.is_none_or(|demanded| *level <= demanded) => return Ok(*level),
            Ok(()) => reasons.push(format!("{level}: works, but is less than what is demanded")),
            Err(lacks) => reasons.push(format!("{level}: {lacks}")),
        }
    }
    Err(SandboxError::None { offers: reasons })
}

/// Runs a step to its end. When it returns, no process and no mount of it is left (but see docs/sandbox.md for levels below
/// [`Level::Namespaces`]). What the command writes to stdout and stderr goes to `log` in pieces as they come; `stop` is asked about ten
/// times a second and ends the step when it says `true`. The calling thread waits.
///
/// # Errors
///
/// See [`SandboxError`]: the level is not lowered, a command that fails has no outcome.
pub fn run(
    step: &Step<'_>,
    level: Level,
    log: &mut dyn FnMut(&[u8]),
    stop: &dyn Fn() -> bool,
) -> Result<Outcome, SandboxError> {
    let order = order(step, level)?;
    let ended = launch::launch(&order, step.helper, log, stop, step.timeout);
    if level == Level::Namespaces {
        // The kernel leaves a folder here that not even its owner may list.
        for folder in [order.scratch(), order.seen()] {
            tree::remove(&folder).map_err(|error| SandboxError::Setup(error.to_string()))?;
        }
    }
    let ended = ended?;
    if level != Level::Namespaces {
        keep_caches(&order).map_err(|error| SandboxError::Setup(format!("caches cannot be kept: {error}")))?;
    }
    let tree = order.tree();
    let written = written(&order, &tree, ended);
    let removed = written.settle().map_err(|error| SandboxError::Setup(format!("what the step wrote: {error}")))?;
    if written.usage().map_or(0, |(bytes, _)| bytes) > step.limits.disk {
        return Err(launch::limit(&order, Exceeded::Disk));
    }
    Ok(Outcome { changed: tree, removed, level })
}

/// A path of the inside without its root.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn written<'a>(order: &'a Order, tree: &'a Path, overlay: Overlay) -> tree::Written<'a> {
    let targets = || order.binds.iter().map(|bind| relative(&bind.target));
    tree::Written {
        root: &order.root,
        tree,
        whole: overlay == Overlay::Copied,
        excluded: OWN.iter().map(PathBuf::from).chain(targets().map(Path::to_owned)).collect(),
        made: targets().chain([relative(&order.workdir)]).flat_map(|path| tree::lacking(&order.root, path)).collect(),
    }
}

/// Copied caches go back to where they came from.
fn keep_caches(order: &Order) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    for Bind { source, target, .. } in order.binds.iter().filter(|bind| bind.access == Access::Write) {
        let inside = relative(target);
        let kept = order.tree().join(inside);
        // The step may have put a link to anywhere there, or on the way.
        if !tree::is_direct(&order.tree(), inside) || !kept.is_dir() {
            continue;
        }
        let metadata = std::fs::metadata(source)?;
        let owner = (order.level == Level::Chroot).then(|| (metadata.uid(), metadata.gid()));
        let mut name = source.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}-{}", std::process::id(), order.turn));
        let beside = source.with_file_name(name);
        tree::copy(&kept, &beside, owner, &[])?;
        std::fs::set_permissions(&beside, metadata.permissions())?;
        tree::remove(source)?;
        std::fs::rename(&beside, source)?;
    }
    Ok(())
}

/// Checks a step and makes its folders.
fn order(step: &Step<'_>, level: Level) -> Result<Order, SandboxError> {
    let wrong = |why: String| Err(SandboxError::Step(why));
    if step.argv.first().is_none_or(String::is_empty) {
        return wrong("a step needs a command".into());
    }
    let texts = step.argv.iter().chain(step.env.iter().flat_map(|(name, value)| [name, value]));
    if texts.into_iter().any(|text| text.contains('\0')) {
        return wrong("a command and its environment hold no NUL".into());
    }
    if let Some((name, _)) = step.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        return wrong(format!("`{name}` is no name of a variable"));
    }
    for secret in &step.secrets {
        if ["", ".", ".."].contains(&secret.name.as_str()) || secret.name.contains(['/', '\0']) {
            return wrong(format!("`{}` is no name of a secret", secret.name));
        }
    }
    if level != Level::Namespaces && !step.secrets.is_empty() {
        return wrong(format!(
            "secrets need a tmpfs of the step's own, which sandbox `{level}` has not: `namespaces` has"
        ));
    }
    if level == Level::Chroot && step.uid == 0 {
        return wrong("uid 0 would be this machine's root in sandbox `chroot`: another uid, or `namespaces`".into());
    }
    let real =
        |path: &Path| path.canonicalize().map_err(|error| SandboxError::Step(format!("{}: {error}", path.display())));
    let (root, work) = (real(step.root)?, real(step.work)?);
    for name in OWN {
        let path = root.join(name);
        if path.is_symlink() || (path.exists() && !path.is_dir()) {
            return wrong(format!("{} is no directory", path.display()));
        }
    }
    let mut binds = Vec::new();
    for bind in &step.binds {
        let source = real(&bind.source)?;
        let kind = std::fs::metadata(&source).map_err(|error| SandboxError::Step(error.to_string()))?.file_type();
        let plain = kind.is_dir() || (kind.is_file() && bind.access == Access::Read);
        if level != Level::Namespaces && !plain {
            return wrong(format!("{}: sandbox `{level}` copies files and folders only", source.display()));
        }
        binds.push(Bind { source, ..bind.clone() });
    }
    inside(&root, &step.workdir)?;
    let mut order = Order {
        level,
        root,
        work,
        binds,
        secrets: step.secrets.clone(),
        argv: step.argv.clone(),
        env: step.env.clone(),
        workdir: step.workdir.clone(),
        uid: step.uid,
        gid: step.gid,
        network: step.network,
        limits: step.limits,
        turn: 0,
        proot: None,
    };
    order.bind_hosts().map_err(|error| SandboxError::Setup(error.to_string()))?;
    for (number, bind) in order.binds.iter().enumerate() {
        inside(&order.root, &bind.target)?;
        let nested = |other: &Bind| bind.target.starts_with(&other.target) || other.target.starts_with(&bind.target);
        if bind.target == Path::new("/") || order.binds[..number].iter().any(nested) {
            return wrong(format!(
                "{}: nothing can be bound over or inside of another bind, or over `/`",
                bind.target.display()
            ));
        }
    }
    launch::prepare(&mut order)?;
    Ok(order)
}

/// No link of the root leads a path of the inside elsewhere, on the way or at its end.
pub fn check_direct(root: &Path, path: &Path) -> Result<(), SandboxError> {
    if tree::is_direct(root, relative(path)) {
        return Ok(());
    }
    let why = "it goes through a symbolic link of the root; write the path that the link leads to";
    Err(SandboxError::Step(format!("{}: {why}", path.display())))
}

/// A path of the inside can be reached, and no link of the root leads it elsewhere.
fn inside(root: &Path, path: &Path) -> Result<(), SandboxError> {
    use std::path::Component;
    let plain =
        path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain {
        return Err(SandboxError::Step(format!("{}: a path inside is absolute and has no `..`", path.display())));
    }
    let own = OWN.iter().any(|name| relative(path).starts_with(name));
    if own { Ok(()) } else { check_direct(root, path) }
}

static CAN_ENTER: AtomicBool = AtomicBool::new(false);

/// Becomes a part of a sandbox and does not return, if this process was started as one; the first thing in `main`.
pub fn enter_if_asked() {
    CAN_ENTER.store(true, Ordering::Relaxed);
    let asked = std::env::args_os().nth(1);
    let Some(word) = asked.as_ref().and_then(|word| word.to_str()) else { return };
    let status = match word {
        GUARD | INNER | LAST => part(word),
        _ => return,
    };
    std::process::exit(status);
}

fn part(word: &str) -> i32 {
    let Ok(reports) = Reports::new() else { return 1 };
    let ended = match word {
        GUARD => guard::main(&reports).map_err(inner::Failed::from),
        // The log gets what went wrong: stderr is not for reports there.
        LAST => proot::last().map_err(inner::Failed::from),
        _ => inner::main(&reports),
    };
    match ended {
        Ok(()) => return 0,
        Err(inner::Failed::Setup(why)) => reports.send(&Report::Failed(why)),
        Err(inner::Failed::Command(why)) => reports.send(&Report::NotStarted(why)),
    }
    127
}

/// Removes a folder that a step has worked in, whatever modes it left; one that is missing is no error. Links are not followed.
///
/// # Errors
///
/// The first that the file system gives.
pub fn remove(folder: &Path) -> std::io::Result<()> {
    tree::remove(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_written_and_read() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!("docker".parse::<Level>().is_err());
    }

    #[test]
    fn the_best_level_is_chosen_and_none_below_the_demand() {
        let offers = [(Level::Namespaces, Err("EPERM".to_owned())), (Level::Chroot, Ok(())), (Level::Proot, Ok(()))];
        assert_eq!(choose(&offers, None), Ok(Level::Chroot));
        assert_eq!(choose(&offers, Some(Level::Proot)), Ok(Level::Chroot));
        let refused = choose(&offers, Some(Level::Namespaces)).unwrap_err().to_string();
        assert!(refused.contains("namespaces: EPERM") && refused.contains("chroot: works, but"), "{refused}");
    }
}
