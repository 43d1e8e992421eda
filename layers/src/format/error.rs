//! Why an archive was refused.

use std::io;

/// Why an archive was refused. Offsets count bytes of the (uncompressed) stream from its start; names are shown lossily
/// with control characters escaped, so that a hostile name cannot write to a terminal.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes could not be read.
    #[error("cannot read the archive: {0}")]
    Io(#[source] io::Error),
    /// The stream ends inside something.
    #[error("the {format} ends too early, at byte {at}: {what} is missing; download it again")]
    Truncated {
        /// The format, such as `tar archive`.
        format: &'static str,
        /// What was being read.
        what: &'static str,
        /// Where the stream ended.
        at: u64,
    },
    /// The bytes break the format's rules, or well-known readers disagree about what they mean.
    #[error("malformed {format} at byte {at}: {why}")]
    Malformed {
        /// The format, such as `tar archive`.
        format: &'static str,
        /// Where.
        at: u64,
        /// Which rule, with the offending value.
        why: String,
    },
    /// A name that could not be, or should never be, in an image.
    #[error("the {format} names `{name}`: {why}")]
    Name {
        /// The format, such as `tar archive`.
        format: &'static str,
        /// The name, lossily.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry whose parts contradict each other or its archive's own list.
    #[error("the {format}'s entry `{name}` is refused: {why}")]
    Entry {
        /// The format, such as `wheel`.
        format: &'static str,
        /// The name, lossily.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A deflated entry whose stream ends before its packed content does. Where [`Tails::PassedOver`](super::zip::Tails::PassedOver)
    /// was asked for, this is no error.
    #[error("the {format}'s entry `{name}` is refused: its deflate stream ends before its packed content does")]
    Tail {
        /// The format, such as `zip archive`.
        format: &'static str,
        /// The name, lossily.
        name: String,
    },
    /// A legitimate feature that imgbuild does not read.
    #[error("the {format} has {what} at `{name}`, which imgbuild does not read")]
    Unsupported {
        /// The format, such as `tar archive`.
        format: &'static str,
        /// The name or member, lossily.
        name: String,
        /// The feature.
        what: String,
    },
    /// More than the [`Limits`](super::Limits) allow.
    #[error("the {format} is refused: {what} is over the limit of {limit}")]
    Limit {
        /// The format, such as `tar archive`.
        format: &'static str,
        /// What there is too much of, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl From<io::Error> for FormatError {
    // Readers stack: a decompressor's FormatError travels through `Read` and must come out as itself.
    fn from(error: io::Error) -> FormatError {
        error.downcast::<FormatError>().unwrap_or_else(FormatError::Io)
    }
}

impl From<FormatError> for io::Error {
    fn from(error: FormatError) -> io::Error {
        match error {
            FormatError::Io(error) => error,
            FormatError::Truncated { .. } => io::Error::new(io::ErrorKind::UnexpectedEof, error),
            _ => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// A name for an error message: UTF-8 or replacement characters, controls escaped, at most 200 characters.
pub(super) fn lossy(name: &[u8]) -> String {
    let head = &name[..name.len().min(800)];
    let mut shown = String::new();
    for (index, character) in String::from_utf8_lossy(head).chars().enumerate() {
        if index == 200 {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_error_survives_the_trip_through_read() {
        let limit = || FormatError::Limit { format: "gzip stream", what: "its output in bytes", limit: 5 };
        let back = FormatError::from(io::Error::from(limit()));
        assert_eq!(back.to_string(), limit().to_string());
        assert!(matches!(FormatError::from(io::Error::other("disk")), FormatError::Io(_)));
    }

    #[test]
    fn shown_names_cannot_write_to_a_terminal() {
        assert_eq!(lossy(b"a\x1b[2Jb\xff\n"), "a\\u{1b}[2Jb\u{fffd}\\n");
        assert_eq!(lossy(&[b'x'; 5000]).chars().count(), 201);
    }
}
