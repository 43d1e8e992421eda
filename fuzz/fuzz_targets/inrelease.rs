//! Signed Release files: whatever is done to a signed message, only the text that was signed comes out.
//!
//! The seed is signed by a key that was made for it and thrown away.
#![no_main]

use std::sync::LazyLock;

use imgbuild::debian::openpgp::Keyring;
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

static KEYRING: LazyLock<Keyring> =
    LazyLock::new(|| Keyring::parse(include_bytes!("../seeds/inrelease/key.asc")).expect("a keyring"));
const SIGNED: &str = include_str!("../seeds/inrelease/text");
/// A day on which the seed's signature holds: 2027-01-01.
const NOW: i64 = 1_798_761_600;

fuzz_target!(init: {
    let message = include_str!("../seeds/inrelease/signed");
    assert_eq!(plain(&KEYRING.verify(message, NOW).expect("the seed's signature holds")), plain(SIGNED));
}, |data: &[u8]| {
    if let Ok(found) = KEYRING.verify(text(data), NOW) {
        assert_eq!(plain(&found), plain(SIGNED));
        let _ = imgbuild::debian::release::Release::parse(&found);
    }
    // A keyring is downloaded by people, not by us; but it may be damaged.
    if let Ok(ring) = Keyring::parse(data) {
        let _ = ring.verify(include_str!("../seeds/inrelease/signed"), NOW);
    }
});

/// Blanks at the ends of lines and line ends are not signed (RFC 9580, section 7.2).
fn plain(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches([' ', '\t', '\r'])).collect();
    lines.join("\n").trim_end().to_owned()
}
