//! One layer's averages, and which of its predictors is trusted.

use super::SHIFT;
use super::average::{Average, VectorAverage, decay};
use super::season::{Season, SeasonAt};
use crate::policy::HistoryPolicy;
use crate::snapshot::Predictor;

/// Relative root-mean-square error that the second window of a history may have before the first is forgotten,
/// over [`SHIFT`]: nothing else is known of the noise then. Halves of one recorded domain differ by up to 0.15, two
/// domains by 0.8.
const FIRST_NOISE: f64 = 0.1;
/// Relative error that is always expected, so that loads that never changed may change a little.
const LEAST_NOISE: f64 = 0.005;
/// Windows compared with a forecast before the layer's drift is stated.
const DRIFT_WINDOWS: u64 = 3;

/// See the [module above](super).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerHistory {
    experts: usize,
    /// Total of the last window, which may be 0.
    total: u64,
    /// End of the last window with tokens.
    at_ms: u64,
    /// `[experts]`: shares of the last window with tokens; empty before the first.
    last: Vec<f32>,
    average: VectorAverage,
    season: Season,
    /// What the shares were above the season's.
    above: VectorAverage,
    /// Squared deviations from the forecast.
    variance: VectorAverage,
    /// The part of their sum that sampling makes, and the sum of squared shares.
    sampling: Average,
    square: Average,
    /// Windows in `variance`, none forgotten.
    judged: u64,
    /// The last window was far off its forecast.
    surprised: bool,
    /// Charges of the last window and of the average.
    last_error: Average,
    average_error: Average,
    /// Charges of the seasonal predictor, and of what would have been used instead, in the same windows.
    season_error: Average,
    instead_error: Average,
}

/// Squared errors, summed over the experts.
struct Errors {
    last: f64,
    average: f64,
    season: Option<f64>,
}

impl LayerHistory {
    pub(super) fn new(experts: usize) -> Self {
        Self {
            experts,
            total: 0,
            at_ms: 0,
            last: Vec::new(),
            average: VectorAverage::default(),
            season: Season::default(),
            above: VectorAverage::default(),
            variance: VectorAverage::default(),
            sampling: Average::default(),
            square: Average::default(),
            judged: 0,
            surprised: false,
            last_error: Average::default(),
            average_error: Average::default(),
            season_error: Average::default(),
            instead_error: Average::default(),
        }
    }

    pub(super) fn observe(&mut self, at_ms: u64, counts: &[u64], parts: &[&[u64]], policy: &HistoryPolicy) {
        self.total = counts.iter().sum();
        if self.total == 0 {
            return;
        }
        let total = self.total as f64;
        let share: Vec<f64> = counts.iter().map(|&count| count as f64 / total).collect();
        let elapsed = at_ms.saturating_sub(self.at_ms);
        let at_ms = at_ms.max(self.at_ms);
        if !self.last.is_empty() {
            let sampling = sampling(parts).unwrap_or(1.0 / total);
            self.judge(at_ms, elapsed, &share, sampling, policy);
        }
        self.absorb(at_ms, elapsed, &share, policy);
    }

    /// Compares a window with what was forecast for it, before anything is learnt from it.
    fn judge(&mut self, at_ms: u64, elapsed: u64, share: &[f64], sampling: f64, policy: &HistoryPolicy) {
        let errors = self.errors(at_ms, share, policy);
        let used = self.choose(at_ms, policy);
        let error = match used {
            Predictor::Last => errors.last,
            Predictor::Average => errors.average,
            Predictor::Seasonal => errors.season.expect("it is used only where it exists"),
        };
        let square: f64 = share.iter().map(|share| share * share).sum();
        let limit = SHIFT * SHIFT * self.expected(square, sampling);
        // What nobody foresaw says nothing about who foresees best.
        let least = errors.season.into_iter().fold(errors.last.min(errors.average), f64::min);
        let fading = decay(elapsed, policy.half_life_ms);
        if least <= limit {
            self.charge(&errors, fading, decay(elapsed, policy.half_life_ms.max(policy.season_ms)));
        }
        // One surprise is a change of traffic and says nothing about noise; a second one on end is noise that grew.
        if error <= limit || self.surprised {
            self.learn_noise(at_ms, used, share, (limit / error).min(1.0), fading, policy);
            self.sampling.add(sampling, fading);
            self.square.add(square, fading);
            self.judged += 1;
        }
        self.surprised = error > limit;
        if errors.average > limit {
            self.average.reset();
        }
        if errors.season.is_some_and(|error| error > limit) {
            self.above.reset();
        }
    }

    /// The squared error that would be no surprise.
    fn expected(&self, square: f64, sampling: f64) -> f64 {
        // The forecast may have been sampled as thinly as the window.
        let least = LEAST_NOISE * LEAST_NOISE * square + 2.0 * sampling;
        let known = match self.judged {
            0 => FIRST_NOISE * FIRST_NOISE * square,
            _ => self.variance_sum(),
        };
        known.max(least)
    }

    fn variance_sum(&self) -> f64 {
        self.variance.mean.iter().copied().map(f64::from).sum()
    }

    fn errors(&self, at_ms: u64, share: &[f64], policy: &HistoryPolicy) -> Errors {
        let error = |used: Predictor| -> f64 {
            let season = self.season_at(at_ms, policy);
            share.iter().enumerate().map(|(e, share)| (share - self.predict(used, e, season)).powi(2)).sum()
        };
        let season = self.season_at(at_ms, policy).map(|_| error(Predictor::Seasonal));
        Errors { last: error(Predictor::Last), average: error(Predictor::Average), season }
    }

    fn charge(&mut self, errors: &Errors, fading: f64, season_fading: f64) {
        if let Some(season) = errors.season {
            let instead = if self.average_leads() { errors.average } else { errors.last };
            self.season_error.add(season, season_fading);
            self.instead_error.add(instead, season_fading);
        }
        self.last_error.add(errors.last, fading);
        self.average_error.add(errors.average, fading);
    }

    /// Adds the deviations from the predictor in use, scaled so that no window counts for more than the limit.
    fn learn_noise(
        &mut self,
        at_ms: u64,
        used: Predictor,
        share: &[f64],
        scale: f64,
        fading: f64,
        policy: &HistoryPolicy,
    ) {
        let season = self.season_at(at_ms, policy);
        let deviation = |(e, share): (usize, &f64)| share - self.predict(used, e, season);
        let squares: Vec<f64> = share.iter().enumerate().map(|at| deviation(at).powi(2) * scale).collect();
        self.variance.add(squares.into_iter(), fading);
    }

    fn absorb(&mut self, at_ms: u64, elapsed: u64, share: &[f64], policy: &HistoryPolicy) {
        let fading = decay(elapsed, policy.half_life_ms);
        self.average.add(share.iter().copied(), fading);
        if policy.season_ms > 0 {
            if let Some(season) = self.season.at(at_ms, policy) {
                self.above.add(share.iter().enumerate().map(|(e, share)| share - season.of(e)), fading);
            }
            self.season.add(at_ms, share, policy);
        }
        self.last.clear();
        self.last.extend(share.iter().map(|&share| share as f32));
        self.at_ms = at_ms;
    }

    fn season_at(&self, at_ms: u64, policy: &HistoryPolicy) -> Option<SeasonAt<'_>> {
        if policy.season_ms == 0 { None } else { self.season.at(at_ms, policy) }
    }

    fn average_leads(&self) -> bool {
        self.average_error.mean < self.last_error.mean
    }

    pub(super) fn choose(&self, at_ms: u64, policy: &HistoryPolicy) -> Predictor {
        let seasonal = self.season_error.mean < self.instead_error.mean;
        let leading = if self.average_leads() { Predictor::Average } else { Predictor::Last };
        let used = if seasonal { Predictor::Seasonal } else { leading };
        if self.available(used, at_ms, policy) == used {
            used
        } else {
            self.available(leading, at_ms, policy)
        }
    }

    /// The predictor if it can say something, else the last window.
    pub(super) fn available(&self, wanted: Predictor, at_ms: u64, policy: &HistoryPolicy) -> Predictor {
        let silent = match wanted {
            _ if self.total == 0 => true,
            Predictor::Seasonal => self.season_at(at_ms, policy).is_none(),
            Predictor::Last | Predictor::Average => false,
        };
        if silent { Predictor::Last } else { wanted }
    }

    fn predict(&self, used: Predictor, expert: usize, season: Option<SeasonAt<'_>>) -> f64 {
        match used {
            Predictor::Last => f64::from(self.last[expert]),
            Predictor::Average => self.average.of(expert),
            Predictor::Seasonal => season.map_or(0.0, |s| s.of(expert)) + self.above.of(expert),
        }
    }

    /// Appends the counts expected at `for_ms`; they sum to the total of the last window.
    pub(super) fn forecast(
        &self,
        used: Predictor,
        for_ms: u64,
        policy: &HistoryPolicy,
        counts: &mut Vec<u64>,
    ) {
        if self.total == 0 {
            counts.extend(std::iter::repeat_n(0, self.experts));
            return;
        }
        let season = self.season_at(for_ms, policy);
        // What a fall of the season takes from an expert that has little must not leave less than nothing.
        let share: Vec<f64> = (0..self.experts).map(|e| self.predict(used, e, season).max(0.0)).collect();
        let sum: f64 = share.iter().sum();
        let (mut upto, mut given) = (0.0, 0);
        for share in share {
            upto += share;
            let next = ((upto / sum).min(1.0) * self.total as f64).round() as u64;
            counts.push(next - given);
            given = next;
        }
    }

    pub(super) fn drift(&self) -> Option<f64> {
        let own = self.variance_sum() - self.sampling.mean;
        (self.judged >= DRIFT_WINDOWS).then(|| (own.max(0.0) / self.square.mean).sqrt())
    }

    pub(super) fn deviation(&self, expert: usize) -> Option<f64> {
        self.variance.mean.get(expert).map(|&variance| f64::from(variance).sqrt())
    }

    pub(super) fn bytes(&self) -> usize {
        let averages = [&self.average, &self.above, &self.variance];
        let values = averages.iter().map(|average| average.mean.len()).sum::<usize>();
        (self.last.len() + values + self.season.values()) * size_of::<f32>()
    }
}

/// The squared error, summed over the experts, that a window's shares have by being a sample, as the scatter of its
/// parts shows it. `None` when fewer than two parts have tokens.
fn sampling(parts: &[&[u64]]) -> Option<f64> {
    let totals: Vec<f64> = parts.iter().map(|part| part.iter().sum::<u64>() as f64).collect();
    let all: f64 = totals.iter().sum();
    let count = totals.iter().filter(|total| **total > 0.0).count();
    if count < 2 {
        return None;
    }
    let of_expert = |expert: usize| -> f64 {
        let share = parts.iter().map(|part| part[expert] as f64).sum::<f64>() / all;
        parts.iter().zip(&totals).map(|(part, total)| (part[expert] as f64 - share * total).powi(2)).sum()
    };
    let sum: f64 = (0..parts[0].len()).map(of_expert).sum();
    Some(sum / (all * all) * (count as f64 / (count - 1) as f64))
}
