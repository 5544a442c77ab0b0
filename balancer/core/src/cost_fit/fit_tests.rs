//! What the fit finds, on steps that are drawn here.

use super::*;
use proptest::prelude::*;

const MODELS: [CostModel; 2] = [CostModel::Prefill, CostModel::Decode];

/// Uniform in [0, 1), the same for the same numbers (SplitMix64's output function).
fn draw(seed: u64, number: u64) -> f64 {
    let mut z = (seed << 32).wrapping_add(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Truth that no prior is near.
fn truth(model: CostModel) -> StepCost {
    match model {
        CostModel::Prefill => {
            StepCost { fixed_us: 4000.0, token_us: 90.0, pair_us: 0.011, ..StepCost::default() }
        }
        CostModel::Decode => {
            StepCost { fixed_us: 20_000.0, kv_token_us: 0.02, request_us: 150.0, ..StepCost::default() }
        }
    }
}

/// A step's work: everything varies by itself.
fn work(number: u64) -> StepReport {
    let tokens = 500.0 + 12_000.0 * draw(1, number);
    StepReport {
        tokens: Tokens(tokens as u64),
        pairs: (tokens * (500.0 + 9000.0 * draw(2, number))) as u64,
        requests: (20.0 + 150.0 * draw(3, number)) as u32,
        kv_tokens: Tokens((100_000.0 + 500_000.0 * draw(4, number)) as u64),
        micros: 0,
    }
}

/// Times the step, off by a normal share of this deviation.
fn timed(cost: &StepCost, noise: f64, number: u64, step: StepReport) -> StepReport {
    // The sum of twelve uniform numbers is normal enough.
    let normal = (0..12).map(|i| draw(10 + i, number)).sum::<f64>() - 6.0;
    StepReport { micros: (cost.predict(&step) * (1.0 + noise * normal)).round() as u64, ..step }
}

/// Steps `from..to`, `noise` and every `outliers`-th one five times as long.
fn feed(fit: &mut CostFit, cost: &StepCost, noise: f64, outliers: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let mut step = timed(cost, noise, number, work(number));
        if number % outliers == outliers - 1 {
            step.micros *= 5;
        }
        assert_ne!(fit.observe(&step), FitOutcome::Dropped);
    }
}

/// The largest relative error of a prediction over a hundred steps that were not seen.
fn worst(fit: &CostFit, cost: &StepCost) -> f64 {
    let off = |number: u64| {
        let step = work(1_000_000 + number);
        (fit.cost().predict(&step) / cost.predict(&step) - 1.0).abs()
    };
    (0..100).map(off).fold(0.0, f64::max)
}

fn values(cost: &StepCost) -> [f64; 5] {
    [cost.fixed_us, cost.token_us, cost.pair_us, cost.kv_token_us, cost.request_us]
}

/// A step about in the middle of those that are drawn.
fn usual() -> StepReport {
    StepReport {
        tokens: Tokens(6500),
        pairs: 32_000_000,
        requests: 95,
        kv_tokens: Tokens(350_000),
        micros: 0,
    }
}

/// After `count` steps, each cost is right to within `tolerance` of what a usual step costs, and predictions are to within `error`.
#[track_caller]
fn check(noise: f64, outliers: u64, count: u64, tolerance: f64, error: f64) {
    for model in MODELS {
        let (mut fit, cost) = (CostFit::new(model), truth(model));
        feed(&mut fit, &cost, noise, outliers, 0..count);
        let (usual, found) = (usual(), values(&fit.cost()));
        let amounts = [
            1.0,
            usual.tokens.0 as f64,
            usual.pairs as f64,
            usual.kv_tokens.0 as f64,
            f64::from(usual.requests),
        ];
        for (i, known) in values(&cost).into_iter().enumerate() {
            let off = (found[i] - known).abs() * amounts[i] / cost.predict(&usual);
            assert!(off <= tolerance, "{model:?}: {} instead of {known}, which is {off} of a step", found[i]);
        }
        assert!(worst(&fit, &cost) <= error, "{model:?}: {}", worst(&fit, &cost));
    }
}

const NEVER: u64 = u64::MAX;

#[test]
fn costs_are_recovered() {
    check(0.0, NEVER, 50, 0.01, 0.01);
    check(0.0, NEVER, 1000, 0.001, 0.001);
    check(0.05, NEVER, 1000, 0.03, 0.03);
    check(0.1, NEVER, 1000, 0.05, 0.05);
}

#[test]
fn outliers_are_cut() {
    // A mean over steps of which 5 % last five times as long is 20 % off.
    check(0.0, 20, 1000, 0.01, 0.01);
    check(0.05, 20, 1000, 0.04, 0.1);
    check(0.05, 10, 1000, 0.06, 0.1);
}

#[test]
fn before_any_report_the_prior_stands() {
    for model in MODELS {
        let fit = CostFit::new(model);
        for (found, known) in values(&fit.cost()).iter().zip(values(&StepCost::prior(model))) {
            assert!((found - known).abs() <= 1e-9 * known);
        }
        let quality = fit.quality();
        assert_eq!((quality.samples, quality.r_squared), (0, 1.0));
        assert!(quality.learned.iter().all(|share| *share < 1e-9));
    }
}

#[test]
fn the_quality_says_how_well_it_fits() {
    for noise in [0.02, 0.1, 0.2] {
        for model in MODELS {
            let (mut fit, cost) = (CostFit::new(model), truth(model));
            feed(&mut fit, &cost, noise, NEVER, 0..2000);
            let quality = fit.quality();
            // Of a normal error, the median is 0.67 and the 90th percentile 1.64 deviations.
            assert!((0.67 * 0.7..0.67 * 1.4).contains(&(quality.error_p50 / noise)), "{quality:?}");
            assert!((1.64 * 0.7..1.64 * 1.5).contains(&(quality.error_p90 / noise)), "{quality:?}");
            // What the work explains of the variance, and what the noise adds.
            let times: Vec<f64> = (0..2000).map(|number| cost.predict(&work(number))).collect();
            let mean = times.iter().sum::<f64>() / 2000.0;
            let square = times.iter().map(|t| t * t).sum::<f64>() / 2000.0;
            let explained = (square - mean * mean) / (square - mean * mean + noise * noise * square);
            assert!((quality.r_squared - explained).abs() < 0.04, "{explained}: {quality:?}");
            assert!(quality.learned.iter().all(|share| *share > 0.9), "{quality:?}");
            assert_eq!((quality.samples, quality.dropped), (2000, 0));
        }
    }
}

#[test]
fn what_does_not_vary_is_left_to_the_prior() {
    // Every token sees the same context, so pairs say no more than tokens do.
    let cost = truth(CostModel::Prefill);
    let mut fit = CostFit::new(CostModel::Prefill);
    let along = |number| StepReport { pairs: work(number).tokens.0 * 4096, ..work(number) };
    for number in 0..2000 {
        fit.observe(&timed(&cost, 0.02, number, along(number)));
    }
    let [fixed, token, pair] = fit.quality().learned;
    assert!(fixed > 0.9 && (token + pair - 1.0).abs() < 0.05 && pair < 0.6, "{:?}", fit.quality());
    // What is asked of it is known all the same.
    let step = along(5_000_000);
    assert!((fit.cost().predict(&step) / cost.predict(&step) - 1.0).abs() < 0.02);
    // And one step over and over says one thing.
    let mut fit = CostFit::new(CostModel::Decode);
    (0..2000).for_each(|_| _ = fit.observe(&timed(&truth(CostModel::Decode), 0.0, 0, work(0))));
    assert!((fit.quality().learned.iter().sum::<f64>() - 1.0).abs() < 0.05, "{:?}", fit.quality());
}

#[test]
fn what_was_known_fades_to_the_prior_when_it_varies_no_longer() {
    let (model, cost) = (CostModel::Decode, truth(CostModel::Decode));
    let mut fit = CostFit::new(model);
    feed(&mut fit, &cost, 0.02, NEVER, 0..2000);
    // One step for as long as many lives of the memory: finite, not negative, and right about this step.
    let same = timed(&cost, 0.0, 0, work(0));
    (0..50_000).for_each(|_| _ = fit.observe(&same));
    assert!(values(&fit.cost()).iter().all(|value| value.is_finite() && *value >= 0.0));
    assert!((fit.cost().predict(&same) / same.micros as f64 - 1.0).abs() < 1e-3);
    assert!(fit.quality().learned.iter().sum::<f64>() < 1.05);
}

#[test]
fn a_change_is_followed() {
    for model in MODELS {
        for factor in [0.3, 0.8, 1.5, 4.0] {
            let (mut fit, old) = (CostFit::new(model), truth(model));
            feed(&mut fit, &old, 0.03, NEVER, 0..3000);
            let [fixed_us, token_us, pair_us, kv_token_us, request_us] = values(&old).map(|v| v * factor);
            let new = StepCost { fixed_us, token_us, pair_us, kv_token_us, request_us };
            feed(&mut fit, &new, 0.03, NEVER, 3000..6000);
            assert!(worst(&fit, &new) < 0.06, "{model:?} x {factor}: {}", worst(&fit, &new));
        }
    }
}

#[track_caller]
fn check_dropped(model: CostModel, change: impl Fn(&mut StepReport)) {
    let mut fit = CostFit::new(model);
    let mut step = timed(&truth(model), 0.0, 0, work(0));
    change(&mut step);
    assert_eq!(fit.observe(&step), FitOutcome::Dropped, "{step:?}");
    let untouched = CostFit::new(model);
    assert_eq!(fit.cost(), untouched.cost());
    assert_eq!(fit.quality(), FitQuality { dropped: 1, ..untouched.quality() });
}

#[test]
fn absurd_reports_are_counted_and_dropped() {
    for model in MODELS {
        check_dropped(model, |step| step.micros = 0);
        check_dropped(model, |step| step.micros = 60_000_001);
        check_dropped(model, |step| step.tokens.0 = u64::MAX);
        check_dropped(model, |step| step.pairs = u64::MAX);
        check_dropped(model, |step| step.kv_tokens.0 = (1 << 30) + 1);
        check_dropped(model, |step| step.requests = u32::MAX);
    }
    check_dropped(CostModel::Prefill, |step| (step.tokens.0, step.pairs) = (0, 0));
    check_dropped(CostModel::Decode, |step| (step.kv_tokens.0, step.requests) = (0, 0));
}

#[test]
fn one_enormous_report_does_not_settle_the_fit() {
    for model in MODELS {
        let (mut fit, cost) = (CostFit::new(model), truth(model));
        feed(&mut fit, &cost, 0.03, NEVER, 0..1000);
        fit.observe(&StepReport { micros: 1, ..STEP_LIMITS });
        fit.observe(&StepReport { micros: 60_000_000, ..work(0) });
        feed(&mut fit, &cost, 0.03, NEVER, 1000..1100);
        assert!(worst(&fit, &cost) < 0.1, "{model:?}: {}", worst(&fit, &cost));
    }
}

proptest! {
    #[test]
    fn any_reports_leave_finite_costs_that_are_not_negative(
        steps in proptest::collection::vec((any::<[u64; 4]>(), 0..64u32), 0..100),
        model in prop_oneof![Just(CostModel::Prefill), Just(CostModel::Decode)],
    ) {
        let run = || {
            let mut fit = CostFit::new(model);
            for ([tokens, pairs, kv_tokens, micros], shift) in &steps {
                fit.observe(&StepReport {
                    tokens: Tokens(tokens >> shift),
                    pairs: pairs >> shift,
                    requests: (tokens >> shift) as u32,
                    kv_tokens: Tokens(kv_tokens >> shift),
                    micros: micros >> shift,
                });
            }
            fit
        };
        let fit = run();
        prop_assert!(values(&fit.cost()).iter().all(|value| value.is_finite() && *value >= 0.0), "{:?}", fit.cost());
        let quality = fit.quality();
        prop_assert!(quality.r_squared <= 1.0 && quality.error_p50.is_finite() && quality.error_p90.is_finite());
        prop_assert_eq!(quality.samples + quality.dropped, steps.len() as u64);
        prop_assert_eq!(run(), fit);
    }
}
