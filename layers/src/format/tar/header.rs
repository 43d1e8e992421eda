//! The 512-byte header: POSIX ustar, old GNU, and what came before them.

use super::{FORMAT, malformed};
use crate::format::FormatError;

/// Which rules the header follows; they differ in what bytes 345 to 512 mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// No magic, no prefix.
    V7,
    /// POSIX.1-1988, and the pax format that extends it; star's variant too.
    Ustar,
    /// GNU tar's, where other fields stand in the prefix's place.
    Gnu,
}

/// A header whose checksum holds.
pub(super) struct Header<'a> {
    block: &'a [u8; 512],
    at: u64,
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks checksum and magic of the block that stands at offset `at`.
    pub(super) fn parse(block: &'a [u8; 512], at: u64) -> Result<Header<'a>, FormatError> {
        let sum: i64 =
            block.iter().enumerate().map(|(i, b)| i64::from(if (148..156).contains(&i) { b' ' } else { *b })).sum();
        let stored = number(&block[148..156], "checksum", at)?;
        if stored != Some(sum) {
            let stored = stored.map_or("missing".to_owned(), |stored| format!("{stored}"));
            return Err(malformed(at, format!("the header's checksum is {stored} but its bytes add up to {sum}")));
        }
        let dialect = match &block[257..265] {
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            // Some readers take the prefix without looking at the magic.
            [0, 0, 0, 0, 0, 0, 0, 0] if block[345..500].iter().all(|byte| *byte == 0) => Dialect::V7,
            _ => return Err(malformed(at, "the header's magic is neither ustar's nor GNU's")),
        };
        // star ends with `tar` and has times behind a prefix of 131 bytes; a longer one reads differently elsewhere.
        if dialect == Dialect::Ustar && &block[508..] == b"tar\0" && block[475] != 0 {
            return Err(FormatError::Unsupported {
                format: FORMAT,
                name: crate::format::error::lossy(until_nul(&block[..100])),
                what: "a star header with a full prefix".into(),
            });
        }
        Ok(Header { block, at, dialect })
    }

    pub(super) fn flag(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = if self.dialect == Dialect::Ustar { until_nul(&self.block[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.block[157..257]).to_vec()
    }

    /// The size field; it must hold digits.
    pub(super) fn size(&self) -> Result<u64, FormatError> {
        let size = number(&self.block[124..136], "size", self.at)?
            .ok_or_else(|| malformed(self.at, "the header's size is missing"))?;
        u64::try_from(size).map_err(|_| malformed(self.at, format!("the header's size is {size}")))
    }

    /// Permission bits; the file type that old writers repeat here is dropped.
    pub(super) fn mode(&self) -> Result<u32, FormatError> {
        let mode = number(&self.block[100..108], "mode", self.at)?.unwrap_or(0);
        if mode & !0o177_777 != 0 {
            return Err(malformed(self.at, format!("the header's mode is {mode:#o}")));
        }
        Ok((mode & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u32, FormatError> {
        self.word(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, FormatError> {
        self.word(116..124, "gid")
    }

    pub(super) fn mtime(&self) -> Result<i64, FormatError> {
        Ok(number(&self.block[136..148], "mtime", self.at)?.unwrap_or(0))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32), FormatError> {
        if self.dialect == Dialect::V7 {
            return Err(malformed(self.at, "a device without device numbers"));
        }
        Ok((self.word(329..337, "device major")?, self.word(337..345, "device minor")?))
    }

    fn word(&self, field: std::ops::Range<usize>, what: &str) -> Result<u32, FormatError> {
        let value = number(&self.block[field], what, self.at)?.unwrap_or(0);
        u32::try_from(value).map_err(|_| malformed(self.at, format!("the header's {what} is {value}")))
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// A number: octal digits between spaces and NULs, or big-endian two's complement below a set first bit (base-256, from
/// GNU and star). `None` is a blank field.
fn number(field: &[u8], what: &str, at: u64) -> Result<Option<i64>, FormatError> {
    if field[0] & 0x80 != 0 {
        // The flag bit is not a digit; the next bit is the sign.
        let first = i128::from(field[0] & 0x7f) - if field[0] & 0x40 != 0 { 0x80 } else { 0 };
        let value = field[1..].iter().fold(first, |value, byte| value << 8 | i128::from(*byte));
        return i64::try_from(value)
            .map(Some)
            .map_err(|_| malformed(at, format!("the header's {what} is beyond 63 bits")));
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let bad = || malformed(at, format!("the header's {what} is `{}`", crate::format::error::lossy(field)));
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let length = field[start..].iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(field.len() - start);
    let (digits, rest) = field[start..].split_at(length);
    if !rest.iter().all(blank) || digits.iter().any(|digit| *digit > b'7') {
        return Err(bad());
    }
    if digits.is_empty() {
        return Ok(None);
    }
    // At most twelve octal digits: 36 bits.
    Ok(Some(digits.iter().fold(0, |value, digit| value << 3 | i64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let good = |field: &[u8]| number(field, "x", 0).expect("a number");
        assert_eq!(good(b"0000644\0"), Some(0o644));
        assert_eq!(good(b"   644 \0"), Some(0o644));
        assert_eq!(good(b"77777777"), Some(0o77_777_777));
        assert_eq!(good(b"\0\0\0\0\0\0\0\0"), None);
        assert_eq!(good(b"        "), None);
        assert_eq!(good(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(good(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some(-1));
        assert_eq!(good(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some(i64::MAX));
        for bad in
            [&b"0000648\0"[..], b"-1\0\0\0\0\0\0", b"12x\0\0\0\0\0", b"1 2\0\0\0\0\0", b"\x80\0\0\0\x80\0\0\0\0\0\0\0"]
        {
            assert!(number(bad, "x", 0).is_err(), "{bad:?}");
        }
    }
}
