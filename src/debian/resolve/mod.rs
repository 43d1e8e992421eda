//! Which packages a request needs: Debian's dependency resolution, as apt does it.
//!
//! ```text
//!  suites -> Universe: names, versions, relations            universe.rs
//!  request -> marks, in apt's order                          mark.rs
//!          -> repaired by scores where something is broken   problem.rs
//!          -> or searched for, where that does not help      search.rs
//!          -> without what nothing needs any longer          garbage.rs
//!  -> closure, checked again by other means                  verify.rs
//!  -> or the reason why there is none                        explain.rs
//! ```
//!
//! apt-get of trixie decides greedily and so does this: the aim is the set that `apt-get install` would install, not the
//! best one. Nothing is read or written here.

use std::collections::{BTreeMap, BTreeSet};

use super::packages::Package;
use super::relation::InvalidRelation;
use crate::names::nearest;

mod explain;
mod garbage;
mod mark;
mod problem;
mod search;
#[cfg(test)]
mod tests;
mod universe;
mod verify;

use mark::Marks;
pub use universe::Universe;
use universe::{NodeId, VersionId};

/// What one verified suite offers for one architecture.
#[derive(Debug)]
pub struct Offer {
    /// The archive, as the lock names it.
    pub archive: String,
    /// Such as `trixie-security`.
    pub suite: String,
    /// Its packages, in the order of its lists.
    pub packages: Vec<Package>,
}

/// A package and where it is offered.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The package.
    pub package: &'a Package,
    /// The archive.
    pub archive: &'a str,
    /// The first of the suites that have this version.
    pub suite: &'a str,
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `name`, `name=version`, `name:architecture`; the order matters as it does for apt.
    pub packages: &'a [String],
    /// Packages that count as there and are not: neither they nor what only they need is chosen.
    pub without: &'a BTreeSet<String>,
    /// Whether `Recommends` are followed.
    pub recommends: bool,
    /// What lies below. It stays as it is.
    pub installed: &'a [Chosen],
    /// Versions that are kept as long as they are offered and fit.
    pub hold: &'a BTreeMap<String, String>,
}

/// A package of a closure.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The package.
    pub package: Package,
    /// The archive that offers it.
    pub archive: String,
    /// The suite that offers it.
    pub suite: String,
    /// The package that asked for it first, none where the request names it.
    pub by: Option<String>,
}

/// Why there is no closure.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A name that no suite has.
    #[error("there is no package `{name}` for {architecture} in these suites{}", hint.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    Unknown {
        /// What was asked for.
        name: String,
        /// The architecture.
        architecture: String,
        /// A name that is close.
        hint: Option<String>,
    },
    /// A name that several packages provide.
    #[error("`{name}` is a virtual package: name one of those that provide it ({})", providers.join(", "))]
    Virtual {
        /// What was asked for.
        name: String,
        /// Packages that provide it.
        providers: Vec<String>,
    },
    /// A version that no suite has.
    #[error("no suite offers `{name}` in version {version}{}", if offered.is_empty() { String::new() } else { format!("; there is {}", offered.join(", ")) })]
    Version {
        /// The package.
        name: String,
        /// The version that was asked for.
        version: String,
        /// Versions that are offered, newest first.
        offered: Vec<String>,
    },
    /// A request for another architecture.
    #[error("`{name}:{wanted}` asks for another architecture than the image's, {architecture}")]
    Foreign {
        /// The package.
        name: String,
        /// The architecture that was asked for.
        wanted: String,
        /// The architecture of the image.
        architecture: String,
    },
    /// A package that is both requested and left out.
    #[error("`{name}` is asked for and left out by `without` at the same time")]
    Contradiction {
        /// The package.
        name: String,
    },
    /// The same version twice, with different contents.
    #[error("`{name}` {version} differs between {one} and {other}: one of the two archives is wrong")]
    TwoBuilds {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// Where one is.
        one: String,
        /// Where the other one is.
        other: String,
    },
    /// A relation that nothing meets.
    #[error("{} needs `{relation}`, which {}", path(chain), reason(names))]
    Unsatisfiable {
        /// From the request to the package that cannot be had.
        chain: Vec<String>,
        /// What it needs.
        relation: String,
        /// Versions that are offered under these names, none of which fits.
        names: Vec<String>,
    },
    /// Two packages that exclude each other.
    #[error("{} and {} exclude each other: the former has `{field}: {relation}`", path(one), path(other))]
    Conflict {
        /// From a request to the package with the relation.
        one: Vec<String>,
        /// From a request to the other package.
        other: Vec<String>,
        /// `Conflicts` or `Breaks`.
        field: &'static str,
        /// The relation.
        relation: String,
    },
    /// Every choice runs into a conflict.
    #[error("{} needs `{relation}`, and each way to meet it is excluded by what else is asked for", path(chain))]
    NoChoice {
        /// From the request to the package that cannot be had.
        chain: Vec<String>,
        /// What it needs.
        relation: String,
    },
    /// A relation that cannot be read, of a package that is wanted.
    #[error("`{name}` {version} has an unreadable `{field}`: {source}")]
    Relation {
        /// The package.
        name: String,
        /// Its version.
        version: String,
        /// The field.
        field: &'static str,
        /// Why.
        source: InvalidRelation,
    },
    /// A closure that would not work: a defect of the resolver, stopped by its own check.
    #[error("the closure is broken, which is a defect of imgbuild: {why}")]
    Broken {
        /// What does not hold.
        why: String,
    },
}

/// `` `git` -> `perl` ``: a chain of packages for people.
fn path(chain: &[String]) -> String {
    chain.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" -> ")
}

fn reason(names: &[String]) -> String {
    if names.is_empty() {
        "no suite offers".into()
    } else {
        format!("does not fit what the suites offer: {}", names.join(", "))
    }
}

/// Chains of relations are followed by recursion, as deep as apt does it.
const STACK: usize = 64 << 20;

impl Universe {
    /// The packages that have to be added to `installed` for a request, sorted by name.
    pub fn closure(&self, request: &Request<'_>) -> Result<Vec<Chosen>, ResolveError> {
        std::thread::scope(|scope| {
            let worker = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || self.resolve(request));
            match worker {
                Ok(worker) => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // Without a thread, the stack at hand has to do.
                Err(_) => self.resolve(request),
            }
        })
    }

    fn resolve(&self, request: &Request<'_>) -> Result<Vec<Chosen>, ResolveError> {
        let wanted = request.packages.iter().map(|text| self.wanted(text, request)).collect::<Result<Vec<_>, _>>()?;
        let mut held: BTreeMap<NodeId, VersionId> =
            request.hold.iter().filter_map(|(name, version)| self.held(name, version)).collect();
        loop {
            let start = self.start(request, &wanted, &held)?;
            let mut marks = start.clone();
            let nodes: Vec<NodeId> = wanted
                .iter()
                .map(|(node, _)| *node)
                .filter(|node| marks.state(*node).current.is_none() && !marks.state(*node).ghost)
                .collect();
            for node in &nodes {
                marks.request(*node);
            }
            for node in &nodes {
                marks.install(*node, true, 0, true);
            }
            let whole = marks.broken().is_empty() || problem::Repair::new(&mut marks, &nodes).run();
            let refused = nodes.iter().any(|node| marks.state(*node).install.is_none());
            let mut met = whole && !refused;
            if !met && let Some(solution) = search::search(&start, &nodes) {
                marks = start.clone();
                marks.accept(&solution, &nodes);
                met = true;
            }
            if met {
                garbage::collect(&mut marks);
                return self.chosen(request, &marks, &nodes);
            }
            // A version that was held may be what is in the way.
            let before = held.len();
            held.retain(|node, version| !explain::is_in_the_way(&start, &nodes, *node, *version));
            if held.len() == before {
                return Err(explain::explain(&start, &marks, &nodes));
            }
        }
    }

    fn start(
        &self,
        request: &Request<'_>,
        wanted: &[(NodeId, Option<VersionId>)],
        held: &BTreeMap<NodeId, VersionId>,
    ) -> Result<Marks<'_>, ResolveError> {
        let mut marks = Marks::new(self, request.recommends);
        for (node, version) in held {
            marks.set_candidate(*node, *version);
        }
        for node in request.without.iter().filter_map(|name| self.find(name)) {
            marks.set_ghost(node);
        }
        for chosen in request.installed {
            let (name, version) = (chosen.package.name(), chosen.package.version());
            let (node, version) = self.held(name, version).ok_or_else(|| self.no_version(name, version))?;
            marks.set_current(node, version);
        }
        for (node, version) in wanted {
            if let Some(version) = version
                && marks.state(*node).current.is_none_or(|current| current != *version)
            {
                marks.set_candidate(*node, *version);
            }
        }
        Ok(marks)
    }

    fn held(&self, name: &str, version: &str) -> Option<(NodeId, VersionId)> {
        let node = self.find(name)?;
        let versions = &self.nodes[node as usize].versions;
        let found = versions.iter().find(|id| self.offered(**id).package.version() == version)?;
        Some((node, *found))
    }

    fn no_version(&self, name: &str, version: &str) -> ResolveError {
        let versions = self.find(name).map(|node| self.nodes[node as usize].versions.as_slice()).unwrap_or_default();
        let offered = versions.iter().map(|id| self.offered(*id).package.version().to_owned()).collect();
        ResolveError::Version { name: name.into(), version: version.into(), offered }
    }

    /// What one word of a request means.
    fn wanted(&self, text: &str, request: &Request<'_>) -> Result<(NodeId, Option<VersionId>), ResolveError> {
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let name = match name.split_once(':') {
            Some((name, "any" | "native" | "all")) => name,
            Some((name, architecture)) if architecture == self.architecture() => name,
            Some((name, wanted)) => {
                let architecture = self.architecture().to_owned();
                return Err(ResolveError::Foreign { name: name.into(), wanted: wanted.into(), architecture });
            }
            None => name,
        };
        if request.without.contains(name) {
            return Err(ResolveError::Contradiction { name: name.into() });
        }
        let unknown = || ResolveError::Unknown {
            name: name.into(),
            architecture: self.architecture().into(),
            hint: nearest(name, self.package_names()).map(str::to_owned),
        };
        let node = self.find(name).ok_or_else(unknown)?;
        let named = &self.nodes[node as usize];
        if let Some(version) = version {
            let (node, version) = self.held(name, version).ok_or_else(|| self.no_version(name, version))?;
            return Ok((node, Some(version)));
        }
        if !named.versions.is_empty() {
            return Ok((node, None));
        }
        let providers: BTreeSet<NodeId> = named
            .providers
            .iter()
            .filter(|provider| self.nodes[self.owner(provider.version) as usize].versions[0] == provider.version)
            .map(|provider| self.owner(provider.version))
            .collect();
        match providers.len() {
            0 => Err(unknown()),
            1 => Ok((providers.into_iter().next().unwrap_or(node), None)),
            _ => Err(ResolveError::Virtual {
                name: name.into(),
                providers: {
                    let names: BTreeSet<&str> = providers.into_iter().map(|node| self.name(node)).collect();
                    names.into_iter().map(str::to_owned).collect()
                },
            }),
        }
    }

    fn chosen(
        &self,
        request: &Request<'_>,
        marks: &Marks<'_>,
        requests: &[NodeId],
    ) -> Result<Vec<Chosen>, ResolveError> {
        let by = explain::first_asked(marks, requests);
        let mut all = Vec::new();
        for (at, state) in marks.states.iter().enumerate() {
            let Some(version) = state.install.filter(|_| state.current.is_none()) else { continue };
            let Candidate { package, archive, suite } = self.offered(version);
            if let Some((field, source)) = self.unreadable(version) {
                let (name, version) = (package.name().into(), package.version().into());
                return Err(ResolveError::Relation { name, version, field, source: source.clone() });
            }
            all.push(Chosen {
                package: package.clone(),
                archive: archive.into(),
                suite: suite.into(),
                by: by.get(&(at as NodeId)).map(|node| self.name(*node).to_owned()),
            });
        }
        all.sort_by(|a, b| a.package.name().cmp(b.package.name()));
        let mut left_out = BTreeSet::new();
        for node in request.without.iter().filter_map(|name| self.find(name)) {
            left_out.insert(self.name(node));
            for version in &self.nodes[node as usize].versions {
                left_out.extend(self.provides(*version).iter().map(|provided| self.name(*provided)));
            }
        }
        verify::check(&all, request, &left_out, self.architecture())?;
        Ok(all)
    }
}
