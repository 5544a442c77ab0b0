//! First tokens, steps and ends.

use super::*;
use crate::prefill::Work;
use crate::routing::{EVENTS_MAX, STEPS_MAX};

#[test]
fn unknown_and_repeated_finishes_are_counted_and_change_nothing_else() {
    let mut router = router(Role::Decode, 2);
    check(&mut router, &[(0, &[arrive(1, 9, 0), arrive(2, 9, 0)]), (0, &[finish(1)])], &[]);
    let totals = [router.totals(Rank(0)), router.totals(Rank(1))];
    check(&mut router, &[(0, &[finish(1), finish(7), finish(7)])], &[]);
    assert_eq!([router.totals(Rank(0)), router.totals(Rank(1))], totals);
    assert_eq!(router.counters().unknown_finishes, 3);
}

#[test]
fn a_first_token_ends_the_prefill_work_of_its_prompt() {
    let mut router = router(Role::Prefill, 1);
    let tick = RoutingEvent::Tick;
    router.apply(Millis(0), &[arrive(1, 10, 4), arrive(2, 7, 0), tick]).unwrap();
    let left = |router: &Router| router.totals(Rank(0)).unwrap().outstanding;
    assert_eq!(left(&router), Work::of(4, 6) + Work::of(0, 7));
    router.apply(Millis(0), &[first_token(1), first_token(1)]).unwrap();
    assert_eq!(left(&router), Work::of(0, 7));
    router.apply(Millis(0), &[finish(1), first_token(1), first_token(9)]).unwrap();
    assert_eq!((left(&router), router.counters().unknown_first_tokens), (Work::of(0, 7), 2));
}

#[test]
fn steps_beyond_any_life_of_a_unit_do_not_overflow() {
    let mut router = router(Role::Decode, 1);
    router.apply(Millis(0), &[arrive(1, 10, 0)]).unwrap();
    for _ in 0..20 {
        router.apply(Millis(0), &vec![steps(STEPS_MAX); EVENTS_MAX]).unwrap();
    }
    assert_eq!(router.totals(Rank(0)).unwrap().kv_tokens, Tokens((1 << 40) + 10));
    router.apply(Millis(0), &[arrive(2, 10, 0), report(0, 1, 1, 1, 1)]).unwrap();
    assert_eq!(router.totals(Rank(0)), Some(router.ledger.recount(Rank(0))));
}

#[test]
fn chunks_of_a_round_follow_when_the_ranks_have_run() {
    let mut router = Router::new(Role::Prefill, 1, chunked()).unwrap();
    let tick = RoutingEvent::Tick;
    router.apply(Millis(0), &[arrive(1, 1300, 100)]).unwrap();
    let mut rounds = 0;
    loop {
        let before = router.totals(Rank(0)).unwrap().outstanding.tokens;
        router.apply(Millis(0), &[steps(1), tick.clone()]).unwrap();
        let given = router.totals(Rank(0)).unwrap().outstanding.tokens;
        assert!(given <= ROUND_TOKENS && (given > 0 || before > 0), "round {rounds}: {given} tokens");
        if given == 0 {
            break;
        }
        rounds += 1;
    }
    assert_eq!((rounds, router.counters().dispatched), (3, 1));
    check(&mut router, &[(0, &[finish(1), tick])], &[]);
    assert_eq!(router.live(), 0);
}

/// Requests and tokens that a batch gives to ranks.
fn given(router: &mut Router, events: &[RoutingEvent]) -> Vec<(u64, u16, u64)> {
    let decisions = router.apply(Millis(0), events).unwrap();
    let chunk = |d: &Decision| match *d {
        Decision::Dispatch { request, rank, tokens: Some(tokens), .. } => Some((request.0, rank.0, tokens.0)),
        _ => None,
    };
    let mut of_ranks = Vec::new();
    for (request, rank, tokens) in decisions.iter().filter_map(chunk) {
        match of_ranks.last_mut() {
            Some((r, _, sum)) if *r == request => *sum += tokens,
            _ => of_ranks.push((request, rank, tokens)),
        }
    }
    of_ranks
}

#[test]
fn a_quiet_unit_has_its_next_round_while_one_runs() {
    let mut router = Router::new(Role::Prefill, 8, chunked()).unwrap();
    let tick = RoutingEvent::Tick;
    assert_eq!(given(&mut router, &[arrive(1, LONG_TOKENS, 0), tick.clone()]), [(1, 0, ROUND_TOKENS)]);
    for _ in 0..8 {
        let [(1, 0, tokens)] = given(&mut router, &[steps(1)])[..] else { panic!("it goes on") };
        // They need no other when that has run.
        assert_eq!(given(&mut router, std::slice::from_ref(&tick)), []);
        assert_eq!(router.totals(Rank(0)).unwrap().outstanding.tokens, tokens);
    }
    // Who comes meanwhile does not wait for a round more.
    assert_eq!(given(&mut router, &[steps(1)]).len(), 1);
    assert_eq!(given(&mut router, &[arrive(2, 100, 0)]), []);
    assert_eq!(given(&mut router, std::slice::from_ref(&tick)), [(2, 1, 100)]);
    let more: Vec<_> = (0..5).flat_map(|_| given(&mut router, &[steps(1)])).collect();
    assert!(!more.is_empty() && more.iter().all(|&(request, rank, _)| (request, rank) == (1, 0)), "{more:?}");
    assert_eq!(given(&mut router, &[steps(1), tick]), []);
}

#[test]
fn a_busy_unit_has_its_next_round_when_its_ranks_need_work() {
    let mut router = Router::new(Role::Prefill, 8, chunked()).unwrap();
    let tick = RoutingEvent::Tick;
    let begun = [arrive(1, LONG_TOKENS, 0), arrive(2, LONG_TOKENS, 0), tick.clone()];
    assert_eq!(given(&mut router, &begun).len(), 2);
    assert_eq!(given(&mut router, &[steps(1)]), []);
    assert_eq!(given(&mut router, &[tick]).len(), 2);
}

#[test]
fn steps_alone_keep_nobody_waiting_longer_than_the_policy_says() {
    let policy = RoutingPolicy { cohort_wait_max_ms: 50, ..chunked() };
    let mut router = Router::new(Role::Prefill, 1, policy).unwrap();
    router.apply(Millis(0), &[arrive(1, LONG_TOKENS, 0), RoutingEvent::Tick]).unwrap();
    router.apply(Millis(0), &[arrive(2, 9, 0)]).unwrap();
    let mut out = |ms: u64| router.apply(Millis(ms), &[steps(1)]).unwrap().len();
    assert_eq!((out(49), out(50) > 0), (0, true));
}
