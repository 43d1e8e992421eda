//! `imgbuild push`.

use std::path::PathBuf;

use clap::ValueHint;
use layers::Platform;
use serde_json::{Value, json};

use super::build::{Format, metadata};
use super::common::{self, CacheArgs, CommandArgs, Invocation};
use super::{Stop, print, print_json};
use crate::ops::build::Request;
use crate::ops::project::write_whole;
use crate::ops::push::{PushRequest, PushedImage, plan_push, push};
use crate::registry::{Act, Planned, Registries, TagRequest};
use crate::report::size;

/// Build what is stale and push it to registries
///
/// Prints a line a tag on stdout: the reference with the image's digest. What a registry has is not sent; a tag is
/// written when everything that it leads to is there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild push --registry ghcr.io/acme --tag v1       every image to ghcr.io/acme/<image>:v1
  imgbuild push rag --tag ghcr.io/acme/retrieval:v1    one image to a place of its own
  imgbuild push --tag 'ghcr.io/acme/{image}:v1' --tag 'ghcr.io/acme/{image}:latest' --platform amd64,arm64
  imgbuild push --tag v1 --dry-run                     what would be sent")]
pub(crate) struct Args {
    /// Images to push [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// A tag, which goes to <registry>/<image>:<tag>, or a full reference; may be given several times
    #[arg(long, short = 't', value_name = "TAG|REFERENCE", required = true)]
    tag: Vec<TagRequest>,
    /// The registry and path that bare tags go to [default: IMGBUILD_REGISTRY or `registry` in imgbuild.toml]
    #[arg(long, value_name = "HOST/PREFIX")]
    registry: Option<String>,
    /// Platforms, separated by commas [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Writes what was built and pushed as JSON
    #[arg(long, conflicts_with = "dry_run", value_name = "FILE", value_hint = ValueHint::FilePath)]
    metadata_file: Option<PathBuf>,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
    /// Adds an annotation to manifests and indexes
    #[arg(long, value_name = "NAME=VALUE")]
    annotation: Vec<String>,
    /// Adds a label, which never changes a layer
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
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
    let build = Request {
        images: args.images,
        platforms: common::platforms(&args.platform)?,
        labels: common::labels(&args.label)?,
        created: common::source_date_epoch()?,
        locked: common::locked(args.locked),
    };
    let annotations = common::annotations(&args.annotation)?;
    common::check_writable(args.metadata_file.as_deref())?;
    let setup = invocation.setup_with(&args.caches, &args.commands)?;
    let bare = args.tag.iter().any(|tag| matches!(tag, TagRequest::Tag(_)));
    let prefix = match bare {
        true => Some(setup.config.registry(args.registry.as_deref())?),
        false => args.registry.clone(),
    };
    let registries = invocation.registries(&setup.config, &args.insecure, prefix.as_deref())?;
    let request = PushRequest { build, tags: args.tag, prefix, annotations };
    let bench = setup.bench();
    if args.dry_run {
        let planned = plan_push(&bench, &registries, &request)?;
        setup.close();
        return match args.format {
            Format::Text => print(&planned.iter().map(line).collect::<String>()),
            Format::Json => {
                print_json(&json!({"version": 1, "planned": planned.iter().map(entry).collect::<Vec<_>>()}))
            }
        };
    }
    let pushed = push(&bench, &registries, &request);
    // What was built goes to caches elsewhere though the push fails: the next attempt need not build it.
    setup.close();
    let pushed = pushed?;
    let document = || pushed_json(&pushed, &registries);
    let printed = match args.format {
        Format::Text => {
            let references = pushed.iter().flat_map(|it| &it.pushed).flat_map(|it| &it.references);
            print(
                &references
                    .map(|reference| format!("{}@{}\n", tagless(reference), digest(reference)))
                    .collect::<String>(),
            )
        }
        Format::Json => print_json(&document()),
    };
    // What was pushed is said even where the file cannot be written.
    if let Some(path) = &args.metadata_file {
        write_whole(path, &format!("{:#}\n", document()))?;
    }
    printed
}

/// `host/name:tag`, without the digest.
fn tagless(reference: &crate::registry::Reference) -> String {
    crate::registry::Reference { digest: None, ..reference.clone() }.to_string()
}

fn digest(reference: &crate::registry::Reference) -> String {
    reference.digest.map(|digest| digest.to_string()).unwrap_or_default()
}

/// What was pushed, as documented in docs/json.md.
fn pushed_json(pushed: &[PushedImage], registries: &Registries) -> Value {
    use std::sync::atomic::Ordering;
    let built: Vec<_> = pushed.iter().map(|it| it.built.clone()).collect();
    let mut document = metadata(&built);
    for (image, it) in document["images"].as_array_mut().into_iter().flatten().zip(pushed) {
        let references = it.pushed.iter().flat_map(|it| &it.references).map(ToString::to_string);
        image["references"] = json!(references.collect::<Vec<_>>());
        image["known"] = json!(it.pushed.iter().all(|it| it.known));
    }
    let counters = registries.client().counters();
    document["requests"] = json!(counters.requests.load(Ordering::Relaxed));
    document["sent"] = json!(counters.sent.load(Ordering::Relaxed));
    document
}

fn line(planned: &Planned) -> String {
    let act = match &planned.act {
        Act::Keep => "there".to_owned(),
        Act::Mount(from) => format!("mount from {from}"),
        Act::Send => "send".to_owned(),
    };
    format!("{:>9}  {}  {}  {act}\n", size(planned.size), planned.repository, planned.digest)
}

fn entry(planned: &Planned) -> Value {
    let (act, from) = match &planned.act {
        Act::Keep => ("keep", None),
        Act::Mount(from) => ("mount", Some(from)),
        Act::Send => ("send", None),
    };
    json!({
        "repository": planned.repository.to_string(),
        "digest": planned.digest.to_string(),
        "size": planned.size,
        "act": act,
        "from": from,
    })
}
