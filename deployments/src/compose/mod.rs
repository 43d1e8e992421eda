//! A compose project as Docker Compose sees it: entry file, included files merged in order, variables put in.
//!
//! Only what these deployments use is understood: an entry file of `name` and one `include` with a list of files, and
//! plain files. Anything else is refused by name rather than half understood. Compose itself is the judge: a test
//! compares this module's result with `docker compose config` for every environment.

mod dotenv;
mod interpolate;
mod merge;
mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;

use crate::yaml::{self, YamlError};

pub use dotenv::dotenv;
pub use interpolate::{Interpolation, interpolate, variables};
pub use model::{Condition, Mount, Port, Service};

/// Settings by name: what `.env`, the shell or an environment file say.
pub type Settings = BTreeMap<String, String>;

/// A project that cannot be understood.
#[derive(Debug, Error)]
pub enum ComposeError {
    /// A file is missing or not YAML.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// A file says something that is not understood.
    #[error("{path}: {what}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it says.
        what: String,
    },
    /// A variable cannot be put in.
    #[error("{path}: `{key}`: {source}")]
    Variable {
        /// The file.
        path: PathBuf,
        /// The key whose value holds the variable.
        key: String,
        /// Why.
        source: Interpolation,
    },
}

/// A merged project.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its name: containers, networks and volumes are called after it.
    pub name: String,
    /// Every file that was read, the entry first.
    pub files: Vec<PathBuf>,
    /// The merged model with variables put in.
    pub model: Value,
    /// Every variable that the files mention, with its default if one is written.
    pub variables: BTreeMap<String, Option<String>>,
    /// The settings that counted: the environment files of the entry, below those that were given.
    pub settings: Settings,
}

impl Project {
    /// Reads an entry file. `given` wins over the environment files that the entry names, as in Compose.
    pub fn open(entry: &Path, given: &Settings) -> Result<Project, ComposeError> {
        Project::with(entry, &[], given, &|_| None)
    }

    /// Reads an entry file and lays further files over it, as `docker compose -f ENTRY -f FILE...` does. `outside` answers for
    /// variables of the shell that are no settings, where an environment file mentions them.
    pub fn with(
        entry: &Path,
        over: &[PathBuf],
        given: &Settings,
        outside: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Project, ComposeError> {
        let top = yaml::marked(entry, &yaml::read(entry)?)?;
        let folder = entry.parent().unwrap_or(Path::new(".")).to_owned();
        let mut files = vec![entry.to_owned()];
        let mut settings = Settings::new();
        let mut parts = Vec::new();
        let known = |name: &str| given.get(name).cloned().or_else(|| outside(name));
        for include in list(top.get("include")) {
            let (paths, env_files) = included(entry, include)?;
            for file in env_files {
                let path = folder.join(&file);
                settings.extend(dotenv(&path, &yaml::read(&path)?, &known)?);
            }
            for file in paths {
                let path = folder.join(file);
                let part = yaml::marked(&path, &yaml::read(&path)?)?;
                if part.get("include").is_some() {
                    let what = "is included and has an `include` of its own".into();
                    return Err(ComposeError::Unfit { path, what });
                }
                parts.push((path.clone(), part));
                files.push(path);
            }
        }
        for path in over {
            parts.push((path.clone(), yaml::marked(path, &yaml::read(path)?)?));
            files.push(path.clone());
        }
        settings.extend(given.clone());

        let mut own = top.as_object().cloned().unwrap_or_default();
        own.remove("include");
        parts.push((entry.to_owned(), Value::Object(own)));

        let mut model = Value::Object(Map::new());
        let mut mentioned = BTreeMap::new();
        for (path, mut part) in parts {
            interpolate::variables_of(&part, &mut mentioned);
            interpolate::value(&mut part, &settings).map_err(|(key, source)| ComposeError::Variable {
                path: path.clone(),
                key,
                source,
            })?;
            merge::file(&mut model, part);
        }
        let written = model.get("name").and_then(Value::as_str);
        let name = settings.get("COMPOSE_PROJECT_NAME").map(String::as_str).filter(|name| !name.is_empty());
        let name = name.or(written).unwrap_or_default().to_owned();
        if name.is_empty() {
            let what = "no `name`: without one the project is called after its folder".into();
            return Err(ComposeError::Unfit { path: entry.to_owned(), what });
        }
        Ok(Project { name, files, model, variables: mentioned, settings })
    }

    /// Every service, by name.
    pub fn services(&self) -> BTreeMap<String, Service> {
        let services = self.model.get("services").and_then(Value::as_object);
        services.into_iter().flatten().map(|(name, value)| (name.clone(), Service::of(name, value))).collect()
    }

    /// The names below a top-level key, such as `networks`, each with its description.
    pub fn top(&self, key: &str) -> BTreeMap<String, Value> {
        let entries = self.model.get(key).and_then(Value::as_object);
        entries.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Networks that have no way out.
    pub fn internal_networks(&self) -> Vec<String> {
        let internal = |value: &Value| value.get("internal").and_then(Value::as_bool) == Some(true);
        self.top("networks").into_iter().filter(|(_, value)| internal(value)).map(|(name, _)| name).collect()
    }
}

fn list(value: Option<&Value>) -> Vec<&Value> {
    match value {
        Some(Value::Array(items)) => items.iter().collect(),
        Some(Value::Null) | None => Vec::new(),
        Some(one) => vec![one],
    }
}

fn included(entry: &Path, include: &Value) -> Result<(Vec<String>, Vec<String>), ComposeError> {
    let unfit = |what: &str| ComposeError::Unfit { path: entry.to_owned(), what: what.to_owned() };
    let strings = |value: Option<&Value>| -> Vec<String> {
        list(value).into_iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let Some(include) = include.as_object() else {
        return Err(unfit("`include` must be a list of mappings with `path`: a plain file name cannot be overridden"));
    };
    if include.get("project_directory").and_then(Value::as_str) != Some(".") {
        return Err(unfit(
            "`include` needs `project_directory: .`, or relative paths start in the first file's folder",
        ));
    }
    Ok((strings(include.get("path")), strings(include.get("env_file"))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_a_project_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("x.yaml");
        std::fs::write(&entry, "name: x\ninclude:\n  - path: [a.yaml]\n").unwrap();
        let error = Project::open(&entry, &Settings::new()).unwrap_err().to_string();
        assert!(error.contains("project_directory"), "{error}");
    }

    #[test]
    fn a_file_that_includes_itself_or_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("x.yaml");
        let error = |included: &str| {
            let text = format!("name: x\ninclude:\n  - {{path: [{included}], project_directory: .}}\n");
            std::fs::write(&entry, text).unwrap();
            Project::open(&entry, &Settings::new()).unwrap_err().to_string()
        };
        assert!(error("x.yaml").contains("is included and has an `include` of its own"), "{}", error("x.yaml"));
        assert!(error("/dev/zero").contains("it is not a regular file"), "{}", error("/dev/zero"));
    }

    #[test]
    fn given_settings_win_over_the_environment_file_and_that_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("x.yaml", "name: x\ninclude:\n  - {path: [a.yaml, b.yaml], project_directory: ., env_file: e.env}\n");
        write("a.yaml", "services: {s: {image: \"${A:-a}${B:-b}${C:-c}\", ports: [\"1:1\"], command: [x]}}\n");
        write("b.yaml", "services:\n  s:\n    ports: !override\n      - \"2:2\"\n    command: [y]\n");
        write("e.env", "A=file\nB=file\n");
        let given = Settings::from([("A".to_owned(), "given".to_owned())]);
        let project = Project::open(&folder.path().join("x.yaml"), &given).unwrap();
        let service = &project.services()["s"];
        assert_eq!(service.image, "givenfilec");
        assert_eq!(service.ports.len(), 1);
        assert_eq!(service.ports[0].container, 2);
        assert_eq!(project.variables.keys().collect::<Vec<_>>(), ["A", "B", "C"]);
    }
}
