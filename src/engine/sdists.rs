//! Wheels from sdists (PEP 517): the backend runs as a command in the stage that the definition chose, and the wheel that
//! it leaves is an archive like any other from then on.
//!
//! Nothing is resolved and nothing fetched: the builder stage holds the interpreter, the backend and what the sdist asks for
//! at build time, all of it locked. Code that is not compiled is built once, for all platforms, on the one that builds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use cache::Blob;
use layers::lower::Resolved;
use layers::op::{Archive, Build, Conversion, LayerPlan, Op, Origin, Placed, Step};
use layers::source::{Foreign, Inline, Owner, TakeFrom};
use layers::{Digest, ImagePath, Platform, Run, StageId, path};

use super::EngineError;
use super::early::keep_first;
use super::local::{Local, Subject, located};
use super::run::{Ran, is_foreign, of_words};
use super::tree::Tree as _;
use super::view::View;
use crate::parallel::{in_parallel, lock, unlocked};
use crate::python::normalised;
use crate::python::tags::Candidate;

/// Part of every key of what is built from source: raised whenever the front end calls backends otherwise.
pub const VERSION: u32 = 2;

/// What calls the backend, inside.
const FRONT_END: &str = include_str!("sdists.py");

/// How a wheel comes about on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In a builder of the machine's own platform, for that one or, without compiled parts, for all.
    Here,
    /// In a builder of the image's platform, which is another one.
    Emulated,
    /// In a builder of the machine's own platform, for another one.
    Cross {
        /// What it is compiled for and linked to.
        target: StageId,
    },
}

impl Way {
    /// The platform of the builder, of an image for `platform`.
    pub fn builders_platform(self, platform: Platform) -> Platform {
        match self {
            Way::Emulated => platform,
            Way::Here | Way::Cross { .. } => Platform::native().unwrap_or(platform),
        }
    }
}

/// How a wheel for `platform` comes about.
pub fn way(build: &Build, platform: Platform) -> Way {
    match &build.foreign {
        _ if !is_foreign(platform) => Way::Here,
        None => Way::Here,
        Some(Foreign::Emulated) => Way::Emulated,
        Some(Foreign::Cross { target }) => Way::Cross { target: *target },
    }
}

impl Local<'_> {
    /// Turns [`Op::Build`] into [`Op::Unpack`] of the wheel that it gives.
    pub(super) fn build_sdists(&self, subject: Subject<'_>, resolved: &Resolved) -> Result<Resolved, EngineError> {
        let mut settled = resolved.clone();
        let wanted: Vec<(&LayerPlan, &Build)> = resolved
            .layers
            .iter()
            .flat_map(|layer| layer.ops().map(move |op| (layer, op)))
            .filter_map(|(layer, op)| if let Op::Build(build) = op { Some((layer, build)) } else { None })
            .collect();
        // By all that decides: one image may build a sdist in two ways.
        let wheels: Mutex<BTreeMap<String, Archive>> = Mutex::default();
        let failed: Mutex<Option<EngineError>> = Mutex::default();
        let done = in_parallel(self.jobs, &wanted, |(layer, build)| {
            let layer = layer.with(format!("run build of {}", build.sdist.name), Op::Build((*build).clone()));
            match self.build_sdist(subject, &layer, build) {
                Ok(wheel) => {
                    lock(&wheels).insert(build.to_json(), wheel);
                    Ok(())
                }
                Err(error) => {
                    let mut failed = lock(&failed);
                    keep_first(&mut failed, located(error, &layer));
                    Err(())
                }
            }
        });
        if let (Err(()), Some(error)) = (done, unlocked(failed)) {
            return Err(error);
        }
        let wheels = unlocked(wheels);
        for op in settled.layers.iter_mut().flat_map(LayerPlan::ops_mut) {
            if let Op::Build(build) = op {
                let archive = wheels.get(&build.to_json()).expect("each was built").clone();
                *op = Op::Unpack { archive, conversion: build.conversion.clone() };
            }
        }
        Ok(settled)
    }

    fn build_sdist(&self, subject: Subject<'_>, layer: &LayerPlan, build: &Build) -> Result<Archive, EngineError> {
        let wrong = |why: String| EngineError::Sdist { why };
        let way = way(build, subject.platform);
        let subject_here = Subject { platform: way.builders_platform(subject.platform), ..subject };
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        let builder = self.other_stage(subject_here, build.builder, &mut view)?;
        let step = step_of(build, subject.platform);
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
        let name = Candidate::parse(&file)
            .filter(|name| name.name == normalised(&build.distribution))
            .ok_or_else(|| wrong(format!("gave `{file}`, which is no wheel of {}", build.distribution)))?;
        match way {
            _ if name.fits_anywhere() => {}
            Way::Here if subject_here.platform != subject.platform => {
                return Err(wrong(format!(
                    "gave `{file}`, which is for {} alone: it has compiled parts, so say how they are made for {}, `sdist(\"{}\").cross(&target)` or `.emulated()`",
                    subject_here.platform, subject.platform, build.distribution
                )));
            }
            Way::Cross { .. } if !name.is_made_for(subject.platform) => {
                let platform = subject.platform;
                return Err(wrong(format!(
                    "gave `{file}`, which is not for {platform}: it does not heed a cross compiler"
                )));
            }
            Way::Here | Way::Emulated | Way::Cross { .. } => {}
        }
        let bytes = made.read(wheel)?;
        let blob = match &self.looks {
            Some(_) => Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 },
            None => {
                // One that is there already may have rotted, and nobody else has it.
                self.store.verify(&Digest::of(&bytes))?;
                self.store.put(&bytes)?
            }
        };
        self.runs.built(blob.digest, ran.into_iter().collect());
        Ok(Archive { name: file, digest: blob.digest, size: Some(blob.size), origin: Origin::Built })
    }
}

/// The command that builds.
pub fn step_of(build: &Build, platform: Platform) -> Step {
    let sdist = path!("/sdist").join(&build.sdist.name).unwrap_or_else(|_| path!("/sdist/sdist.tar.gz"));
    let front_end = path!("/front-end.py");
    let python = format!("python{}", build.python);
    let variables = [
        ("PATH", "/opt/build/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        // The order of sets must not reach a wheel.
        ("PYTHONHASHSEED", "0"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ];
    let mut run = of_words(&[&python, "-P", front_end.as_str(), sdist.as_str(), "/out"], &variables);
    run.workdir = Some(path!("/build"));
    let script = Inline { text: FRONT_END.into(), path: front_end.clone(), mode: 0o644, owner: Owner::default() };
    let conversion = Conversion::File { to: sdist.clone(), mode: 0o644, owner: Owner::default() };
    let placed = |path: ImagePath, op: Op| Placed { path, op, platform: None };
    let mut inputs = vec![
        placed(front_end, Op::Inline(script)),
        placed(sdist, Op::Unpack { archive: build.sdist.clone(), conversion }),
    ];
    match way(build, platform) {
        Way::Here => {}
        Way::Emulated => run.emulated = true,
        Way::Cross { target } => cross(&mut run, &mut inputs, build, target, platform),
    }
    run.env.extend(build.env.clone());
    Step { run, inputs }
}

/// Where the description of the target's Python lies for a cross build.
const DESCRIPTION: &str = "/target-python";

/// The loader of a platform: where the linker script of its libc names it, and its file name.
fn loader(platform: Platform) -> (&'static str, &'static str) {
    match platform {
        Platform::Amd64 => ("/lib64", "ld-linux-x86-64.so.2"),
        // `/lib` is a link to it.
        Platform::Arm64 => ("/usr/lib", "ld-linux-aarch64.so.1"),
    }
}

/// Makes the builder's Python tell backends of the target, as Debian's own cross builds do: its `sysconfig` reads the description
/// of the target's interpreter, which names the cross compilers, the flags and the suffix of extension modules. Headers and
/// libraries go where these compilers look for them.
fn cross(run: &mut Run<StageId>, inputs: &mut Vec<Placed>, build: &Build, target: StageId, platform: Platform) {
    let triplet = platform.multiarch();
    let description = format!("_sysconfigdata__linux_{triplet}");
    let variables = [
        ("_PYTHON_HOST_PLATFORM", format!("linux-{}", platform.machine())),
        ("_PYTHON_SYSCONFIGDATA_NAME", description.clone()),
        ("PYTHONPATH", DESCRIPTION.to_owned()),
    ];
    run.env.extend(variables.map(|(name, value)| (name.to_owned(), value)));
    let module = format!("{description}.py");
    let (folder, loader) = loader(platform);
    let taken = [
        (format!("/usr/lib/{triplet}/{loader}"), format!("{folder}/{loader}")),
        (format!("/usr/lib/python{}/{module}", build.python), format!("{DESCRIPTION}/{module}")),
        (format!("/usr/include/{triplet}"), format!("/usr/include/{triplet}")),
        (format!("/usr/lib/{triplet}"), format!("/usr/lib/{triplet}")),
    ];
    inputs.extend(taken.map(|(path, to)| {
        let [path, to] = [path, to].map(|path| ImagePath::new(path).expect("made of plain names"));
        let op = Op::Take(TakeFrom { stage: target, path, to: to.clone(), owner: None, portable: false });
        Placed { path: to, op, platform: Some(platform) }
    }));
}
