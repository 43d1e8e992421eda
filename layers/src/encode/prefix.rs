//! SHA-256 at places within a layer's tar: where the beginning of a layer is what it was, its tar is not hashed again.

use serde::{Deserialize, Serialize};
use sha2::Sha256;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

/// What SHA-256 came to behind fragments of a layer's tar: behind the skeleton and the first of them, then behind the second, and so
/// on. It holds for layers that have the same skeleton and begin with the same fragments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefixes(Vec<String>);

impl Prefixes {
    /// More are not kept.
    pub const MOST: usize = 64;

    /// The form of the states, which a new release of the hash may change: records of another one have another name.
    pub const FORM: u32 = 1;

    /// Keeps those behind the first `count` fragments.
    pub fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    /// Behind how many fragments the last of them is.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, hasher: &Sha256) {
        if self.0.len() < Prefixes::MOST {
            self.0.push(hex(&hasher.serialize()));
        }
    }

    /// The last of them; `None` where there is none, or it is no state of this hash.
    pub(super) fn last(&self) -> Option<Sha256> {
        let mut state = SerializedState::<Sha256>::default();
        let text = self.0.last()?.as_bytes().as_chunks::<2>();
        if !text.1.is_empty() || text.0.len() != state.len() {
            return None;
        }
        for (byte, digits) in state.iter_mut().zip(text.0) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Sha256::deserialize(&state).ok()
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use sha2::Digest as _;

    use super::*;

    #[test]
    fn a_hash_goes_on_where_it_was_and_nothing_else_is_taken_for_one() {
        let mut prefixes = Prefixes::default();
        assert!(prefixes.last().is_none());
        let hasher = Sha256::new().chain_update([7; 1000]);
        for _ in 0..Prefixes::MOST + 1 {
            prefixes.push(&hasher);
        }
        assert_eq!(prefixes.len(), Prefixes::MOST);
        let gone_on = prefixes.last().expect("is one").chain_update(b"more").finalize();
        assert_eq!(gone_on, hasher.chain_update(b"more").finalize());
        let text = prefixes.0[0].clone();
        // Records outlive the release of the hash that wrote them. A change here means: raise FORM.
        let words = "c9ef6e761e8c7da6e91cd86b0603e5feaeb584d693b06abd917d53956382aadf";
        let (blocks, rest) = ("0f00000000000000", format!("28{}{}", "07".repeat(40), "00".repeat(23)));
        assert_eq!(text, format!("{words}{blocks}{rest}"));
        prefixes.truncate(1);
        assert_eq!(prefixes.len(), 1);
        for wrong in [
            "",
            "00",
            &text[1..],
            &text[2..],
            &"f".repeat(text.len()),
            &"+f".repeat(text.len() / 2),
            &"é".repeat(text.len() / 2),
        ] {
            assert!(Prefixes(vec![text.clone(), wrong.to_owned()]).last().is_none(), "{wrong}");
        }
    }
}
