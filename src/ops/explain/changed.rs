//! Which files of a copy changed, from the layer that it became last.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use cache::Store;
use layers::Digest;
use layers::source::Files;

use crate::pin::{SelectedKind, Selection};

/// A question for the files of a copy.
pub(super) struct Asked<'a> {
    /// The layer.
    pub(super) layer: usize,
    /// Its number in the older text.
    pub(super) old: usize,
    /// Which copy of the layer.
    pub(super) number: usize,
    /// How it was copied then.
    pub(super) before: &'a Files,
}

/// What a copy changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// For people; empty where no file changed.
    pub(super) text: String,
    /// Paths in the image at which something else is than before.
    pub(super) changed: BTreeSet<String>,
    /// Paths in the image that are what they were.
    pub(super) kept: BTreeSet<String>,
}

impl Changed {
    /// Compares what a selection holds with an older layer of the same files. `None` where it cannot be said where they are in it.
    pub(super) fn between(old: &BTreeMap<String, String>, before: &Files, selection: &Selection) -> Option<Changed> {
        let mut new: BTreeMap<&str, String> = BTreeMap::new();
        for selected in &selection.entries {
            match &selected.kind {
                SelectedKind::Dir => {}
                SelectedKind::Symlink { target } => {
                    new.insert(&selected.path, format!("-> {target}"));
                }
                SelectedKind::File { digest, executable, .. } => {
                    let mode = before.mode.unwrap_or(if *executable { 0o755 } else { 0o644 });
                    new.insert(&selected.path, format!("{mode:o} {digest}"));
                }
            }
        }
        let to = destination(old, before.to.relative(), &new)?;
        // A layer may hold more than these files.
        let old: BTreeMap<&str, &String> =
            old.iter().filter_map(|(path, it)| Some((relative(path, &to)?, it))).collect();
        let mut found = Changed::default();
        let mut names: [Vec<&str>; 3] = Default::default();
        for path in old.keys().chain(new.keys()).copied().collect::<BTreeSet<_>>() {
            let kind = match (old.get(path), new.get(path)) {
                (Some(old), Some(new)) if *old == new => None,
                (Some(_), Some(_)) => Some(0),
                (None, _) => Some(1),
                (_, None) => Some(2),
            };
            let parts = [to.as_str(), path].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
            match kind {
                Some(kind) => {
                    names[kind].push(match path {
                        "" => to.rsplit('/').next().unwrap_or_default(),
                        path => path,
                    });
                    found.changed.insert(parts.join("/"));
                }
                None => {
                    found.kept.insert(parts.join("/"));
                }
            }
        }
        let lists = ["changed", "added", "removed"].into_iter().zip(&names).filter_map(|(what, paths)| {
            let more = paths.len().saturating_sub(5);
            let mut names = paths.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            if more > 0 {
                names.push_str(&format!(" and {more} more"));
            }
            (!paths.is_empty()).then(|| format!("{} {what}: {names}", paths.len()))
        });
        found.text = lists.collect::<Vec<_>>().join("; ");
        Some(found)
    }
}

/// The path below a folder; empty for itself.
fn relative<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    match path.strip_prefix(dir)? {
        rest if dir.is_empty() || rest.is_empty() => Some(rest),
        rest => rest.strip_prefix('/'),
    }
}

/// Where a copy went: links below may have led it elsewhere. `None` where more than one place would do, or none.
fn destination(old: &BTreeMap<String, String>, to: &str, new: &BTreeMap<&str, String>) -> Option<String> {
    let Some(first) = old.keys().next() else { return Some(to.to_owned()) };
    // Where a link leads elsewhere, nothing is at its own path.
    if old.keys().any(|path| relative(path, to).is_some()) {
        return Some(to.to_owned());
    }
    // It holds all that was copied, and its own name is no link's.
    let name = to.rsplit('/').next().unwrap_or_default();
    let ends = first.match_indices('/').map(|(end, _)| end).chain([first.len()]);
    let mut places: Vec<&str> = ends.map(|end| &first[..end]).collect();
    places.retain(|place| {
        place.rsplit('/').next() == Some(name) && old.keys().all(|path| relative(path, place).is_some())
    });
    if places.len() > 1 {
        let holds = |path: &str, place: &str| relative(path, place).is_some_and(|path| new.contains_key(path));
        places.retain(|place| old.keys().any(|path| holds(path, place)));
    }
    match places.as_slice() {
        [place] => Some((*place).to_owned()),
        _ => None,
    }
}

/// The files and links of a layer, each with its mode and digest, or its target; `None` where it cannot be read.
pub(super) fn read_layer(store: &Store, digest: &Digest) -> Option<BTreeMap<String, String>> {
    listing(io::BufReader::new(store.open(digest).ok()??)).ok()
}

/// The files and links of a layer, each with its mode and digest, or its target.
fn listing(blob: impl io::BufRead + Send) -> io::Result<BTreeMap<String, String>> {
    let reader = layers::format::decompress(blob, &layers::format::Limits::default()).map_err(io::Error::other)?;
    let mut archive = tar::Archive::new(reader);
    let mut found = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let mode = entry.header().mode()?;
                let digest = cache::hash(&mut entry)?;
                found.insert(path, format!("{mode:o} {digest}"));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.map(|target| target.to_string_lossy().into_owned());
                found.insert(path, format!("-> {}", target.unwrap_or_default()));
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::destination;

    fn found(old: &[&str], to: &str, new: &[&str]) -> Option<String> {
        let old = old.iter().map(|path| ((*path).to_owned(), String::new())).collect();
        destination(&old, to, &new.iter().map(|path| (*path, String::new())).collect())
    }

    #[test]
    fn files_are_found_where_links_led_them() {
        let is = |old: &[&str], to, new: &[&str], expected: Option<&str>| {
            assert_eq!(found(old, to, new).as_deref(), expected, "{old:?} {to}");
        };
        is(&["bin/tools/a"], "bin/tools", &["a"], Some("bin/tools"));
        is(&["a", "b/c"], "", &["a"], Some(""));
        is(&[], "bin/tools", &["a"], Some("bin/tools"));
        // `/bin -> usr/bin`, whether files stayed or not.
        is(&["usr/bin/tools/a", "usr/bin/tools/x/b"], "bin/tools", &["a", "x/b"], Some("usr/bin/tools"));
        is(&["usr/bin/tools/x/b"], "bin/tools", &["c"], Some("usr/bin/tools"));
        is(&["usr/bin/tool"], "bin/tool", &[""], Some("usr/bin/tool"));
        // Nothing but the files can tell which of two folders of the name it was.
        is(&["usr/x/x/a"], "x", &["x/a"], Some("usr/x"));
        is(&["usr/x/x/a"], "x", &["a"], Some("usr/x/x"));
        is(&["usr/x/x/a"], "x", &["b"], None);
        is(&["usr/x/x/a", "usr/x/x/x/a"], "x", &["a", "x/a"], None);
        is(&["usr/bin/other/a"], "bin/tools", &["a"], None);
    }
}
