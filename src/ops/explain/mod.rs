//! `explain`: what a build would do again, and why, from the recorded texts of keys.
//!
//! An image's key is the hash of a text that names every operation and everything that it is made from. The text is kept
//! beside the record, and so is the name of the last text of each image: two texts side by side say what changed. Where the walk
//! of a build needs nothing that would have to be made, it says which layers are found, and the texts say why others are not.

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
use self::reasons::{alone, compare};
use super::Bench;
use super::build::given;
use super::key::{ImageRecord, Keys, kept_text};
use super::latest::{Left, latest, left_by_last};
use super::supply::Mirrors;
use super::wheels::{self, New};
use crate::engine::local::{Local, Subject};
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
    /// Whether it would be found.
    pub hit: bool,
    /// Why not, or why although it changed.
    pub reasons: Vec<String>,
}

/// Says for every layer of the images whether a build would find it, and why not. Nothing is built or kept, and nothing fetched but
/// what the index says of wheels that no lock has yet.
pub fn explain(bench: &Bench<'_>, images: &[String], platforms: &[Platform]) -> Result<Vec<Explained>, Failure> {
    let mut locked = bench.project.lock()?;
    let images = bench.project.images(images)?;
    let tops: Vec<_> = images.iter().map(|(_, image)| image.stage).collect();
    wheels::adopt_context(bench, &mut locked, &tops, platforms, New::Passing)?;
    let mut keys = Keys::new(bench, &locked);
    let supply = Mirrors::new(bench);
    let engine = Local::that_looks(given(bench, &supply));
    let mut present = HashSet::new();
    let mut all = Vec::new();
    for (name, image) in &images {
        for &platform in platforms {
            let resolved = bench.lowered(image.stage, &locked, platform)?;
            let key = keys.image(platform, &resolved)?;
            let labels: Vec<String> = resolved.layers.iter().map(|layer| layer.label()).collect();
            let mut explained =
                Explained { image: (*name).to_owned(), platform, hit: false, reasons: Vec::new(), layers: Vec::new() };
            let record = image_record(bench, &key.key)?;
            if let Some(record) = &record
                && record.is_whole(bench.store, &mut present)?
            {
                let hit = |label| ExplainedLayer { label, hit: true, reasons: Vec::new() };
                explained.reasons.extend(record.from.as_ref().map(|cache| format!("it was had from `{cache}`")));
                (explained.hit, explained.layers) = (true, labels.into_iter().map(hit).collect());
                all.push(explained);
                continue;
            }
            let left = left_by_last(bench, name, platform)?;
            // A build asks for these by their keys as well.
            left.iter().for_each(|left| engine.know_layers(&left.layers));
            let subject = Subject { plan: &bench.project.plan, lock: &locked, platform };
            let seen = engine.look(subject, &resolved, keys.cut(platform, &resolved)?.as_ref())?;
            let (text, old) = match record {
                Some(record) => (key.text(), Some((key.text(), record))),
                None => (key.text(), last(bench, name, platform, left.as_ref())?),
            };
            let (before, record) = old.unzip();
            let is_gone = before.as_ref() == Some(&text);
            let known = Before { bench, resolved: &resolved, record, left, seen, parts: Default::default() };
            explained.reasons.extend(match &before {
                None => Some("no earlier build of this image is remembered here".to_owned()),
                Some(_) if is_gone => Some(match known.from() {
                    Some(cache) => format!("it was had from `{cache}`, and not all of its layers are here"),
                    None => "nothing changed, but layers are gone from the cache".to_owned(),
                }),
                Some(_) => None,
            });
            let (reasons, layers) = match &before {
                Some(before) => compare(before, &text, &labels, &known),
                None => (Vec::new(), alone(&labels, &known)),
            };
            explained.reasons.extend(reasons);
            explained.layers = layers;
            all.push(explained);
        }
    }
    Ok(all)
}

/// The text of the last build of an image, and what it came to.
fn last(
    bench: &Bench<'_>,
    image: &str,
    platform: Platform,
    left: Option<&Left>,
) -> Result<Option<(String, ImageRecord)>, Failure> {
    // A build that was broken off may not have kept its own.
    for last in [latest(bench, image, platform)?, left.map(|left| left.key)].into_iter().flatten() {
        let Some(recorded) = bench.store.recall(&last)? else { continue };
        let Ok(record) = serde_json::from_slice(&recorded.record) else { continue };
        return Ok(kept_text(bench.store, &recorded.text)?.map(|text| (text, record)));
    }
    Ok(None)
}

fn image_record(bench: &Bench<'_>, key: &Key) -> Result<Option<ImageRecord>, Failure> {
    Ok(bench.store.find(key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
