//! vLLM's router, its policy `smetric`.
//!
//! After vllm-project/router 8bef7312 (main; not in the command line of 0.1.17), `src/policies/smetric.rs`. It weighs prefill
//! work, less the prefix that its own tree says is cached: `n + 1e-4 n (L - n/2)` for `n` of `L` tokens (characters there) that
//! are not. A later turn of a session sticks to the longest history if that is over half of the prompt. A throughput, and with it
//! the TTFT objective, is not configured by default.

use super::approximate_index::ApproximateIndex;
use super::one_by_one::Rule;
use super::ties::{first_least, first_most};
use crate::dispatch::{Arrival, BLOCK_TOKENS};
use std::collections::HashMap;

/// The TTFT objective of a deployment that knows its throughput.
#[derive(Debug, Clone, Copy)]
pub struct TtftObjective {
    /// Cost that a rank works off a second.
    pub rate: f64,
}

impl TtftObjective {
    const BASE_S: f64 = 2.0;
    const PER_TOKEN_S: f64 = 1e-3;

    fn is_met(self, queued: f64, prompt_tokens: u64) -> bool {
        queued / self.rate <= Self::BASE_S + Self::PER_TOKEN_S * prompt_tokens as f64
    }
}

/// `smetric`.
#[derive(Debug, Clone)]
pub struct SMetric {
    index: ApproximateIndex,
    objective: Option<TtftObjective>,
    /// The ranks decode too: queued work counts as many times as there are open requests.
    colocated: bool,
    /// `[ranks]`: cost of what was sent and has no first token yet.
    pending: Vec<f64>,
    cost_of: HashMap<u64, f64>,
    sent: usize,
    /// `[ranks]`: scratch.
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Candidate {
    hit: u64,
    cost: f64,
    queued: f64,
}

impl SMetric {
    const LINEAR: f64 = 1.0;
    const ATTENTION: f64 = 1e-4;
    const HIT: f64 = 0.5;
    /// Blocks per rank of the router's tree: more than any replay sends.
    const BLOCKS: usize = 1 << 20;

    /// Over `ranks` ranks.
    pub fn new(ranks: u16, objective: Option<TtftObjective>, colocated: bool) -> Self {
        Self {
            index: ApproximateIndex::new(ranks, Self::BLOCKS),
            objective,
            colocated,
            pending: vec![0.0; ranks.into()],
            cost_of: HashMap::new(),
            sent: 0,
            candidates: vec![Candidate::default(); ranks.into()],
        }
    }

    fn candidate(&self, arrival: &Arrival, rank: usize) -> Candidate {
        let prompt = arrival.prompt_tokens;
        let hit = (self.index.matched(arrival, rank) as u64 * BLOCK_TOKENS).min(prompt - 1);
        let new = (prompt - hit) as f64;
        let cost = Self::LINEAR * new + Self::ATTENTION * new * (prompt as f64 - new / 2.0);
        Candidate { hit, cost, queued: self.pending[rank] + cost }
    }

    fn meets_objective(&self, arrival: &Arrival, rank: usize) -> bool {
        let queued = self.candidates[rank].queued;
        self.objective.is_none_or(|objective| objective.is_met(queued, arrival.prompt_tokens))
    }

    /// The rank with the longest history, if the request should stick to it.
    fn sticky(&self, arrival: &Arrival, longest: usize) -> bool {
        let all = 0..self.candidates.len();
        arrival.turn > 0
            && self.candidates[longest].hit as f64 > Self::HIT * arrival.prompt_tokens as f64
            && (self.meets_objective(arrival, longest)
                || !all.into_iter().any(|rank| self.meets_objective(arrival, rank)))
    }
}

impl Rule for SMetric {
    const NAME: &'static str = "vLLM router smetric";
    /// It reads none.
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let ranks = inflight.len();
        for rank in 0..ranks {
            self.candidates[rank] = self.candidate(arrival, rank);
        }
        // Equals are scanned from one rank further each time.
        self.sent += 1;
        let start = self.sent % ranks;
        let order = || (start..ranks).chain(0..start);
        let longest = first_most(order(), |rank| self.candidates[rank].hit);
        let rank = if self.sticky(arrival, longest) {
            longest
        } else {
            let batch = |rank: usize| if self.colocated { inflight[rank] as f64 } else { 1.0 };
            first_least(order(), |rank| self.candidates[rank].queued * batch(rank))
        };
        self.index.insert(arrival, rank);
        let cost = self.candidates[rank].cost;
        self.pending[rank] += cost;
        self.cost_of.insert(arrival.id, cost);
        rank
    }

    fn on_first_token(&mut self, id: u64, rank: usize) {
        self.pending[rank] -= self.cost_of.remove(&id).unwrap_or(0.0);
    }
}
