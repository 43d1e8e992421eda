//! Who asked for a package, and why a request cannot be met.

use std::collections::{BTreeMap, VecDeque};

use super::ResolveError;
use super::mark::{Marks, When};
use super::universe::{Dep, NodeId, VersionId};

/// For each package that is installed and was not requested: the package that leads to it.
pub(super) fn first_asked(marks: &Marks<'_>, requests: &[NodeId]) -> BTreeMap<NodeId, NodeId> {
    let mut by = BTreeMap::new();
    let mut queue: VecDeque<NodeId> = requests.iter().copied().collect();
    while let Some(node) = queue.pop_front() {
        let Some(version) = marks.state(node).install else { continue };
        for dep in marks.universe.deps(version).iter().filter(|dep| !dep.kind.is_negative()) {
            for target in marks.universe.targets(dep, node) {
                let other = marks.universe.owner(target);
                let there = marks.state(other).install == Some(target) && marks.state(other).current.is_none();
                if there && !by.contains_key(&other) && !requests.contains(&other) {
                    by.insert(other, node);
                    queue.push_back(other);
                }
            }
        }
    }
    by
}

/// What a request cannot do without, and the package that each was first needed by.
struct Needs<'a> {
    versions: BTreeMap<NodeId, VersionId>,
    by: BTreeMap<NodeId, NodeId>,
    /// A need that nothing meets.
    hopeless: Option<(NodeId, &'a [Dep])>,
}

fn needs<'a>(start: &Marks<'a>, requests: &[NodeId]) -> Needs<'a> {
    let universe = start.universe;
    let mut needs = Needs { versions: BTreeMap::new(), by: BTreeMap::new(), hopeless: None };
    let mut queue: VecDeque<NodeId> = requests.iter().copied().collect();
    while let Some(node) = queue.pop_front() {
        let Some(version) = start.state(node).candidate else { continue };
        if needs.versions.insert(node, version).is_some() {
            continue;
        }
        for group in universe.groups(version) {
            if !group[0].kind.is_critical() || group[0].kind.is_negative() {
                continue;
            }
            if start.group_holds(group, node, When::Now) {
                continue;
            }
            let mut targets: Vec<VersionId> = group.iter().flat_map(|dep| universe.targets(dep, node)).collect();
            targets.retain(|target| start.state(universe.owner(*target)).candidate == Some(*target));
            targets.sort_unstable();
            targets.dedup();
            match targets[..] {
                [] => {
                    needs.hopeless.get_or_insert((node, group));
                }
                [only] => {
                    let other = universe.owner(only);
                    if !requests.contains(&other) {
                        needs.by.entry(other).or_insert(node);
                    }
                    queue.push_back(other);
                }
                _ => {}
            }
        }
    }
    needs
}

/// From a request to a package.
fn chain(marks: &Marks<'_>, by: &BTreeMap<NodeId, NodeId>, node: NodeId) -> Vec<String> {
    let mut chain = vec![marks.universe.name(node).to_owned()];
    let mut at = node;
    while let Some(next) = by.get(&at) {
        chain.push(marks.universe.name(*next).to_owned());
        at = *next;
        if chain.len() > by.len() {
            break;
        }
    }
    chain.reverse();
    chain
}

/// Whether a version that is held is too old or too new for what a request cannot do without.
pub(super) fn is_in_the_way(start: &Marks<'_>, requests: &[NodeId], node: NodeId, held: VersionId) -> bool {
    let universe = start.universe;
    let newest = universe.nodes[node as usize].versions[0];
    if newest == held || requests.contains(&node) && start.state(node).candidate != Some(held) {
        return false;
    }
    let needs = needs(start, requests);
    let unmet = needs.hopeless.iter().any(|(owner, group)| {
        group.iter().any(|dep| {
            let targets = universe.targets(dep, *owner);
            targets.contains(&newest) && !targets.contains(&held)
        })
    });
    let excluded = needs.versions.iter().any(|(owner, version)| {
        universe.deps(*version).iter().filter(|dep| dep.kind.is_negative()).any(|dep| {
            let targets = universe.targets(dep, *owner);
            targets.contains(&held) && !targets.contains(&newest)
        })
    });
    // Its own needs may be what went away.
    let stuck = needs.hopeless.is_some_and(|(owner, _)| owner == node);
    unmet || excluded || stuck
}

/// Why there is no closure.
pub(super) fn explain(start: &Marks<'_>, end: &Marks<'_>, requests: &[NodeId]) -> ResolveError {
    let universe = start.universe;
    let needs = needs(start, requests);
    if let Some((node, group)) = needs.hopeless {
        let offered = group.iter().flat_map(|dep| {
            let node = &universe.nodes[dep.target as usize];
            let own = node.versions.iter().copied();
            own.chain(node.providers.iter().map(|provider| provider.version))
        });
        let mut names: Vec<String> = Vec::new();
        for version in offered {
            let package = universe.offered(version).package;
            let name = format!("{} {}", package.name(), package.version());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let chain = chain(start, &needs.by, node);
        return ResolveError::Unsatisfiable { chain, relation: universe.shown(group), names };
    }
    let below = (0..start.states.len() as NodeId).filter_map(|node| Some((node, start.state(node).current?)));
    let mut there: BTreeMap<NodeId, VersionId> = below.collect();
    there.extend(needs.versions.iter().map(|(node, version)| (*node, *version)));
    let conflict = |node: NodeId, version: VersionId| {
        universe.deps(version).iter().filter(|dep| dep.kind.is_negative()).find_map(|dep| {
            let mut targets = universe.targets(dep, node).into_iter();
            let other = targets.find(|target| there.get(&universe.owner(*target)) == Some(target))?;
            Some(ResolveError::Conflict {
                one: chain(start, &needs.by, node),
                other: chain(start, &needs.by, universe.owner(other)),
                field: dep.kind.field(),
                relation: universe.shown(std::slice::from_ref(dep)),
            })
        })
    };
    if let Some(error) = there.iter().find_map(|(node, version)| conflict(*node, *version)) {
        return error;
    }
    let by = first_asked(end, requests);
    let unmet = end.broken().into_iter().find_map(|node| {
        let version = end.state(node).install?;
        let group = universe
            .groups(version)
            .find(|group| group[0].kind.is_critical() && !end.group_holds(group, node, When::Then))?;
        Some(ResolveError::NoChoice { chain: chain(end, &by, node), relation: universe.shown(group) })
    });
    let refused = || {
        let node = requests.iter().find(|node| end.state(**node).install.is_none());
        let name = node.map(|node| universe.name(*node).to_owned()).unwrap_or_default();
        ResolveError::NoChoice { chain: vec!["the request".into()], relation: name }
    };
    unmet.unwrap_or_else(refused)
}
