//! Where a registry may send us.
//!
//! A registry names other places: a storage service that takes uploads, a server that gives tokens. A public registry
//! that names an address inside the user's network wants to use the client as its arm there, and is refused. Names are
//! checked when they are resolved, so that one which resolves to a public address now and a private one later gains
//! nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

/// Whether an address is reachable only from near: loopback, private, link-local, carrier-grade, or of no use at all.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || a == 0
                || a == 100 && (64..128).contains(&b)
                || a == 198 && (18..20).contains(&b)
                || a >= 240
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_private(IpAddr::V4(v4));
            }
            let segments = v6.segments();
            // NAT64 and 6to4 carry an IPv4 address inside.
            let inner = |high: u16, low: u16| {
                let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                is_private(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            };
            match segments {
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
                [0x2002, high, low, ..] => inner(high, low),
                [first, ..] => {
                    v6.is_loopback()
                        || v6.is_unspecified()
                        || v6.is_multicast()
                        || first & 0xfe00 == 0xfc00
                        || first & 0xffc0 == 0xfe80
                        || segments[..6] == [0; 6]
                }
            }
        }
    }
}

/// Whether a name is one of a network's own.
fn is_private_name(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    !name.contains('.')
        || [".localhost", ".local", ".internal", ".lan", ".home.arpa"].iter().any(|suffix| name.ends_with(suffix))
}

/// Whether the host of a URL is plainly a private one; a name that has to be resolved is not.
pub fn is_plainly_private(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_private(address.into()),
        Some(Host::Ipv6(address)) => is_private(address.into()),
        Some(Host::Domain(name)) => is_private_name(&name.to_ascii_lowercase()),
        None => true,
    }
}

/// Whether a URL leads to this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// Whether two URLs lead to the same server.
pub fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether `to` may be asked because a registry at `from` says so; the reason if not. `public` says what the registry
/// is, `insecure` which hosts may be spoken to without TLS.
pub fn may_follow(from: &Url, to: &Url, public: bool, insecure: &dyn Fn(&Url) -> bool) -> Result<(), &'static str> {
    if !matches!(to.scheme(), "http" | "https") || to.host().is_none() {
        return Err("it is not an http or https URL");
    }
    if same_origin(from, to) {
        return Ok(());
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Err("it contains a user name");
    }
    if to.scheme() == "http" && (from.scheme() == "https" || !insecure(to)) {
        return Err("it is not encrypted");
    }
    let link_local = match to.host() {
        Some(Host::Ipv4(address)) => address.is_link_local(),
        Some(Host::Ipv6(address)) => address.segments()[0] & 0xffc0 == 0xfe80,
        _ => false,
    };
    if link_local {
        return Err("it is a link-local address, where clouds keep their machines' secrets");
    }
    if public && is_plainly_private(to) {
        return Err("it is an address of a private network");
    }
    Ok(())
}

/// Resolves names and leaves private addresses out.
#[derive(Debug, Clone, Copy)]
pub struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.filter(|at| !is_private(at.ip())).collect();
            if found.is_empty() {
                return Err(
                    "the name has no public address, and a public registry may not point into a private network".into(),
                );
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_disguise() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "::7f00:1",
            "255.255.255.255",
        ] {
            assert!(is_private(address.parse().expect("is one")), "{address}");
        }
        for address in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2001:4860:4860::8888", "64:ff9b::808:808"] {
            assert!(!is_private(address.parse().expect("is one")), "{address}");
        }
    }

    #[test]
    fn a_public_registry_may_not_point_inwards_and_nobody_to_less_safety() {
        let follow = |from: &str, to: &str, public: bool| {
            let (from, to) = (Url::parse(from).expect("parses"), Url::parse(to).expect("parses"));
            may_follow(&from, &to, public, &is_loopback)
        };
        for (from, to) in [
            ("https://r.io/v2/", "https://r.io/x?y=z"),
            ("https://r.io/v2/", "https://r.io:443/x"),
            ("https://r.io/v2/", "https://storage.example.com/x"),
        ] {
            assert_eq!(follow(from, to, true), Ok(()), "{to}");
        }
        for to in [
            "http://r.io/x",
            "https://127.0.0.1/x",
            "https://2130706433/x",
            "https://0x7f.1/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://169.254.169.254/latest",
            "https://localhost/x",
            "https://metadata.google.internal/x",
            "https://printer/x",
            "https://user@s.example.com/x",
            "ftp://s.example.com/x",
            "file:///etc/passwd",
        ] {
            assert!(follow("https://r.io/v2/", to, true).is_err(), "{to}");
        }
        assert_eq!(follow("http://localhost:5000/v2/", "http://127.0.0.1:9000/x", false), Ok(()));
        assert_eq!(follow("https://10.0.0.1/v2/", "https://10.0.0.2/x", false), Ok(()));
        assert!(follow("http://localhost:5000/v2/", "http://s.example.com/x", false).is_err());
        assert!(follow("https://10.0.0.1/v2/", "https://169.254.169.254/x", false).is_err());
    }
}
