//! Plans without a unit: loads and GPUs in, a placement and its split out. For engines that start, for "what if", for
//! comparisons; a running unit goes through [`solve`](super::solve()).

use super::deployment::{Deployment, ExpertLoads, InputError};
use super::fresh::{bound, fresh, replan};
use super::problem::{LayerProblem, Placement, Replicas, SplitKind};
use super::regularise::used_split;
use super::repair::{Budget, missing};
use crate::ids::ExpertId;
use std::sync::Arc;

/// What to plan for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// The split that the placement is made for.
    pub split: SplitKind,
    /// How far (as a ratio above the optimum) the split may stay from the best one to be nearer to the even split.
    pub split_tolerance: f64,
    /// Most experts that ranks may have to fetch, per layer, starting from the current placement; `None`: no bound.
    pub moves_max: Option<usize>,
    /// Of those, most that may come from another node; `None`: no bound.
    pub node_moves_max: Option<usize>,
    /// Threads; layers are independent, and the result does not depend on it. 0 counts as 1.
    pub threads: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        // The tolerance is half of the smallest imbalance that the goals tell apart.
        Self {
            split: SplitKind::Weighted,
            split_tolerance: 5e-5,
            moves_max: None,
            node_moves_max: None,
            threads: 1,
        }
    }
}

/// One planned layer. Physical slots are numbered as in [`Deployment`].
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedLayer {
    /// `[slots]`: what each slot holds. Experts that a rank held already keep their slots.
    pub physical_to_logical: Vec<Option<ExpertId>>,
    /// `[slots]`: the part of its expert's load that the slot gets; sums to 1 per expert, 0 in empty slots.
    pub share: Vec<f64>,
    /// Max over mean of the ranks' loads by speed, under `share`; 1 when there is no load.
    pub imbalance: f64,
    /// No placement in these slots reaches less than this imbalance.
    pub bound: f64,
    /// Ranks whose exclusive experts prove that no other split of this placement is better. Ascending.
    pub critical: Vec<u16>,
    /// Experts that a rank must fetch because it did not hold them; 0 without a current placement.
    pub moves: usize,
    /// Of those, the ones that no rank of the same node held.
    pub node_moves: usize,
}

/// The current placement: `[layers][slots]`. Slots may be empty, and experts may be missing (a rank died).
pub type CurrentSlots = [Vec<Option<ExpertId>>];

/// Plans every layer, from nothing or from the current placement.
pub fn plan_layers(
    deployment: &Deployment,
    loads: &ExpertLoads,
    current: Option<&CurrentSlots>,
    options: &PlanOptions,
) -> Result<Vec<PlannedLayer>, InputError> {
    check(deployment, loads, current)?;
    let shared = Arc::new(deployment.clone());
    let of_layer = |layer: usize| {
        let problem = LayerProblem::split_by(options.split, &shared, loads.layer(layer).to_vec());
        let Some(current) = current.map(|current| current[layer].as_slice()) else {
            return Ok(written(&problem, &fresh(&problem), None, options));
        };
        let running = Placement::of_slots(deployment, current);
        let budget = Budget {
            moves: options.moves_max.unwrap_or(usize::MAX),
            node_moves: options.node_moves_max.unwrap_or(usize::MAX),
        };
        let missing = missing(&problem, &running).len();
        let allowed = budget.moves.min(budget.node_moves);
        if missing > allowed {
            return Err(InputError::Budget { layer, missing, allowed });
        }
        let placement = replan(&problem, &running, budget, options.split_tolerance);
        Ok(written(&problem, &placement, Some(current), options))
    };
    each_layer(loads.layers(), options.threads, of_layer).into_iter().collect()
}

/// A new split on the current placement: no expert moves. Every expert must be in some slot.
pub fn resplit_layers(
    deployment: &Deployment,
    loads: &ExpertLoads,
    current: &CurrentSlots,
    options: &PlanOptions,
) -> Result<Vec<PlannedLayer>, InputError> {
    check(deployment, loads, Some(current))?;
    check_complete(loads, current)?;
    let shared = Arc::new(deployment.clone());
    Ok(each_layer(loads.layers(), options.threads, |layer| {
        let problem = LayerProblem::split_by(options.split, &shared, loads.layer(layer).to_vec());
        let placement = Placement::of_slots(deployment, &current[layer]);
        written(&problem, &placement, Some(&current[layer]), options)
    }))
}

fn check(
    deployment: &Deployment,
    loads: &ExpertLoads,
    current: Option<&CurrentSlots>,
) -> Result<(), InputError> {
    let (slots, experts) = (deployment.slots(), loads.experts());
    if slots < experts {
        return Err(InputError::TooFewSlots { experts, slots });
    }
    if !experts.is_multiple_of(deployment.groups()) {
        return Err(InputError::GroupsNotDivisible { experts, groups: deployment.groups() });
    }
    let Some(current) = current else { return Ok(()) };
    if current.len() != loads.layers() {
        return Err(InputError::CurrentShape {
            what: "layers",
            found: current.len(),
            expected: loads.layers(),
        });
    }
    for (layer, row) in current.iter().enumerate() {
        if row.len() != slots {
            return Err(InputError::CurrentShape { what: "slots", found: row.len(), expected: slots });
        }
        if let Some(slot) = row.iter().position(|held| held.is_some_and(|expert| expert.index() >= experts)) {
            let expert = row[slot].map_or(0, ExpertId::index);
            return Err(InputError::CurrentExpert { layer, slot, expert, experts });
        }
    }
    Ok(())
}

fn check_complete(loads: &ExpertLoads, current: &CurrentSlots) -> Result<(), InputError> {
    let mut held = vec![false; loads.experts()];
    for (layer, row) in current.iter().enumerate() {
        held.fill(false);
        row.iter().flatten().for_each(|expert| held[expert.index()] = true);
        if let Some(expert) = held.iter().position(|held| !held) {
            return Err(InputError::CurrentMissing { layer, expert });
        }
    }
    Ok(())
}

/// Layers are independent, so the result does not depend on how they fall to the threads. Each takes every n-th:
/// neighbours are alike in what they cost.
fn each_layer<T: Send>(layers: usize, threads: usize, of_layer: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = threads.clamp(1, layers.max(1));
    let part = |first: usize| -> Vec<T> { (first..layers).step_by(threads).map(&of_layer).collect() };
    if threads == 1 {
        return part(0);
    }
    let parts: Vec<Vec<T>> = std::thread::scope(|scope| {
        let part = &part;
        let others: Vec<_> = (1..threads).map(|first| scope.spawn(move || part(first))).collect();
        let mut parts = vec![part(0)];
        parts.extend(others.into_iter().map(|other| other.join().expect("the solver does not panic")));
        parts
    });
    let mut parts: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
    (0..layers).map(|layer| parts[layer % threads].next().expect("every layer was planned once")).collect()
}

/// Splits the load of a placement and writes both into physical slots.
fn written(
    problem: &LayerProblem,
    placement: &Placement,
    current: Option<&[Option<ExpertId>]>,
    options: &PlanOptions,
) -> PlannedLayer {
    let replicas = Replicas::of(placement, problem.experts());
    let split = used_split(problem, &replicas, options.split_tolerance);
    let mut layer = PlannedLayer {
        physical_to_logical: vec![None; problem.deployment.slots()],
        share: vec![0.0; problem.deployment.slots()],
        imbalance: problem.imbalance_of(split.level),
        bound: problem.imbalance_of(bound(problem)),
        critical: split.critical,
        moves: 0,
        node_moves: 0,
    };
    // The entries of an expert ascend by rank, as the ranks are gone through here.
    let mut next = replicas.start.clone();
    for rank in 0..problem.ranks() {
        let slots = problem.deployment.slots_of(rank);
        let old = current.map(|current| &current[slots.clone()]);
        fill(&mut layer.physical_to_logical[slots.clone()], placement.of(rank), old);
        for slot in slots {
            let Some(expert) = layer.physical_to_logical[slot].map(ExpertId::index) else { continue };
            // Not the load itself: beside loads a million times larger, sweeps round by more than a share may be off.
            let sum: f64 = split.load[replicas.range(expert)].iter().sum();
            layer.share[slot] = match sum > 0.0 {
                true => split.load[next[expert]].max(0.0) / sum,
                false => 1.0 / replicas.count(expert) as f64,
            };
            next[expert] += 1;
        }
    }
    if let Some(current) = current {
        (layer.moves, layer.node_moves) = moves(&problem.deployment, current, placement);
    }
    layer
}

/// Writes the experts of one rank into its slots: those that were there stay in their slots, the others take the
/// lowest free ones.
fn fill(slots: &mut [Option<ExpertId>], experts: &[u16], old: Option<&[Option<ExpertId>]>) {
    let place_of = |expert: u16| old?.iter().position(|held| *held == Some(ExpertId(expert)));
    for &expert in experts {
        if let Some(at) = place_of(expert) {
            slots[at] = Some(ExpertId(expert));
        }
    }
    let mut at = 0;
    for &expert in experts.iter().filter(|&&expert| place_of(expert).is_none()) {
        while slots[at].is_some() {
            at += 1;
        }
        slots[at] = Some(ExpertId(expert));
    }
}

/// Experts that ranks have to fetch, and of those the ones that come from another node.
pub(super) fn moves(
    deployment: &Deployment,
    current: &[Option<ExpertId>],
    placement: &Placement,
) -> (usize, usize) {
    let node = |rank: usize| usize::from(deployment.ranks()[rank].node);
    let mut on_node: Vec<Vec<u16>> = vec![Vec::new(); deployment.nodes()];
    for rank in 0..placement.ranks() {
        on_node[node(rank)]
            .extend(current[deployment.slots_of(rank)].iter().flatten().map(|expert| expert.0));
    }
    on_node.iter_mut().for_each(|experts| experts.sort_unstable());
    let (mut moves, mut node_moves) = (0, 0);
    for (rank, experts) in placement.rows().enumerate() {
        let old = &current[deployment.slots_of(rank)];
        for expert in experts.iter().filter(|&&expert| !old.contains(&Some(ExpertId(expert)))) {
            moves += 1;
            node_moves += usize::from(on_node[node(rank)].binary_search(expert).is_err());
        }
    }
    (moves, node_moves)
}
