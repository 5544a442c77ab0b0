//! Many copies of one trace as one arrival stream.
//!
//! A recorded trace fills a fraction of a large unit. Each copy starts at its own point of the trace and
//! wraps around, and each stamp is moved within the tick that it was rounded to: otherwise all copies would
//! send the same long prompt in the same tick, a burst that no recording shows. Copies share no prefix but
//! the system prompt.

use crate::cost::DecodeCost;
use crate::dispatch;
use crate::prefix_cache::PrefixCache;
use crate::trace::{ID_BITS, SYSTEM_PROMPT_BLOCKS, TraceRequest};
use evenkeel_core::prefill::Work;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Tick of the recorded stamps of the Mooncake traces.
pub const TICK_MS: u64 = 3000;

/// One request of a replicated trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Numbered from 1 in the order of time.
    pub request: u64,
    /// Arrival, ms.
    pub at_ms: u64,
    /// Which copy it belongs to.
    pub copy: u32,
    /// Index of the recorded request.
    pub index: usize,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
}

/// Streams the arrivals of all copies in the order of time. Holds the trace (shared) and, per copy, the
/// requests of about one tick.
#[derive(Debug, Clone)]
pub struct Replicated {
    trace: Arc<[TraceRequest]>,
    seed: u64,
    /// Stamps are moved by less than this.
    tick_ms: u64,
    period_ms: u64,
    /// Per copy, where it starts in the trace.
    starts: Vec<u64>,
    /// Next request of each copy by its earliest time: (earliest ms, copy, position).
    upcoming: BinaryHeap<Reverse<(u64, u32, u64)>>,
    /// Requests whose time is drawn: (ms, copy, index).
    ready: BinaryHeap<Reverse<(u64, u32, usize)>>,
    next_request: u64,
}

impl Replicated {
    /// `copies` copies of a Mooncake trace, for as long as the trace lasts.
    pub fn new(trace: Arc<[TraceRequest]>, copies: u32, seed: u64) -> Self {
        let period_ms = period_ms(&trace);
        Self::with_starts(trace, copies, TICK_MS, period_ms, seed, |copy| {
            draw(seed, copy, u64::MAX) % period_ms
        })
    }

    /// `copies` copies of a trace, whose stamps are moved by less than `jitter_ms`, for as long as the trace
    /// lasts. The first copy begins where the trace begins.
    pub fn with_jitter(trace: Arc<[TraceRequest]>, copies: u32, jitter_ms: u64, seed: u64) -> Self {
        let tick_ms = jitter_ms.max(1);
        let period_ms = trace.last().map_or(0, |last| last.at_ms) + tick_ms;
        Self::with_starts(trace, copies, tick_ms, period_ms, seed, |copy| {
            if copy == 0 { 0 } else { draw(seed, copy, u64::MAX) % period_ms }
        })
    }

    fn with_starts(
        trace: Arc<[TraceRequest]>,
        copies: u32,
        tick_ms: u64,
        period_ms: u64,
        seed: u64,
        start: impl Fn(u32) -> u64,
    ) -> Self {
        let (starts, upcoming, ready) = (Vec::new(), BinaryHeap::new(), BinaryHeap::new());
        let mut replicated =
            Self { trace, seed, tick_ms, period_ms, starts, upcoming, ready, next_request: 1 };
        for copy in 0..copies {
            replicated.starts.push(start(copy));
            replicated.schedule(copy, 0);
        }
        replicated
    }

    /// The trace that is replicated.
    pub fn trace(&self) -> &Arc<[TraceRequest]> {
        &self.trace
    }

    /// The recorded request of an arrival.
    pub fn recorded(&self, arrival: &Arrival) -> &TraceRequest {
        &self.trace[arrival.index]
    }

    /// An arrival as a dispatcher sees it.
    pub fn dispatched(&self, arrival: &Arrival) -> dispatch::Arrival {
        let recorded = self.recorded(arrival);
        dispatch::Arrival {
            id: arrival.request,
            prompt_tokens: arrival.input_tokens,
            blocks: blocks_of_copy(recorded, arrival.copy).collect(),
            room: None,
            pin: None,
            turn: recorded.turn,
        }
    }

    /// Schedules the copy's request at `position`, counted from where the copy starts.
    fn schedule(&mut self, copy: u32, position: u64) {
        if position < self.trace.len() as u64 {
            let (index, wrapped) = self.locate(copy, position);
            let start = self.starts[copy as usize];
            let earliest = self.trace[index].at_ms + if wrapped { self.period_ms } else { 0 } - start;
            self.upcoming.push(Reverse((earliest, copy, position)));
        }
    }

    fn locate(&self, copy: u32, position: u64) -> (usize, bool) {
        let first = self.trace.partition_point(|r| r.at_ms < self.starts[copy as usize]);
        let place = first + position as usize;
        (place % self.trace.len(), place >= self.trace.len())
    }
}

impl Iterator for Replicated {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        // Whatever is not drawn yet is later than its earliest time.
        while let Some(&Reverse((earliest, copy, position))) = self.upcoming.peek() {
            if self.ready.peek().is_some_and(|Reverse((at, ..))| *at < earliest) {
                break;
            }
            self.upcoming.pop();
            let (index, _) = self.locate(copy, position);
            let at = earliest + draw(self.seed, copy, position) % self.tick_ms;
            self.ready.push(Reverse((at, copy, index)));
            self.schedule(copy, position + 1);
        }
        let Reverse((at_ms, copy, index)) = self.ready.pop()?;
        let recorded = &self.trace[index];
        let request = self.next_request;
        self.next_request += 1;
        Some(Arrival {
            request,
            at_ms,
            copy,
            index,
            input_tokens: recorded.input_tokens,
            output_tokens: recorded.output_tokens,
        })
    }
}

/// Prefix blocks of a request as this copy has them: only those of the system prompt are everybody's. Ids
/// look like hashes; none stands for two blocks. Copies are numbered below 2^24.
pub fn blocks_of_copy(request: &TraceRequest, copy: u32) -> impl Iterator<Item = u64> + Clone + '_ {
    let space = (u64::from(copy) + 1) << ID_BITS;
    request.blocks.ids().map(move |id| spread(if id < SYSTEM_PROMPT_BLOCKS { id } else { space | id }))
}

/// How long a trace lasts: to the end of its last tick.
pub fn period_ms(trace: &[TraceRequest]) -> u64 {
    trace.last().map_or(0, |last| last.at_ms) + TICK_MS
}

/// A reproducible draw for one copy and position (splitmix64 over the three).
fn draw(seed: u64, copy: u32, position: u64) -> u64 {
    let mut z = seed ^ (u64::from(copy) << 40) ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2 {
        z = spread(z);
    }
    z
}

/// One step of splitmix64: one to one.
fn spread(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Copies that keep `requests_per_rank` requests running on each of `ranks` decode ranks, on average and
/// with perfect balance: by Little's law a copy keeps rate x outputs x step time running.
pub fn copies_for_decode(
    trace: &[TraceRequest],
    ranks: u16,
    requests_per_rank: f64,
    cost: &DecodeCost,
) -> u32 {
    let steps: f64 = trace.iter().map(|r| r.output_tokens as f64).sum();
    let step_ms = balanced_step_ms(trace, requests_per_rank, cost);
    let running_per_copy = steps * step_ms / period_ms(trace).max(1) as f64;
    let copies = requests_per_rank * f64::from(ranks) / running_per_copy.max(f64::MIN_POSITIVE);
    copies.round().clamp(1.0, f64::from(u32::MAX)) as u32
}

/// Decode step time with `requests_per_rank` requests of the trace on every rank and perfect balance, ms.
pub fn balanced_step_ms(trace: &[TraceRequest], requests_per_rank: f64, cost: &DecodeCost) -> f64 {
    let steps: f64 = trace.iter().map(|r| r.output_tokens as f64).sum();
    let kv_steps: f64 = trace
        .iter()
        .map(|r| r.output_tokens as f64 * (r.input_tokens as f64 + r.output_tokens as f64 / 2.0))
        .sum();
    let kv_per_request = kv_steps / steps.max(1.0);
    cost.step_ms(requests_per_rank * kv_per_request, requests_per_rank)
}

/// Prefill work of one copy of the trace, over its whole length, with a prefix cache of `cache_blocks`.
pub fn prefill_work(trace: &[TraceRequest], cache_blocks: usize) -> Work {
    let mut cache = PrefixCache::new(cache_blocks);
    trace.iter().fold(Work::default(), |sum, request| {
        let cached = cache.admit(blocks_of_copy(request, 0), request.input_tokens);
        sum + Work::of(cached, request.input_tokens - cached)
    })
}

#[cfg(test)]
#[path = "replicate_tests.rs"]
mod tests;
