//! Turns: one process at a time makes what a name stands for.

use std::fs::{File, OpenOptions};

use layers::{Digest, Key};
use rustix::fs::{FlockOperation, flock};

use crate::{CacheError, Store};

/// Held while its owner makes something; released when dropped, also by `kill -9`.
#[derive(Debug)]
pub struct Turn {
    _file: Option<File>,
}

impl Store {
    /// Waits until no other process makes the outcome of `key`.
    pub fn lock_build(&self, key: &Key) -> Result<Turn, CacheError> {
        self.turn("make", &key.0)
    }

    /// Waits until no other process downloads the blob.
    pub fn lock_download(&self, digest: &Digest) -> Result<Turn, CacheError> {
        self.turn("load", digest)
    }

    fn turn(&self, what: &str, name: &Digest) -> Result<Turn, CacheError> {
        // A lock file a slot instead of a name: the folder stays small, and two names in one slot only wait needlessly.
        // Who makes may wait for a download, never the other way round; apart, the two cannot wait in a circle.
        let path = self.bucket("locks").join(format!("{what}-{}", &name.hex()[..3]));
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(CacheError::at(&path))?;
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => Ok(Turn { _file: Some(file) }),
            // A file system without locks: work is done twice at worst, because every file is renamed into place whole.
            Err(rustix::io::Errno::NOLCK | rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS) => {
                Ok(Turn { _file: None })
            }
            Err(error) => Err(CacheError::at(&path)(error.into())),
        }
    }
}
