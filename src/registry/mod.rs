//! Registries: pushing images, pulling bases, and everything that goes wrong on the way.
//!
//! Follows the OCI distribution specification 1.1 and, for tokens, the distribution project's. The one idea: a registry
//! is asked before anything large is sent, nothing is trusted that has not been hashed, and a tag is written when everything
//! that it leads to is there.
//!
//! ```text
//! reference   names                      auth/    credentials and where they come from
//! client      one request, done right    token    challenges and tokens
//! guard       where we may be sent       upload   one blob, resumed wherever it broke
//! push        images and tags            pull     manifests and blobs, verified
//! supply      what is pushed, and its bytes  memo     what a registry is known to have
//! ahead       what is done while images are built
//! ```
//!
//! It never follows the `urls` of a descriptor, never shows a secret, and never gives one to a host that it was not
//! kept for.

mod ahead;
mod answer;
pub mod auth;
pub(crate) mod body;
mod client;
mod config;
mod digest;
pub mod document;
mod error;
mod guard;
mod memo;
mod pull;
mod push;
mod reference;
mod referrers;
mod remote;
mod retry;
mod supply;
mod token;
mod transport;
mod upload;

pub use ahead::{Ahead, Announced};
pub use client::{Client, Counters};
pub use config::{ClientConfig, Patience};
pub use digest::{AnyDigest, NotADigest};
pub use error::RegistryError;
pub use memo::{last_pushed, may_have};
pub use pull::{Glimpse, Pulled};
pub use push::{Act, Planned, Pushed};
pub use reference::{DOCKER_HUB, InvalidReference, Reference, Repository, TagRequest, is_host, is_tag};
pub use referrers::fallback_tag;
pub use remote::Registries;
pub use supply::{Bundle, Delivery, Demand, Supply, open_regular};
