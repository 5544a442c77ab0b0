//! Whole prompts, many at once or one by one.

use super::*;

#[test]
fn many_are_weighed_together() {
    let short = (1..=20).map(|request| arrive(request, 400, 0));
    // One by one, the last would come on top of what its bin has by then.
    let batch: Vec<RoutingEvent> = short.chain([arrive(21, 8000, 0), RoutingEvent::Tick]).collect();
    let mut router = router(Role::Prefill, 2);
    router.apply(Millis(0), &batch).unwrap();
    let cohort = router.last_cohort().unwrap();
    assert_eq!((cohort.dispatches, cohort.tokens.over_bound), (21, 1.0), "{cohort:?}");
}

#[test]
fn few_go_where_fewest_tokens_wait() {
    let mut router = router(Role::Prefill, 2);
    let mut goes_to = |request: u64, tokens: u64| {
        let decisions = router.apply(Millis(0), &[arrive(request, tokens, 0), RoutingEvent::Tick]).unwrap();
        let [Decision::Dispatch { rank, .. }] = decisions[..] else { panic!("{decisions:?}") };
        rank.0
    };
    // The last goes where the long one is, whose attention is everybody's time.
    let ranks =
        [(1, 8000), (2, 3000), (3, 3000), (4, 3000), (5, 3000)].map(|(id, tokens)| goes_to(id, tokens));
    assert_eq!(ranks, [0, 1, 1, 1, 0]);
}
