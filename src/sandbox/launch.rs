//! The outer side: starts the guard, reads what it and the step say, and watches time, memory, processes and disk.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::order::{GUARD, Order, Report};
use super::tree::Readable;
use super::{CAN_ENTER, Level, SandboxError, processes};

/// How long things are left alone between two looks.
const BEAT: Duration = Duration::from_millis(50);
/// How long a guard may take to end what it started. Killed before, it leaves processes that end a little later: those of a step are
/// ended by the kernel once the first of them has closed its files, for which it may wait for a busy disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long pipes are listened to that somebody holds behind the end of the guard.
const GRACE: Duration = Duration::from_secs(5);
/// What is left free on the file system of the work folder, in bytes.
const FLOOR: u64 = 64 << 20;

/// Whether the tree holds only what was written, or a whole copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlay {
    Mounted,
    Copied,
}

/// What was used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    Memory,
    Processes,
    Disk,
    /// The file system itself.
    Floor,
    /// Folders in folders.
    Depth,
}

pub(super) fn limit(order: &Order, what: Exceeded) -> SandboxError {
    let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
    let allowed = match what {
        Exceeded::Memory => format!("{} of memory", mebibytes(order.limits.memory)),
        Exceeded::Processes => format!("{} processes", order.limits.processes),
        Exceeded::Disk => format!("{} on disk", mebibytes(order.limits.disk)),
        Exceeded::Floor => format!("the disk has: less than {} are left", mebibytes(FLOOR)),
        Exceeded::Depth => "the depth that folders may have".into(),
    };
    SandboxError::Limit { program: program(order), allowed }
}

fn program(order: &Order) -> String {
    order.argv.first().cloned().unwrap_or_default()
}

/// Makes the folders of a step, and settles what is decided once.
pub(super) fn prepare(order: &mut Order) -> Result<(), SandboxError> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    // Several builders start with different processors.
    let first = usize::try_from(std::process::id()).unwrap_or(0);
    order.turn = first.wrapping_add(TURN.fetch_add(1, Ordering::Relaxed));
    let failed = |path: &Path, error: std::io::Error| SandboxError::Setup(format!("{}: {error}", path.display()));
    let mut folders = vec![order.tree()];
    if order.level == Level::Namespaces {
        folders.extend([order.scratch(), order.seen()]);
    }
    for folder in folders {
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| failed(&folder, error))?;
    }
    // The root directory of an overlay is the upper one.
    let metadata = fs::metadata(&order.root).map_err(|error| failed(&order.root, error))?;
    let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777);
    fs::set_permissions(order.tree(), mode).map_err(|error| failed(&order.tree(), error))?;
    if order.level == Level::Proot {
        order.proot = Some(find("proot").ok_or_else(|| SandboxError::Unavailable {
            level: Level::Proot,
            lacks: "`proot` is not on the PATH; packages of that name have it".into(),
        })?);
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0))
}

/// Runs an order to its end.
pub(super) fn launch(
    order: &Order,
    helper: Option<&Path>,
    log: &mut dyn FnMut(&[u8]),
    stop: &dyn Fn() -> bool,
    timeout: Option<Duration>,
) -> Result<Overlay, SandboxError> {
    let mut running = Running::start(order, helper)?;
    let mut watch = Watch::new(order);
    let started = Instant::now();
    let mut cut = None;
    let logged = Cell::new(0u64);
    let mut log = |piece: &[u8]| {
        logged.set(logged.get() + piece.len() as u64);
        log(piece);
    };
    while running.listen(&mut log) {
        if order.level == Level::Proot && running.ending.is_none() && running.last().is_some() {
            // proot goes on for as long as anything that it started.
            running.end();
        }
        if running.ended.is_some() {
            // It has ended all that it started, unless it was killed.
            watch.end_orphans();
            continue;
        }
        if running.ending.is_some() {
            running.hurry();
            continue;
        }
        cut = if stop() {
            Some(SandboxError::Stopped)
        } else if let Some(after) = timeout.filter(|timeout| started.elapsed() > *timeout) {
            Some(SandboxError::Timeout { program: program(order), after })
        } else if logged.get() > order.limits.disk {
            Some(limit(order, Exceeded::Disk))
        } else {
            running
                .overlay()
                .and_then(|overlay| watch.exceeded(running.child.id(), overlay))
                .map(|what| limit(order, what))
        };
        if cut.is_some() {
            running.end();
        }
    }
    let overlay = running.overlay();
    let last = running.finish();
    match (cut, last) {
        (Some(cut), _) => Err(cut),
        (None, Ok(Report::Exited(0))) => overlay.ok_or_else(|| SandboxError::Setup("it was never ready".into())),
        (None, Ok(Report::Exited(status))) => Err(SandboxError::Status { program: program(order), status }),
        (None, Ok(Report::Signaled(signal))) => Err(SandboxError::Signal { program: program(order), signal }),
        (None, Ok(Report::NotStarted(why))) => Err(SandboxError::Program { program: program(order), why }),
        (None, Ok(Report::Failed(why))) => Err(SandboxError::Setup(why)),
        (None, Ok(Report::Ready { .. })) => Err(SandboxError::Setup("it ended before the step did".into())),
        (None, Err(why)) => Err(SandboxError::Setup(why)),
    }
}

/// A guard, and what comes out of it.
struct Running {
    child: Child,
    /// Closed, it tells the guard to end everything.
    line: Option<ChildStdin>,
    log: Option<File>,
    said: Option<File>,
    heard: Vec<u8>,
    ending: Option<Instant>,
    ended: Option<Instant>,
}

impl Running {
    fn start(order: &Order, helper: Option<&Path>) -> Result<Running, SandboxError> {
        if helper.is_none() && !CAN_ENTER.load(Ordering::Relaxed) {
            let why = "this program does not call `enter_if_asked` in `main`, and no helper is named";
            return Err(SandboxError::Setup(why.into()));
        }
        let helper = helper.map_or_else(|| Ok("/proc/self/exe".into()), Path::canonicalize);
        let failed = |error: std::io::Error| SandboxError::Setup(format!("start of the guard: {error}"));
        let mut command = Command::new(helper.map_err(failed)?);
        command.arg(GUARD).env_clear().current_dir("/");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let mut line = child.stdin.take().expect("it was asked for");
        // A guard that cannot read says why, or ends and shows it.
        let _ = order.write(&mut line);
        let log = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let said = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        Ok(Running { child, line: Some(line), log, said, heard: Vec::new(), ending: None, ended: None })
    }

    /// Waits a little for more; whether there may be more.
    fn listen(&mut self, log: &mut dyn FnMut(&[u8])) -> bool {
        let mut watched: Vec<PollFd<'_>> =
            [&self.log, &self.said].into_iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        if watched.is_empty() {
            return false;
        }
        let wait = Timespec { tv_sec: 0, tv_nsec: BEAT.subsec_nanos().into() };
        // An interrupted wait is a short one.
        let quiet = poll(&mut watched, Some(&wait)).is_ok_and(|ready| ready == 0);
        let mut ready = watched.iter().map(|pipe| !pipe.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let log_ready = self.log.is_some() && ready.next().unwrap_or(false);
        let said_ready = self.said.is_some() && ready.next().unwrap_or(false);
        let mut piece = [0; 1 << 16];
        if log_ready {
            match self.log.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut piece)) {
                Ok(0) | Err(_) => self.log = None,
                Ok(length) => log(&piece[..length]),
            }
        }
        if said_ready {
            match self.said.as_mut().map_or(Ok(0), |pipe| pipe.read(&mut piece)) {
                Ok(0) | Err(_) => self.said = None,
                Ok(length) => self.heard.extend_from_slice(&piece[..length]),
            }
        }
        if self.ended.is_none() && matches!(self.child.try_wait(), Ok(Some(_))) {
            self.ended = Some(Instant::now());
        }
        // A guard that was killed may leave others behind that hold the pipes: they are not waited for.
        !(quiet && self.ended.is_some_and(|ended| ended.elapsed() > GRACE))
    }

    fn reports(&self) -> impl Iterator<Item = Report> {
        self.heard.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
    }

    /// Known when the step is ready.
    fn overlay(&self) -> Option<Overlay> {
        self.reports().find_map(|report| match report {
            Report::Ready { overlay } => Some(if overlay { Overlay::Mounted } else { Overlay::Copied }),
            _ => None,
        })
    }

    /// The report that counts: the first one about an end.
    fn last(&self) -> Option<Report> {
        self.reports().find(|report| !matches!(report, Report::Ready { .. }))
    }

    fn end(&mut self) {
        self.line = None;
        self.ending = Some(Instant::now());
    }

    /// Ends a guard that does not end by itself.
    fn hurry(&mut self) {
        if self.ending.is_some_and(|since| since.elapsed() > PATIENCE) {
            let _ = self.child.kill();
        }
    }

    fn finish(mut self) -> Result<Report, String> {
        drop(self.line.take());
        let status = self.child.wait().map_err(|error| format!("wait for the guard: {error}"))?;
        self.last().ok_or_else(|| {
            let said = String::from_utf8_lossy(&self.heard);
            let said: Vec<&str> = said.lines().filter(|line| !line.starts_with('{')).collect();
            format!("the guard ended without a word ({status}) {}", said.join("; ")).trim_end().to_owned()
        })
    }
}

impl Drop for Running {
    /// Where the caller panics, nothing goes on behind it.
    fn drop(&mut self) {
        drop(self.line.take());
        let _ = self.child.wait();
    }
}

/// What a running step uses.
struct Watch<'a> {
    order: &'a Order,
    free: Option<u64>,
    next: Instant,
    next_walk: Instant,
    /// The step's processes at the last look.
    known: Vec<processes::Process>,
    /// What a copy held before the step began.
    before: Option<u64>,
}

impl<'a> Watch<'a> {
    fn new(order: &'a Order) -> Watch<'a> {
        let now = Instant::now();
        Watch { order, free: free(&order.work), next: now, next_walk: now, known: Vec::new(), before: None }
    }

    fn exceeded(&mut self, guard: u32, overlay: Overlay) -> Option<Exceeded> {
        let now = Instant::now();
        if now < self.next {
            return None;
        }
        let limits = &self.order.limits;
        let used = processes::below(guard.cast_signed());
        self.next = now + BEAT.max(now.elapsed() * 5);
        if used.iter().map(|process| process.memory).sum::<u64>() > limits.memory {
            return Some(Exceeded::Memory);
        }
        // The first process of the namespaces is not the step's, nor are proot and what proot starts.
        let ours = if self.order.level == Level::Proot { 2 } else { 1 };
        if used.iter().map(|process| process.threads).sum::<u64>() > limits.processes + ours {
            return Some(Exceeded::Processes);
        }
        self.known = used;
        let free = free(&self.order.work);
        if let (Some(before), Some(free)) = (self.free, free)
            && before > 2 * FLOOR
            && free < FLOOR
        {
            return Some(Exceeded::Floor);
        }
        if now < self.next_walk {
            return None;
        }
        let tree = self.order.tree();
        let walk = Instant::now();
        let Ok((bytes, readable)) = super::written(self.order, &tree, overlay).usage() else {
            return Some(Exceeded::Depth);
        };
        self.next_walk = Instant::now() + (walk.elapsed() * 10).clamp(2 * BEAT, Duration::from_secs(5));
        let before = match overlay {
            Overlay::Mounted => 0,
            Overlay::Copied => *self.before.get_or_insert(bytes),
        };
        // What hides in a locked folder is seen in what is left for all.
        let hidden = match (readable, self.free, free) {
            (Readable::Some, Some(before), Some(free)) => before.saturating_sub(free),
            _ => 0,
        };
        (bytes.saturating_sub(before).max(hidden) > limits.disk).then_some(Exceeded::Disk)
    }
}

impl Watch<'_> {
    /// Kills what a guard that was killed has left, as far as it was there at the last look or descends from what was.
    fn end_orphans(&mut self) {
        for process in std::mem::take(&mut self.known).into_iter().filter(processes::Process::is_there) {
            for one in processes::below(process.pid).into_iter().chain([process]) {
                one.kill();
            }
        }
    }
}

/// Bytes that are left on the file system of a folder.
fn free(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Runs an order that has no command: what fails is the sandbox, by its own words.
pub(super) fn attempt(order: &Order, helper: Option<&Path>) -> Result<(), SandboxError> {
    let mut said = Vec::new();
    let tried =
        launch(order, helper, &mut |piece| said.extend_from_slice(piece), &|| false, Some(Duration::from_secs(20)));
    tried.map(drop).map_err(|error| match error {
        SandboxError::Status { .. } | SandboxError::Signal { .. } => {
            let said = String::from_utf8_lossy(&said);
            SandboxError::Setup(format!("it ended early: {}", said.lines().collect::<Vec<_>>().join("; ")))
        }
        other => other,
    })
}
