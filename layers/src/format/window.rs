//! A buffer for readers that jump a little: std's throws everything away when it is told to seek.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

/// Buffers `inner` and keeps what is buffered across seeks: archives are read in nearly, but not quite, their own order.
#[derive(Debug)]
pub struct Window<R> {
    inner: R,
    buffer: Box<[u8]>,
    /// What `buffer[..held]` is a copy of starts here.
    start: u64,
    held: usize,
    /// Where reading goes on.
    at: u64,
    /// Where `inner` is.
    inner_at: Option<u64>,
}

impl<R: Read + Seek> Window<R> {
    /// A buffer of `capacity` bytes, from the start of `inner` on.
    pub fn new(inner: R, capacity: usize) -> Window<R> {
        let buffer = vec![0; capacity.max(1)].into_boxed_slice();
        Window { inner, buffer, start: 0, held: 0, at: 0, inner_at: None }
    }

    /// What is buffered from the current position on.
    fn buffered(&self) -> &[u8] {
        let offset = self.at.checked_sub(self.start).and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| self.buffer[..self.held].get(offset..)).unwrap_or_default()
    }

    fn seek_inner(&mut self) -> io::Result<()> {
        if self.inner_at != Some(self.at) {
            self.inner_at = None;
            self.inner.seek(SeekFrom::Start(self.at))?;
            self.inner_at = Some(self.at);
        }
        Ok(())
    }
}

impl<R: Read + Seek> BufRead for Window<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.buffered().is_empty() {
            self.seek_inner()?;
            (self.start, self.held) = (self.at, 0);
            let length = self.inner.read(&mut self.buffer)?;
            self.held = length;
            self.inner_at = Some(self.at + length as u64);
        }
        Ok(self.buffered())
    }

    fn consume(&mut self, count: usize) {
        self.at += count as u64;
    }
}

impl<R: Read + Seek> Read for Window<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.len() >= self.buffer.len() && self.buffered().is_empty() {
            self.seek_inner()?;
            let length = self.inner.read(out)?;
            self.at += length as u64;
            self.inner_at = Some(self.at);
            return Ok(length);
        }
        let held = self.fill_buf()?;
        let count = held.len().min(out.len());
        out[..count].copy_from_slice(&held[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read + Seek> Seek for Window<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?,
            SeekFrom::End(_) => {
                self.inner_at = None;
                let at = self.inner.seek(to)?;
                self.inner_at = Some(at);
                at
            }
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// Counts what is read.
    struct Counted(Cursor<Vec<u8>>, usize);

    impl Read for Counted {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(out)?;
            self.1 += count;
            Ok(count)
        }
    }

    impl Seek for Counted {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn jumps_within_what_is_buffered_read_nothing_again() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| at as u8).collect();
        let mut window = Window::new(Counted(Cursor::new(bytes.clone()), 0), 100);
        let mut out = [0; 10];
        for at in [0, 50, 20, 90, 0, 89] {
            window.seek(SeekFrom::Start(at)).expect("seeks");
            window.read_exact(&mut out).expect("reads");
            assert_eq!(out, bytes[at as usize..at as usize + 10]);
        }
        assert_eq!(window.inner.1, 100);
    }

    proptest! {
        #[test]
        fn it_reads_what_the_inner_reader_would(
            length in 0usize..300,
            capacity in 1usize..64,
            steps in proptest::collection::vec((0u8..4, 0u64..400, 1usize..100), 1..40),
        ) {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut plain = Cursor::new(bytes.clone());
            let mut window = Window::new(Cursor::new(bytes), capacity);
            for (how, by, count) in steps {
                let to = match how {
                    0 => SeekFrom::Start(by),
                    1 => SeekFrom::Current(by as i64 - 200),
                    2 => SeekFrom::End(-((by % (length as u64 + 1)) as i64)),
                    _ => SeekFrom::Current(0),
                };
                let (one, other) = (plain.seek(to), window.seek(to));
                prop_assert_eq!(one.as_ref().ok(), other.as_ref().ok());
                let (mut one, mut other) = (Vec::new(), Vec::new());
                plain.by_ref().take(count as u64).read_to_end(&mut one).expect("reads");
                window.by_ref().take(count as u64).read_to_end(&mut other).expect("reads");
                prop_assert_eq!(one, other);
            }
        }
    }
}
