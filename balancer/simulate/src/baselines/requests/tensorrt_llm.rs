//! TensorRT-LLM's routers of attention data parallelism, which run inside the engine at every iteration.
//!
//! After NVIDIA/TensorRT-LLM 02385f29, `tensorrt_llm/_torch/pyexecutor/scheduler/adp_router.py`. The ranks gather each other's
//! active requests and prompt tokens, so what they know is fresh.

use super::python_random::PythonRandom;
use super::ties::first_least;
use crate::dispatch::{Arrival, BLOCK_TOKENS, CachedBlocks, DispatchPolicy, Dispatched, RankView};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Reports come before each iteration.
const EVERY_ITERATION_S: f64 = 0.0;

/// `DefaultADPRouter`: forced ranks first, then the longest prompt to the rank with the fewest prompt tokens, none over its even
/// share of requests. What requests generate and what of them is cached does not count.
#[derive(Debug, Clone)]
pub struct DefaultAdp {
    most_active: i64,
    inflight: Vec<i64>,
    /// `[ranks]`: prompt tokens of open requests.
    tokens: Vec<u64>,
    tokens_of: HashMap<u64, u64>,
    /// No rank had room for them; in the order of their arrival.
    held: Vec<Arrival>,
}

impl DefaultAdp {
    /// Over `ranks` ranks, at least one, each with at most `most_active` open requests; by default there is no such bound.
    pub fn new(ranks: u16, most_active: Option<u32>) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self {
            most_active: most_active.map_or(i64::MAX, i64::from),
            inflight: vec![0; ranks.into()],
            tokens: vec![0; ranks.into()],
            tokens_of: HashMap::new(),
            held: Vec::new(),
        }
    }

    /// Counts the requests whose forced rank has room.
    fn obey(&mut self, arrivals: &[Arrival], rank_of: &mut [Option<usize>]) {
        for (arrival, rank) in arrivals.iter().zip(rank_of) {
            let forced = arrival.pin.map(usize::from);
            *rank = forced.filter(|&rank| self.inflight[rank] < self.most_active);
            if let Some(rank) = *rank {
                self.inflight[rank] += 1;
            }
        }
    }

    /// Counts the others, longest first, as far as there is room. Tokens of this iteration's forced requests do not sway them.
    fn level(&mut self, arrivals: &[Arrival], rank_of: &mut [Option<usize>]) {
        let mut rest: Vec<usize> = (0..arrivals.len()).filter(|&at| rank_of[at].is_none()).collect();
        rest.sort_by_key(|&at| Reverse(arrivals[at].prompt_tokens));
        let most = *self.inflight.iter().max().expect("a unit has ranks");
        let share = even_share(&self.inflight, rest.len()).max(most).min(self.most_active);
        let open = self.inflight.iter().zip(&self.tokens).enumerate();
        let open = open.filter(|(_, (requests, _))| **requests < share);
        let mut lightest: BinaryHeap<Reverse<(u64, i64, usize)>> =
            open.map(|(rank, (requests, tokens))| Reverse((*tokens, *requests, rank))).collect();
        for at in rest {
            let Some(Reverse((tokens, requests, rank))) = lightest.pop() else { return };
            rank_of[at] = Some(rank);
            self.inflight[rank] += 1;
            if requests + 1 < share {
                lightest.push(Reverse((tokens + arrivals[at].prompt_tokens, requests + 1, rank)));
            }
        }
    }
}

/// Requests of a rank, rounded up, if all had as many.
fn even_share(inflight: &[i64], more: usize) -> i64 {
    let all = inflight.iter().sum::<i64>() + more as i64;
    let ranks = inflight.len() as i64;
    all.div_euclid(ranks) + i64::from(all.rem_euclid(ranks) > 0)
}

impl DispatchPolicy for DefaultAdp {
    fn name(&self) -> &'static str {
        "TensorRT-LLM default ADP"
    }

    fn report_interval_s(&self) -> f64 {
        EVERY_ITERATION_S
    }

    fn on_reports(&mut self, _: &[RankView]) {}

    fn assign(&mut self, arrivals: &[Arrival], _now_s: f64) -> Vec<Dispatched> {
        let mut waiting = std::mem::take(&mut self.held);
        waiting.extend_from_slice(arrivals);
        let mut rank_of = vec![None; waiting.len()];
        self.obey(&waiting, &mut rank_of);
        self.level(&waiting, &mut rank_of);
        let mut dispatched = Vec::with_capacity(waiting.len());
        for (arrival, rank) in waiting.into_iter().zip(rank_of) {
            let Some(rank) = rank else {
                self.held.push(arrival);
                continue;
            };
            self.tokens[rank] += arrival.prompt_tokens;
            self.tokens_of.insert(arrival.id, arrival.prompt_tokens);
            dispatched.push(Dispatched { id: arrival.id, rank: rank as u16 });
        }
        dispatched
    }

    fn on_first_token(&mut self, _id: u64, _rank: u16) {}

    fn on_finish(&mut self, id: u64, rank: u16) {
        self.inflight[usize::from(rank)] -= 1;
        self.tokens[usize::from(rank)] -= self.tokens_of.remove(&id).unwrap_or(0);
    }
}

/// `KVCacheAwareADPRouter`: least uncached tokens plus the prompt weighted by the rank's part of all tokens. A match counts from
/// over a tenth of the prompt. Requests are grouped by their first block, longer ones first; no rank goes over twice its even
/// share of requests. Equals are drawn by lot from the request's name.
#[derive(Debug, Clone)]
pub struct KvAwareAdp {
    inflight: Vec<i64>,
    /// `[ranks]`: tokens of open requests, as far as they were not cached.
    tokens: Vec<u64>,
    tokens_of: HashMap<u64, u64>,
    cached: Vec<CachedBlocks>,
    /// Ranks under their share, ascending.
    open: Vec<usize>,
    /// Of `open`: scratch.
    matched: Vec<u64>,
}

impl KvAwareAdp {
    const LOAD_WEIGHT: f64 = 1.0;
    const MATCH: f64 = 0.1;
    const SHARES: i64 = 2;

    /// Over `ranks` ranks, at least one.
    pub fn new(ranks: u16) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self {
            inflight: vec![0; ranks.into()],
            tokens: vec![0; ranks.into()],
            tokens_of: HashMap::new(),
            cached: vec![CachedBlocks::default(); ranks.into()],
            open: Vec::new(),
            matched: Vec::new(),
        }
    }

    fn put(&mut self, id: u64, rank: usize, tokens: u64) -> Dispatched {
        self.inflight[rank] += 1;
        self.tokens[rank] += tokens;
        self.tokens_of.insert(id, tokens);
        Dispatched { id, rank: rank as u16 }
    }

    /// The open rank of the least score, and the request's cached tokens there.
    fn pick(&mut self, arrival: &Arrival) -> (usize, u64) {
        let prompt = arrival.prompt_tokens;
        self.matched.clear();
        self.matched.extend(
            self.open
                .iter()
                .map(|&rank| (self.cached[rank].matched(&arrival.blocks) as u64 * BLOCK_TOKENS).min(prompt)),
        );
        let longest = self.matched.iter().copied().max().expect("some rank is under its share");
        let heeded = longest as f64 / prompt.max(1) as f64 > Self::MATCH;
        let all: u64 = self.open.iter().map(|&rank| self.tokens[rank]).sum();
        let all = (all as f64).max(prompt as f64).max(1.0);
        let score = |place: usize| {
            let tokens = self.tokens[self.open[place]];
            let matched = if heeded { self.matched[place] } else { 0 };
            let load = Self::LOAD_WEIGHT * tokens as f64 / all * prompt as f64;
            ((prompt - matched) as f64 + load, tokens)
        };
        let mut place = first_least(0..self.open.len(), score);
        let least = score(place);
        if (place + 1..self.open.len()).any(|other| score(other) == least) {
            let mut order: Vec<usize> = (0..self.open.len()).collect();
            PythonRandom::new(arrival.id).shuffle(&mut order);
            place = order.into_iter().find(|&place| score(place) == least).expect("one has it");
        }
        (self.open[place], self.matched[place])
    }
}

impl DispatchPolicy for KvAwareAdp {
    fn name(&self) -> &'static str {
        "TensorRT-LLM KV-aware ADP"
    }

    fn report_interval_s(&self) -> f64 {
        EVERY_ITERATION_S
    }

    fn on_reports(&mut self, ranks: &[RankView]) {
        assert_eq!(ranks.len(), self.inflight.len(), "one report per rank");
        self.cached.clear();
        self.cached.extend(ranks.iter().map(|rank| rank.cached.clone()));
    }

    fn assign(&mut self, arrivals: &[Arrival], _now_s: f64) -> Vec<Dispatched> {
        let most = *self.inflight.iter().max().expect("a unit has ranks");
        let share = (Self::SHARES * even_share(&self.inflight, arrivals.len())).max(most);
        self.open.clear();
        self.open.extend((0..self.inflight.len()).filter(|&rank| self.inflight[rank] < share));
        let mut dispatched = Vec::with_capacity(arrivals.len());
        for arrival in arrivals {
            if let Some(rank) = arrival.pin {
                dispatched.push(self.put(arrival.id, rank.into(), arrival.prompt_tokens));
            }
        }
        let mut rest: Vec<&Arrival> = arrivals.iter().filter(|arrival| arrival.pin.is_none()).collect();
        rest.sort_by_key(|arrival| (arrival.blocks.first().copied(), Reverse(arrival.prompt_tokens)));
        for arrival in rest {
            let (rank, matched) = self.pick(arrival);
            dispatched.push(self.put(arrival.id, rank, arrival.prompt_tokens - matched));
            if self.inflight[rank] >= share {
                self.open.retain(|&open| open != rank);
            }
        }
        dispatched
    }

    fn on_first_token(&mut self, _id: u64, _rank: u16) {}

    fn on_finish(&mut self, id: u64, rank: u16) {
        self.inflight[usize::from(rank)] -= 1;
        self.tokens[usize::from(rank)] -= self.tokens_of.remove(&id).unwrap_or(0);
    }
}
