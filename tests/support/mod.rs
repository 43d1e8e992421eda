//! What black-box tests stand on: imgbuild with a home of its own, real servers, readers of results.
//!
//! * [`run`]: the program in a sandbox, other tools, and what came out.
//! * [`shared`]: what is made once and kept in `target/`: a trixie root, downloads.
//! * [`server`]: processes that end with the test, whatever happens; a file server that can be told to fail.
//! * [`cache`]: what lies in a cache.
//! * [`docker`]: a Docker engine of the tests' own.
//! * [`registry`]: a registry in this process that keeps objects of S3 buckets as well, with scripted faults and a log of every request.
//! * [`elsewhere`]: a project on another machine, as another user.
//! * [`fuse`]: a file system that fails as it is told to.
//! * [`layout`]: OCI layouts read without our own code, and the rules that every layer keeps.
//! * [`listing`]: trees of files as text, one a line.
//! * [`obelisk`]: this repository's images, built once for all tests.
//! * [`pages`]: the blocks of commands in the pages about deployments.
//! * [`processes`]: what runs, and waiting for it.
//! * [`random`]: numbers that a failing run can be repeated with (`IMGBUILD_SEED`).
//! * [`tiny`]: small catalogues, without the network or with a mirror of their own.
//! * [`debs`]: packages made by dpkg-deb, and signed repositories of them.
//! * [`wheels`]: wheels, an index of them, and their lock.

#![allow(dead_code, reason = "a helper may wait for its second caller")]

pub mod cache;
pub mod debs;
pub mod docker;
pub mod elsewhere;
pub mod fuse;
pub mod layout;
pub mod listing;
pub mod obelisk;
pub mod pages;
pub mod processes;
pub mod random;
pub mod registry;
pub mod run;
pub mod server;
pub mod shared;
pub mod tiny;
pub mod wheels;
