//! Archives that want to write elsewhere, through the whole engine: into a layer, and the layer onto a disk where a canary
//! sits beside the root.
//!
//! A reader judges one entry at a time; here is judged what several entries make together. Everything ends in one of two
//! ways: a typed error, or a layer that GNU tar unpacks without touching anything outside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use cache::Store;
use imgbuild::engine::EngineError;
use imgbuild::engine::local::{Given, Local, Subject, Supply};
use imgbuild::engine::run::Commands;
use imgbuild::observe::Silent;
use imgbuild::pin::{Context, StatCache};
use imgbuild::remote::Sources;
use layers::encode::Compression;
use layers::lock::Lock;
use layers::op::Archive;
use layers::source::{Fetch, Unpack, dir, fetch, files, inline, link};
use layers::{Catalogue, Digest, ImagePath, Platform, Stage, path};

/// Archives of a test, by digest.
#[derive(Default)]
struct Shelf {
    folder: Option<tempfile::TempDir>,
    files: Mutex<BTreeMap<Digest, PathBuf>>,
}

impl Supply for Shelf {
    fn supply(&self, archive: &Archive) -> Result<PathBuf, EngineError> {
        Ok(self.files.lock().unwrap()[&archive.digest].clone())
    }

    fn base(&self, image: &str, _: &Digest, _: Platform) -> Result<(), EngineError> {
        panic!("no stage here stands on `{image}`")
    }

    fn base_layers(&self, image: &str, _: &[&layers::oci::Descriptor]) -> Result<(), EngineError> {
        panic!("no stage here stands on `{image}`")
    }
}

impl Shelf {
    fn new() -> Shelf {
        Shelf { folder: Some(tempfile::tempdir().unwrap()), files: Mutex::default() }
    }

    /// A stage with this archive unpacked at the root.
    fn unpack(&self, below: &Stage, name: &str, bytes: &[u8], how: Unpack) -> Stage {
        self.put(below, name, bytes, ImagePath::root(), Some(how))
    }

    /// A stage with this download at a place.
    fn put(&self, below: &Stage, name: &str, bytes: &[u8], to: ImagePath, how: Option<Unpack>) -> Stage {
        let got = self.got(name, bytes, to);
        below.layer(match how {
            Some(how) => got.unpack(how),
            None => got,
        })
    }

    /// A download that is there.
    fn got(&self, name: &str, bytes: &[u8], to: ImagePath) -> Fetch {
        let digest = Digest::of(bytes);
        let file = self.folder.as_ref().unwrap().path().join(digest.hex());
        fs::write(&file, bytes).unwrap();
        self.files.lock().unwrap().insert(digest, file);
        fetch(format!("http://nowhere.example/{name}"), digest, to)
    }

    fn tar(&self, below: &Stage, entries: &[Part<'_>]) -> Stage {
        self.unpack(below, "a.tar", &archive(entries), Unpack::Tar)
    }

    /// Builds a stage's layers and unpacks them on a disk: the listing of the root, or what is said.
    fn build(&self, stage: &Stage) -> Result<Vec<String>, String> {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open_at(&home.path().join("cache")).unwrap();
        fs::create_dir(home.path().join("context")).unwrap();
        fs::write(home.path().join("context/a"), "of the context").unwrap();
        let context = Context::open(&home.path().join("context"), StatCache::default(), 1).unwrap();
        let (nowhere, commands) = (Sources::default(), Commands::default());
        let engine = Local::new(Given {
            store: &store,
            observer: &Silent,
            supply: self,
            context: &context,
            catalogue_dir: home.path().into(),
            jobs: 2,
            compression: Compression::default(),
            commands: &commands,
            elsewhere: &nowhere,
        });
        let plan = Catalogue::new("hostile").with("image", stage.clone().image()).plan();
        let lock = Lock::default();
        let top = plan.images["image"].stage;
        let resolved = layers::lower::lower(&plan, top, &lock, Platform::Amd64, &|_| None).unwrap();
        let subject = Subject { plan: &plan, lock: &lock, platform: Platform::Amd64 };
        let made = engine.walk(subject, &resolved, None, &|_| Ok(())).and_then(|walked| {
            let records = engine.assemble(&walked.jobs.iter().collect::<Vec<_>>(), 2, &|_| ())?;
            Ok(walked.jobs.iter().map(|job| store.blob_path(&records[&job.key].digest)).collect::<Vec<PathBuf>>())
        });
        let blobs = made.map_err(|error| match &error {
            EngineError::At { at: Some(at), .. } => format!("{at}: {error}"),
            _ => error.to_string(),
        })?;
        for blob in &blobs {
            no_path_twice(blob);
        }
        Ok(unpacked(&blobs))
    }

    #[track_caller]
    fn refused(&self, stage: &Stage, why: &str) {
        let error = self.build(stage).expect_err("it was accepted");
        assert!(error.contains(why), "`{error}` does not say `{why}`");
    }
}

/// An entry of an archive.
#[derive(Clone, Copy)]
enum Part<'a> {
    File(&'a str, &'a str),
    Dir(&'a str),
    Symlink(&'a str, &'a str),
    Hardlink(&'a str, &'a str),
}

use Part::{Dir, File, Hardlink, Symlink};

fn archive(parts: &[Part<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let (name, flag, target, content, mode) = match *part {
            File(name, content) => (name, b'0', "", content, "0000644\0"),
            Dir(name) => (name, b'5', "", "", "0000777\0"),
            Symlink(name, target) => (name, b'2', target, "", "0000777\0"),
            Hardlink(name, target) => (name, b'1', target, "", "0000644\0"),
        };
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(mode.as_bytes());
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"14524770400\0");
        header[156] = flag;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

/// dockerd and podman refuse layers that hold a path twice, a directory, too.
#[track_caller]
fn no_path_twice(blob: &Path) {
    let file = flate2::read::MultiGzDecoder::new(fs::File::open(blob).unwrap());
    let mut seen = std::collections::BTreeSet::new();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let name = String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap();
        assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."), "{name}");
        assert!(seen.insert(name.trim_end_matches('/').to_owned()), "`{name}` is there twice");
    }
}

/// Unpacks layers one over the other as GNU tar does, beside a canary that nothing may touch.
#[track_caller]
fn unpacked(blobs: &[PathBuf]) -> Vec<String> {
    let disk = tempfile::tempdir().unwrap();
    let (root, canary) = (disk.path().join("root"), disk.path().join("canary"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("passwd"), "alive").unwrap();
    for blob in blobs {
        let done = Command::new("tar").arg("-xzpf").arg(blob).arg("-C").arg(&root).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    assert_eq!(fs::read_to_string(canary.join("passwd")).unwrap(), "alive");
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 1);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 2);
    let mut lines = Vec::new();
    list(&root, "", &mut lines);
    lines.sort();
    lines
}

fn list(root: &Path, below: &str, lines: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}{}", entry.file_name().into_string().unwrap());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            lines.push(format!("{path}/"));
            list(root, &format!("{path}/"), lines);
        } else if kind.is_symlink() {
            lines.push(format!("{path} -> {}", fs::read_link(entry.path()).unwrap().display()));
        } else {
            lines.push(format!("{path} {}", fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// Where hostile links point: out of the root of whoever unpacks a layer beside the canary.
const OUTSIDE: [&str; 5] = ["../canary", "/../canary", "/canary", "../../../../../../../../canary", "x/../../canary"];

#[test]
fn a_link_and_a_path_below_it_in_one_archive_are_refused() {
    for target in OUTSIDE {
        for order in [[0, 1], [1, 0]] {
            let parts = [Symlink("etc", target), File("etc/passwd", "evil")];
            let shelf = Shelf::new();
            shelf.refused(&shelf.tar(&Stage::scratch(), &order.map(|at| parts[at])), "`/etc`");
            let parts = [Symlink("etc", target), Dir("etc/")];
            shelf.refused(&shelf.tar(&Stage::scratch(), &order.map(|at| parts[at])), "`/etc`");
            let parts = [Symlink("etc", target), Symlink("etc/passwd", "/evil")];
            shelf.refused(&shelf.tar(&Stage::scratch(), &order.map(|at| parts[at])), "`/etc`");
            let parts = [Symlink("etc", target), Dir("etc/deep/")];
            shelf.refused(&shelf.tar(&Stage::scratch(), &order.map(|at| parts[at])), "`/etc`");
        }
    }
}

#[test]
fn a_path_below_a_link_of_a_lower_layer_is_refused() {
    for target in OUTSIDE {
        let shelf = Shelf::new();
        let below = shelf.tar(&Stage::scratch(), &[Symlink("etc", target)]);
        for parts in [
            vec![File("etc/passwd", "evil")],
            vec![Dir("etc/")],
            vec![Dir("etc/deep/")],
            vec![Symlink("etc/passwd", "/evil")],
            vec![File("a", "x"), Hardlink("etc/passwd", "a")],
        ] {
            shelf.refused(&shelf.tar(&below, &parts), "`/etc`");
        }
    }
}

#[test]
fn what_a_definition_writes_through_a_link_stays_in_the_image() {
    for target in OUTSIDE {
        let shelf = Shelf::new();
        let below = shelf.tar(&Stage::scratch(), &[Symlink("etc", target)]);
        // In the image, every one of these targets means /canary or below it.
        let through = below.layer(inline("fine", path!("/etc/passwd")));
        match shelf.build(&through) {
            Ok(lines) => assert!(lines.contains(&"canary/passwd fine".to_owned()), "{target}: {lines:?}"),
            Err(error) => {
                assert!(error.contains("lead out of the image") || error.contains("`/x`"), "{target}: {error}")
            }
        }
    }
}

#[test]
fn what_is_unpacked_goes_where_links_of_the_stage_below_lead() {
    let shelf = Shelf::new();
    let scratch = Stage::scratch();
    let busybox = [Dir("bin/"), File("bin/box", "b"), Symlink("bin/sh", "/bin/box"), Hardlink("bin/ls", "bin/box")];
    // Nothing there moves what lies in an archive.
    let alone = ["bin/", "bin/box b", "bin/ls b", "bin/sh -> /bin/box"];
    assert_eq!(shelf.build(&shelf.tar(&scratch, &busybox)).unwrap(), alone);
    let files = [("bin/box", "b"), ("lib/x", "l")];
    let zipped = |below: &Stage| shelf.unpack(below, "a.zip", &zip(&files), Unpack::Zip);
    let zip_alone = ["bin/", "bin/box b", "lib/", "lib/x l"];
    assert_eq!(shelf.build(&zipped(&scratch)).unwrap(), zip_alone);
    assert_eq!(shelf.build(&shelf.tar(&scratch, &files.map(|(name, text)| File(name, text)))).unwrap(), zip_alone);
    // Nor do folders that are no links.
    let folders = shelf.tar(&scratch, &[Dir("bin/"), Dir("lib/")]);
    assert_eq!(shelf.build(&zipped(&folders)).unwrap(), zip_alone);
    // Merged /usr: through the links, which stay.
    let merged = scratch.layer(link(path!("/bin"), "usr/bin"));
    let through = ["bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/box b", "usr/bin/ls b", "usr/bin/sh -> /bin/box"];
    assert_eq!(shelf.build(&shelf.tar(&merged, &busybox)).unwrap(), through);
    let zip_through = ["bin -> usr/bin", "lib/", "lib/x l", "usr/", "usr/bin/", "usr/bin/box b"];
    assert_eq!(shelf.build(&zipped(&merged)).unwrap(), zip_through);
    // Such a link may lead anywhere, and an archive may bring it once more.
    let other = shelf.tar(&merged.layer(link(path!("/lib"), "/opt/../deep/lib")), &[Symlink("bin", "usr/bin")]);
    let elsewhere = [
        "bin -> usr/bin",
        "deep/",
        "deep/lib/",
        "deep/lib/x l",
        "lib -> /opt/../deep/lib",
        "usr/",
        "usr/bin/",
        "usr/bin/box b",
    ];
    assert_eq!(shelf.build(&zipped(&other)).unwrap(), elsewhere);
    // What it brings in the place of such a link is told, and so is what would lie in no folder.
    shelf.refused(&zipped(&scratch.layer(inline("x", path!("/bin")))), "`/bin/box` lies below `/bin`, which is a file");
    let nowhere = scratch.layer(link(path!("/bin"), "bin"));
    shelf.refused(&zipped(&nowhere), "in circles");
}

#[test]
fn downloads_are_put_through_links() {
    let shelf = Shelf::new();
    let scratch = Stage::scratch();
    let merged = scratch.layer(link(path!("/bin"), "usr/bin")).layer(link(path!("/x"), "deep/x"));
    let tool = |below: &Stage, to| shelf.put(below, "tool", b"t", to, None);
    assert_eq!(shelf.build(&tool(&merged, path!("/bin/tool"))).unwrap()[0], "bin -> usr/bin");
    assert!(shelf.build(&tool(&merged, path!("/bin/tool"))).unwrap().contains(&"usr/bin/tool t".to_owned()));
    // The last link of a file's path is what it replaces, of a folder's it is where all goes.
    assert!(shelf.build(&tool(&merged, path!("/x"))).unwrap().contains(&"x t".to_owned()));
    let parts = archive(&[Dir("d/"), File("d/f", "1")]);
    for to in [path!("/x"), path!("/x/y")] {
        let built = shelf.build(&shelf.put(&merged, "a.tar", &parts, to.clone(), Some(Unpack::Tar))).unwrap();
        let name = format!("deep{}/d/f 1", to.as_str());
        assert!(built.contains(&name) && built.contains(&"x -> deep/x".to_owned()), "{built:?}");
    }
    // A folder's name says nothing of merged /usr.
    let lib = shelf.put(&scratch, "a.tar", &parts, path!("/lib/lib"), Some(Unpack::Tar));
    assert_eq!(shelf.build(&lib).unwrap(), ["lib/", "lib/lib/", "lib/lib/d/", "lib/lib/d/f 1"]);
    // By way of `/`.
    let root = scratch.layer(link(path!("/bin"), "usr/bin")).layer(link(path!("/all"), "/"));
    let built =
        shelf.build(&shelf.put(&root, "b.tar", &archive(&[File("bin/f", "1")]), path!("/all"), Some(Unpack::Tar)));
    assert_eq!(built.unwrap(), ["all -> /", "bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/f 1"]);
    // What cannot be is told with both names.
    let file = scratch.layer(inline("x", path!("/etc")));
    shelf.refused(&tool(&file, path!("/etc/tool")), "`/etc/tool` lies below `/etc`, which is not a directory");
    let linked = scratch.layer(link(path!("/etc"), "other"));
    shelf.refused(
        &shelf.tar(&linked, &[File("etc/b", "1"), File("etc/a", "1")]),
        "`/etc/a` lies below `/etc`, which is a symbolic link to `other`",
    );
    shelf.refused(
        &shelf.tar(&linked, &[Dir("etc/")]),
        "`/etc` would be a directory, and is a symbolic link to `other` in the layers below",
    );
}

#[test]
fn links_in_circles_and_long_chains_are_refused_where_something_is_written_through_them() {
    let shelf = Shelf::new();
    let circle = shelf.tar(&Stage::scratch(), &[Symlink("a", "b"), Symlink("b", "a"), Symlink("self", "self")]);
    assert_eq!(shelf.build(&circle).unwrap(), ["a -> b", "b -> a", "self -> self"]);
    shelf.refused(&circle.layer(inline("x", path!("/a/x"))), "in circles");
    shelf.refused(&circle.layer(dir(path!("/self/x"))), "in circles");
    let names: Vec<(String, String)> = (0..50).map(|at| (format!("l{at}"), format!("l{}", at + 1))).collect();
    let chain: Vec<Part<'_>> = names.iter().map(|(name, target)| Symlink(name, target)).collect();
    let chain = shelf.tar(&Stage::scratch(), &chain);
    shelf.refused(&chain.layer(link(path!("/l0/x"), "y")), "in circles");
    assert!(shelf.build(&chain.layer(link(path!("/l20/x"), "y"))).is_ok(), "thirty links are followed");
}

#[test]
fn a_link_in_place_of_the_root_is_refused() {
    let shelf = Shelf::new();
    for name in [".", "./", "/.", "/", "./."] {
        assert!(shelf.build(&shelf.tar(&Stage::scratch(), &[Symlink(name, "../canary")])).is_err(), "{name}");
        assert!(shelf.build(&shelf.tar(&Stage::scratch(), &[File(name, "x")])).is_err(), "{name}");
    }
}

#[test]
fn a_step_puts_nothing_in_the_place_of_the_root() {
    let shelf = Shelf::new();
    let scratch = Stage::scratch();
    let root = ImagePath::root;
    let file = scratch.layer(inline("x", path!("/a")));
    let taken_from = file.layer(files("a", root()));
    for (stage, why) in [
        (scratch.layer(files("a", root())), "such as `/a`"),
        (scratch.layer(inline("x", root())), "such as `/name`"),
        (scratch.layer(link(root(), "a")), "such as `/name`"),
        (scratch.layer(dir(root()).mode(0o700)), "it cannot change `/`"),
        (file.layer(dir(root()).mode(0o700)), "it cannot change `/`"),
        (shelf.put(&scratch, "tool", b"t", root(), None), "such as `/tool`"),
        (scratch.layer(file.take(path!("/a")).to(root())), "such as `/a`"),
        (scratch.layer(taken_from.take(path!("/a"))), "such as `/a`"),
    ] {
        shelf.refused(&stage, why);
        // With the place in the definition.
        shelf.refused(&stage, "tests/it/hostile_archives.rs:");
    }
    // What is in a folder goes there.
    assert_eq!(shelf.build(&scratch.layer(files(".", root()))).unwrap(), ["a of the context"]);
    assert_eq!(shelf.build(&scratch.layer(file.take(root()))).unwrap(), ["a x"]);
}

#[test]
fn hard_links_name_a_regular_file_of_the_same_archive() {
    let shelf = Shelf::new();
    let lower = shelf.tar(&Stage::scratch(), &[File("secret", "s")]);
    for (parts, why) in [
        (vec![Hardlink("h", "missing")], "/missing"),
        (vec![Hardlink("h", "secret")], "/secret"),
        (vec![Dir("d/"), Hardlink("h", "d")], "/d"),
        (vec![Symlink("l", "../canary/passwd"), Hardlink("h", "l")], "/l"),
        (vec![Hardlink("a", "b"), Hardlink("b", "a")], "/"),
        (vec![File("f", "x"), Hardlink("h", "f"), Hardlink("h", "f")], "/h"),
    ] {
        shelf.refused(&shelf.tar(&lower, &parts), why);
        shelf.refused(&shelf.tar(&lower, &parts), "`a.tar` cannot be unpacked");
    }
    // A name that comes before its file, and a chain: each means the one file.
    let late = shelf.tar(&Stage::scratch(), &[Hardlink("a", "z"), File("z", "x")]);
    assert_eq!(shelf.build(&late).unwrap(), ["a x", "z x"]);
    for chain in [[("a", "c"), ("b", "a")], [("b", "c"), ("a", "b")]].map(|links| links.map(|(a, b)| Hardlink(a, b))) {
        let parts = [File("c", "x"), chain[0], chain[1]];
        assert_eq!(shelf.build(&shelf.tar(&Stage::scratch(), &parts)).unwrap(), ["a x", "b x", "c x"]);
    }
}

#[test]
fn a_path_twice_in_one_archive_is_refused_unless_both_are_directories() {
    let shelf = Shelf::new();
    let root = Stage::scratch();
    assert_eq!(shelf.build(&shelf.tar(&root, &[Dir("d/"), Dir("d"), Dir("./d/")])).unwrap(), ["d/"]);
    let merged = root.layer(link(path!("/bin"), "usr/bin"));
    shelf.refused(&shelf.tar(&merged, &[File("bin/x", "1"), File("usr/bin/x", "2")]), "twice");
    for parts in [
        [File("a", "1"), File("a", "2")],
        [File("a", "1"), File("./a", "1")],
        [File("a", "1"), Dir("a/")],
        [Dir("a/"), File("a", "1")],
        [Symlink("a", "b"), Symlink("a", "c")],
        [Symlink("a", "b"), File("a", "x")],
        [File("a", "x"), Symlink("a", "b")],
        [File("a", "x"), File("a/b", "x")],
    ] {
        let built = shelf.build(&shelf.tar(&root, &parts));
        assert!(built.is_err(), "{built:?}");
    }
    for parts in [[Symlink("a", "b"), Symlink("a", "c")], [File("a", "x"), Symlink("a", "b")]] {
        shelf.refused(&shelf.tar(&root, &parts), "`a.tar` cannot be unpacked: the archive's entry `/a` is refused");
    }
    // Names that meet where their folders are left out.
    let (tar, zip) = (archive(&[File("p/a", "1"), File("q/a", "2")]), zip(&[("p/a", "1"), ("q/a", "2")]));
    for (name, bytes, how) in [("b.tar", tar, Unpack::Tar), ("b.zip", zip, Unpack::Zip)] {
        let met = shelf.got(name, &bytes, path!("/opt")).unpack(how).strip_components(1);
        shelf.refused(&root.layer(met), &format!("`{name}` cannot be unpacked: the archive's entry `/q/a` is refused"));
    }
}

#[test]
fn a_layer_does_not_turn_a_full_directory_into_something_else() {
    let shelf = Shelf::new();
    for inside in ["etc/passwd", "etc/ blank", "etc/!", "etc/\u{1}"] {
        let lower = shelf.tar(&Stage::scratch(), &[Dir("etc/"), File(inside, "x"), File("etc-other", "y")]);
        shelf.refused(&shelf.tar(&lower, &[Symlink("etc", "../canary")]), "a directory that is not empty");
        shelf.refused(&shelf.tar(&lower, &[File("etc", "x")]), "a directory that is not empty");
        shelf.refused(&lower.layer(link(path!("/etc"), "/canary")), "a directory that is not empty");
    }
    let file = shelf.tar(&Stage::scratch(), &[File("etc", "x")]);
    shelf.refused(&shelf.tar(&file, &[File("etc/passwd", "x")]), "`/etc`");
    shelf.refused(&shelf.tar(&file, &[Dir("etc/")]), "`/etc`");
}

#[test]
fn directories_of_archives_do_not_open_those_below() {
    use std::os::unix::fs::PermissionsExt as _;
    let shelf = Shelf::new();
    let lower = Stage::scratch().layer(dir(path!("/root")).mode(0o700));
    let stage = shelf.tar(&lower, &[Dir("root/"), File("root/x", "x")]);
    assert_eq!(shelf.build(&stage).unwrap(), ["root/", "root/x x"]);
    // The listing says no modes: ask the archive.
    let home = tempfile::tempdir().unwrap();
    let plain = home.path().join("plain.tar");
    fs::write(&plain, archive(&[Dir("root/")])).unwrap();
    assert!(Command::new("tar").arg("-xpf").arg(&plain).arg("-C").arg(home.path()).status().unwrap().success());
    let opened = fs::metadata(home.path().join("root")).unwrap().permissions().mode() & 0o777;
    assert_eq!(opened, 0o777, "the archive by itself does open it");
}

#[test]
fn names_that_mean_deletion_to_others_are_refused() {
    let shelf = Shelf::new();
    for name in [".wh.etc", "etc/.wh.passwd", ".wh..wh..opq", "etc/.wh..wh.plnk"] {
        shelf.refused(&shelf.tar(&Stage::scratch(), &[File(name, "")]), "wh.");
    }
}

fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let mut crc = flate2::Crc::new();
        crc.update(content.as_bytes());
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 33, 90]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        let at = bytes.len() as u32;
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(content.as_bytes());
        directory.extend(b"PK\x01\x02\x14\x03");
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend((0o100_644_u32 << 16).to_le_bytes());
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend((files.len() as u16).to_le_bytes());
    bytes.extend((files.len() as u16).to_le_bytes());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(at.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

#[test]
fn zip_archives_stay_inside_too() {
    let shelf = Shelf::new();
    let stage = |below: &Stage, files: &[(&str, &str)]| shelf.unpack(below, "a.zip", &zip(files), Unpack::Zip);
    let root = Stage::scratch();
    assert_eq!(shelf.build(&stage(&root, &[("d/a", "1"), ("b", "2")])).unwrap(), ["b 2", "d/", "d/a 1"]);
    for name in ["../canary/passwd", "/abs", "a/../../canary/passwd", "a\\..\\b", ".wh.x"] {
        assert!(shelf.build(&stage(&root, &[(name, "evil")])).is_err(), "{name}");
    }
    assert!(shelf.build(&stage(&root, &[("a", "1"), ("a", "2")])).is_err());
    assert!(shelf.build(&stage(&root, &[("a", "1"), ("a/b", "2")])).is_err());
    let lower = shelf.tar(&root, &[Symlink("etc", "../canary")]);
    shelf.refused(&stage(&lower, &[("etc/passwd", "evil")]), "`/etc`");
}

#[test]
fn real_a_bomb_of_a_gigabyte_is_refused() {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = archive(&[File("zeros", "")]);
    header.truncate(512);
    // 11 octal digits: 8 GiB less one.
    header[124..136].copy_from_slice(b"77777777777\0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    gzip.write_all(&header).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1300 {
        gzip.write_all(&zeros).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    assert!(bomb.len() < 2 << 20, "{}", bomb.len());
    let shelf = Shelf::new();
    shelf.refused(&shelf.unpack(&Stage::scratch(), "bomb.tar.gz", &bomb, Unpack::Tar), "ratio");
}
