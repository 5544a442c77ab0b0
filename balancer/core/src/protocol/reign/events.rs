//! What a balancer hears, and what has to be done about it.

use super::order::{Answer, Order, OrderError};
use crate::ids::{Digest, NodeId, Term, UnitId};
use crate::plan::Plan;
use crate::protocol::membership::Claim;
use crate::protocol::unit::{self, PlanRef};
use crate::records::{
    Key, Opaque, Outcome, Pause, Pin, PlanName, RequestId, Revision, Transaction, UnitRecord, Versioned,
};
use crate::units::Millis;
use std::collections::BTreeSet;
use std::sync::Arc;

/// One stream of one agent to this balancer. Numbers grow and are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// Names a call of the store, or an operator who waits for an answer. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Both clocks. Limits are measured with the first; the second stands in records that outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic.
    pub at: Millis,
    /// Unix time in milliseconds.
    pub unix_ms: u64,
}

/// What a balancer is to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It commands.
    Leader,
    /// It listens.
    Standby,
}

/// What a node says of itself, when its stream opens and when the balancer's role or term has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// The node.
    pub node: NodeId,
    /// Differs at every start of the agent.
    pub incarnation: u64,
    /// The unit it belongs to.
    pub unit: UnitId,
    /// Shape, ranks and weights.
    pub claim: Claim,
    /// The plan its workers serve; `None`: they hold no weights yet.
    pub applied: Option<PlanRef>,
    /// The highest term it has seen.
    pub term: Term,
    /// Whether it takes another Welcome on the same stream and introduces itself again. A stream of an agent that does
    /// not is closed instead, so that it opens a new one.
    pub reintroduces: bool,
}

/// A committed plan as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The transaction that last changed [`Key::Head`].
    pub modified: Revision,
}

/// A unit as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredUnit {
    /// The unit.
    pub unit: UnitId,
    /// Its shape and nodes.
    pub record: UnitRecord,
    /// Its last committed plan.
    pub head: Head,
    /// The plan before, if it is still kept.
    pub parent: Option<Arc<Plan>>,
    /// What operators ordered.
    pub holds: Holds,
}

/// What operators have ordered for a unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holds {
    /// Experts held in place.
    pub pins: BTreeSet<Pin>,
    /// Nodes that are emptied.
    pub drains: BTreeSet<NodeId>,
    /// Set while no new plan is to be made.
    pub pause: Option<Pause>,
}

/// All that a new leader has to know, read after its term began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The units that have formed.
    pub units: Vec<RecoveredUnit>,
}

/// Why the store did not answer as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The transaction was made, or not, or will be.
    Unknown,
    /// Nothing was done.
    Away,
    /// Nothing was done: it has no room.
    Full,
}

/// All that happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// This balancer leads, may command before `until`, and knows what the store holds.
    Begin {
        /// Higher than any before.
        term: Term,
        /// When it must stop commanding.
        until: Millis,
        /// Read in this term.
        state: Recovered,
    },
    /// It may command until then, also after [`Event::Freeze`].
    Extend {
        /// When it must stop commanding.
        until: Millis,
    },
    /// It must command nothing until [`Event::Extend`].
    Freeze,
    /// The term is over.
    End,
    /// An agent introduces itself, for the first time on this stream or again.
    Hello {
        /// The stream.
        stream: StreamId,
        /// What it says.
        hello: Introduction,
    },
    /// Something else arrived on a stream.
    Heard(StreamId),
    /// A node answered a command.
    Result {
        /// The stream.
        stream: StreamId,
        /// The plan.
        plan: PlanRef,
        /// The answer.
        answer: unit::Answer,
    },
    /// A stream ended.
    Closed(StreamId),
    /// A plan is to be made the head. Answer to [`Action::Draft`], or what a solve came to.
    Propose {
        /// The plan, which names its unit.
        plan: Arc<Plan>,
        /// Why it was made.
        account: Opaque,
        /// Its content, in chunks as they are stored.
        chunks: Vec<Opaque>,
    },
    /// [`Action::Transact`] is done: the outcome of the last transaction made.
    StoreDone {
        /// Of the action.
        ticket: Ticket,
        /// How it ended.
        outcome: Result<Outcome, Trouble>,
    },
    /// [`Action::Read`] is done.
    ReadDone {
        /// Of the action.
        ticket: Ticket,
        /// What stands under each key, in order.
        found: Result<Vec<Option<Versioned>>, Trouble>,
    },
    /// An operator's order.
    Admin(Admin),
    /// Time has passed.
    Tick,
}

/// An operator's order with who gave it.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Comes back with the answer; the shell's own numbers.
    pub ticket: Ticket,
    /// Name of the operator.
    pub who: String,
    /// The same order under the same name acts once.
    pub request: RequestId,
    /// Digest of the order as it was given.
    pub content: Digest,
    /// What is to be done.
    pub order: Order,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What goes to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// It is admitted, or role or term of this balancer have changed.
    Welcome {
        /// What this balancer is.
        role: Role,
        /// Its term; a standby's is the last one it knows of.
        term: Term,
        /// The head, for a node without weights.
        boot_plan: Option<Arc<Plan>>,
    },
    /// It is not admitted. The stream ends.
    Refuse {
        /// Stable code.
        code: &'static str,
        /// For people.
        text: String,
    },
    /// Nothing; it keeps the stream alive.
    Ping,
    /// Stage `plan` on top of `base`.
    Prepare {
        /// The leader's term.
        term: Term,
        /// The plan to stage.
        plan: Arc<Plan>,
        /// The plan that the node serves.
        base: Arc<Plan>,
    },
    /// Flip to the plan.
    Commit {
        /// The leader's term.
        term: Term,
        /// The plan.
        plan: PlanRef,
    },
    /// Forget the plan.
    Abort {
        /// The leader's term.
        term: Term,
        /// The plan.
        plan: PlanRef,
    },
}

impl Message {
    /// Whether only a leader within its time may send it.
    pub fn is_command(&self) -> bool {
        matches!(self, Message::Prepare { .. } | Message::Commit { .. } | Message::Abort { .. })
    }
}

/// Why a plan is made without a solve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DraftReason {
    /// The first plan of a unit: what its engines booted with.
    Boot,
    /// A step on the way back to an older plan's content.
    Rollback,
    /// A step on the way to what operators ordered: pins and drains.
    Holds,
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a message. When the stream does not take it, it has [`Event::Closed`].
    Send {
        /// The stream.
        stream: StreamId,
        /// The message.
        message: Message,
    },
    /// End a stream, which is forgotten already.
    Close {
        /// The stream.
        stream: StreamId,
        /// Stable code.
        code: &'static str,
    },
    /// Make these transactions in order, up to the first that is not done.
    Transact {
        /// For [`Event::StoreDone`].
        ticket: Ticket,
        /// What to do.
        transactions: Arc<[Transaction]>,
    },
    /// Read keys.
    Read {
        /// For [`Event::ReadDone`].
        ticket: Ticket,
        /// At most [`Transaction::CHANGES_MAX`].
        keys: Vec<Key>,
    },
    /// Write this plan's account and content down, and propose it.
    Draft {
        /// The plan.
        plan: Arc<Plan>,
        /// Why it is made.
        reason: DraftReason,
    },
    /// Answer an operator.
    Answer {
        /// Of the order.
        ticket: Ticket,
        /// What was done.
        answer: Result<Answer, OrderError>,
    },
    /// Something that logs, metrics, telemetry, the solver or the election want to know.
    Notice(Notice),
}

/// What has happened. The machine needs no answer to any of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A node has joined its unit, with what it serves.
    Joined {
        /// The unit.
        unit: UnitId,
        /// The node.
        node: NodeId,
        /// The stream.
        stream: StreamId,
        /// What it serves.
        applied: Option<PlanRef>,
    },
    /// A node's stream has ended.
    Left {
        /// The unit.
        unit: UnitId,
        /// The node.
        node: NodeId,
        /// The stream.
        stream: StreamId,
        /// Stable code.
        code: &'static str,
    },
    /// A node was refused.
    Refused {
        /// The unit.
        unit: UnitId,
        /// The node.
        node: NodeId,
        /// Stable code.
        code: &'static str,
    },
    /// A node has taken the place of another, which will not return.
    Replaced {
        /// The unit.
        unit: UnitId,
        /// The node that is gone.
        old: NodeId,
        /// The node that has its ranks.
        by: NodeId,
    },
    /// A unit's first plan is committed.
    Formed(UnitId),
    /// A plan is being prepared.
    Preparing {
        /// The unit.
        unit: UnitId,
        /// The plan.
        plan: PlanRef,
    },
    /// Every node has prepared the plan, and the store is asked.
    Storing {
        /// The unit.
        unit: UnitId,
        /// The plan.
        plan: PlanRef,
    },
    /// A plan was not taken up: it breaks an invariant or an operator's order, which is a bug of who made it.
    Invalid {
        /// The unit.
        unit: UnitId,
        /// Stable code.
        code: &'static str,
        /// For people.
        text: String,
    },
    /// A plan is the head.
    Committed {
        /// The unit.
        unit: UnitId,
        /// The plan.
        name: PlanName,
    },
    /// A plan was given up.
    Aborted {
        /// The unit.
        unit: UnitId,
        /// The plan.
        plan: PlanRef,
        /// Stable code.
        code: String,
        /// The node to blame, if any.
        node: Option<NodeId>,
    },
    /// Every node serves the head.
    Settled {
        /// The unit.
        unit: UnitId,
        /// The head.
        plan: PlanRef,
    },
    /// A node does not answer COMMIT: its worker may hang.
    Hung {
        /// The unit.
        unit: UnitId,
        /// The node.
        node: NodeId,
        /// The plan.
        plan: PlanRef,
    },
    /// Too many nodes were lost at once, or are back: plans are held back (`on`) or made again.
    MassLoss {
        /// The unit; `None`: all of them.
        unit: Option<UnitId>,
        /// Held back.
        on: bool,
    },
    /// An operator's orders for a unit have changed.
    Held(UnitId),
    /// A write in the name of the term was refused: is it over?
    WriteRefused,
    /// An agent has seen a higher term than this balancer's.
    TermSeen(Term),
}
