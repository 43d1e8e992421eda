//! `deploy` and `env`: the deployments of a folder, with the settings that are given.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use deployments::compose::{ComposeError, Project, Settings, dotenv};
use deployments::env::{self, Schema, SchemaError};
use deployments::kubernetes::Manifests;
use deployments::render::{Pin, RenderError};
use deployments::{ENVIRONMENTS, Problem, STAND_INS, backup, config, validate};
use serde_json::Value;

use crate::error::Failure;
use crate::registry::Reference;

/// The version of Kubernetes whose schemas judge the manifests.
pub const KUBERNETES: &str = "1.32";

/// What `deploy validate` looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The compose files: specification, references, rules, images.
    Compose,
    /// The services' own configuration files.
    Config,
    /// The rendered manifests: rules, and the same network as compose's. Needs kubectl.
    Kubernetes,
    /// The rendered manifests by Kubernetes' own schemas. Needs kubectl and kubernetes-validate.
    Schemas,
}

/// Every part, in order.
pub const PARTS: [Part; 4] = [Part::Compose, Part::Config, Part::Kubernetes, Part::Schemas];

/// The folder `deployments` of a project.
#[derive(Debug)]
pub struct Deployments {
    root: PathBuf,
    schema: Schema,
    env_file: Option<PathBuf>,
    shell: Settings,
}

impl Deployments {
    /// Opens the folder. `shell` are the shell's variables, which win over everything; `env_file` takes the place of `.env`
    /// beside the compose files.
    pub fn open(root: &Path, env_file: Option<PathBuf>, shell: Settings) -> Result<Deployments, Failure> {
        let path = root.join("docker/env/schema.toml");
        if !path.is_file() {
            return Err(Failure::usage(format!(
                "`{}` holds no deployments: there is no docker/env/schema.toml",
                root.display()
            ))
            .hint("run it where `deployments/` is, or name the folder with `--deployments DIR`"));
        }
        let schema = Schema::open(&path)?;
        Ok(Deployments { root: root.to_owned(), schema, env_file, shell })
    }

    /// The schema of the variables.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    fn folder(&self) -> PathBuf {
        self.root.join("docker/compose")
    }

    /// What `.env` says, and of the shell's variables those that are settings.
    fn given(&self) -> Result<Settings, Failure> {
        let beside = self.folder().join(".env");
        let (path, text) = match &self.env_file {
            Some(path) => (path.clone(), std::fs::read_to_string(path)),
            None => (beside.clone(), std::fs::read_to_string(&beside)),
        };
        let mut settings = match text {
            Ok(text) => dotenv(&path, &text, &|name| self.shell.get(name).cloned())?,
            Err(error) if error.kind() == ErrorKind::NotFound && self.env_file.is_none() => Settings::new(),
            Err(error) => return Err(Failure::usage(format!("`{}` cannot be read: {error}", path.display()))),
        };
        let known = self.schema.variables.iter().filter(|it| it.is_setting());
        settings.extend(known.filter_map(|it| Some((it.name.clone(), self.shell.get(&it.name)?.clone()))));
        Ok(settings)
    }

    /// The merged compose project of an environment, with what is set.
    pub fn project(&self, environment: &str) -> Result<Project, Failure> {
        let given = self.given()?;
        self.opened(environment, &given)
    }

    fn opened(&self, environment: &str, given: &Settings) -> Result<Project, Failure> {
        let entry = self.folder().join(format!("{environment}.yaml"));
        if !ENVIRONMENTS.contains(&environment) || !entry.is_file() {
            let known = ENVIRONMENTS.join(", ");
            return Err(Failure::usage(format!(
                "there is no environment `{environment}`: {} is missing",
                entry.display()
            ))
            .hint(format!("there are {known}")));
        }
        Ok(Project::with(&entry, &[], given, &|name| self.shell.get(name).cloned())?)
    }

    /// Everything that is wrong with an environment, in the chosen parts. `images` are the names of the catalogue.
    pub fn validate(
        &self,
        environment: &str,
        parts: &BTreeSet<Part>,
        images: &[&str],
    ) -> Result<Vec<Problem>, Failure> {
        let project = self.project(environment)?;
        let mut problems = Vec::new();
        if parts.contains(&Part::Compose) {
            problems.extend(validate::compose(&project, &self.schema, environment));
            let mut known: BTreeSet<&str> = images.iter().copied().collect();
            if environment == "test" {
                known.extend(STAND_INS);
            }
            problems.extend(validate::images(&project, &known));
            problems.extend(env::check(&self.schema, environment, &project.settings, &project.settings));
            if let Err(error) = backup::plan(&project) {
                problems.push(Problem::new("backup", error.to_string()));
            }
        }
        if parts.contains(&Part::Config) {
            problems.extend(config::check(&project));
        }
        // Tests run in compose alone.
        let overlay = self.root.join("kubernetes/overlays").join(environment);
        if overlay.is_dir() && (parts.contains(&Part::Kubernetes) || parts.contains(&Part::Schemas)) {
            let text = tool("kubectl", &["kustomize".as_ref(), overlay.as_os_str()], "compose,config")?;
            let manifests = Manifests::parse(&text).map_err(|error| Failure::work(error.to_string()))?;
            if parts.contains(&Part::Kubernetes) {
                let secrets = self.schema.secrets.iter().map(|secret| secret.name.clone()).collect();
                problems.extend(manifests.problems(&secrets));
                // With what the repository says: `.env` and the shell say what compose shall do on this machine.
                problems.extend(manifests.compared(&self.opened(environment, &Settings::new())?));
            }
            if parts.contains(&Part::Schemas) {
                problems.extend(schemas(&overlay, &text, manifests.len())?);
            }
        }
        problems.sort();
        problems.dedup();
        Ok(problems)
    }

    /// Everything that is wrong with the settings of an environment; `secrets` asks for the files of its secrets, `ports`
    /// whether the published ports are free on this machine.
    pub fn check_env(&self, environment: &str, secrets: bool, ports: bool) -> Result<Vec<Problem>, Failure> {
        let project = self.project(environment)?;
        let settings = &project.settings;
        let mut problems = env::check(&self.schema, environment, settings, settings);
        problems.extend(env::check_required(&self.schema, environment, settings));
        if secrets {
            let default = || self.schema.variable("SECRETS_DIR").map(|it| it.default.clone()).unwrap_or_default();
            let folder = settings.get("SECRETS_DIR").filter(|value| !value.is_empty()).cloned().unwrap_or_else(default);
            problems.extend(env::check_secrets(&self.schema, environment, &self.folder().join(folder), settings));
        }
        if ports {
            problems.extend(self.taken(&project, environment));
        }
        problems.sort();
        Ok(problems)
    }

    /// Published ports of the services without a profile that another program has.
    fn taken(&self, project: &Project, environment: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        for service in project.services().into_values().filter(|it| it.profiles.is_empty()) {
            for port in &service.ports {
                let Some(number) = port.host else { continue };
                let address = if port.address.is_empty() { "0.0.0.0" } else { &port.address };
                let bound = TcpListener::bind((address, number));
                if bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
                    let is_this = |it: &&env::Variable| {
                        let value = project.settings.get(&it.name).unwrap_or(&it.default);
                        it.kind == env::Kind::Port && it.is_known_in(environment) && *value == number.to_string()
                    };
                    let problem = Problem::new(
                        format!("service `{}`", service.name),
                        format!("publishes port {number} of {address}, which another program has"),
                    );
                    problems.push(match self.schema.variables.iter().filter(|it| it.is_setting()).find(is_this) {
                        Some(variable) => problem.hint(format!("set {} to a port that is free", variable.name)),
                        None => problem,
                    });
                }
            }
        }
        problems
    }

    /// What each image of ours is called: in the repository that is given or that the settings name.
    pub fn pins(&self, project: &Project, request: &PinRequest) -> Result<Vec<Pin>, Failure> {
        let setting = |name: &str| {
            let default = || self.schema.variable(name).map(|it| it.default.clone()).unwrap_or_default();
            project.settings.get(name).filter(|value| !value.is_empty()).cloned().unwrap_or_else(default)
        };
        let prefix = request.repository.clone().unwrap_or_else(|| setting("OBELISK_IMAGES"));
        let prefix = prefix.trim_end_matches('/');
        if !env::is_repository(prefix) {
            return Err(Failure::usage(format!("`{prefix}` is not an image repository, such as ghcr.io/you/obelisk"))
                .hint("say it without a scheme and a tag, with `--repository` or OBELISK_IMAGES"));
        }
        let tag = request.tag.clone().unwrap_or_else(|| setting("OBELISK_TAG"));
        let needed: BTreeSet<String> = deployments::render::ours(project).into_values().collect();
        let Some(source) = &request.source else {
            return Ok(needed
                .into_iter()
                .map(|image| Pin { repository: format!("{prefix}/{image}"), tag: tag.clone(), digest: None, image })
                .collect());
        };
        let known = built(source)?;
        let mut pins = Vec::new();
        for image in needed {
            let Some(it) = known.get(&image) else { continue };
            let own = format!("{prefix}/{image}");
            let tagged: Vec<&Reference> =
                it.references.iter().filter(|it| request.tag.is_none() || it.tag == request.tag).collect();
            if tagged.is_empty() && !it.references.is_empty() {
                return Err(unpushed(&image, &tag, source, &it.references));
            }
            // Another repository than that of the push holds a copy: the same tag and digest.
            let there = tagged.iter().find(|it| it.repository.to_string() == own);
            let pushed = there.filter(|_| request.repository.is_some()).or(tagged.first());
            let repository = match (&request.repository, pushed) {
                (None, Some(pushed)) => pushed.repository.to_string(),
                _ => own,
            };
            let tag = pushed.and_then(|it| it.tag.clone()).unwrap_or_else(|| tag.clone());
            pins.push(Pin { image, repository, tag, digest: Some(it.digest.clone()) });
        }
        Ok(pins)
    }
}

/// How images are to be named.
#[derive(Debug, Clone, Default)]
pub struct PinRequest {
    /// The repository before the image's name; `None`: that of the push, else the setting OBELISK_IMAGES.
    pub repository: Option<String>,
    /// The tag, of a push one that it wrote; `None`: that of the push, else the setting OBELISK_TAG.
    pub tag: Option<String>,
    /// Where the digests are: an OCI layout, or what `--metadata-file` of a build or push wrote; `None`: no digests.
    pub source: Option<PathBuf>,
}

/// An image that was built or pushed.
struct Known {
    digest: String,
    references: Vec<Reference>,
}

/// The failure of a tag that a push did not write.
fn unpushed(image: &str, tag: &str, source: &Path, pushed: &[Reference]) -> Failure {
    let short = |it: &Reference| match &it.tag {
        Some(tag) => format!("{}:{tag}", it.repository),
        None => it.to_string(),
    };
    let names = pushed.iter().map(short).collect::<Vec<_>>().join(", ");
    Failure::usage(format!("image `{image}` was not pushed as `{tag}`: `{}` says {names}", source.display()))
        .hint(format!("leave `--tag` out, name a tag that was pushed, or push again with `--tag {tag}`"))
}

/// The images that a build or push left, by name.
fn built(source: &Path) -> Result<BTreeMap<String, Known>, Failure> {
    let is_layout = source.is_dir();
    let path = if is_layout { source.join("index.json") } else { source.to_owned() };
    let hint = "build or push first, or name the layout or metadata file with `--from PATH`";
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::usage(format!("`{}` cannot be read: {error}", path.display())).hint(hint))?;
    let odd = |what: &str| Failure::usage(format!("`{}`: {what}", path.display())).hint(hint);
    let value: Value = serde_json::from_str(&text).map_err(|error| odd(&format!("is not JSON: {error}")))?;
    let (list, name) = match is_layout {
        true => ("manifests", "/annotations/org.opencontainers.image.ref.name"),
        false => ("images", "/name"),
    };
    let entries = value.get(list).and_then(Value::as_array).ok_or_else(|| odd(&format!("has no list `{list}`")))?;
    let mut known = BTreeMap::new();
    for entry in entries {
        let text = |pointer: &str| entry.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (Some(name), Some(digest)) = (text(name), text("/digest")) else { continue };
        let references = entry.get("references").and_then(Value::as_array).into_iter().flatten();
        let references = references
            .filter_map(Value::as_str)
            .map(|text| text.parse::<Reference>().map_err(|error| odd(&error.to_string())))
            .collect::<Result<_, _>>()?;
        known.insert(name, Known { digest, references });
    }
    Ok(known)
}

/// Kubernetes' own schemas; a kind without one is a finding, not a success.
fn schemas(overlay: &Path, text: &str, count: usize) -> Result<Vec<Problem>, Failure> {
    let failed = |error: std::io::Error| Failure::work(format!("rendered manifests cannot be kept: {error}"));
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().map_err(failed)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
    let output = run(
        "kubernetes-validate",
        &["-k".as_ref(), KUBERNETES.as_ref(), "--strict".as_ref(), file.path().as_os_str()],
        "compose,config,kubernetes",
    )?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let at = overlay.display().to_string();
    let good = said.lines().filter(|line| line.starts_with("INFO") && line.contains(" passed ")).count();
    let mut problems: Vec<Problem> = said
        .lines()
        .filter(|line| !line.starts_with("INFO") && !line.trim().is_empty())
        .map(|line| Problem::new(&at, line.trim().replace(&file.path().display().to_string(), "manifests")))
        .collect();
    if problems.is_empty() && good != count {
        problems.push(Problem::new(&at, format!("kubernetes-validate accepted {good} of {count} manifests")));
    }
    Ok(problems)
}

fn run(program: &str, arguments: &[&std::ffi::OsStr], without: &str) -> Result<std::process::Output, Failure> {
    let output = Command::new(program).args(arguments).stdin(std::process::Stdio::null()).output();
    output.map_err(|error| {
        Failure::work(format!("{program} cannot be run: {error}"))
            .hint(format!("install it, or leave these checks out with `--only {without}`"))
    })
}

/// Runs a program that must succeed; gives its stdout.
fn tool(program: &str, arguments: &[&std::ffi::OsStr], without: &str) -> Result<String, Failure> {
    let output = run(program, arguments, without)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::work(format!("{program} failed ({}): {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A list of problems as one failure; `Ok` where there are none.
pub fn outcome(what: &str, problems: &[Problem]) -> Result<(), Failure> {
    let listed: String = problems.iter().map(|problem| format!("\n{problem}")).collect();
    match problems.len() {
        0 => Ok(()),
        1 => Err(Failure::work(format!("1 problem in {what}{listed}"))),
        count => Err(Failure::work(format!("{count} problems in {what}{listed}"))),
    }
}

impl From<ComposeError> for Failure {
    fn from(error: ComposeError) -> Failure {
        Failure::work(error.to_string())
    }
}

impl From<SchemaError> for Failure {
    fn from(error: SchemaError) -> Failure {
        Failure::work(error.to_string())
    }
}

impl From<RenderError> for Failure {
    fn from(error: RenderError) -> Failure {
        match error {
            RenderError::Unpinned { .. } => Failure::work(error.to_string())
                .hint("build or push that image too, or name another layout or metadata file with `--from PATH`"),
            other => Failure::usage(other.to_string()),
        }
    }
}
