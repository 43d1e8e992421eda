//! Compressed streams: the limits hold, an error is never followed by an end, and how much is read at once does not matter.
#![no_main]

use std::io::{BufReader, Read};

use imgbuild_fuzz::{Dribble, limits, same_however_read};
use layers::format::{Compression, FormatError, decompress, decompress_as};
use libfuzzer_sys::fuzz_target;

/// What was read, and whether that was all.
fn read(mut reader: impl Read, step: usize) -> (Vec<u8>, bool) {
    let (mut out, mut buffer) = (Vec::new(), vec![0; step]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return (out, true),
            Ok(length) => out.extend(&buffer[..length]),
            Err(_) => {
                assert!(reader.read(&mut buffer).is_err(), "an error is followed by an end");
                return (out, false);
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let limits = limits();
    let Ok(found) = Compression::detect(&data[..data.len().min(10)]) else { return };
    let whole = same_however_read(data, |reader: Dribble<&[u8]>| {
        let step = if reader.step == usize::MAX { 64 << 10 } else { 1 + reader.step * 97 };
        let (out, good) = decompress(BufReader::new(reader), &limits).map_or((vec![], false), |it| read(it, step));
        // Where a stream breaks, decoders differ in how much of it they gave before.
        (if good { out } else { vec![] }, good)
    });
    assert!(whole.0.len() as u64 <= limits.max_output);
    if found == Compression::None {
        assert!(whole.1 && whole.0 == data);
    }
    for other in [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd] {
        match decompress_as(other, data, &limits) {
            Ok(reader) => {
                assert_eq!(other, found);
                let (out, good) = read(reader, 64 << 10);
                assert_eq!(good, whole.1);
                assert!(!good || out == whole.0);
            }
            Err(error) => {
                assert!(other != found || !whole.1, "{error}");
                assert!(!matches!(error, FormatError::Limit { .. }));
            }
        }
    }
});
