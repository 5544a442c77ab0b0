//! Requests routed by a live balancer over gRPC.

use evenkeel_proto::v1::decision::Outcome;
use evenkeel_proto::v1::route_event::Event;
use evenkeel_proto::v1::{Arrive, Finish, RankState, RouteEvent, RouteRequest, RouteResponse};
use evenkeel_tests::{Rig, Shape};

fn batch(sequence: u64, now_ms: u64, events: Vec<Event>) -> RouteRequest {
    let events = events.into_iter().map(|event| RouteEvent { event: Some(event) }).collect();
    RouteRequest { sequence, unit: "u".to_owned(), now_ms, events }
}

fn arrive(request: u64, prompt_tokens: u64) -> Event {
    Event::Arrive(Arrive { request, prompt_tokens, cached_tokens: 0 })
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
    let down = Event::RankState(RankState { rank: 0, up: false, ..RankState::default() });
    let events = std::iter::once(down).chain((1..=10).map(|r| arrive(r, 100))).collect();
    let responses = rig.route(vec![batch(1, 0, events)]);
    assert!(!ranks(&responses[0]).contains(&0));
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
