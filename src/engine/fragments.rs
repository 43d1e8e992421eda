//! Fragments: looked up by the key of what they are made from, in this process, in the store and in caches elsewhere, and
//! made where nobody has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cache::CacheError;
use layers::encode::LAYER_FORMAT;
use layers::lower::Resolved;
use layers::op::{Archive, Conversion, Op};
use layers::{Digest, Key, KeyHasher};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::EngineError;
use super::bytecode::Compiler;
use super::convert::{self, Drops};
use super::earlier::{Earlier, modules_key};
use super::index::{self, Fragment, FragmentRecord, INDEX_FORMAT};
use super::local::{FEW, Local, Walked};
use super::made::Made;
use super::members::Members;
use crate::observe::Event;
use crate::parallel::{both, in_parallel};

/// Fragments by the keys of what they were made from.
pub type FragmentMap = HashMap<Key, Arc<Fragment>>;

impl Local<'_> {
    pub(super) fn find_fragment(&self, key: &Key) -> Result<Option<Arc<Fragment>>, EngineError> {
        // Its bytes were there when it was loaded. Should they go meanwhile, whoever opens them says so.
        let loaded = self.loaded.lock().expect("no thread panics while it holds this").get(key).cloned();
        if loaded.is_some() {
            return Ok(loaded);
        }
        let Some(record) = self.find_record(key)? else { return Ok(None) };
        let Some(bytes) = self.store.read(&record.index)? else { return Ok(None) };
        let Some(fragment) = index::decode(&bytes) else { return Ok(None) };
        self.use_fragment(&fragment);
        if !self.is_within_reach(&fragment.blob, Some(fragment.layout.size))? {
            return Ok(None);
        }
        self.load(key, &fragment);
        Ok(Some(fragment))
    }

    /// Reads the indexes of these stages' fragments that are here, on all cores, for whoever walks over them. What cannot be read
    /// is found out there. Says whether what follows is quick: the archives whose fragments are missing are small together, and
    /// nothing is run, built, compiled or taken from other stages.
    pub fn recall(&self, stages: &[&Resolved]) -> bool {
        let ops = || stages.iter().flat_map(|stage| &stage.layers).flat_map(|layer| &layer.ops);
        let keys: BTreeMap<Key, Option<u64>> = ops()
            .filter_map(|op| match op {
                Op::Unpack { archive, conversion } => {
                    Some((unpack_key(archive, conversion, &Drops::new()).0, archive.size))
                }
                _ => None,
            })
            .collect();
        let missing = AtomicU64::new(0);
        let recalled = in_parallel(self.jobs, &keys.into_iter().collect::<Vec<_>>(), |(key, size)| {
            if !matches!(self.find_fragment(key), Ok(Some(_))) {
                let _ = missing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| {
                    Some(sum.saturating_add(size.unwrap_or(u64::MAX)))
                });
            }
            Ok::<(), Infallible>(())
        });
        recalled.unwrap_or_else(|never| match never {});
        let takes_long = |op: &Op| matches!(op, Op::Run(_)) || waits_for_others(op);
        missing.into_inner() <= FEW && !ops().any(takes_long)
    }

    pub(super) fn find_record(&self, key: &Key) -> Result<Option<FragmentRecord>, EngineError> {
        let here = self.store.find(key)?.and_then(|bytes| serde_json::from_slice::<FragmentRecord>(&bytes).ok());
        for record in [here, self.elsewhere.fragment(key)].into_iter().flatten() {
            if self.is_within_reach(&record.fragment, None)? && self.store.has(&record.index)?.is_some() {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// One archive as a fragment.
    pub(super) fn unpack(
        &self,
        archive: &Archive,
        conversion: &Conversion,
        drops: &Drops,
    ) -> Result<Arc<Fragment>, EngineError> {
        let (key, text) = unpack_key(archive, conversion, drops);
        if let Some(found) = self.find_fragment(&key)? {
            return Ok(found);
        }
        // Before this archive's turn: it may have to unpack the interpreter's packages, and two turns may share a lock.
        let mut compiler = match conversion {
            Conversion::Wheel { bytecode: Some(wanted), .. } => Some(self.compiler(wanted)?),
            _ => None,
        };
        let modules = modules_key(archive, conversion);
        // Another builder may be at it: wait for it rather than do it twice.
        let _turn = self.store.lock_build(&key)?;
        if let Some(found) = self.find_fragment(&key)? {
            return Ok(found);
        }
        let mut path = self.supply.supply(archive)?;
        let find = || match &modules {
            Some((key, _)) => Earlier::find(self.store, key, &self.cores),
            None => Ok(None),
        };
        // Rot in a download must not get into a fragment: some formats have no check sums of their own.
        let verify = || self.store.verify(&archive.digest);
        self.observer.on(Event::ConversionStarted { name: &archive.name });
        let convert = |path: &Path, compiler: Option<&Compiler<'_>>| {
            convert::convert(path, archive, conversion, drops, &self.room, compiler)
        };
        let write = |made: Made<'static>| -> Result<(Fragment, Option<Rc<Members>>), EngineError> {
            let members = Members::of(self.store, archive, conversion)?.map(Rc::new);
            Ok((Made { members: members.clone(), ..made }.write(self.store, &self.room)?, members))
        };
        let (fragment, members) = match &mut compiler {
            None => {
                let make = |path: &Path| convert(path, None).and_then(write);
                let (made, is_whole) = match self.cores.spare() {
                    // It counts for nothing until the archive is known to be whole.
                    Some(core) => {
                        let (made, is_whole) = both(Some(core), || make(&path), verify);
                        (Some(made), is_whole?)
                    }
                    None => (None, verify()?),
                };
                match made.filter(|_| is_whole) {
                    Some(made) => made?,
                    None => {
                        if !is_whole {
                            path = self.supply.supply(archive)?;
                        }
                        make(&path)?
                    }
                }
            }
            Some(compiler) => {
                let core = modules.as_ref().and_then(|_| self.cores.spare());
                let (earlier, is_whole) = both(core, find, verify);
                if !is_whole? {
                    path = self.supply.supply(archive)?;
                }
                compiler.earlier = earlier?;
                convert(&path, Some(compiler)).and_then(write)?
            }
        };
        let fragment = self.keep_fragment(&key, &text, fragment)?;
        if let Some(members) = members {
            members.keep(self.store, &fragment)?;
        }
        // One without its own RECORD, which another wheel may have, tells nobody anything.
        if drops.is_empty()
            && let (Some(modules), Some(record)) = (modules, self.find_record(&key)?)
        {
            Earlier::keep(self.store, modules, &fragment, record)?;
        }
        self.observer.on(Event::ConversionFinished { name: &archive.name });
        Ok(fragment)
    }

    /// The fragment of a key, or else of what `make` makes.
    pub(super) fn kept<'m>(
        &self,
        key: Key,
        text: &str,
        make: impl FnOnce() -> Result<Made<'m>, EngineError>,
    ) -> Result<Arc<Fragment>, EngineError> {
        if let Some(found) = self.find_fragment(&key)? {
            return Ok(found);
        }
        // Images that share packages ask for the same set-up at the same moment.
        let turn = self.turn(&key);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.find_fragment(&key)? {
            Some(found) => Ok(found),
            None => self.keep(&key, text, make()?),
        }
    }

    /// What is held by who makes what a key stands for: others in this process wait, and then find it.
    pub(super) fn turn(&self, key: &Key) -> Arc<Mutex<()>> {
        self.making.lock().expect("no thread panics while it holds this").entry(*key).or_default().clone()
    }

    pub(super) fn keep(&self, key: &Key, text: &str, made: Made<'_>) -> Result<Arc<Fragment>, EngineError> {
        let fragment = made.write(self.store, &self.room)?;
        self.keep_fragment(key, text, fragment)
    }

    pub(super) fn keep_fragment(
        &self,
        key: &Key,
        text: &str,
        fragment: Fragment,
    ) -> Result<Arc<Fragment>, EngineError> {
        self.use_fragment(&fragment);
        let index = self.store.put(&index::encode(&fragment))?;
        self.store.keep(key, text, &FragmentRecord { fragment: fragment.blob, index: index.digest })?;
        let fragment = Arc::new(fragment);
        self.load(key, &fragment);
        Ok(fragment)
    }

    /// What `make` found out under this key, here or in an earlier build; a failure is found out anew.
    pub(super) fn remembered<T: Serialize + DeserializeOwned>(
        &self,
        (key, text): (Key, String),
        make: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if let Some(known) = self.store.find(&key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(known);
        }
        let made = make()?;
        self.store.keep(&key, &text, &made)?;
        Ok(made)
    }

    /// The fragments that a stage's layers are made of, and those of its archives as they are, by their keys.
    pub fn fragments_of(&self, resolved: &Resolved, walked: &Walked) -> Vec<(Key, Arc<Fragment>)> {
        let blobs: BTreeSet<Digest> =
            walked.jobs.iter().flat_map(|job| &job.fragments).map(|fragment| fragment.blob).collect();
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        for op in resolved.layers.iter().flat_map(|layer| &layer.ops) {
            if let Op::Unpack { archive, conversion } = op {
                keys.insert(unpack_key(archive, conversion, &Drops::new()).0);
            }
        }
        let loaded = self.loaded.lock().expect("no thread panics while it holds this");
        let mut found: Vec<(Key, Arc<Fragment>)> = loaded
            .iter()
            .filter(|(key, fragment)| keys.contains(key) || blobs.contains(&fragment.blob))
            .map(|(key, fragment)| (*key, fragment.clone()))
            .collect();
        found.sort_by_key(|(key, _)| *key);
        found
    }

    /// Ends a build. The indexes that were read, tens of thousands of paths, are let go beside what follows.
    pub fn end(self) {
        let loaded = self.loaded.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Where no thread can be had, they are gone by now.
        let _ = std::thread::Builder::new().spawn(move || drop(loaded));
    }

    /// Whether the index of a fragment was read in this build.
    pub(super) fn is_loaded(&self, key: &Key) -> bool {
        self.loaded.lock().expect("no thread panics while it holds this").contains_key(key)
    }

    fn load(&self, key: &Key, fragment: &Arc<Fragment>) {
        self.loaded.lock().expect("no thread panics while it holds this").insert(*key, fragment.clone());
    }

    fn use_fragment(&self, fragment: &Fragment) {
        self.used.lock().expect("no thread panics while it holds this").insert(fragment.blob);
    }

    /// Opens a fragment's bytes, brought from a cache elsewhere where they are not here.
    pub(super) fn open_here(&self, digest: &Digest) -> Result<Option<File>, CacheError> {
        match self.store.open(digest)? {
            None if self.elsewhere.bring(digest, self.store, self.observer) => self.store.open(digest),
            found => Ok(found),
        }
    }

    /// The bytes of a fragment in the store.
    pub(super) fn open(&self, digest: &Digest) -> io::Result<File> {
        match self.open_here(digest) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => Err(io::Error::new(io::ErrorKind::NotFound, format!("{digest} is not in the cache"))),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Whether a fragment's bytes are here with this length, or else can be had elsewhere.
    pub(super) fn is_within_reach(&self, digest: &Digest, size: Option<u64>) -> Result<bool, CacheError> {
        Ok(match (self.store.has(digest)?, size) {
            (Some(found), Some(size)) => found == size,
            (Some(_), None) => true,
            (None, _) => self.elsewhere.holds(digest),
        })
    }
}

/// Whether an operation may wait for another stage, or for a program that runs in it.
pub(super) fn waits_for_others(op: &Op) -> bool {
    matches!(op, Op::Take(_) | Op::Dpkg(_) | Op::Compile(_) | Op::Build(_))
}

/// The key of an archive's conversion.
pub(super) fn unpack_key(archive: &Archive, conversion: &Conversion, drops: &Drops) -> (Key, String) {
    let mut hasher = KeyHasher::new("fragment", LAYER_FORMAT);
    hasher.field("index", INDEX_FORMAT);
    hasher.field("name", &archive.name);
    hasher.field("archive", archive.digest);
    hasher.field("conversion", conversion.to_json());
    hasher.field("version", convert::version(conversion));
    hasher.list("drop", drops.iter());
    hasher.finish()
}
