//! Downloads: small documents whole, large files by digest, resumed and verified while they arrive.
//!
//! The rest of the program is synchronous; the runtime lives here and starts with the first request, so a build that
//! needs nothing from outside never pays for it.

mod download;
mod watch;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use reqwest::Url;

pub use download::Download;
pub use watch::{Watch, first_pause};

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The program was told to stay offline.
    #[error("`{name}` is not in the cache, and --offline forbids to download it: run once without `--offline`")]
    Offline {
        /// What was wanted.
        name: String,
    },
    /// A request failed for good.
    #[error("cannot get {url}: {why}")]
    Request {
        /// The URL, without user and password.
        url: String,
        /// Why.
        why: String,
    },
    /// A document larger than it may be.
    #[error("{url} is larger than the {limit} bytes it may have")]
    TooLarge {
        /// The URL, without user and password.
        url: String,
        /// Bytes.
        limit: u64,
    },
    /// Every mirror failed.
    #[error("cannot download `{name}`:{}", tried.iter().map(|line| format!("\n  {line}")).collect::<String>())]
    Mirrors {
        /// The file.
        name: String,
        /// One line a mirror: the URL without secrets, and what went wrong.
        tried: Vec<String>,
        /// Whether every mirror said that it does not have the file.
        gone: bool,
    },
    /// A URL that cannot be used.
    #[error("`{url}` is not a URL that imgbuild can use: {why}")]
    Url {
        /// The text.
        url: String,
        /// Why.
        why: String,
    },
    /// The network stack did not start.
    #[error("the network cannot be used: {0}")]
    Setup(String),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
}

/// How to reach the network.
#[derive(Debug, Clone, Default)]
pub struct HttpConfig {
    /// Every request is refused.
    pub offline: bool,
    /// PEM files with certificates to trust beside the machine's own.
    pub extra_ca: Vec<PathBuf>,
    /// Basic credentials by host; the first that fits is sent.
    pub credentials: Vec<Credential>,
    /// What stands between.
    pub proxies: Proxies,
    /// How long next to nothing may move, whatever is tried again meanwhile; `None`: every attempt may take its time.
    pub patience: Option<Duration>,
}

impl HttpConfig {
    /// How long nothing may move on a connection: where patience is limited, several attempts fit into it.
    fn idle(&self) -> Duration {
        self.patience.map_or(IDLE, |patience| IDLE.min(patience / 3))
    }
}

/// Proxies, each a URL or `host:port`. May hold passwords, so they are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http` URLs.
    pub http: Option<String>,
    /// For `https` URLs.
    pub https: Option<String>,
    /// Hosts, domains and networks to reach directly, parted by commas, as `NO_PROXY` has them.
    pub none_for: Option<String>,
    /// For single hosts, before the others; `None` is directly.
    pub hosts: Vec<(String, Option<String>)>,
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts: Vec<&String> = self.hosts.iter().map(|(host, _)| host).collect();
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("none_for", &self.none_for)
            .field("hosts", &hosts)
            .finish()
    }
}

impl Proxies {
    pub(crate) fn apply(&self, mut builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, String> {
        // The environment was read where the program starts; reqwest must not read it again.
        builder = builder.no_proxy();
        let none_for = || self.none_for.as_deref().and_then(reqwest::NoProxy::from_string);
        let wrong = |error: reqwest::Error| format!("a proxy cannot be used: {}", chain(&error));
        let direct: Vec<String> =
            self.hosts.iter().filter(|(_, proxy)| proxy.is_none()).map(|(host, _)| host.clone()).collect();
        for (host, proxy) in &self.hosts {
            let Some(proxy) = proxy else { continue };
            let proxy = Url::parse(proxy)
                .ok()
                .filter(Url::has_host)
                .or_else(|| Url::parse(&format!("http://{proxy}")).ok())
                .ok_or_else(|| format!("the proxy for {host} is not a URL"))?;
            let host = host.clone();
            let proxy = reqwest::Proxy::custom(move |url| (url.host_str() == Some(&host)).then(|| proxy.clone()));
            builder = builder.proxy(proxy.no_proxy(none_for()));
        }
        // `none_for` of the rest also has the hosts that are to be reached directly.
        let mut rest: Vec<String> = self.none_for.clone().into_iter().collect();
        rest.extend(direct);
        let rest = || reqwest::NoProxy::from_string(&rest.join(","));
        if let Some(proxy) = &self.http {
            builder = builder.proxy(reqwest::Proxy::http(proxy.as_str()).map_err(wrong)?.no_proxy(rest()));
        }
        if let Some(proxy) = &self.https {
            builder = builder.proxy(reqwest::Proxy::https(proxy.as_str()).map_err(wrong)?.no_proxy(rest()));
        }
        Ok(builder)
    }
}

/// User and password for one host.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The host, with `:port` where one is written.
    pub host: String,
    /// What the path of a URL must begin with; empty for any.
    pub path: String,
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credential({}@{})", self.user, self.host)
    }
}

/// A document.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The URL that it came from in the end.
    pub url: Url,
}

/// A client. Cheap until it is used.
#[derive(Debug)]
pub struct Http {
    config: HttpConfig,
    watch: Option<Arc<Watch>>,
    started: OnceLock<Result<Started, String>>,
}

#[derive(Debug)]
pub(crate) struct Started {
    runtime: tokio::runtime::Runtime,
    pub(crate) client: reqwest::Client,
    /// Has no limit on the time between a request and its answer: a large body lies in between.
    sender: OnceLock<Result<reqwest::Client, String>>,
}

impl Started {
    /// A client for large bodies: whoever uses it sees to it that something moves.
    pub(crate) fn sender(&self, http: &Http) -> Result<&reqwest::Client, Failure> {
        let sender = self.sender.get_or_init(|| client(&http.config, None));
        sender.as_ref().map_err(|why| Failure::Final(FetchError::Setup(why.clone())))
    }
}

/// How long nothing may move.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

/// Attempts at one URL before it counts as failed.
const ATTEMPTS: u32 = 4;

impl Http {
    /// A client that has not started yet.
    pub fn new(config: HttpConfig) -> Http {
        let watch = config.patience.map(|patience| Arc::new(Watch::new(patience)));
        Http { config, watch, started: OnceLock::new() }
    }

    /// How long nothing may move on a connection.
    pub(crate) fn idle(&self) -> Duration {
        self.config.idle()
    }

    /// What counts the bytes that move, where patience is limited.
    pub(crate) fn watch(&self) -> Option<&Arc<Watch>> {
        self.watch.as_ref()
    }

    /// Whether requests are refused.
    pub fn offline(&self) -> bool {
        self.config.offline
    }

    /// Gets a document of at most `limit` bytes; `None` where the server says that there is none (404, 410).
    pub fn get(&self, url: &Url, accept: Option<&str>, limit: u64) -> Result<Option<Document>, FetchError> {
        self.patiently(url, 0, async |started| self.get_once(started, url, accept, limit).await)
    }

    async fn get_once(
        &self,
        started: &Started,
        url: &Url,
        accept: Option<&str>,
        limit: u64,
    ) -> Result<Option<Document>, Failure> {
        let mut request = self.request(started, url);
        if let Some(accept) = accept {
            request = request.header(reqwest::header::ACCEPT, accept);
        }
        let mut response = request.send().await.map_err(|error| again(&error, None))?;
        if matches!(response.status().as_u16(), 404 | 410) {
            return Ok(None);
        }
        check_status(url, &mut response).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| again(&error, None))? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(Failure::Final(FetchError::TooLarge { url: shown(url), limit }));
            }
            self.watch().inspect(|watch| watch.advance(chunk.len() as u64));
            bytes.extend_from_slice(&chunk);
        }
        let media_type = response
            .headers()
            .get(reqwest::header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
            .unwrap_or_default();
        Ok(Some(Document { bytes, media_type, url: response.url().clone() }))
    }

    /// Tries several times; `url` is what an error names, `bytes` is what is to be moved.
    pub(crate) fn patiently<T>(
        &self,
        url: &Url,
        bytes: u64,
        work: impl AsyncFn(&Started) -> Result<T, Failure>,
    ) -> Result<T, FetchError> {
        if self.config.offline {
            return Err(FetchError::Offline { name: shown(url) });
        }
        let started = self.start()?;
        let last = RefCell::new(None);
        let tries = async {
            let mut attempt = 0;
            loop {
                attempt += 1;
                match work(started).await {
                    Ok(done) => return Ok(done),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Again { why, after }) => match self.pause(attempt, after) {
                        Some(pause) => {
                            last.replace(Some(why));
                            tokio::time::sleep(pause).await;
                        }
                        None => return Err(FetchError::Request { url: shown(url), why }),
                    },
                }
            }
        };
        match started.runtime.block_on(self.watched(bytes, tries)) {
            Ok(done) => done,
            Err(why) => Err(FetchError::Request { url: shown(url), why: with_last(why, last.take()) }),
        }
    }

    /// Does work as long as there is patience for it; an error says that it ended.
    async fn watched<T>(&self, bytes: u64, work: impl Future<Output = T>) -> Result<T, String> {
        match &self.watch {
            Some(watch) => watch.over(bytes, work).await,
            None => Ok(work.await),
        }
    }

    /// The pause after a failed attempt; `None` where it was the last one.
    fn pause(&self, attempt: u32, after: Option<Duration>) -> Option<Duration> {
        let watch = self.watch.as_ref();
        let waits = after.is_none_or(|asked| watch.is_none_or(|watch| watch.waits(asked)));
        let first = watch.map_or(Duration::from_millis(250), |watch| watch.first_pause());
        (attempt < ATTEMPTS && waits).then(|| pause(attempt, after, first))
    }

    fn request(&self, started: &Started, url: &Url) -> reqwest::RequestBuilder {
        let request = started.client.get(url.clone());
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            _ => return request,
        };
        let fits = |it: &&Credential| it.host == host && url.path().starts_with(&it.path);
        match self.config.credentials.iter().find(fits) {
            Some(found) if url.username().is_empty() => request.basic_auth(&found.user, Some(&found.password)),
            _ => request,
        }
    }

    fn start(&self) -> Result<&Started, FetchError> {
        let started = self.started.get_or_init(|| start(&self.config));
        started.as_ref().map_err(|why| FetchError::Setup(why.clone()))
    }
}

fn start(config: &HttpConfig) -> Result<Started, String> {
    // Another part of the program may have chosen a provider before; either is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let client = client(config, Some(config.idle()))?;
    Ok(Started { runtime, client, sender: OnceLock::new() })
}

/// A client that waits so long for more bytes of an answer.
fn client(config: &HttpConfig, idle: Option<Duration>) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("imgbuild/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.idle().min(Duration::from_secs(30)))
        .pool_max_idle_per_host(16)
        .redirect(reqwest::redirect::Policy::custom(|attempt| {
            if attempt.previous().len() > 5 {
                return attempt.error("too many redirects");
            }
            let fell = attempt.previous().last().is_some_and(|from| from.scheme() == "https")
                && attempt.url().scheme() != "https";
            if fell { attempt.error("a redirect from https to http is refused") } else { attempt.follow() }
        }));
    // Idle time, not total time: a large file on a slow line may take as long as it keeps coming.
    if let Some(idle) = idle {
        builder = builder.read_timeout(idle);
    }
    builder = config.proxies.apply(builder)?;
    for path in &config.extra_ca {
        let pem = std::fs::read(path).map_err(|error| format!("`{}`: {error}", path.display()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|error| format!("`{}` holds no certificates: {error}", path.display()))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| chain(&error))
}

/// Why it ended, and what had failed before that.
pub(crate) fn with_last(why: String, last: Option<String>) -> String {
    last.map_or(why.clone(), |last| format!("{why}; before that: {last}"))
}

/// How one attempt ended.
pub(crate) enum Failure {
    Final(FetchError),
    Again { why: String, after: Option<Duration> },
}

pub(crate) fn again(error: &reqwest::Error, after: Option<Duration>) -> Failure {
    Failure::Again { why: chain(error), after }
}

/// Turns an error answer into a failure; the server's wish to wait is kept.
pub(crate) async fn check_status(url: &Url, response: &mut reqwest::Response) -> Result<(), Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let after = response
        .headers()
        .get(reqwest::header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_secs);
    let mut why = format!("the server answered {status}");
    if let Ok(Some(code)) = tokio::time::timeout(REASON, s3_code(response)).await {
        why += &format!(" ({code})");
    }
    if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) {
        return Err(Failure::Again { why, after });
    }
    Err(Failure::Final(FetchError::Request { url: shown(url), why }))
}

/// How long a server may take to say why, and how much it may say, bytes.
const REASON: Duration = Duration::from_secs(5);
const REASONS: usize = 16 << 10;

/// The code in an error of an S3 service (API reference, "Error responses"): it tells a session that ended from a wrong key, which
/// have one status.
async fn s3_code(response: &mut reqwest::Response) -> Option<String> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > REASONS {
            return None;
        }
    }
    let text = String::from_utf8(body).ok()?;
    let (_, error) = text.split_once("<Error")?;
    let (code, _) = error.split_once("<Code>")?.1.split_once("</Code>")?;
    let is_code = (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_code.then(|| code.to_owned())
}

/// The pause before another attempt: what the server asks for (at most a minute), else growing and jittered.
fn pause(attempt: u32, after: Option<Duration>, first: Duration) -> Duration {
    let jitter = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| u64::from(now.subsec_micros()) % 1000);
    match after {
        Some(asked) => asked.min(Duration::from_secs(60)),
        None => first * (1 << attempt.min(5)) + first.mul_f64(jitter as f64 / 1000.0),
    }
}

/// An error with all its causes on one line, URLs left out because they may hold secrets.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = match error.downcast_ref::<reqwest::Error>() {
            Some(error) if error.is_timeout() => "timed out".to_owned(),
            Some(error) if error.is_connect() => "cannot connect".to_owned(),
            Some(error) if error.is_body() || error.is_decode() => "the connection broke".to_owned(),
            Some(error) if error.is_redirect() => "a redirect was refused".to_owned(),
            Some(_) => "the request failed".to_owned(),
            None => error.to_string(),
        };
        if !parts.contains(&text) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

/// A URL for people: without user, password, query and fragment.
pub fn shown(url: &Url) -> String {
    let mut clean = url.clone();
    let _ = clean.set_username("");
    let _ = clean.set_password(None);
    clean.set_query(None);
    clean.set_fragment(None);
    clean.into()
}

/// Parses a URL and refuses schemes that imgbuild does not speak.
pub fn parse_url(text: &str) -> Result<Url, FetchError> {
    let wrong = |why: String| FetchError::Url { url: text.chars().take(200).collect(), why };
    let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(wrong(format!("the scheme `{other}` is neither http nor https"))),
    }
}
