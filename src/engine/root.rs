//! A stage as a folder of the host, for a command to look at.
//!
//! Only what an ordinary user may write is written: all belongs to whoever builds, whatever owner an entry has, so that the
//! command sees the same for everybody; devices, extended attributes and the bits that lend a program its owner's rights
//! are left out.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use layers::ImagePath;
use layers::encode::{Entry, Kind};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::EngineError;
use super::tree::Tree as _;
use super::view::View;
use crate::parallel::in_parallel;

/// Part of the name of a folder that is kept: raised whenever the same stage would be written otherwise.
pub const VERSION: u32 = 1;

/// Writes a view as the new folder `to`, with up to `threads` threads. Nothing is followed: a path whose parent is not a
/// directory of the view is refused.
pub fn write(view: &View<'_>, to: &Path, threads: usize) -> Result<(), EngineError> {
    fs::create_dir(to)?;
    let mut dirs: Vec<&Entry> = Vec::new();
    let mut made: BTreeSet<ImagePath> = BTreeSet::from([ImagePath::root()]);
    let mut others: Vec<(u32, u32, &Entry)> = Vec::new();
    for entry in view.below(&ImagePath::root()) {
        match view.place_of(&entry.path) {
            _ if entry.path.is_root() => dirs.push(entry),
            _ if entry.is_dir() => {
                folder(to, &entry.path, &mut made).map_err(failed(&entry.path))?;
                dirs.push(entry);
            }
            Some((fragment, position)) => {
                if let Some(parent) = entry.path.parent() {
                    folder(to, &parent, &mut made).map_err(failed(&entry.path))?;
                }
                others.push((fragment, position, entry));
            }
            None => {}
        }
    }
    // Neighbours in a fragment are inflated together, and hard links do not leave theirs. The largest first, so that no core
    // is left with a giant at the end.
    others.sort_unstable_by_key(|(fragment, position, _)| (*fragment, *position));
    let mut fragments: Vec<&[(u32, u32, &Entry)]> = others.chunk_by(|one, next| one.0 == next.0).collect();
    fragments.sort_by_key(|entries| std::cmp::Reverse(entries.len()));
    in_parallel(threads, &fragments, |entries| entries.iter().try_for_each(|(_, _, entry)| other(view, to, entry)))?;
    // The deepest first: a folder that cannot be written would keep out what goes into it, and its time would change.
    for entry in dirs.into_iter().rev() {
        let folder = File::open(place(to, &entry.path)).map_err(failed(&entry.path))?;
        folder.set_permissions(Permissions::from_mode(entry.mode & 0o1777 | 0o700)).map_err(failed(&entry.path))?;
        folder.set_modified(time(entry.mtime)).map_err(failed(&entry.path))?;
    }
    Ok(())
}

fn failed(path: &ImagePath) -> impl Fn(io::Error) -> EngineError + '_ {
    move |error| EngineError::Root { path: path.clone(), why: error.to_string() }
}

/// Writes what is no directory.
fn other(view: &View<'_>, to: &Path, entry: &Entry) -> Result<(), EngineError> {
    let at = place(to, &entry.path);
    match &entry.kind {
        Kind::File { .. } | Kind::Hardlink { .. } => {
            let linked = match &entry.kind {
                // The same file, unless another layer has put something else at its first name.
                Kind::Hardlink { target } if view.shares_content(&entry.path, target) => {
                    fs::hard_link(place(to, target), &at).is_ok()
                }
                _ => false,
            };
            if !linked {
                let mut content = view.open(&entry.path)?;
                let mut file = File::options().write(true).create_new(true).open(&at).map_err(failed(&entry.path))?;
                io::copy(&mut content, &mut file).map_err(failed(&entry.path))?;
                file.set_permissions(Permissions::from_mode(entry.mode & 0o777 | 0o400))
                    .map_err(failed(&entry.path))?;
                file.set_modified(time(entry.mtime)).map_err(failed(&entry.path))?;
            }
        }
        Kind::Symlink { target } => {
            std::os::unix::fs::symlink(target, &at).map_err(failed(&entry.path))?;
            let time = Timespec { tv_sec: entry.mtime, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &at, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed(&entry.path)(error.into()))?;
        }
        Kind::Fifo => {
            rustix::fs::mknodat(CWD, &at, rustix::fs::FileType::Fifo, (entry.mode & 0o777).into(), 0)
                .map_err(|error| failed(&entry.path)(error.into()))?;
        }
        Kind::Dir | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {}
    }
    Ok(())
}

fn place(to: &Path, path: &ImagePath) -> PathBuf {
    to.join(path.relative())
}

/// Makes a folder and those above it, each a real one: base images of others may lack the entries of parents.
fn folder(to: &Path, path: &ImagePath, made: &mut BTreeSet<ImagePath>) -> io::Result<()> {
    if made.contains(path) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        folder(to, &parent, made)?;
    }
    fs::create_dir(place(to, path))?;
    made.insert(path.clone());
    Ok(())
}

fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
