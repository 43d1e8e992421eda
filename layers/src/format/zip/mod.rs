//! A strict zip reader (APPNOTE 6.3.10), driven by the central directory and checked against everything else.
//!
//! A zip tells most facts twice and readers differ in which of the two they believe. Here both must agree: each local
//! header repeats its central one, entries follow each other without gaps or overlaps, and nothing stands before the first
//! or behind the end. Entries are stored or deflated files and directories; names are relative, normal UTF-8 and unique.
//! Encryption, links, other methods and archives in parts are refused.

mod directory;
mod local;
mod name;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use super::{FormatError, Limits};
use crate::encode::{BEFORE, TRAILER, inflate_stream};
use crate::path::ImagePath;

const FORMAT: &str = "zip archive";

fn malformed(at: u64, why: impl Into<String>) -> FormatError {
    FormatError::Malformed { format: FORMAT, at, why: why.into() }
}

fn refused(name: &str, why: impl Into<String>) -> FormatError {
    FormatError::Entry { format: FORMAT, name: super::error::lossy(name.as_bytes()), why: why.into() }
}

/// How an entry's content is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// As it is.
    Stored,
    /// A raw deflate stream (RFC 1951).
    Deflated,
}

/// What the archive says about one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZipEntry {
    /// The name as written; a directory's ends with `/`.
    pub name: String,
    /// The same as a path below the place where the archive is unpacked.
    pub path: ImagePath,
    /// File type and permission bits as Unix writers leave them; `None` if there are none. A type, if there is one, is
    /// that of a regular file or of a directory.
    pub mode: Option<u32>,
    /// Seconds since 1970-01-01 UTC: the DOS time read as UTC, and 1980-01-01 where it names no date.
    pub mtime: i64,
    /// CRC-32 of the content.
    pub crc32: u32,
    /// Length of the packed content in bytes.
    pub compressed_size: u64,
    /// Length of the content in bytes.
    pub size: u64,
    /// How it is packed.
    pub method: Method,
    data_offset: u64,
}

impl ZipEntry {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.name.ends_with('/')
    }

    /// Whether this is marked as a regular file that somebody may execute; pip's rule, which wants the file type said.
    pub fn is_executable(&self) -> bool {
        self.mode.is_some_and(|mode| mode & 0o170_000 == 0o100_000 && mode & 0o111 != 0)
    }

    /// Where the packed content starts in the archive.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }
}

/// What becomes of bytes that stand behind a deflate stream, within the packed content of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tails {
    /// The entry is [refused](FormatError::Tail).
    Refused,
    /// They are passed over, as Python's `zipfile` does, and pip with it: the content is what has the entry's size and CRC-32.
    PassedOver,
}

/// What an archive says of its entries, all of it checked. Clones are the same.
#[derive(Debug, Clone)]
pub struct Directory {
    entries: Arc<Vec<ZipEntry>>,
    tails: Tails,
}

impl Directory {
    /// Opens the archive once more, of which nothing is read now. Should `file` be another one, its content is not what this says.
    pub fn open<R>(&self, file: R) -> Archive<R> {
        let (inflater, whole) = (flate2::Decompress::new(false), libdeflater::Decompressor::new());
        Archive { file, entries: self.entries.clone(), tails: self.tails, inflater, whole }
    }
}

/// An archive whose structure is checked. Content is checked as it is read.
pub struct Archive<R> {
    file: R,
    entries: Arc<Vec<ZipEntry>>,
    tails: Tails,
    /// Used again for every entry: most are small, and a new one is 50 kB to clear.
    inflater: flate2::Decompress,
    /// The same for those that are inflated as a whole.
    whole: libdeflater::Decompressor,
}

impl<R: Read + Seek> Archive<R> {
    /// Reads the central directory and every local header. Tails are refused.
    pub fn open(mut file: R, limits: &Limits) -> Result<Archive<R>, FormatError> {
        let (directory, start) = directory::read(&mut file, limits)?;
        let entries = local::check(&mut file, directory, start)?;
        name::check_unique(&entries)?;
        let mut total = 0u64;
        for entry in &entries {
            total = total.saturating_add(entry.size);
        }
        if total > limits.max_output {
            let limit = limits.max_output;
            return Err(FormatError::Limit { format: FORMAT, what: "the size of its content in bytes", limit });
        }
        Ok(Directory { entries: Arc::new(entries), tails: Tails::Refused }.open(file))
    }

    /// The same archive, which treats tails like this.
    pub fn with(self, tails: Tails) -> Archive<R> {
        Archive { tails, ..self }
    }

    /// Whether the stream of a deflated entry ends where its packed content does: reads all of it, and checks it as
    /// [`reader`](Self::reader) does.
    pub fn ends_exactly(&mut self, index: usize) -> Result<bool, FormatError> {
        let mut reader = self.reader(index)?;
        io::copy(&mut reader, &mut io::sink())?;
        Ok(!reader.has_tail())
    }

    /// What it says, for who opens it once more.
    pub fn directory(&self) -> Directory {
        Directory { entries: self.entries.clone(), tails: self.tails }
    }

    /// The entries in the central directory's order.
    pub fn entries(&self) -> &[ZipEntry] {
        &self.entries
    }

    /// The index of the entry with this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.name == name)
    }

    /// The packed content of an entry: for [`Method::Deflated`] a raw deflate stream. Nothing is checked.
    pub fn raw(&mut self, index: usize) -> Result<io::Take<&mut R>, FormatError> {
        let entry = &self.entries[index];
        self.file.seek(SeekFrom::Start(entry.data_offset))?;
        Ok(self.file.by_ref().take(entry.compressed_size))
    }

    /// The content of an entry. Size and CRC-32 are checked when its end is read: content that was not read to an end of
    /// file was not checked.
    pub fn reader(&mut self, index: usize) -> Result<EntryReader<'_, R>, FormatError> {
        let entry = self.entries[index].clone();
        self.file.seek(SeekFrom::Start(entry.data_offset))?;
        let capacity = usize::try_from(entry.compressed_size).unwrap_or(usize::MAX).clamp(1, 64 << 10);
        let raw = BufReader::with_capacity(capacity, self.file.by_ref().take(entry.compressed_size));
        let packed = match entry.method {
            Method::Stored => Packed::Stored(raw),
            Method::Deflated => {
                self.inflater.reset(false);
                Packed::Deflated(Inflater { raw, state: &mut self.inflater, ended: false })
            }
        };
        let (tails, crc) = (self.tails, crc32fast::Hasher::new());
        Ok(EntryReader { packed, entry, tails, crc, produced: 0, state: State::Reading })
    }

    /// The whole content of an entry, checked. It is held in memory: compare [`ZipEntry::size`] with what that may take.
    pub fn read(&mut self, index: usize) -> Result<Vec<u8>, FormatError> {
        let mut content = Vec::new();
        self.reader(index)?.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Inflates a deflated entry into `content`, which has its size, and checks it as [`reader`](Self::reader) does; faster, as
    /// it is all in memory: compare [`ZipEntry::compressed_size`] with what that may take. `packed` is written over.
    ///
    /// Returns the CRC-32 of the stream's own bytes, and `None` where they had to be read again or something stands behind them. Codes that no compressor writes
    /// pass here (more symbols than RFC 1951 has, a distance tree of one symbol or none that is used beyond it).
    pub fn inflate(
        &mut self,
        index: usize,
        packed: &mut Vec<u8>,
        content: &mut [u8],
    ) -> Result<Option<u32>, FormatError> {
        let ZipEntry { crc32, compressed_size, .. } = self.entries[index];
        packed.clear();
        packed.reserve_exact(BEFORE + usize::try_from(compressed_size).unwrap_or(usize::MAX / 2) + TRAILER);
        packed.resize(BEFORE, 0);
        self.raw(index)?.read_to_end(packed)?;
        let packed_crc32 = crc32fast::hash(&packed[BEFORE..]);
        if inflate_stream(&mut self.whole, packed, crc32, content) {
            return Ok(Some(packed_crc32));
        }
        // The other decoder says what is wrong, if anything is.
        let mut reader = self.reader(index)?;
        let short = refused(&reader.entry.name, format!("it has not the {} bytes that were asked for", content.len()));
        match reader.read_exact(content) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(short),
            read => read?,
        }
        match reader.read(&mut [0])? {
            0 => Ok(None),
            _ => Err(short),
        }
    }

    /// Writes the content of an entry to `out` and checks it. On an error, what was written is worthless.
    pub fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError> {
        let length = usize::try_from(self.entries[index].size).unwrap_or(usize::MAX);
        let mut reader = self.reader(index)?;
        let mut buffer = vec![0; length.saturating_add(1).min(64 << 10)];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(reader.produced),
                Ok(length) => out.write_all(&buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

type Raw<'a, R> = BufReader<io::Take<&'a mut R>>;

enum Packed<'a, R> {
    Stored(Raw<'a, R>),
    Deflated(Inflater<'a, Raw<'a, R>>),
}

/// A raw deflate stream that must come to its own end: flate2's reader takes the end of the input for it.
struct Inflater<'a, B> {
    raw: B,
    state: &'a mut flate2::Decompress,
    ended: bool,
}

impl<B: BufRead> Inflater<'_, B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Result<usize, String>> {
        while !self.ended {
            let input = self.raw.fill_buf()?;
            let cut = input.is_empty();
            let (consumed, produced) = (self.state.total_in(), self.state.total_out());
            let status = match self.state.decompress(input, buffer, flate2::FlushDecompress::None) {
                Ok(status) => status,
                Err(error) => return Ok(Err(error.to_string())),
            };
            let consumed = (self.state.total_in() - consumed) as usize;
            let produced = (self.state.total_out() - produced) as usize;
            self.raw.consume(consumed);
            self.ended = status == flate2::Status::StreamEnd;
            if produced > 0 {
                return Ok(Ok(produced));
            }
            if !self.ended && (cut || consumed == 0) {
                return Ok(Err("it has no end".to_owned()));
            }
        }
        Ok(Ok(0))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Checked,
    Failed,
}

/// The content of one entry; see [`Archive::reader`].
pub struct EntryReader<'a, R> {
    packed: Packed<'a, R>,
    entry: ZipEntry,
    tails: Tails,
    crc: crc32fast::Hasher,
    produced: u64,
    state: State,
}

impl<R: Read> EntryReader<'_, R> {
    /// At the end of the content: whether there is more behind its stream.
    fn has_tail(&self) -> bool {
        matches!(&self.packed, Packed::Deflated(inflater) if inflater.state.total_in() != self.entry.compressed_size)
    }

    /// At the end of the content: all that was announced is there, and nothing else.
    fn check(&mut self) -> Result<(), FormatError> {
        let entry = &self.entry;
        if self.tails == Tails::Refused && self.has_tail() {
            return Err(FormatError::Tail { format: FORMAT, name: super::error::lossy(entry.name.as_bytes()) });
        }
        if self.produced != entry.size {
            return Err(refused(&entry.name, format!("it has {} bytes, not {}", self.produced, entry.size)));
        }
        let crc = self.crc.clone().finalize();
        if crc != entry.crc32 {
            return Err(refused(&entry.name, format!("its CRC-32 is {crc:08x}, not {:08x}", entry.crc32)));
        }
        Ok(())
    }
}

impl<R: Read> Read for EntryReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.state {
            State::Checked => return Ok(0),
            State::Failed => return Err(refused(&self.entry.name, "it was read on after an error").into()),
            State::Reading if buffer.is_empty() => return Ok(0),
            State::Reading => {}
        }
        let result = match &mut self.packed {
            Packed::Stored(raw) => raw.read(buffer).map(Ok),
            Packed::Deflated(inflater) => inflater.read(buffer),
        };
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
            self.state = State::Failed;
        }
        let length =
            result?.map_err(|why| refused(&self.entry.name, format!("its deflate stream is broken: {why}")))?;
        if length == 0 {
            self.check()?;
            self.state = State::Checked;
            return Ok(0);
        }
        self.produced += length as u64;
        if self.produced > self.entry.size {
            let why = format!("it has more than the {} bytes it announces", self.entry.size);
            return Err(refused(&self.entry.name, why).into());
        }
        self.crc.update(&buffer[..length]);
        self.state = State::Reading;
        Ok(length)
    }
}
