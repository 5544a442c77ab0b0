//! What an agent makes of every combination of worker state and ledger: the table in `start.rs`.

mod stand_in;

use evenkeel_agent::ledger::{Ledger, Record};
use evenkeel_agent::start::{self, State};
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_worker::WorkerBackend as _;
use stand_in::Unit;
use std::sync::Arc;

/// Puts the worker into the state of serving `served`, writes `recorded` to the ledger, starts, and expects
/// the epoch that is in service then, by agent, worker and ledger alike.
#[track_caller]
fn check(served: Option<&Plan>, recorded: Option<&Plan>, expected: Option<&Plan>) {
    let unit = Unit::new();
    let config = unit.config(0, "127.0.0.1:1".parse().unwrap());
    let State { worker, mut ledger, .. } = start::open(&config).unwrap();
    if let Some(plan) = served {
        worker.boot(&Arc::new(plan.clone()), None).unwrap();
    }
    let term = Term { generation: 0, revision: 9 };
    let owned = |plan: Option<&Plan>| plan.map(|plan| Arc::new(plan.clone()));
    ledger.write(Record { term, plan: owned(recorded), beside: None }).unwrap();
    drop((worker, ledger));
    let State { agent, worker, ledger, .. } = start::open(&config).unwrap();
    let expected_id = expected.map(|plan| (plan.epoch, plan.digest()));
    assert_eq!(agent.applied(), expected_id);
    assert_eq!(worker.active(), expected_id);
    assert_eq!(agent.term(), term);
    // A plan that the worker has flipped to was not written down: the one before stays beside it.
    let beside = owned(recorded).filter(|recorded| expected.is_some_and(|plan| *plan != **recorded));
    assert_eq!(*ledger.record(), Record { term, plan: owned(expected), beside });
    assert_eq!(ledger.record(), Ledger::open(unit.directories[0].path()).unwrap().record());
}

#[test]
fn a_start_goes_on_from_whatever_a_kill_has_left() {
    let boot = Unit::new().boot();
    let next = Unit::new().child(&boot, "0 - 1 2 3 - 4 5 - 0 1 -");
    let rival = Unit::new().child(&boot, "- 1 0 2 3 - 4 5 - 0 1 -");
    check(None, None, None);
    check(Some(&boot), None, Some(&boot));
    check(Some(&boot), Some(&boot), Some(&boot));
    check(Some(&next), Some(&boot), Some(&next));
    check(None, Some(&next), Some(&next));
    check(Some(&boot), Some(&next), Some(&next));
    check(Some(&rival), Some(&next), Some(&next));
}

#[test]
fn workers_that_lost_their_weights_load_the_plan_beside_the_last_good_one_too() {
    let unit = Unit::new();
    let config = unit.config(0, "127.0.0.1:1".parse().unwrap());
    let boot = unit.boot();
    let next = unit.child(&boot, "0 - 1 2 3 - 4 5 - 0 1 -");
    for (plan, beside) in [(&boot, &next), (&next, &boot)] {
        let mut ledger = start::open(&config).unwrap().ledger;
        let owned = |plan: &Plan| Some(Arc::new(plan.clone()));
        ledger.write(Record { term: Term::default(), plan: owned(plan), beside: owned(beside) }).unwrap();
        let slots = unit.directories[0].path().join("slots.bin");
        let _ = std::fs::remove_file(slots);
        let State { worker, .. } = start::open(&config).unwrap();
        assert_eq!(worker.active(), Some((plan.epoch, plan.digest())));
        for at in worker.layout().addresses() {
            let of = |plan: &Plan| plan.layers[at.layer.index()].physical_to_logical[at.slot as usize];
            assert_eq!(worker.registered(at).map(|held| held.expert), of(plan).or(of(beside)), "{at:?}");
        }
    }
}

#[test]
fn a_ledger_of_another_unit_is_an_error() {
    let unit = Unit::new();
    let config = unit.config(0, "127.0.0.1:1".parse().unwrap());
    let mut plan = unit.boot();
    plan.layers.truncate(1);
    let mut ledger = start::open(&config).unwrap().ledger;
    ledger.write(Record { plan: Some(Arc::new(plan)), ..Record::default() }).unwrap();
    let failure = start::open(&config).unwrap_err();
    assert_eq!(failure.code, "ledger_mismatch");
    assert!(failure.message.contains("use another --state-dir"), "{failure}");
}
