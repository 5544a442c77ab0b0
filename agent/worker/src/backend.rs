//! What every worker backend does for the agent: hold experts in slots, take new ones into empty slots,
//! serve bytes to other nodes, flip tables at a step boundary, and hand out what it counted.
//!
//! Calls may block for as long as a copy of one expert takes, and longer when the worker hangs; the agent
//! makes them from threads that may block. [`WorkerBackend::active`], [`WorkerBackend::poll_counts`],
//! [`WorkerBackend::poll_event`] and [`WorkerBackend::gauges`] never block, not even on a worker that hangs.
//! A call that fails leaves what is served as it was.

use crate::layout::{NodeLayout, SlotAddress};
use evenkeel_core::ids::{Epoch, ExpertId, Rank};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::PlanId;
use evenkeel_kernels::Fingerprint;
use std::io::{self, Read};
use std::sync::Arc;

/// What a slot was verified to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// The expert.
    pub expert: ExpertId,
    /// Fingerprint of its bytes.
    pub fingerprint: Fingerprint,
}

/// Where the bytes of a staged expert come from.
pub enum Source<'a> {
    /// Another slot of this node.
    Slot(SlotAddress),
    /// Bytes from elsewhere, as long as one expert, and the fingerprint that the sender has registered.
    Bytes(&'a mut dyn Read, Fingerprint),
}

/// Tokens that the node's slots served in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepCounts {
    /// The step.
    pub step: u64,
    /// Epoch of the tables it was served with.
    pub epoch: Epoch,
    /// By local slot, see [`NodeLayout`].
    pub counts: Vec<u32>,
}

/// Engine state of one rank. Token fields are counters since the start of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankGauges {
    /// The rank.
    pub rank: Rank,
    /// KVCache in use.
    pub kv_used_tokens: u64,
    /// KVCache capacity.
    pub kv_total_tokens: u64,
    /// Requests in the engine.
    pub requests: u32,
    /// Prompt tokens found in the cache.
    pub tokens_in_hit: u64,
    /// Prompt tokens computed.
    pub tokens_in_miss: u64,
    /// Tokens generated.
    pub tokens_out: u64,
    /// Median step time, microseconds.
    pub step_us_p50: u32,
    /// 99th percentile of the step time, microseconds.
    pub step_us_p99: u32,
}

/// What a worker tells by itself, and balancers should know at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The engine of a rank has ended.
    RankDown {
        /// The rank.
        rank: Rank,
        /// Why, for people.
        message: String,
    },
    /// A rank ran out of memory.
    OutOfMemory {
        /// The rank.
        rank: Rank,
        /// What was asked for, for people.
        message: String,
    },
    /// The node is going to be taken away.
    Drain {
        /// Why, for people.
        message: String,
    },
    /// The worker reaches no step boundary, or does not answer. The agent notices this by itself.
    Hung {
        /// What was waited for, for people.
        message: String,
    },
}

impl WorkerEvent {
    /// Its stable name, as in metrics.
    pub fn code(&self) -> &'static str {
        match self {
            WorkerEvent::RankDown { .. } => "rank_down",
            WorkerEvent::OutOfMemory { .. } => "out_of_memory",
            WorkerEvent::Drain { .. } => "drain",
            WorkerEvent::Hung { .. } => "worker_hung",
        }
    }
}

/// Why a worker refused or failed. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The worker holds no weights yet.
    #[error("the worker holds no weights yet: it boots when the agent has spoken with a balancer")]
    NotBooted,
    /// A slot that this node does not own.
    #[error("{address} is not on this node")]
    UnknownSlot {
        /// The slot.
        address: SlotAddress,
    },
    /// A slot from which the plan in service is served.
    #[error("{address} serves expert {live}: nothing may be staged into it")]
    SlotLive {
        /// The slot.
        address: SlotAddress,
        /// Its expert.
        live: ExpertId,
    },
    /// A slot that does not hold the expert asked for.
    #[error("{address} does not hold expert {expert}")]
    NotHeld {
        /// The slot.
        address: SlotAddress,
        /// The expert asked for.
        expert: ExpertId,
    },
    /// Bytes beyond the end of a slot.
    #[error("{length} bytes at offset {offset} are not within the {size} bytes of a slot")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: usize,
        /// Bytes of a slot.
        size: u64,
    },
    /// Staged bytes that are not those that were sent.
    #[error("{address}: expert {expert} has fingerprint {found}, its source has {expected}")]
    FingerprintMismatch {
        /// The slot.
        address: SlotAddress,
        /// The expert.
        expert: ExpertId,
        /// Fingerprint of the staged bytes.
        found: Fingerprint,
        /// Fingerprint that the source has registered.
        expected: Fingerprint,
    },
    /// A plan whose tables do not have the unit's shape.
    #[error("the plan does not have the shape of the unit: {0}")]
    WrongShape(String),
    /// The source of the bytes failed.
    #[error("the source of expert {expert} for {address} failed: {error}")]
    SourceFailed {
        /// The slot.
        address: SlotAddress,
        /// The expert.
        expert: ExpertId,
        /// Why.
        error: io::Error,
    },
    /// The memory that holds the slots failed.
    #[error("{what} failed: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        error: io::Error,
    },
}

impl WorkerError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            WorkerError::NotBooted => "worker_not_booted",
            WorkerError::UnknownSlot { .. } => "worker_unknown_slot",
            WorkerError::SlotLive { .. } => "worker_slot_live",
            WorkerError::NotHeld { .. } => "worker_not_held",
            WorkerError::OutOfRange { .. } => "worker_out_of_range",
            WorkerError::FingerprintMismatch { .. } => "fingerprint_mismatch",
            WorkerError::WrongShape(_) => "worker_wrong_shape",
            WorkerError::SourceFailed { .. } => "source_unreachable",
            WorkerError::Io { .. } => "worker_io",
        }
    }
}

/// The workers of one node.
pub trait WorkerBackend: Send + Sync {
    /// The node's part of the unit.
    fn layout(&self) -> &NodeLayout;

    /// The plan whose tables are in service. After [`Self::arm`] this is how the agent learns of the flip.
    fn active(&self) -> Option<PlanId>;

    /// Loads every expert that `plan` puts on this node, and serves by it. Slots that it leaves empty get and register what
    /// `beside` puts there: nodes that serve that plan, the one before or the one after, name these. Whatever was held before
    /// is void.
    fn boot(&self, plan: &Arc<Plan>, beside: Option<&Plan>) -> Result<(), WorkerError>;

    /// Copies an expert into a slot that the plan in service leaves empty, reads the slot back, compares
    /// the fingerprints, and registers the slot only if they agree. Until then the slot holds nothing.
    fn stage(
        &self,
        destination: SlotAddress,
        expert: ExpertId,
        source: Source<'_>,
    ) -> Result<Registered, WorkerError>;

    /// What a slot is known to hold: experts of the plan in service, staged ones, and those that the last
    /// flip released, until something is staged over them. The released ones still matter: a node that
    /// flips late may have to fetch from them.
    fn registered(&self, slot: SlotAddress) -> Option<Registered>;

    /// The fingerprint of the bytes that are in a slot now.
    fn fingerprint(&self, slot: SlotAddress) -> Result<Fingerprint, WorkerError>;

    /// Reads bytes of a slot that holds `expert`, from `offset`.
    fn read(
        &self,
        slot: SlotAddress,
        expert: ExpertId,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), WorkerError>;

    /// Arms the tables of `plan`: they replace those in service as a whole at the next step boundary; an
    /// idle worker is at one. Refused unless every slot of the plan on this node holds its expert.
    ///
    /// What is armed belongs to the agent that armed it: when another one attaches, tables that are not in service yet
    /// MUST be dropped before it is told what is. It may stage over slots that they need.
    fn arm(&self, plan: &Arc<Plan>) -> Result<(), WorkerError>;

    /// Takes the counts of the oldest finished step that was not taken yet.
    fn poll_counts(&self) -> Option<StepCounts>;

    /// Takes the oldest event that was not taken yet.
    fn poll_event(&self) -> Option<WorkerEvent> {
        None
    }

    /// Latest engine state by rank, ascending.
    fn gauges(&self) -> Vec<RankGauges>;
}
