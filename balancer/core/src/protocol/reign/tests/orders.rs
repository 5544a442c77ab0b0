use super::bench::*;
use crate::ids::{Epoch, ExpertId, LayerId, Rank};
use crate::protocol::reign::*;
use crate::protocol::unit::Answer as NodeAnswer;
use crate::records::{Key, Pin};
use crate::units::Millis;
use std::sync::Arc;

fn pause() -> Order {
    Order::Pause { unit: unit(), for_ms: None }
}

fn pin(expert: u16, rank: u16) -> Pin {
    Pin { layer: LayerId(0), expert: ExpertId(expert), rank: Rank(rank) }
}

#[test]
fn an_order_acts_once_under_one_request_id() {
    let mut bench = Bench::formed();
    assert_eq!(bench.order_as("r", 0, pause()), ["read", "write", "ok"]);
    let first = bench.answers.pop().expect("answered").expect("done");
    assert_eq!(bench.order_as("r", 0, pause()), ["read", "ok again"]);
    let again = bench.answers.pop().expect("answered").expect("done");
    assert_eq!(again, Answer { repeated: true, ..first });
    assert_eq!(bench.order_as("r", 1, Order::Resume(unit())), ["read", "request_id_conflict"]);
    assert_eq!(bench.audited(), ["balancer commit", "kim pause"]);
    // Over a change of the leader too.
    bench.run(Event::End);
    bench.lead();
    bench.take();
    assert_eq!(bench.order_as("r", 0, pause()), ["read", "ok again"]);
}

#[test]
fn an_order_whose_answer_was_lost_is_found_and_one_that_was_lost_is_made() {
    let mut bench = Bench::formed();
    bench.mood = StoreMood::LosesAnswers;
    assert_eq!(bench.order(pause()), ["read", "write", "read", "ok"]);
    bench.mood = StoreMood::LosesRequests;
    assert_eq!(bench.order(Order::Resume(unit())), ["read", "write", "read", "write", "ok"]);
    assert_eq!(bench.audited(), ["balancer commit", "kim pause", "kim resume"]);
}

#[test]
fn without_the_store_nothing_is_changed_and_said_so() {
    let mut bench = Bench::formed();
    bench.mood = StoreMood::Away;
    assert_eq!(bench.order(pause()), ["read", "store_unavailable"]);
    assert!(!bench.reign.units()[&unit()].is_paused(0));
}

#[test]
fn an_operator_is_answered_in_time_also_when_nobody_knows() {
    let mut bench = Bench::formed();
    bench.mood = StoreMood::Silent;
    bench.order_as("1", 0, pause());
    bench.order_as("2", 0, pause());
    assert_eq!(bench.later(4_000), ["frozen", "frozen"]);
    assert_eq!(bench.reign.sizes()[3], 1, "what was not begun is not done");
}

#[test]
fn orders_do_not_pile_up() {
    let mut bench = Bench::formed();
    bench.mood = StoreMood::Silent;
    for _ in 0..64 {
        bench.order(pause());
    }
    assert_eq!(bench.order(pause()).last().map(String::as_str), Some("too_many_orders"));
    bench.answers.clear();
    bench.run(Event::End);
    assert_eq!(bench.answers.len(), 64);
    assert!(bench.answers.iter().all(|answer| answer == &Err(OrderError::NotLeader)));
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut bench = Bench::formed();
    let revision = bench.store.revision();
    assert_eq!(bench.give("r", 0, pause(), true), ["ok"]);
    assert_eq!(bench.store.revision(), revision);
    assert!(!bench.reign.units()[&unit()].is_paused(0));
}

#[test]
fn a_paused_unit_makes_no_plan_until_it_is_resumed_or_the_time_is_over() {
    let mut bench = Bench::formed();
    bench.order(Order::Pause { unit: unit(), for_ms: Some(1_000) });
    let next = bench.next();
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Err(Held::Paused));
    assert!(bench.propose(&next).is_empty());
    bench.at += 1_000;
    assert_eq!(bench.propose(&next), ["prepare a 1", "prepare b 1"]);
    let mut bench = Bench::formed();
    bench.order(pause());
    bench.at += 100_000;
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Err(Held::Paused));
    bench.order(Order::Resume(unit()));
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Ok(()));
    assert_eq!(bench.store.get(&Key::Pause(unit())), None);
}

#[test]
fn a_plan_is_given_up_by_order_until_it_is_committed() {
    let mut bench = Bench::formed();
    let abort = || Order::Abort { unit: unit(), epoch: None };
    assert_eq!(bench.order(abort()), ["read", "nothing_to_abort"]);
    let next = bench.next();
    bench.propose(&next);
    let done = bench.order(abort());
    assert_eq!(done, ["read", "write", "ok", "abort a 1", "abort b 1", "aborted aborted_by_operator"]);
    let other = Order::Abort { unit: unit(), epoch: Some(Epoch(7)) };
    bench.at += 5_000;
    bench.propose(&next);
    assert_eq!(bench.order(other), ["read", "nothing_to_abort"]);
}

/// A unit whose head moved expert 0 from rank 0 to rank 1.
fn moved() -> Bench {
    let mut bench = Bench::formed();
    let mut next = bench.next();
    let layer = &mut next.layers[0];
    // Boot: 0 1 - | 2 3 - | 0 1 - | 2 3 -
    layer.physical_to_logical[0] = None;
    layer.physical_to_logical[4] = None;
    layer.physical_to_logical[5] = Some(ExpertId(0));
    *layer = crate::plan::LayerPlan::even(layer.physical_to_logical.clone(), 4);
    assert_eq!(bench.propose(&next), ["prepare a 1", "prepare b 1"]);
    bench.settle(&next);
    bench.take();
    bench
}

#[test]
fn a_rollback_brings_old_content_back_under_a_new_epoch_and_pauses() {
    let mut bench = moved();
    let done = bench.order(Order::Rollback { to: Arc::new(boot()) });
    assert_eq!(done, ["read", "draft 2", "prepare a 2", "prepare b 2"]);
    let head = bench.reign.units()[&unit()].head().expect("formed").clone();
    let back = head.child(boot().layers);
    bench.answer("a", &back, NodeAnswer::Prepared);
    let done = bench.answer("b", &back, NodeAnswer::Prepared);
    assert_eq!(done, ["write", "ok", "committed 2", "commit a 2", "commit b 2"]);
    assert_eq!(bench.audited().last().map(String::as_str), Some("kim rollback"));
    assert!(bench.reign.units()[&unit()].is_paused(u64::MAX - 1));
    bench.answer("a", &back, NodeAnswer::Applied);
    assert_eq!(bench.answer("b", &back, NodeAnswer::Applied), ["settled 2"]);
    assert!(!bench.reign.units()[&unit()].rolls_back());
}

#[test]
fn a_rollback_whose_plan_is_refused_changes_nothing() {
    let mut bench = moved();
    bench.order_as("back", 0, Order::Rollback { to: Arc::new(boot()) });
    let head = bench.reign.units()[&unit()].head().expect("formed").clone();
    let back = head.child(boot().layers);
    let done = bench.answer("b", &back, NodeAnswer::Refused("source_unreachable".to_owned()));
    assert_eq!(done, ["abort a 2", "abort b 2", "plan_aborted", "aborted source_unreachable"]);
    assert!(!bench.reign.units()[&unit()].is_paused(0));
    // The same id may be used again: nothing was done under it.
    assert_eq!(
        bench.order_as("back", 0, Order::Rollback { to: Arc::new(boot()) }),
        ["read", "draft 2", "prepare a 2", "prepare b 2"]
    );
}

#[test]
fn what_cannot_be_done_is_refused_with_its_code() {
    let check = |order: Order, code: &str| {
        let mut bench = moved();
        let before = bench.store.revision();
        assert_eq!(bench.order(order), ["read", code]);
        assert_eq!(bench.store.revision(), before);
    };
    let nobody = crate::ids::UnitId::new("nobody").expect("valid");
    check(Order::Resume(nobody), "unknown_unit");
    check(Order::Drain(node("nobody")), "unknown_node");
    check(Order::Undrain(node("a")), "not_held");
    check(Order::Unpin(unit(), pin(0, 0)), "not_held");
    check(Order::Pin(unit(), pin(4, 0)), "pins_infeasible");
    check(Order::Pin(unit(), pin(0, 4)), "pins_infeasible");
    let mut bench = moved();
    let head = bench.reign.units()[&unit()].head().expect("formed").clone();
    assert_eq!(bench.order(Order::Rollback { to: head }), ["read", "rollback_infeasible"]);
    bench.order(pause());
    bench.take();
    assert_eq!(bench.order(Order::Drain(node("a"))), ["read", "unit_paused"]);
}

#[test]
fn the_last_replicas_are_not_drained_and_pins_stay_where_they_are() {
    let mut bench = Bench::formed();
    assert_eq!(bench.order(Order::Drain(node("a")))[..3], ["read", "write", "ok"]);
    assert_eq!(bench.order(Order::Drain(node("b"))), ["read", "drain_infeasible"]);
    let mut bench = Bench::formed();
    bench.order(Order::Pin(unit(), pin(0, 0)));
    bench.take();
    assert_eq!(bench.order(Order::Drain(node("a"))), ["read", "drain_infeasible"]);
    assert_eq!(bench.order(Order::Pin(unit(), pin(1, 0)))[..3], ["read", "write", "ok"]);
    assert_eq!(bench.order(Order::Pin(unit(), pin(2, 0))), ["read", "pins_infeasible"]);
}

#[test]
fn a_drained_node_is_emptied_plan_by_plan_and_stays_empty() {
    let mut bench = Bench::formed();
    let done = bench.order(Order::Drain(node("a")));
    assert_eq!(done, ["read", "write", "ok", "draft 1", "prepare a 1", "prepare b 1"]);
    let drained = bench.reign.units()[&unit()].drained_ranks();
    let mut plans = 0;
    let mut running = boot();
    while let Some(step) = {
        let topology = bench.reign.units()[&unit()].formed().expect("formed").topology().clone();
        crate::experts::arrange_step(&topology, &running, &drained, &Default::default())
    } {
        running = running.child(step.layers);
        bench.settle(&running);
        plans += 1;
        assert!(plans < 4);
    }
    assert!(running.layers[0].physical_to_logical[..6].iter().all(Option::is_none));
    bench.take();
    let mut back = bench.next();
    back.layers[0].physical_to_logical[0] = Some(ExpertId(0));
    back.layers[0] = crate::plan::LayerPlan::even(back.layers[0].physical_to_logical.clone(), 4);
    assert_eq!(bench.propose(&back), ["invalid plan_fills_drained_rank"]);
}

#[test]
fn a_plan_that_breaks_a_pin_is_not_prepared() {
    let mut bench = Bench::formed();
    bench.order(Order::Pin(unit(), pin(0, 0)));
    bench.take();
    let mut next = bench.next();
    next.layers[0].physical_to_logical[0] = None;
    next.layers[0] = crate::plan::LayerPlan::even(next.layers[0].physical_to_logical.clone(), 4);
    assert_eq!(bench.propose(&next), ["invalid plan_breaks_pin"]);
}

#[test]
fn a_standby_refers_to_the_leader() {
    let mut bench = Bench::standby();
    assert_eq!(bench.order(pause()), ["not_leader"]);
    let mut bench = Bench::formed();
    bench.run(Event::Freeze);
    bench.take();
    assert_eq!(bench.order(pause()), ["frozen"]);
    bench.run(Event::Extend { until: Millis(bench.at + 1) });
    assert_eq!(bench.order(pause()), ["read", "write", "ok"]);
}

#[test]
fn an_audit_entry_has_a_name_that_can_be_read_again() {
    let id = crate::records::AuditId {
        at_ms: 5,
        term: crate::ids::Term { generation: 1, revision: 2 },
        sequence: 3,
    };
    assert_eq!(audit_of_text(&audit_text(id)), Some(id));
    for text in ["", "1.2.3", "1.2.3.4.5", "a.b.c.d"] {
        assert_eq!(audit_of_text(text), None, "{text:?}");
    }
}
