//! Named points at which a test kills the process, to show that no moment is a bad one. Release builds have none.

/// Dies by `SIGKILL` where `IMGBUILD_KILL_AT` names this point, as `NAME` or `NAME:COUNT` for its COUNT-th passing.
#[cfg(debug_assertions)]
pub fn reach(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("IMGBUILD_KILL_AT") else { return };
    let (wanted, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == count.parse().unwrap_or(1) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is delivered before this returns to user code in practice; nothing may happen after it in any case.
        loop {
            std::thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub fn reach(_name: &str) {}

/// All points, for the test that reaches each of them.
pub const ALL: &[&str] = &[
    "blob-written",
    "blob-settled",
    "blob-adopting",
    "record-written",
    "record-settled",
    "collected-one",
    "imported-one",
];
