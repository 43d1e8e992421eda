//! `poetry.lock`, lock versions 2.0 (Poetry 1.3 to 1.8) and 2.1 (Poetry 2).
//!
//! Version 2.1 names each entry's groups and markers, so it is a flat list. Version 2.0 does not: what a group needs is
//! walked from `pyproject.toml` beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use layers::source::LockSelection;
use serde::Deserialize;

use super::constraint::Constraint;
use super::markers::Marker;
use super::requirement::Requirement;
use super::{
    Edge, LockedPackage, LockedSet, PythonError, SourceKind, beside, from_toml, normalised, read as read_file,
};

/// What Poetry calls the project's own dependencies.
pub(super) const MAIN: &str = "main";

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
    #[serde(default)]
    extras: BTreeMap<String, Vec<String>>,
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    lock_version: String,
    python_versions: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Package {
    name: String,
    version: String,
    python_versions: Option<String>,
    groups: Option<Vec<String>>,
    markers: Option<Markers>,
    #[serde(default)]
    files: Vec<File>,
    #[serde(default)]
    dependencies: BTreeMap<String, Dependency>,
    #[serde(default)]
    extras: BTreeMap<String, Vec<String>>,
    source: Option<Source>,
    #[serde(default)]
    develop: bool,
}

/// One marker for all groups, or one a group; a group that is not in the table has none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Markers {
    All(String),
    ByGroup(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct File {
    file: String,
    hash: Option<String>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(rename = "type")]
    kind: String,
    url: Option<String>,
}

/// A dependency as `pyproject.toml` and lock version 2.0 write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Dependency {
    Version(String),
    Table(Box<Table>),
    Several(Vec<Dependency>),
}

#[derive(Deserialize)]
struct Table {
    version: Option<String>,
    markers: Option<String>,
    python: Option<String>,
    platform: Option<String>,
    #[serde(default)]
    extras: Vec<String>,
    #[serde(default)]
    optional: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Pyproject {
    project: Project,
    tool: Tool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Project {
    dependencies: Vec<String>,
    #[serde(rename = "optional-dependencies")]
    optional_dependencies: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tool {
    poetry: Poetry,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Poetry {
    dependencies: BTreeMap<String, Dependency>,
    dev_dependencies: BTreeMap<String, Dependency>,
    group: BTreeMap<String, Group>,
    extras: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Group {
    dependencies: BTreeMap<String, Dependency>,
}

/// Reads a `poetry.lock`.
pub(super) fn read(
    selection: &LockSelection,
    text: &str,
    files: &dyn Fn(&str) -> io::Result<Vec<u8>>,
) -> Result<LockedSet, PythonError> {
    let path = &selection.path;
    let lock: Lock = from_toml(path, text)?;
    let by_entry = match lock.metadata.lock_version.as_str() {
        "2.1" => true,
        "2.0" => false,
        found => {
            return Err(PythonError::LockVersion {
                path: path.clone(),
                found: found.chars().take(40).collect(),
                supported: "2.0 or 2.1",
                tool: "Poetry",
            });
        }
    };
    let mut set = LockedSet::new(path);
    set.requires_python = constraint(path, "metadata", lock.metadata.python_versions.as_deref())?;
    let groups: BTreeSet<String> = match selection.groups.is_empty() {
        true => BTreeSet::from([MAIN.to_owned()]),
        false => selection.groups.iter().map(|group| normalised(group)).collect(),
    };
    set.extras = extras(path, selection, &groups, &lock.extras)?;
    for package in &lock.package {
        set.packages.push(entry(path, package)?);
    }
    if by_entry {
        let mut known = BTreeSet::from([MAIN.to_owned()]);
        for (to, package) in lock.package.iter().enumerate() {
            let of: BTreeSet<String> = package.groups.iter().flatten().map(|group| normalised(group)).collect();
            if let Some(marker) = marker_in(path, package, of.intersection(&groups))? {
                set.roots.push(Edge { to, extras: BTreeSet::new(), marker });
            }
            known.extend(of);
        }
        check_groups(path, &groups, &known)?;
    } else {
        walk_from_pyproject(&mut set, &lock, &groups, files)?;
    }
    Ok(set)
}

/// The selected extras, normalised; one that the project does not have is an error.
fn extras(
    lock: &str,
    selection: &LockSelection,
    groups: &BTreeSet<String>,
    known: &BTreeMap<String, Vec<String>>,
) -> Result<BTreeSet<String>, PythonError> {
    let known: BTreeSet<String> = known.keys().map(|name| normalised(name)).collect();
    let selected: BTreeSet<String> = selection.extras.iter().map(|extra| normalised(extra)).collect();
    for name in &selected {
        if !known.contains(name) {
            let known = known.iter().cloned().collect();
            return Err(PythonError::UnknownExtra { lock: lock.to_owned(), name: name.clone(), known });
        }
        if !groups.contains(MAIN) {
            return Err(PythonError::ExtraWithoutMain { lock: lock.to_owned(), name: name.clone() });
        }
    }
    Ok(selected)
}

fn check_groups(lock: &str, groups: &BTreeSet<String>, known: &BTreeSet<String>) -> Result<(), PythonError> {
    match groups.difference(known).next() {
        None => Ok(()),
        Some(name) => Err(PythonError::UnknownGroup {
            lock: lock.to_owned(),
            name: name.clone(),
            known: known.iter().cloned().collect(),
        }),
    }
}

fn constraint(path: &str, whose: &str, text: Option<&str>) -> Result<Option<Constraint>, PythonError> {
    let parse =
        |text| Constraint::poetry(text).map_err(|why| PythonError::syntax(path, None, format!("{whose}: {why}")));
    text.map(parse).transpose()
}

fn entry(path: &str, package: &Package) -> Result<LockedPackage, PythonError> {
    let refuse = |why: String| PythonError::syntax(path, None, format!("{}: {why}", package.name));
    let source = match package.source.as_ref().map(|source| source.kind.as_str()) {
        None | Some("legacy" | "pypi") => SourceKind::Index,
        Some("url") => SourceKind::Url,
        Some("file") => SourceKind::Path,
        Some("directory") if package.develop => SourceKind::Editable,
        Some("directory") => SourceKind::Directory,
        Some("git") => SourceKind::Git,
        Some(other) => return Err(refuse(format!("source type `{other}` is not known"))),
    };
    let url = package.source.as_ref().and_then(|source| source.url.as_deref()).filter(|_| source == SourceKind::Url);
    let mut entry = LockedPackage::new(&package.name, Some(package.version.clone()), source);
    entry.requires_python = constraint(path, &package.name, package.python_versions.as_deref())?;
    for File { file, hash } in &package.files {
        let at = url.map(str::to_owned);
        entry.add_file(file, hash.as_deref(), None, at).map_err(refuse)?;
    }
    Ok(entry)
}

/// Where an entry of lock version 2.1 is needed by one of `groups`; `None` if by none of them.
fn marker_in<'a>(
    path: &str,
    package: &Package,
    groups: impl Iterator<Item = &'a String>,
) -> Result<Option<Marker>, PythonError> {
    let whose = format!("{path}: {}", package.name);
    let mut parts = Vec::new();
    for group in groups {
        let text = match &package.markers {
            None => None,
            Some(Markers::All(text)) => Some(text),
            Some(Markers::ByGroup(table)) => {
                table.iter().find(|(name, _)| normalised(name) == *group).map(|(_, text)| text)
            }
        };
        match text {
            None => return Ok(Some(Marker::Always)),
            Some(text) => parts.push(Marker::parse(text, &whose)?),
        }
    }
    Ok((!parts.is_empty()).then_some(Marker::Any(parts)))
}

/// Lock version 2.0: roots from `pyproject.toml`, edges from each entry's dependencies.
fn walk_from_pyproject(
    set: &mut LockedSet,
    lock: &Lock,
    groups: &BTreeSet<String>,
    files: &dyn Fn(&str) -> io::Result<Vec<u8>>,
) -> Result<(), PythonError> {
    let path = set.path.clone();
    let beside_it = beside(&path, "pyproject.toml").unwrap_or_else(|| "pyproject.toml".into());
    let bytes = read_file(&beside_it, files)?;
    let text = String::from_utf8(bytes).map_err(|_| PythonError::syntax(&beside_it, None, "it is not UTF-8"))?;
    let pyproject: Pyproject = from_toml(&beside_it, &text)?;
    set.read.insert(beside_it.clone());
    let poetry = &pyproject.tool.poetry;

    let mut known_places = set.by_name();
    for (place, package) in lock.package.iter().enumerate() {
        let whose = format!("{path}: {}", package.name);
        for (name, dependency) in &package.dependencies {
            let by_extras: Vec<String> = package
                .extras
                .iter()
                .filter(|(_, names)| names.iter().any(|listed| Requirement::name_of(listed) == normalised(name)))
                .map(|(extra, _)| normalised(extra))
                .collect();
            let found = edges(set, &mut known_places, &whose, name, dependency)?;
            for (edge, optional) in found {
                // Only with an extra: its marker says so, or else the table of extras does.
                if optional && !edge.marker.names_extra() {
                    for extra in &by_extras {
                        set.packages[place].optional.entry(extra.clone()).or_default().push(edge.clone());
                    }
                } else {
                    set.packages[place].dependencies.push(edge);
                }
            }
        }
    }

    let mut known = BTreeSet::from([MAIN.to_owned()]);
    known.extend(poetry.group.keys().map(|name| normalised(name)));
    if !poetry.dev_dependencies.is_empty() {
        known.insert("dev".into());
    }
    check_groups(&path, groups, &known)?;
    let mut tables: Vec<&BTreeMap<String, Dependency>> = Vec::new();
    for (name, group) in &poetry.group {
        if groups.contains(&normalised(name)) {
            tables.push(&group.dependencies);
        }
    }
    if groups.contains("dev") {
        tables.push(&poetry.dev_dependencies);
    }
    if groups.contains(MAIN) {
        tables.push(&poetry.dependencies);
    }
    let named_by = |extras: &BTreeMap<String, Vec<String>>, name: &str| {
        extras.iter().any(|(extra, names)| {
            set.extras.contains(&normalised(extra)) && names.iter().any(|listed| Requirement::name_of(listed) == name)
        })
    };
    let wanted: BTreeSet<String> = tables
        .iter()
        .flat_map(|table| table.keys())
        .map(|name| normalised(name))
        .filter(|name| named_by(&poetry.extras, name) || named_by(&lock.extras, name))
        .collect();
    for table in tables {
        for (name, dependency) in table.iter().filter(|(name, _)| name.as_str() != "python") {
            let whose = format!("{beside_it}: {name}");
            let found = edges(set, &mut known_places, &whose, name, dependency)?;
            let wanted = wanted.contains(&normalised(name));
            set.roots.extend(found.into_iter().filter(|(_, optional)| !optional || wanted).map(|(edge, _)| edge));
        }
    }
    if groups.contains(MAIN) {
        let extras = set.extras.clone();
        let by_extra = pyproject.project.optional_dependencies.iter();
        let optional = by_extra.filter(|(extra, _)| extras.contains(&normalised(extra))).flat_map(|(_, listed)| listed);
        for text in pyproject.project.dependencies.iter().chain(optional) {
            let whose = format!("{beside_it}: {}", text.chars().take(80).collect::<String>());
            let requirement = Requirement::parse(text, &whose)?;
            for to in set.places(&requirement.name, &mut known_places) {
                set.roots.push(Edge { to, extras: requirement.extras.clone(), marker: requirement.marker.clone() });
            }
        }
    }
    Ok(())
}

/// The edges that a dependency means, each with whether it is optional.
fn edges(
    set: &mut LockedSet,
    known: &mut BTreeMap<String, Vec<usize>>,
    whose: &str,
    name: &str,
    dependency: &Dependency,
) -> Result<Vec<(Edge, bool)>, PythonError> {
    let plain =
        Table { version: None, markers: None, python: None, platform: None, extras: Vec::new(), optional: false };
    let (table, version) = match dependency {
        Dependency::Version(version) => (&plain, Some(version)),
        Dependency::Table(table) => (&**table, table.version.as_ref()),
        Dependency::Several(several) => {
            let mut found = Vec::new();
            for one in several {
                // A list in a list has no meaning, and would be a way to recurse without end.
                if let Dependency::Several(_) = one {
                    return Err(PythonError::syntax(&set.path, None, format!("{whose}: a list of lists of versions")));
                }
                found.extend(edges(set, known, whose, name, one)?);
            }
            return Ok(found);
        }
    };
    let refuse = |why: String| PythonError::syntax(&set.path, None, format!("{whose}: {why}"));
    let mut marker = match &table.markers {
        Some(text) => Marker::parse(text, whose)?,
        None => Marker::Always,
    };
    if let Some(python) = &table.python {
        marker = marker.and(Marker::Python(Constraint::poetry(python).map_err(refuse)?));
    }
    if let Some(platform) = &table.platform {
        let quoted = platform.replace('\'', "");
        marker = marker.and(Marker::parse(&format!("sys_platform == '{quoted}'"), whose)?);
    }
    let version = version.map(|text| Constraint::poetry(text).map_err(refuse)).transpose()?;
    let mut places = set.places(name, known);
    if let (Some(version), 2..) = (&version, places.len()) {
        let allowed = |&place: &usize| {
            let locked = set.packages[place].version.as_deref().and_then(|version| version.parse().ok());
            locked.is_some_and(|locked| version.allows(&locked))
        };
        places.retain(allowed);
    }
    let extras: BTreeSet<String> = table.extras.iter().map(|extra| normalised(extra)).collect();
    Ok(places
        .into_iter()
        .map(|to| (Edge { to, extras: extras.clone(), marker: marker.clone() }, table.optional))
        .collect())
}
