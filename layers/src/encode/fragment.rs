//! Fragments: one archive's files as compressed tar, to be concatenated into layers.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use super::EncodeError;
use super::entry::{Entry, Kind};
use super::gzip::{MEMBER_SIZE, MemberEncoder};
use super::tar::{padding, write_header};
use crate::path::ImagePath;

/// One gzip member of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Compressed bytes.
    pub compressed: u32,
    /// Bytes of tar it holds.
    pub tar: u32,
}

/// How a fragment is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentLayout {
    /// Its members, in order.
    pub members: Vec<Member>,
    /// Bytes of tar, a multiple of 512.
    pub tar_size: u64,
    /// Compressed bytes.
    pub size: u64,
}

/// Writes a fragment: entries sorted by path, each with its content.
pub struct FragmentWriter<W> {
    out: W,
    encoder: MemberEncoder,
    pending: Vec<u8>,
    layout: FragmentLayout,
    last: Option<ImagePath>,
    files: BTreeSet<ImagePath>,
}

impl<W: Write> FragmentWriter<W> {
    /// Starts a fragment.
    pub fn new(out: W) -> FragmentWriter<W> {
        FragmentWriter {
            out,
            encoder: MemberEncoder::new(),
            pending: Vec::with_capacity(MEMBER_SIZE),
            layout: FragmentLayout::default(),
            last: None,
            files: BTreeSet::new(),
        }
    }

    /// Adds an entry and, for a regular file, exactly its size in bytes of `content`.
    /// Returns where the content starts in the fragment's tar, in bytes.
    pub fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<u64, EncodeError> {
        match &self.last {
            Some(last) if *last == entry.path => return Err(EncodeError::Duplicate(entry.path.clone())),
            Some(last) if *last > entry.path => return Err(EncodeError::Order(entry.path.clone())),
            _ => {}
        }
        match &entry.kind {
            Kind::Dir => return Err(EncodeError::Directory(entry.path.clone())),
            Kind::Hardlink { target } if !self.files.contains(target) => {
                return Err(EncodeError::Hardlink { path: entry.path.clone(), target: target.clone() });
            }
            Kind::File { .. } => {
                self.files.insert(entry.path.clone());
            }
            _ => {}
        }
        self.last = Some(entry.path.clone());
        let mut header = Vec::with_capacity(512);
        write_header(&mut header, entry);
        self.push(&header)?;
        let start = self.position();
        if let Kind::File { size } = entry.kind {
            self.copy(&entry.path, size, content)?;
            self.push(&[0; 512][..padding(size)])?;
        }
        Ok(start)
    }

    /// Finishes the last member.
    pub fn finish(mut self) -> Result<(W, FragmentLayout), EncodeError> {
        self.flush()?;
        self.layout.tar_size = self.layout.members.iter().map(|member| u64::from(member.tar)).sum();
        self.layout.size = self.layout.members.iter().map(|member| u64::from(member.compressed)).sum();
        Ok((self.out, self.layout))
    }

    fn position(&self) -> u64 {
        (self.layout.members.len() * MEMBER_SIZE + self.pending.len()) as u64
    }

    fn copy(&mut self, path: &ImagePath, size: u64, content: &mut dyn Read) -> Result<(), EncodeError> {
        let mut left = size;
        while left > 0 {
            if self.pending.len() == MEMBER_SIZE {
                self.flush()?;
            }
            let start = self.pending.len();
            let room = (MEMBER_SIZE - start).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.pending.resize(start + room, 0);
            let mut filled = 0;
            while filled < room {
                match content.read(&mut self.pending[start + filled..]) {
                    Ok(0) => {
                        return Err(EncodeError::Size {
                            path: path.clone(),
                            expected: size,
                            found: size - left + filled as u64,
                        });
                    }
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            left -= room as u64;
        }
        if content.read(&mut [0])? != 0 {
            return Err(EncodeError::Size { path: path.clone(), expected: size, found: size + 1 });
        }
        Ok(())
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), EncodeError> {
        while !bytes.is_empty() {
            if self.pending.len() == MEMBER_SIZE {
                self.flush()?;
            }
            let count = bytes.len().min(MEMBER_SIZE - self.pending.len());
            self.pending.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), EncodeError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let member = self.encoder.encode(&self.pending);
        self.out.write_all(member)?;
        self.layout.members.push(Member { compressed: member.len() as u32, tar: self.pending.len() as u32 });
        self.pending.clear();
        Ok(())
    }
}
