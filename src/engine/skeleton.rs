//! The directories of a layer.

use std::collections::BTreeMap;
use std::sync::Arc;

use layers::ImagePath;
use layers::encode::{EPOCH, Entry, Kind};

use super::index::Fragment;

/// Attributes of directories that several packages of one source hold, decided for the whole source at once, so that the
/// outcome does not depend on how packages are spread over layers: `base-files` first, then packages by name.
pub fn shared_dirs(fragments: &[Arc<Fragment>]) -> BTreeMap<ImagePath, Entry> {
    let mut sorted: Vec<&Arc<Fragment>> = fragments.iter().collect();
    let rank = |fragment: &Fragment| {
        let name = fragment.package.as_ref().map(|package| package.name.clone()).unwrap_or_default();
        (name != "base-files", name)
    };
    sorted.sort_by_cached_key(|fragment| rank(fragment));
    let mut dirs = BTreeMap::new();
    for dir in sorted.iter().flat_map(|fragment| &fragment.dirs) {
        dirs.entry(dir.path.clone()).or_insert_with(|| dir.clone());
    }
    dirs
}

/// All directories that a layer of these fragments must hold: their own and every parent, sorted.
///
/// A directory that is below already keeps its attributes, because an entry in an upper layer would reset them, unless
/// the fragment is there to change it. `below` says what is there.
pub fn skeleton<'b>(
    fragments: &[Arc<Fragment>],
    shared: &BTreeMap<ImagePath, Entry>,
    below: &dyn Fn(&ImagePath) -> Option<&'b Entry>,
) -> Vec<Entry> {
    let mut dirs: BTreeMap<ImagePath, Entry> = BTreeMap::new();
    let implied = |path: ImagePath| {
        if let Some(entry) = below(&path).filter(|entry| entry.is_dir()) {
            return Entry { mtime: EPOCH, ..entry.clone() };
        }
        match shared.get(&path) {
            Some(entry) => Entry { mtime: EPOCH, ..entry.clone() },
            None => Entry::new(path, Kind::Dir, 0o755, EPOCH),
        }
    };
    let mut last_parent: Option<ImagePath> = None;
    for fragment in fragments {
        for dir in &fragment.dirs {
            if dir.path.is_root() {
                continue;
            }
            let kept =
                if fragment.commands_dirs { Entry { mtime: EPOCH, ..dir.clone() } } else { implied(dir.path.clone()) };
            let kept = if !fragment.commands_dirs && below(&dir.path).is_none() && !shared.contains_key(&dir.path) {
                Entry { mtime: EPOCH, ..dir.clone() }
            } else {
                kept
            };
            if fragment.commands_dirs {
                dirs.insert(dir.path.clone(), kept);
            } else {
                dirs.entry(dir.path.clone()).or_insert(kept);
            }
        }
        let paths = fragment.dirs.iter().map(|dir| &dir.path).chain(fragment.entries.iter().map(|it| &it.entry.path));
        for path in paths {
            if last_parent.as_ref().is_some_and(|last| path.is_directly_in(last)) {
                continue;
            }
            let parent = path.parent();
            // Where one is there, so are those above it, or they come when that directory's own turn does.
            let mut missing = parent.clone();
            while let Some(dir) = missing.filter(|dir| !dir.is_root() && !dirs.contains_key(dir)) {
                missing = dir.parent();
                dirs.insert(dir.clone(), implied(dir));
            }
            last_parent = parent;
        }
    }
    dirs.into_values().collect()
}
