//! A key changes exactly when what it stands for does.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Image, Stage, inline, path};
use rustix::fs::XattrFlags;
use serde_json::Value;

use crate::support::run::Sandbox;

/// What of the definition an edit may change.
#[derive(Clone, Copy)]
struct Words {
    env: [(&'static str, &'static str); 2],
    /// What another image says of itself.
    elsewhere: &'static str,
    /// What is in another image's stage.
    unrelated: &'static str,
    /// What is in the stage that is taken from: where it is taken, and beside.
    taken: &'static str,
    beside: &'static str,
}

const BASE: Words = Words { env: [("A", "1"), ("B", "2")], elsewhere: "x", unrelated: "x", taken: "x", beside: "x" };

fn catalogue(words: Words) -> Catalogue {
    let build =
        Stage::scratch().layer(inline(words.taken, path!("/out/it"))).layer(inline(words.beside, path!("/log")));
    let app = Stage::scratch().layer(files("src", path!("/app"))).layer(build.take(path!("/out")));
    let unrelated = Stage::scratch().layer(inline(words.unrelated, path!("/x")));
    let app: Image = words.env.iter().fold(app.image(), |image, (name, value)| image.env(*name, *value));
    Catalogue::new("keys").with("app", app).with("other", unrelated.image().env("E", words.elsewhere))
}

/// Whether an edit of the context or of the definition changes `app`, and whether the cache has it then.
struct Case {
    what: &'static str,
    context: fn(&Path),
    words: Words,
    changes: bool,
    cached: bool,
}

fn write(root: &Path, path: &str, content: &str) {
    fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
    fs::write(root.join(path), content).unwrap();
}

#[test]
fn keys_change_exactly_when_images_do() {
    let sandbox = Sandbox::new();
    sandbox.write("images.lock", Lock::default().to_text());
    let root = sandbox.work();
    let build = |context: fn(&Path), words: Words| -> (String, bool, Value) {
        let _ = fs::remove_dir_all(root.join("src"));
        for (path, content) in [("src/one", "1"), ("src/two", "2"), ("src/a/bc", "d"), ("src/ef", "g")] {
            write(&root, path, content);
        }
        symlink("one", root.join("src/link")).unwrap();
        context(&root);
        sandbox.write("plan.json", catalogue(words).plan().to_json());
        let told = sandbox.imgbuild(["build", "--catalogue", "plan.json", "--format", "json"]).success();
        let told: Value = serde_json::from_str(&told).unwrap();
        let app = told["images"].as_array().unwrap().iter().find(|image| image["name"] == "app").unwrap();
        let layers = app["platforms"][0]["layers"].clone();
        (app["digest"].as_str().unwrap().to_owned(), app["cached"].as_bool().unwrap(), layers)
    };
    let nothing: fn(&Path) = |_| ();
    let (base, cached, layers) = build(nothing, BASE);
    assert!(!cached);
    let context = |what, context, changes| Case { what, context, words: BASE, changes, cached: !changes };
    let words = |what, words, changes, cached| Case { what, context: nothing, words, changes, cached };
    let cases = [
        context("nothing", nothing, false),
        context("a new name", |root| fs::rename(root.join("src/one"), root.join("src/three")).unwrap(), true),
        context(
            "contents swapped",
            |root| {
                write(root, "src/one", "2");
                write(root, "src/two", "1");
            },
            true,
        ),
        context(
            "a/bc as ab/c",
            |root| {
                fs::remove_dir_all(root.join("src/a")).unwrap();
                write(root, "src/ab/c", "d");
            },
            true,
        ),
        context(
            "a letter from the name to the content",
            |root| {
                fs::remove_file(root.join("src/ef")).unwrap();
                write(root, "src/e", "fg");
            },
            true,
        ),
        context("an empty folder", |root| fs::create_dir(root.join("src/empty")).unwrap(), true),
        context(
            "executable",
            |root| fs::set_permissions(root.join("src/one"), fs::Permissions::from_mode(0o755)).unwrap(),
            true,
        ),
        context(
            "a mode that no image has",
            |root| fs::set_permissions(root.join("src/one"), fs::Permissions::from_mode(0o600)).unwrap(),
            false,
        ),
        context(
            "where a link leads",
            |root| {
                fs::remove_file(root.join("src/link")).unwrap();
                symlink("two", root.join("src/link")).unwrap();
            },
            true,
        ),
        context(
            "a link as what it leads to",
            |root| {
                fs::remove_file(root.join("src/link")).unwrap();
                write(root, "src/link", "1");
            },
            true,
        ),
        context(
            "a time",
            |root| fs::File::open(root.join("src/one")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap(),
            false,
        ),
        context(
            "a time to come",
            |root| {
                let to_come = std::time::SystemTime::now() + std::time::Duration::from_secs(1 << 30);
                fs::File::open(root.join("src/one")).unwrap().set_modified(to_come).unwrap();
            },
            false,
        ),
        context(
            "an extended attribute",
            |root| rustix::fs::setxattr(root.join("src/one"), "user.x", b"x", XattrFlags::empty()).unwrap(),
            false,
        ),
        context("a file beside", |root| write(root, "beside", "x"), false),
        words("the order of variables", Words { env: [("B", "2"), ("A", "1")], ..BASE }, true, true),
        words("a variable", Words { env: [("A", "1"), ("B", "3")], ..BASE }, true, true),
        words("another image's variable", Words { elsewhere: "y", ..BASE }, false, true),
        words("another image's stage", Words { unrelated: "y", ..BASE }, false, true),
        words("what is taken", Words { taken: "y", ..BASE }, true, false),
        words("what is not taken of a stage", Words { beside: "y", ..BASE }, false, false),
    ];
    for case in cases {
        let (digest, cached, made) = build(case.context, case.words);
        assert_eq!((digest != base, cached), (case.changes, case.cached), "{}", case.what);
        if case.cached {
            assert_eq!(made, layers, "{}: configuration is in no layer", case.what);
        }
    }
}
