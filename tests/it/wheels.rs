//! Wheels from an index of the test's own, through lock and build.

use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

use layers::source::{dir, files};
use layers::{Catalogue, Digest, ImagePath, Stage, path, python};

use crate::registry::registry;
use crate::support::layout::Layout;
use crate::support::listing::{assert_same, of_layers};
use crate::support::registry::Auth;
use crate::support::run::{Outcome, Sandbox, outcome, tool};
use crate::support::wheels::{Index, entry, poetry_lock};

/// An index, and a catalogue of one image whose wheels `poetry.lock` names.
struct Wheels {
    sandbox: Sandbox,
    index: Index,
}

impl Wheels {
    fn new() -> Wheels {
        let sandbox = Sandbox::new();
        let index = Index::new(&sandbox.path().join("index"));
        let stage = Stage::scratch().layer(python(layers::poetry_lock("poetry.lock")));
        let plan = Catalogue::new("wheels").with("app", stage.image()).plan().to_json();
        sandbox.write("plan.json", plan);
        Wheels { sandbox, index }
    }

    /// Puts a wheel onto the index; gives its entry in poetry.lock.
    fn wheel(&self, name: &str, files: &[&str]) -> String {
        self.index.wheel(name, "1.0", files)
    }

    /// On any machine, one thread puts layers together while another one still checks what is in them.
    fn run(&self, words: &[&str]) -> Outcome {
        self.run_by(2, words)
    }

    fn run_by(&self, jobs: usize, words: &[&str]) -> Outcome {
        let mut command = self.sandbox.command(["--catalogue", "plan.json"]);
        self.index.configure(command.args(words));
        outcome(command.env("IMGBUILD_JOBS", jobs.to_string()))
    }

    /// The digests of the image's layers that a build makes from the downloads alone.
    fn built(&self) -> Vec<String> {
        self.forget();
        self.run(&["build"]).success();
        self.layers()
    }

    /// Forgets all that was built.
    fn forget(&self) {
        let ledger = self.sandbox.cache().join("ledger-v1");
        fs::remove_dir_all(&ledger).unwrap();
        fs::create_dir(&ledger).unwrap();
    }

    /// The digests of the layers of the image that was built last.
    fn layers(&self) -> Vec<String> {
        let image = &Layout::open(&self.sandbox.work().join("dist")).image("app")[0];
        image.layers.iter().map(|layer| layer.digest.clone()).collect()
    }

    /// Where the cache has the wheel that lies on the index.
    fn cached(&self, name: &str) -> std::path::PathBuf {
        let digest = Digest::of(&fs::read(self.index.place(name, "1.0")).unwrap()).hex();
        self.sandbox.cache().join("blobs-v1").join(&digest[..2]).join(&digest)
    }
}

/// A module that is large enough for its deflate stream to be kept.
fn large(seed: u32) -> String {
    let lines = (0..4000_u32).map(|at| format!("x{at} = {}\n", (at ^ seed).wrapping_mul(2_654_435_761)));
    format!("large.py={}", lines.collect::<String>())
}

/// Puts the RECORD of one wheel into another.
const EXCHANGE: &str = r#"
import sys, zipfile
of, into = (zipfile.ZipFile(path) for path in sys.argv[1:3])
with zipfile.ZipFile(sys.argv[3], "w", zipfile.ZIP_DEFLATED) as out:
    for name in into.namelist():
        out.writestr(name, (of if name.endswith("/RECORD") else into).read(name))
"#;

/// Layers are made of a wheel, and sent, while it is checked.
#[test]
fn what_is_wrong_with_a_wheel_is_found_out_before_an_image_names_it() {
    let wheels = Wheels::new();
    let good = wheels.wheel("one", &[&large(1), "small.py=1\n"]);
    let place = wheels.index.place("one", "1.0");
    let other = wheels.sandbox.path().join("other.whl");
    fs::copy(&place, &other).unwrap();
    wheels.wheel("one", &[&large(2), "small.py=1\n"]);
    let lying = wheels.sandbox.path().join("lying.whl");
    tool("python3", ["-c".as_ref(), EXCHANGE.as_ref(), place.as_os_str(), other.as_os_str(), lying.as_os_str()]);
    let swapped = fs::read(&place).unwrap();
    fs::copy(&other, &place).unwrap();
    assert_eq!(wheels.index.offer("one", "1.0"), good);
    wheels.sandbox.write("poetry.lock", poetry_lock(&[good]));
    wheels.run(&["lock"]).success();
    wheels.run(&["build"]).success();
    let expected = wheels.built();

    // One that rotted in the cache, in a large file, in its directory and between both, and another one in its place: they are
    // downloaded again.
    let (bytes, cached) = (fs::read(&place).unwrap(), wheels.cached("one"));
    let mut others = vec![swapped];
    for at in [2000, bytes.len() - 200, bytes.len() - 2] {
        let mut rotten = bytes.clone();
        rotten[at] ^= 0x10;
        others.push(rotten);
    }
    for other in others {
        fs::remove_file(&cached).unwrap();
        fs::write(&cached, other).unwrap();
        assert_eq!(wheels.built(), expected);
        assert!(fs::read(&cached).unwrap() == bytes);
    }

    // The same where it takes the place of another one, whose layer is made before the archive is known to be whole.
    for (round, at) in [2000, bytes.len() - 200, bytes.len() - 2].into_iter().enumerate() {
        let entry = wheels.wheel("one", &[&large(100 + round as u32), "small.py=1\n"]);
        wheels.sandbox.write("poetry.lock", poetry_lock(&[entry]));
        wheels.run(&["lock"]).success();
        let cached = wheels.cached("one");
        let good = fs::read(&cached).unwrap();
        let mut rotten = good.clone();
        rotten[at] ^= 0x10;
        fs::remove_file(&cached).unwrap();
        fs::write(&cached, rotten).unwrap();
        wheels.run(&["build"]).success();
        assert!(fs::read(&cached).unwrap() == good);
        assert_eq!(wheels.layers(), wheels.built());
    }

    // One whose RECORD is wrong, alone and among others: told each time, and no image of it comes anywhere.
    fs::copy(&lying, &place).unwrap();
    let entry = wheels.index.offer("one", "1.0");
    let registry = registry(|_| {});
    let tagged = format!("{}/team/app:v1", registry.host());
    for others in [0, 1, 5] {
        let module = |at: u32| large(at).replace("large.py", &format!("large{at}.py"));
        let mut entries = vec![entry.clone()];
        entries.extend((0..others).map(|at| wheels.wheel(&format!("w{at}"), &[&module(10 * others + at)])));
        wheels.sandbox.write("poetry.lock", poetry_lock(&entries));
        wheels.run(&["lock"]).success();
        for jobs in [2, 3, 1, 16, 2] {
            let pushed = wheels.run_by(jobs, &["push", "app", "--tag", &tagged]);
            pushed.failure(1, &["one-1.0-py3-none-any.whl", "large.py", "RECORD"]);
            assert_eq!(registry.tag("team/app", "v1"), None);
            assert_eq!(registry.requests("PUT /v2/team/app/manifests/").len(), 0);
        }
    }
}

/// Writes a wheel anew, with bytes behind the deflate streams of these files, within their packed content.
const TAILS: &str = r#"
import sys, zipfile, zlib
class Compressor:
    def __init__(self): self.inner = zlib.compressobj(9, zlib.DEFLATED, -15)
    def compress(self, data): return self.inner.compress(data)
    def flush(self): return self.inner.flush() + (b"behind the end" if name in sys.argv[2:] else b"")
zipfile._get_compressor = lambda *_: Compressor()
held = zipfile.ZipFile(sys.argv[1])
files = [(name, held.read(name)) for name in held.namelist()]
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as out:
    for name, data in files:
        out.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
"#;

/// As pip installs it: what stands behind the end of a deflate stream is no part of the file, nor of the image.
#[test]
fn a_wheel_whose_streams_have_tails_is_installed_as_pip_does() {
    let wheels = Wheels::new();
    let tree = || of_layers(&Layout::open(&wheels.sandbox.work().join("dist")).image("app")[0].layers);
    // Of these files, with tails behind those of these names.
    let build = |names: &[&str]| {
        wheels.wheel("one", &[&large(1), "small.py=1\n", &large(2).replace("large.py", "two.py")]);
        let place = wheels.index.place("one", "1.0");
        let words = [OsStr::new("-c"), OsStr::new(TAILS), place.as_os_str()];
        tool("python3", words.into_iter().chain(names.iter().map(OsStr::new)));
        wheels.sandbox.write("poetry.lock", poetry_lock(&[wheels.index.offer("one", "1.0")]));
        wheels.run(&["lock"]).success();
        wheels.run(&["build"]).success();
        wheels.layers()
    };
    let copied = build(&[]);
    let expected = tree();
    // It takes the place of the one before, its files being checked while its layer is made; then all is made from nothing.
    let information = ["one-1.0.dist-info/RECORD", "one-1.0.dist-info/METADATA"];
    for (names, is_copied) in [(&["large.py", "small.py"][..], false), (&["two.py"], false), (&information, true)] {
        let layers = build(names);
        assert_same(&tree(), &expected, &names.join(" "));
        assert_eq!(layers == copied, is_copied, "{names:?}");
        for jobs in [1, 2, 16] {
            wheels.forget();
            wheels.run_by(jobs, &["build"]).success();
            assert_eq!(wheels.layers(), layers, "{names:?}");
        }
    }
}

/// What an image of wheels, and files below and above them, comes to after a change.
struct Change<'a> {
    what: &'a str,
    one: (&'a str, Vec<String>),
    two: &'a str,
    /// A file of the context, where that changes.
    file: Option<&'a str>,
    /// Whether the stage is walked.
    walked: bool,
}

/// Wheels take the places of others without a walk where nothing else depends on them, and in each case the image is what a build
/// from nothing makes.
#[test]
fn changed_wheels_come_to_what_a_build_from_nothing_comes_to() {
    let wheels = Wheels::new();
    let site = "/opt/venv/lib/python3.13/site-packages";
    let at = |path: &str| ImagePath::new(format!("{site}/{path}")).unwrap();
    let needed = ["libc.so.6", "libd.so.6", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let packages = python(layers::poetry_lock("poetry.lock"));
    let packages = needed.into_iter().fold(packages, |packages, name| packages.allow_missing(name));
    let stage = Stage::scratch()
        .layer(dir(at("below")).mode(0o700))
        .layer(packages)
        .layer(files("src", path!("/app")))
        .layer(files("over", at("late")));
    wheels.sandbox.write("plan.json", Catalogue::new("wheels").with("app", stage.image()).plan().to_json());
    wheels.sandbox.write("over/late.py", "0\n");
    let three = wheels.wheel("three", &["three.py=3\n", "tools/three.py=3\n"]);
    let program = |name: &str, from: &[u8], to: &[u8]| {
        let mut bytes = fs::read("/bin/true").unwrap();
        let found = bytes.windows(from.len()).position(|it| it == from).expect("`true` needs the C library");
        bytes[found..found + to.len()].copy_from_slice(to);
        let place = wheels.sandbox.path().join(name);
        fs::write(&place, [bytes, name.into()].concat()).unwrap();
        format!("tool=@{}", place.display())
    };
    let needs = |name: &str, library: &[u8]| program(name, b"libc.so.6", library);
    let (plain, newer) = (needs("plain", b"libc.so.6"), needs("newer", b"libc.so.6"));
    let (other, missing) = (needs("other", b"libd.so.6"), needs("missing", b"libe.so.6"));
    let (plain, newer, other, missing) = (plain.as_str(), newer.as_str(), other.as_str(), missing.as_str());
    let two = "two/__init__.py=2\n";
    wheels.sandbox.write("src/app.py", "1\n");
    let change = |what, version, one: &[&str], walked| {
        let one = one.iter().map(|file| (*file).to_owned()).collect();
        Change { what, one: (version, one), two, file: None, walked }
    };
    let changes = [
        change("the first build", "1.0", &["one.py=1\n", "old/one.py=1\n"], true),
        change("other content", "1.0", &["one.py=2\n", "old/one.py=1\n"], false),
        change("other folders", "1.1", &["one.py=3\n", "new/deep/one.py=1\n", "tools/one.py=1\n"], false),
        Change {
            file: Some("2\n"),
            ..change("an edit", "1.1", &["one.py=3\n", "new/deep/one.py=1\n", "tools/one.py=1\n"], false)
        },
        change("after an edit", "1.2", &["one.py=4\n", "new/deep/one.py=2\n"], false),
        Change {
            file: Some("3\n"),
            ..change("an edit after it", "1.2", &["one.py=4\n", "new/deep/one.py=2\n"], false)
        },
        change("a file in place of a folder", "1.2", &["one.py=4\n", "new=a file now"], true),
        Change { file: Some("4\n"), ..change("both at once", "1.2", &["one.py=5\n"], true) },
        change("a large file", "1.3", &["one.py=5\n", &large(1)], false),
        change("another large file", "1.3", &["one.py=5\n", &large(2)], false),
        change("a folder that is below", "1.4", &["one.py=6\n", "below/one.py=1\n"], true),
        change("again in it", "1.4", &["one.py=7\n", "below/one.py=2\n"], false),
        change("nothing in it any more", "1.5", &["one.py=8\n"], true),
        change("a folder that is above", "1.6", &["one.py=8\n", "late/one.py=1\n"], true),
        change("not any more", "1.7", &["one.py=8\n", "early/one.py=1\n"], true),
        change("a file that is above", "1.8", &["one.py=8\n", "late/late.py=1\n"], true),
        change("the same in another way", "1.8", &["one.py=8\n", "late/late.py=2\n"], true),
        change("none that is above", "1.8", &["one.py=8\n"], true),
        change("a file of another wheel", "1.9", &["one.py=8\n", "two/__init__.py=2\n"], true),
        change("the same again", "1.9", &["one.py=9\n", "two/__init__.py=2\n"], true),
        change("different from another wheel's", "1.9", &["one.py=9\n", "two/__init__.py=3\n"], true),
        change("a program", "2.0", &["one.py=1\n", plain], true),
        change("a newer one", "2.0", &["one.py=2\n", newer], false),
        change("one that needs another library", "2.0", &["one.py=3\n", other], true),
        change("one whose library is missing", "2.0", &["one.py=3\n", missing], true),
        Change { two: "two/__init__.py=4\n", ..change("two wheels", "2.0", &["one.py=4\n", plain], true) },
        Change { two: "two/__init__.py=5\n", ..change("the other wheel", "2.0", &["one.py=4\n", plain], false) },
        Change {
            two: "two/more/deep.py=1\n",
            ..change("a folder in the other wheel", "2.0", &["one.py=4\n", plain], false)
        },
        Change {
            two: "two/__init__.py=6\n",
            ..change("both wheels", "2.1", &["one.py=5\n", "a/b.py=1\n", plain], false)
        },
        Change { two: "two/two.py=7\n", ..change("a moved file", "2.2", &["two/__init__.py=6\n", plain], true) },
    ];
    // Indexes of what is below, which a walk opens, and makes once more where they are gone.
    let indexes = || -> Vec<std::path::PathBuf> {
        let folders = |name: &str| fs::read_dir(wheels.sandbox.cache().join(name)).into_iter().flatten();
        let records = folders("ledger-v1").flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        let index = |record: String| {
            let is_below = record.lines().nth(2).is_some_and(|text| text.starts_with("plain "));
            let hex = record.split_once("\"index\":\"sha256:")?.1[..64].to_owned();
            is_below.then(|| wheels.sandbox.cache().join("blobs-v1").join(&hex[..2]).join(hex))
        };
        records.filter_map(|record| index(fs::read_to_string(record.unwrap().path()).unwrap())).collect()
    };
    let mut last = Vec::new();
    for (at, Change { what, one: (version, held), two, file, walked }) in changes.into_iter().enumerate() {
        if let Some(text) = file {
            wheels.sandbox.write("src/app.py", text);
        }
        let entries = [wheels.index.wheel("one", version, &held), wheels.wheel("two", &[two]), three.clone()];
        wheels.sandbox.write("poetry.lock", poetry_lock(&entries));
        wheels.run(&["lock"]).success();
        let known = indexes();
        known.iter().for_each(|index| drop(fs::remove_file(index)));
        let built = wheels.run_by([2, 1, 4][at % 3], &["build"]);
        let layers = built.status.eq(&0).then(|| wheels.layers());
        let is_walked = known.is_empty() || known.iter().any(|index| index.exists());
        let nothing = tempfile::tempdir_in(wheels.sandbox.path()).unwrap();
        let mut cold = wheels.sandbox.command(["--catalogue", "plan.json", "build"]);
        wheels.index.configure(cold.env("IMGBUILD_JOBS", "1").env("IMGBUILD_CACHE_DIR", nothing.path()));
        let cold = outcome(&mut cold);
        assert_eq!(built.status, cold.status, "{what}: {}{}", built.stderr, cold.stderr);
        match layers {
            Some(layers) => {
                assert_eq!(layers, wheels.layers(), "{what}");
                assert_ne!(layers, last, "{what}");
                assert_eq!(is_walked, walked, "{what}");
                last = layers;
            }
            None => assert_eq!(built.stderr.lines().last(), cold.stderr.lines().last(), "{what}"),
        }
    }
}

/// The layer of a changed wheel waits for the registry's answer, and is not sent where that refuses.
#[test]
fn a_changed_wheel_is_not_sent_where_one_may_not_push() {
    let wheels = Wheels::new();
    let lock = |text: &str| {
        let entries = [wheels.wheel("one", &[text]), wheels.wheel("two", &["two.py=2\n"])];
        wheels.sandbox.write("poetry.lock", poetry_lock(&entries));
        wheels.run(&["lock"]).success();
    };
    lock("one.py=1\n");
    wheels.run(&["build"]).success();
    lock("one.py=2\n");
    let closed = registry(|kind| (kind.auth, kind.latency) = (Auth::Basic, Duration::from_millis(300)));
    for jobs in [2, 1] {
        let tagged = format!("{}/team/app:v1", closed.host());
        wheels.run_by(jobs, &["push", "app", "--tag", &tagged]).failure(1, &[&closed.host()]);
        assert!(closed.state().blobs.is_empty() && closed.state().repos.is_empty());
    }
    let open = registry(|_| {});
    wheels.run(&["push", "app", "--tag", &format!("{}/team/app:v1", open.host())]).success();
    open.assert_whole();
    wheels.run(&["build"]).success();
    let found = wheels.layers();
    assert_eq!(wheels.built(), found);
}

#[test]
fn a_file_that_two_wheels_install_alike_is_there_once() {
    let index = Wheels::new();
    let shared = "space/__init__.py=# of both\n";
    let one = index.wheel("one", &["space/one.py=1\n", shared]);
    let two = index.wheel("two", &["space/two.py=2\n", shared]);
    index.sandbox.write("poetry.lock", poetry_lock(&[one, two]));
    index.run(&["lock"]).success();
    index.run(&["build"]).success();
    let image = &Layout::open(&index.sandbox.work().join("dist")).image("app")[0];
    let mut held: Vec<String> =
        image.layers.iter().flat_map(|layer| layer.members()).map(|member| member.path).collect();
    held.retain(|path| path.contains("/space/") && !path.ends_with('/'));
    held.sort();
    let site = "opt/venv/lib/python3.13/site-packages/space";
    let expected = ["__init__.py", "one.py", "two.py"].map(|name| format!("{site}/{name}"));
    assert_eq!(held, expected);
}

#[test]
fn files_that_two_wheels_install_differently_are_refused() {
    let index = Wheels::new();
    let one = index.wheel("one", &["tests/__init__.py=1\n"]);
    let two = index.wheel("two", &["tests/__init__.py=2\n"]);
    index.sandbox.write("poetry.lock", poetry_lock(&[one, two]));
    index.run(&["lock"]).success();
    let path = "/opt/venv/lib/python3.13/site-packages/tests/__init__.py";
    index.run(&["build"]).failure(1, &["`one-1.0", "`two-1.0", path, "`.without([..])`"]);
    assert!(!index.sandbox.work().join("dist").exists());
    // The same where one that fits was changed.
    let lock = |text: &str| {
        let two = index.wheel("two", &[text]);
        index.sandbox.write("poetry.lock", poetry_lock(&[index.wheel("one", &["tests/__init__.py=1\n"]), two]));
        index.run(&["lock"]).success();
    };
    lock("tests/two.py=2\n");
    index.run(&["build"]).success();
    let built = index.layers();
    // Not the wheel from above, whose fragment may be there.
    lock("tests/__init__.py=3\n");
    for jobs in [2, 1] {
        let refused = index.run_by(jobs, &["build"]);
        refused.failure(1, &["`one-1.0", "`two-1.0", path]);
        assert!(index.layers() == built);
    }
}

#[test]
fn a_context_with_a_package_that_has_only_an_sdist_is_refused_by_name() {
    let index = Wheels::new();
    let one = index.wheel("one", &["one.py=1\n"]);
    index.sandbox.write("poetry.lock", poetry_lock(std::slice::from_ref(&one)));
    index.run(&["lock"]).success();
    let sdist = entry("jsmin", "1.0", "jsmin-1.0.tar.gz", &"a".repeat(64));
    index.sandbox.write("other/poetry.lock", poetry_lock(&[sdist, one.clone()]));
    let said = ["jsmin 1.0", "only an sdist, `jsmin-1.0.tar.gz`", "linux/amd64", "ways out"];
    index.run(&["build", "--context", "other", "--platform", "linux/amd64"]).failure(1, &said);
    assert!(!index.sandbox.work().join("other/imgbuild.lock").exists());
    // What is not recorded is not built with `--locked`, and is recorded without.
    let two = index.wheel("two", &["two.py=2\n"]);
    index.sandbox.write("other/poetry.lock", poetry_lock(&[one, two]));
    index.run(&["build", "--context", "other", "--locked"]).failure(1, &["imgbuild.lock", "without `--locked`"]);
    index.index.files.asked();
    let explained = index.run(&["explain", "--context", "other"]).success();
    assert!(explained.contains("miss") && explained.contains("two"), "{explained}");
    assert!(!index.sandbox.work().join("other/imgbuild.lock").exists(), "nothing is written");
    let asked = index.index.files.asked();
    assert!(!asked.is_empty() && !asked.iter().any(|path| path.ends_with(".whl")), "nothing is downloaded: {asked:?}");
    index.run(&["build", "--context", "other"]).success();
    let recorded = fs::read_to_string(index.sandbox.work().join("other/imgbuild.lock")).unwrap();
    assert!(recorded.contains("two-1.0-py3-none-any.whl"), "{recorded}");
    index.run(&["build", "--context", "other", "--locked"]).success();
}
