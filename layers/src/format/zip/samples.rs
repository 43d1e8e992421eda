//! Archives for tests, built byte by byte, so that every field may lie.

use super::*;

/// One entry with everything that may lie.
#[derive(Clone)]
pub(crate) struct Item {
    pub(crate) name: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) packed: Vec<u8>,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    pub(crate) attributes: u32,
    pub(crate) local_extra: Vec<u8>,
    pub(crate) central_extra: Vec<u8>,
    /// Bytes put over the local and the central header once they are built.
    pub(crate) local: Vec<(usize, Vec<u8>)>,
    pub(crate) central: Vec<(usize, Vec<u8>)>,
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
}

impl Item {
    /// A stored file, as Python writes it.
    pub(crate) fn new(name: &str, content: &[u8]) -> Item {
        Item {
            name: name.into(),
            content: content.into(),
            packed: content.into(),
            method: 0,
            flags: if name.is_ascii() { 0 } else { 1 << 11 },
            attributes: 0o100_644 << 16,
            local_extra: vec![],
            central_extra: vec![],
            local: vec![],
            central: vec![],
            before: vec![],
            after: vec![],
        }
    }

    pub(crate) fn deflated(name: &str, content: &[u8]) -> Item {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).expect("a vector takes everything");
        Item { packed: encoder.finish().expect("a vector takes everything"), method: 8, ..Item::new(name, content) }
    }

    pub(crate) fn local(mut self, at: usize, bytes: &[u8]) -> Item {
        self.local.push((at, bytes.into()));
        self
    }

    pub(crate) fn central(mut self, at: usize, bytes: &[u8]) -> Item {
        self.central.push((at, bytes.into()));
        self
    }

    pub(crate) fn both(self, local: usize, central: usize, bytes: &[u8]) -> Item {
        self.local(local, bytes).central(central, bytes)
    }

    /// Sizes and CRC-32 behind the content, in the shape with or without magic, 32 or 64 bits wide.
    pub(crate) fn described(mut self, magic: bool, wide: bool) -> Item {
        self.flags |= 1 << 3;
        self.after = if magic { b"PK\x07\x08".to_vec() } else { vec![] };
        self.after.extend(crc32fast::hash(&self.content).to_le_bytes());
        for size in [self.packed.len(), self.content.len()] {
            let bytes = (size as u64).to_le_bytes();
            self.after.extend(if wide { &bytes[..] } else { &bytes[..4] });
        }
        self.local(14, &[0; 12])
    }
}

fn patch(bytes: &mut [u8], patches: &[(usize, Vec<u8>)]) {
    for (at, with) in patches {
        bytes[*at..at + with.len()].copy_from_slice(with);
    }
}

pub(crate) fn end(entries: usize, size: usize, offset: usize) -> Vec<u8> {
    let entries = (entries as u16).to_le_bytes();
    [
        b"PK\x05\x06\0\0\0\0".to_vec(),
        entries.to_vec(),
        entries.to_vec(),
        (size as u32).to_le_bytes().to_vec(),
        (offset as u32).to_le_bytes().to_vec(),
        vec![0; 2],
    ]
    .concat()
}

/// The archive without its end, and where its directory starts.
fn body(items: &[Item]) -> (Vec<u8>, usize) {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for item in items {
        bytes.extend(&item.before);
        let offset = bytes.len() as u32;
        // Version, flags, method, 2024-02-03 04:05:06, CRC-32, sizes, name length.
        let mut common = [item.flags.to_le_bytes(), item.method.to_le_bytes()].concat();
        common.extend((4u16 << 11 | 5 << 5 | 3).to_le_bytes());
        common.extend((44u16 << 9 | 2 << 5 | 3).to_le_bytes());
        common.extend(crc32fast::hash(&item.content).to_le_bytes());
        common.extend((item.packed.len() as u32).to_le_bytes());
        common.extend((item.content.len() as u32).to_le_bytes());
        common.extend((item.name.len() as u16).to_le_bytes());
        let mut local = b"PK\x03\x04\x14\0".to_vec();
        local.extend(&common);
        local.extend((item.local_extra.len() as u16).to_le_bytes());
        patch(&mut local, &item.local);
        let mut central = b"PK\x01\x02\x14\x03\x14\0".to_vec();
        central.extend(&common);
        central.extend((item.central_extra.len() as u16).to_le_bytes());
        central.extend([0; 6]);
        central.extend(item.attributes.to_le_bytes());
        central.extend(offset.to_le_bytes());
        patch(&mut central, &item.central);
        bytes.extend(local);
        // The name that the local header tells, unless a patch changed its length.
        bytes.extend([&item.name[..], &item.local_extra, &item.packed, &item.after].concat());
        directory.extend([&central[..], &item.name, &item.central_extra].concat());
    }
    let start = bytes.len();
    bytes.extend(directory);
    (bytes, start)
}

pub(crate) fn archive(items: &[Item]) -> Vec<u8> {
    let (mut bytes, start) = body(items);
    let size = bytes.len() - start;
    bytes.extend(end(items.len(), size, start));
    bytes
}

/// The same with a zip64 end.
pub(crate) fn archive64(items: &[Item], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (mut bytes, start) = body(items);
    let (size, offset64) = (bytes.len() - start, bytes.len());
    let mut tail = b"PK\x06\x06".to_vec();
    tail.extend(44u64.to_le_bytes());
    tail.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [items.len(), items.len(), size, start] {
        tail.extend((number as u64).to_le_bytes());
    }
    tail.extend(b"PK\x06\x07\0\0\0\0");
    tail.extend((offset64 as u64).to_le_bytes());
    tail.extend(1u32.to_le_bytes());
    tail.extend(end(0xffff, 0xffff_ffff, 0xffff_ffff));
    change(&mut tail);
    bytes.extend(tail);
    bytes
}
