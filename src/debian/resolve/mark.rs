//! Marking packages for installation, in the order in which apt does it.
//!
//! Installing a package means: first what stands against it gives way, then its relations are walked in order, and
//! each that does not hold yet is met by the first of its alternatives that can be installed in turn. What was asked
//! for, and what that alone can be met by, is *protected*: its decisions are not taken back, and enemies of it are out
//! of the question from then on. Everything else that fails is taken back, and the next alternative is tried.

use super::universe::{Dep, NodeId, Universe, VersionId};

/// What is to be done with a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Keep,
    Install,
    Delete,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub mode: Mode,
    /// The version that can be installed.
    pub candidate: Option<VersionId>,
    /// The candidate that relations were last judged by. apt does not judge them again when it drops a candidate.
    judged: Option<VersionId>,
    /// The version that will be there.
    pub install: Option<VersionId>,
    /// The version that is there already.
    pub current: Option<VersionId>,
    /// Set by request, or by need of what was requested.
    pub protected: bool,
    /// Nobody requested it.
    pub auto: bool,
    /// Left out on purpose: counts as there, and is not.
    pub ghost: bool,
}

/// The moment at which a relation is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Before anything is done.
    Now,
    /// When everything that is marked is installed.
    Then,
    /// If every candidate were installed.
    Candidates,
}

/// Deeper chains are given up, as in apt.
const DEPTH: usize = 3000;

#[derive(Debug, Clone)]
pub(super) struct Marks<'a> {
    pub universe: &'a Universe,
    pub states: Vec<State>,
    pub recommends: bool,
}

impl<'a> Marks<'a> {
    pub fn new(universe: &'a Universe, recommends: bool) -> Marks<'a> {
        let state = |candidate: Option<VersionId>| State {
            mode: Mode::Keep,
            candidate,
            judged: candidate,
            install: None,
            current: None,
            protected: false,
            auto: false,
            ghost: false,
        };
        let states = universe.nodes.iter().map(|node| state(node.versions.first().copied())).collect();
        Marks { universe, states, recommends }
    }

    pub fn state(&self, node: NodeId) -> &State {
        &self.states[node as usize]
    }

    fn state_mut(&mut self, node: NodeId) -> &mut State {
        &mut self.states[node as usize]
    }

    pub fn set_candidate(&mut self, node: NodeId, version: VersionId) {
        let state = self.state_mut(node);
        (state.candidate, state.judged) = (Some(version), Some(version));
    }

    /// Marks a package as being there already; it stays as it is.
    pub fn set_current(&mut self, node: NodeId, version: VersionId) {
        self.set_candidate(node, version);
        let state = self.state_mut(node);
        (state.current, state.install, state.protected) = (Some(version), Some(version), true);
    }

    /// Marks a package as left out on purpose.
    pub fn set_ghost(&mut self, node: NodeId) {
        let state = self.state_mut(node);
        (state.candidate, state.judged, state.ghost) = (None, None, true);
    }

    fn chosen(&self, node: NodeId, when: When) -> Option<VersionId> {
        let state = self.state(node);
        match when {
            When::Now => state.current,
            When::Then => state.install,
            When::Candidates => state.judged,
        }
    }

    /// Whether one atom of a relation of `owner` is met; for a negative one, whether nothing stands against it.
    pub fn holds(&self, dep: &Dep, owner: NodeId, when: When) -> bool {
        let negative = dep.kind.is_negative();
        if !negative && self.state(dep.target).ghost {
            return true;
        }
        let own = |node: NodeId| negative && node == owner;
        let direct =
            !own(dep.target) && self.chosen(dep.target, when).is_some_and(|version| self.universe.fits(dep, version));
        let found = direct
            || self.universe.nodes[dep.target as usize].providers.iter().any(|provider| {
                let node = self.universe.owner(provider.version);
                let there = if self.state(node).ghost {
                    !negative
                } else {
                    self.chosen(node, when) == Some(provider.version) && !own(node)
                };
                there && self.universe.fits_provided(dep, provider)
            });
        found != negative
    }

    pub fn group_holds(&self, group: &[Dep], owner: NodeId, when: When) -> bool {
        group.iter().any(|dep| self.holds(dep, owner, when))
    }

    pub fn is_important(&self, dep: &Dep) -> bool {
        dep.kind.is_critical() || self.recommends && dep.kind == super::universe::Kind::Recommends
    }

    /// Whether the version that will be there has a relation that will not hold. What is there already is not asked
    /// for its needs: something may have been left out below on purpose.
    pub fn is_broken(&self, node: NodeId) -> bool {
        let State { install: Some(version), current, .. } = *self.state(node) else { return false };
        self.universe.groups(version).any(|group| {
            let kind = group[0].kind;
            let counts = if current.is_some() { kind.is_negative() } else { kind.is_critical() };
            counts && !self.group_holds(group, node, When::Then)
        })
    }

    fn is_policy_broken(&self, node: NodeId) -> bool {
        self.state(node).install.is_some_and(|version| {
            self.universe
                .groups(version)
                .any(|group| self.is_important(&group[0]) && !self.group_holds(group, node, When::Then))
        })
    }

    /// Packages that will be there, broken.
    pub fn broken(&self) -> Vec<NodeId> {
        (0..self.states.len() as NodeId).filter(|node| self.is_broken(*node)).collect()
    }

    fn may_change(&self, node: NodeId, mode: Mode, depth: usize) -> bool {
        let state = self.state(node);
        let named = &self.universe.nodes[node as usize];
        if depth > DEPTH || named.versions.is_empty() {
            return false;
        }
        if state.mode == mode {
            return true;
        }
        !state.protected && !(mode == Mode::Delete && (named.essential || named.important))
    }

    /// Leaves a package as it is.
    pub fn keep(&mut self, node: NodeId) -> bool {
        if !self.may_change(node, Mode::Keep, 0) {
            return false;
        }
        let state = self.state_mut(node);
        if state.mode != Mode::Keep {
            state.mode = Mode::Keep;
            state.install = state.current;
            state.judged = state.candidate;
        }
        true
    }

    /// Takes a package out.
    pub fn delete(&mut self, node: NodeId) -> bool {
        if !self.may_change(node, Mode::Delete, 0) {
            return false;
        }
        let state = self.state(node);
        if state.mode == Mode::Delete || state.install.is_none() {
            return true;
        }
        if state.current.is_none() && !state.auto {
            return false;
        }
        let state = self.state_mut(node);
        state.mode = if state.current.is_some() { Mode::Delete } else { Mode::Keep };
        state.install = None;
        state.judged = state.candidate;
        true
    }

    pub fn protect(&mut self, node: NodeId) {
        self.state_mut(node).protected = true;
    }

    /// Replaces all marks by a solution.
    pub fn accept(&mut self, solution: &[(NodeId, VersionId)], requests: &[NodeId]) {
        for state in &mut self.states {
            (state.mode, state.install, state.auto) = (Mode::Keep, state.current, true);
        }
        for (node, version) in solution {
            let requested = requests.contains(node);
            let state = self.state_mut(*node);
            if state.current.is_none() {
                (state.mode, state.install, state.auto) = (Mode::Install, Some(*version), !requested);
            }
        }
    }

    /// Marks what was asked for, without what it needs.
    pub fn request(&mut self, node: NodeId) {
        self.protect(node);
        self.change(node, true);
    }

    fn change(&mut self, node: NodeId, requested: bool) {
        let state = self.state_mut(node);
        if state.protected && state.install.is_some() && state.install == state.candidate {
            return;
        }
        state.mode = if state.candidate == state.current { Mode::Keep } else { Mode::Install };
        state.install = state.candidate;
        state.judged = state.candidate;
        state.auto = !requested && state.current.is_none();
    }

    fn drop_candidate(&mut self, node: NodeId) {
        let state = self.state_mut(node);
        state.candidate = state.install;
    }

    fn drop_install(&mut self, node: NodeId) {
        let state = self.state_mut(node);
        if state.mode == Mode::Keep && state.install == state.candidate && state.candidate == state.current {
            return;
        }
        state.install = state.current;
        state.mode = Mode::Keep;
        state.judged = state.candidate;
        state.candidate = state.install;
    }

    /// Marks a package; with `needs`, also what it needs. `requested` packages go on where others give up.
    pub fn install(&mut self, node: NodeId, needs: bool, depth: usize, requested: bool) -> bool {
        if !requested && !self.may_change(node, Mode::Install, depth) {
            return false;
        }
        let state = self.state(node);
        let (Some(candidate), protected, current) = (state.candidate, state.protected, state.current) else {
            return false;
        };
        if current == Some(candidate) {
            // What lies below stays as it is, so its needs are met there.
            return true;
        }
        if !protected && state.mode == Mode::Install && !self.is_broken(node) && !self.is_policy_broken(node) {
            return true;
        }
        if needs && !self.is_possible(node, candidate) {
            return false;
        }
        if requested {
            self.change(node, true);
        }
        let give_up = !protected && !requested;
        let mut failed = false;
        let (mut positive, mut negative) = (Vec::new(), Vec::new());
        if needs {
            for group in self.universe.groups(candidate) {
                let met = group.iter().any(|dep| self.holds(dep, node, When::Then));
                if met && !protected || !self.is_important(&group[0]) {
                    continue;
                }
                if group[0].kind.is_negative() { &mut negative } else { &mut positive }.push(group);
            }
            if !self.drive_out(node, &negative, protected, requested) {
                if give_up {
                    return false;
                }
                failed = true;
            }
        }
        if !requested {
            self.change(node, false);
        }
        if !needs {
            return !failed;
        }
        self.protect(node);
        let met = self.meet(node, &positive, depth, protected, requested);
        self.state_mut(node).protected = protected;
        if !met {
            if give_up {
                self.drop_install(node);
                return false;
            }
            failed = true;
        }
        !failed
    }

    /// Whether every relation of a version can be met by what is marked or by candidates; if not, the version is no
    /// candidate any longer.
    fn is_possible(&mut self, node: NodeId, version: VersionId) -> bool {
        let hopeless = self.universe.groups(version).any(|group| {
            let kind = group[0].kind;
            kind.is_critical()
                && !kind.is_negative()
                && !self.group_holds(group, node, When::Then)
                && !self.group_holds(group, node, When::Candidates)
        });
        if hopeless {
            let state = self.state_mut(node);
            if !state.protected {
                state.candidate = None;
                state.mode = Mode::Keep;
            }
        }
        !hopeless
    }

    /// Makes what a package cannot live with give way.
    fn drive_out(&mut self, node: NodeId, negative: &[&'a [Dep]], protected: bool, requested: bool) -> bool {
        let mut done = true;
        for group in negative {
            for enemy in self.solutions(group, node) {
                let other = self.universe.owner(enemy);
                if self.state(other).candidate != Some(enemy) {
                    continue;
                }
                let gives_way = if self.state(other).current == Some(enemy) {
                    false
                } else if self.state(other).mode == Mode::Install {
                    self.keep(other)
                } else {
                    true
                };
                if !gives_way {
                    done = false;
                    if !protected && !requested {
                        return false;
                    }
                } else if protected {
                    self.drop_candidate(other);
                    self.protect(other);
                }
            }
        }
        done
    }

    /// Installs what a package needs.
    fn meet(&mut self, node: NodeId, positive: &[&'a [Dep]], depth: usize, protected: bool, requested: bool) -> bool {
        let mut done = true;
        for group in positive {
            let critical = group[0].kind.is_critical();
            let mut met = self.group_holds(group, node, When::Then);
            if met {
                if protected && critical {
                    done &= self.pass_protection(group, node, depth);
                }
                continue;
            }
            let solutions = self.solutions(group, node);
            for version in &solutions {
                let other = self.universe.owner(*version);
                if self.state(other).candidate != Some(*version) {
                    continue;
                }
                if protected && critical && solutions.len() == 1 {
                    if !self.install(other, false, depth + 1, false) {
                        continue;
                    }
                    self.protect(other);
                }
                if self.install(other, true, depth + 1, false) {
                    met = true;
                    break;
                }
            }
            if !met && critical {
                done = false;
                if !protected && !requested {
                    return false;
                }
            }
        }
        done
    }

    /// What alone can meet a need of something protected is protected, too.
    fn pass_protection(&mut self, group: &[Dep], node: NodeId, depth: usize) -> bool {
        let mut possible: Vec<VersionId> = Vec::new();
        for dep in group {
            for version in self.universe.targets(dep, node) {
                let state = self.state(self.universe.owner(version));
                let there = [state.candidate, state.current].contains(&Some(version));
                if there && !(state.protected && self.is_ruled_out(version)) && !possible.contains(&version) {
                    possible.push(version);
                }
            }
        }
        let [only] = possible[..] else { return true };
        let other = self.universe.owner(only);
        if self.state(other).protected || self.is_met_by_ghost(group) {
            return true;
        }
        self.protect(other);
        self.install(other, true, depth + 1, false)
    }

    pub fn is_met_by_ghost(&self, group: &[Dep]) -> bool {
        group.iter().any(|dep| {
            let mut providers = self.universe.nodes[dep.target as usize].providers.iter();
            let ghost = |version: VersionId| self.state(self.universe.owner(version)).ghost;
            self.state(dep.target).ghost
                || providers.any(|provider| ghost(provider.version) && self.universe.fits_provided(dep, provider))
        })
    }

    /// Whether a decision against a package stands.
    fn is_ruled_out(&self, version: VersionId) -> bool {
        let state = self.state(self.universe.owner(version));
        state.protected && (state.mode == Mode::Delete || state.mode == Mode::Keep && state.current.is_none())
    }

    /// Candidates that a group of alternatives means, best first.
    fn solutions(&self, group: &[Dep], node: NodeId) -> Vec<VersionId> {
        let (mut there, mut new) = (Vec::new(), Vec::new());
        for dep in group {
            let mut versions = self.universe.targets(dep, node);
            versions.retain(|version| self.state(self.universe.owner(*version)).candidate == Some(*version));
            versions.sort_by_key(|version| self.rank(*version, dep.target));
            for version in versions {
                let state = self.state(self.universe.owner(version));
                if state.current.is_some() { &mut there } else { &mut new }.push(version);
            }
        }
        there.append(&mut new);
        there.dedup();
        if !group[0].kind.is_negative() {
            there.retain(|version| !self.is_ruled_out(*version));
        }
        there
    }

    /// The order among providers of `target`, best first.
    fn rank(&self, version: VersionId, target: NodeId) -> impl Ord + use<> {
        let node = self.universe.owner(version);
        (!self.state(node).protected, self.worth(version, target), std::cmp::Reverse(node))
    }

    /// What decides among providers of `target` whatever else is marked, best first.
    pub fn worth(&self, version: VersionId, target: NodeId) -> impl Ord + use<> {
        let node = self.universe.owner(version);
        let (state, named) = (self.state(node), &self.universe.nodes[node as usize]);
        let wanted = self.universe.name(target);
        let namesake = wanted.split_once(':').map_or(wanted, |(name, _)| name) == &*named.name;
        (
            state.current.is_none(),
            !namesake,
            !named.essential,
            !named.important,
            self.universe.versions[version as usize].priority,
        )
    }
}
