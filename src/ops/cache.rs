//! `cache`: what is kept, and for how long.

use cache::{Limits, Store, Waiting};
use serde::{Deserialize, Serialize};

use crate::config::CacheLimits;
use crate::error::Failure;
use crate::failpoint::Kept;
use crate::observe::{Event, Observer};

/// A day, seconds: at least so often the cache is looked at, so that what is too old goes.
const DAY: i64 = 86_400;

/// What is remembered of the cache's size between builds, so that a build need not look at every file.
#[derive(Debug, Serialize, Deserialize)]
struct Usage {
    bytes: u64,
    looked: i64,
}

impl From<CacheLimits> for Limits {
    fn from(limits: CacheLimits) -> Limits {
        Limits { max_size: limits.max_size, max_age: limits.max_age, min_free: limits.min_free }
    }
}

/// Keeps the cache within its limits. Called after a build that wrote something, when it no longer holds the cache.
///
/// Looks at every file only where the ceiling may have been passed, or once a day. Does nothing while others build: the
/// last of them will. Removes nothing where the file system has no locks. Trouble is a warning, since the build is done.
pub fn tidy(store: &Store, limits: &Limits, now: i64, observer: &dyn Observer) {
    if let Err(failure) = try_tidy(store, limits, now) {
        observer.on(Event::Warning(&format!("the cache could not be kept within its limits: {}", failure.message)));
    }
}

fn try_tidy(store: &Store, limits: &Limits, now: i64) -> Result<(), Failure> {
    let path = store.root().join("usage-v1");
    let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Usage>(&bytes).ok());
    let estimate = known.as_ref().map(|usage| usage.bytes.saturating_add(store.written()));
    let within = |bytes: u64| limits.max_size.is_none_or(|most| bytes <= most);
    let young = known.as_ref().is_some_and(|usage| (0..DAY).contains(&(now - usage.looked)));
    let free = match limits.min_free {
        Some(least) => store.free()? >= least,
        None => true,
    };
    let usage = match (estimate, known) {
        (Some(bytes), Some(known)) if young && free && within(bytes) => Usage { bytes, looked: known.looked },
        _ => match store.collector(Waiting::No)? {
            // Somebody else's cache: its owner's builds see to it.
            Some(collector) if !collector.may_write() => return Ok(()),
            Some(collector) if !collector.is_alone() => {
                let would = store.would_collect(limits, now)?;
                if !would.removed.is_empty() {
                    let why = "its file system has no locks, and so nobody knows whether others build: run `imgbuild cache gc` when nobody does";
                    return Err(Failure::work(why));
                }
                Usage { bytes: would.kept.saturating_add(would.leftovers.bytes), looked: now }
            }
            Some(collector) => Usage { bytes: collector.collect(limits, now)?.kept, looked: now },
            None => return Ok(()),
        },
    };
    // Another builder may write it at the same time: an estimate that is wrong is mended within a day.
    let bytes = serde_json::to_vec(&usage).expect("two numbers");
    written_over(&path, &bytes).map_err(|error| Failure::work(format!("`{}`: {error}", path.display())))
}

/// Writes a small file where it lies: ext4 writes a file that was emptied to the disk when it is closed.
fn written_over(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(bytes)?;
    Kept::Usage.reach();
    file.set_len(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Silent;

    #[test]
    fn the_cache_is_looked_at_when_it_may_be_too_large_and_not_while_others_build() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let blob = |store: &Store, byte: u8| store.put(&[byte; 100_000]).expect("puts").digest;
        let limits = Limits { max_size: Some(250_000), ..Limits::default() };
        let one = blob(&store, 1);
        tidy(&store, &limits, 1000, &Silent);
        assert!(store.has(&one).expect("looks").is_some());
        let another = Store::open_at(folder.path()).expect("opens");
        let (two, three) = (blob(&another, 2), blob(&another, 3));
        let hold = store.hold().expect("holds");
        tidy(&another, &limits, 1001, &Silent);
        let there = |digest| store.has(digest).expect("looks").is_some();
        let all = [one, two, three];
        assert!(all.iter().all(there), "a builder is running");
        drop(hold);
        tidy(&another, &limits, 1002, &Silent);
        assert_eq!(all.iter().filter(|digest| there(digest)).count(), 2);
        assert!(store.contents().expect("looks").total <= 250_000);
    }
}
