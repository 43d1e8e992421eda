//! What can be wrong with a lock or an index.

use std::fmt::Write as _;
use std::io;

use layers::Digest;

/// An entry that cannot be installed on a target, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unfit {
    /// Name and version.
    pub entry: String,
    /// Why, as the end of a sentence about the entry.
    pub why: String,
}

/// Why wheels cannot be chosen or found.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// A file of the build context cannot be read.
    #[error("`{path}` cannot be read from the build context: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what its format demands.
    #[error("`{path}`{} is not understood: {message}", line.map(|line| format!(" line {line}")).unwrap_or_default())]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// The format has a version that is not understood.
    #[error(
        "`{path}` has lock version {found}, and {supported} is understood: lock again with a {tool} that writes it"
    )]
    LockVersion {
        /// The file.
        path: String,
        /// Its version.
        found: String,
        /// What is read.
        supported: &'static str,
        /// The tool that writes it.
        tool: &'static str,
    },
    /// A group was asked for that the lock does not have.
    #[error("`{lock}` has no dependency group `{name}`: it has {}", list(known))]
    UnknownGroup {
        /// The lock file.
        lock: String,
        /// The group.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// An extra was asked for that the project does not have.
    #[error("`{lock}` has no extra `{name}`: it has {}", list(known))]
    UnknownExtra {
        /// The lock file.
        lock: String,
        /// The extra.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// An extra was asked for without the dependencies that it extends.
    #[error("extra `{name}` of `{lock}` extends the main dependencies, which the groups leave out: add group `main`")]
    ExtraWithoutMain {
        /// The lock file.
        lock: String,
        /// The extra.
        name: String,
    },
    /// A definition names a package that the lock does not hold.
    #[error("`{lock}` holds no `{name}` that could be {what}")]
    NotLocked {
        /// The lock file.
        lock: String,
        /// The package.
        name: String,
        /// What the definition does with it.
        what: &'static str,
    },
    /// A definition names a package in a spelling that indexes do not use.
    #[error("`{name}` is called `{normal}` on indexes: write `.build_from_source(\"{normal}\")`")]
    NotNormal {
        /// As written.
        name: String,
        /// As PEP 503 normalises it.
        normal: String,
    },
    /// A marker is not understood.
    #[error("{whose}: marker `{marker}` is not understood: {why}")]
    Marker {
        /// The entry that has it.
        whose: String,
        /// The marker.
        marker: String,
        /// What is wrong.
        why: String,
    },
    /// The interpreter's version is none.
    #[error("`{version}` is not the full version of a CPython 3, such as `3.13.5`")]
    Interpreter {
        /// The version.
        version: String,
    },
    /// The project does not run on the interpreter.
    #[error("`{lock}` is for Python {required}, and the image has {python}: lock the project for {python}, too")]
    RequiresPython {
        /// The lock file.
        lock: String,
        /// What it is for.
        required: String,
        /// The interpreter's version.
        python: String,
    },
    /// The lock was made for other environments.
    #[error(
        "`{lock}` was locked for other environments than {target}: add it to the lock's environments and lock again"
    )]
    Environments {
        /// The lock file.
        lock: String,
        /// The target.
        target: String,
    },
    /// Two versions of one package would be installed.
    #[error(
        "`{lock}` gives {name} more than once for {target}: {}; choose groups and extras that do not conflict, or lock again",
        list(found)
    )]
    Ambiguous {
        /// The lock file.
        lock: String,
        /// The package.
        name: String,
        /// The target.
        target: String,
        /// Versions with their sources.
        found: Vec<String>,
    },
    /// Entries without a file that could be installed; all of them at once.
    #[error("{}", unfit(lock, target, entries))]
    Unfit {
        /// The lock file.
        lock: String,
        /// The target.
        target: String,
        /// The entries.
        entries: Vec<Unfit>,
    },
    /// The lock gives hashes alone, and the names of their files were not asked from an index.
    #[error(
        "`{lock}` gives only hashes of {name}, not the names of its files: they have to be asked from an index first"
    )]
    NamesUnknown {
        /// The lock file.
        lock: String,
        /// The package.
        name: String,
    },
    /// An index cannot be asked.
    #[error("index {index} cannot be asked for {name}: {why}")]
    Index {
        /// The index, without secrets.
        index: String,
        /// The package.
        name: String,
        /// What went wrong.
        why: String,
    },
    /// No index knows the package.
    #[error("no package index has {name}: asked {}", list(indexes))]
    UnknownProject {
        /// The package.
        name: String,
        /// The indexes, without secrets.
        indexes: Vec<String>,
    },
    /// The index that has the package lacks the locked file.
    #[error(
        "index {index} no longer has `{file}` of {name}: lock again; other indexes are not asked, because the first \
         one that has a name is the only one it is taken from"
    )]
    FileGone {
        /// The index, without secrets.
        index: String,
        /// The package.
        name: String,
        /// The file.
        file: String,
    },
    /// The index has other bytes under the locked name.
    #[error(
        "`{file}` was replaced on index {index}: the lock has {locked}, the index {found}; do not use it before you know \
         why, then lock again"
    )]
    FileReplaced {
        /// The index, without secrets.
        index: String,
        /// The file.
        file: String,
        /// The lock's hash.
        locked: Digest,
        /// The index' hash.
        found: Digest,
    },
    /// The index says no hashes, so that hashes alone do not name files.
    #[error(
        "index {index} gives no hashes, so the files of {name} in `{lock}` cannot be told: use poetry.lock, uv.lock or pylock.toml"
    )]
    NoHashes {
        /// The index, without secrets.
        index: String,
        /// The package.
        name: String,
        /// The lock file.
        lock: String,
    },
}

impl PythonError {
    pub(super) fn syntax(path: &str, line: Option<usize>, message: impl Into<String>) -> PythonError {
        PythonError::Syntax { path: path.to_owned(), line, message: message.into() }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn unfit(lock: &str, target: &str, entries: &[Unfit]) -> String {
    let mut text = match entries {
        [Unfit { entry, why }] => format!("{entry} of `{lock}` cannot be installed for {target}: {why}"),
        _ => {
            let mut text = format!("{} entries of `{lock}` cannot be installed for {target}:", entries.len());
            for Unfit { entry, why } in entries {
                let _ = write!(text, "\n  {entry}: {why}");
            }
            text
        }
    };
    text.push_str(
        "\nways out: lock a version that has a wheel for the target, build it with `.build_from_source(\"name\")`, \
         put a wheel of it on your package index and lock again, or leave it out with `.without([\"name\"])`",
    );
    text
}
