//! Pushing to registries that fail, are slow, move uploads elsewhere or say what is not so.

use std::collections::BTreeSet;

use imgbuild::observe::Silent;
use imgbuild::registry::Registries;
use layers::Platform;

use crate::registry::{Images, hurried, push, registry};
use crate::support::registry::{Act, Place, Response};

const BOTH: [Platform; 2] = Platform::ALL;

#[test]
fn a_registry_that_lies_about_what_it_has_gets_it_nevertheless() {
    let images = Images::new();
    let image = images.image("app", &BOTH, &[b"layer"]);
    let (layer, child, top) =
        (image.layers[0].0.to_string(), image.platforms[0].manifest.digest.to_string(), image.top().digest.to_string());
    for lies in [vec![layer.clone()], vec![top.clone()], vec![top.clone(), layer.clone()]] {
        let registry = registry(|kind| kind.lies = lies.iter().cloned().collect::<BTreeSet<_>>());
        push(&registry, hurried(), &images, std::slice::from_ref(&image))
            .unwrap_or_else(|error| panic!("{lies:?}: {error}"));
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())), "{lies:?}");
    }
    let _ = child;
}

#[test]
fn uploads_go_on_where_the_registry_says() {
    for place in [Place::Relative, Place::Absolute, Place::Query] {
        let registry = registry(|kind| kind.place = place.clone());
        let images = Images::new();
        push(&registry, hurried(), &images, &[images.simple("app", &[&vec![3; 700_000]])])
            .unwrap_or_else(|error| panic!("{place:?}: {error}"));
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())), "{place:?}");
    }
}

#[test]
fn slow_chunks_are_sent_where_a_registry_wants_them() {
    let layer: Vec<u8> = (0..40_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (smallest, largest, chunks) in [(Some(20 << 20), None, 2), (None, Some(9 << 20), 5), (None, None, 0)] {
        let registry = registry(|kind| (kind.smallest_chunk, kind.largest_body) = (smallest, largest));
        let images = Images::new();
        push(&registry, hurried(), &images, &[images.simple("app", &[&layer])]).unwrap();
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
        let sent = registry.requests("PATCH").iter().filter(|it| it.status == 202).count();
        assert_eq!(sent, chunks, "{smallest:?} {largest:?}");
    }
    let registry = registry(|kind| kind.largest_body = Some(10));
    let images = Images::new();
    let error = push(&registry, hurried(), &images, &[images.simple("app", &[&layer])]).unwrap_err();
    assert!(error.contains("413"), "{error}");
}

#[test]
fn a_broken_upload_goes_on_where_the_registry_says_that_it_is() {
    let layer: Vec<u8> = (0..4_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    for at in [0, 1, 2, 100, 65_536, 1_000_000, 3_999_999] {
        let registry = registry(|_| {});
        let images = Images::new();
        registry.fail_if(
            |it| it.method == "PUT" && it.header("content-length") == Some("4000000"),
            0,
            1,
            Act::Reset(at),
        );
        push(&registry, hurried(), &images, &[images.simple("app", &[&layer])])
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())), "{at}");
        let again: u64 = registry.requests("PATCH").iter().map(|it| it.received).sum();
        let expected = if at > 1 { 4_000_000 - at } else { 0 };
        assert_eq!(again, expected, "broken at {at}: only the rest is sent again");
    }
    // A line that breaks again and again, and still comes a little further each time.
    let registry = registry(|_| {});
    let images = Images::new();
    let large = |text: &str| text.parse::<u64>().is_ok_and(|length| length > 200_000);
    registry.fail_if(move |it| it.header("content-length").is_some_and(large), 0, 12, Act::Reset(200_000));
    push(&registry, hurried(), &images, &[images.simple("app", &[&layer])]).unwrap();
    assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
    assert!(registry.requests("PATCH").len() >= 10);
}

#[test]
fn a_registry_that_loses_uploads_for_ever_is_given_up() {
    let layer: Vec<u8> = (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 12) as u8).collect();
    let images = Images::new();
    let image = images.simple("app", &[&layer]);
    let registry = registry(|kind| kind.largest_body = Some(300_000));
    // Every first chunk is taken, and every second one is of an upload that nobody knows.
    let second = |it: &crate::support::registry::Request| {
        it.method == "PATCH" && it.header("content-range").is_some_and(|range| !range.starts_with("0-"))
    };
    let unknown = Response::error(404, "BLOB_UPLOAD_UNKNOWN", "gone");
    registry.fail_if(second, 0, 1000, Act::Answer(unknown));
    let error = push(&registry, hurried(), &images, std::slice::from_ref(&image)).unwrap_err();
    assert!(error.contains("gave up after 4 failures in a row"), "{error}");
    assert!(registry.requests("").len() < 40, "{}", registry.requests("").len());
    assert_eq!(registry.tag("app", "v1"), None);
}

#[test]
fn a_registry_that_says_it_has_more_than_there_is_gets_a_new_upload() {
    let layer: Vec<u8> = (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 12) as u8).collect();
    for said in ["0-99999999", "0-18446744073709551614", "0-1000000"] {
        let registry = registry(|_| {});
        let images = Images::new();
        let large = |it: &crate::support::registry::Request| {
            it.method == "PUT" && it.header("content-length") == Some("1000000")
        };
        registry.fail_if(large, 0, 1, Act::Reset(200_000));
        let headers = Act::Headers(vec![("Range", said.into())]);
        registry.fail("GET /v2/app/blobs/uploads", 0, 9, headers);
        push(&registry, hurried(), &images, &[images.simple("app", &[&layer])])
            .unwrap_or_else(|error| panic!("{said}: {error}"));
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())), "{said}");
    }
}

#[test]
fn a_blob_in_a_storage_that_refuses_head_is_not_sent_again() {
    for status in [403, 405] {
        let storage = registry(|_| {});
        let to = format!("http://{}", storage.host());
        let registry = registry(|kind| kind.blobs_at = Some(to));
        let image = |images: &Images, own: &[u8]| images.simple("app", &[b"a layer that is shared", own]);
        let first = Images::new();
        push(&registry, hurried(), &first, &[image(&first, b"one")]).unwrap();
        registry.state().uploaded.clear();
        storage.fail("HEAD", 0, 99, Act::Answer(Response::new(status)));
        // Another machine, which knows nothing of the first push.
        let second = Images::new();
        push(&registry, hurried(), &second, &[image(&second, b"two")]).unwrap();
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
        let sent = registry.state().uploaded.clone();
        assert_eq!(sent.len(), 2, "{status}: the new layer and the configuration: {sent:?}");
        // What is elsewhere gets no credentials, and the registry's own refusal is one.
        assert!(storage.requests("HEAD").iter().all(|it| it.authorization.is_none()));
        assert!(!storage.requests("HEAD").is_empty());
        registry.fail("HEAD /v2/app/blobs", 0, 99, Act::Answer(Response::new(403)));
        let third = Images::new();
        let error = push(&registry, hurried(), &third, &[image(&third, b"three")]).unwrap_err();
        assert!(error.contains("look for a blob") && error.contains("403"), "{error}");
    }
}

#[test]
fn faults_end_in_success_or_in_a_clear_error_and_never_in_a_wrong_tag() {
    let error = |status: u16| Response::error(status, "UNKNOWN", "out of order");
    let after = |status: u16, text: &str| Act::Answer(Response::new(status).with("Retry-After", text));
    let mut costs = Vec::new();
    for (name, text, times, act, expected) in [
        ("a server error at each first request", "", 1, Act::Answer(error(500)), ""),
        ("500 on HEAD", "HEAD", 3, Act::Answer(error(500)), ""),
        ("500 for ever", "HEAD", 99, Act::Answer(error(500)), "gave up after 4 failures in a row"),
        ("502 on upload", "PUT /v2/app/blobs", 2, Act::Answer(Response::new(502)), ""),
        ("an upload that is committed, and the answer lost", "PUT /v2/app/blobs", 2, Act::Swallow, ""),
        ("an upload that is committed, and 500", "PUT /v2/app/blobs", 1, Act::DoneBut(error(500)), ""),
        ("a manifest that is committed, and 500", "PUT /v2/app/manifests/v1", 1, Act::DoneBut(error(500)), ""),
        ("a tag that is committed, and the answer lost", "PUT /v2/app/manifests/v1", 1, Act::Swallow, ""),
        ("429 with seconds", "POST", 1, after(429, "1"), ""),
        ("503 with a date that has passed", "POST", 1, after(503, "Sun, 06 Nov 1994 08:49:37 GMT"), ""),
        ("429 with an hour", "POST", 1, after(429, "3600"), "asks to wait 3600 s"),
        ("429 for centuries", "POST", 1, after(429, "99999999999999999999"), "asks to wait 4294967295 s"),
        ("an upload that is forgotten", "PUT /v2/app/blobs", 1, Act::Answer(error(404)), ""),
        ("an upload that is forgotten each time", "PUT /v2/app/blobs", 99, Act::Answer(error(404)), "gave up"),
        ("a stall of the answer", "PUT /v2/app/manifests/v1", 1, Act::Stall(std::time::Duration::from_secs(1)), ""),
        (
            "a digest that is refused",
            "PUT /v2/app/blobs",
            1,
            Act::Answer(Response::error(400, "DIGEST_INVALID", "no")),
            "",
        ),
        (
            "no Location",
            "POST",
            1,
            Act::Headers(vec![("Location", String::new())]),
            "does not say where the upload goes on",
        ),
        (
            "a Location that is none",
            "POST",
            1,
            Act::Headers(vec![("Location", "http://".into())]),
            "no usable `Location`",
        ),
        (
            "a manifest under another digest",
            "PUT /v2/app/manifests/v1",
            1,
            Act::Headers(vec![("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)))]),
            "it stored the manifest as",
        ),
        (
            "a denied tag",
            "PUT /v2/app/manifests/v1",
            9,
            Act::Answer(Response::error(403, "DENIED", "immutable tag")),
            "refuses to write a tag in app as anonymous: it answered 403 Forbidden: DENIED: immutable tag",
        ),
        (
            "an invalid manifest",
            "PUT /v2/app/manifests/v1",
            9,
            Act::Answer(Response::error(400, "MANIFEST_INVALID", "no")),
            "cannot write a tag",
        ),
        ("a teapot", "HEAD", 9, Act::Answer(Response::new(418)), "it answered 418"),
        (
            "HTML",
            "HEAD",
            9,
            Act::Answer(Response::new(405).body("<html>canary</html>")),
            "it answered 405 Method Not Allowed",
        ),
    ] {
        let registry = registry(|_| {});
        let images = Images::new();
        registry.fail(text, 0, times, act);
        let image = images.simple("app", &[b"layer one", b"layer two"]);
        let pushed = push(&registry, hurried(), &images, std::slice::from_ref(&image));
        let (requests, bytes) = {
            let log = &registry.state().log;
            (log.len(), log.iter().map(|it| it.received).sum::<u64>())
        };
        match expected {
            // Where it ends well, it costs the same each time.
            "" => {
                costs.push((name, requests - WELL.0));
                // A body more for each failure at most, of whichever blob or manifest it is.
                let most = times as u64 * 600;
                assert!((WELL.1..=WELL.1 + most).contains(&bytes), "{name}: {bytes} bytes");
            }
            _ => assert!(requests < 30, "{name}: {requests} requests"),
        }
        match (expected, pushed) {
            ("", Ok(_)) => assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())), "{name}"),
            ("", Err(error)) => panic!("{name}: {error}"),
            (expected, Err(error)) => assert!(error.contains(expected), "{name}: {error}"),
            (_, Ok(_)) => panic!("{name}: succeeded"),
        }
        // Whatever happened, the next push makes it whole, once the registry is well again.
        registry.state().log.clear();
        registry.fail("nothing", 0, 0, Act::Swallow);
        if times < 9 {
            push(&registry, hurried(), &images, &[image]).unwrap_or_else(|error| panic!("{name}, again: {error}"));
            assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())), "{name}, again");
        }
    }
    assert_eq!(costs, COSTS);
}

/// Requests and bytes of request bodies of such a push where nothing goes wrong: is it there, three times a blob's HEAD, POST
/// and PUT, and the manifest by its tag.
const WELL: (usize, u64) = (11, 1030);
/// Requests beyond that.
const COSTS: [(&str, usize); 12] = [
    ("a server error at each first request", 1),
    ("500 on HEAD", 3),
    ("502 on upload", 8),
    ("an upload that is committed, and the answer lost", 2),
    ("an upload that is committed, and 500", 1),
    ("a manifest that is committed, and 500", 1),
    ("a tag that is committed, and the answer lost", 1),
    ("429 with seconds", 1),
    ("503 with a date that has passed", 1),
    ("an upload that is forgotten", 2),
    ("a stall of the answer", 0),
    ("a digest that is refused", 2),
];

#[test]
fn a_registry_that_says_nothing_is_given_up() {
    let registry = registry(|_| {});
    let images = Images::new();
    registry.fail("HEAD", 0, 99, Act::Stall(std::time::Duration::from_secs(30)));
    let mut config = hurried();
    config.patience.idle = std::time::Duration::from_millis(100);
    let error = push(&registry, config, &images, &[images.simple("app", &[b"x"])]).unwrap_err();
    assert!(error.contains("nothing came for too long; gave up after 4 failures in a row"), "{error}");
}

#[test]
fn slow_lines_are_no_dead_ones() {
    use std::time::{Duration, Instant};
    let registry = registry(|_| {});
    let images = Images::new();
    let layer: Vec<u8> = (0..16_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 12) as u8).collect();
    let image = images.simple("app", &[&layer]);
    let mut config = hurried();
    config.patience.idle = Duration::from_millis(400);
    let blob = |method: &'static str, least: u64| {
        move |it: &crate::support::registry::Request| {
            let length = it.header("content-length").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
            it.method == method && it.path.contains("/blobs/") && length >= least
        }
    };
    registry.fail_if(blob("PUT", 1 << 20), 0, 1, Act::Drip(Duration::from_millis(100)));
    let began = Instant::now();
    push(&registry, config.clone(), &images, std::slice::from_ref(&image)).unwrap();
    assert!(began.elapsed() > 3 * config.patience.idle, "it took longer than nothing may move");
    assert_eq!(registry.state().uploaded.values().sum::<usize>(), 2, "and nothing was sent again");
    // The same when reading.
    registry.fail_if(blob("GET", 0), 0, 1, Act::Drip(Duration::from_millis(100)));
    let elsewhere = Images::new();
    let registries = Registries::new(config.clone());
    let (digest, size) = image.layers[0];
    let repository = imgbuild::registry::Repository { registry: registry.host(), path: "app".into() };
    let descriptor = imgbuild::registry::document::Descriptor::of(layers::oci::LAYER_GZIP, digest.into(), size);
    let began = Instant::now();
    registries
        .wait(registries.client().blob_to_store(&repository, &descriptor, &elsewhere.store, &Silent))
        .map_err(crate::registry::shown)
        .unwrap();
    assert!(began.elapsed() > 3 * config.patience.idle);
    assert_eq!(elsewhere.store.read(&digest).unwrap().as_deref(), Some(layer.as_slice()));
    assert_eq!(registry.requests("GET").len(), 1);
}

#[test]
fn a_damaged_blob_never_arrives_and_leaves_the_cache() {
    let registry = registry(|_| {});
    let images = Images::new();
    let layer = vec![5; 900_000];
    let image = images.simple("app", &[&layer]);
    let path = images.store.blob_path(&image.layers[0].0);
    let mut damaged = layer.clone();
    damaged[450_000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &damaged).unwrap();
    let error = push(&registry, hurried(), &images, std::slice::from_ref(&image)).unwrap_err();
    assert!(error.contains("is damaged in the cache; it was removed, build again"), "{error}");
    assert!(!path.exists());
    assert_eq!(registry.tag("app", "v1"), None);
    let error = push(&registry, hurried(), &images, &[image]).unwrap_err();
    assert!(error.contains("is neither in the cache nor in a registry"), "{error}");
}
