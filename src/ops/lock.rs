//! `lock`: what the definitions ask for, answered by signed repositories and by the context's own lock files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use layers::lock::{Chosen, DEBIAN, Groups, Lock, LockedClosure, LockedPackage, LockedSuite, LockedWheels};
use layers::lower::{LowerError, PinnedBase, Resolved, debian_request, python_request};
use layers::op::{LayerPlan, Op};
use layers::partition::{Grain, Unit, partition};
use layers::source::{Debian, Python, Repository};
use layers::{Platform, Source, StageId, StageStep};

use super::project::{reachable, write_whole};
use super::{Bench, wheels};
use crate::debian::archive::{self, Foreign, Wanted};
use crate::debian::openpgp::Keyring;
use crate::debian::resolve::{self, Offer, Universe};
use crate::engine::{EngineError, base};
use crate::error::Failure;
use crate::observe::Event;

/// The suites of Debian's archive that closures are resolved in.
pub const SUITES: [&str; 3] = ["trixie", "trixie-updates", "trixie-security"];

/// What may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// Nothing that still suits the definitions.
    Nothing,
    /// Everything.
    All,
    /// These packages.
    Only(BTreeSet<String>),
}

/// What is asked of a lock.
#[derive(Debug, Clone)]
pub struct Request {
    /// What may change.
    pub refresh: Refresh,
    /// Whether the partition into layers is made anew.
    pub regroup: bool,
}

/// A package or wheel whose version differs between two locks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// The platform.
    pub platform: Platform,
    /// The version before, if it was there.
    pub old: Option<String>,
    /// The version after, if it is there.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => write!(f, "{}: {old} -> {new} ({})", self.name, self.platform),
            (None, Some(new)) => write!(f, "{}: added {new} ({})", self.name, self.platform),
            (Some(old), None) => write!(f, "{}: {old} removed ({})", self.name, self.platform),
            (None, None) => write!(f, "{} ({})", self.name, self.platform),
        }
    }
}

/// Makes a lock; nothing is written.
pub fn lock(bench: &Bench<'_>, request: &Request) -> Result<Lock, Failure> {
    let old = bench.project.read_lock()?.unwrap_or_default();
    relock(bench, &old, request)
}

/// Replaces packages that every mirror has lost; all others stay at their locked versions. The new lock is written.
pub fn replace_gone(
    bench: &Bench<'_>,
    old: &Lock,
    names: &[String],
    locked: bool,
    error: EngineError,
) -> Result<Lock, Failure> {
    let command = format!("imgbuild lock --update {}", names.join(" "));
    if locked {
        return Err(Failure::from(error).hint(format!("`{command}` locks what the mirrors have now")));
    }
    bench
        .observer
        .on(Event::Note(&format!("the mirrors no longer have the locked {}: locking anew", names.join(", "))));
    let on_disk = bench.project.read_lock()?.unwrap_or_default();
    let refresh = Refresh::Only(names.iter().cloned().collect());
    let new = relock(bench, &on_disk, &Request { refresh, regroup: false })?;
    let changes = changes(old, &new);
    if !changes.iter().any(|change| names.contains(&change.name)) {
        return Err(
            Failure::from(error).hint("the repositories still name this very file: try again later, or another mirror")
        );
    }
    write_whole(&bench.project.lock_path, &new.to_text())?;
    for change in changes.iter().filter(|change| change.old != change.new) {
        bench.observer.on(Event::Warning(&change.to_string()));
    }
    Ok(new)
}

fn relock(bench: &Bench<'_>, old: &Lock, request: &Request) -> Result<Lock, Failure> {
    let plan = &bench.project.plan;
    let needed = reachable(plan, plan.images.values().map(|image| image.stage));
    let mut lock = Lock::default();

    let asked: Vec<StageId> = needed.iter().copied().filter(|id| debian_of(bench, *id).is_some()).collect();
    if !asked.is_empty() {
        let mut archives = Archives { bench, old, suites: Vec::new(), read: BTreeMap::new(), answers: BTreeMap::new() };
        for id in &asked {
            let (label, closure) = archives.closure(*id, request)?;
            for (platform, chosen) in &closure {
                for it in chosen {
                    pool(&mut lock, *platform, it, &label)?;
                }
            }
            let chain = chain_of(bench, *id);
            let closure = closure
                .into_iter()
                .map(|(platform, chosen)| {
                    let chosen =
                        chosen.into_iter().map(|it| Chosen { package: it.package.name().to_owned(), by: it.by });
                    (platform, chosen.collect())
                })
                .collect();
            lock.sources.push(LockedClosure {
                images: users(bench, *id),
                source: label,
                request: debian_request(&chain),
                packages: closure,
            });
        }
        lock.suites = archives.suites;
        lock.suites.sort_by(|a, b| (&a.archive, &a.suite).cmp(&(&b.archive, &b.suite)));
    }
    lock.bases = super::bases::relock(bench, &needed, &old.bases, request.refresh == Refresh::All)?;
    for id in &needed {
        let StageStep::Layer { source: source @ Source::Python(python), .. } = &plan.stages[id.0].step else {
            continue;
        };
        let at = plan.stages[id.0].at.clone();
        let located = |failure: Failure| failure.located(at.clone());
        let file = lock_digest(bench, python).map_err(located)?;
        let asked = python_request(python, file);
        let known = old.python.iter().find(|it| it.request == asked);
        let mut chosen = BTreeMap::new();
        for platform in Platform::ALL {
            // The context's lock file names every file by its hash: what it was answered before stays the answer.
            let wheels = match known.and_then(|known| known.wheels.get(&platform)) {
                Some(wheels) if request.refresh == Refresh::Nothing => wheels.clone(),
                _ => wheels::choose(bench, &lock, *id, python, platform, wheels::New::Recorded).map_err(located)?,
            };
            chosen.insert(platform, wheels);
        }
        lock.python.push(LockedWheels {
            images: users(bench, *id),
            source: source.label(),
            request: asked,
            wheels: chosen,
        });
    }
    lock.sources.sort_by(|a, b| (&a.images, &a.source, a.request).cmp(&(&b.images, &b.source, b.request)));
    lock.python.sort_by(|a, b| (&a.images, &a.source, a.request).cmp(&(&b.images, &b.source, b.request)));
    group(bench, &mut lock, old, request.regroup)?;
    Ok(lock)
}

fn lock_digest(bench: &Bench<'_>, python: &Python<StageId>) -> Result<layers::Digest, Failure> {
    bench.context.lock_digest(python).ok_or_else(|| {
        let folder = bench.context.root().display();
        Failure::work(format!("the build context `{folder}` has no `{}`", python.lock.path))
            .hint("choose the context with `--context DIR`")
    })
}

fn debian_of<'a>(bench: &'a Bench<'_>, id: StageId) -> Option<&'a Debian<StageId>> {
    match &bench.project.plan.stages[id.0].step {
        StageStep::Layer { source: Source::Debian(debian), .. } => Some(debian),
        _ => None,
    }
}

/// The `debian(...)` sources of a stage, bottom first, its own last.
fn chain_of<'a>(bench: &'a Bench<'_>, id: StageId) -> Vec<&'a Debian<StageId>> {
    let steps = bench.project.plan.steps(id);
    steps.into_iter().filter_map(|(id, _)| debian_of(bench, id)).collect()
}

/// The images that need a stage, sorted.
fn users(bench: &Bench<'_>, id: StageId) -> Vec<String> {
    let plan = &bench.project.plan;
    let uses = |stage| reachable(plan, [stage]).contains(&id);
    plan.images.iter().filter(|(_, image)| uses(image.stage)).map(|(name, _)| name.clone()).collect()
}

/// Adds a package to the pool; two versions under one name cannot be in one lock.
fn pool(lock: &mut Lock, platform: Platform, chosen: &resolve::Chosen, label: &str) -> Result<(), Failure> {
    let package = LockedPackage {
        name: chosen.package.name().to_owned(),
        version: chosen.package.version().to_owned(),
        architecture: chosen.package.architecture().to_owned(),
        size: chosen.package.size,
        sha256: chosen.package.sha256,
        path: chosen.package.filename().to_owned(),
        archive: (chosen.archive != DEBIAN).then(|| chosen.archive.clone()),
        suite: chosen.suite.clone(),
    };
    let all = lock.debian.entry(platform).or_default();
    match all.binary_search_by(|known| known.name.cmp(&package.name)) {
        Ok(at) if all[at] == package => Ok(()),
        Ok(at) => Err(Failure::work(format!(
            "`{label}` needs {} {} for {platform}, but another image of the catalogue needs {}",
            package.name, package.version, all[at].version
        ))
        .hint("use the same further repositories in both definitions")),
        Err(at) => {
            all.insert(at, package);
            Ok(())
        }
    }
}

type Closures = BTreeMap<Platform, Vec<resolve::Chosen>>;

/// Repositories, read once each.
struct Archives<'a> {
    bench: &'a Bench<'a>,
    old: &'a Lock,
    suites: Vec<LockedSuite>,
    read: BTreeMap<Vec<Repository>, BTreeMap<Platform, Universe>>,
    /// What the sources below were answered.
    answers: BTreeMap<layers::Digest, Closures>,
}

impl Archives<'_> {
    /// What a source adds to what is below it, for all platforms.
    fn closure(&mut self, id: StageId, request: &Request) -> Result<(String, Closures), Failure> {
        let bench = self.bench;
        let planned = &bench.project.plan.stages[id.0];
        let StageStep::Layer { source, .. } = &planned.step else {
            return Err(Failure::work(format!("stage {} has no source", id.0)));
        };
        let chain = chain_of(bench, id);
        let mut repositories: Vec<Repository> = chain.iter().flat_map(|it| it.repositories.iter().cloned()).collect();
        repositories.sort();
        repositories.dedup();
        self.read(&repositories)?;
        let universes = &self.read[&repositories];
        let (debian, below) = chain.split_last().expect("the source itself is in its chain");
        let without: BTreeSet<String> = chain.iter().flat_map(|it| it.without.iter().cloned()).collect();
        let mut closures = Closures::new();
        for (platform, universe) in universes {
            // A stage comes after those that it stands on, so their answers are there.
            let installed: Vec<resolve::Chosen> = (1..=below.len())
                .filter_map(|depth| self.answers.get(&debian_request(&below[..depth])))
                .flat_map(|closures| closures.get(platform).cloned().unwrap_or_default())
                .collect();
            let hold = self
                .old
                .debian
                .get(platform)
                .into_iter()
                .flatten()
                .filter(|package| match &request.refresh {
                    Refresh::Nothing => true,
                    Refresh::All => false,
                    Refresh::Only(names) => !names.contains(&package.name),
                })
                .map(|package| (package.name.clone(), package.version.clone()))
                .collect();
            let request = resolve::Request {
                packages: &debian.packages,
                without: &without,
                recommends: debian.recommends,
                installed: &installed,
                hold: &hold,
            };
            let chosen = universe.closure(&request).map_err(|error| {
                Failure::work(format!("`{}` cannot be resolved for {platform}: {error}", source.label()))
                    .located(planned.at.clone())
            })?;
            closures.insert(*platform, chosen);
        }
        self.answers.insert(debian_request(&chain), closures.clone());
        Ok((source.label(), closures))
    }

    /// Reads Debian's suites and further repositories, unless they were read before.
    fn read(&mut self, repositories: &[Repository]) -> Result<(), Failure> {
        if !self.read.contains_key(repositories) {
            let mut offers: BTreeMap<Platform, Vec<Offer>> = BTreeMap::new();
            let keyring = crate::debian::keyring(self.bench.config)?;
            for suite in SUITES {
                let bases = self.bench.config.debian_bases(suite)?;
                let main = ["main".to_owned()];
                let foreign = self.bench.config.foreign(suite)?;
                self.suite(DEBIAN, suite, &main, &bases, &keyring, (Some("Debian"), foreign), &mut offers)?;
            }
            for repository in repositories {
                let bases = self.bench.config.repository(&repository.name)?;
                let keyring = Keyring::parse(repository.signed_by.as_bytes())?;
                self.suite(
                    &repository.name,
                    &repository.suite,
                    &repository.components,
                    &bases,
                    &keyring,
                    (None, Foreign::Refuse),
                    &mut offers,
                )?;
            }
            let mut universes = BTreeMap::new();
            for (platform, offers) in offers {
                universes.insert(platform, Universe::new(platform.architecture(), offers)?);
            }
            self.read.insert(repositories.to_vec(), universes);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one suite, said once")]
    fn suite(
        &mut self,
        archive: &str,
        suite: &str,
        components: &[String],
        bases: &[crate::fetch::Url],
        keyring: &Keyring,
        (origin, foreign): (Option<&str>, Foreign),
        offers: &mut BTreeMap<Platform, Vec<Offer>>,
    ) -> Result<(), Failure> {
        let architectures = Platform::ALL.map(Platform::architecture);
        let seen = self.old.suites.iter().find(|it| it.archive == archive && it.suite == suite).map(|it| it.date);
        let wanted = Wanted {
            suite,
            components,
            architectures: &architectures,
            bases,
            keyring,
            origin,
            foreign,
            store: Some(self.bench.store),
            seen,
            now: self.bench.now,
        };
        let mut read = archive::read_suite(self.bench.http, &wanted)?;
        self.bench
            .observer
            .on(Event::Note(&format!("{suite}: signed Release of {}", layers::oci::rfc3339(read.release.date))));
        let entry = LockedSuite {
            archive: archive.to_owned(),
            suite: suite.to_owned(),
            codename: read.release.codename.clone(),
            date: read.release.date,
            release: read.digest,
        };
        if !self.suites.contains(&entry) {
            self.suites.push(entry);
        }
        for platform in Platform::ALL {
            let packages = read.packages.remove(platform.architecture()).unwrap_or_default();
            offers.entry(platform).or_default().push(Offer {
                archive: archive.to_owned(),
                suite: suite.to_owned(),
                packages,
            });
        }
        Ok(())
    }
}

/// Divides packages and wheels into layers: as before where that fits the budgets, else anew and coarser.
fn group(bench: &Bench<'_>, lock: &mut Lock, old: &Lock, regroup: bool) -> Result<(), Failure> {
    let (mut of_packages, mut of_wheels) = (Grain::OF_PACKAGES, Grain::OF_WHEELS);
    let mut sticky = !regroup;
    for _ in 0..32 {
        for platform in Platform::ALL {
            let before = old.groups.get(&platform).filter(|_| sticky);
            let debian = before.map(|groups| groups.debian.as_slice()).unwrap_or_default();
            let python = before.map(|groups| groups.python.as_slice()).unwrap_or_default();
            let groups = Groups {
                debian: partition(&debian_units(lock, platform), debian, of_packages),
                python: partition(&wheels::wheel_units(&lock.python, platform), python, of_wheels),
            };
            lock.groups.insert(platform, groups);
        }
        match over_budget(bench, lock)? {
            None => return Ok(()),
            Some(image) if sticky && !old.groups.is_empty() => {
                bench.observer.on(Event::Note(&format!("`{image}` has too many layers: grouping anew")));
                sticky = false;
            }
            Some(_) => {
                sticky = false;
                (of_packages, of_wheels) = (of_packages.coarser(), of_wheels.coarser());
            }
        }
    }
    let image = over_budget(bench, lock)?.unwrap_or_default();
    Err(Failure::work(format!("image `{image}` does not fit its layer budget, however its packages are grouped"))
        .hint("raise it with `.layer_budget(..)` (at most 125) or define fewer layers"))
}

fn debian_units(lock: &Lock, platform: Platform) -> Vec<Unit> {
    let mut users: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for (at, source) in lock.sources.iter().enumerate() {
        for chosen in source.packages.get(&platform).into_iter().flatten() {
            users.entry(&chosen.package).or_default().insert(at);
        }
    }
    let unit = |(name, users): (&str, BTreeSet<usize>)| {
        let package = lock.package(platform, name);
        let source = package.map_or(name, LockedPackage::source);
        Unit { name: name.to_owned(), source: source.to_owned(), size: package.map_or(0, |it| it.size), users }
    };
    users.into_iter().map(unit).collect()
}

/// The first image with more layers than it may have.
fn over_budget(bench: &Bench<'_>, lock: &Lock) -> Result<Option<String>, Failure> {
    for (name, image) in &bench.project.plan.images {
        for platform in Platform::ALL {
            let resolved = match bench.lowered(image.stage, lock, platform) {
                // A base that is not for this platform.
                Err(LowerError::NoPlatform { .. }) => continue,
                resolved => resolved?,
            };
            if let Some(PinnedBase::Registry { image, manifest }) = &resolved.base {
                super::bases::documents(bench.registries, bench.store, image, manifest, platform)?;
            }
            let base = match &resolved.base {
                Some(base) => base::open(&bench.project.home, base, platform, bench.store)
                    .map_or(0, |base| base.parts.layers.len()),
                None => 0,
            };
            if base + resolved.layers.len() > usize::from(image.layer_budget) {
                return Ok(Some(name.clone()));
            }
        }
    }
    Ok(None)
}

/// Whether the lock answers for the stages that a stage takes something from, and those that these do.
fn takes(bench: &Bench<'_>, lock: &Lock, platform: Platform, resolved: &Resolved) -> Result<(), LowerError> {
    for op in resolved.layers.iter().flat_map(LayerPlan::ops) {
        let inputs = if let Op::Run(step) = op { step.inputs.as_slice() } else { &[] };
        for op in std::iter::once(op).chain(inputs.iter().map(|input| &input.op)) {
            let stages = match op {
                Op::Take(take) => vec![take.stage],
                Op::Build(build) => build.stages().collect(),
                Op::Dpkg(dpkg) => vec![dpkg.configurator],
                _ => continue,
            };
            for stage in stages {
                takes(bench, lock, platform, &bench.lowered(stage, lock, platform)?)?;
            }
        }
    }
    Ok(())
}

/// What differs between two locks, sorted.
pub fn changes(old: &Lock, new: &Lock) -> Vec<Change> {
    fn versions(lock: &Lock) -> BTreeMap<(String, Platform), String> {
        let mut all = BTreeMap::new();
        for (platform, packages) in &lock.debian {
            for package in packages {
                all.insert((package.name.clone(), *platform), package.version.clone());
            }
        }
        for source in &lock.python {
            for (platform, wheels) in &source.wheels {
                for wheel in wheels {
                    all.insert((format!("python {}", wheel.name), *platform), wheel.version.clone());
                }
            }
        }
        all
    }
    let (old, new) = (versions(old), versions(new));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Change {
            name: key.0.clone(),
            platform: key.1,
            old: old.get(key).cloned(),
            new: new.get(key).cloned(),
        })
        .collect()
}

/// Whether the lock answers every question of the definitions, for every platform, without the network.
pub fn check(bench: &Bench<'_>, lock: &Lock) -> Result<(), Failure> {
    for image in bench.project.plan.images.values() {
        for platform in Platform::ALL {
            let resolved = bench.lowered(image.stage, lock, platform);
            match resolved.and_then(|resolved| takes(bench, lock, platform, &resolved)) {
                // A base that is not for this platform: the lock says so.
                Err(LowerError::NoPlatform { .. }) => {}
                done => done?,
            }
        }
    }
    if let Some(name) = over_budget(bench, lock)? {
        return Err(Failure::work(format!("image `{name}` has more layers than its budget"))
            .hint("run `imgbuild lock --regroup`"));
    }
    let plan = &bench.project.plan;
    let needed = reachable(plan, plan.images.values().map(|image| image.stage));
    let questions: BTreeSet<layers::Digest> = needed
        .iter()
        .filter_map(|id| match &plan.stages[id.0].step {
            StageStep::Layer { source: Source::Debian(_), .. } => Some(debian_request(&chain_of(bench, *id))),
            StageStep::Layer { source: Source::Python(python), .. } => {
                bench.context.lock_digest(python).map(|file| python_request(python, file))
            }
            _ => None,
        })
        .collect();
    let answers = lock
        .sources
        .iter()
        .map(|it| (it.request, &it.source))
        .chain(lock.python.iter().map(|it| (it.request, &it.source)));
    for (request, source) in answers {
        if !questions.contains(&request) {
            return Err(Failure::work(format!("the lock answers `{source}`, which no definition asks any more"))
                .hint("run `imgbuild lock`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_of_our_own_lock_takes_less_than_a_megabyte_along() {
        let lock = Lock::from_text(include_str!("../../images/images.lock")).unwrap();
        for platform in Platform::ALL {
            let units = wheels::wheel_units(&lock.python, platform);
            let sized = |name: &String| units.iter().find(|unit| unit.name == *name).unwrap().size;
            for group in &lock.groups[&platform].python {
                // Updates may have let a group grow; 40 kB are for the configuration and the manifest.
                let size: u64 = group.iter().map(sized).sum();
                assert!(
                    group.len() == 1 || size <= 960_000,
                    "{group:?} has {size} bytes for {platform}: `imgbuild lock --regroup`"
                );
            }
        }
    }
}
