//! `imgbuild plan`.

use std::fmt::Write as _;

use cache::Store;
use clap::ValueEnum;
use layers::op::Op;
use layers::source::Effect;
use layers::{Input, Network, Plan, Platform, Run, Source, StageId, StageStep};

use super::common::{self, Invocation};
use super::{Stop, print};
use crate::engine::run;
use crate::engine::sdists::{self, Way};
use crate::error::Failure;
use crate::ops::Bench;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The layers of each image
    Text,
    /// The plan that an engine runs
    Json,
    /// The graph of stages for Graphviz
    Dot,
}

/// Show the layers that images would have, or the whole plan
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
        let resolved = bench.lowered(image.stage, &lock, platform).map_err(Failure::from)?;
        let _ = writeln!(out, "{name} {platform}: {} layers", resolved.layers.len());
        if let Some(base) = &resolved.base {
            let _ = writeln!(out, "  from {}", base.label());
        }
        for layer in &resolved.layers {
            for (number, part) in layer.parts.iter().enumerate() {
                let at = part.at.as_ref().map(|at| format!("  ({at})")).unwrap_or_default();
                let _ = writeln!(out, "  {}{}{at}", if number == 0 { "" } else { "+ " }, part.label);
            }
            for op in layer.ops() {
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
                    Op::Take(take) => commands(&mut out, &bench, take.stage, run::platform_of(take, platform), "    ")?,
                    Op::Build(build) => {
                        let way = sdists::way(build, platform);
                        let how = if let Way::Cross { .. } = way { ", by a cross compiler" } else { "" };
                        let step = sdists::step_of(build, platform);
                        let price = price(bench.store, way.builders_platform(platform), &step.run)?;
                        let _ = writeln!(out, "    build of {}{how}{price}", build.sdist.name);
                    }
                    _ => {}
                }
            }
        }
    }
    setup.close();
    Ok(out)
}

/// The commands that a stage runs, and those of the stages that they take their inputs from.
fn commands(
    out: &mut String,
    bench: &Bench<'_>,
    stage: StageId,
    platform: Platform,
    indent: &str,
) -> Result<(), Failure> {
    let plan = &bench.project.plan;
    for (_, planned) in plan.steps(stage) {
        if let StageStep::Run { run, .. } = &planned.step {
            let at = planned.at.as_ref().map(|at| format!("  ({at})")).unwrap_or_default();
            let open = match run.network {
                Network::None => "",
                Network::Open => ", network open: not reproducible",
            };
            let price = price(bench.store, platform, &Run { inputs: Vec::new(), ..run.clone() })?;
            let _ = writeln!(out, "{indent}{}{open}{price}{at}", run.label());
        }
        for taken in planned.step.taken() {
            commands(out, bench, taken, platform_of_taken(&planned.step, taken, platform), &format!("{indent}  "))?;
        }
    }
    Ok(())
}

/// The platform that a stage is made for when another one, for `platform`, takes from it.
fn platform_of_taken(step: &StageStep, taken: StageId, platform: Platform) -> Platform {
    let portable = match step {
        StageStep::Layer { source: Source::Take(take), .. } => take.portable,
        // A builder.
        StageStep::Layer { .. } => true,
        StageStep::Run { run, .. } => {
            run.inputs.iter().any(|input| matches!(input, Input::Take(take) if take.stage == taken && take.portable))
        }
        _ => false,
    };
    if portable { Platform::native().unwrap_or(platform) } else { platform }
}

/// What a command of a stage for `platform` costs: that it is emulated, and how long it took here the last time.
fn price(store: &Store, platform: Platform, run: &Run<StageId>) -> Result<String, Failure> {
    let emulated = if run.emulated && run::is_foreign(platform) { ", emulated" } else { "" };
    let took = store.find(&run::took_key(platform, run).0)?;
    let took = took.and_then(|record| serde_json::from_slice::<f64>(&record).ok());
    Ok(format!("{emulated}{}", took.map(|seconds| format!(", {seconds:.1} s last time")).unwrap_or_default()))
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
