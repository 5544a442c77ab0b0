//! The one task that owns all units. Everything that can change a unit arrives here as an [`Event`]; the
//! pure parts decide; this loop carries their actions out, in order.

use crate::config::Config;
use crate::metrics as m;
use crate::push::{AgentLink, short_command};
use crate::routing::Routers;
use crate::store::{Store, StoreError, Stored};
use crate::telemetry::Taken;
use crate::unit::{Formed, Pending, Presence, SolveResult, StreamId, Unit};
use evenkeel_core::ids::{Epoch, NodeId, Rank, Term, UnitId};
use evenkeel_core::invariants;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::membership::{Claim, Membership};
use evenkeel_core::protocol::unit::{self as protocol, Action, Answer, Limits, PlanRef, UnitControl};
use evenkeel_core::report::{Decision, KeepReason};
use evenkeel_core::units::Millis;
use evenkeel_proto::{ConvertError, PROTOCOL_VERSION, v1};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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

/// A refusal on its way to an agent.
struct Refused {
    code: String,
    message: String,
}

impl Refused {
    fn new(code: &str, message: impl ToString) -> Self {
        Self { code: code.to_owned(), message: message.to_string() }
    }
}

impl From<ConvertError> for Refused {
    fn from(e: ConvertError) -> Self {
        Self::new("invalid_hello", e)
    }
}

/// An admitted node.
struct Admitted {
    unit: UnitId,
    node: NodeId,
    /// The plan it serves.
    applied: Option<PlanRef>,
    /// It took the place of other nodes.
    replaced_others: bool,
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
        unit.formed = Some(Formed::new(topology, control));
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

    async fn hello(
        &mut self,
        stream: StreamId,
        hello: &v1::Hello,
        link: AgentLink,
    ) -> Result<(), StoreError> {
        match self.admit(stream, hello) {
            Ok(admitted) => self.welcome(stream, admitted, hello, link).await,
            Err(refused) => {
                tracing::warn!(node = hello.node, unit = hello.unit, code = refused.code, "agent refused");
                let Refused { code, message } = refused;
                let _ = link.send(v1::sync_response::Message::Refusal(v1::Refusal { code, message }));
                Ok(())
            }
        }
    }

    /// Takes the node into its unit's membership, or says why not. A refusal changes nothing.
    fn admit(&mut self, stream: StreamId, hello: &v1::Hello) -> Result<Admitted, Refused> {
        if hello.cluster != self.config.cluster {
            let ours = &self.config.cluster;
            let text = format!("the agent belongs to cluster {}, this is {ours}", hello.cluster);
            return Err(Refused::new("cluster_mismatch", text));
        }
        if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL_VERSION) {
            let (min, max) = (hello.protocol_min, hello.protocol_max);
            let text = format!("the agent speaks protocol {min} to {max}, this balancer {PROTOCOL_VERSION}");
            return Err(Refused::new("protocol_unsupported", text));
        }
        if self.streams.len() >= self.config.control.agents_max as usize {
            let text = format!("{} agents are connected: raise control.agents_max", self.streams.len());
            return Err(Refused::new("too_many_agents", text));
        }
        let invalid = |e: &dyn std::fmt::Display| Refused::new("invalid_hello", e);
        let id = UnitId::new(hello.unit.as_str()).map_err(|e| invalid(&e))?;
        let node = NodeId::new(hello.node.as_str()).map_err(|e| invalid(&e))?;
        let shape = hello.shape.as_ref().ok_or_else(|| invalid(&"shape is required"))?;
        let claim = Claim {
            shape: shape.try_into()?,
            ranks: ranks_of(&hello.ranks)?,
            weights_digest: hello.weights_digest.clone(),
        };
        let applied = hello.applied.as_ref().map(TryInto::try_into).transpose()?;
        let known = self.units.remove(&id);
        let mut unit = known.unwrap_or_else(|| {
            let weights = claim.weights_digest.clone();
            Unit::new(id.clone(), Membership::new(id.clone(), claim.shape.clone(), weights))
        });
        let admitted = admit_node(&mut unit, &node, &claim, applied);
        if admitted.is_ok() || !unit.membership.claims().is_empty() {
            self.units.insert(id.clone(), unit);
        }
        let replaced = admitted?;
        for old in &replaced {
            tracing::info!(unit = %id, %old, by = %node, "node replaced");
            self.forget(&id, old);
        }
        tracing::debug!(stream, unit = %id, %node, "agent admitted");
        Ok(Admitted { unit: id, node, applied, replaced_others: !replaced.is_empty() })
    }

    /// A replaced node's ranks have another home now.
    fn forget(&mut self, id: &UnitId, old: &NodeId) {
        let now = self.now();
        let unit = self.units.get_mut(id).expect("just admitted to");
        unit.present.remove(old);
        if let Some(formed) = &mut unit.formed {
            // The node was away, so nothing is being prepared and no action follows.
            formed.control.step(now, protocol::Event::Forgotten(old.clone()));
            if let Ok(topology) = unit.membership.topology() {
                formed.topology = topology;
                formed.prepared = Default::default();
            }
        }
    }

    async fn welcome(
        &mut self,
        stream: StreamId,
        admitted: Admitted,
        hello: &v1::Hello,
        link: AgentLink,
    ) -> Result<(), StoreError> {
        let Admitted { unit: id, node, applied, replaced_others } = admitted;
        let unit = self.units.get_mut(&id).expect("just admitted to");
        let head = unit.formed.as_ref().map(|f| Arc::clone(f.control.head()));
        let control = &self.config.control;
        let welcome = v1::Welcome {
            term: Some(self.term.into()),
            protocol: PROTOCOL_VERSION,
            window_steps: control.window_steps,
            report_interval_ms: control.report_interval_ms,
            ping_interval_ms: control.ping_interval_ms,
            silence_limit_ms: control.silence_limit_ms,
            boot_plan: if applied.is_none() { head.as_deref().map(Into::into) } else { None },
        };
        let now = self.now();
        if !link.send(v1::sync_response::Message::Welcome(welcome)) {
            return Ok(());
        }
        let unit = self.units.get_mut(&id).expect("just admitted to");
        let presence = Presence { stream, applied, transfer_address: hello.transfer_address.clone() };
        if let Some(old) = unit.present.insert(node.clone(), presence) {
            self.streams.remove(&old.stream);
        }
        tracing::info!(unit = %id, %node, applied = ?applied.map(|a| a.0.0), "agent connected");
        let entry = Stream { unit: id.clone(), node: node.clone(), link, heard: now, pinged: now };
        self.streams.insert(stream, entry);
        if self.units[&id].formed.is_some() {
            // A node that returns as it was changes nothing: no write, however many return at once.
            if replaced_others {
                self.store_unit(&id).await?;
            }
            self.step(&id, protocol::Event::Joined(node, applied)).await
        } else {
            self.try_form(&id).await
        }
    }

    async fn store_unit(&self, id: &UnitId) -> Result<(), StoreError> {
        let record = self.units[id].record();
        let (store, term) = (Arc::clone(&self.store), self.term);
        on_disk("put_unit", move || store.put_unit(term, &record)).await
    }

    /// Commits the boot plan once every node serves it.
    async fn try_form(&mut self, id: &UnitId) -> Result<(), StoreError> {
        let Some(topology) = self.units[id].ready_to_form() else { return Ok(()) };
        let boot = Plan::boot(id.clone(), topology.shape());
        let boot_id = (boot.epoch, boot.digest());
        let summary = v1::PlanSummary {
            id: Some(boot_id.into()),
            kind: v1::PlanKind::Boot.into(),
            committed_ms: unix_ms(),
            ..v1::PlanSummary::default()
        };
        self.store_unit(id).await?;
        let (store, term) = (Arc::clone(&self.store), self.term);
        let stored = Stored { plan: boot.clone(), summary, loads: None };
        on_disk("commit", move || store.commit(term, &stored)).await?;
        metrics::counter!(m::PLANS_COMMITTED, "unit" => id.to_string(), "kind" => "boot").increment(1);
        metrics::gauge!(m::PLAN_EPOCH, "unit" => id.to_string()).set(0.0);
        self.routers.form(id, topology.shape());
        let nodes = topology.nodes().to_vec();
        let control = UnitControl::new(Arc::new(boot), None, nodes.clone(), self.limits());
        let unit = self.units.get_mut(id).expect("exists");
        unit.formed = Some(Formed::new(topology, control));
        unit.last_decision = "waiting for the first load window".to_owned();
        tracing::info!(unit = %id, nodes = nodes.len(), "unit formed");
        for node in nodes {
            self.step(id, protocol::Event::Joined(node, Some(boot_id))).await?;
        }
        Ok(())
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
            v1::sync_request::Message::Hello(_) => self.drop_stream(stream, "repeated_hello").await,
        }
    }

    fn report(&mut self, id: &UnitId, node: &NodeId, report: v1::Report) {
        let unit = self.units.get_mut(id).expect("a stream's unit exists");
        let owned = unit.membership.claims().get(node).cloned().unwrap_or_default();
        for gauges in report.gauges {
            let rank = u16::try_from(gauges.rank).map(Rank);
            match rank {
                Ok(rank) if owned.contains(&rank) => drop(unit.gauges.insert(rank, gauges)),
                _ => metrics::counter!(m::DECODE_ERRORS, "source" => "gauges").increment(1),
            }
        }
        let Some(formed) = &mut unit.formed else { return };
        for segment in &report.segments {
            let plan = formed.control.plan_of(Epoch(segment.epoch)).cloned();
            let given_up = formed.windows.given_up;
            let taken = formed.windows.take(node, segment, plan.as_deref(), &formed.topology);
            count_window(id, "given_up", formed.windows.given_up - given_up);
            match taken {
                Taken::Open => {}
                Taken::Mixed => count_window(id, "mixed", 1),
                Taken::Dropped(reason) => {
                    metrics::counter!(m::DROPPED_REPORTS, "unit" => id.to_string(), "reason" => reason)
                        .increment(1);
                }
                Taken::Clean(window) => {
                    count_window(id, "clean", 1);
                    let imbalance = window.imbalance(formed.topology.shape().ranks.into());
                    formed.take_clean(window);
                    metrics::gauge!(m::IMBALANCE, "unit" => id.to_string(), "kind" => "expert")
                        .set(imbalance);
                    if let Some(gain) = formed.realised_gain() {
                        metrics::gauge!(m::REALISED_GAIN, "unit" => id.to_string()).set(gain);
                    }
                }
            }
        }
    }

    async fn result(
        &mut self,
        stream: StreamId,
        id: &UnitId,
        node: &NodeId,
        result: &v1::PlanResult,
    ) -> Result<(), StoreError> {
        let Some((plan, answer)) = read_result(result) else {
            metrics::counter!(m::DECODE_ERRORS, "source" => "plan_result").increment(1);
            return self.drop_stream(stream, "malformed_result").await;
        };
        let name = id.to_string();
        for (path, bytes) in [("local", result.bytes_local), ("peer", result.bytes_from_peers)] {
            metrics::counter!(m::MOVED_BYTES, "unit" => name.clone(), "path" => path).increment(bytes);
        }
        metrics::counter!(m::SLOTS_VERIFIED, "unit" => name.clone()).increment(result.slots_verified);
        if let Answer::Refused(code) = &answer {
            tracing::warn!(unit = %id, %node, code, message = result.message, "plan refused");
            metrics::counter!(m::PLAN_REFUSALS, "unit" => name, "code" => code.clone()).increment(1);
        }
        let unit = self.units.get_mut(id).expect("a stream's unit exists");
        if answer == Answer::Applied
            && let Some(presence) = unit.present.get_mut(node)
        {
            presence.applied = Some(plan);
        }
        if unit.formed.is_some() {
            self.step(id, protocol::Event::Answered(node.clone(), plan, answer)).await
        } else {
            self.try_form(id).await
        }
    }

    /// Feeds the unit's protocol and carries out what it asks for.
    async fn step(&mut self, id: &UnitId, event: protocol::Event) -> Result<(), StoreError> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.now();
            let formed = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).expect("a formed unit");
            for action in formed.control.step(now, event) {
                if let Some(next) = self.act(id, action).await? {
                    events.push(next);
                }
            }
        }
        Ok(())
    }

    async fn act(&mut self, id: &UnitId, action: Action) -> Result<Option<protocol::Event>, StoreError> {
        let control = self.config.control.clone();
        match action {
            Action::Prepare { node, plan, base } => {
                let unit = self.units.get_mut(id).expect("exists");
                let addresses =
                    unit.present.iter().map(|(n, p)| (n.clone(), p.transfer_address.clone())).collect();
                let formed = unit.formed.as_mut().expect("formed");
                let prepared = formed.prepared.get(&plan, &base, &formed.topology);
                let (term, limit) = (self.term, control.prepare_timeout_ms);
                let command = prepared.command(term, &node, &formed.topology, &addresses, limit);
                Ok(self.send(id, &node, command))
            }
            Action::Commit { node, plan } => {
                let limit = control.commit_timeout_ms;
                let command = short_command(self.term, v1::PlanPhase::Commit, plan, limit);
                Ok(self.send(id, &node, command))
            }
            Action::Abort { node, plan } => {
                let limit = control.commit_timeout_ms;
                let command = short_command(self.term, v1::PlanPhase::Abort, plan, limit);
                Ok(self.send(id, &node, command))
            }
            Action::Store(plan) => self.commit(id, &plan).await.map(Some),
            Action::Aborted { plan, code, node } => {
                tracing::warn!(unit = %id, epoch = plan.0.0, code, node = ?node, "plan aborted");
                metrics::counter!(m::PLANS_ABORTED, "unit" => id.to_string(), "code" => code.clone())
                    .increment(1);
                let resume_at = self.now().after(control.abort_pause_ms);
                let unit = self.units.get_mut(id).expect("exists");
                unit.last_decision = format!("plan {} aborted: {code}", plan.0);
                let formed = unit.formed.as_mut().expect("formed");
                // The same counts may be tried again: the next attempt need not wait for a new window.
                (formed.pending, formed.decided, formed.resume_at) = (None, None, resume_at);
                Ok(None)
            }
            Action::Settled(plan) => {
                self.phase_done(id, "commit");
                tracing::info!(unit = %id, epoch = plan.0.0, "every node serves the plan");
                // On the way to a target the next plan needs no new window.
                if self.units[id].formed.as_ref().is_some_and(|f| f.migration.is_some()) {
                    self.maybe_solve(id);
                }
                Ok(None)
            }
            Action::Close { node, code } => {
                let stream = self.units[id].present.get(&node).map(|p| p.stream);
                if let Some(stream) = stream {
                    self.release(stream, code);
                    return Ok(Some(protocol::Event::Left(node)));
                }
                Ok(None)
            }
        }
    }

    /// Sends a command; a node that does not take it has left.
    fn send(&mut self, id: &UnitId, node: &NodeId, command: v1::PlanCommand) -> Option<protocol::Event> {
        let stream = self.units[id].present.get(node)?.stream;
        let message = v1::sync_response::Message::Plan(command);
        if self.streams.get(&stream).is_some_and(|s| s.link.send(message)) {
            return None;
        }
        self.release(stream, "does_not_read");
        Some(protocol::Event::Left(node.clone()))
    }

    async fn commit(&mut self, id: &UnitId, plan: &Arc<Plan>) -> Result<protocol::Event, StoreError> {
        self.phase_done(id, "prepare");
        let formed = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).expect("formed");
        let pending = formed.pending.as_mut().expect("a proposed plan has an account");
        pending.summary.committed_ms = unix_ms();
        let loads = Some(pending.loads.clone());
        let stored = Stored { plan: (**plan).clone(), summary: pending.summary.clone(), loads };
        let (summary, term) = (pending.summary.clone(), self.term);
        let store = Arc::clone(&self.store);
        match on_disk("commit", move || store.commit(term, &stored)).await {
            Ok(()) => {}
            Err(StoreError::Conflict { .. }) => return Ok(protocol::Event::Stored(false)),
            Err(other) => return Err(other),
        }
        let unit = id.to_string();
        let kind = match summary.kind() {
            v1::PlanKind::Moves => "moves",
            _ => "weights",
        };
        tracing::info!(unit, epoch = plan.epoch.0, kind, moves = summary.moves, "plan committed");
        metrics::counter!(m::PLANS_COMMITTED, "unit" => unit.clone(), "kind" => kind).increment(1);
        metrics::counter!(m::SLOT_MOVES, "unit" => unit.clone()).increment(summary.moves);
        metrics::gauge!(m::PLAN_EPOCH, "unit" => unit.clone()).set(plan.epoch.0 as f64);
        let gain = summary.imbalance_before / summary.imbalance_after;
        metrics::gauge!(m::PREDICTED_GAIN, "unit" => unit).set(gain);
        Ok(protocol::Event::Stored(true))
    }

    fn phase_done(&mut self, id: &UnitId, phase: &'static str) {
        let now = self.now();
        let formed = self.units.get_mut(id).and_then(|u| u.formed.as_mut()).expect("formed");
        if let Some(pending) = &mut formed.pending {
            let seconds = now.since(pending.phase_began) as f64 / 1e3;
            pending.phase_began = now;
            metrics::histogram!(m::PLAN_PHASE_SECONDS, "unit" => id.to_string(), "phase" => phase)
                .record(seconds);
        }
    }

    /// Starts a solve off the loop if a plan may be made now.
    fn maybe_solve(&mut self, id: &UnitId) {
        let now = self.now();
        let policy = self.config.experts.policy();
        let unit = self.units.get_mut(id).expect("exists");
        if unit.paused {
            return;
        }
        let Some(formed) = &mut unit.formed else { return };
        let Some(job) = formed.next_solve(now, &policy) else { return };
        formed.solving = true;
        let (events, id) = (self.events.clone(), id.clone());
        tokio::task::spawn_blocking(move || {
            let began = std::time::Instant::now();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.run()));
            metrics::histogram!(m::SOLVE_SECONDS, "unit" => id.to_string())
                .record(began.elapsed().as_secs_f64());
            let event = match outcome {
                Ok(result) => Event::Solved(id, Box::new(result)),
                Err(_) => Event::SolvePanicked(id),
            };
            // The loop is gone only at a shutdown.
            let _ = events.blocking_send(event);
        });
    }

    /// A bug in the solver. Requests are routed by this process too, so it goes on; the next window is tried anew,
    /// and until then the unit says what happened.
    fn solve_panicked(&mut self, id: &UnitId) {
        tracing::error!(unit = %id, "the solver panicked");
        metrics::counter!(m::PLANS_ABORTED, "unit" => id.to_string(), "code" => "solver_panicked")
            .increment(1);
        let unit = self.units.get_mut(id).expect("exists");
        unit.last_decision =
            "the solver panicked on the last window: please report it with the log".to_owned();
        let formed = unit.formed.as_mut().expect("only formed units are solved");
        (formed.solving, formed.migration) = (false, None);
        formed.decided = formed.last_clean.as_ref().map(|w| w.window);
    }

    async fn solved(&mut self, id: &UnitId, result: SolveResult) -> Result<(), StoreError> {
        let now = self.now();
        let unit = self.units.get_mut(id).expect("exists");
        let formed = unit.formed.as_mut().expect("only formed units are solved");
        formed.solving = false;
        unit.last_decision = describe(&result);
        formed.decided = Some(result.window.window);
        let Some(plan) = &result.solved.plan else {
            formed.migration = None;
            return Ok(());
        };
        formed.set_target(result.solved.target.clone(), &result.window);
        if unit.paused || !formed.control.can_propose() || formed.control.head_id() != result.base {
            return Ok(());
        }
        let head = Arc::clone(formed.control.head());
        if let Err(violation) = invariants::check(plan, Some(&head), &formed.topology) {
            // A bug in the solver. The running plan is good, and requests are routed by this process too:
            // refusing the plan harms less than stopping.
            tracing::error!(unit = %id, code = violation.code(), %violation, "the solver made an invalid plan");
            metrics::counter!(m::PLANS_ABORTED, "unit" => id.to_string(), "code" => violation.code())
                .increment(1);
            formed.migration = None;
            return Ok(());
        }
        formed.pending = Some(account(&result, plan, &head, &formed.topology, now));
        self.step(id, protocol::Event::Propose(Arc::new(plan.clone()))).await
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

    fn publish_gauges(&self) {
        self.routers.publish();
        for (id, unit) in &self.units {
            let name = id.to_string();
            let (here, all) = (unit.present.len(), unit.membership.claims().len());
            for (state, count) in [("connected", here), ("away", all - here)] {
                metrics::gauge!(m::AGENTS, "unit" => name.clone(), "state" => state).set(count as f64);
            }
            let sum = |f: fn(&v1::RankGauges) -> u64| unit.gauges.values().map(f).sum::<u64>();
            for (kind, total) in [
                ("in_hit", sum(|g| g.tokens_in_hit)),
                ("in_miss", sum(|g| g.tokens_in_miss)),
                ("out", sum(|g| g.tokens_out)),
            ] {
                metrics::counter!(m::TOKENS, "unit" => name.clone(), "kind" => kind).absolute(total);
            }
            let slowest = |f: fn(&v1::RankGauges) -> u32| unit.gauges.values().map(f).max();
            for (quantile, us) in [("0.5", slowest(|g| g.step_us_p50)), ("0.99", slowest(|g| g.step_us_p99))]
            {
                if let Some(us) = us {
                    metrics::gauge!(m::STEP_SECONDS, "unit" => name.clone(), "quantile" => quantile)
                        .set(f64::from(us) / 1e6);
                }
            }
            for (rank, gauges) in &unit.gauges {
                for (metric, value) in [
                    (m::KV_USED, gauges.kv_used_tokens as f64),
                    (m::KV_CAPACITY, gauges.kv_total_tokens as f64),
                    (m::REQUESTS, f64::from(gauges.requests)),
                ] {
                    metrics::gauge!(metric, "unit" => name.clone(), "rank" => rank.to_string()).set(value);
                }
            }
        }
    }
}

/// Checks a node against its unit. Only when everything fits does the membership change.
fn admit_node(
    unit: &mut Unit,
    node: &NodeId,
    claim: &Claim,
    applied: Option<PlanRef>,
) -> Result<Vec<NodeId>, Refused> {
    let admitted = match &unit.formed {
        Some(formed) => formed.control.admit(applied).map_err(|e| Refused::new(e.code(), e)),
        None => {
            let boot = Plan::boot(unit.id.clone(), unit.membership.shape());
            match applied {
                Some(id) if id != (boot.epoch, boot.digest()) => {
                    let text = format!(
                        "the node serves plan {}, but this balancer has committed none for the unit: restore its store, or restart the node without its state",
                        id.0
                    );
                    Err(Refused::new("epoch_ahead", text))
                }
                _ => Ok(()),
            }
        }
    };
    admitted?;
    let present = &unit.present;
    let mut members = unit.membership.clone();
    let replaced = members.join(node, claim, |other| present.contains_key(other));
    let replaced = replaced.map_err(|e| Refused::new(e.code(), e))?;
    if unit.formed.is_some() {
        // A node of a formed unit may be replaced whole, but ranks may not be left without a node.
        members.topology().map_err(|e| Refused::new("rank_conflict", e))?;
    }
    unit.membership = members;
    Ok(replaced)
}

fn ranks_of(ranks: &[u32]) -> Result<Vec<Rank>, ConvertError> {
    let narrow = |&r: &u32| {
        let rank = u16::try_from(r).map_err(|_| ConvertError::new("ranks", format!("{r} is no rank")))?;
        Ok(Rank(rank))
    };
    ranks.iter().map(narrow).collect()
}

fn read_result(result: &v1::PlanResult) -> Option<(PlanRef, Answer)> {
    let plan = result.id.as_ref()?.try_into().ok()?;
    let answer = match result.outcome() {
        v1::PlanOutcome::Prepared => Answer::Prepared,
        v1::PlanOutcome::Applied => Answer::Applied,
        v1::PlanOutcome::Aborted => Answer::Aborted,
        v1::PlanOutcome::Refused => Answer::Refused(result.code.clone()),
        v1::PlanOutcome::Unspecified => return None,
    };
    Some((plan, answer))
}

fn account(
    result: &SolveResult,
    plan: &Plan,
    head: &Plan,
    topology: &evenkeel_core::topology::UnitTopology,
    now: Millis,
) -> Pending {
    let diff = plan.diff(head, topology);
    let report = &result.solved.report;
    let moves = diff.moves.len() as u64;
    let summary = v1::PlanSummary {
        id: Some((plan.epoch, plan.digest()).into()),
        kind: v1::PlanKind::from(plan.kind(Some(head))).into(),
        committed_ms: 0,
        moves,
        bytes: moves * topology.shape().expert_bytes,
        layers_reweighted: u32::try_from(diff.layers_reweighted).expect("layers fit 32 bits"),
        imbalance_before: report.before_mean(),
        imbalance_after: report.after_mean(),
        imbalance_bound: report.bound_mean(),
        window: Some(result.window.window.into()),
        limits: report.layers.iter().fold(Default::default(), |mut limits: HashMap<_, _>, layer| {
            *limits.entry(layer.binding.as_str().to_owned()).or_default() += 1;
            limits
        }),
        not_placed: u32::try_from(report.not_placed.len()).expect("replicas of a unit fit 32 bits"),
    };
    Pending { summary, loads: (&result.window.loads).into(), phase_began: now }
}

/// A decision in words.
fn describe(result: &SolveResult) -> String {
    let (report, window) = (&result.solved.report, result.window.window);
    let imbalance = format!("imbalance {:.4} -> {:.4}", report.before_mean(), report.after_mean());
    let decision = match result.solved.decision {
        Decision::Keep(KeepReason::GainTooSmall) => "kept, nothing gains enough".to_owned(),
        Decision::Keep(KeepReason::NoLoad) => "kept, nothing was routed".to_owned(),
        Decision::Keep(KeepReason::IncompleteSnapshot) => "kept, counts are missing".to_owned(),
        Decision::Reweight { .. } => format!("new weights, {imbalance}"),
        Decision::Move { plans_left: 0 } => format!("{} moves, {imbalance}", report.moves()),
        Decision::Move { plans_left } => {
            format!("{} moves, {imbalance}, {plans_left} more plans to the target", report.moves())
        }
    };
    format!("steps {}-{}: {decision}", window.from_step, window.to_step)
}

fn count_window(id: &UnitId, completeness: &'static str, windows: u64) {
    if windows > 0 {
        metrics::counter!(m::LOAD_WINDOWS, "unit" => id.to_string(), "completeness" => completeness)
            .increment(windows);
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("fits 64 bits for 500 million years")
}

/// Runs a store operation where it may block, and records its time.
async fn on_disk<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let result = tokio::task::spawn_blocking(work).await.expect("store operations do not panic");
    metrics::histogram!(m::STORE_SECONDS, "operation" => operation).record(began.elapsed().as_secs_f64());
    result
}
