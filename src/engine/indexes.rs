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
    places: HashMap<Key, Range<usize>>,
}

/// What stands before the indexes' bytes: keys, records, lengths.
#[derive(Debug, Serialize, Deserialize)]
struct Head(Vec<(Key, FragmentRecord, u32)>);

/// So many indexes that a build needs may lie elsewhere before all are written anew.
const APART: usize = 8;

/// Many indexes as bytes.
fn encode(indexes: Vec<(Key, FragmentRecord, Vec<u8>)>) -> Vec<u8> {
    let head = indexes.iter().map(|(key, record, bytes)| (*key, record.clone(), bytes.len() as u32));
    let mut out = postcard::to_stdvec(&Head(head.collect())).expect("keys and numbers");
    indexes.iter().for_each(|(.., bytes)| out.extend_from_slice(bytes));
    out
}

/// Reads what [`encode`] wrote, with the records; `None` where it is nothing of that kind.
fn decode(bytes: Vec<u8>) -> Option<(Indexes, Vec<(Key, FragmentRecord)>)> {
    let (Head(head), rest) = postcard::take_from_bytes::<Head>(&bytes).ok()?;
    let mut at = bytes.len() - rest.len();
    let mut places = HashMap::with_capacity(head.len());
    let mut records = Vec::with_capacity(head.len());
    for (key, record, length) in head {
        let end = at.checked_add(length as usize).filter(|end| *end <= bytes.len())?;
        places.insert(key, at..end);
        records.push((key, record));
        at = end;
    }
    Some((Indexes { bytes, places }, records))
}

impl Indexes {
    /// The index of a fragment's key.
    pub fn get(&self, key: &Key) -> Option<Arc<Fragment>> {
        index::decode(&self.bytes[self.places.get(key)?.clone()])
    }
}

impl Local<'_> {
    /// Reads indexes that were [written](Local::write_indexes) together. What is wrong with them is no error: each is there once
    /// more.
    pub fn read_indexes(&self, blob: &Digest) {
        let Ok(Some(bytes)) = self.store.read(blob) else { return };
        let Some((indexes, records)) = decode(bytes) else { return };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).extend(records);
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(indexes));
    }

    /// An index that was read together with others.
    pub(super) fn indexed(&self, key: &Key) -> Option<Arc<Fragment>> {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        indexes.iter().find_map(|it| it.get(key))
    }

    /// Writes the indexes of a stage's archives as one blob, as far as they were there before; `None` where most were read
    /// together.
    pub fn write_indexes(&self, resolved: &Resolved) -> Result<Option<Digest>, EngineError> {
        let keys: BTreeSet<Key> = self.archives_of(&[resolved]).map(|(key, ..)| key).collect();
        let keys = keys.into_iter().filter(|key| !self.was_missing(key));
        let read = self.indexes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (together, apart): (Vec<Key>, Vec<Key>) =
            keys.partition(|key| read.iter().any(|it| it.places.contains_key(key)));
        if apart.len() <= APART {
            return Ok(None);
        }
        let mut indexes: BTreeMap<Key, (FragmentRecord, Vec<u8>)> = BTreeMap::new();
        for key in together.into_iter().chain(apart) {
            if let (Some(record), Some(fragment)) = (self.find_record(&key)?, self.loaded(&key)) {
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
        let (indexes, records) = decode(bytes.clone()).expect("it is whole");
        assert!(records.iter().zip(&all).all(|((key, record), one)| (key, record.index) == (&one.0, one.1.index)));
        for name in names {
            assert_eq!(indexes.get(&key(name)).as_deref(), Some(&fragment(name)));
        }
        assert!(indexes.get(&key("d")).is_none());
        for cut in 0..bytes.len() {
            let found = decode(bytes[..cut].to_vec());
            assert!(found.is_none_or(|(indexes, _)| indexes.get(&key("c")).is_none()), "cut at {cut}");
        }
    }
}
