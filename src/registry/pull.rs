//! Reading from registries: manifests by name, blobs by digest, every byte verified.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use bytes::Bytes;
use cache::{CacheError, Store, Turn};
use layers::Platform;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Method, StatusCode};

use super::client::{Answer, Ask, Client, Failure};
use super::digest::{AnyDigest, Hasher};
use super::document::{self, ACCEPT as MANIFESTS, Choice, Descriptor, Document, Said};
use super::error::RegistryError;
use super::reference::{Reference, Repository};
use super::token::pull_scope;
use crate::failpoint::Kept;
use crate::observe::{Event, Observer};

/// What a registry says about a manifest without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glimpse {
    /// Its digest, where the registry tells it.
    pub digest: Option<AnyDigest>,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: Option<u64>,
}

/// An image for one platform, its documents verified.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Where it lies.
    pub repository: Repository,
    /// What the name leads to: an index, or the manifest itself.
    pub top: Document,
    /// The manifest.
    pub manifest: Document,
    /// Its configuration, byte for byte.
    pub config: Bytes,
    /// What the manifest says.
    pub said: Said,
}

impl Client {
    /// Asks for a manifest without its bytes; `None` where there is none.
    pub async fn glimpse(&self, reference: &Reference) -> Result<Option<Glimpse>, RegistryError> {
        let repository = &reference.repository;
        let answer = self.manifest_answer(repository, &reference.version(), Method::HEAD, MANIFESTS).await?;
        match answer.status.as_u16() {
            200 => {
                let text = |name: &str| answer.headers.get(name).and_then(|it| it.to_str().ok()).map(str::to_owned);
                Ok(Some(Glimpse {
                    digest: text("docker-content-digest").and_then(|text| text.parse().ok()),
                    media_type: text("content-type").unwrap_or_default(),
                    size: text(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok()),
                }))
            }
            404 | 410 => Ok(None),
            _ => Err(self.failed(repository, "look for a manifest", answer).await),
        }
    }

    async fn manifest_answer(
        &self,
        repository: &Repository,
        version: &str,
        method: Method,
        accept: &str,
    ) -> Result<Answer, RegistryError> {
        let url = self.url(repository, &format!("{}/manifests/{version}", repository.path)).await?;
        let ask = Ask::new("read a manifest", method, url, vec![pull_scope(repository)]).header(ACCEPT, accept);
        self.ask(repository, &ask).await
    }

    /// Reads a manifest. By digest it may come from a mirror; by tag only from the registry itself, because nobody else
    /// knows what the tag means now.
    pub async fn manifest(&self, reference: &Reference) -> Result<Document, RegistryError> {
        if let Some(digest) = &reference.digest {
            for mirror in self.mirrors(&reference.repository) {
                // A mirror that fails or lies is passed over: the registry itself is asked last.
                if let Ok(found) = self.manifest_from(&mirror, &mirror.at(*digest), MANIFESTS).await {
                    return Ok(found);
                }
            }
        }
        self.manifest_from(&reference.repository, reference, MANIFESTS).await
    }

    /// Reads the manifest of an artifact, which is of no other type than the image specification's; from its registry, not a mirror.
    pub async fn artifact(&self, reference: &Reference) -> Result<Document, RegistryError> {
        self.manifest_from(&reference.repository, reference, &document::accept_of(layers::oci::MANIFEST)).await
    }

    async fn manifest_from(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &str,
    ) -> Result<Document, RegistryError> {
        let registry = repository.registry.clone();
        let mut failures = 0;
        loop {
            let mut answer = self.manifest_answer(repository, &reference.version(), Method::GET, accept).await?;
            match answer.status.as_u16() {
                200 => {}
                404 | 410 => {
                    return Err(RegistryError::NotFound { registry, what: format!("image {reference}") });
                }
                _ => return Err(self.failed(repository, "read a manifest", answer).await),
            }
            let text = |name: &str| answer.headers.get(name).and_then(|it| it.to_str().ok()).map(str::to_owned);
            let media_type = text(CONTENT_TYPE.as_str()).unwrap_or_default();
            let said: Option<AnyDigest> = text("docker-content-digest").and_then(|text| text.parse().ok());
            let wrong = |why: String| RegistryError::Document { what: reference.to_string(), why };
            let bytes: Bytes = match self.body(&mut answer, document::LARGEST).await {
                Ok(Some(bytes)) => bytes.into(),
                Ok(None) => return Err(wrong(format!("it is larger than {} bytes", document::LARGEST))),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Broken { why, after, .. }) => {
                    failures += 1;
                    if failures >= self.config.patience.failures {
                        let (what, url) = ("read a manifest".to_owned(), reference.to_string());
                        return Err(RegistryError::Unreachable { what, url, why, failures });
                    }
                    self.rest(repository, failures, &why, after).await?;
                    continue;
                }
            };
            let expected = reference.digest.or(said);
            let digest = match expected {
                Some(digest) if digest.fits(&bytes) => digest,
                Some(digest) => {
                    let why = format!("its {} bytes hash to something else", bytes.len());
                    return Err(RegistryError::Mismatch { registry, digest, why });
                }
                None => layers::Digest::of(&bytes).into(),
            };
            let kind = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            document::read(&bytes, &kind).map_err(wrong)?;
            // Some registries send what they do not know as plain JSON: the document knows better.
            let own = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
            let own = own.and_then(|it| it.get("mediaType")?.as_str().map(str::to_owned));
            return Ok(Document { media_type: own.unwrap_or(kind), digest, bytes });
        }
    }

    /// Where else a repository's content may be had by digest.
    fn mirrors(&self, repository: &Repository) -> Vec<Repository> {
        let named = self.config.mirrors.get(&repository.registry).map(Vec::as_slice).unwrap_or_default();
        let at = |mirror: &String| Repository::parse(&format!("{}/{}", mirror.trim_end_matches('/'), repository.path));
        named.iter().filter_map(|mirror| at(mirror).ok()).collect()
    }

    /// Reads an image for a platform.
    pub async fn image(&self, reference: &Reference, platform: Platform) -> Result<Pulled, RegistryError> {
        let repository = reference.repository.clone();
        let wrong = |why: String| RegistryError::Document { what: reference.to_string(), why };
        let top = self.manifest(reference).await?;
        let mut todo = vec![(top.clone(), 0)];
        let mut why = None;
        while let Some((document, depth)) = todo.pop() {
            let said = document.read().map_err(wrong)?;
            if !said.is_index {
                let config = match said.blobs.first().filter(|_| said.has_config) {
                    Some(config) => self.small_blob(&repository, config).await?,
                    None => return Err(wrong("it is no image: it has no configuration".into())),
                };
                return Ok(Pulled { repository, top, manifest: document, config, said });
            }
            match document::choose(&said, platform, depth) {
                Ok(Choice::Image(found)) => todo.push((self.child(&repository, &found).await?, depth + 1)),
                Ok(Choice::Deeper(found)) => {
                    for nested in found.into_iter().rev() {
                        todo.push((self.child(&repository, &nested).await?, depth + 1));
                    }
                }
                Err(reason) => why = Some(reason),
            }
        }
        Err(wrong(why.unwrap_or_else(|| format!("it has no image for {platform}"))))
    }

    /// A manifest that an index names.
    pub async fn child(&self, repository: &Repository, descriptor: &Descriptor) -> Result<Document, RegistryError> {
        if descriptor.size > document::LARGEST as u64 {
            let why = format!("it is said to have {} bytes", descriptor.size);
            return Err(RegistryError::Document { what: descriptor.digest.to_string(), why });
        }
        let found = self.manifest(&repository.at(descriptor.digest)).await?;
        if found.bytes.len() as u64 != descriptor.size {
            let why = format!("it has {} bytes, its index says {}", found.bytes.len(), descriptor.size);
            return Err(RegistryError::Document { what: descriptor.digest.to_string(), why });
        }
        Ok(found)
    }

    /// A blob that fits into memory: a configuration.
    pub async fn small_blob(&self, repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let wrong = |why: String| RegistryError::Document { what: descriptor.digest.to_string(), why };
        if let Some(bytes) = descriptor.embedded().map_err(wrong)? {
            return Ok(bytes);
        }
        if descriptor.size > document::LARGEST as u64 {
            return Err(wrong(format!("it is said to have {} bytes", descriptor.size)));
        }
        let mut bytes = Vec::new();
        self.blob(repository, descriptor, &mut Memory(&mut bytes)).await?;
        Ok(bytes.into())
    }

    /// Brings a blob into the store, resuming what an earlier attempt left behind.
    pub async fn blob_to_store(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        store: &Store,
        observer: &dyn Observer,
    ) -> Result<(), RegistryError> {
        let Some(digest) = descriptor.digest.sha256() else {
            let why = "the cache keeps SHA-256 only".to_owned();
            return Err(RegistryError::Document { what: descriptor.digest.to_string(), why });
        };
        if store.has(&digest)? == Some(descriptor.size) {
            return Ok(());
        }
        let (lock, wanted) = (store.clone(), digest);
        let turn = tokio::task::spawn_blocking(move || lock.lock_download(&wanted)).await;
        let turn = turn.map_err(|error| RegistryError::Setup(error.to_string()))??;
        self.blob_in_turn(repository, descriptor, (store, digest, turn), observer).await
    }

    /// The same for who has the turn to bring the blob.
    pub async fn blob_in_turn(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        (store, digest, turn): (&Store, layers::Digest, Turn),
        observer: &dyn Observer,
    ) -> Result<(), RegistryError> {
        if store.has(&digest)? == Some(descriptor.size) {
            return Ok(());
        }
        let name = descriptor.digest.to_string();
        let _permit = self.transfers.acquire().await;
        observer.on(Event::DownloadStarted { name: &name, size: Some(descriptor.size) });
        let path = store.download_path(&digest, &turn);
        let mut sink = OnDisk { path: &path, store: Some(store), file: None, observer, name: &name };
        self.blob(repository, descriptor, &mut sink).await?;
        store.adopt(&path, &digest)?;
        observer.on(Event::DownloadFinished { name: &name });
        Ok(())
    }

    /// Brings a blob into the store of which only the digest is known, and perhaps the length.
    pub async fn blob_by_digest(
        &self,
        repository: &Repository,
        digest: layers::Digest,
        size: Option<u64>,
        store: &Store,
        observer: &dyn Observer,
    ) -> Result<(), RegistryError> {
        let size = match size {
            Some(size) => size,
            None => self.blob_size(repository, digest.into()).await?.ok_or_else(|| RegistryError::NotFound {
                registry: repository.registry.clone(),
                what: format!("blob {digest} in {}", repository.path),
            })?,
        };
        let bare = Document { media_type: String::new(), digest: digest.into(), bytes: Bytes::new() };
        let descriptor = Descriptor { size, ..bare.descriptor() };
        self.blob_to_store(repository, &descriptor, store, observer).await
    }

    /// Reads a blob into a file that is nobody else's.
    pub async fn blob_to_file(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        path: &Path,
        observer: &dyn Observer,
    ) -> Result<(), RegistryError> {
        let name = descriptor.digest.to_string();
        self.blob(repository, descriptor, &mut OnDisk { path, store: None, file: None, observer, name: &name }).await
    }

    async fn blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut (dyn Sink + Send),
    ) -> Result<(), RegistryError> {
        for mirror in self.mirrors(repository) {
            if self.blob_from(&mirror, descriptor, sink).await.is_ok() {
                return Ok(());
            }
        }
        self.blob_from(repository, descriptor, sink).await
    }

    async fn blob_from(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut (dyn Sink + Send),
    ) -> Result<(), RegistryError> {
        let registry = repository.registry.clone();
        let digest = descriptor.digest;
        let url = self.url(repository, &format!("{}/blobs/{digest}", repository.path)).await?;
        let mut failures = 0;
        // Progress is what nobody had before: a server that breaks off and begins anew each time makes none.
        let mut farthest = 0;
        loop {
            let (mut hasher, mut have) = sink.resume(digest.hasher())?;
            if have > descriptor.size || have == descriptor.size && have > 0 && hasher.clone().finish() != digest {
                sink.restart()?;
                (hasher, have) = (digest.hasher(), 0);
            }
            if have == descriptor.size && hasher.clone().finish() == digest {
                return Ok(());
            }
            let mut ask = Ask::new("read a blob", Method::GET, url.clone(), vec![pull_scope(repository)]);
            if have > 0 {
                ask = ask.header(RANGE, &format!("bytes={have}-"));
            }
            let mut answer = self.ask(repository, &ask).await?;
            match answer.status {
                StatusCode::OK if have > 0 => {
                    sink.restart()?;
                    (hasher, have) = (digest.hasher(), 0);
                }
                StatusCode::OK => {}
                StatusCode::PARTIAL_CONTENT
                    if answer
                        .headers
                        .get(CONTENT_RANGE)
                        .and_then(|it| it.to_str().ok())
                        .is_some_and(|it| it.starts_with(&format!("bytes {have}-"))) => {}
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => {
                    sink.restart()?;
                    continue;
                }
                StatusCode::NOT_FOUND | StatusCode::GONE => {
                    return Err(RegistryError::NotFound {
                        registry,
                        what: format!("blob {digest} in {}", repository.path),
                    });
                }
                _ => return Err(self.failed(repository, "read a blob", answer).await),
            }
            farthest = farthest.max(have);
            let broke = loop {
                match self.piece(&mut answer).await {
                    Ok(Some(piece)) => {
                        have += piece.len() as u64;
                        if have > descriptor.size {
                            sink.restart()?;
                            let why = format!("it is longer than the {} bytes that its manifest says", descriptor.size);
                            return Err(RegistryError::Mismatch { registry, digest, why });
                        }
                        hasher.update(&piece);
                        sink.write(&piece)?;
                    }
                    Ok(None) if have == descriptor.size => break None,
                    Ok(None) => break Some((format!("it ended after {have} of {} bytes", descriptor.size), None)),
                    Err(Failure::Broken { why, after, .. }) => break Some((why, after)),
                    Err(Failure::Final(error)) => return Err(error),
                }
            };
            let Some((why, after)) = broke else {
                let found = hasher.finish();
                if found == digest {
                    return Ok(());
                }
                sink.restart()?;
                return Err(RegistryError::Mismatch { registry, digest, why: format!("its digest is {found}") });
            };
            failures = if have > farthest { 1 } else { failures + 1 };
            farthest = farthest.max(have);
            if failures >= self.config.patience.failures {
                let what = format!("read blob {digest}");
                return Err(RegistryError::Unreachable { what, url: repository.to_string(), why, failures });
            }
            self.rest(repository, failures, &why, after).await?;
        }
    }
}

/// Where a blob goes.
trait Sink {
    /// What is there already, hashed.
    fn resume(&mut self, hasher: Hasher) -> Result<(Hasher, u64), RegistryError>;
    fn restart(&mut self) -> Result<(), RegistryError>;
    fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError>;
}

struct Memory<'a>(&'a mut Vec<u8>);

impl Sink for Memory<'_> {
    fn resume(&mut self, mut hasher: Hasher) -> Result<(Hasher, u64), RegistryError> {
        hasher.update(self.0);
        Ok((hasher, self.0.len() as u64))
    }

    fn restart(&mut self) -> Result<(), RegistryError> {
        self.0.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

struct OnDisk<'a> {
    path: &'a Path,
    /// The cache that it is in.
    store: Option<&'a Store>,
    file: Option<File>,
    observer: &'a dyn Observer,
    name: &'a str,
}

impl OnDisk<'_> {
    fn failed(&self, source: std::io::Error) -> RegistryError {
        match self.store {
            Some(_) => CacheError::at(self.path)(source).into(),
            None => RegistryError::File { path: self.path.into(), source },
        }
    }
}

impl Sink for OnDisk<'_> {
    fn resume(&mut self, mut hasher: Hasher) -> Result<(Hasher, u64), RegistryError> {
        let mut have = 0;
        let opened = OpenOptions::new().create(true).read(true).append(true).open(self.path);
        let file = opened.map_err(|error| self.failed(error))?;
        let read = cache::in_pieces(&file, |piece| {
            hasher.update(piece);
            have += piece.len() as u64;
            Ok(())
        });
        read.map_err(|error| self.failed(error))?;
        self.file = Some(file);
        Ok((hasher, have))
    }

    fn restart(&mut self) -> Result<(), RegistryError> {
        let emptied = self.file.as_ref().map_or(Ok(()), |file| file.set_len(0));
        emptied.map_err(|error| self.failed(error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        if let Err(error) = written {
            // Nobody else counts it, and whoever makes room for the next attempt asks how much this one wrote.
            let have = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
            self.store.inspect(|store| store.count(have, 0));
            return Err(self.failed(error));
        }
        Kept::Chunk.reach();
        self.observer.on(Event::DownloadAdvanced { name: self.name, bytes: bytes.len() as u64 });
        Ok(())
    }
}
