//! Signatures of `InRelease` files: cleartext-signed OpenPGP messages (RFC 9580, section 7).
//!
//! The mathematics is rPGP's. What a signature is *worth* is decided here: which keys count, that neither key nor
//! signature has expired or was revoked, and that nothing weaker than SHA-256 and RSA-2048 is accepted.

use std::io::Cursor;

use pgp::composed::{CleartextSignedMessage, Deserializable as _, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails as _, PublicParams, VerifyingKey};
use rsa::traits::PublicKeyParts as _;

/// Why a signed text is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not a cleartext-signed message, or something stands around it.
    #[error("it is not a signed text: {0}")]
    Malformed(String),
    /// No signature holds.
    #[error("no signature by a trusted key holds: {}", reasons.join("; "))]
    Untrusted {
        /// What was wrong with each signature.
        reasons: Vec<String>,
    },
    /// A keyring that cannot be read.
    #[error("the keyring cannot be read: {0}")]
    Keyring(String),
}

/// Public keys that may sign.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
}

/// How far ahead another machine's clock may be, seconds.
const SLACK: i64 = 86_400;

impl Keyring {
    /// Reads a binary or ASCII-armoured keyring.
    pub fn parse(bytes: &[u8]) -> Result<Keyring, SignatureError> {
        let wrong = |error: pgp::errors::Error| SignatureError::Keyring(error.to_string());
        let armoured = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
        let mut keys = Vec::new();
        if armoured {
            let (parsed, _) = SignedPublicKey::from_armor_many(Cursor::new(bytes)).map_err(wrong)?;
            for key in parsed {
                keys.push(key.map_err(wrong)?);
            }
        } else {
            for key in SignedPublicKey::from_bytes_many(Cursor::new(bytes)).map_err(wrong)? {
                keys.push(key.map_err(wrong)?);
            }
        }
        if keys.is_empty() {
            return Err(SignatureError::Keyring("it holds no keys".into()));
        }
        Ok(Keyring { keys })
    }

    /// Adds the keys of another ring.
    pub fn extend(&mut self, other: Keyring) {
        self.keys.extend(other.keys);
    }

    /// Checks a cleartext-signed message and returns exactly the text that was signed, with `\n` line ends.
    /// `now` is in seconds since 1970.
    pub fn verify(&self, message: &str, now: i64) -> Result<String, SignatureError> {
        if !message.starts_with("-----BEGIN PGP SIGNED MESSAGE-----") {
            return Err(SignatureError::Malformed(
                "something stands before the signed message, or there is none".into(),
            ));
        }
        let (parsed, _) = CleartextSignedMessage::from_string(message)
            .map_err(|error| SignatureError::Malformed(error.to_string()))?;
        let text = parsed.signed_text();
        let mut reasons = Vec::new();
        for signature in parsed.signatures() {
            match self.judge(signature, &text, now) {
                Ok(()) => return Ok(text.replace("\r\n", "\n")),
                Err(why) => reasons.push(why),
            }
        }
        if reasons.is_empty() {
            reasons.push("there is no signature".into());
        }
        Err(SignatureError::Untrusted { reasons })
    }

    fn judge(&self, signature: &Signature, text: &str, now: i64) -> Result<(), String> {
        let issuers: Vec<String> = signature.issuer_fingerprint().iter().map(|print| print.to_string()).collect();
        let name = issuers
            .first()
            .cloned()
            .or_else(|| signature.issuer_key_id().first().map(|id| id.to_string()))
            .unwrap_or_else(|| "an unnamed key".into());
        if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
            return Err(format!("{name}: it is not a signature over a document"));
        }
        check_hash(signature).map_err(|why| format!("{name}: {why}"))?;
        check_times(signature, now).map_err(|why| format!("{name}: {why}"))?;
        let mut why = format!("{name}: the key is not in the keyring");
        for key in &self.keys {
            if names(signature, &key.primary_key) {
                match check_key(key, now).and_then(|()| holds(signature, &key.primary_key, text)) {
                    Ok(()) => return Ok(()),
                    Err(error) => why = format!("{name}: {error}"),
                }
            }
            for subkey in key.public_subkeys.iter().filter(|subkey| names(signature, &subkey.key)) {
                let judged = check_key(key, now)
                    .and_then(|()| check_subkey(key, subkey, now))
                    .and_then(|()| holds(signature, &subkey.key, text));
                match judged {
                    Ok(()) => return Ok(()),
                    Err(error) => why = format!("{name}: {error}"),
                }
            }
        }
        Err(why)
    }
}

fn names(signature: &Signature, key: &impl VerifyingKey) -> bool {
    signature.issuer_fingerprint().iter().any(|print| **print == key.fingerprint())
        || signature.issuer_key_id().iter().any(|id| **id == key.legacy_key_id())
}

fn holds(signature: &Signature, key: &impl VerifyingKey, text: &str) -> Result<(), String> {
    if let PublicParams::RSA(rsa) = key.public_params()
        && rsa.key.n().bits() < 2048
    {
        return Err("its RSA key has fewer than 2048 bits".into());
    }
    if matches!(key.public_params(), PublicParams::DSA(_)) {
        return Err("DSA keys are not accepted".into());
    }
    signature.verify(key, text.as_bytes()).map_err(|_| "the signature does not fit the text".into())
}

fn check_hash(signature: &Signature) -> Result<(), String> {
    match signature.hash_alg() {
        Some(
            HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512,
        ) => Ok(()),
        Some(weak) => Err(format!("the hash {weak} is too weak")),
        None => Err("its hash is unknown".into()),
    }
}

fn check_times(signature: &Signature, now: i64) -> Result<(), String> {
    let created = i64::from(signature.created().ok_or("it has no creation time")?.as_secs());
    if created > now + SLACK {
        return Err("it was made in the future; is the clock of this machine right?".into());
    }
    match signature.signature_expiration_time() {
        Some(lifetime) if lifetime.as_secs() > 0 && created + i64::from(lifetime.as_secs()) < now => {
            Err("it has expired".into())
        }
        _ => Ok(()),
    }
}

/// The primary key: not revoked, not expired by its newest self-signature.
fn check_key(key: &SignedPublicKey, now: i64) -> Result<(), String> {
    let primary = &key.primary_key;
    if key.details.revocation_signatures.iter().any(|signature| signature.verify_key(primary).is_ok()) {
        return Err("the key was revoked".into());
    }
    let on_users = key.details.users.iter().flat_map(|user| {
        user.signatures.iter().filter(|signature| {
            names(signature, primary)
                && signature.is_certification()
                && signature.verify_certification(primary, pgp::types::Tag::UserId, &user.id).is_ok()
        })
    });
    let direct = key.details.direct_signatures.iter().filter(|signature| signature.verify_key(primary).is_ok());
    let newest = on_users
        .chain(direct)
        .filter(|signature| check_times(signature, now).is_ok())
        .max_by_key(|signature| signature.created().map(|created| created.as_secs()));
    let Some(newest) = newest else { return Err("the key has no valid self-signature".into()) };
    check_lifetime(newest, primary.created_at().as_secs(), now)
}

/// A subkey: bound, not revoked, not expired, and allowed to sign.
fn check_subkey(key: &SignedPublicKey, subkey: &SignedPublicSubKey, now: i64) -> Result<(), String> {
    let primary = &key.primary_key;
    let bound = |kind: SignatureType| {
        subkey.signatures.iter().filter(move |signature| {
            signature.typ() == Some(kind) && signature.verify_subkey_binding(primary, &subkey.key).is_ok()
        })
    };
    if bound(SignatureType::SubkeyRevocation).next().is_some() {
        return Err("the subkey was revoked".into());
    }
    let newest = bound(SignatureType::SubkeyBinding)
        .filter(|signature| check_times(signature, now).is_ok() && check_hash(signature).is_ok())
        .max_by_key(|signature| signature.created().map(|created| created.as_secs()));
    let Some(newest) = newest else { return Err("the subkey is not bound to its key".into()) };
    if !newest.key_flags().sign() {
        return Err("the subkey may not sign".into());
    }
    // A signing subkey signs back, or any key could claim it (RFC 9580, section 5.2.3.34).
    let back = newest.embedded_signature().ok_or("the subkey did not sign back")?;
    back.verify_primary_key_binding(&subkey.key, primary).map_err(|_| "the subkey did not sign back")?;
    check_lifetime(newest, subkey.key.created_at().as_secs(), now)
}

fn check_lifetime(signature: &Signature, created: u32, now: i64) -> Result<(), String> {
    match signature.key_expiration_time() {
        Some(lifetime) if lifetime.as_secs() > 0 && i64::from(created) + i64::from(lifetime.as_secs()) < now => {
            Err("the key has expired".into())
        }
        _ => Ok(()),
    }
}
