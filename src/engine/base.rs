//! Base images: of an OCI layout on disk, or of a registry, from where they were brought into the cache before.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cache::{CacheError, Copied};
use layers::encode::{Kind, LAYER_FORMAT};
use layers::format::tar::{Reader, TarItem};
use layers::format::{FormatError, Limits, decoder_memory, decompress};
use layers::lower::PinnedBase;
use layers::oci::{self, BaseParts, Descriptor};
use layers::source::OciLayout;
use layers::{Digest, Key, KeyHasher, Platform};
use oci_spec::image::{ImageIndex, ImageManifest};

use super::EngineError;
use super::index::{Fragment, INDEX_FORMAT};
use super::local::Local;
use super::made::{Content, Made};
use super::spool::Spool;

/// Counts up when another file system is seen in the same base; part of the keys of what may look at it.
const VERSION: u32 = 2;

/// Says in a key which base is below, if there is one, and how it is seen.
pub fn key(hasher: &mut KeyHasher, manifest: Option<&Digest>) {
    if let Some(manifest) = manifest {
        hasher.field("base", manifest).field("base-version", VERSION);
    }
}

/// A base image for one platform, its documents verified.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// What images on top of it inherit.
    pub parts: BaseParts,
    name: String,
    blobs: Option<PathBuf>,
}

/// The largest document that is read, bytes.
const DOCUMENT_LIMIT: u64 = 16 << 20;

/// Opens a base image for `platform`; the path of a layout is relative to `folder`.
pub fn open(
    folder: &Path,
    base: &PinnedBase,
    platform: Platform,
    store: &cache::Store,
) -> Result<BaseImage, EngineError> {
    match base {
        PinnedBase::Layout(layout) => open_layout(folder, layout, platform),
        PinnedBase::Registry { image, manifest } => open_cached(image, manifest, platform, store),
    }
}

/// Opens an image whose documents are in the cache.
fn open_cached(
    image: &str,
    manifest: &Digest,
    platform: Platform,
    store: &cache::Store,
) -> Result<BaseImage, EngineError> {
    let wrong = |why: String| EngineError::Base { path: image.to_owned(), why };
    let read = |digest: &Digest| match store.read(digest)? {
        Some(bytes) => Ok(bytes),
        None => Err(wrong(format!("{digest} is not in the cache"))),
    };
    let document: ImageManifest = parse(&read(manifest)?).map_err(&wrong)?;
    let config = read(&digest_of(document.config().digest().as_ref()).map_err(&wrong)?)?;
    finish(image, *manifest, &document, &config, platform, None)
}

/// Reads an image of these documents, whose digests the caller has checked, without a store: for fuzzing.
#[doc(hidden)]
pub fn of_documents(
    name: &str,
    digest: Digest,
    manifest: &[u8],
    config: &[u8],
    platform: Platform,
) -> Result<BaseImage, EngineError> {
    let document: ImageManifest = parse(manifest).map_err(|why| EngineError::Base { path: name.to_owned(), why })?;
    finish(name, digest, &document, config, platform, None)
}

fn open_layout(folder: &Path, layout: &OciLayout, platform: Platform) -> Result<BaseImage, EngineError> {
    let root = folder.join(&layout.path);
    let wrong = |why: String| EngineError::Base { path: layout.path.clone(), why };
    let text = fs::read(root.join("index.json")).map_err(|error| wrong(format!("index.json: {error}")))?;
    let index: ImageIndex = parse(&text).map_err(&wrong)?;
    let named: Vec<_> = index
        .manifests()
        .iter()
        .filter(|descriptor| match &layout.name {
            Some(wanted) => descriptor
                .annotations()
                .as_ref()
                .and_then(|all| all.get("org.opencontainers.image.ref.name"))
                .is_some_and(|name| name == wanted),
            None => true,
        })
        .collect();
    let mut descriptor = match named.as_slice() {
        [one] => (*one).clone(),
        [] => return Err(wrong(format!("it has no image `{}`", layout.name.as_deref().unwrap_or_default()))),
        many => return Err(wrong(format!("it has {} images; choose one with `.name(..)`", many.len()))),
    };
    let blobs = root.join("blobs/sha256");
    // An index in an index: at most a few, and attestations (platform unknown/unknown) are not what is looked for.
    for _ in 0..4 {
        if descriptor.media_type().to_string() != oci::INDEX {
            break;
        }
        let digest = digest_of(descriptor.digest().as_ref()).map_err(&wrong)?;
        let inner: ImageIndex = parse(&document(&blobs, &digest).map_err(&wrong)?).map_err(&wrong)?;
        let fits = |it: &&oci_spec::image::Descriptor| {
            it.platform().as_ref().is_some_and(|found| {
                found.os().to_string() == "linux" && found.architecture().to_string() == platform.architecture()
            })
        };
        descriptor = match inner.manifests().iter().find(fits) {
            Some(found) => found.clone(),
            None => return Err(wrong(format!("it has no image for {platform}"))),
        };
    }
    let manifest_digest = digest_of(descriptor.digest().as_ref()).map_err(&wrong)?;
    let manifest_bytes = document(&blobs, &manifest_digest).map_err(&wrong)?;
    let manifest: ImageManifest = parse(&manifest_bytes).map_err(&wrong)?;
    let config_digest = digest_of(manifest.config().digest().as_ref()).map_err(&wrong)?;
    let config = document(&blobs, &config_digest).map_err(&wrong)?;
    finish(&layout.path, manifest_digest, &manifest, &config, platform, Some(blobs))
}

fn finish(
    name: &str,
    manifest_digest: Digest,
    manifest: &ImageManifest,
    config: &[u8],
    platform: Platform,
    blobs: Option<PathBuf>,
) -> Result<BaseImage, EngineError> {
    let wrong = |why: String| EngineError::Base { path: name.to_owned(), why };
    let text = std::str::from_utf8(config).map_err(|error| wrong(format!("its configuration: {error}")))?;
    let config: serde_json::Map<String, serde_json::Value> = parse(config).map_err(&wrong)?;
    let architecture = config.get("architecture").and_then(serde_json::Value::as_str).unwrap_or_default();
    if architecture != platform.architecture() {
        return Err(wrong(format!("it is for {architecture}, not for {platform}")));
    }
    let layers = manifest
        .layers()
        .iter()
        .map(|layer| {
            Ok(Descriptor {
                media_type: oci::layer_type(layer.media_type().as_ref()).to_owned(),
                digest: digest_of(layer.digest().as_ref())?,
                size: layer.size(),
                platform: None,
                annotations: layer.annotations().clone().unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
            })
        })
        .collect::<Result<Vec<Descriptor>, String>>()
        .map_err(&wrong)?;
    let diff_ids = config
        .get("rootfs")
        .and_then(|rootfs| rootfs.get("diff_ids"))
        .and_then(serde_json::Value::as_array)
        .map_or(0, Vec::len);
    if diff_ids != layers.len() {
        return Err(wrong(format!("its configuration names {diff_ids} layers, its manifest {}", layers.len())));
    }
    let parts = BaseParts::new(text.to_owned(), layers).map_err(|why| wrong(format!("its configuration: {why}")))?;
    Ok(BaseImage { manifest: manifest_digest, parts, name: name.to_owned(), blobs })
}

impl BaseImage {
    /// The layers as fragments for looking at. Afterwards the store has the blobs of a layout, byte for byte, and those of a
    /// registry's image that had not been looked at before: the others are left where they are.
    pub fn fragments(&self, engine: &Local<'_>) -> Result<Vec<Arc<Fragment>>, EngineError> {
        let mut fragments = Vec::new();
        let mut unknown = Vec::new();
        let mut read = HashMap::new();
        for layer in &self.parts.layers {
            let known = engine.find_fragment(&fragment_key(layer).0)?;
            if known.is_none() {
                engine.may_make()?;
                // It may have lain there for long: what rotted is removed, and had once more.
                read.extend(engine.store.open_verified(&layer.digest)?.map(|file| (layer.digest, file)));
                unknown.push(layer);
            }
            fragments.push(known);
        }
        match &self.blobs {
            Some(_) if engine.looks.is_some() => {}
            Some(_) => self.adopt(engine.store)?,
            None if unknown.is_empty() => {}
            None => engine.supply.base_layers(&self.name, &unknown)?,
        }
        let known = fragments.into_iter().zip(&self.parts.layers);
        known
            .map(|(known, layer)| known.map_or_else(|| self.fragment(engine, layer, read.remove(&layer.digest)), Ok))
            .collect()
    }

    /// Copies the layers of a layout that are not in the store into it. Those of a registry's image are left where they are.
    pub fn adopt(&self, store: &cache::Store) -> Result<(), EngineError> {
        let Some(blobs) = &self.blobs else { return Ok(()) };
        self.parts.layers.iter().try_for_each(|layer| self.adopt_layer(store, blobs, layer))
    }

    fn adopt_layer(&self, store: &cache::Store, blobs: &Path, layer: &Descriptor) -> Result<(), EngineError> {
        if store.has(&layer.digest)? == Some(layer.size) {
            return Ok(());
        }
        let blob = blobs.join(layer.digest.hex());
        let wrong =
            |what: String| EngineError::Base { path: self.name.clone(), why: format!("`{}` {what}", blob.display()) };
        let unreadable = |error| wrong(format!("cannot be read: {error}"));
        let mut file = Copied::from(File::open(&blob).map_err(unreadable)?);
        let mut writer = store.writer()?;
        let copied = std::io::copy(&mut file, &mut writer);
        copied.map_err(|error| if file.failed() { unreadable(error) } else { error.into() })?;
        writer.flush()?;
        match writer.finish_as(&layer.digest) {
            Err(CacheError::Mismatch { found, .. }) => {
                Err(wrong(format!("is damaged: it is {found}; put the base image there once more")))
            }
            done => Ok(done.map(drop)?),
        }
    }

    /// Reads a layer, from the file that was verified where there is one.
    fn fragment(
        &self,
        engine: &Local<'_>,
        layer: &Descriptor,
        read: Option<File>,
    ) -> Result<Arc<Fragment>, EngineError> {
        let wrong = |why: String| EngineError::Base { path: self.name.clone(), why };
        let (key, text) = fragment_key(layer);
        let file = match read {
            Some(file) => file,
            None => engine
                .store
                .open(&layer.digest)?
                .ok_or_else(|| wrong(format!("layer {} is gone from the cache", layer.digest)))?,
        };
        let unpacked = |source: &dyn Display| wrong(format!("layer {} cannot be unpacked: {source}", layer.digest));
        let failed = |source: FormatError| unpacked(&source);
        let mut file = BufReader::with_capacity(256 << 10, file);
        let _share = engine.room.decoders().take(decoder_memory(file.fill_buf()?, &Limits::default()));
        let reader = decompress(file, &Limits::default()).map_err(failed)?;
        let spool = Spool::new(&engine.room);
        let made = read_layer(Reader::oci_layer(reader, &Limits::default()), spool).map_err(failed)?;
        engine.keep(&key, &text, made).map_err(|error| error.of_entries(|source| unpacked(&source)))
    }
}

/// Names the fragment of a base's layer.
fn fragment_key(layer: &Descriptor) -> (Key, String) {
    let mut hasher = KeyHasher::new("base-layer", LAYER_FORMAT);
    hasher.field("index", INDEX_FORMAT).field("version", VERSION).field("layer", layer.digest);
    hasher.finish()
}

fn read_layer<R: std::io::Read>(mut reader: Reader<R>, mut spool: Spool) -> Result<Made<'static>, FormatError> {
    let mut made = Made::default();
    let mut last: BTreeMap<layers::ImagePath, (layers::encode::Entry, Content<'static>)> = BTreeMap::new();
    while let Some(item) = reader.next_item()? {
        match item {
            TarItem::Whiteout { path } => made.whiteouts.push(path),
            TarItem::Opaque { dir } => made.opaques.push(dir),
            TarItem::Entry(entry) => {
                let content = match entry.kind {
                    Kind::File { size } => {
                        let (offset, _) = spool.append(&mut reader)?;
                        Content::Spooled { offset, size }
                    }
                    _ => Content::None,
                };
                // Other builders write a path twice; the later entry wins, as it does when the layer is unpacked.
                last.insert(entry.path.clone(), (entry, content));
            }
        }
    }
    for (entry, content) in last.into_values() {
        made.push(entry, content);
    }
    made.spool = Some(spool);
    Ok(made)
}

fn digest_of(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|error: layers::InvalidDigest| error.to_string())
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    // A document that is both could be read as either (CVE-2021-41190).
    if value.get("layers").is_some() && value.get("manifests").is_some() {
        return Err("a document has both `layers` and `manifests`".into());
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Reads a document and verifies it.
fn document(blobs: &Path, digest: &Digest) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(blobs.join(digest.hex()))
        .and_then(|file| file.take(DOCUMENT_LIMIT).read_to_end(&mut bytes))
        .map_err(|error| format!("{digest}: {error}"))?;
    if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(format!("{digest} is damaged")) }
}
