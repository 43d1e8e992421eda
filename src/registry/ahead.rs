//! What is done at repositories while images are still built: whether one may push there is found out, uploads are begun, what
//! was pushed last is looked for, and layers are sent as they are made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache::{Blob, Store};
use futures_util::future::{FutureExt as _, join_all, try_join, try_join_all};
use reqwest::Method;
use reqwest::header::ACCEPT;
use tokio::sync::watch;

use super::client::{Ask, Client};
use super::digest::AnyDigest;
use super::error::RegistryError;
use super::memo::Memo;
use super::push::UNASKED;
use super::reference::Repository;
use super::token::push_scope;
use super::upload::{Content, Session, Source};
use crate::observe::Observer;
use crate::parallel::lock;

/// How long a manifest that was seen is taken to be there.
const SEEN: Duration = Duration::from_secs(60);

/// How long it is looked for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is done at a repository before it is known what will be pushed.
#[derive(Debug, Clone, Default)]
pub struct Ahead {
    /// So many uploads are begun, which also tells whether one may push.
    pub uploads: usize,
    /// The manifest that was pushed there last is looked for.
    pub last: Option<AnyDigest>,
}

/// A layer that is about to be sent.
#[derive(Debug)]
pub struct Announced {
    repository: Repository,
    layer: Blob,
    /// Whether it is there, once that is known.
    arrives: watch::Sender<Told>,
    stop: watch::Receiver<()>,
}

/// What came of sending a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// The repository had it.
    There,
    Sent,
    /// Whoever needs it sends it and is told why it fails.
    Failed,
}

/// What is known of a layer that was announced, and since when.
type Told = Option<(Arrival, Instant)>;

/// Layers that were announced, by where they go.
type Sending = HashMap<(Repository, AnyDigest), watch::Receiver<Told>>;

/// What was done before there was anything to push.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Uploads that were begun.
    begun: Mutex<HashMap<Repository, Vec<Session>>>,
    /// Manifests that were there when they were looked for, and when that was.
    seen: Mutex<HashMap<(Repository, AnyDigest), Instant>>,
    /// Layers that are sent, and what came of it.
    sending: Mutex<Sending>,
    /// Bytes of them that were sent without asking.
    unasked: AtomicU64,
    /// Ends them all.
    stop: watch::Sender<()>,
}

impl Client {
    /// Finds out whether somebody may push: whether the registry is there, and takes the credentials for it. What a
    /// registry checks only when bytes arrive is found out only then.
    ///
    /// Uploads are begun by it, which is the best answer of all; [`Client::push`] takes them for what it sends, and
    /// [`Client::end_uploads`] ends those that nobody took. Beside that, what was pushed last is looked for.
    pub async fn may_push(&self, repository: &Repository, ahead: &Ahead) -> Result<(), RegistryError> {
        if ahead.uploads > 0 {
            let begun = try_join_all((0..ahead.uploads).map(|_| self.begin_ahead(repository)));
            let look = self.look_ahead(repository, ahead.last.as_ref());
            // Who may not push is told at once.
            return try_join(begun, look.map(Ok)).await.map(drop);
        }
        let url = self.url(repository, &format!("{}/manifests/latest", repository.path)).await?;
        let scopes = vec![push_scope(repository)];
        let ask = Ask::new("push", Method::HEAD, url, scopes).header(ACCEPT, layers::oci::MANIFEST);
        let answer = self.ask(repository, &ask).await?;
        match answer.status.as_u16() {
            401 | 403 => Err(self.failed(repository, "push", answer).await),
            _ => Ok(()),
        }
    }

    /// Begins an upload for whatever is to be sent.
    async fn begin_ahead(&self, repository: &Repository) -> Result<(), RegistryError> {
        let _permit = self.requests.acquire().await;
        let session = self.start_for("push", repository).await?;
        lock(&self.ahead.begun).entry(repository.clone()).or_default().push(session);
        Ok(())
    }

    /// An upload that was begun ahead.
    pub(super) fn begun_ahead(&self, repository: &Repository) -> Option<Session> {
        lock(&self.ahead.begun).get_mut(repository)?.pop()
    }

    /// Ends the uploads that were begun ahead and not taken, of one repository or of all; with all, also those that are on their
    /// way. Trouble is none: registries forget uploads by themselves.
    pub async fn end_uploads(&self, of: Option<&Repository>) {
        let all = match of {
            Some(repository) => lock(&self.ahead.begun).remove_entry(repository).into_iter().collect(),
            None => {
                self.stop_ahead();
                std::mem::take(&mut *lock(&self.ahead.begun))
            }
        };
        let each = all.iter().flat_map(|(repository, sessions)| sessions.iter().map(move |it| (repository, it)));
        join_all(each.map(|(repository, session)| self.cancel(repository, session.clone()))).await;
    }

    /// Ends what is sent ahead and not there yet.
    pub(super) fn stop_ahead(&self) {
        self.ahead.stop.send_replace(());
    }

    /// What was found out ahead counts for one push.
    pub(super) fn forget_ahead(&self) {
        lock(&self.ahead.seen).clear();
        lock(&self.ahead.sending).clear();
        self.ahead.unasked.store(0, Ordering::Relaxed);
    }

    /// Looks whether a repository still has the manifest that was pushed there last, for who asks within a minute. Nobody waits
    /// long for it, and trouble is none: whoever needs the answer asks again.
    async fn look_ahead(&self, repository: &Repository, last: Option<&AnyDigest>) {
        let Some(digest) = last else { return };
        let look = self.has_manifest(repository, *digest, "");
        if let Ok(Ok(true)) = tokio::time::timeout(PATIENCE, look).await {
            lock(&self.ahead.seen).insert((repository.clone(), *digest), Instant::now());
        }
    }

    /// Whether a manifest was seen ahead.
    pub(super) fn was_seen(&self, repository: &Repository, digest: AnyDigest) -> bool {
        lock(&self.ahead.seen).get(&(repository.clone(), digest)).is_some_and(|at| at.elapsed() < SEEN)
    }

    /// Says that a layer will be sent, if it is one that nothing here knows to be anywhere: a push waits for it from now on.
    /// It must be given to [`Client::send_ahead`], or be dropped.
    pub fn announce(&self, store: &Store, repository: &Repository, layer: Blob) -> Option<Announced> {
        let (memo, digest) = (Memo::new(store), AnyDigest::from(layer.digest));
        let is_new = memo.is_new(memo.last(repository).as_ref(), &repository.registry, &digest);
        if !is_new || self.is_sent_ahead(repository, digest) {
            return None;
        }
        let (arrives, told) = watch::channel(None);
        lock(&self.ahead.sending).insert((repository.clone(), digest), told);
        Some(Announced { repository: repository.clone(), layer, arrives, stop: self.ahead.stop.subscribe() })
    }

    /// Sends a layer from the store, unless the repository has it. Trouble is none: the push sends it once more, and tells.
    pub async fn send_ahead(&self, announced: Announced, store: &Store, observer: &dyn Observer) {
        let Announced { repository, layer, arrives, mut stop } = announced;
        let mut begun = None;
        let send = async {
            let digest = AnyDigest::from(layer.digest);
            let unasked = self.ahead.unasked.fetch_add(layer.size, Ordering::Relaxed);
            if unasked.saturating_add(layer.size) > UNASKED {
                self.ahead.unasked.fetch_sub(layer.size, Ordering::Relaxed);
                if self.lies_in(&repository, &digest).await? {
                    return Ok(Arrival::There);
                }
            }
            let file = store.open(&layer.digest)?.ok_or(RegistryError::Lost(digest))?;
            let source = Source { digest, size: layer.size, content: Content::File(Arc::new(file)) };
            begun = self.begun_ahead(&repository);
            self.send_blob(&repository, &source, begun.clone(), observer).await?;
            Ok::<_, RegistryError>(Arrival::Sent)
        };
        let (arrival, is_stopped) = tokio::select! {
            sent = send => (sent.unwrap_or(Arrival::Failed), false),
            _ = stop.changed() => (Arrival::Failed, true),
        };
        arrives.send_replace(Some((arrival, Instant::now())));
        if let Some(session) = begun.filter(|_| is_stopped) {
            self.cancel(&repository, session).await;
        }
    }

    /// Whether a blob came to a repository, or was found there, by being sent ahead; waits for it where it is on its way.
    pub(super) async fn was_sent_ahead(&self, repository: &Repository, digest: AnyDigest) -> bool {
        let Some(mut told) = lock(&self.ahead.sending).get(&(repository.clone(), digest)).cloned() else {
            return false;
        };
        let arrival = told.wait_for(Option::is_some).await.ok().and_then(|arrival| *arrival);
        arrival.is_some_and(|(arrival, at)| arrival != Arrival::Failed && at.elapsed() < SEEN)
    }

    /// Whether a blob is being sent ahead, or was sent and had not been there.
    pub(super) fn is_sent_ahead(&self, repository: &Repository, digest: AnyDigest) -> bool {
        let sending = lock(&self.ahead.sending);
        sending.get(&(repository.clone(), digest)).is_some_and(|told| match *told.borrow() {
            Some((arrival, at)) => arrival == Arrival::Sent && at.elapsed() < SEEN,
            None => told.has_changed().is_ok(),
        })
    }
}
