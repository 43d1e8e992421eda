//! `build`: from names to images in the store.
//!
//! ```text
//! names ─▶ stages ─ lower(lock) ─▶ resolved ─▶ image key ─ ledger ─▶ hit: the record
//!                                                   │
//!                                                   └─ miss: fragments ─▶ walk ─▶ assemble ─▶ record
//! record ─▶ configuration, manifest, index
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cache::{Blob, CacheError};
use layers::encode::EPOCH;
use layers::lock::Lock;
use layers::lower::{LowerError, PinnedBase, Resolved, lower};
use layers::oci::{self, BaseParts, BuiltImage, Document, ImageParts, LayerPart};
use layers::op::{LayerPlan, Op};
use layers::source::Python;
use layers::{Digest, ImageConfig, Key, PlannedImage, Platform, StageId};
use serde::Serialize;

use super::exchange;
use super::explain::{Left, left_by_last, remember_latest};
use super::key::{ImageKey, ImageRecord, Keys};
use super::remote::Made;
use super::supply::Mirrors;
use super::{Bench, lock, wheels};
use crate::config::ConfigError;
use crate::engine::foundation::Cut;
use crate::engine::local::{Given, LayerRecord, Local, Subject, Walked};
use crate::engine::run::{Ran, Repeat};
use crate::engine::{EngineError, base};
use crate::error::Failure;
use crate::observe::Event;
use crate::output::{NamedImage, Output, OutputError};
use crate::parallel::{at_once, in_parallel};
use crate::remote::{Delivered, Payload, TRANSFERS};

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
    pub told: Option<Payload>,
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

/// Whether what is made may be delivered, asked once; then without a question.
pub(super) type Check<'c> = dyn FnMut() -> Result<(), Failure> + Send + 'c;

/// An image that has no record yet.
struct Missing {
    /// Which of those that are wanted.
    at: usize,
    /// Where its stage is cut.
    cut: Option<Cut>,
    /// Whether the layers above the cut are made in no time: of few bytes, and without a command.
    quick: bool,
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
    wheels::adopt_context(bench, &mut locked, &tops, &request.platforms, !request.locked)?;
    let plan = &bench.project.plan;
    let lock_file = |python: &Python<StageId>| bench.context.lock_digest(python);
    let mut keys = Keys::new(bench, &locked);
    let mut wanted = Vec::new();
    let mut present = HashSet::new();
    for (name, image) in &images {
        for &platform in &request.platforms {
            let resolved = lower(plan, image.stage, &locked, platform, &lock_file)?;
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
        // Asked while what takes no time is done.
        let mut asked = (!made.is_empty()).then(|| scope.spawn(|| beside.check(&made)));
        let mut checked = || match asked.take() {
            Some(answer) => answer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        };
        make(bench, &locked, &mut wanted, &mut keys, &mut checked, beside)
    })?;
    // Also where the image was known, here or elsewhere: outputs take them from the store.
    for it in &wanted {
        if let Some(layout @ PinnedBase::Layout(_)) = &it.resolved.base {
            base::open(&bench.project.home, layout, it.platform, bench.store)?.adopt(bench.store)?;
        }
    }
    let created = request.created.or(locked.date()).unwrap_or(EPOCH);
    let mut built = Vec::with_capacity(images.len());
    for (name, image) in &images {
        let mine: Vec<(usize, &Wanted<'_>)> = wanted.iter().enumerate().filter(|(_, it)| it.name == *name).collect();
        let all_cached = mine.iter().all(|(at, _)| cached[*at]);
        let image = finish(bench, request, name, image, mine.into_iter().map(|(_, it)| it), created, all_cached)?;
        for (it, built) in wanted.iter_mut().filter(|it| it.name == *name).zip(&image.image.platforms) {
            if let Some(payload) = it.told.take() {
                let delivered = Delivered { top: image.image.top().digest, config: built.config.digest };
                super::remote::tell(bench, payload, delivered);
            }
        }
        bench.observer.on(Event::ImageFinished { name, digest: image.image.top().digest, cached: all_cached });
        built.push(image);
    }
    Ok(built)
}

/// Makes the layers of everything that has no record yet.
///
/// `checked` is asked before work that may take long, and at the end.
fn make<'b>(
    bench: &'b Bench<'_>,
    lock: &Lock,
    wanted: &mut [Wanted<'_>],
    keys: &mut Keys<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<(), Trouble> {
    let mut missing: Vec<Missing> = Vec::new();
    for (at, it) in wanted.iter().enumerate().filter(|(_, it)| it.record.is_none()) {
        let cut = keys.cut(it.platform, &it.resolved)?;
        let copied = cut.as_ref().and_then(|cut| keys.bytes_copied(&it.resolved.layers[cut.at..]));
        let quick = copied.is_some_and(|bytes| bytes <= QUICK);
        missing.push(Missing { at, cut, quick });
    }
    if missing.is_empty() {
        return Ok(());
    }
    // What makes no sense is told before the long work.
    bench.config.mirror_registries()?;
    let supply = Mirrors::new(bench);
    let engine = engine(bench, &supply);
    let mut is_healed = false;
    let done = loop {
        let exchanged = match missing.as_slice() {
            [Missing { at, cut, .. }] => {
                exchange::make(bench, &mut wanted[*at], cut.as_ref(), &engine, checked, beside)
            }
            _ => Ok(false),
        };
        let made = match exchanged {
            Ok(true) => Ok(()),
            Ok(false) => make_layers(bench, lock, wanted, &missing, &engine, checked, beside),
            Err(trouble) => Err(trouble),
        };
        match made {
            // The next attempt leaves nothing for later: it mends what is wrong, or says what it is.
            Err(Trouble::Engine(_)) if engine.has_failed_later() => {}
            // A fragment that rotted fails in many ways; whatever it was, one attempt with healthy fragments is worth it.
            Err(Trouble::Engine(error))
                if !is_healed && gone(&error).is_none() && !error.is_of_a_command() && engine.heal()? > 0 =>
            {
                is_healed = true;
                bench.observer.on(Event::Note("damaged entries of the cache were removed and are made again"));
            }
            done => break done,
        }
    };
    engine.end();
    // What the check says explains more than what failed meanwhile.
    checked()?;
    done
}

/// An engine that works with what the bench has.
pub(super) fn engine<'a>(bench: &'a Bench<'_>, supply: &'a Mirrors<'_>) -> Local<'a> {
    Local::new(Given {
        store: bench.store,
        observer: bench.observer,
        supply,
        context: bench.context,
        catalogue_dir: bench.project.home.clone(),
        jobs: bench.jobs,
        compression: bench.compression,
        elsewhere: bench.elsewhere,
        commands: bench.commands,
    })
}

fn make_layers<'b>(
    bench: &'b Bench<'_>,
    lock: &Lock,
    wanted: &mut [Wanted<'_>],
    missing: &[Missing],
    engine: &Local<'_>,
    checked: &mut Check<'_>,
    beside: &dyn Beside<'b>,
) -> Result<(), Trouble> {
    engine.begin(&[]);
    let mut walked: HashMap<usize, Walked> = HashMap::new();
    on_foundations(bench, lock, wanted, missing, engine, &mut walked, checked)?;
    if !bench.elsewhere.is_empty() && walked.len() < missing.len() {
        let bundles: Mutex<HashMap<usize, Blob>> = Mutex::default();
        let rest = |walked: &HashMap<usize, Walked>| -> Vec<&Missing> {
            missing.iter().filter(|it| !walked.contains_key(&it.at)).collect()
        };
        in_parallel(TRANSFERS, &rest(&walked), |it| {
            if let Some(bundle) = super::remote::warm(bench, wanted[it.at].name, wanted[it.at].platform, beside)? {
                bundles.lock().expect("no thread panics while it holds this").insert(it.at, bundle);
            }
            Ok::<(), Failure>(())
        })?;
        on_foundations(bench, lock, wanted, missing, engine, &mut walked, checked)?;
        let bundles = bundles.into_inner().expect("no thread panics while it holds this");
        in_parallel(TRANSFERS, &rest(&walked), |it| {
            bundles.get(&it.at).map_or(Ok(()), |bundle| super::remote::unpack(bench, bundle))
        })?;
    }
    let whole: Vec<&Missing> = missing.iter().filter(|it| !walked.contains_key(&it.at)).collect();
    // What takes long waits for the check. Where little has to be converted, that goes first: the answer is on its way.
    let mut is_quick = false;
    if !whole.is_empty() {
        let stages: Vec<&Resolved> = whole.iter().map(|it| &wanted[it.at].resolved).collect();
        if let [Missing { at, .. }] = whole.as_slice() {
            let last = left_by_last(bench, wanted[*at].name, wanted[*at].platform)?;
            last.iter().for_each(|(_, last)| engine.know_layers(&last.layers));
        }
        is_quick = engine.survey(&stages);
        if !is_quick {
            engine.recall(&stages, bench.jobs);
            checked()?;
        }
    }
    for &&Missing { at, .. } in &whole {
        let subject = Subject { plan: &bench.project.plan, lock, platform: wanted[at].platform };
        wanted[at].resolved = engine.settle(subject, &wanted[at].resolved)?;
    }
    let stages: Vec<&Resolved> = whole.iter().map(|it| &wanted[it.at].resolved).collect();
    let subject = |at: usize| Subject { plan: &bench.project.plan, lock, platform: wanted[at].platform };
    let early = engine.early(&whole.iter().map(|it| (subject(it.at), &wanted[it.at].resolved)).collect::<Vec<_>>());
    // Those that may have to wait for a command come last.
    let takes = |it: &&&Missing| {
        let mut ops = wanted[it.at].resolved.layers.iter().flat_map(LayerPlan::ops);
        ops.any(|op| matches!(op, Op::Take(_)))
    };
    let (last, mut in_turn): (Vec<&Missing>, Vec<&Missing>) = whole.iter().partition(takes);
    in_turn.extend(last);
    let walked = Mutex::new(walked);
    let records: Mutex<HashMap<Key, LayerRecord>> = Mutex::default();
    let (left, threads) = (AtomicUsize::new(whole.len()), (bench.jobs / whole.len().max(1)).max(1));
    let walk_one = |Missing { at, cut, .. }: &Missing| -> Result<(), EngineError> {
        let (at, it) = (*at, &wanted[*at]);
        let done = engine.walk(subject(at), &it.resolved, cut.as_ref(), &|done| {
            within_budget(it, done.jobs.len(), done.base.as_ref().map(|base| &base.parts))?;
            // Another image may still be waiting for a command; and one alone need not wait for what the walk still checks.
            if left.fetch_sub(1, Ordering::Relaxed) > 1 || whole.len() == 1 {
                let made = engine
                    .assemble(&done.jobs.iter().collect::<Vec<_>>(), threads, &|layer| beside.made(it.name, layer))?;
                records.lock().expect("no thread panics while it holds this").extend(made);
            }
            Ok(())
        })?;
        walked.lock().expect("no thread panics while it holds this").insert(at, done);
        Ok(())
    };
    let walk = |it: &&Missing| -> Result<(), Infallible> {
        if !engine.has_failed() {
            walk_one(it).unwrap_or_else(|error| engine.abandon(error));
        }
        Ok(())
    };
    engine.begin(&early);
    let mut refused = None;
    std::thread::scope(|scope| {
        // The indexes of all archives, while those that are missing are converted, which is waited for more.
        let recall = || engine.recall(&stages, bench.jobs);
        let recalled = if is_quick { std::thread::Builder::new().spawn_scoped(scope, recall).ok() } else { None };
        let ahead = scope.spawn(|| engine.run_early(&early));
        let later = if is_quick { engine.begin_later(scope) } else { None };
        let converted = engine.fragments(&stages, Some(&early));
        let may_go_on = converted.map(|()| if is_quick { checked() } else { Ok(()) });
        if let Some(recalled) = recalled {
            recalled.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        match may_go_on {
            Ok(Ok(())) => {
                in_parallel(bench.jobs, &in_turn, walk).unwrap_or_else(|never| match never {});
                engine.settle_later().unwrap_or_else(|error| engine.abandon(error));
            }
            Ok(Err(failure)) => refused = Some(failure),
            Err(error) => engine.abandon(error),
        }
        drop(later);
        ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    if let Some(failure) = refused {
        return Err(failure.into());
    }
    if let Some(error) = engine.failure() {
        return Err(Trouble::Engine(error));
    }
    let mut walked = walked.into_inner().expect("no thread panics while it holds this");
    for &Missing { at, .. } in missing {
        let done = &walked[&at];
        within_budget(&wanted[at], done.jobs.len(), done.base.as_ref().map(|base| &base.parts))?;
    }
    let mut records = records.into_inner().expect("no thread panics while it holds this");
    let jobs = missing.iter().flat_map(|it| &walked[&it.at].jobs);
    let jobs: Vec<_> = jobs.filter(|job| !records.contains_key(&job.key)).collect();
    let only = missing.first().map(|it| wanted[it.at].name).filter(|_| missing.len() == 1);
    let ready = |layer| only.into_iter().for_each(|image| beside.made(image, layer));
    records.extend(engine.assemble(&jobs, bench.jobs, &ready)?);
    for Missing { at, cut, .. } in missing {
        let walked = walked.remove(at).expect("it was walked");
        let it = &mut wanted[*at];
        let record = ImageRecord {
            layers: walked.jobs.iter().map(|job| records[&job.key].clone()).collect(),
            commands: commands(&walked),
            packages: walked.packages.clone(),
            base: walked.base.as_ref().map(|base| (base.manifest, base.parts.clone())),
        };
        let layers = walked.jobs.iter().map(|job| job.key).zip(record.layers.iter().cloned()).collect();
        let remember = || match cut {
            Some(cut) => engine.remember_foundation(cut, &walked, &record.layers),
            None => Ok(()),
        };
        let keep = || it.key.keep(bench.store, &record);
        let (kept, remembered) = at_once(keep, remember);
        remembered?;
        kept?;
        remember_latest(bench, it.name, it.platform, &it.key.key, |last| {
            let last = last.and_then(|last| Some((last.layers.as_slice(), last.footprint.as_ref()?)));
            let footprint = engine.footprint(&it.resolved, &walked, cut.as_ref(), last)?;
            Ok(Left { layers, footprint })
        })?;
        let made = Made {
            name: it.name,
            platform: it.platform,
            key: &it.key.key,
            resolved: &it.resolved,
            walked: &walked,
            cut: cut.as_ref(),
            record: &record,
        };
        it.told = super::remote::publish(bench, engine, &made)?;
        it.record = Some(record);
    }
    Ok(())
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

/// Bytes that are put into a layer in no time.
const QUICK: u64 = 4 << 20;

/// Walks those of the missing images whose lower layers are remembered well enough.
fn on_foundations(
    bench: &Bench<'_>,
    lock: &Lock,
    wanted: &[Wanted<'_>],
    missing: &[Missing],
    engine: &Local<'_>,
    walked: &mut HashMap<usize, Walked>,
    checked: &mut Check<'_>,
) -> Result<(), Trouble> {
    for Missing { at, cut, quick } in missing {
        let Some(cut) = cut.as_ref().filter(|_| !walked.contains_key(at)) else { continue };
        // A comparison wants every command to be run, and a cache elsewhere is told of all fragments.
        let told = bench.targets.is_none() || bench.elsewhere.bundle(&cut.key).is_some();
        if bench.commands.repeat == Repeat::Compare || !told {
            continue;
        }
        let it = &wanted[*at];
        if !quick {
            checked()?;
        }
        let subject = Subject { plan: &bench.project.plan, lock, platform: it.platform };
        if let Some(done) = engine.walk_on_foundation(subject, &it.resolved, cut)? {
            walked.insert(*at, done);
        }
    }
    Ok(())
}

/// The commands that a stage needed, once each.
fn commands(walked: &Walked) -> Vec<Ran> {
    let all: BTreeSet<&Ran> = walked.jobs.iter().flat_map(|job| &job.ran).collect();
    all.into_iter().cloned().collect()
}

/// Writes the documents of an image.
fn finish<'a>(
    bench: &Bench<'_>,
    request: &Request,
    name: &str,
    image: &PlannedImage,
    wanted: impl Iterator<Item = &'a Wanted<'a>>,
    created: i64,
    cached: bool,
) -> Result<Built, Trouble> {
    let mut images: Vec<BuiltImage> = Vec::new();
    let mut platforms = Vec::new();
    let mut blobs: Vec<(Digest, u64)> = Vec::new();
    for it in wanted {
        let record = it.record.as_ref().expect("every image has its record by now");
        within_budget(it, record.layers.len(), record.base.as_ref().map(|(_, base)| base))?;
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let label = |labels: &mut BTreeMap<String, String>, key: &str, value: String| {
            labels.insert(format!("org.opencontainers.image.{key}"), value);
        };
        label(&mut labels, "created", oci::rfc3339(created));
        if !image.description.is_empty() {
            label(&mut labels, "description", image.description.clone());
        }
        if let (Some((digest, _)), Some(base)) = (&record.base, &it.resolved.base) {
            label(&mut labels, "base.name", base.label().to_owned());
            label(&mut labels, "base.digest", digest.to_string());
        }
        // What a definition says wins over what is derived, and the request over both.
        labels.retain(|key, _| !image.config.labels.contains_key(key));
        labels.extend(request.labels.clone());
        let adds_nothing = record.base.is_some()
            && it.resolved.layers.is_empty()
            && image.config == ImageConfig::default()
            && image.description.is_empty()
            && request.labels.is_empty();
        if adds_nothing {
            // It is its base, to the digest of the configuration.
            labels.clear();
        }
        let parts = ImageParts {
            platform: it.platform,
            created: oci::rfc3339(created),
            config: &image.config,
            labels,
            base: record.base.as_ref().map(|(_, parts)| parts.clone()),
            layers: record
                .layers
                .iter()
                .zip(&it.resolved.layers)
                .map(|(layer, planned)| LayerPart {
                    digest: layer.digest,
                    size: layer.size,
                    diff_id: layer.diff_id,
                    media_type: bench.compression.media_type().into(),
                    created_by: planned.label(),
                })
                .collect(),
        };
        let base_layers: Vec<oci::Descriptor> = parts.base.iter().flat_map(|base| base.layers.clone()).collect();
        let own = record.layers.iter().map(|layer| (layer.digest, layer.size));
        for blob in base_layers.iter().map(|layer| (layer.digest, layer.size)).chain(own) {
            if !blobs.contains(&blob) {
                blobs.push(blob);
            }
        }
        platforms.push(BuiltPlatform {
            platform: it.platform,
            base: match &it.resolved.base {
                Some(PinnedBase::Registry { image, .. }) => Some(image.clone()),
                _ => None,
            },
            base_layers,
            layers: parts
                .layers
                .iter()
                .map(|layer| BuiltLayer {
                    digest: layer.digest,
                    diff_id: layer.diff_id,
                    size: layer.size,
                    created_by: layer.created_by.clone(),
                })
                .collect(),
            packages: record.packages.clone(),
            commands: record.commands.clone(),
        });
        images.push(parts.build());
    }
    for document in images.iter().flat_map(|image| [&image.config, &image.manifest]) {
        bench.store.put(&document.bytes)?;
    }
    let index: Option<Document> = (images.len() > 1).then(|| oci::index(&images));
    if let Some(index) = &index {
        bench.store.put(&index.bytes)?;
    }
    Ok(Built {
        image: NamedImage { name: name.to_owned(), platforms: images, index, layers: blobs },
        platforms,
        cached,
    })
}
