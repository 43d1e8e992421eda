//! `explain`: what a build would do again, and why, from the recorded texts of keys.
//!
//! An image's key is the hash of a text that names every operation and everything that it is made from. The text is kept
//! beside the record, and so is the name of the last text of each image: two texts side by side say what changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Read as _};

use layers::lower::lower;
use layers::op::Op;
use layers::source::{Files, Python};
use layers::{Digest, Key, KeyHasher, Platform, StageId};
use serde::{Deserialize, Serialize};

use super::key::{ImageRecord, Keys, kept_text};
use super::{Bench, wheels};
use crate::engine::exchange::Footprint;
use crate::engine::local::LayerRecord;
use crate::error::Failure;
use crate::pin::{SelectedKind, Selection};

/// The last builds of an image on this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Latest {
    key: Key,
    before: Option<Key>,
    /// Its layers with their keys, where they were made here. What a key stands for is not what the image's record says: that may
    /// have come from elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<(Key, LayerRecord)>,
    /// The paths in these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    footprint: Option<Footprint>,
}

/// What the last build of an image here leaves to the next one, which is quicker for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    /// Its layers, by their keys.
    pub layers: Vec<(Key, LayerRecord)>,
    /// The paths in them, where that is known.
    pub footprint: Option<Footprint>,
}

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

/// Remembers which key an image was last built under, and what it leaves: asked with what the build before left.
pub(super) fn remember_latest(
    bench: &Bench<'_>,
    image: &str,
    platform: Platform,
    key: &Key,
    left: impl FnOnce(Option<&Left>) -> Result<Left, Failure>,
) -> Result<(), Failure> {
    let (name, text) = latest_key(bench, image, platform);
    let known = latest(bench, &name)?;
    if known.as_ref().is_none_or(|known| known.key != *key) {
        let before = known.as_ref().map(|known| known.key);
        let known = known.map(|known| Left { layers: known.layers, footprint: known.footprint });
        let Left { layers, footprint } = left(known.as_ref())?;
        bench.store.keep(&name, &text, &Latest { key: *key, before, layers, footprint })?;
    }
    Ok(())
}

/// What the last build of an image had as its key, and left.
pub(super) fn left_by_last(bench: &Bench<'_>, image: &str, platform: Platform) -> Result<Option<(Key, Left)>, Failure> {
    let known = latest(bench, &latest_key(bench, image, platform).0)?;
    Ok(known.map(|known| (known.key, Left { layers: known.layers, footprint: known.footprint })))
}

fn latest_key(bench: &Bench<'_>, image: &str, platform: Platform) -> (Key, String) {
    let mut hasher = KeyHasher::new("latest", 1);
    // Images of the same name in other catalogues are other images.
    hasher.field("lock", bench.project.lock_path.display()).field("image", image).field("platform", platform);
    hasher.finish()
}

fn latest(bench: &Bench<'_>, name: &Key) -> Result<Option<Latest>, Failure> {
    Ok(bench.store.find(name)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Says for every layer of the images whether a build would find it, and why not. Nothing is built, fetched or written.
pub fn explain(bench: &Bench<'_>, images: &[String], platforms: &[Platform]) -> Result<Vec<Explained>, Failure> {
    let mut locked = bench.project.lock()?;
    let images = bench.project.images(images)?;
    let tops: Vec<_> = images.iter().map(|(_, image)| image.stage).collect();
    wheels::adopt_context(bench, &mut locked, &tops, platforms, false)?;
    let lock_file = |python: &Python<StageId>| bench.context.lock_digest(python);
    let mut keys = Keys::new(bench, &locked);
    let mut present = HashSet::new();
    let mut all = Vec::new();
    for (name, image) in &images {
        for &platform in platforms {
            let resolved = lower(&bench.project.plan, image.stage, &locked, platform, &lock_file)?;
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
                            layer.reasons.push("its bytes are gone from the cache".into());
                        }
                    }
                }
                None => {
                    let last = latest(bench, &latest_key(bench, name, platform).0)?;
                    let recorded = match &last {
                        Some(last) => bench.store.recall(&last.key)?,
                        None => None,
                    };
                    let before = match &recorded {
                        Some(recorded) => kept_text(bench.store, &recorded.text)?,
                        None => None,
                    };
                    match (before, recorded) {
                        (Some(old), Some(recorded)) => {
                            let before = serde_json::from_slice::<ImageRecord>(&recorded.record).ok();
                            let files = |layer: usize, old: usize, number: usize| {
                                let copies = resolved.layers[layer].ops().filter_map(|op| match op {
                                    Op::Copy(files) => Some(files),
                                    _ => None,
                                });
                                let files = copies.into_iter().nth(number)?;
                                let digest = before.as_ref()?.layers.get(old)?.digest;
                                let selection = bench.context.select(files).ok()?;
                                changed_files(bench, &digest, files, &selection)
                            };
                            let (reasons, layers) = compare(&old, &key.text(), &labels, &files);
                            (explained.reasons, explained.layers) = (reasons, layers);
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

/// One operation of a key's text: its fields, the first of which says what it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Part(Vec<(String, String)>);

impl Part {
    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    /// What it is about, whatever version of it: a package, a selection of files, a stage.
    fn subject(&self) -> String {
        let (kind, value) = &self.0[0];
        match kind.as_str() {
            "name" => format!("name {}", archive_name(value).0),
            "take" => format!("take {} {}", self.get("from"), self.get("to")),
            "configure" => "configure".into(),
            _ => format!("{kind} {value}"),
        }
    }
}

/// The name and the version in an archive's file name.
fn archive_name(file: &str) -> (String, String) {
    let stem = file.strip_suffix(".deb").map(|stem| (stem, '_')).or(file.strip_suffix(".whl").map(|stem| (stem, '-')));
    let Some((stem, separator)) = stem else { return (file.to_owned(), String::new()) };
    let mut parts = stem.split(separator);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase().replace('_', "-");
    (name, parts.next().unwrap_or_default().replace("%3a", ":"))
}

/// Takes a key's text apart: what stands before the first layer, and the operations of each layer.
fn parse(text: &str) -> (BTreeMap<String, String>, Vec<Vec<Part>>) {
    let mut head: BTreeMap<String, String> = BTreeMap::new();
    let mut layers: Vec<Vec<Part>> = Vec::new();
    for (name, value) in layers::fields(text) {
        let (name, value) = (name.to_owned(), value.to_owned());
        let Some(layer) = layers.last_mut().filter(|_| name != "layer") else {
            if name == "layer" {
                layers.push(Vec::new());
            } else {
                let held = head.entry(name).or_default();
                held.push_str(&value);
                held.push(' ');
            }
            continue;
        };
        match layer.last_mut() {
            Some(part) if !matches!(name.as_str(), "name" | "copy" | "take" | "configure" | "op") => {
                part.0.push((name, value));
            }
            _ => layer.push(Part(vec![(name, value)])),
        }
    }
    (head, layers)
}

/// Which files of a layer changed: asked with the layer, its number in the older text, and the number of the copy in it.
type ChangedFiles<'a> = dyn Fn(usize, usize, usize) -> Option<String> + 'a;

/// What makes one text another one.
fn compare(old: &str, new: &str, labels: &[String], files: &ChangedFiles<'_>) -> (Vec<String>, Vec<ExplainedLayer>) {
    let ((old_head, old_layers), (new_head, new_layers)) = (parse(old), parse(new));
    let mut reasons = Vec::new();
    for name in old_head.keys().chain(new_head.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (old_head.get(name), new_head.get(name));
        if before != after {
            let shown = |value: Option<&String>| value.map_or("nothing".to_owned(), |value| value.trim().to_owned());
            reasons.push(format!("{name}: {} -> {}", shown(before), shown(after)));
        }
    }
    let mut by_subject: BTreeMap<String, (usize, &Part)> = BTreeMap::new();
    for (at, layer) in old_layers.iter().enumerate() {
        for part in layer {
            by_subject.entry(part.subject()).or_insert((at, part));
        }
    }
    let subjects: BTreeSet<String> = new_layers.iter().flatten().map(Part::subject).collect();
    let mut layers = Vec::new();
    let mut missed = BTreeSet::new();
    for (at, parts) in new_layers.iter().enumerate() {
        let mut why = Vec::new();
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        let mut copies = 0;
        for part in parts {
            let number = copies;
            copies += usize::from(part.0[0].0 == "copy");
            match by_subject.get(&part.subject()) {
                Some((home, same)) => {
                    *homes.entry(*home).or_default() += 1;
                    if *same != part {
                        let reason = difference(same, part, || files(at, *home, number));
                        // Where the layer is nothing else, its label says which files they are.
                        let named = part.0[0].0 == "copy" && parts.len() > 1;
                        why.push(if named { format!("{}: {reason}", shown(part)) } else { reason });
                    }
                }
                None => why.push(format!("{} is new", shown(part))),
            }
        }
        // The older layer that became this one: what it had and no layer has any more was taken away.
        let home = homes.iter().max_by_key(|(_, count)| **count).map(|(home, _)| *home);
        if let Some(home) = home {
            for part in &old_layers[home] {
                if !subjects.contains(&part.subject()) {
                    why.push(format!("{} is gone", shown(part)));
                }
            }
            if why.is_empty() && old_layers[home] != *parts {
                why.push("other packages share its layer".into());
            }
        }
        let hit = why.is_empty() && reasons.is_empty();
        if !hit {
            missed.insert(at);
        }
        layers.push(ExplainedLayer { label: labels.get(at).cloned().unwrap_or_default(), hit, reasons: why });
    }
    if layers.is_empty() || (missed.is_empty() && old_layers.len() != new_layers.len()) {
        reasons.push(format!("{} layers became {}", old_layers.len(), new_layers.len()));
    }
    (reasons, layers)
}

/// What a person calls an operation.
fn shown(part: &Part) -> String {
    let (kind, value) = &part.0[0];
    match kind.as_str() {
        "name" => {
            let (name, version) = archive_name(value);
            if version.is_empty() { name } else { format!("{name} {version}") }
        }
        "copy" => format!("files {}", copied_from(value)),
        "take" => format!("take {}", part.get("from")),
        "configure" => "the packages' set-up".into(),
        _ => shortened(value),
    }
}

/// The `from` of a copy, as the definition wrote it.
fn copied_from(value: &str) -> String {
    let files = serde_json::from_str::<Files>(&layers::unescaped(value));
    files.map_or_else(|_| shortened(value), |files| files.from)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

fn difference(old: &Part, new: &Part, files: impl FnOnce() -> Option<String>) -> String {
    match new.0[0].0.as_str() {
        "name" => {
            let ((name, before), (_, after)) = (archive_name(old.get("name")), archive_name(new.get("name")));
            if before != after {
                return format!("{name} {before} -> {after}");
            }
            let field = ["archive", "conversion", "version"].into_iter().find(|field| old.get(field) != new.get(field));
            match field {
                Some("archive") => format!("{name} {after} has other bytes"),
                Some("conversion") => format!("{name} is unpacked otherwise"),
                _ => format!("{name} is converted by other rules"),
            }
        }
        "copy" => files().unwrap_or_else(|| "files changed".into()),
        "take" => format!("the stage of {} changed", new.get("from")),
        "configure" if old.get("configure") == new.get("configure") => "native effects have other versions".into(),
        "configure" => "the packages that it sets up changed".into(),
        _ => format!("{} changed", shown(new)),
    }
}

/// Compares what a selection holds with an older layer of the same files.
fn changed_files(bench: &Bench<'_>, layer: &Digest, files: &Files, selection: &Selection) -> Option<String> {
    let blob = bench.store.open(layer).ok()??;
    let old = listing(io::BufReader::new(blob)).ok()?;
    let to = files.to.relative();
    let mut new: BTreeMap<String, String> = BTreeMap::new();
    for selected in &selection.entries {
        let path =
            [to, selected.path.as_str()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        match &selected.kind {
            SelectedKind::Dir => {}
            SelectedKind::Symlink { target } => {
                new.insert(path, format!("-> {target}"));
            }
            SelectedKind::File { digest, executable, .. } => {
                let mode = files.mode.unwrap_or(if *executable { 0o755 } else { 0o644 });
                new.insert(path, format!("{mode:o} {digest}"));
            }
        }
    }
    // A layer may hold more than these files.
    let old: BTreeMap<&String, &String> = old
        .iter()
        .filter(|(path, _)| path.as_str() == to || to.is_empty() || path.starts_with(&format!("{to}/")))
        .collect();
    let name = |path: &String| path.strip_prefix(to).unwrap_or(path).trim_start_matches('/').to_owned();
    let list = |what: &str, paths: Vec<String>| {
        let more = paths.len().saturating_sub(5);
        let mut names = paths.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        if more > 0 {
            names.push_str(&format!(" and {more} more"));
        }
        (!paths.is_empty()).then(|| format!("{} {what}: {names}", paths.len()))
    };
    let changed =
        new.iter().filter(|(path, it)| old.get(path).is_some_and(|old| old != it)).map(|(path, _)| name(path));
    let added = new.keys().filter(|path| !old.contains_key(path)).map(name);
    let removed = old.keys().filter(|path| !new.contains_key(**path)).map(|path| name(path));
    let parts: Vec<String> =
        [list("changed", changed.collect()), list("added", added.collect()), list("removed", removed.collect())]
            .into_iter()
            .flatten()
            .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The files and links of a layer, each with its mode and digest, or its target.
fn listing(blob: impl io::BufRead + Send) -> io::Result<BTreeMap<String, String>> {
    let reader = layers::format::decompress(blob, &layers::format::Limits::default()).map_err(io::Error::other)?;
    let mut archive = tar::Archive::new(reader);
    let mut found = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                let mode = entry.header().mode()?;
                let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
                let mut chunk = vec![0; 64 << 10];
                loop {
                    match entry.read(&mut chunk)? {
                        0 => break,
                        count => sha2::Digest::update(&mut hasher, &chunk[..count]),
                    }
                }
                let digest = Digest::from_bytes(sha2::Digest::finalize(hasher).into());
                found.insert(path, format!("{mode:o} {digest}"));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.map(|target| target.to_string_lossy().into_owned());
                found.insert(path, format!("-> {}", target.unwrap_or_default()));
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: u32, layers: &[&[&[(&str, &str)]]]) -> String {
        let mut hasher = KeyHasher::new("image", 1);
        hasher.field("layer-format", format);
        for layer in layers {
            hasher.field("layer", "");
            for (name, value) in layer.iter().copied().flatten() {
                hasher.field(name, value);
            }
        }
        hasher.finish().1
    }

    fn told(old: &str, new: &str, labels: &[&str]) -> String {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let (reasons, layers) = compare(old, new, &labels, &|_, _, _| None);
        let layers = layers.iter().map(|layer| {
            format!("{} {}: {}", if layer.hit { "hit" } else { "miss" }, layer.label, layer.reasons.join("; "))
        });
        reasons.into_iter().chain(layers).collect::<Vec<_>>().join("\n")
    }

    const NUMPY: &[(&str, &str)] = &[("name", "numpy-2.1.0-cp313-cp313-x.whl"), ("archive", "1"), ("version", "1")];
    const NEWER: &[(&str, &str)] = &[("name", "numpy-2.2.0-cp313-cp313-x.whl"), ("archive", "2"), ("version", "1")];
    const CURL: &[(&str, &str)] = &[("name", "curl_8.14.1-2_amd64.deb"), ("archive", "3"), ("version", "1")];
    const OTHER: &[(&str, &str)] = &[("name", "curl_8.14.1-2_amd64.deb"), ("archive", "4"), ("version", "1")];
    const JQ: &[(&str, &str)] = &[("name", "jq_1%3a1.7-1_amd64.deb"), ("archive", "5"), ("version", "1")];

    #[test]
    fn a_changed_package_is_named_with_both_versions_and_other_layers_are_hits() {
        let (old, new) = (text(1, &[&[CURL], &[NUMPY]]), text(1, &[&[CURL], &[NEWER]]));
        assert_eq!(told(&old, &new, &["debian", "python"]), "hit debian: \nmiss python: numpy 2.1.0 -> 2.2.0");
        assert_eq!(told(&old, &old, &["debian", "python"]), "hit debian: \nhit python: ");
    }

    #[test]
    fn packages_that_come_go_or_have_other_bytes_are_named() {
        let (old, new) = (text(1, &[&[CURL, JQ]]), text(1, &[&[OTHER, NUMPY]]));
        let expected = "miss x: curl 8.14.1-2 has other bytes; numpy 2.1.0 is new; jq 1:1.7-1 is gone";
        assert_eq!(told(&old, &new, &["x"]), expected);
    }

    #[test]
    fn packages_that_move_between_layers_are_told_apart_from_changed_ones() {
        let (old, new) = (text(1, &[&[CURL, JQ], &[NUMPY]]), text(1, &[&[CURL], &[JQ, NUMPY]]));
        let expected = "miss a: other packages share its layer\nmiss b: other packages share its layer";
        assert_eq!(told(&old, &new, &["a", "b"]), expected);
    }

    #[test]
    fn what_concerns_all_layers_is_told_once() {
        let (old, new) = (text(1, &[&[CURL]]), text(2, &[&[CURL]]));
        assert_eq!(told(&old, &new, &["a"]), "layer-format: 1 -> 2\nmiss a: ");
    }

    #[test]
    fn no_text_makes_it_panic() {
        let good = text(1, &[&[CURL, JQ], &[NUMPY]]);
        for at in 0..good.len() {
            told(&good[..at], &good, &["a", "b"]);
            told(&good, &good[at..], &["a"]);
        }
    }
}
