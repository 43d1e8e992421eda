//! The sentences: the images of Obelisk, one file each.
//!
//! ```text
//!   base   Python, certificates, time zones, the user 10001
//!    '- core   the documentation site over the vault
//!   rag    answers from the vault; base's files with one package more
//!   init   prepares the services around them; shares base's packages, not its files
//! ```
//!
//! A definition says what is in an image and how it runs; it opens no file and reaches no network. Scripts that belong
//! to an image lie beside it (`images/core/entrypoint.sh`); what belongs to a deployment comes from the build context
//! (`images/obelisk/`, or another one by `--context`).

pub mod base;
pub mod core;
pub mod init;
pub mod rag;

use layers::Catalogue;

/// All images, by name.
pub fn catalogue() -> Catalogue {
    Catalogue::new("obelisk")
        .with("base", base::image())
        .with("core", core::image())
        .with("rag", rag::image())
        .with("init", init::image())
}
