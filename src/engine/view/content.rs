//! What files of a view hold, read from the members of fragments.

use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::sync::Arc;

use layers::encode::{Kind, MEMBER_SIZE, Member, TarReader};
use layers::{Digest, ImagePath};

use super::super::index::Fragment;
use super::super::tree::TreeError;
use super::View;
use super::paths::Place;
use crate::parallel::lock;

/// A member of a fragment: the fragment's blob, the member's start in its tar, and its bytes.
pub(super) type Inflated = (Digest, u64, Arc<Vec<u8>>);

/// A part of a member.
struct Slice {
    member: Arc<Vec<u8>>,
    at: usize,
    end: usize,
}

impl Read for Slice {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.end - self.at);
        out[..count].copy_from_slice(&self.member[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl View<'_> {
    /// The member of a fragment that starts at `start` in its tar and at `packed` in its blob, whole.
    fn inflated(&self, fragment: &Fragment, member: Member, start: u64, packed: u64) -> io::Result<Arc<Vec<u8>>> {
        let thread = std::thread::current().id();
        let members = || lock(&self.members);
        if let Some((blob, at, bytes)) = members().get(&thread)
            && (*blob, *at) == (fragment.blob, start)
        {
            return Ok(bytes.clone());
        }
        let mut bytes = (self.open)(&fragment.blob)?;
        bytes.seek(SeekFrom::Start(packed))?;
        let mut tar = Vec::with_capacity(member.tar as usize);
        TarReader::new(bytes, std::iter::once(member)).read_to_end(&mut tar)?;
        let tar = Arc::new(tar);
        members().insert(thread, (fragment.blob, start, tar.clone()));
        Ok(tar)
    }

    /// A regular file, under whichever of its names: its fragment, where its content starts in the tar of that, and its bytes.
    fn file(&self, path: &ImagePath) -> Result<(&Fragment, u64, u64), TreeError> {
        self.whole();
        let fail = |why: String| TreeError { path: path.clone(), why };
        let Some(Place::Item { fragment, entry }) = self.paths.get(&self.entries, path) else {
            return Err(fail("it is not a file".into()));
        };
        let fragment = self.entries.fragment(fragment);
        let mut indexed = &fragment.entries[entry as usize];
        if let Kind::Hardlink { target } = &indexed.entry.kind {
            let at = fragment.position(target).ok_or_else(|| fail(format!("its first name `{target}` is gone")))?;
            indexed = &fragment.entries[at];
        }
        let Kind::File { size } = indexed.entry.kind else { return Err(fail("it is not a regular file".into())) };
        Ok((fragment, indexed.offset, size))
    }

    /// The bytes of a regular file, under whichever of its names.
    pub fn size_of(&self, path: &ImagePath) -> Result<u64, TreeError> {
        Ok(self.file(path)?.2)
    }

    /// Streams the content of a regular file.
    pub fn open(&self, path: &ImagePath) -> Result<Box<dyn Read + '_>, TreeError> {
        let fail = |why: String| TreeError { path: path.clone(), why };
        let (fragment, offset, size) = self.file(path)?;
        if size == 0 {
            return Ok(Box::new(io::empty()));
        }
        // Whole members before the content are passed over.
        let (mut start, mut packed) = (0u64, 0u64);
        let mut members = fragment.layout.members.iter().copied();
        let mut first = None;
        for member in members.by_ref() {
            if start + u64::from(member.tar) > offset {
                first = Some(member);
                break;
            }
            start += u64::from(member.tar);
            packed += u64::from(member.compressed);
        }
        let mut skip = offset.saturating_sub(start);
        if let Some(member) = first.filter(|member| member.tar as usize <= MEMBER_SIZE) {
            let in_first = size.min(u64::from(member.tar).saturating_sub(skip));
            let slice = |member, start, packed, at: u64, length: u64| -> Result<Slice, TreeError> {
                let member = self.inflated(fragment, member, start, packed).map_err(|error| fail(error.to_string()))?;
                let end = (at + length) as usize;
                if member.len() < end {
                    return Err(fail("its fragment is shorter than its index says".into()));
                }
                Ok(Slice { member, at: at as usize, end })
            };
            let rest = size - in_first;
            if rest == 0 {
                return Ok(Box::new(slice(member, start, packed, skip, size)?));
            }
            // The end lies in the member behind, and so do its neighbours.
            let mut behind = members.clone();
            if let Some(next) =
                behind.next().filter(|next| next.tar as usize <= MEMBER_SIZE && rest <= u64::from(next.tar))
            {
                let (start_of_next, packed_before) =
                    (start + u64::from(member.tar), packed + u64::from(member.compressed));
                let head = slice(member, start, packed, skip, in_first)?;
                return Ok(Box::new(head.chain(slice(next, start_of_next, packed_before, 0, rest)?)));
            }
        }
        let mut bytes = (self.open)(&fragment.blob).map_err(|error| fail(error.to_string()))?;
        bytes.seek(SeekFrom::Start(packed)).map_err(|error| fail(error.to_string()))?;
        let bytes = BufReader::with_capacity(128 << 10, bytes);
        let members: Vec<_> = first.into_iter().chain(members).collect();
        let mut reader = TarReader::new(bytes, members.into_iter());
        while skip > 0 {
            let held = reader.fill_buf().map_err(|error| fail(error.to_string()))?.len() as u64;
            if held == 0 {
                return Err(fail("its fragment is shorter than its index says".into()));
            }
            let count = held.min(skip);
            reader.consume(count as usize);
            skip -= count;
        }
        Ok(Box::new(reader.take(size)))
    }
}
