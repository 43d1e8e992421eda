//! Base images of registries: locked to digests, brought into the cache where something looks at them.

use std::collections::{BTreeMap, BTreeSet};

use cache::{CacheError, Store};
use layers::lock::LockedBase;
use layers::source::Base;
use layers::{Digest, Platform, StageId, StageStep, oci};

use super::Bench;
use super::build::Built;
use crate::error::Failure;
use crate::observe::{Event, Observer};
use crate::registry::document::{self, Descriptor};
use crate::registry::{Pulled, Reference, Registries, RegistryError};

/// Finds out what the tags of bases mean now; those that `old` knows keep their meaning unless they are `refresh`ed.
pub fn relock(
    bench: &Bench<'_>,
    needed: &BTreeSet<StageId>,
    old: &[LockedBase],
    refresh: bool,
) -> Result<Vec<LockedBase>, Failure> {
    let mut found: BTreeMap<&str, LockedBase> = BTreeMap::new();
    for id in needed {
        let stage = &bench.project.plan.stages[id.0];
        let StageStep::From { base: Base::Registry(base) } = &stage.step else { continue };
        if found.contains_key(base.image.as_str()) {
            continue;
        }
        let known = old.iter().find(|known| known.image == base.image).filter(|_| !refresh);
        let locked = match known {
            Some(known) => known.clone(),
            None => look_up(bench, &base.image).map_err(|failure| failure.located(stage.at.clone()))?,
        };
        found.insert(&base.image, locked);
    }
    Ok(found.into_values().collect())
}

fn look_up(bench: &Bench<'_>, image: &str) -> Result<LockedBase, Failure> {
    let reference: Reference = image.parse().map_err(Failure::from)?;
    let top = bench.registries.manifest(&reference)?;
    let digest = sha256(image, &top.digest)?;
    let said = top.read().map_err(|why| Failure::work(format!("`{image}`: {why}")))?;
    let mut manifests = BTreeMap::new();
    let mut why = String::new();
    for platform in Platform::ALL {
        match bench.registries.image(&reference.repository.at(top.digest), platform) {
            Ok(found) => {
                let architecture = document_architecture(&found);
                if architecture.as_deref().is_none_or(|it| it == platform.architecture()) {
                    manifests.insert(platform, sha256(image, &found.manifest.digest)?);
                    keep(bench.store, &found)?;
                }
            }
            Err(RegistryError::Document { why: reason, .. }) if said.is_index => why = reason,
            Err(error) => return Err(error.into()),
        }
    }
    if manifests.is_empty() {
        return Err(Failure::work(format!("`{image}` is for no platform that imgbuild knows: {why}")));
    }
    bench.observer.on(Event::Note(&format!("{image}: {digest}")));
    Ok(LockedBase { image: image.to_owned(), digest, manifests })
}

fn document_architecture(found: &Pulled) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(&found.config).ok()?;
    config.get("architecture")?.as_str().map(str::to_owned)
}

fn sha256(image: &str, digest: &crate::registry::AnyDigest) -> Result<layers::Digest, Failure> {
    digest
        .sha256()
        .ok_or_else(|| Failure::work(format!("`{image}` is named by {}, bases need SHA-256", digest.algorithm())))
}

fn keep(store: &Store, found: &Pulled) -> Result<(), CacheError> {
    store.put(&found.manifest.bytes)?;
    store.put(&found.config)?;
    Ok(())
}

/// Brings the documents of a base into the store.
pub fn documents(
    registries: &Registries,
    store: &Store,
    image: &str,
    manifest: &Digest,
    platform: Platform,
) -> Result<(), RegistryError> {
    if let Some(bytes) = store.read(manifest)? {
        let said = document::read(&bytes, "");
        let config = said.ok().and_then(|said| Some((said.blobs.first()?.digest.sha256()?, said.blobs[0].size)));
        if let Some((digest, size)) = config
            && store.has(&digest)? == Some(size)
        {
            return Ok(());
        }
    }
    let repository = image.parse::<Reference>()?.repository;
    keep(store, &registries.image(&repository.at((*manifest).into()), platform)?)?;
    Ok(())
}

/// Brings layers of a base into the store.
pub fn layers(
    registries: &Registries,
    store: &Store,
    observer: &dyn Observer,
    image: &str,
    wanted: &[&oci::Descriptor],
) -> Result<(), RegistryError> {
    let repository = image.parse::<Reference>()?.repository;
    let blobs: Vec<Descriptor> =
        wanted.iter().map(|it| Descriptor::of(&it.media_type, it.digest.into(), it.size)).collect();
    registries.wait(async {
        let client = registries.client();
        let fetches = blobs.iter().map(|blob| client.blob_to_store(&repository, blob, store, observer));
        futures_util::future::try_join_all(fetches).await.map(drop)
    })
}

/// Brings the layers of bases that images stand on: for outputs that hold whole images.
pub fn bring(bench: &Bench<'_>, built: &[Built]) -> Result<(), Failure> {
    for platform in built.iter().flat_map(|it| &it.platforms) {
        let Some(image) = &platform.base else { continue };
        let mut missing = Vec::new();
        for layer in &platform.base_layers {
            if bench.store.has(&layer.digest)? != Some(layer.size) {
                missing.push(layer);
            }
        }
        if !missing.is_empty() {
            layers(bench.registries, bench.store, bench.observer, image, &missing)?;
        }
    }
    Ok(())
}
