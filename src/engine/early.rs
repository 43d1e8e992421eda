//! Commands that need not wait for everything: a stage whose archives are converted is walked, and its command runs, while
//! the archives of other images are still being converted.
//!
//! ```text
//! conversions   [ those below commands ]  (waiting)  [ all others, on what cores are left ]
//! commands                              [ walk, folder ][ command            ]
//! walk, layers                                      [ images without commands ][ the others ]
//! ```
//!
//! Only the order changes. What a command made is found by the walk of the images that take from it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Condvar, Mutex, PoisonError};

use layers::lower::{PinnedBase, Resolved};
use layers::op::{LayerPlan, Op};
use layers::{Digest, Key, StageId};

use super::EngineError;
use super::convert::Drops;
use super::fragments::waits_for_others;
use super::local::{Local, Subject};
use super::run::platform_of;
use super::view::View;
use crate::parallel::{Cores, First, in_parallel, lock};

/// A stage with commands that something is taken from.
pub struct Early<'a> {
    subject: Subject<'a>,
    stage: StageId,
    /// The fragments of its archives.
    pub(super) archives: BTreeSet<Key>,
    /// Whether it is walked and written without waiting for anything, once they are there.
    is_quick: bool,
}

/// Cores that are kept for a stage which others wait for: one to walk it, and one more for its files.
const KEPT: usize = 2;

/// How far a build has come, for those that wait for a part of it.
#[derive(Default)]
pub(super) struct Course {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What is still to be converted, once that is known.
    pending: Option<BTreeSet<Key>>,
    /// Stages whose commands have not ended.
    running: usize,
    /// Whether nothing is gained by commands that run early.
    together: bool,
    /// Commands that failed. Whoever waits to run the same one does not try it again.
    given_up: BTreeSet<Key>,
    /// Threads that wait until they can walk a stage.
    idle: usize,
    /// Keeps cores for a stage whose last archive was converted, until it is walked.
    first: Option<First>,
    /// The first error, which ends everything.
    failed: Option<EngineError>,
}

/// Keeps the first of several errors, before those of commands that were ended because of it.
pub(super) fn keep_first(first: &mut Option<EngineError>, error: EngineError) {
    if first.as_ref().is_none_or(EngineError::is_a_stop) {
        *first = Some(error);
    }
}

impl Course {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    pub(super) fn pending(&self, keys: BTreeSet<Key>, early: &[Early<'_>]) {
        let together = keys.iter().all(|key| early.iter().any(|it| it.archives.contains(key)));
        self.change(|state| {
            (state.pending, state.together) = (Some(keys), together);
            if together {
                state.running = 0;
            }
        });
    }

    /// Says that an archive is converted. Was it the last that one of `early` waited for, that stage has the next cores, where
    /// somebody comes for them at once.
    pub(super) fn converted(&self, key: &Key, early: &[Early<'_>], cores: &Cores) {
        self.change(|state| {
            let Some(pending) = &mut state.pending else { return };
            // Whoever is told of the same one later keeps nothing: nobody would come for it.
            if !pending.remove(key) {
                return;
            }
            let is_ready =
                |it: &Early<'_>| it.is_quick && it.archives.contains(key) && pending.is_disjoint(&it.archives);
            if early.iter().any(is_ready) && state.idle > 0 && !state.together && state.failed.is_none() {
                state.first = Some(cores.first(KEPT));
            }
        });
    }

    /// Whether a stage is waited for whose commands run early.
    pub(super) fn runs_commands(&self) -> bool {
        lock(&self.state).running > 0
    }

    pub(super) fn has_failed(&self) -> bool {
        lock(&self.state).failed.is_some()
    }

    /// Says that this command failed, before anyone is told why.
    pub(super) fn give_up(&self, command: Key) {
        self.change(|state| _ = state.given_up.insert(command));
    }

    /// Whether this command failed, or something else that ends everything.
    pub(super) fn has_given_up(&self, command: &Key) -> bool {
        let state = lock(&self.state);
        state.failed.is_some() || state.given_up.contains(command)
    }

    /// Waits until all archives of one of `left` are converted, which is taken out, and gives the cores that were kept for it. `None`
    /// where nothing is gained by going on.
    fn next<T>(&self, left: &Mutex<Vec<(&BTreeSet<Key>, T)>>) -> Option<(T, Option<First>)> {
        let mut state = lock(&self.state);
        state.idle += 1;
        let next = loop {
            if state.together || state.failed.is_some() {
                break None;
            }
            let mut left = lock(left);
            let ready = state
                .pending
                .as_ref()
                .and_then(|pending| left.iter().position(|(archives, _)| pending.is_disjoint(archives)));
            if ready.is_some() || left.is_empty() {
                break ready.map(|at| left.remove(at).1);
            }
            drop(left);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.idle -= 1;
        // Whoever leaves takes them along: those that still wait come for no stage that is ready.
        let first = state.first.take();
        next.map(|next| (next, first))
    }
}

impl Local<'_> {
    /// The stages with commands that these images take from, each once. One that cannot be told of yet is left to the walk.
    pub fn early<'p>(&self, images: &[(Subject<'p>, &Resolved)]) -> Vec<Early<'p>> {
        let mut found: Vec<Early<'p>> = Vec::new();
        for (subject, resolved) in images {
            for op in resolved.layers.iter().flat_map(LayerPlan::ops) {
                let Op::Take(take) = op else { continue };
                let subject = Subject { platform: platform_of(take, subject.platform), ..*subject };
                let is_known = |it: &Early<'_>| (it.stage, it.subject.platform) == (take.stage, subject.platform);
                if !found.iter().any(is_known)
                    && let Some((archives, is_quick)) = self.below_command(subject, take.stage)
                {
                    found.push(Early { subject, stage: take.stage, archives, is_quick });
                }
            }
        }
        found
    }

    /// The archives of a stage in which commands run, and whether nothing else is waited for. None where there is no command, or
    /// where wheels are built from source first.
    fn below_command(&self, subject: Subject<'_>, stage: StageId) -> Option<(BTreeSet<Key>, bool)> {
        let lowered = self.lowered(subject, stage).ok()?;
        let ops = || lowered.layers.iter().flat_map(LayerPlan::ops);
        if !ops().any(|op| matches!(op, Op::Run(_))) || ops().any(|op| matches!(op, Op::Build(_))) {
            return None;
        }
        let settled = self.settle(subject, &lowered).ok()?;
        let ops = || settled.layers.iter().flat_map(LayerPlan::ops);
        let waits = |op: &Op| match op {
            Op::Run(step) => step.inputs.iter().any(|input| waits_for_others(&input.op)),
            op => waits_for_others(op),
        };
        let is_quick = !matches!(settled.base, Some(PinnedBase::Registry { .. })) && !ops().any(waits);
        let archives = ops().filter_map(|op| match op {
            Op::Unpack { archive, conversion } => Some(self.key_of(archive, conversion, &Drops::new())),
            _ => None,
        });
        Some((archives.collect(), is_quick))
    }

    /// Runs the commands of these stages, each as soon as its archives are converted by [`Local::fragments`], which runs
    /// beside it.
    pub fn run_early(&self, early: &[Early<'_>]) {
        let left = Mutex::new(early.iter().map(|it| (&it.archives, it)).collect());
        let run = |_: &Early<'_>| -> Result<(), Infallible> {
            let Some((it, first)) = self.course.next(&left) else { return Ok(()) };
            let open = |digest: &Digest| self.open(digest);
            // Nothing is kept for who has to wait for others.
            let first = first.filter(|_| it.is_quick);
            match self.other_stage_first(it.subject, it.stage, &mut View::new(&open), first) {
                Ok(_) => self.course.change(|state| state.running -= 1),
                Err(error) => self.abandon(error),
            }
            Ok(())
        };
        // A stage that is walked takes memory. Whoever waits has no core, and takes whichever is ready: there may be one thread.
        in_parallel(self.jobs, early, run).unwrap_or_else(|never| match never {});
    }

    /// Begins an attempt, and forgets what one that failed has left.
    pub fn begin(&self, early: &[Early<'_>]) {
        self.course.change(|state| *state = State { running: early.len(), ..State::default() });
    }

    /// Ends everything that runs beside what failed. The first error is the one that is told, before those of commands that
    /// were ended because of it.
    pub fn abandon(&self, error: EngineError) {
        self.course.change(|state| {
            keep_first(&mut state.failed, error);
            state.first = None;
        });
    }

    /// Whether something failed since [`Local::begin`].
    pub fn has_failed(&self) -> bool {
        self.course.has_failed()
    }

    /// The first error, if there was one, which is forgotten.
    pub fn failure(&self) -> Option<EngineError> {
        let mut failed = None;
        self.course.change(|state| failed = std::mem::take(state).failed);
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::lock::Lock;
    use layers::{Catalogue, KeyHasher, Platform};

    fn key(name: &str) -> Key {
        KeyHasher::new(name, 1).finish().0
    }

    #[test]
    fn one_thread_takes_whichever_stage_is_ready_and_cores_are_kept_only_while_it_waits() {
        let (plan, lock) = (Catalogue::new("none").plan(), Lock::default());
        let early = ["a", "b", "c"].map(|name| Early {
            subject: Subject { plan: &plan, lock: &lock, platform: Platform::ALL[0] },
            stage: StageId(0),
            archives: BTreeSet::from([key(name)]),
            is_quick: true,
        });
        let left = Mutex::new(early.iter().map(|it| &it.archives).zip(["a", "b", "c"]).collect::<Vec<_>>());
        let (course, cores) = (Course::default(), Cores::new(2));
        course.pending(["a", "b", "c", "of others"].map(key).into(), &early);
        course.converted(&key("c"), &early, &cores);
        assert!(cores.spare().is_some(), "nobody comes for them");
        let (next, first) = course.next(&left).expect("it is ready");
        assert!(next == "c" && first.is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| course.next(&left));
            while course.state.lock().expect("nobody panics").idle == 0 {
                std::thread::yield_now();
            }
            course.converted(&key("b"), &early, &cores);
            let (next, first) = waiting.join().expect("no panic").expect("it is ready");
            assert!(next == "b" && first.is_some());
            assert!(cores.spare().is_none(), "they are kept");
            drop(first);
        });
        assert!(cores.spare().is_some());
        course.converted(&key("a"), &early, &cores);
        assert!(course.next(&left).is_some_and(|(next, _)| next == "a"));
        assert!(course.next(&left).is_none());
        assert_eq!(course.state.lock().expect("nobody panics").idle, 0);
    }
}
