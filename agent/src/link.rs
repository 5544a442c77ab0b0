//! What sessions and the reconciler say to each other.

use crate::wire::Order;
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{BalancerRole, PlanId, StreamId};
use evenkeel_proto::v1;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Inputs waiting: sessions wait for room, so this bounds a flood of commands.
pub(crate) const INPUTS_MAX: usize = 16;

/// What the agent says of itself in Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction {
    /// The plan in service.
    pub applied: Option<PlanId>,
    /// The highest term seen.
    pub term: Term,
}

/// What the reconciler wants a session to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// The answer to a command.
    Result(v1::PlanResult),
    /// What every balancer should know at once.
    Event(v1::Event),
    /// Hello again.
    Introduction(Introduction),
}

/// What sessions tell.
pub(crate) enum Input {
    Attach { out: mpsc::Sender<Outgoing>, attached: oneshot::Sender<(StreamId, Introduction)> },
    Detach(StreamId),
    Welcomed { stream: StreamId, role: BalancerRole, term: Term, boot_plan: Option<Arc<Plan>> },
    Order { stream: StreamId, order: Box<Order> },
}

/// A session's end of the reconciler.
#[derive(Clone)]
pub struct Link {
    inputs: mpsc::Sender<Input>,
    applied: watch::Receiver<Option<PlanId>>,
}

/// The reconciler has ended: the agent is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl Link {
    pub(crate) fn new(inputs: mpsc::Sender<Input>, applied: watch::Receiver<Option<PlanId>>) -> Self {
        Self { inputs, applied }
    }

    async fn tell(&self, input: Input) -> Result<(), Gone> {
        self.inputs.send(input).await.map_err(|_| Gone)
    }

    /// Begins a stream. What is to be sent on it goes to `out`; its sender is dropped when the stream has to
    /// be closed.
    pub async fn attach(&self, out: mpsc::Sender<Outgoing>) -> Result<(StreamId, Introduction), Gone> {
        let (attached, answer) = oneshot::channel();
        self.tell(Input::Attach { out, attached }).await?;
        answer.await.map_err(|_| Gone)
    }

    /// Ends a stream.
    pub async fn detach(&self, stream: StreamId) -> Result<(), Gone> {
        self.tell(Input::Detach(stream)).await
    }

    /// Passes on what a balancer says it is.
    pub async fn welcomed(
        &self,
        stream: StreamId,
        role: BalancerRole,
        term: Term,
        boot_plan: Option<Plan>,
    ) -> Result<(), Gone> {
        self.tell(Input::Welcomed { stream, role, term, boot_plan: boot_plan.map(Arc::new) }).await
    }

    /// Passes on an order.
    pub async fn order(&self, stream: StreamId, order: Order) -> Result<(), Gone> {
        self.tell(Input::Order { stream, order: Box::new(order) }).await
    }

    /// The plan in service, once the leader has been told of it.
    pub fn applied(&self) -> Option<PlanId> {
        *self.applied.borrow()
    }
}
