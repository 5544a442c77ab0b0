//! Who leads, with real processes: three balancers, three members of etcd, kill -9, SIGSTOP, a store that is away or was
//! restored.

use evenkeel_core::ids::Epoch;
use evenkeel_proto::v1::{BalancerState, Term};
use evenkeel_tests::balancers::Balancers;
use evenkeel_tests::process::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;

/// A lease that does not end within a test: who leads after a death does not because of its end.
const LONG_MS: u64 = 60_000;
/// The shortest lease that is accepted, for tests that wait for its end.
const SHORT_MS: u64 = 2_000;
/// Leaders that are killed one after the other, unless `EVENKEEL_KILLS` says otherwise.
const KILLS: usize = 10;

fn signal(process: u32, signal: Signal) {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(id, signal).expect("a child can be signalled");
}

fn key(term: Option<Term>) -> (u64, u64) {
    term.map_or((0, 0), |term| (term.generation, term.revision))
}

#[test]
fn a_killed_leader_is_followed_before_its_lease_ends() {
    let kills = std::env::var("EVENKEEL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut balancers = Balancers::start(3, LONG_MS);
    balancers.start_agent();
    let mut took: Vec<Duration> = Vec::new();
    let mut last = (0, 0);
    for round in 0..kills {
        took.push(balancers.measure_failover(round));
        let leader = balancers.wait_until_all_stand_by();
        let term = key(balancers.shown(leader).expect("it answers").term);
        assert!(term > last, "terms grow: {term:?} after {last:?}");
        last = term;
    }
    took.sort_unstable();
    let at = |share: f64| took[((took.len() as f64 * share).ceil() as usize).clamp(1, took.len()) - 1];
    println!(
        "kill -9 of the leader to the first accepted write, {kills} times: min {:?}, p50 {:?}, p90 {:?}, p99 {:?}, max {:?}",
        took[0],
        at(0.5),
        at(0.9),
        at(0.99),
        took[took.len() - 1]
    );
}

#[test]
fn a_leader_is_followed_over_tls_too() {
    let mut balancers = Balancers::start_secured(2, LONG_MS);
    balancers.start_agent();
    balancers.measure_failover(0);
    balancers.wait_until_all_stand_by();
}

#[test]
fn a_stopped_leader_commands_nothing_when_it_wakes() {
    let mut balancers = Balancers::start(3, SHORT_MS);
    balancers.start_agent();
    let old = balancers.wait_until_all_stand_by();
    let epoch = balancers.feed_until_plan_after(0);
    let before = key(balancers.shown(old).expect("it answers").term);
    signal(balancers.process_id(old), Signal::STOP);
    let others: Vec<usize> = (0..3).filter(|which| *which != old).collect();
    let new = wait_for("another leader", || {
        let leads =
            |which: &usize| balancers.shown(*which).is_some_and(|s| s.state() == BalancerState::Leading);
        others.iter().copied().find(leads)
    });
    let after = key(balancers.shown(new).expect("it answers").term);
    assert!(after > before);
    let epoch = balancers.feed_until_plan_after(epoch);
    signal(balancers.process_id(old), Signal::CONT);
    wait_for("the old one to stand by", || {
        balancers
            .shown(old)
            .filter(|s| s.state() == BalancerState::Standby && s.leader == balancers.name(new))
    });
    balancers.feed_until_plan_after(epoch);
    balancers.write("after", true);
    assert_eq!(balancers.shown(new).expect("it answers").state(), BalancerState::Leading);
    assert_eq!(key(balancers.shown(new).expect("it answers").term), after, "the new term goes on");
    let epochs = balancers.epochs(new);
    assert_eq!(epochs, (0..epochs.len() as u64).collect::<Vec<_>>(), "each epoch is committed once");
    let terms: Vec<(u64, u64)> = balancers.audit(new).into_iter().map(|(term, _, _)| term).collect();
    assert!(terms.is_sorted(), "nothing of the old term after the first of the new one: {terms:?}");
    assert!(terms.contains(&before) && terms.contains(&after), "{terms:?}");
}

#[test]
fn a_store_that_is_away_freezes_the_leader_and_nothing_else() {
    let mut balancers = Balancers::start(2, SHORT_MS);
    balancers.start_agent();
    let leader = balancers.wait_until_all_stand_by();
    balancers.write("before", true);
    for member in 0..3 {
        balancers.etcd.kill(member);
    }
    wait_for("the leader to freeze", || (balancers.metric(leader, "evenkeel_frozen") == 1.0).then_some(()));
    for _ in 0..8 {
        balancers.feed_step(0);
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(evenkeel_tests::http::get(&balancers.ports(leader).metrics, path).0, 200, "{path}");
    }
    assert_eq!(balancers.shown(leader).expect("it answers").state(), BalancerState::Frozen);
    for member in 0..3 {
        balancers.etcd.restart(member);
    }
    balancers.etcd.wait_until_it_answers();
    balancers.write("after", false);
}

#[test]
fn operators_hand_the_lead_over_through_any_balancer() {
    let mut balancers = Balancers::start(3, LONG_MS);
    let leader = balancers.wait_until_all_stand_by();
    let others: Vec<usize> = (0..3).filter(|which| *which != leader).collect();
    let name = balancers.name(others[0]).to_owned();
    let output = balancers.command(others[1], &["leader", "transfer", "--to", &name]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name} leads\n"));
    assert_eq!(balancers.wait_until_all_stand_by(), others[0]);
    let output = balancers.command(leader, &["leader", "show", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(shown["leader"], name.as_str());
    let output = balancers.command(leader, &["leader", "transfer", "--to", "nobody"]);
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: unknown_standby: "));
    balancers.terminate(others[0]);
    balancers.wait_until_all_stand_by();
}

#[test]
fn a_restored_store_is_led_again_once_it_is_adopted() {
    let mut balancers = Balancers::start(2, SHORT_MS);
    balancers.start_agent();
    let backup = balancers.etcd.back_up();
    for round in 0..20 {
        balancers.write(&format!("lost-{round}"), round % 2 == 0);
    }
    let leader = balancers.wait_until_all_stand_by();
    let before = key(balancers.shown(leader).expect("it answers").term);
    // The leader after the next has a term whose revision the backup has not seen.
    balancers.kill(leader);
    balancers.write("lost", true);
    balancers.restart(leader);
    let leader = balancers.wait_until_all_stand_by();
    assert!(key(balancers.shown(leader).expect("it answers").term) > before);
    balancers.etcd.restore(&backup);
    let stuck = wait_for("a balancer that needs an adoption", || {
        (0..2).find(|which| balancers.shown(*which).is_some_and(|s| s.state() == BalancerState::NotAdopted))
    });
    let output = balancers.command(stuck, &["leader", "adopt"]);
    assert_eq!(output.status.code(), Some(2), "it wants a yes");
    let output = balancers.command(stuck, &["leader", "adopt", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    balancers.write("after", true);
    let leader = balancers.wait_until_all_stand_by();
    let term = key(balancers.shown(leader).expect("it answers").term);
    assert_eq!(term.0, 1, "the generation was raised");
    let output = balancers.command(leader, &["leader", "adopt", "--yes"]);
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: adopt_not_needed: "));
    balancers.write("on", false);
    let epoch = balancers.epochs(leader).last().copied().expect("the unit has a plan");
    balancers.feed_until_plan_after(epoch);
    let epochs = balancers.epochs(leader);
    assert!(epochs.is_sorted_by(|a, b| a < b), "no epoch is used twice: {epochs:?}");
    let first = Epoch::first_of(1).0;
    assert!(epochs.iter().all(|of| *of <= epoch || *of >= first), "a generation has its own: {epochs:?}");
}

#[test]
fn a_restored_store_commands_no_agent_that_is_ahead_of_it() {
    let mut balancers = Balancers::start(2, SHORT_MS);
    balancers.start_agent();
    balancers.feed_until_plan_after(0);
    let backup = balancers.etcd.back_up();
    let leader = balancers.wait_until_all_stand_by();
    // Looked up after the backup: a plan may be on its way while the one before it is listed.
    let kept = *balancers.epochs(leader).last().expect("one is committed");
    let lost = balancers.feed_until_plan_after(kept);
    // Its key is in the backup: it must not go on as if nothing had happened.
    let before = key(balancers.shown(leader).expect("it answers").term);
    balancers.etcd.restore(&backup);
    let (leader, shown) = wait_for("what follows the restored store", || {
        let shown = |which: usize| balancers.shown(which).map(|shown| (which, shown));
        (0..2).filter_map(shown).find(|(_, shown)| match shown.state() {
            BalancerState::NotAdopted => true,
            BalancerState::Leading => key(shown.term) != before,
            _ => false,
        })
    });
    if shown.state() == BalancerState::NotAdopted {
        let output = balancers.command(leader, &["leader", "adopt", "--yes"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    wait_for("the agent to be refused", || balancers.agent_log().contains("epoch_ahead").then_some(()));
    for _ in 0..8 {
        balancers.feed_step(0);
    }
    let leader = balancers.wait_until_all_stand_by();
    assert!(!balancers.epochs(leader).contains(&lost), "nothing was planned with it");
    // Whoever leads next knows from the store which numbers were lost, though nobody serves them any more.
    balancers.restart_agent_without_state();
    balancers.kill(leader);
    let next = balancers.feed_until_plan_after(kept);
    assert!(next > lost, "no epoch is used twice: plan {lost} was lost, and plan {next} follows plan {kept}");
}
