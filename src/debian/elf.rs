//! The few facts of an ELF file that decide whether it will start.
//!
//! Only the file header, the program headers and the dynamic section are read (System V ABI, chapters 4 and 5): a
//! stripped file has no more. Every offset comes from a stranger, so all are checked and all counts are capped: a file
//! costs at most a few thousand reads, however it was made.

use serde::{Deserialize, Serialize};

/// What the dynamic loader needs to know of a file (System V ABI, chapter 5). Recorded once, when its archive is converted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElfFacts {
    /// `e_machine`: 62 is x86-64, 183 is AArch64.
    pub machine: u16,
    /// 32 or 64.
    pub bits: u8,
    /// The path of the loader (`PT_INTERP`).
    pub interpreter: Option<String>,
    /// `DT_SONAME`.
    pub soname: Option<String>,
    /// `DT_NEEDED`, in order.
    pub needed: Vec<String>,
    /// `DT_RPATH`, split at colons; empty where `DT_RUNPATH` is present.
    pub rpath: Vec<String>,
    /// `DT_RUNPATH`, split at colons.
    pub runpath: Vec<String>,
    /// Whether there is a dynamic section: a program or library that the loader handles (`ET_EXEC` or `ET_DYN`).
    pub dynamic: bool,
    /// The bits of `GNU_PROPERTY_X86_ISA_1_NEEDED` (x86-64 psABI, program property), 0 where it is absent.
    pub isa_needed: u32,
}

/// `e_machine` of x86-64.
pub const X86_64: u16 = 62;
/// `e_machine` of AArch64.
pub const AARCH64: u16 = 183;

/// The first bytes of an ELF file.
pub const MAGIC: &[u8; 4] = b"\x7fELF";

const MAX_DYNAMIC: usize = 16_384;
const MAX_NEEDED: usize = 2_048;
const MAX_TEXT: usize = 4_096;
const MAX_NOTES: usize = 256;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_GNU_PROPERTY: u32 = 0x6474_e553;

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Bytes that can be read from anywhere: a library of gigabytes need not be in memory for its facts.
pub trait Bytes {
    /// Fills `out` from `at` on as far as there are bytes; returns how many there were, 0 also where they cannot be read.
    fn read_at(&self, at: u64, out: &mut [u8]) -> usize;
}

impl Bytes for &[u8] {
    fn read_at(&self, at: u64, out: &mut [u8]) -> usize {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        count
    }
}

/// Bytes with the class and the byte order that the identification declares.
#[derive(Clone, Copy)]
struct Words<'a> {
    bytes: &'a dyn Bytes,
    wide: bool,
    little: bool,
}

impl Words<'_> {
    fn number(&self, at: u64, length: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..length];
        if self.bytes.read_at(at, bytes) != length {
            return None;
        }
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    }

    fn half(&self, at: u64) -> Option<u16> {
        self.number(at, 2).map(|value| value as u16)
    }

    fn word(&self, at: u64) -> Option<u32> {
        self.number(at, 4).map(|value| value as u32)
    }

    /// An address or offset: 4 or 8 bytes by class.
    fn address(&self, at: u64) -> Option<u64> {
        self.number(at, if self.wide { 8 } else { 4 })
    }

    /// A NUL-terminated text of at most [`MAX_TEXT`] bytes.
    fn text(&self, at: u64) -> Option<String> {
        let mut text = Vec::new();
        while text.len() <= MAX_TEXT {
            let mut piece = [0; 128];
            let length = self.bytes.read_at(at.checked_add(text.len() as u64)?, &mut piece);
            let piece = &piece[..length.min(MAX_TEXT + 1 - text.len())];
            if let Some(end) = piece.iter().position(|&byte| byte == 0) {
                text.extend_from_slice(&piece[..end]);
                return String::from_utf8(text).ok();
            }
            if piece.is_empty() {
                return None;
            }
            text.extend_from_slice(piece);
        }
        None
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Reads the facts of an ELF file of either class and byte order; `None` where the bytes are not an ELF file or a
/// malformed one. Never panics, and its cost is bounded whatever counts the file declares.
pub fn facts(bytes: &[u8]) -> Option<ElfFacts> {
    facts_of(&bytes)
}

/// As [`facts`], for bytes that are not all in memory.
pub fn facts_of(bytes: &dyn Bytes) -> Option<ElfFacts> {
    let mut identification = [0; 6];
    if bytes.read_at(0, &mut identification) != 6 || !identification.starts_with(MAGIC) {
        return None;
    }
    let wide = match identification[4] {
        1 => false,
        2 => true,
        _ => return None,
    };
    let little = match identification[5] {
        1 => true,
        2 => false,
        _ => return None,
    };
    let words = Words { bytes, wide, little };
    let kind = words.half(16)?;
    let mut facts = ElfFacts { machine: words.half(18)?, bits: if wide { 64 } else { 32 }, ..ElfFacts::default() };
    // Relocatable objects and core files are never loaded by the dynamic loader.
    if kind != 2 && kind != 3 {
        return Some(facts);
    }
    let segments = segments(&words)?;
    if let Some(interpreter) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
        facts.interpreter = Some(words.text(interpreter.offset)?);
    }
    if let Some(property) = segments.iter().find(|segment| segment.kind == PT_GNU_PROPERTY) {
        facts.isa_needed = isa_needed(&words, property).unwrap_or(0);
    }
    if let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) {
        facts.dynamic = true;
        read_dynamic(&words, dynamic, &segments, &mut facts)?;
    }
    Some(facts)
}

fn segments(words: &Words<'_>) -> Option<Vec<Segment>> {
    let (table, size, count) = if words.wide {
        (words.address(32)?, words.half(54)?, words.half(56)?)
    } else {
        (words.address(28)?, words.half(42)?, words.half(44)?)
    };
    let least = if words.wide { 56 } else { 32 };
    // 0xffff means that the count is in a section header: only core files need that.
    if count == 0xffff || (count > 0 && usize::from(size) < least) {
        return None;
    }
    let mut all = Vec::with_capacity(usize::from(count).min(64));
    for index in 0..u64::from(count) {
        let at = table.checked_add(index * u64::from(size))?;
        let (offset, address, length) = if words.wide { (8, 16, 32) } else { (4, 8, 16) };
        all.push(Segment {
            kind: words.word(at)?,
            offset: words.address(at.checked_add(offset)?)?,
            address: words.address(at.checked_add(address)?)?,
            size: words.address(at.checked_add(length)?)?,
        });
    }
    Some(all)
}

fn read_dynamic(words: &Words<'_>, dynamic: &Segment, segments: &[Segment], facts: &mut ElfFacts) -> Option<()> {
    let step: u64 = if words.wide { 16 } else { 8 };
    let count = (dynamic.size / step).min(MAX_DYNAMIC as u64);
    let mut table = None;
    let (mut needed, mut soname, mut rpath, mut runpath) = (Vec::new(), None, None, None);
    for index in 0..count {
        let at = dynamic.offset.checked_add(index * step)?;
        let value = words.address(at.checked_add(step / 2)?)?;
        match words.address(at)? {
            DT_NULL => break,
            DT_NEEDED if needed.len() < MAX_NEEDED => needed.push(value),
            DT_NEEDED => return None,
            DT_STRTAB => table = Some(value),
            DT_SONAME => soname = Some(value),
            DT_RPATH => rpath = Some(value),
            DT_RUNPATH => runpath = Some(value),
            _ => {}
        }
    }
    if needed.is_empty() && soname.is_none() && rpath.is_none() && runpath.is_none() {
        return Some(());
    }
    let table = file_offset(table?, segments)?;
    let text = |value: u64| words.text(table.checked_add(value)?);
    facts.needed = needed.into_iter().map(text).collect::<Option<_>>()?;
    let optional = |value: Option<u64>| match value {
        None => Some(None),
        Some(value) => text(value).map(Some),
    };
    facts.soname = optional(soname)?;
    let split = |list: String| list.split(':').map(str::to_owned).collect();
    match (optional(rpath)?, optional(runpath)?) {
        (_, Some(list)) => facts.runpath = split(list),
        (Some(list), None) => facts.rpath = split(list),
        (None, None) => {}
    }
    Some(())
}

fn file_offset(address: u64, segments: &[Segment]) -> Option<u64> {
    let load = segments.iter().find(|s| s.kind == PT_LOAD && address >= s.address && address - s.address < s.size)?;
    load.offset.checked_add(address - load.address)
}

/// The descriptor of the `NT_GNU_PROPERTY_TYPE_0` note, property 0xc0008002.
fn isa_needed(words: &Words<'_>, property: &Segment) -> Option<u32> {
    let align: u64 = if words.wide { 8 } else { 4 };
    let end = property.offset.checked_add(property.size)?;
    let (name, kind) = (words.word(property.offset)?, words.word(property.offset.checked_add(8)?)?);
    if name != 4 || kind != 5 {
        return None;
    }
    let length = u64::from(words.word(property.offset.checked_add(4)?)?);
    let mut at = property.offset.checked_add(16)?;
    let end = end.min(at.checked_add(length)?);
    for _ in 0..MAX_NOTES {
        if at.checked_add(8)? > end {
            break;
        }
        let (kind, size) = (words.word(at)?, words.word(at.checked_add(4)?)?);
        if kind == 0xc000_8002 && size == 4 {
            return words.word(at.checked_add(8)?);
        }
        at = at.checked_add(8)?.checked_add(u64::from(size).next_multiple_of(align))?;
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A little-endian ELF64 file with one loaded segment at address 0 and the given dynamic entries.
    pub(crate) fn sample(machine: u16, interpreter: Option<&str>, entries: &[(u64, &str)]) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut dynamic: Vec<u8> = Vec::new();
        for (tag, text) in entries {
            dynamic.extend(tag.to_le_bytes());
            dynamic.extend((strings.len() as u64).to_le_bytes());
            strings.extend(text.as_bytes());
            strings.push(0);
        }
        let interp = interpreter.map(|text| [text.as_bytes(), b"\0"].concat()).unwrap_or_default();
        let start = 64 + 3 * 56;
        let dynamic_at = start + interp.len();
        let strings_at = dynamic_at + dynamic.len() + 32;
        dynamic.extend(5u64.to_le_bytes());
        dynamic.extend((strings_at as u64).to_le_bytes());
        dynamic.extend([0; 16]);
        let total = strings_at + strings.len();
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(3u16.to_le_bytes());
        file.extend(machine.to_le_bytes());
        file.extend([0; 12]);
        file.extend(64u64.to_le_bytes());
        file.extend([0; 14]);
        file.extend(56u16.to_le_bytes());
        file.extend(3u16.to_le_bytes());
        file.resize(64, 0);
        let mut header = |kind: u32, offset: usize, size: usize| {
            file.extend(kind.to_le_bytes());
            file.extend([0; 4]);
            for value in [offset, offset, offset, size, size, 8] {
                file.extend((value as u64).to_le_bytes());
            }
        };
        header(PT_LOAD, 0, total);
        header(PT_DYNAMIC, dynamic_at, dynamic.len());
        header(if interp.is_empty() { 0 } else { PT_INTERP }, start, interp.len());
        file.extend(interp);
        file.extend(dynamic);
        file.extend(strings);
        file
    }

    #[test]
    fn a_library_tells_its_name_and_needs() {
        let file = sample(
            X86_64,
            Some("/lib64/ld-linux-x86-64.so.2"),
            &[(1, "libz.so.1"), (1, "libc.so.6"), (14, "libx.so.1"), (15, "/old"), (29, "$ORIGIN/../lib:/opt/x")],
        );
        let facts = facts(&file).expect("an ELF file");
        assert_eq!(facts.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(facts.soname.as_deref(), Some("libx.so.1"));
        assert_eq!(facts.needed, ["libz.so.1", "libc.so.6"]);
        assert_eq!(facts.rpath, [""; 0], "RUNPATH hides RPATH");
        assert_eq!(facts.runpath, ["$ORIGIN/../lib", "/opt/x"]);
        assert_eq!((facts.machine, facts.bits, facts.dynamic), (X86_64, 64, true));
    }

    #[test]
    fn other_bytes_are_no_elf_file() {
        assert_eq!(facts(b""), None);
        assert_eq!(facts(b"#!/bin/sh\n"), None);
        assert_eq!(facts(b"\x7fELF"), None);
        assert_eq!(facts(b"\x7fELF\x03\x01"), None);
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_survived() {
        let file = sample(AARCH64, Some("/lib/ld"), &[(1, "liba.so"), (14, "libb.so"), (15, "/r")]);
        for length in 0..file.len() {
            facts(&file[..length]);
        }
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = file.clone();
                changed[at] = value;
                facts(&changed);
            }
        }
    }

    #[test]
    fn segments_at_the_end_of_all_addresses_are_survived() {
        let file = sample(X86_64, Some("/lib/ld"), &[(1, "liba.so")]);
        for kind in [PT_DYNAMIC, PT_INTERP, PT_GNU_PROPERTY, PT_LOAD] {
            for offset in (u64::MAX - 40)..=u64::MAX {
                let mut changed = file.clone();
                // The second program header: its kind, then its offset.
                changed[64 + 56..64 + 56 + 4].copy_from_slice(&kind.to_le_bytes());
                changed[64 + 56 + 8..64 + 56 + 16].copy_from_slice(&offset.to_le_bytes());
                changed[64 + 56 + 32..64 + 56 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
                facts(&changed);
            }
        }
    }

    #[test]
    fn endless_dynamic_sections_and_texts_are_cut_off() {
        let many: Vec<(u64, &str)> = (0..MAX_NEEDED + 1).map(|_| (1, "x")).collect();
        assert_eq!(facts(&sample(X86_64, None, &many)), None);
        let long = "y".repeat(MAX_TEXT + 1);
        assert_eq!(facts(&sample(X86_64, None, &[(1, &long)])), None);
    }

    #[test]
    fn an_own_program_is_read() {
        let own = std::fs::read(std::env::current_exe().expect("the test program")).expect("readable");
        let facts = facts(&own).expect("an ELF file");
        assert!(facts.needed.iter().any(|name| name == "libc.so.6"), "{facts:?}");
        assert!(facts.interpreter.is_some());
    }
}
