//! The key of a whole image: everything that determines its layers, asked before anything is opened.

use std::collections::HashMap;

use cache::Store;
use layers::encode::{Compression, LAYER_FORMAT};
use layers::lock::Lock;
use layers::lower::{self, PinnedBase, Resolved};
use layers::oci::BaseParts;
use layers::op::{LayerPlan, Op};
use layers::source::Python;
use layers::{Digest, Key, KeyHasher, Platform, StageId};
use serde::{Deserialize, Serialize};

use super::Bench;
use crate::debian::{effects, gate, scripts};
use crate::engine::index::INDEX_FORMAT;
use crate::engine::local::LayerRecord;
use crate::engine::{base, convert, run};
use crate::error::Failure;
use crate::python::bytecode::{self, imports};

/// The layers that an image of one platform came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its own layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// Debian packages in it: name, version, architecture.
    pub packages: Vec<(String, String, String)>,
    /// The base below: its manifest's digest and what is inherited from it.
    pub base: Option<(Digest, BaseParts)>,
}

impl ImageRecord {
    /// Whether every layer is still in the store. Those of a registry's image need not be: they can be had where it is.
    pub fn is_whole(&self, store: &Store, resolved: &Resolved) -> Result<bool, cache::CacheError> {
        let base = self.base.iter().filter(|_| matches!(resolved.base, Some(PinnedBase::Layout(_))));
        let base = base.flat_map(|(_, parts)| &parts.layers).map(|layer| (layer.digest, layer.size));
        for (digest, size) in self.layers.iter().map(|layer| (layer.digest, layer.size)).chain(base) {
            if store.has(&digest)? != Some(size) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Works out the keys of images. What images have in common is worked out once: a stage's layers follow from what it
/// stands on, so they are the same in every image that stands on it.
pub struct Keys<'a> {
    bench: &'a Bench<'a>,
    lock: &'a Lock,
    stages: HashMap<(StageId, Platform), String>,
    taken: HashMap<(StageId, Platform), Key>,
}

impl<'a> Keys<'a> {
    /// Of images that stand on this lock.
    pub fn new(bench: &'a Bench<'a>, lock: &'a Lock) -> Keys<'a> {
        Keys { bench, lock, stages: HashMap::new(), taken: HashMap::new() }
    }

    /// The key of a resolved stage, and its text.
    pub fn image(&mut self, platform: Platform, resolved: &Resolved) -> Result<(Key, String), Failure> {
        let bench = self.bench;
        let mut hasher = KeyHasher::new("image", 1);
        hasher.field("layer-format", LAYER_FORMAT).field("index", INDEX_FORMAT).field("platform", platform);
        if bench.compression != Compression::Gzip {
            hasher.field("compression", bench.compression);
        }
        let versions = (scripts::VERSION, gate::VERSION, effects::versions([]));
        hasher.field("effects", format!("{versions:?}"));
        match &resolved.base {
            Some(PinnedBase::Registry { manifest, .. }) => {
                hasher.field("base", manifest);
            }
            Some(layout) => {
                let base = base::open(&bench.project.home, layout, platform, bench.store)?;
                hasher.field("base", base.manifest);
            }
            None => {}
        }
        hasher.list("allow-missing", resolved.allow_missing.iter());
        for layers in resolved.layers.chunk_by(|one, next| one.stage == next.stage) {
            let stage = (layers[0].stage, platform);
            if !self.stages.contains_key(&stage) {
                let mut lines = KeyHasher::lines();
                for layer in layers {
                    self.layer(&mut lines, platform, layer)?;
                }
                self.stages.insert(stage, lines.text());
            }
            hasher.append(&self.stages[&stage]);
        }
        Ok(hasher.finish())
    }

    fn layer(&mut self, hasher: &mut KeyHasher, platform: Platform, layer: &LayerPlan) -> Result<(), Failure> {
        hasher.field("layer", "");
        for op in &layer.ops {
            self.op(hasher, platform, op).map_err(|failure| failure.located(layer.at.clone()))?;
        }
        Ok(())
    }

    fn op(&mut self, hasher: &mut KeyHasher, platform: Platform, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Unpack { archive, conversion } => {
                hasher.field("name", &archive.name).field("archive", archive.digest);
                hasher.field("conversion", conversion.to_json()).field("version", convert::version(conversion));
            }
            Op::Copy(files) => {
                let selection = self.bench.context.select(files)?;
                hasher.field("copy", files.to_json()).field("selection", selection.digest);
            }
            Op::Take(take) => {
                let key = self.taken(take.stage, run::platform_of(take, platform))?;
                hasher.field("take", key.0).field("from", &take.path).field("to", &take.to);
                if let Some(owner) = take.owner {
                    hasher.field("owner", format!("{}:{}", owner.uid, owner.gid));
                }
            }
            Op::Compile(wanted) => {
                let versions = (bytecode::VERSION, imports::VERSION);
                hasher.field("compile", wanted.to_json()).field("versions", format!("{versions:?}"));
            }
            Op::Configure(configure) => {
                let names = configure.packages.iter().map(|archive| archive.name.split('_').next().unwrap_or_default());
                hasher.field("configure", configure.to_json());
                hasher.field("effects", format!("{:?}", effects::versions(names)));
            }
            Op::Run(step) => {
                hasher.field("run", step.run.to_json()).field("version", run::VERSION);
                for input in &step.inputs {
                    self.op(hasher, platform, input)?;
                }
            }
            Op::Dir(_) | Op::Link(_) | Op::Inline(_) | Op::AddUser(_) => {
                hasher.field("op", op.to_json());
            }
        }
        Ok(())
    }

    fn taken(&mut self, stage: StageId, platform: Platform) -> Result<Key, Failure> {
        if let Some(known) = self.taken.get(&(stage, platform)) {
            return Ok(*known);
        }
        let bench = self.bench;
        let lock_file = |python: &Python| bench.context.lock_digest(python);
        let other = lower::lower(&bench.project.plan, stage, self.lock, platform, &lock_file)?;
        let (key, _) = self.image(platform, &other)?;
        self.taken.insert((stage, platform), key);
        Ok(key)
    }
}
