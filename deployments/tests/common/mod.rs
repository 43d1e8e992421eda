//! The deployment files of this repository, opened.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use deployments::compose::{Project, Settings};
use deployments::env::Schema;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

pub fn entry(environment: &str) -> PathBuf {
    root().join(format!("docker/compose/{environment}.yaml"))
}

pub fn project(environment: &str) -> Project {
    Project::open(&entry(environment), &Settings::new()).unwrap()
}

pub fn schema() -> Schema {
    Schema::open(&root().join("docker/env/schema.toml")).unwrap()
}

/// Problems, a line each.
pub fn listed<T: ToString>(problems: &[T]) -> String {
    problems.iter().map(|problem| format!("{}\n", problem.to_string())).collect()
}
