//! `shell`: a stage as a folder, to look around in and to try a command by hand.

use std::path::{Path, PathBuf};

use layers::{PlannedStage, Platform, StageId, StageStep};

use super::Bench;
use super::supply::Mirrors;
use super::wheels::{self, New};
use crate::engine::EngineError;
use crate::engine::local::Subject;
use crate::error::Failure;

/// A stage on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its root. It may be changed: nothing else looks at it.
    pub root: PathBuf,
    /// The command that comes next in the definition, as a person would type it.
    pub next: Option<String>,
    /// The environment that commands have there.
    pub env: Vec<(String, String)>,
    /// Where the next command starts.
    pub workdir: PathBuf,
}

/// Lays a stage out in the new folder `to`. A stage is named by an image, or by the place of one of its lines in a definition
/// (`core.rs:12`); of a command that is what it finds, its inputs included.
pub fn open(bench: &Bench<'_>, name: &str, platform: Platform, to: &Path) -> Result<Opened, Failure> {
    let mut lock = bench.project.lock()?;
    let stage = find(bench, name)?;
    wheels::adopt_context(bench, &mut lock, &[stage], &[platform], New::Refused)?;
    let supply = Mirrors::new(bench);
    let engine = super::build::engine(bench, &supply);
    let subject = Subject { plan: &bench.project.plan, lock: &lock, platform };
    let planned = &bench.project.plan.stages[stage.0];
    let (env, workdir) = engine.lay_out(subject, stage, to).map_err(|error: EngineError| {
        let at = planned.at.clone();
        Failure::from(error).located(at)
    })?;
    let next = match &planned.step {
        StageStep::Run { run, .. } => Some(run.argv.join(" ")),
        _ => None,
    };
    Ok(Opened { root: to.to_owned(), next, env, workdir })
}

/// The stage of a name.
fn find(bench: &Bench<'_>, name: &str) -> Result<StageId, Failure> {
    let plan = &bench.project.plan;
    if let Some((file, line)) = name.rsplit_once(':')
        && let Ok(line) = line.parse::<u32>()
    {
        let is_there = |stage: &PlannedStage| {
            stage.at.as_ref().is_some_and(|at| at.line == line && Path::new(&at.file).ends_with(file))
        };
        // A chain of calls may share a line: its last one is the most.
        return plan.stages.iter().rposition(is_there).map(StageId).ok_or_else(|| {
            Failure::usage(format!("no stage was written at `{name}`"))
                .hint("`imgbuild plan` shows where stages are written")
        });
    }
    Ok(bench.project.images(&[name.to_owned()])?[0].1.stage)
}
