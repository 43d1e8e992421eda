//! What makes one key's text another one, in words, and which layers that concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use layers::op::ACCOUNTS;
use serde_json::Value;

use super::ExplainedLayer;
use super::changed::{Asked, Changed};
use super::text::{Part, Place, archive_name, matched, parse};

/// Which files of a copy changed.
pub(super) type ChangedFiles<'a> = dyn Fn(&Asked<'_>) -> Option<Changed> + 'a;

/// What makes one text another one: what concerns all layers, and each layer.
pub(super) fn compare(
    old: &str,
    new: &str,
    labels: &[String],
    files: &ChangedFiles<'_>,
) -> (Vec<String>, Vec<ExplainedLayer>) {
    let ((old_head, old_layers), (new_head, new_layers)) = (parse(old), parse(new));
    let mut reasons = Vec::new();
    let mut all_new = false;
    for name in old_head.keys().chain(new_head.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (old_head.get(name), new_head.get(name));
        if before != after {
            let shown = |value: Option<&String>| value.map_or("nothing".to_owned(), |value| value.trim().to_owned());
            reasons.push(format!("{name}: {} -> {}", shown(before), shown(after)));
            // No layer holds which libraries may be missing.
            all_new |= name != "allow-missing";
        }
    }
    let same = matched(&old_layers, &new_layers);
    let stays: BTreeSet<Place> = same.values().copied().collect();
    let is_gone = |at: usize| (0..old_layers[at].len()).all(|part| !stays.contains(&(at, part)));
    let mut layers: Vec<Layer<'_>> = Vec::new();
    for (at, parts) in new_layers.iter().enumerate() {
        let mut layer = Layer::new(labels.get(at).map_or("", String::as_str), &old_layers, &same, at, parts, files);
        // The older layer that became this one: what it had and no layer has any more was taken away.
        if let Some(home) = layer.home {
            let gone = old_layers[home].iter().enumerate().filter(|(part, _)| !stays.contains(&(home, *part)));
            for (_, part) in gone {
                layer.why.push(format!("{} is gone", part.shown()));
                layer.paths.extend(leads(part));
            }
            if layer.why.is_empty() && old_layers[home] != *parts {
                let kind = if parts.iter().all(|part| part.kind() == "name") { "packages" } else { "steps" };
                let moved =
                    old_layers[home].len() != parts.len() || parts.iter().any(|it| !old_layers[home].contains(it));
                layer.why.push(if moved {
                    format!("other {kind} share its layer")
                } else {
                    "its order changed".into()
                });
            }
        }
        if layer.why.is_empty() {
            layer.why.extend(from_below(&layer, parts, &layers, &old_layers, &is_gone));
        }
        layers.push(layer);
    }
    let homes: Vec<usize> = layers.iter().filter_map(|layer| layer.home).collect();
    let gone = (0..old_layers.len()).filter(|at| !homes.contains(at) && is_gone(*at));
    reasons.extend(gone.flat_map(|at| old_layers[at].first()).map(|part| format!("{} is gone", part.shown())));
    if !homes.is_sorted() {
        reasons.push(ORDER.into());
    }
    let is_told = !reasons.is_empty() || layers.iter().any(|layer| !layer.why.is_empty());
    if layers.is_empty() || (!is_told && old_layers.len() != new_layers.len()) {
        reasons.push(format!("{} layers became {}", old_layers.len(), new_layers.len()));
    }
    let told = |layer: Layer<'_>| ExplainedLayer {
        label: layer.label.to_owned(),
        hit: layer.why.is_empty() && !all_new,
        reasons: layer.why,
    };
    (reasons, layers.into_iter().map(told).collect())
}

const ORDER: &str = "the order of layers changed";

/// What is known of a layer.
struct Layer<'a> {
    label: &'a str,
    /// The older layer that most of it was in.
    home: Option<usize>,
    why: Vec<String>,
    /// The files that it changes, where that is all and is known.
    files: Option<Changed>,
    /// Directories and links of it that are others than they were, with what they are called.
    paths: Vec<(String, String)>,
}

impl<'a> Layer<'a> {
    fn new(
        label: &'a str,
        old_layers: &[Vec<Part>],
        same: &HashMap<Place, Place>,
        at: usize,
        parts: &[Part],
        files: &ChangedFiles<'_>,
    ) -> Layer<'a> {
        let mut layer = Layer { label, home: None, why: Vec::new(), files: None, paths: Vec::new() };
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        let mut copies = 0;
        for (number, part) in parts.iter().enumerate() {
            let copy = copies;
            copies += usize::from(part.kind() == "copy");
            let old = same.get(&(at, number)).map(|home| (home.0, &old_layers[home.0][home.1]));
            let changed = old.is_none_or(|(_, old)| old != part);
            if changed {
                layer.paths.extend(old.iter().map(|(_, old)| *old).chain([part]).filter_map(leads));
            }
            let Some((home, old)) = old else {
                layer.why.push(format!("{} is new", part.shown()));
                continue;
            };
            *homes.entry(home).or_default() += 1;
            if !changed {
                continue;
            }
            let mut why = Vec::new();
            if part.kind() == "copy" {
                why.extend(members(&old.json(), &part.json()));
                if old.get("selection") != part.get("selection") {
                    let before = old.files();
                    let asked = before.as_ref().map(|before| Asked { layer: at, old: home, number: copy, before });
                    let found = asked.and_then(|asked| files(&asked));
                    let text = found.as_ref().map(|found| found.text.clone()).filter(|text| !text.is_empty());
                    why.push(text.unwrap_or_else(|| "files changed".into()));
                    layer.files = found.filter(|_| parts.len() == 1 && old.value() == part.value());
                }
            } else {
                why = difference(old, part);
            }
            // Where the layer is nothing else, its label says what it is.
            let named = parts.len() > 1 && part.kind() != "name";
            layer.why.extend(why.into_iter().map(|it| if named { format!("{}: {it}", part.shown()) } else { it }));
        }
        layer.home = homes.iter().max_by_key(|(_, count)| **count).map(|(home, _)| *home);
        layer
    }
}

/// The path of a directory, a link or a user's home, with what it is called: what is made below it shows it, or goes where it leads.
fn leads(part: &Part) -> Option<(String, String)> {
    part.step().filter(|(kind, _)| matches!(kind.as_str(), "dir" | "link" | "add-user"))?;
    Some((part.target()?, part.shown()))
}

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

/// Whether a path is one of these, is below one, or is what one is below.
fn meets(path: &str, read: &[&str]) -> bool {
    let is_in = |one: &str, other: &str| {
        one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || other.is_empty() || rest.starts_with('/'))
    };
    let mut read = read.iter().map(|read| read.trim_start_matches('/'));
    read.any(|read| is_in(path, read) || is_in(read, path))
}

/// Why a layer that is what it was by itself may not be found: it depends on what is below.
fn from_below(
    layer: &Layer<'_>,
    parts: &[Part],
    below: &[Layer<'_>],
    old_layers: &[Vec<Part>],
    is_gone: &dyn Fn(usize) -> bool,
) -> Option<String> {
    let home = layer.home?;
    // What is below and was not there, or the reverse.
    let other = || {
        let moved = |at: &usize| !below.iter().any(|layer| layer.home == Some(*at));
        let gone = (0..home).filter(moved).find(|at| is_gone(*at));
        let gone = gone.and_then(|at| old_layers[at].first()).map(|part| format!("{} is gone", part.shown()));
        let is_same = || below.iter().map(|layer| layer.home).eq((0..home).map(Some));
        gone.or_else(|| (!is_same()).then(|| ORDER.to_owned()))
    };
    let changed = |layer: &Layer<'_>| format!("`{}` changed", layer.label);
    match parts.iter().find_map(reads) {
        Some(Reads::All) => {
            let lowest = below.iter().find(|layer| !layer.why.is_empty()).map(changed);
            return lowest.or_else(other).map(|what| format!("it reads what is below, and {what}"));
        }
        Some(Reads::Files { what, paths }) => {
            let mut may = None;
            for (at, lower) in below.iter().enumerate().filter(|(_, lower)| !lower.why.is_empty()) {
                match &lower.files {
                    Some(files) if files.changed.iter().any(|path| meets(path, paths)) && at + 1 == below.len() => {
                        return Some(format!("it reads the {what} below, and {} them", changed(lower)));
                    }
                    Some(files) if !files.changed.iter().chain(&files.kept).any(|path| meets(path, paths)) => {}
                    _ => may = may.or(Some(changed(lower))),
                }
            }
            if let Some(why) = may.or_else(other) {
                return Some(format!("it may be made anew: it reads the {what} below, and {why}"));
            }
        }
        None => {}
    }
    // What a step puts into a directory shows it; a small step is the directory, or takes its place.
    let is_in = |part: &Part, path: &str| {
        let target = part.target();
        let rest = target.as_deref().and_then(|target| target.strip_prefix(path));
        rest.is_some_and(|rest| rest.starts_with('/') || rest.is_empty() && part.kind() != "op")
    };
    let is_below = |path: &str| parts.iter().any(|part| is_in(part, path));
    let gone = (0..home).filter(|at| is_gone(*at)).flat_map(|at| &old_layers[at]).filter_map(leads);
    let mut paths = below.iter().flat_map(|layer| layer.paths.iter().cloned()).chain(gone);
    paths.find(|(path, _)| is_below(path)).map(|(_, shown)| format!("it lies in what `{shown}` makes, which changed"))
}

/// What of an operation is not as it was.
fn difference(old: &Part, new: &Part) -> Vec<String> {
    let other = |field: &str| old.all(field).ne(new.all(field));
    let mut why = Vec::new();
    let mut tell = |is: bool, text: &str| {
        if is {
            why.push(text.to_owned());
        }
    };
    match new.kind() {
        "name" => return package(old, new),
        "take" => {
            tell(other("take"), &format!("the stage of {} changed", new.get("from")));
            let kept = |part: &Part, field: &str| match part.get(field) {
                "" => "kept".to_owned(),
                value => value.to_owned(),
            };
            for field in ["from", "to", "owner"] {
                tell(other(field), &format!("{field} {} -> {}", kept(old, field), kept(new, field)));
            }
        }
        "configure" => {
            let (before, after) = (old.json(), new.json());
            let differs = |member: &str| before.get(member) != after.get(member);
            tell(differs("packages"), "the packages that it sets up changed");
            tell(differs("exclude"), "the paths that are left out of packages changed");
            for (member, of) in [("effects", "effects"), ("ignore_scripts", "ignored scripts")] {
                tell(differs(member), &format!("the {of} of {} changed", names(&before, &after, member)));
            }
            tell(before == after, "native effects have other versions");
        }
        "dpkg" => {
            let (before, after) = (old.json(), new.json());
            let differs = |member: &str| before.get(member) != after.get(member);
            tell(differs("packages"), "the packages that it configures changed");
            tell(differs("exclude"), "the paths that are left out of packages changed");
            tell(other("configurator"), "the stage that brings dpkg changed");
            tell(other("versions"), "dpkg is called otherwise");
        }
        "compile" => {
            let (before, after) = (old.json(), new.json());
            let differs = |member: &str| before.get(member) != after.get(member);
            tell(differs("modules"), "other modules are compiled");
            tell(differs("interpreter"), "another interpreter compiles");
            tell(other("versions"), "modules are compiled by other rules");
        }
        _ => {
            if let Some(((_, before), (_, after))) = old.step().zip(new.step()) {
                why = members(&before, &after);
            }
        }
    }
    if why.is_empty() {
        why.push(format!("{} changed", new.shown()));
    }
    why
}

fn package(old: &Part, new: &Part) -> Vec<String> {
    let other = |field: &str| old.all(field).ne(new.all(field));
    let ((name, before), (_, after)) = (old.archive(), new.archive());
    if before != after {
        return vec![format!("{name} {before} -> {after}")];
    }
    if old.value() != new.value() {
        return vec![format!("{} -> {}", old.value(), new.value())];
    }
    let subject = new.shown();
    let variables = |part: &Part| -> BTreeMap<String, String> {
        let split = |it: &str| it.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        part.all("env").filter_map(split).collect()
    };
    let mut why = Vec::new();
    let mut tell = |is: bool, text: String| why.extend(is.then_some(text));
    tell(other("archive"), format!("{subject} has other bytes"));
    tell(other("conversion"), format!("{subject} is unpacked otherwise"));
    tell(other("builder"), format!("the stage that builds {subject} changed"));
    tell(other("target"), format!("the stage that {subject} is built for changed"));
    if other("env") {
        let (before, after) = (variables(old), variables(new));
        let names = before.keys().chain(after.keys()).filter(|name| before.get(*name) != after.get(*name));
        let names = names.map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        tell(true, format!("the environment that builds {subject} changed: {names}"));
    }
    tell(other("version"), format!("{subject} is converted by other rules"));
    tell(other("versions"), format!("{subject} is built by other rules"));
    why
}

/// Members of an object in two values that are not the same in both.
fn names(old: &Value, new: &Value, member: &str) -> String {
    let keys = |value: &Value| value.get(member).and_then(Value::as_object).cloned().unwrap_or_default();
    let (old, new) = (keys(old), keys(new));
    let all: BTreeSet<&String> = old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).collect();
    all.into_iter().map(|name| archive_name(name).0).collect::<Vec<_>>().join(", ")
}

/// How the members of two values differ.
fn members(old: &Value, new: &Value) -> Vec<String> {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return Vec::new() };
    let names: BTreeSet<&String> =
        old.keys().chain(new.keys()).filter(|name| old.get(*name) != new.get(*name)).collect();
    let shown = |name: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => "kept".to_owned(),
        Some(Value::Array(items)) if items.is_empty() => "nothing".to_owned(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|it| it.as_str().map_or_else(|| it.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(" "),
        Some(Value::Object(owner)) => match (owner.get("uid"), owner.get("gid")) {
            (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
            _ => Value::Object(owner.clone()).to_string(),
        },
        Some(Value::Number(mode)) if name.ends_with("mode") => format!("{:o}", mode.as_u64().unwrap_or_default()),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let told = |name: &String| match name.as_str() {
        "text" => "its text changed".to_owned(),
        name => {
            let (before, after) = (shown(name, old.get(name)), shown(name, new.get(name)));
            format!("{} {before} -> {after}", name.replace('_', "-"))
        }
    };
    names.into_iter().map(told).collect()
}
