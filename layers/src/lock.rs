//! `images.lock`: everything that a build takes from outside, by digest. No hosts, stable order, one package a line.
//!
//! ```text
//! { "imgbuildLock": 1, "layerFormat": 3,
//!   "suites":  [ {"archive":"debian","suite":"trixie",...} ],            what was trusted when locking
//!   "debian":  { "linux/amd64": [ {"name":"libc6",...}, ... ] },         the pool: one version of a package a platform
//!   "sources": [ {"images":["base",...], "source":"debian python3", "request":"sha256:...",
//!                 "packages": {"linux/amd64": [ {"package":"libc6","by":"python3.13-minimal"}, ... ]}} ],
//!   "python":  [ {"images":["rag"], "source":"python poetry.lock --group rag", "request":"...",
//!                 "wheels": {"linux/amd64": [ {"name":"numpy",...}, ... ]}} ],
//!   "bases":   [ {"image":"docker.io/library/debian:trixie","digest":"sha256:...","manifests":{...}} ],
//!   "groups":  { "linux/amd64": {"debian": [["libc6"], ...], "python": [["numpy"], ...]} } }
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::op::{Archive, Origin};
use crate::platform::Platform;

/// The version of the lock that this crate reads and writes.
pub const LOCK_VERSION: u32 = 1;

/// The name of Debian's own archive in a lock.
pub const DEBIAN: &str = "debian";

/// A suite whose signed Release file was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedSuite {
    /// [`DEBIAN`], or the name of a further repository.
    pub archive: String,
    /// Such as `trixie-security`.
    pub suite: String,
    /// Such as `trixie`.
    pub codename: String,
    /// `Date` of the Release file, seconds since 1970.
    pub date: i64,
    /// Digest of the signed text.
    pub release: Digest,
}

/// A package of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture, `all` included.
    pub architecture: String,
    /// Length of the .deb, bytes.
    pub size: u64,
    /// Digest of the .deb.
    pub sha256: Digest,
    /// Where it lies in its archive.
    pub path: String,
    /// Its archive, where that is not Debian's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// The suite it was found in.
    pub suite: String,
}

impl LockedPackage {
    /// The source package that it was built from, as its place in a pool tells (`pool/main/o/openssl/libssl3t64_3.5_amd64.deb`);
    /// the package itself where its archive is laid out in another way.
    pub fn source(&self) -> &str {
        let mut folders = self.path.rsplit('/').skip(1);
        let (source, prefix) = (folders.next().unwrap_or_default(), folders.next().unwrap_or_default());
        // Those of libraries would all be below `l`.
        let length = if source.starts_with("lib") { 4 } else { 1 };
        match source.get(..length) {
            Some(start) if start == prefix => source,
            _ => &self.name,
        }
    }

    /// The package as the archive that an engine unpacks.
    pub fn archive(&self) -> Archive {
        Archive {
            name: self.path.rsplit('/').next().unwrap_or(&self.path).to_owned(),
            digest: self.sha256,
            size: Some(self.size),
            origin: Origin::Pool {
                archive: self.archive.clone().unwrap_or_else(|| DEBIAN.into()),
                path: self.path.clone(),
            },
        }
    }
}

/// A package of a closure, and what asked for it first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// The package.
    pub package: String,
    /// The package that needs it; absent where the definition names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The closure of one `debian(...)`: what it adds to the stage below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedClosure {
    /// The images that use it, sorted.
    pub images: Vec<String>,
    /// The source's label.
    pub source: String,
    /// Digest of the question: this and all `debian(...)` below it.
    pub request: Digest,
    /// The answer, sorted by name.
    pub packages: BTreeMap<Platform, Vec<Chosen>>,
}

/// A wheel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedWheel {
    /// Normalised name of the distribution.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The wheel's file name.
    pub file: String,
    /// Digest of the file.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl LockedWheel {
    /// The wheel as the archive that an engine unpacks.
    pub fn archive(&self) -> Archive {
        Archive {
            name: self.file.clone(),
            digest: self.sha256,
            size: Some(self.size),
            origin: Origin::Index { distribution: self.name.clone() },
        }
    }
}

/// The wheels of one `python(...)` with one lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedWheels {
    /// The images that use it, sorted.
    pub images: Vec<String>,
    /// The source's label.
    pub source: String,
    /// Digest of the question: the selection and the context's lock files.
    pub request: Digest,
    /// The answer, sorted by name.
    pub wheels: BTreeMap<Platform, Vec<LockedWheel>>,
}

/// Which packages and wheels travel together. What is in no group travels in a last layer of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// Debian packages by name.
    pub debian: Vec<Vec<String>>,
    /// Distributions by name.
    pub python: Vec<Vec<String>>,
}

/// A base image of a registry: what its tag meant when it was locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedBase {
    /// The reference as definitions have it.
    pub image: String,
    /// What the tag led to: an index, or a manifest.
    pub digest: Digest,
    /// The manifest of each platform that it has.
    pub manifests: BTreeMap<Platform, Digest>,
}

/// A whole lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`LOCK_VERSION`].
    #[serde(rename = "imgbuildLock")]
    pub version: u32,
    /// The layer format it was made with.
    #[serde(rename = "layerFormat")]
    pub layer_format: u32,
    /// The suites that were trusted.
    pub suites: Vec<LockedSuite>,
    /// Packages by platform, sorted by name.
    pub debian: BTreeMap<Platform, Vec<LockedPackage>>,
    /// Closures.
    pub sources: Vec<LockedClosure>,
    /// Wheels.
    pub python: Vec<LockedWheels>,
    /// The partition into layers.
    pub groups: BTreeMap<Platform, Groups>,
    /// Base images of registries, sorted by reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<LockedBase>,
}

/// Why a text is not a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Not JSON of a lock's shape.
    #[error("this is not an images.lock: {0}; write it anew with `imgbuild lock`")]
    Json(#[from] serde_json::Error),
    /// Another version.
    #[error(
        "the lock has version {found}, this imgbuild reads version {LOCK_VERSION}; write it anew with `imgbuild lock`"
    )]
    Version {
        /// The version in the text.
        found: u64,
    },
    /// A path or name that could escape from where it belongs.
    #[error("the lock names `{text}`, which is not a plain relative path or file name")]
    Path {
        /// What stands there.
        text: String,
    },
    /// A pool that is not sorted, or holds a package twice; perhaps a merge went wrong.
    #[error(
        "the lock's pool for {platform} is out of order at {package}, or holds it twice: was it merged by hand? write the lock anew with `imgbuild lock`"
    )]
    Order {
        /// The package that is not in its place.
        package: String,
        /// The platform.
        platform: Platform,
    },
    /// A closure that names a package without an entry in the pool.
    #[error(
        "the lock's closure of `{source_label}` names {package} for {platform}, but the pool has no such package; write the lock anew with `imgbuild lock`"
    )]
    Dangling {
        /// The source's label.
        source_label: String,
        /// The package.
        package: String,
        /// The platform.
        platform: Platform,
    },
}

impl Default for Lock {
    fn default() -> Lock {
        Lock {
            version: LOCK_VERSION,
            layer_format: crate::encode::LAYER_FORMAT,
            suites: Vec::new(),
            debian: BTreeMap::new(),
            sources: Vec::new(),
            python: Vec::new(),
            groups: BTreeMap::new(),
            bases: Vec::new(),
        }
    }
}

impl Lock {
    /// Reads and checks a lock.
    pub fn from_text(text: &str) -> Result<Lock, LockError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "imgbuildLock")]
            version: u64,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.version != u64::from(LOCK_VERSION) {
            return Err(LockError::Version { found: head.version });
        }
        let lock: Lock = serde_json::from_str(text)?;
        lock.check()?;
        Ok(lock)
    }

    fn check(&self) -> Result<(), LockError> {
        let plain = |text: &str| {
            !text.is_empty()
                && text.len() < 1024
                && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && text.chars().all(|c| !c.is_control() && c != '\\')
        };
        let file_name = |text: &str| plain(text) && !text.contains('/') && !text.starts_with('.');
        for package in self.debian.values().flatten() {
            if !plain(&package.path) {
                return Err(LockError::Path { text: package.path.clone() });
            }
            if !file_name(&package.name) {
                return Err(LockError::Path { text: package.name.clone() });
            }
        }
        for wheel in self.python.iter().flat_map(|source| source.wheels.values().flatten()) {
            for text in [&wheel.file, &wheel.name] {
                if !file_name(text) {
                    return Err(LockError::Path { text: text.clone() });
                }
            }
        }
        for (platform, pool) in &self.debian {
            if let Some(pair) = pool.windows(2).find(|pair| pair[0].name >= pair[1].name) {
                return Err(LockError::Order { package: pair[1].name.clone(), platform: *platform });
            }
        }
        for source in &self.sources {
            for (platform, chosen) in &source.packages {
                if let Some(missing) = chosen.iter().find(|it| self.package(*platform, &it.package).is_none()) {
                    return Err(LockError::Dangling {
                        source_label: source.source.clone(),
                        package: missing.package.clone(),
                        platform: *platform,
                    });
                }
            }
        }
        Ok(())
    }

    /// A package of the pool.
    pub fn package(&self, platform: Platform, name: &str) -> Option<&LockedPackage> {
        let pool = self.debian.get(&platform)?;
        pool.binary_search_by(|package| package.name.as_str().cmp(name)).ok().map(|at| &pool[at])
    }

    /// The manifest of a base image for a platform.
    pub fn base(&self, image: &str, platform: Platform) -> Option<Digest> {
        self.bases.iter().find(|base| base.image == image)?.manifests.get(&platform).copied()
    }

    /// The newest date of its Release files, seconds since 1970; `created` of images is taken from it.
    pub fn date(&self) -> Option<i64> {
        self.suites.iter().map(|suite| suite.date).max()
    }

    /// The lock as text: JSON with one package, wheel or group a line, so that a diff can be reviewed.
    pub fn to_text(&self) -> String {
        fn line<T: Serialize>(value: &T) -> String {
            serde_json::to_string(value).expect("a lock has only string keys and whole numbers")
        }
        fn list<T: Serialize>(out: &mut String, indent: &str, items: &[T]) {
            if items.is_empty() {
                out.push_str("[]");
                return;
            }
            out.push_str("[\n");
            for (at, item) in items.iter().enumerate() {
                let comma = if at + 1 == items.len() { "" } else { "," };
                let _ = writeln!(out, "{indent}  {}{comma}", line(item));
            }
            let _ = write!(out, "{indent}]");
        }
        fn by_platform<T: Serialize>(out: &mut String, indent: &str, map: &BTreeMap<Platform, Vec<T>>) {
            out.push('{');
            for (at, (platform, items)) in map.iter().enumerate() {
                let _ = write!(out, "{}\n{indent}  {}: ", if at == 0 { "" } else { "," }, line(platform));
                list(out, &format!("{indent}  "), items);
            }
            let _ = write!(out, "\n{indent}}}");
        }

        let mut out = String::new();
        let _ = write!(out, "{{\n\"imgbuildLock\": {},\n\"layerFormat\": {},\n", self.version, self.layer_format);
        out.push_str("\"suites\": ");
        list(&mut out, "", &self.suites);
        out.push_str(",\n\"debian\": ");
        by_platform(&mut out, "", &self.debian);
        out.push_str(",\n\"sources\": [");
        for (at, source) in self.sources.iter().enumerate() {
            let _ = write!(
                out,
                "{}\n  {{\"images\": {}, \"source\": {}, \"request\": {},\n   \"packages\": ",
                if at == 0 { "" } else { "," },
                line(&source.images),
                line(&source.source),
                line(&source.request)
            );
            by_platform(&mut out, "   ", &source.packages);
            out.push('}');
        }
        out.push_str("\n],\n\"python\": [");
        for (at, source) in self.python.iter().enumerate() {
            let _ = write!(
                out,
                "{}\n  {{\"images\": {}, \"source\": {}, \"request\": {},\n   \"wheels\": ",
                if at == 0 { "" } else { "," },
                line(&source.images),
                line(&source.source),
                line(&source.request)
            );
            by_platform(&mut out, "   ", &source.wheels);
            out.push('}');
        }
        out.push_str("\n],\n\"groups\": {");
        for (at, (platform, groups)) in self.groups.iter().enumerate() {
            let _ = write!(out, "{}\n  {}: {{\"debian\": ", if at == 0 { "" } else { "," }, line(platform));
            list(&mut out, "  ", &groups.debian);
            out.push_str(", \"python\": ");
            list(&mut out, "  ", &groups.python);
            out.push('}');
        }
        out.push_str("\n}");
        if !self.bases.is_empty() {
            out.push_str(",\n\"bases\": ");
            list(&mut out, "", &self.bases);
        }
        out.push_str("\n}\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_tells_its_source_by_its_place_in_a_pool() {
        let source = |path: &str| {
            let mut lock = sample();
            let mut package = lock.debian.remove(&Platform::Amd64).expect("some").remove(0);
            package.path = path.into();
            package.source().to_owned()
        };
        for (path, of) in [
            ("pool/main/o/openssl/libssl3t64_3.5.9-1_amd64.deb", "openssl"),
            ("pool/updates/main/o/openssl/libssl3t64_3.5.9-1_amd64.deb", "openssl"),
            ("pool/main/libs/libselinux/libselinux1_3.8.1-1_amd64.deb", "libselinux"),
            ("pool/main/g/gcc-14/libgcc-s1_14.2.0-19_amd64.deb", "gcc-14"),
            // Ways in which others lay their archives out.
            ("pool/main/l/libselinux/libselinux1_3.8.1-1_amd64.deb", "a"),
            ("amd64/a_1_amd64.deb", "a"),
            ("pool/main/a_1_amd64.deb", "a"),
            ("pool/li/lib/a_1_amd64.deb", "a"),
            ("a_1_amd64.deb", "a"),
            ("é/é/a.deb", "a"),
            ("", "a"),
        ] {
            assert_eq!(source(path), of, "{path}");
        }
    }

    fn sample() -> Lock {
        let package = |name: &str| LockedPackage {
            name: name.into(),
            version: "1:2~3-4".into(),
            architecture: "amd64".into(),
            size: 5,
            sha256: Digest::of(name.as_bytes()),
            path: format!("pool/main/{name}.deb"),
            archive: None,
            suite: "trixie".into(),
        };
        Lock {
            suites: vec![LockedSuite {
                archive: DEBIAN.into(),
                suite: "trixie".into(),
                codename: "trixie".into(),
                date: 1,
                release: Digest::of(b"r"),
            }],
            debian: [(Platform::Amd64, vec![package("a"), package("b")])].into(),
            sources: vec![LockedClosure {
                images: vec!["base".into()],
                source: "debian a".into(),
                request: Digest::of(b"q"),
                packages: [(
                    Platform::Amd64,
                    vec![
                        Chosen { package: "a".into(), by: None },
                        Chosen { package: "b".into(), by: Some("a".into()) },
                    ],
                )]
                .into(),
            }],
            groups: [(Platform::Amd64, Groups { debian: vec![vec!["a".into()], vec!["b".into()]], python: vec![] })]
                .into(),
            ..Lock::default()
        }
    }

    #[test]
    fn a_lock_reads_back_what_it_writes_with_one_package_a_line() {
        let lock = sample();
        let text = lock.to_text();
        assert_eq!(Lock::from_text(&text).expect("reads"), lock);
        assert_eq!(text.lines().filter(|line| line.contains("pool/main/")).count(), 2);
        let empty = Lock::default();
        assert_eq!(Lock::from_text(&empty.to_text()).expect("reads"), empty);
    }

    #[test]
    fn hostile_and_foreign_locks_are_refused() {
        let text = sample().to_text();
        assert!(matches!(
            Lock::from_text(&text.replace("pool/main/a.deb", "../../etc/x")),
            Err(LockError::Path { .. })
        ));
        for name in ["a/b", ".a", ".."] {
            let hostile = text.replace("\"name\":\"a\"", &format!("\"name\":\"{name}\""));
            assert!(matches!(Lock::from_text(&hostile), Err(LockError::Path { .. })), "{name}");
        }
        assert!(matches!(
            Lock::from_text(&text.replace("\"imgbuildLock\": 1", "\"imgbuildLock\": 2")),
            Err(LockError::Version { found: 2 })
        ));
        assert!(matches!(
            Lock::from_text(&text.replace("{\"package\":\"a\"}", "{\"package\":\"z\"}")),
            Err(LockError::Dangling { .. })
        ));
        assert!(Lock::from_text("{}").is_err());
    }
}
