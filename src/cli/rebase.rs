//! `imgbuild rebase`.

use layers::Platform;

use super::common::{self, Invocation};
use super::{Stop, print};
use crate::ops::rebase::{Rebase, rebase};
use crate::places::Place;

/// Put another base below an image's own layers, without a build
///
/// Layers stay as they are, byte for byte.
///
/// Refused where a build on the new base would make other layers: where one was made by reading the base (packages with
/// configuration, users, byte-code), or by something that is not imgbuild, or where directories and links that a layer shows
/// differ in the new base. docs/push.md has the whole criterion. Prints the digest, which is that of a build on the new base.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild rebase ghcr.io/acme/rag:v1 --onto docker.io/library/debian:trixie-slim --to ghcr.io/acme/rag:v1-rebased
  imgbuild rebase ghcr.io/acme/rag:v1 --onto ghcr.io/acme/base:v2 --dry-run     whether it is possible, and its digest
  imgbuild rebase oci:dist:app --from oci:bases:old --onto oci:bases:new")]
pub(crate) struct Args {
    /// The image: HOST/PATH:TAG, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME]
    #[arg(value_name = "IMAGE")]
    image: Place,
    /// The new base
    #[arg(long, value_name = "BASE")]
    onto: Place,
    /// The base that it stands on [default: the one that its labels name]
    #[arg(long, value_name = "BASE")]
    from: Option<Place>,
    /// Where the result goes [default: IMAGE]
    #[arg(long, value_name = "PLACE")]
    to: Option<Place>,
    /// Only this platform [default: all]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Say whether it is possible and print the digest, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let request = Rebase { image: args.image, onto: args.onto, from: args.from, platform: args.platform };
    let to = args.to.unwrap_or_else(|| request.image.clone());
    let digest = common::with_places(invocation, &args.insecure, false, |_, reach| {
        let rebased = rebase(reach, &request)?;
        let digest = rebased.top().digest;
        if !args.dry_run {
            reach.write(rebased, &to)?;
        }
        Ok(digest)
    })?;
    print(&format!("{digest}\n"))
}
