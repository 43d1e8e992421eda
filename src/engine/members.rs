//! Members of the last wheel of a package: those that hold the same tar are copied into the next one's fragment rather than
//! compressed again.
//!
//! ```text
//! ledger   "members" of pandas ─▶ the fragment that its last wheel became, and of each long member that was compressed for it
//!          the digest of its tar ─▶ where it lies in that fragment, and the digest of its bytes
//! ```
//!
//! Batches end where paths say so, so a file that grew or came mostly changes the members around it and no others. Tar and bytes are
//! compared by SHA-256: a fragment that rotted gives nothing. That the two belong together is believed of the ledger, as everything
//! that it has.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use cache::Store;
use layers::encode::{LAYER_FORMAT, MEMBER_SIZE};
use layers::format::wheel::WheelName;
use layers::op::{Archive, Conversion};
use layers::{Digest, Key, KeyHasher};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::index::Fragment;

/// Members of fewer bytes of tar are compressed again.
const WORTH_TAKING: usize = MEMBER_SIZE / 8;

/// A member of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Of its tar.
    tar: Digest,
    /// Where it starts in the fragment, and how long it is, bytes.
    at: u64,
    compressed: u32,
    /// Of its bytes.
    packed: Digest,
}

/// What the ledger knows of the last wheel of a package.
#[derive(Serialize, Deserialize)]
struct MembersRecord {
    fragment: Digest,
    members: Vec<Known>,
}

/// The members of the last wheel of a package, and those of the next one as they are made.
pub struct Members {
    key: Key,
    text: String,
    /// The last one's fragment, and its members by their tar.
    last: Option<(File, HashMap<Digest, Known>)>,
    made: RefCell<Made>,
}

#[derive(Default)]
struct Made {
    /// The tar of those that were asked for and not made yet; `None` where one is too short.
    asked: VecDeque<Option<Digest>>,
    /// Those that were made, by their places in the layout, and their tar.
    done: Vec<(usize, Digest)>,
}

impl Members {
    /// Looks for the last wheel of the package that this one is of, made for the same machine in the same way. `None` for what is
    /// no wheel.
    pub fn of(store: &Store, archive: &Archive, conversion: &Conversion) -> Result<Option<Members>, EngineError> {
        let Conversion::Wheel { .. } = conversion else { return Ok(None) };
        let Ok(name) = archive.name.parse::<WheelName>() else { return Ok(None) };
        let mut hasher = KeyHasher::new("members", LAYER_FORMAT);
        hasher.field("package", name.normalised()).field("machine", machine(&name));
        hasher.field("conversion", Digest::of(conversion.to_json().as_bytes()));
        let (key, text) = hasher.finish();
        let record = store.find(&key)?.and_then(|bytes| serde_json::from_slice::<MembersRecord>(&bytes).ok());
        let last = match record {
            Some(MembersRecord { fragment, members }) => {
                store.open(&fragment)?.map(|file| (file, members.into_iter().map(|it| (it.tar, it)).collect()))
            }
            None => None,
        };
        Ok(Some(Members { key, text, last, made: RefCell::default() }))
    }

    /// The member that holds this tar, where the last wheel had it. Members are asked for in the order in which they are made.
    pub fn find(&self, tar: &[u8]) -> Option<Vec<u8>> {
        let digest = (tar.len() >= WORTH_TAKING).then(|| Digest::of(tar));
        self.made.borrow_mut().asked.push_back(digest);
        let (file, known) = self.last.as_ref()?;
        // No encoder makes more of a batch.
        let known = known.get(&digest?).filter(|known| known.compressed as usize <= 2 * MEMBER_SIZE)?;
        let mut packed = vec![0; known.compressed as usize];
        file.read_exact_at(&mut packed, known.at).ok()?;
        (Digest::of(&packed) == known.packed).then_some(packed)
    }

    /// The member that was asked for first was made, at this place in the layout.
    pub fn made(&self, member: usize) {
        let mut made = self.made.borrow_mut();
        let tar = made.asked.pop_front().flatten();
        made.done.extend(tar.map(|tar| (member, tar)));
    }

    /// Lets the next wheel of the package know of those that were made.
    pub fn keep(&self, store: &Store, fragment: &Fragment) -> Result<(), EngineError> {
        let done = std::mem::take(&mut self.made.borrow_mut().done);
        if done.is_empty() {
            return Ok(());
        }
        let Some(file) = store.open(&fragment.blob)? else { return Ok(()) };
        let mut members = Vec::with_capacity(done.len());
        let (mut at, mut packed, mut done) = (0, Vec::new(), done.into_iter().peekable());
        for (place, member) in fragment.layout.members.iter().enumerate() {
            if let Some((_, tar)) = done.next_if(|(made, _)| *made == place) {
                packed.resize(member.compressed as usize, 0);
                file.read_exact_at(&mut packed, at)?;
                members.push(Known { tar, at, compressed: member.compressed, packed: Digest::of(&packed) });
            }
            at += u64::from(member.compressed);
        }
        Ok(store.keep(&self.key, &self.text, &MembersRecord { fragment: fragment.blob, members })?)
    }
}

/// The machine that a wheel is for, as its platform tag ends: releases of one package differ in what stands before it.
fn machine(name: &WheelName) -> &str {
    let tag = name.platform.last().map_or("any", String::as_str);
    ["x86_64", "aarch64"].into_iter().find(|machine| tag.ends_with(machine)).unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::rc::Rc;

    use flate2::read::GzDecoder;
    use layers::ImagePath;
    use layers::encode::{EPOCH, Entry, Kind};
    use layers::op::Origin;

    use super::super::made::{self, Content};
    use super::super::spool::Room;
    use super::*;
    use crate::parallel::Cores;

    /// The members of the package `x`, for a wheel of this name.
    fn of(store: &Store, name: &str) -> Option<Members> {
        let origin = Origin::Url("https://example.org/x.whl".into());
        let archive = Archive { name: name.into(), digest: Digest::of(name.as_bytes()), size: None, origin };
        let venv = ImagePath::new("/opt/venv").expect("a path");
        let conversion = Conversion::Wheel { venv, python: "3.13".into(), bytecode: None };
        Members::of(store, &archive, &conversion).expect("looks")
    }

    /// A file's path and content.
    type Given<'a> = (&'a str, &'a [u8]);

    fn write(store: &Store, files: &[Given<'_>], members: Option<&Rc<Members>>, cores: usize) -> Fragment {
        let mut made = made::Made { members: members.cloned(), ..made::Made::default() };
        for (path, content) in files {
            let kind = Kind::File { size: content.len() as u64 };
            let entry = Entry::new(ImagePath::new(*path).expect("a path"), kind, 0o644, EPOCH);
            made.push(entry, Content::Bytes(content.to_vec()));
        }
        made.write(store, &Room::new(store.scratch(), Cores::new(cores))).expect("writes")
    }

    fn content(seed: u32, length: u32) -> Vec<u8> {
        (0..length / 4).flat_map(|at| (seed ^ (at / 7)).to_le_bytes()).collect()
    }

    /// The tar and the bytes of each member of a fragment.
    fn all_of(store: &Store, fragment: &Fragment) -> Vec<(Vec<u8>, Vec<u8>)> {
        let blob = std::fs::read(store.blob_path(&fragment.blob)).expect("reads");
        let mut rest = blob.as_slice();
        let members = fragment.layout.members.iter().map(|member| {
            let (packed, behind) = rest.split_at(member.compressed as usize);
            rest = behind;
            let mut tar = Vec::new();
            GzDecoder::new(packed).read_to_end(&mut tar).expect("inflates");
            (tar, packed.to_vec())
        });
        members.collect()
    }

    #[test]
    fn members_with_the_same_tar_are_copied_and_change_no_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let names: Vec<String> = (0..600).map(|at| format!("/opt/x/file{at:03}")).collect();
        let texts: Vec<Vec<u8>> = (0..600).map(|at| content(at, 9_000 + at)).collect();
        let mut files: Vec<Given<'_>> = names.iter().map(String::as_str).zip(texts.iter().map(Vec::as_slice)).collect();
        for cores in [1, 2] {
            let members = Rc::new(of(&store, "X-1.0-cp313-cp313-manylinux_2_17_x86_64.whl").expect("a wheel"));
            let fragment = write(&store, &files, Some(&members), cores);
            assert!(fragment == write(&store, &files, None, 1));
            members.keep(&store, &fragment).expect("keeps");
        }
        let fragment = write(&store, &files, None, 1);

        // Files that grow, go and come change the members around them.
        let (grown, new) = (content(7, 50_000), content(8, 3_000));
        files[100].1 = &grown;
        files.remove(300);
        files.insert(450, ("/opt/x/file450a", &new));
        let members = Rc::new(of(&store, "x-2.0-cp313-cp313-manylinux_2_28_x86_64.whl").expect("a wheel"));
        let next = write(&store, &files, None, 1);
        let mut found = 0;
        for (tar, packed) in all_of(&store, &next) {
            if let Some(known) = members.find(&tar) {
                assert!(known == packed);
                found += 1;
            }
        }
        let all = next.layout.members.len();
        assert!(fragment.layout.members.len() > 8 && found >= all - 6 && found < all - 2, "{found} of {all}");
        for cores in [1, 2] {
            let members = Rc::new(of(&store, "x-2.0-cp313-cp313-manylinux_2_28_x86_64.whl").expect("a wheel"));
            assert!(write(&store, &files, Some(&members), cores) == next);
        }

        // Bits that inflate to the same may have changed, too: then nothing is taken from there.
        let place = store.blob_path(&fragment.blob);
        let mut rotten = std::fs::read(&place).expect("reads");
        let mut start = 0;
        for member in &fragment.layout.members {
            rotten[start + 4] ^= 1;
            start += member.compressed as usize;
        }
        std::fs::remove_file(&place).expect("removes");
        std::fs::write(&place, rotten).expect("writes");
        let members = Rc::new(of(&store, "x-2.0-cp313-cp313-manylinux_2_28_x86_64.whl").expect("a wheel"));
        assert!(members.last.is_some() && write(&store, &files, Some(&members), 2) == next);
        members.keep(&store, &next).expect("keeps");
        // A fragment that is gone is none.
        std::fs::remove_file(store.blob_path(&next.blob)).expect("removes");
        assert!(of(&store, "x-3.0-cp313-cp313-manylinux_2_28_x86_64.whl").expect("a wheel").last.is_none());
    }

    #[test]
    fn each_member_is_remembered_whoever_compressed_it() {
        let text = |seed: u32, length| content(seed.wrapping_mul(2_654_435_761), length);
        let long: Vec<Vec<u8>> = (0..4).map(|at| text(at, 3_500_000 + 512 * at)).collect();
        let mut files: Vec<Given<'_>> =
            ["/a", "/b", "/c", "/d"].into_iter().zip(long.iter().map(Vec::as_slice)).collect();
        files.push(("/e", b"short"));
        for cores in [1, 2] {
            let folder = tempfile::tempdir().expect("a folder");
            let store = Store::open_at(folder.path()).expect("opens");
            let name = "x-1.0-py3-none-any.whl";
            let members = Rc::new(of(&store, name).expect("a wheel"));
            let fragment = write(&store, &files, Some(&members), cores);
            members.keep(&store, &fragment).expect("keeps");
            let next = of(&store, name).expect("a wheel");
            let mut found = 0;
            for (tar, packed) in all_of(&store, &fragment) {
                assert!(next.find(&tar).is_none_or(|known| known == packed));
                assert_eq!(next.find(&tar).is_some(), tar.len() >= WORTH_TAKING);
                found += usize::from(tar.len() >= WORTH_TAKING);
            }
            assert!(found >= 12, "{found}");
        }
    }

    #[test]
    fn releases_of_a_package_for_one_machine_know_of_each_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open_at(folder.path()).expect("opens");
        let key = |name: &str| of(&store, name).map(|members| members.key);
        let one = key("Some_Thing-1.0-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl");
        assert!(one.is_some());
        assert_eq!(one, key("some.thing-2.0-cp313-abi3-manylinux_2_28_x86_64.whl"));
        for other in ["some_thing-1.0-cp313-cp313-manylinux_2_28_aarch64.whl", "some_thing-1.0-py3-none-any.whl"] {
            assert!(key(other).is_some() && key(other) != one, "{other}");
        }
        assert_eq!(key("something.deb"), None);
    }
}
