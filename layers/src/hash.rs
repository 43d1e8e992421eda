//! How keys are hashed: tagged, length-prefixed fields, kept beside the readable text they were hashed from.
//!
//! Every field is written as `name=value` lines, the value escaped so that no value can imitate a field. The text *is* what
//! is hashed, so `imgbuild explain` compares texts and never has to guess what a key meant.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use crate::digest::{Digest, Key};

/// Collects the fields of a key; [`finish`](KeyHasher::finish) gives the key and the text it was hashed from.
///
/// Fields are ordered by the caller; equal fields in equal order give equal keys on every machine.
#[derive(Debug, Clone)]
pub struct KeyHasher {
    text: String,
}

impl KeyHasher {
    /// Starts a key of one kind of work. `version` is raised whenever the same fields come to mean another outcome.
    pub fn new(kind: &str, version: u32) -> KeyHasher {
        KeyHasher { text: format!("{kind} {version}\n") }
    }

    /// Adds one field.
    pub fn field(&mut self, name: &str, value: impl fmt::Display) -> &mut KeyHasher {
        self.text_field(name, &value.to_string());
        self
    }

    fn text_field(&mut self, name: &str, value: &str) {
        debug_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
        let _ = write!(self.text, "{name}:{}=", value.len());
        // The length already makes the text unambiguous; the escape keeps one field on one line for people.
        let mut rest = value;
        let is_escaped = |byte: u8| (byte == b'\n') | (byte == b'\\');
        // Hardly any is, and to look at all bytes is quicker than to look for the first.
        if value.bytes().fold(false, |any, byte| any | is_escaped(byte)) {
            while let Some(at) = rest.bytes().position(is_escaped) {
                self.text.push_str(&rest[..at]);
                self.text.push_str(if rest.as_bytes()[at] == b'\n' { "\\n" } else { "\\\\" });
                rest = &rest[at + 1..];
            }
        }
        self.text.push_str(rest);
        self.text.push('\n');
    }

    /// Adds one field for each item of a sequence, preceded by their number.
    pub fn list<T: fmt::Display>(&mut self, name: &str, items: impl ExactSizeIterator<Item = T>) -> &mut KeyHasher {
        let _ = writeln!(self.text, "{name}#{}", items.len());
        for item in items {
            self.field(name, item);
        }
        self
    }

    /// The key and the text that explains it.
    pub fn finish(self) -> (Key, String) {
        (Key(Digest::of(self.text.as_bytes())), self.text)
    }
}

/// The fields of a key's text, `(name, value)`, in their order; values as they stand there, [`unescaped`] as they were. The numbers
/// of items that [`KeyHasher::list`] writes are none.
pub fn fields(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().skip(1).filter_map(field)
}

/// The field that a line of a key's text holds, `(name, value)`.
pub fn field(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    Some((name.split(':').next().unwrap_or_default(), value))
}

/// A value as it was before it came into a key's text.
pub fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => out.push(if chars.next() == Some('n') { '\n' } else { '\\' }),
            char => out.push(char),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fields: &[(&str, &str)]) -> Key {
        let mut hasher = KeyHasher::new("test", 1);
        for (name, value) in fields {
            hasher.field(name, value);
        }
        hasher.finish().0
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_key() {
        assert_ne!(key(&[("a", "bc"), ("d", "")]), key(&[("ab", "c"), ("d", "")]));
        assert_ne!(key(&[("a", "x\nb:1=y")]), key(&[("a", "x"), ("b", "y")]));
        assert_ne!(key(&[("a", "\\n")]), key(&[("a", "\n")]));
    }

    #[test]
    fn a_text_gives_its_fields_back() {
        let values = ["", "plain", "a=b:c", "two\nlines\\n", "\\", "\\\\n\n", "{\"a\":\"\\\"\"}"];
        let mut hasher = KeyHasher::new("test", 1);
        for value in values {
            hasher.field("it", value);
        }
        hasher.list("more", values.iter());
        let (_, text) = hasher.finish();
        let found: Vec<(&str, Cow<'_, str>)> = fields(&text).map(|(name, value)| (name, unescaped(value))).collect();
        let expected = values.iter().map(|value| ("it", Cow::Borrowed(*value)));
        let more = values.iter().map(|value| ("more", Cow::Borrowed(*value)));
        assert!(found.into_iter().eq(expected.chain(more)));
    }
}
