//! RECORD: a wheel's list of its files (PEP 376, PEP 427), as CSV.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::{FORMAT, refused};
use crate::format::FormatError;

/// One line of a RECORD.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordRow {
    /// The file's path, relative to the directory that holds the `.dist-info` directory.
    pub path: String,
    /// `ALGORITHM=` and the digest in URL-safe base64 without padding; empty for files that cannot know it.
    pub hash: String,
    /// The length in bytes, as text; may be empty.
    pub size: String,
}

impl RecordRow {
    /// The row of a file with this content.
    pub fn of(path: &str, bytes: &[u8]) -> RecordRow {
        RecordRow { path: path.to_owned(), hash: hash(bytes), size: bytes.len().to_string() }
    }

    /// Whether these bytes are the file, by SHA-256: `false` as well where the row has another digest or none.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        self.hash == hash(bytes)
    }
}

/// Reads a RECORD: UTF-8, three fields a line, fields in double quotes where they need them.
pub fn parse_record(bytes: &[u8]) -> Result<Vec<RecordRow>, FormatError> {
    let malformed =
        |at: usize, why: &str| FormatError::Malformed { format: "RECORD", at: at as u64, why: why.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|error| malformed(error.valid_up_to(), "it is not UTF-8"))?;
    let mut rows = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = text.len() - rest.len();
        let mut fields = Vec::new();
        loop {
            let (field, after) = field(rest).map_err(|why| malformed(at, why))?;
            fields.push(field);
            match after.strip_prefix(',') {
                Some(next) if fields.len() < 3 => rest = next,
                Some(_) => return Err(malformed(at, "a line has more than three fields")),
                None => {
                    rest = after.strip_prefix("\r\n").or_else(|| after.strip_prefix(['\n', '\r'])).unwrap_or(after);
                    break;
                }
            }
        }
        match <[String; 3]>::try_from(fields) {
            Ok([path, hash, size]) => rows.push(RecordRow { path, hash, size }),
            // A blank line.
            Err(fields) if fields == [""] => {}
            Err(_) => return Err(malformed(at, "a line has not three fields")),
        }
    }
    Ok(rows)
}

/// Takes one field off the front.
fn field(text: &str) -> Result<(String, &str), &'static str> {
    let ends = [',', '\n', '\r'];
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find(ends).unwrap_or(text.len());
        let (field, rest) = text.split_at(end);
        return if field.contains('"') { Err("a quote stands inside a field") } else { Ok((field.to_owned(), rest)) };
    };
    let mut field = String::new();
    loop {
        let (part, rest) = quoted.split_once('"').ok_or("a quoted field has no end")?;
        field.push_str(part);
        if let Some(rest) = rest.strip_prefix('"') {
            field.push('"');
            quoted = rest;
        } else if rest.is_empty() || rest.starts_with(ends) {
            return Ok((field, rest));
        } else {
            return Err("something follows a quoted field");
        }
    }
}

/// Writes a RECORD as pip does: sorted, lines that end with CR LF (Python's csv), quotes only where they are needed.
pub fn write_record(mut rows: Vec<RecordRow>) -> String {
    rows.sort();
    let mut text = String::new();
    for row in &rows {
        for (index, field) in [&row.path, &row.hash, &row.size].into_iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            if field.contains([',', '"', '\r', '\n']) {
                text.push('"');
                text.push_str(&field.replace('"', "\"\""));
                text.push('"');
            } else {
                text.push_str(field);
            }
        }
        text.push_str("\r\n");
    }
    text
}

/// `sha256=` and the digest of `bytes`, as a RECORD says it.
pub(super) fn hash(bytes: &[u8]) -> String {
    format!("sha256={}", base64(&Sha256::digest(bytes)))
}

/// URL-safe base64 without padding (RFC 4648, section 5).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            text.push(char::from(LETTERS[(group >> (18 - 6 * index) & 63) as usize]));
        }
    }
    text
}

/// What the RECORD says about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    algorithm: Algorithm,
    digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Expected {
    /// Reads a row's hash; PEP 427 wants SHA-256 or better.
    pub(super) fn of(row: &RecordRow) -> Result<Expected, FormatError> {
        let unhashed = || refused(&row.path, "its RECORD gives no SHA-256, SHA-384 or SHA-512 for it");
        let (algorithm, digest) = row.hash.split_once('=').ok_or_else(unhashed)?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha384" => Algorithm::Sha384,
            "sha512" => Algorithm::Sha512,
            _ => return Err(unhashed()),
        };
        Ok(Expected { algorithm, digest: digest.trim_end_matches('=').to_owned() })
    }
}

/// Takes a file's content and says at the end whether it is what the RECORD lists.
pub struct Verifier {
    name: String,
    hasher: Hasher,
    digest: String,
}

enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
    /// RECORD itself and its signatures.
    None,
}

impl Verifier {
    pub(super) fn new(name: &str, expected: Option<&Expected>) -> Verifier {
        let hasher = match expected.map(|expected| expected.algorithm) {
            Some(Algorithm::Sha256) => Hasher::Sha256(Sha256::new()),
            Some(Algorithm::Sha384) => Hasher::Sha384(Sha384::new()),
            Some(Algorithm::Sha512) => Hasher::Sha512(Sha512::new()),
            None => Hasher::None,
        };
        Verifier { name: name.to_owned(), hasher, digest: expected.map(|e| e.digest.clone()).unwrap_or_default() }
    }

    /// Takes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha384(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
            Hasher::None => {}
        }
    }

    /// After the last byte: an error if this is not the content that the RECORD lists.
    pub fn finish(self) -> Result<(), FormatError> {
        let found = match self.hasher {
            Hasher::Sha256(hasher) => base64(&hasher.finalize()),
            Hasher::Sha384(hasher) => base64(&hasher.finalize()),
            Hasher::Sha512(hasher) => base64(&hasher.finalize()),
            Hasher::None => return Ok(()),
        };
        if found == self.digest {
            return Ok(());
        }
        let why = format!("its digest is {found}, but its RECORD says {}", self.digest);
        Err(FormatError::Entry { format: FORMAT, name: self.name, why })
    }
}

impl Write for Verifier {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(path: &str, hash: &str, size: &str) -> RecordRow {
        RecordRow { path: path.into(), hash: hash.into(), size: size.into() }
    }

    #[test]
    fn records_are_read_and_written_as_csv() {
        let text = "b,sha256=x,1\r\n\"a,\"\"q\"\"\",,\n\nRECORD,,";
        let rows = parse_record(text.as_bytes()).expect("good");
        assert_eq!(rows, [row("b", "sha256=x", "1"), row("a,\"q\"", "", ""), row("RECORD", "", "")]);
        assert_eq!(write_record(rows), "RECORD,,\r\n\"a,\"\"q\"\"\",,\r\nb,sha256=x,1\r\n");
        for bad in ["a", "a,b", "a,b,c,d", "\"a,b,c", "\"a\"b,c,d", "a\"b,,", "a,,\n,\n", "\u{0}"] {
            assert!(parse_record(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse_record(b"\xff,,\n").is_err());
    }

    #[test]
    fn digests_are_base64_without_padding() {
        assert_eq!(hash(b""), "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU");
        assert_eq!(base64(b"f"), "Zg");
        assert_eq!(base64(b"fo"), "Zm8");
        assert_eq!(base64(b"foo"), "Zm9v");
        for (hash, good) in [
            ("sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU", true),
            ("sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU=", true),
            ("sha256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", false),
            ("sha256=", false),
            ("sha512=z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg_SpIdNs6c5H0NE8XYXysP-DGNKHfuwvY7kxvUdBeoGlODJ6-SfaPg", true),
            ("sha384=OLBgp1GsljhM2TJ-sbHjaiH9txEUvgdDTAzHv2P24donTt6_529l-9Ua0vFImLlb", true),
        ] {
            let expected = Expected::of(&row("a", hash, "")).expect("known algorithms");
            assert_eq!(Verifier::new("a", Some(&expected)).finish().is_ok(), good, "{hash}");
        }
        for weak in ["", "md5=1B2M2Y8AsgTpgAmY7PhCfg", "sha1=2jmj7l5rSw0yVb_vlWAYkK_YBwk", "sha256"] {
            assert!(Expected::of(&row("a", weak, "")).is_err(), "{weak}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in proptest::collection::vec(("[a-z,\" /é]{1,8}", "[a-z=,]{0,4}", "[0-9]{0,3}"), 0..5)) {
            let mut rows: Vec<RecordRow> = rows.into_iter().map(|(path, hash, size)| RecordRow { path, hash, size }).collect();
            let written = write_record(rows.clone());
            rows.sort();
            prop_assert_eq!(parse_record(written.as_bytes()).expect("our own"), rows);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_record(&bytes);
        }
    }
}
