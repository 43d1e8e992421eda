//! Lock files and index pages that nobody meant: an error, never a panic.

use std::io;

use imgbuild::python::index::{Index, Indexes};
use imgbuild::python::markers::Marker;
use imgbuild::python::{Wheel, read_lock_bytes, select};
use layers::source::{LockSelection, pip_requirements, poetry_lock, pylock, uv_lock};
use layers::{Digest, Platform};
use proptest::prelude::*;

use crate::python::target;

/// A bit of each format, small enough that most changes hit something that matters.
const SEEDS: [&str; 4] = [
    "[[package]]\nname = \"a\"\nversion = \"1\"\ngroups = [\"main\"]\nmarkers = {main = \"os_name == 'posix'\"}\n\
     python-versions = \"^3.8 || >=3.9,<4\"\nfiles = [{file = \"a-1-py3-none-any.whl\", hash = \"sha256:00\"}]\n\
     [package.dependencies]\nb = {version = \"~1\", markers = \"extra == 'x'\"}\n\
     [metadata]\nlock-version = \"2.1\"\npython-versions = \"*\"\n",
    "version = 1\nrequires-python = \">=3.9\"\n[[package]]\nname = \"a\"\nversion = \"1\"\nsource = { virtual = \".\" }\n\
     dependencies = [{ name = \"b\", extra = [\"x\"], marker = \"python_version < '3.13'\" }]\n\
     [package.optional-dependencies]\nx = [{ name = \"a\", extra = [\"x\"] }]\n",
    "lock-version = \"1.0\"\nextras = [\"x\"]\nenvironments = [\"os_name == 'posix'\"]\n[[packages]]\nname = \"a\"\n\
     marker = \"'x' in extras or (python_full_version >= '3.13')\"\nversion = \"1\"\n\
     wheels = [{ url = \"https://x.example/a-1-py3-none-any.whl\", hashes = { sha256 = \"00\" } }]\n",
    "# x\na[b]==1.0 ; os_name == 'posix' \\\n --hash=sha256:00 --hash sha256:11\n-r b.txt\n-e .\nc @ https://x.example/c.whl\n",
];

fn selections() -> [LockSelection; 4] {
    [poetry_lock("l"), uv_lock("l"), pylock("l"), pip_requirements("l")]
}

fn read(format: usize, bytes: &[u8]) {
    let absent = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
    if let Ok(set) = read_lock_bytes(&selections()[format], bytes, &absent) {
        // Errors are fine, and so are choices; their texts must be makeable, too.
        let _ = select(&set, &target(Platform::Amd64)).map_err(|error| error.to_string());
    }
}

struct Page(Vec<u8>);

impl Index for Page {
    fn get(&self, _: &str, _: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(self.0.clone()))
    }
}

proptest! {
    #[test]
    fn changed_locks_do_not_panic(
        format in 0usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        let whole = SEEDS[format].replace("00\"", &format!("{}\"", "0".repeat(64)));
        let mut bytes = whole.into_bytes();
        for (place, byte, how) in edits {
            let place = place.index(bytes.len());
            match how {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                _ => bytes.truncate(place.max(1)),
            }
        }
        read(format, &bytes);
    }

    #[test]
    fn any_text_is_a_marker_or_an_error(text in "[a-z_ ()'\"<>=!~0-9.é,]{0,60}") {
        let _ = Marker::parse(&text, "x").map_err(|error| error.to_string());
    }

    #[test]
    fn any_page_is_read_or_an_error(text in "[<{]([a-z <>\"'=/&;#!{}:,\\[\\]-]|href=|<a |&#x|<!--|é){0,60}") {
        let page = Page(text.into_bytes());
        let indexes = Indexes::new(&["https://one.example/".to_owned()], &page).unwrap();
        let wheel = Wheel {
            name: "a".into(),
            version: "1".into(),
            file: "a".into(),
            sha256: Digest::of(b""),
            size: None,
            url: None,
        };
        let _ = indexes.find(&wheel).map_err(|error| error.to_string());
    }
}

#[test]
fn seeds_are_read() {
    for (format, seed) in SEEDS.iter().enumerate().take(3) {
        let absent = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
        let seed = seed.replace("sha256:00", &format!("sha256:{}", "0".repeat(64)));
        let seed = seed.replace("sha256 = \"00\"", &format!("sha256 = \"{}\"", "0".repeat(64)));
        let read = read_lock_bytes(&selections()[format], seed.as_bytes(), &absent);
        assert!(read.is_ok(), "{:?}", read.err().map(|error| error.to_string()));
    }
}
