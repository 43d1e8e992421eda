//! What a person is told when something fails: what, where it was written, what to do, and the exit status.

use std::fmt;

use layers::Location;

/// Whose fault it is, and so the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The work failed: exit status 1.
    Work,
    /// The request made no sense: exit status 2.
    Usage,
}

/// A failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault.
    pub kind: Kind,
    /// What was attempted and what went wrong: lower case, no full stop.
    pub message: String,
    /// The place in a definition that led to it.
    pub at: Option<Location>,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Failure {
    /// The work failed.
    pub fn work(message: impl Into<String>) -> Failure {
        Failure { kind: Kind::Work, message: message.into(), at: None, hints: Vec::new() }
    }

    /// The request made no sense.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { kind: Kind::Usage, ..Failure::work(message) }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// Adds the place in a definition.
    pub fn located(mut self, at: Option<Location>) -> Failure {
        self.at = self.at.or(at);
        self
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self.kind {
            Kind::Work => 1,
            Kind::Usage => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(at) = &self.at {
            write!(f, "\n  --> {at}")?;
        }
        for hint in &self.hints {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

macro_rules! work {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::work(error.to_string())
            }
        }
    )*};
}
work!(
    cache::CacheError,
    crate::debian::archive::ArchiveError,
    crate::debian::keys::KeyringError,
    crate::debian::openpgp::SignatureError,
    crate::debian::resolve::ResolveError,
    crate::fetch::FetchError,
    crate::output::OutputError,
    crate::pin::PinError,
    crate::places::PlaceError,
    crate::python::PythonError,
);

impl From<crate::registry::RegistryError> for Failure {
    fn from(error: crate::registry::RegistryError) -> Failure {
        use crate::registry::RegistryError;
        match error {
            RegistryError::Reference(error) => error.into(),
            other => Failure::work(other.to_string()),
        }
    }
}

impl From<crate::registry::InvalidReference> for Failure {
    fn from(error: crate::registry::InvalidReference) -> Failure {
        Failure::usage(error.to_string())
    }
}

impl From<crate::registry::auth::AuthError> for Failure {
    fn from(error: crate::registry::auth::AuthError) -> Failure {
        Failure::work(error.to_string())
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        Failure::usage(error.to_string())
    }
}

impl From<layers::lower::LowerError> for Failure {
    fn from(error: layers::lower::LowerError) -> Failure {
        use layers::lower::LowerError;
        let failure = Failure::work(error.to_string()).located(error.at().cloned());
        match error {
            LowerError::Unlocked { .. } => failure.hint("run `imgbuild lock`"),
            LowerError::NoPlatform { .. } => failure.hint("choose other platforms with `--platform`, or another base"),
            LowerError::NothingToConfigure { .. } => {
                failure.hint("name a package that the layer, or one below it, installs: `imgbuild tree` lists them")
            }
            LowerError::NoLockFile { .. } => failure.hint("choose the context with `--context DIR`"),
            LowerError::NoInterpreter { python, .. } => {
                failure.hint(format!("put `.layer(debian([\"python{python}\"]))` below it, or leave byte-code out"))
            }
        }
    }
}

impl From<crate::engine::EngineError> for Failure {
    fn from(error: crate::engine::EngineError) -> Failure {
        use crate::engine::{EngineError, subject};
        match error {
            EngineError::At { at, source, label } => {
                let inner = Failure::from(*source);
                Failure { message: format!("{} failed: {}", subject(&label), inner.message), ..inner }.located(at)
            }
            EngineError::Lower(error) => error.into(),
            EngineError::Registry(error) => (*error).into(),
            EngineError::Unconfigured(why) => Failure::usage(why),
            EngineError::Command { ref log, .. } => {
                let failure = Failure::work(error.to_string());
                // Nothing was written where the command was never started.
                match std::fs::metadata(log) {
                    Ok(file) if file.len() > 0 => failure.hint(format!("the whole log is in `{}`", log.display())),
                    _ => failure,
                }
            }
            EngineError::ForeignCommand { platform } => Failure::work(error.to_string()).hint(format!(
                "build on a machine for {platform}; or say `.portable()` where what is taken is the same on all platforms, or `.emulated()`"
            )),
            EngineError::NotEmulated { platform, .. } => Failure::work(error.to_string()).hint(format!(
                "as root of the machine: `apt-get install qemu-user-static binfmt-support`, or `docker run --privileged --rm tonistiigi/binfmt --install {}`",
                platform.architecture()
            )),
            EngineError::NoSecret { ref name } => Failure::usage(error.to_string())
                .hint(format!("give it with `--secret {name}=env:VARIABLE` or `--secret {name}=file:PATH`")),
            EngineError::NoAgent => Failure::usage(error.to_string())
                .hint("name it with `--ssh default` (the one of `SSH_AUTH_SOCK`) or `--ssh SOCKET`"),
            other => Failure::work(other.to_string()),
        }
    }
}

impl From<layers::lock::LockError> for Failure {
    fn from(error: layers::lock::LockError) -> Failure {
        Failure::work(error.to_string())
    }
}

impl From<layers::PlanError> for Failure {
    fn from(error: layers::PlanError) -> Failure {
        Failure::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_where_and_what_to_do() {
        let at = Location { file: "images/src/rag.rs".into(), line: 9 };
        let failure = Failure::work("it broke").located(Some(at)).hint("mend it");
        assert_eq!(failure.to_string(), "error: it broke\n  --> images/src/rag.rs:9\nhint: mend it");
        assert_eq!((failure.status(), Failure::usage("x").status()), (1, 2));
    }
}
