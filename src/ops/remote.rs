//! Caches elsewhere, as a build uses them: asked before work, told of it afterwards.

use std::collections::BTreeSet;

use cache::Blob;
use layers::{Digest, Key, Platform};

use super::Bench;
use super::build::Built;
use super::explain::remember_latest;
use super::key::{ImageKey, ImageRecord};
use crate::engine::index;
use crate::engine::local::{Local, Walked};
use crate::error::Failure;
use crate::observe::Event;
use crate::parallel::in_parallel;
use crate::registry::Supply;
use crate::remote::{Answer, Payload, Place, SigningKey, image_name, latest_name};

/// Blobs that are fetched at once.
pub(super) const TRANSFERS: usize = 8;

/// Where a build's outcome goes.
pub struct Targets {
    /// Who sends.
    pub publisher: crate::remote::Publisher,
    /// What documents are signed with.
    pub key: Option<SigningKey>,
}

/// Asks for a whole image: one request. What is found is kept as if it had been built here; its layers may still be
/// elsewhere.
pub(super) fn image(
    bench: &Bench<'_>,
    name: &str,
    platform: Platform,
    key: &ImageKey,
) -> Result<Option<ImageRecord>, Failure> {
    if bench.elsewhere.is_empty() {
        return Ok(None);
    }
    let Some(payload) = bench.elsewhere.ask(&image_name(&key.key), bench.observer) else { return Ok(None) };
    key.keep(bench.store, &payload.image)?;
    remember_latest(bench, name, platform, &key.key)?;
    Ok(Some(payload.image))
}

/// Asks for the last build of an image, whatever it was made from: what did not change since need not be made.
pub(super) fn warm(bench: &Bench<'_>, name: &str, platform: Platform) -> Result<(), Failure> {
    if bench.elsewhere.is_empty() {
        return Ok(());
    }
    let Some(payload) = bench.elsewhere.ask(&latest_name(name, platform, bench.compression), bench.observer) else {
        return Ok(());
    };
    let Some(bundle) = payload.bundle else { return Ok(()) };
    let mut wanted: BTreeSet<Digest> = BTreeSet::new();
    for fragment in &payload.fragments {
        if bench.store.has(&fragment.index)?.is_none() {
            wanted.insert(fragment.index);
        }
    }
    if wanted.is_empty() || !bench.elsewhere.bring(&bundle.digest, bench.store, bench.observer) {
        return Ok(());
    }
    let Some(packed) = bench.store.read(&bundle.digest)? else { return Ok(()) };
    // An index that is missing in a bundle, and a bundle that is none, cost a conversion.
    for bytes in index::unbundle(&packed).unwrap_or_default() {
        if wanted.contains(&Digest::of(&bytes)) {
            bench.store.put(&bytes)?;
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
        bench.observer.on(Event::Note("layers could not be had from the cache elsewhere and are made here"));
        bench.elsewhere.forget();
    }
    Ok(whole.is_ok())
}

/// Layers of images that are not here.
fn missing(bench: &Bench<'_>, built: &[Built]) -> Result<Vec<Digest>, Failure> {
    let mut missing = BTreeSet::new();
    if bench.elsewhere.is_empty() {
        return Ok(Vec::new());
    }
    for (digest, size) in built.iter().flat_map(|it| &it.image.layers) {
        if bench.store.has(digest)? != Some(*size) && bench.elsewhere.holds(digest) {
            missing.insert(*digest);
        }
    }
    Ok(missing.into_iter().collect())
}

/// Tells a push where layers lie that are not here: it takes over or copies those that their registry lacks.
pub fn point_to(bench: &Bench<'_>, built: &[Built], supply: &mut Supply) -> Result<(), Failure> {
    for digest in missing(bench, built)? {
        match bench.elsewhere.place(&digest) {
            Some(Place::Repository(repository)) => {
                supply.origins.entry(digest.into()).or_default().push(repository);
            }
            Some(Place::File(path)) => {
                supply.files.insert(digest.into(), path);
            }
            None => {}
        }
    }
    Ok(())
}

/// Hands an image that was built here to the caches that are written to.
pub(super) fn publish(
    bench: &Bench<'_>,
    engine: &Local<'_>,
    (name, platform): (&str, Platform),
    key: &Key,
    (resolved, walked): (&layers::lower::Resolved, &Walked),
    image: &ImageRecord,
) -> Result<(), Failure> {
    let Some(targets) = bench.targets else { return Ok(()) };
    let mut fragments = Vec::new();
    let mut blobs: BTreeSet<(Digest, u64)> = image.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
    let mut indexes = std::collections::BTreeMap::new();
    for (key, fragment) in engine.fragments_of(resolved, walked) {
        let bytes = index::encode(&fragment);
        let digest = Digest::of(&bytes);
        let blob = Blob { digest: fragment.blob, size: fragment.layout.size };
        blobs.insert((blob.digest, blob.size));
        indexes.insert(digest, bytes);
        fragments.push(crate::remote::KnownFragment { key, blob, index: digest });
    }
    let bundle = bench.store.put(&index::bundle(&indexes.into_values().collect::<Vec<_>>()))?;
    blobs.insert((bundle.digest, bundle.size));
    let names = vec![image_name(key), latest_name(name, platform, bench.compression)];
    let layers = walked
        .jobs
        .iter()
        .zip(&image.layers)
        .map(|(job, record)| crate::remote::KnownLayer { key: job.key, record: record.clone() });
    let payload = Payload {
        names: names.clone(),
        image: image.clone(),
        layers: layers.collect(),
        fragments,
        bundle: Some(bundle),
    };
    let document = Answer::write(&payload, targets.key.as_ref());
    let blobs = blobs.into_iter().map(|(digest, size)| Blob { digest, size }).collect();
    targets.publisher.publish(names, document, blobs);
    Ok(())
}
