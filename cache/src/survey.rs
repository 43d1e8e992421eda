//! What is in a cache, how much disk it takes, and when it was last of use.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use layers::{Digest, Key};

use crate::locks::{GATE, IN_USE};
use crate::{CacheError, Store, TAG, ledger};

/// What an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A folder, or file, of a version of this program that keeps its entries elsewhere.
    OtherVersion,
    /// A download that is not complete.
    Partial,
    /// What is remembered of the files of a build context: they are read again.
    Stats,
    /// The log of a command, or a folder that commands keep.
    Command,
    /// A downloaded archive, or a document of an image: had again from a mirror, or written again at once.
    Archive,
    /// A fragment, its index, or whatever else a record names: made again from archives.
    Fragment,
    /// A layer: made again from fragments.
    Layer,
    /// A record of the ledger.
    Record,
}

/// The last use of what has a time that is still to come: a clock was wrong, and nobody knows.
pub(crate) const AHEAD: i64 = i64::MIN;

/// One thing that can be removed.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) path: PathBuf,
    pub(crate) class: Class,
    /// Bytes on disk.
    pub(crate) size: u64,
    /// The number of its folder among those of its bucket that have two digits.
    pub(crate) folder: Option<usize>,
    /// When it, or something that is made of it, was last asked for: seconds since 1970, or [`AHEAD`].
    pub(crate) used: i64,
}

/// A temporary file or folder. While a collector has the cache, nobody is going to finish it.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) path: PathBuf,
    pub(crate) is_folder: bool,
    /// Bytes on disk.
    pub(crate) size: u64,
}

/// A folder of two digits. One without entries is of no use.
#[derive(Debug)]
pub(crate) struct Fan {
    pub(crate) path: PathBuf,
    /// How many items are in it.
    pub(crate) entries: usize,
    /// Bytes on disk that it takes itself.
    pub(crate) size: u64,
}

/// Everything that can be removed.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) items: Vec<Item>,
    pub(crate) folders: Vec<Fan>,
    /// Counted here alone: beside a running build they come and go between two looks.
    pub(crate) leftovers: Vec<Leftover>,
    /// Bytes on disk of what no collection removes: locks and the buckets' own folders, say.
    pub(crate) fixed: u64,
    /// Bytes on disk of what is somebody else's.
    pub(crate) others: u64,
}

/// What is named by a record, for `gc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// One thing that was made as the record's text says: whoever wants that thing wants the record, and what it was made of.
    Maker,
    /// Several things that belong together. Others have some of them as well: that one is wanted says nothing about the rest.
    Holder,
    /// What was found out, which is true whether or not the things are here.
    Memo,
}

impl Role {
    fn of(kind: &str) -> Role {
        match kind {
            "image" | "foundation" | "latest" | "left" | "stage" | "layer-listing" => Role::Holder,
            "registry-pushed" | "registry-holders" | "beginning" | "gate" | "imports" | "package-conflicts"
            | "wheel-collisions" | "took" => Role::Memo,
            // Layers, fragments of all kinds, what is known of one: `members`, say.
            _ => Role::Maker,
        }
    }
}

struct Node {
    item: Item,
    /// The blobs that a record names or that its key was hashed from.
    blobs: Vec<usize>,
    /// The records that say how a blob came to be.
    makers: Vec<usize>,
}

impl Store {
    /// Looks at everything.
    pub(crate) fn survey(&self) -> Result<Survey, CacheError> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut folders: Vec<Fan> = Vec::new();
        let mut blobs: HashMap<Digest, usize> = HashMap::new();
        let mut others = self.each("blobs", &mut folders, |item, digest| {
            blobs.insert(digest, nodes.len());
            nodes.push(Node { item, blobs: Vec::new(), makers: Vec::new() });
            Ok(())
        })?;
        others += self.each("ledger", &mut folders, |item, digest| {
            let recorded = match fs::read(&item.path) {
                Ok(bytes) => ledger::parse(&bytes, &Key(digest)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(CacheError::at(&item.path)(error)),
            };
            let at = nodes.len();
            let mut node = Node { item: Item { class: Class::Record, ..item }, blobs: Vec::new(), makers: Vec::new() };
            match recorded {
                Some(recorded) => {
                    let kind = recorded.text.split(' ').next().unwrap_or_default();
                    let class = match kind {
                        "image" => Class::Archive,
                        "layer" => Class::Layer,
                        _ => Class::Fragment,
                    };
                    let role = Role::of(kind);
                    if role != Role::Memo {
                        for blob in digests(&recorded.record).iter().filter_map(|digest| blobs.get(digest)) {
                            node.blobs.push(*blob);
                            nodes[*blob].item.class = nodes[*blob].item.class.max(class);
                            if role == Role::Maker {
                                nodes[*blob].makers.push(at);
                            }
                        }
                        let text = digests(recorded.text.as_bytes());
                        node.blobs.extend(text.iter().filter_map(|digest| blobs.get(digest)));
                    }
                }
                // Damaged: nobody will miss it.
                None => node.item.used = 0,
            }
            nodes.push(node);
            Ok(())
        })?;
        flow(&mut nodes);
        let items = nodes.into_iter().map(|node| node.item).collect();
        let mut survey = Survey { items, folders, others, ..Survey::default() };
        survey.fixed += match fs::metadata(self.root()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            found => disk(&found.map_err(CacheError::at(self.root()))?),
        };
        let partial = self.bucket("partial");
        for (path, metadata) in list(&partial)? {
            survey.items.push(item(path, Class::Partial, &metadata));
        }
        let commands = self.bucket("commands");
        // Another user's, who lets nobody look into it.
        let is_others = fs::read_dir(&commands).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        for (path, metadata) in if is_others { Vec::new() } else { list(&commands)? } {
            let size = size(&path, &metadata)?;
            survey.items.push(Item { size, ..item(path, Class::Command, &metadata) });
        }
        for (path, metadata) in list(&self.bucket("stat"))? {
            survey.items.push(item(path, Class::Stats, &metadata));
        }
        for (path, metadata) in list(&self.scratch())? {
            survey.leftovers.push(leftover(path, &metadata)?);
        }
        let own = ["blobs", "ledger", "partial", "stat", "commands", "tmp"].map(|name| self.bucket(name));
        let [tag, in_use, gate] = [TAG, IN_USE, GATE].map(|name| self.root().join(name));
        let stays = [tag, in_use, gate, self.usage_path(), self.bucket("locks")];
        for (path, metadata) in list(self.root())? {
            if own.contains(&path) {
                survey.fixed += disk(&metadata);
                continue;
            }
            if metadata.is_file() && is_temporary(&path) {
                survey.leftovers.push(leftover(path, &metadata)?);
                continue;
            }
            if is_other_version(&path) {
                let size = size(&path, &metadata)?;
                survey.items.push(Item { size, ..item(path, Class::OtherVersion, &metadata) });
            } else if stays.contains(&path) {
                survey.fixed += size(&path, &metadata)?;
            } else {
                survey.others += size_of_others(&path, &metadata);
            }
        }
        Ok(survey)
    }

    /// Bytes on disk of downloads that are not complete.
    pub fn partial_size(&self) -> Result<u64, CacheError> {
        tree_size(&self.bucket("partial"))
    }

    /// Whether there are temporary files: of builders that run, or of some that were killed.
    pub fn has_temporary(&self) -> Result<bool, CacheError> {
        let scratch = self.scratch();
        match fs::read_dir(&scratch) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            entries => Ok(entries.map_err(CacheError::at(&scratch))?.next().is_some()),
        }
    }

    /// Calls `each` for every entry of a bucket with folders of two digits, and adds these. Gives the bytes on disk of all else.
    fn each(
        &self,
        bucket: &str,
        folders: &mut Vec<Fan>,
        mut each: impl FnMut(Item, Digest) -> Result<(), CacheError>,
    ) -> Result<u64, CacheError> {
        let mut others = 0;
        for (folder, metadata) in list(&self.bucket(bucket))? {
            if !is_fan(&folder, &metadata) {
                others += size_of_others(&folder, &metadata);
                continue;
            }
            let (entries, number) = (list(&folder)?, folders.len());
            folders.push(Fan { path: folder, entries: entries.len(), size: disk(&metadata) });
            for (path, metadata) in entries {
                match named(&path, &metadata) {
                    Some(digest) => {
                        each(Item { folder: Some(number), ..item(path, Class::Archive, &metadata) }, digest)?;
                    }
                    None => others += size_of_others(&path, &metadata),
                }
            }
        }
        Ok(others)
    }
}

/// The entries of a bucket with folders of two digits.
pub(crate) fn entries(bucket: &Path) -> Result<Vec<(PathBuf, Digest, fs::Metadata)>, CacheError> {
    let mut found = Vec::new();
    for (folder, _) in list(bucket)?.into_iter().filter(|(path, metadata)| is_fan(path, metadata)) {
        let of_folder = list(&folder)?.into_iter();
        found.extend(
            of_folder.filter_map(|(path, metadata)| named(&path, &metadata).map(|name| (path, name, metadata))),
        );
    }
    Ok(found)
}

/// Whether this is a folder of two digits. What else lies in a bucket is none of ours.
fn is_fan(path: &Path, metadata: &fs::Metadata) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    metadata.is_dir() && name.len() == 2 && name.iter().all(u8::is_ascii_hexdigit)
}

/// The name of an entry: of a blob, or of a record. What has another name, or is no file, is none of ours.
fn named(path: &Path, metadata: &fs::Metadata) -> Option<Digest> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| metadata.is_file())?;
    Digest::from_hex(name).ok()
}

/// Lets what was used carry what it needs: an image its layers and archives, a layer the record of its making, that the
/// fragments, those their archives. Each entry gets the time of the latest that leads to it.
fn flow(nodes: &mut [Node]) {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(nodes[*at].item.used));
    let mut done = vec![false; nodes.len()];
    let mut todo: Vec<usize> = Vec::new();
    for start in order {
        let used = nodes[start].item.used;
        todo.push(start);
        while let Some(at) = todo.pop() {
            if std::mem::replace(&mut done[at], true) {
                continue;
            }
            nodes[at].item.used = used;
            todo.extend(nodes[at].blobs.iter().chain(&nodes[at].makers));
        }
    }
}

/// Every digest that a text names.
fn digests(text: &[u8]) -> Vec<Digest> {
    const PREFIX: &[u8] = b"sha256:";
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].iter().position(|&byte| byte == b's').map(|start| at + start) {
        at = start + 1;
        if let Some(hex) = text[start..].strip_prefix(PREFIX).and_then(|rest| rest.get(..64))
            && let Ok(digest) =
                std::str::from_utf8(hex).map_err(drop).and_then(|hex| Digest::from_hex(hex).map_err(drop))
        {
            found.push(digest);
            at = start + PREFIX.len() + 64;
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn item(path: PathBuf, class: Class, metadata: &fs::Metadata) -> Item {
    Item { path, class, size: disk(metadata), folder: None, used: used(metadata) }
}

fn used(metadata: &fs::Metadata) -> i64 {
    match metadata.modified().is_ok_and(ledger::is_ahead) {
        true => AHEAD,
        false => metadata.mtime(),
    }
}

fn leftover(path: PathBuf, metadata: &fs::Metadata) -> Result<Leftover, CacheError> {
    let size = size(&path, metadata)?;
    Ok(Leftover { path, is_folder: metadata.is_dir(), size })
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp"))
}

/// Bytes on disk of a file, or of a folder with all that is in it.
fn size(path: &Path, metadata: &fs::Metadata) -> Result<u64, CacheError> {
    Ok(disk(metadata) + if metadata.is_dir() { tree_size(path)? } else { 0 })
}

/// The same of what is somebody else's, as far as it may be read.
fn size_of_others(path: &Path, metadata: &fs::Metadata) -> u64 {
    size(path, metadata).unwrap_or_else(|_| disk(metadata))
}

/// Bytes on disk: what the ceiling is about.
fn disk(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

/// What a folder holds, sorted by name; empty where there is none. Files that go while it is read are left out.
pub(crate) fn list(folder: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, CacheError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(CacheError::at(folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CacheError::at(folder))?;
        match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            metadata => {
                let path = entry.path();
                let metadata = metadata.map_err(CacheError::at(&path))?;
                found.push((path, metadata));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// Bytes on disk of all that is in a folder, which may be tens of thousands of files.
fn tree_size(folder: &Path) -> Result<u64, CacheError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(CacheError::at(folder))?,
    };
    let mut size = 0;
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CacheError::at(folder))?;
        match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(CacheError::at(&entry.path())(error)),
            Ok(metadata) => {
                size += disk(&metadata);
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
    }
    // One is open at a time, however deep they lie.
    folders.iter().try_fold(size, |size, folder| Ok(size + tree_size(folder)?))
}

/// Whether this is a bucket of another version of this program: `blobs-v2`, say. `stat-v1` was a file.
pub(crate) fn is_other_version(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((bucket, version)) = name.rsplit_once("-v") else { return false };
    crate::BUCKETS.contains(&bucket) && version.parse::<u32>().is_ok_and(|version| version != crate::version(bucket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_wherever_they_stand() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(digests(format!("ssha256:{a}\"{b}{b} sha256:00").as_bytes()), {
            let mut both = vec![a, b];
            both.sort_unstable();
            both
        });
        assert_eq!(digests(b"sha256:"), []);
        assert_eq!(digests(b""), []);
    }
}
