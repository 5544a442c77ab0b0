//! The fit of one unit's step costs.

use super::least_squares::{LeastSquares, Vector, dot};
use super::quantile::Quantile;
use super::{CostModel, StepCost, StepReport};

/// What a report leaves of what is known of old: 500 reports are remembered. 144 ranks that report every tenth of a second bring
/// them in 35 ms, one rank that reports each of its 40 ms steps in 20 s, and a machine's costs change in hours.
const KEEP: f64 = 1.0 - 1.0 / 500.0;
/// How firmly the prior is believed, as a number of reports: a step scatters by a tenth about its cost and the prior by a half
/// about the truth, and (0.1 / 0.5)^2 weighs them.
const PRIOR_WEIGHT: f64 = 0.04;
/// Reports weigh by the square of one over the predicted time, because times scatter in proportion to themselves; as if by
/// this share of a usual step when it is less, because tiny steps tell more of the clock than of costs.
const PREDICTED_LEAST: f64 = 0.05;
/// Length that the scaled and weighted inputs of a report may have. A step that is as expensive as predicted has a length of 1 to
/// 2; one with many times the work that it should have for its time is a mistake, and must not settle the fit by itself.
const LENGTH_MAX: f64 = 4.0;
/// Errors beyond so many times the usual (median) one are cut to it. 4.5 medians are three standard deviations of a normal error:
/// Huber's idea, at which almost nothing of well-behaved reports is touched.
const CLIP: f64 = 4.5;
/// Median relative error that is expected of the prior, and below which errors are not cut.
const ERROR_FIRST: f64 = 1.0;
const ERROR_LEAST: f64 = 0.005;

/// Largest values of a report that are believed.
pub const STEP_LIMITS: StepReport = StepReport {
    // A prompt of the longest accepted kind in a single step.
    tokens: crate::units::Tokens(1 << 22),
    // All of it attending to as much before it.
    pairs: 1 << 45,
    requests: 1 << 20,
    // 320 times what a rank holds at 70 KB a token.
    kv_tokens: crate::units::Tokens(1 << 30),
    // A step of a minute is an engine that stood still.
    micros: 60_000_000,
};

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FitOutcome {
    /// It is in the fit.
    Used,
    /// It is in the fit, with its error cut to what is plausible.
    Clipped,
    /// It is not: no time, no work, or a value beyond [`STEP_LIMITS`].
    Dropped,
}

/// How far the fit can be trusted. Errors are relative to the prediction and those of each report before it was used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FitQuality {
    /// Reports in the fit since the start.
    pub samples: u64,
    /// Those of them whose error was cut.
    pub clipped: u64,
    /// Reports that were not used.
    pub dropped: u64,
    /// Median of the relative errors, about of the last hundred reports.
    pub error_p50: f64,
    /// Their 90th percentile.
    pub error_p90: f64,
    /// Share of the variance of step times that the predictions explain, over the reports that are remembered, with their errors
    /// cut. At most 1; below 0 when a constant would predict better; 1 while nothing varies.
    pub r_squared: f64,
    /// Per cost of the model, as [`StepCost`] orders them: 0, the prior's value stands because nothing in the reports tells it
    /// from the others, to 1, it was seen.
    pub learned: [f64; 3],
}

/// A fit. Takes a report in a fraction of a microsecond and has a fixed size.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CostFit {
    model: CostModel,
    squares: LeastSquares,
    /// Unknowns for scaled inputs and times.
    unknowns: Vector,
    error_p50: Quantile,
    error_p90: Quantile,
    variance: Variance,
    samples: u64,
    clipped: u64,
    dropped: u64,
}

/// Sums for [`FitQuality::r_squared`], fading as the fit does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
struct Variance {
    weight: f64,
    mean: f64,
    about_mean: f64,
    errors: f64,
}

impl Variance {
    fn add(&mut self, time: f64, error: f64) {
        self.weight = KEEP * self.weight + 1.0;
        let off = time - self.mean;
        self.mean += off / self.weight;
        self.about_mean = KEEP * self.about_mean + off * (time - self.mean);
        self.errors = KEEP * self.errors + error * error;
    }
}

impl CostFit {
    /// Knows the prior.
    pub fn new(model: CostModel) -> Self {
        let prior = StepCost::prior(model);
        let (scale, time) = scales(model);
        let coefficients = unknowns_of(model, &prior);
        let unknowns = [0, 1, 2].map(|i| coefficients[i] * scale[i] / time);
        Self {
            model,
            squares: LeastSquares::new(unknowns, PRIOR_WEIGHT, KEEP),
            unknowns,
            error_p50: Quantile::new(0.5, ERROR_FIRST),
            error_p90: Quantile::new(0.9, ERROR_FIRST),
            variance: Variance::default(),
            samples: 0,
            clipped: 0,
            dropped: 0,
        }
    }

    /// Takes what a rank reports of a step.
    pub fn observe(&mut self, step: &StepReport) -> FitOutcome {
        if !self.is_plausible(step) {
            self.dropped += 1;
            return FitOutcome::Dropped;
        }
        let (scale, unit) = scales(self.model);
        let mut inputs = inputs_of(self.model, step);
        inputs.iter_mut().zip(scale).for_each(|(input, scale)| *input /= scale);
        let time = step.micros as f64 / unit;
        // A step that should cost nothing at all has no relative error: count a thousandth of a usual step for it.
        let predicted = dot(&self.unknowns, &inputs).max(0.001);
        let error = time - predicted;
        let relative = error.abs() / predicted;
        let limit = CLIP * self.error_p50.get().max(ERROR_LEAST) * predicted;
        let cut = error.clamp(-limit, limit);
        self.error_p50.add(relative);
        self.error_p90.add(relative);
        self.variance.add(predicted + cut, cut);
        let weight =
            predicted.max(PREDICTED_LEAST).powi(-2).min(LENGTH_MAX * LENGTH_MAX / dot(&inputs, &inputs));
        self.squares.add(&inputs, predicted + cut, weight);
        self.unknowns = self.squares.solve();
        self.samples += 1;
        if cut == error {
            return FitOutcome::Used;
        }
        self.clipped += 1;
        FitOutcome::Clipped
    }

    /// What a step costs, as far as is known.
    pub fn cost(&self) -> StepCost {
        let (scale, unit) = scales(self.model);
        let [fixed_us, first, second] = [0, 1, 2].map(|i| self.unknowns[i] * unit / scale[i]);
        match self.model {
            CostModel::Prefill => {
                StepCost { fixed_us, token_us: first, pair_us: second, ..StepCost::default() }
            }
            CostModel::Decode => {
                StepCost { fixed_us, kv_token_us: first, request_us: second, ..StepCost::default() }
            }
        }
    }

    /// How far that can be trusted.
    pub fn quality(&self) -> FitQuality {
        let Variance { about_mean, errors, .. } = self.variance;
        // No variance: there is nothing to explain, unless errors were made nevertheless.
        let unexplained = if errors > 0.0 { errors / about_mean.max(f64::MIN_POSITIVE) } else { 0.0 };
        FitQuality {
            samples: self.samples,
            clipped: self.clipped,
            dropped: self.dropped,
            error_p50: self.error_p50.get(),
            error_p90: self.error_p90.get(),
            r_squared: 1.0 - unexplained,
            learned: self.squares.learned(),
        }
    }

    fn is_plausible(&self, step: &StepReport) -> bool {
        let [_, first, second] = inputs_of(self.model, step);
        let max = STEP_LIMITS;
        step.micros > 0
            && (first > 0.0 || second > 0.0)
            && step.tokens <= max.tokens
            && step.pairs <= max.pairs
            && step.requests <= max.requests
            && step.kv_tokens <= max.kv_tokens
            && step.micros <= max.micros
    }
}

/// What the three unknowns are multiplied with.
fn inputs_of(model: CostModel, step: &StepReport) -> Vector {
    match model {
        CostModel::Prefill => [1.0, step.tokens.0 as f64, step.pairs as f64],
        CostModel::Decode => [1.0, step.kv_tokens.0 as f64, f64::from(step.requests)],
    }
}

/// Their values, in the same order.
fn unknowns_of(model: CostModel, cost: &StepCost) -> Vector {
    match model {
        CostModel::Prefill => [cost.fixed_us, cost.token_us, cost.pair_us],
        CostModel::Decode => [cost.fixed_us, cost.kv_token_us, cost.request_us],
    }
}

/// Inputs of a usual step and its time in microseconds by the prior: in these units all numbers are about 1, and the prior's
/// weight means the same for each.
fn scales(model: CostModel) -> (Vector, f64) {
    let inputs = match model {
        // 8192 tokens, the chunk of today's engines, that see 4096 each.
        CostModel::Prefill => [1.0, 8192.0, 8192.0 * 4096.0],
        CostModel::Decode => [1.0, 300_000.0, 96.0],
    };
    (inputs, dot(&inputs, &unknowns_of(model, &StepCost::prior(model))))
}
