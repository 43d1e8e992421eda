//! Black-box tests.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod apt_oracle;
mod archive_trust;
mod archives_real;
mod archives_zip_real;
mod cache;
mod command_line;
mod commands;
mod config_real;
mod conformance;
mod crates;
mod deploy;
mod deploy_names_real;
mod deploy_real;
mod determinism_real;
mod docker_current_real;
mod fetch;
mod fleet;
mod foundation;
mod hostile_archives;
mod image_scripts;
mod images_real;
mod init;
mod inspect_diff;
mod load_real;
mod mirror;
mod odd_images_real;
mod packages_real;
mod places;
mod push_cli;
mod python;
mod python_hostile;
mod python_index;
mod python_poetry;
mod python_pylock;
mod python_real;
mod python_requirements;
mod python_uv;
mod rag_real;
mod rebase;
mod registry;
mod registry_auth;
mod registry_bases;
mod registry_proxy;
mod registry_pull;
mod registry_push;
mod registry_real;
mod registry_referrers;
mod registry_trips;
mod remote;
mod remote_real;
mod robustness;
mod sandbox;
mod sdists_real;
mod server;
mod support_real;
mod tree_real;
mod venv_real;
mod wheels;

#[path = "../support/mod.rs"]
mod support;
