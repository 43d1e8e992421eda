//! One blob into one repository: whole if the registry takes it, in chunks if it wants those, resumed where it broke.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};

use super::body::{Outgoing, Part, is_intact};
use super::client::{Answer, Ask, Client, Failure};
use super::digest::AnyDigest;
use super::error::RegistryError;
use super::reference::Repository;
use super::token::{pull_scope, push_scope};
use crate::failpoint::Push;
use crate::fetch::shown;
use crate::observe::{Event, Observer};

/// A blob that is to be sent.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub digest: AnyDigest,
    pub size: u64,
    pub content: Content,
}

/// Its bytes.
#[derive(Debug, Clone)]
pub(super) enum Content {
    File(Arc<File>),
    Bytes(Bytes),
}

/// What came of asking for a mount.
pub(super) enum Mount {
    /// The blob is there.
    Done,
    /// It is not, and the registry already began an upload instead.
    Session(Session),
    /// It is not.
    No,
}

/// An upload in progress.
#[derive(Debug, Clone)]
pub(super) struct Session {
    url: Url,
    offset: u64,
    smallest: Option<u64>,
}

/// The chunks that are sent where a registry refuses larger bodies, bytes.
const CHUNK: u64 = 16 << 20;
/// Smaller ones are not tried.
const SMALLEST: u64 = 64 << 10;

/// How often progress is told.
const TELLING: std::time::Duration = std::time::Duration::from_millis(200);

const WHAT: &str = "push a blob";

impl Source {
    fn part(&self, start: u64, end: u64) -> Outgoing {
        match &self.content {
            Content::Bytes(bytes) => Outgoing::Bytes(bytes.slice(start as usize..end as usize)),
            Content::File(file) => {
                Outgoing::Part(Part { file: file.clone(), digest: self.digest, size: self.size, start, end })
            }
        }
    }
}

impl Client {
    /// Whether a repository has a blob.
    pub(super) async fn has_blob(
        &self,
        repository: &Repository,
        digest: &AnyDigest,
        scope: &str,
    ) -> Result<bool, RegistryError> {
        let home = self.url(repository, &format!("{}/blobs/{digest}", repository.path)).await?;
        let ask = Ask::new("look for a blob", Method::HEAD, home.clone(), vec![scope.into()]);
        let answer = self.ask(repository, &ask).await?;
        match answer.status.as_u16() {
            200 => Ok(true),
            // Storage services refuse a HEAD where the signature of the redirect is for GET. The registry sent us there, so it
            // has the blob; if it has not, it says so when it is given the manifest.
            403 | 405 if (home.host(), home.port()) != (answer.url.host(), answer.url.port()) => Ok(true),
            404 | 410 => Ok(false),
            _ => Err(self.failed(repository, "look for a blob", answer).await),
        }
    }

    /// The length of a blob, bytes; `None` where the repository does not have it.
    pub async fn blob_size(&self, repository: &Repository, digest: AnyDigest) -> Result<Option<u64>, RegistryError> {
        let _permit = self.requests.acquire().await;
        let what = "look for a blob";
        let url = self.url(repository, &format!("{}/blobs/{digest}", repository.path)).await?;
        let answer = self.ask(repository, &Ask::new(what, Method::HEAD, url, vec![pull_scope(repository)])).await?;
        match answer.status.as_u16() {
            200 => {
                let length = answer.headers.get(reqwest::header::CONTENT_LENGTH).and_then(|it| it.to_str().ok());
                match length.and_then(|text| text.parse().ok()) {
                    Some(length) => Ok(Some(length)),
                    None => {
                        let why = format!("it does not say how long {digest} is");
                        Err(RegistryError::Answer {
                            what: what.into(),
                            url: answer.url.path().into(),
                            status: 200,
                            why,
                        })
                    }
                }
            }
            404 | 410 => Ok(None),
            _ => Err(self.failed(repository, what, answer).await),
        }
    }

    /// Whether a repository has a blob, asked in its turn and with the right to push.
    pub async fn lies_in(&self, repository: &Repository, digest: &AnyDigest) -> Result<bool, RegistryError> {
        let _permit = self.requests.acquire().await;
        self.has_blob(repository, digest, &push_scope(repository)).await
    }

    /// Asks the registry to take a blob over from another of its repositories.
    pub(super) async fn mount(
        &self,
        repository: &Repository,
        digest: &AnyDigest,
        from: &Repository,
    ) -> Result<Mount, RegistryError> {
        let mut url = self.url(repository, &format!("{}/blobs/uploads/", repository.path)).await?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", &from.path);
        let scopes = vec![push_scope(repository), pull_scope(from)];
        let answer = match self.ask(repository, &Ask::new("mount a blob", Method::POST, url, scopes)).await {
            Ok(answer) => answer,
            // A token server may refuse both scopes because the user may not read the other repository.
            Err(RegistryError::Denied { .. }) => return Ok(Mount::No),
            Err(error) => return Err(error),
        };
        match answer.status {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => Ok(Mount::Session(self.session_of(repository, &answer).await?)),
            _ => Ok(Mount::No),
        }
    }

    /// Ends an upload that is not needed; the registry would forget it anyway, some day.
    pub(super) async fn cancel(&self, repository: &Repository, session: Session) {
        let mut ask = Ask::new("cancel an upload", Method::DELETE, session.url, vec![push_scope(repository)]);
        ask.again = false;
        let _ = self.attempt(repository, &ask, &self.progress()).await;
    }

    /// Begins an upload.
    pub(super) async fn start(&self, repository: &Repository) -> Result<Session, RegistryError> {
        self.start_for(WHAT, repository).await
    }

    pub(super) async fn start_for(&self, what: &str, repository: &Repository) -> Result<Session, RegistryError> {
        let url = self.url(repository, &format!("{}/blobs/uploads/", repository.path)).await?;
        let answer = self.ask(repository, &Ask::new(what, Method::POST, url, vec![push_scope(repository)])).await?;
        match answer.status {
            StatusCode::ACCEPTED => self.session_of(repository, &answer).await,
            _ => Err(self.failed(repository, what, answer).await),
        }
    }

    async fn session_of(&self, repository: &Repository, answer: &Answer) -> Result<Session, RegistryError> {
        let smallest = number(&answer.headers, "oci-chunk-min-length");
        Ok(Session { url: self.location(repository, answer).await?, offset: 0, smallest })
    }

    /// Where the upload goes on.
    async fn location(&self, repository: &Repository, answer: &Answer) -> Result<Url, RegistryError> {
        let text = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let url = text.and_then(|text| answer.url.join(text).ok()).ok_or_else(|| RegistryError::Answer {
            what: WHAT.into(),
            url: shown(&answer.url),
            status: answer.status.as_u16(),
            why: "its answer does not say where the upload goes on (no usable `Location`)".into(),
        })?;
        let home = self.url(repository, "").await?;
        self.check_place(repository, &home, &url).await?;
        Ok(url)
    }

    /// Sends a blob in its turn, and tells of it.
    pub(super) async fn send_blob(
        &self,
        repository: &Repository,
        source: &Source,
        session: Option<Session>,
        observer: &dyn Observer,
    ) -> Result<(), RegistryError> {
        let _permit = self.transfers.acquire().await;
        Push::Upload.reach();
        let name = format!("{repository} {}", &source.digest.hex()[..12]);
        observer.on(Event::UploadStarted { name: &name, size: source.size });
        let advanced = |bytes| observer.on(Event::UploadAdvanced { name: &name, bytes });
        self.upload(repository, source, session, &advanced).await?;
        observer.on(Event::Uploaded { name: &name });
        Push::Uploaded.reach();
        Ok(())
    }

    /// Sends a blob; `session` is an upload that the registry began already.
    pub(super) async fn upload(
        &self,
        repository: &Repository,
        source: &Source,
        session: Option<Session>,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let mut session = session;
        let mut failures = 0;
        // Progress is what the registry never had before: one that loses uploads again and again makes none.
        let mut farthest = 0;
        let mut chunk = None;
        loop {
            let mut current = match session.take() {
                Some(session) => session,
                None => self.start(repository).await?,
            };
            if let Some(smallest) = current.smallest
                && chunk.is_none()
                && source.size > CHUNK.max(smallest)
            {
                chunk = Some(CHUNK.max(smallest));
            }
            let step = self.step(repository, source, &mut current, chunk, advanced).await;
            let (why, after, then) = match step {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::More) => {
                    Push::Chunk.reach();
                    if current.offset > farthest {
                        (failures, farthest) = (0, current.offset);
                    }
                    session = Some(current);
                    continue;
                }
                Ok(Step::TooLarge(why)) => {
                    let size = chunk.map_or(CHUNK.min(source.size), |size| size / 2);
                    if size < current.smallest.unwrap_or(SMALLEST).max(SMALLEST.min(source.size)) {
                        let url = shown(&current.url);
                        return Err(RegistryError::Answer { what: WHAT.into(), url, status: 413, why });
                    }
                    chunk = Some(size);
                    continue;
                }
                Ok(Step::Lost(why)) => {
                    self.check_intact(source)?;
                    (why, None, Then::Anew)
                }
                Ok(Step::Unsure(why)) => (why, None, Then::GoOn),
                Err(Failure::Broken { why, after, .. }) => (why, after, Then::Look),
                Err(Failure::Final(error)) => return Err(error),
            };
            failures += 1;
            if failures >= self.config.patience.failures {
                let what = format!("push blob {}", source.digest);
                let url = format!("{}/{}", repository.registry, repository.path);
                return Err(RegistryError::Unreachable { what, url, why, failures });
            }
            self.rest(repository, failures, &why, after).await?;
            // It may have been committed, and only the answer was lost.
            if then == Then::Look && self.has_blob(repository, &source.digest, &push_scope(repository)).await? {
                return Ok(());
            }
            if then != Then::Anew {
                // One that claims to have more than there is has something else.
                session = self.found_again(repository, current).await?.filter(|found| found.offset <= source.size);
                if let Some(found) = session.as_ref().filter(|found| found.offset > farthest) {
                    (failures, farthest) = (0, found.offset);
                }
            }
        }
    }

    /// The next request of an upload.
    async fn step(
        &self,
        repository: &Repository,
        source: &Source,
        session: &mut Session,
        chunk: Option<u64>,
        advanced: &(dyn Fn(u64) + Sync),
    ) -> Result<Step, Failure> {
        let scopes = vec![push_scope(repository)];
        let whole = session.offset == 0 && chunk.is_none_or(|chunk| chunk >= source.size);
        let closing = whole || session.offset == source.size;
        let (start, end) = match (whole, closing) {
            (true, _) => (0, source.size),
            (_, true) => (source.size, source.size),
            _ => (session.offset, chunk.map_or(source.size, |chunk| source.size.min(session.offset + chunk))),
        };
        let method = if closing { Method::PUT } else { Method::PATCH };
        let mut url = session.url.clone();
        if closing {
            url.query_pairs_mut().append_pair("digest", &source.digest.to_string());
        }
        let mut ask = Ask::new(WHAT, method, url, scopes).header(CONTENT_TYPE, "application/octet-stream");
        if !closing {
            ask = ask.header(CONTENT_RANGE, &format!("{start}-{}", end - 1));
            ask = ask.header(CONTENT_LENGTH, &(end - start).to_string());
        }
        (ask.again, ask.slow) = (false, closing);
        ask.body = if start == end { Outgoing::Empty } else { source.part(start, end) };
        let progress = self.progress();
        let mut attempt = std::pin::pin!(self.attempt(repository, &ask, &progress));
        let mut told = 0;
        let answer = loop {
            let now = progress.sent();
            if now > told {
                advanced(now - told);
                told = now;
            }
            tokio::select! {
                answer = &mut attempt => break answer?,
                () = tokio::time::sleep(TELLING) => {}
            }
        };
        advanced(progress.sent() - told);
        let status = answer.status.as_u16();
        match (status, closing) {
            (200 | 201 | 204, true) => {
                let said = answer.headers.get("docker-content-digest").and_then(|value| value.to_str().ok());
                match said.and_then(|said| said.parse::<AnyDigest>().ok()) {
                    // Another algorithm may be the registry's own choice; another digest of the same is an error.
                    Some(said) if said.algorithm() == source.digest.algorithm() && said != source.digest => {
                        Ok(Step::Lost(format!("it stored {said}")))
                    }
                    _ => Ok(Step::Done),
                }
            }
            (202 | 201 | 204, false) => {
                let reached = reached(&answer.headers).unwrap_or(end);
                if answer.headers.contains_key(LOCATION) {
                    session.url = self.location(repository, &answer).await?;
                }
                if reached <= start || reached > end {
                    return Ok(Step::Unsure(format!("it kept {reached} of {end} bytes")));
                }
                session.offset = reached;
                Ok(Step::More)
            }
            (413, _) => Ok(Step::TooLarge(self.reason(answer).await)),
            (404 | 410, _) => Ok(Step::Lost(self.reason(answer).await)),
            (416, _) => Ok(Step::Unsure(self.reason(answer).await)),
            (400, _) => {
                let why = self.reason(answer).await;
                match why.contains("RANGE") {
                    true => Ok(Step::Unsure(why)),
                    false => Ok(Step::Lost(why)),
                }
            }
            _ => Err(self.failed(repository, WHAT, answer).await.into()),
        }
    }

    /// How far an upload came, as the registry sees it; `None` where it is gone or cannot be continued.
    async fn found_again(&self, repository: &Repository, session: Session) -> Result<Option<Session>, RegistryError> {
        let mut ask = Ask::new("resume an upload", Method::GET, session.url.clone(), vec![push_scope(repository)]);
        ask.again = false;
        let answer = match self.attempt(repository, &ask, &self.progress()).await {
            Ok(answer) => answer,
            Err(Failure::Broken { .. }) => return Ok(None),
            Err(Failure::Final(error)) => return Err(error),
        };
        let known = matches!(answer.status.as_u16(), 200 | 202 | 204);
        match reached(&answer.headers) {
            // Both nothing and one byte are written `0-0`; a new upload is certain.
            Some(offset) if known && offset > 1 => {
                let url = match answer.headers.contains_key(LOCATION) {
                    true => self.location(repository, &answer).await?,
                    false => session.url,
                };
                Ok(Some(Session { url, offset, smallest: session.smallest }))
            }
            _ => Ok(None),
        }
    }

    /// A registry that says that the bytes are wrong may be right.
    fn check_intact(&self, source: &Source) -> Result<(), RegistryError> {
        let intact = match &source.content {
            Content::Bytes(bytes) => source.digest.fits(bytes),
            Content::File(file) => is_intact(file, &source.digest).unwrap_or(false),
        };
        if intact { Ok(()) } else { Err(RegistryError::Damaged(source.digest)) }
    }
}

/// What a request of an upload came to.
enum Step {
    /// The blob is there.
    Done,
    /// A chunk is there.
    More,
    /// The registry wants less at once.
    TooLarge(String),
    /// The upload is gone.
    Lost(String),
    /// The registry and we disagree about how far it is.
    Unsure(String),
}

/// What to do after a failure.
#[derive(PartialEq)]
enum Then {
    /// Begin a new upload.
    Anew,
    /// Continue where the registry says that it is.
    GoOn,
    /// The same, if the blob is not there already.
    Look,
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok().filter(|it| *it > 0)
}

/// How many bytes a registry has: `Range: 0-1023` means 1024.
fn reached(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?.trim();
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let (first, last) = text.split_once('-')?;
    match (first, last.parse::<u64>().ok()?) {
        ("0", last) => last.checked_add(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_nonsense_is_not() {
        for (text, expected) in [
            ("0-1023", Some(1024)),
            ("bytes=0-9", Some(10)),
            ("0-0", Some(1)),
            ("5-9", None),
            ("0-", None),
            ("0--1", None),
            ("0-18446744073709551615", None),
            ("", None),
        ] {
            let headers: HeaderMap = [(RANGE, text.parse().expect("is a value"))].into_iter().collect();
            assert_eq!(reached(&headers), expected, "{text}");
        }
    }
}
