//! Paths inside an image: normal, and closed under joining and taking parents.
#![no_main]

use imgbuild_fuzz::{check_path, parts, text};
use layers::{ImagePath, check_path as check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [first, second] = parts(data, b'\n');
    let (first, second) = (text(first), text(second));
    let path = ImagePath::new(first);
    assert_eq!(path.is_ok(), check(first).is_ok());
    let Ok(path) = path else { return };
    check_path(&path);
    assert_eq!(path.as_str(), first);
    let mut ancestors: Vec<ImagePath> = path.ancestors().collect();
    for ancestor in &ancestors {
        check_path(ancestor);
        assert!(path.starts_with(ancestor) && path != *ancestor && !ancestor.starts_with(&path));
    }
    let mut up = path.clone();
    while let Some(parent) = up.parent() {
        check_path(&parent);
        assert_eq!(parent.join(up.file_name()).expect("parent and name are the path"), up);
        if !parent.is_root() {
            assert_eq!(ancestors.pop(), Some(parent.clone()));
        }
        up = parent;
    }
    assert!(up.is_root() && ancestors.is_empty());
    if let Ok(joined) = path.join(second) {
        check_path(&joined);
        assert!(joined.starts_with(&path), "{joined} is not below {path}");
    }
    let json = serde_json::to_string(&path).expect("a text");
    assert_eq!(serde_json::from_str::<ImagePath>(&json).expect("reads"), path);
});
