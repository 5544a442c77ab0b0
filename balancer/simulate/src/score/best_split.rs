//! The best possible split of a placement, by a maximum flow.

use super::Slots;
use evenkeel_core::experts::Deployment;

/// Part of the layer's load below which flow counts as none: far above rounding, far below any decision.
const FLOW_RESOLUTION: f64 = 1e-12;

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
