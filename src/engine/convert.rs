//! Archives become fragments: a pure function of the archive's bytes and the conversion.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;
use layers::encode::{DeflateStream, EPOCH, Entry, Kind};
use layers::format::deb::Deb;
use layers::format::wheel::{self, Wheel};
use layers::format::{FormatError, Limits, Window, decoder_memory, decompress, tar, zip};
use layers::op::{Archive, Conversion};
use layers::source::{Modules, Owner, Unpack};
use layers::{Digest, ImagePath};

use super::EngineError;
use super::bytecode::{Compiler, Module, open_wheel, window};
use super::index::{Fragment, PackageFacts};
use super::made::{Content, Deflated, Made, Packed, ReadStream};
use super::spool::{Room, Spool, Whole};
use crate::debian::{effects, scripts};
use crate::python::bytecode::{self, imports};

/// Paths that are left out of one package because another one replaces them.
pub type Drops = BTreeSet<ImagePath>;

/// The version of a conversion's rules; part of the fragment's key.
pub fn version(conversion: &Conversion) -> u32 {
    match conversion {
        Conversion::Deb { .. } => 200 + scripts::VERSION,
        Conversion::Wheel { bytecode: Some(wanted), .. } => match wanted.modules {
            Modules::ImportedBy(_) => 1 + 100 * bytecode::VERSION + 10_000 * imports::VERSION,
            _ => 1 + 100 * bytecode::VERSION,
        },
        Conversion::Wheel { .. } | Conversion::Unpack { .. } | Conversion::File { .. } => 1,
    }
}

/// Reads an archive and lays its entries out; `compiler` makes the byte-code that a conversion asks for.
pub fn convert(
    path: &Path,
    archive: &Archive,
    conversion: &Conversion,
    drops: &Drops,
    room: &Room,
    compiler: Option<&Compiler<'_>>,
) -> Result<Made<'static>, EngineError> {
    let file = File::open(path)?;
    let failed = |source| EngineError::Format { archive: archive.name.clone(), source };
    match conversion {
        Conversion::Deb { exclude } => deb(file, exclude, drops, room).map_err(failed),
        Conversion::Wheel { venv, python, .. } => {
            let mut made = wheel(file, path, &archive.name, venv, python, compiler, room)?;
            made.entries.retain(|(entry, _)| !drops.contains(&entry.path));
            Ok(made)
        }
        Conversion::Unpack { how: Unpack::Tar, to, strip_components, owner } => {
            let place = Place { to, strip: *strip_components, owner: Some(*owner) };
            let made = Made { spool: Some(Spool::new(room)), ..Made::default() };
            let (limits, mut file) = (Limits::default(), BufReader::with_capacity(256 << 10, file));
            let _share = room.decoders().take(decoder_memory(file.fill_buf()?, &limits));
            let reader = decompress(file, &limits).map_err(failed)?;
            unpack_tar(reader, &place, made).map_err(failed)
        }
        Conversion::Unpack { how: Unpack::Zip, to, strip_components, owner } => {
            let place = Place { to, strip: *strip_components, owner: Some(*owner) };
            unpack_zip(file, path, &archive.name, &place, room).map_err(failed)
        }
        Conversion::File { to, mode, owner } => {
            let size = file.metadata()?.len();
            let mut made = Made::default();
            let entry = Entry::new(to.clone(), Kind::File { size }, *mode, EPOCH);
            let open = move || -> Result<Box<dyn Read>, EngineError> { Ok(Box::new(BufReader::new(file))) };
            made.push(Entry { uid: owner.uid, gid: owner.gid, ..entry }, Content::Open(Box::new(open)));
            Ok(made)
        }
    }
}

/// Where the entries of a tar file go.
struct Place<'a> {
    to: &'a ImagePath,
    strip: u8,
    owner: Option<Owner>,
}

fn deb(file: File, exclude: &[String], drops: &Drops, room: &Room) -> Result<Made<'static>, FormatError> {
    let limits = Limits::default();
    let mut deb = Deb::open(BufReader::with_capacity(256 << 10, file), &limits)?;
    let control = deb.control_files().clone();
    let fields = control.get("control").cloned().unwrap_or_default();
    let field = |name: &str| field(&fields, name).unwrap_or_default();
    let package = PackageFacts {
        name: field("Package"),
        version: field("Version"),
        architecture: field("Architecture"),
        replaces: field("Replaces"),
        scripts: scripts::classify(&control),
    };
    let root = ImagePath::root();
    let place = Place { to: &root, strip: 0, owner: None };
    let mut made = Made { spool: Some(Spool::new(room)), ..Made::default() };
    {
        let _share = room.decoders().take(deb.decoder_memory()?);
        made = unpack_tar(deb.data()?, &place, made)?;
    }
    made.entries.retain(|(entry, _)| !drops.contains(&entry.path));
    made.dirs.retain(|entry| !drops.contains(&entry.path));
    Patterns::new(exclude).leave_out(&mut made);
    // What scanners look for where there is no dpkg database (one paragraph a file, as distroless images have it).
    let status = ImagePath::new(format!("/var/lib/dpkg/status.d/{}", package.name)).map_err(|_| FormatError::Name {
        format: "package",
        name: package.name.clone(),
        why: "it is no package name",
    })?;
    let paragraph = effects::status_paragraph(&fields);
    let sums = control.get("md5sums").cloned();
    let mut add = |path: ImagePath, bytes: Vec<u8>| {
        let kind = Kind::File { size: bytes.len() as u64 };
        made.push(Entry::new(path, kind, 0o644, EPOCH), Content::Bytes(bytes));
    };
    if let (Some(sums), Ok(path)) = (sums, ImagePath::new(format!("{status}.md5sums"))) {
        add(path, sums);
    }
    add(status, paragraph);
    made.package = Some(package);
    Ok(made)
}

/// A field of a control paragraph, continuation lines joined (Debian policy 5.1).
fn field(control: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(control).ok()?;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((found, value)) = line.split_once(':') else { continue };
        if found.eq_ignore_ascii_case(name) && !line.starts_with([' ', '\t']) {
            let mut value = value.trim().to_owned();
            for more in lines.take_while(|line| line.starts_with([' ', '\t'])) {
                value.push(' ');
                value.push_str(more.trim());
            }
            return Some(value);
        }
    }
    None
}

/// What dpkg does not unpack (dpkg(1), --path-exclude): patterns, and whether each brings back. The last that fits counts.
pub(super) struct Patterns(Vec<(bool, Vec<char>)>);

impl Patterns {
    /// From the words of a definition; `!` brings back.
    pub fn new<S: AsRef<str>>(exclude: impl IntoIterator<Item = S>) -> Patterns {
        let pattern = |pattern: S| match pattern.as_ref().strip_prefix('!') {
            Some(kept) => (true, kept.chars().collect()),
            None => (false, pattern.as_ref().chars().collect()),
        };
        Patterns(exclude.into_iter().map(pattern).collect())
    }

    fn has(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        self.0.iter().rev().find(|(_, pattern)| glob(pattern, &path)).is_some_and(|(kept, _)| !kept)
    }

    /// Leaves out what fits. As dpkg does: a folder below an excluded pattern stays only where something in it does.
    pub fn leave_out(&self, made: &mut Made<'_>) {
        if self.0.is_empty() {
            return;
        }
        made.entries.retain(|(entry, _)| !self.has(entry.path.as_str()));
        let used: BTreeSet<ImagePath> = made.entries.iter().flat_map(|(entry, _)| entry.path.ancestors()).collect();
        made.dirs.retain(|entry| used.contains(&entry.path) || !self.has(&format!("{}/", entry.path)));
    }
}

/// dpkg's patterns: `*` and `?` match any character, `/` included (dpkg(1), --path-exclude).
fn glob(pattern: &[char], path: &[char]) -> bool {
    let (mut at, mut token, mut fallback) = (0, 0, None);
    while at < path.len() {
        match pattern.get(token) {
            Some('*') => {
                fallback = Some((token, at));
                token += 1;
            }
            Some(&character) if character == '?' || character == path[at] => (at, token) = (at + 1, token + 1),
            _ => match fallback {
                Some((star, start)) => {
                    fallback = Some((star, start + 1));
                    (at, token) = (start + 1, star + 1);
                }
                None => return false,
            },
        }
    }
    pattern[token..].iter().all(|character| *character == '*')
}

fn unpack_tar<'a>(input: impl Read, place: &Place<'_>, mut made: Made<'a>) -> Result<Made<'a>, FormatError> {
    let mut reader = tar::Reader::new(input, &Limits::default());
    let mut seen = BTreeSet::new();
    while let Some(mut entry) = reader.next()? {
        let Some(path) = moved(&entry.path, place)? else { continue };
        let path = if entry.is_dir() { unaliased_dir(path) } else { unaliased(path) };
        if let Kind::Hardlink { target } = &mut entry.kind {
            let Some(moved) = moved(target, place)? else {
                return Err(refused(&entry.path, "its hardlink target was stripped"));
            };
            *target = unaliased(moved);
        }
        let link_of_usr_merge = matches!(entry.kind, Kind::Symlink { .. }) && path == entry.path;
        if !seen.insert(path.clone()) && !entry.is_dir() && !link_of_usr_merge {
            return Err(refused(&entry.path, "the archive holds this path twice"));
        }
        entry.path = path;
        if let Some(owner) = place.owner {
            (entry.uid, entry.gid) = (owner.uid, owner.gid);
        }
        let content = match (entry.kind.clone(), &mut made.spool) {
            (Kind::File { size }, Some(spool)) => {
                let (offset, length) = spool.append(&mut reader).map_err(FormatError::from)?;
                if length != size {
                    return Err(refused(&entry.path, "it is shorter than its header says"));
                }
                Content::Spooled { offset, size }
            }
            _ => Content::None,
        };
        made.push(entry, content);
    }
    Ok(made)
}

fn wheel(
    file: File,
    at: &Path,
    name: &str,
    venv: &ImagePath,
    python: &str,
    compiler: Option<&Compiler<'_>>,
    room: &Room,
) -> Result<Made<'static>, EngineError> {
    let failed = |source| EngineError::Format { archive: name.to_owned(), source };
    let (mut wheel, scheme) = open_wheel(file, name, venv.as_str(), python).map_err(failed)?;
    let mut installed = wheel.install(&scheme).map_err(failed)?;
    if let Some(compiler) = compiler {
        let below = format!("{}/", scheme.site_packages());
        let mut modules = Vec::new();
        for file in installed.files.iter().filter(|file| file.path.as_str().starts_with(&below)) {
            if let wheel::Content::Entry(entry) = file.content
                && compiler.wants(scheme.site_packages(), &file.path)
            {
                let recorded = wheel.recorded(entry).map(|row| row.hash.clone()).unwrap_or_default();
                modules.push(Module { path: file.path.clone(), entry, recorded });
            }
        }
        let made = compiler.byte_code(name, scheme.site_packages(), python, &modules, &mut |entry| {
            let mut source = Vec::new();
            wheel.copy_to(entry, &mut source).map_err(failed)?;
            Ok(source)
        })?;
        installed = wheel.install_with(&scheme, made).map_err(failed)?;
    }
    let (known, at) = (wheel.known(), at.to_owned());
    let again = move || Ok(known.open(window(File::open(&at)?)));
    let wheel = Rc::new(RefCell::new(wheel));
    let mut made = Made { packed: Some(packed(name, &wheel, again)), ..Made::default() };
    for file in installed.files {
        let (size, content) = match file.content {
            wheel::Content::Bytes(bytes) => (bytes.len() as u64, Content::Bytes(bytes)),
            wheel::Content::Entry(index) => {
                let mut opened = wheel.borrow_mut();
                let entry = &opened.archive().entries()[index];
                (entry.size, content(name, &wheel, index, entry, room))
            }
        };
        made.push(Entry::new(file.path, Kind::File { size }, file.mode, file.mtime), content);
    }
    Ok(made)
}

fn unpack_zip(file: File, at: &Path, name: &str, place: &Place<'_>, room: &Room) -> Result<Made<'static>, FormatError> {
    let archive = zip::Archive::open(window(file), &Limits::default())?;
    let (entries, known, at) = (archive.entries().to_vec(), archive.directory(), at.to_owned());
    let archive = Rc::new(RefCell::new(archive));
    let packed = packed(name, &archive, move || Ok(known.open(window(File::open(&at)?))));
    let mut made = Made { packed: Some(packed), ..Made::default() };
    for (index, found) in entries.into_iter().enumerate() {
        let Some(path) = moved(&found.path, place)? else { continue };
        let is_dir = found.name.ends_with('/');
        let mode = found.mode.map(|mode| mode & 0o777).filter(|mode| *mode != 0);
        let kind = if is_dir { Kind::Dir } else { Kind::File { size: found.size } };
        let mut entry = Entry::new(path, kind, mode.unwrap_or(if is_dir { 0o755 } else { 0o644 }), found.mtime);
        if let Some(owner) = place.owner {
            (entry.uid, entry.gid) = (owner.uid, owner.gid);
        }
        if is_dir {
            made.push(entry, Content::None);
            continue;
        }
        made.push(entry, content(name, &archive, index, &found, room));
    }
    Ok(made)
}

/// A zip archive, or a wheel that checks its files against its RECORD as well.
trait Zip {
    fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError>;
    fn compare(&self, index: usize, content: &[u8]) -> Result<(), FormatError>;
    fn archive(&mut self) -> &mut zip::Archive<Window<File>>;
}

impl Zip for zip::Archive<Window<File>> {
    fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError> {
        zip::Archive::copy_to(self, index, out)
    }

    fn compare(&self, _index: usize, _content: &[u8]) -> Result<(), FormatError> {
        Ok(())
    }

    fn archive(&mut self) -> &mut zip::Archive<Window<File>> {
        self
    }
}

impl Zip for Wheel<Window<File>> {
    fn copy_to(&mut self, index: usize, out: &mut dyn Write) -> Result<u64, FormatError> {
        Wheel::copy_to(self, index, out)
    }

    fn compare(&self, index: usize, content: &[u8]) -> Result<(), FormatError> {
        Wheel::compare(self, index, content)
    }

    fn archive(&mut self) -> &mut zip::Archive<Window<File>> {
        Wheel::archive(self)
    }
}

/// The files of an open zip archive.
struct PackedFiles<Z> {
    archive: String,
    zip: Rc<RefCell<Z>>,
}

impl<Z> PackedFiles<Z> {
    fn new(archive: &str, zip: Rc<RefCell<Z>>) -> PackedFiles<Z> {
        PackedFiles { archive: archive.to_owned(), zip }
    }
}

impl<Z: Zip> Deflated for PackedFiles<Z> {
    fn inflate(&mut self, index: usize, out: &mut dyn Write) -> Result<(), EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        self.zip.borrow_mut().copy_to(index, out).map(drop).map_err(failed)
    }

    fn inflate_whole(
        &mut self,
        index: usize,
        packed: &mut Vec<u8>,
        content: &mut [u8],
    ) -> Result<Option<u32>, EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        self.zip.borrow_mut().archive().inflate(index, packed, content).map_err(failed)
    }

    fn compare(&mut self, index: usize, content: &[u8]) -> Result<(), EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        self.zip.borrow().compare(index, content).map_err(failed)
    }

    fn stream(&mut self, index: usize, read: &mut ReadStream<'_>) -> Result<(), EngineError> {
        let failed = |source| EngineError::Format { archive: self.archive.clone(), source };
        let mut zip = self.zip.borrow_mut();
        read(&mut zip.archive().raw(index).map_err(failed)?)
    }
}

/// The deflated files of an open zip archive, which `again` opens for another thread.
fn packed<Z: Zip + 'static>(
    name: &str,
    zip: &Rc<RefCell<Z>>,
    again: impl Fn() -> Result<Z, FormatError> + Send + Sync + 'static,
) -> Packed<'static> {
    let archive = name.to_owned();
    Packed::new(PackedFiles::new(name, zip.clone()), move || {
        let zip = again().map_err(|source| EngineError::Format { archive: archive.clone(), source })?;
        Ok(Box::new(PackedFiles::new(&archive, Rc::new(RefCell::new(zip)))))
    })
}

/// Up to this size, packed and unpacked, a file that is compressed anew is inflated as a whole, bytes.
const SMALL: u64 = 256 << 10;

/// The content of one file of an open zip archive: its deflate stream, where that is worth keeping.
fn content<Z: Zip + 'static>(
    name: &str,
    zip: &Rc<RefCell<Z>>,
    index: usize,
    entry: &zip::ZipEntry,
    room: &Room,
) -> Content<'static> {
    if entry.method == zip::Method::Deflated
        && let Some(stream) = DeflateStream::worthwhile(entry.size, entry.compressed_size, entry.crc32)
    {
        return Content::Deflated(stream, index);
    }
    let (mut files, room) = (PackedFiles::new(name, zip.clone()), room.clone());
    // The decoder that has all in memory is the faster one.
    let is_small = entry.method == zip::Method::Deflated && entry.size.max(entry.compressed_size) <= SMALL;
    let small = is_small.then_some(entry.size as usize);
    Content::Open(Box::new(move || {
        if let Some(size) = small {
            let mut content = vec![0; size];
            files.inflate_whole(index, &mut Vec::new(), &mut content)?;
            files.compare(index, &content)?;
            return Ok(Box::new(io::Cursor::new(content)));
        }
        let mut spool = Spool::new(&room);
        files.inflate(index, &mut spool)?;
        Ok(Box::new(Whole::new(spool)))
    }))
}

fn moved(path: &ImagePath, place: &Place<'_>) -> Result<Option<ImagePath>, FormatError> {
    let rest: Vec<&str> = path.relative().split('/').skip(usize::from(place.strip)).collect();
    if rest.is_empty() || rest == [""] {
        return Ok(None);
    }
    place.to.join(&rest.join("/")).map(Some).map_err(|_| refused(path, "it is no path in an image"))
}

/// Merged /usr: what an archive holds below `/bin`, `/sbin` or `/lib*` lies below `/usr` (Debian policy 9.1.1); the links
/// themselves stay.
fn unaliased(path: ImagePath) -> ImagePath {
    for alias in ["bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32"] {
        if let Some(rest) = path.relative().strip_prefix(alias)
            && rest.starts_with('/')
            && let Ok(merged) = ImagePath::new(format!("/usr/{alias}{rest}"))
        {
            return merged;
        }
    }
    path
}

/// A package built for both worlds ships the folder `/lib`, too; with merged /usr it is `/usr/lib`, and the link stays.
fn unaliased_dir(path: ImagePath) -> ImagePath {
    let inside = path.join("x").map(unaliased);
    inside.ok().and_then(|inside| inside.parent()).unwrap_or(path)
}

fn refused(path: &ImagePath, why: &str) -> FormatError {
    FormatError::Entry { format: "archive", name: path.to_string(), why: why.into() }
}

/// An archive and what it was converted to.
pub type Converted<'a> = (&'a Archive, Arc<Fragment>);

/// Finds paths that several packages hold and decides who keeps them (Debian policy 7.6.1).
pub fn conflicts(packages: &[Converted<'_>]) -> Result<BTreeMap<Digest, Drops>, EngineError> {
    let mut owners: HashMap<&ImagePath, usize> = HashMap::new();
    let mut drops: BTreeMap<Digest, Drops> = BTreeMap::new();
    for (at, (archive, fragment)) in packages.iter().enumerate() {
        for indexed in &fragment.entries {
            let path = &indexed.entry.path;
            let Some(&other) = owners.get(path) else {
                owners.insert(path, at);
                continue;
            };
            let (Some(new), Some(old)) = (&fragment.package, &packages[other].1.package) else { continue };
            if replaces(new, old) {
                drops.entry(packages[other].0.digest).or_default().insert(path.clone());
                owners.insert(path, at);
            } else if replaces(old, new) {
                drops.entry(archive.digest).or_default().insert(path.clone());
            } else {
                let (one, other) = (old.name.clone(), new.name.clone());
                return Err(EngineError::Owners { one, other, path: path.clone() });
            }
        }
    }
    Ok(drops)
}

/// Finds paths that several wheels install. A file that is the same in both (a namespace's `__init__.py`) stays in the
/// first; `same` says whether it is. Otherwise pip keeps what it happens to install last, and here it is an error.
pub fn collisions(
    wheels: &[Converted<'_>],
    same: impl Fn(&ImagePath, &Arc<Fragment>, &Arc<Fragment>) -> Result<bool, EngineError>,
) -> Result<BTreeMap<Digest, Drops>, EngineError> {
    let mut owners: HashMap<&ImagePath, usize> = HashMap::new();
    let mut drops: BTreeMap<Digest, Drops> = BTreeMap::new();
    for (at, (wheel, fragment)) in wheels.iter().enumerate() {
        for indexed in &fragment.entries {
            let path = &indexed.entry.path;
            let first = *owners.entry(path).or_insert(at);
            // One wheel in two stages is one wheel.
            let (earlier, held) = &wheels[first];
            if earlier.digest == wheel.digest {
                continue;
            }
            if !same(path, held, fragment)? {
                let (one, other) = (earlier.name.clone(), wheel.name.clone());
                return Err(EngineError::Collision { one, other, path: path.clone() });
            }
            drops.entry(wheel.digest).or_default().insert(path.clone());
        }
    }
    Ok(drops)
}

/// Whether one package may take over files of the other.
fn replaces(one: &PackageFacts, other: &PackageFacts) -> bool {
    one.replaces.split(',').any(|relation| {
        let name = relation.trim().split([' ', '(', ':']).next().unwrap_or_default();
        name == other.name && crate::debian::relation_holds(relation, &other.version)
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use cache::Store;
    use layers::encode::{TarReader, WORTHWHILE};
    use layers::op::Origin;

    use super::super::checks::LateChecks;
    use super::super::tree::Tree as _;
    use super::super::view::View;
    use super::*;
    use crate::parallel::Cores;

    /// A zip as Python's zipfile writes it: small and large files, deflated and stored, and a program.
    fn zip(folder: &Path) -> std::path::PathBuf {
        let script = "import sys, zipfile\n\
            z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n\
            z.writestr('a/large', b'0123456789abcdef' * 4096)\n\
            z.writestr('a/small', b'small')\n\
            z.writestr('b/huge', bytes(range(256)) * 40000)\n\
            z.writestr('b/stored', bytes(range(256)) * 256, zipfile.ZIP_STORED)\n\
            z.write('/bin/true', 'bin/true')\n\
            z.close()\n";
        let path = folder.join("x.zip");
        let done = Command::new("python3").args(["-c", script]).arg(&path).status().expect("python3 is installed");
        assert!(done.success());
        path
    }

    /// An archive that is unpacked to `/opt`.
    fn unzipped() -> (Archive, Conversion) {
        let origin = Origin::Url("https://example.org/x.zip".into());
        let archive = Archive { name: "x.zip".into(), digest: Digest::of(b"x"), size: None, origin };
        let to = ImagePath::new("/opt").expect("a path");
        (archive, Conversion::Unpack { how: Unpack::Zip, to, strip_components: 0, owner: Owner { uid: 0, gid: 0 } })
    }

    #[test]
    fn a_zips_large_files_are_transplanted_and_read_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let path = zip(folder.path());
        let (archive, unpack) = unzipped();
        let room = Room::new(store.scratch(), Cores::new(2));
        let made = convert(&path, &archive, &unpack, &Drops::new(), &room, None).expect("converts");
        let fragment = made.write(&store, &room).expect("writes");
        // A batch, then a header and a stream for each of three files, then the last padding.
        assert_eq!(fragment.layout.members.len(), 7, "{:?}", fragment.layout);
        let elf: Vec<&str> =
            fragment.elf.all().iter().map(|(at, _)| fragment.entries[*at as usize].entry.path.as_str()).collect();
        assert_eq!(elf, ["/opt/bin/true"]);

        let open = |digest: &Digest| -> io::Result<File> {
            Ok(store.open(digest).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?)
        };
        let mut view = View::new(&open);
        view.apply(&[], &[Arc::new(fragment)]).expect("applies");
        let read = |name: &str| view.read(&ImagePath::new(name).expect("a path")).expect("reads");
        assert!(read("/opt/a/large") == b"0123456789abcdef".repeat(4096));
        assert!(read("/opt/a/small") == b"small");
        let all: Vec<u8> = (0..=255).collect();
        assert!(read("/opt/b/huge") == all.repeat(40000));
        assert!(read("/opt/b/stored") == all.repeat(256));
        assert!(read("/opt/bin/true") == std::fs::read("/bin/true").expect("readable"));
    }

    #[test]
    fn two_threads_find_what_one_finds() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let script = "import random, sys, zipfile\n\
            random.seed(1)\n\
            z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n\
            for at in range(12):\n\
            \x20   z.writestr(f'f{at:02}', random.randbytes(40_000) * (5 + at) + bytes(range(256)) * 100)\n\
            z.write('/bin/true', 'true')\n\
            z.close()\n";
        let path = folder.path().join("x.zip");
        let done = Command::new("python3").args(["-c", script]).arg(&path).status().expect("python3 is installed");
        assert!(done.success());
        let (archive, unpack) = unzipped();
        let write = |path: &Path, cores: &Cores| {
            let room = Room::new(store.scratch(), cores.clone());
            convert(path, &archive, &unpack, &Drops::new(), &room, None)?.write(&store, &room)
        };
        let (busy, idle) = (Cores::new(1), Cores::new(2));
        let _core = busy.take();
        let alone = write(&path, &busy).expect("converts");
        assert!(alone.elf.all().len() == 1 && alone.layout.tar_size > 2 * WORTHWHILE);
        for _ in 0..10 {
            assert!(write(&path, &idle).expect("converts") == alone);
        }

        // What was in memory is what lies in the store.
        let room = Room::new(store.scratch(), idle.clone());
        room.holding().open(true);
        let made = convert(&path, &archive, &unpack, &Drops::new(), &room, None).expect("converts");
        let fragment = made.write(&store, &room).expect("writes");
        let mut held = room.holding().take(&fragment.blob);
        assert_eq!(held.len(), 13, "each file, but no header");
        let mut blob = store.open(&fragment.blob).expect("opens").expect("is there");
        for (at, &member) in fragment.layout.members.iter().enumerate() {
            let mut tar = Vec::new();
            TarReader::new(&mut blob, std::iter::once(member)).read_to_end(&mut tar).expect("is whole");
            if let Some(held) = held.remove(&at) {
                assert!(held.tar().expect("is there") == tar, "member {at}");
            }
        }
        assert!(held.is_empty());

        // Two files are damaged: one of them is told.
        let mut bytes = std::fs::read(&path).expect("reads");
        let opened = zip::Archive::open(io::Cursor::new(bytes.clone()), &Limits::default()).expect("opens");
        for name in ["f03", "f11"] {
            let entry = &opened.entries()[opened.find(name).expect("is there")];
            bytes[(entry.data_offset() + entry.compressed_size / 2) as usize] ^= 0x55;
        }
        let damaged = folder.path().join("damaged.zip");
        std::fs::write(&damaged, bytes).expect("writes");
        let told = |cores: &Cores| write(&damaged, cores).expect_err("is damaged").to_string();
        assert!(told(&busy).contains("`f11`") || told(&busy).contains("`f03`"), "{}", told(&busy));
        for _ in 0..10 {
            let said = told(&idle);
            assert!(said.contains("`f11`") || said.contains("`f03`"), "{said}");
        }
    }

    /// What is copied while it is checked comes to the same, whoever checks it.
    #[test]
    fn what_is_checked_later_is_what_is_checked_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let path = zip(folder.path());
        let (archive, unpack) = unzipped();
        let room = Room::new(store.scratch(), Cores::new(2));
        let convert = |path: &Path| convert(path, &archive, &unpack, &Drops::new(), &room, None).expect("converts");
        let expected = convert(&path).write(&store, &room).expect("writes");
        room.holding().open(true);
        for has_worker in [true, false] {
            let (work, works) = std::sync::mpsc::channel::<Arc<LateChecks>>();
            let worker = std::thread::spawn(move || works.into_iter().for_each(|checks| checks.run()));
            let begin = |checks: &Arc<LateChecks>| {
                if has_worker {
                    work.send(checks.clone()).expect("somebody works");
                }
            };
            let unchecked = convert(&path).write_unchecked(&store, &room, begin).expect("writes");
            let fragment = unchecked.fragment.clone();
            assert!(fragment.elf.are_awaited() && fragment.blob == expected.blob);
            let mut held = room.holding().take(&fragment.blob);
            assert_eq!(held.len(), 3, "each large file");
            let mut blob = store.open(&fragment.blob).expect("opens").expect("is there");
            for (at, &member) in fragment.layout.members.iter().enumerate() {
                let mut tar = Vec::new();
                TarReader::new(&mut blob, std::iter::once(member)).read_to_end(&mut tar).expect("is whole");
                if let Some(held) = held.remove(&at) {
                    assert_eq!(held.length(), tar.len());
                    assert!(held.tar().expect("is there") == tar, "member {at}");
                }
            }
            assert!(*unchecked.finish().expect("is right") == expected);
            drop(work);
            worker.join().expect("ends");
        }
        // All that was held is given back.
        assert!(room.holding().share(Room::HELD).is_some());

        // A damaged file ends the wait for it and for those behind it.
        let mut bytes = std::fs::read(&path).expect("reads");
        let opened = zip::Archive::open(io::Cursor::new(bytes.clone()), &Limits::default()).expect("opens");
        let entry = &opened.entries()[opened.find("b/huge").expect("is there")];
        bytes[(entry.data_offset() + entry.compressed_size / 2) as usize] ^= 0x55;
        let damaged = folder.path().join("damaged.zip");
        std::fs::write(&damaged, bytes).expect("writes");
        let unchecked = convert(&damaged).write_unchecked(&store, &room, |_| ()).expect("writes");
        let held = room.holding().take(&unchecked.fragment.blob);
        assert!(held.values().any(|held| held.tar().is_err()));
        let said = unchecked.finish().expect_err("is damaged").to_string();
        assert!(said.contains("`b/huge`") || said.contains("has changed"), "{said}");
    }

    #[test]
    fn files_that_begin_in_one_member_and_end_in_the_next_are_read_in_any_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(&folder.path().join("cache")).expect("opens");
        let path = |at: usize| ImagePath::new(format!("/f{at:03}")).expect("a path");
        let content = |at: usize| -> Vec<u8> { (0..15_000 + at).map(|byte| ((byte * (at + 7)) >> 3) as u8).collect() };
        let mut made = Made::default();
        for at in 0..300 {
            let kind = Kind::File { size: content(at).len() as u64 };
            made.push(Entry::new(path(at), kind, 0o644, EPOCH), Content::Bytes(content(at)));
        }
        let fragment = made.write(&store, &Room::new(store.scratch(), Cores::new(2))).expect("writes");
        assert!(fragment.layout.members.len() > 3, "{:?}", fragment.layout);
        let open = |digest: &Digest| -> io::Result<File> {
            Ok(store.open(digest).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?)
        };
        let mut view = View::new(&open);
        view.apply(&[], &[Arc::new(fragment)]).expect("applies");
        for at in (0..300).chain((0..300).rev()) {
            assert!(view.read(&path(at)).expect("reads") == content(at), "file {at}");
        }
    }
}
