//! Files of the context: a fragment for each part of what is selected, so that what did not change is not read again.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use layers::encode::{EPOCH, Entry, Kind, LAYER_FORMAT};
use layers::source::Files;
use layers::{Digest, ImagePath, Key, KeyHasher};

use super::EngineError;
use super::index::{Fragment, INDEX_FORMAT};
use super::local::Local;
use super::made::{Content, Made};
use super::view::View;
use crate::parallel::lock;
use crate::pin::{Part, SelectedKind, Selection};

impl Local<'_> {
    /// What `files` selects, as a fragment for each part.
    pub(super) fn copy(&self, files: &Files, view: &View<'_>) -> Result<Vec<Arc<Fragment>>, EngineError> {
        let selection = self.context.select(files)?;
        // One file goes to the path itself, a folder's content goes below it.
        let to = view.through_links(&files.to)?;
        let copy = Copy { local: self, files, selection: &selection, to };
        let keys: Vec<(Key, String)> = selection.parts.iter().map(|part| copy.key(part.digest)).collect();
        let make = |at: usize| {
            let (key, text) = &keys[at];
            self.kept(*key, text, || copy.made(&selection.parts[at]))
        };
        // Most are one.
        if keys.len() == 1 {
            return Ok(vec![make(0)?]);
        }
        let mut found = keys.iter().map(|(key, _)| self.find_fragment(key)).collect::<Result<Vec<_>, _>>()?;
        let missing: Vec<usize> = (0..found.len()).filter(|&at| found[at].is_none()).collect();
        let made = Mutex::new(&mut found);
        self.cores.spread(self.jobs, &missing, |&at| {
            let fragment = make(at)?;
            lock(&made)[at] = Some(fragment);
            Ok::<_, EngineError>(())
        })?;
        Ok(found.into_iter().flatten().collect())
    }
}

/// Some files and where they go.
struct Copy<'a> {
    local: &'a Local<'a>,
    files: &'a Files,
    selection: &'a Selection,
    to: ImagePath,
}

impl<'a> Copy<'a> {
    /// The key of the part that this digest names.
    fn key(&self, part: Digest) -> (Key, String) {
        let files = self.files;
        let mut hasher = KeyHasher::new("copy", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("part", part);
        hasher.field("to", &self.to);
        hasher.field("mode", files.mode.map_or("kept".into(), |mode| format!("{mode:o}")));
        hasher.field("dir-mode", format!("{:o}", files.dir_mode));
        hasher.field("owner", format!("{}:{}", files.owner.uid, files.owner.gid));
        hasher.finish()
    }

    fn made(&self, part: &Part) -> Result<Made<'a>, EngineError> {
        let files = self.files;
        let mut made = Made::default();
        for selected in part.of(&self.selection.entries) {
            let path = match self.to.join(&selected.path) {
                Ok(path) => path,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidInput, error.to_string()).into()),
            };
            let entry = |kind, mode| Entry {
                uid: files.owner.uid,
                gid: files.owner.gid,
                ..Entry::new(path.clone(), kind, mode, EPOCH)
            };
            match &selected.kind {
                SelectedKind::Dir => made.push(entry(Kind::Dir, files.dir_mode), Content::None),
                SelectedKind::Symlink { target } => {
                    made.push(entry(Kind::Symlink { target: target.to_string() }, 0o777), Content::None);
                }
                SelectedKind::File { size, executable, digest } => {
                    let mode = files.mode.unwrap_or(if *executable { 0o755 } else { 0o644 });
                    let (source, digest) = (self.selection.source(selected), *digest);
                    let context = self.local.context;
                    let open = move || -> Result<Box<dyn Read>, EngineError> {
                        let file = context.open_file(&source)?;
                        Ok(Box::new(Verified::new(file, source, digest)))
                    };
                    made.push(entry(Kind::File { size: *size }, mode), Content::Open(Box::new(open)));
                }
            }
        }
        Ok(made)
    }
}

/// Reads a file of the context and compares it with what was pinned.
struct Verified<R> {
    inner: R,
    path: String,
    expected: Digest,
    hasher: sha2::Sha256,
}

impl<R: Read> Verified<R> {
    fn new(inner: R, path: String, expected: Digest) -> Verified<R> {
        Verified { inner, path, expected, hasher: sha2::Digest::new() }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        if count > 0 {
            sha2::Digest::update(&mut self.hasher, &out[..count]);
        } else if !out.is_empty() {
            let found: [u8; 32] = sha2::Digest::finalize(self.hasher.clone()).into();
            if Digest::from_bytes(found) != self.expected {
                let error = EngineError::Changed { path: self.path.clone() };
                return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
            }
        }
        Ok(count)
    }
}
