//! What a layer is made of: each operation of its plan as a fragment, made from what the view below says or found in the store.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

use layers::encode::{Compression, EPOCH, Entry, Kind, LAYER_FORMAT, Prefixes};
use layers::op::{ACCOUNTS, Configure, Conversion, LayerPlan, Op};
use layers::source::{Dir, Inline, Link, Owner, TakeFrom, User};
use layers::{Digest, ImagePath, Key, KeyHasher, Platform, StageId};
use serde::{Deserialize, Serialize};

use super::convert::Drops;
use super::index::{Fragment, INDEX_FORMAT};
use super::local::{LayerJob, Local, Subject, Together, Walked};
use super::made::{Content, Made};
use super::run::{self, Ran};
use super::skeleton::skeleton;
use super::tree::Tree as _;
use super::view::View;
use super::{EngineError, base};
use crate::debian::{effects, follow};

impl Local<'_> {
    pub(super) fn layer(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        together: &Together,
        view: &View<'_>,
        below: &Walked,
    ) -> Result<LayerJob, EngineError> {
        if let Some(step) = layer.command() {
            let (fragment, commands) = self.run(subject, layer, step, view, below)?;
            let (key, text) = run::outcome_key(&fragment);
            let (label, fragments) = (layer.label(), vec![fragment]);
            let (skeleton, prefixes) = (Vec::new(), Prefixes::default());
            return Ok(LayerJob { key, text, label, skeleton, fragments, ran: commands, prefixes, made: None });
        }
        let mut fragments = Vec::new();
        let mut ran = Vec::new();
        let mut small = Small::default();
        let mut folders: BTreeMap<ImagePath, Entry> = BTreeMap::new();
        for (part, op) in layer.parts.iter().flat_map(|part| part.ops.iter().map(move |op| (part, op))) {
            let located = |error: EngineError| error.located(part.label.clone(), part.at.as_ref());
            let before = fragments.len();
            match op {
                Op::Unpack { archive, conversion } => {
                    let none = Drops::new();
                    let drops = together.drops.get(&archive.digest).unwrap_or(&none);
                    let key = self.key_of(archive, conversion, drops);
                    let fragment =
                        together.unpacked.get(&key).expect("a run's archives are unpacked before its layers");
                    fragments.push(self.led(archive, conversion, fragment, view).map_err(located)?);
                    ran.extend(self.runs.that_built(&archive.digest));
                }
                Op::Dir(Dir { path, .. }) | Op::Link(Link { path, .. }) | Op::Inline(Inline { path, .. }) => {
                    if path.is_root() {
                        return Err(located(at_root(op)));
                    }
                    let path = small.path(path, view).map_err(located)?;
                    let (entry, content) = small_entry(op, path);
                    small.push(entry, content).map_err(located)?;
                }
                Op::Copy(files) => {
                    let parts = self.copy(files, view)?;
                    // A folder may be in one of them, and what lies in it in another one before it.
                    if parts.len() > 1 {
                        for dir in parts.iter().flat_map(|part| &part.dirs) {
                            folders.entry(dir.path.clone()).or_insert_with(|| dir.clone());
                        }
                    }
                    fragments.extend(parts);
                }
                Op::AddUser(user) => {
                    let fragment = self.add_user(user, view).map_err(located)?;
                    small.add_user(&fragment);
                    fragments.push(fragment);
                }
                Op::Take(take) => {
                    let (fragment, commands) = self.take(subject, take, view)?;
                    fragments.push(fragment);
                    ran.extend(commands);
                }
                Op::Compile(wanted) => fragments.push(self.compile(wanted, view)?),
                Op::Dpkg(dpkg) => {
                    let (fragment, commands) = self.dpkg(subject, layer, dpkg, view, below)?;
                    fragments.push(fragment);
                    ran.extend(commands);
                }
                Op::Build(_) => unreachable!("`settle` turned it into `Op::Unpack`"),
                Op::Run(_) => unreachable!("a command has its layer to itself"),
                Op::Configure(configure) => {
                    fragments.push(self.configure(subject.platform, configure, view, below)?);
                }
            }
            // Of a folder, which is the root directory itself, only what is in it is there.
            if fragments[before..].iter().any(|fragment| fragment.entry(&ImagePath::root()).is_some()) {
                return Err(located(at_root(op)));
            }
        }
        let plain = small.made;
        if !plain.entries.is_empty() || !plain.dirs.is_empty() {
            let mut hasher = KeyHasher::new("plain", LAYER_FORMAT);
            hasher.field("index", INDEX_FORMAT);
            for dir in &plain.dirs {
                hasher.field("dir", entry_text(dir));
            }
            for (entry, content) in &plain.entries {
                hasher.field("entry", entry_text(entry));
                if let Content::Bytes(bytes) = content {
                    hasher.field("content", Digest::of(bytes));
                }
            }
            let (key, text) = hasher.finish();
            fragments.push(self.kept(key, &text, || Ok(plain))?);
        }
        let shared = if folders.is_empty() {
            Cow::Borrowed(&together.shared)
        } else {
            folders.extend(together.shared.iter().map(|(path, dir)| (path.clone(), dir.clone())));
            Cow::Owned(folders)
        };
        let skeleton = skeleton(&fragments, &shared, &|path| view.entry(path));
        Ok(LayerJob { ran, ..self.layer_of(&layer.label(), skeleton, fragments) })
    }

    /// The layer of this skeleton and these fragments.
    pub(super) fn layer_of(&self, label: &str, skeleton: Vec<Entry>, fragments: Vec<Arc<Fragment>>) -> LayerJob {
        let mut hasher = KeyHasher::new("layer", LAYER_FORMAT);
        if self.compression != Compression::Gzip {
            hasher.field("compression", self.compression);
        }
        for dir in &skeleton {
            hasher.field(DIR, entry_text(dir));
        }
        hasher.list(FRAGMENT, fragments.iter().map(|fragment| fragment.blob));
        let (key, text) = hasher.finish();
        let (ran, prefixes) = (Vec::new(), Prefixes::default());
        LayerJob { key, text, label: label.to_owned(), skeleton, fragments, ran, prefixes, made: None }
    }

    /// What the last layer of these directories began with that this one begins with, too: its tar is not hashed again. And where to
    /// keep what this one begins with, if that is worth it.
    pub(super) fn beginning(&self, job: &LayerJob) -> Result<(Prefixes, Option<Last>), EngineError> {
        let Some((key, text)) = beginning_key(job) else { return Ok((job.prefixes.clone(), None)) };
        if job.prefixes != Prefixes::default() {
            return Ok((job.prefixes.clone(), Some(Last { key, text, known: None })));
        }
        let known = self.store.find(&key)?.and_then(|bytes| serde_json::from_slice::<Beginning>(&bytes).ok());
        let prefixes = known.as_ref().map(|Beginning { fragments, prefixes }| {
            let same = fragments.iter().zip(&job.fragments).take_while(|(known, fragment)| **known == fragment.blob);
            let mut prefixes = prefixes.clone();
            prefixes.truncate(same.count());
            prefixes
        });
        Ok((prefixes.unwrap_or_default(), Some(Last { key, text, known })))
    }

    /// Keeps what a layer began with for the next one of these directories.
    pub(super) fn keep_beginning(&self, job: &LayerJob, last: Last, prefixes: &Prefixes) -> Result<(), EngineError> {
        let fragments = job.fragments.iter().take(Prefixes::MOST).map(|fragment| fragment.blob).collect();
        let now = Beginning { fragments, prefixes: prefixes.clone() };
        if last.known.as_ref() != Some(&now) {
            self.store.keep(&last.key, &last.text, &now)?;
        }
        Ok(())
    }

    fn add_user(&self, user: &User, view: &View<'_>) -> Result<Arc<Fragment>, EngineError> {
        let mut hasher = KeyHasher::new("user", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("version", format!("{:?}", effects::versions([])));
        hasher.field("user", serde_json::to_string(user).expect("plain strings and numbers"));
        // Where these files and the home lie, which directories have to be made for them, and what the files hold.
        for path in ACCOUNTS.into_iter().chain([user.home.as_str()]) {
            hasher.field("way", path);
            for place in follow::looked_at(view, path) {
                let found = view.entry(&place);
                hasher.field("place", &place).field("found", found.map_or_else(|| "nothing".into(), entry_text));
                if let Some((fragment, _)) = view.origin(&place) {
                    hasher.field("fragment", fragment.blob);
                }
            }
        }
        let (key, text) = hasher.finish();
        self.kept(key, &text, || Ok(generated(effects::add_user(view, user, EPOCH)?)))
    }

    fn configure(
        &self,
        platform: Platform,
        configure: &Configure,
        view: &View<'_>,
        below: &Walked,
    ) -> Result<Arc<Fragment>, EngineError> {
        let mut hasher = KeyHasher::new("configure", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.field("platform", platform);
        hasher.field("effects", versions(configure));
        hasher.field("written", serde_json::to_string(&configure.effects).expect("plain strings and numbers"));
        hasher.field("ignored", serde_json::to_string(&configure.ignore_scripts).expect("plain strings"));
        base::key(&mut hasher, below.base.as_ref().map(|base| &base.manifest));
        // Their scripts are in no layer.
        hasher.list("packages", configure.packages.iter().map(|archive| archive.digest));
        hasher.list("below", below.jobs.iter().map(|job| job.key));
        let (key, text) = hasher.finish();
        self.kept(key, &text, || {
            let mut packages = Vec::new();
            for archive in &configure.packages {
                let conversion =
                    Conversion::Deb { exclude: configure.exclude.get(&archive.digest).cloned().unwrap_or_default() };
                let fragment = self.unpack(archive, &conversion, &Drops::new())?;
                packages.extend(fragment.package.as_ref().map(|package| effects::Package {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    architecture: package.architecture.clone(),
                    scripts: package.scripts.clone(),
                }));
            }
            let entries = effects::configure(
                &effects::Configure {
                    packages: &packages,
                    extra: &configure.effects,
                    ignored: &configure.ignore_scripts,
                    platform,
                    mtime: EPOCH,
                },
                view,
            )?;
            Ok(generated(entries))
        })
    }

    fn take(
        &self,
        subject: Subject<'_>,
        take: &TakeFrom<StageId>,
        view: &View<'_>,
    ) -> Result<(Arc<Fragment>, Vec<Ran>), EngineError> {
        let subject = Subject { platform: run::platform_of(take, subject.platform), ..subject };
        let open = |digest: &Digest| self.open(digest);
        let mut other = View::new(&open);
        let walked = self.other_stage(subject, take.stage, &mut other)?;
        let from = other.through_links(&take.path)?;
        let to = view.through_links(&take.to)?;
        let mut hasher = KeyHasher::new("take", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT);
        hasher.list("stage", walked.jobs.iter().map(|job| job.key));
        base::key(&mut hasher, walked.base.as_ref().map(|base| &base.manifest));
        hasher.field("from", &from);
        hasher.field("to", &to);
        if let Some(owner) = take.owner {
            hasher.field("owner", format!("{}:{}", owner.uid, owner.gid));
        }
        let (key, text) = hasher.finish();
        let fragment = self.kept(key, &text, || taken(&other, &from, &to, take.owner))?;
        Ok((fragment, walked.jobs.into_iter().flat_map(|job| job.ran).collect()))
    }
}

/// What the ledger knows of the beginning of a layer.
#[derive(PartialEq, Serialize, Deserialize)]
struct Beginning {
    /// The first fragments.
    fragments: Vec<Digest>,
    /// What the tar comes to behind each of them.
    prefixes: Prefixes,
}

/// Where the beginnings of layers with the same directories are kept, and what was found there of the last one.
pub(super) struct Last {
    key: Key,
    text: String,
    known: Option<Beginning>,
}

/// Layers with less tar before their last fragment are hashed from their beginning, bytes.
const WORTH_REMEMBERING: u64 = 32 << 20;

/// Names the beginnings of layers with these directories, where remembering one is worth it.
fn beginning_key(job: &LayerJob) -> Option<(Key, String)> {
    let (_, first) = job.fragments.split_last()?;
    if first.iter().map(|fragment| fragment.layout.tar_size).sum::<u64>() < WORTH_REMEMBERING {
        return None;
    }
    let mut hasher = KeyHasher::new("beginning", LAYER_FORMAT);
    hasher.field("form", Prefixes::FORM);
    for dir in &job.skeleton {
        hasher.field(DIR, entry_text(dir));
    }
    Some(hasher.finish())
}

/// The directories and the fragments of a layer.
pub type Parts = (BTreeMap<ImagePath, Entry>, Vec<Digest>);

/// Those that the text of a layer's key names.
pub fn parts_of(text: &str) -> Parts {
    let (mut dirs, mut fragments) = (BTreeMap::new(), Vec::new());
    for (name, value) in layers::fields(text) {
        match name {
            DIR => dirs
                .extend(serde_json::from_str(&layers::unescaped(value)).ok().map(|dir: Entry| (dir.path.clone(), dir))),
            FRAGMENT => fragments.extend(value.parse::<Digest>().ok()),
            _ => {}
        }
    }
    (dirs, fragments)
}

/// Fields of a layer's key.
const DIR: &str = "dir";
const FRAGMENT: &str = "fragment";

/// What the small steps of a layer come to, one after the other.
#[derive(Default)]
struct Small {
    made: Made<'static>,
    /// What each path is since the steps before.
    put: BTreeMap<ImagePath, Kind>,
}

impl Small {
    /// Where a step writes that says this path: links are followed as the steps before leave them.
    fn path(&self, path: &ImagePath, view: &View<'_>) -> Result<ImagePath, EngineError> {
        Ok(view.through_links_above(path, &self.put)?)
    }

    /// A user, who comes first.
    fn add_user(&mut self, fragment: &Fragment) {
        let entries = fragment.dirs.iter().chain(fragment.entries.iter().map(|it| &it.entry));
        self.put.extend(entries.map(|entry| (entry.path.clone(), entry.kind.clone())));
    }

    /// Puts an entry in the place of what another step has put there.
    fn push(&mut self, entry: Entry, content: Content<'static>) -> Result<(), EngineError> {
        let meet = || EngineError::Meet { path: entry.path.clone() };
        if let Some(last) = self.put.insert(entry.path.clone(), entry.kind.clone()) {
            if (last == Kind::Dir) != entry.is_dir() {
                return Err(meet());
            }
            self.made.dirs.retain(|dir| dir.path != entry.path);
            let count = self.made.entries.len();
            self.made.entries.retain(|(other, _)| other.path != entry.path);
            if !entry.is_dir() && self.made.entries.len() == count {
                // A user's file.
                return Err(meet());
            }
        }
        let below = (Bound::Excluded(&entry.path), Bound::Unbounded);
        let mut near = self.put.range(below).take_while(|(path, _)| path.as_str().starts_with(entry.path.as_str()));
        if !entry.is_dir() && near.any(|(path, _)| path.starts_with(&entry.path)) {
            return Err(meet());
        }
        self.made.commands_dirs |= entry.is_dir();
        self.made.push(entry, content);
        Ok(())
    }
}

/// Everything about an entry that reaches the tar.
fn entry_text(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("plain strings and numbers")
}

/// The versions of what sets packages up natively, as keys say them.
pub fn versions(configure: &Configure) -> String {
    // A file is called `name_version_architecture.deb`.
    let names = configure.packages.iter().map(|archive| archive.name.split('_').next().unwrap_or_default());
    format!("{:?}", effects::versions(names))
}

/// Why nothing can be put at `/`.
fn at_root(op: &Op) -> EngineError {
    let path = match op {
        Op::Dir(_) => return EngineError::DirAtRoot,
        Op::Copy(files) => files.from.as_str(),
        Op::Take(take) => take.path.as_str(),
        Op::Unpack { archive, .. } => &archive.name,
        _ => "",
    };
    let name = path.rsplit('/').next().filter(|name| !matches!(*name, "" | "." | "..")).unwrap_or("name").to_owned();
    EngineError::FileAtRoot { name }
}

/// A directory, a link or a file of a definition, at this path.
fn small_entry(op: &Op, path: ImagePath) -> (Entry, Content<'static>) {
    match op {
        Op::Dir(Dir { owner, mode, .. }) => {
            (Entry { uid: owner.uid, gid: owner.gid, ..Entry::new(path, Kind::Dir, *mode, EPOCH) }, Content::None)
        }
        Op::Link(Link { target, .. }) => {
            (Entry::new(path, Kind::Symlink { target: target.clone() }, 0o777, EPOCH), Content::None)
        }
        Op::Inline(Inline { text, owner, mode, .. }) => {
            let bytes = text.clone().into_bytes();
            let entry = Entry::new(path, Kind::File { size: bytes.len() as u64 }, *mode, EPOCH);
            (Entry { uid: owner.uid, gid: owner.gid, ..entry }, Content::Bytes(bytes))
        }
        _ => unreachable!("only these are put in as they are"),
    }
}

fn generated(entries: Vec<(Entry, Option<Vec<u8>>)>) -> Made<'static> {
    let mut made = Made { commands_dirs: true, ..Made::default() };
    for (entry, content) in entries {
        made.push(entry, content.map_or(Content::None, Content::Bytes));
    }
    made
}

/// The entries at and below `from`, moved to `to`.
fn taken<'v>(
    view: &'v View<'_>,
    from: &ImagePath,
    to: &ImagePath,
    owner: Option<Owner>,
) -> Result<Made<'v>, EngineError> {
    let mut made = Made::default();
    let moved = |path: &ImagePath| {
        let rest = path.as_str().strip_prefix(from.as_str()).unwrap_or_default().trim_start_matches('/');
        to.join(rest).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
    };
    let mut found = false;
    for entry in view.below(from) {
        found = true;
        let path = moved(&entry.path)?;
        let mut copy = Entry { path, ..entry.clone() };
        if let Some(owner) = owner {
            (copy.uid, copy.gid) = (owner.uid, owner.gid);
        }
        match &entry.kind {
            Kind::File { .. } => {
                made.push(copy, Content::of(view, &entry.path));
            }
            Kind::Hardlink { target } if target.starts_with(from) && view.are_one_file(&entry.path, target) => {
                copy.kind = Kind::Hardlink { target: moved(target)? };
                made.push(copy, Content::None);
            }
            Kind::Hardlink { .. } => {
                // Its first name stays behind, or is another file by now: the content comes along.
                copy.kind = Kind::File { size: view.size_of(&entry.path)? };
                made.push(copy, Content::of(view, &entry.path));
            }
            _ => made.push(copy, Content::None),
        }
    }
    if found { Ok(made) } else { Err(EngineError::NothingToTake { path: from.clone() }) }
}
