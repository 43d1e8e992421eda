//! `cache verify`: everything is what its name says, and layers are what records say of them.
//!
//! A digest tells whether bytes are whole. That the tar of a layer is the one that a record names (its diff id, which goes into
//! configurations) only these bytes can tell: every layer that a record names is unpacked, and kept nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::sync::Mutex;

use cache::{CacheError, Collector, Copied, Store};
use layers::format::{Limits, decompress};
use layers::{DiffId, Digest, Key};
use serde::Deserialize as _;
use serde_json::Value;

use crate::engine::local::{LayerRecord, is_hashed_on};
use crate::parallel::{lock, unlocked};

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Blobs.
    pub blobs: cache::Verified<Digest>,
    /// Records.
    pub records: cache::Verified<Key>,
    /// How many layers were unpacked.
    pub layers: usize,
    /// Those that are not what was recorded of them. They stay, and the records are gone.
    pub refuted: Vec<Refuted>,
}

/// A layer of which records said something else than its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuted {
    /// The layer.
    pub layer: Digest,
    /// What its tar was said to be.
    pub recorded: DiffId,
    /// What it is; `None` where it cannot be unpacked.
    pub found: Option<DiffId>,
}

/// Layers, what their tar is said to be, and the records that say so.
type Said = BTreeMap<Digest, BTreeMap<DiffId, Vec<Key>>>;

/// Reads everything on so many threads, and removes what is wrong.
pub fn verify(store: &Store, collector: &Collector<'_>, threads: usize) -> Result<Verified, CacheError> {
    let (mut said, mut hashed_on) = (Said::new(), Vec::new());
    let records = collector.verify_records(|key, recorded| {
        for layer in layers_in(&recorded.record) {
            said.entry(layer.digest).or_default().entry(layer.diff_id).or_default().push(key);
        }
        if recorded.text.starts_with("beginning ") || is_hashed_on(&recorded.record) {
            hashed_on.push(key);
        }
    })?;
    let found = Mutex::new(BTreeMap::new());
    let blobs = collector.verify_blobs(threads, |blob, file| {
        if said.contains_key(&blob.digest) {
            let unpacked = diff_id(file).map_err(CacheError::at(&store.blob_path(&blob.digest)))?;
            lock(&found).insert(blob.digest, unpacked);
        }
        Ok(())
    })?;
    let found = unlocked(found);
    let layers = found.len();
    let (mut refuted, mut wrong) = (Vec::new(), BTreeSet::new());
    for (layer, found) in found {
        for (recorded, keys) in said.remove(&layer).into_iter().flatten() {
            if found != Some(recorded) {
                refuted.push(Refuted { layer, recorded, found });
                wrong.extend(keys);
            }
        }
    }
    if !refuted.is_empty() {
        // What its tar was hashed on from may be what is wrong, and the next one would be, too.
        wrong.extend(hashed_on);
    }
    collector.reject(wrong)?;
    Ok(Verified { blobs, records, layers, refuted })
}

/// Every layer that a record names, wherever it stands there: in that of a layer, of an image, of what it stands on, of what a build
/// left.
fn layers_in(record: &[u8]) -> Vec<LayerRecord> {
    fn collect(value: &Value, found: &mut Vec<LayerRecord>) {
        match value {
            Value::Object(members) => match LayerRecord::deserialize(value) {
                Ok(layer) => found.push(layer),
                Err(_) => members.values().for_each(|value| collect(value, found)),
            },
            Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    // Most records name none.
    if memchr::memmem::find(record, b"\"diff_id\"").is_some()
        && let Ok(value) = serde_json::from_slice(record)
    {
        collect(&value, &mut found);
    }
    found
}

/// What a layer unpacks to; `None` where it cannot be.
fn diff_id(file: File) -> std::io::Result<Option<DiffId>> {
    // Ours, whatever its size; nothing of it is kept.
    let limits = Limits { max_output: u64::MAX, max_ratio: u64::MAX, ..Limits::default() };
    let mut packed = Copied::from(file);
    let tar = decompress(BufReader::with_capacity(256 << 10, &mut packed), &limits);
    match tar.map_err(std::io::Error::from).and_then(cache::hash) {
        Err(error) if packed.failed() => Err(error),
        found => Ok(found.ok().map(DiffId)),
    }
}

#[cfg(test)]
mod tests {
    use cache::{Blob, Waiting};
    use layers::KeyHasher;
    use layers::encode::gzip;
    use serde_json::json;

    use super::*;

    struct Kept {
        store: Store,
        _folder: tempfile::TempDir,
    }

    impl Kept {
        fn new() -> Kept {
            let folder = tempfile::tempdir().expect("a folder");
            Kept { store: Store::open_at(folder.path()).expect("opens"), _folder: folder }
        }

        /// Keeps a record of this kind.
        fn record(&self, kind: &str, name: &str, record: &Value) -> Key {
            let mut hasher = KeyHasher::new(kind, 1);
            hasher.field("name", name);
            let (key, text) = hasher.finish();
            self.store.keep(&key, &text, record).expect("keeps");
            key
        }

        /// What verification finds on several threads.
        fn refuted(&self) -> Vec<Refuted> {
            let collector = self.store.collector(Waiting::No).expect("locks").expect("nobody builds");
            verify(&self.store, &collector, 3).expect("reads").refuted
        }

        fn has(&self, keys: &[Key]) -> Vec<bool> {
            keys.iter().map(|key| self.store.find(key).expect("looks").is_some()).collect()
        }
    }

    /// What a record says of a layer.
    fn says(blob: &Blob, tar: &[u8]) -> Value {
        json!(LayerRecord { digest: blob.digest, diff_id: DiffId(Digest::of(tar)), size: blob.size })
    }

    #[test]
    fn every_record_that_is_wrong_about_a_layer_goes_and_no_other() {
        let kept = Kept::new();
        let layers = ["one", "two"].map(|tar| kept.store.put(&gzip(tar.as_bytes())).expect("puts"));
        let [one, two] = &layers;
        let mut hashed_on = says(one, b"one");
        hashed_on["prefixes1"] = json!(["00"]);
        let keys = [
            kept.record("layer", "right", &says(one, b"one")),
            kept.record("image", "right", &json!({ "layers": [says(one, b"one"), says(two, b"two")] })),
            // What is not here cannot be compared.
            kept.record("layer", "gone", &says(&Blob { digest: Digest::of(b"gone"), size: 4 }, b"gone")),
            kept.record("beginning", "x", &json!({ "fragments": [], "prefixes": [] })),
            kept.record("layer", "hashed on", &hashed_on),
        ];
        assert_eq!(kept.refuted(), []);
        assert_eq!(kept.has(&keys), [true; 5]);
        let wrong = [
            kept.record("layer", "wrong", &says(two, b"one")),
            kept.record("image", "wrong", &json!({ "layers": [says(one, b"one"), says(two, b"one")] })),
            kept.record("left", "wrong", &json!({ "layers": [["key", says(two, b"one")]] })),
            kept.record("layer", "also wrong", &says(two, b"three")),
        ];
        let mut expected = [b"one".as_slice(), b"three"].map(|recorded| Refuted {
            layer: two.digest,
            recorded: DiffId(Digest::of(recorded)),
            found: Some(DiffId(Digest::of(b"two"))),
        });
        expected.sort_by_key(|it| it.recorded);
        assert_eq!(kept.refuted(), expected);
        assert_eq!(kept.has(&wrong), [false; 4]);
        // What the tar of a layer is hashed on from may be what was wrong.
        assert_eq!(kept.has(&keys), [true, true, true, false, false]);
        assert!(layers.iter().all(|layer| kept.store.has(&layer.digest).expect("looks").is_some()));
        assert_eq!(kept.refuted(), []);
    }

    #[test]
    fn what_cannot_be_unpacked_is_no_layer() {
        let kept = Kept::new();
        let whole = gzip(b"a tar");
        let cut = kept.store.put(&whole[..whole.len() - 1]).expect("puts");
        let behind = kept.store.put(&[&whole, b"more".as_slice()].concat()).expect("puts");
        let keys = [&cut, &behind].map(|blob| kept.record("layer", &blob.digest.hex(), &says(blob, b"a tar")));
        let recorded = DiffId(Digest::of(b"a tar"));
        let mut expected = [cut, behind].map(|blob| Refuted { layer: blob.digest, recorded, found: None });
        expected.sort_by_key(|it| it.layer);
        assert_eq!(kept.refuted(), expected);
        assert_eq!(kept.has(&keys), [false; 2]);
    }
}
