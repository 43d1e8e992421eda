//! imgbuild: container images as Rust code. This library is the engine and the command line; definitions are made of
//! [`layers`].

pub mod cli;
pub mod config;
pub mod debian;
pub mod engine;
pub mod error;
#[doc(hidden)]
pub mod failpoint;
pub mod fetch;
mod hide;
pub mod names;
pub mod observe;
pub mod ops;
pub mod output;
pub mod parallel;
pub mod pin;
pub mod places;
pub mod python;
pub mod registry;
pub mod remote;
pub mod report;
pub mod sandbox;
