//! From sources to operations: a stage of a plan, a lock and a platform give layers. Pure.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::hash::KeyHasher;
use crate::lock::{Lock, LockedPackage};
use crate::op::{
    Archive, Build, ByteCode, Configure, Conversion, Dpkg, Interpreter, LayerPlan, Op, Origin, Part, Placed, Step,
    Unpacked,
};
use crate::plan::{Plan, StageId, StageStep};
use crate::platform::Platform;
use crate::run::Run;
use crate::sharing::Shared;
use crate::source::{Base, Debian, Fetch, Inline, Link, Modules, OciLayout, Owner, Python, Source};
use crate::stage::Location;

/// A base image whose content is certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinnedBase {
    /// In a layout of the catalogue's folder.
    Layout(OciLayout),
    /// In a registry.
    Registry {
        /// The reference as the definition has it.
        image: String,
        /// The manifest of the platform, from the lock.
        manifest: Digest,
    },
}

impl PinnedBase {
    /// What a person calls it.
    pub fn label(&self) -> &str {
        match self {
            PinnedBase::Layout(layout) => layout.name.as_deref().unwrap_or(&layout.path),
            PinnedBase::Registry { image, .. } => image,
        }
    }
}

/// A stage whose every input is known by digest, except the files of the build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The base image below the layers.
    pub base: Option<PinnedBase>,
    /// The layers, bottom first.
    pub layers: Vec<LayerPlan>,
    /// Shared libraries that may be missing.
    pub allow_missing: crate::op::AllowedMissing,
    /// The interpreters that make byte-code, by digest.
    pub interpreters: BTreeMap<Digest, Interpreter>,
}

/// Why a stage has no layers.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// The lock has no answer for a source.
    #[error("images.lock has no entry for `{label}` on {platform}")]
    Unlocked {
        /// The source.
        label: String,
        /// The platform.
        platform: Platform,
        /// Where it was written.
        at: Option<Location>,
    },
    /// A base that its registry has for other platforms alone.
    #[error("`{image}` has no image for {platform}")]
    NoPlatform {
        /// The base.
        image: String,
        /// The platform.
        platform: Platform,
        /// Where it was written.
        at: Option<Location>,
    },
    /// The context lacks a lock file that a source reads.
    #[error("`{label}` reads `{path}`, which the build context does not have")]
    NoLockFile {
        /// The source.
        label: String,
        /// The file.
        path: String,
        /// Where it was written.
        at: Option<Location>,
    },
    /// A package that dpkg is to configure and that is not there.
    #[error("`{label}` has dpkg configure `{package}`, which is not among its packages on {platform}")]
    NothingToConfigure {
        /// The source.
        label: String,
        /// The package.
        package: String,
        /// The platform.
        platform: Platform,
        /// Where it was written.
        at: Option<Location>,
    },
    /// Byte-code without the interpreter that would make it.
    #[error("`{label}` wants byte-code, but no Debian package below it brings python{python} on {platform}")]
    NoInterpreter {
        /// The source.
        label: String,
        /// The version that is wanted.
        python: String,
        /// The platform.
        platform: Platform,
        /// Where it was written.
        at: Option<Location>,
    },
}

impl LowerError {
    /// Where in a definition the trouble stands.
    pub fn at(&self) -> Option<&Location> {
        match self {
            LowerError::Unlocked { at, .. }
            | LowerError::NoPlatform { at, .. }
            | LowerError::NoLockFile { at, .. }
            | LowerError::NothingToConfigure { at, .. }
            | LowerError::NoInterpreter { at, .. } => at.as_ref(),
        }
    }
}

/// Whether a layer of this label was made by reading files below: other files below would have made another layer. All
/// others follow from the definition alone; of what is below they show the attributes of their parent directories and
/// the links that lead to them. The label is what an image's history keeps of its layers.
pub fn reads_below(label: &str) -> bool {
    label.ends_with(CONFIGURATION) || label.ends_with(BYTE_CODE) || label.starts_with("user ")
}

/// How the label of a layer with the effects of maintainer scripts ends.
const CONFIGURATION: &str = ": configuration";
/// How the label of a layer with byte-code of packages ends.
const BYTE_CODE: &str = ": byte-code";

/// Names the question that a `debian(...)` asks, with all those below it in its stage.
pub fn debian_request(chain: &[&Debian<StageId>]) -> Digest {
    let mut hasher = KeyHasher::new("debian-request", 1);
    for source in chain {
        hasher.list("package", source.packages.iter());
        hasher.list("without", source.without.iter());
        hasher.field("recommends", source.recommends);
        for repository in &source.repositories {
            hasher.field("repository", serde_json::to_string(repository).expect("plain strings"));
        }
    }
    hasher.finish().0.0
}

/// Names the question that a `python(...)` asks of a context whose lock files hash to `lock_file`.
pub fn python_request<S>(source: &Python<S>, lock_file: Digest) -> Digest {
    let mut hasher = KeyHasher::new("python-request", 1);
    hasher.field("format", format!("{:?}", source.lock.format));
    hasher.list("group", source.lock.groups.iter());
    hasher.list("extra", source.lock.extras.iter());
    hasher.list("without", source.without.iter());
    hasher.field("version", &source.version);
    hasher.field("file", lock_file);
    if !source.sdists.is_empty() {
        hasher.list("from-source", source.sdists.keys());
    }
    hasher.finish().0.0
}

/// Lays out the layers of a stage. `lock_file` gives the digest of a Python source's lock files in the build context.
pub fn lower(
    plan: &Plan,
    top: StageId,
    lock: &Lock,
    platform: Platform,
    lock_file: &dyn Fn(&Python<StageId>) -> Option<Digest>,
) -> Result<Resolved, LowerError> {
    let mut resolved =
        Resolved { base: None, layers: Vec::new(), allow_missing: Default::default(), interpreters: BTreeMap::new() };
    let mut everywhere: BTreeMap<Platform, BTreeMap<&str, Unpacked>> = BTreeMap::new();
    let mut chain: Vec<&Debian<StageId>> = Vec::new();
    let mut installed: BTreeMap<&str, (&LockedPackage, &[String])> = BTreeMap::new();
    let mut shared = Shared::default();
    for (stage, planned) in plan.steps(top) {
        if planned.step.below().is_some_and(|below| plan.stages[below.0].is_image) {
            shared.close();
        }
        let source = match &planned.step {
            StageStep::Scratch => continue,
            StageStep::From { base } => {
                resolved.base = Some(match base {
                    Base::Layout(layout) => PinnedBase::Layout(layout.clone()),
                    Base::Registry(base) => match lock.base(&base.image, platform) {
                        Some(manifest) => PinnedBase::Registry { image: base.image.clone(), manifest },
                        None => {
                            let at = planned.at.clone();
                            if lock.bases.iter().any(|known| known.image == base.image) {
                                return Err(LowerError::NoPlatform { image: base.image.clone(), platform, at });
                            }
                            let label = format!("from {}", base.image);
                            return Err(LowerError::Unlocked { label, platform, at });
                        }
                    },
                });
                continue;
            }
            StageStep::Run { run, .. } => {
                let inputs = run
                    .inputs
                    .iter()
                    .filter_map(|input| {
                        let op = plain(&input.source())?;
                        Some(Placed { path: input.path().clone(), op, platform: None })
                    })
                    .collect();
                let ops = vec![Op::Run(Step { run: Run { inputs: Vec::new(), ..run.clone() }, inputs })];
                resolved.lay(stage, Part { label: run.label(), at: planned.at.clone(), ops }, &mut shared);
                continue;
            }
            StageStep::Layer { source, .. } => source,
        };
        let at = planned.at.clone();
        let label = source.label();
        let unlocked = || LowerError::Unlocked { label: label.clone(), platform, at: at.clone() };
        let part = |label: String, ops: Vec<Op>| Part { label, at: at.clone(), ops };
        let no_interpreter = |python: &str| LowerError::NoInterpreter {
            label: label.clone(),
            python: python.to_owned(),
            platform,
            at: at.clone(),
        };
        match source {
            Source::Debian(debian) => {
                chain.push(debian);
                resolved.allow_missing.extend(debian.allow_missing.iter().cloned());
                let request = debian_request(&chain);
                let closure = lock.sources.iter().find(|it| it.request == request).ok_or_else(unlocked)?;
                let chosen = closure.packages.get(&platform).ok_or_else(unlocked)?;
                for (platform, chosen) in &closure.packages {
                    let here = everywhere.entry(*platform).or_default();
                    here.extend(chosen.iter().filter_map(|it| lock.package(*platform, &it.package)).map(|package| {
                        let unpacked = Unpacked { archive: package.archive(), exclude: debian.exclude.clone() };
                        (package.name.as_str(), unpacked)
                    }));
                }
                let mut added = BTreeMap::new();
                for it in chosen {
                    let package = lock.package(platform, &it.package).ok_or_else(unlocked)?;
                    added.insert(package.name.as_str(), package);
                    installed.insert(package.name.as_str(), (package, &debian.exclude));
                }
                let groups = lock.groups.get(&platform).map(|groups| groups.debian.as_slice()).unwrap_or_default();
                for (names, members) in split(groups, added) {
                    let ops = members
                        .iter()
                        .map(|package| Op::Unpack {
                            archive: package.archive(),
                            conversion: Conversion::Deb { exclude: debian.exclude.clone() },
                        })
                        .collect();
                    resolved.lay(stage, part(format!("debian {names}"), ops), &mut shared);
                }
                resolved.lay(
                    stage,
                    part(format!("{label}{CONFIGURATION}"), vec![Op::Configure(configure(&chain, &installed))]),
                    &mut shared,
                );
                if let Some(dpkg) = dpkg(debian, &installed) {
                    let dpkg = dpkg.map_err(|package| LowerError::NothingToConfigure {
                        label: label.clone(),
                        package,
                        platform,
                        at: at.clone(),
                    })?;
                    let names: Vec<&str> = debian.configured.iter().map(String::as_str).collect();
                    let label = format!("dpkg --configure {}", names.join(" "));
                    resolved.lay(stage, part(label, vec![Op::Dpkg(dpkg)]), &mut shared);
                }
                if debian.bytecode != Modules::None {
                    // `python3.13-minimal`, not the `python3-minimal` that depends on it.
                    let python = installed
                        .keys()
                        .filter_map(|name| name.strip_prefix("python")?.strip_suffix("-minimal"))
                        .find(|version| version.contains('.'));
                    let found = python.and_then(|python| interpreter(python, lock, platform, &everywhere));
                    let found = found.ok_or_else(|| no_interpreter(python.unwrap_or("3")))?;
                    let interpreter = resolved.remember(found);
                    let compile = Op::Compile(ByteCode { modules: debian.bytecode.clone(), interpreter });
                    resolved.lay(stage, part(format!("{label}{BYTE_CODE}"), vec![compile]), &mut shared);
                }
            }
            Source::Python(python) => {
                let bytecode = match &python.bytecode {
                    Modules::None => None,
                    modules => {
                        let found = interpreter(&python.version, lock, platform, &everywhere)
                            .ok_or_else(|| no_interpreter(&python.version))?;
                        Some(ByteCode { modules: modules.clone(), interpreter: resolved.remember(found) })
                    }
                };
                resolved.allow_missing.extend(python.allow_missing.iter().cloned());
                let file = lock_file(python).ok_or_else(|| LowerError::NoLockFile {
                    label: label.clone(),
                    path: python.lock.path.clone(),
                    at: at.clone(),
                })?;
                let request = python_request(python, file);
                let locked = lock.python.iter().find(|it| it.request == request).ok_or_else(unlocked)?;
                let wheels = locked.wheels.get(&platform).ok_or_else(unlocked)?;
                let by_name = wheels.iter().map(|wheel| (wheel.name.as_str(), wheel)).collect();
                let groups = lock.groups.get(&platform).map(|groups| groups.python.as_slice()).unwrap_or_default();
                resolved.lay(stage, part(format!("python {} environment", python.venv), venv(python)), &mut shared);
                for (names, members) in split(groups, by_name) {
                    let ops = members
                        .iter()
                        .map(|wheel| {
                            let conversion = Conversion::Wheel {
                                venv: python.venv.clone(),
                                python: python.version.clone(),
                                bytecode: bytecode.clone(),
                            };
                            match (python.sdists.get(&wheel.name), python.builder) {
                                (Some(env), Some(builder)) => Op::Build(Build {
                                    distribution: wheel.name.clone(),
                                    sdist: wheel.archive(),
                                    builder,
                                    python: python.version.clone(),
                                    env: env.clone(),
                                    foreign: python.foreign.get(&wheel.name).cloned(),
                                    conversion,
                                }),
                                _ => Op::Unpack { archive: wheel.archive(), conversion },
                            }
                        })
                        .collect();
                    resolved.lay(stage, part(format!("python {names}"), ops), &mut shared);
                }
            }
            other => resolved.lay(stage, part(label, plain(other).into_iter().collect()), &mut shared),
        }
    }
    Ok(resolved)
}

/// The operation of a source that needs no lock; `None` for packages and wheels.
fn plain(source: &Source<StageId>) -> Option<Op> {
    Some(match source {
        Source::Debian(_) | Source::Python(_) => return None,
        Source::Fetch(it) => fetched(it),
        Source::Files(it) => Op::Copy(it.clone()),
        Source::Take(it) => Op::Take(it.clone()),
        Source::User(it) => Op::AddUser(it.clone()),
        Source::Dir(it) => Op::Dir(it.clone()),
        Source::Link(it) => Op::Link(it.clone()),
        Source::Inline(it) => Op::Inline(it.clone()),
    })
}

fn fetched(fetch: &Fetch) -> Op {
    let archive = Archive {
        name: fetch.file_name().to_owned(),
        digest: fetch.sha256,
        size: None,
        origin: Origin::Url(fetch.url.clone()),
    };
    let conversion = match fetch.unpack {
        Some(how) => Conversion::Unpack {
            how,
            to: fetch.to.clone(),
            strip_components: fetch.strip_components,
            owner: fetch.owner,
            aliases: BTreeMap::new(),
        },
        None => Conversion::File { to: fetch.to.clone(), mode: fetch.mode.unwrap_or(0o644), owner: fetch.owner },
    };
    Op::Unpack { archive, conversion }
}

impl Resolved {
    /// Puts a step on top: as a layer, or into the one below.
    fn lay(&mut self, stage: StageId, part: Part, shared: &mut Shared) {
        match self.layers.last_mut().filter(|_| shared.joined_by(&part)) {
            Some(below) => {
                below.parts.push(part);
                below.stage = stage;
            }
            None => {
                *shared = Shared::of(&part);
                self.layers.push(LayerPlan { stage, parts: vec![part] });
            }
        }
    }

    fn remember(&mut self, interpreter: Interpreter) -> Digest {
        let mut hasher = KeyHasher::new("interpreter", 1);
        hasher.field("packages", serde_json::to_string(&interpreter).expect("plain strings and numbers"));
        let digest = hasher.finish().0.0;
        self.interpreters.insert(digest, interpreter);
        digest
    }
}

/// The interpreter that a stage has, on this platform and on all others where its release is the same.
fn interpreter(
    python: &str,
    lock: &Lock,
    platform: Platform,
    everywhere: &BTreeMap<Platform, BTreeMap<&str, Unpacked>>,
) -> Option<Interpreter> {
    // What `python3.13-minimal` and its pre-dependencies are; nothing more is needed to start it and to compile.
    let program = format!("python{python}-minimal");
    let names = [program.as_str(), &format!("lib{program}"), "libc6", "libexpat1", "zlib1g"];
    let release = |platform: Platform| {
        let version = &lock.package(platform, &program)?.version;
        let rebuilt = version.rsplit_once("+b").filter(|(_, count)| count.bytes().all(|it| it.is_ascii_digit()));
        Some(rebuilt.map_or(version.as_str(), |(source, _)| source))
    };
    let wanted = release(platform)?;
    let packages: BTreeMap<Platform, Vec<Unpacked>> = everywhere
        .iter()
        .filter(|(other, _)| release(**other) == Some(wanted))
        .filter_map(|(other, installed)| {
            let all: Option<Vec<Unpacked>> = names.iter().map(|name| installed.get(name).cloned()).collect();
            Some((*other, all?))
        })
        .collect();
    packages.contains_key(&platform).then(|| Interpreter {
        python: python.to_owned(),
        release: wanted.to_owned(),
        packages,
    })
}

/// Distributes members over groups; what no group names comes last, together.
fn split<'a, T>(groups: &[Vec<String>], mut members: BTreeMap<&'a str, &'a T>) -> Vec<(String, Vec<&'a T>)> {
    let mut layers = Vec::new();
    let mut add = |names: Vec<&str>, found: Vec<&'a T>| {
        if !found.is_empty() {
            layers.push((names.join(" "), found));
        }
    };
    for group in groups {
        let mut found: Vec<(&str, &'a T)> =
            group.iter().filter_map(|name| members.remove_entry(name.as_str())).collect();
        found.sort_by_key(|(name, _)| *name);
        let (names, found) = found.into_iter().unzip();
        add(names, found);
    }
    let (names, found) = members.into_iter().unzip();
    add(names, found);
    layers
}

fn configure(chain: &[&Debian<StageId>], installed: &BTreeMap<&str, (&LockedPackage, &[String])>) -> Configure {
    let mut configure = Configure {
        packages: installed.values().map(|(package, _)| package.archive()).collect(),
        exclude: installed.values().map(|(package, exclude)| (package.sha256, exclude.to_vec())).collect(),
        effects: BTreeMap::new(),
        ignore_scripts: BTreeMap::new(),
    };
    for source in chain {
        for (package, effects) in &source.effects {
            configure.effects.entry(package.clone()).or_default().extend(effects.iter().cloned());
        }
        configure.ignore_scripts.extend(source.ignore_scripts.clone());
        let by_dpkg = |name: &String| (name.clone(), "dpkg configures it".to_owned());
        configure.ignore_scripts.extend(source.configured.iter().map(by_dpkg));
    }
    configure
}

/// What dpkg is to configure; the name of a package that is not there is an error.
fn dpkg(
    debian: &Debian<StageId>,
    installed: &BTreeMap<&str, (&LockedPackage, &[String])>,
) -> Option<Result<Dpkg, String>> {
    let configurator = debian.configurator.filter(|_| !debian.configured.is_empty())?;
    let found = |name: &String| installed.get(name.as_str()).ok_or_else(|| name.clone());
    let packages: Result<Vec<_>, String> = debian.configured.iter().map(found).collect();
    Some(packages.map(|packages| Dpkg {
        exclude: packages.iter().map(|(package, exclude)| (package.sha256, exclude.to_vec())).collect(),
        packages: packages.iter().map(|(package, _)| package.archive()).collect(),
        configurator,
    }))
}

/// A virtual environment as `python3 -m venv --without-pip` makes it, less the activation scripts.
fn venv(python: &Python<StageId>) -> Vec<Op> {
    let join = |relative: &str| python.venv.join(relative).expect("a normal relative path joins");
    let link = |path: &str, target: String| Op::Link(Link { path: join(path), target });
    let version = &python.version;
    vec![
        Op::Inline(Inline {
            text: format!("home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"),
            path: join("pyvenv.cfg"),
            mode: 0o644,
            owner: Owner::default(),
        }),
        link("bin/python", format!("/usr/bin/python{version}")),
        link("bin/python3", "python".into()),
        link(&format!("bin/python{version}"), "python".into()),
        link("lib64", "lib".into()),
    ]
}
