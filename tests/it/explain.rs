//! What `explain` says before a build is what the build then does.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use layers::lock::Lock;
use layers::source::{dir, files, inline, link, user};
use layers::{Catalogue, Stage, path};
use serde_json::Value;

use crate::support::layout::Layout;
use crate::support::run::{Sandbox, outcome};

/// A folder with an image of one platform, and what commands are told of where archives are.
pub(crate) struct Project(pub(crate) Sandbox, Vec<(&'static str, OsString)>);

impl Project {
    pub(crate) fn new(stage: &Stage) -> Project {
        Project::of(Sandbox::new(), stage)
    }

    fn of(sandbox: Sandbox, stage: &Stage) -> Project {
        sandbox.write("images.lock", Lock::default().to_text());
        sandbox.write("etc/passwd", "root:x:0:0::/:/bin/sh\n");
        sandbox.write("etc/motd", "hello\n");
        for name in ["one", "two", "three"] {
            sandbox.write(&format!("src/{name}"), name);
        }
        sandbox.write("other/file", "");
        symlink("one", sandbox.work().join("src/link")).unwrap();
        let project = Project(sandbox, Vec::new());
        project.define(stage);
        project
    }

    /// With a place where archives are.
    pub(crate) fn with(mut self, variables: impl IntoIterator<Item = (&'static str, OsString)>) -> Project {
        self.1.extend(variables);
        self
    }

    pub(crate) fn run(&self, words: &[&str]) -> String {
        let mut command = self.0.command(["--catalogue", "plan.json"]);
        outcome(command.args(words).envs(self.1.iter().cloned())).success()
    }

    pub(crate) fn define(&self, stage: &Stage) {
        self.0.write("plan.json", Catalogue::new("test").with("app", stage.clone().image()).plan().to_json());
    }

    /// The digests of the layers that a build comes to.
    pub(crate) fn build(&self) -> Vec<String> {
        self.run(&["build"]);
        let image = Layout::open(&self.0.work().join("dist")).image("app").remove(0);
        image.layers.into_iter().map(|layer| layer.digest).collect()
    }

    /// The labels of the layers that a build of the image writes.
    pub(crate) fn made(&self) -> BTreeSet<String> {
        let mut command = self.0.command(["--catalogue", "plan.json", "--progress", "json", "build", "app"]);
        let done = outcome(command.envs(self.1.iter().cloned()));
        let events: Vec<Value> = done.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        done.success();
        let made = events.iter().filter(|event| event["event"] == "layer-finished");
        made.map(|event| event["label"].as_str().unwrap().to_owned()).collect()
    }

    /// What is said of the image, and of each layer.
    pub(crate) fn explain(&self) -> Vec<String> {
        let text = self.run(&["explain", "app"]);
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// What is said after an edit. The build that follows must write none of the layers that are called hits.
    pub(crate) fn said(&self, edit: impl FnOnce(&Sandbox)) -> Vec<String> {
        self.judged(edit).0
    }

    /// The same, where it must write all others.
    pub(crate) fn said_exactly(&self, edit: impl FnOnce(&Sandbox)) -> Vec<String> {
        let (said, left) = self.judged(edit);
        assert!(left.is_empty(), "{left:?} were not made anew: {said:#?}");
        said
    }

    /// What is said after an edit, and which layers are called misses that the build that follows does not write.
    fn judged(&self, edit: impl FnOnce(&Sandbox)) -> (Vec<String>, Vec<String>) {
        self.build();
        edit(&self.0);
        let said = self.explain();
        assert!(said[0].ends_with(": miss"), "{said:?}");
        let told: Value = serde_json::from_str(&self.run(&["explain", "app", "--format", "json"])).unwrap();
        let made = self.made();
        let layers = told["images"][0]["layers"].as_array().unwrap();
        let label = |layer: &Value| layer["label"].as_str().unwrap().to_owned();
        let (hits, misses): (Vec<&Value>, Vec<&Value>) = layers.iter().partition(|layer| layer["hit"] == true);
        let anew: Vec<String> = hits.into_iter().map(label).filter(|label| made.contains(label)).collect();
        assert!(anew.is_empty(), "{anew:?} were made anew: {said:#?}");
        (said[1..].to_vec(), misses.into_iter().map(label).filter(|label| !made.contains(label)).collect())
    }
}

#[test]
fn a_user_is_no_hit_where_the_account_files_below_changed() {
    let stage = Stage::scratch()
        .layer(files("etc", path!("/etc")))
        .layer(user("bob", 7))
        .layer(dir(path!("/x")))
        .layer(files("src", path!("/x/src")));
    let project = Project::new(&stage);
    let bob = "user bob (7:7), dir /x: ";
    let said = project.said(|sandbox| drop(sandbox.write("etc/passwd", "other:x:0:0::/:/bin/sh\n")));
    let changed = "it reads the account files below, and `files etc -> /etc` changed";
    let passwd = "miss files etc -> /etc: 1 changed: passwd".to_owned();
    assert_eq!(said, [passwd, format!("miss {bob}{changed} them"), "hit files src -> /x/src".into()]);
    let said = project.said(|sandbox| drop(sandbox.write("etc/motd", "hello again\n")));
    assert_eq!(said[1], format!("miss {bob}it may be made anew: {changed}"));
    let said = project.said(|sandbox| drop(sandbox.write("src/one", "1")));
    assert_eq!(said[..2], ["hit files etc -> /etc", "hit user bob (7:7), dir /x"]);
    // A user on files that are no accounts.
    let stage = Stage::scratch().layer(files("src", path!("/x/src"))).layer(user("bob", 7));
    project.define(&stage);
    let said = project.said(|sandbox| drop(sandbox.write("src/one", "2")));
    assert_eq!(said, ["miss files src -> /x/src: 1 changed: one", "hit user bob (7:7)"]);
}

#[test]
fn files_are_compared_where_links_below_led_them() {
    let stage = Stage::scratch().layer(link(path!("/bin"), "usr/bin")).layer(files("src", path!("/bin/tools")));
    let project = Project::new(&stage);
    let said = |said: Vec<String>, what: &str| {
        assert_eq!(said, ["hit link /bin -> usr/bin".to_owned(), format!("miss files src -> /bin/tools: {what}")]);
    };
    said(project.said(|sandbox| drop(sandbox.write("src/two", "2"))), "1 changed: two");
    said(project.said(|sandbox| fs::remove_file(sandbox.work().join("src/three")).unwrap()), "1 removed: three");
    said(project.said(|sandbox| drop(sandbox.write("src/sub/four", "4"))), "1 added: sub/four");
    let stage = Stage::scratch().layer(link(path!("/bin"), "usr/bin")).layer(files("src/one", path!("/bin/tool")));
    project.define(&stage);
    let said = project.said(|sandbox| drop(sandbox.write("src/one", "1")));
    assert_eq!(said[1], "miss files src/one -> /bin/tool: 1 changed: tool");
}

#[test]
fn what_of_a_step_changed_is_said() {
    let bottom = || Stage::scratch().layer(dir(path!("/data")).owner(7, 7));
    let below = || bottom().layer(files("other/file", path!("/data/file")));
    let project = Project::new(&below().layer(files("src", path!("/a"))));
    let redefined = |stage: Stage| project.said(|_| project.define(&stage));
    let said = redefined(below().layer(files("src", path!("/b")).mode(0o600)));
    assert_eq!(said[2], "miss files src -> /b: mode kept -> 600; to /a -> /b");
    let said = redefined(below().layer(bottom().layer(files("src", path!("/opt/x"))).take(path!("/opt/x"))));
    assert_eq!(said[0], "files src is gone");
    let taken = bottom().layer(files("src", path!("/opt/x"))).take(path!("/opt/x"));
    let said = redefined(below().layer(taken.owner(8, 8)));
    assert_eq!(said[2], "miss take /opt/x -> /opt/x: owner kept -> 8:8");
    // What lies in a directory shows its owner.
    let other = Stage::scratch().layer(dir(path!("/data")).owner(9, 7)).layer(inline("x", path!("/y")));
    let said = redefined(other.layer(files("other/file", path!("/data/file"))));
    let expected = [
        "miss dir /data, inline /y: dir /data: owner 7:7 -> 9:7; inline /y is new",
        "miss files other/file -> /data/file: it lies in what `dir /data` makes, which changed",
    ];
    assert_eq!(said[1..], expected);
}

#[test]
fn another_order_of_layers_is_said() {
    let (one, other) = (files("src", path!("/a")), files("other", path!("/b")));
    let project = Project::new(&Stage::scratch().layer(one.clone()).layer(other.clone()));
    let said = project.said(|_| project.define(&Stage::scratch().layer(other).layer(one)));
    assert_eq!(said, ["the order of layers changed", "hit files other -> /b", "hit files src -> /a"]);
}

#[test]
fn what_is_compared_with_is_the_last_build_also_where_it_found_its_image() {
    let stage = Stage::scratch().layer(files("src", path!("/a"))).layer(files("other", path!("/b")));
    let project = Project::new(&stage);
    let write = |path: &str, text: &str| drop(project.0.write(path, text));
    project.build();
    write("src/one", "1");
    project.build();
    write("src/one", "one");
    assert_eq!(project.explain()[0], format!("app {}: hit", layers::Platform::native().unwrap()));
    let found = project.build();
    // What was found is written down once.
    let listed = |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()).collect::<Vec<_>>();
    let ledger = || {
        let records =
            listed(&project.0.cache().join("ledger-v1")).into_iter().flat_map(|folder| listed(&folder.path()));
        records.map(|record| (record.file_name(), record.metadata().unwrap().ino())).collect::<BTreeSet<_>>()
    };
    let before = ledger();
    assert_eq!(project.build(), found);
    assert_eq!(ledger(), before);
    let said = project.said(|_| write("other/file", "2"));
    assert_eq!(said, ["hit files src -> /a", "miss files other -> /b: 1 changed: file"]);
}

#[test]
fn projects_that_share_a_cache_are_told_apart_wherever_they_are_asked_from() {
    let stage = || Stage::scratch().layer(files("src", path!("/a"))).layer(files("other", path!("/b")));
    let one = Project::new(&stage());
    let other = Project::of(Sandbox::sharing(one.0.cache()), &stage());
    one.0.write("src/one", "1");
    one.build();
    let said = other.said(|sandbox| drop(sandbox.write("other/file", "2")));
    assert_eq!(said, ["hit files src -> /a", "miss files other -> /b: 1 changed: file"]);
    // By another name, and from another folder.
    one.0.write("other/file", "3");
    let mut command = one.0.command(["explain", "app", "--catalogue", "work/plan.json"]);
    let said = outcome(command.current_dir(one.0.work().parent().unwrap())).success();
    assert!(
        said.contains("miss  files other -> /b: 1 changed: file") && said.contains("hit   files src -> /a"),
        "{said}"
    );
}
