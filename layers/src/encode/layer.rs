//! Layers: a skeleton of directories, fragments behind it, and an end.

use std::io::{Read, Write};

use sha2::{Digest as _, Sha256};

use super::EncodeError;
use super::entry::Entry;
use super::fragment::FragmentLayout;
use super::gzip::{MEMBER_SIZE, MemberEncoder, inflate_member};
use super::tar::write_header;
use crate::digest::{DiffId, Digest};

/// The names of a finished layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerDigests {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// Compressed bytes.
    pub size: u64,
}

/// Writes a layer and hashes it, compressed and uncompressed, on the way.
pub struct LayerWriter<W> {
    out: W,
    compressed: Sha256,
    uncompressed: Sha256,
    size: u64,
    member: Vec<u8>,
    tar: Vec<u8>,
}

impl<W: Write> LayerWriter<W> {
    /// Starts a layer with its directories, which must be sorted by path, unique, and complete: every parent of every path
    /// of the layer, the root excepted.
    pub fn new(out: W, skeleton: &[Entry]) -> Result<LayerWriter<W>, EncodeError> {
        let mut writer = LayerWriter {
            out,
            compressed: Sha256::new(),
            uncompressed: Sha256::new(),
            size: 0,
            member: Vec::new(),
            tar: Vec::new(),
        };
        let mut headers = Vec::new();
        for (at, entry) in skeleton.iter().enumerate() {
            if at > 0 && skeleton[at - 1].path >= entry.path {
                let same = skeleton[at - 1].path == entry.path;
                let path = entry.path.clone();
                return Err(if same { EncodeError::Duplicate(path) } else { EncodeError::Order(path) });
            }
            write_header(&mut headers, entry);
        }
        let mut encoder = MemberEncoder::new();
        for chunk in headers.chunks(MEMBER_SIZE) {
            writer.uncompressed.update(chunk);
            writer.raw(encoder.encode(chunk))?;
        }
        Ok(writer)
    }

    /// Appends a cached fragment, inflating it once for the diff id; damage is noticed.
    pub fn fragment(&mut self, layout: &FragmentLayout, bytes: &mut dyn Read) -> Result<(), EncodeError> {
        for member in &layout.members {
            if member.tar as usize > MEMBER_SIZE || member.compressed as usize > 2 * MEMBER_SIZE {
                return Err(EncodeError::Damaged("a member is larger than members are"));
            }
            let mut compressed = std::mem::take(&mut self.member);
            let mut tar = std::mem::take(&mut self.tar);
            compressed.resize(member.compressed as usize, 0);
            tar.resize(member.tar as usize, 0);
            bytes.read_exact(&mut compressed)?;
            inflate_member(&compressed, &mut tar).ok_or(EncodeError::Damaged("a gzip member does not inflate"))?;
            self.uncompressed.update(&tar);
            self.raw(&compressed)?;
            (self.member, self.tar) = (compressed, tar);
        }
        if bytes.read(&mut [0])? != 0 {
            return Err(EncodeError::Damaged("it is longer than its index says"));
        }
        Ok(())
    }

    /// Writes the end of the archive.
    pub fn finish(mut self) -> Result<(W, LayerDigests), EncodeError> {
        let end = [0; 1024];
        self.uncompressed.update(end);
        let mut encoder = MemberEncoder::new();
        self.raw(encoder.encode(&end))?;
        let digests = LayerDigests {
            digest: Digest::from_bytes(self.compressed.finalize().into()),
            diff_id: DiffId(Digest::from_bytes(self.uncompressed.finalize().into())),
            size: self.size,
        };
        Ok((self.out, digests))
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.compressed.update(bytes);
        self.size += bytes.len() as u64;
        self.out.write_all(bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EPOCH, FragmentWriter, Kind};
    use super::*;
    use crate::ImagePath;

    fn path(text: &str) -> ImagePath {
        ImagePath::new(text).expect("good path")
    }

    /// A layer with a file larger than a member, a hardlink and a symbolic link.
    fn layer() -> (Vec<u8>, LayerDigests) {
        let big: Vec<u8> = (0..3 * MEMBER_SIZE + 77).map(|at| (at * at % 251) as u8).collect();
        let mut fragment = FragmentWriter::new(Vec::new());
        let entry = |name: &str, kind| Entry::new(path(name), kind, 0o644, EPOCH);
        fragment.add(&entry("/d/a", Kind::File { size: big.len() as u64 }), &mut big.as_slice()).expect("adds");
        fragment.add(&entry("/d/b", Kind::Hardlink { target: path("/d/a") }), &mut std::io::empty()).expect("adds");
        fragment.add(&entry("/d/c", Kind::Symlink { target: "a".into() }), &mut std::io::empty()).expect("adds");
        let (bytes, layout) = fragment.finish().expect("finishes");
        let mut layer =
            LayerWriter::new(Vec::new(), &[Entry::new(path("/d"), Kind::Dir, 0o755, EPOCH)]).expect("starts");
        layer.fragment(&layout, &mut bytes.as_slice()).expect("appends");
        layer.finish().expect("finishes")
    }

    #[test]
    fn the_bytes_of_format_1_never_change() {
        // A change here means: raise LAYER_FORMAT, and every user's layers are built and sent anew.
        let (_, digests) = layer();
        assert_eq!(
            (digests.diff_id.to_string(), digests.digest.to_string()),
            (
                "sha256:7b02f471d2808ef94b9da69288fa63433b5e6f1e70d3405f98ef68752e9d9500".into(),
                "sha256:a8935aed52428243b4f0bd61400650220bc02e4bec3928489a97a7841cc8ade9".into()
            )
        );
    }

    #[test]
    fn digests_are_those_of_the_bytes_and_other_readers_agree() {
        let (bytes, digests) = layer();
        assert_eq!(digests.digest, Digest::of(&bytes));
        assert_eq!(digests.size, bytes.len() as u64);
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).expect("is gzip");
        assert_eq!(digests.diff_id.0, Digest::of(&tar));
        let mut archive = ::tar::Archive::new(tar.as_slice());
        let names: Vec<String> = archive
            .entries()
            .expect("is tar")
            .map(|entry| entry.expect("readable").path().expect("has a path").display().to_string())
            .collect();
        assert_eq!(names, ["d/", "d/a", "d/b", "d/c"]);
    }

    #[test]
    fn wrong_entries_are_refused() {
        let file = |name: &str, size| Entry::new(path(name), Kind::File { size }, 0o644, EPOCH);
        let mut fragment = FragmentWriter::new(Vec::new());
        fragment.add(&file("/b", 1), &mut [1u8].as_slice()).expect("adds");
        assert!(matches!(fragment.add(&file("/b", 0), &mut std::io::empty()), Err(EncodeError::Duplicate(_))));
        assert!(matches!(fragment.add(&file("/a", 0), &mut std::io::empty()), Err(EncodeError::Order(_))));
        assert!(matches!(fragment.add(&file("/c", 2), &mut [1u8].as_slice()), Err(EncodeError::Size { found: 1, .. })));
        assert!(matches!(fragment.add(&file("/d", 0), &mut [1u8].as_slice()), Err(EncodeError::Size { found: 1, .. })));
        let link = Entry::new(path("/e"), Kind::Hardlink { target: path("/z") }, 0o644, EPOCH);
        assert!(matches!(fragment.add(&link, &mut std::io::empty()), Err(EncodeError::Hardlink { .. })));
        let dir = Entry::new(path("/f"), Kind::Dir, 0o755, EPOCH);
        assert!(matches!(fragment.add(&dir, &mut std::io::empty()), Err(EncodeError::Directory(_))));
    }
}
