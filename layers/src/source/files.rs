//! Files of the build context.

use serde::{Deserialize, Serialize};

use super::Owner;
use crate::path::ImagePath;

/// Files and folders of the build context. Made by [`files`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// A file or folder relative to the context; of a folder the content is copied, as `COPY` does. `.` is the context.
    pub from: String,
    /// Where it goes: the file itself, which cannot be at `/`, or the folder that receives the content.
    pub to: ImagePath,
    /// Patterns relative to `from` (`**/*.md`); empty takes everything that `.dockerignore` lets through.
    pub include: Vec<String>,
    /// Patterns relative to `from` that are left out.
    pub exclude: Vec<String>,
    /// Permission bits of files; `None`: 0755 where the owner may execute, else 0644.
    pub mode: Option<u32>,
    /// Permission bits of folders.
    pub dir_mode: u32,
    /// Owner of everything copied.
    pub owner: Owner,
}

/// Copies a file or the content of a folder.
pub fn files(from: impl Into<String>, to: ImagePath) -> Files {
    Files {
        from: from.into(),
        to,
        include: Vec::new(),
        exclude: Vec::new(),
        mode: None,
        dir_mode: 0o755,
        owner: Owner::default(),
    }
}

impl Files {
    /// Takes only files that match.
    pub fn include<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Files {
        self.include.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Leaves matching files and folders out.
    pub fn exclude<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Files {
        self.exclude.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Sets the permission bits of all files.
    pub fn mode(mut self, mode: u32) -> Files {
        self.mode = Some(mode);
        self
    }

    /// Sets the owner of everything copied.
    pub fn owner(mut self, uid: u32, gid: u32) -> Files {
        self.owner = Owner { uid, gid };
        self
    }
}
