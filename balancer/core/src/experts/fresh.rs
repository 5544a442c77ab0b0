//! A placement from the loads alone, by the phases that fit the shape.

use super::groups::home_nodes;
use super::level::Effort;
use super::place_components::{falls_into_trees, place_components};
use super::place_connected::{place_at_home, place_connected};
use super::place_even::place_even;
use super::problem::{LayerProblem, Placement, Replicas};
use super::regularise::used_split;
use super::relabel::relabel;
use super::repair::{Budget, missing, repair};
use super::replicas::replica_counts;
use super::swap::swap_singles;

/// The even split of a placement need only come near; what is left, the split levels.
const EFFORT: Effort = Effort { enough: 3e-4, thorough: false };

/// Height above the mean at which a placement counts as not level.
const NOT_LEVEL: f64 = 1e-3;

/// Places a layer for a weighted split.
pub(super) fn fresh(problem: &LayerProblem) -> Placement {
    if let Some(homes) = home_nodes(problem) {
        let mut placement = place_at_home(problem, &replica_counts(problem), EFFORT, &homes);
        placement.sort();
        return placement;
    }
    if falls_into_trees(problem) {
        return place_components(problem);
    }
    let counts = replica_counts(problem);
    let mut placement = place_connected(problem, &counts, EFFORT);
    if problem.change.parts > 0 {
        swap_singles(problem, &counts, &mut placement);
    }
    // Two slots hold few connections, so that the split cannot level everything; a placement that is level under the even
    // split may be better.
    let two_slots = problem.deployment.is_uniform() && problem.slots(0) == 2;
    if two_slots && level_of(problem, &placement) > problem.mean() * (1.0 + NOT_LEVEL) {
        let even = place_even(problem);
        if level_of(problem, &even) < level_of(problem, &placement) {
            placement = even;
        }
    }
    placement.sort();
    placement
}

/// What the split of a placement reaches, up to a tolerance too small to choose by.
fn level_of(problem: &LayerProblem, placement: &Placement) -> f64 {
    used_split(problem, &Replicas::of(placement, problem.experts()), NOT_LEVEL / 10.0).level
}

/// Relative height above a placement from nothing up to which the repaired running one is preferred: it moves a tenth, and
/// this is less than windows differ by.
const NEAR_ENOUGH: f64 = 0.001;
/// Relative height of the running placement from which on nothing is repaired: after a change of domain, or at the start,
/// nearly everything moves anyhow.
const BEYOND_REPAIR: f64 = 0.1;

/// A good placement that the running one reaches with few moves. With a budget it is only repaired; without one a placement
/// from nothing, handed to the ranks so that most experts stay, is taken where repairs do not come near it.
pub(super) fn replan(problem: &LayerProblem, running: &Placement, budget: Budget, enough: f64) -> Placement {
    let level = |placement: &Placement| {
        let replicas = Replicas::of(placement, problem.experts());
        used_split(problem, &replicas, enough).level
    };
    let is_whole = !running.rows().any(<[u16]>::is_empty) && missing(problem, running).is_empty();
    let mut near = running.clone();
    if budget != Budget::NONE || !is_whole || level(running) <= problem.mean() * (1.0 + BEYOND_REPAIR) {
        near = repair(problem, running, budget, enough);
        if budget != Budget::NONE || !is_whole || level(&near) <= problem.mean() * (1.0 + NEAR_ENOUGH) {
            return near;
        }
    }
    let fresh = relabel(&fresh(problem), running, problem.experts());
    if level(&fresh) * (1.0 + NEAR_ENOUGH) < level(&near) { fresh } else { near }
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
