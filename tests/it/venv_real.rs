//! Virtual environments against those that pip and uv make in trixie, file by file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::listing::{self, Tree};
use crate::support::obelisk::obelisk;
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::shared::{self, in_trixie};

/// What `/opt/venv` of an image holds.
fn ours(image: &str, sandbox: &Sandbox) -> std::path::PathBuf {
    let bundle = sandbox.path().join("bundle");
    let layout = format!("{}:{image}", obelisk().file("dist").display());
    tool("umoci", ["unpack", "--image", &layout, bundle.to_str().unwrap()]);
    bundle.join("rootfs/opt/venv")
}

/// The image's locked wheels as files of their own names, and their pins with hashes.
fn wheels(image: &str, sandbox: &Sandbox) -> String {
    let mut pins = String::new();
    fs::create_dir(sandbox.path().join("wheels")).unwrap();
    for wheel in obelisk().wheels(image) {
        let text = |field: &str| wheel[field].as_str().unwrap().to_owned();
        fs::hard_link(obelisk().blob(&wheel), sandbox.path().join("wheels").join(text("file"))).unwrap();
        pins.push_str(&format!("{}=={} --hash={}\n", text("name"), text("version"), text("sha256")));
    }
    pins
}

/// Lines of RECORD without those for files that only one of the installers writes. uv starts console scripts by a text of
/// its own: against uv their names count, against pip their bytes, too.
fn record(text: &str, who: &str) -> BTreeSet<String> {
    let own = ["/INSTALLER,", "/REQUESTED,", "/RECORD,", "/uv_cache.json,"];
    let line = |line: &str| match line.split_once(',') {
        Some((path, _)) if who == "uv" && path.starts_with("../../../bin/") => path.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().filter(|line| !own.iter().any(|name| line.contains(name))).map(line).collect()
}

/// Compares two environments; `who` made the second.
fn compare(ours: &Path, theirs: &Path, who: &str) {
    let (mut one, mut other) = (listing::of_folder(ours), listing::of_folder(theirs));
    // The interpreter and how a shell enters the environment are not the installer's.
    let foreign = |path: &str| {
        path == "pyvenv.cfg"
            || path == "lib64"
            || path.starts_with("bin/python")
            || path.starts_with("bin/activate")
            || path.starts_with("bin/Activate")
            || path.starts_with("bin/deactivate")
            || path.starts_with("bin/pydoc")
            || path.contains("__pycache__")
            || path.contains("site-packages/_virtualenv")
            || [".gitignore", ".lock", "CACHEDIR.TAG", "include", "include/python3.13"].contains(&path)
    };
    let noted = |path: &str| path.ends_with(".dist-info/REQUESTED") || path.ends_with(".dist-info/uv_cache.json");
    for tree in [&mut one, &mut other] {
        tree.retain(|path, _| !foreign(path) && !noted(path));
    }
    let read = |root: &Path, path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let differing = |tree: &Tree, line: &dyn Fn(&str) -> bool| -> Vec<String> {
        tree.keys().filter(|path| line(path)).cloned().collect()
    };
    let mut records = 0;
    for path in differing(&one, &|path| path.ends_with(".dist-info/RECORD")) {
        assert_eq!(record(&read(ours, &path), who), record(&read(theirs, &path), who), "{who}: {path}");
        records += 1;
        one.remove(&path);
        other.remove(&path);
    }
    assert!(records > 20, "{records} distributions");
    for path in differing(&one, &|path| path.ends_with(".dist-info/INSTALLER")) {
        assert_eq!(read(ours, &path).trim(), "imgbuild");
        assert_eq!(read(theirs, &path).trim(), who);
        one.remove(&path);
        other.remove(&path);
    }
    if who == "uv" {
        let scripts = |tree: &Tree| differing(tree, &|path| path.starts_with("bin/"));
        assert_eq!(scripts(&one), scripts(&other));
        for path in scripts(&one) {
            one.remove(&path);
            other.remove(&path);
        }
    }
    listing::assert_same(&one, &other, &format!("{} distributions against {who}", records));
}

#[test]
fn real_environments_are_what_pip_and_uv_install() {
    for image in ["core", "rag"] {
        let sandbox = Sandbox::new();
        let pins = wheels(image, &sandbox);
        sandbox.write("requirements.txt", pins);
        let ours = ours(image, &sandbox);
        let folder = sandbox.path().display();
        let tools = shared::folder("tools");
        let requirements = sandbox.work().join("requirements.txt");
        let common = format!(
            "--no-index --find-links '{folder}/wheels' --no-deps --require-hashes -r '{}'",
            requirements.display()
        );
        let script = format!(
            "umask 022; unset PIP_FIND_LINKS PIP_CONFIG_FILE PIP_CERT; export HOME=/tmp
             mount -t tmpfs opt /opt; fresh() {{ rm -rf /opt/venv; python3 -m venv --without-pip /opt/venv; }}
             fresh; python3 -m pip --python /opt/venv/bin/python install --quiet --no-compile --no-cache-dir {common}
             cp -a /opt/venv '{folder}/pip'
             fresh; '{}/bin/uv' pip install --quiet --python /opt/venv/bin/python --no-cache --link-mode copy {common}
             cp -a /opt/venv '{folder}/uv'",
            tools.display()
        );
        outcome(&mut in_trixie(&[sandbox.path(), &tools], &script)).success();
        for who in ["pip", "uv"] {
            compare(&ours, &sandbox.path().join(who), who);
        }
        assert!(fs::read_to_string(ours.join("pyvenv.cfg")).unwrap().contains("home = /usr/bin\n"));
        assert_eq!(fs::canonicalize(ours.join("bin")).unwrap(), ours.canonicalize().unwrap().join("bin"));
        let python = fs::read_link(ours.join("bin/python3")).unwrap();
        assert!(
            python.ends_with("python3") || python.ends_with("python") || python.ends_with("python3.13"),
            "{python:?}"
        );
    }
}

#[test]
fn real_scanners_see_exactly_the_locked_packages() {
    let layout = obelisk().layout();
    let lock = obelisk().lock();
    for image in ["base", "core", "init", "rag"] {
        let tree = crate::support::layout::applied(&layout.image(image)[0].layers);
        assert!(tree.contains_key("usr/lib/os-release") && tree.contains_key("etc/os-release"), "{image}");
        // Tools of dpkg read one status file: the stanzas of `status.d`, one after the other, are one.
        let admin = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::new();
        let bundle = sandbox.path().join("bundle");
        tool(
            "umoci",
            ["unpack", "--image", &format!("{}:{image}", obelisk().file("dist").display()), bundle.to_str().unwrap()],
        );
        let folder = bundle.join("rootfs/var/lib/dpkg/status.d");
        let mut status = String::new();
        let mut stanzas = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md5sums") {
                check_md5sums(&path, &bundle.join("rootfs"));
                continue;
            }
            let stanza = fs::read_to_string(&path).unwrap();
            status.push_str(stanza.trim_end());
            status.push_str("\n\n");
            stanzas += 1;
        }
        fs::write(admin.path().join("status"), &status).unwrap();
        for folder in ["info", "updates"] {
            fs::create_dir(admin.path().join(folder)).unwrap();
        }
        let admindir = format!("--admindir={}", admin.path().display());
        let seen = tool(
            "dpkg-query",
            [&admindir, "--show", "--showformat", "${db:Status-Abbrev} ${Package} ${Version} ${Architecture}\n"],
        );
        let closures = lock["sources"].as_array().unwrap().iter();
        let names: BTreeSet<String> = closures
            .filter(|it| it["images"].as_array().unwrap().iter().any(|name| name == image))
            .flat_map(|it| it["packages"]["linux/amd64"].as_array().unwrap())
            .map(|it| it["package"].as_str().unwrap().to_owned())
            .collect();
        let of = |package: &Value| {
            let text = |field: &str| package[field].as_str().unwrap();
            format!("ii  {} {} {}", text("name"), text("version"), text("architecture"))
        };
        let pool = lock["debian"]["linux/amd64"].as_array().unwrap();
        let expected: BTreeSet<String> =
            pool.iter().filter(|it| names.contains(it["name"].as_str().unwrap())).map(of).collect();
        assert_eq!(seen.lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected, "{image}");
        assert_eq!(stanzas, expected.len(), "{image}");
    }
}

/// Every file that is listed and there has the checksum that stands beside it.
fn check_md5sums(list: &Path, root: &Path) {
    let text = fs::read_to_string(list).unwrap();
    let there: String = text
        .lines()
        .filter(|line| line.split_once("  ").is_some_and(|(_, path)| root.join(path).is_file()))
        .map(|line| format!("{line}\n"))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), there).unwrap();
    let mut command = std::process::Command::new("md5sum");
    outcome(command.args(["--check", "--quiet", "--strict"]).arg(file.path()).current_dir(root)).success();
}
