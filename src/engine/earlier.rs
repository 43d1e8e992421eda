//! Byte-code that is there already: of modules whose sources did not change since the last wheel of the same package.
//!
//! ```text
//! ledger    "modules" of pandas ─▶ the fragment that its last wheel became, and the digest of the RECORD in it
//! RECORD    a.py                           sha256=x    the new wheel says `sha256=x` of a.py, too,
//!           __pycache__/a.cpython-313.pyc  sha256=y    so this is its byte-code, once its bytes have the digest y
//! ```
//!
//! Nothing is kept twice, and nothing is believed: a RECORD is compared with the ledger's digest, byte-code with the RECORD.
//! What does not fit, is damaged or was collected is compiled as if nobody had ever done it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use cache::Store;
use layers::encode::{EncodeError, Kind, LAYER_FORMAT, Member, TarReader, WORTHWHILE};
use layers::format::wheel::{RecordRow, WheelName, parse_record};
use layers::op::{Archive, Conversion};
use layers::source::Modules;
use layers::{Digest, ImagePath, Key, KeyHasher};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::index::{self, Fragment, FragmentRecord, INDEX_FORMAT};
use crate::parallel::{Cores, both};
use crate::python::bytecode::{self, cache_path};

/// Names what the last wheel of a package became. Its byte-code is a function of a module's source and of all that is in here;
/// `None` for what has none.
pub fn modules_key(archive: &Archive, conversion: &Conversion) -> Option<(Key, String)> {
    let Conversion::Wheel { venv, python, bytecode: Some(wanted) } = conversion else { return None };
    let package = archive.name.parse::<WheelName>().ok()?.normalised();
    // Who wants some modules must not hide from others that all were made.
    let choice = if wanted.modules == Modules::All { "all" } else { "some" };
    let mut hasher = KeyHasher::new("modules", LAYER_FORMAT);
    hasher.field("index", INDEX_FORMAT).field("version", bytecode::VERSION).field("interpreter", wanted.interpreter);
    hasher.field("python", python).field("venv", venv).field("package", package).field("choice", choice);
    Some(hasher.finish())
}

/// What the ledger knows of the last wheel of a package.
#[derive(Serialize, Deserialize)]
struct ModulesRecord {
    #[serde(flatten)]
    made: FragmentRecord,
    /// The RECORD in it.
    list: Digest,
}

/// Byte-code that is taken over.
pub struct Taken {
    /// Its content.
    pub bytes: Vec<u8>,
    /// What RECORD says of it.
    pub hash: String,
}

/// The fragment of the last wheel of a package, opened.
pub struct Earlier {
    fragment: Arc<Fragment>,
    blob: File,
    /// What its RECORD says of files, by path below `site-packages`.
    rows: HashMap<String, RecordRow>,
    cores: Cores,
}

impl Earlier {
    /// Looks a key up.
    pub fn find(store: &Store, key: &Key, cores: &Cores) -> Result<Option<Earlier>, EngineError> {
        let record = store.find(key)?.and_then(|bytes| serde_json::from_slice::<ModulesRecord>(&bytes).ok());
        let Some(ModulesRecord { made, list: expected }) = record else { return Ok(None) };
        let Some(fragment) = store.read(&made.index)?.and_then(|bytes| index::decode(&bytes)) else { return Ok(None) };
        let Some(blob) = store.open(&fragment.blob)? else { return Ok(None) };
        let list = list_of(&fragment, &blob).filter(|list| Digest::of(list) == expected);
        let Some(rows) = list.and_then(|list| parse_record(&list).ok()) else { return Ok(None) };
        let rows = rows.into_iter().map(|row| (row.path.clone(), row)).collect();
        Ok(Some(Earlier { fragment, blob, rows, cores: cores.clone() }))
    }

    /// Lets the next wheel of the package know what this one became.
    pub fn keep(
        store: &Store,
        (key, text): (Key, String),
        fragment: &Fragment,
        made: FragmentRecord,
    ) -> Result<(), EngineError> {
        if let Some(list) = store.open(&fragment.blob)?.and_then(|blob| list_of(fragment, &blob)) {
            store.keep(&key, &text, &ModulesRecord { made, list: Digest::of(&list) })?;
        }
        Ok(())
    }

    /// The byte-code of modules below `site`, each with what a RECORD says of its source; `None` where it must be made.
    pub fn byte_code<'m>(
        &self,
        site: &ImagePath,
        python: &str,
        modules: impl Iterator<Item = (&'m ImagePath, &'m str)>,
    ) -> Vec<Option<Taken>> {
        let relative =
            |path: &ImagePath| Some(path.as_str().strip_prefix(site.as_str())?.strip_prefix('/')?.to_owned());
        let find = |path: &ImagePath, hash: &str| {
            let is_same = !hash.is_empty() && self.rows.get(&relative(path)?)?.hash == hash;
            let cached = cache_path(path, python).filter(|_| is_same)?;
            let row = self.rows.get(&relative(&cached)?)?;
            Some((row, span(&self.fragment, self.fragment.position(&cached)?)?))
        };
        let found: Vec<Option<(&RecordRow, (u64, u64))>> = modules.map(|(path, hash)| find(path, hash)).collect();
        let spans: Vec<(u64, u64)> = found.iter().flatten().map(|(_, span)| *span).collect();
        let read = contents(&self.blob, &self.fragment, &spans, &self.cores).unwrap_or_default();
        let rows = found.iter().flatten().map(|(row, _)| *row);
        let pairs: Vec<(&RecordRow, &Vec<u8>)> = rows.zip(&read).collect();
        let (one, other) = pairs.split_at(pairs.len() / 2);
        let are_of = |pairs: &[(&RecordRow, &Vec<u8>)]| pairs.iter().map(|(row, bytes)| row.is_of(bytes)).collect();
        let (one, other): (Vec<bool>, Vec<bool>) = both(self.cores.spare(), || are_of(one), || are_of(other));
        let mut checked = read.into_iter().zip(one.into_iter().chain(other));
        let taken =
            |row: &RecordRow, (bytes, is_of): (Vec<u8>, bool)| is_of.then(|| Taken { bytes, hash: row.hash.clone() });
        found.into_iter().map(|found| found.and_then(|(row, _)| taken(row, checked.next()?))).collect()
    }
}

/// The RECORD of the wheel that a fragment was, as it can be read. Each wheel gets one of ours; `None` where it brought others to
/// such a place, which could tell of byte-code what is not so.
fn list_of(fragment: &Fragment, blob: &File) -> Option<Vec<u8>> {
    let is_list = |path: &str| path.ends_with(".dist-info/RECORD") && path.rsplit('/').nth(2) == Some("site-packages");
    let mut lists = (0..fragment.entries.len()).filter(|at| is_list(fragment.entries[*at].entry.path.as_str()));
    let (at, None) = (lists.next()?, lists.next()) else { return None };
    contents(blob, fragment, &[span(fragment, at)?], &Cores::new(1)).ok()?.pop()
}

/// Where the content of a regular file starts in its fragment's tar, and how long it is, bytes.
pub fn span(fragment: &Fragment, position: usize) -> Option<(u64, u64)> {
    let indexed = fragment.entries.get(position)?;
    match indexed.entry.kind {
        Kind::File { size } => Some((indexed.offset, size)),
        _ => None,
    }
}

/// A member that is inflated: where it starts in its fragment's tar and in the fragment, bytes.
type Needed = (u64, u64, Member);

/// What lies at some spans of a fragment's tar, which do not overlap. Only the members that hold them are inflated, on a second
/// core where one is spare.
pub fn contents(
    blob: &File,
    fragment: &Fragment,
    spans: &[(u64, u64)],
    cores: &Cores,
) -> Result<Vec<Vec<u8>>, EngineError> {
    let end_of = |at: usize| spans[at].0.saturating_add(spans[at].1);
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|at| spans[*at]);
    // Those that lie in a piece of the tar, wholly or in part.
    let within = |start: u64, end: u64| {
        let first = order.partition_point(|at| end_of(*at) <= start);
        order[first..].iter().copied().take_while(move |at| spans[*at].0 < end)
    };
    let mut needed: Vec<Needed> = Vec::new();
    let (mut start, mut packed) = (0u64, 0u64);
    for member in &fragment.layout.members {
        let end = start + u64::from(member.tar);
        if within(start, end).next().is_some() {
            needed.push((start, packed, *member));
        }
        (start, packed) = (end, packed + u64::from(member.compressed));
    }
    let inflate = |needed: &[Needed]| -> Result<Vec<(usize, Vec<u8>)>, EngineError> {
        let (mut parts, mut tar) = (Vec::new(), Vec::new());
        for &(start, packed, member) in needed {
            tar.clear();
            TarReader::new(ReadAt { file: blob, at: packed }, std::iter::once(member)).read_to_end(&mut tar)?;
            for at in within(start, start + u64::from(member.tar)) {
                let (from, until) = (spans[at].0.max(start) - start, end_of(at).saturating_sub(start));
                let until = until.min(tar.len() as u64);
                parts.push((at, tar.get(from as usize..until as usize).unwrap_or_default().to_vec()));
            }
        }
        Ok(parts)
    };
    let total: u64 = needed.iter().map(|(_, _, member)| u64::from(member.tar)).sum();
    let core = if total < WORTHWHILE { None } else { cores.spare() };
    let (one, other) = needed.split_at(needed.len() / 2);
    let (one, other) = both(core, || inflate(one), || inflate(other));
    let mut found = vec![Vec::new(); spans.len()];
    for (at, part) in one?.into_iter().chain(other?) {
        match found[at].is_empty() {
            true => found[at] = part,
            false => found[at].extend(part),
        }
    }
    match spans.iter().zip(&found).all(|((_, size), content)| content.len() as u64 == *size) {
        true => Ok(found),
        false => Err(EncodeError::Damaged("it is shorter than its index says").into()),
    }
}

/// Reads a file from a place on, whoever else reads it.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(out, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use layers::encode::{EPOCH, Entry};
    use layers::format::wheel::write_record;
    use layers::op::{ByteCode, Origin};

    use super::super::made::{Content, Made};
    use super::super::spool::Room;
    use super::*;

    const SITE: &str = "/opt/venv/lib/python3.13/site-packages";

    fn path(relative: &str) -> ImagePath {
        ImagePath::new(format!("{SITE}/{relative}")).expect("a path")
    }

    /// A fragment with these files, `(path, content, content that RECORD tells of)`, and its record in the ledger.
    fn kept(store: &Store, files: &[(&str, &[u8], &[u8])]) -> (Fragment, FragmentRecord) {
        let rows = files.iter().map(|(name, _, told)| RecordRow::of(name, told)).collect();
        let list = write_record(rows).into_bytes();
        let mut made = Made::default();
        let all = files.iter().map(|(name, content, _)| (*name, content.to_vec()));
        for (name, content) in all.chain([("x-1.0.dist-info/RECORD", list)]) {
            let kind = Kind::File { size: content.len() as u64 };
            made.push(Entry::new(path(name), kind, 0o644, EPOCH), Content::Bytes(content));
        }
        let fragment = made.write(store, &Room::new(store.scratch(), Cores::new(2))).expect("writes");
        let index = store.put(&index::encode(&fragment)).expect("stores").digest;
        let record = FragmentRecord { fragment: fragment.blob, index };
        (fragment, record)
    }

    fn key(name: &str, modules: Modules, interpreter: &str) -> Option<(Key, String)> {
        let digest = Digest::of(name.as_bytes());
        let origin = Origin::Url("https://example.org/x.whl".into());
        let archive = Archive { name: name.into(), digest, size: None, origin };
        let bytecode = Some(ByteCode { modules, interpreter: Digest::of(interpreter.as_bytes()) });
        let venv = ImagePath::new("/opt/venv").expect("a path");
        modules_key(&archive, &Conversion::Wheel { venv, python: "3.13".into(), bytecode })
    }

    fn asked(earlier: &Earlier, modules: &[(&str, &[u8])]) -> Vec<Option<Vec<u8>>> {
        let bytes = |taken: Taken| {
            assert_eq!(taken.hash, RecordRow::of("", &taken.bytes).hash);
            taken.bytes
        };
        let hash = |text: &[u8]| RecordRow::of("", text).hash;
        let modules: Vec<(ImagePath, String)> = modules.iter().map(|(name, text)| (path(name), hash(text))).collect();
        let site = ImagePath::new(SITE).expect("a path");
        let found = earlier.byte_code(&site, "3.13", modules.iter().map(|(path, hash)| (path, hash.as_str())));
        found.into_iter().map(|found| found.map(bytes)).collect()
    }

    #[test]
    fn releases_of_a_package_share_a_key_and_other_interpreters_have_another() {
        let one = key("Some_Thing-1.0-py3-none-any.whl", Modules::All, "a");
        assert!(one.is_some());
        assert_eq!(one, key("some.thing-2.0-cp313-cp313-linux_x86_64.whl", Modules::All, "a"));
        assert_ne!(one, key("some_thing-1.0-py3-none-any.whl", Modules::All, "b"));
        assert_ne!(one, key("some_thing-1.0-py3-none-any.whl", Modules::Files(Default::default()), "a"));
        assert_ne!(one, key("some_thing_else-1.0-py3-none-any.whl", Modules::All, "a"));
    }

    #[test]
    fn byte_code_of_the_same_source_is_found_and_nothing_that_differs_from_its_list() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        // As long as several members, so that modules lie across their ends.
        let long: Vec<u8> = (0..3_000_000u32).flat_map(|at| (at / 7).to_le_bytes()).collect();
        let files: [(&str, &[u8], &[u8]); 8] = [
            ("a.py", b"1", b"1"),
            ("__pycache__/a.cpython-313.pyc", b"code of 1", b"code of 1"),
            ("b.py", b"2", b"2"),
            ("__pycache__/b.cpython-313.pyc", b"code of something else", b"code of 2"),
            ("c.py", b"3", b"3"),
            ("d.py", b"", b""),
            ("__pycache__/d.cpython-313.pyc", &long, &long[..1]),
            ("e/e.txt", b"", b""),
        ];
        let (fragment, record) = kept(&store, &files);
        let (name, text) = key("x-1.0-py3-none-any.whl", Modules::All, "a").expect("a wheel");
        assert!(Earlier::find(&store, &name, &Cores::new(2)).expect("looks").is_none());
        Earlier::keep(&store, (name, text), &fragment, record).expect("keeps");
        let earlier = Earlier::find(&store, &name, &Cores::new(2)).expect("looks").expect("is there");
        let modules: [(&str, &[u8]); 6] =
            [("d.py", b""), ("a.py", b"1"), ("a.py", b"changed"), ("b.py", b"2"), ("c.py", b"3"), ("none.py", b"1")];
        let found = asked(&earlier, &modules);
        let expected = [None, Some(b"code of 1".to_vec()), None, None, None, None];
        assert!(found == expected, "only what has its list's digest");

        // Pieces of long content come together again.
        let at = fragment.position(&path("__pycache__/d.cpython-313.pyc")).expect("is there");
        let spans = [span(&fragment, at).expect("a file"), span(&fragment, 0).expect("a file")];
        let read = contents(&earlier.blob, &fragment, &spans, &Cores::new(2)).expect("reads");
        assert!(read[0] == long);
        let beyond = (fragment.layout.tar_size, 1);
        assert!(contents(&earlier.blob, &fragment, &[beyond, (u64::MAX, u64::MAX)], &Cores::new(2)).is_err());
    }

    #[test]
    fn a_wheel_that_brings_another_list_tells_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let code = ("__pycache__/a.cpython-313.pyc", &b"evil"[..], &b"evil"[..]);
        let rows = vec![RecordRow::of("a.py", b"good"), RecordRow::of(code.0, code.1)];
        let fake = write_record(rows).into_bytes();
        for place in ["aaa.dist-info/RECORD", "data/site-packages/z.dist-info/RECORD"] {
            let files = [("a.py", &b"bad"[..], &b"bad"[..]), code, (place, &fake, &fake)];
            let (fragment, record) = kept(&store, &files);
            let (name, text) = key("x-1.0-py3-none-any.whl", Modules::All, place).expect("a wheel");
            Earlier::keep(&store, (name, text), &fragment, record).expect("keeps nothing");
            assert!(Earlier::find(&store, &name, &Cores::new(2)).expect("looks").is_none(), "{place}");
        }
    }

    #[test]
    fn a_list_that_is_not_the_ledgers_is_worth_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let (good, record) = kept(&store, &[("a.py", b"1", b"1"), ("__pycache__/a.cpython-313.pyc", b"good", b"good")]);
        let (name, text) = key("x-1.0-py3-none-any.whl", Modules::All, "a").expect("a wheel");
        Earlier::keep(&store, (name, text), &good, record.clone()).expect("keeps");
        assert!(Earlier::find(&store, &name, &Cores::new(2)).expect("looks").is_some());
        // Another fragment in its place, which agrees with itself and is laid out alike.
        let (evil, _) = kept(&store, &[("a.py", b"1", b"1"), ("__pycache__/a.cpython-313.pyc", b"evil", b"evil")]);
        std::fs::remove_file(store.blob_path(&good.blob)).expect("removes");
        std::fs::copy(store.blob_path(&evil.blob), store.blob_path(&good.blob)).expect("copies");
        assert!(Earlier::find(&store, &name, &Cores::new(2)).expect("looks").is_none());
    }
}
