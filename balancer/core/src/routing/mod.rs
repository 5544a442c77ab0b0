//! Request routing for one unit: events in, decisions out, in virtual time. See README.md.

mod batch;
mod by_number;
mod decision;
mod decode;
mod error;
mod event;
mod history;
mod holding;
mod ledger;
mod prefill;
mod router;

pub use crate::cost_fit::StepReport;
pub use crate::fair_queue::{Priority, TenantId};
pub use crate::prefix::{BlockHash, KvChange};
pub use decision::{
    Decision, REFUSED_HELD_FULL, REFUSED_LIVE_FULL, REFUSED_NEVER_FITS, REFUSED_NO_RANK_UP,
    REFUSED_TENANT_HELD_FULL,
};
pub use error::RoutingError;
pub use event::{DispatchNumber, RequestId, RoutingEvent};
pub use ledger::{LedgerTotals, RankPhase};
pub use router::{CohortReport, Router, RouterCounters};

/// Longest accepted prompt, in tokens. With [`LIVE_MAX`] prompts of this length the attention pairs of a
/// unit still fit 64 bits.
pub const PROMPT_TOKENS_MAX: u64 = 1 << 22;
/// Most requests, held and running, of one unit: 144 ranks with 1800 requests each.
pub const LIVE_MAX: usize = 1 << 18;
/// Most events of one batch: a decode step of the largest unit ends fewer requests than this.
pub const EVENTS_MAX: usize = 1 << 16;
/// Most steps that one event may report.
pub const STEPS_MAX: u32 = 1 << 20;
/// Most blocks that one event may name: those of the longest prompt in blocks of 64 tokens, or of 16 up to a
/// million tokens.
pub const BLOCKS_MAX: usize = 1 << 16;
