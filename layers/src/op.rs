//! The waist: the few operations that every source becomes and every engine carries out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::path::ImagePath;
use crate::plan::StageId;
use crate::platform::Platform;
use crate::run::Run;
use crate::source::{Dir, Effect, Files, Foreign, Inline, Link, Modules, Owner, TakeFrom, Unpack, User};
use crate::stage::Location;

/// Where the bytes of an archive come from. No host stands here: the engine knows the mirrors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A path below an apt repository; `debian` is Debian's own archive.
    Pool {
        /// The archive's name.
        archive: String,
        /// `pool/main/...`.
        path: String,
    },
    /// A file of a distribution on a Python package index.
    Index {
        /// Normalised name of the distribution (PEP 503).
        distribution: String,
    },
    /// A URL that the definition names.
    Url(String),
    /// A command here made it.
    Built,
}

/// An archive, named by its digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Archive {
    /// What a person calls it: the file's name.
    pub name: String,
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its length in bytes, where the lock knows it.
    pub size: Option<u64>,
    /// Where it comes from.
    pub origin: Origin,
}

/// A Python interpreter: the packages that hold it and what it is linked with. Byte-code depends on nothing else, not on the
/// architecture either, so whichever of these the building machine can run makes it for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// The minor version, `3.13`.
    pub python: String,
    /// Debian's version of the package, without the counter of binary rebuilds.
    pub release: String,
    /// The packages, as each platform's images unpack them.
    pub packages: BTreeMap<Platform, Vec<Unpacked>>,
}

/// A .deb and which of its paths are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The .deb.
    pub archive: Archive,
    /// Patterns as dpkg's `path-exclude`.
    pub exclude: Vec<String>,
}

/// Byte-code that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteCode {
    /// Of which modules.
    pub modules: Modules,
    /// The digest of the [`Interpreter`] that makes it.
    pub interpreter: Digest,
}

/// What an archive becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conversion {
    /// A .deb's data, less the excluded paths.
    Deb {
        /// Patterns as dpkg's `path-exclude`; `!` brings back.
        exclude: Vec<String>,
    },
    /// A wheel, installed into a virtual environment.
    Wheel {
        /// The virtual environment.
        venv: ImagePath,
        /// Python's minor version, `3.13`.
        python: String,
        /// Byte-code to add.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytecode: Option<ByteCode>,
    },
    /// An archive, unpacked into a directory.
    Unpack {
        /// How.
        how: Unpack,
        /// The directory.
        to: ImagePath,
        /// Leading components to drop.
        strip_components: u8,
        /// Owner of everything.
        owner: Owner,
        /// Directories that are links in the stage below, and where these lead. Engines say so, definitions do not.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        aliases: BTreeMap<ImagePath, ImagePath>,
    },
    /// The file itself.
    File {
        /// Where it goes.
        to: ImagePath,
        /// Permission bits.
        mode: u32,
        /// Owner.
        owner: Owner,
    },
}

/// What a set of unpacked packages still needs: the native effects of their maintainer scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// The archives of all packages in the stage so far, sorted by name.
    pub packages: Vec<Archive>,
    /// How they were unpacked.
    pub exclude: BTreeMap<Digest, Vec<String>>,
    /// Effects that definitions wrote.
    pub effects: BTreeMap<String, Vec<Effect>>,
    /// Packages whose scripts are ignored, with the reason.
    pub ignore_scripts: BTreeMap<String, String>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Puts an archive's files in.
    Unpack {
        /// Which archive.
        archive: Archive,
        /// As what.
        conversion: Conversion,
    },
    /// Copies files of the build context.
    Copy(Files),
    /// Makes a directory.
    Dir(Dir),
    /// Makes a symbolic link.
    Link(Link),
    /// Writes a file.
    Inline(Inline),
    /// Adds a user; reads the account files below.
    AddUser(User),
    /// Takes a path of another stage; reads that stage.
    Take(TakeFrom<StageId>),
    /// Writes the effects of maintainer scripts; reads what is below.
    Configure(Configure),
    /// Has packages configured by dpkg; reads everything that is below.
    Dpkg(Dpkg),
    /// Compiles Python modules of packages; reads what is below.
    Compile(ByteCode),
    /// Builds a wheel from source, and puts its files in. Engines turn it into [`Op::Unpack`] first.
    Build(Build),
    /// Runs a command; reads everything that is below. Only in stages that are taken from.
    Run(Step),
}

/// The files that accounts are in; adding a user rewrites those that are there.
pub const ACCOUNTS: [&str; 4] = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];

/// Packages whose own maintainer scripts are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dpkg {
    /// The archives, sorted by name.
    pub packages: Vec<Archive>,
    /// How each was unpacked.
    pub exclude: BTreeMap<Digest, Vec<String>>,
    /// The stage that brings dpkg.
    pub configurator: StageId,
}

/// A command with its inputs as operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The command, without its inputs.
    pub run: Run<StageId>,
    /// Its inputs.
    pub inputs: Vec<Placed>,
}

/// What a command reads besides its stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Where it finds it.
    pub path: ImagePath,
    /// What puts it there.
    pub op: Op,
    /// The platform that it is made for; `None`: that of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// A wheel that is built from source (PEP 517).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Normalised name of the distribution.
    pub distribution: String,
    /// The sdist.
    pub sdist: Archive,
    /// The stage that it is built in, made for the machine that builds.
    pub builder: StageId,
    /// Python's minor version, `3.13`.
    pub python: String,
    /// Environment of the build.
    pub env: BTreeMap<String, String>,
    /// How it is built for a platform that is not the machine's; `None`: only if it has no compiled parts.
    pub foreign: Option<Foreign<StageId>>,
    /// What the wheel becomes.
    pub conversion: Conversion,
}

impl Build {
    /// The other stages that it needs.
    pub fn stages(&self) -> impl Iterator<Item = StageId> {
        std::iter::once(self.builder).chain(self.foreign.as_ref().and_then(Foreign::target).copied())
    }
}

macro_rules! as_json {
    ($($type:ty),*) => {$(
        impl $type {
            /// The value as JSON on one line: what keys are made from.
            pub fn to_json(&self) -> String {
                serde_json::to_string(self).expect("operations have only string keys and whole numbers")
            }
        }
    )*};
}
as_json!(Op, Build, Conversion, Configure, Dpkg, ByteCode, Files);

impl Run<StageId> {
    /// What decides what a command makes, as JSON on one line: what keys are made from. Where it is run and how long it may take are no part
    /// of it.
    pub fn to_json(&self) -> String {
        let here = Run { emulated: false, timeout_seconds: None, ..self.clone() };
        serde_json::to_string(&here).expect("commands have only string keys and whole numbers")
    }
}

/// One layer: steps whose outcome becomes one tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// The step of the plan that it ends with.
    pub stage: StageId,
    /// The steps, in order; at least one.
    pub parts: Vec<Part>,
}

/// A step of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// One line for people.
    pub label: String,
    /// Where the definition says so.
    pub at: Option<Location>,
    /// What is done, in order.
    pub ops: Vec<Op>,
}

impl LayerPlan {
    /// One line for people and for the image's history: the labels of its parts, of many the first ones.
    pub fn label(&self) -> String {
        const NAMED: usize = 10;
        let more = self.parts.len().saturating_sub(NAMED);
        let more = (more > 0).then(|| format!("and {more} more"));
        let named = self.parts.iter().take(NAMED).map(|part| part.label.clone());
        named.chain(more).collect::<Vec<_>>().join(", ")
    }

    /// Where it begins in a definition.
    pub fn at(&self) -> Option<&Location> {
        self.parts.first().and_then(|part| part.at.as_ref())
    }

    /// A layer of one operation in the place of this one's.
    pub fn with(&self, label: String, op: Op) -> LayerPlan {
        LayerPlan { stage: self.stage, parts: vec![Part { label, at: self.at().cloned(), ops: vec![op] }] }
    }

    /// All that is done, in order.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.parts.iter().flat_map(|part| &part.ops)
    }

    /// The same, to be changed.
    pub fn ops_mut(&mut self) -> impl Iterator<Item = &mut Op> {
        self.parts.iter_mut().flat_map(|part| &mut part.ops)
    }

    /// The command that it is the outcome of.
    pub fn command(&self) -> Option<&Step> {
        match self.parts.as_slice() {
            [Part { ops, .. }] => match ops.as_slice() {
                [Op::Run(step)] => Some(step),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Shared libraries that may be missing in an image although something needs them.
pub type AllowedMissing = BTreeSet<String>;
