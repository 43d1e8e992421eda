//! The memory: content-addressed blobs, and a ledger from keys to records.
//!
//! ```text
//! <cache>/
//!   CACHEDIR.TAG                  backup programs leave this folder out
//!   blobs-v1/ab/abcdef...         a blob by the SHA-256 of its bytes, mode 0444
//!   ledger-v1/ab/abcdef...        a record (JSON) by its key, and the text that the key was hashed from
//!   partial-v1/abcdef...          downloads that are not complete, resumed by whoever needs them next
//!   stat-v2/abcdef...             what is remembered of a build context's files, by the context's place
//!   commands-v1/...               logs of commands, the folders that they keep from run to run, stages as folders
//!   locks-v1/make-abc             locked while somebody makes what the name stands for; the lock dies with its process
//!   tmp-v1/...                    files on their way to one of the above
//!   in-use.lock                   shared by builders, exclusive to a collector
//!   collect.lock                  where builders wait behind a collector that waits
//! ```
//!
//! Nothing becomes visible before it is whole: every file is written in `tmp-v1` and renamed. So any number of builders
//! may share a cache, and one that is killed leaves at most a temporary file. Bytes are not synced to the disk one by
//! one: a power cut can leave a short file under a final name, which every reader notices by its size or digest and
//! treats as missing. Each bucket has its own version; another version's folders are left alone.

mod blobs;
mod gc;
mod ledger;
mod locks;
pub mod points;
mod stats;
mod survey;
mod transfer;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use layers::{Digest, Key};

pub use blobs::{Blob, BlobWriter, hash, in_pieces};
pub use gc::{Amount, Collected, Collector, Contents, Limits, Verified};
pub use ledger::Recorded;
pub use locks::{Hold, Turn, Waiting};
use points::Point;
pub use survey::Class;
use survey::is_other_version;
pub use transfer::{Copied, Imported};

/// The version of a folder's layout.
fn version(bucket: &str) -> u32 {
    // The first was one file for all contexts.
    if bucket == "stat" { 2 } else { 1 }
}

/// The folders.
const BUCKETS: [&str; 7] = ["blobs", "ledger", "partial", "locks", "tmp", "commands", "stat"];

/// By which backup programs know what to leave out.
const TAG: &str = "CACHEDIR.TAG";

/// What a file takes at least on most file systems.
const BLOCK: u64 = 4096;

/// Why the cache could not serve.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The folder cannot be made or written.
    #[error("the cache `{path}` cannot be used: {source}; choose another folder with `--cache-dir`")]
    Unusable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk, or what is between it and here, failed.
    #[error(
        "`{path}` of the cache cannot be read or written: {source}; `imgbuild cache verify` removes what is damaged"
    )]
    Failing {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk of the cache is full while writing `{path}`; free some space or choose another folder with `--cache-dir`"
    )]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Bytes that are not what they were said to be.
    #[error("expected {expected}, got {found}")]
    Mismatch {
        /// What was announced.
        expected: layers::Digest,
        /// What came.
        found: layers::Digest,
    },
    /// A tar file of a cache that cannot be read or written.
    #[error("the exported cache cannot be read or written: {source}")]
    Archive {
        /// Why.
        source: io::Error,
    },
    /// A blob larger than its reader allows.
    #[error("{digest} has {size} bytes, more than the {limit} that are read at once")]
    TooLarge {
        /// The blob.
        digest: layers::Digest,
        /// Its bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

impl CacheError {
    /// What went wrong with this file or folder of the cache.
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> CacheError + '_ {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                WAS_FULL.store(true, Ordering::Relaxed);
                CacheError::Full { path: path.into() }
            }
            _ if fails(&source) => CacheError::Failing { path: path.into(), source },
            _ => CacheError::Unusable { path: path.into(), source },
        }
    }
}

/// An error of a file of the cache for whoever passes it on as it is: a full disk says what to do about it.
pub fn explained(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| match error.kind() {
        kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            io::Error::new(kind, CacheError::at(path)(error))
        }
        _ => error,
    }
}

/// Whether the disk of a cache was full once in this process: errors that say so go many ways.
static WAS_FULL: AtomicBool = AtomicBool::new(false);

/// Whether something could not be written here because the disk of a cache was full.
pub fn was_full() -> bool {
    WAS_FULL.load(Ordering::Relaxed)
}

/// An open cache. Shared by threads; any number of processes may have the same one open.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    written: Arc<Written>,
}

/// What came into the cache through a `Store` and its clones.
#[derive(Debug, Default)]
struct Written {
    /// Bytes on disk that were counted.
    bytes: AtomicU64,
    /// Whether there is more that nobody counts.
    uncounted: AtomicBool,
}

/// Makes a folder the owner's alone, and takes from it what it has of the folder that it lies in and would hand on to all that is made
/// in it: a group (setgid) and access by others (acl(5), "OBJECT CREATION AND DEFAULT ACLs"). Commands make images there.
pub fn plain(folder: &Path) -> io::Result<()> {
    const DEFAULT_ACL: &str = "system.posix_acl_default";
    if fs::metadata(folder)?.permissions().mode() & 0o7777 != 0o700 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    }
    if rustix::fs::getxattr(folder, DEFAULT_ACL, &mut [0_u8; 0]).is_ok() {
        rustix::fs::removexattr(folder, DEFAULT_ACL)?;
    }
    Ok(())
}

impl Store {
    /// Opens the cache in `root`, making it where it is missing.
    pub fn open_at(root: &Path) -> Result<Store, CacheError> {
        let store = Store { root: root.into(), written: Arc::default() };
        if store.bucket("blobs").is_dir() && store.bucket("tmp").is_dir() && store.bucket("locks").is_dir() {
            return Ok(store);
        }
        // First: who finds the folders takes all for made.
        fs::create_dir_all(root).map_err(CacheError::at(root))?;
        let tag = root.join(TAG);
        let text =
            "Signature: 8a477f597d28d172789f06886806bc55\n# This folder holds imgbuild's cache and may be deleted.\n";
        fs::write(&tag, text).map_err(CacheError::at(&tag))?;
        for bucket in BUCKETS {
            let path = store.bucket(bucket);
            fs::create_dir_all(&path).map_err(CacheError::at(&path))?;
            Point::Opened.reach();
        }
        Ok(store)
    }

    /// The cache in `root` as it is: nothing is made. Whoever is about to write asks [`is_there`](Store::is_there) first.
    pub fn found_at(root: &Path) -> Store {
        Store { root: root.into(), written: Arc::default() }
    }

    /// Whether there is a cache: one of its folders, of any version.
    pub fn is_there(&self) -> Result<bool, CacheError> {
        let is_own = |path: &Path| BUCKETS.iter().any(|bucket| self.bucket(bucket) == path) || is_other_version(path);
        // Each may be a link to a folder elsewhere.
        Ok(survey::list(&self.root)?.iter().any(|(path, _)| is_own(path) && path.is_dir()))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes on disk that came into the cache through this `Store` and its clones since it was opened.
    pub fn written(&self) -> u64 {
        self.written.bytes.load(Ordering::Relaxed)
    }

    /// Whether more came into it than [`written`](Store::written) says: what commands write.
    pub fn wrote_uncounted(&self) -> bool {
        self.written.uncounted.load(Ordering::Relaxed)
    }

    /// Where the size of the cache is remembered between builds.
    pub fn usage_path(&self) -> PathBuf {
        self.bucket("usage")
    }

    /// Adds a file of so many bytes in the place of one of `before` to what was written here.
    pub fn count(&self, bytes: u64, before: u64) {
        let [bytes, before] = [bytes, before].map(|bytes| bytes.next_multiple_of(BLOCK));
        self.written.bytes.fetch_add(bytes.saturating_sub(before), Ordering::Relaxed);
    }

    /// A folder for temporary files in the cache's file system.
    pub fn scratch(&self) -> PathBuf {
        self.bucket("tmp")
    }

    /// The file for what the command of this key writes; the one of an earlier run is at the same place.
    pub fn command_log(&self, key: &Key) -> Result<PathBuf, CacheError> {
        Ok(self.command_folder()?.join(format!("log-{}", &key.0.hex()[..32])))
    }

    /// The folder that commands keep under this name from run to run.
    pub fn command_cache(&self, name: &Digest) -> Result<PathBuf, CacheError> {
        let path = self.command_folder()?.join(format!("cache-{}", &name.hex()[..32]));
        match fs::create_dir(&path) {
            Ok(()) => plain(&path).map_err(CacheError::at(&path))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(CacheError::at(&path)(error)),
        }
        // The time of the last use, for `gc`: what a command changes below it leaves it as it was.
        let _ = fs::File::open(&path).and_then(|folder| folder.set_modified(SystemTime::now()));
        Ok(path)
    }

    /// Where a stage is kept as a folder for commands; it may not be there.
    pub fn command_root(&self, name: &Digest) -> Result<PathBuf, CacheError> {
        Ok(self.command_folder()?.join(format!("root-{}", &name.hex()[..32])))
    }

    /// Made when it is needed: caches of earlier versions have none. Nobody else looks into it: what commands keep from run to run
    /// may be a secret or a program with its owner's rights.
    ///
    /// Whoever asks is about to have a command write there, which nobody counts. So nobody knows the size of the cache from now on,
    /// even if this process is killed.
    fn command_folder(&self) -> Result<PathBuf, CacheError> {
        self.written.uncounted.store(true, Ordering::Relaxed);
        let usage = self.usage_path();
        match fs::remove_file(&usage) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(CacheError::at(&usage)(error)),
            _ => {}
        }
        let path = self.bucket("commands");
        fs::create_dir_all(&path).map_err(CacheError::at(&path))?;
        let found = fs::metadata(&path).map_err(CacheError::at(&path))?;
        let user = rustix::process::geteuid();
        if found.uid() != user.as_raw() && !user.is_root() {
            let why = "it is another user's, and what commands keep is nobody else's business";
            return Err(CacheError::at(&path)(io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        plain(&path).map_err(CacheError::at(&path))?;
        Ok(path)
    }

    /// Renames a finished file to its place, making the folder above where it is missing.
    fn settle(&self, from: &Path, to: &Path) -> Result<(), CacheError> {
        match replace(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::symlink_metadata(from).map_err(CacheError::at(from))?;
                if let Some(folder) = to.parent() {
                    fs::create_dir_all(folder).map_err(CacheError::at(folder))?;
                    self.count(BLOCK, 0);
                }
                replace(from, to).map_err(CacheError::at(to))
            }
            done => done.map_err(CacheError::at(to)),
        }
    }

    fn bucket(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}-v{}", version(name)))
    }

    fn fanned(&self, bucket: &str, hex: &str) -> PathBuf {
        self.bucket(bucket).join(&hex[..2]).join(hex)
    }
}

/// Whether the device failed: what was asked of it cannot be had (EIO).
pub fn fails(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Renames a file to a place where another may be: whoever looks sees one of them, whole.
///
/// Both are exchanged where the file system can: a file that is renamed over another is first written out by ext4 (its
/// `auto_da_alloc`), which takes milliseconds. What is kept here says by a digest whether it is whole, so none has to be.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => {
            Point::Exchanged.reach();
            fs::remove_file(from)
        }
        Err(_) => fs::rename(from, to),
    }
}
