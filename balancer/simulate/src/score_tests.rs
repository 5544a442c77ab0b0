use super::*;
use evenkeel_core::experts::RankSpec;
use proptest::prelude::*;

fn held(slots: &[i32]) -> Vec<Option<ExpertId>> {
    slots.iter().map(|&expert| u16::try_from(expert).ok().map(ExpertId)).collect()
}

fn gpus(ranks: usize, slots: usize, nodes: usize) -> Deployment {
    Deployment::uniform(ranks, slots, nodes, 1).unwrap()
}

#[track_caller]
fn check_imbalance(slots: &[i32], loads: &[f64], even: f64, best: f64) {
    let (deployment, slots) = (gpus(2, slots.len(), 1), held(slots));
    assert_eq!(check(&deployment, &slots, loads.len()), Ok(()));
    assert!((even_imbalance(&deployment, &slots, loads) - even).abs() < 1e-12);
    assert!((best_split_imbalance(&deployment, &slots, loads) - best).abs() < 1e-12);
}

#[test]
fn the_best_split_levels_what_the_even_one_does_not() {
    check_imbalance(&[0, 1, 0, 2], &[4.0, 3.0, 1.0], 5.0 / 4.0, 1.0);
    check_imbalance(&[0, 1, 0, 2], &[1.0, 8.0, 1.0], 8.5 / 5.0, 8.0 / 5.0);
    check_imbalance(&[0, 0, 1, 2], &[6.0, 1.0, 1.0], 1.5, 1.5);
    check_imbalance(&[0, -1, 1, 0], &[2.0, 0.0], 1.0, 1.0);
    check_imbalance(&[0, 1, 0, 1], &[0.0, 0.0], 1.0, 1.0);
}

#[track_caller]
fn check_locality(slots: &[i32], share: Option<&[f64]>, away: usize, crossing: f64) {
    let deployment = Deployment::uniform(2, 6, 2, 2).unwrap();
    let found = locality(&deployment, &held(slots), share, &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(found, Locality { away, crossing });
}

#[test]
fn load_served_off_the_groups_node_is_counted() {
    check_locality(&[0, 1, -1, 2, 3, -1], None, 0, 0.0);
    // Group 1 at home on the first rank's node, group 0 on the second's.
    check_locality(&[2, 3, -1, 0, 1, -1], None, 0, 0.0);
    check_locality(&[0, 1, 3, 2, 3, -1], None, 0, 0.2);
    check_locality(&[0, 1, 3, 2, 3, -1], Some(&[1.0, 1.0, 0.25, 1.0, 0.75, 0.0]), 0, 0.1);
    // Each group has one expert on either node, so both count as at home on the first.
    check_locality(&[0, 2, -1, 1, 3, -1], None, 2, 0.2 + 0.4);
}

#[track_caller]
fn check_bound(ranks: usize, slots: usize, loads: &[f64], bound: f64) {
    assert_eq!(replica_bound(&gpus(ranks, slots, 1), loads), bound);
}

#[test]
fn the_largest_replica_bounds_every_placement() {
    check_bound(2, 4, &[1.0, 1.0, 1.0, 1.0], 1.0);
    check_bound(4, 4, &[5.0, 1.0, 1.0, 1.0], 2.5);
    check_bound(4, 8, &[10.0, 4.0, 1.0, 1.0], 1.0);
    check_bound(4, 4, &[10.0, 4.0, 2.0], 1.25);
    check_bound(2, 6, &[0.0, 0.0], 1.0);
}

#[test]
fn a_given_split_is_taken_as_it_is() {
    let (deployment, slots) = (gpus(2, 4, 1), held(&[0, 1, 0, 2]));
    let share = [0.25, 1.0, 0.75, 1.0];
    assert_eq!(split_imbalance(&deployment, &slots, &share, &[4.0, 3.0, 1.0]), 1.0);
}

#[test]
#[should_panic(expected = "sum to 1")]
fn a_split_that_loses_load_is_no_split() {
    split_imbalance(&gpus(2, 4, 1), &held(&[0, 1, 0, 2]), &[0.25, 1.0, 0.25, 1.0], &[4.0, 3.0, 1.0]);
}

#[track_caller]
fn check_flaw(slots: &[i32], text: &str) {
    assert_eq!(check(&gpus(2, 4, 1), &held(slots), 3).unwrap_err().to_string(), text);
}

#[test]
fn flawed_placements_are_named() {
    check_flaw(&[0, 1, 2], "3 slots, and the deployment has 4");
    check_flaw(&[0, 1, 2, 3], "slot 3 holds expert 3, and the model has 3");
    check_flaw(&[0, 1, -1, 1], "expert 2 is in no slot");
}

#[test]
fn doubles_are_counted_per_rank() {
    assert_eq!(doubles(&gpus(2, 6, 1), &held(&[0, 0, 0, 1, 2, 1])), 3);
    assert_eq!(doubles(&gpus(2, 4, 1), &held(&[0, 1, 1, -1])), 0);
}

#[track_caller]
fn check_change(from: &[i32], to: &[i32], slots: usize, received: usize, from_other_node: usize) {
    let deployment = gpus(4, 8, 2);
    assert_eq!(change(&deployment, &held(from), &held(to)), Change { slots, received, from_other_node });
}

#[test]
fn what_a_rank_holds_already_is_not_received() {
    let from = [0, 1, 2, 3, 4, 5, 6, 7];
    check_change(&from, &from, 0, 0, 0);
    check_change(&from, &[1, 0, 2, 3, 4, 5, 6, 7], 2, 0, 0);
    check_change(&from, &[2, 1, 0, 3, 4, 5, 6, 7], 2, 2, 0);
    check_change(&from, &[4, 1, 2, 3, 0, 5, 6, 7], 2, 2, 2);
    check_change(&from, &[4, 4, 2, 3, 4, 5, 6, 7], 2, 1, 1);
    check_change(&from, &[0, -1, 2, 3, 4, 5, 6, 7], 0, 0, 0);
}

/// Every set of ranks, one after another.
fn by_trying(deployment: &Deployment, slots: &Slots, loads: &[f64]) -> f64 {
    let ranks = deployment.ranks();
    let total: f64 = loads.iter().sum();
    let mean = total / ranks.iter().map(|rank| rank.speed).sum::<f64>();
    let hosts = |expert: usize| {
        (0..ranks.len())
            .filter(move |&rank| slots[deployment.slots_of(rank)].contains(&Some(ExpertId(expert as u16))))
    };
    let of_set = |set: u32| {
        let inside = |expert: &usize| hosts(*expert).all(|rank| set & (1 << rank) != 0);
        let load: f64 = (0..loads.len()).filter(inside).map(|expert| loads[expert]).sum();
        let speed: f64 = (0..ranks.len()).filter(|rank| set & (1 << rank) != 0).map(|r| ranks[r].speed).sum();
        load / speed / mean
    };
    (1..1u32 << ranks.len()).map(of_set).fold(0.0, f64::max)
}

proptest! {
    #[test]
    fn the_best_split_is_the_heaviest_set_of_ranks(
        slots in prop::collection::vec(0i32..10, 15),
        loads in prop::collection::vec(0.1f64..10.0, 10),
        speeds in prop::collection::vec(prop::sample::select(vec![0.5, 1.0, 2.0]), 5),
    ) {
        // Every expert once, then whatever the draw says.
        let slots = held(&(0..10).chain(slots).collect::<Vec<i32>>());
        let spec = |&speed: &f64| RankSpec { slots: 5, speed, node: 0 };
        let deployment = Deployment::new(speeds.iter().map(spec).collect(), 1).unwrap();
        let best = best_split_imbalance(&deployment, &slots, &loads);
        let expected = by_trying(&deployment, &slots, &loads);
        prop_assert!((best - expected).abs() < 1e-9, "{best} {expected}");
        prop_assert!(even_imbalance(&deployment, &slots, &loads) >= best - 1e-9);
    }
}
