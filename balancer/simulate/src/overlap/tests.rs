use super::*;
use proptest::prelude::*;

/// ATTN-0, ATTN-1, DISPATCH, SHARED, MLP, COMBINE.
fn times(us: [f64; 6]) -> StageTimes {
    StageTimes(us)
}

#[test]
fn layers_take_what_they_take_by_hand() {
    let check = |overlap, microbatches: &[StageTimes], layer_us: f64, exposed_us: f64| {
        let found = schedule(overlap, microbatches, 20);
        assert!((found.layer_us - layer_us).abs() < 1e-9, "{overlap:?}: {found:?} is not {layer_us}");
        assert!((found.exposed_us - exposed_us).abs() < 1e-9, "{overlap:?}: {} exposed", found.exposed_us);
    };
    let even = times([2.0, 6.0, 5.0, 2.0, 8.0, 7.0]);
    // Everything in line: 18 of computing, 12 of network, for each microbatch.
    check(Overlap::None, &[even], 30.0, 12.0);
    check(Overlap::None, &[even, even], 60.0, 24.0);
    // Cores are never idle: each communication is shorter than what runs beside it.
    check(Overlap::DualBatch, &[even, even], 36.0, 0.0);
    // Combine beside ATTN and SHARED (10), dispatch beside ATTN (8): 3 and 1 too long.
    let slow_network = times([2.0, 6.0, 9.0, 2.0, 8.0, 13.0]);
    check(Overlap::DualBatch, &[slow_network, slow_network], 44.0, 8.0);
    // Dispatch beside SHARED and ATTN-0 (4), combine beside ATTN-1 (6) and what of SHARED waits for nothing.
    let decode = times([2.0, 6.0, 4.0, 2.0, 3.0, 6.0]);
    check(Overlap::FiveStage, &[decode, decode], 26.0, 0.0);
    // The network's chain: dispatch, experts, combine of either microbatch.
    let long_wires = times([2.0, 6.0, 9.0, 2.0, 3.0, 10.0]);
    check(Overlap::FiveStage, &[long_wires, long_wires], 44.0, 18.0);
}

#[test]
fn unequal_microbatches_cost_time() {
    let check = |overlap, all: [f64; 6]| {
        let part = |share| times(all).scaled(share);
        let even = schedule(overlap, &[part(0.5), part(0.5)], 30).layer_us;
        let uneven = schedule(overlap, &[part(0.7), part(0.3)], 30).layer_us;
        assert!(uneven > even * 1.05, "{overlap:?}: {uneven} against {even}");
    };
    check(Overlap::DualBatch, [4.0, 12.0, 18.0, 4.0, 16.0, 20.0]);
    check(Overlap::FiveStage, [4.0, 12.0, 8.0, 4.0, 6.0, 12.0]);
}

fn any_microbatch() -> impl Strategy<Value = StageTimes> {
    prop::array::uniform6(0.0..100.0f64).prop_map(StageTimes)
}

fn any_overlap() -> impl Strategy<Value = Overlap> {
    prop_oneof![Just(Overlap::None), Just(Overlap::DualBatch), Just(Overlap::FiveStage)]
}

proptest! {
    #[test]
    fn stages_wait_for_their_inputs_and_never_share_a_resource(
        overlap in any_overlap(), two in [any_microbatch(), any_microbatch()], layers in 1..9usize,
    ) {
        let schedule = schedule(overlap, &two, layers);
        prop_assert_eq!(schedule.spans.len(), 12 * layers);
        let end = |layer, microbatch, stage| {
            let span = schedule.spans.iter().find(|s| (s.layer, s.microbatch, s.stage) == (layer, microbatch, stage));
            span.expect("every stage of every layer runs").end_us
        };
        for span in &schedule.spans {
            let first = span.stage == Stage::AttentionBefore;
            if first && span.layer == 0 {
                continue;
            }
            let layer = if first { span.layer - 1 } else { span.layer };
            for &need in span.stage.needs() {
                prop_assert!(span.start_us >= end(layer, span.microbatch, need));
            }
        }
        for network in [false, true] {
            let mut busy: Vec<&Span> = schedule.spans.iter().filter(|s| s.stage.on_network() == network).collect();
            busy.sort_by(|a, b| a.start_us.total_cmp(&b.start_us).then(a.end_us.total_cmp(&b.end_us)));
            prop_assert!(busy.windows(2).all(|pair| pair[0].end_us <= pair[1].start_us));
        }
    }

    #[test]
    fn many_layers_are_counted_as_they_run(
        overlap in any_overlap(), two in [any_microbatch(), any_microbatch()], layers in 1..70usize,
    ) {
        let run = schedule(overlap, &two, layers).total_us;
        let counted = layers_us(overlap, &two, layers);
        prop_assert!((run - counted).abs() <= 1e-9 * run + 1e-9, "{run} was counted as {counted}");
    }

    #[test]
    fn an_overlap_is_never_slower_than_none_nor_faster_than_its_parts(
        overlap in any_overlap(), two in [any_microbatch(), any_microbatch()],
    ) {
        let found = schedule(overlap, &two, 10);
        let cores: f64 = two.iter().map(|t| t.sum_us(false)).sum();
        let network: f64 = two.iter().map(|t| t.sum_us(true)).sum();
        prop_assert!(found.layer_us <= (cores + network) * (1.0 + 1e-9));
        prop_assert!(found.layer_us >= cores.max(network) * (1.0 - 1e-9));
    }
}
