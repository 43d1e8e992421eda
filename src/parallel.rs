//! Work on several cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Runs `work` on all items with up to `threads` threads; the first error stops the rest.
pub fn in_parallel<T: Sync, E: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if threads <= 1 || items.len() <= 1 {
        return items.iter().try_for_each(work);
    }
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<E>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        failed.lock().expect("no thread panics while it holds this").get_or_insert(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().expect("no thread panics while it holds this") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// A number of bytes that work under way may hold together, whatever the number of threads.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    free: Mutex<u64>,
    returned: Condvar,
}

/// A part of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Budget {
        Budget { total, free: Mutex::new(total), returned: Condvar::new() }
    }

    /// Waits until `bytes` are free. What wants more than there is gets all of it, and so works alone.
    pub fn take(&self, bytes: u64) -> Share<'_> {
        let bytes = bytes.min(self.total);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.returned.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_held_than_the_budget_has_and_everybody_has_a_turn() {
        let budget = Budget::new(10);
        let (held, most) = (Mutex::new(0u64), AtomicUsize::new(0));
        let wanted = [3, 10, 1, 25, 4, 6, 2, 9];
        in_parallel(8, &wanted, |&bytes| {
            let share = budget.take(bytes);
            let now = {
                let mut held = held.lock().expect("nobody panics");
                *held += bytes.min(10);
                *held
            };
            most.fetch_max(now as usize, Ordering::SeqCst);
            std::thread::yield_now();
            *held.lock().expect("nobody panics") -= bytes.min(10);
            drop(share);
            Ok::<(), ()>(())
        })
        .expect("nobody fails");
        assert!(most.into_inner() <= 10);
        assert_eq!(*budget.free.lock().expect("nobody panics"), 10);
    }
}
