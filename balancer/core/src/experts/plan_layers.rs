//! Plans without a unit: loads and GPUs in, a placement and its split out. For engines that start, for "what if", for
//! comparisons; a running unit goes through [`solve`](super::solve()).

use super::deployment::{Deployment, ExpertLoads, InputError};
use super::problem::{LayerProblem, Placement, Replicas};
use super::regularise::regularised_split;
use super::solve::fresh;
use super::split::exact_split;
use crate::ids::ExpertId;

/// How an expert's load is divided over its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SplitKind {
    /// By the plan's shares.
    #[default]
    Weighted,
    /// In equal parts: all that unmodified engines can do.
    Even,
}

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
    let of_layer = |layer: usize| {
        let problem = problem(deployment, loads.layer(layer));
        let placement = fresh(&problem);
        finish(deployment, &problem, placement, current.map(|c| c[layer].as_slice()), options)
    };
    Ok((0..loads.layers()).map(of_layer).collect())
}

/// A new split on the current placement: no expert moves. Every expert must be in some slot.
pub fn resplit_layers(
    deployment: &Deployment,
    loads: &ExpertLoads,
    current: &CurrentSlots,
    options: &PlanOptions,
) -> Result<Vec<PlannedLayer>, InputError> {
    check(deployment, loads, Some(current))?;
    let of_layer = |layer: usize| {
        let problem = problem(deployment, loads.layer(layer));
        let placement = held(deployment, &current[layer]);
        let missing =
            (0..loads.experts()).find(|&e| !placement.of_rank.iter().any(|held| held.contains(&(e as u16))));
        if let Some(expert) = missing {
            return Err(InputError::CurrentMissing { layer, expert });
        }
        Ok(finish(deployment, &problem, placement, Some(&current[layer]), options))
    };
    (0..loads.layers()).map(of_layer).collect()
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

fn problem(deployment: &Deployment, loads: &[f64]) -> LayerProblem {
    let (ranks, slots) = (deployment.ranks().len(), usize::from(deployment.ranks()[0].slots));
    LayerProblem { ranks, slots, loads: loads.to_vec(), change: Default::default() }
}

fn held(deployment: &Deployment, current: &[Option<ExpertId>]) -> Placement {
    let of = |rank| {
        let mut held: Vec<u16> =
            current[deployment.slots_of(rank)].iter().flatten().map(|expert| expert.0).collect();
        held.sort_unstable();
        held.dedup();
        held
    };
    Placement { of_rank: (0..deployment.ranks().len()).map(of).collect() }
}

fn finish(
    deployment: &Deployment,
    problem: &LayerProblem,
    placement: Placement,
    current: Option<&[Option<ExpertId>]>,
    options: &PlanOptions,
) -> PlannedLayer {
    let replicas = Replicas::of(&placement, problem.experts());
    let exact = exact_split(problem, &replicas);
    let split = match options.split {
        SplitKind::Weighted => regularised_split(problem, &replicas, &exact, options.split_tolerance),
        SplitKind::Even => replicas.even_split(&problem.loads),
    };
    let level = replicas.rank_loads(problem.ranks, &split).into_iter().fold(0.0, f64::max);
    let mut physical_to_logical = vec![None; deployment.slots()];
    let mut share = vec![0.0; deployment.slots()];
    let mut moves = 0;
    for (rank, experts) in placement.of_rank.iter().enumerate() {
        let block = deployment.slots_of(rank);
        let old = current.map(|current| &current[block.clone()]);
        let mut arriving = Vec::new();
        for &expert in experts {
            match old.and_then(|old| old.iter().position(|held| *held == Some(ExpertId(expert)))) {
                Some(at) => physical_to_logical[block.start + at] = Some(ExpertId(expert)),
                None => arriving.push(expert),
            }
        }
        moves += if current.is_some() { arriving.len() } else { 0 };
        for expert in arriving {
            let free = block.clone().find(|&slot| physical_to_logical[slot].is_none());
            physical_to_logical[free.expect("a rank has a slot for each expert")] = Some(ExpertId(expert));
        }
        for slot in block {
            let Some(expert) = physical_to_logical[slot] else { continue };
            let at = replicas.range(expert.index()).find(|&at| usize::from(replicas.rank[at]) == rank);
            let load = problem.loads[expert.index()];
            share[slot] = match load > 0.0 {
                true => split[at.expect("the rank holds a replica")] / load,
                false => 1.0 / replicas.count(expert.index()) as f64,
            };
        }
    }
    PlannedLayer {
        physical_to_logical,
        share,
        imbalance: problem.imbalance_of(level),
        bound: 1.0,
        critical: exact.critical,
        moves,
        node_moves: 0,
    }
}
