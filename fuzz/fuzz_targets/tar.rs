//! tar archives: names stay inside, contents have their announced length, offsets are where the bytes are, and an OCI layer
//! without whiteouts is read as the plain archive it is.
#![no_main]

use std::io::Read;

use imgbuild_fuzz::{Dribble, check_path, limits, repair_tar, same_however_read};
use layers::encode::{Entry, Kind};
use layers::format::tar::{Reader, TarItem};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    repair_tar(&mut data[..size]);
    size
});

/// Everything up to the end or the first error, and whether there was none.
fn items<R: Read>(mut reader: Reader<R>, data: &[u8]) -> (Vec<(TarItem, Vec<u8>)>, bool) {
    let mut all = Vec::new();
    loop {
        let item = match reader.next_item() {
            Ok(Some(item)) => item,
            Ok(None) => {
                assert!(matches!(reader.next_item(), Ok(None)));
                return (all, true);
            }
            Err(_) => {
                assert!(reader.next_item().is_err(), "an error is followed by an end");
                return (all, false);
            }
        };
        let mut content = Vec::new();
        if reader.read_to_end(&mut content).is_err() {
            assert!(reader.next_item().is_err(), "an error is followed by an end");
            return (all, false);
        }
        let at = reader.content_offset() as usize;
        assert!(reader.header_offset() < reader.content_offset() && at.is_multiple_of(512));
        assert_eq!(&data[at..at + content.len()], &content[..]);
        all.push((item, content));
    }
}

fn check(entry: &Entry, content: &[u8]) {
    check_path(&entry.path);
    assert!(entry.mode <= 0o7777);
    match &entry.kind {
        Kind::File { size } => assert_eq!(*size, content.len() as u64),
        Kind::Hardlink { target } => {
            check_path(target);
            assert!(*target != entry.path && !target.is_root());
        }
        Kind::Symlink { target } => assert!(!target.is_empty() && !target.contains('\0') && target.len() <= 4095),
        _ => {}
    }
    assert!(matches!(entry.kind, Kind::File { .. }) || content.is_empty());
    assert!(!entry.path.is_root() || entry.kind == Kind::Dir);
}

fuzz_target!(|data: &[u8]| {
    let limits = limits();
    let plain = same_however_read(data, |reader: Dribble<&[u8]>| items(Reader::new(reader, &limits), data));
    for (item, content) in &plain.0 {
        match item {
            TarItem::Entry(entry) => check(entry, content),
            _ => panic!("{item:?} in a plain archive"),
        }
    }
    let layer = items(Reader::oci_layer(data, &limits), data);
    let mut whiteouts = false;
    for (item, content) in &layer.0 {
        match item {
            TarItem::Entry(entry) => check(entry, content),
            TarItem::Whiteout { path } | TarItem::Opaque { dir: path } => {
                check_path(path);
                assert!(content.is_empty());
                whiteouts = true;
            }
        }
    }
    if plain.1 {
        assert_eq!(plain, layer);
    } else if layer.1 {
        assert!(whiteouts, "only whiteouts are good in a layer and bad in an archive");
    }
});
