//! A fresh placement for ranks with several slots: one replica graph that connects as many ranks as the
//! redundant slots allow, whose even split is already balanced.
//!
//! Connectivity is what lets later splits balance other loads without moving a weight; the balanced even
//! split is what makes a plan hold when nobody re-splits it.

use super::problem::{LayerProblem, Placement, Replicas};
use super::swap::swap_singles;

/// Places `counts[e]` replicas of every expert. Any valid shape has a result.
pub(super) fn place_connected(problem: &LayerProblem, counts: &[u16]) -> Placement {
    let mut state = State::new(problem, counts);
    let (replicated, single) = heaviest_first(&state.part, counts);
    for expert in replicated {
        for _ in 0..counts[usize::from(expert)] {
            state.place_replica(expert);
        }
    }
    for expert in single {
        state.place_single(expert);
    }
    state.finish()
}

/// The same, starting from what runs: experts stay on their ranks where they may, and what has to move moves as
/// above. Not always as good as a placement from nothing, but far fewer slots change.
pub(super) fn place_near(problem: &LayerProblem, counts: &[u16], running: &Placement) -> Placement {
    let mut state = State::new(problem, counts);
    let holders = Replicas::of(running, problem.experts());
    let (replicated, single) = heaviest_first(&state.part, counts);
    for &expert in &replicated {
        let mut left = counts[usize::from(expert)];
        for &rank in &holders.rank[holders.range(expert.into())] {
            // A replica that connects nothing new is better somewhere else.
            if left > 0 && state.has_room(rank.into()) && !state.reaches(expert, rank.into()) {
                state.put_replica(rank.into(), expert);
                left -= 1;
            }
        }
    }
    for &expert in &replicated {
        let placed = |rank: &usize| state.placement.holds(*rank, expert);
        let have = (0..problem.ranks).filter(placed).count();
        for _ in have..counts[usize::from(expert)].into() {
            state.place_replica(expert);
        }
    }
    let mut displaced = Vec::new();
    for expert in single {
        let held = holders.rank[holders.range(expert.into())].iter().map(|&rank| usize::from(rank));
        let home = held
            .filter(|&rank| state.has_room(rank))
            .min_by(|&a, &b| state.rank_load[a].total_cmp(&state.rank_load[b]));
        match home {
            Some(rank) => state.put(rank, expert),
            None => displaced.push(expert),
        }
    }
    for expert in displaced {
        state.place_single(expert);
    }
    state.finish()
}

/// The experts with several replicas and those with one, each with the largest replica first.
fn heaviest_first(part: &[f64], counts: &[u16]) -> (Vec<u16>, Vec<u16>) {
    let mut order: Vec<u16> = (0..).take(counts.len()).collect();
    order.sort_by(|&a, &b| part[usize::from(b)].total_cmp(&part[usize::from(a)]).then(a.cmp(&b)));
    order.into_iter().partition(|&expert| counts[usize::from(expert)] > 1)
}

struct State<'a> {
    problem: &'a LayerProblem,
    counts: &'a [u16],
    /// `[experts]`: load of one replica under the even split.
    part: Vec<f64>,
    placement: Placement,
    /// `[ranks]`: load under the even split.
    rank_load: Vec<f64>,
    /// `[ranks]`: replicas of replicated experts.
    replicas: Vec<u16>,
    /// `[ranks]`: name of the rank's component: its lowest rank.
    component: Vec<u16>,
    /// `[ranks]`: ranks of the component, valid at its name.
    size: Vec<u16>,
}

impl<'a> State<'a> {
    fn new(problem: &'a LayerProblem, counts: &'a [u16]) -> Self {
        let ranks = u16::try_from(problem.ranks).expect("ranks fit 16 bits");
        State {
            problem,
            counts,
            part: problem.loads.iter().zip(counts).map(|(w, &c)| w / f64::from(c)).collect(),
            placement: Placement::empty(problem.ranks),
            rank_load: vec![0.0; problem.ranks],
            replicas: vec![0; problem.ranks],
            component: (0..ranks).collect(),
            size: vec![1; problem.ranks],
        }
    }

    fn has_room(&self, rank: usize) -> bool {
        self.placement.of_rank[rank].len() < self.problem.slots
    }

    /// Whether the expert is in the rank's component already.
    fn reaches(&self, expert: u16, rank: usize) -> bool {
        let component = self.component[rank];
        (0..self.problem.ranks).any(|r| self.component[r] == component && self.placement.holds(r, expert))
    }

    /// A rank of a component that the expert is not in yet; of those the one with the fewest replicas, the
    /// smallest component, the least load.
    fn place_replica(&mut self, expert: u16) {
        let mut reached: Vec<u16> = Vec::new();
        for rank in 0..self.problem.ranks {
            if self.placement.holds(rank, expert) {
                reached.push(self.component[rank]);
            }
        }
        let key = |rank: usize| {
            let component = self.component[rank];
            (reached.contains(&component), self.replicas[rank], self.size[usize::from(component)])
        };
        let best = (0..self.problem.ranks)
            .filter(|&rank| self.has_room(rank) && !self.placement.holds(rank, expert))
            .min_by(|&a, &b| key(a).cmp(&key(b)).then(self.rank_load[a].total_cmp(&self.rank_load[b])));
        let rank = best.unwrap_or_else(|| self.make_room(expert));
        self.put_replica(rank, expert);
    }

    /// Puts a replica on a rank and joins the components it connects.
    fn put_replica(&mut self, rank: usize, expert: u16) {
        let other = (0..self.problem.ranks).find(|&other| self.placement.holds(other, expert));
        self.put(rank, expert);
        self.replicas[rank] += 1;
        if let Some(other) = other {
            self.join(self.component[other], self.component[rank]);
        }
    }

    fn finish(self) -> Placement {
        let mut placement = self.placement;
        swap_singles(self.problem, self.counts, &mut placement);
        placement.sort();
        debug_assert!(placement.of_rank.iter().all(|held| held.len() <= self.problem.slots));
        placement
    }

    /// Every rank with a free slot holds the expert already: moves another expert there from a full rank. A
    /// full rank without the expert has at least two experts that the other, with a free slot, has not.
    fn make_room(&mut self, expert: u16) -> usize {
        let to = (0..self.problem.ranks).find(|&rank| self.has_room(rank)).expect("slots hold all replicas");
        let from = (0..self.problem.ranks)
            .find(|&rank| !self.placement.holds(rank, expert))
            .expect("no expert has more replicas than ranks");
        let held = &self.placement.of_rank[from];
        let mover = *held
            .iter()
            .find(|&&other| !self.placement.holds(to, other))
            .expect("a full rank has more experts than one with a free slot");
        self.placement.of_rank[from].retain(|&other| other != mover);
        self.rank_load[from] -= self.part[usize::from(mover)];
        self.put(to, mover);
        if self.counts[usize::from(mover)] > 1 {
            self.replicas[from] -= 1;
            self.replicas[to] += 1;
            // The components are now an approximation: they steer, nothing relies on them.
            self.join(self.component[from], self.component[to]);
        }
        from
    }

    fn put(&mut self, rank: usize, expert: u16) {
        self.placement.of_rank[rank].push(expert);
        self.rank_load[rank] += self.part[usize::from(expert)];
    }

    fn join(&mut self, a: u16, b: u16) {
        if a == b {
            return;
        }
        let (keep, drop) = (a.min(b), a.max(b));
        self.size[usize::from(keep)] += self.size[usize::from(drop)];
        self.component.iter_mut().filter(|name| **name == drop).for_each(|name| *name = keep);
    }

    /// Longest processing time first: the least loaded rank with a free slot.
    fn place_single(&mut self, expert: u16) {
        let rank = (0..self.problem.ranks)
            .filter(|&rank| self.has_room(rank))
            .min_by(|&a, &b| self.rank_load[a].total_cmp(&self.rank_load[b]))
            .expect("slots hold all experts");
        self.put(rank, expert);
    }
}

#[cfg(test)]
mod tests {
    use super::super::replicas::{Worth, replica_counts};
    use super::super::split::exact_split;
    use super::*;

    /// Components of ranks that share an expert.
    fn components(placement: &Placement, experts: usize) -> usize {
        let replicas = Replicas::of(placement, experts);
        let mut name: Vec<u16> = (0..).take(placement.of_rank.len()).collect();
        for expert in 0..experts {
            let ranks = &replicas.rank[replicas.range(expert)];
            for &rank in &ranks[1..] {
                let (keep, drop) = (name[usize::from(ranks[0])], name[usize::from(rank)]);
                name.iter_mut().filter(|n| **n == drop).for_each(|n| *n = keep);
            }
        }
        name.sort_unstable();
        name.dedup();
        name.len()
    }

    #[track_caller]
    fn check(ranks: usize, slots: usize, loads: Vec<f64>, expected_components: usize, level: f64) {
        let problem = LayerProblem::plain(ranks, slots, loads);
        let counts = replica_counts(&problem, Worth::Variance);
        let placement = place_connected(&problem, &counts);
        assert_eq!(components(&placement, problem.experts()), expected_components);
        let split = exact_split(&problem, &Replicas::of(&placement, problem.experts()));
        assert!(split.level <= level * problem.mean(), "{} > {level}", split.level / problem.mean());
    }

    fn ramp(experts: u16) -> Vec<f64> {
        (0..experts).map(|e| f64::from(e % 17) * 3.0 + f64::from(e % 5) + 1.0).collect()
    }

    #[test]
    fn one_redundant_slot_per_rank_connects_all_ranks() {
        check(32, 9, ramp(256), 1, 1.0000001);
        check(8, 9, ramp(64), 1, 1.0000001);
        check(64, 5, ramp(256), 1, 1.001);
    }

    #[test]
    fn near_the_running_placement_little_moves() {
        let problem = LayerProblem::plain(32, 9, ramp(256));
        let counts = replica_counts(&problem, Worth::Variance);
        let running = place_connected(&problem, &counts);
        assert_eq!(place_near(&problem, &counts, &running), running);
        let mut drifted = problem.clone();
        drifted.loads.iter_mut().step_by(7).for_each(|load| *load *= 1.2);
        let counts = replica_counts(&drifted, Worth::Variance);
        let near = place_near(&drifted, &counts, &running);
        assert!(running.moves_to(&near) < 120, "{} of 288 slots move", running.moves_to(&near));
        let split = exact_split(&drifted, &Replicas::of(&near, 256));
        assert!(split.level <= 1.0001 * drifted.mean());
    }

    #[test]
    fn no_redundant_slot_connects_nothing() {
        check(32, 8, ramp(256), 32, 1.05);
    }

    #[test]
    fn all_load_on_one_expert_puts_it_everywhere() {
        let mut loads = vec![0.0; 16];
        loads[5] = 7.0;
        check(4, 5, loads, 1, 1.0);
    }
}
