use super::bench::*;
use crate::plan::Plan;
use crate::protocol::reign::*;
use crate::protocol::unit::Answer as NodeAnswer;

/// Both nodes have prepared the plan, and the store answers in this mood.
fn stored(mood: StoreMood) -> (Bench, Plan, Vec<String>) {
    let mut bench = Bench::formed();
    let next = bench.next();
    assert_eq!(bench.propose(&next), ["prepare a 1", "prepare b 1"]);
    assert!(bench.answer("a", &next, NodeAnswer::Prepared).is_empty());
    bench.mood = mood;
    let done = bench.answer("b", &next, NodeAnswer::Prepared);
    (bench, next, done)
}

#[test]
fn a_plan_is_committed_and_applied() {
    let (mut bench, next, done) = stored(StoreMood::Good);
    assert_eq!(done, ["write", "committed 1", "commit a 1", "commit b 1"]);
    assert_eq!(bench.answer("a", &next, NodeAnswer::Applied), [""; 0]);
    assert_eq!(bench.answer("b", &next, NodeAnswer::Applied), ["settled 1"]);
    assert_eq!(bench.audited(), ["balancer commit", "balancer commit"]);
}

#[test]
fn a_commit_whose_answer_was_lost_is_found_in_the_store() {
    let (bench, _, done) = stored(StoreMood::LosesAnswers);
    assert_eq!(done, ["write", "read", "committed 1", "commit a 1", "commit b 1"]);
    assert_eq!(bench.head_in_store(), 1);
}

#[test]
fn a_commit_that_never_arrived_is_made_after_a_look() {
    let (bench, _, done) = stored(StoreMood::LosesRequests);
    assert_eq!(done, ["write", "read", "write", "committed 1", "commit a 1", "commit b 1"]);
    assert_eq!(bench.audited().len(), 2);
}

#[test]
fn a_plan_waits_for_a_store_that_is_away_and_is_given_up_when_that_takes_too_long() {
    let (mut bench, _, done) = stored(StoreMood::Away);
    assert_eq!(done, ["write"]);
    assert_eq!(bench.later(1_000), ["write"]);
    bench.mood = StoreMood::Good;
    assert_eq!(bench.later(1_000), ["write", "committed 1", "commit a 1", "commit b 1"]);
    let (mut bench, _, _) = stored(StoreMood::Away);
    assert_eq!(bench.later(10_000), ["write", "abort a 1", "abort b 1", "aborted store_away"]);
    assert_eq!(bench.head_in_store(), 0);
}

#[test]
fn a_term_that_is_over_commits_nothing() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    bench.answer("a", &next, NodeAnswer::Prepared);
    let lease = bench.store.get(&crate::records::Key::Leader).and_then(|found| found.lease).expect("leads");
    bench.store.end(lease);
    let done = bench.answer("b", &next, NodeAnswer::Prepared);
    assert_eq!(done, ["write", "abort a 1", "abort b 1", "aborted store_conflict"]);
}

#[test]
fn what_breaks_an_invariant_or_the_order_of_plans_is_not_prepared() {
    let mut bench = Bench::formed();
    let mut broken = bench.next();
    broken.layers[0].share[0] += 1;
    assert_eq!(bench.propose(&broken), ["invalid plan_shares_not_one"]);
    let stale = bench.next().child(boot().layers);
    assert!(bench.propose(&stale).is_empty());
}

#[test]
fn a_hung_worker_is_told_of_within_five_seconds() {
    let (mut bench, next, _) = stored(StoreMood::Good);
    bench.answer("a", &next, NodeAnswer::Applied);
    assert!(bench.later(3_999).is_empty());
    assert_eq!(bench.later(200), ["hung b"]);
}

#[test]
fn the_loss_of_many_nodes_at_once_stops_plans_until_they_are_back() {
    let mut bench = Bench::formed();
    bench.run(Event::Closed(StreamId(1)));
    assert!(bench.take().is_empty(), "one node is no mass");
    bench.at += 30_000;
    bench.run(Event::Closed(StreamId(2)));
    assert_eq!(bench.take(), ["mass loss u true", "mass loss all true"]);
    bench.join("a", Some(&boot()));
    bench.later(200);
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Err(Held::MassLoss));
    bench.join("b", Some(&boot()));
    bench.take();
    assert_eq!(bench.later(200), ["mass loss u false", "mass loss all false"]);
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Ok(()));
}

#[test]
fn nodes_lost_one_after_the_other_are_no_mass_loss() {
    let mut bench = Bench::formed();
    bench.run(Event::Closed(StreamId(1)));
    bench.at += 1;
    bench.run(Event::Heard(StreamId(2)));
    bench.at += 10_000;
    bench.run(Event::Heard(StreamId(2)));
    bench.at += 10_000;
    bench.run(Event::Heard(StreamId(2)));
    bench.at += 10_000;
    bench.run(Event::Closed(StreamId(2)));
    assert!(bench.take().is_empty());
}
