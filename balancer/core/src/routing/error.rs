//! Why a batch, or a router itself, is refused.

use super::{EVENTS_MAX, RequestId};
use crate::fair_queue::InvalidFairPolicy;
use crate::ids::Rank;
use crate::prefix::InvalidPrefixPolicy;
use crate::topology::RANKS_MAX;
use crate::units::Millis;

/// Why a batch was refused as a whole; nothing of it had an effect.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
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
    /// A policy of tenants out of range.
    #[error(transparent)]
    Fairness(#[from] InvalidFairPolicy),
    /// A bound of the prefix index out of range.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefixPolicy),
}

impl RoutingError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            RoutingError::RankCount { .. } => "routing_rank_count",
            RoutingError::RoleNotRouted => "routing_role_not_routed",
            RoutingError::Policy { .. } | RoutingError::Fairness(_) | RoutingError::Prefix(_) => {
                "routing_policy_out_of_range"
            }
            RoutingError::BatchTooLarge { .. } => "routing_batch_too_large",
            RoutingError::TimeBackwards { .. } => "routing_time_backwards",
            RoutingError::TimeTooLarge { .. } => "routing_time_too_large",
            RoutingError::UnknownRank { .. } => "routing_unknown_rank",
            RoutingError::ReservedRequest { .. } => "routing_reserved_request",
            RoutingError::DuplicateRequest { .. } => "routing_duplicate_request",
            RoutingError::TokensOutOfRange { .. } => "routing_tokens_out_of_range",
        }
    }
}
