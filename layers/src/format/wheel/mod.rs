//! Wheels (binary distribution format specification, PEP 427) and what installing one puts where.
//!
//! [`Wheel::install`] is a pure function: it plans the files that `pip install --no-deps --no-compile` would write into
//! a virtual environment. It differs from pip on purpose in this:
//!
//! - every file must be in the wheel's RECORD with a SHA-256 or better, and the other way round (pip does not look);
//! - INSTALLER says `imgbuild`; REQUESTED and direct_url.json are not written, because a lock is neither;
//! - byte-code is left out where it can be made again: `__pycache__`, and a `.pyc` beside its `.py`;
//! - RECORD lists exactly the files that are installed (pip keeps the lines of wrappers that it does not install);
//! - a path that two files claim is an error, where pip lets the last one win.

mod name;
mod record;
mod scripts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

pub use self::name::{WheelName, normalised};
pub use self::record::{RecordRow, Verifier, parse_record, write_record};

use self::record::Expected;
use self::scripts::EntryPoints;
use super::error::lossy;
use super::zip::{Archive, Directory};
use super::{FormatError, Limits};
use crate::encode::EPOCH;
use crate::path::ImagePath;

const FORMAT: &str = "wheel";

/// Who installed it, for INSTALLER (PEP 376).
const INSTALLER: &[u8] = b"imgbuild\n";

fn refused(name: &str, why: impl Into<String>) -> FormatError {
    FormatError::Entry { format: FORMAT, name: lossy(name.as_bytes()), why: why.into() }
}

/// Where a wheel is installed: a virtual environment, in which pure and platform libraries share one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    venv: ImagePath,
    python: String,
    site_packages: ImagePath,
}

impl Scheme {
    /// The environment at `venv` for a Python such as `3.13`.
    pub fn new(venv: ImagePath, python: &str) -> Result<Scheme, FormatError> {
        let digits = |text: &str| !text.is_empty() && text.len() < 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        let bad = |why| FormatError::Name { format: FORMAT, name: lossy(python.as_bytes()), why };
        if !python.split_once('.').is_some_and(|(major, minor)| digits(major) && digits(minor)) {
            return Err(bad("a Python version here is two numbers, such as `3.13`"));
        }
        let site_packages = venv.join(&format!("lib/python{python}/site-packages"));
        let site_packages = site_packages.map_err(|_| bad("the path of its environment is too long"))?;
        Ok(Scheme { venv, python: python.to_owned(), site_packages })
    }

    /// The environment's root.
    pub fn venv(&self) -> &ImagePath {
        &self.venv
    }

    /// Where modules go: `VENV/lib/pythonX.Y/site-packages`.
    pub fn site_packages(&self) -> &ImagePath {
        &self.site_packages
    }

    /// What scripts start: `VENV/bin/python`.
    pub fn interpreter(&self) -> ImagePath {
        self.venv.join("bin/python").unwrap_or_else(|_| self.venv.clone())
    }
}

/// What a planned file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The content of this entry of the wheel; [`Wheel::copy_to`] or [`Wheel::verifier`] checks it as it is read.
    Entry(usize),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// A file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Where.
    pub path: ImagePath,
    /// 0o644, or 0o755 for scripts and for what the wheel marks as executable.
    pub mode: u32,
    /// The zip's time; [`EPOCH`] for what is written here.
    pub mtime: i64,
    /// What is in it.
    pub content: Content,
}

/// The files that a wheel becomes, sorted by path. Directories are whatever they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The files.
    pub files: Vec<PlannedFile>,
    /// The `.dist-info` directory.
    pub dist_info: ImagePath,
}

/// A file that is installed beside a wheel's own.
pub struct Added {
    /// Where.
    pub path: ImagePath,
    /// Its content.
    pub bytes: Vec<u8>,
    /// What RECORD says of the content, as [`RecordRow::of`] does.
    pub hash: String,
}

impl Added {
    /// One with this content.
    pub fn new(path: ImagePath, bytes: Vec<u8>) -> Added {
        let hash = record::hash(&bytes);
        Added { path, bytes, hash }
    }
}

/// A wheel whose lists agree with each other.
pub struct Wheel<R> {
    archive: Archive<R>,
    said: Arc<Said>,
    /// The scripts that ask for the interpreter.
    placeholders: Arc<BTreeMap<usize, Vec<u8>>>,
}

/// What a wheel says about itself, all of it checked. Clones are the same.
#[derive(Clone)]
pub struct Known {
    directory: Directory,
    said: Arc<Said>,
    placeholders: Arc<BTreeMap<usize, Vec<u8>>>,
}

impl Known {
    /// Opens the wheel once more, of which nothing is read now. Should `file` be another one, its content is not what this says.
    pub fn open<R>(&self, file: R) -> Wheel<R> {
        let Known { directory, said, placeholders } = self.clone();
        Wheel { archive: directory.open(file), said, placeholders }
    }
}

struct Said {
    name: WheelName,
    /// `NAME-VERSION.dist-info`.
    dist_info: String,
    /// For each entry of the archive what RECORD says.
    rows: Vec<Option<(RecordRow, Option<Expected>)>>,
    entry_points: EntryPoints,
}

impl<R: Read + Seek> Wheel<R> {
    /// Reads what a wheel says about itself: WHEEL, RECORD, the entry points and its scripts' first lines.
    pub fn open(mut archive: Archive<R>, name: &WheelName, limits: &Limits) -> Result<Wheel<R>, FormatError> {
        let dist_info = find_dist_info(&archive, name)?;
        let mut metadata = |file: &str| -> Result<Option<Vec<u8>>, FormatError> {
            let path = format!("{dist_info}/{file}");
            let Some(index) = archive.find(&path) else { return Ok(None) };
            read_small(&mut archive, index, limits).map(Some)
        };
        let missing = |file: &str| refused(&format!("{dist_info}/{file}"), "it is missing");
        check_wheel(&metadata("WHEEL")?.ok_or_else(|| missing("WHEEL"))?, &dist_info)?;
        metadata("METADATA")?.ok_or_else(|| missing("METADATA"))?;
        let entry_points = match metadata("entry_points.txt")? {
            Some(text) => EntryPoints::parse(&text)?,
            None => EntryPoints::default(),
        };
        let record = parse_record(&metadata("RECORD")?.ok_or_else(|| missing("RECORD"))?)?;
        let rows = match_record(&archive, record, &dist_info)?;
        let said = Arc::new(Said { name: name.clone(), dist_info, rows, entry_points });
        let mut wheel = Wheel { archive, said, placeholders: Arc::default() };
        wheel.verify_metadata()?;
        wheel.placeholders = Arc::new(wheel.read_placeholders(limits)?);
        Ok(wheel)
    }

    /// What it says, for who opens it once more.
    pub fn known(&self) -> Known {
        let (said, placeholders) = (self.said.clone(), self.placeholders.clone());
        Known { directory: self.archive.directory(), said, placeholders }
    }

    /// The archive, for its entries and their raw streams.
    pub fn archive(&mut self) -> &mut Archive<R> {
        &mut self.archive
    }

    /// What RECORD says of the content of an entry; it is checked when the content is read.
    pub fn recorded(&self, index: usize) -> Option<&RecordRow> {
        self.said.rows.get(index)?.as_ref().map(|(row, _)| row)
    }

    /// Checks the content of an entry against RECORD, for who reads it without [`copy_to`](Self::copy_to).
    pub fn verifier(&self, index: usize) -> Verifier {
        let expected = self.said.rows[index].as_ref().and_then(|(_, expected)| expected.as_ref());
        Verifier::new(&self.archive.entries()[index].name, expected)
    }

    /// Writes the content of an entry to `out`, checked against the zip's CRC-32 and RECORD's digest. On an error, what was
    /// written is worthless.
    pub fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError> {
        let mut tee = Tee { verifier: self.verifier(index), out };
        let length = self.archive.copy_to(index, &mut tee)?;
        tee.verifier.finish()?;
        Ok(length)
    }

    /// Compares the content of an entry, as [`Archive::inflate`] gives it, with RECORD's digest.
    pub fn compare(&self, index: usize, content: &[u8]) -> Result<(), FormatError> {
        let mut verifier = self.verifier(index);
        verifier.update(content);
        verifier.finish()
    }

    /// Reads and checks every file.
    pub fn verify(&mut self) -> Result<(), FormatError> {
        for index in 0..self.said.rows.len() {
            self.copy_to(index, &mut io::sink())?;
        }
        Ok(())
    }

    /// Plans the files; see the module's documentation.
    pub fn install(&self, scheme: &Scheme) -> Result<Installed, FormatError> {
        self.install_with(scheme, Vec::new())
    }

    /// Plans the files and adds some that were made from them, such as byte-code; RECORD lists those too.
    pub fn install_with(&self, scheme: &Scheme, added: Vec<Added>) -> Result<Installed, FormatError> {
        let mut plan = InstallPlan { scheme, files: BTreeMap::new(), rows: Vec::new() };
        let interpreter = scheme.interpreter();
        let names: BTreeSet<&str> = self.archive.entries().iter().map(|entry| entry.name.as_str()).collect();
        let replaced = ["RECORD", "INSTALLER"].map(|file| format!("{}/{file}", self.said.dist_info));
        for (index, entry) in self.archive.entries().iter().enumerate() {
            if entry.is_dir() || replaced.contains(&entry.name) || is_byte_code(&entry.name, &names) {
                continue;
            }
            let Some(place) = self.place(&entry.name, scheme)? else { continue };
            let mode = if entry.is_executable() { 0o755 } else { 0o644 };
            let (content, hash, size) = match self.placeholders.get(&index) {
                Some(script) => {
                    let bytes = scripts::rewritten(script, &interpreter);
                    let (hash, size) = (record::hash(&bytes), bytes.len().to_string());
                    (Content::Bytes(bytes), hash, size)
                }
                None => {
                    let row = self.said.rows[index].as_ref();
                    let (hash, size) =
                        row.map_or_else(Default::default, |(row, _)| (row.hash.clone(), row.size.clone()));
                    (Content::Entry(index), hash, size)
                }
            };
            plan.add(PlannedFile { path: place, mode, mtime: entry.mtime, content }, hash, size)?;
        }
        for (name, callable) in self.said.entry_points.scripts(&scheme.python)? {
            plan.write(&scheme.venv, &format!("bin/{name}"), 0o755, scripts::script(&callable, &interpreter))?;
        }
        plan.write(&scheme.site_packages, &replaced[1], 0o644, INSTALLER.to_vec())?;
        for Added { path, bytes, hash } in added {
            let size = bytes.len().to_string();
            plan.add(PlannedFile { path, mode: 0o644, mtime: EPOCH, content: Content::Bytes(bytes) }, hash, size)?;
        }
        plan.finish(&self.said.dist_info)
    }

    /// Where a file of the wheel goes; `None` for wrappers of entry points, which are made anew.
    fn place(&self, name: &str, scheme: &Scheme) -> Result<Option<ImagePath>, FormatError> {
        let below = |root: &ImagePath, rest: &str| {
            root.join(rest).map(Some).map_err(|_| refused(name, "the path that it is installed to is too long"))
        };
        let (first, rest) = name.split_once('/').unwrap_or((name, ""));
        if !first.ends_with(".data") {
            return below(&scheme.site_packages, name);
        }
        let Some((key, rest)) = rest.split_once('/') else {
            return Err(refused(name, "files of a `.data` directory are in one of its five directories"));
        };
        match key {
            "purelib" | "platlib" => below(&scheme.site_packages, rest),
            "data" => below(&scheme.venv, rest),
            "scripts" if self.said.entry_points.wrap(rest.rsplit('/').next().unwrap_or(rest)) => Ok(None),
            "scripts" => below(&scheme.venv, &format!("bin/{rest}")),
            "headers" => {
                // pip names the directory after the requirement, which for a file is the normalised name since pip 25.1.
                let distribution = self.said.name.normalised();
                below(&scheme.venv, &format!("include/site/python{}/{distribution}/{rest}", scheme.python))
            }
            _ => Err(refused(name, "a `.data` directory has purelib, platlib, headers, scripts and data, no others")),
        }
    }

    /// The metadata was used already: it must be what RECORD lists.
    fn verify_metadata(&mut self) -> Result<(), FormatError> {
        for file in ["WHEEL", "METADATA", "entry_points.txt"] {
            if let Some(index) = self.archive.find(&format!("{}/{file}", self.said.dist_info)) {
                self.copy_to(index, &mut io::sink())?;
            }
        }
        Ok(())
    }

    fn read_placeholders(&mut self, limits: &Limits) -> Result<BTreeMap<usize, Vec<u8>>, FormatError> {
        let mut placeholders = BTreeMap::new();
        for index in 0..self.archive.entries().len() {
            let entry = &self.archive.entries()[index];
            let mut parts = entry.name.splitn(3, '/');
            let is_script = parts.next().is_some_and(|first| first.ends_with(".data"))
                && parts.next() == Some("scripts")
                && !entry.is_dir();
            if !is_script {
                continue;
            }
            // Some scripts are large binaries: their start tells.
            let mut start = Vec::new();
            self.archive.reader(index)?.take(scripts::PLACEHOLDER.len() as u64).read_to_end(&mut start)?;
            if start == scripts::PLACEHOLDER {
                let script = read_small(&mut self.archive, index, limits)?;
                let mut verifier = self.verifier(index);
                verifier.update(&script);
                verifier.finish()?;
                placeholders.insert(index, script);
            }
        }
        Ok(placeholders)
    }
}

struct Tee<'a> {
    verifier: Verifier,
    out: &'a mut dyn Write,
}

impl Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.verifier.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The files of an installation as they gather.
struct InstallPlan<'a> {
    scheme: &'a Scheme,
    files: BTreeMap<ImagePath, PlannedFile>,
    rows: Vec<RecordRow>,
}

impl InstallPlan<'_> {
    fn add(&mut self, file: PlannedFile, hash: String, size: String) -> Result<(), FormatError> {
        self.rows.push(RecordRow { path: relative(&file.path, &self.scheme.site_packages), hash, size });
        let path = file.path.clone();
        match self.files.insert(path.clone(), file) {
            None => Ok(()),
            Some(_) => Err(refused(path.as_str(), "two files of the wheel are installed to this path")),
        }
    }

    fn write(&mut self, root: &ImagePath, path: &str, mode: u32, bytes: Vec<u8>) -> Result<(), FormatError> {
        let path = root.join(path).map_err(|_| refused(path, "the path that it is installed to is too long"))?;
        let (hash, size) = (record::hash(&bytes), bytes.len().to_string());
        self.add(PlannedFile { path, mode, mtime: EPOCH, content: Content::Bytes(bytes) }, hash, size)
    }

    fn finish(mut self, dist_info: &str) -> Result<Installed, FormatError> {
        let long = || refused(dist_info, "the path that it is installed to is too long");
        let dist_info = self.scheme.site_packages.join(dist_info).map_err(|_| long())?;
        let path = dist_info.join("RECORD").map_err(|_| long())?;
        let own =
            RecordRow { path: relative(&path, &self.scheme.site_packages), hash: String::new(), size: String::new() };
        self.rows.push(own);
        let content = Content::Bytes(write_record(self.rows).into_bytes());
        self.files.insert(path.clone(), PlannedFile { path, mode: 0o644, mtime: EPOCH, content });
        let paths: BTreeSet<&str> = self.files.keys().map(ImagePath::as_str).collect();
        for path in &paths {
            let below = format!("{path}/");
            if let Some(next) = paths.range(below.as_str()..).next().filter(|next| next.starts_with(&below)) {
                return Err(refused(next, format!("it lies below `{path}`, which is a file")));
            }
        }
        Ok(Installed { files: self.files.into_values().collect(), dist_info })
    }
}

/// A path as RECORD writes it, relative to `base`: `../../../bin/x` for scripts.
fn relative(path: &ImagePath, base: &ImagePath) -> String {
    let (path, base): (Vec<&str>, Vec<&str>) =
        (path.relative().split('/').collect(), base.relative().split('/').collect());
    let common = path.iter().zip(&base).take_while(|(one, other)| one == other).count();
    let mut parts = vec![".."; base.len() - common];
    parts.extend(&path[common..]);
    parts.join("/")
}

/// Byte-code that Python can make again: what lies in `__pycache__`, or beside its source.
fn is_byte_code(name: &str, names: &BTreeSet<&str>) -> bool {
    name.split('/').any(|component| component == "__pycache__")
        || name
            .strip_suffix("pyc")
            .or_else(|| name.strip_suffix("pyo"))
            .is_some_and(|stem| stem.ends_with('.') && names.contains(format!("{stem}py").as_str()))
}

/// The one `.dist-info` directory, which belongs to this distribution; a `.data` directory, if there is one, does too.
fn find_dist_info<R: Read + Seek>(archive: &Archive<R>, name: &WheelName) -> Result<String, FormatError> {
    let firsts: BTreeSet<&str> =
        archive.entries().iter().filter_map(|entry| entry.name.split_once('/')).map(|(first, _)| first).collect();
    let belongs = |stem: &str| {
        let rest = normalised(stem);
        rest.strip_prefix(&name.normalised()).is_some_and(|rest| rest.starts_with('-'))
    };
    let mut found: Option<&str> = None;
    for first in &firsts {
        let Some(stem) = first.strip_suffix(".dist-info").or_else(|| first.strip_suffix(".data")) else { continue };
        if !belongs(stem) {
            return Err(refused(first, format!("it does not belong to `{}`", name.name)));
        }
        if first.ends_with(".dist-info")
            && let Some(other) = found.replace(first)
        {
            return Err(refused(first, format!("`{other}` is there too, but a wheel is of one distribution")));
        }
    }
    found.map(str::to_owned).ok_or_else(|| refused(&name.to_string(), "it has no `.dist-info` directory"))
}

fn read_small<R: Read + Seek>(archive: &mut Archive<R>, index: usize, limits: &Limits) -> Result<Vec<u8>, FormatError> {
    if archive.entries()[index].size > limits.max_metadata {
        let limit = limits.max_metadata;
        return Err(FormatError::Limit { format: FORMAT, what: "the size of a metadata file in bytes", limit });
    }
    archive.read(index)
}

/// WHEEL must be of version 1. Root-Is-Purelib decides nothing here: a virtual environment has one directory for both.
fn check_wheel(text: &[u8], dist_info: &str) -> Result<(), FormatError> {
    let path = format!("{dist_info}/WHEEL");
    let text = std::str::from_utf8(text).map_err(|_| refused(&path, "it is not UTF-8"))?;
    let mut versions = text.lines().take_while(|line| !line.is_empty()).filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case("Wheel-Version").then_some(value.trim())
    });
    let version = versions.next().ok_or_else(|| refused(&path, "it has no Wheel-Version"))?;
    if versions.next().is_some() {
        return Err(refused(&path, "it has two Wheel-Versions"));
    }
    match version.split_once('.') {
        Some(("1", minor)) if !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            Ok(())
        }
        _ => Err(refused(&path, format!("its Wheel-Version is `{}`, not 1.x", lossy(version.as_bytes())))),
    }
}

type Matched = Option<(RecordRow, Option<Expected>)>;

/// Pairs the entries with RECORD's rows. Each file has one and each row a file; RECORD and its signatures need no digest.
fn match_record<R: Read + Seek>(
    archive: &Archive<R>,
    record: Vec<RecordRow>,
    dist_info: &str,
) -> Result<Vec<Matched>, FormatError> {
    let mut rows: BTreeMap<String, RecordRow> = BTreeMap::new();
    for row in record {
        let path = row.path.clone();
        if rows.insert(path.clone(), row.clone()).is_some_and(|before| before != row) {
            return Err(refused(&path, "its RECORD lists it twice, in different ways"));
        }
    }
    let excused = ["RECORD", "RECORD.jws", "RECORD.p7s"].map(|file| format!("{dist_info}/{file}"));
    let mut matched = Vec::with_capacity(archive.entries().len());
    for entry in archive.entries() {
        if entry.is_dir() {
            matched.push(None);
            continue;
        }
        let is_excused = excused.contains(&entry.name);
        let Some(row) = rows.remove(&entry.name) else {
            if !is_excused {
                return Err(refused(&entry.name, "its RECORD does not list it"));
            }
            matched.push(None);
            continue;
        };
        if !row.size.is_empty() && row.size.parse() != Ok(entry.size) && !is_excused {
            let why = format!("it has {} bytes, but its RECORD says `{}`", entry.size, lossy(row.size.as_bytes()));
            return Err(refused(&entry.name, why));
        }
        let expected = if is_excused { None } else { Some(Expected::of(&row)?) };
        matched.push(Some((row, expected)));
    }
    match rows.into_keys().find(|path| !excused.contains(path)) {
        Some(missing) => Err(refused(&missing, "its RECORD lists it, but it is not in the wheel")),
        None => Ok(matched),
    }
}
