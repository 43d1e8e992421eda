//! `imgbuild inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use layers::Platform;

use super::build::{Format, metadata};
use super::common::{self, Invocation};
use super::{Stop, print, print_json};
use crate::ops::build::{Built, Request, build};
use crate::report::size;

/// Shows layers, sizes and packages of an image; what is not built yet is built into the cache first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Platforms, separated by commas [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Fail rather than record or lock anything anew (also with CI=true)
    #[arg(long)]
    locked: bool,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let request = Request {
        images: vec![args.image],
        platforms: common::platforms(&args.platform)?,
        labels: BTreeMap::new(),
        created: common::source_date_epoch()?,
        locked: common::locked(args.locked),
    };
    let setup = invocation.setup()?;
    let built = build(&setup.bench(), &request)?;
    setup.close();
    match args.format {
        Format::Json => print_json(&metadata(&built)),
        Format::Text => print(&built.iter().map(text).collect::<String>()),
    }
}

fn text(built: &Built) -> String {
    let mut out = format!("{} {}\n", built.image.name, built.image.top().digest);
    for platform in &built.platforms {
        let base: u64 = platform.base_layers.iter().map(|(_, size)| size).sum();
        let own: u64 = platform.layers.iter().map(|layer| layer.size).sum();
        let count = platform.base_layers.len() + platform.layers.len();
        let _ = writeln!(out, "{}: {} in {count} layers", platform.platform, size(base + own));
        for (digest, bytes) in &platform.base_layers {
            let _ = writeln!(out, "  {:>9}  {}  base", size(*bytes), short(digest));
        }
        for layer in &platform.layers {
            let _ = writeln!(out, "  {:>9}  {}  {}", size(layer.size), short(&layer.digest), layer.created_by);
        }
        if !platform.packages.is_empty() {
            let _ = writeln!(out, "  {} packages:", platform.packages.len());
            let mut packages = platform.packages.clone();
            packages.sort();
            for (name, version, _) in packages {
                let _ = writeln!(out, "    {name} {version}");
            }
        }
    }
    out
}

fn short(digest: &layers::Digest) -> String {
    digest.hex()[..12].to_owned()
}
