//! What words come to: variables, captured output, fields and patterns.

use super::{MAX_STEPS, MAX_VALUE, Machine, Value};
use crate::debian::shell::{Command, Part, Word};

impl Machine {
    /// The value of a variable or parameter.
    fn variable(&mut self, name: &str) -> Value {
        match name {
            "#" => self.arguments.as_ref().map(|list| list.len().to_string()),
            "@" | "*" => {
                let list = self.arguments.as_ref()?;
                Some(list.iter().cloned().collect::<Option<Vec<_>>>()?.join(" "))
            }
            "0" | "?" | "$" | "!" | "-" => None,
            _ => match name.parse::<usize>() {
                Ok(number) => {
                    self.arguments.as_ref()?.get(number.saturating_sub(1)).cloned().unwrap_or(Some(String::new()))
                }
                // A variable of the environment is not set by dpkg; scripts test for that.
                Err(_) => self.variables.get(name).cloned().unwrap_or(Some(String::new())),
            },
        }
    }

    fn part(&mut self, part: &Part) -> Value {
        match part {
            Part::Text { text, .. } => Some(text.clone()),
            Part::Variable { name, test: None, .. } => self.variable(name),
            Part::Variable { name, test: Some((operator, word)), .. } => {
                let value = self.variable(name);
                let other = self.text(word);
                match *operator {
                    ":-" | "-" => value.and_then(|value| if value.is_empty() { other } else { Some(value) }),
                    ":+" | "+" => value.and_then(|value| if value.is_empty() { Some(value) } else { other }),
                    _ => None,
                }
            }
            Part::Output { list, .. } => {
                let mut output = None;
                self.isolated_capture(list, &mut output);
                output.map(|text| text.trim_end_matches('\n').to_owned())
            }
            Part::Opaque => None,
        }
    }

    fn isolated_capture(&mut self, list: &[Command], output: &mut Value) {
        let kept = self.output.take();
        self.isolated(|machine| {
            machine.output = Some(Some(String::new()));
            machine.list(list);
        });
        *output = self.output.take().flatten();
        self.output = kept;
    }

    /// A word as one text, without splitting.
    pub(super) fn text(&mut self, word: &Word) -> Value {
        let mut text = String::new();
        let mut known = true;
        // Every part is computed even after an unknown one: a substitution may do something.
        for part in word {
            match self.part(part) {
                Some(value) if text.len() + value.len() <= MAX_VALUE => text.push_str(&value),
                _ => known = false,
            }
        }
        known.then_some(text)
    }

    /// Words after splitting; `None` where the number of fields is unknown.
    pub(super) fn fields(&mut self, words: &[Word]) -> Option<Vec<Value>> {
        let mut fields = Vec::new();
        let mut known = true;
        for word in words {
            match self.split(word) {
                Some(more) if fields.len() + more.len() <= MAX_STEPS => fields.extend(more),
                _ => known = false,
            }
        }
        known.then_some(fields)
    }

    fn split(&mut self, word: &Word) -> Option<Vec<Value>> {
        if let [Part::Variable { name, test: None, quoted: true }] = word.as_slice()
            && name == "@"
        {
            return self.arguments.clone();
        }
        let mut fields: Vec<Value> = Vec::new();
        let mut current: Option<Value> = None;
        let mut countable = true;
        for part in word {
            let (quoted, literal) = match part {
                Part::Text { quoted, .. } => (*quoted, true),
                Part::Variable { quoted, .. } | Part::Output { quoted, .. } => (*quoted, false),
                Part::Opaque => (true, false),
            };
            let value = self.part(part);
            match value {
                None if !quoted => countable = false,
                None => current = Some(None),
                // Names of files are not known, so neither is what a pattern becomes.
                Some(text) if literal && !quoted && is_glob(&text) => current = Some(None),
                Some(text) if quoted || literal => append(&mut current, &text),
                Some(text) => {
                    let mut rest = text.as_str();
                    while let Some(gap) = rest.find([' ', '\t', '\n']) {
                        if gap > 0 {
                            append(&mut current, &rest[..gap]);
                        }
                        fields.extend(current.take());
                        rest = &rest[gap + 1..];
                    }
                    if !rest.is_empty() {
                        append(&mut current, rest);
                    }
                }
            }
        }
        fields.extend(current);
        countable.then_some(fields)
    }

    /// A pattern of `case`.
    pub(super) fn pattern(&mut self, word: &Word) -> Option<Vec<Glyph>> {
        let mut glyphs = Vec::new();
        for part in word {
            let literal = matches!(part, Part::Text { quoted: false, .. });
            for c in self.part(part)?.chars() {
                glyphs.push(match c {
                    '*' if literal => Glyph::Any,
                    '?' if literal => Glyph::One,
                    '[' if literal => return None,
                    c => Glyph::Same(c),
                });
            }
        }
        Some(glyphs)
    }
}

fn append(current: &mut Option<Value>, text: &str) {
    match current {
        Some(Some(known)) => known.push_str(text),
        Some(None) => {}
        None => *current = Some(Some(text.to_owned())),
    }
}

/// Whether the shell would look for file names (a lone `[` is the command).
fn is_glob(text: &str) -> bool {
    text.contains(['*', '?']) || text.find('[').is_some_and(|at| text[at..].contains(']'))
}

/// An element of a pattern.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Glyph {
    Any,
    One,
    Same(char),
}

/// Matches without backtracking over more than the last `*`.
pub(super) fn matches(pattern: &[Glyph], text: &[char]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(Glyph::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Glyph::One) => (p, t) = (p + 1, t + 1),
            Some(Glyph::Same(c)) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|glyph| *glyph == Glyph::Any)
}
