//! The last build of an image on this machine: what `explain` compares with, and what the next build is quicker with.
//!
//! Two records, as they change at different times: the keys of the last builds, which may have found their images, and what the
//! last build that made layers of an image left. The keys of all images of a lock are together, as each build asks for them.

use std::collections::BTreeMap;

use layers::{Key, KeyHasher, Platform};
use serde::{Deserialize, Serialize};

use super::Bench;
use crate::engine::exchange::Footprint;
use crate::engine::local::LayerRecord;
use crate::error::Failure;

/// The keys of the last builds, by image and platform.
type Latest = BTreeMap<String, Key>;

/// What the last build that made layers of an image here leaves to the next one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Left {
    /// The image's key.
    pub key: Key,
    /// Its layers, by their keys. What a key stands for is not what the image's record says: that may have come from elsewhere.
    pub layers: Vec<(Key, LayerRecord)>,
    /// The paths in them, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
}

/// The key of the last build of an image.
pub(super) fn latest(bench: &Bench<'_>, image: &str, platform: Platform) -> Result<Option<Key>, Failure> {
    let all: Option<Latest> = found(bench, &named("latest", 2, bench).finish().0)?;
    Ok(all.and_then(|all| all.get(&place(image, platform)).copied()))
}

/// Remembers which keys images were last built under: asked by every build, and written where one is another.
pub(super) fn remember_latest(bench: &Bench<'_>, built: &[(&str, Platform, Key)]) -> Result<(), Failure> {
    let (name, text) = named("latest", 2, bench).finish();
    let built: Latest = built.iter().map(|(image, platform, key)| (place(image, *platform), *key)).collect();
    let known = || -> Result<Latest, Failure> { Ok(found(bench, &name)?.unwrap_or_default()) };
    let all = known()?;
    if built.iter().any(|(place, key)| all.get(place) != Some(key)) {
        // Another builder may add others.
        let _turn = bench.store.lock_build(&name)?;
        let mut all = known()?;
        all.extend(built);
        bench.store.keep(&name, &text, &all)?;
    }
    Ok(())
}

fn place(image: &str, platform: Platform) -> String {
    format!("{image} {platform}")
}

/// What the last build that made layers of an image left.
pub(super) fn left_by_last(bench: &Bench<'_>, image: &str, platform: Platform) -> Result<Option<Left>, Failure> {
    found(bench, &left_key(bench, image, platform).0)
}

/// Remembers what a build leaves that made layers, which is asked for with what the one before left.
pub(super) fn leave(
    bench: &Bench<'_>,
    image: &str,
    platform: Platform,
    key: &Key,
    left: impl FnOnce(Option<Left>) -> Result<Left, Failure>,
) -> Result<(), Failure> {
    let (name, text) = left_key(bench, image, platform);
    let known: Option<Left> = found(bench, &name)?;
    if known.as_ref().is_none_or(|known| known.key != *key) {
        bench.store.keep(&name, &text, &left(known)?)?;
    }
    Ok(())
}

fn left_key(bench: &Bench<'_>, image: &str, platform: Platform) -> (Key, String) {
    let mut hasher = named("left", 1, bench);
    hasher.field("image", image).field("platform", platform);
    hasher.finish()
}

// Images of the same name in other catalogues are other images.
fn named(kind: &str, version: u32, bench: &Bench<'_>) -> KeyHasher {
    let mut hasher = KeyHasher::new(kind, version);
    hasher.field("lock", bench.project.lock_place().display());
    hasher
}

fn found<T: serde::de::DeserializeOwned>(bench: &Bench<'_>, name: &Key) -> Result<Option<T>, Failure> {
    Ok(bench.store.find(name)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
