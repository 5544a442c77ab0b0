//! llm-d's endpoint picker, of the lineage of the Gateway API inference extension. An endpoint is a DP rank with a port of its own.
//!
//! After llm-d/llm-d-router ebab6879 (2026-08-22), `pkg/epp/config/loader/defaults.go`, and the prefill configuration of
//! llm-d.github.io pull request 462. The prefixes are the picker's own approximate index, as by default.

use super::approximate_index::ApproximateIndex;
use super::one_by_one::Rule;
use super::python_random::PythonRandom;
use crate::dispatch::{Arrival, RankView};
use std::collections::HashMap;

/// Blocks per endpoint of the approximate index, the default.
const BLOCKS: usize = 31_250;

/// The default scorers: queue, KV usage, prefix; the highest sum wins, equals by lot.
#[derive(Debug, Clone)]
pub struct Scorers {
    index: ApproximateIndex,
    random: PythonRandom,
    /// `[ranks]`: waiting requests and KV usage, as scraped.
    scraped: Vec<(u32, f64)>,
    scores: Vec<f64>,
    best: Vec<usize>,
}

impl Scorers {
    const QUEUE: f64 = 2.0;
    const KV: f64 = 2.0;
    const PREFIX: f64 = 3.0;

    /// Over `ranks` ranks, drawing from `seed`.
    pub fn new(ranks: u16, seed: u64) -> Self {
        Self {
            index: ApproximateIndex::new(ranks, BLOCKS),
            random: PythonRandom::new(seed),
            scraped: vec![(0, 0.0); ranks.into()],
            scores: Vec::new(),
            best: Vec::new(),
        }
    }

    fn score(&mut self, arrival: &Arrival) {
        let queues = || self.scraped.iter().map(|(waiting, _)| *waiting);
        let (shortest, longest) = (queues().min().unwrap_or(0), queues().max().unwrap_or(0));
        let score = |(rank, (waiting, kv)): (usize, &(u32, f64))| {
            let queue = if longest == shortest {
                1.0
            } else {
                f64::from(longest - waiting) / f64::from(longest - shortest)
            };
            Self::QUEUE * queue
                + Self::KV * (1.0 - kv)
                + Self::PREFIX * self.index.matched_part(arrival, rank)
        };
        self.scores.clear();
        self.scores.extend(self.scraped.iter().enumerate().map(score));
    }
}

impl Rule for Scorers {
    const NAME: &'static str = "llm-d default";
    /// Metrics are scraped every 50 ms.
    const REPORT_INTERVAL_S: f64 = 0.05;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.scraped.clear();
        self.scraped.extend(ranks.iter().map(|rank| (rank.waiting, rank.kv_usage())));
    }

    fn pick(&mut self, arrival: &Arrival, _: &[i64]) -> usize {
        self.score(arrival);
        let highest = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.best.clear();
        self.best.extend((0..self.scores.len()).filter(|&rank| self.scores[rank] == highest));
        let rank = self.random.choice(&self.best);
        self.index.insert(arrival, rank);
        rank
    }
}

/// The configuration for units that prefill bounds: stay with an endpoint that has 80 % of the prefix, unless its TTFT is far
/// behind; among these the least uncached tokens in flight, equals by lot.
#[derive(Debug, Clone)]
pub struct StickyTokenLoad {
    index: ApproximateIndex,
    random: PythonRandom,
    /// `[ranks]`: uncached tokens of what was sent and has no first token yet.
    tokens: Vec<u64>,
    tokens_of: HashMap<u64, u64>,
    /// `[ranks]`: scratch.
    matched: Vec<f64>,
    candidates: Vec<usize>,
}

impl StickyTokenLoad {
    const AFFINITY: f64 = 0.80;
    const TTFT_GAP_MS: f64 = 18_000.0;
    const TOKENS_PER_S: f64 = 15_928.0;

    /// Over `ranks` ranks, drawing from `seed`.
    pub fn new(ranks: u16, seed: u64) -> Self {
        Self {
            index: ApproximateIndex::new(ranks, BLOCKS),
            random: PythonRandom::new(seed),
            tokens: vec![0; ranks.into()],
            tokens_of: HashMap::new(),
            matched: vec![0.0; ranks.into()],
            candidates: Vec::new(),
        }
    }

    /// The affine endpoints, then the others if they may be chosen too.
    fn gather_candidates(&mut self) {
        let affine = |&rank: &usize| self.matched[rank] >= Self::AFFINITY;
        let ranks = 0..self.tokens.len();
        self.candidates.clear();
        self.candidates.extend(ranks.clone().filter(affine));
        let least = |part: &mut dyn Iterator<Item = usize>| part.map(|rank| self.tokens[rank]).min();
        let sticky = least(&mut self.candidates.iter().copied());
        let other = least(&mut ranks.clone().filter(|rank| !affine(rank)));
        let apart = |sticky: u64, other: u64| (sticky as f64 - other as f64) / Self::TOKENS_PER_S * 1e3;
        let open = match (sticky, other) {
            (Some(sticky), Some(other)) => apart(sticky, other) > Self::TTFT_GAP_MS,
            (sticky, _) => sticky.is_none(),
        };
        if open {
            self.candidates.extend(ranks.filter(|rank| !affine(rank)));
        }
    }
}

impl Rule for StickyTokenLoad {
    const NAME: &'static str = "llm-d sticky token load";
    /// It reads none.
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn pick(&mut self, arrival: &Arrival, _: &[i64]) -> usize {
        for (rank, matched) in self.matched.iter_mut().enumerate() {
            *matched = self.index.matched_part(arrival, rank);
        }
        self.gather_candidates();
        let least = self.candidates.iter().map(|&rank| self.tokens[rank]).min();
        self.candidates.retain(|&rank| Some(self.tokens[rank]) == least);
        let rank = self.random.choice(&self.candidates);
        self.index.insert(arrival, rank);
        let uncached = (arrival.prompt_tokens as f64 * (1.0 - self.matched[rank])) as u64;
        let uncached = uncached.max(1);
        self.tokens_of.insert(arrival.id, uncached);
        self.tokens[rank] += uncached;
        rank
    }

    /// The load is released at the start of the stream, as by default.
    fn on_first_token(&mut self, id: u64, rank: usize) {
        self.tokens[rank] -= self.tokens_of.remove(&id).unwrap_or(0);
    }
}
