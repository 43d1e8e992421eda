//! The process between imgbuild and the step: it enters or prepares the sandbox, and ends with everything that it started.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::order::{INNER, OWN, Order, Report, Reports};
use super::tree::at;
use super::{Level, Network, processes, tree};

/// Does all of it; the exit status says nothing that the reports don't.
pub(super) fn main(reports: &Reports) -> Result<(), String> {
    // Nothing that whoever started imgbuild had open gets further than this process.
    close_fds::set_fds_cloexec(3, &[]);
    rustix::process::setsid().map_err(|error| format!("new session: {error}"))?;
    let order = Order::read()?;
    match order.level {
        Level::Namespaces => namespaces(&order, reports),
        Level::Chroot | Level::Proot => copied(&order, reports),
    }
}

/// Starts the inner process and hands it the order. Its stdin stays open for as long as this process lives.
fn start_inner(order: &Order) -> Result<Child, String> {
    let mut child = Command::new("/proc/self/exe")
        .arg(INNER)
        .env_clear()
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("start of the inner process: {error}"))?;
    let stdin = child.stdin.as_mut().expect("it was asked for");
    order.write(stdin).map_err(|error| format!("order to the inner process: {error}"))?;
    Ok(child)
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Level [`Level::Namespaces`]: whoever is the first process in them ends them.
fn namespaces(order: &Order, reports: &Reports) -> Result<(), String> {
    // Before anything: when imgbuild ends, this process ends, and with it the namespaces.
    end_with_parent()?;
    unshare(order)?;
    let child = start_inner(order)?;
    let inner = pid(&child);
    if wait_for_either(inner)? == First::Gone {
        let _ = rustix::process::kill_process(inner, Signal::KILL);
    }
    // The kernel lets this return when the last process of the namespace is gone.
    let status = rustix::process::waitpid(Some(inner), WaitOptions::empty())
        .map_err(|error| format!("wait for the inner process: {error}"))?;
    // It reports by itself; it cannot where it was killed.
    if let Some(signal) = status.and_then(|(_, status)| status.terminating_signal()) {
        reports.send(&Report::Failed(format!("its first process was ended by signal {signal}")));
    }
    drop(child);
    Ok(())
}

/// What happened first.
#[derive(PartialEq, Eq)]
enum First {
    /// imgbuild ended, or wants this to end.
    Gone,
    /// The inner process ended.
    Ended,
}

/// A process that has asked for a process namespace may have no threads, so this waits for both at once.
fn wait_for_either(inner: Pid) -> Result<First, String> {
    use rustix::event::{PollFd, PollFlags, poll};
    let handle = rustix::process::pidfd_open(inner, rustix::process::PidfdFlags::empty())
        .map_err(|error| format!("handle of the inner process: {error}"))?;
    let stdin = io::stdin();
    loop {
        let mut watched = [PollFd::new(&handle, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) if !watched[0].revents().is_empty() => return Ok(First::Ended),
            Ok(_) if !watched[1].revents().is_empty() => return Ok(First::Gone),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("poll: {error}")),
        }
    }
}

/// Asks the kernel to end this process with the one that started it, and ends where that has happened already: whoever
/// started it holds the other end of stdin.
pub(super) fn end_with_parent() -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("signal at the parent's death: {error}"))?;
    let stdin = io::stdin();
    let mut watched = [PollFd::new(&stdin, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(|error| format!("poll: {error}"))?;
    if watched[0].revents().contains(PollFlags::HUP) {
        return Err("whoever asked is gone".into());
    }
    Ok(())
}

fn wait_for_end_of_input() {
    let mut byte = [0];
    while io::stdin().lock().read(&mut byte).is_ok_and(|length| length > 0) {}
}

fn unshare(order: &Order) -> Result<(), String> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    // Root of a user namespace that denies it keeps its groups, as an ordinary user does.
    let denied = || fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    if uid.is_root() && !denied() {
        rustix::thread::set_thread_groups(&[]).map_err(|error| format!("set groups: {error}"))?;
    }
    let mut flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    if order.network == Network::None {
        flags |= UnshareFlags::NEWNET;
    }
    #[expect(deprecated, reason = "what makes it unsafe is CLONE_FILES, which is not asked for")]
    rustix::thread::unshare(flags).map_err(|error| format!("new namespaces: {error}"))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{} {} 1", order.uid, uid.as_raw())),
        ("gid_map", format!("{} {} 1", order.gid, gid.as_raw())),
    ] {
        fs::write(Path::new("/proc/self").join(file), text).map_err(|error| format!("write {file}: {error}"))?;
    }
    // A user other than 0 would lose its capabilities when it starts the next program.
    let all = rustix::thread::capabilities(None).map_err(|error| format!("capabilities: {error}"))?.permitted;
    let sets = rustix::thread::CapabilitySets { effective: all, permitted: all, inheritable: all };
    rustix::thread::set_capabilities(None, sets).map_err(|error| format!("set capabilities: {error}"))?;
    for capability in each(all) {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .map_err(|error| format!("keep capabilities: {error}"))?;
    }
    Ok(())
}

/// One by one.
pub(super) fn each(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(move |one| set.contains(*one))
}

/// What the guard of a copied root waits for.
enum Event {
    /// imgbuild ended, or wants this to end.
    Gone,
    Ended(Pid, WaitStatus),
    /// No process is left.
    Alone,
}

/// Levels [`Level::Chroot`] and [`Level::Proot`]: all that the step starts is adopted by this process, and ended by it.
fn copied(order: &Order, reports: &Reports) -> Result<(), String> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("adopt processes: {error}"))?;
    let (sender, events) = channel();
    let gone = sender.clone();
    let begin = |work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().spawn(work).map(drop).map_err(|error| format!("begin a thread: {error}"))
    };
    begin(Box::new(move || {
        wait_for_end_of_input();
        let _ = gone.send(Event::Gone);
    }))?;
    // Begun while there is nothing yet that would have to be ended where it cannot be.
    let (started, gate) = channel::<()>();
    begin(Box::new(move || gate.recv().map_or((), |()| reap(&sender))))?;
    furnish(order).map_err(|error| error.to_string())?;
    if events.try_recv().is_ok() {
        return Err("whoever asked is gone".into());
    }
    let child = start_inner(order)?;
    let inner = pid(&child);
    let _ = started.send(());
    let status = loop {
        match events.recv() {
            Ok(Event::Ended(pid, status)) if pid == inner => break Some(status),
            Ok(Event::Ended(..)) => {}
            Ok(Event::Gone | Event::Alone) | Err(_) => break None,
        }
    };
    end_all(&events, (order.level == Level::Proot).then_some(inner));
    drop(child);
    match status {
        Some(status) if status.terminating_signal().is_some() => {
            reports.send(&Report::Signaled(status.terminating_signal().unwrap_or_default()));
        }
        Some(status) => {
            let code = status.exit_status().unwrap_or(1);
            reports.send(&Report::Exited(code));
        }
        None => {}
    }
    Ok(())
}

fn reap(events: &Sender<Event>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let _ = events.send(Event::Ended(pid, status));
            }
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            Err(_) => {
                let _ = events.send(Event::Alone);
                return;
            }
        }
    }
}

/// Kills what this process has below it until nothing is left. What is killed may have had children: they are adopted and found in
/// the next round. A tracer goes when it has nothing to trace, since what it has changed in others would go wrong without it.
fn end_all(events: &Receiver<Event>, mut tracer: Option<Pid>) {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    for round in 0.. {
        if round == 500 {
            tracer = None;
        }
        for process in processes::below(me).into_iter().filter(|it| Pid::from_raw(it.pid) != tracer) {
            process.kill();
        }
        loop {
            match events.recv_timeout(Duration::from_millis(2)) {
                Ok(Event::Alone) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
    }
}

/// Makes the tree of a level without mounts: a copy of the root, with inputs copied in and what a step finds in `/dev`.
fn furnish(order: &Order) -> io::Result<()> {
    let owner = owner(order);
    let tree = order.tree();
    tree::copy(&order.root, &tree, owner, &OWN)?;
    let mut folders: Vec<(PathBuf, u32)> = OWN.map(|name| (tree.join(name), 0o755)).into();
    folders.push((tree.join("dev/shm"), 0o1777));
    folders.push((tree.join("run/lock"), 0o1777));
    folders.push((tree.join("sys/devices/system/cpu"), 0o755));
    folders.push((tree.join("tmp"), 0o1777));
    for (folder, mode) in folders {
        at(&folder, fs::create_dir_all(&folder))?;
        at(&folder, fs::set_permissions(&folder, fs::Permissions::from_mode(mode)))?;
    }
    let online = tree.join("sys/devices/system/cpu/online");
    at(&online, fs::write(&online, "0\n"))?;
    devices(order, &tree.join("dev"))?;
    for bind in &order.binds {
        let target = tree.join(super::relative(&bind.target));
        at(&target, place(target.parent().unwrap_or(&tree), true))?;
        at(&target, tree::remove(&target))?;
        tree::copy(&bind.source, &target, owner, &[])?;
    }
    if let Some((uid, gid)) = owner {
        // The folders above what was placed, and those that the step may fill.
        let above = order.binds.iter().flat_map(|bind| tree::lacking(&order.root, super::relative(&bind.target)));
        let open = ["dev/shm", "run", "tmp", "run/lock"].map(PathBuf::from);
        for path in above.chain(open).map(|path| tree.join(path)) {
            at(&path, std::os::unix::fs::lchown(&path, Some(uid), Some(gid)))?;
        }
    }
    Ok(())
}

fn owner(order: &Order) -> Option<(u32, u32)> {
    (order.level == Level::Chroot).then_some((order.uid, order.gid))
}

/// Makes an empty file or folder, and the folders above it, where there is none.
pub(super) fn place(path: &Path, folder: bool) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if folder {
        return fs::create_dir_all(path);
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    fs::File::create(path).map(drop)
}

/// What a step finds in `/dev`, with the numbers that the kernel has given them for ever.
pub(super) const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
/// Links in `/dev`.
pub(super) const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

fn devices(order: &Order, dev: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        if order.level == Level::Proot {
            // proot shows the machine's own.
            fs::File::create(path)?;
            continue;
        }
        let failed = |error: io::Error| {
            let folder = order.work.display();
            io::Error::other(format!(
                "/dev/{name} cannot be made in {folder} (mounted `nodev`, or CAP_MKNOD is missing): {error}"
            ))
        };
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))
            .map_err(|error| failed(error.into()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        fs::File::open(&path).map_err(failed)?;
    }
    Ok(())
}
