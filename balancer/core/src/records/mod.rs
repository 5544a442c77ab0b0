//! What outlives a balancer, as data: typed keys and records, and the transactions that change them.
//!
//! The protocol decides *which* transaction is to be made; a store makes it. The semantics are those of etcd, which
//! the embedded store and [`memory::Memory`] share: one revision for the whole store that grows by one with each
//! transaction that changes something; for each key the revision that created it and the one that last changed it;
//! leases, with which the keys put under them end.
//!
//! Every write but the campaign for the leader's key is *fenced*: it names the term in which it is made, and has no effect
//! once that term is over.

pub mod collect;
mod fence;
pub mod memory;
#[cfg(test)]
mod tests;

pub use fence::{campaign, campaign_in, commit, guarded};

use crate::ids::{Digest, Epoch, ExpertId, LayerId, NodeId, Rank, Term, UnitId};
use crate::topology::UnitShape;
use crate::units::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The store's clock: one more with each transaction that changes something. 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// A promise of the store to forget keys unless it is kept alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// The name that an asker gives to a request, so that it acts once however often it arrives. At most
/// [`RequestId::LENGTH_MAX`] characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(String);

impl RequestId {
    /// Room for a UUID with a prefix, and little enough for a key.
    pub const LENGTH_MAX: usize = 128;

    /// Takes 1 to [`Self::LENGTH_MAX`] characters of `a-z A-Z 0-9 - _ .`; `None` for anything else.
    pub fn new(value: impl Into<String>) -> Option<Self> {
        let value = value.into();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let fits = (1..=Self::LENGTH_MAX).contains(&value.len()) && value.bytes().all(plain);
        fits.then_some(Self(value))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Orders audit entries: time of the leader's clock, then term, then a number within the term, so that two leaders whose
/// clocks differ never write the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuditId {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// The writer's term.
    pub term: Term,
    /// Grows within the term.
    pub sequence: u64,
}

/// Where a record stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Version of the layout.
    Schema,
    /// Raised by `leader adopt` after revisions began again; the first half of every term. Absent means 0.
    Generation,
    /// The reigning balancer, under its lease. Its create revision is the second half of the term.
    Leader,
    /// Shape and nodes of a unit.
    Unit(UnitId),
    /// The last committed plan of a unit: the commit point.
    Head(UnitId),
    /// What a plan consists of, and its account.
    Manifest(UnitId, Epoch),
    /// A part of a plan's content.
    Chunk(UnitId, Epoch, u32),
    /// The plan that is being prepared.
    Pending(UnitId),
    /// Experts held in place by an operator.
    Pins(UnitId),
    /// Nodes that an operator empties.
    Drains(UnitId),
    /// Set while no new plan is to be made.
    Pause(UnitId),
    /// When a node last came or went.
    Agent(NodeId),
    /// An admin request that was carried out, for a day.
    Request(RequestId),
    /// What was changed by whom, for thirty days.
    Audit(AuditId),
}

/// A set of keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every key.
    All,
    /// The leader's key alone.
    Leader,
    /// [`Key::Unit`] of every unit.
    Units,
    /// Everything that belongs to one unit, its [`Key::Unit`] included.
    OfUnit(UnitId),
    /// Manifests of one unit.
    Manifests(UnitId),
    /// Chunks of one plan.
    Chunks(UnitId, Epoch),
    /// [`Key::Agent`] of every node.
    Agents,
    /// Every [`Key::Request`].
    Requests,
    /// Every [`Key::Audit`].
    Audit,
}

impl Scope {
    /// Whether `key` belongs to the set.
    pub fn contains(&self, key: &Key) -> bool {
        match (self, key) {
            (Scope::All, _)
            | (Scope::Leader, Key::Leader)
            | (Scope::Units, Key::Unit(_))
            | (Scope::Agents, Key::Agent(_))
            | (Scope::Requests, Key::Request(_))
            | (Scope::Audit, Key::Audit(_)) => true,
            (Scope::OfUnit(unit), key) => key.unit() == Some(unit),
            (Scope::Manifests(unit), Key::Manifest(of, _)) => unit == of,
            (Scope::Chunks(unit, epoch), Key::Chunk(of, plan, _)) => (unit, epoch) == (of, plan),
            _ => false,
        }
    }
}

impl Key {
    /// The unit that the key belongs to.
    pub fn unit(&self) -> Option<&UnitId> {
        match self {
            Key::Unit(unit)
            | Key::Head(unit)
            | Key::Manifest(unit, _)
            | Key::Chunk(unit, _, _)
            | Key::Pending(unit)
            | Key::Pins(unit)
            | Key::Drains(unit)
            | Key::Pause(unit) => Some(unit),
            Key::Schema | Key::Generation | Key::Leader | Key::Agent(_) | Key::Request(_) | Key::Audit(_) => {
                None
            }
        }
    }
}

/// Names a committed plan and the term that committed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanName {
    /// The leader's term.
    pub term: Term,
    /// The plan's epoch.
    pub epoch: Epoch,
    /// Its digest.
    pub digest: Digest,
}

/// Bytes that the protocol carries and never looks into.
pub type Opaque = Arc<[u8]>;

/// Who reigns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRecord {
    /// Name of the balancer, unique among those that share the store.
    pub balancer: String,
    /// host:port at which other balancers and agents reach it.
    pub address: String,
    /// The lease under which the key stands, so that a standby that has seen the leader die can end it.
    pub lease: LeaseId,
}

/// A unit as it was when its first plan was committed, nodes as last joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitRecord {
    /// Its shape.
    pub shape: UnitShape,
    /// Names the weights.
    pub weights_digest: Vec<u8>,
    /// Ranks of every node.
    pub nodes: BTreeMap<NodeId, Vec<Rank>>,
    /// The highest epoch that a node was found to serve and this store had lost; [`Epoch::BOOT`] where there was none.
    /// No plan is numbered at or below it.
    pub lost: Epoch,
}

impl UnitRecord {
    /// Most plans above the head that a store is believed to have lost. A node that serves a later one has a broken ledger,
    /// whose number must not use up all that a generation has.
    pub const LOST_MAX: u64 = 1_000_000;
}

/// What a plan consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The plan.
    pub name: PlanName,
    /// Number of its chunks.
    pub chunks: u32,
    /// Why it was made and what it was to gain; for people.
    pub account: Opaque,
}

/// An expert that plans must keep on a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin {
    /// The layer.
    pub layer: LayerId,
    /// The expert.
    pub expert: ExpertId,
    /// Where a replica of it stays.
    pub rank: Rank,
}

/// A pause set by an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Who set it.
    pub by: String,
    /// Unix time in milliseconds at which it ends by itself; `None`: when it is resumed.
    pub until_ms: Option<u64>,
}

/// A carried-out admin request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Digest of what was asked: the same id with other content is refused.
    pub content: Digest,
    /// What was answered, for the next time it is asked.
    pub answer: Opaque,
}

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Who: an operator's name, or the balancer's for what it does by itself.
    pub who: String,
    /// What: `commit`, `pause`, `drain`, ...
    pub verb: String,
    /// The unit it concerns.
    pub unit: Option<UnitId>,
    /// The plan that was committed by it.
    pub plan: Option<PlanName>,
    /// Details, for people.
    pub detail: String,
}

/// What stands under a key. Each kind of key has one kind of record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Under [`Key::Schema`].
    Schema(u64),
    /// Under [`Key::Generation`].
    Generation(u64),
    /// Under [`Key::Leader`].
    Leader(LeaderRecord),
    /// Under [`Key::Unit`].
    Unit(UnitRecord),
    /// Under [`Key::Head`] and [`Key::Pending`].
    Plan(PlanName),
    /// Under [`Key::Manifest`].
    Manifest(Manifest),
    /// Under [`Key::Chunk`].
    Chunk(Opaque),
    /// Under [`Key::Pins`].
    Pins(BTreeSet<Pin>),
    /// Under [`Key::Drains`].
    Drains(BTreeSet<NodeId>),
    /// Under [`Key::Pause`].
    Pause(Pause),
    /// Under [`Key::Agent`]: Unix time in milliseconds, and whether it came or went.
    Agent {
        /// Unix time in milliseconds.
        at_ms: u64,
        /// It came, or went.
        connected: bool,
    },
    /// Under [`Key::Request`].
    Request(RequestRecord),
    /// Under [`Key::Audit`].
    Audit(AuditRecord),
}

impl Record {
    /// Whether this kind of record belongs under that kind of key.
    pub fn fits(&self, key: &Key) -> bool {
        matches!(
            (self, key),
            (Record::Schema(_), Key::Schema)
                | (Record::Generation(_), Key::Generation)
                | (Record::Leader(_), Key::Leader)
                | (Record::Unit(_), Key::Unit(_))
                | (Record::Plan(_), Key::Head(_) | Key::Pending(_))
                | (Record::Manifest(_), Key::Manifest(..))
                | (Record::Chunk(_), Key::Chunk(..))
                | (Record::Pins(_), Key::Pins(_))
                | (Record::Drains(_), Key::Drains(_))
                | (Record::Pause(_), Key::Pause(_))
                | (Record::Agent { .. }, Key::Agent(_))
                | (Record::Request(_), Key::Request(_))
                | (Record::Audit(_), Key::Audit(_))
        )
    }
}

/// A record as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// What stands there.
    pub record: Record,
    /// The transaction that created the key.
    pub created: Revision,
    /// The transaction that last changed it.
    pub modified: Revision,
    /// The lease with which it ends.
    pub lease: Option<LeaseId>,
}

/// What must hold for a transaction to have any effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent(Key),
    /// The key was last changed by this transaction.
    Modified(Key, Revision),
    /// The term reigns: [`Key::Leader`] was created at its revision, and [`Key::Generation`] is its generation (0: absent).
    Reigns(Term),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Creates or replaces.
    Put(Key, Record, Option<LeaseId>),
    /// Deletes; a key that is not there is no error.
    Delete(Key),
}

/// All or nothing: when every expectation holds, every change is made, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// What must hold.
    pub expects: Vec<Expect>,
    /// What is done. No key twice; at most [`Transaction::CHANGES_MAX`].
    pub changes: Vec<Change>,
}

impl Transaction {
    /// etcd refuses more than 128 operations unless told otherwise; the rest is room for the expectations' reads.
    pub const CHANGES_MAX: usize = 100;
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done, at this revision.
    Done(Revision),
    /// An expectation does not hold: nothing was done.
    Refused,
}

/// A change that a watcher is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The transaction.
    pub revision: Revision,
    /// The key.
    pub key: Key,
    /// What stands there now; `None`: it was deleted, or its lease ended.
    pub now: Option<Versioned>,
}

/// How long admin requests are remembered.
pub const REQUEST_KEPT: Millis = Millis(24 * 3600 * 1000);
/// How long the audit is kept.
pub const AUDIT_KEPT: Millis = Millis(30 * 24 * 3600 * 1000);
/// Bytes of a chunk at most: well below the 1.5 MiB that etcd accepts in a request.
pub const CHUNK_BYTES_MAX: usize = 512 * 1024;
/// Committed plans kept per unit. A DeepSeek-V3 decode plan with its loads is about 300 KB: 60 MB a unit.
pub const PLANS_KEPT: u64 = 200;
