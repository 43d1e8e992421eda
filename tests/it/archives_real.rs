//! Archives as others read them: what imgbuild accepts of tar and zip means the same to GNU tar, bsdtar and Python, and
//! where these differ imgbuild refuses.
//!
//! Every reader tells the entries in the archive's order, one line each. GNU tar is asked for its listing and for all
//! contents in one stream; bsdtar writes what it understood as a new archive, which Python lists; Python lists for itself.

use std::fmt::Write as _;
use std::fs;
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use layers::Digest;
use layers::encode::Kind;
use layers::format::tar::Reader;
use layers::format::zip::Archive;
use layers::format::{FormatError, Limits};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::support::run::{outcome, repository};

/// An entry of an archive, as one reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: String,
    /// `f`, `d`, `l`, `h`, `p`, `c`, `b`.
    kind: char,
    mode: u32,
    owner: String,
    mtime: i64,
    size: u64,
    /// Target of a link, numbers of a device.
    link: String,
    /// SHA-256 of a file's content.
    content: String,
}

/// A name without what does not matter: `./a//b/` is `a/b`.
fn normal(name: &str) -> String {
    name.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}

fn hash(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

/// What imgbuild reads, and all contents one after the other.
fn ours(bytes: &[u8]) -> Result<(Vec<Line>, Vec<u8>), FormatError> {
    let mut reader = Reader::new(bytes, &Limits::default());
    let (mut lines, mut all) = (Vec::new(), Vec::new());
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        let (kind, link) = match &entry.kind {
            Kind::File { .. } => ('f', String::new()),
            Kind::Dir => ('d', String::new()),
            Kind::Symlink { target } => ('l', target.clone()),
            Kind::Hardlink { target } => ('h', target.relative().to_owned()),
            Kind::CharDevice { major, minor } => ('c', format!("{major},{minor}")),
            Kind::BlockDevice { major, minor } => ('b', format!("{major},{minor}")),
            Kind::Fifo => ('p', String::new()),
        };
        lines.push(Line {
            name: entry.path.relative().to_owned(),
            kind,
            mode: entry.mode,
            owner: format!("{}/{}", entry.uid, entry.gid),
            mtime: entry.mtime,
            size: content.len() as u64,
            link,
            content: if kind == 'f' { hash(&content) } else { String::new() },
        });
        all.extend(content);
    }
    Ok((lines, all))
}

/// Lists archives, one JSON document a line: a list of entries, or what Python says against it.
const PYTHON: &str = r#"
import hashlib, json, math, sys, tarfile, zipfile
def told(text):
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
def tar(path):
    with tarfile.open(path, "r:") as archive:
        for m in archive:
            kind = ("d" if m.isdir() else "l" if m.issym() else "h" if m.islnk() else "p" if m.isfifo() else
                    "c" if m.ischr() else "b" if m.isblk() else "f" if m.isreg() else "?")
            device = "%d,%d" % (m.devmajor, m.devminor)
            link = m.linkname if kind in "lh" else device if kind in "cb" else ""
            content = archive.extractfile(m).read() if kind == "f" else b""
            yield [told(m.name), kind, m.mode & 0o7777, "%d/%d" % (m.uid, m.gid), math.floor(m.mtime),
                   len(content), told(link), hashlib.sha256(content).hexdigest() if kind == "f" else ""]
def zip(path):
    with zipfile.ZipFile(path) as archive:
        for i in archive.infolist():
            content = b"" if i.is_dir() else archive.read(i)
            mode = i.external_attr >> 16 if i.create_system == 3 else 0
            yield [told(i.filename), "d" if i.is_dir() else "f", mode & 0o7777 if mode else -1, "", 0, len(content), "",
                   "" if i.is_dir() else hashlib.sha256(content).hexdigest()]
for path in sys.stdin.read().split("\0"):
    if path:
        try:
            print(json.dumps(list((zip if path.endswith(".zip") else tar)(path))))
        except Exception as error:
            print(json.dumps(told(repr(error))))
"#;

/// What Python reads in each of these files.
fn python(paths: &[PathBuf]) -> Vec<Result<Vec<Line>, String>> {
    let mut child = Command::new("python3")
        .args(["-c", PYTHON])
        .env("PYTHONUTF8", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is there");
    let list: Vec<&str> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, list.join("\0").as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let answers: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), paths.len());
    answers
        .into_iter()
        .map(|answer| match answer {
            Value::String(error) => Err(error),
            list => Ok(list.as_array().unwrap().iter().map(line).collect()),
        })
        .collect()
}

fn line(row: &Value) -> Line {
    let text = |at: usize| row[at].as_str().unwrap().to_owned();
    let kind = text(1).chars().next().unwrap();
    Line {
        name: normal(&text(0)),
        kind,
        // A zip without a mode: a value that no mode has.
        mode: row[2].as_i64().and_then(|mode| u32::try_from(mode).ok()).unwrap_or(u32::MAX),
        owner: text(3),
        mtime: row[4].as_i64().unwrap(),
        size: row[5].as_u64().unwrap(),
        link: if kind == 'h' { normal(&text(6)) } else { text(6) },
        content: text(7),
    }
}

/// The archive that bsdtar writes of what it reads; with `piped` it reads from front to back.
fn bsdtar(path: &Path, piped: bool) -> Result<PathBuf, String> {
    let made = path.with_extension(if piped { "piped.tar" } else { "bsdtar.tar" });
    let mut command = Command::new("bsdtar");
    command.env("LC_ALL", "C.UTF-8").args(["--numeric-owner", "--format=pax", "-cf"]).arg(&made);
    let output = if piped {
        command.arg("@-").stdin(fs::File::open(path).unwrap()).output().expect("bsdtar is there: libarchive-tools")
    } else {
        command.arg(format!("@{}", path.display())).output().expect("bsdtar is there: libarchive-tools")
    };
    match output.status.success() {
        true => Ok(made),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What GNU tar lists; sizes of all but files are not told, and contents come in one stream.
fn gnu(path: &Path) -> Result<(Vec<String>, Vec<u8>), String> {
    let tar = |what: &[&str]| {
        let output = Command::new("tar").env("LC_ALL", "C.UTF-8").env("TZ", "UTC").args(what).arg(path).output();
        let output = output.expect("GNU tar is there");
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let listing = tar(&["--list", "-v", "--numeric-owner", "--full-time", "--quoting-style=escape", "-f"])?;
    let lines = String::from_utf8(listing).map_err(|error| error.to_string())?.lines().map(str::to_owned).collect();
    Ok((lines, tar(&["--extract", "--to-stdout", "-f"])?))
}

/// A line as GNU tar lists it: `-rw-r--r-- 0/0 5 2023-11-14 22:13:20 name`.
fn as_gnu(line: &Line) -> String {
    let kind = if line.kind == 'f' { '-' } else { line.kind };
    let mut text = kind.to_string();
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = line.mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        let with = |at: usize| letters.as_bytes()[at] as char;
        text.push(match (line.mode & special != 0, bits & 1 != 0) {
            (true, true) => with(0),
            (true, false) => with(1),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    let size = if matches!(line.kind, 'c' | 'b') { line.link.clone() } else { line.size.to_string() };
    let mut text = format!("{text} {} {size}", line.owner);
    // Fractions of times before 1970 are shown oddly, and years of five digits otherwise.
    if (0..253_402_300_800).contains(&line.mtime) {
        let time = layers::oci::rfc3339(line.mtime);
        write!(text, " {}", time.replace('T', " ").trim_end_matches('Z')).unwrap();
    }
    write!(text, " {}", line.name.trim_start()).unwrap();
    match line.kind {
        'l' => write!(text, " -> {}", line.link).unwrap(),
        'h' => write!(text, " link to {}", line.link).unwrap(),
        _ => {}
    }
    text
}

/// GNU tar's line in the same shape: no fraction of a second, names normal, contiguous files files.
fn from_gnu(text: &str, like: &Line) -> Option<String> {
    let mut rest = text;
    let mut word = || {
        rest = rest.trim_start();
        let (word, after) = rest.split_once(' ')?;
        rest = after;
        Some(word)
    };
    let (mode, owner, size, date, time) = (word()?, word()?, word()?, word()?, word()?);
    let mode = mode.strip_prefix('C').map_or_else(|| mode.to_owned(), |rest| format!("-{rest}"));
    let mut line = format!("{mode} {owner} {size}");
    if (0..253_402_300_800).contains(&like.mtime) {
        write!(line, " {date} {}", time.split('.').next()?).unwrap();
    }
    // The time is padded to the width of one with a fraction.
    let unescaped = unescaped(rest.trim_start());
    let (name, link) = match like.kind {
        'l' => unescaped.split_once(" -> ").map(|(name, link)| (name.to_owned(), format!(" -> {link}")))?,
        'h' => unescaped
            .split_once(" link to ")
            .map(|(name, link)| (name.to_owned(), format!(" link to {}", normal(link))))?,
        _ => (unescaped, String::new()),
    };
    write!(line, " {}{link}", normal(&name)).unwrap();
    Some(line)
}

/// Undoes `--quoting-style=escape`.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|it| it.iter().all(|byte| (b'0'..=b'7').contains(byte)));
        match (bytes[at], octal, bytes.get(at + 1)) {
            (b'\\', Some(digits), _) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                plain.push(value as u8);
                at += 4;
            }
            (b'\\', None, Some(&letter)) => {
                plain.push(match letter {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    b'a' => 7,
                    b'b' => 8,
                    b'f' => 12,
                    b'v' => 11,
                    other => other,
                });
                at += 2;
            }
            (byte, ..) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What became of the comparisons.
#[derive(Debug, Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    /// Refused, and the others do differ about it.
    disputed: usize,
    /// What imgbuild accepts and another reader reads differently.
    wrong: Vec<String>,
}

fn written(folder: &Path, archives: &[(String, Vec<u8>)], extension: &str) -> Vec<PathBuf> {
    let write = |(index, (_, bytes)): (usize, &(String, Vec<u8>))| {
        let path = folder.join(format!("{index}.{extension}"));
        fs::write(&path, bytes).unwrap();
        path
    };
    archives.iter().enumerate().map(write).collect()
}

/// What bsdtar reads in each of these files, as Python lists what bsdtar writes of it.
fn rewritten(paths: &[PathBuf], piped: bool) -> Vec<Result<Vec<Line>, String>> {
    let made: Vec<Result<PathBuf, String>> = paths.iter().map(|path| bsdtar(path, piped)).collect();
    let good: Vec<PathBuf> = made.iter().filter_map(|made| made.clone().ok()).collect();
    let mut listed = python(&good).into_iter();
    made.into_iter().map(|made| made.and_then(|_| listed.next().unwrap())).collect()
}

/// Puts archives before all readers.
fn judge(archives: &[(String, Vec<u8>)]) -> Tally {
    let folder = tempfile::tempdir().unwrap();
    let mut tally = Tally::default();
    let paths = written(folder.path(), archives, "tar");
    let (by_python, by_bsdtar) = (python(&paths), rewritten(&paths, false));
    for (((what, bytes), path), (python, bsdtar)) in
        archives.iter().zip(&paths).zip(by_python.into_iter().zip(by_bsdtar))
    {
        let gnu = gnu(path);
        let (lines, contents) = match ours(bytes) {
            Ok(read) => read,
            Err(_) => {
                tally.refused += 1;
                let differ = match (&python, &bsdtar) {
                    (Ok(one), Ok(other)) => one != other,
                    (Err(_), Err(_)) => gnu.is_ok(),
                    _ => true,
                };
                tally.disputed += usize::from(differ);
                continue;
            }
        };
        tally.accepted += 1;
        let mut wrong = |reader: &str, theirs: &dyn std::fmt::Debug| {
            tally.wrong.push(format!("{what}: {reader} reads {theirs:#?}\nwe read {lines:#?}"));
        };
        if python.as_ref() != Ok(&lines) {
            wrong("Python", &python);
        }
        if bsdtar.as_ref() != Ok(&lines) {
            wrong("bsdtar", &bsdtar);
        }
        match &gnu {
            Ok((listed, all)) => {
                let same = listed.len() == lines.len()
                    && listed.iter().zip(&lines).all(|(text, line)| from_gnu(text, line) == Some(as_gnu(line)))
                    && *all == contents;
                if !same {
                    wrong("GNU tar", &listed);
                }
            }
            Err(error) => wrong("GNU tar", error),
        }
    }
    tally
}

#[track_caller]
fn none_wrong(tally: &Tally) {
    let first: Vec<&String> = tally.wrong.iter().take(5).collect();
    let shown = first.iter().map(|it| it.as_str()).collect::<Vec<_>>().join("\n\n");
    assert!(tally.wrong.is_empty(), "{} archives are read differently, such as\n{shown}", tally.wrong.len());
}

/// Archives that tools make of one tree, in each format that they write.
fn made_by_tools(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let script = r#"
        set -e
        umask 022
        mkdir -p tree/dir/sub 'tree/with space' && cd tree
        printf hello > file && ln file dir/hard && ln -s ../file dir/sym && mkfifo pipe && : > empty
        printf ümlaut > 'with space/ümlaut'
        printf x > "$(printf 'line\nfeed')"
        long=$(printf 'n%.0s' $(seq 120)) && printf long > dir/sub/$long && ln -s $long/$long dir/longlink
        head -c 5000 /dev/zero > dir/zeros
        chmod 4755 file && chmod 1777 dir && chmod 600 empty
        touch -d '2001-02-03 04:05:06 UTC' file && touch -d '2105-01-01 UTC' dir/zeros
        cd ..
        for format in v7 ustar gnu pax; do
            only=
            [ $format = v7 ] && only='--exclude=pipe --exclude=n* --exclude=longlink --exclude=hard'
            [ $format = ustar ] && only='--exclude=longlink --exclude=nn*'
            tar --sort=name --format=$format $only --owner=5 --group=6 --numeric-owner -C tree -cf gnu-$format.tar .
        done
        export LC_ALL=C.UTF-8
        for format in ustar pax gnutar; do
            only=
            [ $format = ustar ] && only='--exclude=longlink --exclude=nn*'
            bsdtar --format=$format $only --no-acls --no-xattrs --no-fflags --numeric-owner --uid 3000 --gid 6 -C tree -cf bsd-$format.tar .
        done
        cat > make.py <<'EOF'
import tarfile
for name in ["USTAR", "GNU", "PAX"]:
    with tarfile.open("python-%s.tar" % name, "w", format=getattr(tarfile, name + "_FORMAT")) as out:
        def kept(info):
            if name == "USTAR" and (len(info.name) > 99 or len(info.linkname) > 99):
                return None
            info.uid, info.mtime = (70000000 if name != "USTAR" else 7), (1.5 if name == "PAX" else 1)
            return info
        out.add("tree", ".", filter=kept)
EOF
        python3 make.py
        busybox tar -C tree -cf busybox.tar file dir/sym empty
        tar --format=pax --pax-option=delete=atime,delete=ctime -b 64 -C tree -cf large-records.tar file
        tar --format=gnu -C tree -cf two.tar file && tar --format=gnu -C tree -rf two.tar empty
        tar -cf nothing.tar -T /dev/null
    "#;
    outcome(Command::new("bash").arg("-c").arg(script).current_dir(folder)).success();
    let mut made = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            made.push((path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()));
        }
    }
    made.sort();
    made
}

#[test]
fn real_tars_of_four_tools_mean_the_same_to_all() {
    let folder = tempfile::tempdir().unwrap();
    let archives = made_by_tools(folder.path());
    assert!(archives.len() >= 14, "{:?}", archives.iter().map(|it| &it.0).collect::<Vec<_>>());
    for (what, bytes) in &archives {
        let read = ours(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(what == "nothing.tar" || !read.0.is_empty(), "{what}");
    }
    let tally = judge(&archives);
    none_wrong(&tally);
    assert_eq!(tally.accepted, archives.len());
}

fn seed() -> u64 {
    let given = std::env::var("IMGBUILD_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("IMGBUILD_SEED={seed}");
    seed
}

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
    let mut random = StdRng::seed_from_u64(seed());
    let folder = tempfile::tempdir().unwrap();
    let models: Vec<(String, Vec<u8>)> =
        zips_by_tools(folder.path()).into_iter().filter(|(_, bytes)| bytes.len() > 30).collect();
    let mut changed = Vec::new();
    while changed.len() < 300 {
        let (what, mut bytes) = models[random.gen_range(0..models.len())].clone();
        for _ in 0..random.gen_range(1..3) {
            // A byte of a header, most of them of the first kind that says what follows.
            let signature = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"][random.gen_range(0..3)];
            let starts: Vec<usize> = memchr::memmem::find_iter(&bytes, signature).collect();
            let at = starts[random.gen_range(0..starts.len())] + random.gen_range(4..46);
            let any = random.gen_range(0..=255);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = [0, 1, 2, 8, 10, 20, 45, b'/', b'.', b'\\', 0xff, any][random.gen_range(0..12)];
            }
        }
        if our_zip(&bytes).is_ok() || random.gen_range(0..20) == 0 {
            changed.push((format!("{what}, changed ({})", changed.len()), bytes));
        }
    }
    let tally = judge_zips(&changed);
    println!(
        "{} accepted, {} refused, readers differ about {} of these",
        tally.accepted, tally.refused, tally.disputed
    );
    none_wrong(&tally);
    assert!(tally.accepted >= 50 && tally.refused >= 20, "{tally:?}");
}
