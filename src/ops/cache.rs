//! `cache`: what is kept, and for how long.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use cache::{Collected, Collector, Limits, Store, Waiting};
use serde::{Deserialize, Serialize};

use crate::config::CacheLimits;
use crate::error::Failure;
use crate::failpoint::Kept;
use crate::observe::{Event, Observer};

/// A day, seconds: at least so often the cache is looked at, so that what is too old goes.
const DAY: i64 = 86_400;

/// How long who finds the ceiling passed waits for other builders at most, and whoever begins meanwhile with it.
const PATIENCE: Duration = Duration::from_secs(10);

/// From so many times the ceiling on it waits as long as its own work took: of builders that overlap for ever, one that takes no less
/// than the others then finds a moment between them.
const FAR: f64 = 1.5;

/// But no longer than this: somebody may be at work in a shell for hours.
const LONGEST: Duration = Duration::from_secs(120);

/// What is remembered of the cache's size between builds, so that a build need not look at every file.
#[derive(Debug, Serialize, Deserialize)]
struct Usage {
    /// Without downloads that are not complete: these are looked at.
    bytes: u64,
    looked: i64,
}

impl From<CacheLimits> for Limits {
    fn from(limits: CacheLimits) -> Limits {
        Limits { max_size: limits.max_size, max_age: limits.max_age, min_free: limits.min_free }
    }
}

/// Keeps the cache within its limits. Called when work ends that wrote something, or failed, and no longer holds the cache; `took`
/// is how long it was.
///
/// Looks at every file only where the ceiling may have been passed, where nobody knows what was written, or once a day. Removes
/// nothing where the file system has no locks. Trouble is a warning, since the work is done, or failed for another reason.
pub fn tidy(store: &Store, limits: &Limits, now: i64, took: Duration, observer: &dyn Observer) {
    if let Err(failure) = try_tidy(store, limits, now, took, observer) {
        observer.on(Event::Warning(&format!("the cache could not be kept within its limits: {}", failure.message)));
    }
}

fn try_tidy(store: &Store, limits: &Limits, now: i64, took: Duration, observer: &dyn Observer) -> Result<(), Failure> {
    // Somebody else's cache: its owner's builds see to it, and nobody waits here.
    if !store.may_write() {
        return Ok(());
    }
    let size = Size::of(store, limits, now, store.written())?;
    if size.is_fine() {
        return Ok(());
    }
    let wait = |is_far: bool| {
        if is_far && took > PATIENCE {
            observer.on(Event::Note("the cache is far beyond its ceiling: waiting until no other build runs"));
        }
        store.collector(Waiting::AtMost(took.min(if is_far { LONGEST } else { PATIENCE })))
    };
    let mut collector = if size.is_over { wait(size.is_far)? } else { store.collector(Waiting::No)? };
    if collector.is_none() && !size.is_known && !size.is_over {
        let would = store.would_collect(limits, now)?;
        if would.removed.is_empty() {
            return Ok(());
        }
        let all = would.removed.values().map(|amount| amount.bytes).fold(would.kept, u64::saturating_add);
        collector = wait(is_beyond(all, limits, FAR))?;
    }
    let Some(collector) = collector.filter(Collector::may_write) else { return Ok(()) };
    // Whoever was waited for may have collected.
    if Size::of(store, limits, now, 0)?.is_fine() {
        return Ok(());
    }
    if collector.is_alone() {
        return collect(store, &collector, limits, now).map(drop);
    }
    if size.is_known && !size.is_over {
        return Ok(());
    }
    let would = store.would_collect(limits, now)?;
    if !would.removed.is_empty() {
        let why = "its file system has no locks, and so nobody knows whether others build: run `imgbuild cache gc` when nobody does";
        return Err(Failure::work(why));
    }
    keep(store, would.kept.saturating_add(would.leftovers.bytes), now)
}

/// What is known of the cache's size without a look at it.
struct Size {
    /// The size is known: somebody looked not long ago, and all who wrote since have said how much.
    is_known: bool,
    /// A limit is passed.
    is_over: bool,
    /// The ceiling is passed by far.
    is_far: bool,
    /// What killed builders left is there.
    has_leftovers: bool,
}

impl Size {
    /// Adds what this process wrote, bytes.
    fn of(store: &Store, limits: &Limits, now: i64, wrote: u64) -> Result<Size, Failure> {
        let path = store.usage_path();
        // Who cannot write down what it wrote leaves the next one without an estimate, rather than with a wrong one.
        let known = add(&path, wrote).unwrap_or_else(|_| {
            let _ = fs::remove_file(&path);
            None
        });
        let bytes = match &known {
            Some(usage) => Some(usage.bytes.saturating_add(store.partial_size()?)),
            None => None,
        };
        let young = known.as_ref().is_some_and(|usage| (0..DAY).contains(&(now - usage.looked)));
        let is_full = match limits.min_free {
            Some(least) => store.free()? < least,
            None => false,
        };
        Ok(Size {
            is_known: bytes.is_some() && young && !store.wrote_uncounted(),
            is_over: is_full || bytes.is_some_and(|bytes| is_beyond(bytes, limits, 1.0)),
            is_far: bytes.is_some_and(|bytes| is_beyond(bytes, limits, FAR)),
            has_leftovers: store.has_temporary()?,
        })
    }

    fn is_fine(&self) -> bool {
        self.is_known && !self.is_over && !self.has_leftovers
    }
}

/// Whether so many bytes are more than this share of the ceiling.
fn is_beyond(bytes: u64, limits: &Limits, share: f64) -> bool {
    limits.max_size.is_some_and(|most| bytes as f64 > most as f64 * share)
}

/// Adds to what is remembered of the cache's size. `None`: nothing is.
fn add(path: &Path, bytes: u64) -> io::Result<Option<Usage>> {
    let mut file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    // Where there are no locks, one of two that add at once is forgotten until somebody looks.
    let _ = file.lock();
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let Ok(usage) = serde_json::from_slice::<Usage>(&text) else { return Ok(None) };
    let usage = Usage { bytes: usage.bytes.saturating_add(bytes), ..usage };
    if bytes > 0 {
        write_over(&mut file, &usage)?;
    }
    Ok(Some(usage))
}

/// Removes what is beyond the limits, and remembers what stays, for whoever tidies next.
pub fn collect(store: &Store, collector: &Collector<'_>, limits: &Limits, now: i64) -> Result<Collected, Failure> {
    let collected = collector.collect(limits, now)?;
    if store.may_write() {
        keep(store, collected.kept, now)?;
    }
    Ok(collected)
}

/// Remembers what somebody saw who looked at everything.
fn keep(store: &Store, kept: u64, now: i64) -> Result<(), Failure> {
    let path = &store.usage_path();
    let usage = Usage { bytes: kept.saturating_sub(store.partial_size()?), looked: now };
    let written = File::options().write(true).create(true).truncate(false).open(path).and_then(|mut file| {
        let _ = file.lock();
        write_over(&mut file, &usage)
    });
    match written {
        // The next one looks again, and the work has said that the disk is full.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            let _ = fs::remove_file(path);
            Ok(())
        }
        done => done.map_err(|error| Failure::work(format!("`{}`: {error}", path.display()))),
    }
}

/// Writes a small file where it lies: ext4 writes a file that was emptied to the disk when it is closed.
fn write_over(file: &mut File, usage: &Usage) -> io::Result<()> {
    let bytes = serde_json::to_vec(usage).expect("two numbers");
    file.rewind()?;
    file.write_all(&bytes)?;
    Kept::Usage.reach();
    file.set_len(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Silent;

    const NO_TIME: Duration = Duration::ZERO;

    #[test]
    fn the_cache_is_looked_at_when_it_may_be_too_large_and_not_while_others_build() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let blob = |store: &Store, byte: u8| store.put(&[byte; 100_000]).expect("puts").digest;
        let limits = Limits { max_size: Some(280_000), ..Limits::default() };
        let one = blob(&store, 1);
        tidy(&store, &limits, 1000, NO_TIME, &Silent);
        assert!(store.has(&one).expect("looks").is_some());
        let another = Store::open_at(folder.path()).expect("opens");
        let (two, three) = (blob(&another, 2), blob(&another, 3));
        let hold = store.hold().expect("holds");
        tidy(&another, &limits, 1001, NO_TIME, &Silent);
        let there = |digest| store.has(digest).expect("looks").is_some();
        let all = [one, two, three];
        assert!(all.iter().all(there), "a builder is running");
        drop(hold);
        // Who built meanwhile and found others at work has said how much it wrote.
        let last = Store::open_at(folder.path()).expect("opens");
        tidy(&last, &limits, 1002, NO_TIME, &Silent);
        assert_eq!(all.iter().filter(|digest| there(digest)).count(), 2);
        assert!(store.contents().expect("looks").total <= 280_000);
    }

    /// Blobs of 100 kB in a cache of at most 250 kB whose size is known, and more of them than that.
    fn overfull(folder: &Path) -> (Store, Limits) {
        let store = Store::open_at(folder).expect("opens");
        let limits = Limits { max_size: Some(250_000), ..Limits::default() };
        tidy(&store, &limits, 1000, NO_TIME, &Silent);
        for byte in 0..3 {
            store.put(&[byte; 100_000]).expect("puts");
        }
        (store, limits)
    }

    #[test]
    fn of_builders_that_overlap_for_ever_one_waits_for_a_moment_between_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, limits) = overfull(folder.path());
        let first = store.hold().expect("holds");
        std::thread::scope(|scope| {
            let mut hold = first;
            let tidies = scope.spawn(|| tidy(&store, &limits, 1001, PATIENCE, &Silent));
            // Each begins before the one before it ends.
            while !tidies.is_finished() {
                let (said, waits) = std::sync::mpsc::channel();
                let ended = said.clone();
                let store = &store;
                let next = scope.spawn(move || {
                    let hold = store.hold_after(move || said.send(()).expect("is heard"));
                    drop(ended);
                    hold.expect("holds")
                });
                // Either it waits, or it has passed.
                let _ = waits.recv();
                drop(hold);
                hold = next.join().expect("no panic");
            }
        });
        let total = store.contents().expect("looks").total;
        assert!(total <= 250_000, "{total}");
    }

    #[test]
    fn what_nobody_counted_is_looked_at_and_so_is_what_killed_builders_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let limits = Limits { max_size: Some(250_000), ..Limits::default() };
        tidy(&store, &limits, 1000, NO_TIME, &Silent);
        let total = || store.contents().expect("looks").total;
        // A command in another process, which is killed.
        let killed = Store::open_at(folder.path()).expect("opens");
        let kept = killed.command_cache(&layers::Digest::of(b"pip")).expect("makes");
        fs::write(kept.join("x"), [1; 300_000]).expect("writes");
        drop(killed);
        tidy(&store, &limits, 1001, NO_TIME, &Silent);
        assert!(total() <= 250_000, "{}", total());
        fs::write(store.scratch().join("half"), "left").expect("writes");
        tidy(&store, &limits, 1002, NO_TIME, &Silent);
        assert!(!store.has_temporary().expect("looks"));
        // A download that broke off.
        fs::write(store.partial_path(&layers::Digest::of(b"x")), [1; 300_000]).expect("writes");
        tidy(&store, &limits, 1003, NO_TIME, &Silent);
        assert!(total() <= 250_000, "{}", total());
    }

    #[test]
    fn a_collection_remembers_what_stays_also_where_nobody_knew() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        store.put(&[1; 100_000]).expect("puts");
        let collector = store.collector(Waiting::No).expect("locks").expect("nobody builds");
        let collected = collect(&store, &collector, &Limits::default(), 1000).expect("collects");
        let usage = add(&store.usage_path(), 0).expect("looks").expect("is known");
        assert_eq!((usage.bytes, usage.looked), (collected.kept, 1000));
    }

    #[test]
    fn who_counts_beside_others_forgets_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("usage");
        assert!(add(&path, 1).expect("looks").is_none() && !path.exists(), "nobody knows what is there");
        fs::write(&path, r#"{"bytes":1000000000,"looked":7}"#).expect("writes");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| assert!(add(&path, 3).expect("adds").is_some())));
            }
        });
        let usage = add(&path, 0).expect("looks").expect("is known");
        assert_eq!((usage.bytes, usage.looked), (1_000_001_200, 7));
        fs::write(&path, r#"{"bytes":10"#).expect("damages");
        assert!(add(&path, 1).expect("looks").is_none());
    }
}
