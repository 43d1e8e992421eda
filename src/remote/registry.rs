//! A cache in a repository of a registry: each document an artifact, its blobs the artifact's layers.
//!
//! ```text
//! manifest  artifactType application/vnd.imgbuild.cache.v1, config `{}`, tagged with each name of the document
//!   annotations  org.imgbuild.cache: the document, gzip, base64: one request reads it
//!   layers       every blob that it is published with, so that a registry's collector keeps them
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::{Blob, Store};
use layers::Digest;
use serde_json::json;

use super::document::{LARGEST, unfolded};
use super::{Place, Remote, RemoteError};
use crate::fetch::{Watch, with_last};
use crate::observe::Silent;
use crate::registry::document::{Descriptor, Document, Said};
use crate::registry::{
    AnyDigest, Bundle, ClientConfig, Delivery, Patience, Registries, RegistryError, Repository, Supply,
};

const ARTIFACT: &str = "application/vnd.imgbuild.cache.v1";
const BLOB: &str = "application/vnd.imgbuild.cache.blob.v1";
const ANNOTATION: &str = "org.imgbuild.cache";

/// A cache in a repository.
#[derive(Debug)]
pub struct Artifacts {
    registries: Registries,
    repository: Repository,
    watch: Arc<Watch>,
}

impl Artifacts {
    /// The cache in `repository`, given up where next to nothing moves for as long as `patience`.
    ///
    /// Mirrors are not asked: a cache is nobody's copy, and their silence would count as its own.
    pub fn new(client: ClientConfig, repository: Repository, patience: Duration) -> Artifacts {
        let watch = Arc::new(Watch::new(patience));
        let (told, patience) = (Some(watch.clone()), Patience::within(patience));
        let client = ClientConfig { patience, watch: told, mirrors: BTreeMap::new(), ..client };
        Artifacts { registries: Registries::new(client), repository, watch }
    }

    /// Waits for something that moves so many bytes, as long as there is patience for it; `what` is it in words.
    fn wait<T>(
        &self,
        what: &str,
        bytes: u64,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let registry = self.repository.registry.clone();
        let silent = |why: String| {
            let why = with_last(why, self.watch.last_failure());
            RegistryError::Silent { registry, what: what.into(), why }
        };
        self.registries.wait(async { self.watch.over(bytes, work).await.unwrap_or_else(|why| Err(silent(why))) })
    }

    /// What the manifest of this name says; `None` where there is none.
    fn said(&self, name: &str) -> Result<Option<Said>, RegistryError> {
        let reference = self.repository.tagged(name);
        let read = self.registries.client().artifact(&reference);
        match self.wait(&format!("read {name}"), 0, read) {
            Err(RegistryError::NotFound { .. }) => Ok(None),
            document => document?.read().map(Some).map_err(|why| self.wrong(name, why)),
        }
    }

    fn wrong(&self, name: &str, why: String) -> RegistryError {
        RegistryError::Document { what: format!("{}:{name}", self.repository), why }
    }

    fn manifest(document: &[u8], blobs: &[Blob]) -> Document {
        let empty = Document::empty().descriptor();
        // An artifact without blobs has the empty one (image specification, "Guidelines for Artifact Usage").
        let layers: Vec<Descriptor> = match blobs {
            [] => vec![empty.clone()],
            blobs => blobs.iter().map(|blob| Descriptor::of(BLOB, blob.digest.into(), blob.size)).collect(),
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": layers::oci::MANIFEST,
            "artifactType": ARTIFACT,
            "config": empty,
            "layers": layers,
            "annotations": { ANNOTATION: STANDARD.encode(layers::encode::gzip(document)) },
        });
        Document::json(layers::oci::MANIFEST, &manifest)
    }
}

impl Remote for Artifacts {
    fn find(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        let Some(said) = self.said(name)? else { return Ok(None) };
        let text = said.annotations.get(ANNOTATION).filter(|_| said.artifact_type.as_deref() == Some(ARTIFACT));
        let packed = text.and_then(|text| STANDARD.decode(text).ok());
        let bytes = packed.and_then(|packed| unfolded(&packed, LARGEST as u64));
        Ok(Some(bytes.ok_or_else(|| self.wrong(name, "it is no cache of imgbuild's".into()))?))
    }

    fn fetch(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError> {
        let descriptor = Descriptor::of(BLOB, blob.digest.into(), blob.size);
        // Another process may be at it: that is not the registry's silence.
        let turn = store.lock_download(&blob.digest)?;
        let place = (store, blob.digest, turn);
        let read = self.registries.client().blob_in_turn(&self.repository, &descriptor, place, &Silent);
        Ok(self.wait(&format!("read blob {}", blob.digest), blob.size, read)?)
    }

    fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        let digest = blob.digest.into();
        let look = self.registries.client().lies_in(&self.repository, &digest);
        Ok(self.wait(&format!("look for blob {}", blob.digest), 0, look)?)
    }

    fn keeps(&self, name: &str, last: &Blob) -> Result<bool, RemoteError> {
        // Blobs come in any order, and without a manifest that names them a collector takes them. One that makes no sense is written anew.
        match self.said(name) {
            Err(RegistryError::Document { .. }) => Ok(false),
            said => Ok(said?.is_some_and(|said| said.blobs.iter().any(|blob| blob.digest == last.digest.into()))),
        }
    }

    fn place(&self, _: &Digest) -> Place {
        Place::Repository(self.repository.clone())
    }

    fn publish(&self, names: &[String], document: &[u8], blobs: &[Blob], store: &Store) -> Result<(), RemoteError> {
        let bundle = Arc::new(Bundle::read(vec![Artifacts::manifest(document, blobs)])?);
        let delivery = Delivery { bundle, repository: self.repository.clone(), tags: names.to_vec() };
        let empty = Document::empty();
        let bytes = BTreeMap::from([(empty.digest, empty.bytes)]);
        let supply = Supply { store: Some(store.clone()), bytes, ..Supply::default() };
        let deliveries = [delivery];
        let push = self.registries.client().push(&deliveries, &supply, &Silent);
        let bytes = blobs.iter().map(|blob| blob.size).sum();
        match self.wait(&format!("write {}", names.join(" and ")), bytes, push) {
            Ok(_) => Ok(()),
            // None of the registry's faults.
            Err(RegistryError::Lost(AnyDigest::Sha256(digest))) => Err(RemoteError::Gone(digest)),
            Err(RegistryError::Damaged(AnyDigest::Sha256(digest))) => Err(RemoteError::RottedHere(digest)),
            Err(error) => Err(error.into()),
        }
    }
}
