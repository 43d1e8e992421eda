//! Version constraints: PEP 440 specifiers, and Poetry's dialect of them (`^`, `~`, `*`, `||`).

use std::fmt;
use std::str::FromStr;

use pep440_rs::{Version, VersionSpecifiers};

/// Versions that are allowed: those that one of the alternatives contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    text: String,
    alternatives: Vec<VersionSpecifiers>,
}

impl Constraint {
    /// Parses PEP 440 specifiers such as `>=3.9,<4`. The error says why not.
    pub fn pep440(text: &str) -> Result<Constraint, String> {
        let specifiers = VersionSpecifiers::from_str(text.trim()).map_err(|_| refused(text))?;
        Ok(Constraint { text: text.to_owned(), alternatives: vec![specifiers] })
    }

    /// Parses Poetry's dialect, in which `^1.2`, `~1.2`, `1.*`, a bare `1.2`, and alternatives between `||` or `|`
    /// are understood too.
    pub fn poetry(text: &str) -> Result<Constraint, String> {
        if text.len() > 4096 {
            return Err(refused(text));
        }
        let mut alternatives = Vec::new();
        for alternative in text.split('|').map(str::trim) {
            // `||` leaves an empty alternative between its bars.
            if alternative.is_empty() && text.contains('|') {
                continue;
            }
            let mut specifiers = Vec::new();
            for part in parts(alternative) {
                specifiers.push(specifier(&part).ok_or_else(|| refused(text))?);
            }
            specifiers.retain(|specifier| !specifier.is_empty());
            let joined = specifiers.join(",");
            alternatives.push(VersionSpecifiers::from_str(&joined).map_err(|_| refused(text))?);
        }
        Ok(Constraint { text: text.to_owned(), alternatives })
    }

    /// Whether `version` is allowed.
    pub fn allows(&self, version: &Version) -> bool {
        self.alternatives.iter().any(|specifiers| specifiers.contains(version))
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn refused(text: &str) -> String {
    format!("`{}` is not a version constraint", text.chars().take(100).collect::<String>())
}

/// Splits at commas and at blanks that are not inside a part: `>= 1.2 <2` is two parts.
fn parts(alternative: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in alternative.split(|character: char| character == ',' || character.is_whitespace()) {
        if word.is_empty() {
            continue;
        }
        match parts.last_mut() {
            Some(last) if last.ends_with(['<', '>', '=', '~', '^', '!']) => last.push_str(word),
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}

/// One part as PEP 440 specifiers; empty where everything is allowed.
fn specifier(part: &str) -> Option<String> {
    if part == "*" {
        return Some(String::new());
    }
    if let Some(version) = part.strip_prefix('^') {
        let version = Version::from_str(version).ok()?;
        let release = version.release();
        // Up to the next change of the leftmost number that is not zero; `^0.0` allows 0.0.x, `^0` allows 0.x.
        let position = release.iter().position(|&number| number != 0).unwrap_or(release.len() - 1);
        return Some(format!(">={version},<{}", raised(&release[..=position])?));
    }
    if let Some(version) = part.strip_prefix('~').filter(|rest| !rest.starts_with('=')) {
        let version = Version::from_str(version).ok()?;
        let kept = version.release().len().min(2);
        return Some(format!(">={version},<{}", raised(&version.release()[..kept])?));
    }
    if part.starts_with(|first: char| first.is_ascii_digit() || first == 'v') {
        return Some(format!("=={part}"));
    }
    match part.strip_prefix('=').filter(|rest| !rest.starts_with('=')) {
        Some(version) => Some(format!("=={version}")),
        None => Some(part.to_owned()),
    }
}

/// The release with its last number raised by one.
fn raised(release: &[u64]) -> Option<String> {
    let (last, rest) = release.split_last()?;
    let mut numbers: Vec<String> = rest.iter().map(u64::to_string).collect();
    numbers.push(last.checked_add(1)?.to_string());
    Some(numbers.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poetry_constraints_allow_what_poetry_allows() {
        for (constraint, allowed, refused) in [
            ("*", "0 1.0 99", ""),
            ("", "1.0", ""),
            ("^3.12", "3.12 3.13.5 3.99", "3.11 4.0"),
            ("^0.3.1", "0.3.1 0.3.9", "0.3.0 0.4.0"),
            ("^0.0.3", "0.0.3", "0.0.4"),
            ("^0", "0 0.9", "1.0"),
            ("^1.2.3", "1.2.3 1.9", "1.2.2 2.0"),
            ("~1.2.3", "1.2.3 1.2.9", "1.3"),
            ("~1", "1.0 1.9", "2.0"),
            ("~=1.4", "1.4 1.9", "2.0 1.3"),
            ("1.2", "1.2 1.2.0", "1.2.1"),
            ("1.*", "1.0 1.9", "2.0"),
            ("=1.2", "1.2", "1.3"),
            (">=3.9,<4.0", "3.13.5", "4.0 3.8"),
            (">= 3.9 < 4.0", "3.13.5", "4.0 3.8"),
            (">=3.9, !=3.9.1, <4", "3.9 3.9.2", "3.9.1"),
            ("<3.0 || >=3.13", "2.7 3.13", "3.12"),
            ("^1.0|^3.0", "1.5 3.5", "2.5"),
            ("==1!2.0", "1!2.0", "2.0"),
        ] {
            let parsed = Constraint::poetry(constraint).unwrap();
            for version in allowed.split_whitespace() {
                assert!(parsed.allows(&version.parse().unwrap()), "{constraint} should allow {version}");
            }
            for version in refused.split_whitespace() {
                assert!(!parsed.allows(&version.parse().unwrap()), "{constraint} should refuse {version}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["^", "~", ">", "^x", ">=1,,x", "1.2.3.*.4", "^18446744073709551615", &"1,".repeat(5000)] {
            assert!(Constraint::poetry(text).is_err(), "{text}");
        }
        assert!(Constraint::pep440("^1").is_err());
    }
}
