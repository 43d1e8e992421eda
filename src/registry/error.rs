//! Why a registry did not do what was asked.

use std::path::PathBuf;

use super::auth::AuthError;
use super::digest::AnyDigest;
use super::reference::InvalidReference;

/// Why a push or pull failed. No variant holds a secret, a query string or a header.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A text that names no image.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// Credentials that cannot be read.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The program was told to stay offline.
    #[error("`{what}` needs the network, and --offline forbids it")]
    Offline {
        /// What was wanted.
        what: String,
    },
    /// The registry knows the user and says no, or knows nobody.
    #[error("{registry} refuses to {what} as {who}: {why}")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// As whom, without secrets.
        who: String,
        /// What it said.
        why: String,
    },
    /// Something that is not there.
    #[error("{registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// An answer that ends the matter.
    #[error("cannot {what} at {url}: {why}")]
    Answer {
        /// What was asked.
        what: String,
        /// Where, without user, password and query.
        url: String,
        /// The status.
        status: u16,
        /// What it said.
        why: String,
    },
    /// Failure upon failure.
    #[error("cannot {what} at {url}: {why}; gave up after {failures} failures in a row")]
    Unreachable {
        /// What was asked.
        what: String,
        /// Where.
        url: String,
        /// The last failure.
        why: String,
        /// How many without progress.
        failures: u32,
    },
    /// A wait that is longer than a person would want.
    #[error("{registry} asks to wait {seconds} s before the next request; try again later")]
    Busy {
        /// The registry.
        registry: String,
        /// How long.
        seconds: u64,
    },
    /// One that there is no patience for.
    #[error("{registry} does not let us {what}: {why}")]
    Silent {
        /// The registry.
        registry: String,
        /// What was asked.
        what: String,
        /// How long it was waited for, and what had failed before that.
        why: String,
    },
    /// A place that a registry may not send us to.
    #[error("{registry} points to {url}, which is refused: {why}")]
    Refused {
        /// The registry.
        registry: String,
        /// Where to.
        url: String,
        /// Why not.
        why: String,
    },
    /// Bytes that are not what their name says.
    #[error("{registry} sent something else for {digest}: {why}")]
    Mismatch {
        /// The registry.
        registry: String,
        /// What was asked for.
        digest: AnyDigest,
        /// What is wrong.
        why: String,
    },
    /// A document that cannot be used.
    #[error("the manifest {what} cannot be used: {why}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        why: String,
    },
    /// A blob that nobody has.
    #[error("{0} is neither in the cache nor in a registry that is known to have it; build again")]
    Lost(AnyDigest),
    /// A blob of the cache whose bytes are not what its name says.
    #[error("{0} is damaged in the cache; it was removed, build again")]
    Damaged(AnyDigest),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// A file.
    #[error("cannot read `{path}`: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The network stack did not start.
    #[error("the network cannot be used: {0}")]
    Setup(String),
}

impl RegistryError {
    /// Whether it says that something is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RegistryError::NotFound { .. })
    }
}
