//! The words of imgbuild. This crate describes and encodes; it opens no file, reads no clock and no environment.
//!
//! A definition is a [`Stage`] (files, layer by layer) that becomes an [`Image`] (plus run-time configuration). A
//! [`Catalogue`] names images; its [`Plan`] is plain JSON that any imgbuild engine of the same plan version runs.
//!
//! ```
//! use layers::*;
//!
//! let image = Stage::scratch()
//!     .layer(debian(["ca-certificates", "tzdata"]))
//!     .layer(inline("hello\n", path!("/etc/motd")))
//!     .image()
//!     .user("10001:10001")
//!     .env("LANG", "C.UTF-8");
//! let plan = Catalogue::new("example").with("hello", image).plan();
//! assert_eq!(plan.images.len(), 1);
//! ```
//!
//! With the feature `encode` come the archive formats, the canonical tar and gzip encoders, fragments and OCI documents.

mod catalogue;
mod digest;
mod hash;
mod image;
mod path;
mod plan;
mod platform;
mod run;
pub mod source;
mod stage;

#[cfg(feature = "encode")]
pub mod encode;
#[cfg(feature = "encode")]
pub mod format;
#[cfg(feature = "encode")]
pub mod lock;
#[cfg(feature = "encode")]
pub mod lower;
#[cfg(feature = "encode")]
pub mod oci;
#[cfg(feature = "encode")]
pub mod op;
#[cfg(feature = "encode")]
pub mod partition;
#[cfg(feature = "encode")]
mod sharing;

#[cfg(feature = "encode")]
pub mod written;

pub use catalogue::Catalogue;
pub use digest::{DiffId, Digest, InvalidDigest, Key};
pub use hash::{KeyHasher, field, fields, unescaped};
pub use image::{Healthcheck, Image, ImageConfig};
pub use path::{ImagePath, InvalidPath, check as check_path};
pub use plan::{PLAN_VERSION, Plan, PlanError, PlannedImage, PlannedStage, StageId, StageStep};
pub use platform::{Platform, UnknownPlatform};
pub use run::{Input, Network, Run, command, is_secret_name};
pub use source::{
    Modules, Source, debian, dir, fetch, files, inline, link, oci_layout, pip_requirements, poetry_lock, pylock,
    python, sdist, user, uv_lock,
};
pub use stage::{Location, Stage, Take};
