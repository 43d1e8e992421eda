//! Takes out what marking left behind: needs of alternatives that were tried and given up.

use super::mark::{Marks, Mode};
use super::universe::NodeId;

/// Unmarks every package that nothing there needs, recommends or suggests, as apt's autoremover does.
pub(super) fn collect(marks: &mut Marks<'_>) {
    let universe = marks.universe;
    let mut used = vec![false; marks.states.len()];
    let mut queue: Vec<NodeId> = (0..marks.states.len() as NodeId)
        .filter(|node| {
            let (state, named) = (marks.state(*node), &universe.nodes[*node as usize]);
            state.install.is_some() && (state.protected || !state.auto || named.essential || named.important)
        })
        .collect();
    for node in &queue {
        used[*node as usize] = true;
    }
    while let Some(node) = queue.pop() {
        let Some(version) = marks.state(node).install else { continue };
        for dep in universe.deps(version).iter().filter(|dep| !dep.kind.is_negative()) {
            for target in universe.targets(dep, node) {
                let other = universe.owner(target);
                if marks.state(other).install == Some(target) && !used[other as usize] {
                    used[other as usize] = true;
                    queue.push(other);
                }
            }
        }
    }
    let unused: Vec<NodeId> = (0..marks.states.len() as NodeId)
        .filter(|node| !used[*node as usize] && marks.state(*node).mode == Mode::Install)
        .collect();
    for node in &unused {
        marks.delete(*node);
    }
}
