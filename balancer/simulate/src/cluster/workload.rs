//! Requests of a trace, and what they ask of a cluster.

use super::request::Request;
use super::step_time::StepTime;
use crate::dispatch::BLOCK_TOKENS;
use crate::replicate::blocks_of_copy;
use crate::trace::Trace;
use evenkeel_core::prefill::Work;
use std::collections::HashSet;

/// The arrivals of all copies of a trace before `until_ms`, in the order of time. No trace says whose a request is.
pub fn of_trace(trace: &Trace, until_ms: u64) -> Vec<Request> {
    let arrivals = trace.arrivals();
    let recorded = trace.requests.clone();
    let request = |arrival: crate::replicate::Arrival| {
        let of = &recorded[arrival.index];
        Request {
            at_us: arrival.at_ms * 1000,
            prompt_tokens: arrival.input_tokens,
            output_tokens: arrival.output_tokens,
            blocks: blocks_of_copy(of, arrival.copy).collect(),
            turn: of.turn,
            tenant: 0,
        }
    };
    arrivals.take_while(|arrival| arrival.at_ms < until_ms).map(request).collect()
}

/// What requests ask of a cluster that caches all it ever ran and balances perfectly.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Demand {
    /// Requests.
    pub requests: u64,
    /// Requests a second.
    pub per_s: f64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Of these, what such a cache would have.
    pub hit_tokens: u64,
    /// Prefill ranks that would be busy all the time.
    pub prefill_ranks: f64,
    /// Tokens a second that are generated.
    pub output_per_s: f64,
    /// KV tokens of a request in decode, mean over the time that it is there.
    pub kv_tokens: f64,
}

/// The demand of the requests that arrive in `[from_us, until_us)`, whose prefixes may have come before.
pub fn demand(requests: &[Request], (from_us, until_us): (u64, u64), time: &dyn StepTime) -> Demand {
    let mut seen: HashSet<u64> = HashSet::new();
    let mut demand = Demand::default();
    let (mut busy_us, mut outputs, mut kv_time) = (0.0, 0u64, 0.0);
    for request in requests.iter().take_while(|request| request.at_us < until_us) {
        let hits = request.blocks.iter().take_while(|block| seen.contains(block)).count();
        seen.extend(&request.blocks[hits..]);
        if request.at_us < from_us {
            continue;
        }
        let hit = (hits as u64 * BLOCK_TOKENS).min(request.prompt_tokens - 1);
        busy_us += time.prefill_us(Work::of(hit, request.prompt_tokens - hit));
        demand.requests += 1;
        demand.prompt_tokens += request.prompt_tokens;
        demand.hit_tokens += hit;
        outputs += request.output_tokens;
        let output = request.output_tokens as f64;
        kv_time += output * (request.prompt_tokens as f64 + output / 2.0);
    }
    let us = (until_us - from_us).max(1) as f64;
    demand.per_s = demand.requests as f64 * 1e6 / us;
    demand.prefill_ranks = busy_us / us;
    demand.output_per_s = outputs as f64 * 1e6 / us;
    demand.kv_tokens = kv_time / outputs.max(1) as f64;
    demand
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Assumed;
    use std::sync::Arc;

    #[test]
    fn demand_counts_what_an_endless_cache_would_leave() {
        let request = |at_us, count: u64| Request {
            at_us,
            prompt_tokens: count * 64,
            output_tokens: 10,
            blocks: (0..count).collect::<Arc<[u64]>>(),
            turn: 0,
            tenant: 0,
        };
        let requests = [request(0, 4), request(1_000_000, 10), request(1_500_000, 10), request(9_000_000, 1)];
        let demand = demand(&requests, (1_000_000, 2_000_000), &Assumed::default());
        assert_eq!((demand.requests, demand.per_s, demand.output_per_s), (2, 2.0, 20.0));
        assert_eq!((demand.prompt_tokens, demand.hit_tokens), (1280, 256 + 639));
        assert_eq!(demand.kv_tokens, 645.0);
        let works = [Work::of(256, 384), Work::of(639, 1)];
        let busy: f64 = works.iter().map(|&work| Assumed::default().prefill_us(work)).sum();
        assert!((demand.prefill_ranks - busy / 1e6).abs() < 1e-12);
    }
}
