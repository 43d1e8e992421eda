//! images.lock: names no path that leads elsewhere, and reads back what it writes, to the byte.
#![no_main]

use imgbuild_fuzz::{check_file_name, text};
use layers::lock::Lock;
use layers::op::Origin;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(lock) = Lock::from_text(text(data)) else { return };
    for (platform, packages) in &lock.debian {
        for package in packages {
            assert!(!package.path.starts_with('/') && !package.path.contains('\\'), "{}", package.path);
            assert!(package.path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", package.path);
            let archive = package.archive();
            assert!(!archive.name.contains('/') && !archive.name.is_empty());
            assert!(matches!(archive.origin, Origin::Pool { .. }));
            assert!(lock.package(*platform, &package.name).is_some_and(|found| found.name == package.name));
        }
    }
    for wheel in lock.python.iter().flat_map(|source| source.wheels.values().flatten()) {
        check_file_name(&wheel.archive().name);
    }
    for source in &lock.sources {
        for (platform, chosen) in &source.packages {
            for it in chosen {
                assert!(lock.package(*platform, &it.package).is_some(), "{} dangles", it.package);
            }
        }
    }
    let written = lock.to_text();
    let again = Lock::from_text(&written).expect("it reads what it writes");
    assert_eq!(again, lock);
    assert_eq!(again.to_text(), written);
    assert!(lock.date().is_none_or(|date| lock.suites.iter().any(|suite| suite.date == date)));
});
