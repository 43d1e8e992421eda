//! What an image's files stand on, remembered: the layers below them, and what the layers above have asked about these.
//!
//! ```text
//! packages, wheels, set-up        the head: follows from the lock and the catalogue alone
//! ------------------------------- the cut
//! files, inline texts, outcomes   the tail: changes with every edit
//! ```
//!
//! A tail asks little of what is below: what is at `/app`, whether something lies where a file goes. When a stage was walked,
//! these questions and their answers are kept with the head's layers. Walked again with another tail, the answers take the
//! place of the head, whose indexes (tens of thousands of entries) are not opened. A question that was not asked before has no
//! answer; then the stage is walked as a whole, which is also what every failure leads to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use cache::{CacheError, Store};
use layers::encode::{Entry, Prefixes};
use layers::lower::Resolved;
use layers::op::{LayerPlan, Op};
use layers::{Digest, ImagePath, Key};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::local::{LayerJob, LayerRecord, Local, Subject, Together, Walked, gate_key, located};
use super::run::Ran;
use super::view::View;

/// The version of what is remembered; part of its key.
pub const VERSION: u32 = 1;

/// Where a stage is cut, and what names the part below.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The number of layers in the head.
    pub at: usize,
    /// Names what is known of the head.
    pub key: Key,
    /// What the key was hashed from.
    pub text: String,
}

/// The number of layers in the head of a stage: all before the first that depends on the build context. `None` where a layer
/// above asks more than [`Answers`] hold, or there is none above or none below.
pub fn cut(resolved: &Resolved) -> Option<usize> {
    let from_context = |op: &Op| matches!(op, Op::Copy(_) | Op::Take(_) | Op::Run(_));
    let at = resolved.layers.iter().position(|layer| layer.ops().any(from_context))?;
    let modest = |op: &Op| matches!(op, Op::Copy(_) | Op::Take(_) | Op::Dir(_) | Op::Link(_) | Op::Inline(_));
    let is_modest = resolved.layers[at..].iter().flat_map(LayerPlan::ops).all(modest);
    (at > 0 && is_modest).then_some(at)
}

/// What is remembered of a head.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Foundation {
    /// Its layers, bottom first.
    pub layers: Vec<Laid>,
    /// Debian packages in it: name, version, architecture.
    pub packages: Vec<(String, String, String)>,
    /// What its file system answered, and the rest of what tails depend on.
    pub below: Below,
}

/// What a tail depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// What the head's file system answered.
    pub answers: Answers,
    /// The head's fragments that have a say in how programs find their libraries; of wheels that were exchanged since, those that
    /// told the loader the same.
    pub linked: Linked,
    /// Names the verdict of the gate that all went well with.
    pub gate: Key,
}

/// Fragments in their order, as one digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Linked(Digest);

impl Default for Linked {
    fn default() -> Linked {
        Linked(Digest::of(b""))
    }
}

impl Linked {
    /// Adds a fragment.
    pub fn push(&mut self, fragment: &Digest) {
        self.0 = Digest::of(format!("{} {}", self.0.hex(), fragment.hex()).as_bytes());
    }
}

impl std::fmt::Display for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A layer of a head.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Laid {
    /// Names its outcome.
    pub key: Key,
    /// The outcome.
    pub record: LayerRecord,
    /// The commands that it needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ran: Vec<Ran>,
}

/// What is at the paths that somebody has asked for. Where nothing is, nothing is below either.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answers(BTreeMap<ImagePath, Option<Entry>>);

impl Answers {
    /// Notes what is at a path.
    pub fn note(&mut self, path: &ImagePath, found: Option<&Entry>) {
        if self.0.contains_key(path) || found.is_none() && self.of(path) == Some(None) {
            return;
        }
        self.0.insert(path.clone(), found.cloned());
    }

    /// Whether they are few enough to be worth keeping.
    pub fn are_few(&self) -> bool {
        self.0.len() <= 10_000
    }

    /// What is at a path; the outer `None` where that is not known.
    pub fn of(&self, path: &ImagePath) -> Option<Option<&Entry>> {
        if let Some(found) = self.0.get(path) {
            return Some(found.as_ref());
        }
        let mut above = path.ancestors().filter_map(|above| self.0.get(&above));
        above.any(|found| found.as_ref().is_none_or(|entry| !entry.is_dir())).then_some(None)
    }
}

/// Answers that stand for a file system, and whether they were enough so far.
#[derive(Debug, Default)]
pub struct Known {
    answers: Answers,
    unsure: AtomicBool,
}

impl Known {
    /// Nothing but these answers is known.
    pub fn new(answers: Answers) -> Known {
        Known { answers, unsure: AtomicBool::new(false) }
    }

    /// What is at a path. Where that is not known, whatever is concluded from `None` must not be used.
    pub fn entry(&self, path: &ImagePath) -> Option<&Entry> {
        self.answers.of(path).unwrap_or_else(|| {
            self.give_up();
            None
        })
    }

    /// Somebody needs more than answers.
    pub fn give_up(&self) {
        self.unsure.store(true, Ordering::Relaxed);
    }

    /// Whether every question had its answer.
    pub fn is_sure(&self) -> bool {
        !self.unsure.load(Ordering::Relaxed)
    }
}

impl Local<'_> {
    /// Walks a stage over what is remembered of its head, opening no index below the cut. `None` where that is not enough,
    /// or something is wrong: [`Local::walk`] says what.
    pub fn walk_on_foundation(
        &self,
        subject: Subject<'_>,
        resolved: &Resolved,
        cut: &Cut,
    ) -> Result<Option<Walked>, EngineError> {
        let here = self.store.find(&cut.key)?.and_then(|bytes| serde_json::from_slice::<Foundation>(&bytes).ok());
        let known = here.or_else(|| self.elsewhere.foundation(&cut.key));
        let Some(foundation) = known.filter(|it| it.layers.len() == cut.at) else { return Ok(None) };
        for Laid { record, ran, .. } in &foundation.layers {
            let is_there = self.is_within_reach(&record.digest, Some(record.size))?;
            if !is_there || !ran.iter().all(|ran| self.runs.commands.accepts(ran.sandbox)) {
                return Ok(None);
            }
        }
        let open = |digest: &Digest| self.open(digest);
        let below = foundation.below;
        let mut view = View::known(&open, below.answers.clone(), below.linked);
        let mut walked = Walked { packages: foundation.packages, ..Walked::default() };
        for (laid, layer) in foundation.layers.into_iter().zip(&resolved.layers) {
            walked.jobs.push(LayerJob {
                key: laid.key,
                text: String::new(),
                label: layer.label(),
                skeleton: Vec::new(),
                fragments: Vec::new(),
                ran: laid.ran,
                prefixes: Prefixes::default(),
                made: Some(laid.record),
            });
        }
        if let Some(base) = &resolved.base {
            walked.base = Some(self.base(subject, base)?);
        }
        let nothing = Together::default();
        for layer in &resolved.layers[cut.at..] {
            match self.lay(subject, layer, &nothing, &mut view, &mut walked) {
                Ok(()) => {}
                // It would fail once more, and take as long.
                Err(error) if error.is_of_a_command() => return Err(located(error, layer)),
                // `Local::walk` says what it is, and may try the command again.
                Err(_) => {
                    self.begin(&[]);
                    return Ok(None);
                }
            }
        }
        let base = walked.base.as_ref().map(|base| base.manifest);
        let (gate, _) = gate_key(subject, resolved, base, view.linked());
        let has_passed = view.is_sure() && (gate == below.gate || self.store.find(&gate)?.is_some());
        walked.below = Some(below);
        Ok(has_passed.then_some(walked))
    }

    /// Remembers what the tail of a walked stage stands on. `layers` are the outcomes of all its layers.
    pub fn remember_foundation(&self, cut: &Cut, walked: &Walked, layers: &[LayerRecord]) -> Result<(), EngineError> {
        let Some(below) = &walked.below else { return Ok(()) };
        if walked.is_on_foundation() && self.store.record_path(&cut.key).exists() {
            return Ok(());
        }
        let head = walked.jobs.iter().zip(layers).take(cut.at);
        let foundation = Foundation {
            layers: head
                .map(|(job, record)| Laid { key: job.key, record: record.clone(), ran: job.ran.clone() })
                .collect(),
            packages: walked.packages.clone(),
            below: below.clone(),
        };
        Ok(self.store.keep(&cut.key, &cut.text, &foundation)?)
    }
}

/// Remembers under another cut what is remembered under `from`, with other layers at some places: unless somebody above has asked
/// about one of the paths that `changed`.
pub fn carry_foundation<'l>(
    store: &Store,
    from: &Key,
    cut: &Cut,
    layers: impl Iterator<Item = (usize, &'l (Key, LayerRecord))>,
    changed: &[ImagePath],
) -> Result<(), CacheError> {
    let known = store.find(from)?.and_then(|bytes| serde_json::from_slice::<Foundation>(&bytes).ok());
    let Some(mut foundation) = known.filter(|it| it.layers.len() == cut.at) else { return Ok(()) };
    let is_asked = |path: &ImagePath| foundation.below.answers.of(path).is_some();
    if changed.iter().any(is_asked) {
        return Ok(());
    }
    for (at, layer) in layers {
        let Some(laid) = foundation.layers.get_mut(at) else { return Ok(()) };
        (laid.key, laid.record) = layer.clone();
    }
    store.keep(&cut.key, &cut.text, &foundation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::encode::{EPOCH, Kind};

    fn path(text: &str) -> ImagePath {
        ImagePath::new(text).expect("a good path")
    }

    fn entry(text: &str, kind: Kind) -> Entry {
        Entry::new(path(text), kind, 0o755, EPOCH)
    }

    #[test]
    fn nothing_is_below_what_is_not_there_or_no_directory() {
        let mut answers = Answers::default();
        answers.note(&path("/a"), Some(&entry("/a", Kind::Dir)));
        answers.note(&path("/a/none"), None);
        answers.note(&path("/a/none/deep"), None);
        answers.note(&path("/a/link"), Some(&entry("/a/link", Kind::Symlink { target: "b".into() })));
        assert_eq!(answers.0.len(), 3, "what follows is not noted");
        assert!(answers.of(&path("/a")).expect("known").is_some());
        for absent in ["/a/none", "/a/none/x", "/a/none/x/y", "/a/link/x"] {
            assert_eq!(answers.of(&path(absent)), Some(None), "{absent}");
        }
        for unknown in ["/b", "/a/other", "/a/nonesuch", "/a/none.d", "/a/link2"] {
            assert_eq!(answers.of(&path(unknown)), None, "{unknown}");
        }
    }

    #[test]
    fn who_asks_more_is_told() {
        let mut answers = Answers::default();
        answers.note(&path("/a"), None);
        let known = Known::new(answers);
        assert!(known.entry(&path("/a/b")).is_none() && known.is_sure());
        assert!(known.entry(&path("/c")).is_none() && !known.is_sure());
    }
}
