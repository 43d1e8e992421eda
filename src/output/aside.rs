//! A large file in the making, beside the place where it will be.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use tempfile::{NamedTempFile, TempPath};

/// Begins the file that is to be renamed to `to`, as `.NAME.partial`. Its lock dies with its process: who writes the same file
/// next takes over what a writer that was killed has left.
pub(crate) fn begin(to: &Path) -> io::Result<NamedTempFile> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".partial");
    let path = folder.join(name);
    match taken(&path) {
        Some(file) => Ok(NamedTempFile::from_parts(file, TempPath::try_from_path(path)?)),
        None => NamedTempFile::new_in(folder),
    }
}

/// The file at `path`, empty; `None` where another writer is at it, or it is no file of ours, or there are no locks.
fn taken(path: &Path) -> Option<File> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).ok()?);
    let own = file.metadata().ok()?;
    // Somebody else's could be changed by them later.
    if !own.is_file() || own.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return None,
        Err(TryLockError::Error(_)) => {
            let _ = fs::remove_file(path);
            return None;
        }
    }
    // Its last writer may have renamed it before its lock was free.
    let there = fs::symlink_metadata(path).ok()?;
    let same = (own.dev(), own.ino()) == (there.dev(), there.ino()) && there.nlink() == 1;
    (same && file.set_len(0).is_ok()).then_some(file)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_a_killed_writer_left_is_taken_over_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let (to, partial) = (folder.path().join("a.tar"), folder.path().join(".a.tar.partial"));
        let names = || fs::read_dir(folder.path()).expect("lists").count();
        fs::write(&partial, "longer than what comes").expect("writes");
        let mut first = begin(&to).expect("begins");
        assert_eq!(first.path(), partial);
        let mut second = begin(&to).expect("begins");
        assert_ne!(second.path(), partial, "the first is at it");
        first.write_all(b"first").expect("writes");
        second.write_all(b"second").expect("writes");
        first.persist(&to).expect("renames");
        assert_eq!(fs::read(&to).expect("reads"), b"first");
        second.persist(&to).expect("renames");
        assert_eq!(fs::read(&to).expect("reads"), b"second");
        assert_eq!(names(), 1);
        drop(begin(&to).expect("begins"));
        assert_eq!(names(), 1, "who fails leaves nothing");
        fs::write(folder.path().join("other"), "mine").expect("writes");
        for link in [true, false] {
            let _ = fs::remove_file(&partial);
            match link {
                true => symlink("other", &partial).expect("links"),
                false => fs::hard_link(folder.path().join("other"), &partial).expect("links"),
            }
            begin(&to).expect("begins").write_all(b"not there").expect("writes");
            assert_eq!(fs::read(folder.path().join("other")).expect("reads"), b"mine");
        }
    }
}
