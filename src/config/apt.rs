//! What the machine's apt is told: its sources (sources.list(5), one-line and deb822), and its proxies (apt.conf(5)).
//!
//! Only sources of archives that can be asked over HTTP count. A list of mirrors on disk (`mirror+file:`, as Debian's
//! cloud images have it) is read; what apt would have to fetch first, and discs, are passed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ConfigError, Environment};
use crate::fetch::{Url, parse_url};

/// One archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Its base, below which `dists` lies.
    pub uri: Url,
    /// Suites that are taken from it.
    pub suites: Vec<String>,
    /// How likely it is Debian's.
    pub likely: Likely,
}

/// How likely an archive is Debian's. Only its signed Release knows; this decides which to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likely {
    /// apt holds it to Debian's keys.
    Signed,
    /// It is held to no keys of its own and has Debian's suites and `main`.
    Named,
    /// Another distribution's, a vendor's, or a mirror with a key of its own.
    Unlikely,
}

/// Names by which people take suites of Debian.
const SUITES: [&str; 12] = [
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
    "sid",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
];

/// apt's folder.
pub(super) fn folder(environment: &Environment) -> PathBuf {
    environment.path("IMGBUILD_APT_DIR").unwrap_or_else(|| environment.machine("etc/apt"))
}

/// The machine's sources, in apt's order of files.
pub(super) fn sources(environment: &Environment) -> Result<Vec<Source>, ConfigError> {
    let folder = folder(environment);
    let mut found = Vec::new();
    let mut lists = vec![folder.join("sources.list")];
    lists.extend(files(&folder.join("sources.list.d"), &["list", "sources"]));
    for path in lists {
        let Some(text) = read(&path)? else { continue };
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("sources") => stanzas(&text, environment, &mut found),
            _ => lines(&text, environment, &mut found),
        }
    }
    Ok(found)
}

/// Bases to ask for a suite, the likely ones first. Archives that are unlikely to be Debian's are asked only where
/// there are no others.
pub(super) fn bases(sources: &[Source], security: bool) -> Vec<Url> {
    let best = sources.iter().map(|source| source.likely).min();
    let keep = |source: &&Source| source.likely != Likely::Unlikely || best == Some(Likely::Unlikely);
    let mut sorted: Vec<&Source> = sources.iter().filter(keep).collect();
    sorted.sort_by_key(|source| source.likely);
    let is_security = |source: &&&Source| {
        source.suites.iter().any(|suite| suite.ends_with("-security") || suite.ends_with("/updates"))
    };
    let of_security = sorted.iter().filter(is_security).map(|source| source.uri.clone());
    let others: Vec<Url> =
        sorted.iter().filter(|source| !is_security(source)).map(|source| source.uri.clone()).collect();
    let mut bases: Vec<Url> = if security {
        of_security.chain(with_siblings(others)).collect()
    } else {
        others.into_iter().chain(of_security).collect()
    };
    unique(&mut bases);
    bases
}

/// Each mirror's sibling `<mirror>-security`, then the mirrors themselves: some carry all suites.
pub(super) fn with_siblings(mirrors: Vec<Url>) -> Vec<Url> {
    let mut all: Vec<Url> = mirrors
        .iter()
        .filter(|mirror| !mirror.path().trim_end_matches('/').is_empty())
        .map(|mirror| {
            let mut sibling = mirror.clone();
            sibling.set_path(&format!("{}-security/", mirror.path().trim_end_matches('/')));
            sibling
        })
        .collect();
    all.extend(mirrors);
    unique(&mut all);
    all
}

fn unique(urls: &mut Vec<Url>) {
    let mut seen: Vec<String> = Vec::new();
    urls.retain(|url| {
        let key = url.as_str().trim_end_matches('/').to_owned();
        let new = !seen.contains(&key);
        seen.push(key);
        new
    });
}

/// Regular files of a folder that apt would read, by name.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(plain))
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            endings.contains(&ending) && path.is_file()
        })
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        // A list that only root may read names credentials; others still name mirrors.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_path_buf(), source }),
    }
}

/// `deb [options] uri suite component...`, a line each.
fn lines(text: &str, environment: &Environment, found: &mut Vec<Source>) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t'])) else { continue };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']').unwrap_or((rest, "")),
            None => ("", rest),
        };
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let components: Vec<&str> = words.collect();
        add(&[uri], &[suite], &components, signed_by, environment, found);
    }
}

/// Stanzas of `Field: value`.
fn stanzas(text: &str, environment: &Environment, found: &mut Vec<Source>) {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
            let list = |name: &str| field(name).split_whitespace().collect::<Vec<&str>>();
            let off = ["no", "false", "without", "off", "disable", "0"];
            let enabled = !off.contains(&field("enabled").trim().to_ascii_lowercase().as_str());
            if enabled && list("types").contains(&"deb") {
                let signed_by = Some(field("signed-by").trim()).filter(|text| !text.is_empty());
                add(&list("uris"), &list("suites"), &list("components"), signed_by, environment, found);
            }
            fields.clear();
            current.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(&current) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            current = name.trim().to_ascii_lowercase();
            fields.insert(current.clone(), value.to_owned());
        }
    }
}

fn add(
    uris: &[&str],
    suites: &[&str],
    components: &[&str],
    signed_by: Option<&str>,
    environment: &Environment,
    found: &mut Vec<Source>,
) {
    let stem = |suite: &str| suite.split(['-', '/']).next().unwrap_or_default().to_owned();
    let of_debian = components.contains(&"main")
        && suites.iter().any(|suite| {
            let extra = suite.strip_prefix(stem(suite).as_str()).unwrap_or_default();
            SUITES.contains(&stem(suite).as_str())
                && matches!(extra, "" | "-updates" | "-security" | "-backports" | "-proposed-updates" | "/updates")
        });
    let likely = match signed_by {
        Some(keys) if keys.contains("debian-archive-") => Likely::Signed,
        None if of_debian => Likely::Named,
        _ => Likely::Unlikely,
    };
    let mut usable = Vec::new();
    for uri in uris {
        match uri.strip_prefix("mirror+file:") {
            Some(path) => {
                let path = environment.machine(&format!("/{}", path.trim_start_matches('/')));
                let list = std::fs::read_to_string(path).unwrap_or_default();
                let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
                usable.extend(list.lines().filter(|line| !line.starts_with('#')).filter_map(first));
            }
            None => usable.push((*uri).to_owned()),
        }
    }
    for uri in usable {
        if let Ok(uri) = parse_url(&uri) {
            found.push(Source { uri, suites: suites.iter().map(|suite| (*suite).to_owned()).collect(), likely });
        }
    }
}

/// Proxies that apt's configuration sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Proxies {
    /// By scheme.
    pub schemes: BTreeMap<String, String>,
    /// By host; `DIRECT` is none.
    pub hosts: BTreeMap<String, String>,
}

/// Reads `Acquire::http::Proxy`, `Acquire::https::Proxy` and those of single hosts.
pub(super) fn proxies(environment: &Environment) -> Result<Proxies, ConfigError> {
    let folder = folder(environment);
    let mut paths: Vec<PathBuf> = files(&folder.join("apt.conf.d"), &["", "conf"]);
    paths.push(folder.join("apt.conf"));
    let mut proxies = Proxies::default();
    for path in paths {
        let Some(text) = read(&path)? else { continue };
        for (key, value) in settings(&text) {
            let parts: Vec<&str> = key.split("::").collect();
            if let ["acquire", scheme @ ("http" | "https"), "proxy", host @ ..] = parts.as_slice() {
                let (map, name) = match host {
                    [] => (&mut proxies.schemes, (*scheme).to_owned()),
                    [host, ..] => (&mut proxies.hosts, (*host).to_owned()),
                };
                map.insert(name, value);
            }
        }
    }
    // apt asks the http proxy for https, too, where nothing else is said.
    if let Some(http) = proxies.schemes.get("http").cloned() {
        proxies.schemes.entry("https".into()).or_insert(http);
    }
    Ok(proxies)
}

/// The settings of an apt.conf, keys in lower case with their scopes written out.
fn settings(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut scopes: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '#' => while characters.next_if(|c| *c != '\n').is_some() {},
            '/' if characters.peek() == Some(&'/') => while characters.next_if(|c| *c != '\n').is_some() {},
            '/' if characters.peek() == Some(&'*') => {
                let mut last = ' ';
                for c in characters.by_ref().skip(1) {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
            }
            '"' => {
                let mut word = String::new();
                while let Some(c) = characters.next_if(|c| *c != '"') {
                    word.push(c);
                }
                characters.next();
                words.push(word);
            }
            '{' => scopes.push(std::mem::take(&mut words).concat().to_ascii_lowercase()),
            '}' => {
                scopes.pop();
                words.clear();
            }
            ';' => {
                if let [key, value] = words.as_slice() {
                    let key = key.to_ascii_lowercase();
                    let path: Vec<&str> = scopes.iter().map(String::as_str).chain([key.as_str()]).collect();
                    found.push((path.join("::"), value.clone()));
                }
                words.clear();
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) = characters.next_if(|c| !c.is_whitespace() && !matches!(c, '{' | '}' | ';' | '"')) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_settings_are_read_in_both_spellings() {
        let text = "// a comment\nAcquire::http::Proxy \"http://proxy.example:3128\"; /* x; */\n\
            Acquire { https { Proxy \"DIRECT\"; Proxy::deb.example \"http://other.example/\"; }; };\n# end\nAPT::X { a; };";
        assert_eq!(
            settings(text),
            [
                ("acquire::http::proxy".to_owned(), "http://proxy.example:3128".to_owned()),
                ("acquire::https::proxy".to_owned(), "DIRECT".to_owned()),
                ("acquire::https::proxy::deb.example".to_owned(), "http://other.example/".to_owned()),
            ]
        );
    }

    #[test]
    fn broken_apt_settings_end() {
        for text in ["\"", "/*", "{", "}}}", "a {", "Acquire::http::Proxy \"x", ";;", "/"] {
            assert_eq!(settings(text), [], "{text}");
        }
    }
}
