//! How long ranks take. A step lasts as long as its slowest rank.

use crate::cost::{DecodeCost, PrefillCost};
use evenkeel_core::prefill::Work;

/// A model of the time that one rank takes for its part of a step, in microseconds, without waiting for others.
pub trait StepTime {
    /// A prefill step with this work. Without work it is what the rank takes along with the others, often 0.
    fn prefill_us(&self, work: Work) -> f64;

    /// A decode step that reads `kv_tokens` tokens of KV and generates one token for each of `requests` requests.
    fn decode_us(&self, kv_tokens: u64, requests: u32) -> f64;
}

/// The assumed constants of [`crate::cost`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Assumed {
    /// Prefill.
    pub prefill: PrefillCost,
    /// Decode.
    pub decode: DecodeCost,
}

impl StepTime for Assumed {
    fn prefill_us(&self, work: Work) -> f64 {
        self.prefill.time_ms(work) * 1e3
    }

    fn decode_us(&self, kv_tokens: u64, requests: u32) -> f64 {
        self.decode.step_ms(kv_tokens as f64, f64::from(requests)) * 1e3
    }
}
