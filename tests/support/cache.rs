//! What lies in a cache.

use std::fs;
use std::path::{Path, PathBuf};

/// The files of a bucket, sorted.
pub fn bucket(cache: &Path, name: &str) -> Vec<PathBuf> {
    let folders = fs::read_dir(cache.join(name)).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let mut found: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    found.sort();
    found
}
