//! What a layer has of others: one that is what it was by itself may be made anew all the same.

use std::collections::BTreeSet;

use layers::ImagePath;
use layers::op::{ACCOUNTS, ByteCode, Conversion};
use layers::source::Modules;

use super::reasons::{Known, Layer, MAY, ORDER};
use super::text::Part;

/// What an operation reads of the layers below.
enum Reads {
    /// All of them.
    All,
    /// These paths, and what is below them.
    Files { what: &'static str, paths: &'static [&'static str] },
}

fn reads(part: &Part) -> Option<Reads> {
    match part.kind() {
        "configure" | "dpkg" => Some(Reads::All),
        "compile" => Some(Reads::Files { what: "modules", paths: &["usr/lib"] }),
        "op" if part.step()?.0 == "add-user" => Some(Reads::Files { what: "account files", paths: &ACCOUNTS }),
        _ => None,
    }
}

/// The path of a directory, a link or a user's home, with what it is called: what is made below it shows it, or goes where it leads.
pub(super) fn leads(part: &Part) -> Option<(String, String)> {
    part.step().filter(|(kind, _)| matches!(kind.as_str(), "dir" | "link" | "add-user"))?;
    Some((part.target()?, part.shown()))
}

/// Why a layer is made anew.
pub(super) struct Why {
    pub text: String,
    /// Only the build can know.
    pub may: bool,
}

impl Why {
    fn is(text: String) -> Option<Why> {
        Some(Why { text, may: false })
    }

    fn may(text: &str) -> Option<Why> {
        Some(Why { text: format!("{MAY}{text}"), may: true })
    }
}

/// The layers of a new text beside those of an old one, as far as they were looked at.
pub(super) struct Sides<'a> {
    pub old: &'a [Vec<Part>],
    pub new: &'a [Vec<Part>],
    /// Operations of the old text that no layer has any more.
    pub gone: Vec<&'a Part>,
    /// Whether all of an older layer is gone.
    pub is_gone: &'a dyn Fn(usize) -> bool,
    /// Whether there is another base below all of them, or is looked at otherwise.
    pub other_base: bool,
    pub known: &'a dyn Known,
}

/// Why a layer that is what it was by itself may not be found. Those below it were looked at before.
pub(super) fn from_others(at: usize, layers: &[Layer<'_>], sides: &Sides<'_>) -> Option<Why> {
    from_below(at, layers, sides).or_else(|| from_beside(at, layers, sides))
}

fn changed(layer: &Layer<'_>) -> String {
    format!("`{}` {}", layer.label, if layer.may { "may be other than it was" } else { "changed" })
}

fn from_below(at: usize, layers: &[Layer<'_>], sides: &Sides<'_>) -> Option<Why> {
    let (parts, below, home) = (&sides.new[at], &layers[..at], layers[at].home?);
    // What is below and was not there, or the reverse.
    let other = || {
        let moved = |at: &usize| !below.iter().any(|layer| layer.home == Some(*at));
        let gone = (0..home).filter(moved).find(|at| (sides.is_gone)(*at));
        let gone = gone.and_then(|at| sides.old[at].first()).map(|part| format!("{} is gone", part.shown()));
        let is_same = || below.iter().map(|layer| layer.home).eq((0..home).map(Some));
        gone.or_else(|| (!is_same()).then(|| ORDER.to_owned()))
    };
    match parts.iter().find_map(reads) {
        Some(Reads::All) if sides.other_base => return Why::is("it reads what is below, and the base changed".into()),
        Some(Reads::Files { what, .. }) if sides.other_base => {
            return Why::may(&format!("it reads the {what} below, and the base changed"));
        }
        Some(Reads::All) => {
            let lowest = |may| below.iter().find(|layer| !layer.why.is_empty() && layer.may == may).map(changed);
            if let Some(what) = lowest(false).or_else(other) {
                return Why::is(format!("it reads what is below, and {what}"));
            }
            return lowest(true).and_then(|what| Why::may(&format!("it reads what is below, and {what}")));
        }
        Some(Reads::Files { what, paths }) => {
            let mut may = None;
            for (at, lower) in below.iter().enumerate().filter(|(_, lower)| !lower.why.is_empty()) {
                match &lower.files {
                    Some(files) if files.changed.iter().any(|path| meets(path, paths)) && at + 1 == below.len() => {
                        return Why::is(format!("it reads the {what} below, and {} them", changed(lower)));
                    }
                    Some(files) if !files.changed.iter().chain(&files.kept).any(|path| meets(path, paths)) => {}
                    _ => may = may.or(Some(changed(lower))),
                }
            }
            if let Some(why) = may.or_else(other) {
                return Why::may(&format!("it reads the {what} below, and {why}"));
            }
        }
        None => {}
    }
    let gone = (0..home).filter(|at| (sides.is_gone)(*at)).flat_map(|at| &sides.old[at]).filter_map(leads);
    let mut may = None;
    for (path, shown) in below.iter().flat_map(|layer| layer.paths.iter().cloned()).chain(gone) {
        match lies_in(parts, home, &path, sides.known) {
            Some(true) => return Why::is(format!("it lies in what `{shown}` makes, which changed")),
            None if may.is_none() => {
                may = Why::may(&format!("something of it may lie in what `{shown}` makes, which changed"))
            }
            _ => {}
        }
    }
    may
}

/// Whether a path is one of these, is below one, or is what one is below.
fn meets(path: &str, read: &[&str]) -> bool {
    let mut read = read.iter().map(|read| read.trim_start_matches('/'));
    read.any(|read| is_in(path, read) || is_in(read, path))
}

fn is_in(one: &str, other: &str) -> bool {
    one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || other.is_empty() || rest.starts_with('/'))
}

/// Whether something of a layer lies in a directory, or behind a link: what a step puts there shows it. `None` where only the build can know.
fn lies_in(parts: &[Part], home: usize, path: &str, known: &dyn Known) -> Option<bool> {
    let target = |part: &Part| part.target().map(|target| target.trim_end_matches('/').to_owned());
    // A small step is the directory, or takes its place.
    let is_it = |part: &Part| part.kind() == "op" && target(part).as_deref() == Some(path);
    if parts.iter().any(|part| !is_it(part) && target(part).is_some_and(|target| is_in(&target, path))) {
        return Some(true);
    }
    if parts.iter().any(is_it) {
        return Some(false);
    }
    // What is unpacked, copied or taken has directories of its own.
    let may_hold = |part: &Part| match part.kind() {
        "name" | "copy" | "take" => target(part).is_none_or(|target| is_in(path, &target)),
        _ => false,
    };
    known.has_dir(home, path).or_else(|| (!parts.iter().any(may_hold)).then_some(false))
}

/// What a layer has of archives that lie anywhere in the image.
fn from_beside(at: usize, layers: &[Layer<'_>], sides: &Sides<'_>) -> Option<Why> {
    let home = layers[at].home?;
    // Another archive of which this is true came, went or has other bytes.
    let other = |is: &dyn Fn(&Part) -> bool| {
        let in_layer = layers.iter().find(|layer| layer.other.iter().any(|part| is(part)));
        let gone = || sides.gone.iter().find(|part| is(part)).map(|part| format!("{} is gone", part.shown()));
        in_layer.map(|layer| format!("`{}` changed", layer.label)).or_else(gone)
    };
    let wheel = |part: &Part| matches!(part.conversion(), Some(Conversion::Wheel { .. }));
    for part in &sides.new[at] {
        let Some(conversion) = part.conversion() else { continue };
        let choice = choice(&conversion);
        if choice.is_some()
            && let Some(what) = other(&|part| part.conversion().and_then(|it| self::choice(&it)) == choice)
        {
            return Why::may(&format!("its byte-code is what other wheels import of it, and {what}"));
        }
        let is_alike = |other: &Part| match conversion {
            Conversion::Wheel { .. } => wheel(other),
            Conversion::Deb { .. } => matches!(other.conversion(), Some(Conversion::Deb { .. })),
            _ => false,
        };
        if let Some(what) = other(&is_alike)
            && sides.known.left_paths(home, part)
        {
            return Why::may(&format!("{} leaves files to others that have them, too, and {what}", part.shown()));
        }
    }
    None
}

/// The choice that a wheel's byte-code is part of: what is imported, by which modules, in an environment.
fn choice(conversion: &Conversion) -> Option<(ImagePath, BTreeSet<String>)> {
    match conversion {
        Conversion::Wheel { venv, bytecode: Some(ByteCode { modules: Modules::ImportedBy(roots), .. }), .. } => {
            Some((venv.clone(), roots.clone()))
        }
        _ => None,
    }
}
