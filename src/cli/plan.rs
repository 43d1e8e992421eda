//! `imgbuild plan`.

use std::fmt::Write as _;

use clap::ValueEnum;
use layers::lower::lower;
use layers::op::Op;
use layers::source::{Effect, Python};
use layers::{Network, Plan, Platform, StageId, StageStep};

use super::common::{self, Invocation};
use super::{Stop, print};
use crate::error::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The layers of each image
    Text,
    /// The plan that an engine runs
    Json,
    /// The graph of stages for Graphviz
    Dot,
}

/// Shows the layers that images would have, or the whole plan.
///
/// `text` needs the lock and shows layers and what is decided about maintainer scripts; `json` is the plan that
/// `--catalogue PLAN.json` reads; `dot` draws the stages.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  imgbuild plan rag
  imgbuild plan --format json > plan.json && imgbuild --catalogue plan.json build
  imgbuild plan --format dot | dot -Tsvg > plan.svg")]
pub(crate) struct Args {
    /// Images to show [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// The platform [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// What is printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

pub(crate) fn run(invocation: &Invocation, args: Args) -> Result<(), Stop> {
    match args.format {
        Format::Json => print(&chosen(invocation, &args.images)?.to_json()),
        Format::Dot => print(&dot(&chosen(invocation, &args.images)?)),
        Format::Text => {
            let platform = common::platforms(args.platform.as_slice())?[0];
            let text = text(invocation, &args.images, platform)?;
            print(&text)
        }
    }
}

/// The plan, of some images alone where they are named.
fn chosen(invocation: &Invocation, names: &[String]) -> Result<Plan, Stop> {
    let config = invocation.config()?;
    let project = invocation.project(&config)?;
    let names: Vec<&str> = project.images(names)?.into_iter().map(|(name, _)| name).collect();
    Ok(project.plan.of_images(&names))
}

fn text(invocation: &Invocation, names: &[String], platform: Platform) -> Result<String, Stop> {
    let setup = invocation.setup()?;
    let bench = setup.bench();
    let lock = bench.project.lock()?;
    let mut out = String::new();
    for (name, image) in bench.project.images(names)? {
        let lock_file = |python: &Python<StageId>| bench.context.lock_digest(python);
        let resolved = lower(&bench.project.plan, image.stage, &lock, platform, &lock_file).map_err(Failure::from)?;
        let _ = writeln!(out, "{name} {platform}: {} layers", resolved.layers.len());
        if let Some(base) = &resolved.base {
            let _ = writeln!(out, "  from {}", base.label());
        }
        for layer in &resolved.layers {
            let at = layer.at.as_ref().map(|at| format!("  ({at})")).unwrap_or_default();
            let _ = writeln!(out, "  {}{at}", layer.label);
            for op in &layer.ops {
                match op {
                    Op::Configure(configure) => {
                        for (package, reason) in &configure.ignore_scripts {
                            let _ = writeln!(out, "    scripts of {package} ignored: {reason}");
                        }
                        for (package, effects) in &configure.effects {
                            let paths: Vec<String> = effects.iter().map(describe).collect();
                            let _ = writeln!(out, "    scripts of {package} replaced: {}", paths.join(", "));
                        }
                    }
                    Op::Take(take) => commands(&mut out, &bench.project.plan, take.stage, "    "),
                    _ => {}
                }
            }
        }
    }
    setup.close();
    Ok(out)
}

/// The commands that a stage runs, and those of the stages that they take their inputs from.
fn commands(out: &mut String, plan: &Plan, stage: StageId, indent: &str) {
    for (_, planned) in plan.steps(stage) {
        if let StageStep::Run { run, .. } = &planned.step {
            let at = planned.at.as_ref().map(|at| format!("  ({at})")).unwrap_or_default();
            let open = match run.network {
                Network::None => "",
                Network::Open => ", network open: not reproducible",
            };
            let _ = writeln!(out, "{indent}{}{open}{at}", run.label());
        }
        for taken in planned.step.taken() {
            commands(out, plan, taken, &format!("{indent}  "));
        }
    }
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Link { path, target } => format!("{path} -> {target}"),
        Effect::Dir { path, mode } => format!("{path}/ {mode:o}"),
        Effect::File { path, mode, .. } => format!("{path} {mode:o}"),
    }
}

fn dot(plan: &Plan) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let node = |id: &StageId| format!("s{}", id.0);
    let mut out = String::from("digraph plan {\n  rankdir=BT;\n  node [shape=box, fontname=\"sans-serif\"];\n");
    for (at, stage) in plan.stages.iter().enumerate() {
        let id = StageId(at);
        let style = if matches!(stage.step, StageStep::Run { .. }) { ", style=rounded" } else { "" };
        let _ = writeln!(out, "  {} [label={}{style}];", node(&id), quoted(&stage.step.label()));
        if let Some(below) = stage.step.below() {
            let _ = writeln!(out, "  {} -> {};", node(&below), node(&id));
        }
        for taken in stage.step.taken() {
            let _ = writeln!(out, "  {} -> {} [style=dashed, label=\"take\"];", node(&taken), node(&id));
        }
    }
    for (name, image) in &plan.images {
        let _ = writeln!(out, "  {} [shape=component, label={}];", quoted(&format!("image {name}")), quoted(name));
        let _ = writeln!(out, "  {} -> {};", node(&image.stage), quoted(&format!("image {name}")));
    }
    out.push_str("}\n");
    out
}
