//! Archives: an image layout in a tar, with Docker's `manifest.json` beside it; and what old engines save, which has
//! only the latter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use cache::Store;
use layers::oci;
use serde_json::{Value, json};

use super::layout::{REF_NAME, choose, documents};
use super::{Held, PlaceError};
use crate::output::archive;
use crate::registry::document::{self, Document};
use crate::registry::{AnyDigest, Bundle, Supply};

/// Where a member lies.
struct Members {
    file: File,
    found: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
}

impl Members {
    fn open(path: &Path) -> io::Result<Members> {
        let file = File::open(path)?;
        let mut archive = tar::Archive::new(io::BufReader::with_capacity(256 << 10, file.try_clone()?));
        let (mut found, mut links) = (BTreeMap::new(), BTreeMap::new());
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = tidy("", &String::from_utf8_lossy(&entry.path_bytes()));
            match entry.header().entry_type() {
                kind if kind.is_file() => {
                    found.insert(name, (entry.raw_file_position(), entry.size()));
                }
                kind if kind.is_symlink() || kind.is_hard_link() => {
                    let target = entry.link_name_bytes().map(|it| String::from_utf8_lossy(&it).into_owned());
                    let folder = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(it, _)| it) } else { "" };
                    links.insert(name.clone(), tidy(folder, &target.unwrap_or_default()));
                }
                _ => {}
            }
        }
        Ok(Members { file, found, links })
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
    let place = format!("oci-archive:{}", path.display());
    let file = |source| PlaceError::File { path: path.into(), source };
    let wrong = |why: String| PlaceError::Content { place: place.clone(), why };
    let mut members = Members::open(path).map_err(file)?;
    let Some(index) = members.small("index.json").map_err(file)? else {
        return read_old(members, name, store, &place).map_err(|error| match error {
            PlaceError::File { source, .. } => file(source),
            other => other,
        });
    };
    let index: Value = serde_json::from_slice(&index).map_err(|error| wrong(format!("index.json: {error}")))?;
    let top = choose(&index, name, &place)?;
    let blob_name = |digest: &AnyDigest| format!("blobs/{}/{}", digest.algorithm(), digest.hex());
    let documents = documents(&top, &place, &mut |digest| members.small(&blob_name(digest)).map_err(file))?;
    let bundle = Bundle::read(documents)?;
    let mut supply = Supply::default();
    for blob in bundle.blobs.iter().flatten() {
        let Some(digest) = blob.digest.sha256() else { continue };
        if store.has(&digest)? == Some(blob.size) {
            continue;
        }
        let Some(mut reader) = members.reader(&blob_name(&blob.digest)).map_err(file)? else { continue };
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
    let manifest = manifest.ok_or_else(|| wrong("it is neither an OCI archive nor one of Docker"))?;
    let manifest: Value = serde_json::from_slice(&manifest).map_err(|_| wrong("its manifest.json is not JSON"))?;
    let images = manifest.as_array().cloned().unwrap_or_default();
    let fits = |it: &&Value| {
        let names = it["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
        name.is_none_or(|name| names.into_iter().any(|found| found == name))
    };
    let chosen: Vec<&Value> = images.iter().filter(fits).collect();
    let [image] = chosen.as_slice() else {
        return Err(wrong("it has no single image of that name; choose one with `:NAME`"));
    };
    let text =
        |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong("its manifest.json names no files"));
    let config =
        members.small(&text(&image["Config"])?).map_err(file)?.ok_or_else(|| wrong("its configuration is missing"))?;
    let config = store.put(&config)?;
    let mut list = Vec::new();
    for layer in image["Layers"].as_array().into_iter().flatten() {
        let mut reader = members.reader(&text(layer)?).map_err(file)?.ok_or_else(|| wrong("a layer is missing"))?;
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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(folder).map_err(file)?;
    let out = BufWriter::with_capacity(256 << 10, temporary);
    let out = write_archive(held, name, &BTreeSet::new(), out)?;
    let temporary = out.into_inner().map_err(|error| file(error.into_error()))?;
    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(file)?;
    temporary.persist(path).map(drop).map_err(|error| file(error.error))
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
        let full = name.parse::<crate::registry::Reference>().map_or_else(|_| name.to_owned(), |it| it.to_string());
        descriptor["annotations"] = json!({ "io.containerd.image.name": full, REF_NAME: name });
    }
    let index = json!({"schemaVersion": 2, "mediaType": oci::INDEX, "manifests": [descriptor]}).to_string();
    append(&mut tar, "index.json", &mut index.as_bytes(), index.len() as u64).map_err(file)?;
    if let ([_], [blobs]) = (held.bundle.documents.as_slice(), held.bundle.blobs.as_slice())
        && let Some((config, layers)) = blobs.split_first()
    {
        let docker = json!([{
            "Config": blob_name(&config.digest),
            "RepoTags": name.into_iter().collect::<Vec<_>>(),
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

fn header<W: Write>(tar: &mut tar::Builder<W>, name: &str, size: u64) -> io::Result<()> {
    tar.get_mut().write_all(archive::header(name, size)?.as_bytes())
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &mut dyn Read, size: u64) -> io::Result<()> {
    header(tar, name, size)?;
    io::copy(bytes, tar.get_mut())?;
    let padding = (512 - size % 512) % 512;
    tar.get_mut().write_all(&[0; 512][..padding as usize])
}
