use super::bench::*;
use crate::ids::{Rank, Term};
use crate::protocol::reign::*;
use crate::protocol::unit::Answer as NodeAnswer;

#[test]
fn a_unit_forms_when_every_node_serves_the_boot_plan() {
    let mut bench = Bench::standby();
    bench.lead();
    bench.join("a", None);
    assert_eq!(bench.take(), ["leader a"]);
    bench.join("b", Some(&boot()));
    assert_eq!(bench.take(), ["leader b"]);
    let formed = bench.answer("a", &boot(), NodeAnswer::Applied);
    assert_eq!(formed, ["draft 0", "write", "committed 0", "settled 0"]);
    assert_eq!(bench.audited(), ["balancer commit"]);
}

#[test]
fn a_unit_that_never_formed_leaves_nothing_behind() {
    let mut bench = Bench::standby();
    bench.lead();
    bench.join("a", None);
    bench.run(Event::Closed(StreamId(1)));
    assert!(bench.reign.units().is_empty());
    assert_eq!(bench.reign.sizes(), [0; 5]);
}

/// Another agent says Hello on stream 3 while `a` was heard `heard_ms` ago.
#[track_caller]
fn check_hello(heard_ms: u64, change: impl FnOnce(&mut Introduction), expected: &[&str]) {
    let mut bench = Bench::formed();
    bench.at += heard_ms;
    let mut hello = bench.hello("a", Some(&boot()));
    change(&mut hello);
    assert_eq!(bench.does(Event::Hello { stream: StreamId(3), hello }), expected);
}

#[test]
fn two_agents_with_one_name_do_not_displace_each_other() {
    check_hello(1_000, |hello| hello.incarnation = 2, &["refuse 3 node_conflict", "close 3 node_conflict"]);
    check_hello(6_001, |hello| hello.incarnation = 2, &["close a displaced", "leader 3", "settled 0"]);
    check_hello(0, |_| {}, &["close a displaced", "leader 3", "settled 0"]);
}

#[test]
fn a_restarted_agent_takes_over_at_once_when_its_stream_has_ended() {
    let mut bench = Bench::formed();
    bench.run(Event::Closed(StreamId(1)));
    bench.take();
    let hello = Introduction { incarnation: 2, ..bench.hello("a", Some(&boot())) };
    assert_eq!(bench.does(Event::Hello { stream: StreamId(3), hello }), ["leader 3", "settled 0"]);
}

#[test]
fn what_does_not_fit_is_refused_with_its_code() {
    let other = |hello: &mut Introduction| hello.node = node("c");
    let refused = |code: &str| [format!("refuse 3 {code}"), format!("close 3 {code}")];
    let check = |change: &dyn Fn(&mut Introduction), code: &str| {
        let expected = refused(code);
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check_hello(0, |hello| change(hello), &expected);
    };
    check(&other, "rank_conflict");
    let with = |change: fn(&mut Introduction)| {
        move |hello: &mut Introduction| {
            hello.node = node("c");
            change(hello);
        }
    };
    check(&with(|hello| hello.claim.weights_digest = b"v".to_vec()), "weights_mismatch");
    check(&with(|hello| hello.claim.shape.experts = 5), "unit_shape_mismatch");
    check(&with(|hello| hello.term = Term { generation: 9, revision: 0 }), "not_leader");
}

#[test]
fn a_node_that_is_gone_is_replaced_and_the_record_follows() {
    let mut bench = Bench::formed();
    bench.run(Event::Closed(StreamId(1)));
    bench.take();
    let mut hello = bench.hello("a", None);
    hello.node = node("c");
    assert_eq!(bench.does(Event::Hello { stream: StreamId(3), hello }), ["leader 3"]);
    assert_eq!(bench.later(200), ["write"]);
    let units = bench.recovered().units;
    assert_eq!(units[0].record.nodes.get(&node("c")), Some(&vec![Rank(0), Rank(1)]));
    assert!(!units[0].record.nodes.contains_key(&node("a")));
}

#[test]
fn silence_ends_a_stream() {
    let mut bench = Bench::formed();
    bench.at += 10_000;
    bench.run(Event::Heard(StreamId(1)));
    bench.take();
    assert_eq!(bench.later(5_001), ["close b silent"]);
}

#[test]
fn an_agent_that_changes_its_claim_is_cut_off() {
    let mut bench = Bench::formed();
    let mut hello = bench.hello("a", Some(&boot()));
    hello.claim.ranks = vec![Rank(0)];
    let done = bench.does(Event::Hello { stream: StreamId(1), hello });
    assert_eq!(done, ["close a changed_hello"]);
}

#[test]
fn a_repeated_hello_disturbs_nothing() {
    let mut bench = Bench::formed();
    let next = bench.next();
    bench.propose(&next);
    let hello = bench.hello("a", Some(&boot()));
    assert!(bench.does(Event::Hello { stream: StreamId(1), hello }).is_empty());
}

#[test]
fn a_node_that_leaves_while_the_boot_plan_is_written_down_keeps_the_unit_from_forming() {
    let mut bench = Bench::standby();
    bench.drafts = false;
    bench.lead();
    bench.join("a", Some(&boot()));
    bench.join("b", Some(&boot()));
    assert_eq!(bench.take(), ["leader a", "leader b", "draft 0"]);
    bench.run(Event::Closed(StreamId(2)));
    assert!(bench.propose(&boot()).is_empty());
    bench.drafts = true;
    bench.join("b", Some(&boot()));
    assert_eq!(bench.take(), ["leader b", "draft 0", "write", "committed 0", "settled 0"]);
}
