//! What operators order, with real processes and the command line: each acts once, is in the audit, and outlives the
//! balancer.

use evenkeel_proto::v1::{DrainState, UnitState};
use evenkeel_tests::process::{program, wait_for};
use evenkeel_tests::{Rig, Shape};
use serde_json::Value;
use std::process::{Command, Output};

const HOT_FIRST: [u64; 16] = [900, 800, 700, 600, 90, 80, 70, 60, 50, 40, 30, 20, 10, 10, 10, 10];

/// Two of three nodes hold every expert, with room for replicas.
fn roomy() -> Shape {
    Shape { slots_per_rank: 6, ..Shape::default() }
}

fn run(rig: &Rig, arguments: &[&str]) -> Output {
    let server = ["--server", rig.ports.admin.as_str()];
    Command::new(program("evenkeel")).args(arguments).args(server).output().expect("runs")
}

/// Runs a command; its answer as JSON.
#[track_caller]
fn ok(rig: &Rig, arguments: &[&str]) -> Value {
    let output = run(rig, &[arguments, &["--output", "json"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[track_caller]
fn refused(rig: &Rig, arguments: &[&str], exit: i32, code: &str) {
    let output = run(rig, arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {text}");
    assert!(text.contains(&format!("error: {code}: ")), "{arguments:?}: {text}");
}

/// Who did what, newest first.
fn audit(rig: &Rig) -> Vec<String> {
    let found = ok(rig, &["audit", "list", "--limit", "500"]);
    let entries = found["entries"].as_array().expect("a list");
    let word =
        |entry: &Value| format!("{} {}", entry["who"].as_str().unwrap(), entry["verb"].as_str().unwrap());
    entries.iter().map(word).collect()
}

#[test]
fn a_repeated_order_acts_once_also_after_the_balancer_was_killed() {
    let mut rig = Rig::start(Shape::default());
    let order = ["pause", "u", "--request-id", "r-1"];
    let first = ok(&rig, &order);
    assert_eq!(
        (&first["repeated"], first["audit"].as_str().map(str::is_empty)),
        (&Value::Bool(false), Some(false))
    );
    rig.kill_balancer();
    rig.restart_balancer();
    rig.wait_for_state(UnitState::Paused);
    let again = ok(&rig, &order);
    assert_eq!((&again["repeated"], &again["audit"]), (&Value::Bool(true), &first["audit"]));
    refused(&rig, &["resume", "u", "--request-id", "r-1"], 3, "request_id_conflict");
    assert_eq!(audit(&rig).iter().filter(|entry| *entry == "local pause").count(), 1);
    refused(&rig, &["pause", "nobody"], 1, "unknown_unit");
    refused(&rig, &["plan", "abort", "u"], 3, "nothing_to_abort");
    refused(&rig, &["pin", "u", "--layer", "0", "--expert", "999", "--rank", "0"], 3, "unit_paused");
}

#[test]
fn a_drained_node_is_emptied_while_it_serves_and_takes_experts_again() {
    let mut rig = Rig::start(roomy());
    rig.feed_until_settled(&HOT_FIRST);
    ok(&rig, &["drain", "n-1"]);
    let drain = |rig: &Rig| {
        let status = rig.admin(async |mut c| {
            Ok(c.get_status(evenkeel_proto::v1::GetStatusRequest {}).await?.into_inner())
        });
        let agent =
            status.expect("answers").agents.into_iter().find(|agent| agent.node == "n-1").expect("known");
        agent.drain()
    };
    wait_for("the node to be empty", || {
        rig.assert_no_expert_without_live_replica();
        (drain(&rig) == DrainState::Empty).then_some(())
    });
    refused(&rig, &["drain", "n-0"], 3, "drain_infeasible");
    // What is solved meanwhile leaves the node alone.
    rig.feed_until_settled(&HOT_FIRST);
    assert_eq!(drain(&rig), DrainState::Empty);
    let (output, report) = rig.verify();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["slots_wrong"], 0);
    ok(&rig, &["undrain", "n-1"]);
    assert_eq!(drain(&rig), DrainState::Unspecified);
    rig.assert_epochs_committed_once();
    assert!(audit(&rig).contains(&"local drain".to_owned()));
}

#[test]
fn a_rollback_brings_old_content_back_and_pauses() {
    let mut rig = Rig::start(roomy());
    let head = rig.feed_until_settled(&HOT_FIRST).head.expect("a plan").epoch;
    assert!(head > 0);
    ok(&rig, &["plan", "rollback", "u", "--to", "0"]);
    let unit = wait_for("the unit to be back", || {
        rig.status().filter(|unit| unit.state() == UnitState::Paused && unit.held == "paused")
    });
    assert!(unit.head.expect("a plan").epoch > head);
    rig.assert_all_slots_hold_what_the_plan_says();
    rig.assert_epochs_committed_once();
    assert!(audit(&rig).contains(&"local rollback".to_owned()));
    refused(&rig, &["plan", "rollback", "u", "--to", "999"], 1, "unknown_plan");
}
