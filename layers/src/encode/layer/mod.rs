//! Layers: a skeleton of directories, fragments behind it, and an end.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead as _, Read, Write};

use sha2::{Digest as _, Sha256};

use super::ahead::{Ahead, Held, Order, Take};
use super::compression::{Compression, Recoder};
use super::entry::Entry;
use super::fragment::{FragmentLayout, Lend, Member};
use super::gzip::{self, MEMBER_SIZE, MemberEncoder, TarReader, unreadable};
use super::prefix::Prefixes;
use super::tar::write_header;
use super::{EncodeError, WORTHWHILE};
use crate::digest::{DiffId, Digest};

/// The names of a finished layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDigests {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// Compressed bytes.
    pub size: u64,
}

/// A cached fragment that a layer is made of.
pub struct Source<'a> {
    /// How it is laid out.
    pub layout: &'a FragmentLayout,
    /// The digest that its bytes should have.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Box<dyn Read + 'a>,
    /// The tar of its members that is in memory, or will be, by their places: they need not be inflated. It is checked against the
    /// members' check sums by whoever holds it; the bytes are still compared with the digest.
    pub held: HashMap<usize, Held>,
}

/// The end of an archive: two blocks of zeros (POSIX.1-2017, pax, "ustar Interchange Format").
const END: [u8; 1024] = [0; 1024];

/// Writes a layer and hashes it, compressed and uncompressed, on the way.
pub struct LayerWriter<W> {
    out: Hashed<W>,
    uncompressed: Sha256,
    recoder: Option<Recoder>,
    lend: Option<Lend>,
    known: Prefixes,
}

struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

impl<W: Write + Send> LayerWriter<W> {
    /// Starts a layer with its directories, which must be sorted by path, unique, and complete: every parent of every path
    /// of the layer, the root excepted.
    pub fn new(out: W, compression: Compression, skeleton: &[Entry]) -> Result<LayerWriter<W>, EncodeError> {
        let mut writer = LayerWriter {
            out: Hashed { inner: out, hasher: Sha256::new(), size: 0 },
            uncompressed: Sha256::new(),
            recoder: Recoder::new(compression)?,
            lend: None,
            known: Prefixes::default(),
        };
        let mut headers = Vec::new();
        for (at, entry) in skeleton.iter().enumerate() {
            if at > 0 && skeleton[at - 1].path >= entry.path {
                let same = skeleton[at - 1].path == entry.path;
                let path = entry.path.clone();
                return Err(if same { EncodeError::Duplicate(path) } else { EncodeError::Order(path) });
            }
            write_header(&mut headers, entry);
        }
        let mut encoder = MemberEncoder::new();
        for chunk in headers.chunks(MEMBER_SIZE) {
            writer.tar(chunk, &mut encoder)?;
        }
        Ok(writer)
    }

    /// Works on a second core where `lend` has one. The bytes are the same.
    pub fn with_help(self, lend: Lend) -> LayerWriter<W> {
        LayerWriter { lend: Some(lend), ..self }
    }

    /// Says what the tar of the first fragments came to in another layer of this skeleton that begins with them: they are not
    /// inflated. What is recoded is, all of it.
    pub fn behind(self, known: Prefixes) -> LayerWriter<W> {
        LayerWriter { known, ..self }
    }

    /// Appends cached fragments and ends the layer, inflating each fragment once for the diff id; damage is noticed. `tar_sizes` says
    /// how much tar each of them holds, bytes. Returns what their tar came to on the way, too.
    ///
    /// `packed` gets the compressed layer, its digest and its length as soon as these are known, which may be before its tar is
    /// hashed: should that fail, there is no layer.
    pub fn finish<'a, T, E: From<EncodeError>>(
        self,
        tar_sizes: &[u64],
        sources: impl Iterator<Item = Result<Source<'a>, E>>,
        packed: impl FnOnce(W, Digest, u64) -> Result<T, E>,
    ) -> Result<(T, LayerDigests, Prefixes), E> {
        let LayerWriter { out, mut uncompressed, recoder, lend, known } = self;
        let mut prefixes = Prefixes::default();
        if recoder.is_none()
            && known.len() <= tar_sizes.len()
            && let Some(hasher) = known.last()
        {
            (uncompressed, prefixes) = (hasher, known);
        }
        let hashed = prefixes.len();
        let rest = &tar_sizes[hashed..];
        // The fragments' bytes are the layer's, or else the recoder writes those.
        let (mut plain, mut recoded) = match recoder {
            None => (Some(out), None),
            Some(recoder) => (None, Some((recoder, out))),
        };
        let mut packed = Some(packed);
        let mut done = |out: Hashed<W>| {
            let (digest, size) = (Digest::from_bytes(out.hasher.finalize().into()), out.size);
            let packed = packed.take().expect("a layer is complete once");
            Ok::<_, E>((packed(out.inner, digest, size)?, digest, size))
        };
        let recoding = recoded.as_mut().map(|(recoder, out)| (recoder, out));
        let ahead = Ahead::new(Tar::new(&mut uncompressed, recoding, rest, &mut prefixes));
        let early = std::thread::scope(|scope| {
            let help = || {
                let Some(core) = lend.as_ref().and_then(|lend| lend()) else { return false };
                let helper = || {
                    let _core = core;
                    ahead.help();
                };
                std::thread::Builder::new().spawn_scoped(scope, helper).is_ok()
            };
            let mut appender =
                Packed { out: plain.as_mut(), ahead: &ahead, order: ahead.order(), left: rest.iter().sum() };
            for (at, source) in sources.enumerate() {
                let mut append = |source| match at < hashed {
                    true => appender.hashed_fragment(source),
                    false => appender.fragment(source, &help),
                };
                if let Err(error) = source.and_then(|source| Ok(append(source)?)) {
                    // What was begun before comes first.
                    appender.order.finish()?;
                    return Err(error);
                }
            }
            appender.seek(&help);
            let mut order = appender.order;
            let early = match plain.take() {
                Some(mut out) => {
                    out.put(MemberEncoder::new().encode(&END)).map_err(EncodeError::from)?;
                    Some(done(out)?)
                }
                None => None,
            };
            order.finish()?;
            Ok::<_, E>(early)
        })?;
        uncompressed.update(END);
        let (out, digest, size) = match (early, recoded) {
            (Some(early), _) => early,
            (None, Some((mut recoder, mut out))) => {
                let end = || {
                    recoder.push(&END, &mut |bytes| out.put(bytes))?;
                    recoder.finish(&mut |bytes| out.put(bytes))
                };
                end().map_err(EncodeError::from)?;
                done(out)?
            }
            (None, None) => unreachable!("what is not recoded is complete by now"),
        };
        let diff_id = DiffId(Digest::from_bytes(uncompressed.finalize().into()));
        Ok((out, LayerDigests { digest, diff_id, size }, prefixes))
    }

    /// Writes what is in no fragment.
    fn tar(&mut self, bytes: &[u8], encoder: &mut MemberEncoder) -> Result<(), EncodeError> {
        self.uncompressed.update(bytes);
        match &mut self.recoder {
            Some(recoder) => recoder.push(bytes, &mut |bytes| self.out.put(bytes))?,
            None => self.out.put(encoder.encode(bytes))?,
        }
        Ok(())
    }
}

/// Where the tar of a layer goes.
struct Tar<'a, W> {
    uncompressed: &'a mut Sha256,
    recoded: Option<(&'a mut Recoder, &'a mut Hashed<W>)>,
    /// The tar of each fragment that is not complete yet, but of the last: how much of it is left, bytes.
    left: VecDeque<u64>,
    prefixes: &'a mut Prefixes,
}

impl<'a, W: Write> Tar<'a, W> {
    fn new(
        uncompressed: &'a mut Sha256,
        recoded: Option<(&'a mut Recoder, &'a mut Hashed<W>)>,
        tar_sizes: &[u64],
        prefixes: &'a mut Prefixes,
    ) -> Tar<'a, W> {
        let but_the_last = tar_sizes.split_last().map_or(&[][..], |(_, others)| others);
        Tar { uncompressed, recoded, left: but_the_last.iter().copied().collect(), prefixes }
    }

    fn piece(&mut self, tar: &[u8]) -> Result<(), EncodeError> {
        // One that holds nothing is complete as it begins.
        while self.left.front() == Some(&0) {
            self.left.pop_front();
            self.prefixes.push(self.uncompressed);
        }
        self.uncompressed.update(tar);
        if let Some(left) = self.left.front_mut() {
            match left.checked_sub(tar.len() as u64) {
                Some(rest) => *left = rest,
                // Not what was said: nothing is known of where fragments end.
                None => self.left.clear(),
            }
        }
        if let Some((recoder, out)) = &mut self.recoded {
            recoder.push(tar, &mut |bytes| out.put(bytes))?;
        }
        Ok(())
    }
}

impl<W: Write> Take for Tar<'_, W> {
    fn take(&mut self, member: Member, tar: &[u8]) -> Result<(), EncodeError> {
        tar.chunks(gzip::piece_size(member)).try_for_each(|piece| self.piece(piece))
    }
}

/// Where the bytes of fragments go, and what is begun with them.
struct Packed<'o, 'a, 't, W: Write> {
    out: Option<&'o mut Hashed<W>>,
    ahead: &'a Ahead<Tar<'t, W>>,
    order: Order<'a, Tar<'t, W>>,
    /// Tar of members that are not begun yet, bytes.
    left: u64,
}

impl<W: Write> Packed<'_, '_, '_, W> {
    /// Has a second thread help where enough is left to do.
    fn seek(&mut self, help: &dyn Fn() -> bool) {
        if !self.order.is_helped() && self.left + self.order.tar() >= WORTHWHILE && help() {
            self.order.helped();
        }
    }

    /// Appends one fragment, with the help of a second thread once there is one. What is still in flight when it returns lies in
    /// the order.
    fn fragment(&mut self, source: Source<'_>, help: &dyn Fn() -> bool) -> Result<(), EncodeError> {
        let Source { layout, digest, mut bytes, mut held } = source;
        let mut own = Sha256::new();
        for (at, &member) in layout.members.iter().enumerate() {
            self.seek(help);
            self.left = self.left.saturating_sub(u64::from(member.tar));
            let mut raw = Raw { bytes: &mut *bytes, own: &mut own, out: self.out.as_deref_mut() };
            let is_it = |held: &Held| held.length() == member.tar as usize;
            if let Some(held) = held.remove(&at).filter(is_it) {
                self.order.begin_held(member, held)?;
                raw.pass(u64::from(member.compressed))?;
            } else if self.order.takes(member) {
                self.order.begin(member, |packed| raw.read_exact(packed).map_err(unreadable))?;
            } else {
                self.order.finish()?;
                let mut tar = TarReader::new(raw, std::iter::once(member));
                let mut taker = self.ahead.taker();
                loop {
                    let piece = tar.fill_buf().map_err(unreadable)?;
                    if piece.is_empty() {
                        break;
                    }
                    taker.piece(piece)?;
                    let length = piece.len();
                    tar.consume(length);
                }
            }
        }
        is_whole(own, digest, &mut bytes)
    }

    /// Appends one fragment whose tar is hashed already.
    fn hashed_fragment(&mut self, source: Source<'_>) -> Result<(), EncodeError> {
        let Source { layout, digest, mut bytes, .. } = source;
        let mut own = Sha256::new();
        Raw { bytes: &mut *bytes, own: &mut own, out: self.out.as_deref_mut() }.pass(layout.size)?;
        is_whole(own, digest, &mut bytes)
    }
}

/// Whether the bytes of a fragment were what its digest says, and nothing comes behind them.
fn is_whole(own: Sha256, digest: Digest, bytes: &mut dyn Read) -> Result<(), EncodeError> {
    if Digest::from_bytes(own.finalize().into()) != digest {
        return Err(EncodeError::Damaged("its bytes are not what its digest says"));
    }
    if bytes.read(&mut [0])? != 0 {
        return Err(EncodeError::Damaged("it is longer than its index says"));
    }
    Ok(())
}

/// Passes a fragment's bytes on as they are read: to its own hash, and to the layer where they are the layer's too.
struct Raw<'a, W> {
    bytes: &'a mut dyn Read,
    own: &'a mut Sha256,
    out: Option<&'a mut Hashed<W>>,
}

impl<W: Write> Raw<'_, W> {
    /// Reads so many bytes, of which nothing else is wanted.
    fn pass(self, length: u64) -> Result<(), EncodeError> {
        match io::copy(&mut self.take(length), &mut io::sink())? {
            copied if copied == length => Ok(()),
            _ => Err(unreadable(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl<W: Write> Read for Raw<'_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        self.own.update(&buffer[..count]);
        if let Some(out) = &mut self.out {
            out.put(&buffer[..count])?;
        }
        Ok(count)
    }
}
