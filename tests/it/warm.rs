//! Whatever a cache remembers of other builds: a warm one comes to what an empty one comes to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use layers::lock::Lock;
use layers::source::{dir, files, inline, link};
use layers::{Catalogue, Platform, Stage, oci_layout, path};
use serde_json::{Value, json};

use crate::support::cache::bucket;
use crate::support::layout::{Layout, sha256};
use crate::support::run::{Outcome, Sandbox, outcome};

/// Writes down an image of this stage.
fn define(sandbox: &Sandbox, stage: Stage) {
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox.write("plan.json", Catalogue::new("test").with("app", stage.image()).plan().to_json());
}

fn build(sandbox: &Sandbox, cache: &Path) -> Outcome {
    let mut command = sandbox.command(["build", "--catalogue", "plan.json", "--progress", "quiet"]);
    outcome(command.env("IMGBUILD_CACHE_DIR", cache))
}

/// Builds with the sandbox's cache and with an empty one, which come to the same.
fn same(sandbox: &Sandbox) -> Outcome {
    let empty = tempfile::tempdir().unwrap();
    let (cold, warm) = (build(sandbox, empty.path()), build(sandbox, sandbox.cache()));
    assert_eq!((warm.status, &warm.stdout), (cold.status, &cold.stdout), "{}\n{}", warm.stderr, cold.stderr);
    warm
}

/// What the files of the image that was built hold, by their paths.
fn contents(sandbox: &Sandbox) -> BTreeMap<String, Vec<u8>> {
    let image = Layout::open(&sandbox.work().join("dist")).image("app").remove(0);
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for layer in &image.layers {
        for entry in tar::Archive::new(layer.tar.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            if let (true, Some(first)) = (entry.header().entry_type().is_hard_link(), entry.link_name().unwrap()) {
                let content = found[first.to_str().unwrap()].clone();
                found.insert(path, content);
            } else if entry.header().entry_type().is_file() {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

/// Something in a layer of a base: a path, and its content, the first name that it is a hardlink to, or nothing for a directory.
enum Member<'a> {
    File(&'a str, &'a [u8]),
    Hardlink(&'a str, &'a str),
    Dir(&'a str),
}

fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_size(0);
        match member {
            Member::File(path, content) => {
                header.set_size(content.len() as u64);
                out.append_data(&mut header, path, *content).unwrap();
            }
            Member::Hardlink(path, first) => {
                header.set_entry_type(tar::EntryType::Link);
                out.append_link(&mut header, path, first).unwrap();
            }
            Member::Dir(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                out.append_data(&mut header, path, std::io::empty()).unwrap();
            }
        }
    }
    out.into_inner().unwrap()
}

/// A layout with an image of these layers for the machine's platform.
fn base(sandbox: &Sandbox, layers: &[Vec<u8>]) {
    let put = |bytes: &[u8], kind: &str| {
        let digest = sha256(bytes);
        sandbox.write(&format!("base/blobs/sha256/{}", &digest[7..]), bytes);
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len() })
    };
    let layers: Vec<Value> = layers.iter().map(|layer| put(layer, "layer.v1.tar")).collect();
    let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": Platform::native().unwrap().architecture(),
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(config.to_string().as_bytes(), "config.v1+json");
    let kind = "manifest.v1+json";
    let media = format!("application/vnd.oci.image.{kind}");
    let manifest = json!({ "schemaVersion": 2, "mediaType": media, "config": config, "layers": layers });
    let manifest = put(manifest.to_string().as_bytes(), kind);
    sandbox.write("base/index.json", json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string());
    sandbox.write("base/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
}

/// A program of this machine with its loader, where it is looked for, and its library.
struct Program {
    program: Vec<u8>,
    loader: (&'static str, Vec<u8>),
    library: Vec<u8>,
}

impl Program {
    fn new() -> Program {
        let (loader, multiarch) = match Platform::native().unwrap() {
            Platform::Amd64 => ("lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
            Platform::Arm64 => ("lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
        };
        let read = |path: &str| fs::read(Path::new("/").join(path)).unwrap();
        let library = read(&format!("lib/{multiarch}/libc.so.6"));
        Program { program: read("bin/true"), loader: (loader, read(loader)), library }
    }
}

const GONE: &str = "libc.so.6";

#[test]
fn a_base_that_deletes_a_library_is_refused_whatever_was_built_before() {
    let (sandbox, it) = (Sandbox::new(), Program::new());
    let first = tar(&[
        Member::Dir("bin"),
        Member::Dir("usr"),
        Member::Dir("usr/lib"),
        Member::File("bin/true", &it.program),
        Member::File("usr/lib/libc.so.6", &it.library),
        Member::File(it.loader.0, &it.loader.1),
        Member::File("junk", b"x"),
    ]);
    let second = |gone: &str| tar(&[Member::File(gone, b"")]);
    define(&sandbox, Stage::from(oci_layout("base")).layer(dir(path!("/data"))));
    base(&sandbox, &[first.clone(), second(".wh.junk")]);
    same(&sandbox).success();
    base(&sandbox, &[first, second("usr/lib/.wh.libc.so.6")]);
    same(&sandbox).failure(1, &["shared libraries are missing", GONE]);
}

#[test]
fn what_tells_the_loader_where_to_look_counts_wherever_it_lies() {
    let (sandbox, it) = (Sandbox::new(), Program::new());
    sandbox.write("root/bin/true", &it.program);
    sandbox.write("root/opt/libs/libc.so.6", &it.library);
    sandbox.write(&format!("root/{}", it.loader.0), &it.loader.1);
    let root = || files("root", path!("/"));
    let included = |directory: &str| {
        let stage =
            Stage::scratch().layer(inline("include /opt/conf/*.conf\n", path!("/etc/ld.so.conf"))).layer(root());
        stage.layer(inline(directory, path!("/opt/conf/a.conf")))
    };
    let linked = |directory: &str| {
        let stage = Stage::scratch().layer(link(path!("/etc"), "conf")).layer(root());
        stage.layer(inline(directory, path!("/conf/ld.so.conf")))
    };
    let plain = |directory: &str| Stage::scratch().layer(root()).layer(inline(directory, path!("/etc/ld.so.conf")));
    for stage in [&included as &dyn Fn(&str) -> Stage, &linked, &plain] {
        define(&sandbox, stage("/opt/libs\n"));
        same(&sandbox).success();
        define(&sandbox, stage("/opt/none\n"));
        same(&sandbox).failure(1, &["shared libraries are missing", GONE]);
    }
}

#[test]
fn a_library_is_there_under_each_of_its_names() {
    let (sandbox, it) = (Sandbox::new(), Program::new());
    base(
        &sandbox,
        &[tar(&[
            Member::Dir("usr"),
            Member::Dir("usr/lib"),
            Member::File("true", &it.program),
            Member::File("usr/lib/first.so", &it.library),
            Member::Hardlink("usr/lib/libc.so.6", "usr/lib/first.so"),
            Member::File(it.loader.0, &it.loader.1),
        ])],
    );
    define(&sandbox, Stage::from(oci_layout("base")).layer(dir(path!("/data"))));
    same(&sandbox).success();
}

#[test]
fn a_hardlink_whose_first_name_was_replaced_is_taken_with_its_own_content() {
    let sandbox = Sandbox::new();
    base(&sandbox, &[tar(&[Member::Dir("d"), Member::File("d/a", b"old"), Member::Hardlink("d/b", "d/a")])]);
    let stage = Stage::from(oci_layout("base"));
    let take = |stage: Stage| Stage::scratch().layer(stage.take(path!("/d")));
    define(&sandbox, take(stage.clone()));
    same(&sandbox).success();
    let both = |a: &str, b: &str| BTreeMap::from([("d/a".to_owned(), a.into()), ("d/b".to_owned(), b.into())]);
    assert_eq!(contents(&sandbox), both("old", "old"));
    define(&sandbox, take(stage.clone().layer(inline("new", path!("/d/a")))));
    same(&sandbox).success();
    assert_eq!(contents(&sandbox), both("new", "old"));
    define(&sandbox, take(stage.layer(link(path!("/d/a"), "elsewhere"))));
    same(&sandbox).success();
    assert_eq!(contents(&sandbox), BTreeMap::from([("d/b".to_owned(), b"old".to_vec())]));
}

#[test]
fn fragments_that_changed_places_are_not_read() {
    let sandbox = Sandbox::new();
    sandbox.write("one", "the content that is 1\n");
    sandbox.write("two", "the content that is 2\n");
    let stage = |to: &str| {
        let of = |name: &str| Stage::scratch().layer(files(name, path!("/f")));
        let to = |number: &str| path!("/").join(&format!("{to}{number}")).unwrap();
        Stage::scratch().layer(of("one").take(path!("/f")).to(to("1"))).layer(of("two").take(path!("/f")).to(to("2")))
    };
    define(&sandbox, stage("a"));
    same(&sandbox).success();
    // The fragments of the two files, which are alike but for a digit.
    let blobs = bucket(sandbox.cache(), "blobs-v1");
    let fragment = |text: &[u8]| {
        let mut found = blobs.iter().filter(|blob| {
            let mut tar = Vec::new();
            let is_gzip = MultiGzDecoder::new(File::open(blob).unwrap()).read_to_end(&mut tar).is_ok();
            is_gzip && tar.starts_with(b"f\0") && tar.windows(text.len()).any(|window| window == text)
        });
        (found.next().unwrap().clone(), found.count())
    };
    let ((one, none), (two, _)) = (fragment(b"that is 1"), fragment(b"that is 2"));
    assert_eq!((none, fs::metadata(&one).unwrap().len()), (0, fs::metadata(&two).unwrap().len()));
    let aside = sandbox.path().join("aside");
    for (from, to) in [(&one, &aside), (&two, &one), (&aside, &two)] {
        fs::rename(from, to).unwrap();
    }
    define(&sandbox, stage("b"));
    same(&sandbox).success();
    let found = contents(&sandbox);
    assert_eq!((&*found["b1"], &*found["b2"]), (&b"the content that is 1\n"[..], &b"the content that is 2\n"[..]));
}
