//! `imgbuild completions`.

use clap_complete::Shell;

use super::{Stop, command, print};

/// Print shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  imgbuild completions bash > ~/.local/share/bash-completion/completions/imgbuild")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: Args) -> Result<(), Stop> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "imgbuild", &mut text);
    print(&String::from_utf8_lossy(&text))
}
