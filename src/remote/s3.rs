//! A cache in a bucket of an S3 service.
//!
//! ```text
//! PREFIX/imgbuild-cache-v1/names/image-2-0123...    a document
//! PREFIX/imgbuild-cache-v1/blobs/ab/abcdef...       a blob by its SHA-256
//! ```
//!
//! Objects are visible when they are whole (S3 has no partial puts), so readers and writers need no locks.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cache::{Blob, Store};
use layers::Digest;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use super::document::LARGEST;
use super::{Place, Remote, RemoteError};
use crate::fetch::{Download, Failure, FetchError, Http, IDLE, Url, again, check_status, shown};
use crate::observe::Silent;
use crate::parallel::in_parallel;
use crate::registry::RegistryError;
use crate::registry::body::{Counted, Outgoing, Part, Progress};

/// A bucket and what stands before the names in it: `s3://BUCKET` or `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketPlace {
    /// The bucket.
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
}

impl FromStr for BucketPlace {
    type Err = String;

    /// Reads what follows `s3://`.
    fn from_str(text: &str) -> Result<BucketPlace, String> {
        let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
        // What all services take: the user guide, "General purpose bucket naming rules".
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
            return Err(format!("`{bucket}` is no bucket: 3 to 63 small letters, digits, `-` and `.`"));
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.len() > 512
            || prefix.split('/').any(|part| matches!(part, "." | "..") || part.is_empty() && !prefix.is_empty())
        {
            return Err("its prefix has empty or `.` parts, or more than 512 bytes".into());
        }
        Ok(BucketPlace { bucket: bucket.into(), prefix: prefix.into() })
    }
}

impl fmt::Display for BucketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// How a service is reached.
pub struct S3Settings {
    /// The service; `None` is Amazon's in the region.
    pub endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// The access key, its secret, and a session's token. Without them requests are not signed.
    pub credentials: Option<(String, String, Option<String>)>,
}

/// A cache in a bucket.
pub struct Objects {
    http: Http,
    bucket: Bucket,
    credentials: Option<Credentials>,
    /// Whether the credentials are a session's, which ends.
    has_session: bool,
    folder: String,
}

/// How long a signature holds.
const VALID: Duration = Duration::from_secs(3600);

/// The largest object that one request may make, bytes (user guide, "Uploading objects").
const LARGEST_PUT: u64 = 5 << 30;

impl Objects {
    /// The cache at `place`.
    ///
    /// # Errors
    /// If the endpoint is none.
    pub fn new(http: Http, place: &BucketPlace, settings: S3Settings) -> Result<Objects, String> {
        // The names of a service of one's own seldom have the bucket in them.
        let (endpoint, style) = match settings.endpoint {
            Some(endpoint) => (endpoint, UrlStyle::Path),
            None => {
                let host = format!("https://s3.{}.amazonaws.com", settings.region);
                let style = if place.bucket.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
                (host.parse().map_err(|_| format!("`{}` is no region", settings.region))?, style)
            }
        };
        let bucket = Bucket::new(endpoint, style, place.bucket.clone(), settings.region)
            .map_err(|error| format!("the endpoint cannot be used: {error}"))?;
        let credentials = settings.credentials.map(|(key, secret, token)| {
            crate::hide::remember(&secret);
            token.iter().for_each(|token| crate::hide::remember(token));
            (key, secret, token)
        });
        let has_session = credentials.as_ref().is_some_and(|(_, _, token)| token.is_some());
        let credentials = credentials.map(|(key, secret, token)| match token {
            Some(token) => Credentials::new_with_token(key, secret, token),
            None => Credentials::new(key, secret),
        });
        let separator = if place.prefix.is_empty() { "" } else { "/" };
        let folder = format!("{}{separator}imgbuild-cache-v1", place.prefix);
        Ok(Objects { http, bucket, credentials, has_session, folder })
    }

    /// Says that it is out of reach, where that is so.
    fn reachable(&self) -> Result<(), RemoteError> {
        match self.http.offline() {
            true => Err(RegistryError::Offline { what: format!("s3://{}", self.bucket.name()) }.into()),
            false => Ok(()),
        }
    }

    fn blob(&self, digest: &Digest) -> String {
        let hex = digest.hex();
        format!("{}/blobs/{}/{hex}", self.folder, &hex[..2])
    }

    fn get(&self, object: &str) -> Url {
        self.bucket.get_object(self.credentials.as_ref(), object).sign(VALID)
    }

    /// Makes an object; the service compares what arrives with the digest.
    fn put(&self, object: &str, digest: &Digest, body: &Outgoing) -> Result<(), RemoteError> {
        let name = "x-amz-checksum-sha256";
        let checksum = STANDARD.encode(digest.as_bytes());
        let mut action = self.bucket.put_object(self.credentials.as_ref(), object);
        // What is not signed may not be sent.
        action.headers_mut().insert(name, checksum.clone());
        let is_rotten = AtomicBool::new(false);
        self.put_at(&action.sign(VALID), (name, &checksum), body, &is_rotten).map_err(|error| {
            let is_rotten = is_rotten.into_inner();
            if is_rotten { RemoteError::RottedHere(*digest) } else { self.explained(error).into() }
        })
    }

    /// The length of what is at a URL, bytes; `None` where nothing is.
    fn length(&self, url: &Url) -> Result<Option<u64>, FetchError> {
        self.http.patiently(url, 0, async |started| {
            let mut response = started.client.head(url.clone()).send().await.map_err(|error| again(&error, None))?;
            if matches!(response.status().as_u16(), 404 | 410) {
                return Ok(None);
            }
            check_status(url, &mut response).await?;
            // The client counts a body, and here there is none.
            let length = response.headers().get(reqwest::header::CONTENT_LENGTH);
            Ok(length.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok()))
        })
    }

    /// Puts something at a URL. It may take as long as bytes are moving. Says whether it failed because the bytes are not what they should be.
    fn put_at(
        &self,
        url: &Url,
        header: (&str, &str),
        body: &Outgoing,
        is_rotten: &AtomicBool,
    ) -> Result<(), FetchError> {
        let bytes = match body {
            Outgoing::Part(part) => part.size,
            Outgoing::Bytes(bytes) => bytes.len() as u64,
            Outgoing::Empty => 0,
        };
        self.http.patiently(url, bytes, async |started| {
            let progress = Progress::watched(self.http.watch().cloned());
            let request = started.sender(&self.http)?.put(url.clone()).header(header.0, header.1);
            let request = match body {
                Outgoing::Empty => request.header(reqwest::header::CONTENT_LENGTH, 0),
                Outgoing::Bytes(bytes) => {
                    request.body(reqwest::Body::wrap(Counted::new(bytes.clone(), progress.clone())))
                }
                Outgoing::Part(part) => request.body(reqwest::Body::wrap(part.body(progress.clone()))),
            };
            tokio::select! {
                answer = request.send() => {
                    if progress.is_damaged() {
                        is_rotten.store(true, Ordering::Relaxed);
                        return Err(Failure::Final(FetchError::Request { url: shown(url), why: "it is damaged".into() }));
                    }
                    check_status(url, &mut answer.map_err(|error| again(&error, None))?).await
                }
                () = progress.stalled(self.http.idle(), 2 * IDLE) => {
                    Err(Failure::Again { why: "nothing moves any more".into(), after: None })
                }
            }
        })
    }

    fn explained(&self, error: FetchError) -> FetchError {
        let more = |why: String| match hint(&why, self.has_session) {
            Some(hint) => format!("{why}: {hint}"),
            None => why,
        };
        match error {
            FetchError::Request { url, why } => FetchError::Request { url, why: more(why) },
            FetchError::Mirrors { name, tried, gone } => {
                FetchError::Mirrors { name, tried: tried.into_iter().map(more).collect(), gone }
            }
            other => other,
        }
    }

    fn send(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError> {
        if self.has(blob)? {
            return Ok(());
        }
        let object = self.blob(&blob.digest);
        if blob.size > LARGEST_PUT {
            let why = format!("{} has {} bytes, more than a bucket takes at once", blob.digest, blob.size);
            return Err(FetchError::Request { url: shown(&self.get(&object)), why }.into());
        }
        let file = store.open(&blob.digest)?.ok_or(RemoteError::Gone(blob.digest))?;
        let part = Part { file: Arc::new(file), digest: blob.digest.into(), size: blob.size, start: 0, end: blob.size };
        self.put(&object, &blob.digest, &Outgoing::Part(part))
    }
}

/// What may help where a service refuses.
fn hint(why: &str, has_session: bool) -> Option<&'static str> {
    let (_, answer) = why.split_once("the server answered ")?;
    let code = answer.split_once(" (").and_then(|(_, rest)| rest.split_once(')')).map(|(code, _)| code);
    match (answer.get(..3)?, code) {
        // Where it is asked for a length alone, a service has no room to say which.
        ("400", None) if !has_session => None,
        (_, Some("ExpiredToken" | "InvalidToken")) | ("400", None) => {
            Some("the session whose keys these are may have ended: AWS_SESSION_TOKEN, or the profile, wants new ones")
        }
        // Nor does it say which of these it was before somebody may list a bucket.
        ("403", Some("AccessDenied") | None) => Some(
            "whoever AWS_ACCESS_KEY_ID or AWS_PROFILE names may not do that, or may not list the bucket, which \
             services want from who asks for an object that is not there",
        ),
        ("403", Some("InvalidAccessKeyId" | "SignatureDoesNotMatch")) => Some(
            "the service does not know the key that AWS_ACCESS_KEY_ID or AWS_PROFILE names, or knows another secret for it",
        ),
        _ => None,
    }
}

impl Remote for Objects {
    fn find(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        self.reachable()?;
        let url = self.get(&format!("{}/names/{name}", self.folder));
        let found = self.http.get(&url, None, LARGEST as u64).map_err(|error| self.explained(error))?;
        Ok(found.map(|document| document.bytes))
    }

    fn fetch(&self, blob: &Blob, store: &Store) -> Result<(), RemoteError> {
        self.reachable()?;
        let wanted = Download {
            name: blob.digest.to_string(),
            urls: vec![self.get(&self.blob(&blob.digest))],
            digest: blob.digest,
            size: Some(blob.size),
        };
        self.http.download(&wanted, store, &Silent).map_err(|error| self.explained(error))?;
        Ok(())
    }

    fn has(&self, blob: &Blob) -> Result<bool, RemoteError> {
        self.reachable()?;
        let head = self.bucket.head_object(self.credentials.as_ref(), &self.blob(&blob.digest)).sign(VALID);
        Ok(self.length(&head).map_err(|error| self.explained(error))? == Some(blob.size))
    }

    fn keeps(&self, _: &str, last: &Blob) -> Result<bool, RemoteError> {
        // Blobs are written in their order.
        self.has(last)
    }

    fn place(&self, _: &Digest) -> Place {
        Place::Service
    }

    fn publish(&self, names: &[String], document: &[u8], blobs: &[Blob], store: &Store) -> Result<(), RemoteError> {
        self.reachable()?;
        // The last one tells that the others are there.
        if let Some((last, others)) = blobs.split_last() {
            in_parallel(super::TRANSFERS, others, |blob| self.send(blob, store))?;
            self.send(last, store)?;
        }
        for name in names.iter().filter(|_| !document.is_empty()) {
            let body = Outgoing::Bytes(Bytes::copy_from_slice(document));
            self.put(&format!("{}/names/{name}", self.folder), &Digest::of(document), &body)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_prefixes_are_read_as_they_are_written() {
        for (text, bucket, prefix) in [
            ("cache", "cache", ""),
            ("cache/", "cache", ""),
            ("my.cache-1/a/b", "my.cache-1", "a/b"),
            ("abc/d/", "abc", "d"),
        ] {
            let place: BucketPlace = text.parse().expect(text);
            assert_eq!((place.bucket.as_str(), place.prefix.as_str()), (bucket, prefix), "{text}");
        }
        for text in ["", "ab", "Upper", "a_b_c", "abc//d", "abc/../d", "abc/./d", "abc/d//e", "user@abc"] {
            assert!(text.parse::<BucketPlace>().is_err(), "{text}");
        }
    }

    #[test]
    fn hints_fit_what_is_refused() {
        let (session, permission) = (Some("AWS_SESSION_TOKEN"), Some("may not do that"));
        let key = Some("does not know the key");
        for (answer, with_session, without) in [
            ("400 Bad Request (ExpiredToken)", session, session),
            ("403 Forbidden (InvalidToken)", session, session),
            ("400 Bad Request", session, None),
            ("400 Bad Request (AuthorizationHeaderMalformed)", None, None),
            ("400 Bad Request (BadDigest)", None, None),
            ("400 Bad Request (RequestTimeout)", None, None),
            ("403 Forbidden", permission, permission),
            ("403 Forbidden (AccessDenied)", permission, permission),
            ("403 Forbidden (RequestTimeTooSkewed)", None, None),
            ("403 Forbidden (SignatureDoesNotMatch)", key, key),
            ("404 Not Found (NoSuchBucket)", None, None),
        ] {
            for (has_session, expected) in [(true, with_session), (false, without)] {
                for why in ["", "http://localhost/b: "].map(|it| format!("{it}the server answered {answer}")) {
                    let found = hint(&why, has_session);
                    assert_eq!(found.is_some(), expected.is_some(), "{why}: {found:?}");
                    assert!(found.is_none_or(|found| found.contains(expected.unwrap_or_default())), "{why}: {found:?}");
                }
            }
        }
        assert_eq!(hint("next to nothing moved for 30 s (`cache.patience`)", true), None);
    }

    #[test]
    fn no_secret_is_shown() {
        let settings = S3Settings {
            endpoint: Some("http://127.0.0.1:1".parse().expect("a URL")),
            region: "r".into(),
            credentials: Some(("key".into(), "CANARY".into(), Some("TOKEN".into()))),
        };
        let place = "cache".parse().expect("a bucket");
        let http = Http::new(crate::fetch::HttpConfig { offline: true, ..Default::default() });
        let objects = Objects::new(http, &place, settings).expect("opens");
        let error = objects.find("image-x").expect_err("it is offline").to_string();
        assert!(!error.contains("CANARY") && !error.contains("TOKEN") && !error.contains("X-Amz"), "{error}");
    }
}
