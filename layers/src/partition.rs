//! Which packages travel together in one layer.
//!
//! Packages that exactly the same stages use form a class, so a layer is either wholly in an image or not at all and
//! images share it. Within a class large packages travel alone and small ones in buckets, so that one changed package
//! changes about its own size. The partition is recorded in the lock and sticky: an updated package stays where it was.

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

/// Limits of a partition, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// From this size on a package travels alone.
    pub alone: u64,
    /// Buckets of small packages are filled up to this size.
    pub bucket: u64,
}

impl Grain {
    /// Where partitions start: 1 MB, as fine as pays.
    pub const FINE: Grain = Grain { alone: 1_000_000, bucket: 1_000_000 };

    /// The next coarser one.
    pub fn coarser(self) -> Grain {
        Grain { alone: self.alone * 3 / 2, bucket: self.bucket * 3 / 2 }
    }
}

/// Places units into groups. Groups of `previous` keep their members and order; units that no group holds fill the last
/// group of their class that has room, or new ones. Names without a unit leave their group.
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
            let size = size_of(group);
            *users == unit.users && size < grain.alone && size + unit.size <= grain.bucket.max(1) * 3 / 2
        };
        match groups.iter_mut().rev().find(|group| unit.size < grain.alone && room(group)) {
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
        let before = [unit("a", 900_000, &[0]), unit("b", 400_000, &[0]), unit("c", 900_000, &[0])];
        let groups = partition(&before, &[], Grain::FINE);
        assert_eq!(text(&groups), "a+b c");
        let after =
            [unit("a", 5_000_000, &[0]), unit("aa", 100, &[0]), unit("b", 400_000, &[0]), unit("c", 900_000, &[0])];
        assert_eq!(text(&partition(&after, &groups, Grain::FINE)), "a+b c+aa");
        assert_eq!(text(&partition(&after[1..], &groups, Grain::FINE)), "b c+aa");
    }

    #[test]
    fn a_package_whose_users_changed_leaves_its_group() {
        let groups = partition(&[unit("a", 9, &[0]), unit("b", 9, &[0]), unit("c", 9, &[0])], &[], Grain::FINE);
        let after = [unit("a", 9, &[0]), unit("b", 9, &[0, 1]), unit("c", 9, &[0])];
        assert_eq!(text(&partition(&after, &groups, Grain::FINE)), "a+c b");
    }
}
