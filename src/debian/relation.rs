//! Relations between packages: `a (>= 1) | b:any, c` (Debian policy 7.1).

use std::cmp::Ordering;
use std::fmt;

use super::version::compare;

/// How versions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Operator {
    /// Whether `version` stands in this relation to `bound`.
    pub fn holds(self, version: &str, bound: &str) -> bool {
        let order = compare(version, bound);
        match self {
            Operator::Earlier => order == Ordering::Less,
            Operator::EarlierOrEqual => order != Ordering::Greater,
            Operator::Equal => order == Ordering::Equal,
            Operator::LaterOrEqual => order != Ordering::Less,
            Operator::Later => order == Ordering::Greater,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Operator::Earlier => "<<",
            Operator::EarlierOrEqual => "<=",
            Operator::Equal => "=",
            Operator::LaterOrEqual => ">=",
            Operator::Later => ">>",
        }
    }
}

/// One package that a relation names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Atom<'a> {
    /// Its name.
    pub name: &'a str,
    /// `any`, `native` or an architecture behind a colon.
    pub qualifier: Option<&'a str>,
    /// A bound on its version.
    pub version: Option<(Operator, &'a str)>,
}

impl Atom<'_> {
    /// Whether a package of this name with `version` fits.
    pub fn fits(&self, version: &str) -> bool {
        self.version.is_none_or(|(operator, bound)| operator.holds(version, bound))
    }

    /// Whether a `Provides` fits: one without a version satisfies only relations without one (Debian policy 7.5).
    pub fn fits_provided(&self, version: Option<&str>) -> bool {
        match (self.version, version) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((operator, bound)), Some(version)) => operator.holds(version, bound),
        }
    }
}

impl fmt::Display for Atom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        if let Some((operator, version)) = self.version {
            write!(f, " ({} {version})", operator.text())?;
        }
        Ok(())
    }
}

/// A text that is no relation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a relation between packages: {why}")]
pub struct InvalidRelation {
    text: String,
    why: &'static str,
}

/// Parses a whole field: a list of groups of alternatives.
pub fn parse(field: &str) -> Result<Vec<Vec<Atom<'_>>>, InvalidRelation> {
    field
        .split(',')
        .map(str::trim)
        .filter(|group| !group.is_empty())
        .map(|group| group.split('|').map(|text| atom(text.trim())).collect())
        .collect()
}

/// A group of alternatives as it is written.
pub fn shown(group: &[Atom<'_>]) -> String {
    group.iter().map(Atom::to_string).collect::<Vec<_>>().join(" | ")
}

fn atom(text: &str) -> Result<Atom<'_>, InvalidRelation> {
    let wrong = |why| InvalidRelation { text: text.chars().take(200).collect(), why };
    let end = text.find([' ', '\t', '\n', '(', '[', '<']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let (name, qualifier) = match name.split_once(':') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (name, None),
    };
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if name.len() < 2 || !name.bytes().all(word) || !name.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(wrong("it names no package"));
    }
    if qualifier.is_some_and(|qualifier| qualifier.is_empty() || !qualifier.bytes().all(word)) {
        return Err(wrong("nothing usable stands behind the `:`"));
    }
    let rest = rest.trim();
    if rest.is_empty() {
        return Ok(Atom { name, qualifier, version: None });
    }
    let inside = rest
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .ok_or_else(|| wrong("expected a version in parentheses"))?
        .trim();
    let operators = [
        ("<<", Operator::Earlier),
        ("<=", Operator::EarlierOrEqual),
        (">=", Operator::LaterOrEqual),
        (">>", Operator::Later),
        ("=", Operator::Equal),
    ];
    let (operator, version) = operators
        .iter()
        .find_map(|(text, operator)| inside.strip_prefix(text).map(|version| (*operator, version.trim())))
        .ok_or_else(|| wrong("expected one of `<<`, `<=`, `=`, `>=`, `>>`"))?;
    if version.is_empty() {
        return Err(wrong("the version is missing"));
    }
    Ok(Atom { name, qualifier, version: Some((operator, version)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_back_as_written() {
        let field = "libc6 (>= 2.38), python3:any | python3.13 (<< 4~), mail-transport-agent";
        let groups = parse(field).expect("parses");
        let text: Vec<String> =
            groups.iter().map(|group| group.iter().map(Atom::to_string).collect::<Vec<_>>().join(" | ")).collect();
        assert_eq!(text.join(", "), field);
        assert!(parse("").expect("parses").is_empty());
    }

    #[test]
    fn malformed_relations_are_refused() {
        for field in ["a", "foo (1)", "foo (>=)", "foo (>= 1", "foo:", "f/oo", "foo | ", "-foo"] {
            assert!(parse(field).is_err(), "{field}");
        }
    }

    #[test]
    fn a_provide_without_a_version_satisfies_no_bound() {
        let groups = parse("foo (>= 1), foo").expect("parses");
        assert!(!groups[0][0].fits_provided(None));
        assert!(groups[0][0].fits_provided(Some("2")));
        assert!(groups[1][0].fits_provided(None));
    }
}
