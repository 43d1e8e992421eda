//! What rotted in a cache, or went from it, is made or had once more by whatever command meets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use layers::lock::Lock;
use layers::source::{files, inline};
use layers::{Catalogue, Image, Stage, oci_layout, path};

use crate::registry::registry;
use crate::support::cache::bucket;
use crate::support::docker;
use crate::support::layout::{Layout, write_layout};
use crate::support::run::{Outcome, Sandbox, outcome};

/// A project with an image of eight layers of its own.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    let mut stage = Stage::scratch();
    for at in 0..8 {
        sandbox.write(&format!("f{at}/file"), format!("{at}").repeat(20_000));
        stage = stage.layer(files(format!("f{at}"), path!("/data").join(&format!("f{at}")).unwrap()));
    }
    define(&sandbox, stage.image());
    sandbox
}

fn define(sandbox: &Sandbox, image: Image) {
    sandbox.write("plan.json", Catalogue::new("test").with("app", image).plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
}

fn run(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    outcome(sandbox.command(["--catalogue", "plan.json"]).args(words))
}

/// The digests of the layers of the image in a layout.
fn layers(sandbox: &Sandbox, layout: &str) -> Vec<String> {
    let image = Layout::open(&sandbox.work().join(layout)).image("app").remove(0);
    assert_eq!(image.faults(), [""; 0]);
    image.layers.iter().map(|layer| layer.digest.clone()).collect()
}

/// Where the cache has a blob.
fn cached(sandbox: &Sandbox, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    sandbox.cache().join("blobs-v1").join(&hex[..2]).join(hex)
}

/// Changes a byte in the middle of a file, which keeps its length.
fn rot(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn layers_that_rotted_are_made_again_all_at_once() {
    let sandbox = project();
    run(&sandbox, &["build", "--output", "oci:first"]).success();
    let right = layers(&sandbox, "first");
    assert_eq!(right.len(), 8);
    let registry = registry(|_| {});
    let tag = format!("{}/team/app:v1", registry.host());
    for words in [
        &["build", "--output", "oci-archive:app.tar"][..],
        &["build", "--output", "oci:second"],
        &["push", "--tag", &tag],
    ] {
        for rotten in [&right[..1], &right[2..5], &right[..]] {
            rotten.iter().for_each(|digest| rot(&cached(&sandbox, digest)));
            let _ = fs::remove_dir_all(sandbox.work().join("second"));
            let said = run(&sandbox, words);
            assert_eq!(said.status, 0, "{words:?}, {} rotten: {}", rotten.len(), said.stderr);
            if words[0] == "push" {
                assert_eq!(registry.check_tag("team/app", "v1"), Some(Ok(())));
                registry.state().repos.clear();
                registry.state().blobs.clear();
                let _ = fs::remove_dir_all(sandbox.cache().join("registry"));
            }
            run(&sandbox, &["build", "--output", "oci:third"]).success();
            assert_eq!(layers(&sandbox, "third"), right, "{words:?}");
        }
    }
}

/// Whoever removes it first, the others meet one that is gone, or that is good when they look again.
#[test]
fn a_fragment_that_rotted_fails_none_of_four_builders_at_once() {
    let sandbox = project();
    run(&sandbox, &["build"]).success();
    let right = layers(&sandbox, "dist");
    let blobs: Vec<PathBuf> = bucket(sandbox.cache(), "blobs-v1");
    let is_layer = |path: &PathBuf| right.iter().any(|digest| cached(&sandbox, digest) == *path);
    // Fragments and their indexes, and the image's documents: what is small is none of the former.
    let fragments: Vec<&PathBuf> = blobs.iter().filter(|path| !is_layer(path)).collect();
    for at in 0..12 {
        for digest in &right {
            let _ = fs::remove_file(cached(&sandbox, digest));
        }
        fragments.iter().filter(|path| path.exists()).skip(at % 3).step_by(3).for_each(|path| rot(path));
        let builders: Vec<_> = (0..4)
            .map(|builder| {
                let output = format!("oci:out{builder}");
                let mut command = sandbox.command(["--catalogue", "plan.json", "build", "--output", &output]);
                command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for (builder, child) in builders.into_iter().enumerate() {
            let done = child.wait_with_output().unwrap();
            assert!(done.status.success(), "round {at}: {}", String::from_utf8_lossy(&done.stderr));
            assert_eq!(layers(&sandbox, &format!("out{builder}")), right);
        }
    }
}

/// A project whose image stands on a layout in its folder.
fn on_a_layout() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("base-files/etc/base", "base".repeat(30_000));
    sandbox.write("src/main", "main");
    define(&sandbox, Stage::scratch().layer(files("base-files", path!("/"))).image());
    run(&sandbox, &["build", "--output", "oci:base"]).success();
    fs::remove_dir_all(sandbox.cache()).unwrap();
    let stage = Stage::from(oci_layout("base")).layer(inline("t", path!("/etc/t"))).layer(files("src", path!("/app")));
    define(&sandbox, stage.image());
    sandbox
}

#[test]
fn a_bases_layer_that_rotted_or_went_is_had_once_more() {
    let sandbox = on_a_layout();
    run(&sandbox, &["build"]).success();
    let right = layers(&sandbox, "dist");
    let base = cached(&sandbox, &right[0]);
    // What is known of it is forgotten: it is looked at again.
    rot(&base);
    bucket(sandbox.cache(), "ledger-v1").iter().for_each(|record| fs::remove_file(record).unwrap());
    run(&sandbox, &["build", "--output", "oci:again"]).success();
    assert_eq!(layers(&sandbox, "again"), right);
    for (at, edit) in ["main", "other", "main", "third"].into_iter().enumerate() {
        let layout = format!("layout{at}");
        sandbox.write("src/main", edit);
        if at % 2 == 0 {
            rot(&base)
        } else {
            fs::remove_file(&base).unwrap()
        }
        run(&sandbox, &["build", "--output", &format!("oci:{layout}")]).success();
        assert_eq!(layers(&sandbox, &layout)[..2], right[..2], "{edit}");
    }
}

#[test]
fn a_base_that_is_damaged_where_it_lies_is_named_with_the_file() {
    let sandbox = on_a_layout();
    let image = Layout::open(&sandbox.work().join("base")).image("app").remove(0);
    let digest = &image.layers[0].digest;
    let blob = sandbox.work().join("base/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    let (base, file) = ("base image `base`", format!("blobs/sha256/{}`", blob.file_name().unwrap().to_str().unwrap()));
    rot(&blob);
    run(&sandbox, &["build"]).failure(1, &[base, &file, "is damaged: it is sha256:"]);
    fs::remove_file(&blob).unwrap();
    fs::create_dir(&blob).unwrap();
    run(&sandbox, &["build"]).failure(1, &[base, &file, "cannot be read: Is a directory"]);
    fs::remove_dir(&blob).unwrap();
    run(&sandbox, &["build"]).failure(1, &[base, &file, "cannot be read: No such file"]);
}

#[test]
fn a_layer_of_a_base_that_cannot_be_unpacked_is_named_with_the_base() {
    let sandbox = on_a_layout();
    let tar = {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        tar.append_link(&mut header, "h", "missing").unwrap();
        tar.into_inner().unwrap()
    };
    for layer in [tar, b"no tar at all".repeat(100)] {
        write_layout(&sandbox.work().join("base"), &[layer]);
        run(&sandbox, &["build"]).failure(1, &["base image `base`: layer sha256:", "cannot be unpacked: "]);
    }
}

#[test]
fn an_image_on_a_layout_comes_from_a_cache_elsewhere() {
    let sandbox = on_a_layout();
    let store = format!("dir:{}", sandbox.path().join("elsewhere").display());
    run(&sandbox, &["build", "--cache-to", &store]).success();
    let right = layers(&sandbox, "dist");
    for (at, edit) in ["main", "other"].into_iter().enumerate() {
        sandbox.write("src/main", edit);
        fs::remove_dir_all(sandbox.cache()).unwrap();
        let output = format!("oci:from{at}");
        let mut command = sandbox.command(["--catalogue", "plan.json", "build", "--output", &output]);
        command.args(["--cache-from", &store]).env("IMGBUILD_CACHE_TRUSTED_STORES", &store);
        outcome(&mut command).success();
        let found = layers(&sandbox, &format!("from{at}"));
        assert_eq!(found[..2], right[..2], "{edit}");
        assert_eq!(found == right, edit == "main");
    }
}

#[test]
fn too_many_layers_are_too_many_whatever_is_known() {
    let sandbox = project();
    run(&sandbox, &["build"]).success();
    let plan = fs::read_to_string(sandbox.work().join("plan.json")).unwrap();
    let lower = plan.replace("\"layerBudget\": 40", "\"layerBudget\": 7");
    assert_ne!(lower, plan);
    sandbox.write("plan.json", lower);
    run(&sandbox, &["build"]).failure(1, &["8 layers"]);
}

/// What is sent goes beside the build: what rotted here is found there first, and is no fault of the cache.
#[test]
fn a_cache_elsewhere_is_told_of_an_image_whose_lower_layer_had_rotted() {
    let sandbox = project();
    run(&sandbox, &["build", "--output", "oci:first"]).success();
    let right = layers(&sandbox, "first");
    rot(&cached(&sandbox, &right[2]));
    sandbox.write("f7/file", "another one");
    let store = format!("dir:{}", sandbox.path().join("elsewhere").display());
    let said = run(&sandbox, &["build", "--output", "oci:second", "--cache-to", &store]);
    assert_eq!(said.status, 0, "{}", said.stderr);
    let second = layers(&sandbox, "second");
    assert_eq!(second[..7], right[..7]);
    fs::remove_dir_all(sandbox.cache()).unwrap();
    let mut command =
        sandbox.command(["--catalogue", "plan.json", "build", "--format", "json", "--output", "oci:third"]);
    command.args(["--cache-from", &store]).env("IMGBUILD_CACHE_TRUSTED_STORES", &store);
    let told: serde_json::Value = serde_json::from_str(&outcome(&mut command).success()).unwrap();
    assert_eq!(told["images"][0]["cached"], true, "{told}");
    assert_eq!(layers(&sandbox, "third"), second);
}

#[test]
fn real_docker_gets_layers_that_had_rotted() {
    let sandbox = project();
    run(&sandbox, &["build", "--output", "oci:first"]).success();
    let right = layers(&sandbox, "first");
    for rotten in [&right[6..7], &right[..]] {
        rotten.iter().for_each(|digest| rot(&cached(&sandbox, digest)));
        let mut command = sandbox.command(["--catalogue", "plan.json", "load", "--tag", "rotten"]);
        let said = outcome(command.env("DOCKER_HOST", docker::engine().host()));
        assert!(said.stderr.contains("is made again"), "{}", said.stderr);
        said.success();
        let count = ["image", "inspect", "--format", "{{len .RootFS.Layers}}", "app:rotten"];
        assert_eq!(docker::engine().docker(count).trim(), "8");
        docker::engine().docker(["image", "rm", "app:rotten"]);
    }
    run(&sandbox, &["build", "--output", "oci:second"]).success();
    assert_eq!(layers(&sandbox, "second"), right);
}
