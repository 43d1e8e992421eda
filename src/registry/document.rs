//! Manifests as others write them: read strictly where it matters, passed on byte for byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use layers::Platform;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::AnyDigest;

/// The largest manifest that is read, bytes; the specification asks registries to take 4 MiB.
pub const LARGEST: usize = 16 << 20;
/// Indexes within indexes that are followed.
const DEEPEST: usize = 4;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is accepted when a manifest is asked for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json, */*;q=0.1";

/// What is accepted when one of this type is asked for: a registry that has another under its name says so.
pub fn accept_of(media_type: &str) -> String {
    if media_type.is_empty() { ACCEPT.into() } else { format!("{media_type}, */*;q=0.1") }
}

/// A reference to a blob or manifest, with everything that imgbuild looks at (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of what is referred to.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    #[serde(with = "as_text")]
    pub digest: AnyDigest,
    /// Its length in bytes.
    pub size: u64,
    /// What it runs on; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Value>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What kind of artifact a referrer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The content itself, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Where else it is said to be. Never followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::AnyDigest;

    pub fn serialize<S: Serializer>(digest: &AnyDigest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AnyDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Descriptor {
    /// A reference to `size` bytes of this digest, and nothing more.
    pub fn of(media_type: &str, digest: AnyDigest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
            data: None,
            urls: Vec::new(),
        }
    }

    /// Whether registries may lack the blob: its licence forbids to distribute it, and it is fetched from elsewhere.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains("foreign.diff")
    }

    /// Whether it is an attestation that BuildKit lists beside images.
    pub fn is_attestation(&self) -> bool {
        let unknown =
            |name: &str| self.platform.as_ref().and_then(|it| it.get(name)).and_then(Value::as_str) == Some("unknown");
        self.annotations.contains_key("vnd.docker.reference.type") || unknown("os") && unknown("architecture")
    }

    /// Whether it refers to a manifest or index.
    pub fn is_manifest(&self) -> bool {
        is_index(&self.media_type)
            || matches!(
                self.media_type.as_str(),
                layers::oci::MANIFEST | DOCKER_MANIFEST | "application/vnd.oci.artifact.manifest.v1+json"
            )
    }

    /// The content that the descriptor itself holds, if it is what the digest says.
    pub fn embedded(&self) -> Result<Option<Bytes>, String> {
        use base64::Engine as _;
        let Some(data) = &self.data else { return Ok(None) };
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(data)
            .map_err(|_| format!("the `data` of {} is not base64", self.digest))?;
        if bytes.len() as u64 != self.size || !self.digest.fits(&bytes) {
            return Err(format!("the `data` of {} is something else", self.digest));
        }
        Ok(Some(bytes.into()))
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, layers::oci::INDEX | DOCKER_LIST)
}

/// A manifest or index, its bytes verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: AnyDigest,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// Manifests of an index.
    pub manifests: Vec<Descriptor>,
    /// The configuration and layers of an image, the blobs of an artifact.
    pub blobs: Vec<Descriptor>,
    /// Whether the first blob is a configuration.
    pub has_config: bool,
    /// Whether it is an index.
    pub is_index: bool,
    /// What it is about.
    pub subject: Option<Descriptor>,
    /// What kind of artifact it is.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The configuration of artifacts that have none, and the layer of those that hold nothing (OCI image specification,
/// manifest.md).
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

impl Document {
    /// A document of these bytes, by the name that their SHA-256 gives it.
    pub fn of(media_type: &str, bytes: Vec<u8>) -> Document {
        Document { media_type: media_type.into(), digest: layers::Digest::of(&bytes).into(), bytes: bytes.into() }
    }

    /// A value as a document of JSON.
    pub fn json(media_type: &str, value: &impl Serialize) -> Document {
        let bytes = serde_json::to_vec(value).expect("documents have only string keys and whole numbers");
        Document::of(media_type, bytes)
    }

    /// The empty JSON object, which artifacts refer to where they have nothing.
    pub fn empty() -> Document {
        Document::of(EMPTY, b"{}".to_vec())
    }

    /// How other documents refer to this one.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::of(&self.media_type, self.digest, self.bytes.len() as u64)
    }

    /// Reads the document. What could be read as two things is refused (CVE-2021-41190).
    pub fn read(&self) -> Result<Said, String> {
        read(&self.bytes, &self.media_type)
    }
}

/// Reads a manifest's bytes; `media_type` is what its sender says it is, if anything.
pub fn read(bytes: &[u8], media_type: &str) -> Result<Said, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
    let has = |name: &str| value.get(name).is_some_and(|found| !found.is_null());
    if has("manifests") && (has("layers") || has("config") || has("fsLayers") || has("blobs")) {
        return Err("it is an image and an index at once".into());
    }
    if value.get("schemaVersion").and_then(Value::as_u64) == Some(1) || has("fsLayers") {
        return Err(
            "it has the first schema of 2014, which names no content; push the image again with a newer tool".into()
        );
    }
    let body: Body = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if body.schema_version.is_some_and(|version| version != 2) {
        return Err("its `schemaVersion` is not 2".into());
    }
    let said = media_type.split(';').next().unwrap_or_default().trim();
    if let Some(own) = body.media_type.as_deref().filter(|own| !own.is_empty() && !said.is_empty())
        && own != said
        && said != "application/octet-stream"
        && said != "application/json"
    {
        return Err(format!("it was sent as `{said}` and says that it is `{own}`"));
    }
    let kind = body.media_type.as_deref().unwrap_or(said);
    let indexed = body.manifests.is_some();
    if indexed != is_index(kind) && (indexed || is_index(kind)) && !kind.is_empty() {
        return Err(format!("it does not hold what its media type `{kind}` says"));
    }
    let has_config = body.config.is_some();
    let blobs = body.config.into_iter().chain(body.layers.or(body.blobs).unwrap_or_default()).collect();
    let said = Said {
        manifests: body.manifests.unwrap_or_default(),
        blobs,
        has_config,
        is_index: indexed,
        subject: body.subject,
        artifact_type: body.artifact_type,
        annotations: body.annotations.unwrap_or_default(),
    };
    for descriptor in said.manifests.iter().chain(&said.blobs) {
        descriptor.embedded()?;
    }
    Ok(said)
}

/// What an index offers for a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// An image.
    Image(Box<Descriptor>),
    /// Only further indexes, which may have one.
    Deeper(Vec<Descriptor>),
}

/// Chooses the image for a platform: attestations are no images, and arm64 is written with `v8` or without.
pub fn choose(index: &Said, platform: Platform, depth: usize) -> Result<Choice, String> {
    if depth >= DEEPEST {
        return Err("indexes lie within indexes too deeply".into());
    }
    let field = |descriptor: &Descriptor, name: &str| {
        descriptor.platform.as_ref().and_then(|it| it.get(name)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|it| !it.is_attestation()).collect();
    let fits = |it: &&&Descriptor| {
        let variant = field(it, "variant");
        let variant_fits = match platform {
            Platform::Amd64 => matches!(variant.as_str(), "" | "v1"),
            Platform::Arm64 => matches!(variant.as_str(), "" | "v8"),
        };
        field(it, "os") == "linux" && field(it, "architecture") == platform.architecture() && variant_fits
    };
    if let Some(found) = images.iter().find(fits) {
        return Ok(match is_index(&found.media_type) {
            true => Choice::Deeper(vec![(*found).clone()]),
            false => Choice::Image(Box::new((*found).clone())),
        });
    }
    let nested: Vec<Descriptor> =
        images.iter().filter(|it| it.platform.is_none() && is_index(&it.media_type)).map(|it| (*it).clone()).collect();
    if !nested.is_empty() {
        return Ok(Choice::Deeper(nested));
    }
    let offered: Vec<String> = images
        .iter()
        .filter(|it| it.platform.is_some())
        .map(|it| {
            format!("{}/{} {}", field(it, "os"), field(it, "architecture"), field(it, "variant")).trim().to_owned()
        })
        .collect();
    Err(match offered.is_empty() {
        true => format!("it has no image for {platform}"),
        false => format!("it has no image for {platform}, only for {}", offered.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::Digest;
    use proptest::prelude::*;
    use serde_json::json;

    fn descriptor(media_type: &str, content: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(content), "size": content.len()})
    }

    fn why(document: &Value, media_type: &str) -> String {
        match read(document.to_string().as_bytes(), media_type) {
            Ok(_) => "fine".into(),
            Err(why) => why,
        }
    }

    #[test]
    fn ambiguous_and_lying_documents_are_refused() {
        let (manifest, index) = (layers::oci::MANIFEST, layers::oci::INDEX);
        let (config, layer) = (descriptor("c", b"c"), descriptor("l", b"l"));
        let image = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": [layer]});
        assert_eq!(why(&image, manifest), "fine");
        assert_eq!(why(&image, ""), "fine");
        assert_eq!(why(&image, "application/json"), "fine");
        let with = |name: &str, value: Value| {
            let mut changed = image.clone();
            changed[name] = value;
            changed
        };
        let mut data = layer.clone();
        data["data"] = json!("bA==");
        assert_eq!(why(&with("layers", json!([data])), manifest), "fine");
        data["data"] = json!("eA==");
        assert!(why(&with("layers", json!([data])), manifest).contains("something else"));
        data["data"] = json!("*");
        assert!(why(&with("layers", json!([data])), manifest).contains("not base64"));
        assert_eq!(why(&with("custom", json!({"a": [1]})), manifest), "fine");
        for (document, media_type) in [
            (with("manifests", json!([])), manifest),
            (image.clone(), index),
            (with("mediaType", json!(index)), manifest),
            (with("schemaVersion", json!(1)), manifest),
            (with("schemaVersion", json!(3)), manifest),
            (json!({"schemaVersion": 2, "manifests": [], "config": descriptor("c", b"c")}), index),
            (json!({"schemaVersion": 2, "fsLayers": []}), manifest),
            (with("layers", json!([{"mediaType": "l", "digest": "sha256:../../x", "size": 1}])), manifest),
            (
                with("layers", json!([{"mediaType": "l", "digest": format!("sha256:{}", "A".repeat(64)), "size": 1}])),
                manifest,
            ),
            (with("layers", json!([{"mediaType": "l", "digest": Digest::of(b""), "size": -1}])), manifest),
            (json!([]), manifest),
        ] {
            assert_ne!(why(&document, media_type), "fine", "{document} as {media_type}");
        }
    }

    #[test]
    fn the_image_for_a_platform_is_chosen_and_attestations_are_not() {
        let entry = |name: &str, media_type: &str, platform: Value| {
            let mut it = descriptor(media_type, name.as_bytes());
            if !platform.is_null() {
                it["platform"] = platform;
            }
            it
        };
        let (manifest, index) = (layers::oci::MANIFEST, layers::oci::INDEX);
        let chosen = |manifests: Vec<Value>, platform| {
            let document = json!({"schemaVersion": 2, "mediaType": index, "manifests": manifests});
            let said = read(document.to_string().as_bytes(), index).expect("reads");
            match choose(&said, platform, 0) {
                Ok(Choice::Image(found)) => found.digest.to_string(),
                Ok(Choice::Deeper(found)) => format!("deeper {}", found.len()),
                Err(why) => why,
            }
        };
        let attestation = entry("att", manifest, json!({"os": "unknown", "architecture": "unknown"}));
        let amd = entry("amd", manifest, json!({"os": "linux", "architecture": "amd64"}));
        let arm = entry("arm", manifest, json!({"os": "linux", "architecture": "arm64", "variant": "v8"}));
        let arm7 = entry("arm7", manifest, json!({"os": "linux", "architecture": "arm", "variant": "v7"}));
        let windows = entry("win", manifest, json!({"os": "windows", "architecture": "amd64"}));
        let all = vec![attestation.clone(), windows.clone(), arm7.clone(), amd, arm];
        assert_eq!(chosen(all.clone(), Platform::Amd64), Digest::of(b"amd").to_string());
        assert_eq!(chosen(all, Platform::Arm64), Digest::of(b"arm").to_string());
        assert_eq!(
            chosen(vec![attestation.clone(), windows, arm7], Platform::Arm64),
            "it has no image for linux/arm64, only for windows/amd64, linux/arm v7"
        );
        assert_eq!(chosen(vec![attestation], Platform::Arm64), "it has no image for linux/arm64");
        assert_eq!(chosen(vec![entry("in", index, Value::Null)], Platform::Arm64), "deeper 1");
    }

    proptest! {
        #[test]
        fn no_bytes_can_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, "");
        }
    }
}
