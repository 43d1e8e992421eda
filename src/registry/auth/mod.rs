//! Credentials: where they come from, in which order, and what is told about them.
//!
//! The first source that knows the registry wins: the environment, the file that `REGISTRY_AUTH_FILE` names, Docker's
//! `config.json`, podman's `auth.json`. In a file, `credHelpers` goes before `credsStore`, and either before what the
//! file itself holds. Names are compared whole: a host that only looks alike, or the same host with another port, gets
//! nothing.

pub mod challenge;
mod file;
mod helper;
mod secret;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub use file::AuthFile;
pub use helper::{HelperError, Helpers};
pub use secret::{Credential, Secret};

use super::reference::Repository;
use crate::parallel::lock;

/// Why credentials could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A file that is not what it should be.
    #[error("cannot read the credentials in `{path}`: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why, without its content.
        why: String,
    },
    /// A helper that does not do its work.
    #[error("{0}; correct `credsStore` or `credHelpers` in Docker's config.json, or remove it there")]
    Helper(#[from] HelperError),
    /// The environment holds something else.
    #[error("`DOCKER_AUTH_CONFIG` is not the JSON of a Docker config.json ({0})")]
    Environment(String),
    /// Half of what the environment has to say.
    #[error("`{set}` is set and `{missing}` is not, or is empty: set both, or neither")]
    Half {
        /// The variable that is set.
        set: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// Nowhere to keep credentials.
    #[error("there is no home folder to keep credentials in; set DOCKER_CONFIG")]
    Homeless,
}

const USER: &str = "IMGBUILD_REGISTRY_USER";
const PASSWORD: &str = "IMGBUILD_REGISTRY_PASSWORD";

/// What `IMGBUILD_REGISTRY_USER` and `IMGBUILD_REGISTRY_PASSWORD` say.
#[derive(Clone, Default)]
pub enum Given {
    /// Nothing.
    #[default]
    Nothing,
    /// A credential for this registry and no other.
    For(String, Credential),
    /// One of the two is missing, for this registry.
    Half {
        /// The registry.
        host: String,
        /// The variable that is set.
        set: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// No registry is named that they could be for.
    Nobody,
}

/// Where credentials are looked for.
#[derive(Clone, Default)]
pub struct Sources {
    /// User and password for one registry, from the environment.
    pub given: Given,
    /// The text of `DOCKER_AUTH_CONFIG`.
    pub inline: Option<Secret>,
    /// The file that `REGISTRY_AUTH_FILE` names.
    pub chosen: Option<PathBuf>,
    /// Docker's `config.json`.
    pub docker: Option<PathBuf>,
    /// Podman's files.
    pub podman: Vec<PathBuf>,
    /// How helpers are run.
    pub helpers: Helpers,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("docker", &self.docker).field("podman", &self.podman).finish_non_exhaustive()
    }
}

impl Sources {
    /// The sources as the environment names them. `registry` is the one that a user and password in the environment are
    /// for: they are never offered to another.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>, registry: Option<&str>) -> Sources {
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok()).filter(|it| !it.is_empty());
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let host = registry.map(|it| it.split('/').next().unwrap_or_default().to_ascii_lowercase());
        let given = match (text(USER), text(PASSWORD), host) {
            (None, None, _) => Given::Nothing,
            (_, _, None) => Given::Nobody,
            (Some(user), Some(password), Some(host)) => {
                Given::For(host, Credential::Password { user, password: Secret::new(password) })
            }
            (Some(_), None, Some(host)) => Given::Half { host, set: USER, missing: PASSWORD },
            (None, Some(_), Some(host)) => Given::Half { host, set: PASSWORD, missing: USER },
        };
        let docker = path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let podman = [
            path("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
            path("XDG_CONFIG_HOME")
                .or_else(|| home.as_ref().map(|home| home.join(".config")))
                .map(|folder| folder.join("containers/auth.json")),
        ];
        Sources {
            given,
            inline: text("DOCKER_AUTH_CONFIG").map(Secret::new),
            chosen: path("REGISTRY_AUTH_FILE"),
            docker: docker.map(|folder| folder.join("config.json")),
            podman: podman.into_iter().flatten().collect(),
            helpers: Helpers { path: variable("PATH"), ..Helpers::default() },
        }
    }
}

/// A source that was asked, and what it answered, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The source.
    pub source: String,
    /// Its answer.
    pub answer: String,
}

/// What came of looking for credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The credential.
    pub credential: Credential,
    /// Every source that was asked, in order; the last one answered.
    pub asked: Vec<Asked>,
    /// What should be mended.
    pub warnings: Vec<String>,
    /// Sources that are broken, each with its error; only [`Keyring::explain`] goes on past one.
    pub broken: Vec<String>,
}

/// What becomes of a source that is broken: its name and why.
type Broken<'a> = dyn Fn(&mut Found, &str, AuthError) -> Result<(), AuthError> + 'a;

/// Looks credentials up, each registry once.
#[derive(Debug, Default)]
pub struct Keyring {
    sources: Sources,
    known: Mutex<BTreeMap<Repository, Found>>,
}

impl Keyring {
    /// A keyring over sources.
    pub fn new(sources: Sources) -> Keyring {
        Keyring { sources, known: Mutex::default() }
    }

    /// The credential for a repository; the answer is remembered.
    pub fn find(&self, repository: &Repository) -> Result<Found, AuthError> {
        // Held while a helper runs, so that it is asked once and not by every thread.
        let mut known = lock(&self.known);
        if let Some(found) = known.get(repository) {
            return Ok(found.clone());
        }
        let found = self.look(repository, &|_, _, error| Err(error))?;
        known.insert(repository.clone(), found.clone());
        Ok(found)
    }

    /// Uses a credential for a repository, whatever the sources say.
    pub fn assume(&self, repository: &Repository, credential: Credential) {
        let found = Found::default().answered("given", credential);
        lock(&self.known).insert(repository.clone(), found);
    }

    /// As [`find`](Keyring::find), for people: past a broken source it asks the next ones. An empty path asks for the
    /// registry as a whole.
    ///
    /// # Errors
    /// None: what is broken is told in the answer.
    pub fn explain(&self, repository: &Repository) -> Result<Found, AuthError> {
        self.look(repository, &|found, source, error| {
            found.passed(source, format!("broken: {error}"));
            found.broken.push(error.to_string());
            Ok(())
        })
    }

    fn look(&self, repository: &Repository, broken: &Broken<'_>) -> Result<Found, AuthError> {
        let mut found = Found::default();
        let registry = repository.registry.as_str();
        let source = format!("{USER} and {PASSWORD}");
        match &self.sources.given {
            Given::Nothing => {}
            Given::For(host, credential) if host == registry => {
                return Ok(found.answered(&source, credential.clone()));
            }
            Given::Half { host, set, missing } if host == registry => {
                broken(&mut found, &source, AuthError::Half { set, missing })?;
            }
            Given::For(host, _) | Given::Half { host, .. } => found.passed(&source, format!("they are for {host}")),
            Given::Nobody => {
                found.passed(
                    &source,
                    "they are for the registry that `--registry` or IMGBUILD_REGISTRY names, and neither does",
                );
            }
        }
        if let Some(text) = &self.sources.inline {
            let source = "DOCKER_AUTH_CONFIG";
            match AuthFile::parse(text.reveal().as_bytes()) {
                Ok(file) => {
                    if let Some(done) = self.ask(&mut found, source, &file, repository, Path::new(""), broken)? {
                        return Ok(done);
                    }
                }
                Err(why) => broken(&mut found, source, AuthError::Environment(why))?,
            }
        }
        for (path, must) in self.files() {
            let shown = format!("`{}`", path.display());
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must => {
                    found.passed(&shown, "there is no such file");
                    continue;
                }
                Err(error) => {
                    broken(&mut found, &shown, AuthError::File { path, why: error.to_string() })?;
                    continue;
                }
            };
            let file = match AuthFile::parse(&bytes) {
                Ok(file) => file,
                Err(why) => {
                    broken(&mut found, &shown, AuthError::File { path, why })?;
                    continue;
                }
            };
            if file.holds_secrets() && is_open_to_others(&path) {
                found.warnings.push(format!("{shown} holds passwords and others can read it: `chmod 600` it"));
            }
            if let Some(done) = self.ask(&mut found, &shown, &file, repository, &path, broken)? {
                return Ok(done);
            }
        }
        Ok(found.answered("nothing else is configured", Credential::Anonymous))
    }

    fn files(&self) -> impl Iterator<Item = (PathBuf, bool)> {
        let chosen = self.sources.chosen.clone().map(|path| (path, true));
        let others = self.sources.docker.iter().chain(&self.sources.podman).cloned().map(|path| (path, false));
        chosen.into_iter().chain(others)
    }

    fn ask(
        &self,
        found: &mut Found,
        source: &str,
        file: &AuthFile,
        repository: &Repository,
        path: &Path,
        broken: &Broken<'_>,
    ) -> Result<Option<Found>, AuthError> {
        let registry = repository.registry.as_str();
        if let Some((helper, name)) = file.helper(registry) {
            let asked = format!("{source}, helper `{helper}` for `{name}`");
            match self.sources.helpers.get(helper, &name) {
                Ok(Some(credential)) => return Ok(Some(std::mem::take(found).answered(&asked, credential))),
                Ok(None) => found.passed(&asked, "it knows none"),
                Err(error) => broken(found, &asked, error.into())?,
            }
        }
        match file.find(registry, &repository.path) {
            Ok(Some(credential)) => Ok(Some(std::mem::take(found).answered(source, credential))),
            Ok(None) => {
                found.passed(source, format!("it has none for {registry}"));
                Ok(None)
            }
            Err(file::Unreadable(why)) => {
                let why = format!("the entry for {registry} cannot be used: {why}");
                let error = match path.as_os_str().is_empty() {
                    true => AuthError::Environment(why),
                    false => AuthError::File { path: path.into(), why },
                };
                broken(found, source, error).map(|()| None)
            }
        }
    }

    /// Keeps a credential where Docker would: in the helper that its configuration names, else in the file. Returns the
    /// place.
    pub fn keep(&self, registry: &str, credential: &Credential) -> Result<String, AuthError> {
        let (path, file) = self.home()?;
        if let (Some((helper, name)), Credential::Password { user, password }) = (file.helper(registry), credential) {
            self.sources.helpers.store(helper, &name, user, password.reveal())?;
            // An older one in clear text would stay.
            if path.exists() {
                edit(&path, registry, None)?;
            }
            return Ok(format!("the credential helper `{helper}`"));
        }
        edit(&path, registry, Some(credential))?;
        Ok(format!("`{}`, readable by you alone but not encrypted", path.display()))
    }

    /// Forgets what [`Keyring::keep`] kept. Returns the places; `None` where there was nothing.
    pub fn forget(&self, registry: &str) -> Result<Option<String>, AuthError> {
        let (path, file) = self.home()?;
        let mut places = Vec::new();
        if let Some((helper, name)) = file.helper(registry) {
            self.sources.helpers.erase(helper, &name)?;
            places.push(format!("the credential helper `{helper}`"));
        }
        if path.exists() && edit(&path, registry, None)? {
            places.push(format!("`{}`", path.display()));
        }
        Ok((!places.is_empty()).then(|| places.join(" and ")))
    }

    /// The file that logins are kept in, and what is in it.
    fn home(&self) -> Result<(PathBuf, AuthFile), AuthError> {
        let path = self.sources.chosen.clone().or_else(|| self.sources.docker.clone()).ok_or(AuthError::Homeless)?;
        let file = match std::fs::read(&path) {
            Ok(bytes) => AuthFile::parse(&bytes).map_err(|why| AuthError::File { path: path.clone(), why })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => AuthFile::default(),
            Err(error) => return Err(AuthError::File { path, why: error.to_string() }),
        };
        Ok((path, file))
    }
}

impl Found {
    fn passed(&mut self, source: &str, answer: impl Into<String>) {
        self.asked.push(Asked { source: source.into(), answer: answer.into() });
    }

    fn answered(mut self, source: &str, credential: Credential) -> Found {
        self.passed(source, credential.shown());
        self.credential = credential;
        self
    }
}

fn edit(path: &Path, registry: &str, credential: Option<&Credential>) -> Result<bool, AuthError> {
    file::edit(path, registry, credential)
        .map_err(|error| AuthError::File { path: path.into(), why: error.to_string() })
}

fn is_open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const CANARY: &str = "canary-7d1f";

    fn repository(registry: &str) -> Repository {
        Repository { registry: registry.into(), path: "a/b".into() }
    }

    fn write(path: &std::path::Path, text: &str, mode: u32) {
        std::fs::create_dir_all(path.parent().expect("has one")).expect("makes");
        std::fs::write(path, text).expect("writes");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("allows");
    }

    #[test]
    fn sources_are_asked_in_order_and_explained_without_secrets() {
        let home = tempfile::tempdir().expect("a folder");
        let at = |name: &str| home.path().join(name);
        let script = format!(
            "#!/bin/sh\nread s; [ $s = ghcr.io ] && echo '{{\"Username\": \"h\", \"Secret\": \"{CANARY}\"}}' || {{ echo credentials not found; exit 1; }}\n"
        );
        write(&at("bin/docker-credential-t"), &script, 0o755);
        let docker = format!(
            r#"{{"credsStore": "t", "auths": {{"quay.io": {{"username": "q", "password": "{CANARY}"}}, "ghcr.io": {{"username": "no", "password": "{CANARY}"}}}}}}"#
        );
        write(&at(".docker/config.json"), &docker, 0o644);
        let podman = format!(r#"{{"auths": {{"pod.io": {{"identitytoken": "{CANARY}"}}}}}}"#);
        write(&at(".config/containers/auth.json"), &podman, 0o600);
        let path = std::env::join_paths([at("bin"), "/usr/bin".into(), "/bin".into()]).expect("joins");
        let variables: BTreeMap<&str, OsString> = [
            ("HOME", home.path().into()),
            ("PATH", path),
            ("IMGBUILD_REGISTRY_USER", "e".into()),
            ("IMGBUILD_REGISTRY_PASSWORD", CANARY.into()),
            (
                "DOCKER_AUTH_CONFIG",
                format!(r#"{{"auths": {{"inline.io": {{"username": "i", "password": "{CANARY}"}}}}}}"#).into(),
            ),
        ]
        .into();
        let sources = Sources::from_environment(|name| variables.get(name).cloned(), Some("env.io/prefix"));
        let keyring = Keyring::new(sources);
        for (registry, credential, sources_asked, warnings) in [
            ("env.io", "user `e` with a password", 1, 0),
            ("env.io:443", "anonymous", 7, 1),
            ("inline.io", "user `i` with a password", 2, 0),
            ("ghcr.io", "user `h` with a password", 3, 1),
            ("quay.io", "user `q` with a password", 4, 1),
            ("pod.io", "an identity token", 5, 1),
            ("other.io", "anonymous", 6, 1),
        ] {
            let found = keyring.find(&repository(registry)).expect("looks");
            assert_eq!(found.credential.shown(), credential, "{registry}");
            assert_eq!(found.asked.last().expect("one was asked").answer, credential, "{registry}");
            let expected = if registry == "env.io:443" { 6 } else { sources_asked };
            assert_eq!(found.asked.len(), expected, "{registry}: {:?}", found.asked);
            assert_eq!(found.warnings.len(), warnings, "{registry}: {:?}", found.warnings);
            assert!(!format!("{found:?}{keyring:?}").contains(CANARY), "{registry}");
        }
    }

    #[test]
    fn broken_sources_are_errors_that_hold_no_secret() {
        let home = tempfile::tempdir().expect("a folder");
        let path = home.path().join("config.json");
        for (text, expected) in [
            (format!("{{\"auths\": {{\"x.io\": {{\"auth\": \"{CANARY}\"}}}}}}"), "is not base64"),
            (format!("{{\"auths\": \"{CANARY}\"}}"), "line 1"),
            (format!("{{\"credsStore\": \"../{CANARY}\"}}"), "cannot be a credential helper's name"),
        ] {
            write(&path, &text, 0o600);
            let keyring = Keyring::new(Sources { docker: Some(path.clone()), ..Sources::default() });
            let error = keyring.find(&repository("x.io")).expect_err("fails");
            assert!(error.to_string().contains(expected), "{error}");
            // A helper's name is no secret; a password is.
            assert!(expected.contains("helper") || !format!("{error}{error:?}").contains(CANARY), "{error:?}");
        }
        let keyring = Keyring::new(Sources { chosen: Some(home.path().join("none")), ..Sources::default() });
        assert!(matches!(keyring.find(&repository("x.io")), Err(AuthError::File { .. })));
        let keyring = Keyring::new(Sources { inline: Some(Secret::new(CANARY)), ..Sources::default() });
        let error = keyring.find(&repository("x.io")).expect_err("fails");
        assert!(!format!("{error}{error:?}").contains(CANARY));
    }

    #[test]
    fn half_a_credential_is_an_error_for_its_registry_alone() {
        let of = |set: &[(&str, &str)], registry: Option<&str>| {
            let sources = Sources::from_environment(
                |name| set.iter().find(|(found, _)| *found == name).map(|(_, value)| value.into()),
                registry,
            );
            Keyring::new(sources)
        };
        for (set, missing) in [(USER, PASSWORD), (PASSWORD, USER)] {
            let keyring = of(&[(set, CANARY), (missing, "")], Some("env.io/prefix"));
            let error = keyring.find(&repository("env.io")).expect_err("fails").to_string();
            assert_eq!(error, format!("`{set}` is set and `{missing}` is not, or is empty: set both, or neither"));
            let other = keyring.find(&repository("other.io")).expect("is not concerned");
            assert_eq!(other.credential, Credential::Anonymous);
            let explained = keyring.explain(&repository("env.io")).expect("explains");
            assert_eq!((explained.broken, explained.asked.len()), (vec![error], 2));
        }
        let nobody = of(&[(USER, "u"), (PASSWORD, CANARY)], None).find(&repository("x.io")).expect("looks");
        assert_eq!(nobody.credential, Credential::Anonymous);
        assert!(nobody.asked[0].answer.contains("`--registry`"), "{nobody:?}");
    }

    #[test]
    fn an_explanation_goes_on_past_what_is_broken() {
        let home = tempfile::tempdir().expect("a folder");
        let [docker, podman] = ["docker.json", "podman.json"].map(|name| home.path().join(name));
        let good = format!("{{\"auths\": {{\"x.io\": {{\"username\": \"u\", \"password\": \"{CANARY}\"}}}}}}");
        write(&podman, &good, 0o600);
        for (docker_text, broken) in [
            (format!("{{\"auths\": {{\"x.io\": {{\"auth\": \"{CANARY}\"}}}}}}"), 1),
            (format!("{{\"auths\": \"{CANARY}\"}}"), 1),
            (format!("{{\"credsStore\": \"absent\", \"auths\": {{\"x.io\": {{\"auth\": \"{CANARY}\"}}}}}}"), 2),
        ] {
            write(&docker, &docker_text, 0o600);
            let sources = Sources {
                inline: Some(Secret::new(CANARY)),
                chosen: Some(home.path().join("none")),
                docker: Some(docker.clone()),
                podman: vec![podman.clone()],
                ..Sources::default()
            };
            let found = Keyring::new(sources).explain(&repository("x.io")).expect("explains");
            assert_eq!(found.credential.shown(), "user `u` with a password");
            assert_eq!(found.broken.len(), 2 + broken, "{found:?}");
            assert!(!format!("{found:?}").contains(CANARY), "{found:?}");
        }
    }

    #[test]
    fn logins_are_kept_and_forgotten() {
        let home = tempfile::tempdir().expect("a folder");
        let docker = Some(home.path().join(".docker/config.json"));
        let keyring = || Keyring::new(Sources { docker: docker.clone(), ..Sources::default() });
        let credential = Credential::Password { user: "u".into(), password: Secret::new(CANARY) };
        let place = keyring().keep("x.io:5000", &credential).expect("keeps");
        assert!(place.contains("config.json") && !place.contains(CANARY), "{place}");
        assert_eq!(keyring().find(&repository("x.io:5000")).expect("looks").credential, credential);
        keyring().forget("x.io:5000").expect("forgets");
        assert_eq!(keyring().find(&repository("x.io:5000")).expect("looks").credential, Credential::Anonymous);
        assert!(matches!(Keyring::default().keep("x.io", &credential), Err(AuthError::Homeless)));
    }
}
