//! Fragments: looked up by the key of what they are made from, in this process, in the store and in caches elsewhere, and
//! made where nobody has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Seek as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use cache::{CacheError, Store};
use layers::encode::LAYER_FORMAT;
use layers::format::zip::Tails;
use layers::lower::Resolved;
use layers::op::{Archive, Conversion, LayerPlan, Op};
use layers::{Digest, Key, KeyHasher};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::EngineError;
use super::bytecode::Compiler;
use super::convert::{self, Drops};
use super::earlier::{Earlier, modules_key};
use super::index::{self, Fragment, FragmentRecord, INDEX_FORMAT};
use super::later::{MadeOf, file_id};
use super::local::{FEW, Local, Walked};
use super::made::Made;
use super::members::Members;
use super::unzip::is_for_a_tail;
use crate::observe::Event;
use crate::parallel::{both, in_parallel, lock, unlocked};

/// The keys of archives as they are: the archive's name, its conversion and the key, by the archive's digest.
pub type KnownKeys = HashMap<Digest, Vec<(String, Conversion, Key)>>;

/// Fragments by the keys of what they were made from.
pub type FragmentMap = HashMap<Key, Arc<Fragment>>;

impl Local<'_> {
    pub(super) fn find_fragment(&self, key: &Key) -> Result<Option<Arc<Fragment>>, EngineError> {
        // Its bytes were there when it was loaded. Should they go meanwhile, whoever opens them says so.
        if let Some(loaded) = self.loaded(key) {
            return Ok(Some(loaded));
        }
        let Some(record) = self.find_record(key)? else { return Ok(None) };
        let index = self.store.read(&record.index)?;
        // An index of other bytes than the record names is none of this fragment, whoever wrote it.
        let index = index.and_then(|bytes| index::decode(&bytes)).filter(|it| it.blob == record.fragment);
        let Some(fragment) = index else { return Ok(None) };
        self.use_fragment(&fragment);
        if !self.is_within_reach(&fragment.blob, Some(fragment.layout.size))? {
            return Ok(None);
        }
        self.load(key, &fragment);
        Ok(Some(fragment))
    }

    /// Looks which archives of these stages have their fragments here. Says whether what follows is quick: the archives whose
    /// fragments are missing are small together, nothing is run, built, compiled or taken from other stages, and nothing is
    /// configured above a wheel that is missing.
    pub fn survey(&self, stages: &[&Resolved]) -> bool {
        let sizes: BTreeMap<Key, Option<u64>> =
            self.archives_of(stages).map(|(key, archive, _)| (key, archive.size)).collect();
        let missed = Mutex::new(BTreeSet::new());
        let looked = in_parallel(self.jobs, &sizes.keys().collect::<Vec<_>>(), |key| {
            if self.loaded(key).is_none() && !matches!(self.find_record(key), Ok(Some(_))) {
                lock(&missed).insert(**key);
            }
            Ok::<(), Infallible>(())
        });
        looked.unwrap_or_else(|never| match never {});
        let missed = unlocked(missed);
        let missing = missed.iter().try_fold(0u64, |sum, key| sum.checked_add(sizes[key]?));
        // Set-up looks into the files that are there by then.
        let is_missed = |op: &Op| match op {
            Op::Unpack { archive, conversion: conversion @ Conversion::Wheel { .. } } => {
                missed.contains(&self.key_of(archive, conversion, &Drops::new()))
            }
            _ => false,
        };
        let is_set_up_above = |stage: &&Resolved| {
            let ops: Vec<&Op> = stage.layers.iter().flat_map(LayerPlan::ops).collect();
            let last = ops.iter().rposition(|op| matches!(op, Op::Configure(_)));
            last.is_some_and(|last| ops[..last].iter().any(|op| is_missed(op)))
        };
        let takes_long = |op: &Op| matches!(op, Op::Run(_)) || waits_for_others(op);
        let mut ops = stages.iter().flat_map(|stage| &stage.layers).flat_map(LayerPlan::ops);
        let is_quick =
            missing.is_some_and(|size| size <= FEW) && !ops.any(takes_long) && !stages.iter().any(is_set_up_above);
        *lock(&self.missing) = missed;
        is_quick
    }

    /// What is unpacked in these stages, as it is, by its key.
    pub(super) fn archives_of<'r>(
        &self,
        stages: &[&'r Resolved],
    ) -> impl Iterator<Item = (Key, &'r Archive, &'r Conversion)> {
        let ops = stages.iter().flat_map(|stage| &stage.layers).flat_map(LayerPlan::ops);
        ops.filter_map(|op| match op {
            Op::Unpack { archive, conversion } => {
                Some((self.key_of(archive, conversion, &Drops::new()), archive, conversion))
            }
            _ => None,
        })
    }

    /// These fragments, and no others, are about to be made.
    pub(super) fn expect(&self, keys: BTreeSet<Key>) {
        *lock(&self.missing) = keys;
    }

    /// Whether the last [survey](Local::survey) did not find this fragment.
    pub(super) fn was_missing(&self, key: &Key) -> bool {
        lock(&self.missing).contains(key)
    }

    /// Reads the indexes of these stages' fragments that are here, with so many threads, for whoever walks over them. What cannot
    /// be read is found out there.
    pub fn recall(&self, stages: &[&Resolved], threads: usize) {
        let keys: BTreeSet<Key> =
            self.archives_of(stages).map(|(key, ..)| key).filter(|key| !self.was_missing(key)).collect();
        let recalled = in_parallel(threads, &keys.into_iter().collect::<Vec<_>>(), |key| {
            let _ = self.find_fragment(key);
            Ok::<(), Infallible>(())
        });
        recalled.unwrap_or_else(|never| match never {});
    }

    /// The key of an archive's conversion, worked out once.
    pub(super) fn key_of(&self, archive: &Archive, conversion: &Conversion, drops: &Drops) -> Key {
        if !drops.is_empty() {
            return unpack_key(archive, conversion, drops).0;
        }
        let mut keys = lock(&self.keys);
        let known = keys.entry(archive.digest).or_default();
        let is_it = |it: &&(String, Conversion, Key)| it.0 == archive.name && it.1 == *conversion;
        if let Some((.., key)) = known.iter().find(is_it) {
            return *key;
        }
        let key = unpack_key(archive, conversion, drops).0;
        known.push((archive.name.clone(), conversion.clone(), key));
        key
    }

    pub(super) fn find_record(&self, key: &Key) -> Result<Option<FragmentRecord>, EngineError> {
        let found = || lock(&self.found);
        if let Some(record) = found().get(key) {
            return Ok(Some(record.clone()));
        }
        let here = self.store.find(key)?.and_then(|bytes| serde_json::from_slice::<FragmentRecord>(&bytes).ok());
        for record in [here, self.elsewhere.fragment(key)].into_iter().flatten() {
            if self.is_within_reach(&record.fragment, None)? && self.store.has(&record.index)?.is_some() {
                found().insert(*key, record.clone());
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
        let key = self.key_of(archive, conversion, drops);
        if let Some(found) = self.find_fragment(&key)? {
            return Ok(found);
        }
        if let Some(stand_ins) = &self.looks {
            return self.without(archive, conversion, drops, stand_ins);
        }
        let (_, text) = unpack_key(archive, conversion, drops);
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
        let write = |made: Made<'static>| -> Result<(Fragment, Option<Rc<Members>>), EngineError> {
            let members = Members::of(self.store, archive, conversion)?.map(Rc::new);
            let written = Made { members: members.clone(), ..made }.write(self.store, &self.room);
            let told = |source| EngineError::Entries { archive: archive.name.clone(), source };
            Ok((written.map_err(|error| error.of_entries(told))?, members))
        };
        let convert = |path: &Path, compiler: Option<&Compiler<'_>>| {
            let convert = |tails| convert::convert(path, archive, conversion, drops, &self.room, compiler, tails);
            // A stream is copied while it is checked, so a tail is found only then.
            match convert(Tails::Refused).and_then(write) {
                Err(error) if is_for_a_tail(&error) => convert(Tails::PassedOver).and_then(write),
                done => done,
            }
        };
        // Not what was not known to be missing: something may be set up above it.
        let is_late = drops.is_empty() && compiler.is_none() && self.later.is_open();
        if is_late && self.was_missing(&key) {
            // What is wrong with it is found out below.
            if let Ok(Some(fragment)) = self.unpack_unchecked(&path, archive, conversion, (key, &text)) {
                return Ok(fragment);
            }
        }
        let (fragment, members) = match &mut compiler {
            None => {
                let make = |path: &Path| convert(path, None);
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
                convert(&path, Some(compiler))?
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

    /// A wheel as a fragment that is in no record yet: whether its files and its archive are what they should be is found out
    /// later. `None` for what is no wheel.
    fn unpack_unchecked(
        &self,
        path: &Path,
        archive: &Archive,
        conversion: &Conversion,
        (key, text): (Key, &str),
    ) -> Result<Option<Arc<Fragment>>, EngineError> {
        let Conversion::Wheel { .. } = conversion else { return Ok(None) };
        let file = file_id(path)?;
        let made = convert::convert(path, archive, conversion, &Drops::new(), &self.room, None, Tails::Refused)?;
        let members = Members::of(self.store, archive, conversion)?.map(Rc::new);
        let made = Made { members: members.clone(), ..made };
        let unchecked = made.write_unchecked(self.store, &self.room, |checks| self.check_later(checks))?;
        let fragment = unchecked.fragment.clone();
        self.use_fragment(&fragment);
        self.load(&key, &fragment);
        let (name, digest, place) = (archive.name.clone(), archive.digest, path.to_owned());
        let members = members.and_then(Rc::into_inner);
        self.finish_later(unchecked, MadeOf { name, digest, place, file, key, text: text.to_owned(), members });
        Ok(Some(fragment))
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
        if let Some(stand_ins) = &self.looks {
            return stand_ins.stand_in(&key, make()?);
        }
        // Images that share packages ask for the same set-up at the same moment.
        let turn = self.turn(&key);
        let _turn = lock(&turn);
        match self.find_fragment(&key)? {
            Some(found) => Ok(found),
            None => self.keep(&key, text, make()?),
        }
    }

    /// What is held by who makes what a key stands for: others in this process wait, and then find it.
    pub(super) fn turn(&self, key: &Key) -> Arc<Mutex<()>> {
        lock(&self.making).entry(*key).or_default().clone()
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
        let fragment = Arc::new(fragment);
        self.record_fragment(key, text, &fragment)?;
        self.load(key, &fragment);
        Ok(fragment)
    }

    /// Lets later builds know of a fragment.
    pub(super) fn record_fragment(&self, key: &Key, text: &str, fragment: &Fragment) -> Result<(), EngineError> {
        let index = self.store.put(&index::encode(fragment))?;
        let record = FragmentRecord { fragment: fragment.blob, index: index.digest };
        self.store.keep(key, text, &record)?;
        lock(&self.found).insert(*key, record);
        Ok(())
    }

    /// What `make` found out under this key, here or in an earlier build; a failure is found out anew.
    pub(super) fn remembered<T: Serialize + DeserializeOwned>(
        &self,
        key: (Key, String),
        make: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        Ok(self.remembered_if(key, |_| Ok(true), make)?.0)
    }

    /// The same where it is remembered only if the key names all that it follows from; says whether it does.
    pub(super) fn remembered_if<T: Serialize + DeserializeOwned>(
        &self,
        (key, text): (Key, String),
        is_named: impl FnOnce(&T) -> Result<bool, EngineError>,
        make: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<(T, bool), EngineError> {
        if let Some(known) = self.store.find(&key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok((known, true));
        }
        // What follows from an archive that is not known to be whole counts for this build alone.
        let is_sure = !self.later.is_unsure();
        let made = make()?;
        let is_named = is_named(&made)?;
        if is_named && is_sure && !self.later.is_unsure() && self.looks.is_none() {
            self.store.keep(&key, &text, &made)?;
        }
        Ok((made, is_named))
    }

    /// The fragments that a stage's layers are made of, and those of its archives as they are, by their keys.
    pub fn fragments_of(&self, resolved: &Resolved, walked: &Walked) -> Vec<(Key, Arc<Fragment>)> {
        let blobs: BTreeSet<Digest> =
            walked.jobs.iter().flat_map(|job| &job.fragments).map(|fragment| fragment.blob).collect();
        let keys: BTreeSet<Key> = self.archives_of(&[resolved]).map(|(key, ..)| key).collect();
        let loaded = lock(&self.loaded);
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
        let loaded = unlocked(self.loaded);
        // Where no thread can be had, they are gone by now.
        let _ = std::thread::Builder::new().spawn(move || drop(loaded));
    }

    /// A fragment whose index was read in this build.
    pub(super) fn loaded(&self, key: &Key) -> Option<Arc<Fragment>> {
        lock(&self.loaded).get(key).cloned()
    }

    /// Forgets all indexes that were read, and what is held of fragments.
    pub(super) fn forget(&self) {
        lock(&self.loaded).clear();
        lock(&self.found).clear();
        lock(&self.sound).clear();
        self.room.holding().forget();
    }

    fn load(&self, key: &Key, fragment: &Arc<Fragment>) {
        lock(&self.loaded).insert(*key, fragment.clone());
    }

    fn use_fragment(&self, fragment: &Fragment) {
        lock(&self.used).insert(fragment.blob);
    }

    /// Opens a fragment's bytes, brought from a cache elsewhere where they are not here.
    pub(super) fn open_here(&self, digest: &Digest) -> Result<Option<File>, CacheError> {
        match self.store.open(digest)? {
            None if self.elsewhere.bring(digest, self.store, self.observer) => self.store.open(digest),
            found => Ok(found),
        }
    }

    /// The bytes of a fragment in the store, for its content: what is made of that has keys that do not name these bytes, so they are hashed
    /// first, once.
    pub(super) fn open(&self, digest: &Digest) -> io::Result<File> {
        match self.open_here(digest) {
            Ok(Some(mut file)) => {
                let sound = || lock(&self.sound);
                if !sound().contains(digest) {
                    if cache::hash(&mut file)? != *digest {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{digest} is damaged")));
                    }
                    file.rewind()?;
                    sound().insert(*digest);
                }
                Ok(file)
            }
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

/// The blob that an archive was converted to as it is, if the store knows it.
pub fn known_fragment(store: &Store, archive: &Archive, conversion: &Conversion) -> Result<Option<Digest>, CacheError> {
    let record = store.find(&unpack_key(archive, conversion, &Drops::new()).0)?;
    Ok(record.and_then(|bytes| serde_json::from_slice::<FragmentRecord>(&bytes).ok()).map(|record| record.fragment))
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
