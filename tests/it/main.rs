//! Black-box tests.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod python;
mod python_poetry;
