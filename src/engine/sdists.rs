//! Wheels from sdists (PEP 517): the backend runs as a command in the stage that the definition chose, and the wheel that
//! it leaves is an archive like any other from then on.
//!
//! Nothing is resolved and nothing fetched: the builder stage holds the interpreter, the backend and what the sdist asks for
//! at build time, all of it locked. Code that is not compiled is built once, for all platforms, on the one that builds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use layers::lower::Resolved;
use layers::op::{Archive, Build, Conversion, LayerPlan, Op, Origin, Placed, Step};
use layers::source::{Inline, Owner};
use layers::{Digest, ImagePath, Platform, Run, StageId, command, path};

use super::EngineError;
use super::local::{Local, Subject, located};
use super::run::Ran;
use super::tree::Tree as _;
use super::view::View;
use crate::parallel::in_parallel;
use crate::python::normalised;
use crate::python::tags::WheelName;

/// Part of every key of what is built from source: raised whenever the front end calls backends otherwise.
pub const VERSION: u32 = 1;

/// What calls the backend, inside.
const FRONT_END: &str = include_str!("sdists.py");

impl Local<'_> {
    /// Turns [`Op::Build`] into [`Op::Unpack`] of the wheel that it gives.
    pub(super) fn build_sdists(&self, subject: Subject<'_>, resolved: &Resolved) -> Result<Resolved, EngineError> {
        let mut settled = resolved.clone();
        let wanted: Vec<(&LayerPlan, &Build)> = resolved
            .layers
            .iter()
            .flat_map(|layer| layer.ops.iter().map(move |op| (layer, op)))
            .filter_map(|(layer, op)| if let Op::Build(build) = op { Some((layer, build)) } else { None })
            .collect();
        let wheels: Mutex<BTreeMap<Digest, Archive>> = Mutex::default();
        in_parallel(self.jobs, &wanted, |(layer, build)| {
            let layer = LayerPlan { label: format!("run build of {}", build.sdist.name), ..(*layer).clone() };
            let wheel = self.build_sdist(subject, &layer, build).map_err(|error| located(error, &layer))?;
            wheels.lock().expect("no thread panics while it holds this").insert(build.sdist.digest, wheel);
            Ok::<(), EngineError>(())
        })?;
        let wheels = wheels.into_inner().expect("no thread panics while it holds this");
        for op in settled.layers.iter_mut().flat_map(|layer| &mut layer.ops) {
            if let Op::Build(build) = op {
                let archive = wheels.get(&build.sdist.digest).expect("each was built").clone();
                *op = Op::Unpack { archive, conversion: build.conversion.clone() };
            }
        }
        Ok(settled)
    }

    fn build_sdist(&self, subject: Subject<'_>, layer: &LayerPlan, build: &Build) -> Result<Archive, EngineError> {
        let wrong = |why: String| EngineError::Sdist { why };
        let machine = Platform::native().unwrap_or(subject.platform);
        let subject_here = Subject { platform: machine, ..subject };
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        let builder = self.other_stage(subject_here, build.builder, &mut view)?;
        let step = step_of(build);
        let (outcome, last) = self.run(subject_here, layer, &step, &view, &builder)?;
        let ran: BTreeSet<Ran> = builder.jobs.into_iter().flat_map(|job| job.ran).chain(last).collect();
        let mut made = View::new(&open);
        made.apply_base(&outcome);
        let found: Vec<&ImagePath> = made
            .below(&path!("/out"))
            .filter(|entry| entry.path.as_str().ends_with(".whl"))
            .map(|entry| &entry.path)
            .collect();
        let [wheel] = found.as_slice() else {
            return Err(wrong(format!("left {} wheels, not one", found.len())));
        };
        let file = wheel.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        let name = WheelName::parse(&file)
            .filter(|name| name.name == normalised(&build.distribution))
            .ok_or_else(|| wrong(format!("gave `{file}`, which is no wheel of {}", build.distribution)))?;
        if !name.fits_anywhere() && machine != subject.platform {
            return Err(wrong(format!(
                "gave `{file}`, which is for {machine} alone: it has compiled parts, so build for {} on such a machine",
                subject.platform
            )));
        }
        let blob = self.store.put(&made.read(wheel)?)?;
        self.runs.built(blob.digest, ran.into_iter().collect());
        Ok(Archive { name: file, digest: blob.digest, size: Some(blob.size), origin: Origin::Built })
    }
}

/// The command that builds.
fn step_of(build: &Build) -> Step {
    let sdist = path!("/sdist").join(&build.sdist.name).unwrap_or_else(|_| path!("/sdist/sdist.tar.gz"));
    let front_end = path!("/front-end.py");
    let python = format!("python{}", build.python);
    let mut run: Run<StageId> = command([python.as_str(), "-P", front_end.as_str(), sdist.as_str(), "/out"])
        .workdir(path!("/build"))
        .map_stage(|_| Err(()))
        .unwrap_or_else(|()| unreachable!("it takes nothing from a stage"));
    run.env = [
        ("PATH", "/opt/build/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        // The order of sets must not reach a wheel.
        ("PYTHONHASHSEED", "0"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    run.env.extend(build.env.clone());
    let script = Inline { text: FRONT_END.into(), path: front_end.clone(), mode: 0o644, owner: Owner::default() };
    let conversion = Conversion::File { to: sdist.clone(), mode: 0o644, owner: Owner::default() };
    let inputs = vec![
        Placed { path: front_end, op: Op::Inline(script) },
        Placed { path: sdist, op: Op::Unpack { archive: build.sdist.clone(), conversion } },
    ];
    Step { run, inputs }
}
