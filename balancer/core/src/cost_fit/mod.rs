//! Costs of a step, fitted to what the engines report of their steps. See README.md.

mod fit;
mod least_squares;
mod quantile;

#[cfg(test)]
mod fit_tests;

pub use fit::{CostFit, FitOutcome, FitQuality, STEP_LIMITS};

use crate::units::Tokens;

/// One step of a rank: what it had to do and how long that took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepReport {
    /// Tokens that went through the dense layers.
    pub tokens: Tokens,
    /// Pairs of core attention: for each such token the tokens it attends to, itself among them.
    pub pairs: u64,
    /// Requests that had a part in it.
    pub requests: u32,
    /// KV tokens of these requests.
    pub kv_tokens: Tokens,
    /// Time of the rank's own work in it, without waiting for other ranks, in microseconds.
    pub micros: u64,
}

/// Which steps are fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum CostModel {
    /// T = fixed + token * N + pair * A.
    Prefill,
    /// t = fixed + kv_token * KV + request * requests.
    Decode,
}

/// What a step costs, in microseconds. What the model does not have is 0; nothing is negative.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepCost {
    /// Of every step.
    pub fixed_us: f64,
    /// Of a new token.
    pub token_us: f64,
    /// Of a pair of attention.
    pub pair_us: f64,
    /// Of a KV token that is read.
    pub kv_token_us: f64,
    /// Of a request.
    pub request_us: f64,
}

impl StepCost {
    /// What is believed before anything was reported.
    pub const fn prior(model: CostModel) -> Self {
        let nothing =
            StepCost { fixed_us: 0.0, token_us: 0.0, pair_us: 0.0, kv_token_us: 0.0, request_us: 0.0 };
        match model {
            // DeepSeek's node of eight H800 takes in 73.7k tokens a second, 56.3 % of them cached: 4.0k new ones a rank, of
            // 250 us. Attention to a context of 2.5k is a fifth of that, at 1e-4 of a token's cost a pair (the mean, in
            // logarithms, of the 0.7e-4 to 1.4e-4 that V3's operation counts give). What a step costs by itself is in there.
            CostModel::Prefill => StepCost { token_us: 200.0, pair_us: 0.02, ..nothing },
            // The step-time model that decode policies are compared under: 12 ms, 10 ms for 300k KV tokens and 8 ms for 96
            // requests.
            CostModel::Decode => StepCost {
                fixed_us: 12_000.0,
                kv_token_us: 10_000.0 / 300_000.0,
                request_us: 8_000.0 / 96.0,
                ..nothing
            },
        }
    }

    /// Expected time of a step in microseconds; its own `micros` are not looked at.
    pub fn predict(&self, step: &StepReport) -> f64 {
        self.fixed_us
            + self.token_us * step.tokens.0 as f64
            + self.pair_us * step.pairs as f64
            + self.kv_token_us * step.kv_tokens.0 as f64
            + self.request_us * f64::from(step.requests)
    }
}
