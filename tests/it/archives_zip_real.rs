//! Zip archives as others read them: what imgbuild accepts means the same to Python, and to bsdtar from a file and from a
//! pipe; where these differ imgbuild refuses.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use layers::format::zip::Archive;
use layers::format::{FormatError, Limits};

use super::archives_real::{Line, Tally, hash, none_wrong, python, rewritten, written};
use crate::support::random::{Random, seed};
use crate::support::run::{outcome, repository};

/// What imgbuild reads in a zip archive.
fn our_zip(bytes: &[u8]) -> Result<Vec<Line>, FormatError> {
    let mut archive = Archive::open(Cursor::new(bytes), &Limits::default())?;
    let entries = archive.entries().to_vec();
    let mut lines = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let content = archive.read(index)?;
        lines.push(Line {
            name: entry.path.relative().to_owned(),
            kind: if entry.is_dir() { 'd' } else { 'f' },
            mode: entry.mode.map_or(u32::MAX, |mode| mode & 0o7777),
            owner: String::new(),
            mtime: 0,
            size: entry.size,
            link: String::new(),
            content: if entry.is_dir() { String::new() } else { hash(&content) },
        });
    }
    Ok(lines)
}

type Read = Result<Vec<Line>, String>;

fn judge_zips(archives: &[(String, Vec<u8>)]) -> Tally {
    let folder = tempfile::tempdir().unwrap();
    let mut tally = Tally::default();
    let paths = written(folder.path(), archives, "zip");
    let by_python = python(&paths);
    // From front to back, local headers tell no mode, and stored content of unknown length cannot be read at all.
    let (sought, streamed) = (rewritten(&paths, false), rewritten(&paths, true));
    for (((what, bytes), python), (sought, streamed)) in
        archives.iter().zip(by_python).zip(sought.into_iter().zip(streamed))
    {
        let Ok(lines) = our_zip(bytes) else {
            tally.refused += 1;
            let contents = |lines: &Read| {
                let told = |it: &Line| (it.name.clone(), it.content.clone());
                lines.as_ref().ok().map(|all| all.iter().map(told).collect::<Vec<_>>())
            };
            let differ = contents(&python) != contents(&sought) || contents(&sought) != contents(&streamed);
            tally.disputed += usize::from(differ);
            continue;
        };
        tally.accepted += 1;
        // What a zip does not say, or another reader makes up: owners, times of another zone, modes where there are none.
        // A mode that was not written on Unix is pip's to read, which does not ask where it was written.
        let unix: Vec<bool> = python.iter().flatten().map(|it| it.mode != u32::MAX).collect();
        let same = |theirs: &Read, modes: bool| {
            let Ok(theirs) = theirs else { return false };
            theirs.len() == lines.len()
                && theirs.iter().zip(&lines).enumerate().all(|(at, (theirs, line))| {
                    let modes = modes && line.mode != u32::MAX && unix.get(at) == Some(&true);
                    let mode = if modes { theirs.mode } else { line.mode };
                    *line == Line { owner: String::new(), mtime: 0, mode, ..theirs.clone() }
                })
        };
        let mut wrong = |reader: &str, theirs: &Read| {
            tally.wrong.push(format!("{what}: {reader} reads {theirs:#?}\nwe read {lines:#?}"));
        };
        if !same(&python, true) {
            wrong("Python", &python);
        }
        if !same(&sought, true) {
            wrong("bsdtar", &sought);
        }
        if streamed.is_ok() && !same(&streamed, false) {
            wrong("bsdtar from a pipe", &streamed);
        }
    }
    tally
}

/// Name, content, local and central extra field, the system that wrote it and the version that is needed, attributes.
type Stored<'a> = (&'a str, &'a [u8], [&'a [u8]; 2], [u8; 2], u32);

/// An archive of stored files with extra fields, attributes and versions as somebody likes them.
fn zip(files: &[Stored<'_>]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content, [local, central], version, attributes) in files {
        let offset = bytes.len() as u32;
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let mut common = vec![0; 4];
        common.extend([0, 0x20, 0x43, 0x58]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((content.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        bytes.extend(b"PK\x03\x04\x14\0");
        bytes.extend(&common);
        bytes.extend((local.len() as u16).to_le_bytes());
        bytes.extend([name.as_bytes(), *local, *content].concat());
        directory.extend(b"PK\x01\x02\x14");
        // The system that wrote it, and the version that is needed.
        directory.extend([version[0], version[1], 0]);
        directory.extend(&common);
        directory.extend((central.len() as u16).to_le_bytes());
        directory.extend([0; 6]);
        directory.extend(attributes.to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend([name.as_bytes(), *central].concat());
    }
    let (start, count) = (bytes.len() as u32, (files.len() as u16).to_le_bytes());
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].concat());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}

fn extra(id: u16, content: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &(content.len() as u16).to_le_bytes(), content].concat()
}

/// Zip archives that somebody made by hand.
fn hostile_zips() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut name_field = vec![1];
    let mut crc = flate2::Crc::new();
    crc.update(b"a");
    name_field.extend(crc.sum().to_le_bytes());
    let fields = [
        ("nothing", vec![]),
        ("times", extra(0x5455, &[1, 0, 0, 0, 0x60])),
        ("owners", extra(0x7875, &[1, 4, 5, 0, 0, 0, 4, 6, 0, 0, 0])),
        ("the same Unicode name", extra(0x7075, &[&name_field[..], b"a"].concat())),
        ("another Unicode name", extra(0x7075, &[&name_field[..], b"b"].concat())),
        ("a Unicode name outside", extra(0x7075, &[&name_field[..], b"../b"].concat())),
        ("libarchive's attributes", extra(0x6c78, &[4, 0, 0, 0xff, 0xa1, 0, 0])),
        ("encryption", extra(0x9901, &[1, 0, b'A', b'E', 1, 0, 0])),
        ("spare zip64", extra(1, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])),
        ("lying zip64", extra(1, &[0; 16])),
        ("a cut field", vec![1, 0, 16, 0, 1]),
        ("an unknown field", extra(0x4444, b"anything")),
    ];
    let none: &[u8] = &[];
    for (what, field) in &fields {
        let field = field.as_slice();
        for (place, extras) in [("local", [field, none]), ("central", [none, field]), ("both", [field, field])] {
            let bytes = zip(&[("a", b"x", extras, [3, 20], 0o100_644 << 16), ("z", b"", [b"", b""], [3, 20], 0)]);
            all.push((format!("{what}, {place}"), bytes));
        }
    }
    for system in [0, 3, 7, 10, 11, 19, 255] {
        for needed in [0, 10, 20, 45, 63, 64, 255] {
            for attributes in
                [0, 1, 0x10, 0x20, 0o100_755 << 16, 0o040_755 << 16 | 0x10, 0o120_777 << 16, 0o010_644 << 16]
            {
                for name in ["a", "d/"] {
                    let content: &[u8] = if name == "a" { b"x" } else { b"" };
                    let bytes = zip(&[(name, content, [b"", b""], [system, needed], attributes)]);
                    all.push((format!("`{name}` by {system} for {needed} with {attributes:#o}"), bytes));
                }
            }
        }
    }
    for name in ["a//b", "./a", "../a", "/a", "a\\b", "a\nb", " a", "a ", "C:a", "a:b", "con", "\u{e4}", "a/"] {
        all.push((format!("the name {name:?}"), zip(&[(name, b"x", [b"", b""], [3, 20], 0o100_644 << 16)])));
    }
    let plain = |name: &'static str| (name, &b"x"[..], [&b""[..], b""], [3, 20], 0o100_644u32 << 16);
    all.push(("a name twice".into(), zip(&[plain("a"), plain("a")])));
    all.push(("a file above another".into(), zip(&[plain("a"), plain("a/b")])));
    all
}

#[test]
fn real_hostile_zips_are_refused_or_mean_the_same_to_all() {
    let tally = judge_zips(&hostile_zips());
    println!(
        "{} accepted, {} refused, readers differ about {} of these",
        tally.accepted, tally.refused, tally.disputed
    );
    none_wrong(&tally);
    assert!(tally.accepted >= 100 && tally.refused >= 100 && tally.disputed >= 10, "{tally:?}");
}

/// Archives of a tree with directories, empty and executable files, by bsdtar and Python.
fn zips_by_tools(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let script = r#"
        set -e
        export LC_ALL=C.UTF-8
        umask 022
        mkdir -p tree/dir && cd tree
        printf hello > file && : > empty && head -c 5000 /dev/zero > dir/zeros && printf ü > dir/ümlaut
        printf '#!/bin/sh\n' > run && chmod 755 run && chmod 600 empty
        bsdtar --format=zip --options zip:compression=deflate -cf ../bsd-deflate.zip file empty run dir
        bsdtar --format=zip --options zip:compression=store -cf ../bsd-store.zip file empty run dir
        cat > ../make.py <<'EOF'
import io, zipfile
for method in ["ZIP_STORED", "ZIP_DEFLATED"]:
    with zipfile.ZipFile("../python-%s.zip" % method, "w", getattr(zipfile, method)) as out:
        for name in ["dir/", "dir/zeros", "dir/ümlaut", "empty", "file", "run"]:
            out.write(name)
class Pipe(io.RawIOBase):
    data = b""
    def writable(self): return True
    def write(self, data): self.data += bytes(data); return len(data)
pipe = Pipe()
with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as out:
    for name in ["dir/zeros", "file", "run"]:
        out.write(name)
open("../python-piped.zip", "wb").write(pipe.data)
with zipfile.ZipFile("../python-zip64.zip", "w", zipfile.ZIP_DEFLATED) as out:
    with out.open(zipfile.ZipInfo("a"), "w", force_zip64=True) as file:
        file.write(b"zip64" * 100)
EOF
        PYTHONUTF8=1 python3 ../make.py
    "#;
    outcome(Command::new("bash").arg("-c").arg(script).current_dir(folder)).success();
    let mut made = Vec::new();
    let seeds = repository().join("fuzz/seeds/zip");
    for path in fs::read_dir(folder).unwrap().chain(fs::read_dir(seeds).unwrap()).map(|entry| entry.unwrap().path()) {
        if path.is_file() && path.extension().is_none_or(|extension| extension == "zip") {
            made.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    made.sort();
    made
}

#[test]
fn real_zips_of_tools_mean_the_same_to_all() {
    let folder = tempfile::tempdir().unwrap();
    let archives = zips_by_tools(folder.path());
    assert!(archives.len() >= 10, "{:?}", archives.iter().map(|it| &it.0).collect::<Vec<_>>());
    for (what, bytes) in &archives {
        let read = our_zip(bytes);
        // Some of what bsdtar writes tells a size before the content and the others behind it, which is refused.
        assert!(read.is_ok() || what.contains("bsd-"), "{what}: {read:?}");
    }
    none_wrong(&judge_zips(&archives));
}

#[test]
fn real_changed_zips_are_refused_or_mean_the_same_to_all() {
    let mut random = Random::of(seed());
    let folder = tempfile::tempdir().unwrap();
    let models: Vec<(String, Vec<u8>)> =
        zips_by_tools(folder.path()).into_iter().filter(|(_, bytes)| bytes.len() > 30).collect();
    let mut changed = Vec::new();
    while changed.len() < 150 {
        let (what, mut bytes) = models[random.below(models.len())].clone();
        for _ in 0..1 + random.below(2) {
            // A byte of a header, most of them of the first kind that says what follows.
            let signature = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"][random.below(3)];
            let starts: Vec<usize> = memchr::memmem::find_iter(&bytes, signature).collect();
            let at = starts[random.below(starts.len())] + 4 + random.below(42);
            let any = random.below(256) as u8;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = [0, 1, 2, 8, 10, 20, 45, b'/', b'.', b'\\', 0xff, any][random.below(12)];
            }
        }
        if our_zip(&bytes).is_ok() || random.below(20) == 0 {
            changed.push((format!("{what}, changed ({})", changed.len()), bytes));
        }
    }
    let tally = judge_zips(&changed);
    println!(
        "{} accepted, {} refused, readers differ about {} of these",
        tally.accepted, tally.refused, tally.disputed
    );
    none_wrong(&tally);
    assert!(tally.accepted >= 25 && tally.refused >= 10, "{tally:?}");
}
