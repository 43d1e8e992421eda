//! Debian: repositories, closures, and packages without their maintainer scripts.

pub mod elf;
