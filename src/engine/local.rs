//! The engine of this process: fragments, then layers, then nothing else.
//!
//! ```text
//! 1. fragments   every archive that a layer needs: from the store, else supplied and converted, all cores at once
//! 2. walk        each stage bottom to top over indexes alone: skeletons, small generated fragments, the library gate
//! 3. assemble    every layer whose key the ledger does not know: concatenated and hashed, all cores at once
//! ```
//!
//! Where little changed, wheels are checked beside 2 and 3: see [`later`](super::later).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cache::{Blob, Store};
use layers::encode::{Compression, Entry, Prefixes};
use layers::lock::Lock;
use layers::lower::{PinnedBase, Resolved};
use layers::oci::Descriptor;
use layers::op::{Archive, Conversion, LayerPlan, Op};
use layers::{DiffId, Digest, ImagePath, Key, KeyHasher, Plan, Platform, StageId};
use serde::{Deserialize, Serialize};

use super::base::BaseImage;
use super::bytecode::Interpreters;
use super::convert::{self, Converted, Drops};
use super::early::{Course, Early};
use super::foundation::{Below, Cut, Linked};
use super::fragments::{FragmentMap, KnownKeys};
use super::index::{Fragment, FragmentRecord, INDEX_FORMAT};
use super::later::Later;
use super::look::StandIns;
use super::run::{Commands, Ran, Runs};
use super::skeleton::shared_dirs;
use super::spool::Room;
use super::tree::Tree;
use super::view::View;
use super::{EngineError, base};
use crate::debian::{gate, ldcache};
use crate::observe::Observer;
use crate::parallel::{Cores, First, at_once, begin, end, in_parallel};
use crate::pin::Context;
use crate::remote::Sources;

/// Brings archives.
pub trait Supply: Sync {
    /// The verified bytes of an archive as a file, downloaded where the store does not have them.
    fn supply(&self, archive: &Archive) -> Result<PathBuf, EngineError>;

    /// Puts the manifest and the configuration of a registry's image into the store.
    fn base(&self, image: &str, manifest: &Digest, platform: Platform) -> Result<(), EngineError>;

    /// Puts layers of a registry's image into the store.
    fn base_layers(&self, image: &str, layers: &[&Descriptor]) -> Result<(), EngineError>;
}

/// A layer that is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Compressed digest.
    pub digest: Digest,
    /// Uncompressed digest.
    pub diff_id: DiffId,
    /// Compressed bytes.
    pub size: u64,
}

/// What is recorded of a layer under its key.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptLayer {
    #[serde(flatten)]
    pub record: LayerRecord,
    /// What its tar came to on the way. The name has the [form](Prefixes::FORM) of the states.
    #[serde(default, rename = "prefixes1")]
    pub prefixes: Prefixes,
}

/// Whether a record of a layer says what its tar came to on the way, from where the next one is hashed on.
pub fn is_hashed_on(record: &[u8]) -> bool {
    serde_json::from_slice::<KeptLayer>(record).is_ok_and(|kept| kept.prefixes != Prefixes::default())
}

/// A layer that is wanted.
#[derive(Debug, Clone)]
pub struct LayerJob {
    /// Names its outcome.
    pub key: Key,
    pub(super) text: String,
    /// One line for people.
    pub label: String,
    pub(super) skeleton: Vec<Entry>,
    pub(super) fragments: Vec<Arc<Fragment>>,
    /// The commands that it needed, in their order.
    pub ran: Vec<Ran>,
    /// What the tar of its first fragments comes to, where that is known.
    pub(super) prefixes: Prefixes,
    /// Its outcome, where that is known without its fragments.
    pub(super) made: Option<LayerRecord>,
}

/// What is found out for all layers of a stage at once.
#[derive(Default)]
pub(super) struct Together {
    /// The archives as fragments, by key.
    pub unpacked: FragmentMap,
    /// Attributes of directories that several packages hold.
    pub shared: BTreeMap<ImagePath, Entry>,
    /// Paths that archives leave to others.
    pub drops: BTreeMap<Digest, Drops>,
}

/// A stage after its walk.
#[derive(Default)]
pub struct Walked {
    /// Its layers, bottom first.
    pub jobs: Vec<LayerJob>,
    /// The base image below them.
    pub base: Option<BaseImage>,
    /// Debian packages in it: name, version, architecture.
    pub packages: Vec<(String, String, String)>,
    /// What the layers above the cut depend on.
    pub below: Option<Below>,
    /// Whether the loader is told by files that do not lie where its configuration usually does: nothing is remembered of what it finds.
    pub(super) is_unnamed: bool,
    /// Paths that archives left to others.
    pub(super) dropped: Vec<ImagePath>,
    /// Cores that are kept for this walk until its first command begins.
    pub(super) first: Mutex<Option<First>>,
}

impl Walked {
    /// Whether what is below the cut was taken as it is remembered.
    pub fn is_on_foundation(&self) -> bool {
        self.jobs.iter().any(|job| job.made.is_some())
    }
}

/// What an engine is given to work with.
pub struct Given<'a> {
    /// Where everything is kept.
    pub store: &'a Store,
    /// Who hears of progress.
    pub observer: &'a dyn Observer,
    /// Who brings archives.
    pub supply: &'a dyn Supply,
    /// The build context.
    pub context: &'a Context,
    /// The folder that base images are relative to.
    pub catalogue_dir: PathBuf,
    /// Threads for conversion and assembly.
    pub jobs: usize,
    /// How layers are compressed.
    pub compression: Compression,
    /// What caches elsewhere have told.
    pub elsewhere: &'a Sources,
    /// How commands are run.
    pub commands: &'a Commands,
}

/// The engine on this machine: what it was given, and what one build has found out so far.
pub struct Local<'a> {
    pub(super) store: &'a Store,
    pub(super) observer: &'a dyn Observer,
    pub(super) supply: &'a dyn Supply,
    pub(super) context: &'a Context,
    pub(super) elsewhere: &'a Sources,
    pub(super) jobs: usize,
    /// What works in this build takes one.
    pub(super) cores: Cores,
    /// One: the layer whose members are inflated ahead, which takes more memory than all others.
    pub(super) ahead: Cores,
    /// Whether few archives are converted, so that their layers take no long time either.
    is_little: AtomicBool,
    /// How far the build has come.
    pub(super) course: Course,
    /// What is done beside the walk and the layers.
    pub(super) later: Later,
    catalogue_dir: PathBuf,
    pub(super) compression: Compression,
    /// Fragments that were read as a whole, and have the bytes that their digests name.
    pub(super) sound: Mutex<HashSet<Digest>>,
    /// The fragments that were used, for [`Local::heal`].
    pub(super) used: Mutex<BTreeSet<Digest>>,
    /// The interpreters that make byte-code.
    pub(super) interpreters: Interpreters,
    /// What conversions may hold in memory.
    pub(super) room: Room,
    /// Fragments' indexes that were read: images share most of theirs.
    pub(super) loaded: Mutex<FragmentMap>,
    /// The keys of archives that were asked for.
    pub(super) keys: Mutex<KnownKeys>,
    /// Records of fragments that were found.
    pub(super) found: Mutex<HashMap<Key, FragmentRecord>>,
    /// Layers that are known without their records.
    pub(super) layers: Mutex<HashMap<Key, LayerRecord>>,
    /// Fragments that a survey did not find.
    pub(super) missing: Mutex<BTreeSet<Key>>,
    /// Held by who makes what a key stands for.
    pub(super) making: Mutex<HashMap<Key, Arc<Mutex<()>>>>,
    /// The commands that were run.
    pub(super) runs: Runs<'a>,
    /// What stands for fragments where nothing is made.
    pub(super) looks: Option<StandIns>,
}

impl<'a> Local<'a> {
    /// An engine at the beginning of a build.
    pub fn new(given: Given<'a>) -> Local<'a> {
        let cores = Cores::new(given.jobs);
        Local {
            store: given.store,
            observer: given.observer,
            supply: given.supply,
            context: given.context,
            elsewhere: given.elsewhere,
            jobs: given.jobs,
            room: Room::new(given.store.scratch(), cores.clone()),
            cores,
            ahead: Cores::new(1),
            is_little: AtomicBool::new(false),
            course: Course::default(),
            later: Later::default(),
            catalogue_dir: given.catalogue_dir,
            compression: given.compression,
            sound: Mutex::default(),
            used: Mutex::default(),
            interpreters: Interpreters::default(),
            loaded: Mutex::default(),
            keys: Mutex::default(),
            found: Mutex::default(),
            layers: Mutex::default(),
            missing: Mutex::default(),
            making: Mutex::default(),
            runs: Runs::new(given.commands),
            looks: None,
        }
    }
}

/// What is being built.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The lock.
    pub lock: &'a Lock,
    /// The platform.
    pub platform: Platform,
}

/// What a stage is walked for.
#[derive(Debug)]
enum Walk {
    /// An image, and where its stage is cut.
    OfImage(Option<usize>),
    /// Something that is taken from it, or a command; and the cores that are kept for it until its first command begins.
    OfOther(Option<First>),
}

/// Hears of a layer that lies in the store, whose tar may still be hashed: should that fail, it belongs to no image.
pub type Ready<'a> = dyn Fn(Blob) + Sync + 'a;

/// Up to this size of the archives that are converted, what was in memory is held for their layers, bytes.
pub(super) const FEW: u64 = 32 << 20;

/// Downloads in flight at once: polite to mirrors, and enough to fill a line.
pub(crate) const DOWNLOADS: usize = 8;

impl Local<'_> {
    /// Converts every archive of these stages that the store does not have converted yet, those of `early` first. Without `early`,
    /// this is for a stage that is walked already, and comes before all that is not.
    pub fn fragments(&self, stages: &[&Resolved], early: Option<&[Early<'_>]>) -> Result<(), EngineError> {
        if self.looks.is_some() {
            // The walk asks for each.
            return Ok(());
        }
        let is_walked = early.is_none();
        let early = early.unwrap_or_default();
        stages.iter().for_each(|stage| self.interpreters.learn(stage));
        let wanted: BTreeMap<Key, (&Archive, &Conversion)> =
            self.archives_of(stages).map(|(key, archive, conversion)| (key, (archive, conversion))).collect();
        let mut missing: Vec<(Key, &Archive, &Conversion)> = Vec::new();
        for (key, (archive, conversion)) in wanted {
            if self.loaded(&key).is_none() && self.find_record(&key)?.is_none() {
                missing.push((key, archive, conversion));
            }
        }
        let size: Option<u64> = missing.iter().map(|(_, archive, _)| archive.size).sum();
        let is_little = size.is_some_and(|size| size <= FEW);
        self.is_little.store(is_little, Ordering::Relaxed);
        self.room.holding().open(is_little);
        if is_little && self.later.is_open() {
            self.inflate_neighbours(stages, &missing.iter().map(|(_, archive, _)| archive.digest).collect());
        }
        // The longest first, so that no core is left with a giant at the end.
        missing.sort_by_cached_key(|(key, archive, _)| {
            let waited_for = early.iter().any(|it| it.archives.contains(key));
            (!waited_for, std::cmp::Reverse(archive.size), archive.digest)
        });
        if !early.is_empty() {
            self.course.pending(missing.iter().map(|(key, ..)| *key).collect(), early);
        }
        // Downloads wait for the network and conversions for a core: the former run ahead, and whoever needs a file that
        // is on its way waits for it. Without a thread for them, each file is fetched by whoever needs it.
        let failed = AtomicBool::new(false);
        let stop = |error: EngineError| {
            failed.store(true, Ordering::Relaxed);
            error
        };
        let has_failed = || failed.load(Ordering::Relaxed) || self.course.has_failed();
        std::thread::scope(|scope| {
            let ahead = begin(scope, || {
                in_parallel(DOWNLOADS, &missing, |(_, archive, _)| {
                    if has_failed() {
                        return Ok(());
                    }
                    self.supply.supply(archive).map(drop).map_err(stop)
                })
            });
            let converted = in_parallel(self.jobs, &missing, |(key, archive, conversion)| {
                // Before the core: it may be on its way.
                if !has_failed() {
                    self.supply.supply(archive).map_err(stop)?;
                }
                // The walk may have kept the next cores for itself.
                let _core = if is_walked { self.cores.take_first() } else { self.cores.take() };
                if has_failed() {
                    return Ok(());
                }
                self.unpack(archive, conversion, &Drops::new()).map_err(stop)?;
                self.course.converted(key, early, &self.cores);
                Ok(())
            });
            let downloaded = ahead.map_or(Ok(()), end);
            // What is made later may be in no layer.
            self.room.holding().open(false);
            downloaded.and(converted)
        })
    }

    /// Walks a stage over the indexes of its fragments. `then` goes on with its layers while what they come to is still checked.
    pub fn walk(
        &self,
        subject: Subject<'_>,
        resolved: &Resolved,
        cut: Option<&Cut>,
        then: &dyn Fn(&Walked) -> Result<(), EngineError>,
    ) -> Result<Walked, EngineError> {
        // An image that is nothing but its base looks at nothing in it.
        if let (Some(base @ PinnedBase::Registry { .. }), []) = (&resolved.base, resolved.layers.as_slice()) {
            let walked = Walked { base: Some(self.base(subject, base)?), ..Walked::default() };
            then(&walked)?;
            return Ok(walked);
        }
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        let mut walked = self.walk_onto(subject, resolved, &mut view, Walk::OfImage(cut.map(|cut| cut.at)))?;
        let heard = view.heard().filter(|(answers, _)| answers.are_few());
        let base = walked.base.as_ref().map(|base| base.manifest);
        let check = || {
            let (gate, text) = gate_key(subject, resolved, base, view.linked());
            // Only what the key names may have a say.
            let is_named = |(): &()| Ok(ldcache::is_plain(&view)?);
            let check = || Ok(gate::check(&view, &resolved.allow_missing, subject.platform)?);
            let ((), is_kept) = self.remembered_if((gate, text), is_named, check)?;
            Ok::<_, EngineError>(is_kept.then_some(gate))
        };
        let is_late = self.later.is_unsure();
        let is_little = self.is_little.load(Ordering::Relaxed);
        let core = if is_little && !is_late { self.cores.spare() } else { None };
        let gate = if is_late || core.is_some() {
            let check = || {
                let _core = match core {
                    Some(core) => core,
                    // What is checked of ELF files comes first.
                    None => {
                        self.later.settle()?;
                        self.cores.take()
                    }
                };
                check()
            };
            // Whatever else is wrong may follow from what the check finds.
            let (gone_on, checked) = at_once(|| then(&walked), check);
            let gate = checked?;
            gone_on?;
            gate
        } else {
            // Layers that take long wait for the check.
            let gate = check()?;
            then(&walked)?;
            gate
        };
        walked.is_unnamed = gate.is_none();
        let heard = heard.zip(gate);
        walked.below =
            heard.map(|((answers, linked), gate)| Below { answers, linked: view.linked_until(linked), gate });
        Ok(walked)
    }

    pub(super) fn base(&self, subject: Subject<'_>, base: &PinnedBase) -> Result<BaseImage, EngineError> {
        if let PinnedBase::Registry { image, manifest } = base {
            self.supply.base(image, manifest, subject.platform)?;
        }
        base::open(&self.catalogue_dir, base, subject.platform, self.store)
    }

    fn walk_onto<'v>(
        &self,
        subject: Subject<'_>,
        resolved: &Resolved,
        view: &mut View<'v>,
        walk: Walk,
    ) -> Result<Walked, EngineError> {
        self.interpreters.learn(resolved);
        let mut walked = Walked::default();
        let (is_of_image, cut) = match walk {
            Walk::OfImage(cut) => (true, cut),
            Walk::OfOther(first) => {
                walked.first = Mutex::new(first);
                (false, None)
            }
        };
        self.stand_on_base(subject, resolved, view, &mut walked)?;
        let mut drops = self.package_conflicts(resolved)?;
        drops.extend(self.wheel_collisions(resolved)?);
        walked.dropped = drops.values().flatten().cloned().collect();
        let mut at = 0;
        while at < resolved.layers.len() {
            let stage = resolved.layers[at].stage;
            let end = at + resolved.layers[at..].iter().take_while(|layer| layer.stage == stage).count();
            let run = &resolved.layers[at..end];
            let together = self.together(run, &drops)?;
            walked.packages.extend(
                together
                    .unpacked
                    .values()
                    .filter_map(|fragment| fragment.package.as_ref())
                    .map(|package| (package.name.clone(), package.version.clone(), package.architecture.clone())),
            );
            for layer in run {
                if cut == Some(walked.jobs.len()) {
                    view.listen();
                }
                // What lies below is put together while a command still runs.
                let takes = layer.ops().any(|op| matches!(op, Op::Take(_)));
                if takes && is_of_image && self.course.runs_commands() {
                    self.assemble(&walked.jobs.iter().collect::<Vec<_>>(), self.jobs, &|_| ())?;
                }
                self.lay(subject, layer, &together, view, &mut walked).map_err(|error| located(error, layer))?;
            }
            at = end;
        }
        Ok(walked)
    }

    /// Begins a walk with what the stage stands on.
    pub(super) fn stand_on_base(
        &self,
        subject: Subject<'_>,
        resolved: &Resolved,
        view: &mut View<'_>,
        walked: &mut Walked,
    ) -> Result<(), EngineError> {
        if let Some(layout) = &resolved.base {
            let base = self.base(subject, layout)?;
            for fragment in base.fragments(self)? {
                view.apply_base(&fragment);
            }
            walked.base = Some(base);
        }
        Ok(())
    }

    /// What is found out for all layers of a run at once, where archives leave these paths to others.
    pub(super) fn together(&self, run: &[LayerPlan], drops: &BTreeMap<Digest, Drops>) -> Result<Together, EngineError> {
        let unpacked = self.unpacked(run, drops)?;
        let all: Vec<Arc<Fragment>> = unpacked.values().cloned().collect();
        Ok(Together { unpacked, shared: shared_dirs(&all), drops: drops.clone() })
    }

    /// Makes a layer and applies it to the view.
    pub(super) fn lay(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        together: &Together,
        view: &mut View<'_>,
        walked: &mut Walked,
    ) -> Result<(), EngineError> {
        let job = self.layer(subject, layer, together, view, walked)?;
        if layer.command().is_some() {
            job.fragments.iter().for_each(|outcome| view.apply_base(outcome));
        } else {
            view.check_parents(&job.skeleton, &job.fragments)?;
            view.apply(&job.skeleton, &job.fragments)?;
        }
        walked.jobs.push(job);
        Ok(())
    }

    /// All archives of a run of layers as fragments, by key.
    pub(super) fn unpacked(
        &self,
        run: &[LayerPlan],
        drops: &BTreeMap<Digest, Drops>,
    ) -> Result<FragmentMap, EngineError> {
        let mut map = FragmentMap::new();
        let none = Drops::new();
        for layer in run {
            for op in layer.ops() {
                if let Op::Unpack { archive, conversion } = op {
                    let drops = drops.get(&archive.digest).unwrap_or(&none);
                    let fragment = self.unpack(archive, conversion, drops).map_err(|error| located(error, layer))?;
                    map.insert(self.key_of(archive, conversion, drops), fragment);
                }
            }
        }
        Ok(map)
    }

    /// The archives of one kind of conversion as they are, in the order of layers.
    fn converted<'r>(
        &self,
        resolved: &'r Resolved,
        wanted: impl Fn(&Conversion) -> bool,
    ) -> Result<Vec<Converted<'r>>, EngineError> {
        let mut found = Vec::new();
        for layer in &resolved.layers {
            for op in layer.ops() {
                if let Op::Unpack { archive, conversion } = op
                    && wanted(conversion)
                {
                    let fragment =
                        self.unpack(archive, conversion, &Drops::new()).map_err(|error| located(error, layer))?;
                    found.push((archive, fragment));
                }
            }
        }
        Ok(found)
    }

    /// Names what follows from the archives of one kind of conversion alone, in their order.
    fn archives_key(&self, kind: &str, resolved: &Resolved, wanted: impl Fn(&Conversion) -> bool) -> (Key, String) {
        let mut hasher = KeyHasher::new(kind, 1);
        for op in resolved.layers.iter().flat_map(LayerPlan::ops) {
            if let Op::Unpack { archive, conversion } = op
                && wanted(conversion)
            {
                hasher.field("fragment", self.key_of(archive, conversion, &Drops::new()).0);
            }
        }
        hasher.finish()
    }

    /// Paths that two packages hold: they are dropped from the one that the other replaces (Debian policy 7.6.1).
    pub(super) fn package_conflicts(&self, resolved: &Resolved) -> Result<BTreeMap<Digest, Drops>, EngineError> {
        let wanted = |conversion: &Conversion| matches!(conversion, Conversion::Deb { .. });
        self.remembered(self.archives_key("package-conflicts", resolved, wanted), || {
            convert::conflicts(&self.converted(resolved, wanted)?)
        })
    }

    /// Files that several wheels install alike: they are dropped from all but the first.
    pub(super) fn wheel_collisions(&self, resolved: &Resolved) -> Result<BTreeMap<Digest, Drops>, EngineError> {
        let wanted = |conversion: &Conversion| matches!(conversion, Conversion::Wheel { .. });
        self.remembered(self.archives_key("wheel-collisions", resolved, wanted), || {
            let open = |digest: &Digest| self.open(digest);
            convert::collisions(&self.converted(resolved, wanted)?, |path, one, other| {
                let read = |fragment: &Arc<Fragment>| -> Result<(Entry, Vec<u8>), EngineError> {
                    let mut view = View::new(&open);
                    view.apply(&[], std::slice::from_ref(fragment))?;
                    let entry = view.entry(path).expect("the fragment holds the path").clone();
                    Ok((Entry { mtime: 0, ..entry }, view.read(path)?))
                };
                Ok(read(one)? == read(other)?)
            })
        })
    }

    /// What another stage than the one that is being made comes to.
    pub(super) fn lowered(&self, subject: Subject<'_>, stage: StageId) -> Result<Resolved, EngineError> {
        let lock_file = |python: &layers::source::Python<StageId>| self.context.lock_digest(python);
        Ok(layers::lower::lower(subject.plan, stage, subject.lock, subject.platform, &lock_file)?)
    }

    /// Walks another stage than the one that is being made.
    pub(super) fn other_stage<'v>(
        &self,
        subject: Subject<'_>,
        stage: StageId,
        view: &mut View<'v>,
    ) -> Result<Walked, EngineError> {
        self.other_stage_first(subject, stage, view, None)
    }

    /// The same for a stage that cores may be kept for until its first command begins.
    pub(super) fn other_stage_first<'v>(
        &self,
        subject: Subject<'_>,
        stage: StageId,
        view: &mut View<'v>,
        first: Option<First>,
    ) -> Result<Walked, EngineError> {
        let resolved = self.settle(subject, &self.lowered(subject, stage)?)?;
        self.fragments(&[&resolved], None)?;
        self.walk_onto(subject, &resolved, view, Walk::OfOther(first))
    }
}

/// Names the gate's verdict on a stage in which these fragments concern the loader.
pub(super) fn gate_key(
    subject: Subject<'_>,
    resolved: &Resolved,
    base: Option<Digest>,
    linked: Linked,
) -> (Key, String) {
    let mut hasher = KeyHasher::new("gate", gate::VERSION);
    hasher.field("index", INDEX_FORMAT).field("platform", subject.platform);
    hasher.list("allow-missing", resolved.allow_missing.iter());
    // What its layers delete is in no fragment.
    base::key(&mut hasher, base.as_ref());
    hasher.field("fragments", linked);
    hasher.finish()
}

/// An error with the layer that it is about, unless that is said already.
pub(super) fn located(error: EngineError, layer: &LayerPlan) -> EngineError {
    error.located(layer.label(), layer.at())
}
