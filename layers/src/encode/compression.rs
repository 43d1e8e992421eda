//! How layers are compressed.

use std::fmt;
use std::io;
use std::str::FromStr;

use flate2::{Compress, FlushCompress, Status};
use serde::{Deserialize, Serialize};

use super::gzip::{self, MEMBER_SIZE};

/// How the bytes of a layer are compressed. The tar, and so the diff id, is the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Fragments as they are: gzip of many members. Every container engine reads it.
    #[default]
    Gzip,
    /// gzip of one member, compressed anew with every layer: for what stops reading after the first.
    GzipSingle,
    /// zstd, a frame for each MiB: smaller and faster to read, but Docker before 23 and umoci cannot.
    Zstd,
}

impl Compression {
    /// The media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::Gzip | Compression::GzipSingle => crate::oci::LAYER_GZIP,
            Compression::Zstd => crate::oci::LAYER_ZSTD,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Gzip => "gzip",
            Compression::GzipSingle => "gzip-single",
            Compression::Zstd => "zstd",
        })
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Compression, String> {
        match text {
            "gzip" => Ok(Compression::Gzip),
            "gzip-single" => Ok(Compression::GzipSingle),
            "zstd" => Ok(Compression::Zstd),
            _ => Err("it is none of `gzip`, `gzip-single` and `zstd`".into()),
        }
    }
}

/// The level of zstd: about as fast as copying fragments is on a slow disk.
const ZSTD_LEVEL: i32 = 3;

/// Takes compressed bytes.
type Put<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// Compresses the whole tar of a layer otherwise than its fragments are.
pub(super) enum Recoder {
    Zstd { compressor: Box<zstd::bulk::Compressor<'static>>, pending: Vec<u8> },
    Single { state: Compress, buffer: Vec<u8>, crc: crc32fast::Hasher, started: bool },
}

impl Recoder {
    /// `None` where fragments are taken as they are.
    pub(super) fn new(compression: Compression) -> io::Result<Option<Recoder>> {
        Ok(match compression {
            Compression::Gzip => None,
            Compression::Zstd => {
                let mut compressor = Box::new(zstd::bulk::Compressor::new(ZSTD_LEVEL)?);
                compressor.include_checksum(true)?;
                Some(Recoder::Zstd { compressor, pending: Vec::with_capacity(MEMBER_SIZE) })
            }
            Compression::GzipSingle => Some(Recoder::Single {
                state: Compress::new(flate2::Compression::new(6), false),
                buffer: vec![0; 256 << 10],
                crc: crc32fast::Hasher::new(),
                started: false,
            }),
        })
    }

    pub(super) fn push(&mut self, mut tar: &[u8], put: &mut Put<'_>) -> io::Result<()> {
        match self {
            Recoder::Zstd { compressor, pending } => {
                while !tar.is_empty() {
                    let (now, rest) = tar.split_at(tar.len().min(MEMBER_SIZE - pending.len()));
                    pending.extend_from_slice(now);
                    tar = rest;
                    if pending.len() == MEMBER_SIZE {
                        put(&compressor.compress(pending)?)?;
                        pending.clear();
                    }
                }
                Ok(())
            }
            Recoder::Single { state, buffer, crc, started } => {
                if !std::mem::replace(started, true) {
                    put(&gzip::header())?;
                }
                crc.update(tar);
                while !tar.is_empty() {
                    let (read, written) = deflate(state, tar, buffer, FlushCompress::None)?.1;
                    put(&buffer[..written])?;
                    tar = &tar[read..];
                }
                Ok(())
            }
        }
    }

    pub(super) fn finish(self, put: &mut Put<'_>) -> io::Result<()> {
        match self {
            Recoder::Zstd { mut compressor, pending } => {
                if pending.is_empty() {
                    Ok(())
                } else {
                    put(&compressor.compress(&pending)?)
                }
            }
            Recoder::Single { mut state, mut buffer, crc, .. } => {
                loop {
                    let (status, (_, written)) = deflate(&mut state, &[], &mut buffer, FlushCompress::Finish)?;
                    put(&buffer[..written])?;
                    if status == Status::StreamEnd {
                        break;
                    }
                }
                // The length is said modulo 2^32 (RFC 1952, section 2.3.1).
                put(&gzip::trailer(crc.finalize(), state.total_in() as u32))
            }
        }
    }
}

/// One step of a deflate stream: how it went, bytes read and bytes written.
fn deflate(
    state: &mut Compress,
    input: &[u8],
    output: &mut [u8],
    flush: FlushCompress,
) -> io::Result<(Status, (usize, usize))> {
    let (read, written) = (state.total_in(), state.total_out());
    let status = state.compress(input, output, flush).map_err(io::Error::other)?;
    Ok((status, ((state.total_in() - read) as usize, (state.total_out() - written) as usize)))
}
