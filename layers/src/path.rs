//! Paths inside an image: absolute, normal, UTF-8.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an [`ImagePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` is not a path inside an image: {why}")]
pub struct InvalidPath {
    path: String,
    why: &'static str,
}

/// An absolute path inside an image without `.`, `..`, `//`, trailing `/`, NUL or whiteout names; `/` is the root.
///
/// Write literals with [`path!`](crate::path!), which refuses a wrong one at compile time.
///
/// A clone shares the text: a build holds each of its paths in several tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImagePath(Arc<str>);

/// The check behind [`path!`](crate::path!): `Err` holds the reason.
pub const fn check(path: &str) -> Result<(), &'static str> {
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes[0] != b'/' {
        return Err("it does not start with `/`");
    }
    if bytes.len() == 1 {
        return Ok(());
    }
    if bytes.len() > 4095 {
        return Err("it is longer than 4095 bytes");
    }
    let mut start = 1;
    let mut at = 1;
    while at <= bytes.len() {
        if at == bytes.len() || bytes[at] == b'/' {
            let length = at - start;
            if length == 0 {
                return Err("it has an empty component (`//` or a trailing `/`)");
            }
            if length > 255 {
                return Err("a component is longer than 255 bytes");
            }
            if bytes[start] == b'.' && (length == 1 || length == 2 && bytes[start + 1] == b'.') {
                return Err("it has a `.` or `..` component");
            }
            if length >= 4
                && bytes[start] == b'.'
                && bytes[start + 1] == b'w'
                && bytes[start + 2] == b'h'
                && bytes[start + 3] == b'.'
            {
                return Err("names that start with `.wh.` mean deletion in OCI layers");
            }
            start = at + 1;
        } else if bytes[at] == 0 {
            return Err("it has a NUL byte");
        }
        at += 1;
    }
    Ok(())
}

/// Whether a path is one of those that [`check`] lets pass, told without a look at each component: short, and without any
/// component that is empty or begins with a dot. Builds read tens of thousands of paths.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let pairs = bytes.iter().zip(&bytes[1.min(bytes.len())..]);
    let is_odd =
        |odd: bool, (one, next): (&u8, &u8)| odd | (*one == b'/') & ((*next == b'/') | (*next == b'.')) | (*next == 0);
    let is_odd = pairs.fold(false, is_odd);
    (2..=255).contains(&bytes.len()) && bytes[0] == b'/' && bytes[bytes.len() - 1] != b'/' && !is_odd
}

impl ImagePath {
    /// Checks and wraps a path.
    pub fn new(path: impl Into<String>) -> Result<ImagePath, InvalidPath> {
        ImagePath::checked(&path.into())
    }

    fn checked(path: &str) -> Result<ImagePath, InvalidPath> {
        match if is_plain(path) { Ok(()) } else { check(path) } {
            Ok(()) => Ok(ImagePath(path.into())),
            Err(why) => Err(InvalidPath { path: path.chars().take(200).collect(), why }),
        }
    }

    /// The root directory.
    pub fn root() -> ImagePath {
        ImagePath("/".into())
    }

    #[doc(hidden)]
    pub fn checked_literal(path: &'static str) -> ImagePath {
        ImagePath(path.into())
    }

    /// The path as text, with its leading `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as tar names it: without the leading `/`; empty for the root.
    pub fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// Appends a relative path, which must itself be normal.
    pub fn join(&self, relative: &str) -> Result<ImagePath, InvalidPath> {
        if relative.is_empty() {
            return Ok(self.clone());
        }
        if self.is_root() {
            ImagePath::new(format!("/{relative}"))
        } else {
            ImagePath::new(format!("{}/{relative}", self.0))
        }
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<ImagePath> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.rfind('/').expect("an image path starts with a slash");
        Some(if cut == 0 { ImagePath::root() } else { ImagePath(self.0[..cut].into()) })
    }

    /// Whether `dir` is the directory that holds this path.
    pub fn is_directly_in(&self, dir: &ImagePath) -> bool {
        match self.0.rsplit_once('/') {
            Some(("", name)) => dir.is_root() && !name.is_empty(),
            Some((parent, _)) => parent == &*dir.0,
            None => false,
        }
    }

    /// The last component; empty for the root.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// All proper ancestors below the root, outermost first: `/a/b/c` gives `/a`, `/a/b`.
    pub fn ancestors(&self) -> impl Iterator<Item = ImagePath> + '_ {
        self.0.match_indices('/').skip(1).map(|(at, _)| ImagePath(self.0[..at].into()))
    }

    /// Whether `self` is `other` or lies below it.
    pub fn starts_with(&self, other: &ImagePath) -> bool {
        other.is_root() || self.0 == other.0 || self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for ImagePath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<ImagePath, InvalidPath> {
        ImagePath::new(text)
    }
}

impl Serialize for ImagePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ImagePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ImagePath, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ImagePath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path inside an image")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<ImagePath, E> {
                ImagePath::checked(path).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// An [`ImagePath`] literal, checked by the compiler.
///
/// ```
/// # use layers::path;
/// assert_eq!(path!("/app/src").to_string(), "/app/src");
/// ```
///
/// ```compile_fail
/// # use layers::path;
/// let relative = path!("app");
/// ```
#[macro_export]
macro_rules! path {
    ($literal:literal) => {{
        const _: () = if let Err(why) = $crate::check_path($literal) {
            panic!("{}", why)
        };
        $crate::ImagePath::checked_literal($literal)
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_normal_paths_pass() {
        for good in ["/", "/a", "/a/b.c", "/..a", "/.w"] {
            assert!(ImagePath::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "//", "/a/", "/a//b", "/.", "/a/..", "/a/./b", "/a\0b", "/.wh.a", "/a/.wh..wh..opq"] {
            assert!(ImagePath::new(bad).is_err(), "{bad}");
        }
        assert!(ImagePath::new(format!("/{}", "x".repeat(256))).is_err());
        assert!(ImagePath::new(format!("/{}", "x/".repeat(2000) + "x")).is_ok());
    }

    #[test]
    fn what_is_plain_passes_the_check() {
        // Every text of up to seven of these bytes.
        let mut texts = vec![String::new()];
        for from in 0.. {
            let Some(text) = texts.get(from).filter(|text| text.len() < 7).cloned() else { break };
            texts.extend(['/', '.', 'w', '\0'].map(|next| format!("{text}{next}")));
        }
        let plain: Vec<&String> = texts.iter().filter(|text| is_plain(text)).collect();
        assert!(plain.iter().all(|text| check(text).is_ok()), "{plain:?}");
        assert!(plain.iter().any(|text| *text == "/w/w/w.") && plain.len() > 50);
        assert!(is_plain(&format!("/{}", "x".repeat(254))) && !is_plain(&format!("/{}", "x".repeat(255))));
    }

    #[test]
    fn ancestors_are_listed_from_the_outside() {
        let path = ImagePath::new("/a/b/c").expect("good path");
        let names: Vec<String> = path.ancestors().map(|p| p.to_string()).collect();
        assert_eq!(names, ["/a", "/a/b"]);
        assert_eq!(path.parent().expect("has a parent").as_str(), "/a/b");
        for text in ["/", "/a", "/ab", "/a/b", "/a/b/c"] {
            let path = ImagePath::new(text).expect("good path");
            for dir in ["/", "/a", "/ab", "/a/b"].map(|dir| ImagePath::new(dir).expect("good path")) {
                assert_eq!(path.is_directly_in(&dir), path.parent() == Some(dir.clone()), "{path} in {dir}");
            }
        }
        assert!(path.starts_with(&ImagePath::new("/a").expect("good path")));
        assert!(!ImagePath::new("/ab").expect("good path").starts_with(&ImagePath::new("/a").expect("good path")));
    }
}
