//! WWW-Authenticate: bounded, and a challenge that is written as the RFC says is read as it was written.
#![no_main]

use imgbuild::registry::auth::challenge::{Challenge, parse};
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

fn quoted(name: &str, value: &Option<String>) -> String {
    match value {
        Some(value) => format!(", {name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")),
        None => String::new(),
    }
}

fn write(challenges: &[Challenge]) -> String {
    let lines: Vec<String> = challenges
        .iter()
        .map(|challenge| match challenge {
            Challenge::Basic => "Basic realm=\"x\"".to_owned(),
            Challenge::Bearer { realm, service, scope, error } => {
                let realm = quoted("realm", &Some(realm.clone()));
                let rest = [quoted("service", service), quoted("scope", scope), quoted("error", error)].concat();
                format!("Bearer {}{rest}", &realm[2..])
            }
        })
        .collect();
    lines.join(", ")
}

fuzz_target!(|data: &[u8]| {
    let header = text(data);
    let found = parse(header);
    assert!(found.len() <= header.len() / 5 + 1);
    for challenge in &found {
        if let Challenge::Bearer { realm, service, scope, error } = challenge {
            assert!(!realm.is_empty());
            assert!([service, scope, error].into_iter().flatten().all(|value| !value.is_empty()));
        }
    }
    let written = write(&found);
    // Headers over 16 KiB are not read, and escapes make longer.
    if written.len() < 16 << 10 {
        assert_eq!(parse(&written), found, "{written}");
    }
    // What comes before does not change what comes after it.
    if header.len() < 8 << 10 {
        let mut both = vec![Challenge::Basic];
        both.extend(parse(header));
        let first_is_scheme = header
            .trim_start_matches([' ', '\t', ','])
            .split([' ', ',', '\t'])
            .next()
            .is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_alphabetic()) && !word.is_empty())
            && !header.contains('=');
        if first_is_scheme {
            assert_eq!(parse(&format!("Basic realm=\"y\", {header}")), both);
        }
    }
});
