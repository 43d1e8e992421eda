//! Debian binary packages (deb(5)): what the package manager reads before it runs anything.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::ar::{self, Member};
use super::error::lossy;
use super::{ANNOUNCED, Compression, FormatError, Limits, decoder_memory, decompress_as, tar};
use crate::encode::Kind;

const FORMAT: &str = "Debian package";

/// A package whose control files are read and whose data waits to be.
pub struct Deb<R> {
    file: R,
    limits: Limits,
    control: BTreeMap<String, Vec<u8>>,
    data: Member,
    compression: Compression,
}

impl<R: Read + Seek + Send> Deb<R> {
    /// Reads the members' list and the control files.
    ///
    /// The members must be `debian-binary` (saying `2.` and a minor version), `control.tar` and `data.tar`, each once and
    /// in this order, the last two plain or with `.gz`, `.xz` or `.zst` and compressed as they say. Members whose names
    /// start with `_`, which deb(5) leaves to others, are passed over.
    pub fn open(mut file: R, limits: &Limits) -> Result<Deb<R>, FormatError> {
        let members = ar::members(&mut file, 16)?;
        let mut members = members.into_iter().filter(|member| !member.name.starts_with('_'));
        let mut take = |stem: &'static str| {
            let member = members.next().ok_or_else(|| malformed(0, format!("it has no `{stem}`")))?;
            match member.name.strip_prefix(stem) {
                Some(rest) => Ok((compression(stem, rest, &member)?, member)),
                None => Err(malformed(member.offset, format!("`{}` stands where `{stem}` should", member.name))),
            }
        };
        let (_, version) = take("debian-binary")?;
        let (control_compression, control) = take("control.tar")?;
        let (data_compression, data) = take("data.tar")?;
        if let Some(extra) = members.next() {
            return Err(malformed(extra.offset, format!("`{}` follows `{}`", extra.name, data.name)));
        }
        check_version(&mut file, &version)?;
        let control = {
            let reader = decompress_as(control_compression, part(&mut file, &control)?, limits)?;
            control_files(reader, limits)?
        };
        Ok(Deb { file, limits: *limits, control, data, compression: data_compression })
    }

    /// The control files by name: `control` for sure; `preinst`, `postinst`, `prerm`, `postrm`, `md5sums`, `conffiles`,
    /// `triggers`, `shlibs` and others if the package has them.
    pub fn control_files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.control
    }

    /// The bytes that the decoder of data.tar will hold.
    pub fn decoder_memory(&mut self) -> Result<u64, FormatError> {
        let mut head = Vec::with_capacity(ANNOUNCED);
        part(&mut self.file, &self.data)?.take(ANNOUNCED as u64).read_to_end(&mut head)?;
        Ok(decoder_memory(&head, &self.limits))
    }

    /// The decompressed data.tar, from its start; read it with [`tar::Reader`].
    pub fn data(&mut self) -> Result<Box<dyn Read + Send + '_>, FormatError> {
        decompress_as(self.compression, part(&mut self.file, &self.data)?, &self.limits)
    }
}

fn malformed(at: u64, why: impl Into<String>) -> FormatError {
    FormatError::Malformed { format: FORMAT, at, why: why.into() }
}

/// What the rest of a member's name says; `debian-binary` has none.
fn compression(stem: &str, rest: &str, member: &Member) -> Result<Compression, FormatError> {
    let unsupported = || FormatError::Unsupported {
        format: FORMAT,
        name: member.name.clone(),
        what: format!("`{rest}` compression"),
    };
    match (stem, rest) {
        (_, "") => Ok(Compression::None),
        ("debian-binary", _) => Err(malformed(member.offset, format!("`{}` is not `{stem}`", member.name))),
        (_, ".gz") => Ok(Compression::Gzip),
        (_, ".xz") => Ok(Compression::Xz),
        (_, ".zst") => Ok(Compression::Zstd),
        _ => Err(unsupported()),
    }
}

fn part<'a, R: Read + Seek>(
    file: &'a mut R,
    member: &Member,
) -> Result<impl std::io::BufRead + use<'a, R>, FormatError> {
    file.seek(SeekFrom::Start(member.offset))?;
    Ok(BufReader::with_capacity(64 << 10, file.take(member.size)))
}

fn check_version<R: Read + Seek>(file: &mut R, member: &Member) -> Result<(), FormatError> {
    let mut text = Vec::new();
    part(file, member)?.take(64).read_to_end(&mut text)?;
    let line = text.strip_suffix(b"\n").filter(|line| !line.contains(&b'\n'));
    let minor = line.and_then(|line| line.strip_prefix(b"2."));
    match minor {
        Some(minor) if !minor.is_empty() && minor.iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(malformed(member.offset, format!("its format version is `{}`, not 2.x", lossy(&text)))),
    }
}

/// All files of control.tar: regular files directly in its root.
fn control_files(reader: impl Read, limits: &Limits) -> Result<BTreeMap<String, Vec<u8>>, FormatError> {
    let mut archive = tar::Reader::new(reader, limits);
    let mut files = BTreeMap::new();
    let mut total = 0;
    while let Some(entry) = archive.next()? {
        let name = entry.path.relative();
        let refused =
            |why: &str| FormatError::Entry { format: FORMAT, name: format!("control.tar: {name}"), why: why.into() };
        let size = match entry.kind {
            Kind::Dir if entry.path.is_root() => continue,
            Kind::File { size } if !name.contains('/') => size,
            _ => return Err(refused("control files are regular files, in no directory")),
        };
        total += size;
        if total > limits.max_metadata {
            let limit = limits.max_metadata;
            return Err(FormatError::Limit { format: FORMAT, what: "the size of its control files in bytes", limit });
        }
        let mut content = Vec::new();
        archive.read_to_end(&mut content)?;
        if files.insert(name.to_owned(), content).is_some() {
            return Err(refused("it is there twice"));
        }
    }
    if files.contains_key("control") { Ok(files) } else { Err(malformed(0, "its control.tar has no file `control`")) }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};
    use std::process::Command;

    use super::*;
    use crate::format::ar::tests::archive;
    use crate::format::tar::samples::{Block, end, file};

    type Made<'a> = Vec<(&'a str, Vec<u8>)>;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything")
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        encoder.write_all(bytes).expect("a vector takes everything");
        encoder.finish().expect("a vector takes everything")
    }

    fn control() -> Vec<u8> {
        let root = Block::new(b"./", b'5', 0).done();
        end(&[root, file("./control", b"Package: a\n"), file("./postinst", b"#!/bin/sh\n")])
    }

    fn good() -> Made<'static> {
        let data = end(&[file("./usr/bin/a", b"hello")]);
        vec![
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar.gz", gzip(&control())),
            ("data.tar.zst", zstd::stream::encode_all(&data[..], 3).expect("in memory")),
        ]
    }

    fn bytes(members: &Made<'_>) -> Vec<u8> {
        archive(&members.iter().map(|(name, content)| (*name, &content[..])).collect::<Vec<_>>())
    }

    fn open(bytes: &[u8]) -> Result<Deb<Cursor<&[u8]>>, FormatError> {
        Deb::open(Cursor::new(bytes), &Limits::default())
    }

    fn error(members: Made<'_>) -> String {
        let bytes = bytes(&members);
        open(&bytes).err().expect("it is hostile").to_string()
    }

    #[test]
    fn control_files_and_data_are_read_whatever_the_compression() {
        type Encode = fn(&[u8]) -> Vec<u8>;
        let encoders: [(&str, Encode); 4] = [
            ("", |b| b.to_vec()),
            (".gz", gzip),
            (".xz", xz),
            (".zst", |b| zstd::stream::encode_all(b, 3).expect("in memory")),
        ];
        let data = end(&[file("./usr/bin/a", b"hello")]);
        for (extension, encode) in encoders {
            let (control_name, data_name) = (format!("control.tar{extension}"), format!("data.tar{extension}/"));
            let bytes = bytes(&vec![
                ("debian-binary", b"2.0\n".to_vec()),
                ("_gpgorigin", b"a signature".to_vec()),
                (&control_name, encode(&control())),
                (&data_name, encode(&data)),
                ("_gpgbuilder", b"".to_vec()),
            ]);
            let mut deb = open(&bytes).expect("a good package");
            let names: Vec<&str> = deb.control_files().keys().map(String::as_str).collect();
            assert_eq!(names, ["control", "postinst"]);
            assert_eq!(deb.control_files()["control"], b"Package: a\n");
            for _ in 0..2 {
                let mut read = Vec::new();
                deb.data().expect("it starts").read_to_end(&mut read).expect("it ends");
                assert_eq!(read, data, "{extension}");
            }
        }
    }

    #[test]
    fn members_are_exact() {
        let with = |change: &dyn Fn(&mut Made<'static>)| {
            let mut members = good();
            change(&mut members);
            error(members)
        };
        assert!(with(&|m| m.swap(1, 2)).contains("`data.tar.zst` stands where `control.tar` should"));
        assert!(with(&|m| m.swap(0, 1)).contains("stands where `debian-binary` should"));
        assert!(with(&|m| m.push(m[2].clone())).contains("follows"));
        assert!(with(&|m| m.push(("data.tar.gz", gzip(b"")))).contains("`data.tar.gz` follows"));
        assert!(with(&|m| m.insert(2, m[1].clone())).contains("stands where `data.tar` should"));
        assert!(with(&|m| drop(m.pop())).contains("has no `data.tar`"));
        assert!(with(&|m| m.clear()).contains("has no `debian-binary`"));
        assert!(with(&|m| m.insert(1, ("extra", vec![]))).contains("`extra` stands"));
        assert!(with(&|m| m[2].0 = "data.tar.lzma").contains("lzma"));
        assert!(with(&|m| m[2].0 = "data.tar.bz2").contains("bz2"));
        assert!(with(&|m| m[1].0 = "control.tar.xz").contains("announced as a xz stream"));
        assert!(with(&|m| m[0].0 = "debian-binary.gz").contains("is not `debian-binary`"));
        for version in ["", "2.0", "3.0\n", "2.\n", "2.x\n", "2.0\nmore\n", "20\n"] {
            assert!(with(&|m| m[0].1 = version.into()).contains("format version"), "{version:?}");
        }
    }

    #[test]
    fn control_archives_hold_plain_files_alone() {
        let with = |parts: &[Vec<u8>]| {
            let mut members = good();
            members[1].1 = gzip(&end(parts));
            error(members)
        };
        let control = || file("control", b"");
        assert!(with(&[file("../control", b"")]).contains("`..`"));
        assert!(with(&[file("/etc/passwd", b"")]).contains("absolute"));
        assert!(with(&[control(), file("dir/x", b"")]).contains("in no directory"));
        assert!(with(&[control(), Block::new(b"dir", b'5', 0).done()]).contains("in no directory"));
        assert!(with(&[control(), Block::new(b"postinst", b'2', 0).put(157, b"/bin/sh").done()]).contains("regular"));
        assert!(with(&[control(), Block::new(b"postinst", b'1', 0).put(157, b"control").done()]).contains("regular"));
        assert!(with(&[control(), file("./control", b"other")]).contains("twice"));
        assert!(with(&[file("postinst", b"")]).contains("no file `control`"));
        let mut members = good();
        members[1].1 = gzip(&end(&[file("control", &[b'x'; 2000])]));
        let limits = Limits { max_metadata: 1000, ..Limits::default() };
        let refused = Deb::open(Cursor::new(bytes(&members)), &limits).err().expect("it is too large");
        assert!(matches!(refused, FormatError::Limit { limit: 1000, .. }));
    }

    #[test]
    fn no_cut_is_a_package() {
        let bytes = bytes(&good());
        for cut in 0..bytes.len() - 1 {
            let result = open(&bytes[..cut]).and_then(|mut deb| {
                let mut read = Vec::new();
                deb.data()?.read_to_end(&mut read)?;
                Ok(())
            });
            assert!(result.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn real_dpkg_deb_writes_what_we_read() {
        let root = tempfile::tempdir().expect("a directory");
        let script = r#"
            set -e
            mkdir -p p/DEBIAN p/usr/bin
            printf 'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: p\n' > p/DEBIAN/control
            printf '#!/bin/sh\n' > p/DEBIAN/postinst && chmod 755 p/DEBIAN/postinst
            printf hello > p/usr/bin/hello && ln p/usr/bin/hello p/usr/bin/again && ln -s hello p/usr/bin/link
            for z in none gzip xz; do dpkg-deb --root-owner-group -Z$z -b p $z.deb >/dev/null; done
        "#;
        let output = Command::new("bash").arg("-c").arg(script).current_dir(root.path()).output();
        let output = output.expect("bash and dpkg-deb are here; install dpkg");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for name in ["none", "gzip", "xz"] {
            let file = std::fs::File::open(root.path().join(format!("{name}.deb"))).expect("written above");
            let mut deb = Deb::open(file, &Limits::default()).expect(name);
            assert_eq!(deb.control_files().keys().collect::<Vec<_>>(), ["control", "postinst"]);
            let mut reader = tar::Reader::new(deb.data().expect("it starts"), &Limits::default());
            let mut paths = Vec::new();
            while let Some(entry) = reader.next().expect("a good archive") {
                paths.push(entry.path.to_string());
            }
            paths.sort();
            assert_eq!(paths, ["/", "/usr", "/usr/bin", "/usr/bin/again", "/usr/bin/hello", "/usr/bin/link"], "{name}");
        }
    }
}
