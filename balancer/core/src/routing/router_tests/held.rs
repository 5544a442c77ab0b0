//! Requests that wait for a rank.

use super::*;

#[test]
fn held_prompts_go_out_when_the_oldest_has_waited_long_enough() {
    let check = |wait: u64, batches: &[(u64, &[RoutingEvent])], expected: &[Decision]| {
        let policy = RoutingPolicy { cohort_wait_max_ms: wait, ..small() };
        check(&mut Router::new(Role::Prefill, 1, policy).unwrap(), batches, expected);
    };
    let second = Decision::Dispatch {
        request: RequestId(2),
        number: DispatchNumber(2),
        rank: Rank(0),
        microbatch: 1,
        tokens: None,
    };
    check(2000, &[(5, &[arrive(1, 9, 0)])], &[held(1)]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2004, &[])], &[]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2005, &[])], &[dispatched(1, 1, 0)]);
    check(2000, &[(5, &[arrive(1, 9, 0)]), (2005, &[arrive(2, 9, 0)])], &[dispatched(1, 1, 0), second]);
    check(2000, &[(5, &[arrive(1, 9, 0), RoutingEvent::Tick])], &[dispatched(1, 1, 0)]);
    check(0, &[(5, &[arrive(1, 9, 0)])], &[dispatched(1, 1, 0)]);
}

#[test]
fn a_prompt_that_ends_while_it_is_held_is_not_dispatched() {
    let mut router = router(Role::Prefill, 2);
    check(&mut router, &[(0, &[arrive(1, 9, 0), finish(1)])], &[]);
    check(&mut router, &[(0, &[arrive(1, 9, 0)]), (0, &[finish(1), RoutingEvent::Tick])], &[]);
    check(&mut router, &[(0, &[arrive(1, 9, 0), finish(1), arrive(1, 8, 0)])], &[held(1)]);
    assert_eq!((router.live(), router.counters().dispatched), (1, 0));
}

#[test]
fn a_request_that_fits_no_rank_waits_and_nobody_overtakes_it() {
    let policy = RoutingPolicy { kv_capacity_tokens: Some(100), ..small() };
    let mut router = Router::new(Role::Decode, 1, policy).unwrap();
    check(
        &mut router,
        &[(0, &[arrive(1, 70, 0), arrive(2, 40, 0), arrive(3, 20, 0)])],
        &[dispatched(1, 1, 0), held(2), held(3)],
    );
    check(&mut router, &[(0, &[steps(5)])], &[]);
    check(&mut router, &[(0, &[finish(1)])], &[dispatched(2, 2, 0), dispatched(3, 3, 0)]);
    // One that waits may end.
    check(&mut router, &[(0, &[arrive(4, 90, 0)])], &[held(4)]);
    check(&mut router, &[(0, &[finish(4), finish(2), finish(3)])], &[]);
    assert_eq!((router.live(), router.held()), (0, 0));
}

#[test]
fn prompts_stay_held_until_ranks_have_room_and_tenants_take_turns() {
    let tenant_weights = [(TenantId(1), 2)].into();
    let policy = RoutingPolicy { cohort_tokens: Some(100), tenant_weights, ..small() };
    let mut router = Router::new(Role::Prefill, 1, policy).unwrap();
    let tick = RoutingEvent::Tick;
    // Tenant 0 floods first, then come 20 prompts of tenant 1; all interactive, of 50 tokens.
    let flood = (1..200).filter(|r| r % 3 == 0 && r % 4 != 0).take(20);
    let later = (1..200).filter(|r| r % 3 == 1 && r % 4 != 0).take(20);
    let arrivals: Vec<RoutingEvent> = flood.chain(later).map(|r| arrive_of_tenant(r, 50, 0)).collect();
    router.apply(Millis(0), &arrivals).unwrap();
    let mut served = Vec::new();
    let mut running: Vec<u64> = Vec::new();
    while served.len() < 12 {
        let events: Vec<RoutingEvent> = running.drain(..).map(finish).chain([tick.clone()]).collect();
        let decisions = router.apply(Millis(0), &events).unwrap();
        assert_eq!(decisions.len(), 2, "100 tokens are two prompts");
        running.extend(decisions.iter().map(|d| d.request().0));
        served.extend(running.iter().map(|request| request % 3));
    }
    // Nothing goes out while the ranks have what they need.
    assert_eq!(router.apply(Millis(0), &[tick]).unwrap(), []);
    let of_tenant_1 = served.iter().filter(|&&tenant| tenant == 1).count();
    assert!((7..=9).contains(&of_tenant_1), "two thirds of 12, to within a prompt: {served:?}");
}
