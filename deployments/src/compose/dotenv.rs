//! Environment files, by the grammar of Docker Compose, which is not the shell's (compose-go, package `dotenv`).
//!
//! A value without quotes ends before ` #`; in double quotes there are escapes; both may hold `${NAME}` of the outside or of
//! a line above. A value in single quotes is taken as it is. A quoted value may have several lines.
//!
//! What Compose takes and nobody means is refused by line: a name without a value, which Compose takes from the outside or
//! ignores, and octal escapes.

use std::path::Path;

use super::interpolate::{self, Interpolation};
use super::{ComposeError, Settings};

/// Reads an environment file. `outside` answers for the variables of the shell, which win over the file's own lines.
pub fn dotenv(path: &Path, text: &str, outside: &dyn Fn(&str) -> Option<String>) -> Result<Settings, ComposeError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut settings = Settings::new();
    let mut rest = text;
    while let Some(statement) = statement(rest) {
        let number = 1 + text[..text.len() - statement.len()].matches('\n').count();
        let line = statement.lines().next().unwrap_or_default().trim_end();
        let unfit = |what: &str| ComposeError::Unfit { path: path.to_owned(), what: format!("line {number}: {what}") };
        let (name, value) = name(statement).ok_or_else(|| unfit(&format!("`{line}` is not NAME=VALUE")))?;
        let value = value.trim_start_matches(is_blank);
        let (value, is_literal) = match value.strip_prefix(['"', '\'']) {
            Some(inside) => {
                let mark = if value.starts_with('"') { '"' } else { '\'' };
                let (inside, behind) =
                    quoted(inside, mark).ok_or_else(|| unfit(&format!("`{line}`: the quote is never closed")))?;
                rest = behind;
                if mark == '"' {
                    let plain = escapes(&inside).ok_or_else(|| unfit(&format!("`{line}`: `\\0` is not understood")))?;
                    (plain, false)
                } else {
                    (inside, true)
                }
            }
            None => {
                let (value, behind) = value.split_once('\n').unwrap_or((value, ""));
                rest = behind;
                (value.split(" #").next().unwrap_or_default().trim_end().to_owned(), false)
            }
        };
        let value = if is_literal {
            value
        } else {
            let known = |name: &str| outside(name).or_else(|| settings.get(name).cloned());
            interpolate::with(&value, &known).map_err(|source: Interpolation| ComposeError::Variable {
                path: path.to_owned(),
                key: name.to_owned(),
                source,
            })?
        };
        settings.insert(name.to_owned(), value);
    }
    Ok(settings)
}

/// The text from the next line on that is neither empty nor a comment.
fn statement(mut text: &str) -> Option<&str> {
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return None;
        }
        if !text.starts_with('#') {
            return Some(text);
        }
        text = text.split_once('\n').map_or("", |(_, behind)| behind);
    }
}

/// The name that a line begins with, and what is behind its `=`, or `:` as in YAML.
fn name(text: &str) -> Option<(&str, &str)> {
    let exported = text.strip_prefix("export").filter(|rest| rest.starts_with(['\t', '\n', '\u{c}', '\r', ' ']));
    let text = exported.map_or(text, str::trim_start);
    let end = text.find(|letter: char| !(is_blank(letter) || letter.is_alphanumeric() || "_.-[]".contains(letter)))?;
    let name = text[..end].trim_end();
    let value = text[end..].strip_prefix(['=', ':'])?;
    (!name.is_empty() && !name.contains(is_blank)).then_some((name, value))
}

/// A space within a line.
fn is_blank(letter: char) -> bool {
    matches!(letter, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

/// What is inside the quotes, their escapes taken off, and what is behind them.
fn quoted(text: &str, mark: char) -> Option<(String, &str)> {
    let (mut inside, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match (letter == mark, escaped) {
            (true, false) => return Some((inside, &text[at + letter.len_utf8()..])),
            (false, false) if letter == '\\' => escaped = true,
            (is_mark, _) => {
                if escaped && !is_mark {
                    inside.push('\\');
                }
                escaped = false;
                inside.push(letter);
            }
        }
    }
    None
}

/// A text in double quotes without its escapes; a dollar sign of one is doubled, so that it starts no variable. `None`: an
/// octal escape.
fn escapes(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let next = letters.clone().next().filter(|_| letter == '\\');
        let plain = match next {
            Some('a') => "\u{7}",
            Some('b') => "\u{8}",
            Some('f') => "\u{c}",
            Some('n') => "\n",
            Some('r') => "\r",
            Some('t') => "\t",
            Some('v') => "\u{b}",
            Some('$') => "$$",
            Some('"') => "\"",
            Some('\\') => "\\",
            Some('0') => return None,
            _ => {
                out.push(letter);
                continue;
            }
        };
        letters.next();
        out.push_str(plain);
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    /// What Compose makes of the same lines is asked in `real_compose_reads_environment_files_as_we_do`.
    #[test]
    fn environment_files_are_read_by_lines() {
        let read = |text: &str| dotenv(Path::new("x.env"), text, &|name| (name == "OUT").then(|| "o".to_owned()));
        let text = "# c\r\nA=1\r\n export B=two words\nC=\"x # y\"\nD='$q'\nE=v # note\nF=\nG=\"g $A\\n\" # note\nH=${OUT}${A}\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "x # y"),
            ("D", "$q"),
            ("E", "v"),
            ("F", ""),
            ("G", "g 1\n"),
            ("H", "o1"),
        ];
        assert_eq!(read(text).unwrap(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        for (text, message) in [
            ("A=1\nnonsense\n", "line 2: `nonsense` is not NAME=VALUE"),
            ("=x", "line 1: `=x` is not NAME=VALUE"),
            ("A B=1", "line 1: `A B=1` is not NAME=VALUE"),
            ("\n\nA=\"x\ny", "line 3: `A=\"x`: the quote is never closed"),
            ("A=\"\\0101\"", "line 1: `A=\"\\0101\"`: `\\0` is not understood"),
            ("A=\"1\" B", "line 1: `B` is not NAME=VALUE"),
            ("A=${B:?say it}", "`A`: `B` must be set: say it"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), format!("x.env: {message}"), "{text}");
        }
    }
}
