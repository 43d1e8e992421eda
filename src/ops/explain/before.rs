//! The last build of an image, as what it recorded tells of it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use layers::ImagePath;
use layers::encode::Entry;
use layers::lower::Resolved;
use layers::op::{Archive, Conversion, Op, Origin};

use super::changed::{Asked, Changed, read_layer};
use super::reasons::{Known, LOST, Outcome};
use super::text::{Part, archive_name};
use crate::engine::fragments::known_fragment;
use crate::engine::layer::{Parts, parts_of};
use crate::engine::local::LayerRecord;
use crate::engine::look::Seen;
use crate::ops::Bench;
use crate::ops::key::ImageRecord;
use crate::ops::latest::Left;

/// The last build, beside what is wanted now. What cannot be read is not known.
pub(super) struct Before<'a> {
    pub bench: &'a Bench<'a>,
    pub resolved: &'a Resolved,
    pub record: Option<ImageRecord>,
    /// What the last build left that made layers. It may be an earlier one: layers are compared by their digests.
    pub left: Option<Left>,
    /// What a build would come to, as far up as that is known.
    pub seen: Vec<Seen>,
    /// The parts of layers that were asked for.
    pub parts: RefCell<HashMap<usize, Option<Rc<Parts>>>>,
}

impl Before<'_> {
    fn layer(&self, at: usize) -> Option<&LayerRecord> {
        self.record.as_ref()?.layers.get(at)
    }

    /// The cache elsewhere that told of it.
    pub fn from(&self) -> Option<&str> {
        self.record.as_ref()?.from.as_deref()
    }

    /// Whether a build asks for a layer by the key that it has here.
    fn is_kept(&self, layer: &LayerRecord) -> bool {
        self.left.as_ref().is_some_and(|left| left.layers.iter().any(|(_, kept)| kept == layer))
    }

    /// Why a layer is made of other parts than it was, as far as that can be said.
    fn other(&self, at: usize, (old_dirs, old): &Parts, (dirs, new): &Parts) -> Vec<String> {
        let mut why = Vec::new();
        for op in self.resolved.layers[at].ops() {
            let Op::Unpack { archive, conversion: conversion @ (Conversion::Deb { .. } | Conversion::Wheel { .. }) } =
                op
            else {
                continue;
            };
            let Ok(Some(whole)) = known_fragment(self.bench.store, archive, conversion) else { continue };
            let what = match (old.contains(&whole), new.contains(&whole)) {
                (true, false) => "leaves files to others that have them, too, and did not",
                (false, true) => "has files again that it left to others",
                _ => continue,
            };
            let (name, version) = archive_name(&archive.name);
            why.push(format!("{name} {version} {what}"));
        }
        if !why.is_empty() {
            // Directories follow from that.
            return why;
        }
        let shown = |dir: Option<&Entry>| match dir {
            Some(dir) => format!("{:o} {}:{}", dir.mode, dir.uid, dir.gid),
            None => "nothing".to_owned(),
        };
        let all: BTreeSet<&ImagePath> = old_dirs.keys().chain(dirs.keys()).collect();
        let sides = all.into_iter().map(|path| (path, shown(old_dirs.get(path)), shown(dirs.get(path))));
        let sides: Vec<_> = sides.filter(|(_, before, after)| before != after).collect();
        why.extend(
            sides.iter().take(3).map(|(path, before, after)| format!("its directory {path}: {before} -> {after}")),
        );
        if sides.len() > 3 {
            why.push(format!("{} more of its directories", sides.len() - 3));
        }
        why
    }

    fn parts(&self, at: usize) -> Option<Rc<Parts>> {
        let read = || {
            let record = self.layer(at)?;
            let (key, _) = self.left.as_ref()?.layers.iter().find(|(_, layer)| layer == record)?;
            Some(Rc::new(parts_of(&self.bench.store.recall(key).ok()??.text)))
        };
        // Each package of a layer asks.
        self.parts.borrow_mut().entry(at).or_insert_with(read).clone()
    }
}

impl Known for Before<'_> {
    fn files(&self, asked: &Asked<'_>) -> Option<Changed> {
        let mut copies = self.resolved.layers[asked.layer].ops().filter_map(|op| match op {
            Op::Copy(files) => Some(files),
            _ => None,
        });
        let selection = self.bench.context.select(copies.nth(asked.number)?).ok()?;
        let old = read_layer(self.bench.store, &self.layer(asked.old)?.digest)?;
        Changed::between(&old, asked.before, &selection)
    }

    fn outcome(&self, layer: usize, home: Option<usize>) -> Option<Outcome> {
        let seen = self.seen.get(layer)?;
        let old = || home.and_then(|home| self.parts(home));
        Some(match seen {
            Seen::Found(record) if home.and_then(|home| self.layer(home)) == Some(record) => Outcome::Kept,
            Seen::Found(_) => Outcome::Earlier,
            Seen::Missing(parts) => Outcome::Made(match old() {
                Some(old) if *old == *parts => vec![LOST.to_owned()],
                Some(old) => self.other(layer, &old, parts),
                None => Vec::new(),
            }),
            // Whatever the others come to, it is another layer.
            Seen::Open(parts) => Outcome::Made(Some(self.other(layer, &*old()?, parts)).filter(|why| !why.is_empty())?),
        })
    }

    fn cache(&self, layer: usize) -> Option<&str> {
        let layer = self.layer(layer)?;
        self.from().filter(|_| !self.is_kept(layer))
    }

    fn is_lost(&self, layer: usize) -> bool {
        let held = |layer: &LayerRecord| self.bench.store.has(&layer.digest).ok().flatten();
        self.layer(layer).is_some_and(|layer| held(layer) != Some(layer.size))
    }

    fn has_dir(&self, layer: usize, path: &str) -> Option<bool> {
        Some(self.parts(layer)?.0.contains_key(&ImagePath::new(path).ok()?))
    }

    fn left_paths(&self, layer: usize, archive: &Part) -> bool {
        // One that left nothing is in its layer as it is.
        let found = || {
            let digest = archive.get("archive").parse().ok()?;
            let is = Archive { name: archive.value().to_owned(), digest, size: None, origin: Origin::Built };
            let whole = known_fragment(self.bench.store, &is, &archive.conversion()?).ok()??;
            Some(!self.parts(layer)?.1.contains(&whole))
        };
        found().unwrap_or(false)
    }
}
