//! Hostile wheels, and good ones compared with what pip installs.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::format::zip::samples::{Item, archive};
use crate::path;

const WHEEL: &str = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
const INFO: &str = "foo_bar-1.0.dist-info";

type Files = Vec<(String, Vec<u8>)>;

/// The files of a small wheel, without its RECORD.
fn files() -> Files {
    [
        ("foo/__init__.py", "x = 1\n"),
        (&format!("{INFO}/METADATA"), "Metadata-Version: 2.1\nName: foo-bar\nVersion: 1.0\n"),
        (&format!("{INFO}/WHEEL"), WHEEL),
        (&format!("{INFO}/entry_points.txt"), "[console_scripts]\nfoo = foo:main\n"),
        ("foo_bar-1.0.data/scripts/tool", "#!python\nprint(1)\n"),
        ("foo_bar-1.0.data/scripts/foo", "#!python\nan old wrapper\n"),
        ("foo_bar-1.0.data/scripts/plain", "#!/bin/sh\n"),
        ("foo_bar-1.0.data/headers/foo.h", "int x;\n"),
        ("foo_bar-1.0.data/data/share/man/man1/foo.1", ".TH\n"),
        ("foo_bar-1.0.data/platlib/native.so", "ELF\n"),
        ("foo/__pycache__/__init__.cpython-313.pyc", "byte-code"),
        ("foo/legacy.pyc", "a module without a source"),
        ("foo/__init__.pyc", "byte-code"),
    ]
    .map(|(name, content)| (name.to_owned(), content.as_bytes().to_vec()))
    .into()
}

fn row(name: &str, content: &[u8]) -> String {
    format!("{name},{},{}\n", record::hash(content), content.len())
}

fn record_of(files: &[(String, Vec<u8>)]) -> String {
    let rows: String = files.iter().map(|(name, content)| row(name, content)).collect();
    format!("{rows}{INFO}/RECORD,,\n")
}

fn items(files: &[(String, Vec<u8>)], record: &str) -> Vec<Item> {
    let mut items: Vec<Item> = files.iter().map(|(name, content)| Item::deflated(name, content)).collect();
    for item in &mut items {
        if item.name.windows(9).any(|part| part == b"/scripts/") {
            item.attributes = 0o100_755 << 16;
        }
    }
    items.push(Item::deflated(&format!("{INFO}/RECORD"), record.as_bytes()));
    items
}

type InMemory = Wheel<Cursor<Vec<u8>>>;

fn open_items(items: &[Item]) -> Result<InMemory, FormatError> {
    let archive = Archive::open(Cursor::new(archive(items)), &Limits::default())?;
    Wheel::open(archive, &"Foo_Bar-1.0-py3-none-any.whl".parse().expect("good"), &Limits::default())
}

fn open(files: &[(String, Vec<u8>)]) -> Result<InMemory, FormatError> {
    open_items(&items(files, &record_of(files)))
}

fn scheme() -> Scheme {
    Scheme::new(path!("/opt/venv"), "3.13").expect("good")
}

/// Opens, installs and verifies a hostile wheel; somewhere it is refused.
#[track_caller]
fn refuses(what: &str, wheel: Result<InMemory, FormatError>) -> String {
    let result = wheel.and_then(|mut wheel| {
        let installed = wheel.install(&scheme())?;
        wheel.verify()?;
        Ok(installed)
    });
    match result {
        Ok(installed) => panic!("{what} is installed as {installed:?}"),
        Err(error) => error.to_string(),
    }
}

fn content(wheel: &mut InMemory, file: &PlannedFile) -> Vec<u8> {
    match &file.content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::Entry(index) => {
            let mut bytes = Vec::new();
            wheel.copy_to(*index, &mut bytes).expect("good content");
            bytes
        }
    }
}

#[test]
fn a_wheel_becomes_a_tree() {
    let mut wheel = open(&files()).expect("a good wheel");
    wheel.verify().expect("all of it");
    let installed = wheel.install(&scheme()).expect("a good wheel");
    let mut lines = Vec::new();
    for file in &installed.files {
        let bytes = content(&mut wheel, file);
        let first = String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned();
        let when = if file.mtime == EPOCH { "ours" } else { "zip" };
        lines.push(format!("{} {:o} {when} {first}", file.path, file.mode));
    }
    let site = "/opt/venv/lib/python3.13/site-packages";
    let expected = [
        "/opt/venv/bin/foo 755 ours #!/opt/venv/bin/python".to_owned(),
        "/opt/venv/bin/plain 755 zip #!/bin/sh".to_owned(),
        "/opt/venv/bin/tool 755 zip #!/opt/venv/bin/python".to_owned(),
        "/opt/venv/include/site/python3.13/foo-bar/foo.h 644 zip int x;".to_owned(),
        format!("{site}/foo/__init__.py 644 zip x = 1"),
        format!("{site}/foo/legacy.pyc 644 zip a module without a source"),
        format!("{site}/{INFO}/INSTALLER 644 ours imgbuild"),
        format!("{site}/{INFO}/METADATA 644 zip Metadata-Version: 2.1"),
        format!("{site}/{INFO}/RECORD 644 ours ../../../bin/foo,{}", &{
            let script = lines.iter().position(|line| line.starts_with("/opt/venv/bin/foo ")).expect("it is there");
            let bytes = content(&mut wheel, &installed.files[script]);
            format!("{},{}", record::hash(&bytes), bytes.len())
        }),
        format!("{site}/{INFO}/WHEEL 644 zip Wheel-Version: 1.0"),
        format!("{site}/{INFO}/entry_points.txt 644 zip [console_scripts]"),
        format!("{site}/native.so 644 zip ELF"),
        "/opt/venv/share/man/man1/foo.1 644 zip .TH".to_owned(),
    ];
    assert_eq!(lines, expected);
    assert_eq!(installed.dist_info.as_str(), format!("{site}/{INFO}"));
    // RECORD lists what is there, with the right digests.
    let record = installed.files.iter().find(|file| file.path.file_name() == "RECORD").expect("it is there").clone();
    let rows = parse_record(&content(&mut wheel, &record)).expect("our own");
    assert_eq!(rows.len(), installed.files.len());
    for file in &installed.files {
        let path = relative(&file.path, scheme().site_packages());
        let row = rows.iter().find(|row| row.path == path).unwrap_or_else(|| panic!("{path} is not listed"));
        let bytes = content(&mut wheel, file);
        if !path.ends_with("/RECORD") {
            assert_eq!((row.hash.clone(), row.size.clone()), (record::hash(&bytes), bytes.len().to_string()), "{path}");
        }
    }
}

#[test]
fn record_and_archive_list_the_same_files() {
    let good = files();
    let with = |record: String| open_items(&items(&good, &record));
    let record = record_of(&good);
    let line = row("foo/__init__.py", b"x = 1\n");
    assert!(record.contains(&line));
    let replace = |by: &str| with(record.replace(&line, by));
    assert!(refuses("not listed", replace("")).contains("does not list it"));
    assert!(refuses("not there", with(format!("{record}foo/missing.py,sha256=x,1\n"))).contains("not in the wheel"));
    assert!(refuses("outside", with(format!("{record}../../x,sha256=x,1\n"))).contains("not in the wheel"));
    assert!(refuses("no digest", replace("foo/__init__.py,,\n")).contains("no SHA-256"));
    assert!(refuses("MD5", replace("foo/__init__.py,md5=xx,6\n")).contains("no SHA-256"));
    assert!(refuses("SHA-1", replace("foo/__init__.py,sha1=xx,6\n")).contains("no SHA-256"));
    assert!(refuses("another digest", replace(&row("foo/__init__.py", b"x = 2\n"))).contains("its digest is"));
    assert!(refuses("another size", replace(&line.replace(",6", ",7"))).contains("has 6 bytes"));
    assert!(refuses("no number", replace(&line.replace(",6", ",six"))).contains("`six`"));
    assert!(refuses("twice", replace(&format!("{line}{}", row("foo/__init__.py", b"y")))).contains("twice"));
    assert!(refuses("no CSV", with("\"".to_owned() + &record)).contains("RECORD"));
    assert!(replace(&format!("{line}{line}")).is_ok(), "the same twice says nothing new");
    assert!(replace(&line.replace(",6", ",")).is_ok(), "a size is optional");
    let mut signed = good.clone();
    signed.push((format!("{INFO}/RECORD.jws"), b"{}".to_vec()));
    signed.push((format!("{INFO}/RECORD.p7s"), b"{}".to_vec()));
    let wheel = open_items(&items(&signed, &record)).expect("signatures are not listed");
    assert_eq!(wheel.install(&scheme()).expect("good").files.len(), 15);
}

#[test]
fn metadata_is_complete_and_of_one_distribution() {
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = files();
        change(&mut files);
        open(&files)
    };
    for file in ["METADATA", "WHEEL"] {
        let without = with(&|files| files.retain(|(name, _)| *name != format!("{INFO}/{file}")));
        assert!(refuses("incomplete", without).contains("missing"), "{file}");
    }
    let no_record = archive(&files().iter().map(|(name, content)| Item::new(name, content)).collect::<Vec<_>>());
    let no_record = Archive::open(Cursor::new(no_record), &Limits::default()).expect("a good zip");
    let name: WheelName = "foo_bar-1.0-py3-none-any.whl".parse().expect("good");
    assert!(refuses("no RECORD", Wheel::open(no_record, &name, &Limits::default())).contains("RECORD"));
    for (version, fine) in [("2.0", false), ("1", false), ("1.x", false), ("", false), ("0.9", false), ("1.9", true)] {
        let text = WHEEL.replace("Version: 1.0", &format!("Version: {version}"));
        assert_eq!(with(&|files| files[2].1 = text.clone().into_bytes()).is_ok(), fine, "{version}");
    }
    refuses("two versions", with(&|files| files[2].1 = format!("Wheel-Version: 1.0\n{WHEEL}").into_bytes()));
    refuses("no version", with(&|files| files[2].1 = b"Generator: x\n".to_vec()));
    refuses("binary", with(&|files| files[2].1 = b"\xff".to_vec()));
    refuses("another's dist-info", with(&|files| files.push(("bar-1.0.dist-info/x".into(), vec![]))));
    refuses("two dist-infos", with(&|files| files.push(("foo_bar-2.0.dist-info/x".into(), vec![]))));
    refuses("another's data", with(&|files| files.push(("bar-1.0.data/data/x".into(), vec![]))));
    let other: WheelName = "other-1.0-py3-none-any.whl".parse().expect("good");
    let bytes = archive(&items(&files(), &record_of(&files())));
    let opened = Archive::open(Cursor::new(bytes), &Limits::default()).expect("a good zip");
    refuses("another name", Wheel::open(opened, &other, &Limits::default()));
    let opened = Archive::open(Cursor::new(archive(&[])), &Limits::default()).expect("a good zip");
    refuses("empty", Wheel::open(opened, &other, &Limits::default()));
    let limits = Limits { max_metadata: 4000, ..Limits::default() };
    let mut large = files();
    large[1].1 = vec![b'x'; 4001];
    let bytes = archive(&items(&large, &record_of(&large)));
    let opened = Archive::open(Cursor::new(bytes), &limits).expect("a good zip");
    assert!(matches!(Wheel::open(opened, &name, &limits), Err(FormatError::Limit { limit: 4000, .. })));
}

#[test]
fn nothing_is_installed_outside_or_twice() {
    let with = |name: &str| {
        let mut files = files();
        files.push((name.to_owned(), b"evil".to_vec()));
        open(&files)
    };
    for name in [
        "../x",
        "/etc/passwd",
        "foo/../../x",
        "foo_bar-1.0.data/scripts/../../x",
        "foo_bar-1.0.data/../x",
        "foo_bar-1.0.data/data/../../../etc/passwd",
        "foo_bar-1.0.data//etc/passwd",
        "foo_bar-1.0.data/scripts/..\\x",
    ] {
        assert!(refuses(name, with(name)).contains("zip archive names"), "{name}");
    }
    for name in ["foo_bar-1.0.data/x", "foo_bar-1.0.data/stdlib/x", "foo_bar-1.0.data/include/x"] {
        assert!(refuses(name, with(name)).contains(".data"), "{name}");
    }
    // The same place by two ways.
    for name in [
        "foo_bar-1.0.data/purelib/foo/__init__.py",
        "foo_bar-1.0.data/platlib/foo/__init__.py",
        "foo_bar-1.0.data/data/lib/python3.13/site-packages/foo/__init__.py",
        "foo_bar-1.0.data/data/bin/tool",
        "foo_bar-1.0.data/data/bin/foo",
        "foo_bar-1.0.data/purelib/foo_bar-1.0.dist-info/INSTALLER",
    ] {
        assert!(refuses(name, with(name)).contains("two files"), "{name}");
    }
    for name in ["foo_bar-1.0.data/data/bin/tool/x", "foo_bar-1.0.data/purelib/foo"] {
        assert!(refuses(name, with(name)).contains("lies below"), "{name}");
    }
    let mut link = items(&files(), &record_of(&files()));
    link[0].attributes = 0o120_777 << 16;
    assert!(refuses("a symbolic link", open_items(&link)).contains("symbolic link"));
    let mut entry_point = files();
    entry_point[3].1 = b"[console_scripts]\n../../etc/x = foo:main\n".to_vec();
    assert!(refuses("an entry point", open(&entry_point)).contains("separator"));
    // Case differs: two files, on Linux.
    assert!(with("FOO/__init__.py").expect("good").install(&scheme()).is_ok());
}

#[test]
fn what_was_verified_is_what_is_read() {
    let good = files();
    let record = record_of(&good);
    // Each file in turn says something else than RECORD; the zip's own CRC-32 fits.
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index].1 = bad[index].1.iter().map(|byte| byte ^ 1).collect();
        refuses(&good[index].0, open_items(&items(&bad, &record)));
    }
    let mut wheel = open(&good).expect("good");
    let mut verifier = wheel.verifier(0);
    verifier.update(b"x = 2\n");
    assert!(verifier.finish().is_err());
    let mut verifier = wheel.verifier(0);
    verifier.write_all(b"x = 1\n").expect("it takes everything");
    assert!(verifier.finish().is_ok());
    assert_eq!(wheel.archive().entries().len(), good.len() + 1);
}

#[test]
fn schemes_are_checked() {
    for bad in ["", "3", "3.", "3.13.1", "3.x", "../3.13", "3.1/2", "3.-1"] {
        assert!(Scheme::new(path!("/opt/venv"), bad).is_err(), "{bad}");
    }
    let scheme = Scheme::new(path!("/"), "3.13").expect("a root is a place too");
    assert_eq!(scheme.site_packages().as_str(), "/lib/python3.13/site-packages");
    assert_eq!(relative(&path!("/bin/x"), scheme.site_packages()), "../../../bin/x");
    assert_eq!(scheme.interpreter().as_str(), "/bin/python");
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; install python3 and pip"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// All files below a directory with mode and content.
fn tree(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = std::fs::symlink_metadata(&path).expect("it is there");
            if metadata.is_dir() {
                waiting.push(path);
            } else if metadata.is_file() {
                let content = std::fs::read(&path).expect("it is there");
                let name = path.to_str().expect("UTF-8").to_owned();
                found.insert(name, (metadata.permissions().mode() & 0o7777, content));
            }
        }
    }
    found
}

/// The lines of a generated script that no version of pip changed.
fn essence(script: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(script);
    let lines = text.lines().map(str::trim).filter(|line| {
        line.starts_with("#!")
            || line.starts_with("from ")
            || line.starts_with("sys.exit(")
            || line.starts_with("if __")
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn real_pip_installs_the_same_files() {
    let root = tempfile::tempdir().expect("a directory");
    let root = root.path().canonicalize().expect("it is there");
    let build = r##"
import base64, hashlib, sys, zipfile
def wheel(file, info, files):
    rows = ""
    with zipfile.ZipFile(sys.argv[1] + "/" + file, "w", zipfile.ZIP_DEFLATED) as z:
        def put(name, content, mode=0o644):
            i = zipfile.ZipInfo(name, (2024, 2, 3, 4, 5, 6)); i.external_attr = (0o100000 | mode) << 16
            z.writestr(i, content, zipfile.ZIP_DEFLATED)
        for name, (content, mode) in files.items():
            content = content.encode()
            put(name, content, mode)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            quoted = '"%s"' % name.replace('"', '""') if "," in name or '"' in name else name
            rows += f"{quoted},sha256={digest},{len(content)}\n"
        put(info + "/RECORD", (rows + info + "/RECORD,,\n").encode())
def meta(name, version, pure="true"):
    i = f"{name}-{version}.dist-info"
    return {i + "/METADATA": (f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", 0o644),
            i + "/WHEEL": (f"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: {pure}\nTag: py3-none-any\n", 0o644)}
wheel("plain-1.0-py3-none-any.whl", "plain-1.0.dist-info", {"plain/__init__.py": ("x = 1\n", 0o644),
    "plain/data/empty": ("", 0o644), "plain/run.sh": ("#!/bin/sh\n", 0o755), 'plain/odd, "name" ä.txt': ("odd\n", 0o600),
    "plain_module.py": ("", 0o644), **meta("plain", "1.0")})
d = "Rich_Wheel-2.5.data"
wheel("Rich_Wheel-2.5-py3-none-any.whl", "Rich_Wheel-2.5.dist-info", {"rich_wheel/__init__.py": ("def main(): pass\n", 0o644),
    d + "/scripts/rich-tool": ("#!python\nprint('tool')\n", 0o755), d + "/scripts/rich-shell": ("#!/bin/sh\necho\n", 0o755),
    d + "/scripts/rich-w": ("#!pythonw -u\nprint('tool')", 0o755), d + "/scripts/unmarked": ("#!python\n", 0o644),
    d + "/headers/rich/rich.h": ("int x;\n", 0o644), d + "/data/share/rich/file.txt": ("data\n", 0o644),
    d + "/data/etc/rich.conf": ("", 0o644), d + "/purelib/rich_pure.py": ("p = 1\n", 0o644),
    d + "/platlib/rich_plat/__init__.py": ("q = 1\n", 0o644), "Rich_Wheel-2.5.dist-info/licenses/LICENSE": ("MIT\n", 0o644),
    "Rich_Wheel-2.5.dist-info/entry_points.txt": ("# scripts\n[console_scripts]\nrich = rich_wheel:main\n"
      "rich.sub-cmd_2=rich_wheel.cli:App.run [extra]\n\n[gui_scripts]\nrich-gui = rich_wheel:main\n[other.group]\nx = y\n", 0o644),
    **meta("Rich_Wheel", "2.5", "false")})
wheel("pip-99.0-py3-none-any.whl", "pip-99.0.dist-info", {"pip/__init__.py": ("", 0o644),
    "pip-99.0.dist-info/entry_points.txt": ("[console_scripts]\npip = pip:main\npip3 = pip:main\npip3.7 = pip:main\n", 0o644),
    **meta("pip", "99.0")})
"##;
    run(Command::new("python3").args(["-c", build]).arg(&root));
    let version = "import sys; print('%d.%d' % sys.version_info[:2])";
    let version = run(Command::new("python3").args(["-c", version]));
    for file in ["plain-1.0-py3-none-any.whl", "Rich_Wheel-2.5-py3-none-any.whl", "pip-99.0-py3-none-any.whl"] {
        let venv = root.join(file.split('-').next().expect("a name"));
        let venv_text = venv.to_str().expect("UTF-8");
        run(Command::new("python3").args(["-m", "venv", "--without-pip", venv_text]));
        let before = tree(&venv);
        let install =
            "import os, sys; os.umask(0o022); os.execvp(sys.executable, [sys.executable, '-m', 'pip'] + sys.argv[1:])";
        run(Command::new("python3")
            .args([
                "-c",
                install,
                "--python",
                &format!("{venv_text}/bin/python"),
                "install",
                "--no-deps",
                "--no-compile",
            ])
            .args(["--no-index", "--no-warn-script-location", "--disable-pip-version-check"])
            .arg(root.join(file)));
        let mut theirs = tree(&venv);
        theirs.retain(|path, _| !before.contains_key(path));

        let archive = std::fs::File::open(root.join(file)).expect("written above");
        let archive = Archive::open(archive, &Limits::default()).expect(file);
        let mut wheel = Wheel::open(archive, &file.parse().expect(file), &Limits::default()).expect(file);
        let scheme = Scheme::new(ImagePath::new(venv_text).expect("a path"), &version).expect("a version");
        let installed = wheel.install(&scheme).expect(file);
        let mut ours = BTreeMap::new();
        for planned in &installed.files {
            let mut bytes = Vec::new();
            match &planned.content {
                Content::Bytes(written) => bytes.clone_from(written),
                Content::Entry(index) => drop(wheel.copy_to(*index, &mut bytes).expect(file)),
            }
            ours.insert(planned.path.to_string(), (planned.mode, bytes));
        }

        // A file given on the command line is a direct URL, and asked for: pip notes both, a lock is neither.
        let info = installed.dist_info.to_string();
        let notes = ["direct_url.json", "REQUESTED"].map(|note| format!("{info}/{note}"));
        let (record, installer) = (format!("{info}/RECORD"), format!("{info}/INSTALLER"));
        theirs.retain(|path, _| !notes.contains(path));
        let names = |tree: &BTreeMap<String, (u32, Vec<u8>)>| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{file}");
        let mut differing = vec!["INSTALLER".to_owned()];
        for (path, (mode, bytes)) in &ours {
            let (their_mode, their_bytes) = &theirs[path];
            assert_eq!(mode, their_mode, "{path}");
            let generated = path.starts_with(&format!("{venv_text}/bin/")) && bytes.ends_with(b"())\n");
            if generated && bytes != their_bytes {
                // Newer pips write another template.
                assert_eq!(essence(bytes), essence(their_bytes), "{path}");
                differing.push(path.rsplit('/').next().expect("a name").to_owned());
            } else if *path == installer {
                assert_eq!((&bytes[..], &their_bytes[..]), (&b"imgbuild\n"[..], &b"pip\n"[..]));
            } else if *path != record {
                assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(their_bytes), "{path}");
            }
        }
        let lines = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let lines = text
                .split_inclusive('\n')
                .filter(|line| !line.contains("direct_url.json") && !line.contains("/REQUESTED,"));
            lines
                .map(|line| {
                    let differs = differing.iter().any(|name| line.contains(&format!("/{name},")));
                    if differs { line.split(',').next().expect("a path").to_owned() } else { line.to_owned() }
                })
                .collect()
        };
        assert_eq!(lines(&ours[&record].1), lines(&theirs[&record].1), "{file}");
    }
}
