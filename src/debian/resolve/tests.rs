//! Small universes, each a few paragraphs, and what they close to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::debian::packages;

/// `name version | Field: value | ...` a line, as a `Packages` file.
fn packages(lines: &str) -> Vec<Package> {
    let mut text = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut parts = line.split(" | ").map(str::trim);
        let (name, version) = parts.next().and_then(|head| head.split_once(' ')).expect("a name and a version");
        let hash = layers::Digest::of(line.as_bytes()).hex();
        let fields: Vec<&str> = parts.collect();
        let _ =
            writeln!(text, "Package: {name}\nVersion: {version}\nFilename: pool/{name}.deb\nSize: 1\nSHA256: {hash}");
        if !fields.iter().any(|field| field.starts_with("Architecture:")) {
            text.push_str("Architecture: amd64\n");
        }
        for field in fields {
            // `||` stands for the bar of alternatives, which separates fields here.
            let _ = writeln!(text, "{}", field.replace("||", "|"));
        }
        text.push('\n');
    }
    packages::scan(text.into()).expect("a Packages file")
}

fn offer(suite: &str, lines: &str) -> Offer {
    Offer { archive: "debian".into(), suite: suite.into(), packages: packages(lines) }
}

fn universe(lines: &str) -> Universe {
    Universe::new("amd64", vec![offer("trixie", lines)]).expect("a universe")
}

/// A request in words: names, `-name` for `without`, `+recommends`, `=name/version` to hold a version.
fn close(universe: &Universe, words: &str, installed: &[Chosen]) -> Result<Vec<Chosen>, ResolveError> {
    let (mut names, mut without, mut hold, mut recommends) = (Vec::new(), BTreeSet::new(), BTreeMap::new(), false);
    for word in words.split_whitespace() {
        if let Some(name) = word.strip_prefix('-') {
            without.insert(name.to_owned());
        } else if let Some((name, version)) = word.strip_prefix('=').and_then(|held| held.split_once('/')) {
            hold.insert(name.to_owned(), version.to_owned());
        } else if word == "+recommends" {
            recommends = true;
        } else {
            names.push(word.to_owned());
        }
    }
    universe.closure(&Request { packages: &names, without: &without, recommends, installed, hold: &hold })
}

fn names(closure: &[Chosen]) -> String {
    closure.iter().map(|chosen| chosen.package.name()).collect::<Vec<_>>().join(" ")
}

/// Each row: what it shows, a universe, a request, and the closure or the start of the error.
fn table(rows: &[(&str, &str, &str, Result<&str, &str>)]) {
    for (what, lines, request, expected) in rows {
        let found = close(&universe(lines), request, &[]);
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(names(&found), *expected, "{what}"),
            (Err(error), Err(expected)) => {
                let error = error.to_string();
                assert!(error.starts_with(expected), "{what}:\n{error}\nexpected\n{expected}");
            }
            (Ok(found), Err(expected)) => panic!("{what}: got {}, expected: {expected}", names(&found)),
            (Err(error), Ok(expected)) => panic!("{what}: {error}; expected {expected}"),
        }
    }
}

#[test]
fn needs_are_followed_and_nothing_else() {
    table(&[
        (
            "Depends and Pre-Depends are followed, Recommends and Suggests are not",
            "aa 1 | Depends: bb | Pre-Depends: cc | Recommends: dd | Suggests: ee\n bb 1\n cc 1\n dd 1\n ee 1",
            "aa",
            Ok("aa bb cc"),
        ),
        (
            "Recommends on request",
            "aa 1 | Recommends: bb, gone\n bb 1 | Recommends: cc\n cc 1",
            "aa +recommends",
            Ok("aa bb cc"),
        ),
        ("circles end", "aa 1 | Depends: bb\n bb 1 | Depends: aa", "aa", Ok("aa bb")),
        ("essential packages are not added by themselves", "aa 1\n base 1 | Essential: yes", "aa", Ok("aa")),
        ("one name twice", "aa 1", "aa aa", Ok("aa")),
        ("packages for all architectures", "aa 1 | Architecture: all", "aa:all aa:amd64 aa:any", Ok("aa")),
        ("those of other architectures are none", "aa 1 | Architecture: arm64", "aa", Err("there is no package `aa`")),
    ]);
}

#[test]
fn versions_are_compared_as_dpkg_compares_them() {
    table(&[
        ("an epoch outweighs", "aa 1 | Depends: bb (>= 9)\n bb 1:2", "aa", Ok("aa bb")),
        (
            "a tilde sorts before",
            "aa 1 | Depends: bb (>= 2)\n bb 2~rc1",
            "aa",
            Err("`aa` needs `bb (>= 2)`, which does not"),
        ),
        ("a tilde in the bound", "aa 1 | Depends: bb (>= 2~)\n bb 2~rc1", "aa", Ok("aa bb")),
        ("strictly earlier", "aa 1 | Depends: bb (<< 2)\n bb 2", "aa", Err("`aa` needs `bb (<< 2)`")),
        ("equal, a revision of zero included", "aa 1 | Depends: bb (= 2)\n bb 2-0", "aa", Ok("aa bb")),
        ("a version by name", "aa 1\n aa 2", "aa=1", Ok("aa")),
        ("a version that is gone", "aa 2", "aa=1", Err("no suite offers `aa` in version 1; there is 2")),
    ]);
}

#[test]
fn alternatives_are_tried_in_order() {
    table(&[
        ("the first one", "aa 1 | Depends: bb || cc\n bb 1\n cc 1", "aa", Ok("aa bb")),
        ("the one that there is", "aa 1 | Depends: bb || cc\n cc 1", "aa", Ok("aa cc")),
        ("the one whose version fits", "aa 1 | Depends: bb (>= 2) || cc\n bb 1\n cc 1", "aa", Ok("aa cc")),
        ("one that is there already counts", "aa 1 | Depends: bb || cc\n bb 1\n cc 1", "cc aa", Ok("aa cc")),
        (
            "order of the request decides",
            "aa 1 | Depends: bb || cc\n bb 1\n cc 1\n dd 1 | Depends: cc",
            "aa dd",
            Ok("aa bb cc dd"),
        ),
        (
            "later needs come too late",
            "aa 1 | Depends: bb || cc\n bb 1\n cc 1\n dd 1 | Depends: cc",
            "dd aa",
            Ok("aa cc dd"),
        ),
        (
            "one that cannot be had is given up, with what it brought",
            "aa 1 | Depends: bb || cc\n bb 1 | Depends: xx, yy\n xx 1\n yy 1 | Depends: zz\n zz 1 | Depends: gone\n cc 1",
            "aa",
            Ok("aa cc"),
        ),
        (
            "one that what is asked for excludes is out of the question",
            "aa 1 | Depends: bb || cc\n bb 1 | Conflicts: ee\n cc 1\n ee 1",
            "ee aa",
            Ok("aa cc ee"),
        ),
    ]);
}

#[test]
fn provided_names_meet_needs() {
    table(&[
        ("a virtual package", "aa 1 | Depends: mta\n mm 1 | Provides: mta", "aa", Ok("aa mm")),
        (
            "the higher priority among providers",
            "aa 1 | Depends: mta\n mm 1 | Provides: mta | Priority: optional\n nn 1 | Provides: mta | Priority: standard",
            "aa",
            Ok("aa nn"),
        ),
        (
            "the package of that name before its providers",
            "aa 1 | Depends: mta\n mm 1 | Provides: mta | Priority: required\n mta 1 | Priority: extra",
            "aa",
            Ok("aa mta"),
        ),
        (
            "an essential provider before others",
            "aa 1 | Depends: mta\n mm 1 | Provides: mta | Essential: yes\n nn 1 | Provides: mta | Priority: required",
            "aa",
            Ok("aa mm"),
        ),
        (
            "of equal providers the one that the lists name last",
            "aa 1 | Depends: mta\n mm 1 | Provides: mta\n nn 1 | Provides: mta",
            "aa",
            Ok("aa nn"),
        ),
        (
            "named first by somebody'ss Suggests is met first",
            "aa 1 | Depends: mta | Suggests: nn\n mm 1 | Provides: mta\n nn 1 | Provides: mta",
            "aa",
            Ok("aa mm"),
        ),
        (
            "a version is needed where one is asked for",
            "aa 1 | Depends: vv (>= 1)\n mm 1 | Provides: vv",
            "aa",
            Err("`aa` needs `vv (>= 1)`, which does not fit what the suites offer: mm 1"),
        ),
        ("a provided version", "aa 1 | Depends: vv (>= 1)\n mm 0 | Provides: vv (= 1.5)", "aa", Ok("aa mm")),
        ("a request for the only provider", "mm 1 | Provides: mta", "mta", Ok("mm")),
        (
            "a request for one of many",
            "nn 1 | Provides: mta\n mm 1 | Provides: mta",
            "mta",
            Err("`mta` is a virtual package: name one of those that provide it (mm, nn)"),
        ),
    ]);
}

#[test]
fn architecture_qualifiers_are_heeded() {
    table(&[
        (
            "`:any` of a package that allows it",
            "aa 1 | Depends: pp:any\n pp 1 | Multi-Arch: allowed",
            "aa",
            Ok("aa pp"),
        ),
        (
            "`:any` with a version",
            "aa 1 | Depends: pp:any (>= 2)\n pp 1 | Multi-Arch: allowed",
            "aa",
            Err("`aa` needs `pp:any (>= 2)`"),
        ),
        (
            "`:any` of a package that does not",
            "aa 1 | Depends: pp:any\n pp 1",
            "aa",
            Err("`aa` needs `pp:any`, which no suite offers"),
        ),
        ("`:native` and the image's own", "aa 1 | Depends: pp:native, qq:amd64\n pp 1\n qq 1", "aa", Ok("aa pp qq")),
        (
            "a foreign one in a relation",
            "aa 1 | Depends: pp:i386\n pp 1",
            "aa",
            Err("`aa` needs `pp:i386`, which no suite offers"),
        ),
        ("a foreign one as an alternative", "aa 1 | Depends: pp:i386 || qq\n pp 1\n qq 1", "aa", Ok("aa qq")),
        (
            "a foreign one in the request",
            "pp 1",
            "pp:i386",
            Err("`pp:i386` asks for another architecture than the image's, amd64"),
        ),
    ]);
}

#[test]
fn enemies_are_never_together() {
    table(&[
        (
            "of two that are asked for",
            "aa 1 | Conflicts: bb\n bb 1",
            "aa bb",
            Err("`aa` and `bb` exclude each other: the former has `Conflicts: bb`"),
        ),
        (
            "of needs of two that are asked for",
            "aa 1 | Depends: xx\n bb 1 | Depends: yy\n xx 1 | Breaks: yy (<< 2)\n yy 1",
            "aa bb",
            Err("`aa` -> `xx` and `bb` -> `yy` exclude each other: the former has `Breaks: yy (<< 2)`"),
        ),
        ("a version that it does not mean", "aa 1 | Breaks: bb (<< 2)\n bb 2", "aa bb", Ok("aa bb")),
        ("a name that it provides itself", "aa 1 | Provides: mta | Conflicts: mta, aa", "aa", Ok("aa")),
        (
            "a name that the other one provides",
            "aa 1 | Provides: mta | Conflicts: mta\n bb 1 | Provides: mta",
            "aa bb",
            Err("`aa` and `bb` exclude each other"),
        ),
        (
            "a provided version",
            "aa 1 | Breaks: vv (<< 2)\n bb 9 | Provides: vv (= 1)\n cc 1 | Provides: vv",
            "aa cc bb",
            Err("`aa` and `bb` exclude each other"),
        ),
        (
            "the only choice of one is out of the question for the other",
            "aa 1 | Depends: bb || cc\n bb 1 | Conflicts: dd\n cc 1 | Conflicts: dd\n dd 1",
            "dd aa",
            Err("`aa` needs `bb | cc`, and each way to meet it is excluded"),
        ),
        ("Replaces alone excludes nothing", "aa 1 | Replaces: bb\n bb 1", "aa bb", Ok("aa bb")),
    ]);
}

#[test]
fn failures_say_what_led_there() {
    table(&[
        (
            "a typing error",
            "python3 1\n perl 1",
            "pyton3",
            Err("there is no package `pyton3` for amd64 in these suites; did you mean `python3`?"),
        ),
        ("nothing near", "python3 1", "xx", Err("there is no package `xx` for amd64 in these suites")),
        (
            "the whole chain",
            "aa 1 | Depends: bb\n bb 1 | Depends: cc (>= 2) || dd\n cc 1",
            "aa",
            Err("`aa` -> `bb` needs `cc (>= 2) | dd`, which does not fit what the suites offer: cc 1"),
        ),
        (
            "asked for and left out",
            "aa 1",
            "aa -aa",
            Err("`aa` is asked for and left out by `without` at the same time"),
        ),
        (
            "a relation that cannot be read, of a package that is wanted",
            "aa 1 | Depends: bb\n bb 1 | Depends: (>= 2)",
            "aa",
            Err("`bb` 1 has an unreadable `Depends`: "),
        ),
        ("a relation that cannot be read, of another one", "aa 1\n bb 1 | Depends: (>= 2)", "aa", Ok("aa")),
    ]);
}

#[test]
fn what_is_left_out_counts_as_there() {
    table(&[
        (
            "it and what only it needs",
            "aa 1 | Depends: bb, cc\n bb 1 | Depends: dd, cc\n cc 1\n dd 1",
            "aa -bb",
            Ok("aa cc"),
        ),
        ("whatever the version", "aa 1 | Depends: bb (>= 9)\n bb 1", "aa -bb", Ok("aa")),
        ("what it provides", "aa 1 | Depends: vv || cc\n bb 1 | Provides: vv\n cc 1", "aa -bb", Ok("aa")),
        (
            "it excludes nothing",
            "aa 1 | Depends: bb, cc\n bb 1 | Conflicts: cc\n cc 1 | Breaks: bb",
            "aa -bb",
            Ok("aa cc"),
        ),
        ("as an alternative", "aa 1 | Depends: bb || cc\n bb 1\n cc 1", "aa -cc", Ok("aa")),
        ("a name that nobody knows", "aa 1", "aa -nothing", Ok("aa")),
    ]);
}

#[test]
fn the_newest_version_of_all_suites_is_the_candidate() {
    let suites = [("trixie", "aa 1.0-1 | Depends: bb\nbb 1"), ("trixie-security", "aa 1.0-1+deb13u1\nbb 1~")];
    let offers = suites.iter().map(|(suite, lines)| offer(suite, lines)).collect();
    let universe = Universe::new("amd64", offers).expect("a universe");
    let candidate = universe.candidate("aa").expect("a candidate");
    assert_eq!((candidate.package.version(), candidate.suite), ("1.0-1+deb13u1", "trixie-security"));
    assert_eq!(universe.candidate("bb").expect("a candidate").package.version(), "1");
    assert!(universe.candidate("cc").is_none());
    let closure = close(&universe, "aa", &[]).expect("a closure");
    assert_eq!(
        (closure.len(), closure[0].suite.as_str(), closure[0].archive.as_str()),
        (1, "trixie-security", "debian")
    );
}

#[test]
fn one_version_with_two_contents_is_refused() {
    let offers = vec![offer("trixie", "aa 1"), offer("trixie-security", "aa 1 | Depends: bb")];
    let error = Universe::new("amd64", offers).expect_err("two builds").to_string();
    assert_eq!(
        error,
        "`aa` 1 differs between debian trixie and debian trixie-security: one of the two archives is wrong"
    );
    assert!(Universe::new("amd64", vec![offer("trixie", "aa 1"), offer("trixie-security", "aa 1")]).is_ok());
}

#[test]
fn each_package_says_who_asked_for_it() {
    let universe = universe("aa 1 | Depends: bb\nbb 1 | Depends: cc\ncc 1\ndd 1 | Depends: cc");
    let closure = close(&universe, "aa dd", &[]).expect("a closure");
    let by: Vec<Option<&str>> = closure.iter().map(|chosen| chosen.by.as_deref()).collect();
    assert_eq!(by, [None, Some("aa"), Some("dd"), None]);
}

#[test]
fn what_lies_below_stays_and_is_not_repeated() {
    let universe = universe(
        "aa 1 | Depends: bb\nbb 1 | Depends: cc\nbb 2\ncc 1\ndd 1 | Depends: bb, ee\nee 1\nff 1 | Conflicts: bb\ngg 1 | Depends: bb (>= 2)",
    );
    let below = close(&universe, "bb=1 -cc", &[]).expect("the layer below");
    assert_eq!(names(&below), "bb");
    assert_eq!(names(&close(&universe, "aa dd", &below).expect("more")), "aa dd ee");
    assert_eq!(names(&close(&universe, "bb", &below).expect("nothing more")), "");
    let error = close(&universe, "ff", &below).expect_err("an enemy below").to_string();
    assert!(error.starts_with("`ff` and `bb` exclude each other"), "{error}");
    assert!(close(&universe, "gg", &below).is_err());
}

#[test]
fn held_versions_are_kept_while_they_are_offered_and_fit() {
    let universe = universe("aa 1 | Depends: bb\nbb 1\nbb 2\ncc 1 | Depends: bb (>= 2)\ndd 1 | Breaks: bb (<< 2)");
    let version = |words: &str| {
        let closure = close(&universe, words, &[]).expect("a closure");
        let found = closure.iter().find(|chosen| chosen.package.name() == "bb").expect("bb");
        found.package.version().to_owned()
    };
    assert_eq!(version("aa"), "2");
    assert_eq!(version("aa =bb/1"), "1");
    assert_eq!(version("aa =bb/0"), "2", "it is gone");
    assert_eq!(version("aa cc =bb/1"), "2", "it does not fit any longer");
    assert_eq!(version("aa dd =bb/1"), "2", "it is excluded");
}

/// Universes of a few names, dense with alternatives, provided names and enemies.
fn universes() -> impl Strategy<Value = String> {
    let name =
        || prop_oneof![4 => (0..8u8).prop_map(|at| format!("p{at}")), 1 => (0..3u8).prop_map(|at| format!("v{at}"))];
    let bound = || prop_oneof![5 => Just(String::new()), 1 => (0..4u8).prop_map(|at| format!(" (>= {at})")), 1 => (1..4u8).prop_map(|at| format!(" (<< {at})"))];
    let atom = move || (name(), bound()).prop_map(|(name, bound)| name + &bound);
    let group = move || vec(atom(), 1..4).prop_map(|atoms| atoms.join(" || "));
    let field = |head: &'static str, groups: Vec<String>| {
        if groups.is_empty() { String::new() } else { format!(" | {head}: {}", groups.join(", ")) }
    };
    let package =
        (1..4u8, vec(group(), 0..3), vec(atom(), 0..2), vec(atom(), 0..2), vec(0..3u8, 0..2), vec(group(), 0..2));
    let package = package.prop_map(move |(version, depends, conflicts, breaks, provides, recommends)| {
        let provides = provides.into_iter().map(|at| format!("v{at}")).collect();
        [
            format!(" {version}"),
            field("Depends", depends),
            field("Conflicts", conflicts),
            field("Breaks", breaks),
            field("Provides", provides),
            field("Recommends", recommends),
        ]
        .concat()
    });
    vec(package, 1..9)
        .prop_map(|packages| packages.iter().enumerate().map(|(at, package)| format!("p{at}{package}\n")).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A closure passes its own check, or there is none: `Broken` would say that the resolver is wrong.
    #[test]
    fn whatever_the_universe_a_closure_is_whole_and_stays_as_it_is(
        lines in universes(),
        wanted in vec(0..8u8, 1..4),
        left_out in option::of(0..8u8),
        recommends: bool,
    ) {
        let universe = universe(&lines);
        let mut words: String = wanted.iter().map(|at| format!("p{at} ")).collect();
        if recommends {
            words.push_str("+recommends ");
        }
        if let Some(at) = left_out {
            let _ = write!(words, "-p{at}");
        }
        match close(&universe, &words, &[]) {
            Ok(closure) => {
                for at in &wanted {
                    let name = format!("p{at}");
                    prop_assert!(closure.iter().any(|chosen| chosen.package.name() == name));
                }
                prop_assert!(closure.is_sorted_by_key(|chosen| chosen.package.name().to_owned()));
                let again = close(&universe, &words, &[]).expect("the same again");
                prop_assert_eq!(names(&closure), names(&again));
                let above = close(&universe, &words, &closure).expect("nothing is missing");
                prop_assert_eq!(names(&above), "");
            }
            Err(ResolveError::Broken { why }) => prop_assert!(false, "{}", why),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
