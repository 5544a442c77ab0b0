//! What a rank publishes of itself, and the changes of its cache.

use evenkeel_core::prefix::KvChange;
use std::collections::VecDeque;

/// One rank as its engine sees it now. What a policy hears of it is older.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RankState {
    /// Whether it serves.
    pub up: bool,
    /// Requests in the running batch.
    pub running: u32,
    /// Requests in the engine's own queue.
    pub waiting: u32,
    /// KV tokens that running requests hold.
    pub used_tokens: u64,
    /// KV tokens that waiting requests will need first.
    pub queued_tokens: u64,
    /// Prompt tokens of waiting requests that the cache does not have.
    pub waiting_uncached: u64,
    /// KV tokens that fit.
    pub capacity_tokens: u64,
    /// Tokens a second that it generated in its last step.
    pub generated_per_s: f64,
    /// Number of the last dispatch that it received.
    pub last_dispatch: Option<u64>,
    /// Its part of the last step, if it had one.
    pub last_step: Option<StepSample>,
}

/// What a rank did in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSample {
    /// New tokens.
    pub tokens: u64,
    /// Attention pairs.
    pub pairs: u64,
    /// Requests.
    pub requests: u32,
    /// KV tokens read.
    pub kv_tokens: u64,
    /// Its own time, without waiting for the others.
    pub own_us: f64,
}

/// A change of a rank's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheNews {
    /// When it changed.
    pub at_us: u64,
    /// The rank.
    pub rank: u16,
    /// What changed.
    pub change: KvChange,
}

/// Ranks of a unit, and the changes of their caches that nobody has fetched yet.
pub struct UnitView<'a> {
    /// By rank.
    pub ranks: &'a [RankState],
    /// In the order of time.
    pub cache_news: &'a mut VecDeque<CacheNews>,
}

impl UnitView<'_> {
    /// Takes the next change that was made at `until_us` or before.
    pub fn next_change(&mut self, until_us: u64) -> Option<CacheNews> {
        if self.cache_news.front()?.at_us > until_us {
            return None;
        }
        self.cache_news.pop_front()
    }
}
