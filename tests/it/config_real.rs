//! What this machine's own configuration leads to.

use std::time::{SystemTime, UNIX_EPOCH};

use imgbuild::config::{Config, Environment};
use imgbuild::debian::archive::{Wanted, read_suite};
use imgbuild::fetch::Http;

fn config() -> Config {
    // No imgbuild.toml: what is tested is the machine.
    let directory = tempfile::tempdir().unwrap();
    Config::load(&Environment::new(std::env::vars_os(), directory.path()), None).unwrap()
}

#[test]
fn real_vendored_keys_verify_the_three_suites() {
    let config = config();
    let http = Http::new(config.http().unwrap());
    let keyring = imgbuild::debian::keyring(&config).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    for suite in ["trixie", "trixie-updates", "trixie-security"] {
        let wanted = Wanted {
            suite,
            components: &[],
            architectures: &[],
            bases: &config.debian_bases(suite).unwrap(),
            keyring: &keyring,
            origin: Some("Debian"),
            foreign: config.foreign(suite).unwrap(),
            store: None,
            seen: None,
            now,
        };
        let read = read_suite(&http, &wanted).unwrap();
        assert_eq!(read.release.codename, suite);
        assert!(read.release.files.contains_key("main/binary-arm64/Packages.xz"), "{suite}");
    }
}

#[test]
fn real_python_index_of_this_machine_has_a_well_known_project() {
    let config = config();
    let http = Http::new(config.http().unwrap());
    let indexes = config.indexes().unwrap();
    let pages: Vec<bool> = indexes
        .iter()
        .map(|index| {
            let page = imgbuild::debian::archive::join(index, "pip/").unwrap();
            let accept = Some(imgbuild::python::index::ACCEPT);
            http.get(&page, accept, 64 << 20)
                .unwrap()
                .is_some_and(|it| String::from_utf8_lossy(&it.bytes).contains(".whl"))
        })
        .collect();
    assert!(pages.contains(&true), "none of {} indexes has pip", pages.len());
}
