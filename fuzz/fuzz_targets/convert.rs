//! The engine's conversion of an archive: no path twice, none below a file, directories apart, and the fragment's own tar
//! says what its index says.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use imgbuild::engine::convert::{Drops, convert};
use imgbuild::engine::spool::Room;
use imgbuild::parallel::Cores;
use imgbuild_fuzz::{check_path, repair_tar};
use layers::encode::Kind;
use layers::format::zip::Tails;
use layers::op::{Archive, Conversion, Origin};
use layers::source::{Owner, Unpack};
use layers::{Digest, ImagePath, path};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, _seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    repair_tar(&mut data[..size]);
    size
});

struct Bench {
    folder: tempfile::TempDir,
    runs: usize,
}

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&how, archive)) = data.split_first() else { return Corpus::Reject };
    BENCH.with_borrow_mut(|bench| {
        // What was converted stays in the store: a new one now and then.
        if bench.as_ref().is_none_or(|bench| bench.runs > 500) {
            let memory = PathBuf::from("/dev/shm");
            let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
            *bench = Some(Bench { folder: tempfile::tempdir_in(parent).expect("a folder"), runs: 0 });
        }
        let bench = bench.as_mut().expect("made above");
        bench.runs += 1;
        run(how, archive, bench);
    });
    Corpus::Keep
});

fn run(how: u8, bytes: &[u8], bench: &Bench) {
    let store = cache::Store::open_at(&bench.folder.path().join("cache")).expect("a store");
    let file = bench.folder.path().join("archive");
    fs::write(&file, bytes).expect("a writable folder");
    let digest = Digest::of(bytes);
    let to = if how & 1 == 0 { ImagePath::root() } else { path!("/opt/there") };
    let owner = Owner { uid: 1, gid: 2 };
    let unpack = |how: Unpack, strip_components: u8| {
        let aliases = Default::default();
        Conversion::Unpack { how, to: to.clone(), strip_components, owner, aliases }
    };
    let conversion = match how >> 1 & 3 {
        0 => unpack(Unpack::Tar, how >> 3 & 1),
        1 => unpack(Unpack::Zip, how >> 3 & 1),
        2 => Conversion::Deb { exclude: vec!["/usr/share/doc/*".into(), "!/usr/share/doc/*/copyright".into()] },
        _ => Conversion::Wheel { venv: path!("/opt/venv"), python: "3.13".into(), bytecode: None },
    };
    let name = if how >> 1 & 3 == 3 { "x-1-py3-none-any.whl" } else { "archive" };
    let archive = Archive { name: name.into(), digest, size: None, origin: Origin::Url("x".into()) };
    let room = Room::new(store.scratch(), Cores::new(2));
    let made = convert(&file, &archive, &conversion, &Drops::new(), &room, None, Tails::PassedOver);
    let Ok(made) = made else { return };
    let Ok(fragment) = made.write(&store, &room) else { return };
    let mut paths = BTreeSet::new();
    for indexed in &fragment.entries {
        check_path(&indexed.entry.path);
        assert!(!indexed.entry.is_dir());
        assert!(paths.insert(indexed.entry.path.clone()), "{} is there twice", indexed.entry.path);
        if matches!(conversion, Conversion::Unpack { .. }) {
            assert!(indexed.entry.path.starts_with(&to), "{}", indexed.entry.path);
            assert_eq!((indexed.entry.uid, indexed.entry.gid), (1, 2));
        }
        if matches!(conversion, Conversion::Wheel { .. }) {
            assert!(indexed.entry.path.starts_with(&path!("/opt/venv")), "{}", indexed.entry.path);
            assert!(matches!(indexed.entry.kind, Kind::File { .. }));
        }
    }
    for (at, dir) in fragment.dirs.iter().enumerate() {
        check_path(&dir.path);
        assert!(at == 0 || fragment.dirs[at - 1].path < dir.path);
    }
}
