//! Levels ranks by swapping experts between them, one for one, under the even split.
//!
//! Two kinds of step. In a *round* the ranks are ordered by level and the highest is paired with the lowest, the second
//! with the second, and so on; every pair makes the swap that brings it closest to its common level. A few rounds
//! bring most of what swaps can bring, and cost one sort each. Then, if wanted, the *highest* rank is tried against
//! every other until nothing lowers it.

use super::problem::{LayerProblem, Placement};

/// Rounds; each halves what is left at first, and after eight the pairs have nothing to exchange.
const ROUNDS_MAX: usize = 8;
/// A swap must lower the higher rank by this part of the mean: less is rounding.
const GAIN_MIN: f64 = 1e-9;

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Relative height of the highest rank above the mean that is good enough.
    pub(super) enough: f64,
    /// Swaps of the highest rank after the rounds; each tries it against all others.
    pub(super) swaps: usize,
}

/// A placement being levelled. In every row the first `fixed[rank]` experts stay; behind them the rows are in
/// descending order of `part`.
pub(super) struct Rows<'a> {
    pub(super) problem: &'a LayerProblem,
    /// `[experts]`: load of one replica.
    pub(super) part: &'a [f64],
    /// `[experts]`: replicas; an expert with several must not come to a rank that holds it.
    pub(super) counts: &'a [u16],
    /// `[ranks]`.
    pub(super) fixed: &'a [u16],
    pub(super) placement: &'a mut Placement,
    /// `[ranks]`: sum of the parts.
    pub(super) load: &'a mut [f64],
    /// The node within which experts are swapped; `None`: anywhere.
    pub(super) node: Option<u16>,
}

/// Positions in the rows of two ranks whose experts change places, and how far that leaves the pair from its
/// common level.
struct Swap {
    high: usize,
    low: usize,
    off: f64,
}

impl Rows<'_> {
    /// Swaps until the highest rank is good enough or nothing helps; returns its level.
    pub(super) fn level(&mut self, effort: Effort) -> f64 {
        let mean = self.mean();
        let enough = mean * (1.0 + effort.enough);
        let mut order: Vec<u64> = Vec::with_capacity(self.load.len());
        for _ in 0..ROUNDS_MAX {
            self.order(&mut order);
            let Some(&highest) = order.last() else { return 0.0 };
            if self.level_of(rank(highest)) <= enough || !self.round(&order, mean) {
                break;
            }
        }
        for _ in 0..effort.swaps {
            self.order(&mut order);
            let highest = rank(order[order.len() - 1]);
            if self.level_of(highest) <= enough || !self.lower(highest, &order, mean) {
                break;
            }
        }
        self.problem.level_of(self.load)
    }

    /// The level that swaps can bring all ranks to.
    fn mean(&self) -> f64 {
        let speed = self.problem.deployment.speed();
        let ranks = || (0..self.load.len()).filter(|&rank| self.takes_part(rank));
        let width: f64 = ranks().map(|rank| speed[rank]).sum();
        if width > 0.0 { ranks().map(|rank| self.load[rank]).sum::<f64>() / width } else { 0.0 }
    }

    fn takes_part(&self, rank: usize) -> bool {
        self.node.is_none_or(|node| self.problem.deployment.ranks()[rank].node == node)
    }

    /// Ranks with slots that take part, from the lowest to the highest.
    fn order(&self, order: &mut Vec<u64>) {
        let live = (0u64..)
            .zip(self.problem.deployment.speed())
            .filter(|(rank, speed)| **speed > 0.0 && self.takes_part(*rank as usize));
        order.clear();
        // Non-negative floats order like their bits, and ranks fit into the lowest sixteen.
        order.extend(live.map(|(rank, &speed)| (self.load[rank as usize] / speed).to_bits() & !RANK | rank));
        order.sort_unstable();
    }

    fn round(&mut self, order: &[u64], mean: f64) -> bool {
        let mut changed = false;
        for at in 0..order.len() / 2 {
            let (low, high) = (rank(order[at]), rank(order[order.len() - 1 - at]));
            if let Some(swap) = self.best_swap(high, low, mean) {
                self.apply(high, low, &swap);
                changed = true;
            }
        }
        changed
    }

    /// Lowers the highest rank by the swap that leaves the higher of the two lowest.
    fn lower(&mut self, highest: usize, order: &[u64], mean: f64) -> bool {
        let mut best: Option<(f64, usize, Swap)> = None;
        for low in order[..order.len() - 1].iter().map(|&key| rank(key)) {
            let Some(swap) = self.best_swap(highest, low, mean) else { continue };
            let level = self.common_level(highest, low) + swap.off;
            if best.as_ref().is_none_or(|(least, ..)| level < *least) {
                best = Some((level, low, swap));
            }
        }
        let Some((_, low, swap)) = best else { return false };
        self.apply(highest, low, &swap);
        true
    }

    fn level_of(&self, rank: usize) -> f64 {
        self.load[rank] / self.problem.deployment.speed()[rank]
    }

    fn common_level(&self, high: usize, low: usize) -> f64 {
        let speed = self.problem.deployment.speed();
        (self.load[high] + self.load[low]) / (speed[high] + speed[low])
    }

    fn movable(&self, rank: usize) -> &[u16] {
        &self.placement.of(rank)[self.fixed[rank].into()..]
    }

    /// The swap that brings the two closest to their common level, among those that lower the higher one. Both rows
    /// descend, so the partner of each expert of one lies behind that of the one before: one walk through both.
    fn best_swap(&self, high: usize, low: usize, mean: f64) -> Option<Swap> {
        let common = self.common_level(high, low);
        let speed = self.problem.deployment.speed()[high];
        let gap = self.load[high] - common * speed;
        let (from, to) = (self.movable(high), self.movable(low));
        // Between nothing and twice the gap the higher rank gets lower and the other does not get as high.
        let mut least = gap - GAIN_MIN * mean;
        let mut best = None;
        let mut at = 0;
        for (give, &out) in from.iter().enumerate() {
            let wanted = self.part[usize::from(out)] - gap;
            while at < to.len() && self.part[usize::from(to[at])] > wanted {
                at += 1;
            }
            let near = at.saturating_sub(1)..(at + 1).min(to.len());
            for (take, &back) in near.clone().zip(&to[near]) {
                let off = (self.part[usize::from(back)] - wanted).abs();
                if off < least && self.may_swap(high, out, low, back) {
                    least = off;
                    best = Some(Swap { high: give, low: take, off: off / speed });
                }
            }
        }
        best
    }

    fn may_swap(&self, high: usize, out: u16, low: usize, back: u16) -> bool {
        let free = |expert: u16, rank: usize| {
            self.counts[usize::from(expert)] == 1 || !self.placement.holds(rank, expert)
        };
        out != back && free(out, low) && free(back, high)
    }

    fn apply(&mut self, high: usize, low: usize, swap: &Swap) {
        let (out, back) = (self.movable(high)[swap.high], self.movable(low)[swap.low]);
        let by = self.part[usize::from(out)] - self.part[usize::from(back)];
        self.load[high] -= by;
        self.load[low] += by;
        for (rank, at, expert) in [(high, swap.high, back), (low, swap.low, out)] {
            let fixed = usize::from(self.fixed[rank]);
            let part = self.part;
            let row = &mut self.placement.row_mut(rank)[fixed..];
            row[at] = expert;
            sink(row, at, |a, b| part[usize::from(a)] > part[usize::from(b)]);
        }
    }
}

const RANK: u64 = 0xffff;

fn rank(key: u64) -> usize {
    (key & RANK) as usize
}

/// Moves the entry at `at` to where the descending order wants it.
fn sink(row: &mut [u16], mut at: usize, above: impl Fn(u16, u16) -> bool) {
    while at > 0 && above(row[at], row[at - 1]) {
        row.swap(at, at - 1);
        at -= 1;
    }
    while at + 1 < row.len() && above(row[at + 1], row[at]) {
        row.swap(at, at + 1);
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(loads: &[f64], rows: &[&[u16]], expected: f64) {
        let slots = rows.iter().map(|row| row.len()).max().unwrap();
        let problem = LayerProblem::uniform(rows.len(), slots, loads.to_vec());
        let mut placement = Placement::of_rows(slots, rows);
        let mut load: Vec<f64> =
            rows.iter().map(|row| row.iter().map(|&e| loads[usize::from(e)]).sum()).collect();
        let level = Rows {
            problem: &problem,
            part: loads,
            counts: &vec![1; loads.len()],
            fixed: &vec![0; rows.len()],
            placement: &mut placement,
            load: &mut load,
            node: None,
        }
        .level(Effort { enough: 0.0, swaps: 16 });
        assert_eq!(level, expected, "{placement:?}");
        let sum = |row: &[u16]| row.iter().map(|&e| loads[usize::from(e)]).sum::<f64>();
        assert_eq!(placement.rows().map(sum).collect::<Vec<_>>(), load);
    }

    #[test]
    fn swaps_level_the_ranks() {
        check(&[4.0, 3.0, 2.0, 1.0], &[&[0, 1], &[2, 3]], 5.0);
        check(&[8.0, 1.0, 4.0, 3.0], &[&[0, 1], &[2, 3]], 9.0);
        check(&[9.0, 5.0, 4.0, 3.0, 2.0, 1.0], &[&[0, 1], &[2, 3], &[4, 5]], 10.0);
        check(&[0.0, 0.0], &[&[0], &[1]], 0.0);
        check(&[5.0], &[&[0]], 5.0);
    }
}
