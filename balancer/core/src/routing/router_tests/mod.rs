//! What a [`Router`] must do, by subject; here what all of them say and hear.

mod any_order;
mod held;
mod prefixes;
mod progress;
mod ranks;
mod refusals;
mod reports;
mod whole;

use super::*;
use crate::prefix::PrefixPolicy;
use crate::routing::{BlockHash, DispatchNumber, KvChange, Priority, RankPhase, StepReport, TenantId};
use std::sync::Arc;

const LONG_TOKENS: u64 = 5000;
/// A long prompt takes 10 rounds by itself.
const ROUND_TOKENS: u64 = 500;

fn arrive(request: u64, prompt: u64, cached: u64) -> RoutingEvent {
    RoutingEvent::arrive(RequestId(request), Tokens(prompt), Tokens(cached))
}

fn finish(request: u64) -> RoutingEvent {
    RoutingEvent::Finish { request: RequestId(request) }
}

fn steps(count: u32) -> RoutingEvent {
    RoutingEvent::Steps { count }
}

fn first_token(request: u64) -> RoutingEvent {
    RoutingEvent::FirstToken { request: RequestId(request) }
}

/// Report number `sequence` of a rank; `as_of` 0 for none.
fn report(rank: u16, sequence: u64, kv: u64, requests: u32, as_of: u64) -> RoutingEvent {
    RoutingEvent::Report {
        rank: Rank(rank),
        sequence,
        as_of: (as_of > 0).then_some(DispatchNumber(as_of)),
        kv_used_tokens: Tokens(kv),
        requests,
        step: None,
    }
}

fn down(rank: u16) -> RoutingEvent {
    RoutingEvent::RankDown { rank: Rank(rank) }
}

fn up(rank: u16) -> RoutingEvent {
    RoutingEvent::RankUp { rank: Rank(rank) }
}

fn drain(rank: u16) -> RoutingEvent {
    RoutingEvent::Drain { rank: Rank(rank) }
}

fn kv(rank: u16, sequence: u64, blocks: &[u64]) -> RoutingEvent {
    let blocks = blocks.iter().copied().map(BlockHash).collect();
    RoutingEvent::Kv { rank: Rank(rank), sequence, change: KvChange::Stored { parent: None, blocks } }
}

/// A report of rank 0 with a step that is valid but for the change.
fn step(change: impl Fn(&mut StepReport)) -> RoutingEvent {
    let mut step = StepReport { micros: 1, ..StepReport::default() };
    change(&mut step);
    RoutingEvent::Report {
        rank: Rank(0),
        sequence: 1,
        as_of: None,
        kv_used_tokens: Tokens(0),
        requests: 0,
        step: Some(step),
    }
}

/// An arrival with so many blocks.
fn with_blocks(request: u64, prompt: u64, count: u64) -> RoutingEvent {
    RoutingEvent::Arrive {
        request: RequestId(request),
        prompt_tokens: Tokens(prompt),
        cached_tokens: Tokens(0),
        tenant: TenantId(0),
        priority: Priority::Interactive,
        blocks: (1..=count).map(BlockHash).collect(),
        expected_output: None,
    }
}

fn dispatched(request: u64, number: u64, rank: u16) -> Decision {
    Decision::Dispatch {
        request: RequestId(request),
        number: DispatchNumber(number),
        rank: Rank(rank),
        microbatch: 0,
        tokens: None,
    }
}

fn held(request: u64) -> Decision {
    Decision::Hold { request: RequestId(request) }
}

fn chunked() -> RoutingPolicy {
    RoutingPolicy { round_tokens: Some(ROUND_TOKENS), ..small() }
}

/// The defaults with an index that is quick to clone and compare.
fn small() -> RoutingPolicy {
    let prefix = PrefixPolicy { blocks_max: 64, expected_max: 16, ..PrefixPolicy::default() };
    RoutingPolicy { prefix, ..RoutingPolicy::default() }
}

fn router(role: Role, ranks: u16) -> Router {
    Router::new(role, ranks, small()).unwrap()
}

/// Blocks of a prompt: prompts of one of three families begin alike.
fn family_blocks(family: u64, prompt: u64) -> Arc<[BlockHash]> {
    (0..prompt / 64).map(|depth| BlockHash(1000 * (family % 3) + depth)).collect()
}

/// An arrival of one of three tenants, with blocks.
fn arrive_of_tenant(request: u64, prompt: u64, cached: u64) -> RoutingEvent {
    RoutingEvent::Arrive {
        request: RequestId(request),
        prompt_tokens: Tokens(prompt),
        cached_tokens: Tokens(cached),
        tenant: TenantId((request % 3) as u32),
        priority: if request.is_multiple_of(4) { Priority::Batch } else { Priority::Interactive },
        blocks: family_blocks(request / 3, prompt),
        expected_output: None,
    }
}

/// Applies the batches at their times and compares the decisions about the last.
#[track_caller]
fn check(router: &mut Router, batches: &[(u64, &[RoutingEvent])], expected: &[Decision]) {
    let mut decisions = Vec::new();
    for (now, events) in batches {
        decisions = router.apply(Millis(*now), events).unwrap();
    }
    assert_eq!(decisions, expected);
}
