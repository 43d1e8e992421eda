//! The simple index: places of locked files.

use std::cell::RefCell;
use std::collections::BTreeMap;

use imgbuild::python::Wheel;
use imgbuild::python::index::{ACCEPT, Index, Indexes};
use layers::Digest;

/// Answers by URL: a page, nothing, or a failure. Keeps what was asked.
#[derive(Default)]
struct Answers {
    pages: BTreeMap<String, Result<String, String>>,
    asked: RefCell<Vec<String>>,
}

impl Answers {
    fn with(mut self, url: &str, answer: Result<&str, &str>) -> Answers {
        self.pages.insert(url.to_owned(), answer.map(str::to_owned).map_err(str::to_owned));
        self
    }
}

impl Index for Answers {
    fn get(&self, url: &str, accept: &str) -> Result<Option<Vec<u8>>, String> {
        assert_eq!(accept, ACCEPT);
        self.asked.borrow_mut().push(url.to_owned());
        self.pages.get(url).cloned().transpose().map(|page| page.map(String::into_bytes))
    }
}

const FILE: &str = "foo_bar-1.0-py3-none-any.whl";
const PAGE: &str = "https://one.example/simple/foo-bar/";

fn wheel() -> Wheel {
    Wheel {
        name: "foo-bar".into(),
        version: "1.0".into(),
        file: FILE.into(),
        sha256: Digest::of(b"wheel"),
        size: Some(5),
        url: None,
    }
}

/// What is found on a page of one index, as text.
fn found(page: &str) -> String {
    let page =
        page.replace("FILE", FILE).replace("HASH", &Digest::of(b"wheel").hex()).replace("OTHER", &"e".repeat(64));
    let answers = Answers::default().with(PAGE, Ok(&page));
    let indexes = Indexes::new(&["https://one.example/simple".to_owned()], &answers).unwrap();
    match indexes.find(&wheel()) {
        Ok(found) => format!("{} {:?} {:?}", found.url, found.size, found.yanked),
        Err(error) => error.to_string(),
    }
}

#[test]
fn files_are_found_on_json_pages() {
    let page = |files: &str| {
        format!("{{\"meta\": {{\"api-version\": \"1.1\"}}, \"name\": \"Foo_Bar\", \"files\": [{files}]}}")
    };
    let here = format!("https://one.example/files/{FILE}");
    for (files, expected) in [
        (
            "{\"filename\": \"FILE\", \"url\": \"/files/FILE\", \"hashes\": {\"sha256\": \"HASH\"}, \"size\": 9}",
            format!("{here} Some(9) None"),
        ),
        ("{\"filename\": \"FILE\", \"url\": \"../../files/FILE#x\", \"hashes\": {}}", format!("{here} Some(5) None")),
        (
            "{\"filename\": \"FILE\", \"url\": \"/files/FILE\", \"hashes\": {\"sha256\": \"HASH\"}, \"yanked\": \"broken\"}",
            format!("{here} Some(5) Some(\"broken\")"),
        ),
        (
            "{\"filename\": \"FILE\", \"url\": \"/files/FILE\", \"hashes\": {\"sha256\": \"HASH\"}, \"yanked\": true}",
            format!("{here} Some(5) Some(\"\")"),
        ),
        (
            "{\"filename\": \"FILE\", \"url\": \"/old/FILE\", \"hashes\": {\"sha256\": \"OTHER\"}}, \
             {\"filename\": \"FILE\", \"url\": \"/files/FILE\", \"hashes\": {\"sha256\": \"HASH\"}, \"yanked\": false}",
            format!("{here} Some(5) None"),
        ),
        (
            "{\"filename\": \"FILE\", \"url\": \"https://cdn.example/FILE\", \"hashes\": {\"sha256\": \"HASH\"}}",
            format!("https://cdn.example/{FILE} Some(5) None"),
        ),
    ] {
        assert_eq!(found(&page(files)), expected, "{files}");
    }
}

#[test]
fn files_are_found_on_html_pages() {
    let here = format!("https://one.example/files/{FILE}");
    for (page, expected) in [
        (
            "<!DOCTYPE html><html><body><a href=\"/files/FILE#sha256=HASH\">FILE</a></body>",
            format!("{here} Some(5) None"),
        ),
        (
            "<A data-yanked='&quot;old&quot; &amp; bad' HREF='../../files/FILE#sha256=HASH'>x</A>",
            format!("{here} Some(5) Some(\"\\\"old\\\" & bad\")"),
        ),
        ("<a href=/files/FILE>FILE</a>", format!("{here} Some(5) None")),
        ("<a href=\"/files/FILE#md5=00\" rel=internal data-yanked>FILE</a>", format!("{here} Some(5) Some(\"\")")),
        (
            "<!-- <a href=\"/no/FILE#sha256=HASH\">x</a> --><a\n href = \"/files/foo%5Fbar-1.0-py3-none-any.whl#sha256=HASH\" >x</a>",
            here.replace("foo_", "foo%5F") + " Some(5) None",
        ),
        (
            "<base href=\"https://cdn.example/x/\"><a href=\"FILE#sha256=HASH\">x</a>",
            format!("https://cdn.example/x/{FILE} Some(5) None"),
        ),
        (
            "<meta name=\"pypi:repository-version\" content=\"1.3\"><a href='/files/FILE?a=1&amp;b=2#sha256=HASH'>x</a>",
            format!("{here}?a=1&b=2 Some(5) None"),
        ),
    ] {
        assert_eq!(found(page), expected, "{page}");
    }
}

#[test]
fn replaced_and_missing_files_are_errors() {
    let locked = Digest::of(b"wheel");
    let replaced = format!(
        "`{FILE}` was replaced on index `https://one.example/simple/`: the lock has {locked}, the index sha256:{}; do \
         not use it before you know why, then lock again",
        "e".repeat(64)
    );
    let gone = format!(
        "index `https://one.example/simple/` no longer has `{FILE}` of foo-bar: lock again; other indexes are not \
         asked, because the first one that has a name is the only one it is taken from"
    );
    let asked = |why: &str| format!("index `https://one.example/simple/` cannot be asked for foo-bar: {why}");
    for (page, expected) in [
        ("<a href=\"/files/FILE#sha256=OTHER\">FILE</a>", replaced.clone()),
        (
            "{\"meta\": {\"api-version\": \"1.0\"}, \"files\": [{\"filename\": \"FILE\", \"url\": \"/f\", \"hashes\": {\"sha256\": \"OTHER\"}}]}",
            replaced,
        ),
        ("<html></html>", gone.clone()),
        ("<a href=\"/files/other-FILE#sha256=HASH\">FILE</a>", gone.clone()),
        ("<a href=\"http://one.example/files/FILE#sha256=HASH\">no TLS</a>", gone.clone()),
        ("<a href=\"file:///files/FILE#sha256=HASH\">a local file</a>", gone.clone()),
        ("<a href=\"ftp://one.example/FILE\">x</a><a>no place</a><a href>x<!-- open", gone.clone()),
        ("<a href=\"/files/FILE", gone),
        ("gone", asked("the page is neither JSON nor HTML")),
        ("", asked("the page is neither JSON nor HTML")),
        ("{\"meta\": {\"api-version\": \"2.0\"}, \"files\": []}", asked("the page has API version `2.0`, not 1")),
        ("<meta name='pypi:repository-version' content='2.0'>", asked("the page has API version `2.0`, not 1")),
        ("{\"meta\": {\"api-version\": \"1.0\"}, \"name\": \"evil\", \"files\": []}", asked("the page is of `evil`")),
    ] {
        assert_eq!(found(page), expected, "{page}");
    }
    assert!(found("{\"meta\": 1}").contains("the page is not understood"));
}

#[test]
fn the_first_index_that_has_a_name_is_the_only_one() {
    let roots = ["https://user:secret@one.example/simple", "https://two.example/simple"].map(str::to_owned);
    let first = "https://user:secret@one.example/simple/foo-bar/";
    let second = "https://two.example/simple/foo-bar/";
    let good = format!("<a href=\"/{FILE}#sha256={}\">x</a>", Digest::of(b"wheel").hex());
    let ask = |answers: &Answers| {
        let indexes = Indexes::new(&roots, answers).unwrap();
        indexes.find(&wheel()).map(|found| found.url).map_err(|error| error.to_string())
    };

    let both = Answers::default().with(first, Ok(&good)).with(second, Ok(&good));
    assert_eq!(ask(&both).unwrap(), format!("https://user:secret@one.example/{FILE}"));
    assert_eq!(*both.asked.borrow(), [first]);

    let only_second = Answers::default().with(second, Ok(&good));
    assert_eq!(ask(&only_second).unwrap(), format!("https://two.example/{FILE}"));
    assert_eq!(*only_second.asked.borrow(), [first, second]);

    // The name is on the first index, so what the second says does not count, nor does a failing first let it in.
    for (answer, expected) in
        [(Ok("<html>"), "no longer has"), (Err("status 503"), "cannot be asked for foo-bar: status 503")]
    {
        let answers = Answers::default().with(first, answer).with(second, Ok(&good));
        let error = ask(&answers).unwrap_err();
        assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        assert_eq!(*answers.asked.borrow(), [first]);
    }

    let error = ask(&Answers::default()).unwrap_err();
    assert_eq!(
        error,
        "no package index has foo-bar: asked `https://one.example/simple/`, `https://two.example/simple/`"
    );
}

#[test]
fn names_and_roots_lead_nowhere_else() {
    let answers = Answers::default();
    let indexes = Indexes::new(&["https://one.example/simple".to_owned()], &answers).unwrap();
    for name in ["..", "../../x", "a/b", "a?b", ""] {
        let error = indexes.find(&Wheel { name: name.into(), ..wheel() }).unwrap_err().to_string();
        assert!(error.starts_with("no package index has"), "{name}: {error}");
    }
    assert!(answers.asked.borrow().is_empty());
    for root in ["", "simple", "mailto:x@one.example"] {
        let error = Indexes::new(&["https://one.example/".to_owned(), root.to_owned()], &answers).err().unwrap();
        assert_eq!(error.to_string(), "index number 2 cannot be asked for anything: it is not a URL");
    }
    let direct = Wheel { url: Some("https://files.example/x.whl".into()), ..wheel() };
    assert_eq!(indexes.find(&direct).unwrap().url, "https://files.example/x.whl");
}

#[test]
fn a_pinned_project_comes_from_its_index_and_from_no_other() {
    let page = format!(
        "{{\"meta\": {{\"api-version\": \"1.0\"}}, \"files\": [{{\"filename\": \"{FILE}\", \"url\": \"/{FILE}\", \"hashes\": \
         {{\"sha256\": \"{}\"}}}}]}}",
        Digest::of(b"wheel").hex()
    );
    let root = "https://one.example/simple".to_owned();
    let pins = BTreeMap::from([("foo-bar".to_owned(), "https://two.example/own".parse().unwrap())]);
    let answers = Answers::default().with(PAGE, Ok(&page)).with("https://two.example/own/foo-bar/", Ok(&page));
    let indexes = Indexes::new(std::slice::from_ref(&root), &answers).unwrap().pinned(&pins).unwrap();
    assert_eq!(indexes.find(&wheel()).unwrap().url, format!("https://two.example/{FILE}"));

    let absent = Answers::default().with(PAGE, Ok(&page));
    let indexes = Indexes::new(&[root], &absent).unwrap().pinned(&pins).unwrap();
    let error = indexes.find(&wheel()).unwrap_err().to_string();
    assert!(error.contains("https://two.example/own/") && !error.contains("one.example"), "{error}");
    assert_eq!(absent.asked.take(), ["https://two.example/own/foo-bar/"]);
}
