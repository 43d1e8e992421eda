//! Parts of other stages.

use serde::{Deserialize, Serialize};

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
}
