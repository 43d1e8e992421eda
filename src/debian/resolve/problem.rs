//! Repairs marks that leave packages broken, by apt's scores.
//!
//! Every package gets a score from its priority and from what needs it. Broken packages are then looked at from the
//! highest score down: either what they break on gives way, or they do. Nothing is ever optimal here; it is what apt
//! does.

use super::mark::{Marks, Mode, When};
use super::universe::{Dep, Kind, NodeId, VersionId};

/// Rounds after which apt gives up.
const ROUNDS: usize = 20;
const ESSENTIAL: i32 = 100;
const PROTECTED: i32 = 10_000;
const PROTECTED_ESSENTIAL: i32 = 5_000;
/// By priority: unknown, required, important, standard, optional, extra.
const PRIORITIES: [i32; 6] = [0, 3, 2, 1, -1, -2];

/// What happens to a package none of whose alternatives could be had.
#[derive(PartialEq)]
enum Verdict {
    Remove,
    Keep,
}

pub(super) struct Repair<'m, 'a> {
    marks: &'m mut Marks<'a>,
    requested: Vec<bool>,
    upgradable: Vec<bool>,
    scores: Vec<i32>,
}

impl<'m, 'a> Repair<'m, 'a> {
    pub fn new(marks: &'m mut Marks<'a>, requests: &[NodeId]) -> Repair<'m, 'a> {
        let size = marks.states.len();
        let mut requested = vec![false; size];
        for node in requests {
            requested[*node as usize] = true;
        }
        let mut repair = Repair { marks, requested, upgradable: vec![true; size], scores: Vec::new() };
        repair.scores = repair.rate();
        repair
    }

    fn rate(&self) -> Vec<i32> {
        let universe = self.marks.universe;
        let installed: Vec<(NodeId, VersionId)> = (0..self.marks.states.len() as NodeId)
            .filter_map(|node| Some((node, self.marks.state(node).install?)))
            .collect();
        let mut scores = vec![0; self.marks.states.len()];
        for (node, version) in &installed {
            let named = &universe.nodes[*node as usize];
            let score = &mut scores[*node as usize];
            if named.essential || named.important {
                *score += ESSENTIAL;
            }
            *score += PRIORITIES[usize::from(universe.versions[*version as usize].priority)];
            if self.marks.state(*node).current.is_some() {
                *score += 1;
            }
            for dep in universe.deps(*version) {
                let points = match dep.kind {
                    Kind::PreDepends | Kind::Depends | Kind::Recommends => 1,
                    Kind::Conflicts | Kind::Breaks => -1,
                    Kind::Suggests => continue,
                };
                let own = |other: NodeId| dep.kind.is_negative() && other == *node;
                let mut providers: Vec<NodeId> = universe
                    .targets(dep, *node)
                    .into_iter()
                    .filter(|version| self.marks.state(universe.owner(*version)).install == Some(*version))
                    .map(|version| universe.owner(version))
                    .collect();
                // A relation without a version speaks for the name itself, there or not.
                if !dep.is_bounded() && !own(dep.target) {
                    providers.push(dep.target);
                }
                providers.sort_unstable();
                providers.dedup();
                for provider in providers {
                    scores[provider as usize] += points;
                }
            }
        }
        let old = scores.clone();
        for (node, version) in &installed {
            for dep in universe.deps(*version) {
                let inherits = matches!(dep.kind, Kind::PreDepends | Kind::Depends | Kind::Recommends);
                if inherits && old[*node as usize] > 0 && self.marks.state(dep.target).install.is_some() {
                    scores[dep.target as usize] += old[*node as usize];
                }
            }
        }
        for node in 0..scores.len() {
            let transfer = (scores[node] - old[node]).abs();
            if transfer != 0 {
                let mut owners: Vec<NodeId> = universe.nodes[node]
                    .providers
                    .iter()
                    .filter(|p| self.marks.state(universe.owner(p.version)).install == Some(p.version))
                    .map(|p| universe.owner(p.version))
                    .collect();
                owners.sort_unstable();
                owners.dedup();
                for owner in owners {
                    scores[owner as usize] += transfer;
                }
            }
        }
        for (node, score) in scores.iter_mut().enumerate() {
            let named = &universe.nodes[node];
            if self.requested[node] {
                *score += PROTECTED;
            }
            if named.essential || named.important {
                *score += PROTECTED_ESSENTIAL;
            }
        }
        scores
    }

    /// Whether nothing is broken in the end.
    pub fn run(mut self) -> bool {
        let mut order: Vec<NodeId> = (0..self.scores.len() as NodeId).collect();
        order.sort_by_key(|node| std::cmp::Reverse(self.scores[*node as usize]));
        for round in 0..ROUNDS {
            let mut changed = false;
            for node in &order {
                if self.marks.state(*node).install.is_some() && self.marks.is_broken(*node) {
                    changed |= self.investigate(*node, round);
                }
            }
            if !changed {
                break;
            }
        }
        self.marks.broken().is_empty()
    }

    fn score(&self, node: NodeId) -> i32 {
        self.scores[node as usize]
    }

    fn investigate(&mut self, node: NodeId, round: usize) -> bool {
        let universe = self.marks.universe;
        let Some(version) = self.marks.state(node).install else { return false };
        let mut changed = false;
        let mut kill: Vec<(NodeId, &[Dep])> = Vec::new();
        'groups: for group in universe.groups(version).filter(|group| group[0].kind.is_critical()) {
            let (choice, before) = (group.len() > 1, kill.len());
            let mut verdict = Verdict::Remove;
            let mut settled = false;
            for dep in group {
                if self.marks.group_holds(group, node, When::Then) {
                    settled = true;
                    break;
                }
                let negative = dep.kind.is_negative();
                let targets = universe.targets(dep, node);
                if targets.is_empty() && !self.marks.state(node).protected && !negative {
                    if choice {
                        continue;
                    }
                    self.marks.keep(node);
                    changed = true;
                    break 'groups;
                }
                let mut done = false;
                for target in targets {
                    let other = universe.owner(target);
                    if negative && self.marks.state(other).install != Some(target) {
                        continue;
                    }
                    let absent = !negative && !self.marks.holds(dep, node, When::Now);
                    if self.score(node) <= self.score(other) || absent {
                        if self.marks.state(node).protected {
                            if self.upgrade(other) {
                                self.scores[other as usize] = self.score(other).min(self.score(node));
                                break;
                            }
                            continue;
                        }
                        self.give_up(node, other, dep, choice, round, &mut verdict);
                        (changed, done) = (true, true);
                        break;
                    }
                    if dep.kind == Kind::Breaks && self.marks.group_holds(group, node, When::Candidates) {
                        self.marks.install(other, false, 0, false);
                        continue;
                    }
                    let state = self.marks.state(other);
                    if state.protected && state.mode != Mode::Delete {
                        continue;
                    }
                    kill.push((other, group));
                    if !negative {
                        break;
                    }
                }
                if !choice && done {
                    break 'groups;
                }
            }
            if choice && !settled && before == kill.len() {
                if verdict == Verdict::Keep {
                    self.marks.keep(node);
                    changed = true;
                } else if !self.marks.state(node).protected {
                    self.marks.delete(node);
                    changed = true;
                }
            }
        }
        if self.marks.state(node).install.is_some() {
            for (other, group) in kill {
                changed |= self.kill(node, other, group, round);
            }
        }
        changed
    }

    /// A package that is worth less than what it breaks on is left out, or mended if that is possible.
    fn give_up(&mut self, node: NodeId, other: NodeId, dep: &Dep, choice: bool, round: usize, verdict: &mut Verdict) {
        let installed = self.marks.state(node).mode == Mode::Install;
        self.marks.keep(node);
        if !self.marks.is_broken(node) {
            *verdict = Verdict::Keep;
            if choice && installed {
                self.marks.install(node, false, 0, false);
            }
        } else if !self.upgrade(node) {
            let target = self.marks.state(dep.target);
            if !choice {
                self.marks.delete(node);
                if round > 1 && self.score(other) > self.score(node) {
                    self.scores[node as usize] = self.score(other);
                }
            } else if target.current.is_none() && target.candidate.is_some() {
                let before = self.marks.broken().len();
                self.marks.install(dep.target, true, 1, false);
                if self.marks.is_broken(dep.target) || self.marks.broken().len() > before {
                    self.marks.delete(dep.target);
                }
            }
        }
    }

    fn kill(&mut self, node: NodeId, other: NodeId, group: &[Dep], round: usize) -> bool {
        let found = if self.marks.group_holds(group, node, When::Now) {
            self.marks.keep(other)
        } else {
            group[0].kind.is_negative() && self.marks.delete(other)
        };
        let mut changed = found;
        if (!found || round > 1) && self.score(node) > self.score(other) {
            self.scores[other as usize] = self.score(node);
            changed = true;
        }
        changed
    }

    /// Installs a package and, where that breaks it, what would mend it.
    fn upgrade(&mut self, node: NodeId) -> bool {
        let state = self.marks.state(node);
        let possible = state.candidate.is_some() && state.candidate != state.current;
        if !self.upgradable[node as usize] || !possible || self.requested[node as usize] {
            return false;
        }
        self.upgradable[node as usize] = false;
        let kept = state.mode == Mode::Keep;
        if !self.marks.install(node, false, 0, false) {
            return false;
        }
        let Some(version) = self.marks.state(node).install else { return false };
        let universe = self.marks.universe;
        let mut fail = false;
        for group in universe.groups(version).filter(|group| group[0].kind.is_critical()) {
            for dep in group {
                if self.marks.group_holds(group, node, When::Then) {
                    break;
                }
                let target = self.likely_target(dep, node);
                if self.marks.state(target).protected {
                    fail = true;
                } else if self.marks.holds(dep, node, When::Candidates) {
                    fail = !self.upgrade(target);
                    if !fail {
                        break;
                    }
                } else if dep.kind.is_negative() {
                    break;
                } else {
                    fail = true;
                }
            }
            if fail {
                break;
            }
        }
        if fail {
            if kept {
                self.marks.keep(node)
            } else {
                self.marks.delete(node)
            };
        }
        !fail
    }

    fn likely_target(&self, dep: &Dep, node: NodeId) -> NodeId {
        let universe = self.marks.universe;
        let target = &universe.nodes[dep.target as usize];
        if !target.versions.is_empty() {
            return dep.target;
        }
        let mut providers = target.providers.iter().rev().map(|provider| universe.owner(provider.version));
        providers.find(|provider| *provider != node).unwrap_or(dep.target)
    }
}
