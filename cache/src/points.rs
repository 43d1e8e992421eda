//! Named points at which a test ends the process, to show that no moment is a bad one. Release builds have none.

/// Defines points once: their type, their list and their names.
#[macro_export]
macro_rules! points {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$doc:meta])* $point:ident = $text:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])* $point,)* }

        impl $name {
            /// All of them, for the test that reaches each.
            pub const ALL: &[$name] = &[$($name::$point,)*];

            /// Its name in `IMGBUILD_FAILPOINT`.
            pub fn name(self) -> &'static str {
                match self { $($name::$point => $text,)* }
            }

            /// Says that the process is here, and may be its end.
            pub fn reach(self) {
                $crate::points::reach(self.name());
            }
        }
    };
}

points! {
    /// A moment at which the cache changes.
    pub enum Point {
        /// A bucket's folder was made.
        Opened = "cache-opened",
        /// A blob's bytes are written, and it has no name yet.
        BlobWritten = "blob-written",
        /// A blob has its name.
        BlobSettled = "blob-settled",
        /// A finished download is about to become a blob.
        Adopting = "blob-adopting",
        /// It did.
        Adopted = "blob-adopted",
        /// A record is written, and has no name yet.
        RecordWritten = "record-written",
        /// A record has its name.
        RecordSettled = "record-settled",
        /// What is remembered of a context's files is written, and has no name yet.
        StatsWritten = "stats-written",
        /// It has its name.
        StatsSettled = "stats-settled",
        /// A file has its name, and the one that had it before lies among the temporary ones.
        Exchanged = "file-exchanged",
        /// A leftover is gone.
        Swept = "gc-swept",
        /// A folder that goes lies among the temporary ones.
        SetAside = "gc-set-aside",
        /// An entry is gone.
        Collected = "gc-collected",
        /// What was damaged is gone.
        Rejected = "verify-removed",
        /// A blob or a record is in the tar file that is exported.
        Exported = "exported-one",
        /// A blob or a record came in.
        Imported = "imported-one",
    }
}

/// Ends the process where `IMGBUILD_FAILPOINT` says `name` or `name:n` (the n-th time): as if by `kill -9`, or by the
/// interrupt key where `IMGBUILD_FAILPOINT_SIGNAL` says `INT`. Adds the name to the file `IMGBUILD_FAILPOINT_LOG`.
#[cfg(debug_assertions)]
pub fn reach(name: &str) {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::process::{Signal, getpid, kill_process};
    static WANTED: OnceLock<Option<(String, u32, Signal)>> = OnceLock::new();
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("IMGBUILD_FAILPOINT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        let signal = match std::env::var("IMGBUILD_FAILPOINT_SIGNAL").as_deref() {
            Ok("INT") => Signal::INT,
            _ => Signal::KILL,
        };
        Some((name.to_owned(), count.parse().ok()?, signal))
    });
    if let Some(log) = std::env::var_os("IMGBUILD_FAILPOINT_LOG")
        && let Ok(mut log) = std::fs::File::options().append(true).create(true).open(log)
    {
        let _ = log.write_all(format!("{name}\n").as_bytes());
    }
    if let Some((wanted, count, signal)) = wanted
        && wanted == name
        && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        let _ = kill_process(getpid(), *signal);
        // The signal may be delivered a little later, and nothing may happen after this one.
        if *signal == Signal::KILL {
            loop {
                std::thread::park();
            }
        }
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub fn reach(_name: &str) {}
