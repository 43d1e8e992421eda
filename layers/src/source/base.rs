//! Base images from an OCI layout on disk.

use serde::{Deserialize, Serialize};

/// An image in an OCI image layout directory, relative to the catalogue's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OciLayout {
    /// The layout's directory.
    pub path: String,
    /// `org.opencontainers.image.ref.name` of the image; `None` where the index holds only one.
    pub name: Option<String>,
}

/// Names a base image: `Stage::from(oci_layout("vendor/base").name("base"))`.
pub fn oci_layout(path: impl Into<String>) -> OciLayout {
    OciLayout { path: path.into(), name: None }
}

impl OciLayout {
    /// Chooses an image of the layout by its reference name.
    pub fn name(mut self, name: impl Into<String>) -> OciLayout {
        self.name = Some(name.into());
        self
    }
}
