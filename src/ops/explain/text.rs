//! The texts of images' keys, taken apart, and which operations of one are those of another.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use layers::op::Conversion;
use layers::source::Files;
use serde_json::Value;

/// One operation of a key's text: its fields, the first of which says what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part(Vec<(String, String)>);

/// Fields that begin an operation.
const KINDS: [&str; 8] = ["name", "copy", "take", "configure", "compile", "dpkg", "run", "op"];

impl Part {
    /// What it is.
    pub(super) fn kind(&self) -> &str {
        &self.0[0].0
    }

    /// What stands beside its kind.
    pub(super) fn value(&self) -> &str {
        &self.0[0].1
    }

    /// A field; empty where there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
    }

    /// All fields of a name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The value as JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(self.value()).unwrap_or_default()
    }

    /// A small step: its kind and what is written of it.
    pub(super) fn step(&self) -> Option<(String, Value)> {
        let Value::Object(step) = self.json() else { return None };
        step.into_iter().next().filter(|_| self.kind() == "op")
    }

    /// What an archive becomes.
    pub(super) fn conversion(&self) -> Option<Conversion> {
        serde_json::from_str(self.get("conversion")).ok().filter(|_| self.kind() == "name")
    }

    /// What was copied.
    pub(super) fn files(&self) -> Option<Files> {
        serde_json::from_str(self.value()).ok().filter(|_| self.kind() == "copy")
    }

    /// An archive's name and version.
    pub(super) fn archive(&self) -> (String, String) {
        let file = self.value();
        let sdist = || {
            let stem = [".tar.gz", ".zip"].iter().find_map(|end| file.strip_suffix(end));
            stem.and_then(|stem| stem.rsplit_once('-'))
        };
        match Some(self.get("builder")).filter(|builder| !builder.is_empty()).and_then(|_| sdist()) {
            Some((name, version)) => (normal(name), version.to_owned()),
            None => archive_name(file),
        }
    }

    /// What it is about, from all of it to hardly anything: the same operation, changed more and more.
    fn subjects(&self) -> Vec<String> {
        let (kind, value) = (self.kind(), self.value());
        match kind {
            "name" => {
                let (name, _) = self.archive();
                let system = if value.ends_with(".deb") { "deb" } else { "other" };
                let conversion = self.get("conversion");
                vec![
                    format!("{value} {conversion}"),
                    format!("{system} {name} {conversion}"),
                    format!("{system} {name}"),
                ]
            }
            "copy" => match self.files() {
                Some(Files { from, to, .. }) => {
                    vec![value.to_owned(), format!("{from} -> {to}"), format!("{from} ->"), format!("-> {to}")]
                }
                None => vec![value.to_owned()],
            },
            "take" => {
                let (from, to) = (self.get("from"), self.get("to"));
                vec![format!("{from} -> {to}"), format!("-> {to}"), format!("{from} ->")]
            }
            "op" => match self.step() {
                Some((step, of)) => vec![value.to_owned(), format!("{step} {}", named(&of))],
                None => vec![value.to_owned()],
            },
            _ => vec![value.to_owned(), String::new()],
        }
    }

    /// What a person calls it.
    pub(super) fn shown(&self) -> String {
        match self.kind() {
            "name" => match self.archive() {
                (name, version) if version.is_empty() => name,
                (name, version) => format!("{name} {version}"),
            },
            "copy" => self.files().map_or_else(|| shortened(self.value()), |files| format!("files {}", files.from)),
            "take" => format!("take {}", self.get("from")),
            "configure" => "the packages' set-up".into(),
            "compile" => "the packages' byte-code".into(),
            "dpkg" => "dpkg --configure".into(),
            _ => match self.step() {
                Some((step, of)) => format!("{} {}", step.strip_prefix("add-").unwrap_or(&step), named(&of)),
                None => shortened(self.value()),
            },
        }
    }

    /// The path that it writes to.
    pub(super) fn target(&self) -> Option<String> {
        let member = |value: Value, name: &str| Some(value.get(name)?.as_str()?.to_owned());
        match self.kind() {
            "name" => {
                let conversion = serde_json::from_str::<Value>(self.get("conversion")).ok()?;
                let of = conversion.as_object()?.values().next()?.clone();
                member(of.clone(), "venv").or_else(|| member(of, "to"))
            }
            "copy" => member(self.json(), "to"),
            "take" => Some(self.get("to").to_owned()),
            "op" => self.step().and_then(|(_, of)| member(of.clone(), "path").or_else(|| member(of, "home"))),
            _ => None,
        }
    }
}

/// The path or the name of a small step.
fn named(step: &Value) -> &str {
    ["path", "name"].into_iter().find_map(|name| step.get(name)?.as_str()).unwrap_or_default()
}

fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// The name and the version in an archive's file name.
pub(super) fn archive_name(file: &str) -> (String, String) {
    let stem = file.strip_suffix(".deb").map(|stem| (stem, '_')).or(file.strip_suffix(".whl").map(|stem| (stem, '-')));
    let Some((stem, separator)) = stem else { return (file.to_owned(), String::new()) };
    let mut parts = stem.split(separator);
    let name = normal(parts.next().unwrap_or_default());
    (name, parts.next().unwrap_or_default().replace("%3a", ":"))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Takes a key's text apart: what stands before the first layer, and the operations of each layer.
pub(super) fn parse(text: &str) -> (BTreeMap<String, String>, Vec<Vec<Part>>) {
    let mut head: BTreeMap<String, String> = BTreeMap::new();
    let mut layers: Vec<Vec<Part>> = Vec::new();
    for (name, value) in layers::fields(text) {
        let (name, value) = (name.to_owned(), layers::unescaped(value).into_owned());
        let Some(layer) = layers.last_mut().filter(|_| name != "layer") else {
            if name == "layer" {
                layers.push(Vec::new());
            } else {
                let held = head.entry(name).or_default();
                held.push_str(&value);
                held.push(' ');
            }
            continue;
        };
        match layer.last_mut() {
            Some(part) if !KINDS.contains(&name.as_str()) => part.0.push((name, value)),
            _ => layer.push(Part(vec![(name, value)])),
        }
    }
    (head, layers)
}

/// Where an operation stands: its layer, and its place in this.
pub(super) type Place = (usize, usize);

/// Which operation of the old layers each one of the new layers is: the same where there is one, otherwise the closest. No old one
/// is given twice.
pub(super) fn matched(old: &[Vec<Part>], new: &[Vec<Part>]) -> HashMap<Place, Place> {
    let places = |layers: &[Vec<Part>]| {
        let places = layers.iter().enumerate().flat_map(|(layer, parts)| (0..parts.len()).map(move |at| (layer, at)));
        places.collect::<Vec<Place>>()
    };
    let (mut rest_old, mut rest_new) = (places(old), places(new));
    let mut found = HashMap::new();
    // The first round is for those that are the same.
    for round in 0..=4 {
        let subject = |part: &Part| match round {
            0 => Some(format!("{:?}", part.0)),
            _ => part.subjects().into_iter().nth(round - 1).map(|subject| format!("{} {subject}", part.kind())),
        };
        let mut known: HashMap<String, VecDeque<Place>> = HashMap::new();
        for place in &rest_old {
            if let Some(subject) = subject(&old[place.0][place.1]) {
                known.entry(subject).or_default().push_back(*place);
            }
        }
        rest_new.retain(|place| {
            let subject = subject(&new[place.0][place.1]);
            let same = subject.and_then(|subject| known.get_mut(&subject)?.pop_front());
            found.extend(same.map(|same| (*place, same)));
            same.is_none()
        });
        let taken: HashSet<&Place> = found.values().collect();
        rest_old.retain(|place| !taken.contains(place));
    }
    found
}
