//! The merged file system of a stage under construction.

mod content;
mod paths;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use layers::encode::{EPOCH, Entry, Kind};
use layers::{Digest, ImagePath};

use self::content::Inflated;
use self::paths::{Entries, Paths, Place};
use super::foundation::{Answers, Known, Linked};
use super::index::Fragment;
use super::tree::{Tree, TreeError};
use crate::debian::elf::ElfFacts;
use crate::parallel::{lock, unlocked};

/// Opens the bytes of a fragment.
pub type OpenBlob<'a> = dyn Fn(&Digest) -> io::Result<File> + Sync + 'a;

/// Layers applied in order.
pub struct View<'a> {
    entries: Entries,
    paths: Paths,
    linked: Chain,
    open: &'a OpenBlob<'a>,
    /// The member that each thread inflated last: small files lie together, and who reads one of them reads its neighbours.
    members: Mutex<HashMap<ThreadId, Inflated>>,
    /// What stands for the layers below, where these were not applied.
    known: Option<Known>,
    /// Who writes down what is asked about the layers that were applied before.
    listener: Option<Listener>,
}

/// Writes down what is asked about the first layers of a view.
struct Listener {
    dirs: u32,
    fragments: u32,
    linked: usize,
    heard: Mutex<Answers>,
}

/// The fragments that concern the loader, in their order.
#[derive(Default)]
struct Chain {
    /// Those of layers that were not applied.
    first: Linked,
    /// Each, and whether it concerns the loader even if it has no ELF files.
    rest: Vec<(Arc<Fragment>, bool)>,
}

impl Chain {
    fn until(&self, count: usize) -> Linked {
        let mut linked = self.first;
        for (fragment, is_linked) in &self.rest[..count] {
            if *is_linked || !fragment.elf.all().is_empty() {
                linked.push(&fragment.blob);
            }
        }
        linked
    }
}

/// Why a layer does not fit on what is below.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A path that one layer would hold twice, which container engines refuse.
    #[error("`{path}` is there twice in one layer, or as a directory and as something else")]
    Twice {
        /// The path.
        path: ImagePath,
    },
    /// A file or link where a directory with content is.
    #[error("`{path}` would replace a directory that is not empty (it holds `{inside}`)")]
    ReplacesTree {
        /// The path.
        path: ImagePath,
        /// Something inside.
        inside: ImagePath,
    },
    /// A path below something that is not a directory.
    #[error("`{path}` lies below `{above}`, which is {what}")]
    BelowNonDirectory {
        /// The path.
        path: ImagePath,
        /// The ancestor that is no directory.
        above: ImagePath,
        /// What it is.
        what: String,
    },
    /// A directory where something else is.
    #[error("`{path}` would be a directory, and is {what} in the layers below")]
    NotADirectory {
        /// The path.
        path: ImagePath,
        /// What is there.
        what: String,
    },
    /// Symbolic links that lead nowhere or in circles.
    #[error("the symbolic links in `{path}` lead out of the image, nowhere or in circles")]
    Loop {
        /// The path.
        path: ImagePath,
    },
}

impl<'a> View<'a> {
    /// An empty file system.
    pub fn new(open: &'a OpenBlob<'a>) -> View<'a> {
        View {
            entries: Entries::default(),
            paths: Paths::default(),
            linked: Chain::default(),
            open,
            members: Mutex::default(),
            known: None,
            listener: None,
        }
    }

    /// A file system of which these answers are known. What is asked beyond them ends in [`View::is_sure`] being `false`.
    pub fn known(open: &'a OpenBlob<'a>, answers: Answers, linked: Linked) -> View<'a> {
        View {
            known: Some(Known::new(answers)),
            linked: Chain { first: linked, ..Chain::default() },
            ..View::new(open)
        }
    }

    /// Whether everything that was asked could be answered.
    pub fn is_sure(&self) -> bool {
        self.known.as_ref().is_none_or(Known::is_sure)
    }

    /// Writes down from now on what is asked about the layers that have been applied.
    pub fn listen(&mut self) {
        let (dirs, fragments) = self.entries.lengths();
        self.listener = Some(Listener { dirs, fragments, linked: self.linked.rest.len(), heard: Mutex::default() });
    }

    /// What was asked since [`View::listen`], with the answers, and how much of what is linked now was there by then.
    pub fn heard(&mut self) -> Option<(Answers, usize)> {
        let listener = self.listener.take()?;
        Some((unlocked(listener.heard), listener.linked))
    }

    /// `place` is what the layers so far have at `path`.
    fn hear(&self, path: &ImagePath, place: Option<Place>) {
        let Some(listener) = &self.listener else { return };
        let is_above = match place {
            Some(Place::Dir(at)) => at >= listener.dirs,
            Some(Place::Item { fragment, .. }) => fragment >= listener.fragments,
            None => false,
        };
        // What stands above hides the answer, which was written down when it came.
        if !is_above {
            let found = place.map(|place| self.entries.at(place));
            lock(&listener.heard).note(path, found);
        }
    }

    /// Whoever looks at more than single entries needs all layers.
    fn whole(&self) {
        if let Some(known) = &self.known {
            known.give_up();
        }
    }

    /// Applies a layer: its skeleton, then its fragments.
    pub fn apply(&mut self, skeleton: &[Entry], fragments: &[Arc<Fragment>]) -> Result<(), ViewError> {
        let (first_dir, first_fragment) = self.entries.lengths();
        let mut replaced = Vec::new();
        for entry in skeleton {
            let place = self.entries.push_dir(entry);
            let below = self.paths.insert(&self.entries, place);
            self.hear(&entry.path, below);
        }
        for fragment in fragments {
            let number = self.entries.push(fragment);
            let mut is_linked = false;
            for (at, indexed) in fragment.entries.iter().enumerate() {
                let path = &indexed.entry.path;
                let place = Place::Item { fragment: number, entry: at as u32 };
                let below = self.paths.insert(&self.entries, place);
                self.hear(path, below);
                is_linked |= below.is_some() || concerns_linking(&indexed.entry);
                if let (None, Some(known)) = (below, &self.known)
                    && let Some(entry) = known.entry(path)
                {
                    is_linked = true;
                    if entry.is_dir() {
                        // What is inside of it was not asked before.
                        known.give_up();
                    }
                }
                match below {
                    Some(Place::Dir(dir)) if dir >= first_dir => return Err(ViewError::Twice { path: path.clone() }),
                    Some(Place::Item { fragment, .. }) if fragment >= first_fragment => {
                        return Err(ViewError::Twice { path: path.clone() });
                    }
                    Some(Place::Dir(_)) => replaced.push(path.clone()),
                    _ => {}
                }
            }
            // In this order: they may become known meanwhile.
            if is_linked || fragment.elf.are_awaited() || !fragment.elf.all().is_empty() {
                self.linked.rest.push((fragment.clone(), is_linked));
            }
        }
        for path in replaced {
            if let Some(inside) = self.first_inside(&path) {
                return Err(ViewError::ReplacesTree { path, inside });
            }
        }
        Ok(())
    }

    /// The fragments that have a say in how programs find their libraries: those with ELF files, with links, with the
    /// loader's configuration, and those that replace something. What others hold changes nothing there. Asked when the facts
    /// of all fragments are known.
    pub fn linked(&self) -> Linked {
        self.linked.until(self.linked.rest.len())
    }

    /// As [`linked`](View::linked), of so many as [`heard`](View::heard) tells.
    pub fn linked_until(&self, count: usize) -> Linked {
        self.linked.until(count)
    }

    /// Applies a layer of a base image: its deletions, then its directories and files over whatever is there, and directories
    /// that something lies in and no layer has an entry of.
    pub fn apply_base(&mut self, fragment: &Arc<Fragment>) {
        let below = |path| self.paths.below(&self.entries, path);
        let mut gone: Vec<Place> = fragment.whiteouts.iter().flat_map(below).map(|(place, _)| place).collect();
        for path in &fragment.opaques {
            gone.extend(below(path).filter(|(_, entry)| entry.path != *path).map(|(place, _)| place));
        }
        self.paths.remove(&self.entries, &gone);
        let number = self.entries.push(fragment);
        self.linked.rest.push((fragment.clone(), true));
        for dir in &fragment.dirs {
            let place = self.entries.push_dir(dir);
            self.paths.insert(&self.entries, place);
        }
        let mut replaced = Vec::new();
        for (at, indexed) in fragment.entries.iter().enumerate() {
            let place = Place::Item { fragment: number, entry: at as u32 };
            if let Some(Place::Dir(_)) = self.paths.insert(&self.entries, place) {
                replaced.push(&indexed.entry.path);
            }
        }
        let is_own = |place: Place| matches!(place, Place::Item { fragment, .. } if fragment == number);
        let below = |path| self.paths.below(&self.entries, path).map(|(place, _)| place);
        let gone: Vec<Place> = replaced.into_iter().flat_map(below).filter(|place| !is_own(*place)).collect();
        self.paths.remove(&self.entries, &gone);
        self.imply_parents(fragment);
    }

    /// Adds the directories above these entries that are not there, as container engines make them.
    fn imply_parents(&mut self, fragment: &Fragment) {
        let paths = fragment.dirs.iter().map(|dir| &dir.path).chain(fragment.entries.iter().map(|it| &it.entry.path));
        let mut last: Option<ImagePath> = None;
        for path in paths {
            if last.as_ref().is_some_and(|last| path.is_directly_in(last)) {
                continue;
            }
            last = path.parent();
            let is_missing = |dir: &ImagePath| self.paths.get(&self.entries, dir).is_none();
            let missing: Vec<ImagePath> = path.ancestors().filter(is_missing).collect();
            for dir in missing {
                let place = self.entries.push_dir(&Entry::new(dir, Kind::Dir, 0o755, EPOCH));
                self.paths.insert(&self.entries, place);
            }
        }
    }

    fn first_inside(&self, path: &ImagePath) -> Option<ImagePath> {
        self.whole();
        let inside = |(_, entry): &(Place, &Entry)| entry.path != *path;
        self.paths.below(&self.entries, path).find(inside).map(|(_, entry)| entry.path.clone())
    }

    /// The fragment that holds a file, and the file's position in it.
    pub fn origin(&self, path: &ImagePath) -> Option<(&Arc<Fragment>, usize)> {
        self.whole();
        match self.paths.get(&self.entries, path)? {
            Place::Dir(_) => None,
            Place::Item { fragment, entry } => Some((self.entries.fragment(fragment), entry as usize)),
        }
    }

    /// Whether a hardlink and its target are still names of one file: none of them was replaced by a layer above.
    pub fn are_one_file(&self, link: &ImagePath, target: &ImagePath) -> bool {
        let (link, target) = (self.origin(link), self.origin(target));
        link.zip(target).is_some_and(|((one, _), (other, _))| Arc::ptr_eq(one, other))
    }

    /// Where a file or link lies: the number of its fragment, and the place of its content in the fragment's tar, bytes. Who
    /// reads files in this order inflates each member once.
    pub fn place_of(&self, path: &ImagePath) -> Option<(u32, u64)> {
        self.whole();
        match self.paths.get(&self.entries, path)? {
            Place::Dir(_) => None,
            Place::Item { fragment, entry } => {
                let held = self.entries.fragment(fragment);
                let mut indexed = &held.entries[entry as usize];
                if let Kind::Hardlink { target } = &indexed.entry.kind
                    && let Some(first) = held.position(target)
                {
                    indexed = &held.entries[first];
                }
                Some((fragment, indexed.offset))
            }
        }
    }

    fn place(&self, path: &ImagePath) -> Option<&Entry> {
        let place = self.paths.get(&self.entries, path);
        self.hear(path, place);
        match (place, &self.known) {
            (Some(place), _) => Some(self.entries.at(place)),
            (None, Some(known)) => known.entry(path),
            (None, None) => None,
        }
    }

    /// Follows symbolic links in the directories above `path`, so that a write goes *through* `/bin -> usr/bin` and
    /// never over it. The last component is not followed.
    pub fn through_links(&self, path: &ImagePath) -> Result<ImagePath, ViewError> {
        self.through_links_above(path, &BTreeMap::new())
    }

    /// The same where a layer that is being made has put these things above what is there.
    pub fn through_links_above(
        &self,
        path: &ImagePath,
        above: &BTreeMap<ImagePath, Kind>,
    ) -> Result<ImagePath, ViewError> {
        let looped = || ViewError::Loop { path: path.clone() };
        let mut done: Vec<String> = Vec::new();
        let mut todo: Vec<String> = path.relative().split('/').rev().map(str::to_owned).collect();
        let mut hops = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => {}
            }
            done.push(part);
            if todo.is_empty() {
                break;
            }
            let here = ImagePath::new(format!("/{}", done.join("/"))).map_err(|_| looped())?;
            match above.get(&here).or_else(|| self.place(&here).map(|entry| &entry.kind)) {
                Some(Kind::Symlink { target }) => {
                    hops += 1;
                    if hops > 40 {
                        return Err(looped());
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                Some(Kind::Dir) | None => {}
                Some(_) => {
                    return Err(ViewError::BelowNonDirectory {
                        path: path.clone(),
                        above: here,
                        what: "not a directory".into(),
                    });
                }
            }
        }
        ImagePath::new(format!("/{}", done.join("/"))).map_err(|_| looped())
    }

    /// Where what is put into a directory goes: the directory, with symbolic links followed in all of its path.
    pub fn through_links_into(&self, dir: &ImagePath) -> Result<ImagePath, ViewError> {
        let looped = || ViewError::Loop { path: dir.clone() };
        match self.through_links(&dir.join("x").map_err(|_| looped())?) {
            Ok(inside) => Ok(inside.parent().unwrap_or_else(ImagePath::root)),
            // `check_parents` says what would lie there.
            Err(ViewError::BelowNonDirectory { .. }) => Ok(dir.clone()),
            Err(_) => Err(looped()),
        }
    }

    /// Checks that nothing of a layer lies below a link or file: such a path would be written somewhere else.
    pub fn check_parents(&self, skeleton: &[Entry], fragments: &[Arc<Fragment>]) -> Result<(), ViewError> {
        for dir in skeleton {
            if let Some(entry) = self.place(&dir.path)
                && !entry.is_dir()
            {
                let what = match &entry.kind {
                    Kind::Symlink { target } => format!("a symbolic link to `{target}`"),
                    _ => "a file".into(),
                };
                let all = fragments.iter().flat_map(|fragment| {
                    fragment.dirs.iter().map(|dir| &dir.path).chain(fragment.entries.iter().map(|it| &it.entry.path))
                });
                let above = dir.path.clone();
                return Err(match all.filter(|path| **path != above && path.starts_with(&above)).min() {
                    Some(path) => ViewError::BelowNonDirectory { path: path.clone(), above, what },
                    None => ViewError::NotADirectory { path: above, what },
                });
            }
        }
        Ok(())
    }
}

/// Whether an entry that is no ELF file can change where the loader finds a library.
pub(super) fn concerns_linking(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Symlink { .. } | Kind::Hardlink { .. })
        || entry.path.as_str().starts_with("/etc/ld.so.conf")
}

impl Tree for View<'_> {
    fn entry(&self, path: &ImagePath) -> Option<&Entry> {
        self.place(path)
    }

    fn read(&self, path: &ImagePath) -> Result<Vec<u8>, TreeError> {
        let mut content = Vec::new();
        self.open(path)?
            .read_to_end(&mut content)
            .map_err(|error| TreeError { path: path.clone(), why: error.to_string() })?;
        Ok(content)
    }

    fn below<'b>(&'b self, path: &ImagePath) -> Box<dyn Iterator<Item = &'b Entry> + 'b> {
        self.whole();
        Box::new(self.paths.below(&self.entries, path).map(|(place, entry)| {
            self.hear(&entry.path, Some(place));
            entry
        }))
    }

    fn elf(&self, path: &ImagePath) -> Option<&ElfFacts> {
        self.whole();
        let Some(Place::Item { fragment, entry }) = self.paths.get(&self.entries, path) else { return None };
        let held = self.entries.fragment(fragment);
        let first = match &held.entries[entry as usize].entry.kind {
            Kind::Hardlink { target } => held.position(target)? as u32,
            _ => entry,
        };
        held.elf.of(first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use layers::Platform;
    use layers::encode::FragmentLayout;

    use super::super::index::{Elf, Indexed};
    use super::paths::SEARCHES;
    use super::*;
    use crate::debian::ldcache;

    fn path(text: &str) -> ImagePath {
        ImagePath::new(text).expect("good path")
    }

    fn dir(text: &str, mode: u32) -> Entry {
        Entry::new(path(text), Kind::Dir, mode, 0)
    }

    /// A fragment of these directories and links, as base images have them.
    fn fragment(dirs: &[Entry], links: &[&str], whiteouts: &[&str], opaques: &[&str]) -> Arc<Fragment> {
        let link = |text: &&str| Indexed {
            entry: Entry::new(path(text), Kind::Symlink { target: "x".into() }, 0o777, 0),
            offset: 0,
        };
        let paths = |texts: &[&str]| texts.iter().map(|text| path(text)).collect();
        let mut entries: Vec<Indexed> = links.iter().map(link).collect();
        entries.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        Arc::new(Fragment {
            blob: Digest::of(format!("{dirs:?} {links:?} {whiteouts:?} {opaques:?}").as_bytes()),
            layout: FragmentLayout::default(),
            dirs: dirs.to_vec(),
            entries,
            elf: Vec::new().into(),
            package: None,
            commands_dirs: false,
            whiteouts: paths(whiteouts),
            opaques: paths(opaques),
        })
    }

    fn nothing(_: &Digest) -> io::Result<File> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn all(view: &View<'_>) -> Vec<String> {
        let name = |entry: &Entry| format!("{}{}", entry.path, if entry.is_dir() { "/" } else { "" });
        view.below(&ImagePath::root()).map(name).collect()
    }

    #[test]
    fn layers_of_a_base_delete_what_they_say_and_nothing_beside_it() {
        let mut view = View::new(&nothing);
        let names = ["/a/x", "/a/y/z", "/a b", "/a-b", "/a.c/d", "/b/c"];
        view.apply_base(&fragment(&["/a", "/a/y", "/a.c", "/b"].map(|it| dir(it, 0o755)), &names, &[], &[]));
        assert_eq!(all(&view), ["/a/", "/a b", "/a-b", "/a.c/", "/a.c/d", "/a/x", "/a/y/", "/a/y/z", "/b/", "/b/c"]);
        // A whiteout takes what it names with everything inside, an opaque directory only what is inside.
        view.apply_base(&fragment(&[], &["/b/new"], &["/a/y", "/gone"], &["/b"]));
        assert_eq!(all(&view), ["/a/", "/a b", "/a-b", "/a.c/", "/a.c/d", "/a/x", "/b/", "/b/new"]);
        // A directory becomes a link: what was inside is gone, and what stands beside it stays.
        view.apply_base(&fragment(&[dir("/b", 0o700)], &["/a"], &[], &[]));
        assert_eq!(all(&view), ["/a", "/a b", "/a-b", "/a.c/", "/a.c/d", "/b/", "/b/new"]);
        assert_eq!(view.entry(&path("/b")).expect("is there").mode, 0o700);
        // And a link becomes a directory again.
        view.apply_base(&fragment(&[dir("/a", 0o755)], &["/a/q"], &["/a.c"], &[]));
        assert_eq!(all(&view), ["/a/", "/a b", "/a-b", "/a/q", "/b/", "/b/new"]);
    }

    #[test]
    fn directories_that_no_layer_of_a_base_names_are_there_where_something_lies_in_them() {
        let mut view = View::new(&nothing);
        view.apply_base(&fragment(&[dir("/usr", 0o700)], &["/usr/lib/deep/x", "/usr/lib/y", "/z"], &[], &[]));
        assert_eq!(all(&view), ["/usr/", "/usr/lib/", "/usr/lib/deep/", "/usr/lib/deep/x", "/usr/lib/y", "/z"]);
        let mode = |view: &View<'_>, at: &str| view.entry(&path(at)).map(|entry| (entry.mode, entry.uid, entry.gid));
        assert_eq!((mode(&view, "/usr"), mode(&view, "/usr/lib")), (Some((0o700, 0, 0)), Some((0o755, 0, 0))));
        assert!(mode(&view, "/").is_none());
        let found = ldcache::directories(&view, Platform::Amd64).expect("nothing is read");
        assert!(found.iter().any(|(name, _)| name == "/usr/lib"), "{found:?}");
        // A layer above leaves those that are there as they are, and what it empties stays.
        view.apply_base(&fragment(&[dir("/usr/lib", 0o711)], &[], &["/usr/lib/deep/x"], &[]));
        view.apply_base(&fragment(&[], &["/usr/lib/z", "/usr/share/a/b"], &[], &["/usr/lib"]));
        assert_eq!(
            all(&view),
            ["/usr/", "/usr/lib/", "/usr/lib/z", "/usr/share/", "/usr/share/a/", "/usr/share/a/b", "/z"]
        );
        assert_eq!((mode(&view, "/usr"), mode(&view, "/usr/lib")), (Some((0o700, 0, 0)), Some((0o711, 0, 0))));
    }

    #[test]
    fn facts_that_come_late_concern_the_loader_as_those_that_were_known() {
        let of = |name: &str, elf: Elf| {
            let entry = Indexed { entry: Entry::new(path(name), Kind::File { size: 0 }, 0o644, 0), offset: 0 };
            Arc::new(Fragment { entries: vec![entry], elf, ..(*fragment(&[], &[name], &[], &[])).clone() })
        };
        for facts in [Vec::new(), vec![(0, ElfFacts::default())]] {
            let linked = |elf: Elf| {
                let mut view = View::new(&nothing);
                let late = of("/late", elf);
                view.apply(&[], &[of("/a", Elf::from(Vec::new())), late.clone()]).expect("applies");
                view.listen();
                view.apply(&[], &[fragment(&[], &["/link"], &[], &[])]).expect("applies");
                let (_, count) = view.heard().expect("somebody listened");
                late.elf.learn(facts.clone());
                (view.linked_until(count), view.linked(), view.elf(&path("/late")).cloned())
            };
            assert_eq!(linked(Elf::default()), linked(Elf::from(facts.clone())));
            assert_eq!(linked(Elf::default()).0 == Linked::default(), facts.is_empty());
        }
    }

    #[test]
    fn a_layer_replaces_single_files_and_empty_directories_only() {
        let mut view = View::new(&nothing);
        view.apply(&[dir("/a", 0o755), dir("/e", 0o755)], &[fragment(&[], &["/a/x", "/e-x"], &[], &[])])
            .expect("applies");
        view.apply(&[dir("/a", 0o755)], &[fragment(&[], &["/a/x", "/e"], &[], &[])]).expect("replaces");
        assert_eq!(all(&view), ["/a/", "/a/x", "/e", "/e-x"]);
        let told = view.apply(&[], &[fragment(&[], &["/a"], &[], &[])]).expect_err("it is not empty");
        assert!(
            matches!(&told, ViewError::ReplacesTree { path, inside } if path.as_str() == "/a" && inside.as_str() == "/a/x")
        );
        let twice = [fragment(&[], &["/t"], &[], &[]), fragment(&[], &["/t", "/u"], &[], &[])];
        assert!(matches!(view.apply(&[], &twice), Err(ViewError::Twice { .. })));
    }

    /// Many paths, put there and deleted at random, against a sorted map.
    #[test]
    fn it_holds_what_a_sorted_map_would_hold() {
        let (mut view, mut model) = (View::new(&nothing), BTreeMap::new());
        let mut state = 7_u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for _ in 0..60 {
            let names: std::collections::BTreeSet<String> =
                (0..40).map(|_| format!("/{}/{}/{}", random(4), random(6), random(9))).collect();
            let gone: Vec<String> = (0..3).map(|_| format!("/{}/{}", random(4), random(6))).collect();
            let texts = |all: &mut dyn Iterator<Item = &String>| -> Vec<String> { all.cloned().collect() };
            let (names, gone) = (texts(&mut names.iter()), texts(&mut gone.iter()));
            let (links, deleted): (Vec<&str>, Vec<&str>) =
                (names.iter().map(String::as_str).collect(), gone.iter().map(String::as_str).collect());
            view.apply_base(&fragment(&[], &links, &deleted, &[]));
            model.retain(|name: &String, ()| !gone.iter().any(|top| name.starts_with(&format!("{top}/"))));
            model.extend(names.into_iter().map(|name| (name, ())));
            // The first questions are searched for, the last one is answered from what is sorted.
            let links_below = |top: &ImagePath| -> Vec<String> {
                view.below(top).filter(|entry| !entry.is_dir()).map(|entry| entry.path.to_string()).collect()
            };
            for at in 0..=SEARCHES {
                assert!(view.paths.sorted.get().is_none(), "{at}");
                let below = links_below(&path("/1/2"));
                assert!(below.iter().eq(model.keys().filter(|name| name.starts_with("/1/2/"))));
            }
            assert!(view.paths.sorted.get().is_some());
            assert!(links_below(&ImagePath::root()).iter().eq(model.keys()));
        }
        assert!(model.len() > 30, "{}", model.len());
    }
}
