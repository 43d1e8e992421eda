//! Gzip members (RFC 1952) with nothing in them that varies: no name, no time, one compressor at one level.

use libdeflater::{CompressionLvl, Compressor, Decompressor};

/// How much tar goes into one gzip member at most, bytes. Members are compressed independently, so this bounds memory,
/// lets threads share a fragment, and lets a reader start in the middle; it costs about 0.1 % of size.
pub const MEMBER_SIZE: usize = 1 << 20;

/// Compresses members one after another.
pub(super) struct MemberEncoder {
    compressor: Compressor,
    buffer: Vec<u8>,
}

impl MemberEncoder {
    pub(super) fn new() -> MemberEncoder {
        let level = CompressionLvl::new(6).expect("6 is a level of libdeflate");
        MemberEncoder { compressor: Compressor::new(level), buffer: Vec::new() }
    }

    /// One whole gzip member that holds `data`.
    pub(super) fn encode(&mut self, data: &[u8]) -> &[u8] {
        self.buffer.resize(self.compressor.gzip_compress_bound(data.len()), 0);
        let length = self
            .compressor
            .gzip_compress(data, &mut self.buffer)
            .expect("the buffer has the size that the compressor asked for");
        &self.buffer[..length]
    }
}

/// Inflates one gzip member of known length into `out`, checking its CRC-32 and length. `None`: it is damaged.
pub fn inflate_member(member: &[u8], out: &mut [u8]) -> Option<()> {
    let length = Decompressor::new().gzip_decompress(member, out).ok()?;
    (length == out.len()).then_some(())
}
