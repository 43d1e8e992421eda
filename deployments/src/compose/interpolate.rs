//! `${NAME}` in compose files, by the rules of the Compose specification ("Interpolation").

use std::collections::BTreeMap;

use serde_json::Value;
use thiserror::Error;

use super::Settings;

/// A variable that cannot be put in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Interpolation {
    /// `${NAME:?message}` and it is not set.
    #[error("`{name}` must be set: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message of the file.
        message: String,
    },
    /// A `${` that starts no variable, or variables nested too deep.
    #[error("`{text}` is not a variable; a dollar sign itself is written `$$`")]
    Malformed {
        /// The text from the dollar sign on, shortened.
        text: String,
    },
}

/// One piece of a text.
enum Piece<'a> {
    Text(&'a str),
    Dollar,
    Variable { name: &'a str, operator: &'a str, word: &'a str },
}

/// Puts variables into a text. Unset variables without a default are empty.
pub fn interpolate(text: &str, settings: &Settings) -> Result<String, Interpolation> {
    with(text, &|name| settings.get(name).cloned())
}

/// The same, with whoever knows the variables.
pub(super) fn with(text: &str, known: &dyn Fn(&str) -> Option<String>) -> Result<String, Interpolation> {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text)? {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Dollar => out.push('$'),
            Piece::Variable { name, operator, word } => {
                // With a colon an empty value counts as unset.
                let usable = known(name).filter(|value| !(operator.starts_with(':') && value.is_empty()));
                match (operator.trim_start_matches(':'), usable) {
                    ("-" | "?" | "", Some(value)) => out.push_str(&value),
                    ("-", None) => out.push_str(&with(word, known)?),
                    ("+", Some(_)) => out.push_str(&with(word, known)?),
                    ("?", None) => {
                        return Err(Interpolation::Required { name: name.into(), message: word.into() });
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(out)
}

/// The variables that a text mentions, with their defaults.
pub fn variables(text: &str) -> Result<Vec<(String, Option<String>)>, Interpolation> {
    let mut found = Vec::new();
    for piece in pieces(text)? {
        if let Piece::Variable { name, operator, word } = piece {
            let default = matches!(operator, "-" | ":-").then(|| word.to_owned());
            found.push((name.to_owned(), default));
            found.extend(variables(word)?);
        }
    }
    Ok(found)
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, Interpolation> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        pieces.push(Piece::Text(&rest[..at]));
        let after = &rest[at + 1..];
        let malformed = || Interpolation::Malformed { text: rest[at..].chars().take(80).collect() };
        if let Some(after) = after.strip_prefix('$') {
            pieces.push(Piece::Dollar);
            rest = after;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or_else(malformed)?;
            let body = &inner[..end];
            let name = &body[..name_length(body)];
            let tail = &body[name.len()..];
            let operator_length = match tail.as_bytes() {
                [] => 0,
                [b':', b'-' | b'?' | b'+', ..] => 2,
                [b'-' | b'?' | b'+', ..] => 1,
                _ => return Err(malformed()),
            };
            if name.is_empty() {
                return Err(malformed());
            }
            let (operator, word) = tail.split_at(operator_length);
            pieces.push(Piece::Variable { name, operator, word });
            rest = &inner[end + 1..];
        } else {
            // A dollar sign that starts nothing is one.
            match name_length(after) {
                0 => pieces.push(Piece::Dollar),
                length => pieces.push(Piece::Variable { name: &after[..length], operator: "", word: "" }),
            }
            rest = &after[name_length(after)..];
        }
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

/// Variables within defaults of variables: nobody writes more, and a file with thousands must not cost minutes or the stack.
const DEEPEST: usize = 16;

/// Where the brace closes, defaults with braces of their own skipped.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if depth == DEEPEST => return None,
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn name_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    if bytes.first().is_none_or(u8::is_ascii_digit) {
        return 0;
    }
    bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count()
}

/// Puts variables into every string of a value (not into keys). The error names the key.
pub(super) fn value(value: &mut Value, settings: &Settings) -> Result<(), (String, Interpolation)> {
    match value {
        Value::String(text) => {
            *text = interpolate(text, settings).map_err(|error| (String::new(), error))?;
        }
        Value::Array(items) => {
            for item in items {
                self::value(item, settings)?;
            }
        }
        Value::Object(entries) => {
            for (key, item) in entries {
                self::value(item, settings).map_err(|(inner, error)| {
                    (if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") }, error)
                })?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Collects the variables of every string; a malformed one is reported when it is put in.
pub(super) fn variables_of(value: &Value, into: &mut BTreeMap<String, Option<String>>) {
    match value {
        Value::String(text) => {
            for (name, default) in variables(text).unwrap_or_default() {
                let slot = into.entry(name).or_default();
                *slot = slot.take().or(default);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| variables_of(item, into)),
        Value::Object(entries) => entries.values().for_each(|item| variables_of(item, into)),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    fn put(text: &str) -> Result<String, Interpolation> {
        let settings = [("SET", "v"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        interpolate(text, &settings.into())
    }

    #[test]
    fn every_form_of_the_specification() {
        for (text, expected) in [
            ("plain", "plain"),
            ("$SET/${SET}", "v/v"),
            ("${NO}", ""),
            ("${NO:-d}${NO-d}", "dd"),
            ("${EMPTY:-d}${EMPTY-d}", "d"),
            ("${SET:+alt}${EMPTY:+alt}${EMPTY+alt}", "altalt"),
            ("${SET:?no}", "v"),
            ("$$SET $${SET}", "$SET ${SET}"),
            ("${NO:-${SET}-x}", "v-x"),
            ("${NO:-http://h:1}", "http://h:1"),
            ("$ a$1 $(x) 5$", "$ a$1 $(x) 5$"),
        ] {
            assert_eq!(put(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn required_and_malformed_variables_are_errors() {
        assert_eq!(put("${NO:?set it}").unwrap_err().to_string(), "`NO` must be set: set it");
        assert_eq!(put("${EMPTY:?e}").unwrap_err().to_string(), "`EMPTY` must be set: e");
        for text in ["${", "${}", "${1A}", "${A!b}", "${A"] {
            assert!(matches!(put(text), Err(Interpolation::Malformed { .. })), "{text}");
        }
        let nested = |depth: usize| format!("{}{}", "${A:-".repeat(depth), "}".repeat(depth));
        assert_eq!(put(&nested(DEEPEST)).unwrap(), "");
        let error = put(&nested(200_000)).unwrap_err().to_string();
        assert!(error.starts_with("`${A:-${A:-") && error.len() < 200, "{error}");
    }

    #[test]
    fn mentioned_variables_carry_their_defaults() {
        let found = variables("${A:-1} $B ${C:-${D}} $$E").unwrap();
        let names: Vec<_> = found.iter().map(|(name, default)| (name.as_str(), default.as_deref())).collect();
        assert_eq!(names, [("A", Some("1")), ("B", None), ("C", Some("${D}")), ("D", None)]);
    }
}
