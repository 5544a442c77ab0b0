//! Properties of [`halve`].

use super::*;
use proptest::prelude::*;

/// Spans as (context, tokens): how uneven their halves are at most, in per mille of the whole.
#[track_caller]
fn check(spans: &[(u64, u64)], bound: f64) -> Vec<u64> {
    let spans: Vec<Span> = spans.iter().map(|&(context, tokens)| Span { context, tokens }).collect();
    let zero = halve(&spans);
    let whole = spans.iter().fold(Work::default(), |sum, span| sum + span.work());
    let uneven = 1000.0 * unevenness(&spans, &zero, whole);
    assert!(uneven <= bound, "{zero:?}: {uneven}");
    zero
}

#[test]
fn what_is_even_uncut_stays_uncut() {
    assert!(check(&[], 0.0).is_empty());
    assert_eq!(check(&[(0, 100), (0, 100)], 0.0), [100, 0]);
    assert_eq!(check(&[(900, 250), (0, 250), (900, 250), (0, 250)], 0.0), [250, 250, 0, 0]);
}

#[test]
fn a_long_context_and_light_prompts_are_cut() {
    check(&[(100_000, 500), (0, 3000), (0, 2500), (700, 2192)], 5.0);
    check(&[(100_000, 500), (0, 7692)], 5.0);
    check(&[(100_000, 40), (60_000, 900), (0, 7252)], 5.0);
}

#[test]
fn a_lone_span_is_cut_where_both_are_equally_far_off() {
    // From 0 to 8192 half of the tokens have a quarter of the attention: (1 - x) = -(1 - 2 x^2) gives
    // x = 0.618, 236 per mille off in both.
    assert_eq!(check(&[(0, 8192)], 237.0), [5063]);
    check(&[(100_000, 8192)], 11.0);
}

proptest! {
    #[test]
    fn a_cut_is_no_longer_than_its_span(
        spans in prop::collection::vec((0..130_000u64, 1..8192u64), 0..12),
    ) {
        let spans: Vec<Span> = spans.into_iter().map(|(context, tokens)| Span { context, tokens }).collect();
        let zero = halve(&spans);
        prop_assert!(zero.iter().zip(&spans).all(|(&t, span)| t <= span.tokens));
        let cut = zero.iter().zip(&spans).filter(|&(&t, span)| t > 0 && t < span.tokens).count();
        prop_assert!(cut <= 2, "{} spans are cut", cut);
        prop_assert_eq!(halve(&spans), zero);
    }

    /// One prompt dwarfs no other: then two cuts do, nearly always to within 1 %.
    #[test]
    fn prompts_of_like_size_come_out_even(
        spans in prop::collection::vec((0..4000u64, 1000..2000u64), 5..12),
    ) {
        let spans: Vec<Span> = spans.into_iter().map(|(context, tokens)| Span { context, tokens }).collect();
        let whole = spans.iter().fold(Work::default(), |sum, span| sum + span.work());
        let uneven = unevenness(&spans, &halve(&spans), whole);
        prop_assert!(uneven <= 0.05, "{}", uneven);
    }
}
