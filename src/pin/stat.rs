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
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cache::Store;
use layers::Digest;
use serde::{Deserialize, Serialize};

/// Times younger than this when they were asked for are not trusted, nanoseconds: coarse file systems tick every 2 s.
const GRANULARITY: i64 = 2_000_000_000;

/// The version of the file's format.
const VERSION: u32 = 3;

/// How long what no build asks for is remembered, nanoseconds: 30 days.
const LASTS: i64 = 30 * 86_400 * 1_000_000_000;

/// What a file system says of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    size: u64,
    /// Nanoseconds since 1970.
    mtime: i64,
    ctime: i64,
    inode: u64,
    device: u64,
}

impl Signature {
    /// Reads it from metadata.
    pub fn of(metadata: &fs::Metadata) -> Signature {
        // Beyond the year 2262 a ctime is from the future, so the file is hashed each time.
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Signature {
            size: metadata.len(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }

    /// The file's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Known {
    signature: Signature,
    /// A moment before the signature was read.
    seen: i64,
    digest: Digest,
    /// By this build.
    #[serde(skip)]
    asked: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// Sorted by path.
    files: Vec<(Box<str>, Known)>,
}

/// Digests of a context's files by path and signature.
#[derive(Debug, Default)]
pub struct StatCache {
    /// The cache, and the context's folder.
    place: Option<(Store, PathBuf)>,
    /// As it was loaded, sorted by path.
    known: Vec<(Box<str>, Known)>,
    /// Of paths that are not among these.
    new: HashMap<Box<str>, Known>,
    changed: bool,
}

impl StatCache {
    /// Loads what `store` keeps of the context in `root`; what is damaged or of another version counts as nothing.
    pub fn load(store: &Store, root: &Path) -> StatCache {
        let saved = store
            .stats(root)
            .and_then(|bytes| {
                let (digest, body) = bytes.split_at_checked(32)?;
                (Digest::of(body).as_bytes() == digest).then(|| postcard::from_bytes::<Saved>(body).ok())?
            })
            .filter(|saved| saved.version == VERSION && saved.files.is_sorted_by(|(a, _), (b, _)| a < b))
            // Asked for after the file was read, which another builder may have written just now.
            .filter(|saved| {
                let now = clock();
                saved.files.iter().all(|(_, known)| known.seen <= now)
            })
            .unwrap_or_default();
        StatCache { place: Some((store.clone(), root.into())), known: saved.files, ..StatCache::default() }
    }

    pub(super) fn digest(&mut self, path: &str, now: &Signature) -> Option<Digest> {
        let known = self.of(path)?;
        known.asked = true;
        let aged = known.signature.mtime.max(known.signature.ctime).saturating_add(GRANULARITY) < known.seen;
        (known.signature == *now && aged).then_some(known.digest)
    }

    /// `seen`: the [`clock`] before the signature was read.
    pub(super) fn remember(&mut self, path: &str, signature: &Signature, seen: i64, digest: Digest) {
        let learnt = Known { signature: *signature, seen, digest, asked: true };
        match self.of(path) {
            Some(known) => *known = learnt,
            None => {
                self.new.insert(path.into(), learnt);
            }
        }
        self.changed = true;
    }

    fn of(&mut self, path: &str) -> Option<&mut Known> {
        match self.known.binary_search_by(|(known, _)| (**known).cmp(path)) {
            Ok(at) => Some(&mut self.known[at].1),
            Err(_) => self.new.get_mut(path),
        }
    }

    /// Writes all of it anew where something was learnt. Failing to is no error: the next build hashes again.
    pub fn save(&mut self) {
        let (Some((store, root)), true) = (&self.place, self.changed) else { return };
        // Names that come and go, as those of bundlers, would add up for ever.
        let oldest = clock() - LASTS;
        let is_there = |path: &str| std::fs::symlink_metadata(root.join(path)).is_ok();
        self.known.retain(|(path, known)| known.asked || known.seen >= oldest || is_there(path));
        self.known.extend(self.new.drain());
        self.known.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let saved = Saved { version: VERSION, files: std::mem::take(&mut self.known) };
        // Room for the digest first: of a large context it is too much to be copied.
        if let Ok(mut bytes) = postcard::to_extend(&saved, vec![0; 32]) {
            let digest = Digest::of(&bytes[32..]);
            bytes[..32].copy_from_slice(digest.as_bytes());
            let _ = store.keep_stats(root, &bytes);
        }
        self.known = saved.files;
        self.changed = false;
    }
}

/// Nanoseconds since 1970.
pub(super) fn clock() -> i64 {
    #[cfg(test)]
    super::tests::ASKED.with_borrow_mut(|asked| asked.iter_mut().for_each(|it| it()));
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos().try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: i64 = 1_600_000_000_000_000_000;

    /// A file that was changed at `changed` and hashed at `seen`, as a cache that was saved and loaded tells it, which may be of
    /// another version.
    fn remembered(version: u32, changed: i64, seen: i64) -> Option<Digest> {
        let signature = Signature { size: 3, mtime: OLD, ctime: changed, inode: 7, device: 8 };
        let known = Known { signature, seen, digest: Digest::of(b"one"), asked: false };
        let files = vec![("a".into(), known)];
        let body = postcard::to_stdvec(&Saved { version, files }).expect("serializes");
        let (_folder, store) = store();
        let context = Path::new("/context");
        let bytes = [Digest::of(&body).as_bytes().as_slice(), &body].concat();
        store.keep_stats(context, &bytes).expect("keeps");
        StatCache::load(&store, context).digest("a", &signature)
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        (folder, store)
    }

    #[test]
    fn what_no_build_asks_for_is_forgotten_and_other_contexts_are_not_looked_at() {
        let (_folder, store) = store();
        let [one, other] = ["/one", "/other"].map(Path::new);
        let signature = Signature { size: 3, mtime: OLD, ctime: OLD, inode: 7, device: 8 };
        let (now, digest) = (clock(), Digest::of(b"one"));
        let mut cache = StatCache::load(&store, one);
        for (path, seen) in [("old", now - LASTS - 1), ("old and asked for", now - LASTS - 1), ("young", now)] {
            cache.remember(path, &signature, seen, digest);
        }
        cache.save();
        assert_eq!(cache.known.len(), 3, "a build keeps what it hashed, whatever its clock says");
        assert!(StatCache::load(&store, other).known.is_empty());
        let mut cache = StatCache::load(&store, one);
        assert_eq!(cache.digest("old and asked for", &signature), Some(digest));
        cache.remember("new", &signature, now, digest);
        cache.save();
        let cache = StatCache::load(&store, one);
        let known: Vec<&str> = cache.known.iter().map(|(path, _)| &**path).collect();
        assert_eq!(known, ["new", "old and asked for", "young"]);
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
        cache.remember("a", &signature, clock(), Digest::of(b"one"));
        assert_eq!(cache.digest("a", &signature), None, "a file from the future is hashed each time");
    }

    #[test]
    fn another_versions_memory_and_garbage_count_as_nothing() {
        assert_eq!(remembered(VERSION + 1, OLD, OLD + 10 * GRANULARITY), None);
        assert_eq!(remembered(0, OLD, OLD + 10 * GRANULARITY), None);
        let (_folder, store) = store();
        let context = Path::new("/context");
        let garbage = [9u8; 100];
        for bytes in [[].as_slice(), &garbage, &[Digest::of(&garbage).as_bytes().as_slice(), &garbage].concat()] {
            store.keep_stats(context, bytes).expect("keeps");
            assert!(StatCache::load(&store, context).known.is_empty());
        }
    }
}
