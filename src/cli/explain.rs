//! `imgbuild explain`.

use std::fmt::Write as _;

use layers::Platform;
use serde_json::json;

use super::build::Format;
use super::common::{self, Invocation};
use super::{Stop, print, print_json};
use crate::ops::explain::{Explained, explain};

/// Show which layers a build would find in the cache, and why not
///
/// Each is compared with the last build. Nothing is built, and nothing is fetched but what the index says of wheels that no lock names yet. Layers are looked up as a
/// build does, also those that an earlier build left. What only the build can know is a miss that `may be made anew`. Which files an
/// archive or a base brings is known once a build has unpacked it: before that, a layer that has one of them, too, is called a hit and
/// made anew.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Images [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Platforms, separated by commas [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let setup = invocation.setup()?;
    let explained = explain(&setup.bench(), &args.images, &common::platforms(&args.platform)?)?;
    setup.close();
    match args.format {
        Format::Json => print_json(&json!({ "version": 1, "images": explained })),
        Format::Text => print(&explained.iter().map(text).collect::<String>()),
    }
}

fn text(explained: &Explained) -> String {
    let word = |hit: bool| if hit { "hit" } else { "miss" };
    let mut out = format!("{} {}: {}\n", explained.image, explained.platform, word(explained.hit));
    for reason in &explained.reasons {
        let _ = writeln!(out, "  {reason}");
    }
    for layer in &explained.layers {
        let _ = write!(out, "  {:<4}  {}", word(layer.hit), layer.label);
        if !layer.reasons.is_empty() {
            let _ = write!(out, ": {}", layer.reasons.join("; "));
        }
        out.push('\n');
    }
    out
}
