//! Collection: what is least of use goes until the cache is within its limits.
//!
//! ```text
//! image record ─▶ layers ─▶ record of a layer ─▶ fragments ─▶ record of a fragment ─▶ index, archive
//! ```
//!
//! Images are the roots. An image that was asked for an hour ago carries everything that it is made of; what no recent
//! image leads to is as old as its own last use: foundations, say, and what is remembered of pushes. The oldest goes first; of equally old
//! things first those that are made or had again most cheaply. A collection excludes builders and is excluded by them: see [`Store::hold`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use layers::{Digest, Key};

use crate::points::Point;
use crate::survey::{AHEAD, Class, Fan, Item, Leftover, Survey, entries, list};
use crate::{Blob, CacheError, Recorded, Store, fails, ledger};

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
    /// Nothing stays, also not other versions' folders.
    pub const NOTHING: Limits = Limits { max_size: Some(0), max_age: None, min_free: None };

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
    /// Bytes on disk of what is somebody else's, which count for no limit.
    pub others: u64,
}

/// Held by one collector, while no builder runs as far as locks tell.
#[derive(Debug)]
pub struct Collector<'a> {
    pub(crate) store: &'a Store,
    pub(crate) lock: Option<fs::File>,
    /// Whoever begins meanwhile waits here.
    pub(crate) _gate: Option<fs::File>,
    pub(crate) may_write: bool,
}

impl Store {
    /// What is in the cache.
    pub fn contents(&self) -> Result<Contents, CacheError> {
        let survey = self.survey()?;
        let mut contents = Contents { total: survey.fixed + survey.others, free: self.free()?, ..Contents::default() };
        contents.total += survey.folders.iter().map(|folder| folder.size).sum::<u64>();
        for item in &survey.items {
            contents.classes.entry(item.class).or_default().add(item.size);
            contents.total += item.size;
        }
        contents.total += survey.leftovers.iter().map(|leftover| leftover.size).sum::<u64>();
        Ok(contents)
    }

    /// Whether this process may write here at all.
    pub fn may_write(&self) -> bool {
        rustix::fs::access(self.root(), rustix::fs::Access::WRITE_OK).is_ok()
    }

    /// Bytes that are free in the cache's file system: where there is no cache, in that of the folder that it would be made in.
    pub fn free(&self) -> Result<u64, CacheError> {
        let is_there = |place: &&Path| !matches!(place.try_exists(), Ok(false));
        let place = self.root().ancestors().find(is_there).unwrap_or(Path::new("."));
        let found = rustix::fs::statvfs(place).map_err(|error| CacheError::at(place)(error.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Says what a collection would remove.
    pub fn would_collect(&self, limits: &Limits, now: i64) -> Result<Collected, CacheError> {
        Ok(self.judge(limits, now, true)?.collected)
    }

    fn judge(&self, limits: &Limits, now: i64, is_alone: bool) -> Result<Verdict, CacheError> {
        let Survey { mut items, mut folders, leftovers, fixed, others } = self.survey()?;
        let mut verdict = Verdict::default();
        for leftover in &leftovers {
            verdict.collected.leftovers.add(leftover.size);
        }
        let mut total = fixed + items.iter().map(|item| item.size).sum::<u64>();
        total += folders.iter().map(|folder| folder.size).sum::<u64>();
        let mut free = self.free()?.saturating_add(verdict.collected.leftovers.bytes);
        // A builder may be about to put something into one.
        let mut empty = Vec::new();
        let mut spare = |folder: &Fan| {
            let goes = is_alone && folder.entries == 0;
            if goes {
                empty.push(folder.path.clone());
            }
            if goes { folder.size } else { 0 }
        };
        let spared: u64 = folders.iter().map(&mut spare).sum();
        total -= spared;
        free = free.saturating_add(spared);
        verdict.leftovers = leftovers;
        items.sort_by(|a, b| {
            (a.class != Class::OtherVersion, a.used, a.class, &a.path).cmp(&(
                b.class != Class::OtherVersion,
                b.used,
                b.class,
                &b.path,
            ))
        });
        let too_old = limits.max_age.map(|age| now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)));
        for item in items {
            let over = limits.max_size.is_some_and(|most| total > most)
                || limits.min_free.is_some_and(|least| free < least)
                || too_old.is_some_and(|oldest| item.used < oldest && item.used != AHEAD);
            // A record that nobody can read is of no use whatever the limits are.
            if over || (item.class == Class::Record && item.used == 0) {
                let folder = item.folder.map_or(0, |at| {
                    folders[at].entries -= 1;
                    spare(&folders[at])
                });
                total -= item.size + folder;
                free = free.saturating_add(item.size + folder);
                verdict.collected.removed.entry(item.class).or_default().add(item.size);
                verdict.doomed.push(item);
            } else if item.used == AHEAD {
                verdict.ahead.push(item.path);
            }
        }
        verdict.spare = empty;
        verdict.collected.kept = total;
        verdict.collected.others = others;
        Ok(verdict)
    }
}

/// What is to become of a cache.
#[derive(Debug, Default)]
struct Verdict {
    doomed: Vec<Item>,
    leftovers: Vec<Leftover>,
    /// Folders of two digits that are empty then.
    spare: Vec<PathBuf>,
    /// What stays, and has a time that is still to come.
    ahead: Vec<PathBuf>,
    collected: Collected,
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
        let verdict = self.store.judge(limits, now, self.is_alone())?;
        for leftover in &verdict.leftovers {
            remove(&leftover.path, leftover.is_folder)?;
            Point::Swept.reach();
        }
        for item in &verdict.doomed {
            match item.path.is_dir() {
                true => remove(&self.set_aside(&item.path)?, true)?,
                false => remove(&item.path, false)?,
            }
            Point::Collected.reach();
        }
        for folder in &verdict.spare {
            // One in which somebody else has put something stays.
            let _ = fs::remove_dir(folder);
        }
        for path in &verdict.ahead {
            // From now on it is as old as it is known to be.
            let _ = fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
        }
        Ok(verdict.collected)
    }

    /// Moves a folder among the temporary files: who is killed while it is emptied leaves no stage for commands that lacks files.
    fn set_aside(&self, folder: &Path) -> Result<PathBuf, CacheError> {
        let scratch = self.store.scratch();
        // On a full disk nothing can be made, and that is when space is wanted: then it is emptied where it is.
        let aside = match tempfile::Builder::new().prefix("gone-").tempdir_in(&scratch) {
            Ok(aside) => aside.keep(),
            Err(_) => return Ok(folder.into()),
        };
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

    /// Reads every record and removes those that are damaged: whoever needs one does the work again. Calls `each` with those that
    /// are whole. One that cannot be read keeps nobody from the others.
    pub fn verify_records(&self, mut each: impl FnMut(Key, &Recorded)) -> Result<Verified<Key>, CacheError> {
        let mut verified = Verified::default();
        for (path, name, _) in entries(&self.store.bucket("ledger"))? {
            let key = Key(name);
            let bytes = match fs::read(&path) {
                Err(error) if fails(&error) => Vec::new(),
                Err(error) => {
                    verified.unread.push(CacheError::at(&path)(error));
                    continue;
                }
                Ok(bytes) => bytes,
            };
            verified.read += 1;
            match ledger::parse(&bytes, &key) {
                Some(recorded) => each(key, &recorded),
                None => {
                    remove(&path, false)?;
                    Point::Rejected.reach();
                    verified.damaged.push(key);
                }
            }
        }
        Ok(verified)
    }

    /// Reads every blob and removes those that are not what their names say: whoever needs one makes or downloads it again. Calls
    /// `each` with those that are whole, opened at their beginning; blobs are read on so many threads, large ones first. One that
    /// cannot be read keeps nobody from the others.
    pub fn verify_blobs(
        &self,
        threads: usize,
        each: impl Fn(&Blob, fs::File) -> Result<(), CacheError> + Sync,
    ) -> Result<Verified<Digest>, CacheError> {
        let mut blobs = self.store.list()?;
        // One that came last would be read by one thread alone.
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        let next = std::sync::atomic::AtomicUsize::new(0);
        let check = || {
            let (mut damaged, mut unread) = (Vec::new(), Vec::new());
            while let Some(blob) = blobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                match self.store.open_verified(&blob.digest) {
                    Ok(Some(file)) => unread.extend(each(blob, file).err()),
                    Ok(None) => {
                        Point::Rejected.reach();
                        damaged.push(blob.digest);
                    }
                    Err(error) => unread.push(error),
                }
            }
            (damaged, unread)
        };
        let found = std::thread::scope(|scope| {
            // Where no more threads can be had, those that began do it, this one at least.
            let begin = |_| std::thread::Builder::new().spawn_scoped(scope, check).ok();
            let helpers: Vec<_> = (1..threads).map_while(begin).collect();
            let mut found = vec![check()];
            found.extend(helpers.into_iter().map(|helper| helper.join().unwrap_or_else(|it| resume_unwind(it))));
            found
        });
        let mut verified = Verified::default();
        for (damaged, unread) in found {
            verified.damaged.extend(damaged);
            verified.unread.extend(unread);
        }
        verified.read = (blobs.len() - verified.unread.len()) as u64;
        verified.damaged.sort_unstable();
        Ok(verified)
    }

    /// Removes records that are whole, and wrong.
    pub fn reject(&self, keys: impl IntoIterator<Item = Key>) -> Result<(), CacheError> {
        keys.into_iter().try_for_each(|key| {
            self.store.forget(&key)?;
            Point::Rejected.reach();
            Ok(())
        })
    }
}

/// What was read, and found to be damaged.
#[derive(Debug)]
pub struct Verified<T> {
    /// How many were read.
    pub read: u64,
    /// The names of those that were not what these say, and are gone.
    pub damaged: Vec<T>,
    /// Why others could not be read, or removed. They stay.
    pub unread: Vec<CacheError>,
}

impl<T> Default for Verified<T> {
    fn default() -> Verified<T> {
        Verified { read: 0, damaged: Vec::new(), unread: Vec::new() }
    }
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
mod tests;
