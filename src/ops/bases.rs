//! Base images of registries: locked to digests, brought into the cache before something stands on them.

use std::collections::{BTreeMap, BTreeSet};

use layers::lock::LockedBase;
use layers::lower::{PinnedBase, Resolved};
use layers::source::Base;
use layers::{Platform, StageId, StageStep};

use super::Bench;
use crate::error::Failure;
use crate::observe::Event;
use crate::registry::document::{self, Choice};
use crate::registry::{Pulled, Reference, RegistryError};

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
                    keep(bench, &found)?;
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

fn keep(bench: &Bench<'_>, found: &Pulled) -> Result<(), Failure> {
    bench.store.put(&found.manifest.bytes)?;
    bench.store.put(&found.config)?;
    Ok(())
}

/// Brings the base of a stage into the cache: documents, and layers for those who look at them.
pub fn bring(bench: &Bench<'_>, resolved: &Resolved, platform: Platform) -> Result<(), Failure> {
    let Some(PinnedBase::Registry { image, manifest }) = &resolved.base else { return Ok(()) };
    let reference: Reference = image.parse().map_err(Failure::from)?;
    let repository = reference.repository;
    let pulled = match bench.store.read(manifest)? {
        Some(bytes) => bytes,
        None => {
            let found = bench.registries.image(&repository.at((*manifest).into()), platform)?;
            keep(bench, &found)?;
            found.manifest.bytes.to_vec()
        }
    };
    let said = document::read(&pulled, "").map_err(|why| Failure::work(format!("`{image}`: {why}")))?;
    debug_assert!(
        !matches!(document::choose(&said, platform, 0), Ok(Choice::Image(_))),
        "a lock pins manifests, not indexes"
    );
    let wanted: Vec<_> = said.blobs.iter().filter(|blob| !blob.is_foreign()).collect();
    let mut missing = Vec::new();
    for blob in wanted {
        if let Some(digest) = blob.digest.sha256()
            && bench.store.has(&digest)? != Some(blob.size)
        {
            missing.push(blob);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bench.registries.wait(async {
        let client = bench.registries.client();
        let fetches = missing.iter().map(|blob| client.blob_to_store(&repository, blob, bench.store, bench.observer));
        futures_util::future::try_join_all(fetches).await.map(drop)
    })?;
    Ok(())
}
