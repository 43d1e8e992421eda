//! Archives for tests, built byte by byte, so that every field may lie.

/// A header block; what a test does not say is what GNU tar would write for an empty file.
#[derive(Clone)]
pub(crate) struct Block(pub(crate) [u8; 512]);

impl Block {
    pub(crate) fn new(name: &[u8], flag: u8, size: u64) -> Block {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000644\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"14524770400\0");
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Block(block)
    }

    pub(crate) fn put(mut self, at: usize, bytes: &[u8]) -> Block {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn gnu(self) -> Block {
        self.put(257, b"ustar  \0")
    }

    pub(crate) fn link(self, target: &[u8]) -> Block {
        self.put(157, target)
    }

    /// The block with its checksum.
    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.to_vec()
    }

    /// The block, then `content` and its padding.
    pub(crate) fn with(self, content: &[u8]) -> Vec<u8> {
        let mut bytes = self.done();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

pub(crate) fn file(name: &str, content: &[u8]) -> Vec<u8> {
    Block::new(name.as_bytes(), b'0', content.len() as u64).with(content)
}

pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub(crate) fn extension(flag: u8, content: &[u8]) -> Vec<u8> {
    Block::new(b"./PaxHeaders/x", flag, content.len() as u64).with(content)
}

pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    extension(b'x', &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<u8>>())
}

pub(crate) fn long(flag: u8, name: &[u8]) -> Vec<u8> {
    let content = [name, b"\0"].concat();
    Block::new(b"././@LongLink", flag, content.len() as u64).gnu().with(&content)
}

pub(crate) fn end(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = parts.concat();
    bytes.extend([0; 1024]);
    bytes
}
