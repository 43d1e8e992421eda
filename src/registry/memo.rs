//! What a registry is known to have, from earlier pushes.
//!
//! A memo saves questions, it never replaces an answer that matters: before what it says about a repository is used, the
//! registry is asked for the manifest that it was written for, because a manifest that is there keeps its blobs there;
//! and a registry that then refuses a manifest for a missing blob makes us forget it.

use std::collections::BTreeSet;

use cache::{CacheError, Store};
use layers::{Key, KeyHasher};
use serde::{Deserialize, Serialize};

use super::digest::AnyDigest;
use super::reference::Repository;

/// The format of the records.
const VERSION: u32 = 1;
/// Repositories that are remembered as holders of a blob.
const HOLDERS: usize = 4;

/// A manifest that was pushed to a repository, and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    pub top: AnyDigest,
    pub below: BTreeSet<AnyDigest>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    top: String,
    below: Vec<String>,
}

/// The memo of a cache; without a cache it knows nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Memo {
    store: Option<Store>,
}

impl Memo {
    pub fn new(store: &Store) -> Memo {
        Memo { store: Some(store.clone()) }
    }

    fn pushed(repository: &Repository) -> (Key, String) {
        let mut hasher = KeyHasher::new("registry-pushed", VERSION);
        hasher.field("repository", repository);
        hasher.finish()
    }

    fn holders_of(registry: &str, digest: &AnyDigest) -> (Key, String) {
        let mut hasher = KeyHasher::new("registry-holders", VERSION);
        hasher.field("registry", registry).field("blob", digest);
        hasher.finish()
    }

    /// The manifest that was last pushed to a repository.
    pub fn last(&self, repository: &Repository) -> Option<Remembered> {
        let bytes = self.store.as_ref()?.find(&Memo::pushed(repository).0).ok()??;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        let below = record.below.iter().map(|text| text.parse()).collect::<Result<_, _>>().ok()?;
        Some(Remembered { top: record.top.parse().ok()?, below })
    }

    /// Whether a blob is hardly anywhere: not among what was pushed to its repository last, and no other has it.
    pub fn is_new(&self, last: Option<&Remembered>, registry: &str, digest: &AnyDigest) -> bool {
        last.is_some_and(|last| !last.below.contains(digest)) && self.holders(registry, digest).is_empty()
    }

    /// Remembers a push.
    pub fn keep(&self, repository: &Repository, remembered: &Remembered) -> Result<(), CacheError> {
        let Some(store) = &self.store else { return Ok(()) };
        if self.last(repository).as_ref() == Some(remembered) {
            return Ok(());
        }
        let record = Record {
            top: remembered.top.to_string(),
            below: remembered.below.iter().map(AnyDigest::to_string).collect(),
        };
        let (key, text) = Memo::pushed(repository);
        store.keep(&key, &text, &record)
    }

    /// Remembers what somebody else may have pushed to a repository, where nothing is known of it.
    pub fn guess(&self, repository: &Repository, remembered: &Remembered) -> Result<(), CacheError> {
        if self.last(repository).is_some() { Ok(()) } else { self.keep(repository, remembered) }
    }

    /// Forgets a repository.
    pub fn forget(&self, repository: &Repository) -> Result<(), CacheError> {
        match &self.store {
            Some(store) => store.forget(&Memo::pushed(repository).0),
            None => Ok(()),
        }
    }

    /// Paths of repositories of a registry that have a blob.
    pub fn holders(&self, registry: &str, digest: &AnyDigest) -> Vec<String> {
        let found = self.store.as_ref().and_then(|store| store.find(&Memo::holders_of(registry, digest).0).ok()?);
        found.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Forgets that a repository has a blob: it was asked for it, and did not give it.
    pub fn lacks(&self, repository: &Repository, digest: &AnyDigest) -> Result<(), CacheError> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut holders = self.holders(&repository.registry, digest);
        let Some(at) = holders.iter().position(|path| *path == repository.path) else { return Ok(()) };
        holders.remove(at);
        let (key, text) = Memo::holders_of(&repository.registry, digest);
        store.keep(&key, &text, &holders)
    }

    /// Remembers that a repository has a blob.
    pub fn holds(&self, repository: &Repository, digest: &AnyDigest) -> Result<(), CacheError> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut holders = self.holders(&repository.registry, digest);
        if holders.contains(&repository.path) || holders.len() >= HOLDERS {
            return Ok(());
        }
        holders.push(repository.path.clone());
        let (key, text) = Memo::holders_of(&repository.registry, digest);
        store.keep(&key, &text, &holders)
    }
}

/// The manifest that was last pushed to a repository from this cache.
pub fn last_pushed(store: &Store, repository: &Repository) -> Option<AnyDigest> {
    Memo::new(store).last(repository).map(|remembered| remembered.top)
}

/// Says that an image with these blobs may have been pushed to a repository by somebody else. A push that would gain by it asks
/// the registry whether it has the image.
pub fn may_have(
    store: &Store,
    repository: &Repository,
    image: layers::Digest,
    blobs: impl Iterator<Item = layers::Digest>,
) -> Result<(), CacheError> {
    let below = blobs.map(AnyDigest::from).collect();
    Memo::new(store).guess(repository, &Remembered { top: image.into(), below })
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::Digest;

    #[test]
    fn pushes_and_holders_are_remembered_by_registry() {
        let folder = tempfile::tempdir().expect("a folder");
        let memo = Memo::new(&Store::open_at(folder.path()).expect("opens"));
        let repository = |text: &str| Repository::parse(text).expect("parses");
        let blob = AnyDigest::from(Digest::of(b"x"));
        let remembered = Remembered { top: blob, below: [blob].into() };
        assert_eq!(memo.last(&repository("x.io/a")), None);
        memo.keep(&repository("x.io/a"), &remembered).expect("keeps");
        assert_eq!(memo.last(&repository("x.io/a")), Some(remembered));
        assert_eq!(memo.last(&repository("y.io/a")), None);
        memo.forget(&repository("x.io/a")).expect("forgets");
        assert_eq!(memo.last(&repository("x.io/a")), None);
        for name in ["x.io/a", "x.io/b", "x.io/a", "y.io/c"] {
            memo.holds(&repository(name), &blob).expect("keeps");
        }
        assert_eq!(memo.holders("x.io", &blob), ["a", "b"]);
        // A place among the few is for those that have it.
        for name in ["x.io/c", "x.io/d", "x.io/e"] {
            memo.holds(&repository(name), &blob).expect("keeps");
        }
        assert_eq!(memo.holders("x.io", &blob), ["a", "b", "c", "d"]);
        memo.lacks(&repository("x.io/a"), &blob).expect("forgets");
        memo.holds(&repository("x.io/e"), &blob).expect("keeps");
        assert_eq!(memo.holders("x.io", &blob), ["b", "c", "d", "e"]);
    }
}
