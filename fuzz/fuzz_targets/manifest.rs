//! Manifests and indexes of registries: one or the other, and what is chosen is what is listed.
#![no_main]

use imgbuild::registry::document::{Choice, choose, read};
use imgbuild_fuzz::{parts, text};
use layers::Platform;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [media_type, body] = parts(data, b'\n');
    let Ok(said) = read(body, text(media_type)) else { return };
    let json: serde_json::Value = serde_json::from_slice(body).expect("it was read");
    assert!(!(json["manifests"].is_array() && (json["layers"].is_array() || json["config"].is_object())));
    assert_eq!(said.is_index, json["manifests"].is_array());
    assert!(!said.is_index || said.blobs.is_empty());
    assert!(said.is_index || said.manifests.is_empty());
    assert!(!said.has_config || !said.blobs.is_empty());
    for descriptor in said.manifests.iter().chain(&said.blobs) {
        let text = serde_json::to_string(descriptor).expect("a descriptor is JSON");
        assert_eq!(
            &serde_json::from_str::<imgbuild::registry::document::Descriptor>(&text).expect("reads"),
            descriptor
        );
        if let Some(bytes) = descriptor.embedded().expect("it was checked") {
            assert!(descriptor.digest.fits(&bytes) && bytes.len() as u64 == descriptor.size);
        }
    }
    for platform in Platform::ALL {
        for depth in 0..6 {
            match choose(&said, platform, depth) {
                Ok(Choice::Image(found)) => {
                    assert!(said.manifests.contains(&found));
                    let offered = found.platform.as_ref().expect("it says its platform");
                    assert_eq!(offered["architecture"], platform.architecture());
                    assert_eq!(offered["os"], "linux");
                }
                Ok(Choice::Deeper(found)) => {
                    assert!(depth < 4 && !found.is_empty());
                    assert!(found.iter().all(|it| said.manifests.contains(it) && it.is_manifest()));
                }
                Err(why) => assert!(!why.is_empty()),
            }
        }
    }
});
