//! Requests routed by a live balancer over gRPC.

use evenkeel_proto::v1::decision::Outcome;
use evenkeel_proto::v1::route_event::Event;
use evenkeel_proto::v1::{Arrive, Finish, RankDown, RankReport, RouteEvent, RouteRequest, RouteResponse};
use evenkeel_tests::{Rig, Shape};

fn batch(sequence: u64, now_ms: u64, events: Vec<Event>) -> RouteRequest {
    let events = events.into_iter().map(|event| RouteEvent { event: Some(event) }).collect();
    RouteRequest { sequence, unit: "u".to_owned(), now_ms, events }
}

fn arrive(request: u64, prompt_tokens: u64) -> Event {
    Event::Arrive(Arrive { request, prompt_tokens, ..Arrive::default() })
}

fn ranks(response: &RouteResponse) -> Vec<u32> {
    let rank = |outcome: &Option<Outcome>| match outcome {
        Some(Outcome::Dispatch(dispatch)) => dispatch.rank,
        other => panic!("not dispatched: {other:?}"),
    };
    response.decisions.iter().map(|d| rank(&d.outcome)).collect()
}

fn code(response: &RouteResponse) -> &str {
    response.error.as_ref().map_or("", |error| error.code.as_str())
}

#[test]
fn requests_spread_over_the_ranks_and_the_ledger_outlives_a_stream() {
    let rig = Rig::start(Shape::default());
    let responses = rig.route(vec![batch(1, 0, (1..=6).map(|r| arrive(r, 100)).collect())]);
    let mut first = ranks(&responses[0]);
    first.sort_unstable();
    assert_eq!(first, [0, 1, 2, 3, 4, 5], "one each");
    // Another gateway sees the same ledger: the rank that a finished request left is the emptiest.
    let freed = ranks(&responses[0])[2];
    let finish = Event::Finish(Finish { request: 3 });
    let responses = rig.route(vec![batch(1, 1, vec![finish]), batch(2, 2, vec![arrive(7, 100)])]);
    assert_eq!(ranks(&responses[1]), [freed]);
}

#[test]
fn a_rank_that_is_down_gets_nothing() {
    let rig = Rig::start(Shape::default());
    let down = Event::RankDown(RankDown { rank: 0 });
    let events = std::iter::once(down).chain((1..=10).map(|r| arrive(r, 100))).collect();
    let responses = rig.route(vec![batch(1, 0, events)]);
    assert!(!ranks(&responses[0]).contains(&0));
}

#[test]
fn requests_of_a_rank_that_goes_down_come_back_and_may_arrive_again() {
    let rig = Rig::start(Shape::default());
    let responses = rig.route(vec![
        batch(1, 0, vec![arrive(1, 100)]),
        batch(2, 1, vec![Event::RankDown(RankDown { rank: 0 }), arrive(2, 100)]),
        batch(3, 2, vec![arrive(1, 100)]),
    ]);
    let Some(Outcome::Dispatch(first)) = &responses[0].decisions[0].outcome else {
        panic!("not dispatched: {responses:?}");
    };
    assert_eq!((first.rank, first.number), (0, 1));
    let lost = &responses[1].decisions[0];
    assert!(matches!(&lost.outcome, Some(Outcome::Lost(lost)) if lost.rank == 0), "{lost:?}");
    assert_eq!((lost.request, responses[2].decisions[0].request), (1, 1));
    assert!(!ranks(&responses[2]).contains(&0));
}

#[test]
fn a_report_moves_the_next_admission() {
    let rig = Rig::start(Shape::default());
    let report = |rank, requests| {
        Event::Report(RankReport {
            rank,
            sequence: 1,
            requests,
            kv_used_tokens: 1000,
            ..RankReport::default()
        })
    };
    let reports = [9, 9, 9, 1, 9, 9].into_iter().zip(0u32..).map(|(requests, rank)| report(rank, requests));
    let responses = rig.route(vec![batch(1, 0, reports.chain([arrive(1, 100)]).collect())]);
    assert_eq!(ranks(&responses[0]), [3]);
}

#[test]
fn a_refused_batch_has_a_code_and_no_effect_and_the_stream_goes_on() {
    let rig = Rig::start(Shape::default());
    let elsewhere = RouteRequest { unit: "nowhere".to_owned(), ..batch(3, 2, vec![arrive(2, 100)]) };
    let responses = rig.route(vec![
        batch(1, 5, vec![arrive(1, 100)]),
        batch(2, 5, vec![arrive(9, 100), arrive(1, 100)]),
        elsewhere,
        RouteRequest { events: vec![RouteEvent { event: None }], ..batch(4, 5, Vec::new()) },
        batch(5, 4, vec![arrive(3, 100)]),
        batch(6, 6, vec![arrive(9, 100)]),
    ]);
    let codes: Vec<&str> = responses.iter().map(code).collect();
    let expected =
        ["", "routing_duplicate_request", "unknown_unit", "malformed_message", "routing_time_backwards", ""];
    assert_eq!(codes, expected);
    assert_eq!(responses.iter().map(|r| r.sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
}
