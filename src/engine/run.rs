//! Commands of build stages: a stage becomes a folder, the sandbox runs the command in it, and what that changed becomes
//! a fragment.
//!
//! ```text
//! view of the stage ─▶ root (a folder, never written to)      ┐
//! inputs            ─▶ folders, bound read-only               ├─▶ sandbox ─▶ changed, removed ─▶ fragment ─▶ view above
//! caches            ─▶ folders of the cache, bound writable   ┘
//! ```
//!
//! A command is asked for by what it declares: its words, its inputs' content and that of the stage below. What stands on
//! it is asked for by what it *made*: a command that is run again and makes the same ends the work there. Nothing is
//! remembered of one that failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use cache::Store;
use layers::encode::{EPOCH, LAYER_FORMAT};
use layers::op::{LayerPlan, Op, Step};
use layers::source::TakeFrom;
use layers::{Digest, ImagePath, Key, KeyHasher, Network, Platform, Run, StageId, StageStep};
use serde::{Deserialize, Serialize};

use super::index::{Fragment, INDEX_FORMAT};
use super::local::{LayerJob, Local, Subject, Together, Walked};
use super::log::Log;
use super::view::View;
use super::{EngineError, outcome, root};
use crate::observe::Event;
use crate::sandbox::{self, Access, Bind, Level, SandboxError, Secret};

/// Part of every key of what a command made: raised whenever the same command would find another world.
pub const VERSION: u32 = 1;

/// The variables that every command has; its own come on top.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("HOME", "/tmp"),
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TZ", "UTC"),
];

/// The platform that a stage is made for when something is taken from it for an image of `platform`.
pub fn platform_of(take: &TakeFrom<StageId>, platform: Platform) -> Platform {
    if take.portable { Platform::native().unwrap_or(platform) } else { platform }
}

/// How often a command is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Repeat {
    /// Once, and not at all where its outcome is known.
    #[default]
    Never,
    /// Twice whatever is known; both outcomes must be equal.
    Compare,
}

/// How this build runs commands.
#[derive(Debug, Default)]
pub struct Commands {
    /// The least that they must be kept apart by; also an outcome that is known must be of that level or a better one.
    pub demanded: Option<Level>,
    /// What secrets hold, by name.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Whether outcomes are compared.
    pub repeat: Repeat,
    chosen: OnceLock<Result<Level, SandboxError>>,
}

impl Commands {
    /// Commands that are kept apart by `demanded` at the least.
    pub fn new(demanded: Option<Level>, secrets: BTreeMap<String, Vec<u8>>, repeat: Repeat) -> Commands {
        Commands { demanded, secrets, repeat, chosen: OnceLock::new() }
    }

    /// Whether what was made in a sandbox of this level is good enough.
    pub fn accepts(&self, level: Level) -> bool {
        self.demanded.is_none_or(|demanded| level <= demanded)
    }

    /// The best level of this machine; tried out once.
    fn level(&self, scratch: &Path) -> Result<Level, SandboxError> {
        self.chosen.get_or_init(|| sandbox::choose(&sandbox::offers(scratch, None), self.demanded)).clone()
    }
}

/// A stage as a folder, once somebody has written it.
type Slot = Arc<Mutex<Option<PathBuf>>>;

/// The commands of one build.
#[derive(Debug)]
pub struct Runs<'a> {
    pub(super) commands: &'a Commands,
    /// Those that were compared: an outcome that two images need is compared once.
    compared: Mutex<BTreeSet<Key>>,
    /// Stages as folders, by their content.
    roots: Mutex<BTreeMap<Digest, Slot>>,
    /// What was run for archives that were built here.
    built: Mutex<BTreeMap<Digest, Vec<Ran>>>,
}

impl<'a> Runs<'a> {
    /// None yet.
    pub fn new(commands: &'a Commands) -> Runs<'a> {
        Runs { commands, compared: Mutex::default(), roots: Mutex::default(), built: Mutex::default() }
    }
}

impl Runs<'_> {
    /// Remembers what was run for an archive.
    pub(super) fn built(&self, archive: Digest, ran: Vec<Ran>) {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).insert(archive, ran);
    }

    /// What was run for an archive; nothing where it was not built here.
    pub(super) fn that_built(&self, archive: &Digest) -> Vec<Ran> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).get(archive).cloned().unwrap_or_default()
    }
}

/// A command that was run, as records and metadata tell of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ran {
    /// One line about it.
    pub label: String,
    /// The platform of its stage.
    pub platform: Platform,
    /// How it was kept apart.
    pub sandbox: Level,
    /// Whether another run can be expected to make the same: it had no network.
    pub reproducible: bool,
    /// What it made: entries and their content.
    pub outcome: Digest,
}

impl Local<'_> {
    /// What a command makes of the stage below: a fragment that lies over it. Tells of the commands that it needed, itself
    /// last.
    pub(super) fn run(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        step: &Step,
        view: &View<'_>,
        below: &Walked,
    ) -> Result<(Arc<Fragment>, Vec<Ran>), EngineError> {
        let inputs: Vec<LayerJob> = step
            .inputs
            .iter()
            .map(|input| self.input(subject, layer, &input.op))
            .collect::<Result<_, EngineError>>()?;
        let mut ran: Vec<Ran> = inputs.iter().flat_map(|input| input.ran.clone()).collect();
        let root_key = root_key(below);
        let (key, text) = run_key(subject.platform, step, &root_key, &inputs);
        let record = {
            let mut hasher = KeyHasher::new("ran", VERSION);
            hasher.field("run", key.0);
            hasher.finish()
        };
        let find = || -> Result<Option<(Arc<Fragment>, Ran)>, EngineError> {
            let done = self.runs.compared.lock().unwrap_or_else(PoisonError::into_inner).contains(&key);
            if self.runs.commands.repeat == Repeat::Compare && !done {
                return Ok(None);
            }
            let known = self.store.find(&record.0)?.and_then(|bytes| serde_json::from_slice::<Ran>(&bytes).ok());
            match known.filter(|known| self.runs.commands.accepts(known.sandbox)) {
                // The same command may be known by another name.
                Some(known) => {
                    let ran = Ran { label: layer.label.clone(), ..known };
                    Ok(self.find_fragment(&key)?.map(|fragment| (fragment, ran)))
                }
                None => Ok(None),
            }
        };
        let (fragment, last) = match find()? {
            Some(found) => found,
            None => {
                let turn = self.turn(&key);
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                let _among_builders = self.store.lock_build(&key)?;
                match find()? {
                    Some(found) => found,
                    None => {
                        let job = Job { subject, label: &layer.label, step, inputs: &inputs, key, root_key, view };
                        let (fragment, level) = self.execute(&job, &text)?;
                        let ran = Ran {
                            label: layer.label.clone(),
                            platform: subject.platform,
                            sandbox: level,
                            reproducible: step.run.network == Network::None,
                            outcome: contents(&[], std::slice::from_ref(&fragment)),
                        };
                        self.store.keep(&record.0, &record.1, &ran)?;
                        self.runs.compared.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
                        (fragment, ran)
                    }
                }
            }
        };
        ran.push(last);
        Ok((fragment, ran))
    }

    /// Writes a stage as the folder `to`; of a command what it finds, with its inputs. Gives the environment of commands there
    /// and where the next one starts.
    pub fn lay_out(
        &self,
        subject: Subject<'_>,
        stage: StageId,
        to: &Path,
    ) -> Result<(Vec<(String, String)>, PathBuf), EngineError> {
        let lock_file = |python: &layers::source::Python<StageId>| self.context.lock_digest(python);
        let planned = &subject.plan.stages[stage.0].step;
        let below = match planned {
            StageStep::Run { below, .. } => *below,
            _ => stage,
        };
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        self.other_stage(subject, below, &mut view)?;
        root::write(&view, to, self.jobs)?;
        let StageStep::Run { run, .. } = planned else {
            let all = ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            return Ok((all.collect(), "/".into()));
        };
        let resolved = layers::lower::lower(subject.plan, stage, subject.lock, subject.platform, &lock_file)?;
        if let Some(layer) = resolved.layers.last()
            && let [Op::Run(step)] = layer.ops.as_slice()
        {
            for input in &step.inputs {
                let job = self.input(subject, layer, &input.op)?;
                // In the stage itself, so that a rename is all that is left.
                let folder = to.join(".imgbuild-input");
                self.write_input(&job, &folder)?;
                let target = to.join(input.path.relative());
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent)?;
                }
                sandbox::remove(&target)?;
                fs::rename(folder.join(input.path.relative()), target)?;
                sandbox::remove(&folder)?;
            }
        }
        Ok((environment(run), run.workdir.as_ref().map_or("/", ImagePath::as_str).into()))
    }

    /// An input as a layer on nothing.
    fn input(&self, subject: Subject<'_>, layer: &LayerPlan, op: &Op) -> Result<LayerJob, EngineError> {
        let plan = LayerPlan { ops: vec![op.clone()], ..layer.clone() };
        let open = |digest: &Digest| self.open(digest);
        let unpacked = self.unpacked(std::slice::from_ref(&plan), &BTreeMap::new())?;
        let together = Together { unpacked, ..Together::default() };
        self.layer(subject, &plan, &together, &View::new(&open), &Walked::default())
    }

    /// Writes an input as the new folder `to`.
    fn write_input(&self, input: &LayerJob, to: &Path) -> Result<(), EngineError> {
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        view.apply(&input.skeleton, &input.fragments)?;
        root::write(&view, to, self.jobs)
    }

    /// Runs a command and keeps what it made.
    fn execute(&self, job: &Job<'_>, text: &str) -> Result<(Arc<Fragment>, Level), EngineError> {
        if Platform::native().is_some_and(|native| native != job.subject.platform) {
            return Err(EngineError::ForeignCommand { platform: job.subject.platform });
        }
        let level = self.runs.commands.level(&self.store.scratch())?;
        let root = self.root(job)?;
        let first = self.attempt(job, level, &root)?;
        if self.runs.commands.repeat == Repeat::Compare {
            let second = self.attempt(job, level, &root)?;
            let open = |digest: &Digest| self.open(digest);
            if let Some(tree) = outcome::differences(&first, &second, &open)? {
                return Err(EngineError::NotDeterministic { tree });
            }
        }
        Ok((self.keep_fragment(&job.key, text, first)?, level))
    }

    /// The stage below as a folder that holds its root. It is kept: an edited input is no reason to write thousands of files
    /// again. Nothing is seen of it before it is whole, and no command can write to it.
    fn root(&self, job: &Job<'_>) -> Result<PathBuf, EngineError> {
        let slot =
            self.runs.roots.lock().unwrap_or_else(PoisonError::into_inner).entry(job.root_key).or_default().clone();
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*slot {
            return Ok(known.clone());
        }
        // Owners carry a meaning in a user namespace: each user has folders of its own.
        let user = rustix::process::geteuid().as_raw();
        let kept = self.store.command_root(&Digest::of(format!("{} {user}", job.root_key).as_bytes()))?;
        match fs::File::open(&kept) {
            // The time of the last use, for `gc`.
            Ok(folder) => drop(folder.set_modified(SystemTime::now())),
            Err(_) => {
                let scratch = Scratch::new(self.store)?;
                root::write(job.view, &scratch.path().join("root"), self.jobs)?;
                // Another builder may have been faster; its folder is the same.
                if let Err(error) = fs::rename(scratch.path(), &kept)
                    && !kept.is_dir()
                {
                    return Err(error.into());
                }
            }
        }
        Ok(slot.insert(kept).clone())
    }

    /// One run: what it made, as a fragment that nothing knows of yet.
    fn attempt(&self, job: &Job<'_>, level: Level, root: &Path) -> Result<Fragment, EngineError> {
        let run = &job.step.run;
        let scratch = Scratch::new(self.store)?;
        let work = scratch.path().join("work");
        fs::create_dir(&work)?;
        let mut binds = Vec::new();
        for (number, (input, declared)) in job.inputs.iter().zip(&job.step.inputs).enumerate() {
            let folder = scratch.path().join(format!("input-{number}"));
            self.write_input(input, &folder)?;
            let target = &declared.path;
            let source = folder.join(target.relative());
            // Files that nothing matched: the folder is there all the same.
            if fs::symlink_metadata(&source).is_err() {
                fs::create_dir_all(&source)?;
            }
            binds.push(Bind { source, target: target.as_str().into(), access: Access::Read });
        }
        for path in &run.caches {
            let source = self.store.command_cache(&cache_name(job.subject.platform, path))?;
            binds.push(Bind { source, target: path.as_str().into(), access: Access::Write });
        }
        let mut secrets = Vec::new();
        for name in &run.secrets {
            let bytes =
                self.runs.commands.secrets.get(name).ok_or_else(|| EngineError::NoSecret { name: name.clone() })?;
            secrets.push(Secret { name: name.clone(), bytes: bytes.clone() });
        }
        let words: Vec<&[u8]> = secrets.iter().map(|secret| secret.bytes.as_slice()).collect();
        let mut log = Log::create(self.store.command_log(&job.key)?, &words, |line| {
            self.observer.on(Event::StepOutput { label: job.label, line });
        })?;
        let step = sandbox::Step {
            root: &root.join("root"),
            work: &work,
            binds,
            secrets: secrets.clone(),
            argv: run.argv.clone(),
            env: environment(run),
            workdir: run.workdir.as_ref().map_or("/", ImagePath::as_str).into(),
            uid: sandbox::ID,
            gid: sandbox::ID,
            network: match run.network {
                Network::None => sandbox::Network::None,
                Network::Open => sandbox::Network::Open,
            },
            timeout: run.timeout_seconds.map(Duration::from_secs),
            limits: sandbox::Limits::default(),
            helper: None,
        };
        self.observer.on(Event::StepStarted { label: job.label });
        let done = sandbox::run(&step, level, &mut |bytes| log.write(bytes), &|| false);
        let told = log.finish()?;
        let done = done.map_err(|why| EngineError::Command { why, last: told.last, log: told.path })?;
        let made = outcome::made(&done.changed, &done.removed, job.view, &secrets)?;
        let fragment = made.write(self.store, &self.room)?;
        self.observer.on(Event::StepFinished { label: job.label });
        Ok(fragment)
    }
}

/// A command that is about to be run.
struct Job<'a> {
    subject: Subject<'a>,
    label: &'a str,
    step: &'a Step,
    inputs: &'a [LayerJob],
    key: Key,
    root_key: Digest,
    view: &'a View<'a>,
}

/// The whole environment of a command, sorted by name.
fn environment(run: &Run<StageId>) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, String> =
        ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    all.insert("SOURCE_DATE_EPOCH".into(), EPOCH.to_string());
    all.extend(run.env.clone());
    all.into_iter().collect()
}

/// Names a folder that commands keep: by its path and the platform, so that stages with the same habits share it.
fn cache_name(platform: Platform, path: &ImagePath) -> Digest {
    Digest::of(format!("{platform} {path}").as_bytes())
}

/// Names what layers hold, however they are compressed.
fn contents(skeleton: &[layers::encode::Entry], fragments: &[Arc<Fragment>]) -> Digest {
    let mut hasher = KeyHasher::new("contents", 1);
    let text = |entry: &layers::encode::Entry| serde_json::to_string(entry).expect("plain strings and numbers");
    hasher.list("dir", skeleton.iter().map(text));
    for fragment in fragments {
        hasher.field("fragment", fragment.blob);
        hasher.list("dir", fragment.dirs.iter().map(text));
        hasher.list("without", fragment.whiteouts.iter());
    }
    hasher.finish().0.0
}

/// Names the content of a stage.
fn root_key(below: &Walked) -> Digest {
    let mut hasher = KeyHasher::new("root", 1);
    if let Some(base) = &below.base {
        hasher.field("base", base.manifest);
    }
    hasher.field("version", root::VERSION);
    hasher.list("layer", below.jobs.iter().map(|job| contents(&job.skeleton, &job.fragments)));
    hasher.finish().0.0
}

fn run_key(platform: Platform, step: &Step, root: &Digest, inputs: &[LayerJob]) -> (Key, String) {
    let mut hasher = KeyHasher::new("run", LAYER_FORMAT);
    hasher.field("index", INDEX_FORMAT).field("version", VERSION).field("platform", platform);
    hasher.field("command", step.run.to_json());
    hasher.field("stage", root);
    let declared = step.inputs.iter().zip(inputs);
    hasher.list(
        "input",
        declared.map(|(input, job)| format!("{} {}", input.path, contents(&job.skeleton, &job.fragments))),
    );
    hasher.finish()
}

/// The key of the layer that a command's outcome would be: by what it made.
pub(super) fn outcome_key(fragment: &Arc<Fragment>) -> (Key, String) {
    let mut hasher = KeyHasher::new("outcome", LAYER_FORMAT);
    hasher.field("contents", contents(&[], std::slice::from_ref(fragment)));
    hasher.finish()
}

/// A folder in the cache's file system that goes with its owner, whatever modes a command left in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    fn new(store: &Store) -> Result<Scratch, EngineError> {
        Ok(Scratch(tempfile::Builder::new().prefix("run-").tempdir_in(store.scratch())?.keep()))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now, `cache gc` removes.
        let _ = sandbox::remove(&self.0);
    }
}
