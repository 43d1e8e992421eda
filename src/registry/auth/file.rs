//! The files in which Docker and podman keep credentials.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::secret::{Credential, Secret};
use crate::registry::reference::DOCKER_HUB;

/// Docker's `config.json` or podman's `auth.json`, as far as credentials go.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthFile {
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// An entry that cannot be read; its text is not repeated, it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(pub &'static str);

impl AuthFile {
    /// Parses a file; an empty one holds nothing.
    pub fn parse(bytes: &[u8]) -> Result<AuthFile, String> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(AuthFile::default());
        }
        // The position is told, the text is not: it may be a password.
        serde_json::from_slice(bytes).map_err(|error| format!("line {}, column {}", error.line(), error.column()))
    }

    /// The program that keeps credentials of `registry`, and the name under which it does.
    pub fn helper(&self, registry: &str) -> Option<(&str, String)> {
        let names = names_of(registry);
        let own =
            names.iter().find_map(|name| self.cred_helpers.get(name).map(|helper| (helper.as_str(), name.clone())));
        own.or_else(|| self.creds_store.as_deref().map(|store| (store, names[0].clone())))
            .filter(|(helper, _)| !helper.is_empty())
    }

    /// Whether a password stands in the file itself.
    pub fn holds_secrets(&self) -> bool {
        self.auths.values().any(|entry| {
            [&entry.auth, &entry.password, &entry.identitytoken, &entry.registrytoken]
                .into_iter()
                .any(|text| text.as_deref().is_some_and(|text| !text.is_empty()))
        })
    }

    /// What the file itself holds for a repository: the entry for its longest prefix (podman), its registry, or one of
    /// the other spellings that Docker writes. A host that merely looks alike is another host.
    pub fn find(&self, registry: &str, path: &str) -> Result<Option<Credential>, Unreadable> {
        let mut prefix = Some(path);
        while let Some(part) = prefix.filter(|part| !part.is_empty()) {
            if let Some(entry) = self.auths.get(&format!("{registry}/{part}")) {
                return entry.credential();
            }
            prefix = part.rsplit_once('/').map(|(parent, _)| parent);
        }
        let names = names_of(registry);
        let exact = names.iter().find_map(|name| self.auths.get(name));
        let found = exact.or_else(|| self.auths.iter().find(|(key, _)| is_for(key, &names)).map(|(_, entry)| entry));
        found.map_or(Ok(None), Entry::credential)
    }
}

/// Whether an entry is for a whole registry of one of these names, however old the client that wrote it.
fn is_for(key: &str, names: &[String]) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, rest) = bare.split_once('/').unwrap_or((bare, ""));
    // A key with a path of its own is podman's, for part of the registry only.
    names.iter().any(|name| name == key)
        || matches!(rest.trim_end_matches('/'), "" | "v1" | "v2") && names.iter().any(|name| name == host)
}

/// The names under which a registry's credentials are kept, Docker's own first.
pub fn names_of(registry: &str) -> Vec<String> {
    match registry {
        DOCKER_HUB => ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"]
            .map(str::to_owned)
            .into(),
        other => vec![other.to_owned()],
    }
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, Unreadable> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (mut user, mut password) = (filled(&self.username), filled(&self.password));
        if let Some(auth) = filled(&self.auth) {
            let decoded = base64_any().decode(auth.trim()).map_err(|_| Unreadable("its `auth` is not base64"))?;
            let text = String::from_utf8(decoded).map_err(|_| Unreadable("its `auth` is not text"))?;
            // Docker pads old entries with NUL.
            let text = text.trim_end_matches('\0');
            let (first, second) = text.split_once(':').ok_or(Unreadable("its `auth` is not `user:password`"))?;
            (user, password) = (Some(first.to_owned()), Some(second.to_owned()).filter(|it| !it.is_empty()));
        }
        let user = user.unwrap_or_default();
        Ok(if let Some(token) = filled(&self.registrytoken) {
            Some(Credential::RegistryToken(Secret::new(token)))
        } else if let Some(token) = filled(&self.identitytoken) {
            Some(Credential::IdentityToken { user, token: Secret::new(token) })
        } else {
            password.map(|password| of_pair(user, password))
        })
    }
}

/// User and secret as helpers and `auth` give them: the user `<token>` marks an identity token.
pub fn of_pair(user: String, secret: String) -> Credential {
    match user.as_str() {
        "<token>" => Credential::IdentityToken { user: String::new(), token: Secret::new(secret) },
        _ => Credential::Password { user, password: Secret::new(secret) },
    }
}

/// Base64 with or without padding.
fn base64_any() -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&base64::alphabet::STANDARD, config)
}

/// Changes one registry's entry of a file and nothing else in it; `None` removes it. The file is replaced as a whole
/// and readable by its owner only. Says whether there was an entry.
pub fn edit(path: &Path, registry: &str, credential: Option<&Credential>) -> std::io::Result<bool> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    // Docker's configuration is often a symbolic link into a repository of dot files: the link stays.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut document = match std::fs::read(path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => serde_json::json!({}),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| std::io::Error::other("it is not JSON"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => serde_json::json!({}),
        Err(error) => return Err(error),
    };
    let root = document.as_object_mut().ok_or_else(|| std::io::Error::other("it is not a JSON object"))?;
    let auths = root.entry("auths").or_insert_with(|| serde_json::json!({}));
    let auths = auths.as_object_mut().ok_or_else(|| std::io::Error::other("its `auths` is not an object"))?;
    let names = names_of(registry);
    let before = auths.len();
    auths.retain(|key, _| !is_for(key, &names));
    let removed = auths.len() < before;
    if credential.is_none() && !removed {
        return Ok(false);
    }
    match credential {
        Some(Credential::Password { user, password }) => {
            let auth = base64_any().encode(format!("{user}:{}", password.reveal()));
            auths.insert(names[0].clone(), serde_json::json!({ "auth": auth }));
        }
        Some(Credential::IdentityToken { user, token }) => {
            let auth = base64_any().encode(format!("{user}:"));
            auths.insert(names[0].clone(), serde_json::json!({ "auth": auth, "identitytoken": token.reveal() }));
        }
        Some(Credential::RegistryToken(token)) => {
            auths.insert(names[0].clone(), serde_json::json!({ "registrytoken": token.reveal() }));
        }
        Some(Credential::Anonymous) | None => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(serde_json::to_string_pretty(&document)?.as_bytes())?;
    file.write_all(b"\n")?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str) -> AuthFile {
        AuthFile::parse(json.as_bytes()).expect("parses")
    }

    fn shown(file: &AuthFile, registry: &str, path: &str) -> String {
        match file.find(registry, path) {
            Ok(Some(Credential::Password { user, password })) => format!("{user}:{}", password.reveal()),
            Ok(Some(Credential::IdentityToken { token, .. })) => format!("identity {}", token.reveal()),
            Ok(Some(Credential::RegistryToken(token))) => format!("token {}", token.reveal()),
            Ok(Some(Credential::Anonymous)) => "anonymous".into(),
            Ok(None) => "nothing".into(),
            Err(Unreadable(why)) => why.into(),
        }
    }

    #[test]
    fn entries_are_found_by_host_and_look_alikes_get_nothing() {
        // `dTpw` is `u:p`.
        let file = file(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpw"},
                "ghcr.io": {"auth": "dTpw"},
                "https://azurecr.io/v2/": {"username": "a", "password": "b"},
                "quay.io/team": {"auth": "dTpw"},
                "quay.io/team/app": {"identitytoken": "it"},
                "port.io:5000": {"registrytoken": "rt"},
                "bad.io": {"auth": "%%%"},
                "half.io": {"auth": "dXA="},
                "nopad.io": {"auth": "dTpwcA"},
                "empty.io": {}
            }}"#,
        );
        for (registry, path, expected) in [
            ("docker.io", "library/debian", "u:p"),
            ("ghcr.io", "a/b", "u:p"),
            ("ghcr.io:443", "a/b", "nothing"),
            ("ghcr.io.evil.com", "a/b", "nothing"),
            ("evil-ghcr.io", "a", "nothing"),
            ("azurecr.io", "a", "a:b"),
            ("azurecr.io.evil.com", "a", "nothing"),
            ("quay.io", "team/app/x", "identity it"),
            ("quay.io", "team/other", "u:p"),
            ("quay.io", "teammate/app", "nothing"),
            ("port.io:5000", "a", "token rt"),
            ("port.io", "a", "nothing"),
            ("bad.io", "a", "its `auth` is not base64"),
            ("half.io", "a", "its `auth` is not `user:password`"),
            ("nopad.io", "a", "u:pp"),
            ("empty.io", "a", "nothing"),
        ] {
            assert_eq!(shown(&file, registry, path), expected, "{registry}/{path}");
        }
        assert!(file.holds_secrets());
    }

    #[test]
    fn a_helper_of_the_registry_goes_before_the_store() {
        let file =
            file(r#"{"credsStore": "desktop", "credHelpers": {"ghcr.io": "gh", "docker.io": "hub", "off.io": ""}}"#);
        assert_eq!(file.helper("ghcr.io"), Some(("gh", "ghcr.io".to_owned())));
        assert_eq!(file.helper("docker.io"), Some(("hub", "docker.io".to_owned())));
        assert_eq!(file.helper("quay.io"), Some(("desktop", "quay.io".to_owned())));
        assert_eq!(file.helper("off.io"), None);
        assert!(!file.holds_secrets());
    }

    #[test]
    fn broken_files_are_named_by_position_only() {
        let error = AuthFile::parse(br#"{"auths": {"x": {"auth": "secret" oops}}}"#).err().expect("fails");
        assert_eq!(error, "line 1, column 35");
        assert!(AuthFile::parse(b" \n").is_ok());
    }

    #[test]
    fn what_is_found_is_what_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        for key in ["ghcr.io", "https://ghcr.io", "http://ghcr.io/", "https://ghcr.io/v1/", "ghcr.io/v2"] {
            let text = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}},"ghcr.io/team":{{"auth":"dTpw"}}}}}}"#);
            std::fs::write(&path, text).expect("writes");
            let found = || {
                let file = AuthFile::parse(&std::fs::read(&path).expect("reads")).expect("parses");
                file.find("ghcr.io", "other/x").expect("reads").is_some()
            };
            assert!(found(), "{key}");
            assert!(edit(&path, "ghcr.io", None).expect("edits"), "{key}");
            assert!(!found(), "{key}");
            let left = std::fs::read_to_string(&path).expect("reads");
            assert!(left.contains("ghcr.io/team"), "{left}");
        }
    }

    #[test]
    fn editing_keeps_everything_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/config.json");
        let credential = of_pair("u".into(), "p:q".into());
        edit(&path, "docker.io", Some(&credential)).expect("edits");
        std::fs::write(
            &path,
            std::fs::read_to_string(&path).expect("reads").replacen('{', "{\"proxies\": {\"a\": 1},", 1),
        )
        .expect("writes");
        edit(&path, "ghcr.io", Some(&of_pair("<token>".into(), "it".into()))).expect("edits");
        let bytes = std::fs::read(&path).expect("reads");
        let file = AuthFile::parse(&bytes).expect("parses");
        assert_eq!(shown(&file, "docker.io", "a/b"), "u:p:q");
        assert_eq!(shown(&file, "ghcr.io", "a/b"), "identity it");
        assert!(String::from_utf8_lossy(&bytes).contains("proxies"));
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        assert!(edit(&path, "docker.io", None).expect("edits"));
        assert!(!edit(&path, "docker.io", None).expect("finds nothing"));
        let file = AuthFile::parse(&std::fs::read(&path).expect("reads")).expect("parses");
        assert_eq!(shown(&file, "docker.io", "a/b"), "nothing");
        assert_eq!(shown(&file, "ghcr.io", "a/b"), "identity it");
    }
}
