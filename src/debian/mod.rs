//! Debian: repositories, closures, and packages without their maintainer scripts.

pub mod archive;
pub mod effects;
pub mod elf;
pub mod follow;
pub mod gate;
pub mod keys;
pub mod ldcache;
pub mod openpgp;
pub mod packages;
pub mod relation;
pub mod release;
pub mod resolve;
pub mod scripts;
mod shell;
pub mod version;

pub use keys::keyring;

/// Whether one relation of a field, such as `foo (<< 2)`, holds for a package of that name with `version`.
pub fn relation_holds(relation: &str, version: &str) -> bool {
    relation::parse(relation).is_ok_and(|groups| groups.iter().flatten().any(|atom| atom.fits(version)))
}
