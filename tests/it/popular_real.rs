//! The Debian packages that Python teams install most, as file systems beside what apt and dpkg make of them: some together
//! in one image, and where that differs, each half of them by itself, down to the one that does.
//!
//! `tests/fixtures/popular-packages.txt` names them, a line each, with the packages among their dependencies whose
//! maintainer scripts dpkg has to run, and the libraries that may be missing. `tests/run` looks at a few; `tests/popular` at all, which takes an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use layers::{Catalogue, Stage, debian};
use serde_json::Value;

use crate::support::layout::Layout;
use crate::support::listing::{self, Tree};
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::shared::{self, in_root};

const LIST: &str = include_str!("../fixtures/popular-packages.txt");

/// What `tests/run` looks at: native effects, alternatives, users, dpkg's own scripts.
const SAMPLE: [&str; 3] = ["locales", "redis-tools", "vim-tiny"];

/// What differs on purpose, or says nothing of an image. A path stands for what is below it, too.
const DIFFERENT: &[(&str, &str)] = &[
    ("dev", "a runtime mounts its own"),
    ("etc/apt", "mmdebstrap configures apt"),
    ("etc/fstab", "written by mmdebstrap"),
    ("etc/hostname", "copied by mmdebstrap"),
    ("etc/machine-id", "names a machine"),
    ("etc/rc0.d", "an image starts one program and enables no service"),
    ("etc/rc1.d", "an image starts one program and enables no service"),
    ("etc/rc2.d", "an image starts one program and enables no service"),
    ("etc/rc3.d", "an image starts one program and enables no service"),
    ("etc/rc4.d", "an image starts one program and enables no service"),
    ("etc/rc5.d", "an image starts one program and enables no service"),
    ("etc/rc6.d", "an image starts one program and enables no service"),
    ("etc/rcS.d", "an image starts one program and enables no service"),
    ("etc/resolv.conf", "copied by mmdebstrap"),
    ("etc/shadow", "has the day of the last change, which an image does not"),
    ("etc/ssl/certs/java/cacerts", "a keystore has the time at which it was made"),
    ("etc/systemd/system", "an image starts one program and enables no service"),
    ("etc/systemd/user", "an image starts one program and enables no service"),
    ("etc/group-", "what was before"),
    ("etc/gshadow-", "what was before"),
    ("etc/passwd-", "what was before"),
    ("etc/shadow-", "what was before"),
    ("etc/subgid-", "what was before"),
    ("etc/subuid-", "what was before"),
    ("etc/.pwd.lock", "of a run of passwd's programs"),
    ("run", "a runtime mounts its own"),
    ("tmp", "a runtime mounts its own"),
    ("usr/sbin/policy-rc.d", "the test's own"),
    ("var/cache", "caches"),
    ("var/lib/apt", "apt's"),
    ("var/lib/dpkg", "status.d instead of one status file"),
    ("var/lib/pam", "what pam-auth-update remembers"),
    ("var/lib/python", "remembers which byte-code python3.13's script made"),
    ("var/lib/shells.state", "what update-shells remembers"),
    ("var/lib/systemd", "what deb-systemd-helper remembers"),
    ("var/log", "logs"),
];

/// Packages that are looked at together.
const TOGETHER: usize = 10;

/// A package of the list, and the packages that dpkg configures for it.
type Popular<'a> = (&'static str, &'a [&'static str]);

/// The packages of the list, with those that dpkg configures.
fn list() -> BTreeMap<&'static str, Vec<&'static str>> {
    let lines = LIST.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let (name, configured) = line.split_once(':').unwrap_or((line, ""));
            (name.trim(), configured.split_whitespace().collect())
        })
        .collect()
}

fn shown(tree: &Tree) -> Tree {
    let differs = |path: &str| DIFFERENT.iter().any(|(at, _)| path == *at || path.starts_with(&format!("{at}/")));
    let stays = |path: &str| !differs(path) && !path.contains("/__pycache__");
    tree.iter().filter(|(path, _)| stays(path)).map(|(path, what)| (path.clone(), what.clone())).collect()
}

/// What apt and dpkg make of packages on top of `base`; what they complain of where they cannot.
fn theirs(sandbox: &Sandbox, base: &Path, packages: &str) -> Result<(Tree, BTreeMap<String, String>), String> {
    let root = sandbox.path().join("root");
    tool("cp", ["-a".as_ref(), base.as_os_str(), root.as_os_str()]);
    let archives = shared::folder("popular-archives");
    fs::create_dir_all(archives.join("partial")).unwrap();
    // Folders that are only there for the archives to be mounted at.
    let within = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    let mounts: Vec<_> = archives.ancestors().map(within).take_while(|path| !path.exists()).collect();
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH=1577836800
         printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
         get() {{ apt-get -q -y -o Acquire::Retries=5 -o Dir::Cache::archives={} -o Dpkg::Options::=--force-unsafe-io \\
           -o APT::Keep-Downloaded-Packages=true \"$@\"; }}
         # The root is kept, and the mirror goes on.
         get update; get upgrade; get install --no-install-recommends {packages}",
        archives.display()
    );
    let done = outcome(&mut in_root(&root, &[&archives], &script));
    if done.status != 0 {
        return Err(format!("{}{}", done.stdout, done.stderr));
    }
    for mount in mounts.iter().filter(|path| path.exists()) {
        fs::remove_dir(mount).unwrap();
    }
    let made = (listing::of_folder(&root), shared::packages(&root));
    tool("rm", ["-rf".as_ref(), root.as_os_str()]);
    Ok(made)
}

fn ours(sandbox: &Sandbox, image: &str) -> Tree {
    let image = Layout::open(&sandbox.work().join("dist")).image(image).remove(0);
    assert_eq!(image.faults(), Vec::<String>::new());
    listing::of_layers(&image.layers)
}

/// An image of some packages, with native effects alone and with what dpkg configures. Gives what cannot be locked.
fn project(base: &Path, packages: &[Popular<'_>]) -> Result<Sandbox, String> {
    let sandbox = Sandbox::sharing(&shared::folder("cache"));
    let everywhere: Vec<String> = shared::packages(base).into_keys().collect();
    let below = Stage::scratch().layer(debian(everywhere));
    let native = debian(packages.iter().map(|(package, _)| *package));
    let native = missing(packages).into_iter().fold(native, |layer, library| layer.allow_missing(library));
    let by_dpkg = configured(packages).into_iter().fold(native.clone(), |layer, package| layer.configure(package));
    let catalogue = [("native", native), ("by-dpkg", by_dpkg)]
        .into_iter()
        .fold(Catalogue::new("popular"), |catalogue, (kind, layer)| {
            catalogue.with(kind, below.layer(layer).image().layer_budget(125))
        });
    sandbox.write("plan.json", catalogue.plan().to_json());
    let locked = sandbox.imgbuild(["--catalogue", "plan.json", "lock"]);
    if locked.status == 0 { Ok(sandbox) } else { Err(locked.stderr) }
}

/// Libraries that only a Recommends brings; in the list behind packages whose scripts dpkg runs.
fn missing(packages: &[Popular<'_>]) -> BTreeSet<&'static str> {
    packages.iter().flat_map(|(_, words)| words.iter().copied()).filter(|word| word.contains(".so")).collect()
}

fn configured(packages: &[Popular<'_>]) -> BTreeSet<&'static str> {
    packages.iter().flat_map(|(_, words)| words.iter().copied()).filter(|word| !word.contains(".so")).collect()
}

/// Looks at some packages in one image: how it differs from what dpkg makes, and which packages its refusal names where
/// dpkg runs none.
fn differences(base: &Path, packages: &[Popular<'_>]) -> Vec<String> {
    let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let sandbox = match project(base, packages) {
        Ok(sandbox) => sandbox,
        Err(why) => return lines(&why),
    };
    let build = ["--catalogue", "plan.json", "build", "--platform", "linux/amd64", "--output", "oci:dist"];
    let mut found = Vec::new();
    let configured = configured(packages);
    if !configured.is_empty() {
        let refused = sandbox.imgbuild([&build[..], &["native"]].concat());
        let named: BTreeSet<&str> = refused
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_once(": p"))
            .map(|(package, _)| package)
            .collect();
        // Those that fail while they are at work show only when the others have been seen to.
        if named.is_empty() || !named.is_subset(&configured) {
            found.push(format!("the native effects lack {named:?}, the list has {configured:?}"));
        }
    }
    let built = sandbox.imgbuild([&build[..], &["by-dpkg"]].concat());
    if built.status != 0 {
        let why = built.stderr.lines().skip_while(|line| !line.starts_with("error"));
        return why.map(str::to_owned).collect();
    }
    let lock: Value = serde_json::from_slice(&fs::read(sandbox.work().join("images.lock")).unwrap()).unwrap();
    let names: Vec<&str> = packages.iter().map(|(package, _)| *package).collect();
    let (tree, versions) = match theirs(&sandbox, base, &names.join(" ")) {
        Ok(made) => made,
        Err(why) => return lines(&why),
    };
    for locked in lock["debian"]["linux/amd64"].as_array().unwrap() {
        let (name, version) = (locked["name"].as_str().unwrap(), locked["version"].as_str().unwrap());
        // The lock also has what runs dpkg.
        if versions.get(name).is_some_and(|theirs| theirs != version) {
            found.push(format!("{name} is {version}, theirs {}", versions[name]));
        }
    }
    found.extend(listing::difference(&shown(&tree), &shown(&ours(&sandbox, "by-dpkg"))));
    found
}

/// Says of each package whether it is as dpkg makes it; gives those that are not.
fn compared(base: &Path, packages: &[Popular<'_>]) -> Vec<&'static str> {
    let found = differences(base, packages);
    let names: Vec<&str> = packages.iter().map(|(package, _)| *package).collect();
    match (found.as_slice(), packages) {
        ([], _) => {
            names.iter().for_each(|package| println!("{package}: as dpkg makes it"));
            Vec::new()
        }
        (_, [(package, _)]) => {
            println!("{package}: {} differences\n  {}", found.len(), found[..found.len().min(40)].join("\n  "));
            vec![package]
        }
        (_, some) => {
            println!("together, {names:?} differ: {}", found[..found.len().min(8)].join("; "));
            let (one, other) = some.split_at(some.len() / 2);
            [compared(base, one), compared(base, other)].concat()
        }
    }
}

#[test]
fn real_popular_packages_are_what_dpkg_makes_of_them() {
    let asked = std::env::var("IMGBUILD_POPULAR").unwrap_or_else(|_| SAMPLE.join(" "));
    let list = list();
    let known = |name| *list.get_key_value(name).unwrap_or_else(|| panic!("{name} is not in the list")).0;
    let asked: Vec<&str> = match asked.as_str() {
        "all" => list.keys().copied().collect(),
        names => names.split_whitespace().map(known).collect(),
    };
    let base = shared::once("popular-base", |root| {
        shared::mmdebstrap(root, &["--variant=apt"], &["trixie"]);
        outcome(&mut in_root(root, &[], "apt-get -q -o Acquire::Retries=5 update")).success();
    });
    // Those of one kind together, the native ones first.
    let mut asked: Vec<Popular<'_>> = asked.iter().map(|package| (*package, list[package].as_slice())).collect();
    asked.sort_by_key(|(package, configured)| (configured.first().copied(), *package));
    let failed: Vec<&str> = asked.chunks(TOGETHER).flat_map(|some| compared(&base, some)).collect();
    assert_eq!(failed, Vec::<&str>::new());
}

#[test]
fn real_what_dpkg_makes_serves_another_platform_where_it_is_the_same() {
    let sandbox = Sandbox::sharing(&shared::folder("cache"));
    let image = |package: &str, configured: &[&str]| {
        let layer = debian(["base-files", "base-passwd", package]);
        Stage::scratch().layer(configured.iter().fold(layer, |layer, package| layer.configure(*package))).image()
    };
    let catalogue = Catalogue::new("platforms")
        .with("same", image("fontconfig", &["fontconfig-config"]))
        .with("bound", image("cron", &["cron", "cron-daemon-common", "systemd"]).layer_budget(60));
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    let build = ["--catalogue", "plan.json", "build", "--platform", "amd64,arm64", "--output", "oci:dist"];
    sandbox.imgbuild([&build[..], &["same", "--check-deterministic"]].concat()).success();
    let images = Layout::open(&sandbox.work().join("dist")).image("same");
    let conf = |at: usize| {
        let members = images[at].layers.iter().flat_map(|layer| layer.members());
        let conf = members.filter(|member| member.path.starts_with("etc/fonts/conf.d/70-"));
        conf.map(|member| (member.path, member.link, member.owner)).collect::<Vec<_>>()
    };
    let chosen = "/usr/share/fontconfig/conf.avail/70-no-bitmaps-except-emoji.conf";
    let expected = ("etc/fonts/conf.d/70-no-bitmaps-except-emoji.conf".to_owned(), Some(chosen.to_owned()), (0, 0));
    assert_eq!(conf(0), [expected]);
    assert_eq!(conf(0), conf(1));
    let again = sandbox.imgbuild([&build[..], &["same"]].concat());
    assert!(!again.stderr.contains("runs dpkg"), "{}", again.stderr);
    again.success();
    // A program whose owner the script sets is another one there.
    let refused = sandbox.imgbuild([&build[..], &["bound"]].concat());
    refused.failure(1, &["it makes `/usr/bin/crontab` on linux/amd64, which linux/arm64 cannot have"]);
}
