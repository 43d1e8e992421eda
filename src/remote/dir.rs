//! A cache in a folder, on a disk that machines share.
//!
//! ```text
//! PATH/
//!   imgbuild-cache-v1/names/image-2-0123...     a document
//!   imgbuild-cache-v1/blobs/ab/abcdef...        a blob by its SHA-256
//!   imgbuild-cache-v1/new/                      what is written now
//! ```
//!
//! Files are written aside and renamed, so readers and writers need no locks. What a writer that was killed left aside goes with the next one,
//! a day later.
//!
//! A disk that machines share may not answer, and then whoever asks it waits in the kernel, for ever: each request is on a thread
//! that can be left there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cache::{Blob, CacheError, Copied, Store};
use layers::Digest;
use sha2::{Digest as _, Sha256};

use super::document::LARGEST;
use super::{Place, Remote, RemoteError};
use crate::failpoint::Kept;
use crate::fetch::Watch;
use crate::registry::open_regular;

/// What a file is called until it has its name.
const ASIDE: &str = ".new-";

/// Who writes a file does so more often than this.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A cache in a folder.
#[derive(Debug)]
pub struct Folder(Arc<Shared>);

/// What the threads of its requests have in common.
#[derive(Debug)]
struct Shared {
    root: PathBuf,
    watch: Watch,
    /// Something in it is damaged: what is there is read before it counts.
    is_damaged: AtomicBool,
    /// What was left aside is gone.
    is_swept: AtomicBool,
}

impl Folder {
    /// The cache below `path`, which is made when something is published; given up where next to nothing moves for as long as
    /// `patience`.
    pub fn new(path: &Path, patience: Duration) -> Folder {
        Folder(Arc::new(Shared {
            root: path.join("imgbuild-cache-v1"),
            watch: Watch::new(patience),
            is_damaged: AtomicBool::new(false),
            is_swept: AtomicBool::new(false),
        }))
    }

    /// Does something that moves so many bytes, as long as there is patience for it.
    fn patiently<T: Send + 'static>(
        &self,
        bytes: u64,
        work: impl FnOnce(&Shared) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let failed = at(&self.0.root);
        let (answer, answered) = tokio::sync::oneshot::channel();
        let shared = self.0.clone();
        // Whoever does not wait any more takes no answer.
        std::thread::Builder::new().spawn(move || answer.send(work(&shared))).map_err(&failed)?;
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(&failed)?;
        match timer.block_on(self.0.watch.over(bytes, answered)) {
            Ok(Ok(done)) => {
                self.0.watch.answered();
                done
            }
            Ok(Err(_)) => Err(failed(io::Error::other("the thread that asked it ended"))),
            Err(why) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, why))),
        }
    }
}

impl Shared {
    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(&hex[..2]).join(hex)
    }

    fn name(&self, name: &str) -> PathBuf {
        self.root.join("names").join(name)
    }

    /// Whether a blob is there: by its length, or by all of its bytes once something was damaged.
    fn has(&self, blob: &Blob) -> bool {
        let path = self.blob(&blob.digest);
        fs::metadata(&path).is_ok_and(|there| there.is_file() && there.len() == blob.size)
            && (!self.is_damaged.load(Ordering::Relaxed)
                || open_regular(&path)
                    .and_then(|mut file| self.copy(blob, &mut file, &mut io::sink()))
                    .unwrap_or(false))
    }

    /// Copies and hashes; the bytes must be `blob`'s.
    fn copy(&self, blob: &Blob, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<bool> {
        let (mut hasher, mut size) = (Sha256::new(), 0u64);
        // One byte more than it has says enough.
        cache::in_pieces(from.take(blob.size.saturating_add(1)), |piece| {
            size += piece.len() as u64;
            hasher.update(piece);
            to.write_all(piece)?;
            self.watch.advance(piece.len() as u64);
            Ok(())
        })?;
        Ok(size == blob.size && Digest::from_bytes(hasher.finalize().into()) == blob.digest)
    }

    /// Writes a file aside and renames it to its place.
    fn place(&self, path: &Path, write: impl FnOnce(&mut File) -> Result<(), RemoteError>) -> Result<(), RemoteError> {
        let aside = self.root.join("new");
        for folder in [&aside, path.parent().unwrap_or(path)] {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        if !self.is_swept.swap(true, Ordering::Relaxed) {
            remove_leftovers(&aside);
        }
        let mut file = tempfile::Builder::new().prefix(ASIDE).tempfile_in(&aside).map_err(at(&aside))?;
        write(file.as_file_mut())?;
        let shared = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(shared).map_err(at(path))?;
        Kept::ElsewhereWritten.reach();
        file.persist(path).map_err(|error| at(path)(error.error))?;
        Kept::ElsewhereSettled.reach();
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let path = self.name(name);
        let file = match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(at(&path))?,
        };
        let mut bytes = Vec::new();
        file.take(LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(at(&path))?;
        Ok(Some(bytes))
    }

    fn fetch(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError> {
        let path = self.blob(&blob.digest);
        let failed = |error: io::Error| {
            self.distrust();
            at(&path)(error)
        };
        let mut file = match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RemoteError::Gone(blob.digest)),
            file => Copied::from(file.map_err(failed)?),
        };
        let mut writer = store.writer_unhashed()?;
        match self.copy(blob, &mut file, &mut writer) {
            Ok(true) => {}
            Ok(false) => {
                self.distrust();
                return Err(RemoteError::Damaged(blob.digest));
            }
            Err(error) if file.failed() => return Err(failed(error)),
            // What cannot be written is this machine's trouble.
            Err(error) => return Err(CacheError::at(&store.scratch())(error).into()),
        }
        writer.finish_as(&blob.digest)?;
        Ok(())
    }

    fn distrust(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    fn publish(&self, names: &[String], document: &[u8], blobs: &[Blob], store: &Store) -> Result<(), RemoteError> {
        for blob in blobs {
            if !self.has(blob) {
                let path = self.blob(&blob.digest);
                let mut from = Copied::from(store.open(&blob.digest)?.ok_or(RemoteError::Gone(blob.digest))?);
                self.place(&path, |file| match self.copy(blob, &mut from, file) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(RemoteError::RottedHere(blob.digest)),
                    Err(error) if from.failed() => Err(CacheError::at(&store.blob_path(&blob.digest))(error).into()),
                    Err(error) => Err(at(&path)(error)),
                })?;
            }
            // Patience is for each of them.
            self.watch.answered();
        }
        // Blobs are kept here without a document that has them.
        for name in names.iter().filter(|_| !document.is_empty()) {
            let path = self.name(name);
            self.place(&path, |file| file.write_all(document).map_err(at(&path)))?;
        }
        Ok(())
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> RemoteError + '_ {
    move |source| RemoteError::Io { path: path.into(), source }
}

/// Removes what nobody has written to for a day. Trouble is none: it is in nobody's way.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_aside = entry.file_name().to_str().is_some_and(|name| name.starts_with(ASIDE));
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_aside && age().is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Remote for Folder {
    fn find(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let name = name.to_owned();
        self.patiently(0, move |shared| shared.find(&name))
    }

    fn fetch(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError> {
        let (blob, store) = (*blob, store.clone());
        self.patiently(blob.size, move |shared| shared.fetch(&blob, &store))
    }

    fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        let blob = *blob;
        self.patiently(0, move |shared| Ok(shared.has(&blob)))
    }

    fn keeps(&self, _: &str, last: &Blob) -> Result<bool, RemoteError> {
        // Blobs are written in their order.
        self.has(last)
    }

    fn place(&self, digest: &Digest) -> Place {
        Place::File(self.0.blob(digest))
    }

    fn distrust(&self) {
        self.0.distrust();
    }

    fn publish(&self, names: &[String], document: &[u8], blobs: &[Blob], store: &Store) -> Result<(), RemoteError> {
        let (names, document, blobs, store) = (names.to_vec(), document.to_vec(), blobs.to_vec(), store.clone());
        let bytes = blobs.iter().map(|blob| blob.size).sum();
        self.patiently(bytes, move |shared| shared.publish(&names, &document, &blobs, &store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn the_same_folder_is_the_same_cache_however_it_is_written() {
        let spec = |text: &str| text.parse::<crate::remote::RemoteSpec>().expect("is a cache");
        for text in ["dir:./c", "dir:c/", "dir:.//c/."] {
            assert_eq!(spec(text), spec("dir:c"), "{text}");
        }
        assert_eq!(spec("dir:./").to_string(), "dir:.");
        assert_ne!(spec("dir:../c"), spec("dir:c"));
        assert_ne!(spec("dir:/c"), spec("dir:c"));
    }

    #[test]
    fn what_cannot_be_read_is_no_longer_believed_to_be_there() {
        let root = tempfile::tempdir().expect("a folder");
        let (folder, store) =
            (Folder::new(root.path(), PATIENCE), Store::open_at(&root.path().join("store")).expect("opens"));
        let [good, bad] = [b"good", b"bad!"].map(|bytes| store.put(bytes).expect("puts"));
        folder.publish(&[], b"", &[good, bad], &store).expect("publishes");
        let place = folder.0.blob(&bad.digest);
        fs::remove_file(&place).expect("removes");
        fs::create_dir(&place).expect("makes");
        let other = Store::open_at(&root.path().join("other")).expect("opens");
        folder.fetch(&good, &other).expect("fetches");
        assert!(!folder.0.is_damaged.load(Ordering::Relaxed));
        assert!(matches!(folder.fetch(&bad, &other), Err(RemoteError::Io { .. })));
        assert!(folder.0.is_damaged.load(Ordering::Relaxed) && folder.0.has(&good) && !folder.0.has(&bad));
    }

    #[test]
    fn what_was_left_aside_goes_after_a_day() {
        let root = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&root.path().join("store")).expect("opens");
        let blob = store.put(b"blob").expect("puts");
        // With whatever is written next: a document, or a blob.
        for (document, blobs) in [(&b"document"[..], &[][..]), (b"", &[blob])] {
            let folder = Folder::new(root.path(), PATIENCE);
            let aside = folder.0.root.join("new");
            fs::create_dir_all(&aside).expect("makes");
            for (name, hours) in [(".new-old", 25), (".new-young", 1), ("old", 25)] {
                let file = File::create(aside.join(name)).expect("writes");
                let past = std::time::SystemTime::now() - Duration::from_secs(hours * 60 * 60);
                file.set_modified(past).expect("sets its time");
            }
            folder.publish(&["image-a".into()], document, blobs, &store).expect("publishes");
            let there = fs::read_dir(aside).expect("reads").map(|it| it.expect("reads").file_name());
            let mut there: Vec<_> = there.map(|name| name.to_string_lossy().into_owned()).collect();
            there.sort();
            assert_eq!(there, [".new-young", "old"]);
        }
        assert_eq!(fs::read_dir(root.path().join("imgbuild-cache-v1/names")).expect("reads").count(), 1);
    }

    #[test]
    fn who_gets_no_answer_goes_on() {
        let folder = Folder::new(Path::new("nowhere"), Duration::from_millis(50));
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let silent = folder.patiently(0, move |_| {
            let _ = end.recv();
            Ok(())
        });
        assert!(silent.is_err_and(|error| error.to_string().contains("`cache.patience`")));
        drop(ends);
        assert_eq!(folder.patiently(0, |_| Ok(7)).ok(), Some(7));
    }
}
