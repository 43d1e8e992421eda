//! Work on several cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

/// Locks, also where a thread panicked that had it: whoever waits for that thread ends as it did.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was locked, once nobody else has it.
pub fn unlocked<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Begins something on another thread. `None` where none can be had: whoever asks goes on without, or does it itself.
pub fn begin<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().spawn_scoped(scope, work).ok()
}

/// Waits for what was begun. Its panic goes on here.
pub fn end<T>(begun: ScopedJoinHandle<'_, T>) -> T {
    begun.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `work` on all items with up to `threads` threads, of which this one is the first; the first error stops the rest. There may
/// be no other thread: no item may wait for one that comes later.
pub fn in_parallel<T: Sync, E: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if threads <= 1 || items.len() <= 1 {
        return items.iter().try_for_each(work);
    }
    let queue = Queue::new(items);
    let work_on = || while queue.one(&work) {};
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(items.len())).map_while(|_| begin(scope, work_on)).collect();
        work_on();
        helpers.into_iter().for_each(end);
    });
    queue.end()
}

/// Items that several threads work on, each taking the next one.
struct Queue<'i, T, E> {
    items: &'i [T],
    next: AtomicUsize,
    failed: Mutex<Option<E>>,
}

impl<'i, T, E> Queue<'i, T, E> {
    fn new(items: &'i [T]) -> Queue<'i, T, E> {
        Queue { items, next: AtomicUsize::new(0), failed: Mutex::new(None) }
    }

    /// Works on the next item, if there is one. An error leaves no more.
    fn one(&self, work: impl Fn(&T) -> Result<(), E>) -> bool {
        let Some(item) = self.items.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return false };
        if let Err(error) = work(item) {
            self.next.store(self.items.len(), Ordering::Relaxed);
            lock(&self.failed).get_or_insert(error);
        }
        true
    }

    /// Items that nobody has taken.
    fn left(&self) -> usize {
        self.items.len().saturating_sub(self.next.load(Ordering::Relaxed))
    }

    /// The first error, if there was one.
    fn end(self) -> Result<(), E> {
        unlocked(self.failed).map_or(Ok(()), Err)
    }
}

/// Does two things: at once where there is a core for the second, else one after the other. The core is given back as soon as
/// the second is done: the first may wait for it.
pub fn both<A: Send, B>(core: Option<Core>, first: impl FnOnce() -> B, second: impl FnOnce() -> A + Send) -> (B, A) {
    let Some(core) = core else { return (first(), second()) };
    at_once(first, move || {
        let _core = core;
        second()
    })
}

/// Does two things at once; the second sees to its core itself.
pub fn at_once<A: Send, B>(first: impl FnOnce() -> B, second: impl FnOnce() -> A + Send) -> (B, A) {
    let second = Mutex::new(Some(second));
    let take = || lock(&second).take().expect("it is taken once")();
    std::thread::scope(|scope| match begin(scope, take) {
        Some(other) => {
            let first = first();
            (first, end(other))
        }
        // There are no threads left: the first may wait for what the second has.
        None => {
            let done = take();
            (first(), done)
        }
    })
}

/// The cores that a build works with: who has one works, others wait. Nobody may wait for a second one. Clones are the same cores.
#[derive(Debug, Clone)]
pub struct Cores(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<Free>,
    given_back: Condvar,
}

#[derive(Debug)]
struct Free {
    cores: usize,
    /// How many of them are for who comes before all others: one for each that waits for the next core, and those of each [`First`].
    first: usize,
}

/// One of the [`Cores`], given back when it is dropped.
#[derive(Debug)]
pub struct Core(Arc<Shared>);

/// Keeps some [`Cores`] that are given back for who takes the first, until it is dropped: for work that has several steps, and
/// that others wait for longest. It waits for nobody itself.
#[derive(Debug)]
pub struct First {
    shared: Arc<Shared>,
    cores: usize,
}

impl Cores {
    /// So many, at least one.
    pub fn new(cores: usize) -> Cores {
        let state = Mutex::new(Free { cores: cores.max(1), first: 0 });
        Cores(Arc::new(Shared { state, given_back: Condvar::new() }))
    }

    /// Waits for a core that nobody else has or waits for as the first.
    pub fn take(&self) -> Core {
        let free = lock(&self.0.state);
        let taken = |free: &mut Free| free.cores <= free.first;
        self.0.given_back.wait_while(free, taken).unwrap_or_else(PoisonError::into_inner).cores -= 1;
        Core(self.0.clone())
    }

    /// A core that is free now and that nobody waits for as the first: a second one for who has one.
    pub fn spare(&self) -> Option<Core> {
        let mut free = lock(&self.0.state);
        if free.cores <= free.first {
            return None;
        }
        free.cores -= 1;
        Some(Core(self.0.clone()))
    }

    /// The next `cores` of them are for who takes the first, from now on.
    pub fn first(&self, cores: usize) -> First {
        lock(&self.0.state).first += cores;
        First { shared: self.0.clone(), cores }
    }

    /// A core that is free now, whoever waits for it.
    fn at_once(&self) -> Option<Core> {
        let mut free = lock(&self.0.state);
        free.cores = free.cores.checked_sub(1)?;
        Some(Core(self.0.clone()))
    }

    /// Runs `work` on all items before anybody else gets a core: on the next one, and on all that are given back meanwhile, up to
    /// `threads`. The first error stops the rest.
    pub fn spread<T: Sync, E: Send>(
        &self,
        threads: usize,
        items: &[T],
        work: impl Fn(&T) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        if items.is_empty() {
            return Ok(());
        }
        let _first = self.first(threads.min(items.len()));
        let queue = Queue::new(items);
        let core = self.take_first();
        std::thread::scope(|scope| {
            let mut helpers = 1..threads;
            loop {
                while !helpers.is_empty()
                    && queue.left() > helpers.start
                    && let Some(core) = self.at_once()
                {
                    let help = || {
                        let _core = core;
                        while queue.one(&work) {}
                    };
                    // Where there are no threads left, it is done without.
                    helpers = if begin(scope, help).is_some() { helpers.start + 1..threads } else { 0..0 };
                }
                if !queue.one(&work) {
                    break;
                }
            }
            drop(core);
        });
        queue.end()
    }

    /// Waits for the next core: for work that others wait for longest.
    pub fn take_first(&self) -> Core {
        let given_back = &self.0.given_back;
        let mut free = lock(&self.0.state);
        free.first += 1;
        let mut free = given_back.wait_while(free, |free| free.cores == 0).unwrap_or_else(PoisonError::into_inner);
        free.first -= 1;
        free.cores -= 1;
        // Those that waited for the first may have a core that is left.
        given_back.notify_all();
        Core(self.0.clone())
    }
}

impl First {
    /// Lets go of them, to keep as many again later.
    pub fn again(self) -> impl FnOnce() -> First {
        let (cores, kept) = (Cores(self.shared.clone()), self.cores);
        drop(self);
        move || cores.first(kept)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        lock(&self.shared.state).first -= self.cores;
        self.shared.given_back.notify_all();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        lock(&self.0.state).cores += 1;
        self.0.given_back.notify_all();
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
        let free = lock(&self.free);
        let mut free = self.returned.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *lock(&self.budget.free) += self.bytes;
        self.budget.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_of_the_second_thing_is_free_once_that_is_done() {
        let cores = Cores::new(1);
        let (waited, done) = both(cores.spare(), || cores.take(), || 7);
        assert_eq!(done, 7);
        assert!(cores.spare().is_none());
        drop(waited);
        assert_eq!(both(None, || 1, || 2), (1, 2));
    }

    #[test]
    fn whoever_comes_first_has_the_next_core_and_all_others_have_theirs() {
        let cores = Cores::new(1);
        let order = Mutex::new(Vec::new());
        let note = |who: &'static str| order.lock().expect("nobody panics").push(who);
        let waiting = || cores.0.state.lock().expect("nobody panics").first;
        let held = cores.take();
        assert!(cores.spare().is_none());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let _core = cores.take();
                    note("other");
                });
            }
            scope.spawn(|| {
                let _core = cores.take_first();
                note("first");
            });
            while waiting() == 0 {
                std::thread::yield_now();
            }
            drop(held);
        });
        assert_eq!(order.into_inner().expect("nobody panics"), ["first", "other", "other", "other"]);
        assert_eq!(waiting(), 0);
        assert_eq!(cores.0.state.lock().expect("nobody panics").cores, 1);
        let spare = cores.spare();
        assert!(spare.is_some() && cores.spare().is_none());
        drop(spare);
        assert!(cores.spare().is_some());
    }

    #[test]
    fn what_is_spread_has_every_core_that_is_given_back_until_it_is_done() {
        let cores = Cores::new(2);
        let held = cores.take();
        let (others, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let threads = Mutex::new(std::collections::HashSet::new());
        let give_back = Mutex::new(Some(held));
        let items: Vec<usize> = (0..50).collect();
        std::thread::scope(|scope| {
            let ended = cores.spread(2, &items, |at| {
                threads.lock().expect("nobody panics").insert(std::thread::current().id());
                if let Some(held) = give_back.lock().expect("nobody panics").take() {
                    scope.spawn(|| {
                        let _core = cores.take();
                        others.store(done.load(Ordering::SeqCst), Ordering::SeqCst);
                    });
                    drop(held);
                }
                // The second core is there: both threads come to the same point.
                if (1..49).contains(at) {
                    while threads.lock().expect("nobody panics").len() < 2 {
                        std::thread::yield_now();
                    }
                }
                done.fetch_add(1, Ordering::SeqCst);
                Ok::<(), ()>(())
            });
            assert_eq!(ended, Ok(()));
        });
        assert_eq!(others.into_inner(), 50);
        assert_eq!(done.into_inner(), 50);
        let failed = cores.spread(2, &items, |at| if *at == 7 { Err(*at) } else { Ok(()) });
        assert_eq!(failed, Err(7));
        let free = cores.0.state.lock().expect("nobody panics");
        assert_eq!((free.cores, free.first), (2, 0));
    }

    #[test]
    fn cores_that_are_kept_for_the_first_are_given_to_nobody_else() {
        let cores = Cores::new(3);
        let first = cores.first(2);
        let other = cores.take();
        assert!(cores.spare().is_none());
        drop((cores.take_first(), other));
        let more = cores.first(1);
        let (sender, taken) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(cores.take()));
            assert!(taken.recv_timeout(std::time::Duration::from_millis(50)).is_err());
            drop((cores.take_first(), cores.take_first(), more));
            drop(taken.recv());
        });
        drop(first);
        assert!(cores.spare().is_some());
    }

    #[test]
    fn a_panic_of_any_thread_is_told_as_it_is() {
        for at in [0, 1] {
            let met = std::sync::Barrier::new(2);
            let work = |item: &usize| {
                met.wait();
                if *item == at {
                    std::panic::panic_any("told");
                }
                Ok::<(), ()>(())
            };
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| in_parallel(2, &[0, 1], work)));
            assert_eq!(ended.expect_err("one panics").downcast_ref(), Some(&"told"));
        }
    }

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
