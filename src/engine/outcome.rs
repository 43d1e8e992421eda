//! What a command changed, as a fragment: entries owned by root, of one time, and what it removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layers::encode::{EPOCH, Entry, Kind};
use layers::{Digest, ImagePath};
use memchr::memmem;

use super::index::Fragment;
use super::made::{Content, Made};
use super::tree::Tree as _;
use super::view::{OpenBlob, View};
use super::{EngineError, log};
use crate::sandbox::Secret;

/// Secrets shorter than this are found everywhere by accident.
const SHORTEST_SECRET: usize = 8;
/// And so are shorter lines of a secret of several: `[global]`.
const SHORTEST_LINE: usize = 16;

/// Lays out what lies in the folder `changed`, over `view`; `removed` paths are relative. A file that holds a secret is an
/// error: it would go into an image.
pub fn made(
    changed: &Path,
    removed: &[PathBuf],
    view: &View<'_>,
    secrets: &[Secret],
) -> Result<Made<'static>, EngineError> {
    let words = words(secrets);
    let mut made = Made::default();
    let mut links: HashMap<(u64, u64), ImagePath> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(folder) = pending.pop() {
        let mut names: Vec<_> = fs::read_dir(changed.join(&folder))?.collect::<Result<_, io::Error>>()?;
        names.sort_by_key(fs::DirEntry::file_name);
        for name in names {
            let relative = folder.join(name.file_name());
            if let Some(secret) = held(relative.as_os_str().as_bytes(), &words) {
                return Err(EngineError::SecretInOutcome { name: secret.name.clone(), path: image_path(&folder)? });
            }
            let path = image_path(&relative)?;
            let metadata = fs::symlink_metadata(name.path())?;
            let mode = metadata.mode() & 0o7777;
            let entry = |kind| Entry::new(path.clone(), kind, mode, EPOCH);
            let kind = metadata.file_type();
            if kind.is_dir() {
                pending.push(relative);
                // A folder that is there because of what lies in it.
                let known =
                    view.entry(&path).is_some_and(|below| below.is_dir() && below.mode & 0o1777 | 0o700 == mode);
                if !known {
                    made.push(entry(Kind::Dir), Content::None);
                }
            } else if kind.is_symlink() {
                let target = fs::read_link(name.path())?;
                if let Some(secret) = held(target.as_os_str().as_bytes(), &words) {
                    return Err(EngineError::SecretInOutcome { name: secret.name.clone(), path });
                }
                let target = target.to_str().ok_or_else(|| not_text(&path))?.to_owned();
                made.push(Entry { mode: 0o777, ..entry(Kind::Symlink { target }) }, Content::None);
            } else if kind.is_file() {
                if metadata.nlink() > 1 {
                    let first = links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone());
                    if *first != path {
                        made.push(entry(Kind::Hardlink { target: first.clone() }), Content::None);
                        continue;
                    }
                }
                check_secrets(&name.path(), &path, &words)?;
                let source = name.path();
                let open = move || -> Result<Box<dyn Read>, EngineError> { Ok(Box::new(File::open(source)?)) };
                made.push(entry(Kind::File { size: metadata.len() }), Content::Open(Box::new(open)));
            } else if kind.is_fifo() {
                made.push(entry(Kind::Fifo), Content::None);
            } else if !kind.is_socket() {
                return Err(EngineError::OutcomeKind { path });
            }
        }
    }
    for path in removed {
        made.whiteouts.push(image_path(path)?);
    }
    made.whiteouts.sort();
    Ok(made)
}

fn image_path(relative: &Path) -> Result<ImagePath, EngineError> {
    let text = relative.to_str().ok_or_else(|| EngineError::OutcomeName { name: relative.display().to_string() })?;
    ImagePath::new(format!("/{text}")).map_err(|error| EngineError::OutcomeName { name: error.to_string() })
}

fn not_text(path: &ImagePath) -> EngineError {
    EngineError::OutcomeName { name: format!("what the link {path} holds") }
}

/// What is looked for: secrets as a whole, and their lines; not the first and last ones of a PEM file, which are everybody's.
fn words(secrets: &[Secret]) -> Vec<(&Secret, &[u8])> {
    let whole = secrets.iter().map(|secret| (secret, secret.bytes.trim_ascii()));
    let whole = whole.filter(|(_, word)| word.len() >= SHORTEST_SECRET);
    let lines = secrets.iter().flat_map(|secret| {
        let told = |line: &&[u8]| line.len() >= SHORTEST_LINE && !line.starts_with(b"-----");
        log::lines(&secret.bytes).filter(told).map(move |line| (secret, line))
    });
    whole.chain(lines).collect()
}

/// The secret that a text holds.
fn held<'s>(text: &[u8], words: &[(&'s Secret, &[u8])]) -> Option<&'s Secret> {
    words.iter().find(|(_, word)| memmem::find(text, word).is_some()).map(|(secret, _)| *secret)
}

/// Reads a file for the sake of secrets; where there are none, not at all.
fn check_secrets(file: &Path, path: &ImagePath, words: &[(&Secret, &[u8])]) -> Result<(), EngineError> {
    let Some(longest) = words.iter().map(|(_, word)| word.len()).max() else { return Ok(()) };
    let mut file = File::open(file)?;
    let mut held: Vec<u8> = Vec::new();
    loop {
        // The end of what was read stays: a secret may lie across.
        let keep = held.len().min(longest - 1);
        held.drain(..held.len() - keep);
        if (&mut file).take(1 << 20).read_to_end(&mut held)? == 0 {
            return Ok(());
        }
        if let Some(secret) = self::held(&held, words) {
            return Err(EngineError::SecretInOutcome { name: secret.name.clone(), path: path.clone() });
        }
    }
}

/// What differs between two outcomes, as a tree; `None` where nothing does.
pub fn differences(one: &Fragment, other: &Fragment, open: &OpenBlob<'_>) -> Result<Option<String>, EngineError> {
    if one.blob == other.blob && one.dirs == other.dirs && one.whiteouts == other.whiteouts {
        return Ok(None);
    }
    let (one, other) = (listing(one, open)?, listing(other, open)?);
    let paths: BTreeSet<&ImagePath> = one.keys().chain(other.keys()).collect();
    let mut tree = String::new();
    let mut told: BTreeSet<ImagePath> = BTreeSet::new();
    for path in paths {
        let what = match (one.get(path), other.get(path)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => format!("{a} | {b}"),
            (Some(a), None) => format!("{a} | nothing"),
            (None, Some(b)) => format!("nothing | {b}"),
            (None, None) => continue,
        };
        let mut above: Vec<ImagePath> = path.ancestors().filter(|it| !it.is_root() && !told.contains(it)).collect();
        above.sort();
        for folder in above {
            let _ = writeln!(tree, "{}{}/", indent(&folder), name(&folder));
            told.insert(folder);
        }
        let _ = writeln!(tree, "{}{}  {what}", indent(path), name(path));
        told.insert(path.clone());
    }
    Ok(Some(tree))
}

fn indent(path: &ImagePath) -> String {
    "  ".repeat(path.as_str().matches('/').count())
}

fn name(path: &ImagePath) -> &str {
    path.as_str().rsplit('/').next().unwrap_or_default()
}

/// Every path of an outcome with what it is.
fn listing(fragment: &Fragment, open: &OpenBlob<'_>) -> Result<BTreeMap<ImagePath, String>, EngineError> {
    let mut listing: BTreeMap<ImagePath, String> =
        fragment.whiteouts.iter().map(|path| (path.clone(), "removed".to_owned())).collect();
    let mut view = View::new(open);
    view.apply(&[], &[Arc::new(fragment.clone())])?;
    for entry in &fragment.dirs {
        listing.insert(entry.path.clone(), format!("folder {:o}", entry.mode));
    }
    for indexed in &fragment.entries {
        let entry = &indexed.entry;
        let what = match &entry.kind {
            Kind::File { size } => {
                format!("{:o}, {size} bytes, {}", entry.mode, &Digest::of(&view.read(&entry.path)?).hex()[..12])
            }
            Kind::Hardlink { target } => format!("the same file as {target}"),
            Kind::Symlink { target } => format!("-> {target}"),
            _ => format!("special {:o}", entry.mode),
        };
        listing.insert(entry.path.clone(), what);
    }
    Ok(listing)
}
