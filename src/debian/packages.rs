//! `Packages` files: what an archive offers (Debian repository format).
//!
//! The text is kept whole and scanned once; a package holds ranges into it, and relations are parsed when asked for.

use std::ops::Range;
use std::sync::Arc;

use layers::Digest;

/// Why a `Packages` file is refused.
#[derive(Debug, thiserror::Error)]
pub enum PackagesError {
    /// A line that is neither field nor continuation.
    #[error("line {line} of Packages is neither a field nor its continuation: `{text}`")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A field that stands twice.
    #[error("`{package}` has the field `{field}` twice")]
    Duplicate {
        /// The package.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// A field that every package has.
    #[error("a package before line {line} of Packages has no usable `{field}`")]
    Missing {
        /// The line behind the paragraph, from 1.
        line: usize,
        /// The field.
        field: &'static str,
    },
    /// One version with two contents.
    #[error("`{package}` is listed twice in version {version} with different digests, {} and {}", digests[0], digests[1])]
    Contradiction {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// Both.
        digests: Box<[Digest; 2]>,
    },
    /// Not text.
    #[error("Packages is not UTF-8")]
    Encoding,
}

/// One package of an archive.
#[derive(Debug, Clone)]
pub struct Package {
    text: Arc<str>,
    fields: [Range<u32>; FIELDS.len()],
    /// Length of the .deb in bytes.
    pub size: u64,
    /// Digest of the .deb.
    pub sha256: Digest,
}

const FIELDS: [&str; 19] = [
    "Package",
    "Version",
    "Architecture",
    "Depends",
    "Pre-Depends",
    "Recommends",
    "Conflicts",
    "Breaks",
    "Replaces",
    "Provides",
    "Essential",
    "Multi-Arch",
    "Priority",
    "Filename",
    "Source",
    "Important",
    "Suggests",
    "Enhances",
    "Protected",
];
const SIZE: usize = FIELDS.len();
const SHA256: usize = SIZE + 1;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $at:literal),* $(,)?) => {
        impl Package {
            $($(#[$doc])*
            pub fn $name(&self) -> &str {
                self.field($at)
            })*
        }
    };
}
fields! {
    /// Its name.
    name = 0,
    /// Its version.
    version = 1,
    /// Its architecture, `all` included.
    architecture = 2,
    /// `Depends`.
    depends = 3,
    /// `Pre-Depends`.
    pre_depends = 4,
    /// `Recommends`.
    recommends = 5,
    /// `Conflicts`.
    conflicts = 6,
    /// `Breaks`.
    breaks = 7,
    /// `Replaces`.
    replaces = 8,
    /// `Provides`.
    provides = 9,
    /// `Multi-Arch`: `foreign`, `same`, `allowed` or empty.
    multi_arch = 11,
    /// `Priority`.
    priority = 12,
    /// Path of the .deb below the archive.
    filename = 13,
    /// `Source`, empty where it is the name.
    source = 14,
    /// `Suggests`.
    suggests = 16,
    /// `Enhances`.
    enhances = 17,
}

impl Package {
    fn field(&self, at: usize) -> &str {
        let range = &self.fields[at];
        &self.text[range.start as usize..range.end as usize]
    }

    /// Whether every system has it.
    pub fn is_essential(&self) -> bool {
        self.field(10) == "yes"
    }

    /// Whether apt treats it as nearly essential (`Important` or `Protected`).
    pub fn is_important(&self) -> bool {
        self.field(15) == "yes" || self.field(18) == "yes"
    }
}

/// Scans a whole file.
pub fn scan(text: Arc<str>) -> Result<Vec<Package>, PackagesError> {
    let mut packages = Vec::new();
    let mut found: [Range<u32>; SHA256 + 1] = std::array::from_fn(|_| 0..0);
    let mut seen = [false; SHA256 + 1];
    let mut last: Option<usize> = None;
    let mut any = false;
    let mut start = 0;
    let mut line_number = 0;
    let bytes = text.as_bytes();
    while start <= bytes.len() {
        let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at);
        line_number += 1;
        let line = text[start..end].trim_end_matches('\r');
        if line.is_empty() || end == bytes.len() && start == end {
            if any {
                packages.push(finish(&text, &found, line_number)?);
                found = std::array::from_fn(|_| 0..0);
                seen = [false; SHA256 + 1];
                any = false;
                last = None;
            }
        } else if line.starts_with([' ', '\t']) {
            if !any {
                return Err(PackagesError::Line { line: line_number, text: line.chars().take(80).collect() });
            }
            if let Some(at) = last {
                found[at].end = (start + line.len()) as u32;
            }
        } else if let Some((name, value)) = line.split_once(':') {
            any = true;
            last = position(name);
            if let Some(at) = last {
                if seen[at] {
                    let package = text[found[0].start as usize..found[0].end as usize].to_owned();
                    let field = if at < SIZE {
                        FIELDS[at]
                    } else if at == SIZE {
                        "Size"
                    } else {
                        "SHA256"
                    };
                    return Err(PackagesError::Duplicate { package, field });
                }
                seen[at] = true;
                let value_start = start + name.len() + 1 + (value.len() - value.trim_start().len());
                found[at] = value_start as u32..(value_start + value.trim().len()) as u32;
            }
        } else {
            return Err(PackagesError::Line { line: line_number, text: line.chars().take(80).collect() });
        }
        start = end + 1;
    }
    if any {
        packages.push(finish(&text, &found, line_number)?);
    }
    Ok(packages)
}

/// Refuses lists in which one version of a package has two contents: which of them would be locked?
pub fn check_consistent(packages: &[Package]) -> Result<(), PackagesError> {
    let mut sorted: Vec<&Package> = packages.iter().collect();
    sorted.sort_unstable_by_key(|it| (it.name(), it.version(), it.architecture()));
    for pair in sorted.windows(2) {
        let [one, other] = pair else { continue };
        let same = one.name() == other.name()
            && one.version() == other.version()
            && one.architecture() == other.architecture();
        if same && one.sha256 != other.sha256 {
            return Err(PackagesError::Contradiction {
                package: one.name().to_owned(),
                version: one.version().to_owned(),
                digests: Box::new([one.sha256, other.sha256]),
            });
        }
    }
    Ok(())
}

fn position(name: &str) -> Option<usize> {
    // Names are not case-sensitive (Debian policy 5.1), and apt reads them so.
    FIELDS.iter().chain(&["Size", "SHA256"]).position(|field| field.eq_ignore_ascii_case(name))
}

fn finish(text: &Arc<str>, found: &[Range<u32>; SHA256 + 1], line: usize) -> Result<Package, PackagesError> {
    let value = |at: usize| &text[found[at].start as usize..found[at].end as usize];
    let missing = |field| PackagesError::Missing { line, field };
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    if value(0).len() < 2 || !value(0).bytes().all(word) || !value(0).as_bytes()[0].is_ascii_alphanumeric() {
        return Err(missing("Package"));
    }
    value(1).parse::<super::version::Version>().map_err(|_| missing("Version"))?;
    if value(2).is_empty() || !value(2).bytes().all(word) {
        return Err(missing("Architecture"));
    }
    let path = value(13);
    let plain = !path.is_empty()
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if !plain {
        return Err(missing("Filename"));
    }
    Ok(Package {
        text: text.clone(),
        fields: std::array::from_fn(|at| found[at].clone()),
        size: value(SIZE).parse().map_err(|_| missing("Size"))?,
        sha256: Digest::from_hex(value(SHA256)).map_err(|_| missing("SHA256"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn paragraph(extra: &str) -> String {
        format!(
            "Package: foo\nVersion: 1-1\nArchitecture: amd64\nFilename: pool/f.deb\nSize: 3\nSHA256: {HASH}\n{extra}\n"
        )
    }

    #[test]
    fn fields_are_found_and_folded_ones_kept_whole() {
        let text = paragraph("Depends: a,\n b (>= 1)\nDescription: x\n .\n y\n") + &paragraph("Essential: yes\n");
        let packages = scan(text.into()).expect("scans");
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].name(), "foo");
        assert_eq!(packages[0].depends(), "a,\n b (>= 1)");
        assert_eq!(packages[0].size, 3);
        assert!(packages[1].is_essential());
        assert_eq!(packages[1].depends(), "");
        assert!(scan("".into()).expect("scans").is_empty());
    }

    #[test]
    fn names_of_fields_are_read_in_any_case() {
        let packages = scan(paragraph("pre-depends: a\n").replace("Size", "SIZE").into()).expect("scans");
        assert_eq!((packages[0].pre_depends(), packages[0].size), ("a", 3));
        let twice = scan(paragraph("Depends: a\ndepends: b\n").into());
        assert!(matches!(twice, Err(PackagesError::Duplicate { .. })));
    }

    #[test]
    fn wrong_paragraphs_are_refused() {
        assert!(matches!(scan(" x\n".into()), Err(PackagesError::Line { .. })));
        assert!(matches!(scan("nonsense\n".into()), Err(PackagesError::Line { .. })));
        assert!(matches!(scan(paragraph("Size: 4\n").into()), Err(PackagesError::Duplicate { .. })));
        for (from, to) in
            [("pool/f.deb", "../f.deb"), ("pool/f.deb", "/f.deb"), ("Size: 3", "Size: x"), (HASH, "00"), ("1-1", "")]
        {
            assert!(matches!(scan(paragraph("").replace(from, to).into()), Err(PackagesError::Missing { .. })), "{to}");
        }
    }
}
