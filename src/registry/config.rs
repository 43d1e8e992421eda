//! How to speak to registries.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::auth::Sources;
use crate::fetch::{Proxies, Watch, first_pause};

/// How to speak to registries.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Every request is refused.
    pub offline: bool,
    /// PEM files with certificates to trust beside the machine's own.
    pub extra_ca: Vec<PathBuf>,
    /// Proxies; what is on this machine is reached without.
    pub proxies: Proxies,
    /// Registries (`host` or `host:port`) that may be spoken to without TLS, or with any certificate.
    pub insecure: Vec<String>,
    /// Folders with a folder a registry that holds `*.crt`, `*.cert` and `*.key`, as in `/etc/docker/certs.d`.
    pub certificates: Vec<PathBuf>,
    /// Addresses of names, instead of what the resolver says.
    pub addresses: BTreeMap<String, SocketAddr>,
    /// Registries to try first when something of a registry is wanted by digest: `docker.io` to `mirror.example/hub`.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Where credentials are looked for.
    pub sources: Sources,
    /// How long to wait and how often to try.
    pub patience: Patience,
    /// Is told of everything that moves.
    pub watch: Option<Arc<Watch>>,
    /// Blobs that are sent or received at once.
    pub transfers: usize,
    /// Small requests at once.
    pub requests: usize,
}

/// How long to wait and how often to try.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Failures in a row, without a byte of progress between them, after which an act fails.
    pub failures: u32,
    /// The first pause; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause of our own.
    pub longest_pause: Duration,
    /// The longest wait that a registry may ask for.
    pub longest_wait: Duration,
    /// How long nothing may move on a connection.
    pub idle: Duration,
    /// How long a registry may think about a complete upload.
    pub commit: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            failures: 6,
            pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(20),
            longest_wait: Duration::from_secs(300),
            idle: Duration::from_secs(60),
            commit: Duration::from_secs(900),
        }
    }
}

impl Patience {
    /// For what can be had or left: there is a whole span of patience, and several attempts fit into it.
    pub fn within(span: Duration) -> Patience {
        let usual = Patience::default();
        let idle = usual.idle.min(span / 3);
        Patience { failures: 4, pause: first_pause(span), longest_wait: span, idle, ..usual }
    }
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            offline: false,
            extra_ca: Vec::new(),
            proxies: Proxies::default(),
            insecure: Vec::new(),
            certificates: Vec::new(),
            addresses: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            sources: Sources::default(),
            patience: Patience::default(),
            watch: None,
            transfers: 5,
            requests: 16,
        }
    }
}
