//! Ranks that go down, drain and come up, and requests that move between them.

use super::*;

#[test]
fn a_rank_that_the_batch_takes_down_gets_nothing_of_it() {
    check(&mut router(Role::Decode, 2), &[(0, &[arrive(1, 9, 0), down(0)])], &[dispatched(1, 1, 1)]);
    let tick = RoutingEvent::Tick;
    check(&mut router(Role::Prefill, 2), &[(0, &[arrive(1, 9, 0), tick, down(0)])], &[dispatched(1, 1, 1)]);
}

#[test]
fn without_any_rank_requests_are_refused_until_one_is_back() {
    for role in [Role::Decode, Role::Prefill] {
        let mut router = router(role, 2);
        let decisions =
            router.apply(Millis(0), &[arrive(1, 9, 0), down(0), down(1), arrive(2, 9, 0)]).unwrap();
        let refused: Vec<u64> = decisions
            .iter()
            .map(|decision| match decision {
                Decision::Refuse { request, code: "routing_no_rank_up", message } => {
                    assert!(message.contains("all 2 ranks of the unit are down or draining"), "{message}");
                    request.0
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(refused, [1, 2]);
        let back = [up(1), arrive(2, 9, 0), RoutingEvent::Tick];
        check(&mut router, &[(0, &back)], &[dispatched(2, 1, 1)]);
    }
}

#[test]
fn the_requests_of_a_rank_that_goes_down_come_back() {
    let mut router = router(Role::Decode, 1);
    let lost = |request| Decision::Lost { request: RequestId(request), rank: Rank(0) };
    let batches: [(u64, &[RoutingEvent]); 2] =
        [(0, &[arrive(7, 9, 0), arrive(1, 9, 0)]), (0, &[down(0), up(0)])];
    check(&mut router, &batches, &[lost(7), lost(1)]);
    assert_eq!((router.live(), router.counters().lost), (0, 2));
    check(&mut router, &[(0, &[arrive(1, 9, 0)])], &[dispatched(1, 3, 0)]);
}

#[test]
fn running_requests_move_where_the_engine_can_move_them() {
    let policy = RoutingPolicy { migrations_per_step: 1, ..small() };
    let mut router = Router::new(Role::Decode, 2, policy).unwrap();
    let eight: Vec<RoutingEvent> = (1..=8).map(|request| arrive(request, 1000, 0)).collect();
    let decisions = router.apply(Millis(0), &eight).unwrap();
    let on = |rank| move |d: &&Decision| matches!(d, Decision::Dispatch { rank: r, .. } if *r == Rank(rank));
    let gone: Vec<RoutingEvent> = decisions.iter().filter(on(0)).map(|d| finish(d.request().0)).collect();
    router.apply(Millis(0), &gone).unwrap();
    // Rank 0 is empty: half of what rank 1 has moves, one request a step, and then nothing.
    let before = router.totals(Rank(1)).unwrap().requests;
    let mut numbers = Vec::new();
    for _ in 0..before {
        let decisions = router.apply(Millis(0), &[steps(1)]).unwrap();
        assert!(decisions.len() <= 1);
        numbers.extend(decisions.iter().map(|decision| match decision {
            Decision::Migrate { number, from: Rank(1), to: Rank(0), .. } => number.0,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(numbers, (9..9 + before / 2).collect::<Vec<_>>());
    assert_eq!(
        [0, 1].map(|rank| router.totals(Rank(rank)).unwrap().requests),
        [before / 2, before.div_ceil(2)]
    );
    assert_eq!(router.counters().migrated, before / 2);
}

#[test]
fn a_draining_rank_keeps_its_requests_and_gets_no_more_until_it_is_up() {
    let mut router = router(Role::Decode, 2);
    check(&mut router, &[(0, &[arrive(1, 9, 0)]), (0, &[drain(0)])], &[]);
    check(
        &mut router,
        &[(0, &[arrive(2, 9, 0), arrive(3, 9, 0)])],
        &[dispatched(2, 2, 1), dispatched(3, 3, 1)],
    );
    assert_eq!(router.totals(Rank(0)).map(|t| (t.requests, t.phase)), Some((1, RankPhase::Draining)));
    check(&mut router, &[(0, &[up(0), arrive(4, 90, 0)])], &[dispatched(4, 4, 0)]);
    // To drain a rank that is down does not bring it back.
    check(
        &mut router,
        &[(0, &[down(1), drain(1), down(0)])],
        &[
            Decision::Lost { request: RequestId(2), rank: Rank(1) },
            Decision::Lost { request: RequestId(3), rank: Rank(1) },
            Decision::Lost { request: RequestId(1), rank: Rank(0) },
            Decision::Lost { request: RequestId(4), rank: Rank(0) },
        ],
    );
    assert_eq!(router.totals(Rank(1)).unwrap().phase, RankPhase::Down);
}

#[test]
fn a_prompt_that_began_on_a_draining_rank_ends_there() {
    let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
    let tick = || RoutingEvent::Tick;
    router.apply(Millis(0), &[arrive(1, 5000, 0), tick()]).unwrap();
    let pinned = router.ledger.rank_of(RequestId(1)).unwrap();
    let begun = router.totals(pinned).unwrap().outstanding.tokens;
    router.apply(Millis(0), &[drain(pinned.0), arrive(2, 300, 0)]).unwrap();
    let mut given = begun;
    while given < 5000 {
        for decision in router.apply(Millis(0), &[steps(1), tick()]).unwrap() {
            match decision {
                Decision::Dispatch { request: RequestId(1), rank, tokens, .. } => {
                    assert_eq!(rank, pinned);
                    given += tokens.unwrap().0;
                }
                Decision::Dispatch { request: RequestId(2), rank, .. } => assert_ne!(rank, pinned),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(router.held(), 0);
}
