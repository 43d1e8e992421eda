//! Reading from registries that fail, lie and are attacked.

use imgbuild::observe::Silent;
use imgbuild::registry::document::Descriptor;
use imgbuild::registry::{ClientConfig, Reference, Registries, Repository};
use layers::{Digest, Platform};
use serde_json::{Value, json};

use crate::registry::{Images, hurried, push, registry};
use crate::support::registry::{Act, Registry, Response};

const MANIFEST: &str = layers::oci::MANIFEST;
const INDEX: &str = layers::oci::INDEX;

/// Puts a manifest into a fake without asking it whether it likes it.
fn plant(registry: &Registry, media_type: &str, document: &Value, tag: &str) -> Digest {
    let bytes = document.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    let mut state = registry.state();
    let repo = state.repos.entry("app".into()).or_default();
    repo.manifests.insert(digest.to_string(), (media_type.to_owned(), bytes));
    repo.tags.insert(tag.to_owned(), digest.to_string());
    digest
}

fn reference(registry: &Registry, tag: &str) -> Reference {
    Repository { registry: registry.host(), path: "app".into() }.tagged(tag)
}

fn image(registry: &Registry, tag: &str, platform: Platform) -> Result<String, String> {
    let found = Registries::new(hurried()).image(&reference(registry, tag), platform);
    found.map(|found| found.manifest.digest.to_string()).map_err(crate::registry::shown)
}

/// A registry with an image for both platforms as `app:v1`.
fn filled() -> (Registry, Images, layers::oci::Document, Vec<layers::oci::BuiltImage>) {
    let registry = registry(|_| {});
    let images = Images::new();
    let image = images.image("app", &Platform::ALL, &[b"layer"]);
    push(&registry, hurried(), &images, std::slice::from_ref(&image)).unwrap();
    let top = image.top().clone();
    (registry, images, top, image.platforms)
}

#[test]
fn the_image_of_a_platform_is_found_and_its_configuration_kept_byte_for_byte() {
    let (registry, _, top, built) = filled();
    for (platform, built) in Platform::ALL.iter().zip(&built) {
        let found = Registries::new(hurried()).image(&reference(&registry, "v1"), *platform).unwrap();
        assert_eq!(found.top.digest.sha256(), Some(top.digest));
        assert_eq!(found.manifest.bytes, built.manifest.bytes);
        assert_eq!(found.config, built.config.bytes);
    }
    assert!(
        registry.requests("GET").iter().all(|it| !it.line.contains(&Digest::of(b"layer").to_string())),
        "no layer is read"
    );
}

#[test]
fn manifests_that_lie_are_refused() {
    let (registry, _, _, built) = filled();
    let good: Value = serde_json::from_slice(&built[0].manifest.bytes).unwrap();
    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        changed
    };
    let child = |document: &Value, size: usize| json!({"mediaType": MANIFEST, "digest": Digest::of(document.to_string().as_bytes()), "size": size, "platform": {"os": "linux", "architecture": "amd64"}});
    let length = good.to_string().len();
    let index = |manifests: Value| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    plant(&registry, MANIFEST, &good, "good");
    for (name, media_type, document, said) in [
        ("both", MANIFEST, with("manifests", json!([])), "an image and an index at once"),
        ("type", INDEX, with("annotations", json!({"a": "b"})), "it was sent as"),
        (
            "digest",
            MANIFEST,
            with("config", json!({"mediaType": "c", "digest": "sha256:../../x", "size": 1})),
            "is not a digest",
        ),
        ("size", INDEX, index(json!([child(&good, length + 1)])), "its index says"),
        ("huge", INDEX, index(json!([child(&good, 1 << 40)])), "it is said to have"),
        ("no-config", MANIFEST, json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}), "it is no image"),
        ("no-platform", INDEX, index(json!([])), "it has no image for linux/amd64"),
        (
            "data",
            MANIFEST,
            with("config", json!({"mediaType": "c", "digest": Digest::of(b"x"), "size": 1, "data": "eQ=="})),
            "is something else",
        ),
        (
            "config-huge",
            MANIFEST,
            with("config", json!({"mediaType": "c", "digest": Digest::of(b"x"), "size": 1_u64 << 40})),
            "it is said to have",
        ),
    ] {
        plant(&registry, media_type, &document, name);
        let error = image(&registry, name, Platform::Amd64).unwrap_err();
        assert!(error.contains(said), "{name}: {error}");
    }
    plant(&registry, INDEX, &index(json!([child(&good, length)])), "fine");
    assert_eq!(image(&registry, "fine", Platform::Amd64), Ok(Digest::of(good.to_string().as_bytes()).to_string()));
    // An index that contains itself cannot exist; one that is nested too deeply can.
    let mut inner = index(json!([child(&good, length)]));
    for depth in 0..6 {
        let digest = plant(&registry, INDEX, &inner, &format!("deep{depth}"));
        inner = index(json!([{"mediaType": INDEX, "digest": digest, "size": inner.to_string().len()}]));
    }
    assert!(image(&registry, "deep1", Platform::Amd64).is_ok());
    let error = image(&registry, "deep5", Platform::Amd64).unwrap_err();
    assert!(error.contains("too deeply"), "{error}");
}

#[test]
fn answers_that_break_or_are_something_else() {
    for (name, text, act, said) in [
        ("a manifest cut short", "GET /v2/app/manifests", Act::Cut(20), ""),
        ("a manifest garbled", "GET /v2/app/manifests", Act::Garble, "sent something else for sha256:"),
        (
            "a manifest of another digest",
            "GET /v2/app/manifests",
            Act::Headers(vec![("Docker-Content-Digest", Digest::of(b"other").to_string())]),
            "hash to something else",
        ),
        (
            "a manifest too large",
            "GET /v2/app/manifests",
            Act::Answer(Response::new(200).body(vec![b' '; 17 << 20])),
            "it is larger than",
        ),
        (
            "a manifest that is HTML",
            "GET /v2/app/manifests",
            Act::Answer(Response::new(200).body("<html>")),
            "it is not JSON",
        ),
        ("a configuration garbled", "GET /v2/app/blobs", Act::Garble, "its digest is"),
        ("a configuration cut short", "GET /v2/app/blobs", Act::Cut(20), ""),
        (
            "a configuration too long",
            "GET /v2/app/blobs",
            Act::Answer(Response::new(200).body(vec![b' '; 10_000])),
            "it is longer than the",
        ),
        (
            "no manifest",
            "GET /v2/app/manifests",
            Act::Answer(Response::error(404, "MANIFEST_UNKNOWN", "x")),
            "has no image",
        ),
        (
            "denied",
            "GET /v2/app/manifests",
            Act::Answer(Response::error(403, "DENIED", "x")),
            "refuses to read a manifest",
        ),
        ("unavailable", "GET /v2/app/manifests", Act::Answer(Response::new(503)), ""),
    ] {
        let (registry, ..) = filled();
        registry.fail(text, 0, 1, act);
        match (said, image(&registry, "v1", Platform::Amd64)) {
            ("", found) => drop(found.unwrap_or_else(|error| panic!("{name}: {error}"))),
            (said, Err(error)) => assert!(error.contains(said), "{name}: {error}"),
            (_, Ok(_)) => panic!("{name}: succeeded"),
        }
    }
}

#[test]
fn a_blob_that_breaks_off_and_begins_anew_for_ever_is_given_up() {
    let registry = registry(|kind| kind.ranges = false);
    let images = Images::new();
    let layer = vec![7; 100_000];
    push(&registry, hurried(), &images, &[images.simple("app", &[&layer])]).unwrap();
    registry.clear_log();
    registry.fail("GET /v2/app/blobs", 0, 1000, Act::Cut(60_000));
    let elsewhere = Images::new();
    let registries = Registries::new(hurried());
    let repository = Repository { registry: registry.host(), path: "app".into() };
    let wanted = descriptor(&layer);
    let read = registries.client().blob_to_store(&repository, &wanted, &elsewhere.store, &Silent);
    let error = registries.wait(read).map_err(crate::registry::shown).unwrap_err();
    assert!(error.contains("gave up after 4 failures in a row"), "{error}");
    assert!(registry.requests("GET").len() < 10, "{}", registry.requests("GET").len());
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    serde_json::from_value(json!({"mediaType": "x", "digest": Digest::of(bytes), "size": bytes.len()})).unwrap()
}

#[test]
fn a_blob_is_resumed_verified_and_never_visible_before() {
    let layer: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let fetch = |registry: &Registry, images: &Images, config: ClientConfig| {
        let registries = Registries::new(config);
        let repository = reference(registry, "v1").repository;
        let wanted = descriptor(&layer);
        let done = registries.wait(registries.client().blob_to_store(&repository, &wanted, &images.store, &Silent));
        done.map_err(crate::registry::shown)
    };
    let filled = |ranges: bool| {
        let registry = registry(|kind| kind.ranges = ranges);
        let images = Images::new();
        push(&registry, hurried(), &images, &[images.simple("app", &[&layer])]).unwrap();
        registry
    };
    for ranges in [true, false] {
        let (registry, images) = (filled(ranges), Images::new());
        registry.fail("GET /v2/app/blobs", 0, 2, Act::Cut(1_000_000));
        fetch(&registry, &images, hurried()).unwrap();
        assert!(images.store.verify(&Digest::of(&layer)).unwrap());
        let sent: u64 = registry.requests("GET /v2/app/blobs").iter().map(|it| it.sent).sum();
        assert_eq!(sent, if ranges { 3_000_000 } else { 5_000_000 }, "ranges: {ranges}");
    }
    // What one process left behind, the next one goes on with.
    let (registry, images) = (filled(true), Images::new());
    registry.fail("GET /v2/app/blobs", 0, 1, Act::Cut(2_000_000));
    registry.fail("GET /v2/app/blobs", 0, 9, Act::Answer(Response::new(403)));
    fetch(&registry, &images, hurried()).unwrap_err();
    assert_eq!(images.store.has(&Digest::of(&layer)).unwrap(), None);
    registry.state().log.clear();
    let registry2 = filled(true);
    fetch(&registry2, &images, hurried()).unwrap();
    assert_eq!(registry2.requests("GET /v2/app/blobs").iter().map(|it| it.sent).sum::<u64>(), 1_000_000);
    // Wrong bytes are thrown away.
    let (registry, images) = (filled(true), Images::new());
    registry.fail("GET /v2/app/blobs", 0, 9, Act::Garble);
    let error = fetch(&registry, &images, hurried()).unwrap_err();
    assert!(error.contains("its digest is"), "{error}");
    assert_eq!(images.store.has(&Digest::of(&layer)).unwrap(), None);
    // A redirect to a storage service, which learns no secret.
    let (home, storage) =
        (crate::registry::registry(|kind| kind.auth = crate::support::registry::Auth::Basic), filled(true));
    let images = Images::new();
    push(&home, crate::registry::known_to(&home), &images, &[images.simple("app", &[&layer])]).unwrap();
    home.state().kind.blobs_at = Some(format!("http://{}", storage.host()));
    let images = Images::new();
    fetch(&home, &images, crate::registry::known_to(&home)).unwrap();
    assert!(storage.requests("GET").iter().all(|it| it.authorization.is_none()));
    assert!(!storage.requests("GET").is_empty());
}

#[test]
fn mirrors_are_asked_by_digest_and_passed_over_when_they_lie() {
    let (origin, _, top, _) = filled();
    let (mirror, ..) = filled();
    let mirrored = |mirror: &Registry| {
        let mirrors = [(origin.host(), vec![mirror.host()])].into();
        Registries::new(ClientConfig { mirrors, ..hurried() })
    };
    let pinned = reference(&origin, "v1").pinned(top.digest.into());
    origin.clear_log();
    mirror.clear_log();
    mirrored(&mirror).image(&pinned, Platform::Amd64).unwrap();
    assert!(origin.requests("").is_empty(), "everything came from the mirror");
    // What a tag means only the registry itself knows.
    mirrored(&mirror).manifest(&reference(&origin, "v1")).unwrap();
    assert_eq!(origin.requests("GET").len(), 1);
    mirror.fail("GET", 0, 99, Act::Garble);
    mirrored(&mirror).image(&pinned, Platform::Amd64).unwrap();
    let dead = registry(|_| {});
    mirrored(&dead).image(&pinned, Platform::Amd64).unwrap();
}

#[test]
fn a_tag_that_moves_is_read_whole_as_one_or_the_other() {
    let (registry, images, first, _) = filled();
    let second = images.image("app", &Platform::ALL, &[b"another layer"]);
    // Between the question and the answer the tag moves; what is read is what its own digest says.
    let glimpsed = Registries::new(hurried()).glimpse(&reference(&registry, "v1")).unwrap().unwrap();
    assert_eq!(glimpsed.digest.and_then(|it| it.sha256()), Some(first.digest));
    push(&registry, hurried(), &images, std::slice::from_ref(&second)).unwrap();
    let found = Registries::new(hurried()).image(&reference(&registry, "v1"), Platform::Amd64).unwrap();
    assert_eq!(found.top.digest.sha256(), Some(second.top().digest));
}
