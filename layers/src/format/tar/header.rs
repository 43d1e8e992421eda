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

/// A header whose checksum holds and whose numbers are numbers.
pub(super) struct Header<'a> {
    block: &'a [u8; 512],
    at: u64,
    dialect: Dialect,
    mode: i64,
    uid: i64,
    gid: i64,
    size: Option<i64>,
    mtime: i64,
}

impl<'a> Header<'a> {
    /// Checks checksum, magic and numbers of the block that stands at offset `at`.
    ///
    /// All numbers are looked at, also those that a PAX header overrides or that mean nothing for the entry's kind: GNU tar,
    /// bsdtar and Python each refuse an archive for other ones of them.
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
        // GNU tar's times of incremental dumps stand where others, Python among them, look for a prefix.
        if dialect == Dialect::Gnu && block[345] != 0 {
            return Err(FormatError::Unsupported {
                format: FORMAT,
                name: crate::format::error::lossy(until_nul(&block[..100])),
                what: "a time of last access in GNU tar's header".into(),
            });
        }
        let told = |field: std::ops::Range<usize>, what: &str| zero_if_empty(&block[field], what, at);
        if dialect != Dialect::V7 {
            number(&block[329..337], "device major", at)?;
            number(&block[337..345], "device minor", at)?;
        }
        Ok(Header {
            block,
            at,
            dialect,
            mode: told(100..108, "mode")?,
            uid: told(108..116, "uid")?,
            gid: told(116..124, "gid")?,
            size: number(&block[124..136], "size", at)?,
            mtime: told(136..148, "mtime")?,
        })
    }

    pub(super) fn flag(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = if self.dialect == Dialect::Ustar { until_nul(&self.block[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Whether the name in the header proper, without prefix and extensions, ends with a slash.
    pub(super) fn is_named_as_dir(&self) -> bool {
        until_nul(&self.block[..100]).ends_with(b"/")
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.block[157..257]).to_vec()
    }

    /// The size field; it must hold digits.
    pub(super) fn size(&self) -> Result<u64, FormatError> {
        let size = self.size.ok_or_else(|| malformed(self.at, "the header's size is missing"))?;
        u64::try_from(size).map_err(|_| malformed(self.at, format!("the header's size is {size}")))
    }

    /// Permission bits; the file type that old writers repeat here is dropped.
    pub(super) fn mode(&self) -> Result<u32, FormatError> {
        let mode = self.mode;
        if mode & !0o177_777 != 0 {
            return Err(malformed(self.at, format!("the header's mode is {mode:#o}")));
        }
        Ok((mode & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u32, FormatError> {
        self.word(self.uid, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, FormatError> {
        self.word(self.gid, "gid")
    }

    pub(super) fn mtime(&self) -> i64 {
        self.mtime
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32), FormatError> {
        if self.dialect == Dialect::V7 {
            return Err(malformed(self.at, "a device without device numbers"));
        }
        let part = |field: std::ops::Range<usize>, what: &str| {
            self.word(zero_if_empty(&self.block[field], what, self.at)?, what)
        };
        Ok((part(329..337, "device major")?, part(337..345, "device minor")?))
    }

    fn word(&self, value: i64, what: &str) -> Result<u32, FormatError> {
        u32::try_from(value).map_err(|_| malformed(self.at, format!("the header's {what} is {value}")))
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// A number that may be left out with NULs; GNU tar reads a field of spaces alone as an error, others read it as zero.
fn zero_if_empty(field: &[u8], what: &str, at: u64) -> Result<i64, FormatError> {
    match number(field, what, at)? {
        None if !field.contains(&0) => Err(malformed(at, format!("the header's {what} is blank"))),
        value => Ok(value.unwrap_or(0)),
    }
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
