//! Places where images are: registries, layouts, archives, engines. What lies in one can be copied to another, byte for
//! byte where both keep bytes.
//!
//! An image that was read is [`Held`]: all its documents, and a [`Supply`] that knows where its blobs are without having
//! moved them.

mod archive;
pub mod contents;
mod docker;
mod engine;
mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use cache::Store;
use layers::Platform;
use serde_json::Value;

use crate::observe::{Event, Observer};
use crate::registry::document::{self, Choice, Descriptor, Document};
use crate::registry::{AnyDigest, Bundle, Delivery, InvalidReference, Reference, Registries, RegistryError, Supply};

pub use archive::{write_archive, write_plain};
pub use docker::Docker;
pub use engine::{Into, Loaded, Loading, load};

/// Why an image could not be read from or written to a place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A text that names no place.
    #[error("`{text}` is not a place of an image: {why}")]
    Unknown {
        /// The text.
        text: String,
        /// Why.
        why: String,
    },
    /// Content that cannot be used.
    #[error("`{place}`: {why}")]
    Content {
        /// The place.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A file.
    #[error("`{path}`: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An engine that cannot be reached or says no.
    #[error("{engine}: {why}")]
    Engine {
        /// The engine.
        engine: String,
        /// What went wrong.
        why: String,
    },
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
}

/// Who is to read an archive. Both kinds are read as one, and are written as one where the image is for one platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// Whoever reads OCI layouts: several platforms.
    Oci,
    /// `docker load`: one platform.
    Docker,
}

/// Transports of other tools that are not spoken here. An image of Docker Hub that bears such a name is written with `docker://`.
const FOREIGN: [&str; 7] = ["dir", "containers-storage", "tarball", "sif", "ostree", "atomic", "docker-tarball"];

/// A place of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `host/path:tag`, or `docker://host/path:tag`.
    Registry(Reference),
    /// `oci:DIR[:NAME]`.
    Layout(PathBuf, Option<String>),
    /// `oci-archive:FILE[:NAME]` and `docker-archive:FILE[:NAME]`.
    Archive(Archive, PathBuf, Option<String>),
    /// `docker-daemon:NAME`.
    Daemon(String),
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Place, PlaceError> {
        let unknown = |why: &str| PlaceError::Unknown { text: text.into(), why: why.into() };
        let named = |rest: &str| match rest.split_once(':') {
            Some((path, name)) if !name.is_empty() => (PathBuf::from(path), Some(name.to_owned())),
            Some((path, _)) => (PathBuf::from(path), None),
            None => (PathBuf::from(rest), None),
        };
        let place = match text.split_once(':') {
            Some(("oci" | "oci-archive" | "docker-archive" | "docker-daemon", "")) => {
                return Err(unknown("something has to follow the colon"));
            }
            Some(("oci", rest)) => {
                let (path, name) = named(rest);
                Place::Layout(path, name)
            }
            Some((kind @ ("oci-archive" | "docker-archive"), rest)) => {
                let (path, name) = named(rest);
                Place::Archive(if kind == "oci-archive" { Archive::Oci } else { Archive::Docker }, path, name)
            }
            Some((kind, _)) if FOREIGN.contains(&kind) => {
                return Err(unknown(&format!(
                    "`{kind}:` is not spoken here; there are HOST/PATH:TAG, oci:, oci-archive:, docker-archive: and docker-daemon:"
                )));
            }
            Some(("docker-daemon", rest)) => Place::Daemon(rest.to_owned()),
            _ => {
                let bare = text.strip_prefix("docker://").unwrap_or(text);
                Place::Registry(bare.parse().map_err(|error: InvalidReference| unknown(&error.to_string()))?)
            }
        };
        Ok(place)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = |f: &mut std::fmt::Formatter<'_>, kind: &str, path: &PathBuf, name: &Option<String>| {
            write!(f, "{kind}:{}", path.display())?;
            name.iter().try_for_each(|name| write!(f, ":{name}"))
        };
        match self {
            Place::Registry(reference) => reference.fmt(f),
            Place::Layout(path, name) => named(f, "oci", path, name),
            Place::Archive(Archive::Oci, path, name) => named(f, "oci-archive", path, name),
            Place::Archive(Archive::Docker, path, name) => named(f, "docker-archive", path, name),
            Place::Daemon(name) => write!(f, "docker-daemon:{name}"),
        }
    }
}

/// An image that was read from a place.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its documents.
    pub bundle: Bundle,
    /// Where its blobs are.
    pub supply: Supply,
}

/// What places are reached with.
pub struct Reach<'a> {
    /// Registries.
    pub registries: &'a Registries,
    /// The engine of Docker.
    pub docker: &'a Docker,
    /// The cache.
    pub store: &'a Store,
    /// Who hears of progress.
    pub observer: &'a dyn Observer,
}

impl Reach<'_> {
    /// Reads an image. Of what a registry has only documents are read; blobs stay there until somebody wants them.
    pub fn read(&self, place: &Place) -> Result<Held, PlaceError> {
        let mut held = match place {
            Place::Registry(reference) => self.read_registry(reference)?,
            Place::Layout(path, name) => layout::read(path, name.as_deref())?,
            Place::Archive(_, path, name) => archive::read(path, name.as_deref(), self.store)?,
            Place::Daemon(name) => {
                let file = self.docker.save(self.registries, name, self.store)?;
                archive::read(file.path(), None, self.store)?
            }
        };
        held.supply.store = Some(self.store.clone());
        let here: BTreeSet<AnyDigest> = held.bundle.documents.iter().map(|it| it.digest).collect();
        for document in &held.bundle.documents {
            let what = document.digest.to_string();
            let said = document.read().map_err(|why| RegistryError::Document { what: what.clone(), why })?;
            let missing = said.manifests.iter().filter(|child| !here.contains(&child.digest)).count();
            if missing > 0 {
                let all = said.manifests.len();
                let text = format!(
                    "{missing} of the {all} manifests of {what} are not there, and so not in what is made of it"
                );
                self.observer.on(Event::Warning(&text));
            }
        }
        Ok(held)
    }

    /// Whether an image without an index is for this platform, as its configuration says.
    pub fn check_platform(&self, held: &Held, platform: Platform) -> Result<(), PlaceError> {
        let layers = held.bundle.blobs.iter().flatten().skip(1).map(|blob| blob.digest).collect();
        self.fetch(held, &layers)?;
        let config = held.config()?;
        let said = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
        let (os, architecture) = (said("os"), said("architecture"));
        if architecture.is_empty() || (os, architecture) == ("linux", platform.architecture()) {
            return Ok(());
        }
        let why = format!("it is for {os}/{architecture}, not for {platform}");
        Err(PlaceError::Content { place: held.bundle.top().digest.to_string(), why })
    }

    fn read_registry(&self, reference: &Reference) -> Result<Held, PlaceError> {
        let repository = reference.repository.clone();
        let documents = self.registries.wait(async {
            let client = self.registries.client();
            let top = client.manifest(reference).await?;
            let mut documents = vec![top];
            let mut seen: BTreeSet<AnyDigest> = BTreeSet::new();
            let mut at = 0;
            while at < documents.len() {
                let what = documents[at].digest.to_string();
                let said = documents[at].read().map_err(|why| RegistryError::Document { what, why })?;
                for child in said.manifests {
                    if documents.len() >= 10_000 {
                        let (what, why) = (reference.to_string(), "it leads to more than 10,000 manifests".into());
                        return Err(RegistryError::Document { what, why });
                    }
                    // Once more behind whoever else refers to it, so that it comes before all of them in the end.
                    if let Some(known) = documents.iter().find(|known| known.digest == child.digest) {
                        documents.push(known.clone());
                    } else if seen.insert(child.digest) {
                        match client.child(&repository, &child).await {
                            Ok(found) => documents.push(found),
                            // A sparse index names platforms that nobody copied here.
                            Err(error) if error.is_not_found() => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                at += 1;
            }
            documents.reverse();
            Ok(documents)
        })?;
        let bundle = Bundle::read(documents)?;
        let origins = bundle.blobs.iter().flatten().map(|blob| (blob.digest, vec![repository.clone()])).collect();
        Ok(Held { bundle, supply: Supply { origins, ..Supply::default() } })
    }

    /// Writes an image.
    pub fn write(&self, held: Held, place: &Place) -> Result<(), PlaceError> {
        match place {
            Place::Registry(reference) => {
                let tag = match (&reference.tag, &reference.digest) {
                    (_, Some(_)) => {
                        let why = "an image is written to a tag; its digest follows from its content".to_owned();
                        return Err(PlaceError::Unknown { text: place.to_string(), why });
                    }
                    (tag, None) => tag.clone().unwrap_or_else(|| "latest".into()),
                };
                let delivery =
                    Delivery { bundle: held.bundle.into(), repository: reference.repository.clone(), tags: vec![tag] };
                self.registries.push(&[delivery], &held.supply, self.observer)?;
                Ok(())
            }
            Place::Layout(path, name) => {
                layout::check(path)?;
                self.fetch(&held, &BTreeSet::new())?;
                layout::write(path, name.as_deref(), &held)
            }
            Place::Archive(kind, path, name) => {
                if *kind == Archive::Docker && held.bundle.documents.len() > 1 {
                    let why =
                        "it is for several platforms, and an archive for Docker holds one: choose it with `--platform`";
                    return Err(PlaceError::Content { place: place.to_string(), why: why.into() });
                }
                let file = |source| PlaceError::File { path: path.clone(), source };
                crate::output::check_replaceable(path).map_err(file)?;
                self.fetch(&held, &BTreeSet::new())?;
                archive::write_file(path, name.as_deref(), &held)
            }
            Place::Daemon(name) => {
                let host = Platform::native().unwrap_or(Platform::Amd64);
                let one = held.for_platform(host)?;
                let loading = Loading { held: one, name: name.clone() };
                load(self, Into::Docker, &[loading]).map(drop)
            }
        }
    }

    /// A small blob of an image, such as a configuration, from wherever it is.
    pub fn small(&self, held: &Held, blob: &Descriptor) -> Result<Vec<u8>, PlaceError> {
        if let Some(bytes) = held.supply.read(blob)? {
            return Ok(bytes);
        }
        let from = held.supply.origins.get(&blob.digest).and_then(|it| it.first());
        let from = from.ok_or(RegistryError::Lost(blob.digest))?;
        Ok(self.registries.wait(self.registries.client().small_blob(from, blob))?.to_vec())
    }

    /// Brings blobs that are only in registries into the cache, except those of `known`.
    pub fn fetch(&self, held: &Held, known: &BTreeSet<AnyDigest>) -> Result<(), PlaceError> {
        let wanted: BTreeMap<AnyDigest, _> = held
            .bundle
            .blobs
            .iter()
            .flatten()
            .filter(|blob| !blob.is_foreign())
            .map(|blob| (blob.digest, blob))
            .collect();
        let wanted = wanted.into_values().filter(|blob| !known.contains(&blob.digest));
        let wanted: Vec<_> = wanted.filter(|blob| held.supply.origins.contains_key(&blob.digest)).collect();
        self.registries.wait(async {
            let client = self.registries.client();
            let fetches = wanted.into_iter().map(|blob| async move {
                let from = held.supply.origins[&blob.digest].first();
                let from = from.ok_or(RegistryError::Lost(blob.digest))?;
                client.blob_to_store(from, blob, self.store, self.observer).await
            });
            futures_util::future::try_join_all(fetches).await.map(drop)
        })?;
        Ok(())
    }
}

impl Held {
    /// The same image for one platform: its manifest without an index.
    pub fn for_platform(self, platform: Platform) -> Result<Held, PlaceError> {
        let wrong = |why: String| PlaceError::Content { place: self.bundle.top().digest.to_string(), why };
        let mut todo = vec![(self.bundle.top().clone(), 0)];
        let mut why = format!("it has no image for {platform}");
        let find = |digest: &AnyDigest| self.bundle.documents.iter().find(|it| it.digest == *digest).cloned();
        while let Some((document, depth)) = todo.pop() {
            let said = document.read().map_err(wrong)?;
            if !said.is_index {
                let bundle = Bundle::read(vec![document])?;
                return Ok(Held { bundle, supply: self.supply });
            }
            match document::choose(&said, platform, depth) {
                Ok(Choice::Image(found)) => todo.extend(find(&found.digest).map(|it| (it, depth + 1))),
                Ok(Choice::Deeper(found)) => {
                    todo.extend(found.iter().rev().filter_map(|it| find(&it.digest)).map(|it| (it, depth + 1)));
                }
                Err(reason) => why = reason,
            }
        }
        Err(wrong(why))
    }

    /// The configuration of a single-platform image.
    pub fn config(&self) -> Result<Value, PlaceError> {
        let wrong = |why: &str| PlaceError::Content { place: self.bundle.top().digest.to_string(), why: why.into() };
        let descriptor = self.bundle.blobs.last().and_then(|blobs| blobs.first());
        let descriptor = descriptor.ok_or_else(|| wrong("it has no configuration"))?;
        let bytes = self.supply.read(descriptor)?.ok_or_else(|| wrong("its configuration is not there"))?;
        serde_json::from_slice(&bytes).map_err(|_| wrong("its configuration is not JSON"))
    }

    /// The document that the name stands for.
    pub fn top(&self) -> &Document {
        self.bundle.top()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_as_skopeo_names_them() {
        for (text, expected) in [
            ("docker://ghcr.io/a/b:c", "ghcr.io/a/b:c"),
            ("ghcr.io/a/b", "ghcr.io/a/b"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("oci:dist:core", "oci:dist:core"),
            ("oci:dist", "oci:dist"),
            ("docker-archive:x.tar", "docker-archive:x.tar"),
            ("docker://dir:foo", "docker.io/library/dir:foo"),
            ("oci-archive:/a/x.tar:core", "oci-archive:/a/x.tar:core"),
            ("docker-daemon:core:latest", "docker-daemon:core:latest"),
        ] {
            assert_eq!(text.parse::<Place>().expect("parses").to_string(), expected);
        }
        for text in ["", "oci:", "docker-daemon:", "https://x/y", "UPPER/case", "dir:foo", "containers-storage:foo"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
