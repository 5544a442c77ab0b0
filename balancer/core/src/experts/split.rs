//! The best split of every expert's load over its replicas, for a fixed placement.
//!
//! The optimum is `M* = max over rank sets A of (load of the experts whose replicas all live in A) / (speed of A)`
//! (max-flow min-cut). It is found by discrete Newton: a max-flow at level M either routes everything, and M
//! is the optimum, or leaves a min cut whose set A proves that M must be at least A's own mean, which is the
//! next level. Levels rise strictly; two to five flows are usual. The last cut is the certificate. The first level is
//! that of the heaviest component of the replica graph or single rank, which mostly is the optimum already.

use super::components::Components;
use super::problem::{LayerProblem, Replicas};

/// The optimum of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExactSplit {
    /// `M*`: the least possible level (load by speed) of the highest rank.
    pub(super) level: f64,
    /// Ranks whose exclusive experts alone give each of them `level`; every rank when the layer is
    /// balanced. Ascending.
    pub(super) critical: Vec<u16>,
    /// `[replicas]`: a split that reaches `level`. It is a vertex: exact here, and a poor guess about the
    /// next window (see `regularise`).
    pub(super) load: Vec<f64>,
}

/// Flow below this part of the layer's load counts as none: far above rounding, far below any decision.
const FLOW_RESOLUTION: f64 = 1e-12;

/// Solves the split exactly.
pub(super) fn exact_split(problem: &LayerProblem, replicas: &Replicas) -> ExactSplit {
    let mut flow = Flow::new(problem, replicas);
    let highest = Components::of(problem, replicas).highest(problem, replicas);
    let (mut level, mut critical) = (highest.level, highest.ranks);
    flow.raise_level(level);
    // Each cut is another set of ranks with a strictly higher mean, so the loop ends; the limit only guards
    // against levels that differ by rounding alone.
    for _ in 0..4 * problem.ranks() + 16 {
        let Some(cut) = flow.route() else { break };
        let needed = flow.mean_of(&cut);
        if needed <= level {
            break;
        }
        level = needed;
        critical = cut;
        flow.raise_level(level);
    }
    flow.place_rest();
    ExactSplit { level, critical, load: flow.load }
}

/// A bipartite flow: replicated experts supply their load, their ranks take up to the level.
struct Flow<'a> {
    replicas: &'a Replicas,
    /// `[ranks]`.
    speed: &'a [f64],
    /// `[ranks]`: load of the experts that are only there.
    base: Vec<f64>,
    /// `[ranks]`: what the rank may still take.
    room: Vec<f64>,
    level: f64,
    /// Experts with two or more replicas and some load, heaviest first.
    shared: Vec<u16>,
    /// `[experts]`: load that is not routed yet.
    supply: Vec<f64>,
    /// `[replicas]`.
    load: Vec<f64>,
    /// `[ranks + 1]`, `[replicas of shared experts]`: the replicas of shared experts on each rank.
    on_rank_start: Vec<u32>,
    on_rank: Vec<u32>,
    resolution: f64,
    // The search tree of the last breadth-first walk.
    queue: Vec<u16>,
    seen_rank: Vec<bool>,
    seen_expert: Vec<bool>,
    /// `[ranks]`: the replica over which the walk came to the rank.
    over: Vec<u32>,
    /// `[experts]`: the replica over which the walk came back to the expert; `u32::MAX` at a root.
    back: Vec<u32>,
    /// `[replicas]`.
    expert_of: Vec<u16>,
}

impl<'a> Flow<'a> {
    fn new(problem: &'a LayerProblem, replicas: &'a Replicas) -> Self {
        let (ranks, experts) = (problem.ranks(), problem.experts());
        let mut flow = Flow {
            replicas,
            speed: problem.deployment.speed(),
            base: vec![0.0; ranks],
            room: vec![0.0; ranks],
            level: 0.0,
            shared: Vec::new(),
            supply: vec![0.0; experts],
            load: vec![0.0; replicas.rank.len()],
            on_rank_start: vec![0; ranks + 1],
            on_rank: Vec::new(),
            resolution: problem.total() * FLOW_RESOLUTION,
            queue: Vec::new(),
            seen_rank: vec![false; ranks],
            seen_expert: vec![false; experts],
            over: vec![0; ranks],
            back: vec![u32::MAX; experts],
            expert_of: vec![0; replicas.rank.len()],
        };
        for &expert in &problem.heaviest_first {
            let range = replicas.range(expert.into());
            let load = problem.loads[usize::from(expert)];
            flow.expert_of[range.clone()].fill(expert);
            if range.len() == 1 {
                flow.load[range.start] = load;
                flow.base[usize::from(replicas.rank[range.start])] += load;
            } else if load > 0.0 {
                flow.shared.push(expert);
                flow.supply[usize::from(expert)] = load;
                range.for_each(|at| flow.on_rank_start[usize::from(replicas.rank[at]) + 1] += 1);
            }
        }
        flow.list_by_rank();
        flow.room.iter_mut().zip(&flow.base).for_each(|(room, base)| *room = -base);
        flow
    }

    fn list_by_rank(&mut self) {
        for rank in 1..self.on_rank_start.len() {
            self.on_rank_start[rank] += self.on_rank_start[rank - 1];
        }
        let mut next = self.on_rank_start.clone();
        self.on_rank = vec![0; next[next.len() - 1] as usize];
        for at in self.shared.iter().flat_map(|&expert| self.replicas.range(expert.into())) {
            let next = &mut next[usize::from(self.replicas.rank[at])];
            self.on_rank[*next as usize] = at as u32;
            *next += 1;
        }
    }

    fn raise_level(&mut self, level: f64) {
        let more = level - self.level;
        self.room.iter_mut().zip(self.speed).for_each(|(room, speed)| *room += more * speed);
        self.level = level;
    }

    /// Routes all that fits. What does not fit leaves a cut: the ranks reachable from unrouted load.
    fn route(&mut self) -> Option<Vec<u16>> {
        self.route_directly();
        loop {
            let Some(rank) = self.walk() else {
                let unrouted: f64 = self.shared.iter().map(|&e| self.supply[usize::from(e)]).sum();
                if unrouted <= self.resolution * self.shared.len() as f64 {
                    return None;
                }
                return Some((0u16..).zip(&self.seen_rank).filter(|(_, s)| **s).map(|(r, _)| r).collect());
            };
            self.augment(rank);
        }
    }

    /// The paths of length one, evenly first: they carry nearly everything.
    fn route_directly(&mut self) {
        for &expert in &self.shared {
            let range = self.replicas.range(expert.into());
            let end = range.end;
            for at in range {
                let rank = usize::from(self.replicas.rank[at]);
                let supply = &mut self.supply[usize::from(expert)];
                let part = (*supply / (end - at) as f64).min(self.room[rank].max(0.0));
                self.load[at] += part;
                self.room[rank] -= part;
                *supply -= part;
            }
        }
    }

    /// Breadth first from every expert with unrouted load; returns the first rank with room.
    fn walk(&mut self) -> Option<usize> {
        self.seen_rank.fill(false);
        self.seen_expert.fill(false);
        self.queue.clear();
        for &expert in &self.shared {
            if self.supply[usize::from(expert)] > self.resolution {
                self.seen_expert[usize::from(expert)] = true;
                self.back[usize::from(expert)] = u32::MAX;
                self.queue.push(expert);
            }
        }
        let mut head = 0;
        while head < self.queue.len() {
            let expert = self.queue[head];
            head += 1;
            for at in self.replicas.range(expert.into()) {
                let rank = usize::from(self.replicas.rank[at]);
                if std::mem::replace(&mut self.seen_rank[rank], true) {
                    continue;
                }
                self.over[rank] = at as u32;
                if self.room[rank] > self.resolution {
                    return Some(rank);
                }
                let here = self.on_rank_start[rank] as usize..self.on_rank_start[rank + 1] as usize;
                for &replica in &self.on_rank[here] {
                    let other = self.expert_of[replica as usize];
                    if self.load[replica as usize] > self.resolution
                        && !std::mem::replace(&mut self.seen_expert[usize::from(other)], true)
                    {
                        self.back[usize::from(other)] = replica;
                        self.queue.push(other);
                    }
                }
            }
        }
        None
    }

    /// Pushes as much as the path to `rank` carries.
    fn augment(&mut self, rank: usize) {
        let mut amount = self.room[rank];
        let root = self.follow(rank, |flow, back| amount = amount.min(flow.load[back]));
        amount = amount.min(self.supply[root]);
        self.room[rank] -= amount;
        self.supply[root] -= amount;
        let mut at = rank;
        loop {
            let over = self.over[at] as usize;
            self.load[over] += amount;
            let expert = usize::from(self.expert_of[over]);
            if self.back[expert] == u32::MAX {
                return;
            }
            let back = self.back[expert] as usize;
            self.load[back] -= amount;
            at = usize::from(self.replicas.rank[back]);
        }
    }

    /// Walks the path from `rank` back to its root, showing every replica that gives load up.
    fn follow(&self, rank: usize, mut see: impl FnMut(&Self, usize)) -> usize {
        let mut at = rank;
        loop {
            let expert = usize::from(self.expert_of[self.over[at] as usize]);
            if self.back[expert] == u32::MAX {
                return expert;
            }
            let back = self.back[expert] as usize;
            see(self, back);
            at = usize::from(self.replicas.rank[back]);
        }
    }

    /// The level of a cut by itself: what its ranks hold alone, and the shared experts wholly inside.
    fn mean_of(&self, cut: &[u16]) -> f64 {
        let base: f64 = cut.iter().map(|&rank| self.base[usize::from(rank)]).sum();
        let shared: f64 = self
            .shared
            .iter()
            .filter(|&&expert| self.seen_expert[usize::from(expert)])
            .map(|&expert| {
                let routed: f64 = self.load[self.replicas.range(expert.into())].iter().sum();
                routed + self.supply[usize::from(expert)]
            })
            .sum();
        let speed: f64 = cut.iter().map(|&rank| self.speed[usize::from(rank)]).sum();
        (base + shared) / speed
    }

    /// Load too small to route goes to the expert's first replica, so that every split is complete.
    fn place_rest(&mut self) {
        for &expert in &self.shared {
            let rest = std::mem::take(&mut self.supply[usize::from(expert)]);
            self.load[self.replicas.range(expert.into()).start] += rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Placement;
    use super::super::problem::arbitrary::placed;
    use super::*;
    use good_lp::{
        Expression, Solution, Solver, SolverModel, clarabel, constraint, microlp, variable, variables,
    };
    use proptest::prelude::*;

    /// The same problem as a linear program.
    fn oracle(problem: &LayerProblem, replicas: &Replicas, solver: impl Solver) -> f64 {
        variables! { vars: level >= 0; }
        let split: Vec<_> = replicas.rank.iter().map(|_| vars.add(variable().min(0))).collect();
        let mut model = vars.minimise(level).using(solver);
        for (expert, &load) in problem.loads.iter().enumerate() {
            let sum: Expression = replicas.range(expert).map(|at| split[at]).sum();
            model = model.with(constraint!(sum == load));
        }
        for (rank, &speed) in problem.deployment.speed().iter().enumerate() {
            let on = |at: &usize| usize::from(replicas.rank[*at]) == rank;
            let sum: Expression = (0..split.len()).filter(on).map(|at| split[at]).sum();
            model = model.with(constraint!(sum <= speed * level));
        }
        model.solve().expect("every split problem is feasible").value(level)
    }

    #[track_caller]
    fn check(loads: &[f64], of_rank: &[&[u16]], level: f64, critical: &[u16]) {
        let problem = LayerProblem::uniform(of_rank.len(), 9, loads.to_vec());
        let placement = Placement::of_rows(9, of_rank);
        let split = exact_split(&problem, &Replicas::of(&placement, loads.len()));
        assert!((split.level - level).abs() < 1e-9, "level {}", split.level);
        assert_eq!(split.critical, critical);
    }

    #[test]
    fn the_critical_ranks_prove_the_level() {
        check(&[4.0, 1.0, 1.0], &[&[0, 1], &[0, 2]], 3.0, &[0, 1]);
        check(&[1.0, 9.0, 1.0], &[&[0, 1], &[0, 2]], 9.0, &[0]);
        check(&[4.0, 4.0, 1.0], &[&[0, 1], &[0, 1], &[2]], 4.0, &[0, 1]);
        check(&[0.0, 0.0], &[&[0, 1], &[0]], 0.0, &[0, 1]);
        check(&[8.0, 0.0], &[&[0, 1], &[0]], 4.0, &[0, 1]);
    }

    proptest! {
        #[test]
        fn the_exact_split_equals_the_linear_program((problem, placement) in placed()) {
            let replicas = Replicas::of(&placement, problem.experts());
            let split = exact_split(&problem, &replicas);
            let expected = oracle(&problem, &replicas, microlp);
            let other = oracle(&problem, &replicas, clarabel);
            prop_assert!((other - expected).abs() <= 1e-6 * expected.max(1.0), "microlp {expected}, clarabel {other}");
            prop_assert!((split.level - expected).abs() <= 1e-6 * expected.max(1.0), "{} {expected}", split.level);
            let highest = replicas.rank_loads(problem.ranks(), &split.load).into_iter().fold(0.0, f64::max);
            prop_assert!(highest <= split.level * (1.0 + 1e-9) + 1e-9, "{highest} > {}", split.level);
            for (expert, &load) in problem.loads.iter().enumerate() {
                let sum: f64 = split.load[replicas.range(expert)].iter().sum();
                prop_assert!((sum - load).abs() <= 1e-9 * load.max(1.0));
            }
            prop_assert!(split.load.iter().all(|&load| load >= 0.0));
            // The certificate: experts wholly inside the critical ranks load them to the level.
            let inside = |expert: &usize| {
                replicas.rank[replicas.range(*expert)].iter().all(|rank| split.critical.contains(rank))
            };
            let exclusive: f64 = (0..problem.experts()).filter(inside).map(|expert| problem.loads[expert]).sum();
            prop_assert!((exclusive / split.critical.len() as f64 - split.level).abs() <= 1e-9 * split.level.max(1.0));
        }
    }
}
