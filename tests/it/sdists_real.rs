//! Wheels built from source, beside what pip builds in trixie.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use layers::source::{Python, Sdist, poetry_lock};
use layers::{Catalogue, Stage, command, debian, path, pip_requirements, python, sdist};
use serde_json::Value;

use crate::support::elsewhere::{bring_downloads, commands, elsewhere, line};
use crate::support::layout::{Layout, Member};
use crate::support::run::{Sandbox, outcome, tool};
use crate::support::shared::{self, in_root, in_trixie};

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

fn docs() -> Python {
    python(poetry_lock("poetry.lock").group("docs")).build_from_source("jsmin").build_from_source("csscompressor")
}

/// Where chroma-hnswlib is built, with these compilers.
fn toolchain(compilers: &[&str]) -> Stage {
    let python = ["dev", "numpy", "packaging", "pybind11", "setuptools", "wheel"].map(|part| format!("python3-{part}"));
    let compilers = compilers.iter().map(|name| (*name).to_owned());
    Stage::scratch().layer(debian(compilers.chain(python).chain(["base-files".to_owned()])).slim())
}

/// Retrieval, with `hnswlib` built on `toolchain`.
fn retrieval(hnswlib: Sdist, toolchain: &Stage) -> Python {
    let wheels = python(poetry_lock("poetry.lock").group("rag")).build_from_source("pypika");
    wheels.build_from_source(hnswlib.env("HNSWLIB_NO_NATIVE", "1")).build_on(toolchain)
}

fn rag() -> Python {
    retrieval(sdist("chroma-hnswlib"), &toolchain(&["g++"]))
}

/// As [`rag`], also for the platform that is not the machine's.
fn rag_everywhere() -> Python {
    let target = Stage::scratch().layer(debian(["libpython3-dev"]).slim());
    let compilers = ["g++-aarch64-linux-gnu", "g++-x86-64-linux-gnu"];
    retrieval(sdist("chroma-hnswlib").cross(&target), &toolchain(&compilers))
}

/// Imports what was built, and searches with it.
const SEARCH: &str = "
import hnswlib, numpy, os, platform
index = hnswlib.Index(space='l2', dim=3)
index.init_index(max_elements=4)
index.add_items(numpy.eye(3, dtype='float32'))
found, _ = index.knn_query(numpy.array([[0, 0.9, 0]], dtype='float32'), k=1)
os.mkdir('/out')
print(platform.machine(), found, file=open('/out/found', 'w'))
";

const FILES: [&str; 3] = ["poetry.lock", "plan.json", "images.lock"];

/// An Obelisk-like project: its site, its retrieval, and the latter's part without anything compiled from source.
fn project() -> Sandbox {
    let sandbox = Sandbox::sharing(&shared::folder("sdists"));
    sandbox.write("poetry.lock", include_str!("../fixtures/obelisk/poetry.lock"));
    let base = Stage::scratch().layer(debian(["base-files", "python3.13", "libstdc++6"]).slim());
    let everywhere = base.layer(rag_everywhere());
    let search = everywhere.run(command(["/opt/venv/bin/python", "-c", SEARCH]).emulated());
    let catalogue = Catalogue::new("sdists")
        .with("everywhere", everywhere.image())
        .with("search", Stage::scratch().layer(search.take(path!("/out"))).image())
        .with("docs", base.layer(docs()).image())
        .with("rag", base.layer(rag()).image())
        .with("rag-pure", base.layer(rag().without(["chroma-hnswlib"])).image());
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
fn theirs(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let folder = sandbox.path().join("pip");
    fs::create_dir_all(folder.join("links")).unwrap();
    fs::write(folder.join("pins.txt"), requirements(&PINS)).unwrap();
    // The root has no way to the index, perhaps: what pip needs is brought before, the sdists by imgbuild.
    let lock: Value = serde_json::from_slice(&fs::read(sandbox.work().join("images.lock")).unwrap()).unwrap();
    let sources = lock["python"].as_array().unwrap().iter();
    for sdist in sources.flat_map(|source| source["wheels"]["linux/amd64"].as_array().unwrap()) {
        let file = sdist["file"].as_str().unwrap();
        if file.ends_with(".tar.gz") {
            let digest = &sdist["sha256"].as_str().unwrap()[7..];
            let blob = sandbox.cache().join("blobs-v1").join(&digest[..2]).join(digest);
            fs::copy(blob, folder.join("links").join(file)).unwrap();
        }
    }
    let links = folder.join("links");
    let words = ["-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--python-version", "3.13", "--dest"];
    let mut download = Command::new("python3");
    download.args(words).arg(&links).args(["setuptools", "wheel", "pybind11", "numpy"]);
    outcome(&mut download).success();
    let place = folder.display();
    let script = format!(
        "unset PIP_FIND_LINKS PIP_CONFIG_FILE; export HOME=/tmp SOURCE_DATE_EPOCH=1577836800 HNSWLIB_NO_NATIVE=1; cd {place}
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

/// What was built from source: the outcome of each command by its label.
fn outcomes(sandbox: &Sandbox, level: &str) -> BTreeMap<String, String> {
    let told = commands(sandbox).into_iter().map(|it| {
        assert_eq!(it["sandbox"], level, "{it}");
        (it["label"].as_str().unwrap().to_owned(), it["outcome"].as_str().unwrap().to_owned())
    });
    told.collect()
}

#[test]
fn real_an_obelisk_like_lock_builds_alike_in_two_sandboxes_and_holds_what_pip_builds() {
    let project = project();
    let (sandbox, _) = elsewhere(&project, &FILES, "0");
    let build = ["--catalogue", "plan.json", "build", "--metadata-file", "built.json", "--platform", "amd64"];
    let build = [&build[..], &["docs", "rag"]].concat();
    let printed = sandbox.imgbuild(build).success();
    bring_downloads(&sandbox, &project);
    let wheels = outcomes(&sandbox, "namespaces");
    let sdists = ["PyPika-0.48.9", "chroma_hnswlib-0.7.6", "csscompressor-0.9.5", "jsmin-3.0.1"];
    let labels = sdists.map(|sdist| format!("run build of {sdist}.tar.gz"));
    assert_eq!(wheels.keys().collect::<Vec<_>>(), labels.iter().collect::<Vec<_>>());

    // On another machine, in a sandbox of another kind.
    let (other, program) = elsewhere(&sandbox, &FILES, "0");
    let built = outcome(&mut in_trixie(&[other.path()], &format!("{} docs rag", line(&other, &program, "2"))));
    assert_eq!(built.success(), printed);
    assert_eq!(outcomes(&other, "chroot"), wheels);

    let mut ours = installed(&sandbox, "docs", 0);
    ours.extend(installed(&sandbox, "rag", 0));
    let pip = theirs(&sandbox);
    let of_the_four = |path: &str| path.split('/').next().unwrap().to_owned();
    let tops: BTreeSet<String> = pip.keys().map(|path| of_the_four(path)).collect();
    ours.retain(|path, _| tops.contains(&of_the_four(path)));
    let of_pip = |path: &&String| !["INSTALLER", "REQUESTED"].iter().any(|name| path.ends_with(name));
    assert_eq!(ours.keys().filter(of_pip).collect::<Vec<_>>(), pip.keys().collect::<Vec<_>>());
    // pip's compiler is as new as its root, ours as the lock: of what is compiled the names are compared.
    for (path, digest) in pip.iter().filter(|(path, _)| !of_the_builder(path) && !path.ends_with(".so")) {
        assert_eq!(ours[path].sha256, *digest, "{path}");
    }
    assert_eq!(pip.keys().filter(|path| path.ends_with(".so")).count(), 1);
}

#[test]
fn real_pure_sdists_are_built_once_for_all_platforms_and_compiled_ones_for_the_machines_own() {
    let sandbox = project();
    let words = ["--catalogue", "plan.json", "build", "docs", "rag-pure", "--platform", "amd64,arm64"];
    sandbox.imgbuild([&words[..], &["--check-deterministic", "--metadata-file", "built.json"]].concat()).success();
    // Twice two and twice one, and each made once.
    assert_eq!(commands(&sandbox).len(), 6);
    assert_eq!(outcomes(&sandbox, "namespaces").len(), 3);
    for (image, module) in [("docs", "jsmin/"), ("docs", "csscompressor/"), ("rag-pure", "pypika/")] {
        let of = |at| {
            let mut all = installed(&sandbox, image, at);
            all.retain(|path, _| path.starts_with(module));
            all
        };
        assert!(!of(0).is_empty());
        assert_eq!(of(0), of(1), "{module}");
    }
    let foreign = if std::env::consts::ARCH == "x86_64" { "arm64" } else { "amd64" };
    let said = ["`run build of chroma", "it has compiled parts", &format!("linux/{foreign}")];
    sandbox.imgbuild(["--catalogue", "plan.json", "build", "rag", "--platform", foreign]).failure(1, &said);
}

#[test]
fn real_a_cross_compiler_builds_for_the_other_platform_what_runs_there() {
    let project = project();
    let (sandbox, _) = elsewhere(&project, &FILES, "0");
    let [native, foreign] = if std::env::consts::ARCH == "x86_64" { ["amd64", "arm64"] } else { ["arm64", "amd64"] };
    let machine = if foreign == "arm64" { "aarch64" } else { "x86_64" };
    let plan = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "everywhere", "--platform", foreign]).success();
    assert!(plan.contains("build of chroma_hnswlib-0.7.6.tar.gz, by a cross compiler"), "{plan}");
    let words = ["--catalogue", "plan.json", "build", "everywhere", "search", "--platform", foreign];
    sandbox.imgbuild([&words[..], &["--metadata-file", "built.json"]].concat()).success();
    bring_downloads(&sandbox, &project);
    let built = commands(&sandbox).into_iter().find(|it| it["label"].as_str().unwrap().contains("chroma")).unwrap();
    assert_eq!((&built["platform"], built.get("emulated")), (&Value::from(format!("linux/{native}")), None));
    let files = installed(&sandbox, "everywhere", 0);
    let module = format!("hnswlib.cpython-313-{machine}-linux-gnu.so");
    assert!(files.contains_key(&module), "{:?}", files.keys());
    let layout = Layout::open(&sandbox.work().join("dist"));
    let module = layout.image("everywhere")[0].content(&format!("opt/venv/lib/python3.13/site-packages/{module}"));
    assert_eq!((&module[..4], module[18]), (&b"\x7fELF"[..], if foreign == "arm64" { 183 } else { 62 }));
    let found = layout.image("search")[0].content("out/found");
    assert_eq!(String::from_utf8(found).unwrap(), format!("{machine} [[1]]\n"));
    let plan = sandbox.imgbuild(["--catalogue", "plan.json", "plan", "everywhere", "--platform", foreign]).success();
    assert!(plan.contains("by a cross compiler, ") && plan.contains(" s last time"), "{plan}");
}

#[test]
fn real_emulated_compilers_and_cross_compilers_make_wheels_of_the_same_files() {
    let project = Sandbox::sharing(&shared::folder("sdists"));
    project.write(
        "pins.txt",
        requirements(&[("markupsafe==3.0.4", "2e9ad7dd851bf45fab9f75cbff4cb493fee9979e8d8c7c9c3ee119022518edd6")]),
    );
    let stage = |packages: &[&str]| Stage::scratch().layer(debian(packages.iter().copied()).slim());
    let base = stage(&["base-files", "python3.13"]);
    let tools = ["base-files", "python3-dev", "python3-packaging", "python3-setuptools", "python3-wheel"];
    let with = |compilers: &[&str]| stage(&[&tools[..], compilers].concat());
    let wheels = |sdist| python(pip_requirements("pins.txt")).build_from_source(sdist);
    let emulated = wheels(sdist("markupsafe").emulated()).build_on(&with(&["gcc"]));
    let cross = wheels(sdist("markupsafe").cross(&stage(&["libpython3-dev"])))
        .build_on(&with(&["gcc-aarch64-linux-gnu", "gcc-x86-64-linux-gnu"]));
    let images = [("emulated", emulated), ("cross", cross)];
    let catalogue = images
        .into_iter()
        .fold(Catalogue::new("two ways"), |all, (name, wheels)| all.with(name, base.layer(wheels).image()));
    project.write("plan.json", catalogue.plan().to_json());
    project.imgbuild(["--catalogue", "plan.json", "lock"]).success();
    let (sandbox, _) = elsewhere(&project, &["pins.txt", "plan.json", "images.lock"], "0");
    let [native, foreign] = if std::env::consts::ARCH == "x86_64" { ["amd64", "arm64"] } else { ["arm64", "amd64"] };
    let build = ["--catalogue", "plan.json", "build", "--platform", foreign, "--metadata-file", "built.json"];
    sandbox.imgbuild(build).success();
    bring_downloads(&sandbox, &project);
    let told = commands(&sandbox);
    let told = told.iter().map(|it| (it["platform"].as_str().unwrap(), it.get("emulated").is_some()));
    let expected = [(&*format!("linux/{foreign}"), true), (&*format!("linux/{native}"), false)];
    assert_eq!(told.collect::<BTreeSet<_>>(), BTreeSet::from(expected));
    let [emulated, cross] = ["emulated", "cross"].map(|image| {
        let mut files = installed(&sandbox, image, 0);
        files.retain(|path, _| path.starts_with("markupsafe/"));
        files
    });
    assert_eq!(emulated.keys().collect::<Vec<_>>(), cross.keys().collect::<Vec<_>>());
    // Where compilers stand is in what debuggers read.
    let compiled = |path: &str| path.ends_with("-linux-gnu.so");
    assert_eq!(emulated.keys().filter(|path| compiled(path)).count(), 1, "{:?}", emulated.keys());
    for (path, member) in emulated.iter().filter(|(path, _)| !compiled(path)) {
        assert_eq!(*member, cross[path]);
    }
}
