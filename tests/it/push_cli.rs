//! `imgbuild push`, `login`, `logout` and `auth explain` as people run them.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;

use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Stage, path};

use crate::registry::{assert_secret, registry};
use crate::support::random::{Random, seed};
use crate::support::registry::{Auth, CANARY_PASSWORD, Registry};
use crate::support::run::{Outcome, Sandbox, outcome};

/// A project of images that share a layer and have one of their own.
pub fn project(names: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("context/shared/data", noise(200_000));
    let mut catalogue = Catalogue::new("test");
    for name in names {
        sandbox.write(&format!("context/{name}/own"), format!("this is {name}"));
        let image =
            Stage::scratch().layer(files("shared", path!("/shared"))).layer(files(*name, path!("/own"))).image();
        catalogue = catalogue.with(*name, image);
    }
    sandbox.write("plan.json", catalogue.plan().to_json());
    sandbox.write("images.lock", Lock::default().to_text());
    sandbox
}

/// Bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn imgbuild(sandbox: &Sandbox, words: &[&str]) -> std::process::Command {
    let mut command = sandbox.command(["--catalogue", "plan.json", "--context", "context"]);
    command.args(words);
    command
}

fn run(sandbox: &Sandbox, words: &[&str]) -> Outcome {
    let done = outcome(&mut imgbuild(sandbox, words));
    assert_secret(&format!("{}{}", done.stdout, done.stderr));
    done
}

fn push_all(sandbox: &Sandbox, registry: &Registry) -> Outcome {
    run(sandbox, &["push", "--registry", &format!("{}/team", registry.host()), "--tag", "v1"])
}

#[test]
fn push_prints_references_with_digests_and_nothing_else() {
    let registry = registry(|_| {});
    let sandbox = project(&["one", "two"]);
    let stdout = push_all(&sandbox, &registry).success();
    let digest = |name: &str| registry.tag(&format!("team/{name}"), "v1").unwrap();
    let host = registry.host();
    assert_eq!(stdout, format!("{host}/team/one:v1@{}\n{host}/team/two:v1@{}\n", digest("one"), digest("two")));
    registry.assert_whole();
    assert!(registry.state().uploaded.values().all(|count| *count == 1));
    registry.clear_log();
    push_all(&sandbox, &registry).success();
    assert_eq!(registry.requests("").len(), 4, "one request a manifest and one a tag");
}

#[test]
fn references_platforms_annotations_and_json() {
    let registry = registry(|_| {});
    let sandbox = project(&["one", "two"]);
    let host = registry.host();
    let all = format!("{host}/x/{{image}}:a");
    let words = [
        "push",
        "--tag",
        &all,
        "--platform",
        "amd64,arm64",
        "--annotation",
        "k=v",
        "--metadata-file",
        "m.json",
        "--format",
        "json",
    ];
    let json: serde_json::Value = serde_json::from_str(&run(&sandbox, &words).success()).unwrap();
    let file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(sandbox.work().join("m.json")).unwrap()).unwrap();
    assert_eq!(json, file);
    let top = registry.tag("x/one", "a").unwrap();
    assert_eq!(json["images"][0]["references"][0], format!("{host}/x/one:a@{top}"));
    let state = registry.state();
    let (media_type, bytes) = &state.repos["x/one"].manifests[&top];
    assert_eq!(media_type, layers::oci::INDEX);
    let index: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    assert_eq!(index["annotations"]["k"], "v");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
}

#[test]
fn requests_that_make_no_sense_are_refused_before_anything_is_built() {
    let registry = registry(|_| {});
    let sandbox = project(&["one", "two"]);
    let host = registry.host();
    for (words, said) in [
        (vec!["push", "--tag", "v1"], "no registry is known"),
        (vec!["push", "--tag", ".bad"], "a tag has up to 128"),
        (vec!["push", "--tag", "HTTP://x/y"], "without a scheme"),
        (vec!["push"], "--tag"),
        (vec!["push", "--tag", "x.io/one:v1"], "names one place for 2 images"),
        (vec!["push", "nine", "--registry", &host, "--tag", "v1"], "has no image `nine`"),
        (
            vec!["push", "--tag", "x.io/a@sha256:0000000000000000000000000000000000000000000000000000000000000000"],
            "an image is pushed to a tag",
        ),
        (vec!["push", "--tag", "v1", "--registry", &host, "--insecure", "http://x"], "--insecure: it is not a host"),
        (vec!["push", "--tag", "v1", "--registry", &host, "--annotation", "x"], "is not an annotation"),
        (vec!["login", "not a host", "-u", "x", "--password-stdin"], "is not a registry's host"),
    ] {
        run(&sandbox, &words).failure(2, &[said]);
    }
    run(&sandbox, &["--offline", "push", "--tag", "v1", "--registry", &host]).failure(1, &["--offline forbids it"]);
    assert!(registry.requests("").is_empty());
}

#[test]
fn a_dry_run_says_what_would_be_sent() {
    let registry = registry(|_| {});
    let sandbox = project(&["one", "two"]);
    let stdout = run(&sandbox, &["push", "--registry", &registry.host(), "--tag", "v1", "--dry-run"]).success();
    assert_eq!(stdout.lines().filter(|line| line.ends_with("  send")).count(), 7, "{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.ends_with("  mount from one")).count(), 1, "{stdout}");
    assert!(registry.requests("").iter().all(|it| it.line.starts_with("HEAD")));
}

#[test]
fn a_login_is_kept_used_explained_and_forgotten() {
    let registry = registry(|kind| kind.auth = Auth::Basic);
    let sandbox = project(&["one"]);
    let host = registry.host();
    push_all(&sandbox, &registry).failure(1, &["as anonymous", "imgbuild login"]);
    let login = |password: &str| {
        let mut command = std::process::Command::new("sh");
        sandbox.place(&mut command);
        command.arg("-c").arg(format!(
            "printf '%s\\n' \"$PASSWORD\" | '{}' login {host} --username user --password-stdin",
            crate::support::run::binary().display()
        ));
        command.env("PASSWORD", password);
        let done = outcome(&mut command);
        assert_secret(&format!("{}{}", done.stdout, done.stderr));
        done
    };
    login("canary-password-wrong").failure(1, &["refuses to log in", "as user `user` with a password"]);
    assert!(!sandbox.home().join(".docker").exists(), "what was refused is not kept");
    let said = login(CANARY_PASSWORD).success();
    assert!(said.contains(&format!("logged in to {host}")), "{said}");
    push_all(&sandbox, &registry).success();
    let explained = run(&sandbox, &["auth", "explain", &format!("{host}/a/b")]).success();
    assert!(explained.contains("config.json`: user `user` with a password"), "{explained}");
    run(&sandbox, &["logout", &host]).success();
    let explained = run(&sandbox, &["auth", "explain", &format!("{host}/a/b")]).success();
    assert!(explained.contains("nothing else is configured: anonymous"), "{explained}");
    push_all(&sandbox, &registry).failure(1, &["as anonymous"]);
}

#[test]
fn a_password_in_the_environment_is_for_the_registry_of_the_push() {
    let registry = registry(|kind| kind.auth = Auth::Basic);
    let other = crate::registry::registry(|kind| kind.auth = Auth::Basic);
    let sandbox = project(&["one"]);
    let push = |words: &[&str]| {
        let mut command = imgbuild(&sandbox, words);
        command.env("IMGBUILD_REGISTRY_USER", "user").env("IMGBUILD_REGISTRY_PASSWORD", CANARY_PASSWORD);
        outcome(&mut command)
    };
    push(&["push", "--registry", &registry.host(), "--tag", "v1"]).success();
    push(&["push", "--registry", &registry.host(), "--tag", &format!("{}/one:v1", other.host())])
        .failure(1, &["as anonymous"]);
    assert!(other.requests("").iter().all(|it| it.authorization.is_none()));
}

/// Every place at which a push can be ended.
const POINTS: [&str; 7] =
    ["push-upload", "push-uploaded", "push-uploaded:3", "push-blobs", "push-manifests", "push-index", "push-tags"];

#[test]
fn a_push_that_is_killed_anywhere_leaves_no_wrong_tag_and_the_next_sends_the_rest() {
    let mut reached = BTreeSet::new();
    for point in POINTS {
        let registry = registry(|_| {});
        let sandbox = project(&["one", "two"]);
        let words = ["push", "--registry", &registry.host(), "--tag", "v1", "--platform", "amd64,arm64"];
        let killed = outcome(imgbuild(&sandbox, &words).env("IMGBUILD_FAILPOINT", point));
        if killed.status == 128 + 9 {
            reached.insert(point);
        }
        registry.assert_whole();
        run(&sandbox, &words).success();
        registry.assert_whole();
        for name in ["one", "two"] {
            assert_eq!(registry.check_tag(name, "v1"), Some(Ok(())), "{point}: {name}");
        }
        let state = registry.state();
        assert!(state.uploaded.values().all(|count| *count == 1), "{point}: {:?}", state.uploaded);
    }
    assert_eq!(reached, BTreeSet::from(POINTS), "every point is reached");
}

#[test]
fn a_push_that_is_stopped_at_a_hundred_random_moments_leaves_no_wrong_tag_and_nothing_is_sent_twice() {
    use rustix::process::Signal;
    use std::time::{Duration, Instant};
    let mut random = Random::of(seed());
    let sandbox = project(&["one", "two"]);
    let words = |registry: &Registry| -> Vec<String> {
        let words = ["push", "--registry", &registry.host(), "--tag", "v1", "--platform", "amd64,arm64"];
        words.iter().map(|it| (*it).to_owned()).collect()
    };
    let slow = || registry(|kind| kind.latency = Duration::from_millis(3));
    let push = |registry: &Registry| {
        let words = words(registry);
        run(&sandbox, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // Built before, so that what is stopped is the push; and how long one takes.
    push(&slow()).success();
    let (whole, began) = (slow(), Instant::now());
    push(&whole).success();
    let takes = began.elapsed().as_micros() as u64;
    let mut stopped = 0;
    for round in 0..100 {
        let registry = slow();
        let signal = if round % 2 == 0 { Signal::KILL } else { Signal::INT };
        let moment = Duration::from_micros(random.below((takes + takes / 10) as usize) as u64);
        let words = words(&registry);
        let mut command = imgbuild(&sandbox, &words.iter().map(String::as_str).collect::<Vec<_>>());
        command.process_group(0).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        // The moment is what is tested, nothing is waited for.
        std::thread::sleep(moment);
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal);
        stopped += usize::from(!child.wait().unwrap().success());
        registry.assert_whole();
        push(&registry).success();
        registry.assert_whole();
        for name in ["one", "two"] {
            assert_eq!(registry.check_tag(name, "v1"), Some(Ok(())), "round {round} after {moment:?}: {name}");
        }
        // Also an upload whose answer nobody heard is found; what a registry had is never sent again.
        let state = registry.state();
        for (digest, count) in &state.uploaded {
            assert_eq!(*count, 1, "round {round} after {moment:?}: {digest} was there and was sent again");
        }
    }
    assert!(stopped > 30, "only {stopped} of 100 pushes were stopped");
}

#[test]
fn after_a_change_of_one_file_its_layer_is_sent_and_hardly_anything_else() {
    let registry = registry(|_| {});
    let sandbox = project(&["one", "two"]);
    push_all(&sandbox, &registry).success();
    sandbox.write("context/one/own", noise(30_000));
    let words = ["push", "--registry", &format!("{}/team", registry.host()), "--tag", "v1", "--format", "json"];
    registry.state().uploaded.clear();
    let json: serde_json::Value = serde_json::from_str(&run(&sandbox, &words).success()).unwrap();
    let layers = json["images"][0]["platforms"][0]["layers"].as_array().unwrap();
    let changed = layers.last().unwrap()["size"].as_u64().unwrap();
    let sent = json["sent"].as_u64().unwrap();
    assert!(sent >= changed && sent < changed + (64 << 10), "{sent} bytes for a layer of {changed}");
    assert_eq!(registry.state().uploaded.len(), 2, "the layer and the configuration");
    registry.assert_whole();
}
