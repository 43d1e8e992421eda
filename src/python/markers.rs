//! Environment markers (PEP 508, with PEP 751's `extras` and `dependency_groups`), evaluated for the *target*.
//!
//! The and/or/parentheses structure is parsed here, with bounds, and only single comparisons are handed to
//! [`pep508_rs`]: its parser recurses on parentheses without a limit, and it drops comparisons that it does not
//! understand, which would install what the lock excludes. Here both are errors.

use std::collections::BTreeSet;
use std::str::FromStr;

use pep508_rs::{
    ExtraName, MarkerEnvironment, MarkerEnvironmentBuilder, MarkerExpression, MarkerTree, MarkerWarningKind,
};

use super::constraint::Constraint;
use super::{PythonError, Target, normalised};

/// Longest marker that is read, in bytes. Those of locks with many forks have some kilobytes.
const LONGEST: usize = 64 << 10;

/// Deepest nesting of parentheses.
const DEEPEST: usize = 64;

/// A condition on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marker {
    /// Holds on every target.
    Always,
    /// Holds where every part holds.
    All(Vec<Marker>),
    /// Holds where a part holds; never, if it is empty.
    Any(Vec<Marker>),
    /// One comparison of PEP 508.
    Is(Box<MarkerExpression>),
    /// `"name" in extras` or `"name" not in extras` (PEP 751).
    Extra {
        /// The normalised name.
        name: String,
        /// Whether it must be there.
        present: bool,
    },
    /// `"name" in dependency_groups` or its negation (PEP 751).
    Group {
        /// The normalised name.
        name: String,
        /// Whether it must be there.
        present: bool,
    },
    /// The interpreter's version is allowed (Poetry's `python = "<3.13"`).
    Python(Constraint),
}

/// What markers are evaluated against: the target, the extras and the dependency groups in force.
#[derive(Debug, Clone)]
pub struct Environment {
    target: MarkerEnvironment,
    python: pep440_rs::Version,
    extras: BTreeSet<String>,
    extra_names: Vec<ExtraName>,
    groups: BTreeSet<String>,
}

impl Environment {
    /// CPython on Linux as `target` says; nothing of the machine that builds is read. `platform_release` and
    /// `platform_version` are those of a kernel that is not known yet, and are empty.
    pub fn of(target: &Target) -> Result<Environment, PythonError> {
        let full = target.python().to_string();
        let (major, minor) = target.minor();
        let version = format!("{major}.{minor}");
        let environment = MarkerEnvironment::try_from(MarkerEnvironmentBuilder {
            implementation_name: "cpython",
            implementation_version: &full,
            os_name: "posix",
            platform_machine: target.platform().machine(),
            platform_python_implementation: "CPython",
            platform_release: "",
            platform_system: "Linux",
            platform_version: "",
            python_full_version: &full,
            python_version: &version,
            sys_platform: "linux",
        })
        .map_err(|_| PythonError::Interpreter { version: full })?;
        Ok(Environment {
            target: environment,
            python: target.python().clone(),
            extras: BTreeSet::new(),
            extra_names: Vec::new(),
            groups: BTreeSet::new(),
        })
    }

    /// The same target with these extras in force.
    pub fn with_extras<'a>(&self, extras: impl IntoIterator<Item = &'a String>) -> Environment {
        let mut with = self.clone();
        with.extras = extras.into_iter().map(|name| normalised(name)).collect();
        with.extra_names = with.extras.iter().filter_map(|name| ExtraName::from_str(name).ok()).collect();
        with
    }

    /// The same target with these dependency groups in force.
    pub fn with_groups<'a>(&self, groups: impl IntoIterator<Item = &'a String>) -> Environment {
        let mut with = self.clone();
        with.groups = groups.into_iter().map(|name| normalised(name)).collect();
        with
    }
}

impl Marker {
    /// Parses a marker. `whose` names the entry in errors.
    pub fn parse(text: &str, whose: &str) -> Result<Marker, PythonError> {
        let invalid = |why: String| PythonError::Marker {
            whose: whose.to_owned(),
            marker: text.chars().take(200).collect(),
            why,
        };
        if text.len() > LONGEST {
            return Err(invalid(format!("it is longer than {LONGEST} bytes")));
        }
        let tokens = tokens(text).map_err(invalid)?;
        let mut parser = Parser { text, tokens: &tokens, next: 0 };
        let marker = parser.any(0).map_err(invalid)?;
        match parser.peek() {
            None => Ok(marker),
            Some(_) => Err(invalid("a parenthesis is closed that was not opened".into())),
        }
    }

    /// Whether the condition holds.
    pub fn holds(&self, environment: &Environment) -> bool {
        match self {
            Marker::Always => true,
            Marker::All(parts) => parts.iter().all(|part| part.holds(environment)),
            Marker::Any(parts) => parts.iter().any(|part| part.holds(environment)),
            Marker::Is(expression) => {
                MarkerTree::expression((**expression).clone()).evaluate(&environment.target, &environment.extra_names)
            }
            Marker::Extra { name, present } => environment.extras.contains(name) == *present,
            Marker::Group { name, present } => environment.groups.contains(name) == *present,
            Marker::Python(constraint) => constraint.allows(&environment.python),
        }
    }

    /// Both conditions.
    pub fn and(self, other: Marker) -> Marker {
        match (self, other) {
            (Marker::Always, other) | (other, Marker::Always) => other,
            (one, other) => Marker::All(vec![one, other]),
        }
    }

    /// Whether an `extra` is compared anywhere in it.
    pub(super) fn names_extra(&self) -> bool {
        match self {
            Marker::All(parts) | Marker::Any(parts) => parts.iter().any(Marker::names_extra),
            Marker::Is(expression) => matches!(**expression, MarkerExpression::Extra { .. }),
            Marker::Extra { .. } => true,
            Marker::Always | Marker::Group { .. } | Marker::Python(_) => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    /// A word, an operator or a quoted string: bytes `from..to` of the text.
    Part(usize, usize),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let from = at;
        at += 1;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'(' => tokens.push(Token::Open),
            b')' => tokens.push(Token::Close),
            b'"' | b'\'' => {
                let length = text[at..].find(byte as char).ok_or("a quote is not closed")?;
                at += length + 1;
                tokens.push(Token::Part(from, at));
            }
            b'<' | b'>' | b'=' | b'!' | b'~' => {
                while bytes.get(at).is_some_and(|next| b"<>=!~".contains(next)) {
                    at += 1;
                }
                tokens.push(Token::Part(from, at));
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                while bytes.get(at).is_some_and(|next| next.is_ascii_alphanumeric() || b"_.".contains(next)) {
                    at += 1;
                }
                tokens.push(match &text[from..at] {
                    "and" => Token::And,
                    "or" => Token::Or,
                    _ => Token::Part(from, at),
                });
            }
            _ => {
                let odd = text[from..].chars().next().unwrap_or_default();
                return Err(format!("{odd:?} is unexpected"));
            }
        }
    }
    Ok(tokens)
}

struct Parser<'a> {
    text: &'a str,
    tokens: &'a [Token],
    next: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<Token> {
        self.tokens.get(self.next).copied()
    }

    fn any(&mut self, depth: usize) -> Result<Marker, String> {
        let mut parts = vec![self.all(depth)?];
        while self.peek() == Some(Token::Or) {
            self.next += 1;
            parts.push(self.all(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Marker::Any(parts) })
    }

    fn all(&mut self, depth: usize) -> Result<Marker, String> {
        let mut parts = vec![self.one(depth)?];
        while self.peek() == Some(Token::And) {
            self.next += 1;
            parts.push(self.one(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Marker::All(parts) })
    }

    fn one(&mut self, depth: usize) -> Result<Marker, String> {
        if self.peek() == Some(Token::Open) {
            if depth == DEEPEST {
                return Err(format!("parentheses are nested deeper than {DEEPEST}"));
            }
            self.next += 1;
            let inner = self.any(depth + 1)?;
            if self.peek() != Some(Token::Close) {
                return Err("a parenthesis is not closed".into());
            }
            self.next += 1;
            return Ok(inner);
        }
        let mut parts = Vec::new();
        while let Some(Token::Part(from, to)) = self.peek() {
            parts.push(&self.text[from..to]);
            self.next += 1;
        }
        comparison(&parts)
    }
}

fn comparison(parts: &[&str]) -> Result<Marker, String> {
    let (left, operator, right) = match parts {
        [left, operator, right] => (*left, (*operator).to_owned(), *right),
        [left, "not", "in", right] => (*left, "not in".to_owned(), *right),
        _ => return Err(format!("`{}` is not a comparison", parts.join(" "))),
    };
    if matches!(right, "extras" | "dependency_groups") {
        let name = normalised(left.trim_matches(['"', '\'']));
        let present = match operator.as_str() {
            "in" => true,
            "not in" => false,
            _ => return Err(format!("`{operator}` does not apply to `{right}`: use `in` or `not in`")),
        };
        if !left.starts_with(['"', '\'']) {
            return Err(format!("`{left}` should be a quoted name"));
        }
        return Ok(match right {
            "extras" => Marker::Extra { name, present },
            _ => Marker::Group { name, present },
        });
    }
    let mut ignored = None;
    let mut report = |kind: MarkerWarningKind, message: String| match kind {
        MarkerWarningKind::DeprecatedMarkerName | MarkerWarningKind::LexicographicComparison => {}
        _ => ignored = Some(message),
    };
    // Old metadata lists versions with commas (`python_version in "2.7, 3.3"`), pep508_rs with blanks alone.
    let listed = operator.ends_with("in") && matches!(left, "python_version" | "python_full_version");
    let right = if listed { right.replace(',', " ") } else { right.to_owned() };
    let text = format!("{left} {operator} {right}");
    let parsed = MarkerExpression::parse_reporter(&text, &mut report)
        .map_err(|error| error.message.to_string().replace('\n', " "))?;
    match (parsed, ignored) {
        (Some(expression), None) => Ok(Marker::Is(Box::new(expression))),
        (_, Some(message)) => Err(message),
        (None, None) => Err(format!("`{text}` means nothing")),
    }
}

#[cfg(test)]
mod tests {
    use layers::Platform;

    use super::*;

    fn environment(platform: Platform) -> Environment {
        Environment::of(&Target::trixie(platform, "3.13.5").unwrap()).unwrap()
    }

    #[test]
    fn markers_are_evaluated_for_the_target() {
        let cases = [
            ("python_version >= '3.9'", true, true),
            ("python_version < '3.10'", false, false),
            ("python_version == '3.13'", true, true),
            ("python_version > '3.13'", false, false),
            ("python_full_version >= '3.13.5'", true, true),
            ("python_full_version < '3.13.5'", false, false),
            ("python_version in '3.12, 3.13'", true, true),
            ("python_version not in '3.12 3.13'", false, false),
            ("'3.8' <= python_version", true, true),
            ("python_version ~= '3.8'", true, true),
            ("sys_platform == 'linux'", true, true),
            ("sys_platform == 'win32' or sys_platform == 'darwin'", false, false),
            ("os_name == \"nt\"", false, false),
            ("platform_system != \"Windows\"", true, true),
            ("platform_machine == 'x86_64'", true, false),
            ("platform_machine == 'aarch64' and sys_platform == 'linux'", false, true),
            ("platform_machine in 'x86_64 amd64'", true, false),
            ("'arch' in platform_machine", false, true),
            ("implementation_name == 'pypy'", false, false),
            ("platform_python_implementation == 'CPython'", true, true),
            ("python_version<'3.10'or(sys_platform=='linux'and(os_name=='posix'))", true, true),
            ("(python_version < '3' and os_name == 'posix') or platform_machine == 'aarch64'", false, true),
            ("extra == 'x'", false, false),
            ("extra != 'x'", true, true),
            ("'x' in extras", false, false),
            ("\"dev\" not in dependency_groups", true, true),
        ];
        for (text, amd64, arm64) in cases {
            let marker = Marker::parse(text, "x").unwrap();
            assert_eq!(marker.holds(&environment(Platform::Amd64)), amd64, "{text} on amd64");
            assert_eq!(marker.holds(&environment(Platform::Arm64)), arm64, "{text} on arm64");
        }
    }

    #[test]
    fn extras_and_groups_are_in_force_where_named() {
        let plain = environment(Platform::Amd64);
        let with = plain.with_extras(&["Fancy_X".to_owned()]).with_groups(&["docs".to_owned()]);
        for (text, without, within) in [
            ("extra == 'fancy-x'", false, true),
            ("extra == 'fancy-x' or extra == 'other'", false, true),
            ("'fancy.x' in extras", false, true),
            ("'docs' in dependency_groups and 'fancy-x' in extras", false, true),
            ("'docs' not in dependency_groups", true, false),
        ] {
            let marker = Marker::parse(text, "x").unwrap();
            assert_eq!((marker.holds(&plain), marker.holds(&with)), (without, within), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, why) in [
            ("", "not a comparison"),
            ("python_version", "not a comparison"),
            ("python_version >= '3.9", "quote is not closed"),
            ("python_version >= '3.9' and", "not a comparison"),
            ("(python_version >= '3.9'", "not closed"),
            ("python_version >= '3.9')", "not opened"),
            ("python_version >= '3.9' os_name == 'nt'", "not a comparison"),
            ("python_version >= 'three'", "three"),
            ("pythonversion >= '3'", "pythonversion"),
            ("os_name == sys_platform", "markers"),
            ("'a' == 'b'", "strings"),
            ("extras == 'x'", "extras"),
            ("'x' == extras", "does not apply"),
            ("os_name in extras", "quoted"),
            ("os_name == 'é' ; é", "unexpected"),
        ] {
            let error = Marker::parse(text, "poetry.lock: click").unwrap_err().to_string();
            assert!(error.contains("poetry.lock: click"), "{text}: {error}");
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = format!("{}os_name == 'x'{}", "(".repeat(60_000), ")".repeat(4));
        assert!(Marker::parse(&deep, "x").unwrap_err().to_string().contains("nested deeper"));
        let long = format!("os_name == '{}'", "x".repeat(70_000));
        assert!(Marker::parse(&long, "x").unwrap_err().to_string().contains("longer than"));
    }
}
