//! The tar of members, which comes in their order: inflated and taken by whoever of two threads has time.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use libdeflater::Decompressor;

use super::EncodeError;
use super::fragment::Member;
use super::gzip;

/// How much two threads may hold, packed and unpacked, bytes; beside that, a few [`SPARE`] buffers.
pub(super) const IN_FLIGHT: usize = 40 << 20;

/// How much one thread alone may hold: it takes a member as soon as it has it, unless the tar of others is held already.
const ALONE: usize = 8 << 20;

/// How many buffers are kept to be written over, and of how many bytes each at most.
const SPARE: usize = 8;
const LARGEST_SPARE: usize = 4 << 20;

/// The tar of a member that somebody has in memory, or will have.
pub trait Hold: Send {
    /// How long it is, bytes.
    fn length(&self) -> usize;

    /// The tar; waits until it is there. An error means that it will never be.
    fn tar(&self) -> io::Result<&[u8]>;
}

/// Something that holds the tar of one member.
pub type Held = Box<dyn Hold>;

impl<H: Hold + Sync> Hold for Arc<H> {
    fn length(&self) -> usize {
        (**self).length()
    }

    fn tar(&self) -> io::Result<&[u8]> {
        (**self).tar()
    }
}

impl Hold for Vec<u8> {
    fn length(&self) -> usize {
        self.len()
    }

    fn tar(&self) -> io::Result<&[u8]> {
        Ok(self)
    }
}

/// Takes tar.
pub(super) trait Take {
    /// Takes the whole tar of a member.
    fn take(&mut self, member: Member, tar: &[u8]) -> Result<(), EncodeError>;
}

/// A member, packed, and unpacked once that is done.
struct Work {
    /// How long it is.
    member: Member,
    /// The whole gzip member.
    packed: Vec<u8>,
    /// Its tar, unless that is held.
    tar: Vec<u8>,
    held: Option<Held>,
    /// What its buffers take, bytes: they may be longer than the member.
    room: usize,
}

impl Work {
    fn inflate(mut self, decompressor: &mut Decompressor) -> io::Result<Work> {
        self.tar.resize(self.member.tar as usize, 0);
        gzip::inflate(decompressor, &self.packed, &mut self.tar)?;
        Ok(self)
    }

    fn tar(&self) -> io::Result<&[u8]> {
        self.held.as_ref().map_or(Ok(&self.tar), |held| held.tar())
    }
}

/// What two threads share. Each takes the next member where it is inflated, or else inflates the first that nobody is at.
pub(super) struct Ahead<T> {
    state: Mutex<State>,
    changed: Condvar,
    taker: Mutex<T>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Work)>,
    done: BTreeMap<u64, io::Result<Work>>,
    /// How many were begun, and how many of them were taken.
    begun: u64,
    taken: u64,
    /// Whether somebody takes the next one now.
    is_taking: bool,
    in_flight: usize,
    /// Of members that were begun and not taken, bytes.
    tar: u64,
    spare: Vec<Work>,
    /// Threads that wait for a change.
    asleep: usize,
    failed: Option<EncodeError>,
    closed: bool,
}

impl State {
    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.is_taking && self.done.contains_key(&self.taken)
    }
}

impl<T: Take> Ahead<T> {
    pub(super) fn new(taker: T) -> Ahead<T> {
        Ahead { state: Mutex::default(), changed: Condvar::new(), taker: Mutex::new(taker) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        state.asleep += 1;
        let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.asleep -= 1;
        state
    }

    /// Wakes who waits: a call to the system, of which there would be two for each member.
    fn wake(&self, state: &State) {
        if state.asleep > 0 {
            self.changed.notify_all();
        }
    }

    /// For who takes tar that was never begun, in its turn.
    pub(super) fn taker(&self) -> MutexGuard<'_, T> {
        self.taker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until nobody begins members any more.
    pub(super) fn help(&self) {
        // A panic must not leave the other thread waiting.
        let _closed = Closing(self);
        let mut decompressor = Decompressor::new();
        let mut state = self.state();
        while !state.closed {
            state = if state.has_work() { self.step(state, &mut decompressor) } else { self.wait(state) };
        }
    }

    /// Does one thing, where there is one to do.
    fn step<'s>(&'s self, mut state: MutexGuard<'s, State>, decompressor: &mut Decompressor) -> MutexGuard<'s, State> {
        let next = state.taken;
        if !state.is_taking
            && let Some(done) = state.done.remove(&next)
        {
            state.is_taking = true;
            drop(state);
            let taken = match done {
                // Whoever waits for what is held does not keep the other thread from its work.
                Ok(work) => match work.tar() {
                    Ok(tar) => self.taker().take(work.member, tar).map(|()| Work { held: None, ..work }),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(gzip::unreadable(error)),
            };
            let mut state = self.state();
            state.is_taking = false;
            state.taken += 1;
            match taken {
                Ok(work) => {
                    state.in_flight -= work.room;
                    state.tar -= u64::from(work.member.tar);
                    // One whose tar was held has no buffers.
                    if (1..=LARGEST_SPARE).contains(&work.room) && state.spare.len() < SPARE {
                        state.spare.push(work);
                    }
                }
                Err(error) => {
                    state.failed = Some(error);
                    state.closed = true;
                }
            }
            self.wake(&state);
            return state;
        }
        if let Some((at, work)) = state.waiting.pop_front() {
            drop(state);
            let done = work.inflate(decompressor);
            let mut state = self.state();
            state.done.insert(at, done);
            self.wake(&state);
            return state;
        }
        state
    }

    /// For the one thread that begins members.
    pub(super) fn order(&self) -> Order<'_, T> {
        let decompressor = Decompressor::new();
        Order { closing: Closing(self), decompressor, is_helped: false, holds: false, has_told: false }
    }
}

/// Ends the work of both threads when it is dropped.
struct Closing<'a, T: Take>(&'a Ahead<T>);

impl<T: Take> Drop for Closing<'_, T> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_all();
    }
}

/// Begins members in their order. The other thread ends with it.
pub(super) struct Order<'a, T: Take> {
    closing: Closing<'a, T>,
    decompressor: Decompressor,
    is_helped: bool,
    /// Whether the tar of some members is held.
    holds: bool,
    /// Whether an error was told, of which nothing more is to be said.
    has_told: bool,
}

impl<'a, T: Take> Order<'a, T> {
    fn ahead(&self) -> &'a Ahead<T> {
        self.closing.0
    }

    /// Whether another thread runs [`help`](Ahead::help).
    pub(super) fn is_helped(&self) -> bool {
        self.is_helped
    }

    /// From now on another thread does.
    pub(super) fn helped(&mut self) {
        self.is_helped = true;
    }

    /// The tar of members that were begun and not taken, bytes.
    pub(super) fn tar(&self) -> u64 {
        self.ahead().state().tar
    }

    /// Whether a member is inflated as a whole; otherwise it is too large.
    pub(super) fn takes(&self, member: Member) -> bool {
        usize::try_from(u64::from(member.compressed) + u64::from(member.tar)).is_ok_and(|room| room <= self.limit())
    }

    fn limit(&self) -> usize {
        if self.is_helped { IN_FLIGHT } else { ALONE }
    }

    /// Begins a member whose tar is held already.
    pub(super) fn begin_held(&mut self, member: Member, held: Held) -> Result<(), EncodeError> {
        let work = Work { member, packed: Vec::new(), tar: Vec::new(), held: Some(held), room: 0 };
        self.holds = true;
        let mut state = self.ahead().state();
        let at = state.begun;
        state.begun += 1;
        state.tar += u64::from(member.tar);
        state.done.insert(at, Ok(work));
        drop(state);
        self.begun()
    }

    /// Begins a member whose bytes `read` writes; waits for the room that it takes, and works until it is there.
    pub(super) fn begin(
        &mut self,
        member: Member,
        read: impl FnOnce(&mut [u8]) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let room = member.compressed as usize + member.tar as usize;
        let left = self.limit().saturating_sub(room);
        self.work_until(|state| state.in_flight <= left)?;
        let mut state = self.ahead().state();
        let empty = || Work { member, packed: Vec::new(), tar: Vec::new(), held: None, room: 0 };
        let spare = state.spare.pop().unwrap_or_else(empty);
        drop(state);
        let mut work = Work { member, ..spare };
        work.packed.reserve_exact((member.compressed as usize).saturating_sub(work.packed.len()));
        work.packed.resize(member.compressed as usize, 0);
        work.tar.reserve_exact((member.tar as usize).saturating_sub(work.tar.len()));
        work.room = work.packed.capacity() + work.tar.capacity();
        read(&mut work.packed)?;
        let mut state = self.ahead().state();
        state.in_flight += work.room;
        state.tar += u64::from(member.tar);
        let at = state.begun;
        state.begun += 1;
        state.waiting.push_back((at, work));
        drop(state);
        self.begun()
    }

    fn begun(&mut self) -> Result<(), EncodeError> {
        let ahead = self.ahead();
        ahead.wake(&ahead.state());
        // What is held is left to another thread as long as one may come: there is enough to do without.
        if self.is_helped || self.holds { Ok(()) } else { self.finish() }
    }

    /// Works until all members that were begun are taken, or an error was told.
    pub(super) fn finish(&mut self) -> Result<(), EncodeError> {
        self.work_until(|state| state.taken == state.begun)
    }

    fn work_until(&mut self, is_enough: impl Fn(&State) -> bool) -> Result<(), EncodeError> {
        let ahead = self.ahead();
        let mut state = ahead.state();
        loop {
            if let Some(error) = state.failed.take() {
                self.has_told = true;
                return Err(error);
            }
            if is_enough(&state) || self.has_told {
                return Ok(());
            }
            if state.closed {
                return Err(EncodeError::Io(io::Error::other("the thread that inflates with this one has ended")));
            }
            state = if state.has_work() { ahead.step(state, &mut self.decompressor) } else { ahead.wait(state) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it takes, and fails at some text.
    #[derive(Default)]
    struct All(Vec<Vec<u8>>);

    impl Take for &mut All {
        fn take(&mut self, _member: Member, tar: &[u8]) -> Result<(), EncodeError> {
            if tar == b"fails" {
                return Err(io::Error::other("it fails").into());
            }
            self.0.push(tar.to_vec());
            Ok(())
        }
    }

    fn begin<T: Take>(order: &mut Order<'_, T>, tar: &[u8]) -> Result<(), EncodeError> {
        let packed = gzip::gzip(tar);
        let member = Member { compressed: packed.len() as u32, tar: tar.len() as u32 };
        order.begin(member, |out| {
            out.copy_from_slice(&packed);
            Ok(())
        })
    }

    fn hold<T: Take>(order: &mut Order<'_, T>, tar: Vec<u8>) -> Result<(), EncodeError> {
        order.begin_held(Member { compressed: 1, tar: tar.len() as u32 }, Box::new(tar))
    }

    /// Begins members that another thread helps with.
    fn with_help(test: impl FnOnce(&mut Order<'_, &mut All>)) {
        let mut all = All::default();
        let ahead = Ahead::new(&mut all);
        std::thread::scope(|scope| {
            scope.spawn(|| ahead.help());
            let mut order = ahead.order();
            order.helped();
            test(&mut order);
        });
    }

    #[test]
    fn buffers_count_as_what_they_take_and_few_are_kept() {
        let mut all = All::default();
        let ahead = Ahead::new(&mut all);
        let large = vec![7; 3 << 20];
        // Nobody helps, but much may be in flight.
        let mut order = ahead.order();
        order.helped();
        for _ in 0..13 {
            begin(&mut order, &large).expect("begins");
        }
        let held = ahead.state().in_flight;
        assert!(held >= 13 * large.len() && held <= IN_FLIGHT);
        begin(&mut order, &large).expect("takes some first");
        let state = || {
            let state = ahead.state();
            (state.taken, state.in_flight, state.spare.len())
        };
        assert!(state().0 > 0 && state().1 <= IN_FLIGHT);
        order.finish().expect("takes the rest");
        assert!(state().1 == 0 && state().2 == SPARE);
        // A small member in a large buffer takes as much.
        begin(&mut order, b"small").expect("begins");
        assert!(state().1 >= large.len());
        order.finish().expect("takes it");
        begin(&mut order, &vec![7; LARGEST_SPARE + 1]).expect("begins");
        assert_eq!(state().2, SPARE - 1);
        order.finish().expect("takes it");
        assert_eq!(state().2, SPARE - 1, "one that is too large is let go");
        drop(order);
        assert_eq!(all.0.len(), 16);
    }

    #[test]
    fn what_is_held_waits_and_one_thread_alone_inflates_little_behind_it() {
        let mut all = All::default();
        let ahead = Ahead::new(&mut all);
        let mut order = ahead.order();
        let large = vec![7; 1 << 20];
        begin(&mut order, &large).expect("begins");
        assert_eq!((order.tar(), ahead.state().taken), (0, 1), "nothing is held");
        hold(&mut order, large.clone()).expect("begins");
        begin(&mut order, &large).expect("begins");
        assert_eq!((order.tar(), ahead.state().taken), (2 << 20, 1));
        for _ in 0..20 {
            begin(&mut order, &large).expect("begins");
            assert!(ahead.state().in_flight <= ALONE);
        }
        assert!(order.tar() <= ALONE as u64 && ahead.state().taken > 10);
        order.finish().expect("takes the rest");
        assert_eq!(order.tar(), 0);
        drop(order);
        assert!(all.0.len() == 23 && all.0.iter().all(|tar| *tar == large));
    }

    #[test]
    fn an_error_that_was_told_hides_behind_no_other() {
        with_help(|order| {
            begin(order, b"fails").expect("begins");
            while order.ahead().state().failed.is_none() {
                std::thread::yield_now();
            }
            let told = begin(order, b"behind").expect_err("it has failed");
            assert!(told.to_string().contains("it fails"), "{told}");
            order.finish().expect("nothing more is said");
        });
    }

    #[test]
    fn members_come_in_their_order_and_damage_in_its_place() {
        for is_helped in [true, false] {
            let mut all = All::default();
            let ahead = Ahead::new(&mut all);
            let tar = |at: usize| vec![at as u8; 1 + at * 1000];
            std::thread::scope(|scope| {
                if is_helped {
                    scope.spawn(|| ahead.help());
                }
                let mut order = ahead.order();
                if is_helped {
                    order.helped();
                }
                for at in 0..50 {
                    match at % 3 {
                        0 => hold(&mut order, tar(at)).expect("begins"),
                        _ => begin(&mut order, &tar(at)).expect("begins"),
                    }
                }
                let broken = order.begin(Member { compressed: 20, tar: 3 }, |packed| {
                    packed.fill(1);
                    Ok(())
                });
                let behind = broken.and_then(|()| begin(&mut order, b"behind"));
                assert!(matches!(behind.and_then(|()| order.finish()), Err(EncodeError::Damaged(_))));
            });
            assert!(all.0.len() == 50 && all.0.iter().enumerate().all(|(at, taken)| *taken == tar(at)));
        }
    }

    #[test]
    fn who_cannot_take_ends_both_threads() {
        with_help(|order| {
            let told = begin(order, b"fails").and_then(|()| order.finish());
            assert!(matches!(told, Err(EncodeError::Io(_))));
        });
    }

    #[test]
    fn a_helper_that_panics_leaves_nobody_waiting() {
        struct Panics;
        impl Take for Panics {
            fn take(&mut self, _member: Member, _tar: &[u8]) -> Result<(), EncodeError> {
                panic!("as it should here")
            }
        }
        let ahead = Ahead::new(Panics);
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| ahead.help());
            let mut order = ahead.order();
            order.helped();
            // Only the helper takes it.
            hold(&mut order, vec![1]).expect("begins");
            assert!(helper.join().is_err());
            assert!(order.finish().is_err());
        });
    }
}
