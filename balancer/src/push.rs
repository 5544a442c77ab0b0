//! Turns the protocol's actions into commands for one node's stream.

use evenkeel_core::ids::{NodeId, Term};
use evenkeel_core::plan::{Move, Plan, PlanDiff};
use evenkeel_core::protocol::unit::PlanRef;
use evenkeel_core::topology::UnitTopology;
use evenkeel_proto::plan_content::{ContentError, Encoded};
use evenkeel_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Commands waiting for one agent. A plan's three phases, the first of them in up to eight chunks, and some
/// pings: an agent that lets more pile up does not read, and its stream is closed.
pub const COMMANDS_MAX: usize = 16;

/// The first version in which a plan comes in chunks.
const CHUNKED_SINCE: u32 = 2;

/// The sending half of one agent's stream. Dropping it ends the stream.
#[derive(Debug)]
pub struct AgentLink {
    commands: mpsc::Sender<Result<v1::SyncResponse, tonic::Status>>,
    /// Dropped with the link: tells the reading half to stop.
    _open: oneshot::Sender<()>,
    protocol: AtomicU32,
    wants_whole_plans: AtomicBool,
}

impl AgentLink {
    /// A link that sends by `commands`; `open` is dropped with it.
    pub fn new(
        commands: mpsc::Sender<Result<v1::SyncResponse, tonic::Status>>,
        open: oneshot::Sender<()>,
    ) -> Self {
        Self {
            commands,
            _open: open,
            protocol: AtomicU32::new(evenkeel_proto::PROTOCOL_VERSION),
            wants_whole_plans: AtomicBool::new(false),
        }
    }

    /// Sets the version that was chosen.
    pub fn speak(&self, protocol: u32) {
        self.protocol.store(protocol, Ordering::Relaxed);
    }

    /// Queues a message; `false` when the agent does not keep up or is gone.
    #[must_use]
    pub fn send(&self, message: v1::sync_response::Message) -> bool {
        self.commands.try_send(Ok(v1::SyncResponse { message: Some(message) })).is_ok()
    }

    /// Queues PREPARE, in the form that this agent takes; `false` as for [`Self::send`].
    #[must_use]
    pub fn prepare(&self, prepared: &Prepared, order: v1::PlanCommand) -> bool {
        let contents = match self.protocol.load(Ordering::Relaxed) {
            CHUNKED_SINCE.. => prepared.chunked(order, self.wants_whole_plans.load(Ordering::Relaxed)),
            _ => prepared.unchunked(order),
        };
        contents.into_iter().all(|command| self.send(v1::sync_response::Message::Plan(command)))
    }

    /// Notes that the agent could not apply a difference (`delta_mismatch`): it gets whole plans from now on.
    /// Returns whether that is new, so that sending the plan again can help.
    pub fn want_whole_plans(&self) -> bool {
        !self.wants_whole_plans.swap(true, Ordering::Relaxed)
    }
}

/// A plan as it goes over the wire, with its difference to the base: made once, sent to every node. What a
/// node gets for itself are its moves; the plan's bytes are shared by all streams.
#[derive(Debug)]
pub struct Prepared {
    id: PlanRef,
    base_id: PlanRef,
    plan: Arc<Plan>,
    base: Arc<Plan>,
    diff: PlanDiff,
    full: Encoded,
    /// Only when it is smaller.
    delta: Option<Encoded>,
}

impl Prepared {
    /// Of `plan` on top of `base`. The error is about a unit too large to be told to agents.
    pub fn new(plan: &Arc<Plan>, base: &Arc<Plan>, topology: &UnitTopology) -> Result<Self, ContentError> {
        let full = Encoded::full(plan)?;
        let delta = Encoded::delta(plan, base).and_then(Result::ok);
        Ok(Self {
            id: (plan.epoch, plan.digest()),
            base_id: (base.epoch, base.digest()),
            plan: Arc::clone(plan),
            base: Arc::clone(base),
            diff: plan.diff(base, topology),
            delta: delta.filter(|delta| delta.bytes() < full.bytes()),
            full,
        })
    }

    /// Whether this is the preparation of that plan on that base. Asked once per node: the same plan is mostly
    /// the same memory, and digests take longer than all else of a command.
    pub fn is_of(&self, plan: &Arc<Plan>, base: &Arc<Plan>) -> bool {
        let same = |a: &Arc<Plan>, b: &Arc<Plan>| Arc::ptr_eq(a, b) || a == b;
        same(&self.plan, plan) && same(&self.base, base)
    }

    /// PREPARE for one node, but for the plan's content: what this node's slots receive from whom. For
    /// [`AgentLink::prepare`]. `address` says where a node's experts can be fetched.
    pub fn order(
        &self,
        term: Term,
        node: &NodeId,
        topology: &UnitTopology,
        address: impl Fn(&NodeId) -> Option<String>,
        deadline_ms: u64,
    ) -> v1::PlanCommand {
        let shape = topology.shape();
        let home = topology.ordinal_of(node);
        let node_of = |slot: u32| topology.node_of(shape.rank_of_slot(slot as usize));
        let mut peers: Vec<usize> = Vec::new();
        let mut moves = Vec::new();
        for change in self.diff.moves.iter().filter(|m| Some(node_of(m.destination)) == home) {
            let source = node_of(change.source);
            let peer = (Some(source) != home).then(|| index_of(source, &mut peers));
            moves.push(slot_move(change, peer));
        }
        let address = |&p: &usize| address(&topology.nodes()[p]).unwrap_or_default();
        v1::PlanCommand {
            base: Some(self.base_id.into()),
            moves,
            peers: peers.iter().map(address).collect(),
            ..short_command(term, v1::PlanPhase::Prepare, self.id, deadline_ms)
        }
    }

    /// One command per chunk; the last one is the order.
    fn chunked(&self, order: v1::PlanCommand, whole: bool) -> Vec<v1::PlanCommand> {
        let content = self.delta.as_ref().filter(|_| !whole).unwrap_or(&self.full);
        let part = |chunk| v1::PlanCommand {
            term: order.term,
            phase: order.phase,
            id: order.id.clone(),
            content: Some(chunk),
            ..v1::PlanCommand::default()
        };
        let mut commands: Vec<_> = content.chunks().map(part).collect();
        if let Some(last) = commands.last_mut() {
            *last = v1::PlanCommand { content: last.content.take(), ..order };
        }
        commands
    }

    /// As version 1 has it.
    fn unchunked(&self, order: v1::PlanCommand) -> Vec<v1::PlanCommand> {
        vec![v1::PlanCommand { plan: Some(self.plan.as_ref().into()), ..order }]
    }
}

/// Where `node` stands in the list, to which it is added if it does not.
fn index_of(node: usize, nodes: &mut Vec<usize>) -> u32 {
    let index = nodes.iter().position(|&known| known == node).unwrap_or_else(|| {
        nodes.push(node);
        nodes.len() - 1
    });
    u32::try_from(index).expect("nodes of a unit fit 32 bits")
}

fn slot_move(change: &Move, peer: Option<u32>) -> v1::SlotMove {
    v1::SlotMove {
        layer: change.layer.0.into(),
        destination: change.destination,
        expert: change.expert.0.into(),
        source: change.source,
        peer,
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

/// The last preparation, so that a plan is encoded and compared with its base once for all its nodes.
#[derive(Debug, Default)]
pub struct PreparedCache(Option<Arc<Prepared>>);

impl PreparedCache {
    /// The preparation of `plan` on `base`.
    pub fn get(
        &mut self,
        plan: &Arc<Plan>,
        base: &Arc<Plan>,
        topology: &UnitTopology,
    ) -> Result<Arc<Prepared>, ContentError> {
        match &self.0 {
            Some(prepared) if prepared.is_of(plan, base) => Ok(Arc::clone(prepared)),
            _ => Ok(Arc::clone(self.0.insert(Arc::new(Prepared::new(plan, base, topology)?)))),
        }
    }

    /// The preparation of the plan with this name, if it is the last one.
    pub fn last(&self, id: PlanRef) -> Option<Arc<Prepared>> {
        self.0.as_ref().filter(|prepared| prepared.id == id).cloned()
    }
}

#[cfg(test)]
mod tests;
