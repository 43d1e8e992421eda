//! From the names in headers to paths of an image.

use super::{FORMAT, TarItem};
use crate::format::FormatError;
use crate::format::error::lossy;
use crate::path::{self, ImagePath};

fn bad(name: &[u8], why: &'static str) -> FormatError {
    FormatError::Name { format: FORMAT, name: lossy(name), why }
}

/// The normal form of a relative name: `./a//b/` becomes `/a/b`. Nothing but a directory is the root or ends with `/`.
pub(super) fn path(name: &[u8], max: usize, dir: bool) -> Result<ImagePath, FormatError> {
    let normal = normal(name, max)?;
    if !dir && (name.ends_with(b"/") || name.ends_with(b"/.")) {
        return Err(bad(name, "only a directory's name ends with `/`"));
    }
    if !dir && normal == "/" {
        return Err(bad(name, "only a directory can be the root"));
    }
    path::check(&normal).map_err(|why| bad(name, why))?;
    ImagePath::new(normal).map_err(|_| bad(name, "it is not a path inside an image"))
}

/// The target of a symbolic link, kept as written.
pub(super) fn target(target: Vec<u8>, max: usize) -> Result<String, FormatError> {
    if target.is_empty() {
        return Err(bad(&target, "a symbolic link needs a target"));
    }
    if target.len() > max {
        return Err(bad(&target, "the target of the symbolic link is too long"));
    }
    if target.contains(&0) {
        return Err(bad(&target, "it has a NUL byte"));
    }
    String::from_utf8(target).map_err(|error| bad(error.as_bytes(), "it is not UTF-8"))
}

/// What a name of an OCI layer deletes, if it does. `empty_file` says whether the entry is what a whiteout must be.
pub(super) fn whiteout(name: &[u8], max: usize, empty_file: bool) -> Result<Option<TarItem>, FormatError> {
    let normal = normal(name, max)?;
    let (parent, last) = normal.rsplit_once('/').unwrap_or(("", &normal));
    let Some(hidden) = last.strip_prefix(".wh.") else { return Ok(None) };
    let dir = if parent.is_empty() { "/" } else { parent };
    path::check(dir).map_err(|why| bad(name, why))?;
    let dir = ImagePath::new(dir).map_err(|_| bad(name, "it is not a path inside an image"))?;
    let item = if hidden == ".wh..opq" {
        TarItem::Opaque { dir }
    } else if hidden.starts_with(".wh.") {
        return Err(FormatError::Unsupported { format: FORMAT, name: lossy(name), what: "aufs metadata".into() });
    } else {
        if matches!(hidden, "" | "." | "..") {
            return Err(bad(name, "the whiteout hides nothing inside its directory"));
        }
        TarItem::Whiteout { path: dir.join(hidden).map_err(|_| bad(name, "it is not a path inside an image"))? }
    };
    if !empty_file || name.ends_with(b"/") {
        return Err(bad(name, "a whiteout is an empty file"));
    }
    Ok(Some(item))
}

/// Checks a name and drops its `.` and empty components.
fn normal(name: &[u8], max: usize) -> Result<String, FormatError> {
    if name.is_empty() {
        return Err(bad(name, "it is empty"));
    }
    if name.len() > max {
        return Err(bad(name, "it is longer than a path may be"));
    }
    if name.contains(&0) {
        return Err(bad(name, "it has a NUL byte"));
    }
    let text = std::str::from_utf8(name).map_err(|_| bad(name, "it is not UTF-8"))?;
    if text.starts_with('/') {
        return Err(bad(name, "it is absolute"));
    }
    let mut normal = String::with_capacity(name.len() + 1);
    for component in text.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err(bad(name, "it has a `..` component")),
            component => {
                normal.push('/');
                normal.push_str(component);
            }
        }
    }
    if normal.is_empty() {
        normal.push('/');
    }
    Ok(normal)
}
