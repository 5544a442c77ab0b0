//! Properties of [`plan_layers`](super::plan_layers()) on any valid input, and its distance from exact optima.

use super::{
    Deployment, ExpertLoads, PlanOptions, PlannedLayer, RankSpec, SplitKind, plan_layers, resplit_layers,
};
use crate::ids::ExpertId;
use good_lp::{Expression, Solution, SolverModel, constraint, microlp, variable, variables};
use proptest::prelude::*;

type Slots = Vec<Option<ExpertId>>;

/// Every expert somewhere, none twice on a rank, shares that sum to one.
fn check_valid(deployment: &Deployment, experts: usize, layer: &PlannedLayer) -> Result<(), TestCaseError> {
    let mut share = vec![0.0; experts];
    for rank in 0..deployment.ranks().len() {
        let mut held = Vec::new();
        for slot in deployment.slots_of(rank) {
            match layer.physical_to_logical[slot] {
                None => prop_assert_eq!(layer.share[slot], 0.0),
                Some(expert) => {
                    prop_assert!(!held.contains(&expert), "expert {expert:?} is twice on rank {rank}");
                    held.push(expert);
                    share[expert.index()] += layer.share[slot];
                }
            }
        }
    }
    for (expert, share) in share.into_iter().enumerate() {
        prop_assert!((share - 1.0).abs() < 1e-9, "expert {expert}: {share}");
    }
    prop_assert!(layer.imbalance >= layer.bound * (1.0 - 1e-9), "{} below {}", layer.imbalance, layer.bound);
    Ok(())
}

fn plan(
    deployment: &Deployment,
    loads: &[f64],
    current: Option<&Slots>,
    options: &PlanOptions,
) -> PlannedLayer {
    let loads = ExpertLoads::new(&[loads.to_vec()]).unwrap();
    let current = current.map(|slots| vec![slots.clone()]);
    plan_layers(deployment, &loads, current.as_deref(), options).unwrap().remove(0)
}

fn budget(moves: usize) -> PlanOptions {
    PlanOptions { moves_max: Some(moves), ..PlanOptions::default() }
}

/// The experts of a rank, without their order.
fn held(deployment: &Deployment, slots: &Slots, rank: usize) -> Vec<ExpertId> {
    let mut held: Vec<ExpertId> = slots[deployment.slots_of(rank)].iter().flatten().copied().collect();
    held.sort_unstable();
    held
}

prop_compose! {
    /// Ranks of any slots and speeds (the first may be dead), with loads of any kind.
    fn input()(experts in 1usize..24, ranks in 1usize..7)(
        slots in prop::collection::vec(0u16..4, ranks),
        speeds in prop_oneof![Just(vec![1.0; ranks]), prop::collection::vec(0.25f64..2.0, ranks)],
        nodes in 1u16..4,
        loads in prop_oneof![
            prop::collection::vec(0u32..1000, experts),
            prop::collection::vec(prop_oneof![Just(0u32), Just(1), 0u32..10, 0u32..1_000_000], experts),
            (0..experts).prop_map(move |hot| (0..experts).map(|e| if e == hot { 4096 } else { 0 }).collect()),
        ],
        experts in Just(experts),
    ) -> (Deployment, Vec<f64>) {
        let more = (experts as u16).div_ceil(slots.len() as u16);
        let spec = |(rank, (&slots, &speed)): (usize, (&u16, &f64))| RankSpec {
            slots: if rank == 0 && slots == 0 { 0 } else { slots + more },
            speed,
            node: rank as u16 % nodes,
        };
        let mut ranks: Vec<RankSpec> = slots.iter().zip(&speeds).enumerate().map(spec).collect();
        if ranks[0].slots == 0 {
            ranks.push(RankSpec { slots: more, speed: 1.0, node: 0 });
        }
        (Deployment::new(ranks, 1).unwrap(), loads.into_iter().map(f64::from).collect())
    }
}

prop_compose! {
    /// Equal ranks and loads that are all different.
    fn distinct()(ranks in 2usize..7, slots in 2usize..6)(
        ranks in Just(ranks),
        slots in Just(slots),
        experts in ranks..=ranks * slots,
        loads in prop::collection::hash_set(1u32..100_000, ranks * slots),
    ) -> (Deployment, Vec<f64>) {
        let mut loads: Vec<u32> = loads.into_iter().collect();
        loads.sort_unstable_by_key(|load| load.wrapping_mul(2_654_435_761));
        let loads = loads[..experts].iter().map(|&load| f64::from(load)).collect();
        (Deployment::uniform(ranks, ranks * slots, 1, 1).unwrap(), loads)
    }
}

proptest! {
    #[test]
    fn plans_are_valid((deployment, loads) in input(), even in any::<bool>()) {
        let split = if even { SplitKind::Even } else { SplitKind::Weighted };
        let options = PlanOptions { split, ..PlanOptions::default() };
        check_valid(&deployment, loads.len(), &plan(&deployment, &loads, None, &options))?;
    }

    #[test]
    fn solving_from_its_own_result_changes_nothing(
        (deployment, loads) in input(), moves in 0usize..9, even in any::<bool>(),
    ) {
        let split = if even { SplitKind::Even } else { SplitKind::Weighted };
        let first = plan(&deployment, &loads, None, &PlanOptions { split, ..PlanOptions::default() });
        for options in [PlanOptions { split, ..PlanOptions::default() }, PlanOptions { split, ..budget(moves) }] {
            let again = plan(&deployment, &loads, Some(&first.physical_to_logical), &options);
            prop_assert_eq!(&again.physical_to_logical, &first.physical_to_logical);
            prop_assert_eq!(again.moves, 0);
        }
    }

    #[test]
    fn what_was_replanned_is_kept(
        (deployment, loads) in input(), factors in prop::collection::vec(0.3f64..3.0, 24),
    ) {
        let first = plan(&deployment, &loads, None, &PlanOptions::default());
        let drifted: Vec<f64> = loads.iter().zip(factors).map(|(load, by)| (load * by).round()).collect();
        let second = plan(&deployment, &drifted, Some(&first.physical_to_logical), &PlanOptions::default());
        check_valid(&deployment, loads.len(), &second)?;
        let third = plan(&deployment, &drifted, Some(&second.physical_to_logical), &PlanOptions::default());
        prop_assert_eq!(third.physical_to_logical, second.physical_to_logical);
    }

    #[test]
    fn names_of_experts_do_not_matter((deployment, loads) in distinct(), by in 1usize..100) {
        let experts = loads.len();
        let rename = |expert: usize| (expert + by) % experts;
        let mut renamed = vec![0.0; experts];
        loads.iter().enumerate().for_each(|(expert, &load)| renamed[rename(expert)] = load);
        let a = plan(&deployment, &loads, None, &PlanOptions::default());
        let b = plan(&deployment, &renamed, None, &PlanOptions::default());
        for rank in 0..deployment.ranks().len() {
            let mut expected: Vec<ExpertId> = held(&deployment, &a.physical_to_logical, rank)
                .into_iter()
                .map(|expert| ExpertId(rename(expert.index()) as u16))
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(held(&deployment, &b.physical_to_logical, rank), expected);
        }
    }

    #[test]
    fn a_budget_is_never_exceeded(
        (deployment, loads) in input(), factors in prop::collection::vec(0.2f64..5.0, 24), moves in 0usize..9,
    ) {
        let first = plan(&deployment, &loads, None, &PlanOptions::default());
        let drifted: Vec<f64> = loads.iter().zip(factors).map(|(load, by)| load * by).collect();
        let second = plan(&deployment, &drifted, Some(&first.physical_to_logical), &budget(moves));
        check_valid(&deployment, loads.len(), &second)?;
        prop_assert!(second.moves <= moves, "{} of {moves}", second.moves);
        let near = PlanOptions { node_moves_max: Some(moves), ..PlanOptions::default() };
        let third = plan(&deployment, &drifted, Some(&first.physical_to_logical), &near);
        prop_assert!(third.node_moves <= moves, "{} of {moves} between nodes", third.node_moves);
        // Moves are only made where they help.
        let resplit = resplit_layers(
            &deployment,
            &ExpertLoads::new(&[drifted]).unwrap(),
            &[first.physical_to_logical],
            &PlanOptions::default(),
        );
        let resplit = resplit.unwrap()[0].imbalance;
        prop_assert!(second.imbalance <= resplit * (1.0 + 1e-3), "{} after moves, {resplit} without", second.imbalance);
    }

    #[test]
    fn a_plan_for_the_even_split_is_mended_for_the_even_split(
        (deployment, loads) in input(), factors in prop::collection::vec(0.2f64..5.0, 24), moves in 0usize..9,
    ) {
        let even = PlanOptions { split: SplitKind::Even, ..PlanOptions::default() };
        let first = plan(&deployment, &loads, None, &even);
        let drifted: Vec<f64> = loads.iter().zip(factors).map(|(load, by)| load * by).collect();
        let kept = plan(&deployment, &drifted, Some(&first.physical_to_logical), &PlanOptions { moves_max: Some(0), ..even.clone() });
        let second = plan(&deployment, &drifted, Some(&first.physical_to_logical), &PlanOptions { moves_max: Some(moves), ..even });
        check_valid(&deployment, loads.len(), &second)?;
        prop_assert!(second.moves <= moves);
        prop_assert!(second.imbalance <= kept.imbalance * (1.0 + 1e-9), "{} from {}", second.imbalance, kept.imbalance);
    }

    #[test]
    fn every_group_has_a_node_that_holds_all_of_it(
        per_group in 1usize..5, groups_per_node in 1usize..3, nodes in 2usize..4, ranks_per_node in 1usize..4, more in 0usize..3,
        loads in prop::collection::vec(0u32..1000, 4 * 2 * 3), even in any::<bool>(),
    ) {
        let (groups, experts) = (groups_per_node * nodes, per_group * groups_per_node * nodes);
        let slots = (per_group * groups_per_node).div_ceil(ranks_per_node) + more;
        let ranks = ranks_per_node * nodes;
        let deployment = Deployment::uniform(ranks, ranks * slots, nodes, groups).unwrap();
        let loads: Vec<f64> = loads[..experts].iter().map(|&load| f64::from(load)).collect();
        let split = if even { SplitKind::Even } else { SplitKind::Weighted };
        let layer = plan(&deployment, &loads, None, &PlanOptions { split, ..PlanOptions::default() });
        check_valid(&deployment, experts, &layer)?;
        for group in 0..groups {
            let holds = |node: usize| (group * per_group..(group + 1) * per_group).all(|expert| {
                (node * ranks_per_node..(node + 1) * ranks_per_node)
                    .any(|rank| held(&deployment, &layer.physical_to_logical, rank).contains(&ExpertId(expert as u16)))
            });
            prop_assert!((0..nodes).any(holds), "no node holds all of group {group}");
        }
    }

    #[test]
    fn a_new_rank_causes_no_moves_between_old_ones((deployment, loads) in distinct()) {
        let first = plan(&deployment, &loads, None, &PlanOptions::default());
        let mut ranks = deployment.ranks().to_vec();
        ranks.push(ranks[0]);
        let larger = Deployment::new(ranks, 1).unwrap();
        let mut current = first.physical_to_logical.clone();
        current.resize(larger.slots(), None);
        let second = plan(&larger, &loads, Some(&current), &PlanOptions::default());
        check_valid(&larger, loads.len(), &second)?;
        prop_assert_eq!(&second.physical_to_logical[..deployment.slots()], &first.physical_to_logical[..]);
        prop_assert!(second.imbalance * (1.0 - 1e-4) <= first.imbalance * larger.ranks().len() as f64 / deployment.ranks().len() as f64);
    }

    #[test]
    fn the_experts_of_a_dead_rank_are_placed_again((deployment, loads) in distinct(), dead in 0usize..7) {
        let dead = dead % deployment.ranks().len();
        let mut ranks = deployment.ranks().to_vec();
        ranks[dead].slots = 0;
        let smaller = Deployment::new(ranks, 1).unwrap();
        let loads = &loads[..loads.len().min(smaller.slots())];
        let first = plan(&deployment, loads, None, &PlanOptions::default());
        let gone = deployment.slots_of(dead);
        let mut current = first.physical_to_logical.clone();
        current.drain(gone);
        let second = plan(&smaller, loads, Some(&current), &PlanOptions::default());
        check_valid(&smaller, loads.len(), &second)?;
    }

    #[test]
    fn threads_do_not_matter(rows in prop::collection::vec(prop::collection::vec(0u32..1000, 12), 1..9), threads in 2usize..9) {
        let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.iter().map(|&load| f64::from(load)).collect()).collect();
        let loads = ExpertLoads::new(&rows).unwrap();
        let deployment = Deployment::uniform(4, 16, 2, 1).unwrap();
        let one = plan_layers(&deployment, &loads, None, &PlanOptions::default()).unwrap();
        let several = PlanOptions { threads, ..PlanOptions::default() };
        prop_assert_eq!(plan_layers(&deployment, &loads, None, &several).unwrap(), one);
    }
}

#[test]
fn extremes_have_defined_results() {
    let check = |ranks: usize, slots: usize, loads: Vec<f64>, imbalance: f64| {
        let deployment = Deployment::uniform(ranks, ranks * slots, 1, 1).unwrap();
        for split in [SplitKind::Weighted, SplitKind::Even] {
            let layer = plan(&deployment, &loads, None, &PlanOptions { split, ..PlanOptions::default() });
            check_valid(&deployment, loads.len(), &layer).unwrap();
            assert!(layer.imbalance <= imbalance, "{ranks} x {slots}, {split:?}: {}", layer.imbalance);
        }
    };
    let ramp = |experts: usize| (0..experts).map(|expert| (expert % 97) as f64 + 1.0).collect::<Vec<f64>>();
    check(1, 4096, ramp(4096), 1.0);
    check(8, 513, ramp(4096), 1.001);
    check(1024, 5, ramp(4096), 1.1);
    check(1024, 1, ramp(1024), 2.1);
    check(32, 9, vec![0.0; 256], 1.0);
    let mut one = vec![0.0; 256];
    one[7] = 1e6;
    check(32, 9, one, 1.0 + 1e-9);
    check(1, 1, vec![3.0], 1.0);
}

/// The best placement and split together, as a mixed integer program.
fn exact(ranks: usize, slots: usize, loads: &[f64]) -> f64 {
    variables! { vars: level >= 0; }
    let places: Vec<Vec<_>> =
        loads.iter().map(|_| (0..ranks).map(|_| vars.add(variable().binary())).collect()).collect();
    let split: Vec<Vec<_>> =
        loads.iter().map(|_| (0..ranks).map(|_| vars.add(variable().min(0))).collect()).collect();
    let mut model = vars.minimise(level).using(microlp);
    for (expert, &load) in loads.iter().enumerate() {
        let sum: Expression = split[expert].iter().sum();
        model = model.with(constraint!(sum == load));
        for rank in 0..ranks {
            model = model.with(constraint!(split[expert][rank] <= load * places[expert][rank]));
        }
    }
    for rank in 0..ranks {
        let held: Expression = places.iter().map(|row| row[rank]).sum();
        let carried: Expression = split.iter().map(|row| row[rank]).sum();
        model = model.with(constraint!(held <= slots as f64)).with(constraint!(carried <= level));
    }
    // Ranks are alike: the heaviest expert is on the first.
    model = model.with(constraint!(places[0][0] == 1));
    model.solve().expect("a placement exists").value(level)
}

/// Prints `ranks x slots, experts: reached / exact = gap`; `cargo test -p evenkeel-core small_placements -- --nocapture`.
#[test]
fn small_placements_are_near_the_exact_optimum() {
    let mut gaps = Vec::new();
    for (case, (ranks, slots, experts)) in
        [(2, 2, 3), (2, 3, 5), (3, 2, 4), (3, 2, 5), (3, 3, 6), (3, 3, 8), (4, 2, 6), (4, 2, 7)]
            .into_iter()
            .enumerate()
    {
        for seed in 0..3u32 {
            let spread = |expert: u32| (seed * 977 + case as u32 * 131 + expert * 2_654_435) % 1009;
            let mut loads: Vec<f64> =
                (0..experts).map(|expert| (f64::from(spread(expert)) / 250.0).exp().round()).collect();
            loads.sort_by(|a, b| b.total_cmp(a));
            let deployment = Deployment::uniform(ranks, ranks * slots, 1, 1).unwrap();
            let layer = plan(&deployment, &loads, None, &PlanOptions::default());
            let mean = loads.iter().sum::<f64>() / ranks as f64;
            let best = exact(ranks, slots, &loads) / mean;
            let gap = layer.imbalance / best - 1.0;
            println!(
                "{ranks} x {slots}, {experts} experts: {:.4} / {best:.4} = {:+.2} %",
                layer.imbalance,
                gap * 100.0
            );
            assert!(gap >= -1e-6, "the exact optimum is one");
            gaps.push(gap);
        }
    }
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    println!(
        "mean gap {:.2} %, largest {:.2} %",
        mean * 100.0,
        gaps.iter().copied().fold(0.0, f64::max) * 100.0
    );
    assert!(mean <= 0.001, "{mean}");
}
