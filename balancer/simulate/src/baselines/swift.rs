//! vLLM-Ascend's Swift balancer: few changes to the running placement.
//!
//! Written anew after github.com/vllm-project/vllm-ascend (`eplb/core/policy/policy_swift_balancer.py`), without its
//! option of redundancy within nodes. Layers below [`IMBALANCE_THRESHOLD`] are left alone. Elsewhere the redundant
//! slots are handed out anew, each to the expert with the largest load at that point and to its least loaded rank;
//! then experts are swapped between the most loaded rank and another, at most one transfer between two ranks in
//! each direction, while a swap gains [`INCREMENT`] of the mean. Its estimate of a replica's load is kept as it is:
//! it counts `(n + 1) / (n + 2)` for the n-th redundant replica, which is too high.

use super::deployment::{Deployment, DeploymentError};
use super::flashlb::keep_slots;

/// The original's imbalance (max over mean) up to which a layer is left alone.
pub const IMBALANCE_THRESHOLD: f64 = 1.01;
/// The original's least gain of a swap, as a part of the mean load of a rank.
pub const INCREMENT: f64 = 0.01;
/// The original's limit of swaps per layer.
pub const SWAPS_MAX: usize = 100;
/// The original asks for a change when the sum of the layers' maxima falls below this part.
pub const WORTH: f64 = 0.95;

/// What the policy answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebalanced {
    /// Whether the policy finds that the change is worth it.
    pub worth: bool,
    /// `[layers][replicas]`.
    pub slots: Vec<Vec<u16>>,
}

/// Repairs the running placement of all layers.
#[derive(Debug, Clone)]
pub struct Swift {
    deployment: Deployment,
}

impl Swift {
    /// For layers of `experts` experts.
    pub fn new(experts: usize, deployment: Deployment) -> Result<Self, DeploymentError> {
        let deployment = deployment.global();
        deployment.validate(experts)?;
        Ok(Self { deployment })
    }

    /// `loads` is `[layers]` of `[experts]`; `current` is `[layers][replicas]`, rank after rank, no expert twice
    /// on a rank.
    pub fn rebalance(&self, loads: &[&[f64]], current: &[Vec<u16>]) -> Rebalanced {
        // As the original, the first layer's mean stands for all.
        let mean = loads.first().map_or(0.0, |loads| loads.iter().sum()) / self.deployment.gpus as f64;
        let (mut before, mut after) = (0.0, 0.0);
        let mut slots = Vec::with_capacity(current.len());
        for (loads, current) in loads.iter().zip(current) {
            let most = self.most_loaded(loads, current);
            before += most;
            let own_mean = loads.iter().sum::<f64>() / self.deployment.gpus as f64;
            let imbalance = if own_mean < 1e-9 { 1.0 } else { most / own_mean };
            if imbalance < IMBALANCE_THRESHOLD {
                after += most;
                slots.push(current.clone());
                continue;
            }
            let mut repair = Repair::new(loads, current, self.deployment);
            repair.place_redundant(loads);
            repair.swap(mean * INCREMENT);
            let reached = repair.load.iter().copied().fold(0.0, f64::max);
            after += reached;
            slots.push(if reached / mean < imbalance { repair.slots(current) } else { current.clone() });
        }
        Rebalanced { worth: after < WORTH * before, slots }
    }

    fn most_loaded(&self, loads: &[f64], slots: &[u16]) -> f64 {
        let mut count = vec![0u32; loads.len()];
        slots.iter().for_each(|&expert| count[usize::from(expert)] += 1);
        let part = |&expert: &u16| loads[usize::from(expert)] / f64::from(count[usize::from(expert)]);
        slots
            .chunks(self.deployment.slots_per_gpu())
            .map(|held| held.iter().map(part).sum())
            .fold(0.0, f64::max)
    }
}

struct Repair {
    ranks: usize,
    /// `[ranks]`: the experts of each; redundant ones leave and come back.
    held: Vec<Vec<u16>>,
    /// `[ranks]`: redundant slots that are free.
    free: Vec<usize>,
    /// `[ranks]`.
    load: Vec<f64>,
    /// `[experts]`: what a replica is taken to carry.
    weight: Vec<f64>,
    /// `[experts]`: the rank that holds the first copy, slot by slot and then rank by rank.
    source: Vec<usize>,
    /// `[ranks * ranks]`: whether the row's rank already sends to the column's.
    sends: Vec<bool>,
    /// `[ranks]`: what each receives.
    received: Vec<Vec<u16>>,
    /// Experts by the order in which the redundant slots were handed out.
    redundant: Vec<(f64, u16)>,
}

impl Repair {
    fn new(loads: &[f64], current: &[u16], deployment: Deployment) -> Self {
        let (ranks, per_rank) = (deployment.gpus, deployment.slots_per_gpu());
        let mut repair = Self {
            ranks,
            held: vec![Vec::with_capacity(per_rank); ranks],
            free: vec![0; ranks],
            load: vec![0.0; ranks],
            weight: loads.to_vec(),
            source: vec![usize::MAX; loads.len()],
            sends: vec![false; ranks * ranks],
            received: vec![Vec::new(); ranks],
            redundant: Vec::new(),
        };
        let mut redundant = 0;
        for slot in 0..per_rank {
            for rank in 0..ranks {
                let expert = current[rank * per_rank + slot];
                if repair.source[usize::from(expert)] == usize::MAX {
                    repair.source[usize::from(expert)] = rank;
                    repair.held[rank].push(expert);
                } else {
                    repair.free[rank] += 1;
                    redundant += 1;
                }
            }
        }
        repair.choose_redundant(redundant);
        for rank in 0..ranks {
            repair.load[rank] = repair.held[rank].iter().map(|&e| repair.weight[usize::from(e)]).sum();
        }
        repair
    }

    /// Each redundant slot goes to the expert with the largest weight (the highest among equals), whose weight
    /// then shrinks.
    fn choose_redundant(&mut self, redundant: usize) {
        let mut extra = vec![0usize; self.weight.len()];
        for _ in 0..redundant {
            let open = (0..self.weight.len()).filter(|&e| extra[e] + 1 < self.ranks);
            let Some(expert) = open.max_by(|&a, &b| self.weight[a].total_cmp(&self.weight[b])) else { break };
            extra[expert] += 1;
            self.weight[expert] *= (extra[expert] + 1) as f64 / (extra[expert] + 2) as f64;
        }
        for (expert, &extra) in (0u16..).zip(&extra) {
            let weight = self.weight[usize::from(expert)];
            self.redundant.extend(std::iter::repeat_n((weight, expert), extra));
        }
        self.redundant.sort_by(|a, b| b.0.total_cmp(&a.0));
    }

    fn place_redundant(&mut self, loads: &[f64]) {
        for (weight, expert) in std::mem::take(&mut self.redundant) {
            let source = self.source[usize::from(expert)];
            let open = (0..self.ranks).filter(|&rank| {
                self.free[rank] > 0
                    && !self.held[rank].contains(&expert)
                    && !self.sends[source * self.ranks + rank]
            });
            if let Some(rank) = open.min_by(|&a, &b| self.load[a].total_cmp(&self.load[b])) {
                self.receive(source, rank, expert);
                self.load[rank] += weight;
            }
        }
        if self.free.iter().any(|&free| free > 0) {
            self.fill_rest(loads);
        }
    }

    fn receive(&mut self, source: usize, rank: usize, expert: u16) {
        self.free[rank] -= 1;
        self.held[rank].push(expert);
        self.sends[source * self.ranks + rank] = true;
        self.received[rank].push(expert);
    }

    /// Slots that no chosen expert could take go to the largest remaining loads, this time counted rightly.
    fn fill_rest(&mut self, loads: &[f64]) {
        let mut count = vec![0u32; loads.len()];
        self.held.iter().flatten().for_each(|&expert| count[usize::from(expert)] += 1);
        for (expert, weight) in self.weight.iter_mut().enumerate() {
            *weight = loads[expert] / f64::from(count[expert]);
        }
        for rank in 0..self.ranks {
            while self.free[rank] > 0 {
                let open = (0..loads.len()).filter(|&e| !self.held[rank].contains(&(e as u16)));
                let hottest = open.max_by(|&a, &b| self.weight[a].total_cmp(&self.weight[b]));
                let Some(expert) = hottest else { break };
                self.receive(self.source[expert], rank, expert as u16);
                self.weight[expert] *= f64::from(count[expert]) / f64::from(count[expert] + 1);
                count[expert] += 1;
            }
        }
        for rank in 0..self.ranks {
            self.load[rank] = self.held[rank].iter().map(|&e| self.weight[usize::from(e)]).sum();
        }
    }

    fn swap(&mut self, gain_min: f64) {
        let mut order: Vec<usize> = (0..self.ranks).collect();
        for _ in 0..SWAPS_MAX {
            order.sort_by(|&a, &b| self.load[a].total_cmp(&self.load[b]).then(a.cmp(&b)));
            let (&hot, others) = order.split_last().expect("there are ranks");
            let found = others.iter().find_map(|&other| {
                let linked = self.sends[other * self.ranks + hot] || self.sends[hot * self.ranks + other];
                if linked { None } else { self.best_swap(hot, other, gain_min).map(|pair| (other, pair)) }
            });
            let Some((other, (out, back))) = found else { break };
            let difference = self.weight[usize::from(out)] - self.weight[usize::from(back)];
            self.load[hot] -= difference;
            self.load[other] += difference;
            for (rank, leaves, comes) in [(hot, out, back), (other, back, out)] {
                let at = self.held[rank].iter().position(|&e| e == leaves).expect("the rank holds it");
                self.held[rank][at] = comes;
                self.received[rank].push(comes);
            }
            self.sends[other * self.ranks + hot] = true;
            self.sends[hot * self.ranks + other] = true;
        }
    }

    /// The swap with the lowest maximum of the two ranks, if it gains enough. What a rank received stays.
    fn best_swap(&self, hot: usize, other: usize, gain_min: f64) -> Option<(u16, u16)> {
        let may_leave = |from: usize, to: usize, expert: &u16| {
            !self.held[to].contains(expert) && !self.received[from].contains(expert)
        };
        let (mut best, mut least) = (None, self.load[hot]);
        for &out in self.held[hot].iter().filter(|&e| may_leave(hot, other, e)) {
            for &back in self.held[other].iter().filter(|&e| may_leave(other, hot, e)) {
                let difference = self.weight[usize::from(out)] - self.weight[usize::from(back)];
                let most = (self.load[hot] - difference).max(self.load[other] + difference);
                if most < least {
                    (best, least) = (Some((out, back)), most);
                }
            }
        }
        best.filter(|_| self.load[hot] - least >= gain_min)
    }

    fn slots(&self, current: &[u16]) -> Vec<u16> {
        let per_rank = current.len() / self.ranks;
        // A slot for which no expert was left keeps what it held.
        let whole = self.held.iter().all(|held| held.len() == per_rank);
        if !whole {
            return current.to_vec();
        }
        current.chunks(per_rank).zip(&self.held).flat_map(|(old, new)| keep_slots(old, new)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], current: &[u16], gpus: usize, worth: bool, expected: &[u16]) {
        let deployment = Deployment { replicas: current.len(), groups: 1, nodes: 1, gpus };
        let swift = Swift::new(loads.len(), deployment).unwrap();
        let rebalanced = swift.rebalance(&[loads], &[current.to_vec()]);
        assert_eq!((rebalanced.worth, rebalanced.slots), (worth, vec![expected.to_vec()]));
    }

    #[test]
    fn a_balanced_layer_is_left_alone() {
        check(&[1.0, 1.0, 1.0, 1.0], &[0, 1, 2, 3], 2, false, &[0, 1, 2, 3]);
    }

    #[test]
    fn a_swap_relieves_the_most_loaded_rank() {
        // 8 + 6 against 3 + 1: of the two swaps that give 9 and 9 the first that is tried.
        check(&[8.0, 6.0, 3.0, 1.0], &[0, 1, 2, 3], 2, true, &[2, 1, 0, 3]);
    }

    #[test]
    fn two_ranks_swap_at_most_once() {
        let loads = [10.0, 10.0, 10.0, 1.0, 1.0, 1.0];
        check(&loads, &[0, 1, 2, 3, 4, 5], 2, true, &[3, 1, 2, 0, 4, 5]);
    }

    #[test]
    fn redundant_slots_are_handed_out_anew() {
        // Expert 1 was the redundant one; expert 0 is the hot one now, and its copy goes to rank 1.
        check(&[12.0, 1.0, 1.0, 1.0, 1.0], &[0, 2, 3, 1, 4, 1], 2, true, &[0, 2, 3, 1, 4, 0]);
    }

    #[test]
    fn a_replica_is_taken_to_carry_more_than_it_does() {
        // 24 halved would be 12, below 14; the policy takes it for 16 and replicates expert 0 again.
        let loads = [24.0, 1.0, 1.0, 1.0, 1.0, 14.0];
        check(&loads, &[0, 1, 2, 1, 3, 1, 4, 5], 4, true, &[0, 1, 2, 0, 3, 0, 4, 5]);
    }

    #[test]
    fn a_rank_sends_one_expert_to_another_rank() {
        // Rank 1 would be the lightest for expert 1 as well, but has expert 0 from rank 0 already.
        let loads = [26.0, 24.0, 1.0, 1.0, 1.0, 1.0, 18.0, 10.0, 10.0];
        let current = [0, 1, 2, 3, 4, 5, 2, 3, 6, 7, 8, 2];
        check(&loads, &current, 3, true, &[0, 1, 2, 3, 4, 5, 0, 6, 6, 7, 8, 1]);
    }

    #[test]
    fn slots_that_no_chosen_expert_may_take_get_the_largest_load_left() {
        let loads = [20.0, 16.0, 4.0, 4.0, 4.0, 4.0];
        check(&loads, &[0, 1, 2, 3, 4, 5, 2, 3], 2, true, &[0, 1, 2, 3, 4, 5, 0, 1]);
    }

    #[test]
    fn a_gain_below_a_hundredth_of_the_mean_is_not_taken() {
        check(&[1040.0, 1000.0, 1000.0, 960.0], &[0, 1, 2, 3], 2, false, &[2, 1, 0, 3]);
        check(&[1030.0, 1000.0, 985.0, 985.0], &[0, 1, 2, 3], 2, false, &[0, 1, 2, 3]);
    }
}
