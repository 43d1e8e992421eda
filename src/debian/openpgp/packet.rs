//! Packets of version 4: public keys, user ids and signatures (RFC 9580, sections 4 and 5).
//!
//! Parsing only, and the mathematics by `ring`; what a signature is worth is decided above.

use std::fmt::Write as _;

use ring::digest::{self, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};

/// Packet types (section 5).
pub(super) const SIGNATURE: u8 = 2;
pub(super) const PUBLIC_KEY: u8 = 6;
pub(super) const USER_ID: u8 = 13;
pub(super) const PUBLIC_SUBKEY: u8 = 14;
pub(super) const USER_ATTRIBUTE: u8 = 17;

/// Signature types (section 5.2.1).
pub(super) const BINARY: u8 = 0x00;
pub(super) const TEXT: u8 = 0x01;
pub(super) const CERTIFICATIONS: std::ops::RangeInclusive<u8> = 0x10..=0x13;
pub(super) const SUBKEY_BINDING: u8 = 0x18;
pub(super) const PRIMARY_BINDING: u8 = 0x19;
pub(super) const DIRECT: u8 = 0x1F;
pub(super) const KEY_REVOCATION: u8 = 0x20;
pub(super) const SUBKEY_REVOCATION: u8 = 0x28;
pub(super) const CERTIFICATION_REVOCATION: u8 = 0x30;

/// The flag of a key that may sign data (section 5.2.3.29).
const MAY_SIGN: u8 = 0x02;

/// The packets of a byte string: their type and body, in order.
pub(super) struct Packets<'a>(pub &'a [u8]);

impl<'a> Packets<'a> {
    /// The next packet, `None` at the end (section 4.2).
    pub(super) fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut bytes = Bytes(self.0);
        let first = bytes.byte()?;
        if first & 0x80 == 0 {
            return Err("it is not made of OpenPGP packets".into());
        }
        let (kind, length) = if first & 0x40 != 0 {
            let length = bytes.length(false)?.ok_or("a packet comes in parts")?;
            (first & 0x3F, length)
        } else {
            let length = match first & 0x03 {
                0 => usize::from(bytes.byte()?),
                1 => usize::from(bytes.u16()?),
                2 => bytes.u32()? as usize,
                _ => return Err("a packet has no length".into()),
            };
            ((first >> 2) & 0x0F, length)
        };
        let body = bytes.take(length)?;
        self.0 = bytes.0;
        Ok(Some((kind, body)))
    }
}

/// A public key or subkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// When it was made, in seconds since 1970.
    pub created: u32,
    /// SHA-1 over the packet, the key's name (section 5.5.4.2).
    pub fingerprint: [u8; 20],
    body: Vec<u8>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ed25519([u8; 32]),
    P256(Vec<u8>),
    P384(Vec<u8>),
    Other(&'static str),
}

impl Key {
    /// Reads the body of a key packet; `None` for another version than 4 (section 5.5.2).
    pub(super) fn parse(body: &[u8]) -> Result<Option<Key>, String> {
        let mut bytes = Bytes(body);
        if bytes.byte()? != 4 {
            return Ok(None);
        }
        let created = bytes.u32()?;
        let material = match bytes.byte()? {
            1 | 3 => {
                let (n, e) = (bytes.mpi()?.to_vec(), bytes.mpi()?.to_vec());
                Material::Rsa { n, e }
            }
            17 => Material::Other("DSA keys are not accepted"),
            19 => {
                let curve = bytes.object_id()?;
                let point = bytes.mpi()?;
                match curve {
                    [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07] => Material::P256(point.to_vec()),
                    [0x2B, 0x81, 0x04, 0x00, 0x22] => Material::P384(point.to_vec()),
                    _ => Material::Other("its elliptic curve is not supported"),
                }
            }
            22 => {
                let curve = bytes.object_id()?;
                match (curve, bytes.mpi()?) {
                    ([0x2B, 0x06, 0x01, 0x04, 0x01, 0xDA, 0x47, 0x0F, 0x01], [0x40, point @ ..]) => {
                        Material::Ed25519(point.try_into().map_err(|_| "an Ed25519 key is not 32 bytes long")?)
                    }
                    _ => Material::Other("its elliptic curve is not supported"),
                }
            }
            27 => Material::Ed25519(bytes.take(32)?.try_into().expect("32 bytes were taken")),
            _ => Material::Other("its algorithm is not supported"),
        };
        if !matches!(material, Material::Other(_)) && !bytes.0.is_empty() {
            return Err("something stands behind a key in its packet".into());
        }
        let mut hashed = digest::Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        hashed.update(&preface(body)?);
        hashed.update(body);
        let fingerprint = hashed.finish().as_ref().try_into().expect("SHA-1 has 20 bytes");
        Ok(Some(Key { created, fingerprint, body: body.to_vec(), material }))
    }

    /// The last eight bytes of the fingerprint, by which old signatures name a key.
    pub(super) fn id(&self) -> &[u8] {
        &self.fingerprint[12..]
    }

    /// Refuses what proves nothing, or cannot be checked.
    pub(super) fn check_strength(&self) -> Result<(), String> {
        match &self.material {
            Material::Rsa { n, .. } if n.len() < 256 || (n.len() == 256 && n[0] < 0x80) => {
                Err("its RSA key has fewer than 2048 bits".into())
            }
            Material::Other(why) => Err((*why).into()),
            _ => Ok(()),
        }
    }

    /// The key as signatures over keys hash it (section 5.2.4).
    pub(super) fn hashed(&self) -> Vec<u8> {
        let mut bytes = preface(&self.body).expect("checked when it was read").to_vec();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

fn preface(body: &[u8]) -> Result<[u8; 3], String> {
    let [high, low] = u16::try_from(body.len()).map_err(|_| "a key is longer than 65,535 bytes")?.to_be_bytes();
    Ok([0x99, high, low])
}

/// The user id or attribute as certifications hash it (section 5.2.4).
pub(super) fn hashed_user(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![if kind == USER_ID { 0xB4 } else { 0xD1 }];
    // A packet's length has 32 bits.
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A signature of version 4 (section 5.2.3). What the unhashed part says is a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    /// Its type.
    pub kind: u8,
    algorithm: u8,
    hash: u8,
    /// What is hashed behind the document.
    trailer: Vec<u8>,
    left: [u8; 2],
    values: Vec<u8>,
    /// When it was made, in seconds since 1970.
    pub created: Option<u32>,
    /// How long it holds, seconds from its making; 0 is for ever.
    pub lifetime: Option<u32>,
    /// How long the key holds, seconds from *its* making; 0 is for ever.
    pub key_lifetime: Option<u32>,
    flags: Option<u8>,
    fingerprints: Vec<[u8; 20]>,
    ids: Vec<[u8; 8]>,
    /// The signature by which a subkey agrees to be bound.
    pub embedded: Option<Box<Signature>>,
    critical: Option<u8>,
}

impl Signature {
    /// Reads the body of a signature packet; `None` for another version than 4.
    pub(super) fn parse(body: &[u8]) -> Result<Option<Signature>, String> {
        Signature::nested(body, true)
    }

    fn nested(body: &[u8], outer: bool) -> Result<Option<Signature>, String> {
        let mut bytes = Bytes(body);
        if bytes.byte()? != 4 {
            return Ok(None);
        }
        let (kind, algorithm, hash) = (bytes.byte()?, bytes.byte()?, bytes.byte()?);
        let length = usize::from(bytes.u16()?);
        let hashed = bytes.take(length)?;
        let mut trailer = body[..6 + length].to_vec();
        trailer.extend([4, 0xFF]);
        trailer.extend((6 + length as u32).to_be_bytes());
        let length = usize::from(bytes.u16()?);
        let unhashed = bytes.take(length)?;
        let left = bytes.take(2)?.try_into().expect("two bytes were taken");
        let mut signature = Signature {
            kind,
            algorithm,
            hash,
            trailer,
            left,
            values: bytes.0.to_vec(),
            created: None,
            lifetime: None,
            key_lifetime: None,
            flags: None,
            fingerprints: Vec::new(),
            ids: Vec::new(),
            embedded: None,
            critical: None,
        };
        signature.read_hashed(hashed, outer)?;
        signature.read_hints(unhashed, outer)?;
        Ok(Some(signature))
    }

    /// Subpackets that the signature covers (section 5.2.3.7).
    fn read_hashed(&mut self, bytes: &[u8], outer: bool) -> Result<(), String> {
        let mut bytes = Bytes(bytes);
        while let Some(Subpacket { kind, critical, body }) = bytes.subpacket()? {
            let mut body = Bytes(body);
            match kind {
                2 => once(&mut self.created, body.whole_u32()?)?,
                3 => once(&mut self.lifetime, body.whole_u32()?)?,
                9 => once(&mut self.key_lifetime, body.whole_u32()?)?,
                27 => once(&mut self.flags, body.0.first().copied().unwrap_or(0))?,
                16 | 32 | 33 => self.read_hint(kind, body.0, outer)?,
                // Preferences and remarks that change nothing here.
                7 | 11 | 21..=23 | 25 | 28..=30 | 34 => {}
                _ if critical => self.critical = Some(kind),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_hints(&mut self, bytes: &[u8], outer: bool) -> Result<(), String> {
        let mut bytes = Bytes(bytes);
        while let Some(Subpacket { kind, body, .. }) = bytes.subpacket()? {
            self.read_hint(kind, body, outer)?;
        }
        Ok(())
    }

    /// What proves itself wherever it stands: who claims to have signed, and a signature within.
    fn read_hint(&mut self, kind: u8, body: &[u8], outer: bool) -> Result<(), String> {
        match kind {
            16 => self.ids.push(body.try_into().map_err(|_| "a key id is not 8 bytes long")?),
            33 => {
                if let [4, print @ ..] = body {
                    self.fingerprints.push(print.try_into().map_err(|_| "a fingerprint is not 20 bytes long")?);
                }
            }
            32 if outer && self.embedded.is_none() => {
                self.embedded = Signature::nested(body, false)?.map(Box::new);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether it says that this key made it.
    pub(super) fn names(&self, key: &Key) -> bool {
        self.fingerprints.contains(&key.fingerprint) || self.ids.iter().any(|id| id == key.id())
    }

    /// The key that it says made it.
    pub(super) fn issuer(&self) -> String {
        let bytes = match (self.fingerprints.first(), self.ids.first()) {
            (Some(print), _) => print.as_slice(),
            (None, Some(id)) => id.as_slice(),
            (None, None) => return "an unnamed key".into(),
        };
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether its key may sign data; `None` where it says nothing of that.
    pub(super) fn may_sign(&self) -> Option<bool> {
        self.flags.map(|flags| flags & MAY_SIGN != 0)
    }

    /// Refuses hashes that no longer prove anything (section 9.5).
    pub(super) fn check_hash(&self) -> Result<(), String> {
        let weak = match self.hash {
            8..=10 => return Ok(()),
            1 => "MD5",
            2 => "SHA1",
            3 => "RIPEMD160",
            11 => "SHA224",
            other => return Err(format!("its hash (number {other}) is not supported")),
        };
        Err(format!("the hash {weak} is too weak"))
    }

    /// Whether this key made it over these bytes.
    pub(super) fn check(&self, key: &Key, signed: &[u8]) -> Result<(), String> {
        self.check_hash()?;
        key.check_strength()?;
        if let Some(kind) = self.critical {
            return Err(format!("it has a critical part (number {kind}) that is not supported"));
        }
        let mut message = Vec::with_capacity(signed.len() + self.trailer.len());
        message.extend_from_slice(signed);
        message.extend_from_slice(&self.trailer);
        let hash = match self.hash {
            8 => &SHA256,
            9 => &SHA384,
            _ => &SHA512,
        };
        let digest = digest::digest(hash, &message);
        if digest.as_ref()[..2] != self.left {
            return Err(UNFIT.into());
        }
        let mut values = Bytes(&self.values);
        let held = match (&key.material, self.algorithm) {
            (Material::Rsa { n, e }, 1 | 3) => {
                let parameters = match self.hash {
                    8 => &RSA_PKCS1_2048_8192_SHA256,
                    9 => &RSA_PKCS1_2048_8192_SHA384,
                    _ => &RSA_PKCS1_2048_8192_SHA512,
                };
                let value = padded(values.mpi()?, n.len())?;
                RsaPublicKeyComponents { n, e }.verify(parameters, &message, &value)
            }
            (Material::Ed25519(point), 22) => {
                UnparsedPublicKey::new(&ED25519, point).verify(digest.as_ref(), &pair(&mut values, 32)?)
            }
            (Material::Ed25519(point), 27) => {
                UnparsedPublicKey::new(&ED25519, point).verify(digest.as_ref(), values.take(64)?)
            }
            (Material::P256(point), 19) if self.hash == 8 => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(&message, &pair(&mut values, 32)?)
            }
            (Material::P384(point), 19) if self.hash == 9 => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(&message, &pair(&mut values, 48)?)
            }
            (Material::P256(_) | Material::P384(_), 19) => {
                return Err("its elliptic curve with this hash is not supported".into());
            }
            _ => return Err("its algorithm is not that of the key".into()),
        };
        if !values.0.is_empty() {
            return Err("something stands behind the signature in its packet".into());
        }
        held.map_err(|_| UNFIT.into())
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("a signature says one thing twice".into()),
    }
}

const UNFIT: &str = "the signature does not fit the text";

/// A number with zeros before it, `length` bytes in all.
fn padded(number: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let zeros = length.checked_sub(number.len()).ok_or(UNFIT)?;
    let mut bytes = vec![0; zeros];
    bytes.extend_from_slice(number);
    Ok(bytes)
}

/// The two numbers of a signature on a curve, `length` bytes each.
fn pair(values: &mut Bytes<'_>, length: usize) -> Result<Vec<u8>, String> {
    let (r, s) = (padded(values.mpi()?, length)?, padded(values.mpi()?, length)?);
    Ok([r, s].concat())
}

struct Subpacket<'a> {
    kind: u8,
    /// Whether who does not understand it must not accept the signature.
    critical: bool,
    body: &'a [u8],
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("a packet is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes were taken")))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes were taken")))
    }

    fn whole_u32(&mut self) -> Result<u32, String> {
        let value = self.u32()?;
        if self.0.is_empty() { Ok(value) } else { Err("a time is longer than four bytes".into()) }
    }

    /// A length of one, two or five bytes; `None` for a part (sections 4.2.1 and 5.2.3.7).
    fn length(&mut self, subpacket: bool) -> Result<Option<usize>, String> {
        let first = self.byte()?;
        Ok(Some(match first {
            0..=191 => usize::from(first),
            255 => self.u32()? as usize,
            192..=223 => ((usize::from(first) - 192) << 8) + usize::from(self.byte()?) + 192,
            _ if subpacket => ((usize::from(first) - 192) << 8) + usize::from(self.byte()?) + 192,
            _ => return Ok(None),
        }))
    }

    /// The next subpacket.
    fn subpacket(&mut self) -> Result<Option<Subpacket<'a>>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let length = self.length(true)?.expect("subpackets come whole");
        let (kind, body) = self.take(length)?.split_first().ok_or("a part of a signature is empty")?;
        Ok(Some(Subpacket { kind: kind & 0x7F, critical: kind & 0x80 != 0, body }))
    }

    /// A number: its length in bits, and that many, without zeros before it (section 3.2).
    fn mpi(&mut self) -> Result<&'a [u8], String> {
        let bits = usize::from(self.u16()?);
        let mut number = self.take(bits.div_ceil(8))?;
        while let [0, rest @ ..] = number {
            number = rest;
        }
        Ok(number)
    }

    /// The name of a curve (section 9.2).
    fn object_id(&mut self) -> Result<&'a [u8], String> {
        let length = usize::from(self.byte()?);
        self.take(length)
    }
}
