//! Configuration and manifest of a base image: what is inherited stays byte for byte, and the layers agree.
#![no_main]

use imgbuild::engine::base::of_documents;
use imgbuild_fuzz::parts;
use layers::oci::{ImageParts, LayerPart};
use layers::written::{Members, elements};
use layers::{DiffId, Digest, ImageConfig, Platform};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let [manifest, config] = parts(data, 0);
    for platform in Platform::ALL {
        let Ok(base) = of_documents("base", Digest::of(manifest), manifest, config, platform) else { continue };
        let before = base.parts.clone();
        let config = ImageConfig {
            env: vec![("NAME".into(), "value".into())],
            cmd: Some(vec!["run".into()]),
            ..ImageConfig::default()
        };
        let layer = LayerPart {
            digest: Digest::of(b"layer"),
            size: 5,
            diff_id: DiffId(Digest::of(b"tar")),
            media_type: layers::oci::LAYER_GZIP.into(),
            created_by: "imgbuild".into(),
        };
        let built = ImageParts {
            platform,
            created: "2025-01-01T00:00:00Z".into(),
            config: &config,
            labels: [("c".to_owned(), "d".to_owned())].into(),
            base: Some(base.parts),
            layers: vec![layer],
        }
        .build();
        let written: Value = serde_json::from_slice(&built.config.bytes).expect("it is JSON");
        let ours: Value = serde_json::from_slice(&built.manifest.bytes).expect("it is JSON");
        let diff_ids = written["rootfs"]["diff_ids"].as_array().expect("a list");
        let list = ours["layers"].as_array().expect("a list");
        assert_eq!(diff_ids.len(), before.layers.len() + 1);
        assert_eq!(list.len(), before.layers.len() + 1);
        for (layer, descriptor) in before.layers.iter().zip(list) {
            assert_eq!(descriptor["digest"], layer.digest.to_string());
            assert_eq!(descriptor["size"], layer.size);
        }
        let inherited = before.diff_ids();
        assert_eq!(inherited.len(), before.layers.len());
        assert_eq!(&diff_ids[..inherited.len()], &inherited[..]);
        let text = std::str::from_utf8(&built.config.bytes).expect("it is text");
        let (theirs, ours) = (Members::of(before.config()).expect("an object"), Members::of(text).expect("an object"));
        let history = |of: &Members| of.get("history").and_then(|text| elements(text).ok()).unwrap_or_default();
        assert!(history(&ours).starts_with(&history(&theirs)));
        for name in ["author", "variant", "os.version"] {
            assert_eq!(theirs.get(name), ours.get(name));
        }
        assert_eq!(written["config"]["Cmd"], serde_json::json!(["run"]));
        let env = written["config"]["Env"].as_array().expect("a list");
        assert!(env.iter().any(|line| line == "NAME=value"));
    }
});
