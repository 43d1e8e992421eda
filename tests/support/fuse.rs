//! A file system that fails as it is told to: a folder behind FUSE (version 7.31 of its protocol, `linux/fuse.h`), served by a
//! thread of the test.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirEntryExt as _, FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// What is asked of the file system: a name of the operation, and the path below its root.
type Rule = Box<dyn FnMut(&str, &Path) -> Option<Errno> + Send>;

/// Where a rule gives this, nothing is answered before whoever asks is ended.
pub const SILENCE: Errno = Errno::INPROGRESS;

/// A mounted file system over a folder; unmounted at the end.
pub struct Faulty {
    at: PathBuf,
    rule: Arc<Mutex<Rule>>,
}

impl Faulty {
    /// Mounts `folder` at `at`, which is made. With `locks` the kernel keeps locks of files, else asking for one is an operation.
    pub fn mount(folder: &Path, at: &Path, locks: bool) -> Faulty {
        fs::create_dir_all(at).unwrap();
        let device =
            File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse is there, and this is root");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount("faulty", at, "fuse", MountFlags::empty(), CString::new(data).unwrap().as_c_str()).expect("mounts");
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_, _| None)));
        let mut served = Served {
            root: folder.into(),
            names: vec![PathBuf::new(), PathBuf::new()],
            numbers: HashMap::from([(PathBuf::new(), 1)]),
            open: HashMap::new(),
            last: 0,
            locks,
            rule: rule.clone(),
        };
        // It ends with the mount. Nobody waits for that: a process that hangs may hold a file.
        std::thread::spawn(move || served.run(device));
        Faulty { at: at.into(), rule }
    }

    /// From now on an operation fails where `rule` says so.
    pub fn set(&self, rule: impl FnMut(&str, &Path) -> Option<Errno> + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// The `number`-th of this operation fails; gives whether there was one.
    pub fn fail(&self, operation: &'static str, number: u32, error: Errno) -> Arc<AtomicBool> {
        let reached = Arc::new(AtomicBool::new(false));
        let (mut passed, failed) = (0, reached.clone());
        self.set(move |asked, _| {
            passed += u32::from(asked == operation);
            let fails = asked == operation && passed == number;
            failed.fetch_or(fails, Ordering::SeqCst);
            fails.then_some(error)
        });
        reached
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.set(|_, _| None);
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

struct Served {
    root: PathBuf,
    /// Paths by number; of one that is gone the last.
    names: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    /// Open files and the number that each was opened by.
    open: HashMap<u64, (u64, File)>,
    last: u64,
    locks: bool,
    rule: Arc<Mutex<Rule>>,
}

/// What follows the header of a request.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn u32(&mut self) -> u32 {
        let (now, rest) = self.0.split_at(4);
        self.0 = rest;
        u32::from_le_bytes(now.try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        let (now, rest) = self.0.split_at(8);
        self.0 = rest;
        u64::from_le_bytes(now.try_into().unwrap())
    }

    fn name(&mut self) -> &'a OsStr {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let (now, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        OsStr::from_bytes(now)
    }
}

/// The bytes of numbers one after the other.
fn words(wide: &[u64], narrow: &[u32]) -> Vec<u8> {
    let wide = wide.iter().flat_map(|it| it.to_le_bytes());
    wide.chain(narrow.iter().flat_map(|it| it.to_le_bytes())).collect()
}

fn attributes(of: &fs::Metadata) -> Vec<u8> {
    let wide = [of.ino(), of.size(), of.blocks(), of.atime() as u64, of.mtime() as u64, of.ctime() as u64];
    let nanos = [of.atime_nsec() as u32, of.mtime_nsec() as u32, of.ctime_nsec() as u32];
    let narrow = [of.mode(), of.nlink() as u32, of.uid(), of.gid(), of.rdev() as u32, of.blksize() as u32, 0];
    words(&wide, &[&nanos[..], &narrow].concat())
}

impl Served {
    fn run(&mut self, mut device: File) {
        let mut buffer = vec![0; 1 << 20];
        let mut unanswered = HashSet::new();
        loop {
            let length = match device.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::NotFound) => continue,
                // Unmounted.
                Err(_) => return,
            };
            let mut head = Body(&buffer[4..length]);
            let (opcode, unique, node) = (head.u32(), head.u64(), head.u64());
            let mut body = Body(&head.0[16..]);
            // FORGET, BATCH_FORGET: no answer.
            if matches!(opcode, 2 | 42) {
                continue;
            }
            let mut unique = unique;
            let (error, answer) = match opcode {
                // INTERRUPT: the end of what was not answered, else nothing.
                36 => {
                    unique = body.u64();
                    if !unanswered.remove(&unique) {
                        continue;
                    }
                    (Errno::INTR.raw_os_error(), Vec::new())
                }
                _ => match self.answer(opcode, node, &mut body) {
                    Ok(answer) => (0, answer),
                    Err(error) if error.raw_os_error() == Some(SILENCE.raw_os_error()) => {
                        unanswered.insert(unique);
                        continue;
                    }
                    Err(error) => (error.raw_os_error().unwrap_or(5), Vec::new()),
                },
            };
            let mut reply = words(&[], &[16 + answer.len() as u32, (-error) as u32]);
            reply.extend(unique.to_le_bytes());
            reply.extend(answer);
            // Who asked may be gone.
            let _ = device.write_all(&reply);
        }
    }

    fn path(&self, node: u64) -> PathBuf {
        self.root.join(&self.names[node as usize])
    }

    fn number(&mut self, path: &Path) -> u64 {
        if let Some(known) = self.numbers.get(path) {
            return *known;
        }
        self.names.push(path.into());
        self.numbers.insert(path.into(), self.names.len() as u64 - 1);
        self.names.len() as u64 - 1
    }

    /// What is at `from`, and below it, is at `to`; what was there is gone.
    fn moved(&mut self, from: &Path, to: &Path) {
        self.numbers.remove(to);
        for number in 1..self.names.len() {
            let name = self.names[number].clone();
            if self.numbers.get(&name) == Some(&(number as u64))
                && let Ok(rest) = name.strip_prefix(from)
            {
                let name = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
                self.numbers.remove(&self.names[number]);
                self.names[number] = name.clone();
                self.numbers.insert(name, number as u64);
            }
        }
    }

    /// What is known of a file, also of one without a name that is open.
    fn metadata(&self, node: u64) -> io::Result<fs::Metadata> {
        match self.open.values().find(|(of, _)| *of == node) {
            Some((_, file)) => file.metadata(),
            None => fs::symlink_metadata(self.path(node)),
        }
    }

    fn entry(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let metadata = fs::symlink_metadata(self.root.join(path))?;
        // Nothing is remembered by the kernel: every question comes here.
        Ok([words(&[self.number(path), 0, 0, 0], &[0, 0]), attributes(&metadata)].concat())
    }

    fn opened(&mut self, node: u64, file: File) -> Vec<u8> {
        self.last += 1;
        self.open.insert(self.last, (node, file));
        // Directly: no page is kept, so that every byte is asked for here.
        words(&[self.last], &[1, 0])
    }

    fn answer(&mut self, opcode: u32, node: u64, body: &mut Body<'_>) -> io::Result<Vec<u8>> {
        let operation = match opcode {
            1 => "lookup",
            3 => "getattr",
            4 => "setattr",
            5 => "readlink",
            6 => "symlink",
            9 => "mkdir",
            10 => "unlink",
            11 => "rmdir",
            12 | 45 => "rename",
            13 => "link",
            14 => "open",
            15 => "read",
            16 => "write",
            17 => "statfs",
            25 => "flush",
            27 => "opendir",
            28 => "readdir",
            32 | 33 => "lock",
            35 => "create",
            _ => "",
        };
        if !operation.is_empty() {
            let path = self.names.get(node as usize).cloned().unwrap_or_default();
            if let Some(error) = (self.rule.lock().unwrap())(operation, &path) {
                return Err(error.into());
            }
        }
        let below = |served: &Served, name: &OsStr| served.names[node as usize].join(name);
        Ok(match opcode {
            // INIT: large writes, and locks if they are asked for here.
            26 => {
                let (_, _, ahead) = (body.u32(), body.u32(), body.u32());
                let flags = (1 << 5) | if self.locks { 0 } else { 1 << 10 };
                let mut answer = words(&[], &[7, 31, ahead, flags, 0, 128 << 10, 1, 0]);
                answer.resize(64, 0);
                answer
            }
            1 => {
                let path = below(self, body.name());
                self.entry(&path)?
            }
            3 => [words(&[0, 0], &[]), attributes(&self.metadata(node)?)].concat(),
            4 => {
                let (valid, _, handle, size) = (body.u32(), body.u32(), body.u64(), body.u64());
                let (_, atime, mtime, _) = (body.u64(), body.u64(), body.u64(), body.u64());
                let (atime_nsec, mtime_nsec, _, mode) = (body.u32(), body.u32(), body.u32(), body.u32());
                let (_, uid, gid) = (body.u32(), body.u32(), body.u32());
                let path = match self.open.get(&handle).filter(|_| valid & 64 != 0) {
                    Some((_, file)) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
                    None => self.path(node),
                };
                if valid & 1 != 0 {
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
                }
                if valid & 6 != 0 {
                    std::os::unix::fs::lchown(&path, (valid & 2 != 0).then_some(uid), (valid & 4 != 0).then_some(gid))?;
                }
                if valid & 8 != 0 {
                    File::options().write(true).open(&path)?.set_len(size)?;
                }
                if valid & 0b1_1011_0000 != 0 {
                    let time = |set: u32, now: u32, sec: u64, nsec: u32| match (valid & set != 0, valid & now != 0) {
                        (_, true) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                        (true, _) => Timespec { tv_sec: sec as i64, tv_nsec: nsec.into() },
                        _ => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                    };
                    let times = Timestamps {
                        last_access: time(16, 128, atime, atime_nsec),
                        last_modification: time(32, 256, mtime, mtime_nsec),
                    };
                    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
                }
                [words(&[0, 0], &[]), attributes(&self.metadata(node)?)].concat()
            }
            5 => fs::read_link(self.path(node))?.as_os_str().as_bytes().to_vec(),
            6 => {
                let (name, target) = (below(self, body.name()), body.name());
                std::os::unix::fs::symlink(target, self.root.join(&name))?;
                self.entry(&name)?
            }
            9 => {
                let (mode, _) = (body.u32(), body.u32());
                let path = below(self, body.name());
                rustix::fs::mkdir(self.root.join(&path), mode.into())?;
                self.entry(&path)?
            }
            10 | 11 => {
                let path = below(self, body.name());
                match opcode {
                    10 => fs::remove_file(self.root.join(&path))?,
                    _ => fs::remove_dir(self.root.join(&path))?,
                }
                self.numbers.remove(&path);
                Vec::new()
            }
            12 | 45 => {
                let to = body.u64();
                let flags = if opcode == 45 { (body.u32(), body.u32()).0 } else { 0 };
                let from = below(self, body.name());
                let to = self.names[to as usize].join(body.name());
                let flags = RenameFlags::from_bits_retain(flags);
                rustix::fs::renameat_with(CWD, self.root.join(&from), CWD, self.root.join(&to), flags)?;
                if flags.contains(RenameFlags::EXCHANGE) {
                    let (one, other) = (self.number(&from), self.number(&to));
                    self.names.swap(one as usize, other as usize);
                    self.numbers.insert(from, other);
                    self.numbers.insert(to, one);
                } else {
                    self.moved(&from, &to);
                }
                Vec::new()
            }
            13 => {
                let from = self.path(body.u64());
                let path = below(self, body.name());
                fs::hard_link(from, self.root.join(&path))?;
                self.entry(&path)?
            }
            14 => {
                let flags = body.u32();
                let write = flags & 3 != 0;
                let file = File::options()
                    .read(flags & 3 != 1)
                    .write(write)
                    .custom_flags((flags & 0o1000) as i32)
                    .open(self.path(node))?;
                self.opened(node, file)
            }
            35 => {
                let (flags, mode, _, _) = (body.u32(), body.u32(), body.u32(), body.u32());
                let path = below(self, body.name());
                let new = flags & 0o200 != 0;
                let mut options = File::options();
                options.read(true).write(true).mode(mode & 0o7777);
                let file =
                    if new { options.create_new(true) } else { options.create(true) }.open(self.root.join(&path))?;
                let entry = self.entry(&path)?;
                let node = self.number(&path);
                [entry, self.opened(node, file)].concat()
            }
            15 => {
                let (handle, offset, size) = (body.u64(), body.u64(), body.u32());
                let mut bytes = vec![0; size as usize];
                let mut had = 0;
                while had < bytes.len() {
                    match self.open[&handle].1.read_at(&mut bytes[had..], offset + had as u64)? {
                        0 => break,
                        count => had += count,
                    }
                }
                bytes.truncate(had);
                bytes
            }
            16 => {
                let (handle, offset, size) = (body.u64(), body.u64(), body.u32());
                let bytes = &body.0[20..][..size as usize];
                self.open[&handle].1.write_all_at(bytes, offset)?;
                words(&[], &[size, 0])
            }
            17 => {
                let of = rustix::fs::statvfs(&self.root)?;
                let wide = [of.f_blocks, of.f_bfree, of.f_bavail, of.f_files, of.f_ffree];
                words(&wide, &[of.f_bsize as u32, 255, of.f_frsize as u32, 0, 0, 0, 0, 0, 0, 0])
            }
            27 => words(&[0], &[0, 0]),
            28 => {
                let (_, offset, size) = (body.u64(), body.u64(), body.u32());
                let mut entries: Vec<fs::DirEntry> = fs::read_dir(self.path(node))?.collect::<io::Result<_>>()?;
                entries.sort_by_key(fs::DirEntry::file_name);
                let mut answer = Vec::new();
                for (at, entry) in entries.iter().enumerate().skip(offset as usize) {
                    let (name, kind) = (entry.file_name(), entry.file_type()?);
                    let kind = match kind {
                        kind if kind.is_dir() => FileType::Directory,
                        kind if kind.is_symlink() => FileType::Symlink,
                        kind if kind.is_fifo() => FileType::Fifo,
                        _ => FileType::RegularFile,
                    };
                    let mut one = words(&[entry.ino(), at as u64 + 1], &[name.len() as u32, kind.as_raw_mode() >> 12]);
                    one.extend(name.as_bytes());
                    one.resize(one.len().next_multiple_of(8), 0);
                    if answer.len() + one.len() > size as usize {
                        break;
                    }
                    answer.extend(one);
                }
                answer
            }
            // RELEASE, FLUSH, FSYNC, RELEASEDIR, DESTROY.
            18 => {
                self.open.remove(&body.u64());
                Vec::new()
            }
            20 | 25 | 29 | 38 => Vec::new(),
            32 | 33 => return Err(Errno::NOLCK.into()),
            _ => return Err(Errno::NOSYS.into()),
        })
    }
}
