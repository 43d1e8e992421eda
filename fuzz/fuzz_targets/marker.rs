//! Environment markers: parentheses and repetition change nothing.
#![no_main]

use imgbuild::python::constraint::Constraint;
use imgbuild::python::markers::{Environment, Marker};
use imgbuild_fuzz::{parts, targets, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [first, second] = parts(data, b'\n');
    let (first, second) = (text(first), text(second));
    let _ = Constraint::pep440(second);
    let _ = Constraint::poetry(second);
    let Ok(marker) = Marker::parse(first, "x") else { return };
    let other = Marker::parse(second, "y").ok();
    for target in targets() {
        let extras = ["a".to_owned(), "b".to_owned()];
        let environment = Environment::of(&target).expect("a good target").with_extras(&extras).with_groups(&extras);
        let holds = marker.holds(&environment);
        if !first.trim().is_empty() && first.len() < 30_000 {
            for (text, expected) in [
                (format!("({first})"), holds),
                (format!("({first}) and ({first})"), holds),
                (format!("({first}) or ({first})"), holds),
                (format!("({first}) or os_name == \"posix\""), true),
                (format!("({first}) and os_name == \"nt\""), false),
            ] {
                // Two more parentheses may be too many.
                if let Ok(again) = Marker::parse(&text, "x") {
                    assert_eq!(again.holds(&environment), expected, "{text}");
                }
            }
        }
        if let Some(other) = &other {
            let both = marker.clone().and(other.clone());
            assert_eq!(both.holds(&environment), holds && other.holds(&environment));
        }
    }
});
