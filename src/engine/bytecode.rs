//! Byte-code as the engine makes it: the interpreter from the image's own packages, the choice of modules, and the
//! fragment of the standard library's byte-code.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use layers::encode::{EPOCH, Entry, Kind, LAYER_FORMAT, TarReader};
use layers::format::wheel::{Content as WheelContent, Scheme, Wheel, WheelName};
use layers::format::{FormatError, Limits, Window, zip};
use layers::lower::Resolved;
use layers::op::{self, Archive, ByteCode, Conversion, Op};
use layers::source::Modules;
use layers::{Digest, ImagePath, KeyHasher, Platform};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::convert::Drops;
use super::index::{Fragment, INDEX_FORMAT};
use super::local::{Local, Subject};
use super::made::{Content, Made};
use super::tree::Tree as _;
use super::view::View;
use crate::parallel::in_parallel;
use crate::python::bytecode::{self, CompileError, Interpreter, imports};

/// The interpreters of a build: what is known of them, and those that run.
#[derive(Default)]
pub struct Interpreters {
    known: Mutex<BTreeMap<Digest, op::Interpreter>>,
    running: Mutex<BTreeMap<Digest, Arc<Interpreter>>>,
}

/// Who compiles the modules of an archive.
pub struct Compiler<'a> {
    /// The interpreter.
    pub interpreter: Arc<Interpreter>,
    /// Which modules.
    pub modules: &'a Modules,
    /// Processes.
    pub threads: usize,
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

    /// Compiles modules; what they become is named by where the import system looks for it.
    pub fn compile(
        &self,
        python: &str,
        modules: Vec<(ImagePath, Vec<u8>)>,
    ) -> Result<Vec<(ImagePath, Vec<u8>)>, CompileError> {
        let compiled = self.interpreter.compile(&modules, self.threads)?;
        Ok(compiled
            .into_iter()
            .filter_map(|(path, pyc)| bytecode::cache_path(&path, python).map(|path| (path, pyc)))
            .collect())
    }
}

impl Local<'_> {
    /// Builds what is built from source, and turns "what is imported by" into files, wheel by wheel, so that the key of a wheel's fragment changes only where
    /// the choice within that wheel does.
    pub fn settle(&self, subject: Subject<'_>, resolved: &Resolved) -> Result<Resolved, EngineError> {
        self.interpreters.learn(resolved);
        let resolved = &self.build_sdists(subject, resolved)?;
        let mut groups: BTreeMap<String, (BTreeSet<String>, Vec<&Archive>, String)> = BTreeMap::new();
        for op in resolved.layers.iter().flat_map(|layer| &layer.ops) {
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
        for op in settled.layers.iter_mut().flat_map(|layer| &mut layer.ops) {
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
            let ahead = scope.spawn(|| {
                in_parallel(super::local::DOWNLOADS, wheels, |wheel| {
                    let known = self.store.find(&imports_key(wheel, python).0)?.is_some();
                    if known { Ok(()) } else { self.supply.supply(wheel).map(drop) }
                })
            });
            let read = in_parallel(self.jobs, wheels, |wheel| {
                let imports = self.wheel_imports(wheel, python)?;
                all.lock().unwrap_or_else(PoisonError::into_inner).insert(wheel.digest, imports);
                Ok(())
            });
            let supplied = ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            supplied.and(read)
        })?;
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
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
        let path = self.supply.supply(archive)?;
        let failed = |source| EngineError::Format { archive: archive.name.clone(), source };
        let (mut wheel, scheme) =
            open_wheel(std::fs::File::open(path)?, &archive.name, "/v", python).map_err(failed)?;
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
    pub(super) fn compiler<'m>(&self, wanted: &'m ByteCode) -> Result<Compiler<'m>, EngineError> {
        let interpreter = self.interpreter(&wanted.interpreter)?;
        Ok(Compiler { interpreter, modules: &wanted.modules, threads: self.jobs })
    }

    fn interpreter(&self, digest: &Digest) -> Result<Arc<Interpreter>, EngineError> {
        let mut running = self.interpreters.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = running.get(digest) {
            return Ok(found.clone());
        }
        let known = self.interpreters.known.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        let known = known.expect("a stage's interpreters are learnt before its archives are converted");
        let host = Platform::native();
        // What this machine runs natively, else what it may run by emulation.
        let packages = host.and_then(|host| known.packages.get(&host)).or_else(|| known.packages.values().next());
        let mut parts = Vec::new();
        for package in packages.into_iter().flatten() {
            let conversion = Conversion::Deb { exclude: package.exclude.clone() };
            let fragment = self.unpack(&package.archive, &conversion, &Drops::new())?;
            let tar = self.whole_tar(&fragment)?;
            for indexed in fragment.entries.iter().filter(|it| bytecode::is_needed(it.entry.path.as_str())) {
                let content = match indexed.entry.kind {
                    Kind::File { size } => part_of(&tar, indexed.offset, size)?.to_vec(),
                    _ => Vec::new(),
                };
                let entry = &indexed.entry;
                let (path, kind, mode) = (entry.path.clone(), entry.kind.clone(), entry.mode);
                parts.push(bytecode::Part { path, kind, mode, content });
            }
        }
        let interpreter = Interpreter::unpack(&self.store.scratch(), &known.python, parts)?;
        running.insert(*digest, interpreter.clone());
        Ok(interpreter)
    }

    /// The byte-code of the packages' modules below.
    pub(super) fn compile(&self, wanted: &ByteCode, view: &View<'_>) -> Result<Arc<Fragment>, EngineError> {
        let known = self.interpreters.known.lock().unwrap_or_else(PoisonError::into_inner);
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
        type Module = (usize, ImagePath, u64, u64);
        let mut by_fragment: BTreeMap<Digest, (Arc<Fragment>, Vec<Module>)> = BTreeMap::new();
        for (root, path) in modules {
            let Some((fragment, position)) = view.origin(&path) else { continue };
            let indexed = &fragment.entries[position];
            if let Kind::File { size } = indexed.entry.kind {
                let list = by_fragment.entry(fragment.blob).or_insert_with(|| (fragment.clone(), Vec::new()));
                list.1.push((root, path, indexed.offset, size));
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
                let tar = self.whole_tar(&fragment)?;
                for (root, path, offset, size) in files {
                    sources.push((root, path, part_of(&tar, offset, size)?.to_vec()));
                }
            }
            let sources = match &wanted.modules {
                Modules::ImportedBy(names) => imported(&roots, sources, names)?,
                _ => sources.into_iter().map(|(_, path, source)| (path, source)).collect(),
            };
            let interpreter = self.interpreter(&wanted.interpreter)?;
            let compiler = Compiler { interpreter, modules: &Modules::All, threads: self.jobs };
            let mut made = Made::default();
            for (path, pyc) in compiler.compile(&python, sources)? {
                let kind = Kind::File { size: pyc.len() as u64 };
                made.push(Entry::new(path, kind, 0o644, EPOCH), Content::Bytes(pyc));
            }
            Ok(made)
        })
    }

    /// The tar of a fragment.
    pub(super) fn whole_tar(&self, fragment: &Fragment) -> Result<Vec<u8>, EngineError> {
        let gone = || EngineError::from(layers::encode::EncodeError::Damaged("it is gone"));
        let bytes = std::io::BufReader::with_capacity(256 << 10, self.open_here(&fragment.blob)?.ok_or_else(gone)?);
        let mut tar = Vec::with_capacity(usize::try_from(fragment.layout.tar_size).unwrap_or_default());
        TarReader::new(bytes, fragment.layout.members.iter().copied()).read_to_end(&mut tar)?;
        Ok(tar)
    }
}

impl Interpreters {
    /// Remembers what a stage says of its interpreters.
    pub(super) fn learn(&self, resolved: &Resolved) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(resolved.interpreters.iter().map(|(digest, interpreter)| (*digest, interpreter.clone())));
    }
}

/// Opens a wheel for an environment.
pub(super) fn open_wheel(
    file: std::fs::File,
    name: &str,
    venv: &str,
    python: &str,
) -> Result<(Wheel<Window<std::fs::File>>, Scheme), FormatError> {
    let limits = Limits::default();
    let archive = zip::Archive::open(Window::new(file, 256 << 10), &limits)?;
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

fn part_of(tar: &[u8], offset: u64, size: u64) -> Result<&[u8], EngineError> {
    let end = offset.checked_add(size).and_then(|end| usize::try_from(end).ok());
    let part = usize::try_from(offset).ok().zip(end).and_then(|(start, end)| tar.get(start..end));
    part.ok_or_else(|| layers::encode::EncodeError::Damaged("it is shorter than its index says").into())
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
