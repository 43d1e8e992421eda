//! Which wheels a target gets.
//!
//! The closure is walked from the roots with the target's markers, then each package gets the wheel with the best tag,
//! as pip chooses: the earliest tag of [`Tags`], then the highest build tag. All entries that have no installable
//! wheel are told in one error.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use layers::Digest;
use pep440_rs::Version;

use super::markers::Environment;
use super::tags::{Candidate, Tags};
use super::{Edge, LockedFile, LockedPackage, LockedSet, PythonError, SourceKind, Target, Unfit};

/// A wheel to install.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wheel {
    /// Normalised name of the distribution.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The file's name.
    pub file: String,
    /// What its bytes hash to.
    pub sha256: Digest,
    /// Bytes, where the lock says so.
    pub size: Option<u64>,
    /// Where it is, if the lock names a URL instead of an index. Not to be recorded: see [`path_of`](super::path_of).
    pub url: Option<String>,
}

/// Chooses the wheels of `set` for `target`, sorted by name.
///
/// # Errors
/// Where the project, an entry or its files do not suit the target; entries without a wheel are all in one
/// [`PythonError::Unfit`].
pub fn select(set: &LockedSet, target: &Target) -> Result<Vec<Wheel>, PythonError> {
    let chosen = closure(set, target)?;
    let tags = Tags::of(target);
    let mut wheels = Vec::new();
    let mut unfit = Vec::new();
    for package in chosen {
        if !package.hashes.is_empty() && package.files.is_empty() {
            return Err(PythonError::NamesUnknown { lock: set.path.clone(), name: package.label() });
        }
        let found = match set.from_source.contains(&package.name) {
            true => sdist(package, target),
            false => wheel(package, target, &tags),
        };
        match found {
            Ok(wheel) => wheels.push(wheel),
            Err(why) => unfit.push(Unfit { entry: package.label(), why }),
        }
    }
    if !unfit.is_empty() {
        unfit.sort();
        return Err(PythonError::Unfit { lock: set.path.clone(), target: target.to_string(), entries: unfit });
    }
    Ok(wheels)
}

/// The packages that `target` needs, sorted by name: one entry a name.
pub fn closure<'a>(set: &'a LockedSet, target: &Target) -> Result<Vec<&'a LockedPackage>, PythonError> {
    if let Some(required) = set.requires_python.as_ref().filter(|required| !required.allows(target.python())) {
        return Err(PythonError::RequiresPython {
            lock: set.path.clone(),
            required: required.to_string(),
            python: target.python().to_string(),
        });
    }
    let environment = Environment::of(target)?.with_groups(&set.groups);
    if !set.environments.is_empty() && !set.environments.iter().any(|marker| marker.holds(&environment)) {
        return Err(PythonError::Environments { lock: set.path.clone(), target: target.to_string() });
    }
    // uv's markers of conflicting extras name extras of any package: the first walk finds which are in force.
    let mut everywhere = set.extras.clone();
    for (place, extras) in Walk::of(set, &environment, &everywhere).reached {
        let name = &set.packages[place].name;
        everywhere.extend(extras.iter().map(|extra| conflicting("extra", name, extra)));
    }
    let reached = Walk::of(set, &environment, &everywhere).reached;
    let mut by_name: BTreeMap<&str, Vec<&LockedPackage>> = BTreeMap::new();
    for &place in reached.keys() {
        let package = &set.packages[place];
        if package.source != SourceKind::Root {
            by_name.entry(&package.name).or_default().push(package);
        }
    }
    let mut chosen = Vec::new();
    for (name, packages) in by_name {
        match packages[..] {
            [package] => chosen.push(package),
            _ => {
                return Err(PythonError::Ambiguous {
                    lock: set.path.clone(),
                    name: name.to_owned(),
                    target: target.to_string(),
                    found: packages.iter().map(|package| described(package)).collect(),
                });
            }
        }
    }
    Ok(chosen)
}

/// How uv spells an extra or group of one package in markers, where extras or groups conflict.
pub(super) fn conflicting(kind: &str, package: &str, name: &str) -> String {
    format!("{kind}-{}-{package}-{name}", package.len())
}

fn described(package: &LockedPackage) -> String {
    let version = package.version.as_deref().unwrap_or("no version");
    match origin(&package.source) {
        Some(origin) => format!("{version} ({origin})"),
        None => version.to_owned(),
    }
}

/// A walk along the edges: which packages are reached, with which of their extras.
struct Walk<'a> {
    set: &'a LockedSet,
    everywhere: &'a BTreeSet<String>,
    reached: BTreeMap<usize, BTreeSet<String>>,
    pending: BTreeSet<usize>,
}

impl Walk<'_> {
    fn of<'a>(set: &'a LockedSet, environment: &'a Environment, everywhere: &'a BTreeSet<String>) -> Walk<'a> {
        let mut walk = Walk { set, everywhere, reached: BTreeMap::new(), pending: BTreeSet::new() };
        walk.follow(&set.roots, &environment.with_extras(everywhere));
        while let Some(place) = walk.pending.pop_first() {
            let package = &set.packages[place];
            let extras = walk.reached.get(&place).cloned().unwrap_or_default();
            let within = environment.with_extras(walk.everywhere.iter().chain(&extras));
            walk.follow(&package.dependencies, &within);
            for extra in &extras {
                walk.follow(package.optional.get(extra).map_or(&[][..], Vec::as_slice), &within);
            }
        }
        walk
    }

    fn follow(&mut self, edges: &[Edge], environment: &Environment) {
        for edge in edges {
            let excluded =
                self.set.packages.get(edge.to).is_none_or(|package| self.set.excluded.contains(&package.name));
            if excluded || !edge.marker.holds(environment) {
                continue;
            }
            let fresh = !self.reached.contains_key(&edge.to);
            let extras = self.reached.entry(edge.to).or_default();
            let before = extras.len();
            extras.extend(edge.extras.iter().cloned());
            if fresh || extras.len() > before {
                self.pending.insert(edge.to);
            }
        }
    }
}

/// What a source other than an index is called.
fn origin(source: &SourceKind) -> Option<&'static str> {
    match source {
        SourceKind::Index | SourceKind::Root => None,
        SourceKind::Url => Some("url"),
        SourceKind::Path => Some("path"),
        SourceKind::Directory => Some("directory"),
        SourceKind::Git => Some("git"),
        SourceKind::Editable => Some("editable"),
        SourceKind::Workspace => Some("workspace"),
        SourceKind::Absent => Some("absent"),
    }
}

/// Why nothing of `package` can be installed, whatever its files are.
fn fits(package: &LockedPackage, target: &Target) -> Result<(), String> {
    match package.source {
        SourceKind::Index | SourceKind::Url | SourceKind::Root => {}
        SourceKind::Absent => return Err("it is needed, and the lock has no entry for it".into()),
        SourceKind::Workspace => return Err("it is a member of the workspace, not a wheel of an index".into()),
        SourceKind::Directory | SourceKind::Path => {
            return Err("it is locked by path, not as a wheel of an index".into());
        }
        SourceKind::Git => return Err("it is locked as a git commit, not as a wheel of an index".into()),
        SourceKind::Editable => return Err("it is locked as editable, not as a wheel of an index".into()),
    }
    if let Some(required) = package.requires_python.as_ref().filter(|required| !required.allows(target.python())) {
        return Err(format!("it requires Python {required}, and the image has {}", target.python()));
    }
    Ok(())
}

/// The sdist of `package`, or why there is none.
fn sdist(package: &LockedPackage, target: &Target) -> Result<Wheel, String> {
    fits(package, target)?;
    if package.source == SourceKind::Url {
        return Err("it is locked by a URL; only sdists of an index are built".into());
    }
    // Of several forms the common one: what is in them is the same.
    let mut files: Vec<&LockedFile> = package.files.iter().filter(|file| is_sdist(&file.name)).collect();
    files.sort_by_key(|file| (!file.name.ends_with(".tar.gz"), file.name.clone()));
    let Some(file) = files.first() else {
        let unhashed = package.unhashed.iter().any(|name| is_sdist(name));
        let why = if unhashed { "the lock gives no SHA-256 for its sdist" } else { "the lock has no sdist of it" };
        return Err(format!("{why}, and it is to be built from source"));
    };
    Ok(Wheel {
        name: package.name.clone(),
        version: package.version.clone().unwrap_or_default(),
        file: file.name.clone(),
        sha256: file.sha256,
        size: file.size,
        url: None,
    })
}

/// The best wheel of `package`, or why there is none.
fn wheel(package: &LockedPackage, target: &Target, tags: &Tags) -> Result<Wheel, String> {
    fits(package, target)?;
    let version = package.version.as_deref().map(|text| (text, Version::from_str(text).ok()));
    let belongs = |name: &Candidate| {
        let same_version = match &version {
            None => true,
            Some((_, Some(version))) => name.version == *version,
            Some((text, None)) => name.version.to_string() == *text,
        };
        name.name == package.name && same_version
    };
    let named = package.files.iter().filter_map(|file| Some((Candidate::parse(&file.name)?, file)));
    let wheels: Vec<(Candidate, &LockedFile)> = named.filter(|(name, _)| belongs(name)).collect();
    let ranked = wheels.iter().filter_map(|(name, file)| Some((tags.rank(name)?, name, *file)));
    // Build tags: the highest wins among equal tags; the name makes the choice total.
    let best = ranked.min_by(|(rank, name, file), (other_rank, other_name, other_file)| {
        let by_build = || other_name.build().cmp(&name.build());
        rank.cmp(other_rank).then_with(by_build).then_with(|| file.name.cmp(&other_file.name))
    });
    if let Some((_, name, file)) = best {
        // Never asked from an index instead: there the name may be someone else's.
        if package.source == SourceKind::Url && file.url.is_none() {
            return Err("the lock does not say the URL that it is locked at".into());
        }
        return Ok(Wheel {
            name: package.name.clone(),
            version: package.version.clone().unwrap_or_else(|| name.version.to_string()),
            file: file.name.clone(),
            sha256: file.sha256,
            size: file.size,
            url: file.url.clone().filter(|_| package.source == SourceKind::Url),
        });
    }
    Err(missing(package, &wheels))
}

/// Why none of the files fits.
fn missing(package: &LockedPackage, wheels: &[(Candidate, &LockedFile)]) -> String {
    let unhashed = package.unhashed.iter().filter(|name| name.ends_with(".whl")).count();
    let sdist = package.files.iter().map(|file| &file.name).chain(&package.unhashed).find(|name| is_sdist(name));
    match (wheels, unhashed, sdist) {
        ([], 0, Some(sdist)) => format!("the lock has only an sdist, `{sdist}`"),
        ([], 0, None) => "the lock has no wheel of it".into(),
        ([], _, _) => "the lock gives no SHA-256 for its wheels".into(),
        _ => {
            let mut others: Vec<String> = wheels.iter().take(3).map(|(name, _)| name.written_tags()).collect();
            if wheels.len() > others.len() {
                others.push(format!("{} more", wheels.len() - others.len()));
            }
            let sdist = if sdist.is_some() { " and an sdist" } else { "" };
            format!("no wheel fits; the lock has wheels for {}{sdist}", others.join(", "))
        }
    }
}

fn is_sdist(name: &str) -> bool {
    [".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz"].iter().any(|suffix| name.ends_with(suffix))
}
