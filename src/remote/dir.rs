//! A cache in a folder, on a disk that machines share.
//!
//! ```text
//! PATH/
//!   imgbuild-cache-v1/names/image-0123...       a document
//!   imgbuild-cache-v1/blobs/ab/abcdef...        a blob by its SHA-256
//! ```
//!
//! Files are written aside and renamed, so readers and writers need no locks. What a writer of blobs that was killed left aside goes with the
//! next one there, a day later.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cache::{Blob, Store};
use layers::Digest;
use sha2::{Digest as _, Sha256};

use super::document::LARGEST;
use super::{Place, Remote, RemoteError};
use crate::failpoint::Kept;

/// What a file is called until it has its name.
const ASIDE: &str = ".new-";

/// Who writes a file does so more often than this.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A cache in a folder.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Something in it is damaged: what is there is read before it counts.
    is_damaged: AtomicBool,
}

impl Folder {
    /// The cache below `path`, which is made when something is published.
    pub fn new(path: &Path) -> Folder {
        Folder { root: path.join("imgbuild-cache-v1"), is_damaged: AtomicBool::new(false) }
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(&hex[..2]).join(hex)
    }

    fn name(&self, name: &str) -> PathBuf {
        self.root.join("names").join(name)
    }

    /// Whether a blob is there: by its length, or by all of its bytes once something was damaged.
    fn holds(&self, blob: &Blob) -> bool {
        let path = self.blob(&blob.digest);
        fs::metadata(&path).is_ok_and(|there| there.len() == blob.size)
            && (!self.is_damaged.load(Ordering::Relaxed)
                || File::open(&path).and_then(|mut file| copy(blob, &mut file, &mut io::sink())).unwrap_or(false))
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> RemoteError + '_ {
    move |source| RemoteError::Io { path: path.into(), source }
}

/// Copies and hashes; the bytes must be `blob`'s.
fn copy(blob: &Blob, from: &mut dyn Read, to: &mut dyn Write) -> io::Result<bool> {
    let (mut hasher, mut size) = (Sha256::new(), 0u64);
    let mut piece = vec![0; 256 << 10];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(size == blob.size && Digest::from_bytes(hasher.finalize().into()) == blob.digest),
            count => {
                size += count as u64;
                if size > blob.size {
                    return Ok(false);
                }
                hasher.update(&piece[..count]);
                to.write_all(&piece[..count])?;
            }
        }
    }
}

/// Writes a file aside and renames it to its place.
fn place(path: &Path, write: impl FnOnce(&mut File) -> Result<(), RemoteError>) -> Result<(), RemoteError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut file = tempfile::Builder::new().prefix(ASIDE).tempfile_in(folder).map_err(at(folder))?;
    write(file.as_file_mut())?;
    let shared = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(shared).map_err(at(path))?;
    Kept::ElsewhereWritten.reach();
    file.persist(path).map_err(|error| at(path)(error.error))?;
    Kept::ElsewhereSettled.reach();
    Ok(())
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
        let path = self.name(name);
        let file = match File::open(&path) {
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
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RemoteError::Gone(blob.digest)),
            file => file.map_err(failed)?,
        };
        let mut writer = store.writer_unhashed()?;
        if !copy(blob, &mut file, &mut writer).map_err(failed)? {
            self.distrust();
            return Err(RemoteError::Damaged(blob.digest));
        }
        writer.finish_as(&blob.digest)?;
        Ok(())
    }

    fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        Ok(self.holds(blob))
    }

    fn place(&self, digest: &Digest) -> Place {
        Place::File(self.blob(digest))
    }

    fn distrust(&self) {
        self.is_damaged.store(true, Ordering::Relaxed);
    }

    fn publish(&self, names: &[String], document: &[u8], blobs: &[Blob], store: &Store) -> Result<(), RemoteError> {
        for blob in blobs {
            let path = self.blob(&blob.digest);
            if self.holds(blob) {
                continue;
            }
            remove_leftovers(path.parent().unwrap_or(&path));
            let mut from = store.open(&blob.digest)?.ok_or(RemoteError::Gone(blob.digest))?;
            place(&path, |file| match copy(blob, &mut from, file).map_err(at(&path))? {
                true => Ok(()),
                false => Err(RemoteError::RottedHere(blob.digest)),
            })?;
        }
        // Blobs are kept here without a document that has them.
        for name in names.iter().filter(|_| !document.is_empty()) {
            let path = self.name(name);
            place(&path, |file| file.write_all(document).map_err(at(&path)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (folder, store) = (Folder::new(root.path()), Store::open_at(&root.path().join("store")).expect("opens"));
        let [good, bad] = [b"good", b"bad!"].map(|bytes| store.put(bytes).expect("puts"));
        folder.publish(&[], b"", &[good, bad], &store).expect("publishes");
        let place = folder.blob(&bad.digest);
        fs::remove_file(&place).expect("removes");
        fs::create_dir(&place).expect("makes");
        let other = Store::open_at(&root.path().join("other")).expect("opens");
        folder.fetch(&good, &other).expect("fetches");
        assert!(!folder.is_damaged.load(Ordering::Relaxed));
        assert!(matches!(folder.fetch(&bad, &other), Err(RemoteError::Io { .. })));
        assert!(folder.is_damaged.load(Ordering::Relaxed) && folder.holds(&good) && !folder.holds(&bad));
    }

    #[test]
    fn what_was_left_aside_goes_after_a_day() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(root.path());
        let store = Store::open_at(&root.path().join("store")).expect("opens");
        let blob = store.put(b"blob").expect("puts");
        let place = folder.blob(&blob.digest);
        let beside = place.parent().expect("is in a folder");
        fs::create_dir_all(beside).expect("makes");
        for (name, hours) in [(".new-old", 25), (".new-young", 1), ("old", 25)] {
            let file = File::create(beside.join(name)).expect("writes");
            let past = std::time::SystemTime::now() - Duration::from_secs(hours * 60 * 60);
            file.set_modified(past).expect("sets its time");
        }
        folder.publish(&[], b"", &[blob], &store).expect("publishes");
        let there = fs::read_dir(beside).expect("reads").map(|it| it.expect("reads").file_name());
        let mut there: Vec<_> = there.map(|name| name.to_string_lossy().into_owned()).collect();
        there.sort();
        assert_eq!(there, [".new-young".to_owned(), blob.digest.hex(), "old".to_owned()]);
    }
}
