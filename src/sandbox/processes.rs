//! Processes of this machine, as /proc shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal};

/// What one uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: i32,
    /// When it began, clock ticks since the machine's start: a number is given again, and soon where there are few of them.
    began: u64,
    pub threads: u64,
    /// Bytes of memory that are no file's.
    pub memory: u64,
}

/// All that descend from a process, without itself.
pub(super) fn below(top: i32) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<(i32, u64)>> = BTreeMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        // It may have ended since.
        if let Some((parent, began)) = origin(pid) {
            children.entry(parent).or_default().push((pid, began));
        }
    }
    let (mut found, mut next, mut seen) = (Vec::new(), vec![top], BTreeSet::from([top]));
    while let Some(pid) = next.pop() {
        for &(pid, began) in children.get(&pid).into_iter().flatten() {
            if seen.insert(pid) {
                next.push(pid);
                if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
                    let (threads, memory) = used(&status);
                    found.push(Process { pid, began, threads, memory });
                }
            }
        }
    }
    found
}

impl Process {
    /// Whether its number is still its own.
    pub fn is_there(&self) -> bool {
        origin(self.pid).is_some_and(|(_, began)| began == self.began)
    }

    /// Kills it, and never another that has got its number since.
    pub fn kill(&self) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // What is open stays the same process, whoever it is.
            Ok(open) if self.is_there() => drop(rustix::process::pidfd_send_signal(&open, Signal::KILL)),
            // Kernels before 5.3, and filters that do not know the call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) if self.is_there() => {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            _ => {}
        }
    }
}

/// A process' parent and when it began; `None` where it has ended.
fn origin(pid: i32) -> Option<(i32, u64)> {
    parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 4 and 22 of proc_pid_stat(5).
fn parse(stat: &[u8]) -> Option<(i32, u64)> {
    // Its name may hold anything.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    Some((parent, fields.nth(17)?.parse().ok()?))
}

/// Threads, and bytes of memory, by a status (proc_pid_status(5)). One that is ending has no memory any more.
fn used(status: &str) -> (u64, u64) {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let memory = (field("RssAnon").unwrap_or(0) + field("RssShmem").unwrap_or(0)) << 10;
    (field("Threads").unwrap_or(1), memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_below_its_parent() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let me = std::process::id().cast_signed();
        let found = below(me);
        assert!(found.iter().any(|process| process.pid == child.id().cast_signed()), "{found:?}");
        assert!(!found.iter().any(|process| process.pid == me));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn only_the_process_that_was_seen_is_killed() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let seen = below(std::process::id().cast_signed());
        let seen = *seen.iter().find(|process| process.pid == child.id().cast_signed()).unwrap();
        assert!(seen.is_there() && seen.began > 0);
        // As if its number had been another's before.
        let earlier = Process { began: seen.began - 1, ..seen };
        assert!(!earlier.is_there());
        earlier.kill();
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(child.try_wait().unwrap(), None);
        seen.kill();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        assert!(!seen.is_there());
    }

    #[test]
    fn what_a_process_uses_is_read() {
        let text = "Name:\tx y\nPPid:\t7\nRssAnon:\t  12 kB\nRssFile:\t 99 kB\nRssShmem:\t 4 kB\nThreads:\t3\n";
        assert_eq!(used(text), (3, 16384));
        assert_eq!(used("Name:\tx\n"), (1, 0));
        let text = b"5 (x) y) S 7 5 5 0 -1 4194304 1 0 0 0 2 3 0 0 20 0 1 0 8765 99 1";
        assert_eq!(parse(text), Some((7, 8765)));
        assert_eq!(parse(b"5 (x) S"), None);
    }
}
