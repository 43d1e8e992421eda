//! Black-box tests.

mod python;
mod python_poetry;
