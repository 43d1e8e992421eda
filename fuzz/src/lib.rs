//! What the fuzz targets share: limits that keep a run small, readers that give little at a time, and archives whose
//! checksums hold, so that a changed byte is judged by the check it was meant for and not by the sum before it.

use std::io::{self, BufRead, Read};

use base64::Engine as _;
use layers::format::Limits;
use layers::{Digest, ImagePath, Platform};

/// Limits under which one input costs little time and at most some 64 MiB of memory.
pub fn limits() -> Limits {
    Limits {
        max_output: 4 << 20,
        max_ratio: 200,
        free_output: 1 << 20,
        max_entries: 1000,
        max_path: 4095,
        max_extended_header: 64 << 10,
        max_metadata: 1 << 20,
        max_xz_memory: 32 << 20,
        max_zstd_window_log: 22,
    }
}

/// The longest start of the input that is text.
pub fn text(data: &[u8]) -> &str {
    match std::str::from_utf8(data) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&data[..error.valid_up_to()]).expect("the part before the error is UTF-8"),
    }
}

/// Splits the input at `separator` into at most `N` parts; missing ones are empty.
pub fn parts<const N: usize>(data: &[u8], separator: u8) -> [&[u8]; N] {
    let mut all = data.splitn(N, |byte| *byte == separator);
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

/// Reads at most `step` bytes at a time: where a reader's answer depends on that, it is wrong.
pub struct Dribble<R> {
    /// What is read.
    pub inner: R,
    /// Bytes, at least one.
    pub step: usize,
}

impl<R: Read> Read for Dribble<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.step);
        self.inner.read(&mut buffer[..length])
    }
}

impl<R: BufRead> BufRead for Dribble<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let available = self.inner.fill_buf()?;
        Ok(&available[..available.len().min(self.step)])
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

/// What every path of an accepted archive keeps: absolute in the image, normal, and no way out of it.
#[track_caller]
pub fn check_path(path: &ImagePath) {
    let text = path.as_str();
    assert!(text.starts_with('/') && text.len() <= 4095 && !text.contains('\0'), "{text:?}");
    assert!(path.is_root() || !text.ends_with('/'), "{text:?}");
    if !path.is_root() {
        for part in text[1..].split('/') {
            assert!(!matches!(part, "" | "." | "..") && !part.starts_with(".wh.") && part.len() <= 255, "{text:?}");
        }
    }
}

/// What every file name keeps that ends in a cache.
#[track_caller]
pub fn check_file_name(name: &str) {
    let bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0', '\n']);
    assert!(!bad, "{name:?}");
}

/// Both platforms, with the interpreter of the images.
pub fn targets() -> [imgbuild::python::Target; 2] {
    Platform::ALL.map(|platform| imgbuild::python::Target::trixie(platform, "3.13.5").expect("a version of Python"))
}

/// Writes the right sum into every tar header, wherever one stands: also in a plain member of a package.
pub fn repair_tar(bytes: &mut [u8]) {
    let mut at = 257;
    while at + 255 <= bytes.len() {
        if &bytes[at..at + 5] == b"ustar" {
            let block = &mut bytes[at - 257..at + 255];
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        at += 1;
    }
}

/// A file of an archive that is made here.
pub struct Packed {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
    /// Type and permission bits.
    pub mode: u32,
}

impl Packed {
    /// A file with mode 0644.
    pub fn new(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Packed {
        Packed { name: name.into(), content: content.into(), mode: 0o100_644 }
    }
}

/// A zip archive of stored files whose every number is right.
pub fn zip(files: &[Packed]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let offset = bytes.len() as u32;
        let flags: u16 = if file.name.is_ascii() { 0 } else { 1 << 11 };
        let mut common = [flags.to_le_bytes(), [0; 2]].concat();
        common.extend((4u16 << 11).to_le_bytes());
        common.extend((44u16 << 9 | 2 << 5 | 3).to_le_bytes());
        common.extend(crc32fast::hash(&file.content).to_le_bytes());
        common.extend((file.content.len() as u32).to_le_bytes());
        common.extend((file.content.len() as u32).to_le_bytes());
        common.extend((file.name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        bytes.extend(b"PK\x03\x04\x14\0");
        bytes.extend(&common);
        bytes.extend(file.name.as_bytes());
        bytes.extend(&file.content);
        directory.extend(b"PK\x01\x02\x14\x03\x14\0");
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend((file.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(file.name.as_bytes());
    }
    let (count, start) = ((files.len() as u16).to_le_bytes(), bytes.len() as u32);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count, count].concat());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}

/// The line of a RECORD for a file.
pub fn record_line(name: &str, content: &[u8]) -> String {
    let digest = *Digest::of(content).as_bytes();
    let hash = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest);
    let quoted = name.replace('"', "\"\"");
    format!("\"{quoted}\",sha256={hash},{}\r\n", content.len())
}

/// A wheel `x-1` of these files, its RECORD right; METADATA and WHEEL are added unless they are there.
pub fn wheel(mut files: Vec<Packed>) -> Vec<u8> {
    for (name, content) in [
        ("x-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: x\nVersion: 1\n"),
        ("x-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
    ] {
        if !files.iter().any(|file| file.name == name) {
            files.push(Packed::new(name, content));
        }
    }
    if !files.iter().any(|file| file.name == "x-1.dist-info/RECORD") {
        let mut record: String = files.iter().map(|file| record_line(&file.name, &file.content)).collect();
        record.push_str("x-1.dist-info/RECORD,,\r\n");
        files.push(Packed::new("x-1.dist-info/RECORD", record));
    }
    zip(&files)
}

/// What `read` says with the whole input at once, and a few bytes at a time, must be the same.
#[track_caller]
pub fn same_however_read<T: PartialEq + std::fmt::Debug>(data: &[u8], read: impl Fn(Dribble<&[u8]>) -> T) -> T {
    let whole = read(Dribble { inner: data, step: usize::MAX });
    let step = 1 + data.len() % 7;
    assert_eq!(whole, read(Dribble { inner: data, step }), "read {step} bytes at a time");
    whole
}

/// What the name of an ar member keeps.
#[track_caller]
pub fn check_member_name(name: &str) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
    assert!(!name.is_empty() && name.len() <= 16 && name.bytes().all(plain), "{name:?}");
}

/// Reads a Python lock and chooses wheels for both platforms: each is one that the lock names by its digest.
#[track_caller]
pub fn python_lock(selection: &layers::source::LockSelection, lock: &[u8], beside: &[u8]) {
    use imgbuild::python::{Wheel, read_lock_bytes, select};
    let files = |_: &str| Ok(beside.to_vec());
    let Ok(set) = read_lock_bytes(selection, lock, &files) else { return };
    let all = [lock, beside].concat();
    // Both TOML and pip join lines at a backslash.
    let known = String::from_utf8_lossy(&all).to_ascii_lowercase().replace("\\\r\n", "").replace("\\\n", "");
    for package in &set.packages {
        for edge in package.dependencies.iter().chain(package.optional.values().flatten()) {
            assert!(edge.to < set.packages.len(), "{} needs a package that is not there", package.label());
        }
        for file in &package.files {
            check_file_name(&file.name);
        }
    }
    assert!(set.roots.iter().all(|edge| edge.to < set.packages.len()));
    for target in targets() {
        let Ok(wheels) = select(&set, &target) else { continue };
        assert!(wheels.windows(2).all(|pair| pair[0].name < pair[1].name), "one wheel a name, sorted");
        for Wheel { name, file, sha256, .. } in &wheels {
            check_file_name(file);
            assert!(file.ends_with(".whl"), "{file}");
            assert!(!name.is_empty() && *name == imgbuild::python::normalised(name), "{name:?}");
            assert!(known.contains(&sha256.hex()), "the lock does not name {file} by {sha256}");
        }
    }
}
