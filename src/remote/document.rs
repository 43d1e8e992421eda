//! What is known of an image elsewhere: records and where their bytes are, signed as a whole.
//!
//! ```text
//! imgbuild-cache 1
//! {"names":[...],"image":{...},"layers":[...],"fragments":[...],"bundle":{...}}      one line of JSON
//! ed25519 PUBLIC-KEY SIGNATURE                                                       base64; none, one or several
//! ```
//!
//! A signature is over everything up to and including the line of JSON. The names are in it: a document that is moved to
//! another name is not believed there.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cache::Blob;
use layers::encode::Compression;
use layers::{Digest, Key, KeyHasher, Platform};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::engine::index::FragmentRecord;
use crate::engine::local::LayerRecord;
use crate::ops::key::ImageRecord;

const MAGIC: &str = "imgbuild-cache 1\n";

/// The largest document that is read, bytes: registries take manifests of 4 MiB.
pub const LARGEST: usize = 4 << 20;

/// The name of the document of an image's key.
pub fn image_name(key: &Key) -> String {
    format!("image-{}", key.0.hex())
}

/// The name of the document of the last build of an image, whatever its key.
pub fn latest_name(image: &str, platform: Platform, compression: Compression) -> String {
    let mut hasher = KeyHasher::new("latest-elsewhere", 1);
    hasher.field("image", image).field("platform", platform).field("compression", compression);
    format!("latest-{}", hasher.finish().0.0.hex())
}

/// A layer in a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLayer {
    /// Its key.
    pub key: Key,
    /// What it came to.
    pub record: LayerRecord,
}

/// A fragment in a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFragment {
    /// The key of what it was made from.
    pub key: Key,
    /// Its bytes.
    pub blob: Blob,
    /// Its index, which is in the bundle.
    pub index: Digest,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The names that it may be found under.
    pub names: Vec<String>,
    /// The image.
    pub image: ImageRecord,
    /// Its layers by their keys.
    pub layers: Vec<KnownLayer>,
    /// The fragments that they are made of.
    pub fragments: Vec<KnownFragment>,
    /// A blob with the indexes of all fragments.
    pub bundle: Option<Blob>,
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

    /// Reads a document that was found under `name`; a signature counts if it is by one of `keys`.
    pub fn read(bytes: &[u8], name: &str, keys: &[PublicKey]) -> Result<(Payload, Believed), String> {
        let wrong = |why: &str| format!("its document `{name}` {why}");
        if bytes.len() > LARGEST {
            return Err(wrong("is too large"));
        }
        let body = bytes.strip_prefix(MAGIC.as_bytes()).ok_or_else(|| wrong("is of another version"))?;
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
    blobs: HashMap<Digest, (u64, Vec<usize>)>,
}

impl Remembered {
    /// Takes in what the cache with the number `from` told.
    pub fn learn(&mut self, payload: &Payload, from: usize) {
        let mut blob = |digest: Digest, size: u64| {
            let known = self.blobs.entry(digest).or_insert((size, Vec::new()));
            // Two lengths of one digest: one is a lie, and neither is worth finding out.
            if known.0 == size && !known.1.contains(&from) {
                known.1.push(from);
            }
        };
        payload.image.layers.iter().for_each(|layer| blob(layer.digest, layer.size));
        payload.fragments.iter().for_each(|fragment| blob(fragment.blob.digest, fragment.blob.size));
        payload.layers.iter().for_each(|layer| blob(layer.record.digest, layer.record.size));
        payload.bundle.iter().for_each(|bundle| blob(bundle.digest, bundle.size));
        self.layers.extend(payload.layers.iter().map(|layer| (layer.key, layer.record.clone())));
        let record = |it: &KnownFragment| FragmentRecord { fragment: it.blob.digest, index: it.index };
        self.fragments.extend(payload.fragments.iter().map(|fragment| (fragment.key, record(fragment))));
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

    fn payload(name: &str) -> Payload {
        let record = LayerRecord { digest: Digest::of(b"l"), diff_id: layers::DiffId(Digest::of(b"d")), size: 7 };
        Payload {
            names: vec![name.into()],
            image: ImageRecord { layers: vec![record.clone()], packages: Vec::new(), commands: Vec::new(), base: None },
            layers: vec![KnownLayer { key: Key(Digest::of(b"k")), record }],
            fragments: vec![KnownFragment {
                key: Key(Digest::of(b"f")),
                blob: Blob { digest: Digest::of(b"b"), size: 9 },
                index: Digest::of(b"i"),
            }],
            bundle: None,
        }
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
