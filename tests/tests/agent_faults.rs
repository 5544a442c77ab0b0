//! Faults on a node that its agent has to report and outlive, with real processes.

use evenkeel_proto::v1::UnitState;
use evenkeel_tests::process::wait_for;
use evenkeel_tests::{Rig, Shape, http};

/// Loads that the boot placement serves badly.
const HOT: [u64; 16] = [900, 800, 700, 600, 90, 80, 70, 60, 50, 40, 30, 20, 10, 10, 10, 10];

#[test]
fn a_worker_that_hangs_is_reported_and_the_unit_goes_on_once_it_does() {
    // Slow enough that the worker hangs before the plan is committed.
    let mut rig = Rig::start(Shape { transfer_bytes_per_second: Some(20_000), ..Shape::default() });
    rig.feed(&HOT);
    rig.wait_for_state(UnitState::Preparing);
    rig.hang_workers(1, true);
    let hung = "evenkeel_agent_worker_events_total{code=\"worker_hung\"} ";
    wait_for("the agent to say that its worker hangs", || {
        let (_, page) = http::get(rig.agent_metrics(1), "/metrics");
        page.lines().any(|line| line.starts_with(hung) && !line.ends_with(" 0")).then_some(())
    });
    rig.assert_no_expert_without_live_replica();
    rig.hang_workers(1, false);
    rig.wait_for_state(UnitState::Steady);
    rig.feed_until_settled(&HOT);
    assert!(rig.plans().len() > 1);
    rig.assert_epochs_committed_once();
    rig.assert_all_slots_hold_what_the_plan_says();
}
