//! YAML as JSON values, and the two tags of Compose that JSON cannot say.

use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

/// A file that cannot be read as YAML.
#[derive(Debug, Error)]
pub enum YamlError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's message with line and column.
        message: String,
    },
}

/// Mark of a key whose value replaces what earlier files said (`!override`).
pub(crate) const OVERRIDE: &str = "!override";
/// Mark of a key that removes what earlier files said (`!reset`).
pub(crate) const RESET: &str = "!reset";

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String, YamlError> {
    let failed = |source| YamlError::Read { path: path.to_owned(), source };
    // Reading a pipe or a device might never end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Parses one document; tags are dropped. `path` is for messages only.
pub fn value(path: &Path, text: &str) -> Result<Value, YamlError> {
    serde_saphyr::from_str(text).map_err(|error| syntax(path, &error))
}

/// Parses a stream of documents; empty ones are left out. `path` is for messages only.
pub fn documents(path: &Path, text: &str) -> Result<Vec<Value>, YamlError> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| syntax(path, &error))?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// Parses a compose file, the tags kept as marks on the keys: `ports: !override []` becomes `{"ports!override": []}`.
pub(crate) fn marked(path: &Path, text: &str) -> Result<Value, YamlError> {
    let mut marked = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        marked.push_str(&mark(line));
        marked.push('\n');
    }
    value(path, &marked)
}

/// Moves a tag that follows a key at the start of a line onto the key. Tags elsewhere are not used by Compose.
fn mark(line: &str) -> String {
    for tag in [OVERRIDE, RESET] {
        if let Some((key, rest)) = line.split_once(&format!(": {tag}"))
            && !key.trim_start().contains([' ', '#', '"', '{'])
            && (rest.is_empty() || rest.starts_with(' '))
        {
            return format!("{key}{tag}:{rest}");
        }
    }
    line.to_owned()
}

fn syntax(path: &Path, error: &dyn std::fmt::Display) -> YamlError {
    let message = error.to_string();
    // The first line says what and where; the rest draws the place.
    let message = message.strip_prefix("error: ").unwrap_or(&message).lines().next().unwrap_or_default().to_owned();
    YamlError::Syntax { path: path.to_owned(), message }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn tags_become_marks_and_comments_stay_comments() {
        assert_eq!(mark("    ports: !override [1]"), "    ports!override: [1]");
        assert_eq!(mark("    ports: !override"), "    ports!override:");
        assert_eq!(mark("    # ports: !override [1]"), "    # ports: !override [1]");
        assert_eq!(mark("    ports: !overridden [1]"), "    ports: !overridden [1]");
        assert_eq!(mark("  a: !reset null"), "  a!reset: null");
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let error = value(Path::new("x.yaml"), "a: [1\nb: 2").unwrap_err().to_string();
        assert!(error.starts_with("x.yaml: line 2"), "{error}");
    }

    #[test]
    fn empty_documents_are_left_out() {
        assert_eq!(documents(Path::new("x"), "---\na: 1\n---\n---\nb: 2\n").unwrap().len(), 2);
    }
}
