//! What tests make once and keep: in the folder `tests` of cargo's target folder, or where `IMGBUILD_TEST_CACHE` says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run::{outcome, tool};

/// A folder below the kept one; made where it is missing.
pub fn folder(name: &str) -> PathBuf {
    let root = match std::env::var_os("IMGBUILD_TEST_CACHE") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("tests"),
    };
    let folder = root.join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Makes something once, whoever comes first, threads and processes alike: `make` gets a path that is not there yet, and
/// what it leaves is kept only if it returns.
pub fn once(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let root = folder("once");
    let made = root.join(name);
    let lock = File::create(root.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    if !made.exists() {
        let unfinished = root.join(format!("{name}.unfinished"));
        tool("rm", ["-rf".as_ref(), unfinished.as_os_str()]);
        make(&unfinished);
        fs::rename(&unfinished, &made).unwrap();
    }
    made
}

/// The mirror that the machine's apt takes Debian from.
pub fn debian_mirror() -> String {
    let format = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)";
    let list = || tool("apt-get", ["indextargets", "--format", format, "Identifier: Packages"]);
    let find = |targets: &str| {
        targets.lines().find_map(|line| {
            let (release, uri) = line.strip_prefix("Debian|")?.split_once('|')?;
            (!release.contains('-')).then(|| uri.trim_end_matches('/').to_owned())
        })
    };
    // A bare machine may not have read its sources yet.
    find(&list())
        .or_else(|| {
            tool("apt-get", ["-q", "update"]);
            find(&list())
        })
        .expect("an apt source of this machine is Debian's")
}

/// A root of trixie made by mmdebstrap: current apt and dpkg, Python 3.13 with pip and venv. It is shared: nobody writes to
/// it outside of `/tmp`.
pub fn trixie_root() -> PathBuf {
    once("trixie", |root| {
        let include = "apt-utils,ca-certificates,dpkg-dev,python3,python3-pip,python3-venv";
        mmdebstrap(root, &["--variant=minbase", &format!("--include={include}")], &["trixie"]);
    })
}

/// mmdebstrap with the machine's mirror, security and updates; `suites` may hold more words for sources.
pub fn mmdebstrap(root: &Path, arguments: &[&str], suites: &[&str]) {
    let mirror = debian_mirror();
    let mut sources: Vec<String> = suites.iter().map(|suite| format!("deb {mirror} {suite} main")).collect();
    for suite in suites {
        sources.push(format!("deb {mirror} {suite}-updates main"));
        sources.push(format!("deb {mirror}-security {suite}-security main"));
    }
    let retries = "--aptopt=Acquire::Retries \"5\"";
    outcome(
        Command::new("mmdebstrap")
            .args(["--quiet", "--mode=root", "--format=directory", retries])
            .args(arguments)
            .arg(suites[0])
            .arg(root)
            .args(&sources),
    )
    .success();
}

/// The packages that dpkg has installed in a root, with their versions.
pub fn packages(root: &Path) -> BTreeMap<String, String> {
    let format = "${db:Status-Abbrev}|${Package}|${Version}\n";
    let list = tool("dpkg-query", ["--root", root.to_str().unwrap(), "--show", "--showformat", format]);
    let fields = list.lines().filter_map(|line| line.strip_prefix("ii |")?.split_once('|'));
    fields.map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
}

/// A command in the trixie root, with the folders `binds` at their own paths.
pub fn in_trixie(binds: &[&Path], script: &str) -> Command {
    in_root(&trixie_root(), binds, script)
}

/// As [`in_trixie`], in another root.
pub fn in_root(root: &Path, binds: &[&Path], script: &str) -> Command {
    let mut command = Command::new("unshare");
    // A mount namespace of its own: nothing is left mounted, however it ends.
    let mut setup = String::from(
        "set -e; root=$1; shift; mount -t proc proc \"$root/proc\"; mount -t tmpfs tmp \"$root/tmp\"; mkdir -p \"$root/opt\"; mount --bind /dev \"$root/dev\"; mount --bind /etc/resolv.conf \"$root/etc/resolv.conf\" 2>/dev/null || cp /etc/resolv.conf \"$root/etc/resolv.conf\"; ",
    );
    for bind in binds {
        let path = bind.display();
        setup.push_str(&format!("mkdir -p \"$root{path}\"; mount --bind \"{path}\" \"$root{path}\"; "));
    }
    setup.push_str("exec chroot \"$root\" /bin/sh -ec \"$1\"");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &setup, "sh"]).arg(root).arg(script);
    command
}
