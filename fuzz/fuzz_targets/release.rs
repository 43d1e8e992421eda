//! Release files, as they stand inside a verified signature.
#![no_main]

use imgbuild::debian::release::Release;
use imgbuild_fuzz::text;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = text(data);
    let Ok(release) = Release::parse(text) else { return };
    assert!(!release.files.is_empty());
    for (name, (digest, _)) in &release.files {
        assert!(!name.is_empty() && !name.contains(char::is_whitespace));
        assert!(text.to_ascii_lowercase().contains(&digest.hex()));
    }
    let now = 1_780_272_000;
    let good = release.check("trixie", now, None);
    if good.is_ok() {
        assert!(release.suite == "trixie" || release.codename == "trixie");
        assert!(release.date <= now + 86_400);
        assert!(release.valid_until.is_none_or(|until| until >= now));
        // No way back behind what was seen, and no way out of a date that has passed.
        assert!(release.check("trixie", now, Some(release.date)).is_ok());
        assert!(release.check("trixie", now, Some(release.date + 1)).is_err());
        assert!(release.check("sid-of-nobody", now, None).is_err() || text.contains("sid-of-nobody"));
        if let Some(until) = release.valid_until {
            assert!(release.check("trixie", until.saturating_add(1), None).is_err() || until == i64::MAX);
        }
    }
    for seen in [Some(0), Some(now), Some(i64::MAX), Some(i64::MIN)] {
        // Errors show dates of any year.
        let _ = release.check("trixie", now, seen).map_err(|error| error.to_string());
    }
});
