//! The few facts of an ELF file that decide whether it will start.

use serde::{Deserialize, Serialize};

/// What the dynamic loader needs to know of a file (System V ABI, chapter 5). Recorded once, when its archive is converted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElfFacts {
    /// `e_machine`: 62 is x86-64, 183 is AArch64.
    pub machine: u16,
    /// 32 or 64.
    pub bits: u8,
    /// The path of the loader (`PT_INTERP`).
    pub interpreter: Option<String>,
    /// `DT_SONAME`.
    pub soname: Option<String>,
    /// `DT_NEEDED`, in order.
    pub needed: Vec<String>,
    /// `DT_RPATH`, split at colons; empty where `DT_RUNPATH` is present.
    pub rpath: Vec<String>,
    /// `DT_RUNPATH`, split at colons.
    pub runpath: Vec<String>,
}
