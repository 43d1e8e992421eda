//! Entries to bytes: the canonical tar, gzip members, fragments and layers.

mod entry;

pub use entry::{Entry, Kind};
