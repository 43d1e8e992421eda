//! Locks and builds of packages from a mirror of the test's own, signed with a key of its own.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::cache::bucket;
use crate::support::debs::Deb;
use crate::support::layout::{Layout, applied};
use crate::support::listing;
use crate::support::run::{Outcome, outcome};
use crate::support::tiny::{Packaged, now, packages};

fn run(packaged: &Packaged, arguments: &[&str]) -> Outcome {
    outcome(&mut packaged.command(arguments))
}

/// Digests of layers by image.
fn layers(packaged: &Packaged) -> BTreeMap<String, Value> {
    let printed = run(packaged, &["build", "--platform", "linux/amd64", "--format", "json"]).success();
    let built: Value = serde_json::from_str(&printed).unwrap();
    let images = built["images"].as_array().unwrap();
    let layers = |image: &Value| image["platforms"][0]["layers"].clone();
    images.iter().map(|image| (image["name"].as_str().unwrap().to_owned(), layers(image))).collect()
}

#[test]
fn real_a_newer_release_with_the_same_packages_changes_no_layer() {
    let today = now();
    let packaged = Packaged::new(today - 7200);
    run(&packaged, &["lock"]).success();
    let (before, lock) = (layers(&packaged), fs::read_to_string(packaged.lock_file()).unwrap());
    packaged.repository.publish(&["amd64", "arm64"], today - 60);
    let changed = run(&packaged, &["lock", "--update"]).success();
    assert_eq!(changed, "", "no package has changed");
    let relocked = fs::read_to_string(packaged.lock_file()).unwrap();
    assert_ne!(relocked, lock, "the release's date is in the lock");
    assert_eq!(layers(&packaged), before);
    // The date reaches `created` alone.
    let image = Layout::open(&packaged.sandbox.work().join("dist")).image("app").remove(0);
    assert_eq!(image.faults(), Vec::<String>::new());
}

/// Of the same files: only what sets it up is another.
#[test]
fn real_a_package_with_other_scripts_is_set_up_anew() {
    let today = now();
    let packaged = Packaged::new(today - 7200);
    run(&packaged, &["lock"]).success();
    let (plain, first) = (layers(&packaged), packages("1.0-1").swap_remove(0));
    let choose = "#!/bin/sh\nset -e\nupdate-alternatives --install /usr/bin/chosen chosen /usr/bin/app 10\n";
    first.clone().script("postinst", choose).build(&packaged.repository.pool());
    packaged.repository.publish(&["amd64", "arm64"], today - 3600);
    run(&packaged, &["lock", "--update"]).success();
    let chosen = layers(&packaged);
    assert_ne!(chosen["app"], plain["app"]);
    assert_eq!(chosen["data"], plain["data"]);
    let image = Layout::open(&packaged.sandbox.work().join("dist")).image("app").remove(0);
    assert!(listing::of_layers(&image.layers).contains_key("usr/bin/chosen"));
    first.script("postinst", "#!/bin/sh\nset -e\nfrobnicate --all\n").build(&packaged.repository.pool());
    packaged.repository.publish(&["amd64", "arm64"], today - 60);
    run(&packaged, &["lock", "--update"]).success();
    run(&packaged, &["build", "--platform", "linux/amd64"]).failure(1, &["frobnicate"]);
}

#[test]
fn real_packages_are_unpacked_as_dpkg_deb_does() {
    let packaged = Packaged::new(now() - 60);
    run(&packaged, &["lock"]).success();
    layers(&packaged);
    let image = Layout::open(&packaged.sandbox.work().join("dist")).image("app").remove(0);
    let ours = listing::of_layers(&image.layers);
    let unpacked = packaged.sandbox.path().join("unpacked");
    for deb in fs::read_dir(packaged.repository.pool()).unwrap() {
        let deb = deb.unwrap().path();
        crate::support::run::tool("dpkg-deb", ["--extract".as_ref(), deb.as_os_str(), unpacked.as_os_str()]);
    }
    let mut theirs = listing::of_folder(&unpacked);
    // What `slim` leaves out.
    theirs.remove("usr/share/doc/app/README").unwrap();
    for (path, line) in &theirs {
        let ours = ours.get(path).unwrap_or_else(|| panic!("`{path}` is not in the image"));
        assert_eq!(ours, line, "{path}");
    }
}

#[test]
fn real_a_locked_file_that_is_gone_is_locked_anew_and_told() {
    let packaged = Packaged::new(now() - 7200);
    run(&packaged, &["lock"]).success();
    // The mirror moves on: one package has a newer version, and the old file is gone.
    fs::remove_file(packaged.repository.pool().join("libapp_1.0-1_all.deb")).unwrap();
    Deb::new("libapp", "1.1-1").file("/usr/lib/libapp.txt", 0o644, "libapp 1.1\n").build(&packaged.repository.pool());
    // Another one is newer, too, but its old file is still there: it stays as it is locked.
    Deb::new("data", "1:3.0-1").file("/usr/share/data/plain", 0o644, "newer\n").build(&packaged.repository.pool());
    packaged.repository.publish(&["amd64", "arm64"], now() - 60);
    let before = fs::read_to_string(packaged.lock_file()).unwrap();
    let build = ["build", "--platform", "linux/amd64"];
    // Where the lock may not change, the command that mends it is named.
    let said = ["libapp", "imgbuild lock --update libapp"];
    run(&packaged, &[&build[..], &["--locked"]].concat()).failure(1, &said);
    outcome(packaged.command(&build).env("CI", "true")).failure(1, &said);
    run(&packaged, &[&build[..], &["--offline"]].concat()).failure(1, &["libapp"]);
    assert_eq!(fs::read_to_string(packaged.lock_file()).unwrap(), before);
    let built = run(&packaged, &build);
    assert!(built.stderr.contains("1.0-1 -> 1.1-1"), "{}", built.stderr);
    assert!(!built.stderr.contains("3.0-1"), "{}", built.stderr);
    built.success();
    let after = fs::read_to_string(packaged.lock_file()).unwrap();
    assert!(after.contains("libapp_1.1-1_all.deb") && !after.contains("libapp_1.0-1_all.deb"), "{after}");
    assert!(after.contains("data_2.0~rc1-1_all.deb"), "{after}");
    // From now on nothing is missing.
    run(&packaged, &[&build[..], &["--locked"]].concat()).success();
    run(&packaged, &["lock", "--check"]).success();
}

#[test]
fn real_offline_nothing_is_asked_for() {
    let packaged = Packaged::new(now() - 60);
    run(&packaged, &["lock"]).success();
    let build = ["build", "--platform", "linux/amd64", "--offline"];
    let asked = packaged.files.asked();
    assert!(asked.iter().any(|path| path.ends_with("InRelease")), "{asked:?}");
    run(&packaged, &build).failure(1, &["not in the cache"]);
    assert_eq!(packaged.files.asked(), Vec::<String>::new());
    run(&packaged, &["build", "--platform", "linux/amd64"]).success();
    assert!(!packaged.files.asked().is_empty());
    run(&packaged, &build).success();
    // A warm build asks nobody either.
    run(&packaged, &["build", "--platform", "linux/amd64"]).success();
    assert_eq!(packaged.files.asked(), Vec::<String>::new());
}

#[test]
fn real_a_lock_does_not_go_back_in_time() {
    let today = now();
    let packaged = Packaged::new(today - 60);
    run(&packaged, &["lock"]).success();
    packaged.repository.publish(&["amd64", "arm64"], today - 7200);
    run(&packaged, &["lock", "--update"]).failure(1, &["trixie"]);
    // Expired: the release says until when it may be used.
    packaged.repository.publish(&["amd64", "arm64"], today - 8 * 86_400);
    fs::remove_file(packaged.lock_file()).unwrap();
    run(&packaged, &["lock"]).failure(1, &["trixie"]);
}

#[test]
fn real_damage_in_the_cache_is_noticed_and_mended() {
    let packaged = Packaged::new(now() - 60);
    run(&packaged, &["lock"]).success();
    let build = ["build", "--platform", "linux/amd64", "--output", "oci:dist"];
    let expected = run(&packaged, &build).success();
    let all = || bucket(packaged.sandbox.cache(), "blobs-v1");
    assert!(all().len() > 6, "{:?}", all());
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 4] = [
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("emptied", |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, "").unwrap();
        }),
        ("cut short", |path| {
            let bytes = fs::read(path).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("with a bit flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            // What no build needs again may still be empty from before.
            let middle = bytes.len() / 2;
            bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
            fs::remove_file(path).unwrap();
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (what, damage) in damages {
        for path in all() {
            damage(&path);
        }
        let dist = packaged.sandbox.work().join("dist");
        fs::remove_dir_all(&dist).unwrap();
        assert_eq!(run(&packaged, &build).success(), expected, "{what}");
        for name in ["app", "data"] {
            // Reading verifies every blob.
            assert_eq!(Layout::open(&dist).image(name)[0].faults(), Vec::<String>::new(), "{what}");
        }
    }
}

#[test]
fn real_eight_builds_at_once_share_a_cache() {
    let packaged = Packaged::new(now() - 60);
    run(&packaged, &["lock"]).success();
    let children: Vec<Child> = (0..8)
        .map(|at| {
            let output = format!("oci:dist-{at}");
            let mut command =
                packaged.command(&["build", "--output", &output, "--platform", "linux/amd64,linux/arm64"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outcomes: Vec<Outcome> =
        children.into_iter().map(|child| Outcome::of(child.wait_with_output().unwrap())).collect();
    let first = outcomes[0].clone().success();
    for outcome in outcomes {
        assert_eq!(outcome.success(), first);
    }
    // Each archive was downloaded once.
    let asked = packaged.files.asked();
    for deb in ["/app_1.0-1_all.deb", "/libapp_1.0-1_all.deb"] {
        let times = asked.iter().filter(|path| path.starts_with("GET") && path.ends_with(deb)).count();
        assert_eq!(times, 1, "{deb}: {asked:?}");
    }
    // And into one layout at once.
    let children: Vec<Child> = (0..4)
        .map(|_| {
            packaged
                .command(&["build", "--output", "oci:one"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        Outcome::of(child.wait_with_output().unwrap()).success();
    }
    assert_eq!(Layout::open(&packaged.sandbox.work().join("one")).image("app")[0].faults(), Vec::<String>::new());
}

#[test]
fn real_a_build_that_is_killed_leaves_nothing_that_the_next_one_trusts() {
    let packaged = Packaged::new(now() - 60);
    run(&packaged, &["lock"]).success();
    let build = ["build", "--platform", "linux/amd64,linux/arm64"];
    let expected = {
        let fresh = packaged.sandbox.path().join("fresh");
        run(&packaged, &[&build[..], &["--cache-dir", fresh.to_str().unwrap(), "--output", "oci:expected"]].concat())
            .success()
    };
    // Later and later, until a build gets to its end; the cache is emptied in between, so each one has all to do.
    let mut killed = 0;
    for round in 0.. {
        let cache = packaged.sandbox.path().join(format!("cache-{}", round / 4));
        let cache = ["--cache-dir", cache.to_str().unwrap(), "--output", "oci:killed"];
        let mut child = packaged
            .command(&[&build[..], &cache].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(5 * (round + 1)));
        let over = child.try_wait().unwrap().is_some();
        let _ = child.kill();
        child.wait().unwrap();
        killed += u32::from(!over);
        if over || round % 4 == 3 {
            assert_eq!(run(&packaged, &[&build[..], &cache].concat()).success(), expected, "round {round}");
            let layout = Layout::open(&packaged.sandbox.work().join("killed"));
            assert_eq!(layout.image("app")[0].faults(), Vec::<String>::new(), "round {round}");
        }
        if over && killed > 0 && round % 4 == 3 || round == 400 {
            break;
        }
    }
    assert!(killed > 0, "no build was ever killed");
}

/// Changes only in a commit that raises the version of the layer format.
#[test]
fn real_the_golden_digest_of_a_whole_image() {
    let packaged = Packaged::new(now() - 60);
    run(&packaged, &["lock"]).success();
    let mut command = packaged.command(&["build", "app", "--platform", "linux/amd64"]);
    let printed = outcome(command.env("SOURCE_DATE_EPOCH", "1700000000")).success();
    let image = Layout::open(&packaged.sandbox.work().join("dist")).image("app").remove(0);
    let listed: Vec<String> = applied(&image.layers)
        .into_iter()
        .map(|(path, member)| format!("{path} {:o} {}", member.mode, member.mtime))
        .collect();
    let golden = include_str!("../fixtures/golden-image.txt");
    let found = format!("layer format {}\n{printed}{}\n", layers::encode::LAYER_FORMAT, listed.join("\n"));
    assert_eq!(found, golden, "bytes of layers have changed: that needs a new LAYER_FORMAT\n{found}");
}
