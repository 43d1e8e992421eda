//! A layer that is put together before its stage was walked.
//!
//! ```text
//! walk    [ all indexes ][ collisions ][ skeletons, layer by layer ] ─▶ keys ─▶ the layer's record is there
//! guess   [ wheel converted ][ the layer as it was, with the new fragment ][ it is sent ] ─▶ record
//! ```
//!
//! Where an archive changed, its layer mostly holds the directories that it held before. So it is put together from the text of
//! its last key, beside the walk. The walk decides: a layer that it does not come to is in no image, and what went wrong with a
//! guess is found out, and told, by who makes the layer.

use std::collections::BTreeMap;

use layers::encode::Entry;
use layers::lower::Resolved;
use layers::op::Op;
use layers::{ImagePath, Key};

use super::EngineError;
use super::convert::Drops;
use super::later::NEIGHBOURS;
use super::layer::parts_of;
use super::local::{LayerJob, LayerRecord, Local};
use super::skeleton::skeleton;

/// A layer that holds other archives than it held last.
#[derive(Debug)]
pub struct Changed {
    label: String,
    /// Its archives, by the keys of their fragments.
    archives: Vec<Key>,
    /// The directories that it held.
    dirs: BTreeMap<ImagePath, Entry>,
}

impl Local<'_> {
    /// The one layer of a stage that holds archives which were [missing](Local::survey), where it holds nothing else than archives,
    /// and beside them what it held last. `last` are the stage's layers as they were.
    pub fn changed(&self, resolved: &Resolved, last: &[(Key, LayerRecord)]) -> Result<Option<Changed>, EngineError> {
        let key = |op: &Op| match op {
            Op::Unpack { archive, conversion } => Some(self.key_of(archive, conversion, &Drops::new())),
            _ => None,
        };
        let is_new = |key: Option<Key>| key.is_some_and(|key| self.was_missing(&key));
        let has_new = |at: &usize| resolved.layers[*at].ops.iter().any(|op| is_new(key(op)));
        let mut changed = (0..resolved.layers.len()).filter(has_new);
        let (Some(at), None, true) = (changed.next(), changed.next(), last.len() == resolved.layers.len()) else {
            return Ok(None);
        };
        let layer = &resolved.layers[at];
        let Some(archives) = layer.ops.iter().map(key).collect::<Option<Vec<Key>>>() else { return Ok(None) };
        let Some(known) = self.store.recall(&last[at].0)? else { return Ok(None) };
        let (dirs, blobs) = parts_of(&known.text);
        let mut left = NEIGHBOURS;
        for archive in archives.iter().filter(|key| !self.was_missing(key)) {
            // Another one than last time leaves paths to other archives, or did.
            let fragment = self.find_fragment(archive)?.filter(|fragment| blobs.contains(&fragment.blob));
            let rest = fragment.and_then(|fragment| left.checked_sub(fragment.layout.tar_size));
            let Some(rest) = rest else { return Ok(None) };
            left = rest;
        }
        let changed = Changed { label: layer.label.clone(), archives, dirs };
        Ok((blobs.len() == changed.archives.len()).then_some(changed))
    }

    /// What such a layer probably is, once its archives are converted.
    pub fn guess(&self, changed: &Changed) -> Result<Option<LayerJob>, EngineError> {
        let fragments = changed.archives.iter().map(|key| self.find_fragment(key));
        let Some(fragments) = fragments.collect::<Result<Option<Vec<_>>, EngineError>>()? else { return Ok(None) };
        let skeleton = skeleton(&fragments, &BTreeMap::new(), &|path| changed.dirs.get(path));
        Ok(Some(self.layer_of(&changed.label, skeleton, fragments)))
    }
}
