//! The command line: statuses, streams, hostile surroundings. No network.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::run::{Outcome, Sandbox, binary, outcome, tool};
use crate::support::tiny::write_plain;

/// A sandbox with the plain catalogue, and the words that choose it.
fn plain() -> (Sandbox, [String; 2]) {
    let sandbox = Sandbox::new();
    let chosen = write_plain(&sandbox);
    (sandbox, chosen)
}

fn run(sandbox: &Sandbox, chosen: &[String; 2], arguments: &[&str]) -> Outcome {
    sandbox.imgbuild([&[chosen[0].as_str(), chosen[1].as_str()], arguments].concat())
}

#[test]
fn a_build_prints_a_line_an_image_on_stdout_and_the_rest_on_stderr() {
    let (sandbox, chosen) = plain();
    let built = run(&sandbox, &chosen, &["build"]);
    let printed = built.clone().success();
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.iter().map(|words| words[0]).collect::<Vec<_>>(), ["hello", "world"]);
    for words in &lines {
        assert!(words.len() == 2 && words[1].starts_with("sha256:") && words[1].len() == 71, "{printed}");
    }
    assert!(!built.stderr.is_empty());
    // Again: the same, and nothing to tell.
    let again = run(&sandbox, &chosen, &["build"]);
    assert_eq!(again.stdout, printed);
    let one = run(&sandbox, &chosen, &["build", "world", "--progress", "quiet"]);
    assert_eq!((one.status, one.stdout.lines().count(), one.stderr.as_str()), (0, 1, ""));
}

#[test]
fn mistakes_end_with_2_and_say_what_was_probably_meant() {
    let (sandbox, chosen) = plain();
    let failed = |arguments: &[&str], said: &[&str]| run(&sandbox, &chosen, arguments).failure(2, said);
    failed(&["build", "helo"], &["no image `helo`", "did you mean `hello`?"]);
    failed(&["buidl"], &["buidl", "build"]);
    failed(&["build", "--plattform", "linux/amd64"], &["--plattform", "--platform"]);
    failed(&["build", "--platform", "linux/sparc"], &["linux/sparc"]);
    failed(&["build", "--output", "zip:x"], &["zip:x", "oci:DIR"]);
    failed(&["build", "--label", "novalue"], &["novalue", "--label NAME=VALUE"]);
    failed(&["-j", "0", "build"], &["0"]);
    failed(&["build", "--progress", "loud"], &["loud", "plain"]);
    failed(&["why"], &["PACKAGE"]);
    sandbox.imgbuild(["--catalogue", "nowhere.json", "list"]).failure(2, &["nowhere.json"]);
    sandbox.write("broken.json", "{\"imgbuildPlan\": 1}");
    sandbox.imgbuild(["--catalogue", "broken.json", "list"]).failure(2, &["broken.json"]);
    sandbox.write("newer.json", "{\"imgbuildPlan\": 999, \"catalogue\": \"x\", \"stages\": [], \"images\": {}}");
    sandbox.imgbuild(["--catalogue", "newer.json", "list"]).failure(2, &["version 999"]);
    let none: [&str; 0] = [];
    sandbox.imgbuild(none).failure(2, &["Usage"]);
    outcome(sandbox.command([&chosen[0], &chosen[1], "build"]).env("SOURCE_DATE_EPOCH", "yesterday"))
        .failure(2, &["SOURCE_DATE_EPOCH", "yesterday"]);
    sandbox.write("imgbuild.toml", "cache-dri = \"x\"\n");
    run(&sandbox, &chosen, &["build"]).failure(2, &["imgbuild.toml", "line 1", "did you mean `cache-dir`?"]);
}

#[test]
fn work_that_fails_ends_with_1() {
    let (sandbox, chosen) = plain();
    fs::remove_file(sandbox.work().join("images.lock")).unwrap();
    run(&sandbox, &chosen, &["build"]).failure(1, &["images.lock", "hint: run `imgbuild lock`"]);
    run(&sandbox, &chosen, &["lock", "--check"]).failure(1, &["images.lock"]);
    sandbox.write("images.lock", "not a lock");
    run(&sandbox, &chosen, &["build"]).failure(1, &["images.lock"]);
    run(&sandbox, &chosen, &["lock"]).failure(1, &["images.lock"]);
    fs::remove_file(sandbox.work().join("images.lock")).unwrap();
    run(&sandbox, &chosen, &["lock"]).success();
    // A folder that is something else is not written over.
    sandbox.write("taken/file", "mine");
    run(&sandbox, &chosen, &["build", "--output", "oci:taken"]).failure(1, &["taken", "not an OCI layout"]);
    assert_eq!(fs::read_dir(sandbox.work().join("taken")).unwrap().count(), 1);
    fs::remove_dir_all(sandbox.work().join("src")).unwrap();
    run(&sandbox, &chosen, &["build", "hello"]).failure(1, &["src"]);
}

#[test]
fn a_lock_suits_no_image_that_may_have_fewer_layers_now() {
    let (sandbox, chosen) = plain();
    run(&sandbox, &chosen, &["lock", "--check"]).success();
    let mut plan: serde_json::Value = serde_json::from_slice(&fs::read(&chosen[1]).unwrap()).unwrap();
    plan["images"]["hello"]["layerBudget"] = 1.into();
    sandbox.write("plan.json", plan.to_string());
    let said = ["image `hello` has more layers than its budget", "imgbuild lock --regroup"];
    run(&sandbox, &chosen, &["lock", "--check"]).failure(1, &said);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (sandbox, chosen) = plain();
    for arguments in [&["list"][..], &["plan", "--format", "json"], &["--help"], &["completions", "bash"], &["man"]] {
        let mut command =
            sandbox.command([&chosen[..], &arguments.iter().map(|&it| it.to_owned()).collect::<Vec<_>>()].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() && said.is_empty(), "{arguments:?}: {status} {said}");
    }
}

#[test]
fn words_that_are_not_utf8_are_refused_or_are_paths() {
    let (sandbox, chosen) = plain();
    let odd = OsStr::from_bytes(b"odd-\xff");
    outcome(sandbox.command(&chosen).arg("build").arg(odd)).failure(2, &[]);
    outcome(sandbox.command(&chosen).arg(odd)).failure(2, &[]);
    outcome(sandbox.command(&chosen).args(["build", "--label"]).arg(odd)).failure(2, &[]);
    let cache = sandbox.path().join(odd);
    outcome(sandbox.command(&chosen).arg("build").arg("--cache-dir").arg(&cache)).success();
    assert!(cache.join("CACHEDIR.TAG").exists());
    // Variables that nobody asked about do not matter.
    outcome(sandbox.command(&chosen).arg("list").env("ODD", odd)).success();
}

#[test]
fn without_a_home_the_cache_has_to_be_named() {
    let (sandbox, chosen) = plain();
    let homeless = |arguments: &[&str]| {
        let mut command = sandbox.command(&chosen);
        outcome(command.args(arguments).env_remove("HOME").env_remove("IMGBUILD_CACHE_DIR"))
    };
    homeless(&["build"]).failure(2, &["cache", "--cache-dir", "IMGBUILD_CACHE_DIR"]);
    homeless(&["list"]).success();
    homeless(&["build", "--cache-dir", sandbox.cache().to_str().unwrap()]).success();
    let in_home = sandbox.home().join(".cache/imgbuild/CACHEDIR.TAG");
    assert!(!in_home.exists());
    outcome(sandbox.command(&chosen).arg("build").env_remove("IMGBUILD_CACHE_DIR")).success();
    assert!(in_home.exists());
}

#[test]
fn help_is_a_result_and_has_examples() {
    let sandbox = Sandbox::new();
    for command in ["build", "lock", "plan"] {
        let help = sandbox.imgbuild([command, "--help"]).success();
        assert!(help.contains("Examples:") && help.contains(&format!("imgbuild {command}")), "{help}");
    }
    let help = sandbox.imgbuild(["--help"]).success();
    assert!(help.contains("Exit status: 0 done, 1 the work failed, 2 the request made no sense"), "{help}");
    let version = sandbox.imgbuild(["--version"]).success();
    assert_eq!(version, format!("imgbuild {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_are_scripts_that_their_shells_accept() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.imgbuild(["completions", shell]).success();
        assert!(script.contains("imgbuild") && script.contains("platform"), "{shell}: {script}");
    }
    let script = sandbox.write("complete.bash", sandbox.imgbuild(["completions", "bash"]).success());
    let asked = "source \"$1\"; COMP_WORDS=(imgbuild bui); COMP_CWORD=1; _imgbuild imgbuild bui imgbuild; echo \"${COMPREPLY[@]}\"";
    let completed = outcome(Command::new("bash").args(["--norc", "-c", asked, "bash"]).arg(script));
    assert_eq!(completed.stdout.trim(), "build", "{completed:?}");
}

#[test]
fn manual_pages_are_there_for_every_command() {
    let sandbox = Sandbox::new();
    let page = sandbox.imgbuild(["man"]).success();
    assert!(page.contains(".TH imgbuild 1") && page.contains(".SH SYNOPSIS"), "{page}");
}

#[test]
fn what_is_for_machines_has_the_documented_shape() {
    let (sandbox, chosen) = plain();
    let json =
        |arguments: &[&str]| -> Value { serde_json::from_str(&run(&sandbox, &chosen, arguments).success()).unwrap() };
    let listed = json(&["list", "--format", "json"]);
    shape(&listed, "list", &["version", "catalogue", "images"]);
    shape(&listed["images"][0], "list", &["name", "description"]);
    assert_eq!(listed["images"][0]["description"], "Says hello");
    let file = sandbox.work().join("metadata.json");
    let build = ["build", "--platform", "linux/amd64,linux/arm64", "--format", "json", "--metadata-file"];
    let built = json(&[&build[..], &[file.to_str().unwrap()]].concat());
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(&file).unwrap()).unwrap(), built);
    let inspected = json(&["inspect", "hello", "--format", "json"]);
    let documented = fs::read_to_string(crate::support::run::repository().join("docs/json.md")).unwrap();
    for document in [&built, &inspected] {
        shape(document, "build", &["version", "images"]);
        for image in document["images"].as_array().unwrap() {
            shape(image, "build", &["name", "digest", "mediaType", "size", "cached", "platforms"]);
            for platform in image["platforms"].as_array().unwrap() {
                let fields = ["platform", "digest", "config", "size", "baseLayers", "layers", "packages", "commands"];
                shape(platform, "build", &fields);
                for field in fields {
                    assert!(documented.contains(&format!("images[].platforms[].{field}")), "{field}");
                }
                for layer in platform["layers"].as_array().unwrap() {
                    shape(layer, "build", &["digest", "diffId", "size", "createdBy"]);
                }
                let sum: u64 =
                    platform["layers"].as_array().unwrap().iter().map(|it| it["size"].as_u64().unwrap()).sum();
                assert_eq!(platform["size"], sum);
            }
        }
    }
    let plan = run(&sandbox, &chosen, &["plan", "--format", "json"]).success();
    assert_eq!(plan, fs::read_to_string(&chosen[1]).unwrap(), "a plan goes through unchanged");
    let dot = run(&sandbox, &chosen, &["plan", "--format", "dot"]).success();
    assert!(dot.starts_with("digraph") && dot.contains("image hello"), "{dot}");
}

/// A JSON object has these fields and no others.
#[track_caller]
fn shape(value: &Value, what: &str, fields: &[&str]) {
    let mut expected = fields.to_vec();
    expected.sort_unstable();
    let mut found: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, expected, "{what}");
}

#[test]
fn digests_do_not_depend_on_folder_mask_time_zone_language_threads_or_cache() {
    let (first, chosen) = plain();
    let both = ["build", "--platform", "linux/amd64,linux/arm64"];
    let expected = run(&first, &chosen, &both).success();
    for (jobs, mask, zone, language) in
        [("1", "077", "Asia/Tokyo", "tr_TR.UTF-8"), ("2", "000", "America/Lima", "C"), ("8", "027", "UTC", "de_DE")]
    {
        let (other, chosen) = plain();
        let mut command = Command::new("sh");
        other.place(&mut command);
        command.args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"]).arg(binary());
        command
            .args(&chosen)
            .args(["-j", jobs])
            .args(both)
            .env("TZ", zone)
            .env("LC_ALL", language)
            .env("LANG", language);
        assert_eq!(outcome(&mut command).success(), expected, "-j {jobs}");
    }
    assert_eq!(run(&first, &chosen, &both).success(), expected, "warm");
}

#[test]
fn source_date_epoch_sets_when_an_image_was_created_and_no_layer() {
    let (sandbox, chosen) = plain();
    let built = |date: Option<&str>| -> Value {
        let mut command = sandbox.command(&chosen);
        command.args(["build", "hello", "--format", "json"]);
        if let Some(date) = date {
            command.env("SOURCE_DATE_EPOCH", date);
        }
        let printed = outcome(&mut command).success();
        serde_json::from_str::<Value>(&printed).unwrap()["images"][0].clone()
    };
    let (plain, dated) = (built(None), built(Some("1234567890")));
    assert_ne!(plain["digest"], dated["digest"]);
    assert_eq!(plain["platforms"][0]["layers"], dated["platforms"][0]["layers"]);
    let layout = crate::support::layout::Layout::open(&sandbox.work().join("dist"));
    assert_eq!(layout.image("hello")[0].config["created"], "2009-02-13T23:31:30Z");
    assert_eq!(built(Some("1234567890"))["digest"], dated["digest"]);
}

#[test]
fn a_byte_edited_in_place_is_noticed_though_size_and_time_are_as_before() {
    let (sandbox, chosen) = plain();
    let file = sandbox.work().join("src/a.txt");
    let before = run(&sandbox, &chosen, &["build", "hello"]).success();
    let times = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "b\n").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(times).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), times);
    let after = run(&sandbox, &chosen, &["build", "hello"]).success();
    assert_ne!(after, before);
    fs::write(&file, "a\n").unwrap();
    assert_eq!(run(&sandbox, &chosen, &["build", "hello"]).success(), before);
}

#[test]
fn layers_change_with_what_is_in_them_and_with_nothing_else() {
    let (sandbox, chosen) = plain();
    let build = || run(&sandbox, &chosen, &["build"]).success();
    let before = build();
    let line = |printed: &str, image: &str| printed.lines().find(|line| line.starts_with(image)).unwrap().to_owned();
    // Left out by pattern, and another time: nothing.
    sandbox.write("src/deep/c.tmp", "changed\n");
    sandbox.write("src/a.txt", "a\n");
    sandbox.write("elsewhere.txt", "new\n");
    assert_eq!(build(), before);
    // Contents swapped between two files, an empty folder, a mode: something, in the image that has them.
    let changes: [(&str, &dyn Fn()); 3] = [
        ("swapped", &|| {
            sandbox.write("src/a.txt", "b\n");
            sandbox.write("src/deep/er/b.txt", "a\n");
        }),
        ("an empty folder", &|| fs::create_dir(sandbox.work().join("src/empty")).unwrap()),
        ("a mode", &|| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(sandbox.work().join("src/a.txt"), fs::Permissions::from_mode(0o755)).unwrap();
        }),
    ];
    let mut last = before.clone();
    for (what, change) in changes {
        change();
        let now = build();
        assert_ne!(line(&now, "hello"), line(&last, "hello"), "{what}");
        assert_eq!(line(&now, "world"), line(&last, "world"), "{what}");
        last = now;
    }
}

#[test]
fn the_layers_of_a_small_image_are_what_the_definition_says() {
    let (sandbox, chosen) = plain();
    run(&sandbox, &chosen, &["build"]).success();
    let layout = crate::support::layout::Layout::open(&sandbox.work().join("dist"));
    let image = layout.image("hello").remove(0);
    assert_eq!(image.faults(), Vec::<String>::new());
    let tree = crate::support::layout::applied(&image.layers);
    let listed: Vec<String> = tree
        .iter()
        .filter(|(path, _)| {
            !path.starts_with("etc/passwd")
                && !path.starts_with("etc/group")
                && !path.starts_with("etc/shadow")
                && !path.starts_with("etc/gshadow")
        })
        .map(|(path, member)| {
            let link = member.link.as_ref().map(|link| format!(" -> {link}")).unwrap_or_default();
            format!("{path} {:?} {:o} {}:{}{link}", member.kind, member.mode, member.owner.0, member.owner.1)
        })
        .collect();
    let expected = [
        "etc Directory 755 0:0",
        "etc/hello Regular 640 0:0",
        "srv Directory 755 0:0",
        "srv/a.txt Regular 644 0:0",
        "srv/deep Directory 755 0:0",
        "srv/deep/er Directory 755 0:0",
        "srv/deep/er/b.txt Regular 644 0:0",
        "srv/latest Symlink 777 0:0 -> a.txt",
    ];
    assert_eq!(listed, expected);
    assert_eq!(tree["etc/hello"].size, 6);
}

#[test]
fn an_output_is_a_file_or_a_layout_and_replaces_nothing_else() {
    let (sandbox, chosen) = plain();
    let target = sandbox.write("target", "mine");
    std::os::unix::fs::symlink(&target, sandbox.work().join("link")).unwrap();
    tool("mkfifo", [sandbox.work().join("pipe")]);
    for name in ["link", "pipe"] {
        run(&sandbox, &chosen, &["build", "-o", &format!("oci-archive:{name}")])
            .failure(1, &[name, "a link, a device"]);
        run(&sandbox, &chosen, &["build", "--metadata-file", name]).failure(1, &[name, "a link, a device"]);
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    assert!(fs::symlink_metadata(sandbox.work().join("link")).unwrap().is_symlink());
    let both = ["build", "--platform", "amd64,arm64", "-o", "docker-archive:both.tar"];
    run(&sandbox, &chosen, &both).failure(1, &["holds one platform", "`--platform`"]);
    let mut late = sandbox.command([&chosen[0], &chosen[1], "build"]);
    outcome(late.env("SOURCE_DATE_EPOCH", "253402300800")).failure(2, &["SOURCE_DATE_EPOCH", "year 10000"]);
}

#[test]
fn what_only_an_image_of_somebody_needs_stays_whatever_names_that_image() {
    let (sandbox, chosen) = plain();
    run(&sandbox, &chosen, &["build", "hello"]).success();
    let layout = sandbox.work().join("dist");
    let index = layout.join("index.json");
    let said = |index: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(index).unwrap()).unwrap();
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    // A manifest that cannot be followed, and one of an index that is not here, over a layer of their own.
    let layer = b"somebody's layer";
    let name = layers::Digest::of(layer).to_string();
    let kept = blob(&name);
    fs::create_dir_all(layout.join("blobs/sha512")).unwrap();
    let manifest = layers::oci::MANIFEST;
    let cases = [
        (format!("sha512:{}", "5".repeat(128)), true),
        (layers::Digest::of(b"no JSON").to_string(), true),
        (layers::Digest::of(b"of an index, and not here").to_string(), false),
    ];
    for (digest, stays) in cases {
        fs::write(&kept, layer).unwrap();
        if stays {
            fs::write(blob(&digest), "no JSON").unwrap();
        }
        let mut changed = said(&index);
        let theirs = serde_json::json!({"mediaType": manifest, "digest": digest, "size": 7});
        changed["manifests"].as_array_mut().unwrap().push(theirs);
        fs::write(&index, changed.to_string()).unwrap();
        run(&sandbox, &chosen, &["build", "world"]).success();
        assert_eq!(kept.exists(), stays, "{digest}");
        let mut changed = said(&index);
        changed["manifests"].as_array_mut().unwrap().retain(|it| it["digest"] != digest.as_str());
        fs::write(&index, changed.to_string()).unwrap();
    }
    run(&sandbox, &chosen, &["build", "world"]).success();
    assert!(!kept.exists(), "nothing leads to it any more");
}

#[test]
fn other_images_of_a_layout_stay_and_a_layout_that_cannot_be_read_is_left_alone() {
    let (sandbox, chosen) = plain();
    run(&sandbox, &chosen, &["build", "hello"]).success();
    let path = sandbox.work().join("dist/index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // Somebody else's: an image without a name, and a remark.
    index["manifests"][0]["annotations"] = serde_json::json!({"theirs": "1"});
    index["annotations"] = serde_json::json!({"remark": "kept"});
    fs::write(&path, index.to_string()).unwrap();
    run(&sandbox, &chosen, &["build", "world"]).success();
    let after: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(after["annotations"]["remark"], "kept");
    assert_eq!(after["manifests"].as_array().unwrap().len(), 2, "{after}");
    let theirs = after["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
    assert!(sandbox.work().join("dist").join(theirs).is_file());
    for (name, content) in [("index.json", "garbage"), ("oci-layout", "{\"imageLayoutVersion\":\"9.0.0\"}")] {
        let kept = fs::read(sandbox.work().join("dist").join(name)).unwrap();
        fs::write(sandbox.work().join("dist").join(name), content).unwrap();
        run(&sandbox, &chosen, &["build", "world"]).failure(1, &["dist"]);
        assert_eq!(fs::read_to_string(sandbox.work().join("dist").join(name)).unwrap(), content);
        fs::write(sandbox.work().join("dist").join(name), kept).unwrap();
    }
}
