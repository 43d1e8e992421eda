//! A catalogue's plan and the files around it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use layers::lock::Lock;
use layers::{Plan, PlannedImage, StageId};

use crate::error::Failure;
use crate::output::check_replaceable;

/// A plan, and where its lock, its bases and its build context are.
#[derive(Debug, Clone)]
pub struct Project {
    /// The plan.
    pub plan: Plan,
    /// The folder that base layouts are relative to.
    pub home: PathBuf,
    /// Where `images.lock` is.
    pub lock_path: PathBuf,
    /// The build context.
    pub context: PathBuf,
    /// The lock's absolute path, once it was asked for.
    lock_place: OnceLock<PathBuf>,
}

impl Project {
    /// A catalogue from outside: a crate's folder, a program that prints a plan, or a plan's JSON. Its lock is
    /// `images.lock` beside it, and its folder is the build context unless `context` says otherwise.
    pub fn of_catalogue(at: &Path, context: Option<PathBuf>, lock: Option<PathBuf>) -> Result<Project, Failure> {
        let metadata = fs::metadata(at).map_err(|error| {
            Failure::usage(format!("the catalogue `{}` cannot be read: {error}", at.display()))
                .hint("`--catalogue` takes the folder of a catalogue crate, a program that prints a plan, or a plan's JSON file")
        })?;
        let text = if metadata.is_dir() {
            let manifest = at.join("Cargo.toml");
            let mut cargo = Command::new("cargo");
            cargo.args(["run", "--quiet", "--manifest-path"]).arg(&manifest);
            output(cargo, "cargo run", at)?
        } else if at.extension().is_some_and(|extension| extension == "json") {
            fs::read_to_string(at)
                .map_err(|error| Failure::usage(format!("`{}` cannot be read: {error}", at.display())))?
        } else {
            // A bare name would be looked up in PATH.
            let program = fs::canonicalize(at)
                .map_err(|error| Failure::usage(format!("`{}` cannot be run: {error}", at.display())))?;
            output(Command::new(program), "the catalogue", at)?
        };
        let plan = Plan::from_json(&text).map_err(|error| {
            Failure::usage(format!("the catalogue `{}` gave no usable plan: {error}", at.display()))
        })?;
        let home =
            if metadata.is_dir() { at.to_path_buf() } else { at.parent().unwrap_or(Path::new("")).to_path_buf() };
        let home = if home.as_os_str().is_empty() { PathBuf::from(".") } else { home };
        Ok(Project::new(plan, home, context, lock))
    }

    /// A plan with the folder of its catalogue. Its lock is `images.lock` there, and the folder is the build context, unless they are said.
    pub fn new(plan: Plan, home: PathBuf, context: Option<PathBuf>, lock: Option<PathBuf>) -> Project {
        Project {
            plan,
            lock_path: lock.unwrap_or_else(|| home.join("images.lock")),
            context: context.unwrap_or_else(|| home.clone()),
            home,
            lock_place: OnceLock::new(),
        }
    }

    /// The lock's absolute path, links resolved: the same from whichever folder it is asked.
    pub fn lock_place(&self) -> &Path {
        self.lock_place.get_or_init(|| fs::canonicalize(&self.lock_path).unwrap_or_else(|_| self.lock_path.clone()))
    }

    /// The lock; `None` where there is none yet.
    pub fn read_lock(&self) -> Result<Option<Lock>, Failure> {
        read_lock(&self.lock_path)
    }

    /// The lock, which has to be there.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let missing = || Failure::work(format!("there is no lock at `{}`", self.lock_path.display()));
        self.read_lock()?.ok_or_else(|| missing().hint("run `imgbuild lock`"))
    }

    /// Chooses images by name; all where none is named.
    pub fn images(&self, names: &[String]) -> Result<Vec<(&str, &PlannedImage)>, Failure> {
        if names.is_empty() {
            return Ok(self.plan.images.iter().map(|(name, image)| (name.as_str(), image)).collect());
        }
        let mut chosen: Vec<(&str, &PlannedImage)> = Vec::new();
        for name in names {
            match self.plan.images.get_key_value(name) {
                Some((name, _)) if chosen.iter().any(|(known, _)| known == name) => {}
                Some((name, image)) => chosen.push((name, image)),
                None => {
                    let known: Vec<&str> = self.plan.images.keys().map(String::as_str).collect();
                    let failure =
                        Failure::usage(format!("the catalogue `{}` has no image `{name}`", self.plan.catalogue));
                    return Err(match crate::names::nearest(name, known.iter().copied()) {
                        Some(near) => failure.hint(format!("did you mean `{near}`?")),
                        None => failure.hint(format!("it has {}", known.join(", "))),
                    });
                }
            }
        }
        Ok(chosen)
    }
}

/// Reads a lock; `None` where there is none.
pub fn read_lock(path: &Path) -> Result<Option<Lock>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => {
            Lock::from_text(&text).map(Some).map_err(|error| Failure::work(format!("`{}`: {error}", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::work(format!("`{}` cannot be read: {error}", path.display()))),
    }
}

/// Writes a file whole or not at all.
pub fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error: io::Error| Failure::work(format!("`{}` cannot be written: {error}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    check_replaceable(path).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// All stages that `tops` stand on or take from, themselves included.
pub fn reachable(plan: &Plan, tops: impl IntoIterator<Item = StageId>) -> BTreeSet<StageId> {
    let mut found = BTreeSet::new();
    let mut pending: Vec<StageId> = tops.into_iter().collect();
    while let Some(id) = pending.pop() {
        if !found.insert(id) {
            continue;
        }
        let step = &plan.stages[id.0].step;
        pending.extend(step.below().into_iter().chain(step.taken()));
    }
    found
}

/// Runs a program that prints a plan; what it says on stderr goes to the user's.
fn output(mut command: Command, what: &str, at: &Path) -> Result<String, Failure> {
    let done = command
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| Failure::usage(format!("{what} cannot be started for `{}`: {error}", at.display())))?;
    if !done.status.success() {
        return Err(Failure::work(format!("{what} failed for `{}`: {}", at.display(), done.status)));
    }
    String::from_utf8(done.stdout)
        .map_err(|_| Failure::usage(format!("the catalogue `{}` printed something that is not text", at.display())))
}
