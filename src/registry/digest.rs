//! Digests as registries use them: SHA-256 nearly always, SHA-512 where somebody else chose it.

use std::fmt;
use std::str::FromStr;

use layers::Digest;
use sha2::{Digest as _, Sha256, Sha512};

/// The digest of a blob or manifest in a registry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AnyDigest {
    /// What imgbuild writes.
    Sha256(Digest),
    /// Read and passed on.
    Sha512([u8; 64]),
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected `sha256:` or `sha512:` and 64 or 128 lower-case hexadecimal digits")]
pub struct NotADigest(String);

impl AnyDigest {
    /// Hashes `bytes` with the algorithm of `self`.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }

    /// Starts hashing with the same algorithm.
    pub fn hasher(&self) -> Hasher {
        match self {
            AnyDigest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            AnyDigest::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    /// The digest as the store knows it.
    pub fn sha256(&self) -> Option<Digest> {
        match self {
            AnyDigest::Sha256(digest) => Some(*digest),
            AnyDigest::Sha512(_) => None,
        }
    }

    /// The hexadecimal digits.
    pub fn hex(&self) -> String {
        let text = self.to_string();
        text[7..].to_owned()
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            AnyDigest::Sha256(_) => "sha256",
            AnyDigest::Sha512(_) => "sha512",
        }
    }
}

impl From<Digest> for AnyDigest {
    fn from(digest: Digest) -> AnyDigest {
        AnyDigest::Sha256(digest)
    }
}

impl fmt::Display for AnyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnyDigest::Sha256(digest) => digest.fmt(f),
            AnyDigest::Sha512(bytes) => {
                f.write_str("sha512:")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for AnyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AnyDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<AnyDigest, NotADigest> {
        let wrong = || NotADigest(text.chars().take(140).collect());
        if let Some(hex) = text.strip_prefix("sha512:") {
            // Half by half, because the store's digest already knows how to read 64 strict digits.
            let (Some(first), Some(last), 128) = (hex.get(..64), hex.get(64..), hex.len()) else {
                return Err(wrong());
            };
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(Digest::from_hex(first).map_err(|_| wrong())?.as_bytes());
            bytes[32..].copy_from_slice(Digest::from_hex(last).map_err(|_| wrong())?.as_bytes());
            return Ok(AnyDigest::Sha512(bytes));
        }
        text.parse().map(AnyDigest::Sha256).map_err(|_| wrong())
    }
}

/// A hash in the making.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes.
    pub fn finish(self) -> AnyDigest {
        match self {
            Hasher::Sha256(hasher) => AnyDigest::Sha256(Digest::from_bytes(hasher.finalize().into())),
            Hasher::Sha512(hasher) => AnyDigest::Sha512(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_algorithms_survive_the_trip_through_text_and_nothing_else_does() {
        let long: AnyDigest = format!("sha512:{}", "0a".repeat(64)).parse().expect("parses");
        for digest in [AnyDigest::from(Digest::of(b"x")), long] {
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(digest.to_string(), format!("{}:{}", digest.algorithm(), digest.hex()));
        }
        let mut hasher = long.hasher();
        hasher.update(b"abc");
        assert!(hasher.finish().to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        for text in [
            "sha256:../../x".to_owned(),
            format!("sha512:{}", "A".repeat(128)),
            format!("sha512:{}", "0".repeat(64)),
            format!("sha512:é{}", "0".repeat(126)),
            format!("sha384:{}", "0".repeat(96)),
            String::new(),
        ] {
            assert!(text.parse::<AnyDigest>().is_err(), "{text}");
        }
    }
}
