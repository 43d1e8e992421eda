//! Debian versions: a total order, and dpkg's own comparison says the same.
#![no_main]

use std::cmp::Ordering;

use imgbuild::debian::version::{Version, compare};
use imgbuild_fuzz::{parts, text};
use libfuzzer_sys::fuzz_target;

/// dpkg's `order` and `verrevcmp` (lib/dpkg/version.c), word for word: bytes behind the end are NUL.
fn verrevcmp(a: &[u8], b: &[u8]) -> Ordering {
    fn order(c: u8) -> i32 {
        match c {
            b'0'..=b'9' => 0,
            b'a'..=b'z' | b'A'..=b'Z' => c.into(),
            b'~' => -1,
            0 => 0,
            _ => i32::from(c) + 256,
        }
    }
    let at = |text: &[u8], index: usize| text.get(index).copied().unwrap_or(0);
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let mut first_difference = 0;
        while (i < a.len() && !at(a, i).is_ascii_digit()) || (j < b.len() && !at(b, j).is_ascii_digit()) {
            let (x, y) = (order(at(a, i)), order(at(b, j)));
            if x != y {
                return x.cmp(&y);
            }
            i += 1;
            j += 1;
        }
        while at(a, i) == b'0' {
            i += 1;
        }
        while at(b, j) == b'0' {
            j += 1;
        }
        while at(a, i).is_ascii_digit() && at(b, j).is_ascii_digit() {
            if first_difference == 0 {
                first_difference = i32::from(at(a, i)) - i32::from(at(b, j));
            }
            i += 1;
            j += 1;
        }
        if at(a, i).is_ascii_digit() {
            return Ordering::Greater;
        }
        if at(b, j).is_ascii_digit() {
            return Ordering::Less;
        }
        if first_difference != 0 {
            return first_difference.cmp(&0);
        }
    }
    Ordering::Equal
}

fn dpkg(a: &str, b: &str) -> Ordering {
    let split = |text: &str| {
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) => (epoch.parse::<u64>().expect("it was checked"), rest.to_owned()),
            None => (0, text.to_owned()),
        };
        let (upstream, revision) = match rest.rsplit_once('-') {
            Some((upstream, revision)) => (upstream.to_owned(), revision.to_owned()),
            None => (rest, String::new()),
        };
        (epoch, upstream, revision)
    };
    let (a, b) = (split(a), split(b));
    a.0.cmp(&b.0)
        .then_with(|| verrevcmp(a.1.as_bytes(), b.1.as_bytes()))
        .then_with(|| verrevcmp(a.2.as_bytes(), b.2.as_bytes()))
}

fuzz_target!(|data: &[u8]| {
    let all: [&[u8]; 3] = parts(data, b'\n');
    let all = all.map(text);
    for a in all {
        assert_eq!(compare(a, a), Ordering::Equal);
        for b in all {
            let order = compare(a, b);
            assert_eq!(compare(b, a), order.reverse(), "{a:?} {b:?}");
            for c in all {
                if order != Ordering::Greater && compare(b, c) != Ordering::Greater {
                    assert_ne!(compare(a, c), Ordering::Greater, "{a:?} {b:?} {c:?}");
                    assert_eq!(
                        compare(a, c) == Ordering::Equal,
                        order == Ordering::Equal && compare(b, c) == Ordering::Equal,
                        "{a:?} {b:?} {c:?}"
                    );
                }
            }
            if let (Ok(x), Ok(y)) = (a.parse::<Version>(), b.parse::<Version>()) {
                assert_eq!(order, dpkg(a, b), "{a:?} {b:?}");
                assert_eq!(x.cmp(&y), order);
                assert_eq!(x == y, order == Ordering::Equal);
                assert_eq!(x.as_str(), a);
            }
        }
    }
});
