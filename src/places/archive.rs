//! Archives: an image layout in a tar, with Docker's `manifest.json` beside it; and what old engines save, which has
//! only the latter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use cache::Store;
use layers::format::{Compression, FormatError, Limits, decompress, decompress_as};
use layers::oci;
use serde_json::{Value, json};

use super::layout::{FULL_NAME, REF_NAME, choose, documents, full_name, is_same_name};
use super::{Held, PlaceError};
use crate::failpoint::Kept;
use crate::output::{archive, aside};
use crate::registry::document::{self, Descriptor, Document};
use crate::registry::{AnyDigest, Bundle, Reference, RegistryError, Supply};

/// Where a member lies.
struct Members {
    file: File,
    found: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
    /// Where the archive ends, if it lacks the mark that closes one.
    cut: Option<u64>,
}

impl Members {
    /// Lists an archive; one that is compressed is unpacked into the cache's folder for what is in the making.
    fn open(path: &Path, store: &Store, place: &str) -> Result<Members, PlaceError> {
        let io = |source| PlaceError::File { path: path.into(), source };
        let wrong = |why: String| PlaceError::Content { place: place.into(), why };
        let mut file = File::open(path).map_err(io)?;
        let mut head = Vec::new();
        (&file).take(10).read_to_end(&mut head).map_err(io)?;
        file.rewind().map_err(io)?;
        if Compression::detect(&head).map_err(|error| wrong(error.to_string()))? != Compression::None {
            file = unpacked(file, store, place)?;
        }
        let length = file.metadata().map_err(io)?.len();
        let mut archive = tar::Archive::new(io::BufReader::with_capacity(256 << 10, file.try_clone().map_err(io)?));
        let (mut found, mut links, mut end) = (BTreeMap::new(), BTreeMap::new(), 0);
        for entry in archive.entries_with_seek().map_err(io)? {
            // The library's own words repeat what stands in the file, whatever that is.
            let entry = entry.map_err(|_| {
                wrong(format!("it is no tar archive, or it is damaged or cut off behind byte {end} of {length}"))
            })?;
            let name = tidy("", &String::from_utf8_lossy(&entry.path_bytes()));
            let (start, size) = (entry.raw_file_position(), entry.size());
            end = start.saturating_add(size).div_ceil(512).saturating_mul(512);
            if start.saturating_add(size) > length {
                let ends = start.saturating_add(size);
                let why =
                    format!("it is cut off: `{name}` goes on to byte {ends}, and the archive ends at byte {length}");
                return Err(wrong(why));
            }
            match entry.header().entry_type() {
                kind if kind.is_file() => {
                    found.insert(name, (start, size));
                }
                kind if kind.is_symlink() || kind.is_hard_link() => {
                    let target = entry.link_name_bytes().map(|it| String::from_utf8_lossy(&it).into_owned());
                    let folder = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(it, _)| it) } else { "" };
                    links.insert(name.clone(), tidy(folder, &target.unwrap_or_default()));
                }
                _ => {}
            }
        }
        // Two blocks of zeros close an archive (POSIX, pax, "ustar Interchange Format").
        let cut = (length < end + 1024).then_some(length);
        Ok(Members { file, found, links, cut })
    }

    /// Says that something is not in the archive, and whether that may be because its end is lost.
    fn missing(&self, what: &str) -> String {
        match self.cut {
            None => format!("{what} is missing"),
            Some(end) => format!("it is cut off at byte {end}, where nothing closes it, and {what} is missing"),
        }
    }

    fn reader(&mut self, name: &str) -> io::Result<Option<impl Read + '_>> {
        let mut name = tidy("", name);
        // `docker save` of old links layers that two images share.
        for _ in 0..8 {
            match self.links.get(&name) {
                Some(next) => name = next.clone(),
                None => break,
            }
        }
        let Some((start, size)) = self.found.get(&name).copied() else { return Ok(None) };
        self.file.seek(SeekFrom::Start(start))?;
        Ok(Some((&mut self.file).take(size)))
    }

    fn small(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(reader) = self.reader(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        reader.take(document::LARGEST as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// Unpacks a compressed archive into a file without a name.
fn unpacked(file: File, store: &Store, place: &str) -> Result<File, PlaceError> {
    let wrong = |error: FormatError| PlaceError::Content { place: place.into(), why: error.to_string() };
    let folder = store.scratch();
    let full = |source| PlaceError::File { path: folder.clone(), source };
    let mut out = tempfile::tempfile_in(&folder).map_err(full)?;
    let mut reader = decompress(io::BufReader::with_capacity(256 << 10, file), &Limits::default()).map_err(wrong)?;
    let mut piece = vec![0; 256 << 10];
    loop {
        match reader.read(&mut piece).map_err(|error| wrong(error.into()))? {
            0 => break,
            count => out.write_all(&piece[..count]).map_err(full)?,
        }
    }
    out.rewind().map_err(full)?;
    Ok(out)
}

/// A member's name without `.`, `..` and doubled slashes; it is only ever looked up, never opened as a path.
fn tidy(folder: &str, name: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

pub(super) fn read(path: &Path, name: Option<&str>, store: &Store) -> Result<Held, PlaceError> {
    let place = path.display().to_string();
    let file = |source| PlaceError::File { path: path.into(), source };
    let wrong = |why: String| PlaceError::Content { place: place.clone(), why };
    let mut members = Members::open(path, store, &place)?;
    let Some(index) = members.small("index.json").map_err(file)? else {
        return read_old(members, name, store, &place).map_err(|error| match error {
            PlaceError::File { source, .. } => file(source),
            other => other,
        });
    };
    let index: Value = serde_json::from_slice(&index).map_err(|error| wrong(format!("index.json: {error}")))?;
    let top = choose(&index, name, &place)?;
    let blob_name = |digest: &AnyDigest| format!("blobs/{}/{}", digest.algorithm(), digest.hex());
    if members.small(&blob_name(&top.digest)).map_err(file)?.is_none() {
        return Err(wrong(members.missing(&format!("its document {}", top.digest))));
    }
    let documents = documents(&top, &place, &mut |digest| members.small(&blob_name(digest)).map_err(file))?;
    let bundle = Bundle::read(documents)?;
    let mut supply = Supply::default();
    for blob in bundle.blobs.iter().flatten() {
        let Some(digest) = blob.digest.sha256() else { continue };
        if store.has(&digest)? == Some(blob.size) {
            continue;
        }
        let Some(mut reader) = members.reader(&blob_name(&blob.digest)).map_err(file)? else {
            // What was left out on purpose may be somewhere else; what was cut off is not meant to be.
            match members.cut {
                Some(_) => return Err(wrong(members.missing(&format!("the blob {}", blob.digest)))),
                None => continue,
            }
        };
        let mut writer = store.writer()?;
        io::copy(&mut reader, &mut writer).map_err(file)?;
        writer.finish_as(&digest).map_err(|_| wrong(format!("{} is damaged", blob.digest)))?;
    }
    supply.store = Some(store.clone());
    Ok(Held { bundle, supply })
}

/// Docker's own format of before version 25: the configuration, and layers as plain tars.
fn read_old(mut members: Members, name: Option<&str>, store: &Store, place: &str) -> Result<Held, PlaceError> {
    let wrong = |why: &str| PlaceError::Content { place: place.into(), why: why.into() };
    let file = |source| PlaceError::File { path: place.into(), source };
    let manifest = members.small("manifest.json").map_err(file)?;
    let manifest = manifest.ok_or_else(|| {
        let why = members.missing("the list of its images (`index.json` or `manifest.json`)");
        wrong(&match members.cut {
            Some(_) => why,
            None => format!("{why}: it is neither an OCI archive nor one of Docker"),
        })
    })?;
    let manifest: Value = serde_json::from_slice(&manifest).map_err(|_| wrong("its manifest.json is not JSON"))?;
    let images = manifest.as_array().cloned().unwrap_or_default();
    let names_of = |it: &Value| -> Vec<String> {
        let names = it["RepoTags"].as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let fits = |it: &&Value| name.is_none_or(|name| names_of(it).iter().any(|found| is_same_name(found, name)));
    let chosen: Vec<&Value> = images.iter().filter(fits).collect();
    let [image] = chosen.as_slice() else {
        let names = images.iter().flat_map(names_of).collect::<Vec<_>>().join(", ");
        return Err(wrong(&match (images.len(), name) {
            (0, _) => "it has no image".to_owned(),
            (_, Some(name)) => format!("it has no image `{name}`, only {names}"),
            (_, None) => format!("it has several images; choose one of {names} with `:NAME` at the end"),
        }));
    };
    let text =
        |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong("its manifest.json names no files"));
    let config = text(&image["Config"])?;
    let config = members
        .small(&config)
        .map_err(file)?
        .ok_or_else(|| wrong(&members.missing(&format!("the configuration `{config}`"))))?;
    let config = store.put(&config)?;
    let mut list = Vec::new();
    for layer in image["Layers"].as_array().into_iter().flatten() {
        let layer = text(layer)?;
        let missing = members.missing(&format!("the layer `{layer}`"));
        let mut reader = members.reader(&layer).map_err(file)?.ok_or_else(|| wrong(&missing))?;
        let mut writer = store.writer()?;
        io::copy(&mut reader, &mut writer).map_err(file)?;
        let blob = writer.finish()?;
        let media_type = match store.open(&blob.digest)?.map(|mut opened| {
            let mut magic = [0; 2];
            let _ = opened.read(&mut magic);
            magic
        }) {
            Some([0x1f, 0x8b]) => oci::LAYER_GZIP,
            _ => "application/vnd.oci.image.layer.v1.tar",
        };
        list.push(json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size}));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": oci::MANIFEST,
        "config": {"mediaType": oci::CONFIG, "digest": config.digest, "size": config.size},
        "layers": list,
    });
    let document = Document::json(oci::MANIFEST, &manifest);
    let supply = Supply { store: Some(store.clone()), ..Supply::default() };
    Ok(Held { bundle: Bundle::read(vec![document])?, supply })
}

pub(super) fn write_file(path: &Path, name: Option<&str>, held: &Held) -> Result<(), PlaceError> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = |source| PlaceError::File { path: path.into(), source };
    let temporary = aside::begin(path).map_err(file)?;
    let out = BufWriter::with_capacity(256 << 10, temporary);
    let out = write_archive(held, name, &BTreeSet::new(), out)?;
    let temporary = out.into_inner().map_err(|error| file(error.into_error()))?;
    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(file)?;
    Kept::ArchiveWritten.reach();
    temporary.persist(path).map_err(|error| file(error.error))?;
    Kept::ArchiveSettled.reach();
    Ok(())
}

/// Writes one archive that old and new engines load. Layers of `left_out` are named and not sent: an engine that has
/// them never opens them.
pub fn write_archive<W: Write>(
    held: &Held,
    name: Option<&str>,
    left_out: &BTreeSet<AnyDigest>,
    out: W,
) -> Result<W, PlaceError> {
    let file = |source| PlaceError::File { path: "the archive".into(), source };
    let blob_name = |digest: &AnyDigest| format!("blobs/{}/{}", digest.algorithm(), digest.hex());
    let mut tar = tar::Builder::new(out);
    append(&mut tar, "oci-layout", &mut b"{\"imageLayoutVersion\":\"1.0.0\"}".as_slice(), 30).map_err(file)?;
    let top = held.top();
    let mut descriptor = json!(top.descriptor());
    if let Some(name) = name {
        let full = name.parse::<Reference>().map_or_else(|_| name.to_owned(), |it| full_name(&it));
        descriptor["annotations"] = json!({ FULL_NAME: full, REF_NAME: name });
    }
    let index = json!({"schemaVersion": 2, "mediaType": oci::INDEX, "manifests": [descriptor]}).to_string();
    append(&mut tar, "index.json", &mut index.as_bytes(), index.len() as u64).map_err(file)?;
    if let ([_], [blobs]) = (held.bundle.documents.as_slice(), held.bundle.blobs.as_slice())
        && let Some((config, layers)) = blobs.split_first()
    {
        let docker = json!([{
            "Config": blob_name(&config.digest),
            "RepoTags": tag_of(name),
            "Layers": layers.iter().map(|layer| blob_name(&layer.digest)).collect::<Vec<_>>(),
        }])
        .to_string();
        append(&mut tar, "manifest.json", &mut docker.as_bytes(), docker.len() as u64).map_err(file)?;
    }
    let mut written = BTreeSet::new();
    for document in &held.bundle.documents {
        let size = document.bytes.len() as u64;
        append(&mut tar, &blob_name(&document.digest), &mut document.bytes.as_ref(), size).map_err(file)?;
        written.insert(document.digest);
    }
    for blob in held.bundle.blobs.iter().flatten().filter(|blob| !blob.is_foreign()) {
        if left_out.contains(&blob.digest) || !written.insert(blob.digest) {
            continue;
        }
        header(&mut tar, &blob_name(&blob.digest), blob.size).map_err(file)?;
        held.supply.copy(blob, tar.get_mut())?;
        let padding = (512 - blob.size % 512) % 512;
        tar.get_mut().write_all(&[0; 512][..padding as usize]).map_err(file)?;
    }
    tar.into_inner().map_err(file)
}

/// `RepoTags` of a name: Docker takes none without a tag.
fn tag_of(name: Option<&str>) -> Vec<String> {
    let tagged = |name: &str| match name.parse::<Reference>() {
        Ok(Reference { tag: None, digest: None, .. }) => format!("{name}:latest"),
        _ => name.to_owned(),
    };
    name.into_iter().map(tagged).collect()
}

/// Writes an archive for an engine that reads no zstd: in Docker's own format alone, with the tars of such layers. Each is
/// unpacked twice, since a header says how long a member is, and never lies in a file. Layers of `left_out` are named and
/// not sent. `diff_ids` are those of the configuration.
pub fn write_plain<W: Write>(
    held: &Held,
    name: Option<&str>,
    left_out: &BTreeSet<AnyDigest>,
    diff_ids: &[String],
    out: W,
) -> Result<W, PlaceError> {
    let file = |source| PlaceError::File { path: "the archive".into(), source };
    let wrong = |why: String| PlaceError::Content { place: held.top().digest.to_string(), why };
    let blobs = held.bundle.blobs.last().and_then(|blobs| blobs.split_first());
    let (config, layers) = blobs.ok_or_else(|| wrong("it has no configuration".into()))?;
    if layers.len() != diff_ids.len() {
        return Err(wrong(format!("it has {} layers, and its configuration names {}", layers.len(), diff_ids.len())));
    }
    let blob_name = |digest: &AnyDigest| format!("blobs/{}/{}", digest.algorithm(), digest.hex());
    let names: Vec<String> = layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| match is_zstd(layer) {
            true => format!("layers/{}.tar", diff_id.rsplit(':').next().unwrap_or_default()),
            false => blob_name(&layer.digest),
        })
        .collect();
    let mut tar = tar::Builder::new(out);
    let docker = json!([{"Config": blob_name(&config.digest), "RepoTags": tag_of(name), "Layers": names}]).to_string();
    append(&mut tar, "manifest.json", &mut docker.as_bytes(), docker.len() as u64).map_err(file)?;
    let mut written = BTreeSet::new();
    for (at, blob) in std::iter::once(config).chain(layers).enumerate() {
        if left_out.contains(&blob.digest) || !written.insert(blob.digest) {
            continue;
        }
        let size = match at > 0 && is_zstd(blob) {
            false => {
                header(&mut tar, &blob_name(&blob.digest), blob.size).map_err(file)?;
                held.supply.copy(blob, tar.get_mut())?;
                blob.size
            }
            true => {
                let (size, found) = unpack(held, blob, &mut io::sink())?;
                if found != diff_ids[at - 1] {
                    let why =
                        format!("the tar of {} is {found}, the configuration names {}", blob.digest, diff_ids[at - 1]);
                    return Err(wrong(why));
                }
                header(&mut tar, &names[at - 1], size).map_err(file)?;
                unpack(held, blob, tar.get_mut())?;
                size
            }
        };
        let padding = (512 - size % 512) % 512;
        tar.get_mut().write_all(&[0; 512][..padding as usize]).map_err(file)?;
    }
    tar.into_inner().map_err(file)
}

/// Whether a layer is compressed with zstd.
pub(super) fn is_zstd(layer: &Descriptor) -> bool {
    layer.media_type.ends_with("+zstd") || layer.media_type.ends_with(".zstd")
}

/// Unpacks a layer; gives the length of its tar in bytes, and its diff id.
fn unpack(held: &Held, layer: &Descriptor, out: &mut dyn Write) -> Result<(u64, String), PlaceError> {
    let file = |source| PlaceError::File { path: "the archive".into(), source };
    let wrong = |error: FormatError| PlaceError::Content { place: layer.digest.to_string(), why: error.to_string() };
    let blob = held.supply.file(layer)?.ok_or(RegistryError::Lost(layer.digest))?;
    let blob = io::BufReader::with_capacity(256 << 10, blob);
    let mut reader = decompress_as(Compression::Zstd, blob, &Limits::default()).map_err(wrong)?;
    let mut hasher = AnyDigest::from(layers::Digest::of(b"")).hasher();
    let mut piece = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match reader.read(&mut piece).map_err(|error| wrong(error.into()))? {
            0 => return Ok((size, hasher.finish().to_string())),
            count => {
                hasher.update(&piece[..count]);
                out.write_all(&piece[..count]).map_err(file)?;
                size += count as u64;
            }
        }
    }
}

fn header<W: Write>(tar: &mut tar::Builder<W>, name: &str, size: u64) -> io::Result<()> {
    tar.get_mut().write_all(archive::header(name, size)?.as_bytes())
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &mut dyn Read, size: u64) -> io::Result<()> {
    header(tar, name, size)?;
    io::copy(bytes, tar.get_mut())?;
    let padding = (512 - size % 512) % 512;
    tar.get_mut().write_all(&[0; 512][..padding as usize])
}
