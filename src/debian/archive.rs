//! From a mirror to verified package lists: InRelease, its signature, then hash by hash.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Mutex;

use cache::Store;
use layers::Digest;
use layers::format::{FormatError, Limits, decompress};

use super::openpgp::{Keyring, SignatureError};
use super::packages::{self, Package, PackagesError};
use super::release::{Release, ReleaseError};
use crate::fetch::{FetchError, Http, Url, shown};
use crate::parallel::{in_parallel, lock, unlocked};

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A download.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// No mirror has the suite.
    #[error("suite `{suite}` is on none of the mirrors:{}", tried.iter().map(|line| format!("\n  {line}")).collect::<String>())]
    Nowhere {
        /// The suite.
        suite: String,
        /// One line a mirror.
        tried: Vec<String>,
    },
    /// Another distribution's suite of the same name, on a mirror that was configured to be this one's.
    #[error("{url} is of Origin `{found}`, not `{wanted}`; is the right mirror configured?")]
    Origin {
        /// The InRelease file.
        url: String,
        /// What it says.
        found: String,
        /// What it should say.
        wanted: String,
    },
    /// A signature.
    #[error("{url} is not trusted: {source}")]
    Signature {
        /// The InRelease file.
        url: String,
        /// Why.
        source: SignatureError,
    },
    /// What the Release says.
    #[error("{url} is refused: {source}")]
    Release {
        /// The InRelease file.
        url: String,
        /// Why.
        source: ReleaseError,
    },
    /// An index file that the Release does not list.
    #[error("{url} lists no `{name}`")]
    Unlisted {
        /// The InRelease file.
        url: String,
        /// The index file.
        name: String,
    },
    /// An index file that is not what the Release says.
    #[error(
        "{url} is not what InRelease says: expected {expected}, got {found}; the mirror is broken or in the middle of an update, try again later"
    )]
    Hash {
        /// The index file.
        url: String,
        /// What InRelease says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// An index file that does not unpack.
    #[error("{url} does not unpack: {source}")]
    Format {
        /// The index file.
        url: String,
        /// Why.
        source: FormatError,
    },
    /// An index file that is no list of packages.
    #[error("{url} is refused: {source}")]
    Packages {
        /// The index file.
        url: String,
        /// Why.
        source: PackagesError,
    },
}

/// A suite to be read.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Such as `trixie-security`.
    pub suite: &'a str,
    /// Such as `main`.
    pub components: &'a [String],
    /// Debian architectures.
    pub architectures: &'a [&'a str],
    /// Mirrors, best first.
    pub bases: &'a [Url],
    /// Keys that may sign it.
    pub keyring: &'a Keyring,
    /// `Origin` that it must have.
    pub origin: Option<&'a str>,
    /// What a suite of another origin means.
    pub foreign: Foreign,
    /// Keeps index files between locks.
    pub store: Option<&'a Store>,
    /// The date of the Release that was seen last, seconds since 1970.
    pub seen: Option<i64>,
    /// Seconds since 1970.
    pub now: i64,
}

/// What it means when a mirror has a suite of that name whose `Origin` is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// An error: somebody configured the mirror as this archive's.
    Refuse,
    /// Nothing: the mirror is one of the machine's, which has other things, too.
    Skip,
}

/// A suite whose every byte was verified.
#[derive(Debug)]
pub struct Suite {
    /// Its Release file.
    pub release: Release,
    /// Digest of the signed text.
    pub digest: Digest,
    /// Packages by architecture.
    pub packages: BTreeMap<String, Vec<Package>>,
    /// The mirror that served it.
    pub base: Url,
}

const RELEASE_LIMIT: u64 = 16 << 20;
const PACKAGES_LIMIT: u64 = 1 << 30;

/// Reads a suite from the first mirror that has it. A mirror whose files are *wrong* ends the search: silence about
/// tampering would be worse than stopping.
pub fn read_suite(http: &Http, wanted: &Wanted<'_>) -> Result<Suite, ArchiveError> {
    let mut tried = Vec::new();
    for base in wanted.bases {
        let url = join(base, &format!("dists/{}/InRelease", wanted.suite))?;
        match http.get(&url, None, RELEASE_LIMIT) {
            Ok(Some(document)) => {
                let text = String::from_utf8_lossy(&document.bytes);
                // Before the signature: another archive's is made with other keys, which says nothing about this one.
                if let Some(other) = origin(&text).filter(|found| wanted.origin.is_some_and(|origin| origin != *found))
                    && wanted.foreign == Foreign::Skip
                {
                    tried.push(format!("{}: its Origin is `{other}`", shown(&url)));
                    continue;
                }
                let signed = wanted
                    .keyring
                    .verify(&text, wanted.now)
                    .map_err(|source| ArchiveError::Signature { url: shown(&url), source })?;
                let release_error = |source| ArchiveError::Release { url: shown(&url), source };
                let release = Release::parse(&signed).map_err(release_error)?;
                if let Some(origin) = wanted.origin.filter(|origin| *origin != release.origin) {
                    let (found, wanted) = (release.origin, origin.to_owned());
                    return Err(ArchiveError::Origin { url: shown(&url), found, wanted });
                }
                release.check(wanted.suite, wanted.now, wanted.seen).map_err(release_error)?;
                let packages = read_packages(http, wanted, base, &url, &release)?;
                return Ok(Suite { digest: Digest::of(signed.as_bytes()), release, packages, base: base.clone() });
            }
            Ok(None) => tried.push(format!("{}: not there", shown(&url))),
            Err(FetchError::Offline { name }) => return Err(FetchError::Offline { name }.into()),
            Err(error) => tried.push(error.to_string()),
        }
    }
    Err(ArchiveError::Nowhere { suite: wanted.suite.into(), tried })
}

/// What an unverified InRelease says of its origin: good for passing over, not for trusting.
fn origin(text: &str) -> Option<&str> {
    let after = text.trim_start().strip_prefix("-----BEGIN PGP SIGNED MESSAGE-----")?;
    let mut lines = after.lines().skip_while(|line| !line.trim().is_empty());
    let named = lines.find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("Origin")));
    Some(named.map_or("", |(_, value)| value.trim()))
}

fn read_packages(
    http: &Http,
    wanted: &Wanted<'_>,
    base: &Url,
    release_url: &Url,
    release: &Release,
) -> Result<BTreeMap<String, Vec<Package>>, ArchiveError> {
    let all = Mutex::new(BTreeMap::new());
    in_parallel(wanted.architectures.len(), wanted.architectures, |architecture| {
        let mut packages = Vec::new();
        for component in wanted.components {
            let stem = format!("{component}/binary-{architecture}/Packages");
            let listed = ["xz", "gz"]
                .iter()
                .map(|ending| format!("{stem}.{ending}"))
                .find_map(|name| release.files.get(&name).map(|(digest, size)| (name, *digest, *size)));
            let Some((name, digest, size)) = listed else {
                return Err(ArchiveError::Unlisted { url: shown(release_url), name: stem });
            };
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let plain = format!("dists/{}/{name}", wanted.suite);
            let by_hash = format!("dists/{}/{folder}/by-hash/SHA256/{}", wanted.suite, digest.hex());
            let paths: Vec<String> = [release.by_hash.then_some(by_hash), Some(plain)].into_iter().flatten().collect();
            let Some((url, bytes)) = index_file(http, wanted, base, &paths, (digest, size))? else {
                return Err(ArchiveError::Unlisted { url: shown(release_url), name });
            };
            let url = shown(&url);
            let limits = Limits { max_output: PACKAGES_LIMIT, ..Limits::default() };
            let mut text = String::new();
            decompress(bytes.as_slice(), &limits)
                .and_then(|mut reader| reader.read_to_string(&mut text).map_err(FormatError::from))
                .map_err(|source| ArchiveError::Format { url: url.clone(), source })?;
            packages.extend(
                packages::scan(text.into()).map_err(|source| ArchiveError::Packages { url: url.clone(), source })?,
            );
        }
        packages::check_consistent(&packages)
            .map_err(|source| ArchiveError::Packages { url: shown(release_url), source })?;
        lock(&all).insert((*architecture).to_owned(), packages);
        Ok(())
    })?;
    Ok(unlocked(all))
}

/// An index file, verified: from the store where an earlier lock has left it, else from the first path that has it.
fn index_file(
    http: &Http,
    wanted: &Wanted<'_>,
    base: &Url,
    paths: &[String],
    (digest, size): (Digest, u64),
) -> Result<Option<(Url, Vec<u8>)>, ArchiveError> {
    if let (Some(store), Some(first)) = (wanted.store, paths.first())
        && let Some(bytes) = store.read(&digest)?
    {
        return Ok(Some((join(base, first)?, bytes)));
    }
    for path in paths {
        let url = join(base, path)?;
        let Some(document) = http.get(&url, None, size)? else { continue };
        let found = Digest::of(&document.bytes);
        if found != digest || document.bytes.len() as u64 != size {
            return Err(ArchiveError::Hash { url: shown(&url), expected: digest, found });
        }
        if let Some(store) = wanted.store {
            store.put(&document.bytes)?;
        }
        return Ok(Some((url, document.bytes)));
    }
    Ok(None)
}

/// A URL below a mirror.
pub fn join(base: &Url, path: &str) -> Result<Url, FetchError> {
    let mut text = base.as_str().trim_end_matches('/').to_owned();
    text.push('/');
    // `+` and `~` are plain in paths, but some caches treat `+` as a blank.
    text.push_str(&path.replace('+', "%2B").replace('~', "%7E"));
    crate::fetch::parse_url(&text)
}
