//! `requirements.txt` in pip's hash-checking mode: every requirement pinned with `==`, every one with
//! `--hash=sha256:`.
//!
//! The format names hashes, not files: which file a hash is of is asked from an index ([`Indexes::complete`]).
//! Options that would bring hosts or other behaviour are refused.
//!
//! [`Indexes::complete`]: super::index::Indexes::complete

use std::collections::BTreeSet;
use std::io;
use std::str::FromStr;

use layers::Digest;
use layers::source::LockSelection;
use pep440_rs::Version;

use super::markers::Marker;
use super::poetry::MAIN;
use super::requirement::Requirement;
use super::{Edge, LockedPackage, LockedSet, PythonError, SourceKind, beside, normalised, path_of, read as read_file};

/// Most files that include one another.
const MOST_FILES: usize = 100;

/// Reads a `requirements.txt` and what it includes.
pub(super) fn read(
    selection: &LockSelection,
    text: &str,
    files: &dyn Fn(&str) -> io::Result<Vec<u8>>,
) -> Result<LockedSet, PythonError> {
    let path = &selection.path;
    let known = Vec::new();
    if let Some(name) = selection.groups.iter().find(|group| normalised(group) != MAIN) {
        return Err(PythonError::UnknownGroup { lock: path.clone(), name: name.clone(), known });
    }
    if let Some(name) = selection.extras.first() {
        return Err(PythonError::UnknownExtra { lock: path.clone(), name: name.clone(), known });
    }
    let mut set = LockedSet::new(path);
    let mut pending = vec![(path.clone(), text.to_owned())];
    while let Some((path, text)) = pending.pop() {
        for included in read_one(&mut set, &path, &text)? {
            if !set.read.insert(included.clone()) {
                continue;
            }
            if set.read.len() > MOST_FILES {
                let message = format!("more than {MOST_FILES} files include one another");
                return Err(PythonError::syntax(&path, None, message));
            }
            let bytes = read_file(&included, files)?;
            let text = String::from_utf8(bytes).map_err(|_| PythonError::syntax(&included, None, "it is not UTF-8"))?;
            pending.push((included, text));
        }
    }
    Ok(set)
}

/// Lines joined at a final backslash, without comments, each with the number of its first line.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        let comment = line.trim_start().starts_with('#');
        let (part, goes_on) = match line.strip_suffix('\\') {
            // As pip does it: a comment ends a continuation, whatever it ends with.
            Some(part) if !comment => (part, true),
            _ => (line, false),
        };
        let part = match part
            .char_indices()
            .find(|&(at, character)| character == '#' && part[..at].chars().next_back().is_none_or(char::is_whitespace))
        {
            Some((at, _)) => &part[..at],
            None => part,
        };
        let (first, mut joined) = open.take().unwrap_or((number + 1, String::new()));
        joined.push_str(part);
        if goes_on {
            open = Some((first, joined));
        } else if !joined.trim().is_empty() {
            lines.push((first, joined.trim().to_owned()));
        }
    }
    lines.extend(open.filter(|(_, joined)| !joined.trim().is_empty()).map(|(first, line)| (first, line.trim().into())));
    lines
}

/// Reads one file into `set`; the result is what it includes.
fn read_one(set: &mut LockedSet, path: &str, text: &str) -> Result<Vec<String>, PythonError> {
    let mut included = Vec::new();
    for (number, line) in logical_lines(text) {
        let refuse = |message: String| PythonError::syntax(path, Some(number), message);
        if line.starts_with('-') {
            match option(&line).map_err(refuse)? {
                Line::Harmless => {}
                Line::Include(name) => {
                    let place = beside(path, &name)
                        .ok_or_else(|| refuse(format!("`{name}` is not inside the build context")))?;
                    included.push(place);
                }
                Line::Editable(what) => add(set, LockedPackage::new(&what, None, SourceKind::Editable), Marker::Always),
            }
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
        let hashes = hashes(&words[options..]).map_err(refuse)?;
        let requirement = words[..options].join(" ");
        if local(&requirement) {
            add(set, LockedPackage::new(&requirement, None, SourceKind::Path), Marker::Always);
            continue;
        }
        let whose = format!("{path} line {number}");
        let parsed = Requirement::parse(&requirement, &whose)?;
        let package = match &parsed.url {
            Some(url) => direct(&parsed.name, url, &hashes).map_err(refuse)?,
            None => pinned(&parsed, hashes).map_err(refuse)?,
        };
        add(set, package, parsed.marker);
    }
    Ok(included)
}

enum Line {
    Harmless,
    Include(String),
    Editable(String),
}

/// What a line that begins with an option means.
fn option(line: &str) -> Result<Line, String> {
    let (name, value) = match line.split_once(|character: char| character == '=' || character.is_whitespace()) {
        Some((name, value)) => (name, value.trim()),
        // Short options may hold their value: `-rdev.txt`.
        None if line.starts_with("-r") || line.starts_with("-e") => line.split_at(2),
        None => (line, ""),
    };
    match name {
        "--require-hashes" | "--only-binary" | "--prefer-binary" => Ok(Line::Harmless),
        "-r" | "--requirement" if !value.is_empty() => Ok(Line::Include(value.to_owned())),
        "-e" | "--editable" if !value.is_empty() => Ok(Line::Editable(value.chars().take(100).collect())),
        "-i" | "--index-url" | "--extra-index-url" | "--no-index" | "-f" | "--find-links" | "--trusted-host" => {
            Err(format!("option `{name}` is refused: indexes are configured for the machine, not in a lock"))
        }
        // The value is not shown: it may hold a credential.
        _ => Err(format!("option `{name}` is refused: only requirements, `-r` and hashes belong in a lock")),
    }
}

/// The SHA-256s among the options of a requirement.
fn hashes(options: &[&str]) -> Result<BTreeSet<Digest>, String> {
    let mut found = BTreeSet::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let hash = match word.split_once('=') {
            Some(("--hash", hash)) => hash,
            _ if *word == "--hash" => words.next().ok_or("`--hash` has no value")?,
            _ => {
                let name = word.split('=').next().unwrap_or_default();
                return Err(format!("option `{name}` of a requirement is refused: only `--hash` is understood"));
            }
        };
        match hash.split_once(':') {
            Some(("sha256", hex)) => _ = found.insert(Digest::from_hex(hex).map_err(|error| error.to_string())?),
            // Stronger or weaker ones may stand beside it.
            Some((_, value)) if !value.is_empty() => {}
            _ => return Err("`--hash` wants an algorithm, `:` and a digest".into()),
        }
    }
    Ok(found)
}

/// Whether a requirement is a path or a bare URL.
fn local(requirement: &str) -> bool {
    let first = requirement.split(['@', ';', ' ']).next().unwrap_or_default();
    first.starts_with(['.', '/', '~']) || first.contains(['/', '\\', ':']) || first.ends_with(".whl")
}

fn direct(name: &str, url: &str, hashes: &BTreeSet<Digest>) -> Result<LockedPackage, String> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    let source = match scheme {
        "http" | "https" => SourceKind::Url,
        "file" => SourceKind::Path,
        other if other.split_once('+').is_some() => SourceKind::Git,
        _ => SourceKind::Path,
    };
    let mut package = LockedPackage::new(name, None, source.clone());
    if source == SourceKind::Url {
        let file = path_of(url);
        let plain = url.split('#').next().unwrap_or_default().to_owned();
        match hashes.first() {
            Some(sha256) if hashes.len() == 1 => {
                package.add_file(&file, Some(&sha256.to_string()), None, Some(plain))?;
            }
            Some(_) => return Err(format!("{name} is at one URL and has {} hashes", hashes.len())),
            None => package.add_file(&file, None, None, Some(plain))?,
        }
    }
    Ok(package)
}

fn pinned(requirement: &Requirement, hashes: BTreeSet<Digest>) -> Result<LockedPackage, String> {
    let name = &requirement.name;
    let mend = "write the file with `uv export` or `pip-compile --generate-hashes`";
    let version = requirement.specifiers.trim_start_matches('=').trim();
    let pinned = matches!(requirement.specifiers.len() - requirement.specifiers.trim_start_matches('=').len(), 2 | 3);
    if !pinned || Version::from_str(version).is_err() {
        return Err(format!("{name} is not pinned to one version with `==`: {mend}"));
    }
    if hashes.is_empty() {
        return Err(format!("{name} has no `--hash=sha256:`: {mend}"));
    }
    let mut package = LockedPackage::new(name, Some(version.to_owned()), SourceKind::Index);
    package.hashes = hashes;
    Ok(package)
}

/// Adds an entry. The same entry again (once with an extra, say) only widens where it is needed.
fn add(set: &mut LockedSet, package: LockedPackage, marker: Marker) {
    let same = set.packages.iter().position(|known| *known == package);
    let to = match same {
        Some(place) => place,
        None => {
            set.packages.push(package);
            set.packages.len() - 1
        }
    };
    set.roots.push(Edge { to, extras: BTreeSet::new(), marker });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_and_comments_dropped() {
        let text = "a==1 \\\n  --hash=x \\\n  --hash=y # why\n\n# whole \\\nb==2#not-a-comment\nc \\\n# ends it\nd \\";
        let lines = logical_lines(text);
        let expected = [(1, "a==1   --hash=x   --hash=y"), (6, "b==2#not-a-comment"), (7, "c"), (9, "d")];
        assert_eq!(lines, expected.map(|(number, line)| (number, line.to_owned())));
    }
}
