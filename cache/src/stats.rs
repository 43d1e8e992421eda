//! What a build remembers of its context's files: a file for each context, so that a large one slows no other.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use layers::Digest;

use crate::ledger::mark_used;
use crate::points::Point;
use crate::{CacheError, Store};

impl Store {
    /// Where it is kept, whether or not it is there: named by the context's own place, however it is spelled.
    fn stats_path(&self, context: &Path) -> PathBuf {
        let real = fs::canonicalize(context).unwrap_or_else(|_| context.into());
        self.bucket("stat").join(Digest::of(real.as_os_str().as_bytes()).hex())
    }

    /// What was kept for the context in this folder; nothing where it cannot be read.
    pub fn stats(&self, context: &Path) -> Option<Vec<u8>> {
        let mut file = File::open(self.stats_path(context)).ok()?;
        let metadata = file.metadata().ok()?;
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes).ok()?;
        mark_used(&file, &metadata);
        Some(bytes)
    }

    /// Keeps this for the context in this folder. Of builders that do so at once one is the last, and what that one keeps is whole.
    pub fn keep_stats(&self, context: &Path, bytes: &[u8]) -> Result<(), CacheError> {
        self.put_at(&self.stats_path(context), bytes, [Point::StatsWritten, Point::StatsSettled])
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{Class, Limits, Waiting};

    #[test]
    fn each_context_has_its_own_and_what_was_not_used_for_long_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        fs::create_dir(&one).expect("makes");
        std::os::unix::fs::symlink(&one, folder.path().join("link")).expect("links");
        assert_eq!(store.stats(&one), None);
        // A cache of an earlier version has no folder for it.
        fs::remove_dir(store.bucket("stat")).expect("removes");
        store.keep_stats(&one, b"first").expect("keeps");
        store.keep_stats(&other, &[1; 5000]).expect("keeps");
        store.keep_stats(&one, b"second").expect("keeps");
        // And the folder, which an earlier version's cache had not.
        assert_eq!(store.written(), 4096 + 4096 + 8192, "it grew by so much");
        assert_eq!(store.stats(&folder.path().join("link")).as_deref(), Some(b"second".as_slice()));
        assert_eq!(store.stats(&other), Some(vec![1; 5000]));
        let now = SystemTime::now();
        for path in [&one, &other].map(|context| store.stats_path(context)) {
            File::open(path).and_then(|file| file.set_modified(now - Duration::from_secs(7200))).expect("ages");
        }
        store.stats(&one);
        let limits = Limits { max_age: Some(3600), ..Limits::default() };
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_secs() as i64;
        let collector = store.collector(Waiting::No).expect("locks").expect("nobody builds");
        let collected = collector.collect(&limits, seconds).expect("collects");
        assert_eq!(collected.removed[&Class::Stats].count, 1);
        assert_eq!((store.stats(&one).is_some(), store.stats(&other)), (true, None));
        collector.collect(&Limits::NOTHING, 0).expect("clears");
        assert_eq!(store.stats(&one), None);
    }

    #[test]
    fn the_one_file_for_all_contexts_of_earlier_versions_goes_as_their_folders_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let earlier = folder.path().join("stat-v1");
        fs::write(&earlier, [1; 5000]).expect("writes");
        let total = store.contents().expect("looks").total;
        let collector = store.collector(Waiting::No).expect("locks").expect("nobody builds");
        let limits = |most| Limits { max_size: Some(most), ..Limits::default() };
        collector.collect(&limits(total), 0).expect("collects");
        assert!(earlier.exists(), "it is in nobody's way");
        let collected = collector.collect(&limits(total - 1), 0).expect("collects");
        assert_eq!(collected.removed[&Class::OtherVersion].count, 1);
        assert!(!earlier.exists());
    }
}
