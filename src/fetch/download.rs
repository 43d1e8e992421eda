//! Files by digest, into the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use cache::{CacheError, Store};
use layers::Digest;
use sha2::{Digest as _, Sha256};

use super::{Failure, FetchError, Http, Started, Url, again, check_status, shown};
use crate::failpoint::Kept;
use crate::observe::{Event, Observer};

/// A file that is wanted.
#[derive(Debug, Clone)]
pub struct Download {
    /// What a person calls it.
    pub name: String,
    /// Where it may be had, best first.
    pub urls: Vec<Url>,
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its length in bytes, where it is known.
    pub size: Option<u64>,
}

/// The largest file of unknown length, bytes.
const LARGEST: u64 = 64 << 30;

impl Http {
    /// Brings a file into the store and returns its path there. A partial download is resumed, by whichever process
    /// needs it next; nothing is visible under its digest before it is verified.
    pub fn download(&self, wanted: &Download, store: &Store, observer: &dyn Observer) -> Result<PathBuf, FetchError> {
        let path = store.blob_path(&wanted.digest);
        if is_there(wanted, store)? {
            return Ok(path);
        }
        if self.offline() {
            return Err(FetchError::Offline { name: wanted.name.clone() });
        }
        let turn = store.lock_download(&wanted.digest)?;
        if is_there(wanted, store)? {
            return Ok(path);
        }
        let partial = store.download_path(&wanted.digest, &turn);
        observer.on(Event::DownloadStarted { name: &wanted.name, size: wanted.size });
        let mut tried = Vec::new();
        let mut gone = true;
        for url in &wanted.urls {
            let attempt = async |started: &Started| self.attempt(started, wanted, url, &partial, store, observer).await;
            match self.patiently(url, wanted.size.unwrap_or(0), attempt) {
                Ok(()) => {
                    observer.on(Event::DownloadFinished { name: &wanted.name });
                    return Ok(path);
                }
                Err(FetchError::Request { url, why }) => {
                    gone &= why.contains("answered 404") || why.contains("answered 410");
                    tried.push(format!("{url}: {why}"));
                }
                Err(FetchError::TooLarge { url, limit }) => {
                    gone = false;
                    tried.push(format!("{url}: it is longer than the expected {limit} bytes"));
                }
                Err(other) => return Err(other),
            }
        }
        Err(FetchError::Mirrors { name: wanted.name.clone(), tried, gone })
    }

    async fn attempt(
        &self,
        started: &Started,
        wanted: &Download,
        url: &Url,
        partial: &Path,
        store: &Store,
        observer: &dyn Observer,
    ) -> Result<(), Failure> {
        let file_error = |error| Failure::Final(CacheError::at(partial)(error).into());
        let (mut file, mut hasher, mut have) = resume(partial).map_err(file_error)?;
        let limit = wanted.size.unwrap_or(LARGEST);
        if have > limit || wanted.size == Some(have) && digest(&hasher) != wanted.digest {
            (file, hasher, have) = restart(partial).map_err(file_error)?;
        }
        if wanted.size != Some(have) {
            let mut request = self.request(started, url);
            if have > 0 {
                request = request.header(reqwest::header::RANGE, format!("bytes={have}-"));
            }
            // Stored bytes are what is hashed; a transparent encoding would break resuming.
            request = request.header(reqwest::header::ACCEPT_ENCODING, "identity");
            let mut response = request.send().await.map_err(|error| again(&error, None))?;
            if response.status().as_u16() == 416 {
                restart(partial).map_err(file_error)?;
                return Err(Failure::Again { why: "the server cannot resume the file".into(), after: None });
            }
            check_status(url, &mut response).await?;
            let resumed = response.status().as_u16() == 206
                && response
                    .headers()
                    .get(reqwest::header::CONTENT_RANGE)
                    .and_then(|value| value.to_str().ok())
                    .is_some_and(|value| value.starts_with(&format!("bytes {have}-")));
            if have > 0 && !resumed {
                (file, hasher, have) = restart(partial).map_err(file_error)?;
            }
            while let Some(chunk) = response.chunk().await.map_err(|error| again(&error, None))? {
                have += chunk.len() as u64;
                if have > limit {
                    restart(partial).map_err(file_error)?;
                    return Err(Failure::Final(FetchError::TooLarge { url: shown(url), limit }));
                }
                hasher.update(&chunk);
                if let Err(error) = file.write_all(&chunk) {
                    // Nobody else counts it, and whoever makes room for the next attempt asks how much this one wrote.
                    store.count(have, 0);
                    return Err(file_error(error));
                }
                Kept::Chunk.reach();
                observer.on(Event::DownloadAdvanced { name: &wanted.name, bytes: chunk.len() as u64 });
                self.watch().inspect(|watch| watch.advance(chunk.len() as u64));
            }
        }
        drop(file);
        if wanted.size.is_some_and(|size| size != have) {
            return Err(Failure::Again { why: format!("it ended after {have} bytes"), after: None });
        }
        let found = digest(&hasher);
        if found != wanted.digest {
            restart(partial).map_err(file_error)?;
            let why = format!("its digest is {found}, expected {}", wanted.digest);
            return Err(Failure::Final(FetchError::Request { url: shown(url), why }));
        }
        store.adopt(partial, &wanted.digest).map_err(|error| Failure::Final(error.into()))
    }
}

fn is_there(wanted: &Download, store: &Store) -> Result<bool, FetchError> {
    Ok(match (store.has(&wanted.digest)?, wanted.size) {
        (Some(found), Some(size)) => found == size,
        (found, None) => found.is_some(),
        (None, _) => false,
    })
}

fn digest(hasher: &Sha256) -> Digest {
    Digest::from_bytes(hasher.clone().finalize().into())
}

/// Opens a partial file and hashes what it holds.
fn resume(path: &Path) -> std::io::Result<(File, Sha256, u64)> {
    let mut hasher = Sha256::new();
    let mut have = 0;
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    cache::in_pieces(&file, |piece| {
        hasher.update(piece);
        have += piece.len() as u64;
        Ok(())
    })?;
    Ok((file, hasher, have))
}

fn restart(path: &Path) -> std::io::Result<(File, Sha256, u64)> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    Ok((file, Sha256::new(), 0))
}
