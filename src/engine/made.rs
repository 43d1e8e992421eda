//! Entries with content become a fragment in the store.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use cache::Store;
use layers::ImagePath;
use layers::encode::{DeflateStream, Entry, FragmentWriter, Kind};

use super::EngineError;
use super::index::{Fragment, Indexed, PackageFacts};
use crate::debian::elf;

/// The content of a file that is about to be written.
pub enum Content<'a> {
    /// Not a regular file.
    None,
    /// Held in memory.
    Bytes(Vec<u8>),
    /// A part of a [`Spool`].
    Spooled {
        /// Start, bytes.
        offset: u64,
        /// Length, bytes.
        size: u64,
    },
    /// Lies deflated in its archive, and its stream is transplanted.
    Deflated(DeflateStream, Box<dyn Deflated + 'a>),
    /// Opened when its turn comes.
    Open(Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>, EngineError> + 'a>),
}

/// A file that lies deflated in its archive.
pub trait Deflated {
    /// Writes the content, checked against everything that the archive says about it, and that its stream ends exactly where
    /// the archive says.
    fn inflate(&mut self, out: &mut dyn Write) -> Result<(), EngineError>;

    /// Opens the deflate stream itself.
    fn stream(&mut self, read: &mut ReadStream<'_>) -> Result<(), EngineError>;
}

/// Takes an open deflate stream.
pub type ReadStream<'a> = dyn FnMut(&mut dyn Read) -> Result<(), EngineError> + 'a;

/// Holds the files of one archive while they are sorted: in memory up to a limit, then in an unnamed temporary file, so
/// that an archive of any size needs bounded memory.
pub struct Spool {
    memory: Vec<u8>,
    file: Option<std::fs::File>,
    length: u64,
    limit: usize,
    folder: std::path::PathBuf,
}

impl Spool {
    /// Bytes of an archive that are kept in memory before they go to disk.
    pub const MEMORY: usize = 24 << 20;

    /// An empty spool whose temporary file, if one is needed, lies in `folder`.
    pub fn new(folder: std::path::PathBuf, limit: usize) -> Spool {
        Spool { memory: Vec::new(), file: None, length: 0, limit, folder }
    }

    /// Appends everything that `reader` gives; returns where it starts and how long it is, bytes.
    pub fn append(&mut self, reader: &mut dyn Read) -> io::Result<(u64, u64)> {
        let start = self.length;
        io::copy(reader, self)?;
        Ok((start, self.length - start))
    }

    /// Bytes written so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The bytes from `offset` on.
    fn part(&self, offset: u64, size: u64) -> Part<'_> {
        Part { spool: self, offset, size }
    }

    fn reader(&mut self, offset: u64, size: u64) -> io::Result<Box<dyn Read + '_>> {
        match &mut self.file {
            Some(file) => {
                file.seek(SeekFrom::Start(offset))?;
                Ok(Box::new(io::BufReader::with_capacity(256 << 10, file.take(size))))
            }
            None => {
                let range = offset as usize..(offset + size) as usize;
                let bytes = self.memory.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(Box::new(bytes))
            }
        }
    }
}

struct Part<'a> {
    spool: &'a Spool,
    offset: u64,
    size: u64,
}

impl elf::Bytes for Part<'_> {
    fn read_at(&self, at: u64, out: &mut [u8]) -> usize {
        let count = self.size.saturating_sub(at).min(out.len() as u64) as usize;
        let (at, out) = (self.offset + at.min(self.size), &mut out[..count]);
        let read = match &self.spool.file {
            Some(file) => file.read_exact_at(out, at).is_ok(),
            None => self.spool.memory.as_slice().read_at(at, out) == count,
        };
        if read { count } else { 0 }
    }
}

/// Keeps content that begins as an ELF file does, and forgets all other.
struct ElfProbe {
    start: Vec<u8>,
    spool: Spool,
}

impl ElfProbe {
    /// Larger files go to disk.
    const MEMORY: usize = 8 << 20;

    fn new(store: &Store) -> ElfProbe {
        ElfProbe { start: Vec::new(), spool: Spool::new(store.scratch(), ElfProbe::MEMORY) }
    }

    fn facts(&self) -> Option<elf::ElfFacts> {
        elf::facts_of(&self.spool.part(0, self.spool.length()))
    }
}

impl Write for ElfProbe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.start.len() < elf::MAGIC.len() {
            let count = bytes.len().min(elf::MAGIC.len() - self.start.len());
            self.start.extend_from_slice(&bytes[..count]);
            if self.start == elf::MAGIC {
                self.spool.write_all(&self.start)?;
            }
            return Ok(count);
        }
        if self.start == elf::MAGIC {
            self.spool.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_none() && self.memory.len() + bytes.len() > self.limit {
            let mut file = tempfile::tempfile_in(&self.folder)?;
            file.write_all(&self.memory)?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes)?,
            None => self.memory.extend_from_slice(bytes),
        }
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shows what is read to a probe.
struct Teed<'a> {
    inner: Box<dyn Read + 'a>,
    probe: &'a mut ElfProbe,
}

impl Read for Teed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.probe.write_all(&out[..count])?;
        Ok(count)
    }
}

/// What a fragment is made from.
#[derive(Default)]
pub struct Made<'a> {
    /// Files, links and devices with their content, in any order.
    pub entries: Vec<(Entry, Content<'a>)>,
    /// Directories, in any order.
    pub dirs: Vec<Entry>,
    /// Whether the directories change those below.
    pub commands_dirs: bool,
    /// Where it is a Debian package.
    pub package: Option<PackageFacts>,
    /// Holds spooled content.
    pub spool: Option<Spool>,
    /// Paths below that it deletes; only in layers of base images.
    pub whiteouts: Vec<ImagePath>,
    /// Directories whose content below it deletes; only in layers of base images.
    pub opaques: Vec<ImagePath>,
}

impl<'a> Made<'a> {
    /// Adds a directory, file or link.
    pub fn push(&mut self, entry: Entry, content: Content<'a>) {
        if entry.is_dir() {
            self.dirs.push(entry);
        } else {
            self.entries.push((entry, content));
        }
    }

    /// Writes the fragment into the store.
    pub fn write(mut self, store: &Store) -> Result<Fragment, EngineError> {
        self.entries.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        self.dirs.sort_by(|a, b| a.path.cmp(&b.path));
        self.dirs.dedup_by(|a, b| a.path == b.path);
        first_names_first(&mut self.entries);
        let mut writer = FragmentWriter::new(store.writer()?);
        let mut entries = Vec::with_capacity(self.entries.len());
        let mut facts = Vec::new();
        let mut transplants = Vec::new();
        let mut spool = self.spool;
        for (at, (entry, content)) in self.entries.into_iter().enumerate() {
            let mut offset = 0;
            match content {
                Content::Deflated(stream, file) => transplants.push((at, stream, file)),
                Content::None => offset = writer.add(&entry, &mut io::empty())?,
                Content::Bytes(bytes) => {
                    facts.extend(elf::facts(&bytes).map(|found| (at as u32, found)));
                    offset = writer.add(&entry, &mut bytes.as_slice())?;
                }
                Content::Spooled { offset: start, size } => {
                    let held = spool.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                    facts.extend(elf::facts_of(&held.part(start, size)).map(|found| (at as u32, found)));
                    offset = writer.add(&entry, &mut held.reader(start, size)?)?;
                }
                Content::Open(open) => {
                    let mut probe = ElfProbe::new(store);
                    offset = writer.add(&entry, &mut Teed { inner: open()?, probe: &mut probe })?;
                    facts.extend(probe.facts().map(|found| (at as u32, found)));
                }
            }
            entries.push(Indexed { entry, offset });
        }
        for (at, stream, mut file) in transplants {
            let mut probe = ElfProbe::new(store);
            file.inflate(&mut probe)?;
            facts.extend(probe.facts().map(|found| (at as u32, found)));
            let indexed = &mut entries[at];
            file.stream(&mut |bytes| {
                indexed.offset = writer.transplant(&indexed.entry, stream, bytes)?;
                Ok(())
            })?;
        }
        facts.sort_unstable_by_key(|(at, _)| *at);
        let (blob, layout) = writer.finish()?;
        let blob = blob.finish()?;
        Ok(Fragment {
            blob: blob.digest,
            layout,
            dirs: self.dirs,
            entries,
            elf: facts,
            package: self.package,
            commands_dirs: self.commands_dirs,
            whiteouts: self.whiteouts,
            opaques: self.opaques,
        })
    }
}

/// Makes the first name of each hardlinked file, in path order, the regular file and all later names links to it, each
/// repeating the file's attributes: Docker applies a link's owner and mode to the shared inode.
fn first_names_first(entries: &mut [(Entry, Content<'_>)]) {
    let mut names: BTreeMap<ImagePath, Vec<usize>> = BTreeMap::new();
    for (at, (entry, _)) in entries.iter().enumerate() {
        if let Kind::Hardlink { target } = &entry.kind {
            names.entry(target.clone()).or_default().push(at);
        }
    }
    for (target, mut links) in names {
        let Ok(file) = entries.binary_search_by(|(entry, _)| entry.path.cmp(&target)) else { continue };
        links.push(file);
        links.sort_unstable();
        let first = links[0];
        let model = entries[file].0.clone();
        if first != file {
            let content = std::mem::replace(&mut entries[file].1, Content::None);
            entries[first].1 = content;
        }
        let first_path = entries[first].0.path.clone();
        for &at in &links {
            let path = entries[at].0.path.clone();
            let kind = if at == first { model.kind.clone() } else { Kind::Hardlink { target: first_path.clone() } };
            entries[at].0 = Entry { path, kind, ..model.clone() };
        }
    }
}
