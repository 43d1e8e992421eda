//! What is remembered of files, so that unchanged ones need not be hashed again.
//!
//! A digest is trusted while size, mtime, ctime, inode and device are the same *and* the file's times were older than
//! the moment of hashing by more than the clock's granularity: a file that changes within the same tick keeps its
//! times, so younger ones are hashed each time until they have aged (as git does for "racily clean" files). The ctime
//! cannot be set by a program, so an edit that restores size and mtime is still noticed.

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

/// Times younger than this when they were remembered are not trusted, nanoseconds: coarse file systems tick every 2 s.
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
            .unwrap_or_default();
        StatCache { path: Some(path), known: saved.files, changed: false }
    }

    pub(super) fn digest(&self, root: &Path, path: &str, now: &Signature) -> Option<Digest> {
        let known = self.known.get(&key(root, path))?;
        let aged = known.signature.mtime.max(known.signature.ctime) + GRANULARITY < known.seen;
        (known.signature == *now && aged).then_some(known.digest)
    }

    pub(super) fn remember(&mut self, root: &Path, path: &str, signature: &Signature, digest: Digest) {
        let seen = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
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

fn key(root: &Path, path: &str) -> Vec<u8> {
    let mut key = root.as_os_str().as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(path.as_bytes());
    key
}
