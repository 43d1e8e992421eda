//! Maintainer scripts: the answer is the same twice, and a command that nobody knows is never passed over.
#![no_main]

use std::collections::BTreeMap;

use imgbuild::debian::scripts::classify;
use imgbuild_fuzz::parts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [postinst, preinst, triggers] = parts(data, 0);
    let mut files = BTreeMap::new();
    for (name, content) in [("postinst", postinst), ("preinst", preinst), ("triggers", triggers)] {
        if !content.is_empty() {
            files.insert(name.to_owned(), content.to_vec());
        }
    }
    let found = classify(&files);
    assert_eq!(found, classify(&files));
    assert!(
        found.unknown.as_deref().is_none_or(|what| what.starts_with("postinst: ") || what.starts_with("preinst: "))
    );
    // A script that begins with an unknown command is refused, whatever comes behind it.
    let body = postinst.strip_prefix(b"#!/bin/sh\n").unwrap_or(postinst);
    let first = [b"#!/bin/sh\nzz-nobody-knows this\n", body].concat();
    let found = classify(&BTreeMap::from([("postinst".to_owned(), first)]));
    assert!(found.unknown.is_some(), "an unknown command was passed over");
    // So is one that stands behind commands that do nothing.
    let first = [b"#!/bin/sh\nset -e\ntrue\nif [ \"$1\" = configure ]; then\nzz-nobody-knows\nfi\n", body].concat();
    let found = classify(&BTreeMap::from([("postinst".to_owned(), first)]));
    assert!(found.unknown.is_some(), "an unknown command behind `if` was passed over");
});
