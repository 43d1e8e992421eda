//! Base images: from an OCI layout on disk, or from a registry.

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

/// An image in a registry, `registry/name:tag`. What the tag means is decided when locking: builds take the digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryImage {
    /// The reference.
    pub image: String,
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Base {
    /// In a layout.
    Layout(OciLayout),
    /// In a registry.
    Registry(RegistryImage),
}

impl Base {
    /// What a person calls it.
    pub fn label(&self) -> &str {
        match self {
            Base::Layout(layout) => layout.name.as_deref().unwrap_or(&layout.path),
            Base::Registry(image) => &image.image,
        }
    }
}

impl From<OciLayout> for Base {
    fn from(layout: OciLayout) -> Base {
        Base::Layout(layout)
    }
}

impl From<&str> for Base {
    fn from(image: &str) -> Base {
        Base::Registry(RegistryImage { image: image.to_owned() })
    }
}

impl From<String> for Base {
    fn from(image: String) -> Base {
        Base::Registry(RegistryImage { image })
    }
}
