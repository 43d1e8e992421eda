//! Several caches elsewhere, several projects and several versions: who is told of an image has its layers, and nobody is in another's way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use layers::source::{files, inline};
use layers::{Catalogue, ImagePath, Stage, path};
use serde_json::Value;

use crate::registry::registry;
use crate::remote::{Machine, Project, STORES, files_below};
use crate::support::cache::bucket;
use crate::support::layout::Layout;
use crate::support::registry::{Act, Response};
use crate::support::run::outcome;

/// The documents in a folder.
fn documents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = folder.join("imgbuild-cache-v1/names");
    let names = if names.exists() { files_below(&names) } else { Vec::new() }.into_iter();
    names.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
}

/// Each document in a folder names layers, and a bundle, that are there.
#[track_caller]
fn assert_told_truly(folder: &Path) {
    for (name, document) in documents(folder) {
        let payload: Value = serde_json::from_slice(document.split(|byte| *byte == b'\n').nth(1).unwrap()).unwrap();
        let layers = payload["image"]["layers"].as_array().unwrap().iter();
        for blob in layers.chain(payload.get("bundle").filter(|bundle| !bundle.is_null())) {
            let hex = blob["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let path = folder.join("imgbuild-cache-v1/blobs").join(&hex[..2]).join(hex);
            let length = fs::metadata(path).map_or(0, |found| found.len());
            assert_eq!(Some(length), blob["size"].as_u64(), "{name} names {hex}");
        }
    }
}

/// Builds the image `one` alone: its digest, what was said, and how often the server was asked.
fn one(project: &Project, machine: &Machine<'_>, words: &[&str], settings: &[(&str, &str)]) -> (String, String, usize) {
    let before = project.server.asked().len();
    let done = machine.run(&[&["build", "one", "--output", "oci:one"], words].concat(), settings);
    let said = done.stderr.clone();
    done.success();
    let layout = Layout::open(&machine.sandbox.work().join("one"));
    assert_eq!(layout.image("one")[0].faults(), [""; 0]);
    (layout.names()["one"].clone(), said, project.server.asked().len() - before)
}

/// Puts a file where no layer has been asked about, so that what is remembered of those below is not enough.
fn ask_anew(machine: &Machine<'_>) {
    let place = machine.sandbox.work().join("plan.json");
    let plan = fs::read_to_string(&place).unwrap();
    let other = plan.replace("\"/more\"", "\"/srv/deep/more\"");
    assert_ne!(plan, other);
    fs::write(place, other).unwrap();
}

#[test]
fn a_cache_is_told_of_an_image_with_its_layers_wherever_they_lie() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let registries = [registry(|_| {}), registry(|_| {})];
    let dir = |at: usize, name: &str| format!("dir:{}/{name}", folders[at].path().display());
    let repository = |at: usize, name: &str| format!("registry:{}/{name}", registries[at].host());
    for (full, empty) in [
        (dir(0, "one"), dir(1, "one")),
        (dir(0, "two"), repository(1, "two")),
        (repository(0, "three"), dir(1, "three")),
        (repository(0, "four"), repository(1, "four")),
    ] {
        let project = Project::new();
        let both = format!("{full} {empty}");
        project.machine().build(&["--cache-to", &full], &[]);
        let edited = project.machine();
        edited.sandbox.write("src/main", "changed");
        let right = project.machine_like(&edited).build(&[], &[]).0;
        let words = ["--cache-from", &full, "--cache-from", &empty, "--cache-to", &full, "--cache-to", &empty];
        let (found, said, asked) = edited.build(&words, &[(STORES, &both)]);
        assert_eq!((&found, asked), (&right, 0), "{both}: {said}");
        assert!(!said.contains("warning"), "{both}: {said}");
        if let Some(folder) = empty.strip_prefix("dir:") {
            assert!(documents(Path::new(folder)).len() == 2, "{both}");
            assert_told_truly(Path::new(folder));
        }
        registries.iter().for_each(|registry| registry.assert_whole());
        // Who has that one alone builds as if it had always been written to: the image, and what needs the fragments.
        let (from, trust) = (["--cache-from", &empty], [(STORES, empty.as_str())]);
        let again = project.machine_like(&edited);
        let (found, said, asked) = one(&project, &again, &from, &trust);
        assert_eq!((&found, asked), (&right["one"], 0), "{both}: {said}");
        assert!(!said.contains("warning"), "{both}: {said}");
        let [other, alone] = [project.machine_like(&edited), project.machine_like(&edited)];
        ask_anew(&other);
        ask_anew(&alone);
        let (found, said, asked) = one(&project, &other, &from, &trust);
        assert!(asked == 0 && !said.contains("warning"), "{both}: {said}");
        assert_eq!(found, one(&project, &alone, &[], &[]).0, "{both}: {said}");
    }
}

#[test]
fn a_cache_that_a_layer_rotted_before_is_not_told_of_the_image() {
    let project = Project::new();
    let machine = project.machine();
    let (registry, folder) = (registry(|_| {}), tempfile::tempdir().unwrap());
    let store = format!("dir:{}", folder.path().display());
    let tag = format!("{}/team/one:v1", registry.host());
    machine.build(&[], &[]);
    machine.run(&["push", "one", "--tag", &tag], &[]).success();
    // The registry has it, so the push does not read it.
    let place = machine.rot_lowest_layer();
    machine.sandbox.write("src/main", "changed");
    let words = ["push", "one", "--tag", &tag, "--cache-to", &store];
    let said = machine.run(&words, &[]);
    assert!(said.stderr.contains("was not told of an image"), "{}", said.stderr);
    said.success();
    assert_eq!(documents(folder.path()).len(), 0);
    // Once it is whole, the cache is told.
    fs::remove_file(&place).unwrap();
    machine.sandbox.write("src/main", "changed again");
    let said = machine.run(&words, &[]);
    assert!(!said.stderr.contains("warning"), "{}", said.stderr);
    said.success();
    assert_eq!(documents(folder.path()).len(), 2);
    assert_told_truly(folder.path());
}

#[test]
fn a_bundle_that_nothing_keeps_is_kept_by_who_writes_next() {
    let project = Project::new();
    let [full, broken] = [registry(|_| {}), registry(|_| {})];
    let [from, to] = [&full, &broken].map(|it| format!("registry:{}/cache", it.host()));
    one(&project, &project.machine(), &["--cache-to", &from], &[]);
    let is_parts = |tag: &&String| tag.starts_with("parts-");
    let parts = full.state().repos["cache"].tags.keys().find(is_parts).unwrap().clone();
    // Who wrote there ended when the bundle had arrived, and few of the fragments.
    let refusal = Act::Answer(Response::error(403, "DENIED", "no"));
    broken.fail("PUT /v2/cache/manifests/parts-", 0, usize::MAX, refusal);
    let said = one(&project, &project.machine(), &["--cache-to", &to], &[]).1;
    assert!(said.contains("was not written"), "{said}");
    broken.heal();
    let bundle = parts.replace("parts-", "sha256:");
    {
        let mut state = broken.state();
        let repo = state.repos.get_mut("cache").unwrap();
        assert!(repo.tags.is_empty() && repo.blobs.len() > 1 && repo.blobs.contains(&bundle));
        repo.blobs.retain(|blob| *blob == bundle);
    }
    // An edit stands on what the bundle tells of, and makes none itself.
    let edited = project.machine();
    edited.sandbox.write("src/main", "changed");
    let words = ["--cache-from", &from, "--cache-to", &to];
    let (found, said, asked) = one(&project, &edited, &words, &[(STORES, &from)]);
    assert!(asked == 0 && !said.contains("warning"), "{said}");
    assert!(broken.state().repos["cache"].tags.contains_key(&parts), "nothing keeps the bundle");
    broken.assert_whole();
    let (from, trust) = (["--cache-from", &to], [(STORES, to.as_str())]);
    let (again, said, asked) = one(&project, &project.machine_like(&edited), &from, &trust);
    assert_eq!((again, asked), (found, 0), "{said}");
    // The fragments are there, too.
    let other = project.machine_like(&edited);
    ask_anew(&other);
    let (_, said, asked) = one(&project, &other, &from, &trust);
    assert!(asked == 0 && !said.contains("warning"), "{said}");
}

#[test]
fn a_document_of_another_version_counts_as_none() {
    let project = Project::new();
    let first = project.machine();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", folder.path().display());
    first.build(&["--cache-to", &store], &[]);
    let names = folder.path().join("imgbuild-cache-v1/names");
    let last = |document: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        for (name, bytes) in documents(folder.path()).into_iter().filter(|(name, _)| name.starts_with("latest-")) {
            fs::write(names.join(name), document(bytes)).unwrap();
        }
    };
    last(&|bytes| {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        assert!(bytes.starts_with(b"imgbuild-cache "));
        [b"imgbuild-cache 999", &bytes[end..]].concat()
    });
    // `two` is found and stays where it is until it is delivered; of `one` only the last build is known.
    let edited = project.machine();
    edited.sandbox.write("src/main", "changed");
    let (found, said, asked) = edited.build(&["--cache-from", &store], &[(STORES, &store)]);
    assert!(asked > 0 && !said.contains("warning") && !said.contains("made here"), "{said}");
    let alone = project.machine_like(&edited);
    assert_eq!(found, alone.build(&[], &[]).0);
    // What makes no sense gives the cache up; what it has told before is made here, and nothing here was damaged.
    last(&|_| b"something else\n".to_vec());
    let edited = project.machine_like(&edited);
    let (again, said, _) = edited.build(&["--cache-from", &store], &[(STORES, &store)]);
    assert_eq!(found, again);
    assert!(said.contains("is passed over") && said.contains("are made here"), "{said}");
    assert!(!said.contains("damaged or gone"), "{said}");
}

#[test]
fn projects_whose_images_have_one_name_do_not_hide_each_others_last_builds() {
    let project = Project::new();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", folder.path().display());
    project.machine().build(&["--cache-to", &store], &[]);
    let other = project.machine();
    let place = other.sandbox.work().join("plan.json");
    let plan = fs::read_to_string(&place).unwrap();
    let mut plan: Value = serde_json::from_str(&plan.replace("\"/opt", "\"/usr")).unwrap();
    plan["catalogue"] = "other".into();
    fs::write(place, plan.to_string()).unwrap();
    other.build(&["--cache-to", &store], &[]);
    let edited = project.machine();
    edited.sandbox.write("src/main", "changed");
    let (_, said, asked) = edited.build(&["--cache-from", &store], &[(STORES, &store)]);
    assert!(asked == 0 && !said.contains("warning"), "{said}");
}

#[test]
fn a_folder_is_trusted_where_it_is_named_and_nowhere_else() {
    let project = Project::new();
    let first = project.machine();
    let machine = project.machine();
    let work = machine.sandbox.work();
    fs::create_dir(work.join("sub")).unwrap();
    for folder in ["store", "sub/store"] {
        first.build(&["--cache-to", &format!("dir:{}", work.join(folder).display())], &[]);
        let _ = fs::remove_dir_all(first.sandbox.cache());
    }
    machine.sandbox.write("imgbuild.toml", "[cache]\ntrusted-stores = ['dir:store']\n");
    std::os::unix::fs::symlink(work.join("store"), work.join("sub/link")).unwrap();
    let from = |store: &str, settings: &[(&str, &str)]| {
        let _ = fs::remove_dir_all(machine.sandbox.cache());
        let words = ["--config", "../imgbuild.toml", "--catalogue", "../plan.json", "--lock-file", "../images.lock"];
        let mut command = machine.sandbox.command(words);
        command.args(["--context", "..", "build", "--output", "oci:out", "--cache-from", store]);
        command.current_dir(work.join("sub")).envs(settings.iter().copied()).env("NO_PROXY", "127.0.0.1");
        let done = outcome(&mut command);
        let is_believed = !done.stderr.contains("cache.trusted-stores");
        done.success();
        is_believed
    };
    // The file's paths are relative to it, a variable's to where the command runs.
    assert!(from("dir:../store", &[]) && from("dir:./link", &[]));
    assert!(!from("dir:store", &[]));
    assert!(from("dir:store", &[(STORES, "dir:store")]));
    assert!(!from("dir:../store", &[(STORES, "dir:store")]));
}

#[test]
fn what_fails_here_is_no_fault_of_a_registry_that_is_written_to() {
    let project = Project::new();
    let registry = registry(|_| {});
    let store = format!("registry:{}/cache", registry.host());
    let machine = project.machine();
    let image = |text| Stage::scratch().layer(inline(text, path!("/text"))).layer(files("src", path!("/app")));
    let catalogue = Catalogue::new("both").with("one", image("1").image()).with("two", image("2").image());
    machine.sandbox.write("plan.json", catalogue.plan().to_json());
    let told = || registry.state().repos["cache"].tags.keys().filter(|tag| tag.starts_with("image-")).count();
    machine.build(&["--cache-to", &store], &[]);
    assert_eq!(told(), 2);
    // What is remembered of that registry cannot be written: the next attempt finds its place free.
    let is_pushed = |file: &PathBuf| fs::read(file).unwrap().windows(16).any(|text| text == b"registry-pushed ");
    let remembered = bucket(machine.sandbox.cache(), "ledger-v1").into_iter().find(is_pushed).unwrap();
    fs::remove_file(&remembered).unwrap();
    fs::create_dir(&remembered).unwrap();
    machine.sandbox.write("src/main", "changed");
    let said = machine.build(&["--cache-to", &store], &[]).1;
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("warning")).collect();
    let place = remembered.display().to_string();
    let texts = ["was not told of an image, as this machine's own failed", &store, &place];
    assert!(warnings.len() == 1 && texts.iter().all(|text| warnings[0].contains(text)), "{said}");
    assert_eq!(told(), 3, "the other image");
    registry.assert_whole();
}

#[test]
fn a_registry_that_is_read_and_written_keeps_what_lies_only_there() {
    let project = Project::new();
    let registry = registry(|_| {});
    let store = format!("registry:{}/cache", registry.host());
    let machine = |to: ImagePath| {
        let machine = project.machine();
        let image = |text| Stage::scratch().layer(inline(text, path!("/opt/text"))).layer(files("src", to.clone()));
        let catalogue = Catalogue::new("both").with("one", image("1").image()).with("two", image("2").image());
        machine.sandbox.write("plan.json", catalogue.plan().to_json());
        machine
    };
    machine(path!("/app")).build(&["--cache-to", &store], &[]);
    // Files that go where nothing was asked about: the fragments below are named anew, and none of them is here.
    let edited = machine(path!("/srv/deep/app"));
    edited.sandbox.write("src/main", "changed");
    let (found, said, _) = edited.build(&["--cache-from", &store, "--cache-to", &store], &[(STORES, &store)]);
    assert!(!said.contains("warning"), "{said}");
    registry.assert_whole();
    // Both images are found there.
    let again = machine(path!("/srv/deep/app"));
    again.sandbox.write("src/main", "changed");
    let (same, said, _) = again.build(&["--cache-from", &store], &[(STORES, &store)]);
    assert!(same == found && !said.contains("layer "), "{said}");
}
