//! The split that is used: near the optimum of its window, and as near to the even split as that allows.
//!
//! The plan runs in the *next* window, in which expert `e` carries `w_e (1 + d_e)` with independent relative
//! changes of variance `v_e`. The expected sum of squared rank loads is then
//! `sum_g L_g^2 + sum_e v_e sum_g x_eg^2`: the potential whose minimum also minimises the largest load
//! (Hajek 1990, load balancing in graphs), plus a ridge that pulls every expert to its even split. A vertex of
//! the optimal face ignores the second term and pays for it in the next window.
//!
//! Minimised by Gauss-Seidel over the experts, each solved exactly (water-filling), over-relaxed. When the
//! ridge keeps the largest load above the tolerance it is lowered, at last to the exact split's own level.

use super::problem::{LayerProblem, Replicas};
use super::split::ExactSplit;

/// Sweeps for one strength of the ridge. Connected placements of 32 to 144 ranks settle in 10 to 60.
const SWEEPS_MAX: usize = 64;
/// Over-relaxation of a sweep; between 1.4 and 1.6 the sweeps needed are fewest on placements with about one
/// redundant slot per rank.
const RELAXATION: f64 = 1.5;
/// A sweep that changes no rank by more than this part of the mean ends the iteration.
const SETTLED: f64 = 1e-5;
/// Each time the tolerance is missed the ridge is divided by this; three times, then it is dropped.
const RIDGE_STEP: f64 = 8.0;
const RIDGE_STEPS: usize = 3;

/// Splits every expert's load over its replicas; returns `[replicas]` loads.
///
/// `drift` is the relative standard deviation of an expert's load between windows; counting noise
/// (`1 / w` for a count of `w`) is added to its square. The largest rank load is at most
/// `exact.level * (1 + tolerance)`.
pub(super) fn regularised_split(
    problem: &LayerProblem,
    replicas: &Replicas,
    exact: &ExactSplit,
    drift: f64,
    tolerance: f64,
) -> Vec<f64> {
    let mut split = replicas.even_split(&problem.loads);
    let mean = problem.mean();
    if mean <= 0.0 {
        return split;
    }
    let allowed = exact.level * (1.0 + tolerance);
    let mut rank_load = replicas.rank_loads(problem.ranks, &split);
    let shared: Vec<usize> =
        (0..problem.experts()).filter(|&e| replicas.count(e) > 1 && problem.loads[e] > 0.0).collect();
    let mut strength = 1.0;
    for step in 0..=RIDGE_STEPS {
        for _ in 0..SWEEPS_MAX {
            let mut change: f64 = 0.0;
            for &expert in &shared {
                let ridge = strength * (drift * drift + 1.0 / problem.loads[expert].max(1.0));
                let range = replicas.range(expert);
                let ranks = &replicas.rank[range.clone()];
                let moved =
                    water_fill(problem.loads[expert], ridge, ranks, &mut split[range], &mut rank_load);
                change = change.max(moved);
            }
            if change <= SETTLED * mean {
                break;
            }
        }
        if largest(&rank_load) <= allowed {
            return split;
        }
        strength = if step + 1 == RIDGE_STEPS { 0.0 } else { strength / RIDGE_STEP };
    }
    blend(problem, replicas, exact, &mut split, allowed);
    split
}

/// Minimises `1/2 sum_g (R_g + x_g)^2 + ridge/2 sum_g x_g^2` over `x >= 0`, `sum x = load`, where `R` is what
/// the ranks carry besides this expert, and steps beyond the minimum by the over-relaxation where that stays
/// feasible. Returns the largest change.
fn water_fill(load: f64, ridge: f64, ranks: &[u16], split: &mut [f64], rank_load: &mut [f64]) -> f64 {
    let rest = |at: usize, split: &[f64], rank_load: &[f64]| rank_load[usize::from(ranks[at])] - split[at];
    // The water level over all replicas, then without those whose rank stands above it, until none does.
    let mut level = f64::INFINITY;
    loop {
        let (mut sum, mut count) = (0.0, 0usize);
        for at in 0..ranks.len() {
            let rest = rest(at, split, rank_load);
            if rest < level {
                sum += rest;
                count += 1;
            }
        }
        let next = (load * (1.0 + ridge) + sum) / count as f64;
        if next >= level {
            break;
        }
        level = next;
    }
    let wanted = |at: usize, split: &[f64], rank_load: &[f64]| {
        ((level - rest(at, split, rank_load)) / (1.0 + ridge)).max(0.0)
    };
    let beyond = |at: usize| split[at] + RELAXATION * (wanted(at, split, rank_load) - split[at]) >= 0.0;
    let step = if (0..ranks.len()).all(beyond) { RELAXATION } else { 1.0 };
    let mut change: f64 = 0.0;
    for at in 0..ranks.len() {
        let by = step * (wanted(at, split, rank_load) - split[at]);
        split[at] += by;
        rank_load[usize::from(ranks[at])] += by;
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
