//! Room for content on its way: a fixed amount of memory for a whole build, and temporary files beyond it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::held::Holding;
use crate::debian::elf;
use crate::parallel::{Budget, Core, Cores, lock};

/// Bytes of a piece of memory.
const PIECE: usize = 256 << 10;

/// What conversions may hold together, whatever their number and whatever the size of archives: pieces for content that
/// waits, decoders' dictionaries, and members that wait for their layers. Who finds no piece left writes to a temporary file;
/// a decoder waits its turn; a member that finds no room is inflated again.
#[derive(Debug, Clone)]
pub struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Where temporary files go: not in TMPDIR, which may be a small one in memory.
    scratch: PathBuf,
    /// Pieces that may be handed out still, and those that came back.
    pieces: Mutex<(usize, Vec<Box<[u8]>>)>,
    decoders: Budget,
    holding: Holding,
    cores: Cores,
}

impl Room {
    /// Bytes of content that waits in memory, of all archives together.
    pub const MEMORY: usize = 32 << 20;

    /// Bytes of decoders' dictionaries and windows, of all archives together.
    pub const DECODERS: u64 = 64 << 20;

    /// Bytes of members that wait for their layers, of all fragments together.
    pub const HELD: usize = 64 << 20;

    /// Room whose temporary files lie in `scratch`, for work on these cores.
    pub fn new(scratch: PathBuf, cores: Cores) -> Room {
        Room::of(scratch, cores, Room::MEMORY)
    }

    /// As [`new`](Room::new), with this many bytes of memory.
    pub fn of(scratch: PathBuf, cores: Cores, memory: usize) -> Room {
        let pieces = Mutex::new((memory / PIECE, Vec::new()));
        let (decoders, holding) = (Budget::new(Room::DECODERS), Holding::new(Room::HELD));
        Room(Arc::new(Shared { scratch, pieces, decoders, holding, cores }))
    }

    /// A core that nobody works with now.
    pub fn spare_core(&self) -> Option<Core> {
        self.0.cores.spare()
    }

    /// Where temporary files go.
    pub fn scratch(&self) -> &Path {
        &self.0.scratch
    }

    /// Who may run a decoder that takes so many bytes.
    pub fn decoders(&self) -> &Budget {
        &self.0.decoders
    }

    /// Members that wait for their layers.
    pub fn holding(&self) -> &Holding {
        &self.0.holding
    }

    fn piece(&self) -> Option<Box<[u8]>> {
        let mut pieces = lock(&self.0.pieces);
        if let Some(piece) = pieces.1.pop() {
            return Some(piece);
        }
        pieces.0 = pieces.0.checked_sub(1)?;
        Some(vec![0; PIECE].into_boxed_slice())
    }

    fn give_back(&self, back: &mut Vec<Box<[u8]>>) {
        lock(&self.0.pieces).1.append(back);
    }
}

/// Holds content until it is wanted: in memory while there is some, else in an unnamed temporary file.
#[derive(Debug)]
pub struct Spool {
    room: Room,
    pieces: Vec<Box<[u8]>>,
    file: Option<File>,
    length: u64,
}

impl Spool {
    /// An empty spool.
    pub fn new(room: &Room) -> Spool {
        Spool { room: room.clone(), pieces: Vec::new(), file: None, length: 0 }
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

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.room.give_back(&mut self.pieces);
        self.file = None;
        self.length = 0;
    }

    /// `size` bytes from `offset` on.
    pub fn part(&self, offset: u64, size: u64) -> Part<'_> {
        Part { spool: self, offset, size, at: 0 }
    }

    /// Reads at most `out.len()` bytes from `at` on.
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        match &self.file {
            Some(file) => file.read_at(out, at),
            None => {
                let at = at as usize;
                let Some(piece) = self.pieces.get(at / PIECE) else { return Ok(0) };
                let held = &piece[at % PIECE..];
                let count = held.len().min(out.len()).min(self.length as usize - at);
                out[..count].copy_from_slice(&held[..count]);
                Ok(count)
            }
        }
    }

    /// Moves what is in memory to a file.
    fn spill(&mut self) -> io::Result<&mut File> {
        let scratch = self.room.scratch();
        let mut file = tempfile::tempfile_in(scratch).map_err(cache::explained(scratch))?;
        let mut left = self.length as usize;
        for piece in &self.pieces {
            file.write_all(&piece[..left.min(PIECE)]).map_err(cache::explained(scratch))?;
            left = left.saturating_sub(PIECE);
        }
        self.room.give_back(&mut self.pieces);
        Ok(self.file.insert(file))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut count = bytes.len();
        if self.file.is_none() && count > 0 {
            let used = self.length as usize % PIECE;
            if used == 0 {
                match self.room.piece() {
                    Some(piece) => self.pieces.push(piece),
                    None => drop(self.spill()?),
                }
            }
            if let Some(piece) = self.pieces.last_mut() {
                count = count.min(PIECE - used);
                piece[used..used + count].copy_from_slice(&bytes[..count]);
            }
        }
        if let Some(file) = &mut self.file {
            count = file.write(bytes).map_err(cache::explained(self.room.scratch()))?;
        }
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.room.give_back(&mut self.pieces);
    }
}

/// A part of a [`Spool`].
#[derive(Debug)]
pub struct Part<'a> {
    spool: &'a Spool,
    offset: u64,
    size: u64,
    at: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(out.len());
        let count = self.spool.read_at(self.offset + self.at, &mut out[..left])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl elf::Bytes for Part<'_> {
    fn read_at(&self, at: u64, out: &mut [u8]) -> usize {
        let wanted = self.size.saturating_sub(at).min(out.len() as u64) as usize;
        let mut filled = 0;
        while filled < wanted {
            match self.spool.read_at(self.offset + at + filled as u64, &mut out[filled..wanted]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return 0,
            }
        }
        filled
    }
}

/// A spool as a reader that owns it, from its start.
#[derive(Debug)]
pub struct Whole {
    spool: Spool,
    at: u64,
}

impl Whole {
    /// Reads what a spool holds.
    pub fn new(spool: Spool) -> Whole {
        Whole { spool, at: 0 }
    }
}

impl Read for Whole {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.spool.read_at(self.at, out)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf::Bytes as _;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at * at % 251) as u8).collect()
    }

    #[test]
    fn what_goes_in_comes_out_wherever_it_is_held() {
        let folder = tempfile::tempdir().expect("a folder");
        for memory in [0, PIECE, 2 * PIECE, 8 * PIECE] {
            let room = Room::of(folder.path().into(), Cores::new(1), memory);
            let mut spool = Spool::new(&room);
            let (one, other) = (bytes(PIECE + 17), bytes(2 * PIECE));
            assert_eq!(spool.append(&mut one.as_slice()).expect("writes"), (0, one.len() as u64));
            let (start, length) = spool.append(&mut other.as_slice()).expect("writes");
            assert_eq!((start, length), (one.len() as u64, other.len() as u64));
            assert_eq!(spool.file.is_some(), memory < 8 * PIECE);
            let mut read = Vec::new();
            spool.part(start, length).read_to_end(&mut read).expect("reads");
            assert!(read == other, "{memory}");
            let mut across = vec![0; PIECE];
            let part = spool.part(5, PIECE as u64 + 100);
            assert_eq!(elf::Bytes::read_at(&part, 90, &mut across), PIECE);
            assert!(across == [&one[95..], &other[..PIECE + 95 - one.len()]].concat());
            assert_eq!(part.read_at(PIECE as u64 + 90, &mut across), 10);
            let mut read = Vec::new();
            Whole::new(spool).read_to_end(&mut read).expect("reads");
            assert!(read == [one, other].concat());
        }
    }

    #[test]
    fn all_spools_together_hold_no_more_memory_than_the_room_has() {
        let folder = tempfile::tempdir().expect("a folder");
        let room = Room::of(folder.path().into(), Cores::new(1), 4 * PIECE);
        let mut spools: Vec<Spool> = (0..3).map(|_| Spool::new(&room)).collect();
        for _ in 0..2 {
            for spool in &mut spools {
                spool.append(&mut bytes(PIECE).as_slice()).expect("writes");
            }
        }
        let held = |spools: &[Spool]| spools.iter().map(|spool| spool.pieces.len()).sum::<usize>();
        assert_eq!(held(&spools), 4);
        assert_eq!(spools.iter().filter(|spool| spool.file.is_some()).count(), 1);
        spools.truncate(1);
        let mut more = Spool::new(&room);
        more.append(&mut bytes(2 * PIECE).as_slice()).expect("writes");
        assert!(more.file.is_none(), "what others held is free again");
        assert_eq!(room.0.pieces.lock().expect("nobody panics").1.len(), 0);
    }
}
