//! The command line: flags as typed become requests; results go to stdout, everything else to stderr.
//!
//! One file a command. This is the only place that reads the environment, the clock and the working directory.

mod build;
mod cache;
mod common;
mod completions;
mod deploy;
mod diff;
mod env;
mod explain;
mod inspect;
mod list;
mod load;
mod lock;
mod login;
mod man;
mod mirror;
mod plan;
mod push;
mod rebase;
mod shell;
mod tree;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use layers::Catalogue;

pub use common::Globals;
use common::Invocation;

use crate::error::Failure;

/// A program: the whole command line over a catalogue that is compiled in, or over those that `--catalogue` names.
#[derive(Debug, Clone)]
pub struct Program {
    catalogue: Option<Catalogue>,
    home: String,
    context: String,
}

impl Program {
    /// The command line without a catalogue of its own.
    pub fn new() -> Program {
        Program { catalogue: None, home: ".".into(), context: ".".into() }
    }

    /// Compiles a catalogue in. `home` is the folder of its `images.lock` and bases, `context` its build context, both
    /// relative to the project's root: the folder with `imgbuild.toml`, else the working directory.
    pub fn with_catalogue(catalogue: Catalogue, home: &str, context: &str) -> Program {
        Program { catalogue: Some(catalogue), home: home.into(), context: context.into() }
    }

    /// The whole `main`.
    pub fn main(self) -> ExitCode {
        crate::sandbox::enter_if_asked();
        self.run(std::env::args_os())
    }

    /// Like [`Program::main`], with the words of the command line.
    pub fn run(self, words: impl IntoIterator<Item = OsString>) -> ExitCode {
        let cli = match Cli::command().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches)) {
            Ok(cli) => cli,
            Err(error) => {
                // Help and version are results, mistakes are not.
                let status = error.exit_code();
                if error.use_stderr() {
                    // A mistyped reference may hold a password.
                    let text = crate::hide::hidden(&error.render().ansi().to_string());
                    let _ = write!(anstream::AutoStream::auto(io::stderr()), "{text}");
                } else {
                    let _ = error.print();
                }
                return ExitCode::from(u8::try_from(status).unwrap_or(2));
            }
        };
        let invocation = Invocation { program: self, globals: cli.globals };
        match cli.command.run(&invocation) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Stop::Failure(failure)) => {
                show(&failure);
                ExitCode::from(failure.status())
            }
            // Whoever reads has had enough (`imgbuild list | head -1`).
            Err(Stop::Closed) => ExitCode::SUCCESS,
        }
    }
}

impl Default for Program {
    fn default() -> Program {
        Program::new()
    }
}

/// Why a command ends early.
pub(crate) enum Stop {
    /// Something failed.
    Failure(Failure),
    /// Nobody reads stdout any more.
    Closed,
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failure(error.into())
    }
}

/// Container images as Rust code: typed definitions, no daemon, no root, the same bytes every time
#[derive(Debug, Parser)]
#[command(name = "imgbuild", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Examples:
  imgbuild build                              all images for this machine's platform, into dist/
  imgbuild build rag --platform amd64,arm64   one image for two platforms
  imgbuild lock --update openssl              lock a newer openssl, everything else stays
  imgbuild --catalogue ../team/images build   another team's catalogue

Exit status: 0 done, 1 the work failed, 2 the request made no sense.")]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

// What a command takes is put together for the one that is asked for.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Build images from Debian packages, Python wheels and files
    Build(build::Args),
    /// Build what is stale and push it to registries
    Push(push::Args),
    /// Build what is stale and load it into Docker, podman or containerd
    Load(load::LoadArgs),
    /// Copy an image between registries, layouts, archives and Docker
    Copy(load::CopyArgs),
    /// Put another base below an image's own layers, without a build
    Rebase(Box<rebase::Args>),
    /// Keep everything that images.lock names in a registry
    Mirror(mirror::Args),
    /// Resolve what the definitions ask for and write images.lock
    Lock(lock::Args),
    /// List the images of the catalogue
    List(list::Args),
    /// Show the layers that images would have, or the whole plan
    Plan(plan::Args),
    /// Show layers, sizes, configuration and packages of an image, wherever it is
    Inspect(inspect::Args),
    /// Show what differs between two images
    Diff(diff::Args),
    /// Show the packages of an image as a tree
    Tree(tree::TreeArgs),
    /// Show why a package is in the images
    Why(tree::WhyArgs),
    /// Show which layers a build would find in the cache, and why not
    Explain(explain::Args),
    /// Open a stage for debugging
    Shell(shell::Args),
    /// Show, check and tidy the cache
    Cache(cache::Args),
    /// Log in to a registry
    Login(login::LoginArgs),
    /// Forget the credential of a registry
    Logout(login::LogoutArgs),
    /// Look into credentials
    Auth(login::AuthArgs),
    /// Check, pin, draw and save the deployments around the images
    Deploy(deploy::Args),
    /// Check and explain the settings of the deployments
    Env(env::Args),
    /// Print shell completions
    Completions(completions::Args),
    /// Print the manual page, or write one a command
    Man(man::Args),
}

impl Command {
    fn run(self, invocation: &Invocation) -> Result<(), Stop> {
        match self {
            Command::Build(args) => build::run(invocation, args),
            Command::Push(args) => push::run(invocation, args),
            Command::Load(args) => load::load(invocation, args),
            Command::Copy(args) => load::run_copy(invocation, args),
            Command::Rebase(args) => rebase::run(invocation, *args),
            Command::Mirror(args) => mirror::run(invocation, args),
            Command::Login(args) => login::login(invocation, args),
            Command::Logout(args) => login::logout(invocation, args),
            Command::Auth(args) => login::auth(invocation, args),
            Command::Lock(args) => lock::run(invocation, args),
            Command::List(args) => list::run(invocation, args),
            Command::Plan(args) => plan::run(invocation, args),
            Command::Inspect(args) => inspect::run(invocation, args),
            Command::Diff(args) => diff::run(invocation, args),
            Command::Tree(args) => tree::tree(invocation, args),
            Command::Why(args) => tree::why(invocation, args),
            Command::Explain(args) => explain::run(invocation, args),
            Command::Shell(args) => shell::run(invocation, args),
            Command::Cache(args) => cache::run(invocation, args),
            Command::Deploy(args) => deploy::run(invocation, args),
            Command::Env(args) => env::run(invocation, args),
            Command::Completions(args) => completions::run(args),
            Command::Man(args) => man::run(args),
        }
    }
}

/// The command line as clap sees it: completions and manual pages are made from it.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Writes a result.
pub(crate) fn print(text: &str) -> Result<(), Stop> {
    match io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Stop::Closed),
        Err(error) => Err(Failure::work(format!("stdout cannot be written: {error}")).into()),
    }
}

/// Writes JSON as a result, pretty, with a final newline.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Stop> {
    print(&format!("{value:#}\n"))
}

fn show(failure: &Failure) {
    use anstream::AutoStream;
    let text = crate::hide::hidden(&failure.to_string());
    let text = text.strip_prefix("error:").map_or_else(
        || text.clone(),
        |rest| format!("\x1b[1;31merror:\x1b[0m{}", rest.replace("\nhint:", "\n\x1b[1;36mhint:\x1b[0m")),
    );
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(AutoStream::auto(io::stderr()), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_help_of_a_command_says_all_that_is_known_of_it() {
        let told = |words: &[&str]| command().try_get_matches_from(words).expect_err("is help").to_string();
        for words in [["imgbuild", "build", "--help"], ["imgbuild", "help", "build"]] {
            let help = told(&words);
            assert!(help.contains("Prints a line an image on stdout") && help.contains("--platform"), "{help}");
            assert!(help.contains("--cache-dir"), "{help}");
        }
        // The list has a line a command, the one that its own help and its manual page begin with.
        let mut built = command();
        built.build();
        let about = |it: &clap::Command| (it.get_name().to_owned(), it.get_about().map(ToString::to_string));
        let listed: Vec<_> = command().get_subcommands().map(about).collect();
        assert_eq!(built.get_subcommands().map(about).filter(|(name, _)| name != "help").collect::<Vec<_>>(), listed);
        assert!(!told(&["imgbuild", "--help"]).contains("Prints a line an image on stdout"));
    }
}
