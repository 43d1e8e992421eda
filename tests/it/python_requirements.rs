//! requirements.txt with hashes. The larger file was exported by uv.

use std::collections::BTreeMap;

use imgbuild::python::index::{Index, Indexes};
use imgbuild::python::{PythonError, select};
use layers::Platform::{Amd64, Arm64};
use layers::source::pip_requirements;

use crate::python::{Context, chosen, hash, target, versions};

const REAL: &str = include_str!("../fixtures/python/requirements.txt");

/// Pages of projects by URL.
struct Pages(BTreeMap<String, String>);

impl Index for Pages {
    fn get(&self, url: &str, _: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.0.get(url).map(|page| page.clone().into_bytes()))
    }
}

fn pages<'a>(files: impl IntoIterator<Item = (&'a str, &'a str, String)>) -> Pages {
    let mut pages: BTreeMap<String, String> = BTreeMap::new();
    for (project, file, hash) in files {
        let page = pages.entry(format!("https://index.example/simple/{project}/")).or_default();
        page.push_str(&format!("<a href=\"/files/{file}#{}\">{file}</a>\n", hash.replace(':', "=")));
    }
    Pages(pages)
}

fn lock(text: &str) -> Result<imgbuild::python::LockedSet, PythonError> {
    Context::of([("requirements.txt", text)]).lock(&pip_requirements("requirements.txt"))
}

#[test]
fn names_of_files_come_from_the_index_and_wheels_by_tag() {
    let text = format!(
        "# made by hand\na==1.0 --hash={a} \\\n    --hash={b}\nA[extra] == 1.0 --hash={a} --hash={b} ; # why\n\
         b===2.0 ; platform_machine == 'aarch64' --hash {c} --hash=sha512:00\n",
        a = hash('a'),
        b = hash('b'),
        c = hash('c')
    )
    .replace(" ; # why", " # why");
    let mut set = lock(&text).unwrap();
    assert!(matches!(select(&set, &target(Amd64)), Err(PythonError::NamesUnknown { name, .. }) if name == "a 1.0"));
    let pages = pages([
        ("a", "a-1.0-cp313-cp313-manylinux_2_28_x86_64.whl", hash('a')),
        ("a", "a-1.0-py3-none-any.whl", hash('b')),
        ("a", "a-1.0-cp313-cp313-manylinux_2_40_x86_64.whl", hash('e')),
        ("b", "b-2.0-py3-none-any.whl", hash('c')),
    ]);
    let indexes = Indexes::new(&["https://index.example/simple".to_owned()], &pages).unwrap();
    indexes.complete(&mut set, &target(Amd64)).unwrap();
    indexes.complete(&mut set, &target(Arm64)).unwrap();
    let set = Ok(set);
    assert_eq!(chosen(&set, Amd64), "a-1.0-cp313-cp313-manylinux_2_28_x86_64.whl");
    assert_eq!(chosen(&set, Arm64), "a-1.0-py3-none-any.whl\nb-2.0-py3-none-any.whl");
}

#[test]
fn an_index_without_the_hashes_is_told() {
    let text = format!("a==1.0 --hash={}\n", hash('a'));
    for (file_hash, expected) in [
        ("md5:00".to_owned(), "gives no hashes, so the files of a in `requirements.txt` cannot be told"),
        (hash('b'), "no longer has `any file with a locked hash` of a 1.0"),
    ] {
        let pages = pages([("a", "a-1.0-py3-none-any.whl", file_hash)]);
        let indexes = Indexes::new(&["https://index.example/simple/".to_owned()], &pages).unwrap();
        let error = indexes.complete(&mut lock(&text).unwrap(), &target(Amd64)).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_file_that_uv_exported_is_read() {
    let set = lock(REAL).unwrap();
    let found: Vec<String> = set.packages.iter().map(|package| package.label()).collect();
    let expected = ["colorama 0.4.6", "idna 3.7", "idna 3.20", "jinja2 3.1.6", "markupsafe 3.0.4", "pyyaml 6.0.3"];
    assert_eq!(found[..6], expected);
    assert!(set.packages.iter().all(|package| !package.hashes.is_empty()));
}

#[test]
fn included_files_are_read_once_and_from_the_context_alone() {
    let line = |name: &str| format!("{name}==1.0 --hash={}\n", hash('a'));
    let files = [
        ("app/requirements.txt", format!("-r more/a.txt\n--requirement=b.txt\n{}", line("one"))),
        ("app/more/a.txt", format!("-r../b.txt\n-r ../requirements.txt\n{}", line("two"))),
        ("app/b.txt", line("three")),
    ];
    let context = Context::of(files.iter().map(|(path, text)| (*path, text.as_str())));
    let set = context.lock(&pip_requirements("app/requirements.txt")).unwrap();
    let names: Vec<&str> = set.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, ["one", "three", "two"]);
    assert_eq!(
        set.read.iter().map(String::as_str).collect::<Vec<_>>(),
        ["app/b.txt", "app/more/a.txt", "app/requirements.txt"]
    );
    for name in ["../x.txt", "/etc/passwd", "a/../../x.txt"] {
        let error = lock(&format!("\n-r {name}")).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("`requirements.txt` line 2 is not understood: `{name}` is not inside the build context")
        );
    }
    assert!(lock("-r absent.txt").unwrap_err().to_string().starts_with("`absent.txt` cannot be read"));
}

#[test]
fn what_is_no_lock_is_refused_by_line() {
    let hash = hash('a');
    for (line, expected) in [
        ("a>=1.0 --hash=HASH", "a is not pinned to one version with `==`"),
        ("a --hash=HASH", "a is not pinned"),
        ("a==1.* --hash=HASH", "a is not pinned"),
        ("a==1.0,<2 --hash=HASH", "a is not pinned"),
        ("a=1.0 --hash=HASH", "a is not pinned"),
        ("a==1.0", "a has no `--hash=sha256:`"),
        ("a==1.0 --hash=sha512:00", "a has no `--hash=sha256:`"),
        ("a==1.0 --hash=sha256:00", "is not a digest"),
        ("a==1.0 --hash", "`--hash` has no value"),
        ("a==1.0 --hash=HASH --config-settings=x=secret", "option `--config-settings` of a requirement is refused"),
        ("--index-url https://u:secret@index.example/", "option `--index-url` is refused: indexes are configured"),
        ("--extra-index-url=https://u:secret@index.example/", "option `--extra-index-url` is refused"),
        ("-f ./wheels", "option `-f` is refused"),
        ("-c constraints.txt", "option `-c` is refused"),
        ("--no-such-option=secret", "option `--no-such-option` is refused"),
        ("a==1.0 ; nonsense --hash=HASH", "marker `nonsense` is not understood"),
        ("a b --hash=HASH", "is not a version specifier"),
    ] {
        let text = format!("--require-hashes\n--only-binary=:all:\n\n{}", line.replace("HASH", &hash));
        let error = lock(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("line 4"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for selection in
        [pip_requirements("requirements.txt").group("docs"), pip_requirements("requirements.txt").extra("x")]
    {
        let error = Context::of([("requirements.txt", "")]).lock(&selection).unwrap_err().to_string();
        assert!(error.ends_with("it has none"), "{error}");
    }
}

#[test]
fn entries_that_are_no_wheels_of_an_index_are_named_together() {
    let text = format!(
        "-e ./lib\n--editable=.\n./x.whl\nx-1.0-py3-none-any.whl\n\
         g @ git+https://u:secret@git.example/x@1\nf @ file:///x-1.0-py3-none-any.whl\n\
         u @ https://files.example/u-1.0-py3-none-any.whl\nv @ https://files.example/v-1.0-py3-none-any.whl --hash={}\n",
        hash('a')
    );
    let set = lock(&text);
    let error = chosen(&set, Amd64);
    assert!(error.starts_with("7 entries of `requirements.txt` cannot be installed for cp313 linux/amd64:"), "{error}");
    for expected in ["git commit", "as editable", "by path", "  u: the lock gives no SHA-256"] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(!error.contains("secret"), "{error}");
    let twice = format!("a==1.0 --hash={0}\na==2.0 --hash={0}", hash('a'));
    assert!(versions(&lock(&twice), Amd64).contains("gives a more than once"));
}
