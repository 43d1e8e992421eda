//! The configuration layer while it is written: a tree over the packages' tree.

use std::collections::BTreeMap;

use layers::ImagePath;
use layers::encode::{Entry, Kind};

use super::EffectError;
use crate::debian::elf::ElfFacts;
use crate::debian::follow;
use crate::engine::tree::{Tree, TreeError};

/// An entry with the content of a file.
pub type Made = (Entry, Option<Vec<u8>>);

/// What effects have written so far, seen together with what lies below.
pub(super) struct Draft<'a> {
    tree: &'a dyn Tree,
    mtime: i64,
    made: BTreeMap<ImagePath, Made>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(tree: &'a dyn Tree, mtime: i64) -> Draft<'a> {
        Draft { tree, mtime, made: BTreeMap::new() }
    }

    /// All entries, sorted by path.
    pub(super) fn finish(self) -> Vec<Made> {
        self.made.into_values().collect()
    }

    /// Whether something is at `path` once links are followed.
    pub(super) fn exists(&self, path: &str) -> bool {
        follow::existing(self, path).is_some()
    }

    /// What is at `path` itself; links are followed in its directories only.
    pub(super) fn at(&self, path: &str) -> Option<&Entry> {
        self.entry(&follow::place(self, path)?)
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        follow::existing(self, path).is_some_and(|path| path.is_root() || self.entry(&path).is_some_and(Entry::is_dir))
    }

    /// The content of a file, links followed; `None` where there is no file.
    pub(super) fn text(&self, path: &str) -> Result<Option<Vec<u8>>, EffectError> {
        match follow::existing(self, path).and_then(|path| self.entry(&path)) {
            Some(Entry { kind: Kind::File { .. } | Kind::Hardlink { .. }, path, .. }) => Ok(Some(self.read(path)?)),
            _ => Ok(None),
        }
    }

    /// The regular files in a directory, sorted by name.
    pub(super) fn files(&self, directory: &str) -> Vec<ImagePath> {
        let Some(directory) = follow::existing(self, directory) else { return Vec::new() };
        let inside = |entry: &&Entry| entry.path.parent().as_ref() == Some(&directory);
        self.below(&directory).filter(inside).filter(|entry| !entry.is_dir()).map(|entry| entry.path.clone()).collect()
    }

    fn put(
        &mut self,
        path: &str,
        kind: Kind,
        mode: u32,
        owner: (u32, u32),
        content: Option<Vec<u8>>,
    ) -> Result<(), EffectError> {
        let place = follow::place(self, path).ok_or_else(|| EffectError::Place { path: path.to_owned() })?;
        let missing: Vec<ImagePath> = place.ancestors().filter(|parent| self.entry(parent).is_none()).collect();
        for parent in missing {
            let entry = Entry::new(parent.clone(), Kind::Dir, 0o755, self.mtime);
            self.made.insert(parent, (entry, None));
        }
        let mut entry = Entry::new(place.clone(), kind, mode, self.mtime);
        (entry.uid, entry.gid) = owner;
        self.made.insert(place, (entry, content));
        Ok(())
    }

    /// Makes a directory, or gives the one that is there this mode and owner.
    pub(super) fn dir(&mut self, path: &str, mode: u32, owner: (u32, u32)) -> Result<(), EffectError> {
        let target = match follow::existing(self, path) {
            Some(found) if self.entry(&found).is_some_and(|entry| !entry.is_dir()) => {
                return Err(EffectError::Occupied { path: found, by: "a directory" });
            }
            Some(found) => found.to_string(),
            None => path.to_owned(),
        };
        self.put(&target, Kind::Dir, mode, owner, None)
    }

    /// Makes a directory unless one is there.
    pub(super) fn new_dir(&mut self, path: &str, mode: u32) -> Result<(), EffectError> {
        if self.is_dir(path) { Ok(()) } else { self.dir(path, mode, (0, 0)) }
    }

    /// Writes a file over whatever file is there.
    pub(super) fn file(
        &mut self,
        path: &str,
        mode: u32,
        owner: (u32, u32),
        content: Vec<u8>,
    ) -> Result<(), EffectError> {
        if self.at(path).is_some_and(Entry::is_dir) {
            let path = follow::place(self, path).ok_or_else(|| EffectError::Place { path: path.to_owned() })?;
            return Err(EffectError::Occupied { path, by: "a file" });
        }
        self.put(path, Kind::File { size: content.len() as u64 }, mode, owner, Some(content))
    }

    /// Writes a file unless one is there.
    pub(super) fn new_file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), EffectError> {
        if self.at(path).is_some() { Ok(()) } else { self.file(path, mode, (0, 0), content.to_vec()) }
    }

    /// Changes the content of a file and keeps its mode and owner.
    pub(super) fn rewrite(&mut self, path: &str, mode: u32, content: Vec<u8>) -> Result<(), EffectError> {
        match follow::existing(self, path).and_then(|found| self.entry(&found).cloned()) {
            Some(old) => self.file(old.path.as_str(), old.mode, (old.uid, old.gid), content),
            None => self.file(path, mode, (0, 0), content),
        }
    }

    /// Copies a file unless the target is there; a source that is not there (left out on purpose) is no error.
    pub(super) fn copy_new(&mut self, from: &str, to: &str) -> Result<(), EffectError> {
        match self.text(from)? {
            Some(content) => self.new_file(to, 0o644, &content),
            None => Ok(()),
        }
    }

    /// Makes a symbolic link over whatever is there, unless that is a directory with something in it.
    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), EffectError> {
        let place = follow::place(self, path).ok_or_else(|| EffectError::Place { path: path.to_owned() })?;
        if self.entry(&place).is_some_and(Entry::is_dir) && self.below(&place).any(|entry| entry.path != place) {
            return Err(EffectError::Occupied { path: place, by: "a link" });
        }
        self.put(path, Kind::Symlink { target: target.to_owned() }, 0o777, (0, 0), None)
    }
}

impl Tree for Draft<'_> {
    fn entry(&self, path: &ImagePath) -> Option<&Entry> {
        self.made.get(path).map(|(entry, _)| entry).or_else(|| self.tree.entry(path))
    }

    fn read(&self, path: &ImagePath) -> Result<Vec<u8>, TreeError> {
        match self.made.get(path) {
            Some((_, Some(content))) => Ok(content.clone()),
            Some((_, None)) => Err(TreeError { path: path.clone(), why: "it is not a regular file".into() }),
            None => self.tree.read(path),
        }
    }

    fn below<'a>(&'a self, path: &ImagePath) -> Box<dyn Iterator<Item = &'a Entry> + 'a> {
        let mut all: BTreeMap<&ImagePath, &Entry> = self.tree.below(path).map(|entry| (&entry.path, entry)).collect();
        let made = self.made.values().map(|(entry, _)| entry).filter(|entry| entry.path.starts_with(path));
        all.extend(made.map(|entry| (&entry.path, entry)));
        Box::new(all.into_values())
    }

    fn elf(&self, path: &ImagePath) -> Option<&ElfFacts> {
        if self.made.contains_key(path) { None } else { self.tree.elf(path) }
    }
}
