//! Flags that all commands share, and what they come to.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cache::{Hold, Limits, Store};
use clap::{Args, ValueHint};
use layers::encode::Compression;
use layers::{Plan, Platform};

use super::{Program, Stop};
use crate::config::{Config, Environment};
use crate::engine::run::{Commands, Repeat};
use crate::error::Failure;
use crate::fetch::{Http, HttpConfig};
use crate::observe::{Event, Observer};
use crate::ops::Bench;
use crate::ops::project::Project;
use crate::ops::remote::Targets;
use crate::pin::{Context, StatCache};
use crate::places::{Docker, Reach};
use crate::registry::{ClientConfig, Registries};
use crate::remote::{Artifacts, Folder, Objects, Publisher, Remote, RemoteSpec, Source, Sources};
use crate::report::{self, Progress, Screen};
use crate::sandbox::Level;

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Another catalogue: a catalogue crate's folder, a program that prints a plan, or a plan's JSON file
    #[arg(long, global = true, value_name = "DIR|BINARY|PLAN.json", value_hint = ValueHint::AnyPath)]
    pub catalogue: Option<PathBuf>,
    /// The build context that `files(...)` and lock files of Python are read from
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub context: Option<PathBuf>,
    /// The lock [default: images.lock beside the catalogue]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub lock_file: Option<PathBuf>,
    /// The configuration [default: imgbuild.toml here or in a folder above]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The cache [default: imgbuild in the user's cache folder]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache_dir: Option<PathBuf>,
    /// Threads [default: one a core]
    #[arg(long, short = 'j', global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// How progress is shown on stderr
    #[arg(long, global = true, value_name = "MODE", default_value = "auto")]
    pub progress: Progress,
    /// How layers are compressed: gzip, gzip-single or zstd [default: imgbuild.toml's `compression`, else gzip]
    #[arg(long, global = true, value_name = "HOW")]
    pub compression: Option<Compression>,
    /// Use the cache alone: no request leaves this machine
    #[arg(long, global = true)]
    pub offline: bool,
}

/// Flags of commands that build: caches elsewhere.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CacheArgs {
    /// Looks for what is not in the cache in another one: dir:PATH, registry:HOST/REPOSITORY or s3://BUCKET/PREFIX; may be given several times
    #[arg(long, value_name = "CACHE")]
    cache_from: Vec<RemoteSpec>,
    /// Gives what is built here to another cache, while the build goes on; may be given several times
    #[arg(long, value_name = "CACHE")]
    cache_to: Vec<RemoteSpec>,
}

/// Flags of commands that build: how commands of stages are run.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CommandArgs {
    /// The least that commands of stages must be kept apart by: namespaces, chroot or proot [default: imgbuild.toml's `sandbox`]
    #[arg(long, value_name = "LEVEL")]
    sandbox: Option<Level>,
    /// What a secret of commands holds; may be given several times
    #[arg(long, value_name = "NAME=env:VARIABLE|file:PATH")]
    secret: Vec<String>,
    /// The SSH agent that commands with `.ssh()` may ask: `default` for the one of SSH_AUTH_SOCK, or its socket
    #[arg(long, value_name = "default|SOCKET")]
    ssh: Option<String>,
    /// Runs each command twice and fails where the outcomes differ, even if its outcome is known
    #[arg(long)]
    check_deterministic: bool,
}

impl CommandArgs {
    fn open(&self, config: &Config) -> Result<Commands, Failure> {
        let mut secrets = BTreeMap::new();
        for text in &self.secret {
            let wrong = || {
                Failure::usage(format!("`{}` is not a secret", text.split(':').next().unwrap_or_default()))
                    .hint("write `--secret NAME=env:VARIABLE` or `--secret NAME=file:PATH`")
            };
            let (name, place) = text.split_once('=').ok_or_else(wrong)?;
            let (kind, place) = place.split_once(':').ok_or_else(wrong)?;
            if !layers::is_secret_name(name) {
                return Err(wrong());
            }
            let bytes = match kind {
                "env" => {
                    let value = config.environment().variable(place);
                    let value = value
                        .ok_or_else(|| Failure::usage(format!("secret `{name}`: the variable {place} is not set")))?;
                    value.as_encoded_bytes().to_vec()
                }
                "file" => std::fs::read(config.environment().directory().join(place))
                    .map_err(|error| Failure::usage(format!("secret `{name}`: `{place}` cannot be read: {error}")))?,
                _ => return Err(wrong()),
            };
            secrets.insert(name.to_owned(), bytes);
        }
        let repeat = if self.check_deterministic { Repeat::Compare } else { Repeat::Never };
        let mut commands = Commands::new(config.sandbox(self.sandbox)?, secrets, repeat);
        commands.agent = self.ssh.as_deref().map(|ssh| agent(ssh, config)).transpose()?;
        Ok(commands)
    }
}

/// The socket of an SSH agent.
fn agent(ssh: &str, config: &Config) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::FileTypeExt as _;
    let environment = config.environment();
    let socket = match ssh {
        "default" => environment.variable("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).ok_or_else(|| {
            Failure::usage("`--ssh default`: the variable SSH_AUTH_SOCK is not set")
                .hint("start an agent with `eval $(ssh-agent)` and `ssh-add`, or name its socket with `--ssh SOCKET`")
        })?,
        socket => std::ffi::OsStr::new(socket),
    };
    let socket = environment.directory().join(socket);
    match std::fs::metadata(&socket) {
        Ok(found) if found.file_type().is_socket() => Ok(socket),
        Ok(_) => Err(Failure::usage(format!("`--ssh`: `{}` is not the socket of an agent", socket.display()))),
        Err(error) => Err(Failure::usage(format!("`--ssh`: `{}`: {error}", socket.display()))),
    }
}

/// A program with its flags.
pub(crate) struct Invocation {
    pub(crate) program: Program,
    pub(crate) globals: Globals,
}

/// What a command works with.
pub(crate) struct Setup {
    pub(crate) project: Project,
    pub(crate) config: Config,
    http: Http,
    registries: Registries,
    context: Context,
    jobs: usize,
    compression: Compression,
    elsewhere: Arc<Sources>,
    targets: Option<Targets>,
    commands: Commands,
    kept: Kept,
}

/// The cache while somebody works with it: within its limits once the work has ended, whether it is done or has failed.
pub(crate) struct Kept {
    store: Store,
    observer: Box<dyn Observer>,
    limits: Limits,
    hold: Option<Hold>,
    now: i64,
    /// When the cache was had.
    began: Instant,
    is_offline: bool,
    is_done: bool,
}

impl Kept {
    /// Opens it, and keeps collectors away if `holds`.
    pub(crate) fn open(invocation: &Invocation, config: &Config, holds: bool) -> Result<Kept, Stop> {
        let store = Store::open_at(&config.cache_dir(invocation.globals.cache_dir.as_deref())?)?;
        let screen = Screen::of(config.environment(), std::io::stderr().is_terminal())?;
        let observer = report::choose(invocation.globals.progress, screen);
        let limits = config.cache_limits()?.into();
        let waits = || observer.on(Event::Note("waiting until the cache is collected"));
        let hold = if holds { Some(store.hold_after(waits)?) } else { None };
        let is_offline = invocation.globals.offline;
        Ok(Kept { store, observer, limits, hold, now: now(), began: Instant::now(), is_offline, is_done: false })
    }

    /// The cache.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The work is done. What wrote nothing need not look after the cache.
    pub(crate) fn close(mut self) {
        self.is_done = true;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.hold = None;
        let wrote = self.store.written() > 0 || self.store.wrote_uncounted();
        if !self.is_done && cache::was_full() {
            // The room that there was is not enough, within the limits or not, whoever filled it. The next attempt has twice what this one
            // wrote, and a twentieth of what there is at least. What could not be had again is kept.
            let held = self.store.contents().map_or(0, |contents| contents.total);
            let room = self.store.written().saturating_mul(2).max(held / 20);
            let wanted = self.store.free().ok().map(|free| free.saturating_add(room)).filter(|_| !self.is_offline);
            self.limits.min_free = self.limits.min_free.max(wanted);
        }
        if (wrote || !self.is_done) && !std::thread::panicking() {
            // Whoever waits for an error is not to wait for other builders.
            let took = if self.is_done { self.began.elapsed() } else { Duration::ZERO };
            crate::ops::cache::tidy(&self.store, &self.limits, self.now, took, self.observer.as_ref());
        }
    }
}

impl Invocation {
    /// Reads the configuration.
    pub(crate) fn config(&self) -> Result<Config, Stop> {
        let directory = std::env::current_dir()
            .map_err(|error| Failure::usage(format!("the working directory cannot be read: {error}")))?;
        let environment = Environment::new(std::env::vars_os(), directory);
        Ok(Config::load(&environment, self.globals.config.as_deref())?)
    }

    /// Registries as the configuration says; `prefix` is the one that a password in the environment is for.
    pub(crate) fn registries(
        &self,
        config: &Config,
        insecure: &[String],
        prefix: Option<&str>,
    ) -> Result<Registries, Stop> {
        let client = config.registries(insecure, prefix)?;
        Ok(Registries::new(ClientConfig { offline: self.globals.offline, ..client }))
    }

    /// Lays the plan out.
    pub(crate) fn project(&self, config: &Config) -> Result<Project, Stop> {
        let globals = &self.globals;
        if let Some(at) = &globals.catalogue {
            return Ok(Project::of_catalogue(at, globals.context.clone(), globals.lock_file.clone())?);
        }
        let Some(catalogue) = &self.program.catalogue else {
            return Err(Failure::usage("there is no catalogue").hint("name one with `--catalogue`").into());
        };
        let plan: Plan = catalogue.plan();
        plan.check().map_err(Failure::from)?;
        // Relative paths stay short in messages and in plans.
        let root = config.path().and_then(Path::parent).filter(|root| *root != config.environment().directory());
        let root = root.unwrap_or(Path::new(""));
        let home = tidy(root, &self.program.home);
        let context = globals.context.clone().unwrap_or_else(|| tidy(root, &self.program.context));
        Ok(Project::new(plan, home, Some(context), globals.lock_file.clone()))
    }

    /// Opens a cache elsewhere, a folder as it was [seen](RemoteSpec::seen_from).
    fn remote(&self, config: &Config, spec: &RemoteSpec) -> Result<Arc<dyn Remote>, Stop> {
        let patience = config.cache_patience()?;
        Ok(match spec {
            RemoteSpec::Dir(path) => Arc::new(Folder::new(path, patience)),
            RemoteSpec::Registry(repository) => {
                let client = config.registries(&[], None)?;
                let offline = self.globals.offline;
                Arc::new(Artifacts::new(ClientConfig { offline, ..client }, repository.clone(), patience))
            }
            RemoteSpec::Bucket(place) => {
                let (offline, patience) = (self.globals.offline, Some(patience));
                let http = Http::new(HttpConfig { offline, patience, ..config.http()? });
                let wrong = |why: String| Failure::usage(format!("`{spec}` is no cache: {why}"));
                Arc::new(Objects::new(http, place, config.s3()?).map_err(wrong)?)
            }
        })
    }

    /// Opens everything that work needs.
    pub(crate) fn setup(&self) -> Result<Setup, Stop> {
        self.setup_with(&CacheArgs::default(), &CommandArgs::default())
    }

    /// As [`setup`](Invocation::setup), with caches elsewhere and commands.
    pub(crate) fn setup_with(&self, caches: &CacheArgs, commands: &CommandArgs) -> Result<Setup, Stop> {
        let config = self.config()?;
        let commands = commands.open(&config)?;
        let project = self.project(&config)?;
        let jobs = config.jobs(self.globals.jobs.map(usize::from))?;
        let http = Http::new(HttpConfig { offline: self.globals.offline, ..config.http()? });
        let registries = self.registries(&config, &[], None)?;
        let kept = Kept::open(self, &config, true)?;
        let stats = StatCache::load(&kept.store, &project.context);
        let context = Context::open(&project.context, stats, jobs)?;
        let compression = config.compression(self.globals.compression)?;
        let trusted = if caches.cache_from.is_empty() { Vec::new() } else { config.cache_trusted_stores()? };
        // What is opened is the folder that trust is decided for, wherever links lead later.
        let seen = |spec: &RemoteSpec| spec.clone().seen_from(config.environment().directory());
        let (mut from, mut sources) = (Vec::new(), Vec::new());
        for spec in &caches.cache_from {
            let seen = seen(spec);
            let remote = self.remote(&config, &seen)?;
            from.push(remote.clone());
            sources.push(Source { label: spec.to_string(), remote, trusted: trusted.contains(&seen) });
        }
        let keys = if sources.is_empty() { Vec::new() } else { config.cache_trusted_keys()? };
        let elsewhere = Arc::new(Sources::new(sources, keys));
        let mut to = Vec::new();
        for spec in &caches.cache_to {
            // A folder that is read from and written to is one: who finds damage in it sees to it that it is mended.
            let read = caches.cache_from.iter().position(|it| it == spec && matches!(it, RemoteSpec::Dir(_)));
            let remote = match read {
                Some(at) => from[at].clone(),
                None => self.remote(&config, &seen(spec))?,
            };
            to.push((spec.to_string(), remote));
        }
        let targets = match to.is_empty() {
            true => None,
            false => {
                let key = config.cache_signing_key()?;
                let places = caches.cache_to.clone();
                let publisher = Publisher::start(to, kept.store.clone(), elsewhere.clone());
                Some(Targets { publisher, places, key })
            }
        };
        Ok(Setup { project, config, http, registries, context, jobs, compression, elsewhere, targets, commands, kept })
    }
}

/// What commands without a catalogue work with.
pub(crate) struct Tools {
    pub(crate) config: Config,
    pub(crate) kept: Kept,
}

impl Invocation {
    /// Opens what work on images needs, wherever they come from.
    pub(crate) fn tools(&self) -> Result<Tools, Stop> {
        let config = self.config()?;
        let kept = Kept::open(self, &config, true)?;
        Ok(Tools { config, kept })
    }
}

impl Tools {
    pub(crate) fn reach<'a>(&'a self, registries: &'a Registries, docker: &'a Docker) -> Reach<'a> {
        Reach { registries, docker, store: &self.kept.store, observer: self.kept.observer.as_ref() }
    }
}

/// The engine of Docker that the environment names. What is wrong there concerns nobody who does not need it.
pub(crate) fn docker(config: &Config) -> Docker {
    let environment = config.environment();
    let found = Docker::from_environment(|name| environment.variable(name).map(ToOwned::to_owned));
    found.unwrap_or_else(|error| Docker::unknown(&error))
}

/// Works on images wherever they are: with everything of the project where `catalogue` is true, else without it.
pub(crate) fn with_places<T>(
    invocation: &Invocation,
    insecure: &[String],
    catalogue: bool,
    work: impl FnOnce(Option<&Bench<'_>>, &Reach<'_>) -> Result<T, Stop>,
) -> Result<T, Stop> {
    if catalogue {
        let setup = invocation.setup()?;
        let registries = invocation.registries(&setup.config, insecure, None)?;
        let docker = docker(&setup.config);
        let bench = setup.bench();
        let reach = Reach { registries: &registries, docker: &docker, store: bench.store, observer: bench.observer };
        let done = work(Some(&bench), &reach)?;
        setup.close();
        return Ok(done);
    }
    let tools = invocation.tools()?;
    let registries = invocation.registries(&tools.config, insecure, None)?;
    let docker = docker(&tools.config);
    let done = work(None, &tools.reach(&registries, &docker))?;
    tools.kept.close();
    Ok(done)
}

impl Setup {
    pub(crate) fn bench(&self) -> Bench<'_> {
        Bench {
            project: &self.project,
            config: &self.config,
            http: &self.http,
            registries: &self.registries,
            store: &self.kept.store,
            context: &self.context,
            observer: self.kept.observer.as_ref(),
            jobs: self.jobs,
            now: self.kept.now,
            compression: self.compression,
            elsewhere: &self.elsewhere,
            targets: self.targets.as_ref(),
            commands: &self.commands,
        }
    }

    /// Saves what was learnt about the context's files, keeps the cache within its limits, and ends the display of progress.
    pub(crate) fn close(self) {
        self.context.save_stats();
        for trouble in self.targets.map(|targets| targets.publisher.finish()).unwrap_or_default() {
            self.kept.observer.on(Event::Warning(&trouble));
        }
        // What is not removed now goes as archives do.
        let _ = self.elsewhere.tidy(&self.kept.store);
        for trouble in self.elsewhere.troubles() {
            self.kept.observer.on(Event::Warning(&trouble));
        }
        self.kept.close();
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64)
}

fn tidy(root: &Path, relative: &str) -> PathBuf {
    match (relative, root.as_os_str().is_empty()) {
        (".", true) => PathBuf::from("."),
        (".", false) => root.to_path_buf(),
        _ => root.join(relative),
    }
}

/// Parses `--platform`: names separated by commas, given any number of times; sorted and unique.
pub(crate) fn platforms(given: &[Platform]) -> Result<Vec<Platform>, Failure> {
    if given.is_empty() {
        let host = std::env::consts::ARCH;
        return Platform::native().map(|platform| vec![platform]).ok_or_else(|| {
            Failure::usage(format!("images cannot be built for this machine's architecture `{host}`"))
                .hint("choose a platform with `--platform linux/amd64` or `--platform linux/arm64`")
        });
    }
    let mut platforms = given.to_vec();
    platforms.sort();
    platforms.dedup();
    Ok(platforms)
}

/// Finds out before the long work whether a file can be written.
pub(crate) fn check_writable(path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wrong = |why: &str| Failure::work(format!("`{}` cannot be written: {why}", path.display()));
    if !folder.is_dir() {
        return Err(wrong("its folder is not there"));
    }
    crate::output::check_replaceable(path).map_err(|error| wrong(&error.to_string()))
}

/// Parses `--label name=value`.
pub(crate) fn labels(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    pairs(given, "a label", "--label")
}

/// Parses `--annotation name=value`.
pub(crate) fn annotations(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    pairs(given, "an annotation", "--annotation")
}

fn pairs(given: &[String], what: &str, flag: &str) -> Result<BTreeMap<String, String>, Failure> {
    given
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!("`{text}` is not {what}: write `{flag} NAME=VALUE`"))),
        })
        .collect()
}

/// `SOURCE_DATE_EPOCH`, seconds since 1970 (reproducible-builds.org).
pub(crate) fn source_date_epoch() -> Result<Option<i64>, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let parsed = text.to_str().and_then(|text| text.trim().parse::<i64>().ok());
    // RFC 3339 ends with the year 9999.
    let parsed = parsed.filter(|seconds| (0..=253_402_300_799).contains(seconds));
    match parsed {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(Failure::usage(format!(
            "SOURCE_DATE_EPOCH is `{}`, not a number of seconds since 1970 and before the year 10000",
            text.to_string_lossy()
        ))),
    }
}

/// Whether the lock may not change: `--locked`, or a CI machine (`CI=true`).
pub(crate) fn locked(flag: bool) -> bool {
    flag || std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}
