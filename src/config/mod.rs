//! Where hosts and settings come from. imgbuild names no mirror, index or registry: everything is read here, from a
//! flag over the environment over `imgbuild.toml` over what the machine's own apt, pip and uv are told.
//!
//! Loading is cheap: one small file. What costs more (apt's sources, pip's files, asking pip for its default) is read
//! when it is needed, and nothing here touches the network. The environment comes in as a value, [`Environment`], so
//! that what a test sets is all there is.

mod apt;
mod cache;
mod file;
mod ini;
mod network;
mod python;
mod registries;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use cache::{CacheLimits, DEFAULT_MAX_SIZE, parse_age, parse_size};

use crate::debian::archive::Foreign;
use crate::fetch::{HttpConfig, Url, parse_url};
use crate::sandbox::Level;
use file::File;

/// Why the configuration cannot be used. All of it is for the user to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that makes no sense.
    #[error("`{path}`, line {line}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A value that makes no sense.
    #[error("{place}: {why}")]
    Value {
        /// The variable or key.
        place: String,
        /// What is wrong with its value, which is not repeated: it may hold a password.
        why: String,
    },
    /// Something that has to be known and that nothing says.
    #[error("no {what} is known: {looked}; set {set}")]
    Missing {
        /// What.
        what: String,
        /// Where it was looked for.
        looked: String,
        /// The keys and variables that say it.
        set: String,
    },
}

/// What the program was started with. Read once, at the edge.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
    directory: PathBuf,
    root: PathBuf,
}

impl Environment {
    /// An environment of these variables and this (absolute) working directory.
    pub fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        directory: impl Into<PathBuf>,
    ) -> Environment {
        Environment { variables: variables.into_iter().collect(), directory: directory.into(), root: "/".into() }
    }

    /// Reads the machine's files (`/etc/apt` and so on) below another root.
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Environment {
        self.root = root.into();
        self
    }

    /// The working directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A variable; an empty one counts as unset.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// All variables whose names and values are UTF-8, empty ones included.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
    }

    /// A variable as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&str>, ConfigError> {
        self.variable(name)
            .map(|value| {
                value.to_str().ok_or_else(|| ConfigError::Value {
                    place: format!("the variable {name}"),
                    why: "it is not UTF-8".into(),
                })
            })
            .transpose()
    }

    /// A path in a variable, made absolute by the working directory.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).map(|value| self.directory.join(value))
    }

    /// The home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
    }

    fn config_home(&self) -> Option<PathBuf> {
        let named = self.variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        named.or_else(|| self.home().map(|home| home.join(".config")))
    }

    /// A file of the machine.
    fn machine(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
struct Found {
    text: String,
    place: String,
}

impl Found {
    fn wrong(&self, why: impl Into<String>) -> ConfigError {
        ConfigError::Value { place: self.place.clone(), why: why.into() }
    }

    fn url(&self) -> Result<Url, ConfigError> {
        parse_url(&self.text).map_err(|error| match error {
            crate::fetch::FetchError::Url { why, .. } => self.wrong(format!("it is not a usable URL: {why}")),
            other => self.wrong(other.to_string()),
        })
    }
}

/// The settings of one run.
#[derive(Debug)]
pub struct Config {
    environment: Environment,
    file: Option<File>,
    asked: OnceLock<Option<String>>,
    network: OnceLock<HttpConfig>,
}

impl Config {
    /// Reads `explicit`, else the file that IMGBUILD_CONFIG names, else the nearest `imgbuild.toml` from the working
    /// directory up to the root of its repository. Outside of a repository only the working directory counts: a file
    /// that somebody left in `/tmp` must not steer a build.
    ///
    /// # Errors
    /// If the file cannot be read, has an unknown key, or a value of the wrong kind.
    pub fn load(environment: &Environment, explicit: Option<&Path>) -> Result<Config, ConfigError> {
        let named =
            explicit.map(|path| environment.directory.join(path)).or_else(|| environment.path("IMGBUILD_CONFIG"));
        let file = match named.or_else(|| nearest_file(&environment.directory)) {
            Some(path) => Some(File::read(&path)?),
            None => None,
        };
        Ok(Config { environment: environment.clone(), file, asked: OnceLock::new(), network: OnceLock::new() })
    }

    /// The file that was read.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// The environment that it was loaded from.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The folder of downloads, fragments and layers: `flag`, IMGBUILD_CACHE_DIR, `cache-dir`, else `imgbuild` in the
    /// user's cache folder.
    ///
    /// # Errors
    /// If nothing says where, which is so without HOME.
    pub fn cache_dir(&self, flag: Option<&Path>) -> Result<PathBuf, ConfigError> {
        if let Some(flag) = flag {
            return Ok(self.environment.directory.join(flag));
        }
        if let Some(path) = self.environment.path("IMGBUILD_CACHE_DIR") {
            return Ok(path);
        }
        if let Some((file, value)) = self.file.as_ref().and_then(|file| Some((file, file.get(&["cache-dir"])?))) {
            return Ok(file.path(&value.texts[0]));
        }
        let xdg = self.environment.variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = xdg.or_else(|| self.environment.home().map(|home| home.join(".cache")));
        caches.map(|caches| caches.join("imgbuild")).ok_or_else(|| ConfigError::Missing {
            what: "cache directory".into(),
            looked: "neither XDG_CACHE_HOME nor HOME is an absolute path".into(),
            set: "--cache-dir, IMGBUILD_CACHE_DIR, or `cache-dir` in imgbuild.toml".into(),
        })
    }

    /// How many things may be done at once: `flag`, IMGBUILD_JOBS, `jobs`, else as many as there are cores.
    ///
    /// # Errors
    /// If the number is none, or 0.
    pub fn jobs(&self, flag: Option<usize>) -> Result<usize, ConfigError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        match flag {
            Some(flag) => Ok(flag.max(1)),
            None => Ok(self.number("IMGBUILD_JOBS", "jobs", 1..=1024)?.unwrap_or_else(cores)),
        }
    }

    /// Where images are pushed, `host/prefix`: `flag`, IMGBUILD_REGISTRY, `registry`.
    ///
    /// # Errors
    /// If nothing says where.
    pub fn registry(&self, flag: Option<&str>) -> Result<String, ConfigError> {
        if let Some(flag) = flag {
            return Ok(flag.to_owned());
        }
        let found = self.first("IMGBUILD_REGISTRY", &["registry"])?.map(|found| found.text);
        found.ok_or_else(|| ConfigError::Missing {
            what: "registry".into(),
            looked: "a bare tag needs one".into(),
            set: "--registry, IMGBUILD_REGISTRY, or `registry` in imgbuild.toml".into(),
        })
    }

    /// What commands of stages must be kept apart by at the least: `flag`, IMGBUILD_SANDBOX, `sandbox`. `None`: whatever
    /// this machine offers.
    ///
    /// # Errors
    /// If it is none of the words.
    pub fn sandbox(&self, flag: Option<Level>) -> Result<Option<Level>, ConfigError> {
        if flag.is_some() {
            return Ok(flag);
        }
        let Some(found) = self.first("IMGBUILD_SANDBOX", &["sandbox"])? else { return Ok(None) };
        match found.text.as_str() {
            "any" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| found.wrong("it is none of `any`, `namespaces`, `chroot` and `proot`")),
        }
    }

    /// Mirrors that may have a suite of Debian, the likely ones first: IMGBUILD_DEBIAN_MIRROR and
    /// IMGBUILD_DEBIAN_SECURITY_MIRROR, `debian.mirror` and `debian.security-mirror`, else apt's sources. Those of the
    /// machine may serve something else under the suite's name: see [`Config::foreign`].
    ///
    /// # Errors
    /// If nothing names a mirror.
    pub fn debian_bases(&self, suite: &str) -> Result<Vec<Url>, ConfigError> {
        let security = suite.ends_with("-security");
        let configured = self.debian_configured(security)?;
        let bases =
            if configured.is_empty() { apt::bases(&apt::sources(&self.environment)?, security) } else { configured };
        if bases.is_empty() {
            return Err(ConfigError::Missing {
                what: format!("Debian mirror for `{suite}`"),
                looked: format!("apt's sources in `{}` name none", apt::folder(&self.environment).display()),
                set: "`debian.mirror` in imgbuild.toml or the variable IMGBUILD_DEBIAN_MIRROR to its URL".into(),
            });
        }
        Ok(bases)
    }

    /// What it means when one of [`Config::debian_bases`] serves a suite of somebody else: nothing where it is the
    /// machine's, an error where it was configured to be Debian's.
    ///
    /// # Errors
    /// As [`Config::debian_bases`].
    pub fn foreign(&self, suite: &str) -> Result<Foreign, ConfigError> {
        let configured = self.debian_configured(suite.ends_with("-security"))?;
        Ok(if configured.is_empty() { Foreign::Skip } else { Foreign::Refuse })
    }

    fn debian_configured(&self, security: bool) -> Result<Vec<Url>, ConfigError> {
        let urls = |found: Vec<Found>| found.iter().map(Found::url).collect::<Result<Vec<Url>, ConfigError>>();
        if security {
            let own = urls(self.all("IMGBUILD_DEBIAN_SECURITY_MIRROR", &["debian", "security-mirror"])?)?;
            if !own.is_empty() {
                return Ok(own);
            }
        }
        let mirrors = urls(self.all("IMGBUILD_DEBIAN_MIRROR", &["debian", "mirror"])?)?;
        Ok(if security { apt::with_siblings(mirrors) } else { mirrors })
    }

    /// A keyring file to use instead of the keys that imgbuild brings: IMGBUILD_DEBIAN_KEYRING, `debian.keyring`; the
    /// word `machine` means that of the package debian-archive-keyring.
    ///
    /// # Errors
    /// If the variable is not UTF-8, or the machine has no such file.
    pub fn debian_keyring(&self) -> Result<Option<PathBuf>, ConfigError> {
        if let Some(text) = self.environment.text("IMGBUILD_DEBIAN_KEYRING")? {
            let found = Found { text: text.to_owned(), place: "the variable IMGBUILD_DEBIAN_KEYRING".into() };
            return self.keyring_path(&found, |text| self.environment.directory.join(text)).map(Some);
        }
        let key = ["debian", "keyring"];
        let Some((file, value)) = self.file.as_ref().and_then(|file| Some((file, file.get(&key)?))) else {
            return Ok(None);
        };
        let found = Found { text: value.texts[0].clone(), place: file.place(&key, value) };
        self.keyring_path(&found, |text| file.path(text)).map(Some)
    }

    fn keyring_path(&self, found: &Found, resolve: impl Fn(&str) -> PathBuf) -> Result<PathBuf, ConfigError> {
        if found.text != "machine" {
            return Ok(resolve(&found.text));
        }
        ["pgp", "gpg"]
            .iter()
            .map(|ending| self.environment.machine(&format!("usr/share/keyrings/debian-archive-keyring.{ending}")))
            .find(|path| path.is_file())
            .ok_or_else(|| found.wrong("this machine has no debian-archive-keyring; install that package"))
    }

    /// Where another apt repository is: IMGBUILD_REPOSITORY_NAME (in capitals, `_` for anything that is neither letter
    /// nor digit), `debian.repositories.NAME.url`.
    ///
    /// # Errors
    /// If nothing says where.
    pub fn repository(&self, name: &str) -> Result<Vec<Url>, ConfigError> {
        let variable = format!("IMGBUILD_REPOSITORY_{}", shouted(name));
        let found = self.all(&variable, &["debian", "repositories", name, "url"])?;
        if found.is_empty() {
            return Err(ConfigError::Missing {
                what: format!("URL of the repository `{name}`"),
                looked: "the definitions name it, the configuration does not".into(),
                set: format!("`debian.repositories.{name}.url` in imgbuild.toml or the variable {variable}"),
            });
        }
        found.iter().map(Found::url).collect()
    }

    /// What a variable says, else the file: several texts, parted by blanks in a variable.
    fn all(&self, variable: &str, key: &[&str]) -> Result<Vec<Found>, ConfigError> {
        if let Some(text) = self.environment.text(variable)? {
            return Ok(words(text, &format!("the variable {variable}")));
        }
        Ok(self.in_file(key))
    }

    fn in_file(&self, key: &[&str]) -> Vec<Found> {
        let Some((file, value)) = self.file.as_ref().and_then(|file| Some((file, file.get(key)?))) else {
            return Vec::new();
        };
        let place = file.place(key, value);
        value.texts.iter().map(|text| Found { text: text.clone(), place: place.clone() }).collect()
    }

    fn first(&self, variable: &str, key: &[&str]) -> Result<Option<Found>, ConfigError> {
        if let Some(text) = self.environment.text(variable)? {
            return Ok(Some(Found { text: text.to_owned(), place: format!("the variable {variable}") }));
        }
        Ok(self.in_file(key).into_iter().next())
    }

    fn number(
        &self,
        variable: &str,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let Some(found) = self.first(variable, &[key])? else { return Ok(None) };
        match found.text.trim().parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(found.wrong(format!("it is no whole number from {} to {}", range.start(), range.end()))),
        }
    }
}

/// A name as part of a variable's name.
fn shouted(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn words(text: &str, place: &str) -> Vec<Found> {
    text.split_whitespace().map(|word| Found { text: word.to_owned(), place: place.to_owned() }).collect()
}

fn nearest_file(directory: &Path) -> Option<PathBuf> {
    let repository = directory.ancestors().find(|folder| folder.join(".git").exists());
    let top = repository.unwrap_or(directory);
    directory
        .ancestors()
        .take_while(|folder| folder.starts_with(top))
        .map(|folder| folder.join(file::NAME))
        .find(|path| path.is_file())
}
