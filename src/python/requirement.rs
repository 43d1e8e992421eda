//! One requirement as PEP 508 writes it, as far as a lock needs it.

use std::collections::BTreeSet;

use super::markers::Marker;
use super::{PythonError, normalised};

/// `name[extra] ==1.0 ; marker` or `name @ url ; marker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Requirement {
    /// Normalised.
    pub name: String,
    /// Normalised.
    pub extras: BTreeSet<String>,
    /// The version specifiers as they are written.
    pub specifiers: String,
    /// What follows `@`.
    pub url: Option<String>,
    /// Where it applies.
    pub marker: Marker,
}

impl Requirement {
    /// The normalised name alone, of a text such as `PySocks (>=1.5.6,!=1.5.7)`.
    pub fn name_of(text: &str) -> String {
        let end = text.find(|character: char| !is_name(character)).unwrap_or(text.len());
        normalised(&text[..end])
    }

    /// Parses a requirement. `whose` names it in errors.
    pub fn parse(text: &str, whose: &str) -> Result<Requirement, PythonError> {
        let refuse = |why: String| PythonError::Syntax { path: whose.to_owned(), line: None, message: why };
        let text = text.trim();
        let end = text.find(|character: char| !is_name(character)).unwrap_or(text.len());
        let (name, mut rest) = (&text[..end], text[end..].trim_start());
        if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            return Err(refuse("a requirement begins with a name".into()));
        }
        let mut extras = BTreeSet::new();
        if let Some(bracketed) = rest.strip_prefix('[') {
            let (listed, after) = bracketed.split_once(']').ok_or_else(|| refuse("`[` is not closed".into()))?;
            for extra in listed.split(',').map(str::trim).filter(|extra| !extra.is_empty()) {
                if !extra.chars().all(is_name) {
                    return Err(refuse(format!("`{extra}` is not the name of an extra")));
                }
                extras.insert(normalised(extra));
            }
            rest = after.trim_start();
        }
        let (url, specifiers, marker) = match rest.strip_prefix('@') {
            // A URL may hold `;`: only a blank before it ends the URL.
            Some(after) => {
                let (url, marker) = match after.split_once(" ;") {
                    Some((url, marker)) => (url, Some(marker)),
                    None => (after, None),
                };
                (Some(url.trim().to_owned()), "", marker)
            }
            None => match rest.split_once(';') {
                Some((specifiers, marker)) => (None, specifiers, Some(marker)),
                None => (None, rest, None),
            },
        };
        let specifiers = specifiers.trim();
        let specifiers = specifiers.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(specifiers);
        if !specifiers.is_empty() && !specifiers.starts_with(['<', '>', '=', '!', '~']) {
            return Err(refuse(format!("`{specifiers}` is not a version specifier")));
        }
        Ok(Requirement {
            name: normalised(name),
            extras,
            specifiers: specifiers.trim().to_owned(),
            url,
            marker: marker.map_or(Ok(Marker::Always), |marker| Marker::parse(marker.trim(), whose))?,
        })
    }
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_taken_apart() {
        for (text, name, extras, specifiers, url) in [
            ("Foo.Bar==1.0", "foo-bar", "", "==1.0", None),
            ("foo[A_b, c] >=1,<2 ; os_name == 'posix'", "foo", "a-b c", ">=1,<2", None),
            ("foo (>=1)", "foo", "", ">=1", None),
            ("foo", "foo", "", "", None),
            ("foo @ https://x.example/a;b.whl ; os_name == 'nt'", "foo", "", "", Some("https://x.example/a;b.whl")),
        ] {
            let parsed = Requirement::parse(text, "r").unwrap();
            let found: Vec<&str> = parsed.extras.iter().map(String::as_str).collect();
            assert_eq!((parsed.name.as_str(), found.join(" ").as_str()), (name, extras), "{text}");
            assert_eq!((parsed.specifiers.as_str(), parsed.url.as_deref()), (specifiers, url), "{text}");
        }
        for text in ["", "-e .", "./x", "foo[a", "foo[a b]", "foo bar", "foo ; nonsense"] {
            assert!(Requirement::parse(text, "r").is_err(), "{text}");
        }
        assert_eq!(Requirement::name_of("PySocks (>=1.5.6,!=1.5.7)"), "pysocks");
    }
}
