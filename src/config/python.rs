//! Which Python indexes are asked, in which order: what uv and pip are told on this machine, and what they know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use toml::{Table, Value};

use super::{Config, ConfigError, Found, ini, shouted, words};
use crate::fetch::{Credential, Url};

/// The two options that every tool has, and indexes that only pinned names come from.
#[derive(Debug, Default)]
struct Told {
    default: Option<Found>,
    extra: Vec<Found>,
    named: BTreeMap<String, Found>,
}

impl Config {
    /// The Python indexes, in the order in which they are asked: the extra ones, then the default one. Each of the two
    /// is taken from the first of these that sets it: IMGBUILD_PYTHON_INDEX and IMGBUILD_PYTHON_EXTRA_INDEX; uv's
    /// variables; pip's variables; `python.index` and `python.extra-indexes`; uv.toml; pip.conf; and the default one,
    /// at last, from what the installed pip or uv has built in.
    ///
    /// # Errors
    /// If a file or value makes no sense, or nothing names a default index.
    pub fn indexes(&self) -> Result<Vec<Url>, ConfigError> {
        let told = self.told()?;
        let extra = told.iter().map(|told| &told.extra).find(|extra| !extra.is_empty());
        let mut urls = Vec::new();
        for found in extra.into_iter().flatten() {
            urls.push(found.url()?);
        }
        let built_in = || {
            let text = self.asked.get_or_init(|| ask(self)).clone()?;
            Some(Found { text, place: "the default index of the installed pip or uv".into() })
        };
        let default = told.iter().find_map(|told| told.default.clone()).or_else(built_in);
        let default = default.ok_or_else(|| ConfigError::Missing {
            what: "Python package index".into(),
            looked: "neither variables nor uv.toml nor pip.conf name one, and neither pip nor uv is installed".into(),
            set: "`python.index` in imgbuild.toml or the variable IMGBUILD_PYTHON_INDEX to its URL".into(),
        })?;
        let default = default.url()?;
        urls.retain(|url| *url != default);
        urls.push(default);
        Ok(urls)
    }

    /// Projects that come from one index and no other, by normalised name: `python.pins.PROJECT` names a URL, or an
    /// index of `python.indexes` or uv.toml.
    ///
    /// # Errors
    /// If an index is not known, or a file makes no sense.
    pub fn python_pins(&self) -> Result<BTreeMap<String, Url>, ConfigError> {
        let mut pins = BTreeMap::new();
        let Some(file) = &self.file else { return Ok(pins) };
        let mut named: BTreeMap<String, Found> = BTreeMap::new();
        for told in self.told()? {
            for (name, found) in told.named {
                named.entry(name).or_insert(found);
            }
        }
        let key = ["python", "pins"];
        for (project, value) in file.named(&key) {
            let place = file.place(&["python", "pins", project], value);
            let found = Found { text: value.texts[0].clone(), place };
            let url = match named.get(&found.text) {
                Some(index) => index.url()?,
                None if found.text.contains("://") => found.url()?,
                None => {
                    let hint = crate::names::nearest(&found.text, named.keys().map(String::as_str))
                        .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                    return Err(found.wrong(format!("there is no index `{}` in `python.indexes`{hint}", found.text)));
                }
            };
            pins.insert(crate::python::normalised(project), url);
        }
        Ok(pins)
    }

    /// User and password of each index that has them, for the files on the same host.
    pub(super) fn index_credentials(&self) -> Result<Vec<Credential>, ConfigError> {
        let mut credentials = Vec::new();
        for told in self.told()? {
            let named = told.named.iter().map(|(name, found)| (Some(name), found));
            for (name, found) in told.default.iter().chain(&told.extra).map(|found| (None, found)).chain(named) {
                let Ok(mut url) = found.url() else { continue };
                if let Some(name) = name {
                    let variable = |what: &str| format!("UV_INDEX_{}_{what}", shouted(name));
                    if let Some(user) = self.environment.text(&variable("USERNAME"))? {
                        let _ = url.set_username(user);
                    }
                    if let Some(password) = self.environment.text(&variable("PASSWORD"))? {
                        let _ = url.set_password(Some(password));
                    }
                }
                credentials.extend(super::network::credential(&url));
            }
        }
        Ok(credentials)
    }

    /// What each place says, the strongest first.
    fn told(&self) -> Result<Vec<Told>, ConfigError> {
        let mut told = vec![
            self.told_by_variables(&["IMGBUILD_PYTHON_INDEX"], &["IMGBUILD_PYTHON_EXTRA_INDEX"])?,
            self.told_by_variables(&["UV_DEFAULT_INDEX", "UV_INDEX_URL"], &["UV_INDEX", "UV_EXTRA_INDEX_URL"])?,
            self.told_by_variables(&["PIP_INDEX_URL"], &["PIP_EXTRA_INDEX_URL"])?,
        ];
        let mut own = Told {
            default: self.in_file(&["python", "index"]).into_iter().next(),
            extra: self.in_file(&["python", "extra-indexes"]),
            named: BTreeMap::new(),
        };
        if let Some(file) = &self.file {
            let key = ["python", "indexes"];
            for (name, value) in file.named(&key) {
                let place = file.place(&["python", "indexes", name], value);
                own.named.insert(name.to_owned(), Found { text: value.texts[0].clone(), place });
            }
        }
        told.push(own);
        for path in self.uv_files() {
            if let Some(text) = read(&path)? {
                told.push(told_by_uv(&path, &text)?);
            }
        }
        told.extend(self.pip_files()?.iter().map(|(path, sections)| told_by_pip(path, sections)));
        Ok(told)
    }

    fn told_by_variables(&self, default: &[&str], extra: &[&str]) -> Result<Told, ConfigError> {
        let mut told = Told::default();
        for (variables, is_default) in [(default, true), (extra, false)] {
            for variable in variables {
                let Some(text) = self.environment.text(variable)? else { continue };
                for mut found in words(text, &format!("the variable {variable}")) {
                    // uv lets an index have a name: `name=url`.
                    let name = match found.text.split_once('=') {
                        Some((name, _)) if !name.contains([':', '/']) => Some(name.to_owned()),
                        _ => None,
                    };
                    if let Some(name) = name {
                        found.text.drain(..=name.len());
                        told.named.insert(name, found.clone());
                    }
                    if !is_default {
                        told.extra.push(found);
                    } else if told.default.is_none() {
                        told.default = Some(found);
                    }
                }
            }
        }
        Ok(told)
    }

    /// uv's files, the strongest first: the named one alone, else the project's, the user's, the machine's.
    fn uv_files(&self) -> Vec<PathBuf> {
        let environment = &self.environment;
        if let Some(path) = environment.path("UV_CONFIG_FILE") {
            return vec![path];
        }
        let project =
            environment.directory.ancestors().map(|folder| folder.join("uv.toml")).find(|path| path.is_file());
        let user = environment.config_home().map(|folder| folder.join("uv/uv.toml"));
        let machine = ["etc/xdg/uv/uv.toml", "etc/uv/uv.toml"].map(|path| environment.machine(path));
        project.into_iter().chain(user).chain(machine.into_iter().find(|path| path.is_file())).collect()
    }

    /// pip's files, the strongest first: the named one, the virtual environment's, the user's, the machine's. `PIP_CONFIG_FILE`
    /// set to the null device turns all of them off.
    pub(super) fn pip_files(&self) -> Result<Vec<(PathBuf, Sections)>, ConfigError> {
        let environment = &self.environment;
        let named = environment.path("PIP_CONFIG_FILE");
        if named.as_deref() == Some(Path::new("/dev/null")) {
            return Ok(Vec::new());
        }
        let mut paths: Vec<PathBuf> = named.into_iter().collect();
        paths.extend(environment.path("VIRTUAL_ENV").map(|folder| folder.join("pip.conf")));
        paths.extend(environment.config_home().map(|folder| folder.join("pip/pip.conf")));
        paths.extend(environment.home().map(|home| home.join(".pip/pip.conf")));
        paths.extend(["etc/pip.conf", "etc/xdg/pip/pip.conf"].map(|path| environment.machine(path)));
        let mut files = Vec::new();
        for path in paths {
            if let Some(text) = read(&path)? {
                files.push((path, ini::parse(&text)));
            }
        }
        Ok(files)
    }
}

/// Options by section.
pub(super) type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// An option of pip: a command's section is stronger than the global one.
pub(super) fn pip_option<'a>(sections: &'a Sections, option: &str) -> Option<&'a str> {
    let of = |section: &str| sections.get(section).and_then(|options| options.get(option));
    of("install")
        .or_else(|| of("download"))
        .or_else(|| of("global"))
        .map(String::as_str)
        .filter(|text| !text.is_empty())
}

fn told_by_pip(path: &Path, sections: &Sections) -> Told {
    let found = |option: &str| {
        let place = format!("`{option}` in `{}`", path.display());
        pip_option(sections, option).map(|text| words(text, &place)).unwrap_or_default()
    };
    Told { default: found("index-url").into_iter().next(), extra: found("extra-index-url"), named: BTreeMap::new() }
}

fn told_by_uv(path: &Path, text: &str) -> Result<Told, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::File {
        path: path.to_path_buf(),
        line: text[..error.span().map_or(0, |span| span.start).min(text.len())].matches('\n').count() + 1,
        why: error.message().to_owned(),
    })?;
    let found =
        |key: &str, text: &str| Found { text: text.to_owned(), place: format!("`{key}` in `{}`", path.display()) };
    let mut told = Told::default();
    // The newer spelling, `[[index]]`, is stronger than the older ones, which `[pip]` overrides for `uv pip`.
    for index in table.get("index").and_then(Value::as_array).into_iter().flatten() {
        let Some(url) = index.get("url").and_then(Value::as_str) else { continue };
        let is = |flag: &str| index.get(flag).and_then(Value::as_bool) == Some(true);
        let index_url = found("index", url);
        if let Some(name) = index.get("name").and_then(Value::as_str) {
            told.named.insert(name.to_owned(), index_url.clone());
        }
        match (is("explicit"), is("default")) {
            (true, _) => {}
            (false, true) => told.default = told.default.or(Some(index_url)),
            (false, false) => told.extra.push(index_url),
        }
    }
    for table in [table.get("pip").and_then(Value::as_table), Some(&table)].into_iter().flatten() {
        if let Some(url) = table.get("index-url").and_then(Value::as_str) {
            told.default = told.default.or_else(|| Some(found("index-url", url)));
        }
        let extra = table.get("extra-index-url").and_then(Value::as_array).into_iter().flatten();
        told.extra.extend(extra.filter_map(Value::as_str).map(|url| found("extra-index-url", url)));
    }
    Ok(told)
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_path_buf(), source }),
    }
}

/// Prints pip's built-in index, from pip itself or from the one that Python brings along to install.
const PIP: &str = "
import sys
try:
    import pip._internal
except ImportError:
    import ensurepip, glob, os
    sys.path[:0] = glob.glob(os.path.join(os.path.dirname(ensurepip.__file__), '_bundled', 'pip-*.whl'))
    sys.path[:0] = glob.glob('/usr/share/python-wheels/pip-*.whl')
from pip._internal.models.index import PyPI
print(PyPI.simple_url)
";

/// Asks the installed tools for the index that they use when nobody says otherwise.
fn ask(config: &Config) -> Option<String> {
    let folders: Vec<PathBuf> =
        config.environment.variable("PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    for name in ["python3", "python", "pip3", "pip", "uv"] {
        for program in folders.iter().map(|folder| folder.join(name)).filter(|path| path.is_file()) {
            let arguments: &[&str] = match name {
                "python3" | "python" => &["-I", "-c", PIP],
                "uv" => &["help", "--no-pager", "pip", "install"],
                _ => &["install", "--help"],
            };
            let mut command = Command::new(&program);
            // Only what a tool needs to start: what it prints must be its own.
            command.args(arguments).env_clear().stdin(Stdio::null()).stderr(Stdio::null());
            for variable in ["PATH", "HOME", "LD_LIBRARY_PATH"] {
                if let Some(value) = config.environment.variable(variable) {
                    command.env(variable, value);
                }
            }
            let Ok(output) = command.output() else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            let found = match name {
                "python3" | "python" => Some(text.trim().to_owned()),
                _ => default_in_help(&text),
            };
            if let Some(url) = found.filter(|url| output.status.success() && crate::fetch::parse_url(url).is_ok()) {
                return Some(url);
            }
        }
    }
    None
}

/// The first URL behind the word `default` in a tool's help, across line ends.
fn default_in_help(text: &str) -> Option<String> {
    let mut words =
        text.split_whitespace().skip_while(|word| !word.contains("--index-url") && !word.contains("--default-index"));
    words.find(|word| matches!(*word, "(default" | "default:"))?;
    let url = words.next()?.trim_matches(|c: char| "()<>.,".contains(c));
    Some(url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_found_in_a_tools_help() {
        let pip = "Package Index Options:\n  -i, --index-url <url>   Base URL of the Index\n    (default\n   https://index.example/simple). This should";
        assert_eq!(default_in_help(pip).as_deref(), Some("https://index.example/simple"));
        let uv = "      --default-index <DEFAULT_INDEX>\n  The URL of the default package index (by default:\n  <https://index.example/simple>).\n";
        assert_eq!(default_in_help(uv).as_deref(), Some("https://index.example/simple"));
        assert_eq!(default_in_help("no such option"), None);
    }
}
