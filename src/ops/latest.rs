//! The last build of an image on this machine: what `explain` compares with, and what the next build is quicker with.
//!
//! Two records, as they change at different times: the key of the last build, which may have found its image, and what the
//! last build that made layers left.

use layers::{Key, KeyHasher, Platform};
use serde::{Deserialize, Serialize};

use super::Bench;
use crate::engine::exchange::Footprint;
use crate::engine::local::LayerRecord;
use crate::error::Failure;

/// The key of the last build.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Latest {
    key: Key,
}

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
    Ok(found(bench, &named("latest", 2, bench, image, platform).0)?.map(|Latest { key }| key))
}

/// Remembers which key an image was last built under: asked by every build, and written where it is another one.
pub(super) fn remember_latest(bench: &Bench<'_>, image: &str, platform: Platform, key: &Key) -> Result<(), Failure> {
    let (name, text) = named("latest", 2, bench, image, platform);
    match found(bench, &name)? {
        Some(Latest { key: known }) if known == *key => {}
        _ => bench.store.keep(&name, &text, &Latest { key: *key })?,
    }
    Ok(())
}

/// What the last build that made layers of an image left.
pub(super) fn left_by_last(bench: &Bench<'_>, image: &str, platform: Platform) -> Result<Option<Left>, Failure> {
    found(bench, &named("left", 1, bench, image, platform).0)
}

/// Remembers what a build leaves that made layers, which is asked for with what the one before left.
pub(super) fn leave(
    bench: &Bench<'_>,
    image: &str,
    platform: Platform,
    key: &Key,
    left: impl FnOnce(Option<Left>) -> Result<Left, Failure>,
) -> Result<(), Failure> {
    let (name, text) = named("left", 1, bench, image, platform);
    let known: Option<Left> = found(bench, &name)?;
    if known.as_ref().is_none_or(|known| known.key != *key) {
        bench.store.keep(&name, &text, &left(known)?)?;
    }
    remember_latest(bench, image, platform, key)
}

fn named(kind: &str, version: u32, bench: &Bench<'_>, image: &str, platform: Platform) -> (Key, String) {
    let mut hasher = KeyHasher::new(kind, version);
    // Images of the same name in other catalogues are other images.
    hasher.field("lock", bench.project.lock_place().display()).field("image", image).field("platform", platform);
    hasher.finish()
}

fn found<T: serde::de::DeserializeOwned>(bench: &Bench<'_>, name: &Key) -> Result<Option<T>, Failure> {
    Ok(bench.store.find(name)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
