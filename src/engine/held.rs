//! The tar of members that was in memory when their fragments were made: held for whoever puts the layer together, who need not
//! inflate it.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use layers::Digest;
use layers::encode::Hold;

use crate::parallel::lock;

/// What may be held, of all fragments of a build together.
pub struct Holding {
    /// Bytes.
    free: Arc<AtomicUsize>,
    is_open: AtomicBool,
    fragments: Mutex<HashMap<Digest, Members>>,
}

/// Members, by their places in a fragment.
pub type Members = Vec<(usize, layers::encode::Held)>;

/// The tar of one member.
#[derive(Debug)]
pub struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

/// A part of what may be held, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    free: Arc<AtomicUsize>,
    size: usize,
}

impl std::fmt::Debug for Holding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holding").field("free", &self.free).finish_non_exhaustive()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.free.fetch_add(self.size, Ordering::Relaxed);
    }
}

impl Held {
    /// To be written over.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Share {
    /// Memory of its size.
    pub fn room(self) -> Held {
        Held { bytes: vec![0; self.size], _share: self }
    }
}

impl Hold for Held {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn tar(&self) -> io::Result<&[u8]> {
        Ok(&self.bytes)
    }
}

impl Holding {
    /// Room for so many bytes, closed.
    pub fn new(size: usize) -> Holding {
        let free = Arc::new(AtomicUsize::new(size));
        Holding { free, is_open: AtomicBool::new(false), fragments: Mutex::default() }
    }

    /// Says whether more is taken: it pays where few archives are converted, and their layers follow at once.
    pub fn open(&self, is_open: bool) {
        self.is_open.store(is_open, Ordering::Relaxed);
    }

    /// A part of so many bytes, where there is one.
    pub fn share(&self, size: usize) -> Option<Share> {
        if !self.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let left = |free: usize| free.checked_sub(size);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).ok()?;
        Some(Share { free: self.free.clone(), size })
    }

    /// Room for so many bytes, where there is some.
    pub fn room(&self, size: usize) -> Option<Held> {
        self.share(size).map(Share::room)
    }

    /// Holds these bytes, or gives them back.
    pub fn hold(&self, bytes: Vec<u8>) -> Result<Held, Vec<u8>> {
        match self.share(bytes.capacity()) {
            Some(share) => Ok(Held { bytes, _share: share }),
            None => Err(bytes),
        }
    }

    /// Keeps members of a fragment until somebody takes them.
    pub fn keep(&self, fragment: Digest, members: Members) {
        if !members.is_empty() {
            lock(&self.fragments).insert(fragment, members);
        }
    }

    /// Lets everything go that nobody has taken.
    pub fn forget(&self) {
        lock(&self.fragments).clear();
    }

    /// The members of a fragment that are held, for the first who asks.
    pub fn take(&self, fragment: &Digest) -> HashMap<usize, layers::encode::Held> {
        let members = lock(&self.fragments).remove(fragment);
        members.unwrap_or_default().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_there_is_room_for() {
        let holding = Holding::new(1000);
        assert!(holding.room(1).is_none());
        holding.open(true);
        let mut one = holding.room(600).expect("there is room");
        one.bytes().fill(7);
        assert!(holding.room(401).is_none());
        assert_eq!(holding.hold(vec![1; 401]).expect_err("there is no room").len(), 401);
        let other = holding.hold(vec![1; 400]).expect("there is room");
        let (name, unknown) = (Digest::of(b"fragment"), Digest::of(b"another"));
        holding.keep(name, vec![(3, Box::new(one)), (5, Box::new(other))]);
        assert!(holding.room(1).is_none() && holding.take(&unknown).is_empty());
        let taken = holding.take(&name);
        let is = |at: usize, bytes: &[u8]| taken[&at].tar().expect("is there") == bytes;
        assert!(is(3, &[7; 600]) && is(5, &[1; 400]));
        assert!(holding.take(&name).is_empty());
        drop(taken);
        assert!(holding.room(1000).is_some());
        holding.open(false);
        assert!(holding.room(1).is_none() && holding.hold(Vec::with_capacity(1)).is_err());
    }
}
