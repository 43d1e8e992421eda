//! How registries are spoken to.

use super::{Config, ConfigError, Found};
use crate::registry::auth::Sources;
use crate::registry::{ClientConfig, Repository, is_host};

impl Config {
    /// Repositories that keep archives by their digests, asked when the package mirrors fail: IMGBUILD_MIRROR_REGISTRIES,
    /// `mirror.registries`.
    ///
    /// # Errors
    /// If one is no repository.
    pub fn mirror_registries(&self) -> Result<Vec<Repository>, ConfigError> {
        let found = self.all("IMGBUILD_MIRROR_REGISTRIES", &["mirror", "registries"])?;
        let parsed = |found: Found| Repository::parse(&found.text).map_err(|error| found.wrong(error.to_string()));
        found.into_iter().map(parsed).collect()
    }

    /// How to reach registries: certificates and proxies as for every download, credentials as Docker and podman keep
    /// them, mirrors, and the hosts that may be spoken to without TLS (`insecure`, `registries.insecure`). `registry` is the one that a user and password
    /// in the environment are for.
    ///
    /// # Errors
    /// If a value makes no sense.
    pub fn registries(&self, insecure: &[String], registry: Option<&str>) -> Result<ClientConfig, ConfigError> {
        let http = self.http()?;
        let mut hosts = Vec::new();
        for (place, text) in insecure.iter().map(|text| ("--insecure".to_owned(), text.clone())).chain(
            self.all("IMGBUILD_INSECURE", &["registries", "insecure"])?
                .into_iter()
                .map(|found| (found.place, found.text)),
        ) {
            if !is_host(&text) {
                return Err(ConfigError::Value {
                    place,
                    why: "it is not a host, as in `registry.example:5000`".into(),
                });
            }
            hosts.push(text.to_ascii_lowercase());
        }
        let mut mirrors = std::collections::BTreeMap::new();
        for (name, value) in self.file.iter().flat_map(|file| file.named(&["registries", "mirrors"])) {
            for text in &value.texts {
                // A host, or a host and the beginning of a path.
                let host = text.split('/').next().unwrap_or_default();
                if !is_host(host) || Repository::parse(&format!("{text}/x")).is_err() {
                    return Err(ConfigError::Value {
                        place: format!("`registries.mirrors.{name}`"),
                        why: format!("`{text}` is no mirror, as in `mirror.example:5000` or `mirror.example/docker`"),
                    });
                }
            }
            mirrors.insert(name.to_owned(), value.texts.clone());
        }
        let environment = &self.environment;
        let given = registry.map(str::to_owned).or_else(|| self.registry(None).ok());
        let sources =
            Sources::from_environment(|name| environment.variable(name).map(ToOwned::to_owned), given.as_deref());
        let mut certificates: Vec<_> =
            ["etc/docker/certs.d", "etc/containers/certs.d"].map(|it| environment.machine(it)).into();
        certificates.extend(environment.config_home().map(|home| home.join("containers/certs.d")));
        Ok(ClientConfig {
            extra_ca: http.extra_ca,
            proxies: http.proxies,
            insecure: hosts,
            certificates,
            mirrors,
            sources,
            ..ClientConfig::default()
        })
    }
}
