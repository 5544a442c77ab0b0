//! Placements, batches and the exact optimum for the split. Loads are synthetic: log-normal experts, and every batch's
//! counts are the placement's loads times another log-normal factor.

use evenkeel_core::experts::{Deployment, ExpertLoads, PlanOptions, RankSpec, plan_layers};
use evenkeel_kernels::split::SplitPlan;
use evenkeel_simulate::expert_loads::SplitMix64;

/// A deployment and a distribution of loads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SplitCase {
    pub(crate) ranks: usize,
    pub(crate) slots_per_rank: usize,
    pub(crate) sigma: f64,
    /// Sweeps that reach the goal on this shape.
    pub(crate) sweeps: u32,
}

pub(crate) const EXPERTS: usize = 256;

/// The deployments of the goals, each with moderate and strong skew.
pub(crate) const SPLIT_CASES: [SplitCase; 10] = {
    const fn case(ranks: usize, slots_per_rank: usize, sigma: f64, sweeps: u32) -> SplitCase {
        SplitCase { ranks, slots_per_rank, sigma, sweeps }
    }
    [
        case(32, 9, 0.5, 13),
        case(32, 9, 1.0, 13),
        case(32, 10, 0.5, 9),
        case(32, 10, 1.0, 9),
        case(64, 5, 0.5, 17),
        case(64, 5, 1.0, 14),
        case(144, 2, 0.5, 1),
        case(144, 2, 1.0, 1),
        case(144, 4, 0.5, 13),
        case(144, 4, 1.0, 21),
    ]
};

/// One layer, placed by the planner for its average loads.
pub(crate) struct PlacedLayer {
    pub(crate) loads: Vec<f64>,
    pub(crate) slots: Vec<(Option<usize>, u32)>,
    pub(crate) plan: SplitPlan,
}

impl SplitCase {
    pub(crate) fn name(&self) -> String {
        format!("{}x{} ln {}", self.ranks, self.slots_per_rank, self.sigma)
    }

    /// Ids of a batch: 4096 tokens of a prefill rank, 256 of a decode rank, eight experts each.
    fn routed(&self) -> f64 {
        let tokens = if self.ranks >= 144 { 256 } else { 4096 };
        (self.ranks * tokens * 8) as f64
    }

    pub(crate) fn place(&self, seed: u64) -> PlacedLayer {
        let mut draw = SplitMix64::new(seed);
        let loads: Vec<f64> = (0..EXPERTS).map(|_| draw.log_normal(self.sigma)).collect();
        let rank =
            |rank: usize| RankSpec { slots: self.slots_per_rank as u16, speed: 1.0, node: (rank / 8) as u16 };
        let deployment = Deployment::new((0..self.ranks).map(rank).collect(), 1).expect("a valid deployment");
        let table = ExpertLoads::new(std::slice::from_ref(&loads)).expect("valid loads");
        let planned = plan_layers(&deployment, &table, None, &PlanOptions::default()).expect("a plan");
        let layer = &planned[0];
        let mut slots: Vec<(Option<usize>, u32)> = Vec::new();
        // Cut from running sums, so that an expert's shares sum to one whatever the rounding.
        let mut upto = vec![(0.0f64, 0u32); EXPERTS];
        for (expert, share) in layer.physical_to_logical.iter().zip(&layer.share) {
            let expert = expert.map(|expert| expert.index());
            let cut = expert.map_or(0, |expert| {
                let (sum, before) = &mut upto[expert];
                *sum += share;
                let cut = (*sum * 65536.0).round() as u32;
                cut - std::mem::replace(before, cut)
            });
            slots.push((expert, cut));
        }
        let plan = SplitPlan::new(EXPERTS, self.ranks, &slots).expect("a placement that packs");
        PlacedLayer { loads, slots, plan }
    }

    /// Counts of one batch whose experts differ from the average by `noise`.
    pub(crate) fn batch(&self, layer: &PlacedLayer, noise: f64, seed: u64) -> Vec<u32> {
        let mut draw = SplitMix64::new(seed);
        let loads: Vec<f64> = layer.loads.iter().map(|load| load * draw.log_normal(noise)).collect();
        let scale = self.routed() / loads.iter().sum::<f64>();
        loads.iter().map(|load| (load * scale).round() as u32).collect()
    }
}

impl PlacedLayer {
    /// Load of the most loaded rank under `quotas`, `[slots]`.
    pub(crate) fn most(&self, quotas: &[u32]) -> u64 {
        let slots_per_rank = self.slots.len() / self.plan.ranks();
        quotas.chunks(slots_per_rank).map(|rank| rank.iter().map(|&q| u64::from(q)).sum()).max().unwrap_or(0)
    }

    /// The least possible load of the most loaded rank, in whole tokens: flows have whole optima, so it is the exact
    /// fractional optimum rounded up. Found by cuts: a level either routes everything or shows a set of ranks that
    /// needs more.
    pub(crate) fn optimum(&self, counts: &[u32]) -> u64 {
        let slots_per_rank = self.slots.len() / self.plan.ranks();
        let mut ranks_of: Vec<Vec<usize>> = vec![Vec::new(); counts.len()];
        for (slot, (expert, _)) in self.slots.iter().enumerate() {
            let Some(expert) = *expert else { continue };
            if !ranks_of[expert].contains(&(slot / slots_per_rank)) {
                ranks_of[expert].push(slot / slots_per_rank);
            }
        }
        let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        let mut level = total.div_ceil(self.plan.ranks() as u64);
        loop {
            match route(&ranks_of, counts, self.plan.ranks(), level) {
                None => return level,
                Some(needed) => level = needed,
            }
        }
    }
}

/// Routes everything with ranks of capacity `level`, or says what level the set of ranks of a minimum cut needs.
fn route(ranks_of: &[Vec<usize>], counts: &[u32], ranks: usize, level: u64) -> Option<u64> {
    let mut room = vec![level; ranks];
    // flow[e][i]: of expert e on its i-th rank.
    let mut flow: Vec<Vec<u64>> = ranks_of.iter().map(|of| vec![0; of.len()]).collect();
    for (expert, &count) in counts.iter().enumerate() {
        let mut supply = u64::from(count);
        while supply > 0 {
            // A shortest augmenting path: expert, rank, an expert with flow there, its other ranks, ...
            let mut from: Vec<Option<(usize, usize)>> = vec![None; ranks];
            let mut back: Vec<Option<(usize, usize)>> = vec![None; counts.len()];
            let mut seen = vec![false; counts.len()];
            let mut queue = std::collections::VecDeque::from([expert]);
            seen[expert] = true;
            let mut end = None;
            'search: while let Some(e) = queue.pop_front() {
                for (i, &rank) in ranks_of[e].iter().enumerate() {
                    if from[rank].is_some() {
                        continue;
                    }
                    from[rank] = Some((e, i));
                    if room[rank] > 0 {
                        end = Some(rank);
                        break 'search;
                    }
                    for (other, of) in ranks_of.iter().enumerate() {
                        let Some(j) = of.iter().position(|&r| r == rank) else { continue };
                        if !seen[other] && flow[other][j] > 0 {
                            seen[other] = true;
                            back[other] = Some((rank, j));
                            queue.push_back(other);
                        }
                    }
                }
            }
            let Some(end) = end else {
                // The ranks reached hold only flow of the experts reached, and all of those live there alone.
                let set = from.iter().filter(|from| from.is_some()).count() as u64;
                let load: u64 = (0..counts.len()).filter(|&e| seen[e]).map(|e| u64::from(counts[e])).sum();
                return Some(load.div_ceil(set));
            };
            let mut amount = supply.min(room[end]);
            let mut rank = end;
            loop {
                let (e, _) = from[rank].expect("on the path");
                let Some((previous, j)) = back[e] else { break };
                amount = amount.min(flow[e][j]);
                rank = previous;
            }
            supply -= amount;
            room[end] -= amount;
            rank = end;
            loop {
                let (e, i) = from[rank].expect("on the path");
                flow[e][i] += amount;
                let Some((previous, j)) = back[e] else { break };
                flow[e][j] -= amount;
                rank = previous;
            }
        }
    }
    None
}
