//! Requests to registries: one at a time, authorised when a registry asks for it, repeated while that makes sense.
//!
//! Credentials go to the registry's own origin and to the token server that it names, nowhere else. Redirects are
//! followed here and not by the HTTP library, because each step has to be looked at.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};

use super::answer::{clean, no_tls};
use super::auth::Keyring;
use super::body::{Counted, Outgoing, Progress};
use super::config::ClientConfig;
use super::error::RegistryError;
use super::guard::{self, PublicOnly};
use super::reference::Repository;
use super::token::Session;
use super::{ahead, retry, transport};
use crate::fetch::{chain, shown};
use crate::parallel::lock;

/// What a client has done so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests to registries, token servers and the places that they point to.
    pub requests: AtomicU64,
    /// Bytes of request bodies.
    pub sent: AtomicU64,
    /// Bytes of answers' bodies.
    pub received: AtomicU64,
}

/// A client for any number of registries.
#[derive(Debug)]
pub struct Client {
    pub(super) config: ClientConfig,
    pub(super) keyring: Keyring,
    pub(super) counters: Counters,
    pub(super) transfers: tokio::sync::Semaphore,
    pub(super) requests: tokio::sync::Semaphore,
    clients: Mutex<HashMap<String, reqwest::Client>>,
    origins: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Contact>>>>,
    standings: tokio::sync::Mutex<HashMap<String, bool>>,
    sessions: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Session>>>>,
    /// What was done before there was anything to push.
    pub(super) ahead: ahead::Done,
}

/// How a host is reached.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Contact {
    scheme: Option<&'static str>,
}

/// One request.
pub(super) struct Ask<'a> {
    /// In words, for messages: `push a blob`.
    pub what: &'a str,
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Outgoing,
    /// What a token has to allow.
    pub scopes: Vec<String>,
    /// Whether failures are answered by trying again here; uploads look at what arrived first.
    pub again: bool,
    /// Whether the registry may think for long.
    pub slow: bool,
}

impl<'a> Ask<'a> {
    pub fn new(what: &'a str, method: Method, url: Url, scopes: Vec<String>) -> Ask<'a> {
        let (headers, body) = (Vec::new(), Outgoing::Empty);
        Ask { what, method, url, headers, body, scopes, again: true, slow: false }
    }

    pub fn header(mut self, name: HeaderName, value: &str) -> Ask<'a> {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }
}

/// An answer whose status is one of 1xx to 4xx; the body is not read yet.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The URL that answered in the end.
    pub url: Url,
    pub response: reqwest::Response,
}

/// How one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// For good.
    Final(RegistryError),
    /// It may go better next time.
    Broken { why: String, after: Option<Duration> },
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        Failure::Final(error)
    }
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(config: ClientConfig) -> Client {
        Client {
            keyring: Keyring::new(config.sources.clone()),
            transfers: tokio::sync::Semaphore::new(config.transfers.max(1)),
            requests: tokio::sync::Semaphore::new(config.requests.max(1)),
            counters: Counters::default(),
            clients: Mutex::default(),
            origins: Mutex::default(),
            standings: tokio::sync::Mutex::default(),
            sessions: Mutex::default(),
            ahead: ahead::Done::default(),
            config,
        }
    }

    /// The credentials of a repository, and where they were found.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// What was done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn is_insecure(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
        self.config.insecure.iter().any(|named| named == host && url.port().is_none() || *named == with_port)
    }

    /// Whether a URL may be asked without TLS.
    pub(super) fn may_be_plain(&self, url: &Url) -> bool {
        guard::is_loopback(url) || self.is_insecure(url)
    }

    /// The schemes to try for a host, likelier first.
    fn schemes(&self, host: &str) -> [Option<&'static str>; 2] {
        match Url::parse(&format!("https://{host}/")) {
            // A registry on this machine is rarely behind TLS, a named insecure one may well be.
            Ok(url) if guard::is_loopback(&url) => [Some("http"), Some("https")],
            Ok(url) if self.is_insecure(&url) => [Some("https"), Some("http")],
            _ => [Some("https"), None],
        }
    }

    fn contact(&self, host: &str) -> Arc<tokio::sync::Mutex<Contact>> {
        lock(&self.origins).entry(host.to_owned()).or_default().clone()
    }

    /// A URL below `/v2/` of a repository's registry.
    pub(super) async fn url(&self, repository: &Repository, rest: &str) -> Result<Url, RegistryError> {
        let host = repository.host();
        let scheme = self.contact(host).lock().await.scheme.or(self.schemes(host)[0]).unwrap_or("https");
        Url::parse(&format!("{scheme}://{host}/v2/{rest}")).map_err(|error| RegistryError::Setup(error.to_string()))
    }

    /// Whether the registry is one of the public network. Asked only when it points elsewhere.
    pub(super) async fn is_public(&self, url: &Url) -> bool {
        if guard::is_plainly_private(url) {
            return false;
        }
        let Some(url::Host::Domain(name)) = url.host() else { return true };
        if self.config.addresses.contains_key(name) {
            return true;
        }
        let mut standings = self.standings.lock().await;
        if let Some(known) = standings.get(name) {
            return *known;
        }
        // A name that cannot be resolved here is reached through a proxy; it counts as public, the stricter of the two.
        let public = match tokio::net::lookup_host((name, 443)).await {
            Ok(mut found) => !found.all(|at| guard::is_private(at.ip())),
            Err(_) => true,
        };
        standings.insert(name.to_owned(), public);
        public
    }

    /// The HTTP client for a URL. Certificates of a registry are shown to that registry only; other places that a public
    /// registry points to are reached by a client that knows no private addresses.
    pub(super) fn http(&self, url: &Url, guarded: bool) -> Result<reqwest::Client, RegistryError> {
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let insecure = self.is_insecure(url);
        let key = format!("{} {guarded} {host}", url.scheme());
        if let Some(client) = lock(&self.clients).get(&key) {
            return Ok(client.clone());
        }
        let dns = guarded.then_some(PublicOnly);
        let client =
            transport::build(&self.config, url.scheme(), &host, insecure, dns).map_err(RegistryError::Setup)?;
        Ok(lock(&self.clients).entry(key).or_insert(client).clone())
    }

    pub(super) fn session(&self, host: &str) -> Arc<tokio::sync::Mutex<Session>> {
        lock(&self.sessions).entry(host.to_owned()).or_default().clone()
    }

    /// Sends a request, again and again if need be, and returns the answer.
    pub(super) async fn ask(&self, repository: &Repository, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let mut failures = 0;
        loop {
            let progress = self.progress();
            match self.attempt(repository, ask, &progress).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Broken { why, after, .. }) => {
                    failures += 1;
                    if failures >= self.config.patience.failures {
                        let (what, url) = (ask.what.to_owned(), shown(&ask.url));
                        return Err(RegistryError::Unreachable { what, url, why, failures });
                    }
                    self.rest(repository, failures, &why, after).await?;
                }
            }
        }
    }

    /// How far a body has come, which who watches is told.
    pub(super) fn progress(&self) -> Arc<Progress> {
        Progress::watched(self.config.watch.clone())
    }

    /// Waits before another attempt: as long as the registry asks, else longer each time.
    pub(super) async fn rest(
        &self,
        repository: &Repository,
        failures: u32,
        why: &str,
        after: Option<Duration>,
    ) -> Result<(), RegistryError> {
        self.config.watch.iter().for_each(|watch| watch.failed(why));
        let patience = &self.config.patience;
        if let Some(asked) = after.filter(|asked| *asked > patience.longest_wait) {
            return Err(RegistryError::Busy { registry: repository.registry.clone(), seconds: asked.as_secs() });
        }
        tokio::time::sleep(retry::pause(patience, failures, after)).await;
        Ok(())
    }

    /// One attempt with all that belongs to it: the first contact, challenges and redirects.
    pub(super) async fn attempt(
        &self,
        repository: &Repository,
        ask: &Ask<'_>,
        progress: &Arc<Progress>,
    ) -> Result<Answer, Failure> {
        if self.config.offline {
            return Err(RegistryError::Offline { what: repository.to_string() }.into());
        }
        let mut home = self.url(repository, "").await?;
        let mut url = ask.url.clone();
        if url.host() == home.host() && url.port() == home.port() && url.scheme() != home.scheme() {
            // The scheme was settled after the request was written.
            let _ = url.set_scheme(home.scheme());
        }
        let mut refreshed = 0;
        let mut hops = 0;
        let mut used = None;
        loop {
            let at_home = guard::same_origin(&home, &url);
            let (authorization, fetched) = match at_home {
                true => self.authorization(repository, &home, &ask.scopes, used.take()).await?,
                false => (None, false),
            };
            let answer = match self.send(&home, &url, ask, authorization.as_ref(), progress).await {
                Ok(answer) => answer,
                Err(Failure::Broken { .. }) if at_home && self.other_scheme(repository, &url).await == Ok(true) => {
                    home = self.url(repository, "").await?;
                    url = rebased(&home, &url);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            if at_home && answer.status == StatusCode::BAD_REQUEST {
                match self.other_scheme(repository, &url).await {
                    Ok(false) => {}
                    Ok(true) => {
                        home = self.url(repository, "").await?;
                        url = rebased(&home, &url);
                        continue;
                    }
                    Err(why) => {
                        let (what, url) = (ask.what.to_owned(), shown(&url));
                        return Err(RegistryError::Answer { what, url, status: 400, why }.into());
                    }
                }
            }
            if at_home {
                self.settle(repository, home.scheme()).await;
            }
            if answer.status == StatusCode::UNAUTHORIZED && at_home {
                // A token that was fetched for this very request is as fresh as can be; one that others use too may have
                // ended meanwhile.
                let fresh = refreshed > 0 && (fetched || !authorization.as_ref().is_some_and(is_bearer));
                if refreshed == 4 || !self.challenged(repository, &home, &answer, ask, fresh).await? {
                    return Err(self.denied(repository, ask.what, answer).await.into());
                }
                used = Some(authorization);
                refreshed += 1;
                continue;
            }
            if is_redirect(answer.status) {
                hops += 1;
                let next = self.redirected(repository, &home, &url, &answer, ask).await?;
                match next {
                    Some(next) if hops <= 5 => url = next,
                    Some(next) => {
                        return Err(self.refused(repository, &next, "there are too many redirects").into());
                    }
                    None => return Ok(answer),
                }
                continue;
            }
            if retry::is_temporary(answer.status) {
                let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let after = after.and_then(|text| retry::retry_after(text, retry::now()));
                let why = self.reason(answer).await;
                return Err(Failure::Broken { why, after });
            }
            return Ok(answer);
        }
    }

    /// Where a redirect leads; `None` where it leads nowhere. No credentials go there unless it is the same server.
    async fn redirected(
        &self,
        repository: &Repository,
        home: &Url,
        from: &Url,
        answer: &Answer,
        ask: &Ask<'_>,
    ) -> Result<Option<Url>, RegistryError> {
        let Some(location) = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok()) else {
            return Ok(None);
        };
        // 301 to 303 turn a request that writes into one that reads: no registry means that.
        let reads = matches!(ask.method, Method::GET | Method::HEAD);
        if !reads && !matches!(answer.status.as_u16(), 307 | 308) {
            return Ok(None);
        }
        let next = from.join(location).map_err(|_| RegistryError::Refused {
            registry: repository.registry.clone(),
            url: "something that is not a URL".into(),
            why: "a redirect has to name a place".into(),
        })?;
        self.check_place(repository, home, &next).await?;
        if from.scheme() == "https" && next.scheme() == "http" {
            return Err(self.refused(repository, &next, "it is not encrypted"));
        }
        Ok(Some(next))
    }

    /// Refuses places that the registry may not point to.
    pub(super) async fn check_place(&self, repository: &Repository, home: &Url, to: &Url) -> Result<(), RegistryError> {
        if guard::same_origin(home, to) {
            return Ok(());
        }
        let public = self.is_public(home).await;
        guard::may_follow(home, to, public, &|url| self.may_be_plain(url))
            .map_err(|why| self.refused(repository, to, why))
    }

    fn refused(&self, repository: &Repository, url: &Url, why: &str) -> RegistryError {
        RegistryError::Refused { registry: repository.registry.clone(), url: shown(url), why: why.into() }
    }

    async fn settle(&self, repository: &Repository, scheme: &str) {
        let contact = self.contact(repository.host());
        let mut contact = contact.lock().await;
        if contact.scheme.is_none() {
            contact.scheme = Some(if scheme == "http" { "http" } else { "https" });
        }
    }

    /// After a first request failed: whether the registry answers by the other scheme that is allowed for it. An error
    /// says why TLS, which it seems to want, does not come about.
    async fn other_scheme(&self, repository: &Repository, url: &Url) -> Result<bool, String> {
        let host = repository.host();
        let [_, Some(other)] = self.schemes(host) else { return Ok(false) };
        let contact = self.contact(host);
        let mut contact = contact.lock().await;
        match contact.scheme {
            // Somebody else found out meanwhile.
            Some(settled) => Ok(settled != url.scheme()),
            None => {
                let Ok(probe) = Url::parse(&format!("{other}://{host}/v2/")) else { return Ok(false) };
                let client = self.http(&probe, false).map_err(|error| error.to_string())?;
                self.counters.requests.fetch_add(1, Ordering::Relaxed);
                match client.get(probe).timeout(Duration::from_secs(30)).send().await {
                    Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => {
                        contact.scheme = Some(other);
                        Ok(true)
                    }
                    Ok(_) => Ok(false),
                    Err(error) => no_tls(host, &chain(&error)).map_or(Ok(false), Err),
                }
            }
        }
    }

    /// Puts one request on the wire.
    pub(super) async fn send(
        &self,
        home: &Url,
        url: &Url,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
        progress: &Arc<Progress>,
    ) -> Result<Answer, Failure> {
        let elsewhere = !guard::same_origin(home, url);
        let guarded = elsewhere && self.is_public(home).await;
        let mut request = self.http(url, guarded)?.request(ask.method.clone(), url.clone());
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request = match &ask.body {
            Outgoing::Empty if matches!(ask.method, Method::POST | Method::PUT | Method::PATCH) => {
                progress.finish();
                request.header(CONTENT_LENGTH, 0)
            }
            Outgoing::Empty => {
                progress.finish();
                request
            }
            Outgoing::Bytes(bytes) => match self.config.watch {
                Some(_) => request.body(reqwest::Body::wrap(Counted::new(bytes.clone(), progress.clone()))),
                None => {
                    self.counters.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    progress.finish();
                    request.body(bytes.clone())
                }
            },
            Outgoing::Part(part) => request.body(reqwest::Body::wrap(part.body(progress.clone()))),
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let before = progress.sent();
        let patience = &self.config.patience;
        let answer = if ask.slow { patience.commit } else { patience.idle };
        let sent = tokio::select! {
            sent = request.send() => sent.map_err(|error| chain(&error)),
            () = progress.stalled(patience.idle, answer) => Err("nothing came for too long".to_owned()),
        };
        self.counters.sent.fetch_add(progress.sent() - before, Ordering::Relaxed);
        match sent {
            Ok(response) => {
                let (status, headers, url) = (response.status(), response.headers().clone(), response.url().clone());
                // Of what is read, the bytes count: one that breaks off again and again answers, too.
                if ask.method != Method::GET && !retry::is_temporary(status) {
                    self.config.watch.iter().for_each(|watch| watch.answered());
                }
                Ok(Answer { status, headers, url, response })
            }
            Err(_) if progress.is_damaged() => match &ask.body {
                Outgoing::Part(part) => Err(RegistryError::Damaged(part.digest).into()),
                _ => Err(Failure::Broken { why: "the request failed".into(), after: None }),
            },
            // What rustls says where the other side speaks something else; to ask again changes nothing.
            Err(why) if url.scheme() == "https" && why.contains("InvalidContentType") => {
                let host = url.authority();
                let why = format!(
                    "it does not speak TLS; if it speaks plain HTTP and may do so, allow it with `--insecure {host}` or `registries.insecure`"
                );
                Err(RegistryError::Unreachable { what: ask.what.into(), url: shown(url), why, failures: 1 }.into())
            }
            Err(why) => Err(Failure::Broken { why: clean(&why), after: None }),
        }
    }

    /// The next piece of an answer's body.
    pub(super) async fn piece(&self, answer: &mut Answer) -> Result<Option<Bytes>, Failure> {
        let broken = |why: String| Failure::Broken { why, after: None };
        match tokio::time::timeout(self.config.patience.idle, answer.response.chunk()).await {
            Ok(Ok(piece)) => {
                let length = piece.as_ref().map_or(0, Bytes::len);
                self.counters.received.fetch_add(length as u64, Ordering::Relaxed);
                self.config.watch.iter().for_each(|watch| watch.advance(length as u64));
                Ok(piece)
            }
            Ok(Err(error)) => Err(broken(chain(&error))),
            Err(_) => Err(broken("nothing came for too long".into())),
        }
    }

    /// A small body; `None` where it is longer than `limit`.
    pub(super) async fn body(&self, answer: &mut Answer, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(answer).await? {
            if bytes.len() + piece.len() > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes))
    }
}

fn is_bearer(value: &HeaderValue) -> bool {
    value.as_bytes().starts_with(b"Bearer ")
}

/// The same resource at another origin.
fn rebased(home: &Url, url: &Url) -> Url {
    let mut next = home.clone();
    next.set_path(url.path());
    next.set_query(url.query());
    next
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
