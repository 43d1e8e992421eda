//! What a machine offers, and what to tell whoever wants more.

use std::fs;
use std::path::Path;

use super::order::Order;
use super::{ID, Level, Limits, Network, SandboxError, launch, tree};

/// Tries a level with all but a command.
pub(super) fn offer(level: Level, scratch: &Path, helper: Option<&Path>) -> Result<(), String> {
    let folder = tempfile::Builder::new().prefix("sandbox-").tempdir_in(scratch);
    let folder = folder.map_err(|error| format!("{}: {error}", scratch.display()))?;
    let tried = attempt(level, folder.path(), helper);
    // What is left may be locked.
    let removed = tree::remove(folder.path()).map_err(|error| error.to_string());
    tried.map_err(|error| match error {
        SandboxError::Unavailable { lacks, .. } => lacks,
        SandboxError::Setup(why) => explain(level, &why),
        other => other.to_string(),
    })?;
    removed
}

fn attempt(level: Level, folder: &Path, helper: Option<&Path>) -> Result<(), SandboxError> {
    let failed = |error: std::io::Error| SandboxError::Setup(error.to_string());
    let folder = folder.canonicalize().map_err(failed)?;
    let (root, work) = (folder.join("root"), folder.join("work"));
    for folder in [&root, &work] {
        fs::create_dir(folder).map_err(failed)?;
    }
    let mut order = Order {
        level,
        root,
        work,
        binds: Vec::new(),
        secrets: Vec::new(),
        argv: Vec::new(),
        env: Vec::new(),
        workdir: "/".into(),
        uid: ID,
        gid: ID,
        network: Network::None,
        limits: Limits::default(),
        turn: 0,
        proot: None,
    };
    launch::prepare(&mut order)?;
    launch::attempt(&order, helper)
}

/// Adds which switch would help.
fn explain(level: Level, why: &str) -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered = status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    let helps = match level {
        Level::Namespaces if is("/proc/sys/user/max_user_namespaces", "0") => {
            "set sysctl user.max_user_namespaces above 0"
        }
        Level::Namespaces if is("/proc/sys/kernel/unprivileged_userns_clone", "0") => {
            "set sysctl kernel.unprivileged_userns_clone to 1"
        }
        Level::Namespaces if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "set sysctl kernel.apparmor_restrict_unprivileged_userns to 0, or give imgbuild an AppArmor profile with `userns`"
        }
        Level::Namespaces if filtered => {
            "a filter of system calls is active, as in a container: start it with `--security-opt seccomp=unconfined`, or a profile that allows `unshare`, `mount` and `pivot_root`"
        }
        Level::Namespaces => "the kernel has to allow user namespaces",
        Level::Chroot if !rustix::process::geteuid().is_root() => "it needs root",
        Level::Chroot => {
            "it needs the capabilities SYS_CHROOT, SETUID, SETGID, SETPCAP, CHOWN, MKNOD and KILL, as Docker gives them"
        }
        Level::Proot => {
            "it needs `ptrace`: Linux 4.8 or newer, or a container with the capability SYS_PTRACE; and a `/tmp` that can be written to and executed from"
        }
    };
    format!("{why} ({helps})")
}
