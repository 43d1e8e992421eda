//! The same project on another machine, as another user: nothing in the cache but downloads.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::obelisk::link_downloads;
use super::run::{Sandbox, binary, tool};

/// A sandbox with the `files` of a project, the program, and only what the project's lock names in its cache, as far as the
/// project's cache has it; all belongs to `user`.
pub fn elsewhere(project: &Sandbox, files: &[&str], user: &str) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    for file in files {
        sandbox.write(file, fs::read(project.work().join(file)).unwrap());
    }
    bring_downloads(project, &sandbox);
    let program = sandbox.path().join("imgbuild");
    fs::copy(binary(), &program).unwrap();
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Folders only: the archives are links to files that others use.
    let folder = sandbox.path().to_str().unwrap();
    tool("find", [folder, "-type", "d", "-exec", "chown", &format!("{user}:{user}"), "{}", "+"]);
    (sandbox, program)
}

/// Links what a sandbox has downloaded into the cache of another one with the same lock.
pub fn bring_downloads(from: &Sandbox, to: &Sandbox) {
    let lock: Value = serde_json::from_slice(&fs::read(from.work().join("images.lock")).unwrap()).unwrap();
    link_downloads(&lock, &["linux/amd64", "linux/arm64"], from.cache(), to.cache());
}

/// The words of a build of `plan.json` for amd64 with this many threads, of downloads that are there.
pub fn words(jobs: &str) -> Vec<&str> {
    let build = ["--catalogue", "plan.json", "build", "--offline", "--locked", "--metadata-file", "built.json"];
    [&build[..], &["--platform", "amd64", "--jobs", jobs]].concat()
}

/// A shell's line that builds in a sandbox; more words may follow.
pub fn line(sandbox: &Sandbox, program: &Path, jobs: &str) -> String {
    let (home, cache, work) = (sandbox.home(), sandbox.cache().display(), sandbox.work());
    let variables = format!("export HOME={} IMGBUILD_CACHE_DIR={cache} TZ=America/Lima", home.display());
    format!("{variables}; cd {}; {} {}", work.display(), program.display(), words(jobs).join(" "))
}

/// What the metadata of the last build, `built.json`, tell of commands: of all images and platforms.
pub fn commands(sandbox: &Sandbox) -> Vec<Value> {
    let told: Value = serde_json::from_slice(&fs::read(sandbox.work().join("built.json")).unwrap()).unwrap();
    let images = told["images"].as_array().unwrap().iter();
    let platforms = images.flat_map(|image| image["platforms"].as_array().unwrap());
    platforms.flat_map(|platform| platform["commands"].as_array().unwrap().clone()).collect()
}
