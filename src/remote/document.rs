//! What is known of an image elsewhere: records and where their bytes are, signed as a whole.
//!
//! ```text
//! imgbuild-cache 2
//! {"names":[...],"image":{...},"layers":[...],"foundation":{...},"bundle":{...}}     one line of JSON
//! ed25519 PUBLIC-KEY SIGNATURE                                                       base64; none, one or several
//! ```
//!
//! A signature is over everything up to and including the line of JSON. The names are in it: a document that is moved to
//! another name is not believed there. What only a build needs that makes layers anew lies in a blob, the bundle ([`Parts`]),
//! whose digest is signed with the rest.

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::Blob;
use layers::encode::Compression;
use layers::{Digest, Key, KeyHasher, Platform};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::engine::foundation::{Below, Foundation, Laid};
use crate::engine::index::FragmentRecord;
use crate::engine::local::LayerRecord;
use crate::engine::run::Ran;
use crate::ops::key::ImageRecord;

/// What a bundle may unfold to, bytes: it is held in memory. An index in it has 16 kB on average.
const LARGEST_BUNDLE: u64 = 256 << 20;

const MAGIC: &str = "imgbuild-cache 2\n";

/// What documents of all versions begin with.
const ANY_MAGIC: &str = "imgbuild-cache ";

/// The version of [`MAGIC`], in names: versions that share a cache do not overwrite each other's documents.
const VERSION: u32 = 2;

/// The largest document that is read or written, bytes: registries take manifests of 4 MiB.
pub const LARGEST: usize = 4 << 20;

/// The name of the document of an image's key.
pub fn image_name(key: &Key) -> String {
    format!("image-{VERSION}-{}", key.0.hex())
}

/// The name of the document of the last build of an image of a catalogue, whatever its key.
pub fn latest_name(catalogue: &str, image: &str, platform: Platform, compression: Compression) -> String {
    let mut hasher = KeyHasher::new("latest-elsewhere", 2);
    hasher
        .field("catalogue", catalogue)
        .field("image", image)
        .field("platform", platform)
        .field("compression", compression);
    format!("latest-{VERSION}-{}", hasher.finish().0.0.hex())
}

/// The name that the layers of an image are kept by.
pub fn layers_name(key: &Key) -> String {
    format!("layers-{}", key.0.hex())
}

/// The name that a bundle and its fragments are kept by.
pub fn parts_name(bundle: &Digest) -> String {
    format!("parts-{}", bundle.hex())
}

/// A layer in a document; the image's record says what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLayer {
    /// Its key.
    pub key: Key,
    /// The commands that it needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ran: Vec<Ran>,
}

/// What the upper layers of an image stand on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFoundation {
    /// Names it.
    pub key: Key,
    /// The number of layers in it.
    pub layers: usize,
    /// What those above depend on.
    pub below: Below,
}

/// A fragment in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFragment {
    /// The key of what it was made from.
    pub key: Key,
    /// Its bytes.
    pub blob: Blob,
    /// Its index.
    pub index: Digest,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The names that it may be found under.
    pub names: Vec<String>,
    /// The image.
    pub image: ImageRecord,
    /// Its layers, bottom first.
    pub layers: Vec<KnownLayer>,
    /// What its upper layers stand on, where it is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foundation: Option<KnownFoundation>,
    /// A blob with the fragments of its layers.
    pub bundle: Option<Blob>,
    /// What it was delivered as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<Delivered>,
}

/// What an image was delivered as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Its manifest, or the index of all its platforms, without annotations. A repository that has it has all below it.
    pub top: Digest,
    /// Its configuration.
    pub config: Digest,
}

impl Payload {
    fn foundation(&self) -> Option<(Key, Foundation)> {
        let known = self.foundation.as_ref()?;
        let layers = self.layers.iter().zip(&self.image.layers).take(known.layers);
        let layers =
            layers.map(|(layer, record)| Laid { key: layer.key, record: record.clone(), ran: layer.ran.clone() });
        let packages = self.image.packages.clone();
        Some((known.key, Foundation { layers: layers.collect(), packages, below: known.below.clone() }))
    }
}

/// What layers are made of: the fragments and their indexes.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The fragments.
    pub fragments: Vec<KnownFragment>,
    /// Their indexes, encoded, once each.
    pub indexes: Vec<Vec<u8>>,
}

impl Parts {
    /// As one compressed blob; `None` where nobody would read it.
    pub fn pack(&self) -> Option<Vec<u8>> {
        let bytes = postcard::to_stdvec(self).expect("lists and bytes have nothing that postcard cannot say");
        (bytes.len() as u64 <= LARGEST_BUNDLE).then(|| layers::encode::gzip(&bytes))
    }

    /// Reads a blob; `None` where it is something else.
    pub fn unpack(blob: &[u8]) -> Option<Parts> {
        postcard::from_bytes(&unfolded(blob, LARGEST_BUNDLE)?).ok()
    }
}

/// What was compressed, of at most so many bytes; `None` where it is more, or something else.
pub(super) fn unfolded(packed: &[u8], most: u64) -> Option<Vec<u8>> {
    let limits = layers::format::Limits { max_output: most, ..Default::default() };
    let mut bytes = Vec::new();
    layers::format::decompress(packed, &limits).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Whether a document is signed by a key that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Believed {
    /// It is.
    Signed,
    /// By none.
    Unsigned,
}

/// Documents as bytes.
pub struct Answer;

impl Answer {
    /// Writes a document, signed where there is a key.
    pub fn write(payload: &Payload, key: Option<&SigningKey>) -> Vec<u8> {
        let mut bytes = MAGIC.as_bytes().to_vec();
        serde_json::to_writer(&mut bytes, payload).expect("a document has only string keys and whole numbers");
        bytes.push(b'\n');
        if let Some(key) = key {
            let signature = STANDARD.encode(key.0.sign(&bytes));
            bytes.extend_from_slice(format!("ed25519 {} {signature}\n", key.public()).as_bytes());
        }
        bytes
    }

    /// Writes a document that is short enough to be read: without the foundation where it is too long with it. `None` where that does
    /// not help.
    pub fn write_short(mut payload: Payload, key: Option<&SigningKey>) -> Option<Vec<u8>> {
        let fits = |payload: &Payload| Some(Answer::write(payload, key)).filter(|document| document.len() <= LARGEST);
        fits(&payload).or_else(|| {
            payload.foundation.take()?;
            fits(&payload)
        })
    }

    /// Whether this is a document of another version, of which nothing is known.
    pub fn is_of_another_version(bytes: &[u8]) -> bool {
        let number = bytes.strip_prefix(ANY_MAGIC.as_bytes()).and_then(|rest| rest.split(|byte| *byte == b'\n').next());
        number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
            && !bytes.starts_with(MAGIC.as_bytes())
    }

    /// Reads a document that was found under `name`; a signature counts if it is by one of `keys`.
    pub fn read(bytes: &[u8], name: &str, keys: &[PublicKey]) -> Result<(Payload, Believed), String> {
        let wrong = |why: &str| format!("its document `{name}` {why}");
        if bytes.len() > LARGEST {
            return Err(wrong("is too large"));
        }
        let body = bytes.strip_prefix(MAGIC.as_bytes()).ok_or_else(|| wrong("is none of imgbuild's"))?;
        let end = body.iter().position(|&byte| byte == b'\n').ok_or_else(|| wrong("is cut"))?;
        let (signed, signatures) = bytes.split_at(MAGIC.len() + end + 1);
        let is_by = |line: &str| {
            let mut words = line.strip_prefix("ed25519 ")?.split(' ');
            let (by, signature) = (words.next()?.parse::<PublicKey>().ok()?, STANDARD.decode(words.next()?).ok()?);
            (keys.contains(&by) && by.verifies(signed, &signature)).then_some(())
        };
        let signatures = std::str::from_utf8(signatures).map_err(|_| wrong("is no text"))?;
        let believed =
            if signatures.lines().any(|line| is_by(line).is_some()) { Believed::Signed } else { Believed::Unsigned };
        let payload: Payload =
            serde_json::from_slice(&body[..end]).map_err(|error| wrong(&format!("makes no sense: {error}")))?;
        if !payload.names.iter().any(|own| own == name) {
            return Err(wrong("belongs to another name"));
        }
        Ok((payload, believed))
    }
}

/// What documents have told: records by their keys, and which caches hold which blobs.
#[derive(Debug, Default)]
pub struct Remembered {
    layers: HashMap<Key, LayerRecord>,
    fragments: HashMap<Key, FragmentRecord>,
    foundations: HashMap<Key, (Foundation, Option<Blob>)>,
    blobs: HashMap<Digest, (u64, Vec<usize>)>,
}

impl Remembered {
    /// Takes in what the cache with the number `from` told.
    pub fn learn(&mut self, payload: &Payload, from: usize) {
        let layers = payload.image.layers.iter().map(|layer| Blob { digest: layer.digest, size: layer.size });
        layers.chain(payload.bundle).for_each(|blob| self.hold(blob, from));
        let records = payload.layers.iter().zip(&payload.image.layers);
        self.layers.extend(records.map(|(layer, record)| (layer.key, record.clone())));
        if let Some((key, foundation)) = payload.foundation() {
            self.foundations.insert(key, (foundation, payload.bundle));
        }
    }

    /// Takes in a bundle of the caches with these numbers.
    pub fn learn_parts(&mut self, parts: &Parts, from: &[usize]) {
        for fragment in &parts.fragments {
            from.iter().for_each(|from| self.hold(fragment.blob, *from));
            let record = FragmentRecord { fragment: fragment.blob.digest, index: fragment.index };
            self.fragments.insert(fragment.key, record);
        }
    }

    fn hold(&mut self, blob: Blob, from: usize) {
        let known = self.blobs.entry(blob.digest).or_insert((blob.size, Vec::new()));
        // Two lengths of one digest: one is a lie, and neither is worth finding out.
        if known.0 == blob.size && !known.1.contains(&from) {
            known.1.push(from);
        }
    }

    /// What upper layers stand on, and the bundle that has its fragments.
    pub fn foundation(&self, key: &Key) -> Option<&(Foundation, Option<Blob>)> {
        self.foundations.get(key)
    }

    /// The record of a layer.
    pub fn layer(&self, key: &Key) -> Option<LayerRecord> {
        self.layers.get(key).cloned()
    }

    /// The record of a fragment.
    pub fn fragment(&self, key: &Key) -> Option<FragmentRecord> {
        self.fragments.get(key).cloned()
    }

    /// The length of a blob in bytes.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(|(size, _)| *size)
    }

    /// The caches that hold a blob, in the order in which they told.
    pub fn holders(&self, digest: &Digest) -> Vec<usize> {
        self.blobs.get(digest).map(|(_, holders)| holders.clone()).unwrap_or_default()
    }
}

/// A key whose signatures count: 32 bytes, as base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    fn verifies(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(text, signature).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<PublicKey, String> {
        let bytes = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(PublicKey)
            .ok_or_else(|| "it is no public key: 44 characters of base64, as `imgbuild cache key` prints it".into())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

/// A key to sign with. Not shown.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Makes a key: the text to keep secret (PKCS #8, base64), and the key.
    pub fn generate() -> Result<(String, SigningKey), String> {
        let failed = |_| "the system gives no random numbers".to_owned();
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
        let text = STANDARD.encode(document.as_ref());
        let key = text.parse()?;
        Ok((text, key))
    }

    /// The key that others verify with.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

impl FromStr for SigningKey {
    type Err = String;

    fn from_str(text: &str) -> Result<SigningKey, String> {
        let wrong = || "it is no signing key, as `imgbuild cache key` makes it".to_owned();
        let bytes = STANDARD.decode(text.trim()).map_err(|_| wrong())?;
        Ed25519KeyPair::from_pkcs8(&bytes).map(SigningKey).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::foundation::{Answers, Linked};
    use layers::ImagePath;

    fn payload(name: &str) -> Payload {
        let record = LayerRecord { digest: Digest::of(b"l"), diff_id: layers::DiffId(Digest::of(b"d")), size: 7 };
        Payload {
            names: vec![name.into()],
            image: ImageRecord {
                layers: vec![record],
                packages: Vec::new(),
                commands: Vec::new(),
                base: None,
                from: None,
            },
            layers: vec![KnownLayer { key: Key(Digest::of(b"k")), ran: Vec::new() }],
            foundation: None,
            bundle: Some(Blob { digest: Digest::of(b"b"), size: 9 }),
            delivered: None,
        }
    }

    #[test]
    fn what_is_too_long_to_be_read_is_written_without_its_foundation_or_not_at_all() {
        let mut below = Below { answers: Answers::default(), linked: Linked::default(), gate: Key(Digest::of(b"g")) };
        for number in 0..20_000 {
            below.answers.note(&ImagePath::new(format!("/{}{number}", "a".repeat(250))).expect("a path"), None);
        }
        let mut payload = payload("image-a");
        payload.foundation = Some(KnownFoundation { key: Key(Digest::of(b"f")), layers: 1, below });
        let (_, key) = SigningKey::generate().expect("makes a key");
        let read = |bytes: &[u8]| Answer::read(bytes, "image-a", &[key.public()]);
        assert!(read(&Answer::write(&payload, Some(&key))).is_err(), "it is too long");
        let short = Answer::write_short(payload.clone(), Some(&key)).expect("the rest is short");
        let without = Payload { foundation: None, ..payload };
        assert_eq!(read(&short), Ok((without.clone(), Believed::Signed)));
        assert_eq!(Answer::write_short(without.clone(), Some(&key)), Some(short));
        let layers = vec![without.layers[0].clone(); 60_000];
        assert_eq!(Answer::write_short(Payload { layers, ..without }, Some(&key)), None);
    }

    #[test]
    fn a_bundle_that_unfolds_to_more_than_memory_should_hold_is_none() {
        let unpacked = |mebibytes: usize| {
            // No fragment, and an index of zeros.
            let mut head = vec![0, 1];
            head.extend(postcard::to_stdvec(&(mebibytes << 20)).expect("a number"));
            let packed =
                [layers::encode::gzip(&head), layers::encode::gzip(&vec![0; 1 << 20]).repeat(mebibytes)].concat();
            Parts::unpack(&packed).map(|parts| parts.indexes[0].len() >> 20)
        };
        assert_eq!(unpacked(3), Some(3));
        assert_eq!(unpacked(256), None);
    }

    #[test]
    fn a_document_is_believed_if_a_key_that_counts_has_signed_every_byte_of_it() {
        let (text, key) = SigningKey::generate().expect("makes a key");
        let (_, other) = SigningKey::generate().expect("makes a key");
        let same: SigningKey = text.parse().expect("reads what it wrote");
        assert_eq!(same.public(), key.public());
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        let good = Answer::write(&payload("image-a"), Some(&key));
        let read = |bytes: &[u8], keys: &[PublicKey]| Answer::read(bytes, "image-a", keys).map(|(_, how)| how);
        assert_eq!(read(&good, &[other.public(), key.public()]), Ok(Believed::Signed));
        assert_eq!(read(&good, &[other.public()]), Ok(Believed::Unsigned));
        assert_eq!(read(&good, &[]), Ok(Believed::Unsigned));
        let unsigned = Answer::write(&payload("image-a"), None);
        assert_eq!(read(&unsigned, &[key.public()]), Ok(Believed::Unsigned));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_ne!(read(&bad, &[key.public()]), Ok(Believed::Signed), "byte {at}");
            // Without its last line feed the signature is still whole.
            assert!(at == good.len() - 1 || read(&good[..at], &[key.public()]) != Ok(Believed::Signed), "cut at {at}");
        }
        assert!(Answer::read(&good, "image-b", &[key.public()]).is_err(), "another name");
    }
}
