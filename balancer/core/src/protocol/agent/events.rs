//! What happens to an agent, and what its shell must do about it.

use super::messages::{Command, RefusalCode, Reply, Tally};
use super::moves::NodeMove;
use crate::ids::Term;
use crate::plan::Plan;
use std::sync::Arc;

/// One stream to one balancer. Numbers grow with every stream that an agent opens in its life, to whatever
/// balancer, so that of two streams the newer has the higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What a balancer says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BalancerRole {
    /// It commands, in the term it names.
    Leader,
    /// It listens and keeps itself warm. Its term is that of the leader it knows of.
    Standby,
}

/// All that triggers work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream to a balancer was opened.
    Connected {
        /// The stream; its number is higher than any before.
        stream: StreamId,
    },
    /// A stream ended.
    Disconnected {
        /// The stream.
        stream: StreamId,
    },
    /// A balancer accepted this agent, or says on the same stream that its role or term is another now.
    Welcomed {
        /// The stream.
        stream: StreamId,
        /// What the balancer is.
        role: BalancerRole,
        /// Its term.
        term: Term,
        /// What to boot with when there is no plan yet. A standby's is not used.
        boot_plan: Option<Arc<Plan>>,
    },
    /// An order arrived.
    Command {
        /// The stream.
        stream: StreamId,
        /// The order.
        command: Command,
    },
    /// [`Action::PersistTerm`] is done.
    TermPersisted,
    /// [`Action::PersistTerm`] failed; the disk says what it said before.
    TermNotPersisted {
        /// [`RefusalCode::DiskFull`] or [`RefusalCode::StateUnwritable`].
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// [`Action::PersistPlan`] is done.
    PlanPersisted,
    /// [`Action::PersistPlan`] failed; the disk says what it said before.
    PlanNotPersisted {
        /// [`RefusalCode::DiskFull`] or [`RefusalCode::StateUnwritable`].
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// [`Action::PersistStaged`] is done.
    StagedPersisted,
    /// [`Action::PersistStaged`] failed; the disk says what it said before.
    StagedNotPersisted {
        /// [`RefusalCode::DiskFull`] or [`RefusalCode::StateUnwritable`].
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// The worker holds the weights of the boot plan.
    Booted,
    /// The worker could not boot.
    BootFailed {
        /// Why, for people.
        message: String,
    },
    /// Everything of this attempt is staged and verified.
    Staged {
        /// Number of the attempt.
        attempt: u64,
        /// What it took.
        tally: Tally,
    },
    /// An attempt to stage came to nothing.
    StageFailed {
        /// Number of the attempt.
        attempt: u64,
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// Every rank of the node serves the plan.
    Flipped {
        /// Number of the attempt.
        attempt: u64,
        /// Microseconds from COMMIT to the flip.
        elapsed_us: u64,
    },
    /// The tables could not be flipped; the plan before is still served.
    FlipFailed {
        /// Number of the attempt.
        attempt: u64,
        /// Why, for people.
        message: String,
    },
    /// Time has passed; see [`super::Agent::deadline`].
    Tick,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make this the highest term on disk. The next event must be [`Event::TermPersisted`] or
    /// [`Event::TermNotPersisted`].
    PersistTerm(Term),
    /// Make this the last good plan on disk. The next event must be [`Event::PlanPersisted`] or
    /// [`Event::PlanNotPersisted`].
    PersistPlan {
        /// The plan.
        plan: Arc<Plan>,
        /// What is loaded beside it, into slots that it leaves empty, by a node that has lost its weights: the plan that was in
        /// service before, which other nodes may serve still.
        before: Option<Arc<Plan>>,
    },
    /// Let a node that has lost its weights load what this plan names beside the last good plan on disk. The next event
    /// must be [`Event::StagedPersisted`] or [`Event::StagedNotPersisted`].
    PersistStaged(Arc<Plan>),
    /// Load the weights of this plan into the worker.
    Boot(Arc<Plan>),
    /// Stage the moves into empty slots, and verify each.
    Stage {
        /// Number to name in the answer.
        attempt: u64,
        /// The plan.
        plan: Arc<Plan>,
        /// What this node's slots receive.
        moves: Vec<NodeMove>,
        /// Transfer addresses that the moves index.
        peers: Vec<String>,
    },
    /// Stop staging and forget what was staged.
    Unstage {
        /// Number of the attempt.
        attempt: u64,
    },
    /// Flip every rank's tables to the staged plan at the next step boundary.
    Flip {
        /// Number to name in the answer.
        attempt: u64,
        /// The plan.
        plan: Arc<Plan>,
    },
    /// Send an answer.
    Reply {
        /// The stream.
        stream: StreamId,
        /// The answer.
        reply: Reply,
    },
    /// Say again by Hello what is served and what the highest term is: the balancer at the other end has
    /// changed its role or term, or welcomes what is out of date.
    Introduce {
        /// The stream.
        stream: StreamId,
    },
    /// Close the stream.
    CloseStream {
        /// The stream.
        stream: StreamId,
        /// Why, for people.
        message: String,
    },
}
