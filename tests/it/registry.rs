//! What the tests of registries share: images in a cache, a client in a hurry, and the question whether a secret leaked.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use cache::Store;
use imgbuild::observe::{Event, Observer};
use imgbuild::output::NamedImage;
use imgbuild::registry::auth::{Credential, Given, Secret, Sources};
use imgbuild::registry::{
    Bundle, ClientConfig, Delivery, Patience, Pushed, Registries, RegistryError, Repository, Supply,
};
use layers::oci::{self, ImageParts, LayerPart};
use layers::{DiffId, Digest, ImageConfig, Platform};

use crate::support::registry::{CANARY_IDENTITY, CANARY_PASSWORD, CANARY_TOKEN, Kind, Registry};

/// A cache with images in it.
pub struct Images {
    pub folder: tempfile::TempDir,
    pub store: Store,
}

impl Images {
    pub fn new() -> Images {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_at(folder.path()).unwrap();
        Images { folder, store }
    }

    /// An image whose layers are these bytes.
    pub fn image(&self, name: &str, platforms: &[Platform], contents: &[&[u8]]) -> NamedImage {
        let mut layers = Vec::new();
        let built: Vec<_> = platforms
            .iter()
            .map(|platform| {
                let parts = contents.iter().map(|bytes| {
                    let blob = self.store.put(bytes).unwrap();
                    layers.push((blob.digest, blob.size));
                    LayerPart {
                        digest: blob.digest,
                        size: blob.size,
                        diff_id: DiffId(Digest::of(bytes)),
                        media_type: oci::LAYER_GZIP.into(),
                        created_by: "a test".into(),
                    }
                });
                ImageParts {
                    platform: *platform,
                    created: oci::rfc3339(1_700_000_000),
                    config: &ImageConfig::default(),
                    labels: BTreeMap::from([("name".to_owned(), name.to_owned())]),
                    base: None,
                    layers: parts.collect(),
                }
                .build()
            })
            .collect();
        let index = (built.len() > 1).then(|| oci::index(&built));
        NamedImage { name: name.into(), platforms: built, index, layers }
    }

    pub fn simple(&self, name: &str, contents: &[&[u8]]) -> NamedImage {
        self.image(name, &[Platform::Amd64], contents)
    }
}

/// A client that does not wait long for anything.
pub fn hurried() -> ClientConfig {
    ClientConfig {
        patience: Patience {
            failures: 4,
            pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(20),
            longest_wait: Duration::from_secs(5),
            idle: Duration::from_secs(2),
            commit: Duration::from_secs(4),
        },
        ..ClientConfig::default()
    }
}

/// A client that knows the user of a fake.
pub fn known_to(registry: &Registry) -> ClientConfig {
    let kind = registry.state().kind.clone();
    let credential = Credential::Password { user: kind.user, password: Secret::new(kind.password) };
    with_credential(registry, credential)
}

pub fn with_credential(registry: &Registry, credential: Credential) -> ClientConfig {
    ClientConfig {
        sources: Sources { given: Given::For(registry.host(), credential), ..Sources::default() },
        ..hurried()
    }
}

/// Keeps everything that an observer hears.
#[derive(Default)]
pub struct Heard(pub Mutex<String>);

impl Observer for Heard {
    fn on(&self, event: Event<'_>) {
        *self.0.lock().unwrap() += &format!("{event:?}\n");
    }
}

/// Pushes images to `<registry>/<image>:v1` and asserts that no output holds a secret.
pub fn push(
    registry: &Registry,
    config: ClientConfig,
    images: &Images,
    named: &[NamedImage],
) -> Result<Vec<Pushed>, String> {
    let registries = Registries::new(config);
    push_with(&registries, registry, images, named, "v1")
}

pub fn push_with(
    registries: &Registries,
    registry: &Registry,
    images: &Images,
    named: &[NamedImage],
    tag: &str,
) -> Result<Vec<Pushed>, String> {
    let deliveries = deliveries(&registry.host(), named, tag);
    let supply = Supply::of(named, &images.store);
    let heard = Heard::default();
    let pushed = registries.push(&deliveries, &supply, &heard);
    registry.assert_whole();
    assert_secret(&format!("{pushed:?}{registries:?}{}", heard.0.lock().unwrap()));
    assert_secret(&files_below(images.folder.path()));
    pushed.map_err(shown)
}

pub fn deliveries(host: &str, named: &[NamedImage], tag: &str) -> Vec<Delivery> {
    named
        .iter()
        .map(|image| Delivery {
            bundle: Bundle::of(image).unwrap().into(),
            repository: Repository { registry: host.into(), path: image.name.clone() },
            tags: vec![tag.into()],
        })
        .collect()
}

/// An error as a person sees it; it must hold no secret, however it is printed.
pub fn shown(error: RegistryError) -> String {
    assert_secret(&format!("{error} {error:?} {error:#?}"));
    error.to_string()
}

pub fn assert_secret(text: &str) {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("user:{CANARY_PASSWORD}"));
    for secret in [CANARY_PASSWORD, CANARY_IDENTITY, CANARY_TOKEN, encoded.as_str(), "canary-signature"] {
        assert!(!text.contains(secret), "`{secret}` leaked into: {text}");
    }
}

/// Everything that lies in files below a folder.
pub fn files_below(folder: &std::path::Path) -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        match path.is_dir() {
            true => all += &files_below(&path),
            false => all += &String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()),
        }
    }
    all
}

/// A registry of a kind.
pub fn registry(change: impl FnOnce(&mut Kind)) -> Registry {
    let mut kind = Kind::default();
    change(&mut kind);
    Registry::start(kind)
}
