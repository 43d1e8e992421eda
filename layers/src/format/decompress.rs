//! Compressed streams, recognised by their first bytes.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{FormatError, Limits};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952), one or several members.
    Gzip,
    /// xz, one or several streams.
    Xz,
    /// Zstandard (RFC 8878), one or several frames.
    Zstd,
}

/// The bytes that [`Compression::detect`] wants to see.
const HEAD: usize = 10;

impl Compression {
    /// Recognises a stream by its first ten bytes (fewer if it is shorter). bzip2 and `.lzma` are named in the error.
    pub fn detect(head: &[u8]) -> Result<Compression, FormatError> {
        let unsupported = |what: &str| FormatError::Unsupported {
            format: "compressed stream",
            name: "its first bytes".into(),
            what: format!("{what} data"),
        };
        match head {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Compression::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59] => Err(unsupported("bzip2")),
            [0x5d, 0, 0, _, _, ..] => Err(unsupported("lzma")),
            _ => Ok(Compression::None),
        }
    }

    /// The format's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "plain stream",
            Compression::Gzip => "gzip stream",
            Compression::Xz => "xz stream",
            Compression::Zstd => "zstd stream",
        }
    }
}

/// The bytes that [`decoder_memory`] wants to see.
pub const ANNOUNCED: usize = 64;

/// The bytes that a decoder of this stream will hold, as its first [`ANNOUNCED`] bytes say: dictionary or window. What
/// does not say it counts as the most that `limits` allow.
pub fn decoder_memory(head: &[u8], limits: &Limits) -> u64 {
    match Compression::detect(head) {
        Ok(Compression::Xz) => xz_dictionary(head).unwrap_or(limits.max_xz_memory).min(limits.max_xz_memory),
        Ok(Compression::Zstd) => {
            let most = 1 << limits.max_zstd_window_log;
            zstd_window(head).unwrap_or(most).min(most)
        }
        // 32 KiB of window, and its buffers.
        _ => 128 << 10,
    }
}

/// The dictionary of an xz stream's first block (The .xz File Format, sections 3.1 and 5.3.1).
fn xz_dictionary(head: &[u8]) -> Option<u64> {
    let mut rest = head.get(12..)?.iter().copied();
    let number = |rest: &mut dyn Iterator<Item = u8>| {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = rest.next()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    let (_size, flags) = (rest.next()?, rest.next()?);
    for present in [0x40, 0x80] {
        if flags & present != 0 {
            number(&mut rest)?;
        }
    }
    for _ in 0..=flags & 3 {
        let (filter, length) = (number(&mut rest)?, number(&mut rest)?);
        if filter == 0x21 && length == 1 {
            let bits = rest.next()? & 0x3f;
            return Some(if bits >= 40 { u64::from(u32::MAX) } else { (2 | u64::from(bits & 1)) << (bits / 2 + 11) });
        }
        for _ in 0..length.min(ANNOUNCED as u64) {
            rest.next()?;
        }
    }
    None
}

/// The window of a zstd frame (RFC 8878, section 3.1.1.1).
fn zstd_window(head: &[u8]) -> Option<u64> {
    let descriptor = *head.get(4)?;
    if descriptor & 0x20 == 0 {
        let window = *head.get(5)?;
        let base = 1u64 << (10 + u32::from(window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // A single segment: the window is the content.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (length, add) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..length].copy_from_slice(head.get(at..at + length)?);
    u64::from_le_bytes(size).checked_add(add)
}

/// Reads a stream that is gzip (RFC 1952, any number of members), xz, zstd or plain, by its first bytes.
///
/// Errors while reading are [`FormatError`]s inside `io::Error`; `FormatError::from` takes them out again. What follows
/// the compressed data and is not another member, stream or frame is an error, and so is output beyond the limits.
pub fn decompress<'a>(
    mut input: impl BufRead + Send + 'a,
    limits: &Limits,
) -> Result<Box<dyn Read + Send + 'a>, FormatError> {
    let mut head = Vec::with_capacity(HEAD);
    input.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let compression = Compression::detect(&head)?;
    decode(compression, Cursor::new(head).chain(input), limits)
}

/// Reads a stream whose compression is already said, by a file name or a media type; other first bytes are an error.
pub fn decompress_as<'a>(
    compression: Compression,
    mut input: impl BufRead + Send + 'a,
    limits: &Limits,
) -> Result<Box<dyn Read + Send + 'a>, FormatError> {
    let mut head = Vec::with_capacity(HEAD);
    input.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let found = Compression::detect(&head)?;
    if found != compression {
        let why = format!("it was announced as a {} but its first bytes are a {}'s", compression.name(), found.name());
        return Err(FormatError::Malformed { format: "compressed stream", at: 0, why });
    }
    decode(compression, Cursor::new(head).chain(input), limits)
}

fn decode<'a>(
    compression: Compression,
    input: impl BufRead + Send + 'a,
    limits: &Limits,
) -> Result<Box<dyn Read + Send + 'a>, FormatError> {
    let consumed = Arc::new(AtomicU64::new(0));
    let input = Counted { inner: input, consumed: Arc::clone(&consumed) };
    let inner: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(limits.max_xz_memory, liblzma::stream::CONCATENATED)
                    .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(limits.max_zstd_window_log)?;
            Box::new(decoder)
        }
    };
    Ok(Box::new(Bounded { inner, consumed, produced: 0, compression, limits: *limits, failed: false }))
}

/// Counts what the decoder has taken.
struct Counted<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.consumed.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.consumed.fetch_add(amount as u64, Ordering::Relaxed);
        self.inner.consume(amount);
    }
}

/// Gives a decoder's errors their type, stops bombs, and never turns an error into an end of file.
struct Bounded<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
    produced: u64,
    compression: Compression,
    limits: Limits,
    failed: bool,
}

impl<R: Read> Bounded<R> {
    fn fail(&mut self, error: FormatError) -> io::Error {
        self.failed = true;
        error.into()
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let format = self.compression.name();
        let at = self.produced;
        if self.failed {
            // flate2 reports an end of file after an error was reported once.
            let why = "it was read on after an error".to_owned();
            return Err(FormatError::Malformed { format, at, why }.into());
        }
        let length = match self.inner.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) if self.compression == Compression::None => return Err(error),
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<FormatError>()) => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.fail(FormatError::Truncated { format, what: "compressed data", at }));
            }
            Err(error) => {
                let why = format!("the decoder says: {error}");
                return Err(self.fail(FormatError::Malformed { format, at, why }));
            }
        };
        self.produced += length as u64;
        let Limits { max_output, max_ratio, free_output, .. } = self.limits;
        if self.produced > max_output {
            return Err(self.fail(FormatError::Limit { format, what: "its size in bytes", limit: max_output }));
        }
        let allowed = self.consumed.load(Ordering::Relaxed).saturating_mul(max_ratio);
        if self.produced > free_output && self.produced > allowed && self.compression != Compression::None {
            return Err(self.fail(FormatError::Limit { format, what: "its compression ratio", limit: max_ratio }));
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything")
    }

    fn xz(bytes: &[u8], dictionary: u32) -> Vec<u8> {
        let mut options = liblzma::stream::LzmaOptions::new_preset(0).expect("preset 0 exists");
        options.dict_size(dictionary);
        let mut filters = liblzma::stream::Filters::new();
        filters.lzma2(&options);
        let stream = liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32)
            .expect("the filters are good");
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(bytes).expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 3).expect("a vector takes everything")
    }

    fn all(input: &[u8], limits: &Limits) -> Result<Vec<u8>, FormatError> {
        let mut output = Vec::new();
        decompress(input, limits)?.read_to_end(&mut output)?;
        Ok(output)
    }

    #[test]
    fn every_compression_is_recognised_and_concatenations_are_read() {
        for encode in [gzip, |b: &[u8]| xz(b, 1 << 20), zstd, |b: &[u8]| b.to_vec()] {
            let mut twice = encode(b"hello ");
            twice.extend(encode(b"world"));
            assert_eq!(all(&twice, &Limits::default()).expect("good streams"), b"hello world");
        }
        assert_eq!(all(b"", &Limits::default()).expect("nothing is a plain stream"), b"");
    }

    #[test]
    fn each_cut_and_trailing_garbage_is_an_error() {
        let content: Vec<u8> = (0..2000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for encode in [gzip, |b: &[u8]| xz(b, 1 << 20), zstd] {
            let good = encode(&content);
            // Shorter heads than the magic are plain streams of a few bytes.
            for cut in (12..good.len()).step_by(97).chain([good.len() - 1]) {
                let error = all(&good[..cut], &Limits::default()).expect_err("it is cut");
                assert!(matches!(error, FormatError::Truncated { .. }), "cut at {cut}: {error}");
            }
            let mut trailing = good.clone();
            trailing.extend(b"garbage behind the end");
            assert!(all(&trailing, &Limits::default()).is_err());
        }
    }

    #[test]
    fn an_error_is_never_followed_by_an_end_of_file() {
        let mut bad = gzip(b"hello");
        let last = bad.len() - 8;
        bad[last] ^= 1;
        let mut reader = decompress(&bad[..], &Limits::default()).expect("the header is good");
        let mut sink = Vec::new();
        assert!(reader.read_to_end(&mut sink).is_err());
        assert!(reader.read_to_end(&mut sink).is_err());
    }

    #[test]
    fn output_beyond_a_limit_stops_the_stream() {
        let zeros = vec![0u8; 3 << 20];
        for encode in [gzip, |b: &[u8]| xz(b, 1 << 20), zstd] {
            let bomb = encode(&zeros);
            let small = Limits { max_output: 1 << 20, ..Limits::default() };
            assert!(matches!(all(&bomb, &small), Err(FormatError::Limit { limit: 1_048_576, .. })));
            let ratio = Limits { free_output: 1 << 20, max_ratio: 50, ..Limits::default() };
            assert!(matches!(all(&bomb, &ratio), Err(FormatError::Limit { limit: 50, .. })));
            assert_eq!(all(&bomb, &Limits::default()).expect("small bombs are data").len(), zeros.len());
        }
        let small = Limits { max_output: 4, ..Limits::default() };
        assert!(matches!(all(b"plain", &small), Err(FormatError::Limit { limit: 4, .. })));
    }

    #[test]
    fn dictionaries_and_windows_beyond_the_limit_are_refused_before_they_are_allocated() {
        let error = all(&xz(b"x", 1 << 30), &Limits::default()).expect_err("1 GiB of dictionary");
        assert!(error.to_string().contains("memory"), "{error}");
        // RFC 8878: magic, frame header descriptor 0, window descriptor with exponent 23 (2^33 = 8 GiB), one raw block.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 23 << 3, 0x09, 0, 0, b'x'];
        let error = all(&window, &Limits::default()).expect_err("8 GiB of window");
        assert!(matches!(error, FormatError::Malformed { .. }), "{error}");
        // The same frame with a window of 128 MiB is at the limit, and read.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x09, 0, 0, b'x'];
        assert_eq!(all(&window, &Limits::default()).expect("128 MiB of window"), b"x");
    }

    #[test]
    fn streams_announce_what_their_decoders_hold() {
        let limits = Limits::default();
        for dictionary in [1 << 16, 3 << 20, 8 << 20, 64 << 20] {
            assert_eq!(decoder_memory(&xz(b"x", dictionary), &limits), u64::from(dictionary));
        }
        let announced = |bytes: &[u8]| decoder_memory(&bytes[..bytes.len().min(ANNOUNCED)], &limits);
        assert_eq!(announced(&zstd(&[0; 100_000])), 100_000);
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).expect("a level");
        encoder.window_log(20).expect("a window");
        encoder.write_all(b"of unknown length").expect("a vector takes everything");
        assert_eq!(announced(&encoder.finish().expect("a vector takes everything")), 1 << 20);
        assert_eq!(announced(&gzip(b"x")), 128 << 10);
        // Cut or beyond the limits: the most that is allowed.
        assert_eq!(announced(&xz(b"x", 1 << 20)[..13]), limits.max_xz_memory);
        assert_eq!(announced(&xz(b"x", 1 << 30)), limits.max_xz_memory);
        assert_eq!(announced(&[0x28, 0xb5, 0x2f, 0xfd, 0, 23 << 3]), 1 << 27);
        assert_eq!(announced(&[0x28, 0xb5, 0x2f, 0xfd]), 1 << 27);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let error = all(b"BZh91AY&SYxxxx", &Limits::default()).expect_err("bzip2");
        assert!(error.to_string().contains("bzip2"), "{error}");
        let error = all(&[0x5d, 0, 0, 0x80, 0, 0xff, 0xff], &Limits::default()).expect_err("lzma");
        assert!(error.to_string().contains("lzma"), "{error}");
    }

    #[test]
    fn an_announced_compression_must_be_the_one_that_is_there() {
        let error = decompress_as(Compression::Xz, &gzip(b"x")[..], &Limits::default()).err().expect("a lie");
        assert!(error.to_string().contains("announced as a xz stream"), "{error}");
    }
}
