//! Entries with content become a fragment in the store.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use cache::{BlobWriter, Store};
use layers::encode::{
    DeflateStream, EncodeError, Entry, FragmentLayout, FragmentWriter, Kind, MEMBER_SIZE, Transplanted, WORTHWHILE,
};
use layers::format::Limits;
use layers::format::tar::xattrs_size;
use layers::{ImagePath, Key};

use super::EngineError;
use super::checks::{Checks, LateChecks, Stops, Transplant, Unchecked, transplants};
use super::held;
use super::index::{Elf, Fragment, Indexed, PackageFacts};
use super::members::Members;
use super::spool::{Room, Spool};
use super::view::View;
use crate::debian::elf;
use crate::parallel::begin;

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

    /// Inflates one into `content`, which has its size, and checks its stream. The content is still to be
    /// [`compare`](Self::compare)d. `packed` is written over.
    /// Returns the CRC-32 of the stream's own bytes, and `None` where they had to be read again.
    fn inflate_whole(
        &mut self,
        at: usize,
        packed: &mut Vec<u8>,
        content: &mut [u8],
    ) -> Result<Option<u32>, EngineError>;

    /// Compares the content of one with what else the archive says of it.
    fn compare(&mut self, at: usize, content: &[u8]) -> Result<(), EngineError>;

    /// Opens the deflate stream of one.
    fn stream(&mut self, at: usize, read: &mut ReadStream<'_>) -> Result<(), EngineError>;
}

/// An open archive with deflated files.
pub struct Packed<'a> {
    files: Box<dyn Deflated + 'a>,
    /// Opens it once more, for another thread.
    again: Opener<'a>,
}

impl<'a> Packed<'a> {
    /// The archive, and what opens it once more.
    pub fn new(
        files: impl Deflated + 'a,
        again: impl Fn() -> Result<Box<dyn Deflated>, EngineError> + Send + Sync + 'a,
    ) -> Packed<'a> {
        Packed { files: Box::new(files), again: Arc::new(again) }
    }
}

/// Opens an archive, for whichever thread.
pub type Opener<'a> = Arc<dyn Fn() -> Result<Box<dyn Deflated>, EngineError> + Send + Sync + 'a>;

/// Takes an open deflate stream.
pub type ReadStream<'a> = dyn FnMut(&mut dyn Read) -> Result<(), EngineError> + 'a;

/// Keeps content that begins as an ELF file does, and forgets all other.
pub(super) struct ElfProbe {
    start: Vec<u8>,
    spool: Spool,
}

impl ElfProbe {
    pub fn new(room: &Room) -> ElfProbe {
        ElfProbe { start: Vec::new(), spool: Spool::new(room) }
    }

    pub fn facts(&self) -> Option<elf::ElfFacts> {
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

    /// The fragment as far as it is known without its bytes: named by the key of what it is made from, and no file of it can be read.
    pub fn unwritten(mut self, key: &Key) -> Result<Fragment, EngineError> {
        self.sort()?;
        Ok(Fragment {
            blob: key.0,
            layout: FragmentLayout::default(),
            dirs: self.dirs,
            entries: self.entries.into_iter().map(|(entry, _)| Indexed { entry, offset: 0 }).collect(),
            elf: Elf::from(Vec::new()),
            package: self.package,
            commands_dirs: self.commands_dirs,
            whiteouts: self.whiteouts,
            opaques: self.opaques,
        })
    }

    fn sort(&mut self) -> Result<(), EncodeError> {
        self.entries.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        self.dirs.sort_by(|a, b| a.path.cmp(&b.path));
        self.dirs.dedup_by(|a, b| a.path == b.path);
        first_names_first(&mut self.entries)
    }

    /// Writes the fragment into the store.
    pub fn write(mut self, store: &Store, room: &Room) -> Result<Fragment, EngineError> {
        let packed = self.packed.take();
        let mut draft = Draft::new(self, store, room)?;
        let transplants = transplants(&draft.made.entries);
        let checks = Checks::new(&transplants);
        let copied = std::thread::scope(|scope| {
            let mut again = packed.as_ref().map(|packed| packed.again.clone()).filter(|_| checks.bytes() >= WORTHWHILE);
            // Asked now and then until there is a core: others may work with it at first.
            let mut help = || {
                if let Some(core) = again.as_ref().and_then(|_| room.spare_core())
                    && let Some(open) = again.take()
                {
                    let checks = &checks;
                    // Without it, all are checked here.
                    let _ = begin(scope, move || {
                        let _core = core;
                        // Where it cannot be opened again, whoever has it open finds out why.
                        if let Ok(mut files) = open() {
                            checks.run(&mut *files, room);
                        }
                    });
                }
            };
            let stops = Stops(&checks);
            draft.batched(room, &mut help)?;
            let mut copied = Vec::new();
            if let Some(Packed { mut files, .. }) = packed {
                copied = draft.transplanted(&mut *files, &transplants, &mut help)?;
                checks.run(&mut *files, room);
            }
            drop(stops);
            Ok::<_, EngineError>(copied)
        })?;
        // Each was checked, or something is wrong with one.
        let checked = checks.finish()?;
        if checked.len() != transplants.len() || copied.len() != transplants.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        for ((at, checked, content), made) in checked.into_iter().zip(copied) {
            if checked.packed_crc32.is_some_and(|crc32| crc32 != made.packed_crc32) {
                return Err(changed());
            }
            draft.facts.extend(checked.facts.map(|facts| (at as u32, facts)));
            if let Some(content) = content {
                draft.held.borrow_mut().push((made.member, Box::new(content)));
            }
        }
        let (fragment, facts) = draft.finish(room)?;
        fragment.elf.learn(facts);
        Ok(fragment)
    }
}

impl Made<'static> {
    /// The same for files that lie deflated, which are checked by whoever `begin` gives the checks to: layers may be made of the
    /// fragment meanwhile, but nobody may be told of them.
    pub fn write_unchecked(
        mut self,
        store: &Store,
        room: &Room,
        begin: impl FnOnce(&Arc<LateChecks>),
    ) -> Result<Unchecked, EngineError> {
        let Some(Packed { mut files, again }) = self.packed.take() else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        };
        let mut draft = Draft::new(self, store, room)?;
        let transplants = transplants(&draft.made.entries);
        let checks = LateChecks::new(transplants.clone(), again, room);
        let stops = Stops(checks.checks());
        begin(&checks);
        draft.batched(room, &mut || {})?;
        let copied = draft.transplanted(&mut *files, &transplants, &mut || {})?;
        for (file, made) in transplants.iter().zip(&copied) {
            if let Some(content) = checks.awaited(file) {
                draft.held.borrow_mut().push((made.member, Box::new(content)));
            }
        }
        let (fragment, facts) = draft.finish(room)?;
        // From here on somebody waits for them.
        stops.never();
        let copied = transplants.iter().zip(copied).map(|(file, made)| (file.at, made.packed_crc32)).collect();
        Ok(Unchecked { fragment: Arc::new(fragment), facts, copied, checks })
    }
}

/// A fragment that is being written.
struct Draft<'a, W> {
    made: Made<'a>,
    writer: FragmentWriter<W>,
    /// Entries that are written, or are about to be transplanted.
    entries: Vec<Indexed>,
    facts: Facts,
    /// Members whose tar is held for layers.
    held: Rc<RefCell<held::Members>>,
}

/// Facts of ELF files, by positions of entries.
type Facts = Vec<(u32, elf::ElfFacts)>;

impl<'a> Draft<'a, BlobWriter> {
    fn new(mut made: Made<'a>, store: &Store, room: &Room) -> Result<Draft<'a, BlobWriter>, EngineError> {
        made.sort()?;
        let cores = room.clone();
        let lend = move || cores.spare_core().map(|core| Box::new(core) as Box<dyn Send>);
        let held: Rc<RefCell<held::Members>> = Rc::default();
        let (keeping, room) = (held.clone(), room.clone());
        let members = made.members.take();
        let (known, mut writer) = (members.clone(), FragmentWriter::new(store.writer()?).with_help(Box::new(lend)));
        let keep = move |member, mut tar: Vec<u8>| {
            if let Some(known) = &known {
                known.made(member);
            }
            // What is short is inflated in no time, and its buffer is long.
            if tar.len() < MEMBER_SIZE / 4 {
                return Some(tar);
            }
            if tar.len() <= tar.capacity() / 2 {
                tar.shrink_to_fit();
            }
            match room.holding().hold(tar) {
                Ok(tar) => {
                    keeping.borrow_mut().push((member, Box::new(tar)));
                    None
                }
                Err(tar) => Some(tar),
            }
        };
        writer = writer.with_keeper(Box::new(keep));
        if let Some(members) = members {
            writer = writer.with_reuse(Box::new(move |tar| members.find(tar)));
        }
        Ok(Draft { made, writer, entries: Vec::new(), facts: Facts::new(), held })
    }

    /// Writes what is compressed here; what is transplanted is written behind it.
    fn batched(&mut self, room: &Room, now_and_then: &mut dyn FnMut()) -> Result<(), EngineError> {
        let all = std::mem::take(&mut self.made.entries);
        self.entries.reserve(all.len());
        let (writer, facts) = (&mut self.writer, &mut self.facts);
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
                    let spool = self.made.spool.as_ref();
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
            self.entries.push(Indexed { entry, offset });
        }
        Ok(())
    }

    /// Copies the streams of these files.
    fn transplanted(
        &mut self,
        archive: &mut dyn Deflated,
        files: &[Transplant],
        now_and_then: &mut dyn FnMut(),
    ) -> Result<Vec<Transplanted>, EngineError> {
        let mut copied = Vec::with_capacity(files.len());
        for file in files {
            now_and_then();
            let indexed = &mut self.entries[file.at];
            archive.stream(file.index, &mut |bytes| {
                let made = self.writer.transplant(&indexed.entry, file.stream, bytes)?;
                indexed.offset = made.offset;
                copied.push(made);
                Ok(())
            })?;
        }
        Ok(copied)
    }

    /// The fragment, whose bytes lie in the store, without the facts of its ELF files; and those that are known.
    fn finish(self, room: &Room) -> Result<(Fragment, Facts), EngineError> {
        let Draft { made, writer, entries, facts, held } = self;
        let (blob, layout) = writer.finish()?;
        let blob = blob.finish()?;
        room.holding().keep(blob.digest, held.take());
        let fragment = Fragment {
            blob: blob.digest,
            layout,
            dirs: made.dirs,
            entries,
            elf: Elf::default(),
            package: made.package,
            commands_dirs: made.commands_dirs,
            whiteouts: made.whiteouts,
            opaques: made.opaques,
        };
        Ok((fragment, facts))
    }
}

pub(super) fn changed() -> EngineError {
    io::Error::other("an archive has changed while it was read").into()
}

/// Makes the first name of each hardlinked file, in path order, the regular file and all later names links to it, each
/// repeating the file's attributes: Docker applies a link's owner and mode to the shared inode.
fn first_names_first(entries: &mut [(Entry, Content<'_>)]) -> Result<(), EncodeError> {
    let mut names: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, file) in linked(entries) {
        names.entry(file).or_default().push(at);
    }
    let (limit, mut repeated) = (Limits::default().max_metadata, 0u64);
    for (file, mut links) in names {
        repeated = repeated.saturating_add(xattrs_size(&entries[file].0.xattrs).saturating_mul(links.len() as u64));
        if repeated > limit {
            return Err(EncodeError::Attributes { path: entries[file].0.path.clone(), limit });
        }
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
    Ok(())
}

/// The hard links of these sorted entries, each with what it is a name of: links to links are followed. Those that lead to nothing
/// here, or in circles, are left out.
fn linked(entries: &[(Entry, Content<'_>)]) -> Vec<(usize, usize)> {
    let target = |at: usize| match &entries[at].0.kind {
        Kind::Hardlink { target } => Some(entries.binary_search_by(|(entry, _)| entry.path.cmp(target)).ok()),
        _ => None,
    };
    let mut known: HashMap<usize, Option<usize>> = HashMap::new();
    let mut linked = Vec::new();
    for (at, (entry, _)) in entries.iter().enumerate() {
        if !matches!(entry.kind, Kind::Hardlink { .. }) {
            continue;
        }
        let (mut way, mut here) = (Vec::new(), at);
        let file = loop {
            if let Some(known) = known.get(&here) {
                break *known;
            }
            match target(here) {
                None => break Some(here),
                Some(None) => break None,
                Some(Some(next)) => {
                    // Whoever comes by again before its end is known goes in circles.
                    known.insert(here, None);
                    way.push(here);
                    here = next;
                }
            }
        };
        known.extend(way.into_iter().map(|at| (at, file)));
        linked.extend(file.map(|file| (at, file)));
    }
    linked
}

#[cfg(test)]
mod tests {
    use cache::Store;
    use layers::encode::EPOCH;

    use super::*;
    use crate::parallel::Cores;

    fn path(text: &str) -> ImagePath {
        ImagePath::new(text).expect("a path")
    }

    /// Writes a file `/c` with these attributes and hard links, each a name and what it names.
    fn written(xattrs: &BTreeMap<String, Vec<u8>>, links: &[(String, String)]) -> Result<Vec<String>, EngineError> {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let mut made = Made::default();
        let file = Entry::new(path("/c"), Kind::File { size: 1 }, 0o640, EPOCH);
        made.push(Entry { xattrs: xattrs.clone(), ..file }, Content::Bytes(b"x".to_vec()));
        for (link, target) in links {
            let kind = Kind::Hardlink { target: path(target) };
            made.push(Entry::new(path(link), kind, 0o600, EPOCH), Content::None);
        }
        let fragment = made.write(&store, &Room::new(store.scratch(), Cores::new(1)))?;
        let line = |it: &Indexed| match &it.entry.kind {
            Kind::Hardlink { target } => format!("{} = {target} {:o}", it.entry.path, it.entry.mode),
            _ => format!("{} {:o}", it.entry.path, it.entry.mode),
        };
        Ok(fragment.entries.iter().map(line).collect())
    }

    fn links<const N: usize>(all: [(&str, &str); N]) -> Vec<(String, String)> {
        all.into_iter().map(|(link, target)| (link.to_owned(), target.to_owned())).collect()
    }

    #[test]
    fn a_link_to_a_link_is_a_name_of_the_file() {
        let none = BTreeMap::new();
        for all in [
            [("/a", "/c"), ("/b", "/a"), ("/d", "/b")],
            [("/b", "/c"), ("/a", "/b"), ("/d", "/a")],
            [("/d", "/c"), ("/b", "/d"), ("/a", "/b")],
            [("/a", "/c"), ("/b", "/c"), ("/d", "/c")],
        ] {
            let expected = ["/a 640", "/b = /a 640", "/c = /a 640", "/d = /a 640"];
            assert_eq!(written(&none, &links(all)).expect("is written"), expected, "{all:?}");
        }
        for all in [[("/a", "/b"), ("/b", "/a")], [("/a", "/b"), ("/b", "/missing")]] {
            let error = written(&none, &links(all)).expect_err("leads to no file");
            assert!(matches!(error, EngineError::Encode(EncodeError::Hardlink { .. })), "{error}");
        }
        // A long one takes no longer than so many links to the file.
        let all: Vec<_> = (0..20_000).map(|at| (format!("/d{at:05}"), format!("/d{:05}", at + 1))).collect();
        let chain = [all, links([("/d20000", "/c")])].concat();
        let lines = written(&none, &chain).expect("is written");
        assert_eq!((lines.len(), lines[20_001].as_str()), (20_002, "/d20000 = /c 640"));
    }

    #[test]
    fn what_links_repeat_of_their_file_is_bounded() {
        let xattrs = BTreeMap::from([("user.a".to_owned(), vec![b'x'; 64 << 10])]);
        let many = |count: usize| -> Vec<_> { (0..count).map(|at| (format!("/d{at}"), "/c".to_owned())).collect() };
        assert_eq!(written(&xattrs, &many(10)).expect("is written").len(), 11);
        let error = written(&xattrs, &many(1100)).expect_err("is too much").to_string();
        assert!(error.contains("`/c`") && error.contains("extended attributes"), "{error}");
    }
}
