//! A registry in this process, on a real socket: the OCI distribution specification 1.1 in full, a token server, scripted
//! faults, and a log of every request. What else it is asked for are objects of S3 buckets.

mod http;
mod objects;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use http::{Request, Response};
pub use objects::error as s3_error;

/// How the registry wants to be spoken to.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    #[default]
    None,
    Basic,
    /// Tokens from `/token` of `realm`, by default this server.
    Bearer {
        realm: Option<String>,
        /// `expires_in` of tokens.
        lives: Option<u64>,
        /// How often a token may be used, whatever it says.
        uses: Option<usize>,
        /// Whether POST is known to the token server.
        oauth: bool,
    },
    /// A challenge as it is, whatever it means.
    Raw(Vec<String>),
}

/// What comes of a request to mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mounting {
    #[default]
    Works,
    /// An upload begins instead.
    Never,
    /// Only blobs that a manifest of the source refers to.
    Referenced,
    /// An error.
    Status(u16),
}

/// Where uploads go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Relative,
    Absolute,
    /// With a query that must come back.
    Query,
    /// On another server, given as `scheme://host:port`.
    Elsewhere(String),
}

/// What kind of registry it is.
#[derive(Debug, Clone)]
pub struct Kind {
    pub auth: Auth,
    pub user: String,
    pub password: String,
    pub identity: String,
    pub mounting: Mounting,
    pub place: Place,
    pub referrers: bool,
    pub smallest_chunk: Option<u64>,
    pub largest_body: Option<u64>,
    /// Blobs are read from another server.
    pub blobs_at: Option<String>,
    pub ranges: bool,
    /// Whether an index may name manifests that are not there.
    pub sparse: bool,
    pub latency: Duration,
    /// Blobs and manifests that HEAD says are there.
    pub lies: BTreeSet<String>,
    /// Repositories whose blobs may not be read.
    pub unreadable: BTreeSet<String>,
}

impl Default for Kind {
    fn default() -> Kind {
        Kind {
            auth: Auth::None,
            user: "user".into(),
            password: CANARY_PASSWORD.into(),
            identity: CANARY_IDENTITY.into(),
            mounting: Mounting::Works,
            place: Place::Relative,
            referrers: true,
            smallest_chunk: None,
            largest_body: None,
            blobs_at: None,
            ranges: true,
            sparse: false,
            latency: Duration::ZERO,
            lies: BTreeSet::new(),
            unreadable: BTreeSet::new(),
        }
    }
}

/// Secrets that must never be seen in any output.
pub const CANARY_PASSWORD: &str = "canary-password-5f0c";
pub const CANARY_IDENTITY: &str = "canary-identity-91aa";
pub const CANARY_TOKEN: &str = "canary-token-";

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Act {
    /// This answer instead.
    Answer(Response),
    /// So many bytes of the request's body are taken, then the connection breaks.
    Reset(u64),
    /// The request is done, and the connection breaks before the answer.
    Swallow,
    /// The request is done, and this is answered.
    DoneBut(Response),
    /// The answer's body breaks off after so many bytes.
    Cut(usize),
    /// The answer's body is other bytes.
    Garble,
    /// Nothing happens for a while.
    Stall(Duration),
    /// The request's body is read, and the answer's sent, slowly: a pause behind each piece.
    Drip(Duration),
    /// The answer is sent a byte at a time, from its first line: a pause behind each.
    Trickle(Duration),
    /// Headers are added to the answer, or replaced.
    Headers(Vec<(&'static str, String)>),
}

/// A fault and when it happens.
pub struct Fault {
    matches: Box<dyn Fn(&Request) -> bool + Send>,
    skip: usize,
    times: usize,
    act: Act,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Logged {
    pub line: String,
    pub query: Vec<(String, String)>,
    pub status: u16,
    pub received: u64,
    pub sent: u64,
    pub authorization: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub began: Instant,
    pub ended: Instant,
}

#[derive(Debug, Clone, Default)]
pub struct Repo {
    pub blobs: BTreeSet<String>,
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub tags: BTreeMap<String, String>,
}

#[derive(Default)]
pub struct State {
    pub kind: Kind,
    pub blobs: BTreeMap<String, Arc<Vec<u8>>>,
    pub repos: BTreeMap<String, Repo>,
    /// Objects by their paths, `/bucket/name`.
    pub objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, (String, Vec<u8>)>,
    /// Tokens that were given out: scopes, and uses so far.
    tokens: BTreeMap<String, (Vec<String>, usize)>,
    faults: Vec<Fault>,
    /// How often something went wrong.
    pub failed: usize,
    pub log: Vec<Logged>,
    pub uploaded: BTreeMap<String, usize>,
    serial: usize,
}

impl State {
    /// Uploads that were begun and neither finished nor cancelled.
    pub fn uploads(&self) -> usize {
        self.uploads.len()
    }
}

/// A running registry; it stops being served when its test ends.
#[derive(Clone)]
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    /// Starts a registry.
    pub fn start(kind: Kind) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("is bound");
        let registry = Registry { address, state: Arc::new(Mutex::new(State { kind, ..State::default() })) };
        let served = registry.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || serve::connection(&served, stream));
            }
        });
        registry
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The `times` requests after `skip` ones whose line (`PUT /v2/a/manifests/x`) contains `text` go wrong.
    pub fn fail(&self, text: &str, skip: usize, times: usize, act: Act) {
        let text = text.to_owned();
        self.fail_if(move |request| request.line().contains(&text), skip, times, act);
    }

    pub fn fail_if(&self, matches: impl Fn(&Request) -> bool + Send + 'static, skip: usize, times: usize, act: Act) {
        self.state().faults.push(Fault { matches: Box::new(matches), skip, times, act });
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.failed = 0;
    }

    /// The requests so far whose line contains `text`.
    pub fn requests(&self, text: &str) -> Vec<Logged> {
        self.state().log.iter().filter(|logged| logged.line.contains(text)).cloned().collect()
    }

    pub fn clear_log(&self) {
        self.state().log.clear();
    }

    /// The manifest that a tag names.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<String> {
        self.state().repos.get(repository)?.tags.get(tag).cloned()
    }

    /// Everything that a tag leads to is there and is what its digest says; the reason if not. `None` where there is no
    /// such tag.
    pub fn check_tag(&self, repository: &str, tag: &str) -> Option<Result<(), String>> {
        let digest = self.tag(repository, tag)?;
        let state = self.state();
        Some(check(&state, repository, &digest))
    }

    /// Asserts that no tag of any repository leads to something incomplete.
    pub fn assert_whole(&self) {
        let state = self.state();
        for (name, repo) in &state.repos {
            for (tag, digest) in &repo.tags {
                assert_eq!(check(&state, name, digest), Ok(()), "{name}:{tag}");
            }
        }
    }

    /// The longest chain of requests of which each began after the one before had ended: round trips, whatever went on
    /// at once.
    pub fn round_trips(&self) -> usize {
        self.round_trips_without("\n")
    }

    /// The same without the requests whose line holds this.
    pub fn round_trips_without(&self, part: &str) -> usize {
        let state = self.state();
        let counted = state.log.iter().filter(|it| !it.line.contains(part));
        let mut spans: Vec<(Instant, Instant)> = counted.map(|it| (it.began, it.ended)).collect();
        drop(state);
        spans.sort_by_key(|(_, ended)| *ended);
        let mut count = 0;
        let mut free = None;
        for (began, ended) in spans {
            if free.is_none_or(|free| began >= free) {
                count += 1;
                free = Some(ended);
            }
        }
        count
    }
}

fn check(state: &State, repository: &str, digest: &str) -> Result<(), String> {
    let repo = state.repos.get(repository).ok_or("there is no such repository")?;
    let (_, bytes) = repo.manifests.get(digest).ok_or(format!("manifest {digest} is missing"))?;
    if serve::hash(digest, bytes) != digest {
        return Err(format!("manifest {digest} is something else"));
    }
    let document: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let list = |name: &str| document.get(name).and_then(|it| it.as_array()).cloned().unwrap_or_default();
    for child in list("manifests") {
        check(state, repository, child["digest"].as_str().unwrap_or_default())?;
    }
    for blob in list("layers").iter().chain(document.get("config")) {
        if blob["mediaType"].as_str().is_some_and(|it| it.contains("nondistributable")) {
            continue;
        }
        let name = blob["digest"].as_str().unwrap_or_default();
        let found = state.blobs.get(name).filter(|_| repo.blobs.contains(name));
        let found = found.ok_or(format!("blob {name} is missing"))?;
        if serve::hash(name, found) != name {
            return Err(format!("blob {name} is something else"));
        }
    }
    Ok(())
}
