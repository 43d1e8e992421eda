//! Turns: one process at a time makes what a name stands for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use layers::{Digest, Key};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr as retry};
use tempfile::{NamedTempFile, TempPath};

use crate::gc::Collector;
use crate::{CacheError, Store};

/// Held while its owner makes something; released when dropped, also by `kill -9`.
#[derive(Debug)]
pub struct Turn {
    _file: Option<File>,
    /// What is downloaded where no lock keeps others from it; removed when dropped.
    own: Option<TempPath>,
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
    /// As long as it takes, but no longer than this.
    AtMost(Duration),
    /// Not at all.
    No,
}

/// How often who waits for a while looks whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// Shared by builders, exclusive to a collector.
pub(crate) const IN_USE: &str = "in-use.lock";

/// Exclusive to a collector that waits or is at work; builders pass it before they share the other one.
pub(crate) const GATE: &str = "collect.lock";

impl Store {
    /// Announces a builder: nothing is collected while it lives. Waits for a collection that is under way, or wanted.
    pub fn hold(&self) -> Result<Hold, CacheError> {
        self.hold_after(|| ())
    }

    /// As [`hold`](Store::hold); calls `waits` first where it has to wait.
    ///
    /// A process that holds the cache must not hold it once more: a collector that waits for it would keep it waiting.
    pub fn hold_after(&self, waits: impl FnOnce()) -> Result<Hold, CacheError> {
        let mut waits = Some(waits);
        let mut shared = |name: &str| -> Result<Option<File>, CacheError> {
            match self.common(name, FlockOperation::NonBlockingLockShared)?.0 {
                Asked::Busy => {
                    if let Some(waits) = waits.take() {
                        waits();
                    }
                    Ok(self.common(name, FlockOperation::LockShared)?.0.file())
                }
                asked => Ok(asked.file()),
            }
        };
        // Only to pass: a collector that waits keeps it, and so builders that come after it wait behind it. Who shares a lock
        // passes those who want it for themselves, and builders that overlap would do so for ever.
        let gate = shared(GATE)?;
        let file = shared(IN_USE)?;
        drop(gate);
        Ok(Hold { _file: file })
    }

    /// Excludes builders. `None`: some are running, and were not waited for any longer. Where there are no locks nobody can say
    /// who is building: [`Collector::is_alone`] tells.
    ///
    /// While a collector waits, builders that begin wait behind it.
    pub fn collector(&self, waiting: Waiting) -> Result<Option<Collector<'_>>, CacheError> {
        let (gate, (asked, may_write)) = match waiting {
            Waiting::Yes => {
                let gate = self.common(GATE, FlockOperation::LockExclusive)?.0.file();
                (gate, self.common(IN_USE, FlockOperation::LockExclusive)?)
            }
            Waiting::AtMost(time) => {
                let end = Instant::now() + time;
                let gate = self.alone(GATE, end)?.0;
                match gate {
                    // Another collector waits, or is at work.
                    Asked::Busy => return Ok(None),
                    gate => (gate.file(), self.alone(IN_USE, end)?),
                }
            }
            Waiting::No => (None, self.common(IN_USE, FlockOperation::NonBlockingLockExclusive)?),
        };
        Ok(match asked {
            Asked::Held(file) => Some(Collector { store: self, lock: Some(file), _gate: gate, may_write }),
            Asked::NoLocks => Some(Collector { store: self, lock: None, _gate: gate, may_write }),
            Asked::Busy => None,
        })
    }

    /// Locks a file against all others, if that can be had until `end`.
    fn alone(&self, name: &str, end: Instant) -> Result<(Asked, bool), CacheError> {
        loop {
            let asked = self.common(name, FlockOperation::NonBlockingLockExclusive)?;
            let left = end.saturating_duration_since(Instant::now());
            if !matches!(asked.0, Asked::Busy) || left.is_zero() {
                return Ok(asked);
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Locks a file that builders and collectors share, and says whether it may be written: where it may not, neither may the
    /// rest of the cache, as a rule.
    fn common(&self, name: &str, how: FlockOperation) -> Result<(Asked, bool), CacheError> {
        // Outside of the buckets, so that all versions of this program mean the same file.
        let path = self.root().join(name);
        let is_kept_out =
            |error: &io::Error| matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem);
        match OpenOptions::new().create(true).truncate(false).write(true).open(&path) {
            Err(error) if is_kept_out(&error) => match File::open(&path) {
                // Who reads only is a user as well.
                Ok(file) => Ok((ask(&path, file, how)?, false)),
                Err(inner) if is_kept_out(&inner) || inner.kind() == ErrorKind::NotFound => Ok((Asked::NoLocks, false)),
                Err(inner) => Err(CacheError::at(&path)(inner)),
            },
            file => Ok((ask(&path, file.map_err(CacheError::at(&path))?, how)?, true)),
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
        let mut turn = self.turn("load", digest)?;
        if turn._file.is_none() {
            let folder = self.bucket("partial");
            turn.own = Some(NamedTempFile::new_in(&folder).map_err(CacheError::at(&folder))?.into_temp_path());
        }
        Ok(turn)
    }

    /// Where the download whose turn this is lies until it is complete. Two that wrote to one file would be in each other's way.
    pub fn download_path(&self, digest: &Digest, turn: &Turn) -> PathBuf {
        turn.own.as_ref().map_or_else(|| self.partial_path(digest), |own| own.to_path_buf())
    }

    /// Removes what is left of a download that nobody is at, if nobody can go on with it: the blob is there, or nothing of it came.
    pub fn tidy_download(&self, digest: &Digest) -> Result<(), CacheError> {
        let path = self.partial_path(digest);
        let Ok(left) = fs::metadata(&path) else { return Ok(()) };
        let is_of_use = |left: &fs::Metadata| left.len() > 0 && !matches!(self.has(digest), Ok(Some(_)));
        if !is_of_use(&left)
            && let Asked::Held(_turn) = self.ask_turn("load", digest, FlockOperation::NonBlockingLockExclusive)?
            && fs::metadata(&path).is_ok_and(|left| !is_of_use(&left))
        {
            fs::remove_file(&path).map_err(CacheError::at(&path))?;
        }
        Ok(())
    }

    fn turn(&self, what: &str, name: &Digest) -> Result<Turn, CacheError> {
        // Without locks work is done twice at worst, because every file is renamed into place whole.
        Ok(Turn { _file: self.ask_turn(what, name, FlockOperation::LockExclusive)?.file(), own: None })
    }

    fn ask_turn(&self, what: &str, name: &Digest, how: FlockOperation) -> Result<Asked, CacheError> {
        // A lock file a slot instead of a name: the folder stays small, and two names in one slot only wait needlessly.
        // Who makes may wait for a download, never the other way round; apart, the two cannot wait in a circle.
        let path = self.bucket("locks").join(format!("{what}-{}", &name.hex()[..3]));
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(CacheError::at(&path))?;
        ask(&path, file, how)
    }
}

/// What came of asking for a lock.
#[derive(Debug)]
enum Asked {
    /// It is had until the file is closed.
    Held(File),
    /// Somebody else has it.
    Busy,
    /// The file system has none, as NFS without its daemon: everybody goes on.
    NoLocks,
}

impl Asked {
    fn file(self) -> Option<File> {
        match self {
            Asked::Held(file) => Some(file),
            Asked::Busy | Asked::NoLocks => None,
        }
    }
}

fn ask(path: &Path, file: File, how: FlockOperation) -> Result<Asked, CacheError> {
    let answer = retry(|| flock(&file, how));
    judge(path, file, answer)
}

fn judge(path: &Path, file: File, answer: Result<(), Errno>) -> Result<Asked, CacheError> {
    match answer {
        Ok(()) => Ok(Asked::Held(file)),
        Err(Errno::AGAIN) => Ok(Asked::Busy),
        Err(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) => Ok(Asked::NoLocks),
        Err(error) => Err(CacheError::at(path)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_no_lock_goes_on_and_who_fails_otherwise_says_where() {
        let judged = |answer| judge(Path::new("the-lock"), tempfile::tempfile().expect("a file"), answer);
        assert!(matches!(judged(Ok(())), Ok(Asked::Held(_))));
        assert!(matches!(judged(Err(Errno::AGAIN)), Ok(Asked::Busy)));
        for none in [Errno::NOLCK, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS] {
            assert!(matches!(judged(Err(none)), Ok(Asked::NoLocks)), "{none}");
        }
        let error = judged(Err(Errno::IO)).expect_err("fails");
        assert!(error.to_string().contains("`the-lock`"), "{error}");
    }
}
