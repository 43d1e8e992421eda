//! A strict streaming tar reader: ustar, PAX and GNU headers in, [`Entry`]s out.
//!
//! It reads what GNU tar, bsdtar, Python, Go and dpkg agree about, and refuses the rest: sparse files, sizes that PAX and
//! ustar tell differently, names told twice, a missing end of the archive. Names are relative (`./a` is `/a` in the
//! image); `..`, a leading `/`, NUL and anything but UTF-8 are errors. So are names that start with `.wh.`, unless the
//! archive is read as an OCI layer ([`Reader::oci_layer`]), where they mean deletion.
//!
//! Not judged here: whether a path comes twice, whether a parent is a link, whether a hard link's target came before.

mod header;
mod name;
mod pax;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use self::header::Header;
use self::pax::{Records, Scope};
use super::error::lossy;
use super::{FormatError, Limits};
use crate::encode::{Entry, Kind};
use crate::path::ImagePath;

const FORMAT: &str = "tar archive";
const BLOCK: u64 = 512;

/// The largest size that ustar's eleven octal digits can say.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// The largest value of an extended attribute that Linux takes, bytes (`linux/limits.h`).
const XATTR_SIZE_MAX: usize = 64 << 10;

/// What is counted for an extended attribute beside its name and its value, bytes: what it takes to hold both.
const XATTR_HELD: u64 = 64;

fn malformed(at: u64, why: impl Into<String>) -> FormatError {
    FormatError::Malformed { format: FORMAT, at, why: why.into() }
}

/// One item of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarItem {
    /// Something that is there.
    Entry(Entry),
    /// `.wh.NAME` in an OCI layer: this path of the layers below is gone (OCI image spec, layer.md "Whiteouts").
    Whiteout {
        /// What is gone.
        path: ImagePath,
    },
    /// `.wh..wh..opq` in an OCI layer: what the layers below have in this directory is gone.
    Opaque {
        /// The directory, which itself stays.
        dir: ImagePath,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    OciLayer,
}

/// Reads an archive from front to back. After an entry, the reader itself gives that entry's content (`impl Read`), which
/// may be read in part or not at all.
pub struct Reader<R> {
    input: BufReader<R>,
    limits: Limits,
    mode: Mode,
    /// Bytes taken from `input`.
    position: u64,
    /// Content of the current entry that is not read yet.
    remaining: u64,
    /// Bytes between that content and the next header.
    padding: u64,
    header_offset: u64,
    content_offset: u64,
    headers: u64,
    /// Bytes of the extended attributes of all entries so far.
    attributes: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Done,
    Failed,
}

/// Extensions that wait for the entry they describe.
#[derive(Default)]
struct Pending {
    start: Option<u64>,
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads an archive in which a name that starts with `.wh.` is an error.
    pub fn new(input: R, limits: &Limits) -> Reader<R> {
        Reader {
            input: BufReader::with_capacity(64 << 10, input),
            limits: *limits,
            mode: Mode::Plain,
            position: 0,
            remaining: 0,
            padding: 0,
            header_offset: 0,
            content_offset: 0,
            headers: 0,
            attributes: 0,
            state: State::Reading,
        }
    }

    /// Reads an OCI layer, in which names that start with `.wh.` mean deletion.
    pub fn oci_layer(input: R, limits: &Limits) -> Reader<R> {
        Reader { mode: Mode::OciLayer, ..Reader::new(input, limits) }
    }

    /// Goes on to the next entry; `None` is the proper end. A whiteout of an OCI layer is an error: see [`next_item`](Self::next_item).
    #[expect(clippy::should_implement_trait, reason = "an entry's content is read from `self` between two calls")]
    pub fn next(&mut self) -> Result<Option<Entry>, FormatError> {
        match self.next_item()? {
            None => Ok(None),
            Some(TarItem::Entry(entry)) => Ok(Some(entry)),
            Some(TarItem::Whiteout { path } | TarItem::Opaque { dir: path }) => {
                self.state = State::Failed;
                let (name, what) = (path.to_string(), "a whiteout".to_owned());
                Err(FormatError::Unsupported { format: FORMAT, name, what })
            }
        }
    }

    /// Goes on to the next item; `None` is the proper end, after which the input was read to its own end.
    pub fn next_item(&mut self) -> Result<Option<TarItem>, FormatError> {
        match self.state {
            State::Done => return Ok(None),
            State::Failed => return Err(malformed(self.position, "it was read on after an error")),
            State::Reading => {}
        }
        // An error leaves the reader failed, so that it can never look like an end.
        self.state = State::Failed;
        let item = self.advance()?;
        self.state = if item.is_some() { State::Reading } else { State::Done };
        Ok(item)
    }

    /// Where the current entry's content starts in the (uncompressed) stream.
    pub fn content_offset(&self) -> u64 {
        self.content_offset
    }

    /// Where the current entry's first header starts, that of its extensions included.
    pub fn header_offset(&self) -> u64 {
        self.header_offset
    }

    fn advance(&mut self) -> Result<Option<TarItem>, FormatError> {
        self.skip(self.remaining, "the content of a file")?;
        self.remaining = 0;
        self.skip(self.padding, "the padding of a file")?;
        self.padding = 0;
        let mut pending = Pending::default();
        loop {
            let at = self.position;
            let block = self.block("the end of the archive (two blocks of zeros)")?;
            if block.iter().all(|byte| *byte == 0) {
                if pending.start.is_some() {
                    return Err(malformed(at, "an extended header is followed by the end of the archive"));
                }
                self.finish()?;
                return Ok(None);
            }
            self.headers += 1;
            if self.headers > self.limits.max_entries {
                let limit = self.limits.max_entries;
                return Err(FormatError::Limit { format: FORMAT, what: "its number of headers", limit });
            }
            let header = Header::parse(&block, at)?;
            pending.start.get_or_insert(at);
            match header.flag() {
                b'x' => {
                    let records = pax::parse(&self.extension(&header)?, at, Scope::Next)?;
                    if pending.pax.replace(records).is_some() {
                        return Err(malformed(at, "an entry has two PAX headers"));
                    }
                }
                b'g' => {
                    if pending.start != Some(at) {
                        return Err(malformed(
                            at,
                            "a global PAX header stands between an extended header and its entry",
                        ));
                    }
                    pending.start = None;
                    pax::parse(&self.extension(&header)?, at, Scope::Global)?;
                }
                b'L' => {
                    let name = self.long(&header, at)?;
                    if pending.long_name.replace(name).is_some() {
                        return Err(malformed(at, "an entry has two GNU long names"));
                    }
                }
                b'K' => {
                    let name = self.long(&header, at)?;
                    if pending.long_link.replace(name).is_some() {
                        return Err(malformed(at, "an entry has two GNU long link names"));
                    }
                }
                _ => return self.item(&header, pending, at).map(Some),
            }
        }
    }

    /// Turns the header at `at`, with what its extensions said, into an item.
    fn item(&mut self, header: &Header<'_>, pending: Pending, at: u64) -> Result<TarItem, FormatError> {
        let pax = pending.pax.unwrap_or_default();
        let name = one_of(pax.path, pending.long_name, at, "name")?.unwrap_or_else(|| header.name());
        let link = || {
            let link = one_of(pax.linkpath.clone(), pending.long_link.clone(), at, "link target")?;
            Ok::<_, FormatError>(link.unwrap_or_else(|| header.link()))
        };
        let size = size(header, pax.size, at)?;
        if size > self.limits.max_output {
            let limit = self.limits.max_output;
            return Err(FormatError::Limit { format: FORMAT, what: "the size of a file in bytes", limit });
        }
        if header.flag() == 0 && header.is_named_as_dir() != name.ends_with(b"/") {
            // The old flag of files and directories: Python goes by the header's own name, GNU tar by the one in force.
            return Err(refused(&name, "whether it is a directory is told in two ways".into()));
        }
        let kind = match header.flag() {
            // Before POSIX, a directory was a file whose name ends with a slash.
            0 if name.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' => Kind::File { size },
            b'1' => {
                let target = link()?;
                let path = name::path(&target, self.limits.max_path, false)?;
                if path.is_root() || target.ends_with(b"/") {
                    return Err(refused(&name, format!("it is a hard link to the directory `{}`", lossy(&target))));
                }
                Kind::Hardlink { target: path }
            }
            b'2' => Kind::Symlink { target: name::target(link()?, self.limits.max_path)? },
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                if header.flag() == b'3' {
                    Kind::CharDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                }
            }
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            flag => {
                let what = match flag {
                    b'S' => "a sparse file".to_owned(),
                    b'M' => "a part of a multi-volume archive".to_owned(),
                    b'V' => "a volume label".to_owned(),
                    b'D' | b'N' => "a record of an incremental dump".to_owned(),
                    b'X' => "a Solaris extended header".to_owned(),
                    _ => format!("an entry of type `{}`", char::from(flag).escape_default()),
                };
                return Err(FormatError::Unsupported { format: FORMAT, name: lossy(&name), what });
            }
        };
        let file = matches!(kind, Kind::File { .. });
        if !file && size != 0 {
            // Readers disagree whether such an entry has content: it could hide a whole archive from one of them.
            return Err(refused(&name, format!("it is not a file but has a size of {size} bytes")));
        }
        self.header_offset = pending.start.unwrap_or(at);
        self.content_offset = self.position;
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK) - size;
        if self.mode == Mode::OciLayer
            && let Some(item) = name::whiteout(&name, self.limits.max_path, file && size == 0)?
        {
            return Ok(item);
        }
        let path = name::path(&name, self.limits.max_path, kind == Kind::Dir)?;
        if let Kind::Hardlink { target } = &kind
            && *target == path
        {
            return Err(refused(&name, "it is a hard link to itself".into()));
        }
        self.count(&name, &pax.xattrs)?;
        Ok(TarItem::Entry(Entry {
            path,
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.unwrap_or_else(|| header.mtime()),
            xattrs: pax.xattrs,
        }))
    }

    /// Counts the attributes of an entry, which whoever reads the archive holds.
    fn count(&mut self, name: &[u8], xattrs: &BTreeMap<String, Vec<u8>>) -> Result<(), FormatError> {
        for (key, value) in xattrs {
            if value.len() > XATTR_SIZE_MAX {
                let (key, length) = (lossy(key.as_bytes()), value.len());
                let why = format!("its attribute `{key}` has {length} bytes, and Linux takes {XATTR_SIZE_MAX}");
                return Err(refused(name, why));
            }
        }
        self.attributes += xattrs_size(xattrs);
        let limit = self.limits.max_metadata;
        if self.attributes > limit {
            let what = "the size of its extended attributes in bytes";
            return Err(FormatError::Limit { format: FORMAT, what, limit });
        }
        Ok(())
    }

    /// The content of an extension's own entry.
    fn extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>, FormatError> {
        let (size, limit) = (header.size()?, self.limits.max_extended_header);
        if size > limit {
            return Err(FormatError::Limit { format: FORMAT, what: "the size of an extended header in bytes", limit });
        }
        let mut content = Vec::new();
        let length = self.input.by_ref().take(size).read_to_end(&mut content)? as u64;
        self.position += length;
        if length < size {
            return Err(truncated("an extended header", self.position));
        }
        self.skip(size.next_multiple_of(BLOCK) - size, "the padding of an extended header")?;
        Ok(content)
    }

    /// A GNU long name: the name and a NUL.
    fn long(&mut self, header: &Header<'_>, at: u64) -> Result<Vec<u8>, FormatError> {
        let mut name = self.extension(header)?;
        if name.pop_if(|last| *last == 0).is_none() {
            return Err(malformed(at, "a GNU long name does not end with NUL"));
        }
        Ok(name)
    }

    fn block(&mut self, what: &'static str) -> Result<[u8; 512], FormatError> {
        let mut block = [0; 512];
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) => return Err(truncated(if filled == 0 { what } else { "a block" }, self.position)),
                Ok(length) => {
                    filled += length;
                    self.position += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(block)
    }

    fn skip(&mut self, mut length: u64, what: &'static str) -> Result<(), FormatError> {
        while length > 0 {
            let available = match self.input.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if available == 0 {
                return Err(truncated(what, self.position));
            }
            let step = usize::try_from(length).unwrap_or(usize::MAX).min(available);
            self.input.consume(step);
            self.position += step as u64;
            length -= step as u64;
        }
        Ok(())
    }

    /// After the first block of zeros: a second one, then nothing but zeros. Reading on to the end of the input makes
    /// the decompressor below check its checksums, and leaves no place for a second archive that another reader sees.
    fn finish(&mut self) -> Result<(), FormatError> {
        let at = self.position;
        let second = self.block("the second block of zeros at the end of the archive")?;
        if second.iter().any(|byte| *byte != 0) {
            return Err(malformed(at, "a lone block of zeros stands before more data"));
        }
        loop {
            let zeros = match self.input.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(buffer) => buffer.iter().take_while(|byte| **byte == 0).count(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if zeros == 0 {
                return Err(malformed(self.position, "data follows the end of the archive"));
            }
            self.input.consume(zeros);
            self.position += zeros as u64;
        }
    }
}

impl<R: Read> Read for Reader<R> {
    /// Reads the content of the current entry.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.remaining == 0 || buffer.is_empty() || self.state != State::Reading {
            return Ok(0);
        }
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.input.read(&mut buffer[..wanted]).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.state = State::Failed;
            }
        })?;
        if length == 0 {
            self.state = State::Failed;
            return Err(truncated("the content of a file", self.position).into());
        }
        self.position += length as u64;
        self.remaining -= length as u64;
        Ok(length)
    }
}

/// The bytes that holding these attributes takes, roughly.
pub fn xattrs_size(xattrs: &BTreeMap<String, Vec<u8>>) -> u64 {
    xattrs.iter().map(|(key, value)| (key.len() + value.len()) as u64 + XATTR_HELD).sum()
}

fn truncated(what: &'static str, at: u64) -> FormatError {
    FormatError::Truncated { format: FORMAT, what, at }
}

fn refused(name: &[u8], why: String) -> FormatError {
    FormatError::Entry { format: FORMAT, name: lossy(name), why }
}

/// PAX and GNU may both tell a name, if they tell the same one: readers disagree which of them wins.
fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, at: u64, what: &str) -> Result<Option<Vec<u8>>, FormatError> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => {
            Err(malformed(at, format!("PAX tells the {what} `{}` but GNU tells `{}`", lossy(&pax), lossy(&gnu))))
        }
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// The size of the content. PAX may only say what ustar's field cannot; a reader that overlooks either of them would
/// otherwise take content for headers (CVE-2025-62518).
fn size(header: &Header<'_>, pax: Option<u64>, at: u64) -> Result<u64, FormatError> {
    let ustar = header.size()?;
    match pax {
        None => Ok(ustar),
        Some(pax) if pax == ustar => Ok(pax),
        Some(pax) if pax > MAX_OCTAL_SIZE && (ustar == 0 || ustar == MAX_OCTAL_SIZE) => Ok(pax),
        Some(pax) => Err(malformed(at, format!("PAX says {pax} bytes but the header says {ustar}"))),
    }
}
