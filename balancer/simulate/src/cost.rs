//! What a step and a round cost. Modelled: the constants are stated, none is measured here.

use evenkeel_core::prefill::Work;

/// Time of one decode step: constant part, KV read by the fullest rank, rows of the rank with most requests.
///
/// The constants are assumed (a V3 decode step of about 30 ms at 300k KV tokens and 96 requests a rank, a
/// third of it in each part); only their proportions matter for comparing policies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeCost {
    /// Part that does not depend on the load, ms.
    pub fixed_ms: f64,
    /// Per KV token of the fullest rank, ms.
    pub per_kv_token_ms: f64,
    /// Per request of the rank with most, ms.
    pub per_request_ms: f64,
}

impl Default for DecodeCost {
    fn default() -> Self {
        Self { fixed_ms: 12.0, per_kv_token_ms: 10.0 / 300_000.0, per_request_ms: 8.0 / 96.0 }
    }
}

impl DecodeCost {
    /// Step time in ms; with means in place of maxima it is the time of a perfectly balanced step.
    pub fn step_ms(&self, kv_tokens: f64, requests: f64) -> f64 {
        self.fixed_ms + self.per_kv_token_ms * kv_tokens + self.per_request_ms * requests
    }
}

/// Time of a prefill rank: `c_lin * N + c_att * A`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillCost {
    /// Per new token, ms.
    pub per_token_ms: f64,
    /// Per attention pair, ms.
    pub per_pair_ms: f64,
}

impl Default for PrefillCost {
    /// DeepSeek states 73.7k input tokens a second and 8-GPU node, 56.3 % of them cached: about 4k new
    /// tokens a second and rank as the average of a day, so 0.2 ms a token at the 5k-token contexts served
    /// then. A rank that never idles is assumed a fifth faster. c_att / c_lin follows from 81.9 kFLOP a pair
    /// against 1.17 GFLOP a token, with attention at 70 to 140 % of the efficiency: 1e-4.
    fn default() -> Self {
        let per_token_ms = 0.155;
        Self { per_token_ms, per_pair_ms: 1.0e-4 * per_token_ms }
    }
}

impl PrefillCost {
    /// Time of the work on one rank, ms.
    pub fn time_ms(&self, work: Work) -> f64 {
        self.per_token_ms * work.tokens as f64 + self.per_pair_ms * work.attention as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decode_step_has_three_parts() {
        let cost = DecodeCost::default();
        assert_eq!(cost.step_ms(0.0, 0.0), 12.0);
        assert!((cost.step_ms(300_000.0, 96.0) - 30.0).abs() < 1e-9);
    }

    #[test]
    fn attention_equals_the_rest_at_a_visible_context_of_ten_thousand() {
        let cost = PrefillCost::default();
        let linear = cost.time_ms(Work { tokens: 1000, attention: 0 });
        let both = cost.time_ms(Work { tokens: 1000, attention: 1000 * 10_000 });
        assert!((both / linear - 2.0).abs() < 1e-9);
    }
}
