//! The exact images of a build or a push, as an override for compose, an image patch for kustomize, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use layers::Digest;
use thiserror::Error;

use crate::compose::Project;

/// One image, pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The image's name in the catalogue, such as `rag`.
    pub image: String,
    /// The repository without tag, such as `ghcr.io/you/obelisk/rag`.
    pub repository: String,
    /// The tag that people read.
    pub tag: String,
    /// What is really run; `None` leaves it to the tag.
    pub digest: Option<String>,
}

impl Pin {
    /// `repository:tag@digest`, or without a digest `repository:tag`.
    pub fn reference(&self) -> String {
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        format!("{}:{}{digest}", self.repository, self.tag)
    }
}

/// Pins that cannot be rendered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RenderError {
    /// A digest is not `sha256:` and 64 hex digits.
    #[error("image `{image}`: `{digest}` is not a digest")]
    Digest {
        /// The image.
        image: String,
        /// The text.
        digest: String,
    },
    /// A tag is not one.
    #[error("image `{image}`: `{tag}` is not a tag: letters, digits, `_`, `.` and `-`, at most 128, `latest` refused")]
    Tag {
        /// The image.
        image: String,
        /// The text.
        tag: String,
    },
    /// A service needs an image that is not pinned.
    #[error("service `{service}` runs the image `{image}`, which is not among the pinned ones: {known}")]
    Unpinned {
        /// The service.
        service: String,
        /// The image.
        image: String,
        /// What is pinned.
        known: String,
    },
}

/// Which services of a project run which image of ours: those whose image is `PREFIX/NAME:TAG` of the settings.
pub fn ours(project: &Project) -> BTreeMap<String, String> {
    let setting = |name: &str, default: &'static str| {
        let written = project.variables.get(name).cloned().flatten().unwrap_or_else(|| default.to_owned());
        project.settings.get(name).filter(|value| !value.is_empty()).cloned().unwrap_or(written)
    };
    let prefix = format!("{}/", setting("OBELISK_IMAGES", "obelisk"));
    let suffix = format!(":{}", setting("OBELISK_TAG", "0.1.0"));
    let services = project.services();
    let name = |image: &str| image.strip_prefix(&prefix)?.strip_suffix(&suffix).map(str::to_owned);
    services.into_iter().filter_map(|(service, it)| Some((service, name(&it.image)?))).collect()
}

fn checked(pins: &[Pin]) -> Result<BTreeMap<&str, &Pin>, RenderError> {
    for pin in pins {
        if let Some(digest) = &pin.digest
            && digest.parse::<Digest>().is_err()
        {
            return Err(RenderError::Digest { image: pin.image.clone(), digest: digest.clone() });
        }
        let first = pin.tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let rest = pin.tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if !first || !rest || pin.tag.len() > 128 || pin.tag == "latest" {
            return Err(RenderError::Tag { image: pin.image.clone(), tag: pin.tag.clone() });
        }
    }
    Ok(pins.iter().map(|pin| (pin.image.as_str(), pin)).collect())
}

/// An override for `docker compose -f ENTRY -f OVERRIDE`: every service that runs an image of ours, pinned.
pub fn compose(project: &Project, pins: &[Pin]) -> Result<String, RenderError> {
    let pins = checked(pins)?;
    let mut out = String::from("# Made by `imgbuild deploy render`: exactly these images.\nservices:\n");
    for (service, image) in ours(project) {
        let Some(pin) = pins.get(image.as_str()) else {
            let known = pins.keys().copied().collect::<Vec<_>>().join(", ");
            return Err(RenderError::Unpinned { service, image, known });
        };
        let _ = writeln!(out, "  {service}:\n    image: {}", pin.reference());
    }
    Ok(out)
}

/// A kustomize component that replaces the images of the base; `prefix` is what the base calls them by, such as `obelisk`.
pub fn kustomize(prefix: &str, pins: &[Pin]) -> Result<String, RenderError> {
    let mut out = String::from(
        "# Made by `imgbuild deploy render`: exactly these images.\napiVersion: kustomize.config.k8s.io/v1alpha1\n\
         kind: Component\nimages:\n",
    );
    for pin in checked(pins)?.values() {
        // kustomize writes `name:tag@digest` only when the tag is part of the new name.
        let _ = writeln!(out, "  - name: {prefix}/{}\n    newName: {}", pin.image, pin.repository);
        let _ = writeln!(out, "    newTag: {}", pin.tag);
        if let Some(digest) = &pin.digest {
            let _ = writeln!(out, "    digest: {digest}");
        }
    }
    Ok(out)
}

/// `{"images": [{"image", "repository", "tag", "digest", "reference"}]}`.
pub fn json(pins: &[Pin]) -> Result<String, RenderError> {
    let images: Vec<_> = checked(pins)?
        .values()
        .map(|pin| {
            serde_json::json!({
                "image": pin.image, "repository": pin.repository, "tag": pin.tag, "digest": pin.digest,
                "reference": pin.reference(),
            })
        })
        .collect();
    Ok(format!("{:#}\n", serde_json::json!({"version": 1, "images": images})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(tag: &str, digest: &str) -> Pin {
        Pin { image: "rag".into(), repository: "r/rag".into(), tag: tag.into(), digest: Some(digest.into()) }
    }

    #[test]
    fn what_is_not_a_pin_is_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert!(json(&[pin("1.0", &digest)]).is_ok());
        for bad in ["sha256:abc", "", "sha256:../../x", "md5:0"] {
            assert!(matches!(json(&[pin("1.0", bad)]), Err(RenderError::Digest { .. })), "{bad}");
        }
        for bad in ["latest", "", "-a", "a b", "a:b"] {
            assert!(matches!(json(&[pin(bad, &digest)]), Err(RenderError::Tag { .. })), "{bad}");
        }
    }
}
