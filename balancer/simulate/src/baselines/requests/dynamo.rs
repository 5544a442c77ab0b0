//! NVIDIA Dynamo's KV router.
//!
//! After ai-dynamo/dynamo 07a6c9ce, `lib/kv-router/src/scheduling/selector/{default,mod}.rs` and
//! `sequences/prompt_registry.rs`; defaults of ai_dynamo 1.6.1, `kv_router_args.py`. The least cost wins, equals by lot:
//! prefill blocks on the rank and of the request, less its overlap, and the unique blocks of all live requests there. That is the
//! router's own book-keeping: of the engines it hears KV events only.

use super::active_blocks::{self, ActiveBlocks, Held};
use super::one_by_one::Rule;
use super::python_random::PythonRandom;
use super::ties::{first_least, first_most};
use crate::dispatch::{Arrival, BLOCK_TOKENS, CachedBlocks, DispatchPolicy, Dispatched, RankView};
use std::collections::HashMap;

/// What an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct KvOptions {
    /// Prefill blocks that a cached block saves.
    pub overlap_credit: f64,
    /// How fast the credit fades with the prefill blocks that the rank has more than the least loaded one.
    pub credit_decay: f64,
    /// Weight of the prefill blocks.
    pub prefill_scale: f64,
    /// Blocks that an open request counts for.
    pub request_weight: f64,
    /// Above 0 a softmax of the costs, scaled to their range, is drawn from.
    pub temperature: f64,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            overlap_credit: 1.0,
            credit_decay: 0.0,
            prefill_scale: 1.0,
            request_weight: 0.0,
            temperature: 0.0,
        }
    }
}

/// The default selector.
#[derive(Debug, Clone)]
pub struct Kv {
    options: KvOptions,
    random: PythonRandom,
    cached: Vec<CachedBlocks>,
    /// `[ranks]`: uncached prompt tokens of what was sent and has no first token yet.
    prefilling: Vec<u64>,
    active: ActiveBlocks,
    uncached_of: HashMap<u64, u64>,
    held_by: HashMap<u64, Held>,
    costs: Costs,
}

/// `[ranks]`: scratch.
#[derive(Debug, Clone, Default)]
struct Costs {
    unique: Vec<u64>,
    cost: Vec<f64>,
    least: Vec<usize>,
}

impl Costs {
    /// A rank of the least cost, by lot.
    fn draw(&mut self, random: &mut PythonRandom) -> usize {
        let least = self.cost[first_least(0..self.cost.len(), |rank| self.cost[rank])];
        self.least.clear();
        self.least.extend((0..self.cost.len()).filter(|&rank| self.cost[rank] == least));
        random.choice(&self.least)
    }

    /// A rank with a chance that falls with its cost.
    fn draw_softly(&mut self, random: &mut PythonRandom, temperature: f64) -> usize {
        let least = self.cost[first_least(0..self.cost.len(), |rank| self.cost[rank])];
        let most = self.cost[first_most(0..self.cost.len(), |rank| self.cost[rank])];
        for cost in &mut self.cost {
            *cost =
                if least == most { 1.0 } else { (-(*cost - least) / ((most - least) * temperature)).exp() };
        }
        random.weighted(&mut self.cost)
    }
}

impl Kv {
    /// Over `ranks` ranks, drawing from `seed`.
    pub fn new(ranks: u16, seed: u64, options: KvOptions) -> Self {
        Self {
            options,
            random: PythonRandom::new(seed),
            cached: vec![CachedBlocks::default(); ranks.into()],
            prefilling: vec![0; ranks.into()],
            active: ActiveBlocks::new(ranks),
            uncached_of: HashMap::new(),
            held_by: HashMap::new(),
            costs: Costs::default(),
        }
    }

    fn read(&mut self, ranks: &[RankView]) {
        self.cached.clear();
        self.cached.extend(ranks.iter().map(|rank| rank.cached.clone()));
    }

    fn matched(&self, arrival: &Arrival, rank: usize) -> u64 {
        self.cached[rank].matched(&arrival.blocks) as u64
    }

    /// Prefill blocks if the request went there, less what is cached.
    fn prefill_blocks(&self, arrival: &Arrival, rank: usize, least: u64) -> f64 {
        const BLOCK: f64 = BLOCK_TOKENS as f64;
        let blocks = (self.prefilling[rank] + arrival.prompt_tokens) as f64 / BLOCK;
        if self.options.overlap_credit == 0.0 {
            return blocks;
        }
        let mut fade = 1.0;
        if self.options.credit_decay > 0.0 {
            let behind = (self.prefilling[rank] - least) as f64 / BLOCK;
            let own = arrival.prompt_tokens.div_ceil(BLOCK_TOKENS).max(1) as f64;
            fade = 1.0 / (1.0 + self.options.credit_decay * behind / own);
        }
        (blocks - self.options.overlap_credit * fade * self.matched(arrival, rank) as f64).max(0.0)
    }

    fn choose(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let mut costs = std::mem::take(&mut self.costs);
        self.active.with(arrival, &mut costs.unique);
        let least = *self.prefilling.iter().min().expect("a unit has ranks");
        costs.cost.clear();
        costs.cost.extend((0..inflight.len()).map(|rank| {
            self.options.prefill_scale * self.prefill_blocks(arrival, rank, least)
                + costs.unique[rank] as f64
                + self.options.request_weight * inflight[rank] as f64
        }));
        let rank = if self.options.temperature > 0.0 {
            costs.draw_softly(&mut self.random, self.options.temperature)
        } else {
            costs.draw(&mut self.random)
        };
        self.costs = costs;
        rank
    }

    fn book(&mut self, arrival: &Arrival, rank: usize) {
        let uncached = arrival.prompt_tokens.saturating_sub(self.matched(arrival, rank) * BLOCK_TOKENS);
        self.prefilling[rank] += uncached;
        self.uncached_of.insert(arrival.id, uncached);
        self.held_by.insert(arrival.id, self.active.hold(arrival, rank));
    }

    fn first_token(&mut self, id: u64, rank: usize) {
        self.prefilling[rank] -= self.uncached_of.remove(&id).unwrap_or(0);
    }

    fn finish(&mut self, id: u64, rank: usize) {
        if let Some(held) = self.held_by.remove(&id) {
            self.active.release(&held, rank);
        }
    }
}

impl Rule for Kv {
    const NAME: &'static str = "Dynamo kv";
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.read(ranks);
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let rank = self.choose(arrival, inflight);
        self.book(arrival, rank);
        rank
    }

    fn on_first_token(&mut self, id: u64, rank: usize) {
        self.first_token(id, rank);
    }

    fn on_finish(&mut self, id: u64, rank: usize) {
        self.finish(id, rank);
    }
}

/// The KV router without credit for overlap, as ai-dynamo/dynamo issue 9259 has it for a balance of tokens.
#[derive(Debug, Clone)]
pub struct TokenBalance(Kv);

impl TokenBalance {
    /// Over `ranks` ranks, drawing from `seed`.
    pub fn new(ranks: u16, seed: u64) -> Self {
        Self(Kv::new(ranks, seed, KvOptions { overlap_credit: 0.0, ..KvOptions::default() }))
    }
}

impl Rule for TokenBalance {
    const NAME: &'static str = "Dynamo token balance";
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn on_reports(&mut self, ranks: &[RankView]) {
        self.0.read(ranks);
    }

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        self.0.pick(arrival, inflight)
    }

    fn on_first_token(&mut self, id: u64, rank: usize) {
        self.0.first_token(id, rank);
    }

    fn on_finish(&mut self, id: u64, rank: usize) {
        self.0.finish(id, rank);
    }
}

/// The router of a decode unit: no prefill is tracked and no reuse of KV assumed (ai-dynamo/dynamo issue 6253), so it balances the
/// blocks of live prompts.
#[derive(Debug, Clone)]
pub struct Decode {
    random: PythonRandom,
    request_weight: f64,
    /// `[ranks]`: prompt blocks of live requests.
    blocks: Vec<u64>,
    blocks_of: HashMap<u64, u64>,
    costs: Costs,
}

impl Decode {
    /// Over `ranks` ranks, drawing from `seed`; an open request counts for `request_weight` blocks, by default 0.
    pub fn new(ranks: u16, seed: u64, request_weight: f64) -> Self {
        Self {
            random: PythonRandom::new(seed),
            request_weight,
            blocks: vec![0; ranks.into()],
            blocks_of: HashMap::new(),
            costs: Costs::default(),
        }
    }
}

impl Rule for Decode {
    const NAME: &'static str = "Dynamo decode";
    /// It reads none.
    const REPORT_INTERVAL_S: f64 = 0.1;

    fn pick(&mut self, arrival: &Arrival, inflight: &[i64]) -> usize {
        let own = active_blocks::count(arrival);
        self.costs.cost.clear();
        self.costs.cost.extend(
            (0..inflight.len())
                .map(|rank| (self.blocks[rank] + own) as f64 + self.request_weight * inflight[rank] as f64),
        );
        let rank = self.costs.draw(&mut self.random);
        self.blocks[rank] += own;
        self.blocks_of.insert(arrival.id, own);
        rank
    }

    fn on_finish(&mut self, id: u64, rank: usize) {
        self.blocks[rank] -= self.blocks_of.remove(&id).unwrap_or(0);
    }
}

/// Holds requests until there is one for every rank, and lets them go together: ai-dynamo/dynamo 29b7427a,
/// `queue_admission/rank_balanced.rs`. It counts requests, whatever their size, and waits without end.
#[derive(Debug, Clone)]
pub struct RankCohort {
    ranks: u16,
    held: Vec<u64>,
}

impl RankCohort {
    /// Over `ranks` ranks, at least one.
    pub fn new(ranks: u16) -> Self {
        assert!(ranks > 0, "a unit has ranks");
        Self { ranks, held: Vec::new() }
    }
}

impl DispatchPolicy for RankCohort {
    fn name(&self) -> &'static str {
        "Dynamo rank cohort"
    }

    /// It reads none.
    fn report_interval_s(&self) -> f64 {
        0.1
    }

    fn on_reports(&mut self, _: &[RankView]) {}

    fn assign(&mut self, arrivals: &[Arrival], _now_s: f64) -> Vec<Dispatched> {
        let mut dispatched = Vec::new();
        for &Arrival { id, pin, .. } in arrivals {
            match pin {
                Some(rank) => dispatched.push(Dispatched { id, rank }),
                None => self.held.push(id),
            }
        }
        let whole = self.held.len() - self.held.len() % usize::from(self.ranks);
        let ranks = (0..self.ranks).cycle();
        dispatched.extend(self.held.drain(..whole).zip(ranks).map(|(id, rank)| Dispatched { id, rank }));
        dispatched
    }

    fn on_first_token(&mut self, _id: u64, _rank: u16) {}

    fn on_finish(&mut self, _id: u64, _rank: u16) {}
}
