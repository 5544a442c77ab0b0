//! A plan is checked by what it says before it is written: whoever reads the file trusts it.

use super::Failure;
use super::evaluate::balance;
use evenkeel_core::experts::{CurrentSlots, Deployment, ExpertLoads, PlannedLayer};
use evenkeel_core::ids::ExpertId;

/// How far a stated imbalance may be from the one that the tables give: rounding of sums.
const ROUNDING: f64 = 1e-6;

/// What the plan may do.
pub(super) struct Allowed<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) loads: &'a ExpertLoads,
    pub(super) current: Option<&'a CurrentSlots>,
    pub(super) moves_max: Option<usize>,
}

/// Fails on the first layer that is not what it must be or not what it says. A failure here is a bug of the solver.
pub(super) fn verify(planned: &[PlannedLayer], allowed: &Allowed<'_>) -> Result<(), Failure> {
    let placement: Vec<_> = planned.iter().map(|layer| layer.physical_to_logical.clone()).collect();
    let share: Vec<_> = planned.iter().map(|layer| layer.share.clone()).collect();
    let mut problem = shape(planned, allowed).err();
    if problem.is_none() {
        let found = balance(allowed.deployment, allowed.loads, &placement, &share);
        problem = (0..).zip(planned).zip(&found.layers).find_map(|((at, layer), found)| {
            of_layer(layer, *found, allowed.current.map(|current| current[at].as_slice()), allowed)
                .err()
                .map(|problem| format!("layer {at}: {problem}"))
        });
    }
    match problem {
        None => Ok(()),
        Some(problem) => {
            let message = format!(
                "the solver made a plan that it must not: {problem}; nothing was written: report this with the loads"
            );
            Err(Failure::new("experts_plan_invalid", message))
        }
    }
}

fn shape(planned: &[PlannedLayer], allowed: &Allowed<'_>) -> Result<(), String> {
    let slots = allowed.deployment.slots();
    let fits = |layer: &PlannedLayer| layer.physical_to_logical.len() == slots && layer.share.len() == slots;
    match planned.len() == allowed.loads.layers() && planned.iter().all(fits) {
        true => Ok(()),
        false => Err("it has another number of layers or slots".to_owned()),
    }
}

fn of_layer(
    layer: &PlannedLayer,
    found: f64,
    current: Option<&[Option<ExpertId>]>,
    allowed: &Allowed<'_>,
) -> Result<(), String> {
    let mut sums = vec![None; allowed.loads.experts()];
    for rank in 0..allowed.deployment.ranks().len() {
        let slots = allowed.deployment.slots_of(rank);
        let mut held: Vec<ExpertId> =
            layer.physical_to_logical[slots.clone()].iter().flatten().copied().collect();
        held.sort_unstable();
        if let Some(twice) = held.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("expert {} is twice on GPU {rank}", twice[0].index()));
        }
        for slot in slots {
            match layer.physical_to_logical[slot] {
                Some(expert) => *sums[expert.index()].get_or_insert(0.0) += layer.share[slot],
                None if layer.share[slot] != 0.0 => return Err(format!("empty slot {slot} has a share")),
                None => {}
            }
        }
    }
    if let Some(expert) = sums.iter().position(Option::is_none) {
        return Err(format!("expert {expert} is in no slot"));
    }
    if let Some(expert) = sums.iter().position(|sum| sum.is_none_or(|sum: f64| (sum - 1.0).abs() > ROUNDING))
    {
        return Err(format!("the shares of expert {expert} do not sum to 1"));
    }
    if (found - layer.imbalance).abs() > ROUNDING * found {
        return Err(format!("it states an imbalance of {}, and has {found}", layer.imbalance));
    }
    let moves =
        current.map_or(0, |current| arrivals(allowed.deployment, current, &layer.physical_to_logical));
    if moves != layer.moves {
        return Err(format!("it states {} moves, and has {moves}", layer.moves));
    }
    match allowed.moves_max {
        Some(max) if moves > max => Err(format!("{moves} moves, and {max} are allowed")),
        _ => Ok(()),
    }
}

/// Experts that GPUs did not hold before.
pub(super) fn arrivals(deployment: &Deployment, from: &[Option<ExpertId>], to: &[Option<ExpertId>]) -> usize {
    let of_rank = |rank: usize| {
        let slots = deployment.slots_of(rank);
        to[slots.clone()].iter().flatten().filter(|e| !from[slots.clone()].contains(&Some(**e))).count()
    };
    (0..deployment.ranks().len()).map(of_rank).sum()
}
