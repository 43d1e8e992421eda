//! Named points of a push at which a test ends the process. Release builds have none.

/// Defines the points once: their type, their list and their names.
macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A moment of a push.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point { $($(#[$doc])* $point,)* }

        impl Point {
            /// All points, for the test that reaches each of them.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// Its name in `IMGBUILD_FAILPOINT`.
            pub fn name(self) -> &'static str {
                match self { $(Point::$point => $name,)* }
            }
        }
    };
}

points! {
    /// A blob is about to be asked for from a sister repository.
    Mount = "push-mount",
    /// The registry mounted a blob.
    Mounted = "push-mounted",
    /// A blob's upload is about to begin.
    Upload = "push-upload",
    /// A chunk of a blob arrived, and more are to come.
    Chunk = "push-chunk",
    /// A blob arrived.
    Uploaded = "push-uploaded",
    /// All blobs of an image arrived.
    Blobs = "push-blobs",
    /// One of an image's manifests arrived.
    Manifest = "push-manifest",
    /// All manifests of an image's platforms arrived.
    Manifests = "push-manifests",
    /// An image is whole, and no tag names it yet.
    Index = "push-index",
    /// One tag was written.
    Tag = "push-tag",
    /// All tags of an image were written.
    Tags = "push-tags",
}

/// Ends the process where `IMGBUILD_FAILPOINT` says `name` or `name:n` (the n-th time): as if by `kill -9`, or by the
/// interrupt key where `IMGBUILD_FAILPOINT_SIGNAL` says `INT`.
#[cfg(debug_assertions)]
pub(crate) fn failpoint(point: Point) {
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
    if let Some((wanted, count, signal)) = wanted
        && wanted == point.name()
        && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        let _ = kill_process(getpid(), *signal);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub(crate) fn failpoint(_: Point) {}
