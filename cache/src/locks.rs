//! Turns: one process at a time makes what a name stands for.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;

use layers::{Digest, Key};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr as retry};

use crate::gc::Collector;
use crate::{CacheError, Store};

/// Held while its owner makes something; released when dropped, also by `kill -9`.
#[derive(Debug)]
pub struct Turn {
    _file: Option<File>,
}

/// Keeps collectors away for as long as it lives; released when dropped, also by `kill -9`.
#[derive(Debug)]
pub struct Hold {
    _file: Option<File>,
}

/// Whether to wait for who is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// As long as it takes.
    Yes,
    /// Not at all.
    No,
}

impl Store {
    /// Announces a builder: nothing is collected while it lives. Waits for a collection that is under way.
    pub fn hold(&self) -> Result<Hold, CacheError> {
        let file = self.in_use(FlockOperation::LockShared)?;
        Ok(Hold { _file: file.flatten() })
    }

    /// Excludes builders. `None`: some are running, and nobody waits for them.
    pub fn collector(&self, waiting: Waiting) -> Result<Option<Collector<'_>>, CacheError> {
        let how = match waiting {
            Waiting::Yes => FlockOperation::LockExclusive,
            Waiting::No => FlockOperation::NonBlockingLockExclusive,
        };
        Ok(match self.in_use(how)? {
            Some(Some(file)) => Some(Collector { store: self, _lock: Some(file) }),
            // Without locks nobody can say who is building: it is up to the user to know.
            Some(None) if waiting == Waiting::Yes => Some(Collector { store: self, _lock: None }),
            Some(None) | None => None,
        })
    }

    /// Locks the file that builders and collectors share. `None`: somebody is in the way; `Some(None)`: there are no locks.
    fn in_use(&self, how: FlockOperation) -> Result<Option<Option<File>>, CacheError> {
        // Outside of the buckets, so that all versions of this program mean the same file.
        let path = self.root().join("in-use.lock");
        let file = match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
            // A cache that can be read only is not collected either.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                return Ok(Some(None));
            }
            file => file.map_err(CacheError::at(&path))?,
        };
        match retry(|| flock(&file, how)) {
            Ok(()) => Ok(Some(Some(file))),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) => Ok(Some(None)),
            Err(error) => Err(CacheError::at(&path)(error.into())),
        }
    }

    /// Waits until no other process makes the outcome of `key`.
    pub fn lock_build(&self, key: &Key) -> Result<Turn, CacheError> {
        self.turn("make", &key.0)
    }

    /// Waits until no other process runs the command of `key`. Apart from [`Store::lock_build`]: who runs a command waits for a
    /// core while it holds this, and who converts an archive waits for its turn while it holds a core.
    pub fn lock_run(&self, key: &Key) -> Result<Turn, CacheError> {
        self.turn("run", &key.0)
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
        match retry(|| flock(&file, FlockOperation::LockExclusive)) {
            Ok(()) => Ok(Turn { _file: Some(file) }),
            // A file system without locks: work is done twice at worst, because every file is renamed into place whole.
            Err(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) => Ok(Turn { _file: None }),
            Err(error) => Err(CacheError::at(&path)(error.into())),
        }
    }
}
