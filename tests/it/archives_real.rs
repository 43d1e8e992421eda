//! Archives as others read them: what imgbuild accepts of tar and zip means the same to GNU tar, bsdtar and Python, and
//! where these differ imgbuild refuses.
//!
//! Every reader tells the entries in the archive's order, one line each. GNU tar is asked for its listing and for all
//! contents in one stream; bsdtar writes what it understood as a new archive, which Python lists; Python lists for itself.
//! Here are the readers and tar; zip is in `archives_zip_real`.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use layers::Digest;
use layers::encode::Kind;
use layers::format::tar::Reader;
use layers::format::{FormatError, Limits};
use serde_json::Value;

use crate::support::run::outcome;

/// An entry of an archive, as one reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// `f`, `d`, `l`, `h`, `p`, `c`, `b`.
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: String,
    pub(crate) mtime: i64,
    pub(crate) size: u64,
    /// Target of a link, numbers of a device.
    pub(crate) link: String,
    /// SHA-256 of a file's content.
    pub(crate) content: String,
}

/// A name without what does not matter: `./a//b/` is `a/b`.
fn normal(name: &str) -> String {
    name.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}

pub(crate) fn hash(bytes: &[u8]) -> String {
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
pub(crate) fn python(paths: &[PathBuf]) -> Vec<Result<Vec<Line>, String>> {
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
pub(crate) struct Tally {
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    /// Refused, and the others do differ about it.
    pub(crate) disputed: usize,
    /// What imgbuild accepts and another reader reads differently.
    pub(crate) wrong: Vec<String>,
}

pub(crate) fn written(folder: &Path, archives: &[(String, Vec<u8>)], extension: &str) -> Vec<PathBuf> {
    let write = |(index, (_, bytes)): (usize, &(String, Vec<u8>))| {
        let path = folder.join(format!("{index}.{extension}"));
        fs::write(&path, bytes).unwrap();
        path
    };
    archives.iter().enumerate().map(write).collect()
}

/// What bsdtar reads in each of these files, as Python lists what bsdtar writes of it.
pub(crate) fn rewritten(paths: &[PathBuf], piped: bool) -> Vec<Result<Vec<Line>, String>> {
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
pub(crate) fn none_wrong(tally: &Tally) {
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
