//! `imgbuild.toml`: one schema, by which the file is checked, looked up and documented.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// What a key may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A string or a list of strings.
    Texts,
    /// A whole number.
    Number,
}

/// Every key; `*` stands for a name of the user's choice.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("cache-dir", Kind::Text),
    ("jobs", Kind::Number),
    ("registry", Kind::Text),
    ("sandbox", Kind::Text),
    ("compression", Kind::Text),
    ("cache.max-size", Kind::Text),
    ("cache.max-age", Kind::Text),
    ("cache.min-free", Kind::Text),
    ("cache.patience", Kind::Text),
    ("cache.signing-key", Kind::Text),
    ("cache.trusted-keys", Kind::Texts),
    ("cache.trusted-stores", Kind::Texts),
    ("debian.mirror", Kind::Texts),
    ("debian.security-mirror", Kind::Texts),
    ("debian.keyring", Kind::Text),
    ("debian.repositories.*.url", Kind::Texts),
    ("python.index", Kind::Text),
    ("python.extra-indexes", Kind::Texts),
    ("python.indexes.*", Kind::Text),
    ("python.pins.*", Kind::Text),
    ("registries.insecure", Kind::Texts),
    ("registries.mirrors.*", Kind::Texts),
    ("mirror.registries", Kind::Texts),
    ("network.ca", Kind::Texts),
    ("network.proxy", Kind::Text),
    ("network.no-proxy", Kind::Texts),
];

/// The file's name.
pub(super) const NAME: &str = "imgbuild.toml";

/// A file that was read and fits the schema.
#[derive(Debug)]
pub(super) struct File {
    /// Where it is.
    pub path: PathBuf,
    values: BTreeMap<Vec<String>, Value>,
}

/// What a key holds: one text, or several of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    /// Texts; a number is one in decimal.
    pub texts: Vec<String>,
    /// The line of the value, from 1.
    pub line: usize,
}

impl File {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<File, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        File::parse(path, &text)
    }

    pub fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| ConfigError::File {
            path: path.to_path_buf(),
            line: line(text, error.span().map_or(0, |span| span.start)),
            why: error.message().to_owned(),
        })?;
        let mut file = File { path: path.to_path_buf(), values: BTreeMap::new() };
        file.walk(text, table.get_ref(), &mut Vec::new(), KEYS.iter().map(|(key, kind)| (*key, *kind)).collect())?;
        Ok(file)
    }

    /// `known` holds what may stand below `prefix`.
    fn walk(
        &mut self,
        text: &str,
        table: &DeTable<'_>,
        prefix: &mut Vec<String>,
        known: Vec<(&'static str, Kind)>,
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let wrong =
                |at: usize, why: String| ConfigError::File { path: self.path.clone(), line: line(text, at), why };
            let below: Vec<(&'static str, Kind)> = known
                .iter()
                .filter_map(|(pattern, kind)| {
                    let (first, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
                    (first == name || first == "*").then_some((rest, *kind))
                })
                .collect();
            prefix.push(name.to_owned());
            let shown = prefix.join(".");
            match below.as_slice() {
                [] => {
                    let candidates = known.iter().map(|(pattern, _)| pattern.split('.').next().unwrap_or(pattern));
                    let hint = crate::names::nearest(name, candidates)
                        .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                    return Err(wrong(key.span().start, format!("there is no key `{shown}`{hint}")));
                }
                [("", kind)] => {
                    let start = value.span().start;
                    let texts = texts(value.get_ref(), *kind)
                        .map_err(|expected| wrong(start, format!("`{shown}` must be {expected}")))?;
                    self.values.insert(prefix.clone(), Value { texts, line: line(text, start) });
                }
                _ => match value.get_ref() {
                    DeValue::Table(table) => self.walk(text, table, prefix, below)?,
                    _ => return Err(wrong(value.span().start, format!("`{shown}` must be a table"))),
                },
            }
            prefix.pop();
        }
        Ok(())
    }

    /// What a key holds.
    pub fn get(&self, key: &[&str]) -> Option<&Value> {
        self.values.iter().find(|(path, _)| path.iter().eq(key)).map(|(_, value)| value)
    }

    /// The names of the user's choice below a key, each with what it holds.
    pub fn named<'a>(&'a self, key: &'a [&'a str]) -> impl Iterator<Item = (&'a str, &'a Value)> + 'a {
        self.values
            .iter()
            .filter(move |(path, _)| path.len() > key.len() && path.iter().zip(key).all(|(a, b)| a == b))
            .map(move |(path, value)| (path[key.len()].as_str(), value))
    }

    /// A path that stands in the file: relative to it.
    pub fn path(&self, text: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).join(text)
    }

    /// How messages name the place of a value.
    pub fn place(&self, key: &[&str], value: &Value) -> String {
        format!("`{}` in `{}`, line {}", key.join("."), self.path.display(), value.line)
    }
}

/// The line of a byte offset, from 1.
fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn texts(value: &DeValue<'_>, kind: Kind) -> Result<Vec<String>, &'static str> {
    let expected = match kind {
        Kind::Text => "a string",
        Kind::Texts => "a string or a list of strings",
        Kind::Number => "a whole number",
    };
    match (kind, value) {
        (Kind::Text | Kind::Texts, DeValue::String(text)) => Ok(vec![text.to_string()]),
        (Kind::Texts, DeValue::Array(items)) => {
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned).ok_or(expected)).collect()
        }
        (Kind::Number, DeValue::Integer(number)) => {
            let parsed = u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| expected)?;
            Ok(vec![parsed.to_string()])
        }
        _ => Err(expected),
    }
}
