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

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::{Blob, Store};
use layers::Digest;
use serde_json::json;

use super::document::LARGEST;
use super::{Place, Remote, RemoteError};
use crate::observe::Silent;
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
}

impl Artifacts {
    /// The cache in `repository`.
    pub fn new(registries: Registries, repository: Repository) -> Artifacts {
        Artifacts { registries, repository }
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
        let document = match self.registries.manifest(&self.repository.tagged(name)) {
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
        let work = self.registries.client().blob_to_store(&self.repository, &descriptor, store, &Silent);
        Ok(self.registries.wait(work)?)
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
        self.registries.push(&[delivery], &supply, &Silent)?;
        Ok(())
    }
}
