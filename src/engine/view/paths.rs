//! Which entry is at which path.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use hashbrown::{DefaultHashBuilder, HashTable};
use layers::ImagePath;
use layers::encode::Entry;

use super::super::index::Fragment;

/// Where the entry of a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In `View::dirs`.
    Dir(u32),
    /// An entry of a fragment.
    Item { fragment: u32, entry: u32 },
}

/// What places lie in.
#[derive(Default)]
pub(super) struct Entries {
    fragments: Vec<Arc<Fragment>>,
    dirs: Vec<Entry>,
}

impl Entries {
    /// The numbers of directories and of fragments.
    pub(super) fn lengths(&self) -> (u32, u32) {
        (self.dirs.len() as u32, self.fragments.len() as u32)
    }

    pub(super) fn push_dir(&mut self, dir: &Entry) -> Place {
        self.dirs.push(dir.clone());
        Place::Dir(self.dirs.len() as u32 - 1)
    }

    /// Adds a fragment, and gives its number.
    pub(super) fn push(&mut self, fragment: &Arc<Fragment>) -> u32 {
        self.fragments.push(fragment.clone());
        self.fragments.len() as u32 - 1
    }

    pub(super) fn fragment(&self, number: u32) -> &Arc<Fragment> {
        &self.fragments[number as usize]
    }

    pub(super) fn at(&self, place: Place) -> &Entry {
        match place {
            Place::Dir(at) => &self.dirs[at as usize],
            Place::Item { fragment, entry } => &self.fragment(fragment).entries[entry as usize].entry,
        }
    }
}

/// Places by their paths, which are those of their entries: tens of thousands, of which few are asked for in their order.
#[derive(Default)]
pub(super) struct Paths {
    places: HashTable<Place>,
    hasher: DefaultHashBuilder,
    /// Sorted by path, once somebody needs it.
    pub(super) sorted: OnceLock<Vec<Place>>,
    /// Questions since the last change that were answered without sorting.
    searched: AtomicUsize,
}

/// Questions that are answered without sorting: each looks at every path, a tenth of what sorting takes.
pub(super) const SEARCHES: usize = 4;

impl Paths {
    pub(super) fn get(&self, entries: &Entries, path: &ImagePath) -> Option<Place> {
        self.places.find(self.hasher.hash_one(path), |place| entries.at(*place).path == *path).copied()
    }

    /// Puts an entry at its path, and gives what was there.
    pub(super) fn insert(&mut self, entries: &Entries, place: Place) -> Option<Place> {
        self.changed();
        let path = &entries.at(place).path;
        let hash = |place: &Place| self.hasher.hash_one(&entries.at(*place).path);
        match self.places.entry(self.hasher.hash_one(path), |other| entries.at(*other).path == *path, hash) {
            hashbrown::hash_table::Entry::Occupied(mut there) => Some(std::mem::replace(there.get_mut(), place)),
            hashbrown::hash_table::Entry::Vacant(free) => {
                free.insert(place);
                None
            }
        }
    }

    fn changed(&mut self) {
        self.sorted.take();
        *self.searched.get_mut() = 0;
    }

    /// Everything at `path` and below it, sorted.
    pub(super) fn below<'p>(
        &'p self,
        entries: &'p Entries,
        path: &ImagePath,
    ) -> impl Iterator<Item = (Place, &'p Entry)> + use<'p> {
        let by_path = |a: &Place, b: &Place| entries.at(*a).path.cmp(&entries.at(*b).path);
        let is_below = |place: &Place| entries.at(*place).path.starts_with(path);
        let search = !path.is_root() && self.sorted.get().is_none();
        let found: Vec<Place> = if search && self.searched.fetch_add(1, Ordering::Relaxed) < SEARCHES {
            let mut found: Vec<Place> = self.places.iter().copied().filter(is_below).collect();
            found.sort_unstable_by(by_path);
            found
        } else {
            let sorted = self.sorted.get_or_init(|| {
                let mut sorted: Vec<Place> = self.places.iter().copied().collect();
                sorted.sort_unstable_by(by_path);
                sorted
            });
            let start = sorted.partition_point(|place| entries.at(*place).path < *path);
            // Siblings such as `/a b` and `/a-b` sort between `/a` and what is inside of it: they begin as it does.
            let begins = |place: &&Place| entries.at(**place).path.as_str().starts_with(path.as_str());
            sorted[start..].iter().take_while(begins).filter(|place| is_below(place)).copied().collect()
        };
        found.into_iter().map(move |place| (place, entries.at(place)))
    }

    /// Removes these places.
    pub(super) fn remove(&mut self, entries: &Entries, gone: &[Place]) {
        self.changed();
        for place in gone {
            let hash = self.hasher.hash_one(&entries.at(*place).path);
            if let Ok(there) = self.places.find_entry(hash, |found| found == place) {
                there.remove();
            }
        }
    }
}
