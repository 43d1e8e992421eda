//! `requirements.txt` with hashes; what stands behind a NUL is the file that it may include.
#![no_main]

use imgbuild_fuzz::{parts, python_lock};
use layers::pip_requirements;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [lock, included] = parts(data, 0);
    python_lock(&pip_requirements("requirements.txt"), lock, included);
});
