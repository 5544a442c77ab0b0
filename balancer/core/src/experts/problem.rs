//! One layer in dense ordinals: what the phases see. Nothing here knows plans, epochs or nodes.

use super::deployment::Deployment;
use crate::ids::ExpertId;
use crate::plan::{LayerPlan, SHARE_ONE};
use crate::topology::UnitShape;
use std::sync::Arc;

/// Most parts of a window that are told apart; neighbours are merged. Few parts are enough to see which experts
/// move together, and every part costs time in every swap that is tried.
const PARTS_MAX: usize = 12;

/// How an expert's load is divided over its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SplitKind {
    /// By the plan's shares.
    #[default]
    Weighted,
    /// In equal parts: all that unmodified engines can do.
    Even,
}

/// One layer's experts and the slots they may fill. Experts and ranks are dense ordinals from zero.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerProblem {
    /// The GPUs; they have a slot for every expert.
    pub(super) deployment: Arc<Deployment>,
    /// `[experts]`: tokens routed to each expert in the window; finite and not negative.
    pub(super) loads: Vec<f64>,
    /// `[experts]`: the experts from the heaviest down. Phases go through experts in this order, never by name, so
    /// that names do not matter.
    pub(super) heaviest_first: Vec<u16>,
    /// What is known about how the next window may differ.
    pub(super) change: Change,
    /// How the engine divides an expert's load over its replicas.
    pub(super) split: SplitKind,
}

/// How expert loads vary. The covariance of two experts' loads between windows is taken as the sum over
/// parts of their `deviation`s' product, plus `drift^2 w^2` for an expert with itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Change {
    /// Parts of the window; 0 when nothing is known about them.
    pub(super) parts: usize,
    /// `[experts][parts]` row-major: an expert's load in a part, less the load it would have there if it kept
    /// its share of the window.
    pub(super) deviation: Vec<f64>,
    /// Relative standard deviation that every expert has by itself.
    pub(super) drift: f64,
}

impl Change {
    /// The deviations of one expert.
    pub(super) fn of(&self, expert: usize) -> &[f64] {
        &self.deviation[expert * self.parts..(expert + 1) * self.parts]
    }

    /// Takes the counts of every part: `parts[p]` are the loads of the layer's experts in part `p`.
    fn measure(parts: &[&[u64]], total: f64, drift: f64) -> Self {
        let merged = merge(parts);
        let totals: Vec<f64> = merged.iter().map(|part| part.iter().sum()).collect();
        let all: f64 = totals.iter().sum();
        let count = merged.len();
        if count < 2 || all <= 0.0 {
            return Self { parts: 0, deviation: Vec::new(), drift };
        }
        // Parts may cover more or less than the loads; and a sample's variance is short by n / (n - 1).
        let scale = total / all * (count as f64 / (count - 1) as f64).sqrt();
        let mut deviation = Vec::with_capacity(merged[0].len() * count);
        for expert in 0..merged[0].len() {
            let sum: f64 = merged.iter().map(|part| part[expert]).sum();
            let beyond = |(part, whole): (&Vec<f64>, &f64)| (part[expert] - sum * whole / all) * scale;
            deviation.extend(merged.iter().zip(&totals).map(beyond));
        }
        Self { parts: count, deviation, drift }
    }
}

/// Joins neighbouring parts until at most [`PARTS_MAX`] are left.
fn merge(parts: &[&[u64]]) -> Vec<Vec<f64>> {
    let size = parts.len().div_ceil(PARTS_MAX).max(1);
    let join = |few: &[&[u64]]| {
        let mut sum = vec![0.0; few[0].len()];
        few.iter().for_each(|part| sum.iter_mut().zip(*part).for_each(|(sum, &count)| *sum += count as f64));
        sum
    };
    parts.chunks(size).map(join).collect()
}

impl LayerProblem {
    /// A layer of which only the loads are known.
    pub(super) fn plain(deployment: &Arc<Deployment>, loads: Vec<f64>) -> Self {
        assert!(deployment.slots() >= loads.len(), "a validated deployment has a slot for every expert");
        let heaviest_first = heaviest_first(&loads);
        let (change, split) = (Change::default(), SplitKind::Weighted);
        Self { deployment: deployment.clone(), loads, heaviest_first, change, split }
    }

    /// The same for an engine that splits as said.
    pub(super) fn split_by(split: SplitKind, deployment: &Arc<Deployment>, loads: Vec<f64>) -> Self {
        Self { split, ..Self::plain(deployment, loads) }
    }

    /// Takes the measured counts of a layer, as a whole and in parts (or none).
    pub(super) fn measured(
        deployment: &Arc<Deployment>,
        loads: &[u64],
        parts: &[&[u64]],
        drift: f64,
    ) -> Self {
        // LOAD_MAX keeps every count below 2^53, where the conversion is exact.
        let loads: Vec<f64> = loads.iter().map(|&count| count as f64).collect();
        let change = Change::measure(parts, loads.iter().sum(), drift);
        Self { change, ..Self::plain(deployment, loads) }
    }

    /// Equal ranks with `slots` each.
    #[cfg(test)]
    pub(super) fn uniform(ranks: usize, slots: usize, loads: Vec<f64>) -> Self {
        let deployment = Deployment::uniform(ranks, ranks * slots, 1, 1).expect("a valid test deployment");
        Self::plain(&Arc::new(deployment), loads)
    }

    /// Experts of the layer.
    pub(super) fn experts(&self) -> usize {
        self.loads.len()
    }

    /// GPUs.
    pub(super) fn ranks(&self) -> usize {
        self.deployment.ranks().len()
    }

    /// Slots of a rank.
    pub(super) fn slots(&self, rank: usize) -> usize {
        self.deployment.ranks()[rank].slots.into()
    }

    /// Load of the whole layer.
    pub(super) fn total(&self) -> f64 {
        self.loads.iter().sum()
    }

    /// The level of every rank, load by speed, when the layer is perfectly balanced.
    pub(super) fn mean(&self) -> f64 {
        // Speeds have the mean 1 over the ranks that have slots.
        self.total() / self.deployment.live() as f64
    }

    /// The highest level of ranks that carry these loads.
    pub(super) fn level_of(&self, rank_loads: &[f64]) -> f64 {
        let level = |(&load, &speed): (&f64, &f64)| if speed > 0.0 { load / speed } else { 0.0 };
        rank_loads.iter().zip(self.deployment.speed()).map(level).fold(0.0, f64::max)
    }

    /// A level as max over mean; 1 when there is no load.
    pub(super) fn imbalance_of(&self, level: f64) -> f64 {
        let mean = self.mean();
        if mean > 0.0 { (level / mean).max(1.0) } else { 1.0 }
    }
}

/// Loads differ in the upper 48 bits of their floating-point form or count as equal here (a part in 2^36); of equals
/// the lowest expert is first. Sorting plain integers takes a third of the time that sorting by a comparison takes.
fn heaviest_first(loads: &[f64]) -> Vec<u16> {
    const ID: u64 = 0xffff;
    let mut keys: Vec<u64> =
        loads.iter().zip(0u64..).map(|(load, expert)| !(load.to_bits() | ID) | expert).collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| (key & ID) as u16).collect()
}

/// Which experts every rank holds, without order inside a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    /// `[ranks + 1]`: where a rank's places begin; it has as many as slots.
    first: Vec<u32>,
    /// `[ranks]`: how many places are filled.
    filled: Vec<u16>,
    /// `[places]`: distinct experts per rank; [`NOTHING`](Self::NOTHING) behind the filled ones.
    held: Vec<u16>,
}

impl Placement {
    const NOTHING: u16 = u16::MAX;

    /// No expert anywhere.
    pub(super) fn empty(deployment: &Deployment) -> Self {
        let ranks = deployment.ranks().len();
        let mut first = Vec::with_capacity(ranks + 1);
        first.extend((0..ranks).map(|rank| deployment.slots_of(rank).start as u32));
        first.push(deployment.slots() as u32);
        Self { first, filled: vec![0; ranks], held: vec![Self::NOTHING; deployment.slots()] }
    }

    /// What physical slots hold, in a deployment whose ranks have at least as many. Doubles count once.
    pub(super) fn of_slots(deployment: &Deployment, slots: &[Option<ExpertId>]) -> Self {
        let mut placement = Self::empty(deployment);
        let per_rank = |rank: usize| deployment.slots_of(rank);
        for rank in 0..placement.ranks() {
            for expert in slots[per_rank(rank)].iter().flatten() {
                if !placement.holds(rank, expert.0) {
                    placement.push(rank, expert.0);
                }
            }
        }
        placement.sort();
        placement
    }

    /// The placement of a plan's layer.
    pub(super) fn of_plan(deployment: &Deployment, shape: &UnitShape, layer: &LayerPlan) -> Self {
        let mut placement = Self::empty(deployment);
        for (rank, slots) in layer.physical_to_logical.chunks(shape.physical_per_rank()).enumerate() {
            slots.iter().flatten().for_each(|expert| placement.push(rank, expert.0));
        }
        placement.sort();
        placement
    }

    /// Equal ranks with `slots` places each, holding what the rows say.
    #[cfg(test)]
    pub(super) fn of_rows(slots: usize, rows: &[&[u16]]) -> Self {
        let deployment =
            Deployment::uniform(rows.len(), rows.len() * slots, 1, 1).expect("a valid test deployment");
        let mut placement = Self::empty(&deployment);
        for (rank, row) in rows.iter().enumerate() {
            row.iter().for_each(|&expert| placement.push(rank, expert));
        }
        placement
    }

    /// GPUs.
    pub(super) fn ranks(&self) -> usize {
        self.filled.len()
    }

    /// The experts of a rank.
    pub(super) fn of(&self, rank: usize) -> &[u16] {
        let first = self.first[rank] as usize;
        &self.held[first..first + usize::from(self.filled[rank])]
    }

    /// The experts of a rank, for reordering and replacing.
    pub(super) fn row_mut(&mut self, rank: usize) -> &mut [u16] {
        let first = self.first[rank] as usize;
        &mut self.held[first..first + usize::from(self.filled[rank])]
    }

    /// The experts of every rank.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[u16]> {
        (0..self.ranks()).map(|rank| self.of(rank))
    }

    /// Free slots of a rank.
    pub(super) fn room(&self, rank: usize) -> usize {
        (self.first[rank + 1] - self.first[rank]) as usize - usize::from(self.filled[rank])
    }

    /// Whether a rank holds an expert.
    pub(super) fn holds(&self, rank: usize, expert: u16) -> bool {
        self.of(rank).contains(&expert)
    }

    /// Puts an expert into a free slot of a rank that does not hold it.
    pub(super) fn push(&mut self, rank: usize, expert: u16) {
        assert!(self.room(rank) > 0, "a rank holds no more experts than it has slots");
        let at = self.first[rank] as usize + usize::from(self.filled[rank]);
        self.held[at] = expert;
        self.filled[rank] += 1;
    }

    /// Takes an expert from a rank that holds it.
    pub(super) fn remove(&mut self, rank: usize, expert: u16) {
        let at = self.at(rank, expert);
        let last = self.first[rank] as usize + usize::from(self.filled[rank]) - 1;
        self.held.swap(at, last);
        self.held[last] = Self::NOTHING;
        self.filled[rank] -= 1;
    }

    /// Puts one expert in the place of another.
    pub(super) fn replace(&mut self, rank: usize, from: u16, to: u16) {
        let at = self.at(rank, from);
        self.held[at] = to;
    }

    fn at(&self, rank: usize, expert: u16) -> usize {
        let at = self.of(rank).iter().position(|&held| held == expert);
        self.first[rank] as usize + at.expect("the rank holds the expert")
    }

    /// Replaces all that a rank holds.
    pub(super) fn set(&mut self, rank: usize, experts: &[u16]) {
        let places = self.first[rank] as usize..self.first[rank + 1] as usize;
        self.held[places].fill(Self::NOTHING);
        self.filled[rank] = 0;
        experts.iter().for_each(|&expert| self.push(rank, expert));
    }

    /// Restores the ascending order inside every rank.
    pub(super) fn sort(&mut self) {
        for rank in 0..self.ranks() {
            let first = self.first[rank] as usize;
            self.held[first..first + usize::from(self.filled[rank])].sort_unstable();
        }
    }

    /// Slots of `other` that are not in this placement: what has to be moved to get there.
    pub(super) fn moves_to(&self, other: &Placement) -> usize {
        let arrivals = |(have, want): (&[u16], &[u16])| want.iter().filter(|e| !have.contains(e)).count();
        self.rows().zip(other.rows()).map(arrivals).sum()
    }
}

/// The same placement seen from the experts: the replicas of expert `e` are the entries
/// `start[e]..start[e + 1]` of `rank`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replicas {
    /// `[experts + 1]`.
    pub(super) start: Vec<usize>,
    /// `[replicas]`: the rank of each replica; ascending per expert.
    pub(super) rank: Vec<u16>,
}

impl Replicas {
    /// Turns a placement round. Every expert must be somewhere.
    pub(super) fn of(placement: &Placement, experts: usize) -> Self {
        let mut start = vec![0usize; experts + 1];
        for &expert in placement.rows().flatten() {
            start[usize::from(expert) + 1] += 1;
        }
        for expert in 0..experts {
            assert!(start[expert + 1] > 0, "expert {expert} is in no slot");
            start[expert + 1] += start[expert];
        }
        // `start[e]` runs through the entries of `e` and ends where those of `e + 1` begin.
        let mut rank = vec![0; start[experts]];
        for (ordinal, held) in (0u16..).zip(placement.rows()) {
            for &expert in held {
                let next = &mut start[usize::from(expert)];
                rank[*next] = ordinal;
                *next += 1;
            }
        }
        start.rotate_right(1);
        start[0] = 0;
        Self { start, rank }
    }

    /// The entries of one expert.
    pub(super) fn range(&self, expert: usize) -> std::ops::Range<usize> {
        self.start[expert]..self.start[expert + 1]
    }

    /// How often an expert is placed.
    pub(super) fn count(&self, expert: usize) -> usize {
        self.start[expert + 1] - self.start[expert]
    }

    /// Experts placed.
    pub(super) fn experts(&self) -> usize {
        self.start.len() - 1
    }

    /// `[ranks]`: the load of each rank when replica `i` carries `load[i]`.
    pub(super) fn rank_loads(&self, ranks: usize, load: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; ranks];
        for (&rank, &load) in self.rank.iter().zip(load) {
            sums[usize::from(rank)] += load;
        }
        sums
    }

    /// `[replicas]`: every replica carries the same part of its expert's load.
    pub(super) fn even_split(&self, loads: &[f64]) -> Vec<f64> {
        let mut split = vec![0.0; self.rank.len()];
        for (expert, &load) in loads.iter().enumerate() {
            split[self.range(expert)].fill(load / self.count(expert) as f64);
        }
        split
    }
}

/// Writes a placement and its split into the physical slots of a layer. Experts that the rank already holds
/// stay in their slots; arriving ones take the lowest empty slots, so nothing that is served is overwritten.
pub(super) fn to_layer_plan(
    shape: &UnitShape,
    running: &LayerPlan,
    placement: &Placement,
    replicas: &Replicas,
    split: &[f64],
) -> LayerPlan {
    let per_rank = shape.physical_per_rank();
    let mut slots = vec![None; shape.physical_per_layer()];
    let mut slot_of_replica = vec![0usize; replicas.rank.len()];
    let mut next = replicas.start.clone();
    for (rank, wanted) in placement.rows().enumerate() {
        let block = rank * per_rank..(rank + 1) * per_rank;
        let old = &running.physical_to_logical[block.clone()];
        let mut empty = block.clone().filter(|&slot| running.physical_to_logical[slot].is_none());
        for &expert in wanted {
            let stays = old.iter().position(|held| *held == Some(ExpertId(expert)));
            let slot = match stays {
                Some(local) => block.start + local,
                None => {
                    empty.next().expect("the schedule adds no more experts than the rank has empty slots")
                }
            };
            slots[slot] = Some(ExpertId(expert));
            slot_of_replica[next[usize::from(expert)]] = slot;
            next[usize::from(expert)] += 1;
        }
    }
    let mut share = vec![0; slots.len()];
    for expert in 0..replicas.experts() {
        let range = replicas.range(expert);
        for (at, part) in range.clone().zip(integer_shares(&split[range])) {
            share[slot_of_replica[at]] = part;
        }
    }
    LayerPlan { physical_to_logical: slots, share }
}

/// Shares in units of 1/65536 in proportion to `parts`, summing to exactly [`SHARE_ONE`]: rounded down, and
/// what is left over goes to the largest remainders (the first of equals). No load at all is shared evenly.
fn integer_shares(parts: &[f64]) -> Vec<u32> {
    let sum: f64 = parts.iter().sum();
    let one = f64::from(SHARE_ONE);
    let exact: Vec<f64> = match sum > 0.0 {
        true => parts.iter().map(|part| (part / sum * one).clamp(0.0, one)).collect(),
        false => vec![one / parts.len() as f64; parts.len()],
    };
    let mut shares: Vec<u32> = exact.iter().map(|value| value.floor() as u32).collect();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let given: u32 = shares.iter().sum();
    // Rounding in the division can leave the floors a unit off either way; both directions are made good.
    for at in 0..SHARE_ONE.saturating_sub(given) as usize {
        shares[order[at % order.len()]] += 1;
    }
    for _ in SHARE_ONE..given {
        let largest = shares.iter_mut().max().expect("an expert has a replica");
        *largest -= 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_show_which_experts_move_together() {
        let change = Change::measure(&[&[4, 0, 6], &[0, 4, 6]], 20.0, 0.1);
        assert_eq!(change.parts, 2);
        let scaled = |value: f64| value * 2f64.sqrt();
        assert_eq!(change.of(0), [scaled(2.0), scaled(-2.0)]);
        assert_eq!(change.of(1), [scaled(-2.0), scaled(2.0)]);
        assert_eq!(change.of(2), [0.0, 0.0]);
        assert_eq!(Change::measure(&[&[1, 2]], 3.0, 0.1).parts, 0);
        assert_eq!(Change::measure(&[&[0], &[0]], 0.0, 0.1).parts, 0);
        let many: Vec<&[u64]> = vec![&[1, 2]; 100];
        assert!((2..=PARTS_MAX).contains(&Change::measure(&many, 300.0, 0.1).parts));
    }

    #[track_caller]
    fn check_shares(parts: &[f64], expected: &[u32]) {
        let shares = integer_shares(parts);
        assert_eq!(shares, expected);
        assert_eq!(shares.iter().sum::<u32>(), SHARE_ONE);
    }

    #[test]
    fn shares_sum_to_one_exactly() {
        check_shares(&[3.0, 1.0], &[49152, 16384]);
        check_shares(&[1.0, 1.0, 1.0], &[21846, 21845, 21845]);
        check_shares(&[0.0, 0.0], &[32768, 32768]);
        check_shares(&[5.0], &[65536]);
        check_shares(&[0.0, 2.0], &[0, 65536]);
    }
}

/// Layers for the property tests of the phases.
#[cfg(test)]
pub(super) mod arbitrary {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        /// Any placement: every expert somewhere, any further replicas.
        pub(in crate::experts) fn placed()(ranks in 1usize..7, experts in 1usize..12)(
            ranks in Just(ranks),
            loads in prop::collection::vec(prop_oneof![Just(0u32), 0u32..1000, 0u32..10], experts),
            home in prop::collection::vec(0..ranks, experts),
            extra in prop::collection::vec((0..ranks, 0..experts), 0..16),
        ) -> (LayerProblem, Placement) {
            let problem = LayerProblem::uniform(ranks, loads.len(), loads.into_iter().map(f64::from).collect());
            let mut placement = Placement::empty(&problem.deployment);
            let homes = home.into_iter().enumerate().map(|(expert, rank)| (rank, expert));
            for (rank, expert) in homes.chain(extra) {
                let expert = u16::try_from(expert).unwrap();
                if !placement.holds(rank, expert) {
                    placement.push(rank, expert);
                }
            }
            placement.sort();
            (problem, placement)
        }
    }
}
