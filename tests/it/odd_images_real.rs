//! Images of the odd kind in other people's tools: hard links, a file capability, long paths, somebody's own files, a layer
//! with nothing in it, one layer, and as many as Docker takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use layers::lock::Lock;
use layers::source::{Inline, files, inline};
use layers::{Catalogue, Stage, oci_layout, path};
use serde_json::Value;

use crate::support::docker;
use crate::support::layout::write_layout;
use crate::support::run::{Sandbox, outcome, tool};

/// The most layers that Docker takes.
const MOST: usize = 125;
/// `cap_net_bind_service=ep`, as the kernel keeps it (capabilities(7), VFS_CAP_REVISION_2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn long_path() -> String {
    format!("odd/{}/{}", "d".repeat(120), "f".repeat(200))
}

/// A base that nobody here wrote: its first layer has what tar can say, its second one nothing.
fn base(folder: &Path) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add =
        |name: &str, kind: tar::EntryType, link: Option<&str>, content: &[u8], change: &dyn Fn(&mut tar::Header)| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
            header.set_mtime(1_700_000_000);
            change(&mut header);
            match link {
                Some(target) => tar.append_link(&mut header, name, target).unwrap(),
                None => tar.append_data(&mut header, name, content).unwrap(),
            }
            if name == "odd" {
                let records = [("SCHILY.xattr.security.capability", CAPABILITY.as_slice())];
                tar.append_pax_extensions(records).unwrap();
                let mut header = tar::Header::new_ustar();
                header.set_size(3);
                header.set_mode(0o755);
                header.set_mtime(1_700_000_000);
                tar.append_data(&mut header, "odd/able", b"cap".as_slice()).unwrap();
            }
        };
    let plain = |_: &mut tar::Header| {};
    add("odd", tar::EntryType::Directory, None, b"", &plain);
    add("odd/first", tar::EntryType::Regular, None, b"one content", &plain);
    add("odd/second", tar::EntryType::Link, Some("odd/first"), b"", &plain);
    add(&format!("odd/{}", "d".repeat(120)), tar::EntryType::Directory, None, b"", &plain);
    add(&long_path(), tar::EntryType::Regular, None, b"long", &plain);
    add("odd/own", tar::EntryType::Regular, None, b"own", &|header| {
        header.set_uid(4321);
        header.set_gid(8765);
        header.set_mode(0o4750);
    });
    write_layout(folder, &[tar.into_inner().unwrap(), vec![0; 1024]]);
}

/// What GNU tar says of a container's files: `mode owner/group name`, links with their targets.
fn listed(archive: &Path) -> BTreeMap<String, String> {
    let text = tool("tar", ["--list", "--verbose", "--numeric-owner", "--file", &archive.display().to_string()]);
    let parsed = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (mode, owner) = (words.next()?, words.next()?);
        let name = line.rsplit_once(':')?.1.split_once(' ')?.1;
        let (name, link) = name.split_once(" link to ").unwrap_or((name, ""));
        Some((name.to_owned(), format!("{mode} {owner} {link}").trim().to_owned()))
    });
    parsed.collect()
}

/// Holds what an exported root says against what went in. Which of two hard links is the file is the exporter's choice.
#[track_caller]
fn check(archive: &Path) {
    let found = listed(archive);
    let of = |name: &str| found.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(of("odd/own"), "-rwsr-x--- 4321/8765", "{found:?}");
    assert_eq!(of(&long_path()), "-rw-r--r-- 0/0", "{found:?}");
    let links = [of("odd/first"), of("odd/second")].iter().filter(|line| line.starts_with('h')).count();
    assert_eq!(links, 1, "{found:?}");
    let mut reader = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let capable = reader.entries().unwrap().find_map(|entry| {
        let mut entry = entry.unwrap();
        if entry.path().unwrap() != Path::new("odd/able") {
            return None;
        }
        let extensions = entry.pax_extensions().unwrap()?;
        extensions
            .flatten()
            .find(|it| it.key() == Ok("SCHILY.xattr.security.capability"))
            .map(|it| it.value_bytes().to_vec())
    });
    assert_eq!(capable.as_deref(), Some(CAPABILITY.as_slice()));
}

#[test]
fn real_engines_take_images_of_every_kind() {
    let sandbox = Sandbox::new();
    base(&sandbox.work().join("base"));
    sandbox.write("context/init/init", std::fs::read("/usr/bin/docker-init").unwrap());
    tool("chmod", ["755".as_ref(), sandbox.work().join("context/init/init").as_os_str()]);
    let odd = Stage::from(oci_layout("base"));
    let program = files("init", path!("/"));
    // Encoded anew, and run by somebody who is not root.
    let taken = Stage::scratch()
        .layer(odd.take(path!("/odd")))
        .layer(program.clone())
        .image()
        .user("4321:8765")
        .entrypoint(["/init"])
        .cmd(["--version"]);
    // As the base has it, byte for byte.
    let kept = odd.layer(program.clone()).image().user("4321:8765").entrypoint(["/init"]).cmd(["--version"]);
    let single = Stage::scratch().layer(program.clone()).image().entrypoint(["/init"]).cmd(["--version"]);
    let mut stage = Stage::scratch().layer(program);
    for at in 1..MOST {
        // Over the one below: else they would share a layer.
        let file: Inline = inline(format!("{at}\n"), path!("/many/file"));
        stage = stage.layer(file);
    }
    let many = stage.image().layer_budget(MOST as u8).entrypoint(["/init"]).cmd(["--version"]);
    let catalogue = Catalogue::new("odd");
    let catalogue = catalogue.with("odd-taken", taken).with("odd-kept", kept);
    let catalogue = catalogue.with("odd-single", single).with("odd-many", many);
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    let imgbuild = |words: &[&str]| {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
        command.args(words).env("DOCKER_HOST", docker::engine().host());
        outcome(&mut command)
    };
    let names = ["odd-taken", "odd-kept", "odd-single", "odd-many"];
    imgbuild(&["build", "--output", "oci:dist"]).success();
    let index: Value = serde_json::from_slice(&std::fs::read(sandbox.work().join("dist/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(4));

    // Docker 20.10.
    imgbuild(&["load", "--tag", "x"]).success();
    let engine = docker::engine();
    for name in names {
        let image = format!("{name}:x");
        let said = engine.run(&image, &[], &[]);
        assert!(said.status == 0 && said.stdout.contains("tini"), "{name}: {said:?}");
        if name.ends_with("taken") || name.ends_with("kept") {
            let archive = sandbox.path().join(format!("{name}.tar"));
            let id = engine.docker(["create", &image]).trim().to_owned();
            engine.docker(["export", "--output", &archive.display().to_string(), &id]);
            engine.docker(["rm", &id]);
            check(&archive);
        }
    }
    let depth = engine.docker(["image", "inspect", "--format", "{{len .RootFS.Layers}}", "odd-many:x"]);
    assert_eq!(depth.trim(), MOST.to_string());

    // podman, over a store of its own.
    let storage = sandbox.path().join("podman");
    let text =
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n", storage.display());
    let conf = sandbox.write("storage.conf", text);
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        outcome(command.args(words).env("CONTAINERS_STORAGE_CONF", &conf)).success()
    };
    for name in ["odd-taken", "odd-single"] {
        let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context", "load", name]);
        command.args(["--into", "podman", "--tag", "x"]).env("CONTAINERS_STORAGE_CONF", &conf);
        outcome(&mut command).success();
    }
    let id = podman(&["create", "odd-taken:x"]).trim().to_owned();
    let archive = sandbox.path().join("podman.tar");
    podman(&["export", "--output", &archive.display().to_string(), &id]);
    podman(&["rm", &id]);
    check(&archive);

    // One archive for Docker, podman and skopeo.
    imgbuild(&["build", "odd-taken", "--output", "docker-archive:one.tar", "--output", "oci-archive:two.tar"])
        .success();
    let at = |name: &str| sandbox.work().join(name).display().to_string();
    engine.docker(["image", "rm", "--force", "odd-taken:x"]);
    assert!(engine.docker(["load", "--input", &at("one.tar")]).contains("odd-taken:latest"));
    podman(&["rmi", "--force", "odd-taken:x"]);
    assert!(podman(&["load", "--input", &at("one.tar")]).contains("odd-taken:latest"));
    for from in [format!("docker-archive:{}", at("one.tar")), format!("oci-archive:{}", at("two.tar"))] {
        let to = format!("dir:{}", sandbox.path().join("from-archive").display());
        tool("skopeo", ["copy", "--quiet", &from, &to]);
    }

    // skopeo copies all of them, and umoci unpacks the deepest.
    for name in names {
        let from = format!("oci:{}:{name}", sandbox.work().join("dist").display());
        let to = format!("dir:{}", sandbox.path().join(format!("copied-{name}")).display());
        tool("skopeo", ["copy", "--quiet", &from, &to]);
    }
    let bundle = sandbox.path().join("bundle");
    let layout = format!("{}:odd-many", sandbox.work().join("dist").display());
    tool("umoci", ["unpack".as_ref(), "--image".as_ref(), layout.as_ref(), bundle.as_os_str()]);
    let text = std::fs::read_to_string(bundle.join("rootfs/many/file")).unwrap();
    assert_eq!(text, format!("{}\n", MOST - 1));
}
