//! How the network is reached: certificates, proxies, and who may know a password.

use std::path::PathBuf;

use super::{Config, ConfigError, Found, apt, python};
use crate::fetch::{Credential, HttpConfig, Proxies, Url};

/// Variables by which other tools are told of certificates.
const CA_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "UV_CA_BUNDLE", "AWS_CA_BUNDLE"];

impl Config {
    /// How to reach the network: extra certificates, credentials (from URLs, netrc and apt's auth.conf) and proxies.
    ///
    /// # Errors
    /// If a file or value makes no sense.
    pub fn http(&self) -> Result<HttpConfig, ConfigError> {
        if let Some(known) = self.network.get() {
            return Ok(known.clone());
        }
        let found = HttpConfig {
            offline: false,
            extra_ca: self.extra_ca()?,
            credentials: self.credentials()?,
            proxies: self.proxies()?,
            patience: None,
        };
        Ok(self.network.get_or_init(|| found).clone())
    }

    fn extra_ca(&self) -> Result<Vec<PathBuf>, ConfigError> {
        let mut paths = Vec::new();
        let own = match self.environment.path("IMGBUILD_CA") {
            Some(path) => vec![(path, "the variable IMGBUILD_CA".to_owned())],
            None => {
                let found = self.in_file(&["network", "ca"]).into_iter();
                let file = self.file.as_ref();
                found.filter_map(|found| Some((file?.path(&found.text), found.place))).collect()
            }
        };
        for (path, place) in own {
            if !path.is_file() {
                let why = format!("there is no file `{}`", path.display());
                return Err(ConfigError::Value { place, why });
            }
            paths.push(path);
        }
        let mut others: Vec<PathBuf> = CA_VARIABLES.iter().filter_map(|name| self.environment.path(name)).collect();
        for (_, sections) in self.pip_files()? {
            others.extend(python::pip_option(&sections, "cert").map(|path| self.environment.directory.join(path)));
        }
        // What other tools are told need not be there: it is theirs to complain.
        paths.extend(others.into_iter().filter(|path| path.is_file()));
        let mut seen = Vec::new();
        paths.retain(|path| {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            let new = !seen.contains(&real);
            seen.push(real);
            new
        });
        Ok(paths)
    }

    fn credentials(&self) -> Result<Vec<Credential>, ConfigError> {
        let mut credentials = self.index_credentials()?;
        for key in [["debian", "mirror"], ["debian", "security-mirror"]] {
            credentials.extend(self.in_file(&key).iter().filter_map(|found| credential(&found.url().ok()?)));
        }
        for found in self.file.iter().flat_map(|file| file.named(&["debian", "repositories"])) {
            for text in &found.1.texts {
                credentials.extend(Url::parse(text).ok().as_ref().and_then(credential));
            }
        }
        let netrc = self.environment.path("NETRC").or_else(|| self.environment.home().map(|home| home.join(".netrc")));
        let apt = apt::folder(&self.environment);
        let mut files: Vec<PathBuf> = netrc.into_iter().chain([apt.join("auth.conf")]).collect();
        if let Ok(entries) = std::fs::read_dir(apt.join("auth.conf.d")) {
            let mut more: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            more.retain(|path| path.extension().is_some_and(|ending| ending == "conf"));
            more.sort();
            files.extend(more);
        }
        for path in files {
            // Unreadable is as good as absent: such files are often another user's.
            if let Ok(text) = std::fs::read_to_string(&path) {
                credentials.extend(netrc_entries(&text));
            }
        }
        Ok(credentials)
    }

    fn proxies(&self) -> Result<Proxies, ConfigError> {
        let environment = &self.environment;
        let either = |name: &str| -> Result<Option<String>, ConfigError> {
            let upper = name.to_ascii_uppercase();
            // In a CGI script HTTP_PROXY is a header that a visitor sent.
            let upper = (name != "http_proxy" || environment.variable("REQUEST_METHOD").is_none()).then_some(upper);
            let lower = environment.text(name)?;
            let found = match (lower, upper) {
                (Some(lower), _) => Some(lower),
                (None, Some(upper)) => environment.text(&upper)?,
                (None, None) => None,
            };
            Ok(found.map(str::to_owned))
        };
        let all = either("all_proxy")?;
        let mut proxies = Proxies {
            http: either("http_proxy")?.or_else(|| all.clone()),
            https: either("https_proxy")?.or(all),
            none_for: either("no_proxy")?,
            hosts: Vec::new(),
        };
        if proxies.http.is_none() && proxies.https.is_none() {
            let own = self.in_file(&["network", "proxy"]).into_iter().next();
            let pip = || -> Result<Option<Found>, ConfigError> {
                if let Some(text) = environment.text("PIP_PROXY")? {
                    return Ok(Some(Found { text: text.to_owned(), place: "the variable PIP_PROXY".into() }));
                }
                Ok(self.pip_files()?.iter().find_map(|(path, sections)| {
                    let text = python::pip_option(sections, "proxy")?.to_owned();
                    Some(Found { text, place: format!("`proxy` in `{}`", path.display()) })
                }))
            };
            let found = match own {
                Some(own) => Some(own),
                None => {
                    proxies.hosts = self.apt_proxies()?;
                    pip()?
                }
            };
            proxies.http = found.as_ref().map(|found| found.text.clone());
            proxies.https = proxies.http.clone();
        }
        if proxies.none_for.is_none() {
            let listed: Vec<String> =
                self.in_file(&["network", "no-proxy"]).into_iter().map(|found| found.text).collect();
            proxies.none_for = Some(listed.join(",")).filter(|text| !text.is_empty());
        }
        Ok(proxies)
    }

    /// What apt is told, for the hosts that apt would ask.
    fn apt_proxies(&self) -> Result<Vec<(String, Option<String>)>, ConfigError> {
        let told = apt::proxies(&self.environment)?;
        if told == apt::Proxies::default() {
            return Ok(Vec::new());
        }
        let mut hosts = Vec::new();
        for source in apt::sources(&self.environment)? {
            let Some(host) = source.uri.host_str() else { continue };
            let proxy = told.hosts.get(host).or_else(|| told.schemes.get(source.uri.scheme()));
            if let Some(proxy) = proxy {
                let proxy = (!proxy.eq_ignore_ascii_case("DIRECT")).then(|| proxy.clone());
                hosts.push((host.to_owned(), proxy));
            }
        }
        hosts.dedup();
        Ok(hosts)
    }
}

/// User and password that stand in a URL.
pub(super) fn credential(url: &Url) -> Option<Credential> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let host = match (url.host_str()?, url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    Some(Credential {
        host,
        path: String::new(),
        user: crate::python::decoded(url.username()),
        password: crate::python::decoded(url.password().unwrap_or_default()),
    })
}

/// `machine`, `login` and `password` of a netrc file or of apt's auth.conf, where a machine may have a scheme, a port and
/// a path. `default` is not taken: it would send a password to whoever is asked.
fn netrc_entries(text: &str) -> Vec<Credential> {
    let mut entries: Vec<Credential> = Vec::new();
    let mut open = false;
    let mut macro_body = false;
    for line in text.lines() {
        if macro_body {
            macro_body = !line.trim().is_empty();
            continue;
        }
        let mut words = tokens(line).into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "machine" => {
                    let name = words.next().unwrap_or_default();
                    let name = name.split_once("://").map_or(name.as_str(), |(_, rest)| rest);
                    let (host, path) = name.split_at(name.find('/').unwrap_or(name.len()));
                    open = !host.is_empty();
                    if open {
                        let (user, password) = (String::new(), String::new());
                        entries.push(Credential { host: host.to_owned(), path: path.to_owned(), user, password });
                    }
                }
                "default" => open = false,
                "macdef" => {
                    macro_body = true;
                    break;
                }
                field @ ("login" | "user" | "password" | "account") => {
                    let value = words.next().unwrap_or_default();
                    match entries.last_mut().filter(|_| open) {
                        Some(entry) if matches!(field, "login" | "user") => entry.user = value,
                        Some(entry) if field == "password" => entry.password = value,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }
    entries.retain(|entry| !entry.user.is_empty() || !entry.password.is_empty());
    entries
}

/// Words of a line: quoted ones may hold blanks, `#` at a word's start begins a comment except behind `password`.
fn tokens(line: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        if rest.starts_with('#') && found.last().is_none_or(|last| last != "password") {
            break;
        }
        let mut word = String::new();
        let quoted = rest.starts_with('"');
        let mut characters = rest.char_indices().skip(usize::from(quoted));
        let mut end = rest.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => word.extend(characters.next().map(|(_, next)| next)),
                '"' if quoted => {
                    end = at + 1;
                    break;
                }
                c if c.is_whitespace() && !quoted => {
                    end = at;
                    break;
                }
                c => word.push(c),
            }
        }
        found.push(word);
        rest = rest[end..].trim_start();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netrc_files_are_read() {
        let text = "# machine no.example login a password b\nmachine one.example login me password s#cret # why\n\
            machine https://two.example:8443/deb/ login \"a b\"\n  password \"q\\\"x\"\nmacdef init\nmachine bad.example login x password y\n\n\
            default login anonymous password everywhere\nmachine empty.example\nmachine three.example password only";
        let shown: Vec<String> = netrc_entries(text)
            .iter()
            .map(|entry| format!("{} {} {} {}", entry.host, entry.path, entry.user, entry.password))
            .collect();
        assert_eq!(shown, ["one.example  me s#cret", "two.example:8443 /deb/ a b q\"x", "three.example   only",]);
    }

    #[test]
    fn debugging_shows_no_password() {
        let entry = &netrc_entries("machine a.example login me password s3cret")[0];
        assert!(!format!("{entry:?}").contains("s3cret"));
    }
}
