//! What a placement is worth, judged without its planner: loads under the even and under a given split, the best
//! possible split, and what one placement moves compared with another.
//!
//! Independent of the core on purpose: the even split, the exact level and the count of moves are computed here
//! from the slots alone, so that no planner is believed.

use evenkeel_core::experts::Deployment;
use evenkeel_core::ids::ExpertId;
use evenkeel_core::plan::max_over_mean;

/// What each slot of one layer holds.
pub type Slots = [Option<ExpertId>];

/// Part of the layer's load below which flow counts as none: far above rounding, far below any decision.
const FLOW_RESOLUTION: f64 = 1e-12;

/// Why a placement cannot be served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Flaw {
    /// Another number of slots than the deployment has.
    #[error("{found} slots, and the deployment has {expected}")]
    Slots {
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// An expert that the model does not have.
    #[error("slot {slot} holds expert {expert}, and the model has {experts}")]
    UnknownExpert {
        /// The slot.
        slot: usize,
        /// What it holds.
        expert: usize,
        /// Experts of the model.
        experts: usize,
    },
    /// An expert in no slot.
    #[error("expert {expert} is in no slot")]
    Missing {
        /// The expert.
        expert: usize,
    },
}

/// Every slot holds an expert of the model or none, and every expert has a slot.
pub fn check(deployment: &Deployment, slots: &Slots, experts: usize) -> Result<(), Flaw> {
    if slots.len() != deployment.slots() {
        return Err(Flaw::Slots { found: slots.len(), expected: deployment.slots() });
    }
    let count = counts(slots, experts).map_err(|slot| Flaw::UnknownExpert {
        slot,
        expert: slots[slot].map_or(0, ExpertId::index),
        experts,
    })?;
    match count.iter().position(|&count| count == 0) {
        Some(expert) => Err(Flaw::Missing { expert }),
        None => Ok(()),
    }
}

/// Slots whose expert is on the same rank in an earlier slot already: memory that balances nothing.
pub fn doubles(deployment: &Deployment, slots: &Slots) -> usize {
    let of_rank = |rank| {
        let held = &slots[deployment.slots_of(rank)];
        (0..held.len()).filter(|&at| held[at].is_some() && held[..at].contains(&held[at])).count()
    };
    (0..deployment.ranks().len()).map(of_rank).sum()
}

/// `[experts]`: replicas; or the slot that holds an unknown expert.
fn counts(slots: &Slots, experts: usize) -> Result<Vec<u32>, usize> {
    let mut count = vec![0; experts];
    for (slot, held) in slots.iter().enumerate() {
        if let Some(expert) = held {
            *count.get_mut(expert.index()).ok_or(slot)? += 1;
        }
    }
    Ok(count)
}

/// Max over mean of the ranks' loads (by their speed) when replicas share evenly.
pub fn even_imbalance(deployment: &Deployment, slots: &Slots, loads: &[f64]) -> f64 {
    let count = counts(slots, loads.len()).expect("a checked placement");
    imbalance(deployment, |slot| {
        slots[slot].map_or(0.0, |expert| loads[expert.index()] / f64::from(count[expert.index()]))
    })
}

/// The same when every slot gets the given part of its expert's load.
///
/// # Panics
/// When the parts of an expert do not sum to 1 within 1e-9: a planner's bug.
pub fn split_imbalance(deployment: &Deployment, slots: &Slots, share: &[f64], loads: &[f64]) -> f64 {
    let mut sum = vec![0.0; loads.len()];
    for (held, share) in slots.iter().zip(share) {
        held.iter().for_each(|expert| sum[expert.index()] += share);
    }
    assert!(sum.iter().all(|sum| (sum - 1.0f64).abs() < 1e-9), "the shares of an expert sum to 1: {sum:?}");
    imbalance(deployment, |slot| slots[slot].map_or(0.0, |expert| loads[expert.index()] * share[slot]))
}

fn imbalance(deployment: &Deployment, load: impl Fn(usize) -> f64) -> f64 {
    let ranks = deployment.ranks();
    let of_rank: Vec<f64> = (0..ranks.len()).map(|rank| deployment.slots_of(rank).map(&load).sum()).collect();
    if deployment.is_uniform() {
        return max_over_mean(&of_rank);
    }
    let speed: f64 = ranks.iter().map(|rank| rank.speed).sum();
    let total: f64 = of_rank.iter().sum();
    let most = of_rank.iter().zip(ranks).map(|(load, rank)| load / rank.speed).fold(0.0, f64::max);
    if total > 0.0 { most * speed / total } else { 1.0 }
}

/// The least imbalance that any split of this placement reaches: the maximum over sets of ranks of the load of the
/// experts whose replicas all live in the set, over the set's speed, relative to the mean.
pub fn best_split_imbalance(deployment: &Deployment, slots: &Slots, loads: &[f64]) -> f64 {
    let total: f64 = loads.iter().sum();
    if total <= 0.0 {
        return 1.0;
    }
    let speed: Vec<f64> = deployment.ranks().iter().map(|rank| rank.speed).collect();
    let mean = total / speed.iter().sum::<f64>();
    Network::new(deployment, slots, loads).least_level(mean, &speed) / mean
}

/// How far a placement keeps groups of experts on their nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Locality {
    /// Experts without a replica on the node of their group.
    pub away: usize,
    /// The part of all load that is served on another node than the group's.
    pub crossing: f64,
}

/// The locality of a placement under a split (`None`: even). A group's node is the one that holds most of its experts,
/// the first among equals: planners choose it and need not say so.
pub fn locality(deployment: &Deployment, slots: &Slots, share: Option<&[f64]>, loads: &[f64]) -> Locality {
    let count = counts(slots, loads.len()).expect("a checked placement");
    let mut locality = Locality::default();
    let total: f64 = loads.iter().sum();
    let size = loads.len() / deployment.groups();
    for group in (0..loads.len()).collect::<Vec<_>>().chunks(size) {
        let held = |node: usize, expert: usize| {
            let ranks = deployment.ranks().iter().enumerate();
            let mut on_node = ranks.filter(|(_, rank)| usize::from(rank.node) == node);
            on_node.any(|(rank, _)| slots[deployment.slots_of(rank)].contains(&Some(ExpertId(expert as u16))))
        };
        let held_by = |node: usize| group.iter().filter(|&&expert| held(node, expert)).count();
        // The first of the largest: `max_by_key` alone would take the last.
        let home = (0..deployment.nodes()).rev().max_by_key(|&node| held_by(node)).expect("there are nodes");
        locality.away += group.len() - held_by(home);
        for (rank, spec) in deployment.ranks().iter().enumerate() {
            for slot in deployment.slots_of(rank).filter(|_| usize::from(spec.node) != home) {
                let Some(expert) = slots[slot].map(ExpertId::index).filter(|e| group.contains(e)) else {
                    continue;
                };
                let part = share.map_or(1.0 / f64::from(count[expert]), |share| share[slot]);
                locality.crossing += loads[expert] * part / total.max(f64::MIN_POSITIVE);
            }
        }
    }
    locality
}

/// No placement in these slots reaches less, whatever the split: the largest load per replica when replicas are handed
/// out best. For ranks of equal speed. More replicas than ranks would help nobody: such a replica is below the mean.
pub fn replica_bound(deployment: &Deployment, loads: &[f64]) -> f64 {
    let total: f64 = loads.iter().sum();
    if total <= 0.0 {
        return 1.0;
    }
    let (ranks, mut free) = (deployment.ranks().len(), deployment.slots() - loads.len());
    let mut count = vec![1usize; loads.len()];
    let per_replica = |count: &[usize], expert: usize| loads[expert] / count[expert] as f64;
    loop {
        let all = 0..loads.len();
        let hottest = all.max_by(|&a, &b| per_replica(&count, a).total_cmp(&per_replica(&count, b)));
        let hottest = hottest.expect("there are experts");
        if free == 0 {
            return (per_replica(&count, hottest) * ranks as f64 / total).max(1.0);
        }
        count[hottest] += 1;
        free -= 1;
    }
}

/// Source, experts with several ranks, ranks, sink; Dinic's algorithm. The level rises from the mean to the mean of
/// the ranks on the source's side of each minimum cut, until everything fits.
struct Network {
    experts: usize,
    ranks: usize,
    /// `[ranks]`: load that no split moves.
    fixed: Vec<f64>,
    /// `[experts]`: load and ranks of those that have several.
    shared: Vec<(f64, Vec<u32>)>,
    /// Edges in pairs, each beside its reverse: (to, capacity).
    edges: Vec<(u32, f64)>,
    /// `[nodes]`: edges that leave.
    leaving: Vec<Vec<u32>>,
    depth: Vec<u32>,
    resolution: f64,
}

impl Network {
    fn new(deployment: &Deployment, slots: &Slots, loads: &[f64]) -> Self {
        let ranks = deployment.ranks().len();
        let mut of_expert: Vec<Vec<u32>> = vec![Vec::new(); loads.len()];
        for rank in 0..ranks {
            for expert in slots[deployment.slots_of(rank)].iter().flatten() {
                let on = &mut of_expert[expert.index()];
                if on.last() != Some(&(rank as u32)) {
                    on.push(rank as u32);
                }
            }
        }
        let mut network = Self {
            experts: 0,
            ranks,
            fixed: vec![0.0; ranks],
            shared: Vec::new(),
            edges: Vec::new(),
            leaving: Vec::new(),
            depth: Vec::new(),
            resolution: loads.iter().sum::<f64>() * FLOW_RESOLUTION,
        };
        for (load, on) in loads.iter().zip(of_expert) {
            match on.as_slice() {
                [] => assert!(*load <= 0.0, "a checked placement holds every expert"),
                [only] => network.fixed[*only as usize] += load,
                _ => network.shared.push((*load, on)),
            }
        }
        network.experts = network.shared.len();
        network
    }

    fn least_level(&mut self, mean: f64, speed: &[f64]) -> f64 {
        let alone = self.fixed.iter().zip(speed).map(|(load, speed)| load / speed);
        let mut level = alone.fold(mean, f64::max);
        // Every cut is another set of ranks with a higher mean, so few are seen; the limit guards against rounding.
        for _ in 0..4 * self.ranks + 16 {
            self.build(level, speed);
            self.saturate();
            let reached = |rank: usize| self.depth[1 + self.experts + rank] != u32::MAX;
            let cut: Vec<usize> = (0..self.ranks).filter(|&rank| reached(rank)).collect();
            let inside = |on: &[u32]| on.iter().all(|&rank| reached(rank as usize));
            let exclusive: f64 = self.shared.iter().filter(|(_, on)| inside(on)).map(|(load, _)| load).sum();
            let fixed: f64 = cut.iter().map(|&rank| self.fixed[rank]).sum();
            let needed = (exclusive + fixed) / cut.iter().map(|&rank| speed[rank]).sum::<f64>();
            // No cut at all is 0 / 0, which is not larger.
            if needed.partial_cmp(&(level * (1.0 + FLOW_RESOLUTION))) != Some(std::cmp::Ordering::Greater) {
                break;
            }
            level = needed;
        }
        level
    }

    fn build(&mut self, level: f64, speed: &[f64]) {
        self.edges.clear();
        self.leaving.clear();
        self.leaving.resize(self.experts + self.ranks + 2, Vec::new());
        let sink = self.experts + self.ranks + 1;
        for expert in 0..self.experts {
            let load = self.shared[expert].0;
            self.join(0, 1 + expert, load);
            for at in 0..self.shared[expert].1.len() {
                let rank = self.shared[expert].1[at] as usize;
                self.join(1 + expert, 1 + self.experts + rank, f64::INFINITY);
            }
        }
        for (rank, speed) in speed.iter().enumerate() {
            self.join(1 + self.experts + rank, sink, (level * speed - self.fixed[rank]).max(0.0));
        }
    }

    fn join(&mut self, from: usize, to: usize, capacity: f64) {
        self.leaving[from].push(self.edges.len() as u32);
        self.edges.push((to as u32, capacity));
        self.leaving[to].push(self.edges.len() as u32);
        self.edges.push((from as u32, 0.0));
    }

    /// Routes all that fits; the depths of the last search mark the source's side of a minimum cut.
    fn saturate(&mut self) {
        let sink = self.experts + self.ranks + 1;
        while self.search(sink) {
            let mut next = vec![0; self.leaving.len()];
            while self.push(0, sink, f64::INFINITY, &mut next) > 0.0 {}
        }
    }

    fn search(&mut self, sink: usize) -> bool {
        self.depth.clear();
        self.depth.resize(self.leaving.len(), u32::MAX);
        self.depth[0] = 0;
        let (mut queue, mut head) = (vec![0u32], 0);
        while let Some(&node) = queue.get(head) {
            head += 1;
            for &edge in &self.leaving[node as usize] {
                let (to, capacity) = self.edges[edge as usize];
                if capacity > self.resolution && self.depth[to as usize] == u32::MAX {
                    self.depth[to as usize] = self.depth[node as usize] + 1;
                    queue.push(to);
                }
            }
        }
        self.depth[sink] != u32::MAX
    }

    fn push(&mut self, node: usize, sink: usize, most: f64, next: &mut [usize]) -> f64 {
        if node == sink {
            return most;
        }
        while next[node] < self.leaving[node].len() {
            let edge = self.leaving[node][next[node]] as usize;
            let (to, capacity) = self.edges[edge];
            if capacity > self.resolution && self.depth[to as usize] == self.depth[node] + 1 {
                let pushed = self.push(to as usize, sink, most.min(capacity), next);
                if pushed > 0.0 {
                    self.edges[edge].1 -= pushed;
                    self.edges[edge ^ 1].1 += pushed;
                    return pushed;
                }
            }
            next[node] += 1;
        }
        0.0
    }
}

/// What a layer's change costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Slots that hold another expert afterwards.
    pub slots: usize,
    /// Experts that a rank must fetch because it did not hold them.
    pub received: usize,
    /// Of those, the ones that no rank of the same node held.
    pub from_other_node: usize,
}

impl std::ops::AddAssign for Change {
    fn add_assign(&mut self, more: Self) {
        self.slots += more.slots;
        self.received += more.received;
        self.from_other_node += more.from_other_node;
    }
}

/// What it takes to get from one placement of a layer to another.
pub fn change(deployment: &Deployment, from: &Slots, to: &Slots) -> Change {
    let mut change = Change::default();
    for (rank, spec) in deployment.ranks().iter().enumerate() {
        let (old, new) = (&from[deployment.slots_of(rank)], &to[deployment.slots_of(rank)]);
        change.slots += old.iter().zip(new).filter(|(old, new)| new.is_some() && old != new).count();
        for (at, expert) in new.iter().enumerate() {
            if expert.is_none() || old.contains(expert) || new[..at].contains(expert) {
                continue;
            }
            change.received += 1;
            let on_node = deployment.ranks().iter().enumerate().any(|(other, spec_of)| {
                spec_of.node == spec.node && from[deployment.slots_of(other)].contains(expert)
            });
            change.from_other_node += usize::from(!on_node);
        }
    }
    change
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
