//! Python wheels, installed from a lock file into a virtual environment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::path::ImagePath;
use crate::stage::Stage;

/// The lock files that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockFormat {
    /// `poetry.lock`, lock version 2.
    Poetry,
    /// `uv.lock`, version 1.
    Uv,
    /// `pylock.toml` (PEP 751).
    Pylock,
    /// `requirements.txt` in which every requirement is pinned and carries hashes.
    Requirements,
}

/// Which modules get byte-code. It is a cache: without it a module is compiled whenever a process imports it, and on a
/// read-only root each process does so again.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Modules {
    /// None.
    #[default]
    None,
    /// All that compile.
    All,
    /// Those that importing these modules imports as well, as far as their source says so: statements outside of
    /// functions are followed through all wheels of the source. `name.*` stands for a package with all its modules.
    ImportedBy(BTreeSet<String>),
    /// These files, by path. Engines turn [`Modules::ImportedBy`] into it; definitions have no use for it.
    #[serde(rename = "files")]
    Files(BTreeSet<String>),
}

impl Modules {
    /// Modules that importing these imports, themselves included; `name.*` stands for a package with all its modules.
    pub fn imported_by<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Modules {
        Modules::ImportedBy(names.into_iter().map(Into::into).collect())
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Modules::None
    }
}

/// A lock file of the build context and what to take from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockSelection {
    /// Which format the file has.
    pub format: LockFormat,
    /// The file, relative to the build context.
    pub path: String,
    /// Dependency groups. Empty: the project's main dependencies (`main` names them among other groups).
    pub groups: BTreeSet<String>,
    /// Extras of the project itself.
    pub extras: BTreeSet<String>,
}

impl LockSelection {
    fn new(format: LockFormat, path: impl Into<String>) -> LockSelection {
        LockSelection { format, path: path.into(), groups: BTreeSet::new(), extras: BTreeSet::new() }
    }

    /// Takes a dependency group.
    pub fn group(mut self, name: impl Into<String>) -> LockSelection {
        self.groups.insert(name.into());
        self
    }

    /// Takes an extra of the project.
    pub fn extra(mut self, name: impl Into<String>) -> LockSelection {
        self.extras.insert(name.into());
        self
    }
}

/// Reads `poetry.lock`.
pub fn poetry_lock(path: impl Into<String>) -> LockSelection {
    LockSelection::new(LockFormat::Poetry, path)
}

/// Reads `uv.lock`.
pub fn uv_lock(path: impl Into<String>) -> LockSelection {
    LockSelection::new(LockFormat::Uv, path)
}

/// Reads `pylock.toml` (PEP 751).
pub fn pylock(path: impl Into<String>) -> LockSelection {
    LockSelection::new(LockFormat::Pylock, path)
}

/// Reads `requirements.txt` with hashes.
pub fn pip_requirements(path: impl Into<String>) -> LockSelection {
    LockSelection::new(LockFormat::Requirements, path)
}

/// How a distribution with compiled parts is built for a platform that is not the machine's. `S` is how it names another stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub enum Foreign<S = Stage> {
    /// In the builder of that platform, emulated by the machine.
    Emulated,
    /// By a cross compiler in the builder of the machine's platform.
    Cross {
        /// Headers and libraries, made for that platform.
        target: S,
    },
}

impl<S> Foreign<S> {
    /// The other stage that it needs.
    pub fn target(&self) -> Option<&S> {
        match self {
            Foreign::Emulated => None,
            Foreign::Cross { target } => Some(target),
        }
    }
}

/// A distribution that is built from source (PEP 517). A name alone is one, too.
#[derive(Debug, Clone)]
pub struct Sdist {
    name: String,
    env: BTreeMap<String, String>,
    foreign: Option<Foreign>,
}

/// A distribution that is built from source, by its name.
pub fn sdist(name: impl Into<String>) -> Sdist {
    Sdist { name: name.into(), env: BTreeMap::new(), foreign: None }
}

impl Sdist {
    /// Sets an environment variable for its build.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Sdist {
        self.env.insert(name.into(), value.into());
        self
    }

    /// For platforms other than the machine's, builds it as there: the kernel hands the builder's programs to qemu-user, which
    /// takes many times as long.
    pub fn emulated(mut self) -> Sdist {
        self.foreign = Some(Foreign::Emulated);
        self
    }

    /// For platforms other than the machine's, builds it with the cross compilers of the builder (Debian's
    /// `g++-aarch64-linux-gnu`, `g++-x86-64-linux-gnu`) against the headers and libraries of `target`, a stage with
    /// `libpython3-dev` and whatever else it links to, which is made for the image's platform.
    pub fn cross(mut self, target: &Stage) -> Sdist {
        self.foreign = Some(Foreign::Cross { target: target.clone() });
        self
    }
}

impl<N: Into<String>> From<N> for Sdist {
    fn from(name: N) -> Sdist {
        sdist(name)
    }
}

/// Wheels in a virtual environment. Made by [`python`]. `S` is how it names another stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub struct Python<S = Stage> {
    /// What to install.
    pub lock: LockSelection,
    /// The virtual environment.
    pub venv: ImagePath,
    /// The interpreter's minor version, such as `3.13`; it runs as `/usr/bin/python<version>`.
    pub version: String,
    /// Distributions left out on purpose, by normalised name.
    pub without: BTreeSet<String>,
    /// Shared libraries that wheels' ELF files may need although nothing in the image brings them.
    pub allow_missing: BTreeSet<String>,
    /// Modules that get byte-code.
    #[serde(default, skip_serializing_if = "Modules::is_none")]
    pub bytecode: Modules,
    /// Distributions that are built from source, by name, with the environment of the build.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sdists: BTreeMap<String, BTreeMap<String, String>>,
    /// The stage in which they are built.
    #[serde(default = "super::no_stage", skip_serializing_if = "Option::is_none")]
    pub builder: Option<S>,
    /// How those with compiled parts are built for platforms other than the machine's, by name.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub foreign: BTreeMap<String, Foreign<S>>,
}

/// Installs the wheels that a lock file selects into `/opt/venv` for Debian's Python 3.13.
pub fn python(lock: LockSelection) -> Python {
    Python {
        lock,
        venv: crate::path!("/opt/venv"),
        version: "3.13".into(),
        without: BTreeSet::new(),
        allow_missing: BTreeSet::new(),
        bytecode: Modules::None,
        sdists: BTreeMap::new(),
        builder: None,
        foreign: BTreeMap::new(),
    }
}

impl Python {
    /// Puts the virtual environment elsewhere.
    pub fn into_venv(mut self, path: ImagePath) -> Python {
        self.venv = path;
        self
    }

    /// Leaves distributions out on purpose.
    pub fn without<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Python {
        self.without.extend(names.into_iter().map(Into::into));
        self
    }

    /// Allows ELF files of wheels to need a shared library that is not in the image.
    pub fn allow_missing(mut self, soname: impl Into<String>) -> Python {
        self.allow_missing.insert(soname.into());
        self
    }

    /// Adds byte-code (PEP 552, unchecked hashes), made by the image's own interpreter: imports take a third of the time.
    pub fn compile_bytecode(mut self, modules: Modules) -> Python {
        self.bytecode = modules;
        self
    }

    /// Builds a distribution from its sdist, also where there are wheels of it. A name, or an [`sdist`] with variables for
    /// its build. Without [`build_on`](Python::build_on) it is built by Debian's Python with setuptools and wheel, which is
    /// enough for most that have no compiled parts.
    #[track_caller]
    pub fn build_from_source(mut self, sdist: impl Into<Sdist>) -> Python {
        let Sdist { name, env, foreign } = sdist.into();
        self.foreign.remove(&name);
        self.foreign.extend(foreign.map(|how| (name.clone(), how)));
        self.sdists.insert(name, env);
        if self.builder.is_none() {
            let packages = [format!("python{}", self.version)].into_iter();
            let packages = packages
                .chain(["base-files", "python3-packaging", "python3-setuptools", "python3-wheel"].map(str::to_owned));
            self.builder = Some(Stage::scratch().layer(super::debian(packages).slim()));
        }
        self
    }

    /// Builds what is built from source in this stage: `python3.13` (the minor version of the source), the build backend and
    /// what sdists ask for at build time, compilers. A virtual environment `/opt/build` in it goes first.
    pub fn build_on(mut self, stage: &Stage) -> Python {
        self.builder = Some(stage.clone());
        self
    }
}

impl<S> Python<S> {
    /// Replaces the names of other stages.
    pub fn map_stage<T, E>(self, mut rename: impl FnMut(S) -> Result<T, E>) -> Result<Python<T>, E> {
        let foreign = self.foreign.into_iter().map(|(name, how)| {
            let how = match how {
                Foreign::Emulated => Foreign::Emulated,
                Foreign::Cross { target } => Foreign::Cross { target: rename(target)? },
            };
            Ok((name, how))
        });
        Ok(Python {
            foreign: foreign.collect::<Result<_, E>>()?,
            builder: self.builder.map(rename).transpose()?,
            lock: self.lock,
            venv: self.venv,
            version: self.version,
            without: self.without,
            allow_missing: self.allow_missing,
            bytecode: self.bytecode,
            sdists: self.sdists,
        })
    }

    /// The other stages that it needs: the builder, and what cross compilers compile for.
    pub fn stages(&self) -> impl Iterator<Item = &S> {
        self.builder.iter().chain(self.foreign.values().filter_map(Foreign::target))
    }

    pub(crate) fn label(&self) -> String {
        let mut label = format!("python {}", self.lock.path);
        for group in &self.lock.groups {
            label.push_str(&format!(" --group {group}"));
        }
        for extra in &self.lock.extras {
            label.push_str(&format!(" --extra {extra}"));
        }
        label
    }
}
