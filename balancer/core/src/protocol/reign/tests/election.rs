use super::bench::*;
use crate::protocol::reign::*;
use crate::protocol::unit::Answer as NodeAnswer;
use crate::units::Millis;

#[test]
fn a_standby_admits_and_commands_nothing() {
    let mut bench = Bench::standby();
    bench.join("a", None);
    bench.join("b", Some(&boot()));
    assert_eq!(bench.take(), ["standby a", "standby b"]);
    assert!(bench.later(1_000).is_empty());
    bench.propose(&boot());
    assert!(bench.take().is_empty());
}

#[test]
fn streams_stay_when_the_lead_comes_and_goes() {
    let mut bench = Bench::formed();
    assert_eq!(bench.does(Event::End), ["standby a", "standby b"]);
    assert!(bench.reign.units().is_empty());
    bench.lead();
    assert_eq!(bench.take(), ["leader a", "leader b"]);
    assert!(bench.reign.units()[&unit()].present().is_empty(), "nothing of an earlier term is believed");
    bench.join("a", Some(&boot()));
    bench.join("b", Some(&boot()));
    assert_eq!(bench.take(), ["settled 0"]);
    let next = bench.next();
    bench.later(200);
    assert_eq!(bench.propose(&next), ["prepare a 1", "prepare b 1"]);
}

#[test]
fn an_agent_that_does_not_introduce_itself_again_reconnects() {
    let mut bench = Bench::standby();
    let hello = Introduction { reintroduces: false, ..bench.hello("a", None) };
    bench.run(Event::Hello { stream: StreamId(1), hello });
    bench.join("b", None);
    bench.take();
    bench.lead();
    assert_eq!(bench.take(), ["close a leader_changed", "leader b"]);
    bench.at += 14_000;
    bench.run(Event::Heard(StreamId(2)));
    assert_eq!(bench.later(1_001), ["close b not_introduced"]);
}

#[test]
fn a_new_leader_rolls_forward_what_was_committed() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    bench.answer("a", &next, NodeAnswer::Prepared);
    bench.answer("b", &next, NodeAnswer::Prepared);
    bench.answer("a", &next, NodeAnswer::Applied);
    bench.run(Event::End);
    bench.lead();
    bench.take();
    bench.join("a", Some(&next));
    bench.join("b", Some(&boot()));
    assert_eq!(bench.take(), ["prepare b 1"]);
    assert_eq!(bench.answer("b", &next, NodeAnswer::Prepared), ["commit b 1"]);
    assert_eq!(bench.answer("b", &next, NodeAnswer::Applied), ["settled 1"]);
}

#[test]
fn what_was_only_prepared_in_an_earlier_term_is_not_committed() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    bench.answer("a", &next, NodeAnswer::Prepared);
    bench.run(Event::End);
    bench.lead();
    bench.join("a", Some(&boot()));
    bench.join("b", Some(&boot()));
    bench.take();
    assert!(bench.answer("b", &next, NodeAnswer::Prepared).is_empty());
    assert_eq!(bench.head_in_store(), 0);
}

#[test]
fn commands_wait_while_the_lead_is_doubtful_and_are_sent_when_it_is_confirmed() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    bench.answer("a", &next, NodeAnswer::Prepared);
    bench.run(Event::Freeze);
    bench.take();
    // The store still takes it: it is fenced by the term.
    assert_eq!(bench.answer("b", &next, NodeAnswer::Prepared), ["write", "committed 1"]);
    let ends = |word: &String| word.starts_with("close") || word.starts_with("mass loss");
    assert!(bench.later(100_000).iter().all(ends), "silence alone");
    let mut bench = Bench::formed();
    bench.propose(&next);
    bench.answer("a", &next, NodeAnswer::Prepared);
    bench.run(Event::Freeze);
    bench.answer("b", &next, NodeAnswer::Prepared);
    bench.take();
    bench.at += 5_000;
    let until = Millis(bench.at + 3_500);
    assert_eq!(bench.does(Event::Extend { until }), ["commit a 1", "commit b 1"]);
    assert!(bench.does(Event::Tick).is_empty(), "no limit ran meanwhile");
}

#[test]
fn a_deadline_that_has_passed_freezes_without_a_word() {
    let mut bench = Bench::standby();
    let term = bench.lead();
    bench.run(Event::End);
    let until = Millis(100);
    let term = crate::ids::Term { revision: term.revision + 1, ..term };
    bench.run(Event::Begin { term, until, state: Recovered::default() });
    assert!(!bench.reign.is_frozen(Millis(99)));
    assert!(bench.reign.is_frozen(Millis(100)));
    bench.at = 100;
    assert_eq!(bench.order(Order::Resume(unit())), ["frozen"]);
}

#[test]
fn what_is_held_back_for_a_stream_goes_with_it() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    bench.run(Event::Freeze);
    bench.run(Event::Closed(StreamId(2)));
    assert_eq!(bench.take(), ["prepare a 1", "prepare b 1", "aborted node_left"][2..]);
    assert_eq!(bench.reign.sizes()[4], 1, "the ABORT of a");
    bench.run(Event::Closed(StreamId(1)));
    assert_eq!(bench.reign.sizes()[4], 0);
    bench.take();
    let until = Millis(bench.at + 3_500);
    assert!(bench.does(Event::Extend { until }).is_empty());
}

#[test]
fn after_a_begin_no_plan_is_made_until_most_nodes_are_back() {
    let mut bench = Bench::formed();
    bench.run(Event::End);
    bench.lead();
    bench.join("a", Some(&boot()));
    bench.later(200);
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Err(Held::Returning));
    bench.join("b", Some(&boot()));
    bench.later(200);
    assert_eq!(bench.reign.may_plan(bench.now(), &unit()), Ok(()));
}

#[test]
fn answers_of_the_store_to_an_earlier_term_are_dropped() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    bench.answer("a", &next, NodeAnswer::Prepared);
    bench.mood = StoreMood::Silent;
    bench.answer("b", &next, NodeAnswer::Prepared);
    bench.run(Event::End);
    bench.take();
    bench.mood = StoreMood::Good;
    assert!(bench.does(Event::Tick).is_empty());
}
