//! The one task that owns all units. Everything that can change a unit arrives here as an [`Event`]; the
//! pure parts decide; this loop carries their actions out, in order.

mod gauges;
mod joining;
mod planning;
mod plans;

use crate::config::Config;
use crate::metrics as m;
use crate::push::AgentLink;
use crate::routing::Routers;
use crate::store::{Store, StoreError};
use crate::unit::{Formed, SolveResult, StreamId, Unit};
use evenkeel_core::ids::{NodeId, Term, UnitId};
use evenkeel_core::protocol::membership::{Claim, Membership};
use evenkeel_core::protocol::unit::{self as protocol, Limits, UnitControl};
use evenkeel_core::units::Millis;
use evenkeel_proto::{ConvertError, v1};
use joining::ranks_of;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Events waiting for the loop. Senders wait when it is full, which slows streams down, never drops.
pub const EVENTS_MAX: usize = 4096;
/// How often time is looked at: a fraction of the shortest limit.
const TICK: Duration = Duration::from_millis(200);

/// Everything that triggers work.
pub enum Event {
    /// An agent's first message.
    Hello {
        /// The stream.
        stream: StreamId,
        /// What it says.
        hello: Box<v1::Hello>,
        /// The way back.
        link: AgentLink,
    },
    /// A later message of an agent.
    Message {
        /// The stream.
        stream: StreamId,
        /// What it says.
        message: Box<v1::sync_request::Message>,
    },
    /// An agent's stream ended.
    Closed(StreamId),
    /// A solve is done.
    Solved(UnitId, Box<SolveResult>),
    /// A solve ended in a bug.
    SolvePanicked(UnitId),
    /// An operator asks or orders.
    Query(Query),
}

/// An operator's question or order, with the way back for its answer.
pub enum Query {
    /// See `AdminService.GetStatus`.
    Status(oneshot::Sender<v1::GetStatusResponse>),
    /// See `AdminService.GetLoads`.
    Loads(UnitId, oneshot::Sender<Option<v1::GetLoadsResponse>>),
    /// See `AdminService.GetRankLoads`.
    RankLoads(UnitId, oneshot::Sender<Option<v1::GetRankLoadsResponse>>),
    /// Pause (true) or resume a unit; answers whether the unit exists.
    SetPaused(UnitId, bool, oneshot::Sender<bool>),
    /// Stop: agents are told by the end of their streams.
    Stop(oneshot::Sender<()>),
}

struct Stream {
    unit: UnitId,
    node: NodeId,
    link: AgentLink,
    heard: Millis,
    pinged: Millis,
}

/// See the module.
pub struct ControlLoop {
    pub(crate) config: Config,
    pub(crate) term: Term,
    pub(crate) units: BTreeMap<UnitId, Unit>,
    pub(crate) routers: Arc<Routers>,
    store: Arc<dyn Store>,
    streams: HashMap<StreamId, Stream>,
    began: Instant,
    events: mpsc::Sender<Event>,
}

impl ControlLoop {
    /// Begins a term on the store and takes up the units it knows. `events` is the sending half of the queue
    /// that [`Self::run`] will be given: solves report back through it.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        routers: Arc<Routers>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, StoreError> {
        let term = store.begin_term()?;
        let mut this = Self {
            config,
            term,
            units: BTreeMap::new(),
            routers,
            store,
            streams: HashMap::new(),
            began: Instant::now(),
            events,
        };
        for record in this.store.units()? {
            if let Some(unit) = this.restore(&record)? {
                this.units.insert(unit.id.clone(), unit);
            }
        }
        metrics::gauge!(m::LEADER).set(1.0);
        Ok(this)
    }

    fn limits(&self) -> Limits {
        Limits {
            prepare_ms: self.config.control.prepare_timeout_ms,
            commit_ms: self.config.control.commit_timeout_ms,
            ..Limits::default()
        }
    }

    fn restore(&self, record: &v1::StoredUnit) -> Result<Option<Unit>, StoreError> {
        let broken = |reason: String| StoreError::Broken { path: record.unit.clone(), reason };
        let id = UnitId::new(record.unit.as_str()).map_err(|e| broken(e.to_string()))?;
        let Some(head) = self.store.head(&id)? else { return Ok(None) };
        let shape = record.shape.as_ref().ok_or_else(|| broken("the unit's record has no shape".into()))?;
        let shape = shape.try_into().map_err(|e: ConvertError| broken(e.to_string()))?;
        let mut membership = Membership::new(id.clone(), shape, record.weights_digest.clone());
        for node in &record.nodes {
            let name = NodeId::new(node.node.as_str()).map_err(|e| broken(e.to_string()))?;
            let ranks = ranks_of(&node.ranks).map_err(|e| broken(e.to_string()))?;
            let shape = membership.shape().clone();
            let claim = Claim { shape, ranks, weights_digest: record.weights_digest.clone() };
            membership.join(&name, &claim, |_| true).map_err(|e| broken(e.to_string()))?;
        }
        let topology = membership.topology().map_err(|e| broken(e.to_string()))?;
        let parent = match head.plan.parent {
            Some((epoch, _)) => self.store.plan(&id, epoch)?.map(|stored| Arc::new(stored.plan)),
            None => None,
        };
        let nodes = topology.nodes().to_vec();
        let control = UnitControl::new(Arc::new(head.plan), parent, nodes, self.limits());
        let mut unit = Unit::new(id.clone(), membership);
        self.routers.form(&id, topology.shape());
        unit.paused = record.paused;
        tracing::info!(unit = %id, epoch = control.head().epoch.0, "unit taken up from the store");
        metrics::gauge!(m::PLAN_EPOCH, "unit" => id.to_string()).set(control.head().epoch.0 as f64);
        unit.formed = Some(Formed::new(topology, control, self.config.experts.history()));
        Ok(Some(unit))
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.began.elapsed().as_millis()).expect("uptime fits 64 bits"))
    }

    /// Runs until told to stop or the store fails: without it nothing can be committed, and a restart is
    /// the only remedy.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), StoreError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = events.recv() => event.expect("the loop holds a sender itself"),
                _ = ticks.tick() => {
                    self.tick().await?;
                    continue;
                }
            };
            match event {
                Event::Hello { stream, hello, link } => self.hello(stream, &hello, link).await?,
                Event::Message { stream, message } => self.message(stream, *message).await?,
                Event::Closed(stream) => self.closed(stream).await?,
                Event::Solved(unit, result) => self.solved(&unit, *result).await?,
                Event::SolvePanicked(unit) => self.solve_panicked(&unit),
                Event::Query(Query::Stop(done)) => {
                    metrics::gauge!(m::LEADER).set(0.0);
                    let _ = done.send(());
                    return Ok(());
                }
                Event::Query(query) => self.query(query).await?,
            }
        }
    }

    async fn message(
        &mut self,
        stream: StreamId,
        message: v1::sync_request::Message,
    ) -> Result<(), StoreError> {
        let now = self.now();
        // A stream that was displaced by a newer one of the same node has nothing to say any more.
        let Some(entry) = self.streams.get_mut(&stream) else { return Ok(()) };
        entry.heard = now;
        let (unit, node) = (entry.unit.clone(), entry.node.clone());
        match message {
            v1::sync_request::Message::Ping(_) => Ok(()),
            v1::sync_request::Message::Report(report) => {
                self.report(&unit, &node, report);
                self.maybe_solve(&unit);
                Ok(())
            }
            v1::sync_request::Message::Result(result) => self.result(stream, &unit, &node, &result).await,
            v1::sync_request::Message::Event(event) => {
                tracing::warn!(%unit, %node, kind = event.kind().as_str_name(), message = event.message, "agent event");
                Ok(())
            }
            v1::sync_request::Message::Hello(_) => self.drop_stream(stream, "repeated_hello").await,
        }
    }

    async fn closed(&mut self, stream: StreamId) -> Result<(), StoreError> {
        self.drop_stream(stream, "closed_by_peer").await
    }

    async fn drop_stream(&mut self, stream: StreamId, code: &'static str) -> Result<(), StoreError> {
        let Some((id, node)) = self.release(stream, code) else { return Ok(()) };
        if self.units.get(&id).is_some_and(|unit| unit.formed.is_some()) {
            self.step(&id, protocol::Event::Left(node)).await?;
        }
        Ok(())
    }

    /// Forgets a stream; the drop of its link ends it.
    fn release(&mut self, stream: StreamId, code: &'static str) -> Option<(UnitId, NodeId)> {
        let Stream { unit, node, .. } = self.streams.remove(&stream)?;
        tracing::info!(%unit, %node, code, "agent disconnected");
        let entry = self.units.get_mut(&unit).expect("a stream's unit exists");
        if entry.present.get(&node).is_some_and(|p| p.stream == stream) {
            entry.present.remove(&node);
            // A unit that never formed is made of those who are there; nothing of it may pile up.
            if entry.formed.is_none() {
                entry.membership.leave(&node);
                if entry.membership.claims().is_empty() {
                    self.units.remove(&unit);
                }
            }
        }
        Some((unit, node))
    }

    async fn tick(&mut self) -> Result<(), StoreError> {
        let now = self.now();
        let control = self.config.control.clone();
        let mut dead = Vec::new();
        for (&stream, entry) in &mut self.streams {
            if now.since(entry.heard) > control.silence_limit_ms.into() {
                dead.push((stream, "silent"));
            } else if now.since(entry.pinged) >= control.ping_interval_ms.into() {
                entry.pinged = now;
                let ping = v1::Ping { sequence: now.0 };
                if !entry.link.send(v1::sync_response::Message::Ping(ping)) {
                    dead.push((stream, "does_not_read"));
                }
            }
        }
        for (stream, code) in dead {
            self.drop_stream(stream, code).await?;
        }
        let formed: Vec<UnitId> =
            self.units.iter().filter(|(_, u)| u.formed.is_some()).map(|(id, _)| id.clone()).collect();
        for id in formed {
            self.step(&id, protocol::Event::Tick).await?;
            self.maybe_solve(&id);
        }
        self.publish_gauges();
        Ok(())
    }

    async fn query(&mut self, query: Query) -> Result<(), StoreError> {
        // An asker that has gone away needs no answer.
        match query {
            Query::Status(reply) => drop(reply.send(crate::status::status(self))),
            Query::Loads(unit, reply) => {
                drop(reply.send(self.units.get(&unit).and_then(crate::status::loads)));
            }
            Query::RankLoads(unit, reply) => {
                drop(reply.send(self.units.get(&unit).and_then(crate::status::rank_loads)));
            }
            Query::SetPaused(unit, paused, reply) => {
                let found = self.units.get_mut(&unit).map(|u| u.paused = paused).is_some();
                tracing::info!(%unit, paused, found, "pause set by an operator");
                if found {
                    self.store_unit(&unit).await?;
                }
                let _ = reply.send(found);
            }
            Query::Stop(_) => unreachable!("handled by the loop itself"),
        }
        Ok(())
    }
}
