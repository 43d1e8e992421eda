//! What is remembered of files, so that unchanged ones need not be hashed again.
//!
//! A digest is trusted while size, mtime, ctime, inode and device are the same *and* the file's times were older than
//! the moment before they were asked for by more than the clock's granularity: a file that changes within the same tick
//! keeps its times, so younger ones are hashed each time until they have aged (as git does for "racily clean" files). What
//! counts is that moment, not that of remembering: hashing what lies between may take longer than the granularity. The ctime
//! cannot be set by a program, so an edit that restores size and mtime is still noticed.
//!
//! All of that is worth something only while the clock runs forward: set back, it comes to the tick of a file's last change
//! once more, and an edit there leaves the times as they were. So nothing is trusted where the memory holds a moment that is
//! still to come. What this cannot see is an edit of the same size in that very tick, with no build until the clock has
//! passed what was remembered; nor that a file server whose ticks are long has a clock behind ours.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use layers::Digest;
use serde::{Deserialize, Serialize};

use crate::failpoint::Kept;

/// Times younger than this when they were asked for are not trusted, nanoseconds: coarse file systems tick every 2 s.
const GRANULARITY: i128 = 2_000_000_000;

/// The version of the file's format.
const VERSION: u32 = 1;

/// What a file system says of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    size: u64,
    mtime: i128,
    ctime: i128,
    inode: u64,
    device: u64,
}

impl Signature {
    /// Reads it from metadata.
    pub fn of(metadata: &fs::Metadata) -> Signature {
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Signature {
            size: metadata.len(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Known {
    signature: Signature,
    /// A moment before the signature was read.
    seen: i128,
    digest: Digest,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    version: u32,
    files: HashMap<Vec<u8>, Known>,
}

/// Digests of files by path and signature.
#[derive(Debug, Default)]
pub struct StatCache {
    path: Option<PathBuf>,
    known: HashMap<Vec<u8>, Known>,
    changed: bool,
}

impl StatCache {
    /// Loads what was saved at `path`; a file that is damaged or of another version counts as empty.
    pub fn load(path: PathBuf) -> StatCache {
        let saved = fs::read(&path)
            .ok()
            .and_then(|bytes| {
                let (digest, body) = bytes.split_at_checked(32)?;
                (Digest::of(body).as_bytes() == digest).then(|| postcard::from_bytes::<Saved>(body).ok())?
            })
            .filter(|saved| saved.version == VERSION)
            // Asked for after the file was read, which another builder may have written just now.
            .filter(|saved| {
                let now = clock();
                saved.files.values().all(|known| known.seen <= now)
            })
            .unwrap_or_default();
        StatCache { path: Some(path), known: saved.files, changed: false }
    }

    pub(super) fn digest(&self, root: &Path, path: &str, now: &Signature) -> Option<Digest> {
        let known = self.known.get(&key(root, path))?;
        let aged = known.signature.mtime.max(known.signature.ctime) + GRANULARITY < known.seen;
        (known.signature == *now && aged).then_some(known.digest)
    }

    /// `seen`: the [`clock`] before the signature was read.
    pub(super) fn remember(&mut self, root: &Path, path: &str, signature: &Signature, seen: i128, digest: Digest) {
        self.known.insert(key(root, path), Known { signature: *signature, seen, digest });
        self.changed = true;
    }

    /// Writes the file anew where something was learnt. Failing to is no error: the next build hashes again.
    pub fn save(&mut self) {
        let (Some(path), true) = (&self.path, self.changed) else { return };
        let saved = Saved { version: VERSION, files: std::mem::take(&mut self.known) };
        if let (Ok(body), Some(folder)) = (postcard::to_stdvec(&saved), path.parent())
            && let Ok(mut file) = tempfile::NamedTempFile::new_in(folder)
            && file.write_all(Digest::of(&body).as_bytes()).is_ok()
            && file.write_all(&body).is_ok()
        {
            Kept::StatsWritten.reach();
            let _ = cache::replace(&file.into_temp_path(), path);
            Kept::StatsSettled.reach();
        }
        self.known = saved.files;
        self.changed = false;
    }
}

/// Nanoseconds since 1970.
pub(super) fn clock() -> i128 {
    #[cfg(test)]
    super::tests::ASKED.with_borrow_mut(|asked| asked.iter_mut().for_each(|it| it()));
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128)
}

fn key(root: &Path, path: &str) -> Vec<u8> {
    let mut key = root.as_os_str().as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(path.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: i128 = 1_600_000_000_000_000_000;

    /// A file that was changed at `changed` and hashed at `seen`, as a cache that was saved and loaded tells it, which may be of
    /// another version.
    fn remembered(version: u32, changed: i128, seen: i128) -> Option<Digest> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("stat");
        let signature = Signature { size: 3, mtime: OLD, ctime: changed, inode: 7, device: 8 };
        let mut files = HashMap::new();
        files.insert(key(folder.path(), "a"), Known { signature, seen, digest: Digest::of(b"one") });
        let body = postcard::to_stdvec(&Saved { version, files }).expect("serializes");
        fs::write(&path, [Digest::of(&body).as_bytes().as_slice(), &body].concat()).expect("writes");
        StatCache::load(path).digest(folder.path(), "a", &signature)
    }

    #[test]
    fn what_changed_when_it_was_hashed_is_hashed_again() {
        assert_eq!(remembered(VERSION, OLD, OLD + 10 * GRANULARITY), Some(Digest::of(b"one")));
        for age in [-GRANULARITY, 0, 1, GRANULARITY] {
            assert_eq!(remembered(VERSION, OLD, OLD + age), None, "hashed {age} ns after its change");
        }
    }

    #[test]
    fn nothing_is_trusted_that_was_remembered_by_a_clock_that_was_ahead() {
        let ahead = clock() + 3600 * 1_000_000_000;
        assert_eq!(remembered(VERSION, OLD, ahead), None);
        // The clock was ahead when the file was changed, too.
        assert_eq!(remembered(VERSION, ahead - 10 * GRANULARITY, ahead), None);
        let mut cache = StatCache::default();
        let signature = Signature { size: 3, mtime: OLD, ctime: ahead, inode: 7, device: 8 };
        cache.remember(Path::new("/"), "a", &signature, clock(), Digest::of(b"one"));
        assert_eq!(cache.digest(Path::new("/"), "a", &signature), None, "a file from the future is hashed each time");
    }

    #[test]
    fn another_versions_memory_and_garbage_count_as_nothing() {
        assert_eq!(remembered(VERSION + 1, OLD, OLD + 10 * GRANULARITY), None);
        assert_eq!(remembered(0, OLD, OLD + 10 * GRANULARITY), None);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("stat");
        let garbage = [9u8; 100];
        for bytes in [[].as_slice(), &garbage, &[Digest::of(&garbage).as_bytes().as_slice(), &garbage].concat()] {
            fs::write(&path, bytes).expect("writes");
            assert!(StatCache::load(path.clone()).known.is_empty());
        }
    }
}
