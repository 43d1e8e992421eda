//! `uv.lock`, version 1.
//!
//! The lock is a graph: edges name packages, and versions where a package is forked. Roots are the project's own
//! dependencies, its selected extras and dependency groups. The project itself is not installed.

use std::collections::{BTreeMap, BTreeSet};

use layers::source::LockSelection;
use serde::Deserialize;

use super::constraint::Constraint;
use super::markers::Marker;
use super::poetry::MAIN;
use super::select::conflicting;
use super::{Edge, LockedPackage, LockedSet, PythonError, SourceKind, from_toml, normalised, path_of};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Lock {
    version: i64,
    requires_python: Option<String>,
    #[serde(default)]
    supported_markers: Vec<String>,
    #[serde(default)]
    manifest: Manifest,
    #[serde(default, rename = "package")]
    packages: Vec<Package>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Manifest {
    dependency_groups: BTreeMap<String, Vec<Dependency>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Package {
    name: String,
    version: Option<String>,
    source: Source,
    #[serde(default)]
    resolution_markers: Vec<String>,
    #[serde(default)]
    dependencies: Vec<Dependency>,
    #[serde(default)]
    optional_dependencies: BTreeMap<String, Vec<Dependency>>,
    #[serde(default)]
    dev_dependencies: BTreeMap<String, Vec<Dependency>>,
    #[serde(default)]
    metadata: Metadata,
    sdist: Option<File>,
    #[serde(default)]
    wheels: Vec<File>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Metadata {
    provides_extras: Vec<String>,
    requires_dev: BTreeMap<String, Vec<Dependency>>,
}

#[derive(Deserialize, PartialEq)]
struct Source {
    registry: Option<String>,
    url: Option<String>,
    git: Option<String>,
    path: Option<String>,
    directory: Option<String>,
    editable: Option<String>,
    r#virtual: Option<String>,
    subdirectory: Option<String>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    version: Option<String>,
    source: Option<Source>,
    #[serde(default, alias = "extras")]
    extra: Vec<String>,
    marker: Option<String>,
}

#[derive(Deserialize)]
struct File {
    url: Option<String>,
    path: Option<String>,
    filename: Option<String>,
    hash: Option<String>,
    size: Option<u64>,
}

impl Source {
    fn kind(&self) -> Option<SourceKind> {
        let here = |path: &Option<String>| path.as_deref() == Some(".");
        Some(match self {
            _ if here(&self.r#virtual) || here(&self.editable) || here(&self.directory) => SourceKind::Root,
            // A registry may be a directory of files.
            Source { registry: Some(registry), .. } if registry.contains("://") => SourceKind::Index,
            Source { registry: Some(_), .. } => SourceKind::Path,
            Source { url: Some(_), .. } => SourceKind::Url,
            Source { git: Some(_), .. } => SourceKind::Git,
            Source { path: Some(_), .. } => SourceKind::Path,
            Source { directory: Some(_), .. } => SourceKind::Directory,
            Source { editable: Some(_), .. } => SourceKind::Editable,
            Source { r#virtual: Some(_), .. } => SourceKind::Workspace,
            _ => return None,
        })
    }
}

/// Reads a `uv.lock`.
pub(super) fn read(selection: &LockSelection, text: &str) -> Result<LockedSet, PythonError> {
    let path = &selection.path;
    let lock: Lock = from_toml(path, text)?;
    if lock.version != 1 {
        return Err(PythonError::LockVersion {
            path: path.clone(),
            found: lock.version.to_string(),
            supported: "1",
            tool: "uv",
        });
    }
    let mut set = LockedSet::new(path);
    if let Some(required) = &lock.requires_python {
        let parsed = Constraint::pep440(required).map_err(|why| PythonError::syntax(path, None, why))?;
        set.requires_python = Some(parsed);
    }
    for marker in &lock.supported_markers {
        set.environments.push(Marker::parse(marker, path)?);
    }
    for package in &lock.packages {
        set.packages.push(entry(path, package)?);
    }
    let mut reader = Reader { path, known: set.by_name(), lock: &lock, set };
    for (place, package) in lock.packages.iter().enumerate() {
        let whose = format!("{path}: {}", package.name);
        reader.set.packages[place].dependencies = reader.edges(&whose, &package.dependencies)?;
        for (extra, dependencies) in &package.optional_dependencies {
            let edges = reader.edges(&whose, dependencies)?;
            reader.set.packages[place].optional.insert(normalised(extra), edges);
        }
    }
    reader.roots(selection)?;
    Ok(reader.set)
}

fn entry(path: &str, package: &Package) -> Result<LockedPackage, PythonError> {
    let refuse = |why: String| PythonError::syntax(path, None, format!("{}: {why}", package.name));
    let source = package.source.kind().ok_or_else(|| refuse("its source is not known".into()))?;
    let direct = package.source.url.as_deref();
    let mut entry = LockedPackage::new(&package.name, package.version.clone(), source);
    for file in package.wheels.iter().chain(&package.sdist) {
        let place = file.url.as_deref().or(file.path.as_deref()).or(direct);
        let name = match (&file.filename, place) {
            (Some(name), _) => name.clone(),
            (None, Some(place)) => path_of(place),
            (None, None) => continue,
        };
        let url = file.url.as_deref().or(direct).map(str::to_owned);
        entry.add_file(&name, file.hash.as_deref(), file.size, url).map_err(refuse)?;
    }
    Ok(entry)
}

struct Reader<'a> {
    path: &'a str,
    lock: &'a Lock,
    known: BTreeMap<String, Vec<usize>>,
    set: LockedSet,
}

impl Reader<'_> {
    fn edges(&mut self, whose: &str, dependencies: &[Dependency]) -> Result<Vec<Edge>, PythonError> {
        let mut edges = Vec::new();
        for dependency in dependencies {
            let marker = match &dependency.marker {
                Some(text) => Marker::parse(text, whose)?,
                None => Marker::Always,
            };
            let extras: BTreeSet<String> = dependency.extra.iter().map(|extra| normalised(extra)).collect();
            let mut places = self.set.places(&dependency.name, &mut self.known);
            places.retain(|&place| {
                // Absent entries are appended behind those of the lock.
                self.lock.packages.get(place).is_none_or(|package| {
                    (dependency.version.is_none() || dependency.version == package.version)
                        && dependency.source.as_ref().is_none_or(|source| *source == package.source)
                })
            });
            if places.is_empty() {
                let version = dependency.version.as_deref().unwrap_or("of that source");
                let message = format!("{whose} needs {} {version}, which has no entry", dependency.name);
                return Err(PythonError::syntax(self.path, None, message));
            }
            let forked = places.len() > 1;
            for to in places {
                let mut marker = marker.clone();
                let forks = self.lock.packages.get(to).map_or(&[][..], |package| &package.resolution_markers);
                if forked && !forks.is_empty() {
                    let parsed: Result<Vec<Marker>, PythonError> =
                        forks.iter().map(|text| Marker::parse(text, whose)).collect();
                    marker = marker.and(Marker::Any(parsed?));
                }
                edges.push(Edge { to, extras: extras.clone(), marker });
            }
        }
        Ok(edges)
    }

    fn roots(&mut self, selection: &LockSelection) -> Result<(), PythonError> {
        let lock = self.lock;
        let roots: Vec<usize> =
            (0..lock.packages.len()).filter(|&place| self.set.packages[place].source == SourceKind::Root).collect();
        let root = match roots[..] {
            [root] => Some((root, &lock.packages[root])),
            [] if !lock.manifest.dependency_groups.is_empty() => None,
            _ => {
                let message = format!("it has {} entries for the project itself, not one", roots.len());
                return Err(PythonError::syntax(self.path, None, message));
            }
        };
        let groups: BTreeSet<String> = selection.groups.iter().map(|group| normalised(group)).collect();
        let extras: BTreeSet<String> = selection.extras.iter().map(|extra| normalised(extra)).collect();
        let main = groups.is_empty() || groups.contains(MAIN);

        let (mut known_extras, mut known_groups) = (BTreeSet::new(), BTreeSet::from([MAIN.to_owned()]));
        known_groups.extend(lock.manifest.dependency_groups.keys().map(|name| normalised(name)));
        if let Some((_, package)) = root {
            let provided = package.metadata.provides_extras.iter().chain(package.optional_dependencies.keys());
            known_extras.extend(provided.map(|name| normalised(name)));
            let dev = package.dev_dependencies.keys().chain(package.metadata.requires_dev.keys());
            known_groups.extend(dev.map(|name| normalised(name)));
        }
        if let Some(name) = groups.difference(&known_groups).next() {
            let (lock, name, known) = (self.path.to_owned(), name.clone(), known_groups.into_iter().collect());
            return Err(PythonError::UnknownGroup { lock, name, known });
        }
        if let Some(name) = extras.difference(&known_extras).next() {
            let (lock, name, known) = (self.path.to_owned(), name.clone(), known_extras.into_iter().collect());
            return Err(PythonError::UnknownExtra { lock, name, known });
        }
        if let (false, Some(name)) = (main, extras.first()) {
            return Err(PythonError::ExtraWithoutMain { lock: self.path.to_owned(), name: name.clone() });
        }

        let mut tables: Vec<(&String, &Vec<Dependency>)> = lock.manifest.dependency_groups.iter().collect();
        if let Some((place, package)) = root {
            if main {
                self.set.roots.push(Edge { to: place, extras, marker: Marker::Always });
            }
            tables.extend(&package.dev_dependencies);
            let name = normalised(&package.name);
            self.set.extras.extend(groups.iter().map(|group| conflicting("group", &name, group)));
            if main {
                self.set.extras.insert(format!("project-{}-{name}", name.len()));
            }
        }
        for (name, dependencies) in tables {
            if groups.contains(&normalised(name)) {
                let whose = format!("{}: group {name}", self.path);
                let edges = self.edges(&whose, dependencies)?;
                self.set.roots.extend(edges);
            }
        }
        Ok(())
    }
}
