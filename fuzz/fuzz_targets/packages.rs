//! Packages files: values are what stands in the text, and a paragraph that is written again is read the same.
#![no_main]

use std::sync::Arc;

use imgbuild::debian::packages::{Package, check_consistent, scan};
use imgbuild::debian::relation;
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

type Field = (&'static str, fn(&Package) -> &str);

const FIELDS: [Field; 15] = [
    ("Package", Package::name),
    ("Version", Package::version),
    ("Architecture", Package::architecture),
    ("Depends", Package::depends),
    ("Pre-Depends", Package::pre_depends),
    ("Recommends", Package::recommends),
    ("Conflicts", Package::conflicts),
    ("Breaks", Package::breaks),
    ("Replaces", Package::replaces),
    ("Provides", Package::provides),
    ("Multi-Arch", Package::multi_arch),
    ("Priority", Package::priority),
    ("Filename", Package::filename),
    ("Suggests", Package::suggests),
    ("Enhances", Package::enhances),
];

fuzz_target!(|data: &[u8]| {
    let text = text(data);
    let Ok(packages) = scan(Arc::from(text)) else { return };
    let mut written = String::new();
    for package in &packages {
        assert!(!package.name().is_empty() && !package.version().is_empty());
        for (name, value) in FIELDS {
            let value = value(package);
            assert!(text.contains(value));
            assert!(!value.contains("\n\n"), "a value ends with its paragraph");
            if !value.is_empty() {
                written.push_str(&format!("{name}: {value}\n"));
            }
            if matches!(name, "Depends" | "Pre-Depends" | "Conflicts" | "Breaks" | "Provides")
                && let Ok(groups) = relation::parse(value)
            {
                assert!(groups.iter().all(|group| !group.is_empty()));
            }
        }
        written.push_str(&format!("Size: {}\nSHA256: {}\n", package.size, package.sha256.hex()));
        for (is, line) in [(package.is_essential(), "Essential: yes\n"), (package.is_important(), "Important: yes\n")] {
            if is {
                written.push_str(line);
            }
        }
        written.push('\n');
    }
    let again = scan(Arc::from(written.as_str())).expect("it reads what was read");
    assert_eq!(again.len(), packages.len());
    for (one, other) in packages.iter().zip(&again) {
        for (name, value) in FIELDS {
            assert_eq!(value(one), value(other), "{name}");
        }
        assert_eq!((one.size, one.sha256), (other.size, other.sha256));
        assert_eq!(one.is_essential(), other.is_essential());
        assert_eq!(one.is_important(), other.is_important());
    }
    assert_eq!(check_consistent(&packages).is_ok(), check_consistent(&again).is_ok());
});
