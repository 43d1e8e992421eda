//! All packages of all suites for one architecture, indexed by name and by what they provide.
//!
//! A *node* is a name that anything mentions, a *version* is a package that an archive offers under that name. Nodes
//! are numbered in the order in which a reader of the lists meets them: where apt cannot decide between two providers
//! it takes the one that it met last, so the numbers are part of the result.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::{Candidate, Offer, ResolveError};
use crate::debian::packages::Package;
use crate::debian::relation::{self, Atom, Operator};
use crate::debian::version::compare;

pub(super) type NodeId = u32;
pub(super) type VersionId = u32;

/// What a relation asks for, in the order in which apt keeps a package's relations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    PreDepends,
    Depends,
    Conflicts,
    Breaks,
    Recommends,
    Suggests,
}

impl Kind {
    pub fn is_negative(self) -> bool {
        matches!(self, Kind::Conflicts | Kind::Breaks)
    }

    /// Whether a package is broken when it does not hold.
    pub fn is_critical(self) -> bool {
        !matches!(self, Kind::Recommends | Kind::Suggests)
    }

    pub fn field(self) -> &'static str {
        match self {
            Kind::PreDepends => "Pre-Depends",
            Kind::Depends => "Depends",
            Kind::Conflicts => "Conflicts",
            Kind::Breaks => "Breaks",
            Kind::Recommends => "Recommends",
            Kind::Suggests => "Suggests",
        }
    }
}

/// One atom of a relation.
#[derive(Debug, Clone)]
pub(super) struct Dep {
    pub target: NodeId,
    pub kind: Kind,
    /// The next one is an alternative of this one.
    pub or: bool,
    bound: Option<(Operator, Range<u32>)>,
}

impl Dep {
    /// Whether it asks for certain versions.
    pub fn is_bounded(&self) -> bool {
        self.bound.is_some()
    }
}

#[derive(Debug)]
pub(super) struct Provider {
    pub version: VersionId,
    provided: Option<Range<u32>>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub name: Arc<str>,
    /// Newest first.
    pub versions: Vec<VersionId>,
    pub providers: Vec<Provider>,
    pub essential: bool,
    pub important: bool,
}

#[derive(Debug)]
pub(super) struct Version {
    pub node: NodeId,
    pub priority: u8,
    offer: u32,
    package: u32,
    deps: Range<u32>,
    provides: Vec<NodeId>,
}

/// Every package of every suite, for one architecture.
#[derive(Debug)]
pub struct Universe {
    architecture: String,
    offers: Vec<Offer>,
    pub(super) nodes: Vec<Node>,
    pub(super) versions: Vec<Version>,
    deps: Vec<Dep>,
    names: HashMap<Arc<str>, NodeId>,
    /// Bounds of relations, one behind the other.
    bounds: String,
    /// Packages with a relation that cannot be read: an error only once one is wanted.
    unreadable: BTreeMap<VersionId, (&'static str, relation::InvalidRelation)>,
}

impl Universe {
    /// Indexes what the suites offer. The order of the suites is the order of apt's sources: it decides between
    /// providers that are otherwise equal, and which suite is named for a package that is in two.
    pub fn new(architecture: &str, offers: Vec<Offer>) -> Result<Universe, ResolveError> {
        let mut universe = Universe {
            architecture: architecture.to_owned(),
            offers: Vec::new(),
            nodes: Vec::new(),
            versions: Vec::new(),
            deps: Vec::new(),
            names: HashMap::new(),
            bounds: String::new(),
            unreadable: BTreeMap::new(),
        };
        for (offer, suite) in offers.iter().enumerate() {
            for (at, package) in suite.packages.iter().enumerate() {
                if package.architecture() == architecture || package.architecture() == "all" {
                    universe.add(&offers, (offer as u32, at as u32), package)?;
                }
            }
        }
        universe.offers = offers;
        Ok(universe)
    }

    fn add(&mut self, offers: &[Offer], place: (u32, u32), package: &Package) -> Result<(), ResolveError> {
        let node = self.node(package.name());
        let entry = |version: &Version| &offers[version.offer as usize].packages[version.package as usize];
        let mut at = self.nodes[node as usize].versions.len();
        for (index, id) in self.nodes[node as usize].versions.iter().enumerate() {
            let known = &self.versions[*id as usize];
            match compare(package.version(), entry(known).version()) {
                Ordering::Less => continue,
                Ordering::Greater => at = at.min(index),
                Ordering::Equal if entry(known).sha256 == package.sha256 => return Ok(()),
                Ordering::Equal => {
                    let suite = |offer: u32| {
                        let offer = &offers[offer as usize];
                        format!("{} {}", offer.archive, offer.suite)
                    };
                    return Err(ResolveError::TwoBuilds {
                        name: package.name().into(),
                        version: package.version().into(),
                        one: suite(known.offer),
                        other: suite(place.0),
                    });
                }
            }
        }
        let id = self.versions.len() as VersionId;
        self.nodes[node as usize].versions.insert(at, id);
        self.nodes[node as usize].essential |= package.is_essential();
        self.nodes[node as usize].important |= package.is_important();
        let start = self.deps.len() as u32;
        let fields = [
            (Some(Kind::PreDepends), package.pre_depends(), "Pre-Depends"),
            (Some(Kind::Depends), package.depends(), "Depends"),
            (Some(Kind::Conflicts), package.conflicts(), "Conflicts"),
            (Some(Kind::Breaks), package.breaks(), "Breaks"),
            (Some(Kind::Recommends), package.recommends(), "Recommends"),
            (Some(Kind::Suggests), package.suggests(), "Suggests"),
            (None, package.replaces(), "Replaces"),
            (None, package.enhances(), "Enhances"),
        ];
        for (kind, field, name) in fields {
            if let Err(error) = self.relate(kind, field) {
                self.unreadable.entry(id).or_insert((name, error));
            }
        }
        let deps = start..self.deps.len() as u32;
        let mut provides = Vec::new();
        match relation::parse(package.provides()) {
            Ok(groups) => {
                for atom in groups.iter().flatten() {
                    let target = self.target(atom);
                    let provided = match atom.version {
                        Some((Operator::Equal, version)) => Some(self.bound(version)),
                        _ => None,
                    };
                    self.nodes[target as usize].providers.push(Provider { version: id, provided });
                    provides.push(target);
                }
            }
            Err(error) => {
                self.unreadable.entry(id).or_insert(("Provides", error));
            }
        }
        if package.multi_arch() == "allowed" {
            let target = self.node(&format!("{}:any", package.name()));
            let provided = Some(self.bound(package.version()));
            self.nodes[target as usize].providers.push(Provider { version: id, provided });
            provides.push(target);
        }
        let priority = match package.priority() {
            "required" => 1,
            "important" => 2,
            "standard" => 3,
            "optional" => 4,
            "extra" => 5,
            _ => 0,
        };
        self.versions.push(Version { node, priority, offer: place.0, package: place.1, deps, provides });
        Ok(())
    }

    /// Keeps a field's relations; of `Replaces` and `Enhances` only the order in which names are met matters.
    fn relate(&mut self, kind: Option<Kind>, field: &str) -> Result<(), relation::InvalidRelation> {
        if field.is_empty() {
            return Ok(());
        }
        for group in relation::parse(field)? {
            let last = group.len() - 1;
            for (at, atom) in group.iter().enumerate() {
                let target = self.target(atom);
                if let Some(kind) = kind {
                    let bound = atom.version.map(|(operator, version)| (operator, self.bound(version)));
                    self.deps.push(Dep { target, kind, or: at < last, bound });
                }
            }
        }
        Ok(())
    }

    fn bound(&mut self, version: &str) -> Range<u32> {
        let start = self.bounds.len() as u32;
        self.bounds.push_str(version);
        start..self.bounds.len() as u32
    }

    /// `foo:any` is a name of its own, which `foo` provides if it is `Multi-Arch: allowed`; a foreign architecture is
    /// one that nothing provides.
    fn target(&mut self, atom: &Atom<'_>) -> NodeId {
        match atom.qualifier {
            None | Some("native") => self.node(atom.name),
            Some(architecture) if architecture == self.architecture => self.node(atom.name),
            Some(other) => self.node(&format!("{}:{other}", atom.name)),
        }
    }

    fn node(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = self.nodes.len() as NodeId;
        let name: Arc<str> = name.into();
        self.names.insert(name.clone(), id);
        self.nodes.push(Node { name, versions: Vec::new(), providers: Vec::new(), essential: false, important: false });
        id
    }

    /// The architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The newest version of a package over all suites.
    pub fn candidate(&self, name: &str) -> Option<Candidate<'_>> {
        let node = &self.nodes[self.find(name)? as usize];
        node.versions.first().map(|id| self.offered(*id))
    }

    /// A version as an archive offers it.
    pub(super) fn offered(&self, id: VersionId) -> Candidate<'_> {
        let version = &self.versions[id as usize];
        let offer = &self.offers[version.offer as usize];
        let package = &offer.packages[version.package as usize];
        Candidate { package, archive: &offer.archive, suite: &offer.suite }
    }

    pub(super) fn find(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// Names of real packages.
    pub(super) fn package_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|node| !node.versions.is_empty()).map(|node| &*node.name)
    }

    pub(super) fn name(&self, node: NodeId) -> &str {
        &self.nodes[node as usize].name
    }

    pub(super) fn deps(&self, version: VersionId) -> &[Dep] {
        let range = &self.versions[version as usize].deps;
        &self.deps[range.start as usize..range.end as usize]
    }

    /// The groups of alternatives of a version.
    pub(super) fn groups(&self, version: VersionId) -> impl Iterator<Item = &[Dep]> {
        self.deps(version).split_inclusive(|dep| !dep.or)
    }

    pub(super) fn provides(&self, version: VersionId) -> &[NodeId] {
        &self.versions[version as usize].provides
    }

    pub(super) fn owner(&self, version: VersionId) -> NodeId {
        self.versions[version as usize].node
    }

    pub(super) fn unreadable(&self, version: VersionId) -> Option<&(&'static str, relation::InvalidRelation)> {
        self.unreadable.get(&version)
    }

    fn text(&self, range: &Range<u32>) -> &str {
        &self.bounds[range.start as usize..range.end as usize]
    }

    /// Whether a version of the named package itself is what a relation asks for.
    pub(super) fn fits(&self, dep: &Dep, version: VersionId) -> bool {
        dep.bound
            .as_ref()
            .is_none_or(|(operator, bound)| operator.holds(self.offered(version).package.version(), self.text(bound)))
    }

    /// Whether a provider of the named package is what a relation asks for (Debian policy 7.5).
    pub(super) fn fits_provided(&self, dep: &Dep, provider: &Provider) -> bool {
        match (&dep.bound, &provider.provided) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((operator, bound)), Some(provided)) => operator.holds(self.text(provided), self.text(bound)),
        }
    }

    /// All versions that a relation of `owner` means. A package is never its own enemy.
    pub(super) fn targets(&self, dep: &Dep, owner: NodeId) -> Vec<VersionId> {
        let node = &self.nodes[dep.target as usize];
        let own = |id: VersionId| dep.kind.is_negative() && self.owner(id) == owner;
        let direct = node.versions.iter().copied().filter(|id| self.fits(dep, *id));
        let provided = node.providers.iter().rev().filter(|provider| self.fits_provided(dep, provider));
        direct.chain(provided.map(|provider| provider.version)).filter(|id| !own(*id)).collect()
    }

    /// A relation as it was written, without its field.
    pub(super) fn shown(&self, group: &[Dep]) -> String {
        let atoms = group.iter().map(|dep| match &dep.bound {
            None => self.name(dep.target).to_owned(),
            Some((operator, bound)) => format!("{} ({operator} {})", self.name(dep.target), self.text(bound)),
        });
        atoms.collect::<Vec<_>>().join(" | ")
    }
}
