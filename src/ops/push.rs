//! `push`: from names to images in registries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use cache::Blob;
use layers::oci::{self, Document};
use layers::{Digest, Platform};

use super::Bench;
use super::build::{Beside, Built, MADE_AGAIN, Request, Work, build_beside, weed};
use crate::error::Failure;
use crate::observe::Event;
use crate::output::NamedImage;
use crate::parallel::{at_once, begin, lock, unlocked};
use crate::registry::{
    self, Ahead, Bundle, Delivery, Planned, Pushed, Reference, Registries, RegistryError, Repository, Supply,
    TagRequest,
};
use crate::remote::RemoteSpec;

/// What is to be pushed.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// What is to be built first.
    pub build: Request,
    /// Where it goes, at least one.
    pub tags: Vec<TagRequest>,
    /// The registry and path that bare tags go to.
    pub prefix: Option<String>,
    /// Annotations of manifests and indexes.
    pub annotations: BTreeMap<String, String>,
}

/// An image that was pushed.
#[derive(Debug, Clone)]
pub struct PushedImage {
    /// What was built.
    pub built: Built,
    /// Where it is now, one entry a repository.
    pub pushed: Vec<Pushed>,
}

/// Checks everything that can be checked before the long work: names, references, credentials.
pub fn places(
    bench: &Bench<'_>,
    registries: &Registries,
    request: &PushRequest,
) -> Result<BTreeMap<String, Vec<Reference>>, Failure> {
    let images = bench.project.images(&request.build.images)?;
    if let Some(tag) = request.tags.iter().find(|tag| !tag.serves_all()).filter(|_| images.len() > 1) {
        let TagRequest::Reference(text) = tag else { unreachable!("a bare tag serves all") };
        return Err(Failure::usage(format!("`{text}` names one place for {} images", images.len()))
            .hint("write `{image}` into it, or name the image: `imgbuild push IMAGE --tag ...`"));
    }
    let mut places: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
    let mut taken: BTreeMap<Reference, String> = BTreeMap::new();
    for (name, _) in images {
        for tag in &request.tags {
            let reference = tag.resolve(name, request.prefix.as_deref())?;
            match taken.insert(reference.clone(), name.to_owned()) {
                Some(other) if other != name => {
                    return Err(Failure::usage(format!("`{other}` and `{name}` would both be pushed to {reference}")));
                }
                Some(_) => {}
                None => places.entry(name.to_owned()).or_default().push(reference),
            }
        }
    }
    let mut warned = BTreeSet::new();
    for reference in taken.keys() {
        for warning in registries.credentials(&reference.repository)?.warnings {
            if warned.insert(warning.clone()) {
                bench.observer.on(Event::Warning(&warning));
            }
        }
    }
    Ok(places)
}

/// Builds what is stale and pushes everything.
pub fn push(bench: &Bench<'_>, registries: &Registries, request: &PushRequest) -> Result<Vec<PushedImage>, Failure> {
    let places = places(bench, registries, request)?;
    let hosts: BTreeSet<&str> = places.values().flatten().map(|it| &*it.repository.registry).collect();
    // What a registry has for one repository it takes over for another: the push comes first, and its layers are not sent twice.
    let is_of_these = |place: &RemoteSpec| place.host().is_some_and(|host| hosts.contains(host));
    let held = bench.targets.filter(|targets| targets.places.iter().all(is_of_these));
    held.inspect(|targets| targets.publisher.hold());
    let (mut has_given_up, mut is_mended) = (bench.elsewhere.is_empty(), false);
    let (built, pushed) = loop {
        match build_and_push(bench, registries, request, &places) {
            Err(NotPushed::Lost(_)) if !has_given_up => {
                has_given_up = true;
                super::remote::give_up(bench);
                // What that attempt has to tell is of layers that could not be had.
                held.inspect(|targets| targets.publisher.hold());
            }
            Err(NotPushed::Damaged(_)) if !is_mended => {
                is_mended = true;
                bench.observer.on(Event::Note(MADE_AGAIN));
            }
            Err(NotPushed::Lost(why) | NotPushed::Damaged(why) | NotPushed::Other(why)) => return Err(why),
            Ok(done) => break done,
        }
    };
    held.inspect(|targets| targets.publisher.release());
    let mut pushed = pushed.into_iter();
    let mut done = Vec::new();
    for built in built {
        let top = Digest::of(&built.image.top().bytes);
        // They are in the order of the images; two images may be equal byte for byte, so places decide.
        let count = repositories(&places[&built.image.name]).len();
        let mine: Vec<Pushed> = pushed.by_ref().take(count).collect();
        debug_assert!(mine.iter().all(|it| it.digest.sha256() == Some(top)));
        done.push(PushedImage { built, pushed: mine });
    }
    Ok(done)
}

/// Why an attempt to push failed.
enum NotPushed {
    /// A layer was not where it should be, or was another: a cache elsewhere may be to blame.
    Lost(Failure),
    /// A layer was damaged here, or gone. All that were are removed.
    Damaged(Failure),
    Other(Failure),
}

impl<E: Into<Failure>> From<E> for NotPushed {
    fn from(error: E) -> NotPushed {
        NotPushed::Other(error.into())
    }
}

/// Images as they were built, and what came of their deliveries, in the same order.
fn build_and_push(
    bench: &Bench<'_>,
    registries: &Registries,
    request: &PushRequest,
    places: &BTreeMap<String, Vec<Reference>>,
) -> Result<(Vec<Built>, Vec<Pushed>), NotPushed> {
    std::thread::scope(|scope| {
        // Nothing goes on for longer than the push, whatever ends it.
        let _stops = Stops(registries);
        let (one, told, later) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
        let platforms = request.build.platforms.len();
        let beside = Sends { bench, registries, places, platforms, scope, one, told, later };
        let ready = prepare(bench, request, places, &beside);
        let push = || {
            let (built, deliveries, supply) = ready.inspect_err(|_| registries.end_uploads())?;
            let pushed = registries.push(&deliveries, &supply, bench.observer);
            for trouble in bench.elsewhere.troubles() {
                bench.observer.on(Event::Warning(&trouble));
            }
            match pushed {
                Ok(pushed) => Ok((built, pushed)),
                // Who should have brought it has said why.
                Err(error @ RegistryError::Lost(_)) if !bench.elsewhere.is_empty() => {
                    Err(NotPushed::Lost(error.into()))
                }
                Err(error @ (RegistryError::Damaged(_) | RegistryError::Lost(_))) => {
                    weed(bench, &built)?;
                    Err(NotPushed::Damaged(error.into()))
                }
                Err(error @ RegistryError::File { .. }) if !bench.elsewhere.is_empty() => {
                    bench.elsewhere.distrust();
                    bench.observer.on(Event::Warning(&format!("a cache elsewhere is passed over: {error}")));
                    Err(NotPushed::Lost(error.into()))
                }
                Err(error) => Err(error.into()),
            }
        };
        let later = unlocked(beside.later);
        let Some(later) = later else { return push() };
        let (pushed, done) = at_once(push, later);
        if let Err(failure) = done {
            let why =
                format!("the cache does not know what was pushed, and the next build is slower: {}", failure.message);
            bench.observer.on(Event::Warning(&why));
        }
        pushed
    })
}

/// Builds what is stale and says what a push would send.
pub fn plan_push(bench: &Bench<'_>, registries: &Registries, request: &PushRequest) -> Result<Vec<Planned>, Failure> {
    let places = places(bench, registries, request)?;
    let (_, deliveries, supply) = prepare(bench, request, &places, &Asks { registries, places: &places })?;
    Ok(registries.plan_push(&deliveries, &supply, bench.observer)?)
}

/// Asks the registries beside a build. Who may not push is told so before the long work; where there is none, the push itself tells.
struct Asks<'a> {
    registries: &'a Registries,
    places: &'a BTreeMap<String, Vec<Reference>>,
}

impl Beside<'_> for Asks<'_> {
    fn check(&self, _made: &[&str]) -> Result<(), Failure> {
        let repositories = self.places.values().flatten().map(|place| &place.repository);
        Ok(self.registries.may_push(&repositories.map(|it| (it, Ahead::default())).collect())?)
    }

    fn made(&self, _image: &str, _layer: Blob) {}
}

/// Asks as [`Asks`] does, begins the uploads that an image which changed needs at least, and sends layers as they are made.
struct Sends<'scope, 'env> {
    bench: &'env Bench<'env>,
    registries: &'env Registries,
    places: &'env BTreeMap<String, Vec<Reference>>,
    /// For so many platforms.
    platforms: usize,
    scope: &'scope Scope<'scope, 'env>,
    /// Whether one may push, and one image alone is made: what several have in common is sent once, and mounted.
    one: AtomicBool,
    /// What caches elsewhere said of the last build of each image, for each platform.
    told: Mutex<BTreeMap<String, Told>>,
    /// What is done beside the push.
    later: Mutex<Option<Work<'env>>>,
}

/// What an image was delivered as, and its blobs, for each platform.
type Told = BTreeMap<Platform, (Digest, Vec<Digest>)>;

/// Ends what is sent ahead when it is dropped.
struct Stops<'a>(&'a Registries);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.stop_ahead();
    }
}

impl<'env> Beside<'env> for Sends<'_, 'env> {
    fn check(&self, made: &[&str]) -> Result<(), Failure> {
        self.one.store(false, Ordering::Relaxed);
        let mut ahead: BTreeMap<&Repository, Ahead> = BTreeMap::new();
        for (image, place) in self.places.iter().flat_map(|(image, places)| places.iter().map(move |it| (image, it))) {
            let platforms = made.iter().filter(|name| *name == image).count();
            let wanted = ahead.entry(&place.repository).or_insert_with(|| Ahead {
                uploads: 0,
                last: registry::last_pushed(self.bench.store, &place.repository),
            });
            // A configuration and a layer of each platform.
            wanted.uploads = wanted.uploads.max(2 * platforms);
        }
        self.registries.may_push(&ahead)?;
        self.one.store(made.windows(2).all(|two| two[0] == two[1]), Ordering::Relaxed);
        Ok(())
    }

    fn made(&self, image: &str, layer: Blob) {
        let Some(places) = self.places.get(image).filter(|_| self.one.load(Ordering::Relaxed)) else { return };
        let mut registries = BTreeSet::new();
        for Reference { repository, .. } in places {
            // The others of its registry mount it.
            if registries.insert(&repository.registry)
                && let Some(announced) = self.registries.announce(self.bench.store, repository, layer)
            {
                let (registries, bench) = (self.registries, self.bench);
                let send = move || registries.send_ahead(announced, bench.store, bench.observer);
                // Where no thread can be had, the push sends it.
                let _ = begin(self.scope, send);
            }
        }
    }

    fn last(&self, image: &str, platform: Platform, top: Digest, blobs: Vec<Digest>) -> Result<(), Failure> {
        let mut told = lock(&self.told);
        let of_image = told.entry(image.to_owned()).or_default();
        of_image.insert(platform, (top, blobs));
        // Where platforms were delivered apart, none of that names all blobs.
        if of_image.len() == self.platforms && of_image.values().all(|(other, _)| *other == top) {
            for Reference { repository, .. } in self.places.get(image).into_iter().flatten() {
                let is_here = |place: &Reference| place.repository == *repository;
                // Of several images in a repository, one is not what the others were.
                if !self.places.iter().any(|(other, places)| other != image && places.iter().any(is_here)) {
                    let blobs = of_image.values().flat_map(|(_, blobs)| blobs.iter().copied());
                    registry::may_have(self.bench.store, repository, top, blobs)?;
                }
            }
        }
        Ok(())
    }

    fn later(&self, work: Work<'env>) -> Result<(), Failure> {
        let before = lock(&self.later).replace(work);
        before.map_or(Ok(()), |work| work())
    }
}

fn prepare<'b>(
    bench: &'b Bench<'_>,
    request: &PushRequest,
    places: &BTreeMap<String, Vec<Reference>>,
    beside: &dyn Beside<'b>,
) -> Result<(Vec<Built>, Vec<Delivery>, Supply), Failure> {
    let mut built = build_beside(bench, &request.build, beside)?;
    if !request.annotations.is_empty() {
        for it in &mut built {
            it.image = annotated(&it.image, &request.annotations);
        }
    }
    let mut deliveries = Vec::new();
    for it in &built {
        let bundle = Arc::new(Bundle::of(&it.image)?);
        for (repository, tags) in repositories(&places[&it.image.name]) {
            deliveries.push(Delivery { bundle: bundle.clone(), repository, tags });
        }
    }
    let images: Vec<NamedImage> = built.iter().map(|it| it.image.clone()).collect();
    let mut supply = Supply::of(&images, bench.store);
    // Layers of a base are where the base is: the same registry mounts them.
    for platform in built.iter().flat_map(|it| &it.platforms) {
        let Some(reference) = platform.base.as_ref().and_then(|text| text.parse::<Reference>().ok()) else { continue };
        for layer in &platform.base_layers {
            let origins = supply.origins.entry(layer.digest.into()).or_default();
            if !origins.contains(&reference.repository) {
                origins.push(reference.repository.clone());
            }
        }
    }
    super::remote::point_to(bench, &built, &mut supply)?;
    Ok((built, deliveries, supply))
}

/// References by repository, in their order.
fn repositories(references: &[Reference]) -> Vec<(Repository, Vec<String>)> {
    let mut found: Vec<(Repository, Vec<String>)> = Vec::new();
    for reference in references {
        let tag = reference.tag.clone().unwrap_or_else(|| "latest".into());
        match found.iter_mut().find(|(repository, _)| *repository == reference.repository) {
            Some((_, tags)) => tags.push(tag),
            None => found.push((reference.repository.clone(), vec![tag])),
        }
    }
    found
}

/// The image with annotations on each manifest and on its index.
fn annotated(image: &NamedImage, annotations: &BTreeMap<String, String>) -> NamedImage {
    let mut image = image.clone();
    for platform in &mut image.platforms {
        platform.manifest = annotate(&platform.manifest, annotations);
    }
    if image.index.is_some() {
        image.index = Some(annotate(&oci::index(&image.platforms), annotations));
    }
    image
}

/// Adds `annotations` as the last field, where the specification has it.
fn annotate(document: &Document, annotations: &BTreeMap<String, String>) -> Document {
    let mut bytes = document.bytes.clone();
    let end = bytes.pop();
    debug_assert_eq!(end, Some(b'}'), "a document is a JSON object without white space");
    bytes.extend_from_slice(b",\"annotations\":");
    bytes.extend(serde_json::to_vec(annotations).expect("texts have no trouble becoming JSON"));
    bytes.push(b'}');
    Document { media_type: document.media_type, digest: Digest::of(&bytes), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_end_a_document() {
        let bytes = br#"{"schemaVersion":2,"layers":[]}"#.to_vec();
        let document = Document { media_type: oci::MANIFEST, digest: Digest::of(&bytes), bytes };
        let annotations = BTreeMap::from([("b".to_owned(), "2\"".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let annotated = annotate(&document, &annotations);
        let text = String::from_utf8(annotated.bytes.clone()).expect("is text");
        assert_eq!(text, r#"{"schemaVersion":2,"layers":[],"annotations":{"a":"1","b":"2\""}}"#);
        assert_eq!(annotated.digest, Digest::of(&annotated.bytes));
    }
}
