//! What outlives the balancer: terms, units, committed plans. One trait, so that a store shared by several
//! balancers can stand beside the embedded one; both must pass [`conformance`].

#[cfg(test)]
mod conformance;
pub mod embedded;

use evenkeel_core::ids::{Digest, Epoch, Term, UnitId};
use evenkeel_core::plan::Plan;
use evenkeel_proto::v1;

/// Committed plans kept per unit. A DeepSeek-V3 decode plan with its loads is about 300 KB: 60 MB a unit.
pub const PLANS_KEPT: u64 = 200;

/// A committed plan with its account.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The plan.
    pub plan: Plan,
    /// When, why, and what it was to gain.
    pub summary: v1::PlanSummary,
    /// The counts it was solved on; `None` for the boot plan.
    pub loads: Option<v1::LoadTable>,
}

/// Why the store did not do as asked. `code` is stable.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The unit's head is not the plan's parent, or the term is over.
    #[error("unit {unit}: the head is {head}, so the plan's parent is no longer the last committed plan")]
    Conflict {
        /// The unit.
        unit: String,
        /// The head found.
        head: String,
    },
    /// Another process has the store open.
    #[error("store {path} is in use by another process: stop it, or give this one another state_dir")]
    InUse {
        /// The store's file.
        path: String,
    },
    /// The file cannot be read, written or trusted.
    #[error(
        "store {path}: {reason}; if the file is damaged, move it away and restart the units without state"
    )]
    Broken {
        /// The store's file.
        path: String,
        /// What went wrong.
        reason: String,
    },
}

impl StoreError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            StoreError::Conflict { .. } => "store_conflict",
            StoreError::InUse { .. } => "store_in_use",
            StoreError::Broken { .. } => "store_broken",
        }
    }
}

/// Durable state with compare-and-swap. Every success is on disk when the call returns.
pub trait Store: Send + Sync + 'static {
    /// Begins a reign: a term above every earlier one. Commits of earlier terms are refused from here on.
    fn begin_term(&self) -> Result<Term, StoreError>;

    /// The units ever formed, with their nodes.
    fn units(&self) -> Result<Vec<v1::StoredUnit>, StoreError>;

    /// Records a unit's shape and nodes.
    fn put_unit(&self, term: Term, unit: &v1::StoredUnit) -> Result<(), StoreError>;

    /// Makes `stored` the head of its unit if its parent still is (or the unit has none and the plan is the
    /// boot plan), and `term` still reigns.
    fn commit(&self, term: Term, stored: &Stored) -> Result<(), StoreError>;

    /// The head of a unit.
    fn head(&self, unit: &UnitId) -> Result<Option<Stored>, StoreError>;

    /// A committed plan, if it is still kept.
    fn plan(&self, unit: &UnitId, epoch: Epoch) -> Result<Option<Stored>, StoreError>;

    /// Accounts of committed plans, newest first.
    fn summaries(&self, unit: &UnitId, limit: usize) -> Result<Vec<v1::PlanSummary>, StoreError>;
}

/// How a head is compared: epoch and digest.
pub(crate) fn follows(head: Option<(Epoch, Digest)>, plan: &Plan) -> bool {
    head == plan.parent && plan.epoch == head.map_or(Epoch::BOOT, |(epoch, _)| epoch.next())
}
