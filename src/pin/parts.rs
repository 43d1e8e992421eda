//! How a selection is divided: what did not change is found again, however large the rest.
//!
//! ```text
//! selection = large file*  part*
//!             large file: of 8 MiB or more, alone
//!             part:       all else, in the order of paths. Once it holds 1,024 entries or 8 MiB it ends before one of 64 paths, by
//!                         their CRC-32, and before so many more the larger their files are: so what came, went or grew changes its
//!                         own part and no others
//! ```
//!
//! The division decides the order of a layer, so a change of it raises [`LAYER_FORMAT`](layers::encode::LAYER_FORMAT).

use std::ops::Range;

use layers::{Digest, KeyHasher};

use super::{Selected, SelectedKind};

/// Files of this many bytes and more are alone.
const LARGE: u64 = 8 << 20;
/// A part may end once it holds so many entries, or so many bytes.
const ENTRIES: usize = 1024;
const BYTES: u64 = 8 << 20;
/// Of 64 paths one is an end, and one more for each so many bytes of its file.
const ONE_MORE: u64 = 128 << 10;

/// Some entries of a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where its first and its last entry lie; large files between them are not of it.
    pub range: Range<usize>,
    /// Whether it is one large file.
    pub is_large: bool,
    /// Names all of it: paths, kinds, execute bits and contents.
    pub digest: Digest,
}

impl Part {
    /// Its entries among those of its selection.
    pub fn of<'s>(&self, entries: &'s [Selected]) -> impl Iterator<Item = &'s Selected> {
        let is_large = self.is_large;
        entries[self.range.clone()].iter().filter(move |it| is_large == is_alone(it))
    }
}

fn size(entry: &Selected) -> u64 {
    if let SelectedKind::File { size, .. } = entry.kind { size } else { 0 }
}

fn is_alone(entry: &Selected) -> bool {
    size(entry) >= LARGE
}

/// Whether a part that is long enough ends before this entry.
fn is_end(entry: &Selected) -> bool {
    u64::from(crc32fast::hash(entry.path.as_bytes()) % 64) <= size(entry) / ONE_MORE
}

/// The parts of these entries, which are sorted: large files first, then the others, each in the order of their paths.
pub(super) fn parts(entries: &[Selected]) -> Vec<Part> {
    let (mut large, mut parts) = (Vec::new(), Vec::new());
    let (mut hasher, mut start, mut count, mut bytes) = (PartHasher::default(), 0, 0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if is_alone(entry) {
            let mut hasher = PartHasher::default();
            hasher.add(entry);
            large.push(Part { range: at..at + 1, is_large: true, digest: hasher.finish() });
            continue;
        }
        if (count >= ENTRIES || bytes >= BYTES) && is_end(entry) {
            parts.push(Part { range: start..at, is_large: false, digest: std::mem::take(&mut hasher).finish() });
            (start, count, bytes) = (at, 0, 0);
        }
        hasher.add(entry);
        count += 1;
        bytes += size(entry);
    }
    if count > 0 {
        parts.push(Part { range: start..entries.len(), is_large: false, digest: hasher.finish() });
    }
    large.append(&mut parts);
    large
}

/// Names a part.
struct PartHasher(KeyHasher);

impl Default for PartHasher {
    fn default() -> PartHasher {
        PartHasher(KeyHasher::new("part", 1))
    }
}

impl PartHasher {
    fn add(&mut self, entry: &Selected) {
        self.0.field("path", &entry.path);
        match &entry.kind {
            SelectedKind::Dir => {
                self.0.field("dir", "");
            }
            SelectedKind::Symlink { target } => {
                self.0.field("link", target);
            }
            SelectedKind::File { executable, digest, .. } => {
                self.0.field("executable", executable).field("content", digest);
            }
        }
    }

    fn finish(self) -> Digest {
        self.0.finish().0.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn file(path: &str, size: u64) -> Selected {
        let kind = SelectedKind::File { size, executable: false, digest: Digest::of(path.as_bytes()) };
        Selected { path: path.into(), kind }
    }

    /// 40 folders of 250 files, some of them large.
    fn selection() -> Vec<Selected> {
        let mut entries = Vec::new();
        for folder in 0..40 {
            let dir = format!("d{folder:02}");
            entries.push(Selected { path: dir.as_str().into(), kind: SelectedKind::Dir });
            for at in 0..250 {
                let size = if at == 100 && folder % 4 == 0 { LARGE + folder } else { 2_000 + at };
                entries.push(file(&format!("{dir}/f{at:03}"), size));
            }
            entries.push(Selected {
                path: format!("{dir}/link").into(),
                kind: SelectedKind::Symlink { target: "f000".into() },
            });
        }
        entries
    }

    fn digests(entries: &[Selected]) -> BTreeSet<Digest> {
        parts(entries).iter().map(|part| part.digest).collect()
    }

    #[test]
    fn everything_is_in_one_part_and_large_files_are_alone_and_first() {
        let entries = selection();
        let parts = parts(&entries);
        let (large, others): (Vec<&Part>, Vec<&Part>) = parts.iter().partition(|part| part.is_large);
        assert!(large.len() == 10 && others.len() >= 5 && parts.iter().take(10).all(|part| part.is_large));
        let paths = |parts: &[&Part]| -> Vec<String> {
            parts.iter().flat_map(|part| part.of(&entries)).map(|entry| entry.path.to_string()).collect()
        };
        let wanted = |is_wanted: fn(&Selected) -> bool| -> Vec<String> {
            entries.iter().filter(|entry| is_wanted(entry)).map(|entry| entry.path.to_string()).collect()
        };
        assert_eq!(paths(&large), wanted(is_alone));
        assert_eq!(paths(&others), wanted(|entry| !is_alone(entry)));
        let (_, but_the_last) = others.split_last().expect("some");
        for part in but_the_last {
            let (count, bytes) = (part.of(&entries).count(), part.of(&entries).map(size).sum::<u64>());
            assert!(count >= ENTRIES || bytes >= BYTES, "{count} entries of {bytes} bytes");
        }
        assert!(super::parts(&[]).is_empty());
        // A change here means: raise LAYER_FORMAT.
        let ends: Vec<usize> = others.iter().map(|part| part.range.end).collect();
        assert_eq!(ends, [1049, 2192, 3255, 4359, 5445, 6530, 7566, 8691, 9812, 10_080]);
    }

    #[test]
    fn parts_of_larger_files_have_fewer() {
        let entries: Vec<Selected> = (0..200).map(|at| file(&format!("f{at:03}"), 7 << 20)).collect();
        let parts = parts(&entries);
        assert!(parts.iter().all(|part| part.of(&entries).count() <= 6), "{parts:?}");
    }

    #[test]
    fn a_change_is_one_of_its_own_part() {
        let entries = selection();
        let before = digests(&entries);
        let at = entries.iter().position(|entry| &*entry.path == "d20/f100").expect("is there");
        for changed in [at, at + 1] {
            let mut after = entries.clone();
            let SelectedKind::File { digest, .. } = &mut after[changed].kind else { panic!("a file") };
            *digest = Digest::of(b"other");
            assert_eq!(digests(&after).difference(&before).count(), 1);
        }
        // One that came may be where a part ends.
        for name in ["d20/a", "d20/f100a", "d39/z"] {
            let mut after = entries.clone();
            let place = after.partition_point(|entry| *entry.path < *name);
            after.insert(place, file(name, 77));
            let new = digests(&after);
            assert!((1..=2).contains(&new.difference(&before).count()), "{name}");
        }
    }

    #[test]
    fn kind_mode_and_target_are_of_the_digest() {
        let one = |kind| digests(&[Selected { path: "a".into(), kind }]);
        let digest = Digest::of(b"a");
        let kinds = [
            SelectedKind::File { size: 1, executable: false, digest },
            SelectedKind::File { size: 1, executable: true, digest },
            SelectedKind::Symlink { target: "a".into() },
            SelectedKind::Symlink { target: "b".into() },
            SelectedKind::Dir,
        ];
        let found: BTreeSet<BTreeSet<Digest>> = kinds.into_iter().map(one).collect();
        assert_eq!(found.len(), 5);
    }
}
