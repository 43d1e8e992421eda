//! Stages: file systems described layer by layer, as immutable values.

use std::panic;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::path::ImagePath;
use crate::run::Run;
use crate::source::{Base, Owner, Source, TakeFrom};

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
    Run { below: Stage, run: Run, at: Location },
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

    /// Puts the outcome of a source on top: one layer, several where the source spreads (packages, wheels), or one that small sources
    /// share (users, directories, links and texts that follow each other and write in different places).
    #[track_caller]
    pub fn layer(&self, source: impl Into<Source>) -> Stage {
        Stage(Arc::new(Node::Layer { below: self.clone(), source: source.into(), at: Location::caller() }))
    }

    /// Runs a command on what is there (`RUN`): bare words, or a [`command`](crate::command) with its environment and inputs.
    /// What it made is [taken](Stage::take) into another stage; an image does not stand on commands.
    ///
    /// ```
    /// use layers::*;
    ///
    /// let site = Stage::scratch()
    ///     .layer(debian(["mkdocs"]))
    ///     .run(command(["mkdocs", "build", "--site-dir", "/site"]).workdir(path!("/docs")).input(files("docs", path!("/docs"))));
    /// let image = Stage::scratch().layer(site.take(path!("/site")).to(path!("/srv/www"))).image();
    /// ```
    #[track_caller]
    pub fn run(&self, run: impl Into<Run>) -> Stage {
        Stage(Arc::new(Node::Run { below: self.clone(), run: run.into(), at: Location::caller() }))
    }

    /// Names what lies at `path` in this stage, to be put into another one (`COPY --from`).
    pub fn take(&self, path: ImagePath) -> Take {
        Take(TakeFrom { stage: self.clone(), to: path.clone(), path, owner: None, portable: false })
    }

    /// Finishes the files; what follows is run-time configuration, which never costs a layer.
    #[track_caller]
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

    /// Sets the owner of everything taken; without this each entry keeps its own.
    pub fn owner(mut self, uid: u32, gid: u32) -> Take {
        self.0.owner = Some(Owner { uid, gid });
        self
    }

    /// Says that what is taken is the same on all platforms: the stage is made once, for the machine that builds, so that
    /// its commands need no emulation.
    pub fn portable(mut self) -> Take {
        self.0.portable = true;
        self
    }

    pub(crate) fn into_parts(self) -> TakeFrom<Stage> {
        self.0
    }
}

impl From<Take> for Source {
    fn from(take: Take) -> Source {
        Source::Take(take.0)
    }
}
