//! Processes of this machine, as /proc shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What one uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: i32,
    parent: i32,
    pub threads: u64,
    /// Bytes of memory that are no file's.
    pub memory: u64,
}

/// All that descend from a process, without itself.
pub(super) fn below(top: i32) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        // It may have ended since.
        if let Some(process) = fs::read_to_string(format!("/proc/{pid}/status")).ok().and_then(|text| parse(pid, &text))
        {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let (mut found, mut next, mut seen) = (Vec::new(), vec![top], BTreeSet::from([top]));
    while let Some(pid) = next.pop() {
        for process in children.get(&pid).into_iter().flatten() {
            if seen.insert(process.pid) {
                found.push(*process);
                next.push(process.pid);
            }
        }
    }
    found
}

fn parse(pid: i32, status: &str) -> Option<Process> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Process {
        pid,
        parent: i32::try_from(field("PPid")?).ok()?,
        threads: field("Threads").unwrap_or(1),
        // One that is ending has no memory any more.
        memory: (field("RssAnon").unwrap_or(0) + field("RssShmem").unwrap_or(0)) << 10,
    })
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
    fn what_a_process_uses_is_read() {
        let text = "Name:\tx y\nPPid:\t7\nRssAnon:\t  12 kB\nRssFile:\t 99 kB\nRssShmem:\t 4 kB\nThreads:\t3\n";
        assert_eq!(parse(5, text), Some(Process { pid: 5, parent: 7, threads: 3, memory: 16384 }));
        assert_eq!(parse(5, "Name:\tx\n"), None);
    }
}
