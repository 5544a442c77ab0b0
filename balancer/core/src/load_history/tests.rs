//! What the averages promise, on loads that are drawn here.

use super::LoadHistory;
use crate::policy::HistoryPolicy;
use crate::snapshot::{Forecast, LoadTable, Predictor};
use proptest::prelude::*;

const EXPERTS: usize = 64;
const ROUTED: f64 = 1e7;
/// Between windows, so that ten of them are a half-life.
const WINDOW_MS: u64 = 30_000;
const HOUR_MS: u64 = 3_600_000;

fn policy() -> HistoryPolicy {
    HistoryPolicy { half_life_ms: 10 * WINDOW_MS, ..HistoryPolicy::default() }
}

/// Uniform in [0, 1), the same for the same numbers (SplitMix64's output function).
fn draw(seed: u64, expert: usize) -> f64 {
    let mut z = (seed << 16).wrapping_add(expert as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Weights of the experts in a domain, 1 to 9.
fn domain(number: u64) -> Vec<f64> {
    (0..EXPERTS).map(|expert| 1.0 + 8.0 * draw(number + 1_000_000, expert)).collect()
}

/// One window of one layer: the weights, each off by up to `noise` times the square root of 3 (so that `noise` is the
/// standard deviation), scaled to [`ROUTED`].
fn window(weights: &[f64], noise: f64, number: u64) -> LoadTable {
    let off = |expert| 1.0 + noise * 3f64.sqrt() * (2.0 * draw(number, expert) - 1.0);
    let loads: Vec<f64> = weights.iter().enumerate().map(|(expert, weight)| weight * off(expert)).collect();
    let scale = ROUTED / loads.iter().sum::<f64>();
    let counts = loads.iter().map(|load| (load * scale).round() as u64).collect();
    LoadTable::new(1, weights.len(), counts).unwrap()
}

/// Root mean square error of a forecast, relative to the window it is for.
fn error(forecast: &LoadTable, window: &LoadTable) -> f64 {
    let (total, of) = (window.layer(0).iter().sum::<u64>() as f64, forecast.layer(0));
    let scale = total / of.iter().sum::<u64>() as f64;
    let off = |(f, w): (&u64, &u64)| (*f as f64 * scale - *w as f64).powi(2);
    let square: f64 = window.layer(0).iter().map(|&w| (w as f64).powi(2)).sum();
    (of.iter().zip(window.layer(0)).map(off).sum::<f64>() / square).sqrt()
}

fn forecast(history: &LoadHistory, for_ms: u64) -> Forecast {
    history.forecast(for_ms).expect("a window was seen")
}

/// Feeds windows 0 to `count` of a domain that only scatters, the first at time 0.
fn steady(history: &mut LoadHistory, weights: &[f64], noise: f64, count: u64) {
    (0..count).for_each(|n| history.observe(n * WINDOW_MS, &window(weights, noise, n), &[]));
}

#[test]
fn the_first_forecast_is_the_last_window() {
    let mut history = LoadHistory::new(policy());
    assert_eq!(history.forecast(0), None);
    let first = window(&domain(0), 0.1, 0);
    history.observe(0, &first, &[]);
    let found = forecast(&history, WINDOW_MS);
    assert_eq!(found, Forecast { loads: first, drift: vec![None], predictor: vec![Predictor::Last] });
}

#[test]
fn loads_that_scatter_are_forecast_better_than_by_the_last_window() {
    for noise in [0.01, 0.05, 0.2] {
        let (mut history, weights) = (LoadHistory::new(policy()), domain(1));
        let (mut ours, mut last) = (0.0, 0.0);
        for n in 0..40 {
            let now = window(&weights, noise, n);
            history.observe(n * WINDOW_MS, &now, &[]);
            if n >= 5 {
                let next = window(&weights, noise, n + 1);
                ours += error(&forecast(&history, (n + 1) * WINDOW_MS).loads, &next);
                last += error(&now, &next);
            }
        }
        // The last window's scatter comes on top of the next one's: sqrt(2). A good average adds little.
        assert!(ours < last * 0.76, "noise {noise}: {ours} against {last}");
        assert_eq!(forecast(&history, 0).predictor, [Predictor::Average]);
    }
}

#[test]
fn loads_that_wander_are_not_averaged() {
    let (mut history, mut weights) = (LoadHistory::new(policy()), domain(2));
    for n in 0..40 {
        weights.iter_mut().enumerate().for_each(|(e, w)| *w *= 1.0 + 0.1 * (draw(n, e) - 0.5));
        let now = window(&weights, 0.0, 0);
        history.observe(n * WINDOW_MS, &now, &[]);
        if n >= 5 {
            assert_eq!(forecast(&history, 0).predictor, [Predictor::Last], "window {n}");
            assert!(error(&forecast(&history, 0).loads, &now) < 1e-6);
        }
    }
}

#[track_caller]
fn check_drift(noise: f64, parts: bool, expected: std::ops::Range<f64>) {
    let (mut history, weights) = (LoadHistory::new(policy()), domain(3));
    for n in 0..40 {
        let now = window(&weights, noise, n);
        // Four parts that do not differ: nothing of the noise is sampling.
        let parts = if parts { vec![now.clone(); 4] } else { Vec::new() };
        history.observe(n * WINDOW_MS, &now, &parts);
    }
    let found = forecast(&history, 0).drift[0].expect("40 windows");
    assert!(expected.contains(&found), "noise {noise}: {found}");
    let largest = (0..EXPERTS).map(|e| history.deviation(0, e).unwrap()).fold(0.0, f64::max);
    let share = weights.iter().copied().fold(0.0, f64::max) / weights.iter().sum::<f64>();
    assert!(largest < 3.0 * (expected.end + 0.003) * share, "an expert strays by {largest} of {share}");
}

#[test]
fn the_drift_is_the_noise_beyond_sampling() {
    check_drift(0.05, false, 0.045..0.06);
    check_drift(0.05, true, 0.045..0.06);
    check_drift(0.2, false, 0.18..0.23);
    check_drift(0.0, true, 0.0..1e-4);
    // A token's chance alone is 0.25 % here: less than that is not seen, and with parts it is.
    check_drift(0.002, false, 0.0..0.0005);
    check_drift(0.002, true, 0.0018..0.0025);
}

#[test]
fn what_the_parts_scatter_by_is_sampling() {
    let (mut history, weights) = (LoadHistory::new(policy()), domain(4));
    for n in 0..60 {
        let parts: Vec<LoadTable> = (0..4).map(|part| window(&weights, 0.1, n * 4 + part)).collect();
        let sum = |e| parts.iter().map(|part| part.layer(0)[e]).sum();
        let now = LoadTable::new(1, EXPERTS, (0..EXPERTS).map(sum).collect()).unwrap();
        history.observe(n * WINDOW_MS, &now, &parts);
    }
    // Windows scatter by 5 %, all of it because their parts do.
    let found = forecast(&history, 0).drift[0].unwrap();
    assert!(found < 0.02, "{found}");
}

#[test]
fn another_domain_is_believed_at_once() {
    for noise in [0.0, 0.02, 0.1] {
        for seen in [1, 2, 30] {
            let mut history = LoadHistory::new(policy());
            steady(&mut history, &domain(5), noise, seen);
            let other = window(&domain(6), noise, seen);
            history.observe(seen * WINDOW_MS, &other, &[]);
            let found = forecast(&history, (seen + 1) * WINDOW_MS);
            let off = error(&found.loads, &other);
            assert!(off < 1e-6, "noise {noise}, {seen} windows before: {off} off the new domain");
        }
    }
}

#[test]
fn noise_is_learnt_after_a_change_of_domain_as_before() {
    let mut history = LoadHistory::new(policy());
    steady(&mut history, &domain(5), 0.02, 30);
    for n in 30..60 {
        history.observe(n * WINDOW_MS, &window(&domain(6), 0.02, n), &[]);
    }
    let found = forecast(&history, 60 * WINDOW_MS);
    assert_eq!(found.predictor, [Predictor::Average]);
    assert!((0.015..0.03).contains(&found.drift[0].unwrap()), "{:?}", found.drift);
}

#[test]
fn a_small_shift_is_followed_within_the_half_life() {
    let noise = 0.03;
    let mut history = LoadHistory::new(policy());
    let before = domain(7);
    // Too little over the noise of a window to be a surprise, but it stays.
    let after: Vec<f64> =
        before.iter().enumerate().map(|(e, w)| w * if e % 2 == 0 { 1.06 } else { 0.94 }).collect();
    steady(&mut history, &before, noise, 40);
    for n in 40..50 {
        history.observe(n * WINDOW_MS, &window(&after, noise, n), &[]);
    }
    let (old, new) = (window(&before, 0.0, 0), window(&after, 0.0, 0));
    let found = forecast(&history, 50 * WINDOW_MS).loads;
    // Half of it is left, and what noise an average of some 14 windows keeps.
    assert!(error(&found, &new) <= error(&new, &old) * 0.55, "{}", error(&found, &new));
}

#[test]
fn noise_that_grows_for_good_is_learnt() {
    let mut history = LoadHistory::new(policy());
    steady(&mut history, &domain(8), 0.01, 30);
    for n in 30..90 {
        history.observe(n * WINDOW_MS, &window(&domain(8), 0.2, n), &[]);
    }
    let found = forecast(&history, 0);
    assert!((0.15..0.25).contains(&found.drift[0].unwrap()), "{:?}", found.drift);
    assert_eq!(found.predictor, [Predictor::Average]);
}

/// Two domains mixed by the hour of the day: the first at night, the second at noon.
fn day(at_ms: u64) -> Vec<f64> {
    let angle = (at_ms as f64 / (24 * HOUR_MS) as f64) * std::f64::consts::TAU;
    let part = 0.5 - 0.5 * angle.cos();
    domain(9).iter().zip(domain(10)).map(|(night, noon)| night * (1.0 - part) + noon * part).collect()
}

const MINUTES_10: u64 = HOUR_MS / 6;

/// Ten-minute windows of days with a rhythm, and the time of the next one.
fn days(history: &mut LoadHistory, windows: u64, noise: f64) -> u64 {
    (0..windows).for_each(|n| history.observe(n * MINUTES_10, &window(&day(n * MINUTES_10), noise, n), &[]));
    windows * MINUTES_10
}

#[test]
fn a_daily_rhythm_is_met_before_it_turns() {
    let hourly = HistoryPolicy { half_life_ms: 2 * MINUTES_10, ..HistoryPolicy::default() };
    let unaware = HistoryPolicy { season_ms: 0, ..hourly };
    // Six in the morning of the third day: the mix turns fastest.
    let windows = 2 * 24 * 6 + 6 * 6;
    let (mut ours, mut other) = (LoadHistory::new(hourly), LoadHistory::new(unaware));
    let next = days(&mut ours, windows, 0.02);
    days(&mut other, windows, 0.02);
    for ahead in [0, HOUR_MS, 2 * HOUR_MS] {
        let truth = window(&day(next + ahead), 0.0, 0);
        let found = forecast(&ours, next + ahead);
        assert_eq!(found.predictor, [Predictor::Seasonal]);
        let (ours, other) =
            (error(&found.loads, &truth), error(&forecast(&other, next + ahead).loads, &truth));
        assert!(ours < 0.7 * other, "{ahead} ms ahead: {ours} against {other}");
        assert!(ours < 0.03, "{ahead} ms ahead: {ours}");
    }
}

#[test]
fn the_first_day_has_no_season() {
    let hourly = HistoryPolicy { half_life_ms: 2 * MINUTES_10, ..HistoryPolicy::default() };
    let mut history = LoadHistory::new(hourly);
    let next = days(&mut history, 24 * 6, 0.02);
    assert_ne!(forecast(&history, next).predictor, [Predictor::Seasonal]);
}

#[test]
fn a_day_without_its_rhythm_is_not_believed_for_long() {
    let hourly = HistoryPolicy { half_life_ms: 2 * MINUTES_10, ..HistoryPolicy::default() };
    let mut history = LoadHistory::new(hourly);
    let mut now = days(&mut history, 3 * 24 * 6, 0.02);
    let night = day(now);
    for n in 0..36 {
        history.observe(now, &window(&night, 0.02, 10_000 + n), &[]);
        now += MINUTES_10;
    }
    let night = window(&night, 0.0, 0);
    let (off, usual) =
        (error(&forecast(&history, now).loads, &night), error(&window(&day(now), 0.0, 0), &night));
    assert!(off < 0.2 * usual, "{off} off, where the usual day is {usual} off");
}

#[test]
fn a_layer_without_tokens_learns_nothing_and_is_forecast_none() {
    let mut history = LoadHistory::new(policy());
    steady(&mut history, &domain(11), 0.05, 20);
    let before = forecast(&history, 20 * WINDOW_MS);
    history.observe(20 * WINDOW_MS, &LoadTable::zero(1, EXPERTS), &[]);
    let none = forecast(&history, 21 * WINDOW_MS);
    assert_eq!((none.loads, none.predictor), (LoadTable::zero(1, EXPERTS), vec![Predictor::Last]));
    assert_eq!(none.drift, before.drift);
    history.observe(21 * WINDOW_MS, &window(&domain(11), 0.05, 21), &[]);
    let found = forecast(&history, 22 * WINDOW_MS);
    assert_eq!(found.predictor, [Predictor::Average]);
    assert!(error(&found.loads, &window(&domain(11), 0.0, 0)) < 0.03);
}

#[test]
fn another_shape_starts_anew() {
    let mut history = LoadHistory::new(policy());
    steady(&mut history, &domain(12), 0.05, 20);
    let other = LoadTable::new(2, 3, vec![1, 2, 3, 4, 5, 6]).unwrap();
    history.observe(20 * WINDOW_MS, &other, &[]);
    assert_eq!(forecast(&history, 0).loads, other);
    assert_eq!(forecast(&history, 0).drift, [None, None]);
}

#[test]
fn no_half_life_keeps_no_history() {
    let mut history = LoadHistory::new(HistoryPolicy { half_life_ms: 0, ..policy() });
    steady(&mut history, &domain(13), 0.05, 5);
    assert_eq!((history.forecast(0), history.bytes()), (None, 0));
}

#[test]
fn the_memory_is_what_is_stated() {
    let mut history = LoadHistory::new(HistoryPolicy::default());
    let loads = LoadTable::new(58, 256, (0..58 * 256).map(|c| c + 1).collect()).unwrap();
    for hour in 0..50 {
        history.observe(hour * HOUR_MS, &loads, &[]);
    }
    assert_eq!(history.bytes(), 58 * 256 * (5 + 1 + 24 - 1) * 4);
}

prop_compose! {
    /// Any windows: gaps, clocks that stand still, zeros, one expert with everything, counts beyond what 32 bits hold.
    fn windows()(layers in 1usize..3, experts in 1usize..8)(
        windows in prop::collection::vec(
            (
                0u64..100_000_000,
                prop::collection::vec(
                    prop_oneof![Just(0u64), Just(0), 0u64..100, Just(crate::snapshot::LOAD_MAX / 8)],
                    layers * experts,
                ),
                0usize..3,
            ),
            1..40,
        ),
        shape in Just((layers, experts)),
    ) -> ((usize, usize), Vec<(u64, Vec<u64>, usize)>) {
        (shape, windows)
    }
}

proptest! {
    #[test]
    fn any_windows_give_a_forecast_with_the_totals_of_the_last(
        ((layers, experts), windows) in windows(),
        half_life_ms in 1u64..1_000_000,
        season_ms in prop_oneof![Just(0u64), 1u64..200_000_000],
        season_buckets in 1u16..30,
    ) {
        let policy = HistoryPolicy { half_life_ms, season_ms, season_buckets };
        let (mut history, mut again) = (LoadHistory::new(policy), LoadHistory::new(policy));
        let mut now = 0;
        for (elapsed, counts, parts) in windows {
            now += elapsed;
            let loads = LoadTable::new(layers, experts, counts).unwrap();
            let parts = vec![loads.clone(); parts];
            history.observe(now, &loads, &parts);
            again.observe(now, &loads, &parts);
            let found = history.forecast(now + elapsed).expect("a layer's total fits one expert");
            prop_assert_eq!(&found, &again.forecast(now + elapsed).unwrap());
            for layer in 0..layers {
                let sum = |table: &LoadTable| table.layer(layer).iter().sum::<u64>();
                prop_assert_eq!(sum(&found.loads), sum(&loads));
                prop_assert!(found.drift[layer].is_none_or(|drift| drift.is_finite() && drift >= 0.0));
            }
            prop_assert!(history.bytes() <= layers * experts * (6 + usize::from(season_buckets)) * 4);
        }
    }
}
