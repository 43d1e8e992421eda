//! `imgbuild deploy`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum, ValueHint};
use deployments::{ENVIRONMENTS, backup, graph, render};
use serde_json::json;

use super::build::Format;
use super::common::Invocation;
use super::{Stop, print, print_json};
use crate::error::Failure;
use crate::ops::deploy::{Deployments, PARTS, Part, PinRequest, outcome};
use crate::ops::project::write_whole;

/// Where the deployments are, and what is set.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// The folder of the deployments [default: deployments beside imgbuild.toml or in the working directory]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    deployments: Option<PathBuf>,
    /// Settings in place of `.env` beside the compose files; the shell's variables win over both
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    env_file: Option<PathBuf>,
}

impl Place {
    pub(crate) fn open(&self, invocation: &Invocation) -> Result<Deployments, Stop> {
        let config = invocation.config()?;
        let environment = config.environment();
        let root = match &self.deployments {
            Some(root) => root.clone(),
            None => {
                let root = config.path().and_then(Path::parent).filter(|root| *root != environment.directory());
                root.unwrap_or(Path::new("")).join("deployments")
            }
        };
        let shell = environment.texts().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Deployments::open(&root, self.env_file.clone(), shell)?)
    }
}

/// Check, pin, draw and save the deployments around the images
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild deploy validate                                all environments: compose, configuration, Kubernetes
  imgbuild deploy validate --env prod --only compose      one of them, without kubectl
  imgbuild deploy render --pin --from pushed.json > pinned.yaml
                                                          exactly these images, for docker compose -f prod.yaml -f pinned.yaml
  imgbuild deploy graph --env prod --format svg > graph.svg
  imgbuild deploy backup --script > backup.sh && bash backup.sh /srv/backups/today")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print overrides that name exactly the images of the last build or push
    Render(RenderArgs),
    /// Check compose files, configuration files and Kubernetes manifests
    Validate(ValidateArgs),
    /// Draw who waits for whom
    Graph(GraphArgs),
    /// Print how the data is saved, as a plan or as a script
    Backup(BackupArgs),
    /// Print how the data is put back, as a plan or as a script
    Restore(BackupArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rendering {
    /// An override for docker compose
    Compose,
    /// A component for kustomize
    Kustomize,
    /// JSON
    Json,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild push --registry ghcr.io/acme/obelisk --tag v1 --metadata-file pushed.json
  imgbuild deploy render --pin --from pushed.json > pinned.yaml
  imgbuild deploy render --pin --from pushed.json --format kustomize --output deployments/kubernetes/pins/kustomization.yaml
  imgbuild deploy render --tag v1 --repository ghcr.io/acme/obelisk")]
struct RenderArgs {
    #[command(flatten)]
    place: Place,
    /// The environment: dev, prod or test
    #[arg(long, value_name = "ENV", default_value = "prod")]
    env: String,
    /// Names images by their digests, too
    #[arg(long)]
    pin: bool,
    /// The tag; with the file of a push one that it wrote [default: that of the push, else OBELISK_TAG]
    #[arg(long, value_name = "TAG", required_unless_present = "pin")]
    tag: Option<String>,
    /// The repository before the image's name [default: that of the push, else OBELISK_IMAGES]
    #[arg(long, value_name = "PREFIX")]
    repository: Option<String>,
    /// An OCI layout, or what `--metadata-file` of a build or push wrote
    #[arg(long, value_name = "PATH", default_value = "dist", value_hint = ValueHint::AnyPath)]
    from: PathBuf,
    /// What is printed
    #[arg(long, value_name = "FORMAT", default_value = "compose")]
    format: Rendering,
    /// A file in place of stdout
    #[arg(long, short = 'o', value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Compose files: specification, references, ports, cycles, secrets, networks, images, settings
    Compose,
    /// The services' own configuration files
    Config,
    /// Rendered manifests by our rules; needs kubectl
    Kubernetes,
    /// Rendered manifests by Kubernetes' schemas; needs kubectl and kubernetes-validate
    Schemas,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild deploy validate
  imgbuild deploy validate --env prod --only compose,config
  imgbuild deploy validate --format json")]
struct ValidateArgs {
    #[command(flatten)]
    place: Place,
    /// Environments, separated by commas [default: dev, prod and test]
    #[arg(long, value_name = "ENV", value_delimiter = ',')]
    env: Vec<String>,
    /// Parts to check, separated by commas [default: all]
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Only>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Drawing {
    /// Text for Graphviz
    Dot,
    /// A picture
    Svg,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild deploy graph | dot -Tpdf -o graph.pdf
  imgbuild deploy graph --env prod --profile monitoring,tls --format svg > graph.svg")]
struct GraphArgs {
    #[command(flatten)]
    place: Place,
    /// The environment: dev, prod or test
    #[arg(long, value_name = "ENV", default_value = "prod")]
    env: String,
    /// Profiles whose services are drawn, too, separated by commas
    #[arg(long, value_name = "PROFILE", value_delimiter = ',')]
    profile: Vec<String>,
    /// What is printed
    #[arg(long, value_name = "FORMAT", default_value = "dot")]
    format: Drawing,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild deploy backup                                 what would be saved, in which order
  imgbuild deploy backup --env prod --script > backup.sh && bash backup.sh /srv/backups/today
  imgbuild deploy restore --env prod --script > restore.sh && bash restore.sh /srv/backups/today")]
struct BackupArgs {
    #[command(flatten)]
    place: Place,
    /// The environment: dev, prod or test
    #[arg(long, value_name = "ENV", default_value = "prod")]
    env: String,
    /// A bash script, which takes the backup's folder as its argument
    #[arg(long)]
    script: bool,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    match args.command {
        Command::Render(args) => render(invocation, args),
        Command::Validate(args) => validate(invocation, args),
        Command::Graph(args) => graph(invocation, args),
        Command::Backup(args) => saving(invocation, args, false),
        Command::Restore(args) => saving(invocation, args, true),
    }
}

fn render(invocation: &Invocation, args: RenderArgs) -> Result<(), Stop> {
    let deployments = args.place.open(invocation)?;
    let project = deployments.project(&args.env)?;
    let source = args.pin.then_some(args.from);
    let pins = deployments.pins(&project, &PinRequest { repository: args.repository, tag: args.tag, source })?;
    // Whatever is printed: an image that a service runs and that is not pinned is a failure.
    let compose = render::compose(&project, &pins).map_err(Failure::from)?;
    let text = match args.format {
        Rendering::Compose => compose,
        Rendering::Kustomize => render::kustomize("obelisk", &pins).map_err(Failure::from)?,
        Rendering::Json => render::json(&pins).map_err(Failure::from)?,
    };
    match &args.output {
        Some(path) => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)
                    .map_err(|error| Failure::work(format!("`{}` cannot be made: {error}", folder.display())))?;
            }
            Ok(write_whole(path, &text)?)
        }
        None => print(&text),
    }
}

fn validate(invocation: &Invocation, args: ValidateArgs) -> Result<(), Stop> {
    let deployments = args.place.open(invocation)?;
    let project = invocation.project(&invocation.config()?)?;
    let images: Vec<&str> = project.plan.images.keys().map(String::as_str).collect();
    let parts: BTreeSet<Part> = match args.only.as_slice() {
        [] => PARTS.into(),
        chosen => chosen
            .iter()
            .map(|only| match only {
                Only::Compose => Part::Compose,
                Only::Config => Part::Config,
                Only::Kubernetes => Part::Kubernetes,
                Only::Schemas => Part::Schemas,
            })
            .collect(),
    };
    let all = ENVIRONMENTS.map(str::to_owned).to_vec();
    let environments = if args.env.is_empty() { all } else { args.env };
    let mut found = Vec::new();
    for environment in &environments {
        found.push((environment, deployments.validate(environment, &parts, &images)?));
    }
    let wrong: usize = found.iter().map(|(_, problems)| problems.len()).sum();
    if args.format == Format::Json {
        let environments = found.iter().map(|(environment, problems)| {
            let problems = problems.iter().map(|it| json!({"at": it.at, "what": it.what, "hint": it.hint}));
            json!({"environment": environment, "problems": problems.collect::<Vec<_>>()})
        });
        print_json(&json!({"version": 1, "environments": environments.collect::<Vec<_>>()}))?;
        if wrong > 0 {
            return Err(Failure::work(format!("{wrong} problems in the deployments")).into());
        }
        return Ok(());
    }
    let mut problems = Vec::new();
    for (environment, mut of_one) in found {
        if of_one.is_empty() {
            print(&format!("{environment}: valid\n"))?;
        }
        for problem in &mut of_one {
            problem.at = format!("{environment}: {}", problem.at);
        }
        problems.append(&mut of_one);
    }
    Ok(outcome("the deployments", &problems)?)
}

fn graph(invocation: &Invocation, args: GraphArgs) -> Result<(), Stop> {
    let project = args.place.open(invocation)?.project(&args.env)?;
    let known: BTreeSet<String> = project.services().into_values().flat_map(|it| it.profiles).collect();
    if let Some(unknown) = args.profile.iter().find(|it| !known.contains(*it)) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!("no service of {} is in the profile `{unknown}`", args.env))
            .hint(format!("there are {known}"))
            .into());
    }
    let graph = graph::of(&project, &args.profile.into_iter().collect());
    print(&match args.format {
        Drawing::Dot => graph.dot(),
        Drawing::Svg => graph.svg(),
    })
}

fn saving(invocation: &Invocation, args: BackupArgs, restore: bool) -> Result<(), Stop> {
    let project = args.place.open(invocation)?.project(&args.env)?;
    let plan = backup::plan(&project).map_err(|error| Failure::work(error.to_string()))?;
    print(&match (args.script, restore) {
        (false, _) => plan.text(restore),
        (true, false) => plan.backup_script(),
        (true, true) => plan.restore_script(),
    })
}
