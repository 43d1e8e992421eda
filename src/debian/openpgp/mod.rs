//! Signatures of `InRelease` files: cleartext-signed OpenPGP messages (RFC 9580, section 7).
//!
//! Verification alone, of what archives use: keys and signatures of version 4 with RSA, Ed25519 or ECDSA. The
//! mathematics is `ring`'s, which TLS brings anyway; a whole OpenPGP library would be a hundred crates for the sake of one
//! check. What a signature is *worth* is decided here: which keys count, that neither key nor signature has expired or was
//! revoked, and that nothing weaker than SHA-256 and RSA-2048 is accepted. rPGP, gpg and gpgv judge it in the tests.

mod armor;
mod packet;

use packet::{Key, Packets, Signature};

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
    certificates: Vec<Certificate>,
}

/// A primary key with what it says of itself and of its subkeys (RFC 9580, section 10.1).
#[derive(Debug, Clone)]
struct Certificate {
    primary: Component,
    users: Vec<User>,
    subkeys: Vec<Component>,
}

#[derive(Debug, Clone)]
struct Component {
    key: Key,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone)]
struct User {
    /// As certifications hash it.
    hashed: Vec<u8>,
    signatures: Vec<Signature>,
}

/// How far ahead another machine's clock may be, seconds.
const SLACK: i64 = 86_400;

impl Keyring {
    /// Reads a binary or ASCII-armoured keyring. Keys of other versions than 4 are passed over.
    ///
    /// # Errors
    /// If it is malformed or holds no key.
    pub fn parse(bytes: &[u8]) -> Result<Keyring, SignatureError> {
        Keyring::read(bytes).map_err(SignatureError::Keyring)
    }

    fn read(bytes: &[u8]) -> Result<Keyring, String> {
        let armoured;
        let packets = if armor::is_armoured(bytes) {
            armoured = armor::keys(std::str::from_utf8(bytes).map_err(|_| "it is not text")?)?;
            &armoured
        } else {
            bytes
        };
        let mut packets = Packets(packets);
        let mut certificates: Vec<Certificate> = Vec::new();
        // Where signatures that come next belong.
        let mut signatures: Option<&mut Vec<Signature>> = None;
        let mut passed_over = false;
        while let Some((kind, body)) = packets.next()? {
            match kind {
                packet::PUBLIC_KEY => {
                    signatures = None;
                    passed_over = true;
                    if let Some(key) = Key::parse(body)? {
                        passed_over = false;
                        let primary = Component { key, signatures: Vec::new() };
                        certificates.push(Certificate { primary, users: Vec::new(), subkeys: Vec::new() });
                        signatures = certificates.last_mut().map(|it| &mut it.primary.signatures);
                    }
                }
                packet::PUBLIC_SUBKEY | packet::USER_ID | packet::USER_ATTRIBUTE | packet::SIGNATURE if passed_over => {
                }
                packet::PUBLIC_SUBKEY => {
                    let certificate = certificates.last_mut().ok_or("a subkey comes before its key")?;
                    signatures = None;
                    if let Some(key) = Key::parse(body)? {
                        certificate.subkeys.push(Component { key, signatures: Vec::new() });
                        signatures = certificate.subkeys.last_mut().map(|it| &mut it.signatures);
                    }
                }
                packet::USER_ID | packet::USER_ATTRIBUTE => {
                    let certificate = certificates.last_mut().ok_or("a user id comes before its key")?;
                    certificate.users.push(User { hashed: packet::hashed_user(kind, body), signatures: Vec::new() });
                    signatures = certificate.users.last_mut().map(|it| &mut it.signatures);
                }
                packet::SIGNATURE => {
                    // One that belongs to a subkey of another version goes with it.
                    if let (Some(signatures), Some(signature)) = (&mut signatures, Signature::parse(body)?) {
                        signatures.push(signature);
                    }
                }
                // A marker, the trust of whoever wrote the file, padding (sections 5.8, 5.10, 5.14).
                10 | 12 | 21 => {}
                5 | 7 => return Err("it holds a secret key".into()),
                other => return Err(format!("a packet of type {other} stands in it")),
            }
        }
        if certificates.is_empty() {
            return Err("it holds no keys".into());
        }
        Ok(Keyring { certificates })
    }

    /// Adds the keys of another ring.
    pub fn extend(&mut self, other: Keyring) {
        self.certificates.extend(other.certificates);
    }

    /// Checks a cleartext-signed message and returns exactly the text that was signed, with `\n` line ends.
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    /// If it is no such message, or no signature by a key of this ring holds.
    pub fn verify(&self, message: &str, now: i64) -> Result<String, SignatureError> {
        let parts = armor::cleartext(message).map_err(SignatureError::Malformed)?;
        let signed = parts.text.replace('\n', "\r\n");
        let (mut reasons, mut is_signed) = (Vec::new(), false);
        let mut packets = Packets(&parts.signatures);
        // All of them: what stands behind a good signature is read as well, or others would take it for something else.
        while let Some((kind, body)) = packets.next().map_err(SignatureError::Malformed)? {
            if kind != packet::SIGNATURE {
                return Err(SignatureError::Malformed(format!("a packet of type {kind} stands where signatures are")));
            }
            let judged = match Signature::parse(body).map_err(SignatureError::Malformed)? {
                Some(signature) => self
                    .judge(&signature, signed.as_bytes(), now)
                    .map_err(|why| format!("{}: {why}", signature.issuer())),
                None => Err("a signature is not of version 4".into()),
            };
            match judged {
                Ok(()) => is_signed = true,
                Err(why) => reasons.push(why),
            }
        }
        if is_signed {
            return Ok(parts.text);
        }
        if reasons.is_empty() {
            reasons.push("there is no signature".into());
        }
        Err(SignatureError::Untrusted { reasons })
    }

    fn judge(&self, signature: &Signature, text: &[u8], now: i64) -> Result<(), String> {
        if !matches!(signature.kind, packet::BINARY | packet::TEXT) {
            return Err("it is not a signature over a document".into());
        }
        signature.check_hash()?;
        check_times(signature, now)?;
        let mut why = "the key is not in the keyring".into();
        for certificate in &self.certificates {
            let primary = &certificate.primary.key;
            if signature.names(primary) {
                let judged = primary
                    .check_strength()
                    .and_then(|()| certificate.check(now))
                    .and_then(|newest| {
                        if newest.may_sign() == Some(false) { Err("the key may not sign".into()) } else { Ok(()) }
                    })
                    .and_then(|()| holds(signature, primary, text));
                match judged {
                    Ok(()) => return Ok(()),
                    Err(error) => why = error,
                }
            }
            for subkey in certificate.subkeys.iter().filter(|subkey| signature.names(&subkey.key)) {
                let judged = certificate
                    .check(now)
                    .and_then(|_| certificate.check_subkey(subkey, now))
                    .and_then(|()| holds(signature, &subkey.key, text));
                match judged {
                    Ok(()) => return Ok(()),
                    Err(error) => why = error,
                }
            }
        }
        Err(why)
    }
}

impl Certificate {
    /// The primary key: not revoked, not expired by its newest self-signature, which is returned.
    fn check(&self, now: i64) -> Result<&Signature, String> {
        let primary = &self.primary.key;
        let own = |signature: &&Signature| signature.names(primary);
        let alone = primary.hashed();
        let revoked = |signature: &Signature| {
            signature.kind == packet::KEY_REVOCATION && signature.check(primary, &alone).is_ok()
        };
        if self.primary.signatures.iter().filter(own).any(revoked) {
            return Err("the key was revoked".into());
        }
        let direct = self
            .primary
            .signatures
            .iter()
            .filter(own)
            .filter(|signature| signature.kind == packet::DIRECT && signature.check(primary, &alone).is_ok());
        let on_users = self.users.iter().flat_map(|user| {
            let signed = [alone.as_slice(), &user.hashed].concat();
            let made: Vec<&Signature> = user
                .signatures
                .iter()
                .filter(own)
                .filter(|signature| signature.check(primary, &signed).is_ok())
                .collect();
            let withdrawn =
                made.iter().filter(|it| it.kind == packet::CERTIFICATION_REVOCATION).map(|it| it.created).max();
            made.into_iter().filter(move |it| {
                packet::CERTIFICATIONS.contains(&it.kind) && withdrawn.is_none_or(|at| it.created > at)
            })
        });
        let newest = on_users
            .chain(direct)
            .filter(|signature| check_times(signature, now).is_ok())
            .max_by_key(|signature| signature.created)
            .ok_or("the key has no valid self-signature")?;
        check_lifetime(newest, primary.created, now)?;
        Ok(newest)
    }

    /// A subkey: bound, not revoked, not expired, and allowed to sign.
    fn check_subkey(&self, subkey: &Component, now: i64) -> Result<(), String> {
        let primary = &self.primary.key;
        let both = [primary.hashed(), subkey.key.hashed()].concat();
        let made = |kind: u8| {
            let both = &both;
            subkey
                .signatures
                .iter()
                .filter(move |signature| signature.kind == kind && signature.check(primary, both).is_ok())
        };
        if made(packet::SUBKEY_REVOCATION).next().is_some() {
            return Err("the subkey was revoked".into());
        }
        let newest = made(packet::SUBKEY_BINDING)
            .filter(|signature| check_times(signature, now).is_ok())
            .max_by_key(|signature| signature.created)
            .ok_or("the subkey is not bound to its key")?;
        if newest.may_sign() != Some(true) {
            return Err("the subkey may not sign".into());
        }
        // A signing subkey signs back, or any key could claim it (RFC 9580, section 5.2.3.34).
        let back = newest.embedded.as_ref().filter(|back| back.kind == packet::PRIMARY_BINDING);
        let back = back.ok_or("the subkey did not sign back")?;
        check_times(back, now)?;
        back.check(&subkey.key, &both).map_err(|_| "the subkey did not sign back")?;
        check_lifetime(newest, subkey.key.created, now)
    }
}

fn holds(signature: &Signature, key: &Key, text: &[u8]) -> Result<(), String> {
    if signature.created.is_some_and(|created| created < key.created) {
        return Err("it is older than its key".into());
    }
    signature.check(key, text)
}

fn check_times(signature: &Signature, now: i64) -> Result<(), String> {
    let created = i64::from(signature.created.ok_or("it has no creation time")?);
    if created > now + SLACK {
        return Err("it was made in the future; is the clock of this machine right?".into());
    }
    match signature.lifetime {
        Some(lifetime) if lifetime > 0 && created + i64::from(lifetime) < now => Err("it has expired".into()),
        _ => Ok(()),
    }
}

fn check_lifetime(signature: &Signature, created: u32, now: i64) -> Result<(), String> {
    match signature.key_lifetime {
        Some(lifetime) if lifetime > 0 && i64::from(created) + i64::from(lifetime) < now => {
            Err("the key has expired".into())
        }
        _ => Ok(()),
    }
}
