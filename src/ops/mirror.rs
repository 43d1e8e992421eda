//! `mirror`: the archives that a lock names, kept in a registry.
//!
//! A registry keeps blobs by SHA-256, and a lock names every archive by SHA-256: the archive's digest *is* the blob's name,
//! and nothing has to be looked up. Manifests refer to the blobs, so that no collection of garbage takes them:
//!
//! ```text
//! REPOSITORY:lock-<digest of what the lock names>     index, artifactType INPUTS
//!   ├─ manifest of the archives whose digest starts with 0
//!   ├─ ...                                            one a hexadecimal digit: an update changes few of them
//!   └─ manifest of the archives whose digest starts with f
//! ```
//!
//! Each lock has its tag, so what an old commit needs stays until its tag is deleted.

use std::collections::{BTreeMap, BTreeSet};

use layers::op::{Archive, Origin};
use layers::{Digest, Input, KeyHasher, Source, StageStep};
use serde::Serialize;

use super::Bench;
use super::supply::{Mirrors, size_here};
use crate::engine::local::{DOWNLOADS, Supply as _};
use crate::error::Failure;
use crate::observe::Event;
use crate::parallel::in_parallel;
use crate::registry::document::{Descriptor, Document};
use crate::registry::{Act, AnyDigest, Bundle, Delivery, Reference, Registries, RegistryError, Repository, Supply};

/// What the index and its manifests are.
pub const INPUTS: &str = "application/vnd.imgbuild.inputs.v1";

/// What was done or found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrored {
    /// Where the inputs of this lock are.
    pub reference: Reference,
    /// Archives that the lock names.
    pub archives: usize,
    /// Their bytes, as far as sizes are known.
    pub bytes: u64,
    /// How many had to be brought.
    pub brought: usize,
}

/// Everything that a build takes from outside, once, sorted by digest: packages and wheels of all platforms, fetched files.
pub fn inputs(bench: &Bench<'_>) -> Result<Vec<Archive>, Failure> {
    let lock = bench.project.lock()?;
    let mut found: BTreeMap<Digest, Archive> = BTreeMap::new();
    let packages = lock.debian.values().flatten().map(|package| package.archive());
    let wheels = lock.python.iter().flat_map(|it| it.wheels.values().flatten()).map(|wheel| wheel.archive());
    let fetches = bench.project.plan.stages.iter().flat_map(|stage| match &stage.step {
        StageStep::Layer { source: Source::Fetch(fetch), .. } => vec![fetch],
        StageStep::Run { run, .. } => {
            let fetches = run.inputs.iter().filter_map(|input| match input {
                Input::Fetch(fetch) => Some(fetch),
                _ => None,
            });
            fetches.collect()
        }
        _ => Vec::new(),
    });
    let fetched = fetches.map(|fetch| Archive {
        name: fetch.file_name().to_owned(),
        digest: fetch.sha256,
        size: None,
        origin: Origin::Url(fetch.url.clone()),
    });
    for archive in packages.chain(wheels).chain(fetched) {
        found.entry(archive.digest).or_insert(archive);
    }
    match found.is_empty() {
        true => Err(Failure::work("the lock names nothing that comes from outside: there is nothing to mirror")),
        false => Ok(found.into_values().collect()),
    }
}

/// The tag of a lock: what it names decides, not how it is written.
fn lock_tag(archives: &[Archive]) -> String {
    let mut hasher = KeyHasher::new("mirror-inputs", 1);
    hasher.list("archive", archives.iter().map(|archive| archive.digest));
    format!("lock-{}", &hasher.finish().0.0.hex()[..32])
}

/// Sends what the registry lacks; what this machine lacks is fetched from the package mirrors first.
pub fn push(bench: &Bench<'_>, registries: &Registries, to: &Reference) -> Result<Mirrored, Failure> {
    if to.digest.is_some() {
        return Err(Failure::usage(format!("`{to}` names a digest; inputs are pushed to a repository or a tag")));
    }
    let archives = inputs(bench)?;
    let mirrors = Mirrors::new(bench);
    // A size that the lock does not know is known when the file is here.
    let unsized_ones: Vec<&Archive> = archives.iter().filter(|archive| archive.size.is_none()).collect();
    in_parallel(DOWNLOADS, &unsized_ones, |archive| mirrors.supply(archive).map(drop))?;
    let mut sized = Vec::with_capacity(archives.len());
    for archive in &archives {
        let size = match archive.size {
            Some(size) => size,
            None => size_here(bench.store, &archive.digest, &archive.name)?,
        };
        sized.push((archive, size));
    }
    let bundle = std::sync::Arc::new(documents(&sized)?);
    let tag = lock_tag(&archives);
    let mut tags = vec![tag.clone()];
    tags.extend(to.tag.clone());
    let delivery = Delivery { bundle, repository: to.repository.clone(), tags };
    let mut supply = Supply { store: Some(bench.store.clone()), ..Supply::default() };
    let empty = Document::empty();
    supply.bytes.insert(empty.digest, empty.bytes);
    // Asked first, so that nothing is downloaded that the registry has.
    let planned = registries.plan_push(std::slice::from_ref(&delivery), &supply, bench.observer)?;
    let of = |fits: &dyn Fn(&Act) -> bool| -> Vec<&Archive> {
        let wanted: BTreeSet<AnyDigest> = planned.iter().filter(|it| fits(&it.act)).map(|it| it.digest).collect();
        archives.iter().filter(|it| wanted.contains(&it.digest.into())).collect()
    };
    let (lacking, mounted) = (of(&|act| *act == Act::Send), of(&|act| matches!(act, Act::Mount(_))));
    in_parallel(DOWNLOADS, &lacking, |archive| mirrors.supply(archive).map(drop))?;
    match registries.push(std::slice::from_ref(&delivery), &supply, bench.observer) {
        // The registry did not take over what another of its repositories has, so it is sent after all.
        Err(RegistryError::Lost(_)) if !mounted.is_empty() => {
            in_parallel(DOWNLOADS, &mounted, |archive| mirrors.supply(archive).map(drop))?;
            registries.push(&[delivery], &supply, bench.observer)?;
        }
        done => drop(done?),
    }
    Ok(Mirrored {
        reference: to.repository.tagged(&tag),
        archives: archives.len(),
        bytes: sized.iter().map(|(_, size)| size).sum(),
        brought: lacking.len(),
    })
}

/// The index over sixteen manifests (fewer where a digit has no archive).
fn documents(archives: &[(&Archive, u64)]) -> Result<Bundle, Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        schema_version: u32,
        media_type: &'static str,
        artifact_type: &'static str,
        config: Descriptor,
        layers: Vec<Descriptor>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index {
        schema_version: u32,
        media_type: &'static str,
        artifact_type: &'static str,
        manifests: Vec<Descriptor>,
    }
    let mut chunks: BTreeMap<String, Vec<Descriptor>> = BTreeMap::new();
    for (archive, size) in archives {
        let mut blob = descriptor(archive, *size);
        blob.annotations.insert("org.opencontainers.image.title".into(), archive.name.clone());
        chunks.entry(archive.digest.hex()[..1].to_owned()).or_default().push(blob);
    }
    let mut all = Vec::new();
    let mut manifests = Vec::new();
    for layers in chunks.into_values() {
        let config = Document::empty().descriptor();
        let manifest =
            Manifest { schema_version: 2, media_type: layers::oci::MANIFEST, artifact_type: INPUTS, config, layers };
        let document = Document::json(layers::oci::MANIFEST, &manifest);
        manifests.push(Descriptor { artifact_type: Some(INPUTS.into()), ..document.descriptor() });
        all.push(document);
    }
    let index = Index { schema_version: 2, media_type: layers::oci::INDEX, artifact_type: INPUTS, manifests };
    all.push(Document::json(layers::oci::INDEX, &index));
    Ok(Bundle::read(all)?)
}

/// How manifests refer to an archive.
fn descriptor(archive: &Archive, size: u64) -> Descriptor {
    let media_type = match &archive.origin {
        Origin::Pool { .. } => "application/vnd.debian.binary-package",
        Origin::Index { .. } if !archive.name.ends_with(".whl") => "application/octet-stream",
        Origin::Index { .. } => "application/zip",
        Origin::Url(_) | Origin::Built => "application/octet-stream",
    };
    Descriptor::of(media_type, archive.digest.into(), size)
}

/// Brings everything that the lock names from a registry into the cache: a build needs no network then.
pub fn pull(bench: &Bench<'_>, registries: &Registries, from: &Repository) -> Result<Mirrored, Failure> {
    let archives = inputs(bench)?;
    let mut wanted = Vec::new();
    for archive in &archives {
        let there = bench.store.has(&archive.digest)?;
        if there.is_none_or(|found| archive.size.is_some_and(|size| size != found)) {
            wanted.push(archive);
        }
    }
    let client = registries.client();
    let fetched = registries.wait(async {
        let fetches = wanted
            .iter()
            .map(|archive| client.blob_by_digest(from, archive.digest, archive.size, bench.store, bench.observer));
        Ok(futures_util::future::join_all(fetches).await)
    })?;
    let mut missing = Vec::new();
    for (archive, done) in wanted.iter().zip(fetched) {
        match done {
            Ok(()) => {}
            Err(error) if error.is_not_found() => missing.push(*archive),
            Err(error) => return Err(error.into()),
        }
    }
    if !missing.is_empty() {
        return Err(lacks(from, &missing));
    }
    let mut bytes = 0;
    for archive in &archives {
        bytes += size_here(bench.store, &archive.digest, &archive.name)?;
    }
    let reference = from.tagged(&lock_tag(&archives));
    Ok(Mirrored { reference, archives: archives.len(), bytes, brought: wanted.len() })
}

/// Whether a registry has everything that the lock names, each referred to by a manifest that keeps it there.
pub fn check(bench: &Bench<'_>, registries: &Registries, at: &Repository) -> Result<Mirrored, Failure> {
    let archives = inputs(bench)?;
    let reference = at.tagged(&lock_tag(&archives));
    let client = registries.client();
    let sizes = registries.wait(async {
        let asked = archives.iter().map(|archive| client.blob_size(at, archive.digest.into()));
        futures_util::future::try_join_all(asked).await
    })?;
    let fits = |(archive, size): &(&Archive, &Option<u64>)| {
        size.is_some_and(|found| archive.size.is_none_or(|size| size == found))
    };
    let missing: Vec<&Archive> =
        archives.iter().zip(&sizes).filter(|it| !fits(it)).map(|(archive, _)| archive).collect();
    if !missing.is_empty() {
        return Err(lacks(at, &missing));
    }
    let kept = registries.wait(async {
        let top = client.manifest(&reference).await?;
        let wrong = |what: String| move |why| RegistryError::Document { what, why };
        let said = top.read().map_err(wrong(reference.to_string()))?;
        let mut kept: BTreeSet<AnyDigest> = BTreeSet::new();
        for child in &said.manifests {
            let document = client.child(at, child).await?;
            let said = document.read().map_err(wrong(format!("{at}@{}", document.digest)))?;
            kept.extend(said.blobs.iter().map(|blob| blob.digest));
        }
        Ok(kept)
    });
    let kept = match kept {
        Ok(kept) => kept,
        Err(error) if error.is_not_found() => BTreeSet::new(),
        Err(error) => return Err(error.into()),
    };
    let loose = archives.iter().filter(|archive| !kept.contains(&archive.digest.into())).count();
    if loose > 0 {
        let why = format!(
            "{at} has all {} archives, but {loose} of them could be collected: {reference} does not refer to them",
            archives.len()
        );
        return Err(Failure::work(why).hint(format!("run `imgbuild mirror push {at}`")));
    }
    bench.observer.on(Event::Note(&format!("{reference} refers to all of them")));
    let bytes = sizes.into_iter().flatten().sum();
    Ok(Mirrored { reference, archives: archives.len(), bytes, brought: 0 })
}

fn lacks(at: &Repository, missing: &[&Archive]) -> Failure {
    let some: Vec<&str> = missing.iter().take(5).map(|archive| archive.name.as_str()).collect();
    let more = if missing.len() > 5 { ", ..." } else { "" };
    Failure::work(format!("{at} lacks {} of the lock's archives: {}{more}", missing.len(), some.join(", ")))
        .hint(format!("run `imgbuild mirror push {at}` where they can be had"))
}
