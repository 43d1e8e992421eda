//! Layer sources: one word a file. Each is a plain value that says *what*; the engine knows *how*.

mod base;
mod debian;
mod entries;
mod fetch;
mod files;
mod python;
mod take;
mod user;

use serde::{Deserialize, Serialize};

pub use base::{Base, OciLayout, RegistryImage, oci_layout};
pub use debian::{Debian, Effect, Repository, debian};
pub use entries::{Dir, Inline, Link, dir, inline, link};
pub use fetch::{Fetch, Unpack, fetch};
pub use files::{Files, files};
pub use python::{
    Foreign, LockFormat, LockSelection, Modules, Python, Sdist, pip_requirements, poetry_lock, pylock, python, sdist,
    uv_lock,
};
pub use take::TakeFrom;
pub use user::{User, user};

use crate::stage::Stage;

/// Numeric owner of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a field is that names no stage: a default that asks nothing of `S`.
fn no_stage<S>() -> Option<S> {
    None
}

/// Any of the words. `S` is how a source names another stage: [`Stage`] in a definition,
/// [`StageId`](crate::StageId) in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub enum Source<S = Stage> {
    /// Debian packages.
    Debian(Debian<S>),
    /// Python wheels in a virtual environment.
    Python(Python<S>),
    /// Files of the build context.
    Files(Files),
    /// A download.
    Fetch(Fetch),
    /// A part of another stage.
    Take(TakeFrom<S>),
    /// A user and its group.
    User(User),
    /// A directory.
    Dir(Dir),
    /// A symbolic link.
    Link(Link),
    /// A file written in the definition.
    Inline(Inline),
}

impl<S> Source<S> {
    /// Replaces the names of other stages.
    pub fn map_stage<T, E>(self, rename: impl FnMut(S) -> Result<T, E>) -> Result<Source<T>, E> {
        Ok(match self {
            Source::Debian(it) => Source::Debian(it.map_stage(rename)?),
            Source::Python(it) => Source::Python(it.map_stage(rename)?),
            Source::Files(it) => Source::Files(it),
            Source::Fetch(it) => Source::Fetch(it),
            Source::Take(it) => Source::Take(it.map_stage(rename)?),
            Source::User(it) => Source::User(it),
            Source::Dir(it) => Source::Dir(it),
            Source::Link(it) => Source::Link(it),
            Source::Inline(it) => Source::Inline(it),
        })
    }

    /// One short line that names the source to a person, also the layer's `created_by` in the image's history.
    pub fn label(&self) -> String {
        match self {
            Source::Debian(it) => it.label(),
            Source::Python(it) => it.label(),
            Source::Files(it) => format!("files {} -> {}", it.from, it.to),
            Source::Fetch(it) => format!("fetch {} -> {}", it.file_name(), it.to),
            Source::Take(it) => format!("take {} -> {}", it.path, it.to),
            Source::User(it) => format!("user {} ({}:{})", it.name, it.uid, it.gid),
            Source::Dir(it) => format!("dir {}", it.path),
            Source::Link(it) => format!("link {} -> {}", it.path, it.target),
            Source::Inline(it) => format!("inline {}", it.path),
        }
    }
}

macro_rules! into_source {
    ($($word:ident),*) => {$(
        impl<S> From<$word> for Source<S> {
            fn from(word: $word) -> Source<S> {
                Source::$word(word)
            }
        }
    )*};
}
into_source!(Files, Fetch, User, Dir, Link, Inline);

impl From<Debian> for Source {
    fn from(word: Debian) -> Source {
        Source::Debian(word)
    }
}

impl From<Python> for Source {
    fn from(word: Python) -> Source {
        Source::Python(word)
    }
}
