//! `build`: from names to images in the store.
//!
//! ```text
//! names ─▶ stages ─ lower(lock) ─▶ resolved ─▶ image key ─ ledger ─▶ hit: the record
//!                                                   │
//!                                                   └─ miss: fragments ─▶ walk ─▶ assemble ─▶ record
//! record ─▶ configuration, manifest, index
//! ```

mod finish;
mod make;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use cache::{Blob, CacheError};
use layers::encode::EPOCH;
use layers::lock::Lock;
use layers::lower::{LowerError, PinnedBase, Resolved};
use layers::oci::{self, BaseParts};
use layers::{Digest, PlannedImage, Platform, StageId};
use serde::Serialize;

pub(super) use self::make::Check;
use super::key::{ImageKey, ImageRecord, Keys};
use super::latest::remember_latest;
use super::remote::Told;
use super::supply::Mirrors;
use super::wheels::{self, New};
use super::{Bench, lock};
use crate::config::ConfigError;
use crate::engine::local::{Given, Local};
use crate::engine::run::{Ran, Repeat};
use crate::engine::{EngineError, base};
use crate::error::Failure;
use crate::observe::Event;
use crate::output::{NamedImage, Output, OutputError};
use crate::parallel::{begin, end, in_parallel};
use crate::remote::Delivered;

/// What is to be built.
#[derive(Debug, Clone)]
pub struct Request {
    /// Image names; all where empty.
    pub images: Vec<String>,
    /// Platforms, sorted, at least one.
    pub platforms: Vec<Platform>,
    /// Labels that win over the definition's.
    pub labels: BTreeMap<String, String>,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970; else the lock's date.
    pub created: Option<i64>,
    /// Nothing may be recorded or resolved anew.
    pub locked: bool,
}

/// An image that is in the store.
#[derive(Debug, Clone)]
pub struct Built {
    /// Its documents and blobs.
    pub image: NamedImage,
    /// One entry a platform.
    pub platforms: Vec<BuiltPlatform>,
    /// Whether nothing had to be done.
    pub cached: bool,
}

/// A layer of a built image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltLayer {
    /// Compressed digest.
    pub digest: Digest,
    /// Uncompressed digest.
    pub diff_id: layers::DiffId,
    /// Compressed bytes.
    pub size: u64,
    /// One line about it.
    pub created_by: String,
}

/// An image for one platform.
#[derive(Debug, Clone)]
pub struct BuiltPlatform {
    /// The platform.
    pub platform: Platform,
    /// The reference of the base, where it is a registry's.
    pub base: Option<String>,
    /// The base's layers, bottom first; those of a registry's image need not be in the store.
    pub base_layers: Vec<oci::Descriptor>,
    /// Its own layers, bottom first.
    pub layers: Vec<BuiltLayer>,
    /// Debian packages in it: name, version, architecture.
    pub packages: Vec<(String, String, String)>,
    /// The commands whose outcome it holds parts of.
    pub commands: Vec<Ran>,
}

/// One image for one platform on its way.
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub image: &'a PlannedImage,
    pub platform: Platform,
    pub resolved: Resolved,
    pub key: ImageKey,
    pub record: Option<ImageRecord>,
    /// What caches elsewhere will be told of it.
    pub told: Option<Told>,
}

/// Builds images; what a mirror no longer has is locked anew, unless the request is `locked`.
pub fn build(bench: &Bench<'_>, request: &Request) -> Result<Vec<Built>, Failure> {
    build_beside(bench, request, &Alone)
}

/// As [`build`], with somebody beside it.
pub fn build_beside<'b>(
    bench: &'b Bench<'_>,
    request: &Request,
    beside: &dyn Beside<'b>,
) -> Result<Vec<Built>, Failure> {
    let mut locked = bench.project.lock()?;
    loop {
        match build_once(bench, request, locked.clone(), beside) {
            Ok(built) => return Ok(built),
            Err(Trouble::Failure(failure)) => return Err(failure),
            Err(Trouble::Engine(error)) => match gone(&error).and_then(|digest| packages_of(&locked, digest)) {
                Some(names) => locked = lock::replace_gone(bench, &locked, &names, request.locked, error)?,
                None => return Err(error.into()),
            },
        }
    }
}

/// Work that nobody waits for before all is delivered.
pub type Work<'b> = Box<dyn FnOnce() -> Result<(), Failure> + Send + 'b>;

/// Who works beside a build.
pub trait Beside<'b>: Sync {
    /// Asked first where something has to be made, with the names of the images that have to be made, once for each platform.
    fn check(&self, made: &[&str]) -> Result<(), Failure>;

    /// Hears of a layer of an image that was made and lies in the store. That image may still fail.
    fn made(&self, image: &str, layer: Blob);

    /// Hears what a cache elsewhere says of an image's last build: the manifest or index that it was delivered as, with all its platforms,
    /// and the configuration and layers for one of them.
    fn last(&self, _image: &str, _platform: Platform, _top: Digest, _blobs: Vec<Digest>) -> Result<(), Failure> {
        Ok(())
    }

    /// Is given what the next build is quicker with, to be done before the command ends: at once, or beside what follows.
    fn later(&self, work: Work<'b>) -> Result<(), Failure> {
        work()
    }
}

/// Nobody.
struct Alone;

impl Beside<'_> for Alone {
    fn check(&self, _made: &[&str]) -> Result<(), Failure> {
        Ok(())
    }

    fn made(&self, _image: &str, _layer: Blob) {}
}

pub(super) enum Trouble {
    Failure(Failure),
    Engine(EngineError),
}

// What the engine met may be gone with the next attempt, so it stays what it is.
impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Trouble {
        Trouble::Engine(error)
    }
}

macro_rules! failures {
    ($($type:ty),*) => {$(
        impl From<$type> for Trouble {
            fn from(error: $type) -> Trouble {
                Trouble::Failure(error.into())
            }
        }
    )*};
}
failures!(Failure, CacheError, ConfigError, LowerError);

/// The archive that every mirror says it does not have.
fn gone(error: &EngineError) -> Option<Digest> {
    match error {
        EngineError::Gone { digest, .. } => Some(*digest),
        EngineError::At { source, .. } => gone(source),
        _ => None,
    }
}

/// The Debian packages whose .deb has this digest.
fn packages_of(lock: &Lock, digest: Digest) -> Option<Vec<String>> {
    let mut names: Vec<String> = lock
        .debian
        .values()
        .flatten()
        .filter(|package| package.sha256 == digest)
        .map(|package| package.name.clone())
        .collect();
    names.sort();
    names.dedup();
    (!names.is_empty()).then_some(names)
}

/// Delivers images; one whose layer turns out to be damaged or gone is built once more.
pub fn deliver(
    bench: &Bench<'_>,
    request: &Request,
    mut built: Vec<Built>,
    output: &dyn Output,
) -> Result<Vec<Built>, Failure> {
    let images = |built: &[Built]| built.iter().map(|it| it.image.clone()).collect::<Vec<NamedImage>>();
    built = brought(bench, request, built)?;
    match output.deliver(&images(&built), bench.store) {
        Err(OutputError::Lost(_) | OutputError::Damaged(_)) => {
            bench.observer.on(Event::Note(MADE_AGAIN));
            weed(bench, &built)?;
            built = build_whole(bench, request)?;
            output.deliver(&images(&built), bench.store)?;
        }
        done => done?,
    }
    Ok(built)
}

/// Builds images and brings what they hold: for outputs that take all of it from the store.
pub(super) fn build_whole(bench: &Bench<'_>, request: &Request) -> Result<Vec<Built>, Failure> {
    brought(bench, request, build(bench, request)?)
}

/// Brings what these images hold and is elsewhere; what cannot be had is built.
fn brought(bench: &Bench<'_>, request: &Request, mut built: Vec<Built>) -> Result<Vec<Built>, Failure> {
    if !super::remote::bring(bench, &built)? {
        built = build(bench, request)?;
    }
    super::bases::bring(bench, &built)?;
    Ok(built)
}

/// Said where a layer is not what it should be.
pub(super) const MADE_AGAIN: &str = "a layer in the cache was damaged or gone and is made again";

/// Reads the layers of these images that are in the store, and removes what rotted: built once more, they are made or had anew.
pub(super) fn weed(bench: &Bench<'_>, built: &[Built]) -> Result<(), CacheError> {
    let layers: BTreeSet<Digest> = built.iter().flat_map(|it| &it.image.layers).map(|(digest, _)| *digest).collect();
    in_parallel(bench.jobs, &layers.into_iter().collect::<Vec<_>>(), |digest| bench.store.verify(digest).map(drop))
}

fn build_once<'b>(
    bench: &'b Bench<'_>,
    request: &Request,
    mut locked: Lock,
    beside: &dyn Beside<'b>,
) -> Result<Vec<Built>, Trouble> {
    let images = bench.project.images(&request.images)?;
    let tops: Vec<StageId> = images.iter().map(|(_, image)| image.stage).collect();
    let new = if request.locked { New::Refused } else { New::Recorded };
    wheels::adopt_context(bench, &mut locked, &tops, &request.platforms, new)?;
    let mut keys = Keys::new(bench, &locked);
    let mut wanted = Vec::new();
    let mut present = HashSet::new();
    for (name, image) in &images {
        for &platform in &request.platforms {
            let resolved = bench.lowered(image.stage, &locked, platform)?;
            let key = keys.image(platform, &resolved)?;
            let record = match bench.store.find(&key.key)? {
                Some(bytes) => serde_json::from_slice::<ImageRecord>(&bytes).ok(),
                None => None,
            };
            let record = match record {
                Some(record) if record.is_whole(bench.store, &mut present)? => Some(record),
                _ => None,
            };
            wanted.push(Wanted { name, image, platform, resolved, key, record, told: None });
        }
    }
    let found = super::remote::images(
        bench,
        wanted.iter().filter(|it| it.record.is_none()).map(|it| (it.name, it.platform, &it.key)),
        beside,
    )?;
    for it in &mut wanted {
        let record = it.record.take().or_else(|| found.get(&it.key.key).cloned());
        it.record = record.filter(|record| {
            let repeat = bench.commands.repeat == Repeat::Compare && !record.commands.is_empty();
            !repeat && record.commands.iter().all(|ran| bench.commands.accepts(ran.sandbox))
        });
    }
    let cached: Vec<bool> = wanted.iter().map(|it| it.record.is_some()).collect();
    let made: Vec<&str> = wanted.iter().filter(|it| it.record.is_none()).map(|it| it.name).collect();
    std::thread::scope(|scope| {
        // Asked while what takes no time is done, or else when the answer is wanted.
        let ask = || beside.check(&made);
        let mut asked = (!made.is_empty()).then(|| begin(scope, ask));
        let mut checked = || asked.take().map_or(Ok(()), |begun| begun.map_or_else(ask, end));
        make::make(bench, &locked, &mut wanted, &mut keys, &mut checked, beside)
    })?;
    // Also where the image was known, here or elsewhere: outputs take them from the store.
    for it in &wanted {
        if let Some(layout @ PinnedBase::Layout(_)) = &it.resolved.base {
            base::open(&bench.project.home, layout, it.platform, bench.store)?.adopt(bench.store)?;
        }
    }
    // That an image was found is a build as well. Where this cannot be written, it is there all the same.
    let keys: Vec<_> = wanted.iter().map(|it| (it.name, it.platform, it.key.key)).collect();
    let _ = remember_latest(bench, &keys);
    let created = request.created.or(locked.date()).unwrap_or(EPOCH);
    let mut built = Vec::with_capacity(images.len());
    for (name, image) in &images {
        let mine: Vec<(usize, &Wanted<'_>)> = wanted.iter().enumerate().filter(|(_, it)| it.name == *name).collect();
        let all_cached = mine.iter().all(|(at, _)| cached[*at]);
        let image =
            finish::finish(bench, request, name, image, mine.into_iter().map(|(_, it)| it), created, all_cached)?;
        for (it, built) in wanted.iter_mut().filter(|it| it.name == *name).zip(&image.image.platforms) {
            if let Some(told) = it.told.take() {
                let delivered = Delivered { top: image.image.top().digest, config: built.config.digest };
                super::remote::tell(bench, told, delivered);
            }
        }
        bench.observer.on(Event::ImageFinished { name, digest: image.image.top().digest, cached: all_cached });
        built.push(image);
    }
    Ok(built)
}

/// Whether so many layers on a base are not too many. Told before they are put together, and of an image that is known as well.
fn within_budget(wanted: &Wanted<'_>, own: usize, base: Option<&BaseParts>) -> Result<(), EngineError> {
    let layers = base.map_or(0, |base| base.layers.len()) + own;
    let budget = wanted.image.layer_budget;
    if layers <= usize::from(budget) {
        return Ok(());
    }
    Err(EngineError::Budget { image: wanted.name.to_owned(), layers, budget })
}

/// An engine that works with what the bench has.
pub(super) fn engine<'a>(bench: &'a Bench<'_>, supply: &'a Mirrors<'_>) -> Local<'a> {
    Local::new(given(bench, supply))
}

/// What engines are given that work with what the bench has.
pub(super) fn given<'a>(bench: &'a Bench<'_>, supply: &'a Mirrors<'_>) -> Given<'a> {
    Given {
        store: bench.store,
        observer: bench.observer,
        supply,
        context: bench.context,
        catalogue_dir: bench.project.home.clone(),
        jobs: bench.jobs,
        compression: bench.compression,
        elsewhere: bench.elsewhere,
        commands: bench.commands,
    }
}
