//! Validates a whole batch before any event of it has an effect.

use super::ledger::Ledger;
use super::{
    BLOCKS_MAX, EVENTS_MAX, KvChange, PROMPT_TOKENS_MAX, RequestId, RoutingError, RoutingEvent, STEPS_MAX,
};
use crate::ids::Rank;
use crate::policy::RoutingPolicy;
use crate::units::{Millis, Tokens};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Above this a time in milliseconds is a mistake (nanoseconds, a negative number), not a time.
const NOW_MS_MAX: u64 = 1 << 53;
/// Most KV tokens a rank can report: a petabyte of KV at 1 byte a token.
const KV_TOKENS_MAX: u64 = 1 << 50;
/// Most requests a rank can report.
const RANK_REQUESTS_MAX: u64 = 1 << 24;

/// Most tokens of one step of a rank: far above what any engine batches.
const STEP_TOKENS_MAX: u64 = 1 << 24;
/// A step that takes an hour is none.
const STEP_MICROS_MAX: u64 = 3_600_000_000;

/// What a batch is checked against.
pub(super) struct Context<'a> {
    pub(super) ranks: u16,
    pub(super) policy: &'a RoutingPolicy,
    pub(super) ledger: &'a Ledger,
    pub(super) last: Millis,
}

/// Checks `events`. Requests that the batch itself ends, by name or with their rank, may arrive again after that.
pub(super) fn validate(
    context: &Context<'_>,
    now: Millis,
    events: &[RoutingEvent],
) -> Result<(), RoutingError> {
    if events.len() > EVENTS_MAX {
        return Err(RoutingError::BatchTooLarge { events: events.len() });
    }
    if now < context.last {
        return Err(RoutingError::TimeBackwards { now: now.0, last: context.last.0 });
    }
    if now.0 >= NOW_MS_MAX {
        return Err(RoutingError::TimeTooLarge { now });
    }
    let mut seen = Seen::default();
    for (index, event) in events.iter().enumerate() {
        validate_event(context, index, event, &mut seen)?;
    }
    Ok(())
}

/// What earlier events of the same batch did to the set of live requests.
#[derive(Default)]
struct Seen {
    /// Requests that the batch began (`true`) or ended (`false`) last.
    live: FxHashMap<RequestId, bool>,
    /// Ranks whose requests the batch forgets.
    down: BTreeSet<Rank>,
}

impl Seen {
    fn is_live(&self, ledger: &Ledger, request: RequestId) -> bool {
        match self.live.get(&request) {
            Some(live) => *live,
            None => {
                ledger.contains(request) && ledger.rank_of(request).is_none_or(|r| !self.down.contains(&r))
            }
        }
    }
}

fn validate_event(
    context: &Context<'_>,
    event: usize,
    content: &RoutingEvent,
    seen: &mut Seen,
) -> Result<(), RoutingError> {
    let within = |field, value, min, max| {
        if (min..=max).contains(&value) {
            Ok(())
        } else {
            Err(RoutingError::TokensOutOfRange { event, field, value, min, max })
        }
    };
    let known = |rank: Rank| {
        let ranks = context.ranks;
        if rank.0 < ranks { Ok(()) } else { Err(RoutingError::UnknownRank { event, rank, ranks }) }
    };
    match *content {
        RoutingEvent::Arrive {
            request, prompt_tokens, cached_tokens, ref blocks, expected_output, ..
        } => {
            if request.0 == 0 {
                return Err(RoutingError::ReservedRequest { event });
            }
            let Tokens(prompt) = prompt_tokens;
            within("prompt_tokens", prompt, 1, PROMPT_TOKENS_MAX)?;
            within("cached_tokens", cached_tokens.0, 0, prompt - 1)?;
            let whole_blocks = prompt / context.policy.block_tokens;
            within("blocks", blocks.len() as u64, 0, whole_blocks.min(BLOCKS_MAX as u64))?;
            within("expected_output", expected_output.map_or(0, |t| t.0), 0, PROMPT_TOKENS_MAX)?;
            if seen.is_live(context.ledger, request) {
                return Err(RoutingError::DuplicateRequest { event, request });
            }
            seen.live.insert(request, true);
        }
        RoutingEvent::Finish { request } => {
            seen.live.insert(request, false);
        }
        RoutingEvent::Steps { count } => within("count", count.into(), 1, STEPS_MAX.into())?,
        RoutingEvent::Report { rank, sequence, kv_used_tokens, requests, step, .. } => {
            known(rank)?;
            within("sequence", sequence, 1, u64::MAX)?;
            within("kv_used_tokens", kv_used_tokens.0, 0, KV_TOKENS_MAX)?;
            within("requests", requests.into(), 0, RANK_REQUESTS_MAX)?;
            if let Some(step) = step {
                within("step tokens", step.tokens.0, 0, STEP_TOKENS_MAX)?;
                within("step pairs", step.pairs, 0, STEP_TOKENS_MAX * PROMPT_TOKENS_MAX)?;
                within("step requests", step.requests.into(), 0, RANK_REQUESTS_MAX)?;
                within("step kv_tokens", step.kv_tokens.0, 0, KV_TOKENS_MAX)?;
                within("step micros", step.micros, 1, STEP_MICROS_MAX)?;
            }
        }
        RoutingEvent::RankDown { rank } => {
            known(rank)?;
            seen.down.insert(rank);
        }
        RoutingEvent::RankUp { rank } | RoutingEvent::Drain { rank } => known(rank)?,
        RoutingEvent::Kv { rank, ref change, .. } => {
            known(rank)?;
            match change {
                KvChange::Stored { blocks, .. } | KvChange::Removed { blocks } => {
                    within("blocks", blocks.len() as u64, 1, BLOCKS_MAX as u64)?;
                }
                KvChange::Cleared => {}
            }
        }
        RoutingEvent::FirstToken { .. } => {}
        RoutingEvent::Tick => {}
    }
    Ok(())
}
