//! Entries to bytes: the canonical tar, gzip members, fragments and layers.
//!
//! ```text
//! fragment  = batch*  transplanted*    files, links and devices of one archive
//!             batch:        one gzip member of at most 1 MiB of tar, compressed here; sorted by path. It ends when it is full, and
//!                           before an entry whose path has a CRC-32 divisible by 64 once it has 256 KiB: so a file that grew
//!                           mostly changes the batches around it and no others. One of noise is stored, not deflated
//!             transplanted: a file of 16 KiB or more that lies deflated in its archive (wheels, zip files): a member of its
//!                           header, and a member that is its deflate stream as it was; sorted by path
//! layer     = skeleton  fragment*  end
//!             skeleton: the directories of the whole layer, sorted, once each
//!             end:      one gzip member of two zero blocks
//! ```
//!
//! A gzip file may have any number of members (RFC 1952, section 2.2), so a layer is a concatenation of cached bytes and nothing
//! is compressed twice. A zip file is made of deflate streams with CRC-32 and size, and so is a gzip file: what somebody
//! else compressed is inflated once, to check it and to hash it, and copied. All headers, times and compression settings are decided here and carry [`LAYER_FORMAT`].

mod ahead;
mod compression;
mod entry;
mod fragment;
mod gzip;
mod layer;
mod prefix;
mod tar;

pub use ahead::{Held, Hold};
pub use compression::Compression;
pub use entry::{Entry, Kind};
pub use fragment::{DeflateStream, FragmentLayout, FragmentWriter, Keep, Lend, Member, Reuse, Transplanted};
pub(crate) use gzip::{BEFORE, TRAILER, inflate_stream};
pub use gzip::{MEMBER_SIZE, TRANSPLANT_SIZE, TarReader, gzip};
pub use layer::{LayerDigests, LayerWriter, Source};
pub use prefix::Prefixes;

/// The version of the bytes that entries become: header rules, times, compressor and its level.
/// It is part of every fragment's and layer's key and of the lock; golden digests guard it.
pub const LAYER_FORMAT: u32 = 4;

/// How much content makes a second thread worth its start, bytes.
pub const WORTHWHILE: u64 = 512 << 10;

/// The time of everything that has none of its own (context files, inline and generated files, directories):
/// 2020-01-01T00:00:00Z. Not the Unix epoch, because ZIP cannot say it and people read "56 years ago".
pub const EPOCH: i64 = 1_577_836_800;

/// Why entries do not make a fragment or layer.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Reading content or writing the result failed.
    #[error("cannot write the layer: {0}")]
    Io(#[from] std::io::Error),
    /// A path twice, which current container engines refuse.
    #[error("`{0}` appears twice in one layer")]
    Duplicate(crate::ImagePath),
    /// Entries must come sorted by path.
    #[error("`{0}` is out of order")]
    Order(crate::ImagePath),
    /// A directory in a fragment: those belong to the skeleton.
    #[error("directory `{0}` in a fragment")]
    Directory(crate::ImagePath),
    /// A hardlink whose target is not earlier in the same fragment.
    #[error("hardlink `{path}` names `{target}`, which is not an earlier regular file of the same archive")]
    Hardlink {
        /// The link.
        path: crate::ImagePath,
        /// What it names.
        target: crate::ImagePath,
    },
    /// Hard links that repeat too much of what their file has as attributes.
    #[error("hard links to `{path}` and others repeat more than {limit} bytes of extended attributes")]
    Attributes {
        /// The file.
        path: crate::ImagePath,
        /// The limit.
        limit: u64,
    },
    /// Content shorter or longer than its entry says.
    #[error("`{path}` has {found} bytes where {expected} were announced")]
    Size {
        /// The file.
        path: crate::ImagePath,
        /// Announced bytes.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A deflate stream that cannot be a gzip member.
    #[error("the deflate stream of `{0}` is shorter than announced, or `{0}` is no file that fits into a gzip member")]
    Stream(crate::ImagePath),
    /// A cached fragment that is not what its index says.
    #[error("a cached fragment is damaged: {0}")]
    Damaged(&'static str),
}
