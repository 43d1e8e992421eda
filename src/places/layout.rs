//! OCI image layouts (image-layout.md).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Held, PlaceError};
use crate::failpoint::Kept;
use crate::output;
use crate::registry::document::{self, Descriptor, Document};
use crate::registry::{AnyDigest, Bundle, Reference, Supply};

/// The annotation that names an image of a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation with which Docker and containerd name one in full.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";

/// Whether two texts name the same image, as Docker reads them: `a` is `docker.io/library/a:latest`, and
/// `localhost/a:latest` is another.
pub(super) fn is_same_name(a: &str, b: &str) -> bool {
    let full = |text: &str| text.parse::<Reference>().ok().map(|it| full_name(&it));
    a == b || full(a).is_some_and(|a| full(b) == Some(a))
}

/// A name with its registry and a tag, as engines keep it.
pub(super) fn full_name(reference: &Reference) -> String {
    match (&reference.tag, &reference.digest) {
        (None, None) => reference.repository.tagged("latest").to_string(),
        _ => reference.to_string(),
    }
}

/// Chooses an image of an index by its name, the only one where none is given.
pub(super) fn choose(index: &Value, name: Option<&str>, place: &str) -> Result<Descriptor, PlaceError> {
    let wrong = |why: String| PlaceError::Content { place: place.into(), why };
    let all = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    let annotation = |it: &Value, name: &str| it.get("annotations")?.get(name)?.as_str().map(str::to_owned);
    let name_of = |it: &Value| annotation(it, REF_NAME);
    // Docker since 25 writes the whole name beside the tag.
    let fits = |it: &&Value, name: &str| {
        name_of(it).as_deref() == Some(name) || annotation(it, FULL_NAME).is_some_and(|full| is_same_name(&full, name))
    };
    let mut found: Vec<&Value> = all.iter().filter(|it| name.is_none_or(|name| fits(it, name))).collect();
    // An image that has two names is one image.
    let mut seen = BTreeSet::new();
    found.retain(|it| seen.insert(it["digest"].to_string()));
    match found.as_slice() {
        [one] => serde_json::from_value((*one).clone()).map_err(|error| wrong(format!("index.json: {error}"))),
        many => {
            let name_of = |it: &Value| annotation(it, FULL_NAME).or_else(|| name_of(it));
            let names = all.iter().filter_map(name_of).collect::<Vec<_>>().join(", ");
            Err(wrong(match (many.len(), name) {
                (0, Some(name)) => format!("it has no image `{name}`, only {names}"),
                (0, None) => "it has no image".into(),
                _ => format!("it has several images; choose one of {names} with `:NAME` at the end"),
            }))
        }
    }
}

/// Gives the bytes of a document; `None` where it is not there.
pub(super) type Find<'a> = dyn FnMut(&AnyDigest) -> Result<Option<Vec<u8>>, PlaceError> + 'a;

/// Reads documents from `find`, those that others refer to first.
pub(super) fn documents(top: &Descriptor, place: &str, find: &mut Find<'_>) -> Result<Vec<Document>, PlaceError> {
    let wrong = |why: String| PlaceError::Content { place: place.into(), why };
    let mut found: Vec<Document> = Vec::new();
    let mut todo = vec![top.clone()];
    let mut at = 0;
    while at < todo.len() {
        if at == 10_000 {
            return Err(wrong("it leads to more than 10,000 manifests".into()));
        }
        let descriptor = todo[at].clone();
        at += 1;
        let Some(bytes) = find(&descriptor.digest)? else {
            if at == 1 {
                return Err(wrong(format!("{} is missing", descriptor.digest)));
            }
            continue;
        };
        if bytes.len() > document::LARGEST || !descriptor.digest.fits(&bytes) {
            return Err(wrong(format!("{} is damaged", descriptor.digest)));
        }
        let document = Document { media_type: descriptor.media_type, digest: descriptor.digest, bytes: bytes.into() };
        todo.extend(document.read().map_err(|why| wrong(format!("{}: {why}", document.digest)))?.manifests);
        found.push(document);
    }
    found.reverse();
    Ok(found)
}

fn path_of(root: &Path, digest: &AnyDigest) -> PathBuf {
    root.join("blobs").join(digest.algorithm()).join(digest.hex())
}

pub(super) fn read(root: &Path, name: Option<&str>) -> Result<Held, PlaceError> {
    let place = format!("oci:{}", root.display());
    let file = |path: PathBuf| move |source| PlaceError::File { path, source };
    let index = root.join("index.json");
    let text = fs::read(&index).map_err(file(index.clone()))?;
    let index: Value = serde_json::from_slice(&text)
        .map_err(|error| PlaceError::Content { place: place.clone(), why: format!("index.json: {error}") })?;
    let top = choose(&index, name, &place)?;
    let documents = documents(&top, &place, &mut |digest| {
        let path = path_of(root, digest);
        match File::open(&path) {
            Ok(opened) => {
                let mut bytes = Vec::new();
                opened.take(document::LARGEST as u64 + 1).read_to_end(&mut bytes).map_err(file(path))?;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PlaceError::File { path, source }),
        }
    })?;
    let bundle = Bundle::read(documents)?;
    let files = bundle.blobs.iter().flatten().map(|blob| (blob.digest, path_of(root, &blob.digest)));
    let files: BTreeMap<_, _> = files.filter(|(_, path)| path.is_file()).collect();
    Ok(Held { bundle, supply: Supply { files, ..Supply::default() } })
}

/// Finds out before the long work whether an image can be added to a layout: what is there must be one, with an index that
/// can be kept.
pub(super) fn check(root: &Path) -> Result<(), PlaceError> {
    if crate::output::is_occupied(root).unwrap_or(false) && !root.join("oci-layout").is_file() {
        let why = "it is not empty and not an OCI layout".into();
        return Err(PlaceError::Content { place: format!("oci:{}", root.display()), why });
    }
    index_of(root).map(drop)
}

/// The `index.json` of a layout, empty where there is none yet.
fn index_of(root: &Path) -> Result<serde_json::Map<String, Value>, PlaceError> {
    let path = root.join("index.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(serde_json::Map::new()),
        Err(source) => return Err(PlaceError::File { path, source }),
    };
    let index: Result<serde_json::Map<String, Value>, _> = serde_json::from_slice(&bytes);
    match index {
        Ok(index) if index.get("manifests").is_none_or(Value::is_array) => Ok(index),
        _ => {
            let why =
                "its index.json is no index, so the images in it would be lost: mend it, or choose another folder";
            Err(PlaceError::Content { place: format!("oci:{}", root.display()), why: why.into() })
        }
    }
}

/// Whether a file is this blob, byte for byte.
fn holds(path: &Path, blob: &Descriptor) -> bool {
    let same_size = fs::metadata(path).is_ok_and(|found| found.len() == blob.size);
    let hashed = || -> std::io::Result<AnyDigest> {
        let (mut file, mut hasher) = (File::open(path)?, blob.digest.hasher());
        let mut piece = vec![0; 256 << 10];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hasher.finish()),
                count => hasher.update(&piece[..count]),
            }
        }
    };
    same_size && hashed().is_ok_and(|found| found == blob.digest)
}

/// Adds an image to a layout; it becomes visible when `index.json` is renamed.
pub(super) fn write(root: &Path, name: Option<&str>, held: &Held) -> Result<(), PlaceError> {
    let file = |path: &Path| {
        let path = path.to_path_buf();
        move |source| PlaceError::File { path, source }
    };
    fs::create_dir_all(root).map_err(file(root))?;
    let _lock = output::locked(root).map_err(file(root))?;
    let put = |path: &Path, write: &mut dyn FnMut(&mut File) -> Result<(), PlaceError>| {
        let folder = path.parent().unwrap_or(root);
        fs::create_dir_all(folder).map_err(file(folder))?;
        let mut temporary = output::unfinished(folder).map_err(file(path))?;
        write(temporary.as_file_mut())?;
        let _ = temporary.as_file().set_permissions(fs::Permissions::from_mode(0o644));
        Kept::LayoutDocumentWritten.reach();
        temporary.persist(path).map_err(|error| file(path)(error.error))?;
        Kept::LayoutDocumentSettled.reach();
        Ok(())
    };
    put(&root.join("oci-layout"), &mut |out| out.write_all(b"{\"imageLayoutVersion\":\"1.0.0\"}").map_err(file(root)))?;
    for blob in held.bundle.blobs.iter().flatten().filter(|blob| !blob.is_foreign()) {
        let path = path_of(root, &blob.digest);
        if holds(&path, blob) {
            continue;
        }
        put(&path, &mut |out| held.supply.copy(blob, out).map_err(PlaceError::from))?;
    }
    for document in &held.bundle.documents {
        put(&path_of(root, &document.digest), &mut |out| out.write_all(&document.bytes).map_err(file(root)))?;
    }
    let index_path = root.join("index.json");
    // Read under the lock: another image may have come since the check.
    let mut index = index_of(root)?;
    let mut manifests = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    manifests.retain(|it| it.pointer("/annotations/org.opencontainers.image.ref.name").and_then(Value::as_str) != name);
    let mut descriptor = json!(held.top().descriptor());
    if let Some(name) = name {
        descriptor["annotations"] = json!({ REF_NAME: name });
    }
    manifests.push(descriptor);
    index.insert("schemaVersion".into(), json!(2));
    index.insert("mediaType".into(), json!(layers::oci::INDEX));
    index.insert("manifests".into(), json!(manifests));
    let index = Value::Object(index).to_string();
    put(&index_path, &mut |out| out.write_all(index.as_bytes()).map_err(file(&index_path)))
}
