//! Root file systems against those that Debian's own tools make.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::layout::sha256;
use crate::support::listing::{self, Tree};
use crate::support::obelisk::obelisk;
use crate::support::run::{Sandbox, tool};
use crate::support::shared;

/// Where base differs from a tree that dpkg configured, on purpose. A path stands for what is below it, too.
const DIFFERENT: &[(&str, &str)] = &[
    ("dev", "a runtime mounts its own"),
    ("etc/apt", "mmdebstrap configures apt"),
    ("etc/environment", "of libpam-modules, which is left out"),
    ("etc/fstab", "written by mmdebstrap"),
    ("etc/group", "has the image's user"),
    ("etc/hostname", "copied by mmdebstrap"),
    ("etc/inputrc", "of readline-common, which is left out"),
    ("etc/ld.so.cache", "lists the libraries that are there"),
    ("etc/pam.d", "of libpam-runtime, which is left out"),
    ("etc/passwd", "has the image's user"),
    ("etc/resolv.conf", "copied by mmdebstrap"),
    ("etc/security", "of libpam-modules, which is left out"),
    ("etc/shells", "of debianutils, which is left out"),
    ("etc/systemd", "units of packages that are left out"),
    ("usr/local/lib/obelisk", "the image's own health check"),
    ("usr/share/info", "empty"),
    ("usr/share/lintian", "empty"),
    ("usr/share/man", "empty"),
    ("var/cache/apt", "apt's"),
    ("var/cache/debconf", "debconf's"),
    ("var/lib/apt", "apt's"),
    ("var/lib/dpkg", "status.d instead of one status file"),
    ("var/lib/pam", "of libpam-runtime, which is left out"),
    ("var/lib/python", "remembers which byte-code python3.13's script made"),
    ("var/lib/shells.state", "of debianutils, which is left out"),
    ("var/lib/systemd", "of units of packages that are left out"),
    ("var/log/apt", "apt's"),
];

/// Left out of every image by `slim()`.
fn slim(path: &str) -> bool {
    let below = |folders: &[&str]| folders.iter().any(|folder| path.starts_with(&format!("usr/share/{folder}/")));
    below(&["man", "info", "locale", "lintian"]) || below(&["doc"]) && !path.ends_with("/copyright")
}

/// A plan of one image of the catalogue, without the others.
fn plan_of(image: &str, sandbox: &Sandbox) -> std::path::PathBuf {
    let text = obelisk().imgbuild(&["plan", "--format", "json"]).success();
    let mut plan: Value = serde_json::from_str(&text).unwrap();
    plan["images"].as_object_mut().unwrap().retain(|name, _| name == image);
    sandbox.write("plan.json", plan.to_string())
}

#[test]
fn real_base_is_what_mmdebstrap_makes_less_what_is_left_out() {
    // Locked now, so that both take the mirror's newest.
    let sandbox = obelisk().sandbox();
    let plan = plan_of("base", &sandbox);
    let plan = plan.to_str().unwrap();
    sandbox.imgbuild(["--catalogue", plan, "lock"]).success();
    let arguments = ["--catalogue", plan, "build", "base", "--platform", "linux/amd64", "--output", "oci:dist"];
    sandbox.imgbuild(arguments).success();
    let lock: Value = serde_json::from_slice(&fs::read(sandbox.work().join("images.lock")).unwrap()).unwrap();
    let packages = lock["debian"]["linux/amd64"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ours: BTreeMap<String, String> =
        packages.iter().map(|package| (text(&package["name"]), text(&package["version"]))).collect();
    let bundle = sandbox.path().join("bundle");
    tool(
        "umoci",
        ["unpack", "--image", &format!("{}:base", sandbox.work().join("dist").display()), bundle.to_str().unwrap()],
    );
    let ours_tree = listing::of_folder(&bundle.join("rootfs"));

    // All that base's definition asks for, and Essential, which dpkg's scripts need.
    let wanted: Vec<String> = ours.keys().cloned().collect();
    let versions: String = ours.iter().map(|(name, version)| format!("{name}={version}\n")).collect();
    let root = shared::once(&format!("base-{}", &sha256(versions.as_bytes())[7..23]), |root| {
        shared::mmdebstrap(root, &["--variant=essential", &format!("--include={}", wanted.join(","))], &["trixie"]);
    });
    let theirs = shared::packages(&root);
    for (name, version) in &ours {
        assert_eq!(theirs.get(name), Some(version), "{name}");
    }
    let owners = owners(&root);
    let tree = listing::of_folder(&root);
    let left_out = |path: &str| owners.get(path).is_some_and(|of| !of.iter().any(|name| ours.contains_key(name)));
    let stays = |path: &str, what: &str| {
        // Alternatives belong to nobody; they go with what they lead to.
        let end = follow(&tree, path);
        !slim(path)
            && !left_out(path)
            && (what.starts_with("dir") || owners.contains_key(path) || !slim(&end) && !left_out(&end))
    };
    let mut expected: Tree =
        tree.iter().filter(|(path, what)| stays(path, what)).map(|(path, what)| (path.clone(), what.clone())).collect();
    // A folder stays if something in it does, whoever owns it.
    for path in expected.keys().cloned().collect::<Vec<_>>() {
        for parent in Path::new(&path).ancestors().skip(1).filter_map(Path::to_str).filter(|path| !path.is_empty()) {
            expected.insert(parent.to_owned(), tree[parent].clone());
        }
    }
    let listed = |path: &str| DIFFERENT.iter().any(|(at, _)| path == *at || path.starts_with(&format!("{at}/")));
    let bytecode = |path: &str| path.contains("/__pycache__");
    let prune = |tree: &Tree| -> Tree {
        tree.iter()
            .filter(|(path, _)| !listed(path) && !bytecode(path))
            .map(|(path, what)| (path.clone(), what.clone()))
            .collect()
    };
    listing::assert_same(&prune(&expected), &prune(&ours_tree), "base against mmdebstrap");
    // The list does not outgrow what it excuses.
    for (at, why) in DIFFERENT {
        let only = |tree: &Tree| -> Tree {
            tree.iter()
                .filter(|(path, _)| *path == at || path.starts_with(&format!("{at}/")))
                .map(|(path, what)| (path.clone(), what.clone()))
                .collect()
        };
        assert_ne!(only(&expected), only(&ours_tree), "`{at}` no longer differs ({why}): take it off the list");
    }
}

/// Where links lead in the end; the path itself where it is none, or leads out.
fn follow(tree: &Tree, path: &str) -> String {
    let mut at = path.to_owned();
    for _ in 0..8 {
        let Some(target) = tree.get(&at).and_then(|what| what.strip_prefix("link -> ")) else { return at };
        let parent = at.rsplit_once('/').map_or("", |(parent, _)| parent);
        at = if target.starts_with('/') { merged(target) } else { merged(&format!("{parent}/{target}")) };
    }
    at
}

/// A path as it is with merged /usr, without its leading slash.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap();
    let through = matches!(first, "bin" | "sbin" | "lib" | "lib64") && path != first;
    if through { format!("usr/{path}") } else { path.to_owned() }
}

/// The packages that own each path, by dpkg's lists.
fn owners(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(root.join("var/lib/dpkg/info")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "list") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let package = name.split(':').next().unwrap();
        for line in fs::read_to_string(&path).unwrap().lines() {
            owners.entry(merged(line)).or_default().insert(package.to_owned());
        }
    }
    owners
}
