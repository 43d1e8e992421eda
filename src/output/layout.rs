//! OCI image layouts (image-layout.md): updated blob by blob, visible at once when `index.json` is renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use cache::{CacheError, Copied, Store};
use layers::Digest;
use rustix::fs::ioctl_ficlone;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{NamedImage, Output, OutputError, UNFINISHED};
use crate::failpoint::Kept;
use crate::parallel::in_parallel;

/// An OCI image layout in a folder.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
}

/// Blobs that are copied at once.
const COPIES: usize = 4;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

impl Layout {
    /// The layout in `path`, which is made where it is missing.
    pub fn new(path: PathBuf) -> Layout {
        Layout { path }
    }

    fn io<'a>(&self, path: &'a Path) -> impl FnOnce(io::Error) -> OutputError + 'a {
        move |source| OutputError::Io { path: path.into(), source }
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    /// The index that is there, whose other images are somebody's; an empty one where there is none.
    fn index(&self) -> Result<Value, OutputError> {
        let path = self.path.join("index.json");
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({"manifests": []})),
            Err(source) => Err(OutputError::Io { path, source }),
            Ok(bytes) => match serde_json::from_slice::<Value>(&bytes) {
                Ok(index) if index["manifests"].is_array() => Ok(index),
                _ => {
                    Err(OutputError::Io { path, source: io::Error::other("it is not an OCI index: delete the folder") })
                }
            },
        }
    }

    /// Everything that the descriptors of an index lead to. `None` where a document on the way cannot be followed: it is named by another
    /// algorithm, or cannot be read.
    fn reachable(&self, descriptors: &[Value]) -> Option<BTreeSet<Digest>> {
        let (mut found, mut followed) = (BTreeSet::new(), BTreeSet::new());
        let mut todo: Vec<(Value, bool)> = descriptors.iter().map(|it| (it.clone(), true)).collect();
        while let Some((descriptor, leads_on)) = todo.pop() {
            let text = |key: &str| descriptor.get(key).and_then(Value::as_str).unwrap_or_default();
            let media_type = text("mediaType").split(';').next().unwrap_or_default().trim_end();
            let leads_on = leads_on && (media_type.is_empty() || media_type.ends_with("+json"));
            let Ok(digest) = text("digest").parse::<Digest>() else { if leads_on { return None } else { continue } };
            found.insert(digest);
            if !leads_on || !followed.insert(digest) {
                continue;
            }
            let document: Value = match fs::read(self.blob(&digest)) {
                Ok(bytes) => serde_json::from_slice(&bytes).ok()?,
                // Of an index, a layout may have some images only.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => return None,
            };
            let list = |key: &str| document.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
            todo.extend(list("manifests").into_iter().chain(document.get("subject").cloned()).map(|it| (it, true)));
            let content = list("layers").into_iter().chain(list("blobs")).chain(document.get("config").cloned());
            todo.extend(content.map(|it| (it, false)));
        }
        Some(found)
    }

    /// Puts a blob in place: as a reflink, else a copy; a read-only hard link where the disk is full. What is put is hashed, so that rot
    /// in the cache stays there.
    fn put(&self, digest: &Digest, size: u64, store: &Store) -> Result<(), OutputError> {
        let (to, from) = (self.blob(digest), store.blob_path(digest));
        let Some(file) = store.open(digest)? else { return Err(OutputError::Lost(*digest)) };
        if file.metadata().map_err(CacheError::at(&from))?.len() != size {
            return Err(OutputError::Lost(*digest));
        }
        let name = format!("{UNFINISHED}{}.{}", digest.hex(), std::process::id());
        let temporary = self.path.join("blobs/sha256").join(name);
        let _ = fs::remove_file(&temporary);
        let put = copied(file, &temporary).or_else(|error| {
            let _ = fs::remove_file(&temporary);
            // A link needs no room. Where bytes cannot be read or written for another reason, it would only hide that.
            let full = matches!(error.1.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            match full && fs::hard_link(&from, &temporary).is_ok() {
                true => File::open(&temporary).and_then(cache::hash).map_err(|error| (Side::Cache, error)),
                false => Err(error),
            }
        });
        let put = match put {
            // What the disk does not give back.
            Err((Side::Cache, error)) if cache::fails(&error) => None,
            Err((_, error)) => {
                let _ = fs::remove_file(&temporary);
                let said = format!("{error}, copying `{}`", from.display());
                return Err(self.io(&to)(io::Error::new(error.kind(), said)));
            }
            Ok(found) => Some(found),
        };
        if put != Some(*digest) {
            let _ = fs::remove_file(&temporary);
            store.verify(digest)?;
            return Err(OutputError::Damaged(*digest));
        }
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o444)).map_err(self.io(&to))?;
        Kept::LayoutBlobWritten.reach();
        fs::rename(&temporary, &to).map_err(self.io(&to))?;
        Kept::LayoutBlobSettled.reach();
        Ok(())
    }

    fn write(&self, name: &Path, bytes: &[u8]) -> Result<(), OutputError> {
        let path = self.path.join(name);
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&self.path).to_path_buf();
        let mut file = super::unfinished(&folder).map_err(self.io(&path))?;
        file.write_all(bytes).map_err(self.io(&path))?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(self.io(&path))?;
        Kept::LayoutDocumentWritten.reach();
        file.persist(&path).map_err(|error| OutputError::Io { path, source: error.error })?;
        Kept::LayoutDocumentSettled.reach();
        Ok(())
    }
}

/// Where something failed.
#[derive(Clone, Copy)]
enum Side {
    /// What the cache holds cannot be read.
    Cache,
    /// Something else.
    Other,
}

/// Makes a file of what is read, as a reflink where the file system has them; gives the digest of what is in it.
fn copied(from: File, to: &Path) -> Result<Digest, (Side, io::Error)> {
    let other = |error| (Side::Other, error);
    let mut out = File::options().read(true).write(true).create_new(true).open(to).map_err(other)?;
    if ioctl_ficlone(&out, &from).is_ok() {
        return cache::hash(out).map_err(|error| (Side::Cache, error));
    }
    let mut from = Copied::from(from);
    hashed(&mut from, &mut out).map_err(|error| (if from.failed() { Side::Cache } else { Side::Other }, error))
}

/// Copies, and gives the digest of what came.
fn hashed(from: &mut dyn io::Read, to: &mut dyn io::Write) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    cache::in_pieces(from, |piece| {
        hasher.update(piece);
        to.write_all(piece)
    })?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

impl Output for Layout {
    fn check(&self, _platforms: usize) -> Result<(), OutputError> {
        match super::is_occupied(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.io(&self.path)(error)),
            Ok(occupied) => {
                if occupied {
                    let marker = fs::read(self.path.join("oci-layout")).ok();
                    let marker = marker.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
                    if marker.is_none_or(|marker| marker["imageLayoutVersion"] != "1.0.0") {
                        return Err(OutputError::NotALayout { path: self.path.clone() });
                    }
                    self.index()?;
                }
            }
        }
        Ok(())
    }

    fn deliver(&self, images: &[NamedImage], store: &Store) -> Result<(), OutputError> {
        self.check(0)?;
        let blobs = self.path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(self.io(&blobs))?;
        let _lock = super::locked(&self.path).map_err(self.io(&self.path))?;

        self.write(Path::new("oci-layout"), b"{\"imageLayoutVersion\":\"1.0.0\"}")?;
        let mut seen = Seen::load(&self.path);
        let blobs_wanted: BTreeSet<(Digest, u64)> = images.iter().flat_map(|image| image.layers.clone()).collect();
        let mut absent: Vec<(Digest, u64)> =
            blobs_wanted.into_iter().filter(|(digest, size)| !seen.is_unchanged(&self.blob(digest), *size)).collect();
        absent.sort_by_key(|(digest, size)| (std::cmp::Reverse(*size), *digest));
        in_parallel(COPIES, &absent, |(digest, size)| self.put(digest, *size, store))?;
        absent.iter().for_each(|(digest, _)| seen.remember(&self.blob(digest)));
        for image in images {
            for document in image.documents() {
                self.write(&Path::new("blobs/sha256").join(document.digest.hex()), &document.bytes)?;
            }
        }
        let names: BTreeSet<&str> = images.iter().map(|image| image.name.as_str()).collect();
        let mut index = self.index()?;
        let mut descriptors = index["manifests"].as_array().cloned().unwrap_or_default();
        descriptors.retain(|it| {
            let name = it.pointer("/annotations/org.opencontainers.image.ref.name").and_then(Value::as_str);
            name.is_none_or(|name| !names.contains(name))
        });
        for image in images {
            let mut descriptor = json!(image.top().descriptor());
            descriptor["annotations"] = json!({ REF_NAME: image.name });
            if image.index.is_none()
                && let Some(only) = image.platforms.first()
            {
                descriptor["platform"] = json!({"architecture": only.platform.architecture(), "os": "linux"});
            }
            descriptors.push(descriptor);
        }
        descriptors
            .sort_by_key(|it| it.pointer("/annotations/org.opencontainers.image.ref.name").map(Value::to_string));
        index["schemaVersion"] = json!(2);
        index["mediaType"] = json!(layers::oci::INDEX);
        index["manifests"] = json!(descriptors);
        self.write(Path::new("index.json"), index.to_string().as_bytes())?;

        let kept = self.reachable(&descriptors);
        for entry in fs::read_dir(&blobs).map_err(self.io(&blobs))? {
            let entry = entry.map_err(self.io(&blobs))?;
            let digest = entry.file_name().to_str().and_then(|name| Digest::from_hex(name).ok());
            // Where it is not known what others need, all of it stays.
            if kept.as_ref().is_some_and(|kept| digest.is_none_or(|digest| !kept.contains(&digest))) {
                let _ = fs::remove_file(entry.path());
                Kept::LayoutSwept.reach();
            }
        }
        seen.save(kept.as_ref());
        Ok(())
    }
}

/// Which blobs of the layout were put there and have not been touched since: inode, size, mtime and ctime.
struct Seen {
    path: PathBuf,
    known: BTreeMap<String, [i64; 6]>,
}

impl Seen {
    fn load(layout: &Path) -> Seen {
        let path = layout.join(".imgbuild");
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Seen { path, known }
    }

    fn signature(path: &Path) -> Option<[i64; 6]> {
        let metadata = fs::symlink_metadata(path).ok()?;
        metadata.is_file().then(|| {
            [
                metadata.ino() as i64,
                metadata.len() as i64,
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ]
        })
    }

    fn is_unchanged(&self, path: &Path, size: u64) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match (self.known.get(name), Seen::signature(path)) {
            (Some(known), Some(now)) => *known == now && now[1] == size as i64,
            _ => false,
        }
    }

    fn remember(&mut self, path: &Path) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(signature) = Seen::signature(path) {
            self.known.insert(name.to_owned(), signature);
        }
    }

    /// Failing to save is no error: the next build puts the blobs anew.
    fn save(mut self, kept: Option<&BTreeSet<Digest>>) {
        let is_kept = |digest: &Digest| kept.is_none_or(|kept| kept.contains(digest));
        self.known.retain(|name, _| Digest::from_hex(name).is_ok_and(|digest| is_kept(&digest)));
        let text = json!(self.known).to_string();
        if fs::read_to_string(&self.path).is_ok_and(|found| found == text) {
            return;
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        if let Ok(mut file) = super::unfinished(folder)
            && file.write_all(text.as_bytes()).is_ok()
        {
            Kept::LayoutSeenWritten.reach();
            let _ = file.persist(&self.path);
        }
    }
}
