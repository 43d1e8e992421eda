//! `imgbuild diff`.

use std::fmt::Write as _;

use layers::Platform;
use serde_json::{Value, json};

use super::build::Format;
use super::common::{self, Invocation};
use super::{Stop, print, print_json};
use crate::error::Failure;
use crate::ops::Bench;
use crate::ops::build::Request;
use crate::ops::diff::{Change, Difference, PackageDifference, diff, new_bytes};
use crate::ops::inspect::{Named, read};
use crate::places::Reach;
use crate::report::size;

/// Show what differs between two images
///
/// That is configuration, layers, files, Debian packages, Python distributions.
///
/// An image is a name of the catalogue (built first where it is stale), HOST/PATH:TAG, oci:DIR[:NAME], oci-archive:FILE[:NAME],
/// docker-archive:FILE[:NAME] or docker-daemon:NAME. Layers that both images have are not downloaded; a file is then said to be
/// `written` where an equal layer that was not read may have had another one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild diff rag ghcr.io/acme/rag:v1          what a push would change
  imgbuild diff ghcr.io/acme/rag:v1 ghcr.io/acme/rag:v2 --format json
  imgbuild diff oci:dist:core docker-daemon:core:latest --exit-code")]
pub(crate) struct Args {
    /// The first image
    #[arg(value_name = "A")]
    a: Named,
    /// The second image
    #[arg(value_name = "B")]
    b: Named,
    /// The platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Read equal layers too, so that every file's fate is known exactly
    #[arg(long)]
    all_layers: bool,
    /// End with status 1 where files, packages or configuration differ
    #[arg(long)]
    exit_code: bool,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
    /// Fail rather than record or lock anything anew (also with CI=true)
    #[arg(long)]
    locked: bool,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let request = Request {
        images: Vec::new(),
        platforms: common::platforms(args.platform.as_slice())?,
        labels: common::labels(&[])?,
        created: common::source_date_epoch()?,
        locked: common::locked(args.locked),
    };
    let work = |bench: Option<&Bench<'_>>, reach: &Reach<'_>| -> Result<Difference, Stop> {
        let a = read(bench, reach, &args.a, &request)?;
        let b = read(bench, reach, &args.b, &request)?;
        Ok(diff(reach, (&args.a, a), (&args.b, b), request.platforms[0], args.all_layers)?)
    };
    let catalogue = [&args.a, &args.b].iter().any(|it| matches!(it, Named::Catalogue(_)));
    let difference = common::with_places(invocation, &args.insecure, catalogue, work)?;
    match args.format {
        Format::Json => print_json(&document(&difference))?,
        Format::Text => print(&crate::report::clean(&text(&difference)))?,
    }
    match args.exit_code && !difference.is_empty() {
        true => Err(Failure::work(format!("`{}` and `{}` differ", args.a, args.b)).into()),
        false => Ok(()),
    }
}

fn document(difference: &Difference) -> Value {
    let mut document = json!(difference);
    document["version"] = json!(1);
    document
}

fn text(difference: &Difference) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "a {} {}", difference.a.place, difference.a.digest);
    let _ = writeln!(out, "b {} {}", difference.b.place, difference.b.digest);
    if difference.equal {
        out.push_str("equal, byte for byte\n");
        return out;
    }
    for field in &difference.config {
        let _ = writeln!(out, "config {}: {} -> {}", field.path, field.a, field.b);
    }
    let equal = difference.layers.iter().filter(|it| it.within == "both").count();
    let _ = writeln!(out, "layers: {equal} equal, {} only in b", size(new_bytes(difference)));
    for it in difference.layers.iter().filter(|it| it.within != "both") {
        let sign = if it.within == "a" { '-' } else { '+' };
        let _ = writeln!(out, "{sign} {}", it.layer.line());
    }
    list(&mut out, "package", &difference.packages);
    list(&mut out, "distribution", &difference.distributions);
    for file in &difference.files {
        let word = match file.change {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
            Change::WrittenInA => "written in a",
            Change::WrittenInB => "written in b",
            Change::DeletedInA => "deleted in a",
            Change::DeletedInB => "deleted in b",
        };
        let line = |item: &Option<crate::places::contents::Item>| item.as_ref().map(|it| it.line());
        let _ = match (line(&file.a), line(&file.b)) {
            (Some(a), Some(b)) => writeln!(out, "{word} {}: {a} => {b}", file.path),
            (Some(one), None) | (None, Some(one)) => writeln!(out, "{word} {}: {one}", file.path),
            (None, None) => writeln!(out, "{word} {}", file.path),
        };
    }
    if !difference.unread.is_empty() {
        let _ = writeln!(
            out,
            "{} equal layers were not read: what is `written` may be new or replace a file of theirs (--all-layers tells)",
            difference.unread.len()
        );
    }
    out
}

fn list(out: &mut String, what: &str, packages: &[PackageDifference]) {
    for it in packages {
        let name = match it.architecture.is_empty() {
            true => it.name.clone(),
            false => format!("{}:{}", it.name, it.architecture),
        };
        let _ = match (&it.a, &it.b) {
            (Some(a), Some(b)) => writeln!(out, "{what} {name}: {a} -> {b}"),
            (Some(a), None) => writeln!(out, "{what} {name}: {a} removed"),
            (None, b) => writeln!(out, "{what} {name}: {} added", b.as_deref().unwrap_or_default()),
        };
    }
}
