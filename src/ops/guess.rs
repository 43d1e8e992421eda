//! What becomes of a layer that is guessed while its stage is walked.

use std::sync::{Mutex, OnceLock, PoisonError};

use cache::Blob;
use layers::Key;

use crate::engine::guess::Changed;
use crate::engine::local::Local;

/// A guess that is made beside a walk.
pub(super) struct Guess {
    /// The key of the layer, once there is one; `None` where there will be none.
    key: OnceLock<Option<Key>>,
    /// There once nothing more comes of it.
    ended: OnceLock<()>,
    /// Layers that wait until it is known whether they may be sent; `None` from then on.
    waiting: Mutex<Option<Vec<Blob>>>,
}

/// Ends a guess when it is dropped.
pub(super) struct Ends<'g>(&'g Guess);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = self.0.key.set(None);
        let _ = self.0.ended.set(());
    }
}

impl Guess {
    /// One that may be begun.
    pub fn new() -> Guess {
        Guess { key: OnceLock::new(), ended: OnceLock::new(), waiting: Mutex::new(Some(Vec::new())) }
    }

    /// Ends it with what this returns; at once where nothing holds that.
    pub fn ends(&self) -> Ends<'_> {
        Ends(self)
    }

    /// Makes the layer, and ends. What goes wrong is told by the walk, after which it is made once more.
    pub fn make(&self, engine: &Local<'_>, changed: &Changed, send: &(dyn Fn(Blob) + Sync)) {
        let _ends = self.ends();
        if let Ok(Some(job)) = engine.guess(changed) {
            self.is(job.key);
            let _ = engine.assemble(&[&job], 1, &|layer| self.made(layer, send));
        }
    }

    /// The layer of this key is about to be made.
    fn is(&self, key: Key) {
        let _ = self.key.set(Some(key));
    }

    /// Waits until it has ended, where it makes one of these layers.
    pub fn wait_for(&self, mut wanted: impl Iterator<Item = Key>) {
        if let Some(guessed) = self.key.wait()
            && wanted.any(|key| key == *guessed)
        {
            self.ended.wait();
        }
    }

    /// A layer was made: it is sent, or waits for [`Guess::allow`].
    fn made(&self, layer: Blob, send: &dyn Fn(Blob)) {
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.push(layer),
            None => send(layer),
        }
    }

    /// From now on layers are sent, those that wait at once.
    pub fn allow(&self, send: &dyn Fn(Blob)) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        waiting.into_iter().flatten().for_each(send);
    }
}

#[cfg(test)]
mod tests {
    use layers::Digest;

    use super::*;

    #[test]
    fn layers_wait_until_they_may_be_sent() {
        let guess = Guess::new();
        let sent = Mutex::new(Vec::new());
        let send = |layer: Blob| sent.lock().expect("nobody panics").push(layer.size);
        let layer = |size| Blob { digest: Digest::of(b"layer"), size };
        guess.made(layer(1), &send);
        guess.made(layer(2), &send);
        assert!(sent.lock().expect("nobody panics").is_empty());
        guess.allow(&send);
        guess.made(layer(3), &send);
        assert_eq!(*sent.lock().expect("nobody panics"), [1, 2, 3]);
        let key = |name: &[u8]| Key(Digest::of(name));
        std::thread::scope(|scope| {
            let (waits, other) = (scope.spawn(|| guess.wait_for([key(b"a"), key(b"b")].into_iter())), key(b"c"));
            guess.is(key(b"b"));
            // It is not what this one waits for.
            guess.wait_for([other].into_iter());
            assert!(!waits.is_finished());
            drop(guess.ends());
            waits.join().expect("it ends");
        });
        let none = Guess::new();
        drop(none.ends());
        none.wait_for([key(b"a")].into_iter());
    }
}
