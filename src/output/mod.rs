//! Where finished images go.

pub(crate) mod archive;
pub(crate) mod aside;
mod layout;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cache::Store;
use layers::Digest;
use layers::oci::{BuiltImage, Document};
use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

pub use archive::Archive;
pub use layout::Layout;

/// Why an image did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A specification that names no output.
    #[error("`{0}` is not an output: use `oci:DIR`, `oci-archive:FILE` or `docker-archive:FILE`")]
    Unknown(String),
    /// A folder that is something else.
    #[error("`{path}` is not empty and not an OCI layout; choose another folder with `--output oci:DIR`")]
    NotALayout {
        /// The folder.
        path: PathBuf,
    },
    /// A format that cannot hold what was built.
    #[error("{0}")]
    Unfit(String),
    /// A blob that the cache lost.
    #[error("{0} is gone from the cache; build again")]
    Lost(Digest),
    /// A blob whose bytes are not what its name says.
    #[error("{0} is damaged in the cache; it was removed, build again")]
    Damaged(Digest),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// Reading or writing failed.
    #[error("cannot write `{path}`: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// An image under its name: one platform as a manifest, several as an index.
#[derive(Debug, Clone)]
pub struct NamedImage {
    /// Its name in the catalogue.
    pub name: String,
    /// Its platforms.
    pub platforms: Vec<BuiltImage>,
    /// The index over them, where there are several.
    pub index: Option<Document>,
    /// All layers of all platforms: digest and size in bytes.
    pub layers: Vec<(Digest, u64)>,
}

impl NamedImage {
    /// What the name stands for: the index, or the only manifest.
    pub fn top(&self) -> &Document {
        match (&self.index, self.platforms.first()) {
            (Some(index), _) => index,
            (None, Some(image)) => &image.manifest,
            (None, None) => unreachable!("an image has at least one platform"),
        }
    }

    /// All documents, those without references first.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.platforms.iter().flat_map(|image| [&image.config, &image.manifest]).chain(&self.index)
    }
}

/// Refuses to write to what is there and no file: writing goes by a rename, which would put a file in the place of a
/// link, a device or a pipe.
pub(crate) fn check_replaceable(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => {
            Err(io::Error::other("it is a link, a device, a pipe or a folder: name a file, or a new one"))
        }
        _ => Ok(()),
    }
}

/// Begins the name of a file in a layout, or beside an archive, that is not whole yet.
const UNFINISHED: &str = ".imgbuild-";

/// A file in a folder of a layout, not whole yet.
pub(crate) fn unfinished(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)
}

/// Waits until nobody else writes to a layout, and removes what writers that were killed left there. The lock goes with its
/// process. On a file system without locks nobody waits, and what is not whole stays until the blobs that no image names are removed.
pub(crate) fn locked(layout: &Path) -> io::Result<File> {
    let lock = File::create(layout.join(".lock"))?;
    if retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive)).is_ok() {
        sweep(layout);
    }
    Ok(lock)
}

fn sweep(layout: &Path) {
    for folder in ["", "blobs/sha256", "blobs/sha512"] {
        for entry in std::fs::read_dir(layout.join(folder)).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                // What cannot be removed is in nobody's way.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Whether a folder holds more than a layout that another writer has just begun: its marker comes after these.
pub(crate) fn is_occupied(folder: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !matches!(name.as_ref(), ".lock" | "blobs") && !name.starts_with(UNFINISHED) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A place for images.
pub trait Output {
    /// Finds out before the long work whether images for so many platforms can be delivered.
    fn check(&self, platforms: usize) -> Result<(), OutputError>;

    /// Delivers the images; their blobs are in the store.
    fn deliver(&self, images: &[NamedImage], store: &Store) -> Result<(), OutputError>;
}

/// An output as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputSpec {
    /// An OCI image layout in a folder.
    Layout(PathBuf),
    /// One file that is an OCI archive and a Docker archive at once.
    Archive(PathBuf),
    /// The same for `docker load`, which takes one platform.
    DockerArchive(PathBuf),
}

impl FromStr for OutputSpec {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<OutputSpec, OutputError> {
        match text.split_once(':') {
            Some((_, "")) | None => Err(OutputError::Unknown(text.into())),
            Some(("oci", path)) => Ok(OutputSpec::Layout(path.into())),
            Some(("oci-archive", path)) => Ok(OutputSpec::Archive(path.into())),
            Some(("docker-archive", path)) => Ok(OutputSpec::DockerArchive(path.into())),
            Some(_) => Err(OutputError::Unknown(text.into())),
        }
    }
}

impl OutputSpec {
    /// Opens the output.
    pub fn open(&self) -> Box<dyn Output> {
        match self {
            OutputSpec::Layout(path) => Box::new(Layout::new(path.clone())),
            OutputSpec::Archive(path) => Box::new(Archive::new(path.clone(), false)),
            OutputSpec::DockerArchive(path) => Box::new(Archive::new(path.clone(), true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_in_a_layout_goes_with_the_next_lock_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = folder.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("makes folders");
        for place in [folder.path(), &blobs] {
            unfinished(place).and_then(|file| file.keep().map_err(|error| error.error)).expect("is left");
            std::fs::write(place.join("somebody's"), "mine").expect("writes");
        }
        std::fs::write(folder.path().join(".imgbuild"), "{}").expect("writes");
        let lock = locked(folder.path()).expect("locks");
        let names = |place: &Path| {
            let names = std::fs::read_dir(place).expect("lists").map(|it| it.expect("is there").file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(folder.path()), [".imgbuild", ".lock", "blobs", "somebody's"].map(Into::into).into());
        assert_eq!(names(&blobs), ["somebody's"].map(Into::into).into());
        let other = || File::create(folder.path().join(".lock")).expect("opens").try_lock().is_ok();
        assert!(!other(), "one writer at a time");
        drop(lock);
        assert!(other());
    }
}
