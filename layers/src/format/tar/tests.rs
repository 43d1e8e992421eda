//! Hostile archives, built byte by byte, and well-formed ones compared with GNU tar and Python.

use std::process::Command;

use proptest::prelude::*;

use super::samples::{Block, end, extension, file, long, pax, record};
use super::*;

/// A readable listing: `path kind mode uid:gid mtime content`.
fn list_with(mut reader: Reader<&[u8]>) -> Result<Vec<String>, FormatError> {
    let mut lines = Vec::new();
    while let Some(item) = reader.next_item()? {
        let entry = match item {
            TarItem::Whiteout { path } => {
                lines.push(format!("whiteout {path}"));
                continue;
            }
            TarItem::Opaque { dir } => {
                lines.push(format!("opaque {dir}"));
                continue;
            }
            TarItem::Entry(entry) => entry,
        };
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        let what = match &entry.kind {
            Kind::File { size } => {
                assert_eq!(*size, content.len() as u64);
                format!("file {}", lossy(&content))
            }
            Kind::Dir => "dir".into(),
            Kind::Symlink { target } => format!("-> {target}"),
            Kind::Hardlink { target } => format!("= {target}"),
            Kind::CharDevice { major, minor } => format!("c {major}:{minor}"),
            Kind::BlockDevice { major, minor } => format!("b {major}:{minor}"),
            Kind::Fifo => "fifo".into(),
        };
        let Entry { path, mode, uid, gid, mtime, xattrs, .. } = entry;
        let mut line = format!("{path} {mode:04o} {uid}:{gid} {mtime} {what}");
        for (key, value) in xattrs {
            line.push_str(&format!(" {key}={}", lossy(&value)));
        }
        lines.push(line);
    }
    Ok(lines)
}

fn list(bytes: &[u8]) -> Result<Vec<String>, FormatError> {
    list_with(Reader::new(bytes, &Limits::default()))
}

fn layer(parts: &[Vec<u8>]) -> Result<Vec<String>, FormatError> {
    list_with(Reader::oci_layer(&end(parts), &Limits::default()))
}

#[test]
fn every_dialect_and_kind_is_read() {
    let xattr = b"\x01\0\0\x02\0 \n\xff";
    let bytes = end(&[
        Block::new(b"./", b'5', 0).put(100, b"0000755\0").done(),
        Block::new(b"./bin", b'2', 0).link(b"usr/bin").done(),
        file("a", b"hello"),
        Block::new(b"b", b'1', 0).link(b"./a").done(),
        Block::new(b"deep/name", b'0', 2).put(345, b"very").with(b"xy"),
        Block::new(b"null", b'3', 0).put(329, b"0000001\0").put(337, b"0000003\0").done(),
        Block::new(b"sda", b'4', 0).put(329, b"0000010\0").put(337, b"\x80\0\0\0\0\0\x01\0").done(),
        Block::new(b"pipe", b'6', 0).done(),
        Block::new(b"old/", 0, 0).put(257, &[0; 8]).done(),
        Block::new(b"old/file", 0, 1).put(257, &[0; 8]).put(100, b"100755 \0").with(b"!"),
        long(b'L', b"gnu/long"),
        long(b'K', b"gnu/target"),
        Block::new(b"gnu/lo", b'2', 0).gnu().link(b"gnu/ta").done(),
        Block::new(b"big", b'0', 0).gnu().put(108, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]).done(),
        Block::new(b"past", b'0', 0).gnu().put(136, &[0xff; 12]).done(),
        pax(&[
            ("path", "päx/näme".as_bytes()),
            ("mtime", b"123.9"),
            ("uid", b"3000000"),
            ("SCHILY.xattr.security.capability", xattr),
        ]),
        Block::new(b"p", b'0', 3).with(b"pax"),
        pax(&[("linkpath", b"some/where"), ("comment", b""), ("atime", b"1.5")]),
        Block::new(b"s", b'2', 0).link(b"some").done(),
        Block::new(b"a//./b/", b'5', 0).done(),
    ]);
    let expected = [
        "/ 0755 0:0 1700000000 dir",
        "/bin 0644 0:0 1700000000 -> usr/bin",
        "/a 0644 0:0 1700000000 file hello",
        "/b 0644 0:0 1700000000 = /a",
        "/very/deep/name 0644 0:0 1700000000 file xy",
        "/null 0644 0:0 1700000000 c 1:3",
        "/sda 0644 0:0 1700000000 b 8:256",
        "/pipe 0644 0:0 1700000000 fifo",
        "/old 0644 0:0 1700000000 dir",
        "/old/file 0755 0:0 1700000000 file !",
        "/gnu/long 0644 0:0 1700000000 -> gnu/target",
        "/big 0644 4294967294:0 1700000000 file ",
        "/past 0644 0:0 -1 file ",
        "/päx/näme 0644 3000000:0 123 file pax security.capability=\\u{1}\\u{0}\\u{0}\\u{2}\\u{0} \\n\u{fffd}",
        "/s 0644 0:0 1700000000 -> some/where",
        "/a/b 0644 0:0 1700000000 dir",
    ];
    assert_eq!(list(&bytes).expect("a good archive"), expected);
}

#[test]
fn global_headers_are_comments() {
    // bsdtar overlooks what they say about owners and times, GNU tar and Python do not.
    let with = |key: &str, value: &[u8]| {
        list(&end(&[extension(b'g', &[record("comment", b"0123abc"), record(key, value)].concat()), file("a", b"")]))
    };
    assert_eq!(with("vendor.word", b"x").expect("good"), ["/a 0644 0:0 1700000000 file "]);
    for key in ["mtime", "uid", "gid", "size", "path", "linkpath", "SCHILY.xattr.user.a"] {
        assert!(with(key, b"5").expect_err(key).to_string().contains("global"), "{key}");
    }
}

#[test]
fn what_readers_read_differently_is_refused() {
    let file = |block: Block| end(&[block.done()]);
    let with_pax = |records: &[(&str, &[u8])], block: Block| end(&[pax(records), block.done()]);
    let plain = || Block::new(b"a", b'0', 0);
    let old = |name: &[u8]| Block::new(name, 0, 0);
    for (what, bytes, why) in [
        // GNU tar and Python refuse it, bsdtar takes the PAX header's word.
        ("an overridden uid", with_pax(&[("uid", b"5")], plain().put(108, b"garbage\0")), "uid"),
        ("an overridden gid", with_pax(&[("gid", b"5")], plain().put(116, b"garbage\0")), "gid"),
        ("an overridden mtime", with_pax(&[("mtime", b"5")], plain().put(136, b"5 of May\0")), "mtime"),
        (
            "a PAX header's own mode",
            end(&[Block::new(b"x", b'x', 0).put(100, b"0o644\0").done(), plain().done()]),
            "mode",
        ),
        // GNU tar overlooks it, bsdtar and Python refuse it.
        ("a file's device", file(plain().put(329, b"x")), "device major"),
        ("a directory's device", file(Block::new(b"d/", b'5', 0).put(337, b"1 2\0")), "device minor"),
        // GNU tar's error, zero for others.
        ("a blank mode", file(plain().put(100, b"        ")), "mode is blank"),
        ("a blank uid", file(plain().put(108, b"        ")), "uid is blank"),
        ("a blank mtime", file(plain().put(136, b"            ")), "mtime is blank"),
        ("a blank device", file(Block::new(b"n", b'3', 0).put(329, b"        ")), "device major is blank"),
        // bsdtar's error, a number for others.
        ("more behind the NUL", file(plain().put(108, b"644\0garb")), "uid"),
        ("tabs", file(plain().put(108, b"\t\t 644\0")), "uid"),
        // Three different numbers.
        ("a minus", file(plain().put(136, b"-0000000001\0")), "mtime"),
        // Python takes it for a prefix.
        ("an access time", file(plain().gnu().put(345, b"14524770400\0")), "last access"),
        // Directories for some, files for others.
        ("a directory by PAX", with_pax(&[("path", b"a/")], old(b"a")), "two ways"),
        ("a file by PAX", with_pax(&[("path", b"a")], old(b"a/")), "two ways"),
        ("a directory by its prefix", file(old(b"").put(345, b"a")), "two ways"),
        ("a directory by a long name", end(&[long(b'L', b"a/"), old(b"a").gnu().done()]), "two ways"),
        // Another mode for bsdtar.
        ("an ACL", with_pax(&[("SCHILY.acl.access", b"user::rwx,group::r-x,other::r-x")], plain()), "access control"),
        ("a map of holes", with_pax(&[("SUN.holesdata", b" 0 1 2")], plain()), "sparse"),
    ] {
        let error = list(&bytes).expect_err(what).to_string();
        assert!(error.contains(why), "{what}: {error}");
    }
    // Fields that are left out are zero for everybody, and nobody looks at a file's device.
    let empty = plain().put(100, &[0; 24]).put(136, &[0; 12]).put(329, &[b' '; 16]);
    assert_eq!(list(&file(empty)).expect("good"), ["/a 0000 0:0 0 file "]);
}

#[test]
fn offsets_point_at_headers_and_content() {
    let bytes = end(&[pax(&[("path", b"long")]), file("x", b"first"), file("b", b"second")]);
    let mut reader = Reader::new(&bytes[..], &Limits::default());
    let mut seen = Vec::new();
    while let Some(entry) = reader.next().expect("good") {
        let at = reader.content_offset() as usize;
        seen.push((entry.path.to_string(), reader.header_offset(), bytes[at..at + 5].to_vec()));
    }
    assert_eq!(seen, [("/long".into(), 0, b"first".to_vec()), ("/b".into(), 2048, b"secon".to_vec())]);
}

#[test]
fn content_may_be_read_in_part_and_reads_nothing_before_and_after() {
    let bytes = end(&[file("a", &[b'x'; 700]), file("b", b"second")]);
    let mut reader = Reader::new(&bytes[..], &Limits::default());
    let mut buffer = [0; 600];
    assert_eq!(reader.read(&mut buffer).expect("nothing yet"), 0);
    reader.next().expect("good").expect("a");
    reader.read_exact(&mut buffer).expect("600 of 700");
    reader.next().expect("good").expect("b");
    let mut content = String::new();
    reader.read_to_string(&mut content).expect("good");
    assert_eq!(content, "second");
    assert_eq!(reader.next().expect("good"), None);
    assert_eq!(reader.read(&mut buffer).expect("nothing more"), 0);
    assert_eq!(reader.next().expect("still the end"), None);
}

#[test]
fn names_that_leave_or_cannot_be_are_refused() {
    let names: [&[u8]; 16] = [
        b"../x",
        b"/abs",
        b"a/../../x",
        b"a/..",
        b"..",
        b"",
        b"bad\xff\xfename",
        b".wh.gone",
        b".wh..wh..opq",
        b"a/.wh.b/c",
        b".",
        b"./",
        b"file/",
        b"file/.",
        b"//x",
        b"./../x",
    ];
    for name in names {
        let error = list(&end(&[Block::new(name, b'0', 0).done()])).expect_err(&lossy(name));
        assert!(matches!(error, FormatError::Name { .. }), "{}: {error}", lossy(name));
        assert!(list(&end(&[pax(&[("path", name)]), file("x", b"")])).is_err(), "PAX {}", lossy(name));
        assert!(list(&end(&[long(b'L', name), file("x", b"")])).is_err(), "GNU {}", lossy(name));
    }
    let long_names = [vec![b'x'; 256], [b"a/".repeat(2500), b"b".to_vec()].concat(), vec![b'x'; 5000]];
    for name in &long_names {
        assert!(list(&end(&[pax(&[("path", name)]), file("x", b"")])).is_err());
        assert!(list(&end(&[long(b'L', name), file("x", b"")])).is_err());
    }
    for name in [&b"a\0b"[..], b"\0"] {
        assert!(list(&end(&[pax(&[("path", name)]), file("x", b"")])).is_err());
        assert!(list(&end(&[long(b'L', name), file("x", b"")])).is_err());
    }
    let deep = "a/".repeat(100_000) + "b";
    assert!(list(&end(&[pax(&[("path", deep.as_bytes())]), file("x", b"")])).is_err());
    // The lengths that fit the fields to the last byte are names.
    let (name, prefix) = ([b'n'; 100], [b'p'; 155]);
    let lines = list(&end(&[Block::new(&name, b'0', 0).put(345, &prefix).done()])).expect("good");
    assert_eq!(lines[0].split(' ').next().expect("a path").len(), 1 + 155 + 1 + 100);
}

#[test]
fn link_targets_are_checked() {
    for target in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"", b"./", b"dir/", b"\xff"] {
        let bytes = end(&[Block::new(b"link", b'1', 0).link(target).done()]);
        assert!(list(&bytes).is_err(), "hard link to {}", lossy(target));
        assert!(list(&end(&[pax(&[("linkpath", target)]), Block::new(b"link", b'1', 0).done()])).is_err());
    }
    assert!(list(&end(&[Block::new(b"./a", b'1', 0).link(b"a").done()])).is_err(), "a link to itself");
    for target in [&b""[..], b"\xff"] {
        assert!(list(&end(&[Block::new(b"link", b'2', 0).link(target).done()])).is_err());
    }
    assert!(list(&end(&[pax(&[("linkpath", b"a\0b")]), Block::new(b"l", b'2', 0).done()])).is_err());
    assert!(list(&end(&[long(b'K', &[b'x'; 5000]), Block::new(b"l", b'2', 0).done()])).is_err());
    // Where a symbolic link points is for the one who merges trees.
    for target in ["/host", "../../x", "."] {
        let lines =
            list(&end(&[Block::new(b"link", b'2', 0).link(target.as_bytes()).done()])).expect("kept as written");
        assert_eq!(lines, [format!("/link 0644 0:0 1700000000 -> {target}")]);
    }
}

#[test]
fn nothing_is_smuggled_past_one_of_two_readers() {
    let inner = end(&[file("evil", b"payload")]);
    let size = inner.len().to_string();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        // CVE-2025-62518: ustar says 0, PAX tells the truth (and the reverse).
        (
            "PAX size over ustar 0",
            [pax(&[("size", size.as_bytes())]), Block::new(b"n", b'0', 0).done(), inner.clone()].concat(),
        ),
        ("PAX size 0 over ustar", [pax(&[("size", b"0")]), file("n", &inner)].concat()),
        ("PAX size 1 more", [pax(&[("size", b"513")]), file("n", &[0; 512])].concat()),
        ("global size", [extension(b'g', &record("size", b"512")), file("n", b"")].concat()),
        ("global path", [extension(b'g', &record("path", b"other")), file("n", b"")].concat()),
        ("global linkpath", [extension(b'g', &record("linkpath", b"other")), file("n", b"")].concat()),
        ("global xattr", [extension(b'g', &record("SCHILY.xattr.user.a", b"1")), file("n", b"")].concat()),
        ("duplicate key", [pax(&[("path", b"a"), ("path", b"b")]), file("n", b"")].concat()),
        ("two PAX headers", [pax(&[("path", b"a")]), pax(&[("path", b"a")]), file("n", b"")].concat()),
        ("two long names", [long(b'L', b"a"), long(b'L', b"a"), file("n", b"")].concat()),
        ("two long links", [long(b'K', b"a"), long(b'K', b"a"), Block::new(b"n", b'2', 0).done()].concat()),
        ("GNU and PAX name", [long(b'L', b"a"), pax(&[("path", b"b")]), file("n", b"")].concat()),
        ("PAX and GNU link", [pax(&[("linkpath", b"b")]), long(b'K', b"a"), Block::new(b"n", b'2', 0).done()].concat()),
        ("global inside", [pax(&[("path", b"a")]), extension(b'g', &record("comment", b"")), file("n", b"")].concat()),
        ("directory with content", Block::new(b"d/", b'5', 512).with(&file("evil", b""))),
        ("symlink with content", Block::new(b"d", b'2', 512).link(b"x").with(&file("evil", b""))),
        ("hard link with content", Block::new(b"d", b'1', 512).link(b"x").with(&file("evil", b""))),
        ("device with content", Block::new(b"d", b'3', 512).put(329, b"0000001\0").with(&file("evil", b""))),
        ("old directory with content", Block::new(b"d/", 0, 512).with(&file("evil", b""))),
        ("PAX at the end", pax(&[("path", b"a")])),
        ("long name at the end", long(b'L', b"a")),
        ("lone zero block", [vec![0; 512], file("evil", b"")].concat()),
        ("data after the end", [vec![0; 1024], file("evil", b"")].concat()),
        ("star with a full prefix", Block::new(b"n", b'0', 0).put(345, &[b'p'; 131]).put(508, b"tar\0").done()),
        ("unknown magic", Block::new(b"n", b'0', 0).put(257, b"ustar\x0001").done()),
        ("garbage for magic", Block::new(b"n", b'0', 0).put(257, b"xxxxx").done()),
        ("prefix without magic", Block::new(b"n", b'0', 0).put(257, &[0; 8]).put(345, b"etc").done()),
    ];
    for (what, bytes) in cases {
        assert!(list(&end(&[bytes])).is_err(), "{what}");
    }
    let same = end(&[long(b'L', b"a"), pax(&[("path", b"a"), ("path", b"a"), ("size", b"1")]), file("n", b"x")]);
    assert_eq!(list(&same).expect("nothing contradicts"), ["/a 0644 0:0 1700000000 file x"]);
}

#[test]
fn malformed_pax_is_refused() {
    let raw: [&[u8]; 8] = [
        b"12 path=abc",
        b"99 path=abc\n",
        b"011 path=ab\n",
        b"path=abc\n",
        b"12 path=abc\n\0\0\0",
        b"-1 path=abc\n",
        b"18446744073709551615 path=abc\n",
        b"4 =\n",
    ];
    for content in raw {
        assert!(list(&end(&[extension(b'x', content), file("n", b"")])).is_err(), "{}", lossy(content));
    }
    for (key, value) in [
        ("size", &b"-1"[..]),
        ("size", b""),
        ("size", b"+1"),
        ("size", b"1e9"),
        ("size", b"18446744073709551616"),
        ("uid", b"4294967296"),
        ("uid", b"-1"),
        ("gid", b"x"),
        ("mtime", b"now"),
        ("mtime", b"9223372036854775808"),
        ("path", b""),
        ("hdrcharset", b"ISO-IR 8859 1 1998"),
        ("SCHILY.xattr.", b"x"),
        ("SCHILY.xattr.a\0b", b"x"),
        ("LIBARCHIVE.xattr.user.a", b"eA"),
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.map", b"0,1"),
        ("SCHILY.realsize", b"1"),
    ] {
        let bytes = end(&[pax(&[(key, value)]), file("n", b"")]);
        assert!(list(&bytes).is_err(), "{key}={}", lossy(value));
    }
    let oversized = record("comment", &vec![b'x'; 1 << 20]);
    let error = list(&end(&[extension(b'x', &oversized), file("n", b"")])).expect_err("over 1 MiB");
    assert!(matches!(error, FormatError::Limit { limit: 1_048_576, .. }), "{error}");
    let claims = end(&[Block::new(b"x", b'x', 1 << 32).done()]);
    assert!(matches!(list(&claims), Err(FormatError::Limit { .. })), "refused before it is allocated");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (what, block) in [
        ("negative size", Block::new(b"n", b'0', 0).put(124, &[0xff; 12])),
        (
            "huge size",
            Block::new(b"n", b'0', 0).put(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("size beyond 63 bits", Block::new(b"n", b'0', 0).put(124, &[0xbf; 12])),
        ("no size", Block::new(b"n", b'0', 0).put(124, &[0; 12])),
        ("size in decimal", Block::new(b"n", b'0', 0).put(124, b"00000000009\0")),
        ("uid", Block::new(b"n", b'0', 0).put(108, &[0x80, 0, 0, 1, 0, 0, 0, 0])),
        ("gid", Block::new(b"n", b'0', 0).put(116, &[0xff; 8])),
        ("mode", Block::new(b"n", b'0', 0).put(100, b"7777777\0")),
        ("mtime", Block::new(b"n", b'0', 0).put(136, &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("major", Block::new(b"n", b'3', 0).put(329, b"x")),
        ("v7 device", Block::new(b"n", b'3', 0).put(257, &[0; 8])),
    ] {
        assert!(list(&end(&[block.done()])).is_err(), "{what}");
    }
    let mut bad = end(&[file("n", b"")]);
    bad[0] = b'm';
    assert!(list(&bad).expect_err("the sum is wrong").to_string().contains("checksum"));
    bad[148..156].fill(0);
    assert!(list(&bad).expect_err("no sum").to_string().contains("missing"));
}

#[test]
fn kinds_that_are_not_read_are_named() {
    for (flag, what) in [
        (b'S', "sparse"),
        (b'M', "multi-volume"),
        (b'V', "volume label"),
        (b'D', "dump"),
        (b'X', "Solaris"),
        (b'?', "type `?`"),
    ] {
        let error = list(&end(&[Block::new(b"name", flag, 0).gnu().done()])).expect_err(what);
        assert!(error.to_string().contains(what) && error.to_string().contains("`name`"), "{error}");
    }
}

#[test]
fn whiteouts_are_read_in_layers_alone() {
    let lines = layer(&[
        file("a/.wh.b", b""),
        file("./.wh.c", b""),
        file("d/.wh..wh..opq", b""),
        file(".wh..wh..opq", b""),
        file("kept.wh.", b""),
    ]);
    let expected = ["whiteout /a/b", "whiteout /c", "opaque /d", "opaque /", "/kept.wh. 0644 0:0 1700000000 file "];
    assert_eq!(lines.expect("good"), expected);
    for name in
        [".wh.", ".wh..", ".wh...", "a/.wh..", "../.wh.x", "/.wh.x", ".wh..wh.plnk", ".wh.x/", ".wh.a/.wh.b", ".wh.a/b"]
    {
        assert!(layer(&[file(name, b"")]).is_err(), "{name}");
    }
    assert!(layer(&[file(".wh.x", b"content")]).is_err());
    assert!(layer(&[Block::new(b".wh.x", b'5', 0).done()]).is_err());
    assert!(layer(&[Block::new(b".wh.x", b'2', 0).link(b"y").done()]).is_err());
    assert!(layer(&[Block::new(b"y", b'1', 0).link(b".wh.x").done()]).is_err());
    let bytes = end(&[file(".wh.x", b"")]);
    assert!(Reader::oci_layer(&bytes[..], &Limits::default()).next().is_err(), "`next` has no word for it");
}

#[test]
fn every_cut_is_an_error() {
    let parts =
        [pax(&[("mtime", b"1")]), file("a", &[b'x'; 600]), long(b'L', b"long"), file("b", b"y"), file("empty", b"")];
    let bytes = end(&parts);
    for cut in (0..bytes.len()).step_by(512).chain([1, 511, 513, bytes.len() - 1]) {
        let error = list(&bytes[..cut]).expect_err("it is cut");
        assert!(matches!(error, FormatError::Truncated { .. }), "{cut}: {error}");
    }
    let mut padded = bytes.clone();
    padded.extend([0; 10240]);
    assert!(list(&padded).is_ok(), "records are padded with zeros");
}

#[test]
fn limits_stop_an_archive() {
    let limits = Limits { max_entries: 100, max_output: 1000, ..Limits::default() };
    let many = end(&vec![file("a", b""); 101]);
    let list = |bytes: &[u8]| list_with(Reader::new(bytes, &limits));
    assert!(matches!(list(&many), Err(FormatError::Limit { limit: 100, .. })));
    let extensions = end(&vec![extension(b'g', b""); 101]);
    assert!(matches!(list(&extensions), Err(FormatError::Limit { limit: 100, .. })));
    assert!(matches!(list(&end(&[file("a", &[0; 1001])])), Err(FormatError::Limit { limit: 1000, .. })));
}

#[test]
fn extended_attributes_are_bounded_each_and_all_together() {
    let with =
        |name: &str, length: usize| [pax(&[("SCHILY.xattr.user.a", &vec![b'x'; length])]), file(name, b"")].concat();
    assert!(list(&end(&[with("a", 64 << 10)])).is_ok(), "as much as Linux takes");
    let error = list(&end(&[with("a", (64 << 10) + 1)])).expect_err("one byte more").to_string();
    assert!(error.contains("`a`") && error.contains("`user.a`") && error.contains("65537"), "{error}");
    // All entries of an archive are held at once.
    let limits = Limits { max_metadata: 4000, ..Limits::default() };
    let list = |parts: &[Vec<u8>]| list_with(Reader::new(&end(parts)[..], &limits));
    assert!(list(&[with("a", 1900), with("b", 1900)]).is_ok());
    let error = list(&[with("a", 1900), with("b", 1900), with("c", 1900)]).expect_err("all together");
    assert!(matches!(error, FormatError::Limit { limit: 4000, .. }), "{error}");
    // An attribute without a value costs something, too.
    let names: Vec<String> = (0..70).map(|at| format!("SCHILY.xattr.{at}")).collect();
    let empty = pax(&names.iter().map(|name| (name.as_str(), &b""[..])).collect::<Vec<_>>());
    assert!(matches!(list(&[empty, file("a", b"")]), Err(FormatError::Limit { limit: 4000, .. })));
}

#[test]
fn an_error_is_not_followed_by_an_end() {
    let bytes = end(&[file("../x", b"")]);
    let mut reader = Reader::new(&bytes[..], &Limits::default());
    assert!(reader.next().is_err());
    assert!(reader.next().is_err());
    assert_eq!(reader.read(&mut [0; 8]).expect("no content"), 0);
}

fn sample() -> Vec<u8> {
    end(&[
        pax(&[("path", b"some/name"), ("mtime", b"1"), ("SCHILY.xattr.user.a", b"1")]),
        file("a", b"content"),
        long(b'L', b"long"),
        Block::new(b"b", b'2', 0).gnu().link(b"x").done(),
        Block::new(b"c", b'1', 0).link(b"a").done(),
    ])
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = list(&bytes);
    }

    #[test]
    fn no_flipped_bit_makes_it_panic_or_lets_a_name_out(at in 0..sample().len() * 8, repair: bool) {
        let mut bytes = sample();
        bytes[at / 8] ^= 1 << (at % 8);
        if repair {
            // The deeper checks are behind the checksum.
            for block in bytes.chunks_mut(512) {
                if block[257..262] == *b"ustar" {
                    let fixed = Block(block.try_into().expect("512 bytes")).done();
                    block.copy_from_slice(&fixed);
                }
            }
        }
        let _ = list(&bytes);
        let _ = list_with(Reader::oci_layer(&bytes[..], &Limits::default()));
    }
}

/// What a tool prints on stdout; it must be there.
fn run(tool: &mut Command, install: &str) -> String {
    let output = tool.output().unwrap_or_else(|error| panic!("{tool:?}: {error}; install {install}"));
    assert!(output.status.success(), "{tool:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn real_gnu_tar_writes_what_we_read() {
    let root = tempfile::tempdir().expect("a directory");
    let script = r#"
        set -e
        umask 022
        mkdir -p tree/dir/sub && cd tree
        printf hello > file && ln file dir/hard && ln -s ../file dir/sym && mkfifo pipe && : > empty
        long=$(printf 'n%.0s' $(seq 120)) && printf long > dir/sub/$long && ln -s $long/$long dir/longlink
        head -c 5000 /dev/zero > dir/zeros
        chmod 4755 file && touch -h -d '2001-02-03 04:05:06.789 UTC' file dir/sym
        touch -d '1960-01-01 00:00:00 UTC' empty
        cd ..
        for format in v7 ustar gnu pax; do
            [ $format = v7 ] && only='--exclude=pipe --exclude=n* --exclude=longlink --exclude=empty' || only=
            [ $format = ustar ] && only='--exclude=longlink --exclude=empty --exclude=nn*'
            tar --sort=name --format=$format $only --owner=0 --group=0 -C tree -cf $format.tar .
        done
        find tree -printf '%P|%y|%m|%T@|%l\n' | LC_ALL=C sort > listing
    "#;
    run(Command::new("bash").arg("-c").arg(script).current_dir(root.path()), "bash and GNU tar");
    let listing = std::fs::read_to_string(root.path().join("listing")).expect("written above");
    for format in ["v7", "ustar", "gnu", "pax"] {
        let bytes = std::fs::read(root.path().join(format!("{format}.tar"))).expect("written above");
        let mut reader = Reader::new(&bytes[..], &Limits::default());
        let mut ours = std::collections::BTreeMap::new();
        while let Some(entry) = reader.next().expect(format) {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).expect("content");
            let link = if let Kind::Symlink { target } = &entry.kind { target.clone() } else { String::new() };
            ours.insert(entry.path.relative().to_owned(), (entry.kind.clone(), entry.mode, entry.mtime, link, content));
        }
        let mut compared = 0;
        for line in listing.lines() {
            let fields: Vec<&str> = line.split('|').collect();
            let Some((kind, mode, mtime, link, content)) = ours.get(fields[0]) else {
                assert!(matches!(format, "v7" | "ustar"), "{format} has no {line}");
                continue;
            };
            compared += 1;
            let (seconds, fraction) = fields[3].split_once('.').expect("find prints fractions");
            let mut expected: i64 = seconds.parse().expect("a number");
            if expected < 0 && fraction.bytes().any(|b| b != b'0') {
                expected -= 1;
            }
            assert_eq!(
                (*mtime, format!("{mode:o}").as_str(), link.as_str()),
                (expected, fields[2], fields[4]),
                "{line}"
            );
            match (fields[1], kind) {
                ("d", Kind::Dir) | ("l", Kind::Symlink { .. }) | ("p", Kind::Fifo) => {}
                ("f", Kind::File { .. }) => {
                    let path = root.path().join("tree").join(fields[0]);
                    assert_eq!(*content, std::fs::read(path).expect("there"), "{line}");
                }
                ("f", Kind::Hardlink { target }) => assert!(ours.contains_key(target.relative())),
                other => panic!("{format}: {line} is {other:?}"),
            }
        }
        assert_eq!(compared, ours.len(), "{format}");
        assert!(compared >= 7, "{format}");
    }
}

#[test]
fn real_python_reads_what_we_read() {
    // Each archive that we accept means the same to Python's tarfile and to GNU tar.
    let root = tempfile::tempdir().expect("a directory");
    let archives = [
        end(&[
            file("a", b"hello"),
            Block::new(b"b", b'1', 0).link(b"a").done(),
            Block::new(b"c", b'2', 0).link(b"/x").done(),
        ]),
        end(&[pax(&[("path", b"some/long name"), ("mtime", b"77.5"), ("uid", b"5000000")]), file("x", b"pax")]),
        end(&[long(b'L', b"gnu/long"), Block::new(b"gn", b'0', 3).gnu().with(b"gnu")]),
        end(&[long(b'L', b"both"), pax(&[("path", b"both")]), Block::new(b"x", b'0', 0).done()]),
        end(&[extension(b'g', &record("comment", b"5")), file("a", b""), Block::new(b"d/", b'5', 0).done()]),
        end(&[
            Block::new(b"name", b'0', 4).put(345, b"prefix/dir").with(b"data"),
            Block::new(b"old/", 0, 0).put(257, &[0; 8]).done(),
        ]),
        end(&[Block::new(b"n", b'0', 0).gnu().put(136, &[0xff; 12]).put(108, &[0x80, 0, 0, 0, 1, 2, 3, 4]).done()]),
    ];
    let script = r#"
import sys, tarfile
for m in tarfile.open(sys.argv[1]):
    kind = "d" if m.isdir() else "l" if m.issym() else "h" if m.islnk() else "f"
    print(m.name.rstrip("/"), kind, m.linkname, m.size, oct(m.mode), m.uid, m.gid, int(m.mtime // 1), m.offset_data)
"#;
    for (index, bytes) in archives.iter().enumerate() {
        let path = root.path().join(format!("{index}.tar"));
        std::fs::write(&path, bytes).expect("a writable directory");
        let mut reader = Reader::new(&bytes[..], &Limits::default());
        let (mut ours, mut names) = (String::new(), String::new());
        while let Some(entry) = reader.next().expect("a good archive") {
            let (kind, link, size) = match &entry.kind {
                Kind::File { size } => ("f", String::new(), *size),
                Kind::Dir => ("d", String::new(), 0),
                Kind::Symlink { target } => ("l", target.clone(), 0),
                Kind::Hardlink { target } => ("h", target.relative().to_owned(), 0),
                other => panic!("{other:?}"),
            };
            let (name, at) = (entry.path.relative(), reader.content_offset());
            let Entry { mode, uid, gid, mtime, .. } = entry;
            ours.push_str(&format!("{name} {kind} {link} {size} 0o{mode:o} {uid} {gid} {mtime} {at}\n"));
            names.push_str(&format!("{name}\n"));
        }
        assert_eq!(run(Command::new("python3").args(["-c", script]).arg(&path), "python3"), ours, "archive {index}");
        let listed = run(Command::new("tar").arg("-tf").arg(&path), "GNU tar");
        assert_eq!(listed.replace("/\n", "\n"), names, "archive {index}");
    }
}
