//! What a layer is made of, before it is bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::path::ImagePath;

/// What kind of thing a path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file of this many bytes.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link; the target is kept as written.
    Symlink {
        /// What the link holds.
        target: String,
    },
    /// Another name of a regular file of the same archive or layer.
    Hardlink {
        /// The first name of that file.
        target: ImagePath,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One path of a layer with everything that tar records about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub path: ImagePath,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u32,
    /// Owner's user id.
    pub uid: u32,
    /// Owner's group id.
    pub gid: u32,
    /// Seconds since 1970-01-01 UTC.
    pub mtime: i64,
    /// Extended attributes, such as `security.capability`; values are bytes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// An entry owned by root, without extended attributes.
    pub fn new(path: ImagePath, kind: Kind, mode: u32, mtime: i64) -> Entry {
        Entry { path, kind, mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }
}
