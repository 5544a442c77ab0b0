//! Refines a placement by swaps of single experts, until no rank stands out in what it is expected to carry
//! at worst in the next window.
//!
//! A rank's height is `L + risk * sqrt(V)`: its load under the even split and the standard deviation of that
//! load by [`Change`](super::problem::Change). Ranks on which experts rise together are higher than their load
//! says, and give one of them away.

use super::problem::{LayerProblem, Placement};

/// Standard deviations added to a rank's load. The split can level loads later and cannot level uncertainty, so
/// the placement gives more for the latter than the two or three a forecast of the largest rank would
/// take. On recorded routing of V2-Lite the next window is lowest, and the split least in need of the even one, between
/// 5 and 12.
const RISK: f64 = 8.0;
/// Swaps stop when the highest rank stands above the average height by less than this part of the mean load:
/// below what a window's counts mean.
const LEVEL_ENOUGH: f64 = 3e-4;
/// Lowest ranks tried against the highest one in a swap.
const PARTNERS: usize = 10;
/// Swaps tried per rank before giving up; a usual layer needs one to four.
const SWAPS_PER_RANK_MAX: usize = 12;

/// Swaps a single expert of the highest rank with one of a low rank while that lowers the higher of the two.
/// Replicated experts stay: they are the connections.
pub(super) fn swap_singles(problem: &LayerProblem, counts: &[u16], placement: &mut Placement) {
    let mut heights = Heights::new(problem, counts, placement);
    let enough = problem.mean() * LEVEL_ENOUGH;
    let mut order: Vec<usize> = (0..problem.ranks()).collect();
    for _ in 0..SWAPS_PER_RANK_MAX * problem.ranks() {
        let height: Vec<f64> = (0..problem.ranks()).map(|rank| heights.of(rank)).collect();
        order.sort_by(|&a, &b| height[a].total_cmp(&height[b]).then(a.cmp(&b)));
        let worst = order[order.len() - 1];
        if height[worst] - height.iter().sum::<f64>() / problem.ranks() as f64 <= enough {
            return;
        }
        let partners = &order[..PARTNERS.min(order.len() - 1)];
        let Some(swap) = heights.best_swap(placement, worst, partners, height[worst]) else { return };
        heights.apply(&swap);
        debug_assert!(heights.of(worst) < height[worst], "a swap lowers the highest rank");
        for (rank, from, to) in [(worst, swap.out, swap.back), (swap.partner, swap.back, swap.out)] {
            placement.replace(rank, from, to);
        }
    }
}

/// Expert `out` of `worst` against `back` of `partner`.
struct Swap {
    worst: usize,
    partner: usize,
    out: u16,
    back: u16,
}

struct Heights<'a> {
    counts: &'a [u16],
    parts: usize,
    /// `[experts]`: load of one replica under the even split.
    load: Vec<f64>,
    /// `[experts]`: variance a replica has by itself.
    own: Vec<f64>,
    /// `[experts][parts]`: deviations of one replica.
    deviation: Vec<f64>,
    /// `[ranks]`, `[ranks]` and `[ranks][parts]`: their sums.
    rank_load: Vec<f64>,
    rank_own: Vec<f64>,
    rank_deviation: Vec<f64>,
}

impl<'a> Heights<'a> {
    fn new(problem: &LayerProblem, counts: &'a [u16], placement: &Placement) -> Self {
        let parts = problem.change.parts;
        let load: Vec<f64> = problem.loads.iter().zip(counts).map(|(w, &c)| w / f64::from(c)).collect();
        let own = load.iter().map(|load| (problem.change.drift * load).powi(2)).collect();
        let mut deviation = problem.change.deviation.clone();
        for (expert, &count) in counts.iter().enumerate() {
            deviation[expert * parts..(expert + 1) * parts].iter_mut().for_each(|d| *d /= f64::from(count));
        }
        let mut heights = Heights {
            counts,
            parts,
            load,
            own,
            deviation,
            rank_load: vec![0.0; problem.ranks()],
            rank_own: vec![0.0; problem.ranks()],
            rank_deviation: vec![0.0; problem.ranks() * parts],
        };
        for (rank, held) in placement.rows().enumerate() {
            held.iter().for_each(|&expert| heights.add(rank, expert, 1.0));
        }
        heights
    }

    fn add(&mut self, rank: usize, expert: u16, sign: f64) {
        let (expert, parts) = (usize::from(expert), self.parts);
        self.rank_load[rank] += sign * self.load[expert];
        self.rank_own[rank] += sign * self.own[expert];
        let sums = &mut self.rank_deviation[rank * parts..(rank + 1) * parts];
        let added = &self.deviation[expert * parts..(expert + 1) * parts];
        sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += sign * added);
    }

    fn apply(&mut self, swap: &Swap) {
        for (rank, out, back) in [(swap.worst, swap.out, swap.back), (swap.partner, swap.back, swap.out)] {
            self.add(rank, out, -1.0);
            self.add(rank, back, 1.0);
        }
    }

    fn of(&self, rank: usize) -> f64 {
        let deviation = &self.rank_deviation[rank * self.parts..(rank + 1) * self.parts];
        let variance = self.rank_own[rank] + deviation.iter().map(|d| d * d).sum::<f64>();
        self.rank_load[rank] + RISK * variance.max(0.0).sqrt()
    }

    /// The height of a rank after it gave `out` for `back`.
    fn after(&self, rank: usize, out: usize, back: usize) -> f64 {
        let load = self.rank_load[rank] - self.load[out] + self.load[back];
        let mut variance = self.rank_own[rank] - self.own[out] + self.own[back];
        let parts = self.parts;
        let sums = &self.rank_deviation[rank * parts..(rank + 1) * parts];
        let (out, back) = (&self.deviation[out * parts..][..parts], &self.deviation[back * parts..][..parts]);
        for ((sum, out), back) in sums.iter().zip(out).zip(back) {
            variance += (sum - out + back).powi(2);
        }
        load + RISK * variance.max(0.0).sqrt()
    }

    /// The swap with the lowest resulting higher rank, if it is below `height`.
    fn best_swap(
        &self,
        placement: &Placement,
        worst: usize,
        partners: &[usize],
        height: f64,
    ) -> Option<Swap> {
        let mut best = None;
        let mut least = height * (1.0 - 1e-9);
        for &partner in partners {
            for out in self.singles(placement, worst) {
                for back in self.singles(placement, partner) {
                    // The load alone is a lower bound of the height, and cheap.
                    let by = self.load[usize::from(out)] - self.load[usize::from(back)];
                    if (self.rank_load[worst] - by).max(self.rank_load[partner] + by) >= least {
                        continue;
                    }
                    let here = self.after(worst, out.into(), back.into());
                    if here >= least {
                        continue;
                    }
                    let level = here.max(self.after(partner, back.into(), out.into()));
                    if level < least {
                        least = level;
                        best = Some(Swap { worst, partner, out, back });
                    }
                }
            }
        }
        best
    }

    fn singles<'b>(&'b self, placement: &'b Placement, rank: usize) -> impl Iterator<Item = u16> + 'b {
        placement.of(rank).iter().copied().filter(|&expert| self.counts[usize::from(expert)] == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Change;
    use super::*;

    /// Starts with experts 0 and 1 on one rank, 2 and 3 on the other.
    #[track_caller]
    fn check(loads: [f64; 4], change: Change, parted: bool) {
        let problem = LayerProblem { change, ..LayerProblem::uniform(2, 2, loads.to_vec()) };
        let mut placement = Placement::of_rows(2, &[&[0, 1], &[2, 3]]);
        swap_singles(&problem, &[1; 4], &mut placement);
        assert_eq!(placement.holds(0, 0) != placement.holds(0, 1), parted, "{placement:?}");
        assert!(placement.rows().all(|held| held.len() == 2 && held[0] != held[1]));
    }

    #[test]
    fn loads_are_levelled() {
        check([3.0, 3.0, 1.0, 1.0], Change::default(), true);
        check([1.0; 4], Change::default(), false);
    }

    #[test]
    fn experts_that_rise_together_are_parted() {
        let together = vec![0.5, -0.5, 0.5, -0.5, -0.1, 0.1, -0.1, 0.1];
        check([1.0; 4], Change { parts: 2, deviation: together, drift: 0.0 }, true);
        let against = vec![0.5, -0.5, -0.5, 0.5, -0.1, 0.1, 0.1, -0.1];
        check([1.0; 4], Change { parts: 2, deviation: against.clone(), drift: 0.0 }, false);
        // Levelling the load would part experts that make up for each other.
        check([1.2, 1.0, 1.0, 0.9], Change::default(), true);
        check([1.2, 1.0, 1.0, 0.9], Change { parts: 2, deviation: against, drift: 0.0 }, false);
    }
}
