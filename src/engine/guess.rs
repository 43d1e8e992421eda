//! Layers that are put together before their stage was walked.
//!
//! ```text
//! walk    [ all indexes ][ collisions ][ skeletons, layer by layer ] ─▶ keys ─▶ the layer's record is there
//! guess   [ wheel converted ][ the layer as it was, with the new fragment ][ it is sent ] ─▶ record
//! ```
//!
//! Where one archive of a layer changed, its layer mostly holds the directories that it held before. So it is put together from
//! the text of its last key, beside the walk. The walk decides: a layer that it does not come to is in no image, and what went
//! wrong with a guess is found out, and told, by who makes the layer.

use std::collections::BTreeMap;

use layers::Key;
use layers::lower::Resolved;
use layers::op::{LayerPlan, Op};

use super::EngineError;
use super::convert::Drops;
use super::layer::parts_of;
use super::local::{LayerJob, LayerRecord, Local, Ready};
use super::skeleton::skeleton;

impl Local<'_> {
    /// Puts the layers of a stage together that hold an archive which was [missing](Local::survey), as far as they can be guessed
    /// from the keys that the stage's layers had last. `ready` hears of each, as in [`Local::assemble`].
    pub fn guess(&self, resolved: &Resolved, last: &[(Key, LayerRecord)], ready: &Ready<'_>) {
        if last.len() != resolved.layers.len() {
            return;
        }
        let guessed = resolved.layers.iter().zip(last).filter_map(|(layer, (key, _))| self.guessed(layer, key).ok()?);
        let jobs: Vec<LayerJob> = guessed.collect();
        // The walk does it once more, and tells what is wrong.
        let _ = self.assemble(&jobs.iter().collect::<Vec<_>>(), 1, ready);
    }

    /// The layer that may come of this plan, if something new is in it and nothing but archives. `last` is the key that it had.
    fn guessed(&self, layer: &LayerPlan, last: &Key) -> Result<Option<LayerJob>, EngineError> {
        let mut keys = Vec::with_capacity(layer.ops.len());
        for op in &layer.ops {
            let Op::Unpack { archive, conversion } = op else { return Ok(None) };
            keys.push(self.key_of(archive, conversion, &Drops::new()));
        }
        let is_new: Vec<bool> = keys.iter().map(|key| self.was_missing(key)).collect();
        if !is_new.contains(&true) {
            return Ok(None);
        }
        let Some(known) = self.store.recall(last)? else { return Ok(None) };
        let (dirs, blobs) = parts_of(&known.text);
        let mut fragments = Vec::with_capacity(keys.len());
        for (key, is_new) in keys.iter().zip(is_new) {
            let Some(fragment) = self.find_fragment(key)? else { return Ok(None) };
            // Another one than last time: it leaves paths to other archives.
            if !is_new && !blobs.contains(&fragment.blob) {
                return Ok(None);
            }
            fragments.push(fragment);
        }
        let skeleton = skeleton(&fragments, &BTreeMap::new(), &|path| dirs.get(path));
        Ok((blobs.len() == fragments.len()).then(|| self.layer_of(&layer.label, skeleton, fragments)))
    }
}
