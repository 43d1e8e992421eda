//! Wheels built from source, beside what pip builds in trixie.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use layers::source::Python;
use layers::{Catalogue, Stage, debian, pip_requirements, python, sdist};
use serde_json::Value;

use crate::support::layout::{Layout, Member};
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::shared::{self, in_root};

/// The four packages of Obelisk's lock that have no wheel for Python 3.13: three in Python, one in C++.
const PINS: [(&str, &str); 4] = [
    ("csscompressor==0.9.5", "afa22badbcf3120a4f392e4d22f9fff485c044a1feda4a950ecc5eba9dd31a05"),
    ("jsmin==3.0.1", "c0959a121ef94542e807a674142606f7e90214a2b3d1eb17300244bbb5cc2bfc"),
    ("pypika==0.48.9", "838836a61747e7c8380cd1b7ff638694b7a7335345d0f559b04b2cd832ad5378"),
    ("chroma-hnswlib==0.7.6", "4dce282543039681160259d29fcde6151cc9106c6461e0485f57cdccd83059b7"),
];

fn requirements(pins: &[(&str, &str)]) -> String {
    pins.iter().map(|(pin, hash)| format!("{pin} --hash=sha256:{hash}\n")).collect()
}

fn pure() -> Python {
    ["csscompressor", "jsmin", "pypika"]
        .into_iter()
        .fold(python(pip_requirements("pure.txt")), Python::build_from_source)
}

fn compiled() -> Python {
    let packages = [
        "base-files",
        "g++",
        "python3-dev",
        "python3-numpy",
        "python3-packaging",
        "python3-pybind11",
        "python3-setuptools",
        "python3-wheel",
    ];
    let toolchain = Stage::scratch().layer(debian(packages).slim());
    python(pip_requirements("compiled.txt"))
        .build_from_source(sdist("chroma-hnswlib").env("HNSWLIB_NO_NATIVE", "1"))
        .build_on(&toolchain)
}

/// A catalogue of both, on Python; its lock is made.
fn project() -> Sandbox {
    let sandbox = Sandbox::sharing(&shared::folder("sdists"));
    sandbox.write("pure.txt", requirements(&PINS[..3]));
    sandbox.write("compiled.txt", requirements(&PINS[3..]));
    let base = Stage::scratch().layer(debian(["base-files", "python3.13", "libstdc++6"]).slim());
    let catalogue = Catalogue::new("sdists")
        .with("pure", base.layer(pure()).image())
        .with("compiled", base.layer(compiled()).image());
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    sandbox
}

/// The files of the distributions that an image has, by path below `site-packages`.
fn installed(sandbox: &Sandbox, image: &str, at: usize) -> BTreeMap<String, Member> {
    let image = &Layout::open(&sandbox.work().join("dist")).image(image)[at];
    let site = "opt/venv/lib/python3.13/site-packages/";
    let members = image.layers.iter().flat_map(|layer| layer.members());
    let files = members.filter(|member| !member.path.ends_with('/'));
    files.filter_map(|member| Some((member.path.strip_prefix(site)?.to_owned(), member))).collect()
}

/// What pip builds of the same sdists in trixie, unpacked: the digest of each file by path.
fn theirs(sandbox: &Sandbox, pins: &[(&str, &str)], env: &str) -> BTreeMap<String, String> {
    let folder = sandbox.path().join("pip");
    fs::create_dir_all(folder.join("links")).unwrap();
    fs::write(folder.join("pins.txt"), requirements(pins)).unwrap();
    // The root has no way to the index, perhaps: what pip needs is brought before, the sdists by imgbuild.
    let lock: Value = serde_json::from_slice(&fs::read(sandbox.work().join("images.lock")).unwrap()).unwrap();
    let sources = lock["python"].as_array().unwrap().iter();
    for sdist in sources.flat_map(|source| source["wheels"]["linux/amd64"].as_array().unwrap()) {
        let digest = &sdist["sha256"].as_str().unwrap()[7..];
        let blob = sandbox.cache().join("blobs-v1").join(&digest[..2]).join(digest);
        // Which of the two images was built is the test's matter.
        if blob.exists() {
            fs::copy(blob, folder.join("links").join(sdist["file"].as_str().unwrap())).unwrap();
        }
    }
    let links = folder.join("links");
    let words = ["-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--python-version", "3.13", "--dest"];
    let mut download = Command::new("python3");
    download.args(words).arg(&links).args(["setuptools", "wheel", "pybind11", "numpy"]);
    outcome(&mut download).success();
    let place = folder.display();
    let script = format!(
        "unset PIP_FIND_LINKS PIP_CONFIG_FILE; export HOME=/tmp SOURCE_DATE_EPOCH=1577836800 {env}; cd {place}
         python3 -m venv v
         v/bin/pip wheel --quiet --no-index --find-links links --no-deps --require-hashes -r pins.txt -w out
         for wheel in out/*.whl; do python3 -m zipfile -e $wheel tree; done"
    );
    let root = shared::once("trixie-compilers", |root| {
        let include = "--include=ca-certificates,g++,python3-dev,python3-venv";
        shared::mmdebstrap(root, &["--variant=minbase", include], &["trixie"]);
    });
    outcome(&mut in_root(&root, &[&folder], &script)).success();
    let listing = tool("sh", ["-ec", &format!("cd {place}/tree; find . -type f -exec sha256sum {{}} +")]);
    let line = |line: &str| line.split_once("  ./").map(|(digest, path)| (path.to_owned(), format!("sha256:{digest}")));
    listing.lines().filter_map(line).collect()
}

/// Files that name who built, or list the others.
fn of_the_builder(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    path.contains(".dist-info/") && ["WHEEL", "RECORD", "INSTALLER", "REQUESTED", "METADATA"].contains(&name)
}

fn commands(sandbox: &Sandbox) -> Vec<Value> {
    let told: Value = serde_json::from_slice(&fs::read(sandbox.work().join("built.json")).unwrap()).unwrap();
    told["images"][0]["platforms"][0]["commands"].as_array().unwrap().clone()
}

#[test]
fn real_pure_sdists_are_built_once_for_all_platforms_and_hold_what_pip_builds() {
    let sandbox = project();
    let words = ["--catalogue", "plan.json", "build", "pure", "--platform", "amd64,arm64", "--check-deterministic"];
    sandbox.imgbuild([&words[..], &["--metadata-file", "built.json"]].concat()).success();
    let ran = commands(&sandbox);
    assert_eq!(ran.len(), 3, "{ran:?}");
    let (amd64, arm64) = (installed(&sandbox, "pure", 0), installed(&sandbox, "pure", 1));
    assert_eq!(amd64, arm64);
    let pip = theirs(&sandbox, &PINS[..3], "");
    let ours: BTreeMap<String, String> = amd64
        .iter()
        .filter(|(path, _)| !of_the_builder(path))
        .map(|(path, member)| (path.clone(), member.sha256.clone()))
        .collect();
    let pip: BTreeMap<String, String> = pip.into_iter().filter(|(path, _)| !of_the_builder(path)).collect();
    assert_eq!(ours, pip);
}

#[test]
fn real_a_compiled_sdist_is_built_alike_twice_and_holds_what_pip_builds() {
    let sandbox = project();
    let words = ["--catalogue", "plan.json", "build", "compiled", "--check-deterministic"];
    sandbox.imgbuild([&words[..], &["--metadata-file", "built.json"]].concat()).success();
    assert_eq!(commands(&sandbox).len(), 1);
    let ours = installed(&sandbox, "compiled", 0);
    let pip = theirs(&sandbox, &PINS[3..], "HNSWLIB_NO_NATIVE=1");
    // pip's compiler is as new as the mirror, ours as the lock: of what is compiled the names are compared.
    let of_pip = |path: &&String| !["INSTALLER", "REQUESTED"].iter().any(|name| path.ends_with(name));
    assert_eq!(ours.keys().filter(of_pip).collect::<Vec<_>>(), pip.keys().collect::<Vec<_>>());
    for (path, digest) in pip.iter().filter(|(path, _)| !of_the_builder(path) && !path.ends_with(".so")) {
        assert_eq!(ours[path].sha256, *digest, "{path}");
    }
    let foreign = if std::env::consts::ARCH == "x86_64" { "arm64" } else { "amd64" };
    let said = ["`run build of chroma", "it has compiled parts", &format!("linux/{foreign}")];
    sandbox.imgbuild(["--catalogue", "plan.json", "build", "compiled", "--platform", foreign]).failure(1, &said);
}
