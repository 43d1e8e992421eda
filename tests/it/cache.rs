//! Cases C of the cache: whatever happens to it, an image is right or it is not delivered.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use layers::lock::Lock;
use layers::source::{Unpack, fetch, files};
use layers::{Catalogue, Digest, Stage, path};

use crate::support::cache::bucket;
use crate::support::layout::Layout;
use crate::support::random::Random;
use crate::support::run::{Outcome, Sandbox, outcome, tool};
use crate::support::server::Files;

/// A project with two images over a download, files of the context, and something taken from another stage.
pub(crate) struct Project {
    pub(crate) sandbox: Sandbox,
    _server: Files,
}

impl Project {
    pub(crate) fn new() -> Project {
        let sandbox = Sandbox::new();
        sandbox.write("src/app.py", "print('hello')\n");
        sandbox.write("src/data/table", vec![7u8; 300_000]);
        let script = "import sys, zipfile\n\
            z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)\n\
            for name, size in [('large', 200000), ('small', 100)]:\n\
            \x20   z.writestr(zipfile.ZipInfo('lib/' + name), bytes(i * i % 251 for i in range(size)), zipfile.ZIP_DEFLATED)\n\
            z.close()\n";
        fs::create_dir(sandbox.path().join("served")).unwrap();
        let archive = sandbox.path().join("served/lib.zip");
        tool("python3", [Path::new("-c"), Path::new(script), &archive]);
        let digest = Digest::of(&fs::read(&archive).unwrap());
        let server = Files::serve(&sandbox.path().join("served"));
        let url = format!("{}/lib.zip", server.url().trim_end_matches('/'));
        let built = Stage::scratch().layer(fetch(url, digest, path!("/opt")).unpack(Unpack::Zip));
        let app = built.layer(files("src", path!("/app")));
        let other = Stage::scratch()
            .layer(built.take(path!("/opt/lib/large")).to(path!("/usr/share/large")))
            .layer(files("src/app.py", path!("/app/main.py")));
        let catalogue = Catalogue::new("test").with("app", app.image()).with("other", other.image());
        sandbox.write("plan.json", catalogue.plan().to_json());
        sandbox.write("images.lock", Lock::default().to_text());
        Project { sandbox, _server: server }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.sandbox.command(["build", "--catalogue", "plan.json", "--progress", "plain"]);
        command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command
    }

    pub(crate) fn build(&self) -> Outcome {
        outcome(&mut self.command())
    }

    /// Builds into an empty layout, which must be right; gives the digests by name.
    pub(crate) fn rebuilt(&self) -> BTreeMap<String, String> {
        let _ = fs::remove_dir_all(self.sandbox.work().join("dist"));
        self.build().success();
        self.delivered()
    }

    pub(crate) fn delivered(&self) -> BTreeMap<String, String> {
        let layout = Layout::open(&self.sandbox.work().join("dist"));
        for name in ["app", "other"] {
            for image in layout.image(name) {
                assert_eq!(image.faults(), [""; 0]);
            }
        }
        layout.names()
    }

    pub(crate) fn imgbuild(&self, words: &[&str]) -> Outcome {
        self.sandbox.imgbuild(words)
    }

    /// The files of a bucket.
    pub(crate) fn bucket(&self, name: &str) -> Vec<PathBuf> {
        bucket(self.sandbox.cache(), name)
    }

    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        [self.bucket("blobs-v1"), self.bucket("ledger-v1")].concat()
    }

    /// A copy of the cache, to damage it again and again.
    pub(crate) fn save(&self) -> PathBuf {
        let saved = self.sandbox.path().join("saved");
        let _ = fs::remove_dir_all(&saved);
        tool("cp", [Path::new("-a"), self.sandbox.cache(), &saved]);
        saved
    }

    pub(crate) fn restore(&self, saved: &Path) {
        fs::remove_dir_all(self.sandbox.cache()).unwrap();
        tool("cp", [Path::new("-a"), saved, self.sandbox.cache()]);
    }
}

/// Writes bytes over a read-only file, its size and time as they were where that can be.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn slow_damage_of_any_entry_is_noticed_and_mended() {
    let project = Project::new();
    let right = project.rebuilt();
    let saved = project.save();
    type Damage = fn(&[u8]) -> Vec<u8>;
    let flipped: Damage = |bytes| {
        let mut bad = bytes.to_vec();
        let at = bad.len() / 2;
        bad[at] ^= 0x40;
        bad
    };
    let damages: [Damage; 4] =
        [flipped, |bytes| bytes[..bytes.len() / 2].to_vec(), |_| Vec::new(), |_| vec![b'x'; 300]];
    for entry in project.entries() {
        for (number, damage) in damages.iter().enumerate() {
            let bytes = fs::read(&entry).unwrap();
            overwrite(&entry, &damage(&bytes));
            assert_eq!(project.rebuilt(), right, "damage {number} of {}", entry.display());
            project.restore(&saved);
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[test]
fn damage_below_a_changed_layer_is_noticed_and_mended() {
    let project = Project::new();
    project.rebuilt();
    let saved = project.save();
    project.sandbox.write("src/app.py", "print('changed')\n");
    let right = project.rebuilt();
    // Without layers and image records, every fragment and archive is used again.
    for entry in project.bucket("blobs-v1") {
        project.restore(&saved);
        let Ok(mut bytes) = fs::read(&entry) else { continue };
        let at = bytes.len() * 2 / 3;
        bytes[at] ^= 1;
        overwrite(&entry, &bytes);
        let mut removed = (0, 0);
        for record in project.bucket("ledger-v1") {
            let text = String::from_utf8_lossy(&fs::read(&record).unwrap()).into_owned();
            // A key's text begins with what it is of and its version.
            let is_of = |kind: &str| text.lines().any(|line| line.strip_prefix(kind).is_some_and(is_number));
            let (is_layer, is_image) = (is_of("layer "), is_of("image "));
            if is_layer || is_image {
                removed = (removed.0 + usize::from(is_layer), removed.1 + usize::from(is_image));
                fs::remove_file(record).unwrap();
            }
        }
        assert!(removed.0 > 0 && removed.1 > 0, "{removed:?} records of layers and images were there");
        assert_eq!(project.rebuilt(), right, "{}", entry.display());
    }
}

#[test]
fn swapped_entries_are_noticed_and_mended() {
    let project = Project::new();
    let right = project.rebuilt();
    let saved = project.save();
    for bucket in ["blobs-v1", "ledger-v1"] {
        let entries = project.bucket(bucket);
        for pair in entries.windows(2) {
            let (one, other) = (fs::read(&pair[0]).unwrap(), fs::read(&pair[1]).unwrap());
            overwrite(&pair[0], &other);
            overwrite(&pair[1], &one);
            assert_eq!(project.rebuilt(), right, "{pair:?}");
            project.restore(&saved);
        }
    }
}

#[test]
fn damage_is_found_by_verify_and_healed_by_the_next_build() {
    let project = Project::new();
    let right = project.rebuilt();
    for entry in project.entries() {
        let bytes = fs::read(&entry).unwrap();
        overwrite(&entry, &[&bytes[..bytes.len() - 1], b"~"].concat());
    }
    let said = project.imgbuild(&["cache", "verify"]).success();
    assert!(said.contains("its bytes had changed") && said.contains("damaged records"), "{said}");
    assert_eq!(project.entries(), Vec::<PathBuf>::new());
    assert_eq!(project.rebuilt(), right);
    let said = project.imgbuild(&["cache", "verify"]).success();
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// The record in a file of the ledger, and the text of its key behind it.
fn record(file: &Path) -> (String, Vec<u8>) {
    let mut bytes = fs::read(file).unwrap().split_off(65);
    let length: usize = std::str::from_utf8(&bytes[..10]).unwrap().parse().unwrap();
    let mut record = bytes.split_off(11);
    let text = record.split_off(length);
    (String::from_utf8(record).unwrap(), text)
}

#[test]
fn a_diff_id_that_is_not_its_layers_is_found_by_verify_and_healed_by_the_next_build() {
    let wrong = format!("sha256:{}", "0".repeat(64));
    for compression in ["gzip", "gzip-single", "zstd"] {
        let project = Project::new();
        project.sandbox.write("imgbuild.toml", format!("compression = '{compression}'\n"));
        let built = || {
            let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
            project.build().success();
            Layout::open(&project.sandbox.work().join("dist")).names()
        };
        let right = built();
        let read = |file: &PathBuf| serde_json::from_str::<serde_json::Value>(&record(file).0).unwrap();
        let layers: Vec<_> =
            project.bucket("ledger-v1").iter().map(read).filter(|it| it.get("diff_id").is_some()).collect();
        assert_eq!(layers.len(), 4, "{layers:?}");
        for layer in layers {
            let [digest, diff_id] = ["digest", "diff_id"].map(|name| layer[name].as_str().unwrap());
            let mut forged = Vec::new();
            for file in project.bucket("ledger-v1") {
                let (before, text) = record(&file);
                let after = before.replace(diff_id, &wrong);
                if after != before {
                    let head = format!("{} {:010}\n", Digest::of(after.as_bytes()).hex(), after.len());
                    overwrite(&file, &[head.as_bytes(), after.as_bytes(), &text].concat());
                    forged.push(file);
                }
            }
            assert!(forged.len() > 1, "of the layer, and of its image");
            assert_ne!(built(), right, "a build takes a record's word");
            let said = project.imgbuild(&["cache", "verify"]).success();
            let told =
                format!("removed the records of layer {digest} with the diff id {wrong}: it has the diff id {diff_id}");
            assert_eq!(said.lines().skip(1).collect::<Vec<_>>(), [told], "{compression}");
            assert!(!forged.iter().any(|file| file.exists()));
            assert_eq!(built(), right, "{compression}");
            let said = project.imgbuild(&["cache", "verify"]).success();
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let said = project.imgbuild(&["cache", "verify", "--format", "json"]).success();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&said["layers"], &said["wrongDiffIds"]), (&4.into(), &serde_json::json!([])), "{said}");
    }
}

#[test]
fn eight_builders_and_a_collector_do_not_disturb_each_other() {
    let project = Project::new();
    let right = project.rebuilt();
    let spawn = |command: &mut Command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for round in 0..3 {
        let mut builders: Vec<Child> = (0..8)
            .map(|at| {
                let mut command = project.command();
                spawn(command.args(["--output", &format!("oci:out{at}")]))
            })
            .collect();
        let mut collector = project.sandbox.command(["cache", "gc", "--max-size", "1"]);
        let collector = spawn(&mut collector);
        for (at, builder) in builders.drain(..).enumerate() {
            Outcome::of(builder.wait_with_output().unwrap()).success();
            let layout = Layout::open(&project.sandbox.work().join(format!("out{at}")));
            assert_eq!(layout.names(), right, "round {round}, builder {at}");
            assert_eq!(layout.image("app")[0].faults(), [""; 0]);
        }
        Outcome::of(collector.wait_with_output().unwrap()).success();
    }
    assert_eq!(project.rebuilt(), right);
}

#[test]
fn a_cache_of_another_version_is_left_alone_until_it_is_in_the_way() {
    let project = Project::new();
    let other = project.sandbox.cache().join("blobs-v7/ab");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("x"), vec![1; 20_000]).unwrap();
    project.rebuilt();
    assert!(other.exists());
    let said = project.imgbuild(&["cache", "info"]).success();
    assert!(said.contains("other versions"), "{said}");
    project.imgbuild(&["cache", "gc", "--max-size", "1"]).success();
    assert!(!other.exists());
}

#[test]
fn an_exported_cache_makes_a_build_elsewhere_need_nothing() {
    let project = Project::new();
    let right = project.rebuilt();
    let file = project.sandbox.path().join("cache.tar");
    project.imgbuild(&["cache", "export", file.to_str().unwrap()]).success();
    fs::remove_dir_all(project.sandbox.cache()).unwrap();
    project.imgbuild(&["cache", "import", file.to_str().unwrap()]).success();
    let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
    outcome(project.command().arg("--offline")).success();
    assert_eq!(project.delivered(), right);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(8).position(|window| window == b"/app.py\0").map_or(600, |at| at);
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    project.imgbuild(&["cache", "clear"]).success();
    project.imgbuild(&["cache", "import", file.to_str().unwrap()]).failure(1, &["not what their names say"]);
    assert_eq!(project.rebuilt(), right);
}

#[test]
fn the_cache_stays_below_its_ceiling_by_itself() {
    let project = Project::new();
    project.sandbox.write("imgbuild.toml", "[cache]\nmax-size = '700kB'\n");
    for number in 0..6u8 {
        let noise: Vec<u8> = (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number).collect();
        project.sandbox.write("src/data/table", noise);
        project.rebuilt();
        let info = project.imgbuild(&["cache", "info", "--format", "json"]).success();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert!(info["total"].as_u64().unwrap() <= 700_000, "{info:#}");
        assert_eq!(info["maxSize"], 700_000);
    }
}

#[test]
fn a_cache_that_cannot_be_used_is_named() {
    let project = Project::new();
    fs::remove_dir_all(project.sandbox.cache()).unwrap();
    fs::write(project.sandbox.cache(), "a file").unwrap();
    project.build().failure(1, &["cannot be used", "--cache-dir"]);
}

#[test]
fn a_folder_without_a_cache_stays_as_it_is() {
    let sandbox = Sandbox::new();
    sandbox.write("mine/file", "mine");
    sandbox.write("last.tar", "the last export");
    let words = [
        &["info"][..],
        &["info", "--format", "json"],
        &["gc"],
        &["gc", "--dry-run", "--max-size", "1"],
        &["verify"],
        &["clear"],
        &["export", "last.tar"],
    ];
    for (folder, words) in ["mistyped", "a/deep/one", "mine"].into_iter().flat_map(|it| words.map(|words| (it, words)))
    {
        let done = sandbox.imgbuild([&["--cache-dir", folder, "cache"], words].concat());
        let place = sandbox.work().join(folder);
        let none = format!("there is no cache in `{}`", place.display());
        assert!(done.stderr.contains(&none) && done.stderr.contains("`--cache-dir`"), "{words:?}: {}", done.stderr);
        match words[0] {
            "export" => drop(done.failure(1, &[&none])),
            _ => drop(done.success()),
        }
        assert_eq!(place.exists(), folder == "mine", "{words:?}");
    }
    let left: Vec<_> = fs::read_dir(sandbox.work().join("mine")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["file"]);
    assert_eq!(fs::read_to_string(sandbox.work().join("last.tar")).unwrap(), "the last export");
    let said = sandbox.imgbuild(["--cache-dir", "mistyped", "cache", "info", "--format", "json"]).success();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(
        said["total"] == 0 && said["free"].as_u64() > Some(0) && said["classes"] == serde_json::json!({}),
        "{said}"
    );
    // What is no folder is no cache that is not there yet.
    sandbox.imgbuild(["--cache-dir", "mine/file", "cache", "info"]).failure(1, &["mine/file", "cannot be used"]);
}

#[test]
fn a_cache_behind_a_symbolic_link_is_a_cache() {
    let project = Project::new();
    let right = project.rebuilt();
    let real = project.sandbox.path().join("real");
    fs::rename(project.sandbox.cache(), &real).unwrap();
    std::os::unix::fs::symlink(&real, project.sandbox.cache()).unwrap();
    assert_eq!(project.rebuilt(), right);
    project.imgbuild(&["cache", "gc", "--max-size", "1"]).success();
    assert_eq!(project.rebuilt(), right);
    // So is one whose folders are such links.
    let elsewhere = project.sandbox.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for entry in fs::read_dir(&real).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        let to = elsewhere.join(entry.file_name());
        fs::rename(entry.path(), &to).unwrap();
        std::os::unix::fs::symlink(&to, entry.path()).unwrap();
    }
    let verified = project.imgbuild(&["cache", "verify"]);
    assert!(!verified.stderr.contains("there is no cache"), "{}", verified.stderr);
    assert!(!verified.success().starts_with("0 blobs"));
}

/// A file system of a few megabytes, mounted for one test.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn real_a_full_disk_is_named_and_leaves_nothing_wrong() {
    let project = Project::new();
    let right = project.rebuilt();
    let disk = SmallDisk(project.sandbox.path().join("disk"));
    fs::create_dir(&disk.0).unwrap();
    tool("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.0.to_str().unwrap()]);
    let build = |project: &Project| {
        let _ = fs::remove_dir_all(project.sandbox.work().join("dist"));
        outcome(project.command().args(["--cache-dir", disk.0.to_str().unwrap()]))
    };
    // From hardly any room to enough: the build fails at every stage of its work, and never delivers something wrong.
    let filler = disk.0.join("filler");
    let mut full = 0;
    for room in (0..64).map(|step| step * 16_384) {
        fs::write(&filler, vec![1; 1_000_000usize.saturating_sub(room)]).unwrap();
        let done = build(&project);
        match done.status {
            0 => assert_eq!(project.delivered(), right),
            _ => {
                let said = done.failure(1, &[]).stderr;
                assert!(said.contains("the disk of the cache is full while writing `"), "{room} bytes free: {said}");
                full += 1;
            }
        }
        let _ = fs::remove_file(&filler);
    }
    assert!(full > 0, "the disk was never full");
    build(&project).success();
    assert_eq!(project.delivered(), right);
}

#[test]
fn real_a_full_disk_is_the_caches_and_not_that_of_the_archive_that_is_imported() {
    let project = Project::new();
    project.sandbox.write("src/noise", Random::of(1).bytes(900_000));
    project.rebuilt();
    let file = project.sandbox.path().join("cache.tar");
    project.imgbuild(&["cache", "export", file.to_str().unwrap()]).success();
    let disk = SmallDisk(project.sandbox.path().join("disk"));
    fs::create_dir(&disk.0).unwrap();
    tool("mount", ["-t", "tmpfs", "-o", "size=600k", "tmpfs", disk.0.to_str().unwrap()]);
    let import = ["cache", "import", file.to_str().unwrap(), "--cache-dir", disk.0.to_str().unwrap()];
    project.imgbuild(&import).failure(1, &["the disk of the cache is full while writing `"]);
}

#[test]
fn real_a_layout_beside_the_cache_on_a_full_disk_shares_its_blobs() {
    let project = Project::new();
    project.sandbox.write("src/noise", Random::of(1).bytes(400_000));
    let right = project.rebuilt();
    fs::remove_dir_all(project.sandbox.work().join("dist")).unwrap();
    let disk = SmallDisk(project.sandbox.path().join("disk"));
    fs::create_dir(&disk.0).unwrap();
    tool("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", disk.0.to_str().unwrap()]);
    let layout = disk.0.join("dist");
    let build = || {
        let _ = fs::remove_dir_all(&layout);
        let (cache, output) = (disk.0.join("cache"), format!("oci:{}", layout.display()));
        outcome(project.command().arg("--cache-dir").arg(cache).args(["--output", &output]))
    };
    build().success();
    // A copy of its layer has no room, and the few documents have.
    fs::remove_dir_all(&layout).unwrap();
    let free = rustix::fs::statvfs(&disk.0).unwrap();
    fs::write(disk.0.join("filler"), vec![1; (free.f_bavail * free.f_frsize - 200_000) as usize]).unwrap();
    build().success();
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|it| it.unwrap().metadata().unwrap());
    let shared = blobs.filter(|it| it.len() > 200_000).map(|it| (it.nlink(), it.mode() & 0o777)).collect::<Vec<_>>();
    assert_eq!(shared, [(2, 0o444)]);
    fs::remove_file(disk.0.join("filler")).unwrap();
    tool("cp", [Path::new("-a"), &layout.join("."), &project.sandbox.work().join("dist")]);
    assert_eq!(project.delivered(), right);
}

#[test]
fn an_explanation_names_what_changed() {
    let project = Project::new();
    let explain = || {
        let text = project.imgbuild(&["explain", "app", "--catalogue", "plan.json"]).success();
        text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    let first = explain();
    assert!(first[0].ends_with(": miss") && first[1].contains("no earlier build"), "{first:?}");
    project.rebuilt();
    let hit = explain();
    assert!(hit[0].ends_with(": hit"), "{hit:?}");
    assert!(hit[1..].iter().all(|line| line.starts_with("  hit ")), "{hit:?}");
    project.sandbox.write("src/app.py", "print('changed')\n");
    project.sandbox.write("src/new.py", "");
    fs::remove_file(project.sandbox.work().join("src/data/table")).unwrap();
    let miss = explain();
    assert!(miss[0].ends_with(": miss"), "{miss:?}");
    assert!(miss[1].starts_with("  hit "), "{miss:?}");
    let expected = ": 1 changed: app.py; 1 added: new.py; 1 removed: data/table";
    assert!(miss[2].starts_with("  miss  ") && miss[2].ends_with(expected), "{miss:?}");
    project.rebuilt();
    assert!(explain()[0].ends_with(": hit"));
}

#[test]
fn what_is_remembered_of_libraries_ends_where_one_is_replaced() {
    let sandbox = Sandbox::new();
    // The program's name says nothing of libraries, and neither does the layer that replaces one of them.
    let program = tool("ldd", ["/bin/true"]);
    let libraries = program.split_whitespace().filter(|word| word.starts_with('/'));
    let mut libc = None;
    for library in libraries {
        sandbox.write(&format!("libraries{library}"), fs::read(library).unwrap());
        libc = libc.or(library.contains("/libc.so").then(|| library.to_owned()));
    }
    let libc = libc.expect("/bin/true needs the C library");
    sandbox.write("program/bin/true", fs::read("/bin/true").unwrap());
    sandbox.write("text/etc/motd", "hello\n");
    let stage = ["program", "libraries", "text"]
        .into_iter()
        .fold(Stage::scratch(), |stage, folder| stage.layer(files(folder, path!("/"))));
    sandbox.write("plan.json", Catalogue::new("test").with("app", stage.image()).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let build = || sandbox.imgbuild(["build", "--catalogue", "plan.json"]);
    build().success();
    sandbox.write("text/etc/motd", "hello again\n");
    build().success();
    let replaced = sandbox.write(&format!("text{libc}"), "no library\n");
    for _ in 0..2 {
        build().failure(1, &["shared libraries are missing", "`libc.so.6`, needed by `/bin/true`"]);
    }
    fs::remove_file(replaced).unwrap();
    build().success();
    fs::remove_file(sandbox.work().join(format!("libraries{libc}"))).unwrap();
    build().failure(1, &["`libc.so.6`, needed by `/bin/true`"]);
}
