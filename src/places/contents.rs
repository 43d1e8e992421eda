//! What layers hold: listings of their files, with the Debian packages and Python distributions that they tell of.
//!
//! A layer is read once; its listing stays in the cache under the layer's digest. Nothing is unpacked.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use cache::Store;
use layers::encode::Kind;
use layers::format::tar::{Reader, TarItem};
use layers::format::{Limits, decompress};
use layers::{Digest, KeyHasher};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{Held, PlaceError, Reach};
use crate::registry::document::Descriptor;

/// The version of [`Listing`]'s encoding and of what it holds.
const VERSION: u32 = 1;
/// The largest file that is read for the packages it tells of, bytes.
const TOLD: u64 = 64 << 20;
/// dpkg's database where it is one file.
pub const STATUS: &str = "/var/lib/dpkg/status";

/// A file, directory, link or device of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// `file`, `directory`, `symlink`, `device` or `fifo`.
    pub kind: String,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner's user id.
    pub uid: u32,
    /// Owner's group id.
    pub gid: u32,
    /// Bytes of a file; 0 for everything else.
    pub size: u64,
    /// The content of a file.
    pub digest: Option<Digest>,
    /// The target of a symbolic link, the numbers of a device.
    pub target: Option<String>,
    /// Names of extended attributes, each with the digest of its value.
    pub xattrs: BTreeMap<String, Digest>,
}

impl Item {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == "directory"
    }

    /// Mode, owner, size and content in one line.
    pub fn line(&self) -> String {
        let mut line = format!("{} {:04o} {}:{}", self.kind, self.mode, self.uid, self.gid);
        if let Some(digest) = &self.digest {
            line += &format!(" {} {}", self.size, &digest.hex()[..12]);
        }
        if let Some(target) = &self.target {
            line += &format!(" -> {target}");
        }
        for name in self.xattrs.keys() {
            line += &format!(" +{name}");
        }
        line
    }
}

/// A Debian package or Python distribution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture; empty for Python.
    pub architecture: String,
}

/// What a layer holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Everything by path.
    pub items: BTreeMap<String, Item>,
    /// Paths that it deletes below.
    pub whiteouts: Vec<String>,
    /// Directories whose content below it deletes.
    pub opaques: Vec<String>,
    /// Debian packages by the file that tells of them.
    pub debian: BTreeMap<String, Vec<Package>>,
    /// Python distributions by the file that tells of them.
    pub python: BTreeMap<String, Package>,
}

/// The merged files of several layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Everything by path.
    pub items: BTreeMap<String, Item>,
    /// Paths that a layer deletes although no layer before it has them.
    pub deleted: Vec<String>,
    pub(crate) debian: BTreeMap<String, Vec<Package>>,
    pub(crate) python: BTreeMap<String, Package>,
}

impl Files {
    /// Applies layers in order (OCI image specification, layer.md).
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a Listing>) -> Files {
        let mut files = Files::default();
        for layer in layers {
            files.apply(layer);
        }
        files
    }

    /// Applies one more layer.
    pub fn apply(&mut self, layer: &Listing) {
        for path in &layer.whiteouts {
            if !self.remove(path, true) {
                self.deleted.push(path.clone());
            }
        }
        for path in &layer.opaques {
            self.remove(path, false);
        }
        for (path, item) in &layer.items {
            let before = self.items.insert(path.clone(), item.clone());
            if before.is_some_and(|before| before.is_dir()) && !item.is_dir() {
                self.remove(path, false);
            }
            self.debian.remove(path);
            self.python.remove(path);
            self.deleted.retain(|deleted| deleted != path);
        }
        self.debian.extend(layer.debian.clone());
        self.python.extend(layer.python.clone());
    }

    /// Removes what is below a path, and the path itself where `whole`; says whether anything was there.
    fn remove(&mut self, path: &str, whole: bool) -> bool {
        let folder = path.trim_end_matches('/');
        let (first, end) = (format!("{folder}/"), format!("{folder}0"));
        let mut gone: Vec<String> =
            self.items.range(first..end).map(|(path, _)| path.clone()).filter(|it| it != path).collect();
        if whole && self.items.contains_key(path) {
            gone.push(path.to_owned());
        }
        for path in &gone {
            self.items.remove(path);
            self.debian.remove(path);
            self.python.remove(path);
        }
        !gone.is_empty()
    }

    /// Debian packages that are installed, sorted.
    pub fn debian(&self) -> Vec<Package> {
        let mut found: Vec<Package> = self.debian.values().flatten().cloned().collect();
        found.sort();
        found.dedup();
        found
    }

    /// Python distributions, sorted.
    pub fn python(&self) -> Vec<Package> {
        let mut found: Vec<Package> = self.python.values().cloned().collect();
        found.sort();
        found.dedup();
        found
    }
}

impl Reach<'_> {
    /// What a layer of an image holds; the layer is fetched where it is only in a registry.
    pub fn listing(&self, held: &Held, layer: &Descriptor) -> Result<Listing, PlaceError> {
        let mut hasher = KeyHasher::new("layer-listing", VERSION);
        hasher.field("layer", layer.digest);
        let (key, text) = hasher.finish();
        if let Some(found) = recall(self.store, &key)? {
            return Ok(found);
        }
        let name = layer.digest.to_string();
        if !held.supply.has(layer)? {
            let from = held.supply.origins.get(&layer.digest).and_then(|it| it.first());
            let from = from.ok_or(crate::registry::RegistryError::Lost(layer.digest))?;
            let client = self.registries.client();
            self.registries.wait(client.blob_to_store(from, layer, self.store, self.observer))?;
        }
        // Read twice: verified first, so that nothing is parsed that is not what its digest says.
        held.supply.copy(layer, &mut std::io::sink())?;
        let file = held.supply.file(layer)?.ok_or(crate::registry::RegistryError::Lost(layer.digest))?;
        let wrong = |why: String| PlaceError::Content { place: name.clone(), why };
        let listing = read(file).map_err(|error| wrong(error.to_string()))?;
        let bytes = postcard::to_stdvec(&listing).map_err(|error| wrong(error.to_string()))?;
        let blob = self.store.put(&bytes)?;
        self.store.keep(&key, &text, &blob.digest)?;
        Ok(listing)
    }
}

fn recall(store: &Store, key: &layers::Key) -> Result<Option<Listing>, PlaceError> {
    let Some(record) = store.find(key)? else { return Ok(None) };
    let Ok(digest) = serde_json::from_slice::<Digest>(&record) else { return Ok(None) };
    Ok(store.read(&digest)?.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
}

/// Reads a layer.
fn read(file: impl Read + Send) -> Result<Listing, layers::format::FormatError> {
    let limits = Limits::default();
    let plain = decompress(BufReader::with_capacity(256 << 10, file), &limits)?;
    let mut reader = Reader::oci_layer(plain, &limits);
    let mut listing = Listing::default();
    while let Some(item) = reader.next_item()? {
        let entry = match item {
            TarItem::Whiteout { path } => {
                listing.whiteouts.push(path.to_string());
                continue;
            }
            TarItem::Opaque { dir } => {
                listing.opaques.push(dir.to_string());
                continue;
            }
            TarItem::Entry(entry) => entry,
        };
        let path = entry.path.to_string();
        let mut item = Item {
            kind: "file".into(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size: 0,
            digest: None,
            target: None,
            xattrs: entry.xattrs.iter().map(|(name, value)| (name.clone(), Digest::of(value))).collect(),
        };
        // What an earlier entry of the same path told is gone with it.
        listing.debian.remove(&path);
        listing.python.remove(&path);
        match &entry.kind {
            Kind::File { size } => {
                let teller = Teller::of(&path).filter(|_| *size <= TOLD);
                let (digest, bytes) = content(&mut reader, teller.is_some())?;
                (item.size, item.digest) = (*size, Some(digest));
                match teller {
                    Some(Teller::Debian) => {
                        listing.debian.insert(path.clone(), debian(&String::from_utf8_lossy(&bytes)));
                    }
                    Some(Teller::Python) => {
                        if let Some(found) = python(&String::from_utf8_lossy(&bytes)) {
                            listing.python.insert(path.clone(), found);
                        }
                    }
                    None => {}
                }
            }
            Kind::Dir => item.kind = "directory".into(),
            Kind::Symlink { target } => {
                (item.kind, item.target) = ("symlink".into(), Some(target.clone()));
            }
            Kind::Hardlink { target } => match listing.items.get(target.as_str()) {
                // One file by two names: both are what it is.
                Some(first) => item = first.clone(),
                None => item.target = Some(target.to_string()),
            },
            Kind::CharDevice { major, minor } => {
                (item.kind, item.target) = ("device".into(), Some(format!("c {major}:{minor}")));
            }
            Kind::BlockDevice { major, minor } => {
                (item.kind, item.target) = ("device".into(), Some(format!("b {major}:{minor}")));
            }
            Kind::Fifo => item.kind = "fifo".into(),
        }
        listing.items.insert(path, item);
    }
    Ok(listing)
}

fn content(reader: &mut impl Read, keep: bool) -> Result<(Digest, Vec<u8>), layers::format::FormatError> {
    let (mut hasher, mut kept) = (sha2::Sha256::new(), Vec::new());
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = reader.read(&mut piece).map_err(layers::format::FormatError::from)?;
        if count == 0 {
            let digest: [u8; 32] = hasher.finalize().into();
            return Ok((Digest::from_bytes(digest), kept));
        }
        hasher.update(&piece[..count]);
        if keep {
            kept.extend_from_slice(&piece[..count]);
        }
    }
}

/// Files that tell of packages.
enum Teller {
    Debian,
    Python,
}

impl Teller {
    fn of(path: &str) -> Option<Teller> {
        if path == STATUS || path.starts_with("/var/lib/dpkg/status.d/") && !path.ends_with(".md5sums") {
            return Some(Teller::Debian);
        }
        let mut parts = path.rsplit('/');
        let (file, folder) = (parts.next()?, parts.next()?);
        let python =
            file == "METADATA" && folder.ends_with(".dist-info") || file == "PKG-INFO" && folder.ends_with(".egg-info");
        python.then_some(Teller::Python)
    }
}

/// Packages of dpkg's database that are installed (deb-control: paragraphs of fields).
fn debian(text: &str) -> Vec<Package> {
    let mut found = Vec::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            let lines = paragraph.lines().filter(|line| !line.starts_with([' ', '\t']));
            lines.filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        let text = |name: &str| field(name).map(|(_, value)| value.trim().to_owned());
        let installed = text("Status").is_none_or(|status| status.ends_with(" installed"));
        if let (Some(name), Some(version), true) = (text("Package"), text("Version"), installed) {
            found.push(Package { name, version, architecture: text("Architecture").unwrap_or_default() });
        }
    }
    found
}

/// The distribution of a METADATA file (core metadata: a header as in mail).
fn python(text: &str) -> Option<Package> {
    let header = text.lines().take_while(|line| !line.trim().is_empty());
    let (mut name, mut version) = (None, None);
    for (key, value) in header.filter_map(|line| line.split_once(':')) {
        match key.trim().to_ascii_lowercase().as_str() {
            "name" if name.is_none() => name = Some(value.trim().to_owned()),
            "version" if version.is_none() => version = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    Some(Package { name: name?, version: version?, architecture: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut out = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(if *kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_600_000_000);
            if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
                header.set_size(0);
                out.append_link(&mut header, path, content).expect("appends");
            } else {
                header.set_size(content.len() as u64);
                out.append_data(&mut header, path, content.as_bytes()).expect("appends");
            }
        }
        out.into_inner().expect("ends")
    }

    fn shown(files: &Files) -> Vec<String> {
        files.items.iter().map(|(path, item)| format!("{path} {}", item.line())).collect()
    }

    #[test]
    fn layers_are_merged_as_engines_merge_them() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let below = read(&*tar(&[
            ("a/", Directory, ""),
            ("a/x", Regular, "1"),
            ("a/y", Regular, "2"),
            ("a-b", Regular, "3"),
            ("l", Symlink, "a/x"),
            ("var/lib/dpkg/status", Regular, "Package: p\nStatus: install ok installed\nVersion: 1\n\nPackage: q\nStatus: deinstall ok config-files\nVersion: 2\n"),
            ("s/d.dist-info/METADATA", Regular, "Metadata-Version: 2.1\nName: D\nVersion: 3\n\nName: not this\n"),
        ]))
        .expect("reads");
        let above = read(&*tar(&[
            ("a/.wh.x", Regular, ""),
            (".wh.l", Regular, ""),
            (".wh.never", Regular, ""),
            ("b", Regular, "4"),
            ("c", Link, "b"),
        ]))
        .expect("reads");
        let files = Files::of([&below, &above]);
        let hash = |text: &str| Digest::of(text.as_bytes()).hex()[..12].to_owned();
        let shown = shown(&files);
        assert_eq!(
            shown[..5],
            [
                "/a directory 0755 0:0".to_owned(),
                format!("/a-b file 0644 0:0 1 {}", hash("3")),
                format!("/a/y file 0644 0:0 1 {}", hash("2")),
                format!("/b file 0644 0:0 1 {}", hash("4")),
                format!("/c file 0644 0:0 1 {}", hash("4")),
            ]
        );
        assert_eq!(files.deleted, ["/never"]);
        let names = |found: Vec<Package>| found.into_iter().map(|it| format!("{} {}", it.name, it.version));
        assert_eq!(names(files.debian()).collect::<Vec<_>>(), ["p 1"]);
        assert_eq!(names(files.python()).collect::<Vec<_>>(), ["D 3"]);
        let replaced = read(&*tar(&[("a", Regular, "now a file"), (".wh.var", Regular, "")])).expect("reads");
        let files = Files::of([&below, &replaced]);
        assert!(!files.items.contains_key("/a/x") && files.items.contains_key("/a-b"));
        assert!(files.debian().is_empty());
    }
}
