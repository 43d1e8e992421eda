//! Debian packages, unpacked without their maintainer scripts.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Modules;
use crate::path::ImagePath;
use crate::stage::Stage;

/// A further apt repository, with the OpenPGP key that signs it. Its host comes from `imgbuild.toml` by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// The key under `[debian.repositories]` in `imgbuild.toml`.
    pub name: String,
    /// The suite, such as `stable`.
    pub suite: String,
    /// Components, such as `main`.
    pub components: Vec<String>,
    /// ASCII-armoured public keys that may sign it.
    pub signed_by: String,
}

/// What a package's maintainer script would have done, said by the definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Effect {
    /// A symbolic link.
    Link {
        /// Where it is.
        path: ImagePath,
        /// What it holds.
        target: String,
    },
    /// A directory.
    Dir {
        /// Where it is.
        path: ImagePath,
        /// Permission bits.
        mode: u32,
    },
    /// A small file.
    File {
        /// Where it is.
        path: ImagePath,
        /// What it holds.
        text: String,
        /// Permission bits.
        mode: u32,
    },
}

/// Debian packages with everything they depend on. Made by [`debian`]. `S` is how a source names another stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound(serialize = "S: Serialize", deserialize = "S: Deserialize<'de>"))]
pub struct Debian<S = Stage> {
    /// Wanted packages, in the order of definition (apt's choices can depend on it): `name`, or `name:arch`.
    pub packages: Vec<String>,
    /// Packages left out on purpose although something depends on them.
    pub without: BTreeSet<String>,
    /// Whether Recommends are followed.
    pub recommends: bool,
    /// Path patterns that are not unpacked, as dpkg's `path-exclude`; a later `!pattern` brings paths back.
    pub exclude: Vec<String>,
    /// Effects written for a package whose maintainer script has no native one.
    pub effects: BTreeMap<String, Vec<Effect>>,
    /// Packages whose maintainer scripts do not matter here, with the reason.
    pub ignore_scripts: BTreeMap<String, String>,
    /// Shared libraries that ELF files may need although no package brings them.
    pub allow_missing: BTreeSet<String>,
    /// Further repositories.
    pub repositories: Vec<Repository>,
    /// Modules of Python's standard library and of packages that get byte-code.
    #[serde(default, skip_serializing_if = "Modules::is_none")]
    pub bytecode: Modules,
    /// Packages that dpkg configures, in a sandbox: its scripts are run, and what they make is taken.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub configured: BTreeSet<String>,
    /// The stage that brings dpkg and whatever else maintainer scripts need.
    #[serde(default = "super::no_stage", skip_serializing_if = "Option::is_none")]
    pub configurator: Option<S>,
}

/// Essential packages (Debian policy 3.8), what scripts use besides, and fakeroot, which keeps the owners that they set.
const CONFIGURATOR: [&str; 24] = [
    "adduser",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debconf",
    "debianutils",
    "diffutils",
    "dpkg",
    "fakeroot",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "libc-bin",
    "mawk",
    "ncurses-bin",
    "passwd",
    "perl-base",
    "sed",
    "tar",
    "util-linux",
];

/// Installs packages and their dependencies, without Recommends.
pub fn debian<S: Into<String>>(packages: impl IntoIterator<Item = S>) -> Debian {
    Debian {
        packages: packages.into_iter().map(Into::into).collect(),
        without: BTreeSet::new(),
        recommends: false,
        exclude: Vec::new(),
        effects: BTreeMap::new(),
        ignore_scripts: BTreeMap::new(),
        allow_missing: BTreeSet::new(),
        repositories: Vec::new(),
        bytecode: Modules::None,
        configured: BTreeSet::new(),
        configurator: None,
    }
}

impl Debian {
    /// Leaves packages out on purpose, and what only they would bring in.
    pub fn without<S: Into<String>>(mut self, packages: impl IntoIterator<Item = S>) -> Debian {
        self.without.extend(packages.into_iter().map(Into::into));
        self
    }

    /// Follows Recommends as well.
    pub fn with_recommends(mut self) -> Debian {
        self.recommends = true;
        self
    }

    /// Leaves paths out, by patterns as dpkg's `path-exclude` has them (`*` also matches `/`).
    pub fn exclude<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Debian {
        self.exclude.extend(patterns.into_iter().map(Into::into));
        self
    }

    /// Leaves out manual pages, info pages, translations, lintian overrides and documentation except copyright files.
    pub fn slim(self) -> Debian {
        self.exclude([
            "/usr/share/man/*",
            "/usr/share/info/*",
            "/usr/share/locale/*",
            "/usr/share/lintian/*",
            "/usr/share/doc/*",
            "!/usr/share/doc/*/copyright",
        ])
    }

    /// Says what a package's maintainer script would have done.
    pub fn effect(mut self, package: impl Into<String>, effects: impl IntoIterator<Item = Effect>) -> Debian {
        self.effects.entry(package.into()).or_default().extend(effects);
        self
    }

    /// Ignores a package's maintainer scripts; the reason is shown in the plan.
    pub fn ignore_script(mut self, package: impl Into<String>, reason: impl Into<String>) -> Debian {
        self.ignore_scripts.insert(package.into(), reason.into());
        self
    }

    /// Allows ELF files to need a shared library that is not in the image.
    pub fn allow_missing(mut self, soname: impl Into<String>) -> Debian {
        self.allow_missing.insert(soname.into());
        self
    }

    /// Adds a further repository.
    pub fn repository(mut self, repository: Repository) -> Debian {
        self.repositories.push(repository);
        self
    }

    /// Adds byte-code for Python modules of packages, as their maintainer scripts would with timestamps; here it carries
    /// unchecked hashes (PEP 552) and lies in a layer of its own.
    pub fn compile_bytecode(mut self, modules: Modules) -> Debian {
        self.bytecode = modules;
        self
    }

    /// Has a package configured by dpkg: its maintainer scripts are run in a sandbox, over the packages of the stage, and
    /// what they changed becomes a layer. For scripts that have no native effect; it needs a machine that can run commands,
    /// and what the scripts write is as reproducible as they are.
    #[track_caller]
    pub fn configure(mut self, package: impl Into<String>) -> Debian {
        self.configured.insert(package.into());
        if self.configurator.is_none() {
            self.configurator = Some(Stage::scratch().layer(debian(CONFIGURATOR).slim()));
        }
        self
    }

    /// Has packages configured on top of another stage than the usual one of Debian's essential packages, for scripts that
    /// need more: it brings `dpkg`, `fakeroot` and `find`, too.
    pub fn configure_on(mut self, stage: &Stage) -> Debian {
        self.configurator = Some(stage.clone());
        self
    }
}

impl<S> Debian<S> {
    /// Replaces the name of the other stage.
    pub fn map_stage<T, E>(self, rename: impl FnOnce(S) -> Result<T, E>) -> Result<Debian<T>, E> {
        Ok(Debian {
            configurator: self.configurator.map(rename).transpose()?,
            packages: self.packages,
            without: self.without,
            recommends: self.recommends,
            exclude: self.exclude,
            effects: self.effects,
            ignore_scripts: self.ignore_scripts,
            allow_missing: self.allow_missing,
            repositories: self.repositories,
            bytecode: self.bytecode,
            configured: self.configured,
        })
    }

    pub(crate) fn label(&self) -> String {
        format!("debian {}", self.packages.join(" "))
    }
}
