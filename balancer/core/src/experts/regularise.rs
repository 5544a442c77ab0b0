//! The split that is used: near the optimum of its window, and near to the even split wherever leaving it
//! buys nothing.
//!
//! The plan runs in the *next* window, whose loads differ by a random change with the covariance that
//! [`Change`](super::problem::Change) describes. Among the splits that the tolerance allows:
//!
//! 1. the even split itself, if it is one of them;
//! 2. otherwise the minimum of `sum_g L_g^2 + s (sum_gp v_gp^2 + sum_eg d_e^2 x_eg^2)`, for the largest of a ladder of
//!    strengths `s <= 1` that keeps the tolerance. `v_gp` is the sum of a rank's deviations in part `p`, and `d_e` an expert's
//!    own relative drift and counting noise. With `s = 1` this is the expected sum of squared rank loads of the
//!    next window. The first term alone has its minimum where the largest load is least (Hajek 1990, load
//!    balancing in graphs); the others pull every expert to its even split, and experts that rise together apart. A
//!    vertex of the optimal face ignores them and pays for it in the next window.
//!
//! Minimised by Gauss-Seidel over the experts, each solved exactly (water-filling), over-relaxed. When no
//! strength keeps the tolerance, the last split is blended with the exact one just as far as needed.

use super::components::Components;
use super::problem::{LayerProblem, Replicas, SplitKind};
use super::split::{ExactSplit, exact_split};

/// Sweeps for one strength of the ridge. Connected placements of 32 to 144 ranks settle in 10 to 60.
const SWEEPS_MAX: usize = 64;
/// Over-relaxation of a sweep; between 1.4 and 1.6 the sweeps needed are fewest on placements with about one
/// redundant slot per rank.
const RELAXATION: f64 = 1.5;
/// A sweep that changes no rank by more than this part of the mean ends the iteration.
const SETTLED: f64 = 1e-5;
/// The same where steps are compared: far below what a step gains.
const ROUGHLY_SETTLED: f64 = 1e-4;
/// Each time the tolerance is missed the strength is divided by this; so often, then it is 0.
const STRENGTH_STEP: f64 = 2.0;
const STRENGTH_STEPS: usize = 7;

/// A split and what is proven of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct UsedSplit {
    /// `[replicas]`.
    pub(super) load: Vec<f64>,
    /// Load by speed of the highest rank.
    pub(super) level: f64,
    /// No split of this placement is below this level.
    pub(super) floor: f64,
    /// The ranks that prove the floor. Ascending.
    pub(super) critical: Vec<u16>,
}

/// Splits every expert's load over its replicas. The highest level is at most `1 + tolerance` times the optimum. The
/// floor of the components mostly proves that without the exact split, which is solved only when it does not. An engine that
/// splits evenly leaves no choice.
pub(super) fn used_split(problem: &LayerProblem, replicas: &Replicas, tolerance: f64) -> UsedSplit {
    if problem.split == SplitKind::Even {
        return even_split(problem, replicas);
    }
    let highest = Components::of(problem, replicas).highest(problem, replicas);
    let mut descent = Descent::new(problem, replicas);
    let reached = descent.reach(highest.level * (1.0 + tolerance));
    let level = problem.level_of(&descent.ranks.load);
    if reached {
        return UsedSplit { load: descent.split, level, floor: highest.level, critical: highest.ranks };
    }
    let exact = exact_split(problem, replicas);
    let load = regularised_split(problem, replicas, &exact, tolerance);
    let level = problem.level_of(&replicas.rank_loads(problem.ranks(), &load));
    UsedSplit { load, level, floor: exact.level, critical: exact.critical }
}

/// The split of engines that know no other.
fn even_split(problem: &LayerProblem, replicas: &Replicas) -> UsedSplit {
    let load = replicas.even_split(&problem.loads);
    let rank_loads = replicas.rank_loads(problem.ranks(), &load);
    let level = problem.level_of(&rank_loads);
    let speed = problem.deployment.speed();
    let highest =
        (0u16..).zip(rank_loads.iter().zip(speed)).find(|(_, (load, speed))| **load >= level * *speed);
    UsedSplit { load, level, floor: level, critical: highest.map(|(rank, _)| rank).into_iter().collect() }
}

/// The same when the exact split is known; returns `[replicas]` loads.
pub(super) fn regularised_split(
    problem: &LayerProblem,
    replicas: &Replicas,
    exact: &ExactSplit,
    tolerance: f64,
) -> Vec<f64> {
    let allowed = exact.level * (1.0 + tolerance);
    let mut descent = Descent::new(problem, replicas);
    let reached = descent.reach(allowed);
    let mut split = descent.split;
    if !reached {
        blend(problem, replicas, exact, &mut split, allowed);
    }
    split
}

/// `[ranks]`: the loads under the split that minimises the sum of their squares by speed. The highest of them is the optimum
/// up to the settling of the sweeps, and the ranks at its height are a critical set. An engine that splits evenly leaves no
/// choice here either.
pub(super) fn least_squares(problem: &LayerProblem, replicas: &Replicas) -> Vec<f64> {
    let mut descent = Descent::new(problem, replicas);
    if problem.split == SplitKind::Even {
        return descent.ranks.load;
    }
    let settled = ROUGHLY_SETTLED * problem.mean();
    for _ in 0..SWEEPS_MAX {
        if descent.sweep(0.0) <= settled {
            break;
        }
    }
    descent.ranks.load
}

/// A split on its way from the even one down to where the highest rank is lowest.
struct Descent<'a> {
    problem: &'a LayerProblem,
    replicas: &'a Replicas,
    shared: Vec<Shared>,
    ranks: Ranks<'a>,
    /// `[replicas]`.
    split: Vec<f64>,
}

impl<'a> Descent<'a> {
    fn new(problem: &'a LayerProblem, replicas: &'a Replicas) -> Self {
        let split = replicas.even_split(&problem.loads);
        let ranks = Ranks::new(problem, replicas, &split);
        Descent { problem, replicas, shared: shared_experts(problem, replicas), ranks, split }
    }

    /// Goes on until no rank is above `allowed`; false when the descent does not get there.
    fn reach(&mut self, allowed: f64) -> bool {
        let mean = self.problem.mean();
        if mean <= 0.0 || self.problem.level_of(&self.ranks.load) <= allowed {
            return true;
        }
        // Where nothing is known about the next window, the first split that is good enough will do.
        let settle = self.problem.change.parts > 0 || self.problem.change.drift > 0.0;
        let mut strength = 1.0;
        for step in 0..=STRENGTH_STEPS {
            for _ in 0..SWEEPS_MAX {
                let change = self.sweep(strength);
                if change <= SETTLED * mean || (!settle && self.problem.level_of(&self.ranks.load) <= allowed)
                {
                    break;
                }
            }
            if self.problem.level_of(&self.ranks.load) <= allowed {
                return true;
            }
            strength = if step + 1 == STRENGTH_STEPS { 0.0 } else { strength / STRENGTH_STEP };
        }
        false
    }

    /// Minimises over every expert in turn; returns the largest change.
    fn sweep(&mut self, strength: f64) -> f64 {
        let mut change: f64 = 0.0;
        for expert in &self.shared {
            let held = &self.replicas.rank[expert.range.clone()];
            let split = &mut self.split[expert.range.clone()];
            change = change.max(water_fill(expert, strength, held, split, &mut self.ranks));
        }
        change
    }
}

/// An expert with a choice.
struct Shared {
    load: f64,
    range: std::ops::Range<usize>,
    /// Variance of its own, relative to the square of its load: drift and counting noise.
    own: f64,
    /// Sum of the squares of `unit`.
    square: f64,
    /// `[parts]`: deviations per unit of load.
    unit: Vec<f64>,
}

fn shared_experts(problem: &LayerProblem, replicas: &Replicas) -> Vec<Shared> {
    let is_shared =
        |&&expert: &&u16| replicas.count(expert.into()) > 1 && problem.loads[usize::from(expert)] > 0.0;
    let shared = problem.heaviest_first.iter().filter(is_shared).map(|&expert| {
        let expert = usize::from(expert);
        let load = problem.loads[expert];
        let own = problem.change.drift * problem.change.drift + 1.0 / load.max(1.0);
        let unit: Vec<f64> = problem.change.of(expert).iter().map(|deviation| deviation / load).collect();
        let square = unit.iter().map(|u| u * u).sum();
        Shared { load, range: replicas.range(expert), own, square, unit }
    });
    shared.collect()
}

/// The ranks under the present split.
struct Ranks<'a> {
    parts: usize,
    /// `[ranks]`.
    speed: &'a [f64],
    /// `[ranks]`.
    load: Vec<f64>,
    /// `[ranks][parts]`: sums of deviations.
    deviation: Vec<f64>,
    /// Scratch of `water_fill`: one floor per replica of an expert.
    floor: Vec<f64>,
}

impl<'a> Ranks<'a> {
    fn new(problem: &'a LayerProblem, replicas: &Replicas, split: &[f64]) -> Self {
        let parts = problem.change.parts;
        let mut deviation = vec![0.0; problem.ranks() * parts];
        let loaded = problem.loads.iter().enumerate().filter(|(_, load)| parts > 0 && **load > 0.0);
        for (expert, &load) in loaded {
            for at in replicas.range(expert) {
                let rank = usize::from(replicas.rank[at]);
                let of_rank = &mut deviation[rank * parts..(rank + 1) * parts];
                let part = split[at] / load;
                of_rank.iter_mut().zip(problem.change.of(expert)).for_each(|(sum, d)| *sum += part * d);
            }
        }
        let load = replicas.rank_loads(problem.ranks(), split);
        Self { parts, speed: problem.deployment.speed(), load, deviation, floor: Vec::new() }
    }

    fn deviation(&mut self, rank: usize) -> &mut [f64] {
        &mut self.deviation[rank * self.parts..(rank + 1) * self.parts]
    }
}

/// Minimises the potential over one expert's split `x >= 0`, `sum x = load`, and steps beyond the minimum by the
/// over-relaxation where that stays feasible. Returns the largest change.
///
/// With `R_g` the rank's load without the expert, `r_g` the inner product of the rank's deviations without it and
/// the expert's own, `q` its variance and `s_g` the rank's speed, the potential is `sum_g (1/2 (1 + q) x_g^2 +
/// (R_g + r_g) x_g) / s_g`: water poured into vessels of width `s_g` that stand at `(R_g + r_g) / s_g`.
fn water_fill(expert: &Shared, strength: f64, held: &[u16], split: &mut [f64], ranks: &mut Ranks<'_>) -> f64 {
    let stiffness = 1.0 + strength * (expert.own + expert.square);
    let mut floors = std::mem::take(&mut ranks.floor);
    floors.clear();
    floors.extend(held.iter().zip(split.iter()).map(|(&rank, &part)| {
        let rank = usize::from(rank);
        let inner: f64 = ranks.deviation(rank).iter().zip(&expert.unit).map(|(v, u)| v * u).sum();
        ranks.load[rank] - part + strength * (inner - part * expert.square)
    }));
    // The water level over all replicas, then without those that stand above it, until none does.
    let mut level = f64::INFINITY;
    loop {
        let (mut sum, mut width) = (expert.load * stiffness, 0.0);
        for (&floor, &rank) in floors.iter().zip(held) {
            let speed = ranks.speed[usize::from(rank)];
            if floor < level * speed {
                sum += floor;
                width += speed;
            }
        }
        let next = sum / width;
        // Also when no vessel is left, or rounding alone differs.
        if width <= 0.0 || next >= level {
            break;
        }
        level = next;
    }
    let filled = |at: usize| ((level * ranks.speed[usize::from(held[at])] - floors[at]) / stiffness).max(0.0);
    let feasible = (0..held.len()).all(|at| split[at] + RELAXATION * (filled(at) - split[at]) >= 0.0);
    let step = if feasible { RELAXATION } else { 1.0 };
    let mut change: f64 = 0.0;
    for (at, &rank) in held.iter().enumerate() {
        let rank = usize::from(rank);
        let by = step * (((level * ranks.speed[rank] - floors[at]) / stiffness).max(0.0) - split[at]);
        split[at] += by;
        ranks.load[rank] += by;
        ranks.deviation(rank).iter_mut().zip(&expert.unit).for_each(|(v, u)| *v += by * u);
        change = change.max(by.abs());
    }
    ranks.floor = floors;
    change
}

/// Goes from `split` towards the exact split just as far as the allowed level demands.
fn blend(problem: &LayerProblem, replicas: &Replicas, exact: &ExactSplit, split: &mut [f64], allowed: f64) {
    let from = replicas.rank_loads(problem.ranks(), split);
    let to = replicas.rank_loads(problem.ranks(), &exact.load);
    let needed = |((from, to), speed): ((&f64, &f64), &f64)| match *from > allowed * speed {
        true => ((from - allowed * speed) / (from - to)).clamp(0.0, 1.0),
        false => 0.0,
    };
    let part = from.iter().zip(&to).zip(problem.deployment.speed()).map(needed).fold(0.0, f64::max);
    split.iter_mut().zip(&exact.load).for_each(|(x, exact)| *x += part * (exact - *x));
}

#[cfg(test)]
mod tests {
    use super::super::problem::arbitrary::placed;
    use super::super::problem::{Change, Placement};
    use super::super::split::exact_split;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_split_is_complete_and_within_tolerance(
            (mut problem, placement) in placed(),
            deviation in prop::collection::vec(-100.0..100.0f64, 3 * 12),
            tolerance in prop_oneof![Just(0.0), Just(0.002), 0.0..0.5f64],
        ) {
            let deviation = deviation[..3 * problem.experts()].to_vec();
            problem.change = Change { parts: 3, deviation, drift: 0.1 };
            let replicas = Replicas::of(&placement, problem.experts());
            let exact = exact_split(&problem, &replicas);
            let split = regularised_split(&problem, &replicas, &exact, tolerance);
            for (expert, &load) in problem.loads.iter().enumerate() {
                let sum: f64 = split[replicas.range(expert)].iter().sum();
                prop_assert!((sum - load).abs() <= 1e-6 * load.max(1.0), "expert {expert}: {sum} of {load}");
            }
            prop_assert!(split.iter().all(|&part| part >= -1e-9));
            let highest = problem.level_of(&replicas.rank_loads(problem.ranks(), &split));
            let allowed = exact.level * (1.0 + tolerance);
            prop_assert!(highest <= allowed * (1.0 + 1e-6) + 1e-9, "{highest} > {allowed}");
        }
    }

    /// Expert 0 is on both ranks, 1 and 2 on one each: the part of expert 0 on the first rank.
    fn first_part(loads: [f64; 3], change: Change, tolerance: f64) -> f64 {
        let problem = LayerProblem { change, ..LayerProblem::uniform(2, 2, loads.to_vec()) };
        let placement = Placement::of_rows(2, &[&[0, 1], &[0, 2]]);
        let replicas = Replicas::of(&placement, 3);
        let exact = exact_split(&problem, &replicas);
        regularised_split(&problem, &replicas, &exact, tolerance)[0]
    }

    #[test]
    fn the_even_split_is_kept_where_it_is_allowed() {
        assert_eq!(first_part([10.0, 10.0, 10.0], Change::default(), 0.0), 5.0);
        assert_eq!(first_part([10.0, 10.1, 10.0], Change::default(), 0.01), 5.0);
        let levelled = first_part([10.0, 12.0, 10.0], Change::default(), 0.0);
        assert!((levelled - 4.0).abs() < 1e-6, "{levelled}");
    }

    #[test]
    fn experts_that_rise_together_are_kept_apart() {
        // Even is not allowed, so the split has to choose. Expert 0 swings with 1 and against 2.
        let swings = vec![10.0, -10.0, 10.0, -10.0, -10.0, 10.0];
        let loads = [100.0, 110.0, 100.0];
        let still = Change { parts: 2, deviation: vec![0.0; 6], drift: 0.0 };
        let alone = first_part(loads, still, 0.02);
        let together = first_part(loads, Change { parts: 2, deviation: swings, drift: 0.0 }, 0.02);
        assert!(together < alone - 0.5, "{together} {alone}");
    }
}
