//! A cache in a repository of a registry: each document an artifact, its blobs the artifact's layers.
//!
//! ```text
//! manifest  artifactType application/vnd.imgbuild.cache.v1, config `{}`, tagged with each name of the document
//!   annotations  org.imgbuild.cache: the document, gzip, base64: one request reads it
//!   layers       every blob that it is published with, so that a registry's collector keeps them
//! ```

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::{Blob, Store};
use layers::Digest;
use serde_json::json;

use super::document::LARGEST;
use super::{Place, Remote, RemoteError};
use crate::fetch::Watch;
use crate::registry::document::{Descriptor, Document};
use crate::registry::{Bundle, Delivery, Registries, RegistryError, Repository, Supply};

const ARTIFACT: &str = "application/vnd.imgbuild.cache.v1";
const BLOB: &str = "application/vnd.imgbuild.cache.blob.v1";
const ANNOTATION: &str = "org.imgbuild.cache";

/// A cache in a repository.
#[derive(Debug)]
pub struct Artifacts {
    registries: Registries,
    repository: Repository,
    watch: Watch,
}

impl Artifacts {
    /// The cache in `repository`, given up where next to nothing moves for as long as `patience`.
    pub fn new(registries: Registries, repository: Repository, patience: Duration) -> Artifacts {
        Artifacts { registries, repository, watch: Watch::new(patience) }
    }

    /// Waits for something that moves so many bytes, as long as there is patience for it; `what` is it in words.
    fn wait<T>(
        &self,
        what: &str,
        bytes: u64,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let registry = self.repository.registry.clone();
        let silent = || RegistryError::Silent { registry, what: what.into(), why: self.watch.said() };
        self.registries.wait(async { self.watch.over(bytes, work).await.unwrap_or_else(|| Err(silent())) })
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
        let reference = self.repository.tagged(name);
        let read = self.registries.client().manifest(&reference);
        let document = match self.wait(&format!("read {name}"), 0, read) {
            Err(RegistryError::NotFound { .. }) => return Ok(None),
            document => document?,
        };
        let wrong = |why: String| RegistryError::Document { what: format!("{}:{name}", self.repository), why };
        let said = document.read().map_err(wrong)?;
        let text = said.annotations.get(ANNOTATION).filter(|_| said.artifact_type.as_deref() == Some(ARTIFACT));
        let packed = text.and_then(|text| STANDARD.decode(text).ok());
        let bytes = packed.and_then(|packed| {
            let mut bytes = Vec::new();
            let limits = layers::format::Limits { max_output: LARGEST as u64, ..Default::default() };
            layers::format::decompress(packed.as_slice(), &limits).ok()?.read_to_end(&mut bytes).ok()?;
            Some(bytes)
        });
        Ok(Some(bytes.ok_or_else(|| wrong("it is no cache of imgbuild's".into()))?))
    }

    fn fetch(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError> {
        let descriptor = Descriptor::of(BLOB, blob.digest.into(), blob.size);
        // Another process may be at it: that is not the registry's silence.
        drop(store.lock_download(&blob.digest)?);
        let read = self.registries.client().blob_to_store(&self.repository, &descriptor, store, &self.watch);
        Ok(self.wait(&format!("read blob {}", blob.digest), blob.size, read)?)
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
        let push = self.registries.client().push(&deliveries, &supply, &self.watch);
        let bytes = blobs.iter().map(|blob| blob.size).sum();
        self.wait(&format!("write {}", names.join(" and ")), bytes, push)?;
        Ok(())
    }
}
