//! Archives of a stage in the places of others: where nothing else changed, what the stage comes to is known without a walk.
//!
//! ```text
//! key's text   differs from the last one in this archive                       ─▶ which layer, which neighbours
//! footprint    nothing else has a path of the old archive or of the new one    ─▶ all other layers are what they were
//! ELF facts    the loader is told by the new one what the old one told it      ─▶ the gate's verdict is what it was
//! ```
//!
//! Each of these is looked at, none is assumed: a stage of which one cannot be said is walked.

use std::collections::BTreeMap;
use std::sync::Arc;

use cache::{CacheError, Store};
use layers::encode::{Entry, Kind, Prefixes};
use layers::lower::Resolved;
use layers::op::{Archive, Conversion, LayerPlan, Op};
use layers::{Digest, ImagePath, Key};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::convert::Drops;
use super::foundation::Cut;
use super::index::Fragment;
use super::layer::parts_of;
use super::local::{FEW, KeptLayer, LayerJob, LayerRecord, Local, Walked};
use super::skeleton::skeleton;
use super::view::concerns_linking;
use crate::debian::elf::ElfFacts;
use crate::parallel::in_parallel;

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
    fn with_exchanged(&self, gone: Vec<u32>, came: Vec<u32>) -> Paths {
        let mut gone = Paths::new(gone).0.into_iter().peekable();
        let stays = |path: &u32| {
            while gone.next_if(|it| it < path).is_some() {}
            gone.next_if_eq(path).is_none()
        };
        let stay = self.0.iter().copied().filter(stays);
        Paths::new(stay.chain(came).collect())
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

/// The archives that differ between the texts of two keys: each as it was, and as it is. `None` where anything else differs, or
/// nothing.
pub fn exchanged(last: &str, now: &str) -> Option<Vec<(Named, Named)>> {
    let value = |line: &str, of: &str| {
        layers::field(line).filter(|(name, _)| *name == of).map(|(_, value)| layers::unescaped(value).into_owned())
    };
    let (mut found, mut names) = (Vec::new(), None);
    for (was, is) in last.lines().zip(now.lines()) {
        // An archive's digest follows its name.
        if let Some(both) = value(was, "name").zip(value(is, "name")) {
            names = Some(both);
            continue;
        }
        let (old, new) = match names.take() {
            Some((old, new)) if was != is => (old, new),
            Some((old, new)) if old != new => return None,
            None if was != is => return None,
            _ => continue,
        };
        let named = |name, line| Some(Named { name, digest: value(line, "archive")?.parse().ok()? });
        found.push((named(old, was)?, named(new, is)?));
    }
    (last.lines().count() == now.lines().count() && !found.is_empty()).then_some(found)
}

/// Archives that take the places of others.
#[derive(Debug)]
pub struct Exchange {
    archives: Vec<New>,
    /// The layers that hold them, counted from the bottom, as they were.
    layers: BTreeMap<usize, Layer>,
    /// What the whole stage held.
    paths: Paths,
    /// What it is remembered as.
    footprint: Footprint,
}

/// An archive that takes the place of another.
#[derive(Debug)]
struct New {
    archive: Archive,
    conversion: Conversion,
    /// Its layer.
    at: usize,
    /// Which of the layer's archives.
    place: usize,
}

#[derive(Debug)]
struct Layer {
    label: String,
    fragments: Vec<Arc<Fragment>>,
    dirs: BTreeMap<ImagePath, Entry>,
    /// What its tar came to up to the first fragment that is another one.
    prefixes: Prefixes,
}

/// What an exchange comes to.
pub struct Exchanged {
    /// The layers that hold the new archives, counted from the bottom.
    pub jobs: Vec<(usize, LayerJob)>,
    /// Paths at which something else is than before.
    pub changed: Vec<ImagePath>,
    /// Old fragments, each with the new one.
    pairs: Vec<(Arc<Fragment>, Arc<Fragment>)>,
    /// What the whole stage holds, where that is not what it held.
    paths: Option<Paths>,
    footprint: Footprint,
}

/// Paths of a layer at which something else is than before, and of these those that it does not hold any more, and those that it
/// did not hold.
struct Difference {
    changed: Vec<ImagePath>,
    gone: Vec<u32>,
    came: Vec<u32>,
}

impl Layer {
    /// Puts a fragment into another one's place. `None` where that may concern other archives or layers; `paths` are those of the
    /// whole stage.
    fn exchange(&mut self, place: usize, new: &Arc<Fragment>, paths: &Paths) -> Option<Difference> {
        let old = std::mem::replace(&mut self.fragments[place], new.clone());
        let is_plain = |fragment: &Fragment| {
            let is_plain = |entry: &Entry| matches!(entry.kind, Kind::File { .. }) && !concerns_linking(entry);
            let deletes = !fragment.whiteouts.is_empty() || !fragment.opaques.is_empty();
            !deletes && !fragment.commands_dirs && fragment.entries.iter().all(|it| is_plain(&it.entry))
        };
        if !is_plain(&old) || !is_plain(new) || old.dirs != new.dirs {
            return None;
        }
        let skeleton = skeleton(&self.fragments, &BTreeMap::new(), &|path| self.dirs.get(path));
        let dirs: BTreeMap<ImagePath, Entry> = skeleton.into_iter().map(|dir| (dir.path.clone(), dir)).collect();
        let held = || old.entries.iter().map(|it| &it.entry);
        let is_other = |entry: &&Entry| new.entry(&entry.path).is_some_and(|now| now != *entry);
        let stay = held().filter(is_other).map(|entry| &entry.path);
        let gone = held().map(|entry| &entry.path).filter(|path| new.position(path).is_none());
        let gone: Vec<&ImagePath> = gone.chain(self.dirs.keys().filter(|dir| !dirs.contains_key(dir))).collect();
        let came = new.entries.iter().map(|it| &it.entry.path).filter(|path| old.position(path).is_none());
        let came: Vec<&ImagePath> = came.chain(dirs.keys().filter(|dir| !self.dirs.contains_key(dir))).collect();
        let is_there = |path: &ImagePath, times: usize| paths.count(path) == times;
        let is_alone = held().all(|entry| is_there(&entry.path, 1))
            && gone.iter().all(|path| is_there(path, 1))
            && came.iter().all(|path| is_there(path, 0));
        if !is_alone {
            return None;
        }
        let changed = stay.chain(gone.iter().copied()).chain(came.iter().copied()).cloned().collect();
        let hashes = |paths: Vec<&ImagePath>| paths.into_iter().map(hash).collect();
        let found = Difference { changed, gone: hashes(gone), came: hashes(came) };
        let is_same_skeleton = self.dirs == dirs;
        self.prefixes.truncate(if is_same_skeleton { place } else { 0 });
        self.dirs = dirs;
        Some(found)
    }
}

impl Exchange {
    /// The layers with these fragments, in the order of [`Local::new_fragments`], in the places of the old ones; `None` where that
    /// may concern others. Each exchange is looked at for itself, in a stage that has those before it.
    pub fn with(mut self, engine: &Local<'_>, fragments: Vec<Arc<Fragment>>) -> Option<Exchanged> {
        let (mut pairs, mut changed, mut is_other) = (Vec::new(), Vec::new(), false);
        for (New { at, place, .. }, new) in self.archives.iter().zip(fragments) {
            let layer = self.layers.get_mut(at)?;
            let old = layer.fragments[*place].clone();
            let found = layer.exchange(*place, &new, &self.paths)?;
            pairs.push((old, new));
            changed.extend(found.changed);
            if !found.gone.is_empty() || !found.came.is_empty() {
                self.paths = self.paths.with_exchanged(found.gone, found.came);
                is_other = true;
            }
        }
        let job = |(at, Layer { label, fragments, dirs, prefixes })| {
            (at, LayerJob { prefixes, ..engine.layer_of(&label, dirs.into_values().collect(), fragments) })
        };
        let jobs = self.layers.into_iter().map(job).collect();
        Some(Exchanged { jobs, changed, pairs, paths: is_other.then_some(self.paths), footprint: self.footprint })
    }
}

impl Exchanged {
    /// Whether the loader is told by each new fragment what the old one told it. Asked once their files are checked.
    pub fn is_linked_alike(&self) -> bool {
        let facts = |fragment: &Fragment| -> Vec<(ImagePath, ElfFacts)> {
            let all = fragment.elf.all().iter();
            all.map(|(at, facts)| (fragment.entries[*at as usize].entry.path.clone(), facts.clone())).collect()
        };
        self.pairs.iter().all(|(old, new)| !new.elf.are_awaited() && facts(old) == facts(new))
    }

    /// Remembers the paths of the stage as it is now; see [`Local::footprint`].
    pub fn footprint(self, store: &Store, cut: Option<&Cut>) -> Result<Option<Footprint>, CacheError> {
        let Exchanged { jobs, paths, footprint: old, .. } = self;
        let key = cut.map(|cut| cut.key);
        let is_below = jobs.iter().all(|(at, _)| cut.is_none_or(|cut| *at < cut.at));
        if !is_below || key.is_some() != old.cut.is_some() {
            return Ok(None);
        }
        let head = match paths {
            Some(paths) => store.put(&paths.with_exchanged(old.tail.clone(), Vec::new()).encode())?.digest,
            None => old.head,
        };
        Ok(Some(Footprint { cut: key, head, tail: old.tail }))
    }
}

impl Local<'_> {
    /// What these archives, as they were and as they are, come to in a stage whose layers were these. `None` where more than their
    /// layers may depend on them, or something of it is gone.
    pub fn exchange(
        &self,
        resolved: &Resolved,
        last: &[(Key, LayerRecord)],
        footprint: &Footprint,
        archives: &[(Named, Named)],
    ) -> Result<Option<Exchange>, EngineError> {
        let ops = || resolved.layers.iter().enumerate().flat_map(|(at, layer)| layer.ops().map(move |op| (at, op)));
        let is_wheel = |conversion: &Conversion| matches!(conversion, Conversion::Wheel { bytecode: None, .. });
        // The layer of an archive that is there once.
        let place = |is: &Named| {
            let mut found =
                ops().filter(|(_, op)| matches!(op, Op::Unpack { archive, .. } if archive.digest == is.digest));
            let (Some((at, Op::Unpack { archive, conversion })), None) = (found.next(), found.next()) else {
                return None;
            };
            (is_wheel(conversion) && archive.name == is.name).then_some((at, archive.size?))
        };
        let Some(places) = archives.iter().map(|(_, is)| place(is)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let Some(lowest) = places.iter().map(|(at, _)| *at).min() else { return Ok(None) };
        // These look at nothing below but at links on their own paths.
        let is_blind = |op: &Op| {
            matches!(op, Op::Unpack { .. } | Op::Dir(_) | Op::Link(_) | Op::Inline(_) | Op::Copy(_) | Op::Take(_))
        };
        let may = places.iter().try_fold(0u64, |sum, (_, size)| sum.checked_add(*size)).is_some_and(|size| size <= FEW)
            && resolved.base.is_none()
            && last.len() == resolved.layers.len()
            && ops().all(|(at, op)| !matches!(op, Op::Run(_)) && (at <= lowest || is_blind(op)));
        if !may {
            return Ok(None);
        }
        let (mut new, mut layers) = (Vec::new(), BTreeMap::new());
        for at in places.into_iter().map(|(at, _)| at) {
            if layers.contains_key(&at) {
                continue;
            }
            let layer = &resolved.layers[at];
            let mut fragments = Vec::new();
            for op in layer.ops() {
                let Op::Unpack { archive, conversion } = op else { return Ok(None) };
                let was = archives.iter().find(|(_, is)| is.digest == archive.digest).map(|(was, _)| was);
                let old = was.map(|was| Archive { name: was.name.clone(), digest: was.digest, ..archive.clone() });
                let key = self.key_of(old.as_ref().unwrap_or(archive), conversion, &Drops::new());
                let Some(fragment) = self.find_fragment(&key)? else { return Ok(None) };
                if old.is_some() {
                    let (archive, conversion) = (archive.clone(), conversion.clone());
                    new.push(New { archive, conversion, at, place: fragments.len() });
                }
                fragments.push(fragment);
            }
            let Some(known) = self.store.recall(&last[at].0)? else { return Ok(None) };
            let (dirs, blobs) = parts_of(&known.text);
            // One that left paths to others, or did, is another fragment.
            if !fragments.iter().map(|fragment| fragment.blob).eq(blobs) {
                return Ok(None);
            }
            let kept = serde_json::from_slice::<KeptLayer>(&known.record);
            let prefixes = kept.map(|kept| kept.prefixes).unwrap_or_default();
            layers.insert(at, Layer { label: layer.label(), fragments, dirs, prefixes });
        }
        for (_, (_, record)) in last.iter().enumerate().filter(|(at, _)| !layers.contains_key(at)) {
            if self.store.has(&record.digest)? != Some(record.size) {
                return Ok(None);
            }
        }
        let paths = self.store.read(&footprint.head)?.and_then(|bytes| Paths::decode(&bytes, &footprint.tail));
        let exchange = |paths| Exchange { archives: new, layers, paths, footprint: footprint.clone() };
        Ok(paths.map(exchange))
    }

    /// The fragments of the new archives. They may still be checked when this returns.
    pub fn new_fragments(&self, exchange: &Exchange) -> Result<Vec<Arc<Fragment>>, EngineError> {
        let key = |it: &New| self.key_of(&it.archive, &it.conversion, &Drops::new());
        let mut missing = Vec::new();
        for it in &exchange.archives {
            if self.find_fragment(&key(it))?.is_none() {
                missing.push(it);
            }
        }
        self.expect(missing.iter().map(|it| key(it)).collect());
        self.room.holding().open(true);
        let converted = in_parallel(self.jobs, &missing, |it| {
            // Before the core: it may be on its way.
            self.supply.supply(&it.archive)?;
            let _core = self.cores.take();
            self.unpack(&it.archive, &it.conversion, &Drops::new()).map(drop)
        });
        self.room.holding().open(false);
        converted?;
        exchange.archives.iter().map(|it| self.unpack(&it.archive, &it.conversion, &Drops::new())).collect()
    }

    /// Remembers the paths of a walked stage. `last` are the layers of the image before, and what was remembered of them. `None`
    /// where that is not known.
    pub fn footprint(
        &self,
        resolved: &Resolved,
        walked: &Walked,
        cut: Option<&Cut>,
        last: Option<(&[(Key, LayerRecord)], &Footprint)>,
    ) -> Result<Option<Footprint>, EngineError> {
        let deletes = resolved.layers.iter().flat_map(LayerPlan::ops).any(|op| matches!(op, Op::Run(_)));
        if deletes || walked.base.is_some() || walked.is_unnamed {
            return Ok(None);
        }
        let key = cut.map(|cut| cut.key);
        let (head, tail) = walked.jobs.split_at(cut.map_or(walked.jobs.len(), |cut| cut.at));
        let tail: Vec<u32> = tail.iter().flat_map(paths_of).take(TAIL + 1).collect();
        if tail.len() > TAIL {
            return Ok(None);
        }
        let head = if walked.is_on_foundation() {
            let keys =
                |layers: &[(Key, LayerRecord)]| layers.iter().map(|(key, _)| *key).take(head.len()).collect::<Vec<_>>();
            let is_it =
                |layers, last: &Footprint| last.cut == key && keys(layers).iter().eq(head.iter().map(|job| &job.key));
            last.filter(|(layers, last)| is_it(layers, last)).map(|(_, last)| last.head)
        } else {
            let all = head.iter().flat_map(paths_of).chain(walked.dropped.iter().map(hash));
            Some(self.store.put(&Paths::new(all.collect()).encode())?.digest)
        };
        Ok(head.map(|head| Footprint { cut: key, head, tail }))
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
    fn texts_that_differ_in_archives_name_them_and_others_name_none() {
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
        assert_eq!(exchanged(&last, &same_name), Some(vec![(named("b-1.whl", "b"), named("b-1.whl", "other"))]));
        let new_name = text(&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-\\2.whl", "other")], "x");
        assert_eq!(exchanged(&last, &new_name), Some(vec![(named("c-1.whl", "c"), named("c-\\2.whl", "other"))]));
        let several = text(&[("a-2.whl", "x"), ("b-1.whl", "b"), ("c-1.whl", "y")], "x");
        let (one, other) =
            ((named("a-1.whl", "a"), named("a-2.whl", "x")), (named("c-1.whl", "c"), named("c-1.whl", "y")));
        assert_eq!(exchanged(&last, &several), Some(vec![one, other]));
        let others: [(&[(&str, &str)], &str); 7] = [
            (&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-1.whl", "c")], "x"),
            (&[("a-1.whl", "a"), ("b-1.whl", "b"), ("c-1.whl", "c")], "y"),
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
