//! Archives become fragments: a pure function of the archive's bytes and the conversion.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use hashbrown::HashMap;
use layers::encode::{EPOCH, Entry, Kind};
use layers::format::deb::Deb;
use layers::format::zip::Tails;
use layers::format::{FormatError, Limits, decoder_memory, decompress, tar};
use layers::op::{Archive, Conversion};
use layers::source::{Modules, Owner, Unpack};
use layers::{Digest, ImagePath};

use super::EngineError;
use super::bytecode::Compiler;
use super::index::{Fragment, PackageFacts};
use super::made::{Content, Made};
use super::spool::{Room, Spool};
use super::unzip::Opened;
use crate::debian::{effects, scripts};
use crate::python::bytecode::{self, imports};

/// Paths that are left out of one package because another one replaces them.
pub type Drops = BTreeSet<ImagePath>;

/// The version of a conversion's rules; part of the fragment's key.
pub fn version(conversion: &Conversion) -> u32 {
    match conversion {
        Conversion::Deb { .. } => 300 + scripts::VERSION,
        Conversion::Wheel { bytecode: Some(wanted), .. } => match wanted.modules {
            Modules::ImportedBy(_) => 1 + 100 * bytecode::VERSION + 10_000 * imports::VERSION,
            _ => 1 + 100 * bytecode::VERSION,
        },
        Conversion::Unpack { how: Unpack::Tar, .. } => 3,
        Conversion::Wheel { .. } | Conversion::Unpack { .. } | Conversion::File { .. } => 1,
    }
}

/// Reads an archive and lays its entries out; `compiler` makes the byte-code that a conversion asks for. With tails that are refused, each
/// deflate stream of 16 KiB and more is to be copied; else those with a tail are compressed anew.
pub fn convert(
    path: &Path,
    archive: &Archive,
    conversion: &Conversion,
    drops: &Drops,
    room: &Room,
    compiler: Option<&Compiler<'_>>,
    tails: Tails,
) -> Result<Made<'static>, EngineError> {
    let file = File::open(path)?;
    let failed = |source| EngineError::Format { archive: archive.name.clone(), source };
    match conversion {
        Conversion::Deb { exclude } => deb(file, exclude, drops, room).map_err(failed),
        Conversion::Wheel { venv, python, .. } => {
            let mut made = Opened { file, path, name: &archive.name, tails, room }.wheel(venv, python, compiler)?;
            made.entries.retain(|(entry, _)| !drops.contains(&entry.path));
            Ok(made)
        }
        Conversion::Unpack { how: Unpack::Tar, to, strip_components, owner, aliases } => {
            let place = Place { to, strip: *strip_components, owner: Some(*owner), aliases };
            let made = Made { spool: Some(Spool::new(room)), ..Made::default() };
            let (limits, mut file) = (Limits::default(), BufReader::with_capacity(256 << 10, file));
            let _share = room.decoders().take(decoder_memory(file.fill_buf()?, &limits));
            let reader = decompress(file, &limits).map_err(failed)?;
            unpack_tar(reader, &place, made).map_err(failed)
        }
        Conversion::Unpack { how: Unpack::Zip, to, strip_components, owner, aliases } => {
            let place = Place { to, strip: *strip_components, owner: Some(*owner), aliases };
            Opened { file, path, name: &archive.name, tails, room }.zip(&place)
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

/// Where the entries of an archive go.
pub(super) struct Place<'a> {
    pub to: &'a ImagePath,
    pub strip: u8,
    pub owner: Option<Owner>,
    /// Directories in whose place others are.
    pub aliases: &'a BTreeMap<ImagePath, ImagePath>,
}

/// The directories that merged /usr has links to those below `/usr` for (Debian policy 9.1.1).
pub(super) const MERGED: [&str; 7] = ["bin", "sbin", "lib", "lib32", "lib64", "libo32", "libx32"];

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
    // A package built for both worlds ships the folder `/lib`, too; the links themselves stay.
    let merged = MERGED.into_iter().filter_map(|name| {
        Some((ImagePath::new(format!("/{name}")).ok()?, ImagePath::new(format!("/usr/{name}")).ok()?))
    });
    let aliases = merged.collect();
    let place = Place { to: &root, strip: 0, owner: None, aliases: &aliases };
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
        let Some(path) = moved(&entry.path, entry.is_dir(), place)? else { continue };
        if let Kind::Hardlink { target } = &mut entry.kind {
            let Some(moved) = moved(target, false, place)? else {
                return Err(refused(&entry.path, "its hardlink target was stripped"));
            };
            *target = moved;
        }
        if !seen.insert(path.clone()) && !entry.is_dir() {
            return Err(twice(&entry.path, &path));
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

/// Where an entry of an archive goes; `None` where nothing is left of its path.
pub(super) fn moved(path: &ImagePath, is_dir: bool, place: &Place<'_>) -> Result<Option<ImagePath>, FormatError> {
    let rest: Vec<&str> = path.relative().split('/').skip(usize::from(place.strip)).collect();
    if rest.is_empty() || rest == [""] {
        return Ok(None);
    }
    let no_path = |_| refused(path, "it is no path in an image");
    let moved = place.to.join(&rest.join("/")).map_err(no_path)?;
    for (alias, merged) in place.aliases {
        if let Some(inside) = moved.as_str().strip_prefix(alias.as_str())
            && (inside.starts_with('/') || inside.is_empty() && is_dir)
        {
            return merged.join(inside.trim_start_matches('/')).map(Some).map_err(no_path);
        }
    }
    Ok(Some(moved))
}

fn refused(path: &ImagePath, why: &str) -> FormatError {
    FormatError::Entry { format: "archive", name: path.to_string(), why: why.into() }
}

/// Why an entry that comes to this path is refused, where another one does.
pub(super) fn twice(entry: &ImagePath, path: &ImagePath) -> FormatError {
    refused(entry, &format!("it comes to `{path}`, which the archive holds twice"))
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
    use std::io;

    use cache::Store;

    use super::super::tree::Tree as _;
    use super::super::view::View;
    use super::*;
    use crate::parallel::Cores;

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
