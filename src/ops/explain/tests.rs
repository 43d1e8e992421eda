//! What is told of two texts.

use std::collections::BTreeSet;

use layers::KeyHasher;
use layers::op::Op;
use layers::source::{Dir, Files, Inline, User, dir, files, inline, user};
use layers::{ImagePath, path};

use super::changed::{Asked, Changed};
use super::reasons::{Known, Outcome, compare};
use super::text::Part;

fn text(format: u32, layers: &[&[&[(&str, &str)]]]) -> String {
    let mut hasher = KeyHasher::new("image", 1);
    hasher.field("layer-format", format);
    for layer in layers {
        hasher.field("layer", "");
        for (name, value) in layer.iter().copied().flatten() {
            hasher.field(name, value);
        }
    }
    hasher.finish().1
}

/// What the older text came to: of copies what a function says, and no more unless it is said.
struct Layers<'a> {
    files: &'a dyn Fn() -> Option<Changed>,
    dirs: Option<&'a [&'a str]>,
    lost: &'a [usize],
    left: &'a [&'a str],
    outcome: &'a dyn Fn(usize) -> Option<Outcome>,
    cache: Option<&'a str>,
}

const UNKNOWN: Layers<'_> =
    Layers { files: &|| None, dirs: None, lost: &[], left: &[], outcome: &|_| None, cache: None };

impl Known for Layers<'_> {
    fn files(&self, _asked: &Asked<'_>) -> Option<Changed> {
        (self.files)()
    }

    fn outcome(&self, layer: usize, _home: Option<usize>) -> Option<Outcome> {
        (self.outcome)(layer)
    }

    fn cache(&self, _layer: usize) -> Option<&str> {
        self.cache
    }

    fn is_lost(&self, layer: usize) -> bool {
        self.lost.contains(&layer)
    }

    fn has_dir(&self, _layer: usize, path: &str) -> Option<bool> {
        self.dirs.map(|dirs| dirs.contains(&path))
    }

    fn left_paths(&self, _layer: usize, archive: &Part) -> bool {
        self.left.contains(&archive.value())
    }
}

fn told(old: &str, new: &str, labels: &[&str]) -> String {
    told_with(old, new, labels, &UNKNOWN)
}

fn told_with(old: &str, new: &str, labels: &[&str], known: &dyn Known) -> String {
    let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
    let (reasons, layers) = compare(old, new, &labels, known);
    let layers = layers.iter().map(|layer| {
        format!("{} {}: {}", if layer.hit { "hit" } else { "miss" }, layer.label, layer.reasons.join("; "))
    });
    reasons.into_iter().chain(layers).collect::<Vec<_>>().join("\n")
}

const NUMPY: &[(&str, &str)] = &[("name", "numpy-2.1.0-cp313-cp313-x.whl"), ("archive", "1"), ("version", "1")];
const NEWER: &[(&str, &str)] = &[("name", "numpy-2.2.0-cp313-cp313-x.whl"), ("archive", "2"), ("version", "1")];
const CURL: &[(&str, &str)] = &[("name", "curl_8.14.1-2_amd64.deb"), ("archive", "3"), ("version", "1")];
const OTHER: &[(&str, &str)] = &[("name", "curl_8.14.1-2_amd64.deb"), ("archive", "4"), ("version", "1")];
const JQ: &[(&str, &str)] = &[("name", "jq_1%3a1.7-1_amd64.deb"), ("archive", "5"), ("version", "1")];

#[test]
fn a_changed_package_is_named_with_both_versions_and_other_layers_are_hits() {
    let (old, new) = (text(1, &[&[CURL], &[NUMPY]]), text(1, &[&[CURL], &[NEWER]]));
    assert_eq!(told(&old, &new, &["debian", "python"]), "hit debian: \nmiss python: numpy 2.1.0 -> 2.2.0");
    assert_eq!(told(&old, &old, &["debian", "python"]), "hit debian: \nhit python: ");
}

#[test]
fn packages_that_come_go_or_have_other_bytes_are_named() {
    let (old, new) = (text(1, &[&[CURL, JQ]]), text(1, &[&[OTHER, NUMPY]]));
    let expected = "miss x: curl 8.14.1-2 has other bytes; numpy 2.1.0 is new; jq 1:1.7-1 is gone";
    assert_eq!(told(&old, &new, &["x"]), expected);
}

#[test]
fn packages_that_move_between_layers_are_told_apart_from_changed_ones() {
    let (old, new) = (text(1, &[&[CURL, JQ], &[NUMPY]]), text(1, &[&[CURL], &[JQ, NUMPY]]));
    let expected = "miss a: other packages share its layer\nmiss b: other packages share its layer";
    assert_eq!(told(&old, &new, &["a", "b"]), expected);
}

#[test]
fn what_concerns_all_layers_is_told_once() {
    let (old, new) = (text(1, &[&[CURL]]), text(2, &[&[CURL]]));
    assert_eq!(told(&old, &new, &["a"]), "layer-format: 1 -> 2\nmiss a: ");
}

#[test]
fn no_text_makes_it_panic() {
    let good = text(1, &[&[CURL, JQ], &[NUMPY]]);
    for at in 0..good.len() {
        told(&good[..at], &good, &["a", "b"]);
        told(&good, &good[at..], &["a"]);
    }
}

type Owned = Vec<(&'static str, String)>;

/// A text of these layers.
fn texts(layers: &[&[Owned]]) -> String {
    let borrowed = |part: &Owned| part.iter().map(|(name, value)| (*name, value.clone())).collect::<Vec<_>>();
    let mut hasher = KeyHasher::new("image", 1);
    for layer in layers {
        hasher.field("layer", "");
        for (name, value) in layer.iter().flat_map(borrowed) {
            hasher.field(name, value);
        }
    }
    hasher.finish().1
}

fn step(op: Op) -> Owned {
    vec![("op", op.to_json())]
}

fn owner(user: User) -> Owned {
    step(Op::AddUser(user))
}

fn folder(dir: Dir) -> Owned {
    step(Op::Dir(dir))
}

fn written(inline: Inline) -> Owned {
    step(Op::Inline(inline))
}

fn copy(files: Files, selection: &str) -> Owned {
    vec![("copy", files.to_json()), ("selection", selection.to_owned())]
}

fn fields(fields: &[(&'static str, &str)]) -> Owned {
    fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[test]
fn set_up_reads_all_that_is_below_it() {
    let configure = || fields(&[("configure", "{}"), ("effects", "1")]);
    let compile = || fields(&[("compile", "{}"), ("versions", "1")]);
    let dpkg = || fields(&[("dpkg", "{}"), ("configurator", "1"), ("versions", "1")]);
    let deb = |archive| fields(&[("name", "curl_8.14.1-2_amd64.deb"), ("archive", archive), ("version", "1")]);
    let all = |first: Owned| texts(&[&[first], &[configure()], &[dpkg()], &[compile()], &[deb("9")]]);
    let labels = ["debian curl", "curl: configuration", "dpkg --configure curl", "curl: byte-code", "x"];
    let expected = "miss debian curl: curl 8.14.1-2 has other bytes\n\
        miss curl: configuration: it reads what is below, and `debian curl` changed\n\
        miss dpkg --configure curl: it reads what is below, and `debian curl` changed\n\
        miss curl: byte-code: it may be made anew: it reads the modules below, and `debian curl` changed\n\
        hit x: ";
    assert_eq!(told(&all(deb("1")), &all(deb("2")), &labels), expected);
    // What is above makes no difference.
    let above = |archive| texts(&[&[configure()], &[deb(archive)]]);
    assert!(told(&above("1"), &above("2"), &["set-up", "x"]).starts_with("hit set-up: \nmiss x"));
    // What is not there any more, or elsewhere.
    let two = texts(&[&[deb("1")], &[folder(dir(path!("/a")))], &[configure()]]);
    let gone = "dir /a is gone\nhit x: \nmiss set-up: it reads what is below, and dir /a is gone";
    assert_eq!(told(&two, &texts(&[&[deb("1")], &[configure()]]), &["x", "set-up"]), gone);
    let swapped = texts(&[&[folder(dir(path!("/a")))], &[deb("1")], &[configure()]]);
    let order = "the order of layers changed\nhit dir: \nhit x: \n\
        miss set-up: it reads what is below, and the order of layers changed";
    assert_eq!(told(&two, &swapped, &["dir", "x", "set-up"]), order);
}

#[test]
fn users_are_hits_only_where_the_account_files_are_what_they_were() {
    let all = |selection| {
        let small = [owner(user("bob", 7)), folder(dir(path!("/x")))];
        texts(&[&[copy(files("etc", path!("/etc")), selection)], &small])
    };
    let (old, new) = (all("1"), all("2"));
    let said = |found: Option<(&[&str], &[&str])>| {
        let files = || {
            found.map(|(changed, kept)| Changed { text: "1 changed".into(), changed: set(changed), kept: set(kept) })
        };
        let told =
            told_with(&old, &new, &["files etc", "user bob (7:7), dir /x"], &Layers { files: &files, ..UNKNOWN });
        told.split_once('\n').unwrap().1.to_owned()
    };
    let anew = "miss user bob (7:7), dir /x: it reads the account files below, and `files etc` changed them";
    assert_eq!(said(Some((&["etc/passwd"], &[]))), anew);
    assert_eq!(said(Some((&["etc"], &[]))), anew);
    let may =
        "miss user bob (7:7), dir /x: it may be made anew: it reads the account files below, and `files etc` changed";
    // The files came with others, which changed; or it is not known what changed.
    assert_eq!(said(Some((&["etc/motd"], &["etc/passwd"]))), may);
    assert_eq!(said(None), may);
    assert_eq!(said(Some((&["etc/motd", "etc/passwd-"], &["srv/etc/passwd"]))), "hit user bob (7:7), dir /x: ");
}

#[test]
fn what_of_a_copy_changed_is_named() {
    let base = || files("src", path!("/app"));
    let said =
        |before: Files, after: Files| told(&texts(&[&[copy(before, "1")]]), &texts(&[&[copy(after, "1")]]), &["files"]);
    assert_eq!(said(base(), files("src", path!("/srv"))), "miss files: to /app -> /srv");
    assert_eq!(said(base(), base().mode(0o600)), "miss files: mode kept -> 600");
    assert_eq!(said(base().mode(0o644), base().mode(0o600)), "miss files: mode 644 -> 600");
    assert_eq!(said(base(), base().owner(7, 8)), "miss files: owner 0:0 -> 7:8");
    assert_eq!(said(base(), base().exclude(["*.md", "x"])), "miss files: exclude nothing -> *.md x");
    assert_eq!(said(base(), files("lib", path!("/app"))), "miss files: from src -> lib");
    // Of several copies of the same files, the one that went elsewhere.
    let two = |to| texts(&[&[copy(base(), "1")], &[copy(files("src", to), "1")]]);
    let expected = "hit a: \nmiss b: to /b -> /c";
    assert_eq!(told(&two(path!("/b")), &two(path!("/c")), &["a", "b"]), expected);
}

#[test]
fn what_of_small_steps_changed_is_named() {
    let steps = |mode, text: &str| texts(&[&[folder(dir(path!("/a")).mode(mode)), written(inline(text, path!("/b")))]]);
    let expected = "miss x: dir /a: mode 755 -> 700; inline /b: its text changed";
    assert_eq!(told(&steps(0o755, "one"), &steps(0o700, "two"), &["x"]), expected);
}

#[test]
fn what_lies_in_a_directory_that_changed_is_no_hit() {
    let all = |owner| {
        let copied = [path!("/data/x"), path!("/database"), path!("/data")].map(|to| [copy(files("src", to), "1")]);
        texts(&[&[folder(dir(path!("/data")).owner(owner, 7))], &copied[0], &copied[1], &copied[2]])
    };
    let expected = "miss dir: owner 7:7 -> 8:7\nmiss in: it lies in what `dir /data` makes, which changed\nhit beside: \nmiss at: it lies in what `dir /data` makes, which changed";
    assert_eq!(told(&all(7), &all(8), &["dir", "in", "beside", "at"]), expected);
}

#[test]
fn what_of_something_taken_changed_is_named() {
    let all = |key: &str, to: &str, owner: &[(&'static str, &str)]| {
        let take = [("take", key), ("from", "/opt/x"), ("to", to)];
        texts(&[&[fields(&[take.as_slice(), owner].concat())]])
    };
    let said = |new: String| told(&all("1", "/x", &[]), &new, &["take"]);
    assert_eq!(said(all("2", "/x", &[])), "miss take: the stage of /opt/x changed");
    assert_eq!(said(all("1", "/x", &[("owner", "7:7")])), "miss take: owner kept -> 7:7");
    assert_eq!(said(all("1", "/y", &[])), "miss take: to /x -> /y");
}

#[test]
fn what_of_a_build_from_source_changed_is_named() {
    let all = |file: &str, builder: &str, env: &str| {
        let built = [("name", file), ("archive", "1"), ("version", "1"), ("builder", builder)];
        texts(&[&[fields(&[built.as_slice(), &[("env", "A=1"), ("env", env), ("versions", "1")]].concat())]])
    };
    let said = |new: String| told(&all("my_pkg-1.0.tar.gz", "1", "B=1"), &new, &["x"]);
    assert_eq!(said(all("my_pkg-1.1.tar.gz", "1", "B=1")), "miss x: my-pkg 1.0 -> 1.1");
    assert_eq!(said(all("my_pkg-1.0.tar.gz", "2", "B=1")), "miss x: the stage that builds my-pkg 1.0 changed");
    assert_eq!(said(all("my_pkg-1.0.tar.gz", "1", "B=2")), "miss x: the environment that builds my-pkg 1.0 changed: B");
}

#[test]
fn what_of_a_set_up_changed_is_named() {
    let all = |packages: &str, ignored: &str| {
        let text =
            format!(r#"{{"packages":[{packages}],"exclude":{{}},"effects":{{}},"ignore_scripts":{{{ignored}}}}}"#);
        texts(&[&[fields(&[("configure", &text), ("effects", "1")])]])
    };
    let said = |new: String| told(&all("1", ""), &new, &["x"]);
    assert_eq!(said(all("1", r#""jq":"why""#)), "miss x: the ignored scripts of jq changed");
    assert_eq!(said(all("2", "")), "miss x: the packages that it sets up changed");
}

#[test]
fn which_libraries_may_be_missing_concerns_no_layer() {
    let all = |allowed: &str| {
        let mut hasher = KeyHasher::new("image", 1);
        hasher.field("allow-missing", allowed).field("layer", "").field("name", "x");
        hasher.finish().1
    };
    assert_eq!(told(&all("a"), &all("b"), &["x"]), "allow-missing: a -> b\nhit x: ");
}

fn archive(name: &str, archive: &str, conversion: &str) -> Owned {
    fields(&[("name", name), ("archive", archive), ("conversion", conversion), ("version", "1")])
}

#[test]
fn what_only_lies_below_a_directory_by_its_content_is_compared_with_what_it_had() {
    let (deb, wheel) = (r#"{"deb":{"exclude":[]}}"#, r#"{"wheel":{"venv":"/opt/venv","python":"3.13"}}"#);
    let said = |path: &str, dirs: Option<&[&str]>| {
        let path = ImagePath::new(path).unwrap();
        let all = |mode| {
            let (xx, aa) = (archive("xx_1_all.deb", "1", deb), archive("aa-1-py3-none-any.whl", "2", wheel));
            let copied = copy(files("src", path!("/app")), "1");
            texts(&[
                &[folder(dir(path.clone()).mode(mode))],
                &[xx],
                &[aa],
                &[copied],
                &[folder(dir(path.clone()).mode(0o711))],
            ])
        };
        let known = Layers { dirs, ..UNKNOWN };
        let told = told_with(&all(0o755), &all(0o700), &["dir", "deb", "wheel", "copy", "same"], &known);
        told.lines().skip(1).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let is = |what: &str, path: &str| format!("miss {what}: it lies in what `dir {path}` makes, which changed");
    let may = |what: &str, path: &str| {
        format!("miss {what}: it may be made anew: something of it may lie in what `dir {path}` makes, which changed")
    };
    let hit = |what: &str| format!("hit {what}: ");
    let below = "/opt/venv/lib";
    let all = [is("deb", below), is("wheel", below), is("copy", below), hit("same")];
    assert_eq!(said(below, Some(&[below])), all);
    assert_eq!(said(below, Some(&["/opt"])), [hit("deb"), hit("wheel"), hit("copy"), hit("same")]);
    assert_eq!(said(below, None), [may("deb", below), may("wheel", below), hit("copy"), hit("same")]);
    assert_eq!(said("/app/x", None), [may("deb", "/app/x"), hit("wheel"), may("copy", "/app/x"), hit("same")]);
}

#[test]
fn what_archives_share_may_be_made_anew_where_one_of_them_changed() {
    let wheel = r#"{"wheel":{"venv":"/opt/venv","python":"3.13"}}"#;
    let deb = r#"{"deb":{"exclude":[]}}"#;
    let all = |aa: &[Owned]| {
        let xx = [archive("xx_1_all.deb", "1", deb), fields(&[("configure", "{}"), ("effects", "1")])];
        texts(&[aa, &[archive("bb-1-py3-none-any.whl", "2", wheel)], &xx[..1], &xx[1..]])
    };
    let aa = |bytes| all(&[archive("aa-1-py3-none-any.whl", bytes, wheel)]);
    let known = Layers { left: &["bb-1-py3-none-any.whl", "xx_1_all.deb"], ..UNKNOWN };
    let may = "it may be made anew: bb 1 leaves files to others that have them, too, and";
    let labels = ["aa", "bb", "xx", "set-up"];
    let expected = format!(
        "miss aa: aa 1 has other bytes\nmiss bb: {may} `aa` changed\nhit xx: \n\
         miss set-up: it reads what is below, and `aa` changed"
    );
    assert_eq!(told_with(&aa("3"), &aa("4"), &labels, &known), expected);
    let gone = told_with(&aa("3"), &all(&[]), &labels, &known);
    assert!(gone.contains(&format!("miss bb: {may} aa 1 is gone\n")), "{gone}");
    assert!(told(&aa("3"), &aa("4"), &labels).contains("\nhit bb: \n"));
}

#[test]
fn byte_code_of_imports_may_be_other_where_another_wheel_changed() {
    let chosen = |roots: &str| {
        let interpreter = layers::Digest::of(b"");
        let modules = format!(r#"{{"imported-by":["{roots}"]}}"#);
        let bytecode = format!(r#"{{"modules":{modules},"interpreter":"{interpreter}"}}"#);
        format!(r#"{{"wheel":{{"venv":"/opt/venv","python":"3.13","bytecode":{bytecode}}}}}"#)
    };
    let all = |bytes: &str| {
        let wheels = ["aa", "bb"].map(|name| archive(&format!("{name}-1-py3-none-any.whl"), "1", &chosen("main")));
        let other = archive("cc-1-py3-none-any.whl", "1", &chosen("other"));
        let changed = archive("mm-1-py3-none-any.whl", bytes, &chosen("main"));
        texts(&[&wheels[..1], &wheels[1..], &[other], &[changed], &[owner(user("bob", 7))]])
    };
    let may = "it may be made anew: its byte-code is what other wheels import of it, and `mm` changed";
    let expected = format!(
        "miss aa: {may}\nmiss bb: {may}\nhit cc: \nmiss mm: mm 1 has other bytes\n\
         miss bob: it may be made anew: it reads the account files below, and `aa` may be other than it was"
    );
    assert_eq!(told(&all("1"), &all("2"), &["aa", "bb", "cc", "mm", "bob"]), expected);
}

#[test]
fn a_layer_whose_bytes_are_gone_is_no_hit() {
    let (old, new) = (text(1, &[&[CURL], &[NUMPY]]), text(1, &[&[CURL], &[NEWER]]));
    let known = Layers { lost: &[0, 1], ..UNKNOWN };
    let expected = "miss debian: its bytes are gone from the cache\nmiss python: numpy 2.1.0 -> 2.2.0";
    assert_eq!(told_with(&old, &new, &["debian", "python"], &known), expected);
}

#[test]
fn patterns_of_a_set_up_are_compared_by_package() {
    let set_up = |packages: &[(&str, &str)], what: &str| {
        let archives = packages.iter().map(|(name, digest)| format!(r#"{{"name":"{name}","digest":"{digest}"}}"#));
        let exclude = packages.iter().map(|(_, digest)| format!(r#""{digest}":["{what}"]"#));
        let joined = |all: Vec<String>| all.join(",");
        let (packages, exclude) = (joined(archives.collect()), joined(exclude.collect()));
        let text =
            format!(r#"{{"packages":[{packages}],"exclude":{{{exclude}}},"effects":{{}},"ignore_scripts":{{}}}}"#);
        texts(&[&[fields(&[("configure", &text), ("effects", "1")])]])
    };
    let old = set_up(&[("jq_1.7_amd64.deb", "1"), ("curl_8_amd64.deb", "2")], "/usr/*");
    let said = |packages: &[(&str, &str)], what: &str| told(&old, &set_up(packages, what), &["x"]);
    let packages = "the packages that it sets up changed";
    assert_eq!(said(&[("jq_1.8_amd64.deb", "3"), ("xz_1_amd64.deb", "4")], "/usr/*"), format!("miss x: {packages}"));
    let left_out = "the paths that are left out of packages changed";
    assert_eq!(said(&[("jq_1.8_amd64.deb", "3")], "/var/*"), format!("miss x: {packages}; {left_out}"));
}

#[test]
fn another_base_concerns_what_reads_it() {
    let all = |base: &str| {
        let mut hasher = KeyHasher::new("image", 1);
        hasher.field("base", base).field("base-version", 1);
        let set_up = vec![("configure", "{}".to_owned())];
        for part in [set_up, owner(user("bob", 7)), copy(files("src", path!("/app")), "1")] {
            hasher.field("layer", "");
            for (name, value) in part {
                hasher.field(name, value);
            }
        }
        hasher.finish().1
    };
    let expected = "base: 1 -> 2\nmiss set-up: it reads what is below, and the base changed\n\
        miss user: it may be made anew: it reads the account files below, and the base changed\nhit copy: ";
    assert_eq!(told(&all("1"), &all("2"), &["set-up", "user", "copy"]), expected);
}

#[test]
fn what_a_build_comes_to_counts_more_than_texts() {
    let (old, new) = (text(1, &[&[CURL], &[NUMPY], &[JQ]]), text(1, &[&[CURL], &[NEWER], &[JQ]]));
    let labels = ["debian", "python", "jq"];
    let said = |outcome: &dyn Fn(usize) -> Option<Outcome>| {
        told_with(&old, &new, &labels, &Layers { outcome, lost: &[2], ..UNKNOWN })
    };
    let found = said(&|at| if at == 2 { None } else { Some(Outcome::Earlier) });
    let left = "an earlier build left it";
    assert_eq!(found, format!("hit debian: {left}\nhit python: {left}\nmiss jq: its bytes are gone from the cache"));
    let made = said(&|_| Some(Outcome::Made(vec!["so".into()])));
    assert_eq!(made, "miss debian: so\nmiss python: numpy 2.1.0 -> 2.2.0\nmiss jq: so");
    let unsaid = said(&|_| Some(Outcome::Made(Vec::new())));
    assert!(unsaid.starts_with("miss debian: what it is made of changed\nmiss python: numpy 2.1.0"), "{unsaid}");
    assert!(said(&|_| Some(Outcome::Kept)).ends_with("hit jq: "));
}

#[test]
fn what_only_a_build_knows_is_certain_once_it_is_seen() {
    let all = |text: &str| texts(&[&[copy(files("etc", path!("/etc")), text)], &[owner(user("bob", 7))]]);
    let said = |outcome: &dyn Fn(usize) -> Option<Outcome>| {
        told_with(&all("1"), &all("2"), &["files", "user"], &Layers { outcome, ..UNKNOWN })
    };
    let reads = "it reads the account files below, and `files` changed";
    assert!(said(&|_| None).ends_with(&format!("miss user: it may be made anew: {reads}")));
    assert!(said(&|at| (at == 1).then(|| Outcome::Made(Vec::new()))).ends_with(&format!("miss user: {reads}")));
    assert!(said(&|at| (at == 1).then_some(Outcome::Kept)).ends_with("hit user: "));
}

#[test]
fn what_came_from_a_cache_elsewhere_may_be_found_there_alone() {
    let (old, new) = (text(1, &[&[CURL], &[NUMPY], &[JQ]]), text(1, &[&[CURL], &[NEWER], &[JQ]]));
    let known = Layers { cache: Some("dir:/x"), lost: &[2], ..UNKNOWN };
    let expected = "miss debian: it may be made anew: the last build had it from `dir:/x`\n\
        miss python: numpy 2.1.0 -> 2.2.0\n\
        miss jq: the last build had it from `dir:/x`, and its bytes are not here";
    assert_eq!(told_with(&old, &new, &["debian", "python", "jq"], &known), expected);
}
