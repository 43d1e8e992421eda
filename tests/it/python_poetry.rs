//! poetry.lock. The larger lock was made by Poetry; only its hosts were replaced.

use layers::Platform::{Amd64, Arm64};
use layers::source::poetry_lock;

use crate::python::{Context, chosen, hash, versions};

const PURE: &str = "py3-none-any";

fn entry(name: &str, version: &str, rest: &str, files: &[&str]) -> String {
    let listed: String =
        files.iter().map(|file| format!("    {{file = \"{file}\", hash = \"{}\"}},\n", hash('a'))).collect();
    format!(
        "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\ndescription = \"\"\noptional = false\n\
         python-versions = \">=3.8,<4\"\nfiles = [\n{listed}]\n{rest}\n\n"
    )
}

fn pure(name: &str, version: &str, rest: &str) -> String {
    entry(name, version, rest, &[&format!("{}-{version}-{PURE}.whl", name.replace('-', "_"))])
}

fn metadata(version: &str) -> String {
    format!("[metadata]\nlock-version = \"{version}\"\npython-versions = \"^3.12\"\ncontent-hash = \"00\"\n")
}

/// Groups `docs` and `rag`, native wheels, markers in both spellings, an extra.
fn two_groups() -> String {
    [
        pure("Jinja2", "3.1.6", "groups = [\"docs\", \"rag\"]"),
        entry(
            "markupsafe",
            "3.0.2",
            "groups = [\"main\", \"docs\", \"rag\"]",
            &[
                "MarkupSafe-3.0.2-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                "MarkupSafe-3.0.2-cp313-cp313-macosx_11_0_arm64.whl",
                "MarkupSafe-3.0.2-cp313-cp313-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
                "MarkupSafe-3.0.2-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                "MarkupSafe-3.0.2-cp313-cp313-musllinux_1_2_x86_64.whl",
                "MarkupSafe-3.0.2-cp313-cp313t-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                "MarkupSafe-3.0.2-cp313-cp313-win_amd64.whl",
                "markupsafe-3.0.2.tar.gz",
            ],
        ),
        pure("colorama", "0.4.6", "groups = [\"docs\", \"rag\"]\nmarkers = \"platform_system == \\\"Windows\\\"\""),
        pure(
            "watchdog",
            "6.0.0",
            "groups = [\"docs\", \"rag\"]\n\
             markers = {docs = \"sys_platform == 'win32'\", rag = \"platform_machine == 'aarch64'\"}",
        ),
        pure("click", "8.2.1", "groups = [\"main\", \"rag\"]\nmarkers = {main = \"extra == 'cli'\"}"),
        entry(
            "numpy",
            "2.3.1",
            "groups = [\"rag\"]\nmarkers = \"python_version >= '3.13'\"",
            &[
                "numpy-2.3.1-cp313-cp313-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
                "numpy-2.3.1-cp313-cp313-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
            ],
        ),
        pure("numpy", "1.26.4", "groups = [\"rag\"]\nmarkers = \"python_version < '3.13'\""),
        "[extras]\ncli = [\"click\"]\n\n".to_owned(),
        metadata("2.1"),
    ]
    .concat()
}

#[test]
fn groups_extras_and_markers_choose_entries_for_the_target() {
    let lock = two_groups();
    let context = Context::of([("poetry.lock", lock.as_str())]);
    let markupsafe = "MarkupSafe-3.0.2-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl";
    let docs = format!("Jinja2-3.1.6-py3-none-any.whl\n{markupsafe}");
    assert_eq!(chosen(&context.lock(&poetry_lock("poetry.lock").group("docs")), Amd64), docs);
    assert_eq!(
        chosen(&context.lock(&poetry_lock("poetry.lock").group("rag")), Arm64),
        "click-8.2.1-py3-none-any.whl\nJinja2-3.1.6-py3-none-any.whl\n\
         MarkupSafe-3.0.2-cp313-cp313-manylinux_2_17_aarch64.manylinux2014_aarch64.whl\n\
         numpy-2.3.1-cp313-cp313-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl\n\
         watchdog-6.0.0-py3-none-any.whl"
    );
    let both = chosen(&context.lock(&poetry_lock("poetry.lock").group("docs").group("RAG")), Amd64);
    assert_eq!(both.lines().count(), 4, "{both}");
    assert_eq!(chosen(&context.lock(&poetry_lock("poetry.lock")), Amd64), markupsafe);
    assert_eq!(chosen(&context.lock(&poetry_lock("poetry.lock").group("main")), Amd64), markupsafe);
    assert_eq!(
        chosen(&context.lock(&poetry_lock("poetry.lock").extra("CLI")), Amd64),
        format!("click-8.2.1-py3-none-any.whl\n{markupsafe}")
    );
}

#[test]
fn what_the_lock_does_not_know_is_named() {
    let lock = two_groups();
    let context = Context::of([("sub/poetry.lock", lock.as_str())]);
    for (selection, expected) in [
        (
            poetry_lock("sub/poetry.lock").group("doc"),
            "`sub/poetry.lock` has no dependency group `doc`: it has docs, main, rag",
        ),
        (poetry_lock("sub/poetry.lock").extra("web"), "`sub/poetry.lock` has no extra `web`: it has cli"),
        (
            poetry_lock("sub/poetry.lock").group("rag").extra("cli"),
            "extra `cli` of `sub/poetry.lock` extends the main dependencies, which the groups leave out: \
             add group `main`",
        ),
    ] {
        assert_eq!(context.lock(&selection).unwrap_err().to_string(), expected);
    }
    let absent = context.lock(&poetry_lock("poetry.lock")).unwrap_err().to_string();
    assert!(absent.starts_with("`poetry.lock` cannot be read from the build context"), "{absent}");
    let unknown = context.lock(&poetry_lock("sub/poetry.lock")).unwrap().without(&["clik".to_owned()]);
    assert_eq!(unknown.unwrap_err().to_string(), "`sub/poetry.lock` holds no `clik` that could be left out");
}

#[test]
fn all_entries_that_cannot_be_installed_are_in_one_error() {
    let source = |kind: &str, more: &str| {
        format!("groups = [\"main\"]\n{more}\n\n[package.source]\ntype = \"{kind}\"\nurl = \"../x\"")
    };
    let lock = [
        entry("jsmin", "3.0.1", "groups = [\"main\"]", &["jsmin-3.0.1.tar.gz"]),
        entry(
            "grpcio",
            "1.71.0",
            "groups = [\"main\"]",
            &[
                "grpcio-1.71.0-cp313-cp313-manylinux_2_17_x86_64.whl",
                "grpcio-1.71.0-cp313-cp313-win32.whl",
                "grpcio-1.71.0-cp312-cp312-win32.whl",
                "grpcio-1.71.0-cp311-cp311-win32.whl",
                "grpcio-1.71.0.tar.gz",
            ],
        ),
        entry("other", "1.0", "groups = [\"main\"]", &["elsewhere-1.0-py3-none-any.whl", "other-2.0-py3-none-any.whl"]),
        entry("a-git", "1.0", &source("git", ""), &[]),
        entry("a-path", "1.0", &source("file", ""), &["a_path-1.0-py3-none-any.whl"]),
        entry("a-directory", "1.0", &source("directory", ""), &[]),
        entry("an-editable", "1.0", &source("directory", "develop = true"), &[]),
        entry("a-url", "1.0", &source("url", ""), &["a_url-1.0-py3-none-any.whl"]),
        pure("an-index", "1.0", &source("legacy", "")),
        pure("newer", "1.0", "groups = [\"main\"]").replace(">=3.8,<4", ">=3.14"),
        pure("unhashed", "1.0", "groups = [\"main\"]").replace(&hash('a'), "md5:00"),
        metadata("2.1"),
    ]
    .concat();
    let context = Context::of([("poetry.lock", lock.as_str())]);
    let set = context.lock(&poetry_lock("poetry.lock"));
    assert_eq!(
        chosen(&set, Arm64),
        "9 entries of `poetry.lock` cannot be installed for cp313 linux/arm64:\n  \
         a-directory 1.0: it is locked by path, not as a wheel of an index\n  \
         a-git 1.0: it is locked as a git commit, not as a wheel of an index\n  \
         a-path 1.0: it is locked by path, not as a wheel of an index\n  \
         an-editable 1.0: it is locked as editable, not as a wheel of an index\n  \
         grpcio 1.71.0: no wheel fits; the lock has wheels for cp313-cp313-manylinux_2_17_x86_64, \
         cp313-cp313-win32, cp312-cp312-win32, 1 more and an sdist\n  \
         jsmin 3.0.1: the lock has only an sdist, `jsmin-3.0.1.tar.gz`\n  \
         newer 1.0: it requires Python >=3.14, and the image has 3.13.5\n  \
         other 1.0: the lock has no wheel of it\n  \
         unhashed 1.0: the lock gives no SHA-256 for its wheels\n\
         ways out: lock a version that has a wheel for the target, build it with `.build_from_source(\"name\")`, put a \
         wheel of it on your package index and lock again, or leave it out with `.without([\"name\"])`"
    );
    let left = ["jsmin", "other", "a.git", "a-path", "a-directory", "an-editable", "newer", "unhashed"];
    let set = set.unwrap().without(&left.map(str::to_owned));
    assert_eq!(
        chosen(&set, Amd64),
        "a_url-1.0-py3-none-any.whl\nan_index-1.0-py3-none-any.whl\ngrpcio-1.71.0-cp313-cp313-manylinux_2_17_x86_64.whl"
    );
    assert!(
        chosen(&set, Arm64).starts_with("grpcio 1.71.0 of `poetry.lock` cannot be installed for cp313 linux/arm64: no")
    );
}

#[test]
fn the_best_tag_wins_and_then_the_highest_build() {
    for (files, best) in [
        (&["x-1.0-py3-none-any.whl", "x-1.0-cp313-cp313-linux_x86_64.whl"][..], 1),
        (&["x-1.0-cp38-abi3-manylinux_2_28_x86_64.whl", "x-1.0-cp313-cp313-manylinux1_x86_64.whl"], 1),
        (&["x-1.0-cp313-cp313-manylinux_2_28_x86_64.whl", "x-1.0-cp313-cp313-manylinux2014_x86_64.whl"], 0),
        (&["x-1.0-cp313-cp313-manylinux_2_42_x86_64.whl", "x-1.0-cp312-abi3-manylinux_2_41_x86_64.whl"], 1),
        (&["x-1.0-9-py3-none-any.whl", "x-1.0-10-py3-none-any.whl", "x-1.0-py3-none-any.whl"], 1),
        (&["x-1.0-10a-py3-none-any.whl", "x-1.0-10b-py3-none-any.whl"], 1),
        (&["x-1.0-99-py2.py3-none-any.whl", "x-1.0-py313-none-any.whl"], 1),
    ] {
        for reversed in [false, true] {
            let mut listed = files.to_vec();
            if reversed {
                listed.reverse();
            }
            let lock = entry("x", "1.0", "groups = [\"main\"]", &listed) + &metadata("2.1");
            let context = Context::of([("poetry.lock", lock.as_str())]);
            assert_eq!(chosen(&context.lock(&poetry_lock("poetry.lock")), Amd64), files[best]);
        }
    }
}

#[test]
fn two_versions_for_one_target_are_refused() {
    let lock = pure("x", "1.0", "groups = [\"main\"]")
        + &pure("X", "2.0", "groups = [\"main\"]\nmarkers = \"os_name == 'posix'\"")
        + &metadata("2.1");
    let context = Context::of([("poetry.lock", lock.as_str())]);
    assert_eq!(
        chosen(&context.lock(&poetry_lock("poetry.lock")), Amd64),
        "`poetry.lock` gives x more than once for cp313 linux/amd64: 1.0, 2.0; choose groups and extras that do not \
         conflict, or lock again"
    );
}

#[test]
fn the_projects_interpreters_are_honoured() {
    let lock = pure("x", "1.0", "groups = [\"main\"]") + &metadata("2.1").replace("^3.12", ">=3.9,<3.13 || ^3.14");
    let context = Context::of([("poetry.lock", lock.as_str())]);
    assert_eq!(
        chosen(&context.lock(&poetry_lock("poetry.lock")), Amd64),
        "`poetry.lock` is for Python >=3.9,<3.13 || ^3.14, and the image has 3.13.5: lock the project for 3.13.5, too"
    );
}

#[test]
fn lock_version_2_0_is_walked_from_pyproject() {
    let lock = [
        pure("a", "1.0", "\n[package.dependencies]\nb = {version = \">=1\", extras = [\"fast\"]}\nwin = {version = \"*\", markers = \"sys_platform == 'win32'\"}"),
        pure("b", "1.0", "\n[package.dependencies]\nc = {version = \"*\", optional = true, markers = \"extra == 'fast'\"}\nd = {version = \"*\", optional = true}\n\n[package.extras]\nfast = [\"c (>=1)\"]\nslow = [\"d\"]"),
        pure("c", "1.0", "\n[package.dependencies]\na = \"*\""),
        pure("d", "1.0", ""),
        pure("win", "1.0", "\n[package.dependencies]\nunlocked = \"*\""),
        pure("fork", "1.5", ""),
        pure("fork", "2.5", ""),
        pure("dev-tool", "1.0", ""),
        pure("old-dev", "1.0", ""),
        pure("extra-one", "1.0", ""),
        "[extras]\nmore = [\"extra-one\"]\n\n".to_owned(),
        metadata("2.0"),
    ]
    .concat();
    let pyproject = r#"
        [tool.poetry]
        name = "sample"
        [tool.poetry.dependencies]
        python = "^3.12"
        A = "^1.0"
        extra-one = {version = "*", optional = true}
        fork = [{version = "^1", python = "<3.13"}, {version = "^2", python = ">=3.13"}]
        [tool.poetry.extras]
        more = ["extra-one"]
        [tool.poetry.group.tools.dependencies]
        dev_tool = {version = "*", platform = "linux"}
        b = {version = "*", extras = ["slow"]}
        [tool.poetry.dev-dependencies]
        old-dev = "*"
        [tool.poetry.group.broken.dependencies]
        nowhere = ">=1"
    "#;
    let context = Context::of([("app/poetry.lock", lock.as_str()), ("app/pyproject.toml", pyproject)]);
    let names = |selection| {
        let set = context.lock(&selection);
        assert_eq!(
            set.as_ref().unwrap().read.iter().collect::<Vec<_>>(),
            ["app/poetry.lock", "app/pyproject.toml"],
            "both files belong in the key"
        );
        chosen(&set, Amd64).replace("-py3-none-any.whl", "").replace('\n', " ")
    };
    let main = poetry_lock("app/poetry.lock");
    assert_eq!(names(main.clone()), "a-1.0 b-1.0 c-1.0 fork-2.5");
    assert_eq!(names(main.clone().extra("more")), "a-1.0 b-1.0 c-1.0 extra_one-1.0 fork-2.5");
    assert_eq!(names(main.clone().group("tools")), "b-1.0 d-1.0 dev_tool-1.0");
    assert_eq!(names(main.clone().group("dev")), "old_dev-1.0");
    assert!(names(main.clone().group("broken")).contains("nowhere of `app/poetry.lock` cannot be installed"));
    let unknown = context.lock(&main.group("tool")).unwrap_err().to_string();
    assert_eq!(unknown, "`app/poetry.lock` has no dependency group `tool`: it has broken, dev, main, tools");
}

#[test]
fn files_that_are_no_lock_are_refused() {
    let deep = format!("x = {}", "[".repeat(100_000));
    let evil = entry("x", "1.0", "groups = [\"main\"]", &["../../etc/x-1.0-py3-none-any.whl"]) + &metadata("2.1");
    let digest = pure("x", "1.0", "groups = [\"main\"]").replace(&hash('a'), "sha256:../x") + &metadata("2.1");
    let marker = pure("x", "1.0", "groups = [\"main\"]\nmarkers = \"os_name ~= 'x'\"") + &metadata("2.1");
    let kind = pure("x", "1.0", "groups = [\"main\"]\n[package.source]\ntype = \"magic\"") + &metadata("2.1");
    for (text, expected) in [
        ("", "`metadata`"),
        ("[metadata", "line 1"),
        ("\n\nx = ", "line 3"),
        (&metadata("1.1"), "has lock version 1.1, and 2.0 or 2.1 is understood"),
        (&metadata("3.0"), "has lock version 3.0"),
        (&evil, "is not a file name"),
        (&digest, "is not a digest"),
        (&marker, "poetry.lock: x: marker `os_name ~= 'x'` is not understood"),
        (&kind, "source type `magic` is not known"),
        (&deep, "poetry.lock"),
    ] {
        let context = Context::of([("poetry.lock", text)]);
        let error = context.lock(&poetry_lock("poetry.lock")).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_lock_that_poetry_wrote_is_read_as_poetry_exports_it() {
    let context = Context::of([("poetry.lock", include_str!("../fixtures/python/poetry.lock"))]);
    let lock = poetry_lock("poetry.lock");
    let http = "anyio==4.16.0 certifi==2026.10.18 h11==0.16.0 h2==4.4.1 hpack==4.2.0 httpcore==1.0.9 httpx==0.28.1 \
                hyperframe==6.1.0 idna==3.20";
    // What `poetry export` and `uv pip install --dry-run --python-platform` said when the lock was made.
    let docs = "jinja2==3.1.6 markupsafe==3.0.4";
    let rag = format!("{http} numpy==2.5.5 typing-extensions==4.16.0");
    let rag_with_docs = format!("{http} {docs} numpy==2.5.5 typing-extensions==4.16.0");
    for (selection, amd64, arm64) in [
        (lock.clone(), "click==8.5.1 markupsafe==3.0.4", "click==8.5.1 markupsafe==3.0.4"),
        (
            lock.clone().extra("yaml"),
            "click==8.5.1 markupsafe==3.0.4 pyyaml==6.0.3",
            "click==8.5.1 markupsafe==3.0.4 pyyaml==6.0.3",
        ),
        (lock.clone().group("docs"), docs, docs),
        (lock.clone().group("rag"), &rag, &rag_with_docs),
        (lock.clone().group("docs").group("rag"), &rag_with_docs, &rag_with_docs),
    ] {
        let set = context.lock(&selection);
        assert_eq!(versions(&set, Amd64), amd64, "{selection:?} on amd64");
        assert_eq!(versions(&set, Arm64), arm64, "{selection:?} on arm64");
    }
    assert_eq!(
        chosen(&context.lock(&lock.group("main")), Arm64),
        "click-8.5.1-py3-none-any.whl\n\
         markupsafe-3.0.4-cp313-cp313-manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64.whl"
    );
}

#[test]
fn what_is_built_from_source_gets_its_sdist_and_nothing_else_does() {
    let wheels = ["x-1.0-py3-none-any.whl", "x-1.0.tar.gz", "x-1.0.zip"];
    let main = "groups = [\"main\"]";
    let lock = [entry("x", "1.0", main, &wheels), pure("y", "1.0", main), metadata("2.1")].concat();
    let context = Context::of([("poetry.lock", lock.as_str())]);
    let named = |name: &str| context.lock(&poetry_lock("poetry.lock")).unwrap().from_source(&[name.to_owned()]);
    assert_eq!(chosen(&named("x"), Arm64), "x-1.0.tar.gz\ny-1.0-py3-none-any.whl");
    let said = chosen(&named("y"), Arm64);
    assert!(said.contains("the lock has no sdist of it, and it is to be built from source"), "{said}");
    let said = named("z").unwrap_err().to_string();
    assert_eq!(said, "`poetry.lock` holds no `z` that could be built from source");
    let said = named("X").unwrap_err().to_string();
    assert_eq!(said, "`X` is called `x` on indexes: write `.build_from_source(\"x\")`");
}
