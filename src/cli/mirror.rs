//! `imgbuild mirror`.

use clap::Subcommand;

use super::common::Invocation;
use super::{Stop, print};
use crate::error::Failure;
use crate::ops::mirror::{Mirrored, check, pull, push};
use crate::registry::Reference;
use crate::report::size;

/// Keep everything that images.lock names in a registry
///
/// That is packages, wheels and fetched files, each as the blob of its SHA-256.
///
/// A build falls back to the registries of `mirror.registries` (imgbuild.toml) when the package mirrors fail, so an old commit
/// builds the same images when they have moved on. Prints where the inputs of this lock are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild mirror push ghcr.io/acme/inputs     sends what is missing; what is missing here is downloaded
  imgbuild mirror check ghcr.io/acme/inputs    whether everything is there and kept
  imgbuild mirror pull ghcr.io/acme/inputs && imgbuild --offline build")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Send what the registry lacks, and write the manifests that keep it there
    Push(Place),
    /// Bring everything into the cache
    Pull(Place),
    /// Fail where something is missing, or could be collected as garbage
    Check(Place),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The repository, as in ghcr.io/acme/inputs; with push a tag may follow, which then names the latest inputs
    #[arg(value_name = "REF")]
    reference: Reference,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let (Action::Push(place) | Action::Pull(place) | Action::Check(place)) = &args.action;
    if !matches!(args.action, Action::Push(_)) && (place.reference.tag.is_some() || place.reference.digest.is_some()) {
        let text = format!("`{}` names a tag or digest: what is looked for follows from images.lock", place.reference);
        return Err(Failure::usage(text).hint("name the repository alone").into());
    }
    let setup = invocation.setup()?;
    let repository = &place.reference.repository;
    let registries = invocation.registries(&setup.config, &place.insecure, Some(&repository.to_string()))?;
    let bench = setup.bench();
    let done: Mirrored = match &args.action {
        Action::Push(place) => push(&bench, &registries, &place.reference)?,
        Action::Pull(_) => pull(&bench, &registries, repository)?,
        Action::Check(_) => check(&bench, &registries, repository)?,
    };
    setup.close();
    let brought = match &args.action {
        Action::Check(_) => String::new(),
        _ => format!(", {} brought", done.brought),
    };
    print(&format!("{} {} archives, {}{brought}\n", done.reference, done.archives, size(done.bytes)))
}
