//! ELF facts: bounded whatever a file declares, the same from memory and from a file that gives little at a time.
#![no_main]

use std::cell::Cell;

use imgbuild::debian::elf::{Bytes, facts, facts_of};
use libfuzzer_sys::fuzz_target;

/// Counts reads: a file of a few bytes must not cost more than a few ten thousand of them.
struct Counted<'a> {
    bytes: &'a [u8],
    reads: Cell<u64>,
}

impl Bytes for Counted<'_> {
    fn read_at(&self, at: u64, out: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        self.bytes.read_at(at, out)
    }
}

fuzz_target!(|data: &[u8]| {
    let counted = Counted { bytes: data, reads: Cell::new(0) };
    let found = facts(data);
    assert_eq!(found, facts_of(&counted));
    // Program headers, dynamic entries, texts of 4096 bytes in pieces of 128, notes.
    assert!(counted.reads.get() <= 65_536 * 4 + 16_384 * 2 + 2_051 * 33 + 1_024, "{} reads", counted.reads.get());
    let Some(found) = found else { return };
    assert!(data.starts_with(b"\x7fELF"));
    assert!(found.needed.len() <= 2048);
    let lists = found.needed.iter().chain(&found.rpath).chain(&found.runpath);
    for text in lists.chain(&found.soname).chain(&found.interpreter) {
        assert!(text.len() <= 4096 && !text.contains('\0'));
    }
    assert!(found.rpath.is_empty() || found.runpath.is_empty());
    assert!(found.dynamic || found.needed.is_empty());
});
