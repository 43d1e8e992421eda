//! Artifacts about images, in registries with the API and without.

use imgbuild::registry::document::Document;
use imgbuild::registry::{Registries, Repository};
use layers::Digest;
use serde_json::json;

use crate::registry::{Images, hurried, push, registry};
use crate::support::registry::{Act, Registry, Response};

/// An artifact of a kind about `subject`, with nothing but annotations.
fn artifact(registry: &Registry, kind: &str, number: usize, subject: Digest) -> Document {
    let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2});
    {
        let mut state = registry.state();
        state.blobs.insert(Digest::of(b"{}").to_string(), b"{}".to_vec().into());
        state.repos.entry("app".into()).or_default().blobs.insert(Digest::of(b"{}").to_string());
    }
    let document = json!({
        "schemaVersion": 2,
        "mediaType": layers::oci::MANIFEST,
        "artifactType": kind,
        "config": empty,
        "layers": [empty],
        "subject": {"mediaType": layers::oci::MANIFEST, "digest": subject, "size": 1},
        "annotations": {"number": number.to_string()},
    });
    let bytes = document.to_string().into_bytes();
    Document { media_type: layers::oci::MANIFEST.into(), digest: Digest::of(&bytes).into(), bytes: bytes.into() }
}

fn app(registry: &Registry) -> Repository {
    Repository { registry: registry.host(), path: "app".into() }
}

fn filled(referrers: bool) -> (Registry, Digest) {
    let registry = registry(|kind| kind.referrers = referrers);
    let images = Images::new();
    let image = images.simple("app", &[b"layer"]);
    push(&registry, hurried(), &images, std::slice::from_ref(&image)).unwrap();
    (registry, image.top().digest)
}

fn kinds(registry: &Registry, subject: Digest, kind: Option<&str>) -> Vec<String> {
    let registries = Registries::new(hurried());
    let found = registries.wait(registries.client().referrers(&app(registry), &subject.into(), kind)).unwrap();
    let mut kinds: Vec<String> = found
        .iter()
        .map(|it| format!("{} {}", it.artifact_type.clone().unwrap_or_default(), it.annotations["number"]))
        .collect();
    kinds.sort();
    kinds
}

#[test]
fn artifacts_are_attached_and_listed_with_the_api_and_by_the_tag() {
    for referrers in [true, false] {
        let (registry, subject) = filled(referrers);
        let registries = Registries::new(hurried());
        assert_eq!(kinds(&registry, subject, None), Vec::<String>::new());
        for (number, kind) in ["x/sbom", "x/sig", "x/sig"].into_iter().enumerate() {
            let document = artifact(&registry, kind, number, subject);
            registries.wait(registries.client().attach(&app(&registry), &document)).unwrap();
            // Once more is no second entry.
            registries.wait(registries.client().attach(&app(&registry), &document)).unwrap();
        }
        assert_eq!(kinds(&registry, subject, None), ["x/sbom 0", "x/sig 1", "x/sig 2"], "API: {referrers}");
        assert_eq!(kinds(&registry, subject, Some("x/sig")), ["x/sig 1", "x/sig 2"], "API: {referrers}");
        let tag = format!("sha256-{}", subject.hex());
        assert_eq!(registry.tag("app", &tag).is_some(), !referrers);
    }
}

#[test]
fn a_registry_that_has_the_api_and_does_not_say_so_is_believed() {
    let (registry, subject) = filled(true);
    registry.fail("PUT /v2/app/manifests", 0, 1, Act::Headers(vec![("OCI-Subject", String::new())]));
    let registries = Registries::new(hurried());
    registries.wait(registries.client().attach(&app(&registry), &artifact(&registry, "x/sig", 0, subject))).unwrap();
    assert_eq!(registry.tag("app", &format!("sha256-{}", subject.hex())), None);
    assert_eq!(kinds(&registry, subject, None), ["x/sig 0"]);
}

#[test]
fn a_tag_that_holds_something_else_is_left_alone() {
    let (registry, subject) = filled(false);
    let tag = format!("sha256-{}", subject.hex());
    registry.state().repos.get_mut("app").unwrap().tags.insert(tag.clone(), subject.to_string());
    let registries = Registries::new(hurried());
    let error = registries.wait(registries.client().attach(&app(&registry), &artifact(&registry, "x/sig", 0, subject)));
    let error = crate::registry::shown(error.unwrap_err());
    assert!(error.contains("it is no index"), "{error}");
    assert_eq!(registry.tag("app", &tag), Some(subject.to_string()));
}

#[test]
fn no_entry_is_lost_where_many_write_at_once() {
    let (registry, subject) = filled(false);
    registry.state().kind.latency = std::time::Duration::from_millis(5);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let registry = registry.clone();
            scope.spawn(move || {
                // Each a client of its own, as on eight machines.
                let registries = Registries::new(hurried());
                let document = artifact(&registry, "x/sig", number, subject);
                registries.wait(registries.client().attach(&app(&registry), &document)).unwrap();
            });
        }
    });
    let expected: Vec<String> = (0..8).map(|number| format!("x/sig {number}")).collect();
    assert_eq!(kinds(&registry, subject, None), expected);
}

#[test]
fn lists_come_in_pages_which_may_not_lead_elsewhere() {
    let (registry, subject) = filled(true);
    let registries = Registries::new(hurried());
    for number in 0..2 {
        registries
            .wait(registries.client().attach(&app(&registry), &artifact(&registry, "x/sig", number, subject)))
            .unwrap();
    }
    let link = format!("</v2/app/referrers/{subject}?page=2>; rel=\"next\"");
    registry.fail_if(
        |it| it.path.contains("/referrers/") && it.query.is_empty(),
        0,
        1,
        Act::Headers(vec![("Link", link)]),
    );
    assert_eq!(kinds(&registry, subject, None).len(), 4, "both pages of the fake are the whole list");
    registry.fail("/referrers/", 0, 1, Act::Headers(vec![("Link", "<ftp://elsewhere/x>; rel=\"next\"".into())]));
    let listed = registries.wait(registries.client().referrers(&app(&registry), &subject.into(), None));
    assert!(crate::registry::shown(listed.unwrap_err()).contains("which is refused"));
    registry.fail("/referrers/", 0, 9, Act::Answer(Response::error(403, "DENIED", "no")));
    let listed = registries.wait(registries.client().referrers(&app(&registry), &subject.into(), None));
    assert!(crate::registry::shown(listed.unwrap_err()).contains("refuses to list referrers"));
}
