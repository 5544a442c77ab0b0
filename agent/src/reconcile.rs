//! The shell around [`evenkeel_core::protocol::agent::Agent`]: one task that feeds it events and carries out
//! its actions in order. Whatever persists is done before the next action, and how it ended is the next
//! event. It never waits for the worker: see [`crate::work`].

use crate::crash_point::CrashPoint;
use crate::ledger::{Ledger, Record, WriteError};
use crate::link::{INPUTS_MAX, Input, Introduction, Link, Outgoing};
use crate::metrics::AgentMetrics;
use crate::wire;
use crate::work::{Work, Workplace};
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{Action, Agent, Event, PlanId, Reply, StreamId};
use evenkeel_core::units::Millis;
use evenkeel_worker::{WorkerBackend, WorkerEvent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// How often the worker is asked what it has to tell: far below what a router would notice by itself.
const WORKER_POLL: Duration = Duration::from_millis(100);

/// See the module's documentation.
pub struct Reconciler {
    agent: Agent,
    ledger: Arc<Mutex<Ledger>>,
    worker: Arc<dyn WorkerBackend>,
    work: Work,
    metrics: Arc<AgentMetrics>,
    inputs: mpsc::Receiver<Input>,
    applied: watch::Sender<Option<PlanId>>,
    streams: BTreeMap<StreamId, mpsc::Sender<Outgoing>>,
    streams_opened: u64,
    begun: Instant,
}

impl Reconciler {
    /// Makes a reconciler for an agent that is in the state its ledger and worker are in.
    pub fn new(agent: Agent, ledger: Ledger, workplace: Workplace) -> (Self, Link) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (applied, watcher) = watch::channel(agent.applied());
        let plan = ledger.record().plan.clone();
        let reconciler = Self {
            agent,
            ledger: Arc::new(Mutex::new(ledger)),
            worker: workplace.worker.clone(),
            metrics: workplace.metrics.clone(),
            work: Work::new(workplace),
            inputs,
            applied,
            streams: BTreeMap::new(),
            streams_opened: 0,
            begun: Instant::now(),
        };
        reconciler.show_applied();
        plan.iter().for_each(|plan| reconciler.show_spare(plan));
        (reconciler, Link::new(sender, watcher))
    }

    /// Runs until shutdown.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut polls = interval(WORKER_POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = self.agent.deadline().map(|at| self.begun + Duration::from_millis(at.0));
            let event = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {
                    self.work.stop();
                    return;
                }
                event = self.work.done() => event,
                () = sleep_until(deadline.unwrap_or(self.begun)), if deadline.is_some() => Event::Tick,
                _ = polls.tick() => {
                    self.tell_worker_events();
                    continue;
                }
                input = self.inputs.recv() => match input {
                    None => return,
                    Some(input) => match self.event(input) {
                        Some(event) => event,
                        None => continue,
                    },
                },
            };
            self.feed(event).await;
        }
    }

    fn event(&mut self, input: Input) -> Option<Event> {
        Some(match input {
            Input::Attach { out, attached } => {
                self.streams_opened += 1;
                let stream = StreamId(self.streams_opened);
                // A session that is gone by now says nothing more, not even that it ended.
                attached.send((stream, self.introduction())).ok()?;
                self.streams.insert(stream, out);
                Event::Connected { stream }
            }
            Input::Detach(stream) => {
                self.streams.remove(&stream);
                Event::Disconnected { stream }
            }
            Input::Welcomed { stream, role, term, boot_plan } => {
                Event::Welcomed { stream, role, term, boot_plan }
            }
            Input::Order { stream, order } => {
                let in_service = self.agent.applied().zip(self.agent.plan().map(Arc::as_ref));
                Event::Command { stream, command: order.command(in_service) }
            }
        })
    }

    fn introduction(&self) -> Introduction {
        Introduction { applied: self.agent.applied(), term: self.agent.seen() }
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Feeds an event, then how what it persists has ended.
    async fn feed(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let now = self.now();
            for action in self.agent.on(event, now) {
                next = self.act(action).await;
            }
        }
        self.show_applied();
    }

    /// Carries out an action; returns how it ended if it persists.
    async fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::PersistTerm(term) => {
                tracing::info!(%term, "a higher term");
                return Some(match self.persist(move |record| Record { term, ..record }).await {
                    Ok(()) => Event::TermPersisted,
                    Err(WriteError { code, message }) => Event::TermNotPersisted { code, message },
                });
            }
            Action::PersistPlan { plan, before } => {
                self.show_spare(&plan);
                self.metrics.staged_slots.set(0.0);
                tracing::info!(epoch = plan.epoch.0, "plan in service");
                return Some(
                    match self
                        .persist(move |record| Record { plan: Some(plan), beside: before, ..record })
                        .await
                    {
                        Ok(()) => {
                            CrashPoint::Persisted.reached();
                            Event::PlanPersisted
                        }
                        Err(WriteError { code, message }) => Event::PlanNotPersisted { code, message },
                    },
                );
            }
            Action::PersistStaged(plan) => {
                return Some(
                    match self.persist(move |record| Record { beside: Some(plan), ..record }).await {
                        Ok(()) => {
                            CrashPoint::StagedPersisted.reached();
                            Event::StagedPersisted
                        }
                        Err(WriteError { code, message }) => Event::StagedNotPersisted { code, message },
                    },
                );
            }
            Action::Boot(plan) => self.work.boot(plan),
            Action::Stage { attempt, plan, moves, peers } => {
                tracing::info!(attempt, epoch = plan.epoch.0, moves = moves.len(), "staging");
                self.metrics.staged_slots.set(0.0);
                CrashPoint::BeforeStaging.reached();
                self.work.stage(attempt, moves, peers);
            }
            Action::Unstage { attempt } => {
                tracing::info!(attempt, "what was staged is forgotten");
                self.work.unstage();
                self.metrics.staged_slots.set(0.0);
            }
            Action::Flip { attempt, plan } => {
                CrashPoint::BeforeFlip.reached();
                self.work.flip(attempt, plan);
            }
            Action::Reply { stream, reply } => self.answer(stream, &reply),
            Action::Introduce { stream } => {
                self.send(stream, Outgoing::Introduction(self.introduction()));
            }
            Action::CloseStream { stream, message } => {
                tracing::warn!(stream = stream.0, message, "closing the stream");
                self.streams.remove(&stream);
            }
        }
        None
    }

    fn answer(&mut self, stream: StreamId, reply: &Reply) {
        let (outcome, code) = wire::labels(&reply.outcome);
        self.metrics.result(outcome, code).increment(1);
        let result = wire::result(reply);
        tracing::info!(plan = wire::name(reply.id), outcome, code, message = result.message, "answered");
        self.send(stream, Outgoing::Result(result));
    }

    /// A stream that does not drain is closed: Hello of the next one tells how things are.
    fn send(&mut self, stream: StreamId, out: Outgoing) {
        if self.streams.get(&stream).is_some_and(|sender| sender.try_send(out).is_err()) {
            self.streams.remove(&stream);
        }
    }

    fn tell_worker_events(&mut self) {
        let told = std::iter::from_fn(|| self.worker.poll_event()).chain(self.work.poll_event());
        for event in told.collect::<Vec<WorkerEvent>>() {
            tracing::warn!(?event, "event of the worker");
            self.metrics.worker_event(event.code()).increment(1);
            for stream in self.streams.keys().copied().collect::<Vec<_>>() {
                self.send(stream, Outgoing::Event(wire::event(&event)));
            }
        }
    }

    fn show_applied(&self) {
        let applied = self.agent.applied();
        if let Some((epoch, _)) = applied {
            self.metrics.applied_epoch.set(epoch.0 as f64);
        }
        self.applied.send_if_modified(|shown| std::mem::replace(shown, applied) != applied);
    }

    async fn persist(
        &self,
        change: impl FnOnce(Record) -> Record + Send + 'static,
    ) -> Result<(), WriteError> {
        let ledger = self.ledger.clone();
        let write = move || {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let record = change(ledger.record().clone());
            ledger.write(record)
        };
        let written = tokio::task::spawn_blocking(write).await.expect("the ledger does not panic");
        if let Err(WriteError { code, message }) = &written {
            tracing::error!(code = code.code(), message, "the ledger cannot be written");
        }
        written
    }

    fn show_spare(&self, plan: &Plan) {
        let empty = |a: &evenkeel_worker::SlotAddress| {
            plan.layers[a.layer.index()].physical_to_logical[a.slot as usize].is_none()
        };
        self.metrics.spare_slots.set(self.worker.layout().addresses().filter(empty).count() as f64);
    }
}
