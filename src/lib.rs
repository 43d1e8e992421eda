//! imgbuild: container images as Rust code. This library is the engine and the command line; definitions are made of
//! [`layers`].

pub mod debian;
pub mod fetch;
pub mod observe;
pub mod python;
