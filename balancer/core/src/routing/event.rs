//! What a router is told.

use crate::cost_fit::StepReport;
use crate::fair_queue::{Priority, TenantId};
use crate::ids::Rank;
use crate::prefix::{BlockHash, KvChange};
use crate::units::Tokens;
use std::sync::Arc;

/// A gateway's name for a request, unique among the live requests of a unit. 0 is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RequestId(pub u64);

/// Number of a dispatch or a migration of one unit. Numbers grow by one each, from 1: what a rank has received
/// can be named by the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DispatchNumber(pub u64);

/// Something that happened. The variants are those of `RouteEvent` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutingEvent {
    /// A request wants a rank.
    Arrive {
        /// Its name.
        request: RequestId,
        /// Tokens of the prompt, the cached prefix included; at least 1.
        prompt_tokens: Tokens,
        /// Tokens whose KV every rank can read from a shared cache, fewer than the prompt has (prefill only).
        cached_tokens: Tokens,
        /// Whose it is.
        tenant: TenantId,
        /// How urgent it is.
        priority: Priority,
        /// The prompt's whole blocks, from its beginning; empty where prefixes are not known.
        blocks: Arc<[BlockHash]>,
        /// Tokens it will generate, if somebody has an idea: no more than a tie-break.
        expected_output: Option<Tokens>,
    },
    /// Prefill: the prompt has run whole. Decode: the request's first step has run.
    FirstToken {
        /// Its name.
        request: RequestId,
    },
    /// A request ended, for whatever reason.
    Finish {
        /// Its name.
        request: RequestId,
    },
    /// Decode: every running request generated this many tokens. Prefill: the ranks have begun, or have run, all chunks that they were
    /// given. Without a [`Tick`](Self::Tick) in the same batch they are busy for a while: a quiet unit gets its next round then.
    Steps {
        /// Steps since the last such event.
        count: u32,
    },
    /// What a rank says of itself.
    Report {
        /// The rank.
        rank: Rank,
        /// Number of this report among those of the rank; it grows. Older and repeated ones are dropped.
        sequence: u64,
        /// The last dispatch that it had received when it said this; `None` if none of this balancer's.
        as_of: Option<DispatchNumber>,
        /// KV tokens in use.
        kv_used_tokens: Tokens,
        /// Requests it has.
        requests: u32,
        /// A step since the last report, if one is reported.
        step: Option<StepReport>,
    },
    /// The rank does not serve any more: whatever it had is lost.
    RankDown {
        /// The rank.
        rank: Rank,
    },
    /// The rank serves. One that was down is empty, and begins to count its reports anew; one that drained
    /// is given requests again.
    RankUp {
        /// The rank.
        rank: Rank,
    },
    /// The rank shall get no more requests; those it has go on.
    Drain {
        /// The rank.
        rank: Rank,
    },
    /// A change of a rank's prefix cache.
    Kv {
        /// The rank.
        rank: Rank,
        /// Number of this change among those of the rank; a number left out means that changes are lost.
        sequence: u64,
        /// The change.
        change: KvChange,
    },
    /// The ranks are about to need work.
    Tick,
}

impl RoutingEvent {
    /// The arrival of a request of which no more is known than its size: of tenant 0, interactive.
    pub fn arrive(request: RequestId, prompt_tokens: Tokens, cached_tokens: Tokens) -> Self {
        Self::Arrive {
            request,
            prompt_tokens,
            cached_tokens,
            tenant: TenantId::default(),
            priority: Priority::default(),
            blocks: Arc::default(),
            expected_output: None,
        }
    }
}
