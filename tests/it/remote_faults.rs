//! Caches elsewhere that fail: each kind of request in turn, read from and written to. No fault ends a build or changes an image.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::remote::{Project, STORES, files_below};
use crate::support::registry::{Act, Kind, Mounting, Registry, Response, s3_error};

/// A cache on a server of its own.
pub(crate) struct Elsewhere {
    pub(crate) server: Registry,
    pub(crate) store: String,
    settings: Vec<(&'static str, String)>,
}

impl Elsewhere {
    pub(crate) fn repository() -> Elsewhere {
        let server = Registry::start(Kind::default());
        let store = format!("registry:{}/team/cache", server.host());
        Elsewhere { server, store, settings: Vec::new() }
    }

    pub(crate) fn bucket() -> Elsewhere {
        let server = Registry::start(Kind::default());
        let settings = vec![
            ("AWS_ENDPOINT_URL_S3", format!("http://{}", server.host())),
            ("AWS_ACCESS_KEY_ID", "test-key".into()),
            ("AWS_SECRET_ACCESS_KEY", "canary-of-the-secret".into()),
            ("AWS_SESSION_TOKEN", "canary-of-the-session".into()),
        ];
        Elsewhere { server, store: "s3://bucket/team".into(), settings }
    }

    /// Variables of who uses it: what it takes to get there, and these.
    pub(crate) fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.settings.iter().map(|(name, value)| (*name, value.as_str()));
        own.chain(more.iter().copied()).collect()
    }

    /// Believes it by name.
    pub(crate) fn trusting(&self) -> Vec<(&str, &str)> {
        self.settings(&[(STORES, &self.store)])
    }

    /// The kinds of requests that came.
    fn kinds(&self) -> BTreeSet<String> {
        self.server.state().log.iter().map(|it| kind(&it.line)).collect()
    }
}

/// What a request is for: its method, and what it names.
fn kind(line: &str) -> String {
    let (method, path) = line.split_once(' ').unwrap();
    let marks = ["/image-", "/latest-", "/layers-", "/parts-", "/manifests/", "/uploads/", "/blobs/"];
    let mark = marks.iter().find(|mark| path.contains(**mark)).unwrap_or_else(|| panic!("{line} is new"));
    let of = if path.ends_with(mark) { "new " } else { "" };
    format!("{method} {of}{}", mark.trim_matches(&['/', '-'][..]))
}

/// What is to come of a fault.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// A warning with one of these texts.
    Says(&'static [&'static str]),
    /// A warning, or everything is as it should be.
    SaysOrServes,
    /// Nobody can notice it.
    Any,
}

use Then::{Any, Says, SaysOrServes};

type Fault = (&'static str, Act, Then);

/// Silence ends by the patience that there is for a cache, not by that of a connection; where others were answered meanwhile, by the
/// last attempt.
const GIVEN_UP: Then = Says(&["`cache.patience`", "nothing came for too long"]);
const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

fn refusal(is_bucket: bool, status: u16, code: &str) -> Act {
    Act::Answer(if is_bucket { s3_error(status, code) } else { Response::error(status, code, "no") })
}

/// What can be wrong with any answer.
fn answers(is_bucket: bool) -> Vec<Fault> {
    let ended = match is_bucket {
        true => {
            ("a session that ended", refusal(true, 400, "ExpiredToken"), Says(&["ExpiredToken", "AWS_SESSION_TOKEN"]))
        }
        false => {
            let response = Response::error(401, "UNAUTHORIZED", "the token ended");
            let act = Act::Answer(response.with("WWW-Authenticate", "Basic realm=\"r\""));
            ("a token that ended", act, Says(&["answered 401"]))
        }
    };
    let Act::Answer(busy) = refusal(is_bucket, 503, "SlowDown") else { unreachable!() };
    vec![
        ("an hour to wait", Act::Answer(busy.with("Retry-After", "3600")), Says(&["answered 503", "asks to wait"])),
        ("403", refusal(is_bucket, 403, "AccessDenied"), Says(&["answered 403"])),
        ("500", refusal(is_bucket, 500, "InternalError"), Says(&["answered 500"])),
        ended,
        ("silence", Act::Stall(HOUR), GIVEN_UP),
        ("a byte each second", Act::Trickle(SECOND), GIVEN_UP),
    ]
}

/// What can be wrong with what is read.
fn reads(is_bucket: bool, kind: &str) -> Vec<Fault> {
    // That there is no document is no news.
    let missing = if kind == "GET blobs" { Says(&["answered 404", "has no blob"]) } else { Any };
    let other = match (is_bucket, kind) {
        (true, "GET image" | "GET latest") => Says(&["is none of imgbuild's"]),
        _ => Says(&["hash to something else", "its digest is"]),
    };
    let length = |length: &str| Act::Headers(vec![("Content-Length", length.into())]);
    // A blob goes on where it broke, for as long as there is patience.
    let broken =
        Says(&["broke", "ended after", "something else", "is cut", "is none of imgbuild's", "`cache.patience`"]);
    // A blob is whole before the connection is given up, and a document is not.
    let endless = if kind == "GET blobs" { SaysOrServes } else { GIVEN_UP };
    let mut faults = answers(is_bucket);
    faults.extend([
        ("404", refusal(is_bucket, 404, "NoSuchKey"), missing),
        ("a slow body", Act::Drip(SECOND), GIVEN_UP),
        ("a body that breaks off", Act::Cut(7), broken),
        ("a length that is too small", length("7"), broken),
        ("a length that is too large", length("9999999"), endless),
        ("other bytes", Act::Garble, other),
    ]);
    faults
}

/// What can be wrong with what is written, or asked before.
fn writes(is_bucket: bool, kind: &str) -> Vec<Fault> {
    let mut faults = answers(is_bucket);
    let done = Response::new(if is_bucket { 200 } else { 201 });
    // Blobs that are not there are missed by the manifest that names them; a bucket has none.
    let lies = if is_bucket || kind.starts_with("PUT") && kind != "PUT uploads" { Any } else { SaysOrServes };
    // What is not there may be sent; where one cannot write, nobody was told so.
    let missing = if kind.starts_with("HEAD") { SaysOrServes } else { Says(&["answered 404"]) };
    faults.extend([
        ("404", refusal(is_bucket, 404, "NoSuchBucket"), missing),
        ("a request that breaks off", Act::Reset(10), Says(&["broke", "failed", "connection", "`cache.patience`"])),
        ("an answer that is lost", Act::Swallow, SaysOrServes),
        ("a length that is too large", Act::Headers(vec![("Content-Length", "9".into())]), SaysOrServes),
        ("what is not kept", Act::Answer(done.clone()), lies),
    ]);
    if !is_bucket {
        let digest = format!("sha256:{}", "0".repeat(64));
        faults.push(("another digest", Act::DoneBut(done.with("Docker-Content-Digest", digest)), SaysOrServes));
    }
    faults
}

/// A warning names the store and says what happened.
#[track_caller]
fn assert_said(said: &str, store: &str, texts: &[&str], what: &str) {
    let warned = said.lines().any(|line| line.contains("warning") && line.contains(store));
    assert!(warned && texts.iter().any(|text| said.contains(text)), "{what}: none of {texts:?} in\n{said}");
    assert!(!said.contains("canary"), "{what}: {said}");
}

/// Several machines at once fail at one kind of request each.
fn each(kinds: &BTreeSet<String>, work: impl Fn(&str) + Sync) {
    std::thread::scope(|scope| {
        for kind in kinds {
            scope.spawn(|| work(kind));
        }
    });
}

pub(crate) const PATIENCE: (&str, &str) = ("IMGBUILD_CACHE_PATIENCE", "2s");

fn fails_when_read(new: fn() -> Elsewhere, is_bucket: bool) {
    let start = || {
        let (project, elsewhere) = (Project::new(), new());
        let said = project.machine().build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[])).1;
        assert!(!said.contains("warning"), "{said}");
        elsewhere.server.clear_log();
        (project, elsewhere)
    };
    let read = |project: &Project, elsewhere: &Elsewhere, more: &[(&str, &str)]| {
        let machine = project.machine();
        machine.sandbox.write("src/main", "changed");
        machine.build(&["--cache-from", &elsewhere.store], &[&elsewhere.trusting()[..], more].concat())
    };
    let (project, elsewhere) = start();
    let (_, said, asked) = read(&project, &elsewhere, &[]);
    assert!(asked == 0 && !said.contains("warning"), "{said}");
    let kinds = elsewhere.kinds();
    assert_eq!(Vec::from_iter(&kinds), ["GET blobs", "GET image", "GET latest"]);
    each(&kinds, |wanted| {
        let (project, elsewhere) = start();
        let plain = project.machine();
        plain.sandbox.write("src/main", "changed");
        let right = plain.build(&[], &[]).0;
        for (name, act, then) in reads(is_bucket, wanted) {
            let (what, of) = (format!("{wanted}: {name}"), wanted.to_owned());
            elsewhere.server.fail_if(move |request| kind(&request.line()) == of, 0, usize::MAX, act);
            let (found, said, _) = read(&project, &elsewhere, &[PATIENCE]);
            assert_eq!(found, right, "{what}: {said}");
            assert!(elsewhere.server.state().failed > 0, "{what}");
            match then {
                Says(texts) => assert_said(&said, &elsewhere.store, texts, &what),
                SaysOrServes if said.contains("warning") => assert_said(&said, &elsewhere.store, &[""], &what),
                _ => assert!(!said.contains("warning"), "{what}: {said}"),
            }
            elsewhere.server.heal();
        }
        // It serves as if nothing had been.
        let (found, said, asked) = read(&project, &elsewhere, &[]);
        assert_eq!((found, asked), (right, 0), "{wanted}: {said}");
        assert!(!said.contains("warning"), "{wanted}: {said}");
    });
}

fn fails_when_written(new: fn() -> Elsewhere, is_bucket: bool, expected: &[&str]) {
    let write = |project: &Project, elsewhere: &Elsewhere, more: &[(&str, &str)]| {
        project.machine().build(&["--cache-to", &elsewhere.store], &elsewhere.settings(more))
    };
    let read = |project: &Project, elsewhere: &Elsewhere| {
        project.machine().build(&["--cache-from", &elsewhere.store], &elsewhere.trusting())
    };
    let elsewhere = new();
    let said = write(&Project::new(), &elsewhere, &[]).1;
    assert!(!said.contains("warning"), "{said}");
    let kinds = elsewhere.kinds();
    assert_eq!(Vec::from_iter(&kinds), expected);
    each(&kinds, |wanted| {
        let project = Project::new();
        let right = project.machine().build(&[], &[]).0;
        for (name, act, then) in writes(is_bucket, wanted) {
            let (elsewhere, what, of) = (new(), format!("{wanted}: {name}"), wanted.to_owned());
            elsewhere.server.fail_if(move |request| kind(&request.line()) == of, 0, usize::MAX, act);
            let (made, said, _) = write(&project, &elsewhere, &[PATIENCE]);
            assert_eq!(made, right, "{what}: {said}");
            assert!(elsewhere.server.state().failed > 0, "{what}");
            elsewhere.server.heal();
            // Whatever is there by now.
            let (found, heard, asked) = read(&project, &elsewhere);
            assert_eq!(found, right, "{what}: {heard}");
            match then {
                Says(texts) => assert_said(&said, &elsewhere.store, texts, &what),
                SaysOrServes if said.contains("warning") => assert_said(&said, &elsewhere.store, &[""], &what),
                SaysOrServes => assert!(asked == 0 && !heard.contains("warning"), "{what}: {said}{heard}"),
                Any => {}
            }
            if !["500", "a request that breaks off", "what is not kept"].contains(&name) {
                continue;
            }
            // The next one writes what is missing.
            let said = write(&project, &elsewhere, &[]).1;
            assert!(!said.contains("warning"), "{what}: {said}");
            let (found, said, asked) = read(&project, &elsewhere);
            assert_eq!((found, asked), (right.clone(), 0), "{what}: {said}");
            assert!(!said.contains("warning"), "{what}: {said}");
        }
    });
}

#[test]
fn slow_a_registry_that_fails_when_a_cache_is_read_costs_a_warning() {
    fails_when_read(Elsewhere::repository, false);
}

#[test]
fn slow_a_bucket_that_fails_when_a_cache_is_read_costs_a_warning() {
    fails_when_read(Elsewhere::bucket, true);
}

#[test]
fn slow_a_registry_that_fails_when_a_cache_is_written_costs_a_warning() {
    let expected = [
        "HEAD blobs",
        "HEAD manifests",
        "POST new uploads",
        "PUT image",
        "PUT latest",
        "PUT layers",
        "PUT parts",
        "PUT uploads",
    ];
    fails_when_written(Elsewhere::repository, false, &expected);
}

#[test]
fn slow_a_bucket_that_fails_when_a_cache_is_written_costs_a_warning() {
    let expected = ["HEAD blobs", "PUT blobs", "PUT image", "PUT latest"];
    fails_when_written(Elsewhere::bucket, true, &expected);
}

#[test]
fn slow_a_registry_that_takes_long_for_each_answer_is_written_to_and_read_from() {
    let (project, elsewhere) = (Project::new(), Elsewhere::repository());
    // Each answer comes in time. One after another, they take longer than there is patience, and next to no bytes move.
    let patience = ("IMGBUILD_CACHE_PATIENCE", "3s");
    let after = |millis| Act::Stall(Duration::from_millis(millis));
    elsewhere.server.fail_if(|request| request.method == "PUT", 0, usize::MAX, after(1600));
    elsewhere.server.fail_if(|_| true, 0, usize::MAX, after(400));
    let (made, said, _) = project.machine().build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[patience]));
    assert!(!said.contains("warning"), "{said}");
    let settings = [&elsewhere.trusting()[..], &[patience]].concat();
    let (found, said, asked) = project.machine().build(&["--cache-from", &elsewhere.store], &settings);
    assert_eq!((found, asked), (made, 0), "{said}");
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn what_had_failed_before_patience_ended_is_said() {
    let (project, elsewhere) = (Project::new(), Elsewhere::repository());
    let busy = Response::error(503, "TOOMANYREQUESTS", "no").with("Retry-After", "1");
    elsewhere.server.fail("GET", 0, usize::MAX, Act::Answer(busy));
    let settings = [&elsewhere.trusting()[..], &[("IMGBUILD_CACHE_PATIENCE", "1s")]].concat();
    let said = project.machine().build(&["--cache-from", &elsewhere.store], &settings).1;
    assert_said(&said, &elsewhere.store, &["1 s (`cache.patience`); before that: it answered 503"], "busy");
}

#[test]
fn a_mirror_of_the_registry_that_a_cache_is_in_is_not_asked_for_it() {
    let (project, elsewhere, mirror) = (Project::new(), Elsewhere::repository(), Registry::start(Kind::default()));
    project.machine().build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[]));
    let machine = project.machine();
    let mirrors = format!("[registries.mirrors]\n'{}' = ['{}']\n", elsewhere.server.host(), mirror.host());
    machine.sandbox.write("imgbuild.toml", mirrors);
    machine.sandbox.write("src/main", "changed");
    let (_, said, asked) = machine.build(&["--cache-from", &elsewhere.store], &elsewhere.trusting());
    assert!(asked == 0 && !said.contains("warning"), "{said}");
    assert!(elsewhere.kinds().contains("GET blobs"));
    assert!(mirror.state().log.is_empty());
}

#[test]
fn an_image_is_pushed_where_its_layers_cannot_be_had_from_the_cache_that_knew_it() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = Elsewhere { store: format!("dir:{}", folder.path().display()), ..Elsewhere::repository() };
    is_pushed_without([Elsewhere::repository(), Elsewhere::bucket(), in_folder], folder.path(), &Act::Garble);
}

#[test]
fn slow_an_image_is_pushed_where_the_cache_that_knew_it_is_silent_about_its_layers() {
    let none = tempfile::tempdir().unwrap();
    is_pushed_without([Elsewhere::repository(), Elsewhere::bucket()], none.path(), &Act::Stall(HOUR));
}

fn is_pushed_without(caches: impl IntoIterator<Item = Elsewhere>, folder: &Path, act: &Act) {
    for elsewhere in caches {
        let project = Project::new();
        let (first, second, third) = (project.machine(), project.machine(), project.machine());
        let right = first.build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[])).0;
        // Documents stay, layers are others.
        elsewhere.server.fail_if(|request| kind(&request.line()) == "GET blobs", 0, usize::MAX, act.clone());
        for blob in files_below(folder).iter().filter(|file| file.to_string_lossy().contains("/blobs/")) {
            let mut bytes = std::fs::read(blob).unwrap();
            bytes[0] ^= 1;
            std::fs::write(blob, bytes).unwrap();
        }
        // A registry that the cache is in, too, and would mount from it; and one that knows nothing of it.
        for (machine, to) in [(&second, &elsewhere.server), (&third, &Registry::start(Kind::default()))] {
            to.state().kind.mounting = Mounting::Never;
            let tag = format!("{}/team/{{image}}:v1", to.host());
            let words = ["push", "--tag", &tag, "--cache-from", &elsewhere.store];
            let done = machine.run(&words, &[&elsewhere.trusting()[..], &[PATIENCE]].concat());
            let said = done.stderr.clone();
            done.success();
            to.assert_whole();
            for name in ["one", "two"] {
                assert_eq!(to.tag(&format!("team/{name}"), "v1").as_ref(), right.get(name), "{said}");
            }
            let place = elsewhere.store.trim_start_matches("dir:");
            assert!(said.contains("warning") && said.contains(place) && said.contains("made here"), "{said}");
        }
    }
}

#[test]
fn of_a_blob_that_is_made_here_in_the_end_no_part_is_kept() {
    let (project, elsewhere) = (Project::new(), Elsewhere::repository());
    project.machine().build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[]));
    for act in [Act::Cut(7), Act::Garble, Act::Answer(Response::error(404, "BLOB_UNKNOWN", "no"))] {
        elsewhere.server.fail_if(|request| kind(&request.line()) == "GET blobs", 0, usize::MAX, act.clone());
        let machine = project.machine();
        let (_, said, asked) = machine.build(&["--cache-from", &elsewhere.store], &elsewhere.trusting());
        assert!(asked > 0 && said.contains("is passed over"), "{said}");
        assert_eq!(files_below(&machine.sandbox.cache().join("partial-v1")), [""; 0].map(std::path::PathBuf::from));
        elsewhere.server.heal();
    }
}
