//! What a collection takes, and what it leaves.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use layers::KeyHasher;
use serde_json::json;

use super::*;
use crate::Waiting;

const KILO: usize = 8192;

struct Cache {
    store: Store,
    _folder: tempfile::TempDir,
}

fn age(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::options().read(true).open(path).and_then(|file| file.set_modified(time)).expect("ages");
}

impl Cache {
    fn new() -> Cache {
        let folder = tempfile::tempdir().expect("a folder");
        Cache { store: Store::open_at(folder.path()).expect("opens"), _folder: folder }
    }

    /// A blob of 8 KiB that was last used `at`.
    fn blob(&self, name: &str, at: u64) -> Digest {
        let digest = self.store.put(name.repeat(KILO).get(..KILO).expect("long enough").as_bytes()).expect("puts");
        age(&self.store.blob_path(&digest.digest), at);
        digest.digest
    }

    fn record(&self, kind: &str, of: &[Digest], made: &[Digest], at: u64) -> Key {
        let mut hasher = KeyHasher::new(kind, 1);
        hasher.list("of", of.iter());
        let (key, text) = hasher.finish();
        self.store.keep(&key, &text, &json!({ "made": made })).expect("keeps");
        age(&self.store.record_path(&key), at);
        key
    }

    /// An image of one layer of one fragment of one archive; everything else than the image was last used at 10.
    fn image(&self, name: &str, used: u64) -> [Digest; 3] {
        let [archive, fragment, layer] =
            ["archive", "fragment", "layer"].map(|it| self.blob(&format!("{it} {name}"), 10));
        self.record("fragment", &[archive], &[fragment], 10);
        self.record("layer", &[fragment], &[layer], 10);
        self.record("image", &[archive], &[layer], used);
        [archive, fragment, layer]
    }

    fn has(&self, digests: &[Digest]) -> Vec<bool> {
        digests.iter().map(|digest| self.store.has(digest).expect("looks").is_some()).collect()
    }

    fn collect(&self, limits: Limits) -> Collected {
        let would = self.store.would_collect(&limits, 1000).expect("looks");
        let collector = self.store.collector(Waiting::No).expect("locks").expect("nobody builds");
        let did = collector.collect(&limits, 1000).expect("collects");
        assert_eq!(would, did, "a dry run says what a real one does");
        did
    }
}

#[test]
fn what_a_recent_image_is_made_of_outlives_what_only_an_old_one_needs() {
    let cache = Cache::new();
    let old = cache.image("old", 100);
    let new = cache.image("new", 900);
    cache.collect(Limits { max_age: Some(500), ..Limits::default() });
    assert_eq!(cache.has(&new), [true; 3]);
    assert_eq!(cache.has(&old), [false; 3]);
    assert_eq!(cache.store.contents().expect("looks").classes[&Class::Record].count, 3);
}

/// Kinds of records that name several things, of which others have some as well.
const OF_SEVERAL: [&str; 9] = [
    "image",
    "foundation",
    "latest",
    "beginning",
    "package-conflicts",
    "wheel-collisions",
    "layer-listing",
    "registry-pushed",
    "gate",
];

#[test]
fn what_an_image_shares_with_old_records_does_not_keep_what_else_these_name() {
    for kind in OF_SEVERAL {
        let cache = Cache::new();
        let shared = cache.blob("shared layer", 10);
        let [old, older, new] = ["old", "older", "new"].map(|name| cache.blob(name, 10));
        cache.record(kind, &[older], &[shared, old], 100);
        cache.record("image", &[shared], &[shared, new], 900);
        cache.collect(Limits { max_age: Some(500), ..Limits::default() });
        assert_eq!(cache.has(&[shared, new, old, older]), [true, true, false, false], "{kind}");
        assert_eq!(cache.store.contents().expect("looks").classes[&Class::Record].count, 1, "{kind}");
    }
}

#[test]
fn what_is_known_of_a_registry_keeps_nothing_here_and_what_a_build_begins_with_does() {
    for (kind, keeps) in
        [("registry-pushed", false), ("registry-holders", false), ("foundation", true), ("latest", true)]
    {
        let cache = Cache::new();
        let [named, asked] = ["named", "asked"].map(|name| cache.blob(name, 10));
        cache.record(kind, &[asked], &[named], 900);
        cache.collect(Limits { max_age: Some(500), ..Limits::default() });
        assert_eq!(cache.has(&[named, asked]), [keeps; 2], "{kind}");
    }
}

#[test]
fn a_time_that_is_still_to_come_keeps_nothing_for_ever() {
    let cache = Cache::new();
    let soon = SystemTime::now() + Duration::from_secs(86_400);
    let ahead = soon.duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_secs();
    let [used, lost] = ["used", "lost"].map(|name| cache.blob(name, ahead));
    let known = cache.record("image", &[], &[used], ahead);
    let live = cache.blob("live", 10);
    cache.record("image", &[live], &[live], 900);
    // Who asks for it puts its time right.
    assert!(cache.store.find(&known).expect("finds").is_some());
    let time = |path: PathBuf| fs::metadata(path).expect("looks").modified().expect("has one");
    assert!(time(cache.store.record_path(&known)) <= SystemTime::now());
    // What nobody asked for is the first to go where there is no room.
    let total = cache.store.contents().expect("looks").total;
    let limits = Limits { max_size: Some(total - 1), ..Limits::default() };
    let would = cache.store.would_collect(&limits, 1000).expect("looks");
    assert_eq!(would.removed.len(), 1);
    // How old it is nobody knows: from now on it ages.
    cache.collect(Limits { max_age: Some(500), ..Limits::default() });
    assert_eq!(cache.has(&[used, lost, live]), [true; 3]);
    assert!(time(cache.store.blob_path(&lost)) <= SystemTime::now());
    age(&cache.store.blob_path(&lost), ahead);
    cache.collect(limits);
    assert_eq!(cache.has(&[used, lost, live]), [true, false, true]);
}

#[test]
fn a_folder_that_commands_keep_is_as_old_as_its_last_use() {
    let cache = Cache::new();
    let name = Digest::of(b"pip");
    let folder = cache.store.command_cache(&name).expect("makes");
    fs::create_dir(folder.join("below")).expect("makes");
    age(&folder, 100);
    assert_eq!(cache.store.command_cache(&name).expect("finds"), folder);
    fs::write(folder.join("below/x"), "x").expect("writes");
    cache.collect(Limits { max_age: Some(500), ..Limits::default() });
    assert!(folder.join("below/x").exists());
    age(&folder, 100);
    cache.collect(Limits { max_age: Some(500), ..Limits::default() });
    assert!(!folder.exists());
}

#[test]
fn whoever_has_a_command_write_says_so_before() {
    let cache = Cache::new();
    fs::write(cache.store.usage_path(), "100").expect("writes");
    assert!(!cache.store.wrote_uncounted());
    cache.store.command_cache(&Digest::of(b"pip")).expect("makes");
    assert!(cache.store.wrote_uncounted() && !cache.store.usage_path().exists());
}

/// Bytes on disk of a folder with all that is in it, as `du -s` counts them.
fn du(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).expect("looks");
    let below = if metadata.is_dir() { list(path).expect("lists") } else { Vec::new() };
    metadata.blocks() * 512 + below.iter().map(|(path, _)| du(path)).sum::<u64>()
}

#[test]
fn folders_count_and_empty_ones_go() {
    let cache = Cache::new();
    for number in 0..40 {
        cache.image(&number.to_string(), 900);
    }
    let root = cache.store.root();
    let mut folders = (0..=255).map(|number| root.join(format!("blobs-v1/{number:02x}")));
    let empty = folders.find(|folder| !folder.exists()).expect("120 blobs leave some");
    fs::create_dir(&empty).expect("makes an empty one");
    fs::create_dir_all(root.join("blobs-v99/ab")).expect("makes another version's");
    let info = || cache.store.contents().expect("looks").total;
    assert_eq!(info(), du(root));
    cache.collect(Limits::default());
    assert!(!empty.exists());
    let half = info() / 2;
    let collected = cache.collect(Limits { max_size: Some(half), ..Limits::default() });
    assert!(du(root) <= half, "{collected:?}");
    assert_eq!((collected.kept, info()), (du(root), du(root)));
    let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
    let cleared = collector.collect(&Limits::NOTHING, 0).expect("clears");
    assert_eq!(cleared.kept, du(root));
    for bucket in ["blobs-v1", "ledger-v1"] {
        assert_eq!(list(&root.join(bucket)).expect("lists").len(), 0, "{bucket}");
    }
}

#[test]
fn folders_stay_where_a_builder_may_be_about_to_use_them() {
    let cache = Cache::new();
    let folder = cache.store.root().join("blobs-v1/zz");
    fs::create_dir(&folder).expect("makes an empty one");
    let blind = Collector { store: &cache.store, lock: None, _gate: None, may_write: true };
    blind.collect(&Limits::NOTHING, 0).expect("clears");
    assert!(folder.exists());
}

#[test]
fn the_ceiling_is_kept_and_what_is_cheap_to_have_again_goes_first() {
    let cache = Cache::new();
    let [archive, fragment, layer] = cache.image("x", 900);
    let total = cache.store.contents().expect("looks").total;
    for (most, left) in
        [(total, [true, true, true]), (total - 1, [false, true, true]), (total - 13_000, [false, false, true])]
    {
        let collected = cache.collect(Limits { max_size: Some(most), ..Limits::default() });
        assert!(collected.kept <= most, "{collected:?}");
        assert_eq!(cache.has(&[archive, fragment, layer]), left, "{most}");
        assert_eq!(cache.store.contents().expect("looks").total, collected.kept);
    }
    let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
    collector.collect(&Limits::NOTHING, 0).expect("clears");
    assert_eq!(cache.has(&[archive, fragment, layer]), [false; 3]);
}

#[test]
fn what_is_somebody_elses_is_left_alone_and_drives_nothing_out() {
    let cache = Cache::new();
    let digests = cache.image("x", 900);
    let store = &cache.store;
    let before = store.contents().expect("looks");
    let mut others = Vec::new();
    for bucket in ["blobs", "ledger"] {
        let bucket = store.bucket(bucket);
        let (fan, _) = list(&bucket).expect("lists").remove(0);
        for folder in [fan.join("@eaDir"), fan.join(Digest::of(b"a folder").hex()), bucket.join("lost+found")] {
            fs::create_dir(&folder).expect("makes");
            others.push(folder);
        }
        for file in [fan.join(".nfs0001"), fan.join("@eaDir/x"), bucket.join("note"), bucket.join("lost+found/x")] {
            fs::write(&file, [1; KILO]).expect("writes");
            others.push(file);
        }
        std::os::unix::fs::symlink("/", fan.join(Digest::of(b"a link").hex())).expect("links");
    }
    let is_there = |path: &PathBuf| path.exists();
    let contents = store.contents().expect("looks");
    assert_eq!(contents.classes, before.classes);
    assert_eq!(contents.total, du(store.root()));
    let mut exported = Vec::new();
    let amount = store.export(&mut exported, 0).expect("exports");
    let elsewhere = Cache::new();
    let imported = elsewhere.store.import(&mut exported.as_slice()).expect("imports");
    assert_eq!((amount.count, imported.added.count, imported.refused), (6, 6, 0));
    let collector = store.collector(Waiting::No).expect("locks").expect("nobody builds");
    let records = collector.verify_records(|_, _| ()).expect("reads");
    let blobs = collector.verify_blobs(2, |_, _| Ok(())).expect("reads");
    assert!(records.read == 3 && records.damaged.is_empty() && records.unread.is_empty());
    assert!(blobs.read == 3 && blobs.damaged.is_empty() && blobs.unread.is_empty());
    drop(collector);
    // It drives nothing out.
    cache.collect(Limits { max_size: Some(before.total), ..Limits::default() });
    assert_eq!(cache.has(&digests), [true; 3]);
    let collected = cache.collect(Limits::NOTHING);
    assert_eq!(cache.has(&digests), [false; 3]);
    assert!(others.iter().all(is_there) && collected.kept + collected.others == du(store.root()));
}

#[test]
fn space_that_must_stay_free_is_made() {
    let cache = Cache::new();
    let digests = cache.image("x", 900);
    cache.collect(Limits { min_free: Some(0), ..Limits::default() });
    assert_eq!(cache.has(&digests), [true; 3]);
    cache.collect(Limits { min_free: Some(u64::MAX), ..Limits::default() });
    assert_eq!(cache.has(&digests), [false; 3]);
}

#[test]
fn leftovers_incomplete_downloads_and_other_versions_are_seen() {
    let cache = Cache::new();
    fs::write(cache.store.scratch().join("half"), [1; KILO]).expect("writes");
    let partial = cache.store.partial_path(&Digest::of(b"x"));
    fs::write(&partial, [1; KILO]).expect("writes");
    age(&partial, 100);
    let other = cache.store.root().join("blobs-v99/ab");
    fs::create_dir_all(&other).expect("makes");
    fs::write(other.join("x"), [1; KILO]).expect("writes");
    let contents = cache.store.contents().expect("looks");
    assert_eq!(contents.classes[&Class::Partial].count, 1);
    assert!(contents.classes[&Class::OtherVersion].bytes >= KILO as u64);
    let collected = cache.collect(Limits { max_age: Some(500), ..Limits::default() });
    assert_eq!(collected.leftovers.count, 1);
    assert!(!partial.exists() && other.exists(), "another version's folder is as young as this test");
    let total = cache.store.contents().expect("looks").total;
    cache.collect(Limits { max_size: Some(total - 1), ..Limits::default() });
    assert!(!other.exists());
}

/// A dry run takes no lock: files come and go beside it.
#[test]
fn a_dry_run_beside_a_builder_counts_what_it_writes_once() {
    let cache = Cache::new();
    let scratch = cache.store.scratch();
    let before = cache.store.contents().expect("looks");
    std::thread::scope(|scope| {
        let builder = scope.spawn(|| {
            for number in 0..500 {
                fs::write(scratch.join((number % 8).to_string()), vec![1; (number % 8) << 16]).expect("writes");
            }
        });
        loop {
            let would = cache.store.would_collect(&Limits::default(), 1000).expect("looks");
            assert!(would.removed.is_empty() && would.kept == before.total, "{would:?}");
            if builder.is_finished() {
                break;
            }
        }
    });
    let contents = cache.store.contents().expect("looks");
    assert!(contents.total >= before.total + (28 << 16), "{contents:?}");
}

#[test]
fn bit_rot_is_found_and_removed() {
    let cache = Cache::new();
    let [archive, fragment, layer] = cache.image("x", 900);
    let path = cache.store.blob_path(&fragment);
    let mut bytes = fs::read(&path).expect("reads");
    bytes[4000] ^= 1;
    fs::remove_file(&path).expect("removes");
    fs::write(&path, bytes).expect("writes");
    let key = cache.record("fragment", &[layer], &[layer], 1);
    fs::write(cache.store.record_path(&key), "damage").expect("damages");
    let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
    let mut heard = Vec::new();
    let records = collector.verify_records(|key, _| heard.push(key)).expect("reads");
    assert_eq!((records.read, records.damaged, records.unread.len()), (4, vec![key], 0));
    assert!(heard.len() == 3 && !heard.contains(&key));
    let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let each = |blob: &Blob, file| {
        assert_eq!(crate::hash(file).expect("reads"), blob.digest);
        seen.lock().expect("no panic").insert(blob.digest);
        Ok(())
    };
    let blobs = collector.verify_blobs(2, each).expect("reads");
    assert_eq!((blobs.read, blobs.damaged, blobs.unread.len()), (3, vec![fragment], 0));
    assert_eq!(seen.into_inner().expect("no panic"), [archive, layer].into());
    assert_eq!(cache.has(&[archive, fragment, layer]), [true, false, true]);
    assert_eq!(cache.store.find(&key).expect("looks"), None);
    // One that cannot be read keeps nobody from the others, and stays.
    let each = |blob: &Blob, _| match blob.digest == archive {
        true => Err(CacheError::at(&path)(io::ErrorKind::PermissionDenied.into())),
        false => Ok(()),
    };
    let blobs = collector.verify_blobs(1, each).expect("reads the others");
    assert_eq!((blobs.read, blobs.damaged, blobs.unread.len()), (1, vec![], 1));
    assert_eq!(cache.has(&[archive, layer]), [true, true]);
    collector.reject([heard[0]]).expect("removes");
    assert_eq!(cache.store.find(&heard[0]).expect("looks"), None);
}

#[test]
fn builders_that_begin_wait_behind_a_collector_that_waits() {
    let cache = Cache::new();
    let (said, heard) = std::sync::mpsc::channel();
    let first = cache.store.hold().expect("holds");
    let collects = {
        let (store, said) = (cache.store.clone(), said.clone());
        std::thread::spawn(move || {
            let collector = store.collector(Waiting::Yes).expect("locks").expect("waits");
            said.send("collects").expect("is heard");
            drop(collector);
        })
    };
    // Who begins before the collector has come passes it.
    let builds = loop {
        let (waits, waited) = std::sync::mpsc::channel();
        let (store, said) = (cache.store.clone(), said.clone());
        let builds = std::thread::spawn(move || {
            let hold = store.hold_after(move || waits.send(()).expect("is heard"));
            said.send("builds").expect("is heard");
            hold.map(drop).expect("holds");
        });
        if waited.recv().is_ok() {
            break builds;
        }
        assert_eq!(heard.recv(), Ok("builds"));
    };
    assert!(heard.try_recv().is_err(), "the first builder is at work");
    drop(first);
    assert_eq!(heard.recv(), Ok("collects"));
    assert_eq!(heard.recv(), Ok("builds"));
    for thread in [collects, builds] {
        thread.join().expect("no panic");
    }
}

#[test]
fn who_waits_for_a_while_gives_up_and_keeps_nobody_waiting_then() {
    let cache = Cache::new();
    let hold = cache.store.hold().expect("holds");
    let short = Waiting::AtMost(Duration::from_millis(20));
    assert!(cache.store.collector(short).expect("locks").is_none());
    cache.store.hold_after(|| panic!("nobody collects")).expect("holds");
    drop(hold);
    let collector = cache.store.collector(short).expect("locks").expect("nobody builds");
    assert!(collector.is_alone() && cache.store.collector(short).expect("locks").is_none());
}

#[test]
fn a_collector_waits_for_builders_and_builders_for_it() {
    let cache = Cache::new();
    let first = cache.store.hold().expect("holds");
    let second = cache.store.hold().expect("builders share");
    assert!(cache.store.collector(Waiting::No).expect("locks").is_none());
    drop((first, second));
    let collector = cache.store.collector(Waiting::No).expect("locks").expect("nobody builds");
    let store = cache.store.clone();
    let builder = std::thread::spawn(move || store.hold().map(drop));
    drop(collector);
    builder.join().expect("no panic").expect("holds");
}
