//! Blobs into repositories: each is there already, mounted from a sister repository, or uploaded.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use futures_util::future::{BoxFuture, FutureExt as _, join};

use super::super::digest::AnyDigest;
use super::super::document::Descriptor;
use super::super::error::RegistryError;
use super::super::reference::Repository;
use super::super::supply::Demand;
use super::super::upload::{Mount, Source};
use super::{Act, Run};
use crate::failpoint::Push;
use crate::observe::Event;
use crate::parallel::lock;

impl<'a> Run<'a> {
    /// Sees to it that a repository has a blob; whoever comes second waits for the first.
    pub(super) fn bring(
        &self,
        at: usize,
        repository: &'a Repository,
        blob: &'a Descriptor,
    ) -> BoxFuture<'_, Result<(), RegistryError>> {
        async move {
            if self.is_known(repository, blob.digest) {
                self.planned(repository, blob.digest, blob.size, Act::Keep);
                return Ok(());
            }
            let cell = lock(&self.brought).entry((repository.clone(), blob.digest)).or_default().clone();
            cell.get_or_try_init(|| self.bring_once(at, repository, blob)).await.map(drop)
        }
        .boxed()
    }

    async fn bring_once(
        &self,
        at: usize,
        repository: &'a Repository,
        blob: &'a Descriptor,
    ) -> Result<(), RegistryError> {
        let digest = blob.digest;
        let missing = lock(&self.missing).contains(&(repository.clone(), digest));
        if !missing && self.dry.is_none() && self.client.was_sent_ahead(repository, digest).await {
            self.uploads.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let mut session = None;
        if !missing {
            let new = self.new.get(at).is_some_and(|new| new.contains_key(&digest));
            let begin = async {
                if !new {
                    return None;
                }
                if let Some(begun) = self.client.begun_ahead(repository) {
                    return Some(Ok(begun));
                }
                let _permit = self.client.requests.acquire().await;
                Some(self.client.start(repository).await)
            };
            let look = async {
                match new && self.unasked[at].contains(&digest) {
                    true => Ok(false),
                    false => self.client.lies_in(repository, &digest).await,
                }
            };
            let (there, begun) = join(look, begin).await;
            let there = there?;
            match begun {
                Some(Ok(begun)) if there => self.client.cancel(repository, begun).await,
                Some(begun) if !there => session = Some(begun?),
                _ => {}
            }
            if there {
                self.planned(repository, digest, blob.size, Act::Keep);
                return Ok(());
            }
        }
        if !missing && session.is_none() {
            session = match self.mount(at, repository, blob).await? {
                Some(Mount::Done) => return Ok(()),
                Some(Mount::Session(session)) => Some(session),
                _ => None,
            };
        }
        if self.dry.is_some() {
            return Ok(());
        }
        let source = match self.supply.open(blob)? {
            Some(source) => source,
            None => self.fetch(blob).await?,
        };
        let session = session.or_else(|| self.client.begun_ahead(repository));
        self.client.send_blob(repository, &source, session, self.observer).await?;
        self.uploads.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a blob is hardly anywhere: not among what is remembered of its repository, and no other has it. Then its
    /// upload begins while the registry is asked, or it is sent without asking. What is not here is somewhere else.
    pub(super) fn is_new(&self, at: usize, repository: &Repository, blob: &Descriptor) -> bool {
        let (registry, digest) = (repository.registry.as_str(), &blob.digest);
        self.wanted.get(&(registry, *digest)).is_some_and(|who| who.first() == Some(&at))
            && !self.supply.origins.contains_key(digest)
            && self.memo.is_new(self.last.get(repository), registry, digest)
            && self.supply.has(blob).is_ok_and(|is_here| is_here)
    }

    /// Tries to take a blob over from where it is known to be.
    async fn mount(
        &self,
        at: usize,
        repository: &'a Repository,
        blob: &'a Descriptor,
    ) -> Result<Option<Mount>, RegistryError> {
        let digest = blob.digest;
        let registry = repository.registry.as_str();
        let first = self.wanted.get(&(registry, digest)).and_then(|who| who.first()).copied().unwrap_or(at);
        let owner = &self.deliveries[first].repository;
        let mut tried = BTreeSet::from([repository.path.clone()]);
        let mut left = None;
        if first < at && owner != repository {
            if self.dry.is_some() {
                self.planned(repository, digest, blob.size, Act::Mount(owner.path.clone()));
                return Ok(Some(Mount::Done));
            }
            self.bring(first, owner, blob).await?;
            let picky = lock(&self.wants_manifests).contains(registry);
            if picky {
                self.wait_for(first).await;
            }
            tried.insert(owner.path.clone());
            let published = *self.published[first].borrow();
            match self.try_mount(repository, &digest, owner).await? {
                Mount::Session(session) if !picky && !published => {
                    // Some registries mount only what a manifest of the other repository refers to.
                    self.wait_for(first).await;
                    match self.try_mount(repository, &digest, owner).await? {
                        Mount::Done => {
                            lock(&self.wants_manifests).insert(registry.to_owned());
                            self.client.cancel(repository, session).await;
                            return Ok(Some(Mount::Done));
                        }
                        Mount::Session(second) => {
                            self.client.cancel(repository, second).await;
                            return Ok(Some(Mount::Session(session)));
                        }
                        Mount::No => return Ok(Some(Mount::Session(session))),
                    }
                }
                Mount::Done => return Ok(Some(Mount::Done)),
                Mount::Session(session) => left = Some(session),
                Mount::No => {}
            }
        }
        let origins = self.supply.origins.get(&digest).into_iter().flatten();
        let origins = origins.filter(|it| it.registry == registry).map(|it| it.path.clone());
        for path in origins.chain(self.memo.holders(registry, &digest)) {
            if left.is_some() || tried.len() > 3 || !tried.insert(path.clone()) {
                continue;
            }
            if self.dry.is_some() {
                self.planned(repository, digest, blob.size, Act::Mount(path));
                return Ok(Some(Mount::Done));
            }
            let from = Repository { registry: registry.to_owned(), path };
            match self.try_mount(repository, &digest, &from).await? {
                Mount::Done => return Ok(Some(Mount::Done)),
                Mount::Session(session) => left = Some(session),
                Mount::No => {}
            }
            self.memo.lacks(&from, &digest)?;
        }
        if self.dry.is_some() {
            self.planned(repository, digest, blob.size, Act::Send);
        }
        Ok(left.map(Mount::Session))
    }

    async fn try_mount(
        &self,
        repository: &Repository,
        digest: &AnyDigest,
        from: &Repository,
    ) -> Result<Mount, RegistryError> {
        let _permit = self.client.requests.acquire().await;
        Push::Mount.reach();
        let mount = self.client.mount(repository, digest, from).await?;
        if matches!(mount, Mount::Done) {
            Push::Mounted.reach();
            let name = format!("{repository} {}", &digest.hex()[..12]);
            self.observer.on(Event::Mounted { name: &name, from: &from.path });
        }
        Ok(mount)
    }

    async fn wait_for(&self, delivery: usize) {
        // The sender lives as long as the run, so this ends when the delivery is published or the whole run fails.
        let _ = self.published[delivery].subscribe().wait_for(|published| *published).await;
    }

    /// Brings a blob that is only elsewhere into the cache.
    async fn fetch(&self, blob: &Descriptor) -> Result<Source, RegistryError> {
        let lost = || RegistryError::Lost(blob.digest);
        let store = self.supply.store.as_ref().ok_or_else(lost)?;
        if let (Some(Demand { blobs, bring }), Some(digest)) = (&self.supply.demand, blob.digest.sha256())
            && blobs.contains(&digest)
        {
            let bring = bring.clone();
            let is_here = tokio::task::spawn_blocking(move || bring(&digest)).await.unwrap_or(false);
            let found = if is_here { self.supply.open(blob)? } else { None };
            return found.ok_or_else(lost);
        }
        let mut failed = None;
        for origin in self.supply.origins.get(&blob.digest).into_iter().flatten() {
            match self.client.blob_to_store(origin, blob, store, self.observer).await {
                Ok(()) => return self.supply.open(blob)?.ok_or_else(lost),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(lost))
    }
}
