//! PAX extended headers (POSIX.1-2001, "pax Header Block").

use std::collections::BTreeMap;

use super::{FORMAT, malformed};
use crate::format::FormatError;
use crate::format::error::lossy;

/// What an extended header says about the entries it is for.
#[derive(Debug, Default, Clone)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<i64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

/// For how many entries an extended header speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Type flag `x`: the next entry.
    Next,
    /// Type flag `g`: all that follow.
    Global,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

/// Reads the records of the extended header whose content is `bytes`, at offset `at`.
///
/// Owner names, access and change times, comments and vendors' records that mean nothing to an image are dropped, as tar
/// does without further options. Whatever would change where content begins or ends, other than `size`, is refused; so are
/// ACLs, which change the mode for bsdtar, and global records that bsdtar overlooks.
pub(super) fn parse(bytes: &[u8], at: u64, scope: Scope) -> Result<Records, FormatError> {
    let mut records = Records::default();
    let mut seen: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    let mut base64_xattrs = false;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (key, value, next) =
            record(rest).ok_or_else(|| malformed(at, format!("PAX record `{}` is malformed", lossy(rest))))?;
        rest = next;
        match seen.insert(key, value) {
            None => {}
            Some(before) if before == value => continue,
            Some(_) => {
                return Err(malformed(
                    at,
                    format!("PAX record `{}` is there twice, with different values", lossy(key)),
                ));
            }
        }
        let whole = || {
            text(value)
                .and_then(|text| text.parse::<u64>().ok())
                .filter(|_| value.iter().all(u8::is_ascii_digit))
                .ok_or_else(|| malformed(at, format!("PAX record `{}` is `{}`", lossy(key), lossy(value))))
        };
        let id = || {
            u32::try_from(whole()?)
                .map_err(|_| malformed(at, format!("PAX record `{}` is `{}`", lossy(key), lossy(value))))
        };
        let unsupported = |what: &str| FormatError::Unsupported { format: FORMAT, name: lossy(key), what: what.into() };
        let of_entry = matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime");
        if scope == Scope::Global && (of_entry || key.starts_with(XATTR)) {
            return Err(malformed(
                at,
                format!("a global PAX header sets `{}`, which belongs to one entry", lossy(key)),
            ));
        }
        match key {
            b"path" => records.path = Some(value.to_vec()),
            b"linkpath" => records.linkpath = Some(value.to_vec()),
            b"size" => records.size = Some(whole()?),
            b"uid" => records.uid = Some(id()?),
            b"gid" => records.gid = Some(id()?),
            b"mtime" => {
                records.mtime = Some(
                    seconds(value).ok_or_else(|| malformed(at, format!("PAX record `mtime` is `{}`", lossy(value))))?,
                );
            }
            b"hdrcharset" if value != b"BINARY" && value != b"ISO-IR 10646 2000 UTF-8" => {
                return Err(unsupported("names in another character set than UTF-8"));
            }
            b"SCHILY.realsize" | b"SCHILY.offset" => return Err(unsupported("a sparse file")),
            b"SCHILY.devmajor" | b"SCHILY.devminor" => return Err(unsupported("star's device numbers")),
            _ if key.starts_with(b"GNU.sparse.") => return Err(unsupported("a sparse file")),
            b"SUN.holesdata" => return Err(unsupported("a sparse file")),
            _ if key.starts_with(b"SCHILY.acl.") => return Err(unsupported("an access control list")),
            _ if key.starts_with(b"GNU.volume.") => return Err(unsupported("a part of a multi-volume archive")),
            _ if key.starts_with(b"LIBARCHIVE.xattr.") => base64_xattrs = true,
            _ if key.starts_with(XATTR) => {
                let name = text(&key[XATTR.len()..])
                    .filter(|name| !name.is_empty() && name.len() <= 255 && !name.contains('\0'))
                    .ok_or_else(|| malformed(at, format!("`{}` names no extended attribute", lossy(key))))?;
                records.xattrs.insert(name.to_owned(), value.to_vec());
            }
            _ => {}
        }
    }
    // libarchive writes both spellings; its own alone would be dropped silently.
    if base64_xattrs && records.xattrs.is_empty() {
        return Err(FormatError::Unsupported {
            format: FORMAT,
            name: "LIBARCHIVE.xattr".into(),
            what: "extended attributes in libarchive's spelling alone".into(),
        });
    }
    Ok(records)
}

/// Takes `LENGTH KEY=VALUE\n` off the front; the length counts the whole record.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let digits = &bytes[..space];
    if digits.is_empty() || digits[0] == b'0' || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length: usize = text(digits)?.parse().ok()?;
    if length <= space + 1 || length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Whole seconds of a PAX time, `-?digits[.digits]`, rounded down as `stat` does.
fn seconds(value: &[u8]) -> Option<i64> {
    let value = text(value)?;
    let (sign, magnitude) = match value.strip_prefix('-') {
        Some(magnitude) => (-1i64, magnitude),
        None => (1, value),
    };
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = whole.parse::<i64>().ok()? * sign;
    if sign < 0 && fraction.bytes().any(|digit| digit != b'0') { seconds.checked_sub(1) } else { Some(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lose_their_fraction() {
        assert_eq!(seconds(b"1700000000.999"), Some(1_700_000_000));
        assert_eq!(seconds(b"5."), Some(5));
        assert_eq!(seconds(b"-1.5"), Some(-2));
        assert_eq!(seconds(b"-1.000"), Some(-1));
        for bad in [&b""[..], b"-", b".5", b"1e3", b"+1", b"1.2.3", b"99999999999999999999", b" 1"] {
            assert_eq!(seconds(bad), None, "{}", lossy(bad));
        }
    }

    #[test]
    fn records_are_strict() {
        assert_eq!(record(b"6 a=b\nrest"), Some((&b"a"[..], &b"b"[..], &b"rest"[..])));
        assert_eq!(record(b"5 a=\n"), Some((&b"a"[..], &b""[..], &b""[..])));
        for bad in [
            &b"6 a=b"[..],
            b"06 a=b\n",
            b"7 a=b\n",
            b"5 a=b\n",
            b"+6 a=b\n",
            b"6 =bc\n",
            b"6 abc\n",
            b"99999999999999999999 a=b\n",
            b"\0\0\0\0",
            b"2 \n",
            b"1 a=b\n",
        ] {
            assert_eq!(record(bad), None, "{}", lossy(bad));
        }
    }
}
