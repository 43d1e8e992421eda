//! Archive formats: bytes to entries. Hostile input is refused here.
//!
//! Each reader is strict: where two well-known readers disagree about an archive, this one refuses it. Every failure is a
//! [`FormatError`], memory is bounded by [`Limits`], and nothing panics on any input. What the readers do *not* judge is
//! the tree that results from several entries (a path twice, writing through a link, a hard link to something that is
//! not there): whoever merges entries sees the whole tree and decides.
//!
//! ```text
//! .deb     = deb  -> ar  -> decompress -> tar
//! layer    =                decompress -> tar (OCI whiteouts)
//! wheel    = wheel -> zip
//! .pyc     = marshal
//! ```

pub mod ar;
pub mod deb;
mod decompress;
mod error;
mod limits;
pub mod marshal;
pub mod tar;
pub mod wheel;
mod window;
pub mod zip;

pub use decompress::{ANNOUNCED, Compression, decoder_memory, decompress, decompress_as};
pub use error::FormatError;
pub use limits::Limits;
pub use window::Window;
