//! Zip archives and wheels as fragments: large files keep their deflate streams, all others are compressed anew.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;

use layers::ImagePath;
use layers::encode::{DeflateStream, Entry, Kind};
use layers::format::wheel::{self, Wheel};
use layers::format::zip::{self, Tails};
use layers::format::{FormatError, Limits, Window};

use super::EngineError;
use super::bytecode::{Compiler, Module, open_wheel, window};
use super::convert::{Place, moved, twice};
use super::made::{Content, Deflated, Made, Packed, ReadStream};
use super::spool::{Room, Spool, Whole};

/// An archive that is about to be read.
pub(super) struct Opened<'a> {
    pub file: File,
    pub path: &'a Path,
    /// What it is called in errors.
    pub name: &'a str,
    pub tails: Tails,
    pub room: &'a Room,
}

/// Whether it is for a tail alone that an archive could not be converted.
pub(super) fn is_for_a_tail(error: &EngineError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // Readers stack: what is wrong may have come through some of them.
        let read = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let is_tail = |error: &(dyn Error + 'static)| matches!(error.downcast_ref(), Some(FormatError::Tail { .. }));
        if is_tail(error) || read.is_some_and(|error| is_tail(error)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl Opened<'_> {
    /// A wheel, installed into an environment.
    pub fn wheel(
        self,
        venv: &ImagePath,
        python: &str,
        compiler: Option<&Compiler<'_>>,
    ) -> Result<Made<'static>, EngineError> {
        let Opened { file, path, name, tails, room } = self;
        let failed = |source| EngineError::Format { archive: name.to_owned(), source };
        let (mut wheel, scheme) = open_wheel(file, name, venv.as_str(), python, tails).map_err(failed)?;
        let mut installed = wheel.install(&scheme).map_err(failed)?;
        if let Some(compiler) = compiler {
            let below = format!("{}/", scheme.site_packages());
            let mut modules = Vec::new();
            for file in installed.files.iter().filter(|file| file.path.as_str().starts_with(&below)) {
                if let wheel::Content::Entry(entry) = file.content
                    && compiler.wants(scheme.site_packages(), &file.path)
                {
                    let recorded = wheel.recorded(entry).map(|row| row.hash.clone()).unwrap_or_default();
                    modules.push(Module { path: file.path.clone(), entry, recorded });
                }
            }
            let made = compiler.byte_code(name, scheme.site_packages(), python, &modules, &mut |entry| {
                let mut source = Vec::new();
                wheel.copy_to(entry, &mut source).map_err(failed)?;
                Ok(source)
            })?;
            installed = wheel.install_with(&scheme, made).map_err(failed)?;
        }
        let (known, at) = (wheel.known(), path.to_owned());
        let again = move || Ok(known.open(window(File::open(&at)?)));
        let wheel = Rc::new(RefCell::new(wheel));
        let mut made = Made { packed: Some(packed(name, &wheel, again)), ..Made::default() };
        for file in installed.files {
            let (size, content) = match file.content {
                wheel::Content::Bytes(bytes) => (bytes.len() as u64, Content::Bytes(bytes)),
                wheel::Content::Entry(index) => content(name, &wheel, index, tails, room).map_err(failed)?,
            };
            made.push(Entry::new(file.path, Kind::File { size }, file.mode, file.mtime), content);
        }
        Ok(made)
    }

    /// A zip archive, unpacked.
    pub fn zip(self, place: &Place<'_>) -> Result<Made<'static>, EngineError> {
        let Opened { file, path, name, tails, room } = self;
        let failed = |source| EngineError::Format { archive: name.to_owned(), source };
        let archive = zip::Archive::open(window(file), &Limits::default()).map_err(failed)?.with(tails);
        let (entries, known, at) = (archive.entries().to_vec(), archive.directory(), path.to_owned());
        let archive = Rc::new(RefCell::new(archive));
        let packed = packed(name, &archive, move || Ok(known.open(window(File::open(&at)?))));
        let mut made = Made { packed: Some(packed), ..Made::default() };
        let mut seen = BTreeSet::new();
        for (index, found) in entries.into_iter().enumerate() {
            let is_dir = found.name.ends_with('/');
            let Some(path) = moved(&found.path, is_dir, place).map_err(failed)? else { continue };
            if !seen.insert(path.clone()) && !is_dir {
                return Err(failed(twice(&found.path, &path)));
            }
            let mode = found.mode.map(|mode| mode & 0o777).filter(|mode| *mode != 0);
            let kind = if is_dir { Kind::Dir } else { Kind::File { size: found.size } };
            let mut entry = Entry::new(path, kind, mode.unwrap_or(if is_dir { 0o755 } else { 0o644 }), found.mtime);
            if let Some(owner) = place.owner {
                (entry.uid, entry.gid) = (owner.uid, owner.gid);
            }
            if is_dir {
                made.push(entry, Content::None);
                continue;
            }
            made.push(entry, content(name, &archive, index, tails, room).map_err(failed)?.1);
        }
        Ok(made)
    }
}

/// A zip archive, or a wheel that checks its files against its RECORD as well.
trait Zip {
    fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError>;
    fn compare(&self, index: usize, content: &[u8]) -> Result<(), FormatError>;
    fn archive(&mut self) -> &mut zip::Archive<Window<File>>;
}

impl Zip for zip::Archive<Window<File>> {
    fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError> {
        zip::Archive::copy_to(self, index, out)
    }

    fn compare(&self, _index: usize, _content: &[u8]) -> Result<(), FormatError> {
        Ok(())
    }

    fn archive(&mut self) -> &mut zip::Archive<Window<File>> {
        self
    }
}

impl Zip for Wheel<Window<File>> {
    fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError> {
        Wheel::copy_to(self, index, out)
    }

    fn compare(&self, index: usize, content: &[u8]) -> Result<(), FormatError> {
        Wheel::compare(self, index, content)
    }

    fn archive(&mut self) -> &mut zip::Archive<Window<File>> {
        Wheel::archive(self)
    }
}

/// The files of an open zip archive.
struct PackedFiles<Z> {
    archive: String,
    zip: Rc<RefCell<Z>>,
}

impl<Z> PackedFiles<Z> {
    fn new(archive: &str, zip: Rc<RefCell<Z>>) -> PackedFiles<Z> {
        PackedFiles { archive: archive.to_owned(), zip }
    }
}

impl<Z: Zip> Deflated for PackedFiles<Z> {
    fn inflate(&mut self, index: usize, out: &mut dyn Write) -> Result<(), EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        self.zip.borrow_mut().copy_to(index, out).map(drop).map_err(failed)
    }

    fn inflate_whole(
        &mut self,
        index: usize,
        packed: &mut Vec<u8>,
        content: &mut [u8],
    ) -> Result<Option<u32>, EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        self.zip.borrow_mut().archive().inflate(index, packed, content).map_err(failed)
    }

    fn compare(&mut self, index: usize, content: &[u8]) -> Result<(), EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        self.zip.borrow().compare(index, content).map_err(failed)
    }

    fn stream(&mut self, index: usize, read: &mut ReadStream<'_>) -> Result<(), EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        let mut zip = self.zip.borrow_mut();
        read(&mut zip.archive().raw(index).map_err(failed)?)
    }
}

/// The deflated files of an open zip archive, which `again` opens for another thread.
fn packed<Z: Zip + 'static>(
    name: &str,
    zip: &Rc<RefCell<Z>>,
    again: impl Fn() -> Result<Z, FormatError> + Send + Sync + 'static,
) -> Packed<'static> {
    let archive = name.to_owned();
    Packed::new(PackedFiles::new(name, zip.clone()), move || {
        let zip = again().map_err(|source| EngineError::Format { archive: archive.clone(), source })?;
        Ok(Box::new(PackedFiles::new(&archive, Rc::new(RefCell::new(zip)))))
    })
}

/// Up to this size, packed and unpacked, a file that is compressed anew is inflated as a whole, bytes.
const SMALL: u64 = 256 << 10;

/// The size and the content of one file of an open zip archive: its deflate stream, where that is worth keeping and has no tail.
fn content<Z: Zip + 'static>(
    name: &str,
    zip: &Rc<RefCell<Z>>,
    index: usize,
    tails: Tails,
    room: &Room,
) -> Result<(u64, Content<'static>), FormatError> {
    let mut opened = zip.borrow_mut();
    let archive = opened.archive();
    let &zip::ZipEntry { method, size, compressed_size, crc32, .. } = &archive.entries()[index];
    let is_deflated = method == zip::Method::Deflated;
    if is_deflated
        && let Some(stream) = DeflateStream::worthwhile(size, compressed_size, crc32)
        // Where they are refused, whoever checks the stream finds one.
        && (tails == Tails::Refused || archive.ends_exactly(index)?)
    {
        return Ok((size, Content::Deflated(stream, index)));
    }
    let (mut files, room) = (PackedFiles::new(name, zip.clone()), room.clone());
    // The decoder that has all in memory is the faster one.
    let small = (is_deflated && size.max(compressed_size) <= SMALL).then_some(size as usize);
    let open = Box::new(move || -> Result<Box<dyn Read>, EngineError> {
        if let Some(size) = small {
            let mut content = vec![0; size];
            files.inflate_whole(index, &mut Vec::new(), &mut content)?;
            files.compare(index, &content)?;
            return Ok(Box::new(io::Cursor::new(content)));
        }
        let mut spool = Spool::new(&room);
        files.inflate(index, &mut spool)?;
        Ok(Box::new(Whole::new(spool)))
    });
    Ok((size, Content::Open(open)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use cache::Store;
    use layers::Digest;
    use layers::encode::{TarReader, WORTHWHILE};
    use layers::op::{Archive, Conversion, Origin};
    use layers::source::{Owner, Unpack};

    use super::super::checks::LateChecks;
    use super::super::convert::{Drops, convert};
    use super::super::tree::Tree as _;
    use super::super::view::View;
    use super::*;
    use crate::parallel::Cores;

    /// A zip as Python's zipfile writes it: small and large files, deflated and stored, and a program.
    fn zip(folder: &Path) -> std::path::PathBuf {
        let script = "import sys, zipfile\n\
            z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n\
            z.writestr('a/large', b'0123456789abcdef' * 4096)\n\
            z.writestr('a/small', b'small')\n\
            z.writestr('b/huge', bytes(range(256)) * 40000)\n\
            z.writestr('b/stored', bytes(range(256)) * 256, zipfile.ZIP_STORED)\n\
            z.write('/bin/true', 'bin/true')\n\
            z.close()\n";
        let path = folder.join("x.zip");
        let done = Command::new("python3").args(["-c", script]).arg(&path).status().expect("python3 is installed");
        assert!(done.success());
        path
    }

    /// An archive that is unpacked to `/opt`.
    fn unzipped() -> (Archive, Conversion) {
        let origin = Origin::Url("https://example.org/x.zip".into());
        let archive = Archive { name: "x.zip".into(), digest: Digest::of(b"x"), size: None, origin };
        let to = ImagePath::new("/opt").expect("a path");
        let (how, owner, aliases) = (Unpack::Zip, Owner { uid: 0, gid: 0 }, Default::default());
        (archive, Conversion::Unpack { how, to, strip_components: 0, owner, aliases })
    }

    #[test]
    fn a_zips_large_files_are_transplanted_and_read_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let path = zip(folder.path());
        let (archive, unpack) = unzipped();
        let room = Room::new(store.scratch(), Cores::new(2));
        let made = convert(&path, &archive, &unpack, &Drops::new(), &room, None, Tails::Refused).expect("converts");
        let fragment = made.write(&store, &room).expect("writes");
        // A batch, then a header and a stream for each of three files, then the last padding.
        assert_eq!(fragment.layout.members.len(), 7, "{:?}", fragment.layout);
        let elf: Vec<&str> =
            fragment.elf.all().iter().map(|(at, _)| fragment.entries[*at as usize].entry.path.as_str()).collect();
        assert_eq!(elf, ["/opt/bin/true"]);

        let open = |digest: &Digest| -> io::Result<File> {
            Ok(store.open(digest).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?)
        };
        let mut view = View::new(&open);
        view.apply(&[], &[Arc::new(fragment)]).expect("applies");
        let read = |name: &str| view.read(&ImagePath::new(name).expect("a path")).expect("reads");
        assert!(read("/opt/a/large") == b"0123456789abcdef".repeat(4096));
        assert!(read("/opt/a/small") == b"small");
        let all: Vec<u8> = (0..=255).collect();
        assert!(read("/opt/b/huge") == all.repeat(40000));
        assert!(read("/opt/b/stored") == all.repeat(256));
        assert!(read("/opt/bin/true") == std::fs::read("/bin/true").expect("readable"));
    }

    #[test]
    fn two_threads_find_what_one_finds() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let script = "import random, sys, zipfile\n\
            random.seed(1)\n\
            z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n\
            for at in range(12):\n\
            \x20   z.writestr(f'f{at:02}', random.randbytes(40_000) * (5 + at) + bytes(range(256)) * 100)\n\
            z.write('/bin/true', 'true')\n\
            z.close()\n";
        let path = folder.path().join("x.zip");
        let done = Command::new("python3").args(["-c", script]).arg(&path).status().expect("python3 is installed");
        assert!(done.success());
        let (archive, unpack) = unzipped();
        let write = |path: &Path, cores: &Cores| {
            let room = Room::new(store.scratch(), cores.clone());
            convert(path, &archive, &unpack, &Drops::new(), &room, None, Tails::Refused)?.write(&store, &room)
        };
        let (busy, idle) = (Cores::new(1), Cores::new(2));
        let _core = busy.take();
        let alone = write(&path, &busy).expect("converts");
        assert!(alone.elf.all().len() == 1 && alone.layout.tar_size > 2 * WORTHWHILE);
        for _ in 0..10 {
            assert!(write(&path, &idle).expect("converts") == alone);
        }

        // What was in memory is what lies in the store.
        let room = Room::new(store.scratch(), idle.clone());
        room.holding().open(true);
        let made = convert(&path, &archive, &unpack, &Drops::new(), &room, None, Tails::Refused).expect("converts");
        let fragment = made.write(&store, &room).expect("writes");
        let mut held = room.holding().take(&fragment.blob);
        assert_eq!(held.len(), 13, "each file, but no header");
        let mut blob = store.open(&fragment.blob).expect("opens").expect("is there");
        for (at, &member) in fragment.layout.members.iter().enumerate() {
            let mut tar = Vec::new();
            TarReader::new(&mut blob, std::iter::once(member)).read_to_end(&mut tar).expect("is whole");
            if let Some(held) = held.remove(&at) {
                assert!(held.tar().expect("is there") == tar, "member {at}");
            }
        }
        assert!(held.is_empty());

        // Two files are damaged: one of them is told.
        let mut bytes = std::fs::read(&path).expect("reads");
        let opened = zip::Archive::open(io::Cursor::new(bytes.clone()), &Limits::default()).expect("opens");
        for name in ["f03", "f11"] {
            let entry = &opened.entries()[opened.find(name).expect("is there")];
            bytes[(entry.data_offset() + entry.compressed_size / 2) as usize] ^= 0x55;
        }
        let damaged = folder.path().join("damaged.zip");
        std::fs::write(&damaged, bytes).expect("writes");
        let told = |cores: &Cores| write(&damaged, cores).expect_err("is damaged").to_string();
        assert!(told(&busy).contains("`f11`") || told(&busy).contains("`f03`"), "{}", told(&busy));
        for _ in 0..10 {
            let said = told(&idle);
            assert!(said.contains("`f11`") || said.contains("`f03`"), "{said}");
        }
    }

    /// What is copied while it is checked comes to the same, whoever checks it.
    #[test]
    fn what_is_checked_later_is_what_is_checked_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let path = zip(folder.path());
        let (archive, unpack) = unzipped();
        let room = Room::new(store.scratch(), Cores::new(2));
        let convert = |path: &Path| {
            convert(path, &archive, &unpack, &Drops::new(), &room, None, Tails::Refused).expect("converts")
        };
        let expected = convert(&path).write(&store, &room).expect("writes");
        room.holding().open(true);
        for has_worker in [true, false] {
            let (work, works) = std::sync::mpsc::channel::<Arc<LateChecks>>();
            let worker = std::thread::spawn(move || works.into_iter().for_each(|checks| checks.run()));
            let begin = |checks: &Arc<LateChecks>| {
                if has_worker {
                    work.send(checks.clone()).expect("somebody works");
                }
            };
            let unchecked = convert(&path).write_unchecked(&store, &room, begin).expect("writes");
            let fragment = unchecked.fragment.clone();
            assert!(fragment.elf.are_awaited() && fragment.blob == expected.blob);
            let mut held = room.holding().take(&fragment.blob);
            assert_eq!(held.len(), 3, "each large file");
            let mut blob = store.open(&fragment.blob).expect("opens").expect("is there");
            for (at, &member) in fragment.layout.members.iter().enumerate() {
                let mut tar = Vec::new();
                TarReader::new(&mut blob, std::iter::once(member)).read_to_end(&mut tar).expect("is whole");
                if let Some(held) = held.remove(&at) {
                    assert_eq!(held.length(), tar.len());
                    assert!(held.tar().expect("is there") == tar, "member {at}");
                }
            }
            assert!(*unchecked.finish().expect("is right") == expected);
            drop(work);
            worker.join().expect("ends");
        }
        // All that was held is given back.
        assert!(room.holding().share(Room::HELD).is_some());

        // A damaged file ends the wait for it and for those behind it.
        let mut bytes = std::fs::read(&path).expect("reads");
        let opened = zip::Archive::open(io::Cursor::new(bytes.clone()), &Limits::default()).expect("opens");
        let entry = &opened.entries()[opened.find("b/huge").expect("is there")];
        bytes[(entry.data_offset() + entry.compressed_size / 2) as usize] ^= 0x55;
        let damaged = folder.path().join("damaged.zip");
        std::fs::write(&damaged, bytes).expect("writes");
        let unchecked = convert(&damaged).write_unchecked(&store, &room, |_| ()).expect("writes");
        let held = room.holding().take(&unchecked.fragment.blob);
        assert!(held.values().any(|held| held.tar().is_err()));
        let said = unchecked.finish().expect_err("is damaged").to_string();
        assert!(said.contains("`b/huge`") || said.contains("has changed"), "{said}");
    }

    /// A file whose deflate stream ends before its packed content does, as `zipfile` reads it, is compressed anew; others beside it keep
    /// their streams.
    #[test]
    fn a_stream_with_a_tail_is_not_copied() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let script = "import sys, zipfile, zlib\n\
            class Tailed:\n\
            \x20   def __init__(self): self.inner = zlib.compressobj(9, zlib.DEFLATED, -15)\n\
            \x20   def compress(self, data): return self.inner.compress(data)\n\
            \x20   def flush(self): return self.inner.flush() + tail\n\
            zipfile._get_compressor = lambda *_: Tailed()\n\
            z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n\
            for name, size, tail in [('a', 5000, b''), ('b', 4000, b'x'), ('c', 3, b'tail'), ('d', 6000, sys.argv[2].encode())]:\n\
            \x20   z.writestr(zipfile.ZipInfo(name), name.encode() * 7 * size, zipfile.ZIP_DEFLATED)\n\
            z.close()\n\
            assert all(zipfile.ZipFile(sys.argv[1]).read(name) for name in 'abcd')\n";
        let write = |name: &str, tail: &str| {
            let path = folder.path().join(name);
            let done = Command::new("python3").args(["-c", script]).arg(&path).arg(tail).status();
            assert!(done.expect("python3 is installed").success());
            path
        };
        let (archive, unpack) = unzipped();
        let room = Room::new(store.scratch(), Cores::new(2));
        let convert = |path: &Path, tails| {
            convert(path, &archive, &unpack, &Drops::new(), &room, None, tails)
                .and_then(|made| made.write(&store, &room))
        };
        let path = write("tailed.zip", "behind the end");
        let refused = convert(&path, Tails::Refused).expect_err("has tails");
        assert!(is_for_a_tail(&refused), "{refused}");
        let fragment = convert(&path, Tails::PassedOver).expect("converts");
        // What stands behind the streams is in no fragment.
        let other = convert(&write("other.zip", "another tail"), Tails::PassedOver).expect("converts");
        assert_eq!(fragment.blob, other.blob);
        // `a` alone is a header and a stream; the others are in batches.
        let without = convert(&write("half.zip", ""), Tails::PassedOver).expect("converts");
        assert_eq!(without.layout.members.len(), fragment.layout.members.len() + 2);

        let open = |digest: &Digest| -> io::Result<File> {
            Ok(store.open(digest).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?)
        };
        let mut view = View::new(&open);
        view.apply(&[], &[Arc::new(fragment)]).expect("applies");
        for (name, size) in [("a", 5000), ("b", 4000), ("c", 3), ("d", 6000)] {
            let path = ImagePath::new(format!("/opt/{name}")).expect("a path");
            assert!(view.read(&path).expect("reads") == name.repeat(7 * size).into_bytes(), "{name}");
        }
        // Where the content is not what the archive says, it is refused all the same.
        let mut bytes = std::fs::read(&path).expect("reads");
        let opened = zip::Archive::open(io::Cursor::new(bytes.clone()), &Limits::default()).expect("opens");
        let entry = &opened.entries()[opened.find("d").expect("is there")];
        bytes[(entry.data_offset() + 4) as usize] ^= 0x55;
        std::fs::write(&path, bytes).expect("writes");
        assert!(!is_for_a_tail(&convert(&path, Tails::PassedOver).expect_err("is damaged")));
    }
}
