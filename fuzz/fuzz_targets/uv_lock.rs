//! `uv.lock`.
#![no_main]

use imgbuild_fuzz::python_lock;
use layers::uv_lock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    python_lock(&uv_lock("uv.lock"), data, b"");
    python_lock(&uv_lock("uv.lock").group("docs").group("main").extra("all"), data, b"");
});
