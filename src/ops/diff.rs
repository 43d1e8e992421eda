//! `diff`: what differs between two images, wherever they are.
//!
//! Layers that both have (by digest) are not fetched to compare them. What follows from that is said, not hidden: a file
//! that only one side's own layers have is then *written* by that side, because an equal layer that nobody read may have
//! another file there. Where all layers are at hand, or `whole` asks for it, everything is told exactly.

use std::collections::{BTreeMap, BTreeSet};

use layers::Platform;
use serde::Serialize;
use serde_json::{Value, json};

use super::inspect::{Layer, Named, Opened, layers, single};
use crate::error::Failure;
use crate::places::contents::{Files, Item, Listing, Package, STATUS};
use crate::places::{Held, Reach};
use crate::registry::AnyDigest;

/// What differs between an image `a` and an image `b`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The first image.
    pub a: Side,
    /// The second image.
    pub b: Side,
    /// Whether their manifests are the same, byte for byte.
    pub equal: bool,
    /// Fields of the configuration, history and layers apart.
    pub config: Vec<Field>,
    /// Layers: those of both, of `a` alone and of `b` alone.
    pub layers: Vec<LayerDifference>,
    /// Files.
    pub files: Vec<FileDifference>,
    /// Debian packages.
    pub packages: Vec<PackageDifference>,
    /// Python distributions.
    pub distributions: Vec<PackageDifference>,
    /// Equal layers that were not read.
    pub unread: Vec<String>,
}

/// One of the two images.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// As it was named.
    pub place: String,
    /// The digest of its manifest for the platform.
    pub digest: String,
}

/// A field of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Field {
    /// Its path, parted by dots; a variable of `Env` by its name.
    pub path: String,
    /// In `a`; null where it is not there.
    pub a: Value,
    /// In `b`.
    pub b: Value,
}

/// A layer and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerDifference {
    /// `both`, `a` or `b`.
    #[serde(rename = "in")]
    pub within: &'static str,
    /// The layer.
    #[serde(flatten)]
    pub layer: Layer,
}

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only `b` has it.
    Added,
    /// Only `a` has it.
    Removed,
    /// Both have it, and it is not the same.
    Changed,
    /// A layer of `a` alone has it; whether an equal layer has it too was not read.
    WrittenInA,
    /// A layer of `b` alone has it; whether an equal layer has it too was not read.
    WrittenInB,
    /// A layer of `a` alone deletes it from equal layers that were not read.
    DeletedInA,
    /// A layer of `b` alone deletes it from equal layers that were not read.
    DeletedInB,
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileDifference {
    /// The path in the image.
    pub path: String,
    /// How.
    pub change: Change,
    /// In `a`.
    pub a: Option<Item>,
    /// In `b`.
    pub b: Option<Item>,
}

/// A package whose versions differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageDifference {
    /// Its name.
    pub name: String,
    /// Its architecture; empty for Python.
    pub architecture: String,
    /// The version in `a`.
    pub a: Option<String>,
    /// The version in `b`.
    pub b: Option<String>,
}

/// Compares two images for a platform. `whole` reads equal layers too, wherever they are.
pub fn diff(
    reach: &Reach<'_>,
    (name_a, a): (&Named, Held),
    (name_b, b): (&Named, Held),
    platform: Platform,
    whole: bool,
) -> Result<Difference, Failure> {
    let (a, opened_a) = single(reach, name_a, a, platform)?;
    let (b, opened_b) = single(reach, name_b, b, platform)?;
    let (digests_a, digests_b) = (digests(&opened_a), digests(&opened_b));
    let mut unread = BTreeSet::new();
    if !whole {
        for layer in opened_a.layers.iter().filter(|layer| digests_b.contains(&layer.digest)) {
            if !a.supply.has(layer)? && !b.supply.has(layer)? {
                unread.insert(layer.digest);
            }
        }
    }
    let mut listings: BTreeMap<AnyDigest, Listing> = BTreeMap::new();
    if opened_a.layers != opened_b.layers {
        read(reach, &[(&a, &opened_a), (&b, &opened_b)], &unread, &mut listings)?;
        // One database of all packages, written by one side over the other's: without the latter nothing can be said.
        let has = |opened: &Opened| {
            opened.layers.iter().filter_map(|it| listings.get(&it.digest)).any(|it| it.items.contains_key(STATUS))
        };
        if has(&opened_a) != has(&opened_b) {
            unread.clear();
            read(reach, &[(&a, &opened_a), (&b, &opened_b)], &unread, &mut listings)?;
        }
    }
    let merged = |opened: &Opened| Files::of(opened.layers.iter().filter_map(|layer| listings.get(&layer.digest)));
    let (files_a, files_b) = (merged(&opened_a), merged(&opened_b));
    let both = |layer: &&Layer, others: &BTreeSet<AnyDigest>| others.iter().any(|it| it.to_string() == layer.digest);
    let (layers_a, layers_b) = (layers(&opened_a), layers(&opened_b));
    let of_a = layers_a.iter().map(|layer| (if both(&layer, &digests_b) { "both" } else { "a" }, layer));
    let of_b = layers_b.iter().filter(|layer| !both(layer, &digests_a)).map(|layer| ("b", layer));
    Ok(Difference {
        equal: opened_a.document.digest == opened_b.document.digest,
        config: fields(&opened_a.config, &opened_b.config),
        layers: of_a.chain(of_b).map(|(within, layer)| LayerDifference { within, layer: layer.clone() }).collect(),
        files: files(&files_a, &files_b, unread.is_empty()),
        packages: packages(&files_a.debian(), &files_b.debian()),
        distributions: packages(&files_a.python(), &files_b.python()),
        unread: unread.iter().map(AnyDigest::to_string).collect(),
        a: Side { place: name_a.to_string(), digest: opened_a.document.digest.to_string() },
        b: Side { place: name_b.to_string(), digest: opened_b.document.digest.to_string() },
    })
}

fn digests(opened: &Opened) -> BTreeSet<AnyDigest> {
    opened.layers.iter().map(|layer| layer.digest).collect()
}

/// Lists all layers but those of `unread`.
fn read(
    reach: &Reach<'_>,
    sides: &[(&Held, &Opened)],
    unread: &BTreeSet<AnyDigest>,
    listings: &mut BTreeMap<AnyDigest, Listing>,
) -> Result<(), Failure> {
    for (at, (held, opened)) in sides.iter().enumerate() {
        for layer in &opened.layers {
            if unread.contains(&layer.digest) || listings.contains_key(&layer.digest) {
                continue;
            }
            // What the other side has at hand need not be fetched.
            let other = sides[1 - at].0;
            let from = if !held.supply.has(layer)? && other.supply.has(layer)? { other } else { held };
            listings.insert(layer.digest, reach.listing(from, layer)?);
        }
    }
    Ok(())
}

fn files(a: &Files, b: &Files, whole: bool) -> Vec<FileDifference> {
    let mut found = Vec::new();
    let paths: BTreeSet<&String> = a.items.keys().chain(b.items.keys()).collect();
    for path in paths {
        let (in_a, in_b) = (a.items.get(path), b.items.get(path));
        let change = match (in_a, in_b) {
            (Some(one), Some(other)) if one == other => continue,
            (Some(_), Some(_)) => Change::Changed,
            (Some(_), None) if whole || deletes(b, path) => Change::Removed,
            (None, Some(_)) if whole || deletes(a, path) => Change::Added,
            (Some(_), None) => Change::WrittenInA,
            (None, _) => Change::WrittenInB,
        };
        found.push(FileDifference { path: path.clone(), change, a: in_a.cloned(), b: in_b.cloned() });
    }
    if !whole {
        let mut only = |one: &Files, other: &Files, change| {
            for path in one.deleted.iter().filter(|path| !deletes(other, path) && !other.items.contains_key(*path)) {
                found.push(FileDifference { path: path.clone(), change, a: None, b: None });
            }
        };
        only(a, b, Change::DeletedInA);
        only(b, a, Change::DeletedInB);
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn deletes(files: &Files, path: &str) -> bool {
    files
        .deleted
        .iter()
        .any(|it| path == it || path.strip_prefix(it.as_str()).is_some_and(|rest| rest.starts_with('/')))
}

fn packages(a: &[Package], b: &[Package]) -> Vec<PackageDifference> {
    let by_name = |list: &[Package]| {
        let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for it in list {
            found.entry((it.name.clone(), it.architecture.clone())).or_default().push(it.version.clone());
        }
        found.into_iter().map(|(key, versions)| (key, versions.join(", "))).collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (by_name(a), by_name(b));
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let differing = names.into_iter().filter(|key| a.get(*key) != b.get(*key));
    differing
        .map(|key| PackageDifference {
            name: key.0.clone(),
            architecture: key.1.clone(),
            a: a.get(key).cloned(),
            b: b.get(key).cloned(),
        })
        .collect()
}

fn fields(a: &Value, b: &Value) -> Vec<Field> {
    let flat = |value: &Value| {
        let mut out = BTreeMap::new();
        flatten("", value, &mut out);
        out
    };
    let (a, b) = (flat(a), flat(b));
    let paths: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differing = paths.into_iter().filter(|path| a.get(*path) != b.get(*path));
    let value = |side: &BTreeMap<String, Value>, path: &String| side.get(path).cloned().unwrap_or(Value::Null);
    differing.map(|path| Field { path: path.clone(), a: value(&a, path), b: value(&b, path) }).collect()
}

fn flatten(path: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(map) if !map.is_empty() || path.is_empty() => {
            // Layers are compared as layers.
            let own =
                map.iter().filter(|(name, _)| !path.is_empty() || !["rootfs", "history"].contains(&name.as_str()));
            own.for_each(|(name, value)| flatten(&below(name), value, out));
        }
        Value::Array(list) if path == "config.Env" => {
            for line in list.iter().filter_map(Value::as_str) {
                let (name, value) = line.split_once('=').unwrap_or((line, ""));
                out.insert(below(name), json!(value));
            }
        }
        other => {
            out.insert(path.to_owned(), other.clone());
        }
    }
}

impl Difference {
    /// Whether the two images are the same to somebody who runs them: files, packages and configuration.
    pub fn is_empty(&self) -> bool {
        self.config.is_empty() && self.files.is_empty() && self.packages.is_empty() && self.distributions.is_empty()
    }
}

/// Compressed bytes of layers that only `b` has: what a push of `b` would send where `a` is.
pub fn new_bytes(difference: &Difference) -> u64 {
    difference.layers.iter().filter(|it| it.within == "b").map(|it| it.layer.size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_compared_field_by_field() {
        let a = json!({"created": "x", "config": {"Env": ["A=1", "B=2"], "Labels": {"l": "1"}, "Cmd": ["a"]}, "history": [1]});
        let b =
            json!({"created": "x", "config": {"Env": ["B=2", "A=3"], "Labels": {"l": "1", "m": ""}}, "history": [2]});
        let shown: Vec<String> = fields(&a, &b).iter().map(|it| format!("{} {} {}", it.path, it.a, it.b)).collect();
        assert_eq!(shown, ["config.Cmd [\"a\"] null", "config.Env.A \"1\" \"3\"", "config.Labels.m null \"\""]);
    }

    #[test]
    fn what_was_not_read_is_not_claimed() {
        let item = |text: &str| Item {
            kind: "file".into(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: text.len() as u64,
            digest: Some(layers::Digest::of(text.as_bytes())),
            target: None,
            xattrs: BTreeMap::new(),
        };
        let side = |items: &[(&str, &str)], deleted: &[&str]| Files {
            items: items.iter().map(|(path, text)| ((*path).to_owned(), item(text))).collect(),
            deleted: deleted.iter().map(|it| (*it).to_owned()).collect(),
            ..Files::default()
        };
        let a = side(&[("/same", "1"), ("/changed", "1"), ("/mine", "1"), ("/gone/x", "1")], &["/old"]);
        let b = side(&[("/same", "1"), ("/changed", "2"), ("/yours", "1")], &["/gone"]);
        let shown =
            |whole| files(&a, &b, whole).iter().map(|it| format!("{} {:?}", it.path, it.change)).collect::<Vec<_>>();
        assert_eq!(shown(true), ["/changed Changed", "/gone/x Removed", "/mine Removed", "/yours Added"]);
        assert_eq!(
            shown(false),
            [
                "/changed Changed",
                "/gone DeletedInB",
                "/gone/x Removed",
                "/mine WrittenInA",
                "/old DeletedInA",
                "/yours WrittenInB"
            ]
        );
    }
}
