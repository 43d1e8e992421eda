//! `pylock.toml` (PEP 751).
#![no_main]

use imgbuild_fuzz::python_lock;
use layers::pylock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    python_lock(&pylock("pylock.toml"), data, b"");
    python_lock(&pylock("pylock.toml").group("docs").group("main").extra("all"), data, b"");
});
