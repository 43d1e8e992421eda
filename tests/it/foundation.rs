//! Edits above what is remembered of the layers below: they come to what a build from nothing comes to, and open nothing there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use layers::lock::Lock;
use layers::source::{dir, files, inline, link};
use layers::{Catalogue, Stage, path};

use crate::support::cache::bucket;
use crate::support::layout::Layout;
use crate::support::run::{Outcome, Sandbox, outcome};

/// A project whose files come to stand on, beside and in place of what is below.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    // What writes over the layer below begins a new one.
    let over = |stage: Stage, text: &str| stage.layer(inline(text, path!("/opt/over")));
    let stage = over(Stage::scratch().layer(inline("small", path!("/opt/lib/small"))), "one");
    let stage = over(stage, "two").layer(inline("large", path!("/opt/lib/large")));
    let stage = over(stage, "three").layer(dir(path!("/opt/empty")));
    let stage = over(stage, "four").layer(inline("/opt/lib\n", path!("/etc/ld.so.conf")));
    let stage = over(stage, "five").layer(link(path!("/srv"), "opt/lib"));
    let stage = over(stage, "six")
        .layer(dir(path!("/app")).mode(0o750))
        .layer(files("src", path!("/app/src")))
        .layer(inline("between", path!("/app/between")))
        .layer(files("over", path!("/opt")))
        .layer(files("via", path!("/srv/via")))
        .layer(files("top", path!("/")));
    let catalogue = Catalogue::new("test").with("app", stage.image());
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox.write("src/app.py", "print('hello')\n");
    for folder in ["over", "via", "top"] {
        // A folder that selects nothing is refused.
        sandbox.write(&format!("{folder}/{folder}.txt"), "");
    }
    sandbox
}

fn build(sandbox: &Sandbox, cache: Option<&Path>) -> Outcome {
    let mut command = sandbox.command(["build", "--catalogue", "plan.json", "--progress", "quiet"]);
    if let Some(cache) = cache {
        command.env("IMGBUILD_CACHE_DIR", cache);
    }
    outcome(&mut command)
}

/// The blobs of the cache.
fn blobs(sandbox: &Sandbox) -> BTreeSet<PathBuf> {
    bucket(sandbox.cache(), "blobs-v1").into_iter().collect()
}

#[test]
fn an_edit_makes_its_own_layer_and_opens_nothing_below() {
    let sandbox = project();
    build(&sandbox, None).success();
    // All but what was delivered is taken away: what layers are made from.
    let delivered = sandbox.work().join("dist/blobs/sha256");
    let parts: BTreeSet<PathBuf> =
        blobs(&sandbox).into_iter().filter(|blob| !delivered.join(blob.file_name().unwrap()).exists()).collect();
    parts.iter().for_each(|blob| fs::remove_file(blob).unwrap());
    // The head has six layers, each of a fragment that has an index.
    let missing = || parts.iter().filter(|blob| !blob.exists()).count();
    assert!(missing() > 12);
    sandbox.write("src/app.py", "print('hello again')\n");
    sandbox.write("src/new/deep/file.py", "\n");
    build(&sandbox, None).success();
    let [image] = &Layout::open(&sandbox.work().join("dist")).image("app")[..] else { panic!("one image") };
    assert_eq!(image.faults(), [""; 0]);
    assert!(missing() >= 12, "{} of {}", missing(), parts.len());
    // A question that was not asked before needs everything below, which is made once more.
    sandbox.write("over/lib/unheard-of", "\n");
    build(&sandbox, None).success();
    assert!(missing() < 6, "{} of {}", missing(), parts.len());
}

/// A change of the context.
type Edit = fn(&Path);

#[test]
fn every_edit_comes_to_what_a_build_from_nothing_comes_to() {
    fn put(path: &Path, text: impl AsRef<[u8]>) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    // Those that fail are taken back afterwards, by the second function.
    let edits: &[(&str, Edit, Option<Edit>)] = &[
        ("other content", |at| put(&at.join("src/app.py"), "print('again')\n"), None),
        ("a new file", |at| put(&at.join("src/new.py"), ""), None),
        ("a new folder", |at| put(&at.join("src/deep/er/x"), "x"), None),
        ("a link", |at| symlink("deep/er", at.join("src/link")).unwrap(), None),
        ("no such file any more", |at| fs::remove_file(at.join("src/new.py")).unwrap(), None),
        ("over what is below", |at| put(&at.join("over/lib/small"), "other"), None),
        ("again", |at| put(&at.join("over/lib/small"), "and another"), None),
        ("beside what is below", |at| put(&at.join("over/lib/third"), "third"), None),
        ("through a link below", |at| put(&at.join("via/a/b"), "b"), None),
        ("in place of an empty folder", |at| put(&at.join("over/empty"), "a file now"), None),
        ("the loader's configuration", |at| put(&at.join("top/etc/ld.so.conf"), "/nowhere\n"), None),
        ("a new folder at the top", |at| put(&at.join("top/data/x"), "x"), None),
        (
            "a file in place of a full folder",
            |at| put(&at.join("top/opt"), "a file"),
            Some(|at| fs::remove_file(at.join("top/opt")).unwrap()),
        ),
        (
            "below a file",
            |at| put(&at.join("over/lib/large/x"), "x"),
            Some(|at| fs::remove_dir_all(at.join("over/lib/large")).unwrap()),
        ),
        (
            "below a link",
            |at| put(&at.join("top/srv/x"), "x"),
            Some(|at| fs::remove_dir_all(at.join("top/srv")).unwrap()),
        ),
        (
            "a program whose libraries are missing",
            |at| put(&at.join("src/program"), fs::read("/bin/true").unwrap()),
            Some(|at| fs::remove_file(at.join("src/program")).unwrap()),
        ),
        ("below an upper layer", |at| put(&at.join("top/app/src/app.py"), "last"), None),
        (
            "all gone",
            |at| ["top/data", "top/etc", "top/app"].iter().for_each(|it| fs::remove_dir_all(at.join(it)).unwrap()),
            None,
        ),
    ];
    let sandbox = project();
    let mut last = build(&sandbox, None).success();
    for (what, edit, undo) in edits {
        edit(&sandbox.work());
        let nothing = tempfile::tempdir_in(sandbox.path()).unwrap();
        let (warm, cold) = (build(&sandbox, None), build(&sandbox, Some(nothing.path())));
        assert_eq!(warm, cold, "{what}");
        match undo {
            Some(undo) => {
                assert_eq!(warm.status, 1, "{what}: {}", warm.stdout);
                undo(&sandbox.work());
            }
            None => {
                let now = warm.success();
                assert_ne!(now, last, "{what}");
                last = now;
            }
        }
    }
}
