//! Request routing for one unit: events in, decisions out, in virtual time. See README.md.

mod batch;
mod ledger;
mod router;

pub use ledger::LedgerTotals;
pub use router::{CohortReport, Router, RouterCounters};

use crate::ids::Rank;
use crate::topology::RANKS_MAX;
use crate::units::{Millis, Tokens};

/// Longest accepted prompt, in tokens. With [`LIVE_MAX`] prompts of this length the attention pairs of a
/// unit still fit 64 bits.
pub const PROMPT_TOKENS_MAX: u64 = 1 << 22;
/// Most requests, held and running, of one unit: 144 ranks with 1800 requests each.
pub const LIVE_MAX: usize = 1 << 18;
/// Most events of one batch: a decode step of the largest unit ends fewer requests than this.
pub const EVENTS_MAX: usize = 1 << 16;
/// Most steps that one event may report.
pub const STEPS_MAX: u32 = 1 << 20;

/// A gateway's name for a request, unique among the live requests of a unit. 0 is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Something that happened. The variants are those of `RouteEvent` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutingEvent {
    /// A request wants a rank.
    Arrive {
        /// Its name.
        request: RequestId,
        /// Tokens of the prompt, the cached prefix included.
        prompt_tokens: Tokens,
        /// Tokens whose KV is already there, fewer than the prompt has (prefill only).
        cached_tokens: Tokens,
    },
    /// A request ended, for whatever reason.
    Finish {
        /// Its name.
        request: RequestId,
    },
    /// Decode: every running request generated this many tokens. Prefill: the ranks have run all chunks
    /// that they were given.
    Steps {
        /// Steps since the last such event.
        count: u32,
    },
    /// What a rank says of itself.
    RankState {
        /// The rank.
        rank: Rank,
        /// KV tokens in use.
        kv_used_tokens: Tokens,
        /// Requests it has.
        requests: u32,
        /// The last request it had received when it said this; `None` if none.
        as_of_request: Option<RequestId>,
        /// Whether it serves. A rank that is down gets nothing, and its requests are forgotten.
        up: bool,
    },
    /// The ranks are about to need work.
    Tick,
}

/// What becomes of a request. The variants are those of `Decision` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The request, or its next chunk, goes to a rank.
    Dispatch {
        /// The request.
        request: RequestId,
        /// Where it runs. Every further chunk of the request names the same rank.
        rank: Rank,
        /// 0 or 1: the half of the rank's dual batch (prefill only).
        microbatch: u8,
        /// Prompt tokens to run now; `None`: all there are (the engine cuts as it likes).
        tokens: Option<Tokens>,
    },
    /// Kept by the balancer; a later batch decides.
    Hold {
        /// The request.
        request: RequestId,
    },
    /// Not taken.
    Refuse {
        /// The request.
        request: RequestId,
        /// Stable code.
        code: &'static str,
        /// Why, and what to do.
        message: String,
    },
}

impl Decision {
    /// The request that it is about.
    pub fn request(&self) -> RequestId {
        match self {
            Decision::Dispatch { request, .. } | Decision::Hold { request } => *request,
            Decision::Refuse { request, .. } => *request,
        }
    }
}

/// Code of a refusal because no rank of the unit is up.
pub const REFUSED_NO_RANK_UP: &str = "routing_no_rank_up";

/// Why a batch was refused as a whole; nothing of it had an effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// A unit without ranks, or with more than the topology allows.
    #[error("ranks is {ranks}: a unit has 1 to {RANKS_MAX} ranks")]
    RankCount {
        /// As given.
        ranks: u16,
    },
    /// A role that routes differently in its two halves.
    #[error(
        "role is mixed: requests are routed for prefill and for decode units; register the engine as one of them"
    )]
    RoleNotRouted,
    /// A policy value out of range.
    #[error("policy {field} is {value}: accepted are {min} to {max}")]
    Policy {
        /// The field.
        field: &'static str,
        /// As given.
        value: u64,
        /// Lowest accepted.
        min: u64,
        /// Highest accepted.
        max: u64,
    },
    /// A batch that does not end.
    #[error("batch has {events} events: at most {EVENTS_MAX} are taken; send several batches")]
    BatchTooLarge {
        /// Events of the batch.
        events: usize,
    },
    /// Time of a unit only grows.
    #[error("now is {now} ms but the unit is at {last} ms already: send batches in the order of their time")]
    TimeBackwards {
        /// Of the batch.
        now: u64,
        /// Of the unit.
        last: u64,
    },
    /// A time so late that sums of it overflow.
    #[error("now is {} ms: it must stay below 2^53 ms", now.0)]
    TimeTooLarge {
        /// Of the batch.
        now: Millis,
    },
    /// A rank the unit does not have.
    #[error("event {event}: rank {rank} does not exist, the unit has ranks 0 to {}", ranks - 1)]
    UnknownRank {
        /// Index in the batch.
        event: usize,
        /// The rank.
        rank: Rank,
        /// Ranks of the unit.
        ranks: u16,
    },
    /// The name that means no request.
    #[error("event {event}: request 0 is reserved: number requests from 1")]
    ReservedRequest {
        /// Index in the batch.
        event: usize,
    },
    /// A request that is there already.
    #[error("event {event}: request {} is live already: finish it first or use another number", request.0)]
    DuplicateRequest {
        /// Index in the batch.
        event: usize,
        /// The request.
        request: RequestId,
    },
    /// A number of tokens out of range.
    #[error("event {event}: {field} is {value}: accepted are {min} to {max}")]
    TokensOutOfRange {
        /// Index in the batch.
        event: usize,
        /// The field.
        field: &'static str,
        /// As given.
        value: u64,
        /// Lowest accepted.
        min: u64,
        /// Highest accepted.
        max: u64,
    },
    /// More requests than the policy allows.
    #[error(
        "the batch would bring the unit to {have} {what} requests: at most {max} are taken; slow the gateway down"
    )]
    TooManyRequests {
        /// `live` or `held`.
        what: &'static str,
        /// There would be.
        have: usize,
        /// Allowed.
        max: usize,
    },
}

impl RoutingError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            RoutingError::RankCount { .. } => "routing_rank_count",
            RoutingError::RoleNotRouted => "routing_role_not_routed",
            RoutingError::Policy { .. } => "routing_policy_out_of_range",
            RoutingError::BatchTooLarge { .. } => "routing_batch_too_large",
            RoutingError::TimeBackwards { .. } => "routing_time_backwards",
            RoutingError::TimeTooLarge { .. } => "routing_time_too_large",
            RoutingError::UnknownRank { .. } => "routing_unknown_rank",
            RoutingError::ReservedRequest { .. } => "routing_reserved_request",
            RoutingError::DuplicateRequest { .. } => "routing_duplicate_request",
            RoutingError::TokensOutOfRange { .. } => "routing_tokens_out_of_range",
            RoutingError::TooManyRequests { .. } => "routing_too_many_requests",
        }
    }
}
