//! The simple repository API (PEP 503 in HTML, PEP 691 and PEP 700 in JSON): where a locked file is.
//!
//! An index is asked for a *place*, never believed for contents: what is downloaded is verified by the lock's hash. A
//! name is taken from the first index that has it and from no other, or a stranger could publish a private package's
//! name elsewhere (dependency confusion); an index that fails is therefore an error, not a reason to ask the next.

use std::collections::BTreeMap;

use layers::Digest;
use serde::Deserialize;
use url::Url;

use super::select::closure;
use super::{LockedFile, LockedSet, PythonError, Target, Wheel, check_file_name, decoded, normalised};

/// What is asked for: JSON, or else HTML (PEP 691, "Version + Format Selection").
pub const ACCEPT: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01";

/// A way to get documents.
pub trait Index {
    /// The document at `url`; `None` if there is none (status 404 or 410). Everything else that is no success,
    /// refused credentials too, is an error, which says no secrets.
    fn get(&self, url: &str, accept: &str) -> Result<Option<Vec<u8>>, String>;
}

/// The configured indexes, in the order in which they are asked.
pub struct Indexes<'a> {
    roots: Vec<Url>,
    pins: BTreeMap<String, Url>,
    documents: &'a dyn Index,
}

/// Where a wheel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The file. May hold credentials: never shown, never recorded.
    pub url: String,
    /// Bytes, where the index says so (PEP 700).
    pub size: Option<u64>,
    /// Why the file was yanked (PEP 592), perhaps without a word. A locked file is used all the same, with a warning.
    pub yanked: Option<String>,
}

/// A file that an index lists.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    name: String,
    url: Url,
    sha256: Option<Digest>,
    size: Option<u64>,
    yanked: Option<String>,
}

impl<'a> Indexes<'a> {
    /// Indexes by their roots, below which each project has its page.
    ///
    /// # Errors
    /// If a root is not a URL.
    pub fn new(roots: &[String], documents: &'a dyn Index) -> Result<Indexes<'a>, PythonError> {
        let parse = |(place, root): (usize, &String)| rooted(root, &format!("number {}", place + 1));
        let roots = roots.iter().enumerate().map(parse).collect::<Result<Vec<Url>, PythonError>>()?;
        Ok(Indexes { roots, pins: BTreeMap::new(), documents })
    }

    /// Takes these projects, by normalised name, from the index at that root and from no other.
    ///
    /// # Errors
    /// If a root is not a URL.
    pub fn pinned(mut self, pins: &BTreeMap<String, Url>) -> Result<Indexes<'a>, PythonError> {
        for (name, root) in pins {
            self.pins.insert(name.clone(), rooted(root.as_str(), &format!("of the pin of {name}"))?);
        }
        Ok(self)
    }

    /// Finds the place of a locked wheel.
    ///
    /// # Errors
    /// If no index has the project, or the first that has it lacks the file or has other bytes under its name.
    pub fn find(&self, wheel: &Wheel) -> Result<Found, PythonError> {
        if let Some(url) = &wheel.url {
            return Ok(Found { url: url.clone(), size: wheel.size, yanked: None });
        }
        let (root, listed) = self.project(&wheel.name)?;
        let named: Vec<&Listed> = listed.iter().filter(|listed| listed.name == wheel.file).collect();
        let same = named.iter().find(|listed| listed.sha256 == Some(wheel.sha256));
        match same.or_else(|| named.iter().find(|listed| listed.sha256.is_none())) {
            Some(listed) => Ok(Found {
                url: listed.url.to_string(),
                size: listed.size.or(wheel.size),
                yanked: listed.yanked.clone(),
            }),
            None => match named.iter().find_map(|listed| listed.sha256) {
                Some(found) => Err(PythonError::FileReplaced {
                    index: shown(root),
                    file: wheel.file.clone(),
                    locked: wheel.sha256,
                    found,
                }),
                None => Err(PythonError::FileGone {
                    index: shown(root),
                    name: wheel.name.clone(),
                    file: wheel.file.clone(),
                }),
            },
        }
    }

    /// Gives names to the files of entries that have only hashes (requirements.txt), as far as `target` needs them.
    ///
    /// # Errors
    /// As [`Indexes::find`], or if the index says no hashes.
    pub fn complete(&self, set: &mut LockedSet, target: &Target) -> Result<(), PythonError> {
        let nameless = closure(set, target)?
            .into_iter()
            .filter(|package| package.files.is_empty() && !package.hashes.is_empty())
            .map(|package| package.name.clone())
            .collect::<Vec<String>>();
        for name in nameless {
            let (root, listed) = self.project(&name)?;
            let by_hash: BTreeMap<Digest, &Listed> =
                listed.iter().filter_map(|listed| Some((listed.sha256?, listed))).collect();
            if by_hash.is_empty() && !listed.is_empty() {
                return Err(PythonError::NoHashes { index: shown(root), name, lock: set.path.clone() });
            }
            for package in set.packages.iter_mut().filter(|package| package.name == name && package.files.is_empty()) {
                for sha256 in &package.hashes {
                    if let Some(listed) = by_hash.get(sha256) {
                        package.files.push(LockedFile {
                            name: listed.name.clone(),
                            sha256: *sha256,
                            size: listed.size,
                            url: None,
                        });
                    }
                }
                package.files.sort();
                if package.files.is_empty() && !package.hashes.is_empty() {
                    return Err(PythonError::FileGone {
                        index: shown(root),
                        name: package.label(),
                        file: "any file with a locked hash".into(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The page of the first index that has the project.
    fn project(&self, name: &str) -> Result<(&Url, Vec<Listed>), PythonError> {
        let name = normalised(name);
        // Anything else would lead elsewhere on the index.
        let first = name.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !first || !name.chars().all(|character| character.is_ascii_alphanumeric() || character == '-') {
            return Err(PythonError::UnknownProject { name, indexes: Vec::new() });
        }
        let roots = self.pins.get(&name).map_or(self.roots.as_slice(), std::slice::from_ref);
        for root in roots {
            let failed = |why: String| PythonError::Index { index: shown(root), name: name.clone(), why };
            let page = root.join(&format!("./{name}/")).map_err(|_| failed("its name gives no URL".into()))?;
            let Some(document) = self.documents.get(page.as_str(), ACCEPT).map_err(failed)? else { continue };
            return Ok((root, listed(&page, &name, &document).map_err(failed)?));
        }
        Err(PythonError::UnknownProject { name, indexes: roots.iter().map(shown).collect() })
    }
}

/// An index's root as a directory, so that projects' names can be joined to it.
fn rooted(root: &str, index: &str) -> Result<Url, PythonError> {
    let mut url = Url::parse(root).ok().filter(|url| !url.cannot_be_a_base()).ok_or_else(|| PythonError::Index {
        index: index.to_owned(),
        name: "anything".into(),
        why: "it is not a URL".into(),
    })?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// A URL without user, password, query and fragment.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only on URLs that can hold neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    format!("`{url}`")
}

/// Reads a project's page, JSON or HTML by its first character.
fn listed(page: &Url, name: &str, document: &[u8]) -> Result<Vec<Listed>, String> {
    let text = std::str::from_utf8(document).map_err(|_| "the page is not UTF-8")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_start();
    match text.as_bytes().first() {
        Some(b'{') => from_json(page, name, text),
        Some(b'<') => from_html(page, text),
        _ => Err("the page is neither JSON nor HTML".into()),
    }
}

/// Whether a file may be fetched from `url`, which the page at `page` links.
fn fetchable(page: &Url, url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        // No way down: a page that came over TLS does not send us to one that can be read on the way.
        scheme @ ("http" | "file") => scheme == page.scheme(),
        _ => false,
    }
}

#[derive(Deserialize)]
struct JsonPage {
    meta: Meta,
    name: Option<String>,
    files: Vec<JsonFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Meta {
    api_version: String,
}

#[derive(Deserialize)]
struct JsonFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
    size: Option<u64>,
    yanked: Option<Yanked>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Yanked {
    Whether(bool),
    Because(String),
}

fn from_json(page: &Url, name: &str, text: &str) -> Result<Vec<Listed>, String> {
    let parsed: JsonPage =
        serde_json::from_str(text).map_err(|error| format!("the page is not understood: {error}"))?;
    check_version(&parsed.meta.api_version)?;
    if let Some(other) = parsed.name.filter(|other| normalised(other) != name) {
        return Err(format!("the page is of `{}`", other.chars().take(100).collect::<String>()));
    }
    let mut files = Vec::new();
    for file in parsed.files {
        let Ok(url) = page.join(&file.url) else { continue };
        if check_file_name(&file.filename).is_err() || !fetchable(page, &url) {
            continue;
        }
        let yanked = match file.yanked {
            None | Some(Yanked::Whether(false)) => None,
            Some(Yanked::Whether(true)) => Some(String::new()),
            Some(Yanked::Because(why)) => Some(why),
        };
        let sha256 = file.hashes.get("sha256").and_then(|hex| Digest::from_hex(hex).ok());
        files.push(Listed { name: file.filename, url: without_fragment(url), sha256, size: file.size, yanked });
    }
    Ok(files)
}

/// PEP 629: another major version may mean anything.
fn check_version(version: &str) -> Result<(), String> {
    match version.split('.').next() {
        Some("1") => Ok(()),
        _ => Err(format!("the page has API version `{}`, not 1", version.chars().take(20).collect::<String>())),
    }
}

fn without_fragment(mut url: Url) -> Url {
    url.set_fragment(None);
    url
}

fn from_html(page: &Url, text: &str) -> Result<Vec<Listed>, String> {
    let mut base = page.clone();
    let mut files = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        // A tag without an end is a page cut short.
        let Some((element, attributes, after)) = tag(rest) else { break };
        rest = after;
        let attribute = |name: &str| attributes.get(name).map(String::as_str);
        match element.as_str() {
            "base" => {
                if let Some(url) = attribute("href").and_then(|href| page.join(href).ok()) {
                    base = url;
                }
            }
            "meta" if attribute("name") == Some("pypi:repository-version") => {
                check_version(attribute("content").unwrap_or_default())?;
            }
            "a" => {
                let Some(url) = attribute("href").and_then(|href| base.join(href.trim()).ok()) else { continue };
                let name = decoded(url.path().rsplit('/').next().unwrap_or_default());
                if check_file_name(&name).is_err() || !fetchable(page, &url) {
                    continue;
                }
                let mut pairs = url.fragment().unwrap_or_default().split('&');
                let hex = pairs.find_map(|pair| pair.strip_prefix("sha256="));
                let sha256 = hex.and_then(|hex| Digest::from_hex(hex).ok());
                let yanked = attributes.get("data-yanked").cloned();
                files.push(Listed { name, url: without_fragment(url), sha256, size: None, yanked });
            }
            _ => {}
        }
    }
    Ok(files)
}

/// One tag, from behind its `<`: the element's name, its attributes, and what follows the tag; `None` if it has no
/// end.
fn tag(text: &str) -> Option<(String, BTreeMap<String, String>, &str)> {
    let ends = |character: char| character.is_ascii_whitespace() || matches!(character, '>' | '/' | '=');
    let name_end = text.find(ends).unwrap_or(text.len());
    let element = text[..name_end].to_ascii_lowercase();
    let mut attributes = BTreeMap::new();
    let mut rest = &text[name_end..];
    loop {
        rest = rest
            .trim_start_matches(|character: char| character.is_ascii_whitespace() || matches!(character, '/' | '='));
        if rest.is_empty() {
            return None;
        }
        if let Some(after) = rest.strip_prefix('>') {
            return Some((element, attributes, after));
        }
        let end = rest.find(ends).unwrap_or(rest.len());
        let name = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start();
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            rest = after.trim_start();
            let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''));
            let (found, after) = match quote {
                Some(quote) => rest[1..].split_once(quote)?,
                None => {
                    let bare = |character: char| character.is_ascii_whitespace() || character == '>';
                    rest.split_at(rest.find(bare).unwrap_or(rest.len()))
                }
            };
            (value, rest) = (found, after);
        }
        // The first of two attributes of one name counts (HTML, "attribute name state").
        attributes.entry(name).or_insert_with(|| unescaped(value));
    }
}

/// The name of a character reference and what follows it; names are short, so that the search is, too.
fn reference(text: &str) -> Option<(&str, &str)> {
    let (end, _) = text.char_indices().take(9).find(|&(_, character)| character == ';')?;
    Some((&text[..end], &text[end + 1..]))
}

/// Undoes the character references that URLs and yank reasons meet.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let found = reference(&rest[1..]);
        let character = found.and_then(|(name, _)| match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => {
                let number = name.strip_prefix('#')?;
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => number.parse(),
                };
                char::from_u32(code.ok()?)
            }
        });
        match (character, found) {
            (Some(character), Some((_, after))) => {
                plain.push(character);
                rest = after;
            }
            _ => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}
