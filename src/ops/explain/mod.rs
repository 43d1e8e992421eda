//! `explain`: what a build would do again, and why, from the recorded texts of keys.
//!
//! An image's key is the hash of a text that names every operation and everything that it is made from. The text is kept
//! beside the record, and so is the name of the last text of each image: two texts side by side say what changed.

mod before;
mod below;
mod changed;
mod reasons;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashSet;

use layers::{Key, Platform};
use serde::Serialize;

use self::before::Before;
use self::reasons::{LOST, compare};
use super::Bench;
use super::key::{ImageRecord, Keys, kept_text};
use super::latest::{latest, left_by_last};
use super::wheels::{self, New};
use crate::error::Failure;

/// What a build of one image would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The image.
    pub image: String,
    /// The platform.
    pub platform: Platform,
    /// Whether the whole image is in the cache.
    pub hit: bool,
    /// What concerns every layer.
    pub reasons: Vec<String>,
    /// Its layers, bottom first.
    pub layers: Vec<ExplainedLayer>,
}

/// What a build would do for one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedLayer {
    /// One line about it.
    pub label: String,
    /// Whether it is made from what the last build had.
    pub hit: bool,
    /// Why not.
    pub reasons: Vec<String>,
}

/// Says for every layer of the images whether a build would find it, and why not. Nothing is built or written, and nothing fetched but
/// what the index says of wheels that no lock has yet.
pub fn explain(bench: &Bench<'_>, images: &[String], platforms: &[Platform]) -> Result<Vec<Explained>, Failure> {
    let mut locked = bench.project.lock()?;
    let images = bench.project.images(images)?;
    let tops: Vec<_> = images.iter().map(|(_, image)| image.stage).collect();
    wheels::adopt_context(bench, &mut locked, &tops, platforms, New::Passing)?;
    let mut keys = Keys::new(bench, &locked);
    let mut present = HashSet::new();
    let mut all = Vec::new();
    for (name, image) in &images {
        for &platform in platforms {
            let resolved = bench.lowered(image.stage, &locked, platform)?;
            let key = keys.image(platform, &resolved)?;
            let labels: Vec<String> = resolved.layers.iter().map(|layer| layer.label()).collect();
            let mut explained =
                Explained { image: (*name).to_owned(), platform, hit: false, reasons: Vec::new(), layers: Vec::new() };
            let unchanged = |hit: bool| {
                let layer = |label: &String| ExplainedLayer { label: label.clone(), hit, reasons: Vec::new() };
                labels.iter().map(layer).collect::<Vec<_>>()
            };
            let record = image_record(bench, &key.key)?;
            match &record {
                Some(record) if record.is_whole(bench.store, &mut present)? => {
                    explained.hit = true;
                    explained.layers = unchanged(true);
                }
                Some(record) => {
                    explained.reasons.push("nothing changed, but layers are gone from the cache".into());
                    explained.layers = unchanged(true);
                    for (layer, record) in explained.layers.iter_mut().zip(&record.layers) {
                        if bench.store.has(&record.digest)? != Some(record.size) {
                            layer.hit = false;
                            layer.reasons.push(LOST.into());
                        }
                    }
                }
                None => {
                    let left = left_by_last(bench, name, platform)?;
                    let mut recorded = None;
                    // A build that was broken off may not have kept its own.
                    for last in
                        [latest(bench, name, platform)?, left.as_ref().map(|left| left.key)].into_iter().flatten()
                    {
                        recorded = match recorded {
                            Some(recorded) => Some(recorded),
                            None => bench.store.recall(&last)?,
                        };
                    }
                    let before = match &recorded {
                        Some(recorded) => kept_text(bench.store, &recorded.text)?,
                        None => None,
                    };
                    match (before, recorded) {
                        (Some(old), Some(recorded)) => {
                            let record = serde_json::from_slice::<ImageRecord>(&recorded.record).ok();
                            let before = Before { bench, resolved: &resolved, record, left, parts: Default::default() };
                            (explained.reasons, explained.layers) = compare(&old, &key.text(), &labels, &before);
                        }
                        _ => {
                            explained.reasons.push("no earlier build of this image is remembered here".into());
                            explained.layers = unchanged(false);
                        }
                    }
                }
            }
            all.push(explained);
        }
    }
    Ok(all)
}

fn image_record(bench: &Bench<'_>, key: &Key) -> Result<Option<ImageRecord>, Failure> {
    Ok(bench.store.find(key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
