//! What is remembered of a fragment beside its bytes.

use std::sync::{Arc, OnceLock};

use layers::encode::{Entry, FragmentLayout};
use layers::{Digest, ImagePath};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::debian::elf::ElfFacts;
use crate::debian::scripts::Scripts;

/// The version of the index's own encoding; part of every fragment's key.
pub const INDEX_FORMAT: u32 = 1;

/// An entry of a fragment and where its content starts in the fragment's tar, bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexed {
    /// The entry.
    pub entry: Entry,
    /// Start of its content.
    pub offset: u64,
}

/// What a Debian package says of itself and the engine needs later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageFacts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// The `Replaces` field.
    pub replaces: String,
    /// What its maintainer scripts would do.
    pub scripts: Scripts,
}

/// A fragment: where its bytes are and what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// The compressed bytes in the store.
    pub blob: Digest,
    /// How they are laid out.
    pub layout: FragmentLayout,
    /// Directories that the archive holds, sorted by path; they go into the layer's skeleton.
    pub dirs: Vec<Entry>,
    /// Everything else, sorted by path.
    pub entries: Vec<Indexed>,
    /// Facts of ELF files, by position in `entries`; unknown while files are still inflated.
    pub elf: Elf,
    /// Where it was a Debian package.
    pub package: Option<PackageFacts>,
    /// Whether its directories change those below (`dir(...)`) or yield to them (packages, files).
    pub commands_dirs: bool,
    /// Paths below that it deletes; only in layers of base images.
    pub whiteouts: Vec<ImagePath>,
    /// Directories whose content below it deletes; only in layers of base images.
    pub opaques: Vec<ImagePath>,
}

/// Facts of ELF files, sorted by their position among a fragment's entries: known once its files were inflated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elf(OnceLock<Vec<(u32, ElfFacts)>>);

impl Elf {
    /// Whether nobody knows them yet.
    pub fn are_awaited(&self) -> bool {
        self.0.get().is_none()
    }

    /// All that are known.
    pub fn all(&self) -> &[(u32, ElfFacts)] {
        self.0.get().map_or(&[], Vec::as_slice)
    }

    /// Those of the entry at this position.
    pub fn of(&self, position: u32) -> Option<&ElfFacts> {
        let all = self.all();
        all.binary_search_by_key(&position, |(at, _)| *at).ok().map(|slot| &all[slot].1)
    }

    /// Says what they are. Said once.
    pub fn learn(&self, mut facts: Vec<(u32, ElfFacts)>) {
        facts.sort_unstable_by_key(|(at, _)| *at);
        let _ = self.0.set(facts);
    }
}

impl From<Vec<(u32, ElfFacts)>> for Elf {
    fn from(facts: Vec<(u32, ElfFacts)>) -> Elf {
        let elf = Elf::default();
        elf.learn(facts);
        elf
    }
}

impl Serialize for Elf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.all().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Elf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Elf, D::Error> {
        Vec::deserialize(deserializer).map(Elf::from)
    }
}

impl Fragment {
    /// The position of a path among the entries.
    pub fn position(&self, path: &ImagePath) -> Option<usize> {
        self.entries.binary_search_by(|indexed| indexed.entry.path.cmp(path)).ok()
    }

    /// The entry at a path.
    pub fn entry(&self, path: &ImagePath) -> Option<&Entry> {
        self.position(path).map(|at| &self.entries[at].entry)
    }
}

/// The names under which the store's ledger keeps a fragment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FragmentRecord {
    /// The blob of the fragment's bytes.
    pub fragment: Digest,
    /// The blob of its encoded index.
    pub index: Digest,
}

/// Encodes an index for the store.
pub fn encode(fragment: &Fragment) -> Vec<u8> {
    postcard::to_stdvec(fragment).expect("an index has no values that postcard cannot say")
}

/// Decodes an index; `None` where the bytes are no index of this version.
pub fn decode(bytes: &[u8]) -> Option<Arc<Fragment>> {
    postcard::from_bytes(bytes).ok().map(Arc::new)
}
