//! Fragments: one archive's files as compressed tar, to be concatenated into layers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde::{Deserialize, Serialize};

use super::EncodeError;
use super::entry::{Entry, Kind};
use super::gzip::{self, MEMBER_SIZE, MemberEncoder};
use super::tar::{padding, write_header};
use crate::path::ImagePath;

/// One gzip member of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Compressed bytes.
    pub compressed: u32,
    /// Bytes of tar it holds.
    pub tar: u32,
}

/// How a fragment is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentLayout {
    /// Its members, in order.
    pub members: Vec<Member>,
    /// Bytes of tar, a multiple of 512.
    pub tar_size: u64,
    /// Compressed bytes.
    pub size: u64,
}

/// A file's content as a raw deflate stream (RFC 1951).
///
/// The writer copies it unseen: who calls has inflated it, and found that it ends exactly at its length, after one final
/// block, and that the content's CRC-32 and length are these. That is part of the layer format's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateStream {
    /// Length of the stream, bytes.
    pub compressed: u32,
    /// CRC-32 of the content.
    pub crc32: u32,
}

impl DeflateStream {
    /// A stream that is transplanted rather than compressed anew: `None` where the content is small (its neighbours help to
    /// compress it) or too large for a member.
    pub fn worthwhile(size: u64, compressed: u64, crc32: u32) -> Option<DeflateStream> {
        let fits = u32::try_from(size).is_ok() && compressed < u64::from(u32::MAX - gzip::AROUND);
        (fits && size >= gzip::TRANSPLANT_SIZE).then_some(DeflateStream { compressed: compressed as u32, crc32 })
    }
}

/// A batch is at least so long, bytes of tar, if nothing but a path ends it.
const SHORTEST: usize = MEMBER_SIZE / 4;

/// Whether a batch ends before the entry of this path: before one of 64.
fn is_cut(path: &ImagePath) -> bool {
    crc32fast::hash(path.as_str().as_bytes()).is_multiple_of(64)
}

/// Writes a fragment: entries sorted by path, each with its content; then those whose deflate stream is transplanted,
/// sorted as well. Apart, because every transplanted stream ends the member before it.
pub struct FragmentWriter<W> {
    out: W,
    encoder: MemberEncoder,
    pending: Vec<u8>,
    layout: FragmentLayout,
    written: u64,
    last: Option<ImagePath>,
    transplanting: bool,
    paths: BTreeSet<ImagePath>,
    files: BTreeSet<ImagePath>,
    lend: Option<Lend>,
    helper: Option<Helper>,
    keep: Option<Keep>,
    reuse: Option<Reuse>,
}

/// What became of a deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transplanted {
    /// Where its content starts in the fragment's tar, bytes.
    pub offset: u64,
    /// Its member, by its place in the layout.
    pub member: usize,
    /// CRC-32 of the stream's own bytes.
    pub packed_crc32: u32,
}

/// Keeps the tar of a member, which is at this place in the layout, or gives it back.
pub type Keep = Box<dyn FnMut(usize, Vec<u8>) -> Option<Vec<u8>>>;

/// The gzip member that holds this tar, where somebody has it just as it is compressed here.
pub type Reuse = Box<dyn FnMut(&[u8]) -> Option<Vec<u8>>>;

/// Lends a core that nobody else works with: whoever has what it gives may work on a thread more, until that is dropped.
pub type Lend = Box<dyn Fn() -> Option<Box<dyn Send>>>;

/// A thread that compresses one member while the next one is gathered.
struct Helper {
    /// The tar of a member, and the core that it is compressed on.
    work: Sender<(Vec<u8>, Box<dyn Send>)>,
    /// The same tar, to be written over, and the member.
    done: Receiver<(Vec<u8>, Vec<u8>)>,
    /// Whether it has work.
    is_busy: bool,
    /// A buffer that comes next.
    spare: Vec<u8>,
}

impl Helper {
    /// `None` where there are no threads left.
    fn new() -> Option<Helper> {
        let (work, todo) = channel::<(Vec<u8>, Box<dyn Send>)>();
        let (ready, done) = channel();
        let started = std::thread::Builder::new().spawn(move || {
            let mut encoder = MemberEncoder::new();
            // It ends when the writer is gone.
            for (tar, core) in todo {
                let member = encoder.encode(&tar).to_vec();
                drop(core);
                if ready.send((tar, member)).is_err() {
                    break;
                }
            }
        });
        started.ok().map(|_| Helper { work, done, is_busy: false, spare: Vec::with_capacity(MEMBER_SIZE) })
    }
}

impl<W: Write> FragmentWriter<W> {
    /// Starts a fragment.
    pub fn new(out: W) -> FragmentWriter<W> {
        FragmentWriter {
            out,
            encoder: MemberEncoder::new(),
            pending: Vec::with_capacity(MEMBER_SIZE),
            layout: FragmentLayout::default(),
            written: 0,
            last: None,
            transplanting: false,
            paths: BTreeSet::new(),
            files: BTreeSet::new(),
            lend: None,
            helper: None,
            keep: None,
            reuse: None,
        }
    }

    /// Compresses on a second core where `lend` has one. The bytes are the same.
    pub fn with_help(self, lend: Lend) -> FragmentWriter<W> {
        FragmentWriter { lend: Some(lend), ..self }
    }

    /// Shows `keep` the tar of all members that are compressed here.
    pub fn with_keeper(self, keep: Keep) -> FragmentWriter<W> {
        FragmentWriter { keep: Some(keep), ..self }
    }

    /// Asks `reuse` before a member is compressed.
    pub fn with_reuse(self, reuse: Reuse) -> FragmentWriter<W> {
        FragmentWriter { reuse: Some(reuse), ..self }
    }

    /// Adds an entry and, for a regular file, exactly its size in bytes of `content`.
    /// Returns where the content starts in the fragment's tar, in bytes.
    pub fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<u64, EncodeError> {
        if self.transplanting {
            return Err(EncodeError::Order(entry.path.clone()));
        }
        self.enter(entry)?;
        // A file that grew or came moves the ends behind it only up to the first path that ends a batch with and without it.
        if self.pending.len() >= SHORTEST && is_cut(&entry.path) {
            self.flush()?;
        }
        match &entry.kind {
            Kind::Dir => return Err(EncodeError::Directory(entry.path.clone())),
            Kind::Hardlink { target } if !self.files.contains(target) => {
                return Err(EncodeError::Hardlink { path: entry.path.clone(), target: target.clone() });
            }
            Kind::File { .. } => {
                self.files.insert(entry.path.clone());
            }
            _ => {}
        }
        let mut header = Vec::with_capacity(512);
        write_header(&mut header, entry);
        self.push(&header)?;
        let start = self.position();
        if let Kind::File { size } = entry.kind {
            self.copy(&entry.path, size, content)?;
            self.push(&[0; 512][..padding(size)])?;
        }
        Ok(start)
    }

    /// Adds a regular file whose content is a deflate stream already.
    pub fn transplant(
        &mut self,
        entry: &Entry,
        stream: DeflateStream,
        bytes: &mut dyn Read,
    ) -> Result<Transplanted, EncodeError> {
        if !std::mem::replace(&mut self.transplanting, true) {
            self.last = None;
        }
        self.enter(entry)?;
        let Kind::File { size } = entry.kind else { return Err(EncodeError::Stream(entry.path.clone())) };
        let tar = u32::try_from(size).map_err(|_| EncodeError::Stream(entry.path.clone()))?;
        let mut header = Vec::with_capacity(512);
        write_header(&mut header, entry);
        self.push(&header)?;
        self.flush()?;
        self.settle()?;
        let offset = self.position();
        self.out.write_all(&gzip::header())?;
        let mut out = Summed { out: &mut self.out, crc: crc32fast::Hasher::new() };
        let copied = std::io::copy(&mut bytes.take(u64::from(stream.compressed)), &mut out)?;
        let packed_crc32 = out.crc.finalize();
        if copied != u64::from(stream.compressed) {
            return Err(EncodeError::Stream(entry.path.clone()));
        }
        self.out.write_all(&gzip::trailer(stream.crc32, tar))?;
        let member = self.layout.members.len();
        self.layout.members.push(Member { compressed: stream.compressed + gzip::AROUND, tar });
        self.written += size;
        self.push(&[0; 512][..padding(size)])?;
        Ok(Transplanted { offset, member, packed_crc32 })
    }

    /// Checks that an entry may come next.
    fn enter(&mut self, entry: &Entry) -> Result<(), EncodeError> {
        let path = &entry.path;
        if !self.paths.insert(path.clone()) {
            return Err(EncodeError::Duplicate(path.clone()));
        }
        if self.last.as_ref().is_some_and(|last| last > path) {
            return Err(EncodeError::Order(path.clone()));
        }
        self.last = Some(path.clone());
        Ok(())
    }

    /// Finishes the last member.
    pub fn finish(mut self) -> Result<(W, FragmentLayout), EncodeError> {
        self.flush()?;
        self.settle()?;
        self.layout.tar_size = self.written;
        self.layout.size = self.layout.members.iter().map(|member| u64::from(member.compressed)).sum();
        Ok((self.out, self.layout))
    }

    fn position(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    fn copy(&mut self, path: &ImagePath, size: u64, content: &mut dyn Read) -> Result<(), EncodeError> {
        let mut left = size;
        while left > 0 {
            if self.pending.len() == MEMBER_SIZE {
                self.flush()?;
            }
            let start = self.pending.len();
            let room = (MEMBER_SIZE - start).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.pending.resize(start + room, 0);
            let mut filled = 0;
            while filled < room {
                match content.read(&mut self.pending[start + filled..]) {
                    Ok(0) => {
                        return Err(EncodeError::Size {
                            path: path.clone(),
                            expected: size,
                            found: size - left + filled as u64,
                        });
                    }
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            left -= room as u64;
        }
        if content.read(&mut [0])? != 0 {
            return Err(EncodeError::Size { path: path.clone(), expected: size, found: size + 1 });
        }
        Ok(())
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), EncodeError> {
        while !bytes.is_empty() {
            if self.pending.len() == MEMBER_SIZE {
                self.flush()?;
            }
            let count = bytes.len().min(MEMBER_SIZE - self.pending.len());
            self.pending.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Ends the member that is gathered.
    fn flush(&mut self) -> Result<(), EncodeError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.written += self.pending.len() as u64;
        if let Some(member) = self.reuse.as_mut().and_then(|reuse| reuse(&self.pending)) {
            self.settle()?;
            write_member(&mut self.out, &mut self.layout, &member, self.pending.len() as u32)?;
            keep_or_clear(&mut self.pending, &self.layout, &mut self.keep);
            return Ok(());
        }
        let is_busy = self.helper.as_ref().is_some_and(|helper| helper.is_busy);
        if !is_busy
            && self.pending.len() >= SHORTEST
            && let Some(core) = self.lend.as_ref().and_then(|lend| lend())
            && let Some(helper) = helper_of(&mut self.helper)
        {
            let tar = std::mem::replace(&mut self.pending, std::mem::take(&mut helper.spare));
            helper.work.send((tar, core)).expect("a helper lives as long as its writer");
            helper.is_busy = true;
            return Ok(());
        }
        // What the helper has stands before this one.
        let member = self.encoder.encode(&self.pending);
        settle(&mut self.helper, &mut self.out, &mut self.layout, &mut self.keep)?;
        write_member(&mut self.out, &mut self.layout, member, self.pending.len() as u32)?;
        keep_or_clear(&mut self.pending, &self.layout, &mut self.keep);
        Ok(())
    }

    /// Writes what the helper has.
    fn settle(&mut self) -> Result<(), EncodeError> {
        settle(&mut self.helper, &mut self.out, &mut self.layout, &mut self.keep)
    }
}

/// Sums up what is written.
struct Summed<'a, W> {
    out: &'a mut W,
    crc: crc32fast::Hasher,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.crc.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// The helper, started where there is none.
fn helper_of(helper: &mut Option<Helper>) -> Option<&mut Helper> {
    if helper.is_none() {
        *helper = Helper::new();
    }
    helper.as_mut()
}

fn settle(
    helper: &mut Option<Helper>,
    out: &mut impl Write,
    layout: &mut FragmentLayout,
    keep: &mut Option<Keep>,
) -> Result<(), EncodeError> {
    let Some(helper) = helper.as_mut().filter(|helper| helper.is_busy) else { return Ok(()) };
    let (mut tar, member) = helper.done.recv().expect("a helper answers all that it is sent");
    helper.is_busy = false;
    write_member(out, layout, &member, tar.len() as u32)?;
    keep_or_clear(&mut tar, layout, keep);
    helper.spare = tar;
    Ok(())
}

/// Empties the tar of the last member; its keeper may have it.
fn keep_or_clear(tar: &mut Vec<u8>, layout: &FragmentLayout, keep: &mut Option<Keep>) {
    if let Some(keep) = keep {
        let given_back = keep(layout.members.len() - 1, std::mem::take(tar));
        *tar = given_back.unwrap_or_else(|| Vec::with_capacity(MEMBER_SIZE));
    }
    tar.clear();
}

fn write_member(out: &mut impl Write, layout: &mut FragmentLayout, member: &[u8], tar: u32) -> Result<(), EncodeError> {
    out.write_all(member)?;
    layout.members.push(Member { compressed: member.len() as u32, tar });
    Ok(())
}
