//! The last build of an image, as what it recorded tells of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use layers::encode::Entry;
use layers::lower::Resolved;
use layers::op::{Archive, Op, Origin};
use layers::{Digest, ImagePath};

use super::changed::{Asked, Changed, read_layer};
use super::reasons::Known;
use super::text::Part;
use crate::engine::fragments::known_fragment;
use crate::engine::layer::parts_of;
use crate::engine::local::LayerRecord;
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
    /// The parts of layers that were asked for.
    pub parts: RefCell<HashMap<usize, Option<Rc<Parts>>>>,
}

/// The directories and the fragments of a layer.
type Parts = (BTreeMap<ImagePath, Entry>, Vec<Digest>);

impl Before<'_> {
    fn layer(&self, at: usize) -> Option<&LayerRecord> {
        self.record.as_ref()?.layers.get(at)
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
