//! Names of entries.

use std::collections::BTreeSet;

use super::{FORMAT, ZipEntry, refused};
use crate::format::FormatError;
use crate::format::error::lossy;

/// Checks a name: relative, normal, UTF-8 and so marked, without what some reader takes for a separator or an end.
pub(super) fn parse(name: &[u8], marked_utf8: bool) -> Result<String, FormatError> {
    let bad = |why| FormatError::Name { format: FORMAT, name: lossy(name), why };
    let text = std::str::from_utf8(name).map_err(|_| bad("it is not UTF-8"))?;
    if !marked_utf8 && !text.is_ascii() {
        return Err(bad("it is not ASCII and not marked as UTF-8"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad("it has a control character"));
    }
    if text.contains('\\') {
        return Err(bad("it has a backslash, which some readers take for `/`"));
    }
    let path = text.strip_suffix('/').unwrap_or(text);
    if path.starts_with('/') {
        return Err(bad("it is absolute"));
    }
    for component in path.split('/') {
        match component {
            "" => return Err(bad("it is empty or has an empty component")),
            "." | ".." => return Err(bad("it has a `.` or `..` component")),
            _ => {}
        }
    }
    Ok(text.to_owned())
}

/// No name twice, and no file where another entry needs a directory.
pub(super) fn check_unique(entries: &[ZipEntry]) -> Result<(), FormatError> {
    let mut names = BTreeSet::new();
    for entry in entries {
        if !names.insert(entry.path.as_str()) {
            return Err(refused(&entry.name, "it is there twice"));
        }
    }
    for entry in entries.iter().filter(|entry| !entry.is_dir()) {
        let below = format!("{}/", entry.path);
        if names.range(below.as_str()..).next().is_some_and(|next| next.starts_with(&below)) {
            return Err(refused(&entry.name, "it is a file, but another entry lies below it"));
        }
    }
    Ok(())
}
