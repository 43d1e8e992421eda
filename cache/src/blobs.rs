//! Blobs by the digest of their bytes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use layers::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::points::Point;
use crate::survey::entries;
use crate::{CacheError, Store, fails};

/// A blob of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// Writes a blob; it becomes visible when it is finished.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    file: io::BufWriter<NamedTempFile>,
    hasher: Option<Sha256>,
    size: u64,
}

impl Store {
    /// Where a blob lies, whether or not it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.fanned("blobs", &digest.hex())
    }

    /// The length of a blob in bytes, if the store has it.
    pub fn has(&self, digest: &Digest) -> Result<Option<u64>, CacheError> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::at(&path)(error)),
        }
    }

    /// Opens a blob for reading. The bytes are not verified: compare their number or digest with what is expected.
    pub fn open(&self, digest: &Digest) -> Result<Option<File>, CacheError> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::at(&path)(error)),
        }
    }

    /// Reads a small blob (at most 1 GiB) and verifies it; a damaged one is removed and counts as missing.
    pub fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, CacheError> {
        const LIMIT: u64 = 1 << 30;
        let Some(mut file) = self.open(digest)? else { return Ok(None) };
        let path = self.blob_path(digest);
        let size = file.metadata().map_err(CacheError::at(&path))?.len();
        if size > LIMIT {
            return Err(CacheError::TooLarge { digest: *digest, size, limit: LIMIT });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.read_to_end(&mut bytes).map_err(CacheError::at(&path))?;
        if Digest::of(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        self.remove(digest)?;
        Ok(None)
    }

    /// Reads a whole blob and says whether its bytes are what its name says; one that is damaged, or that the disk does not give
    /// back, is removed.
    pub fn verify(&self, digest: &Digest) -> Result<bool, CacheError> {
        Ok(self.open_verified(digest)?.is_some())
    }

    /// As [`Store::verify`], and gives the file that was read, at its beginning: by its name there may be another one by now.
    pub fn open_verified(&self, digest: &Digest) -> Result<Option<File>, CacheError> {
        let path = self.blob_path(digest);
        loop {
            let Some(mut file) = self.open(digest)? else { return Ok(None) };
            let read = file.metadata().map(|found| (found.dev(), found.ino())).map_err(CacheError::at(&path))?;
            let right = match hash(&file) {
                Err(error) if fails(&error) => false,
                found => found.map_err(CacheError::at(&path))? == *digest,
            };
            if right {
                file.rewind().map_err(CacheError::at(&path))?;
                return Ok(Some(file));
            }
            // Somebody else may have put a good one in its place meanwhile.
            if fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == read) {
                self.remove(digest)?;
                return Ok(None);
            }
        }
    }

    /// Removes a blob; what is not there is no error.
    pub fn remove(&self, digest: &Digest) -> Result<(), CacheError> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Starts a blob that is hashed while it is written.
    pub fn writer(&self) -> Result<BlobWriter, CacheError> {
        self.start(Some(Sha256::new()))
    }

    /// Starts a blob whose writer hashes it; it must end with [`BlobWriter::finish_as`].
    pub fn writer_unhashed(&self) -> Result<BlobWriter, CacheError> {
        self.start(None)
    }

    fn start(&self, hasher: Option<Sha256>) -> Result<BlobWriter, CacheError> {
        let folder = self.bucket("tmp");
        let file = NamedTempFile::new_in(&folder).map_err(CacheError::at(&folder))?;
        Ok(BlobWriter { store: self.clone(), file: io::BufWriter::with_capacity(256 << 10, file), hasher, size: 0 })
    }

    /// Stores bytes.
    pub fn put(&self, bytes: &[u8]) -> Result<Blob, CacheError> {
        let digest = Digest::of(bytes);
        if self.has(&digest)? != Some(bytes.len() as u64) {
            let mut writer = self.writer_unhashed()?;
            writer.write_all(bytes).map_err(CacheError::at(&self.scratch()))?;
            writer.finish_as(&digest)?;
        }
        Ok(Blob { digest, size: bytes.len() as u64 })
    }

    /// Takes a file over as a blob by renaming it; the caller has verified its digest. It must lie in the cache.
    pub fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), CacheError> {
        match fs::set_permissions(file, fs::Permissions::from_mode(0o444)) {
            // Another user has begun it. The mode keeps nobody from it who may write to the folder.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            done => done.map_err(CacheError::at(file))?,
        }
        let size = fs::metadata(file).map_err(CacheError::at(file))?.len();
        Point::Adopting.reach();
        self.settle(file, &self.blob_path(digest))?;
        Point::Adopted.reach();
        self.count(size, 0);
        Ok(())
    }

    /// Where an incomplete download of a blob lies.
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.bucket("partial").join(digest.hex())
    }

    /// All blobs, sorted.
    pub fn list(&self) -> Result<Vec<Blob>, CacheError> {
        let found = entries(&self.bucket("blobs"))?.into_iter();
        let mut blobs: Vec<Blob> = found.map(|(_, digest, metadata)| Blob { digest, size: metadata.len() }).collect();
        blobs.sort_by_key(|blob| blob.digest);
        Ok(blobs)
    }
}

impl BlobWriter {
    /// Makes the blob visible under the digest of what was written.
    pub fn finish(mut self) -> Result<Blob, CacheError> {
        let hasher = self.hasher.take().expect("`finish` belongs to `writer`, which hashes");
        let digest = Digest::from_bytes(hasher.finalize().into());
        self.settle(&digest)
    }

    /// Makes the blob visible if it is what its writer says: hashed bytes are compared, unhashed ones are trusted.
    pub fn finish_as(mut self, digest: &Digest) -> Result<Blob, CacheError> {
        if let Some(hasher) = self.hasher.take() {
            let found = Digest::from_bytes(hasher.finalize().into());
            if found != *digest {
                return Err(CacheError::Mismatch { expected: *digest, found });
            }
        }
        self.settle(digest)
    }

    fn explained(&self, error: io::Error) -> io::Error {
        crate::explained(&self.store.scratch())(error)
    }

    fn settle(self, digest: &Digest) -> Result<Blob, CacheError> {
        let scratch = self.store.scratch();
        let file = self.file.into_inner().map_err(|error| CacheError::at(&scratch)(error.into_error()))?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o444)).map_err(CacheError::at(&scratch))?;
        let path = file.into_temp_path();
        Point::BlobWritten.reach();
        self.store.settle(&path, &self.store.blob_path(digest))?;
        Point::BlobSettled.reach();
        self.store.count(self.size, 0);
        // Renamed away: there is nothing left for the guard to delete.
        let _ = path.keep();
        Ok(Blob { digest: *digest, size: self.size })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes).map_err(|error| self.explained(error))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..count]);
        }
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|error| self.explained(error))
    }
}

/// The digest of everything that a reader gives.
pub fn hash(reader: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    in_pieces(reader, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

/// Hands everything that a reader gives on, in pieces of at most 256 KiB; reading goes on where it is interrupted.
pub fn in_pieces(mut reader: impl Read, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; 256 << 10];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_found_by_its_digest_and_only_when_finished() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let digest = Digest::of(b"hello");
        let mut writer = store.writer().expect("starts");
        writer.write_all(b"hello").expect("writes");
        assert_eq!(store.has(&digest).expect("looks"), None);
        assert_eq!(writer.finish().expect("finishes"), Blob { digest, size: 5 });
        assert_eq!(store.read(&digest).expect("reads").as_deref(), Some(b"hello".as_slice()));
        assert_eq!(store.list().expect("lists"), [Blob { digest, size: 5 }]);
        assert_eq!(fs::read_dir(store.scratch()).expect("lists").count(), 0);
    }

    #[test]
    fn damaged_blobs_are_missing_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        for damage in [b"hellO".as_slice(), b"hell", b""] {
            let blob = store.put(b"hello").expect("stores");
            let path = store.blob_path(&blob.digest);
            fs::remove_file(&path).expect("removes");
            fs::write(&path, damage).expect("damages");
            assert_eq!(store.read(&blob.digest).expect("looks"), None);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_blob_under_a_wrong_name_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let mut writer = store.writer().expect("starts");
        writer.write_all(b"x").expect("writes");
        assert!(matches!(writer.finish_as(&Digest::of(b"y")), Err(CacheError::Mismatch { .. })));
        assert_eq!(fs::read_dir(store.scratch()).expect("lists").count(), 0);
    }
}
