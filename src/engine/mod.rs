//! Engines: what turns steps into file entries.

pub mod tree;
