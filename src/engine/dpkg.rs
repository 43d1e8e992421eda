//! Packages that their own maintainer scripts configure: the way out where a script has no native effect.
//!
//! ```text
//! configurator (dpkg, Essential, fakeroot) ─┐
//! the image so far, over it                 ├─▶ root ─▶ fakeroot dpkg --install ─▶ what it changed ─▶ fragment
//! the packages' archives                    ┘                                      less what is of the run alone,
//!                                                                                  of the configurator, or as it was
//! ```
//!
//! It is a command like any other, in the same sandbox and remembered in the same way. The sandbox has one user and no
//! powers; fakeroot (fakeroot(1)) answers the scripts as if it had all of them, and tells afterwards which owners they set.
//! What is made is taken to be the same on all platforms where no program and no path of a platform is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use layers::encode::{Entry, Kind, LAYER_FORMAT};
use layers::op::{Conversion, Dpkg, LayerPlan, Op, Placed, Step};
use layers::source::{Inline, Owner};
use layers::{Digest, ImagePath, KeyHasher, Platform, path};

use super::convert::{Drops, Patterns};
use super::index::{Fragment, INDEX_FORMAT};
use super::local::{Local, Subject, Walked};
use super::made::{Content, Made};
use super::run::{Ran, is_foreign, of_words, outcome_key};
use super::tree::Tree;
use super::view::View;
use super::{EngineError, base};
use crate::debian::scripts::Alternative;
use crate::sandbox::{Level, SandboxError};

/// Part of every key of what dpkg makes: raised whenever it is called otherwise, or other parts of the outcome are kept.
pub const VERSION: u32 = 2;

/// What calls dpkg, inside.
const SCRIPT: &str = include_str!("dpkg.sh");

/// Where the script leaves what fakeroot knows.
const OWNERS: &str = "/.imgbuild-owners";

/// What a run of dpkg leaves that is no part of an image: its records, which images keep in `status.d`, caches, logs and
/// copies of what was before; and the name of a machine, which no image has. The loader's cache is the engine's own.
const FORGOTTEN: [&str; 19] = [
    "/etc/.pwd.lock",
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/ld.so.cache",
    "/etc/machine-id",
    "/etc/passwd-",
    "/etc/shadow-",
    "/etc/subgid-",
    "/etc/subuid-",
    "/usr/sbin/policy-rc.d",
    "/var/cache/apt",
    "/var/cache/debconf",
    "/var/cache/ldconfig",
    "/var/cache/man",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/pam",
    "/var/lib/systemd",
    "/var/log",
];

impl Local<'_> {
    /// What dpkg makes of the stage below when it configures packages: a fragment that lies over it.
    pub(super) fn dpkg(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        dpkg: &Dpkg,
        view: &View<'_>,
        below: &Walked,
    ) -> Result<(Arc<Fragment>, Vec<Ran>), EngineError> {
        if let Some(machine) = Platform::native().filter(|_| is_foreign(subject.platform)) {
            return self.configured_here(subject, machine, layer);
        }
        let open = |digest: &Digest| self.open(digest);
        let mut root = View::new(&open);
        let mut together = self.other_stage(subject, dpkg.configurator, &mut root)?;
        if let Some(base) = &below.base {
            base.fragments(self)?.iter().for_each(|fragment| root.apply_base(fragment));
        }
        for job in &below.jobs {
            root.apply(&job.skeleton, &job.fragments)?;
        }
        together.jobs.extend(below.jobs.iter().cloned());
        together.base.clone_from(&below.base);
        let alternatives = self.alternatives(subject, layer, dpkg)?;
        let step = step_of(dpkg, &special(view), &alternatives);
        let (outcome, ran) = self.run(subject, layer, &step, &root, &together).map_err(|error| match error {
            EngineError::Command { why: SandboxError::Status { .. } | SandboxError::Signal { .. }, .. }
                if self.runs.commands.chosen() > Some(Level::Namespaces) =>
            {
                let why = "needs a sandbox of level `namespaces`: fakeroot cannot work in a lesser one";
                EngineError::Dpkg { why: why.to_owned() }
            }
            error => error,
        })?;
        let mut hasher = KeyHasher::new("dpkg", LAYER_FORMAT);
        hasher.field("index", INDEX_FORMAT).field("version", VERSION);
        hasher.field("outcome", outcome_key(&outcome).0.0);
        let exclude: Vec<&String> = dpkg.exclude.values().flatten().collect();
        hasher.list("exclude", exclude.iter());
        hasher.list("below", below.jobs.iter().map(|job| job.key));
        base::key(&mut hasher, below.base.as_ref().map(|base| &base.manifest));
        let (key, text) = hasher.finish();
        let mut after = View::new(&open);
        after.apply_base(&outcome);
        let fragment = self.kept(key, &text, || {
            let mut made = kept(&outcome, &after, view)?;
            Patterns::new(exclude).leave_out(&mut made);
            Ok(made)
        })?;
        Ok((fragment, ran))
    }

    /// What dpkg makes for the machine's own platform, where that serves for another.
    fn configured_here(
        &self,
        subject: Subject<'_>,
        machine: Platform,
        layer: &LayerPlan,
    ) -> Result<(Arc<Fragment>, Vec<Ran>), EngineError> {
        let open = |digest: &Digest| self.open(digest);
        let here = Subject { platform: machine, ..subject };
        let mut view = View::new(&open);
        let walked = self.other_stage(here, layer.stage, &mut view)?;
        let label = layer.label();
        let job = walked.jobs.into_iter().rev().find(|job| job.label == label);
        let Some((fragment, ran)) = job.and_then(|job| Some((job.fragments.into_iter().next()?, job.ran))) else {
            return Err(EngineError::ForeignCommand { platform: subject.platform });
        };
        let program = fragment.elf.all().first().and_then(|(at, _)| fragment.entries.get(*at as usize));
        let bound = match program {
            Some(program) => Some(&program.entry),
            None => {
                let entries = fragment.entries.iter().map(|indexed| &indexed.entry).chain(&fragment.dirs);
                bound(entries, machine, |path| view.read(path))?
            }
        };
        match bound {
            Some(entry) => Err(EngineError::Dpkg {
                why: format!(
                    "makes `{}` on {machine}, which {} cannot have: build for {} on such a machine",
                    entry.path, subject.platform, subject.platform
                ),
            }),
            None => Ok((fragment, ran)),
        }
    }

    /// The alternatives that are there already, made by the engine: dpkg's scripts choose among all of them.
    fn alternatives(
        &self,
        subject: Subject<'_>,
        layer: &LayerPlan,
        dpkg: &Dpkg,
    ) -> Result<Vec<Alternative>, EngineError> {
        let resolved = self.lowered(subject, layer.stage)?;
        let mut all = Vec::new();
        for op in resolved.layers.iter().flat_map(LayerPlan::ops) {
            if let Op::Unpack { archive, conversion: conversion @ Conversion::Deb { .. } } = op
                && !dpkg.packages.iter().any(|package| package.digest == archive.digest)
            {
                let fragment = self.unpack(archive, conversion, &Drops::new())?;
                let package = fragment.package.iter();
                all.extend(package.flat_map(|package| package.scripts.alternatives.iter().cloned()));
            }
        }
        Ok(all)
    }
}

/// The command that configures.
fn step_of(dpkg: &Dpkg, special: &str, alternatives: &[Alternative]) -> Step {
    let inside = |name: &str| path!("/.imgbuild").join(name).expect("a plain name joins");
    let debs: Vec<ImagePath> = (0..dpkg.packages.len()).map(|number| inside(&format!("{number}.deb"))).collect();
    let script = inside("dpkg.sh");
    let variables = [
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
        ("FAKEROOTDONTTRYCHOWN", "1"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ];
    let run = of_words(&["fakeroot", "--", "sh", script.as_str()], &variables);
    let lines = |lines: &mut dyn Iterator<Item = String>| lines.map(|line| line + "\n").collect::<String>();
    let texts = [
        ("dpkg.sh", SCRIPT.to_owned()),
        ("owners", special.to_owned()),
        ("alternatives", lines(&mut alternatives.iter().map(install))),
        ("forget", lines(&mut FORGOTTEN.iter().map(|path| (*path).to_owned()))),
    ];
    let placed = |path: &ImagePath, op: Op| Placed { path: path.clone(), op, platform: None };
    let texts = texts.into_iter().map(|(name, text)| {
        let path = inside(name);
        placed(&path, Op::Inline(Inline { text, path: path.clone(), mode: 0o644, owner: Owner::default() }))
    });
    let archives = dpkg.packages.iter().zip(&debs).map(|(archive, to)| {
        let conversion = Conversion::File { to: to.clone(), mode: 0o644, owner: Owner::default() };
        placed(to, Op::Unpack { archive: archive.clone(), conversion })
    });
    Step { run, inputs: texts.chain(archives).collect() }
}

/// The arguments of update-alternatives(1), for a shell.
fn install(alternative: &Alternative) -> String {
    let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let Alternative { link, name, path, priority, slaves } = alternative;
    let mut line = format!("--install {} {} {} {priority}", quoted(link), quoted(name), quoted(path));
    for slave in slaves {
        let _ = write!(line, " --slave {} {} {}", quoted(&slave.link), quoted(&slave.name), quoted(&slave.path));
    }
    line
}

/// What a folder of an ordinary user cannot have, a line an entry: mode, uid, gid and path.
fn special(view: &View<'_>) -> String {
    let entries = view.below(&ImagePath::root());
    let special = entries.filter(|entry| (entry.uid, entry.gid) != (0, 0) || entry.mode & 0o6000 != 0);
    special.map(|entry| format!("{:o} {} {} {}\n", entry.mode & 0o7777, entry.uid, entry.gid, entry.path)).collect()
}

/// Mode, uid and gid by path, as the script tells them.
fn told(after: &View<'_>) -> Result<BTreeMap<ImagePath, (u32, u32, u32)>, EngineError> {
    let text = after.read(&ImagePath::new(OWNERS).expect("a normal path"))?;
    let wrong = |line: &str| EngineError::Dpkg { why: format!("told `{line}` of an owner") };
    let mut all = BTreeMap::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let mut words = line.splitn(4, ' ');
        let mut number = |radix| words.next().and_then(|word| u32::from_str_radix(word, radix).ok());
        let (mode, uid, gid) = (number(8), number(10), number(10));
        let path = words.next().and_then(|path| ImagePath::new(path).ok());
        let (Some(mode), Some(uid), Some(gid), Some(path)) = (mode, uid, gid, path) else { return Err(wrong(line)) };
        all.insert(path, (mode, uid, gid));
    }
    Ok(all)
}

fn is_forgotten(path: &ImagePath) -> bool {
    let path = path.as_str();
    let below = |folder: &&str| path.strip_prefix(*folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    path == OWNERS || FORGOTTEN.iter().any(below) || path.contains("/__pycache__")
}

/// Of what the command changed, what belongs into the image: `after` holds the changes alone, `view` the image before.
fn kept<'v>(outcome: &Fragment, after: &'v View<'_>, view: &'v View<'_>) -> Result<Made<'v>, EngineError> {
    let told = told(after)?;
    let mut made = Made { commands_dirs: true, ..Made::default() };
    let mut seen: BTreeSet<&ImagePath> = BTreeSet::new();
    let mut taken: BTreeSet<&ImagePath> = BTreeSet::new();
    for changed in outcome.dirs.iter().chain(outcome.entries.iter().map(|indexed| &indexed.entry)) {
        seen.insert(&changed.path);
        if is_forgotten(&changed.path) {
            continue;
        }
        let (mode, uid, gid) = told.get(&changed.path).copied().unwrap_or((changed.mode, 0, 0));
        let entry = Entry { mode, uid, gid, ..changed.clone() };
        if let Some(before) = view.entry(&entry.path)
            && (before.mode, before.uid, before.gid) == (mode, uid, gid)
            && same(before, view, &entry, after)?
        {
            continue;
        }
        match &entry.kind {
            Kind::Hardlink { target } if taken.contains(target) => made.push(entry, Content::None),
            _ => push(&mut made, entry, after)?,
        }
        taken.insert(&changed.path);
    }
    // An owner alone that changed leaves no trace in the folder.
    for (path, (mode, uid, gid)) in &told {
        let Some(before) = view.entry(path).filter(|_| !seen.contains(path) && !is_forgotten(path)) else { continue };
        if (before.mode, before.uid, before.gid) == (*mode, *uid, *gid) {
            continue;
        }
        push(&mut made, Entry { mode: *mode, uid: *uid, gid: *gid, ..before.clone() }, view)?;
    }
    match outcome.whiteouts.iter().find(|path| !is_forgotten(path) && view.entry(path).is_some()) {
        Some(path) => Err(EngineError::Dpkg { why: format!("removes `{path}` of the image, which is not supported") }),
        None => Ok(made),
    }
}

/// Adds an entry with its content in `view`; a hard link as a file of its own.
fn push<'v>(made: &mut Made<'v>, mut entry: Entry, view: &'v View<'_>) -> Result<(), EngineError> {
    if let Kind::Hardlink { .. } = &entry.kind {
        entry.kind = Kind::File { size: view.size_of(&entry.path)? };
    }
    let content = match &entry.kind {
        Kind::File { .. } => Content::of(view, &entry.path),
        _ => Content::None,
    };
    made.push(entry, content);
    Ok(())
}

/// The first of these entries in which a platform is named, by its path, its target or its content, which `read` gives.
fn bound<'e, E>(
    entries: impl Iterator<Item = &'e Entry>,
    platform: Platform,
    read: impl Fn(&ImagePath) -> Result<Vec<u8>, E>,
) -> Result<Option<&'e Entry>, E> {
    let names = [platform.multiarch(), platform.machine(), platform.architecture()];
    let named = |text: &str| names.iter().any(|name| text.contains(name));
    for entry in entries {
        let is_bound = named(entry.path.as_str())
            || match &entry.kind {
                Kind::Symlink { target } => named(target),
                Kind::File { .. } => {
                    memchr::memmem::find(&read(&entry.path)?, platform.multiarch().as_bytes()).is_some()
                }
                _ => false,
            };
        if is_bound {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Whether two entries at the same path are the same but for their attributes.
fn same(before: &Entry, view: &View<'_>, entry: &Entry, after: &View<'_>) -> Result<bool, EngineError> {
    let is_file = |kind: &Kind| matches!(kind, Kind::File { .. } | Kind::Hardlink { .. });
    if !is_file(&before.kind) || !is_file(&entry.kind) {
        return Ok(before.kind == entry.kind);
    }
    Ok(view.read(&entry.path)? == after.read(&entry.path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::encode::EPOCH;

    #[test]
    fn what_cannot_be_read_serves_for_no_other_platform() {
        let file = |path| Entry::new(ImagePath::new(path).expect("a path"), Kind::File { size: 1 }, 0o644, EPOCH);
        let entries = [file("/etc/plain"), file("/etc/told")];
        let machine = Platform::ALL[0];
        let read = |path: &ImagePath| match path.as_str() {
            "/etc/told" => Ok(format!("/usr/lib/{}/x", machine.multiarch()).into_bytes()),
            "/etc/plain" => Ok(Vec::new()),
            _ => Err("rotten"),
        };
        assert_eq!(bound(entries[..1].iter(), machine, read), Ok(None));
        assert_eq!(bound(entries.iter(), machine, read), Ok(Some(&entries[1])));
        assert_eq!(bound([file("/etc/rotten")].iter(), machine, read), Err("rotten"));
    }
}
