//! Caches elsewhere, as a build uses them: asked before work, told of it afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use cache::Blob;
use layers::lower::Resolved;
use layers::{Digest, Key, Platform};

use super::Bench;
use super::build::{Beside, Built};
use super::key::{ImageKey, ImageRecord};
use crate::engine::foundation::Cut;
use crate::engine::index::{self, Fragment};
use crate::engine::local::{Local, Walked};
use crate::error::Failure;
use crate::observe::Event;
use crate::parallel::{in_parallel, lock, unlocked};
use crate::registry::{Demand, Supply};
use crate::remote::{
    Answer, Delivered, Job, KnownFoundation, KnownFragment, KnownLayer, Parts, Payload, Place, RemoteSpec, SigningKey,
    TRANSFERS, image_name, latest_name, layers_name, parts_name,
};

/// Where a build's outcome goes.
pub struct Targets {
    /// Who sends.
    pub publisher: crate::remote::Publisher,
    /// Where to.
    pub places: Vec<RemoteSpec>,
    /// What documents are signed with.
    pub key: Option<SigningKey>,
}

/// Asks for whole images, all at once: one request each. What is found is kept as if it had been built here; the layers may
/// still be elsewhere.
pub(super) fn images<'a>(
    bench: &Bench<'_>,
    wanted: impl Iterator<Item = (&'a str, Platform, &'a ImageKey)>,
    beside: &dyn Beside<'_>,
) -> Result<HashMap<Key, ImageRecord>, Failure> {
    let found = Mutex::new(HashMap::new());
    if bench.elsewhere.is_empty() {
        return Ok(HashMap::new());
    }
    let wanted: Vec<_> = wanted.collect();
    in_parallel(TRANSFERS, &wanted, |(name, platform, key)| {
        let told = bench.elsewhere.ask(&image_name(&key.key), bench.observer);
        let Some((payload, cache)) = told else { return Ok(()) };
        // Its labels may be others by now.
        tell_last(beside, name, *platform, &payload)?;
        let record = ImageRecord { from: Some(cache.to_owned()), ..payload.image };
        key.keep(bench.store, &record)?;
        lock(&found).insert(key.key, record);
        Ok::<(), Failure>(())
    })?;
    Ok(unlocked(found))
}

/// Asks for the last build of an image, whatever it was made from: what did not change since need not be made. Gives the
/// bundle with the fragments of its layers.
pub(super) fn warm(
    bench: &Bench<'_>,
    name: &str,
    platform: Platform,
    beside: &dyn Beside<'_>,
) -> Result<Option<Blob>, Failure> {
    let asked = bench.elsewhere.ask(&last_of(bench, name, platform), bench.observer);
    let Some((payload, _)) = asked else { return Ok(None) };
    tell_last(beside, name, platform, &payload)?;
    Ok(payload.bundle)
}

/// The name of the document of an image's last build.
fn last_of(bench: &Bench<'_>, name: &str, platform: Platform) -> String {
    latest_name(&bench.project.plan.catalogue, name, platform, bench.compression)
}

/// Says what an image was delivered as when it was built elsewhere, if that is known.
fn tell_last(beside: &dyn Beside<'_>, name: &str, platform: Platform, payload: &Payload) -> Result<(), Failure> {
    let Some(Delivered { top, config }) = payload.delivered else { return Ok(()) };
    let ImageRecord { layers, base, .. } = &payload.image;
    let below = base.iter().flat_map(|(_, parts)| &parts.layers).map(|layer| layer.digest);
    let blobs = below.chain(layers.iter().map(|layer| layer.digest)).chain([config]);
    beside.last(name, platform, top, blobs.collect())
}

/// Brings a bundle: what its fragments are made from, and their indexes, are known from then on.
pub(super) fn unpack(bench: &Bench<'_>, bundle: &Blob) -> Result<(), Failure> {
    if !bench.elsewhere.bring(&bundle.digest, bench.store, bench.observer) {
        return Ok(());
    }
    // An index that is missing in a bundle, and a bundle that is none, cost a conversion.
    let parts = bench.elsewhere.unpack(bundle, bench.store)?;
    let wanted: BTreeSet<Digest> = parts.fragments.iter().map(|fragment| fragment.index).collect();
    for bytes in &parts.indexes {
        if wanted.contains(&Digest::of(bytes)) {
            bench.store.put(bytes)?;
        }
    }
    Ok(())
}

/// Brings the layers of images that are only elsewhere. `false`: something could not be had, and no cache elsewhere is
/// believed any more; build again.
pub fn bring(bench: &Bench<'_>, built: &[Built]) -> Result<bool, Failure> {
    let missing = missing(bench, built)?;
    let whole = in_parallel(TRANSFERS, &missing, |digest| {
        if bench.elsewhere.bring(digest, bench.store, bench.observer) { Ok(()) } else { Err(()) }
    });
    if whole.is_err() {
        give_up(bench);
    }
    Ok(whole.is_ok())
}

/// Believes no cache elsewhere any more.
pub(super) fn give_up(bench: &Bench<'_>) {
    bench.observer.on(Event::Note("layers could not be had from the cache elsewhere and are made here"));
    bench.elsewhere.forget();
}

/// Layers of images that are not here, and that a cache has told of: it may have failed since.
fn missing(bench: &Bench<'_>, built: &[Built]) -> Result<Vec<Digest>, Failure> {
    let mut missing = BTreeSet::new();
    if bench.elsewhere.is_empty() {
        return Ok(Vec::new());
    }
    for (digest, size) in built.iter().flat_map(|it| &it.image.layers) {
        if bench.store.has(digest)? != Some(*size) && bench.elsewhere.was_told_of(digest) {
            missing.insert(*digest);
        }
    }
    Ok(missing.into_iter().collect())
}

/// Tells a push where layers lie that are not here: it takes over or copies those that their registry lacks.
pub fn point_to(bench: &Bench<'_>, built: &[Built], supply: &mut Supply) -> Result<(), Failure> {
    let mut blobs = BTreeSet::new();
    for digest in missing(bench, built)? {
        match bench.elsewhere.place(&digest) {
            Some(Place::File(path)) => {
                supply.files.insert(digest.into(), path);
                continue;
            }
            // Its own registry mounts it; for others it is brought with the cache's patience, not the push's.
            Some(Place::Repository(repository)) => {
                supply.origins.entry(digest.into()).or_default().push(repository);
            }
            Some(Place::Service) => {}
            None => continue,
        }
        blobs.insert(digest);
    }
    if !blobs.is_empty() {
        let (elsewhere, store) = (bench.elsewhere.clone(), bench.store.clone());
        let bring = move |digest: &Digest| elsewhere.bring_in_silence(digest, &store).unwrap_or(false);
        supply.demand = Some(Demand { blobs, bring: Arc::new(bring) });
    }
    Ok(())
}

/// An image that was made here.
pub(super) struct Made<'a> {
    pub name: &'a str,
    pub platform: Platform,
    pub key: &'a Key,
    pub resolved: &'a Resolved,
    pub walked: &'a Walked,
    pub cut: Option<&'a Cut>,
    pub record: &'a ImageRecord,
}

/// What caches that are written to will be told of an image, once it is known what it is delivered as.
pub(super) struct Told {
    payload: Payload,
    /// The names that keep what it leads to.
    needs: Vec<String>,
}

/// Hands the layers of an image that was built here to the caches that are written to, and what they are made of; gives what is to be
/// told of it. What is not here is brought where it is missing.
pub(super) fn publish(bench: &Bench<'_>, engine: &Local<'_>, made: &Made<'_>) -> Result<Option<Told>, Failure> {
    let Some(targets) = bench.targets else { return Ok(None) };
    let bundle = match made.walked.is_on_foundation() {
        true => made.cut.and_then(|cut| bench.elsewhere.bundle(&cut.key)).inspect(|bundle| {
            targets.publisher.publish_in_turn(Job::KeepBundle(*bundle));
        }),
        false => publish_parts(bench, targets, engine.fragments_of(made.resolved, made.walked))?,
    };
    let foundation = made.cut.zip(made.walked.below.as_ref()).map(|(cut, below)| KnownFoundation {
        key: cut.key,
        layers: cut.at,
        below: below.clone(),
    });
    let payload = Payload {
        names: vec![image_name(made.key), last_of(bench, made.name, made.platform)],
        image: made.record.clone(),
        layers: made.walked.jobs.iter().map(|job| KnownLayer { key: job.key, ran: job.ran.clone() }).collect(),
        foundation,
        bundle,
        delivered: None,
    };
    let blobs: BTreeSet<(Digest, u64)> = made.record.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    let blobs = blobs.into_iter().map(|(digest, size)| Blob { digest, size }).collect();
    let name = layers_name(made.key);
    let needs = bundle.iter().map(|bundle| parts_name(&bundle.digest)).chain([name.clone()]).collect();
    targets.publisher.publish_in_turn(Job::Keep { name, blobs });
    Ok(Some(Told { payload, needs }))
}

/// Tells the caches that are written to of an image, and what it is delivered as: that leads to what was sent before, so it comes
/// last, and who reads it need not read the list of that.
pub(super) fn tell(bench: &Bench<'_>, Told { mut payload, needs }: Told, delivered: Delivered) {
    let Some(targets) = bench.targets else { return };
    payload.delivered = Some(delivered);
    let names = payload.names.clone();
    match Answer::write_short(payload, targets.key.as_ref()) {
        Some(document) => targets.publisher.publish_in_turn(Job::Tell { names, document, needs }),
        None => bench
            .observer
            .on(Event::Note("what is known of an image is too long for a cache elsewhere, which is not told of it")),
    }
}

/// Hands fragments over, under a name that keeps a registry from collecting them, and gives the bundle that tells of them, if there may
/// be one.
fn publish_parts(
    bench: &Bench<'_>,
    targets: &Targets,
    fragments: Vec<(Key, Arc<Fragment>)>,
) -> Result<Option<Blob>, Failure> {
    let mut parts = Parts::default();
    let (mut blobs, mut indexes) = (BTreeSet::new(), BTreeMap::new());
    for (key, fragment) in fragments {
        let bytes = index::encode(&fragment);
        let index = Digest::of(&bytes);
        indexes.insert(index, bytes);
        let blob = Blob { digest: fragment.blob, size: fragment.layout.size };
        blobs.insert((blob.digest, blob.size));
        parts.fragments.push(KnownFragment { key, blob, index });
    }
    parts.indexes = indexes.into_values().collect();
    let Some(bundle) = parts.pack() else { return Ok(None) };
    let bundle = bench.store.put(&bundle)?;
    // Who finds it where it is written in order finds its fragments.
    let blobs = blobs.into_iter().map(|(digest, size)| Blob { digest, size }).chain([bundle]).collect();
    targets.publisher.publish(Job::Keep { name: parts_name(&bundle.digest), blobs });
    Ok(Some(bundle))
}
