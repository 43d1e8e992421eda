//! Collection: what is least of use goes until the cache is within its limits.
//!
//! ```text
//! image record ─▶ layers ─▶ record of a layer ─▶ fragments ─▶ record of a fragment ─▶ index, archive
//! ```
//!
//! Images are the roots. An image that was asked for an hour ago carries everything that it is made of; what no recent
//! image leads to is as old as its own last use. The oldest goes first; of equally old things first those that are made
//! or had again most cheaply. A collection excludes builders and is excluded by them: see [`Store::hold`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use layers::{Digest, Key};

use crate::points::Point;
use crate::survey::{Class, Item, Leftover, Survey, list};
use crate::{CacheError, Store, fails, ledger};

/// What a cache may come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on disk.
    pub max_size: Option<u64>,
    /// Seconds since the last use.
    pub max_age: Option<u64>,
    /// Bytes that stay free in the file system.
    pub min_free: Option<u64>,
}

impl Limits {
    /// Whether there is none.
    pub fn none(&self) -> bool {
        *self == Limits::default()
    }
}

/// Files and the disk that they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Files, or folders of another version.
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What a cache holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// By class.
    pub classes: BTreeMap<Class, Amount>,
    /// Bytes on disk of everything.
    pub total: u64,
    /// Bytes that are free in the file system.
    pub free: u64,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// What went, by class.
    pub removed: BTreeMap<Class, Amount>,
    /// Leftovers of builders that were killed.
    pub leftovers: Amount,
    /// Bytes on disk that stay.
    pub kept: u64,
}

/// Held by one collector, while no builder runs as far as locks tell.
#[derive(Debug)]
pub struct Collector<'a> {
    pub(crate) store: &'a Store,
    pub(crate) lock: Option<fs::File>,
    pub(crate) may_write: bool,
}

impl Store {
    /// What is in the cache.
    pub fn contents(&self) -> Result<Contents, CacheError> {
        let survey = self.survey()?;
        let mut contents = Contents { total: survey.fixed, free: self.free()?, ..Contents::default() };
        for item in &survey.items {
            contents.classes.entry(item.class).or_default().add(item.size);
            contents.total += item.size;
        }
        contents.total += survey.leftovers.iter().map(|leftover| leftover.size).sum::<u64>();
        Ok(contents)
    }

    /// Bytes that are free in the cache's file system.
    pub fn free(&self) -> Result<u64, CacheError> {
        let found = rustix::fs::statvfs(self.root()).map_err(|error| CacheError::at(self.root())(error.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Says what a collection would remove.
    pub fn would_collect(&self, limits: &Limits, now: i64) -> Result<Collected, CacheError> {
        Ok(self.condemn(limits, now)?.2)
    }

    fn condemn(&self, limits: &Limits, now: i64) -> Result<(Vec<Item>, Vec<Leftover>, Collected), CacheError> {
        let Survey { mut items, leftovers, fixed } = self.survey()?;
        let mut collected = Collected::default();
        for leftover in &leftovers {
            collected.leftovers.add(leftover.size);
        }
        let mut total = fixed + items.iter().map(|item| item.size).sum::<u64>();
        let mut free = self.free()?.saturating_add(collected.leftovers.bytes);
        items.sort_by(|a, b| {
            (a.class != Class::OtherVersion, a.used, a.class, &a.path).cmp(&(
                b.class != Class::OtherVersion,
                b.used,
                b.class,
                &b.path,
            ))
        });
        let too_old = limits.max_age.map(|age| now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)));
        let mut doomed = Vec::new();
        for item in items {
            let over = limits.max_size.is_some_and(|most| total > most)
                || limits.min_free.is_some_and(|least| free < least)
                || too_old.is_some_and(|oldest| item.used < oldest);
            // A record that nobody can read is of no use whatever the limits are.
            if over || (item.class == Class::Record && item.used == 0) {
                total -= item.size;
                free = free.saturating_add(item.size);
                collected.removed.entry(item.class).or_default().add(item.size);
                doomed.push(item);
            }
        }
        collected.kept = total;
        Ok((doomed, leftovers, collected))
    }
}

impl Collector<'_> {
    /// Whether builders are kept away. Where the file system has no locks it is up to the user to know that none runs.
    pub fn is_alone(&self) -> bool {
        self.lock.is_some()
    }

    /// Whether it may write to the cache: else there is nothing that it can do.
    pub fn may_write(&self) -> bool {
        self.may_write
    }

    /// Removes what is beyond the limits, and what killed builders left behind.
    pub fn collect(&self, limits: &Limits, now: i64) -> Result<Collected, CacheError> {
        let (doomed, leftovers, collected) = self.store.condemn(limits, now)?;
        for leftover in &leftovers {
            remove(&leftover.path, leftover.is_folder)?;
            Point::Swept.reach();
        }
        for item in &doomed {
            match item.path.is_dir() {
                true => remove(&self.set_aside(&item.path)?, true)?,
                false => remove(&item.path, false)?,
            }
            Point::Collected.reach();
        }
        Ok(collected)
    }

    /// Moves a folder among the temporary files: who is killed while it is emptied leaves no stage for commands that lacks files.
    fn set_aside(&self, folder: &Path) -> Result<PathBuf, CacheError> {
        let scratch = self.store.scratch();
        let aside =
            tempfile::Builder::new().prefix("gone-").tempdir_in(&scratch).map_err(CacheError::at(&scratch))?.keep();
        let moved = match fs::rename(folder, &aside) {
            // One that its owner may not write keeps its place.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                open_up(folder)?;
                fs::rename(folder, &aside)
            }
            done => done,
        };
        match moved {
            Ok(()) => {
                Point::SetAside.reach();
                Ok(aside)
            }
            // Another file system, say: it is emptied where it is.
            Err(_) => remove(&aside, true).map(|()| folder.into()),
        }
    }

    /// Removes everything: also other versions' folders.
    pub fn clear(&self) -> Result<Collected, CacheError> {
        self.collect(&Limits { max_size: Some(0), ..Limits::default() }, 0)
    }

    /// Reads every blob and every record, and removes those that are not what their names say: whoever needs one makes or
    /// downloads it again. Calls `each` with the bytes of every blob that was read.
    pub fn verify(&self, threads: usize, each: impl Fn(u64) + Sync) -> Result<Verified, CacheError> {
        let blobs = self.store.list()?;
        let next = std::sync::atomic::AtomicUsize::new(0);
        let check = || -> Result<Vec<Digest>, CacheError> {
            let mut damaged = Vec::new();
            while let Some(blob) = blobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                if !self.store.verify(&blob.digest)? {
                    Point::Rejected.reach();
                    damaged.push(blob.digest);
                }
                each(blob.size);
            }
            Ok(damaged)
        };
        let found = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(check)).collect();
            workers.into_iter().map(|worker| worker.join().expect("checking does not panic")).collect::<Vec<_>>()
        });
        let mut verified = Verified { blobs: blobs.len() as u64, ..Verified::default() };
        for damaged in found {
            verified.damaged.extend(damaged?);
        }
        verified.damaged.sort_unstable();
        for (folder, _) in list(&self.store.bucket("ledger"))?.into_iter().filter(|(_, found)| found.is_dir()) {
            for (path, _) in list(&folder)?.into_iter().filter(|(_, found)| found.is_file()) {
                let key = path.file_name().and_then(|name| name.to_str()).and_then(|name| Digest::from_hex(name).ok());
                // Somebody's file is none of ours.
                let Some(key) = key else { continue };
                verified.records += 1;
                let bytes = match fs::read(&path) {
                    Err(error) if fails(&error) => Vec::new(),
                    bytes => bytes.map_err(CacheError::at(&path))?,
                };
                if ledger::parse(&bytes, &Key(key)).is_none() {
                    remove(&path, false)?;
                    Point::Rejected.reach();
                    verified.damaged_records += 1;
                }
            }
        }
        Ok(verified)
    }
}

/// What `verify` found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs that were read.
    pub blobs: u64,
    /// Those that were not what their names say, and are gone.
    pub damaged: Vec<Digest>,
    /// Records that were read.
    pub records: u64,
    /// Those that were damaged, and are gone.
    pub damaged_records: u64,
}

/// Lets the owner of a folder read and write it and all below it.
fn open_up(folder: &Path) -> Result<(), CacheError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(CacheError::at(folder))?;
    for (path, metadata) in list(folder)? {
        if metadata.is_dir() {
            open_up(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path, tree: bool) -> Result<(), CacheError> {
    let removed = match if tree { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        // Commands leave folders that their owner may not write.
        Err(error) if tree && error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        done => done,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use layers::KeyHasher;
    use serde_json::json;

    use super::*;
    use crate::Waiting;

    const KILO: usize = 8192;

    struct Cache {
        store: Store,
        _folder: tempfile::TempDir,
    }

    fn age(path: &Path, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().read(true).open(path).and_then(|file| file.set_modified(time)).expect("ages");
    }

    impl Cache {
        fn new() -> Cache {
            let folder = tempfile::tempdir().expect("a folder");
            Cache { store: Store::open_at(folder.path()).expect("opens"), _folder: folder }
        }

        /// A blob of 8 KiB that was last used `at`.
        fn blob(&self, name: &str, at: u64) -> Digest {
            let digest = self.store.put(name.repeat(KILO).get(..KILO).expect("long enough").as_bytes()).expect("puts");
            age(&self.store.blob_path(&digest.digest), at);
            digest.digest
        }

        fn record(&self, kind: &str, of: &[Digest], made: &[Digest], at: u64) -> Key {
            let mut hasher = KeyHasher::new(kind, 1);
            hasher.list("of", of.iter());
            let (key, text) = hasher.finish();
            self.store.keep(&key, &text, &json!({ "made": made })).expect("keeps");
            age(&self.store.record_path(&key), at);
            key
        }

        /// An image of one layer of one fragment of one archive; everything else than the image was last used at 10.
        fn image(&self, name: &str, used: u64) -> [Digest; 3] {
            let [archive, fragment, layer] =
                ["archive", "fragment", "layer"].map(|it| self.blob(&format!("{it} {name}"), 10));
            self.record("fragment", &[archive], &[fragment], 10);
            self.record("layer", &[fragment], &[layer], 10);
            self.record("image", &[archive], &[layer], used);
            [archive, fragment, layer]
        }

        fn has(&self, digests: &[Digest]) -> Vec<bool> {
            digests.iter().map(|digest| self.store.has(digest).expect("looks").is_some()).collect()
        }

        fn collect(&self, limits: Limits) -> Collected {
            let would = self.store.would_collect(&limits, 1000).expect("looks");
            let collector = self.store.collector(Waiting::No).expect("locks").expect("nobody builds");
            let did = collector.collect(&limits, 1000).expect("collects");
            assert_eq!(would, did, "a dry run says what a real one does");
            did
        }
    }

    #[test]
    fn what_a_recent_image_is_made_of_outlives_what_only_an_old_one_needs() {
        let cache = Cache::new();
        let old = cache.image("old", 100);
        let new = cache.image("new", 900);
        cache.collect(Limits { max_age: Some(500), ..Limits::default() });
        assert_eq!(cache.has(&new), [true; 3]);
        assert_eq!(cache.has(&old), [false; 3]);
        assert_eq!(cache.store.contents().expect("looks").classes[&Class::Record].count, 3);
    }

    #[test]
    fn images_that_share_a_layer_do_not_keep_each_other() {
        let cache = Cache::new();
        let shared = cache.blob("shared layer", 10);
        let [old, new] = ["old", "new"].map(|name| cache.blob(name, 10));
        cache.record("image", &[], &[shared, old], 100);
        cache.record("image", &[shared], &[shared, new], 900);
        cache.collect(Limits { max_age: Some(500), ..Limits::default() });
        assert_eq!(cache.has(&[shared, new, old]), [true, true, false]);
    }

    #[test]
    fn the_ceiling_is_kept_and_what_is_cheap_to_have_again_goes_first() {
        let cache = Cache::new();
        let [archive, fragment, layer] = cache.image("x", 900);
        let total = cache.store.contents().expect("looks").total;
        for (most, left) in
            [(total, [true, true, true]), (total - 1, [false, true, true]), (total - 9000, [false, false, true])]
        {
            let collected = cache.collect(Limits { max_size: Some(most), ..Limits::default() });
            assert!(collected.kept <= most, "{collected:?}");
            assert_eq!(cache.has(&[archive, fragment, layer]), left, "{most}");
            assert_eq!(cache.store.contents().expect("looks").total, collected.kept);
        }
        let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
        collector.clear().expect("clears");
        assert_eq!(cache.has(&[archive, fragment, layer]), [false; 3]);
    }

    #[test]
    fn space_that_must_stay_free_is_made() {
        let cache = Cache::new();
        let digests = cache.image("x", 900);
        cache.collect(Limits { min_free: Some(0), ..Limits::default() });
        assert_eq!(cache.has(&digests), [true; 3]);
        cache.collect(Limits { min_free: Some(u64::MAX), ..Limits::default() });
        assert_eq!(cache.has(&digests), [false; 3]);
    }

    #[test]
    fn leftovers_incomplete_downloads_and_other_versions_are_seen() {
        let cache = Cache::new();
        fs::write(cache.store.scratch().join("half"), [1; KILO]).expect("writes");
        let partial = cache.store.partial_path(&Digest::of(b"x"));
        fs::write(&partial, [1; KILO]).expect("writes");
        age(&partial, 100);
        let other = cache.store.root().join("blobs-v99/ab");
        fs::create_dir_all(&other).expect("makes");
        fs::write(other.join("x"), [1; KILO]).expect("writes");
        let contents = cache.store.contents().expect("looks");
        assert_eq!(contents.classes[&Class::Partial].count, 1);
        assert!(contents.classes[&Class::OtherVersion].bytes >= KILO as u64);
        let collected = cache.collect(Limits { max_age: Some(500), ..Limits::default() });
        assert_eq!(collected.leftovers.count, 1);
        assert!(!partial.exists() && other.exists(), "another version's folder is as young as this test");
        let total = cache.store.contents().expect("looks").total;
        cache.collect(Limits { max_size: Some(total - 1), ..Limits::default() });
        assert!(!other.exists());
    }

    /// A dry run takes no lock: files come and go beside it.
    #[test]
    fn a_dry_run_beside_a_builder_counts_what_it_writes_once() {
        let cache = Cache::new();
        let scratch = cache.store.scratch();
        let before = cache.store.contents().expect("looks");
        std::thread::scope(|scope| {
            let builder = scope.spawn(|| {
                for number in 0..500 {
                    fs::write(scratch.join((number % 8).to_string()), vec![1; (number % 8) << 16]).expect("writes");
                }
            });
            loop {
                let would = cache.store.would_collect(&Limits::default(), 1000).expect("looks");
                assert!(would.removed.is_empty() && would.kept == before.total, "{would:?}");
                if builder.is_finished() {
                    break;
                }
            }
        });
        let contents = cache.store.contents().expect("looks");
        assert!(contents.total >= before.total + (28 << 16), "{contents:?}");
    }

    #[test]
    fn bit_rot_is_found_and_removed() {
        let cache = Cache::new();
        let [archive, fragment, layer] = cache.image("x", 900);
        let path = cache.store.blob_path(&fragment);
        let mut bytes = fs::read(&path).expect("reads");
        bytes[4000] ^= 1;
        fs::remove_file(&path).expect("removes");
        fs::write(&path, bytes).expect("writes");
        let key = cache.record("fragment", &[layer], &[layer], 1);
        fs::write(cache.store.record_path(&key), "damage").expect("damages");
        let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
        let verified = collector.verify(2, |_| {}).expect("reads");
        let expected = Verified { blobs: 3, damaged: vec![fragment], records: 4, damaged_records: 1 };
        assert_eq!(verified, expected);
        assert_eq!(cache.has(&[archive, fragment, layer]), [true, false, true]);
        assert_eq!(cache.store.find(&key).expect("looks"), None);
    }

    #[test]
    fn a_collector_waits_for_builders_and_builders_for_it() {
        let cache = Cache::new();
        let first = cache.store.hold().expect("holds");
        let second = cache.store.hold().expect("builders share");
        assert!(cache.store.collector(Waiting::No).expect("locks").is_none());
        drop((first, second));
        let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
        let store = cache.store.clone();
        let builder = std::thread::spawn(move || store.hold().map(drop));
        drop(collector);
        builder.join().expect("no panic").expect("holds");
    }
}
