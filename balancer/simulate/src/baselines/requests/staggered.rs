//! Staggered Batch Scheduling, approximated after the abstract of arXiv 2512.16134.

use super::one_by_one::Rule;
use super::ties::first_least;
use crate::dispatch::{Arrival, BLOCK_TOKENS, CachedBlocks, DispatchPolicy, Dispatched, RankView};
use std::cmp::Reverse;
use std::collections::HashMap;

/// Decode: ranks whose KV is an outlier (over the third quartile by 1.5 times the range between the quartiles) are left out; of the
/// others the fewest requests, then the least KV.
#[derive(Debug, Clone)]
pub struct StaggeredDecode {
    /// `[ranks]`: KV tokens as reported, and prompts since.
    kv: Vec<u64>,
    /// `[ranks]`: scratch.
    sorted: Vec<u64>,
}

impl StaggeredDecode {
    const OUTLIER: f64 = 1.5;

    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self { kv: vec![0; ranks.into()], sorted: Vec::new() }
    }

    fn most_kv(&mut self) -> f64 {
        self.sorted.clone_from(&self.kv);
        let count = self.sorted.len();
        let mut quartile = |place: usize| *self.sorted.select_nth_unstable(place).1;
        let (first, third) = (quartile(count / 4), quartile(3 * count / 4));
        third as f64 + Self::OUTLIER * (third - first) as f64
    }
}

impl Rule for StaggeredDecode {
    const NAME: &'static str = "Staggered decode";
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.kv.clear();
        self.kv.extend(ranks.iter().map(|rank| rank.used_tokens + rank.queued_tokens));
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let most = self.most_kv();
        // A quarter of the ranks is at or under the first quartile, so some rank is left.
        let ordinary = (0..inflight.len()).filter(|&rank| self.kv[rank] as f64 <= most);
        let rank = first_least(ordinary, |rank| (inflight[rank], self.kv[rank]));
        self.kv[rank] += arrival.prompt_tokens;
        rank
    }
}

/// Prefill: what arrives within an interval is dispatched together, longest first, each to the rank with the fewest uncached
/// tokens after it.
#[derive(Debug, Clone)]
pub struct StaggeredPrefill {
    interval_s: f64,
    /// When the first of the held requests came.
    since_s: f64,
    held: Vec<Arrival>,
    cached: Vec<CachedBlocks>,
    /// `[ranks]`: uncached tokens of what was sent and has no first token yet.
    tokens: Vec<u64>,
    tokens_of: HashMap<u64, u64>,
}

impl StaggeredPrefill {
    /// The interval of the approximation.
    pub const INTERVAL_S: f64 = 0.1;

    /// Over `ranks` ranks, at least one. The policy holds requests until the first of them is `interval_s` old; with 0 it dispatches
    /// at once what it is given.
    pub fn new(ranks: u16, interval_s: f64) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self {
            interval_s,
            since_s: 0.0,
            held: Vec::new(),
            cached: vec![CachedBlocks::default(); ranks.into()],
            tokens: vec![0; ranks.into()],
            tokens_of: HashMap::new(),
        }
    }

    fn put(&mut self, arrival: &Arrival) -> Dispatched {
        let uncached = |rank: usize| {
            let hit = self.cached[rank].matched(&arrival.blocks) as u64 * BLOCK_TOKENS;
            arrival.prompt_tokens.saturating_sub(hit).max(1)
        };
        let rank = first_least(0..self.tokens.len(), |rank| self.tokens[rank] + uncached(rank));
        let uncached = uncached(rank);
        self.tokens[rank] += uncached;
        self.tokens_of.insert(arrival.id, uncached);
        Dispatched { id: arrival.id, rank: rank as u16 }
    }
}

impl DispatchPolicy for StaggeredPrefill {
    fn name(&self) -> &'static str {
        "Staggered prefill"
    }

    fn report_interval_s(&self) -> f64 {
        0.1
    }

    fn on_reports(&mut self, ranks: &[RankView]) {
        assert_eq!(ranks.len(), self.tokens.len(), "one report per rank");
        self.cached.clear();
        self.cached.extend(ranks.iter().map(|rank| rank.cached.clone()));
    }

    fn assign(&mut self, arrivals: &[Arrival], now_s: f64) -> Vec<Dispatched> {
        if self.held.is_empty() {
            self.since_s = now_s;
        }
        self.held.extend_from_slice(arrivals);
        if now_s - self.since_s < self.interval_s {
            return Vec::new();
        }
        let mut together = std::mem::take(&mut self.held);
        together.sort_by_key(|arrival| Reverse(arrival.prompt_tokens));
        together.iter().map(|arrival| self.put(arrival)).collect()
    }

    fn on_first_token(&mut self, id: u64, rank: u16) {
        self.tokens[usize::from(rank)] -= self.tokens_of.remove(&id).unwrap_or(0);
    }

    fn on_finish(&mut self, _id: u64, _rank: u16) {}
}
