//! A placement from the loads alone, by the phases that fit the shape.

use super::level::Effort;
use super::place_components::{falls_into_trees, place_components};
use super::place_connected::place_connected;
use super::problem::{LayerProblem, Placement};
use super::replicas::replica_counts;
use super::swap::swap_singles;

/// The even split of a placement need only come near; what is left, the split levels.
const EFFORT: Effort = Effort { enough: 3e-4, thorough: false };

/// Places a layer for a weighted split.
pub(super) fn fresh(problem: &LayerProblem) -> Placement {
    if falls_into_trees(problem) {
        return place_components(problem);
    }
    let counts = replica_counts(problem);
    let mut placement = place_connected(problem, &counts, EFFORT);
    if problem.change.parts > 0 {
        swap_singles(problem, &counts, &mut placement);
    }
    placement.sort();
    placement
}

/// No placement at all in these slots, with any split, is better than this level: the mean, and the largest replica
/// when all redundant slots go to the largest experts (a replica fits one rank whole, and an expert has at most one replica
/// on a rank). Both are necessary; they need not be sufficient.
pub(super) fn bound(problem: &LayerProblem) -> f64 {
    let counts = replica_counts(problem);
    let largest = problem.loads.iter().zip(&counts).map(|(w, &c)| w / f64::from(c)).fold(0.0, f64::max);
    let fastest = problem.deployment.speed().iter().copied().fold(0.0, f64::max);
    (largest / fastest).max(problem.mean())
}
