//! Copies between registries, layouts, archives and engines, byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use imgbuild::observe::Silent;
use imgbuild::places::{Docker, Place, Reach};
use imgbuild::registry::{ClientConfig, Registries};
use layers::Digest;
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::registry::{Images, hurried, registry};
use crate::support::registry::{Mounting, Registry};

const MANIFEST: &str = layers::oci::MANIFEST;
const INDEX: &str = layers::oci::INDEX;

/// Copies from one place to another.
fn copy(config: ClientConfig, images: &Images, from: &str, to: &str) -> Result<(), String> {
    let registries = Registries::new(config);
    let docker = Docker { host: "unix:///nonexistent".into(), certificates: None, unknown: None };
    let reach = Reach { registries: &registries, docker: &docker, store: &images.store, observer: &Silent };
    let place = |text: &str| text.parse::<Place>().map_err(|error| error.to_string());
    let held = reach.read(&place(from)?).map_err(|error| error.to_string())?;
    reach.write(held, &place(to)?).map_err(|error| error.to_string())
}

/// A layout in the making.
struct Writer<'a>(&'a Path, Vec<Value>);

impl Writer<'_> {
    fn blob(&self, algorithm: &str, bytes: &[u8]) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let name = match algorithm {
            "sha512" => hex(&sha2::Sha512::digest(bytes)),
            _ => hex(&sha2::Sha256::digest(bytes)),
        };
        let folder = self.0.join("blobs").join(algorithm);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(&name), bytes).unwrap();
        format!("{algorithm}:{name}")
    }

    fn descriptor(&self, media_type: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": self.blob("sha256", bytes), "size": bytes.len()})
    }

    fn document(&self, media_type: &str, document: &Value) -> Value {
        self.descriptor(media_type, document.to_string().as_bytes())
    }

    fn named(&mut self, name: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        self.1.push(descriptor);
    }

    fn finish(self) {
        std::fs::write(self.0.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.1});
        std::fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }
}

/// One of everything that the image specification allows.
fn one_of_everything(folder: &Path) -> Vec<&'static str> {
    let mut out = Writer(folder, Vec::new());
    let config = out.descriptor(
        layers::oci::CONFIG,
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    let layer = out.descriptor(layers::oci::LAYER_GZIP, b"not really a layer");
    let image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let described = out.document(MANIFEST, &image);
    out.named("image", described.clone());
    let mut spaced = serde_json::to_vec_pretty(&image).unwrap();
    spaced.push(b'\n');
    let strange = out.descriptor(MANIFEST, &spaced);
    out.named("white-space", strange);
    let platform = |mut it: Value, architecture: &str| {
        it["platform"] = json!({"os": "linux", "architecture": architecture});
        it
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [platform(described.clone(), "amd64")]});
    let indexed = out.document(INDEX, &index);
    out.named("index", indexed.clone());
    let nested = out.document(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [indexed]}));
    out.named("nested-index", nested);
    let gone = json!({"mediaType": MANIFEST, "digest": Digest::of(b"gone"), "size": 4, "platform": {"os": "linux", "architecture": "arm64"}});
    let sparse =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [platform(described.clone(), "amd64"), gone]});
    let sparse = out.document(INDEX, &sparse);
    out.named("sparse-index", sparse);
    let empty = out.descriptor("application/vnd.oci.empty.v1+json", b"{}");
    let artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.test", "config": empty, "layers": [empty]});
    let described_artifact = out.document(MANIFEST, &artifact);
    out.named("artifact", described_artifact.clone());
    let artifacts = json!({"schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/x.test", "manifests": [described_artifact]});
    let artifacts = out.document(INDEX, &artifacts);
    out.named("artifact-index", artifacts);
    let with = |name: &str, value: Value| {
        let mut changed = image.clone();
        changed[name] = value;
        changed
    };
    for (name, document) in [
        ("subject", with("subject", described.clone())),
        ("subject-missing", with("subject", json!({"mediaType": MANIFEST, "digest": Digest::of(b"none"), "size": 4}))),
        ("custom-fields", with("org.example.custom", json!({"deeply": [1, {"nested": null}]}))),
        ("no-layers", with("layers", json!([]))),
        ("annotations", with("annotations", json!({"é": "\u{2603}"}))),
        ("docker", json!({"schemaVersion": 2, "config": config, "layers": [layer]})),
    ] {
        let described = out.document(MANIFEST, &document);
        out.named(name, described);
    }
    let mut data = layer.clone();
    data["data"] = json!(base64::engine::general_purpose::STANDARD.encode(b"not really a layer"));
    let embedded = out.document(MANIFEST, &with("layers", json!([data])));
    out.named("data", embedded);
    let foreign = json!({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "digest": Digest::of(b"foreign"), "size": 7, "urls": ["http://169.254.169.254/x"]});
    let foreign = out.document(MANIFEST, &with("layers", json!([foreign])));
    out.named("non-distributable", foreign);
    let nothing = out.descriptor("application/octet-stream", b"");
    let nothing = out.document(MANIFEST, &with("layers", json!([nothing])));
    out.named("empty-blob", nothing);
    let long = json!({"mediaType": "application/octet-stream", "digest": out.blob("sha512", b"long"), "size": 4});
    let long = with("layers", json!([long])).to_string();
    let described = json!({"mediaType": MANIFEST, "digest": out.blob("sha512", long.as_bytes()), "size": long.len()});
    out.named("sha512", described);
    let large = with("annotations", json!({"padding": "x".repeat((4 << 20) - 1000)}));
    let large = out.document(MANIFEST, &large);
    out.named("large", large);
    let names = out.1.iter().filter_map(|it| it["annotations"]["org.opencontainers.image.ref.name"].as_str());
    let names: Vec<String> = names.map(str::to_owned).collect();
    out.finish();
    names.into_iter().map(|name| &*name.leak()).collect()
}

/// All files below a folder, with their content.
fn blobs(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for algorithm in ["sha256", "sha512"] {
        let Ok(entries) = std::fs::read_dir(folder.join("blobs").join(algorithm)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = format!("{algorithm}/{}", path.file_name().unwrap().to_str().unwrap());
            found.insert(name, std::fs::read(path).unwrap());
        }
    }
    found
}

fn top(layout: &Path, name: &str) -> (String, String) {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let all = index["manifests"].as_array().unwrap();
    let found = all.iter().find(|it| it["annotations"]["org.opencontainers.image.ref.name"] == name).unwrap();
    (found["digest"].as_str().unwrap().to_owned(), found["mediaType"].as_str().unwrap().to_owned())
}

#[test]
fn one_of_everything_goes_into_a_registry_and_comes_back_byte_for_byte() {
    let registry = registry(|kind| kind.sparse = true);
    let images = Images::new();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let names = one_of_everything(&source);
    assert_eq!(names.len(), 18);
    for name in &names {
        let there = format!("{}/conformance/{name}:v1", registry.host());
        copy(hurried(), &images, &format!("oci:{}:{name}", source.display()), &there)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (digest, media_type) = top(&source, name);
        {
            let state = registry.state();
            let repo = &state.repos[&format!("conformance/{name}")];
            let (stored_type, bytes) = &repo.manifests[&digest];
            assert_eq!((stored_type, &media_type), (&media_type, stored_type), "{name}");
            let path = source.join("blobs").join(digest.replace(':', "/"));
            assert_eq!(bytes, &std::fs::read(path).unwrap(), "{name}");
        }
        let back = folder.path().join(format!("back-{name}"));
        if *name == "sha512" {
            // The cache keeps SHA-256 only; within registries such content is passed on.
            let error = copy(hurried(), &Images::new(), &there, &format!("oci:{}:{name}", back.display())).unwrap_err();
            assert!(error.contains("SHA-256"), "{error}");
            copy(hurried(), &Images::new(), &there, &format!("{}/elsewhere:v1", registry.host())).unwrap();
            continue;
        }
        copy(hurried(), &Images::new(), &there, &format!("oci:{}:{name}", back.display()))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(top(&back, name), (digest, media_type), "{name}");
        let all = blobs(&source);
        for (blob, bytes) in blobs(&back) {
            assert_eq!(all.get(&blob), Some(&bytes), "{name}: {blob}");
        }
        // And through an archive.
        let archive = folder.path().join(format!("{name}.tar"));
        copy(
            hurried(),
            &images,
            &format!("oci:{}:{name}", back.display()),
            &format!("oci-archive:{}:{name}", archive.display()),
        )
        .unwrap();
        let again = folder.path().join(format!("again-{name}"));
        copy(
            hurried(),
            &Images::new(),
            &format!("oci-archive:{}", archive.display()),
            &format!("oci:{}:{name}", again.display()),
        )
        .unwrap();
        assert_eq!(blobs(&again), blobs(&back), "{name}");
    }
}

#[test]
fn within_a_registry_nothing_is_downloaded_and_between_two_everything_once() {
    let (one, two) = (registry(|_| {}), registry(|_| {}));
    let images = Images::new();
    let image = images.image("app", &layers::Platform::ALL, &[&vec![1; 100_000], b"small"]);
    crate::registry::push(&one, hurried(), &images, &[image]).unwrap();
    one.clear_log();
    let here = |registry: &Registry, name: &str| format!("{}/{name}:v1", registry.host());
    copy(hurried(), &Images::new(), &here(&one, "app"), &here(&one, "stable/app")).unwrap();
    assert_eq!(one.check_tag("stable/app", "v1"), Some(Ok(())));
    assert!(one.requests("GET").iter().all(|it| !it.line.contains("/blobs/")), "{:?}", one.requests("GET"));
    assert_eq!(one.requests("POST").iter().filter(|it| it.status == 201).count(), 4);
    copy(hurried(), &Images::new(), &here(&one, "app"), &here(&two, "app")).unwrap();
    assert_eq!(two.check_tag("app", "v1"), Some(Ok(())));
    assert_eq!(one.tag("app", "v1"), two.tag("app", "v1"));
    assert!(two.state().uploaded.values().all(|count| *count == 1));
    // A registry that does not mount is read from after all.
    let three = registry(|kind| kind.mounting = Mounting::Never);
    copy(hurried(), &Images::new(), &here(&one, "app"), &here(&three, "app")).unwrap();
    copy(hurried(), &Images::new(), &here(&three, "app"), &here(&three, "other")).unwrap();
    assert_eq!(three.check_tag("other", "v1"), Some(Ok(())));
}

#[test]
fn places_that_hold_something_else_are_refused() {
    let images = Images::new();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    one_of_everything(&source);
    let to = format!("oci:{}", folder.path().join("to").display());
    let from = |name: &str| format!("oci:{}{name}", source.display());
    for (name, said) in
        [("", "it has several images; choose one of image,"), (":nine", "it has no image `nine`, only image,")]
    {
        let error = copy(hurried(), &images, &from(name), &to).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    // A damaged blob, a damaged manifest, and no layout at all.
    let all = blobs(&source);
    let layer = format!("sha256/{}", Digest::of(b"not really a layer").hex());
    assert!(all.contains_key(&layer));
    std::fs::write(source.join("blobs").join(&layer), "not really a LAYER").unwrap();
    let error = copy(hurried(), &images, &from(":image"), &to).unwrap_err();
    assert!(error.contains("is damaged"), "{error}");
    let (digest, _) = top(&source, "image");
    std::fs::write(source.join("blobs").join(digest.replace(':', "/")), "{}").unwrap();
    let error = copy(hurried(), &images, &from(":image"), &to).unwrap_err();
    assert!(error.contains("is damaged"), "{error}");
    let error = copy(hurried(), &images, "oci:/nonexistent:x", &to).unwrap_err();
    assert!(error.contains("index.json"), "{error}");
    std::fs::write(folder.path().join("x.tar"), "no tar").unwrap();
    let error =
        copy(hurried(), &images, &format!("oci-archive:{}", folder.path().join("x.tar").display()), &to).unwrap_err();
    assert!(error.contains("x.tar"), "{error}");
}

#[test]
fn what_is_there_is_not_lost_to_a_copy() {
    let images = Images::new();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    one_of_everything(&at("source"));
    let from = |name: &str| format!("oci:{}:{name}", at("source").display());
    let copied = |from: &str, to: String| copy(hurried(), &images, from, &to);
    // Links and devices stay what they are.
    std::os::unix::fs::symlink("elsewhere", at("link")).unwrap();
    let error = copied(&from("image"), format!("oci-archive:{}:a", at("link").display())).unwrap_err();
    assert!(error.contains("it is a link"), "{error}");
    assert!(at("link").symlink_metadata().unwrap().is_symlink() && !at("elsewhere").exists());
    // Several platforms are no archive of Docker.
    let error = copied(&from("index"), format!("docker-archive:{}:a", at("x.tar").display())).unwrap_err();
    assert!(error.contains("choose it with `--platform`") && !at("x.tar").exists(), "{error}");
    // An index that cannot be read is not an empty one, and what it says beside its images stays.
    let layout = format!("oci:{}", at("layout").display());
    copied(&from("image"), format!("{layout}:a")).unwrap();
    let index = at("layout").join("index.json");
    let mut said: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    said["annotations"] = json!({"kept": "yes"});
    std::fs::write(&index, said.to_string()).unwrap();
    copied(&from("white-space"), format!("{layout}:b")).unwrap();
    let said: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    assert_eq!((said["annotations"]["kept"].as_str(), said["manifests"].as_array().unwrap().len()), (Some("yes"), 2));
    std::fs::write(&index, "{").unwrap();
    let error = copied(&from("image"), format!("{layout}:c")).unwrap_err();
    assert!(error.contains("its index.json is no index"), "{error}");
    assert_eq!(std::fs::read(&index).unwrap(), b"{");
    std::fs::write(&index, said.to_string()).unwrap();
    // A blob that rotted without changing its length is put anew, and is named where it is read.
    let (blob, bytes) = blobs(&at("layout")).into_iter().find(|(_, bytes)| bytes == b"not really a layer").unwrap();
    let path = at("layout").join("blobs").join(blob.replace(':', "/"));
    std::fs::write(&path, b"not really a LAYER").unwrap();
    let error = copied(&format!("{layout}:a"), format!("oci:{}", at("other").display())).unwrap_err();
    assert!(error.contains(&path.display().to_string()) && error.contains("it is damaged"), "{error}");
    copied(&from("image"), format!("{layout}:a")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

/// An archive as `docker save` of old writes it: the configuration and plain tars by name.
fn saved(images: &[(&str, &[&str])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut listed = Vec::new();
    for (content, names) in images {
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        layer.append_data(&mut header, "file", content.as_bytes()).unwrap();
        let layer = layer.into_inner().unwrap();
        let config = json!({"architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}});
        let (config, path) = (config.to_string(), format!("{content}/layer.tar"));
        let config_path = format!("{}.json", Digest::of(config.as_bytes()).hex());
        add(&path, &layer);
        add(&config_path, config.as_bytes());
        listed.push(json!({"Config": config_path, "RepoTags": names, "Layers": [path]}));
    }
    add("manifest.json", json!(listed).to_string().as_bytes());
    tar.into_inner().unwrap()
}

/// The only file of the only layer of a layout's image.
fn content_of(layout: &Path, name: &str) -> String {
    let (digest, _) = top(layout, name);
    let read = |digest: &str| std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
    let manifest: Value = serde_json::from_slice(&read(&digest)).unwrap();
    let layer = read(manifest["layers"][0]["digest"].as_str().unwrap());
    let mut archive = tar::Archive::new(layer.as_slice());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut archive.entries().unwrap().next().unwrap().unwrap(), &mut text).unwrap();
    text
}

#[test]
fn images_of_an_archive_are_named_as_docker_names_them() {
    let images = Images::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.tar");
    let all: [(&str, &[&str]); 4] = [
        ("hub", &["docker.io/library/a:latest"]),
        ("short", &["b:latest", "b:v2"]),
        ("local", &["localhost/a:latest"]),
        ("port", &["localhost:5000/team/a:latest"]),
    ];
    std::fs::write(&path, saved(&all)).unwrap();
    let to = folder.path().join("to");
    let copied = |name: &str| {
        let from = format!("docker-archive:{}{name}", path.display());
        copy(hurried(), &images, &from, &format!("oci:{}:x", to.display())).map(|()| content_of(&to, "x"))
    };
    for (name, content) in [
        (":a", "hub"),
        (":a:latest", "hub"),
        (":library/a", "hub"),
        (":docker.io/library/a:latest", "hub"),
        (":index.docker.io/library/a", "hub"),
        (":b", "short"),
        (":b:v2", "short"),
        (":docker.io/b:latest", "short"),
        (":localhost/a", "local"),
        (":localhost:5000/team/a", "port"),
    ] {
        assert_eq!(copied(name).as_deref(), Ok(content), "{name}");
    }
    for (name, said) in [
        (":a:v2", "it has no image `a:v2`, only docker.io/library/a:latest, b:latest, b:v2, localhost/a:latest,"),
        (":team/a", "it has no image `team/a`"),
        (":quay.io/a", "it has no image `quay.io/a`"),
        ("", "it has several images; choose one of docker.io/library/a:latest, b:latest,"),
    ] {
        let error = copied(name).unwrap_err();
        assert!(error.contains(said), "{name}: {error}");
    }
    // Docker since 25: an index beside, the tag in one annotation and the whole name in another, an entry a name.
    let source = folder.path().join("source");
    let mut out = Writer(&source, Vec::new());
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = out.descriptor(layers::oci::CONFIG, config);
    let image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
    let described = out.document(MANIFEST, &image);
    for (full, tag) in [("docker.io/library/a:v1", "v1"), ("docker.io/library/a:latest", "latest")] {
        let mut named = described.clone();
        named["annotations"] = json!({"io.containerd.image.name": full, "org.opencontainers.image.ref.name": tag});
        out.1.push(named);
    }
    out.finish();
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    tar.append_dir_all(".", &source).unwrap();
    tar.finish().unwrap();
    for name in ["", ":a", ":a:v1", ":docker.io/library/a:latest"] {
        let from = format!("docker-archive:{}{name}", path.display());
        copy(hurried(), &images, &from, &format!("oci:{}:x", to.display()))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(top(&to, "x").0, described["digest"].as_str().unwrap(), "{name}");
    }
    let from = format!("docker-archive:{}:b", path.display());
    let error = copy(hurried(), &images, &from, &format!("oci:{}:x", to.display())).unwrap_err();
    assert!(error.contains("only docker.io/library/a:v1, docker.io/library/a:latest"), "{error}");
}

#[test]
fn a_compressed_archive_is_read_and_one_that_is_cut_off_says_where() {
    use std::io::Write as _;
    let images = Images::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.tar");
    let to = folder.path().join("to");
    let plain = saved(&[("hub", &["a:latest"])]);
    let copied = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        // Of a cache that has nothing yet.
        let from = format!("docker-archive:{}", path.display());
        copy(hurried(), &Images::new(), &from, &format!("oci:{}:x", to.display())).map(|()| content_of(&to, "x"))
    };
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    assert_eq!(copied(&plain).as_deref(), Ok("hub"));
    assert_eq!(copied(&gzip(&plain)).as_deref(), Ok("hub"));
    let scratch = images.store.scratch();
    assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0, "nothing is left behind");
    // Cut at every block of the plain one, and at each sixteenth byte of the other: an error that names the archive, or,
    // where no more than blocks of the mark at its end are lost, the image.
    let needed = 1 + plain.iter().rposition(|byte| *byte != 0).unwrap();
    for length in (0..plain.len()).step_by(256) {
        match copied(&plain[..length]) {
            Ok(content) => assert!(length >= needed && content == "hub", "{length} of {}", plain.len()),
            Err(error) => {
                assert!((length < needed || length % 512 != 0) && error.contains("saved.tar"), "{length}: {error}");
                assert!(error.contains("cut off") && error.contains("byte "), "{length}: {error}");
            }
        }
    }
    let packed = gzip(&plain);
    for length in (10..packed.len()).step_by(16) {
        let error = copied(&packed[..length]).unwrap_err();
        assert!(error.contains("the gzip stream ends too early, at byte "), "{length}: {error}");
    }
    for (bytes, said) in [
        (b"BZh91AY&SY and more".as_slice(), "bzip2"),
        (&[0; 4096], "the list of its images (`index.json` or `manifest.json`) is missing"),
        (&[7; 4096], "it is no tar archive, or it is damaged or cut off behind byte 0 of 4096"),
    ] {
        let error = copied(bytes).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn an_engine_without_zstd_gets_the_tars_of_such_layers() {
    use imgbuild::places::{Held, write_plain};
    use imgbuild::registry::Bundle;
    use imgbuild::registry::Supply;
    use imgbuild::registry::document::Document;
    use std::collections::BTreeSet;
    let images = Images::new();
    let tar = saved(&[("inner", &["x"])]);
    let (packed, other) = (zstd::encode_all(tar.as_slice(), 3).unwrap(), b"\x1f\x8b as it is".to_vec());
    let blob = |media_type: &str, bytes: &[u8]| {
        let blob = images.store.put(bytes).unwrap();
        json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
    };
    let config = blob(layers::oci::CONFIG, b"{}");
    let list = [blob(layers::oci::LAYER_ZSTD, &packed), blob(layers::oci::LAYER_GZIP, &other)];
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": list});
    let bundle = Bundle::read(vec![Document::json(MANIFEST, &manifest)]).unwrap();
    let held = Held { bundle, supply: Supply { store: Some(images.store.clone()), ..Supply::default() } };
    let ids = [Digest::of(&tar).to_string(), Digest::of(b"other").to_string()];
    let write = |left_out: &BTreeSet<_>, ids: &[String]| write_plain(&held, Some("a"), left_out, ids, Vec::new());
    let members = |bytes: &[u8]| -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let (mut entry, mut content) = (entry.unwrap(), Vec::new());
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    };
    let whole = members(&write(&BTreeSet::new(), &ids).unwrap());
    let listed: Value = serde_json::from_slice(&whole["manifest.json"]).unwrap();
    assert_eq!(listed[0]["RepoTags"], json!(["a:latest"]));
    let layers: Vec<&str> = listed[0]["Layers"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert_eq!((&whole[layers[0]], &whole[layers[1]]), (&tar, &other));
    assert_eq!(whole[listed[0]["Config"].as_str().unwrap()], b"{}");
    let skipped = BTreeSet::from([Digest::of(&packed).into()]);
    assert_eq!(members(&write(&skipped, &ids).unwrap()).len(), 3, "what the engine has is named and not sent");
    let wrong = [ids[1].clone(), ids[1].clone()];
    let error = write(&BTreeSet::new(), &wrong).unwrap_err().to_string();
    assert!(error.contains(&format!("is {}, the configuration names {}", ids[0], ids[1])), "{error}");
    assert!(write(&BTreeSet::new(), &ids[..1]).is_err());
}
