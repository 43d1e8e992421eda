//! `imgbuild lock`.

use std::collections::BTreeSet;

use super::common::Invocation;
use super::{Stop, print};
use crate::error::Failure;
use crate::ops::lock::{Refresh, Request, changes, check, lock};
use crate::ops::project::write_whole;

/// Resolve what the definitions ask for and write images.lock
///
/// What still suits the definitions keeps its version. Prints a line a changed package on stdout.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild lock                       after a definition has changed
  imgbuild lock --update              the newest version of everything
  imgbuild lock --update libssl3t64   of one package
  imgbuild lock --update --dry-run    only tell what is newer
  imgbuild lock --check               in CI: the lock suits the definitions, else exit status 1")]
pub(crate) struct Args {
    /// Takes the newest versions: of these packages, or of everything
    #[arg(long, value_name = "PACKAGE", num_args = 0..)]
    update: Option<Vec<String>>,
    /// Checks without the network that the lock answers the definitions; exit status 1 where it does not
    #[arg(long, conflicts_with_all = ["update", "regroup", "dry_run"])]
    check: bool,
    /// Divides packages into layers anew, which moves them between layers
    #[arg(long)]
    regroup: bool,
    /// Tells what would change and writes nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let setup = invocation.setup()?;
    let bench = setup.bench();
    let path = &bench.project.lock_path;
    if args.check {
        check(&bench, &bench.project.lock()?)?;
        setup.close();
        return Ok(());
    }
    let old = bench.project.read_lock()?.unwrap_or_default();
    let refresh = match args.update {
        None => Refresh::Nothing,
        Some(names) if names.is_empty() => Refresh::All,
        Some(names) => {
            let known: BTreeSet<&str> = old.debian.values().flatten().map(|package| package.name.as_str()).collect();
            for name in &names {
                if !known.contains(name.as_str()) {
                    let failure = Failure::usage(format!("the lock has no package `{name}`"));
                    return Err(match crate::names::nearest(name, known.iter().copied()) {
                        Some(near) => failure.hint(format!("did you mean `{near}`?")),
                        None => failure.hint("`imgbuild tree` shows what it has"),
                    }
                    .into());
                }
            }
            Refresh::Only(names.into_iter().collect())
        }
    };
    let new = lock(&bench, &Request { refresh, regroup: args.regroup })?;
    let lines: String = changes(&old, &new).iter().map(|change| format!("{change}\n")).collect();
    if !args.dry_run {
        let text = new.to_text();
        // An unchanged file keeps its times.
        if std::fs::read_to_string(path).ok().as_deref() != Some(text.as_str()) {
            write_whole(path, &text)?;
        }
    }
    setup.close();
    print(&lines)
}
