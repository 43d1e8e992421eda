//! `rebase`: another base below an image's own layers, which stay as they are, byte for byte.
//!
//! That is right only where a build on the new base would make the same layers. imgbuild claims it under these conditions
//! and refuses otherwise:
//!
//! 1. The image stands on the base that it says it stands on: layers, diff ids and history begin with those of the base.
//! 2. Each layer above was made by imgbuild without reading files below; its history says so ([`lower::reads_below`]).
//! 3. What such a layer still shows of what is below comes out the same: the attributes of directories that it holds, and
//!    the symbolic links through which it may have been written.
//!
//! The result is then what `build` would make, byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use layers::oci::{self, Above, BaseParts};
use layers::{Platform, lower, written};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::inspect::{Opened, open, single};
use crate::error::Failure;
use crate::places::contents::{Files, Item, Listing};
use crate::places::{Held, Place, Reach};
use crate::registry::document::{Descriptor, Document, Said};
use crate::registry::{Bundle, Reference, Supply};

/// What is to be rebased.
#[derive(Debug, Clone)]
pub struct Rebase {
    /// The image.
    pub image: Place,
    /// The new base.
    pub onto: Place,
    /// The base that it stands on; else the one that its labels name.
    pub from: Option<Place>,
    /// Only this platform.
    pub platform: Option<Platform>,
}

/// The label with the reference of an image's base (OCI image specification, annotations.md).
const BASE_NAME: &str = "org.opencontainers.image.base.name";
/// The label with the digest of its manifest.
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// Puts an image onto another base. Nothing is written anywhere.
pub fn rebase(reach: &Reach<'_>, request: &Rebase) -> Result<Held, Failure> {
    let mut image = reach.read(&request.image)?;
    if let Some(platform) = request.platform {
        image = image.for_platform(platform)?;
    }
    let onto = reach.read(&request.onto)?;
    let mut supply = Supply { store: Some(reach.store.clone()), ..Supply::default() };
    let mut documents: Vec<Document> = Vec::new();
    let mut replaced: BTreeMap<String, Document> = BTreeMap::new();
    for document in &image.bundle.documents {
        let Some(opened) = open(reach, &image, document)? else { continue };
        let (manifest, config) = one(reach, request, &image, &opened, &onto)?;
        supply.bytes.insert(config.digest, config.bytes.clone());
        replaced.insert(document.digest.to_string(), manifest.clone());
        documents.push(manifest);
    }
    let said = image.top().read().map_err(|why| Failure::work(format!("`{}`: {why}", request.image)))?;
    match (said.is_index, documents.is_empty()) {
        (_, true) => return Err(Failure::work(format!("`{}` is no image", request.image))),
        (true, false) => documents.push(index(&said, &replaced, &request.image)?),
        (false, false) => {}
    }
    for held in [image, onto] {
        for (digest, from) in held.supply.origins {
            supply.origins.entry(digest).or_default().extend(from);
        }
        supply.files.extend(held.supply.files);
        supply.bytes.extend(held.supply.bytes);
    }
    Ok(Held { bundle: Bundle::read(documents)?, supply })
}

/// One platform's manifest and configuration on the new base.
fn one(
    reach: &Reach<'_>,
    request: &Rebase,
    image: &Held,
    opened: &Opened,
    onto: &Held,
) -> Result<(Document, Document), Failure> {
    let platform = platform_of(&opened.config)
        .ok_or_else(|| Failure::work(format!("`{}` is for a platform that imgbuild does not know", request.image)))?;
    let from = match &request.from {
        Some(place) => place.clone(),
        None => recorded(request, &opened.config)?,
    };
    let (old, old_opened) = on(reach, reach.read(&from)?, &from, platform)?;
    let (new, new_opened) = on(reach, onto.clone(), &request.onto, platform)?;
    let own = own_layers(request, &from, opened, &old_opened)?;
    let below_old = listings(reach, &old, &old_opened.layers)?;
    let below_new = listings(reach, &new, &new_opened.layers)?;
    let above = listings(reach, image, own)?;
    check(&below_old, &below_new, &above).map_err(|(at, why)| {
        let layer = describe(opened, old_opened.layers.len() + at);
        refused(request, &format!("{layer}: {why}"))
    })?;

    let config = config(opened, &old_opened, &new_opened, request)?;
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        schema_version: u32,
        media_type: &'static str,
        config: Descriptor,
        layers: Vec<Descriptor>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: oci::MANIFEST,
        config: config.descriptor(),
        layers: new_opened
            .layers
            .iter()
            .map(|layer| Descriptor { media_type: oci::layer_type(&layer.media_type).to_owned(), ..layer.clone() })
            .chain(own.iter().cloned())
            .collect(),
        annotations: opened.document.read().map(|said| said.annotations).unwrap_or_default(),
    };
    Ok((Document::json(oci::MANIFEST, &manifest), config))
}

fn refused(request: &Rebase, why: &str) -> Failure {
    Failure::work(format!("`{}` cannot be rebased onto `{}`: {why}", request.image, request.onto))
        .hint("build it on the new base instead: `imgbuild lock --update`, then `imgbuild build`")
}

fn platform_of(config: &Value) -> Option<Platform> {
    config.get("architecture").and_then(Value::as_str)?.parse().ok()
}

/// The base that the labels name, by its digest in its repository.
fn recorded(request: &Rebase, config: &Value) -> Result<Place, Failure> {
    let label = |name: &str| config.get("config")?.get("Labels")?.get(name)?.as_str();
    let unknown = |why: &str| {
        Failure::work(format!("the base of `{}` is not known: {why}", request.image))
            .hint("name the base that it stands on with `--from`")
    };
    let (Some(name), Some(digest)) = (label(BASE_NAME), label(BASE_DIGEST)) else {
        return Err(unknown("it has no label that names one"));
    };
    let reference: Reference = name.parse().map_err(|_| unknown(&format!("its label names `{name}`")))?;
    let digest = digest.parse().map_err(|_| unknown("its label names no digest"))?;
    Ok(Place::Registry(reference.repository.at(digest)))
}

/// An image for a platform, opened.
fn on(reach: &Reach<'_>, held: Held, place: &Place, platform: Platform) -> Result<(Held, Opened), Failure> {
    let (held, opened) = single(reach, place, held, platform)?;
    match platform_of(&opened.config) {
        Some(found) if found == platform => Ok((held, opened)),
        _ => Err(Failure::work(format!("`{place}` is not for {platform}"))),
    }
}

fn list<'a>(config: &'a Value, pointer: &str) -> &'a [Value] {
    config.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The layers above the old base, each of which imgbuild made without reading what is below.
fn own_layers<'a>(
    request: &Rebase,
    from: &Place,
    image: &'a Opened,
    old: &Opened,
) -> Result<&'a [Descriptor], Failure> {
    let digests = |layers: &[Descriptor]| layers.iter().map(|layer| layer.digest).collect::<Vec<_>>();
    let count = old.layers.len();
    let stands = image.layers.len() >= count
        && digests(&image.layers[..count]) == digests(&old.layers)
        && list(&image.config, "/rootfs/diff_ids").starts_with(list(&old.config, "/rootfs/diff_ids"))
        && list(&image.config, "/history").starts_with(list(&old.config, "/history"));
    if !stands {
        return Err(refused(request, &format!("it does not stand on `{from}`: layers or history differ")));
    }
    let history = &list(&image.config, "/history")[list(&old.config, "/history").len()..];
    let made: Vec<&Value> = history.iter().filter(|it| it["empty_layer"] != json!(true)).collect();
    let own = &image.layers[count..];
    if made.len() != own.len() {
        let why = format!("its history tells of {} layers above the base, it has {}", made.len(), own.len());
        return Err(refused(request, &why));
    }
    for (at, entry) in made.iter().enumerate() {
        let layer = describe(image, count + at);
        match (entry["comment"].as_str(), entry["created_by"].as_str()) {
            (Some("imgbuild"), Some(label)) if !lower::reads_below(label) => {}
            (Some("imgbuild"), Some(_)) => {
                return Err(refused(request, &format!("{layer} was made by reading the base")));
            }
            _ => {
                let why = format!("{layer} was not made by imgbuild, so nobody knows what it read");
                return Err(refused(request, &why));
            }
        }
    }
    Ok(own)
}

/// Names a layer.
fn describe(image: &Opened, at: usize) -> String {
    let layers = super::inspect::layers(image);
    let text = layers.get(at).and_then(|it| it.created_by.clone()).unwrap_or_default();
    format!("layer {} `{text}`", at + 1)
}

fn listings(reach: &Reach<'_>, held: &Held, layers: &[Descriptor]) -> Result<Vec<Listing>, Failure> {
    Ok(layers.iter().map(|layer| reach.listing(held, layer)).collect::<Result<Vec<_>, _>>()?)
}

/// Whether the layers above would come out the same on the new base; else which would not, and why.
fn check(old: &[Listing], new: &[Listing], above: &[Listing]) -> Result<(), (usize, String)> {
    let (mut below_old, mut below_new) = (Files::of(old), Files::of(new));
    for (at, layer) in above.iter().enumerate() {
        let fail = |why: String| Err((at, why));
        if let Some(path) = layer.whiteouts.iter().chain(&layer.opaques).next() {
            return fail(format!("it deletes `{path}` of what is below"));
        }
        let differing = links(&below_old, &below_new);
        for (path, item) in &layer.items {
            let (before, after) = (below_old.items.get(path), below_new.items.get(path));
            if item.is_dir() {
                match after {
                    Some(there) if !there.is_dir() => {
                        return fail(format!("`{path}` is a directory in it, and a {} in the new base", there.kind));
                    }
                    // What a definition sets differs from what was below, and stays what it is.
                    Some(there) if !same(item, there) && before.is_none_or(|before| same(item, before)) => {
                        let (now, then) = (there.line(), item.line());
                        return fail(format!("it has `{path}` as `{then}`, the new base as `{now}`"));
                    }
                    None if before.is_some_and(|before| same(item, before)) && !is_plain(item) => {
                        return fail(format!("the new base lacks `{path}`, whose mode and owner it took over"));
                    }
                    _ => {}
                }
            } else if after.is_some_and(Item::is_dir) && !before.is_some_and(Item::is_dir) {
                return fail(format!("`{path}` is a directory in the new base"));
            }
            for (link, target) in &differing {
                if path.strip_prefix(target.as_str()).is_some_and(|rest| rest.starts_with('/')) {
                    return fail(format!(
                        "`{path}` may have been written through the link `{link}`, which the new base lacks or has otherwise"
                    ));
                }
            }
            let mut parent = path.as_str();
            while let Some((above, _)) = parent.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
                if let Some(there) = below_new.items.get(above).filter(|it| !it.is_dir()) {
                    return fail(format!("`{path}` lies below `{above}`, which is a {} in the new base", there.kind));
                }
                parent = above;
            }
        }
        below_old.apply(layer);
        below_new.apply(layer);
    }
    Ok(())
}

/// Whether two directories have the same attributes.
fn same(a: &Item, b: &Item) -> bool {
    a.is_dir() && b.is_dir() && (a.mode, a.uid, a.gid, &a.xattrs) == (b.mode, b.uid, b.gid, &b.xattrs)
}

/// Whether a directory has what one gets that nobody describes.
fn is_plain(item: &Item) -> bool {
    (item.mode, item.uid, item.gid) == (0o755, 0, 0) && item.xattrs.is_empty()
}

/// Symbolic links of the old base that the new one lacks or has otherwise, with the paths that they led to.
fn links(old: &Files, new: &Files) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (path, item) in old.items.iter().filter(|(_, item)| item.kind == "symlink") {
        if new.items.get(path).is_some_and(|there| there.kind == "symlink" && there.target == item.target) {
            continue;
        }
        let target = item.target.as_deref().unwrap_or_default();
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut parts: Vec<&str> =
            if target.starts_with('/') { Vec::new() } else { folder.split('/').filter(|it| !it.is_empty()).collect() };
        for part in target.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        found.push((path.clone(), format!("/{}", parts.join("/"))));
    }
    found
}

/// The configuration: the new base's, changed as the image changed the old base's.
fn config(image: &Opened, old: &Opened, new: &Opened, request: &Rebase) -> Result<Document, Failure> {
    let base = BaseParts::new(new.text.clone(), Vec::new())
        .map_err(|why| refused(request, &format!("the new base's configuration cannot be used: {why}")))?;
    let object = |opened: &Opened| opened.config.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    if image.config == old.config {
        // It added nothing to its base.
        return Ok(Document::of(oci::CONFIG, base.config().to_owned().into_bytes()));
    }
    let text = |name: &str| image.config.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut run = run_config(&object(image), &object(old), &object(new));
    let labels = run.entry("Labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        let name = match &request.onto {
            Place::Registry(reference) => Reference { digest: None, ..reference.clone() }.to_string(),
            other => other.to_string(),
        };
        labels.insert(BASE_NAME.into(), json!(name));
        labels.insert(BASE_DIGEST.into(), json!(new.document.digest.to_string()));
    }
    let own = |pointer: &str| &list(&image.config, pointer)[list(&old.config, pointer).len()..];
    let above = Above {
        created: text("created"),
        architecture: text("architecture").unwrap_or_default(),
        run: run.into_iter().collect(),
        diff_ids: own("/rootfs/diff_ids").to_vec(),
        history: own("/history").iter().map(written::json).collect(),
    };
    let made = above.document(Some(&base));
    Ok(Document { media_type: made.media_type.into(), digest: made.digest.into(), bytes: made.bytes.into() })
}

/// What the image changed of the old base's `config`, applied to the new base's.
fn run_config(image: &Map<String, Value>, old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let names: BTreeSet<&String> = image.keys().chain(old.keys()).chain(new.keys()).collect();
    let mut run = Map::new();
    for name in names {
        let (mine, before, after) = (image.get(name), old.get(name), new.get(name));
        let value = match (name.as_str(), mine) {
            ("Env", Some(mine)) => Some(env(mine, before, after)),
            ("Labels" | "ExposedPorts" | "Volumes", Some(Value::Object(mine))) => {
                let object = |value: Option<&Value>| value.and_then(Value::as_object).cloned().unwrap_or_default();
                let (before, mut all) = (object(before), object(after));
                all.retain(|key, _| mine.contains_key(key) || !before.contains_key(key));
                all.extend(
                    mine.iter()
                        .filter(|(key, value)| before.get(*key) != Some(value))
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
                (!all.is_empty()).then_some(Value::Object(all))
            }
            (_, mine) if mine == before => after.cloned(),
            (_, mine) => mine.cloned(),
        };
        if let Some(value) = value {
            run.insert(name.clone(), value);
        }
    }
    // A new entry point makes the base's arguments meaningless, as when the image was built.
    if image.get("Entrypoint") != old.get("Entrypoint") && !image.contains_key("Cmd") {
        run.remove("Cmd");
    }
    run
}

/// The new base's variables with those that the image set.
fn env(mine: &Value, before: Option<&Value>, after: Option<&Value>) -> Value {
    let lines = |value: Option<&Value>| -> Vec<String> {
        value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (before, mut all) = (lines(before), lines(after));
    for line in lines(Some(mine)).into_iter().filter(|line| !before.contains(line)) {
        let name = line.split('=').next();
        match all.iter_mut().find(|known| known.split('=').next() == name) {
            Some(slot) => *slot = line,
            None => all.push(line),
        }
    }
    json!(all)
}

/// The index over what the images became. What attests the old ones is left out.
fn index(said: &Said, replaced: &BTreeMap<String, Document>, place: &Place) -> Result<Document, Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index {
        schema_version: u32,
        media_type: &'static str,
        manifests: Vec<Descriptor>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
    }
    let mut manifests = Vec::new();
    for it in said.manifests.iter().filter(|it| !it.is_attestation()) {
        let Some(document) = replaced.get(&it.digest.to_string()) else {
            let why = format!("`{place}` lists {}, which is no image and cannot be rebased", it.digest);
            return Err(Failure::work(why).hint("choose one platform with `--platform`"));
        };
        manifests.push(Descriptor {
            platform: it.platform.clone(),
            annotations: it.annotations.clone(),
            ..document.descriptor()
        });
    }
    let index = Index { schema_version: 2, media_type: oci::INDEX, manifests, annotations: said.annotations.clone() };
    Ok(Document::json(oci::INDEX, &index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(lines: &[&str]) -> Listing {
        let mut listing = Listing::default();
        for line in lines {
            let mut words = line.split(' ');
            let (path, kind) = (words.next().expect("a path"), words.next().expect("a kind"));
            let mode = words.next().map_or(0o755, |mode| u32::from_str_radix(mode, 8).expect("octal"));
            let (kind, target) = match kind.strip_prefix("->") {
                Some(target) => ("symlink", Some(target.to_owned())),
                None => (kind, None),
            };
            let item = Item {
                kind: kind.into(),
                mode,
                uid: 0,
                gid: 0,
                size: 0,
                digest: None,
                target,
                xattrs: BTreeMap::new(),
            };
            listing.items.insert(path.into(), item);
        }
        listing
    }

    #[test]
    fn layers_that_would_come_out_otherwise_are_refused() {
        let old =
            ["/bin ->usr/bin", "/usr directory", "/usr/bin directory", "/var directory", "/var/mail directory 2775"];
        let verdict = |new: &[&str], layer: &[&str]| match check(&[listing(&old)], &[listing(new)], &[listing(layer)]) {
            Ok(()) => "fine".to_owned(),
            Err((_, why)) => why,
        };
        let layer = ["/usr directory", "/usr/bin directory", "/usr/bin/x file 644"];
        assert_eq!(verdict(&old, &layer), "fine");
        let new = ["/bin ->usr/bin", "/usr directory", "/usr/bin directory", "/etc directory 700"];
        assert_eq!(verdict(&new, &layer), "fine");
        assert!(
            verdict(&["/bin directory", "/usr directory", "/usr/bin directory"], &layer)
                .contains("through the link `/bin`")
        );
        assert!(verdict(&["/bin ->usr/bin", "/usr directory 711"], &layer).contains("it has `/usr` as"));
        assert!(verdict(&["/bin ->usr/bin", "/usr ->srv"], &layer).contains("a symlink in the new base"));
        let mail = ["/var directory", "/var/mail directory 2775", "/var/mail/x file 644"];
        assert_eq!(verdict(&old, &mail), "fine");
        assert!(verdict(&["/bin ->usr/bin", "/usr directory"], &mail).contains("lacks `/var/mail`"));
        // A definition that sets a mode wins over whatever is below.
        let set = ["/var directory", "/var/mail directory 700"];
        assert_eq!(verdict(&["/bin ->usr/bin", "/var/mail directory 755"], &set), "fine");
        assert!(
            verdict(&["/bin ->usr/bin", "/usr/bin/x directory"], &layer).contains("is a directory in the new base")
        );
    }

    #[test]
    fn what_the_image_changed_is_changed_again() {
        let map = |value: Value| value.as_object().expect("an object").clone();
        let old =
            map(json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "User": "0", "Labels": {"v": "1", "gone": "x"}}));
        let image = map(json!({
            "Env": ["PATH=/bin", "A=2", "B=3"], "Entrypoint": ["run"], "User": "0", "Labels": {"v": "1", "mine": "y"}
        }));
        let new = map(json!({
            "Env": ["PATH=/usr/bin", "C=4"], "Cmd": ["bash"], "User": "5", "StopSignal": "TERM", "Labels": {"v": "2", "gone": "z"}
        }));
        assert_eq!(
            json!(run_config(&image, &old, &new)),
            json!({
                "Env": ["PATH=/usr/bin", "C=4", "A=2", "B=3"], "Entrypoint": ["run"], "User": "5", "StopSignal": "TERM",
                "Labels": {"v": "2", "mine": "y"}
            })
        );
    }
}
