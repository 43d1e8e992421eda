//! Docker's config.json: a registry gets an entry that names it, nobody else's, and errors hold no secret.
#![no_main]

use imgbuild::registry::auth::{AuthFile, Credential};
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

/// Passwords of the seeds hold this word; whoever shows it shows a secret.
const CANARY: &str = "canary";

fuzz_target!(|data: &[u8]| {
    let file = match AuthFile::parse(data) {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.contains(CANARY), "{error}");
            return;
        }
    };
    // What it passes over may be bytes that are no text, which stop a reader of everything.
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let keys: Vec<&String> = json["auths"].as_object().into_iter().flat_map(|auths| auths.keys()).collect();
    for (registry, names) in [
        ("ghcr.io", &["ghcr.io"][..]),
        ("localhost:5000", &["localhost:5000"]),
        ("docker.io", &["docker.io", "index.docker.io", "registry-1.docker.io"]),
    ] {
        let found = match file.find(registry, "owner/name") {
            Ok(found) => found,
            Err(error) => {
                assert!(!format!("{error:?}").contains(CANARY));
                continue;
            }
        };
        if let Some(credential) = found {
            assert!(!matches!(credential, Credential::Anonymous));
            assert!(!credential.shown().contains(CANARY) || credential.shown().starts_with("user `"));
            let host = |key: &str| {
                let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
                bare.split('/').next().unwrap_or_default().to_owned()
            };
            assert!(
                keys.iter().any(|key| names.contains(&host(key).as_str())),
                "{registry} got what is kept for one of {keys:?}"
            );
        }
        if let Some((helper, name)) = file.helper(registry) {
            assert!(!helper.is_empty() && !name.is_empty());
        }
    }
    // Look-alikes of what is there get nothing.
    for key in keys {
        let bare = key.strip_prefix("https://").unwrap_or(key).split('/').next().unwrap_or_default();
        let other = format!("{bare}.example");
        if !text(data).contains(&other) {
            assert!(matches!(file.find(&other, "owner/name"), Ok(None)), "{other}");
        }
    }
});
