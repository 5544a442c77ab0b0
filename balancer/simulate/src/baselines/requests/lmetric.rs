//! LMetric, after arXiv 2603.15202: least product of prefill tokens, if the request went there, and batch size.

use super::one_by_one::Rule;
use super::ties::first_least;
use crate::dispatch::{Arrival, BLOCK_TOKENS, CachedBlocks, RankView};
use std::collections::HashMap;

/// The multiplicative rule.
#[derive(Debug, Clone)]
pub struct LMetric {
    cached: Vec<CachedBlocks>,
    /// `[ranks]`: uncached tokens of what was sent and has no first token yet.
    pending: Vec<i64>,
    new_of: HashMap<u64, i64>,
}

impl LMetric {
    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self {
            cached: vec![CachedBlocks::default(); ranks.into()],
            pending: vec![0; ranks.into()],
            new_of: HashMap::new(),
        }
    }

    fn new_tokens(&self, arrival: &Arrival, rank: usize) -> i64 {
        let hit = self.cached[rank].matched(&arrival.blocks) as u64 * BLOCK_TOKENS;
        arrival.prompt_tokens.saturating_sub(hit).max(1) as i64
    }
}

impl Rule for LMetric {
    const NAME: &'static str = "LMetric";
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.cached.clear();
        self.cached.extend(ranks.iter().map(|rank| rank.cached.clone()));
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let score = |rank: usize| {
            let tokens = self.pending[rank] + self.new_tokens(arrival, rank);
            (tokens * (inflight[rank] + 1), inflight[rank])
        };
        let rank = first_least(0..inflight.len(), score);
        let new = self.new_tokens(arrival, rank);
        self.new_of.insert(arrival.id, new);
        self.pending[rank] += new;
        rank
    }

    fn on_first_token(&mut self, id: u64, rank: usize) {
        self.pending[rank] -= self.new_of.remove(&id).unwrap_or(0);
    }
}
