//! `imgbuild tree` and `imgbuild why`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use layers::Platform;
use layers::lock::{Lock, LockedClosure};

use super::common::{self, Invocation};
use super::{Stop, print};
use crate::error::Failure;
use crate::ops::project::Project;

/// Show the packages of an image as a tree
///
/// The locked ones, each below the package that asked for it first.
#[derive(Debug, clap::Args)]
pub(crate) struct TreeArgs {
    /// Images to show [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// The platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
}

/// Show why a package is in the images
///
/// That is the chain of packages from the definition to it.
#[derive(Debug, clap::Args)]
pub(crate) struct WhyArgs {
    /// The package
    #[arg(value_name = "PACKAGE")]
    package: String,
    /// The platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
}

pub(crate) fn tree(invocation: &Invocation, args: TreeArgs) -> Result<(), Stop> {
    let (project, lock) = locked(invocation)?;
    let platform = common::platforms(args.platform.as_slice())?[0];
    let names: BTreeSet<&str> = project.images(&args.images)?.into_iter().map(|(name, _)| name).collect();
    let used = |images: &[String]| images.iter().any(|image| names.contains(image.as_str()));
    // What only a stage has that something is taken from is not in the image.
    let own: BTreeSet<String> = project
        .images(&args.images)?
        .into_iter()
        .flat_map(|(_, image)| project.plan.steps(image.stage))
        .map(|(_, stage)| stage.step.label())
        .collect();
    let heading = |source: &str, images: &[String]| {
        let build = if own.contains(source) { "" } else { ", in a stage that it takes from" };
        format!("{source}  ({}{build})", images.join(", "))
    };
    let mut out = String::new();
    for source in lock.sources.iter().filter(|source| used(&source.images)) {
        let _ = writeln!(out, "{}", heading(&source.source, &source.images));
        let mut below: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
        let own: BTreeSet<&str> = members(source, platform).map(|(package, _)| package).collect();
        for (package, by) in members(source, platform) {
            // What a package of the stage below asked for stands at the top here.
            below.entry(by.filter(|by| own.contains(by))).or_default().push(package);
        }
        branches(&mut out, &lock, platform, &below, None, "");
    }
    for source in lock.python.iter().filter(|source| used(&source.images)) {
        let _ = writeln!(out, "{}", heading(&source.source, &source.images));
        let wheels = source.wheels.get(&platform).map(Vec::as_slice).unwrap_or_default();
        for (at, wheel) in wheels.iter().enumerate() {
            let arm = if at + 1 == wheels.len() { "└── " } else { "├── " };
            let _ = writeln!(out, "{arm}{} {}", wheel.name, wheel.version);
        }
    }
    print(&out)
}

fn members(source: &LockedClosure, platform: Platform) -> impl Iterator<Item = (&str, Option<&str>)> {
    source.packages.get(&platform).into_iter().flatten().map(|it| (it.package.as_str(), it.by.as_deref()))
}

fn branches(
    out: &mut String,
    lock: &Lock,
    platform: Platform,
    below: &BTreeMap<Option<&str>, Vec<&str>>,
    at: Option<&str>,
    indent: &str,
) {
    let children = below.get(&at).map(Vec::as_slice).unwrap_or_default();
    for (number, package) in children.iter().enumerate() {
        let last = number + 1 == children.len();
        let version = lock.package(platform, package).map(|it| it.version.as_str()).unwrap_or_default();
        let _ = writeln!(out, "{indent}{}{package} {version}", if last { "└── " } else { "├── " });
        // A lock made by hand may hold a circle.
        if indent.len() < 400 {
            let indent = format!("{indent}{}", if last { "    " } else { "│   " });
            branches(out, lock, platform, below, Some(package), &indent);
        }
    }
}

pub(crate) fn why(invocation: &Invocation, args: WhyArgs) -> Result<(), Stop> {
    let (_, lock) = locked(invocation)?;
    let platform = common::platforms(args.platform.as_slice())?[0];
    let wanted = args.package.as_str();
    let mut out = String::new();
    let mut asked: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for source in &lock.sources {
        asked.extend(members(source, platform));
    }
    for source in &lock.sources {
        if !members(source, platform).any(|(package, _)| package == wanted) {
            continue;
        }
        let mut chain = vec![wanted];
        while let Some(Some(by)) = asked.get(chain.last().copied().unwrap_or_default()) {
            if chain.contains(by) {
                break;
            }
            chain.push(by);
        }
        let versions: Vec<String> = chain
            .iter()
            .map(|name| match lock.package(platform, name) {
                Some(package) => format!("{name} {}", package.version),
                None => (*name).to_owned(),
            })
            .collect();
        let _ = writeln!(out, "{} <- {}  ({})", versions.join(" <- "), source.source, source.images.join(", "));
    }
    for source in &lock.python {
        let wheel = source.wheels.get(&platform).into_iter().flatten().find(|wheel| wheel.name == wanted);
        if let Some(wheel) = wheel {
            let _ =
                writeln!(out, "{} {} <- {}  ({})", wheel.name, wheel.version, source.source, source.images.join(", "));
        }
    }
    if out.is_empty() {
        let known = lock.debian.values().flatten().map(|package| package.name.as_str());
        let known: BTreeSet<&str> = known
            .chain(lock.python.iter().flat_map(|it| it.wheels.values().flatten()).map(|it| it.name.as_str()))
            .collect();
        let failure = Failure::work(format!("no image has `{wanted}` on {platform}"));
        return Err(match crate::names::nearest(wanted, known) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure,
        }
        .into());
    }
    print(&out)
}

fn locked(invocation: &Invocation) -> Result<(Project, Lock), Stop> {
    let config = invocation.config()?;
    let project = invocation.project(&config)?;
    let lock = project.lock()?;
    Ok((project, lock))
}
