//! Where prompts go for their prefix.

use super::*;
use crate::prefill::{HELD_PER_RANK, Work};

#[test]
fn a_prompt_joins_the_rank_that_has_its_prefix() {
    let mut router = router(Role::Prefill, 4);
    let tick = RoutingEvent::Tick;
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    // The stored blocks are known; request 3 is of family 1, and all but its last 48 tokens are there.
    let decisions =
        router.apply(Millis(0), &[kv(2, 1, &family), arrive_of_tenant(3, 2096, 0), tick.clone()]).unwrap();
    assert!(matches!(decisions[..], [Decision::Dispatch { rank: Rank(2), .. }]), "{decisions:?}");
    assert_eq!(router.totals(Rank(2)).unwrap().outstanding, Work::of(2048, 48));
    // So are those of a prompt that is on its way, until the rank goes down.
    let batch = [first_token(3), finish(3), arrive_of_tenant(4, 2096, 0), tick.clone()];
    let decisions = router.apply(Millis(0), &batch).unwrap();
    assert!(matches!(decisions[..], [Decision::Dispatch { rank: Rank(2), .. }]), "{decisions:?}");
    let batch = [down(2), up(2), arrive_of_tenant(5, 2096, 0), tick];
    let decisions = router.apply(Millis(0), &batch).unwrap();
    assert!(matches!(decisions[..], [Decision::Lost { .. }, Decision::Dispatch { rank: Rank(0), .. }]));
}

#[test]
fn chunks_run_where_the_prefix_is_unless_that_rank_has_too_much_to_do() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    // What else there is for the rank with the prefix; compares rank and tokens of the prompt of the family.
    let check = |before: &[RoutingEvent], stored: usize, rank_of: fn(Rank) -> bool, tokens: u64| {
        let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
        router.apply(Millis(0), before).unwrap();
        let batch = [up(0), kv(1, 1, &family[..stored]), arrive_of_tenant(3, 2096, 0), RoutingEvent::Tick];
        let decisions = router.apply(Millis(0), &batch).unwrap();
        let first = decisions.iter().find(|decision| decision.request() == RequestId(3));
        let Some(Decision::Dispatch { rank, tokens: Some(given), .. }) = first else {
            panic!("{decisions:?}");
        };
        assert!(rank_of(*rank) && given.0 == tokens, "{decisions:?}");
    };
    check(&[], family.len(), |rank| rank == Rank(1), 48);
    // Two blocks are not worth what was given to their rank.
    let busy = [down(0), arrive(9, 40_000, 0), RoutingEvent::Tick];
    check(&busy, 2, |rank| rank == Rank(0), ROUND_TOKENS);
}

#[test]
fn a_new_prompt_goes_to_the_emptiest_cache() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    for policy in [small(), chunked()] {
        let mut router = Router::new(Role::Prefill, 3, policy).unwrap();
        let batch = [kv(0, 1, &family), kv(1, 1, &family[..4]), kv(2, 1, &family[..9]), arrive(1, 400, 0)];
        let decisions = router.apply(Millis(0), &[&batch[..], &[RoutingEvent::Tick]].concat()).unwrap();
        let there = |d: &Decision| matches!(d, Decision::Dispatch { rank: Rank(1), .. });
        assert!(decisions.iter().any(there), "{decisions:?}");
    }
}

#[test]
fn a_turn_waits_for_its_prefix_to_run() {
    let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
    let turn = |request: u64, tokens: u64| {
        let mut event = arrive(request, tokens, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut event {
            *blocks = family_blocks(1, tokens);
        }
        event
    };
    let steps = RoutingEvent::Steps { count: 1 };
    router.apply(Millis(0), &[turn(1, 1024), RoutingEvent::Tick]).unwrap();
    let mut rounds = 0;
    let mut events = vec![turn(2, 1060)];
    // Whatever is given of the second turn in a round, all of the first was given before.
    loop {
        events.extend([steps.clone(), RoutingEvent::Tick]);
        let decisions = router.apply(Millis(0), &events).unwrap();
        let of = |id: u64| {
            decisions.iter().any(|d| matches!(d, Decision::Dispatch { request, .. } if request.0 == id))
        };
        if of(2) {
            let [Decision::Dispatch { tokens: Some(given), .. }, ..] = decisions[..] else {
                panic!("{decisions:?}")
            };
            assert!(!of(1) && rounds > 0 && given.0 <= 36, "{decisions:?} after {rounds} rounds");
            return;
        }
        rounds += 1;
        assert!(rounds < 100, "it still waits");
        events.clear();
    }
}

#[test]
fn of_two_new_prompts_with_one_beginning_the_second_waits() {
    let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
    let turn = |request: u64| {
        let mut event = arrive(request, 4096, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut event {
            *blocks = family_blocks(1, 4096);
        }
        event
    };
    let decisions = router.apply(Millis(0), &[turn(1), turn(2), RoutingEvent::Tick]).unwrap();
    assert!(decisions.contains(&Decision::Hold { request: RequestId(2) }), "{decisions:?}");
}

#[test]
fn a_long_queue_is_looked_up_as_far_as_it_is_planned_with() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    let goes_home = |before: u64| {
        let mut router = Router::new(Role::Prefill, 2, chunked()).unwrap();
        let mut batch = vec![kv(1, 1, &family)];
        batch.extend((1..=before).map(|request| arrive(request, 40_000, 0)));
        let mut last = arrive(before + 1, 2096, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut last {
            *blocks = family_blocks(1, 2096);
        }
        batch.extend([last, RoutingEvent::Tick]);
        let decisions = router.apply(Millis(0), &batch).unwrap();
        let last = |d: &Decision| matches!(d, Decision::Dispatch { request, .. } if request.0 == before + 1);
        decisions.iter().any(last)
    };
    let seen = 2 * HELD_PER_RANK as u64;
    assert!(goes_home(seen - 1) && !goes_home(seen));
}

#[test]
fn what_all_ranks_have_need_not_run_wherever_a_prompt_goes() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    for (policy, rounds) in [(small(), 1), (chunked(), 40)] {
        let mut router = Router::new(Role::Prefill, 2, policy).unwrap();
        let stored = [0, 1].map(|rank| kv(rank, 1, &family[..16]));
        let batch = [&stored[..], &[arrive(9, 5000, 0), arrive_of_tenant(3, 2096, 0)]].concat();
        router.apply(Millis(0), &batch).unwrap();
        // Each round has run before the next; whole prompts go out at once.
        let mut round = |_| {
            router.apply(Millis(0), &[steps(1), RoutingEvent::Tick]).unwrap();
            (0..2).map(|rank| router.totals(Rank(rank)).unwrap().outstanding.tokens).sum::<u64>()
        };
        let given: u64 = (0..rounds).map(&mut round).sum();
        assert_eq!(given, 5000 + 2096 - 1024);
    }
}

#[test]
fn a_held_prompt_hears_what_ranks_get_and_lose() {
    let family: Vec<u64> = family_blocks(1, 2048).iter().map(|block| block.0).collect();
    let removed = |rank: u16, sequence: u64, first: usize| {
        let blocks = family[first..].iter().copied().map(BlockHash).collect();
        RoutingEvent::Kv { rank: Rank(rank), sequence, change: KvChange::Removed { blocks } }
    };
    // Where a prompt of the family goes that arrives after the first batch and before the second.
    let check = |before: &[RoutingEvent], after: &[RoutingEvent], expected: u16| {
        for policy in [small(), chunked()] {
            let mut router = Router::new(Role::Prefill, 3, policy).unwrap();
            router.apply(Millis(0), before).unwrap();
            assert_eq!(router.apply(Millis(0), &[arrive_of_tenant(3, 2096, 0)]).unwrap(), [held(3)]);
            let decisions = router.apply(Millis(1), &[after, &[RoutingEvent::Tick]].concat()).unwrap();
            let there = |d: &Decision| matches!(d, Decision::Dispatch { rank, .. } if rank.0 == expected);
            assert!(!decisions.is_empty() && decisions.iter().all(there), "{decisions:?}");
        }
    };
    check(&[], &[kv(2, 1, &family)], 2);
    check(&[kv(1, 1, &family[..16])], &[kv(2, 1, &family)], 2);
    check(&[kv(1, 1, &family[..16]), kv(2, 1, &family)], &[removed(2, 2, 1)], 1);
    check(&[kv(1, 1, &family[..16]), kv(2, 1, &family)], &[down(2)], 1);
}

#[test]
fn the_expectations_of_long_prompts_are_renewed_over_some_rounds() {
    let policy = RoutingPolicy { round_tokens: Some(64), ..RoutingPolicy::default() };
    let mut router = Router::new(Role::Prefill, 3, policy).unwrap();
    let prompts = (1..=3).map(|request| {
        let mut event = arrive(request, 640_000, 0);
        if let RoutingEvent::Arrive { blocks, .. } = &mut event {
            *blocks = (0..10_000).map(|depth| BlockHash(request << 20 | depth)).collect();
        }
        event
    });
    let batch: Vec<RoutingEvent> = prompts.chain([RoutingEvent::Tick]).collect();
    router.apply(Millis(0), &batch).unwrap();
    let mut left_at = |ms: u64| {
        router.apply(Millis(ms), &[steps(1), RoutingEvent::Tick]).unwrap();
        router.holding.aged(Millis(ms), 5000).len()
    };
    assert_eq!([4999, 5000, 5001, 9999].map(&mut left_at), [0, 1, 0, 0]);
}

#[test]
fn a_round_of_many_ranks_is_planned_with_less_of_a_long_queue() {
    let seen = |tokens: u64| {
        let mut router = Router::new(Role::Prefill, 128, chunked()).unwrap();
        let batch: Vec<RoutingEvent> = (1..=5000).map(|request| arrive(request, tokens, 0)).collect();
        router.apply(Millis(0), &batch).unwrap();
        router.seen(128, ROUND_TOKENS).len()
    };
    // Short ones fill no two rounds.
    assert_eq!((seen(10), seen(40_000)), (5000, 4096));
}

#[test]
fn a_whole_prompt_is_expected_until_it_has_run() {
    let life = RoutingPolicy::default().prefix.expected_ms;
    let expected_after = |half_lives: u64, events: &[RoutingEvent]| {
        let mut router = router(Role::Prefill, 2);
        router.apply(Millis(0), &[arrive_of_tenant(3, 2096, 0), RoutingEvent::Tick]).unwrap();
        for half_life in 1..=half_lives {
            router.apply(Millis(half_life * life / 2), &[RoutingEvent::Tick]).unwrap();
            if half_life == 1 {
                router.apply(Millis(life / 2), events).unwrap();
            }
        }
        router.prefixes.as_ref().unwrap().blocks_of(Rank(0)) > 0
    };
    assert!(expected_after(20, &[]), "it waits in its engine");
    // The engine announced nothing.
    assert!(!expected_after(20, &[first_token(3)]));
    assert!(!expected_after(20, &[finish(3)]));
    assert!(!expected_after(20, &[down(0)]));
}
