//! Python: lock files of four formats as one common form, and the choice of wheels for a target.
//!
//! ```text
//! poetry.lock ─┐
//! uv.lock ─────┤               markers, tags,
//! pylock.toml ─┼─ read_lock ─▶ LockedSet ── select ─▶ [Wheel] ── index::find ─▶ URL
//! requirements ┘  (no target)  (a graph)   (Target)   name, file, SHA-256
//! ```
//!
//! A lock is only read, never resolved: each file is named by the lock's SHA-256, and what the lock does not say is an
//! error. What is built from source is chosen by name ([`LockedSet::from_source`]), and markers speak about the target, never about the machine that builds.

pub mod bytecode;
pub mod constraint;
mod error;
pub mod index;
pub mod markers;
mod poetry;
mod pylock;
mod requirement;
mod requirements;
pub mod select;
pub mod tags;
mod uv;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::str::FromStr;

use layers::source::{LockFormat, LockSelection};
use layers::{Digest, Platform};
use pep440_rs::Version;

use constraint::Constraint;
use markers::Marker;

pub use error::{PythonError, Unfit};
pub use select::{Wheel, select};

/// What wheels are chosen for: CPython on Linux with glibc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    platform: Platform,
    python: Version,
    minor: (u64, u64),
    glibc: (u32, u32),
}

impl Target {
    /// Debian trixie (glibc 2.41) with the CPython whose full version is `python`, such as `3.13.5`.
    pub fn trixie(platform: Platform, python: &str) -> Result<Target, PythonError> {
        let invalid = || PythonError::Interpreter { version: python.chars().take(100).collect() };
        let version = Version::from_str(python).map_err(|_| invalid())?;
        match *version.release() {
            // Tags are listed for each minor version, and nothing says how Python 4 would be tagged.
            [3, minor @ 2..=200, ..] => Ok(Target { platform, python: version, minor: (3, minor), glibc: (2, 41) }),
            _ => Err(invalid()),
        }
    }

    /// Like [`Target::trixie`], with the version of a Debian package such as `3.13.5-2+deb13u1`.
    pub fn of_debian_package(platform: Platform, version: &str) -> Result<Target, PythonError> {
        let without_epoch = version.split_once(':').map_or(version, |(_, rest)| rest);
        let upstream = without_epoch.rsplit_once('-').map_or(without_epoch, |(upstream, _)| upstream);
        Target::trixie(platform, &upstream.replace('~', ""))
    }

    /// The same target with another glibc.
    pub fn with_glibc(mut self, major: u32, minor: u32) -> Target {
        self.glibc = (major, minor);
        self
    }

    /// The platform.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The interpreter's full version.
    pub fn python(&self) -> &Version {
        &self.python
    }

    /// The interpreter's major and minor version.
    pub fn minor(&self) -> (u64, u64) {
        self.minor
    }

    /// The C library's version.
    pub fn glibc(&self) -> (u32, u32) {
        self.glibc
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cp{}{} {}", self.minor.0, self.minor.1, self.platform)
    }
}

/// Where a locked package comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A package index.
    Index,
    /// A file at a URL that the lock names.
    Url,
    /// A file of the build context.
    Path,
    /// A directory of the build context.
    Directory,
    /// A commit of a version control system.
    Git,
    /// A directory installed as editable.
    Editable,
    /// Another member of the workspace.
    Workspace,
    /// The project itself: its dependencies are installed, it is not.
    Root,
    /// Something is said to need it, and the lock has no entry for it.
    Absent,
}

/// A file that a lock names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedFile {
    /// Its name, one path component.
    pub name: String,
    /// What its bytes hash to.
    pub sha256: Digest,
    /// Bytes, where the lock says so.
    pub size: Option<u64>,
    /// Where the lock's maker found it. May name a host and hold credentials: never shown, never recorded.
    pub url: Option<String>,
}

/// One entry of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedPackage {
    /// Normalised as PEP 503 says.
    pub name: String,
    /// The version; some formats leave it out where the source decides it.
    pub version: Option<String>,
    /// Where it comes from.
    pub source: SourceKind,
    /// Its files with a SHA-256.
    pub files: Vec<LockedFile>,
    /// Names of its files without a SHA-256, which are never used.
    pub unhashed: Vec<String>,
    /// Allowed SHA-256s of files whose names the lock does not say (requirements.txt): see
    /// [`Indexes::complete`](index::Indexes::complete).
    pub hashes: BTreeSet<Digest>,
    /// Interpreters that it says it runs on.
    pub requires_python: Option<Constraint>,
    /// What it needs.
    pub dependencies: Vec<Edge>,
    /// What its extras need besides.
    pub optional: BTreeMap<String, Vec<Edge>>,
}

impl LockedPackage {
    fn new(name: &str, version: Option<String>, source: SourceKind) -> LockedPackage {
        LockedPackage {
            name: normalised(name),
            version,
            source,
            files: Vec::new(),
            unhashed: Vec::new(),
            hashes: BTreeSet::new(),
            requires_python: None,
            dependencies: Vec::new(),
            optional: BTreeMap::new(),
        }
    }

    /// Name and version, as messages show them.
    pub fn label(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.name),
            None => self.name.clone(),
        }
    }

    /// Adds a file; one whose hash is missing or of a weaker kind is only remembered by its name.
    fn add_file(
        &mut self,
        name: &str,
        hash: Option<&str>,
        size: Option<u64>,
        url: Option<String>,
    ) -> Result<(), String> {
        check_file_name(name)?;
        match hash.and_then(|hash| hash.strip_prefix("sha256:")) {
            Some(hex) => {
                let sha256 = Digest::from_hex(hex).map_err(|error| format!("file `{name}`: {error}"))?;
                self.files.push(LockedFile { name: name.to_owned(), sha256, size, url });
            }
            None => self.unhashed.push(name.to_owned()),
        }
        Ok(())
    }
}

/// That something needs a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// Index into [`LockedSet::packages`].
    pub to: usize,
    /// Extras of that package.
    pub extras: BTreeSet<String>,
    /// Where it is needed.
    pub marker: Marker,
}

/// What a lock file and a selection of groups and extras say, for every target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedSet {
    /// The lock file, relative to the build context.
    pub path: String,
    /// Interpreters that the project allows.
    pub requires_python: Option<Constraint>,
    /// Where not empty: one must hold for the target (PEP 751's `environments`).
    pub environments: Vec<Marker>,
    /// The entries.
    pub packages: Vec<LockedPackage>,
    /// What is to be installed.
    pub roots: Vec<Edge>,
    /// Extras in force for all markers.
    pub extras: BTreeSet<String>,
    /// Dependency groups in force for all markers.
    pub groups: BTreeSet<String>,
    /// Packages left out on purpose, with what only they need.
    pub excluded: BTreeSet<String>,
    /// Packages whose sdist is chosen: they are built from source.
    pub from_source: BTreeSet<String>,
    /// The files of the build context that were read: they belong in a key.
    pub read: BTreeSet<String>,
    /// What a person should know and what does not stop the work.
    pub warnings: Vec<String>,
}

impl LockedSet {
    fn new(path: &str) -> LockedSet {
        LockedSet {
            path: path.to_owned(),
            requires_python: None,
            environments: Vec::new(),
            packages: Vec::new(),
            roots: Vec::new(),
            extras: BTreeSet::new(),
            groups: BTreeSet::new(),
            excluded: BTreeSet::new(),
            from_source: BTreeSet::new(),
            read: BTreeSet::from([path.to_owned()]),
            warnings: Vec::new(),
        }
    }

    /// Leaves packages out on purpose. A name that the lock does not hold is an error: it is likely misspelt.
    pub fn without<'a>(mut self, names: impl IntoIterator<Item = &'a String>) -> Result<LockedSet, PythonError> {
        for name in names {
            let name = normalised(name);
            if !self.packages.iter().any(|package| package.name == name) {
                return Err(PythonError::NotLocked { lock: self.path, name, what: "left out" });
            }
            self.excluded.insert(name);
        }
        Ok(self)
    }

    /// Chooses the sdists of packages, to be built from source. A name that the lock does not hold is an error, as it is for
    /// [`without`](LockedSet::without).
    pub fn from_source<'a>(mut self, names: impl IntoIterator<Item = &'a String>) -> Result<LockedSet, PythonError> {
        for name in names {
            if normalised(name) != *name {
                return Err(PythonError::NotNormal { name: name.clone(), normal: normalised(name) });
            }
            if !self.packages.iter().any(|package| package.name == *name) {
                return Err(PythonError::NotLocked { lock: self.path, name: name.clone(), what: "built from source" });
            }
            self.from_source.insert(name.clone());
        }
        Ok(self)
    }

    /// The places of all entries called `name`, remembered in `known`; a new [`SourceKind::Absent`] one where there is none.
    fn places(&mut self, name: &str, known: &mut BTreeMap<String, Vec<usize>>) -> Vec<usize> {
        let name = normalised(name);
        let packages = &mut self.packages;
        let place = known.entry(name).or_insert_with_key(|name| {
            packages.push(LockedPackage::new(name, None, SourceKind::Absent));
            vec![packages.len() - 1]
        });
        place.clone()
    }

    /// The places of the entries, by name.
    fn by_name(&self) -> BTreeMap<String, Vec<usize>> {
        let mut places: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (place, package) in self.packages.iter().enumerate() {
            places.entry(package.name.clone()).or_default().push(place);
        }
        places
    }
}

/// Reads the lock file that `selection` names. `files` reads a file of the build context by its relative path; besides
/// the lock, that is `pyproject.toml` beside an old `poetry.lock`, and what requirements include.
pub fn read_lock(
    selection: &LockSelection,
    files: &dyn Fn(&str) -> io::Result<Vec<u8>>,
) -> Result<LockedSet, PythonError> {
    let bytes = read(&selection.path, files)?;
    read_lock_bytes(selection, &bytes, files)
}

/// Like [`read_lock`], from the lock's bytes.
pub fn read_lock_bytes(
    selection: &LockSelection,
    bytes: &[u8],
    files: &dyn Fn(&str) -> io::Result<Vec<u8>>,
) -> Result<LockedSet, PythonError> {
    if bytes.len() > LARGEST_LOCK {
        return Err(PythonError::syntax(&selection.path, None, format!("it is larger than {LARGEST_LOCK} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| PythonError::syntax(&selection.path, None, "it is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match selection.format {
        LockFormat::Poetry => poetry::read(selection, text, files),
        LockFormat::Uv => uv::read(selection, text),
        LockFormat::Pylock => pylock::read(selection, text),
        LockFormat::Requirements => requirements::read(selection, text, files),
    }
}

/// Largest lock file that is read, in bytes.
const LARGEST_LOCK: usize = 64 << 20;

fn read(path: &str, files: &dyn Fn(&str) -> io::Result<Vec<u8>>) -> Result<Vec<u8>, PythonError> {
    files(path).map_err(|source| PythonError::Unreadable { path: path.to_owned(), source })
}

/// Parses a TOML file into `T`; an error names the line.
fn from_toml<T: serde::de::DeserializeOwned>(path: &str, text: &str) -> Result<T, PythonError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| {
            text.as_bytes()[..span.start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
        });
        PythonError::syntax(path, line, error.message().replace('\n', " "))
    })
}

/// A project's name as PEP 503 normalises it, without white space around it.
pub fn normalised(name: &str) -> String {
    layers::format::wheel::normalised(name.trim())
}

/// Refuses names that are not one path component: they end up in a cache and in file systems.
fn check_file_name(name: &str) -> Result<(), String> {
    let odd = |character: char| character.is_control() || matches!(character, '/' | '\\');
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || name.chars().any(odd) {
        return Err(format!("{:?} is not a file name", name.chars().take(100).collect::<String>()));
    }
    Ok(())
}

/// The last component of a URL's path, decoded: all of a URL that may be recorded in a lock that names no hosts.
pub fn path_of(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    decoded(last)
}

/// Undoes percent-encoding; what is not valid stays as it is.
pub(crate) fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|pair| byte == b'%' && pair.iter().all(u8::is_ascii_hexdigit));
        let value =
            hex.and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        plain.push(value.unwrap_or(byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}

/// `name` in the directory of `path`, both relative to the build context; `None` if it leads out of the context.
fn beside(path: &str, name: &str) -> Option<String> {
    if name.starts_with('/') || name.contains(['\\', '\0']) {
        return None;
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (name, expected) in [("Foo.Bar__baz-.-x", "foo-bar-baz-x"), (" a ", "a"), ("MarkupSafe", "markupsafe")] {
            assert_eq!(normalised(name), expected);
        }
    }

    #[test]
    fn paths_of_urls_hold_no_host() {
        for (url, expected) in [
            ("https://user:secret@index.example/a/b/x-1%2Bcpu-py3-none-any.whl#sha256=00", "x-1+cpu-py3-none-any.whl"),
            ("x.whl?token=1", "x.whl"),
            ("../x%2.whl", "x%2.whl"),
            ("", ""),
        ] {
            assert_eq!(path_of(url), expected);
        }
    }

    #[test]
    fn file_names_are_one_component() {
        for name in ["", ".", "..", "a/b", "a\\b", "a\0", "\n", &"x".repeat(256)] {
            assert!(check_file_name(name).is_err(), "{name:?}");
        }
        assert!(check_file_name("x-1!2+cpu-py3-none-any.whl").is_ok());
    }

    #[test]
    fn includes_stay_in_the_context() {
        for (path, name, expected) in [
            ("requirements.txt", "dev.txt", Some("dev.txt")),
            ("a/b/r.txt", "../c.txt", Some("a/c.txt")),
            ("a/r.txt", "./x/./y.txt", Some("a/x/y.txt")),
            ("r.txt", "../x.txt", None),
            ("a/r.txt", "../../x.txt", None),
            ("r.txt", "/etc/passwd", None),
        ] {
            assert_eq!(beside(path, name).as_deref(), expected, "{path} {name}");
        }
    }

    #[test]
    fn a_target_is_read_from_a_debian_version() {
        let target =
            |version| Target::of_debian_package(Platform::Amd64, version).map(|target| target.python().to_string());
        assert_eq!(target("3.13.5-2+deb13u1").unwrap(), "3.13.5");
        assert_eq!(target("3.13.0~rc2-1").unwrap(), "3.13.0rc2");
        assert_eq!(target("1:3.13.5-2").unwrap(), "3.13.5");
        for odd in ["", "2.7.18", "4.0", "three", "3"] {
            assert!(target(odd).is_err(), "{odd}");
        }
        assert_eq!(Target::trixie(Platform::Arm64, "3.13.5").unwrap().to_string(), "cp313 linux/arm64");
    }
}
