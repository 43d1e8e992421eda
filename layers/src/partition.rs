//! Which packages travel together in one layer.
//!
//! Packages that exactly the same stages use form a class, so a layer is either wholly in an image or not at all and
//! images share it. Within a class, packages that come from one source travel together, since they change together. Sources
//! that are large travel alone and small ones in buckets, so that a changed source takes at most a bucket along. The partition
//! is recorded in the lock and sticky: an updated package stays where it was.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Something to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// What it is made from: units of one source change together.
    pub source: String,
    /// Compressed bytes, about.
    pub size: u64,
    /// The stages that use it; equal sets are one class.
    pub users: BTreeSet<usize>,
}

/// The limit of a partition, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// What packages of several sources that share a layer have at most together; a larger source travels alone.
    pub bucket: u64,
}

impl Grain {
    /// Where partitions of wheels start, as fine as pays. A push that changes one small wheel sends its bucket, the image's
    /// configuration and its manifest; within 1 MB this leaves 40 kB for these two and 6 % for a layer that is larger
    /// than the archives it was made of.
    pub const OF_WHEELS: Grain = Grain { bucket: 900_000 };

    /// Where partitions of Debian packages start. They change rarely, and many at once in a point release, while each layer
    /// costs whoever pulls it 60 to 90 ms (podman 4.3, Docker 20.10).
    pub const OF_PACKAGES: Grain = Grain { bucket: 3_000_000 };

    /// The next coarser one.
    pub fn coarser(self) -> Grain {
        Grain { bucket: self.bucket * 3 / 2 }
    }
}

/// Places units into groups. Groups of `previous` keep their members and order, also where they have outgrown the grain;
/// units that no group holds go, all of one source together, where there is nothing but their source, or else where their
/// source is and has room, or else to the last group of their class that has room, or make a new one. Names without a unit
/// leave their group.
pub fn partition(units: &[Unit], previous: &[Vec<String>], grain: Grain) -> Vec<Vec<String>> {
    let by_name: BTreeMap<&str, &Unit> = units.iter().map(|unit| (unit.name.as_str(), unit)).collect();
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    for group in previous {
        // A package whose users changed would tear its layer apart for the others, so it moves.
        let members: Vec<&Unit> = group.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect();
        let Some(users) = most_common(members.iter().map(|unit| &unit.users)) else { continue };
        let members: Vec<&Unit> =
            members.into_iter().filter(|unit| unit.users == *users && placed.insert(&unit.name)).collect();
        if !members.is_empty() {
            groups.push(Group { users, members });
        }
    }
    let mut newcomers: BTreeMap<(&BTreeSet<usize>, &str), Vec<&Unit>> = BTreeMap::new();
    for unit in by_name.values().filter(|unit| !placed.contains(unit.name.as_str())) {
        newcomers.entry((&unit.users, &unit.source)).or_default().push(unit);
    }
    // Layers that most stages share come first, so that images also share the chain of layers below them. The largest of them
    // come first, because small ones fit into what they leave.
    let mut newcomers: Vec<Group<'_>> =
        newcomers.into_iter().map(|((users, _), members)| Group { users, members }).collect();
    newcomers.sort_by_key(|it| (Reverse(it.users.len()), it.users, Reverse(it.size()), &it.members[0].name));
    for new in newcomers {
        let has_room = |group: &Group<'_>| group.size() + new.size() <= grain.bucket;
        let source = &new.members[0].source;
        let of_class = |group: &Group<'_>| group.users == new.users;
        let home = (groups.iter().position(|group| of_class(group) && group.is_of(source)))
            .or_else(|| groups.iter().rposition(|it| of_class(it) && has_room(it) && it.has(source)))
            .or_else(|| groups.iter().rposition(|it| of_class(it) && has_room(it)));
        match home {
            Some(at) => groups[at].members.extend(new.members),
            None => groups.push(new),
        }
    }
    groups.into_iter().map(|group| group.members.iter().map(|unit| unit.name.clone()).collect()).collect()
}

/// Units that share a layer, at least one.
struct Group<'a> {
    users: &'a BTreeSet<usize>,
    members: Vec<&'a Unit>,
}

impl Group<'_> {
    fn size(&self) -> u64 {
        self.members.iter().map(|unit| unit.size).sum()
    }

    /// Whether some of it comes from this source.
    fn has(&self, source: &str) -> bool {
        self.members.iter().any(|unit| unit.source == source)
    }

    /// Whether all of it comes from this source.
    fn is_of(&self, source: &str) -> bool {
        self.members.iter().all(|unit| unit.source == source)
    }
}

fn most_common<'a>(classes: impl Iterator<Item = &'a BTreeSet<usize>>) -> Option<&'a BTreeSet<usize>> {
    let mut counts: BTreeMap<&BTreeSet<usize>, usize> = BTreeMap::new();
    for class in classes {
        *counts.entry(class).or_default() += 1;
    }
    // The smallest of the most common ones, so that ties do not depend on anything.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(class, _)| class)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit(name: &str, size: u64, users: &[usize]) -> Unit {
        Unit { name: name.into(), source: name.into(), size, users: users.iter().copied().collect() }
    }

    fn text(groups: &[Vec<String>]) -> String {
        groups.iter().map(|group| group.join("+")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn classes_are_apart_and_large_packages_alone() {
        let units = [
            unit("big", 5_000_000, &[0, 1]),
            unit("a", 300_000, &[0, 1]),
            unit("b", 300_000, &[0, 1]),
            unit("only0", 10, &[0]),
        ];
        assert_eq!(text(&partition(&units, &[], Grain::OF_WHEELS)), "big a+b only0");
    }

    #[test]
    fn an_update_moves_nothing_and_a_newcomer_joins_a_tail() {
        let before = [unit("a", 500_000, &[0]), unit("b", 400_000, &[0]), unit("c", 800_000, &[0])];
        let groups = partition(&before, &[], Grain::OF_WHEELS);
        assert_eq!(text(&groups), "c a+b");
        let after =
            [unit("a", 5_000_000, &[0]), unit("aa", 100, &[0]), unit("b", 400_000, &[0]), unit("c", 800_000, &[0])];
        assert_eq!(text(&partition(&after, &groups, Grain::OF_WHEELS)), "c+aa a+b");
        assert_eq!(text(&partition(&after[1..], &groups, Grain::OF_WHEELS)), "c b+aa");
    }

    #[test]
    fn a_package_whose_users_changed_leaves_its_group() {
        let groups = partition(&[unit("a", 9, &[0]), unit("b", 9, &[0]), unit("c", 9, &[0])], &[], Grain::OF_WHEELS);
        let after = [unit("a", 9, &[0]), unit("b", 9, &[0, 1]), unit("c", 9, &[0])];
        assert_eq!(text(&partition(&after, &groups, Grain::OF_WHEELS)), "a+c b");
    }

    #[test]
    fn a_bucket_is_never_filled_beyond_its_bound() {
        let full = [unit("a", 500_000, &[0]), unit("b", 400_000, &[0]), unit("c", 1, &[0])];
        let groups = partition(&full, &[], Grain::OF_WHEELS);
        assert_eq!(text(&groups), "a+b c");
        let larger = [unit("a", 500_000, &[0]), unit("b", 400_001, &[0]), unit("c", 1, &[0])];
        assert_eq!(text(&partition(&larger, &[], Grain::OF_WHEELS)), "a b+c");
        assert_eq!(text(&partition(&larger, &[], Grain::OF_WHEELS.coarser())), "a+b+c");
    }

    #[test]
    fn a_group_that_outgrew_the_grain_stays_and_takes_nobody_in() {
        let groups = [vec!["a".to_owned(), "b".to_owned()]];
        let units = [unit("a", 700_000, &[0]), unit("b", 700_000, &[0]), unit("c", 0, &[0])];
        assert_eq!(text(&partition(&units, &groups, Grain::OF_WHEELS)), "a+b c");
    }

    #[test]
    fn what_comes_from_one_source_travels_together() {
        let of = |source: &str, unit: Unit| Unit { source: source.into(), ..unit };
        let mut units = vec![
            unit("a", 300_000, &[0]),
            of("ssl", unit("libssl", 2_800_000, &[0])),
            of("ssl", unit("openssl", 500_000, &[0])),
            of("ssl", unit("openssl-doc", 9, &[1])),
            of("small", unit("libsmall", 400_000, &[0])),
            of("small", unit("small", 300_000, &[0])),
        ];
        let groups = partition(&units, &[], Grain::OF_WHEELS);
        assert_eq!(text(&groups), "libssl+openssl libsmall+small a openssl-doc");
        // Others of it join it, however large it is; nobody else is made to change along with them.
        units.push(of("ssl", unit("libssl-dev", 9_000_000, &[0])));
        units.push(of("a", unit("a-dev", 700_000, &[0])));
        let groups = partition(&units, &groups, Grain::OF_WHEELS);
        assert_eq!(text(&groups), "libssl+openssl+libssl-dev libsmall+small a+a-dev openssl-doc");
        // One that shares its layer is joined where there is room.
        let some = [of("s", unit("x", 9, &[0])), unit("y", 9, &[0]), unit("z", 9, &[0]), of("s", unit("new", 9, &[0]))];
        let before = [vec!["x".to_owned(), "y".to_owned()], vec!["z".to_owned()]];
        assert_eq!(text(&partition(&some, &before, Grain::OF_WHEELS)), "x+y+new z");
        units.push(of("a", unit("b", 9, &[0])));
        let mixed = [vec!["a".to_owned(), "libsmall".to_owned()]];
        let groups = partition(&units, &mixed, Grain::OF_WHEELS);
        assert_eq!(text(&groups), "a+libsmall libssl+libssl-dev+openssl a-dev+b small openssl-doc");
    }

    /// Units as packages and wheels are: many small ones, some of megabytes, some of a few sources; used by one stage, the other,
    /// or both.
    fn any_unit() -> impl Strategy<Value = (u64, Option<u8>, BTreeSet<usize>)> {
        let size = prop_oneof![3 => 0..150_000_u64, 1 => 0..1_000_000_u64, 1 => 0..20_000_000_u64];
        let source = proptest::option::weighted(0.3, 0..9_u8);
        (size, source, prop_oneof![Just([0].into()), Just([1].into()), Just([0, 1].into())])
    }

    proptest! {
        #[test]
        fn whatever_the_sizes_a_changed_source_takes_at_most_a_bucket_along(
            all in proptest::collection::vec(any_unit(), 0..120), coarse in any::<bool>(), early in 0..120_usize,
        ) {
            let grain = if coarse { Grain::OF_WHEELS.coarser() } else { Grain::OF_WHEELS };
            let unit = |(at, (size, source, users)): (usize, (u64, Option<u8>, BTreeSet<usize>))| {
                let name = format!("p{at}");
                Unit { source: source.map_or_else(|| name.clone(), |source| format!("s{source}")), name, size, users }
            };
            let units: Vec<Unit> = (0..).zip(all).map(unit).collect();
            let by_name: BTreeMap<&str, &Unit> = units.iter().map(|unit| (unit.name.as_str(), unit)).collect();
            // Some are in the lock before the others come.
            let first = partition(&units[..early.min(units.len())], &[], grain);
            let groups = partition(&units, &first, grain);
            prop_assert_eq!(&partition(&units, &groups, grain), &groups);
            prop_assert!(first.iter().zip(&groups).all(|(before, after)| after.starts_with(before)));
            let names: BTreeSet<&str> = groups.iter().flatten().map(String::as_str).collect();
            prop_assert_eq!((names.len(), groups.iter().flatten().count()), (units.len(), units.len()));
            let mut sizes: BTreeMap<&BTreeSet<usize>, Vec<u64>> = BTreeMap::new();
            for group in &groups {
                let members: Vec<&Unit> = group.iter().map(|name| by_name[name.as_str()]).collect();
                let size = members.iter().map(|unit| unit.size).sum();
                let is_one = members.iter().all(|unit| unit.source == members[0].source);
                prop_assert!(is_one || size <= grain.bucket, "{:?} has {} bytes", group, size);
                prop_assert!(members.iter().all(|unit| unit.users == members[0].users));
                sizes.entry(&members[0].users).or_default().push(size);
            }
            // At once, nothing comes between those of one source.
            let groups = partition(&units, &[], grain);
            let home = |unit: &Unit| groups.iter().position(|group| group.contains(&unit.name));
            for (at, one) in units.iter().enumerate() {
                let kin = units[..at].iter().filter(|it| it.source == one.source && it.users == one.users);
                prop_assert!(kin.into_iter().all(|other| home(one) == home(other)));
            }
            // Nor are there more layers than that takes: no two of a class would fit into one.
            for sizes in sizes.values_mut() {
                sizes.sort_unstable();
                prop_assert!(sizes.windows(2).all(|two| two[0] + two[1] > grain.bucket), "{:?}", sizes);
            }
        }
    }
}
