//! Parts of other stages.

use serde::{Deserialize, Serialize};

use super::Owner;
use crate::path::ImagePath;

/// A file or tree of another stage (`COPY --from`); `S` names the stage. Made by [`Stage::take`](crate::Stage::take).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeFrom<S> {
    /// The stage it is taken from.
    pub stage: S,
    /// Where it lies there.
    pub path: ImagePath,
    /// Where it goes.
    pub to: ImagePath,
    /// Who owns it there; `None`: who owned it in its stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Whether it is the same on all platforms, and its stage is made for the machine that builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable: bool,
}

impl<S> TakeFrom<S> {
    /// Replaces the name of the stage.
    pub fn map_stage<T, E>(self, rename: impl FnOnce(S) -> Result<T, E>) -> Result<TakeFrom<T>, E> {
        let TakeFrom { stage, path, to, owner, portable } = self;
        Ok(TakeFrom { stage: rename(stage)?, path, to, owner, portable })
    }
}
