//! Processes of the machine, as `/proc` shows them.

use std::fs;
use std::time::{Duration, Instant};

/// Whether a process with this word among its arguments is alive.
pub fn alive(word: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes()))
    })
}

/// Waits for something that another process does, without which the test fails.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that this one has started.
pub fn child_of(parent: u32) -> u32 {
    let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        (line.trim().parse() == Ok(parent)).then(|| entry.file_name().to_str().unwrap().parse().unwrap())
    });
    found.unwrap()
}
