//! Text around OpenPGP packets: ASCII armour (RFC 9580, section 6) and cleartext-signed messages (section 7).
//!
//! Read strictly: what two readers could take for two texts is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const MESSAGE: &str = "PGP SIGNED MESSAGE";
const SIGNATURE: &str = "PGP SIGNATURE";
const KEYS: &str = "PGP PUBLIC KEY BLOCK";

/// What a `Hash` header may name. It decides nothing, and readers refuse what they do not know.
const HASHES: [&str; 9] = ["SHA512", "SHA256", "SHA384", "SHA224", "SHA1", "SHA3-256", "SHA3-512", "RIPEMD160", "MD5"];

/// A cleartext-signed message, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cleartext {
    /// The lines without their escapes and without the blanks at their ends, which are not signed; no last line end.
    pub text: String,
    /// The signature packets.
    pub signatures: Vec<u8>,
}

/// Whether something is armoured rather than binary.
pub(super) fn is_armoured(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"-----BEGIN")
}

/// Reads a cleartext-signed message with nothing before or behind it.
pub(super) fn cleartext(message: &str) -> Result<Cleartext, String> {
    let mut lines = Lines(message);
    if lines.next()?.and_then(begins) != Some(MESSAGE) {
        return Err("something stands before the signed message, or there is none".into());
    }
    loop {
        let line = lines.next()?.ok_or("it ends in its first lines")?;
        if line.is_empty() {
            break;
        }
        let hashes = line.strip_prefix("Hash: ");
        if !hashes.is_some_and(|names| names.split(',').all(|name| HASHES.contains(&name.trim_matches([' ', '\t'])))) {
            return Err(format!("the line `{}` stands above the signed text", line.escape_debug()));
        }
    }
    let mut text = String::with_capacity(message.len());
    let mut first = true;
    loop {
        let line = lines.next()?.ok_or("it ends before its signature")?;
        if begins(line) == Some(SIGNATURE) {
            break;
        }
        let line = match line.strip_prefix("- ") {
            Some(rest) => rest,
            None if line.starts_with('-') => return Err("a line begins with `-` and is not escaped".into()),
            None => line,
        };
        if !std::mem::take(&mut first) {
            text.push('\n');
        }
        text.push_str(line.trim_end_matches([' ', '\t']));
    }
    let signatures = block(&mut lines, SIGNATURE)?;
    while let Some(line) = lines.next()? {
        if !line.trim_end_matches([' ', '\t']).is_empty() {
            return Err("something stands behind the signature".into());
        }
    }
    Ok(Cleartext { text, signatures })
}

/// The packets of every armoured block of public keys in a text, one behind the other.
pub(super) fn keys(text: &str) -> Result<Vec<u8>, String> {
    let mut lines = Lines(text);
    let mut packets = Vec::new();
    while let Some(line) = lines.next()? {
        match begins(line) {
            Some(KEYS) => packets.extend(block(&mut lines, KEYS)?),
            Some(other) => return Err(format!("it holds a `{}`", other.escape_debug())),
            // Comments between blocks.
            None => {}
        }
    }
    Ok(packets)
}

/// The name in `-----BEGIN NAME-----`.
fn begins(line: &str) -> Option<&str> {
    line.trim_end_matches([' ', '\t']).strip_prefix("-----BEGIN ")?.strip_suffix("-----")
}

/// What stands behind a block's first line, up to and with its last.
fn block(lines: &mut Lines<'_>, name: &str) -> Result<Vec<u8>, String> {
    let missing = || format!("the `{name}` has no end");
    loop {
        let line = lines.next()?.ok_or_else(missing)?;
        if line.trim_end_matches([' ', '\t']).is_empty() {
            break;
        }
        if !line.contains(": ") {
            return Err(format!("the `{name}` has no empty line below its headers"));
        }
    }
    let mut body = String::new();
    let mut checksum = None;
    loop {
        let line = lines.next()?.ok_or_else(missing)?.trim_end_matches([' ', '\t']);
        if let Some(rest) = line.strip_prefix("-----END ") {
            if rest.strip_suffix("-----") != Some(name) {
                return Err(missing());
            }
            break;
        }
        if checksum.is_some() {
            return Err(format!("something stands behind the checksum of the `{name}`"));
        }
        match line.strip_prefix('=') {
            Some(sum) => checksum = Some(sum),
            None => body.push_str(line),
        }
    }
    let wrong = |error: base64::DecodeError| format!("the `{name}` is not base64: {error}");
    let bytes = STANDARD.decode(&body).map_err(wrong)?;
    if let Some(sum) = checksum
        && STANDARD.decode(sum).map_err(wrong)? != crc24(&bytes).to_be_bytes()[1..]
    {
        return Err(format!("the checksum of the `{name}` is wrong"));
    }
    Ok(bytes)
}

/// RFC 9580, section 6.1.1.
fn crc24(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x00B7_04CE, |crc, byte| {
        (0..8).fold(crc ^ (u32::from(*byte) << 16), |crc, _| {
            let crc = crc << 1;
            if crc & 0x0100_0000 == 0 { crc } else { crc ^ 0x0186_4CFB }
        })
    })
}

/// Lines that end in `\n` or `\r\n`; a `\r` elsewhere is a line end to some and a letter to others.
struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a str>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (line, rest) = self.0.split_once('\n').unwrap_or((self.0, ""));
        self.0 = rest;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.contains('\r') {
            return Err("a carriage return stands within a line".into());
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\none  \n- -two\n\n\
        -----BEGIN PGP SIGNATURE-----\n\nAAAA\n=xVTe\n-----END PGP SIGNATURE-----\n";

    #[test]
    fn a_message_is_taken_apart() {
        let sum = STANDARD.encode(&crc24(&[0, 0, 0]).to_be_bytes()[1..]);
        let signed = SIGNED.replace("xVTe", &sum);
        let parts = cleartext(&signed).unwrap();
        assert_eq!(parts, Cleartext { text: "one\n-two\n".into(), signatures: vec![0, 0, 0] });
        assert_eq!(cleartext(&signed.replace('\n', "\r\n")).unwrap(), parts);
        // "123456789" is the check value of the catalogue of checksums.
        assert_eq!(crc24(b"123456789"), 0x21_CF02);
    }

    #[test]
    fn what_could_be_read_twice_is_refused() {
        let sum = STANDARD.encode(&crc24(&[0, 0, 0]).to_be_bytes()[1..]);
        let good = SIGNED.replace("xVTe", &sum);
        for (from, to, why) in [
            ("- -two", "-two", "not escaped"),
            ("one", "o\rne", "carriage return"),
            ("Hash: SHA256", "Hash: SHA256\nOrigin: Debian", "above the signed text"),
            ("SHA256", "SHA25", "above the signed text"),
            ("\n\nAAAA", "\nAAAA", "no empty line"),
            ("AAAA", "AAA", "not base64"),
            ("AAAA", "AAAB", "checksum"),
            ("-----END PGP SIGNATURE-----\n", "", "no end"),
            ("-----END PGP SIGNATURE-----\n", "-----END PGP SIGNATURE-----\nmore\n", "behind the signature"),
            ("-----BEGIN PGP SIGNED", "x\n-----BEGIN PGP SIGNED", "stands before"),
        ] {
            let error = cleartext(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(why), "`{error}` does not say `{why}`");
        }
    }
}
