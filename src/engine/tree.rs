//! Looking at a file system that exists only as layers.

use layers::ImagePath;
use layers::encode::Entry;

use super::super::debian::elf::ElfFacts;

/// Why a file of a tree could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {why}")]
pub struct TreeError {
    /// The file.
    pub path: ImagePath,
    /// What went wrong.
    pub why: String,
}

/// A merged file system: layers below applied in order, whiteouts and replacements done.
///
/// Paths are literal: no symbolic link is followed unless a method says so.
pub trait Tree {
    /// What is at `path` itself.
    fn entry(&self, path: &ImagePath) -> Option<&Entry>;

    /// The content of a regular file (a hardlink gives its target's).
    fn read(&self, path: &ImagePath) -> Result<Vec<u8>, TreeError>;

    /// All entries at or below `path`, sorted by path.
    fn below<'a>(&'a self, path: &ImagePath) -> Box<dyn Iterator<Item = &'a Entry> + 'a>;

    /// What is known of the ELF file at `path`; `None` where it is not an ELF file.
    fn elf(&self, path: &ImagePath) -> Option<&ElfFacts>;
}
