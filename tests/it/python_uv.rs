//! uv.lock. The larger lock was made by uv from `uv-pyproject.toml`; only its hosts were replaced.

use layers::Platform::{Amd64, Arm64};
use layers::source::{LockSelection, uv_lock};

use crate::python::{Context, chosen, hash, versions};

const REAL: &str = include_str!("../fixtures/python/uv.lock");

fn lock() -> LockSelection {
    uv_lock("uv.lock")
}

#[test]
fn the_closure_is_the_one_uv_exports() {
    let context = Context::of([("uv.lock", REAL)]);
    let rag = "anyio==4.16.0 certifi==2026.10.18 h11==0.16.0 h2==4.4.1 hpack==4.2.0 httpcore==1.0.9 httpx==0.28.1 \
               hyperframe==6.1.0";
    // What `uv export` and `uv pip install --dry-run --python-platform` said when the lock was made.
    for (selection, amd64, arm64) in [
        (lock(), "idna==3.20 markupsafe==3.0.4".to_owned(), "idna==3.7 markupsafe==3.0.4".to_owned()),
        (
            lock().extra("all").extra("new"),
            "click==8.5.1 idna==3.20 markupsafe==3.0.4 pyyaml==6.0.3".to_owned(),
            "click==8.5.1 idna==3.7 markupsafe==3.0.4 pyyaml==6.0.3".to_owned(),
        ),
        (
            lock().group("rag"),
            format!("{rag} idna==3.20 typing-extensions==4.16.0"),
            format!("{rag} idna==3.7 jinja2==3.1.6 markupsafe==3.0.4 typing-extensions==4.16.0"),
        ),
        (
            lock().group("docs"),
            "jinja2==3.1.6 markupsafe==3.0.4 tomli==2.5.0".to_owned(),
            "jinja2==3.1.6 markupsafe==3.0.4 tomli==2.5.0".to_owned(),
        ),
        (
            lock().group("rag").group("main").extra("old").extra("all"),
            format!("{rag} idna==3.20 markupsafe==3.0.4 pyyaml==6.0.3 typing-extensions==4.16.0")
                .replace(" h11", " click==8.0.4 h11"),
            format!("{rag} idna==3.7 jinja2==3.1.6 markupsafe==3.0.4 pyyaml==6.0.3 typing-extensions==4.16.0")
                .replace(" h11", " click==8.0.4 h11"),
        ),
        (lock().group("empty"), String::new(), String::new()),
    ] {
        let set = context.lock(&selection);
        assert_eq!(versions(&set, Amd64), amd64, "{selection:?} on amd64");
        assert_eq!(versions(&set, Arm64), arm64, "{selection:?} on arm64");
    }
}

#[test]
fn native_wheels_are_those_of_the_target() {
    let context = Context::of([("uv.lock", REAL)]);
    let set = context.lock(&lock().extra("yaml"));
    assert_eq!(
        chosen(&set, Amd64),
        "idna-3.20-py3-none-any.whl\n\
         markupsafe-3.0.4-cp313-cp313-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl\n\
         pyyaml-6.0.3-cp313-cp313-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl"
    );
    assert_eq!(
        chosen(&set, Arm64),
        "idna-3.7-py3-none-any.whl\n\
         markupsafe-3.0.4-cp313-cp313-manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64.whl\n\
         pyyaml-6.0.3-cp313-cp313-manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64.whl"
    );
}

#[test]
fn what_conflicts_or_is_unknown_is_refused() {
    let context = Context::of([("uv.lock", REAL)]);
    assert_eq!(
        chosen(&context.lock(&lock().extra("old").extra("new")), Amd64),
        "`uv.lock` gives click more than once for cp313 linux/amd64: 8.0.4, 8.5.1; choose groups and extras that do \
         not conflict, or lock again"
    );
    for (selection, expected) in [
        (lock().group("test"), "`uv.lock` has no dependency group `test`: it has docs, empty, lint, main, rag"),
        (lock().extra("test"), "`uv.lock` has no extra `test`: it has all, new, old, yaml"),
        (
            lock().group("docs").extra("yaml"),
            "extra `yaml` of `uv.lock` extends the main dependencies, which the groups leave out: add group `main`",
        ),
    ] {
        assert_eq!(context.lock(&selection).unwrap_err().to_string(), expected);
    }
}

fn head(rest: &str) -> String {
    format!("version = 1\nrequires-python = \">=3.12\"\n{rest}\n")
}

fn root(dependencies: &str) -> String {
    format!(
        "[[package]]\nname = \"app\"\nversion = \"0.1.0\"\nsource = {{ editable = \".\" }}\n\
         dependencies = [{dependencies}]\n"
    )
}

fn entry(name: &str, source: &str, rest: &str) -> String {
    let url = format!("https://files.example/{name}-1.0-py3-none-any.whl");
    format!(
        "[[package]]\nname = \"{name}\"\nversion = \"1.0\"\nsource = {{ {source} }}\n{rest}\n\
         wheels = [{{ url = \"{url}\", hash = \"{}\", size = 7 }}]\n",
        hash('b')
    )
}

const REGISTRY: &str = "registry = \"https://index.example/simple\"";

#[test]
fn entries_that_are_no_wheels_of_an_index_are_named_together() {
    let names = ["git", "directory", "editable", "virtual", "path", "local"];
    let needed: String = names.iter().map(|name| format!("{{ name = \"a-{name}\" }}, ")).collect();
    let lock_text = [
        head(""),
        root(&(needed + "{ name = \"an-url\" }, { name = \"gone\", marker = \"os_name == 'posix'\" }")),
        entry("a-git", "git = \"https://git.example/x?rev=1#2\"", ""),
        entry("a-directory", "directory = \"libs/x\"", ""),
        entry("a-editable", "editable = \"libs/x\"", ""),
        entry("a-virtual", "virtual = \"member\"", ""),
        entry("a-path", "path = \"x-1.0-py3-none-any.whl\"", ""),
        entry("a-local", "registry = \"wheels\"", ""),
        "[[package]]\nname = \"an-url\"\nversion = \"1.0\"\n\
         source = { url = \"https://files.example/an_url-1.0-py3-none-any.whl\" }\n\
         wheels = [{ url = \"https://files.example/an_url-1.0-py3-none-any.whl\" }]\n"
            .to_owned(),
    ]
    .concat();
    let context = Context::of([("uv.lock", lock_text.as_str())]);
    assert_eq!(
        chosen(&context.lock(&lock()), Amd64),
        "8 entries of `uv.lock` cannot be installed for cp313 linux/amd64:\n  \
         a-directory 1.0: it is locked by path, not as a wheel of an index\n  \
         a-editable 1.0: it is locked as editable, not as a wheel of an index\n  \
         a-git 1.0: it is locked as a git commit, not as a wheel of an index\n  \
         a-local 1.0: it is locked by path, not as a wheel of an index\n  \
         a-path 1.0: it is locked by path, not as a wheel of an index\n  \
         a-virtual 1.0: it is a member of the workspace, not a wheel of an index\n  \
         an-url 1.0: the lock gives no SHA-256 for its wheels\n  \
         gone: it is needed, and the lock has no entry for it\n\
         ways out: lock a version that has a wheel for the target, build it with `.build_from_source(\"name\")`, put a \
         wheel of it on your package index and lock again, or leave it out with `.without([\"name\"])`"
    );
}

#[test]
fn extras_groups_and_loops_are_walked() {
    let lock_text = [
        head("supported-markers = [\"sys_platform == 'linux'\"]"),
        root("{ name = \"a\", extra = [\"x\"] }"),
        "[package.optional-dependencies]\nself = [{ name = \"app\", extra = [\"more\"] }]\n\
         more = [{ name = \"d\" }]\n"
            .to_owned(),
        entry("a", REGISTRY, "dependencies = [{ name = \"b\" }]"),
        "[package.optional-dependencies]\nx = [{ name = \"c\" }]\ny = [{ name = \"unneeded\" }]\n".to_owned(),
        entry("b", REGISTRY, "dependencies = [{ name = \"a\", extra = [\"x\"] }]"),
        entry("c", REGISTRY, ""),
        entry("d", REGISTRY, ""),
    ]
    .concat();
    let context = Context::of([("uv.lock", lock_text.as_str())]);
    assert_eq!(versions(&context.lock(&lock()), Amd64), "a==1.0 b==1.0 c==1.0");
    assert_eq!(versions(&context.lock(&lock().extra("self")), Amd64), "a==1.0 b==1.0 c==1.0 d==1.0");
    let without = context.lock(&lock()).unwrap().without(&["A".to_owned()]);
    assert_eq!(versions(&without, Amd64), "");
    let elsewhere = lock_text.replace("sys_platform == 'linux'", "sys_platform == 'darwin'");
    let context = Context::of([("uv.lock", elsewhere.as_str())]);
    assert_eq!(
        chosen(&context.lock(&lock()), Amd64),
        "`uv.lock` was locked for other environments than cp313 linux/amd64: add it to the lock's environments and \
         lock again"
    );
}

#[test]
fn groups_of_a_workspace_without_a_project_are_roots() {
    let lock_text = head("[manifest.dependency-groups]\ntools = [{ name = \"a\", specifier = \">=1\" }]\n")
        + &entry("a", REGISTRY, "");
    let context = Context::of([("uv.lock", lock_text.as_str())]);
    assert_eq!(versions(&context.lock(&lock().group("tools")), Amd64), "a==1.0");
}

#[test]
fn files_that_are_no_lock_are_refused() {
    let twice = head("") + &root("") + &root("");
    let fork = head("") + &root("{ name = \"a\", version = \"9\" }") + &entry("a", REGISTRY, "");
    let odd = head("") + &root("") + &entry("a", "magic = \"x\"", "");
    let marker = head("") + &root("{ name = \"a\", marker = \"os_name\" }") + &entry("a", REGISTRY, "");
    for (text, expected) in [
        ("", "`version`"),
        ("version = 2", "has lock version 2, and 1 is understood"),
        ("version = 1", "it has 0 entries for the project itself"),
        (&twice, "it has 2 entries for the project itself"),
        (&fork, "uv.lock: app needs a 9, which has no entry"),
        (&odd, "its source is not known"),
        (&marker, "uv.lock: app: marker `os_name` is not understood"),
    ] {
        let context = Context::of([("uv.lock", text)]);
        let error = context.lock(&lock()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
