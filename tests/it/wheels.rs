//! Wheels from an index of the test's own, through lock and build.

use std::fs;

use layers::{Catalogue, Digest, Stage, python};

use crate::registry::registry;
use crate::support::layout::Layout;
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

/// The layer of a wheel that changed is put together while its stage is walked, as it was before; the walk decides.
#[test]
fn a_layer_that_was_guessed_is_in_the_image_only_if_a_walk_comes_to_it() {
    let wheels = Wheels::new();
    let others = [
        wheels.wheel("two", &["two/__init__.py=2\n", "space/two.py=2\n", &large(2).replace("large", "two/large")]),
        wheels.wheel("three", &["three.py=3\n", "tools/three.py=3\n"]),
    ];
    let lock = |version: &str, files: &[&str]| {
        let one = wheels.index.wheel("one", version, files);
        wheels.sandbox.write("poetry.lock", poetry_lock(&[vec![one], others.to_vec()].concat()));
        wheels.run(&["lock"]).success();
    };
    lock("1.0", &["one.py=1\n", "old/one.py=1\n"]);
    wheels.run(&["build"]).success();
    // How often its layer is written.
    let changes: [(&str, &[&str], usize); 6] = [
        ("1.0", &["one.py=2\n", "old/one.py=1\n"], 1),
        // Other directories than before, two of which the others have as well.
        ("1.1", &["one.py=3\n", "new/deep/one.py=1\n", "space/one.py=1\n", "tools/one.py=1\n"], 1),
        // A file that another wheel has as well is there once.
        ("1.1", &["one.py=4\n", "two/__init__.py=2\n"], 2),
        // Nothing is guessed where a neighbour left something out.
        ("1.2", &["one.py=5\n", "two/__init__.py=2\n"], 1),
        ("1.3", &[&large(3), "one.py=6\n"], 1),
        ("1.4", &["one.py=7\n"], 1),
    ];
    for (at, (version, files, written)) in changes.into_iter().enumerate() {
        lock(version, files);
        let built = wheels.run(&["build", "--progress", "json"]);
        assert_eq!(built.status, 0, "{}", built.stderr);
        let count = built.stderr.matches("\"layer-started\"").count();
        let guessed = wheels.layers();
        wheels.forget();
        wheels.run_by(1, &["build"]).success();
        assert_eq!(wheels.layers(), guessed, "change {at}");
        assert_eq!(count, written, "change {at}: {}", built.stderr);
    }
}

/// A build in which one of many wheels changed leaves the indexes of the others together.
#[test]
fn indexes_that_were_written_together_serve_the_next_build() {
    let wheels = Wheels::new();
    let module = |at: usize| format!("w{at}.py={at}\n");
    let others: Vec<String> = (0..12).map(|at| wheels.wheel(&format!("w{at}"), &[&module(at)])).collect();
    let build = |text: &str| {
        let one = wheels.wheel("one", &[text]);
        wheels.sandbox.write("poetry.lock", poetry_lock(&[vec![one], others.clone()].concat()));
        wheels.run(&["lock"]).success();
        let built = wheels.run(&["build", "--progress", "json"]);
        assert_eq!(built.status, 0, "{}", built.stderr);
        (wheels.layers(), built.stderr.matches("\"conversion-started\"").count())
    };
    assert_eq!(build("one.py=1\n").1, 13);
    assert_eq!(build("one.py=2\n").1, 1);
    // The indexes' own blobs, by the records of fragments.
    let folders = |name: &str| fs::read_dir(wheels.sandbox.cache().join(name)).unwrap().map(|it| it.unwrap().path());
    let mut together = None;
    let (mut alone, mut fragments) = (Vec::new(), Vec::new());
    for record in folders("ledger-v1").flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let record = fs::read_to_string(record.unwrap().path()).unwrap();
        let digest = |field: &str| record.split_once(field).map(|(_, rest)| rest[..64].to_owned());
        together = together.or(digest("\"indexes\":\"sha256:"));
        alone.extend(digest("\"index\":\"sha256:"));
        fragments.extend(digest("{\"fragment\":\"sha256:"));
    }
    let blob = |hex: &str| wheels.sandbox.cache().join("blobs-v1").join(&hex[..2]).join(hex);
    let together = blob(&together.expect("they were written"));
    for index in &alone {
        let _ = fs::remove_file(blob(index));
    }
    let (layers, converted) = build("one.py=3\n");
    assert!(alone.len() >= 13 && together.exists());
    assert_eq!(converted, 1, "the others' indexes were read together");
    // A fragment that is gone is made again, whatever is known of it.
    assert!(fragments.len() >= 13);
    for fragment in &fragments {
        let _ = fs::remove_file(blob(fragment));
    }
    assert_eq!(build("one.py=5\n"), (wheels.layers(), 13));
    assert_eq!(wheels.built(), wheels.layers());
    build("one.py=6\n");
    for index in &alone {
        let _ = fs::remove_file(blob(index));
    }
    // Damaged, they count as missing, as all others do: what they were made from is there.
    let mut bytes = fs::read(&together).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::remove_file(&together).unwrap();
    fs::write(&together, bytes).unwrap();
    let (found, converted) = build("one.py=4\n");
    assert_eq!((converted, found.len()), (13, layers.len()));
    assert!(!together.exists());
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
    // The same where the layer was there already, of one that fits and was changed: it is in no image.
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
    for guessed in [true, false] {
        let refused = index.run_by(if guessed { 2 } else { 1 }, &["build", "--progress", "json"]);
        assert_eq!((refused.status, refused.stderr.contains("\"layer-finished\"")), (1, guessed), "{}", refused.stderr);
        assert!(refused.stderr.contains(path) && index.layers() == built);
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
    index.run(&["build", "--context", "other"]).success();
    let recorded = fs::read_to_string(index.sandbox.work().join("other/imgbuild.lock")).unwrap();
    assert!(recorded.contains("two-1.0-py3-none-any.whl"), "{recorded}");
    index.run(&["build", "--context", "other", "--locked"]).success();
}
