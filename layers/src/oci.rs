//! OCI documents as canonical JSON: fields in the specification's order, maps sorted, no white space.
//!
//! Follows the OCI image specification 1.1. What is inherited from a base image (its history, fields of its configuration
//! that no definition changes) is kept byte for byte, whatever its writer thought of white space and escapes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::{DiffId, Digest};
use crate::image::ImageConfig;
use crate::platform::Platform;
use crate::written::{Members, elements, json as written};

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
    fn of(media_type: &'static str, text: String) -> Document {
        let bytes = text.into_bytes();
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct BaseParts {
    /// Its configuration document, as it was written.
    config: String,
    /// Its layers' descriptors.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Unchecked {
    config: String,
    layers: Vec<Descriptor>,
}

impl TryFrom<Unchecked> for BaseParts {
    type Error = String;

    fn try_from(base: Unchecked) -> Result<BaseParts, String> {
        BaseParts::new(base.config, base.layers)
    }
}

impl BaseParts {
    /// A base of this configuration document and these layers.
    ///
    /// # Errors
    /// If the document is no JSON object, has a member twice, or one that is inherited is not what config.md says.
    pub fn new(config: String, layers: Vec<Descriptor>) -> Result<BaseParts, String> {
        let base = BaseParts { config, layers };
        let value: Map<String, Value> = serde_json::from_str(&base.config).map_err(|error| error.to_string())?;
        let members = Members::of(&base.config)?;
        for (name, fits) in [
            ("config", value.get("config").is_none_or(|it| it.is_object() || it.is_null())),
            ("history", value.get("history").is_none_or(|it| it.is_array() || it.is_null())),
            ("rootfs", value.get("rootfs").is_none_or(|it| it.is_object() || it.is_null())),
        ] {
            if !fits {
                return Err(format!("its `{name}` is something else than the specification says"));
            }
        }
        if let Some(run) = members.get("config").filter(|text| *text != "null") {
            Members::of(run)?;
        }
        Ok(base)
    }

    /// The configuration document, as it was written.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// What containers are told: `config` of the document.
    pub fn run(&self) -> Map<String, Value> {
        match self.value("config") {
            Some(Value::Object(run)) => run,
            _ => Map::new(),
        }
    }

    /// The digests of the layers' tars.
    pub fn diff_ids(&self) -> Vec<Value> {
        let rootfs = self.value("rootfs").unwrap_or_default();
        rootfs.get("diff_ids").and_then(Value::as_array).cloned().unwrap_or_default()
    }

    fn members(&self) -> Members {
        Members::of(&self.config).expect("was checked when the base was made")
    }

    fn value(&self, name: &str) -> Option<Value> {
        serde_json::from_str(self.members().get(name)?).ok()
    }
}

/// What is put on a base, or on nothing, as a configuration says it (config.md).
#[derive(Debug, Clone, Default)]
pub struct Above {
    /// RFC 3339, UTC.
    pub created: Option<String>,
    /// Such as `amd64`.
    pub architecture: String,
    /// What containers are told, the base's included.
    pub run: BTreeMap<String, Value>,
    /// The digests of its own layers' tars.
    pub diff_ids: Vec<Value>,
    /// Its own entries of the history, as JSON.
    pub history: Vec<String>,
}

impl Above {
    /// Writes the configuration. What the base has and this does not change keeps the bytes with which the base has it.
    pub fn document(&self, base: Option<&BaseParts>) -> Document {
        let below = base.map(BaseParts::members).unwrap_or_default();
        let mut document = Members::default();
        if let Some(created) = &self.created {
            document.push("created", created);
        }
        document.push("architecture", &self.architecture);
        document.push("os", "linux");
        document.push_text("config", self.run_text(base, below.get("config")));
        match below.get("rootfs").filter(|text| self.diff_ids.is_empty() && *text != "null") {
            Some(rootfs) => document.push_text("rootfs", rootfs.to_owned()),
            None => {
                let mut diff_ids = base.map(BaseParts::diff_ids).unwrap_or_default();
                diff_ids.extend(self.diff_ids.iter().cloned());
                document.push("rootfs", &json!({"type": "layers", "diff_ids": diff_ids}));
            }
        }
        let entries = below.get("history").and_then(|text| elements(text).ok()).unwrap_or_default();
        let entries: Vec<&str> = entries.iter().chain(&self.history).map(String::as_str).collect();
        document.push_text("history", format!("[{}]", entries.join(",")));
        // The base's author, `variant`, `os.version` and whatever else it says of itself.
        for (name, text) in below.iter().filter(|(name, _)| !OWN_FIELDS.contains(name)) {
            document.push_text(name, text.to_owned());
        }
        Document::of(CONFIG, document.to_text())
    }

    fn run_text(&self, base: Option<&BaseParts>, text: Option<&str>) -> String {
        let (below, text) = match (base, text) {
            (Some(base), Some(text)) => (base.run(), text),
            _ => return written(&self.run),
        };
        if below.len() == self.run.len() && below.iter().all(|(name, value)| self.run.get(name) == Some(value)) {
            return if text == "null" { "{}".into() } else { text.to_owned() };
        }
        let mut run = Members::default();
        let members = Members::of(text).unwrap_or_default();
        for (name, text) in members.iter() {
            match self.run.get(name) {
                Some(value) if below.get(name) == Some(value) => run.push_text(name, text.to_owned()),
                Some(value) => run.push(name, value),
                None => {}
            }
        }
        for (name, value) in self.run.iter().filter(|(name, _)| members.get(name).is_none()) {
            run.push(name, value);
        }
        run.to_text()
    }
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
    /// Writes configuration and manifest. An image that adds nothing to its base has the base's configuration.
    pub fn build(&self) -> BuiltImage {
        let adds = !self.layers.is_empty() || !self.labels.is_empty() || *self.config != ImageConfig::default();
        let config = match &self.base {
            Some(base) if !adds => Document::of(CONFIG, base.config.clone()),
            base => self.above().document(base.as_ref()),
        };
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
        BuiltImage { platform: self.platform, manifest: Document::of(MANIFEST, written(&manifest)), config }
    }

    fn above(&self) -> Above {
        let entry = |layer: &LayerPart| {
            written(&json!({"created": self.created, "created_by": layer.created_by, "comment": "imgbuild"}))
        };
        Above {
            created: Some(self.created.clone()),
            architecture: self.platform.architecture().into(),
            run: self.run_config(self.base.as_ref().map(BaseParts::run).unwrap_or_default()),
            diff_ids: self.layers.iter().map(|layer| json!(layer.diff_id)).collect(),
            history: self.layers.iter().map(entry).collect(),
        }
    }

    fn run_config(&self, inherited: Map<String, Value>) -> BTreeMap<String, Value> {
        let mut run: BTreeMap<String, Value> = inherited.into_iter().collect();
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
        run
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
    Document::of(INDEX, written(&Index { schema_version: 2, media_type: INDEX, manifests }))
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
        parts.base = Some(BaseParts::new(base.to_string(), Vec::new()).expect("is a base"));
        let built: Value = serde_json::from_slice(&parts.build().config.bytes).expect("is JSON");
        assert_eq!(built["config"]["Env"], json!(["PATH=/bin", "A=2"]));
        assert_eq!(built["config"]["Cmd"], Value::Null);
        assert_eq!(built["config"]["OnBuild"], json!(["x"]));
        assert_eq!(built["history"][0], json!({"created_by": "old", "custom": true}));
        assert_eq!(built["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
    }

    /// A configuration as nobody here would write it: an order of its own, white space, escapes, odd numbers.
    const ODD: &str = concat!(
        "{ \"variant\":\"v8\",\n\"history\" : [ {\"created_by\":\"a \\u0026\\u0026 b\", \"x\": 1e2} ,{\"empty_layer\":true,\"z\":[ ]}],",
        "\"config\":{\"User\" :\"\\u0072oot\",\"Memory\": 1.0E+2,\"Env\":[ \"PATH=/bin\" ],\"Cmd\":[\"sh\"],\"Labels\":null},",
        "\"architecture\":\"arm64\", \"rootfs\": {\"type\":\"layers\",\"diff_ids\":[ \"sha256:1\"]},",
        "\"big\":123456789012345678901234567890.10,\"os\":\"linux\",\"author\":\"\\/me\"}\n",
    );

    #[test]
    fn an_image_that_adds_nothing_to_its_base_has_its_configuration_byte_for_byte() {
        let config = ImageConfig::default();
        let mut parts = parts(&config);
        parts.base = Some(BaseParts::new(ODD.into(), Vec::new()).expect("is a base"));
        (parts.layers, parts.labels) = (Vec::new(), BTreeMap::new());
        let built = parts.build();
        assert_eq!(String::from_utf8_lossy(&built.config.bytes), ODD);
        assert_eq!(built.config.digest, Digest::of(ODD.as_bytes()));
    }

    #[test]
    fn what_an_image_does_not_change_keeps_the_bytes_of_its_base() {
        let config = ImageConfig { env: vec![("A".into(), "2".into())], ..ImageConfig::default() };
        let mut parts = parts(&config);
        parts.base = Some(BaseParts::new(ODD.into(), Vec::new()).expect("is a base"));
        assert_eq!(
            String::from_utf8(parts.build().config.bytes).expect("is text"),
            format!(
                concat!(
                    r#"{{"created":"2020-01-01T00:00:00Z","architecture":"arm64","os":"linux","#,
                    r#""config":{{"User":"\u0072oot","Memory":1.0E+2,"Env":["PATH=/bin","A=2"],"Cmd":["sh"],"Labels":{{"b":"2"}}}},"#,
                    r#""rootfs":{{"diff_ids":["sha256:1","{}"],"type":"layers"}},"#,
                    r#""history":[{{"created_by":"a \u0026\u0026 b", "x": 1e2}},{{"empty_layer":true,"z":[ ]}},"#,
                    r#"{{"comment":"imgbuild","created":"2020-01-01T00:00:00Z","created_by":"debian x"}}],"#,
                    r#""variant":"v8","big":123456789012345678901234567890.10,"author":"\/me"}}"#
                ),
                Digest::of(b"t")
            )
        );
        // Only a label more: everything inside `config` that is not the labels stays, and so does `rootfs` as a whole.
        let plain = ImageConfig::default();
        (parts.layers, parts.config) = (Vec::new(), &plain);
        let text = String::from_utf8(parts.build().config.bytes).expect("is text");
        for kept in [r#""Env":[ "PATH=/bin" ]"#, r#""rootfs":{"type":"layers","diff_ids":[ "sha256:1"]}"#] {
            assert!(text.contains(kept), "{text}");
        }
        // A record in the cache keeps the text.
        let base = parts.base.expect("has one");
        let kept: BaseParts = serde_json::from_str(&written(&base)).expect("reads");
        assert_eq!(kept, base);
    }

    #[test]
    fn a_base_that_says_things_twice_or_otherwise_is_refused() {
        for (text, said) in [
            (r#"{"os":"linux","os":"linux"}"#, "`os` stands in it twice"),
            (r#"{"config":{"User":"a","User":"b"}}"#, "`User` stands in it twice"),
            (r#"{"config":[]}"#, "its `config` is something else"),
            (r#"{"history":{}}"#, "its `history` is something else"),
            (r#"{"rootfs":1}"#, "its `rootfs` is something else"),
            ("[]", "invalid type"),
            ("", "EOF"),
        ] {
            let error = BaseParts::new(text.into(), Vec::new()).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let empty =
            BaseParts::new(r#"{"config":null,"history":null,"rootfs":null}"#.into(), Vec::new()).expect("is a base");
        assert_eq!((empty.run(), empty.diff_ids()), (Map::new(), Vec::new()));
    }
}
