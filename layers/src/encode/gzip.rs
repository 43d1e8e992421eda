//! Gzip members (RFC 1952) with nothing in them that varies: no name, no time, one compressor at one level.

use std::io::{self, BufRead, Read};
use std::mem::take;
use std::sync::{Mutex, PoisonError};

use flate2::{FlushDecompress, Status};
use libdeflater::{CompressionLvl, Compressor, Decompressor};

use super::EncodeError;
use super::fragment::Member;

/// How much tar goes into one gzip member that is compressed here, bytes. Members are compressed independently, so this
/// bounds memory, lets threads share a fragment, and lets a reader start in the middle; it costs about 0.1 % of size.
pub const MEMBER_SIZE: usize = 1 << 20;

/// Files of this many bytes and more keep the deflate stream that they have in their archive, as a gzip member of their
/// own. Smaller ones are compressed together: what they share is worth more than the time.
pub const TRANSPLANT_SIZE: u64 = 16 << 10;

/// Members up to this many bytes, packed and unpacked, are inflated as a whole, which is faster; others piece by piece.
const WHOLE: usize = 4 << 20;
const PIECE: usize = 256 << 10;

/// In what pieces [`TarReader`] gives a member's tar, bytes. What streams through a compressor depends on them.
pub(super) fn piece_size(member: Member) -> usize {
    if is_whole(member) { WHOLE } else { PIECE }
}

fn is_whole(member: Member) -> bool {
    member.compressed as usize <= WHOLE && member.tar as usize <= WHOLE
}

/// No flags, no time, unknown system (RFC 1952, section 2.3.1).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Bytes of what a member ends with: the CRC-32 and the length of its tar.
pub(crate) const TRAILER: usize = 8;

/// Bytes around the deflate stream of a member.
pub(super) const AROUND: u32 = (HEADER.len() + TRAILER) as u32;

/// What stands before a transplanted deflate stream.
pub(super) fn header() -> [u8; 10] {
    HEADER
}

/// What stands behind a transplanted deflate stream of content with this CRC-32 and length.
pub(super) fn trailer(crc32: u32, size: u32) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..4].copy_from_slice(&crc32.to_le_bytes());
    bytes[4..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Members of fewer bytes are always compressed.
const WORTH_A_LOOK: usize = MEMBER_SIZE / 4;
/// How much of a member tells whether compressing it is worth the time, bytes, near its start, in its middle and at its end.
const SAMPLE: usize = 16 << 10;
/// Where the first sample begins, bytes: behind the headers of a large file.
const FIRST: usize = 4 << 10;
/// The most bytes that a stored block holds (RFC 1951, section 3.2.4).
const BLOCK: usize = u16::MAX as usize;

/// Whether some bytes occur so much more often than others that a code of variable length would save a twentieth or so.
fn is_uneven(sample: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    sample.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    // Noise comes to one 256th of this, and for a sample of this length 2 % more.
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    10 * 256 * squares > 11 * (sample.len() as u64).pow(2)
}

/// What somebody was done with, for whoever needs such a thing next: memory that is used for the first time costs as much as what
/// is done with it.
struct Pool<T>(Mutex<Vec<T>>);

/// So many are kept, and no buffers that are longer.
const KEPT: usize = 4;
const LONGEST: usize = 2 << 20;

impl<T> Pool<T> {
    const fn new() -> Pool<T> {
        Pool(Mutex::new(Vec::new()))
    }

    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give(&self, it: T) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(it);
        }
    }
}

/// A buffer, or an empty one where it is long.
fn kept(buffer: &mut Vec<u8>) -> Vec<u8> {
    Some(take(buffer)).filter(|buffer| buffer.capacity() <= LONGEST).unwrap_or_default()
}

/// Compresses members one after another.
pub(super) struct MemberEncoder {
    /// There until it is dropped.
    compressor: Option<Compressor>,
    /// As long as the longest so far.
    buffer: Vec<u8>,
}

static ENCODERS: Pool<(Compressor, Vec<u8>)> = Pool::new();

impl MemberEncoder {
    pub(super) fn new() -> MemberEncoder {
        let (compressor, buffer) = ENCODERS.take().unwrap_or_else(|| {
            // A fifth to two fifths faster than level 6, for 0.6 to 1 % more bytes.
            let level = CompressionLvl::new(5).expect("5 is a level of libdeflate");
            (Compressor::new(level), Vec::new())
        });
        MemberEncoder { compressor: Some(compressor), buffer }
    }

    /// One whole gzip member that holds `data`.
    pub(super) fn encode(&mut self, data: &[u8]) -> &[u8] {
        if self.is_noise(data) {
            return self.store(data);
        }
        let compressor = self.compressor.as_mut().expect("it is there until this is dropped");
        let buffer = first(&mut self.buffer, compressor.gzip_compress_bound(data.len()));
        let length =
            compressor.gzip_compress(data, buffer).expect("the buffer has the size that the compressor asked for");
        &self.buffer[..length]
    }

    /// Whether compressing `data` would take long and save next to nothing, as where it is compressed or encrypted already: no byte
    /// of its samples is much more frequent than others, and none of them becomes a sixty-fourth shorter.
    fn is_noise(&mut self, data: &[u8]) -> bool {
        if data.len() < WORTH_A_LOOK {
            return false;
        }
        let starts = [FIRST, (data.len() - SAMPLE) / 2, data.len() - SAMPLE];
        let samples = starts.map(|start| &data[start..start + SAMPLE]);
        if samples.iter().any(|sample| is_uneven(sample)) {
            return false;
        }
        let compressor = self.compressor.as_mut().expect("it is there until this is dropped");
        // What does not fit is no shorter.
        let out = first(&mut self.buffer, SAMPLE - SAMPLE / 64);
        samples.iter().all(|sample| compressor.deflate_compress(sample, out).is_err())
    }

    /// One whole gzip member that holds `data` as it is.
    fn store(&mut self, data: &[u8]) -> &[u8] {
        let out = &mut self.buffer;
        out.clear();
        out.reserve_exact(data.len() + 5 * data.len().div_ceil(BLOCK) + AROUND as usize);
        out.extend(HEADER);
        let mut blocks = data.chunks(BLOCK).peekable();
        while let Some(block) = blocks.next() {
            let length = block.len() as u16;
            out.push(u8::from(blocks.peek().is_none()));
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend_from_slice(block);
        }
        out.extend(trailer(libdeflater::crc32(data), data.len() as u32));
        out
    }
}

impl Drop for MemberEncoder {
    fn drop(&mut self) {
        if let Some(compressor) = self.compressor.take() {
            ENCODERS.give((compressor, kept(&mut self.buffer)));
        }
    }
}

/// One gzip member that holds `bytes`, which should be few.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    MemberEncoder::new().encode(bytes).to_vec()
}

/// What a member that cannot be read says about its fragment.
pub(super) fn unreadable(error: io::Error) -> EncodeError {
    match error.kind() {
        io::ErrorKind::InvalidData => EncodeError::Damaged("a gzip member does not inflate to what its index says"),
        io::ErrorKind::UnexpectedEof => EncodeError::Damaged("it is shorter than its index says"),
        _ => error.into(),
    }
}

fn damaged(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads the tar of a run of gzip members of known lengths, checking every CRC-32 and length. Its memory does not depend
/// on the size of the members. Damage is an error of the kind `InvalidData` or `UnexpectedEof`.
pub struct TarReader<R, M> {
    bytes: R,
    members: M,
    /// There until it is dropped.
    decompressor: Option<Decompressor>,
    /// As long as the longest so far: bytes that are overwritten need not be cleared.
    packed: Vec<u8>,
    tar: Vec<u8>,
    /// What was inflated and not read yet is `tar[at..end]`.
    at: usize,
    end: usize,
    large: Option<Large>,
}

/// A member that is inflated piece by piece.
struct Large {
    state: flate2::Decompress,
    crc: crc32fast::Hasher,
    /// Bytes of the deflate stream that were not read yet.
    unread: u64,
    /// What was read and not inflated yet is `TarReader::packed[from..to]`.
    from: usize,
    to: usize,
    tar: u64,
}

/// The first bytes of a buffer, which grows where it is shorter.
fn first(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

static BUFFERS: Pool<(Decompressor, Vec<u8>, Vec<u8>)> = Pool::new();

impl<R, M> Drop for TarReader<R, M> {
    fn drop(&mut self) {
        if let Some(decompressor) = self.decompressor.take() {
            BUFFERS.give((decompressor, kept(&mut self.packed), kept(&mut self.tar)));
        }
    }
}

impl<R: Read, M: Iterator<Item = Member>> TarReader<R, M> {
    /// Starts at the first of `members`, whose bytes are next in `bytes`.
    pub fn new(bytes: R, members: M) -> TarReader<R, M> {
        let (decompressor, packed, tar) =
            BUFFERS.take().unwrap_or_else(|| (Decompressor::new(), Vec::new(), Vec::new()));
        TarReader { bytes, members, decompressor: Some(decompressor), packed, tar, at: 0, end: 0, large: None }
    }

    fn start(&mut self, member: Member) -> io::Result<()> {
        let (packed, tar) = (member.compressed as usize, member.tar as usize);
        if !is_whole(member) {
            let mut header = HEADER;
            self.bytes.read_exact(&mut header)?;
            // Flags would be followed by fields; this crate writes none.
            if header[..4] != HEADER[..4] {
                return Err(damaged("a member has no gzip header"));
            }
            let unread = u64::from(member.compressed).checked_sub(u64::from(AROUND));
            self.large = Some(Large {
                state: flate2::Decompress::new(false),
                crc: crc32fast::Hasher::new(),
                unread: unread.ok_or_else(|| damaged("a member is shorter than its header"))?,
                from: 0,
                to: 0,
                tar: u64::from(member.tar),
            });
            return Ok(());
        }
        let mut out = take(&mut self.tar);
        let done = self.whole(packed, first(&mut out, tar));
        self.tar = out;
        done?;
        self.end = tar;
        Ok(())
    }

    /// Inflates a member that is inflated as a whole.
    fn whole(&mut self, packed: usize, out: &mut [u8]) -> io::Result<()> {
        let packed = first(&mut self.packed, packed);
        self.bytes.read_exact(packed)?;
        inflate(self.decompressor.as_mut().expect("it is there until this is dropped"), packed, out)
    }

    /// Inflates the next piece of a large member; at its end, checks its trailer.
    fn piece(&mut self) -> io::Result<()> {
        let Some(large) = &mut self.large else { return Ok(()) };
        let out = first(&mut self.tar, PIECE);
        let mut length = 0;
        loop {
            if large.from == large.to && large.unread > 0 {
                let next = large.unread.min(PIECE as u64);
                self.bytes.read_exact(first(&mut self.packed, next as usize))?;
                (large.unread, large.from, large.to) = (large.unread - next, 0, next as usize);
            }
            let (read, written) = (large.state.total_in(), large.state.total_out());
            let status = large
                .state
                .decompress(&self.packed[large.from..large.to], &mut out[length..], FlushDecompress::None)
                .map_err(|_| damaged("a gzip member does not inflate"))?;
            let (read, written) = (large.state.total_in() - read, (large.state.total_out() - written) as usize);
            large.from += read as usize;
            length += written;
            if status == Status::StreamEnd {
                break;
            }
            if length == PIECE {
                self.end = length;
                large.crc.update(out);
                return if large.state.total_out() > large.tar {
                    Err(damaged("a gzip member is longer than its index says"))
                } else {
                    Ok(())
                };
            }
            if read == 0 && written == 0 {
                return Err(damaged("a gzip member has no end"));
            }
        }
        self.end = length;
        large.crc.update(&out[..length]);
        if large.unread > 0 || large.from != large.to || large.state.total_out() != large.tar {
            return Err(damaged("a gzip member is not as long as its index says"));
        }
        let mut found = [0; TRAILER];
        self.bytes.read_exact(&mut found)?;
        if found != trailer(large.crc.clone().finalize(), large.tar as u32) {
            return Err(damaged("a gzip member is not what its check sum says"));
        }
        self.large = None;
        Ok(())
    }
}

/// Inflates a whole member, which is as long as `out`.
pub(super) fn inflate(decompressor: &mut Decompressor, member: &[u8], out: &mut [u8]) -> io::Result<()> {
    let is_whole = match decompressor.gzip_decompress(member, out) {
        Ok(length) => length == out.len(),
        // The checked streams of others are inflated by another decoder as well before they count as damaged.
        Err(_) => inflate_slowly(member, out).is_ok(),
    };
    if is_whole { Ok(()) } else { Err(damaged("a gzip member does not inflate")) }
}

/// What [`inflate_stream`] wants before a stream, bytes.
pub(crate) const BEFORE: usize = HEADER.len();

/// Inflates a raw deflate stream, which lies behind [`BEFORE`] bytes in `member`, into `out`, which is
/// as long as its content; `member` is written over. `true` only if the stream ends exactly at its length and the content has this
/// CRC-32; where that is not clear at once it is `false` as well.
pub(crate) fn inflate_stream(
    decompressor: &mut Decompressor,
    member: &mut Vec<u8>,
    crc32: u32,
    out: &mut [u8],
) -> bool {
    let Ok(size) = u32::try_from(out.len()) else { return false };
    let end = trailer(crc32, size);
    member[..BEFORE].copy_from_slice(&HEADER);
    member.extend_from_slice(&end);
    let is_only_at_the_end = |what: &[u8]| memchr::memmem::find(member, what) == Some(member.len() - what.len());
    // The decompressor compares what follows the last block with the content, wherever that is, and ignores what comes then. It
    // follows at the end if the content's length stands nowhere else.
    if !decompressor.gzip_decompress(member, out).is_ok_and(|length| length == out.len()) {
        return false;
    }
    is_only_at_the_end(&size.to_le_bytes()) || is_only_at_the_end(&end) && trailer(libdeflater::crc32(out), size) == end
}

/// Inflates a whole member with the decoder that also reads large ones.
fn inflate_slowly(member: &[u8], out: &mut [u8]) -> io::Result<()> {
    let mut decoder = flate2::bufread::GzDecoder::new(member);
    decoder.read_exact(out)?;
    if decoder.read(&mut [0])? != 0 || !decoder.into_inner().is_empty() {
        return Err(damaged("a gzip member is not as long as its index says"));
    }
    Ok(())
}

impl<R: Read, M: Iterator<Item = Member>> BufRead for TarReader<R, M> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.end {
            (self.at, self.end) = (0, 0);
            if self.large.is_some() {
                self.piece()?;
            } else if let Some(member) = self.members.next() {
                self.start(member)?;
            } else {
                break;
            }
        }
        Ok(&self.tar[self.at..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl<R: Read, M: Iterator<Item = Member>> Read for TarReader<R, M> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end && self.large.is_none() {
            let Some(member) = self.members.next() else { return Ok(0) };
            let tar = member.tar as usize;
            // To where it is wanted, if all of it is.
            if is_whole(member) && (1..=out.len()).contains(&tar) {
                self.whole(member.compressed as usize, &mut out[..tar])?;
                return Ok(tar);
            }
            (self.at, self.end) = (0, 0);
            self.start(member)?;
        }
        let held = self.fill_buf()?;
        let count = held.len().min(out.len());
        out[..count].copy_from_slice(&held[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that no code makes shorter: a xorshift generator's.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect()
    }

    fn encoded(data: &[u8]) -> Vec<u8> {
        let member = gzip(data);
        let mut found = Vec::new();
        flate2::bufread::GzDecoder::new(member.as_slice()).read_to_end(&mut found).expect("inflates");
        assert!(found == data);
        let mut tar = vec![0; data.len()];
        inflate(&mut Decompressor::new(), &member, &mut tar).expect("inflates");
        assert!(tar == data);
        member
    }

    fn is_stored(data: &[u8]) -> bool {
        let member = encoded(data);
        let blocks = data.len().div_ceil(BLOCK);
        // RFC 1951, section 3.2.3: two bits of zeros.
        member[HEADER.len()] & 0b110 == 0 && member.len() == data.len() + 5 * blocks + AROUND as usize
    }

    #[test]
    fn noise_is_stored_and_all_else_is_compressed() {
        for length in [WORTH_A_LOOK, 300_000, 5 * BLOCK, 5 * BLOCK + 1, MEMBER_SIZE - 1, MEMBER_SIZE] {
            assert!(is_stored(&noise(7, length)), "{length}");
        }
        // The header of the file that it begins with does not count.
        let mut file = noise(7, MEMBER_SIZE);
        file[..1536].fill(0);
        assert!(is_stored(&file));
        // What a compressor wrote is noise, too.
        let text: Vec<u8> = noise(5, 2 * MEMBER_SIZE).iter().map(|byte| b'0' + byte % 64).collect();
        let mut packed = Compressor::new(CompressionLvl::best());
        let mut out = vec![0; packed.deflate_compress_bound(text.len())];
        let length = packed.deflate_compress(&text, &mut out).expect("fits");
        assert!(length > MEMBER_SIZE && is_stored(&out[..MEMBER_SIZE]));

        let is_noise = |data: &[u8]| MemberEncoder::new().is_noise(data);
        assert!(is_noise(&noise(7, WORTH_A_LOOK)) && !is_noise(&noise(7, WORTH_A_LOOK - 1)));
        assert!(!is_stored(&text[..MEMBER_SIZE]));
        assert!(!is_stored(&vec![0; MEMBER_SIZE]));
        // All bytes as often as others, and yet it repeats.
        let counted: Vec<u8> = (0..MEMBER_SIZE).map(|at| at as u8).collect();
        assert!(!is_uneven(&counted[..SAMPLE]) && !is_stored(&counted));
        // One sample that can be compressed is enough, wherever it is.
        for at in [FIRST, MEMBER_SIZE / 2 - SAMPLE / 2, MEMBER_SIZE - SAMPLE] {
            let mut mixed = noise(9, MEMBER_SIZE);
            mixed[at..at + SAMPLE].copy_from_slice(&text[..SAMPLE]);
            assert!(!is_stored(&mixed), "{at}");
        }
    }

    #[test]
    fn what_is_stored_never_changes() {
        // A change here means: raise LAYER_FORMAT.
        let golden = "sha256:30134aac0f46a1ba2c51f45a824078fc697c87e26bb9cb2ea015f72afc208744";
        assert_eq!(crate::Digest::of(&gzip(&noise(1, MEMBER_SIZE - 7))).to_string(), golden);
    }

    #[test]
    fn nothing_is_left_of_what_was_encoded_before() {
        let (text, noise) = (vec![b'x'; MEMBER_SIZE], noise(3, MEMBER_SIZE));
        let mut encoder = MemberEncoder::new();
        let first = [encoder.encode(&text).to_vec(), encoder.encode(&noise).to_vec()];
        let again = [encoder.encode(&text).to_vec(), encoder.encode(&noise).to_vec()];
        assert!(first == again);
    }
}
