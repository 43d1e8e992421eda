//! Files whose deflate streams are copied: they are inflated beside that, and compared with what their archive says of them.
//!
//! ```text
//! write            [ streams are copied      ]
//!                  [ files are inflated          ] ─▶ fragment, with the facts of its ELF files
//!
//! write_unchecked  [ streams are copied ] ─▶ fragment ─▶ [ layer ][ it is sent    ]
//!                  [ files are inflated                      ] ─▶ facts, the fragment's record
//!                                                     their tar ─▶ [ diff id ] ─▶ manifest
//! ```

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use layers::encode::{DeflateStream, Entry, Hold, Kind};

use super::EngineError;
use super::held::{Held, Share};
use super::index::Fragment;
use super::made::{Content, Deflated, ElfProbe, Opener, changed};
use super::spool::Room;
use crate::debian::elf;
use crate::parallel::{lock, unlocked};

/// A file whose deflate stream is copied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transplant {
    /// Among the entries.
    pub at: usize,
    /// In its archive.
    pub index: usize,
    /// Of its content, bytes.
    size: u64,
    pub stream: DeflateStream,
}

/// Those among these entries, in their order.
pub(super) fn transplants(entries: &[(Entry, Content<'_>)]) -> Vec<Transplant> {
    let transplant = |(at, (entry, content)): (usize, &(Entry, Content<'_>))| match (&entry.kind, content) {
        (Kind::File { size }, Content::Deflated(stream, index)) => {
            Some(Transplant { at, index: *index, size: *size, stream: *stream })
        }
        _ => None,
    };
    entries.iter().enumerate().filter_map(transplant).collect()
}

/// Deflate streams that are checked, by whoever has time: each thread takes the next one.
pub(super) struct Checks {
    files: Vec<Transplant>,
    next: AtomicUsize,
    found: Mutex<Found>,
    changed: Condvar,
}

#[derive(Default)]
struct Found {
    /// By positions of entries.
    files: BTreeMap<usize, Result<Checked, EngineError>>,
    /// Room that was kept for contents.
    rooms: BTreeMap<usize, Share>,
    /// Contents that are held: there as soon as they are inflated, which may be before they are compared with all that is said
    /// of them.
    contents: BTreeMap<usize, Arc<Held>>,
    /// Whether no other file is begun.
    is_stopped: bool,
}

/// A deflate stream that is as its archive says.
pub(super) struct Checked {
    /// Where it is an ELF file.
    pub facts: Option<elf::ElfFacts>,
    /// CRC-32 of the stream's own bytes, where they were in memory.
    pub packed_crc32: Option<u32>,
}

/// The position of an entry, what was found, and its content where that is held.
type Settled = (usize, Checked, Option<Arc<Held>>);

impl Checks {
    /// The largest first, so that no thread is left with a giant at the end.
    pub fn new(transplants: &[Transplant]) -> Checks {
        let mut files = transplants.to_vec();
        files.sort_by_key(|file| Reverse(file.size));
        Checks { files, next: AtomicUsize::new(0), found: Mutex::default(), changed: Condvar::new() }
    }

    /// In the order of entries, in which somebody waits for their contents; keeps room for these.
    fn in_order(transplants: Vec<Transplant>, room: &Room) -> Checks {
        let kept = |file: &Transplant| Some((file.at, file.room(room)?));
        let found = Found { rooms: transplants.iter().filter_map(kept).collect(), ..Found::default() };
        Checks { files: transplants, next: AtomicUsize::new(0), found: Mutex::new(found), changed: Condvar::new() }
    }

    /// Whether there is one that nobody is at or was at.
    fn has_more(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.files.len()
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        lock(&self.found)
    }

    pub fn run(&self, archive: &mut dyn Deflated, room: &Room) {
        self.run_until(archive, room, &|_| false);
    }

    /// Checks one file after the other until this is enough.
    fn run_until(&self, archive: &mut dyn Deflated, room: &Room, is_enough: &dyn Fn(&Found) -> bool) {
        let stops = Stops(self);
        let mut buffers = Buffers::default();
        while !is_enough(&self.found())
            && let Some(file) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let kept = self.found().rooms.remove(&file.at);
            let found = self.check(file, archive, room, kept, &mut buffers);
            if found.is_err() {
                self.stop();
            }
            self.found().files.insert(file.at, found);
            self.changed.notify_all();
        }
        stops.never();
    }

    /// Inflates a file and compares it with what its archive says.
    fn check(
        &self,
        file: &Transplant,
        archive: &mut dyn Deflated,
        room: &Room,
        kept: Option<Share>,
        Buffers { packed, content }: &mut Buffers,
    ) -> Result<Checked, EngineError> {
        let mut held = kept.or_else(|| file.room(room)).map(Share::room);
        let out = match &mut held {
            Some(held) => held.bytes(),
            None if file.larger() <= WHOLE => {
                content.resize(file.size as usize, 0);
                content.as_mut_slice()
            }
            None => {
                let mut probe = ElfProbe::new(room);
                archive.inflate(file.index, &mut probe)?;
                return Ok(Checked { facts: probe.facts(), packed_crc32: None });
            }
        };
        let packed_crc32 = archive.inflate_whole(file.index, packed, out)?;
        if packed.capacity() as u64 > WHOLE {
            *packed = Vec::new();
        }
        let held = held.map(Arc::new);
        // What was read again may not be what is copied.
        if let (Some(held), Some(_)) = (&held, packed_crc32) {
            self.found().contents.insert(file.at, held.clone());
            self.changed.notify_all();
        }
        let content = match &held {
            Some(held) => held.tar()?,
            None => content,
        };
        archive.compare(file.index, content)?;
        Ok(Checked { facts: elf::facts(content), packed_crc32 })
    }

    pub fn stop(&self) {
        self.next.store(self.files.len(), Ordering::Relaxed);
        self.found().is_stopped = true;
        self.changed.notify_all();
    }

    /// What was found, and contents that are held, in the order of entries; of several errors the first.
    pub fn finish(self) -> Result<Vec<Settled>, EngineError> {
        let Found { files, mut contents, .. } = unlocked(self.found);
        files.into_iter().map(|(at, found)| Ok((at, found?, contents.remove(&at)))).collect()
    }

    /// Waits until this is so, or nothing more is found.
    fn wait_until(&self, is_enough: impl Fn(&Found) -> bool) -> MutexGuard<'_, Found> {
        let waits = |found: &mut Found| !found.is_stopped && !is_enough(found);
        self.changed.wait_while(self.found(), waits).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops checks that nobody waits for any more, or that will not end.
pub(super) struct Stops<'a>(pub &'a Checks);

impl Stops<'_> {
    /// All went well.
    pub fn never(self) {
        std::mem::forget(self);
    }
}

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

impl Transplant {
    fn larger(&self) -> u64 {
        self.size.max(u64::from(self.stream.compressed))
    }

    /// Keeps room for its content, where there is some.
    fn room(&self, room: &Room) -> Option<Share> {
        if self.larger() <= WHOLE_HELD { room.holding().share(self.size as usize) } else { None }
    }
}

/// Checks of files that layers are made of meanwhile.
pub struct LateChecks {
    checks: Checks,
    /// The positions of those whose content is held.
    held: BTreeSet<usize>,
    again: Opener<'static>,
    room: Room,
}

impl LateChecks {
    pub(super) fn new(transplants: Vec<Transplant>, again: Opener<'static>, room: &Room) -> Arc<LateChecks> {
        let checks = Checks::in_order(transplants, room);
        let held = checks.found().rooms.keys().copied().collect();
        Arc::new(LateChecks { checks, held, again, room: room.clone() })
    }

    /// Checks what nobody is at. What is wrong is told by [`Unchecked::finish`].
    pub fn run(&self) {
        self.run_until(&|_| false);
    }

    fn run_until(&self, is_enough: &dyn Fn(&Found) -> bool) {
        if !self.checks.has_more() || is_enough(&self.checks.found()) {
            return;
        }
        match (self.again)() {
            Ok(mut archive) => self.checks.run_until(&mut *archive, &self.room, is_enough),
            Err(_) => self.checks.stop(),
        }
    }

    pub(super) fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Whoever waits for the content of this file; `None` where there is no room to hold it.
    pub(super) fn awaited(self: &Arc<LateChecks>, file: &Transplant) -> Option<Awaited> {
        let Transplant { at, size, .. } = *file;
        let awaited = || Awaited { checks: self.clone(), at, length: size as usize, content: OnceCell::new() };
        self.held.contains(&at).then(awaited)
    }

    /// The content of the file at this position, for the first who asks: waits for it, and checks others meanwhile.
    fn content(&self, at: usize) -> io::Result<Arc<Held>> {
        let is_found =
            |found: &Found| found.is_stopped || found.contents.contains_key(&at) || found.files.contains_key(&at);
        self.run_until(&is_found);
        let content = self.checks.wait_until(is_found).contents.remove(&at);
        content.ok_or_else(|| io::Error::other("a file that a layer holds is not what its archive says"))
    }
}

/// The content of a file that is being checked.
pub(super) struct Awaited {
    checks: Arc<LateChecks>,
    at: usize,
    length: usize,
    content: OnceCell<Arc<Held>>,
}

impl Hold for Awaited {
    fn length(&self) -> usize {
        self.length
    }

    fn tar(&self) -> io::Result<&[u8]> {
        if self.content.get().is_none() {
            let _ = self.content.set(self.checks.content(self.at)?);
        }
        self.content.get().ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|held| held.tar())
    }
}

/// A fragment that lies in the store while its files are checked.
pub struct Unchecked {
    /// Without the facts of its ELF files.
    pub fragment: Arc<Fragment>,
    /// Facts of the files that were compressed for it.
    pub(super) facts: Vec<(u32, elf::ElfFacts)>,
    /// Positions of those that are checked, and the CRC-32 of each stream that was copied.
    pub(super) copied: Vec<(usize, u32)>,
    pub(super) checks: Arc<LateChecks>,
}

impl Unchecked {
    /// Does what is left of the checks, waits for the rest, and completes the fragment.
    pub fn finish(self) -> Result<Arc<Fragment>, EngineError> {
        let Unchecked { fragment, mut facts, copied, checks } = self;
        checks.run();
        for (at, packed_crc32) in copied {
            let mut found = checks.checks.wait_until(|found| found.files.contains_key(&at));
            let Some(Ok(checked)) = found.files.get_mut(&at) else {
                return Err(found.files.remove(&at).and_then(Result::err).unwrap_or_else(changed));
            };
            // What had to be read again is held by nobody, who waits for it in vain.
            let is_same = checked.packed_crc32.map_or(!checks.held.contains(&at), |crc32| crc32 == packed_crc32);
            if !is_same {
                return Err(changed());
            }
            facts.extend(checked.facts.take().map(|facts| (at as u32, facts)));
        }
        fragment.elf.learn(facts);
        Ok(fragment)
    }
}
