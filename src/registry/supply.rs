//! What is pushed, and where its bytes come from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cache::Store;

use super::digest::AnyDigest;
use super::document::{Descriptor, Document};
use super::error::RegistryError;
use super::reference::Repository;
use super::upload::{Content, Source};
use crate::output::NamedImage;

/// An image, or any other artifact, as a registry keeps it.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its documents, those that others refer to first; the last is what the name stands for.
    pub documents: Vec<Document>,
    /// For each document, in the same order, the blobs that it names.
    pub blobs: Vec<Vec<Descriptor>>,
}

/// A bundle and where it goes.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The image.
    pub bundle: Arc<Bundle>,
    /// The repository.
    pub repository: Repository,
    /// The tags; without one the image is there by its digest only.
    pub tags: Vec<String>,
}

/// Where the bytes of blobs are.
#[derive(Debug, Clone, Default)]
pub struct Supply {
    /// The cache, which also remembers what registries have.
    pub store: Option<Store>,
    /// Small blobs in memory.
    pub bytes: BTreeMap<AnyDigest, Bytes>,
    /// Blobs in files, in an image layout for instance.
    pub files: BTreeMap<AnyDigest, PathBuf>,
    /// Repositories that have a blob: the base's.
    pub origins: BTreeMap<AnyDigest, Vec<Repository>>,
    /// Who brings blobs into the cache that are not there yet.
    pub demand: Option<Demand>,
}

/// Blobs that are brought when they are needed, and by nobody else.
#[derive(Clone)]
pub struct Demand {
    /// The blobs.
    pub blobs: BTreeSet<layers::Digest>,
    /// Brings one into the cache; `false` where it cannot.
    pub bring: Arc<dyn Fn(&layers::Digest) -> bool + Send + Sync>,
}

impl std::fmt::Debug for Demand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Demand").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

impl Bundle {
    /// An image that was built.
    pub fn of(image: &NamedImage) -> Result<Bundle, RegistryError> {
        let documents =
            image.platforms.iter().map(|image| &image.manifest).chain(&image.index).map(|document| Document {
                media_type: document.media_type.into(),
                digest: document.digest.into(),
                bytes: document.bytes.clone().into(),
            });
        Bundle::read(documents.collect())
    }

    /// Documents, those that others refer to first.
    pub fn read(documents: Vec<Document>) -> Result<Bundle, RegistryError> {
        let blobs = documents
            .iter()
            .map(|document| {
                let wrong = |why| RegistryError::Document { what: document.digest.to_string(), why };
                Ok(document.read().map_err(wrong)?.blobs)
            })
            .collect::<Result<_, RegistryError>>()?;
        Ok(Bundle { documents, blobs })
    }

    /// What the name stands for.
    pub fn top(&self) -> &Document {
        self.documents.last().expect("a bundle has at least one document")
    }
}

/// Opens a file that others may have put there: a pipe would keep who opens it waiting for ever.
pub fn open_regular(path: &Path) -> std::io::Result<File> {
    let waits_not = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(waits_not).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it is no regular file")),
    }
}

impl Supply {
    /// The configurations of built images, beside the cache.
    pub fn of(images: &[NamedImage], store: &Store) -> Supply {
        let configs = images.iter().flat_map(|image| &image.platforms).map(|image| &image.config);
        let bytes = configs.map(|config| (config.digest.into(), config.bytes.clone().into())).collect();
        Supply { store: Some(store.clone()), bytes, ..Supply::default() }
    }

    /// Copies a blob, verifying it on its way.
    pub fn copy(&self, descriptor: &Descriptor, out: &mut dyn std::io::Write) -> Result<(), RegistryError> {
        let digest = descriptor.digest;
        let failed = |source| RegistryError::File { path: digest.to_string().into(), source };
        let source = self.open(descriptor)?.ok_or(RegistryError::Lost(digest))?;
        match source.content {
            Content::Bytes(bytes) if digest.fits(&bytes) => out.write_all(&bytes).map_err(failed),
            Content::Bytes(_) => Err(self.damaged(digest)),
            Content::File(file) => {
                let mut hasher = digest.hasher();
                let copied = cache::in_pieces(&*file, |piece| {
                    hasher.update(piece);
                    out.write_all(piece)
                });
                copied.map_err(failed)?;
                if hasher.finish() == digest { Ok(()) } else { Err(self.damaged(digest)) }
            }
        }
    }

    pub(super) fn damaged(&self, digest: AnyDigest) -> RegistryError {
        match self.files.get(&digest) {
            Some(path) => RegistryError::File {
                path: path.clone(),
                source: std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    "it is damaged: its bytes are not what its name says",
                ),
            },
            None => RegistryError::Damaged(digest),
        }
    }

    /// A small blob whole; `None` where it is not here.
    pub fn read(&self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>, RegistryError> {
        if descriptor.size > super::document::LARGEST as u64 || self.open(descriptor)?.is_none() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.copy(descriptor, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Whether the bytes of a blob are here.
    pub fn has(&self, descriptor: &Descriptor) -> Result<bool, RegistryError> {
        Ok(self.open(descriptor)?.is_some())
    }

    /// A blob for reading, not verified; [`Supply::copy`] verifies. `None` where it is not here.
    pub fn file(&self, descriptor: &Descriptor) -> Result<Option<Box<dyn std::io::Read + Send>>, RegistryError> {
        Ok(self.open(descriptor)?.map(|source| match source.content {
            Content::Bytes(bytes) => Box::new(std::io::Cursor::new(bytes)) as Box<dyn std::io::Read + Send>,
            Content::File(file) => Box::new(file),
        }))
    }

    pub(super) fn open(&self, descriptor: &Descriptor) -> Result<Option<Source>, RegistryError> {
        let (digest, size) = (descriptor.digest, descriptor.size);
        let file = |path: PathBuf, file: File| {
            let found = file.metadata().map_err(|source| RegistryError::File { path, source })?.len();
            match found == size {
                true => Ok(Some(Source { digest, size, content: Content::File(Arc::new(file)) })),
                false => Err(self.damaged(digest)),
            }
        };
        if let Some(bytes) = self.bytes.get(&digest) {
            return Ok(Some(Source { digest, size: bytes.len() as u64, content: Content::Bytes(bytes.clone()) }));
        }
        if let Some(path) = self.files.get(&digest) {
            let opened = open_regular(path);
            return file(path.clone(), opened.map_err(|source| RegistryError::File { path: path.clone(), source })?);
        }
        if let (Some(store), Some(sha256)) = (&self.store, digest.sha256())
            && let Some(opened) = store.open(&sha256)?
        {
            return file(store.blob_path(&sha256), opened);
        }
        let wrong = |why| RegistryError::Document { what: digest.to_string(), why };
        let embedded = descriptor.embedded().map_err(wrong)?;
        Ok(embedded.map(|bytes| Source { digest, size, content: Content::Bytes(bytes) }))
    }
}
