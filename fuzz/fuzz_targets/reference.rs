//! References: one way to write each, hosts in lower case, and errors that hide what may be a password.
#![no_main]

use imgbuild::registry::{Reference, Repository, TagRequest, is_host, is_tag};
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

const CANARY: &str = "canary7d1f";

fuzz_target!(|data: &[u8]| {
    let text = text(data);
    match text.parse::<Reference>() {
        Ok(found) => {
            let Repository { registry, path } = &found.repository;
            assert!(is_host(registry) && *registry == registry.to_ascii_lowercase(), "{registry}");
            assert!(!path.is_empty() && path.len() <= 255 && !path.contains(['@', ':', ' ', '\\']), "{path}");
            assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
            assert!(found.tag.as_deref().is_none_or(is_tag));
            let written = found.to_string();
            assert_eq!(written.parse::<Reference>().expect("it reads what it writes"), found, "{written}");
            let bare = found.repository.to_string();
            assert_eq!(Repository::parse(&bare).expect("a repository"), found.repository);
            let oci = found.to_oci();
            assert_eq!((oci.registry(), oci.repository()), (registry.as_str(), path.as_str()));
            assert_eq!(oci.digest().map(str::to_owned), found.digest.as_ref().map(ToString::to_string));
        }
        Err(error) => assert!(!error.to_string().chars().any(|c| c.is_control() && c != '\n'), "{error:?}"),
    }
    // Before a digest it would be a tag.
    // Control characters are left out of errors, which must not make the word.
    let shown: String = text.chars().filter(|c| !c.is_control()).collect();
    if !shown.contains(CANARY) && !text.starts_with("sha256:") && !text.starts_with("sha512:") {
        for whole in [format!("user:{CANARY}@{text}"), format!("https://user:{CANARY}@{text}")] {
            if let Err(error) = whole.parse::<Reference>() {
                assert!(!error.to_string().contains(CANARY), "{whole:?} is shown with its password: {error}");
            }
            if let Err(error) = whole.parse::<TagRequest>() {
                assert!(!error.to_string().contains(CANARY), "{whole:?} is shown with its password: {error}");
            }
        }
    }
    if let Ok(request) = text.parse::<TagRequest>() {
        for image in ["core", "a-very/long_name"] {
            if let Ok(found) = request.resolve(image, Some("ghcr.io/owner")) {
                assert_eq!(found.to_string().parse::<Reference>().expect("reads"), found);
                assert!(found.digest.is_none(), "a digest is not asked for");
            }
        }
    }
});
