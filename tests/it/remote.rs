//! Caches elsewhere: an empty machine builds what another has built, and no store makes it deliver something else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layers::lock::Lock;
use layers::source::{Unpack, fetch, files};
use layers::{Catalogue, Digest, Stage, path};

use crate::registry::registry;
use crate::server::{Answer, Server};
use crate::support::layout::Layout;
use crate::support::random::Random;
use crate::support::registry::{Act, Response};
use crate::support::run::{Outcome, Sandbox, outcome};

/// A project that several machines have: an archive from a server that counts, and files of the context.
pub(crate) struct Project {
    pub(crate) server: Server,
    plan: String,
}

impl Project {
    pub(crate) fn new() -> Project {
        let archive = tar(&[("data", &vec![7; 300_000]), ("other", b"small")]);
        let digest = Digest::of(&archive);
        let server = Server::start(move |_| Answer::ok(archive.clone()));
        let base =
            Stage::scratch().layer(fetch(server.url("/a.tar").as_str(), digest, path!("/opt")).unpack(Unpack::Tar));
        let one = base.layer(files("src", path!("/app"))).layer(files("more", path!("/more")));
        let two = Stage::scratch().layer(base.take(path!("/opt/data")).to(path!("/data")));
        let catalogue = Catalogue::new("elsewhere").with("one", one.image()).with("two", two.image());
        Project { server, plan: catalogue.plan().to_json() }
    }

    /// A machine with an empty cache and the files of another.
    pub(crate) fn machine_like(&self, other: &Machine<'_>) -> Machine<'_> {
        let machine = self.machine();
        let from = other.sandbox.work();
        for folder in ["src", "more"] {
            for file in files_below(&from.join(folder)) {
                machine.sandbox.write(file.strip_prefix(&from).unwrap().to_str().unwrap(), fs::read(&file).unwrap());
            }
        }
        machine
    }

    /// A machine with an empty cache.
    pub(crate) fn machine(&self) -> Machine<'_> {
        let sandbox = Sandbox::new();
        sandbox.write("plan.json", &self.plan);
        sandbox.write("images.lock", Lock::default().to_text());
        sandbox.write("src/main", "one");
        sandbox.write("more/text", vec![b'm'; 50_000]);
        Machine { project: self, sandbox }
    }
}

pub(crate) struct Machine<'a> {
    project: &'a Project,
    pub(crate) sandbox: Sandbox,
}

impl Machine<'_> {
    /// Changes a byte of the lowest layer of the image `one` in the cache; where it lies.
    pub(crate) fn rot_lowest_layer(&self) -> PathBuf {
        let layers = &Layout::open(&self.sandbox.work().join("dist")).image("one")[0].layers;
        let lowest = &layers[0].digest[7..];
        let place = self.sandbox.cache().join("blobs-v1").join(&lowest[..2]).join(lowest);
        let mut bytes = fs::read(&place).unwrap();
        bytes[100] ^= 1;
        fs::remove_file(&place).unwrap();
        fs::write(&place, bytes).unwrap();
        place
    }

    pub(crate) fn run(&self, words: &[&str], settings: &[(&str, &str)]) -> Outcome {
        let mut command = self.sandbox.command(["--catalogue", "plan.json", "--progress", "plain"]);
        command.args(words).env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
        command.envs(settings.iter().copied());
        outcome(&mut command)
    }

    /// Builds into a layout, which must be right: the digests by name, what was said, and how often the server was asked.
    pub(crate) fn build(&self, words: &[&str], settings: &[(&str, &str)]) -> (BTreeMap<String, String>, String, usize) {
        let before = self.project.server.asked().len();
        let _ = fs::remove_dir_all(self.sandbox.work().join("dist"));
        let done = self.run(&[&["build"], words].concat(), settings);
        let said = done.stderr.clone();
        done.success();
        let layout = Layout::open(&self.sandbox.work().join("dist"));
        for name in ["one", "two"] {
            for image in layout.image(name) {
                assert_eq!(image.faults(), [""; 0], "{name}");
            }
        }
        (layout.names(), said, self.project.server.asked().len() - before)
    }
}

/// A tar archive of regular files.
fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The files below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

pub(crate) const KEYS: &str = "IMGBUILD_CACHE_TRUSTED_KEYS";
pub(crate) const STORES: &str = "IMGBUILD_CACHE_TRUSTED_STORES";
pub(crate) const SIGNING: &str = "IMGBUILD_CACHE_SIGNING_KEY";

/// A key on disk, and what others trust.
pub(crate) fn key(machine: &Machine<'_>, name: &str) -> (String, String) {
    let public = machine.run(&["cache", "key", name], &[]).success().trim().to_owned();
    (machine.sandbox.work().join(name).display().to_string(), public)
}

#[test]
fn an_empty_machine_takes_whole_images_from_a_folder_and_asks_no_mirror() {
    let project = Project::new();
    let (first, second) = (project.machine(), project.machine());
    let shared = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", shared.path().display());
    let (secret, public) = key(&first, "key");
    let (right, said, asked) = first.build(&["--cache-to", &store], &[(SIGNING, &secret)]);
    assert!(asked > 0 && !said.contains("warning"), "{said}");
    let (found, said, asked) = second.build(&["--cache-from", &store], &[(KEYS, &public)]);
    assert_eq!((found, asked), (right, 0), "{said}");
    assert!(!said.contains("warning"), "{said}");
    // And from then on it needs nobody.
    assert_eq!(second.build(&["--offline"], &[]).2, 0);
}

#[test]
fn a_change_makes_only_its_own_layer() {
    let project = Project::new();
    let (first, second, third) = (project.machine(), project.machine(), project.machine());
    let shared = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", shared.path().display());
    first.build(&["--cache-to", &store], &[]);
    for machine in [&second, &third] {
        machine.sandbox.write("src/main", "changed");
    }
    let (found, said, asked) = second.build(&["--cache-from", &store], &[(STORES, &store)]);
    assert_eq!(asked, 0, "{said}");
    assert_eq!(found, third.build(&[], &[]).0);
}

#[test]
fn what_is_signed_by_nobody_counts_only_where_the_store_is_trusted_by_name() {
    let project = Project::new();
    let first = project.machine();
    let shared = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", shared.path().display());
    let (secret, _) = key(&first, "key");
    let (_, other) = key(&first, "other");
    let right = first.build(&["--cache-to", &store], &[(SIGNING, &secret)]).0;
    for (settings, believed) in [
        (vec![], false),
        (vec![(KEYS, other.as_str())], false),
        (vec![(STORES, "dir:/elsewhere")], false),
        (vec![(STORES, store.as_str())], true),
    ] {
        let machine = project.machine();
        let (found, said, asked) = machine.build(&["--cache-from", &store], &settings);
        assert_eq!(found, right);
        assert_eq!(asked == 0, believed, "{settings:?}: {said}");
        assert_eq!(said.contains("trusted-stores"), !believed, "{settings:?}: {said}");
    }
}

#[test]
fn no_damage_of_a_store_fails_a_build_or_changes_an_image() {
    let project = Project::new();
    let first = project.machine();
    let shared = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", shared.path().display());
    let right = first.build(&["--cache-to", &store], &[]).0;
    let files = files_below(shared.path());
    assert!(files.len() > 8, "{files:?}");
    type Damage = fn(&[u8]) -> Option<Vec<u8>>;
    let damages: [Damage; 4] = [
        |bytes| {
            let mut bad = bytes.to_vec();
            let at = bad.len() / 2;
            bad[at] ^= 1;
            Some(bad)
        },
        |bytes| Some(bytes[..bytes.len() / 2].to_vec()),
        |bytes| Some([bytes, b"more"].concat()),
        |_| None,
    ];
    for (at, file) in files.iter().enumerate() {
        let bytes = fs::read(file).unwrap();
        match damages[at % damages.len()](&bytes) {
            Some(bad) => fs::write(file, bad).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
        let machine = project.machine();
        assert_eq!(machine.build(&["--cache-from", &store], &[(STORES, &store)]).0, right, "{}", file.display());
        fs::write(file, bytes).unwrap();
    }
    // All blobs of other bytes at once.
    for file in files.iter().filter(|file| file.to_string_lossy().contains("/blobs/")) {
        fs::write(file, b"other bytes").unwrap();
    }
    let machine = project.machine();
    let (found, said, asked) = machine.build(&["--cache-from", &store], &[(STORES, &store)]);
    assert_eq!(found, right);
    assert!(asked > 0 && said.contains("passed over"), "{said}");
    // Who reads and writes mends all of it, also what has its length; by a push as well.
    let push = format!("{}/{{image}}:v1", registry(|_| {}).host());
    for words in [&["build"][..], &["push", "--tag", &push]] {
        for file in files.iter().filter(|file| file.to_string_lossy().contains("/blobs/")) {
            let mut bad = fs::read(file).unwrap();
            bad.iter_mut().for_each(|byte| *byte ^= 1);
            fs::write(file, bad).unwrap();
        }
        let machine = project.machine();
        let both = ["--cache-from", &store, "--cache-to", &store];
        machine.run(&[words, &both[..]].concat(), &[(STORES, &store)]).success();
        let machine = project.machine();
        let (found, said, asked) = machine.build(&["--cache-from", &store], &[(STORES, &store)]);
        assert_eq!((found, asked), (right.clone(), 0), "{words:?}: {said}");
    }
}

#[test]
fn a_registry_serves_as_well_and_one_request_finds_an_image() {
    let project = Project::new();
    let (first, second, third) = (project.machine(), project.machine(), project.machine());
    let registry = registry(|_| {});
    let store = format!("registry:{}/team/cache", registry.host());
    let trust = [(STORES, store.as_str())];
    let (right, said, _) = first.build(&["--cache-to", &store], &[]);
    assert!(!said.contains("warning"), "{said}");
    registry.assert_whole();
    registry.clear_log();
    let (found, said, asked) = second.build(&["--cache-from", &store], &trust);
    assert_eq!((found, asked), (right, 0), "{said}");
    assert_eq!(registry.requests("GET /v2/team/cache/manifests/").len(), 2, "one an image");
    assert_eq!(registry.requests("/manifests/latest-").len(), 0);

    // Images that a registry has already are pushed without a byte of a layer.
    let tag = format!("{}/team/{{image}}:v1", registry.host());
    second.run(&["push", "--tag", &tag], &[]).success();
    registry.clear_log();
    third.run(&["push", "--tag", &tag, "--cache-from", &store], &trust).success();
    assert_eq!(registry.requests("GET /v2/team/cache/blobs/").len(), 0);
    assert_eq!(registry.requests("POST ").len(), 0);
    // To a registry that has none of it they are copied.
    let fourth = project.machine();
    let other = crate::registry::registry(|_| {});
    let tag = format!("{}/team/{{image}}:v1", other.host());
    fourth.run(&["push", "--tag", &tag, "--cache-from", &store], &trust).success();
    other.assert_whole();
    assert!(other.tag("team/one", "v1").is_some());
}

#[test]
fn an_edit_on_an_empty_machine_moves_records_and_its_own_layer_in_eight_round_trips() {
    let project = Project::new();
    let (first, second, third) = (project.machine(), project.machine(), project.machine());
    let (registry, other) = (registry(|_| {}), crate::registry::registry(|_| {}));
    let store = format!("registry:{}/team/cache", registry.host());
    let trust = [(STORES, store.as_str())];
    let push = |to: &crate::support::registry::Registry, tag: &str| {
        ["push".into(), "--tag".into(), format!("{}/team/{{image}}:{tag}", to.host())]
    };
    let words = push(&registry, "v1");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    first.run(&[&words[..], &["--cache-to", &store]].concat(), &[]).success();
    for machine in [&second, &third] {
        machine.sandbox.write("src/main", "changed");
        machine.sandbox.write("src/new/file", "new");
    }
    let asked = project.server.asked().len();
    registry.clear_log();
    let words = push(&registry, "v2");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let caches = ["--cache-from", &store, "--cache-to", &store];
    second.run(&[&words[..], &caches[..]].concat(), &trust).success();
    assert_eq!(project.server.asked().len(), asked, "no mirror");
    assert_eq!(
        registry.requests("GET /v2/team/cache/blobs/").len(),
        0,
        "neither layers nor fragments nor their indexes"
    );
    assert_eq!(registry.requests("GET /v2/team/cache/manifests/").len(), 3, "both images, and the last build of one");
    registry.assert_whole();
    // Without what goes to the cache in the background, which has requests of its own.
    let fourth = project.machine();
    fourth.sandbox.write("src/main", "changed once more");
    registry.clear_log();
    registry.state().kind.latency = std::time::Duration::from_millis(100);
    let words = push(&registry, "v3");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    fourth.run(&[&words[..], &caches[..2]].concat(), &trust).success();
    registry.state().kind.latency = std::time::Duration::ZERO;
    let log: Vec<String> = registry.state().log.iter().map(|it| it.line.clone()).collect();
    assert!(registry.round_trips() <= 8, "{} round trips: {log:#?}", registry.round_trips());
    let uploads = registry.requests("PUT /v2/team/one/blobs/uploads/");
    assert_eq!(uploads.len(), 2, "the layer and the configuration: {uploads:?}");
    // The registry is asked for the image that the cache says was pushed last, not for each of its layers.
    assert_eq!(registry.requests("HEAD /v2/team/one/blobs/").len(), 0, "{log:#?}");
    assert_eq!(registry.requests("HEAD /v2/team/one/manifests/").len(), 1, "{log:#?}");
    // What was published from remembered parts serves the next one, and is what a build from nothing comes to.
    let words = push(&other, "v2");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    third.run(&words, &[]).success();
    assert_eq!(registry.tag("team/one", "v2"), other.tag("team/one", "v2"));
    let fifth = project.machine();
    fifth.sandbox.write("src/main", "changed");
    fifth.sandbox.write("src/new/file", "new");
    registry.clear_log();
    let (names, said, _) = fifth.build(&["--cache-from", &store], &trust);
    assert_eq!(registry.requests("/manifests/latest-").len(), 0, "the image itself is known by now: {said}");
    assert_eq!(Some(&names["one"]), other.tag("team/one", "v2").as_ref());
}

#[test]
fn what_was_delivered_for_several_platforms_is_one_question() {
    let project = Project::new();
    let first = project.machine();
    let registry = registry(|_| {});
    let store = format!("registry:{}/team/cache", registry.host());
    let trust = [(STORES, store.as_str())];
    let push = |machine: &Machine<'_>, place: &str, more: &[&str]| {
        let tag = format!("{}/{place}", registry.host());
        machine.run(&[&["push", "--tag", &tag][..], more].concat(), &trust).success();
        registry.assert_whole();
    };
    push(&first, "team/{image}:v1", &["--platform", "amd64,arm64", "--cache-to", &store]);
    // What is pushed, where to, and whether the layers of `one` are asked for there.
    let both = ["--platform", "amd64,arm64", "--cache-from", &store];
    let one = ["--platform", "amd64", "--cache-from", &store];
    for (at, (words, team, of_blobs)) in
        [(&both, "team", false), (&one, "team", false), (&both, "others", true)].into_iter().enumerate()
    {
        let machine = project.machine();
        machine.sandbox.write("src/main", format!("changed {at}"));
        registry.clear_log();
        push(&machine, &format!("{team}/{{image}}:v2-{at}"), words);
        let asked = registry.requests(&format!("HEAD /v2/{team}/one/blobs/"));
        assert_eq!(!asked.is_empty(), of_blobs, "{words:?}: {asked:?}");
        // Without the cache it comes to the same.
        let alone = project.machine();
        alone.sandbox.write("src/main", format!("changed {at}"));
        push(&alone, &format!("{team}/{{image}}:alone-{at}"), &words[..2]);
        let tag = |tag: &str| registry.tag(&format!("{team}/one"), &format!("{tag}-{at}"));
        assert!(tag("v2").is_some() && tag("v2") == tag("alone"), "{:?} {:?}", tag("v2"), tag("alone"));
    }
    // Another label, and nothing else: two configurations are sent.
    registry.clear_log();
    push(&project.machine(), "team/{image}:v3", &[&both[..], &["--label", "revision=3"]].concat());
    assert_eq!(registry.requests("HEAD /v2/team/one/blobs/").len(), 0);
    assert_eq!(registry.requests("PUT /v2/team/one/blobs/uploads/").len(), 2);
}

#[test]
fn images_that_share_a_repository_are_not_taken_for_each_other() {
    let project = Project::new();
    let registry = registry(|_| {});
    let shared = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", shared.path().display());
    let push = |machine: &Machine<'_>, tag: &str, cache: [&str; 2]| {
        let tag = format!("{}/team/all:{{image}}-{tag}", registry.host());
        machine.run(&[&["push", "--tag", &tag][..], &cache].concat(), &[(STORES, &store)]).success();
        registry.assert_whole();
    };
    push(&project.machine(), "v1", ["--cache-to", &store]);
    let machine = project.machine();
    machine.sandbox.write("src/main", "changed");
    registry.clear_log();
    push(&machine, "v2", ["--cache-from", &store]);
    let sent = registry.requests("PUT /v2/team/all/blobs/uploads/");
    assert_eq!(sent.len(), 2, "the layer and the configuration of the one that changed: {sent:?}");
}

#[test]
fn what_was_built_is_kept_elsewhere_though_the_push_fails() {
    let project = Project::new();
    let registry = registry(|_| {});
    let store = format!("registry:{}/team/cache", registry.host());
    let refused = Response::error(400, "TAG_INVALID", "this tag is never written anew");
    registry.fail("PUT /v2/team/one/manifests/v1", 0, usize::MAX, Act::Answer(refused));
    let tag = format!("{}/team/{{image}}:v1", registry.host());
    let words = ["push", "--tag", &tag, "--cache-to", &store];
    project.machine().run(&words, &[]).failure(1, &["this tag is never written anew"]);
    let (_, said, asked) = project.machine().build(&["--cache-from", &store], &[(STORES, &store)]);
    assert_eq!(asked, 0, "{said}");
}

#[test]
fn an_edit_on_an_empty_machine_moves_no_more_bytes_than_the_change_and_64_kib() {
    let project = Project::new();
    let (first, second) = (project.machine(), project.machine());
    let registry = registry(|_| {});
    let store = format!("registry:{}/team/cache", registry.host());
    let trust = [(STORES, store.as_str())];
    for machine in [&first, &second] {
        machine.sandbox.write("more/noise", Random::of(1).bytes(2_000_000));
        machine.sandbox.write("src/noise", Random::of(2).bytes(300_000));
    }
    let push = |machine: &Machine<'_>, tag: &str, caches: &[&str]| {
        let tag = format!("{}/team/{{image}}:{tag}", registry.host());
        machine.run(&[&["push", "--tag", &tag][..], caches].concat(), &trust).success();
    };
    push(&first, "v1", &["--cache-to", &store]);
    // Bytes of bodies to and from the registry, and of the layers of `one` that it did not have.
    let moved = |before: &BTreeSet<String>| {
        let state = registry.state();
        let sums = state.log.iter().fold((0, 0), |(to, from), it| (to + it.received, from + it.sent));
        let new = |(digest, bytes): (&String, &Arc<Vec<u8>>)| (!before.contains(digest)).then_some(bytes.len() as u64);
        (sums.0, sums.1, state.blobs.iter().filter_map(new).max().unwrap_or(0))
    };
    let blobs = || registry.state().blobs.keys().cloned().collect::<BTreeSet<String>>();
    let before = blobs();
    registry.clear_log();
    // Unchanged: documents alone.
    push(&project.machine_like(&second), "v2", &["--cache-from", &store]);
    let (to, from, new) = moved(&before);
    println!("unchanged: {to} bytes to the registry, {from} from it");
    assert!(new == 0 && to <= 64 << 10 && from <= 64 << 10, "{to} {from} {new}");
    // One file of a layer of 300 kB.
    second.sandbox.write("src/main", "changed");
    let third = project.machine_like(&second);
    registry.clear_log();
    push(&second, "v3", &["--cache-from", &store]);
    let (to, from, layer) = moved(&before);
    println!("changed: {to} bytes to the registry, {from} from it, layer of {layer}");
    assert!((300_000..320_000).contains(&layer), "{layer}");
    assert!(to <= layer + (64 << 10) && from <= 64 << 10, "{to} {from} {layer}");
    // Where the cache is written as well, the layer goes there, too: by a mount, as the push comes first.
    registry.clear_log();
    third.sandbox.write("src/main", "changed again");
    let before = blobs();
    push(&third, "v4", &["--cache-from", &store, "--cache-to", &store]);
    let (to, from, layer) = moved(&before);
    println!("and kept: {to} bytes to the registry, {from} from it, layer of {layer}");
    assert!(to <= layer + (64 << 10) && from <= 64 << 10, "{to} {from} {layer}");
}

#[test]
fn slow_a_store_that_is_down_is_a_warning() {
    let project = Project::new();
    let machine = project.machine();
    // Nobody listens on a port that was given back.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = format!("registry:{gone}/team/cache");
    let folder = machine.sandbox.write("file", "no folder");
    let below = format!("dir:{}", folder.join("below").display());
    let words = ["--cache-from", &store, "--cache-to", &store, "--cache-to", &below, "--cache-from", &below];
    let (_, said, asked) = machine.build(&words, &[(STORES, &below)]);
    assert!(asked > 0);
    assert!(said.matches("warning").count() >= 3, "{said}");
    let wrong = machine.run(&["build", "--cache-from", "nowhere"], &[]);
    assert_eq!(wrong.status, 2, "{}", wrong.stderr);
}
