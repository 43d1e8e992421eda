//! The keys that sign Debian's suites: those that imgbuild brings (`keys/README.md` says from where), or a keyring file
//! that the configuration names.

use std::path::PathBuf;

use super::openpgp::{Keyring, SignatureError};
use crate::config::{Config, ConfigError};

/// Why there is no keyring.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file that cannot be read.
    #[error("cannot read the keyring `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is no keyring.
    #[error("`{path}`: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SignatureError,
    },
}

const KEYS: [(&str, &str); 3] = [
    ("keys/trixie-automatic.asc", include_str!("keys/trixie-automatic.asc")),
    ("keys/trixie-security-automatic.asc", include_str!("keys/trixie-security-automatic.asc")),
    ("keys/trixie-stable.asc", include_str!("keys/trixie-stable.asc")),
];

/// The keyring that Debian's suites are verified by.
///
/// # Errors
/// If the configuration names a file that is not there or no keyring.
pub fn keyring(config: &Config) -> Result<Keyring, KeyringError> {
    let parse =
        |path: PathBuf, bytes: &[u8]| Keyring::parse(bytes).map_err(|source| KeyringError::Parse { path, source });
    if let Some(path) = config.debian_keyring()? {
        let bytes = std::fs::read(&path).map_err(|source| KeyringError::Read { path: path.clone(), source })?;
        return parse(path, &bytes);
    }
    let mut all = Keyring::default();
    for (name, text) in KEYS {
        all.extend(parse(name.into(), text.as_bytes())?);
    }
    Ok(all)
}
