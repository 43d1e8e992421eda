//! Local headers (APPNOTE 4.3.7) and data descriptors (4.3.9): both must repeat the central directory.

use std::io::{Read, Seek};

use super::directory::{Central, DESCRIPTOR, ENCRYPTED, Extra, UTF8, read_at, u16_at, u32_at, u64_at};
use super::{FORMAT, ZipEntry, malformed, refused};
use crate::format::FormatError;
use crate::path::ImagePath;

const HEADER: &[u8; 4] = b"PK\x03\x04";
const HEADER_LENGTH: u64 = 30;
const DESCRIPTOR_MAGIC: &[u8; 4] = b"PK\x07\x08";

/// Checks every local header, and that entries fill the archive from its start to `end` without gap or overlap.
pub(super) fn check<R: Read + Seek>(
    file: &mut R,
    directory: Vec<Central>,
    end: u64,
) -> Result<Vec<ZipEntry>, FormatError> {
    let mut order: Vec<usize> = (0..directory.len()).collect();
    order.sort_by_key(|index| directory[*index].offset);
    let mut data_offsets = vec![0; directory.len()];
    let mut at = 0;
    for (position, index) in order.iter().enumerate() {
        let central = &directory[*index];
        if central.offset != at {
            let what = if central.offset < at { "overlaps what is before it" } else { "has unlisted data before it" };
            return Err(refused(&central.name, what));
        }
        let next = order.get(position + 1).map_or(end, |next| directory[*next].offset);
        let data = header(file, central)?;
        data_offsets[*index] = data;
        let data_end = data
            .checked_add(central.compressed_size)
            .filter(|data_end| *data_end <= next)
            .ok_or_else(|| refused(&central.name, "its content overlaps what follows it"))?;
        at = data_end + descriptor(file, central, data_end, next - data_end)?;
    }
    if at != end {
        return Err(malformed(at, "unlisted data stands before the central directory"));
    }
    directory.into_iter().zip(data_offsets).map(|(central, data_offset)| entry(central, data_offset)).collect()
}

fn entry(central: Central, data_offset: u64) -> Result<ZipEntry, FormatError> {
    let Central { name, method, mode, mtime, crc32, compressed_size, size, .. } = central;
    let bad = |why| FormatError::Name { format: FORMAT, name: name.clone(), why };
    let path = format!("/{}", name.trim_end_matches('/'));
    crate::path::check(&path).map_err(bad)?;
    let path = ImagePath::new(path).map_err(|_| bad("it is not a path inside an image"))?;
    Ok(ZipEntry { path, mode, mtime, crc32, compressed_size, size, method, data_offset, name })
}

/// Compares a local header with its central one; gives the offset of the content.
fn header<R: Read + Seek>(file: &mut R, central: &Central) -> Result<u64, FormatError> {
    let differs = |what: &str| refused(&central.name, format!("its local header tells another {what}"));
    let fixed = read_at(file, central.offset, HEADER_LENGTH, "a local header")?;
    if !fixed.starts_with(HEADER) {
        return Err(refused(&central.name, "there is no local header where the directory says"));
    }
    let (name_length, extra_length) = (u64::from(u16_at(&fixed, 26)), u64::from(u16_at(&fixed, 28)));
    let rest = read_at(file, central.offset + HEADER_LENGTH, name_length + extra_length, "a local header")?;
    let (name, extra) = rest.split_at(name_length as usize);
    if name != central.name.as_bytes() {
        return Err(differs("name"));
    }
    let meaning = ENCRYPTED | DESCRIPTOR | UTF8;
    if (u16_at(&fixed, 6) ^ central.flags) & meaning != 0 {
        return Err(differs("set of flags"));
    }
    let method = match central.method {
        super::Method::Stored => 0,
        super::Method::Deflated => 8,
    };
    if u16_at(&fixed, 8) != method {
        return Err(differs("compression method"));
    }
    let extra = Extra::parse(extra, central.offset)?;
    extra.check(name, &central.name)?;
    let (crc32, mut compressed_size, mut size) =
        (u32_at(&fixed, 14), u64::from(u32_at(&fixed, 18)), u64::from(u32_at(&fixed, 22)));
    if !extra.widen(&mut [&mut size, &mut compressed_size]) {
        return Err(refused(&central.name, "its local zip64 field does not fit its header"));
    }
    let told = (crc32, compressed_size, size);
    let expected = (central.crc32, central.compressed_size, central.size);
    // With a descriptor, the header is written before the content is known.
    if told != expected && !(central.flags & DESCRIPTOR != 0 && told == (0, 0, 0)) {
        return Err(differs("size or CRC-32"));
    }
    Ok(central.offset + HEADER_LENGTH + name_length + extra_length)
}

/// What stands between the content and the next header: nothing, or the announced descriptor, in one of its four shapes.
fn descriptor<R: Read + Seek>(file: &mut R, central: &Central, at: u64, length: u64) -> Result<u64, FormatError> {
    if length == 0 && central.flags & DESCRIPTOR == 0 {
        return Ok(0);
    }
    let bad = || refused(&central.name, "what follows its content is not the descriptor that its header announces");
    if central.flags & DESCRIPTOR == 0 || ![12, 16, 20, 24].contains(&length) {
        return Err(bad());
    }
    let bytes = read_at(file, at, length, "a data descriptor")?;
    let fields = match length {
        12 | 20 => &bytes[..],
        _ => bytes.strip_prefix(DESCRIPTOR_MAGIC).ok_or_else(bad)?,
    };
    let told = if fields.len() == 12 {
        (u32_at(fields, 0), u64::from(u32_at(fields, 4)), u64::from(u32_at(fields, 8)))
    } else {
        (u32_at(fields, 0), u64_at(fields, 4), u64_at(fields, 12))
    };
    if told == (central.crc32, central.compressed_size, central.size) { Ok(length) } else { Err(bad()) }
}
