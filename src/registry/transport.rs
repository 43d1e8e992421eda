//! HTTP clients, one for each host that wants something of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::config::ClientConfig;
use super::guard::{self, PublicOnly};
use crate::fetch::chain;

/// Builds the client for a host (`host` or `host:port`).
pub fn build(
    config: &ClientConfig,
    scheme: &str,
    host: &str,
    insecure: bool,
    dns: Option<PublicOnly>,
) -> Result<reqwest::Client, String> {
    // Another part of the program may have chosen a provider before; either is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("imgbuild/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(30))
        .tcp_keepalive(Duration::from_secs(30))
        .pool_max_idle_per_host(config.requests.max(config.transfers))
        .redirect(reqwest::redirect::Policy::none())
        // What is hashed is what was stored: nothing may be unpacked on the way.
        .no_gzip();
    if let Some(dns) = dns {
        builder = builder.dns_resolver(dns);
    }
    for (name, address) in &config.addresses {
        builder = builder.resolve(name, *address);
    }
    let here = reqwest::Url::parse(&format!("{scheme}://{host}/")).is_ok_and(|url| guard::is_loopback(&url));
    builder = if here { builder.no_proxy() } else { config.proxies.apply(builder)? };
    if scheme == "http" {
        // Reading the machine's certificates takes longer than a whole push to a registry on this machine.
        return builder.tls_certs_only([]).build().map_err(|error| chain(&error));
    }
    let own = own_files(config, host);
    let mut certificates = Vec::new();
    for path in config.extra_ca.iter().chain(&own.authorities) {
        let pem = read(path)?;
        let found = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|error| format!("`{}` holds no certificates: {}", path.display(), chain(&error)))?;
        certificates.extend(found);
    }
    builder = builder.tls_certs_merge(certificates);
    if let Some((certificate, key)) = &own.identity {
        let mut pem = read(certificate)?;
        pem.push(b'\n');
        pem.extend(read(key)?);
        let identity = reqwest::Identity::from_pem(&pem).map_err(|_| {
            format!("`{}` and `{}` are not a PEM certificate and its key", certificate.display(), key.display())
        })?;
        builder = builder.identity(identity);
    }
    if insecure {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder.build().map_err(|error| chain(&error))
}

#[derive(Default)]
struct OwnFiles {
    authorities: Vec<std::path::PathBuf>,
    identity: Option<(std::path::PathBuf, std::path::PathBuf)>,
}

/// The certificates that Docker and podman keep for a registry.
fn own_files(config: &ClientConfig, host: &str) -> OwnFiles {
    let mut own = OwnFiles::default();
    for folder in config.certificates.iter().map(|folder| folder.join(host)) {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => own.authorities.push(path),
                Some("cert") if own.identity.is_none() => {
                    let key = path.with_extension("key");
                    if key.is_file() {
                        own.identity = Some((path, key));
                    }
                }
                _ => {}
            }
        }
    }
    own
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("`{}`: {error}", path.display()))
}
