//! How vLLM-Ascend evens the KV of ranks without migration: it pauses and resumes requests within each rank, whose KV stays.
//!
//! After vllm-project/vllm-ascend pull request 12292 (merged 2026-07), `DyntraLBDPEngineCoreProc._balance_load`.

use super::ties::{first_least, first_most};

/// A rank's requests by their KV blocks, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RankRequests {
    /// They decode.
    pub running: Vec<u64>,
    /// Paused or not begun.
    pub waiting: Vec<u64>,
}

impl RankRequests {
    fn blocks(&self) -> u64 {
        self.running.iter().sum()
    }
}

/// What an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The plan ends when the fullest rank has less than so many blocks over the mean; under 1, than this part of its own.
    pub threshold: f64,
    /// Rounds of swaps.
    pub rounds: usize,
    /// Waiting requests fill up each rank to so many first.
    pub most_running: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { threshold: 5.0, rounds: 1000, most_running: None }
    }
}

/// One step's plan. A round resumes a longer request in place of a shorter one where the KV is least, then a shorter one in place of
/// a longer one where it is most; if neither helps, the fullest rank pauses the request whose absence raises the throughput, requests
/// over `20000 + 19.2 x` (most blocks). Equal swaps: the one of the fewest blocks; the reference takes them as its sets are ordered.
pub fn balance(ranks: &[RankRequests], options: Options) -> Vec<RankRequests> {
    let mut plan = Plan { ranks: ranks.to_vec(), options };
    plan.fill();
    for _ in 0..options.rounds {
        if plan.is_even() {
            break;
        }
        let emptiest = first_least(0..ranks.len(), |rank| plan.ranks[rank].blocks());
        let raised = plan.swap(emptiest, |running, waiting| waiting > running);
        if raised && plan.is_even() {
            break;
        }
        let fullest = first_most(0..ranks.len(), |rank| plan.ranks[rank].blocks());
        let lowered = plan.swap(fullest, |running, waiting| waiting < running);
        if !raised && !lowered && !plan.pause(fullest) {
            break;
        }
    }
    plan.ranks
}

struct Plan {
    ranks: Vec<RankRequests>,
    options: Options,
}

impl Plan {
    fn fill(&mut self) {
        let most = self.options.most_running.unwrap_or(0);
        for RankRequests { running, waiting } in &mut self.ranks {
            let room = most.saturating_sub(running.len()).min(waiting.len());
            running.extend(waiting.drain(..room));
        }
    }

    fn mean(&self) -> f64 {
        self.ranks.iter().map(RankRequests::blocks).sum::<u64>() as f64 / self.ranks.len() as f64
    }

    fn is_even(&self) -> bool {
        let most = self.ranks.iter().map(RankRequests::blocks).max().unwrap_or(0) as f64;
        let over = most - self.mean();
        let over = match self.options.threshold < 1.0 {
            true if most == 0.0 => 0.0,
            true => over / most,
            false => over,
        };
        over < self.options.threshold
    }

    /// Swaps the two requests of the rank that bring it closest to the mean, among the pairs that `allowed` names; `false` if none
    /// brings it closer.
    fn swap(&mut self, rank: usize, allowed: impl Fn(u64, u64) -> bool) -> bool {
        let (ranks, mean) = (self.ranks.len() as f64, self.mean());
        let RankRequests { running, waiting } = &mut self.ranks[rank];
        let blocks = running.iter().sum::<u64>() as f64;
        let mut closest = (blocks - mean).abs();
        let mut best = None;
        let (resumable, pausable) = (unique(waiting), unique(running));
        for &pause in &pausable {
            for &resume in resumable.iter().filter(|&&resume| allowed(pause, resume)) {
                let change = resume as f64 - pause as f64;
                let apart = (blocks + change - (mean + change / ranks)).abs();
                if apart < closest {
                    (best, closest) = (Some((pause, resume)), apart);
                }
            }
        }
        let Some((pause, resume)) = best else { return false };
        take(running, pause);
        take(waiting, resume);
        running.push(resume);
        waiting.push(pause);
        true
    }

    /// Pauses the request of the rank whose absence raises the throughput most; `false` if none does.
    fn pause(&mut self, rank: usize) -> bool {
        let requests: usize = self.ranks.iter().map(|rank| rank.running.len()).sum();
        let others = self.ranks.iter().enumerate().filter(|&(other, _)| other != rank);
        let others = others.map(|(_, rank)| rank.blocks()).max().unwrap_or(0);
        let RankRequests { running, waiting } = &mut self.ranks[rank];
        let blocks = running.iter().sum::<u64>();
        if running.is_empty() || requests <= 1 {
            return false;
        }
        let without = |request: u64| throughput(requests - 1, (blocks - request).max(others));
        let paused = first_most(running.iter().copied(), without);
        if without(paused) <= throughput(requests, blocks) {
            return false;
        }
        take(running, paused);
        waiting.push(paused);
        true
    }
}

fn throughput(requests: usize, most_blocks: u64) -> f64 {
    requests as f64 / (20_000.0 + 19.2 * most_blocks as f64)
}

fn unique(blocks: &[u64]) -> Vec<u64> {
    let mut unique = blocks.to_vec();
    unique.sort_unstable();
    unique.dedup();
    unique
}

/// Takes the first request of so many blocks out.
fn take(requests: &mut Vec<u64>, blocks: u64) {
    let place = requests.iter().position(|&own| own == blocks).expect("it was found there");
    requests.remove(place);
}
