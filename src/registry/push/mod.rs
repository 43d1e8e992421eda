//! Images into repositories: what is there is not sent, what is shared is sent once, tags come last.
//!
//! For each image: HEAD its manifest by digest, and beside it what was there last; if it is there, only the tags are
//! written. Else its blobs are brought (known, mounted from a sister repository, or uploaded), then manifests by digest,
//! children before their index; what the tags name is written by them, last. Blobs that are new are brought beside the first
//! questions, or came while the image was built ([`ahead`](super::ahead)); where that is all that is new and it had to be sent, the
//! manifest is not asked for. All images go at once. Where two repositories of a registry want the same blob, the image that comes first
//! uploads it and the others mount it; a wait is always for an image that comes earlier, so none can be circular.

mod bring;
mod manifests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::{Either, FutureExt as _, join, join3, select, try_join, try_join_all};
use tokio::sync::OnceCell;

use super::client::Client;
use super::digest::AnyDigest;
use super::document::Descriptor;
use super::error::RegistryError;
use super::memo::{Memo, Remembered};
use super::reference::{Reference, Repository};
use super::supply::{Delivery, Supply};
use crate::failpoint::Push;
use crate::observe::{Event, Observer};
use crate::parallel::{lock, unlocked};

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The image with its tag and digest, one for each tag.
    pub references: Vec<Reference>,
    /// Its digest.
    pub digest: AnyDigest,
    /// Whether the registry had it already.
    pub known: bool,
}

/// What would be done with a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The repository.
    pub repository: Repository,
    /// The blob or manifest.
    pub digest: AnyDigest,
    /// Its bytes.
    pub size: u64,
    /// What would be done.
    pub act: Act,
}

/// What is done with a blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It is there.
    Keep,
    /// It is taken over from another repository, if the registry does that.
    Mount(String),
    /// It is sent.
    Send,
}

/// Blobs of repositories, and whether each is there by now.
type Brought = HashMap<(Repository, AnyDigest), Arc<OnceCell<()>>>;

/// What is sent of an image about as fast as it is asked for, bytes: a trip of 30 ms at 280 Mbit/s.
pub(super) const UNASKED: u64 = 1 << 20;

/// A push in progress.
struct Run<'a> {
    client: &'a Client,
    deliveries: &'a [Delivery],
    supply: &'a Supply,
    memo: Memo,
    /// What the memo says of each repository.
    last: HashMap<&'a Repository, Remembered>,
    observer: &'a dyn Observer,
    /// The deliveries that want a blob, by registry, first one first.
    wanted: HashMap<(&'a str, AnyDigest), Vec<usize>>,
    /// Each blob of each repository is brought once.
    brought: Mutex<Brought>,
    /// Deliveries whose manifests are in their repositories.
    published: Vec<tokio::sync::watch::Sender<bool>>,
    /// What repositories are known to have.
    known: Mutex<HashMap<Repository, BTreeSet<AnyDigest>>>,
    /// Blobs whose presence was claimed and is not true.
    missing: Mutex<BTreeSet<(Repository, AnyDigest)>>,
    /// Registries that mount only what a manifest of the source refers to.
    wants_manifests: Mutex<BTreeSet<String>>,
    /// The blobs of each delivery that are hardly anywhere; none where nothing is sent.
    new: Vec<BTreeMap<AnyDigest, &'a Descriptor>>,
    /// Those of them that are sent without asking.
    unasked: Vec<BTreeSet<AnyDigest>>,
    dry: Option<Mutex<Vec<Planned>>>,
    uploads: AtomicBool,
}

impl Client {
    /// Pushes everything. The first failure ends it; what was sent stays and is found by the next push.
    pub async fn push(
        &self,
        deliveries: &[Delivery],
        supply: &Supply,
        observer: &dyn Observer,
    ) -> Result<Vec<Pushed>, RegistryError> {
        let run = Run::new(self, deliveries, supply, observer, false);
        let pushed = try_join_all((0..deliveries.len()).map(|at| run.deliver(at))).await;
        if pushed.is_err() {
            self.end_uploads(None).await;
        }
        self.forget_ahead();
        let Err(RegistryError::Damaged(digest)) = pushed else { return pushed };
        if supply.files.contains_key(&digest) {
            return Err(supply.damaged(digest));
        }
        if let (Some(store), Some(sha256)) = (&supply.store, digest.sha256()) {
            store.remove(&sha256)?;
        }
        pushed
    }

    /// Finds out what a push would send, by asking only.
    pub async fn plan_push(
        &self,
        deliveries: &[Delivery],
        supply: &Supply,
        observer: &dyn Observer,
    ) -> Result<Vec<Planned>, RegistryError> {
        let run = Run::new(self, deliveries, supply, observer, true);
        try_join_all((0..deliveries.len()).map(|at| run.deliver(at))).await?;
        let planned = run.dry.map(unlocked);
        let mut planned = planned.unwrap_or_default();
        planned.sort_by(|a, b| (&a.repository, a.digest).cmp(&(&b.repository, b.digest)));
        Ok(planned)
    }
}

impl<'a> Run<'a> {
    fn new(
        client: &'a Client,
        deliveries: &'a [Delivery],
        supply: &'a Supply,
        observer: &'a dyn Observer,
        dry: bool,
    ) -> Run<'a> {
        let mut wanted: HashMap<(&str, AnyDigest), Vec<usize>> = HashMap::new();
        for (at, delivery) in deliveries.iter().enumerate() {
            for blob in delivery.bundle.blobs.iter().flatten() {
                let who = wanted.entry((delivery.repository.registry.as_str(), blob.digest)).or_default();
                if who.last() != Some(&at) {
                    who.push(at);
                }
            }
        }
        let memo = supply.store.as_ref().map(Memo::new).unwrap_or_default();
        let repositories = deliveries.iter().map(|delivery| &delivery.repository);
        let last = repositories.filter_map(|repository| Some((repository, memo.last(repository)?))).collect();
        let mut run = Run {
            client,
            deliveries,
            supply,
            memo,
            last,
            observer,
            wanted,
            brought: Mutex::default(),
            published: deliveries.iter().map(|_| tokio::sync::watch::channel(false).0).collect(),
            known: Mutex::default(),
            missing: Mutex::default(),
            wants_manifests: Mutex::default(),
            new: Vec::new(),
            unasked: Vec::new(),
            dry: dry.then(Mutex::default),
            uploads: AtomicBool::new(false),
        };
        if !dry {
            run.new = (0..deliveries.len()).map(|at| run.new_blobs(at)).collect();
            run.unasked = run.new.iter().map(|new| few(new.values().copied())).collect();
        }
        run
    }

    fn planned(&self, repository: &Repository, digest: AnyDigest, size: u64, act: Act) {
        if let Some(dry) = &self.dry {
            lock(dry).push(Planned { repository: repository.clone(), digest, size, act });
        }
    }

    async fn deliver(&self, at: usize) -> Result<Pushed, RegistryError> {
        let delivery = &self.deliveries[at];
        let (repository, top) = (&delivery.repository, delivery.bundle.top());
        let asked = try_join(self.is_there(at), self.recall(repository, top.digest)).boxed();
        let (asked, ahead) = match select(asked, self.send_ahead(at).boxed()).await {
            // What it says does not wait for what is being sent.
            Either::Left((Err(error), _)) => return Err(error),
            Either::Left((asked, ahead)) => (asked, ahead.await),
            Either::Right((ahead, asked)) => (asked.await, ahead),
        };
        let (mut known, ()) = asked?;
        if known {
            self.observer.on(Event::Present { name: &repository.at(top.digest).to_string() });
            self.planned(repository, top.digest, top.bytes.len() as u64, Act::Keep);
            self.published[at].send_replace(true);
            let (tagged, ()) = join(self.tag(delivery), self.client.end_uploads(Some(repository))).await;
            match tagged {
                // It said that it has the manifest, and now it misses what the manifest names.
                Err(error) if misses(&error) => known = false,
                done => done?,
            }
        }
        if !known {
            ahead?;
            self.publish(at).await?;
        }
        if self.dry.is_none() {
            self.remember(at, known)?;
        }
        let references: Vec<Reference> = match delivery.tags.is_empty() {
            true => vec![repository.at(top.digest)],
            false => delivery.tags.iter().map(|tag| repository.tagged(tag).pinned(top.digest)).collect(),
        };
        if self.dry.is_none()
            && let Some(digest) = top.digest.sha256()
        {
            for reference in delivery.tags.iter().map(|tag| repository.tagged(tag)) {
                self.observer.on(Event::Tagged { reference: &reference.to_string(), digest });
            }
        }
        Ok(Pushed { references, digest: top.digest, known })
    }

    /// Whether the image itself is there. One of which all that is new is sent without that question would gain nothing by it.
    async fn is_there(&self, at: usize) -> Result<bool, RegistryError> {
        let Delivery { repository, bundle, tags } = &self.deliveries[at];
        let is_sent = self.new.get(at).is_some_and(|new| {
            let sent =
                |blob: &AnyDigest| self.unasked[at].contains(blob) || self.client.is_sent_ahead(repository, *blob);
            !new.is_empty() && new.keys().all(sent)
        });
        let is_known = |digest| self.last.get(repository).is_some_and(|last| last.below.contains(digest));
        let mut blobs = bundle.blobs.iter().flatten().filter(|blob| !blob.is_foreign());
        if is_sent
            && !tags.is_empty()
            && blobs.all(|blob| is_known(&blob.digest) || self.new[at].contains_key(&blob.digest))
        {
            return Ok(false);
        }
        self.client.has_manifest(repository, bundle.top().digest, &bundle.top().media_type).await
    }

    /// Takes over what the memo says about a repository, if the registry still has what the memo was written for. That is
    /// asked beside the question for `top`, unless it is the same question.
    async fn recall(&self, repository: &Repository, top: AnyDigest) -> Result<(), RegistryError> {
        let Some(remembered) = self.last.get(repository).filter(|it| it.top != top) else { return Ok(()) };
        let was_seen = self.client.was_seen(repository, remembered.top);
        if was_seen || self.client.has_manifest(repository, remembered.top, "").await? {
            let mut known = lock(&self.known);
            let of_repository = known.entry(repository.clone()).or_default();
            of_repository.extend(&remembered.below);
            of_repository.insert(remembered.top);
        } else {
            self.memo.forget(repository)?;
        }
        Ok(())
    }

    fn remember(&self, at: usize, known: bool) -> Result<(), RegistryError> {
        let delivery = &self.deliveries[at];
        let bundle = &delivery.bundle;
        let below = bundle.documents.iter().map(|document| document.digest);
        let blobs = bundle.blobs.iter().flatten().filter(|blob| !blob.is_foreign()).map(|blob| blob.digest);
        let remembered = Remembered { top: bundle.top().digest, below: below.chain(blobs).collect() };
        self.memo.keep(&delivery.repository, &remembered)?;
        if known {
            // Where images share a repository, the memo has one of them: the blobs of others are not new for ever.
            let shares = self.deliveries.iter().filter(|it| it.repository == delivery.repository).count() > 1;
            let new = &self.new[at];
            let blobs = bundle.blobs.iter().flatten().filter(|blob| !blob.is_foreign());
            for blob in blobs.filter(|blob| shares || new.contains_key(&blob.digest)) {
                self.memo.holds(&delivery.repository, &blob.digest)?;
            }
        }
        Ok(())
    }

    /// Remembers that the blobs that were brought are there.
    fn remember_brought(&self, delivery: &Delivery) -> Result<(), RegistryError> {
        if self.uploads.load(Ordering::Relaxed) {
            for blob in delivery.bundle.blobs.iter().flatten() {
                if self.was_brought(&delivery.repository, blob.digest) {
                    self.memo.holds(&delivery.repository, &blob.digest)?;
                }
            }
        }
        Ok(())
    }

    /// Brings blobs that no repository is known to have, before anything is known.
    async fn send_ahead(&self, at: usize) -> Result<(), RegistryError> {
        let new = self.new.get(at).into_iter().flat_map(BTreeMap::values);
        try_join_all(new.map(|blob| self.bring(at, &self.deliveries[at].repository, blob))).await.map(drop)
    }

    fn new_blobs(&self, at: usize) -> BTreeMap<AnyDigest, &'a Descriptor> {
        let delivery = &self.deliveries[at];
        let blobs = delivery.bundle.blobs.iter().flatten().filter(|blob| !blob.is_foreign());
        let new = blobs.filter(|blob| self.is_new(at, &delivery.repository, blob));
        new.map(|blob| (blob.digest, blob)).collect()
    }

    fn was_brought(&self, repository: &Repository, digest: AnyDigest) -> bool {
        let brought = lock(&self.brought);
        brought.get(&(repository.clone(), digest)).is_some_and(|cell| cell.initialized())
    }

    fn is_known(&self, repository: &Repository, digest: AnyDigest) -> bool {
        lock(&self.known).get(repository).is_some_and(|known| known.contains(&digest))
    }

    /// Brings all blobs and documents of a delivery, and writes its tags. Where there are tags, what they name comes by them.
    async fn publish(&self, at: usize) -> Result<(), RegistryError> {
        let delivery = &self.deliveries[at];
        let (repository, bundle) = (&delivery.repository, &delivery.bundle);
        let last = bundle.documents.len() - 1;
        let mut needed = Vec::new();
        for (place, document) in bundle.documents.iter().enumerate() {
            // Of an index that changed, most images may not have.
            let there = place != last
                && (self.is_known(repository, document.digest)
                    || self.client.has_manifest(repository, document.digest, &document.media_type).await?);
            let size = document.bytes.len() as u64;
            self.planned(repository, document.digest, size, if there { Act::Keep } else { Act::Send });
            if !there {
                needed.push(place);
            }
        }
        let mut again = true;
        loop {
            let blobs: BTreeMap<AnyDigest, &Descriptor> = needed
                .iter()
                .flat_map(|place| &bundle.blobs[*place])
                .filter(|blob| !blob.is_foreign())
                .map(|blob| (blob.digest, blob))
                .collect();
            try_join_all(blobs.values().map(|blob| self.bring(at, repository, blob))).await?;
            if self.dry.is_some() {
                break;
            }
            Push::Blobs.reach();
            let put = self.put_documents(delivery, &needed);
            // Written down while the registry looks at the documents.
            let brought = async {
                tokio::task::yield_now().await;
                self.remember_brought(delivery)
            };
            let (put, brought, ()) = join3(put, brought, self.client.end_uploads(Some(repository))).await;
            match put {
                // A blob that it said it has is not there: what it said is forgotten, and the blob is sent.
                Err(error) if again && misses(&error) => {
                    again = false;
                    self.distrust(repository, blobs.keys().copied(), &error)?;
                    needed = (0..=last).collect();
                }
                done => {
                    done?;
                    brought?;
                    break;
                }
            }
        }
        self.published[at].send_replace(true);
        Ok(())
    }

    async fn put_documents(&self, delivery: &Delivery, needed: &[usize]) -> Result<(), RegistryError> {
        let (repository, bundle) = (&delivery.repository, &delivery.bundle);
        let put = |place: usize| async move {
            self.client.put_manifest(repository, &bundle.documents[place], None).await?;
            Push::Manifest.reach();
            Ok::<_, RegistryError>(())
        };
        let last = bundle.documents.len() - 1;
        // Under a tag, a registry takes the digest to be SHA-256.
        let by_tag = !delivery.tags.is_empty() && bundle.top().digest.sha256().is_some();
        let untagged = needed.iter().copied().filter(|place| *place != last || !by_tag);
        // Children of one index have nothing to do with each other; an index waits for them.
        let index = |place: &usize| bundle.documents[*place].read().is_ok_and(|said| said.is_index);
        let (indexes, images): (Vec<usize>, Vec<usize>) = untagged.partition(index);
        try_join_all(images.into_iter().map(put)).await?;
        Push::Manifests.reach();
        for place in indexes {
            put(place).await?;
        }
        Push::Index.reach();
        self.tag(delivery).await
    }

    fn distrust(
        &self,
        repository: &Repository,
        blobs: impl Iterator<Item = AnyDigest>,
        error: &RegistryError,
    ) -> Result<(), RegistryError> {
        self.memo.forget(repository)?;
        let text = error.to_string();
        let blobs: Vec<AnyDigest> = blobs.collect();
        // Most registries say which; of the others all are suspect.
        let named: Vec<AnyDigest> = blobs.iter().copied().filter(|blob| text.contains(&blob.to_string())).collect();
        lock(&self.known).remove(repository);
        let suspects = if named.is_empty() { blobs } else { named };
        for digest in suspects {
            self.memo.lacks(repository, &digest)?;
            lock(&self.brought).remove(&(repository.clone(), digest));
            lock(&self.missing).insert((repository.clone(), digest));
        }
        Ok(())
    }

    async fn tag(&self, delivery: &Delivery) -> Result<(), RegistryError> {
        if self.dry.is_some() {
            return Ok(());
        }
        let top = delivery.bundle.top();
        let put = |tag| async move {
            self.client.put_manifest(&delivery.repository, top, Some(tag)).await?;
            Push::Tag.reach();
            Ok::<_, RegistryError>(())
        };
        try_join_all(delivery.tags.iter().map(|tag| put(tag))).await?;
        Push::Tags.reach();
        Ok(())
    }
}

/// The smallest of these blobs, as many as are sent without asking.
fn few<'a>(blobs: impl Iterator<Item = &'a Descriptor>) -> BTreeSet<AnyDigest> {
    let mut blobs: Vec<&Descriptor> = blobs.collect();
    blobs.sort_by_key(|blob| (blob.size, blob.digest));
    let sums = blobs.iter().scan(0_u64, |sum, blob| {
        *sum = sum.saturating_add(blob.size);
        Some(*sum)
    });
    let count = sums.take_while(|sum| *sum <= UNASKED).count();
    blobs[..count].iter().map(|blob| blob.digest).collect()
}

/// Whether a registry refused a manifest because something that it names is not there.
fn misses(error: &RegistryError) -> bool {
    match error {
        RegistryError::Answer { status: 400 | 404, why, .. } => {
            ["BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "blob unknown", "unknown blob"].iter().any(|code| why.contains(code))
        }
        _ => false,
    }
}
