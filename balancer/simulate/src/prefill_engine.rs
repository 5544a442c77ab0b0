//! A prefill unit: ranks in lockstep rounds with a token budget each. Modelled.

use crate::cost::PrefillCost;
use crate::policy::{Batch, EngineModel, SimulationError};
use crate::prefix_cache::PrefixCache;
use crate::replicate::{Replicated, blocks_of_copy};
use crate::trace::TraceRequest;
use evenkeel_core::prefill::{Imbalance, Work};
use evenkeel_core::routing::{Decision, RequestId, RoutingEvent};
use evenkeel_core::units::{Millis, Tokens};
use std::collections::{HashMap, VecDeque};
use std::iter::Peekable;
use std::sync::Arc;

/// How often an idle unit with held prompts asks again, ms.
const IDLE_POLL_MS: f64 = 100.0;

/// A prefill unit and how long it is watched.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefillUnit {
    /// Ranks.
    pub ranks: u16,
    /// New tokens that a rank runs in one round at most; what is left of a prompt comes first in the next.
    pub round_tokens: u64,
    /// Time of the work on one rank.
    pub cost: PrefillCost,
    /// Blocks of the shared prefix cache.
    pub cache_blocks: usize,
    /// Rounds that begin before this time are not measured: the unit starts empty.
    pub warm_up_ms: u64,
    /// Virtual end.
    pub end_ms: u64,
}

/// Figures of the measured rounds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PrefillFigures {
    /// Rounds measured.
    pub rounds: u64,
    /// New tokens of these rounds.
    pub tokens: u64,
    /// Max over mean of the ranks' new tokens, mean over rounds.
    pub tokens_imbalance: f64,
    /// Max over mean of the ranks' attention pairs, mean over rounds.
    pub attention_imbalance: f64,
    /// Max over max(mean, largest chunk) of the ranks' attention pairs, mean over rounds.
    pub attention_over_bound: f64,
    /// Time of the rounds by what they would take with perfect balance: at least 1.
    pub time_over_ideal: f64,
    /// Modelled time of the rounds by their tokens, microseconds.
    pub us_per_token: f64,
    /// Prompts that ended.
    pub prompts: u64,
    /// Of these, arrival to last prompt token, ms: mean and 99th percentile.
    pub wait_mean_ms: f64,
    /// See `wait_mean_ms`.
    pub wait_p99_ms: f64,
    /// Prompts that were there and not done when the figures were taken.
    pub unfinished: u64,
}

#[derive(Default)]
struct Sums {
    rounds: u64,
    tokens: u64,
    tokens_imbalance: f64,
    attention_imbalance: f64,
    attention_over_bound: f64,
    time_ms: f64,
    ideal_ms: f64,
    waits_ms: Vec<f32>,
}

struct Prompt {
    arrived_ms: f64,
    rank: Option<usize>,
    /// Visible to the next new token.
    context: u64,
    remaining: u64,
    /// Given to the rank and not run.
    allowed: u64,
}

/// The model. Prompts that arrive during a round are seen at its end.
pub struct PrefillEngine {
    unit: PrefillUnit,
    trace: Arc<[TraceRequest]>,
    arrivals: Peekable<Replicated>,
    cache: PrefixCache,
    clock_ms: f64,
    prompts: HashMap<RequestId, Prompt>,
    /// Per rank, what it was given, in order.
    queues: Vec<VecDeque<RequestId>>,
    work_by_rank: Vec<Work>,
    refused: u64,
    sums: Sums,
}

impl PrefillEngine {
    /// An empty unit with an empty cache.
    pub fn new(unit: PrefillUnit, arrivals: Replicated) -> Self {
        let ranks = usize::from(unit.ranks);
        Self {
            cache: PrefixCache::new(unit.cache_blocks),
            unit,
            trace: arrivals.trace().clone(),
            arrivals: arrivals.peekable(),
            clock_ms: 0.0,
            prompts: HashMap::new(),
            queues: vec![VecDeque::new(); ranks],
            work_by_rank: vec![Work::default(); ranks],
            refused: 0,
            sums: Sums::default(),
        }
    }

    /// Virtual time, ms.
    pub fn now(&self) -> Millis {
        Millis(self.clock_ms as u64)
    }

    /// Work of the last round by rank.
    pub fn work_by_rank(&self) -> &[Work] {
        &self.work_by_rank
    }

    /// By rank: prompts that began on it and are not done, and the KV tokens that they hold.
    pub fn backlog_by_rank(&self) -> Vec<(u32, u64)> {
        let mut backlog = vec![(0, 0); self.queues.len()];
        for prompt in self.prompts.values() {
            if let Some(rank) = prompt.rank {
                backlog[rank].0 += 1;
                backlog[rank].1 += prompt.context;
            }
        }
        backlog
    }

    /// Prompts that the policy refused.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// What was measured so far.
    pub fn figures(&self) -> PrefillFigures {
        let sums = &self.sums;
        let rounds = sums.rounds.max(1) as f64;
        let mut waits = sums.waits_ms.clone();
        waits.sort_unstable_by(f32::total_cmp);
        let p99 = waits.get((waits.len().saturating_sub(1)) * 99 / 100).copied().unwrap_or(0.0);
        PrefillFigures {
            rounds: sums.rounds,
            tokens: sums.tokens,
            tokens_imbalance: sums.tokens_imbalance / rounds,
            attention_imbalance: sums.attention_imbalance / rounds,
            attention_over_bound: sums.attention_over_bound / rounds,
            time_over_ideal: if sums.ideal_ms > 0.0 { sums.time_ms / sums.ideal_ms } else { 1.0 },
            us_per_token: 1000.0 * sums.time_ms / sums.tokens.max(1) as f64,
            prompts: waits.len() as u64,
            wait_mean_ms: waits.iter().map(|&w| f64::from(w)).sum::<f64>() / waits.len().max(1) as f64,
            wait_p99_ms: f64::from(p99),
            unfinished: self.prompts.len() as u64,
        }
    }

    /// Runs one round; `None` when no rank has anything to do. Returns the prompts that ended.
    fn run_round(&mut self) -> Option<Vec<RequestId>> {
        self.work_by_rank.fill(Work::default());
        let mut ended = Vec::new();
        let mut largest = Work::default();
        for (queue, work) in self.queues.iter_mut().zip(&mut self.work_by_rank) {
            while let Some(&request) = queue.front()
                && work.tokens < self.unit.round_tokens
            {
                let prompt = self.prompts.get_mut(&request).expect("queued prompts are there");
                let tokens = prompt.allowed.min(self.unit.round_tokens - work.tokens);
                let chunk = Work::of(prompt.context, tokens);
                *work += chunk;
                largest.attention = largest.attention.max(chunk.attention);
                prompt.context += tokens;
                prompt.remaining -= tokens;
                prompt.allowed -= tokens;
                if prompt.remaining == 0 {
                    ended.push(request);
                }
                if prompt.allowed == 0 {
                    queue.pop_front();
                }
            }
        }
        if self.work_by_rank.iter().all(|work| work.tokens == 0) {
            return None;
        }
        self.measure(largest);
        for request in &ended {
            let prompt = self.prompts.remove(request).expect("an ended prompt was there");
            if self.clock_ms >= self.unit.warm_up_ms as f64 {
                self.sums.waits_ms.push((self.clock_ms - prompt.arrived_ms) as f32);
            }
        }
        Some(ended)
    }

    fn measure(&mut self, largest: Work) {
        let works = || self.work_by_rank.iter();
        let times = works().map(|&work| self.unit.cost.time_ms(work));
        let (slowest, sum) = times.fold((0.0f64, 0.0), |(max, sum), t| (max.max(t), sum + t));
        let measured = self.clock_ms >= self.unit.warm_up_ms as f64;
        self.clock_ms += slowest;
        if measured {
            let attention = Imbalance::of(works().map(|w| w.attention as f64), largest.attention as f64);
            let tokens = Imbalance::of(works().map(|w| w.tokens as f64), 0.0);
            let run = works().map(|w| w.tokens).sum::<u64>();
            let sums = &mut self.sums;
            sums.rounds += 1;
            sums.tokens += run;
            sums.tokens_imbalance += tokens.over_mean;
            sums.attention_imbalance += attention.over_mean;
            sums.attention_over_bound += attention.over_bound;
            sums.time_ms += slowest;
            sums.ideal_ms += sum / f64::from(self.unit.ranks);
        }
    }

    fn take_arrivals(&mut self, events: &mut Vec<RoutingEvent>) {
        while let Some(arrival) = self.arrivals.next_if(|a| a.at_ms as f64 <= self.clock_ms) {
            let trace = self.trace.clone();
            let blocks = blocks_of_copy(&trace[arrival.index], arrival.copy);
            let cached = self.cache.admit(blocks, arrival.input_tokens);
            let request = RequestId(arrival.request);
            let remaining = arrival.input_tokens - cached;
            let arrived_ms = arrival.at_ms as f64;
            let prompt = Prompt { arrived_ms, rank: None, context: cached, remaining, allowed: 0 };
            self.prompts.insert(request, prompt);
            events.push(RoutingEvent::arrive(request, Tokens(arrival.input_tokens), Tokens(cached)));
        }
    }

    /// Whether the prompt is here and no rank has any of it.
    fn waiting(&self, request: RequestId) -> Result<(), &'static str> {
        let prompt = self.prompts.get(&request).ok_or("the prompt is not here")?;
        if prompt.rank.is_some() { Err("the prompt is on a rank already") } else { Ok(()) }
    }

    fn give(&mut self, request: RequestId, rank: usize, tokens: Option<u64>) -> Result<(), &'static str> {
        if rank >= self.queues.len() {
            return Err("the unit has no such rank");
        }
        let prompt = self.prompts.get_mut(&request).ok_or("the prompt is not here")?;
        if prompt.rank.is_some_and(|pinned| pinned != rank) {
            return Err("the prompt is on another rank");
        }
        let open = prompt.remaining - prompt.allowed;
        let tokens = tokens.unwrap_or(open);
        if tokens == 0 || tokens > open {
            return Err("the prompt has no such tokens left");
        }
        if prompt.allowed == 0 {
            self.queues[rank].push_back(request);
        }
        prompt.rank = Some(rank);
        prompt.allowed += tokens;
        Ok(())
    }
}

impl EngineModel for PrefillEngine {
    fn advance(&mut self) -> Option<Batch> {
        let mut events = Vec::new();
        match self.run_round() {
            Some(ended) => {
                events.push(RoutingEvent::Steps { count: 1 });
                events.extend(ended.into_iter().map(|request| RoutingEvent::Finish { request }));
            }
            None if self.prompts.is_empty() => {
                let next_ms = self.arrivals.peek()?.at_ms as f64;
                self.clock_ms = self.clock_ms.max(next_ms);
            }
            None => self.clock_ms += IDLE_POLL_MS,
        }
        if self.clock_ms >= self.unit.end_ms as f64 {
            return None;
        }
        self.take_arrivals(&mut events);
        events.push(RoutingEvent::Tick);
        Some(Batch { now: self.now(), events })
    }

    fn dispatch(&mut self, decisions: &[Decision]) -> Result<(), SimulationError> {
        for decision in decisions {
            let request = decision.request();
            let done = match decision {
                Decision::Dispatch { rank, tokens, .. } => {
                    self.give(request, rank.index(), tokens.map(|Tokens(tokens)| tokens))
                }
                Decision::Hold { .. } => self.waiting(request),
                Decision::Refuse { .. } => self.waiting(request).map(|()| {
                    self.prompts.remove(&request);
                    self.refused += 1;
                }),
                Decision::Migrate { .. } | Decision::Lost { .. } => {
                    Err("the engine moves and loses no prompts")
                }
            };
            let now = self.clock_ms as u64;
            done.map_err(|reason| SimulationError::Decision { now, request: request.0, reason })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "prefill_engine_tests.rs"]
mod tests;
