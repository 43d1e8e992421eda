//! `Release` files: which suite it is, how old it is, and what its index files hash to (Debian repository format).

use std::collections::BTreeMap;

use layers::Digest;

/// Why a Release file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// A line or value that does not belong there.
    #[error("its line `{0}` makes no sense")]
    Line(String),
    /// A field that stands twice.
    #[error("it has the field `{0}` twice")]
    Duplicate(String),
    /// A field that must be there.
    #[error("it has no usable field `{0}`")]
    Missing(&'static str),
    /// Another suite than the one asked for.
    #[error("it is for suite `{suite}` with codename `{codename}`, not for `{wanted}`")]
    Suite {
        /// What it says.
        suite: String,
        /// What it says.
        codename: String,
        /// What was asked for.
        wanted: String,
    },
    /// Its validity is over.
    #[error("it was valid until {0}; the mirror is out of date, or somebody holds back updates")]
    Expired(String),
    /// It comes from the future.
    #[error("its date {0} lies in the future; is the clock of this machine right?")]
    Future(String),
    /// It is older than what the lock has seen.
    #[error(
        "its date {found} is before {seen}, which images.lock has seen; the mirror is out of date, or somebody holds back updates"
    )]
    Rollback {
        /// What it says.
        found: String,
        /// What the lock says.
        seen: String,
    },
}

/// A Release file whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `Origin`.
    pub origin: String,
    /// `Suite`.
    pub suite: String,
    /// `Codename`.
    pub codename: String,
    /// `Date`, seconds since 1970.
    pub date: i64,
    /// `Valid-Until`, seconds since 1970.
    pub valid_until: Option<i64>,
    /// `Acquire-By-Hash`.
    pub by_hash: bool,
    /// Index files: name to digest and size in bytes.
    pub files: BTreeMap<String, (Digest, u64)>,
}

/// How far ahead the mirror's clock may be, seconds.
const SLACK: i64 = 86_400;

impl Release {
    /// Parses the signed text.
    pub fn parse(text: &str) -> Result<Release, ReleaseError> {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut current = String::new();
        for line in text.trim_end().lines() {
            let wrong = || ReleaseError::Line(line.chars().take(120).collect());
            if line.starts_with([' ', '\t']) {
                if current == "sha256" {
                    let mut words = line.split_ascii_whitespace();
                    let (Some(hex), Some(size), Some(name), None) =
                        (words.next(), words.next(), words.next(), words.next())
                    else {
                        return Err(wrong());
                    };
                    let digest = Digest::from_hex(hex).map_err(|_| wrong())?;
                    let size = size.parse().map_err(|_| wrong())?;
                    if name.contains(|c: char| c.is_control() || c.is_whitespace()) {
                        return Err(wrong());
                    }
                    if files.insert(name.to_owned(), (digest, size)).is_some_and(|old| old != (digest, size)) {
                        return Err(ReleaseError::Duplicate(format!("SHA256 {name}")));
                    }
                }
                continue;
            }
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            current = name.to_ascii_lowercase();
            if fields.insert(current.clone(), value.trim().to_owned()).is_some() {
                return Err(ReleaseError::Duplicate(name.to_owned()));
            }
        }
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        if files.is_empty() {
            return Err(ReleaseError::Missing("SHA256"));
        }
        let valid_until = match fields.get("valid-until") {
            Some(text) => Some(parse_date(text).ok_or(ReleaseError::Missing("Valid-Until"))?),
            None => None,
        };
        Ok(Release {
            origin: field("origin"),
            suite: field("suite"),
            codename: field("codename"),
            date: parse_date(&field("date")).ok_or(ReleaseError::Missing("Date"))?,
            valid_until,
            by_hash: field("acquire-by-hash") == "yes",
            files,
        })
    }

    /// Checks that it is the suite that was asked for, and neither stale nor older than `seen` (seconds since 1970).
    pub fn check(&self, wanted: &str, now: i64, seen: Option<i64>) -> Result<(), ReleaseError> {
        if self.suite != wanted && self.codename != wanted {
            return Err(ReleaseError::Suite {
                suite: self.suite.clone(),
                codename: self.codename.clone(),
                wanted: wanted.to_owned(),
            });
        }
        let shown = layers::oci::rfc3339;
        if self.date > now + SLACK {
            return Err(ReleaseError::Future(shown(self.date)));
        }
        if let Some(until) = self.valid_until.filter(|until| *until < now) {
            return Err(ReleaseError::Expired(shown(until)));
        }
        match seen {
            Some(seen) if self.date < seen => {
                Err(ReleaseError::Rollback { found: shown(self.date), seen: shown(seen) })
            }
            _ => Ok(()),
        }
    }
}

/// RFC 5322 dates as archives write them: `Sat, 15 Nov 2025 09:57:25 UTC`.
fn parse_date(text: &str) -> Option<i64> {
    // Digits alone, and few of them: a sign or an overflow would be another time.
    let number = |text: &str| -> Option<i64> {
        let plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten()
    };
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let mut words = text.split_ascii_whitespace();
    let day = number(words.next()?)?;
    let month = words.next()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? as i64 + 1;
    let year = number(words.next()?)?;
    let mut clock = words.next()?.split(':').map(number);
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if clock.next().is_some() || !matches!(words.next()?, "UTC" | "GMT" | "+0000") || words.next().is_some() {
        return None;
    }
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y.div_euclid(400) * 146_097 + y.rem_euclid(400) * 365 + y.rem_euclid(400) / 4 - y.rem_euclid(400) / 100
        + (153 * m + 2) / 5
        + day
        - 1
        - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 15 Nov 2025 09:57:25 UTC\n\
        Acquire-By-Hash: yes\nMD5Sum:\n 00 1 x\nSHA256:\n e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 main/a\n";

    #[test]
    fn a_release_says_what_it_is() {
        let release = Release::parse(TEXT).expect("parses");
        assert_eq!(layers::oci::rfc3339(release.date), "2025-11-15T09:57:25Z");
        assert_eq!(release.files["main/a"], (Digest::of(b""), 0));
        assert!(release.by_hash);
        let now = release.date + 100;
        assert_eq!(release.check("trixie", now, Some(release.date)), Ok(()));
        assert_eq!(release.check("stable", now, None), Ok(()));
        assert!(matches!(release.check("sid", now, None), Err(ReleaseError::Suite { .. })));
        assert!(matches!(release.check("trixie", now, Some(now)), Err(ReleaseError::Rollback { .. })));
        assert!(matches!(release.check("trixie", now - 200_000, None), Err(ReleaseError::Future(_))));
        let until = Release::parse(&format!("{TEXT}Valid-Until: Sun, 16 Nov 2025 09:57:25 UTC\n")).expect("parses");
        assert_eq!(until.check("trixie", now, None), Ok(()));
        assert!(matches!(until.check("trixie", now + 90_000, None), Err(ReleaseError::Expired(_))));
    }

    #[test]
    fn wrong_releases_are_refused() {
        for (from, to) in [
            ("Suite: stable", "Suite: stable\nSuite: sid"),
            ("Date: Sat, 15 Nov 2025 09:57:25 UTC", "Date: yesterday"),
            ("09:57:25", "-1:57:25"),
            ("09:57:25", "-9223372036854775808:57:25"),
            ("09:57:25", "09:57:25:01"),
            ("15 Nov", "+15 Nov"),
            ("SHA256:", "SHA512:"),
            ("e3b0", "E3B0"),
            (" 0 main/a", " main/a"),
            ("main/a", "main\u{b}/a"),
            ("main/a", "main\0/a"),
            ("Origin: Debian", "no colon"),
        ] {
            assert!(Release::parse(&TEXT.replace(from, to)).is_err(), "{to}");
        }
    }
}
