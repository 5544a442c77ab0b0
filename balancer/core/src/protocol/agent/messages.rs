//! What a balancer orders and what an agent answers.

use super::moves::NodeMove;
use crate::ids::{Digest, Epoch, Term};
use crate::plan::Plan;
use crate::units::Bytes;
use std::sync::Arc;

/// Names one plan of a unit.
pub type PlanId = (Epoch, Digest);

/// Why a command was refused; the names are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The command's term is below the highest one seen.
    StaleTerm,
    /// The plan's epoch is below the one in service.
    StaleEpoch,
    /// Another plan with this epoch is in service or under way: an alarm.
    EpochConflict,
    /// The plan does not start from the one in service.
    BaseMismatch,
    /// COMMIT of a plan that is not staged as a whole.
    NotPrepared,
    /// The plan or its moves break an invariant.
    InvalidPlan,
    /// The node that holds the bytes does not serve them.
    SourceUnreachable,
    /// The bytes that arrived are not those that were sent.
    FingerprintMismatch,
    /// Staging took longer than the command allows.
    DeadlineExceeded,
    /// The worker failed, or hangs.
    WorkerFault,
    /// The difference to the plan in service does not lead to the plan: the whole plan is wanted.
    DeltaMismatch,
    /// There is no room on the node's disk for what must not be forgotten.
    DiskFull,
    /// The node's disk does not take what must not be forgotten.
    StateUnwritable,
}

impl RefusalCode {
    /// The stable code on the wire and in metrics.
    pub fn code(self) -> &'static str {
        match self {
            RefusalCode::StaleTerm => "stale_term",
            RefusalCode::StaleEpoch => "stale_epoch",
            RefusalCode::EpochConflict => "epoch_conflict",
            RefusalCode::BaseMismatch => "base_mismatch",
            RefusalCode::NotPrepared => "not_prepared",
            RefusalCode::InvalidPlan => "invalid_plan",
            RefusalCode::SourceUnreachable => "source_unreachable",
            RefusalCode::FingerprintMismatch => "fingerprint_mismatch",
            RefusalCode::DeadlineExceeded => "deadline_exceeded",
            RefusalCode::WorkerFault => "worker_fault",
            RefusalCode::DeltaMismatch => "delta_mismatch",
            RefusalCode::DiskFull => "disk_full",
            RefusalCode::StateUnwritable => "state_unwritable",
        }
    }
}

/// An order to stage a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// Term of the leader that orders it.
    pub term: Term,
    /// The whole plan.
    pub plan: Arc<Plan>,
    /// The plan that the moves start from.
    pub base: PlanId,
    /// What this node's slots receive.
    pub moves: Vec<NodeMove>,
    /// Transfer addresses that the moves index.
    pub peers: Vec<String>,
    /// Milliseconds within which it must be staged.
    pub deadline_ms: u64,
}

/// An order of the balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Stage a plan; change nothing that is served.
    Prepare(Prepare),
    /// Flip to the staged plan.
    Commit {
        /// Term of the leader that orders it.
        term: Term,
        /// The plan.
        id: PlanId,
    },
    /// Forget the staged plan.
    Abort {
        /// Term of the leader that orders it.
        term: Term,
        /// The plan.
        id: PlanId,
    },
    /// A PREPARE whose content could not be read.
    Unreadable {
        /// Term of the leader that sent it.
        term: Term,
        /// The plan it names.
        id: PlanId,
        /// Why.
        code: RefusalCode,
        /// What is wrong with it, for people.
        message: String,
    },
}

impl Command {
    /// Its term, and the plan it is about.
    pub fn name(&self) -> (Term, PlanId) {
        match self {
            Command::Prepare(prepare) => (prepare.term, (prepare.plan.epoch, prepare.plan.digest())),
            Command::Commit { term, id }
            | Command::Abort { term, id }
            | Command::Unreadable { term, id, .. } => (*term, *id),
        }
    }
}

/// What staging a plan took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes copied between slots of this node.
    pub bytes_local: Bytes,
    /// Bytes fetched from other nodes.
    pub bytes_from_peers: Bytes,
    /// Slots whose bytes were compared with their fingerprint.
    pub slots_verified: u64,
    /// Microseconds from the order to its completion.
    pub elapsed_us: u64,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Staged and verified.
    Prepared(Tally),
    /// In service. The time is that of the flip, zero when nothing had to be done.
    Applied {
        /// Microseconds from COMMIT to the flip.
        elapsed_us: u64,
    },
    /// Nothing of the plan is staged.
    Aborted,
    /// Nothing was changed.
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The highest term that is on disk: that of the command, unless it was stale or could not be written.
    pub term: Term,
    /// The plan the command named.
    pub id: PlanId,
    /// How it ended.
    pub outcome: Outcome,
    /// The plan in service.
    pub applied: Option<PlanId>,
}
