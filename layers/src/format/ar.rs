//! The common ar archive, as far as Debian packages use it (deb(5), ar(5)).

use std::io::{Read, Seek, SeekFrom};

use super::FormatError;
use super::error::lossy;

const FORMAT: &str = "ar archive";
const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER: u64 = 60;

/// One member: where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, ASCII.
    pub name: String,
    /// Where its content starts.
    pub offset: u64,
    /// Length of its content in bytes.
    pub size: u64,
}

/// Lists the members of an archive, at most `max` of them. Every member lies inside the file; long names in the
/// spellings of GNU and BSD, which packages do not have, are refused.
pub fn members<R: Read + Seek>(file: &mut R, max: usize) -> Result<Vec<Member>, FormatError> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut magic = [0; 8];
    read(file, &mut magic, "its magic", length)?;
    if &magic != MAGIC {
        return Err(malformed(0, "it does not start with `!<arch>`"));
    }
    let mut members = Vec::new();
    let mut at = MAGIC.len() as u64;
    while at < length {
        if members.len() == max {
            return Err(FormatError::Limit { format: FORMAT, what: "its number of members", limit: max as u64 });
        }
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; HEADER as usize];
        read(file, &mut header, "a member's header", length)?;
        if &header[58..] != b"`\n" {
            return Err(malformed(at, "a member's header does not end with its magic"));
        }
        let name = name(&header[..16], at)?;
        for (field, what) in [(16..28, "time"), (28..34, "owner"), (34..40, "group"), (40..48, "mode")] {
            number(&header[field], what, at)?;
        }
        let size = number(&header[48..58], "size", at)?.ok_or_else(|| malformed(at, "a member has no size"))?;
        let offset = at + HEADER;
        let end = offset.checked_add(size).filter(|end| *end <= length);
        let Some(end) = end else {
            return Err(FormatError::Truncated { format: FORMAT, what: "the content of a member", at: length });
        };
        members.push(Member { name, offset, size });
        at = end;
        if size % 2 == 1 && end < length {
            file.seek(SeekFrom::Start(end))?;
            let mut padding = [0];
            read(file, &mut padding, "padding", length)?;
            if padding != *b"\n" {
                return Err(malformed(end, "a member of odd size is not padded with a newline"));
            }
            at += 1;
        }
    }
    Ok(members)
}

fn malformed(at: u64, why: impl Into<String>) -> FormatError {
    FormatError::Malformed { format: FORMAT, at, why: why.into() }
}

fn read<R: Read>(file: &mut R, buffer: &mut [u8], what: &'static str, length: u64) -> Result<(), FormatError> {
    file.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => FormatError::Truncated { format: FORMAT, what, at: length },
        _ => error.into(),
    })
}

/// A name padded with spaces; GNU ends it with a slash.
fn name(field: &[u8], at: u64) -> Result<String, FormatError> {
    let end = field.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    let name = &field[..end];
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-+".contains(byte);
    if name.is_empty() || !name.iter().all(plain) {
        return Err(malformed(at, format!("a member's name is `{}`", lossy(field))));
    }
    Ok(name.iter().map(|byte| char::from(*byte)).collect())
}

/// Decimal digits (octal ones for the mode) padded with spaces; `None` is a blank field.
fn number(field: &[u8], what: &str, at: u64) -> Result<Option<u64>, FormatError> {
    let end = field.iter().position(|byte| *byte == b' ').unwrap_or(field.len());
    let (digits, rest) = field.split_at(end);
    if !digits.iter().all(u8::is_ascii_digit) || rest.iter().any(|byte| *byte != b' ') {
        return Err(malformed(at, format!("a member's {what} is `{}`", lossy(field))));
    }
    // At most twelve digits.
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    Ok((!digits.is_empty()).then_some(value))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    /// A member as dpkg-deb writes it.
    pub(crate) fn member(name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 1_700_000_000, 0, 0, 100_644, content.len())
                .into_bytes();
        bytes.extend(content);
        if content.len() % 2 == 1 {
            bytes.push(b'\n');
        }
        bytes
    }

    pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (name, content) in members {
            bytes.extend(member(name, content));
        }
        bytes
    }

    fn names(bytes: &[u8]) -> Result<Vec<(String, u64, u64)>, FormatError> {
        let members = members(&mut Cursor::new(bytes), 8)?;
        Ok(members.into_iter().map(|m| (m.name, m.offset, m.size)).collect())
    }

    #[test]
    fn members_are_found_with_their_padding() {
        let bytes = archive(&[("a", b"abc"), ("b/", b""), ("c.tar.xz", b"xy")]);
        let expected = [("a".to_owned(), 68, 3), ("b".to_owned(), 132, 0), ("c.tar.xz".to_owned(), 192, 2)];
        assert_eq!(names(&bytes).expect("good"), expected);
        assert_eq!(names(MAGIC).expect("an empty archive is one"), []);
        // The last padding may be missing.
        assert_eq!(names(&archive(&[("a", b"abc")])[..71]).expect("good").len(), 1);
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = archive(&[("a", b"abc"), ("b", b"xy")]);
        for cut in (0..bytes.len()).filter(|cut| ![8, 71, 72].contains(cut)) {
            let error = names(&bytes[..cut]).expect_err("it is cut");
            assert!(matches!(error, FormatError::Truncated { .. }), "{cut}: {error}");
        }
    }

    #[test]
    fn lies_and_foreign_spellings_are_refused() {
        let good = archive(&[("a", b"abc"), ("b", b"xy")]);
        let patch = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            bytes
        };
        for (what, bytes) in [
            ("magic", patch(0, b"!<thin>\n")),
            ("size beyond the file", patch(56, b"9999999999")),
            ("negative size", patch(56, b"-3        ")),
            ("hexadecimal size", patch(56, b"0x3       ")),
            ("no size", patch(56, b"          ")),
            ("size shorter than the content", patch(56, b"2         ")),
            ("digits after a gap", patch(56, b"3 3       ")),
            ("header magic", patch(66, b"xx")),
            ("padding", patch(71, b"x")),
            ("GNU name table", patch(8, b"//              ")),
            ("GNU long name", patch(8, b"/12             ")),
            ("BSD long name", patch(8, b"#1/20           ")),
            ("symbol table", patch(8, b"/               ")),
            ("no name", patch(8, b"                ")),
            ("directory", patch(8, b"../x            ")),
            ("control characters", patch(8, b"a\x1b[0m          ")),
            ("non-UTF-8", patch(8, b"\xff\xfe              ")),
            ("time", patch(24, b"yesterday   ")),
        ] {
            assert!(names(&bytes).is_err(), "{what}");
        }
        let many = archive(&[("a", &b""[..]); 9]);
        assert!(matches!(names(&many), Err(FormatError::Limit { limit: 8, .. })));
    }
}
