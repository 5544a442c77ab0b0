//! What a decision costs: whole batches through the router, on one core.

use crate::figures::Figures;
use crate::goals::{Bound, Goal};
use crate::layout::{new_table, right};
use comfy_table::{Cell, Table};
use evenkeel_core::ids::Rank;
use evenkeel_core::policy::RoutingPolicy;
use evenkeel_core::prefill::Prompt;
use evenkeel_core::routing::{BlockHash, KvChange, RequestId, Router, RoutingEvent};
use evenkeel_core::topology::Role;
use evenkeel_core::units::{Millis, Tokens};
use evenkeel_simulate::dispatch::BLOCK_TOKENS;
use evenkeel_simulate::expert_loads::SplitMix64;
use evenkeel_simulate::prompts::{PromptMix, Prompts};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

pub(crate) const TITLE: &str = "DECISIONS  batches through the router, synthetic, one core. Decode: each batch a step, as many finish as arrive, 128 requests a rank; the best of 5 turns.\nCohorts: the tick that sends all held prompts out, two microbatches a rank; median over 15 of the best of 5. Bytes: of the ledger's tables, allocated, over live requests.";

const OURS: &str = "Evenkeel";
const DECODE_RANKS: u16 = 144;
/// Requests of a decode rank.
const REQUESTS_PER_RANK: u64 = 128;
/// (arrivals of a batch, migrations a step): a step's worth, one at a time, and with moves.
const DECODE: [(u64, u32); 3] = [(18, 0), (1, 0), (18, 1)];
/// Admissions of a turn.
const ADMISSIONS: u64 = 100_000;
const TURNS: usize = 5;
const COHORTS: [Cohort; 4] = [
    Cohort { ranks: 32, prompts: 1024, prefixes: false, ms_max: Some(0.8) },
    Cohort { ranks: 32, prompts: 1024, prefixes: true, ms_max: None },
    Cohort { ranks: 320, prompts: 5120, prefixes: false, ms_max: Some(3.0) },
    Cohort { ranks: 320, prompts: 5120, prefixes: true, ms_max: None },
];
const COHORT_TURNS: usize = 15;
/// Times that each cohort comes.
const REPEATS: usize = 5;

fn decode_case((arrivals, migrations): (u64, u32)) -> String {
    format!("decode, {DECODE_RANKS} ranks, {arrivals} a batch, {migrations} moves a step")
}

/// Held prompts that a tick sends out.
struct Cohort {
    ranks: u16,
    prompts: usize,
    /// What is cached is on one rank each and found by its blocks; else every rank has it, as the arrival says.
    prefixes: bool,
    /// What the tick may take; `None`: no goal.
    ms_max: Option<f64>,
}

fn cohort_case(Cohort { ranks, prompts, prefixes, .. }: &Cohort) -> String {
    format!("cohort of {prompts} on {ranks} ranks{}", if *prefixes { ", with prefixes" } else { "" })
}

pub(crate) fn run(seeds: &[u64], figures: &mut Figures) -> Table {
    let seed = seeds.first().copied().unwrap_or(4);
    let mut table = new_table(&["case", "figure", "value"]);
    let mut row = |case: String, quantity: &str, value: f64| {
        figures.record(&case, OURS, quantity, value);
        let digits = if value < 100.0 { 3 } else { 0 };
        table.add_row([Cell::new(case), Cell::new(quantity), right(format!("{value:.digits$}"))]);
    };
    for case in DECODE {
        let (rate, bytes) = decode(case, seed);
        row(decode_case(case), "admissions/s", rate);
        row(decode_case(case), "bytes per live request", bytes);
    }
    for case in &COHORTS {
        let (tick, arrivals) = cohort(case, seed);
        row(cohort_case(case), "ms, the tick", tick);
        row(cohort_case(case), "ms, the arrivals", arrivals);
    }
    table
}

pub(crate) fn goals(figures: &Figures) -> Vec<Goal> {
    let goal = |case: &str, quantity, bound, value| {
        Goal::of(figures, (case, OURS, quantity), bound, value, |_| false)
    };
    let mut goals = Vec::new();
    for case in DECODE.map(decode_case) {
        goals.push(goal(&case, "admissions/s", Bound::AtLeast, 200_000.0));
        goals.push(goal(&case, "bytes per live request", Bound::AtMost, 256.0));
    }
    for case in &COHORTS {
        let bound = case.ms_max.map(|ms_max| goal(&cohort_case(case), "ms, the tick", Bound::AtMost, ms_max));
        goals.extend(bound);
    }
    goals
}

/// Arrivals of endless prompts, numbered from 1.
fn arrivals(seed: u64) -> impl Iterator<Item = RoutingEvent> {
    (1..).zip(Prompts::new(PromptMix::WHOLE, seed)).map(arrive)
}

fn arrive((request, prompt): (u64, Prompt)) -> RoutingEvent {
    let tokens = Tokens(prompt.context + prompt.remaining);
    RoutingEvent::arrive(RequestId(request), tokens, Tokens(prompt.context))
}

/// Admissions a second and bytes per live request.
fn decode((per_batch, migrations_per_step): (u64, u32), seed: u64) -> (f64, f64) {
    let policy = RoutingPolicy { migrations_per_step, ..RoutingPolicy::default() };
    let mut router = Router::new(Role::Decode, DECODE_RANKS, policy).expect("a valid unit");
    let mut arrivals = arrivals(seed);
    let live = u64::from(DECODE_RANKS) * REQUESTS_PER_RANK;
    let fill: Vec<RoutingEvent> = arrivals.by_ref().take(live as usize).collect();
    router.apply(Millis(0), &fill).expect("a valid batch");
    // Requests leave in a scattered order: number n leaves about `live` after it came.
    let mut leaving = scattered(live);
    let mut best = 0.0f64;
    for _ in 0..TURNS {
        let batches: Vec<Vec<RoutingEvent>> = (0..ADMISSIONS / per_batch)
            .map(|_| {
                let mut batch = vec![RoutingEvent::Steps { count: 1 }];
                let finishes = leaving.by_ref().take(per_batch as usize);
                batch.extend(finishes.map(|request| RoutingEvent::Finish { request: RequestId(request) }));
                batch.extend(arrivals.by_ref().take(per_batch as usize));
                batch
            })
            .collect();
        let began = Instant::now();
        for batch in &batches {
            black_box(router.apply(Millis(0), batch).expect("a valid batch"));
        }
        best = best.max((batches.len() as u64 * per_batch) as f64 / began.elapsed().as_secs_f64());
    }
    assert_eq!(router.counters().unknown_finishes, 0, "every request left once");
    (best, router.ledger_bytes() as f64 / router.live() as f64)
}

/// 1, 2, 3, ... with every run of `span` numbers in a scattered order.
fn scattered(span: u64) -> impl Iterator<Item = u64> {
    // A step that is coprime to the span visits each number of it once.
    let gcd = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let step = (span / 3..).find(|&step| gcd(step, span) == 1).expect("there is a prime");
    (0..).flat_map(move |run: u64| (0..span).map(move |i| 1 + run * span + i * step % span))
}

/// Prompts with names, and with prefixes that ranks have: what of a prompt is cached is the beginning of its blocks on one rank.
struct PrefixedPrompts {
    prompts: Prompts,
    ranks: u16,
    /// Of the last request.
    request: u64,
    /// Of each rank's last KV event.
    sequences: Vec<u64>,
}

impl PrefixedPrompts {
    fn new(ranks: u16, mix: PromptMix, seed: u64) -> Self {
        Self { prompts: Prompts::new(mix, seed), ranks, request: 0, sequences: vec![0; ranks.into()] }
    }

    /// The next request's arrival, and what is stored before it.
    fn arrive(&mut self, prompt: Prompt) -> (RoutingEvent, Option<RoutingEvent>) {
        self.request += 1;
        let (request, tokens) = (self.request, prompt.context + prompt.remaining);
        // As even as an engine's hashes.
        let block = |depth| BlockHash(SplitMix64::new(request << 20 | depth).next_u64());
        let blocks: Arc<[BlockHash]> = (0..tokens / BLOCK_TOKENS).map(block).collect();
        let mut arrival = RoutingEvent::arrive(RequestId(request), Tokens(tokens), Tokens(0));
        let cached = (prompt.context / BLOCK_TOKENS) as usize;
        let stored = (cached > 0)
            .then(|| self.store((request % u64::from(self.ranks)) as u16, None, &blocks[..cached]));
        if let RoutingEvent::Arrive { blocks: of_arrival, .. } = &mut arrival {
            *of_arrival = blocks;
        }
        (arrival, stored)
    }

    fn store(&mut self, rank: u16, parent: Option<BlockHash>, blocks: &[BlockHash]) -> RoutingEvent {
        let sequence = &mut self.sequences[usize::from(rank)];
        *sequence += 1;
        let change = KvChange::Stored { parent, blocks: blocks.into() };
        RoutingEvent::Kv { rank: Rank(rank), sequence: *sequence, change }
    }
}

/// Milliseconds of the tick and of the arrivals before it, medians over the cohorts of one router in service. Each
/// cohort comes several times, of which the fastest counts, and has ended before the next arrives; the first, for
/// which the router makes its tables, does not count.
fn cohort(Cohort { ranks, prompts: count, prefixes, .. }: &Cohort, seed: u64) -> (f64, f64) {
    let mut router = Router::new(Role::Prefill, *ranks, RoutingPolicy::default()).expect("a valid unit");
    let mut timed = |events: &[RoutingEvent], decided: usize| {
        let began = Instant::now();
        let decisions = black_box(router.apply(Millis(0), events).expect("a valid batch"));
        let elapsed = began.elapsed().as_secs_f64() * 1e3;
        assert_eq!(decisions.len(), decided, "each prompt is held, then dispatched");
        elapsed
    };
    let mut source = PrefixedPrompts::new(*ranks, PromptMix::WHOLE, seed);
    let (mut ticks, mut holds) = (Vec::new(), Vec::new());
    for turn in 0..=COHORT_TURNS {
        let prompts: Vec<Prompt> = source.prompts.by_ref().take(*count).collect();
        let (mut hold, mut tick) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..REPEATS {
            let first = source.request + 1;
            let (arrivals, stored): (Vec<RoutingEvent>, Vec<Option<RoutingEvent>>) = match prefixes {
                true => prompts.iter().map(|&prompt| source.arrive(prompt)).unzip(),
                false => {
                    source.request += *count as u64;
                    ((first..).zip(prompts.iter().copied()).map(arrive).collect(), Vec::new())
                }
            };
            timed(&stored.into_iter().flatten().collect::<Vec<_>>(), 0);
            hold = hold.min(timed(&arrivals, *count));
            tick = tick.min(timed(&[RoutingEvent::Tick], *count));
            let finish = |request| RoutingEvent::Finish { request: RequestId(request) };
            timed(&(first..=source.request).map(finish).collect::<Vec<_>>(), 0);
        }
        if turn > 0 {
            holds.push(hold);
            ticks.push(tick);
        }
    }
    (median(ticks), median(holds))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
