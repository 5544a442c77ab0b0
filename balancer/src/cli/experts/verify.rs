//! A plan is checked by what it says before it is written: whoever reads the file trusts it.

use super::Failure;
use super::evaluate::balance;
use super::moves::change;
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
    pub(super) node_moves_max: Option<usize>,
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
    let Some(current) = current else { return Ok(()) };
    let change = change(allowed.deployment, current, &layer.physical_to_logical);
    let moves = change.moves();
    if moves != layer.moves {
        return Err(format!("it states {} moves, and has {moves}", layer.moves));
    }
    let bounds = [
        (moves, allowed.moves_max, "moves"),
        (change.between_nodes, allowed.node_moves_max, "moves between nodes"),
    ];
    match bounds.into_iter().find(|(found, max, _)| max.is_some_and(|max| *found > max)) {
        Some((found, max, what)) => Err(format!("{found} {what}, and {} are allowed", max.unwrap_or(0))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_core::experts::{PlanOptions, SplitKind, plan_layers, resplit_layers};
    use proptest::prelude::*;

    prop_compose! {
        /// Loads of one layer with GPUs that can hold it; heavy, light and missing experts alike.
        fn layers()(gpus in 1usize..10, each in 1usize..6)(
            gpus in Just(gpus),
            each in Just(each),
            loads in prop::collection::vec(
                prop_oneof![Just(0.0), 1.0..10.0, 1.0..1e6, Just(1e30), Just(1e-30)],
                1..=gpus * each,
            ),
        ) -> (Deployment, ExpertLoads) {
            (Deployment::uniform(gpus, gpus * each, 1, 1).unwrap(), ExpertLoads::new(&[loads]).unwrap())
        }
    }

    proptest! {
        #[test]
        fn what_the_solver_makes_passes((deployment, loads) in layers(), even in any::<bool>()) {
            let split = if even { SplitKind::Even } else { SplitKind::Weighted };
            let options = PlanOptions { split, ..PlanOptions::default() };
            let mut allowed = Allowed {
                deployment: &deployment,
                loads: &loads,
                current: None,
                moves_max: None,
                node_moves_max: None,
            };
            let planned = plan_layers(&deployment, &loads, None, &options).unwrap();
            prop_assert!(verify(&planned, &allowed).is_ok(), "{:?}", verify(&planned, &allowed));
            let current: Vec<_> = planned.iter().map(|layer| layer.physical_to_logical.clone()).collect();
            let again = resplit_layers(&deployment, &loads, &current, &options).unwrap();
            (allowed.current, allowed.moves_max) = (Some(&current[..]), Some(0));
            prop_assert!(verify(&again, &allowed).is_ok(), "{:?}", verify(&again, &allowed));
        }
    }

    /// Two GPUs of two slots and loads of 6, 2 and 4, with expert 0 on both.
    fn good() -> PlannedLayer {
        PlannedLayer {
            physical_to_logical: [0, 1, 0, 2].map(|expert| Some(ExpertId(expert))).to_vec(),
            share: vec![2.0 / 3.0, 1.0, 1.0 / 3.0, 1.0],
            imbalance: 1.0,
            bound: 1.0,
            critical: Vec::new(),
            moves: 1,
            node_moves: 0,
        }
    }

    fn verified(
        layer: PlannedLayer,
        moves_max: Option<usize>,
        node_moves_max: Option<usize>,
    ) -> Result<(), Failure> {
        let deployment = Deployment::uniform(2, 4, 2, 1).unwrap();
        let loads = ExpertLoads::new(&[vec![6.0, 2.0, 4.0]]).unwrap();
        let current = [[Some(0), Some(1), None, Some(2)].map(|expert| expert.map(ExpertId)).to_vec()];
        let current: Option<&CurrentSlots> = Some(&current);
        verify(
            &[layer],
            &Allowed { deployment: &deployment, loads: &loads, current, moves_max, node_moves_max },
        )
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut PlannedLayer), words: &str) {
        let mut layer = good();
        change(&mut layer);
        let failure = verified(layer, None, None).unwrap_err();
        assert_eq!((failure.code.as_str(), failure.exit), ("experts_plan_invalid", 1));
        assert!(failure.message.contains(words), "{}", failure.message);
    }

    #[test]
    fn a_plan_that_is_not_what_it_says_is_never_written() {
        assert!(verified(good(), Some(1), Some(1)).is_ok());
        check(
            |layer| layer.physical_to_logical[3] = Some(ExpertId(0)),
            "layer 0: expert 0 is twice on GPU 1",
        );
        check(|layer| layer.physical_to_logical[1] = None, "empty slot 1 has a share");
        check(|layer| layer.share[3] = 0.9, "shares of expert 2");
        check(|layer| layer.imbalance = 1.01, "states an imbalance of 1.01, and has 1");
        check(|layer| layer.moves = 0, "states 0 moves, and has 1");
        check(|layer| layer.share.truncate(3), "number of layers or slots");
        let lost = |layer: &mut PlannedLayer| (layer.physical_to_logical[1], layer.share[1]) = (None, 0.0);
        check(lost, "expert 1 is in no slot");
        let refused = |moves, between| verified(good(), moves, between).unwrap_err().message;
        assert!(refused(Some(0), None).contains("1 moves, and 0 are allowed"));
        assert!(refused(None, Some(0)).contains("1 moves between nodes, and 0 are allowed"));
    }
}
