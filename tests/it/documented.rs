//! Pages that list what is in the code list what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::run::repository;

/// The texts of all `.rs` files below a folder.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with('.') || name == "target" || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

/// What stands in backticks in a page, outside of blocks.
fn quoted(page: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(repository().join(page)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn the_tests_that_the_page_about_them_names_are_there() {
    let mut texts = Vec::new();
    sources(repository(), &mut texts);
    let functions: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| text.split("fn ").skip(1))
        .filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
        .collect();
    // Names of files have one underscore, those of tests have more.
    let mut named = quoted("docs/test-cases.md");
    named.retain(|name| is_word(name) && name.matches('_').count() > 1);
    assert!(named.len() > 200, "{}", named.len());
    named.retain(|name| !functions.contains(name.as_str()));
    assert!(named.is_empty(), "docs/test-cases.md names tests that do not exist: {named:#?}");
}

/// What is in no key cannot change an outcome, so a reader wants to see all of them.
#[test]
fn the_page_about_the_cache_names_every_kind_of_key() {
    let mut texts = Vec::new();
    for folder in ["src", "cache/src", "layers/src"] {
        sources(&repository().join(folder), &mut texts);
    }
    // However it is broken into lines.
    let code = |text: &String| text.split("#[cfg(test)]\nmod tests").next().unwrap().split_whitespace().collect();
    let codes: Vec<String> = texts.iter().map(code).collect();
    let kinds: BTreeSet<&str> = codes
        .iter()
        .flat_map(|code| {
            ["KeyHasher::new(\"", ".archives_key(\""].iter().flat_map(move |call| code.split(*call).skip(1))
        })
        .filter_map(|rest| rest.split_once('"').map(|(kind, _)| kind))
        .collect();
    assert!(kinds.len() > 30 && kinds.contains("image"), "{kinds:?}");
    let named = quoted("docs/caching.md");
    let missing: Vec<_> = kinds.into_iter().filter(|kind| !named.contains(*kind)).collect();
    assert!(missing.is_empty(), "docs/caching.md lacks {missing:?}");
}
