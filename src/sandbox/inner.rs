//! The last process before the command: it puts the root together, gives its rights up and starts the command. In namespaces it
//! stays as their first process.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, open, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, WaitOptions};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};

use super::guard::{DEVICE_LINKS, DEVICES, each, end_with_parent, place};
use super::order::{HOSTNAME, OWN, Order, Report, Reports};
use super::{Access, Level, Network, filter, proot, relative, tree};

/// Names what failed.
trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, String>;
}

impl<T, E: std::fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, String> {
        self.map_err(|error| format!("{}: {error}", what()))
    }
}

/// What failed.
pub(super) enum Failed {
    /// The sandbox.
    Setup(String),
    /// The start of the command.
    Command(String),
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed::Setup(why)
    }
}

/// Does all of it. On the levels without namespaces it becomes the command.
pub(super) fn main(reports: &Reports) -> Result<(), Failed> {
    let order = Order::read()?;
    end_with_parent()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let overlay = match order.level {
        Level::Namespaces => mounts(&order)?,
        Level::Chroot => {
            chroot(&order)?;
            false
        }
        Level::Proot => false,
    };
    give_up(&order)?;
    // Changed credentials make the kernel forget it.
    end_with_parent()?;
    if order.level != Level::Proot {
        fs::create_dir_all(&order.workdir).during(|| format!("working directory {}", order.workdir.display()))?;
    }
    if order.level == Level::Proot {
        let mut command = proot::command(&order)?;
        // proot and what it starts report by stdin: the rest is the step's.
        let stderr = io::stderr().as_fd().try_clone_to_owned().during(|| "reports".into())?;
        command.stdin(Stdio::from(stderr)).stderr(log()?).env_clear();
        return Err(Failed::Setup(format!("proot: {}", command.exec())));
    }
    let command = command(&order)?;
    reports.send(&Report::Ready { overlay });
    let Some(mut command) = command else {
        reports.send(&Report::Exited(0));
        return Ok(());
    };
    if order.level == Level::Chroot {
        return Err(Failed::Command(command.exec().to_string()));
    }
    let started = match command.spawn() {
        Ok(child) => rustix::process::Pid::from_child(&child),
        Err(error) => return Err(Failed::Command(error.to_string())),
    };
    drop(command);
    // Orphans of the namespace are this process's to bury. When it ends, the kernel ends all of them.
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == started => {
                reports.send(&ended(ExitStatus::from_raw(status.as_raw())));
                return Ok(());
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failed::Setup(format!("wait for the command: {error}"))),
        }
    }
}

/// How a command ended.
pub(super) fn ended(status: ExitStatus) -> Report {
    match status.signal() {
        Some(signal) => Report::Signaled(signal),
        None => Report::Exited(status.code().unwrap_or(1)),
    }
}

/// None for a probe.
fn command(order: &Order) -> Result<Option<Command>, String> {
    let Some((program, arguments)) = order.argv.split_first() else { return Ok(None) };
    let input = File::open("/dev/null").during(|| "/dev/null".into())?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&order.workdir).env_clear();
    command.envs(order.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::from(input)).stderr(log()?);
    Ok(Some(command))
}

/// Where the command's stderr goes: where its stdout goes.
fn log() -> Result<Stdio, String> {
    io::stdout().as_fd().try_clone_to_owned().map(Stdio::from).during(|| "log".into())
}

fn chroot(order: &Order) -> Result<(), String> {
    use rustix::process::{Gid, Uid};
    rustix::process::chroot(order.tree()).during(|| "chroot".into())?;
    rustix::process::chdir("/").during(|| "chdir /".into())?;
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.gid));
    drop_bounds()?;
    rustix::thread::set_thread_groups(&[]).during(|| "set groups".into())?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).during(|| "set the group".into())?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).during(|| "set the user".into())
}

/// Puts the root together in this mount namespace and moves into it; whether it is an overlay.
fn mounts(order: &Order) -> Result<bool, String> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during(|| "private mounts".into())?;
    let host =
        open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).during(|| "open /".into())?;
    // Taken while the host's paths can be named.
    let devices = DEVICES.map(|(name, ..)| (name, taken(&Path::new("/dev").join(name))));
    let binds: Vec<_> = order.binds.iter().map(|bind| (bind, bind.source.is_dir(), taken(&bind.source))).collect();

    let overlay = match overlay(order, quiet) {
        Ok(()) => true,
        Err(_) => {
            tree::copy(&order.root, &order.tree(), None, &OWN).during(|| "copy the root".into())?;
            mount_bind(order.tree(), order.seen()).during(|| "bind the root".into())?;
            mount_remount(order.seen(), MountFlags::BIND | quiet | kept(&order.seen())?, c"")
                .during(|| "root".into())?;
            false
        }
    };
    rustix::process::chdir(order.seen()).during(|| "chdir to the root".into())?;
    rustix::process::pivot_root(".", ".").during(|| "pivot_root".into())?;

    // From here on absolute paths are inside, and so is whatever a link in the root points to.
    for name in OWN {
        let path = Path::new("/").join(name);
        place(&path, true).during(|| path.display().to_string())?;
    }
    let limits = &order.limits;
    let tmpfs = |path: &str, flags: MountFlags, mode: &str, size: u64| {
        let options = CString::new(format!("mode={mode},size={size}")).expect("no NUL in it");
        mount("tmpfs", path, "tmpfs", quiet | flags, Some(options.as_c_str())).during(|| format!("mount {path}"))
    };
    let read_only = |path: &str, more: MountFlags| {
        mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | quiet | more, c"").during(|| format!("lock {path}"))
    };
    tmpfs("/tmp", MountFlags::empty(), "1777", limits.memory / 2)?;
    tmpfs("/run", MountFlags::NOEXEC, "0755", 16 << 20)?;
    tmpfs("/dev", MountFlags::NOEXEC, "0755", 64 << 10)?;
    tmpfs("/sys", MountFlags::NOEXEC, "0755", 64 << 10)?;
    // In a container that masks parts of its own /proc there cannot be another.
    let proc_flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    let _ = mount("proc", "/proc", "proc", proc_flags, None);

    for (name, device) in devices {
        let path = Path::new("/dev").join(name);
        place(&path, false).during(|| path.display().to_string())?;
        attach(&device?, &path)?;
    }
    for (name, target) in DEVICE_LINKS {
        symlink(target, Path::new("/dev").join(name)).during(|| format!("/dev/{name}"))?;
    }
    folder("/dev/shm", 0o1777)?;
    read_only("/dev", MountFlags::NOEXEC)?;
    tmpfs("/dev/shm", MountFlags::NOEXEC, "1777", limits.memory / 4)?;
    folder("/run/lock", 0o1777)?;
    folder("/sys/devices/system/cpu", 0o755)?;
    fs::write("/sys/devices/system/cpu/online", "0\n").during(|| "/sys".into())?;
    read_only("/sys", MountFlags::NOEXEC)?;
    secrets(order)?;
    for (bind, folder, source) in binds {
        let target = Path::new("/").join(relative(&bind.target));
        place(&target, folder).during(|| target.display().to_string())?;
        attach(&source?, &target)?;
        let mut flags = MountFlags::BIND | quiet | kept(&target)?;
        if bind.access == Access::Read {
            flags |= MountFlags::RDONLY;
        }
        mount_remount(&target, flags, c"").during(|| format!("lock {}", target.display()))?;
    }
    rustix::process::fchdir(&host).during(|| "chdir to the host".into())?;
    unmount(".", UnmountFlags::DETACH).during(|| "leave the host's mounts".into())?;
    rustix::process::chdir("/").during(|| "chdir /".into())?;

    rustix::system::sethostname(HOSTNAME.as_bytes()).during(|| "set the host name".into())?;
    rustix::system::setdomainname(b"").during(|| "set the domain name".into())?;
    if order.network == Network::None {
        loopback().during(|| "start the loopback".into())?;
    }
    Ok(overlay)
}

fn overlay(order: &Order, flags: MountFlags) -> Result<(), String> {
    let folder = |path: &Path| -> Result<OwnedFd, String> {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .during(|| format!("open {}", path.display()))
    };
    let (lower, upper, scratch) = (folder(&order.root)?, folder(&order.tree())?, folder(&order.scratch())?);
    // By descriptor: no path has to be quoted.
    let number = |folder: &OwnedFd| format!("/proc/self/fd/{}", folder.as_raw_fd());
    let (lower, upper, scratch) = (number(&lower), number(&upper), number(&scratch));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={scratch},userxattr,index=off");
    let mount = |options: String| {
        let options = CString::new(options).during(|| "options".into())?;
        mount("overlay", order.seen(), "overlay", flags, Some(options.as_c_str())).during(|| "mount the overlay".into())
    };
    // Volatile: else the end of the mount waits until all that anybody wrote to that file system, the cache among it, is on the
    // disk. What is left is read at once and thrown away, so nothing of it has to outlive a crash. A kernel refuses it where the
    // file system has had an error that nobody was told of.
    mount(format!("{options},volatile")).or_else(|_| mount(options))
}

/// A mount of its own of what is at a path.
fn taken(path: &Path) -> Result<OwnedFd, String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_NO_AUTOMOUNT;
    open_tree(CWD, path, flags).during(|| format!("bind {} (something may be mounted inside it)", path.display()))
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<(), String> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during(|| format!("mount {}", target.display()))
}

/// What a user namespace may not take off a mount that it was given.
fn kept(path: &Path) -> Result<MountFlags, String> {
    let have = statvfs(path).during(|| path.display().to_string())?.f_flag;
    let pairs = [(StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC), (StatVfsMountFlags::RDONLY, MountFlags::RDONLY)];
    Ok(pairs.iter().filter(|(had, _)| have.contains(*had)).fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag))
}

fn folder(path: &str, mode: u32) -> Result<(), String> {
    fs::create_dir_all(path).during(|| path.to_owned())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).during(|| path.to_owned())
}

fn secrets(order: &Order) -> Result<(), String> {
    if order.secrets.is_empty() {
        return Ok(());
    }
    folder("/run/secrets", 0o700)?;
    for secret in &order.secrets {
        let path = Path::new("/run/secrets").join(&secret.name);
        let file = File::options().write(true).create_new(true).mode(0o400).open(&path);
        let written = file.and_then(|mut file| file.write_all(&secret.bytes));
        written.during(|| path.display().to_string())?;
    }
    Ok(())
}

/// Sets the first interface of a new network namespace up, in the kernel's own language (rtnetlink(7)).
fn loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
    const UP: u32 = 1;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let error = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::other("short answer")),
    }
}

/// Gives up all that the command must not have. It holds for this process, too, and for good.
fn give_up(order: &Order) -> Result<(), String> {
    let mut processor = CpuSet::new();
    let allowed = rustix::thread::sched_getaffinity(None).during(|| "processors".into())?;
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number)).collect();
    if let Some(number) = allowed.get(order.turn % allowed.len().max(1)) {
        processor.set(*number);
        rustix::thread::sched_setaffinity(None, &processor).during(|| "one processor".into())?;
    }
    let limits = &order.limits;
    let mut bounds = vec![
        (Resource::Core, 0),
        (Resource::Data, limits.memory),
        (Resource::Fsize, limits.disk),
        (Resource::Stack, 8 << 20),
        (Resource::Nofile, 4096),
    ];
    if order.level != Level::Proot {
        // This process and its threads count; and where the user is root, the kernel does not count.
        bounds.push((Resource::Nproc, limits.processes + 1));
    }
    for (resource, bound) in bounds {
        let maximum = rustix::process::getrlimit(resource).maximum.map_or(bound, |maximum| maximum.min(bound));
        let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
        rustix::process::setrlimit(resource, limit).during(|| format!("limit {resource:?}"))?;
    }
    rustix::thread::set_no_new_privs(true).during(|| "no new privileges".into())?;
    match order.level {
        Level::Namespaces => drop_bounds()?,
        // Done before it became another user.
        Level::Chroot => {}
        // An ordinary user may not, and has nothing that it could get back: there are no new privileges.
        Level::Proot => drop(drop_bounds()),
    }
    // Fails where there is none to clear: in kernels before 4.3.
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .during(|| "drop capabilities".into())?;
    // Nobody inside looks into this process or reaches its program through /proc.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during(|| "not dumpable".into())?;
    filter::install(order.level, order.network)
}

fn drop_bounds() -> Result<(), String> {
    for capability in each(CapabilitySet::all()) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel has fewer than there are bits.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(format!("drop the bounding set: {error}")),
        }
    }
    Ok(())
}
