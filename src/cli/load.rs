//! `imgbuild load` and `imgbuild copy`.

use clap::ValueEnum;
use layers::Platform;

use super::common::{self, CacheArgs, CommandArgs, Invocation};
use super::{Stop, print};
use crate::ops::build::Request;
use crate::ops::load::{copy, load_images};
use crate::places::{Into, Place, Reach};
use crate::registry::TagRequest;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// Docker, by its API
    Docker,
    /// Podman
    Podman,
    /// containerd, by ctr
    Containerd,
}

/// Build what is stale and load it into Docker, podman or containerd
///
/// Prints a line an image on stdout: its name in the engine and the digest of its configuration. Which way was taken,
/// and why, is said on stderr. What the engine has is not sent.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild load                        every image as <image>:latest into Docker
  imgbuild load rag --tag dev          as rag:dev
  imgbuild load --into podman")]
pub(crate) struct LoadArgs {
    /// Images to load [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// The tag, or a full name, in which {image} stands for the image's
    #[arg(long, short = 't', value_name = "TAG|NAME", default_value = "latest")]
    tag: TagRequest,
    /// The engine
    #[arg(long, value_name = "ENGINE", default_value = "docker")]
    into: Engine,
    /// The platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Fail rather than record or lock anything anew (also with CI=true)
    #[arg(long)]
    locked: bool,
    #[command(flatten)]
    caches: CacheArgs,
    #[command(flatten)]
    commands: CommandArgs,
}

/// Copy an image between registries, layouts, archives and Docker
///
/// Places: HOST/PATH:TAG, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], docker-daemon:NAME. Prints the
/// image's digest. Within a registry nothing is downloaded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild copy ghcr.io/acme/rag:v1 ghcr.io/acme/rag:stable
  imgbuild copy docker-daemon:rag:dev oci:dist:rag
  imgbuild copy oci:dist:rag localhost:5000/rag:v1")]
pub(crate) struct CopyArgs {
    /// From where
    #[arg(value_name = "FROM")]
    from: Place,
    /// To where
    #[arg(value_name = "TO")]
    to: Place,
    /// Only this platform [default: all]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
}

pub(crate) fn load(invocation: &Invocation, args: LoadArgs) -> Result<(), Stop> {
    let request = Request {
        images: args.images,
        platforms: common::platforms(args.platform.as_slice())?,
        labels: common::labels(&[])?,
        created: common::source_date_epoch()?,
        locked: common::locked(args.locked),
    };
    let into = match args.into {
        Engine::Docker => Into::Docker,
        Engine::Podman => Into::Podman,
        Engine::Containerd => Into::Containerd,
    };
    let setup = invocation.setup_with(&args.caches, &args.commands)?;
    let registries = invocation.registries(&setup.config, &[], None)?;
    let docker = common::docker(&setup.config);
    let bench = setup.bench();
    let reach = Reach { registries: &registries, docker: &docker, store: bench.store, observer: bench.observer };
    let loaded = load_images(&bench, &reach, &request, &args.tag, into)?;
    setup.close();
    print(&loaded.iter().map(|it| format!("{} {}\n", it.name, it.id)).collect::<String>())
}

pub(crate) fn run_copy(invocation: &Invocation, args: CopyArgs) -> Result<(), Stop> {
    let tools = invocation.tools()?;
    let registries = invocation.registries(&tools.config, &args.insecure, None)?;
    let docker = common::docker(&tools.config);
    let digest = copy(&tools.reach(&registries, &docker), &args.from, &args.to, args.platform)?;
    tools.kept.close();
    print(&format!("{digest}\n"))
}
