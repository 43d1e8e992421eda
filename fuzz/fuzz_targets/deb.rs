//! A Debian package: control files are plain names, one `control` among them, and data.tar is a tar.
#![no_main]

use std::io::{Cursor, Read};

use imgbuild_fuzz::{check_path, limits, repair_tar};
use layers::format::deb::Deb;
use layers::format::tar;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    repair_tar(&mut data[..size]);
    size
});

fuzz_target!(|data: &[u8]| {
    let limits = limits();
    let Ok(mut deb) = Deb::open(Cursor::new(data), &limits) else { return };
    let mut total = 0;
    for (name, content) in deb.control_files() {
        assert!(!name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..", "{name:?}");
        total += content.len() as u64;
    }
    assert!(total <= limits.max_metadata);
    assert!(deb.control_files().contains_key("control"));
    let scripts = imgbuild::debian::scripts::classify(deb.control_files());
    assert_eq!(scripts, imgbuild::debian::scripts::classify(deb.control_files()));
    let Ok(data) = deb.data() else { return };
    let mut reader = tar::Reader::new(data, &limits);
    let mut sum = 0;
    while let Ok(Some(entry)) = reader.next() {
        check_path(&entry.path);
        let mut content = Vec::new();
        if reader.read_to_end(&mut content).is_err() {
            break;
        }
        sum += content.len() as u64;
    }
    assert!(sum <= limits.max_output);
});
