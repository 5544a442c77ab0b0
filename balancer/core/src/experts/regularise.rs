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

use super::problem::{LayerProblem, Replicas};
use super::split::ExactSplit;

/// Sweeps for one strength of the ridge. Connected placements of 32 to 144 ranks settle in 10 to 60.
const SWEEPS_MAX: usize = 64;
/// Over-relaxation of a sweep; between 1.4 and 1.6 the sweeps needed are fewest on placements with about one
/// redundant slot per rank.
const RELAXATION: f64 = 1.5;
/// A sweep that changes no rank by more than this part of the mean ends the iteration.
const SETTLED: f64 = 1e-5;
/// Each time the tolerance is missed the strength is divided by this; so often, then it is 0.
const STRENGTH_STEP: f64 = 2.0;
const STRENGTH_STEPS: usize = 7;

/// Splits every expert's load over its replicas; returns `[replicas]` loads. The largest rank load is at most
/// `exact.level * (1 + tolerance)`.
pub(super) fn regularised_split(
    problem: &LayerProblem,
    replicas: &Replicas,
    exact: &ExactSplit,
    tolerance: f64,
) -> Vec<f64> {
    let mut split = replicas.even_split(&problem.loads);
    let mean = problem.mean();
    if mean <= 0.0 {
        return split;
    }
    let allowed = exact.level * (1.0 + tolerance);
    let shared: Vec<Shared> = shared_experts(problem, replicas);
    let mut ranks = Ranks::new(problem, replicas, &split);
    if largest(&ranks.load) <= allowed {
        return split;
    }
    let mut strength = 1.0;
    for step in 0..=STRENGTH_STEPS {
        for _ in 0..SWEEPS_MAX {
            let mut change: f64 = 0.0;
            for expert in &shared {
                let held = &replicas.rank[expert.range.clone()];
                let moved = water_fill(expert, strength, held, &mut split[expert.range.clone()], &mut ranks);
                change = change.max(moved);
            }
            if change <= SETTLED * mean {
                break;
            }
        }
        if largest(&ranks.load) <= allowed {
            return split;
        }
        strength = if step + 1 == STRENGTH_STEPS { 0.0 } else { strength / STRENGTH_STEP };
    }
    blend(problem, replicas, exact, &mut split, allowed);
    split
}

/// An expert with a choice.
struct Shared {
    load: f64,
    range: std::ops::Range<usize>,
    /// Variance of its own, relative to the square of its load: drift and counting noise.
    own: f64,
    /// `[parts]`: deviations per unit of load.
    unit: Vec<f64>,
}

fn shared_experts(problem: &LayerProblem, replicas: &Replicas) -> Vec<Shared> {
    (0..problem.experts())
        .filter(|&expert| replicas.count(expert) > 1 && problem.loads[expert] > 0.0)
        .map(|expert| {
            let load = problem.loads[expert];
            let own = problem.change.drift * problem.change.drift + 1.0 / load.max(1.0);
            let unit: Vec<f64> = problem.change.of(expert).iter().map(|deviation| deviation / load).collect();
            Shared { load, range: replicas.range(expert), own, unit }
        })
        .collect()
}

/// The ranks under the present split.
struct Ranks {
    parts: usize,
    /// `[ranks]`.
    load: Vec<f64>,
    /// `[ranks][parts]`: sums of deviations.
    deviation: Vec<f64>,
}

impl Ranks {
    fn new(problem: &LayerProblem, replicas: &Replicas, split: &[f64]) -> Self {
        let parts = problem.change.parts;
        let mut deviation = vec![0.0; problem.ranks * parts];
        for (expert, &load) in problem.loads.iter().enumerate().filter(|(_, load)| **load > 0.0) {
            for at in replicas.range(expert) {
                let rank = usize::from(replicas.rank[at]);
                let of_rank = &mut deviation[rank * parts..(rank + 1) * parts];
                let part = split[at] / load;
                of_rank.iter_mut().zip(problem.change.of(expert)).for_each(|(sum, d)| *sum += part * d);
            }
        }
        Self { parts, load: replicas.rank_loads(problem.ranks, split), deviation }
    }

    fn deviation(&mut self, rank: usize) -> &mut [f64] {
        &mut self.deviation[rank * self.parts..(rank + 1) * self.parts]
    }
}

/// Minimises the potential over one expert's split `x >= 0`, `sum x = load`, and steps beyond the minimum by the
/// over-relaxation where that stays feasible. Returns the largest change.
///
/// With `R_g` the rank's load without the expert, `r_g` the inner product of the rank's deviations without it and
/// the expert's own, and `q` its variance, the potential is `sum_g 1/2 (1 + q) x_g^2 + (R_g + r_g) x_g`: water
/// poured into vessels that stand at `R_g + r_g`.
fn water_fill(expert: &Shared, strength: f64, held: &[u16], split: &mut [f64], ranks: &mut Ranks) -> f64 {
    let square: f64 = expert.unit.iter().map(|u| u * u).sum();
    let stiffness = 1.0 + strength * (expert.own + square);
    let floor: Vec<f64> = held
        .iter()
        .zip(split.iter())
        .map(|(&rank, &part)| {
            let rank = usize::from(rank);
            let inner: f64 = ranks.deviation(rank).iter().zip(&expert.unit).map(|(v, u)| v * u).sum();
            ranks.load[rank] - part + strength * (inner - part * square)
        })
        .collect();
    // The water level over all replicas, then without those that stand above it, until none does.
    let mut level = f64::INFINITY;
    loop {
        let under = floor.iter().filter(|floor| **floor < level);
        let (sum, count) = under.fold((0.0, 0usize), |(sum, count), floor| (sum + floor, count + 1));
        let next = (expert.load * stiffness + sum) / count as f64;
        if next >= level {
            break;
        }
        level = next;
    }
    let by = |at: usize, split: &[f64]| ((level - floor[at]) / stiffness).max(0.0) - split[at];
    let feasible = (0..held.len()).all(|at| split[at] + RELAXATION * by(at, split) >= 0.0);
    let step = if feasible { RELAXATION } else { 1.0 };
    let mut change: f64 = 0.0;
    for (at, &rank) in held.iter().enumerate() {
        let rank = usize::from(rank);
        let by = step * by(at, split);
        split[at] += by;
        ranks.load[rank] += by;
        ranks.deviation(rank).iter_mut().zip(&expert.unit).for_each(|(v, u)| *v += by * u);
        change = change.max(by.abs());
    }
    change
}

/// Goes from `split` towards the exact split just as far as the allowed level demands.
fn blend(problem: &LayerProblem, replicas: &Replicas, exact: &ExactSplit, split: &mut [f64], allowed: f64) {
    let from = replicas.rank_loads(problem.ranks, split);
    let to = replicas.rank_loads(problem.ranks, &exact.load);
    let needed = |(from, to): (&f64, &f64)| match from > &allowed {
        true => ((from - allowed) / (from - to)).clamp(0.0, 1.0),
        false => 0.0,
    };
    let part = from.iter().zip(&to).map(needed).fold(0.0, f64::max);
    split.iter_mut().zip(&exact.load).for_each(|(x, exact)| *x += part * (exact - *x));
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
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
            let highest = largest(&replicas.rank_loads(problem.ranks, &split));
            let allowed = exact.level * (1.0 + tolerance);
            prop_assert!(highest <= allowed * (1.0 + 1e-6) + 1e-9, "{highest} > {allowed}");
        }
    }

    /// Expert 0 is on both ranks, 1 and 2 on one each: the part of expert 0 on the first rank.
    fn first_part(loads: [f64; 3], change: Change, tolerance: f64) -> f64 {
        let problem = LayerProblem { ranks: 2, slots: 2, loads: loads.to_vec(), change };
        let placement = Placement { of_rank: vec![vec![0, 1], vec![0, 2]] };
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
        let alone = first_part(loads, Change::default(), 0.02);
        let together = first_part(loads, Change { parts: 2, deviation: swings, drift: 0.0 }, 0.02);
        assert!(together < alone - 0.5, "{together} {alone}");
    }
}
