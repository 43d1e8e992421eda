//! Layers that `explain` finds as the next build does: left by earlier builds, had from elsewhere, on another base.

use layers::source::{dir, files, oci_layout, user};
use layers::{Catalogue, Stage, path};

use crate::explain::Project;
use crate::remote::{Project as Shared, STORES, files_below};
use crate::support::layout::Layout;
use crate::support::run::{Sandbox, outcome};

const LEFT: &str = "an earlier build left it";

#[test]
fn a_layer_that_an_earlier_build_left_is_a_hit_also_above_one_that_changed() {
    let stage = Stage::scratch().layer(files("other", path!("/b"))).layer(files("src", path!("/a")));
    let project = Project::new(&stage);
    let write = |path: &'static str, text: &'static str| move |sandbox: &Sandbox| drop(sandbox.write(path, text));
    project.said_exactly(write("src/one", "1"));
    let said = project.said_exactly(|sandbox| {
        write("src/one", "one")(sandbox);
        write("other/file", "2")(sandbox);
    });
    assert_eq!(said, ["miss files other -> /b: 1 changed: file".to_owned(), format!("hit files src -> /a: {LEFT}")]);
    // It counts only while its bytes are there.
    let layers = project.build();
    write("src/one", "1")(&project.0);
    write("other/file", "3")(&project.0);
    project.made();
    write("src/one", "one")(&project.0);
    write("other/file", "4")(&project.0);
    let hex = layers[1].trim_start_matches("sha256:");
    std::fs::remove_file(project.0.cache().join("blobs-v1").join(&hex[..2]).join(hex)).unwrap();
    assert_eq!(project.explain()[2], "miss files src -> /a: 1 changed: one");
}

#[test]
fn an_image_that_was_never_built_has_the_layers_that_others_left() {
    let stage = Stage::scratch().layer(files("src", path!("/a")));
    let project = Project::new(&stage);
    project.build();
    let other = stage.clone().layer(files("other", path!("/b")));
    let catalogue = Catalogue::new("test").with("app", stage.image()).with("second", other.image());
    project.0.write("plan.json", catalogue.plan().to_json());
    let text = project.run(&["explain", "second"]);
    let said: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
    let expected = [
        "no earlier build of this image is remembered here".to_owned(),
        format!("hit   files src -> /a: {LEFT}"),
        "miss  files other -> /b".into(),
    ];
    assert_eq!(said, expected);
}

#[test]
fn an_image_that_was_had_from_elsewhere_says_where_from() {
    let shared = Shared::new();
    let (first, second) = (shared.machine(), shared.machine());
    let folder = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", folder.path().display());
    let trusted = [(STORES, store.as_str())];
    first.build(&["--cache-to", &store], &[]);
    let explain = |machine: &crate::remote::Machine<'_>| -> Vec<String> {
        let text = machine.run(&["explain", "one"], &[]).success();
        text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let written = |machine: &crate::remote::Machine<'_>| {
        let done = machine.run(&["build", "one", "--progress", "json"], &[]);
        let count = done.stderr.matches("\"layer-finished\"").count();
        done.success();
        count
    };
    assert_eq!(explain(&first).iter().filter(|line| !line.starts_with("hit ")).count(), 0);
    second.build(&["--cache-from", &store], &trusted);
    let said = explain(&second);
    assert_eq!(said[0], format!("it was had from `{store}`"));
    assert!(said[1..].iter().all(|line| line.starts_with("hit ")) && said.len() == 4, "{said:#?}");
    // That it was told of is not enough where a layer is not here.
    let lowest = &Layout::open(&second.sandbox.work().join("dist")).image("one")[0].layers[0].digest[7..];
    std::fs::remove_file(second.sandbox.cache().join("blobs-v1").join(&lowest[..2]).join(lowest)).unwrap();
    let said = explain(&second);
    assert_eq!(said[0], format!("it was had from `{store}`, and not all of its layers are here"));
    assert!(
        said[1].ends_with(&format!(": the last build had it from `{store}`, and its bytes are not here")),
        "{said:#?}"
    );
    assert!(said.iter().all(|line| !line.starts_with("hit ")), "{said:#?}");
    second.build(&["--cache-from", &store], &trusted);
    // What it was had by is not here: without that cache, what did not change is made as well.
    second.sandbox.write("src/main", "edited");
    let said = explain(&second);
    let may = format!("it may be made anew: the last build had it from `{store}`");
    assert!(said[0].starts_with("miss fetch ") && said[0].ends_with(&may), "{said:#?}");
    assert_eq!(
        said[1..],
        ["miss files src -> /app: 1 changed: main".to_owned(), format!("miss files more -> /more: {may}")]
    );
    assert_eq!(written(&second), 3);
    // Made here, it is known here.
    second.sandbox.write("src/main", "edited again");
    let said = explain(&second);
    assert_eq!(said.iter().filter(|line| line.starts_with("hit ")).count(), 2, "{said:#?}");
    assert_eq!(written(&second), 1);
}

/// A layout with a base that has a directory.
fn base(project: &Project, name: &str, mode: u32) {
    let base = Stage::scratch().layer(dir(path!("/srv")).mode(mode)).image();
    project.0.write("base.json", Catalogue::new("bases").with(name, base).plan().to_json());
    let output = format!("oci:{name}");
    outcome(&mut project.0.command(["--catalogue", "base.json", "build", "--output", &output])).success();
}

#[test]
fn directories_that_another_base_has_otherwise_are_told_where_it_is_known() {
    let based = |name: &str| {
        Stage::from(oci_layout(name)).layer(files("src", path!("/srv/a"))).layer(files("other", path!("/b")))
    };
    let project = Project::new(&Stage::scratch());
    base(&project, "one", 0o755);
    base(&project, "two", 0o700);
    project.define(&based("two"));
    project.build();
    project.define(&based("one"));
    project.said(|sandbox| drop(sandbox.write("src/one", "1")));
    let said = project.said_exactly(|_| project.define(&based("two")));
    assert!(said[0].starts_with("base: "), "{said:#?}");
    let expected = ["miss files src -> /srv/a: its directory /srv: 755 0:0 -> 700 0:0", "hit files other -> /b"];
    assert_eq!(said[1..], expected);
}

#[test]
fn nothing_is_kept_by_who_only_asks() {
    let taken = |text: &str| Stage::scratch().layer(layers::inline(text, path!("/out/it"))).take(path!("/out/it"));
    let stage = |name: &str, text: &str| {
        let stage = Stage::from(oci_layout(name)).layer(files("etc", path!("/etc"))).layer(user("bob", 7));
        stage.layer(dir(path!("/x")).mode(0o711)).layer(taken(text)).layer(files("src", path!("/srv/a")))
    };
    let project = Project::new(&Stage::scratch());
    base(&project, "one", 0o755);
    // Another machine's: no layer of it is in this cache.
    let other = Project::new(&Stage::scratch());
    base(&other, "two", 0o700);
    let layout = other.0.work().join("two");
    for file in files_below(&layout) {
        let place = format!("two/{}", file.strip_prefix(&layout).unwrap().display());
        project.0.write(&place, std::fs::read(&file).unwrap());
    }
    project.define(&stage("one", "1"));
    project.build();
    let kept = || {
        let folders = ["blobs-v1", "ledger-v1", "partial-v1", "tmp-v1", "commands-v1"];
        folders.map(|folder| files_below(&project.0.cache().join(folder))).concat()
    };
    let mut before = kept();
    before.sort();
    project.0.write("etc/passwd", "other:x:0:0::/:/bin/sh\n");
    project.0.write("src/one", "1");
    for name in ["one", "two"] {
        project.define(&stage(name, "2"));
        project.explain();
        let mut after = kept();
        after.sort();
        assert_eq!(after, before, "{name}");
    }
}
