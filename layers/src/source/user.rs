//! Users and groups.

use serde::{Deserialize, Serialize};

use crate::path::ImagePath;

/// A user with a group of the same name, appended to `/etc/passwd` and `/etc/group`. Made by [`user`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Name of the user and of its group.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory; it is created and owned by the user unless it is `/nonexistent`.
    pub home: ImagePath,
    /// Login shell.
    pub shell: ImagePath,
}

/// Adds a user whose group has the same name and number, without home or shell.
pub fn user(name: impl Into<String>, uid: u32) -> User {
    User {
        name: name.into(),
        uid,
        gid: uid,
        home: crate::path!("/nonexistent"),
        shell: crate::path!("/usr/sbin/nologin"),
    }
}

impl User {
    /// Sets the group id.
    pub fn gid(mut self, gid: u32) -> User {
        self.gid = gid;
        self
    }

    /// Sets and creates the home directory.
    pub fn home(mut self, path: ImagePath) -> User {
        self.home = path;
        self
    }

    /// Sets the login shell.
    pub fn shell(mut self, path: ImagePath) -> User {
        self.shell = path;
        self
    }
}
