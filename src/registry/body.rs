//! Blobs on their way out: read in pieces, hashed while they are sent, never whole in memory.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use super::digest::AnyDigest;
use crate::fetch::Watch;

/// What a request carries.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// Nothing.
    Empty,
    /// Bytes in memory.
    Bytes(Bytes),
    /// Part of a blob.
    Part(Part),
}

/// A part of a file that is sent as the bytes of a blob.
#[derive(Debug, Clone)]
pub struct Part {
    /// The open file; every request reads it at its own offset.
    pub file: Arc<File>,
    /// What the whole file hashes to.
    pub digest: AnyDigest,
    /// Length of the whole file, bytes.
    pub size: u64,
    /// First byte that is sent.
    pub start: u64,
    /// One after the last byte that is sent.
    pub end: u64,
}

/// Bytes that are read at once; two such pieces wait in a queue.
const PIECE: usize = 256 << 10;

/// Bytes that are handed on at once where their way out is told of: a slow line moves as many before it is thought to be idle.
const COUNTED: usize = 16 << 10;

/// How far a body has come: for idle timeouts, progress bars and tests.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    moved: AtomicU64,
    sent: AtomicU64,
    finished: AtomicBool,
    damaged: AtomicBool,
    watch: Option<Arc<Watch>>,
}

impl Progress {
    /// Nothing sent; what is, is told to who watches.
    pub fn watched(watch: Option<Arc<Watch>>) -> Arc<Progress> {
        Arc::new(Progress {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            watch,
        })
    }

    fn advance(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.watch.iter().for_each(|watch| watch.advance(bytes));
        self.moved.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Marks everything as sent.
    pub fn finish(&self) {
        self.advance(0);
        self.finished.store(true, Ordering::Relaxed);
    }

    /// Bytes given to the connection.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether the file's bytes were not what its name says.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Returns when nothing has moved for `idle`, or, once everything is sent, no answer came for `answer`.
    pub async fn stalled(&self, idle: Duration, answer: Duration) {
        loop {
            let limit = if self.finished.load(Ordering::Relaxed) { answer } else { idle };
            let deadline = Duration::from_millis(self.moved.load(Ordering::Relaxed)) + limit;
            match deadline.checked_sub(self.began.elapsed()) {
                None => return,
                // Not longer than `idle`, because the limit changes when the body ends.
                Some(left) => tokio::time::sleep(left.min(idle)).await,
            }
        }
    }
}

/// A part as the HTTP client wants it.
pub struct PartBody {
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    piece: Bytes,
    left: u64,
    progress: Arc<Progress>,
}

impl Part {
    /// Starts reading. The last piece is held back until the whole file is known to be what its name says, so a damaged
    /// blob never arrives whole.
    pub fn body(&self, progress: Arc<Progress>) -> PartBody {
        if self.start == self.end {
            progress.finish();
        }
        let (sender, pieces) = mpsc::channel(2);
        let (part, seen) = (self.clone(), progress.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = part.read(&sender, &seen) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        PartBody { pieces, piece: Bytes::new(), left: self.end - self.start, progress }
    }

    fn read(&self, sender: &mpsc::Sender<std::io::Result<Bytes>>, progress: &Progress) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let mut hasher = self.digest.hasher();
        let complete = self.end == self.size;
        let mut at = if complete { 0 } else { self.start };
        while at < self.end {
            // Pieces end where the part starts, so that what was sent before is hashed and not sent again.
            let stop = if at < self.start { self.start } else { self.end };
            let length = PIECE.min((stop - at) as usize);
            let mut piece = vec![0; length];
            self.file.read_exact_at(&mut piece, at).inspect_err(|error| {
                // It is too short, or the disk does not give it back.
                if error.kind() == std::io::ErrorKind::UnexpectedEof || cache::fails(error) {
                    progress.damaged.store(true, Ordering::Relaxed);
                }
            })?;
            at += length as u64;
            if complete {
                hasher.update(&piece);
                if at == self.size && hasher.clone().finish() != self.digest {
                    progress.damaged.store(true, Ordering::Relaxed);
                    return Err(std::io::Error::other("the blob is damaged"));
                }
            }
            if at > self.start && sender.blocking_send(Ok(piece.into())).is_err() {
                // The request is over.
                return Ok(());
            }
        }
        Ok(())
    }
}

impl http_body::Body for PartBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.piece.is_empty() {
            match ready!(self.pieces.poll_recv(context)) {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let most = if self.progress.watch.is_some() { COUNTED } else { PIECE };
        let length = self.piece.len().min(most);
        let piece = self.piece.split_to(length);
        self.left -= (length as u64).min(self.left);
        self.progress.advance(length as u64);
        if self.left == 0 {
            self.progress.finish();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Bytes in memory whose way out is told of.
pub struct Counted {
    left: Bytes,
    progress: Arc<Progress>,
}

impl Counted {
    /// Nothing sent.
    pub fn new(bytes: Bytes, progress: Arc<Progress>) -> Counted {
        if bytes.is_empty() {
            progress.finish();
        }
        Counted { left: bytes, progress }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(COUNTED);
        let piece = self.left.split_to(length);
        self.progress.advance(length as u64);
        if self.left.is_empty() {
            self.progress.finish();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// Whether a file is what its name says, read from its start.
pub fn is_intact(file: &File, digest: &AnyDigest) -> std::io::Result<bool> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = digest.hasher();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish() == *digest),
            count => hasher.update(&piece[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[test]
    fn what_is_in_memory_is_told_of_as_it_goes_out() {
        let progress = Progress::watched(None);
        let bytes = Bytes::from(vec![7; 2 * COUNTED + 1]);
        let mut body = Counted::new(bytes.clone(), progress.clone());
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (mut told, mut sent) = (Vec::new(), Vec::new());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
            sent.extend(frame.into_data().expect("is data"));
            told.push((progress.sent(), progress.finished.load(Ordering::Relaxed)));
        }
        assert_eq!(sent, bytes);
        assert!(body.is_end_stream());
        let piece = COUNTED as u64;
        assert_eq!(told, [(piece, false), (2 * piece, false), (2 * piece + 1, true)]);
    }
}
