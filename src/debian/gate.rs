//! The gate before an image is finished: every shared library that an ELF file needs is in the image.
//!
//! A missing library shows only when the program starts, so it is looked for here, as ld.so(8) does: `DT_RPATH`, or
//! `DT_RUNPATH`, with `$ORIGIN`, `$LIB` and `$PLATFORM`; the directories of `/etc/ld.so.conf`; the default ones. Beyond
//! that a *library* (not a program) may need what is bundled anywhere in the image under that SONAME or file name: the
//! program that loads it may have brought its own search path (`DT_RPATH` is inherited), and extension modules rely on
//! libraries that their package has loaded before (the `*.libs` directories of wheels).
//!
//! Files for other machines are not looked at; neither is what lies below `/usr/lib/debug`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use layers::encode::Kind;
use layers::{ImagePath, Platform};

use super::elf::{AARCH64, ElfFacts, X86_64};
use super::{follow, ldcache};
use crate::engine::tree::{Tree, TreeError};

/// The version of its rules.
pub const VERSION: u32 = 2;

/// A need that nothing fulfils.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// The library as `DT_NEEDED` names it, or the path of the loader.
    pub library: String,
    /// The file that needs it.
    pub file: ImagePath,
}

/// Why an image does not pass.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Libraries are missing; sorted by library and file.
    #[error("{}", describe(missing))]
    Missing {
        /// All of them.
        missing: Vec<Missing>,
    },
    /// The configuration of the loader could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn describe(missing: &[Missing]) -> String {
    let mut files: BTreeMap<&str, Vec<&ImagePath>> = BTreeMap::new();
    for one in missing {
        files.entry(&one.library).or_default().push(&one.file);
    }
    let mut text = String::from("shared libraries are missing in the image:");
    for (library, files) in &files {
        let shown: Vec<String> = files.iter().take(3).map(|file| format!("`{file}`")).collect();
        let more = if files.len() > 3 { format!(" and {} more", files.len() - 3) } else { String::new() };
        text.push_str(&format!("\n  `{library}`, needed by {}{more}", shown.join(", ")));
    }
    let library = files.keys().next().copied().unwrap_or("libx.so");
    text.push_str(&format!(
        "\nadd the package that has it, take it out of `.without(...)` or `.exclude(...)`, or say that it may be missing \
         with `.allow_missing(\"{library}\")`"
    ));
    text
}

/// Checks all ELF files of a tree that are for the platform.
pub fn check(tree: &dyn Tree, allow_missing: &BTreeSet<String>, platform: Platform) -> Result<(), GateError> {
    let gate = Gate::new(tree, platform)?;
    let mut missing = BTreeSet::new();
    let mut directories = HashMap::new();
    for (file, facts) in &gate.files {
        let is_program = facts.interpreter.is_some() && facts.soname.is_none();
        if let Some(loader) = facts.interpreter.as_deref().filter(|_| is_program)
            && !allow_missing.contains(loader)
            && follow::existing(tree, loader).is_none()
        {
            missing.insert(Missing { library: loader.to_owned(), file: (*file).clone() });
        }
        for library in &facts.needed {
            let found = gate.defaults.contains(library.as_str())
                || !is_program && gate.bundled.contains(library.as_str())
                || allow_missing.contains(library)
                || gate.on_own_path(file, facts, library, &mut directories);
            if !found {
                missing.insert(Missing { library: library.clone(), file: (*file).clone() });
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(GateError::Missing { missing: missing.into_iter().collect() }) }
}

/// What is asked again and again.
struct Gate<'a> {
    tree: &'a dyn Tree,
    platform: Platform,
    machine: u16,
    /// Dynamically linked files for the platform.
    files: Vec<(&'a ImagePath, &'a ElfFacts)>,
    /// Names of libraries in the loader's directories.
    defaults: HashSet<&'a str>,
    /// SONAMEs and file names of all libraries.
    bundled: HashSet<&'a str>,
}

impl<'a> Gate<'a> {
    fn new(tree: &'a dyn Tree, platform: Platform) -> Result<Gate<'a>, TreeError> {
        let machine = match platform {
            Platform::Amd64 => X86_64,
            Platform::Arm64 => AARCH64,
        };
        let found = ldcache::directories(tree, platform)?.into_iter().map(|(_, directory)| directory);
        let directories: HashSet<ImagePath> = found.collect();
        let mut gate =
            Gate { tree, platform, machine, files: Vec::new(), defaults: HashSet::new(), bundled: HashSet::new() };
        for entry in tree.below(&ImagePath::root()) {
            let is_link = match entry.kind {
                Kind::File { .. } | Kind::Hardlink { .. } => false,
                Kind::Symlink { .. } if entry.path.file_name().contains(".so") => true,
                _ => continue,
            };
            let path = entry.path.as_str();
            let facts = if is_link {
                follow::existing(tree, path).and_then(|target| tree.elf(&target))
            } else {
                tree.elf(&entry.path)
            };
            let Some(facts) = facts.filter(|facts| gate.fits(facts)) else { continue };
            if path.starts_with("/usr/lib/debug/") {
                continue;
            }
            let name = entry.path.file_name();
            gate.bundled.insert(name);
            gate.bundled.extend(facts.soname.as_deref());
            let directory = &path[..path.len() - name.len()].trim_end_matches('/');
            if directories.iter().any(|known| known.as_str() == *directory) {
                gate.defaults.insert(name);
            }
            if !is_link {
                gate.files.push((&entry.path, facts));
            }
        }
        Ok(gate)
    }

    fn fits(&self, facts: &ElfFacts) -> bool {
        facts.dynamic && facts.machine == self.machine && facts.bits == 64
    }

    /// Whether the file's own search path leads to the library.
    fn on_own_path(
        &self,
        file: &ImagePath,
        facts: &ElfFacts,
        library: &str,
        directories: &mut HashMap<String, Option<ImagePath>>,
    ) -> bool {
        // A name with a slash is a path and not searched for.
        if library.contains('/') {
            return library.starts_with('/') && self.is_library(library);
        }
        let parent = file.parent().unwrap_or_else(ImagePath::root);
        facts.rpath.iter().chain(&facts.runpath).any(|entry| {
            let directory = self.expand(entry, &parent);
            // Relative entries depend on where the program is started.
            if !directory.starts_with('/') {
                return false;
            }
            let real = directories.entry(directory).or_insert_with_key(|name| follow::existing(self.tree, name));
            real.as_ref().is_some_and(|real| self.is_library(&format!("{real}/{library}")))
        })
    }

    fn is_library(&self, path: &str) -> bool {
        let found = follow::existing(self.tree, path).and_then(|path| self.tree.elf(&path));
        found.is_some_and(|facts| self.fits(facts))
    }

    /// Dynamic string tokens, with and without braces.
    fn expand(&self, entry: &str, origin: &ImagePath) -> String {
        let library = format!("lib/{}", self.platform.multiarch());
        let mut text = entry.to_owned();
        for (token, value) in
            [("ORIGIN", origin.as_str()), ("LIB", library.as_str()), ("PLATFORM", self.platform.machine())]
        {
            text = text.replace(&format!("${{{token}}}"), value).replace(&format!("${token}"), value);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::elf::tests::sample;
    use crate::debian::follow::tests::Sketch;

    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

    fn program(entries: &[(u64, &str)]) -> Vec<u8> {
        sample(X86_64, Some(LOADER), entries)
    }

    fn library(entries: &[(u64, &str)]) -> Vec<u8> {
        sample(X86_64, None, entries)
    }

    fn system() -> Sketch {
        Sketch::default()
            .link("/lib", "usr/lib")
            .link("/lib64", "usr/lib64")
            .link("/usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
            .file("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", library(&[(14, "ld-linux-x86-64.so.2")]))
            .file("/usr/lib/x86_64-linux-gnu/libc.so.6", library(&[(14, "libc.so.6"), (1, "ld-linux-x86-64.so.2")]))
    }

    fn missing(tree: &Sketch) -> Vec<String> {
        match check(tree, &BTreeSet::new(), Platform::Amd64) {
            Ok(()) => Vec::new(),
            Err(GateError::Missing { missing }) => {
                missing.into_iter().map(|one| format!("{} for {}", one.library, one.file)).collect()
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_missing_library_is_named_with_its_user_and_the_ways_out() {
        let tree = system().file("/usr/bin/nc", program(&[(1, "libc.so.6"), (1, "libmd.so.0")]));
        assert_eq!(missing(&tree), ["libmd.so.0 for /usr/bin/nc"]);
        let error = check(&tree, &BTreeSet::new(), Platform::Amd64).expect_err("a library is missing").to_string();
        assert_eq!(
            error,
            "shared libraries are missing in the image:\n  `libmd.so.0`, needed by `/usr/bin/nc`\nadd the package that \
             has it, take it out of `.without(...)` or `.exclude(...)`, or say that it may be missing with \
             `.allow_missing(\"libmd.so.0\")`"
        );
        assert!(check(&tree, &BTreeSet::from(["libmd.so.0".to_owned()]), Platform::Amd64).is_ok());
        assert_eq!(missing(&tree.link("/usr/lib/x86_64-linux-gnu/libmd.so.0", "libc.so.6")), [""; 0]);
    }

    #[test]
    fn own_search_paths_are_followed() {
        for (tag, path) in
            [(15, "$ORIGIN/../x/lib"), (29, "/none:${ORIGIN}/../x/lib"), (29, "/opt/link"), (15, "/opt/$LIB")]
        {
            let tree = system()
                .file("/opt/bin/p", program(&[(1, "libx.so.1"), (tag, path)]))
                .link("/opt/link", "x/lib")
                .link("/opt/lib/x86_64-linux-gnu", "../x/lib")
                .file("/opt/x/lib/libx.so.1", library(&[(14, "libx.so.1")]));
            assert_eq!(missing(&tree), [""; 0], "{path}");
        }
        let tree = system()
            .file("/opt/bin/p", program(&[(1, "libx.so.1")]))
            .file("/opt/x/lib/libx.so.1", library(&[(14, "libx.so.1")]));
        assert_eq!(missing(&tree), ["libx.so.1 for /opt/bin/p"], "a program finds nothing by itself");
    }

    #[test]
    fn modules_may_need_what_is_bundled() {
        let tree = system()
            .file("/opt/venv/m/core.so", library(&[(1, "libgomp-1a2b.so.1"), (1, "libgone.so")]))
            .file("/opt/venv/m.libs/libgomp-1a2b.so.1", library(&[(14, "libgomp.so.1"), (1, "libc.so.6")]));
        assert_eq!(missing(&tree), ["libgone.so for /opt/venv/m/core.so"]);
    }

    #[test]
    fn configured_directories_count() {
        let tree = system()
            .file("/usr/bin/p", program(&[(1, "libx.so.1")]))
            .file("/opt/own/libx.so.1", library(&[(14, "libx.so.1")]));
        assert_eq!(missing(&tree), ["libx.so.1 for /usr/bin/p"]);
        assert_eq!(missing(&tree.file("/etc/ld.so.conf", "/opt/own\n")), [""; 0]);
    }

    #[test]
    fn a_missing_loader_is_missing() {
        let tree = Sketch::default().file("/bin/p", program(&[]));
        assert_eq!(missing(&tree), ["/lib64/ld-linux-x86-64.so.2 for /bin/p"]);
    }

    #[test]
    fn other_machines_and_text_files_are_no_libraries() {
        let tree = system()
            .file("/usr/lib/arm.so", sample(AARCH64, None, &[(1, "libnone.so")]))
            .file("/usr/bin/p", program(&[(1, "libs.so.1"), (1, "liba.so.1")]))
            .file("/usr/lib/libs.so.1", "INPUT(libs.so.2)")
            .file("/usr/lib/liba.so.1", sample(AARCH64, None, &[]));
        assert_eq!(missing(&tree), ["liba.so.1 for /usr/bin/p", "libs.so.1 for /usr/bin/p"]);
    }
}
