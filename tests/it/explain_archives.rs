//! What `explain` says of layers of archives before a build is what the build then does.

use std::ffi::OsString;
use std::fs;

use layers::source::dir;
use layers::{ImagePath, Stage, debian, path, python};

use crate::explain::Project;
use crate::support::debs::{Deb, Repository};
use crate::support::random::Random;
use crate::support::server::Files;
use crate::support::tiny::now;
use crate::support::wheels::{Index, poetry_lock};

/// Bytes that give an archive a layer of its own.
fn large(length: usize) -> Vec<u8> {
    Random::of(1).bytes(length)
}

/// An index, and an image of the wheels that it has.
struct Wheels {
    project: Project,
    index: Index,
    large: String,
}

impl Wheels {
    fn new(stage: &Stage) -> Wheels {
        let project = Project::new(stage);
        let index = Index::new(&project.0.path().join("index"));
        let url = || OsString::from(index.files.url());
        let variables = [("UV_INDEX_URL", url()), ("UV_DEFAULT_INDEX", url()), ("NO_PROXY", "127.0.0.1".into())];
        let large = format!("@{}", project.0.write("large", large(1_300_000)).display());
        Wheels { project: project.with(variables), index, large }
    }

    fn lock(&self, wheels: &[(&str, &[&str])]) {
        let entry = |(name, files): &(&str, &[&str])| {
            let large = format!("{name}/large={}", self.large);
            let files = files.iter().map(|file| (*file).to_owned()).chain([large]);
            self.index.wheel(name, "1.0", &files.collect::<Vec<_>>())
        };
        self.project.0.write("poetry.lock", poetry_lock(&wheels.iter().map(entry).collect::<Vec<_>>()));
        self.project.run(&["lock"]);
    }
}

const ENVIRONMENT: &str = "hit python /opt/venv environment";

fn of_wheels(below: Stage) -> Stage {
    below.layer(python(layers::poetry_lock("poetry.lock")))
}

#[test]
fn a_wheel_that_leaves_a_file_to_another_may_be_made_anew_where_that_changed() {
    let wheels = Wheels::new(&of_wheels(Stage::scratch()));
    let (shared, bb) = ("space/__init__.py=# of both\n", ["bb/x.py=1", "space/__init__.py=# of both\n"]);
    // The largest comes first.
    let more = format!("aa/more={}", wheels.large);
    let lock = |aa: &[&str], cc: &str| {
        wheels.lock(&[("aa", &[&[more.as_str()], aa].concat()), ("bb", &bb), ("cc", &[cc])]);
    };
    lock(&["aa/x.py=1", shared], "cc/x.py=1");
    let may = "it may be made anew: bb 1.0 leaves files to others that have them, too, and";
    let bb = |what: &str| format!("miss python bb: {may} `python {what}` changed");
    let hit = |name: &str| format!("hit python {name}");
    let miss = |name: &str| format!("miss python {name}: {name} 1.0 has other bytes");
    // The others share nothing, which does not keep what is known of who does from the next step.
    let said = wheels.project.said(|_| lock(&["aa/x.py=1", shared], "cc/x.py=2"));
    assert_eq!(said, [ENVIRONMENT.to_owned(), hit("aa"), bb("cc"), miss("cc")]);
    let said = wheels.project.said(|_| lock(&["aa/x.py=1"], "cc/x.py=2"));
    assert_eq!(said, [ENVIRONMENT.to_owned(), miss("aa"), bb("aa"), hit("cc")]);
    let said = wheels.project.said(|_| lock(&["aa/x.py=2"], "cc/x.py=2"));
    assert_eq!(said, [ENVIRONMENT.to_owned(), miss("aa"), hit("bb"), hit("cc")]);
}

#[test]
fn a_layer_whose_bytes_are_gone_is_a_miss_beside_others() {
    let wheels = Wheels::new(&of_wheels(Stage::scratch()));
    let lock = |aa: &str| wheels.lock(&[("aa", &[aa]), ("bb", &["bb/x.py=1"])]);
    lock("aa/x.py=1");
    let built = wheels.project.build();
    let hex = built.last().unwrap().trim_start_matches("sha256:");
    lock("aa/x.py=2");
    fs::remove_file(wheels.project.0.cache().join("blobs-v1").join(&hex[..2]).join(hex)).unwrap();
    let expected = ["miss python aa: aa 1.0 has other bytes", "miss python bb: its bytes are gone from the cache"];
    assert_eq!(wheels.project.explain()[2..], expected);
}

#[test]
fn a_wheel_that_has_files_in_a_directory_that_changed_is_no_hit() {
    let site = |name: &str| ImagePath::new(format!("/opt/venv/lib/python3.13/site-packages/{name}")).unwrap();
    let stage =
        |mode| of_wheels(Stage::scratch().layer(dir(site("aa")).mode(mode)).layer(dir(path!("/srv")).mode(mode)));
    let wheels = Wheels::new(&stage(0o755));
    wheels.lock(&[("aa", &["aa/x.py=1"]), ("bb", &["bb/x.py=1"])]);
    let said = wheels.project.said(|_| wheels.project.define(&stage(0o700)));
    let lies = format!("miss python aa: it lies in what `dir {}` makes, which changed", site("aa"));
    assert_eq!(said[1..], [lies, "hit python bb".into()]);
}

/// A mirror, and an image of packages that it has.
struct Packages {
    project: Project,
    repository: Repository,
    _mirror: Files,
}

impl Packages {
    fn new(stage: &Stage) -> Packages {
        let project = Project::new(stage);
        let root = project.0.path().join("mirror");
        let repository = Repository::new(&root);
        let mirror = Files::serve(&root);
        let url = || OsString::from(mirror.url());
        let variables = [
            ("IMGBUILD_DEBIAN_MIRROR", url()),
            ("IMGBUILD_DEBIAN_SECURITY_MIRROR", url()),
            ("IMGBUILD_DEBIAN_KEYRING", repository.keyring().into()),
            ("NO_PROXY", "127.0.0.1".into()),
        ];
        Packages { project: project.with(variables), repository, _mirror: mirror }
    }

    fn lock(&self, debs: &[Deb]) {
        let pool = self.repository.pool();
        fs::read_dir(&pool).unwrap().for_each(|deb| fs::remove_file(deb.unwrap().path()).unwrap());
        debs.iter().for_each(|deb| drop(deb.build(&pool)));
        self.repository.publish(&["amd64", "arm64"], now());
        self.project.run(&["lock", "--update"]);
    }
}

#[test]
fn slow_a_package_may_be_made_anew_for_what_is_below_and_beside_it() {
    let stage = |mode| Stage::scratch().layer(dir(path!("/var/lib/xx")).mode(mode)).layer(debian(["xx", "yy"]));
    let packages = Packages::new(&stage(0o755));
    let (shared, large) = ("/usr/share/shared", large(3_500_000));
    let yy = |version: &str, shared: Option<&str>| {
        let deb = Deb::new("yy", version).field("Replaces: xx").file("/usr/share/yy", 0o644, &large);
        shared.into_iter().fold(deb, |deb, path| deb.file(path, 0o644, "of yy"))
    };
    let xx = Deb::new("xx", "1.0").file("/var/lib/xx/f", 0o644, &large).file(shared, 0o644, "of xx");
    packages.lock(&[xx.clone(), yy("1.0", Some(shared))]);
    let set_up = "miss debian xx yy: configuration: it reads what is below, and";
    let said = packages.project.said(|_| packages.project.define(&stage(0o700)));
    let expected = [
        "miss dir /var/lib/xx: mode 755 -> 700".to_owned(),
        "miss debian xx: it lies in what `dir /var/lib/xx` makes, which changed".into(),
        "hit debian yy".into(),
        format!("{set_up} `dir /var/lib/xx` changed"),
    ];
    assert_eq!(said, expected);
    let said = packages.project.said(|_| packages.lock(&[xx.clone(), yy("1.1", None)]));
    let may = "it may be made anew: xx 1.0 leaves files to others that have them, too, and `debian yy` changed";
    let expected = [
        "hit dir /var/lib/xx".to_owned(),
        format!("miss debian xx: {may}"),
        "miss debian yy: yy 1.0 -> 1.1".into(),
        "miss debian xx yy: configuration: the packages that it sets up changed".into(),
    ];
    assert_eq!(said, expected);
}

#[test]
fn wheels_that_have_a_file_in_common_with_others_than_before_are_made_anew() {
    let wheels = Wheels::new(&of_wheels(Stage::scratch()));
    let (shared, bb) = ("space/__init__.py=# of both\n", ["bb/x.py=1", "space/__init__.py=# of both\n"]);
    // The largest comes first.
    let more = format!("aa/more={}", wheels.large);
    let with = [more.as_str(), "aa/x.py=1", shared];
    let without = [more.as_str(), "aa/x.py=1"];
    let cc = ["cc/x.py=1"];
    wheels.lock(&[("aa", &with), ("cc", &cc)]);
    wheels.project.build();
    wheels.lock(&[("aa", &without), ("bb", &bb)]);
    // Both are known, each without the other.
    let said = wheels.project.said_exactly(|_| wheels.lock(&[("aa", &with), ("bb", &bb)]));
    let left = "hit python aa: an earlier build left it".to_owned();
    let leaves = "miss python bb: bb 1.0 leaves files to others that have them, too, and did not".to_owned();
    assert_eq!(said, [ENVIRONMENT.to_owned(), left.clone(), leaves]);
    let again = "hit python bb: an earlier build left it".to_owned();
    let said = wheels.project.said_exactly(|_| wheels.lock(&[("aa", &without), ("bb", &bb), ("cc", &cc)]));
    assert_eq!(said[1..], [left, again, "hit python cc: an earlier build left it".into()]);
}

#[test]
fn another_order_of_wheels_that_have_files_in_common_is_no_hit() {
    let lock = |name: &str| python(layers::poetry_lock(name));
    let stage = |first: &str, second: &str| Stage::scratch().layer(lock(first)).layer(lock(second));
    let wheels = Wheels::new(&stage("aa.lock", "bb.lock"));
    for name in ["aa", "bb"] {
        let files =
            [format!("{name}/x.py=1"), "space/__init__.py=# of both\n".into(), format!("{name}/l={}", wheels.large)];
        let entry = wheels.index.wheel(name, "1.0", &files);
        wheels.project.0.write(&format!("{name}.lock"), poetry_lock(&[entry]));
    }
    wheels.project.run(&["lock"]);
    let said = wheels.project.said_exactly(|_| {
        wheels.project.define(&stage("bb.lock", "aa.lock"));
        wheels.project.run(&["lock"]);
    });
    let said: Vec<&String> = said.iter().filter(|line| !line.contains("environment")).collect();
    let expected = [
        "the order of layers changed",
        "miss python bb: bb 1.0 has files again that it left to others",
        "miss python aa: aa 1.0 leaves files to others that have them, too, and did not",
    ];
    assert_eq!(said, expected);
}
