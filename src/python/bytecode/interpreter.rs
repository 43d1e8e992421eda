//! The image's own interpreter, unpacked beside the build and started through its own loader.
//!
//! Nothing of the building machine takes part: no Python, no libc, no environment. The program is `ld-linux` of the
//! image's libc6 with the image's libraries, so it runs wherever the kernel runs programs of its architecture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use layers::ImagePath;
use layers::encode::Kind;

use super::CompileError;
use super::marshal::{TOO_DEEP, canonical};
use crate::parallel::{lock, unlocked};

/// What compiles; it reads sources from its standard input.
const PROGRAM: &str = include_str!("compile.py");

/// A file of the interpreter's packages.
pub struct Part {
    /// Where it lies in an image.
    pub path: ImagePath,
    /// A file, a symbolic link or a hardlink.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// A regular file's content.
    pub content: Vec<u8>,
}

/// An interpreter on this machine; its folder goes when the last user does.
pub struct Interpreter {
    folder: tempfile::TempDir,
    loader: PathBuf,
    libraries: PathBuf,
    python: String,
    workers: Mutex<Workers>,
    free: Condvar,
}

#[derive(Default)]
struct Workers {
    idle: Vec<Worker>,
    running: usize,
}

/// What the interpreter is linked with, in one release or another, and what loads it.
const LIBRARIES: [&str; 9] =
    ["ld-linux", "libc.so", "libm.so", "libz.so", "libexpat.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so"];

/// Files of the standard library that it starts with, and `os.py` and the folder `lib-dynload`, by which it knows where it is:
/// without them it looks at what this machine has. Whatever a source says that it is encoded in, one of `encodings` decodes it.
const MODULES: [&str; 9] =
    ["os", "abc", "codecs", "io", "linecache", "stringprep", "warnings", "_py_warnings", "_weakrefset"];

/// Whether a file of the packages is needed to start the interpreter and to compile. They have many more, and files cost time.
pub fn is_needed(path: &str) -> bool {
    let Some(below) = path.strip_prefix("/usr/lib/") else { return path.starts_with("/usr/bin/python3") };
    match below.split('/').collect::<Vec<_>>()[..] {
        [python, "encodings" | "lib-dynload", _] => python.starts_with("python3."),
        [python, file] if python.starts_with("python3.") => {
            file.strip_suffix(".py").is_some_and(|module| MODULES.contains(&module))
        }
        [_, file] => LIBRARIES.iter().any(|library| file.starts_with(library)),
        _ => false,
    }
}

impl Interpreter {
    /// Writes an interpreter into a new folder in `scratch`.
    pub fn unpack(
        scratch: &Path,
        python: &str,
        parts: impl IntoIterator<Item = Part>,
    ) -> Result<Arc<Interpreter>, CompileError> {
        fs::create_dir_all(scratch)?;
        let folder = tempfile::Builder::new().prefix("python-").tempdir_in(scratch)?;
        let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
        let mut loader = None;
        let mut libraries = None;
        for part in parts {
            let at = folder.path().join(part.path.relative());
            let above = at.parent().unwrap_or(folder.path());
            if folders.insert(above.to_path_buf()) {
                fs::create_dir_all(above)?;
            }
            let name = part.path.as_str().rsplit('/').next().unwrap_or_default();
            match part.kind {
                Kind::File { .. } => {
                    if name.starts_with("ld-linux") {
                        loader = Some(at.clone());
                    }
                    if name == "libc.so.6" {
                        libraries = Some(above.to_path_buf());
                    }
                    let mut file =
                        fs::OpenOptions::new().write(true).create_new(true).mode(part.mode & 0o755).open(&at)?;
                    file.write_all(&part.content)?;
                }
                Kind::Hardlink { target } => {
                    links.insert(at, folder.path().join(target.relative()));
                }
                // Absolute ones would lead out of the folder; neither the loader nor the interpreter has any.
                Kind::Symlink { target } if !target.starts_with('/') => symlink(target, &at)?,
                _ => {}
            }
        }
        for (at, target) in links {
            fs::hard_link(target, at)?;
        }
        let lacks = |what| CompileError::Incomplete { python: python.to_owned(), what };
        Ok(Arc::new(Interpreter {
            loader: loader.ok_or_else(|| lacks("the dynamic loader"))?,
            libraries: libraries.ok_or_else(|| lacks("libc.so.6"))?,
            python: python.to_owned(),
            folder,
            workers: Mutex::default(),
            free: Condvar::new(),
        }))
    }

    /// Compiles modules, each named by the path it will have, on up to `threads` processes; those that do not compile
    /// are not in the result, which keeps the order of the others.
    pub fn compile(
        &self,
        modules: &[(ImagePath, Vec<u8>)],
        threads: usize,
    ) -> Result<Vec<(ImagePath, Vec<u8>)>, CompileError> {
        let compiled: Mutex<BTreeMap<usize, Vec<u8>>> = Mutex::default();
        let numbered: Vec<usize> = (0..modules.len()).collect();
        // A process is asked for many modules, as handing one over costs more than compiling a small one.
        let portions: Vec<&[usize]> = numbered.chunks(PORTION).collect();
        crate::parallel::in_parallel(threads, &portions, |portion| {
            let mut worker = self.worker(threads)?;
            for &at in *portion {
                let (path, source) = &modules[at];
                match worker.compile(path, source) {
                    Ok(Some(pyc)) => {
                        lock(&compiled).insert(at, pyc);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.lost();
                        return Err(error);
                    }
                }
            }
            self.give_back(worker);
            Ok(())
        })?;
        let compiled = unlocked(compiled);
        Ok(compiled.into_iter().map(|(at, pyc)| (modules[at].0.clone(), pyc)).collect())
    }

    fn worker(&self, most: usize) -> Result<Worker, CompileError> {
        let mut workers = lock(&self.workers);
        loop {
            if let Some(worker) = workers.idle.pop() {
                return Ok(worker);
            }
            if workers.running < most.max(1) {
                workers.running += 1;
                drop(workers);
                return self.start().inspect_err(|_| self.lost());
            }
            workers = self.free.wait(workers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, worker: Worker) {
        lock(&self.workers).idle.push(worker);
        self.free.notify_one();
    }

    fn lost(&self) {
        lock(&self.workers).running -= 1;
        self.free.notify_one();
    }

    fn start(&self) -> Result<Worker, CompileError> {
        let program = self.folder.path().join("usr/bin").join(format!("python{}", self.python));
        let mut command = Command::new(&self.loader);
        command
            .arg("--library-path")
            .arg(&self.libraries)
            // The interpreter looks for its library beside the name that it was called by.
            .arg("--argv0")
            .arg(&program)
            .arg(&program)
            .args(["-s", "-S", "-P", "-B", "-W", "ignore", "-c", PROGRAM])
            .current_dir(self.folder.path())
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONHASHSEED", "0")
            // Constant expressions are computed with libm, whose last bit differs with fused multiplication.
            .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let failed = |source: io::Error| CompileError::Start { python: self.python.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        let (Some(sources), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Worker { child, sources, answers: io::BufReader::with_capacity(64 << 10, answers) })
    }
}

/// Modules that a process compiles before another one may have it.
const PORTION: usize = 24;

struct Worker {
    child: Child,
    sources: ChildStdin,
    answers: io::BufReader<ChildStdout>,
}

impl Worker {
    fn compile(&mut self, path: &ImagePath, source: &[u8]) -> Result<Option<Vec<u8>>, CompileError> {
        let died = |source: io::Error| CompileError::Died { path: path.clone(), source };
        let length = |length: usize| {
            u32::try_from(length).map(u32::to_le_bytes).map_err(|_| died(io::ErrorKind::FileTooLarge.into()))
        };
        let mut request = Vec::with_capacity(8 + path.as_str().len() + source.len());
        request.extend(length(path.as_str().len())?);
        request.extend(length(source.len())?);
        request.extend(path.as_str().as_bytes());
        request.extend(source);
        self.sources.write_all(&request).map_err(died)?;
        let mut answer = [0; 4];
        self.answers.read_exact(&mut answer).map_err(died)?;
        if answer == [0xff; 4] {
            return Ok(None);
        }
        let mut pyc = vec![0; u32::from_le_bytes(answer) as usize];
        self.answers.read_exact(&mut pyc).map_err(died)?;
        let Some((head, code)) = pyc.split_at_checked(16) else {
            return Err(died(io::ErrorKind::InvalidData.into()));
        };
        match canonical(code) {
            Ok(code) => Ok(Some([head, &code].concat())),
            Err(TOO_DEEP) => Ok(None),
            Err(source) => Err(CompileError::Marshal { path: path.clone(), source }),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has nothing to write, and a module that never stops compiling must not hold the build.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
