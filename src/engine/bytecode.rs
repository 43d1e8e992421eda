//! Byte-code as the engine makes it: the interpreter from the image's own packages, the choice of modules, and the
//! fragment of the standard library's byte-code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use layers::encode::{EPOCH, Entry, Kind, LAYER_FORMAT};
use layers::format::wheel::{Added, Content as WheelContent, Scheme, Wheel, WheelName};
use layers::format::zip::{self, Tails};
use layers::format::{FormatError, Limits, Window};
use layers::lower::Resolved;
use layers::op::{self, Archive, ByteCode, Conversion, LayerPlan, Op};
use layers::source::Modules;
use layers::{Digest, ImagePath, KeyHasher, Platform};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::convert::Drops;
use super::earlier::{Earlier, contents, span};
use super::index::{Fragment, INDEX_FORMAT};
use super::local::{Local, Subject};
use super::made::{Content, Made};
use super::tree::Tree as _;
use super::view::View;
use crate::observe::{Event, Observer};
use crate::parallel::{begin, end, in_parallel, lock, unlocked};
use crate::python::bytecode::{self, CompileError, Interpreter, imports};

/// The interpreters of a build: what is known of them, and those that run.
#[derive(Default)]
pub struct Interpreters {
    known: Mutex<BTreeMap<Digest, op::Interpreter>>,
    running: Mutex<BTreeMap<Digest, Arc<Interpreter>>>,
}

/// Who compiles the modules of an archive.
pub struct Compiler<'a> {
    /// Gives the interpreter, which is there only when something is compiled.
    pub interpreter: Box<dyn Fn() -> Result<Arc<Interpreter>, EngineError> + 'a>,
    /// Which modules.
    pub modules: &'a Modules,
    /// Processes.
    pub threads: usize,
    /// What the last archive of the same package became.
    pub earlier: Option<Earlier>,
    /// Who hears how many modules were compiled.
    pub observer: &'a dyn Observer,
}

/// A module of a wheel.
pub struct Module {
    /// Where it is installed.
    pub path: ImagePath,
    /// The number of its source in the wheel.
    pub entry: usize,
    /// What RECORD says of its source: `sha256=...`.
    pub recorded: String,
}

/// The packages of an interpreter.
struct Packed {
    digest: Digest,
    python: String,
    fragments: Vec<Arc<Fragment>>,
}

/// The imports of a wheel's modules, by path below `site-packages`.
type WheelImports = Vec<(String, Vec<imports::Import>)>;

/// The record of a [`WheelImports`].
#[derive(Serialize, Deserialize)]
struct ImportsRecord {
    imports: Digest,
}

impl Compiler<'_> {
    /// Whether a file below `site` is a module that is to be compiled.
    pub fn wants(&self, site: &ImagePath, file: &ImagePath) -> bool {
        let relative = || file.as_str().strip_prefix(site.as_str())?.strip_prefix('/');
        file.as_str().ends_with(".py")
            && match self.modules {
                Modules::All => true,
                Modules::Files(files) => relative().is_some_and(|path| files.contains(path)),
                Modules::None | Modules::ImportedBy(_) => false,
            }
    }

    /// The byte-code of a wheel's modules below `site`, by where the import system looks for it. Only what the last wheel of
    /// the package does not have is compiled; `read` reads an entry of the wheel.
    pub fn byte_code(
        &self,
        name: &str,
        site: &ImagePath,
        python: &str,
        modules: &[Module],
        read: &mut dyn FnMut(usize) -> Result<Vec<u8>, EngineError>,
    ) -> Result<Vec<Added>, EngineError> {
        let mut known = match &self.earlier {
            Some(earlier) => earlier.byte_code(site, python, modules.iter().map(|it| (&it.path, it.recorded.as_str()))),
            None => Vec::new(),
        };
        known.resize_with(modules.len(), || None);
        let (mut made, mut sources) = (Vec::new(), Vec::new());
        for (module, known) in modules.iter().zip(known) {
            match (known, bytecode::cache_path(&module.path, python)) {
                (Some(pyc), Some(path)) => made.push(Added { path, bytes: pyc.bytes, hash: pyc.hash }),
                _ => sources.push((module.path.clone(), read(module.entry)?)),
            }
        }
        self.observer.on(Event::ByteCode { name, compiled: sources.len(), taken: made.len() });
        if !sources.is_empty() {
            let compiled = compiled(&*(self.interpreter)()?, python, &sources, self.threads)?;
            made.extend(compiled.into_iter().map(|(path, bytes)| Added::new(path, bytes)));
        }
        Ok(made)
    }
}

/// Compiles modules; what they become is named by where the import system looks for it.
fn compiled(
    interpreter: &Interpreter,
    python: &str,
    modules: &[(ImagePath, Vec<u8>)],
    threads: usize,
) -> Result<Vec<(ImagePath, Vec<u8>)>, CompileError> {
    let named = |(path, pyc)| bytecode::cache_path(&path, python).map(|path| (path, pyc));
    Ok(interpreter.compile(modules, threads)?.into_iter().filter_map(named).collect())
}

impl Local<'_> {
    /// Builds what is built from source, and turns "what is imported by" into files, wheel by wheel, so that the key of a wheel's fragment changes only where
    /// the choice within that wheel does.
    pub fn settle(&self, subject: Subject<'_>, resolved: &Resolved) -> Result<Resolved, EngineError> {
        self.interpreters.learn(resolved);
        let resolved = &self.build_sdists(subject, resolved)?;
        let mut groups: BTreeMap<String, (BTreeSet<String>, Vec<&Archive>, String)> = BTreeMap::new();
        for op in resolved.layers.iter().flat_map(LayerPlan::ops) {
            if let Op::Unpack { archive, conversion: Conversion::Wheel { venv, python, bytecode: Some(wanted) } } = op
                && let Modules::ImportedBy(roots) = &wanted.modules
            {
                let group = groups.entry(group_name(venv, roots));
                group.or_insert_with(|| (roots.clone(), Vec::new(), python.clone())).1.push(archive);
            }
        }
        let mut chosen: BTreeMap<(String, Digest), BTreeSet<String>> = BTreeMap::new();
        for (name, (roots, wheels, python)) in groups {
            let known = self.imports_of(&wheels, &python)?;
            let mut graph = imports::Graph::new();
            for (wheel, modules) in &known {
                for (path, imports) in modules {
                    graph.add(path, imports, (*wheel, path));
                }
            }
            let files = graph.imported_by(&roots).map_err(|module| CompileError::NoModule { module })?;
            for (wheel, path) in files {
                chosen.entry((name.clone(), *wheel)).or_default().insert((*path).clone());
            }
        }
        let mut settled = resolved.clone();
        for op in settled.layers.iter_mut().flat_map(LayerPlan::ops_mut) {
            if let Op::Unpack { archive, conversion: Conversion::Wheel { venv, bytecode, .. } } = op
                && let Some(ByteCode { modules, .. }) = bytecode
                && let Modules::ImportedBy(roots) = modules
            {
                match chosen.remove(&(group_name(venv, roots), archive.digest)) {
                    Some(files) => *modules = Modules::Files(files),
                    None => *bytecode = None,
                }
            }
        }
        Ok(settled)
    }

    fn imports_of(&self, wheels: &[&Archive], python: &str) -> Result<BTreeMap<Digest, WheelImports>, EngineError> {
        let all = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            // Downloads run ahead of the readers, as they do for conversions.
            let ahead = begin(scope, || {
                in_parallel(super::local::DOWNLOADS, wheels, |wheel| {
                    let known = self.store.find(&imports_key(wheel, python).0)?.is_some();
                    if known { Ok(()) } else { self.supply.supply(wheel).map(drop) }
                })
            });
            let read = in_parallel(self.jobs, wheels, |wheel| {
                let imports = self.wheel_imports(wheel, python)?;
                lock(&all).insert(wheel.digest, imports);
                Ok(())
            });
            let supplied = ahead.map_or(Ok(()), end);
            supplied.and(read)
        })?;
        Ok(unlocked(all))
    }

    fn wheel_imports(&self, archive: &Archive, python: &str) -> Result<WheelImports, EngineError> {
        let (key, text) = imports_key(archive, python);
        if let Some(record) = self.store.find(&key)?
            && let Ok(record) = serde_json::from_slice::<ImportsRecord>(&record)
            && let Some(bytes) = self.store.read(&record.imports)?
            && let Ok(imports) = postcard::from_bytes(&bytes)
        {
            return Ok(imports);
        }
        self.supply.supply(archive)?;
        let file = match self.store.open_verified(&archive.digest)? {
            Some(file) => file,
            None => std::fs::File::open(self.supply.supply(archive)?)?,
        };
        let failed = |source| EngineError::Format { archive: archive.name.clone(), source };
        let (mut wheel, scheme) = open_wheel(file, &archive.name, "/v", python, Tails::PassedOver).map_err(failed)?;
        let below = format!("{}/", scheme.site_packages());
        let mut found = WheelImports::new();
        for file in wheel.install(&scheme).map_err(failed)?.files {
            let WheelContent::Entry(index) = file.content else { continue };
            let Some(path) = file.path.as_str().strip_prefix(&below) else { continue };
            if imports::module_of(path).is_some() {
                let mut source = Vec::new();
                wheel.copy_to(index, &mut source).map_err(failed)?;
                found.push((path.to_owned(), imports::imports(&source)));
            }
        }
        let bytes = postcard::to_stdvec(&found).expect("imports have no values that postcard cannot say");
        let record = ImportsRecord { imports: self.store.put(&bytes)?.digest };
        self.store.keep(&key, &text, &record)?;
        Ok(found)
    }

    /// Who compiles what `wanted` names.
    pub(super) fn compiler<'m>(&'m self, wanted: &'m ByteCode) -> Result<Compiler<'m>, EngineError> {
        let packed = self.packed(&wanted.interpreter)?;
        let observer = self.observer;
        let interpreter = Box::new(move || self.interpreter(&packed));
        Ok(Compiler { interpreter, modules: &wanted.modules, threads: self.jobs, earlier: None, observer })
    }

    /// The packages of an interpreter as fragments.
    fn packed(&self, digest: &Digest) -> Result<Packed, EngineError> {
        let known = lock(&self.interpreters.known).get(digest).cloned();
        let known = known.expect("a stage's interpreters are learnt before its archives are converted");
        let host = Platform::native();
        // What this machine runs natively, else what it may run by emulation.
        let packages = host.and_then(|host| known.packages.get(&host)).or_else(|| known.packages.values().next());
        let fragments = packages.into_iter().flatten().map(|package| {
            let conversion = Conversion::Deb { exclude: package.exclude.clone() };
            self.unpack(&package.archive, &conversion, &Drops::new())
        });
        Ok(Packed { digest: *digest, python: known.python, fragments: fragments.collect::<Result<_, _>>()? })
    }

    /// The interpreter of these packages, unpacked by whoever asks first.
    fn interpreter(&self, packed: &Packed) -> Result<Arc<Interpreter>, EngineError> {
        let mut running = lock(&self.interpreters.running);
        if let Some(found) = running.get(&packed.digest) {
            return Ok(found.clone());
        }
        self.may_make()?;
        let mut parts = Vec::new();
        for fragment in &packed.fragments {
            let is_needed = |at: &usize| bytecode::is_needed(fragment.entries[*at].entry.path.as_str());
            let needed: Vec<usize> = (0..fragment.entries.len()).filter(is_needed).collect();
            let spans: Vec<(u64, u64)> = needed.iter().map(|at| span(fragment, *at).unwrap_or_default()).collect();
            let read = contents(&self.open(&fragment.blob)?, fragment, &spans, &self.cores)?;
            for (at, content) in needed.into_iter().zip(read) {
                let entry = &fragment.entries[at].entry;
                let (path, kind, mode) = (entry.path.clone(), entry.kind.clone(), entry.mode);
                parts.push(bytecode::Part { path, kind, mode, content });
            }
        }
        let interpreter = Interpreter::unpack(&self.store.scratch(), &packed.python, parts)?;
        running.insert(packed.digest, interpreter.clone());
        Ok(interpreter)
    }

    /// The byte-code of the packages' modules below.
    pub(super) fn compile(&self, wanted: &ByteCode, view: &View<'_>) -> Result<Arc<Fragment>, EngineError> {
        let known = lock(&self.interpreters.known);
        let python = known.get(&wanted.interpreter).map(|it| it.python.clone()).unwrap_or_default();
        drop(known);
        let roots = [format!("/usr/lib/python{python}"), "/usr/lib/python3/dist-packages".into()];
        let mut modules: Vec<(usize, ImagePath)> = Vec::new();
        for (at, root) in roots.iter().enumerate() {
            let Ok(root) = ImagePath::new(root.as_str()) else { continue };
            modules.extend(view.below(&root).filter(|entry| matches!(entry.kind, Kind::File { .. })).filter_map(
                |entry| {
                    let cached = bytecode::cache_path(&entry.path, &python)?;
                    view.entry(&cached).is_none().then(|| (at, entry.path.clone()))
                },
            ));
        }
        // A module: its root's number, its path, where its source starts and how long it is.
        type Source = (usize, ImagePath, (u64, u64));
        let mut by_fragment: BTreeMap<Digest, (Arc<Fragment>, Vec<Source>)> = BTreeMap::new();
        for (root, path) in modules {
            let Some((fragment, position)) = view.origin(&path) else { continue };
            if let Some(span) = span(fragment, position) {
                let list = by_fragment.entry(fragment.blob).or_insert_with(|| (fragment.clone(), Vec::new()));
                list.1.push((root, path, span));
            }
        }
        let mut hasher = KeyHasher::new("compile", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("version", bytecode::VERSION).field("imports", imports::VERSION);
        hasher.field("interpreter", wanted.interpreter);
        hasher.field("modules", serde_json::to_string(&wanted.modules).expect("plain strings"));
        for (blob, (_, files)) in &by_fragment {
            let names: String = files.iter().map(|(_, path, ..)| format!("{path}\n")).collect();
            hasher.field("fragment", blob).field("files", Digest::of(names.as_bytes()));
        }
        let (key, text) = hasher.finish();
        self.kept(key, &text, || {
            let mut sources: Vec<(usize, ImagePath, Vec<u8>)> = Vec::new();
            for (fragment, files) in by_fragment.into_values() {
                let spans: Vec<(u64, u64)> = files.iter().map(|(_, _, span)| *span).collect();
                let read = contents(&self.open(&fragment.blob)?, &fragment, &spans, &self.cores)?;
                sources.extend(files.into_iter().zip(read).map(|((root, path, _), source)| (root, path, source)));
            }
            let sources = match &wanted.modules {
                Modules::ImportedBy(names) => imported(&roots, sources, names)?,
                _ => sources.into_iter().map(|(_, path, source)| (path, source)).collect(),
            };
            let interpreter = self.interpreter(&self.packed(&wanted.interpreter)?)?;
            let mut made = Made::default();
            for (path, pyc) in compiled(&interpreter, &python, &sources, self.jobs)? {
                let kind = Kind::File { size: pyc.len() as u64 };
                made.push(Entry::new(path, kind, 0o644, EPOCH), Content::Bytes(pyc));
            }
            Ok(made)
        })
    }
}

impl Interpreters {
    /// Remembers what a stage says of its interpreters.
    pub(super) fn learn(&self, resolved: &Resolved) {
        let mut known = lock(&self.known);
        known.extend(resolved.interpreters.iter().map(|(digest, interpreter)| (*digest, interpreter.clone())));
    }
}

/// An archive's file, as it is read: mostly from front to back.
pub(super) fn window(file: std::fs::File) -> Window<std::fs::File> {
    Window::new(file, 256 << 10)
}

/// Opens a wheel for an environment.
pub(super) fn open_wheel(
    file: std::fs::File,
    name: &str,
    venv: &str,
    python: &str,
    tails: Tails,
) -> Result<(Wheel<Window<std::fs::File>>, Scheme), FormatError> {
    let limits = Limits::default();
    let archive = zip::Archive::open(window(file), &limits)?.with(tails);
    let wheel = Wheel::open(archive, &name.parse::<WheelName>()?, &limits)?;
    let venv = ImagePath::new(venv).map_err(|_| FormatError::Name {
        format: "wheel",
        name: venv.to_owned(),
        why: "an environment needs an absolute path",
    })?;
    Ok((wheel, Scheme::new(venv, python)?))
}

fn group_name(venv: &ImagePath, roots: &BTreeSet<String>) -> String {
    format!("{venv}\n{}", roots.iter().map(String::as_str).collect::<Vec<_>>().join("\n"))
}

fn imports_key(archive: &Archive, python: &str) -> (layers::Key, String) {
    let mut hasher = KeyHasher::new("imports", imports::VERSION);
    hasher.field("name", &archive.name).field("wheel", archive.digest).field("python", python);
    hasher.finish()
}

fn imported(
    roots: &[String],
    sources: Vec<(usize, ImagePath, Vec<u8>)>,
    names: &BTreeSet<String>,
) -> Result<Vec<(ImagePath, Vec<u8>)>, CompileError> {
    let found: Vec<Vec<imports::Import>> = sources.iter().map(|(_, _, source)| imports::imports(source)).collect();
    let mut graph = imports::Graph::new();
    for (at, ((root, path, _), imports)) in sources.iter().zip(&found).enumerate() {
        let relative = path.as_str()[roots[*root].len()..].trim_start_matches('/');
        graph.add(relative, imports, at);
    }
    let reached: BTreeSet<usize> =
        graph.imported_by(names).map_err(|module| CompileError::NoModule { module })?.into_iter().copied().collect();
    let chosen = sources.into_iter().enumerate().filter(|(at, _)| reached.contains(at));
    Ok(chosen.map(|(_, (_, path, source))| (path, source)).collect())
}
