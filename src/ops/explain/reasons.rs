//! What makes one key's text another one, in words, and which layers that concerns.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::ExplainedLayer;
use super::below::{Sides, Why, from_others, leads};
use super::changed::{Asked, Changed};
use super::text::{Part, Place, archive_name, matched, parse};

/// What is known of the layers that the older text came to.
pub(super) trait Known {
    /// Which files of a copy changed.
    fn files(&self, asked: &Asked<'_>) -> Option<Changed>;
    /// What a build comes to in a layer that was mostly another one, `home`, where that is known.
    fn outcome(&self, layer: usize, home: Option<usize>) -> Option<Outcome>;
    /// The cache elsewhere without which a build may not find a layer.
    fn cache(&self, layer: usize) -> Option<&str>;
    /// Whether the bytes of a layer are gone.
    fn is_lost(&self, layer: usize) -> bool;
    /// Whether a layer had a directory; `None` where that is not known.
    fn has_dir(&self, layer: usize, path: &str) -> Option<bool>;
    /// Whether an archive in a layer left paths to others, as far as that is known.
    fn left_paths(&self, layer: usize, archive: &Part) -> bool;
}

/// What a build comes to in a layer.
pub(super) enum Outcome {
    /// The layer that it was.
    Kept,
    /// Another one that is there.
    Earlier,
    /// It is made: why, as far as that can be said.
    Made(Vec<String>),
}

/// What makes one text another one: what concerns all layers, and each layer.
pub(super) fn compare(
    old: &str,
    new: &str,
    labels: &[String],
    known: &dyn Known,
) -> (Vec<String>, Vec<ExplainedLayer>) {
    let ((old_head, old_layers), (new_head, new_layers)) = (parse(old), parse(new));
    let mut reasons = Vec::new();
    let (mut all_new, mut other_base) = (false, false);
    for name in old_head.keys().chain(new_head.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (old_head.get(name), new_head.get(name));
        if before != after {
            let shown = |value: Option<&String>| value.map_or("nothing".to_owned(), |value| value.trim().to_owned());
            reasons.push(format!("{name}: {} -> {}", shown(before), shown(after)));
            match name.as_str() {
                // No layer holds which libraries may be missing.
                "allow-missing" => {}
                "base" | "base-version" => other_base = true,
                _ => all_new = true,
            }
        }
    }
    let same = matched(&old_layers, &new_layers);
    let stays: BTreeSet<Place> = same.values().copied().collect();
    let is_gone = |at: usize| (0..old_layers[at].len()).all(|part| !stays.contains(&(at, part)));
    let mut layers: Vec<Layer<'_>> = Vec::new();
    for (at, parts) in new_layers.iter().enumerate() {
        let mut layer = Layer::new(labels.get(at).map_or("", String::as_str), &old_layers, &same, at, parts, known);
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
        layers.push(layer);
    }
    let places = old_layers.iter().enumerate().flat_map(|(at, parts)| (0..parts.len()).map(move |part| (at, part)));
    let gone = places.filter(|place| !stays.contains(place)).map(|(at, part)| &old_layers[at][part]).collect();
    let sides = Sides { old: &old_layers, new: &new_layers, gone, is_gone: &is_gone, other_base, known };
    for at in 0..layers.len() {
        if layers[at].why.is_empty()
            && let Some(Why { text, may }) = from_others(at, &layers, &sides)
        {
            (layers[at].why, layers[at].may) = (vec![text], may);
        }
        let layer = &mut layers[at];
        layer.learn(known.outcome(at, layer.home), all_new);
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
    let told = |mut layer: Layer<'_>| {
        let is_kept = layer.found.is_none() && (layer.why.is_empty() || layer.may) && !all_new;
        if let Some(home) = layer.home.filter(|_| is_kept) {
            match known.cache(home) {
                Some(cache) if known.is_lost(home) => {
                    layer.why = vec![format!("the last build had it from `{cache}`, and its bytes are not here")];
                }
                Some(cache) => layer.why = vec![format!("{MAY}the last build had it from `{cache}`")],
                None if known.is_lost(home) => layer.why = vec![LOST.into()],
                None => {}
            }
        }
        let hit = layer.found.unwrap_or(layer.why.is_empty() && !all_new);
        ExplainedLayer { label: layer.label.to_owned(), hit, reasons: layer.why }
    };
    (reasons, layers.into_iter().map(told).collect())
}

/// The layers of an image that was not built before.
pub(super) fn alone(labels: &[String], known: &dyn Known) -> Vec<ExplainedLayer> {
    let told = |(at, label): (usize, &String)| {
        let hit = matches!(known.outcome(at, None), Some(Outcome::Kept | Outcome::Earlier));
        let reasons = hit.then(|| EARLIER.to_owned()).into_iter().collect();
        ExplainedLayer { label: label.clone(), hit, reasons }
    };
    labels.iter().enumerate().map(told).collect()
}

/// Said of a layer that is there, though the last build had another one.
const EARLIER: &str = "an earlier build left it";

/// What reasons begin with where only the build can know.
pub(super) const MAY: &str = "it may be made anew: ";

pub(super) const ORDER: &str = "the order of layers changed";

/// Said where a layer cannot be had any more.
pub(super) const LOST: &str = "its bytes are gone from the cache";

/// What is known of a layer.
pub(super) struct Layer<'a> {
    pub label: &'a str,
    /// The older layer that most of it was in.
    pub home: Option<usize>,
    pub why: Vec<String>,
    /// Only the build can know whether it is another one.
    pub may: bool,
    /// Whether a build finds it, where that is known.
    found: Option<bool>,
    /// The files that it changes, where that is all and is known.
    pub files: Option<Changed>,
    /// Directories and links of it that are others than they were, with what they are called.
    pub paths: Vec<(String, String)>,
    /// Its operations that are others than they were, as they are and as they were.
    pub other: Vec<&'a Part>,
}

impl<'a> Layer<'a> {
    fn new(
        label: &'a str,
        old_layers: &'a [Vec<Part>],
        same: &HashMap<Place, Place>,
        at: usize,
        parts: &'a [Part],
        known: &dyn Known,
    ) -> Layer<'a> {
        let (why, paths, other) = (Vec::new(), Vec::new(), Vec::new());
        let mut layer = Layer { label, home: None, why, may: false, found: None, files: None, paths, other };
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        let mut copies = 0;
        for (number, part) in parts.iter().enumerate() {
            let copy = copies;
            copies += usize::from(part.kind() == "copy");
            let old = same.get(&(at, number)).map(|home| (home.0, &old_layers[home.0][home.1]));
            let changed = old.is_none_or(|(_, old)| old != part);
            if changed {
                layer.other.extend(old.iter().map(|(_, old)| *old).chain([part]));
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
                    let found = asked.and_then(|asked| known.files(&asked));
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
        layer.paths.extend(layer.other.iter().copied().filter_map(leads));
        layer.home = homes.iter().max_by_key(|(_, count)| **count).map(|(home, _)| *home);
        layer
    }

    /// Takes in what a build comes to, which the texts alone may not tell.
    fn learn(&mut self, outcome: Option<Outcome>, all_new: bool) {
        let Some(outcome) = outcome else { return };
        self.found = Some(!matches!(outcome, Outcome::Made(_)));
        match outcome {
            Outcome::Kept => self.why.clear(),
            Outcome::Earlier => self.why = vec![EARLIER.into()],
            // What changed of it says more.
            Outcome::Made(_) if !self.why.is_empty() && !self.may => {}
            Outcome::Made(why) if !why.is_empty() => self.why = why,
            Outcome::Made(_) if self.may => {
                self.why.iter_mut().for_each(|why| *why = why.trim_start_matches(MAY).to_owned());
            }
            Outcome::Made(_) if all_new => {}
            Outcome::Made(_) => self.why = vec!["what it is made of changed".into()],
        }
        self.may = false;
    }
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
            tell(left_out(&before, &after), "the paths that are left out of packages changed");
            for (member, of) in [("effects", "effects"), ("ignore_scripts", "ignored scripts")] {
                tell(differs(member), &format!("the {of} of {} changed", names(&before, &after, member)));
            }
            tell(before == after, "native effects have other versions");
        }
        "dpkg" => {
            let (before, after) = (old.json(), new.json());
            let differs = |member: &str| before.get(member) != after.get(member);
            tell(differs("packages"), "the packages that it configures changed");
            tell(left_out(&before, &after), "the paths that are left out of packages changed");
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

/// Whether patterns differ of packages that are in both values: they stand by the digest, which is another one for each version.
fn left_out(old: &Value, new: &Value) -> bool {
    let by_package = |value: &Value| -> BTreeMap<String, Value> {
        let packages = value.get("packages").and_then(Value::as_array).into_iter().flatten();
        let named = packages.filter_map(|package| {
            let patterns = value.get("exclude")?.get(package.get("digest")?.as_str()?).cloned();
            Some((archive_name(package.get("name")?.as_str()?).0, patterns.unwrap_or_default()))
        });
        named.collect()
    };
    let new = by_package(new);
    by_package(old).iter().any(|(name, patterns)| new.get(name).is_some_and(|other| other != patterns))
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
