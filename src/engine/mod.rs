//! Engines: what turns steps into file entries.

mod assemble;
pub mod base;
pub mod bytecode;
pub mod checks;
pub mod convert;
mod copy;
pub mod dpkg;
pub mod earlier;
pub mod early;
pub mod exchange;
pub mod foundation;
pub mod fragments;
pub mod held;
pub mod index;
pub mod later;
pub mod layer;
mod led;
pub mod local;
mod log;
pub mod look;
pub mod made;
pub mod members;
mod outcome;
mod root;
pub mod run;
pub mod sdists;
pub mod skeleton;
pub mod spool;
pub mod tree;
mod unzip;
pub mod view;

use std::path::PathBuf;

use layers::encode::EncodeError;
use layers::{Digest, ImagePath, Location, Platform};

use crate::sandbox::SandboxError;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No place is configured where an archive could be had.
    #[error("{0}")]
    Unconfigured(String),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// Entries that do not make a layer.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// An archive that cannot be read.
    #[error("`{archive}` cannot be unpacked: {source}")]
    Format {
        /// The archive's name.
        archive: String,
        /// Why.
        source: layers::format::FormatError,
    },
    /// An archive whose entries make no fragment.
    #[error("`{archive}` cannot be unpacked: {source}")]
    Entries {
        /// The archive's name.
        archive: String,
        /// Why.
        source: EncodeError,
    },
    /// A layer that does not fit on what is below.
    #[error(transparent)]
    View(#[from] view::ViewError),
    /// A file of a stage that cannot be read.
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    /// Effects of maintainer scripts.
    #[error(transparent)]
    Effect(#[from] crate::debian::effects::EffectError),
    /// Byte-code.
    #[error(transparent)]
    Compile(#[from] crate::python::bytecode::CompileError),
    /// Libraries that nothing brings.
    #[error(transparent)]
    Gate(#[from] crate::debian::gate::GateError),
    /// The build context.
    #[error(transparent)]
    Pin(#[from] crate::pin::PinError),
    /// A download.
    #[error(transparent)]
    Fetch(#[from] crate::fetch::FetchError),
    /// A source that the lock does not answer.
    #[error(transparent)]
    Lower(#[from] layers::lower::LowerError),
    /// Two packages that hold the same path, and none says that it replaces the other.
    #[error(
        "packages `{one}` and `{other}` both hold `{path}`, and neither replaces the other; leave one out with `.without([..])` or exclude the path"
    )]
    Owners {
        /// One package.
        one: String,
        /// The other.
        other: String,
        /// The path.
        path: ImagePath,
    },
    /// Two wheels that install different files to the same path.
    #[error(
        "wheels `{one}` and `{other}` both install `{path}`, with different content: what the image holds would depend on the order of installation; leave one out with `.without([..])`"
    )]
    Collision {
        /// One wheel.
        one: String,
        /// The other.
        other: String,
        /// The path.
        path: ImagePath,
    },
    /// Steps of one layer whose paths links lead to the same place, where only one of their entries can be.
    #[error(
        "it writes to `{path}`, where another step just below puts something else, one of them through a symbolic link: give both the path that the link leads to, or leave one of them out"
    )]
    Meet {
        /// Where they meet.
        path: ImagePath,
    },
    /// A file or link in the place of the root directory.
    #[error("it puts a file or link at `/`, which is the root directory: say its own path, such as `/{name}`")]
    FileAtRoot {
        /// What it may be called.
        name: String,
    },
    /// A change of the root directory.
    #[error("it cannot change `/`, of which layers have no entry: name a directory in it, such as `/data`")]
    DirAtRoot,
    /// A path that another stage does not have.
    #[error("`take` found nothing at `{path}` in its stage")]
    NothingToTake {
        /// The path.
        path: ImagePath,
    },
    /// A command that failed, with its last lines and the file that holds all of them.
    #[error("{why}{}", quoted(.last))]
    Command {
        /// How it ended.
        why: SandboxError,
        /// Its last lines.
        last: Vec<String>,
        /// Everything that it wrote.
        log: PathBuf,
    },
    /// No sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A command of a stage for another platform.
    #[error("it runs programs for {platform}, and this machine has none of its kind")]
    ForeignCommand {
        /// The stage's platform.
        platform: Platform,
    },
    /// A command for another platform that should be emulated.
    #[error("it runs programs for {platform}, which this machine does not emulate: {lacks}")]
    NotEmulated {
        /// The stage's platform.
        platform: Platform,
        /// What is missing.
        lacks: String,
    },
    /// A command that made something else when it ran again.
    #[error("run again, it made something else:\n{tree}", tree = .tree.trim_end())]
    NotDeterministic {
        /// What differs, as a tree.
        tree: String,
    },
    /// A build from source that left no wheel, or another one.
    #[error("it {why}")]
    Sdist {
        /// What is wrong.
        why: String,
    },
    /// A package that cannot be configured by dpkg.
    #[error("it {why}")]
    Dpkg {
        /// What is wrong.
        why: String,
    },
    /// A secret that a command needs and nobody gave.
    #[error("it needs the secret `{name}`")]
    NoSecret {
        /// The secret.
        name: String,
    },
    /// An SSH agent that a command needs and nobody named.
    #[error("it needs an SSH agent")]
    NoAgent,
    /// A secret that a command left behind.
    #[error("it left the secret `{name}` in `{path}`, which would go into images")]
    SecretInOutcome {
        /// The secret.
        name: String,
        /// The file.
        path: ImagePath,
    },
    /// Something that no layer can hold.
    #[error("it made `{path}`, which is neither a file, a folder, a link nor a pipe")]
    OutcomeKind {
        /// The path.
        path: ImagePath,
    },
    /// A name that no layer can hold.
    #[error("it made something whose name no layer can hold: {name}")]
    OutcomeName {
        /// The name, and why.
        name: String,
    },
    /// A stage that cannot be laid out as a folder.
    #[error("`{path}` of its stage cannot be written to the disk: {source}")]
    Root {
        /// The path in the stage.
        path: ImagePath,
        /// Why.
        source: std::io::Error,
    },
    /// Too many layers.
    #[error(
        "image `{image}` has {layers} layers, its budget is {budget}; raise it with `.layer_budget(..)` (at most 125) or run `imgbuild lock --regroup`"
    )]
    Budget {
        /// The image.
        image: String,
        /// Layers it has.
        layers: usize,
        /// Layers it may have.
        budget: u8,
    },
    /// A file of the context that changed while it was read.
    #[error("`{path}` changed while the build was reading it; build again")]
    Changed {
        /// The file.
        path: String,
    },
    /// An archive that is neither in the cache nor to be had.
    #[error("`{name}` ({digest}) is not in the cache and cannot be downloaded: {why}")]
    Gone {
        /// The archive.
        name: String,
        /// Its digest.
        digest: Digest,
        /// Why.
        why: String,
    },
    /// A base image.
    #[error("base image `{path}`: {why}")]
    Base {
        /// The layout.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A registry that a base image comes from.
    #[error(transparent)]
    Registry(#[from] Box<crate::registry::RegistryError>),
    /// Something that would have to be made, where nothing is.
    #[error("it is not in the cache")]
    Unmade,
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// An error with the place in the definition that led to it.
    #[error("{} failed: {source}", subject(.label))]
    At {
        /// The layer.
        label: String,
        /// The place.
        at: Option<Location>,
        /// What went wrong.
        source: Box<EngineError>,
    },
}

impl EngineError {
    /// Whether a command ran and ended badly: what it read was verified while its stage was laid out.
    pub fn is_of_a_command(&self) -> bool {
        match self {
            EngineError::At { source, .. } => source.is_of_a_command(),
            EngineError::Command { .. }
            | EngineError::NotDeterministic { .. }
            | EngineError::NoSecret { .. }
            | EngineError::NoAgent
            | EngineError::SecretInOutcome { .. }
            | EngineError::Sandbox(_) => true,
            _ => false,
        }
    }

    /// Whether bytes of the cache were not what they should be, or were not there.
    pub fn is_of_damage(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match self {
            EngineError::At { source, .. } => source.is_of_damage(),
            EngineError::Encode(EncodeError::Damaged(_)) | EngineError::Tree(_) | EngineError::Root { .. } => true,
            EngineError::Encode(EncodeError::Io(error)) | EngineError::Io(error) => {
                matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
            }
            _ => false,
        }
    }

    /// What `told` makes of an error of the entries that a fragment was to hold; others are the cache's trouble, or this machine's.
    pub(crate) fn of_entries(self, told: impl FnOnce(EncodeError) -> EngineError) -> EngineError {
        match self {
            EngineError::Encode(EncodeError::Io(_) | EncodeError::Damaged(_)) => self,
            EngineError::Encode(source) => told(source),
            other => other,
        }
    }

    /// The error with the step that it is about, unless that is said already.
    pub(crate) fn located(self, label: String, at: Option<&Location>) -> EngineError {
        match self {
            located @ EngineError::At { .. } => located,
            other => EngineError::At { label, at: at.cloned(), source: Box::new(other) },
        }
    }

    /// Whether a command was ended, or not begun, because of something else.
    pub(crate) fn is_a_stop(&self) -> bool {
        match self {
            EngineError::At { source, .. } => source.is_a_stop(),
            EngineError::Sandbox(SandboxError::Stopped) | EngineError::Command { why: SandboxError::Stopped, .. } => {
                true
            }
            _ => false,
        }
    }
}

/// What a person calls that which failed: commands are no layers.
pub(crate) fn subject(label: &str) -> String {
    if label.starts_with("run ") { format!("`{label}`") } else { format!("layer `{label}`") }
}

/// Lines below a message.
fn quoted(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  | {line}")).collect()
}
