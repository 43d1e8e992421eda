//! What maintainer scripts would have done, written natively and deterministically.
//!
//! [`configure`] gives the entries that dpkg's configuration of the packages would have added to the tree. A package
//! is in one of these states, and everything else is refused by name, never skipped:
//!
//! | state | what happens |
//! | --- | --- |
//! | its scripts do nothing in an image ([`Scripts::is_nothing`]) | nothing |
//! | they install alternatives or users | done here for any package |
//! | it has a [`native`] effect | done here; the rest of its scripts is known to be without effect |
//! | the definition says `.effect(...)` | these entries |
//! | the definition says `.configure(...)` | nothing here: dpkg does it, in a sandbox |
//! | the definition says `.ignore_script(...)` | nothing |
//!
//! Caches of the whole tree (alternatives, certificates, the dynamic loader's cache) are then written anew, so that
//! a second layer of packages over a first one leaves what one layer of both would have left.

mod accounts;
mod alternatives;
mod base;
mod certificates;
mod draft;
mod pam;
mod shells;

use std::collections::BTreeMap;

use layers::source::{Effect, User};
use layers::{ImagePath, Platform};

pub use draft::Made;

use super::scripts::{self, Scripts};
use crate::engine::tree::{Tree, TreeError};
use draft::Draft;

/// A package of the closure, as far as configuring it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name, without architecture.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture; `all` is possible.
    pub architecture: String,
    /// What is known of its maintainer scripts.
    pub scripts: Scripts,
}

/// What [`configure`] is asked for.
pub struct Configure<'a> {
    /// The packages that are new in the tree.
    pub packages: &'a [Package],
    /// Effects that the definition states, by package.
    pub extra: &'a BTreeMap<String, Vec<Effect>>,
    /// Packages whose scripts the definition ignores, with the reason.
    pub ignored: &'a BTreeMap<String, String>,
    /// What the image runs on.
    pub platform: Platform,
    /// The time of everything that is written.
    pub mtime: i64,
}

/// Why packages could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// Maintainer scripts that matter and are not understood.
    #[error("{}", refused(packages))]
    Unknown {
        /// Each package with the first command that is not understood.
        packages: Vec<(String, String)>,
    },
    /// Something else is where an effect belongs.
    #[error("cannot make {by} of `{path}`: something else is there")]
    Occupied {
        /// Where.
        path: ImagePath,
        /// What was to be made.
        by: &'static str,
    },
    /// A path that leads nowhere, such as a loop of links.
    #[error("`{path}` cannot be written: its directories do not lead to a place in the image")]
    Place {
        /// The path.
        path: String,
    },
    /// A user or group that clashes with what is there.
    #[error("user `{name}` cannot be added: {why}")]
    Account {
        /// The user or group.
        name: String,
        /// What clashes.
        why: String,
    },
    /// A file of the tree that an effect reads is not what it should be.
    #[error("`{path}` cannot be used: {why}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn refused(packages: &[(String, String)]) -> String {
    let mut text = String::from("maintainer scripts that matter are not understood:");
    for (package, what) in packages {
        text.push_str(&format!("\n  {package}: {what}"));
    }
    let name = packages.first().map_or("pkg", |(name, _)| name.as_str());
    text.push_str(&format!(
        "\nhave dpkg run such a script in a sandbox with `.configure(\"{name}\")`, say what it would do with \
         `.effect(\"{name}\", ...)`, ignore it with `.ignore_script(\"{name}\", \"reason\")`, or leave the package out with \
         `.without([\"{name}\"])`"
    ));
    text
}

type Act = fn(&mut Draft<'_>, &Package) -> Result<(), EffectError>;

/// The effect of a package's scripts, written natively.
#[derive(Clone, Copy)]
pub struct NativeEffect {
    /// Counts up when the effect changes; part of the key of what it writes.
    pub version: u32,
    /// What it does, in a few words.
    pub about: &'static str,
    act: Option<Act>,
}

/// Effects of which something remains.
const ACTING: [(&str, u32, &str, Act); 17] = [
    ("base-passwd", 1, "/etc/passwd, group, subuid and subgid", base::base_passwd),
    ("base-files", 1, "directories, profiles, /var/run and /var/lock as links", base::base_files),
    ("passwd", 2, "/etc/shadow and /etc/gshadow", accounts::passwd),
    ("libc-bin", 1, "/etc/nsswitch.conf", base::libc_bin),
    ("ca-certificates", 1, "/etc/ca-certificates.conf and /etc/ssl/certs", certificates::configuration),
    ("debianutils", 1, "/etc/shells", shells::debianutils),
    ("fontconfig", 1, "/var/cache/fontconfig", base::fontconfig),
    ("libglib2.0-0t64", 1, "refused where schemas would have to be compiled", base::glib),
    ("libpam-modules", 1, "/etc/security/opasswd and /etc/environment", base::pam_modules),
    ("libpam-runtime", 2, "/etc/pam.d/common-*", pam::runtime),
    ("netbase", 1, "/etc/hosts and /etc/networks", base::netbase),
    ("openssh-client", 2, "group _ssh and ssh-agent's group", accounts::openssh_client),
    ("postgresql-client-17", 2, "alternatives of manual pages", alternatives::postgresql_client),
    ("python3", 1, "/etc/python3/debian_config", base::python3),
    ("readline-common", 1, "/etc/inputrc", base::readline),
    ("sudo", 2, "/etc/sudoers is root's to read", base::sudo),
    ("tzdata", 1, "/etc/localtime", base::tzdata),
];

/// Packages whose scripts were read and do nothing on a fresh install, although the interpreter cannot tell.
const IDLE: [(&str, &str); 10] = [
    ("apt", "its user _apt is in base-passwd's file"),
    ("bash", "/bin/sh is dash"),
    ("dash", "diversions of older releases"),
    ("dpkg", "its own database"),
    ("gcc", "an alternative of older releases"),
    ("iproute2", "capabilities are off by default"),
    ("libc6", "checks of the running kernel, services to restart"),
    ("libselinux1", "files of older releases"),
    ("login.defs", "a configuration file of older releases"),
    ("openssl", "/usr/lib/ssl is in the package"),
];

/// The native effect of a package, if there is one.
pub fn native(package: &str) -> Option<NativeEffect> {
    if let Some((_, version, about, act)) = ACTING.iter().find(|(name, ..)| *name == package) {
        return Some(NativeEffect { version: *version, about, act: Some(*act) });
    }
    if let Some((_, about)) = IDLE.iter().find(|(name, _)| *name == package) {
        return Some(NativeEffect { version: 1, about, act: None });
    }
    // python3.13, python3.13-venv, libpython3.13-stdlib, ...: byte-code; -minimal also makes a directory.
    let rest = package.strip_prefix("lib").unwrap_or(package).strip_prefix("python3.")?;
    let kind = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    match kind {
        "-minimal" if package.starts_with("python") && kind.len() < rest.len() => {
            let about = "/usr/local/lib/python3.*/dist-packages";
            Some(NativeEffect { version: 1, about, act: Some(base::python_minimal) })
        }
        "" | "-venv" | "-minimal" | "-stdlib" | "-full" | "-dev" if kind.len() < rest.len() => {
            Some(NativeEffect { version: 1, about: "byte-code is not compiled", act: None })
        }
        _ => None,
    }
}

/// What the result of [`configure`] depends on besides the tree: for the key. Sorted.
pub fn versions<'a>(packages: impl IntoIterator<Item = &'a str>) -> BTreeMap<String, u32> {
    let whole = [
        ("(scripts)", scripts::VERSION),
        ("(alternatives)", alternatives::VERSION),
        ("(accounts)", accounts::VERSION),
        ("(certificates)", certificates::VERSION),
        ("(ld.so.cache)", super::ldcache::VERSION),
    ];
    let mut versions: BTreeMap<String, u32> =
        whole.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect();
    versions.extend(packages.into_iter().filter_map(|name| Some((name.to_owned(), native(name)?.version))));
    versions
}

/// Entries that configuring the packages adds to `tree` or changes in it, sorted by path, each path once.
///
/// Directories are among them where they are new or change; the definition's `exclude` patterns are the caller's to
/// apply, as to the packages' own files.
pub fn configure(request: &Configure<'_>, tree: &dyn Tree) -> Result<Vec<Made>, EffectError> {
    let heeded = |package: &&Package| !request.ignored.contains_key(&package.name);
    let unknown: Vec<(String, String)> = request
        .packages
        .iter()
        .filter(heeded)
        .filter(|package| native(&package.name).is_none() && !request.extra.contains_key(&package.name))
        .filter_map(|package| Some((package.name.clone(), package.scripts.unknown.clone()?)))
        .collect();
    if !unknown.is_empty() {
        return Err(EffectError::Unknown { packages: unknown });
    }
    let mut draft = Draft::new(tree, request.mtime);
    let heeded: Vec<&Package> = request.packages.iter().filter(heeded).collect();
    // base-passwd, base-files and passwd first: the others need their users and directories, and accounts that come after the
    // shadow files are written into these otherwise than those that were there before.
    let order = |package: &&Package| {
        let place = ACTING.iter().position(|(name, ..)| *name == package.name);
        (place.unwrap_or(ACTING.len()), package.name.clone())
    };
    let mut sorted = heeded.clone();
    sorted.sort_by_key(order);
    for package in &sorted {
        if let Some(act) = native(&package.name).and_then(|effect| effect.act) {
            act(&mut draft, package)?;
        }
    }
    for package in &sorted {
        for file in &package.scripts.sysusers {
            accounts::sysusers(&mut draft, file)?;
        }
    }
    alternatives::install(&mut draft, heeded.iter().flat_map(|package| &package.scripts.alternatives))?;
    for package in request.packages {
        for effect in request.extra.get(&package.name).into_iter().flatten() {
            state(&mut draft, effect)?;
        }
    }
    shells::update(&mut draft)?;
    certificates::update(&mut draft)?;
    let libc = heeded.iter().find(|package| package.name == "libc-bin").map(|package| package.version.as_str());
    loader_cache(&mut draft, libc, request.platform)?;
    Ok(draft.finish())
}

/// An effect that the definition states.
fn state(draft: &mut Draft<'_>, effect: &Effect) -> Result<(), EffectError> {
    match effect {
        Effect::Link { path, target } => draft.link(path.as_str(), target),
        Effect::Dir { path, mode } => draft.dir(path.as_str(), *mode, (0, 0)),
        Effect::File { path, text, mode } => draft.file(path.as_str(), *mode, (0, 0), text.as_bytes().to_vec()),
    }
}

const CACHE: &str = "/etc/ld.so.cache";

/// Writes the loader's cache where libc-bin is new, or where a layer below has one that may be out of date.
fn loader_cache(draft: &mut Draft<'_>, libc: Option<&str>, platform: Platform) -> Result<(), EffectError> {
    let old = draft.text(CACHE)?;
    let generator = match libc {
        Some(version) => super::ldcache::generator(version),
        None => match old.as_deref().and_then(super::ldcache::generator_of) {
            Some(generator) => generator,
            None => return Ok(()),
        },
    };
    let made = super::ldcache::write(draft, platform, &generator)?;
    for (path, target) in made.links {
        draft.link(path.as_str(), &target)?;
    }
    if old.as_deref() != Some(&made.cache) {
        draft.file(CACHE, 0o644, (0, 0), made.cache)?;
    }
    Ok(())
}

/// The entries that add a user with its group: `/etc/passwd` and `/etc/group`, made where they are missing, the shadow
/// files where they exist, and the home directory unless it is `/nonexistent`.
///
/// A group id that differs from the user id may be that of a group that is there, which the user then joins. Adding a
/// user that is there in all fields changes nothing; any other clash of name or number is refused.
pub fn add_user(tree: &dyn Tree, user: &User, mtime: i64) -> Result<Vec<Made>, EffectError> {
    let mut draft = Draft::new(tree, mtime);
    accounts::add_user(&mut draft, user)?;
    Ok(draft.finish())
}

/// The paragraph of `/var/lib/dpkg/status.d/<package>`: the package's `control` file with the status that scanners
/// look for (dpkg's status format, deb822(5)).
pub fn status_paragraph(control: &[u8]) -> Vec<u8> {
    let mut paragraph = Vec::with_capacity(control.len() + 32);
    let mut written = false;
    for line in control.split_inclusive(|&byte| byte == b'\n') {
        let field =
            |name: &str| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()));
        if line.trim_ascii().is_empty() {
            // Nothing belongs to the paragraph after an empty line; leading ones are dropped.
            if written {
                break;
            }
            continue;
        }
        if field("Status:") {
            continue;
        }
        paragraph.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        paragraph.push(b'\n');
        if !written && field("Package:") {
            paragraph.extend_from_slice(b"Status: install ok installed\n");
            written = true;
        }
    }
    paragraph
}
