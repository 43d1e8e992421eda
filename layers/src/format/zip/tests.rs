//! Hostile archives, built byte by byte, and well-formed ones compared with Python's zipfile.

use std::io::Cursor;
use std::process::Command;

use proptest::prelude::*;

use super::samples::{Item, archive, archive64, end};
use super::*;
use crate::format::error::lossy;

/// The content of a deflated entry, inflated as a whole.
fn whole(archive: &mut Archive<Cursor<&[u8]>>, index: usize) -> Option<Result<Vec<u8>, FormatError>> {
    let entry = archive.entries()[index].clone();
    let (mut packed, mut content) = (vec![7; 3], vec![0; entry.size.min(1 << 20) as usize]);
    (entry.method == Method::Deflated && entry.size <= 1 << 20).then(|| {
        let crc32 = archive.inflate(index, &mut packed, &mut content)?;
        let mut raw = Vec::new();
        archive.raw(index)?.read_to_end(&mut raw)?;
        assert!(crc32.is_none_or(|crc32| crc32 == crc32fast::hash(&raw)));
        Ok(content)
    })
}

#[test]
fn a_tail_is_passed_over_where_that_is_asked_for() {
    let mut tailed = Item::deflated("a", b"content");
    tailed.packed.extend(b"behind the end");
    let mut wrong = tailed.clone();
    wrong.content = b"other c".to_vec();
    for (item, is_right) in [(Item::deflated("a", b"content"), true), (tailed, true), (wrong, false)] {
        let bytes = archive(&[item.clone(), Item::new("b", b"stored")]);
        let open = |tails| Archive::open(Cursor::new(&bytes[..]), &Limits::default()).expect("good").with(tails);
        let has_tail = item.packed.ends_with(b"end");
        let strict = open(Tails::Refused).read(0);
        assert_eq!(strict.is_ok(), !has_tail);
        assert_eq!(matches!(strict, Err(FormatError::Tail { .. })), has_tail);
        let mut lenient = open(Tails::PassedOver).directory().open(Cursor::new(&bytes[..]));
        assert_eq!(lenient.read(0).ok().as_deref(), is_right.then_some(&b"content"[..]));
        assert_eq!(lenient.ends_exactly(0).ok(), is_right.then_some(!has_tail));
        assert!(lenient.ends_exactly(1).expect("good"));
        if let Some(whole) = whole(&mut lenient, 0) {
            assert_eq!(whole.ok().as_deref(), is_right.then_some(&b"content"[..]));
        }
    }
}

/// Opens an archive and reads all of it: `name mode content`.
fn list_with(bytes: &[u8], limits: &Limits) -> Result<Vec<String>, FormatError> {
    let mut archive = Archive::open(Cursor::new(bytes), limits)?;
    let mut lines = Vec::new();
    for index in 0..archive.entries().len() {
        let whole = whole(&mut archive, index);
        let content = archive.read(index);
        if let Some(whole) = whole {
            // Both ways to read say the same, of what is wrong as well.
            let text = |read: &Result<Vec<u8>, FormatError>| read.as_ref().map_err(ToString::to_string).cloned();
            assert_eq!(text(&whole), text(&content));
        }
        let content = content?;
        let entry = &archive.entries()[index];
        assert_eq!(content.len() as u64, entry.size);
        lines.push(format!("{} {:o} {}", entry.name, entry.mode.unwrap_or(0), lossy(&content)));
    }
    Ok(lines)
}

fn list(bytes: &[u8]) -> Result<Vec<String>, FormatError> {
    list_with(bytes, &Limits::default())
}

#[track_caller]
fn refuses(what: &str, bytes: &[u8]) -> String {
    match list(bytes) {
        Ok(lines) => panic!("{what} is read as {lines:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_writers_write_is_read() {
    let mut script = Item::deflated("bin/run", b"#!/bin/sh\n");
    script.attributes = 0o100_755 << 16;
    let mut dir = Item::new("dir/", b"");
    dir.attributes = 0o040_755 << 16 | 0x10;
    let mut dos = Item::new("dos", b"");
    dos.attributes = 0x20;
    let items = [
        Item::new("stored", b"hello"),
        Item::deflated("deflated", &b"hello ".repeat(100)[..18]),
        script,
        dir,
        dos,
        Item::new("näme", b"utf-8"),
        Item::new("Stored", b"case differs"),
        Item::deflated("d1", b"xx").described(true, false),
        Item::deflated("d2", b"xx").described(false, false),
        Item::deflated("d3", b"xx").described(true, true),
        Item::deflated("d4", b"").described(false, true),
        Item::new("empty", b"").described(true, false),
    ];
    let expected = [
        "stored 100644 hello",
        "deflated 100644 hello hello hello ",
        "bin/run 100755 #!/bin/sh\\n",
        "dir/ 40755 ",
        "dos 0 ",
        "näme 100644 utf-8",
        "Stored 100644 case differs",
        "d1 100644 xx",
        "d2 100644 xx",
        "d3 100644 xx",
        "d4 100644 ",
        "empty 100644 ",
    ];
    assert_eq!(list(&archive(&items)).expect("good"), expected);
    assert_eq!(list(&archive64(&items, |_| {})).expect("good zip64"), expected);
    assert_eq!(list(&archive(&[])).expect("an empty archive"), [""; 0]);
    let mut commented = archive(&items[..1]);
    let length = commented.len();
    commented[length - 2] = 7;
    commented.extend(b"comment");
    assert_eq!(list(&commented).expect("a comment"), expected[..1]);
    let bytes = archive(&items);
    let archive = Archive::open(Cursor::new(&bytes), &Limits::default()).expect("good");
    assert_eq!(archive.entries()[0].mtime, 1_706_933_106);
    assert!(archive.entries()[2].is_executable() && !archive.entries()[3].is_executable());
    assert_eq!(archive.find("bin/run"), Some(2));
    assert_eq!(archive.find("bin"), None);
}

#[test]
fn the_raw_stream_can_become_a_gzip_member() {
    let content = b"hello ".repeat(1000);
    let bytes = archive(&[Item::new("a", b"x"), Item::deflated("b", &content).described(true, false)]);
    let mut archive = Archive::open(Cursor::new(&bytes), &Limits::default()).expect("good");
    let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    archive.raw(1).expect("it is there").read_to_end(&mut member).expect("it is there");
    member.extend(archive.entries()[1].crc32.to_le_bytes());
    member.extend((archive.entries()[1].size as u32).to_le_bytes());
    let mut read = Vec::new();
    flate2::read::GzDecoder::new(&member[..]).read_to_end(&mut read).expect("a good member");
    assert_eq!(read, content);
    assert_eq!(archive.entries()[1].compressed_size, member.len() as u64 - 18);
    let mut copied = Vec::new();
    assert_eq!(archive.copy_to(1, &mut copied).expect("good"), 6000);
    assert_eq!(copied, content);
}

#[test]
fn a_stream_that_holds_the_length_of_its_content_is_inflated_as_a_whole() {
    // The content's length in a stored block, which holds the content as it is.
    let mut with_length = vec![b'x'; 300];
    with_length[7..11].copy_from_slice(&300u32.to_le_bytes());
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(&with_length).expect("a vector takes everything");
    let packed = encoder.finish().expect("a vector takes everything");
    assert!(memchr::memmem::find(&packed, &300u32.to_le_bytes()).is_some());
    let bytes = archive(&[Item { packed, ..Item::deflated("x", &with_length) }]);
    let mut archive = Archive::open(Cursor::new(&bytes), &Limits::default()).expect("good");
    let (mut packed, mut content) = (Vec::new(), vec![0; 300]);
    assert!(archive.inflate(0, &mut packed, &mut content).expect("good").is_some());
    assert_eq!(content, with_length);
}

#[test]
fn zip64_fields_are_read_and_must_fit() {
    let wide = |count: usize| [&1u16.to_le_bytes()[..], &(8 * count as u16).to_le_bytes()].concat();
    let five = 5u64.to_le_bytes();
    let mut item = Item::new("a", b"hello");
    item.local_extra = [&wide(2)[..], &five, &five].concat();
    let good = item.clone().local(18, &[0xff; 8]);
    assert_eq!(list(&archive(std::slice::from_ref(&good))).expect("local zip64"), ["a 100644 hello"]);
    let mut central = good.clone().central(20, &[0xff; 8]);
    central.central_extra = item.local_extra.clone();
    assert_eq!(list(&archive(&[central.clone()])).expect("both"), ["a 100644 hello"]);
    let mut all = good.clone().central(20, &[0xff; 8]).central(42, &[0xff; 4]);
    all.central_extra = [&wide(3)[..], &five, &five, &[0; 8]].concat();
    assert_eq!(list(&archive(&[all.clone()])).expect("all three"), ["a 100644 hello"]);
    // Values that nothing asked for, but that agree.
    let mut spare = Item::new("a", b"hello");
    spare.central_extra = [&wide(3)[..], &five, &five, &[0; 8]].concat();
    assert_eq!(list(&archive(&[spare.clone()])).expect("spare"), ["a 100644 hello"]);

    spare.central_extra[4] = 6;
    refuses("spare values that differ", &archive(&[spare.clone()]));
    spare.central_extra = [&wide(1)[..], &five].concat();
    refuses("one value for no field", &archive(&[spare.clone()]));
    spare.central_extra = [&1u16.to_le_bytes()[..], &7u16.to_le_bytes(), &[0; 7]].concat();
    refuses("seven bytes", &archive(&[spare.clone()]));
    spare.central_extra = [wide(0), wide(0)].concat();
    refuses("twice", &archive(&[spare]));
    refuses("saturated without a field", &archive(&[Item::new("a", b"hello").central(20, &[0xff; 4])]));
    let mut short = good.clone().central(20, &[0xff; 8]);
    short.central_extra = [&wide(1)[..], &five].concat();
    refuses("one value for two fields", &archive(&[short]));
    let mut lie = central;
    lie.central_extra[4 + 3] = 1;
    refuses("a size of 16 MiB more", &archive(&[lie]));
    let mut far = all;
    far.central_extra[4 + 16] = 1;
    refuses("another offset", &archive(&[far]));
}

#[test]
fn zip64_ends_must_agree() {
    let items = [Item::new("a", b"hello")];
    for (what, at, with) in [
        ("number of entries", 56 + 20 + 8, &[9u8, 0][..]),
        ("size", 56 + 20 + 12, &[9, 0, 0, 0]),
        ("offset", 56 + 20 + 16, &[9, 0, 0, 0]),
        ("disk", 56 + 20 + 4, &[1, 0]),
        ("64-bit disk", 16, &[1]),
        ("disks", 56 + 16, &[2]),
        ("entries on this disk", 24, &[9]),
        ("entries", 32, &[9]),
        ("directory size", 40, &[9]),
        ("directory offset", 48, &[9]),
        ("offset beyond 64 bits", 48, &[0xff; 8]),
        ("record size", 4, &[45]),
        ("record magic", 0, b"XX"),
        ("locator magic", 56, b"XX"),
        ("locator offset", 56 + 8, &[0xff; 8]),
    ] {
        let bytes = archive64(&items, |tail| tail[at..at + with.len()].copy_from_slice(with));
        refuses(what, &bytes);
    }
    let plain = archive64(&items, |tail| {
        let length = tail.len();
        tail[length - 14..length - 10].copy_from_slice(&[1, 0, 1, 0]);
    });
    assert!(list(&plain).is_ok(), "saturated or equal, both are fine");
}

#[test]
fn what_readers_read_differently_is_refused() {
    // Version and CRC-32 of the name, then another name.
    let unicode = |name: &[u8]| {
        let length = (5 + name.len() as u16).to_le_bytes();
        [&0x7075u16.to_le_bytes()[..], &length, &[1, 0, 0, 0, 0], name].concat()
    };
    let with_local = |extra: Vec<u8>| Item { local_extra: extra, ..Item::new("a", b"x") };
    assert!(list(&archive(&[with_local(unicode(b"a"))])).is_ok());
    let error = refuses("a local Unicode name", &archive(&[with_local(unicode(b"b"))]));
    assert!(error.contains("Unicode"), "{error}");
    // libarchive's attributes in a local header: a symbolic link in disguise.
    let attributes = [&0x6c78u16.to_le_bytes()[..], &7u16.to_le_bytes(), &[4, 0, 0, 0xff, 0xa1, 0, 0]].concat();
    refuses("local attributes", &archive(&[with_local(attributes)]));
    // A directory by DOS' attribute, a file by its name.
    refuses("a directory of DOS", &archive(&[Item { attributes: 0x10, ..Item::new("a", b"") }]));
    assert!(list(&archive(&[Item { attributes: 0x10, ..Item::new("a/", b"") }])).is_ok());
    let error = refuses("a later version", &archive(&[Item::new("a", b"x").central(6, &[64])]));
    assert!(error.contains("version 6.4"), "{error}");
}

#[test]
fn hostile_names_are_refused() {
    for name in [
        "../x",
        "/abs",
        "a/../../x",
        "a/..",
        "..",
        ".",
        "./a",
        "a/./b",
        "a//b",
        "a//",
        "/",
        "",
        "a\\..\\x",
        "a\0b",
        "a\nb",
        ".wh.x",
        "a/.wh..wh..opq",
    ] {
        let error = list(&archive(&[Item::new(name, b"")])).expect_err(name);
        assert!(matches!(error, FormatError::Name { .. }), "{name:?}: {error}");
    }
    for length in [256, 5000] {
        refuses("long", &archive(&[Item::new(&"x".repeat(length), b"")]));
    }
    refuses("deep", &archive(&[Item::new(&("a/".repeat(3000) + "b"), b"")]));
    let mut item = Item::new("x", b"");
    item.name = b"\xff\xfe".into();
    refuses("not UTF-8", &archive(&[item.clone()]));
    item.flags = 1 << 11;
    refuses("not UTF-8 but marked", &archive(&[item.clone()]));
    item.name = "näme".into();
    item.flags = 0;
    refuses("UTF-8 but not marked", &archive(&[item]));
    let mut unicode = Item::new("good", b"");
    unicode.central_extra = [&0x7075u16.to_le_bytes()[..], &9u16.to_le_bytes(), &[1, 0, 0, 0, 0], b"evil"].concat();
    refuses("another Unicode name", &archive(&[unicode.clone()]));
    unicode.central_extra.truncate(9);
    unicode.central_extra.extend(b"good");
    assert!(list(&archive(&[unicode])).is_ok());
}

#[test]
fn names_are_unique_and_files_hold_nothing() {
    let file = |name| Item::new(name, b"");
    assert!(refuses("twice", &archive(&[file("a"), file("b"), file("a")])).contains("twice"));
    assert!(
        refuses("file and directory", &archive(&[file("a"), Item { attributes: 0, ..file("a/") }])).contains("twice")
    );
    let below = archive(&[file("a/b/c"), file("a-"), file("a")]);
    assert!(refuses("below a file", &below).contains("below"));
    let dirs = [Item { attributes: 0, ..file("a/") }, file("a/b"), file("a0"), file("a/b0")];
    assert!(list(&archive(&dirs)).is_ok());
}

#[test]
fn kinds_and_methods_that_are_not_read_are_named() {
    let with = |attributes: u32| Item { attributes, ..Item::new("x", b"target") };
    assert!(refuses("symlink", &archive(&[with(0o120_777 << 16)])).contains("symbolic link"));
    for kind in [0o010_000u32, 0o020_000, 0o060_000, 0o140_000] {
        assert!(refuses("special", &archive(&[with((kind | 0o644) << 16)])).contains("neither file nor directory"));
    }
    refuses("a directory without slash", &archive(&[with(0o040_755 << 16)]));
    refuses("a file with slash", &archive(&[Item::new("x/", b"")]));
    refuses("a directory with content", &archive(&[Item { attributes: 0, ..Item::new("x/", b"content") }]));
    for method in [1u16, 9, 12, 14, 93, 99] {
        let item = Item::new("x", b"content").both(8, 10, &method.to_le_bytes());
        assert!(refuses("method", &archive(&[item])).contains("compression method"));
    }
    for bit in [0, 6, 13] {
        let mut item = Item::new("x", b"content");
        item.flags = 1 << bit;
        assert!(refuses("encrypted", &archive(&[item])).contains("encrypted"));
    }
    for bit in [4, 5, 7, 8, 9, 10, 12, 14, 15] {
        let mut item = Item::new("x", b"content");
        item.flags = 1 << bit;
        assert!(refuses("reserved flag", &archive(&[item])).contains("flags"));
    }
}

#[test]
fn local_headers_repeat_the_directory() {
    let item = || Item::new("name", b"content");
    for (what, bad) in [
        ("name", item().local(26, &[3])),
        ("another name", Item { local_extra: b"\0\0\0\0".to_vec(), ..item() }.local(26, &[8, 0, 0])),
        ("flags", item().local(7, &[8])),
        ("descriptor flag", item().local(6, &[8])),
        ("method", item().local(8, &[8])),
        ("CRC-32", item().local(14, &[1])),
        ("packed size", item().local(18, &[6])),
        ("size", item().local(22, &[6])),
        ("zero sizes without a descriptor", item().local(14, &[0; 12])),
        ("magic", item().local(0, b"PK\x01\x02")),
        ("extra beyond", item().local(28, &[0xff, 0xff])),
        ("malformed extra", Item { local_extra: b"\0\0\x09\0".to_vec(), ..item() }),
        ("cut extra", Item { local_extra: b"\x01\0\0".to_vec(), ..item() }),
    ] {
        refuses(what, &archive(&[bad]));
    }
    let described = || Item::deflated("name", b"content").described(true, false);
    for at in 0..16 {
        let mut bad = described();
        bad.after[at] ^= 1;
        refuses("descriptor", &archive(&[bad]));
    }
    let mut bad = described();
    bad.after.truncate(15);
    refuses("cut descriptor", &archive(&[bad]));
    let mut bad = described();
    bad.after.clear();
    refuses("no descriptor", &archive(&[bad]));
    refuses("stored with a descriptor", &archive(&[item().described(true, false)]));
}

#[test]
fn nothing_is_before_between_or_behind() {
    let (a, b) = (Item::new("a", b"first"), Item::new("b", b"second"));
    let good = archive(&[a.clone(), b.clone()]);
    refuses("prefix", &[b"#!/bin/sh\n", &good[..]].concat());
    refuses("prefix of an archive", &[&good[..], &good[..]].concat());
    refuses("suffix", &[&good[..], b"x"].concat());
    refuses("suffix of zeros", &[&good[..], &[0; 512]].concat());
    // Offsets that allow for the prefix, and data that no entry lists.
    let hidden = Item { before: b"hidden".to_vec(), ..a.clone() };
    assert!(refuses("unlisted prefix", &archive(&[hidden, b.clone()])).contains("unlisted"));
    let hidden = Item { before: archive(&[Item::new("evil", b"x")]), ..b.clone() };
    assert!(refuses("unlisted gap", &archive(&[a.clone(), hidden])).contains("not the descriptor"));
    let hidden = Item { after: b"0123456789ab".to_vec(), ..b.clone() };
    refuses("unlisted before the directory", &archive(&[a.clone(), hidden]));
    // Two entries with the same content, one inside the other, and a quine's trick.
    refuses("same offset", &archive(&[a.clone(), b.clone().central(42, &[0; 4])]));
    let inner = archive(&[Item::new("evil", b"x")]);
    refuses("nested", &archive(&[Item::new("outer", &inner), Item::new("evil", b"x").central(42, &[35, 0, 0, 0])]));
    refuses("longer than the archive", &archive(&[a.clone().both(18, 20, &[0xfe; 8])]));
    refuses("offset beyond", &archive(&[a.clone(), b.clone().central(42, &[0xfe; 4])]));
    refuses("other disk", &archive(&[a.clone().central(34, &[1])]));
    // The end record.
    let at = good.len() - 22;
    for (what, offset, with) in [
        ("disk", 4, 1u8),
        ("directory's disk", 6, 1),
        ("entries here", 8, 1),
        ("entries", 10, 3),
        ("size", 12, 1),
        ("offset", 16, 1),
        ("comment", 20, 1),
    ] {
        let mut bad = good.clone();
        bad[at + offset] = with;
        refuses(what, &bad);
    }
    let mut both = good.clone();
    (both[at + 8], both[at + 10]) = (1, 1);
    assert!(refuses("entries", &both).contains("announces 1 entries but its directory has 2"));
    // A comment that holds another end.
    let mut two = good.clone();
    two[at + 20] = 22;
    two.extend(end(0, 0, 0));
    refuses("two ends", &two);
    refuses("nothing", b"");
    refuses("no archive", b"hello");
}

#[test]
fn content_is_checked() {
    let content = b"some content, some content, some content";
    let stored = Item::new("x", content);
    let deflated = Item::deflated("x", content);
    for item in [&stored, &deflated] {
        let mut refused = 0;
        for at in 0..item.packed.len() {
            let mut bad = item.clone();
            bad.packed[at] ^= 0x10;
            match list(&archive(&[bad])) {
                Err(_) => refused += 1,
                // The last byte of a deflate stream may have bits that mean nothing.
                Ok(lines) => assert_eq!(lines, [format!("x 100644 {}", lossy(content))]),
            }
        }
        assert!(refused >= item.packed.len() - 1);
    }
    let length = |item: Item| {
        let packed = (item.packed.len() as u32).to_le_bytes();
        item.both(18, 20, &packed)
    };
    let mut longer = deflated.clone();
    longer.packed.push(0);
    assert!(refuses("bytes behind the stream", &archive(&[length(longer)])).contains("ends before"));
    // Behind the stream stands what a gzip member would end with.
    let mut twice = deflated.clone();
    twice.packed.extend(crc32fast::hash(content).to_le_bytes());
    twice.packed.extend((content.len() as u32).to_le_bytes());
    assert!(refuses("a member's end behind the stream", &archive(&[length(twice.clone())])).contains("ends before"));
    twice.packed.extend(b"and more");
    assert!(refuses("a member and more", &archive(&[length(twice.clone())])).contains("ends before"));
    // The same, but the directory tells of what comes behind: another member, and its check sum.
    let other = Item::deflated("x", &vec![b'y'; content.len()]);
    twice.packed.truncate(deflated.packed.len() + 8);
    twice.packed.extend([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    twice.packed.extend(other.packed);
    let crc32 = crc32fast::hash(&other.content).to_le_bytes();
    refuses("two members", &archive(&[length(twice).both(14, 16, &crc32)]));
    let mut cut = deflated.clone();
    cut.packed.pop();
    assert!(refuses("a cut stream", &archive(&[length(cut)])).contains("no end"));
    // All of the content and its CRC-32, but the stream does not end.
    let mut compressor = flate2::Compress::new(flate2::Compression::default(), false);
    let mut open = Vec::with_capacity(1000);
    compressor.compress_vec(content, &mut open, flate2::FlushCompress::Sync).expect("in memory");
    let endless = Item { packed: open, ..deflated.clone() };
    assert!(refuses("a stream without an end", &archive(&[length(endless)])).contains("no end"));
    for size in [39u32, 41] {
        let bad = deflated.clone().both(22, 24, &size.to_le_bytes());
        refuses("another size", &archive(&[bad]));
    }
    refuses("another CRC-32", &archive(&[deflated.clone().both(14, 16, &[0; 4])]));
    refuses("two sizes of a stored entry", &archive(&[stored.both(22, 24, &[0])]));
}

#[test]
fn bombs_are_refused_by_what_they_announce() {
    let zeros = Item::deflated("zeros", &vec![0; 1 << 20]);
    let limits = Limits { max_output: 1 << 20, ..Limits::default() };
    assert!(list_with(&archive(std::slice::from_ref(&zeros)), &limits).is_ok());
    let second = Item { name: b"second".into(), ..zeros.clone() };
    assert!(matches!(list_with(&archive(&[zeros.clone(), second]), &limits), Err(FormatError::Limit { .. })));
    let impossible = Item::deflated("x", b"x").both(22, 24, &[0xfe; 4]);
    assert!(refuses("impossible ratio", &archive(&[impossible])).contains("cannot hold"));
    // It announces little: reading stops there.
    let liar = zeros.both(22, 24, &100u32.to_le_bytes());
    assert!(refuses("a liar", &archive(&[liar])).contains("more than the 100 bytes"));
    let limits = Limits { max_entries: 2, max_metadata: 200, ..Limits::default() };
    let files: Vec<Item> = (0..3).map(|n| Item::new(&n.to_string(), b"")).collect();
    assert!(matches!(list_with(&archive(&files), &limits), Err(FormatError::Limit { limit: 2, .. })));
    let long = Item::new(&"x".repeat(200), b"");
    assert!(matches!(list_with(&archive(&[long]), &limits), Err(FormatError::Limit { limit: 200, .. })));
}

fn sample() -> Vec<u8> {
    archive(&[
        Item::new("a", b"first"),
        Item::deflated("dir/b", &b"second ".repeat(10)).described(true, false),
        Item { attributes: 0, ..Item::new("dir/", b"") },
    ])
}

#[test]
fn every_cut_is_an_error() {
    let bytes = sample();
    for cut in 0..bytes.len() {
        refuses("cut", &bytes[..cut]);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = list(&bytes);
        let _ = list(&[&bytes[..], &end(1, 46, bytes.len().saturating_sub(46))].concat());
    }

    #[test]
    fn no_flipped_bit_makes_it_panic(at in 0..sample().len() * 8, second in 0..sample().len() * 8) {
        let mut bytes = sample();
        bytes[at / 8] ^= 1 << (at % 8);
        let _ = list(&bytes);
        bytes[second / 8] ^= 1 << (second % 8);
        let _ = list(&bytes);
    }
}

#[test]
fn real_python_writes_what_we_read_and_reads_what_we_do() {
    let root = tempfile::tempdir().expect("a directory");
    let script = r##"
import sys, zipfile, io, random
random.seed(1)
class Pipe(io.RawIOBase):
    def __init__(self, f): self.f = f
    def writable(self): return True
    def write(self, b): return self.f.write(b)
def fill(z):
    z.writestr("stored", b"hello")
    z.writestr(zipfile.ZipInfo("old.txt", (1980, 1, 1, 0, 0, 0)), b"x")
    info = zipfile.ZipInfo("bin/tool", (2031, 12, 31, 23, 59, 58)); info.external_attr = 0o100755 << 16
    z.writestr(info, b"#!/bin/sh\n", zipfile.ZIP_DEFLATED)
    z.writestr("n\u00e4me/\u4e2d", bytes(random.randrange(4) for _ in range(30000)), zipfile.ZIP_DEFLATED, 9)
    z.writestr("dir/", b"")
    z.writestr("empty", b"", zipfile.ZIP_DEFLATED)
    with z.open("large", "w", force_zip64=True) as f: f.write(b"zip64 " * 1000)
with zipfile.ZipFile(sys.argv[1] + "/seekable.zip", "w") as z: fill(z)
with zipfile.ZipFile(sys.argv[1] + "/deflated.zip", "w", zipfile.ZIP_DEFLATED) as z: fill(z); z.comment = b"a comment"
with open(sys.argv[1] + "/stream.zip", "wb") as f, zipfile.ZipFile(Pipe(f), "w", zipfile.ZIP_DEFLATED) as z:
    for n in range(3): z.writestr(zipfile.ZipInfo("f%d" % n), b"data" * n, zipfile.ZIP_DEFLATED)
for name in ["seekable", "deflated", "stream"]:
    for i in zipfile.ZipFile(f"{sys.argv[1]}/{name}.zip").infolist():
        print(name, i.filename, i.external_attr >> 16, "%d-%d-%d %d:%d:%d" % i.date_time, i.CRC, i.file_size, i.compress_size)
"##;
    let output = Command::new("python3").args(["-c", script]).arg(root.path()).output();
    let output = output.expect("python3 is here; install python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut ours = String::new();
    for name in ["seekable", "deflated", "stream"] {
        let file = std::fs::File::open(root.path().join(format!("{name}.zip"))).expect("written above");
        let mut archive = Archive::open(file, &Limits::default()).expect(name);
        for index in 0..archive.entries().len() {
            let content = archive.read(index).expect(name);
            let e = &archive.entries()[index];
            assert_eq!(crc32fast::hash(&content), e.crc32);
            ours.push_str(&format!(
                "{name} {} {} {} {} {} {}\n",
                e.name,
                e.mode.unwrap_or(0),
                civil(e.mtime),
                e.crc32,
                e.size,
                e.compressed_size
            ));
        }
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), ours);
}

/// A time as Python's `date_time` prints, by way of the days' count (another algorithm than the reader's).
fn civil(mtime: i64) -> String {
    let (mut days, seconds) = (mtime / 86_400, mtime % 86_400);
    let mut year = 1970;
    let leap = |year: i64| year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{}-{} {}:{}:{}", month + 1, days + 1, seconds / 3600, seconds / 60 % 60, seconds % 60)
}
