//! Entries with content become a fragment in the store.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use cache::Store;
use layers::ImagePath;
use layers::encode::{Entry, FragmentWriter, Kind};

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
    /// Opened when its turn comes.
    Open(Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>, EngineError> + 'a>),
}

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
        let mut spool = self.spool;
        for (entry, content) in self.entries {
            let mut opened: Box<dyn Read + '_> = match content {
                Content::None => Box::new(io::empty()),
                Content::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
                Content::Spooled { offset, size } => match &mut spool {
                    Some(spool) => spool.reader(offset, size)?,
                    None => Box::new(io::empty()),
                },
                Content::Open(open) => open()?,
            };
            let offset = match entry.kind {
                Kind::File { size } if size >= 64 => {
                    let mut magic = [0; 4];
                    opened.read_exact(&mut magic)?;
                    if &magic == b"\x7fELF" {
                        let mut bytes = magic.to_vec();
                        opened.read_to_end(&mut bytes)?;
                        if let Some(found) = elf::facts(&bytes) {
                            facts.push((entries.len() as u32, found));
                        }
                        writer.add(&entry, &mut bytes.as_slice())?
                    } else {
                        writer.add(&entry, &mut magic.as_slice().chain(opened))?
                    }
                }
                _ => writer.add(&entry, &mut opened)?,
            };
            entries.push(Indexed { entry, offset });
        }
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
