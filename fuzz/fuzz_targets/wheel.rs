//! Wheels of any files: what is installed lies in the environment, nothing lies over anything else, and RECORD lists it.
//!
//! The input is a list of `NAME NUL CONTENT NUL`; the archive and its own RECORD are made to fit.
#![no_main]

use std::collections::BTreeSet;
use std::io::Cursor;

use imgbuild_fuzz::{Packed, check_path, limits, text, wheel};
use layers::format::wheel::{Content, Scheme, Wheel, WheelName, parse_record};
use layers::format::zip::Archive;
use layers::path;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let pieces: Vec<&[u8]> = data.split(|byte| *byte == 0).take(64).collect();
    let files: Vec<Packed> = pieces
        .chunks(2)
        .map(|pair| {
            let mode = if pair[0].ends_with(b".sh") { 0o100_755 } else { 0o100_644 };
            Packed { mode, ..Packed::new(text(pair[0]), pair.get(1).copied().unwrap_or_default()) }
        })
        .collect();
    let bytes = wheel(files);
    let Ok(archive) = Archive::open(Cursor::new(&bytes), &limits()) else { return };
    let name: WheelName = "x-1-py3-none-any.whl".parse().expect("a good name");
    let Ok(mut wheel) = Wheel::open(archive, &name, &limits()) else { return };
    let scheme = Scheme::new(path!("/opt/venv"), "3.13").expect("a good scheme");
    let installed = wheel.install(&scheme);
    let verified = wheel.verify();
    let Ok(installed) = installed else { return };
    let mut paths = BTreeSet::new();
    let mut record = None;
    for file in &installed.files {
        check_path(&file.path);
        assert!(file.path.starts_with(scheme.venv()) && file.path != *scheme.venv(), "{}", file.path);
        assert!(matches!(file.mode, 0o644 | 0o755));
        assert!(paths.insert(file.path.clone()), "{} is there twice", file.path);
        match &file.content {
            Content::Bytes(bytes) => {
                if file.path == installed.dist_info.join("RECORD").expect("a path") {
                    record = Some(bytes.clone());
                }
            }
            Content::Entry(index) => {
                let mut content = Vec::new();
                let copied = wheel.copy_to(*index, &mut content);
                assert!(copied.is_ok() || verified.is_err());
            }
        }
    }
    for path in &paths {
        for ancestor in path.ancestors() {
            assert!(!paths.contains(&ancestor), "{path} lies below a file");
        }
    }
    let rows = parse_record(&record.expect("there is a RECORD")).expect("it is a RECORD");
    assert_eq!(rows.len(), installed.files.len());
    for row in rows {
        // Relative to site-packages, three levels below the environment.
        let mut at: Vec<&str> = scheme.site_packages().relative().split('/').collect();
        for part in row.path.split('/') {
            match part {
                ".." => assert!(at.pop().is_some()),
                part => at.push(part),
            }
        }
        let path = format!("/{}", at.join("/"));
        assert!(paths.iter().any(|known| known.as_str() == path), "{path}");
        assert!(row.path.ends_with("RECORD") || row.hash.starts_with("sha"), "{}", row.path);
    }
});
