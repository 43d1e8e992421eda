//! zip archives: names are plain and unique, contents lie apart inside the file, and have the announced length.
#![no_main]

use std::collections::BTreeSet;
use std::io::{Cursor, Read};

use imgbuild_fuzz::{check_path, limits};
use layers::format::zip::{Archive, Method, Tails};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = limits();
    let Ok(mut archive) = Archive::open(Cursor::new(data), &limits) else { return };
    let entries = archive.entries().to_vec();
    assert!(entries.len() as u64 <= limits.max_entries);
    let mut paths = BTreeSet::new();
    let mut ranges = Vec::new();
    let mut total = 0;
    for (index, entry) in entries.iter().enumerate() {
        check_path(&entry.path);
        assert!(!entry.name.starts_with('/') && !entry.name.contains(['\\', '\0']), "{}", entry.name);
        assert!(paths.insert(entry.path.clone()), "{} is there twice", entry.name);
        assert_eq!(archive.find(&entry.name), Some(index));
        ranges.push((entry.data_offset(), entry.data_offset() + entry.compressed_size));
        let mut content = Vec::new();
        let read = archive.reader(index).map(|mut reader| reader.read_to_end(&mut content).is_ok());
        if read.is_ok_and(|good| good) {
            assert_eq!(content.len() as u64, entry.size);
            assert_eq!(crc32fast::hash(&content), entry.crc32);
            assert!(entry.method == Method::Deflated || entry.size == entry.compressed_size);
            assert_eq!(archive.read(index).expect("it was read before"), content);
            if entry.method == Method::Deflated {
                let mut whole = vec![0; content.len()];
                archive.inflate(index, &mut Vec::new(), &mut whole).expect("it was read before");
                assert_eq!(whole, content);
            }
            total += entry.size;
        } else {
            assert!(archive.read(index).is_err(), "what cannot be read in one way cannot be in another");
            let mut whole = vec![0; entry.size.min(1 << 20) as usize];
            if entry.method == Method::Deflated && archive.inflate(index, &mut Vec::new(), &mut whole).is_ok() {
                // A few codes are taken that the other decoder refuses, but no other content.
                assert_eq!((whole.len() as u64, crc32fast::hash(&whole)), (entry.size, entry.crc32));
            }
        }
    }
    // Where tails are passed over, what was read is the same, and nothing else is read but entries with tails.
    let mut lenient = archive.with(Tails::PassedOver);
    for (index, entry) in entries.iter().enumerate() {
        let Ok(content) = lenient.read(index) else { continue };
        assert_eq!((content.len() as u64, crc32fast::hash(&content)), (entry.size, entry.crc32));
        let is_exact = lenient.ends_exactly(index).expect("it was read before");
        lenient = lenient.with(Tails::Refused);
        assert_eq!(lenient.read(index).is_ok(), is_exact);
        lenient = lenient.with(Tails::PassedOver);
    }
    assert!(total <= limits.max_output);
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "contents overlap");
    }
    assert!(ranges.last().is_none_or(|last| last.1 <= data.len() as u64));
    for entry in entries.iter().filter(|entry| !entry.is_dir()) {
        assert!(!paths.iter().any(|path| path != &entry.path && path.starts_with(&entry.path)), "{}", entry.name);
    }
});
