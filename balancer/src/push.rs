//! Turns the protocol's actions into commands for one node's stream.

use evenkeel_core::ids::{NodeId, Term};
use evenkeel_core::plan::{Plan, PlanDiff};
use evenkeel_core::protocol::unit::PlanRef;
use evenkeel_core::topology::UnitTopology;
use evenkeel_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Commands waiting for one agent. A plan's three phases and some pings: an agent that lets more pile up
/// does not read, and its stream is closed.
pub const COMMANDS_MAX: usize = 16;

/// The sending half of one agent's stream. Dropping it ends the stream.
#[derive(Debug)]
pub struct AgentLink {
    /// Commands to the agent.
    pub commands: mpsc::Sender<Result<v1::SyncResponse, tonic::Status>>,
    /// Dropped with the link: tells the reading half to stop.
    pub open: oneshot::Sender<()>,
}

impl AgentLink {
    /// Queues a message; `false` when the agent does not keep up or is gone.
    #[must_use]
    pub fn send(&self, message: v1::sync_response::Message) -> bool {
        self.commands.try_send(Ok(v1::SyncResponse { message: Some(message) })).is_ok()
    }
}

/// A plan as it goes over the wire, with its difference to the base: made once, sent to every node.
#[derive(Debug)]
pub struct Prepared {
    id: PlanRef,
    base: PlanRef,
    plan: v1::Plan,
    diff: PlanDiff,
}

impl Prepared {
    /// Of `plan` on top of `base`.
    pub fn new(plan: &Plan, base: &Plan, topology: &UnitTopology) -> Self {
        Self {
            id: (plan.epoch, plan.digest()),
            base: (base.epoch, base.digest()),
            plan: plan.into(),
            diff: plan.diff(base, topology),
        }
    }

    /// Whether this is the preparation of that plan.
    pub fn is_of(&self, plan: &Plan) -> bool {
        self.id.0 == plan.epoch && self.id.1 == plan.digest()
    }

    /// PREPARE for one node: the whole plan, and what this node's slots receive from whom.
    pub fn command(
        &self,
        term: Term,
        node: &NodeId,
        topology: &UnitTopology,
        addresses: &BTreeMap<NodeId, String>,
        deadline_ms: u64,
    ) -> v1::PlanCommand {
        let shape = topology.shape();
        let home = topology.nodes().iter().position(|n| n == node);
        let node_of = |slot: u32| topology.node_of(shape.rank_of_slot(slot as usize));
        let mut peers: Vec<usize> = Vec::new();
        let mut moves = Vec::new();
        for change in self.diff.moves.iter().filter(|m| Some(node_of(m.destination)) == home) {
            let source = node_of(change.source);
            let peer = (Some(source) != home).then(|| {
                let known = peers.iter().position(|&p| p == source);
                let index = known.unwrap_or_else(|| {
                    peers.push(source);
                    peers.len() - 1
                });
                u32::try_from(index).expect("nodes of a unit fit 32 bits")
            });
            moves.push(v1::SlotMove {
                layer: change.layer.0.into(),
                destination: change.destination,
                expert: change.expert.0.into(),
                source: change.source,
                peer,
            });
        }
        let address = |&p: &usize| addresses.get(&topology.nodes()[p]).cloned().unwrap_or_default();
        v1::PlanCommand {
            term: Some(term.into()),
            phase: v1::PlanPhase::Prepare.into(),
            id: Some(self.id.into()),
            plan: Some(self.plan.clone()),
            base: Some(self.base.into()),
            moves,
            peers: peers.iter().map(address).collect(),
            deadline_ms: u32::try_from(deadline_ms).unwrap_or(u32::MAX),
        }
    }
}

/// COMMIT or ABORT of a plan.
pub fn short_command(term: Term, phase: v1::PlanPhase, id: PlanRef, deadline_ms: u64) -> v1::PlanCommand {
    v1::PlanCommand {
        term: Some(term.into()),
        phase: phase.into(),
        id: Some(id.into()),
        deadline_ms: u32::try_from(deadline_ms).unwrap_or(u32::MAX),
        ..v1::PlanCommand::default()
    }
}

/// The last preparation, so that a plan's difference is computed once for all its nodes.
#[derive(Debug, Default)]
pub struct PreparedCache(Option<Arc<Prepared>>);

impl PreparedCache {
    /// The preparation of `plan` on `base`.
    pub fn get(&mut self, plan: &Plan, base: &Plan, topology: &UnitTopology) -> Arc<Prepared> {
        match &self.0 {
            Some(prepared) if prepared.is_of(plan) => Arc::clone(prepared),
            _ => Arc::clone(self.0.insert(Arc::new(Prepared::new(plan, base, topology)))),
        }
    }
}
