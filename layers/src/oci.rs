//! OCI documents as canonical JSON: fields in the specification's order, maps sorted, no white space.
//!
//! Follows the OCI image specification 1.1. What is inherited from a base image (its history, its diff ids, fields of its
//! configuration that no definition changes) is kept value for value.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::{DiffId, Digest};
use crate::image::ImageConfig;
use crate::platform::Platform;

/// Media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a gzip-compressed layer.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Media type of a zstd-compressed layer.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A document and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

impl Document {
    fn of(media_type: &'static str, value: &impl Serialize) -> Document {
        let bytes = serde_json::to_vec(value).expect("OCI documents have only string keys and whole numbers");
        Document { media_type, digest: Digest::of(&bytes), bytes }
    }

    /// How another document refers to this one.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.to_owned(),
            digest: self.digest,
            size: self.bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A reference to a blob (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Media type of what is referred to.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it runs on; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<PlatformField>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// `platform` of a descriptor in an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformField {
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `v8`; never written by this crate, see [`Platform`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl From<Platform> for PlatformField {
    fn from(platform: Platform) -> PlatformField {
        PlatformField { architecture: platform.architecture().into(), os: "linux".into(), variant: None }
    }
}

/// The OCI name of a layer's media type, which is what manifests of this specification hold (manifest.md, "layers"): bases
/// that were pushed with Docker's manifests name theirs otherwise, for the same bytes.
pub fn layer_type(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => LAYER_ZSTD,
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        }
        other => other,
    }
}

/// Fields of a configuration that this crate writes itself, and what Docker once wrote about the container that an image was
/// made from.
const OWN_FIELDS: [&str; 12] = [
    "created",
    "architecture",
    "os",
    "config",
    "rootfs",
    "history",
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
    "Size",
];

/// A layer as config and manifest need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPart {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// Media type.
    pub media_type: String,
    /// One line for the history.
    pub created_by: String,
}

/// The base that an image stands on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BaseParts {
    /// Its configuration document.
    pub config: Map<String, Value>,
    /// Its layers' descriptors.
    pub layers: Vec<Descriptor>,
}

/// Everything that an image's documents say.
#[derive(Debug, Clone)]
pub struct ImageParts<'a> {
    /// What it runs on.
    pub platform: Platform,
    /// RFC 3339, UTC.
    pub created: String,
    /// How it runs.
    pub config: &'a ImageConfig,
    /// Labels beside those of the definition; they win.
    pub labels: BTreeMap<String, String>,
    /// The base below.
    pub base: Option<BaseParts>,
    /// Its own layers, bottom first.
    pub layers: Vec<LayerPart>,
}

/// A single-platform image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// What it runs on.
    pub platform: Platform,
    /// Its configuration.
    pub config: Document,
    /// Its manifest.
    pub manifest: Document,
}

impl ImageParts<'_> {
    /// Writes configuration and manifest.
    pub fn build(&self) -> BuiltImage {
        let config = Document::of(CONFIG, &self.config_document());
        let mut layers: Vec<Descriptor> = self.base.as_ref().map(|base| base.layers.clone()).unwrap_or_default();
        layers.extend(self.layers.iter().map(|layer| Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.digest,
            size: layer.size,
            platform: None,
            annotations: BTreeMap::new(),
        }));
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Manifest<'a> {
            schema_version: u32,
            media_type: &'a str,
            config: Descriptor,
            layers: Vec<Descriptor>,
        }
        let manifest = Manifest { schema_version: 2, media_type: MANIFEST, config: config.descriptor(), layers };
        BuiltImage { platform: self.platform, manifest: Document::of(MANIFEST, &manifest), config }
    }

    fn config_document(&self) -> Ordered {
        let base = self.base.as_ref().map(|base| &base.config);
        let inherited = |name: &str| base.and_then(|base| base.get(name)).cloned();
        let mut document = Ordered::default();
        document.put("created", json!(self.created));
        document.put("architecture", json!(self.platform.architecture()));
        document.put("os", json!("linux"));
        document.put("config", self.run_config(inherited("config")));
        let mut diff_ids: Vec<Value> = inherited("rootfs")
            .and_then(|rootfs| rootfs.get("diff_ids").and_then(Value::as_array).cloned())
            .unwrap_or_default();
        diff_ids.extend(self.layers.iter().map(|layer| json!(layer.diff_id)));
        document.put("rootfs", json!({"type": "layers", "diff_ids": diff_ids}));
        let mut history: Vec<Value> =
            inherited("history").and_then(|history| history.as_array().cloned()).unwrap_or_default();
        history.extend(
            self.layers
                .iter()
                .map(|layer| json!({"created": self.created, "created_by": layer.created_by, "comment": "imgbuild"})),
        );
        document.put("history", Value::Array(history));
        // The base's author, `variant`, `os.version` and whatever else it says of itself.
        for (name, value) in base.into_iter().flatten().filter(|(name, _)| !OWN_FIELDS.contains(&name.as_str())) {
            document.put(name, value.clone());
        }
        document
    }

    fn run_config(&self, inherited: Option<Value>) -> Value {
        let mut run: BTreeMap<String, Value> = match inherited {
            Some(Value::Object(map)) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        let config = self.config;
        if let Some(user) = &config.user {
            run.insert("User".into(), json!(user));
        }
        if let Some(workdir) = &config.workdir {
            run.insert("WorkingDir".into(), json!(workdir));
        }
        if !config.env.is_empty() {
            let mut env: Vec<String> = run
                .get("Env")
                .and_then(Value::as_array)
                .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                .unwrap_or_default();
            for (name, value) in &config.env {
                let line = format!("{name}={value}");
                match env.iter_mut().find(|known| known.split('=').next() == Some(name)) {
                    Some(slot) => *slot = line,
                    None => env.push(line),
                }
            }
            run.insert("Env".into(), json!(env));
        }
        if let Some(entrypoint) = &config.entrypoint {
            run.insert("Entrypoint".into(), json!(entrypoint));
            // As Docker does: a new entry point makes the base's arguments meaningless.
            run.remove("Cmd");
        }
        if let Some(cmd) = &config.cmd {
            run.insert("Cmd".into(), json!(cmd));
        }
        let merge = |run: &mut BTreeMap<String, Value>, name: &str, more: BTreeMap<String, Value>| {
            if more.is_empty() {
                return;
            }
            let mut all: BTreeMap<String, Value> = match run.remove(name) {
                Some(Value::Object(map)) => map.into_iter().collect(),
                _ => BTreeMap::new(),
            };
            all.extend(more);
            run.insert(name.into(), json!(all));
        };
        merge(&mut run, "ExposedPorts", config.expose.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect());
        merge(&mut run, "Volumes", config.volumes.iter().map(|path| (path.to_string(), json!({}))).collect());
        let labels = config.labels.iter().chain(&self.labels);
        merge(&mut run, "Labels", labels.map(|(name, value)| (name.clone(), json!(value))).collect());
        if let Some(signal) = &config.stop_signal {
            run.insert("StopSignal".into(), json!(signal));
        }
        if let Some(check) = &config.healthcheck {
            let nanoseconds = |seconds: u32| u64::from(seconds) * 1_000_000_000;
            let test: Vec<&str> = ["CMD"].into_iter().chain(check.command.iter().map(String::as_str)).collect();
            run.insert(
                "Healthcheck".into(),
                json!({
                    "Test": test,
                    "Interval": nanoseconds(check.interval_seconds),
                    "Timeout": nanoseconds(check.timeout_seconds),
                    "StartPeriod": nanoseconds(check.start_period_seconds),
                    "Retries": check.retries,
                }),
            );
        }
        json!(run)
    }
}

/// One index over the platforms of an image, in the order of [`Platform::ALL`].
pub fn index(images: &[BuiltImage]) -> Document {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u32,
        media_type: &'a str,
        manifests: Vec<Descriptor>,
    }
    let mut sorted: Vec<&BuiltImage> = images.iter().collect();
    sorted.sort_by_key(|image| image.platform);
    let manifests = sorted
        .into_iter()
        .map(|image| Descriptor { platform: Some(image.platform.into()), ..image.manifest.descriptor() })
        .collect();
    Document::of(INDEX, &Index { schema_version: 2, media_type: INDEX, manifests })
}

/// Fields in the order in which they were put.
#[derive(Default)]
struct Ordered(Vec<(String, Value)>);

impl Ordered {
    fn put(&mut self, name: &str, value: Value) {
        self.0.push((name.to_owned(), value));
    }
}

impl Serialize for Ordered {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Seconds since 1970 as RFC 3339 in UTC, such as `2026-11-24T01:02:03Z`.
pub fn rfc3339(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date: the calendar repeats every 400 years of 146,097 days, counted from 1 March of year 0.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(config: &ImageConfig) -> ImageParts<'_> {
        ImageParts {
            platform: Platform::Arm64,
            created: rfc3339(1_577_836_800),
            config,
            labels: [("b".to_owned(), "2".to_owned())].into(),
            base: None,
            layers: vec![LayerPart {
                digest: Digest::of(b"z"),
                size: 1,
                diff_id: DiffId(Digest::of(b"t")),
                media_type: LAYER_GZIP.into(),
                created_by: "debian x".into(),
            }],
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_577_836_800, "2020-01-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn documents_are_canonical() {
        let mut config = ImageConfig { user: Some("10001:10001".into()), ..ImageConfig::default() };
        config.env = vec![("Z".into(), "1".into()), ("A".into(), "2".into())];
        config.labels.insert("a".into(), "1".into());
        config.expose.insert(8000);
        let built = parts(&config).build();
        assert_eq!(
            String::from_utf8(built.config.bytes.clone()).expect("is text"),
            format!(
                concat!(
                    r#"{{"created":"2020-01-01T00:00:00Z","architecture":"arm64","os":"linux","#,
                    r#""config":{{"Env":["Z=1","A=2"],"ExposedPorts":{{"8000/tcp":{{}}}},"Labels":{{"a":"1","b":"2"}},"User":"10001:10001"}},"#,
                    r#""rootfs":{{"diff_ids":["{}"],"type":"layers"}},"#,
                    r#""history":[{{"comment":"imgbuild","created":"2020-01-01T00:00:00Z","created_by":"debian x"}}]}}"#
                ),
                Digest::of(b"t")
            )
        );
        let manifest: Value = serde_json::from_slice(&built.manifest.bytes).expect("is JSON");
        assert_eq!(manifest["config"]["digest"], json!(built.config.digest));
        let index: Value = serde_json::from_slice(&index(std::slice::from_ref(&built)).bytes).expect("is JSON");
        assert_eq!(index["manifests"][0]["platform"], json!({"architecture": "arm64", "os": "linux"}));
    }

    #[test]
    fn a_base_is_kept_and_extended() {
        let base = json!({
            "config": {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "User": "root", "OnBuild": ["x"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
            "history": [{"created_by": "old", "custom": true}],
        });
        let mut config = ImageConfig { entrypoint: Some(vec!["run".into()]), ..ImageConfig::default() };
        config.env = vec![("A".into(), "2".into())];
        let mut parts = parts(&config);
        parts.base = Some(BaseParts { config: base.as_object().expect("is an object").clone(), layers: Vec::new() });
        let built: Value = serde_json::from_slice(&parts.build().config.bytes).expect("is JSON");
        assert_eq!(built["config"]["Env"], json!(["PATH=/bin", "A=2"]));
        assert_eq!(built["config"]["Cmd"], Value::Null);
        assert_eq!(built["config"]["OnBuild"], json!(["x"]));
        assert_eq!(built["history"][0], json!({"created_by": "old", "custom": true}));
        assert_eq!(built["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
    }
}
