//! Synthetic prompts: log-normal lengths, half of them with a cached prefix. Synthetic, and to be called so wherever
//! they are shown.

use crate::expert_loads::SplitMix64;
use evenkeel_core::prefill::Prompt;

/// Median length of all mixes, tokens.
const MEDIAN_TOKENS: f64 = 1500.0;
/// Shortest prompt, tokens.
const LENGTH_MIN: f64 = 16.0;
/// Part of the prompts that find a prefix cached.
const CACHED_PART: f64 = 0.5;
/// A cached prefix is uniform over the prompt's length up to this part of it.
const CACHED_MAX: f64 = 0.95;

/// What prompts look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptMix {
    /// Log-normal sigma of the length.
    pub sigma: f64,
    /// Longest prompt, tokens.
    pub length_max: u64,
}

impl PromptMix {
    /// Prompts that an engine runs whole.
    pub const WHOLE: Self = Self { sigma: 1.0, length_max: 8192 };
    /// Prompts that are cut into chunks.
    pub const CHUNKED: [Self; 4] = [
        Self { sigma: 1.0, length_max: 32 << 10 },
        Self { sigma: 1.0, length_max: 128 << 10 },
        Self { sigma: 1.4, length_max: 32 << 10 },
        Self { sigma: 1.4, length_max: 128 << 10 },
    ];
}

/// An endless stream of prompts; the same seed gives the same prompts.
#[derive(Debug, Clone)]
pub struct Prompts {
    mix: PromptMix,
    draws: SplitMix64,
}

impl Prompts {
    /// Starts at a seed.
    pub fn new(mix: PromptMix, seed: u64) -> Self {
        Self { mix, draws: SplitMix64::new(seed) }
    }
}

impl Iterator for Prompts {
    type Item = Prompt;

    fn next(&mut self) -> Option<Prompt> {
        let length = MEDIAN_TOKENS * self.draws.log_normal(self.mix.sigma);
        let length = length.clamp(LENGTH_MIN, self.mix.length_max as f64) as u64;
        let cached = self.draws.uniform() <= CACHED_PART;
        let part = if cached { CACHED_MAX * self.draws.uniform() } else { 0.0 };
        let context = (part * length as f64) as u64;
        Some(Prompt { context, remaining: length - context })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 20,000 prompts: median length, part with a cached prefix, mean cached part of these.
    #[track_caller]
    fn check(mix: PromptMix) {
        let prompts: Vec<Prompt> = Prompts::new(mix, 1).take(20_000).collect();
        assert_eq!(prompts, Prompts::new(mix, 1).take(20_000).collect::<Vec<_>>());
        let mut lengths: Vec<u64> = prompts.iter().map(|p| p.context + p.remaining).collect();
        lengths.sort_unstable();
        assert!((1450..1550).contains(&lengths[10_000]), "median {}", lengths[10_000]);
        assert!(lengths[0] >= 16 && lengths[19_999] <= mix.length_max);
        assert!(prompts.iter().all(|p| p.remaining > 0));
        let cached = prompts.iter().filter(|p| p.context > 0).count();
        assert!((9700..10_300).contains(&cached), "{cached} with a cached prefix");
        let parts = prompts.iter().map(|p| p.context as f64 / (p.context + p.remaining) as f64);
        let part = parts.sum::<f64>() / cached as f64;
        assert!((part - 0.475).abs() < 0.01, "{part} of a prompt is cached");
    }

    #[test]
    fn prompts_are_as_defined() {
        check(PromptMix::WHOLE);
        PromptMix::CHUNKED.into_iter().for_each(check);
    }
}
