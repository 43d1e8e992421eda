//! One tar file that old and new Docker, podman, containerd and skopeo all load: an OCI layout with `index.json`, and
//! Docker's `manifest.json` pointing at the same blobs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;

use cache::{CacheError, Copied, Store};
use layers::Digest;
use layers::encode::EPOCH;
use serde_json::{Value, json};

use super::check_replaceable;
use super::{NamedImage, Output, OutputError};
use crate::failpoint::Kept;

/// An archive file.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    for_docker: bool,
}

impl Archive {
    /// The archive in `path`; `for_docker` refuses what `docker load` cannot take.
    pub fn new(path: PathBuf, for_docker: bool) -> Archive {
        Archive { path, for_docker }
    }

    fn io(&self) -> impl Fn(io::Error) -> OutputError + '_ {
        |source| OutputError::Io { path: self.path.clone(), source }
    }
}

impl Output for Archive {
    fn check(&self, platforms: usize) -> Result<(), OutputError> {
        if self.for_docker && platforms > 1 {
            let why = "a docker-archive holds one platform: choose it with `--platform`, or use `oci-archive:FILE`";
            return Err(OutputError::Unfit(why.into()));
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        match folder {
            Some(folder) if !folder.is_dir() => Err(self.io()(io::ErrorKind::NotFound.into())),
            _ if self.path.is_dir() => Err(self.io()(io::ErrorKind::IsADirectory.into())),
            _ => check_replaceable(&self.path).map_err(self.io()),
        }
    }

    fn deliver(&self, images: &[NamedImage], store: &Store) -> Result<(), OutputError> {
        self.check(images.iter().map(|image| image.platforms.len()).max().unwrap_or(0))?;
        let file = super::aside::begin(&self.path).map_err(self.io())?;
        let mut tar = tar::Builder::new(BufWriter::with_capacity(256 << 10, file));
        let write = |result: io::Result<()>| result.map_err(self.io());

        let mut descriptors = Vec::new();
        let mut docker = Vec::new();
        for image in images {
            let mut descriptor = json!(image.top().descriptor());
            descriptor["annotations"] = json!({
                "io.containerd.image.name": format!("docker.io/library/{}:latest", image.name),
                "org.opencontainers.image.ref.name": image.name,
            });
            descriptors.push(descriptor);
            if let [only] = image.platforms.as_slice() {
                let manifest: Value = serde_json::from_slice(&only.manifest.bytes).unwrap_or_default();
                let paths: Vec<String> = manifest["layers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|layer| layer["digest"].as_str()?.parse::<Digest>().ok())
                    .map(|digest| blob_name(&digest))
                    .collect();
                docker.push(json!({
                    "Config": blob_name(&only.config.digest),
                    "RepoTags": [format!("{}:latest", image.name)],
                    "Layers": paths,
                }));
            }
        }
        write(append(&mut tar, "oci-layout", &mut b"{\"imageLayoutVersion\":\"1.0.0\"}".as_slice(), 30))?;
        let index = json!({"schemaVersion": 2, "mediaType": layers::oci::INDEX, "manifests": descriptors}).to_string();
        write(append(&mut tar, "index.json", &mut index.as_bytes(), index.len() as u64))?;
        if docker.len() == images.len() {
            let manifest = json!(docker).to_string();
            write(append(&mut tar, "manifest.json", &mut manifest.as_bytes(), manifest.len() as u64))?;
        }
        let mut written = BTreeSet::new();
        for image in images {
            for document in image.documents() {
                if written.insert(document.digest) {
                    let size = document.bytes.len() as u64;
                    write(append(&mut tar, &blob_name(&document.digest), &mut document.bytes.as_slice(), size))?;
                }
            }
            for (digest, size) in &image.layers {
                if !written.insert(*digest) {
                    continue;
                }
                let Some(blob) = store.open(digest)? else { return Err(OutputError::Lost(*digest)) };
                let mut hashing = Hashing { inner: Copied::from(blob), hasher: sha2::Digest::new() };
                let appended = append(&mut tar, &blob_name(digest), &mut hashing, *size);
                match appended {
                    // What the disk does not give back.
                    Err(error) if hashing.inner.failed() && cache::fails(&error) => {
                        store.remove(digest)?;
                        return Err(OutputError::Damaged(*digest));
                    }
                    Err(error) if hashing.inner.failed() => {
                        return Err(CacheError::at(&store.blob_path(digest))(error).into());
                    }
                    appended => write(appended)?,
                }
                if hashing.finish() != *digest {
                    store.remove(digest)?;
                    return Err(OutputError::Damaged(*digest));
                }
            }
        }
        let buffer = tar.into_inner().map_err(self.io())?;
        let file = buffer.into_inner().map_err(|error| self.io()(error.into_error()))?;
        use std::os::unix::fs::PermissionsExt as _;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(self.io())?;
        Kept::ArchiveWritten.reach();
        file.persist(&self.path).map_err(|error| self.io()(error.error))?;
        Kept::ArchiveSettled.reach();
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &mut dyn Read, size: u64) -> io::Result<()> {
    tar.append(&header(name, size)?, bytes)
}

/// The header of a file in an archive of images, as the same file has it every time.
pub(crate) fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(EPOCH as u64);
    header.set_cksum();
    Ok(header)
}

/// Bytes that leave the process are hashed on their way.
struct Hashing {
    inner: Copied<File>,
    hasher: sha2::Sha256,
}

impl Hashing {
    fn finish(self) -> Digest {
        let found: [u8; 32] = sha2::Digest::finalize(self.hasher).into();
        Digest::from_bytes(found)
    }
}

impl Read for Hashing {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        sha2::Digest::update(&mut self.hasher, &out[..count]);
        Ok(count)
    }
}
