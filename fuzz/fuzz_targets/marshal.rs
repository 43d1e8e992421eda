//! Marshalled code: what is written reads the same, however values refer to each other.
#![no_main]

use layers::format::marshal::canonical;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(bytes) = canonical(data) else { return };
    assert_eq!(canonical(&bytes).expect("it reads what it writes"), bytes);
});
