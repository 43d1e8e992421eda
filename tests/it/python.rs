//! Lock files as wheels for a target: what the readers share.

use std::collections::BTreeMap;
use std::io;

use imgbuild::python::{LockedSet, PythonError, Target, Wheel, read_lock, select};
use layers::Platform;
use layers::source::LockSelection;

/// A build context in memory.
pub struct Context(BTreeMap<String, Vec<u8>>);

impl Context {
    pub fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Context {
        Context(files.into_iter().map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())).collect())
    }

    pub fn lock(&self, selection: &LockSelection) -> Result<LockedSet, PythonError> {
        let read = |path: &str| self.0.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        read_lock(selection, &read)
    }
}

pub fn target(platform: Platform) -> Target {
    Target::trixie(platform, "3.13.5").unwrap()
}

/// The files chosen, one a line, or the error.
pub fn chosen(set: &Result<LockedSet, PythonError>, platform: Platform) -> String {
    let set = match set {
        Ok(set) => set,
        Err(error) => return error.to_string(),
    };
    match select(set, &target(platform)) {
        Ok(wheels) => wheels.iter().map(|Wheel { file, .. }| file.as_str()).collect::<Vec<_>>().join("\n"),
        Err(error) => error.to_string(),
    }
}

/// A SHA-256 as locks write it, all of one digit.
pub fn hash(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

/// The packages chosen as `name==version`, or the error.
pub fn versions(set: &Result<LockedSet, PythonError>, platform: Platform) -> String {
    let set = match set {
        Ok(set) => set,
        Err(error) => return error.to_string(),
    };
    match select(set, &target(platform)) {
        Ok(wheels) => {
            let labels: Vec<String> = wheels.iter().map(|wheel| format!("{}=={}", wheel.name, wheel.version)).collect();
            labels.join(" ")
        }
        Err(error) => error.to_string(),
    }
}
