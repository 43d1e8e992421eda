//! The indexes of many archives in one blob: a build in which one archive changed reads those of all others, and one file is read
//! more quickly than a hundred.
//!
//! What lies in it is what lies in the store under the indexes' own names, as it was when it was written. It is written by such a
//! build, for the next one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use layers::lower::Resolved;
use layers::{Digest, Key};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::index::{self, Fragment, FragmentRecord};
use super::local::Local;

/// Indexes that were read at once.
#[derive(Debug, Default)]
pub struct Indexes {
    bytes: Vec<u8>,
    places: HashMap<Key, (FragmentRecord, Range<usize>)>,
}

/// What stands before the indexes' bytes: keys, records, lengths.
#[derive(Debug, Serialize, Deserialize)]
struct Head(Vec<(Key, FragmentRecord, u32)>);

/// What such a blob begins with: its kind and version.
const BEGIN: &[u8] = b"imgbuild indexes 1\n";

/// So many indexes that a build needs may lie elsewhere before all are written anew.
const APART: usize = 8;

/// Many indexes as bytes.
fn encode(indexes: Vec<(Key, FragmentRecord, Vec<u8>)>) -> Vec<u8> {
    let head = indexes.iter().map(|(key, record, bytes)| (*key, record.clone(), bytes.len() as u32));
    let mut out = postcard::to_extend(&Head(head.collect()), BEGIN.to_vec()).expect("keys and numbers");
    indexes.iter().for_each(|(.., bytes)| out.extend_from_slice(bytes));
    out
}

/// Reads what [`encode`] wrote; `None` where it is nothing of that kind.
fn decode(bytes: Vec<u8>) -> Option<Indexes> {
    let (Head(head), rest) = postcard::take_from_bytes::<Head>(bytes.strip_prefix(BEGIN)?).ok()?;
    let mut at = bytes.len() - rest.len();
    let mut places = HashMap::with_capacity(head.len());
    for (key, record, length) in head {
        let end = at.checked_add(length as usize).filter(|end| *end <= bytes.len())?;
        places.insert(key, (record, at..end));
        at = end;
    }
    Some(Indexes { bytes, places })
}

impl Indexes {
    /// The index of a fragment's key.
    pub fn get(&self, key: &Key) -> Option<Arc<Fragment>> {
        index::decode(&self.bytes[self.places.get(key)?.1.clone()])
    }
}

impl Local<'_> {
    /// Reads indexes that were [written](Local::write_indexes) together. What is wrong with them is no error: each is there once
    /// more.
    pub fn read_indexes(&self, blob: &Digest) {
        let Ok(Some(bytes)) = self.store.read(blob) else { return };
        let Some(indexes) = decode(bytes) else { return };
        *self.indexes.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(indexes));
    }

    /// An index that was read together with others.
    pub(super) fn indexed(&self, key: &Key) -> Option<Arc<Fragment>> {
        self.read_together()?.get(key)
    }

    /// The record of a fragment whose index was read together with others.
    pub(super) fn indexed_record(&self, key: &Key) -> Option<FragmentRecord> {
        self.read_together()?.places.get(key).map(|(record, _)| record.clone())
    }

    fn read_together(&self) -> Option<Arc<Indexes>> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes the indexes of a stage's archives as one blob, as far as they were there before; `None` where most were read
    /// together.
    pub fn write_indexes(&self, resolved: &Resolved) -> Result<Option<Digest>, EngineError> {
        let keys: BTreeSet<Key> = self.archives_of(&[resolved]).map(|(key, ..)| key).collect();
        let keys = keys.into_iter().filter(|key| !self.was_missing(key));
        let read = self.read_together();
        let (together, apart): (Vec<Key>, Vec<Key>) =
            keys.partition(|key| read.as_ref().is_some_and(|read| read.places.contains_key(key)));
        if apart.len() <= APART {
            return Ok(None);
        }
        let mut indexes: BTreeMap<Key, (FragmentRecord, Vec<u8>)> = BTreeMap::new();
        for key in together.into_iter().chain(apart) {
            if let (Some(record), Some(fragment)) = (self.find_record(&key)?, self.find_fragment(&key)?) {
                indexes.insert(key, (record, index::encode(&fragment)));
            }
        }
        let indexes = indexes.into_iter().map(|(key, (record, bytes))| (key, record, bytes)).collect();
        Ok(Some(self.store.put(&encode(indexes))?.digest))
    }
}

#[cfg(test)]
mod tests {
    use layers::encode::FragmentLayout;

    use super::super::index::Elf;
    use super::*;

    fn fragment(name: &str) -> Fragment {
        Fragment {
            blob: Digest::of(name.as_bytes()),
            layout: FragmentLayout::default(),
            dirs: Vec::new(),
            entries: Vec::new(),
            elf: Elf::from(Vec::new()),
            package: None,
            commands_dirs: false,
            whiteouts: Vec::new(),
            opaques: Vec::new(),
        }
    }

    #[test]
    fn each_index_is_found_and_no_damage_is_taken_for_one() {
        let names = ["a", "b", "c"];
        let key = |name: &str| Key(Digest::of(format!("key of {name}").as_bytes()));
        let all = names.map(|name| {
            let bytes = index::encode(&fragment(name));
            (key(name), FragmentRecord { fragment: fragment(name).blob, index: Digest::of(&bytes) }, bytes)
        });
        let bytes = encode(all.to_vec());
        let indexes = decode(bytes.clone()).expect("it is whole");
        assert!(all.iter().all(|(key, record, _)| indexes.places[key].0.index == record.index));
        for name in names {
            assert_eq!(indexes.get(&key(name)).as_deref(), Some(&fragment(name)));
        }
        assert!(indexes.get(&key("d")).is_none());
        for cut in 0..bytes.len() {
            let found = decode(bytes[..cut].to_vec());
            assert!(found.is_none_or(|indexes| indexes.get(&key("c")).is_none()), "cut at {cut}");
        }
    }
}
