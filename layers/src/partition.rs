//! Which packages travel together in one layer.
//!
//! Packages that exactly the same stages use form a class, so a layer is either wholly in an image or not at all and
//! images share it. Within a class large packages travel alone and small ones in buckets, so that one changed package
//! changes at most a bucket besides itself. The partition is recorded in the lock and sticky: an updated package stays
//! where it was.

use std::collections::{BTreeMap, BTreeSet};

/// Something to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Compressed bytes, about.
    pub size: u64,
    /// The stages that use it; equal sets are one class.
    pub users: BTreeSet<usize>,
}

/// The limit of a partition, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// What packages that share a layer have at most together; a larger one travels alone.
    pub bucket: u64,
}

impl Grain {
    /// Where partitions start, as fine as pays. A push that changes one small package sends its bucket, the image's
    /// configuration and its manifest; within 1 MB this leaves 40 kB for these two and 6 % for a layer that is larger
    /// than the archives it was made of.
    pub const FINE: Grain = Grain { bucket: 900_000 };

    /// The next coarser one.
    pub fn coarser(self) -> Grain {
        Grain { bucket: self.bucket * 3 / 2 }
    }
}

/// Places units into groups. Groups of `previous` keep their members and order, also where they have outgrown the grain;
/// units that no group holds fill the last group of their class that has room, or new ones. Names without a unit leave
/// their group.
pub fn partition(units: &[Unit], previous: &[Vec<String>], grain: Grain) -> Vec<Vec<String>> {
    let by_name: BTreeMap<&str, &Unit> = units.iter().map(|unit| (unit.name.as_str(), unit)).collect();
    let mut groups: Vec<(BTreeSet<usize>, Vec<String>)> = Vec::new();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    for group in previous {
        // A package whose users changed would tear its layer apart for the others, so it moves.
        let members: Vec<&Unit> = group.iter().filter_map(|name| by_name.get(name.as_str()).copied()).collect();
        let Some(class) = most_common(members.iter().map(|unit| &unit.users)) else { continue };
        let stay: Vec<&Unit> =
            members.into_iter().filter(|unit| unit.users == *class && placed.insert(&unit.name)).collect();
        if !stay.is_empty() {
            groups.push((class.clone(), stay.iter().map(|unit| unit.name.clone()).collect()));
        }
    }
    let size_of = |group: &[String]| {
        group.iter().filter_map(|name| by_name.get(name.as_str())).map(|unit| unit.size).sum::<u64>()
    };
    // Layers that most stages share come first, so that images also share the chain of layers below them.
    let mut newcomers: Vec<&Unit> = units.iter().filter(|unit| !placed.contains(unit.name.as_str())).collect();
    let order = |unit: &Unit| (std::cmp::Reverse(unit.users.len()), unit.users.clone(), unit.name.clone());
    newcomers.sort_by_cached_key(|unit| order(unit));
    for unit in newcomers {
        let room = |(users, group): &(BTreeSet<usize>, Vec<String>)| {
            *users == unit.users && size_of(group) + unit.size <= grain.bucket
        };
        match groups.iter_mut().rev().find(|group| room(group)) {
            Some((_, group)) => group.push(unit.name.clone()),
            None => groups.push((unit.users.clone(), vec![unit.name.clone()])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
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
        Unit { name: name.into(), size, users: users.iter().copied().collect() }
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
        assert_eq!(text(&partition(&units, &[], Grain::FINE)), "a+b big only0");
    }

    #[test]
    fn an_update_moves_nothing_and_a_newcomer_joins_a_tail() {
        let before = [unit("a", 500_000, &[0]), unit("b", 400_000, &[0]), unit("c", 800_000, &[0])];
        let groups = partition(&before, &[], Grain::FINE);
        assert_eq!(text(&groups), "a+b c");
        let after =
            [unit("a", 5_000_000, &[0]), unit("aa", 100, &[0]), unit("b", 400_000, &[0]), unit("c", 800_000, &[0])];
        assert_eq!(text(&partition(&after, &groups, Grain::FINE)), "a+b c+aa");
        assert_eq!(text(&partition(&after[1..], &groups, Grain::FINE)), "b c+aa");
    }

    #[test]
    fn a_package_whose_users_changed_leaves_its_group() {
        let groups = partition(&[unit("a", 9, &[0]), unit("b", 9, &[0]), unit("c", 9, &[0])], &[], Grain::FINE);
        let after = [unit("a", 9, &[0]), unit("b", 9, &[0, 1]), unit("c", 9, &[0])];
        assert_eq!(text(&partition(&after, &groups, Grain::FINE)), "a+c b");
    }

    #[test]
    fn a_bucket_is_never_filled_beyond_its_bound() {
        let full = [unit("a", 500_000, &[0]), unit("b", 400_000, &[0]), unit("c", 1, &[0])];
        let groups = partition(&full, &[], Grain::FINE);
        assert_eq!(text(&groups), "a+b c");
        let larger = [unit("a", 500_000, &[0]), unit("b", 400_001, &[0]), unit("c", 1, &[0])];
        assert_eq!(text(&partition(&larger, &[], Grain::FINE)), "a b+c");
        assert_eq!(text(&partition(&larger, &[], Grain::FINE.coarser())), "a+b+c");
    }

    #[test]
    fn a_group_that_outgrew_the_grain_stays_and_takes_nobody_in() {
        let groups = [vec!["a".to_owned(), "b".to_owned()]];
        let units = [unit("a", 700_000, &[0]), unit("b", 700_000, &[0]), unit("c", 0, &[0])];
        assert_eq!(text(&partition(&units, &groups, Grain::FINE)), "a+b c");
    }

    /// A unit as wheels are: many small ones, some of megabytes; used by one source, the other, or both.
    fn wheel() -> impl Strategy<Value = (u64, BTreeSet<usize>)> {
        let size = prop_oneof![3 => 0..150_000_u64, 1 => 0..1_000_000_u64, 1 => 0..20_000_000_u64];
        (size, prop_oneof![Just([0].into()), Just([1].into()), Just([0, 1].into())])
    }

    proptest! {
        #[test]
        fn whatever_the_sizes_a_changed_package_takes_at_most_a_bucket_along(
            wheels in proptest::collection::vec(wheel(), 0..120), coarse in any::<bool>(), early in 0..120_usize,
        ) {
            let grain = if coarse { Grain::FINE.coarser() } else { Grain::FINE };
            let units: Vec<Unit> =
                (0..).zip(wheels).map(|(at, (size, users))| Unit { name: format!("p{at}"), size, users }).collect();
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
                prop_assert!(members.len() == 1 || size <= grain.bucket, "{:?} has {} bytes", group, size);
                prop_assert!(members.iter().all(|unit| unit.users == members[0].users));
                sizes.entry(&members[0].users).or_default().push(size);
            }
            // Nor are there more layers than that takes: no two of a class would fit into one.
            for sizes in sizes.values_mut() {
                sizes.sort_unstable();
                prop_assert!(sizes.windows(2).all(|two| two[0] + two[1] > grain.bucket), "{:?}", sizes);
            }
        }
    }
}
