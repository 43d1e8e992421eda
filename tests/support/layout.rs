//! OCI layouts, read without imgbuild's own code, and the rules that every layer must keep.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// An OCI image layout.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
}

/// A single-platform image of a layout, its blobs verified.
#[derive(Debug)]
pub struct Image {
    pub platform: String,
    pub digest: String,
    pub manifest: Value,
    pub config: Value,
    pub layers: Vec<Layer>,
}

/// A layer with its tar in memory.
#[derive(Debug)]
pub struct Layer {
    pub digest: String,
    pub compressed: Vec<u8>,
    pub tar: Vec<u8>,
}

/// One member of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub path: String,
    pub kind: tar::EntryType,
    pub mode: u32,
    pub owner: (u64, u64),
    pub mtime: u64,
    pub link: Option<String>,
    pub size: u64,
    pub sha256: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Layout {
    pub fn open(root: &Path) -> Layout {
        let marker: Value = serde_json::from_slice(&fs::read(root.join("oci-layout")).unwrap()).unwrap();
        assert_eq!(marker["imageLayoutVersion"], "1.0.0");
        Layout { root: root.into() }
    }

    pub fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.root.join("index.json")).unwrap()).unwrap()
    }

    /// Names and digests.
    pub fn names(&self) -> BTreeMap<String, String> {
        let name = |it: &Value| it["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned();
        let list = self.index()["manifests"].as_array().unwrap().clone();
        list.iter().map(|it| (name(it), it["digest"].as_str().unwrap().to_owned())).collect()
    }

    /// A blob, which must be what its descriptor says.
    pub fn blob(&self, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = fs::read(self.root.join("blobs").join(digest.replace(':', "/"))).unwrap();
        assert_eq!(sha256(&bytes), digest);
        assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().unwrap(), "{digest}");
        bytes
    }

    fn document(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(&self.blob(descriptor)).unwrap()
    }

    /// An image by name: one entry a platform.
    pub fn image(&self, name: &str) -> Vec<Image> {
        let index = self.index();
        let found = index["manifests"].as_array().unwrap().iter();
        let found: Vec<&Value> =
            found.filter(|it| it["annotations"]["org.opencontainers.image.ref.name"] == name).collect();
        assert_eq!(found.len(), 1, "the index names `{name}` once: {index:#}");
        let top = self.document(found[0]);
        assert_eq!(top["mediaType"], found[0]["mediaType"]);
        match top["manifests"].as_array() {
            Some(list) => list.iter().map(|it| self.single(it)).collect(),
            None => vec![self.single(found[0])],
        }
    }

    fn single(&self, descriptor: &Value) -> Image {
        let manifest = self.document(descriptor);
        let config = self.document(&manifest["config"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let platform = format!("{}/{}", text(&config["os"]), text(&config["architecture"]));
        if let Some(said) = descriptor.get("platform") {
            assert_eq!(platform, format!("{}/{}", text(&said["os"]), text(&said["architecture"])));
            assert_eq!(said.get("variant"), config.get("variant"), "index and configuration agree");
        }
        let layers = manifest["layers"].as_array().unwrap();
        let layers = layers.iter().map(|descriptor| {
            assert_eq!(descriptor["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
            let compressed = self.blob(descriptor);
            let mut tar = Vec::new();
            MultiGzDecoder::new(compressed.as_slice()).read_to_end(&mut tar).unwrap();
            Layer { digest: text(&descriptor["digest"]), compressed, tar }
        });
        Image { platform, digest: text(&descriptor["digest"]), layers: layers.collect(), manifest, config }
    }
}

impl Image {
    /// What a file holds, by its path without a slash in front; one of the layers must have it.
    #[track_caller]
    pub fn content(&self, path: &str) -> Vec<u8> {
        for layer in &self.layers {
            for entry in tar::Archive::new(layer.tar.as_slice()).entries().unwrap() {
                let mut entry = entry.unwrap();
                if entry.path().unwrap().to_str() == Some(path) {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).unwrap();
                    return bytes;
                }
            }
        }
        panic!("no layer holds `{path}`")
    }

    /// Checks what the specification and the runtimes ask of an image; gives what is wrong.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let diff_ids: Vec<&str> =
            self.config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        let real: Vec<String> = self.layers.iter().map(|layer| sha256(&layer.tar)).collect();
        if diff_ids != real {
            faults.push(format!("diff_ids {diff_ids:?} are not the layers' {real:?}"));
        }
        let history = self.config["history"].as_array().unwrap();
        let made = history.iter().filter(|it| it["empty_layer"] != true).count();
        if made != diff_ids.len() {
            faults.push(format!("{made} entries of history made a layer, there are {} layers", diff_ids.len()));
        }
        for (at, layer) in self.layers.iter().enumerate() {
            faults.extend(layer.faults().into_iter().map(|fault| format!("layer {at} ({}): {fault}", layer.digest)));
        }
        faults
    }
}

impl Layer {
    pub fn members(&self) -> Vec<Member> {
        let mut archive = tar::Archive::new(self.tar.as_slice());
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut xattrs = BTreeMap::new();
                for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
                    let extension = extension.unwrap();
                    if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
                        xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
                    }
                }
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let header = entry.header();
                Member {
                    path: String::from_utf8(entry.path_bytes().into_owned()).unwrap(),
                    kind: header.entry_type(),
                    mode: header.mode().unwrap(),
                    owner: (header.uid().unwrap(), header.gid().unwrap()),
                    mtime: header.mtime().unwrap(),
                    link: entry.link_name_bytes().map(|link| String::from_utf8(link.into_owned()).unwrap()),
                    size: content.len() as u64,
                    sha256: sha256(&content),
                    xattrs,
                }
            })
            .collect()
    }

    /// What breaks a rule: by the OCI image specification, or because some runtime takes offence.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let head = &self.compressed[..10];
        if head[..4] != [0x1f, 0x8b, 8, 0] || head[4..8] != [0; 4] || head[9] != 255 {
            faults.push(format!("the gzip header {head:02x?} holds flags, a time or a system"));
        }
        self.raw_faults(&mut faults);
        // Directories by path, and what else there is.
        let mut directories = BTreeSet::new();
        let mut others: BTreeMap<String, Member> = BTreeMap::new();
        let mut last_directory = String::new();
        for member in self.members() {
            let mut wrong = |why: &str| faults.push(format!("`{}` {why}", member.path));
            let path = member.path.trim_end_matches('/').to_owned();
            let is_directory = member.kind == tar::EntryType::Directory;
            if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                wrong("is not a plain relative path");
            }
            if is_directory != member.path.ends_with('/') {
                wrong("ends with a slash though it is no directory, or does not though it is one");
            }
            if path.rsplit('/').next().is_some_and(|name| name.starts_with(".wh.")) && member.size > 0 {
                wrong("is a whiteout with content");
            }
            if directories.contains(&path) || others.contains_key(&path) {
                wrong("is there twice");
            }
            if let Some((parent, _)) = path.rsplit_once('/')
                && !directories.contains(parent)
            {
                wrong("comes without its parent directory before it");
            }
            if member.mode & !0o7777 != 0 {
                wrong("has a mode beyond permissions");
            }
            if member.mtime < 315_532_800 {
                wrong("is from before 1980");
            }
            if is_directory {
                if !others.is_empty() {
                    wrong("is a directory behind files");
                }
                if path < last_directory {
                    wrong("is a directory out of order");
                }
                last_directory.clone_from(&path);
                directories.insert(path);
                continue;
            }
            match (member.kind, &member.link) {
                (tar::EntryType::Link, Some(target)) => match others.get(target) {
                    None => wrong("is a hard link to nothing before it in this layer"),
                    Some(first) => {
                        if (first.owner, first.mode, first.mtime) != (member.owner, member.mode, member.mtime) {
                            wrong("is a hard link whose owner, mode or time is not its target's");
                        }
                        if first.kind != tar::EntryType::Regular {
                            wrong("is a hard link to something that is no file");
                        }
                    }
                },
                (tar::EntryType::Regular, None) | (tar::EntryType::Symlink, Some(_)) => {}
                (kind, link) => wrong(&format!("is {kind:?} with link {link:?}")),
            }
            others.insert(path, member);
        }
        faults
    }

    /// Headers as they lie there: names of owners, extended headers, the end.
    fn raw_faults(&self, faults: &mut Vec<String>) {
        let mut archive = tar::Archive::new(self.tar.as_slice());
        for entry in archive.entries().unwrap().raw(true) {
            let entry = entry.unwrap();
            let header = entry.header();
            let path = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let mut wrong = |why: String| faults.push(format!("the header of `{path}` {why}"));
            let Some(ustar) = header.as_ustar() else {
                wrong("is not POSIX ustar".into());
                continue;
            };
            if ustar.uname[0] != 0 || ustar.gname[0] != 0 {
                wrong("names an owner".into());
            }
            if !matches!(header.entry_type().as_byte(), b'0' | b'1' | b'2' | b'5' | b'x') {
                wrong(format!("has the type `{}`", header.entry_type().as_byte() as char));
            }
        }
        let mut archive = tar::Archive::new(self.tar.as_slice());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
                let extension = extension.unwrap();
                let key = extension.key().unwrap();
                if !matches!(key, "path" | "linkpath" | "size" | "uid" | "gid" | "mtime")
                    && !key.starts_with("SCHILY.xattr.")
                {
                    faults.push(format!("an extended header has `{key}`"));
                }
            }
        }
        if !self.tar.len().is_multiple_of(512) || !self.tar.ends_with(&[0; 1024]) {
            faults.push("the archive does not end with two empty blocks".into());
        }
    }
}

/// What applying the layers leaves: whiteouts take away, later members replace earlier ones.
pub fn applied(layers: &[Layer]) -> BTreeMap<String, Member> {
    let mut tree: BTreeMap<String, Member> = BTreeMap::new();
    for layer in layers {
        for member in layer.members() {
            let path = member.path.trim_end_matches('/').to_owned();
            let (folder, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(folder, name)| (folder, name));
            match name.strip_prefix(".wh.") {
                Some(".wh..opq") => remove_below(&mut tree, folder),
                Some(hidden) => {
                    let hidden = Path::new(folder).join(hidden).to_str().unwrap().to_owned();
                    remove_below(&mut tree, &hidden);
                    tree.remove(&hidden);
                }
                None => {
                    if member.kind != tar::EntryType::Directory {
                        remove_below(&mut tree, &path);
                    }
                    tree.insert(path, member);
                }
            }
        }
    }
    tree
}

/// Takes away what lies below a folder; below the root that is everything.
fn remove_below(tree: &mut BTreeMap<String, Member>, folder: &str) {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let below = tree.range(prefix.clone()..).map(|(at, _)| at).take_while(|at| at.starts_with(&prefix));
    for path in below.cloned().collect::<Vec<_>>() {
        tree.remove(&path);
    }
}

/// Writes a layer's tar to a file, for tools that want one.
pub fn write_tar(layer: &Layer, path: &Path) {
    fs::File::create(path).unwrap().write_all(&layer.tar).unwrap();
}

/// Writes a layout with one image of this machine's platform and these layers, as they are.
pub fn write_layout(folder: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(folder.join("blobs/sha256").join(&digest["sha256:".len()..]), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let architecture = layers::Platform::native().unwrap().architecture();
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let config =
        json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let layers: Vec<Value> = layers.iter().map(|layer| put("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": layers::oci::MANIFEST,
        "config": put(layers::oci::CONFIG, config.to_string().as_bytes()), "layers": layers});
    let top = put(layers::oci::MANIFEST, manifest.to_string().as_bytes());
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [top]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}
