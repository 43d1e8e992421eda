//! The schema of every environment variable and secret: the one source of `.env.example`, of the reference table in the
//! documentation, and of what is checked before anything starts.

mod check;
mod values;
mod write;

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use crate::yaml::{self, YamlError};

pub use check::{check, check_required, check_secrets};
pub use values::is_repository;
pub(crate) use values::{bytes, nearest};
pub use write::{docs, example};

/// A schema that cannot be used.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] YamlError),
    /// It is not TOML of this shape.
    #[error("{path}: {message}")]
    Shape {
        /// The file.
        path: String,
        /// The parser's message.
        message: String,
    },
    /// It contradicts itself.
    #[error("{path}: variable `{name}`: {what}")]
    Contradiction {
        /// The file.
        path: String,
        /// The variable or secret.
        name: String,
        /// What contradicts what.
        what: String,
    },
}

/// The schema: `deployments/docker/env/schema.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// Variables in the order of the documentation.
    #[serde(rename = "variable")]
    pub variables: Vec<Variable>,
    /// Secrets: files, never variables.
    #[serde(rename = "secret")]
    pub secrets: Vec<Secret>,
}

/// A variable.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The heading that it stands under.
    pub group: String,
    /// What its value looks like.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The values of an `enum`.
    #[serde(default)]
    pub values: Vec<String>,
    /// Smallest number.
    pub min: Option<f64>,
    /// Largest number.
    pub max: Option<f64>,
    /// The value without a setting; for `container`: the value that is written.
    pub default: String,
    /// Whom it concerns.
    pub services: Vec<String>,
    /// Who sees it under this name.
    pub scope: Scope,
    /// The environments, or overrides, that know it; empty: all environments.
    #[serde(default)]
    pub only: BTreeSet<String>,
    /// The environments where it has to be set.
    #[serde(default)]
    pub required: BTreeSet<String>,
    /// What it means.
    pub doc: String,
}

impl Variable {
    /// Whether compose reads it while it reads its files.
    pub fn is_setting(&self) -> bool {
        self.scope != Scope::Container
    }

    /// Whether services see it.
    pub fn is_seen(&self) -> bool {
        matches!(self.scope, Scope::Container | Scope::Both)
    }

    /// Whether Compose reads it by itself, not for its files.
    pub fn is_compose(&self) -> bool {
        self.scope == Scope::Compose
    }

    /// Whether an environment knows it.
    pub fn is_known_in(&self, environment: &str) -> bool {
        self.only.is_empty() || self.only.contains(environment)
    }

    /// Whether it is how much memory a service may use.
    pub fn is_memory_limit(&self) -> bool {
        self.kind == Kind::Size && self.group == "Limits"
    }
}

/// Who sees a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Compose alone.
    Env,
    /// Services alone; the value is written in the compose files.
    Container,
    /// Both, under the same name.
    Both,
    /// Compose by itself: its files do not mention it.
    Compose,
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Any text on one line.
    String,
    /// `true` or `false`, in any case.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// A TCP port.
    Port,
    /// Bytes, such as `512m` or `2g`.
    Size,
    /// A time, such as `5m` or `15d`.
    Duration,
    /// An http or https URL.
    Url,
    /// A host or domain name.
    Host,
    /// An IP address.
    Ip,
    /// An image repository without a tag, such as `ghcr.io/you/obelisk`.
    Repository,
    /// The tag of an image.
    Tag,
    /// The name of a model, as init takes it.
    Model,
    /// Names of models, separated by spaces.
    Models,
    /// A path.
    Path,
    /// One of `values`.
    Enum,
}

/// A secret: a file, mounted at `/run/secrets/NAME`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its name and that of its file.
    pub name: String,
    /// What its value begins with.
    pub prefix: String,
    /// Random bytes that a made value holds; 0: a person gives it, and it may be empty.
    pub bytes: u8,
    /// Who reads it.
    pub services: Vec<String>,
    /// The environments that know it; empty: all.
    #[serde(default)]
    pub only: BTreeSet<String>,
    /// What it is for.
    pub doc: String,
}

impl Secret {
    /// Whether an environment knows it.
    pub fn is_known_in(&self, environment: &str) -> bool {
        self.only.is_empty() || self.only.contains(environment)
    }
}

impl Schema {
    /// Reads a schema and refuses one that contradicts itself.
    pub fn open(path: &Path) -> Result<Schema, SchemaError> {
        Schema::parse(&path.display().to_string(), &yaml::read(path)?)
    }

    fn parse(path: &str, text: &str) -> Result<Schema, SchemaError> {
        let schema: Schema = toml::from_str(text).map_err(|error| SchemaError::Shape {
            path: path.to_owned(),
            message: error.to_string().trim().to_owned(),
        })?;
        let contradiction = |name: &str, what: String| SchemaError::Contradiction {
            path: path.to_owned(),
            name: name.to_owned(),
            what,
        };
        let mut seen = BTreeSet::new();
        for name in schema.variables.iter().map(|it| &it.name).chain(schema.secrets.iter().map(|it| &it.name)) {
            if !seen.insert(name) {
                return Err(contradiction(name, "is described twice".into()));
            }
        }
        for variable in &schema.variables {
            if let Err(why) = values::fits(variable, &variable.default)
                && !variable.default.is_empty()
            {
                return Err(contradiction(&variable.name, format!("its default does not fit its type: {why}")));
            }
            for environment in &variable.required {
                let what = if !crate::ENVIRONMENTS.contains(&environment.as_str()) {
                    format!("`required` names `{environment}`, which is no environment")
                } else if !variable.is_setting() || !variable.is_known_in(environment) {
                    format!("is required in {environment}, where it cannot be set")
                } else {
                    continue;
                };
                return Err(contradiction(&variable.name, what));
            }
            if (variable.kind == Kind::Enum) == variable.values.is_empty() {
                return Err(contradiction(
                    &variable.name,
                    "`values` belongs to the type `enum` and to no other".into(),
                ));
            }
        }
        Ok(schema)
    }

    /// A variable by name.
    pub fn variable(&self, name: &str) -> Option<&Variable> {
        self.variables.iter().find(|variable| variable.name == name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failing test may panic")]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn schema() -> Schema {
        Schema::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/env/schema.toml")).unwrap()
    }

    #[test]
    fn a_schema_that_contradicts_itself_is_refused() {
        let variable = "[[variable]]\nname = \"A\"\ngroup = \"g\"\ntype = \"int\"\ndefault = \"x\"\nservices = []\n\
                        scope = \"env\"\ndoc = \"d\"\n";
        let error = |text: &str| Schema::parse("s.toml", text).unwrap_err().to_string();
        let with = |variable: &str| error(&format!("secret = []\n{variable}"));
        assert!(with(variable).contains("default does not fit its type"), "{}", with(variable));
        let good = variable.replace("\"x\"", "\"1\"");
        assert!(with(&format!("{good}{good}")).contains("described twice"));
        assert!(
            with(&good.replace("\"int\"", "\"enum\"")).contains("`values` belongs") || {
                with(&good.replace("\"int\"", "\"enum\"")).contains("one of")
            }
        );
        assert!(with(&good.replace("doc =", "dok =")).contains("dok"));
        for (more, said) in [
            ("required = [\"staging\"]", "variable `A`: `required` names `staging`, which is no environment"),
            ("only = [\"prod\"]\nrequired = [\"dev\"]", "variable `A`: is required in dev, where it cannot be set"),
        ] {
            assert_eq!(with(&good.replace("doc =", &format!("{more}\ndoc ="))), format!("s.toml: {said}"));
        }
        let inside = good.replace("\"env\"", "\"container\"").replace("doc =", "required = [\"prod\"]\ndoc =");
        assert!(with(&inside).contains("is required in prod, where it cannot be set"));
    }

    #[test]
    fn the_schema_of_the_deployments_is_sound() {
        let schema = schema();
        assert!(schema.variables.len() > 100, "{}", schema.variables.len());
        assert!(schema.secrets.iter().any(|secret| secret.bytes == 0));
    }
}
