//! Commands of build stages.

use layers::source::TakeFrom;
use layers::{Platform, StageId};

/// Part of every key of what a command made: raised whenever the same command would find another world.
pub const VERSION: u32 = 1;

/// The platform that a stage is made for when something is taken from it for an image of `platform`.
pub fn platform_of(take: &TakeFrom<StageId>, platform: Platform) -> Platform {
    if take.portable { native().unwrap_or(platform) } else { platform }
}

/// The platform whose programs this machine runs.
pub fn native() -> Option<Platform> {
    Platform::ALL.into_iter().find(|platform| platform.machine() == std::env::consts::ARCH)
}
