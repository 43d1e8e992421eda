//! File names of wheels: one path component, written again it is the same, and the reader that chooses wheels sees the same
//! tags.
#![no_main]

use imgbuild::python::tags::{Candidate, Tags};
use imgbuild_fuzz::{check_file_name, targets, text};
use layers::format::wheel::WheelName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = text(data);
    let chosen = Candidate::parse(file);
    if let Some(chosen) = &chosen {
        for target in targets() {
            let _ = Tags::of(&target).rank(chosen);
        }
    }
    let Ok(name) = file.parse::<WheelName>() else {
        assert!(chosen.is_none(), "{file:?}");
        return;
    };
    check_file_name(file);
    let written = name.to_string();
    assert_eq!(written.parse::<WheelName>().expect("it reads what it writes"), name);
    let normalised = name.normalised();
    assert!(!normalised.contains(['_', '.']) && normalised == normalised.to_lowercase(), "{normalised}");
    let Some(chosen) = chosen else { return };
    assert_eq!(chosen.name, normalised);
    assert_eq!(chosen.build(), name.build.as_ref());
    let mut tags = Vec::new();
    for python in &name.python {
        for abi in &name.abi {
            for platform in &name.platform {
                tags.push(format!("{python}-{abi}-{platform}").to_ascii_lowercase());
            }
        }
    }
    assert_eq!(chosen.tags().collect::<Vec<_>>(), tags);
});
