//! A complete search, for requests that marking and repairing cannot meet.
//!
//! apt-get 3.0 does the same: where the classic solver fails it asks the new one, which decides (every package that is
//! wanted, its needs one after the other, single choices first), follows what each decision implies, and goes back to
//! the last choice when two implications clash. The order of choices is kept as far as it is known.

use std::collections::VecDeque;

use super::mark::Marks;
use super::universe::{NodeId, VersionId};

type ClauseId = u32;

/// Choices that are taken back before the search is given up; apt gives up after ten seconds.
const SETBACKS: usize = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Open,
    Wanted,
    Refused,
}

/// If `reason` is wanted, one of `solutions` is; or none of them, if `negative`.
#[derive(Debug)]
struct Clause {
    reason: NodeId,
    solutions: Vec<NodeId>,
    optional: bool,
    negative: bool,
    /// Nothing that is there already can meet it.
    new: bool,
}

#[derive(Debug, Clone, Copy)]
struct Work {
    clause: ClauseId,
    depth: usize,
    /// Solutions that were open or wanted.
    size: usize,
}

/// A step that can be taken back.
#[derive(Debug)]
struct Step {
    decided: Option<NodeId>,
    work: Option<Work>,
}

pub(super) struct Search<'m, 'a> {
    marks: &'m Marks<'a>,
    decisions: Vec<Decision>,
    discovered: Vec<bool>,
    /// By package: what it implies, and what speaks of it.
    own: Vec<Vec<ClauseId>>,
    about: Vec<Vec<ClauseId>>,
    clauses: Vec<Clause>,
    steps: Vec<Step>,
    choices: Vec<usize>,
    news: VecDeque<NodeId>,
    heap: Vec<Work>,
}

/// The packages that meet the request, those below included.
pub(super) fn search(marks: &Marks<'_>, requests: &[NodeId]) -> Option<Vec<(NodeId, VersionId)>> {
    let size = marks.states.len();
    let mut search = Search {
        marks,
        decisions: vec![Decision::Open; size],
        discovered: vec![false; size],
        own: vec![Vec::new(); size],
        about: vec![Vec::new(); size],
        clauses: Vec::new(),
        steps: Vec::new(),
        choices: Vec::new(),
        news: VecDeque::new(),
        heap: Vec::new(),
    };
    let below = (0..size as NodeId).filter(|node| marks.state(*node).current.is_some());
    for node in below.chain(requests.iter().copied()) {
        if marks.state(node).candidate.is_none() || !search.decide(node, true) {
            return None;
        }
    }
    if !search.solve() {
        return None;
    }
    let wanted = |node: &NodeId| search.decisions[*node as usize] == Decision::Wanted;
    let found = (0..size as NodeId).filter(wanted);
    Some(found.filter_map(|node| Some((node, marks.state(node).candidate?))).collect())
}

impl Search<'_, '_> {
    fn decision(&self, node: NodeId) -> Decision {
        self.decisions[node as usize]
    }

    fn clause(&self, id: ClauseId) -> &Clause {
        &self.clauses[id as usize]
    }

    /// False if the contrary is decided.
    fn decide(&mut self, node: NodeId, wanted: bool) -> bool {
        let decision = if wanted { Decision::Wanted } else { Decision::Refused };
        match self.decision(node) {
            Decision::Open => {
                self.decisions[node as usize] = decision;
                self.steps.push(Step { decided: Some(node), work: None });
                self.news.push_back(node);
                true
            }
            decided => decided == decision,
        }
    }

    /// Follows what the decisions imply; false if two of them clash.
    fn propagate(&mut self) -> bool {
        while let Some(node) = self.news.pop_front() {
            match self.decision(node) {
                Decision::Wanted => {
                    self.discover(node);
                    for at in 0..self.own[node as usize].len() {
                        if !self.add(self.own[node as usize][at], self.choices.len()) {
                            return false;
                        }
                    }
                    for at in 0..self.about[node as usize].len() {
                        let clause = self.clause(self.about[node as usize][at]);
                        let reason = clause.reason;
                        if clause.negative && !self.decide(reason, false) {
                            return false;
                        }
                    }
                }
                Decision::Refused => {
                    for at in 0..self.about[node as usize].len() {
                        if !self.narrow(self.about[node as usize][at]) {
                            return false;
                        }
                    }
                }
                Decision::Open => {}
            }
        }
        true
    }

    /// One of a clause's solutions was refused.
    fn narrow(&mut self, id: ClauseId) -> bool {
        let clause = self.clause(id);
        let (reason, optional) = (clause.reason, clause.optional);
        if clause.negative || self.decision(reason) == Decision::Refused {
            return true;
        }
        let mut left = clause.solutions.iter().copied().filter(|node| self.decision(*node) != Decision::Refused);
        match (left.next(), left.next()) {
            (None, _) => optional || self.decide(reason, false),
            (Some(only), None) if self.decision(reason) == Decision::Wanted => {
                if optional {
                    self.add(id, self.choices.len())
                } else {
                    self.decide(only, true)
                }
            }
            _ => true,
        }
    }

    fn discover(&mut self, first: NodeId) {
        let mut queue = VecDeque::from([first]);
        while let Some(node) = queue.pop_front() {
            if std::mem::replace(&mut self.discovered[node as usize], true) {
                continue;
            }
            self.translate(node);
            for id in &self.own[node as usize] {
                let open = |node: &&NodeId| self.decision(**node) != Decision::Refused;
                queue.extend(self.clause(*id).solutions.iter().filter(open));
            }
        }
    }

    /// The relations of a package as clauses.
    fn translate(&mut self, node: NodeId) {
        let (marks, universe) = (self.marks, self.marks.universe);
        let Some(version) = marks.state(node).candidate else { return };
        let below = marks.state(node).current.is_some();
        for group in universe.groups(version) {
            let kind = group[0].kind;
            let ignored = !kind.is_negative() && (below || marks.is_met_by_ghost(group));
            if ignored || !marks.is_important(&group[0]) {
                continue;
            }
            let mut solutions = Vec::new();
            for dep in group {
                let mut targets = universe.targets(dep, node);
                targets.retain(|target| marks.state(universe.owner(*target)).candidate == Some(*target));
                targets.sort_by_cached_key(|target| {
                    let (rank, owner) = (marks.worth(*target, dep.target), universe.owner(*target));
                    (rank, universe.name(owner))
                });
                for target in targets {
                    let owner = universe.owner(target);
                    if !solutions.contains(&owner) {
                        solutions.push(owner);
                    }
                }
            }
            solutions.sort_by_key(|node| marks.state(*node).current.is_none());
            let new = solutions.iter().all(|node| marks.state(*node).current.is_none());
            let id = self.clauses.len() as ClauseId;
            for solution in &solutions {
                self.about[*solution as usize].push(id);
            }
            self.own[node as usize].push(id);
            let (optional, negative) = (!kind.is_critical(), kind.is_negative());
            self.clauses.push(Clause { reason: node, solutions, optional, negative, new });
        }
    }

    /// Takes up a clause whose reason is wanted.
    fn add(&mut self, id: ClauseId, depth: usize) -> bool {
        let clause = self.clause(id);
        if clause.negative {
            let refused = clause.solutions.clone();
            return refused.into_iter().all(|node| self.decide(node, false));
        }
        if let ([only], false) = (&clause.solutions[..], clause.optional) {
            let only = *only;
            return self.decide(only, true);
        }
        let size = clause.solutions.iter().filter(|node| self.decision(**node) != Decision::Refused).count();
        self.heap.push(Work { clause: id, depth, size });
        self.rise(self.heap.len() - 1);
        true
    }

    fn solve(&mut self) -> bool {
        let mut setbacks = 0;
        loop {
            while !self.propagate() {
                setbacks += 1;
                if setbacks > SETBACKS || !self.back() {
                    return false;
                }
            }
            let Some(work) = self.take() else { return true };
            self.steps.push(Step { decided: None, work: Some(work) });
            let clause = self.clause(work.clause);
            if clause.solutions.iter().any(|node| self.decision(*node) == Decision::Wanted) {
                continue;
            }
            let open = clause.solutions.iter().copied().find(|node| self.decision(*node) == Decision::Open);
            let optional = clause.optional;
            match open {
                Some(node) => {
                    if work.size > 1 || optional {
                        self.choices.push(self.steps.len());
                        // Taking the choice back brings the clause back, too.
                        self.steps.push(Step { decided: None, work: Some(work) });
                    }
                    if !self.decide(node, true) {
                        return false;
                    }
                }
                None if optional => {}
                None => {
                    setbacks += 1;
                    if setbacks > SETBACKS || !self.back() {
                        return false;
                    }
                }
            }
        }
    }

    /// Takes the last choice back and decides against it; false if there is none.
    fn back(&mut self) -> bool {
        let Some(start) = self.choices.pop() else { return false };
        self.news.clear();
        let mut choice = None;
        for step in self.steps.split_off(start).into_iter().rev() {
            if let Some(node) = step.decided {
                self.decisions[node as usize] = Decision::Open;
                choice = Some(node);
            }
            if let Some(work) = step.work {
                self.heap.push(work);
            }
        }
        let depth = self.choices.len();
        self.heap.retain(|work| work.depth <= depth);
        for at in (0..self.heap.len() / 2).rev() {
            self.sink(at);
        }
        choice.is_none_or(|node| self.decide(node, false))
    }

    /// Whether one piece of work comes after another one.
    fn is_later(&self, a: &Work, b: &Work) -> bool {
        let (x, y) = (self.clause(a.clause), self.clause(b.clause));
        let urgent = |work: &Work, clause: &Clause| !clause.optional && work.size < 2;
        if urgent(a, x) != urgent(b, y) {
            return urgent(b, y);
        }
        if x.optional != y.optional {
            return x.optional;
        }
        if x.new != y.new {
            return x.new;
        }
        if (a.size < 2) != (b.size < 2) {
            return b.size < 2;
        }
        a.size == 1 && b.size == 1 && x.solutions.len() < y.solutions.len()
    }

    // The heap of the C++ library, since its order among equals is part of apt's order.

    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.is_later(&self.heap[(at - 1) / 2], &self.heap[at]) {
            self.heap.swap((at - 1) / 2, at);
            at = (at - 1) / 2;
        }
    }

    /// Moves a hole down to a leaf, along the earlier children, and what was in it up again.
    fn sink(&mut self, top: usize) {
        let size = self.heap.len();
        let mut at = top;
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let child = if right < size {
                if self.is_later(&self.heap[right], &self.heap[left]) { left } else { right }
            } else if left < size {
                left
            } else {
                break;
            };
            self.heap.swap(at, child);
            at = child;
        }
        while at > top && self.is_later(&self.heap[(at - 1) / 2], &self.heap[at]) {
            self.heap.swap((at - 1) / 2, at);
            at = (at - 1) / 2;
        }
    }

    fn take(&mut self) -> Option<Work> {
        if self.heap.is_empty() {
            return None;
        }
        let work = self.heap.swap_remove(0);
        if !self.heap.is_empty() {
            self.sink(0);
        }
        Some(work)
    }
}
