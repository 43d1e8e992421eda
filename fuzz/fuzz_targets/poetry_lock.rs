//! `poetry.lock`, and the `pyproject.toml` behind a NUL that an old one needs.
#![no_main]

use imgbuild_fuzz::{parts, python_lock};
use layers::poetry_lock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [lock, project] = parts(data, 0);
    python_lock(&poetry_lock("poetry.lock"), lock, project);
    python_lock(&poetry_lock("poetry.lock").group("docs").group("main").extra("all"), lock, project);
});
