//! One unit of a term: its nodes, its plans, and what operators have ordered for it.

use super::write::Write;
use super::{Holds, RecoveredUnit, StreamId};
use crate::ids::{Epoch, NodeId, Rank, Term, UnitId};
use crate::plan::Plan;
use crate::planted;
use crate::protocol::membership::{Claim, Membership};
use crate::protocol::unit::{Limits, PlanRef, UnitControl};
use crate::records::{Change, Key, Opaque, Pause, PlanName, Record, Revision, UnitRecord};
use crate::topology::UnitTopology;
use crate::units::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why no plan is made for a unit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// This balancer does not lead, or has not confirmed that it still does.
    NotLeading,
    /// Not every node serves the head, or a plan is under way.
    Busy,
    /// Paused by an operator.
    Paused,
    /// On the way back to an older plan.
    RollingBack,
    /// On the way to what operators ordered.
    Rearranging,
    /// Too many nodes were lost at once.
    MassLoss,
    /// The term is young and its nodes are not back yet.
    Returning,
}

impl Held {
    /// For people and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Held::NotLeading => "not_leading",
            Held::Busy => "busy",
            Held::Paused => "paused",
            Held::RollingBack => "rolling_back",
            Held::Rearranging => "rearranging",
            Held::MassLoss => "mass_loss",
            Held::Returning => "returning",
        }
    }
}

/// A unit: forming until every rank has a node and every node serves the boot plan, formed ever after.
#[derive(Debug, Clone)]
pub struct Unit {
    pub(super) membership: Membership,
    /// Nodes that have said in this term what they serve.
    pub(super) present: BTreeMap<NodeId, StreamId>,
    pub(super) holds: Holds,
    /// The transaction of this term that last set or lifted the pause.
    pub(super) pause_at: Revision,
    formed: Option<Formed>,
    limits: Limits,
    /// What the shell was asked to write down.
    pub(super) drafted: Option<PlanRef>,
    /// No draft before, after a plan was given up.
    pub(super) draft_at: Millis,
    pub(super) rollback: Option<super::draft::Rollback>,
    /// What belongs to the plan that is being prepared or stored.
    pub(super) proposal: Option<Proposal>,
    /// The write that makes it the head.
    pub(super) storing: Option<Storing>,
    /// The record in the store has other nodes.
    pub(super) record_stale: bool,
    pub(super) record_writing: bool,
    /// Too many of its nodes were lost at once.
    pub(super) lost: bool,
    /// The highest epoch that a node serves of a history that the store has lost.
    pub(super) lost_epoch: Epoch,
}

/// A unit whose first plan is committed.
#[derive(Debug, Clone)]
pub struct Formed {
    pub(super) topology: Arc<UnitTopology>,
    pub(super) control: UnitControl,
    pub(super) head_modified: Revision,
}

impl Formed {
    /// Ranks and nodes.
    pub fn topology(&self) -> &Arc<UnitTopology> {
        &self.topology
    }

    /// Its plans and nodes.
    pub fn control(&self) -> &UnitControl {
        &self.control
    }
}

/// What is stored beside a plan.
#[derive(Debug, Clone)]
pub(super) struct Proposal {
    pub(super) plan: Arc<Plan>,
    pub(super) id: PlanRef,
    pub(super) account: Opaque,
    pub(super) chunks: Vec<Opaque>,
    /// It is a step of the rollback.
    pub(super) rolls_back: bool,
}

/// A plan on its way into the store.
#[derive(Debug, Clone)]
pub(super) struct Storing {
    pub(super) name: PlanName,
    pub(super) plan: Arc<Plan>,
    /// The head it replaces.
    pub(super) before: Option<Revision>,
    /// Of the plan's unit when it was proposed.
    pub(super) topology: Arc<UnitTopology>,
    pub(super) rolls_back: bool,
    pub(super) write: Write,
}

impl Unit {
    pub(super) fn forming(id: &UnitId, claim: &Claim, limits: Limits) -> Self {
        let membership = Membership::new(id.clone(), claim.shape.clone(), claim.weights_digest.clone());
        Self::new(membership, Holds::default(), limits)
    }

    fn new(membership: Membership, holds: Holds, limits: Limits) -> Self {
        Self {
            membership,
            present: BTreeMap::new(),
            holds,
            pause_at: Revision(0),
            formed: None,
            limits,
            drafted: None,
            draft_at: Millis(0),
            rollback: None,
            proposal: None,
            storing: None,
            record_stale: false,
            record_writing: false,
            lost: false,
            lost_epoch: Epoch::BOOT,
        }
    }

    /// A unit as the store has it. What does not fit together is a damaged store, which the shell has refused.
    pub(super) fn recovered(of: RecoveredUnit, limits: Limits) -> (UnitId, Self) {
        let RecoveredUnit { unit: id, record, head, parent, holds } = of;
        let mut membership = Membership::new(id.clone(), record.shape, record.weights_digest.clone());
        for (node, ranks) in record.nodes {
            let shape = membership.shape().clone();
            let claim = Claim { shape, ranks, weights_digest: record.weights_digest.clone() };
            membership.join(&node, &claim, |_| true).expect("nodes of a record do not overlap");
        }
        let topology = membership.topology().expect("a record has a node for every rank");
        let mut unit = Self::new(membership, holds, limits);
        unit.lost_epoch = if planted!(LostEpochForgotten) { Epoch::BOOT } else { record.lost };
        match parent {
            Some(parent) if planted!(RecoveredHeadIsParent) => {
                unit.form(topology, parent, None, head.modified);
            }
            parent => unit.form(topology, head.plan, parent, head.modified),
        }
        (id, unit)
    }

    pub(super) fn form(
        &mut self,
        topology: Arc<UnitTopology>,
        head: Arc<Plan>,
        parent: Option<Arc<Plan>>,
        head_modified: Revision,
    ) {
        let control = UnitControl::new(head, parent, topology.nodes().to_vec(), self.limits);
        self.formed = Some(Formed { topology, control, head_modified });
    }

    /// Who belongs to it.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Nodes that have said in this term what they serve, with their streams.
    pub fn present(&self) -> &BTreeMap<NodeId, StreamId> {
        &self.present
    }

    /// What operators have ordered.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Its plans, once the first is committed.
    pub fn formed(&self) -> Option<&Formed> {
        self.formed.as_ref()
    }

    pub(super) fn formed_mut(&mut self) -> Option<&mut Formed> {
        self.formed.as_mut()
    }

    /// The last committed plan.
    pub fn head(&self) -> Option<&Arc<Plan>> {
        self.formed.as_ref().map(|formed| formed.control.head())
    }

    /// Takes a pause as a transaction left it. Answers of the store do not come in the order of its transactions.
    pub(super) fn paused_at(&mut self, revision: Revision, pause: Option<Pause>) {
        if revision > self.pause_at {
            (self.pause_at, self.holds.pause) = (revision, pause);
        }
    }

    /// Whether an operator's pause stands at this Unix time.
    pub fn is_paused(&self, unix_ms: u64) -> bool {
        self.holds.pause.as_ref().is_some_and(|pause| pause.until_ms.is_none_or(|until| unix_ms < until))
    }

    /// Whether too many of its nodes were lost at once.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether it is on the way back to an older plan.
    pub fn rolls_back(&self) -> bool {
        self.rollback.is_some()
    }

    /// Whether every rank must have a node from now on: it has formed, or is about to.
    pub(super) fn is_fixed(&self) -> bool {
        self.formed.is_some() || self.storing.is_some()
    }

    /// A node of a unit that has not formed is gone. Returns whether nothing is left of the unit.
    pub(super) fn leave(&mut self, node: &NodeId) -> bool {
        if self.is_fixed() {
            return false;
        }
        self.membership.leave(node);
        self.membership.claims().is_empty()
    }

    /// Ranks have another node now.
    pub(super) fn replaced(&mut self) {
        self.record_stale |= self.is_fixed();
        if let Some(formed) = &mut self.formed
            && let Ok(topology) = self.membership.topology()
        {
            formed.topology = topology;
        }
    }

    /// The record of its shape and nodes.
    pub(super) fn record(&self, id: &UnitId) -> Change {
        let record = UnitRecord {
            shape: self.membership.shape().clone(),
            weights_digest: self.membership.weights_digest().to_vec(),
            nodes: self.membership.claims().clone(),
            lost: self.lost_epoch,
        };
        Change::Put(Key::Unit(id.clone()), Record::Unit(record), None)
    }

    /// The number of the plan that is made next in this term, once the first is committed: above the head, above all that
    /// earlier generations of the store may have used, and above what a node serves that the store does not know.
    pub fn next_epoch(&self, term: Term) -> Option<Epoch> {
        let head = self.head()?.epoch;
        if planted!(LostNumbersUsedAgain) {
            return Some(head.next());
        }
        Some(head.max(self.lost_epoch).next().max(Epoch::first_of(term.generation)))
    }

    /// A node serves this plan. The number of one that the store does not know is not used again, whatever becomes of the
    /// node. Returns whether that is news.
    pub(super) fn note_served(&mut self, epoch: Epoch) -> bool {
        let head = self.head().map_or(Epoch::BOOT, |head| head.epoch);
        let news = epoch > head.max(self.lost_epoch) && epoch.0 - head.0 <= UnitRecord::LOST_MAX;
        if news {
            self.lost_epoch = epoch;
            self.record_stale |= self.is_fixed();
        }
        news
    }

    /// Moves every running time limit.
    pub(super) fn postpone(&mut self, by_ms: u64) {
        self.draft_at = self.draft_at.after(by_ms);
        if let Some(formed) = &mut self.formed {
            formed.control.postpone(by_ms);
        }
    }

    /// The ranks of nodes that are emptied.
    pub fn drained_ranks(&self) -> BTreeSet<Rank> {
        let ranks = |node| self.membership.claims().get(node).into_iter().flatten().copied();
        self.holds.drains.iter().flat_map(ranks).collect()
    }
}

/// The name under which a term commits a plan.
pub(super) fn name_of(term: Term, id: PlanRef) -> PlanName {
    PlanName { term, epoch: id.0, digest: id.1 }
}
