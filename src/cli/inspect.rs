//! `imgbuild inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use layers::Platform;
use serde_json::{Value, json};

use super::build::{Format, metadata};
use super::common::{self, Invocation};
use super::{Stop, print, print_json};
use crate::ops::build::{Built, Request, build};
use crate::ops::inspect::{Member, Named, Portrait, inspect, read};
use crate::places::contents::Package;
use crate::report::size;

/// Show layers, sizes, configuration and packages of an image, wherever it is
///
/// The image is a name of the catalogue (what is not built yet is built into the cache first), HOST/PATH:TAG, oci:DIR[:NAME],
/// oci-archive:FILE[:NAME], docker-archive:FILE[:NAME] or docker-daemon:NAME. Of an image in a registry only documents are read,
/// no layer, unless --packages asks for what is in them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild inspect rag                         an image of the catalogue
  imgbuild inspect ghcr.io/acme/rag:v1         one in a registry, for all its platforms
  imgbuild inspect oci:dist:core --packages --format json")]
pub(crate) struct Args {
    /// The image
    #[arg(value_name = "IMAGE|PLACE")]
    image: Named,
    /// Platforms, separated by commas [default: this machine's; all of an image that is elsewhere]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Read the layers of an image that is elsewhere, and list Debian packages and Python distributions
    #[arg(long)]
    packages: bool,
    /// A registry that may be spoken to without TLS or with any certificate
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Fail rather than record or lock anything anew (also with CI=true)
    #[arg(long)]
    locked: bool,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let image = match args.image {
        Named::Catalogue(name) => name,
        elsewhere => return run_elsewhere(invocation, Args { image: elsewhere, ..args }),
    };
    let request = Request {
        images: vec![image],
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

fn run_elsewhere(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    let request = Request {
        images: Vec::new(),
        platforms: common::platforms(&args.platform)?,
        labels: BTreeMap::new(),
        created: None,
        locked: true,
    };
    let portrait = common::with_places(invocation, &args.insecure, false, |bench, reach| {
        let held = read(bench, reach, &args.image, &request)?;
        Ok(inspect(reach, &args.image, &held, &args.platform, args.packages)?)
    })?;
    match args.format {
        Format::Json => print_json(&document(&portrait)),
        Format::Text => print(&portrait_text(&portrait)),
    }
}

/// An image that is somewhere, as documented in docs/json.md.
fn document(portrait: &Portrait) -> Value {
    let mut document = json!(portrait);
    document["version"] = json!(1);
    document
}

/// What others wrote, on one line and without what could steer a terminal.
fn tame(text: &str) -> String {
    crate::report::clean(text).replace('\n', "\u{fffd}")
}

fn portrait_text(portrait: &Portrait) -> String {
    let mut out = format!("{} {}\n", portrait.place, portrait.digest);
    let _ = writeln!(out, "{}, {} bytes", tame(&portrait.media_type), portrait.size);
    if let Some(kind) = &portrait.artifact_type {
        let _ = writeln!(out, "artifact {}", tame(kind));
    }
    for (name, value) in &portrait.annotations {
        let _ = writeln!(out, "annotation {}={}", tame(name), tame(value));
    }
    portrait.platforms.iter().for_each(|member| member_text(&mut out, member));
    out
}

fn member_text(out: &mut String, member: &Member) {
    let _ = writeln!(
        out,
        "{}: {} in {} layers, {}",
        member.platform,
        size(member.size),
        member.layers.len(),
        member.digest
    );
    if let Some(created) = &member.created {
        let _ = writeln!(out, "  created {}", tame(created));
    }
    for (name, value) in member.run.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        let _ = match value {
            Value::Object(map) => {
                map.iter().try_for_each(|(key, value)| writeln!(out, "  {name} {}: {value}", tame(key)))
            }
            Value::Array(list) if name == "Env" => {
                list.iter().filter_map(Value::as_str).try_for_each(|line| writeln!(out, "  Env {}", tame(line)))
            }
            other => writeln!(out, "  {name}: {other}"),
        };
    }
    for layer in &member.layers {
        let _ = writeln!(out, "  {}", tame(&layer.line()));
    }
    let mut list = |what: &str, packages: &Option<Vec<Package>>| {
        let Some(packages) = packages.as_ref().filter(|it| !it.is_empty()) else { return };
        let _ = writeln!(out, "  {} {what}:", packages.len());
        for it in packages {
            let _ = writeln!(out, "    {} {}", tame(&it.name), tame(&it.version));
        }
    };
    list("packages", &member.packages);
    list("distributions", &member.distributions);
}

fn text(built: &Built) -> String {
    let mut out = format!("{} {}\n", built.image.name, built.image.top().digest);
    for platform in &built.platforms {
        let base: u64 = platform.base_layers.iter().map(|layer| layer.size).sum();
        let own: u64 = platform.layers.iter().map(|layer| layer.size).sum();
        let count = platform.base_layers.len() + platform.layers.len();
        let _ = writeln!(out, "{}: {} in {count} layers", platform.platform, size(base + own));
        for layers::oci::Descriptor { digest, size: bytes, .. } in &platform.base_layers {
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
