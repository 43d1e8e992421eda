//! A stage as a folder of the host, for a command to look at.
//!
//! Only what an ordinary user may write is written: all belongs to whoever builds, whatever owner an entry has, so that the
//! command sees the same for everybody; devices, extended attributes and the bits that lend a program its owner's rights
//! are left out.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use layers::ImagePath;
use layers::encode::{Entry, Kind, MEMBER_SIZE};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::EngineError;
use super::tree::Tree as _;
use super::view::View;
use crate::parallel::Cores;

/// Part of the name of a folder that is kept: raised whenever the same stage would be written otherwise.
pub const VERSION: u32 = 3;

/// Writes a view as the new folder `to`, with up to `threads` threads, before anybody else gets a core. Nothing is followed: a path
/// whose parent is not a directory of the view is refused.
pub fn write(view: &View<'_>, to: &Path, threads: usize, cores: &Cores) -> Result<(), EngineError> {
    fs::create_dir(to)?;
    let mut dirs: Vec<&Entry> = Vec::new();
    let mut made: BTreeSet<ImagePath> = BTreeSet::from([ImagePath::root()]);
    let mut others: Vec<(u32, u64, &Entry)> = Vec::new();
    for entry in view.below(&ImagePath::root()) {
        match view.place_of(&entry.path) {
            _ if entry.path.is_root() => dirs.push(entry),
            _ if entry.is_dir() => {
                folder(to, &entry.path, &mut made).map_err(failed(to, &entry.path))?;
                dirs.push(entry);
            }
            Some((fragment, offset)) => {
                if let Some(parent) = entry.path.parent() {
                    folder(to, &parent, &mut made).map_err(failed(to, &entry.path))?;
                }
                others.push((fragment, offset, entry));
            }
            None => {}
        }
    }
    // What lies in one member is inflated and written together; one wheel of thousands of files has many.
    others.sort_by_key(|(fragment, offset, _)| (*fragment, *offset));
    let member = |offset: u64| offset / MEMBER_SIZE as u64;
    let portions: Vec<&[(u32, u64, &Entry)]> =
        others.chunk_by(|one, next| (one.0, member(one.1)) == (next.0, member(next.1))).collect();
    // Not side by side: two that make files in one folder wait for each other.
    let half = portions.len().div_ceil(2);
    let portions: Vec<_> =
        (0..half).flat_map(|at| [Some(portions[at]), portions.get(half + at).copied()]).flatten().collect();
    cores.spread(threads, &portions, |entries| {
        let mut buffer = vec![0; BUFFER];
        entries.iter().try_for_each(|(_, _, entry)| other(view, to, entry, &mut buffer))
    })?;
    // The deepest first: a folder that cannot be written would keep out what goes into it, and its time would change.
    for entry in dirs.into_iter().rev() {
        let folder = File::open(place(to, &entry.path)).map_err(failed(to, &entry.path))?;
        folder.set_permissions(Permissions::from_mode(entry.mode & 0o1777 | 0o700)).map_err(failed(to, &entry.path))?;
        folder.set_modified(time(entry.mtime)).map_err(failed(to, &entry.path))?;
    }
    Ok(())
}

fn failed<'a>(to: &'a Path, path: &'a ImagePath) -> impl Fn(io::Error) -> EngineError + 'a {
    move |source| EngineError::Root { path: path.clone(), source: cache::explained(to)(source) }
}

/// Writes what is no directory.
fn other(view: &View<'_>, to: &Path, entry: &Entry, buffer: &mut [u8]) -> Result<(), EngineError> {
    let (at, failed) = (place(to, &entry.path), failed(to, &entry.path));
    match &entry.kind {
        Kind::File { .. } | Kind::Hardlink { .. } => {
            // Each name is a file of its own: a copy of the root, where there is no overlay, has no links either.
            let mut content = view.open(&entry.path)?;
            let mode = entry.mode & 0o777 | 0o400;
            let new = || File::options().write(true).create_new(true).mode(mode).open(&at);
            let mut file = new().map_err(&failed)?;
            copy(&mut content, &mut file, buffer).map_err(&failed)?;
            // The umask may have taken something away.
            if file.metadata().map_err(&failed)?.mode() & 0o777 != mode {
                file.set_permissions(Permissions::from_mode(mode)).map_err(&failed)?;
            }
            file.set_modified(time(entry.mtime)).map_err(&failed)?;
        }
        Kind::Symlink { target } => {
            std::os::unix::fs::symlink(target, &at).map_err(&failed)?;
            let time = Timespec { tv_sec: entry.mtime, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &at, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(error.into()))?;
        }
        Kind::Fifo => {
            rustix::fs::mknodat(CWD, &at, rustix::fs::FileType::Fifo, (entry.mode & 0o777).into(), 0)
                .map_err(|error| failed(error.into()))?;
        }
        Kind::Dir | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {}
    }
    Ok(())
}

/// Bytes that are handed to the kernel at once.
const BUFFER: usize = 128 << 10;

fn copy(from: &mut dyn Read, to: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match from.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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
