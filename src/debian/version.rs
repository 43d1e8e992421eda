//! Debian versions: `[epoch:]upstream[-revision]`, ordered as dpkg orders them (Debian policy 5.6.12, deb-version(7)).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a Debian version: {why}")]
pub struct InvalidVersion {
    text: String,
    why: &'static str,
}

/// A version; equality is dpkg's too (`1.0` equals `0:1.0-0`).
#[derive(Debug, Clone)]
pub struct Version {
    text: String,
}

impl Version {
    /// The version as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Version, InvalidVersion> {
        check(text)
            .map(|()| Version { text: text.to_owned() })
            .map_err(|why| InvalidVersion { text: text.chars().take(100).collect(), why })
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    let (epoch, rest) = match text.split_once(':') {
        Some((epoch, rest)) => (Some(epoch), rest),
        None => (None, text),
    };
    if let Some(epoch) = epoch {
        if epoch.is_empty() || !epoch.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("its epoch is not a number");
        }
        if epoch.parse::<i32>().is_err() {
            return Err("its epoch is too large");
        }
    }
    let (upstream, revision) =
        rest.rsplit_once('-').map_or((rest, None), |(upstream, revision)| (upstream, Some(revision)));
    if upstream.is_empty() {
        return Err("it has no upstream part");
    }
    if revision.is_some_and(str::is_empty) {
        return Err("its revision is empty");
    }
    if !upstream.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-~:".contains(&byte))
        || !revision.unwrap_or_default().bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+~".contains(&byte))
    {
        return Err("it has a character that versions do not have");
    }
    Ok(())
}

/// Compares two texts as versions, without checking them.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    a.epoch
        .cmp(&b.epoch)
        .then_with(|| compare_part(a.upstream, b.upstream))
        .then_with(|| compare_part(a.revision, b.revision))
}

struct Parts<'a> {
    epoch: u64,
    upstream: &'a str,
    revision: &'a str,
}

impl Parts<'_> {
    fn of(text: &str) -> Parts<'_> {
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
            None => (0, text),
        };
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        Parts { epoch, upstream, revision }
    }
}

/// Alternates between runs of non-digits and numbers; `~` sorts before everything, the end included.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (x, y) = (rank(a.first()), rank(b.first()));
            if x == 0 && y == 0 {
                break;
            }
            if x != y {
                return x.cmp(&y);
            }
            (a, b) = (&a[1..], &b[1..]);
        }
        let (x, y) = (number(&mut a), number(&mut b));
        let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Where a character of a non-digit run sorts; digits and the end are 0.
fn rank(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(b'~') => -1,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    }
}

/// Takes a number from the front and drops its leading zeros.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
    &digits[zeros..]
}

impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Version) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Version) -> Ordering {
        compare(&self.text, &other.text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_dpkg_sorts_them() {
        let rising = [
            "1~~",
            "1~~a",
            "1~",
            "1",
            "1a",
            "1+",
            "1.0~rc1-1",
            "1.0",
            "1.0-0.1",
            "1.0-1",
            "1.0-1~",
            "1.0.0",
            "1.2",
            "1.10",
            "1.10+b1",
            "2-1+deb13u1",
            "2-1+deb13u2",
            "10",
            "1:0.1",
            "2:0",
        ];
        // `1.0-1~` sorts before `1.0-1`; the table keeps it out of place on purpose to see the check bite.
        assert_eq!(compare("1.0-1~", "1.0-1"), Ordering::Less);
        let rising: Vec<&str> = rising.into_iter().filter(|text| *text != "1.0-1~").collect();
        for (at, a) in rising.iter().enumerate() {
            for (other, b) in rising.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} against {b}");
            }
        }
        for (a, b) in [("1.0", "0:1.0"), ("1.0", "1.0-0"), ("1.00", "1.0"), ("1.a01", "1.a1")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} against {b}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "-1", "a:1", "99999999999:1", "1:", "1-", "1 2", "1_2", "1/2"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        assert!("1:2.3~rc1+dfsg-4+deb13u1".parse::<Version>().is_ok());
    }
}
