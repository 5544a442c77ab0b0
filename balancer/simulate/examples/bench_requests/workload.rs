//! How many copies of a recorded trace, and how fast, bring the units to a load.

use crate::traces::{DECODE_RANKS, END_US, PREFILL_RANKS, PREFILL_UNITS, WARM_UP_US};
use evenkeel_simulate::cluster::{Assumed, Demand, Request, StepTime, demand, of_trace};
use evenkeel_simulate::trace::{TraceOptions, load};
use std::path::Path;

/// Fastest and slowest, in parts, that a trace is replayed to come near a load.
const SPEED_MAX: f64 = 1.5;
/// Guesses of the speed.
const SPEEDS_TRIED: usize = 4;

/// A trace, and how much of it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) file: &'static str,
    /// Running requests of a decode rank behind prefill on average, with perfect balance, at most: of one or two ranks none can be
    /// taken away, and with more decode is too slow under any policy.
    pub(crate) requests_per_rank: f64,
    /// The same for decode alone: as many as bring the time per token near its objective.
    pub(crate) alone_per_rank: f64,
    /// Prompt and output together, at most: engines refuse what is longer.
    pub(crate) context_max: Option<u64>,
    /// Loads of prefill. Steps as long as their longest context bring queues that are first in, first out to saturation between
    /// the first and the second.
    pub(crate) loads: [f64; 3],
    /// Seconds that are simulated after the last arrival: longer than the prompts take that all policies run, or waiting for those
    /// is no different for any.
    pub(crate) grace_s: u64,
}

fn read(case: &Case, copies: u32, speed: f64, seed: u64) -> Vec<Request> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(case.file);
    let options = TraceOptions { copies, speed, seed, ..TraceOptions::default() };
    let trace = load(&path, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut requests = of_trace(&trace, END_US / 1000);
    if let Some(most) = case.context_max {
        requests.retain(|request| request.prompt_tokens + request.output_tokens <= most);
    }
    requests
}

/// Time of a decode step whose ranks all have so many requests.
fn step_s(requests_per_rank: f64, kv_tokens: f64) -> f64 {
    let kv_tokens = (kv_tokens * requests_per_rank) as u64;
    Assumed::default().decode_us(kv_tokens, requests_per_rank as u32) / 1e6
}

/// As many copies as keep no more than `case.alone_per_rank` running on each of [`DECODE_RANKS`], on average.
pub(crate) fn decode_workload(case: &Case, seed: u64) -> Vec<Request> {
    let is_above = |copies: u32| {
        let demand = Workload::of(case, copies, 1.0, seed).demand;
        demand.output_per_s * step_s(case.alone_per_rank, demand.kv_tokens)
            > case.alone_per_rank * f64::from(DECODE_RANKS)
    };
    let [copies, _] = around(is_above);
    read(case, copies, 1.0, seed)
}

/// The highest number from 1 for which something that grows with it is not so yet, and the next one.
fn around(is_above: impl Fn(u32) -> bool) -> [u32; 2] {
    let (mut below, mut above) = (1, 2);
    while !is_above(above) {
        (below, above) = (above, 2 * above);
    }
    while above - below > 1 {
        let middle = u32::midpoint(below, above);
        if is_above(middle) { above = middle } else { below = middle }
    }
    [below, above]
}

/// What prefill has to do.
pub(crate) struct Workload {
    pub(crate) requests: Vec<Request>,
    pub(crate) demand: Demand,
    pub(crate) decode_ranks: u16,
}

impl Workload {
    /// So many copies of the trace, so many times faster than recorded, and decode ranks for what they generate.
    fn of(case: &Case, copies: u32, speed: f64, seed: u64) -> Self {
        let requests = read(case, copies, speed, seed);
        let demand = demand(&requests, (WARM_UP_US, END_US), &Assumed::default());
        let running = demand.output_per_s * step_s(case.requests_per_rank, demand.kv_tokens);
        Self { requests, demand, decode_ranks: (running / case.requests_per_rank).ceil() as u16 }
    }

    /// Part of the prefill ranks that would be busy.
    pub(crate) fn load(&self) -> f64 {
        self.demand.prefill_ranks / f64::from(PREFILL_UNITS * PREFILL_RANKS)
    }

    /// Copies, about as fast as recorded, that come nearest to the load.
    pub(crate) fn nearest(case: &Case, load: f64, seed: u64) -> Self {
        let [below, above] = Self::copies_about(case, load, seed);
        let off = |workload: &Self| (workload.load() - load).abs();
        let tried = [below, above].into_iter().map(|copies| Self::at_best_speed(case, copies, load, seed));
        tried.min_by(|x, y| off(x).total_cmp(&off(y))).expect("two numbers of copies are tried")
    }

    /// A copy of Mooncake alone is a tenth of the load. Another speed moves every prompt, and now and then a long cold one into the window
    /// or out of it: one guess may be better than the next.
    fn at_best_speed(case: &Case, copies: u32, load: f64, seed: u64) -> Self {
        let mut best = Self::of(case, copies, 1.0, seed);
        let (mut speed, mut got) = (1.0, best.load());
        for _ in 0..SPEEDS_TRIED {
            speed = (speed * load / got).clamp(1.0 / SPEED_MAX, SPEED_MAX);
            let other = Self::of(case, copies, speed, seed);
            got = other.load();
            if (got - load).abs() < (best.load() - load).abs() {
                best = other;
            }
        }
        best
    }

    /// The most copies that are not above the load at the recorded pace, and one more, which has another place in the trace and leaves the
    /// others where they are: at least 1 and 2.
    fn copies_about(case: &Case, load: f64, seed: u64) -> [u32; 2] {
        around(|copies| Self::of(case, copies, 1.0, seed).load() > load)
    }
}
