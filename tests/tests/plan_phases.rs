//! Agents, and agents with their workers, that die at each phase of a plan, as real processes: the plan is given up or
//! rolled forward, no epoch is committed twice, and at the end every slot holds what the plan says.

use evenkeel_agent::crash_point::CrashPoint;
use evenkeel_proto::v1::UnitState;
use evenkeel_tests::{Rig, Shape};

/// Loads that a placement made for the other one serves badly.
const HOT: [[u64; 16]; 2] = [
    [900, 800, 700, 600, 90, 80, 70, 60, 50, 40, 30, 20, 10, 10, 10, 10],
    [10, 10, 10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 600, 700, 800, 900],
];
/// The node whose agent dies.
const NODE: usize = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// Nobody has committed it: it is given up, and the unit makes another.
    GivenUp,
    /// It is the head: the node rolls it forward.
    Committed,
}

/// The agent dies at `point` of a plan, once alone and once with its workers.
#[track_caller]
fn check(point: CrashPoint, expected: Plan) {
    let mut rig = Rig::start(Shape::default());
    for (loads, with_workers) in HOT.iter().zip([false, true]) {
        rig.feed_until_settled(&HOT[usize::from(!with_workers)]);
        rig.kill_agent(NODE);
        rig.wait_for_state(UnitState::Forming);
        rig.restart_agent_to_crash(NODE, point);
        rig.wait_for_state(UnitState::Steady);
        rig.feed_until_crash(NODE, loads);
        let served = rig.epoch_on_disk(NODE);
        if with_workers {
            rig.forget_workers(NODE);
        } else {
            rig.assert_no_expert_without_live_replica();
        }
        rig.wait_for_state(UnitState::Forming);
        let head = rig.last_epoch();
        let behind = expected == Plan::Committed && point != CrashPoint::Persisted;
        assert_eq!(head - served, u64::from(behind), "the ledger has plan {served}, the store {head}");
        // Nobody tells it what the others serve, and yet it holds what their tables name.
        rig.kill_balancer();
        rig.restart_agent(NODE);
        rig.assert_no_expert_without_live_replica();
        rig.restart_balancer();
        rig.wait_for_state(UnitState::Steady);
        assert!(rig.last_epoch() >= head, "what is committed stays");
        rig.assert_all_slots_hold_what_the_plan_says();
        rig.feed_until_settled(loads);
        rig.assert_no_expert_without_live_replica();
        rig.assert_epochs_committed_once();
        rig.assert_all_slots_hold_what_the_plan_says();
    }
}

#[test]
fn before_a_byte_is_staged() {
    check(CrashPoint::BeforeStaging, Plan::GivenUp);
}

#[test]
fn while_experts_are_staged() {
    check(CrashPoint::Staging, Plan::GivenUp);
}

#[test]
fn before_it_says_that_all_is_staged() {
    check(CrashPoint::Staged, Plan::GivenUp);
}

#[test]
fn before_it_says_that_what_is_staged_is_on_disk() {
    check(CrashPoint::StagedPersisted, Plan::GivenUp);
}

#[test]
fn before_the_tables_are_armed() {
    check(CrashPoint::BeforeFlip, Plan::Committed);
}

#[test]
fn before_the_worker_has_flipped() {
    check(CrashPoint::Armed, Plan::Committed);
}

#[test]
fn before_the_plan_is_on_disk() {
    check(CrashPoint::Flipped, Plan::Committed);
}

#[test]
fn before_it_says_that_the_plan_is_applied() {
    check(CrashPoint::Persisted, Plan::Committed);
}
