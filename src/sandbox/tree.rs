//! Trees on disk: copied before a step, made into an outcome after it, and removed.
//!
//! A step may have left anything: links in place of directories, modes that lock its owner out, names nested without end.
//! No process of it is alive when these functions look, and none of them follows a link.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Timespec, Timestamps, lgetxattr, llistxattr, lremovexattr, mknodat, utimensat,
};

/// How deep an outcome may be nested.
const DEEPEST: usize = 256;

/// What the overlay notes for itself.
const OVERLAY: &[u8] = b"user.overlay.";

/// Puts the path into an error.
pub(super) fn at<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// The names in a directory, sorted.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = at(folder, fs::read_dir(folder))?
        .map(|entry| at(folder, entry).map(|entry| entry.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    at(path, fs::set_permissions(path, Permissions::from_mode(mode)))
}

/// Copies files, directories, links and pipes with modes and times, and gives them to `owner`. Hard links become files of their own, as
/// in an overlay. Entries of `from` itself that are in `leave_out` are left out.
pub(super) fn copy(from: &Path, to: &Path, owner: Option<(u32, u32)>, leave_out: &[&str]) -> io::Result<()> {
    let metadata = at(from, fs::symlink_metadata(from))?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        at(to, symlink(at(from, fs::read_link(from))?, to))?;
    } else if kind.is_dir() {
        if !to.is_dir() {
            at(to, fs::create_dir(to))?;
        }
        for name in names(from)? {
            if !leave_out.iter().any(|left| name == *left) {
                copy(&from.join(&name), &to.join(&name), owner, &[])?;
            }
        }
    } else if kind.is_file() {
        at(from, reflink_copy::reflink_or_copy(from, to))?;
    } else if kind.is_fifo() {
        at(to, mknodat(CWD, to, FileType::Fifo, mode(&metadata).into(), 0).map_err(io::Error::from))?;
    } else {
        return Err(io::Error::other(format!("{}: neither a file, a folder, a link nor a pipe", from.display())));
    }
    if let Some((uid, gid)) = owner {
        at(to, lchown(to, Some(uid), Some(gid)))?;
    }
    if !kind.is_symlink() {
        set_mode(to, mode(&metadata))?;
    }
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    at(to, utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from))
}

/// A tree that a step has written to.
#[derive(Debug)]
pub(super) struct Written<'a> {
    /// What was there before.
    pub root: &'a Path,
    /// An overlay's upper directory, or a copy of all.
    pub tree: &'a Path,
    /// Whether what lacks in `tree` was removed.
    pub whole: bool,
    /// What is no part of the outcome, relative.
    pub excluded: BTreeSet<PathBuf>,
    /// Directories that were made for the step, relative: they count when something is in them.
    pub made: BTreeSet<PathBuf>,
}

impl Written<'_> {
    /// Leaves only what was changed in the tree; gives what was removed.
    pub fn settle(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        self.directory(Path::new(""), true, self.whole, 0, &mut removed)?;
        removed.sort();
        Ok(removed)
    }

    /// Whether anything is left in it. `known`: it is a directory in the root, too.
    fn directory(
        &self,
        folder: &Path,
        known: bool,
        whole: bool,
        depth: usize,
        removed: &mut Vec<PathBuf>,
    ) -> io::Result<bool> {
        let here = self.tree.join(folder);
        if depth > DEEPEST {
            return Err(too_deep(&here));
        }
        let whole = strip(&here)? || whole;
        let present = names(&here)?;
        if known && whole {
            for name in names(&self.root.join(folder))? {
                let path = folder.join(&name);
                if present.binary_search(&name).is_err() && !self.excluded.contains(&path) {
                    removed.push(path);
                }
            }
        }
        let mut left = false;
        for name in present {
            let path = folder.join(name);
            left |= self.entry(&path, known, whole, depth, removed)?;
        }
        Ok(left)
    }

    fn entry(
        &self,
        path: &Path,
        known: bool,
        whole: bool,
        depth: usize,
        removed: &mut Vec<PathBuf>,
    ) -> io::Result<bool> {
        let new_path = self.tree.join(path);
        if self.excluded.contains(path) {
            at(&new_path, remove(&new_path))?;
            return Ok(false);
        }
        let new = at(&new_path, fs::symlink_metadata(&new_path))?;
        let old_path = self.root.join(path);
        let old = match fs::symlink_metadata(&old_path) {
            Ok(old) if known => Some(old),
            Err(error) if known && error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => None,
        };
        let keep = if new.file_type().is_char_device() && new.rdev() == 0 {
            removed.extend(old.map(|_| path.to_owned()));
            false
        } else if new.is_dir() {
            if mode(&new) & 0o700 != 0o700 {
                set_mode(&new_path, mode(&new) | 0o700)?;
            }
            let known = old.as_ref().is_some_and(Metadata::is_dir);
            let filled = self.directory(path, known, whole, depth + 1, removed)?;
            let plain = match &old {
                Some(old) => old.is_dir() && mode(old) == mode(&new),
                None => self.made.contains(path),
            };
            if !filled && plain {
                at(&new_path, fs::remove_dir(&new_path))?;
                return Ok(false);
            }
            true
        } else {
            if new.is_file() && mode(&new) & 0o400 == 0 {
                set_mode(&new_path, mode(&new) | 0o400)?;
            }
            strip(&new_path)?;
            !old.is_some_and(|old| same(&old_path, &old, &new_path, &new))
        };
        if !keep {
            at(&new_path, fs::remove_file(&new_path))?;
        }
        Ok(keep)
    }

    /// Bytes on disk that the step has written, at least; `None` where something cannot be looked into.
    pub fn usage(&self) -> io::Result<(u64, Readable)> {
        let mut counted = Counted { bytes: 0, readable: Readable::All, linked: HashSet::new() };
        counted.folder(self.tree, Path::new(""), &self.excluded, 0)?;
        Ok((counted.bytes, counted.readable))
    }
}

/// Whether all of a tree could be looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readable {
    All,
    Some,
}

struct Counted {
    bytes: u64,
    readable: Readable,
    linked: HashSet<u64>,
}

impl Counted {
    /// The step is running: what vanishes meanwhile is not counted.
    fn folder(&mut self, tree: &Path, folder: &Path, excluded: &BTreeSet<PathBuf>, depth: usize) -> io::Result<()> {
        let here = tree.join(folder);
        if depth > DEEPEST {
            return Err(too_deep(&here));
        }
        let entries = match fs::read_dir(&here) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    self.readable = Readable::Some;
                }
                return Ok(());
            }
        };
        for entry in entries {
            let Ok(entry) = entry else { return Ok(()) };
            let path = folder.join(entry.file_name());
            let Ok(metadata) = entry.metadata() else { continue };
            if excluded.contains(&path)
                || (metadata.nlink() > 1 && !metadata.is_dir() && !self.linked.insert(metadata.ino()))
            {
                continue;
            }
            // What takes no room on the disk is read and written as what it says it is, all the same.
            let holes = if metadata.is_file() { metadata.len() } else { 0 };
            self.bytes = self.bytes.saturating_add((metadata.blocks() * 512).max(1024).max(holes));
            if metadata.is_dir() {
                self.folder(tree, &path, excluded, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn too_deep(path: &Path) -> io::Error {
    let start: PathBuf = path.iter().take(12).collect();
    io::Error::other(format!("{}/...: nested deeper than {DEEPEST} folders", start.display()))
}

/// Takes the overlay's notes off; whether one said that the directory hides what is below.
fn strip(path: &Path) -> io::Result<bool> {
    let mut list = vec![0; 1 << 16];
    // A file system without such attributes has no notes.
    let Ok(length) = llistxattr(path, &mut list) else { return Ok(false) };
    let mut opaque = false;
    for name in list[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(OVERLAY)) {
        if name == b"user.overlay.opaque" {
            let mut value = [0; 8];
            opaque |= lgetxattr(path, name, &mut value).is_ok_and(|length| &value[..length] == b"y");
        }
        if lremovexattr(path, name).is_err() {
            // An owner without the right to write may give it to himself.
            let before = mode(&at(path, fs::symlink_metadata(path))?);
            set_mode(path, before | 0o200)?;
            at(path, lremovexattr(path, name).map_err(io::Error::from))?;
            set_mode(path, before)?;
        }
    }
    Ok(opaque)
}

fn same(old_path: &Path, old: &Metadata, new_path: &Path, new: &Metadata) -> bool {
    if old.file_type() != new.file_type() {
        return false;
    }
    if old.is_symlink() {
        return matches!((fs::read_link(old_path), fs::read_link(new_path)), (Ok(old), Ok(new)) if old == new);
    }
    if mode(old) != mode(new) {
        return false;
    }
    // What cannot be read counts as changed.
    !old.is_file() || (old.len() == new.len() && equal(old_path, new_path).unwrap_or(false))
}

fn equal(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = one.read(&mut left)?;
        if length == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..length]) {
            Ok(()) if left[..length] == right[..length] => {}
            _ => return Ok(false),
        }
    }
}

/// See [`super::remove`].
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(folder),
        Ok(_) => unlock(folder)?,
    }
    // However deep it is nested, no path here has more than three names: what is below is moved up.
    let mut moved = 0_u64;
    loop {
        let folders = clear(folder)?;
        if folders.is_empty() {
            return at(folder, fs::remove_dir(folder));
        }
        for inner in folders {
            unlock(&inner)?;
            for below in clear(&inner)? {
                unlock(&below)?;
                // A name may be taken: of the kinds of failure, only these say so.
                while let Err(error) = fs::rename(&below, folder.join(format!("{moved}"))) {
                    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
                    if !matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory) {
                        return at(&below, Err(error));
                    }
                    moved += 1;
                }
                moved += 1;
            }
            at(&inner, fs::remove_dir(&inner))?;
        }
    }
}

/// Removes what is no directory; gives the directories.
fn clear(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in at(folder, fs::read_dir(folder))? {
        let entry = at(folder, entry)?;
        if at(folder, entry.file_type())?.is_dir() {
            folders.push(entry.path());
        } else {
            at(&entry.path(), fs::remove_file(entry.path()))?;
        }
    }
    Ok(folders)
}

fn unlock(folder: &Path) -> io::Result<()> {
    let mode = mode(&at(folder, fs::symlink_metadata(folder))?);
    if mode & 0o700 == 0o700 { Ok(()) } else { set_mode(folder, mode | 0o700) }
}

/// Whether a path inside a tree leads there without a link on the way; the path itself may lack.
pub(super) fn is_direct(tree: &Path, path: &Path) -> bool {
    let mut here = tree.to_owned();
    path.iter().all(|name| {
        here.push(name);
        !here.is_symlink()
    })
}

/// The directories above and at `path` that lack in `root`, relative.
pub(super) fn lacking(root: &Path, path: &Path) -> Vec<PathBuf> {
    let ancestors = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    ancestors.take_while(|path| !root.join(path).exists()).map(Path::to_owned).collect()
}

/// A listing for tests.
#[cfg(test)]
pub(super) fn listing(folder: &Path) -> std::collections::BTreeMap<String, String> {
    fn walk(top: &Path, folder: &Path, lines: &mut std::collections::BTreeMap<String, String>) {
        for name in names(folder).unwrap() {
            let path = folder.join(name);
            let metadata = fs::symlink_metadata(&path).unwrap();
            let what = if metadata.is_dir() {
                format!("dir {:04o}", mode(&metadata))
            } else if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else {
                format!("file {:04o} {}", mode(&metadata), fs::read_to_string(&path).unwrap())
            };
            lines.insert(path.strip_prefix(top).unwrap().display().to_string(), what);
            if metadata.is_dir() {
                walk(top, &path, lines);
            }
        }
    }
    let mut lines = std::collections::BTreeMap::new();
    walk(folder, folder, &mut lines);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written<'a>(root: &'a Path, tree: &'a Path) -> Written<'a> {
        Written { root, tree, whole: true, excluded: BTreeSet::new(), made: BTreeSet::new() }
    }

    #[test]
    fn a_copy_that_was_changed_becomes_its_changes() {
        let temporary = tempfile::tempdir().unwrap();
        let (root, tree) = (temporary.path().join("root"), temporary.path().join("tree"));
        for folder in ["a/b", "gone/deep", "kept", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for (file, content) in [("a/same", "1"), ("a/other", "2"), ("a/b/mode", "3"), ("gone/x", ""), ("swap", "4")] {
            fs::write(root.join(file), content).unwrap();
            set_mode(&root.join(file), 0o644).unwrap();
        }
        symlink("a/same", root.join("link")).unwrap();
        mknodat(CWD, root.join("pipe"), FileType::Fifo, 0o640.into(), 0).unwrap();
        copy(&root, &tree, None, &["tmp"]).unwrap();
        let pipe = fs::symlink_metadata(tree.join("pipe")).unwrap();
        assert!(pipe.file_type().is_fifo() && mode(&pipe) == 0o640);
        assert_eq!(mode(&fs::metadata(tree.join("a/same")).unwrap()), 0o644);

        fs::write(tree.join("a/same"), "1").unwrap();
        fs::write(tree.join("a/other"), "5").unwrap();
        set_mode(&tree.join("a/b/mode"), 0o755).unwrap();
        remove(&tree.join("gone")).unwrap();
        fs::remove_file(tree.join("swap")).unwrap();
        fs::create_dir(tree.join("swap")).unwrap();
        fs::write(tree.join("swap/new"), "6").unwrap();
        fs::create_dir_all(tree.join("made/empty")).unwrap();
        fs::create_dir_all(tree.join("made/full")).unwrap();
        symlink("/etc/passwd", tree.join("made/full/link")).unwrap();
        for folder in ["swap", "made", "made/full"] {
            set_mode(&tree.join(folder), 0o755).unwrap();
        }
        set_mode(&tree.join("swap/new"), 0o600).unwrap();
        let mut outcome = written(&root, &tree);
        outcome.excluded = [PathBuf::from("tmp")].into();
        outcome.made = ["made", "made/empty", "made/full"].map(PathBuf::from).into();
        assert_eq!(outcome.settle().unwrap(), [PathBuf::from("gone")]);
        let left: Vec<_> = listing(&tree).into_iter().map(|(path, what)| format!("{path}: {what}")).collect();
        let folder = |name: &str| format!("{name}: dir {:04o}", mode(&fs::metadata(root.join(name)).unwrap()));
        let expected = [
            folder("a"),
            folder("a/b"),
            "a/b/mode: file 0755 3".into(),
            "a/other: file 0644 5".into(),
            "made: dir 0755".into(),
            "made/full: dir 0755".into(),
            "made/full/link: -> /etc/passwd".into(),
            "swap: dir 0755".into(),
            "swap/new: file 0600 6".into(),
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn what_is_nested_or_locked_can_be_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let top = temporary.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("0"), "in the way").unwrap();
        // Deeper than a path can be long, made as a hostile step would make it.
        let script = "for i in $(seq 600); do mkdir abcdefghij && cd -P abcdefghij; done; mkdir locked; touch locked/x; chmod 0 locked";
        let made = std::process::Command::new("sh").args(["-c", script]).current_dir(&top).status().unwrap();
        assert!(made.success());
        assert!(written(temporary.path(), temporary.path()).usage().is_err());
        symlink("/", top.join("root")).unwrap();
        remove(&top).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists() && Path::new("/proc").exists());
    }

    #[test]
    fn links_on_the_way_are_seen() {
        let temporary = tempfile::tempdir().unwrap();
        fs::create_dir(temporary.path().join("a")).unwrap();
        symlink("/", temporary.path().join("a/b")).unwrap();
        assert!(is_direct(temporary.path(), Path::new("a/c/d")));
        assert!(!is_direct(temporary.path(), Path::new("a/b/c")));
        assert_eq!(lacking(temporary.path(), Path::new("a/c/d")), [Path::new("a/c/d"), Path::new("a/c")]);
    }
}
