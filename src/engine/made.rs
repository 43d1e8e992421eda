//! Entries with content become a fragment in the store.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use cache::Store;
use layers::ImagePath;
use layers::encode::{DeflateStream, EncodeError, Entry, FragmentWriter, Kind, MEMBER_SIZE, WORTHWHILE};

use super::EngineError;
use super::held::Held;
use super::index::{Fragment, Indexed, PackageFacts};
use super::members::Members;
use super::spool::{Room, Spool};
use super::view::View;
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
    /// Lies deflated in [`Made::packed`] at this place, and its stream is transplanted.
    Deflated(DeflateStream, usize),
    /// Opened when its turn comes.
    Open(Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>, EngineError> + 'a>),
}

impl<'v> Content<'v> {
    /// That of a regular file of a view, opened when its turn comes.
    pub fn of(view: &'v View<'_>, path: &ImagePath) -> Content<'v> {
        let path = path.clone();
        Content::Open(Box::new(move || Ok(view.open(&path)?)))
    }
}

/// Files that lie deflated in an archive, each at a place of its own.
pub trait Deflated {
    /// Writes the content of one, checked against everything that the archive says about it, and that its stream ends exactly
    /// where the archive says.
    fn inflate(&mut self, at: usize, out: &mut dyn Write) -> Result<(), EngineError>;

    /// Inflates one into `content`, which has its size, and checks it as [`inflate`](Self::inflate) does, and that it is this
    /// stream. `packed` is written over.
    /// Returns the CRC-32 of the stream's own bytes, and `None` where they had to be read again.
    fn inflate_whole(
        &mut self,
        at: usize,
        stream: DeflateStream,
        packed: &mut Vec<u8>,
        content: &mut [u8],
    ) -> Result<Option<u32>, EngineError>;

    /// Opens the deflate stream of one.
    fn stream(&mut self, at: usize, read: &mut ReadStream<'_>) -> Result<(), EngineError>;
}

/// An open archive with deflated files.
pub struct Packed<'a> {
    files: Box<dyn Deflated + 'a>,
    /// Opens it once more, for another thread.
    again: Box<dyn Fn() -> Result<Box<dyn Deflated>, EngineError> + Sync + 'a>,
}

impl<'a> Packed<'a> {
    /// The archive, and what opens it once more.
    pub fn new(
        files: impl Deflated + 'a,
        again: impl Fn() -> Result<Box<dyn Deflated>, EngineError> + Sync + 'a,
    ) -> Packed<'a> {
        Packed { files: Box::new(files), again: Box::new(again) }
    }
}

/// Takes an open deflate stream.
pub type ReadStream<'a> = dyn FnMut(&mut dyn Read) -> Result<(), EngineError> + 'a;

/// Keeps content that begins as an ELF file does, and forgets all other.
struct ElfProbe {
    start: Vec<u8>,
    spool: Spool,
}

impl ElfProbe {
    fn new(room: &Room) -> ElfProbe {
        ElfProbe { start: Vec::new(), spool: Spool::new(room) }
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
    /// Holds deflated content.
    pub packed: Option<Packed<'a>>,
    /// The members of the last wheel of the same package, some of which may be the same.
    pub members: Option<Rc<Members>>,
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
    pub fn write(mut self, store: &Store, room: &Room) -> Result<Fragment, EngineError> {
        self.entries.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        self.dirs.sort_by(|a, b| a.path.cmp(&b.path));
        self.dirs.dedup_by(|a, b| a.path == b.path);
        first_names_first(&mut self.entries);
        let cores = room.clone();
        let lend = move || cores.spare_core().map(|core| Box::new(core) as Box<dyn Send>);
        let held = Rc::new(RefCell::new(Vec::new()));
        let (keeping, room_of_keeper) = (held.clone(), room.clone());
        let made = self.members.clone();
        let keep = move |member, mut tar: Vec<u8>| {
            if let Some(made) = &made {
                made.made(member);
            }
            // What is short is inflated in no time, and its buffer is long.
            if tar.len() < MEMBER_SIZE / 4 {
                return Some(tar);
            }
            if tar.len() <= tar.capacity() / 2 {
                tar.shrink_to_fit();
            }
            match room_of_keeper.holding().hold(tar) {
                Ok(tar) => {
                    keeping.borrow_mut().push((member, tar));
                    None
                }
                Err(tar) => Some(tar),
            }
        };
        let mut writer = FragmentWriter::new(store.writer()?).with_help(Box::new(lend)).with_keeper(Box::new(keep));
        if let Some(members) = self.members {
            writer = writer.with_reuse(Box::new(move |tar| members.find(tar)));
        }
        let transplants = transplants(&self.entries);
        let checks = Checks::new(&transplants);
        let mut packed = self.packed;
        let (files, again) = packed.as_mut().map(|Packed { files, again }| (files, &*again)).unzip();
        let (entries, mut facts, transplanted) = std::thread::scope(|scope| {
            let mut again = again.filter(|_| checks.bytes() >= WORTHWHILE);
            // Asked now and then until there is a core: others may work with it at first.
            let mut help = || {
                if let Some(open) = again
                    && let Some(core) = room.spare_core()
                {
                    again = None;
                    let checks = &checks;
                    // Without it, all are checked here.
                    let _ = std::thread::Builder::new().spawn_scoped(scope, move || {
                        let _core = core;
                        // Where it cannot be opened again, whoever has it open finds out why.
                        if let Ok(mut files) = open() {
                            checks.run(&mut *files, room);
                        }
                    });
                }
            };
            let stops = Stops(&checks);
            let (mut entries, facts) = batched(self.entries, self.spool.as_ref(), &mut writer, room, &mut help)?;
            let mut transplanted = Vec::new();
            if let Some(files) = files {
                for file in &transplants {
                    help();
                    let indexed: &mut Indexed = &mut entries[file.at];
                    files.stream(file.index, &mut |bytes| {
                        let made = writer.transplant(&indexed.entry, file.stream, bytes)?;
                        indexed.offset = made.offset;
                        transplanted.push(made);
                        Ok(())
                    })?;
                }
                checks.run(&mut **files, room);
            }
            drop(stops);
            Ok::<_, EngineError>((entries, facts, transplanted))
        })?;
        // Each was checked, or something is wrong with one.
        let checked = checks.finish()?;
        if checked.len() != transplants.len() || transplanted.len() != transplants.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        for ((at, checked), made) in checked.into_iter().zip(transplanted) {
            if checked.packed_crc32.is_some_and(|crc32| crc32 != made.packed_crc32) {
                return Err(changed());
            }
            facts.extend(checked.facts.map(|facts| (at as u32, facts)));
            held.borrow_mut().extend(checked.content.map(|content| (made.member, content)));
        }
        facts.sort_unstable_by_key(|(at, _)| *at);
        let (blob, layout) = writer.finish()?;
        let blob = blob.finish()?;
        room.holding().keep(blob.digest, held.take());
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

/// Entries, and the facts of those that are ELF files, by position.
type Written = (Vec<Indexed>, Vec<(u32, elf::ElfFacts)>);

/// Writes what is compressed here; what is transplanted is written behind it.
fn batched<W: Write>(
    all: Vec<(Entry, Content<'_>)>,
    spool: Option<&Spool>,
    writer: &mut FragmentWriter<W>,
    room: &Room,
    now_and_then: &mut dyn FnMut(),
) -> Result<Written, EngineError> {
    let (mut entries, mut facts) = (Vec::with_capacity(all.len()), Vec::new());
    for (at, (entry, content)) in all.into_iter().enumerate() {
        now_and_then();
        let mut offset = 0;
        match content {
            Content::Deflated(..) if matches!(entry.kind, Kind::File { .. }) => {}
            Content::Deflated(..) => return Err(EncodeError::Stream(entry.path).into()),
            Content::None => offset = writer.add(&entry, &mut io::empty())?,
            Content::Bytes(bytes) => {
                facts.extend(elf::facts(&bytes).map(|found| (at as u32, found)));
                offset = writer.add(&entry, &mut bytes.as_slice())?;
            }
            Content::Spooled { offset: start, size } => {
                let held = spool.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                let mut part = held.part(start, size);
                facts.extend(elf::facts_of(&part).map(|found| (at as u32, found)));
                offset = writer.add(&entry, &mut part)?;
            }
            Content::Open(open) => {
                let mut probe = ElfProbe::new(room);
                offset = writer.add(&entry, &mut Teed { inner: open()?, probe: &mut probe })?;
                facts.extend(probe.facts().map(|found| (at as u32, found)));
            }
        }
        entries.push(Indexed { entry, offset });
    }
    Ok((entries, facts))
}

/// A file whose deflate stream is copied once it is checked.
struct Transplant {
    /// Among the entries.
    at: usize,
    /// In its archive.
    index: usize,
    /// Of its content, bytes.
    size: u64,
    stream: DeflateStream,
}

/// Those among these entries, in their order.
fn transplants(entries: &[(Entry, Content<'_>)]) -> Vec<Transplant> {
    let transplant = |(at, (entry, content)): (usize, &(Entry, Content<'_>))| match (&entry.kind, content) {
        (Kind::File { size }, Content::Deflated(stream, index)) => {
            Some(Transplant { at, index: *index, size: *size, stream: *stream })
        }
        _ => None,
    };
    entries.iter().enumerate().filter_map(transplant).collect()
}

/// Deflate streams that are checked, by whoever has time: each thread takes the largest that is left.
struct Checks<'a> {
    files: Vec<&'a Transplant>,
    next: AtomicUsize,
    found: Mutex<Vec<Found>>,
}

/// The entry at this position, and what was found about it.
type Found = (usize, Result<Checked, EngineError>);

/// A deflate stream that is as its archive says.
struct Checked {
    /// Where it is an ELF file.
    facts: Option<elf::ElfFacts>,
    /// CRC-32 of the stream's own bytes, where they were in memory.
    packed_crc32: Option<u32>,
    /// Its content, where there was room to hold it.
    content: Option<Held>,
}

impl<'a> Checks<'a> {
    fn new(transplants: &'a [Transplant]) -> Checks<'a> {
        let mut files: Vec<&Transplant> = transplants.iter().collect();
        files.sort_by_key(|file| Reverse(file.size));
        Checks { files, next: AtomicUsize::new(0), found: Mutex::default() }
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    fn run(&self, archive: &mut dyn Deflated, room: &Room) {
        let mut buffers = Buffers::default();
        while let Some(file) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let found = check(file, archive, room, &mut buffers);
            if found.is_err() {
                self.stop();
            }
            self.found.lock().unwrap_or_else(PoisonError::into_inner).push((file.at, found));
        }
    }

    fn stop(&self) {
        self.next.store(self.files.len(), Ordering::Relaxed);
    }

    /// What was found, in the order of entries; of several errors the first.
    fn finish(self) -> Result<Vec<(usize, Checked)>, EngineError> {
        let mut found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(at, found)| Ok((at, found?))).collect()
    }
}

/// Stops checks that nobody waits for any more.
struct Stops<'a>(&'a Checks<'a>);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// To be written over by one file after the other.
#[derive(Default)]
struct Buffers {
    packed: Vec<u8>,
    content: Vec<u8>,
}

/// Up to this size, packed and unpacked, a file is inflated as a whole where it is held, and where it is not, bytes.
const WHOLE_HELD: u64 = 32 << 20;
const WHOLE: u64 = 4 << 20;

pub(super) fn changed() -> EngineError {
    io::Error::other("an archive has changed while it was read").into()
}

/// Inflates a file and compares it with what its archive says.
fn check(
    file: &Transplant,
    archive: &mut dyn Deflated,
    room: &Room,
    buffers: &mut Buffers,
) -> Result<Checked, EngineError> {
    let larger = file.size.max(u64::from(file.stream.compressed));
    let held = if larger <= WHOLE_HELD { room.holding().room(file.size as usize) } else { None };
    let mut checked = Checked { facts: None, packed_crc32: None, content: held };
    let content = match &mut checked.content {
        Some(held) => held.bytes(),
        None if larger <= WHOLE => {
            buffers.content.resize(file.size as usize, 0);
            &mut buffers.content
        }
        None => {
            let mut probe = ElfProbe::new(room);
            archive.inflate(file.index, &mut probe)?;
            return Ok(Checked { facts: probe.facts(), ..checked });
        }
    };
    checked.packed_crc32 = archive.inflate_whole(file.index, file.stream, &mut buffers.packed, content)?;
    checked.facts = elf::facts(content);
    // What was read again may not be what is copied.
    if checked.packed_crc32.is_none() {
        checked.content = None;
    }
    if buffers.packed.capacity() as u64 > WHOLE {
        buffers.packed = Vec::new();
    }
    Ok(checked)
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
