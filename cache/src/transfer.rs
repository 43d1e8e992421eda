//! Export and import: a cache as one tar file, for machines that begin empty.
//!
//! ```text
//! blobs/<64 digits>     a blob
//! ledger/<64 digits>    a record
//! ```
//!
//! Blobs come first: a record that arrives names nothing that has not. Every byte is verified on the way in, but a record
//! says what somebody's build came to, and hashes cannot tell whether that is true: import what you would also run.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Write};

use layers::{Digest, Key};

use crate::points::Point;
use crate::survey::Class;
use crate::{Amount, CacheError, Store, ledger};

/// The largest record that is taken, bytes.
const RECORD_LIMIT: u64 = 64 << 20;

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Blobs and records that are new here.
    pub added: Amount,
    /// Those that were here already.
    pub known: u64,
    /// Those that are not what their names say.
    pub refused: u64,
}

fn archive(source: io::Error) -> CacheError {
    CacheError::Archive { source }
}

/// What is copied; remembers whether reading is what failed.
pub struct Copied<R> {
    inner: R,
    failed: bool,
}

impl<R> Copied<R> {
    /// What is read from `inner`.
    pub fn from(inner: R) -> Copied<R> {
        Copied { inner, failed: false }
    }

    /// What is read.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Whether it could not be read.
    pub fn failed(&self) -> bool {
        self.failed
    }
}

impl<R: Read> Read for Copied<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out);
        self.failed = read.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
        read
    }
}

impl Store {
    /// Writes everything that was of use at `since` (seconds since 1970) or later as a tar file. What commands keep for themselves
    /// stays: their logs, their stages as folders, and their `.cache(..)` folders, which may hold what is nobody else's business.
    pub fn export(&self, out: &mut dyn Write, since: i64) -> Result<Amount, CacheError> {
        let _hold = self.hold()?;
        let mut items = self.survey()?.items;
        let stays = |class| matches!(class, Class::OtherVersion | Class::Partial | Class::Stats | Class::Command);
        items.retain(|item| item.used >= since && !stays(item.class));
        items.sort_by(|a, b| (a.class == Class::Record, &a.path).cmp(&(b.class == Class::Record, &b.path)));
        let mut tar = tar::Builder::new(out);
        let mut amount = Amount::default();
        for item in items {
            let file = match File::open(&item.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(CacheError::at(&item.path))?,
            };
            let size = file.metadata().map_err(CacheError::at(&item.path))?.len();
            let name = item.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let bucket = if item.class == Class::Record { "ledger" } else { "blobs" };
            let mut header = tar::Header::new_ustar();
            header.set_size(size);
            header.set_mode(0o444);
            header.set_mtime(0);
            let mut blob = Copied::from((&file).take(size));
            let appended = tar.append_data(&mut header, format!("{bucket}/{name}"), &mut blob);
            appended.map_err(|error| if blob.failed() { CacheError::at(&item.path)(error) } else { archive(error) })?;
            amount.count += 1;
            amount.bytes += size;
            Point::Exported.reach();
        }
        tar.into_inner().and_then(Write::flush).map_err(archive)?;
        Ok(amount)
    }

    /// Takes what [`export`](Store::export) wrote. What is not what its name says is left out and counted.
    pub fn import(&self, input: &mut dyn Read) -> Result<Imported, CacheError> {
        let _hold = self.hold()?;
        let mut imported = Imported::default();
        let mut start = Vec::new();
        Read::take(&mut *input, 6).read_to_end(&mut start).map_err(archive)?;
        if let Some(packer) = packer(&start) {
            return Err(archive(io::Error::other(format!("it is compressed by {packer}: decompress it first"))));
        }
        let has_ended = Cell::new(false);
        let mut tar = tar::Archive::new(Ended { inner: start.as_slice().chain(input), has_ended: &has_ended });
        let mut is_first = true;
        let failed = |error: io::Error, is_first: bool| match (has_ended.get(), is_first) {
            // However that is noticed.
            (true, _) => archive(ends_too_early()),
            (false, true) => archive(is_foreign()),
            (false, false) => archive(error),
        };
        for entry in tar.entries().map_err(archive)? {
            let mut entry = entry.map_err(|error| failed(error, is_first))?;
            let size = entry.size();
            let path = entry.path().map_err(archive)?.into_owned();
            let name = path.to_str().and_then(|path| path.split_once('/'));
            let name = name.and_then(|(bucket, name)| Some((bucket, Digest::from_hex(name).ok()?)));
            if is_first && !matches!(name, Some(("blobs" | "ledger", _))) {
                return Err(archive(is_foreign()));
            }
            is_first = false;
            let added = match name {
                Some(("blobs", digest)) => self.take_blob(&digest, size, &mut entry),
                Some(("ledger", digest)) => self.take_record(&Key(digest), size, &mut entry),
                _ => Ok(None),
            };
            let added = added.map_err(|error| match error {
                CacheError::Archive { source } => failed(source, false),
                other => other,
            })?;
            match added {
                Some(true) => {
                    imported.added.count += 1;
                    imported.added.bytes += size;
                    Point::Imported.reach();
                }
                Some(false) => imported.known += 1,
                None => imported.refused += 1,
            }
        }
        // A tar has empty blocks at its end: one that was cut between entries has none.
        if has_ended.get() { Err(archive(ends_too_early())) } else { Ok(imported) }
    }

    /// `Some`: it is here, and whether it is new; `None`: it was not what its name says.
    fn take_blob(&self, digest: &Digest, size: u64, bytes: &mut dyn Read) -> Result<Option<bool>, CacheError> {
        if self.has(digest)? == Some(size) {
            return Ok(Some(false));
        }
        let mut writer = self.writer()?;
        let mut bytes = Copied::from(bytes);
        let copied = io::copy(&mut bytes, &mut writer);
        copied.map_err(|error| if bytes.failed() { archive(error) } else { CacheError::at(&self.scratch())(error) })?;
        match writer.finish_as(digest) {
            Ok(_) => Ok(Some(true)),
            Err(CacheError::Mismatch { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn take_record(&self, key: &Key, size: u64, bytes: &mut dyn Read) -> Result<Option<bool>, CacheError> {
        if size > RECORD_LIMIT {
            return Ok(None);
        }
        let path = self.record_path(key);
        // What was found out here wins over what others say.
        if fs::read(&path).is_ok_and(|bytes| ledger::parse(&bytes, key).is_some()) {
            return Ok(Some(false));
        }
        let mut record = Vec::new();
        bytes.read_to_end(&mut record).map_err(archive)?;
        if ledger::parse(&record, key).is_none() {
            return Ok(None);
        }
        self.put_record(key, &record)?;
        Ok(Some(true))
    }
}

fn ends_too_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early, and was cut or is empty")
}

fn is_foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not what `imgbuild cache export` writes")
}

/// What a file that begins like this was compressed by.
fn packer(start: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], _); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")];
    known.into_iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| name)
}

/// Remembers whether somebody has read on at the end.
struct Ended<'a, R> {
    inner: R,
    has_ended: &'a Cell<bool>,
}

impl<R: Read> Read for Ended<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        if count == 0 && !out.is_empty() {
            self.has_ended.set(true);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use layers::KeyHasher;

    use super::*;

    fn filled() -> (tempfile::TempDir, Store, Digest, Key) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let blob = store.put(b"a layer").expect("puts");
        let (key, text) = KeyHasher::new("layer", 1).finish();
        store.keep(&key, &text, &blob.digest).expect("keeps");
        (folder, store, blob.digest, key)
    }

    fn empty() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        (folder, store)
    }

    #[test]
    fn an_exported_cache_is_imported_elsewhere_and_known_the_second_time() {
        let (_one, store, digest, key) = filled();
        let mut bytes = Vec::new();
        let exported = store.export(&mut bytes, 0).expect("exports");
        assert_eq!(exported.count, 2);
        let (_other, other) = empty();
        let imported = other.import(&mut bytes.as_slice()).expect("imports");
        assert_eq!((imported.added.count, imported.known, imported.refused), (2, 0, 0));
        assert_eq!(other.read(&digest).expect("reads").as_deref(), Some(b"a layer".as_slice()));
        assert_eq!(other.find(&key).expect("finds"), store.find(&key).expect("finds"));
        let again = other.import(&mut bytes.as_slice()).expect("imports");
        assert_eq!((again.added.count, again.known, again.refused), (0, 2, 0));
        let mut same = Vec::new();
        other.export(&mut same, 0).expect("exports");
        assert!(same == bytes, "the same content gives the same file");
        assert_eq!(store.export(&mut io::sink(), i64::MAX).expect("exports").count, 0);
    }

    #[test]
    fn who_fails_is_named_the_cache_or_the_archive() {
        let (_one, store, ..) = filled();
        let mut bytes = Vec::new();
        store.export(&mut bytes, 0).expect("exports");
        let (_other, other) = empty();
        let cut = other.import(&mut &bytes[..bytes.len() / 4]).expect_err("it is cut");
        assert!(matches!(cut, CacheError::Archive { .. }), "{cut}");
        // The second entry has a header of 512 bytes and content of as many at most, and then comes the end.
        for length in [0, 1024, bytes.len() - 1024] {
            let cut = other.import(&mut &bytes[..length]).expect_err("it is cut");
            assert!(matches!(cut, CacheError::Archive { .. }), "{length}: {cut}");
        }
        other.import(&mut bytes.as_slice()).expect("it is whole");
        let full = store.export(&mut File::options().write(true).open("/dev/full").expect("opens"), 0);
        assert!(matches!(full, Err(CacheError::Archive { .. })), "{full:?}");
    }

    #[test]
    fn what_is_no_exported_cache_says_so() {
        let (_one, store, ..) = filled();
        let mut bytes = Vec::new();
        store.export(&mut bytes, 0).expect("exports");
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        tar.append_data(&mut header, "manifest.json", &b"[{}]"[..]).expect("appends");
        let tar = tar.into_inner().expect("ends");
        let gzip = [b"\x1f\x8b\x08\x00", bytes.as_slice()].concat();
        let text = "{\"a\": 1}\n".repeat(200);
        let foreign = "not what `imgbuild cache export` writes";
        for (other, said) in [
            (tar.as_slice(), foreign),
            (text.as_bytes(), foreign),
            (&gzip, "compressed by gzip: decompress it first"),
            (&bytes[..1000], "it ends too early"),
            (&bytes[..bytes.len() / 2], "it ends too early"),
            (b"", "it ends too early"),
        ] {
            let (_other, into) = empty();
            let error = into.import(&mut &other[..]).expect_err(said).to_string();
            assert!(error.ends_with(said) || error.contains(&format!("{said}, ")), "{said}: {error}");
        }
    }

    #[test]
    fn no_changed_byte_of_an_archive_gets_in_under_a_wrong_name() {
        let (_one, store, digest, key) = filled();
        let mut bytes = Vec::new();
        store.export(&mut bytes, 0).expect("exports");
        let record = store.find(&key).expect("finds");
        for at in (0..bytes.len().min(2600)).step_by(11) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x01;
            let (_other, other) = empty();
            // A damaged header ends the import with an error, damaged content is left out.
            let _ = other.import(&mut bad.as_slice());
            let found = other.read(&digest).expect("reads");
            assert!(found.is_none_or(|found| found == b"a layer"), "byte {at}");
            let found = other.find(&key).expect("finds");
            assert!(found.is_none() || found == record, "byte {at}");
            for blob in other.list().expect("lists") {
                assert!(other.verify(&blob.digest).expect("reads"), "byte {at}");
            }
        }
    }
}
