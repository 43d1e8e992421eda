//! The hash of a certificate's subject by which OpenSSL finds it in a directory (openssl-rehash(1), `X509_NAME_hash`).
//!
//! It is the start of the SHA-1 of a canonical form of the name: text values as UTF-8 in lower case (ASCII only), with
//! spaces trimmed and runs of them made one. SHA-1 is a label here and secures nothing.

/// The DER bytes of a PEM file (RFC 7468) that has exactly one certificate; rehash leaves other files out.
pub(super) fn only_certificate(pem: &[u8]) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(pem);
    let mut found = None;
    let mut inside: Option<Vec<u8>> = None;
    for line in text.lines().map(str::trim) {
        match line {
            "-----BEGIN CERTIFICATE-----" | "-----BEGIN X509 CERTIFICATE-----" => inside = Some(Vec::new()),
            "-----END CERTIFICATE-----" | "-----END X509 CERTIFICATE-----" => {
                if found.is_some() {
                    return None;
                }
                found = Some(base64(&inside.take()?)?);
            }
            _ => {
                if let Some(body) = &mut inside {
                    body.extend_from_slice(line.as_bytes());
                }
            }
        }
    }
    found
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for &byte in text.iter().take_while(|&&byte| byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// A DER element (X.690): its tag, its content, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = content.len().to_be_bytes();
    let digits = &length[length.iter().position(|&byte| byte != 0).unwrap_or(length.len() - 1)..];
    if content.len() < 0x80 {
        bytes.push(content.len() as u8);
    } else {
        bytes.push(0x80 | digits.len() as u8);
        bytes.extend_from_slice(digits);
    }
    bytes.extend_from_slice(content);
    bytes
}

/// The number in the names of links, of a certificate in DER.
pub(super) fn hash(certificate: &[u8]) -> Option<u32> {
    let (_, certificate, _) = element(certificate)?;
    let (_, body, _) = element(certificate)?;
    let mut rest = body;
    // An explicit version may come first; then serial, signature algorithm, issuer, validity.
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.2;
    }
    for _ in 0..4 {
        rest = element(rest)?.2;
    }
    let (0x30, mut names, _) = element(rest)? else { return None };
    let mut canonical = Vec::new();
    while !names.is_empty() {
        let (0x31, mut set, more) = element(names)? else { return None };
        names = more;
        let mut attributes = Vec::new();
        while !set.is_empty() {
            let (_, attribute, more) = element(set)?;
            set = more;
            let (kind, name, value) = element(attribute)?;
            let (tag, text, _) = element(value)?;
            let (tag, text) = canonical_text(tag, text)?;
            attributes.push(encode(0x30, &[encode(kind, name), encode(tag, &text)].concat()));
        }
        // DER sorts the members of a set.
        attributes.sort();
        canonical.extend(encode(0x31, &attributes.concat()));
    }
    let digest = sha1(&canonical);
    Some(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

fn canonical_text(tag: u8, bytes: &[u8]) -> Option<(u8, Vec<u8>)> {
    let text: String = match tag {
        // UTF8String, PrintableString, IA5String, VisibleString.
        12 | 19 | 22 | 26 => return Some((12, fold(bytes))),
        // TeletexString, read as Latin-1.
        20 => bytes.iter().map(|&byte| char::from(byte)).collect(),
        28 => bytes.chunks(4).map(|c| char::from_u32(u32::from_be_bytes(c.try_into().ok()?))).collect::<Option<_>>()?,
        30 => {
            let units =
                bytes.chunks(2).map(|c| Some(u16::from_be_bytes(c.try_into().ok()?))).collect::<Option<Vec<_>>>()?;
            String::from_utf16(&units).ok()?
        }
        other => return Some((other, bytes.to_vec())),
    };
    Some((12, fold(text.as_bytes())))
}

fn fold(bytes: &[u8]) -> Vec<u8> {
    let space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let words = bytes.split(space).filter(|word| !word.is_empty());
    words.map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>().join(&b' ')
}

/// SHA-1 (FIPS 180-4).
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    let mut state = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in padded.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (round, word) in words.iter().enumerate() {
            let (mixed, constant) = match round {
                0..20 => (b & c | !b & d, 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn sha1_gives_the_standard_s_values() {
        assert_eq!(hex(&sha1(b"")), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(hex(&sha1(b"abc")), "a9993e364706816aba3e25717850c26c9cd0d89d");
        let text = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        assert_eq!(hex(&sha1(text)), "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
        assert_eq!(hex(&sha1(&[b'a'; 64])), "0098ba824b5c16427bd7a1122a5a442a25ec644d");
        assert_eq!(hex(&sha1(&[b'a'; 55])), "c1c8bbdc22796e28c0e15163d20899b65621d65a");
    }

    /// A certificate down to its subject, which is `O = " Big  CA "` in the given string type.
    fn certificate(tag: u8, text: &[u8]) -> Vec<u8> {
        let name = encode(0x30, &[encode(6, &[0x55, 4, 10]), encode(tag, text)].concat());
        let subject = encode(0x30, &encode(0x31, &name));
        let empty = encode(0x30, b"");
        let body =
            [encode(0xa0, &encode(2, &[2])), encode(2, &[1]), empty.clone(), empty.clone(), empty, subject].concat();
        encode(0x30, &encode(0x30, &body))
    }

    #[test]
    fn writing_and_type_of_a_name_do_not_matter() {
        let plain = hash(&certificate(12, b"big ca"));
        assert!(plain.is_some());
        assert_eq!(hash(&certificate(19, b" Big  CA ")), plain);
        assert_eq!(hash(&certificate(30, &[0, b'B', 0, b'i', 0, b'g', 0, b' ', 0, b'C', 0, b'A'])), plain);
        assert_ne!(hash(&certificate(12, b"bigca")), plain);
    }

    #[test]
    fn broken_certificates_have_no_hash() {
        let good = certificate(12, b"x");
        for end in 0..good.len() {
            assert_eq!(hash(&good[..end]), None);
        }
        assert_eq!(only_certificate(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), None);
        let one = "-----BEGIN CERTIFICATE-----\nAAEC\nAw==\n-----END CERTIFICATE-----\n";
        assert_eq!(only_certificate(one.as_bytes()).as_deref(), Some(&[0, 1, 2, 3][..]));
        assert_eq!(only_certificate(one.repeat(2).as_bytes()), None);
    }
}
