//! Properties of replicated arrivals.

use super::*;
use crate::trace::BLOCK_TOKENS;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn request(at_ms: u64, input_tokens: u64, output_tokens: u64) -> TraceRequest {
    let blocks = (0..input_tokens / BLOCK_TOKENS).collect();
    TraceRequest { at_ms, input_tokens, output_tokens, blocks, ..TraceRequest::default() }
}

/// A trace from the times between its requests.
fn trace(gaps: &[u64]) -> Arc<[TraceRequest]> {
    let mut at_ms = 0;
    let place = |(&gap, input): (&u64, u64)| {
        at_ms += gap;
        request(at_ms, input, 10)
    };
    gaps.iter().zip(1..).map(place).collect()
}

proptest! {
    #[test]
    fn every_copy_sends_every_request_once_and_in_the_order_of_time(
        gaps in prop::collection::vec(prop_oneof![Just(0u64), 0..9000u64], 1..40),
        copies in 0..12u32,
        seed: u64,
    ) {
        let trace = trace(&gaps);
        let arrivals: Vec<Arrival> = Replicated::new(trace.clone(), copies, seed).collect();
        prop_assert!(arrivals.is_sorted_by_key(|a| a.at_ms));
        prop_assert!(arrivals.iter().map(|a| a.request).eq(1..=arrivals.len() as u64));
        let sent: BTreeSet<(u32, usize)> = arrivals.iter().map(|a| (a.copy, a.index)).collect();
        prop_assert_eq!(sent.len(), arrivals.len());
        prop_assert_eq!(arrivals.len(), copies as usize * trace.len());
        for arrival in &arrivals {
            prop_assert_eq!(arrival.input_tokens, trace[arrival.index].input_tokens);
            prop_assert!(arrival.at_ms < period_ms(&trace) + TICK_MS);
        }
        prop_assert!(Replicated::new(trace, copies, seed).eq(arrivals));
    }
}

#[test]
fn another_seed_gives_other_times() {
    let trace = trace(&[1000; 20]);
    let times = |seed| Replicated::new(trace.clone(), 3, seed).map(|a| a.at_ms).collect::<Vec<_>>();
    assert_ne!(times(1), times(2));
}

#[test]
fn copies_start_at_points_of_their_own() {
    let arrivals: Vec<Arrival> = Replicated::new(trace(&[1000; 200]), 8, 7).collect();
    let firsts: BTreeSet<usize> =
        (0..8).map(|copy| arrivals.iter().find(|a| a.copy == copy).unwrap().index).collect();
    assert!(firsts.len() >= 6, "{firsts:?}");
}

#[test]
fn what_is_kept_grows_with_the_copies_and_not_with_the_trace() {
    // Four requests of a trace can fall into one tick, bounds included.
    for (length, copies) in [(20, 50), (2000, 50), (2000, 5)] {
        let mut replicated = Replicated::new(trace(&vec![1000; length]), copies, 3);
        let mut most = 0;
        while replicated.next().is_some() {
            most = most.max(replicated.upcoming.len() + replicated.ready.len());
        }
        assert!(most <= copies as usize * 5, "{most} for {copies} copies of {length} requests");
    }
}

#[test]
fn copies_share_the_system_prompt_and_nothing_else() {
    let ids = [0, 1, 7, 8, 9, (1 << ID_BITS) - 1];
    let recorded = TraceRequest { blocks: ids.into_iter().collect(), ..request(0, 2048, 1) };
    let blocks = |copy| blocks_of_copy(&recorded, copy).collect::<BTreeSet<u64>>();
    for (one, other) in [(0, 1), (1, 2), (0, (1 << 24) - 2)] {
        let shared: Vec<u64> = blocks_of_copy(&recorded, one).take(3).collect();
        assert!(blocks(one).intersection(&blocks(other)).eq(&BTreeSet::from_iter(shared)));
        assert_eq!(blocks(one).len(), 6);
    }
}

#[test]
fn an_empty_trace_sends_nothing() {
    assert_eq!(Replicated::new(Arc::from([]), 3, 1).next(), None);
}

#[test]
fn copies_follow_littles_law() {
    // A copy sends a request a second, each running 100 steps of 10 ms: one runs at any time.
    let trace: Vec<TraceRequest> = (0..1000).map(|i| request(i * 1000, 10, 100)).collect();
    let cost = DecodeCost { fixed_ms: 10.0, per_kv_token_ms: 0.0, per_request_ms: 0.0 };
    assert_eq!(copies_for_decode(&trace, 4, 25.0, &cost), 100);
}

#[test]
fn the_first_copy_begins_with_the_trace_and_the_others_elsewhere() {
    let trace = trace(&[1000; 200]);
    let jittered: Vec<Arrival> = Replicated::with_jitter(trace.clone(), 8, 500, 7).collect();
    let first = |copy| jittered.iter().find(|a| a.copy == copy).unwrap();
    assert_eq!(first(0).index, 0);
    assert!((1..8).filter(|&copy| first(copy).index != 0).count() >= 6);
    for arrival in jittered.iter().filter(|a| a.copy == 0) {
        let recorded_ms = trace[arrival.index].at_ms;
        assert!((recorded_ms..recorded_ms + 500).contains(&arrival.at_ms), "{arrival:?}");
    }
    let alone = Replicated::with_jitter(trace.clone(), 1, 0, 7).map(|a| a.at_ms);
    assert!(alone.eq(trace.iter().map(|request| request.at_ms)), "no jitter leaves the stamps as they are");
}

#[test]
fn a_dispatcher_sees_the_blocks_of_the_copy() {
    let trace: Arc<[TraceRequest]> = [TraceRequest { turn: 4, ..request(0, 700, 1) }].into();
    let mut replicated = Replicated::with_jitter(trace.clone(), 2, 0, 1);
    let arrivals: Vec<Arrival> = replicated.by_ref().collect();
    for arrival in arrivals {
        let seen = replicated.dispatched(&arrival);
        assert_eq!((seen.id, seen.prompt_tokens, seen.turn), (arrival.request, 700, 4));
        assert!(seen.blocks.iter().copied().eq(blocks_of_copy(&trace[0], arrival.copy)));
        assert_eq!(seen.blocks.len(), 10);
    }
}

#[test]
fn prefill_work_counts_what_is_not_cached() {
    let twice = [request(0, 1536, 1), request(1, 1600, 1)];
    assert_eq!(prefill_work(&twice, 99), Work::of(0, 1536) + Work::of(1536, 64));
    assert_eq!(prefill_work(&twice, 0), Work::of(0, 1536) + Work::of(0, 1600));
}
