//! The SGLang model gateway (sgl-router, SMG).
//!
//! After lightseekorg/smg 73da68ca (2026-08-07), `model_gateway/src/policies`.

use super::approximate_index::ApproximateIndex;
use super::one_by_one::Rule;
use super::python_random::PythonRandom;
use super::ties::{first_least, first_most};
use crate::dispatch::{Arrival, RankView};

/// `load_check_interval_secs`, the default.
const LOAD_CHECK_S: f64 = 10.0;

/// `cache_aware.rs`: the least open requests when these are far apart, otherwise the best match of the approximate prefix tree
/// if it is over half of the prompt. Its KV triggers are off by default (a usage or a spread over 1) and are not there.
#[derive(Debug, Clone)]
pub struct CacheAware {
    index: ApproximateIndex,
    processed: Vec<u64>,
    /// `[ranks]`: scratch.
    matched: Vec<usize>,
}

impl CacheAware {
    const ABSOLUTE_GAP: i64 = 32;
    const RELATIVE_GAP: f64 = 1.1;
    const MATCH: f64 = 0.5;
    /// Blocks per rank of the approximate tree.
    const BLOCKS: usize = 10_000;

    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        let index = ApproximateIndex::new(ranks, Self::BLOCKS);
        Self { index, processed: vec![0; ranks.into()], matched: vec![0; ranks.into()] }
    }

    fn best_match(&mut self, arrival: &Arrival) -> Option<usize> {
        for (rank, matched) in self.matched.iter_mut().enumerate() {
            *matched = self.index.matched(arrival, rank);
        }
        let best = first_most(0..self.matched.len(), |rank| self.matched[rank]);
        let part = self.matched[best] as f64 / arrival.blocks.len() as f64;
        (part > Self::MATCH).then_some(best)
    }
}

impl Rule for CacheAware {
    const NAME: &'static str = "SMG cache_aware";
    /// What it reads of the engines is off by default.
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let least = first_least(0..inflight.len(), |rank| (inflight[rank], self.processed[rank]));
        let fewest = inflight[least];
        let most = *inflight.iter().max().expect("a unit has ranks");
        let far_apart =
            most - fewest > Self::ABSOLUTE_GAP && most as f64 > Self::RELATIVE_GAP * fewest as f64;
        let affine = if far_apart || arrival.blocks.is_empty() { None } else { self.best_match(arrival) };
        let rank = affine.unwrap_or(least);
        self.index.insert(arrival, rank);
        self.processed[rank] += 1;
        rank
    }
}

/// `power_of_two.rs`: of two random ranks the one with the lower KV usage.
#[derive(Debug, Clone)]
pub struct PowerOfTwo {
    random: PythonRandom,
    kv: Vec<f64>,
}

impl PowerOfTwo {
    /// Over `ranks` ranks, drawing from `seed`.
    pub fn new(ranks: u16, seed: u64) -> Self {
        Self { random: PythonRandom::new(seed), kv: vec![0.0; ranks.into()] }
    }
}

impl Rule for PowerOfTwo {
    const NAME: &'static str = "SMG power_of_two";
    const REPORT_INTERVAL_S: f64 = LOAD_CHECK_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.kv.clear();
        self.kv.extend(ranks.iter().map(RankView::kv_usage));
    }

    fn pick(&mut self, _: &Arrival, inflight: &[i64]) -> usize {
        if inflight.len() == 1 {
            return 0;
        }
        let (one, other) = self.random.two_below(inflight.len() as u32);
        if self.kv[one] <= self.kv[other] { one } else { other }
    }
}

/// `least_load.rs`: time to drain the uncached prompt tokens, and a penalty `0.15 k / (1 - k)` for the KV usage `k`.
#[derive(Debug, Clone)]
pub struct LeastLoad {
    ranks: Vec<Drain>,
}

#[derive(Debug, Clone, Default)]
struct Drain {
    waiting_uncached: u64,
    sent: u64,
    tokens_per_s: f64,
    penalty: f64,
}

impl LeastLoad {
    const KV_WEIGHT: f64 = 0.15;
    /// Of a rank that does not tell its throughput.
    const TOKENS_PER_S: f64 = 2000.0;
    /// A full KV would divide by zero.
    const MOST_KV: f64 = 0.999;

    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        let unknown = Drain { tokens_per_s: Self::TOKENS_PER_S, ..Drain::default() };
        Self { ranks: vec![unknown; ranks.into()] }
    }

    fn drain(rank: &RankView) -> Drain {
        let kv = rank.kv_usage().min(Self::MOST_KV);
        Drain {
            waiting_uncached: rank.waiting_uncached,
            sent: 0,
            tokens_per_s: if rank.generated_per_s == 0.0 { Self::TOKENS_PER_S } else { rank.generated_per_s },
            penalty: Self::KV_WEIGHT * kv / (1.0 - kv),
        }
    }
}

impl Rule for LeastLoad {
    const NAME: &'static str = "SMG least_load";
    const REPORT_INTERVAL_S: f64 = LOAD_CHECK_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.ranks.clear();
        self.ranks.extend(ranks.iter().map(Self::drain));
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let score = |rank: usize| {
            let rank = &self.ranks[rank];
            (rank.waiting_uncached + rank.sent) as f64 / rank.tokens_per_s + rank.penalty
        };
        let rank = first_least(0..inflight.len(), score);
        self.ranks[rank].sent += arrival.prompt_tokens;
        rank
    }
}

/// `dp_min_token.rs` and `worker/monitor.rs`: fewest used tokens of a worker's ranks. The gateway estimates a request's tokens
/// over HTTP as 1.3 times its words; here it knows them.
#[derive(Debug, Clone)]
pub struct DpMinToken {
    tokens: Vec<u64>,
}

impl DpMinToken {
    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self { tokens: vec![0; ranks.into()] }
    }
}

impl Rule for DpMinToken {
    const NAME: &'static str = "SMG dp_min_token";
    const REPORT_INTERVAL_S: f64 = LOAD_CHECK_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.tokens.clear();
        self.tokens.extend(ranks.iter().map(|rank| rank.used_tokens));
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let rank = first_least(0..inflight.len(), |rank| self.tokens[rank]);
        self.tokens[rank] += arrival.prompt_tokens;
        rank
    }
}
