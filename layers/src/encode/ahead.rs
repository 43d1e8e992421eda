//! Members that are inflated on a second thread, ahead of who reads them in order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use libdeflater::Decompressor;

use super::fragment::Member;
use super::gzip;

/// How much may be held, packed and unpacked, bytes; beside that, a few [`SPARE`] buffers.
pub(super) const IN_FLIGHT: usize = 40 << 20;

/// How many buffers are kept to be written over, and of how many bytes each at most.
const SPARE: usize = 8;
const LARGEST_SPARE: usize = 4 << 20;

/// What a member takes while it is held, bytes; `None` for one that is too large to be held.
pub(super) fn room(member: Member) -> Option<usize> {
    let room = u64::from(member.compressed) + u64::from(member.tar);
    usize::try_from(room).ok().filter(|room| *room <= IN_FLIGHT)
}

/// A member, packed, and unpacked once that is done.
pub(super) struct Work {
    /// How long it is.
    pub(super) member: Member,
    /// The whole gzip member.
    pub(super) packed: Vec<u8>,
    /// Its tar.
    pub(super) tar: Vec<u8>,
    /// What its buffers take, bytes: they may be longer than the member.
    room: usize,
}

impl Work {
    fn inflate(mut self, decompressor: &mut Decompressor) -> io::Result<Work> {
        self.tar.resize(self.member.tar as usize, 0);
        gzip::inflate(decompressor, &self.packed, &mut self.tar)?;
        Ok(self)
    }
}

/// What two threads share. Each takes the first member that nobody is at.
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Work)>,
    done: BTreeMap<u64, io::Result<Work>>,
    closed: bool,
}

impl Ahead {
    pub(super) fn new() -> Ahead {
        Ahead { state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inflates members until nobody reads them any more.
    pub(super) fn help(&self) {
        let mut decompressor = Decompressor::new();
        loop {
            let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
            let mut state = self.changed.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
            let Some((at, work)) = state.waiting.pop_front().filter(|_| !state.closed) else { return };
            drop(state);
            self.finish(at, work.inflate(&mut decompressor));
        }
    }

    fn finish(&self, at: u64, done: io::Result<Work>) {
        self.state().done.insert(at, done);
        self.changed.notify_all();
    }

    /// For the one thread that reads them.
    pub(super) fn order(&self) -> Order<'_> {
        Order { ahead: self, decompressor: Decompressor::new(), begun: 0, read: 0, held: 0, spare: Vec::new() }
    }
}

/// Members in order. The other thread ends with it.
pub(super) struct Order<'a> {
    ahead: &'a Ahead,
    decompressor: Decompressor,
    /// How many were begun, and how many of them were read.
    begun: u64,
    read: u64,
    held: usize,
    spare: Vec<Work>,
}

impl Order<'_> {
    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Buffers that are as long as this member.
    pub(super) fn work(&mut self, member: Member) -> Work {
        let spare = self.spare.pop().unwrap_or_else(|| Work { member, packed: Vec::new(), tar: Vec::new(), room: 0 });
        let mut work = Work { member, ..spare };
        work.packed.resize(member.compressed as usize, 0);
        work.tar.reserve_exact((member.tar as usize).saturating_sub(work.tar.len()));
        work.room = work.packed.capacity() + work.tar.capacity();
        work
    }

    /// Begins a member, whose bytes are in `work`.
    pub(super) fn begin(&mut self, work: Work) {
        self.held += work.room;
        self.ahead.state().waiting.push_back((self.begun, work));
        self.begun += 1;
        self.ahead.changed.notify_all();
    }

    /// The next member, inflated here where nobody else is at it; `None` once all that were begun are read.
    pub(super) fn next(&mut self) -> Option<io::Result<Work>> {
        if self.read == self.begun {
            return None;
        }
        let mut state = self.ahead.state();
        let done = loop {
            if let Some(done) = state.done.remove(&self.read) {
                break done;
            }
            state = match state.waiting.pop_front() {
                Some((at, work)) => {
                    drop(state);
                    self.ahead.finish(at, work.inflate(&mut self.decompressor));
                    self.ahead.state()
                }
                None => self.ahead.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        };
        drop(state);
        self.read += 1;
        if let Ok(work) = &done {
            self.held -= work.room;
        }
        Some(done)
    }

    /// Takes buffers back.
    pub(super) fn give_back(&mut self, work: Work) {
        if work.room <= LARGEST_SPARE && self.spare.len() < SPARE {
            self.spare.push(work);
        }
    }
}

impl Drop for Order<'_> {
    fn drop(&mut self) {
        self.ahead.state().closed = true;
        self.ahead.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(order: &mut Order<'_>) -> Work {
        order.next().expect("was begun").expect("inflates")
    }

    fn begin(order: &mut Order<'_>, tar: &[u8]) {
        let packed = gzip::gzip(tar);
        let mut work = order.work(Member { compressed: packed.len() as u32, tar: tar.len() as u32 });
        work.packed.copy_from_slice(&packed);
        order.begin(work);
    }

    #[test]
    fn buffers_count_as_what_they_take_and_few_are_kept() {
        let ahead = Ahead::new();
        let mut order = ahead.order();
        let large = vec![7; 3 << 20];
        for _ in 0..20 {
            begin(&mut order, &large);
        }
        assert!(order.held() >= 20 * large.len());
        let mut done: Vec<Work> = (0..20).map(|_| read(&mut order)).collect();
        assert!(order.held() == 0 && order.next().is_none());
        assert!(done.iter().all(|work| work.tar == large));
        done.drain(..).for_each(|work| order.give_back(work));
        assert_eq!(order.spare.len(), SPARE);
        // A small member in a large buffer takes as much.
        begin(&mut order, b"small");
        assert!(order.held() >= large.len());
        assert_eq!(read(&mut order).tar, b"small");
        begin(&mut order, &vec![7; LARGEST_SPARE + 1]);
        let work = read(&mut order);
        let kept = order.spare.len();
        order.give_back(work);
        assert_eq!(order.spare.len(), kept, "one that is too large is let go");
    }

    #[test]
    fn members_come_in_their_order_and_damage_in_its_place() {
        let ahead = Ahead::new();
        std::thread::scope(|scope| {
            scope.spawn(|| ahead.help());
            let mut order = ahead.order();
            let tar = |at: usize| vec![at as u8; 1 + at * 1000];
            (0..50).for_each(|at| begin(&mut order, &tar(at)));
            let mut broken = order.work(Member { compressed: 20, tar: 3 });
            broken.packed.fill(1);
            order.begin(broken);
            begin(&mut order, b"behind");
            (0..50).for_each(|at| assert!(read(&mut order).tar == tar(at), "{at}"));
            assert!(order.next().expect("was begun").is_err());
            assert_eq!(read(&mut order).tar, b"behind");
        });
    }
}
