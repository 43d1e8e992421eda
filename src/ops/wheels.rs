//! Which wheels a `python(...)` source gets, and where that is recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use layers::lock::{Groups, Lock, LockedWheel, LockedWheels};
use layers::lower::{debian_request, python_request};
use layers::partition::{Grain, Unit, partition};
use layers::source::Python;
use layers::{Plan, Platform, Source, StageId, StageStep};

use super::Bench;
use super::project::{reachable, read_lock, write_whole};
use super::supply::{find_wheel, size_here, with_indexes};
use crate::error::Failure;
use crate::observe::Event;
use crate::parallel::{self, in_parallel, unlocked};
use crate::python::{self, Target};

/// Requests in flight when sizes are asked of an index.
const REQUESTS: usize = 8;

/// Chooses the wheels of a source for one platform. Nothing is downloaded for the sake of a choice that is recorded nowhere: sizes that
/// no index says are 0 then, and layers may be shared otherwise.
pub fn choose(
    bench: &Bench<'_>,
    lock: &Lock,
    stage: StageId,
    source: &Python<StageId>,
    platform: Platform,
    new: New,
) -> Result<Vec<LockedWheel>, Failure> {
    let read = |path: &str| bench.context.read(path).map_err(std::io::Error::other);
    let mut set =
        python::read_lock(&source.lock, &read)?.without(&source.without)?.from_source(source.sdists.keys())?;
    for warning in &set.warnings {
        bench.observer.on(Event::Warning(warning));
    }
    let target = match interpreter(&bench.project.plan, lock, stage, &source.version, platform) {
        Some(version) => Target::of_debian_package(platform, &version)?,
        None => Target::trixie(platform, &format!("{}.0", source.version))?,
    };
    if set.packages.iter().any(|package| package.files.is_empty() && !package.hashes.is_empty()) {
        with_indexes(bench.config, bench.http, |indexes| indexes.complete(&mut set, &target))?;
    }
    let wheels = python::select(&set, &target)?;
    if let Some(wheel) = wheels.iter().find(|wheel| wheel.url.is_some() && wheel.size.is_none()) {
        return Err(Failure::work(format!(
            "`{}` names {} by a URL and without its size; take it from an index",
            source.lock.path, wheel.file
        )));
    }
    // Lock files of Poetry and pip say no sizes: the index does, or else the file itself.
    let sized = Mutex::new(Vec::with_capacity(wheels.len()));
    in_parallel(REQUESTS, &wheels, |wheel| {
        let size = match (wheel.size, bench.store.has(&wheel.sha256)?) {
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => match find_wheel(bench.config, bench.http, wheel)? {
                crate::python::index::Found { size: Some(size), .. } => size,
                _ if new == New::Passing => 0,
                found => {
                    let download = crate::fetch::Download {
                        name: wheel.file.clone(),
                        urls: vec![crate::fetch::parse_url(&found.url)?],
                        digest: wheel.sha256,
                        size: None,
                    };
                    bench.http.download(&download, bench.store, bench.observer)?;
                    size_here(bench.store, &wheel.sha256, &wheel.file)?
                }
            },
        };
        parallel::lock(&sized).push(LockedWheel {
            name: wheel.name.clone(),
            version: wheel.version.clone(),
            file: wheel.file.clone(),
            sha256: wheel.sha256,
            size,
        });
        Ok::<(), Failure>(())
    })?;
    let mut sized = unlocked(sized);
    sized.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sized)
}

/// The Debian version of the interpreter that a stage has.
fn interpreter(plan: &Plan, lock: &Lock, stage: StageId, version: &str, platform: Platform) -> Option<String> {
    let names = [format!("python{version}-minimal"), format!("libpython{version}-minimal"), format!("python{version}")];
    let mut chain = Vec::new();
    for (_, planned) in plan.steps(stage) {
        let StageStep::Layer { source: Source::Debian(debian), .. } = &planned.step else { continue };
        chain.push(debian);
        let request = debian_request(&chain);
        let closure = lock.sources.iter().find(|it| it.request == request)?;
        let chosen = closure.packages.get(&platform)?;
        if let Some(found) = chosen.iter().find(|it| names.contains(&it.package)) {
            return lock.package(platform, &found.package).map(|package| package.version.clone());
        }
    }
    None
}

/// What happens to a choice of wheels that no lock has yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum New {
    /// It is made and recorded.
    Recorded,
    /// It is made, and recorded nowhere.
    Passing,
    /// It is an error (`--locked`).
    Refused,
}

/// Adds the wheels of another context than the lock was made for: chosen by that context's own lock file, recorded in
/// its `imgbuild.lock`, where that may be.
pub fn adopt_context(
    bench: &Bench<'_>,
    lock: &mut Lock,
    tops: &[StageId],
    platforms: &[Platform],
    new: New,
) -> Result<(), Failure> {
    let plan = &bench.project.plan;
    let mut wanted: BTreeMap<String, (StageId, &Python<StageId>)> = BTreeMap::new();
    for id in reachable(plan, tops.iter().copied()) {
        let StageStep::Layer { source: Source::Python(python), .. } = &plan.stages[id.0].step else { continue };
        let Some(file) = bench.context.lock_digest(python) else { continue };
        let request = python_request(python, file);
        let known = lock.python.iter().find(|it| it.request == request);
        if known.is_none_or(|known| platforms.iter().any(|platform| !known.wheels.contains_key(platform))) {
            wanted.insert(request.to_string(), (id, python));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let path = bench.context.root().join("imgbuild.lock");
    let mut local = read_lock(&path)?.unwrap_or_default();
    let mut changed = false;
    for (id, source) in wanted.values() {
        let file = bench.context.lock_digest(source).expect("it was there a moment ago or the source was left out");
        let request = python_request(source, file);
        let mut wheels =
            local.python.iter().find(|it| it.request == request).map(|it| it.wheels.clone()).unwrap_or_default();
        for platform in platforms {
            if wheels.contains_key(platform) {
                continue;
            }
            if new == New::Refused {
                return Err(Failure::work(format!(
                    "`{}` of `{}` is in neither `{}` nor `{}`",
                    source.lock.path,
                    bench.context.root().display(),
                    bench.project.lock_path.display(),
                    path.display()
                ))
                .located(plan.stages[id.0].at.clone())
                .hint(
                    "build once without `--locked` (and without CI=true) and keep the `imgbuild.lock` that it writes",
                ));
            }
            wheels.insert(*platform, choose(bench, lock, *id, source, *platform, new)?);
            changed = true;
        }
        let entry = LockedWheels {
            images: plan
                .images
                .iter()
                .filter(|(_, image)| reachable(plan, [image.stage]).contains(id))
                .map(|(name, _)| name.clone())
                .collect(),
            source: Source::Python((*source).clone()).label(),
            request,
            wheels,
        };
        local.python.retain(|it| it.request != request);
        local.python.push(entry);
    }
    // Other selections of the same context stay; those of lock files that are no more do not.
    let current: BTreeSet<_> = plan
        .stages
        .iter()
        .filter_map(|stage| match &stage.step {
            StageStep::Layer { source: Source::Python(python), .. } => {
                bench.context.lock_digest(python).map(|file| python_request(python, file))
            }
            _ => None,
        })
        .collect();
    local.python.retain(|it| current.contains(&it.request));
    local.python.sort_by(|a, b| (&a.source, a.request).cmp(&(&b.source, b.request)));
    for platform in platforms {
        let groups = partition(&wheel_units(&local.python, *platform), groups_of(&local, *platform), Grain::OF_WHEELS);
        local.groups.entry(*platform).or_insert_with(Groups::default).python = groups;
    }
    if changed && new == New::Recorded {
        write_whole(&path, &local.to_text())?;
    }
    for entry in local.python {
        lock.python.retain(|it| it.request != entry.request);
        lock.python.push(entry);
    }
    for (platform, groups) in local.groups {
        // The context's own partition goes first: its wheels are those that are built.
        let all = lock.groups.entry(platform).or_default();
        let mine: BTreeSet<String> = groups.python.iter().flatten().cloned().collect();
        for group in &mut all.python {
            group.retain(|name| !mine.contains(name));
        }
        all.python.retain(|group| !group.is_empty());
        all.python.splice(0..0, groups.python);
    }
    Ok(())
}

fn groups_of(lock: &Lock, platform: Platform) -> &[Vec<String>] {
    lock.groups.get(&platform).map(|groups| groups.python.as_slice()).unwrap_or_default()
}

/// Wheels as units of a partition; the sources are their users.
pub fn wheel_units(sources: &[LockedWheels], platform: Platform) -> Vec<Unit> {
    let mut units: BTreeMap<&str, Unit> = BTreeMap::new();
    for (at, source) in sources.iter().enumerate() {
        for wheel in source.wheels.get(&platform).into_iter().flatten() {
            let unit = units.entry(&wheel.name).or_insert_with(|| Unit {
                name: wheel.name.clone(),
                source: wheel.name.clone(),
                size: 0,
                users: BTreeSet::new(),
            });
            unit.size = unit.size.max(wheel.size);
            unit.users.insert(at);
        }
    }
    units.into_values().collect()
}
