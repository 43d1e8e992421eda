//! `/etc/ld.so.cache`, as glibc's ldconfig(8) writes it.
//!
//! ```text
//! header   magic "glibc-ld.so.cache1.1", number of entries, length of strings, byte order, offset of the extension   48 bytes
//! entry    flags, offset of the name, offset of the path, 0, hardware capability                                     24 bytes each
//! strings  NUL-terminated; a string that ends another one shares its bytes
//! extension  magic, number of sections; each: tag, flags, offset, size; then the sections' bytes
//! ```
//! All offsets count from the start of the file, numbers are little-endian. The loader searches the entries by bisection, so
//! their order (names with numbers compared as numbers, descending) is part of the format.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use layers::encode::{Entry, Kind};
use layers::{ImagePath, Platform};

use super::elf::{AARCH64, ElfFacts, X86_64};
use super::follow;
use crate::engine::tree::{Tree, TreeError};

/// Counts up when other bytes are written for the same tree.
pub const VERSION: u32 = 2;

const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const EXTENSION: u32 = 0xeaa4_2174;
const GENERATOR: u32 = 0;
const HWCAPS: u32 = 1;

/// What ldconfig would write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The bytes of `/etc/ld.so.cache`.
    pub cache: Vec<u8>,
    /// Links from SONAMEs to files that no package brings, with their targets.
    pub links: BTreeMap<ImagePath, String>,
}

/// The text by which trixie's ldconfig names itself in the cache, from the version of libc-bin.
pub fn generator(version: &str) -> String {
    // A rebuild without change of the source (`+b1`) keeps the source's version.
    let source = match version.rsplit_once("+b") {
        Some((source, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => source,
        _ => version,
    };
    let upstream = source.rsplit_once('-').map_or(source, |(upstream, _)| upstream);
    format!("ldconfig (Debian GLIBC {source}) stable release version {upstream}")
}

/// The generator that a cache names.
pub fn generator_of(cache: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u32::from_le_bytes(cache.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if cache.get(..20)? != MAGIC {
        return None;
    }
    let extension = word(32)? as usize;
    if word(extension)? != EXTENSION {
        return None;
    }
    for index in 0..word(extension.checked_add(4)?)?.min(16) as usize {
        let at = extension.checked_add(8 + index * 16)?;
        if word(at)? == GENERATOR {
            let (from, size) = (word(at + 8)? as usize, word(at + 12)? as usize);
            return String::from_utf8(cache.get(from..from.checked_add(size)?)?.to_vec()).ok();
        }
    }
    None
}

/// Directories in which the loader looks besides the cache: ldconfig's built-in ones, in its order.
pub fn built_in(platform: Platform) -> [String; 4] {
    let multiarch = platform.multiarch();
    [format!("/lib/{multiarch}"), format!("/usr/lib/{multiarch}"), "/lib".into(), "/usr/lib".into()]
}

/// All directories that ldconfig looks at: `/etc/ld.so.conf` with its includes, then the built-in ones; each real
/// directory once, under its first name, and only where it exists.
pub fn directories(tree: &dyn Tree, platform: Platform) -> Result<Vec<(String, ImagePath)>, TreeError> {
    let mut named = Configuration::read(tree)?.named;
    named.extend(built_in(platform));
    let mut seen = BTreeSet::new();
    let mut directories = Vec::new();
    for name in named {
        if let Some(real) = follow::existing(tree, &name).filter(|real| tree.entry(real).is_some_and(Entry::is_dir))
            && seen.insert(real.clone())
        {
            directories.push((name, real));
        }
    }
    Ok(directories)
}

/// Whether the configuration lies where Debian has it, `/etc/ld.so.conf` and what is beside it with names that begin so, without links on the way:
/// what lies elsewhere tells the loader nothing then, but for libraries and links.
pub fn is_plain(tree: &dyn Tree) -> Result<bool, TreeError> {
    Ok(Configuration::read(tree)?.is_plain)
}

const CONFIGURATION: &str = "/etc/ld.so.conf";

/// What the loader is told by files.
struct Configuration {
    /// Directories, as they are named.
    named: Vec<String>,
    read: BTreeSet<ImagePath>,
    is_plain: bool,
}

impl Configuration {
    fn read(tree: &dyn Tree) -> Result<Configuration, TreeError> {
        let mut it = Configuration { named: Vec::new(), read: BTreeSet::new(), is_plain: true };
        it.add(tree, CONFIGURATION)?;
        Ok(it)
    }

    fn add(&mut self, tree: &dyn Tree, path: &str) -> Result<(), TreeError> {
        self.look_at(tree, path);
        let Some(real) = follow::existing(tree, path) else { return Ok(()) };
        // A file names its directories once; that also ends a circle of includes.
        if !tree.entry(&real).is_some_and(is_file) || !self.read.insert(real.clone()) {
            return Ok(());
        }
        for line in String::from_utf8_lossy(&tree.read(&real)?).lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                None | Some("hwcap") => {}
                Some("include") => {
                    for pattern in words {
                        let (directory, name) = place(path, pattern);
                        self.look_at(tree, &directory);
                        for path in glob(tree, &directory, &name) {
                            self.add(tree, &path)?;
                        }
                    }
                }
                Some(_) if line.starts_with('/') => self.named.push(line.trim_end_matches('/').to_owned()),
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn look_at(&mut self, tree: &dyn Tree, path: &str) {
        let is_link =
            |path: ImagePath| tree.entry(&path).is_some_and(|entry| matches!(entry.kind, Kind::Symlink { .. }));
        // A path that is not normal may lead anywhere.
        let is_literal = ImagePath::new(path).is_ok_and(|path| !path.ancestors().chain([path.clone()]).any(is_link));
        self.is_plain &= path.starts_with(CONFIGURATION) && is_literal;
    }
}

fn is_file(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::File { .. } | Kind::Hardlink { .. })
}

/// The directory that a pattern in the file `from` is about, and the pattern of names in it.
fn place(from: &str, pattern: &str) -> (String, String) {
    let base = from.rsplit_once('/').map_or("", |(directory, _)| directory);
    let full = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{base}/{pattern}") };
    let (directory, name) = full.rsplit_once('/').unwrap_or(("", &full));
    (directory.to_owned(), name.to_owned())
}

/// Files of a directory that match a pattern, which may hold `*` and `?`, sorted.
fn glob(tree: &dyn Tree, directory: &str, name: &str) -> Vec<String> {
    let Some(real) = follow::existing(tree, directory) else { return Vec::new() };
    let children = children(tree, &real);
    let names = children.iter().map(|entry| entry.path.file_name());
    names
        .filter(|child| !child.starts_with('.') && matches(name.as_bytes(), child.as_bytes()))
        .map(|child| format!("{directory}/{child}"))
        .collect()
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b) if *b == b'?' || *b == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

/// What is directly in a directory, sorted by name.
fn children<'a>(tree: &'a dyn Tree, directory: &ImagePath) -> Vec<&'a Entry> {
    let start = directory.as_str().trim_end_matches('/').len();
    let inside = |entry: &&Entry| {
        let rest = entry.path.as_str().get(start..).and_then(|rest| rest.strip_prefix('/'));
        rest.is_some_and(|name| !name.is_empty() && !name.contains('/'))
    };
    tree.below(directory).filter(inside).collect()
}

/// A library of a directory.
struct Library {
    /// The file that was chosen for the SONAME.
    name: String,
    is_link: bool,
    flags: u32,
    isa: u32,
}

/// A line of the cache.
struct Line {
    soname: String,
    path: String,
    flags: u32,
    /// The subdirectory of `glibc-hwcaps`, with the level of instructions that the library needs.
    hwcaps: Option<(String, u32)>,
}

/// Writes the cache for a tree.
pub fn write(tree: &dyn Tree, platform: Platform, generator: &str) -> Result<Written, TreeError> {
    let mut lines = Vec::new();
    let mut links = BTreeMap::new();
    for (name, real) in directories(tree, platform)? {
        search(tree, &name, &real, None, &mut lines, &mut links);
        let Some(capabilities) = follow::existing(tree, &format!("{real}/glibc-hwcaps")) else { continue };
        for child in children(tree, &capabilities).into_iter().filter(|child| child.is_dir()) {
            let kind = child.path.file_name();
            let name = format!("{name}/glibc-hwcaps/{kind}");
            search(tree, &name, &child.path, Some(kind), &mut lines, &mut links);
        }
    }
    // Equal lines stay in the order of the directories.
    lines.sort_by(compare);
    Ok(Written { cache: print(&lines, generator), links })
}

fn flags(facts: &ElfFacts) -> Option<u32> {
    match (facts.machine, facts.bits) {
        (X86_64, 64) => Some(0x0303),
        (X86_64, 32) => Some(0x0803),
        (AARCH64, 64) => Some(0x0a03),
        // Intel 80386.
        (3, 32) => Some(0x0003),
        _ => None,
    }
}

/// Whether the loader's tools take a name for a library's.
pub(super) fn is_library_name(name: &str) -> bool {
    let library = (name.starts_with("lib") || name.starts_with("ld-")) && name.contains(".so");
    let temporary = name.ends_with(".dpkg-new") || name.ends_with(".dpkg-tmp") || name.contains([';', '#']);
    (library || name.starts_with("ld.so.") || name.starts_with("ld64.so.")) && !temporary
}

fn search(
    tree: &dyn Tree,
    name: &str,
    real: &ImagePath,
    hwcaps: Option<&str>,
    lines: &mut Vec<Line>,
    links: &mut BTreeMap<ImagePath, String>,
) {
    let mut libraries: BTreeMap<String, Library> = BTreeMap::new();
    for entry in children(tree, real) {
        let file = entry.path.file_name();
        if !is_library_name(file) {
            continue;
        }
        let mut is_link = matches!(entry.kind, Kind::Symlink { .. });
        let Some(target) = follow::existing(tree, entry.path.as_str()) else { continue };
        let Some(facts) = tree.elf(&target).filter(|facts| facts.dynamic) else { continue };
        let Some(flags) = flags(facts) else { continue };
        let mut soname = facts.soname.clone().unwrap_or_else(|| file.to_owned());
        // A link keeps its own name as SONAME only where it is the development link of that library.
        if is_link && file != soname && !(file.ends_with(".so") && soname.starts_with(file)) {
            is_link = false;
        }
        if is_link {
            soname = file.to_owned();
        }
        let isa = 32 - facts.isa_needed.leading_zeros();
        let found = Library { name: file.to_owned(), is_link, flags, isa };
        match libraries.get_mut(&soname) {
            Some(known) => {
                let newer = number_aware(&known.name, &found.name) == Ordering::Less;
                if !found.is_link && known.is_link || found.is_link == known.is_link && newer {
                    *known = found;
                }
            }
            None => drop(libraries.insert(soname, found)),
        }
    }
    for (soname, library) in libraries {
        let file = if hwcaps.is_some() { library.name.clone() } else { soname.clone() };
        if hwcaps.is_none()
            && !library.is_link
            && soname != library.name
            && let Ok(link) = real.join(&soname)
            && tree.entry(&link).is_none()
            && !is_loader(&library.name)
        {
            links.insert(link, library.name.clone());
        }
        lines.push(Line {
            path: format!("{name}/{file}"),
            soname,
            flags: library.flags,
            hwcaps: hwcaps.map(|kind| (kind.to_owned(), library.isa)),
        });
    }
}

/// The loader is never linked to under another name.
fn is_loader(name: &str) -> bool {
    name.starts_with("ld-") || name.starts_with("ld.so.") || name.starts_with("ld64.so.")
}

/// Compares names with runs of digits as numbers; a digit is greater than anything else.
fn number_aware(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        match (left.first(), right.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(a), b) if a.is_ascii_digit() => {
                if !b.is_some_and(u8::is_ascii_digit) {
                    return Ordering::Greater;
                }
                let (a, b) = (take_number(&mut left), take_number(&mut right));
                if a != b {
                    return a.cmp(&b);
                }
            }
            (Some(_), Some(b)) if b.is_ascii_digit() => return Ordering::Less,
            (Some(a), Some(b)) if a == b => (left, right) = (&left[1..], &right[1..]),
            (Some(a), b) => return Some(a).cmp(&b),
        }
    }
}

fn take_number(text: &mut &[u8]) -> u64 {
    let mut number: u64 = 0;
    while let Some((digit, rest)) = text.split_first().filter(|(digit, _)| digit.is_ascii_digit()) {
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        *text = rest;
    }
    number
}

/// Names descending, then flags descending, then libraries for special hardware first.
fn compare(left: &Line, right: &Line) -> Ordering {
    number_aware(&right.soname, &left.soname).then(right.flags.cmp(&left.flags)).then_with(|| {
        match (&left.hwcaps, &right.hwcaps) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        }
    })
}

fn print(lines: &[Line], generator: &str) -> Vec<u8> {
    let kinds: BTreeSet<&str> = lines.iter().filter_map(|line| Some(line.hwcaps.as_ref()?.0.as_str())).collect();
    let start = (48 + 24 * lines.len()) as u32;
    let texts = lines.iter().flat_map(|line| [line.soname.as_str(), line.path.as_str()]).chain(kinds.iter().copied());
    let (offsets, strings) = share_ends(texts, start);
    let end = start + strings.len() as u32;
    let extension = end.next_multiple_of(4);

    let mut cache = MAGIC.to_vec();
    let words = |list: &[u32]| list.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    // 2 says that the numbers are little-endian.
    cache.extend(words(&[lines.len() as u32, strings.len() as u32, 2, extension, 0, 0, 0]));
    for line in lines {
        let capability = match &line.hwcaps {
            None => 0,
            Some((kind, isa)) => {
                let index = kinds.iter().position(|known| known == kind).unwrap_or_default() as u64;
                1 << 62 | u64::from(*isa) << 32 | index
            }
        };
        cache.extend(words(&[line.flags, offsets[line.soname.as_str()], offsets[line.path.as_str()], 0]));
        cache.extend(capability.to_le_bytes());
    }
    cache.extend(strings);
    cache.resize(extension as usize, 0);
    let sections = if kinds.is_empty() { 1 } else { 2 };
    let generator_at = extension + 8 + 16 * sections;
    cache.extend(words(&[EXTENSION, sections, GENERATOR, 0, generator_at, generator.len() as u32]));
    if !kinds.is_empty() {
        let at = (generator_at + generator.len() as u32).next_multiple_of(4);
        cache.extend(words(&[HWCAPS, 0, at, 4 * kinds.len() as u32]));
    }
    cache.extend_from_slice(generator.as_bytes());
    if !kinds.is_empty() {
        cache.resize(cache.len().next_multiple_of(4), 0);
        cache.extend(kinds.iter().flat_map(|kind| offsets[kind].to_le_bytes()));
    }
    cache
}

/// Lays out strings so that one that ends another shares its bytes: sorted from their last byte, descending, a string
/// comes right behind those that end with it.
fn share_ends<'a>(texts: impl Iterator<Item = &'a str>, start: u32) -> (BTreeMap<&'a str, u32>, Vec<u8>) {
    let unique: BTreeSet<&str> = texts.collect();
    let mut sorted: Vec<&str> = unique.into_iter().collect();
    sorted.sort_by_key(|text| Reverse(text.bytes().rev().collect::<Vec<u8>>()));
    let mut offsets = BTreeMap::new();
    let mut bytes: Vec<u8> = Vec::new();
    let mut last: (&str, u32) = ("", 0);
    for text in sorted {
        let shared = !last.0.is_empty() && last.0.ends_with(text);
        let at = if shared { last.1 + (last.0.len() - text.len()) as u32 } else { start + bytes.len() as u32 };
        if !shared {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        offsets.insert(text, at);
        last = (text, at);
    }
    (offsets, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::elf::tests::sample;
    use crate::debian::follow::tests::Sketch;

    fn library(soname: &str) -> Vec<u8> {
        sample(X86_64, None, &[(14, soname)])
    }

    /// The cache as `ldconfig -p` prints it: names and paths.
    fn listing(cache: &[u8]) -> Vec<String> {
        let word = |at: usize| u32::from_le_bytes(cache[at..at + 4].try_into().expect("four bytes")) as usize;
        let text = |at: usize| cache[at..].split(|&b| b == 0).next().map(|b| String::from_utf8_lossy(b).into_owned());
        (0..word(20))
            .map(|index| {
                let at = 48 + index * 24;
                format!("{} {}", text(word(at + 4)).expect("a name"), text(word(at + 8)).expect("a path"))
            })
            .collect()
    }

    #[test]
    fn configured_directories_come_first_and_real_ones_once() {
        let tree = Sketch::default()
            .link("/lib", "usr/lib")
            .file("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n")
            .file("/etc/ld.so.conf.d/b.conf", "/opt/b/ # last\n/lib/x86_64-linux-gnu\n")
            .file("/etc/ld.so.conf.d/a.conf", "# nothing\n\n/opt/a\n/none\nrelative\ninclude /etc/ld.so.conf\n")
            .dir("/opt/a")
            .dir("/opt/b")
            .dir("/usr/lib/x86_64-linux-gnu");
        let names: Vec<String> =
            directories(&tree, Platform::Amd64).expect("readable").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["/opt/a", "/opt/b", "/lib/x86_64-linux-gnu", "/lib"]);
    }

    #[test]
    fn libraries_are_listed_by_soname_in_the_loader_s_order() {
        let tree = Sketch::default()
            .link("/lib", "usr/lib")
            .file("/usr/lib/liba.so.9.1", library("liba.so.9"))
            .link("/usr/lib/liba.so.9", "liba.so.9.1")
            .link("/usr/lib/liba.so", "liba.so.9.1")
            .file("/usr/lib/liba.so.10", library("liba.so.10"))
            .file("/usr/lib/libb-1.2.so", library("libb.so.1"))
            .file("/usr/lib/plain.so", library("plain.so"))
            .file("/usr/lib/libscript.so", "INPUT(liba.so)")
            .link("/usr/lib/libgone.so.1", "nowhere");
        let written = write(&tree, Platform::Amd64, "g").expect("readable");
        assert_eq!(
            listing(&written.cache),
            [
                "libb.so.1 /lib/libb.so.1",
                "liba.so.10 /lib/liba.so.10",
                "liba.so.9 /lib/liba.so.9",
                "liba.so /lib/liba.so",
            ]
        );
        assert_eq!(
            written.links.into_iter().map(|(path, to)| format!("{path} -> {to}")).collect::<Vec<_>>(),
            ["/usr/lib/libb.so.1 -> libb-1.2.so"]
        );
    }

    #[test]
    fn the_generator_is_named_and_found_again() {
        assert_eq!(
            generator("2.41-12+deb13u5+b2"),
            "ldconfig (Debian GLIBC 2.41-12+deb13u5) stable release version 2.41"
        );
        let cache = write(&Sketch::default(), Platform::Arm64, "who").expect("readable").cache;
        assert_eq!(generator_of(&cache).as_deref(), Some("who"));
        for end in 0..cache.len() {
            assert_eq!(generator_of(&cache[..end]), None);
        }
    }

    #[test]
    fn numbers_in_names_are_numbers() {
        for (small, large) in [("liba.so.9", "liba.so.10"), ("liba.so", "liba.so.1"), ("a-", "a1"), ("lib", "lib1")] {
            assert_eq!(number_aware(small, large), Ordering::Less);
            assert_eq!(number_aware(large, small), Ordering::Greater);
        }
        assert_eq!(number_aware("a01", "a1"), Ordering::Equal);
    }
}
