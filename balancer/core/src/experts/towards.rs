//! Steps to a given placement, without regard to load: back to an older plan, or to what operators ordered.

use super::problem::{LayerProblem, Placement, Replicas, to_layer_plan};
use super::schedule::{next_step, plans_needed};
use super::solve::deployment_of;
use crate::ids::ExpertId;
use crate::plan::{LayerPlan, Plan, SHARE_ONE};
use crate::topology::{UnitShape, UnitTopology};

/// The next plan on the way to a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `[layers]`: those of the child of the running plan.
    pub layers: Vec<LayerPlan>,
    /// Plans needed after it. `None`: weights have to move and the unit has no spare slot, so it is as the running one
    /// wherever they do.
    pub plans_left: Option<usize>,
}

/// The next plan from `running` to one in which every rank holds the experts that it holds in `wanted`, with the same shares.
/// Where a rank holds its experts in other slots makes no difference to what it does. `None`: it is there.
///
/// Both must fit the unit ([`crate::invariants::check`]).
pub fn step_towards(topology: &UnitTopology, running: &Plan, wanted: &[LayerPlan]) -> Option<Step> {
    let shape = topology.shape();
    let deployment = deployment_of(topology);
    let mut step = Step { layers: Vec::with_capacity(wanted.len()), plans_left: Some(0) };
    for (have, want) in running.layers.iter().zip(wanted) {
        let (from, to) =
            (Placement::of_plan(&deployment, shape, have), Placement::of_plan(&deployment, shape, want));
        let problem = LayerProblem::plain(&deployment, vec![1.0; shape.experts.into()]);
        let (layer, left) =
            step_of_layer(&problem, shape, have, from, &to, |replicas| shares_of(shape, want, replicas));
        step.plans_left = step.plans_left.zip(left).map(|(most, left)| most.max(left));
        step.layers.push(layer);
    }
    (step.layers != running.layers).then_some(step).or_else(|| stuck(running, wanted, topology))
}

/// Nothing can be done, though the placement is another: there are no spare slots.
fn stuck(running: &Plan, wanted: &[LayerPlan], topology: &UnitTopology) -> Option<Step> {
    let (shape, deployment) = (topology.shape(), deployment_of(topology));
    let place = |layer| Placement::of_plan(&deployment, shape, layer);
    let differ = running.layers.iter().zip(wanted).any(|(have, want)| place(have) != place(want));
    differ.then(|| Step { layers: running.layers.clone(), plans_left: None })
}

/// One layer's next step to `to`, and the plans needed after it. When it arrives, its replicas take the parts that `arrived`
/// says, in the order of [`Replicas`]; on the way they share evenly.
pub(super) fn step_of_layer(
    problem: &LayerProblem,
    shape: &UnitShape,
    running: &LayerPlan,
    from: Placement,
    to: &Placement,
    arrived: impl FnOnce(&Replicas) -> Vec<f64>,
) -> (LayerPlan, Option<usize>) {
    let spare = usize::from(shape.spare_per_rank);
    let next = if from == *to { from } else { next_step(problem, &from, to, spare) };
    let replicas = Replicas::of(&next, problem.experts());
    let split = if next == *to { arrived(&replicas) } else { replicas.even_split(&problem.loads) };
    let layer = match spare {
        0 if next != *to => running.clone(),
        _ => to_layer_plan(shape, running, &next, &replicas, &split),
    };
    (layer, plans_needed(&next, to, spare))
}

/// The share of every replica in `layer`, which has the same placement.
fn shares_of(shape: &UnitShape, layer: &LayerPlan, replicas: &Replicas) -> Vec<f64> {
    let mut shares = Vec::with_capacity(replicas.rank.len());
    for expert in 0..replicas.experts() {
        let expert_id = ExpertId(u16::try_from(expert).expect("experts fit 16 bits"));
        for at in replicas.range(expert) {
            let rank = usize::from(replicas.rank[at]);
            let block = rank * shape.physical_per_rank()..(rank + 1) * shape.physical_per_rank();
            let slot = block.clone().find(|&slot| layer.physical_to_logical[slot] == Some(expert_id));
            let share = slot.map_or(0, |slot| layer.share[slot]);
            shares.push(f64::from(share) / f64::from(SHARE_ONE));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::arrange::tests::{random_layers, unit};
    use crate::invariants;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn an_older_content_is_reached_in_the_plans_that_were_announced(
            seeds in any::<(u64, u64)>(), spare in 1u16..3,
        ) {
            let topology = unit(12, 4, 4, spare);
            let plan = |seed| Plan { layers: random_layers(&topology, seed), ..Plan::boot(topology.unit().clone(), topology.shape()) };
            let (mut running, wanted) = (plan(seeds.0), plan(seeds.1).layers);
            let mut left = None;
            while let Some(step) = step_towards(&topology, &running, &wanted) {
                if let Some(left) = left {
                    prop_assert_eq!(step.plans_left, Some(left));
                }
                let next = running.child(step.layers);
                prop_assert_eq!(invariants::check(&next, Some(&running), &topology), Ok(()));
                left = step.plans_left.expect("there are spare slots").checked_sub(1);
                running = next;
            }
            prop_assert_eq!(left, None, "no more and no fewer plans");
            let loads: Vec<u64> = (1..=12).collect();
            for (have, want) in running.layers.iter().zip(&wanted) {
                prop_assert_eq!(have.rank_loads(topology.shape(), &loads), want.rank_loads(topology.shape(), &loads));
            }
        }
    }

    #[test]
    fn without_spare_slots_only_shares_can_go_back() {
        let topology = unit(4, 2, 2, 0);
        let boot = Plan::boot(topology.unit().clone(), topology.shape());
        let mut other = boot.layers.clone();
        other[0].physical_to_logical.swap(0, 2);
        assert_eq!(step_towards(&topology, &boot, &other).map(|step| step.plans_left), Some(None));
        assert_eq!(step_towards(&topology, &boot, &boot.layers), None);
    }
}
