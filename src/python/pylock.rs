//! `pylock.toml` (PEP 751).
//!
//! A flat list: each entry says by its marker where, and for which extras and dependency groups, it is installed.

use std::collections::{BTreeMap, BTreeSet};

use layers::source::LockSelection;
use serde::Deserialize;

use super::constraint::Constraint;
use super::markers::Marker;
use super::poetry::MAIN;
use super::{Edge, LockedPackage, LockedSet, PythonError, SourceKind, from_toml, normalised, path_of};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Lock {
    lock_version: String,
    requires_python: Option<String>,
    #[serde(default)]
    environments: Vec<String>,
    #[serde(default)]
    extras: Vec<String>,
    #[serde(default)]
    dependency_groups: Vec<String>,
    #[serde(default)]
    default_groups: Vec<String>,
    #[serde(default)]
    packages: Vec<Package>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Package {
    name: String,
    version: Option<String>,
    marker: Option<String>,
    requires_python: Option<String>,
    index: Option<String>,
    vcs: Option<toml::Table>,
    directory: Option<Directory>,
    archive: Option<File>,
    sdist: Option<File>,
    #[serde(default)]
    wheels: Vec<File>,
}

#[derive(Deserialize)]
struct Directory {
    #[serde(default)]
    editable: bool,
}

#[derive(Deserialize)]
struct File {
    name: Option<String>,
    url: Option<String>,
    path: Option<String>,
    size: Option<u64>,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

/// Reads a `pylock.toml`. Without groups in the selection, and for `main` among them, the lock's default groups are
/// taken.
pub(super) fn read(selection: &LockSelection, text: &str) -> Result<LockedSet, PythonError> {
    let path = &selection.path;
    let lock: Lock = from_toml(path, text)?;
    let mut set = LockedSet::new(path);
    match lock.lock_version.split_once('.') {
        Some(("1", "0")) => {}
        Some(("1", _)) => set.warnings.push(format!(
            "`{path}` has lock version {}, newer than 1.0: what it adds is ignored",
            lock.lock_version.chars().take(20).collect::<String>()
        )),
        _ => {
            return Err(PythonError::LockVersion {
                path: path.clone(),
                found: lock.lock_version.chars().take(40).collect(),
                supported: "1.0",
                tool: "tool",
            });
        }
    }
    set.requires_python = requires(path, "requires-python", lock.requires_python.as_deref())?;
    for marker in &lock.environments {
        set.environments.push(Marker::parse(marker, &format!("{path}: environments"))?);
    }
    let names = |names: &[String]| -> BTreeSet<String> { names.iter().map(|name| normalised(name)).collect() };
    let defaults = names(&lock.default_groups);
    for group in selection.groups.iter().map(|group| normalised(group)) {
        match group.as_str() {
            MAIN => set.groups.extend(defaults.iter().cloned()),
            _ => _ = set.groups.insert(group),
        }
    }
    if selection.groups.is_empty() {
        set.groups.clone_from(&defaults);
    }
    let mut known = names(&lock.dependency_groups);
    known.extend(defaults);
    if let Some(name) = set.groups.difference(&known).next() {
        let (lock, name, known) = (path.clone(), name.clone(), known.into_iter().collect());
        return Err(PythonError::UnknownGroup { lock, name, known });
    }
    set.extras = selection.extras.iter().map(|extra| normalised(extra)).collect();
    let known = names(&lock.extras);
    if let Some(name) = set.extras.difference(&known).next() {
        let (lock, name, known) = (path.clone(), name.clone(), known.into_iter().collect());
        return Err(PythonError::UnknownExtra { lock, name, known });
    }
    for (to, package) in lock.packages.iter().enumerate() {
        set.packages.push(entry(path, package)?);
        let marker = match &package.marker {
            Some(text) => Marker::parse(text, &format!("{path}: {}", package.name))?,
            None => Marker::Always,
        };
        set.roots.push(Edge { to, extras: BTreeSet::new(), marker });
    }
    Ok(set)
}

fn requires(path: &str, whose: &str, text: Option<&str>) -> Result<Option<Constraint>, PythonError> {
    let parse =
        |text| Constraint::pep440(text).map_err(|why| PythonError::syntax(path, None, format!("{whose}: {why}")));
    text.map(parse).transpose()
}

fn entry(path: &str, package: &Package) -> Result<LockedPackage, PythonError> {
    let refuse = |why: String| PythonError::syntax(path, None, format!("{}: {why}", package.name));
    let local = |file: &File| file.url.is_none() && file.path.is_some();
    let source = match package {
        Package { vcs: Some(_), .. } => SourceKind::Git,
        Package { directory: Some(directory), .. } if directory.editable => SourceKind::Editable,
        Package { directory: Some(_), .. } => SourceKind::Directory,
        Package { archive: Some(archive), .. } if local(archive) => SourceKind::Path,
        Package { archive: Some(_), .. } => SourceKind::Url,
        Package { index: None, wheels, .. } if !wheels.is_empty() && wheels.iter().all(local) => SourceKind::Path,
        _ => SourceKind::Index,
    };
    let mut entry = LockedPackage::new(&package.name, package.version.clone(), source);
    entry.requires_python = requires(path, &package.name, package.requires_python.as_deref())?;
    for file in package.wheels.iter().chain(&package.sdist).chain(&package.archive) {
        let place = file.url.as_deref().or(file.path.as_deref());
        let name = match (&file.name, place) {
            (Some(name), _) => name.clone(),
            (None, Some(place)) => path_of(place),
            (None, None) => return Err(refuse("a file has neither name, url nor path".into())),
        };
        let sha256 = file.hashes.get("sha256").map(|hex| format!("sha256:{hex}"));
        entry.add_file(&name, sha256.as_deref(), file.size, file.url.clone()).map_err(refuse)?;
    }
    Ok(entry)
}
