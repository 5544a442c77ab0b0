//! vLLM's data-parallel client, before and since 0.33.
//!
//! A coordinator broadcasts the ranks' counts every 100 ms. They replace the client's wholesale, and what it added since is lost.

use super::one_by_one::Rule;
use super::ties::first_least;
use crate::dispatch::{Arrival, RankView};

const BROADCAST_S: f64 = 0.1;
/// API servers that dispatch side by side, the default: each counts its own dispatches as many times.
const CLIENTS: i64 = 1;

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    waiting: i64,
    running: i64,
    kv: f64,
}

fn read(ranks: &[RankView], counts: &mut Vec<Counts>) {
    let count = |rank: &RankView| Counts {
        waiting: rank.waiting.into(),
        running: rank.running.into(),
        kv: rank.kv_usage(),
    };
    counts.clear();
    counts.extend(ranks.iter().map(count));
}

/// `waiting * 4 + running`: `DPLBAsyncMPClient` up to vllm-project/vllm pull request 49204 (merged 2026-07).
#[derive(Debug, Clone)]
pub struct WaitingTimesFour {
    counts: Vec<Counts>,
}

impl WaitingTimesFour {
    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self { counts: vec![Counts::default(); ranks.into()] }
    }
}

impl Rule for WaitingTimesFour {
    const NAME: &'static str = "vLLM before 0.33";
    const REPORT_INTERVAL_S: f64 = BROADCAST_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        read(ranks, &mut self.counts);
    }

    fn pick(&mut self, _: &Arrival, inflight: &[i64]) -> usize {
        let score = |rank: usize| self.counts[rank].waiting * 4 + self.counts[rank].running;
        let rank = first_least(0..inflight.len(), score);
        self.counts[rank].waiting += CLIENTS;
        rank
    }
}

/// `get_core_engine_for_request` of vllm 0.33.0 (g4ba787ec9, 2026-11-01), `v1/engine/core_client.py`: own open requests or the
/// reported ones, whichever are more, and waiting ones weigh more where the KV fills up. The scan of equals starts one further
/// each time.
#[derive(Debug, Clone)]
pub struct InflightOrReported {
    counts: Vec<Counts>,
    start: usize,
}

impl InflightOrReported {
    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self { counts: vec![Counts::default(); ranks.into()], start: 0 }
    }
}

impl Rule for InflightOrReported {
    const NAME: &'static str = "vLLM 0.33";
    const REPORT_INTERVAL_S: f64 = BROADCAST_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        read(ranks, &mut self.counts);
    }

    fn pick(&mut self, _: &Arrival, inflight: &[i64]) -> usize {
        let score = |rank: usize| {
            let Counts { waiting, running, kv } = self.counts[rank];
            let requests = (CLIENTS * inflight[rank]).max(waiting + running);
            requests as f64 + waiting as f64 * 6.0 * (kv - 0.5).max(0.0)
        };
        let rank = first_least((self.start..inflight.len()).chain(0..self.start), score);
        self.counts[rank].waiting += CLIENTS;
        self.start = (self.start + 1) % inflight.len();
        rank
    }
}
