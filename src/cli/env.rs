//! `imgbuild env`.

use clap::Subcommand;
use deployments::env;

use super::common::Invocation;
use super::deploy::Place;
use super::{Stop, print};
use crate::ops::deploy::outcome;

/// Check and explain the settings of the deployments
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild env check --env prod                    types, ranges, rules between variables, secrets
  imgbuild env check --env dev --ports             and whether the published ports are free on this machine
  imgbuild env example > deployments/docker/compose/.env")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check what is set: in env/<environment>.env, in .env and in the shell
    Check(CheckArgs),
    /// Print every setting with its default and meaning, to copy from
    Example(ExampleArgs),
    /// Print the reference of settings and secrets in Markdown
    Docs(DocsArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild env check --env prod
  imgbuild env check --env dev --no-secrets
  CORE_PORT=8010 imgbuild env check --env dev --ports")]
struct CheckArgs {
    #[command(flatten)]
    place: Place,
    /// The environment: dev, prod or test
    #[arg(long, value_name = "ENV")]
    env: String,
    /// Do not look at the secrets' files
    #[arg(long)]
    no_secrets: bool,
    /// See whether the published ports are free on this machine; a stack that runs already has its own
    #[arg(long)]
    ports: bool,
}

#[derive(Debug, clap::Args)]
struct ExampleArgs {
    #[command(flatten)]
    place: Place,
    /// One environment's settings [default: those of all]
    #[arg(long, value_name = "ENV", value_parser = deployments::ENVIRONMENTS)]
    env: Option<String>,
}

#[derive(Debug, clap::Args)]
struct DocsArgs {
    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    match args.command {
        Command::Check(args) => {
            let problems = args.place.open(invocation)?.check_env(&args.env, !args.no_secrets, args.ports)?;
            outcome(&format!("the settings of `{}`", args.env), &problems)?;
            print(&format!("{}: fine\n", args.env))
        }
        Command::Example(args) => print(&env::example(args.place.open(invocation)?.schema(), args.env.as_deref())),
        Command::Docs(args) => print(&env::docs(args.place.open(invocation)?.schema())),
    }
}
