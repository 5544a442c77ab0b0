//! Decode in lockstep, a barrier each step, for synthetic requests: the same for every policy. Modelled.
//!
//! Requests arrive by the step and not by the clock, so a policy with slower steps gets no other requests. One that is given to
//! a rank joins before its next step with its prompt's KV, gains a token a step and leaves after its last.

mod unit;
mod workload;

mod look_ahead;
mod ours;
mod peer;

pub use look_ahead::LookAhead;
pub use ours::Ours;
pub use peer::Peer;
pub use unit::{RankState, Unit};
pub use workload::{DecodeCase, Request, Workload};

use crate::cost::DecodeCost;

/// Requests of the start that are dispatched at once.
const START_BATCH: usize = 128;

/// KV bytes of a token: 61 layers of 512 + 64 values of 2 bytes (DeepSeek-V3), about 70 KB.
pub const KV_TOKEN_BYTES: u64 = 61 * (512 + 64) * 2;

/// What decides in the simulation. Requests are named by their place in the workload.
pub trait StepPolicy {
    /// Ranks of requests that arrived, and of others that it held before.
    fn place(&mut self, unit: &Unit<'_>, arrived: &[u32], now_s: f64) -> Vec<(u32, usize)>;

    /// A request ran its first step.
    fn first_token(&mut self, _request: u32, _rank: usize) {}

    /// A request ended.
    fn finish(&mut self, _request: u32, _rank: usize) {}

    /// Running requests that go to another rank before the next step.
    fn migrate(&mut self, _unit: &Unit<'_>) -> Vec<Move> {
        Vec::new()
    }
}

/// A running request goes elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The request.
    pub request: u32,
    /// Where it runs.
    pub from: usize,
    /// Where it goes on.
    pub to: usize,
}

/// Means over the measured steps.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepFigures {
    /// Time of all steps over that of the same steps with means in place of maxima.
    pub step: f64,
    /// Max over mean of the ranks' KV tokens.
    pub kv: f64,
    /// Max over mean of the ranks' running requests.
    pub requests: f64,
    /// Running requests a rank.
    pub running: f64,
    /// Requests that wait in the engines of all ranks.
    pub waiting: f64,
    /// Moves a step.
    pub moves: f64,
    /// Bytes moved a step.
    pub moved_bytes: f64,
}

/// Sums over the measured steps.
#[derive(Default)]
struct Sums {
    steps: f64,
    time: f64,
    ideal: f64,
    figures: StepFigures,
}

impl Sums {
    /// One step, before it runs; returns its time in seconds.
    fn step(&mut self, unit: &Unit<'_>, moved: (usize, u64), measured: bool) -> f64 {
        let cost = DecodeCost::default();
        let (mut kv_max, mut kv_sum, mut requests_max, mut requests_sum, mut waiting) = (0, 0, 0, 0, 0);
        for rank in (0..unit.ranks()).map(|rank| unit.rank(rank)) {
            kv_max = kv_max.max(rank.kv());
            kv_sum += rank.kv();
            requests_max = requests_max.max(rank.running().len());
            requests_sum += rank.running().len();
            waiting += rank.waiting();
        }
        let ranks = unit.ranks() as f64;
        let (kv_mean, requests_mean) = (kv_sum as f64 / ranks, requests_sum as f64 / ranks);
        let time = cost.step_ms(kv_max as f64, requests_max as f64);
        if measured && requests_sum > 0 {
            self.steps += 1.0;
            self.time += time;
            self.ideal += cost.step_ms(kv_mean, requests_mean);
            self.figures.kv += kv_max as f64 / kv_mean;
            self.figures.requests += requests_max as f64 / requests_mean;
            self.figures.running += requests_mean;
            self.figures.waiting += waiting as f64;
            self.figures.moves += moved.0 as f64;
            self.figures.moved_bytes += (moved.1 * KV_TOKEN_BYTES) as f64;
        }
        time / 1000.0
    }

    fn figures(&self) -> StepFigures {
        let StepFigures { kv, requests, running, waiting, moves, moved_bytes, .. } = self.figures;
        let mean = |sum: f64| sum / self.steps;
        StepFigures {
            step: self.time / self.ideal,
            kv: mean(kv),
            requests: mean(requests),
            running: mean(running),
            waiting: mean(waiting),
            moves: mean(moves),
            moved_bytes: mean(moved_bytes),
        }
    }
}

/// Runs a workload under a policy. Virtual time advances by the modelled step time.
pub fn run(workload: &Workload, policy: &mut dyn StepPolicy) -> StepFigures {
    let case = workload.case;
    let mut unit = Unit::new(&workload.requests, case.ranks.into(), case.slots, case.kv_capacity);
    let mut sums = Sums::default();
    let mut now_s = 0.0;
    let mut fresh = Vec::new();
    let start: Vec<u32> = (0..workload.started as u32).collect();
    for batch in start.chunks(START_BATCH) {
        place(&mut unit, policy, batch, now_s, &mut fresh);
    }
    let mut next = workload.started as u32;
    for (step, &count) in workload.arrivals.iter().enumerate() {
        let arrived: Vec<u32> = (next..next + count).collect();
        next += count;
        place(&mut unit, policy, &arrived, now_s, &mut fresh);
        let moves = policy.migrate(&unit);
        let moved = moves.iter().map(|m| unit.migrate(m.request, m.from, m.to)).sum();
        now_s += sums.step(&unit, (moves.len(), moved), step >= case.dropped as usize);
        let ended = unit.run();
        for (request, rank) in fresh.drain(..) {
            policy.first_token(request, rank);
        }
        for request in ended {
            policy.finish(request, unit.rank_of(request));
        }
        unit.start_waiting(&mut fresh);
    }
    sums.figures()
}

fn place(
    unit: &mut Unit<'_>,
    policy: &mut dyn StepPolicy,
    arrived: &[u32],
    now_s: f64,
    fresh: &mut Vec<(u32, usize)>,
) {
    for (request, rank) in policy.place(unit, arrived, now_s) {
        if unit.give(request, rank) {
            fresh.push((request, rank));
        }
    }
}

#[cfg(test)]
mod tests;
