//! `inspect` of an image wherever it is: its documents, and on request the packages in its layers.

use std::collections::BTreeMap;

use layers::Platform;
use serde::Serialize;
use serde_json::Value;

use super::Bench;
use super::build::{Request, build};
use crate::error::Failure;
use crate::places::contents::{Files, Package};
use crate::places::{Held, Place, PlaceError, Reach};
use crate::registry::document::{Descriptor, Document};
use crate::registry::{AnyDigest, Bundle, Supply};
use crate::report::size;

/// An image as people name it: one of the catalogue, or one at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// A name without `/`, `:` and `@`.
    Catalogue(String),
    /// Anything else that can be read.
    Place(Place),
}

impl std::str::FromStr for Named {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Named, PlaceError> {
        match text.contains(['/', ':', '@']) {
            true => text.parse().map(Named::Place),
            false => Ok(Named::Catalogue(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Named::Catalogue(name) => f.write_str(name),
            Named::Place(place) => place.fmt(f),
        }
    }
}

/// What an image is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Portrait {
    /// Where it was looked at.
    pub place: String,
    /// The digest that its name leads to.
    pub digest: String,
    /// The media type of that document.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// What kind of artifact it is, where it says so.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The images of its platforms; attestations are left out.
    pub platforms: Vec<Member>,
}

/// An image for one platform.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// `os/architecture` and a variant, as the image says.
    pub platform: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The media type of that manifest.
    pub media_type: String,
    /// The digest of its configuration.
    pub config: String,
    /// When it says that it was made.
    pub created: Option<String>,
    /// How it runs: `config` of its configuration.
    pub run: Value,
    /// Compressed bytes of all layers.
    pub size: u64,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
    /// Debian packages, where they were asked for.
    pub packages: Option<Vec<Package>>,
    /// Python distributions, where they were asked for.
    pub distributions: Option<Vec<Package>>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Compressed digest.
    pub digest: String,
    /// Uncompressed digest, as the configuration says.
    pub diff_id: Option<String>,
    /// Compressed bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What the history says about it.
    pub created_by: Option<String>,
}

impl Layer {
    /// Size, the start of the digest and what made it, in one line.
    pub fn line(&self) -> String {
        let hex = self.digest.rsplit(':').next().unwrap_or_default();
        let created = self.created_by.as_deref().unwrap_or_default();
        format!("{:>9}  {}  {created}", size(self.size), &hex[..12.min(hex.len())])
    }
}

/// One manifest of an image with its configuration.
pub(super) struct Opened {
    pub document: Document,
    pub config: Value,
    /// The configuration as it is written.
    pub text: String,
    pub config_digest: AnyDigest,
    pub layers: Vec<Descriptor>,
}

/// Reads an image by its name; one of the catalogue is built first.
pub fn read(bench: Option<&Bench<'_>>, reach: &Reach<'_>, named: &Named, request: &Request) -> Result<Held, Failure> {
    match named {
        Named::Place(place) => Ok(reach.read(place)?),
        Named::Catalogue(name) => {
            let bench = bench.ok_or_else(|| Failure::usage(format!("there is no catalogue with `{name}`")))?;
            let request = Request { images: vec![name.clone()], ..request.clone() };
            let image = build(bench, &request)?.remove(0).image;
            let supply = Supply::of(std::slice::from_ref(&image), bench.store);
            Ok(Held { bundle: Bundle::of(&image)?, supply })
        }
    }
}

/// Describes an image. Of an image in a registry only documents are read, unless `packages` are wanted.
pub fn inspect(
    reach: &Reach<'_>,
    named: &Named,
    held: &Held,
    platforms: &[Platform],
    packages: bool,
) -> Result<Portrait, Failure> {
    let top = held.top();
    let said = top.read().map_err(|why| Failure::work(format!("`{named}`: {why}")))?;
    let mut members = Vec::new();
    for document in &held.bundle.documents {
        let Some(opened) = open(reach, held, document)? else { continue };
        let platform = platform_of(held, document, &opened.config);
        if !platforms.is_empty() && !platforms.iter().any(|wanted| fits(&platform, *wanted)) {
            continue;
        }
        let (mut debian, mut python) = (None, None);
        if packages {
            let listings = opened.layers.iter().map(|layer| reach.listing(held, layer));
            let files = Files::of(&listings.collect::<Result<Vec<_>, _>>()?);
            (debian, python) = (Some(files.debian()), Some(files.python()));
        }
        members.push(Member {
            platform,
            digest: document.digest.to_string(),
            media_type: document.media_type.clone(),
            config: opened.config_digest.to_string(),
            created: opened.config.get("created").and_then(Value::as_str).map(str::to_owned),
            run: opened.config.get("config").cloned().unwrap_or(Value::Null),
            size: opened.layers.iter().map(|layer| layer.size).sum(),
            layers: layers(&opened),
            packages: debian,
            distributions: python,
        });
    }
    members.sort_by(|a, b| a.platform.cmp(&b.platform));
    if members.is_empty() && !platforms.is_empty() {
        return Err(Failure::work(format!("`{named}` has no image for these platforms")));
    }
    Ok(Portrait {
        place: named.to_string(),
        digest: top.digest.to_string(),
        media_type: top.media_type.clone(),
        size: top.bytes.len() as u64,
        artifact_type: said.artifact_type,
        annotations: said.annotations,
        platforms: members,
    })
}

/// Opens a manifest; `None` for an index, an attestation and anything without the configuration of an image.
pub(super) fn open(reach: &Reach<'_>, held: &Held, document: &Document) -> Result<Option<Opened>, Failure> {
    let wrong = |why: String| Failure::work(format!("the manifest {} cannot be used: {why}", document.digest));
    let said = document.read().map_err(wrong)?;
    let attests = listed(held, document).is_some_and(|it| it.is_attestation());
    if said.is_index || !said.has_config || attests {
        return Ok(None);
    }
    let (config, layers) = said.blobs.split_first().expect("a manifest that has a configuration names it first");
    let image = [layers::oci::CONFIG, "application/vnd.docker.container.image.v1+json"];
    if !image.contains(&config.media_type.as_str()) {
        return Ok(None);
    }
    let bytes = reach.small(held, config)?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("its configuration {} is not JSON: {error}", config.digest)))?;
    Ok(Some(Opened {
        document: document.clone(),
        config: value,
        // JSON is UTF-8 (RFC 8259, section 8.1), so nothing is replaced.
        text: String::from_utf8_lossy(&bytes).into_owned(),
        config_digest: config.digest,
        layers: layers.to_vec(),
    }))
}

/// The image for one platform, opened; `name` is what people call it.
pub(super) fn single(
    reach: &Reach<'_>,
    name: &impl std::fmt::Display,
    held: Held,
    platform: Platform,
) -> Result<(Held, Opened), Failure> {
    let held = held.for_platform(platform)?;
    let document = held.top().clone();
    match open(reach, &held, &document)? {
        Some(opened) => Ok((held, opened)),
        None => Err(Failure::work(format!("`{name}` is no image: it has no configuration of one"))),
    }
}

/// How an index of the image lists a document.
fn listed(held: &Held, document: &Document) -> Option<Descriptor> {
    let indexes = held.bundle.documents.iter().filter_map(|it| it.read().ok()).filter(|said| said.is_index);
    indexes.flat_map(|said| said.manifests).find(|it| it.digest == document.digest)
}

fn platform_of(held: &Held, document: &Document, config: &Value) -> String {
    let from = |value: &Value| {
        let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        Some(
            [Some(text("os")?), Some(text("architecture")?), text("variant")]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("/"),
        )
    };
    let listed = listed(held, document).and_then(|it| it.platform);
    listed.as_ref().and_then(from).or_else(|| from(config)).unwrap_or_else(|| "unknown".into())
}

fn fits(text: &str, platform: Platform) -> bool {
    text == platform.to_string() || text.strip_prefix(&platform.to_string()).is_some_and(|rest| rest.starts_with('/'))
}

/// Layers with what the configuration says about them.
pub(super) fn layers(opened: &Opened) -> Vec<Layer> {
    let diff_ids = opened.config.pointer("/rootfs/diff_ids").and_then(Value::as_array);
    let history = opened.config.get("history").and_then(Value::as_array);
    let made: Vec<&Value> =
        history.into_iter().flatten().filter(|it| it.get("empty_layer") != Some(&Value::Bool(true))).collect();
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let described = |(at, layer): (usize, &Descriptor)| Layer {
        digest: layer.digest.to_string(),
        diff_id: text(diff_ids.and_then(|ids| ids.get(at))),
        size: layer.size,
        media_type: layer.media_type.clone(),
        created_by: made
            .get(at)
            .filter(|_| made.len() == opened.layers.len())
            .and_then(|it| text(it.get("created_by"))),
    };
    opened.layers.iter().enumerate().map(described).collect()
}
