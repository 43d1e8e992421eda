//! A large file in the making, beside the place where it will be.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use tempfile::NamedTempFile;

use super::UNFINISHED;

/// Longer names would leave no room for what is added, bytes.
const LONGEST: usize = 200;

/// Begins the file that is to be renamed to `to`, under a name that nobody else has: `.imgbuild-NAME.RANDOM`. Its lock dies with its
/// process: who writes the same file next removes what writers that were killed have left. Others may read what the user's mask lets them.
pub(crate) fn begin(to: &Path) -> io::Result<NamedTempFile> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = OsString::from(UNFINISHED);
    let name = to.file_name().unwrap_or_default().as_bytes();
    prefix.push(OsStr::from_bytes(&name[..name.len().min(LONGEST)]));
    prefix.push(".");
    sweep(folder, &prefix);
    loop {
        let mode = fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(&prefix).permissions(mode).tempfile_in(folder)?;
        match file.as_file().try_lock() {
            // Another writer may have taken it for left before it was locked.
            Ok(()) if !is_at(file.as_file(), file.path()) => {}
            Err(TryLockError::WouldBlock) => {}
            // Where there are no locks, nobody removes anything.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
        }
    }
}

/// Removes the files whose names begin so that are ours, and that no process holds.
fn sweep(folder: &Path, prefix: &OsStr) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes())
            && let Some(file) = own(&path)
            && file.try_lock().is_ok()
            && is_at(&file, &path)
        {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(&path);
        }
    }
}

/// A regular file that has no other name and belongs to this user.
fn own(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty()).ok()?);
    let it = file.metadata().ok()?;
    (it.is_file() && it.nlink() == 1 && it.uid() == rustix::process::geteuid().as_raw()).then_some(file)
}

/// Whether a path still names an open file.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |it: &fs::Metadata| (it.dev(), it.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(open), Ok(there)) if id(&open) == id(&there))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("a.tar");
        let names = || fs::read_dir(folder.path()).expect("lists").count();
        fs::write(folder.path().join(".imgbuild-a.tar.left"), "left").expect("writes");
        let mut first = begin(&to).expect("begins");
        assert_eq!(names(), 1, "what was left is gone");
        let mut second = begin(&to).expect("begins");
        assert_eq!(names(), 2, "the first is at it");
        first.write_all(b"first").expect("writes");
        second.write_all(b"second").expect("writes");
        first.persist(&to).expect("renames");
        assert_eq!(fs::read(&to).expect("reads"), b"first");
        second.persist(&to).expect("renames");
        assert_eq!(fs::read(&to).expect("reads"), b"second");
        assert_eq!(names(), 1);
        drop(begin(&to).expect("begins"));
        assert_eq!(names(), 1, "who fails leaves nothing");

        // Links, what has another name, folders, and what belongs to another archive or to nobody.
        fs::write(folder.path().join("other"), "mine").expect("writes");
        symlink("other", folder.path().join(".imgbuild-a.tar.link")).expect("links");
        fs::hard_link(folder.path().join("other"), folder.path().join(".imgbuild-a.tar.hard")).expect("links");
        fs::create_dir(folder.path().join(".imgbuild-a.tar.folder")).expect("makes a folder");
        fs::write(folder.path().join(".imgbuild-b.tar.left"), "").expect("writes");
        fs::write(folder.path().join(".a.tar.partial"), "").expect("writes");
        let before = names();
        drop(begin(&to).expect("begins"));
        assert_eq!(names(), before);
        assert_eq!(fs::read(folder.path().join("other")).expect("reads"), b"mine");
    }

    #[test]
    fn a_name_as_long_as_names_may_be_has_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("n".repeat(255));
        begin(&to).expect("begins").persist(&to).expect("renames");
    }
}
