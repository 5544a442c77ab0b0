//! What is turned away, and what it says: policies, batches, requests.

use super::*;
use crate::routing::{EVENTS_MAX, REFUSED_HELD_FULL, REFUSED_TENANT_HELD_FULL, STEPS_MAX};

#[track_caller]
fn check_not_made(role: Role, ranks: u16, policy: RoutingPolicy, code: &str, text: &[&str]) {
    check_error(&Router::new(role, ranks, policy).unwrap_err(), code, text);
}

#[track_caller]
fn check_error(error: &RoutingError, code: &str, text: &[&str]) {
    assert_eq!(error.code(), code);
    for part in text {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn a_router_that_cannot_be_made_says_why() {
    let policy = small;
    check_not_made(Role::Decode, 0, policy(), "routing_rank_count", &["ranks is 0", "1 to"]);
    check_not_made(Role::Decode, RANKS_MAX + 1, policy(), "routing_rank_count", &["ranks is"]);
    check_not_made(Role::Mixed, 4, policy(), "routing_role_not_routed", &["role is mixed", "register"]);
    let check = |policy, text: &[&str]| {
        check_not_made(Role::Prefill, 4, policy, "routing_policy_out_of_range", text);
    };
    check(
        RoutingPolicy { cohort_wait_max_ms: 60_001, ..policy() },
        &["cohort_wait_max_ms is 60001", "60000"],
    );
    check(RoutingPolicy { round_tokens: Some(0), ..policy() }, &["round_tokens is 0", "1 to 4194304"]);
    check(RoutingPolicy { round_tokens: Some(4_194_305), ..policy() }, &["round_tokens is 4194305"]);
    check(RoutingPolicy { held_max: 0, ..policy() }, &["held_max is 0", "1 to 262144"]);
    check(RoutingPolicy { live_max: LIVE_MAX + 1, ..policy() }, &["live_max is 262145"]);
    check(RoutingPolicy { cohort_tokens: Some(0), ..policy() }, &["cohort_tokens is 0"]);
    check(RoutingPolicy { kv_capacity_tokens: Some(0), ..policy() }, &["kv_capacity_tokens is 0"]);
    check(RoutingPolicy { migrations_per_step: 70_000, ..policy() }, &["migrations_per_step is 70000"]);
    check(RoutingPolicy { block_tokens: 0, ..policy() }, &["block_tokens is 0", "1 to 4096"]);
    check(RoutingPolicy { batch_share: f64::NAN, ..policy() }, &["batch_share is NaN", "0 to 1"]);
    check(RoutingPolicy { tenant_held_max: 0, ..policy() }, &["tenant_held_max is 0"]);
    let prefix = PrefixPolicy { blocks_max: 0, ..PrefixPolicy::default() };
    check(RoutingPolicy { prefix, ..policy() }, &["blocks_max is 0"]);
    let tenant_weights = [(TenantId(7), 0)].into();
    check(RoutingPolicy { tenant_weights, ..policy() }, &["weight is 0", "1 to 65536"]);
}

/// A unit of four ranks that holds request 1; time is 1000 ms.
#[track_caller]
fn check_refused(now: u64, events: &[RoutingEvent], code: &str, text: &[&str]) {
    let mut router = router(Role::Prefill, 4);
    router.apply(Millis(1000), &[arrive(1, 10, 0)]).unwrap();
    let before = router.clone();
    // Valid events around the bad ones must leave no trace either.
    let batch: Vec<RoutingEvent> =
        [arrive(2, 10, 0), finish(1)].into_iter().chain(events.iter().cloned()).chain([down(0)]).collect();
    check_error(&router.apply(Millis(now), &batch).unwrap_err(), code, text);
    assert_eq!(router, before);
}

#[test]
fn a_batch_with_an_error_names_the_event_the_field_and_the_value() {
    let check = |event: RoutingEvent, code: &str, text: &[&str]| check_refused(1000, &[event], code, text);
    let tokens = "routing_tokens_out_of_range";
    check(arrive(0, 9, 0), "routing_reserved_request", &["event 2", "request 0"]);
    check(arrive(2, 9, 0), "routing_duplicate_request", &["event 2", "request 2"]);
    check(arrive(3, 0, 0), tokens, &["event 2", "prompt_tokens is 0", "1 to 4194304"]);
    check(arrive(3, 4_194_305, 0), tokens, &["prompt_tokens is 4194305"]);
    check(arrive(3, 9, 9), tokens, &["event 2", "cached_tokens is 9", "0 to 8"]);
    check(steps(0), tokens, &["event 2", "count is 0", "1 to 1048576"]);
    check(steps(STEPS_MAX + 1), tokens, &["count is 1048577"]);
    for event in [report(4, 1, 0, 0, 0), down(4), up(4), drain(4), kv(4, 1, &[7])] {
        check(event, "routing_unknown_rank", &["event 2", "rank 4", "0 to 3"]);
    }
    check(report(0, 1, (1 << 50) + 1, 0, 0), tokens, &["event 2", "kv_used_tokens is 1125899906842625"]);
    check(report(0, 1, 0, (1 << 24) + 1, 0), tokens, &["event 2", "requests is 16777217"]);
    check(report(0, 0, 0, 0, 0), tokens, &["event 2", "sequence is 0"]);
    check(kv(0, 1, &[]), tokens, &["event 2", "blocks is 0", "1 to 65536"]);
    check(kv(0, 1, &[7; 65_537]), tokens, &["event 2", "blocks is 65537"]);
    check(step(|step| step.tokens.0 = 1 << 25), tokens, &["event 2", "step tokens is 33554432"]);
    check(step(|step| step.pairs = u64::MAX), tokens, &["step pairs is 18446744073709551615"]);
    check(step(|step| step.requests = 1 << 25), tokens, &["step requests is 33554432"]);
    check(step(|step| step.kv_tokens.0 = 1 << 51), tokens, &["step kv_tokens is 2251799813685248"]);
    check(step(|step| step.micros = 0), tokens, &["step micros is 0", "1 to 3600000000"]);
    check(with_blocks(3, 191, 3), tokens, &["event 2", "blocks is 3", "0 to 2"]);
    check(with_blocks(3, 4_194_304, 65_537), tokens, &["blocks is 65537", "0 to 65536"]);
    check_refused(999, &[], "routing_time_backwards", &["now is 999", "1000"]);
    check_refused(1 << 53, &[], "routing_time_too_large", &["now is 9007199254740992", "2^53"]);
    let endless = vec![RoutingEvent::Tick; EVENTS_MAX];
    check_refused(1000, &endless, "routing_batch_too_large", &["65539 events", "65536"]);
}

/// The requests that are refused for this code; all other decisions are of other kinds.
#[track_caller]
fn refused_for(decisions: &[Decision], code: &str, text: &str) -> Vec<u64> {
    let refused = decisions.iter().filter_map(|decision| match decision {
        Decision::Refuse { request, code: found, message } => {
            assert_eq!(*found, code);
            assert!(message.contains(text), "{text:?} is not in: {message}");
            Some(request.0)
        }
        _ => None,
    });
    refused.collect()
}

#[test]
fn running_requests_count_against_the_bound_on_live_ones() {
    let policy = RoutingPolicy { live_max: 2, ..small() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    router.apply(Millis(0), &[arrive(1, 9, 0), arrive(2, 9, 0)]).unwrap();
    let decisions = router.apply(Millis(0), &[arrive(3, 9, 0)]).unwrap();
    assert_eq!(refused_for(&decisions, REFUSED_LIVE_FULL, "2 requests"), [3]);
    // What a batch ends makes room in it.
    let decisions = router.apply(Millis(0), &[finish(1), arrive(3, 9, 0)]).unwrap();
    assert!(refused_for(&decisions, REFUSED_LIVE_FULL, "").is_empty());
    assert_eq!((router.live(), router.counters().refused), (2, 1));
}

#[test]
fn a_flood_is_turned_away_from_its_own_tenant() {
    let policy = RoutingPolicy { held_max: 4, tenant_held_max: 3, ..small() };
    let mut router = Router::new(Role::Prefill, 1, policy).unwrap();
    let flood: Vec<RoutingEvent> = [1, 7, 10, 13].map(|request| arrive_of_tenant(request, 9, 0)).into();
    let decisions = router.apply(Millis(0), &flood).unwrap();
    assert_eq!(refused_for(&decisions, REFUSED_TENANT_HELD_FULL, "tenant 1 holds 3"), [13]);
    // Tenant 2 finds room as long as it holds less, at the cost of tenant 1.
    let decisions = router.apply(Millis(0), &[arrive_of_tenant(2, 9, 0), arrive_of_tenant(5, 9, 0)]).unwrap();
    assert_eq!(refused_for(&decisions, REFUSED_HELD_FULL, "4 requests are held"), [10]);
    assert_eq!((router.held(), router.live()), (4, 4));
}

#[test]
fn a_request_that_no_rank_can_ever_hold_is_refused() {
    let policy = RoutingPolicy { kv_capacity_tokens: Some(100), ..small() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    let decisions = router.apply(Millis(0), &[arrive(1, 101, 0), arrive(2, 100, 0)]).unwrap();
    assert_eq!(refused_for(&decisions, "routing_never_fits", "prompt_tokens is 101"), [1]);
    assert_eq!(decisions[1..], [dispatched(2, 1, 0)]);
}
