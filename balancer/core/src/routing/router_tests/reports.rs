//! What reports correct and teach, and which are dropped.

use super::*;

/// Rank 0 of a decode unit has requests 1 and 2, of 100 tokens each, and ten steps have run; then it
/// reports. Compares (requests, KV) of the ledger and the corrections to both, KV first.
#[track_caller]
fn check_report(events: &[RoutingEvent], ledger: (u64, u64), corrections: (i64, i64)) {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 100, 0), arrive(2, 100, 0)]).unwrap();
    router.apply(Millis(0), &[steps(10)]).unwrap();
    router.apply(Millis(0), events).unwrap();
    let totals = router.totals(Rank(0)).unwrap();
    assert_eq!((totals.requests, totals.kv_tokens.0), ledger);
    assert_eq!((totals.kv_difference, totals.requests_difference), corrections);
}

#[test]
fn a_report_corrects_the_ledger_and_keeps_what_is_in_flight() {
    // The rank agrees, as of now or of any time since it had request 2.
    check_report(&[report(0, 1, 220, 2, 2)], (2, 220), (0, 0));
    check_report(&[report(0, 1, 204, 2, 2)], (2, 220), (0, 0));
    // It has something the ledger does not know of, or lacks something.
    check_report(&[report(0, 1, 250, 3, 2)], (2, 220), (30, 1));
    check_report(&[report(0, 1, 110, 1, 2)], (2, 220), (-90, -1));
    // It had not heard of request 2, or of any: these count on top of what it says.
    check_report(&[report(0, 1, 100, 1, 1)], (2, 220), (0, 0));
    check_report(&[report(0, 1, 0, 0, 0)], (2, 220), (0, 0));
    check_report(&[report(0, 1, 115, 2, 1)], (2, 220), (15, 1));
    // Request 2 had ended already, or not yet.
    check_report(&[finish(2), report(0, 1, 110, 1, 2)], (1, 110), (0, 0));
    check_report(&[finish(2), report(0, 1, 220, 2, 2)], (1, 110), (0, 0));
    check_report(&[finish(2), report(0, 1, 230, 3, 2)], (1, 110), (10, 1));
    // The last report counts, wherever it contradicts the one before.
    check_report(&[report(0, 1, 250, 3, 2), report(0, 2, 220, 2, 2)], (2, 220), (20, 0));
    check_report(&[report(0, 1, 250, 3, 2), report(0, 2, 200, 2, 2)], (2, 220), (0, 0));
}

#[test]
fn without_reports_what_they_said_stays() {
    let finishes = [report(0, 1, 250, 3, 2), finish(1), steps(1000)];
    check_report(&finishes, (1, 1110), (30, 1));
}

#[test]
fn repeated_and_older_reports_are_dropped_and_counted() {
    let mut router = router(Role::Decode, 1);
    for (sequence, kv, stale, kv_difference) in
        [(5, 90, 0, 90), (5, 80, 1, 90), (4, 70, 2, 90), (6, 60, 2, 60)]
    {
        router.apply(Millis(0), &[report(0, sequence, kv, 0, 0)]).unwrap();
        assert_eq!(router.counters().stale_reports, stale, "report {sequence}");
        assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, kv_difference, "report {sequence}");
    }
    // A rank that came up counts anew, and one that is down says nothing.
    router.apply(Millis(0), &[up(0), report(0, 1, 50, 0, 0)]).unwrap();
    assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, 50);
    router.apply(Millis(0), &[down(0), report(0, 2, 40, 0, 0)]).unwrap();
    assert_eq!(router.totals(Rank(0)).unwrap().kv_difference, 0);
    assert_eq!(router.totals(Rank(0)).unwrap().phase, RankPhase::Down, "a late report brings no rank back");
    assert_eq!(router.counters().stale_reports, 3);
}

#[test]
fn a_report_that_names_a_dispatch_to_come_is_dropped_and_counted() {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 10, 0), report(0, 1, 90, 9, 1)]).unwrap();
    assert_eq!(router.counters().foreign_reports, 1, "the batch's arrivals go out after its reports");
    router.apply(Millis(0), &[report(0, 1, 90, 9, 1)]).unwrap();
    assert_eq!(
        (router.counters().foreign_reports, router.totals(Rank(0)).unwrap().requests_difference),
        (1, 8)
    );
}

#[test]
fn a_correction_moves_the_next_admission() {
    let reports = [report(0, 1, 900, 1, 0), report(1, 1, 10, 1, 0)];
    check(&mut router(Role::Decode, 2), &[(0, &reports), (0, &[arrive(1, 9, 0)])], &[dispatched(1, 1, 1)]);
}

#[test]
fn step_reports_teach_what_a_step_costs() {
    let mut router = router(Role::Prefill, 1);
    let learnt = |router: &Router| router.step_cost_quality().samples;
    let known = |sequence, micros| {
        let tokens = Tokens(1000 + sequence % 7 * 300);
        let step = StepReport { tokens, pairs: 1000, requests: 1, kv_tokens: Tokens(0), micros };
        let (as_of, kv_used_tokens) = (None, Tokens(0));
        RoutingEvent::Report { rank: Rank(0), sequence, as_of, kv_used_tokens, requests: 0, step: Some(step) }
    };
    for sequence in 1..=400 {
        let micros = 90 * (1000 + sequence % 7 * 300);
        router.apply(Millis(0), &[known(sequence, micros)]).unwrap();
    }
    assert_eq!(learnt(&router), 400);
    assert!((80.0..100.0).contains(&router.step_cost().token_us), "{:?}", router.step_cost());
    router.apply(Millis(0), &[known(400, 1)]).unwrap();
    assert_eq!(learnt(&router), 400, "a repeated report teaches nothing");
}
