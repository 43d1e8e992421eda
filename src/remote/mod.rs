//! Caches elsewhere: what one machine built, another need not build again.
//!
//! ```text
//! document   what was built, signed: the records of an image, and where its bytes are
//! dir        a folder, on a disk that machines share
//! registry   artifacts in a repository of a registry
//! s3         objects in a bucket
//! publish    what goes out while the build goes on
//! ```
//!
//! The one idea: a cache elsewhere holds *answers*, not truths. Bytes are compared with the digest that they were asked
//! by, but nothing can tell from hashes that a record names the layers of another image. So records count only if a
//! configured key has signed them, or if their store is trusted by name. Whatever goes wrong is a warning and a build.

mod dir;
mod document;
mod publish;
mod registry;
mod s3;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use cache::{Blob, Store};
use layers::Key;

pub use dir::Folder;
pub use document::{
    Answer, Believed, Delivered, KnownFoundation, KnownFragment, KnownLayer, Parts, Payload, PublicKey, Remembered,
    SigningKey, image_name, latest_name, layers_name, parts_name,
};
pub use publish::{Job, Publisher};
pub use registry::Artifacts;
pub use s3::{BucketPlace, Objects, S3Settings};

use crate::fetch::FetchError;
use crate::observe::{Event, Observer};
use crate::parallel::{lock, unlocked};
use crate::registry::{RegistryError, Repository};

/// Why a cache elsewhere did not serve.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Reading or writing a file failed.
    #[error("`{path}`: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Bytes that are not what they were asked by.
    #[error("{0} is damaged or something else there")]
    Damaged(layers::Digest),
    /// A blob of this machine's cache that is to be sent.
    #[error(
        "{0} is damaged in the cache of this machine: `imgbuild cache verify` removes it, and the next build makes it again"
    )]
    RottedHere(layers::Digest),
    /// A blob that is not there.
    #[error("{0} is not there")]
    Gone(layers::Digest),
    /// A registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A service.
    #[error(transparent)]
    Service(#[from] FetchError),
    /// The cache of this machine.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
}

impl RemoteError {
    /// Whether the cache of this machine failed, and not the one elsewhere.
    fn is_of_this_machine(&self) -> bool {
        use RegistryError::{Cache, File};
        matches!(
            self,
            RemoteError::Cache(_)
                | RemoteError::Service(FetchError::Cache(_))
                | RemoteError::Registry(Cache(_) | File { .. })
        )
    }
}

/// Blobs that are moved at once.
pub(crate) const TRANSFERS: usize = 8;

/// A cache elsewhere.
///
/// Documents have names and are small; blobs are named by their digest. An implementation verifies nothing but blobs.
pub trait Remote: Send + Sync {
    /// The document of this name, with one request; `None` where there is none.
    fn find(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError>;

    /// Brings a blob into the store, verified by its digest and length.
    fn fetch(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError>;

    /// Whether it has a blob, without reading it.
    fn has(&self, blob: &Blob) -> Result<bool, RemoteError>;

    /// Whether publishing to be kept by this name came to its end, as far as one request tells: `last` was published as the last blob.
    /// What was lost since is found out by who wants it.
    fn keeps(&self, name: &str, last: &Blob) -> Result<bool, RemoteError>;

    /// Where a blob of it lies, for who can take it from there without bringing it first.
    fn place(&self, digest: &layers::Digest) -> Place;

    /// Hears that something of it is damaged.
    fn distrust(&self) {}

    /// Stores a document under its names after the blobs that are kept by it; what is there is not sent. Blobs are hashed
    /// while they are sent. An empty document does nothing but keep blobs.
    fn publish(&self, names: &[String], document: &[u8], blobs: &[Blob], store: &Store) -> Result<(), RemoteError>;
}

/// Where a blob lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File(PathBuf),
    /// In a repository.
    Repository(Repository),
    /// Where it must be brought from first.
    Service,
}

/// A cache elsewhere as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteSpec {
    /// `dir:PATH`.
    Dir(PathBuf),
    /// `registry:HOST/REPOSITORY`.
    Registry(Repository),
    /// `s3://BUCKET/PREFIX`.
    Bucket(BucketPlace),
}

impl RemoteSpec {
    /// The same cache for whoever is in `folder`: a folder by its real path, where it is there.
    pub fn seen_from(self, folder: &Path) -> RemoteSpec {
        match self {
            RemoteSpec::Dir(path) => {
                let path = folder.join(path);
                RemoteSpec::Dir(std::fs::canonicalize(&path).unwrap_or(path))
            }
            elsewhere => elsewhere,
        }
    }

    /// The registry that it is in.
    pub fn host(&self) -> Option<&str> {
        match self {
            RemoteSpec::Registry(repository) => Some(&repository.registry),
            _ => None,
        }
    }
}

impl FromStr for RemoteSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<RemoteSpec, String> {
        let wrong = |why: String| format!("`{text}` is no cache: {why}");
        match text.split_once(':') {
            Some(("dir", "")) | Some(("registry", "")) => Err(wrong("it names no place".into())),
            // The same folder is the same cache, however it is written.
            Some(("dir", path)) => {
                let named = Path::new(path).components().filter(|part| *part != Component::CurDir);
                let path = named.collect::<PathBuf>();
                Ok(RemoteSpec::Dir(if path.as_os_str().is_empty() { ".".into() } else { path }))
            }
            Some(("registry", repository)) => {
                Repository::parse(repository).map(RemoteSpec::Registry).map_err(|error| wrong(error.to_string()))
            }
            Some(("s3", place)) if place.starts_with("//") => place[2..].parse().map(RemoteSpec::Bucket).map_err(wrong),
            _ => Err(wrong("use `dir:PATH`, `registry:HOST/REPOSITORY` or `s3://BUCKET/PREFIX`".into())),
        }
    }
}

impl fmt::Display for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteSpec::Dir(path) => write!(f, "dir:{}", path.display()),
            RemoteSpec::Registry(repository) => write!(f, "registry:{repository}"),
            RemoteSpec::Bucket(place) => place.fmt(f),
        }
    }
}

/// A cache to read from.
pub struct Source {
    /// As it was written.
    pub label: String,
    /// The cache.
    pub remote: Arc<dyn Remote>,
    /// Whether records without a signature are believed.
    pub trusted: bool,
}

/// The caches that are read from, and what was learnt from them.
#[derive(Default)]
pub struct Sources {
    sources: Vec<Source>,
    keys: Vec<PublicKey>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    remembered: Remembered,
    /// Caches that failed: they are not asked again.
    failed: Vec<bool>,
    /// What is still to be said about them.
    troubles: Vec<String>,
    /// Blobs that one of them did not give.
    unfinished: BTreeSet<layers::Digest>,
}

/// Keeps warnings.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn on(&self, event: Event<'_>) {
        if let Event::Warning(text) = event {
            lock(&self.0).push(text.to_owned());
        }
    }
}

impl Sources {
    /// Caches, best first, and the keys whose signatures count.
    pub fn new(sources: Vec<Source>, keys: Vec<PublicKey>) -> Sources {
        let failed = vec![false; sources.len()];
        Sources { sources, keys, found: Mutex::new(Found { failed, ..Found::default() }) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        lock(&self.found)
    }

    /// Asks the caches, in their order, for a believable document of this name. Gives it with the cache that has it, as that was written.
    pub fn ask(&self, name: &str, observer: &dyn Observer) -> Option<(Payload, &str)> {
        for (at, source) in self.sources.iter().enumerate() {
            if self.found().failed[at] {
                continue;
            }
            let bytes = match source.remote.find(name) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) => {
                    self.fail(at, &error.to_string(), observer);
                    continue;
                }
            };
            // Another imgbuild, which has no use for ours either.
            if Answer::is_of_another_version(&bytes) {
                continue;
            }
            match Answer::read(&bytes, name, &self.keys) {
                Ok((payload, Believed::Signed)) => return Some(self.learn(payload, at)),
                Ok((payload, Believed::Unsigned)) if source.trusted => return Some(self.learn(payload, at)),
                Ok((_, Believed::Unsigned)) => {
                    let why = "its records are signed by no key of `cache.trusted-keys`, and it is not among \
                               `cache.trusted-stores`";
                    self.fail(at, why, observer);
                }
                Err(why) => self.fail(at, &why, observer),
            }
        }
        None
    }

    fn learn(&self, payload: Payload, from: usize) -> (Payload, &str) {
        self.found().remembered.learn(&payload, from);
        (payload, &self.sources[from].label)
    }

    /// Says once that a cache is of no use, and asks it no more.
    fn fail(&self, at: usize, why: &str, observer: &dyn Observer) {
        if !std::mem::replace(&mut self.found().failed[at], true) {
            let label = &self.sources[at].label;
            observer.on(Event::Warning(&format!("the cache `{label}` is passed over: {why}")));
        }
    }

    /// The record of a layer that some cache told of.
    pub fn layer(&self, key: &Key) -> Option<crate::engine::local::LayerRecord> {
        self.found().remembered.layer(key)
    }

    /// The record of a fragment that some cache told of.
    pub fn fragment(&self, key: &Key) -> Option<crate::engine::index::FragmentRecord> {
        self.found().remembered.fragment(key)
    }

    /// What upper layers stand on, as some cache told.
    pub fn foundation(&self, key: &Key) -> Option<crate::engine::foundation::Foundation> {
        self.found().remembered.foundation(key).map(|(foundation, _)| foundation.clone())
    }

    /// The bundle with the fragments of what upper layers stand on.
    pub fn bundle(&self, key: &Key) -> Option<Blob> {
        self.found().remembered.foundation(key).and_then(|(_, bundle)| *bundle)
    }

    /// Reads a bundle that was brought, and takes in what it tells. One that is none tells nothing.
    pub fn unpack(&self, bundle: &Blob, store: &Store) -> Result<Parts, cache::CacheError> {
        let parts = store.read(&bundle.digest)?.and_then(|packed| Parts::unpack(&packed)).unwrap_or_default();
        let mut found = self.found();
        let holders = found.remembered.holders(&bundle.digest);
        found.remembered.learn_parts(&parts, &holders);
        Ok(parts)
    }

    /// Whether this cache itself, as it was written, has said that it holds the blob, and has not failed since.
    pub fn was_told_by(&self, label: &str, digest: &layers::Digest) -> bool {
        let found = self.found();
        let is_it = |at: &usize| !found.failed[*at] && self.sources[*at].label == label;
        found.remembered.holders(digest).iter().any(is_it)
    }

    /// Whether a cache that still serves has said that it holds the blob.
    pub fn holds(&self, digest: &layers::Digest) -> bool {
        let found = self.found();
        found.remembered.holders(digest).iter().any(|at| !found.failed[*at])
    }

    /// Whether some cache has said that it holds the blob, also one that failed since.
    pub fn was_told_of(&self, digest: &layers::Digest) -> bool {
        self.found().remembered.size(digest).is_some()
    }

    /// Brings a blob that a cache has told of into the store. `false`: no cache has it, or none gave it, or it cannot be written here,
    /// which whoever needs it says.
    pub fn bring(&self, digest: &layers::Digest, store: &Store, observer: &dyn Observer) -> bool {
        self.try_bring(digest, store, observer).unwrap_or(false)
    }

    /// As [`bring`](Sources::bring); an error is one of this machine's cache.
    fn try_bring(&self, digest: &layers::Digest, store: &Store, observer: &dyn Observer) -> Result<bool, RemoteError> {
        let (size, holders) = {
            let found = self.found();
            let Some(size) = found.remembered.size(digest) else { return Ok(false) };
            (size, found.remembered.holders(digest))
        };
        if store.has(digest).is_ok_and(|there| there == Some(size)) {
            return Ok(true);
        }
        for at in holders {
            if self.found().failed[at] {
                continue;
            }
            match self.sources[at].remote.fetch(&Blob { digest: *digest, size }, store) {
                Ok(()) => return Ok(true),
                Err(error) if error.is_of_this_machine() => return Err(error),
                Err(error) => {
                    self.found().unfinished.insert(*digest);
                    self.fail(at, &error.to_string(), observer);
                }
            }
        }
        Ok(false)
    }

    /// Removes what came of blobs that could not be had, and that nobody will go on with.
    pub fn tidy(&self, store: &Store) -> Result<(), cache::CacheError> {
        std::mem::take(&mut self.found().unfinished).iter().try_for_each(|digest| store.tidy_download(digest))
    }

    /// As [`bring`](Sources::bring), where nobody hears what went wrong elsewhere: [`Sources::troubles`] tells it later.
    ///
    /// # Errors
    /// If the cache of this machine failed.
    pub fn bring_in_silence(&self, digest: &layers::Digest, store: &Store) -> Result<bool, RemoteError> {
        let heard = Heard::default();
        let is_here = self.try_bring(digest, store, &heard);
        self.found().troubles.append(&mut unlocked(heard.0));
        is_here
    }

    /// What went wrong where nobody heard it; each is told once.
    pub fn troubles(&self) -> Vec<String> {
        std::mem::take(&mut self.found().troubles)
    }

    /// Where a blob lies that some cache has told of.
    pub fn place(&self, digest: &layers::Digest) -> Option<Place> {
        let found = self.found();
        let at = found.remembered.holders(digest).into_iter().find(|at| !found.failed[*at])?;
        Some(self.sources[at].remote.place(digest))
    }

    /// Something that lies in one of the caches is damaged.
    pub fn distrust(&self) {
        self.sources.iter().for_each(|source| source.remote.distrust());
    }

    /// Asks no cache any more: what they told is forgotten.
    pub fn forget(&self) {
        let mut found = self.found();
        found.failed.fill(true);
        found.remembered = Remembered::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use layers::Digest;

    use super::*;

    #[test]
    fn what_cannot_be_written_here_is_no_fault_of_the_cache_that_gives_it() {
        let root = tempfile::tempdir().expect("a folder");
        let [store, other] = ["store", "other"].map(|name| Store::open_at(&root.path().join(name)).expect("opens"));
        let blob = other.put(b"a fragment").expect("puts");
        let folder = Folder::new(&root.path().join("elsewhere"), Duration::from_secs(60));
        folder.publish(&[], b"", &[blob], &other).expect("publishes");
        let source = Source { label: "dir:elsewhere".into(), remote: Arc::new(folder), trusted: true };
        let sources = Sources::new(vec![source], Vec::new());
        let digest = Digest::of(b"x");
        let fragments = vec![KnownFragment { key: Key(digest), blob, index: digest }];
        sources.found().remembered.learn_parts(&Parts { fragments, indexes: Vec::new() }, &[0]);
        std::fs::remove_dir(store.scratch()).expect("removes");
        let failed = sources.bring_in_silence(&blob.digest, &store).expect_err("it cannot be written");
        assert!(failed.is_of_this_machine() && failed.to_string().contains("tmp-v1"), "{failed}");
        assert!(sources.troubles().is_empty() && sources.holds(&blob.digest));
        std::fs::create_dir(store.scratch()).expect("makes");
        assert!(sources.bring_in_silence(&blob.digest, &store).expect("brings"));
    }
}
