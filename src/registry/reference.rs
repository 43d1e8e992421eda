//! Names of images in registries: `registry/repository:tag@digest`.
//!
//! The grammar is that of the distribution project, read strictly: one way to write a thing, no user information, no
//! scheme, lower-case digests. A name without a registry is Docker Hub's, as everywhere.

use std::fmt;
use std::str::FromStr;

use super::digest::AnyDigest;

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {why}")]
pub struct InvalidReference {
    text: String,
    why: &'static str,
}

/// The registry that names without a host belong to.
pub const DOCKER_HUB: &str = "docker.io";

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// Host and port, lower case: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub registry: String,
    /// Such as `library/debian`.
    pub path: String,
}

/// An image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Where it lies.
    pub repository: Repository,
    /// Its tag, if one is written.
    pub tag: Option<String>,
    /// Its digest, if one is written.
    pub digest: Option<AnyDigest>,
}

impl Repository {
    /// The repository with a tag.
    pub fn tagged(&self, tag: &str) -> Reference {
        Reference { repository: self.clone(), tag: Some(tag.to_owned()), digest: None }
    }

    /// The repository with a digest.
    pub fn at(&self, digest: AnyDigest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }

    /// The host that answers for the registry: Docker Hub's is not the one in its names.
    pub fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { "registry-1.docker.io" } else { &self.registry }
    }

    /// Parses `registry/path` without tag and digest.
    pub fn parse(text: &str) -> Result<Repository, InvalidReference> {
        let reference: Reference = text.parse()?;
        match (reference.tag, reference.digest) {
            (None, None) => Ok(reference.repository),
            _ => Err(invalid(text, "a repository is named without tag and digest")),
        }
    }
}

impl Reference {
    /// What a manifest is asked for by: the digest, else the tag, else `latest`.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same image, with the digest that it was found to have.
    pub fn pinned(&self, digest: AnyDigest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// The reference as the `oci-distribution` crate's type.
    pub fn to_oci(&self) -> oci_distribution::Reference {
        let (registry, path) = (self.repository.registry.clone(), self.repository.path.clone());
        match (&self.tag, &self.digest) {
            (Some(tag), Some(digest)) => {
                oci_distribution::Reference::with_tag_and_digest(registry, path, tag.clone(), digest.to_string())
            }
            (None, Some(digest)) => oci_distribution::Reference::with_digest(registry, path, digest.to_string()),
            (tag, None) => {
                let tag = tag.clone().unwrap_or_else(|| "latest".into());
                oci_distribution::Reference::with_tag(registry, path, tag)
            }
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn invalid(text: &str, why: &'static str) -> InvalidReference {
    // User information may hold a password: what stands before an `@` is repeated only where a digest was meant behind it.
    let digest = |text: &str| text.starts_with("sha256:") || text.starts_with("sha512:");
    let shown = match (text.split_once('@'), text.rsplit_once('@')) {
        (Some((_, first)), _) if digest(first) && !first.contains('@') => text.to_owned(),
        (_, Some((_, last))) => format!("...@{last}"),
        _ => text.to_owned(),
    };
    let shown = shown.chars().filter(|c| !c.is_control()).take(300).collect();
    InvalidReference { text: shown, why }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Reference, InvalidReference> {
        let wrong = |why| invalid(text, why);
        if text.contains("://") {
            return Err(wrong("write it without a scheme, as in `ghcr.io/owner/name:tag`"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = digest.parse().map_err(|_| wrong("what follows the `@` is not a digest"))?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            // A colon before the last slash belongs to a port.
            Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => {
                if !is_tag(tag) {
                    return Err(wrong("a tag has up to 128 letters, digits, `_`, `.` and `-`"));
                }
                (name, Some(tag.to_owned()))
            }
            _ => (name, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if looks_like_host(host) => {
                if !is_host(host) {
                    return Err(wrong("its registry is not a host name"));
                }
                (host.to_ascii_lowercase(), path.to_owned())
            }
            _ => (DOCKER_HUB.to_owned(), name.to_owned()),
        };
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
            _ => registry,
        };
        let path = match registry == DOCKER_HUB && !path.contains('/') {
            true => format!("library/{path}"),
            false => path,
        };
        if path.len() > 255 {
            return Err(wrong("a repository's name has at most 255 characters"));
        }
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(wrong("a repository's name is lower case"));
        }
        if !path.split('/').all(is_component) {
            return Err(wrong("a repository's name is made of lower-case words joined by `/`, `.`, `_`, `__` and `-`"));
        }
        Ok(Reference { repository: Repository { registry, path }, tag, digest })
    }
}

/// Whether a text can be a tag.
pub fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    (1..=128).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|&byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// The first component is a host if it cannot be a repository's: the distribution project's rule.
fn looks_like_host(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':', '['])
}

/// Whether a text is `host` or `host:port`.
pub fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (None, port),
            _ => return false,
        },
        None => match text.find(':') {
            Some(at) => (Some(&text[..at]), &text[at..]),
            None => (Some(text), ""),
        },
    };
    let port_fits = port.is_empty()
        || port.strip_prefix(':').is_some_and(|digits| {
            digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok_and(|port| port > 0)
        });
    let label = |label: &str| {
        !label.is_empty()
            && label.len() < 64
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    port_fits && host.is_none_or(|host| host.len() < 254 && host.split('.').all(label))
}

/// Words of lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let mut rest = text;
    loop {
        let word = rest.bytes().take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let dashes = rest.bytes().take_while(|&byte| byte == b'-').count();
        rest = match dashes {
            0 => match rest.strip_prefix("__").or_else(|| rest.strip_prefix(['.', '_'])) {
                Some(rest) => rest,
                None => return false,
            },
            count => &rest[count..],
        };
    }
}

/// What `--tag` says: a tag for every image, or a full reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagRequest {
    /// Goes to `<registry>/<image>:<tag>`.
    Tag(String),
    /// Goes where it says; `{image}` in it stands for the image's name.
    Reference(String),
}

impl FromStr for TagRequest {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<TagRequest, InvalidReference> {
        if !text.contains(['/', ':', '{', '@']) {
            return match is_tag(text) {
                true => Ok(TagRequest::Tag(text.into())),
                false => Err(invalid(text, "a tag has up to 128 letters, digits, `_`, `.` and `-`")),
            };
        }
        let request = TagRequest::Reference(text.into());
        // Whatever can be wrong with it is found now, with a name that is as plain as an image's can be.
        request.resolve("x", None)?;
        Ok(request)
    }
}

impl TagRequest {
    /// Whether it can name more than one image.
    pub fn serves_all(&self) -> bool {
        match self {
            TagRequest::Tag(_) => true,
            TagRequest::Reference(text) => text.contains("{image}"),
        }
    }

    /// The place of an image. `prefix` is the registry and path that bare tags go to.
    pub fn resolve(&self, image: &str, prefix: Option<&str>) -> Result<Reference, InvalidReference> {
        let text = match (self, prefix) {
            (TagRequest::Tag(tag), Some(prefix)) => format!("{}/{image}:{tag}", prefix.trim_end_matches('/')),
            (TagRequest::Tag(tag), None) => {
                return Err(invalid(tag, "a bare tag needs a registry: `--registry HOST/PREFIX`"));
            }
            (TagRequest::Reference(text), Some(_)) if !text.contains(['/', ':', '@']) => {
                let why =
                    "it is neither a tag nor a full reference: write `HOST/{image}:TAG`, or a tag without `{image}`";
                return Err(invalid(text, why));
            }
            (TagRequest::Reference(text), _) => text.replace("{image}", image),
        };
        let reference: Reference = text.parse()?;
        match (&reference.tag, &reference.digest) {
            (_, Some(_)) => Err(invalid(&text, "an image is pushed to a tag; its digest follows from its content")),
            (None, None) => Ok(Reference { tag: Some("latest".into()), ..reference }),
            (Some(_), None) => Ok(reference),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> String {
        match text.parse::<Reference>() {
            Ok(reference) => reference.to_string(),
            Err(error) => error.why.to_owned(),
        }
    }

    #[test]
    fn names_are_completed_and_printed() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, expected) in [
            ("debian", "docker.io/library/debian".to_owned()),
            ("debian:trixie", "docker.io/library/debian:trixie".into()),
            ("owner/name", "docker.io/owner/name".into()),
            ("index.docker.io/owner/name:1", "docker.io/owner/name:1".into()),
            ("docker.io/debian", "docker.io/library/debian".into()),
            ("GHCR.io/owner/name:v1.0", "ghcr.io/owner/name:v1.0".into()),
            ("ghcr.io:443/owner/name", "ghcr.io:443/owner/name".into()),
            ("localhost/a", "localhost/a".into()),
            ("localhost:5000/a/b__c-d.e:t", "localhost:5000/a/b__c-d.e:t".into()),
            ("[::1]:5000/a:1", "[::1]:5000/a:1".into()),
            ("[::1]/a", "[::1]/a".into()),
            (&format!("a/b:t@{digest}"), format!("docker.io/a/b:t@{digest}")),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let digest = format!("sha256:{}", "A".repeat(64));
        for text in [
            "",
            "a b",
            "https://ghcr.io/a",
            "user:secret@ghcr.io/a",
            "ghcr.io/",
            "ghcr.io//a",
            "ghcr.io/A/b",
            "A/b",
            "ghcr.io/a..b",
            "ghcr.io/a___b",
            "ghcr.io/-a",
            "ghcr.io/a-",
            "ghcr.io/a:",
            "ghcr.io/a:.x",
            "ghcr.io:0/a",
            "ghcr.io:99999/a",
            "ghcr.io:+1/a",
            "-x.io/a",
            "a..b.io/a",
            "[::1/a",
            "../../etc/passwd",
            &format!("a@{digest}"),
            "a@sha256:../../x",
            "a@md5:00000000000000000000000000000000",
            &format!("ghcr.io/{}", "a".repeat(256)),
            &format!("ghcr.io/a:{}", "a".repeat(129)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        for text in [
            "user:secret@ghcr.io/a".to_owned(),
            "user:secret@sharepoint.example/a".to_owned(),
            format!("user:secret@ghcr.io/a@sha256:{}", "0".repeat(64)),
            "user:secret@sha256.example/a".to_owned(),
            "user:sec@ret@ghcr.io/a".to_owned(),
        ] {
            let error = text.parse::<Reference>().expect_err("is refused").to_string();
            assert!(!error.contains("sec"), "{error}");
        }
        let error = "ghcr.io/a:1@sha256:0".parse::<Reference>().expect_err("is refused").to_string();
        assert!(error.contains("ghcr.io/a:1"), "{error}");
    }

    #[test]
    fn a_tag_request_is_a_tag_or_a_place() {
        let place = |request: &str, prefix: Option<&str>| {
            request
                .parse::<TagRequest>()
                .and_then(|it| it.resolve("rag", prefix))
                .map_or_else(|e| e.why.into(), |r| r.to_string())
        };
        assert_eq!(place("v1", Some("ghcr.io/o/")), "ghcr.io/o/rag:v1");
        assert_eq!(place("v1", None), "a bare tag needs a registry: `--registry HOST/PREFIX`");
        assert_eq!(place("ghcr.io/o/{image}:v1", None), "ghcr.io/o/rag:v1");
        let unclear: TagRequest = "v{image}".parse().expect("a name of an engine's");
        assert!(unclear.resolve("rag", None).is_ok() && unclear.resolve("rag", Some("ghcr.io/o")).is_err());
        assert_eq!(place("ghcr.io/o/one", Some("x.io")), "ghcr.io/o/one:latest");
        assert!("ghcr.io/o/one:v1".parse::<TagRequest>().is_ok_and(|it| !it.serves_all()));
        assert!("ghcr.io/o/a:{image}".parse::<TagRequest>().is_ok_and(|it| it.serves_all()));
        for wrong in ["", "a b", ".x", "ghcr.io/{name}:v", "ghcr.io/A:1"] {
            assert!(wrong.parse::<TagRequest>().is_err(), "{wrong}");
        }
    }

    proptest! {
        // The oracle is the distribution grammar of the `oci-distribution` crate.
        #[test]
        fn what_we_accept_the_common_grammar_accepts(text in "[a-zA-Z0-9./:_@-]{0,40}") {
            if let Ok(ours) = text.parse::<Reference>() {
                let theirs: oci_distribution::Reference = text.parse().expect("is accepted by the oracle");
                if !["index.docker.io", "registry-1.docker.io"].contains(&theirs.registry()) {
                    prop_assert_eq!(theirs.registry().to_ascii_lowercase(), ours.repository.registry.clone());
                }
                prop_assert_eq!(theirs.repository(), ours.repository.path.clone());
                prop_assert_eq!(ours.to_string().parse::<Reference>(), Ok(ours));
            }
        }

        #[test]
        fn what_the_common_grammar_accepts_we_accept(text in "([a-c][a-c.:0-9-]{0,6}/)?[a-z0-9]{1,3}([._/-][a-z0-9]{1,3}){0,3}(:[a-zA-Z0-9_.-]{1,5})?") {
            let theirs: Result<oci_distribution::Reference, _> = text.parse();
            let ours: Result<Reference, _> = text.parse();
            // Ports out of range pass the oracle's pattern, no host has them; what has a dot before its first slash is a
            // host to Docker, and no host has an underscore.
            let first = text.split_once('/').map_or("", |(first, _)| first);
            let underscored = first.contains('_') && first.contains(['.', ':']);
            if theirs.is_ok() && ours.is_err() && !underscored {
                let port = text.split('/').next().and_then(|host| host.rsplit_once(':')).map(|(_, port)| port.to_owned());
                prop_assert!(port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)), "{}", text);
            }
        }
    }
}
