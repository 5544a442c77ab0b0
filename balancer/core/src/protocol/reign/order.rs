//! What operators may order, and what they are answered.

use crate::ids::Term;
use crate::ids::{Epoch, NodeId, UnitId};
use crate::plan::Plan;
use crate::records::{AuditId, Opaque, Pin};
use std::sync::Arc;

/// An operator's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Make no new plan for the unit.
    Pause {
        /// The unit.
        unit: UnitId,
        /// How long, in milliseconds; `None`: until it is resumed.
        for_ms: Option<u64>,
    },
    /// Make plans again.
    Resume(UnitId),
    /// Empty a node, so that it can be switched off.
    Drain(NodeId),
    /// Use a node again.
    Undrain(NodeId),
    /// Keep a replica where it is to be.
    Pin(UnitId, Pin),
    /// Let it move again.
    Unpin(UnitId, Pin),
    /// Go back to the content of an older plan, under a new epoch, and pause the unit.
    Rollback {
        /// The plan to go back to, which names its unit.
        to: Arc<Plan>,
    },
    /// Give up the plan that is being prepared.
    Abort {
        /// The unit.
        unit: UnitId,
        /// The plan; `None`: whichever it is.
        epoch: Option<Epoch>,
    },
}

impl Order {
    /// The order's name in audit, metrics and texts.
    pub fn verb(&self) -> &'static str {
        match self {
            Order::Pause { .. } => "pause",
            Order::Resume(_) => "resume",
            Order::Drain(_) => "drain",
            Order::Undrain(_) => "undrain",
            Order::Pin(..) => "pin",
            Order::Unpin(..) => "unpin",
            Order::Rollback { .. } => "rollback",
            Order::Abort { .. } => "abort",
        }
    }
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The entry in the audit; `None` for a dry run.
    pub audit: Option<AuditId>,
    /// For people.
    pub text: String,
    /// It was done before, under the same request id.
    pub repeated: bool,
}

impl Answer {
    /// As it is kept in the store: the audit's id as text, a space, the text.
    pub(super) fn kept(audit: AuditId, text: &str) -> Opaque {
        Opaque::from(format!("{} {text}", audit_text(audit)).into_bytes())
    }

    /// What was kept. Something else in its place loses the details and no more.
    pub(super) fn of_kept(kept: &[u8]) -> Answer {
        let kept = String::from_utf8_lossy(kept);
        let (audit, text) = kept.split_once(' ').unwrap_or(("", &kept));
        Answer { audit: audit_of_text(audit), text: text.to_owned(), repeated: true }
    }
}

/// An audit entry's name for people and commands: time, generation, revision, number, joined by points.
pub fn audit_text(id: AuditId) -> String {
    format!("{}.{}.{}.{}", id.at_ms, id.term.generation, id.term.revision, id.sequence)
}

/// What [`audit_text`] says, read again.
pub fn audit_of_text(text: &str) -> Option<AuditId> {
    let mut numbers = text.split('.').map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten();
    let (at_ms, generation, revision, sequence) = (next()?, next()?, next()?, next()?);
    let term = Term { generation, revision };
    numbers.next().is_none().then_some(AuditId { at_ms, term, sequence })
}

/// Why an order was not carried out. `code` is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Another balancer leads.
    #[error("this balancer does not lead: ask the leader")]
    NotLeader,
    /// The store has not confirmed the lead.
    #[error(
        "the balancer cannot reach its store, so it changes nothing; it goes on by itself, then repeat the order"
    )]
    Frozen,
    /// Too many at once.
    #[error("{0} orders are waiting: wait until they are done")]
    Busy(usize),
    /// The id stands for another order.
    #[error("request id {0} was used for another order within a day: use a new one")]
    RequestIdConflict(String),
    /// No such unit has formed.
    #[error("no unit {0} has formed: see `evenkeel status`")]
    UnknownUnit(UnitId),
    /// No such node belongs to a unit.
    #[error("no node {0} belongs to a formed unit: see `evenkeel status`")]
    UnknownNode(NodeId),
    /// What is to be taken back is not there.
    #[error("{0}: there is nothing to take back")]
    NotHeld(String),
    /// The unit makes no plans, which the order needs.
    #[error("unit {0} is paused, and this needs new plans: resume it first")]
    UnitPaused(UnitId),
    /// A plan is under way, or a node is away.
    #[error("unit {0} is busy ({1}): wait until it is steady, see `evenkeel status`")]
    UnitBusy(UnitId, &'static str),
    /// The node may not be emptied.
    #[error("node {node} cannot be drained: {reason}")]
    DrainInfeasible {
        /// The node.
        node: NodeId,
        /// What is missing.
        reason: String,
    },
    /// A pin outside the unit, or one that cannot hold beside the others.
    #[error("layer {}, expert {}, rank {} cannot be pinned: {reason}", .pin.layer, .pin.expert, .pin.rank)]
    PinInfeasible {
        /// The pin.
        pin: Pin,
        /// Why.
        reason: String,
    },
    /// The older plan cannot be gone back to.
    #[error("unit {unit} cannot go back to plan {epoch}: {reason}")]
    RollbackInfeasible {
        /// The unit.
        unit: UnitId,
        /// The older plan.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// Nothing that could be given up.
    #[error("unit {0} prepares no plan{1}: a committed plan is only rolled forward; use rollback")]
    NothingToAbort(UnitId, String),
    /// A plan that the order needs was given up.
    #[error("plan {epoch} was given up: {code}; nothing was changed, the order can be repeated")]
    PlanAborted {
        /// The plan.
        epoch: Epoch,
        /// Its code.
        code: String,
    },
    /// The store refused the write.
    #[error(
        "the store refused the write: the lead went over meanwhile; repeat the order with the same request id"
    )]
    Refused,
    /// The store was away or full; nothing was changed.
    #[error("the store {0}: nothing was changed, repeat the order with the same request id")]
    Store(&'static str),
    /// Nobody knows yet.
    #[error("the store did not say whether it was done: repeat the order with the same request id")]
    OutcomeUnknown,
}

impl OrderError {
    /// The stable code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            OrderError::NotLeader => "not_leader",
            OrderError::Frozen => "frozen",
            OrderError::Busy(_) => "too_many_orders",
            OrderError::RequestIdConflict(_) => "request_id_conflict",
            OrderError::UnknownUnit(_) => "unknown_unit",
            OrderError::UnknownNode(_) => "unknown_node",
            OrderError::NotHeld(_) => "not_held",
            OrderError::UnitPaused(_) => "unit_paused",
            OrderError::UnitBusy(..) => "unit_busy",
            OrderError::DrainInfeasible { .. } => "drain_infeasible",
            OrderError::PinInfeasible { .. } => "pins_infeasible",
            OrderError::RollbackInfeasible { .. } => "rollback_infeasible",
            OrderError::NothingToAbort(..) => "nothing_to_abort",
            OrderError::PlanAborted { .. } => "plan_aborted",
            OrderError::Refused => "store_conflict",
            OrderError::Store(_) => "store_unavailable",
            OrderError::OutcomeUnknown => "outcome_unknown",
        }
    }
}
