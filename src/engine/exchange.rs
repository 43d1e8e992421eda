//! One archive of a stage in the place of another: where nothing else changed, what the stage comes to is known without a walk.
//!
//! ```text
//! key's text   differs from the last one in one archive                        ─▶ which layer, which neighbours
//! footprint    nothing else has a path of the old archive or of the new one    ─▶ all other layers are what they were
//! ELF facts    the loader is told by the new one what the old one told it      ─▶ the gate's verdict is what it was
//! ```
//!
//! Each of these is looked at, none is assumed: a stage of which one cannot be said is walked.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use layers::encode::{Entry, Kind};
use layers::lower::Resolved;
use layers::op::{Archive, Conversion, Op};
use layers::{Digest, ImagePath, Key};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::convert::Drops;
use super::foundation::Cut;
use super::index::{Fragment, Indexed};
use super::layer::parts_of;
use super::local::{FEW, LayerJob, LayerRecord, Local, Walked};
use super::skeleton::skeleton;
use super::view::concerns_linking;
use crate::debian::elf::ElfFacts;

/// The paths of a stage's layers, as remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Names what is known of the stage's head; `None` where the stage is not cut, and all of it is its head.
    pub cut: Option<Key>,
    /// The blob with the paths of the head's layers.
    head: Digest,
    /// The paths of the layers above.
    tail: Vec<u32>,
}

/// How often each path is in some layers: as a directory, as an entry, or as one that an archive left to another. A path is its
/// CRC-32: two that share one are taken for the same, which costs a walk and nothing else. Sorted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Paths(Vec<u32>);

/// What a blob of paths begins with: its kind and version. The paths follow, four bytes each, little-endian.
const BEGIN: &[u8] = b"imgbuild paths 1\n";

/// More paths above the cut are not remembered.
const TAIL: usize = 4096;

fn hash(path: &ImagePath) -> u32 {
    crc32fast::hash(path.as_str().as_bytes())
}

impl Paths {
    fn new(mut paths: Vec<u32>) -> Paths {
        paths.sort_unstable();
        Paths(paths)
    }

    fn encode(&self) -> Vec<u8> {
        BEGIN.iter().copied().chain(self.0.iter().flat_map(|path| path.to_le_bytes())).collect()
    }

    /// Reads what [`Paths::encode`] wrote, and adds others; `None` where it is nothing of that kind.
    fn decode(bytes: &[u8], others: &[u32]) -> Option<Paths> {
        let (paths, []) = bytes.strip_prefix(BEGIN)?.as_chunks::<4>() else { return None };
        Some(Paths::new(paths.iter().map(|path| u32::from_le_bytes(*path)).chain(others.iter().copied()).collect()))
    }

    /// How often a path is there.
    fn count(&self, path: &ImagePath) -> usize {
        let path = hash(path);
        let start = self.0.partition_point(|it| *it < path);
        self.0[start..].partition_point(|it| *it == path)
    }

    /// These, without some of them and with others.
    fn with_exchanged(mut self, gone: Vec<u32>, came: Vec<u32>) -> Paths {
        let mut gone = Paths::new(gone).0.into_iter().peekable();
        self.0.retain(|path| {
            while gone.next_if(|it| it < path).is_some() {}
            gone.next_if_eq(path).is_none()
        });
        self.0.extend(came);
        Paths::new(self.0)
    }
}

/// All paths that a layer holds.
fn paths_of(job: &LayerJob) -> impl Iterator<Item = u32> {
    let entries = job.fragments.iter().flat_map(|fragment| fragment.entries.iter().map(|it| hash(&it.entry.path)));
    job.skeleton.iter().map(|dir| hash(&dir.path)).chain(entries)
}

/// An archive as the text of a key names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The file's name.
    pub name: String,
    /// What its bytes hash to.
    pub digest: Digest,
}

/// The one archive that differs between the texts of two keys: as it was, and as it is. `None` where anything else differs.
pub fn exchanged(last: &str, now: &str) -> Option<(Named, Named)> {
    let (mut name, mut found) = (None, None);
    let (mut last, mut now) = (last.lines(), now.lines());
    loop {
        let (was, is) = match (last.next(), now.next()) {
            (Some(was), Some(is)) => (was, is),
            (None, None) => return found,
            _ => return None,
        };
        let value = |line: &str, of: &str| {
            let (field, value) = line.split_once('=')?;
            (field.split(':').next() == Some(of)).then(|| layers::unescaped(value).into_owned())
        };
        let names = value(was, "name").zip(value(is, "name"));
        if was == is {
            name = names;
        } else if found.is_none() && names.is_some() {
            // Its archive follows, which is another one, too.
            name = names;
            let (was, is) = (last.next()?, now.next()?);
            found = Some(named(name.take()?, value(was, "archive")?, value(is, "archive")?)?);
        } else if found.is_none() {
            found = Some(named(name.take()?, value(was, "archive")?, value(is, "archive")?)?);
        } else {
            return None;
        }
    }
}

fn named((was, is): (String, String), old: String, new: String) -> Option<(Named, Named)> {
    let (old, new) = (old.parse::<Digest>().ok()?, new.parse::<Digest>().ok()?);
    (old != new).then_some((Named { name: was, digest: old }, Named { name: is, digest: new }))
}

/// An archive that takes the place of another one.
#[derive(Debug)]
pub struct Exchange {
    /// Its layer, counted from the bottom.
    pub at: usize,
    label: String,
    archive: Archive,
    conversion: Conversion,
    /// The layer's fragments as they were, and which of them is the old archive's.
    fragments: Vec<Arc<Fragment>>,
    place: usize,
    /// The directories that the layer held.
    dirs: BTreeMap<ImagePath, Entry>,
    /// What the whole stage held.
    paths: Paths,
    /// What it is remembered as.
    footprint: Footprint,
}

/// What the exchange comes to.
pub struct Exchanged {
    /// The layer.
    pub job: LayerJob,
    /// Paths at which something else is than before.
    pub changed: Vec<ImagePath>,
    /// Paths that the layer held and does not hold any more, and the other way around.
    gone: Vec<u32>,
    came: Vec<u32>,
}

impl Exchange {
    fn old(&self) -> &Fragment {
        &self.fragments[self.place]
    }

    /// The layer with another fragment in the old one's place; `None` where that may concern other layers.
    pub fn with(&self, engine: &Local<'_>, new: &Arc<Fragment>) -> Option<Exchanged> {
        let old = self.old();
        let is_plain = |fragment: &Fragment| {
            let is_plain = |entry: &Entry| matches!(entry.kind, Kind::File { .. }) && !concerns_linking(entry);
            let deletes = !fragment.whiteouts.is_empty() || !fragment.opaques.is_empty();
            !deletes && !fragment.commands_dirs && fragment.entries.iter().all(|it| is_plain(&it.entry))
        };
        if !is_plain(old) || !is_plain(new) || old.dirs != new.dirs {
            return None;
        }
        let mut fragments = self.fragments.clone();
        fragments[self.place] = new.clone();
        let skeleton = skeleton(&fragments, &BTreeMap::new(), &|path| self.dirs.get(path));
        // A path with the number of times that it may be there by now, where something else is to be there.
        let mut changed: Vec<(&ImagePath, usize)> = Vec::new();
        let mut gone: Vec<&ImagePath> = Vec::new();
        let at = |fragment: &Fragment, path: &ImagePath| Some(fragment.entries[fragment.position(path)?].entry.clone());
        for Indexed { entry, .. } in &old.entries {
            if self.paths.count(&entry.path) != 1 {
                return None;
            }
            match at(new, &entry.path) {
                Some(now) if now == *entry => {}
                Some(_) => changed.push((&entry.path, 1)),
                None => gone.push(&entry.path),
            }
        }
        let came = new.entries.iter().map(|it| &it.entry.path).filter(|path| old.position(path).is_none());
        let mut came: Vec<&ImagePath> = came.collect();
        let held: HashSet<&ImagePath> = skeleton.iter().map(|dir| &dir.path).collect();
        gone.extend(self.dirs.keys().filter(|dir| !held.contains(dir)));
        came.extend(held.into_iter().filter(|dir| !self.dirs.contains_key(dir)));
        changed.extend(gone.iter().map(|path| (*path, 1)).chain(came.iter().map(|path| (*path, 0))));
        if changed.iter().any(|(path, count)| self.paths.count(path) != *count) {
            return None;
        }
        let hashes = |paths: &[&ImagePath]| paths.iter().map(|path| hash(path)).collect();
        let (gone, came) = (hashes(&gone), hashes(&came));
        let changed = changed.into_iter().map(|(path, _)| path.clone()).collect();
        Some(Exchanged { job: engine.layer_of(&self.label, skeleton, fragments), changed, gone, came })
    }

    /// Whether the loader is told by the new fragment what the old one told it. Asked once the new one's files are checked.
    pub fn is_linked_alike(&self, new: &Fragment) -> bool {
        let facts = |fragment: &Fragment| -> Vec<(ImagePath, ElfFacts)> {
            let all = fragment.elf.all().iter();
            all.map(|(at, facts)| (fragment.entries[*at as usize].entry.path.clone(), facts.clone())).collect()
        };
        !new.elf.are_awaited() && facts(self.old()) == facts(new)
    }
}

impl Local<'_> {
    /// What `was` and `is` are in a stage whose layers were these. `None` where more than their layer may depend on them, or
    /// something of it is gone.
    pub fn exchange(
        &self,
        resolved: &Resolved,
        last: &[(Key, LayerRecord)],
        footprint: &Footprint,
        was: &Named,
        is: &Named,
    ) -> Result<Option<Exchange>, EngineError> {
        let ops =
            || resolved.layers.iter().enumerate().flat_map(|(at, layer)| layer.ops.iter().map(move |op| (at, op)));
        let mut found = ops().filter_map(|(at, op)| match op {
            Op::Unpack { archive, conversion } if archive.digest == is.digest => Some((at, archive, conversion)),
            _ => None,
        });
        let (Some((at, archive, conversion)), None) = (found.next(), found.next()) else { return Ok(None) };
        let is_wheel = matches!(conversion, Conversion::Wheel { bytecode: None, .. }) && archive.name == is.name;
        // These look at nothing below but at links on their own paths.
        let is_blind = |op: &Op| {
            matches!(op, Op::Unpack { .. } | Op::Dir(_) | Op::Link(_) | Op::Inline(_) | Op::Copy(_) | Op::Take(_))
        };
        let may = is_wheel
            && archive.size.is_some_and(|size| size <= FEW)
            && resolved.base.is_none()
            && last.len() == resolved.layers.len()
            && ops().all(|(of, op)| !matches!(op, Op::Run(_)) && (of <= at || is_blind(op)));
        if !may {
            return Ok(None);
        }
        let layer = &resolved.layers[at];
        let old = Archive { name: was.name.clone(), digest: was.digest, ..archive.clone() };
        let (mut fragments, mut place) = (Vec::new(), 0);
        for op in &layer.ops {
            let Op::Unpack { archive, conversion } = op else { return Ok(None) };
            let is_it = archive.digest == is.digest;
            if is_it {
                place = fragments.len();
            }
            let key = self.key_of(if is_it { &old } else { archive }, conversion, &Drops::new());
            let Some(fragment) = self.find_fragment(&key)? else { return Ok(None) };
            fragments.push(fragment);
        }
        let Some(known) = self.store.recall(&last[at].0)? else { return Ok(None) };
        let (dirs, blobs) = parts_of(&known.text);
        // One that left paths to others, or did, is another fragment.
        if !fragments.iter().map(|fragment| fragment.blob).eq(blobs) {
            return Ok(None);
        }
        let others = last.iter().enumerate().filter(|(of, _)| *of != at);
        for (_, (_, record)) in others {
            if self.store.has(&record.digest)? != Some(record.size) {
                return Ok(None);
            }
        }
        let paths = self.store.read(&footprint.head)?.and_then(|bytes| Paths::decode(&bytes, &footprint.tail));
        let Some(paths) = paths else { return Ok(None) };
        Ok(Some(Exchange {
            at,
            label: layer.label.clone(),
            archive: archive.clone(),
            conversion: conversion.clone(),
            fragments,
            place,
            dirs,
            paths,
            footprint: footprint.clone(),
        }))
    }

    /// The fragment of the new archive. It may still be checked when this returns.
    pub fn exchanged_in(&self, exchange: &Exchange) -> Result<Arc<Fragment>, EngineError> {
        let key = self.key_of(&exchange.archive, &exchange.conversion, &Drops::new());
        if self.find_fragment(&key)?.is_none() {
            self.supply.supply(&exchange.archive)?;
        }
        self.expect(key);
        self.room.holding().open(true);
        let _core = self.cores.take();
        let fragment = self.unpack(&exchange.archive, &exchange.conversion, &Drops::new());
        self.room.holding().open(false);
        fragment
    }

    /// Remembers the paths of a walked stage. `last` is what was remembered of the image before. `None` where that is not known.
    pub fn footprint(
        &self,
        resolved: &Resolved,
        walked: &Walked,
        cut: Option<&Cut>,
        last: Option<&Footprint>,
    ) -> Result<Option<Footprint>, EngineError> {
        let deletes = resolved.layers.iter().flat_map(|layer| &layer.ops).any(|op| matches!(op, Op::Run(_)));
        if deletes || walked.base.is_some() {
            return Ok(None);
        }
        let key = cut.map(|cut| cut.key);
        let (head, tail) = walked.jobs.split_at(cut.map_or(walked.jobs.len(), |cut| cut.at));
        let tail: Vec<u32> = tail.iter().flat_map(paths_of).take(TAIL + 1).collect();
        if tail.len() > TAIL {
            return Ok(None);
        }
        let head = if walked.is_on_foundation() {
            last.filter(|last| last.cut == key).map(|last| last.head)
        } else {
            let all = head.iter().flat_map(paths_of).chain(walked.dropped.iter().map(hash));
            Some(self.store.put(&Paths::new(all.collect()).encode())?.digest)
        };
        Ok(head.map(|head| Footprint { cut: key, head, tail }))
    }

    /// The same after an exchange.
    pub fn footprint_after(
        &self,
        exchange: Exchange,
        Exchanged { gone, came, .. }: Exchanged,
        cut: Option<&Cut>,
    ) -> Result<Option<Footprint>, EngineError> {
        let key = cut.map(|cut| cut.key);
        let (old, is_below) = (exchange.footprint, cut.is_none_or(|cut| exchange.at < cut.at));
        if !is_below || key.is_some() != old.cut.is_some() {
            return Ok(None);
        }
        let head = if gone.is_empty() && came.is_empty() {
            old.head
        } else {
            let gone = old.tail.iter().copied().chain(gone).collect();
            self.store.put(&exchange.paths.with_exchanged(gone, came).encode())?.digest
        };
        Ok(Some(Footprint { cut: key, head, tail: old.tail }))
    }
}

#[cfg(test)]
mod tests {
    use layers::KeyHasher;

    use super::*;

    fn path(text: &str) -> ImagePath {
        ImagePath::new(text).expect("a good path")
    }

    #[test]
    fn paths_are_counted_kept_and_exchanged() {
        let of = |texts: &[&str]| texts.iter().map(|text| hash(&path(text))).collect::<Vec<_>>();
        let paths = Paths::new(of(&["/a", "/b", "/a/c", "/b", "/d"]));
        assert_eq!(["/a", "/b", "/c"].map(|text| paths.count(&path(text))), [1, 2, 0]);
        let bytes = Paths::new(of(&["/a", "/b", "/a/c"])).encode();
        assert_eq!(Paths::decode(&bytes, &of(&["/b", "/d"])), Some(paths));
        for wrong in [&bytes[..bytes.len() - 1], &bytes[1..], b""] {
            assert_eq!(Paths::decode(wrong, &[]), None);
        }
        let paths = Paths::decode(&bytes, &of(&["/b", "/d"])).expect("as above");
        let now = paths.with_exchanged(of(&["/b", "/d", "/a/c", "/unknown"]), of(&["/e", "/b"]));
        assert_eq!(now, Paths::new(of(&["/a", "/b", "/b", "/e"])));
    }

    #[test]
    fn texts_that_differ_in_one_archive_name_it_and_others_name_none() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let text = |archives: &[(&str, &str)], rest: &str| {
            let mut hasher = KeyHasher::new("image", 1);
            for (name, content) in archives {
                hasher.field("name", name).field("archive", digest(content)).field("conversion", rest);
            }
            hasher.list("allow-missing", std::iter::once(rest));
            hasher.finish().1
        };
        let last = text(&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-1.whl", "c")], "x");
        let named = |name: &str, content: &str| Named { name: name.into(), digest: digest(content) };
        let same_name = text(&[("a-1.whl", "a"), ("b-1.whl", "other"), ("c-1.whl", "c")], "x");
        assert_eq!(exchanged(&last, &same_name), Some((named("b-1.whl", "b"), named("b-1.whl", "other"))));
        let new_name = text(&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-\\2.whl", "other")], "x");
        assert_eq!(exchanged(&last, &new_name), Some((named("c-1.whl", "c"), named("c-\\2.whl", "other"))));
        let others: [(&[(&str, &str)], &str); 8] = [
            (&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-1.whl", "c")], "x"),
            (&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-1.whl", "c")], "y"),
            (&[("a-1.whl", "a"), ("b-1.whl", "other"), ("c-1.whl", "other")], "x"),
            (&[("a-1.whl", "a"), ("b-2.whl", "other"), ("c-2.whl", "c")], "x"),
            (&[("a-1.whl", "a"), ("b-2.whl", "b"), ("c-1.whl", "c")], "x"),
            (&[("a-1.whl", "a"), ("c-1.whl", "c")], "x"),
            (&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-1.whl", "c"), ("d-1.whl", "d")], "x"),
            (&[], "x"),
        ];
        for (archives, rest) in others {
            assert_eq!(exchanged(&last, &text(archives, rest)), None, "{archives:?} {rest}");
        }
    }
}
