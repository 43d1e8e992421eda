//! Pushing: what is sent, in which order, and what is not sent.

use std::collections::BTreeSet;
use std::time::Duration;

use cache::Blob;
use layers::{Digest, Platform};

use crate::registry::{Images, hurried, push, push_with, registry};
use crate::support::registry::{Act, Mounting, Registry, Response};
use imgbuild::observe::Silent;
use imgbuild::output::NamedImage;
use imgbuild::registry::{Ahead, Announced, Pushed, Registries, RegistryError, Supply, last_pushed};

const BOTH: [Platform; 2] = Platform::ALL;

#[test]
fn an_image_arrives_whole_and_its_tag_comes_last() {
    let registry = registry(|_| {});
    let images = Images::new();
    let image = images.image("app/one", &BOTH, &[b"first layer", b"second layer"]);
    let pushed = push(&registry, hurried(), &images, std::slice::from_ref(&image)).unwrap();
    let top = image.top().digest.to_string();
    assert_eq!(pushed[0].references[0].to_string(), format!("{}/app/one:v1@{top}", registry.host()));
    assert_eq!(registry.tag("app/one", "v1"), Some(top.clone()));
    let order: Vec<String> = registry.requests("PUT").iter().map(|it| it.line.replace("/v2/app/one/", "")).collect();
    let manifests: Vec<&String> = order.iter().skip_while(|line| line.contains("blobs")).collect();
    assert_eq!(order.len() - manifests.len(), 4, "two layers and two configurations: {order:?}");
    assert!(manifests[..2].iter().all(|line| !line.contains(&top)), "children first: {order:?}");
    assert_eq!(manifests[2..], ["PUT manifests/v1"], "the index comes by its tag");
}

#[test]
fn four_unchanged_images_need_one_request_a_manifest_and_one_a_tag_in_two_round_trips() {
    let registry = registry(|_| {});
    let images = Images::new();
    let named: Vec<_> =
        ["base", "core", "rag", "init"].map(|name| images.image(name, &BOTH, &[b"shared", name.as_bytes()])).into();
    push(&registry, hurried(), &images, &named).unwrap();
    registry.clear_log();
    registry.state().kind.latency = Duration::from_millis(50);
    let pushed = push(&registry, hurried(), &images, &named).unwrap();
    assert!(pushed.iter().all(|pushed| pushed.known));
    let mut lines: Vec<String> = registry.requests("").iter().map(|it| it.line.clone()).collect();
    lines.sort();
    let mut expected: Vec<String> = named
        .iter()
        .flat_map(|it| {
            [format!("HEAD /v2/{}/manifests/{}", it.name, it.top().digest), format!("PUT /v2/{}/manifests/v1", it.name)]
        })
        .collect();
    expected.sort();
    assert_eq!(lines, expected);
    assert_eq!(registry.round_trips(), 2);
}

#[test]
fn pushes_of_one_tag_at_once_end_with_one_of_the_images_whole() {
    let registry = registry(|kind| kind.latency = std::time::Duration::from_millis(2));
    let images = Images::new();
    let named: Vec<_> =
        (0..8).map(|at| images.image("app", &BOTH, &[b"shared", format!("own {at}").as_bytes()])).collect();
    let pushed: BTreeSet<String> = std::thread::scope(|scope| {
        // Each by a client of its own, as on machines of their own, and over one cache.
        let threads: Vec<_> = named
            .iter()
            .map(|image| scope.spawn(|| push(&registry, hurried(), &images, std::slice::from_ref(image)).unwrap()))
            .collect();
        threads.into_iter().map(|it| it.join().unwrap()[0].digest.to_string()).collect()
    });
    assert_eq!(pushed.len(), 8);
    assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
    assert!(pushed.contains(&registry.tag("app", "v1").unwrap()));
    // Every one of them is there by its digest, and pushing it again costs the tag alone: what was there last is looked for, too.
    for image in &named {
        registry.clear_log();
        push(&registry, hurried(), &images, std::slice::from_ref(image)).unwrap();
        assert_eq!(registry.tag("app", "v1"), Some(image.top().digest.to_string()));
        let asked: Vec<String> = registry.requests("").into_iter().map(|it| it.line).collect();
        assert_eq!(asked.iter().filter(|line| line.starts_with("HEAD /v2/app/manifests/")).count(), asked.len() - 1);
        assert!(asked.len() <= 3, "{asked:?}");
    }
}

#[test]
fn several_tags_cost_one_upload() {
    let registry = registry(|_| {});
    let images = Images::new();
    let image = images.simple("one", &[b"layer"]);
    let mut deliveries = crate::registry::deliveries(&registry.host(), std::slice::from_ref(&image), "v1");
    deliveries[0].tags = ["v1", "v1.2", "latest"].map(str::to_owned).into();
    let supply = Supply::of(std::slice::from_ref(&image), &images.store);
    let pushed = Registries::new(hurried()).push(&deliveries, &supply, &Silent).unwrap();
    assert_eq!(pushed[0].references.len(), 3);
    for tag in ["v1", "v1.2", "latest"] {
        assert_eq!(registry.check_tag("one", tag), Some(Ok(())), "{tag}");
    }
    assert!(registry.state().uploaded.values().all(|count| *count == 1));
}

#[test]
fn a_blob_that_images_share_is_uploaded_once_and_mounted_elsewhere() {
    for mounting in [Mounting::Works, Mounting::Referenced] {
        let registry = registry(|kind| kind.mounting = mounting);
        let images = Images::new();
        let shared = vec![7; 300_000];
        let named: Vec<_> =
            (0..20).map(|at| images.simple(&format!("app{at}"), &[&shared, format!("own {at}").as_bytes()])).collect();
        push(&registry, hurried(), &images, &named).unwrap();
        assert!(registry.state().uploaded.values().all(|count| *count == 1), "{mounting:?}");
        let mounted = registry.requests("POST").iter().filter(|it| it.status == 201).count();
        assert_eq!(mounted, 19, "{mounting:?}");
    }
}

/// Bytes of a layer that is told from others by its length.
fn layer(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * at % 251) as u8).collect()
}

#[test]
fn of_new_blobs_the_smallest_are_sent_unasked_and_others_asked_for_beside_the_manifest() {
    let registry = registry(|_| {});
    let images = Images::new();
    let old = layer(700_000);
    push(&registry, hurried(), &images, &[images.simple("app", &[&old])]).unwrap();
    registry.clear_log();
    registry.state().kind.latency = Duration::from_millis(100);
    let new = [2_000_000, 600_000, 300_000, 200_000].map(layer);
    let image = images.simple("app", &[&old, &new[0], &new[1], &new[2], &new[3]]);
    push(&registry, hurried(), &images, std::slice::from_ref(&image)).unwrap();
    assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
    // 500 kB and the configuration are below 1 MiB, and 600 kB more are not.
    let asked = registry.requests("HEAD /v2/app/blobs/");
    let lines: BTreeSet<String> = asked.iter().map(|it| it.line.clone()).collect();
    let head = |bytes: &[u8]| format!("HEAD /v2/app/blobs/{}", Digest::of(bytes));
    assert_eq!(lines, [head(&new[0]), head(&new[1])].into());
    let manifest = &registry.requests("HEAD /v2/app/manifests/")[0];
    assert!(asked.iter().all(|it| it.began < manifest.ended), "one trip");
    assert_eq!(registry.requests("PUT /v2/app/blobs/").len(), 5);
}

#[test]
fn what_was_seen_ahead_is_not_asked_again_and_an_edit_asks_nothing_else() {
    for is_gone in [false, true] {
        let registry = registry(|_| {});
        let images = Images::new();
        let old = layer(700_000);
        push(&registry, hurried(), &images, &[images.simple("app", &[&old])]).unwrap();
        if is_gone {
            registry.state().repos.clear();
        }
        registry.clear_log();
        let registries = Registries::new(hurried());
        let image = images.simple("app", &[&old, b"edited"]);
        let deliveries = crate::registry::deliveries(&registry.host(), std::slice::from_ref(&image), "v1");
        let repository = &deliveries[0].repository;
        let last = last_pushed(&images.store, repository);
        assert!(last.is_some());
        registries.may_push(&[(repository, Ahead { uploads: 2, last })].into()).unwrap();
        let begun = registry.requests("").len();
        assert_eq!((begun, registry.requests("POST").len(), registry.requests("HEAD").len()), (3, 2, 1));
        let supply = Supply::of(std::slice::from_ref(&image), &images.store);
        registries.push(&deliveries, &supply, &Silent).unwrap();
        assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
        let rest = registry.requests("").split_off(begun);
        let methods: Vec<&str> = rest.iter().map(|it| it.line.split(' ').next().unwrap()).collect();
        if is_gone {
            // Nothing that was believed to be there is.
            assert!(methods.contains(&"HEAD") && registry.requests("PUT /v2/app/blobs/").len() == 3, "{rest:?}");
        } else {
            assert_eq!(methods, ["PUT"; 3], "{rest:?}");
        }
    }
}

/// An image that was pushed, and one with a layer more that is not: its layer as a blob, and what pushes it.
struct Edited {
    registry: Registry,
    images: Images,
    image: NamedImage,
    layer: Blob,
    registries: Registries,
}

impl Edited {
    fn new() -> Edited {
        let (registry, images) = (registry(|_| {}), Images::new());
        let old = layer(700_000);
        push(&registry, hurried(), &images, &[images.simple("app", &[&old])]).unwrap();
        registry.clear_log();
        let new = layer(2_000_000);
        let image = images.simple("app", &[&old, &new]);
        let layer = Blob { digest: Digest::of(&new), size: new.len() as u64 };
        Edited { registry, images, image, layer, registries: Registries::new(hurried()) }
    }

    fn announced(&self) -> Announced {
        let deliveries = crate::registry::deliveries(&self.registry.host(), std::slice::from_ref(&self.image), "v1");
        self.registries.announce(&self.images.store, &deliveries[0].repository, self.layer).unwrap()
    }

    fn push(&self) -> Result<Vec<Pushed>, RegistryError> {
        let deliveries = crate::registry::deliveries(&self.registry.host(), std::slice::from_ref(&self.image), "v1");
        let supply = Supply::of(std::slice::from_ref(&self.image), &self.images.store);
        self.registries.push(&deliveries, &supply, &Silent)
    }

    /// The lines of requests, without what is random in them.
    fn lines(&self) -> Vec<String> {
        let line = |line: String| line.split(['?', ' ']).take(2).collect::<Vec<_>>().join(" ");
        self.registry.requests("").into_iter().map(|it| line(it.line)).collect()
    }
}

#[test]
fn a_layer_that_was_sent_ahead_is_not_sent_again() {
    for is_there in [false, true] {
        let edited = Edited::new();
        if is_there {
            // From another machine, which pushed this image.
            let others = Images::new();
            let same = others.simple("app", &[&layer(700_000), &layer(2_000_000)]);
            push(&edited.registry, hurried(), &others, &[same]).unwrap();
            edited.registry.clear_log();
        }
        edited.registries.send_ahead(edited.announced(), &edited.images.store, &Silent);
        let ahead = edited.lines();
        let head = format!("HEAD /v2/app/blobs/{}", edited.layer.digest);
        assert_eq!(ahead[0], head);
        assert_eq!(ahead.len(), if is_there { 1 } else { 3 }, "{ahead:?}");
        edited.push().unwrap();
        assert_eq!(edited.registry.check_tag("app", "v1"), Some(Ok(())));
        assert_eq!(edited.registry.state().uploaded[&edited.layer.digest.to_string()], 1);
        let rest = edited.lines().split_off(ahead.len());
        assert!(!rest.iter().any(|line| line.contains(&edited.layer.digest.to_string())), "{rest:?}");
        // What had to be sent is in no manifest there.
        let asked = rest.contains(&format!("HEAD /v2/app/manifests/{}", edited.image.top().digest));
        assert_eq!(asked, is_there, "{rest:?}");
        // It is remembered as any other.
        let again = edited.push().unwrap();
        assert!(again[0].known);
        let deliveries =
            crate::registry::deliveries(&edited.registry.host(), std::slice::from_ref(&edited.image), "v1");
        assert!(edited.registries.announce(&edited.images.store, &deliveries[0].repository, edited.layer).is_none());
    }
}

#[test]
fn a_layer_that_could_not_be_sent_ahead_is_sent_by_the_push() {
    for broken in ["refused", "damaged", "forgotten"] {
        let edited = Edited::new();
        let announced = edited.announced();
        let whole = std::fs::read(edited.images.store.blob_path(&edited.layer.digest)).unwrap();
        match broken {
            "refused" => {
                let refused = Act::Answer(Response::error(403, "DENIED", "not yet"));
                edited.registry.fail("PUT /v2/app/blobs/", 0, 1, refused);
                edited.registries.send_ahead(announced, &edited.images.store, &Silent);
            }
            "damaged" => {
                let path = edited.images.store.blob_path(&edited.layer.digest);
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, vec![0; whole.len()]).unwrap();
                edited.registries.send_ahead(announced, &edited.images.store, &Silent);
                std::fs::write(&path, whole).unwrap();
            }
            // No thread could be had.
            _ => drop(announced),
        }
        assert_eq!(edited.registry.state().uploaded.get(&edited.layer.digest.to_string()), None, "{broken}");
        edited.push().unwrap();
        assert_eq!(edited.registry.check_tag("app", "v1"), Some(Ok(())), "{broken}");
    }
}

#[test]
fn a_push_that_fails_ends_what_is_sent_ahead() {
    let edited = Edited::new();
    edited.registry.fail("HEAD /v2/app/manifests/", 0, 9, Act::Answer(Response::error(403, "DENIED", "not yours")));
    edited.registry.fail("PUT /v2/app/blobs/", 0, 9, Act::Stall(Duration::from_secs(600)));
    let announced = edited.announced();
    std::thread::scope(|scope| {
        scope.spawn(|| edited.registries.send_ahead(announced, &edited.images.store, &Silent));
        let error = edited.push().unwrap_err().to_string();
        assert!(error.contains("look for a manifest") && error.contains("403"), "{error}");
    });
}

#[test]
fn a_question_that_fails_does_not_wait_for_what_is_sent() {
    let registry = registry(|_| {});
    let images = Images::new();
    push(&registry, hurried(), &images, &[images.simple("app", &[b"old"])]).unwrap();
    registry.clear_log();
    registry.fail("HEAD /v2/app/manifests/", 0, 9, Act::Answer(Response::error(403, "DENIED", "not yours")));
    registry.fail("PUT /v2/app/blobs/", 0, 9, Act::Stall(Duration::from_secs(600)));
    let error = push(&registry, hurried(), &images, &[images.simple("app", &[b"new"])]).unwrap_err();
    assert!(error.contains("look for a manifest") && error.contains("403"), "{error}");
}

/// The memo remembers one image of a repository; another one is not taken to be new for ever.
#[test]
fn images_that_share_a_repository_are_sent_once() {
    let registry = registry(|_| {});
    let contents = [("a", layer(3_000_000), layer(60_000)), ("b", layer(3_000_001), layer(60_001))];
    let pushed = |images: &Images| {
        let named = contents.each_ref().map(|(name, large, small)| images.simple(name, &[large, small]));
        let mut deliveries = crate::registry::deliveries(&registry.host(), &named, "v1");
        for delivery in &mut deliveries {
            delivery.tags = vec![delivery.repository.path.clone()];
            delivery.repository.path = "shared".into();
        }
        registry.clear_log();
        Registries::new(hurried()).push(&deliveries, &Supply::of(&named, &images.store), &Silent).unwrap();
    };
    pushed(&Images::new());
    // On another machine, which finds them there.
    let images = Images::new();
    pushed(&images);
    pushed(&images);
    for _ in 0..2 {
        pushed(&images);
        let lines: Vec<String> = registry.requests("").iter().map(|it| it.line.clone()).collect();
        let sent = lines.iter().filter(|line| line.contains("/blobs/")).count();
        assert_eq!(sent, 0, "{lines:?}");
    }
}

#[test]
fn where_mounting_fails_blobs_are_uploaded() {
    for mounting in [401, 403, 404, 405, 400].map(Mounting::Status).into_iter().chain([Mounting::Never]) {
        let registry = registry(|kind| kind.mounting = mounting);
        let images = Images::new();
        let named = [images.simple("one", &[b"shared"]), images.simple("two", &[b"shared"])];
        push(&registry, hurried(), &images, &named).unwrap_or_else(|error| panic!("{mounting:?}: {error}"));
        let uploads: usize = registry.state().uploaded.values().sum();
        assert_eq!(uploads, 4, "{mounting:?}");
    }
}

#[test]
fn a_changed_layer_is_all_that_is_sent_and_sisters_mount_it() {
    let registry = registry(|_| {});
    let images = Images::new();
    let all = |changed: &'static [u8]| -> Vec<_> {
        let big = vec![1; 500_000];
        (0..5).map(|at| images.image(&format!("app{at}"), &BOTH, &[&big, changed])).collect()
    };
    push(&registry, hurried(), &images, &all(b"before")).unwrap();
    registry.clear_log();
    registry.state().uploaded.clear();
    push(&registry, hurried(), &images, &all(b"after")).unwrap();
    let state = registry.state();
    let layer = layers::Digest::of(b"after").to_string();
    assert_eq!(state.uploaded.get(&layer), Some(&1));
    assert_eq!(state.uploaded.len(), 1 + 10, "the layer, and two configurations of each image");
    let received: u64 = state.log.iter().map(|it| it.received).sum();
    assert!(received < 64 << 10, "{received}");
    // The memo spares the question for each old layer: none of them is asked for.
    let old = layers::Digest::of(&vec![1; 500_000]).to_string();
    assert!(!state.log.iter().any(|it| it.line.contains(&old)));
}

#[test]
fn a_memo_that_is_no_longer_true_is_forgotten() {
    let registry = registry(|_| {});
    let images = Images::new();
    push(&registry, hurried(), &images, &[images.simple("app", &[b"old", b"one"])]).unwrap();
    // The registry is emptied behind our back.
    registry.state().repos.clear();
    registry.state().blobs.clear();
    push(&registry, hurried(), &images, &[images.simple("app", &[b"old", b"two"])]).unwrap();
    assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
    // It still has the manifest that the memo was written for, and not its blobs.
    let mut state = registry.state();
    let old = layers::Digest::of(b"old").to_string();
    state.repos.get_mut("app").unwrap().blobs.remove(&old);
    state.blobs.remove(&old);
    state.repos.get_mut("app").unwrap().tags.clear();
    drop(state);
    push(&registry, hurried(), &images, &[images.simple("app", &[b"old", b"three"])]).unwrap();
    assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
}

#[test]
fn a_dry_run_asks_and_sends_nothing() {
    use imgbuild::registry::Act::{Keep, Mount, Send};
    let registry = registry(|_| {});
    let images = Images::new();
    let old = images.simple("one", &[b"shared"]);
    push(&registry, hurried(), &images, &[old]).unwrap();
    registry.clear_log();
    let named = [images.simple("one", &[b"shared", b"new"]), images.simple("two", &[b"shared", b"new"])];
    let deliveries = crate::registry::deliveries(&registry.host(), &named, "v2");
    let supply = Supply::of(&named, &images.store);
    let planned = Registries::new(hurried()).plan_push(&deliveries, &supply, &Silent).unwrap();
    assert!(registry.requests("").iter().all(|it| it.line.starts_with("HEAD")), "{:?}", registry.requests(""));
    let of = |path: &str, bytes: &[u8]| {
        let digest = layers::Digest::of(bytes).into();
        planned.iter().find(|it| it.repository.path == path && it.digest == digest).map(|it| it.act.clone())
    };
    assert_eq!(of("one", b"shared"), Some(Keep));
    assert_eq!(of("one", b"new"), Some(Send));
    assert_eq!(of("two", b"shared"), Some(Mount("one".into())));
    assert_eq!(of("two", b"new"), Some(Mount("one".into())));
    assert_eq!(registry.tag("one", "v2"), None);
}

#[test]
fn one_client_pushes_many_times() {
    let registry = registry(|_| {});
    let images = Images::new();
    let registries = Registries::new(hurried());
    for tag in ["v1", "v2"] {
        push_with(&registries, &registry, &images, &[images.simple("app", &[tag.as_bytes()])], tag).unwrap();
    }
    assert_eq!(registry.check_tag("app", "v1"), Some(Ok(())));
    assert_eq!(registry.check_tag("app", "v2"), Some(Ok(())));
}
