//! The documents of an image.

use std::collections::BTreeMap;

use layers::lower::PinnedBase;
use layers::oci::{self, BuiltImage, Document, ImageParts, LayerPart};
use layers::{Digest, ImageConfig, PlannedImage};

use super::{Built, BuiltLayer, BuiltPlatform, Request, Trouble, Wanted, within_budget};
use crate::ops::Bench;
use crate::output::NamedImage;

/// Writes the documents of an image.
pub(super) fn finish<'a>(
    bench: &Bench<'_>,
    request: &Request,
    name: &str,
    image: &PlannedImage,
    wanted: impl Iterator<Item = &'a Wanted<'a>>,
    created: i64,
    cached: bool,
) -> Result<Built, Trouble> {
    let mut images: Vec<BuiltImage> = Vec::new();
    let mut platforms = Vec::new();
    let mut blobs: Vec<(Digest, u64)> = Vec::new();
    for it in wanted {
        let record = it.record.as_ref().expect("every image has its record by now");
        within_budget(it, record.layers.len(), record.base.as_ref().map(|(_, base)| base))?;
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let label = |labels: &mut BTreeMap<String, String>, key: &str, value: String| {
            labels.insert(format!("org.opencontainers.image.{key}"), value);
        };
        label(&mut labels, "created", oci::rfc3339(created));
        if !image.description.is_empty() {
            label(&mut labels, "description", image.description.clone());
        }
        if let (Some((digest, _)), Some(base)) = (&record.base, &it.resolved.base) {
            label(&mut labels, "base.name", base.label().to_owned());
            label(&mut labels, "base.digest", digest.to_string());
        }
        // What a definition says wins over what is derived, and the request over both.
        labels.retain(|key, _| !image.config.labels.contains_key(key));
        labels.extend(request.labels.clone());
        let adds_nothing = record.base.is_some()
            && it.resolved.layers.is_empty()
            && image.config == ImageConfig::default()
            && image.description.is_empty()
            && request.labels.is_empty();
        if adds_nothing {
            // It is its base, to the digest of the configuration.
            labels.clear();
        }
        let parts = ImageParts {
            platform: it.platform,
            created: oci::rfc3339(created),
            config: &image.config,
            labels,
            base: record.base.as_ref().map(|(_, parts)| parts.clone()),
            layers: record
                .layers
                .iter()
                .zip(&it.resolved.layers)
                .map(|(layer, planned)| LayerPart {
                    digest: layer.digest,
                    size: layer.size,
                    diff_id: layer.diff_id,
                    media_type: bench.compression.media_type().into(),
                    created_by: planned.label(),
                })
                .collect(),
        };
        let base_layers: Vec<oci::Descriptor> = parts.base.iter().flat_map(|base| base.layers.clone()).collect();
        let own = record.layers.iter().map(|layer| (layer.digest, layer.size));
        for blob in base_layers.iter().map(|layer| (layer.digest, layer.size)).chain(own) {
            if !blobs.contains(&blob) {
                blobs.push(blob);
            }
        }
        platforms.push(BuiltPlatform {
            platform: it.platform,
            base: match &it.resolved.base {
                Some(PinnedBase::Registry { image, .. }) => Some(image.clone()),
                _ => None,
            },
            base_layers,
            layers: parts
                .layers
                .iter()
                .map(|layer| BuiltLayer {
                    digest: layer.digest,
                    diff_id: layer.diff_id,
                    size: layer.size,
                    created_by: layer.created_by.clone(),
                })
                .collect(),
            packages: record.packages.clone(),
            commands: record.commands.clone(),
        });
        images.push(parts.build());
    }
    for document in images.iter().flat_map(|image| [&image.config, &image.manifest]) {
        bench.store.put(&document.bytes)?;
    }
    let index: Option<Document> = (images.len() > 1).then(|| oci::index(&images));
    if let Some(index) = &index {
        bench.store.put(&index.bytes)?;
    }
    Ok(Built {
        image: NamedImage { name: name.to_owned(), platforms: images, index, layers: blobs },
        platforms,
        cached,
    })
}
