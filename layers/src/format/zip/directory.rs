//! The end of the archive and the central directory (APPNOTE 4.3.12 to 4.3.16).

use std::io::{Read, Seek, SeekFrom};

use super::{FORMAT, Method, malformed, name, refused};
use crate::format::{FormatError, Limits};

/// A central header, before its local one was seen.
pub(super) struct Central {
    pub(super) name: String,
    pub(super) flags: u16,
    pub(super) method: Method,
    pub(super) mode: Option<u32>,
    pub(super) mtime: i64,
    pub(super) crc32: u32,
    pub(super) compressed_size: u64,
    pub(super) size: u64,
    pub(super) offset: u64,
}

const END: &[u8; 4] = b"PK\x05\x06";
const END_LENGTH: usize = 22;
const LOCATOR: &[u8; 4] = b"PK\x06\x07";
const LOCATOR_LENGTH: u64 = 20;
const END64: &[u8; 4] = b"PK\x06\x06";
const END64_LENGTH: u64 = 56;
const HEADER: &[u8; 4] = b"PK\x01\x02";
const HEADER_LENGTH: usize = 46;

/// Flag bits (APPNOTE 4.4.4).
pub(super) const ENCRYPTED: u16 = 1 << 0;
pub(super) const DESCRIPTOR: u16 = 1 << 3;
pub(super) const UTF8: u16 = 1 << 11;
const LEVEL: u16 = 0b110;
const STRONGLY_ENCRYPTED: u16 = 1 << 6 | 1 << 13;

/// 6.3, times ten.
const LATEST_VERSION: u8 = 63;
const DOS_DIRECTORY: u32 = 0x10;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Reads `length` bytes at `at`, which must be there. Memory grows with what is there, not with what is asked for.
pub(super) fn read_at<R: Read + Seek>(
    file: &mut R,
    at: u64,
    length: u64,
    what: &'static str,
) -> Result<Vec<u8>, FormatError> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.by_ref().take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(FormatError::Truncated { format: FORMAT, what, at: at.saturating_add(bytes.len() as u64) });
    }
    Ok(bytes)
}

/// Where the central directory is and what is in it.
struct End {
    entries: u64,
    size: u64,
    offset: u64,
    /// Where the records that end the archive start: where the directory must end.
    start: u64,
}

/// Reads the central directory; also gives the offset at which it starts.
pub(super) fn read<R: Read + Seek>(file: &mut R, limits: &Limits) -> Result<(Vec<Central>, u64), FormatError> {
    let end = find_end(file)?;
    if end.entries > limits.max_entries {
        let limit = limits.max_entries;
        return Err(FormatError::Limit { format: FORMAT, what: "its number of entries", limit });
    }
    if end.size > limits.max_metadata {
        let limit = limits.max_metadata;
        return Err(FormatError::Limit { format: FORMAT, what: "the size of its directory in bytes", limit });
    }
    if end.offset.checked_add(end.size) != Some(end.start) {
        let why = "the central directory does not end where the end records start: something is before or between them";
        return Err(malformed(end.start, why));
    }
    let bytes = read_at(file, end.offset, end.size, "the central directory")?;
    let mut entries = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let at = end.start - rest.len() as u64;
        let (entry, length) = header(rest, at)?;
        entries.push(entry);
        rest = &rest[length..];
    }
    if entries.len() as u64 != end.entries {
        let why = format!("its end announces {} entries but its directory has {}", end.entries, entries.len());
        return Err(malformed(end.start, why));
    }
    Ok((entries, end.offset))
}

/// Finds the end record: the last one, and it reaches to the end of the file.
fn find_end<R: Read + Seek>(file: &mut R) -> Result<End, FormatError> {
    let length = file.seek(SeekFrom::End(0))?;
    let tail_start = length.saturating_sub(END_LENGTH as u64 + u64::from(u16::MAX));
    let tail = read_at(file, tail_start, length - tail_start, "the end of the archive")?;
    let at = memchr::memmem::rfind(&tail, END)
        .filter(|at| tail.len() - at >= END_LENGTH)
        .ok_or_else(|| malformed(length, "it has no end of central directory"))?;
    let record = &tail[at..];
    let end_offset = tail_start + at as u64;
    if END_LENGTH + usize::from(u16_at(record, 20)) != record.len() {
        return Err(malformed(end_offset, "something follows the end of the archive, or its comment is cut"));
    }
    let saturated = [u16_at(record, 8), u16_at(record, 10)].contains(&u16::MAX)
        || [u32_at(record, 12), u32_at(record, 16)].contains(&u32::MAX);
    let plain = End {
        entries: u16_at(record, 10).into(),
        size: u32_at(record, 12).into(),
        offset: u32_at(record, 16).into(),
        start: end_offset,
    };
    let (disk, directory_disk) = (u16_at(record, 4), u16_at(record, 6));
    let parts = || malformed(end_offset, "it is a part of an archive in several parts");
    let locator = match end_offset.checked_sub(LOCATOR_LENGTH) {
        Some(at) => read_at(file, at, LOCATOR_LENGTH, "the zip64 locator")?,
        None => Vec::new(),
    };
    // Some readers use the zip64 record whenever it is there, some only when it is needed: it must not matter.
    if !locator.starts_with(LOCATOR) {
        if disk != 0 || directory_disk != 0 || u16_at(record, 8) != u16_at(record, 10) {
            return Err(parts());
        }
        return if saturated { Err(malformed(end_offset, "its zip64 end record is missing")) } else { Ok(plain) };
    }
    let locator_offset = end_offset - LOCATOR_LENGTH;
    let offset = u64_at(&locator, 8);
    if offset.checked_add(END64_LENGTH) != Some(locator_offset) {
        return Err(malformed(locator_offset, "the zip64 end record does not end where its locator starts"));
    }
    let record64 = read_at(file, offset, END64_LENGTH, "the zip64 end record")?;
    if !record64.starts_with(END64) || u64_at(&record64, 4) != END64_LENGTH - 12 {
        return Err(malformed(offset, "the zip64 end record is malformed"));
    }
    let disks = [u32_at(&record64, 16), u32_at(&record64, 20), u32_at(&locator, 4)];
    if disks != [0; 3] || u32_at(&locator, 16) > 1 || u64_at(&record64, 24) != u64_at(&record64, 32) {
        return Err(parts());
    }
    let end = End {
        entries: u64_at(&record64, 32),
        size: u64_at(&record64, 40),
        offset: u64_at(&record64, 48),
        start: offset,
    };
    let agrees = |small: u64, saturated: u64, large: u64| small == large || small == saturated;
    if !agrees(plain.entries, u16::MAX.into(), end.entries)
        || !agrees(u16_at(record, 8).into(), u16::MAX.into(), end.entries)
        || !agrees(plain.size, u32::MAX.into(), end.size)
        || !agrees(plain.offset, u32::MAX.into(), end.offset)
        || ![0, u16::MAX].contains(&disk)
        || ![0, u16::MAX].contains(&directory_disk)
    {
        return Err(malformed(end_offset, "the end record and the zip64 end record contradict each other"));
    }
    Ok(end)
}

/// Reads one central header; also gives its length.
fn header(bytes: &[u8], at: u64) -> Result<(Central, usize), FormatError> {
    if bytes.len() < HEADER_LENGTH || !bytes.starts_with(HEADER) {
        return Err(malformed(at, "the central directory has something that is no header"));
    }
    let (name_length, extra_length, comment_length) =
        (usize::from(u16_at(bytes, 28)), usize::from(u16_at(bytes, 30)), usize::from(u16_at(bytes, 32)));
    let length = HEADER_LENGTH + name_length + extra_length + comment_length;
    if length > bytes.len() {
        return Err(malformed(at, "a central header is longer than the central directory"));
    }
    let raw_name = &bytes[HEADER_LENGTH..][..name_length];
    let extra = Extra::parse(&bytes[HEADER_LENGTH + name_length..][..extra_length], at)?;
    let flags = u16_at(bytes, 8);
    let name = name::parse(raw_name, flags & UTF8 != 0)?;
    let unsupported =
        |what: &str| FormatError::Unsupported { format: FORMAT, name: name.clone(), what: what.to_owned() };
    if flags & (ENCRYPTED | STRONGLY_ENCRYPTED) != 0 {
        return Err(unsupported("encrypted content"));
    }
    if flags & !(LEVEL | DESCRIPTOR | UTF8) != 0 {
        return Err(unsupported(&format!("the flags {flags:#06x}")));
    }
    extra.check(raw_name, &name)?;
    // Python refuses what asks for a later version, others do not look.
    if bytes[6] > LATEST_VERSION {
        return Err(unsupported(&format!("version {}.{} of the format", bytes[6] / 10, bytes[6] % 10)));
    }
    let method = match u16_at(bytes, 10) {
        0 => Method::Stored,
        8 => Method::Deflated,
        method => return Err(unsupported(&format!("compression method {method}"))),
    };
    let (mut compressed_size, mut size, mut offset) =
        (u64::from(u32_at(bytes, 20)), u64::from(u32_at(bytes, 24)), u64::from(u32_at(bytes, 42)));
    let mut fields = [&mut size, &mut compressed_size, &mut offset];
    if !extra.widen(&mut fields) {
        return Err(refused(&name, "its zip64 field does not fit its header"));
    }
    if u16_at(bytes, 34) != 0 {
        return Err(malformed(at, "an entry is on another part of the archive"));
    }
    let dir = name.ends_with('/');
    let attributes = u32_at(bytes, 38);
    let mode = attributes >> 16;
    match mode & 0o170_000 {
        // DOS' attribute for directories: libarchive goes by it, Python by the name.
        0 if attributes & DOS_DIRECTORY != 0 && !dir => {
            return Err(refused(&name, "its name and its attributes disagree whether it is a directory"));
        }
        0 => {}
        0o040_000 if dir => {}
        0o100_000 if !dir => {}
        0o040_000 | 0o100_000 => {
            return Err(refused(&name, "its name and its mode disagree whether it is a directory"));
        }
        0o120_000 => return Err(unsupported("a symbolic link")),
        _ => return Err(unsupported("something that is neither file nor directory")),
    }
    if dir && size != 0 {
        return Err(refused(&name, "it is a directory with content"));
    }
    // A stored entry with a descriptor has no end that a reader from front to back could find.
    if method == Method::Stored && (size != compressed_size || flags & DESCRIPTOR != 0 && size != 0) {
        return Err(refused(&name, "it is stored, but its two sizes differ or follow its content"));
    }
    // Deflate cannot do better than 1032 to 1.
    if method == Method::Deflated && size / 1032 > compressed_size {
        return Err(refused(&name, format!("{compressed_size} deflated bytes cannot hold {size}")));
    }
    let entry = Central {
        flags,
        method,
        mode: (mode != 0).then_some(mode),
        mtime: dos_time(u16_at(bytes, 14), u16_at(bytes, 12)),
        crc32: u32_at(bytes, 16),
        compressed_size,
        size,
        offset,
        name,
    };
    Ok((entry, length))
}

/// The extra fields that matter.
pub(super) struct Extra<'a> {
    zip64: Option<&'a [u8]>,
    unicode_name: Option<&'a [u8]>,
    attributes: Option<&'a [u8]>,
}

impl<'a> Extra<'a> {
    pub(super) fn parse(mut bytes: &'a [u8], at: u64) -> Result<Extra<'a>, FormatError> {
        let mut extra = Extra { zip64: None, unicode_name: None, attributes: None };
        while bytes.len() >= 4 {
            let (id, length) = (u16_at(bytes, 0), usize::from(u16_at(bytes, 2)));
            let Some(field) = bytes[4..].get(..length) else {
                return Err(malformed(at, "an extra field is longer than the place for it"));
            };
            let slot = match id {
                0x0001 => Some(&mut extra.zip64),
                // Version, CRC-32 of the name, the name.
                0x7075 => Some(&mut extra.unicode_name),
                // libarchive's own: a local header that repeats the attributes of the directory.
                0x6c78 => Some(&mut extra.attributes),
                _ => None,
            };
            if let Some(slot) = slot
                && slot.replace(field).is_some()
            {
                return Err(malformed(at, format!("extra field {id:#06x} is there twice")));
            }
            bytes = &bytes[4 + length..];
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(malformed(at, "an extra field is cut"));
        }
        extra.unicode_name = extra.unicode_name.map(|field| field.get(5..).unwrap_or_default());
        Ok(extra)
    }

    /// Refuses fields that tell readers who know them another name or type than the header does.
    pub(super) fn check(&self, raw_name: &[u8], name: &str) -> Result<(), FormatError> {
        if self.unicode_name.is_some_and(|unicode| unicode != raw_name) {
            return Err(refused(name, "its Unicode name field tells another name"));
        }
        if self.attributes.is_some() {
            return Err(refused(name, "it has attributes outside of the central directory"));
        }
        Ok(())
    }

    /// Replaces the saturated fields by their zip64 values. The zip64 field holds exactly those, or all (a local header's,
    /// and what some writers put in the directory); in the latter case the others must agree. `false`: it does not.
    pub(super) fn widen(&self, fields: &mut [&mut u64]) -> bool {
        let saturated = |value: u64| value == u64::from(u32::MAX);
        let wanted = fields.iter().filter(|field| saturated(***field)).count();
        let Some(zip64) = self.zip64 else { return wanted == 0 };
        if zip64.len() % 8 != 0 {
            return false;
        }
        let given = zip64.len() / 8;
        if given == wanted {
            for (index, field) in fields.iter_mut().filter(|field| saturated(***field)).enumerate() {
                **field = u64_at(zip64, index * 8);
            }
            return true;
        }
        // Both sizes, or both and the offset.
        if given < 2 || given > fields.len() || given < wanted {
            return false;
        }
        for (index, field) in fields.iter_mut().enumerate() {
            if index >= given {
                if saturated(**field) {
                    return false;
                }
                continue;
            }
            let value = u64_at(zip64, index * 8);
            if !saturated(**field) && **field != value {
                return false;
            }
            **field = value;
        }
        true
    }
}

/// 1980-01-01 00:00:00 UTC, the first moment that DOS can say.
const DOS_EPOCH: i64 = 315_532_800;

/// A DOS date and time read as UTC. Writers that know no time leave zeros, which is no date.
fn dos_time(date: u16, time: u16) -> i64 {
    let (year, month, day) = (1980 + i64::from(date >> 9), i64::from(date >> 5 & 15), i64::from(date & 31));
    let (hour, minute, second) = (i64::from(time >> 11), i64::from(time >> 5 & 63), i64::from(time & 31) * 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let Some(length) = usize::try_from(month - 1).ok().and_then(|index| lengths.get(index)) else { return DOS_EPOCH };
    if day == 0 || day > *length || hour > 23 || minute > 59 || second > 59 {
        return DOS_EPOCH;
    }
    // 1980 is a leap year, and of the years that DOS can say only 2100 breaks the rule of four.
    let years = year - 1980;
    let leap_days = (years + 3) / 4 - i64::from(year > 2100);
    let days = years * 365 + leap_days + lengths[..month as usize - 1].iter().sum::<i64>() + day - 1;
    DOS_EPOCH + days * 86_400 + hour * 3600 + minute * 60 + second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dos_times_are_read_as_utc() {
        let at = |y: u16, m: u16, d: u16, h: u16, min: u16, s: u16| {
            dos_time((y - 1980) << 9 | m << 5 | d, (h << 11) | (min << 5) | (s / 2))
        };
        assert_eq!(at(1980, 1, 1, 0, 0, 0), 315_532_800);
        assert_eq!(at(1980, 3, 1, 0, 0, 0), 320_716_800);
        assert_eq!(at(2000, 2, 29, 12, 34, 56), 951_827_696);
        assert_eq!(at(2024, 12, 31, 23, 59, 58), 1_735_689_598);
        assert_eq!(at(2101, 1, 1, 0, 0, 0), 4_133_980_800);
        assert_eq!(at(2107, 12, 31, 23, 59, 58), 4_354_819_198);
        assert_eq!(dos_time(0, 0), DOS_EPOCH);
        for (y, m, d, h, min) in [(2024, 13, 1, 0, 0), (2023, 2, 29, 0, 0), (2024, 1, 1, 24, 0), (2024, 1, 1, 0, 60)] {
            assert_eq!(at(y, m, d, h, min, 0), DOS_EPOCH);
        }
    }
}
