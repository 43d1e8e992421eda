//! Debian: repositories, closures, and packages without their maintainer scripts.

pub mod elf;
pub mod scripts;
mod shell;
