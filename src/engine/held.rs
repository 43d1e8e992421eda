//! The tar of members that was in memory when their fragments were made: held for whoever puts the layer together, who need not
//! inflate it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use layers::Digest;

/// What may be held, of all fragments of a build together.
#[derive(Debug)]
pub struct Holding {
    /// Bytes.
    free: Arc<AtomicUsize>,
    is_open: AtomicBool,
    fragments: Mutex<HashMap<Digest, Members>>,
}

/// Members, by their places in a fragment.
type Members = Vec<(usize, Held)>;

/// The tar of one member.
#[derive(Debug)]
pub struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

/// A part of what may be held, given back when it is dropped.
#[derive(Debug)]
struct Share {
    free: Arc<AtomicUsize>,
    size: usize,
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

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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

    fn share(&self, size: usize) -> Option<Share> {
        if !self.is_open.load(Ordering::Relaxed) {
            return None;
        }
        let left = |free: usize| free.checked_sub(size);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).ok()?;
        Some(Share { free: self.free.clone(), size })
    }

    /// Room for so many bytes, where there is some.
    pub fn room(&self, size: usize) -> Option<Held> {
        let share = self.share(size)?;
        Some(Held { bytes: vec![0; size], _share: share })
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
            self.fragments.lock().unwrap_or_else(PoisonError::into_inner).insert(fragment, members);
        }
    }

    /// The members of a fragment that are held, for the first who asks.
    pub fn take(&self, fragment: &Digest) -> HashMap<usize, layers::encode::Held> {
        let members = self.fragments.lock().unwrap_or_else(PoisonError::into_inner).remove(fragment);
        let boxed = |held: Held| -> layers::encode::Held { Box::new(held) };
        members.unwrap_or_default().into_iter().map(|(at, held)| (at, boxed(held))).collect()
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
        holding.keep(name, vec![(3, one), (5, other)]);
        assert!(holding.room(1).is_none() && holding.take(&unknown).is_empty());
        let taken = holding.take(&name);
        let is = |at: usize, bytes: &[u8]| (*taken[&at]).as_ref() == bytes;
        assert!(is(3, &[7; 600]) && is(5, &[1; 400]));
        assert!(holding.take(&name).is_empty());
        drop(taken);
        assert!(holding.room(1000).is_some());
        holding.open(false);
        assert!(holding.room(1).is_none() && holding.hold(Vec::with_capacity(1)).is_err());
    }
}
