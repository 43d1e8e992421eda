//! Stages: file systems described layer by layer, as immutable values.

use std::panic;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::path::ImagePath;
use crate::source::{Base, Source, TakeFrom};

/// Where in a definition something was written; shown in errors, never part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The source file as the compiler named it, such as `images/src/rag.rs`.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

impl Location {
    #[track_caller]
    pub(crate) fn caller() -> Location {
        let at = panic::Location::caller();
        Location { file: at.file().replace('\\', "/"), line: at.line() }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A file system under construction. Cheap to clone; a clone may be extended in another direction.
#[derive(Debug, Clone)]
pub struct Stage(pub(crate) Arc<Node>);

#[derive(Debug)]
pub(crate) enum Node {
    Scratch,
    From { base: Base, at: Location },
    Layer { below: Stage, source: Source, at: Location },
}

impl Stage {
    /// Starts with nothing (`FROM scratch`).
    pub fn scratch() -> Stage {
        Stage(Arc::new(Node::Scratch))
    }

    /// Starts with the layers and the configuration of an existing image (`FROM`): one of a registry,
    /// `Stage::from("docker.io/library/debian:trixie-slim")`, or of an [`oci_layout`](crate::source::oci_layout).
    #[track_caller]
    pub fn from(base: impl Into<Base>) -> Stage {
        Stage(Arc::new(Node::From { base: base.into(), at: Location::caller() }))
    }

    /// Puts the outcome of a source on top: one layer, or several where the source spreads (packages, wheels).
    #[track_caller]
    pub fn layer(&self, source: impl Into<Source>) -> Stage {
        Stage(Arc::new(Node::Layer { below: self.clone(), source: source.into(), at: Location::caller() }))
    }

    /// Names what lies at `path` in this stage, to be put into another one (`COPY --from`).
    pub fn take(&self, path: ImagePath) -> Take {
        Take(TakeFrom { stage: self.clone(), to: path.clone(), path })
    }

    /// Finishes the files; what follows is run-time configuration, which never costs a layer.
    pub fn image(self) -> Image {
        Image::of(self)
    }
}

/// What [`Stage::take`] names: a file or a tree of another stage. Whiteouts are applied there, not copied.
#[derive(Debug, Clone)]
pub struct Take(TakeFrom<Stage>);

impl Take {
    /// Puts it at another path; without this it keeps its own.
    pub fn to(mut self, path: ImagePath) -> Take {
        self.0.to = path;
        self
    }
}

impl From<Take> for Source {
    fn from(take: Take) -> Source {
        Source::Take(take.0)
    }
}
