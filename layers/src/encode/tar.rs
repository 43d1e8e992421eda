//! Canonical tar headers: ustar, with PAX records only where ustar cannot say it (POSIX.1-2017, pax).

use tar::{EntryType, Header};

use super::entry::{Entry, Kind};

/// The block size of tar, bytes.
pub(super) const BLOCK: u64 = 512;

/// Bytes that pad content of `size` bytes to whole blocks.
pub(super) fn padding(size: u64) -> usize {
    ((BLOCK - size % BLOCK) % BLOCK) as usize
}

/// Appends the header of `entry`, preceded by a PAX header where one is needed.
pub(super) fn write_header(out: &mut Vec<u8>, entry: &Entry) {
    let mut name = entry.path.relative().to_owned();
    if entry.is_dir() {
        name.push('/');
    }
    let link = match &entry.kind {
        Kind::Symlink { target } => target.as_str(),
        Kind::Hardlink { target } => target.relative(),
        _ => "",
    };
    let size = if let Kind::File { size } = entry.kind { size } else { 0 };

    // In byte order of the keywords, so that there is one way to write them.
    let mut records: Vec<(String, &[u8])> = Vec::new();
    for (attribute, value) in &entry.xattrs {
        records.push((format!("SCHILY.xattr.{attribute}"), value));
    }
    let gid = entry.gid.to_string();
    let uid = entry.uid.to_string();
    let size_text = size.to_string();
    let mtime_text = entry.mtime.to_string();
    let split = split_name(&name);
    if entry.gid > 0o777_7777 {
        records.push(("gid".into(), gid.as_bytes()));
    }
    if link.len() > 100 || !link.is_ascii() {
        records.push(("linkpath".into(), link.as_bytes()));
    }
    if !(0..=0o777_7777_7777).contains(&entry.mtime) {
        records.push(("mtime".into(), mtime_text.as_bytes()));
    }
    if split.is_none() {
        records.push(("path".into(), name.as_bytes()));
    }
    if size > 0o777_7777_7777 {
        records.push(("size".into(), size_text.as_bytes()));
    }
    if entry.uid > 0o777_7777 {
        records.push(("uid".into(), uid.as_bytes()));
    }
    if !records.is_empty() {
        write_pax(out, entry, &records);
    }

    let kind = match entry.kind {
        Kind::File { .. } => EntryType::Regular,
        Kind::Dir => EntryType::Directory,
        Kind::Symlink { .. } => EntryType::Symlink,
        Kind::Hardlink { .. } => EntryType::Link,
        Kind::CharDevice { .. } => EntryType::Char,
        Kind::BlockDevice { .. } => EntryType::Block,
        Kind::Fifo => EntryType::Fifo,
    };
    let mut header = Header::new_ustar();
    let (prefix, short) = split.unwrap_or_else(|| ("", ascii_tail(&name)));
    if let Some(fields) = header.as_ustar_mut() {
        fields.name[..short.len()].copy_from_slice(short.as_bytes());
        fields.prefix[..prefix.len()].copy_from_slice(prefix.as_bytes());
        let link = if link.len() > 100 || !link.is_ascii() { "" } else { link };
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    }
    header.set_entry_type(kind);
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(if entry.uid > 0o777_7777 { 0 } else { u64::from(entry.uid) });
    header.set_gid(if entry.gid > 0o777_7777 { 0 } else { u64::from(entry.gid) });
    header.set_size(if size > 0o777_7777_7777 { 0 } else { size });
    header.set_mtime(u64::try_from(entry.mtime).unwrap_or(0).min(0o777_7777_7777));
    let (major, minor) = match entry.kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => (major, minor),
        _ => (0, 0),
    };
    header.set_device_major(major).expect("a ustar header has device fields");
    header.set_device_minor(minor).expect("a ustar header has device fields");
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
}

/// How ustar would hold `name`: prefix of at most 155 and name of at most 100 bytes, cut at the last `/` that fits.
fn split_name(name: &str) -> Option<(&str, &str)> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= 100 {
        return Some(("", name));
    }
    let end = name.len() - usize::from(name.ends_with('/'));
    let first = name.len().saturating_sub(101);
    let cut = name.as_bytes()[..end.min(156)].iter().rposition(|&byte| byte == b'/')?;
    (cut >= first && cut > 0).then(|| (&name[..cut], &name[cut + 1..]))
}

/// What old readers see where the real name is in a PAX record.
fn ascii_tail(name: &str) -> &str {
    let tail = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if tail.is_ascii() && !tail.is_empty() && tail.len() <= 100 { tail } else { "long-name" }
}

fn write_pax(out: &mut Vec<u8>, entry: &Entry, records: &[(String, &[u8])]) {
    let mut body = Vec::new();
    for (keyword, value) in records {
        // "%d %s=%s\n" where the number counts itself.
        let rest = keyword.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {keyword}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    let mut header = Header::new_ustar();
    if let Some(fields) = header.as_ustar_mut() {
        let name = format!("PaxHeaders.0/{}", ascii_tail(entry.path.relative()));
        let name = &name.as_bytes()[..name.len().min(100)];
        fields.name[..name.len()].copy_from_slice(name);
    }
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(body.len() as u64);
    header.set_mtime(0);
    header.set_device_major(0).expect("a ustar header has device fields");
    header.set_device_minor(0).expect("a ustar header has device fields");
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    let pad = padding(body.len() as u64);
    out.extend_from_slice(&body);
    out.resize(out.len() + pad, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImagePath;
    use std::io::Read as _;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry::new(ImagePath::new(path).expect("good path"), kind, 0o644, super::super::EPOCH)
    }

    /// Reads our headers back with the `tar` crate: `path type link mode uid mtime`.
    fn listing(entries: &[Entry]) -> Vec<String> {
        let mut bytes = Vec::new();
        for entry in entries {
            write_header(&mut bytes, entry);
        }
        bytes.resize(bytes.len() + 1024, 0);
        let mut archive = ::tar::Archive::new(bytes.as_slice());
        let mut lines = Vec::new();
        for found in archive.entries().expect("readable") {
            let mut found = found.expect("readable");
            let mut content = String::new();
            found.read_to_string(&mut content).expect("no content");
            lines.push(format!(
                "{} {:?} {} {:o} {} {}",
                found.path().expect("has a path").display(),
                found.header().entry_type(),
                found.link_name().expect("readable").map(|l| l.display().to_string()).unwrap_or_default(),
                found.header().mode().expect("has a mode"),
                found.header().uid().expect("has an owner"),
                found.header().mtime().expect("has a time"),
            ));
        }
        lines
    }

    #[test]
    fn names_of_every_length_read_back_as_written() {
        for length in [1, 50, 99, 100, 101, 155, 156, 200, 254, 255] {
            let name = "n".repeat(length);
            for path in [
                format!("/{name}"),
                format!("/d/{name}"),
                format!("/{}/{name}", "d".repeat(155)),
                format!("/ü/{}x", "é".repeat(length / 4)),
            ] {
                let lines = listing(&[entry(&path, Kind::File { size: 0 })]);
                assert_eq!(lines, [format!("{} Regular  644 0 1577836800", &path[1..])]);
            }
        }
    }

    #[test]
    fn long_directories_keep_their_slash() {
        let path = format!("/{}/{}", "a".repeat(90), "b".repeat(99));
        assert_eq!(listing(&[entry(&path, Kind::Dir)]), [format!("{}/ Directory  644 0 1577836800", &path[1..])]);
    }

    #[test]
    fn links_of_every_length_read_back_as_written() {
        for target in ["t".to_owned(), "t".repeat(100), "t".repeat(101), "../ü".to_owned()] {
            let lines = listing(&[entry("/l", Kind::Symlink { target: target.clone() })]);
            assert_eq!(lines, [format!("l Symlink {target} 644 0 1577836800")]);
        }
    }

    #[test]
    fn sizes_read_back_whether_octal_digits_suffice_or_not() {
        for size in [7, (8 << 30) - 1, 8 << 30, (8 << 30) + 1, 10 << 40] {
            let mut bytes = Vec::new();
            write_header(&mut bytes, &entry("/large", Kind::File { size }));
            let mut archive = ::tar::Archive::new(bytes.as_slice());
            let found = archive.entries().expect("readable").next().expect("one").expect("readable");
            assert_eq!((found.size(), bytes.len() == 512), (size, size < 8 << 30));
        }
    }

    #[test]
    fn plain_entries_need_no_pax_header() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, &entry("/usr/bin/x", Kind::File { size: 7 }));
        assert_eq!(bytes.len(), 512);
    }
}
