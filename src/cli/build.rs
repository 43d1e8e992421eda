//! `imgbuild build`.

use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};
use layers::Platform;
use serde_json::{Value, json};

use super::common::{self, CacheArgs, CommandArgs, Invocation};
use super::{Stop, print, print_json};
use crate::error::Failure;
use crate::ops::build::{Built, Request, build, deliver};
use crate::ops::project::write_whole;
use crate::output::OutputSpec;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line a result
    Text,
    /// JSON
    Json,
}

/// Build images from Debian packages, Python wheels and files
///
/// Prints a line an image on stdout: its name and the digest of its manifest (one platform) or index (several).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild build                                   all images into the OCI layout dist/
  imgbuild build core --output docker-archive:core.tar && docker load -i core.tar
  imgbuild build --platform amd64,arm64 --locked   both platforms, in CI
  imgbuild build --context ../obelisk rag          another checkout of the same shape
  imgbuild build --secret token=env:TOKEN --sandbox namespaces
  imgbuild build --cache-from registry:ghcr.io/team/cache --cache-to dir:/mnt/cache")]
pub(crate) struct Args {
    /// Images to build [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Platforms, separated by commas [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Where images go: oci:DIR, oci-archive:FILE or docker-archive:FILE; may be given several times
    #[arg(long, short = 'o', value_name = "OUTPUT", default_value = "oci:dist", value_hint = ValueHint::AnyPath)]
    output: Vec<String>,
    /// Writes what was built as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    metadata_file: Option<PathBuf>,
    /// Adds a label, which never changes a layer
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Fail rather than record or lock anything anew (also with CI=true)
    #[arg(long)]
    locked: bool,
    #[command(flatten)]
    caches: CacheArgs,
    #[command(flatten)]
    commands: CommandArgs,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let request = Request {
        images: args.images,
        platforms: common::platforms(&args.platform)?,
        labels: common::labels(&args.label)?,
        created: common::source_date_epoch()?,
        locked: common::locked(args.locked),
    };
    // Outputs are looked at before the long work.
    common::check_writable(args.metadata_file.as_deref())?;
    let specs = args.output.iter().map(|text| text.parse::<OutputSpec>()).collect::<Result<Vec<_>, _>>();
    let specs = specs.map_err(|error| Failure::usage(error.to_string()))?;
    let outputs: Vec<_> = specs.iter().map(OutputSpec::open).collect();
    for output in &outputs {
        output.check(request.platforms.len())?;
    }
    let setup = invocation.setup_with(&args.caches, &args.commands)?;
    let bench = setup.bench();
    let mut built = build(&bench, &request)?;
    for output in &outputs {
        built = deliver(&bench, &request, built, output.as_ref())?;
    }
    if let Some(path) = &args.metadata_file {
        write_whole(path, &format!("{:#}\n", metadata(&built)))?;
    }
    setup.close();
    match args.format {
        Format::Text => {
            let lines = built.iter().map(|it| format!("{} {}\n", it.image.name, it.image.top().digest));
            print(&lines.collect::<String>())
        }
        Format::Json => print_json(&metadata(&built)),
    }
}

/// What was built, as documented in docs/json.md.
pub(crate) fn metadata(built: &[Built]) -> Value {
    let images: Vec<Value> = built
        .iter()
        .map(|it| {
            let platforms: Vec<Value> = it
                .platforms
                .iter()
                .zip(&it.image.platforms)
                .map(|(platform, documents)| {
                    let base: u64 = platform.base_layers.iter().map(|layer| layer.size).sum();
                    let own: u64 = platform.layers.iter().map(|layer| layer.size).sum();
                    json!({
                        "platform": platform.platform,
                        "digest": documents.manifest.digest,
                        "config": documents.config.digest,
                        "size": base + own,
                        "baseLayers": platform.base_layers.iter().map(|layer| json!({"digest": layer.digest, "size": layer.size})).collect::<Vec<_>>(),
                        "layers": platform.layers,
                        "commands": platform.commands,
                        "packages": platform.packages.iter().map(|(name, version, architecture)| {
                            json!({"name": name, "version": version, "architecture": architecture})
                        }).collect::<Vec<_>>(),
                    })
                })
                .collect();
            json!({
                "name": it.image.name,
                "digest": it.image.top().digest,
                "mediaType": it.image.top().media_type,
                "size": it.image.top().bytes.len(),
                "cached": it.cached,
                "platforms": platforms,
            })
        })
        .collect();
    json!({ "version": 1, "images": images })
}
