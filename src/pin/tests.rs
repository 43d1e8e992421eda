use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use cache::Store;
use layers::path;
use layers::source::{Files, files};

use super::*;

thread_local! {
    /// Called whenever this thread asks for the time.
    pub(super) static ASKED: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

fn context(paths: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, text) in paths {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("makes folders");
        fs::write(path, text).expect("writes");
    }
    folder
}

fn open(folder: &tempfile::TempDir) -> Context {
    Context::open(folder.path(), StatCache::default(), 2).expect("opens")
}

fn listing(folder: &tempfile::TempDir, files: &Files) -> Vec<String> {
    open(folder).select(files).expect("selects").entries.iter().map(|it| it.path.to_string()).collect()
}

#[test]
fn a_folder_gives_its_content_and_a_file_itself() {
    let folder = context(&[("src/a.py", "a"), ("src/lib/b.py", "b"), ("other", "c")]);
    assert_eq!(listing(&folder, &files("src", path!("/app"))), ["a.py", "lib", "lib/b.py"]);
    assert_eq!(listing(&folder, &files("src/a.py", path!("/app/a.py"))), [""]);
    assert_eq!(listing(&folder, &files(".", path!("/app"))), ["other", "src", "src/a.py", "src/lib", "src/lib/b.py"]);
    assert_eq!(listing(&folder, &files("src", path!("/app")).include(["**/b.py"])), ["lib", "lib/b.py"]);
    assert_eq!(listing(&folder, &files("src", path!("/app")).exclude(["lib"])), ["a.py"]);
}

#[test]
fn dockerignore_counts_from_the_context_and_exceptions_bring_folders_back() {
    let folder = context(&[("src/keep/x", ""), ("src/drop/y", ""), (".dockerignore", "src\n!src/keep\n")]);
    assert_eq!(listing(&folder, &files("src", path!("/app"))), ["keep", "keep/x"]);
}

#[test]
fn the_digest_changes_with_everything_that_reaches_the_image_and_nothing_else() {
    let digest =
        |folder: &tempfile::TempDir| open(folder).select(&files("src", path!("/app"))).expect("selects").digest;
    let folder = context(&[("src/a", "1"), ("src/b", "2")]);
    let before = digest(&folder);
    fs::write(folder.path().join("src/a"), "1").expect("touches");
    assert_eq!(digest(&folder), before);
    fs::write(folder.path().join("src/a"), "2").expect("writes");
    fs::write(folder.path().join("src/b"), "1").expect("writes");
    let swapped = digest(&folder);
    assert_ne!(swapped, before);
    fs::set_permissions(folder.path().join("src/a"), fs::Permissions::from_mode(0o755)).expect("sets the mode");
    let executable = digest(&folder);
    assert_ne!(executable, swapped);
    fs::create_dir(folder.path().join("src/empty")).expect("makes a folder");
    assert_ne!(digest(&folder), executable);
}

#[test]
fn one_byte_edited_with_size_and_mtime_restored_is_noticed() {
    let folder = context(&[("src/a", "one")]);
    let file = folder.path().join("src/a");
    let cache = tempfile::tempdir().expect("a folder");
    let store = Store::open_at(cache.path()).expect("opens");
    let digest = || {
        let context = Context::open(folder.path(), StatCache::load(&store, folder.path()), 1).expect("opens");
        let selection = context.select(&files("src", path!("/app"))).expect("selects");
        context.save_stats();
        selection.digest
    };
    let (now, hour) = (std::time::SystemTime::now(), std::time::Duration::from_secs(3600));
    for time in [now - hour, now + hour] {
        let write = |text: &str| {
            fs::write(&file, text).expect("writes");
            fs::File::options().write(true).open(&file).expect("opens").set_modified(time).expect("sets the time");
        };
        write("one");
        let before = digest();
        assert_eq!(digest(), before);
        write("two");
        assert_ne!(digest(), before);
    }
}

/// A file that is edited after it was looked at, in the tick of its last change, keeps its times. That is noticed only if the
/// moment that says whether these are old enough is one before it was looked at, so that no edit lies between the two.
#[test]
fn no_edit_lies_between_the_moment_that_counts_and_the_look_at_a_file() {
    let folder = context(&[("src/a", "one"), ("poetry.lock", "one")]);
    let context = open(&folder);
    let write = |root: &Path, text: &str| {
        for path in ["src/a", "poetry.lock"] {
            fs::write(root.join(path), text).expect("writes");
        }
    };
    let root = folder.path().to_owned();
    ASKED.set(Some(Box::new(move || write(&root, "two"))));
    let selected = context.select(&files("src", path!("/app"))).expect("selects");
    let SelectedKind::File { digest, .. } = selected.entries[0].kind else { panic!("{selected:?}") };
    assert_eq!(digest, Digest::of(b"two"));
    write(folder.path(), "one");
    assert_eq!(context.file_digest("poetry.lock").expect("reads"), Digest::of(b"two"));
    ASKED.set(None);
}

/// As a batch whose hashing takes longer than two seconds.
#[test]
fn however_long_hashing_takes_what_changed_when_it_was_looked_at_is_hashed_again() {
    let folder = context(&[("a", "one")]);
    let context = open(&folder);
    let old = folder.path().join("a");
    let metadata = fs::metadata(&old).expect("is there");
    let look = || FoundPath {
        path: "a".into(),
        kind: Found::File { executable: false, stat: stat::Signature::of(&metadata) },
    };
    let changed = metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec();
    for (seen, trusted) in [(changed, None), (changed + 3_000_000_000, Some(Digest::of(b"one")))] {
        context.pin("", vec![look()], seen).expect("hashes");
        assert_eq!(context.stats().digest("a", &stat::Signature::of(&metadata)), trusted);
    }
}

#[test]
fn what_leads_out_of_the_context_or_is_not_there_is_refused() {
    let outside = context(&[("secret", "s")]);
    let folder = context(&[("src/a", "")]);
    symlink(outside.path(), folder.path().join("out")).expect("links");
    let context = open(&folder);
    let select = |from: &str| context.select(&files(from, path!("/app")));
    for from in ["../x", "/etc/passwd", "src/../../x", "out/secret"] {
        assert!(matches!(select(from), Err(PinError::Outside { .. })), "{from}");
    }
    match select("scr") {
        Err(PinError::Missing { hint, .. }) => assert_eq!(hint.as_deref(), Some("src")),
        other => panic!("{other:?}"),
    }
    // A link itself is kept as a link, wherever it leads.
    let kept = context.select(&files(".", path!("/app"))).expect("selects");
    assert!(kept.entries.iter().any(|it| &*it.path == "out" && matches!(it.kind, SelectedKind::Symlink { .. })));
    assert!(matches!(context.open_file("out/secret"), Err(PinError::Outside { .. })));
}

#[test]
fn pipes_are_refused_by_name() {
    let folder = context(&[("src/a", "")]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path().join("src/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("makes a pipe");
    let error = open(&folder).select(&files("src", path!("/app"))).expect_err("refuses");
    assert!(error.to_string().contains("`src/pipe` in the build context is a named pipe"), "{error}");
}
