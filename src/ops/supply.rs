//! Archives by digest, from wherever the machine's configuration says they may be had.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use layers::lock::DEBIAN;
use layers::op::{Archive, Origin};
use layers::{Digest, Platform, oci};

use super::{Bench, bases};
use crate::config::Config;
use crate::debian::archive::join;
use crate::engine::EngineError;
use crate::engine::local::Supply;
use crate::error::{Failure, Kind};
use crate::fetch::{Download, FetchError, Http, Url, parse_url};
use crate::observe::{Event, Observer};
use crate::python::index::{Found, Index, Indexes};
use crate::python::{PythonError, Wheel};
use crate::registry::Registries;

/// The mirrors of the configuration, and behind them the registries that keep archives.
pub struct Mirrors<'a> {
    config: &'a Config,
    http: &'a Http,
    registries: &'a Registries,
    store: &'a cache::Store,
    observer: &'a dyn Observer,
    debian: OnceLock<Result<Vec<Url>, String>>,
    /// Whether package mirrors have failed and a registry has helped: then it is asked first, once for all.
    failed: AtomicBool,
}

/// The size of a file that was brought into the store just now.
pub fn size_here(store: &cache::Store, digest: &Digest, name: &str) -> Result<u64, Failure> {
    let gone = || {
        Failure::work(format!("`{name}` is no longer in the cache, where it was put a moment ago")).hint("try again")
    };
    store.has(digest)?.ok_or_else(gone)
}

impl<'a> Mirrors<'a> {
    /// Mirrors that bring files into the store.
    pub fn new(bench: &Bench<'a>) -> Mirrors<'a> {
        Mirrors {
            config: bench.config,
            http: bench.http,
            registries: bench.registries,
            store: bench.store,
            observer: bench.observer,
            debian: OnceLock::new(),
            failed: AtomicBool::new(false),
        }
    }

    /// Brings an archive from the package mirrors.
    fn download(&self, archive: &Archive) -> Result<(), EngineError> {
        let wanted = Download {
            name: archive.name.clone(),
            urls: self.urls(archive)?,
            digest: archive.digest,
            size: archive.size,
        };
        match self.http.download(&wanted, self.store, self.observer) {
            Err(FetchError::Mirrors { name, tried, gone: true }) => {
                Err(EngineError::Gone { name, digest: archive.digest, why: tried.join("; ") })
            }
            other => Ok(other.map(drop)?),
        }
    }

    /// Brings an archive from the first registry that keeps it; says whether one did.
    fn ask_registries(&self, archive: &Archive) -> Result<bool, EngineError> {
        let repositories = self.config.mirror_registries();
        let repositories = repositories.map_err(|error| EngineError::Unconfigured(error.to_string()))?;
        for repository in repositories {
            let client = self.registries.client();
            let work = client.blob_by_digest(&repository, archive.digest, archive.size, self.store, self.observer);
            match self.registries.wait(work) {
                Ok(()) => return Ok(true),
                Err(error) if error.is_not_found() => {}
                Err(error) => self.observer.on(Event::Warning(&format!("the mirror {repository}: {error}"))),
            }
        }
        Ok(false)
    }

    fn urls(&self, archive: &Archive) -> Result<Vec<Url>, EngineError> {
        let gone = |why: String| EngineError::Gone { name: archive.name.clone(), digest: archive.digest, why };
        match &archive.origin {
            Origin::Pool { archive: repository, path } => {
                let bases = if repository == DEBIAN {
                    let bases = self.debian.get_or_init(|| debian_bases(self.config).map_err(|error| error.message));
                    let mut bases = bases.clone().map_err(EngineError::Unconfigured)?;
                    // Security updates lie in an archive of their own; what is likely is asked first.
                    let security = path.starts_with("pool/updates/");
                    bases.sort_by_key(|base| base.path().contains("security") != security);
                    bases
                } else {
                    self.config.repository(repository).map_err(|error| EngineError::Unconfigured(error.to_string()))?
                };
                Ok(bases.iter().map(|base| join(base, path)).collect::<Result<_, FetchError>>()?)
            }
            Origin::Index { distribution } => {
                let wheel = Wheel {
                    name: distribution.clone(),
                    version: String::new(),
                    file: archive.name.clone(),
                    sha256: archive.digest,
                    size: archive.size,
                    url: None,
                };
                let found = find_wheel(self.config, self.http, &wheel).map_err(|error| match error.kind {
                    Kind::Usage => EngineError::Unconfigured(error.message),
                    _ => gone(error.message),
                })?;
                if let Some(why) = found.yanked {
                    let reason = if why.is_empty() { String::new() } else { format!(": {why}") };
                    self.observer.on(Event::Warning(&format!("`{}` was yanked from its index{reason}", archive.name)));
                }
                Ok(vec![parse_url(&found.url)?])
            }
            Origin::Url(url) => Ok(vec![parse_url(url)?]),
            Origin::Built => Err(gone("it was built here, and is made again by the next build".into())),
        }
    }
}

/// Where Debian's own archive may be had, updates and security included.
pub fn debian_bases(config: &Config) -> Result<Vec<Url>, Failure> {
    let mut bases: Vec<Url> = Vec::new();
    for suite in ["trixie", "trixie-security"] {
        for base in config.debian_bases(suite)? {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
    }
    Ok(bases)
}

/// Where a wheel is, asked of the configured indexes.
pub fn find_wheel(config: &Config, http: &Http, wheel: &Wheel) -> Result<Found, Failure> {
    match config.python_pins()?.get(&wheel.name) {
        Some(pinned) => Ok(Indexes::new(&[pinned.to_string()], &Documents(http))?.find(wheel)?),
        None => with_indexes(config, http, |indexes| indexes.find(wheel)),
    }
}

/// Asks the configured indexes something.
pub fn with_indexes<T>(
    config: &Config,
    http: &Http,
    ask: impl FnOnce(&Indexes<'_>) -> Result<T, PythonError>,
) -> Result<T, Failure> {
    let roots: Vec<String> = config.indexes()?.iter().map(Url::to_string).collect();
    let documents = Documents(http);
    Ok(ask(&Indexes::new(&roots, &documents)?)?)
}

/// The largest page of a project, bytes.
const PAGE_LIMIT: u64 = 64 << 20;

struct Documents<'a>(&'a Http);

impl Index for Documents<'_> {
    fn get(&self, url: &str, accept: &str) -> Result<Option<Vec<u8>>, String> {
        let url = parse_url(url).map_err(|error| error.to_string())?;
        let document = self.0.get(&url, Some(accept), PAGE_LIMIT).map_err(|error| error.to_string())?;
        Ok(document.map(|document| document.bytes))
    }
}

impl Supply for Mirrors<'_> {
    fn supply(&self, archive: &Archive) -> Result<PathBuf, EngineError> {
        let there = self.store.has(&archive.digest)?;
        if there.is_some_and(|found| archive.size.is_none_or(|size| size == found)) {
            return Ok(self.store.blob_path(&archive.digest));
        }
        if self.http.offline() {
            return Err(FetchError::Offline { name: archive.name.clone() }.into());
        }
        if self.failed.load(Ordering::Relaxed) && self.ask_registries(archive)? {
            return Ok(self.store.blob_path(&archive.digest));
        }
        let Err(error) = self.download(archive) else { return Ok(self.store.blob_path(&archive.digest)) };
        if !self.ask_registries(archive)? {
            return Err(error);
        }
        if !self.failed.swap(true, Ordering::Relaxed) {
            let why =
                format!("the package mirrors fail ({error}); archives come from the mirrors of `mirror.registries`");
            self.observer.on(Event::Warning(&why));
        }
        Ok(self.store.blob_path(&archive.digest))
    }

    fn base(&self, image: &str, manifest: &Digest, platform: Platform) -> Result<(), EngineError> {
        Ok(bases::documents(self.registries, self.store, image, manifest, platform).map_err(Box::new)?)
    }

    fn base_layers(&self, image: &str, layers: &[&oci::Descriptor]) -> Result<(), EngineError> {
        Ok(bases::layers(self.registries, self.store, self.observer, image, layers).map_err(Box::new)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_has_no_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = cache::Store::open_at(folder.path()).expect("opens");
        let blob = store.put(b"a wheel").expect("puts");
        assert_eq!(size_here(&store, &blob.digest, "x.whl").map_err(|it| it.message), Ok(7));
        store.remove(&blob.digest).expect("removes");
        let gone = size_here(&store, &blob.digest, "x.whl").expect_err("it is gone");
        assert!(gone.message.contains("`x.whl` is no longer in the cache"), "{}", gone.message);
    }
}
