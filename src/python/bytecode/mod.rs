//! Byte-code for Python modules: unchecked-hash .pyc files (PEP 552), a pure function of the source, its path in the
//! image and the interpreter's release.
//!
//! ```text
//! wheel ── sources ──▶ [Interpreter]: processes of the image's own python ── marshal::canonical ──▶ .pyc in the fragment
//! imports: which modules importing some others would load, read from the sources alone
//! ```

pub mod imports;
mod interpreter;

use std::io;

use layers::ImagePath;
pub use layers::format::marshal;

pub use interpreter::{Interpreter, Part, is_needed};

/// Counts up when byte-code of the same source and interpreter changes; part of the key of what holds it.
pub const VERSION: u32 = 1;

/// Why there is no byte-code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The packages lack a part.
    #[error("the packages of python{python} lack {what}")]
    Incomplete {
        /// The version.
        python: String,
        /// What is not there.
        what: &'static str,
    },
    /// It cannot be run here.
    #[error(
        "the image's python{python} cannot be started on this machine, so there is no byte-code: {source}; lock the image for this machine's platform as well, or install qemu-user with binfmt support"
    )]
    Start {
        /// The version.
        python: String,
        /// Why.
        source: io::Error,
    },
    /// It stopped in the middle.
    #[error("the image's Python stopped while it compiled `{path}`: {source}")]
    Died {
        /// The module.
        path: ImagePath,
        /// What was seen of it.
        source: io::Error,
    },
    /// What it wrote is not understood.
    #[error("`{path}`: {source}")]
    Marshal {
        /// The module.
        path: ImagePath,
        /// Why.
        source: marshal::MarshalError,
    },
    /// A module to start from that no wheel has.
    #[error("byte-code is wanted for what `{module}` imports, but no wheel has that module")]
    NoModule {
        /// The module.
        module: String,
    },
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Where the byte-code of a module lies (PEP 3147): `a/__pycache__/b.cpython-313.pyc` for `a/b.py`.
pub fn cache_path(module: &ImagePath, python: &str) -> Option<ImagePath> {
    let (folder, file) = module.as_str().rsplit_once('/')?;
    let stem = file.strip_suffix(".py").filter(|stem| !stem.is_empty())?;
    ImagePath::new(format!("{folder}/__pycache__/{stem}.cpython-{}.pyc", python.replace('.', ""))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_code_lies_where_the_import_system_looks_for_it() {
        let path = |text: &str| ImagePath::new(text).expect("a path");
        let found = cache_path(&path("/opt/venv/lib/a.py"), "3.13").expect("a module");
        assert_eq!(found.as_str(), "/opt/venv/lib/__pycache__/a.cpython-313.pyc");
        assert_eq!(cache_path(&path("/a/.py"), "3.13"), None);
        assert_eq!(cache_path(&path("/a/b.pyi"), "3.13"), None);
    }
}
