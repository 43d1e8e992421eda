//! Records by key: what a piece of work came to, and why it was asked.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use layers::{Digest, Key};
use serde::Serialize;

use crate::points::Point;
use crate::{CacheError, Store};

/// A record and the text that its key was hashed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The record, JSON.
    pub record: Vec<u8>,
    /// The key's text.
    pub text: String,
}

/// What was used so recently need not be marked as used again: a warm build writes nothing.
const FRESH: Duration = Duration::from_secs(3600);

// A file holds the record's digest and length, the record, and the text: damage of any byte of the record is noticed.
const HEAD: usize = 64 + 1 + 10 + 1;

impl Store {
    /// The record of a key; a damaged one counts as missing.
    pub fn find(&self, key: &Key) -> Result<Option<Vec<u8>>, CacheError> {
        Ok(self.recall(key)?.map(|recorded| recorded.record))
    }

    /// The record of a key with the text that the key was hashed from.
    pub fn recall(&self, key: &Key) -> Result<Option<Recorded>, CacheError> {
        let path = self.record_path(key);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(CacheError::at(&path))?,
        };
        let metadata = file.metadata().map_err(CacheError::at(&path))?;
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes).map_err(CacheError::at(&path))?;
        let recorded = parse(&bytes, key);
        if recorded.is_some() {
            mark_used(&file, &metadata);
        }
        Ok(recorded)
    }

    /// Where a record lies, whether or not it is there.
    pub fn record_path(&self, key: &Key) -> PathBuf {
        self.fanned("ledger", &key.0.hex())
    }

    /// Keeps a record under a key. `text` is what the key was hashed from.
    pub fn keep(&self, key: &Key, text: &str, record: &impl Serialize) -> Result<(), CacheError> {
        let record = serde_json::to_vec(record).expect("records have only string keys and finite numbers");
        let mut bytes = format!("{} {:010}\n", Digest::of(&record).hex(), record.len()).into_bytes();
        bytes.extend_from_slice(&record);
        bytes.push(b'\n');
        bytes.extend_from_slice(text.as_bytes());
        self.put_record(key, &bytes)
    }

    /// Puts a record's file in its place.
    pub(crate) fn put_record(&self, key: &Key, bytes: &[u8]) -> Result<(), CacheError> {
        self.put_at(&self.record_path(key), bytes, [Point::RecordWritten, Point::RecordSettled])
    }

    /// Puts a file in its place, whole.
    pub(crate) fn put_at(&self, place: &Path, bytes: &[u8], [written, settled]: [Point; 2]) -> Result<(), CacheError> {
        let folder = self.scratch();
        let before = fs::metadata(place).map_or(0, |metadata| metadata.len());
        // For all whom the umask lets read, as blobs are: users may share a cache.
        let shared = fs::Permissions::from_mode(0o666);
        let mut file =
            tempfile::Builder::new().permissions(shared).tempfile_in(&folder).map_err(CacheError::at(&folder))?;
        file.write_all(bytes).map_err(CacheError::at(&folder))?;
        let path = file.into_temp_path();
        written.reach();
        self.settle(&path, place)?;
        settled.reach();
        self.count(bytes.len() as u64, before);
        let _ = path.keep();
        Ok(())
    }

    /// Forgets a record; what is not there is no error.
    pub fn forget(&self, key: &Key) -> Result<(), CacheError> {
        let path = self.record_path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::at(&path)(error)),
            _ => Ok(()),
        }
    }
}

/// The time of the last use, for `gc`. A cache that can only be read is not collected.
pub(crate) fn mark_used(file: &File, metadata: &fs::Metadata) {
    if metadata.modified().is_ok_and(|time| is_ahead(time) || time.elapsed().is_ok_and(|age| age > FRESH)) {
        // As whoever may write to it may do, and not its owner alone.
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let _ = rustix::fs::futimens(file, &rustix::fs::Timestamps { last_access: now, last_modification: now });
    }
}

/// Whether a time is still to come, by more than clocks differ: the clock was ahead that it is from.
pub(crate) fn is_ahead(time: SystemTime) -> bool {
    time.elapsed().is_err_and(|error| error.duration() > FRESH)
}

pub(crate) fn parse(bytes: &[u8], key: &Key) -> Option<Recorded> {
    let head = std::str::from_utf8(bytes.get(..HEAD)?).ok()?;
    let digest = Digest::from_hex(head.get(..64)?).ok()?;
    let length: usize = head.get(65..75)?.parse().ok()?;
    let record = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    let text = std::str::from_utf8(bytes.get(HEAD + length + 1..)?).ok()?;
    // The text must be what the key was hashed from, or the record belongs to another key.
    let whole = Digest::of(record) == digest && Digest::of(text.as_bytes()) == key.0;
    whole.then(|| Recorded { record: record.to_vec(), text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::KeyHasher;

    fn key(name: &str) -> (Key, String) {
        let mut hasher = KeyHasher::new("test", 1);
        hasher.field("name", name);
        hasher.finish()
    }

    #[test]
    fn a_record_is_found_by_its_key_and_survives_no_damage() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let (a, text) = key("a");
        assert_eq!(store.find(&a).expect("looks"), None);
        store.keep(&a, &text, &"outcome").expect("keeps");
        assert_eq!(store.find(&a).expect("looks").as_deref(), Some(b"\"outcome\"".as_slice()));
        let path = store.fanned("ledger", &a.0.hex());
        let good = fs::read(&path).expect("reads");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("damages");
            if let Some(found) = store.find(&a).expect("looks") {
                assert_eq!(found, b"\"outcome\"", "byte {at}");
            }
            fs::write(&path, &good[..at]).expect("truncates");
            assert_eq!(store.find(&a).expect("looks"), None, "cut at {at}");
        }
    }

    #[test]
    fn a_record_moved_to_another_key_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let ((a, text), (b, other)) = (key("a"), key("b"));
        store.keep(&a, &text, &1).expect("keeps");
        store.keep(&b, &other, &2).expect("keeps");
        let (from, to) = (store.fanned("ledger", &a.0.hex()), store.fanned("ledger", &b.0.hex()));
        fs::copy(from, to).expect("swaps");
        assert_eq!(store.find(&b).expect("looks"), None);
    }

    #[test]
    fn whoever_the_umask_lets_read_may_read_records() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let (key, text) = KeyHasher::new("test", 1).finish();
        store.keep(&key, &text, &1).expect("keeps");
        let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        let usual = folder.path().join("usual");
        fs::write(&usual, "").expect("writes");
        assert_eq!(mode(&store.record_path(&key)), mode(&usual));
    }
}
