//! What is wrong, where, and what to do.

use std::fmt;

/// One finding of a validator. Validators report everything that they find, not only the first thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where: a file, a service, a variable or a manifest.
    pub at: String,
    /// What is wrong; lower case, no trailing period.
    pub what: String,
    /// What would mend it.
    pub hint: Option<String>,
}

impl Problem {
    /// A finding without a hint.
    pub fn new(at: impl Into<String>, what: impl Into<String>) -> Problem {
        Problem { at: at.into(), what: what.into(), hint: None }
    }

    /// Adds what would mend it.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.at, self.what)?;
        match &self.hint {
            Some(hint) => write!(out, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}
