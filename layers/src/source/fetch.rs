//! Downloads by digest.

use serde::{Deserialize, Serialize};

use super::Owner;
use crate::digest::Digest;
use crate::path::ImagePath;

/// How a download is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unpack {
    /// A tar file, plain or compressed with gzip, xz or zstd (told apart by its first bytes).
    Tar,
    /// A zip file.
    Zip,
}

/// A download. Made by [`fetch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    /// `https://` or `http://`, without user and password.
    pub url: String,
    /// What the bytes must hash to.
    pub sha256: Digest,
    /// The file, or with [`unpack`](Fetch::unpack) the folder that receives the content. Links of the stage below on this path are
    /// followed, for a folder to its end.
    pub to: ImagePath,
    /// Whether and how it is unpacked.
    pub unpack: Option<Unpack>,
    /// Leading path components that are dropped while unpacking.
    pub strip_components: u8,
    /// Permission bits of the file; `None`: 0644, or the archive's while unpacking.
    pub mode: Option<u32>,
    /// Owner of everything.
    pub owner: Owner,
}

/// Downloads a file by URL and SHA-256. A single file is named by `to`: it cannot be put at `/`.
pub fn fetch(url: impl Into<String>, sha256: Digest, to: ImagePath) -> Fetch {
    Fetch { url: url.into(), sha256, to, unpack: None, strip_components: 0, mode: None, owner: Owner::default() }
}

impl Fetch {
    /// Unpacks the download into the folder.
    ///
    /// Everything lies where the archive says. Only where the stage below has merged /usr, which is to say links in the places of
    /// `/bin`, `/sbin` or `/lib*`, what the archive holds in these directories goes where the links lead (`/bin/sh` to
    /// `/usr/bin/sh`), and the links stay. A path below any other link is refused.
    pub fn unpack(mut self, how: Unpack) -> Fetch {
        self.unpack = Some(how);
        self
    }

    /// Drops leading path components while unpacking.
    pub fn strip_components(mut self, count: u8) -> Fetch {
        self.strip_components = count;
        self
    }

    /// Sets the permission bits of the file.
    pub fn mode(mut self, mode: u32) -> Fetch {
        self.mode = Some(mode);
        self
    }

    /// Sets the owner of everything.
    pub fn owner(mut self, uid: u32, gid: u32) -> Fetch {
        self.owner = Owner { uid, gid };
        self
    }

    /// The last component of the URL.
    pub fn file_name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }
}
