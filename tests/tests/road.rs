//! The whole road with real processes: telemetry, plan, commit, transfer, flip, verification, and crashes in
//! the middle of it.

use evenkeel_proto::v1::{PlanKind, UnitState};
use evenkeel_tests::process::wait_for;
use evenkeel_tests::{Rig, Shape};

/// Loads that the boot placement serves badly: the first experts are hot.
const HOT_FIRST: [u64; 16] = [900, 800, 700, 600, 90, 80, 70, 60, 50, 40, 30, 20, 10, 10, 10, 10];
/// The same, with the last experts hot: the placement must change again.
const HOT_LAST: [u64; 16] = [10, 10, 10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 600, 700, 800, 900];

/// Slow enough that a test can strike while weights are on their way, fast enough to end soon.
fn slow() -> Shape {
    Shape { transfer_bytes_per_second: Some(20_000), ..Shape::default() }
}

#[test]
fn loads_become_a_plan_that_every_agent_applies() {
    let mut rig = Rig::start(Shape::default());
    let unit = rig.feed_until_settled(&HOT_FIRST);
    // As the first plan found it.
    let before = rig.plans()[1].imbalance_before;
    assert!(unit.head.expect("a plan").epoch > 0);
    let after = rig.feed_until_settled(&HOT_FIRST).imbalance.and_then(|i| i.expert).expect("measured");
    assert!(before > 1.5 && after < 1.05, "measured {before} before and {after} after");
    assert!(rig.plans().iter().any(|p| p.kind() == PlanKind::Moves));
    rig.assert_epochs_committed_once();
    rig.assert_all_slots_hold_what_the_plan_says();
    rig.stop();
}

#[test]
fn a_unit_at_rest_makes_no_further_plan() {
    let mut rig = Rig::start(Shape::default());
    rig.feed_until_settled(&HOT_FIRST);
    let plans = rig.plans().len();
    for _ in 0..3 {
        rig.feed_until_settled(&HOT_FIRST);
    }
    assert_eq!(rig.plans().len(), plans);
}

#[test]
fn a_planted_wrong_byte_fails_the_verifier() {
    let rig = Rig::start(Shape::default());
    rig.assert_all_slots_hold_what_the_plan_says();
    rig.plant_wrong_byte(1);
    let (output, report) = rig.verify();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["slots_wrong"], 1);
    assert_eq!(report["mismatches"][0]["node"], "n-1");
}

#[test]
fn an_agent_killed_in_the_middle_of_a_plan_comes_back_and_the_road_goes_on() {
    let mut rig = Rig::start(slow());
    rig.feed(&HOT_FIRST);
    rig.wait_for_state(UnitState::Preparing);
    rig.kill_agent(1);
    rig.assert_no_expert_without_live_replica();
    wait_for("the plan to be aborted", || rig.status().filter(|u| u.state() == UnitState::Forming));
    rig.restart_agent(1);
    rig.feed(&HOT_FIRST);
    let mut conclusive = 0;
    wait_for("the unit to come to rest", || {
        conclusive += u32::from(rig.live_replicas_seen());
        rig.status().filter(|u| u.settled.is_some() && u.head.as_ref().is_some_and(|h| h.epoch > 0))
    });
    assert!(conclusive > 0, "the replicas were looked at while plans were under way");
    rig.assert_epochs_committed_once();
    rig.assert_all_slots_hold_what_the_plan_says();
}

#[test]
fn a_balancer_killed_in_the_middle_of_a_plan_comes_back_and_the_road_goes_on() {
    let mut rig = Rig::start(slow());
    rig.feed(&HOT_FIRST);
    rig.wait_for_state(UnitState::Preparing);
    rig.kill_balancer();
    rig.assert_no_expert_without_live_replica();
    // Without a balancer the engines go on.
    rig.feed_step(&HOT_FIRST);
    rig.restart_balancer();
    rig.wait_for_state(UnitState::Steady);
    for _ in 0..3 {
        rig.feed_step(&HOT_FIRST);
    }
    rig.feed_until_settled(&HOT_LAST);
    assert!(rig.plans().len() > 1);
    rig.assert_no_expert_without_live_replica();
    rig.assert_epochs_committed_once();
    rig.assert_all_slots_hold_what_the_plan_says();
}

#[test]
fn kills_at_random_moments_lose_nothing() {
    let mut rig = Rig::start(Shape { transfer_bytes_per_second: Some(200_000), ..Shape::default() });
    for round in 0..6u64 {
        rig.feed(if round % 2 == 0 { &HOT_FIRST } else { &HOT_LAST });
        // Moments spread over prepare, commit and rest; which is hit depends on the machine's mood.
        std::thread::sleep(std::time::Duration::from_millis(37 * round));
        if round % 3 == 2 {
            rig.kill_balancer();
            rig.restart_balancer();
        } else {
            rig.kill_agent(round as usize % 3);
            rig.restart_agent(round as usize % 3);
        }
        rig.assert_no_expert_without_live_replica();
        rig.wait_for_state(UnitState::Steady);
    }
    rig.feed_until_settled(&HOT_FIRST);
    rig.assert_epochs_committed_once();
    rig.assert_all_slots_hold_what_the_plan_says();
}

#[test]
fn a_node_that_lost_everything_boots_with_the_committed_plan() {
    let mut rig = Rig::start(Shape::default());
    let head = rig.feed_until_settled(&HOT_FIRST).head.expect("a plan");
    rig.kill_agent(2);
    rig.forget_agent_state(2);
    rig.restart_agent(2);
    let unit = rig.wait_for_state(UnitState::Steady);
    assert_eq!(unit.head, Some(head));
    rig.assert_all_slots_hold_what_the_plan_says();
}

#[test]
fn a_pause_outlives_the_balancer_and_ends_by_resume() {
    let mut rig = Rig::start(Shape::default());
    rig.pause(true);
    rig.feed(&HOT_FIRST);
    rig.kill_balancer();
    rig.restart_balancer();
    rig.wait_for_state(UnitState::Paused);
    rig.feed(&HOT_FIRST);
    wait_for("a window", || rig.status().filter(|u| u.windows_complete > 0));
    assert_eq!(rig.plans().len(), 1, "only the boot plan");
    rig.pause(false);
    rig.feed_until_settled(&HOT_FIRST);
    assert!(rig.plans().len() > 1);
    rig.assert_all_slots_hold_what_the_plan_says();
}

#[test]
fn an_agent_of_another_cluster_shape_or_rank_is_refused_and_changes_nothing() {
    let rig = Rig::start(Shape::default());
    let check = |flags: &[(&str, &str)], code: &str| {
        let log = rig.start_stranger(flags, code);
        assert!(log.contains(code), "{code} is missing in: {log}");
        let unit = rig.status().expect("answers");
        assert_eq!((unit.state(), unit.ranks_connected), (UnitState::Steady, 6));
    };
    check(&[("--cluster", "other")], "cluster_mismatch");
    check(&[("--slots-per-rank", "5")], "unit_shape_mismatch");
    check(&[("--ranks", "0-1")], "rank_conflict");
    check(&[("--weights-seed", "8")], "weights_mismatch");
}
