//! RECORD of a wheel: what is written is read, and sorting is all that changes.
#![no_main]

use layers::format::wheel::{parse_record, write_record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut rows) = parse_record(data) else { return };
    let written = write_record(rows.clone());
    let again = parse_record(written.as_bytes()).expect("it reads what it writes");
    rows.sort();
    assert_eq!(again, rows);
    assert_eq!(write_record(again), written);
});
