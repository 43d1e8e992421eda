//! Running imgbuild and other tools.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use super::shared;

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status; 128 and the signal where one ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(output: Output) -> Outcome {
        use std::os::unix::process::ExitStatusExt as _;
        let signal = output.status.signal().map_or(0, |signal| 128 + signal);
        Outcome {
            status: output.status.code().unwrap_or(signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It must have succeeded; gives its stdout.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.status, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }

    /// It must have failed with this status, and said all of this on stderr.
    #[track_caller]
    pub fn failure(self, status: i32, said: &[&str]) -> Outcome {
        assert_eq!(self.status, status, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        for text in said {
            assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked at"), "{}", self.stderr);
        self
    }
}

/// The command, open to SIGINT: who started the tests in the background of a script has made them deaf to it.
pub fn interruptible(command: &Command) -> Command {
    wrapped("env", &["--default-signal=INT"], command)
}

/// A command in the hands of another program, with its environment and folder.
pub fn wrapped(program: &str, words: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(program);
    wrapped.args(words).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// Runs a command to its end.
#[track_caller]
pub fn outcome(command: &mut Command) -> Outcome {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Outcome::of(output),
        Err(error) => {
            panic!("{command:?} cannot be run ({error}): `tests/tools target/tests` installs what is missing")
        }
    }
}

/// Runs a tool that must succeed; gives its stdout.
#[track_caller]
pub fn tool<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> String {
    outcome(Command::new(program).args(arguments)).success()
}

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program: the one of the build that the tests belong to, or the one that `IMGBUILD_TEST_BINARY` names.
pub fn binary() -> PathBuf {
    match std::env::var_os("IMGBUILD_TEST_BINARY") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_imgbuild").into(),
    }
}

/// Variables of the machine that would change what imgbuild does; a test that wants one sets it.
const UNSET: &[&str] = &[
    "SOURCE_DATE_EPOCH",
    "CI",
    "NO_COLOR",
    "CLICOLOR_FORCE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "IMGBUILD_CACHE_DIR",
    "IMGBUILD_CONFIG",
    "IMGBUILD_JOBS",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
];

/// A folder with a home, a cache and a place to work, deleted at the end. Where mirrors and indexes are is still read
/// from the machine.
#[derive(Debug)]
pub struct Sandbox {
    folder: tempfile::TempDir,
    cache: PathBuf,
}

/// Where sandboxes are. Those of processes that have ended are removed first, as far as that goes: one in a static is never
/// dropped, and one of a test that was killed has a gigabyte. Cargo would also take a catalogue that was compiled there for a new
/// one.
fn sandboxes() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = shared::folder("sandboxes");
        for old in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = old.file_name().to_string_lossy().into_owned();
            let process = name.split('.').next().and_then(|process| process.parse::<u32>().ok());
            if process.is_none_or(|process| !Path::new("/proc").join(process.to_string()).exists()) {
                // Another one may be at it, something be mounted there, or it be somebody else's.
                let mut remove = Command::new("rm");
                let _ = remove.args(["-rf", "--one-file-system"]).arg(old.path()).stderr(Stdio::null()).status();
            }
        }
        folder
    })
}

impl Sandbox {
    /// With an empty cache of its own.
    pub fn new() -> Sandbox {
        // On the disk of `target`: downloads get there by hard links, and a tmpfs would be small.
        let prefix = format!("{}.", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(sandboxes()).unwrap();
        for name in ["home", "work", "cache"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        // Nothing above the sandbox configures it.
        fs::write(folder.path().join("work/imgbuild.toml"), "").unwrap();
        let cache = folder.path().join("cache");
        Sandbox { folder, cache }
    }

    /// With a cache that others use, too.
    pub fn sharing(cache: &Path) -> Sandbox {
        Sandbox { cache: cache.into(), ..Sandbox::new() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    /// The working directory of commands.
    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Writes a file below the working directory.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// imgbuild, ready to be given more.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary());
        self.place(&mut command);
        command.args(arguments);
        command
    }

    /// Gives a command this home, cache and working directory.
    pub fn place(&self, command: &mut Command) {
        for name in UNSET {
            command.env_remove(name);
        }
        // pip's own file of the user who runs the tests may say where the index is.
        if let (None, Some(home)) = (std::env::var_os("PIP_CONFIG_FILE"), std::env::home_dir()) {
            let files = [".config/pip/pip.conf", ".pip/pip.conf"].map(|file| home.join(file));
            if let Some(file) = files.iter().find(|file| file.exists()) {
                command.env("PIP_CONFIG_FILE", file);
            }
        }
        command
            .env("HOME", self.home())
            .env("LC_ALL", "C.UTF-8")
            .env("IMGBUILD_CACHE_DIR", &self.cache)
            .current_dir(self.work());
    }

    /// Runs imgbuild.
    #[track_caller]
    pub fn imgbuild<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        outcome(&mut self.command(arguments))
    }
}
