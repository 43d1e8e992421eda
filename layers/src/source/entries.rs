//! Directories, links and files written in the definition itself.

use serde::{Deserialize, Serialize};

use super::Owner;
use crate::path::ImagePath;

/// A directory. Made by [`dir`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dir {
    /// Where it is.
    pub path: ImagePath,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
}

/// Creates a directory with mode 0755, or changes the one that is there.
pub fn dir(path: ImagePath) -> Dir {
    Dir { path, mode: 0o755, owner: Owner::default() }
}

impl Dir {
    /// Sets the permission bits.
    pub fn mode(mut self, mode: u32) -> Dir {
        self.mode = mode;
        self
    }

    /// Sets the owner.
    pub fn owner(mut self, uid: u32, gid: u32) -> Dir {
        self.owner = Owner { uid, gid };
        self
    }
}

/// A symbolic link. Made by [`link`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Where it is.
    pub path: ImagePath,
    /// What it holds, absolute or relative.
    pub target: String,
}

/// Creates a symbolic link at `path` that holds `target`.
pub fn link(path: ImagePath, target: impl Into<String>) -> Link {
    Link { path, target: target.into() }
}

/// A file written in the definition. Made by [`inline`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inline {
    /// What it holds.
    pub text: String,
    /// Where it is.
    pub path: ImagePath,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
}

/// Writes a text file with mode 0644; `include_str!` brings one that lies beside the definition.
pub fn inline(text: impl Into<String>, path: ImagePath) -> Inline {
    Inline { text: text.into(), path, mode: 0o644, owner: Owner::default() }
}

impl Inline {
    /// Sets the permission bits.
    pub fn mode(mut self, mode: u32) -> Inline {
        self.mode = mode;
        self
    }

    /// Sets the owner.
    pub fn owner(mut self, uid: u32, gid: u32) -> Inline {
        self.owner = Owner { uid, gid };
        self
    }
}
