//! What the layers of a stage would come to, found out without making anything: the walk of a build over what the store has.
//!
//! ```text
//! an archive that was converted    ─▶ as in a build          another archive    ─▶ nothing is known from there on
//! a step that was made             ─▶ as in a build          another step       ─▶ its paths stand for it, without bytes
//! ```
//!
//! So a layer is known by its key where a build would know it, also above a copy that changed. Nothing is fetched, run or written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use layers::lower::Resolved;
use layers::oci::Descriptor;
use layers::op::{Archive, Conversion, LayerPlan, Op};
use layers::source::Modules;
use layers::{Digest, Key, Platform};

use super::EngineError;
use super::convert::Drops;
use super::foundation::Cut;
use super::index::Fragment;
use super::layer::{Parts, parts_of};
use super::local::{Given, LayerJob, LayerRecord, Local, Subject, Supply, Walked};
use super::made::Made;
use super::view::View;
use crate::parallel::lock;

/// What a layer would come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The store has it.
    Found(LayerRecord),
    /// It would be made of these.
    Missing(Parts),
    /// Some of these would be made first, and may come to what was there before.
    Open(Parts),
}

/// What stands for fragments that would have to be made.
#[derive(Default)]
pub(super) struct StandIns(Mutex<BTreeSet<Digest>>);

/// Supplies nothing.
struct Nobody;

impl Supply for Nobody {
    fn supply(&self, _archive: &Archive) -> Result<PathBuf, EngineError> {
        Err(EngineError::Unmade)
    }

    // Whoever opens it finds out whether it is there.
    fn base(&self, _image: &str, _manifest: &Digest, _platform: Platform) -> Result<(), EngineError> {
        Ok(())
    }

    fn base_layers(&self, _image: &str, _layers: &[&Descriptor]) -> Result<(), EngineError> {
        Err(EngineError::Unmade)
    }
}

impl<'a> Local<'a> {
    /// An engine that makes nothing and only [looks](Local::look), whoever supplies archives otherwise.
    pub fn that_looks(given: Given<'a>) -> Local<'a> {
        let mut engine = Local::new(Given { supply: &Nobody, ..given });
        engine.looks = Some(StandIns::default());
        engine
    }
}

impl Local<'_> {
    /// What the layers of a stage would come to, bottom first, as far up as that can be known.
    pub fn look(&self, subject: Subject<'_>, resolved: &Resolved, cut: Option<&Cut>) -> Result<Vec<Seen>, EngineError> {
        let mut walked = Walked::default();
        // Whatever is wrong, a build says it.
        match cut.and_then(|cut| self.walk_on_foundation(subject, resolved, cut).ok().flatten()) {
            Some(known) => walked = known,
            None => drop(self.look_from_below(subject, resolved, &mut walked)),
        }
        walked.jobs.iter().map(|job| self.seen(job)).collect()
    }

    /// Fails at the first layer of which nothing can be known.
    fn look_from_below(
        &self,
        subject: Subject<'_>,
        resolved: &Resolved,
        walked: &mut Walked,
    ) -> Result<(), EngineError> {
        let settled = self.settle(subject, resolved);
        let resolved = settled.as_ref().unwrap_or(resolved);
        let open = |digest: &Digest| self.open(digest);
        let mut view = View::new(&open);
        self.stand_on_base(subject, resolved, &mut view, walked)?;
        let (packages, wheels) = (self.package_conflicts(resolved), self.wheel_collisions(resolved));
        // Who leaves what to whom follows from all archives of a kind.
        let is_known = |op: &Op| match op {
            Op::Build(_) => false,
            Op::Unpack { conversion, .. } => match conversion {
                Conversion::Deb { .. } => packages.is_ok(),
                Conversion::Wheel { bytecode, .. } => {
                    let is_settled = |modules: &Modules| !matches!(modules, Modules::ImportedBy(_));
                    wheels.is_ok() && bytecode.as_ref().is_none_or(|bytecode| is_settled(&bytecode.modules))
                }
                _ => true,
            },
            _ => true,
        };
        let drops: BTreeMap<Digest, Drops> =
            [&packages, &wheels].into_iter().flatten().flat_map(|drops| drops.clone()).collect();
        for run in resolved.layers.chunk_by(|one, next| one.stage == next.stage) {
            if !run.iter().flat_map(LayerPlan::ops).all(is_known) {
                return Err(EngineError::Unmade);
            }
            let together = self.together(run, &drops)?;
            for layer in run {
                self.lay(subject, layer, &together, &mut view, walked)?;
            }
        }
        Ok(())
    }

    fn seen(&self, job: &LayerJob) -> Result<Seen, EngineError> {
        let is_stand_in = |digest: &Digest| self.looks.as_ref().is_some_and(|them| lock(&them.0).contains(digest));
        if job.fragments.iter().any(|fragment| is_stand_in(&fragment.blob)) {
            return Ok(Seen::Open(parts_of(&job.text)));
        }
        let found = match &job.made {
            Some(record) => Some(record.clone()),
            None => self.find_layer(&job.key)?,
        };
        Ok(found.map_or_else(|| Seen::Missing(parts_of(&job.text)), Seen::Found))
    }

    /// What stands for an archive that leaves paths to others, where it is known as it is.
    pub(super) fn without(
        &self,
        archive: &Archive,
        conversion: &Conversion,
        drops: &Drops,
        stand_ins: &StandIns,
    ) -> Result<Arc<Fragment>, EngineError> {
        let is_deb = match conversion {
            // A directory that holds nothing else may be left out with what it held.
            Conversion::Deb { exclude } if exclude.is_empty() => true,
            Conversion::Wheel { .. } => false,
            _ => return Err(EngineError::Unmade),
        };
        let whole = self.key_of(archive, conversion, &Drops::new());
        let whole = if drops.is_empty() { None } else { self.find_fragment(&whole)? };
        let mut fragment = whole.as_deref().cloned().ok_or(EngineError::Unmade)?;
        fragment.entries.retain(|indexed| !drops.contains(&indexed.entry.path));
        fragment.dirs.retain(|dir| !is_deb || !drops.contains(&dir.path));
        // They go by positions.
        fragment.elf = Vec::new().into();
        fragment.blob = self.key_of(archive, conversion, drops).0;
        Ok(stand_ins.keep(fragment))
    }

    /// Refuses what makes something where nothing is to be made.
    pub(super) fn may_make(&self) -> Result<(), EngineError> {
        self.looks.as_ref().map_or(Ok(()), |_| Err(EngineError::Unmade))
    }
}

impl StandIns {
    /// What stands for a fragment that this key names.
    pub(super) fn stand_in(&self, key: &Key, made: Made<'_>) -> Result<Arc<Fragment>, EngineError> {
        Ok(self.keep(made.unwritten(key)?))
    }

    fn keep(&self, fragment: Fragment) -> Arc<Fragment> {
        lock(&self.0).insert(fragment.blob);
        Arc::new(fragment)
    }
}
