//! pylock.toml (PEP 751). The larger lock was exported by uv; only its hosts were replaced.

use layers::Platform::{Amd64, Arm64};
use layers::source::pylock;

use crate::python::{Context, chosen, versions};

const REAL: &str = include_str!("../fixtures/python/pylock.toml");

#[test]
fn a_lock_that_uv_exported_is_read() {
    let context = Context::of([("pylock.toml", REAL)]);
    let set = context.lock(&pylock("pylock.toml"));
    let rest = "jinja2==3.1.6 markupsafe==3.0.4 pyyaml==6.0.3 tomli==2.5.0";
    assert_eq!(versions(&set, Amd64), format!("idna==3.20 {rest}"));
    assert_eq!(versions(&set, Arm64), format!("idna==3.7 {rest}"));
    let set = set.unwrap();
    assert!(set.packages.iter().flat_map(|package| &package.files).all(|file| file.size.is_some()));
}

fn lock(head: &str, packages: &[(&str, &str)]) -> String {
    let hash = "c".repeat(64);
    let mut text = format!("lock-version = \"1.0\"\ncreated-by = \"by hand\"\n{head}\n");
    for (name, rest) in packages {
        text.push_str(&format!("[[packages]]\nname = \"{name}\"\nversion = \"1.0\"\n"));
        if !rest.contains("# no wheel") {
            text.push_str(&format!(
                "wheels = [{{ name = \"{name}-1.0-py3-none-any.whl\", hashes = {{ sha256 = \"{hash}\" }} }}]\n"
            ));
        }
        text.push_str(&format!("{rest}\n"));
    }
    text
}

#[test]
fn extras_and_dependency_groups_are_markers() {
    let text = lock(
        "extras = [\"fast\"]\ndependency-groups = [\"docs\", \"base\"]\ndefault-groups = [\"base\"]",
        &[
            ("always", ""),
            ("base", "marker = \"'base' in dependency_groups\""),
            ("docs", "marker = \"'docs' in dependency_groups and python_version >= '3.13'\""),
            ("fast", "marker = \"'fast' in extras\""),
            ("slow", "marker = \"'fast' not in extras and platform_machine == 'x86_64'\""),
        ],
    );
    let context = Context::of([("pylock.toml", text.as_str())]);
    let selection = pylock("pylock.toml");
    for (selection, expected) in [
        (selection.clone(), "always==1.0 base==1.0 slow==1.0"),
        (selection.clone().group("main").group("docs"), "always==1.0 base==1.0 docs==1.0 slow==1.0"),
        (selection.clone().group("docs").extra("FAST"), "always==1.0 docs==1.0 fast==1.0"),
    ] {
        assert_eq!(versions(&context.lock(&selection), Amd64), expected, "{selection:?}");
    }
    for (selection, expected) in [
        (selection.clone().group("doc"), "`pylock.toml` has no dependency group `doc`: it has base, docs"),
        (selection.clone().extra("faster"), "`pylock.toml` has no extra `faster`: it has fast"),
    ] {
        assert_eq!(context.lock(&selection).unwrap_err().to_string(), expected);
    }
}

#[test]
fn what_does_not_suit_the_target_is_refused() {
    for (head, packages, expected) in [
        ("requires-python = \">=3.14\"", &[][..], "`pylock.toml` is for Python >=3.14, and the image has 3.13.5"),
        ("environments = [\"sys_platform == 'win32'\"]", &[], "was locked for other environments"),
        ("", &[("a", ""), ("A", "")], "`pylock.toml` gives a more than once"),
        ("", &[("a", "requires-python = \">=3.14\"")], "a 1.0 of `pylock.toml` cannot be installed"),
        ("", &[("a", "# no wheel\nvcs = { type = \"git\", url = \"x\", commit-id = \"1\" }")], "as a git commit"),
        ("", &[("a", "# no wheel\ndirectory = { path = \"x\", editable = true }")], "as editable"),
        ("", &[("a", "# no wheel\ndirectory = { path = \"x\" }")], "locked by path"),
        ("", &[("a", "# no wheel\narchive = { path = \"a-1.0-py3-none-any.whl\" }")], "locked by path"),
        ("", &[("a", "# no wheel\nwheels = [{ path = \"a-1.0-py3-none-any.whl\" }]")], "locked by path"),
        ("", &[("a", "# no wheel\narchive = { url = \"https://x.example/a-1.0-py3-none-any.whl\" }")], "no SHA-256"),
        ("", &[("a", "# no wheel")], "the lock has no wheel of it"),
    ] {
        let text = lock(head, packages);
        let context = Context::of([("pylock.toml", text.as_str())]);
        let found = chosen(&context.lock(&pylock("pylock.toml")), Amd64);
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn a_wheel_at_a_url_with_a_hash_is_taken_from_there() {
    let url = "https://files.example/a-1.0-py3-none-any.whl";
    let archive =
        format!("# no wheel\narchive = {{ url = \"{url}\", hashes = {{ sha256 = \"{}\" }} }}", "d".repeat(64));
    let text = lock("", &[("a", &archive)]);
    let context = Context::of([("pylock.toml", text.as_str())]);
    let set = context.lock(&pylock("pylock.toml")).unwrap();
    let wheels = imgbuild::python::select(&set, &crate::python::target(Amd64)).unwrap();
    assert_eq!(wheels[0].url.as_deref(), Some(url));
}

#[test]
fn versions_of_the_format_are_checked() {
    for (version, expected) in [("2.0", Some("has lock version 2.0, and 1.0 is understood")), ("1.7", None)] {
        let text = lock("", &[("a", "")]).replace("\"1.0\"\ncreated", &format!("\"{version}\"\ncreated"));
        let context = Context::of([("pylock.toml", text.as_str())]);
        match (context.lock(&pylock("pylock.toml")), expected) {
            (Ok(set), None) => assert!(set.warnings[0].contains("newer than 1.0"), "{:?}", set.warnings),
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (other, _) => panic!("{version}: {other:?}"),
        }
    }
}
