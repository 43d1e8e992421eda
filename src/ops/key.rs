//! The key of a whole image: everything that determines its layers, asked before anything is opened.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cache::{CacheError, Store};
use layers::encode::{Compression, LAYER_FORMAT};
use layers::lock::Lock;
use layers::lower::{PinnedBase, Resolved};
use layers::oci::BaseParts;
use layers::op::{Conversion, LayerPlan, Op};
use layers::{Digest, Key, KeyHasher, Platform, StageId};
use serde::{Deserialize, Serialize};

use super::Bench;
use crate::debian::{effects, gate, scripts};
use crate::engine::foundation::{self, Cut};
use crate::engine::index::INDEX_FORMAT;
use crate::engine::local::LayerRecord;
use crate::engine::run::Ran;
use crate::engine::sdists::Way;
use crate::engine::{base, convert, dpkg, layer, run, sdists};
use crate::error::Failure;
use crate::python::bytecode::{self, imports};

/// The layers that an image of one platform came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its own layers, bottom first.
    pub layers: Vec<LayerRecord>,
    /// Debian packages in it: name, version, architecture.
    pub packages: Vec<(String, String, String)>,
    /// The commands whose outcome it holds parts of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Ran>,
    /// The base below: its manifest's digest and what is inherited from it.
    pub base: Option<(Digest, BaseParts)>,
    /// The cache elsewhere that told of it, as it was written; `None` where it was made here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl ImageRecord {
    /// Whether every layer of its own is still in the store. Those of its base need not be: they can be had where that is.
    /// `present` are layers that were found before, for other images.
    pub fn is_whole(&self, store: &Store, present: &mut HashSet<Digest>) -> Result<bool, CacheError> {
        for (digest, size) in self.layers.iter().map(|layer| (layer.digest, layer.size)) {
            if present.contains(&digest) {
                continue;
            }
            if store.has(&digest)? != Some(size) {
                return Ok(false);
            }
            present.insert(digest);
        }
        Ok(true)
    }
}

/// The key of an image. Its text names the keys of its stages, whose texts are kept once for all images on them.
#[derive(Debug, Clone)]
pub struct ImageKey {
    /// Names the image.
    pub key: Key,
    text: String,
    stages: Vec<Arc<(Key, String)>>,
}

/// The field of an image's text that names a stage.
const STAGE: &str = "stage";

impl ImageKey {
    /// Keeps what is known under the key, and the texts.
    pub fn keep(&self, store: &Store, record: &ImageRecord) -> Result<(), CacheError> {
        for stage in &self.stages {
            if store.find(&stage.0)?.is_none() {
                store.keep(&stage.0, &stage.1, &())?;
            }
        }
        store.keep(&self.key, &self.text, record)
    }

    /// The text with those of its stages in their places.
    pub fn text(&self) -> String {
        let texts: HashMap<String, &str> = self.stages.iter().map(|it| (it.0.0.to_string(), it.1.as_str())).collect();
        whole(&self.text, |key| texts.get(key).map(|text| (*text).to_owned())).expect("it has the texts of its stages")
    }
}

/// The text of a key that was kept, with those of its stages in their places; `None` where one is gone from the store.
pub fn kept_text(store: &Store, text: &str) -> Result<Option<String>, CacheError> {
    let mut failed = None;
    let found = whole(text, |key| {
        let key = Key(key.parse().ok()?);
        store.recall(&key).map_err(|error| failed = Some(error)).ok()?.map(|stage| stage.text)
    });
    failed.map_or(Ok(found), Err)
}

fn whole(text: &str, mut stage: impl FnMut(&str) -> Option<String>) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match line.split_once('=') {
            Some((name, key)) if name.split(':').next() == Some(STAGE) => {
                let text = stage(key.trim_end())?;
                out.push_str(text.split_once('\n')?.1);
            }
            _ => out.push_str(line),
        }
    }
    Some(out)
}

/// Works out the keys of images. What images have in common is worked out once: a layer is named by the stage that it ends with, and
/// what goes into it follows from what that stands on.
pub struct Keys<'a> {
    bench: &'a Bench<'a>,
    lock: &'a Lock,
    stages: HashMap<(StageId, Platform), Arc<(Key, String)>>,
    taken: HashMap<(StageId, Platform), Key>,
    /// The conversion that was last written: neighbours have it in common.
    conversion: Option<(Conversion, String)>,
    /// The bytes that copies select, by what is copied.
    copied: HashMap<String, u64>,
}

impl<'a> Keys<'a> {
    /// Of images that stand on this lock.
    pub fn new(bench: &'a Bench<'a>, lock: &'a Lock) -> Keys<'a> {
        Keys { bench, lock, stages: HashMap::new(), taken: HashMap::new(), conversion: None, copied: HashMap::new() }
    }

    /// The key of a resolved stage.
    pub fn image(&mut self, platform: Platform, resolved: &Resolved) -> Result<ImageKey, Failure> {
        let mut hasher = KeyHasher::new("image", 1);
        self.common(&mut hasher, platform, resolved)?;
        hasher.list("allow-missing", resolved.allow_missing.iter());
        let mut stages = Vec::new();
        for layers in resolved.layers.chunk_by(|one, next| one.stage == next.stage) {
            let stage = (layers[0].stage, platform);
            if !self.stages.contains_key(&stage) {
                let mut hasher = KeyHasher::new("stage", 1);
                for layer in layers {
                    self.layer(&mut hasher, platform, layer)?;
                }
                self.stages.insert(stage, Arc::new(hasher.finish()));
            }
            let known = &self.stages[&stage];
            hasher.field(STAGE, known.0.0);
            stages.push(known.clone());
        }
        let (key, text) = hasher.finish();
        Ok(ImageKey { key, text, stages })
    }

    /// Where a resolved stage is cut; `None` where all or nothing of it depends on the context.
    pub fn cut(&mut self, platform: Platform, resolved: &Resolved) -> Result<Option<Cut>, Failure> {
        let Some(at) = foundation::cut(resolved) else { return Ok(None) };
        let mut hasher = KeyHasher::new("foundation", foundation::VERSION);
        self.common(&mut hasher, platform, resolved)?;
        for layer in &resolved.layers[..at] {
            self.layer(&mut hasher, platform, layer)?;
        }
        let (key, text) = hasher.finish();
        Ok(Some(Cut { at, key, text }))
    }

    /// The bytes of the context that layers hold whose key was worked out here; `None` where a command may have to run for them.
    pub fn bytes_copied(&self, layers: &[LayerPlan]) -> Option<u64> {
        let ops = layers.iter().flat_map(LayerPlan::ops);
        ops.map(|op| match op {
            Op::Copy(files) => self.copied.get(&files.to_json()).copied(),
            Op::Take(_) => None,
            _ => Some(0),
        })
        .sum()
    }

    /// What all layers of an image depend on.
    fn common(&self, hasher: &mut KeyHasher, platform: Platform, resolved: &Resolved) -> Result<(), Failure> {
        let bench = self.bench;
        hasher.field("layer-format", LAYER_FORMAT).field("index", INDEX_FORMAT).field("platform", platform);
        if bench.compression != Compression::Gzip {
            hasher.field("compression", bench.compression);
        }
        let versions = (scripts::VERSION, gate::VERSION, effects::versions([]));
        hasher.field("effects", format!("{versions:?}"));
        let manifest = match &resolved.base {
            Some(PinnedBase::Registry { manifest, .. }) => Some(*manifest),
            Some(layout) => Some(base::open(&bench.project.home, layout, platform, bench.store)?.manifest),
            None => None,
        };
        base::key(hasher, manifest.as_ref());
        Ok(())
    }

    fn layer(&mut self, hasher: &mut KeyHasher, platform: Platform, layer: &LayerPlan) -> Result<(), Failure> {
        hasher.field("layer", "");
        for part in &layer.parts {
            for op in &part.ops {
                self.op(hasher, platform, op).map_err(|failure| failure.located(part.at.clone()))?;
            }
        }
        Ok(())
    }

    fn op(&mut self, hasher: &mut KeyHasher, platform: Platform, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Unpack { archive, conversion } => {
                hasher.field("name", &archive.name).field("archive", archive.digest);
                hasher.field("conversion", self.written(conversion)).field("version", convert::version(conversion));
            }
            Op::Copy(files) => {
                let selection = self.bench.context.select(files)?;
                let text = files.to_json();
                hasher.field("copy", &text).field("selection", selection.digest);
                self.copied.insert(text, selection.size());
            }
            Op::Take(take) => {
                let key = self.taken(take.stage, run::platform_of(take, platform))?;
                hasher.field("take", key.0).field("from", &take.path).field("to", &take.to);
                if let Some(owner) = take.owner {
                    hasher.field("owner", format!("{}:{}", owner.uid, owner.gid));
                }
            }
            Op::Build(build) => {
                let way = sdists::way(build, platform);
                let key = self.taken(build.builder, way.builders_platform(platform))?;
                hasher.field("name", &build.sdist.name).field("archive", build.sdist.digest);
                hasher.field("conversion", build.conversion.to_json());
                hasher.field("version", convert::version(&build.conversion));
                hasher.field("builder", key.0);
                if let Way::Cross { target } = way {
                    hasher.field("target", self.taken(target, platform)?.0);
                }
                hasher.list("env", build.env.iter().map(|(name, value)| format!("{name}={value}")));
                hasher.field("versions", format!("{:?}", (run::VERSION, sdists::VERSION)));
            }
            Op::Compile(wanted) => {
                let versions = (bytecode::VERSION, imports::VERSION);
                hasher.field("compile", wanted.to_json()).field("versions", format!("{versions:?}"));
            }
            Op::Configure(configure) => {
                hasher.field("configure", configure.to_json()).field("effects", layer::versions(configure));
            }
            Op::Dpkg(wanted) => {
                let key = self.taken(wanted.configurator, Platform::native().unwrap_or(platform))?;
                hasher.field("dpkg", wanted.to_json()).field("configurator", key.0);
                hasher.field("versions", format!("{:?}", (run::VERSION, dpkg::VERSION)));
            }
            Op::Run(step) => {
                hasher.field("run", step.run.to_json()).field("version", run::VERSION);
                for input in &step.inputs {
                    hasher.field("at", &input.path);
                    self.op(hasher, platform, &input.op)?;
                }
            }
            Op::Dir(_) | Op::Link(_) | Op::Inline(_) | Op::AddUser(_) => {
                hasher.field("op", op.to_json());
            }
        }
        Ok(())
    }

    fn written(&mut self, conversion: &Conversion) -> &str {
        let known = self.conversion.take().filter(|(known, _)| known == conversion);
        let known = known.unwrap_or_else(|| (conversion.clone(), conversion.to_json()));
        &self.conversion.insert(known).1
    }

    fn taken(&mut self, stage: StageId, platform: Platform) -> Result<Key, Failure> {
        if let Some(known) = self.taken.get(&(stage, platform)) {
            return Ok(*known);
        }
        let other = self.bench.lowered(stage, self.lock, platform)?;
        let key = self.image(platform, &other)?.key;
        self.taken.insert((stage, platform), key);
        Ok(key)
    }
}
