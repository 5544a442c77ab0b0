//! Histograms of lengths and fits of the times between requests.

use super::super::lines::Place;
use super::super::{TOKENS_MAX, TraceError};
use rand::rngs::ChaCha8Rng;
use rand_distr::{Distribution, Gamma, Weibull};

/// How far from 1 the sum of a histogram may be: as ServeGen checks it.
const SUM_TOLERANCE: f64 = 1e-6;
const EXPECTED: &str = "a histogram such as {50: 0.25, 295: 0.75}";

/// A histogram of token counts.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    tokens: Vec<u32>,
    /// Probability of these and all lower counts.
    cumulative: Vec<f64>,
}

impl Histogram {
    /// Reads a histogram as Python prints a dictionary; `None` for an empty one.
    pub(super) fn parse(place: &Place, field: &'static str, text: &str) -> Result<Option<Self>, TraceError> {
        let malformed = |what: &str| place.malformed(format!("{field}: {what}"), EXPECTED);
        let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let inner = inner.ok_or_else(|| malformed("is not in braces"))?;
        let mut bins: Vec<(u32, f64)> = Vec::new();
        for bin in inner.split(',').map(str::trim).filter(|bin| !bin.is_empty()) {
            let (tokens, share) =
                bin.split_once(':').ok_or_else(|| malformed(&format!("{bin:?} has no colon")))?;
            let number = || malformed(&format!("{bin:?} is no pair of numbers"));
            let tokens: i64 = tokens.trim().parse().map_err(|_| number())?;
            let share: f64 = share.trim().parse().map_err(|_| number())?;
            let tokens = place.within(field, tokens, 0, TOKENS_MAX)? as u32;
            if !(0.0..=1.0 + SUM_TOLERANCE).contains(&share) {
                return Err(place.out_of_range(field, share, "probabilities of 0 to 1".to_owned()));
            }
            bins.push((tokens, share));
        }
        if bins.is_empty() {
            return Ok(None);
        }
        bins.sort_by_key(|&(tokens, _)| tokens);
        let mut sum = 0.0;
        let cumulative: Vec<f64> = bins
            .iter()
            .map(|(_, share)| {
                sum += share;
                sum
            })
            .collect();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return Err(place.out_of_range(field, sum, "probabilities that sum to 1".to_owned()));
        }
        Ok(Some(Self { tokens: bins.iter().map(|&(tokens, _)| tokens).collect(), cumulative }))
    }

    /// The count at a quantile of 0 to 1.
    pub(super) fn draw(&self, quantile: f64) -> u64 {
        let place = self.cumulative.partition_point(|&sum| sum <= quantile);
        self.tokens[place.min(self.tokens.len() - 1)].into()
    }
}

/// A fit of the times between requests, in any unit: they are stretched to their window.
#[derive(Debug, Clone)]
pub(super) enum Between {
    Gamma(Gamma<f64>),
    Weibull(Weibull<f64>),
}

impl Between {
    /// By ServeGen's name and shape; `None` for a window without requests.
    pub(super) fn of(place: &Place, name: &str, shape: f64, scale: f64) -> Result<Option<Self>, TraceError> {
        if name.is_empty() {
            return Ok(None);
        }
        let range = |field, value| place.out_of_range(field, value, "numbers above 0".to_owned());
        for (field, value) in [("shape", shape), ("scale", scale)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(range(field, value));
            }
        }
        match name {
            "Gamma" => Gamma::new(shape, 1.0).map(Self::Gamma).map_err(|_| range("shape", shape)),
            "Weibull" => Weibull::new(1.0, shape).map(Self::Weibull).map_err(|_| range("shape", shape)),
            _ => {
                let accepted = "Gamma, Weibull, or nothing in a window without requests".to_owned();
                Err(place.out_of_range("pattern", format!("{name:?}"), accepted))
            }
        }
        .map(Some)
    }

    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Between::Gamma(fit) => fit.sample(rng),
            Between::Weibull(fit) => fit.sample(rng),
        }
    }
}
