//! `kill -9` wherever something is written that lasts: an image is right or not delivered, and the next build mends the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cache::points::Point;
use imgbuild::failpoint::Kept;
use layers::{Catalogue, Stage, command, files, path};

use crate::cache::{Project, overwrite};
use crate::support::layout::Layout;
use crate::support::run::{outcome, tool};

const KILLED: i32 = 128 + 9;

/// Digests by the name of the image.
type Names = BTreeMap<String, String>;

/// What a process does that is killed.
struct Scene<'a> {
    name: &'static str,
    /// The catalogue that is built again after it.
    plan: &'static str,
    /// Changes the cache of an earlier build into what is there before.
    before: Box<dyn Fn() + 'a>,
    /// What is killed.
    act: Box<dyn Fn() -> Command + 'a>,
}

/// A project with a cache, a layout and an archive of an earlier build of it.
struct Stand {
    project: Project,
    /// A copy of the cache and the outputs of the earlier build.
    earlier: [PathBuf; 2],
    /// What the earlier build came to.
    old: Names,
    /// What each catalogue comes to now.
    right: BTreeMap<&'static str, Names>,
}

impl Stand {
    fn new() -> Stand {
        let project = Project::new();
        let busybox = fs::read("/bin/busybox").expect("/bin/busybox is there: install Debian's `busybox-static`");
        project.sandbox.write("busybox", busybox);
        let made = Stage::scratch()
            .layer(files("busybox", path!("/bin/busybox")).mode(0o755))
            .run(command(["/bin/busybox", "cp", "/src/app.py", "/made"]).input(files("src", path!("/src"))));
        let made = Stage::scratch().layer(made.take(path!("/made"))).image();
        project.sandbox.write("made.json", Catalogue::new("made").with("made", made).plan().to_json());
        let earlier = ["cache", "out"].map(|name| project.sandbox.path().join("earlier").join(name));
        fs::create_dir(project.sandbox.path().join("earlier")).unwrap();
        fs::create_dir(project.sandbox.work().join("out")).unwrap();
        let mut stand = Stand { project, earlier, old: Names::new(), right: BTreeMap::new() };
        for plan in ["made.json", "plan.json"] {
            outcome(&mut stand.build(plan)).success();
            let delivered = stand.layout().names();
            assert_eq!(stand.archive().unwrap(), only(&delivered, &stand.archive().unwrap()));
            stand.old.extend(delivered);
        }
        for (from, to) in stand.places().iter().zip(&stand.earlier) {
            tool("cp", [Path::new("-a"), from, to]);
        }
        stand.project.sandbox.write("src/app.py", "print('changed')\n");
        for plan in ["made.json", "plan.json"] {
            outcome(&mut stand.build(plan)).success();
            let right = stand.archive().unwrap();
            assert!(right.iter().all(|(name, digest)| stand.old[name] != *digest), "{right:?} are new");
            stand.right.insert(plan, right);
        }
        tool("cp", [Path::new("-a"), &stand.places()[1].join("layout"), &stand.project.sandbox.path().join("source")]);
        stand
    }

    fn places(&self) -> [PathBuf; 2] {
        [self.project.sandbox.cache().to_path_buf(), self.project.sandbox.work().join("out")]
    }

    fn build(&self, plan: &str) -> Command {
        let mut build = self.project.sandbox.command(["build", "--catalogue", plan, "--progress", "plain", "-j", "1"]);
        build.args(["--output", "oci:out/layout", "--output", "oci-archive:out/images.tar"]);
        build.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        build
    }

    fn restore(&self) {
        for (from, to) in self.earlier.iter().zip(self.places()) {
            let _ = fs::remove_dir_all(&to);
            tool("cp", [Path::new("-a"), from, &to]);
        }
        self.project.sandbox.write("imgbuild.toml", "");
    }

    fn layout(&self) -> Layout {
        Layout::open(&self.project.sandbox.work().join("out/layout"))
    }

    /// The images of the archive, where there is one; whoever sees it sees it whole.
    fn archive(&self) -> Option<Names> {
        let file = self.project.sandbox.work().join("out/images.tar");
        if !file.exists() {
            return None;
        }
        let folder = tempfile::tempdir_in(self.project.sandbox.path()).unwrap();
        tool("tar", [Path::new("-xf"), &file, Path::new("-C"), folder.path()]);
        let layout = Layout::open(folder.path());
        whole(&layout);
        Some(layout.names())
    }

    /// Nothing wrong is delivered, and a build brings all in order.
    fn mend(&self, plan: &str, damaged: bool, what: &str) {
        let right = &self.right[plan];
        let known = |found: &Names| {
            found.iter().all(|(name, is)| self.old.get(name) == Some(is) || right.get(name) == Some(is))
        };
        if self.project.sandbox.work().join("out/layout/index.json").exists() {
            let layout = self.layout();
            assert!(known(&layout.names()), "{what}: {:?}", layout.names());
            whole(&layout);
        }
        if let Some(found) = self.archive() {
            assert!(known(&found), "{what}: {found:?}");
        }
        outcome(&mut self.build(plan)).success();
        assert_eq!(only(&self.layout().names(), right), *right, "{what}");
        whole(&self.layout());
        assert_eq!(self.archive().as_ref(), Some(right), "{what}");
        self.project.imgbuild(&["cache", "gc", "--max-size", "1GB"]).success();
        if self.leftovers().iter().any(|left| left.to_str().unwrap().contains("/.imgbuild-cache.tar.")) {
            // It goes with the next export to the same file.
            self.project.imgbuild(&["cache", "export", "out/cache.tar"]).success();
        }
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new(), "{what}");
        if damaged {
            // A build looks only at what it needs.
            self.project.imgbuild(&["cache", "verify"]).success();
        }
        let said = self.project.imgbuild(&["cache", "verify"]).success();
        assert_eq!(said.lines().count(), 1, "{what}: {said}");
    }

    /// Files that are neither the cache's nor an image's.
    fn leftovers(&self) -> Vec<PathBuf> {
        let [cache, out] = self.places();
        let list =
            |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut found = [list(cache.join("tmp-v1")), list(cache.join("partial-v1"))].concat();
        let versioned = |path: &PathBuf| name(path).contains("-v");
        found.extend(
            list(cache)
                .into_iter()
                .filter(|it| !versioned(it) && !["CACHEDIR.TAG", "in-use.lock", "collect.lock"].contains(&&*name(it))),
        );
        let outputs = ["layout", "images.tar", "cache.tar"];
        found.extend(list(out.clone()).into_iter().filter(|it| !outputs.contains(&&*name(it))));
        let layout = [".imgbuild", ".lock", "blobs", "index.json", "oci-layout"];
        found.extend(list(out.join("layout")).into_iter().filter(|it| !layout.contains(&&*name(it))));
        found.extend(list(out.join("layout/blobs/sha256")).into_iter().filter(|it| name(it).len() != 64));
        found
    }
}

/// The images of `names` that `of` names, too.
fn only(names: &Names, of: &Names) -> Names {
    names.iter().filter(|(name, _)| of.contains_key(*name)).map(|(name, is)| (name.clone(), is.clone())).collect()
}

/// All that the index of a layout leads to is there and right.
fn whole(layout: &Layout) {
    for name in layout.names().keys() {
        for image in layout.image(name) {
            assert_eq!(image.faults(), [""; 0]);
        }
    }
}

/// Of so many passings those at which the process is killed: the first three, each that is a power of two, and the last; of a
/// point that an earlier scene has, the middle one.
fn spread(passings: u32, new: bool) -> Vec<u32> {
    let wanted = |at: u32| match new {
        true => at <= 3 || at == passings || at.is_power_of_two(),
        false => at == passings.div_ceil(2),
    };
    (1..=passings).filter(|&at| wanted(at)).collect()
}

#[test]
fn slow_whoever_writes_may_be_killed_at_every_named_point() {
    let stand = Stand::new();
    let (project, work) = (&stand.project, stand.project.sandbox.work());
    let cache = project.sandbox.cache();
    let elsewhere = project.sandbox.path().join("elsewhere");
    let store = format!("dir:{}", elsewhere.display());
    let build = |plan: &'static str| Box::new(|| stand.build(plan));
    let scenes = [
        Scene {
            name: "a build from nothing",
            plan: "plan.json",
            before: Box::new(|| {
                stand
                    .places()
                    .iter()
                    .for_each(|place| fs::remove_dir_all(place).and_then(|()| fs::create_dir(place)).unwrap())
            }),
            act: build("plan.json"),
        },
        Scene { name: "a build of a change", plan: "plan.json", before: Box::new(|| ()), act: build("plan.json") },
        Scene {
            name: "a build with a command",
            plan: "made.json",
            before: Box::new(|| {
                for root in fs::read_dir(cache.join("commands-v1")).unwrap() {
                    let root = root.unwrap().path();
                    if root.is_dir() {
                        fs::remove_dir_all(root).unwrap();
                    }
                }
            }),
            act: build("made.json"),
        },
        Scene {
            name: "a build over damage",
            plan: "plan.json",
            before: Box::new(|| project.entries().iter().for_each(|entry| overwrite(entry, b"damage"))),
            act: build("plan.json"),
        },
        Scene {
            name: "a build that collects",
            plan: "plan.json",
            before: Box::new(|| drop(project.sandbox.write("imgbuild.toml", "[cache]\nmax-size = '1'\n"))),
            act: build("plan.json"),
        },
        Scene {
            name: "a collection",
            plan: "plan.json",
            before: Box::new(|| {
                for file in ["tmp-v1/half", "tmp-v1/run-x/root/file", ".tmpx", "blobs-v7/ab/x"] {
                    fs::create_dir_all(cache.join(file).parent().unwrap()).unwrap();
                    fs::write(cache.join(file), "left").unwrap();
                }
            }),
            act: Box::new(|| project.sandbox.command(["cache", "gc", "--max-size", "1"])),
        },
        Scene {
            name: "a check",
            plan: "plan.json",
            before: Box::new(|| project.entries().iter().for_each(|entry| overwrite(entry, b"damage"))),
            act: Box::new(|| project.sandbox.command(["cache", "verify", "-j", "1"])),
        },
        Scene {
            name: "a copy into a layout",
            plan: "plan.json",
            before: Box::new(|| ()),
            act: Box::new(|| project.sandbox.command(["copy", "oci:../source:app", "oci:out/layout:app"])),
        },
        Scene {
            name: "a copy into an archive",
            plan: "plan.json",
            before: Box::new(|| ()),
            act: Box::new(|| project.sandbox.command(["copy", "oci:../source:app", "oci-archive:out/images.tar:app"])),
        },
        Scene {
            name: "an export",
            plan: "plan.json",
            before: Box::new(|| ()),
            act: Box::new(|| project.sandbox.command(["cache", "export", "out/cache.tar"])),
        },
        Scene {
            name: "an import",
            plan: "plan.json",
            before: Box::new(|| {
                project.imgbuild(&["cache", "export", "out/cache.tar"]).success();
                project.imgbuild(&["cache", "clear"]).success();
            }),
            act: Box::new(|| project.sandbox.command(["cache", "import", "out/cache.tar"])),
        },
        Scene {
            name: "a build into a cache elsewhere",
            plan: "plan.json",
            before: Box::new(|| drop(fs::remove_dir_all(&elsewhere))),
            act: Box::new(|| {
                let mut build = stand.build("plan.json");
                build.args(["--cache-to", &store]);
                build
            }),
        },
    ];
    let all: Vec<&str> = Point::ALL.iter().map(|it| it.name()).chain(Kept::ALL.iter().map(|it| it.name())).collect();
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let log = project.sandbox.path().join("log");
    for scene in &scenes {
        let begin = || {
            stand.restore();
            (scene.before)();
            (scene.act)()
        };
        let _ = fs::remove_file(&log);
        outcome(begin().env("IMGBUILD_FAILPOINT_LOG", &log)).success();
        let passed = fs::read_to_string(&log).unwrap();
        for &point in &all {
            let passings = passed.lines().filter(|line| *line == point).count() as u32;
            let new = passings > 0 && reached.insert(point);
            for at in spread(passings, new) {
                let what = format!("{}, {point}:{at} of {passings}", scene.name);
                let killed = outcome(begin().env("IMGBUILD_FAILPOINT", format!("{point}:{at}")));
                if point == Kept::Chunk.name() && at > 1 && killed.status == 0 {
                    // In how many pieces bytes arrive is up to the network.
                    continue;
                }
                assert_eq!(killed.status, KILLED, "{what}: {}", killed.stderr);
                if work.join("out/cache.tar").exists() && scene.name == "an export" {
                    // What there is of it is taken or refused, and never wrong.
                    project.imgbuild(&["cache", "clear"]).success();
                    let taken = project.imgbuild(&["cache", "import", "out/cache.tar"]);
                    assert!(taken.status <= 1 && !taken.stderr.contains("panicked"), "{what}: {}", taken.stderr);
                }
                if elsewhere.exists() {
                    // Another machine takes what is there and makes the rest.
                    let another = tempfile::tempdir_in(project.sandbox.path()).unwrap();
                    let mut build = stand.build(scene.plan);
                    build.arg("--cache-dir").arg(another.path()).args(["--cache-from", &store]);
                    outcome(build.env("IMGBUILD_CACHE_TRUSTED_STORES", &store)).success();
                    let right = &stand.right[scene.plan];
                    assert_eq!(only(&stand.layout().names(), right), *right, "{what}");
                    whole(&stand.layout());
                    fs::remove_dir_all(&elsewhere).unwrap();
                }
                stand.mend(scene.plan, ["a build over damage", "a check"].contains(&scene.name), &what);
            }
        }
    }
    let missing: Vec<&&str> = all.iter().filter(|point| !reached.contains(**point)).collect();
    assert!(missing.is_empty(), "nobody passes {missing:?}");
}
