//! SGLang's data-parallel controller.
//!
//! After the sglang 0.5.23 wheel (2026-10-30), `srt/managers/data_parallel_controller.py` and `load_snapshot.py`. A snapshot
//! overwrites the local counters; it is read at most every 20 ms, and an engine publishes every 15 decode iterations, at once
//! after a prefill or when idle. Each dispatch adds itself until then.

use super::one_by_one::Rule;
use super::ties::first_least;
use crate::dispatch::{Arrival, RankView};

const SNAPSHOT_S: f64 = 0.02;

/// `round_robin`: the default without disaggregation and of a decode unit.
#[derive(Debug, Clone, Default)]
pub struct RoundRobin {
    sent: usize,
}

impl Rule for RoundRobin {
    const NAME: &'static str = "SGLang round_robin";
    /// It reads none.
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn pick(&mut self, _: &Arrival, inflight: &[i64]) -> usize {
        let rank = self.sent % inflight.len();
        self.sent += 1;
        rank
    }
}

/// `follow_bootstrap_room`: the default of a prefill unit.
#[derive(Debug, Clone, Default)]
pub struct FollowBootstrapRoom;

impl Rule for FollowBootstrapRoom {
    const NAME: &'static str = "SGLang follow_bootstrap_room";
    /// It reads none.
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        (arrival.room.unwrap_or(arrival.id) % inflight.len() as u64) as usize
    }
}

/// `total_requests`, once `shortest_queue`.
#[derive(Debug, Clone)]
pub struct TotalRequests {
    requests: Vec<u64>,
}

impl TotalRequests {
    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self { requests: vec![0; ranks.into()] }
    }
}

impl Rule for TotalRequests {
    const NAME: &'static str = "SGLang total_requests";
    const REPORT_INTERVAL_S: f64 = SNAPSHOT_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.requests.clear();
        self.requests.extend(ranks.iter().map(requests));
    }

    fn pick(&mut self, _: &Arrival, inflight: &[i64]) -> usize {
        let rank = first_least(0..inflight.len(), |rank| self.requests[rank]);
        self.requests[rank] += 1;
        rank
    }
}

/// `total_tokens`, once `minimum_tokens`: whole prompts, whatever of them is cached.
#[derive(Debug, Clone)]
pub struct TotalTokens {
    /// `[ranks]`: tokens and requests.
    load: Vec<(u64, u64)>,
}

impl TotalTokens {
    /// Over `ranks` ranks.
    pub fn new(ranks: u16) -> Self {
        Self { load: vec![(0, 0); ranks.into()] }
    }
}

impl Rule for TotalTokens {
    const NAME: &'static str = "SGLang total_tokens";
    const REPORT_INTERVAL_S: f64 = SNAPSHOT_S;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.load.clear();
        self.load.extend(ranks.iter().map(|rank| (rank.used_tokens + rank.queued_tokens, requests(rank))));
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let rank = first_least(0..inflight.len(), |rank| self.load[rank]);
        let (tokens, requests) = &mut self.load[rank];
        *tokens += arrival.prompt_tokens;
        *requests += 1;
        rank
    }
}

fn requests(rank: &RankView) -> u64 {
    u64::from(rank.running) + u64::from(rank.waiting)
}
