//! What commands do: no terminal, no environment, no flags in sight.

pub mod bases;
pub mod build;
pub mod cache;
pub mod deploy;
pub mod diff;
mod exchange;
pub mod explain;
pub mod inspect;
pub mod key;
mod latest;
pub mod load;
pub mod lock;
pub mod mirror;
pub mod project;
pub mod push;
pub mod rebase;
pub mod remote;
pub mod shell;
pub mod supply;
pub mod verify;
pub mod wheels;

use std::sync::Arc;

use ::cache::Store;
use layers::encode::Compression;
use layers::lock::Lock;
use layers::lower::{LowerError, Resolved, lower};
use layers::{Platform, StageId};

use crate::config::Config;
use crate::engine::run::Commands;
use crate::fetch::Http;
use crate::observe::Observer;
use crate::pin::Context;
use crate::registry::Registries;
use crate::remote::Sources;
use project::Project;

/// Everything that work is done with.
pub struct Bench<'a> {
    /// What is defined, and where its lock and context are.
    pub project: &'a Project,
    /// Hosts and settings.
    pub config: &'a Config,
    /// The network.
    pub http: &'a Http,
    /// Registries that bases come from.
    pub registries: &'a Registries,
    /// The cache.
    pub store: &'a Store,
    /// The build context.
    pub context: &'a Context,
    /// Who hears of progress.
    pub observer: &'a dyn Observer,
    /// Threads.
    pub jobs: usize,
    /// Seconds since 1970.
    pub now: i64,
    /// How layers are compressed.
    pub compression: Compression,
    /// Caches elsewhere that are read from.
    pub elsewhere: &'a Arc<Sources>,
    /// How commands of stages are run.
    pub commands: &'a Commands,
    /// Caches elsewhere that are written to.
    pub targets: Option<&'a remote::Targets>,
}

impl Bench<'_> {
    /// A stage of the project as `lock` says, for one platform.
    pub fn lowered(&self, stage: StageId, lock: &Lock, platform: Platform) -> Result<Resolved, LowerError> {
        lower(&self.project.plan, stage, lock, platform, &|python| self.context.lock_digest(python))
    }
}
