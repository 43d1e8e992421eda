//! The build context: what a definition selects from it, by digest.
//!
//! Time stamps are never trusted as truth: they only save re-hashing, and only where they cannot lie (see [`stat`]).

mod ignore;
mod parts;
mod stat;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use layers::source::{Files, LockFormat, Python};
use layers::{Digest, KeyHasher};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::parallel::{lock, unlocked};
use ignore::Patterns;
pub use parts::Part;
pub use stat::StatCache;

/// Why a selection of the context could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The context itself is not there.
    #[error("the build context `{path}` cannot be read: {source}; choose another folder with `--context`")]
    Context {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a definition names is not there.
    #[error("`{path}` is not in the build context{}", hint.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    Missing {
        /// The path.
        path: String,
        /// A similar name beside it.
        hint: Option<String>,
    },
    /// A selection that is empty.
    #[error("`{path}` of the build context selects no files; check its patterns and `.dockerignore`")]
    Empty {
        /// The path.
        path: String,
    },
    /// A path that leaves the context.
    #[error("`{path}` leads out of the build context")]
    Outside {
        /// The path.
        path: String,
    },
    /// Something that no layer can hold.
    #[error(
        "`{path}` in the build context is {what}, which a layer cannot hold; leave it out with `.dockerignore` or `.exclude([..])`"
    )]
    Special {
        /// The path.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A name that is not text.
    #[error("a file name in `{folder}` of the build context is not UTF-8: `{name}`")]
    Name {
        /// The folder.
        folder: String,
        /// The name, lossily.
        name: String,
    },
    /// A pattern that says nothing.
    #[error("the pattern `{pattern}` is malformed: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        why: String,
    },
    /// A file that cannot be read.
    #[error("cannot read `{path}` of the build context: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What a selected path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectedKind {
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
        /// Digest of its bytes.
        digest: Digest,
    },
    /// A directory.
    Dir,
    /// A symbolic link, kept as a link.
    Symlink {
        /// What it holds.
        target: Box<str>,
    },
}

/// A selected path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Relative to the destination; empty where one file was selected.
    pub path: Box<str>,
    /// What it is.
    pub kind: SelectedKind,
}

/// A part of the context, pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// What was selected, relative to the context; empty for all of it.
    from: String,
    /// Sorted by path.
    pub entries: Vec<Selected>,
    /// How they are divided.
    pub parts: Vec<Part>,
    /// Names all of it: paths, kinds, execute bits and contents.
    pub digest: Digest,
}

impl Selection {
    fn of(from: String, entries: Vec<Selected>) -> Selection {
        let parts = parts::parts(&entries);
        let mut hasher = KeyHasher::new("selection", 2);
        hasher.list("part", parts.iter().map(|part| part.digest));
        Selection { from, entries, parts, digest: hasher.finish().0.0 }
    }

    /// Where an entry of it lies, relative to the context.
    pub fn source(&self, entry: &Selected) -> String {
        join(&self.from, &entry.path)
    }

    /// The length of all files, bytes.
    pub fn size(&self) -> u64 {
        let size = |entry: &Selected| if let SelectedKind::File { size, .. } = entry.kind { size } else { 0 };
        self.entries.iter().map(size).sum()
    }
}

/// What decides a selection: the path, and the patterns that include and exclude.
type Wanted = (String, Vec<String>, Vec<String>);

/// A folder that definitions select files from.
pub struct Context {
    root: PathBuf,
    folder: File,
    ignored: Patterns,
    stats: Mutex<StatCache>,
    /// What was selected: each is asked for when its key is worked out, and again when it is copied.
    selected: Mutex<HashMap<Wanted, Arc<Selection>>>,
    jobs: usize,
}

impl Context {
    /// Opens the context in `root`. `stats` remembers digests between builds.
    pub fn open(root: &Path, stats: StatCache, jobs: usize) -> Result<Context, PinError> {
        let at_root = |source| PinError::Context { path: root.into(), source };
        let folder = File::open(root).map_err(at_root)?;
        if !folder.metadata().map_err(at_root)?.is_dir() {
            return Err(at_root(io::ErrorKind::NotADirectory.into()));
        }
        let ignored = match fs::read_to_string(root.join(".dockerignore")) {
            Ok(text) => Patterns::dockerignore(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Patterns::default(),
            Err(source) => return Err(PinError::Read { path: ".dockerignore".into(), source }),
        };
        Ok(Context {
            root: root.into(),
            folder,
            ignored,
            stats: Mutex::new(stats),
            selected: Mutex::default(),
            jobs: jobs.max(1),
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pins what `files` selects: what is found at first counts from then on.
    pub fn select(&self, files: &Files) -> Result<Arc<Selection>, PinError> {
        let what = (files.from.clone(), files.include.clone(), files.exclude.clone());
        let known = || lock(&self.selected);
        if let Some(selection) = known().get(&what) {
            return Ok(selection.clone());
        }
        let selection = Arc::new(self.find(files)?);
        Ok(known().entry(what).or_insert(selection).clone())
    }

    fn find(&self, files: &Files) -> Result<Selection, PinError> {
        let from = normal(&files.from)?;
        let top = self.root.join(&from);
        let seen = stat::clock();
        let metadata = match fs::symlink_metadata(&top) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PinError::Missing { hint: similar(&self.root, &from), path: files.from.clone() });
            }
            Err(source) => return Err(PinError::Read { path: from, source }),
        };
        // Resolving the folder itself must not leave the context, whatever links lead to it.
        self.check_inside(&from)?;
        let mut walk = Walk {
            context: self,
            include: Patterns::plain(&files.include)?,
            exclude: Patterns::plain(&files.exclude)?,
            top: &from,
            found: Vec::new(),
            folders: HashSet::new(),
        };
        if metadata.is_dir() {
            walk.folder("")?;
        } else {
            walk.visit("", &metadata)?;
        }
        let mut found = walk.found;
        if found.is_empty() || !files.include.is_empty() && found.iter().all(|it| matches!(it.kind, Found::Dir)) {
            return Err(PinError::Empty { path: files.from.clone() });
        }
        if !files.include.is_empty() {
            keep_used_folders(&mut found);
        }
        let entries = self.pin(&from, found, seen)?;
        Ok(Selection::of(from, entries))
    }

    /// The digest of the lock files that a Python source reads; `None` where the context lacks its lock file.
    pub fn lock_digest<S>(&self, python: &Python<S>) -> Option<Digest> {
        let mut hasher = KeyHasher::new("lock-files", 1);
        hasher.field("lock", self.file_digest(&python.lock.path).ok()?);
        // Groups and extras of these formats are defined by the project file beside the lock.
        if matches!(python.lock.format, LockFormat::Poetry | LockFormat::Uv) {
            let project = match python.lock.path.rsplit_once('/') {
                Some((folder, _)) => format!("{folder}/pyproject.toml"),
                None => "pyproject.toml".to_owned(),
            };
            if let Ok(digest) = self.file_digest(&project) {
                hasher.field("project", digest);
            }
        }
        Some(hasher.finish().0.0)
    }

    /// The digest of a file, from memory where it did not change.
    fn file_digest(&self, path: &str) -> Result<Digest, PinError> {
        let path = normal(path)?;
        let file = self.open_file(&path)?;
        let seen = stat::clock();
        let metadata = file.metadata().map_err(|source| PinError::Read { path: path.clone(), source })?;
        let signature = stat::Signature::of(&metadata);
        if let Some(known) = self.stats().digest(&path, &signature) {
            return Ok(known);
        }
        let digest = cache::hash(file).map_err(|source| PinError::Read { path: path.clone(), source })?;
        self.stats().remember(&path, &signature, seen, digest);
        Ok(digest)
    }

    /// Reads a small file of the context.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, PinError> {
        let path = normal(path)?;
        let mut bytes = Vec::new();
        self.open_file(&path)?
            .read_to_end(&mut bytes)
            .map_err(|source| PinError::Read { path: path.clone(), source })?;
        Ok(bytes)
    }

    /// Opens a regular file; no link on the way may lead out of the context.
    pub fn open_file(&self, path: &str) -> Result<File, PinError> {
        let opened =
            openat2(&self.folder, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::BENEATH);
        match opened {
            Ok(file) => Ok(file.into()),
            Err(rustix::io::Errno::XDEV) => Err(PinError::Outside { path: path.into() }),
            // Kernels before 5.6, and sandboxes that forbid the call: the path was checked when it was selected.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                File::open(self.root.join(path)).map_err(|source| PinError::Read { path: path.into(), source })
            }
            Err(rustix::io::Errno::NOENT) => {
                Err(PinError::Missing { hint: similar(&self.root, path), path: path.into() })
            }
            Err(error) => Err(PinError::Read { path: path.into(), source: error.into() }),
        }
    }

    /// Saves what was learnt about files.
    pub fn save_stats(&self) {
        self.stats().save();
    }

    fn check_inside(&self, path: &str) -> Result<(), PinError> {
        let read = |source| PinError::Read { path: path.into(), source };
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(()) };
        let real = fs::canonicalize(self.root.join(parent)).map_err(read)?;
        let root = fs::canonicalize(&self.root).map_err(read)?;
        if real.starts_with(&root) { Ok(()) } else { Err(PinError::Outside { path: path.into() }) }
    }

    /// Hashes what was found below `from` where its digest is not known. `seen`: the clock before any of it was looked at.
    fn pin(&self, from: &str, found: Vec<FoundPath>, seen: i64) -> Result<Vec<Selected>, PinError> {
        const NOT_YET: Digest = Digest::from_bytes([0; 32]);
        let mut unknown: Vec<(usize, stat::Signature)> = Vec::new();
        let mut entries: Vec<Selected> = Vec::with_capacity(found.len());
        {
            let mut stats = self.stats();
            for (at, FoundPath { path, kind }) in found.into_iter().enumerate() {
                let kind = match kind {
                    Found::Dir => SelectedKind::Dir,
                    Found::Link(target) => SelectedKind::Symlink { target },
                    Found::File { executable, stat } => {
                        let known = stats.digest(&join(from, &path), &stat);
                        if known.is_none() {
                            unknown.push((at, stat));
                        }
                        SelectedKind::File { size: stat.size(), executable, digest: known.unwrap_or(NOT_YET) }
                    }
                };
                entries.push(Selected { path, kind });
            }
        }
        let hashed = Mutex::new(Vec::with_capacity(unknown.len()));
        crate::parallel::in_parallel(self.jobs, &unknown, |&(at, stat)| {
            let path = join(from, &entries[at].path);
            let digest =
                cache::hash(self.open_file(&path)?).map_err(|source| PinError::Read { path: path.clone(), source })?;
            lock(&hashed).push((at, stat, digest));
            Ok::<(), PinError>(())
        })?;
        let mut stats = self.stats();
        for (at, stat, found) in unlocked(hashed) {
            stats.remember(&join(from, &entries[at].path), &stat, seen, found);
            if let SelectedKind::File { digest, .. } = &mut entries[at].kind {
                *digest = found;
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    fn stats(&self) -> MutexGuard<'_, StatCache> {
        lock(&self.stats)
    }
}

struct FoundPath {
    path: Box<str>,
    kind: Found,
}

enum Found {
    Dir,
    Link(Box<str>),
    File { executable: bool, stat: stat::Signature },
}

struct Walk<'a> {
    context: &'a Context,
    include: Patterns,
    exclude: Patterns,
    top: &'a str,
    found: Vec<FoundPath>,
    /// Those of them that are folders.
    folders: HashSet<Box<str>>,
}

impl Walk<'_> {
    fn folder(&mut self, inside: &str) -> Result<(), PinError> {
        let source = join(self.top, inside);
        let folder = self.context.root.join(&source);
        let read = |error| PinError::Read { path: source.clone(), source: error };
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            match name.to_str() {
                Some(name) => names.push(name.to_owned()),
                None => {
                    return Err(PinError::Name {
                        folder: source,
                        name: String::from_utf8_lossy(name.as_bytes()).into_owned(),
                    });
                }
            }
        }
        names.sort_unstable();
        for name in names {
            let inside = join(inside, &name);
            let source = join(self.top, &inside);
            let metadata = match fs::symlink_metadata(self.context.root.join(&source)) {
                Ok(metadata) => metadata,
                Err(source_error) => return Err(PinError::Read { path: source, source: source_error }),
            };
            self.visit(&inside, &metadata)?;
        }
        Ok(())
    }

    fn visit(&mut self, inside: &str, metadata: &fs::Metadata) -> Result<(), PinError> {
        let source = join(self.top, inside);
        let ignored = self.context.ignored.matches(&source) || self.exclude.matches(inside);
        if metadata.is_dir() {
            if !ignored && !inside.is_empty() {
                self.found_folder(inside);
                return self.folder(inside);
            }
            // An exception such as `!docs/keep.md` may bring back what lies inside an ignored folder.
            if inside.is_empty() || self.context.ignored.may_bring_back(&source) || self.exclude.may_bring_back(inside)
            {
                return self.folder(inside);
            }
            return Ok(());
        }
        if ignored || !inside.is_empty() && !self.include.is_empty() && !self.include.matches(inside) {
            return Ok(());
        }
        let kind = metadata.file_type();
        let special = |what| Err(PinError::Special { path: source.clone(), what });
        let kind = if kind.is_file() {
            Found::File { executable: metadata.mode() & 0o100 != 0, stat: stat::Signature::of(metadata) }
        } else if kind.is_symlink() {
            let target = fs::read_link(self.context.root.join(&source))
                .map_err(|error| PinError::Read { path: source.clone(), source: error })?;
            match target.to_str() {
                Some(target) => Found::Link(target.into()),
                None => {
                    return Err(PinError::Name { folder: source, name: target.to_string_lossy().into_owned() });
                }
            }
        } else if kind.is_fifo() {
            return special("a named pipe");
        } else if kind.is_socket() {
            return special("a socket");
        } else {
            return special("a device");
        };
        if !inside.is_empty() {
            self.add_parents(inside);
        }
        self.found.push(FoundPath { path: inside.into(), kind });
        Ok(())
    }

    fn found_folder(&mut self, inside: &str) {
        if !self.folders.contains(inside) {
            self.folders.insert(inside.into());
            self.found.push(FoundPath { path: inside.into(), kind: Found::Dir });
        }
    }

    /// A file that an exception brought back needs its folders.
    fn add_parents(&mut self, inside: &str) {
        for (at, _) in inside.match_indices('/') {
            self.found_folder(&inside[..at]);
        }
    }
}

/// With include patterns, folders are there for the files in them.
fn keep_used_folders(found: &mut Vec<FoundPath>) {
    let mut used: HashSet<Box<str>> = HashSet::new();
    for it in found.iter().filter(|it| !matches!(it.kind, Found::Dir)) {
        for (at, _) in it.path.match_indices('/') {
            if !used.contains(&it.path[..at]) {
                used.insert(it.path[..at].into());
            }
        }
    }
    found.retain(|it| !matches!(it.kind, Found::Dir) || used.contains(&it.path));
}

fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", name) => name.to_owned(),
        (folder, "") => folder.to_owned(),
        (folder, name) => format!("{folder}/{name}"),
    }
}

/// A relative path without `.`, `//` and trailing `/`; `..` and absolute paths are refused.
fn normal(path: &str) -> Result<String, PinError> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" if parts.is_empty() && path.starts_with('/') => return Err(PinError::Outside { path: path.into() }),
            "" | "." => {}
            ".." => return Err(PinError::Outside { path: path.into() }),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// A name beside the missing one that differs in few characters.
fn similar(root: &Path, path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let names: Vec<String> =
        fs::read_dir(root.join(folder)).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    crate::names::nearest(name, names.iter().map(String::as_str)).map(|near| join(folder, near))
}

#[cfg(test)]
mod tests;
