//! The engine of this process: fragments, then layers, then nothing else.
//!
//! ```text
//! 1. fragments   every archive that a layer needs: from the store, else supplied and converted, all cores at once
//! 2. walk        each stage bottom to top over indexes alone: skeletons, small generated fragments, the library gate
//! 3. assemble    every layer whose key the ledger does not know: concatenated and hashed, all cores at once
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cache::Store;
use layers::encode::{Compression, EPOCH, Entry, Kind, LAYER_FORMAT, LayerWriter};
use layers::lock::Lock;
use layers::lower::{PinnedBase, Resolved};
use layers::oci::Descriptor;
use layers::op::{Archive, Configure, Conversion, LayerPlan, Op};
use layers::source::{Dir, Files, Inline, Link, Owner, TakeFrom, User};
use layers::{DiffId, Digest, ImagePath, Key, KeyHasher, Plan, Platform, StageId};
use serde::{Deserialize, Serialize};

use super::base::BaseImage;
use super::bytecode::Interpreters;
use super::convert::{self, Converted, Drops};
use super::foundation::{Below, Cut, Foundation, Laid, Linked};
use super::fragments::{FragmentMap, unpack_key};
use super::index::{Fragment, INDEX_FORMAT};
use super::made::{Content, Made};
use super::run::{Commands, Ran, Runs};
use super::skeleton::{shared_dirs, skeleton};
use super::spool::Room;
use super::tree::Tree;
use super::view::View;
use super::{EngineError, base, run};
use crate::debian::{effects, gate};
use crate::observe::{Event, Observer};
use crate::parallel::in_parallel;
use crate::pin::{Context, SelectedKind};
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

/// A layer that is wanted.
#[derive(Debug, Clone)]
pub struct LayerJob {
    /// Names its outcome.
    pub key: Key,
    text: String,
    /// One line for people.
    pub label: String,
    pub(super) skeleton: Vec<Entry>,
    pub(super) fragments: Vec<Arc<Fragment>>,
    /// The commands that it needed, in their order.
    pub ran: Vec<Ran>,
    /// Its outcome, where that is known without its fragments.
    made: Option<LayerRecord>,
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
    catalogue_dir: PathBuf,
    compression: Compression,
    /// The fragments that were used, for [`Local::heal`].
    pub(super) used: Mutex<BTreeSet<Digest>>,
    /// The interpreters that make byte-code.
    pub(super) interpreters: Interpreters,
    /// What conversions may hold in memory.
    pub(super) room: Room,
    /// Fragments' indexes that were read: images share most of theirs.
    pub(super) loaded: Mutex<FragmentMap>,
    /// Held by who makes what a key stands for.
    pub(super) making: Mutex<HashMap<Key, Arc<Mutex<()>>>>,
    /// The commands that were run.
    pub(super) runs: Runs<'a>,
}

impl<'a> Local<'a> {
    /// An engine at the beginning of a build.
    pub fn new(given: Given<'a>) -> Local<'a> {
        Local {
            store: given.store,
            observer: given.observer,
            supply: given.supply,
            context: given.context,
            elsewhere: given.elsewhere,
            jobs: given.jobs,
            catalogue_dir: given.catalogue_dir,
            compression: given.compression,
            used: Mutex::default(),
            interpreters: Interpreters::default(),
            room: Room::new(given.store.scratch()),
            loaded: Mutex::default(),
            making: Mutex::default(),
            runs: Runs::new(given.commands),
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

/// Downloads in flight at once: polite to mirrors, and enough to fill a line.
pub(crate) const DOWNLOADS: usize = 8;

impl Local<'_> {
    /// Converts every archive of these stages that the store does not have converted yet.
    pub fn fragments(&self, stages: &[&Resolved]) -> Result<(), EngineError> {
        stages.iter().for_each(|stage| self.interpreters.learn(stage));
        let mut wanted: BTreeMap<Key, (&Archive, &Conversion)> = BTreeMap::new();
        for op in stages.iter().flat_map(|stage| &stage.layers).flat_map(|layer| &layer.ops) {
            if let Op::Unpack { archive, conversion } = op {
                wanted.insert(unpack_key(archive, conversion, &Drops::new()).0, (archive, conversion));
            }
        }
        let mut missing: Vec<(&Archive, &Conversion)> = Vec::new();
        for (key, job) in wanted {
            if self.find_record(&key)?.is_none() {
                missing.push(job);
            }
        }
        // The longest first, so that no core is left with a giant at the end.
        missing.sort_by_key(|(archive, _)| (std::cmp::Reverse(archive.size), archive.digest));
        // Downloads wait for the network and conversions for a core: the former run ahead, and whoever needs a file that
        // is on its way waits for it.
        let failed = AtomicBool::new(false);
        let stop = |error: EngineError| {
            failed.store(true, Ordering::Relaxed);
            error
        };
        std::thread::scope(|scope| {
            let ahead = scope.spawn(|| {
                in_parallel(DOWNLOADS, &missing, |(archive, _)| {
                    if failed.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    self.supply.supply(archive).map(drop).map_err(stop)
                })
            });
            let converted = in_parallel(self.jobs, &missing, |(archive, conversion)| {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.unpack(archive, conversion, &Drops::new()).map(drop).map_err(stop)
            });
            let downloaded = ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            downloaded.and(converted)
        })
    }

    /// Walks a stage over the indexes of its fragments.
    pub fn walk(&self, subject: Subject<'_>, resolved: &Resolved, cut: Option<&Cut>) -> Result<Walked, EngineError> {
        // An image that is nothing but its base looks at nothing in it.
        if let (Some(base @ PinnedBase::Registry { .. }), []) = (&resolved.base, resolved.layers.as_slice()) {
            let base = self.base(subject, base)?;
            return Ok(Walked { base: Some(base), ..Walked::default() });
        }
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        let mut walked = self.walk_onto(subject, resolved, &mut view, cut.map(|cut| cut.at))?;
        let heard = view.heard().filter(|(answers, _)| answers.are_few());
        let (gate, text) = gate_key(subject, resolved, view.linked());
        self.remembered((gate, text), || Ok(gate::check(&view, &resolved.allow_missing, subject.platform)?))?;
        walked.below = heard.map(|(answers, linked)| Below { answers, linked, gate });
        Ok(walked)
    }

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
                label: layer.label.clone(),
                skeleton: Vec::new(),
                fragments: Vec::new(),
                ran: laid.ran,
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
                Err(_) => return Ok(None),
            }
        }
        let (gate, _) = gate_key(subject, resolved, view.linked());
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

    fn base(&self, subject: Subject<'_>, base: &PinnedBase) -> Result<BaseImage, EngineError> {
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
        cut: Option<usize>,
    ) -> Result<Walked, EngineError> {
        self.interpreters.learn(resolved);
        let mut walked = Walked::default();
        if let Some(layout) = &resolved.base {
            let base = self.base(subject, layout)?;
            for fragment in base.fragments(self)? {
                view.apply_base(&fragment);
            }
            walked.base = Some(base);
        }
        let mut drops = self.package_conflicts(resolved)?;
        drops.extend(self.wheel_collisions(resolved)?);
        let mut at = 0;
        while at < resolved.layers.len() {
            let stage = resolved.layers[at].stage;
            let end = at + resolved.layers[at..].iter().take_while(|layer| layer.stage == stage).count();
            let run = &resolved.layers[at..end];
            let unpacked = self.unpacked(run, &drops)?;
            let all: Vec<Arc<Fragment>> = unpacked.values().cloned().collect();
            let together = Together { unpacked, shared: shared_dirs(&all), drops: drops.clone() };
            walked.packages.extend(
                all.iter()
                    .filter_map(|fragment| fragment.package.as_ref())
                    .map(|package| (package.name.clone(), package.version.clone(), package.architecture.clone())),
            );
            for layer in run {
                if cut == Some(walked.jobs.len()) {
                    view.listen();
                }
                self.lay(subject, layer, &together, view, &mut walked).map_err(|error| located(error, layer))?;
            }
            at = end;
        }
        Ok(walked)
    }

    /// Makes a layer and applies it to the view.
    fn lay(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        together: &Together,
        view: &mut View<'_>,
        walked: &mut Walked,
    ) -> Result<(), EngineError> {
        let job = self.layer(subject, layer, together, view, walked)?;
        if let [Op::Run(_)] = layer.ops.as_slice() {
            job.fragments.iter().for_each(|outcome| view.apply_base(outcome));
        } else {
            view.check_parents(&job.skeleton)?;
            view.apply(&job.skeleton, &job.fragments)?;
        }
        walked.jobs.push(job);
        Ok(())
    }

    /// Finds or assembles the layers of all jobs with so many threads; equal keys once.
    pub fn assemble(&self, jobs: &[&LayerJob], threads: usize) -> Result<HashMap<Key, LayerRecord>, EngineError> {
        let mut records = HashMap::new();
        let mut missing: BTreeMap<Key, &LayerJob> = BTreeMap::new();
        for job in jobs {
            if let Some(record) = &job.made {
                records.insert(job.key, record.clone());
                missing.remove(&job.key);
            }
            if records.contains_key(&job.key) || missing.contains_key(&job.key) {
                continue;
            }
            match self.find_layer(&job.key)? {
                Some(record) => {
                    records.insert(job.key, record);
                }
                None => match self.elsewhere.layer(&job.key) {
                    Some(record) if self.elsewhere.holds(&record.digest) => {
                        self.store.keep(&job.key, &job.text, &record)?;
                        records.insert(job.key, record);
                    }
                    _ => {
                        missing.insert(job.key, job);
                    }
                },
            }
        }
        let mut missing: Vec<&LayerJob> = missing.into_values().collect();
        missing.sort_by_key(|job| {
            (std::cmp::Reverse(job.fragments.iter().map(|fragment| fragment.layout.tar_size).sum::<u64>()), job.key)
        });
        let made = Mutex::new(&mut records);
        in_parallel(threads, &missing, |job| {
            // Images that share layers may be at them at the same moment.
            let turn = self.turn(&job.key);
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let record = match self.find_layer(&job.key)? {
                Some(record) => record,
                None => self.assemble_one(job)?,
            };
            made.lock().expect("no thread panics while it holds this").insert(job.key, record);
            Ok::<(), EngineError>(())
        })?;
        Ok(records)
    }

    /// Reads every fragment that was used, and removes those whose bytes have changed since they were made; says how many.
    /// Called when work failed that should not have: done again, it makes them anew.
    pub fn heal(&self) -> Result<usize, EngineError> {
        let used: Vec<Digest> =
            self.used.lock().expect("no thread panics while it holds this").iter().copied().collect();
        let healed = std::sync::atomic::AtomicUsize::new(0);
        in_parallel(self.jobs, &used, |digest| {
            if !self.store.verify(digest)? {
                healed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Ok::<(), EngineError>(())
        })?;
        Ok(healed.into_inner())
    }

    /// The record of a layer whose bytes are still there.
    pub fn find_layer(&self, key: &Key) -> Result<Option<LayerRecord>, EngineError> {
        let Some(bytes) = self.store.find(key)? else { return Ok(None) };
        let Ok(record) = serde_json::from_slice::<LayerRecord>(&bytes) else { return Ok(None) };
        Ok((self.store.has(&record.digest)? == Some(record.size)).then_some(record))
    }

    fn assemble_one(&self, job: &LayerJob) -> Result<LayerRecord, EngineError> {
        self.observer.on(Event::LayerStarted { label: &job.label });
        let mut writer = LayerWriter::new(self.store.writer_unhashed()?, self.compression, &job.skeleton)?;
        for fragment in &job.fragments {
            let Some(bytes) = self.open_here(&fragment.blob)? else {
                return Err(layers::encode::EncodeError::Damaged("it is gone").into());
            };
            writer.fragment(&fragment.layout, &fragment.blob, &mut io::BufReader::with_capacity(256 << 10, bytes))?;
        }
        let (blob, digests) = writer.finish()?;
        blob.finish_as(&digests.digest)?;
        let record = LayerRecord { digest: digests.digest, diff_id: digests.diff_id, size: digests.size };
        self.store.keep(&job.key, &job.text, &record)?;
        self.observer.on(Event::LayerFinished { label: &job.label, digest: record.digest, size: record.size });
        Ok(record)
    }

    pub(super) fn layer(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        together: &Together,
        view: &View<'_>,
        below: &Walked,
    ) -> Result<LayerJob, EngineError> {
        let mut fragments = Vec::with_capacity(layer.ops.len());
        let mut ran = Vec::new();
        let mut plain = Made::default();
        for op in &layer.ops {
            match op {
                Op::Unpack { archive, conversion } => {
                    let none = Drops::new();
                    let drops = together.drops.get(&archive.digest).unwrap_or(&none);
                    let key = unpack_key(archive, conversion, drops).0;
                    let fragment =
                        together.unpacked.get(&key).expect("a run's archives are unpacked before its layers");
                    fragments.push(fragment.clone());
                    ran.extend(self.runs.that_built(&archive.digest));
                }
                Op::Dir(dir) => {
                    plain.commands_dirs = true;
                    plain.push(dir_entry(dir, view)?, Content::None);
                }
                Op::Link(link) => plain.push(link_entry(link, view)?, Content::None),
                Op::Inline(inline) => {
                    let (entry, content) = inline_entry(inline, view)?;
                    plain.push(entry, content);
                }
                Op::Copy(files) => fragments.push(self.copy(files, view)?),
                Op::AddUser(user) => fragments.push(self.add_user(user, view)?),
                Op::Take(take) => {
                    let (fragment, commands) = self.take(subject, take, view)?;
                    fragments.push(fragment);
                    ran.extend(commands);
                }
                Op::Compile(wanted) => fragments.push(self.compile(wanted, view)?),
                Op::Build(_) => unreachable!("`settle` turned it into `Op::Unpack`"),
                Op::Run(step) => {
                    let (fragment, commands) = self.run(subject, layer, step, view, below)?;
                    let (key, text) = run::outcome_key(&fragment);
                    let (label, fragments) = (layer.label.clone(), vec![fragment]);
                    return Ok(LayerJob {
                        key,
                        text,
                        label,
                        skeleton: Vec::new(),
                        fragments,
                        ran: commands,
                        made: None,
                    });
                }
                Op::Configure(configure) => {
                    fragments.push(self.configure(subject.platform, configure, view, below)?);
                }
            }
        }
        if !plain.entries.is_empty() || !plain.dirs.is_empty() {
            let mut hasher = KeyHasher::new("plain", LAYER_FORMAT);
            hasher.field("index", INDEX_FORMAT);
            for dir in &plain.dirs {
                hasher.field("dir", entry_text(dir));
            }
            for (entry, content) in &plain.entries {
                hasher.field("entry", entry_text(entry));
                if let Content::Bytes(bytes) = content {
                    hasher.field("content", Digest::of(bytes));
                }
            }
            let (key, text) = hasher.finish();
            fragments.push(self.kept(key, &text, || Ok(plain))?);
        }
        let skeleton = skeleton(&fragments, &together.shared, view);
        let mut hasher = KeyHasher::new("layer", LAYER_FORMAT);
        if self.compression != Compression::Gzip {
            hasher.field("compression", self.compression);
        }
        for dir in &skeleton {
            hasher.field("dir", entry_text(dir));
        }
        hasher.list("fragment", fragments.iter().map(|fragment| fragment.blob));
        let (key, text) = hasher.finish();
        Ok(LayerJob { key, text, label: layer.label.clone(), skeleton, fragments, ran, made: None })
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
            for op in &layer.ops {
                if let Op::Unpack { archive, conversion } = op {
                    let drops = drops.get(&archive.digest).unwrap_or(&none);
                    let fragment = self.unpack(archive, conversion, drops).map_err(|error| located(error, layer))?;
                    map.insert(unpack_key(archive, conversion, drops).0, fragment);
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
            for op in &layer.ops {
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

    /// Paths that two packages hold: they are dropped from the one that the other replaces (Debian policy 7.6.1).
    fn package_conflicts(&self, resolved: &Resolved) -> Result<BTreeMap<Digest, Drops>, EngineError> {
        let wanted = |conversion: &Conversion| matches!(conversion, Conversion::Deb { .. });
        self.remembered(archives_key("package-conflicts", resolved, wanted), || {
            convert::conflicts(&self.converted(resolved, wanted)?)
        })
    }

    /// Files that several wheels install alike: they are dropped from all but the first.
    fn wheel_collisions(&self, resolved: &Resolved) -> Result<BTreeMap<Digest, Drops>, EngineError> {
        let wanted = |conversion: &Conversion| matches!(conversion, Conversion::Wheel { .. });
        self.remembered(archives_key("wheel-collisions", resolved, wanted), || {
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

    fn copy(&self, files: &Files, view: &View<'_>) -> Result<Arc<Fragment>, EngineError> {
        let selection = self.context.select(files)?;
        // One file goes to the path itself, a folder's content goes below it.
        let to = view.through_links(&files.to)?;
        let mut hasher = KeyHasher::new("copy", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("selection", selection.digest);
        hasher.field("to", &to);
        hasher.field("mode", files.mode.map_or("kept".into(), |mode| format!("{mode:o}")));
        hasher.field("dir-mode", format!("{:o}", files.dir_mode));
        hasher.field("owner", format!("{}:{}", files.owner.uid, files.owner.gid));
        let (key, text) = hasher.finish();
        self.kept(key, &text, || {
            let mut made = Made::default();
            for selected in &selection.entries {
                let path = match to.join(&selected.path) {
                    Ok(path) => path,
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidInput, error.to_string()).into()),
                };
                let entry = |kind, mode| Entry {
                    uid: files.owner.uid,
                    gid: files.owner.gid,
                    ..Entry::new(path.clone(), kind, mode, EPOCH)
                };
                match &selected.kind {
                    SelectedKind::Dir => made.push(entry(Kind::Dir, files.dir_mode), Content::None),
                    SelectedKind::Symlink { target } => {
                        made.push(entry(Kind::Symlink { target: target.clone() }, 0o777), Content::None);
                    }
                    SelectedKind::File { size, executable, digest } => {
                        let mode = files.mode.unwrap_or(if *executable { 0o755 } else { 0o644 });
                        let (source, digest) = (selected.source.clone(), *digest);
                        let context = self.context;
                        let open = move || -> Result<Box<dyn Read>, EngineError> {
                            let file = context.open_file(&source)?;
                            Ok(Box::new(Verified::new(file, source, digest)))
                        };
                        made.push(entry(Kind::File { size: *size }, mode), Content::Open(Box::new(open)));
                    }
                }
            }
            Ok(made)
        })
    }

    fn add_user(&self, user: &User, view: &View<'_>) -> Result<Arc<Fragment>, EngineError> {
        let mut hasher = KeyHasher::new("user", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("version", format!("{:?}", effects::versions([])));
        hasher.field("user", serde_json::to_string(user).expect("plain strings and numbers"));
        for name in ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"] {
            let path = ImagePath::new(name).expect("a normal path");
            if let Some(entry) = view.entry(&path) {
                hasher.field("below", entry_text(entry));
                hasher.field("content", Digest::of(&view.read(&path)?));
            }
        }
        let (key, text) = hasher.finish();
        self.kept(key, &text, || Ok(generated(effects::add_user(view, user, EPOCH)?)))
    }

    fn configure(
        &self,
        platform: Platform,
        configure: &Configure,
        view: &View<'_>,
        below: &Walked,
    ) -> Result<Arc<Fragment>, EngineError> {
        let mut hasher = KeyHasher::new("configure", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("platform", platform);
        let names: Vec<&str> = configure.packages.iter().map(|archive| package_name(&archive.name)).collect();
        hasher.field("effects", format!("{:?}", effects::versions(names)));
        hasher.field("written", serde_json::to_string(&configure.effects).expect("plain strings and numbers"));
        hasher.field("ignored", serde_json::to_string(&configure.ignore_scripts).expect("plain strings"));
        if let Some(base) = &below.base {
            hasher.field("base", base.manifest);
        }
        hasher.list("below", below.jobs.iter().map(|job| job.key));
        let (key, text) = hasher.finish();
        self.kept(key, &text, || {
            let mut packages = Vec::new();
            for archive in &configure.packages {
                let conversion =
                    Conversion::Deb { exclude: configure.exclude.get(&archive.digest).cloned().unwrap_or_default() };
                let fragment = self.unpack(archive, &conversion, &Drops::new())?;
                packages.extend(fragment.package.as_ref().map(|package| effects::Package {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    architecture: package.architecture.clone(),
                    scripts: package.scripts.clone(),
                }));
            }
            let entries = effects::configure(
                &effects::Configure {
                    packages: &packages,
                    extra: &configure.effects,
                    ignored: &configure.ignore_scripts,
                    platform,
                    mtime: EPOCH,
                },
                view,
            )?;
            Ok(generated(entries))
        })
    }

    /// Walks another stage than the one that is being made.
    pub(super) fn other_stage<'v>(
        &self,
        subject: Subject<'_>,
        stage: StageId,
        view: &mut View<'v>,
    ) -> Result<Walked, EngineError> {
        let lock_file = |python: &layers::source::Python<StageId>| self.context.lock_digest(python);
        let resolved = layers::lower::lower(subject.plan, stage, subject.lock, subject.platform, &lock_file)?;
        let resolved = self.settle(subject, &resolved)?;
        self.fragments(&[&resolved])?;
        self.walk_onto(subject, &resolved, view, None)
    }

    fn take(
        &self,
        subject: Subject<'_>,
        take: &TakeFrom<StageId>,
        view: &View<'_>,
    ) -> Result<(Arc<Fragment>, Vec<Ran>), EngineError> {
        let subject = Subject { platform: run::platform_of(take, subject.platform), ..subject };
        let open = |digest: &Digest| self.open(digest);
        let mut other = View::new(&open);
        let walked = self.other_stage(subject, take.stage, &mut other)?;
        let from = other.through_links(&take.path)?;
        let to = view.through_links(&take.to)?;
        let mut hasher = KeyHasher::new("take", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.list("stage", walked.jobs.iter().map(|job| job.key));
        if let Some(base) = &walked.base {
            hasher.field("base", base.manifest);
        }
        hasher.field("from", &from);
        hasher.field("to", &to);
        if let Some(owner) = take.owner {
            hasher.field("owner", format!("{}:{}", owner.uid, owner.gid));
        }
        let (key, text) = hasher.finish();
        let fragment = self.kept(key, &text, || taken(&other, &from, &to, take.owner))?;
        Ok((fragment, walked.jobs.into_iter().flat_map(|job| job.ran).collect()))
    }
}

/// Names the gate's verdict on a stage in which these fragments concern the loader.
fn gate_key(subject: Subject<'_>, resolved: &Resolved, linked: Linked) -> (Key, String) {
    let mut hasher = KeyHasher::new("gate", gate::VERSION);
    hasher.field("index", INDEX_FORMAT).field("platform", subject.platform);
    hasher.list("allow-missing", resolved.allow_missing.iter());
    hasher.field("fragments", linked);
    hasher.finish()
}

/// Names what follows from the archives of one kind of conversion alone, in their order.
fn archives_key(kind: &str, resolved: &Resolved, wanted: impl Fn(&Conversion) -> bool) -> (Key, String) {
    let mut hasher = KeyHasher::new(kind, 1);
    for op in resolved.layers.iter().flat_map(|layer| &layer.ops) {
        if let Op::Unpack { archive, conversion } = op
            && wanted(conversion)
        {
            hasher.field("fragment", unpack_key(archive, conversion, &Drops::new()).0.0);
        }
    }
    hasher.finish()
}

/// Everything about an entry that reaches the tar.
fn entry_text(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("plain strings and numbers")
}

/// The package of a .deb's file name (`name_version_architecture.deb`).
fn package_name(file: &str) -> &str {
    file.split('_').next().unwrap_or(file)
}

pub(super) fn located(error: EngineError, layer: &LayerPlan) -> EngineError {
    match error {
        located @ EngineError::At { .. } => located,
        other => EngineError::At { label: layer.label.clone(), at: layer.at.clone(), source: Box::new(other) },
    }
}

fn dir_entry(dir: &Dir, view: &View<'_>) -> Result<Entry, EngineError> {
    let path = view.through_links(&dir.path)?;
    Ok(Entry { uid: dir.owner.uid, gid: dir.owner.gid, ..Entry::new(path, Kind::Dir, dir.mode, EPOCH) })
}

fn link_entry(link: &Link, view: &View<'_>) -> Result<Entry, EngineError> {
    let path = view.through_links(&link.path)?;
    Ok(Entry::new(path, Kind::Symlink { target: link.target.clone() }, 0o777, EPOCH))
}

fn inline_entry(inline: &Inline, view: &View<'_>) -> Result<(Entry, Content<'static>), EngineError> {
    let path = view.through_links(&inline.path)?;
    let bytes = inline.text.clone().into_bytes();
    let kind = Kind::File { size: bytes.len() as u64 };
    let entry = Entry { uid: inline.owner.uid, gid: inline.owner.gid, ..Entry::new(path, kind, inline.mode, EPOCH) };
    Ok((entry, Content::Bytes(bytes)))
}

fn generated(entries: Vec<(Entry, Option<Vec<u8>>)>) -> Made<'static> {
    let mut made = Made { commands_dirs: true, ..Made::default() };
    for (entry, content) in entries {
        made.push(entry, content.map_or(Content::None, Content::Bytes));
    }
    made
}

/// The entries at and below `from`, moved to `to`.
fn taken<'v>(
    view: &'v View<'_>,
    from: &ImagePath,
    to: &ImagePath,
    owner: Option<Owner>,
) -> Result<Made<'v>, EngineError> {
    let mut made = Made::default();
    let moved = |path: &ImagePath| {
        let rest = path.as_str().strip_prefix(from.as_str()).unwrap_or_default().trim_start_matches('/');
        to.join(rest).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
    };
    let mut found = false;
    for entry in view.below(from) {
        found = true;
        let path = moved(&entry.path)?;
        let mut copy = Entry { path, ..entry.clone() };
        if let Some(owner) = owner {
            (copy.uid, copy.gid) = (owner.uid, owner.gid);
        }
        match &entry.kind {
            Kind::File { .. } => {
                let source = entry.path.clone();
                let open = move || -> Result<Box<dyn Read + 'v>, EngineError> { Ok(view.open(&source)?) };
                made.push(copy, Content::Open(Box::new(open)));
            }
            Kind::Hardlink { target } if target.starts_with(from) && view.entry(target).is_some() => {
                copy.kind = Kind::Hardlink { target: moved(target)? };
                made.push(copy, Content::None);
            }
            Kind::Hardlink { .. } => {
                // Its first name stays behind: the content comes along.
                let bytes = view.read(&entry.path)?;
                copy.kind = Kind::File { size: bytes.len() as u64 };
                made.push(copy, Content::Bytes(bytes));
            }
            _ => made.push(copy, Content::None),
        }
    }
    if found { Ok(made) } else { Err(EngineError::NothingToTake { path: from.clone() }) }
}

/// Reads a file of the context and compares it with what was pinned.
struct Verified<R> {
    inner: R,
    path: String,
    expected: Digest,
    hasher: sha2::Sha256,
}

impl<R: Read> Verified<R> {
    fn new(inner: R, path: String, expected: Digest) -> Verified<R> {
        Verified { inner, path, expected, hasher: sha2::Digest::new() }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        if count > 0 {
            sha2::Digest::update(&mut self.hasher, &out[..count]);
        } else if !out.is_empty() {
            let found: [u8; 32] = sha2::Digest::finalize(self.hasher.clone()).into();
            if Digest::from_bytes(found) != self.expected {
                let error = EngineError::Changed { path: self.path.clone() };
                return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
            }
        }
        Ok(count)
    }
}
