//! What is done beside the walk and the layers of a build in which little has changed.
//!
//! ```text
//! this thread   [ streams copied ][ walk ][ layer ][ it is sent        ]          [ manifest ]
//! later         [ neighbours' tar ][ files inflated and checked ][ archive hashed, record ]
//!                                          tar ─▶ [ diff id ]       gate ─▶
//! ```
//!
//! Nothing that follows from an archive which is still being checked is recorded or named by a manifest before the checks are
//! through. One that fails ends the attempt; the next one does everything in its order, and says what is wrong.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use layers::encode::TarReader;
use layers::lower::Resolved;
use layers::op::Op;
use layers::{Digest, Key};

use super::EngineError;
use super::checks::{LateChecks, Unchecked};
use super::convert::Drops;
use super::early::keep_first;
use super::held::{Members, Share};
use super::index::Fragment;
use super::local::Local;
use super::made::changed;
use super::members::Members as WheelMembers;
use crate::observe::Event;
use crate::parallel::{begin, lock};

/// Something that is done later.
struct Task {
    /// Whether it checks something that others rely on meanwhile.
    checks: bool,
    work: Work,
}

type Work = Box<dyn FnOnce(&Local<'_>) -> Result<(), EngineError> + Send>;

/// What is to be done later, and how that went.
#[derive(Default)]
pub(super) struct Later {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether somebody is there who does it.
    is_open: bool,
    tasks: VecDeque<Task>,
    /// How many that check something are being done.
    checking: usize,
    /// Whether a check failed: then nothing is left for later any more.
    has_failed: bool,
    /// Whether that was in this attempt, and why, until somebody is told.
    is_news: bool,
    failed: Option<EngineError>,
}

impl State {
    fn is_checking(&self) -> bool {
        self.checking > 0 || self.tasks.iter().any(|task| task.checks)
    }
}

impl Later {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Lets tasks come, unless a check failed before.
    pub fn open(&self) {
        let mut state = self.state();
        state.is_open = !state.has_failed;
    }

    /// Whether tasks may come.
    pub fn is_open(&self) -> bool {
        self.state().is_open
    }

    /// Nobody waits for tasks any more; who works on them ends.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_open = false;
        state.tasks.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Adds a task, which checks something; before all others where it is the `first`. Dropped where a check has failed.
    fn push(&self, first: bool, work: impl FnOnce(&Local<'_>) -> Result<(), EngineError> + Send + 'static) {
        self.add(first, Task { checks: true, work: Box::new(work) });
    }

    fn add(&self, first: bool, task: Task) {
        let mut state = self.state();
        match (state.has_failed, first) {
            (true, _) => {}
            (false, true) => state.tasks.push_front(task),
            (false, false) => state.tasks.push_back(task),
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whether something is not checked yet, or a check failed in this attempt.
    pub fn is_unsure(&self) -> bool {
        let state = self.state();
        state.is_checking() || state.is_news
    }

    /// The next task, once there is one. `None` where none will come.
    fn next(&self) -> Option<Task> {
        let waits = |state: &mut State| state.is_open && state.tasks.is_empty();
        let mut state = self.changed.wait_while(self.state(), waits).unwrap_or_else(PoisonError::into_inner);
        let task = state.tasks.pop_front()?;
        state.checking += usize::from(task.checks);
        Some(task)
    }

    fn done(&self, checks: bool, done: Result<(), EngineError>) {
        let mut state = self.state();
        state.checking -= usize::from(checks);
        if let Err(error) = done {
            keep_first(&mut state.failed, error);
            (state.has_failed, state.is_news, state.is_open) = (true, true, false);
            state.tasks.clear();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until everything is checked that was to be checked later.
    pub fn settle(&self) -> Result<(), EngineError> {
        let is_checking = |state: &mut State| state.is_checking();
        let mut state = self.changed.wait_while(self.state(), is_checking).unwrap_or_else(PoisonError::into_inner);
        match state.failed.take() {
            Some(error) => Err(error),
            // Somebody else was told why.
            None if state.is_news => Err(changed()),
            None => Ok(()),
        }
    }

    /// Whether a check failed in this attempt, which is forgotten.
    fn has_just_failed(&self) -> bool {
        let mut state = self.state();
        state.failed = None;
        std::mem::take(&mut state.is_news)
    }
}

/// Ends what is done later when it is dropped.
pub struct Closes<'e, 'a>(&'e Local<'a>);

impl Drop for Closes<'_, '_> {
    fn drop(&mut self) {
        self.0.later.close();
    }
}

/// So many threads at most do what is left for later.
const THREADS: usize = 3;

/// How much tar of neighbours is inflated before somebody needs it, bytes.
const NEIGHBOURS: u64 = 8 << 20;

impl<'a> Local<'a> {
    /// From now on conversions leave to other threads of this scope what they need not do at once; until what this returns is
    /// dropped. `None` where there is no core for such threads: nothing is left then.
    pub fn begin_later<'s>(&'s self, scope: &'s Scope<'s, '_>) -> Option<Closes<'s, 'a>> {
        // One core is for what is not left for later.
        let threads = self.jobs.saturating_sub(1).min(THREADS);
        self.later.open();
        let closes = Closes(self);
        let begun = (0..threads).map_while(|_| begin(scope, || self.run_later())).count();
        (begun > 0).then_some(closes)
    }

    /// Does what is left for later, until no more comes.
    fn run_later(&self) {
        while let Some(Task { checks, work }) = self.later.next() {
            let core = self.cores.take();
            let done = catch_unwind(AssertUnwindSafe(|| work(self)));
            drop(core);
            match done {
                Ok(done) => self.later.done(checks, done),
                Err(panic) => {
                    // Nobody waits for it.
                    self.later.done(checks, Err(changed()));
                    resume_unwind(panic);
                }
            }
        }
    }

    /// Waits until everything is checked that was to be checked later.
    pub fn settle_later(&self) -> Result<(), EngineError> {
        self.later.settle()
    }

    /// Whether something that was left for later failed in this attempt, of which nothing is used any more. Another one leaves
    /// nothing for later.
    pub fn has_failed_later(&self) -> bool {
        let has_failed = self.later.has_just_failed();
        if has_failed {
            self.forget();
        }
        has_failed
    }

    /// Inflates the neighbours of archives that are to be converted: their layers are made anew.
    pub(super) fn inflate_neighbours(&self, stages: &[&Resolved], missing: &BTreeSet<Digest>) {
        let mut left = NEIGHBOURS;
        for layer in stages.iter().flat_map(|stage| &stage.layers) {
            let archives = layer.ops().filter_map(|op| match op {
                Op::Unpack { archive, conversion } => Some((archive, conversion)),
                _ => None,
            });
            let (new, old): (Vec<_>, Vec<_>) = archives.partition(|(archive, _)| missing.contains(&archive.digest));
            for (archive, conversion) in old.into_iter().filter(|_| !new.is_empty()) {
                let key = self.key_of(archive, conversion, &Drops::new());
                let Ok(Some(fragment)) = self.find_fragment(&key) else { continue };
                let Some(rest) = left.checked_sub(fragment.layout.tar_size) else { continue };
                let members = fragment.layout.members.iter();
                let room = members.map(|member| self.room.holding().share(member.tar as usize)).collect();
                let Some(room) = room else { return };
                left = rest;
                // Whoever needs the tar finds out what is wrong with it.
                let work = move |engine: &Local<'_>| {
                    let _ = engine.hold(&fragment, room);
                    Ok(())
                };
                self.later.add(false, Task { checks: false, work: Box::new(work) });
            }
        }
    }

    /// Holds the tar of a fragment's members, for which there is room.
    fn hold(&self, fragment: &Fragment, room: Vec<Share>) -> std::io::Result<()> {
        let bytes = BufReader::with_capacity(128 << 10, self.open(&fragment.blob)?);
        let mut tar = TarReader::new(bytes, fragment.layout.members.iter().copied());
        let mut held = Members::new();
        for (at, share) in room.into_iter().enumerate() {
            let mut room = share.room();
            tar.read_exact(room.bytes())?;
            held.push((at, Box::new(room)));
        }
        // The last check sum is compared at the end.
        if tar.read(&mut [0])? == 0 {
            self.room.holding().keep(fragment.blob, held);
        }
        Ok(())
    }

    /// Completes a fragment later.
    pub(super) fn finish_later(&self, unchecked: Unchecked, made: MadeOf) {
        self.later.push(false, move |engine| {
            let fragment = unchecked.finish()?;
            let is_whole = engine.store.verify(&made.digest)?;
            // That file, and not another one that has come in its place.
            if !is_whole || file_id(&made.place)? != made.file {
                return Err(changed());
            }
            engine.record_fragment(&made.key, &made.text, &fragment)?;
            if let Some(members) = made.members {
                members.keep(engine.store, &fragment)?;
            }
            engine.observer.on(Event::ConversionFinished { name: &made.name });
            Ok(())
        });
    }

    /// Checks the files of a fragment that is being written, as long as nobody else is at them.
    pub(super) fn check_later(&self, checks: &Arc<LateChecks>) {
        let checks = checks.clone();
        self.later.push(true, move |_| {
            checks.run();
            Ok(())
        });
    }
}

/// The device and the number of a file.
pub(super) type FileId = (u64, u64);

/// Which file lies there.
pub(super) fn file_id(place: &Path) -> std::io::Result<FileId> {
    let found = std::fs::metadata(place)?;
    Ok((found.dev(), found.ino()))
}

/// What a fragment is made of, and what is recorded of it.
pub(super) struct MadeOf {
    /// The archive's name.
    pub name: String,
    /// The archive, where it lies, and the file that was read there.
    pub digest: Digest,
    pub place: PathBuf,
    pub file: FileId,
    /// The fragment's key, and what it was hashed from.
    pub key: Key,
    pub text: String,
    /// The members that the next wheel of the package may take over.
    pub members: Option<WheelMembers>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(checks: bool) -> Task {
        Task { checks, work: Box::new(|_| Ok(())) }
    }

    #[test]
    fn nobody_is_sure_before_all_is_checked_and_after_one_check_failed() {
        let later = Later::default();
        later.open();
        later.add(false, task(false));
        assert!(later.is_open() && !later.is_unsure(), "it checks nothing");
        later.add(true, task(true));
        assert!(later.is_unsure());
        let first = later.next().expect("there is one");
        assert!(first.checks && later.is_unsure());
        later.done(first.checks, Ok(()));
        assert!(!later.is_unsure() && later.settle().is_ok());

        // A failure that comes before anybody asks is told, and ends all that would come.
        later.add(false, task(true));
        let other = later.next().expect("there is one");
        assert!(!other.checks);
        later.done(other.checks, Ok(()));
        let failing = later.next().expect("there is one");
        later.done(failing.checks, Err(changed()));
        later.add(false, task(true));
        assert!(later.is_unsure() && !later.is_open() && later.next().is_none());
        assert!(later.settle().is_err() && later.settle().is_err(), "each who asks is told");
        assert!(later.has_just_failed() && !later.has_just_failed());
        later.open();
        assert!(!later.is_open() && !later.is_unsure() && later.settle().is_ok());
    }
}
