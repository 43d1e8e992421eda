//! The key of a whole image: everything that determines its layers, asked before anything is opened.

use cache::Store;
use layers::encode::{Compression, LAYER_FORMAT};
use layers::lock::Lock;
use layers::lower::{self, Resolved};
use layers::oci::BaseParts;
use layers::op::Op;
use layers::{Digest, Key, KeyHasher, Plan, Platform};
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
    /// Whether every layer is still in the store.
    pub fn is_whole(&self, store: &Store) -> Result<bool, cache::CacheError> {
        let base = self.base.iter().flat_map(|(_, parts)| &parts.layers).map(|layer| (layer.digest, layer.size));
        for (digest, size) in self.layers.iter().map(|layer| (layer.digest, layer.size)).chain(base) {
            if store.has(&digest)? != Some(size) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The key of a resolved stage, and its text.
pub fn image_key(
    bench: &Bench<'_>,
    plan: &Plan,
    lock: &Lock,
    platform: Platform,
    resolved: &Resolved,
) -> Result<(Key, String), Failure> {
    let mut hasher = KeyHasher::new("image", 1);
    hasher.field("layer-format", LAYER_FORMAT).field("index", INDEX_FORMAT).field("platform", platform);
    if bench.compression != Compression::Gzip {
        hasher.field("compression", bench.compression);
    }
    let versions = (scripts::VERSION, gate::VERSION, effects::versions([]));
    hasher.field("effects", format!("{versions:?}"));
    if let Some(layout) = &resolved.base {
        let base = base::open(&bench.project.home, layout, platform, bench.store)?;
        hasher.field("base", base.manifest);
    }
    hasher.list("allow-missing", resolved.allow_missing.iter());
    for layer in &resolved.layers {
        hasher.field("layer", "");
        for op in &layer.ops {
            add(&mut hasher, bench, plan, lock, platform, op).map_err(|failure| failure.located(layer.at.clone()))?;
        }
    }
    Ok(hasher.finish())
}

/// Adds an operation to the key of a stage.
fn add(
    hasher: &mut KeyHasher,
    bench: &Bench<'_>,
    plan: &Plan,
    lock: &Lock,
    platform: Platform,
    op: &Op,
) -> Result<(), Failure> {
    match op {
        Op::Unpack { archive, conversion } => {
            hasher.field("name", &archive.name).field("archive", archive.digest);
            hasher.field("conversion", json(conversion)).field("version", convert::version(conversion));
        }
        Op::Copy(files) => {
            let selection = bench.context.select(files)?;
            hasher.field("copy", json(files)).field("selection", selection.digest);
        }
        Op::Take(take) => {
            let lock_file = |python: &layers::source::Python| bench.context.lock_digest(python);
            let platform = run::platform_of(take, platform);
            let other = lower::lower(plan, take.stage, lock, platform, &lock_file)?;
            let (key, _) = image_key(bench, plan, lock, platform, &other)?;
            hasher.field("take", key.0).field("from", &take.path).field("to", &take.to);
            if let Some(owner) = take.owner {
                hasher.field("owner", format!("{}:{}", owner.uid, owner.gid));
            }
        }
        Op::Compile(wanted) => {
            let versions = (bytecode::VERSION, imports::VERSION);
            hasher.field("compile", json(wanted)).field("versions", format!("{versions:?}"));
        }
        Op::Configure(configure) => {
            let names = configure.packages.iter().map(|archive| archive.name.split('_').next().unwrap_or_default());
            hasher.field("configure", json(configure));
            hasher.field("effects", format!("{:?}", effects::versions(names)));
        }
        Op::Run(step) => {
            hasher.field("run", json(&step.run)).field("version", run::VERSION);
            for input in &step.inputs {
                add(hasher, bench, plan, lock, platform, input)?;
            }
        }
        Op::Dir(_) | Op::Link(_) | Op::Inline(_) | Op::AddUser(_) => {
            hasher.field("op", json(op));
        }
    }
    Ok(())
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("operations have only string keys and whole numbers")
}
