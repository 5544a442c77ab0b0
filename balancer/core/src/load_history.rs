//! What the next windows will ask for: averages of a unit's load windows, kept layer by layer.
//!
//! # Wanted
//!
//! Weights that were moved for a window are used in the ones after it. So placement is planned for a forecast, with an
//! estimate of how far a window strays from it, and (A) on loads that only scatter the forecast must be nearer to
//! the next window than the last one is; (B) a change of traffic must not be averaged away; (C) a rhythm that was seen
//! before should be met before it turns; (D) whatever the loads do, no forecast may stay in use that predicts worse
//! than the last window does.
//!
//! # Reduction
//!
//! Per layer, window `t` gives every expert its share `x_e(t)` of the layer's tokens. Three predictors:
//!
//! | predictor | forecast of `x_e` |
//! |---|---|
//! | last | the last window's share |
//! | average | exponential average of the shares, half-life [`HistoryPolicy::half_life_ms`] |
//! | seasonal | `S_e(t)`, plus the exponential average of what the shares lately were above it |
//!
//! `S` is the mean share by time of the season (24 buckets of a day), interpolated between the middles of the
//! buckets; a bucket counts once it has been left, and `S(t)` exists when the buckets around `t` count. Where `S` is
//! flat the seasonal forecast is the average, so it costs nothing to have and is better exactly where `S` turns.
//!
//! Before a window is absorbed, every predictor is asked for it, and is charged its squared error, summed over the
//! experts. The average is used when its charges of the last half-life are below the last window's; the seasonal one
//! when its charges of the last season are below those of what would have been used instead, over the same windows.
//!
//! The error of the predictor in use, less what sampling alone makes (from the parts of the window, or else a token's
//! chance), averaged over the half-life and divided by the sum of squared shares, is the square of the layer's
//! **drift**: the relative standard deviation of an expert's load about the forecast. A predictor whose error is
//! [`SHIFT`] times what was expected (in root mean square) forgets its average: the traffic is another. One such surprise
//! is no noise; from the second on end it counts as noise that grew.
//!
//! # Bounds
//!
//! Per layer and expert 6 values of 4 bytes, and one more per bucket of the season: 58 x 256 with 24 buckets is
//! 1.8 MB. One window costs a few passes over these values. Nothing survives a restart: until two windows
//! have been seen the forecast is the last window.
//!
//! A layer without tokens in a window learns nothing from it and is forecast to have none. A table of another shape
//! starts the history anew. Missing windows age what is known, no more.

mod average;
mod layer;
mod season;
#[cfg(test)]
mod tests;

use crate::policy::HistoryPolicy;
use crate::snapshot::{Forecast, LoadTable, Predictor};
use layer::LayerHistory;

/// A predictor's root-mean-square error, over the one expected, from which on the traffic counts as another. Noise
/// summed over 8 experts and more stays below it; a change of domain (recorded V2-Lite: a cosine of 0.6 to 0.7, against
/// 0.99 within one) is far above.
pub const SHIFT: f64 = 3.0;

/// The load windows of one unit so far.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadHistory {
    policy: HistoryPolicy,
    experts: usize,
    layers: Vec<LayerHistory>,
}

impl LoadHistory {
    /// No window yet. The policy's ranges are the configuration's duty.
    pub fn new(policy: HistoryPolicy) -> Self {
        assert!(policy.season_ms == 0 || policy.season_buckets > 0, "a season has buckets");
        Self { policy, experts: 0, layers: Vec::new() }
    }

    /// Takes a clean window that ended at `at_ms`, on any clock that goes forward, with its parts, which may be
    /// empty. Windows are taken in order of time; one that claims to be older counts as of the same moment.
    pub fn observe(&mut self, at_ms: u64, loads: &LoadTable, parts: &[LoadTable]) {
        if self.policy.half_life_ms == 0 {
            return;
        }
        if (self.layers.len(), self.experts) != (loads.layers(), loads.experts()) {
            self.experts = loads.experts();
            self.layers = vec![LayerHistory::new(self.experts); loads.layers()];
        }
        for (at, layer) in self.layers.iter_mut().enumerate() {
            let parts: Vec<&[u64]> = parts.iter().map(|part| part.layer(at)).collect();
            layer.observe(at_ms, loads.layer(at), &parts, &self.policy);
        }
    }

    /// The loads expected at `for_ms`, each layer scaled to its total in the last window. `None` before the first
    /// window, when the policy keeps no history, and when an expert would come out above
    /// [`LOAD_MAX`](crate::snapshot::LOAD_MAX).
    pub fn forecast(&self, for_ms: u64) -> Option<Forecast> {
        self.forecast_by(for_ms, |layer| layer.choose(for_ms, &self.policy))
    }

    /// The same by one predictor, whether or not it is trusted. Where it knows nothing yet, the season's nothing
    /// included, the last window stands in.
    pub fn forecast_of(&self, predictor: Predictor, for_ms: u64) -> Option<Forecast> {
        self.forecast_by(for_ms, |layer| layer.available(predictor, for_ms, &self.policy))
    }

    fn forecast_by(&self, for_ms: u64, choose: impl Fn(&LayerHistory) -> Predictor) -> Option<Forecast> {
        if self.layers.is_empty() {
            return None;
        }
        let mut counts = Vec::with_capacity(self.layers.len() * self.experts);
        let predictor: Vec<Predictor> = self.layers.iter().map(choose).collect();
        for (layer, &used) in self.layers.iter().zip(&predictor) {
            layer.forecast(used, for_ms, &self.policy, &mut counts);
        }
        let drift = self.layers.iter().map(LayerHistory::drift).collect();
        let loads = LoadTable::new(self.layers.len(), self.experts, counts);
        Some(Forecast { loads: loads.ok()?, drift, predictor })
    }

    /// Standard deviation of an expert's share of its layer about the forecast, sampling included. `None` until
    /// windows were compared with a forecast.
    pub fn deviation(&self, layer: usize, expert: usize) -> Option<f64> {
        self.layers.get(layer)?.deviation(expert)
    }

    /// Bytes of the averages, not counting the few of each layer as a whole.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerHistory::bytes).sum()
    }
}
