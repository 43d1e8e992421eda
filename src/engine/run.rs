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
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use cache::Store;
use layers::encode::{EPOCH, LAYER_FORMAT};
use layers::op::{LayerPlan, Op, Step};
use layers::source::TakeFrom;
use layers::{Digest, ImagePath, Key, KeyHasher, Network, Platform, Run, StageId, StageStep, command};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use serde::{Deserialize, Serialize};

use super::index::{Fragment, INDEX_FORMAT};
use super::local::{LayerJob, Local, Subject, Together, Walked};
use super::log::Log;
use super::view::View;
use super::{EngineError, base, outcome, root};
use crate::failpoint::Kept;
use crate::observe::Event;
use crate::parallel::{self, First};
use crate::sandbox::{self, Access, Bind, Level, SandboxError, Secret};

/// Part of every key of what a command made: raised whenever the same command would find another world.
pub const VERSION: u32 = 2;

/// The variables that every command has; its own come on top.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("HOME", "/tmp"),
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TZ", "UTC"),
];

/// Where a command finds the SSH agent's socket.
const AGENT: &str = "/run/ssh-agent";

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
    /// The socket of the SSH agent that they may ask.
    pub agent: Option<PathBuf>,
    /// Whether outcomes are compared.
    pub repeat: Repeat,
    chosen: OnceLock<Result<Level, SandboxError>>,
    /// Whether programs of the other platform are emulated in that sandbox: there is only one.
    emulated: OnceLock<Result<(), String>>,
}

impl Commands {
    /// Commands that are kept apart by `demanded` at the least.
    pub fn new(demanded: Option<Level>, secrets: BTreeMap<String, Vec<u8>>, repeat: Repeat) -> Commands {
        Commands { demanded, secrets, repeat, ..Commands::default() }
    }

    /// Whether what was made in a sandbox of this level is good enough.
    pub fn accepts(&self, level: Level) -> bool {
        self.demanded.is_none_or(|demanded| level <= demanded)
    }

    /// The level that commands ran on, if one did.
    pub(super) fn chosen(&self) -> Option<Level> {
        self.chosen.get()?.as_ref().ok().copied()
    }

    /// The best level of this machine; tried out once, before the first command.
    fn level(&self, store: &Store) -> Result<Level, SandboxError> {
        let choose = || {
            // Room for what comes; without it, the command says so.
            let _ = sweep(store);
            sandbox::choose(&sandbox::offers(&store.scratch(), None), self.demanded)
        };
        self.chosen.get_or_init(choose).clone()
    }

    /// Whether the machine emulates programs of a platform in this sandbox; tried out once.
    fn emulates(&self, store: &Store, level: Level, platform: Platform) -> Result<(), EngineError> {
        let lacks = self.emulated.get_or_init(|| sandbox::emulates(level, platform, &store.scratch(), None));
        lacks.clone().map_err(|lacks| EngineError::NotEmulated { platform, lacks })
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
        parallel::lock(&self.built).insert(archive, ran);
    }

    /// What was run for an archive; nothing where it was not built here.
    pub(super) fn that_built(&self, archive: &Digest) -> Vec<Ran> {
        parallel::lock(&self.built).get(archive).cloned().unwrap_or_default()
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
    /// Whether its programs were another machine's, and emulated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emulated: bool,
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
            .map(|input| {
                let platform = input.platform.unwrap_or(subject.platform);
                self.input(Subject { platform, ..subject }, layer, &input.op)
            })
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
            let done = parallel::lock(&self.runs.compared).contains(&key);
            if self.runs.commands.repeat == Repeat::Compare && !done {
                return Ok(None);
            }
            let known = self.store.find(&record.0)?.and_then(|bytes| serde_json::from_slice::<Ran>(&bytes).ok());
            match known.filter(|known| self.runs.commands.accepts(known.sandbox)) {
                // The same command may be known by another name.
                Some(known) => {
                    let ran = Ran { label: layer.label(), ..known };
                    Ok(self.find_fragment(&key)?.map(|fragment| (fragment, ran)))
                }
                None => Ok(None),
            }
        };
        let (fragment, last) = match find()? {
            Some(found) => found,
            None => {
                self.may_make()?;
                // Nothing is kept for who has to wait until somebody else has run it.
                let first = parallel::lock(&below.first).take().map(First::again);
                let turn = self.turn(&key);
                let _turn = parallel::lock(&turn);
                let _among_builders = self.store.lock_run(&key)?;
                *parallel::lock(&below.first) = first.map(|again| again());
                match find()? {
                    Some(found) => found,
                    None => {
                        let label = &layer.label();
                        let first = &below.first;
                        let job = Job { subject, label, step, inputs: &inputs, key, root_key, view, first };
                        let done = self.execute(&job, &text).inspect_err(|_| self.course.give_up(key));
                        let (fragment, level) = done?;
                        let ran = Ran {
                            label: label.clone(),
                            platform: subject.platform,
                            sandbox: level,
                            emulated: is_foreign(subject.platform),
                            reproducible: step.run.network == Network::None,
                            outcome: contents(&[], std::slice::from_ref(&fragment)),
                        };
                        self.store.keep(&record.0, &record.1, &ran)?;
                        parallel::lock(&self.runs.compared).insert(key);
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
        let planned = &subject.plan.stages[stage.0].step;
        let below = match planned {
            StageStep::Run { below, .. } => *below,
            _ => stage,
        };
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        self.other_stage(subject, below, &mut view)?;
        root::write(&view, to, self.jobs, &self.cores)?;
        let StageStep::Run { run, .. } = planned else {
            let all = ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            return Ok((all.collect(), "/".into()));
        };
        let resolved = self.lowered(subject, stage)?;
        if let Some(layer) = resolved.layers.last()
            && let Some(step) = layer.command()
        {
            for input in &step.inputs {
                sandbox::check_direct(to, Path::new(input.path.as_str()))?;
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
        let plan = layer.with(layer.label(), op.clone());
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
        root::write(&view, to, self.jobs, &self.cores)
    }

    /// Runs a command and keeps what it made.
    fn execute(&self, job: &Job<'_>, text: &str) -> Result<(Arc<Fragment>, Level), EngineError> {
        let (run, platform) = (&job.step.run, job.subject.platform);
        if is_foreign(platform) && !run.emulated {
            return Err(EngineError::ForeignCommand { platform });
        }
        let level = self.runs.commands.level(self.store)?;
        if is_foreign(platform) {
            self.runs.commands.emulates(self.store, level, platform)?;
        }
        if self.course.has_given_up(&job.key) {
            return Err(SandboxError::Stopped.into());
        }
        let root = self.root(job)?;
        // All that others waited for is done, but the command itself.
        drop(parallel::lock(job.first).take());
        let began = Instant::now();
        let first = self.attempt(job, level, &root)?;
        let (took, of) = took_key(platform, run);
        self.store.keep(&took, &of, &began.elapsed().as_secs_f64())?;
        if self.runs.commands.repeat == Repeat::Compare {
            let second = self.attempt(job, level, &root)?;
            let open = |digest: &Digest| self.open(digest);
            // What is known already may come from another machine or sandbox.
            let known = self.find_fragment(&job.key)?;
            for other in std::iter::once(&second).chain(known.as_deref()) {
                if let Some(tree) = outcome::differences(&first, other, &open)? {
                    return Err(EngineError::NotDeterministic { tree });
                }
            }
        }
        Ok((self.keep_fragment(&job.key, text, first)?, level))
    }

    /// The stage below as a folder that holds its root. It is kept: an edited input is no reason to write thousands of files
    /// again. Nothing is seen of it before it is whole, and no command can write to it.
    fn root(&self, job: &Job<'_>) -> Result<PathBuf, EngineError> {
        let slot = parallel::lock(&self.runs.roots).entry(job.root_key).or_default().clone();
        let mut slot = parallel::lock(&slot);
        if let Some(known) = &*slot {
            return Ok(known.clone());
        }
        // Owners carry a meaning in a user namespace: each user has folders of its own.
        let user = rustix::process::geteuid().as_raw();
        // Nobody reads it again to see whether it is whole, and nobody waited until it was on the disk: who starts the machine again
        // writes it again.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let name = format!("{} {user} {}", job.root_key, boot.trim());
        let kept = self.store.command_root(&Digest::of(name.as_bytes()))?;
        match fs::File::open(&kept) {
            // The time of the last use, for `gc`.
            Ok(folder) => drop(folder.set_modified(SystemTime::now())),
            Err(_) => {
                let scratch = Scratch::new(self.store)?;
                root::write(job.view, &scratch.path().join("root"), self.jobs, &self.cores)?;
                Kept::RootWritten.reach();
                // Another builder may have been faster; its folder is the same.
                if let Err(error) = fs::rename(scratch.path(), &kept)
                    && !kept.is_dir()
                {
                    return Err(error.into());
                }
                Kept::RootKept.reach();
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
        if run.ssh {
            let source = self.runs.commands.agent.clone().ok_or(EngineError::NoAgent)?;
            binds.push(Bind { source, target: AGENT.into(), access: Access::Read });
            // An SSH client asks who it is, and where its home is, of nobody but this file.
            let users = scratch.path().join("passwd");
            fs::write(&users, with_user(fs::read(root.join("root/etc/passwd")).unwrap_or_default(), run))?;
            binds.push(Bind { source: users, target: "/etc/passwd".into(), access: Access::Read });
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
        let done = {
            let _core = self.cores.take_first();
            self.observer.on(Event::StepStarted { label: job.label });
            sandbox::run(&step, level, &mut |bytes| log.write(bytes), &|| self.course.has_failed())
        };
        let (told, written) = log.finish();
        // Where the disk is full the log is, too: why the command ended says more.
        let done = done.map_err(|why| EngineError::Command { why, last: told.last, log: told.path })?;
        written?;
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
    /// See [`Walked::first`].
    first: &'a Mutex<Option<First>>,
}

/// The whole environment of a command, sorted by name.
fn environment(run: &Run<StageId>) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, String> =
        ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    all.insert("SOURCE_DATE_EPOCH".into(), EPOCH.to_string());
    if run.ssh {
        all.insert("SSH_AUTH_SOCK".into(), AGENT.into());
    }
    all.extend(run.env.clone());
    all.into_iter().collect()
}

/// A list of users (passwd(5)) with the one that a command runs as.
fn with_user(mut users: Vec<u8>, run: &Run<StageId>) -> Vec<u8> {
    let home =
        environment(run).into_iter().find(|(name, _)| name == "HOME").map_or_else(|| "/".into(), |(_, home)| home);
    if users.last().is_some_and(|byte| *byte != b'\n') {
        users.push(b'\n');
    }
    users.extend(format!("imgbuild:x:{id}:{id}::{home}:/bin/sh\n", id = sandbox::ID).bytes());
    users
}

/// Whether this machine does not run programs of a platform itself.
pub fn is_foreign(platform: Platform) -> bool {
    Platform::native().is_some_and(|native| native != platform)
}

/// A command of the engine's own, with these variables on top of the fixed ones.
pub(super) fn of_words(words: &[&str], variables: &[(&str, &str)]) -> Run<StageId> {
    let none = |_| Err::<StageId, ()>(());
    let run = command(words.iter().copied()).map_stage(none);
    let mut run = run.unwrap_or_else(|()| unreachable!("it takes nothing from a stage"));
    run.env.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    run
}

/// Names how many seconds a command took when it was last run: by its words and not by what it reads, so that one can be told of
/// before anything is built.
pub fn took_key(platform: Platform, run: &Run<StageId>) -> (Key, String) {
    let mut hasher = KeyHasher::new("took", 1);
    hasher.field("platform", platform).field("command", run.to_json());
    hasher.finish()
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
    base::key(&mut hasher, below.base.as_ref().map(|base| &base.manifest));
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

/// A folder in the cache's file system that goes with its owner, whatever modes a command left in it. It is locked for as long
/// as its owner lives: one that is not is what a killed builder has left.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: fs::File,
}

/// Before the name of each.
const SCRATCH: &str = "run-";

impl Scratch {
    fn new(store: &Store) -> Result<Scratch, EngineError> {
        // Held, nobody sweeps: between the two steps the new folder looks like one that is left.
        let all = fs::File::open(store.scratch())?;
        let _ = all.lock_shared();
        spread(&all);
        let folder = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(store.scratch())?;
        // What is made in it is the same whatever the cache's folder hands on.
        cache::plain(folder.path()).map_err(cache::explained(folder.path()))?;
        let path = folder.keep();
        let lock = fs::File::open(&path)?;
        // A file system without locks: nothing is swept there, and `cache gc` removes what is left.
        let _ = lock.lock();
        Ok(Scratch { path, _lock: lock })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is swept later.
        let _ = sandbox::remove(&self.path);
    }
}

/// Has folders that are made in this one lie far from it and mostly from each other, where its file system can (ext2 to ext4: `chattr +T`,
/// ioctl_iflags(2)). They want names of chance: where one comes to lie depends on its name. Without a journal, ext4 passes over each
/// inode that was deleted next to a folder in the last minutes whenever a file is made there: where one stage was removed, the next
/// one took ten times as long to write.
fn spread(folder: &fs::File) {
    // Elsewhere they lie where they lie.
    if let Ok(flags) = ioctl_getflags(folder)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = ioctl_setflags(folder, flags | IFlags::TOPDIR);
    }
}

/// Removes what killed builders have left of commands: whole stages, perhaps. What cannot be removed stays for `cache gc`.
fn sweep(store: &Store) -> Result<(), EngineError> {
    let all = fs::File::open(store.scratch())?;
    if all.try_lock().is_err() {
        return Ok(());
    }
    for entry in fs::read_dir(store.scratch())?.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes())
            && fs::File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok())
        {
            let _ = sandbox::remove(&entry.path());
        }
    }
    Ok(())
}
