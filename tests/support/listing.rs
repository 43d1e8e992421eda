//! Trees of files as text, one a line, so that a difference can be read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::layout::{Layer, applied, sha256};

/// What is at each path, the root left out: `file 0644 0:0 cc55e2ec0123`, `dir 0755 0:0`, `link -> target`.
pub type Tree = BTreeMap<String, String>;

/// Reads a folder, without crossing into other file systems.
pub fn of_folder(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let device = fs::symlink_metadata(root).unwrap().dev();
    walk(root, "", device, &mut tree);
    tree
}

fn walk(root: &Path, below: &str, device: u64, tree: &mut Tree) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let metadata = entry.metadata().unwrap();
        let (kind, mode) = (metadata.file_type(), metadata.permissions().mode() & 0o7777);
        let owner = format!("{}:{}", metadata.uid(), metadata.gid());
        let mut line = if kind.is_dir() {
            format!("dir {mode:04o} {owner}")
        } else if kind.is_symlink() {
            // A link's own owner matters to nobody.
            format!("link -> {}", fs::read_link(entry.path()).unwrap().display())
        } else if kind.is_file() {
            let digest = sha256(&fs::read(entry.path()).unwrap());
            format!("file {mode:04o} {owner} {} {}", &digest[7..19], metadata.len())
        } else {
            format!("special {mode:04o} {owner}")
        };
        let mut value = [0; 256];
        if let Ok(length) = rustix::fs::lgetxattr(entry.path(), c"security.capability", &mut value[..]) {
            line.push_str(&format!(" capability {}", &sha256(&value[..length])[7..19]));
        }
        tree.insert(path.clone(), line);
        if kind.is_dir() && metadata.dev() == device {
            walk(root, &path, device, tree);
        }
    }
}

/// What applying layers leaves.
pub fn of_layers(layers: &[Layer]) -> Tree {
    let tree = applied(layers);
    let line = |path: &str| {
        let member = &tree[path];
        let first = member.link.as_ref().filter(|_| member.kind == tar::EntryType::Link);
        let content = first.map_or(member, |first| &tree[first]);
        let mode_and_owner = format!("{:04o} {}:{}", member.mode, member.owner.0, member.owner.1);
        match member.kind {
            tar::EntryType::Directory => format!("dir {mode_and_owner}"),
            tar::EntryType::Symlink => format!("link -> {}", member.link.as_ref().unwrap()),
            _ => format!("file {mode_and_owner} {} {}", &content.sha256[7..19], content.size),
        }
    };
    tree.keys().map(|path| (path.clone(), line(path))).collect()
}

/// How two trees differ, a line a path: `- path what` is only in the first or differs there, `+ path what` in the second.
pub fn difference(first: &Tree, second: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut paths: Vec<&String> = first.keys().chain(second.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let (one, other) = (first.get(path), second.get(path));
        if one != other {
            lines.extend(one.map(|what| format!("- {path} {what}")));
            lines.extend(other.map(|what| format!("+ {path} {what}")));
        }
    }
    lines
}

/// Fails with the first differences.
#[track_caller]
pub fn assert_same(first: &Tree, second: &Tree, what: &str) {
    let lines = difference(first, second);
    let shown = lines.iter().take(300).cloned().collect::<Vec<_>>().join("\n");
    assert!(lines.is_empty(), "{what}: {} differences\n{shown}", lines.len());
}
