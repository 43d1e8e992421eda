//! `imgbuild push`, `login`, `logout` and `auth explain` as people run them.

use std::os::unix::process::CommandExt as _;

use imgbuild::failpoint::Push;
use layers::lock::Lock;
use layers::source::files;
use layers::{Catalogue, Stage, path};

use crate::registry::{assert_secret, files_below, registry};
use crate::support::random::{Random, seed};
use crate::support::registry::{Act, Auth, CANARY_PASSWORD, Registry, Response};
use crate::support::run::{Outcome, Sandbox, interruptible, outcome};

/// A project of images that share a layer and have one of their own.
pub fn project(names: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("context/shared/data", Random::of(1).bytes(200_000));
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
fn a_layer_that_is_sent_as_it_is_made_goes_once_to_a_registry_however_many_repositories_want_it() {
    let registries = [registry(|_| {}), registry(|_| {})];
    let sandbox = project(&["one"]);
    let push = |tag: &str| {
        let (first, second) = (registries[0].host(), registries[1].host());
        let to = [format!("{first}/a:{tag}"), format!("{first}/b:{tag}"), format!("{second}/c:{tag}")];
        let tags = to.iter().flat_map(|to| ["--tag", to.as_str()]);
        run(&sandbox, &["push", "one"].into_iter().chain(tags).collect::<Vec<_>>()).success();
    };
    push("v1");
    for (at, length) in [3_000_000, 3_000_001, 200_000].into_iter().enumerate() {
        sandbox.write("context/one/own", Random::of(1).bytes(length));
        for registry in &registries {
            registry.clear_log();
            registry.state().uploaded.clear();
            // Whoever may push is known before the layer is made.
            registry.state().kind.latency = std::time::Duration::from_millis(1);
        }
        push(&format!("e{at}"));
        for registry in &registries {
            let uploaded = registry.state().uploaded.clone();
            assert!(uploaded.len() == 2 && uploaded.values().all(|count| *count == 1), "{uploaded:?}");
            assert_eq!(registry.state().uploads(), 0);
            registry.assert_whole();
        }
    }
}

#[test]
fn an_edit_costs_three_trips_of_which_one_goes_beside_the_build() {
    let registry = registry(|_| {});
    let sandbox = project(&["one", "two"]);
    push_all(&sandbox, &registry).success();
    sandbox.write("context/one/own", "this is another");
    registry.clear_log();
    registry.state().kind.latency = std::time::Duration::from_millis(50);
    push_all(&sandbox, &registry).success();
    let asked = registry.requests("");
    let begun = asked.iter().filter(|it| it.line.starts_with("POST")).count();
    assert_eq!(begun, 2, "the configuration and the layer: {asked:#?}");
    assert!(!asked.iter().any(|it| it.line.starts_with("HEAD") && it.line.contains("/blobs/")), "{asked:#?}");
    // Where the build takes longer than the question whether one may push, the layer is sent beside the build as well.
    assert_eq!(registry.round_trips_without("PUT /v2/team/one/blobs/"), 3, "{asked:#?}");
    assert_eq!(registry.state().uploads(), 0);
    registry.assert_whole();
}

#[test]
fn uploads_that_nobody_needs_are_ended() {
    let registry = registry(|_| {});
    let sandbox = project(&["one"]);
    push_all(&sandbox, &registry).success();
    // One upload is for a layer, and no layer is new.
    let image = || Stage::scratch().layer(files("shared", path!("/shared"))).layer(files("one", path!("/own"))).image();
    let twice = Stage::scratch().layer(files("shared", path!("/shared"))).image();
    sandbox.write("plan.json", Catalogue::new("test").with("one", twice).plan().to_json());
    registry.clear_log();
    push_all(&sandbox, &registry).success();
    let ended = registry.requests("DELETE").len();
    assert_eq!((ended, registry.state().uploads()), (1, 0), "{:#?}", registry.requests(""));
    // A build that fails needs none of them.
    let failing = Stage::scratch().layer(files("shared", path!("/x"))).layer(files("one", path!("/x/data/below")));
    sandbox.write("plan.json", Catalogue::new("test").with("one", failing.image()).plan().to_json());
    registry.clear_log();
    push_all(&sandbox, &registry).failure(1, &[]);
    let ended = registry.requests("DELETE").len();
    assert_eq!((ended, registry.state().uploads()), (2, 0), "{:#?}", registry.requests(""));
    // Nor does whoever only asks.
    sandbox.write("context/one/own", "something else");
    sandbox.write("plan.json", Catalogue::new("test").with("one", image()).plan().to_json());
    registry.clear_log();
    run(&sandbox, &["push", "--registry", &format!("{}/team", registry.host()), "--tag", "v1", "--dry-run"]).success();
    assert!(registry.requests("POST").is_empty());
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

#[test]
fn half_a_password_in_the_environment_is_an_error_before_anything_is_built() {
    let registry = registry(|kind| kind.auth = Auth::Basic);
    let sandbox = project(&["one"]);
    for (set, value, missing) in [
        ("IMGBUILD_REGISTRY_USER", "user", "IMGBUILD_REGISTRY_PASSWORD"),
        ("IMGBUILD_REGISTRY_PASSWORD", CANARY_PASSWORD, "IMGBUILD_REGISTRY_USER"),
    ] {
        let mut command = imgbuild(&sandbox, &["push", "--registry", &registry.host(), "--tag", "v1"]);
        let done = outcome(command.env(set, value).env(missing, ""));
        assert_secret(&done.stderr);
        done.failure(1, &[&format!("`{set}` is set and `{missing}` is not")]);
    }
    assert!(registry.requests("").is_empty());
}

#[test]
fn an_explanation_takes_hosts_and_goes_on_past_what_is_broken() {
    let sandbox = project(&["one"]);
    let explain = |words: &[&str]| {
        let mut command = imgbuild(&sandbox, &["auth", "explain"]);
        command.args(words).env("IMGBUILD_REGISTRY_USER", "me").env("IMGBUILD_REGISTRY_PASSWORD", CANARY_PASSWORD);
        let done = outcome(&mut command);
        assert_secret(&format!("{}{}", done.stdout, done.stderr));
        done
    };
    let said = |words: &[&str], first: &str, answer: &str| {
        let stdout = explain(words).success();
        assert!(stdout.starts_with(&format!("{first}\n")) && stdout.contains(answer), "{words:?}: {stdout}");
    };
    said(&["ghcr.io", "--registry", "ghcr.io/acme"], "ghcr.io", "user `me` with a password");
    said(&["--registry", "localhost:5000"], "localhost:5000", "user `me` with a password");
    said(&["https://ghcr.io/"], "ghcr.io", "neither does");
    said(&["ghcr.io:443", "--registry", "ghcr.io"], "ghcr.io:443", "they are for ghcr.io\n");
    said(&["localhost"], "localhost", "anonymous");
    said(&["[::1]:5000"], "[::1]:5000", "anonymous");
    said(&["debian:12"], "docker.io/library/debian", "anonymous");
    said(&["ghcr.io/acme/rag:v1"], "ghcr.io/acme/rag", "anonymous");
    explain(&[]).failure(2, &["HOST|REFERENCE"]);
    explain(&["me:canary@ghcr.io"]).failure(2, &["is not an image reference"]);
    std::fs::create_dir_all(sandbox.home().join(".docker")).unwrap();
    std::fs::create_dir_all(sandbox.home().join(".config/containers")).unwrap();
    std::fs::write(sandbox.home().join(".docker/config.json"), r#"{"credsStore": "absent"}"#).unwrap();
    std::fs::write(sandbox.home().join(".config/containers/auth.json"), r#"{"auths": {"ghcr.io": {"auth": "dTpw"}}}"#)
        .unwrap();
    let broken = explain(&["ghcr.io"]).failure(1, &["so a push or pull ends there", "`docker-credential-absent`"]);
    assert!(broken.stdout.contains("broken: the credential helper `docker-credential-absent`"), "{}", broken.stdout);
    assert!(broken.stdout.contains("auth.json`: user `u` with a password"), "{}", broken.stdout);
}

#[test]
fn slow_a_push_that_is_ended_at_any_point_leaves_no_wrong_tag_and_the_next_sends_the_rest() {
    // Mounts, chunks, an index and several tags: every point lies on the way.
    let auth = Auth::Bearer { realm: None, lives: None, uses: None, oauth: false };
    let registry = || registry(|kind| (kind.largest_body, kind.auth) = (Some(110_000), auth.clone()));
    let sandbox = project(&["one", "two"]);
    let words = |registry: &Registry| -> Vec<String> {
        let host = registry.host();
        let words = ["push", "--registry", &host, "--tag", "v1", "--tag", "v2", "--platform", "amd64,arm64"];
        words.iter().map(|it| (*it).to_owned()).collect()
    };
    let push = |registry: &Registry| {
        let words = words(registry);
        let mut command = imgbuild(&sandbox, &words.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("IMGBUILD_REGISTRY_USER", "user").env("IMGBUILD_REGISTRY_PASSWORD", CANARY_PASSWORD);
        command
    };
    // Built before, so that all that is ended is the push.
    outcome(&mut push(&registry())).success();
    for point in Push::ALL {
        for (signal, status) in [("KILL", 128 + 9), ("INT", 128 + 2)] {
            for count in 1..=3 {
                let name = format!("{}:{count} by {signal}", point.name());
                let registry = registry();
                let mut ended = push(&registry);
                ended.env("IMGBUILD_FAILPOINT", format!("{}:{count}", point.name()));
                let ended = outcome(&mut interruptible(ended.env("IMGBUILD_FAILPOINT_SIGNAL", signal)));
                if count > 1 && ended.status == 0 {
                    break;
                }
                assert_eq!(ended.status, status, "{name} is not reached:\n{}", ended.stderr);
                assert_secret(&format!("{}{}", ended.stdout, ended.stderr));
                assert_eq!(ended.stdout, "", "{name}: nothing is said to be pushed");
                // Neither in the cache nor in what was in the making.
                assert_secret(&files_below(sandbox.path()));
                registry.assert_whole();
                let had: Vec<String> = registry.state().uploaded.keys().cloned().collect();
                outcome(&mut push(&registry)).success();
                registry.assert_whole();
                for image in ["one", "two"] {
                    for tag in ["v1", "v2"] {
                        assert_eq!(registry.check_tag(image, tag), Some(Ok(())), "{name}: {image}:{tag}");
                    }
                }
                let uploaded = registry.state().uploaded.clone();
                assert!(had.iter().all(|digest| uploaded[digest] == 1), "{name}: {uploaded:?}");
                assert!(uploaded.values().all(|count| *count == 1), "{name}: {uploaded:?}");
            }
        }
    }
}

#[test]
fn slow_a_push_that_is_stopped_at_a_hundred_random_moments_leaves_no_wrong_tag_and_nothing_is_sent_twice() {
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
        let mut command = interruptible(&imgbuild(&sandbox, &words.iter().map(String::as_str).collect::<Vec<_>>()));
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
    sandbox.write("context/one/own", Random::of(1).bytes(30_000));
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

#[test]
fn no_password_that_was_typed_or_that_a_server_repeats_is_shown() {
    let sandbox = project(&["one"]);
    for words in [
        &["push", "--tag", "me:GEHEIM@127.0.0.1:1/x:1"][..],
        &["inspect", "me:GEHEIM@127.0.0.1:1/x:1"],
        &["copy", "me:GEHEIM@127.0.0.1:1/x:1", "oci:x"],
        &["load", "--tag", "me:GEHEIM@127.0.0.1:1/x:1"],
        &["mirror", "push", "me:GEHEIM@127.0.0.1:1/x:1"],
        &["build", "--cache-from", "registry:me:GEHEIM@127.0.0.1:1/x"],
        &["login", "me:GEHEIM@127.0.0.1:1"],
        &["logout", "me:GEHEIM@127.0.0.1:1"],
        &["auth", "explain", "me:GEHEIM@127.0.0.1:1/x"],
    ] {
        let done = run(&sandbox, words);
        assert_ne!(done.status, 0, "{words:?}");
        let said = format!("{}{}", done.stdout, done.stderr).to_lowercase();
        assert!(!said.contains("geheim") && !said.contains("panicked"), "{words:?}: {said}");
    }
    let done = outcome(imgbuild(&sandbox, &["load"]).env("DOCKER_HOST", "tcp://me:GEHEIM@127.0.0.1:1"));
    assert!(done.status == 1 && !done.stderr.contains("GEHEIM"), "{}", done.stderr);
    // A server that has got the password may put it anywhere.
    let leaks: [(&str, &str, Response); 4] = [
        (
            "/blobs/uploads/",
            "push",
            Response::new(202).with("Location", format!("http://evil.example/{CANARY_PASSWORD}/u")),
        ),
        ("/manifests/", "push", Response::new(307).with("Location", format!("http://evil.example/{CANARY_PASSWORD}"))),
        ("/manifests/", "inspect", Response::new(200).with("Content-Type", format!("application/x-{CANARY_PASSWORD}"))),
        (
            "/manifests/",
            "inspect",
            Response::new(401)
                .with("WWW-Authenticate", format!("Bearer realm=\"http://evil.example/{CANARY_PASSWORD}\"")),
        ),
    ];
    for (path, command, answer) in leaks {
        let registry = registry(|kind| kind.auth = Auth::Basic);
        registry.fail_if(
            move |request| request.line().contains(path) && request.header("authorization").is_some(),
            0,
            100,
            Act::Answer(answer),
        );
        let place = format!("{}/team/one:v1", registry.host());
        let words = match command {
            "push" => vec!["push", "one", "--tag", &place],
            _ => vec!["inspect", &place],
        };
        let mut words = imgbuild(&sandbox, &words);
        words.env("IMGBUILD_REGISTRY", registry.host()).env("IMGBUILD_REGISTRY_USER", "user");
        let done = outcome(words.env("IMGBUILD_REGISTRY_PASSWORD", CANARY_PASSWORD));
        assert_ne!(done.status, 0, "{path} {command}: {}", done.stdout);
        assert_secret(&format!("{}{}", done.stdout, done.stderr));
        assert!(!registry.requests(path).is_empty(), "{path} {command}: {}", done.stderr);
    }
}

#[test]
fn a_context_of_docker_that_is_broken_concerns_nobody_who_does_not_need_docker() {
    let sandbox = project(&["one"]);
    run(&sandbox, &["build"]).success();
    std::fs::create_dir_all(sandbox.home().join(".docker")).unwrap();
    std::fs::write(sandbox.home().join(".docker/config.json"), r#"{"currentContext":"gone"}"#).unwrap();
    run(&sandbox, &["inspect", "oci:dist:one"]).success();
    run(&sandbox, &["copy", "oci:dist:one", "oci:other:one"]).success();
    run(&sandbox, &["load", "one"]).failure(1, &["docker's context `gone`"]);
}

#[test]
fn an_index_that_is_referred_to_by_another_is_copied_whatever_the_order() {
    let (from, to) = (registry(|_| {}), registry(|_| {}));
    let sandbox = project(&["one", "two"]);
    push_all(&sandbox, &from).success();
    let index = |children: &[(&str, &str)]| {
        let children: Vec<_> = children
            .iter()
            .map(|(kind, digest)| serde_json::json!({ "mediaType": kind, "digest": digest, "size": 2 }))
            .collect();
        let document =
            serde_json::json!({ "schemaVersion": 2, "mediaType": layers::oci::INDEX, "manifests": children });
        document.to_string().into_bytes()
    };
    let mut state = from.state();
    let repo = state.repos.get_mut("team/one").unwrap();
    let image = repo.tags["v1"].clone();
    let sized = |repo: &crate::support::registry::Repo, bytes: Vec<u8>| {
        let mut document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for child in document["manifests"].as_array_mut().unwrap() {
            child["size"] = repo.manifests[child["digest"].as_str().unwrap()].1.len().into();
        }
        document.to_string().into_bytes()
    };
    let inner = sized(repo, index(&[(layers::oci::MANIFEST, &image)]));
    let name = layers::Digest::of(&inner).to_string();
    repo.manifests.insert(name.clone(), (layers::oci::INDEX.into(), inner));
    // The image stands before the index that refers to it, too.
    let outer = sized(repo, index(&[(layers::oci::MANIFEST, &image), (layers::oci::INDEX, &name)]));
    let top = layers::Digest::of(&outer).to_string();
    repo.manifests.insert(top.clone(), (layers::oci::INDEX.into(), outer));
    repo.tags.insert("nested".into(), top.clone());
    drop(state);
    let (source, target) = (format!("{}/team/one:nested", from.host()), format!("{}/x/nested:v1", to.host()));
    run(&sandbox, &["copy", &source, &target]).success();
    to.assert_whole();
    assert_eq!(to.tag("x/nested", "v1"), Some(top));
}

#[test]
fn what_an_image_says_cannot_steer_a_terminal() {
    let registry = registry(|_| {});
    let sandbox = project(&["one"]);
    let place = format!("{}/team/one:v1", registry.host());
    run(&sandbox, &["push", "one", "--tag", &place, "--annotation", "a=\u{1b}[31mred\nlayer forged"]).success();
    let told = run(&sandbox, &["inspect", &place]).success();
    assert!(told.contains("annotation a=\u{fffd}[31mred\u{fffd}layer forged\n"), "{told}");
}

#[test]
fn a_copy_for_a_platform_is_for_it_and_one_that_lacks_some_says_so() {
    let registry = registry(|_| {});
    let sandbox = project(&["one"]);
    run(&sandbox, &["build", "one", "--platform", "amd64", "--output", "oci:single"]).success();
    run(&sandbox, &["build", "one", "--platform", "amd64,arm64", "--output", "oci:both"]).success();
    let place = |name: &str| format!("{}/x/{name}:v1", registry.host());
    run(&sandbox, &["copy", "oci:single:one", &place("single")]).success();
    for from in ["oci:single:one".to_owned(), place("single")] {
        run(&sandbox, &["copy", "--platform", "amd64", &from, "oci:other:one"]).success();
        run(&sandbox, &["copy", "--platform", "arm64", &from, "oci:other:two"])
            .failure(1, &["it is for linux/amd64, not for linux/arm64"]);
    }
    // A manifest that an index names is lost.
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(sandbox.work().join("both/index.json")).unwrap()).unwrap();
    let blob = |digest: &serde_json::Value| {
        sandbox.work().join("both/blobs/sha256").join(digest.as_str().unwrap().trim_start_matches("sha256:"))
    };
    let top: serde_json::Value =
        serde_json::from_slice(&std::fs::read(blob(&index["manifests"][0]["digest"])).unwrap()).unwrap();
    std::fs::remove_file(blob(&top["manifests"][1]["digest"])).unwrap();
    let said = run(&sandbox, &["copy", "oci:both:one", "oci:rest:one"]);
    assert!(said.stderr.contains("1 of the 2 manifests"), "{}", said.stderr);
}
