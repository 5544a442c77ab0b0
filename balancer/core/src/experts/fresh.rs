//! A placement from the loads alone, by the phases that fit the shape.

use super::groups::home_nodes;
use super::level::Effort;
use super::place_components::{falls_into_trees, place_components};
use super::place_connected::{place_at_home, place_connected};
use super::place_even::place_even;
use super::problem::{LayerProblem, Placement, Replicas, SplitKind};
use super::regularise::used_split;
use super::relabel::relabel;
use super::repair::{Budget, fill, missing, repair};
use super::replicas::replica_counts;
use super::swap::swap_singles;

/// The even split of a placement need only come near, what is left, the split levels; but the nearer it comes, the less a split
/// has to leave it, and the better that split fares in the next window.
const ENOUGH: f64 = 3e-4;
/// Pairs of ranks tried to come near. With 96 of them 32 ranks take longer than half as much again as a plain greedy planner.
const PAIRS_TRIED: usize = 64;

/// Height above the mean at which a placement counts as not level.
const NOT_LEVEL: f64 = 1e-3;

/// Places a layer for the split of its engine.
pub(super) fn fresh(problem: &LayerProblem) -> Placement {
    let mut placement = placed(problem);
    if !is_complete(problem, &placement) {
        // Ranks of very different size may leave slots free that the counts were meant to fill.
        let (running, mut budget) = (placement.clone(), Budget::NONE);
        fill(problem, &running, &mut placement, &mut budget);
    }
    placement.sort();
    placement
}

fn placed(problem: &LayerProblem) -> Placement {
    let effort = Effort { enough: ENOUGH, swaps: PAIRS_TRIED / problem.ranks() };
    if problem.split == SplitKind::Even {
        return place_even(problem);
    }
    if let Some(homes) = home_nodes(problem) {
        return place_at_home(problem, &replica_counts(problem), effort, &homes);
    }
    if falls_into_trees(problem) {
        return place_components(problem);
    }
    let counts = replica_counts(problem);
    let mut placement = place_connected(problem, &counts, effort);
    if problem.change.parts > 0 {
        swap_singles(problem, &counts, &mut placement);
    }
    // Two slots hold few connections, so that the split cannot level everything; a placement that is level under the even
    // split may be better.
    let two_slots = problem.deployment.is_uniform() && problem.slots(0) == 2;
    let level = |placement: &Placement| level_of(problem, placement, NOT_LEVEL / 10.0);
    if two_slots && level(&placement) > problem.mean() * (1.0 + NOT_LEVEL) {
        let even = place_even(problem);
        if level(&even) < level(&placement) {
            placement = even;
        }
    }
    placement
}

/// What the split of a placement reaches, up to a tolerance.
fn level_of(problem: &LayerProblem, placement: &Placement, tolerance: f64) -> f64 {
    used_split(problem, &Replicas::of(placement, problem.experts()), tolerance).level
}

/// Relative height above a placement from nothing up to which the repaired running one is preferred: it moves a tenth, and
/// this is less than windows differ by.
const NEAR_ENOUGH: f64 = 0.001;
/// Relative height of the running placement from which on nothing is repaired: after a change of domain, or at the start,
/// nearly everything moves anyhow.
const BEYOND_REPAIR: f64 = 0.1;

/// A good placement that the running one reaches with few moves. One that is as good as a placement from nothing, and complete,
/// stays as it is. With a budget the running one is only repaired; without one a placement from nothing, handed to the ranks
/// so that most experts stay, is taken where repairs do not come near it.
pub(super) fn replan(problem: &LayerProblem, running: &Placement, budget: Budget, enough: f64) -> Placement {
    let level = |placement: &Placement| level_of(problem, placement, enough);
    if !is_complete(problem, running) {
        return repair(problem, running, budget, enough);
    }
    let near_enough = problem.mean() * (1.0 + NEAR_ENOUGH);
    let now = level(running);
    if now <= near_enough {
        return running.clone();
    }
    let fresh = fresh(problem);
    let best = level(&fresh);
    if now <= best * (1.0 + NEAR_ENOUGH) {
        return running.clone();
    }
    if budget != Budget::NONE {
        return repair(problem, running, budget, enough);
    }
    if now <= problem.mean() * (1.0 + BEYOND_REPAIR) {
        let near = repair(problem, running, budget, enough);
        if level(&near) <= near_enough.max(best * (1.0 + NEAR_ENOUGH)) {
            return near;
        }
    }
    relabel(problem, &fresh, running)
}

/// Every expert is somewhere, and no rank has a slot for one more.
fn is_complete(problem: &LayerProblem, running: &Placement) -> bool {
    let is_full = |rank| running.room(rank) == 0 || running.of(rank).len() == problem.experts();
    (0..problem.ranks()).all(is_full) && missing(problem, running).is_empty()
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
