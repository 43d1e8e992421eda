//! Pages of a Python index: the wheel that is fetched is the one that was asked for, over no weaker transport.
#![no_main]

use imgbuild::python::index::{Index, Indexes};
use imgbuild::python::select::Wheel;
use layers::Digest;
use libfuzzer_sys::fuzz_target;

struct Page<'a>(&'a [u8]);

impl Index for Page<'_> {
    fn get(&self, _url: &str, _accept: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(Some(self.0.to_vec()))
    }
}

fuzz_target!(|data: &[u8]| {
    let wheel = Wheel {
        name: "x".into(),
        version: "1".into(),
        file: "x-1-py3-none-any.whl".into(),
        sha256: Digest::of(b"x"),
        size: None,
        url: None,
    };
    let page = Page(data);
    let indexes = Indexes::new(&["https://index.example/simple".to_owned()], &page).expect("a good root");
    match indexes.find(&wheel) {
        Ok(found) => {
            // An address is what came over TLS and stays there; the fragment went.
            assert!(found.url.starts_with("https://"), "{}", found.url);
            assert!(!found.url.contains('#'), "{}", found.url);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
