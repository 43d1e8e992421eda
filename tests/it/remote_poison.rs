//! Records of caches elsewhere that lie: whole, of the right shape, and about other layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::remote::{KEYS, Project, SIGNING, key};
use crate::remote_faults::{Elsewhere, PATIENCE};
use crate::support::layout::sha256;

const BOTH: [&str; 2] = ["--platform", "linux/amd64,linux/arm64"];
const REPOSITORY: &str = "team/cache";
const ANNOTATION: &str = "org.imgbuild.cache";
const NAMES: &str = "/bucket/team/imgbuild-cache-v1/names/";

impl Elsewhere {
    /// The documents by their names.
    fn documents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.server.state();
        let in_bucket =
            state.objects.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(NAMES)?, bytes.clone())));
        let repository = state.repos.get(REPOSITORY);
        let tags =
            repository.into_iter().flat_map(|it| it.tags.iter().map(|(tag, digest)| (tag, &it.manifests[digest].1)));
        let in_repository = tags.filter(|(tag, _)| tag.starts_with("image-") || tag.starts_with("latest-"));
        let unpacked = in_repository.map(|(tag, manifest)| {
            let manifest: Value = serde_json::from_slice(manifest).unwrap();
            let packed = STANDARD.decode(manifest["annotations"][ANNOTATION].as_str().unwrap()).unwrap();
            let mut bytes = Vec::new();
            std::io::copy(&mut flate2::read::MultiGzDecoder::new(packed.as_slice()), &mut bytes).unwrap();
            (tag.as_str(), bytes)
        });
        in_bucket.chain(unpacked).map(|(name, bytes)| (name.to_owned(), bytes)).collect()
    }

    /// Puts a document in place of another, as whoever may write there can.
    fn put(&self, name: &str, document: &[u8]) {
        let mut state = self.server.state();
        let Some(repository) = state.repos.get_mut(REPOSITORY) else {
            state.objects.insert(format!("{NAMES}{name}"), document.to_vec());
            return;
        };
        let (media_type, manifest) = repository.manifests[&repository.tags[name]].clone();
        let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["annotations"][ANNOTATION] = STANDARD.encode(layers::encode::gzip(document)).into();
        let manifest = manifest.to_string().into_bytes();
        let digest = format!("sha256:{}", sha256(&manifest));
        repository.manifests.insert(digest.clone(), (media_type, manifest));
        repository.tags.insert(name.to_owned(), digest);
    }
}

/// What a document says, changed; its signatures stay as they are.
fn changed(document: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let text = std::str::from_utf8(document).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut payload: Value = serde_json::from_str(&lines[1]).unwrap();
    change(&mut payload);
    lines[1] = payload.to_string();
    lines.join("\n").into_bytes().into_iter().chain(*b"\n").collect()
}

fn layers_of(document: &[u8]) -> Vec<Value> {
    let mut layers = Value::Null;
    changed(document, |payload| layers = payload["image"]["layers"].clone());
    layers.as_array().unwrap().clone()
}

/// The document of image `one`, which has three layers, with a layer of `two` in place of its last.
fn poison(documents: &BTreeMap<String, Vec<u8>>) -> (String, Vec<u8>) {
    let image = |count: usize| {
        let is_it =
            |(name, document): &(&String, &Vec<u8>)| name.starts_with("image-") && layers_of(document).len() == count;
        documents.iter().find(is_it).unwrap()
    };
    let ((name, document), (_, other)) = (image(3), image(1));
    let poisoned = changed(document, |payload| payload["image"]["layers"][2] = layers_of(other)[0].clone());
    (name.clone(), poisoned)
}

#[test]
fn a_record_of_another_layer_is_refused_unless_its_store_is_trusted_by_name() {
    for elsewhere in [Elsewhere::repository(), Elsewhere::bucket()] {
        let project = Project::new();
        let first = project.machine();
        let (_, public) = key(&first, "key");
        let right = first.build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[])).0;
        let (name, document) = poison(&elsewhere.documents());
        elsewhere.put(&name, &document);
        let from = ["--cache-from", &elsewhere.store];
        for settings in [elsewhere.settings(&[]), elsewhere.settings(&[(KEYS, &public)])] {
            let (found, said, asked) = project.machine().build(&from, &settings);
            assert_eq!(found, right, "{said}");
            assert!(asked > 0 && said.contains("signed by no key") && said.contains(&elsewhere.store), "{said}");
        }
        // No digest tells: who trusts a store by name believes whoever writes there.
        let (found, said, _) = project.machine().build(&from, &elsewhere.trusting());
        assert_eq!(found["two"], right["two"], "{said}");
        assert_ne!(found["one"], right["one"], "{said}");
    }
}

#[test]
fn a_record_of_another_layer_has_no_signature() {
    for elsewhere in [Elsewhere::repository(), Elsewhere::bucket()] {
        let project = Project::new();
        let first = project.machine();
        let ((secret, public), (other, _)) = (key(&first, "key"), key(&first, "other"));
        let right = first.build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[(SIGNING, &secret)])).0;
        let documents = elsewhere.documents();
        let (name, poisoned) = poison(&documents);
        // Records that are exchanged, the same under the signature of a key that nobody trusts, and none at all.
        let swapped = changed(&documents[&name], |payload| {
            let layers = payload["image"]["layers"].as_array_mut().unwrap();
            layers.swap(1, 2);
        });
        let unsigned: Vec<u8> = poisoned.split_inclusive(|byte| *byte == b'\n').take(2).flatten().copied().collect();
        let signer: imgbuild::remote::SigningKey = std::fs::read_to_string(&other).unwrap().parse().unwrap();
        let payload = serde_json::from_slice(poisoned.split(|byte| *byte == b'\n').nth(1).unwrap()).unwrap();
        let by_other = imgbuild::remote::Answer::write(&payload, Some(&signer));
        for document in [poisoned, swapped, unsigned, by_other] {
            elsewhere.put(&name, &document);
            let settings = elsewhere.settings(&[(KEYS, &public)]);
            let (found, said, _) = project.machine().build(&["--cache-from", &elsewhere.store], &settings);
            assert_eq!(found, right, "{said}");
            assert!(said.contains("signed by no key") && said.contains(&elsewhere.store), "{said}");
        }
        elsewhere.put(&name, &documents[&name]);
        let settings = elsewhere.settings(&[(KEYS, &public)]);
        let (found, said, asked) = project.machine().build(&["--cache-from", &elsewhere.store], &settings);
        assert_eq!((found, asked), (right, 0), "{said}");
    }
}

#[test]
fn what_is_signed_for_one_image_or_platform_is_not_believed_of_another() {
    for elsewhere in [Elsewhere::repository(), Elsewhere::bucket()] {
        let project = Project::new();
        let first = project.machine();
        let (secret, public) = key(&first, "key");
        let settings = elsewhere.settings(&[(SIGNING, &secret)]);
        let right = first.build(&[&BOTH[..], &["--cache-to", &elsewhere.store]].concat(), &settings).0;
        let documents = elsewhere.documents();
        let images: Vec<&String> = documents.keys().filter(|name| name.starts_with("image-")).collect();
        assert_eq!((images.len(), documents.len()), (4, 8));
        for name in &images {
            for other in images.iter().filter(|other| other != &name) {
                elsewhere.put(name, &documents[*other]);
                let settings = elsewhere.settings(&[(KEYS, &public)]);
                let words = [&BOTH[..], &["--cache-from", &elsewhere.store]].concat();
                let (found, said, _) = project.machine().build(&words, &settings);
                assert_eq!(found, right, "{said}");
                assert!(said.contains("belongs to another name") && said.contains(&elsewhere.store), "{said}");
            }
            elsewhere.put(name, &documents[*name]);
        }
    }
}

#[test]
fn what_is_signed_is_not_believed_of_another_images_last_build() {
    for elsewhere in [Elsewhere::repository(), Elsewhere::bucket()] {
        let project = Project::new();
        let (first, plain) = (project.machine(), project.machine());
        let (secret, public) = key(&first, "key");
        let settings = elsewhere.settings(&[(SIGNING, &secret)]);
        first.build(&[&BOTH[..], &["--cache-to", &elsewhere.store]].concat(), &settings);
        // It is asked for where an image changed.
        plain.sandbox.write("src/main", "changed");
        let right = plain.build(&BOTH, &[]).0;
        let documents = elsewhere.documents();
        // Of image `one`, which changed.
        let is_asked =
            |(name, document): &(&String, &Vec<u8>)| name.starts_with("latest-") && layers_of(document).len() == 3;
        let asked: Vec<_> = documents.iter().filter(is_asked).collect();
        assert_eq!(asked.len(), 2);
        for (name, document) in asked {
            for other in documents.values().filter(|other| *other != document).collect::<BTreeSet<_>>() {
                elsewhere.put(name, other);
                let machine = project.machine();
                machine.sandbox.write("src/main", "changed");
                let settings = elsewhere.settings(&[(KEYS, &public)]);
                let words = [&BOTH[..], &["--cache-from", &elsewhere.store]].concat();
                let (found, said, _) = machine.build(&words, &settings);
                assert_eq!(found, right, "{said}");
                assert!(said.contains("belongs to another name") && said.contains(&elsewhere.store), "{said}");
            }
            elsewhere.put(name, document);
        }
    }
}

#[test]
fn a_blob_in_place_of_another_is_no_layer() {
    for elsewhere in [Elsewhere::repository(), Elsewhere::bucket()] {
        let project = Project::new();
        let right = project.machine().build(&["--cache-to", &elsewhere.store], &elsewhere.settings(&[])).0;
        {
            // Each gives its place to the next.
            let mut state = elsewhere.server.state();
            let is_blob = |(path, _): &(&String, &Vec<u8>)| path.contains("/blobs/");
            let objects: Vec<_> =
                state.objects.iter().filter(is_blob).map(|(at, it)| (at.clone(), it.clone())).collect();
            let places = objects.iter().cycle().skip(1);
            state
                .objects
                .extend(objects.iter().zip(places).map(|((_, bytes), (place, _))| (place.clone(), bytes.clone())));
            let blobs: Vec<(String, Arc<Vec<u8>>)> = state.blobs.clone().into_iter().collect();
            let places = blobs.iter().cycle().skip(1);
            state.blobs.extend(blobs.iter().zip(places).map(|((_, bytes), (place, _))| (place.clone(), bytes.clone())));
        }
        let (found, said, asked) = project
            .machine()
            .build(&["--cache-from", &elsewhere.store], &[&elsewhere.trusting()[..], &[PATIENCE]].concat());
        assert_eq!(found, right, "{said}");
        assert!(asked > 0 && said.contains(&elsewhere.store), "{said}");
    }
}
