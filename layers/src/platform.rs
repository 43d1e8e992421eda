//! What an image runs on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A platform that images are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Platform {
    /// `linux/amd64`
    Amd64,
    /// `linux/arm64`; written without a variant in config and index alike.
    Arm64,
}

/// A platform that is not one of [`Platform::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform `{0}` is not supported: use linux/amd64 or linux/arm64")]
pub struct UnknownPlatform(String);

impl Platform {
    /// All platforms, in the order in which an index lists them.
    pub const ALL: [Platform; 2] = [Platform::Amd64, Platform::Arm64];

    /// The platform whose programs this machine runs; `None` on another kind of machine.
    pub fn native() -> Option<Platform> {
        Platform::ALL.into_iter().find(|platform| platform.machine() == std::env::consts::ARCH)
    }

    /// The architecture as OCI (and Go) and Debian name it; for these platforms the two agree.
    pub const fn architecture(self) -> &'static str {
        match self {
            Platform::Amd64 => "amd64",
            Platform::Arm64 => "arm64",
        }
    }

    /// The machine as `uname -m`, Python's markers and wheel tags name it.
    pub const fn machine(self) -> &'static str {
        match self {
            Platform::Amd64 => "x86_64",
            Platform::Arm64 => "aarch64",
        }
    }

    /// The Debian multiarch directory below `/usr/lib`.
    pub const fn multiarch(self) -> &'static str {
        match self {
            Platform::Amd64 => "x86_64-linux-gnu",
            Platform::Arm64 => "aarch64-linux-gnu",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture())
    }
}

impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(text: &str) -> Result<Platform, UnknownPlatform> {
        match text {
            "linux/amd64" | "amd64" | "linux/x86_64" => Ok(Platform::Amd64),
            "linux/arm64" | "arm64" | "linux/arm64/v8" | "linux/aarch64" => Ok(Platform::Arm64),
            other => Err(UnknownPlatform(other.chars().take(60).collect())),
        }
    }
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Platform, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
