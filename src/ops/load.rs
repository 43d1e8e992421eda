//! `load` and `copy`: images into engines, and from one place to another.

use layers::Platform;

use super::Bench;
use super::build::{Built, MADE_AGAIN, Request, build_whole, weed};
use crate::error::Failure;
use crate::observe::Event;
use crate::places::{Held, Into, Loaded, Loading, Place, PlaceError, Reach, load};
use crate::registry::{Bundle, RegistryError, Supply, TagRequest};

/// Builds what is stale and loads it into an engine under `tag`.
pub fn load_images(
    bench: &Bench<'_>,
    reach: &Reach<'_>,
    request: &Request,
    tag: &TagRequest,
    into: Into,
) -> Result<Vec<Loaded>, Failure> {
    let images = bench.project.images(&request.images)?;
    if let (TagRequest::Reference(text), false) = (tag, tag.serves_all())
        && images.len() > 1
    {
        return Err(Failure::usage(format!("`{text}` is one name for {} images", images.len()))
            .hint("write `{image}` into it, or name the image"));
    }
    if request.platforms.len() != 1 {
        return Err(Failure::usage("an engine takes one platform: choose it with `--platform`"));
    }
    let name = |image: &str| match tag {
        TagRequest::Tag(tag) => Ok(format!("{image}:{tag}")),
        TagRequest::Reference(_) => tag.resolve(image, None).map(|reference| reference.to_string()),
    };
    for (image, _) in &images {
        name(image)?;
    }
    let loading = |built: &[Built]| -> Result<Vec<Loading>, Failure> {
        let load = |Built { image, .. }: &Built| -> Result<Loading, Failure> {
            let supply = Supply::of(std::slice::from_ref(image), bench.store);
            Ok(Loading { held: Held { bundle: Bundle::of(image)?, supply }, name: name(&image.name)? })
        };
        built.iter().map(load).collect()
    };
    let built = build_whole(bench, request)?;
    match load(reach, into, &loading(&built)?) {
        Err(PlaceError::Registry(RegistryError::Damaged(_) | RegistryError::Lost(_))) => {
            bench.observer.on(Event::Note(MADE_AGAIN));
            weed(bench, &built)?;
            Ok(load(reach, into, &loading(&build_whole(bench, request)?)?)?)
        }
        done => Ok(done?),
    }
}

/// Copies an image, for all its platforms or one. Returns its digest.
pub fn copy(reach: &Reach<'_>, from: &Place, to: &Place, platform: Option<Platform>) -> Result<String, Failure> {
    let mut held = reach.read(from)?;
    if let Some(platform) = platform {
        let is_single = held.bundle.documents.len() == 1;
        held = held.for_platform(platform)?;
        if is_single {
            reach.check_platform(&held, platform)?;
        }
    }
    let digest = held.top().digest.to_string();
    reach.write(held, to)?;
    Ok(digest)
}
