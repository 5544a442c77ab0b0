//! The shell around [`evenkeel_core::protocol::agent::Agent`]: one task that feeds it events and carries out
//! its actions in order. Whatever persists is done before the next action; if it fails, the agent ends.

use crate::apply::{Pacer, StageFault, Staging};
use crate::failure::Failure;
use crate::ledger::{Ledger, Record};
use crate::metrics::AgentMetrics;
use crate::transfer::WeightsDigest;
use crate::transfer::client::Cancel;
use crate::wire;
use evenkeel_core::ids::Term;
use evenkeel_core::plan::Plan;
use evenkeel_core::protocol::agent::{Action, Agent, Command, Event, PlanId, RefusalCode};
use evenkeel_core::units::Millis;
use evenkeel_proto::v1;
use evenkeel_transport::Security;
use evenkeel_worker::{WorkerBackend, WorkerError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Inputs waiting: the session waits for room, so this bounds a flood of commands.
const INPUTS_MAX: usize = 16;
/// A flip waits for the end of one step; an engine that takes longer than this for one hangs.
const FLIP_MAX: Duration = Duration::from_secs(10);
/// How often a worker that is within a step is asked whether it has flipped.
const FLIP_POLL: Duration = Duration::from_millis(1);

/// What the agent says of itself in Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction {
    /// The plan in service.
    pub applied: Option<PlanId>,
    /// The highest term seen.
    pub term: Term,
}

/// What the session tells.
enum Input {
    Attach { results: mpsc::Sender<v1::PlanResult>, introduction: oneshot::Sender<Introduction> },
    Event(Event),
}

/// The session's end of the reconciler.
#[derive(Clone)]
pub struct Link {
    inputs: mpsc::Sender<Input>,
    applied: watch::Receiver<Option<PlanId>>,
}

/// The reconciler has ended: the agent is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl Link {
    /// Begins a stream. Answers to commands go to `results` from now on; its sender is dropped when the
    /// stream has to be closed.
    pub async fn attach(&self, results: mpsc::Sender<v1::PlanResult>) -> Result<Introduction, Gone> {
        let (introduction, answer) = oneshot::channel();
        self.inputs.send(Input::Attach { results, introduction }).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Passes on that the balancer accepted this agent.
    pub async fn welcomed(&self, term: Term, boot_plan: Option<Plan>) -> Result<(), Gone> {
        let boot_plan = boot_plan.map(Arc::new);
        self.inputs.send(Input::Event(Event::Welcomed { term, boot_plan })).await.map_err(|_| Gone)
    }

    /// Passes on an order.
    pub async fn command(&self, command: Command) -> Result<(), Gone> {
        self.inputs.send(Input::Event(Event::Command(command))).await.map_err(|_| Gone)
    }

    /// The plan in service.
    pub fn applied(&self) -> Option<PlanId> {
        *self.applied.borrow()
    }
}

/// See the module's documentation.
pub struct Reconciler {
    agent: Agent,
    ledger: Arc<Mutex<Ledger>>,
    worker: Arc<dyn WorkerBackend>,
    weights: WeightsDigest,
    pacer: Arc<Pacer>,
    security: Security,
    metrics: Arc<AgentMetrics>,
    inputs: mpsc::Receiver<Input>,
    applied: watch::Sender<Option<PlanId>>,
    results: Option<mpsc::Sender<v1::PlanResult>>,
    work: JoinSet<Event>,
    /// Stops the staging under way.
    cancel: Cancel,
    /// Held while an attempt stages: the next one waits until the one before has left the slots alone.
    slots: Arc<Mutex<()>>,
    begun: Instant,
}

impl Reconciler {
    /// Makes a reconciler for an agent that is in the state its ledger and worker are in.
    pub fn new(
        agent: Agent,
        ledger: Ledger,
        worker: Arc<dyn WorkerBackend>,
        weights: WeightsDigest,
        pacer: Pacer,
        security: Security,
        metrics: Arc<AgentMetrics>,
    ) -> (Self, Link) {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (applied, watcher) = watch::channel(agent.applied());
        let plan = ledger.record().plan.clone();
        let reconciler = Self {
            agent,
            ledger: Arc::new(Mutex::new(ledger)),
            worker,
            weights,
            pacer: Arc::new(pacer),
            security,
            metrics,
            inputs,
            applied,
            results: None,
            work: JoinSet::new(),
            cancel: Cancel::default(),
            slots: Arc::default(),
            begun: Instant::now(),
        };
        reconciler.show_applied();
        plan.iter().for_each(|plan| reconciler.show_spare(plan));
        (reconciler, Link { inputs: sender, applied: watcher })
    }

    /// Runs until shutdown, or until something cannot be made durable.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), Failure> {
        loop {
            let deadline = self.agent.deadline().map(|at| self.begun + Duration::from_millis(at.0));
            let event = tokio::select! {
                _ = shutdown.wait_for(|stop| *stop) => {
                    self.cancel.cancel();
                    return Ok(());
                }
                Some(event) = self.work.join_next() => event.expect("work does not panic"),
                () = sleep_until(deadline.unwrap_or(self.begun)), if deadline.is_some() => Event::Tick,
                input = self.inputs.recv() => match input {
                    None => return Ok(()),
                    Some(Input::Event(event)) => event,
                    Some(Input::Attach { results, introduction }) => {
                        self.results = Some(results);
                        let said = Introduction { applied: self.agent.applied(), term: self.agent.term() };
                        // A session that is gone by now attaches again.
                        let _ = introduction.send(said);
                        Event::Connected
                    }
                },
            };
            let now = Millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX));
            for action in self.agent.on(event, now) {
                self.act(action).await?;
            }
            self.show_applied();
        }
    }

    fn show_applied(&self) {
        let applied = self.agent.applied();
        if let Some((epoch, _)) = applied {
            self.metrics.applied_epoch.set(epoch.0 as f64);
        }
        self.applied.send_if_modified(|shown| std::mem::replace(shown, applied) != applied);
    }

    async fn act(&mut self, action: Action) -> Result<(), Failure> {
        match action {
            Action::PersistTerm(term) => {
                tracing::info!(%term, "a higher term");
                self.persist(move |record| Record { term, ..record }).await?;
            }
            Action::PersistPlan(plan) => {
                self.show_spare(&plan);
                self.metrics.staged_slots.set(0.0);
                tracing::info!(epoch = plan.epoch.0, "plan in service");
                self.persist(move |record| Record { plan: Some(plan), ..record }).await?;
            }
            Action::Boot(plan) => self.boot(plan),
            Action::Stage { attempt, plan, moves, peers } => {
                tracing::info!(attempt, epoch = plan.epoch.0, moves = moves.len(), "staging");
                self.cancel = Cancel::default();
                self.metrics.staged_slots.set(0.0);
                let staging = Staging {
                    worker: self.worker.clone(),
                    weights: self.weights,
                    moves,
                    peers,
                    pacer: self.pacer.clone(),
                    security: self.security.clone(),
                    cancel: self.cancel.clone(),
                    metrics: self.metrics.clone(),
                };
                self.stage(attempt, staging);
            }
            Action::Unstage { attempt } => {
                tracing::info!(attempt, "what was staged is forgotten");
                self.cancel.cancel();
                self.metrics.staged_slots.set(0.0);
            }
            Action::Flip { attempt, plan } => self.flip(attempt, plan),
            Action::Reply(reply) => {
                let (outcome, code) = wire::labels(&reply.outcome);
                self.metrics.result(outcome, code).increment(1);
                let result = wire::result(&reply);
                tracing::info!(
                    plan = wire::name(reply.id),
                    outcome,
                    code,
                    message = result.message,
                    "answered"
                );
                // Without a stream, or with one that does not drain, Hello of the next one tells.
                if self.results.as_ref().is_some_and(|results| results.try_send(result).is_err()) {
                    self.results = None;
                }
            }
            Action::CloseStream { message } => {
                tracing::warn!(message, "closing the stream");
                self.results = None;
            }
        }
        Ok(())
    }

    async fn persist(&self, change: impl FnOnce(Record) -> Record + Send + 'static) -> Result<(), Failure> {
        let ledger = self.ledger.clone();
        let write = move || {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let record = change(ledger.record().clone());
            ledger.write(record)
        };
        tokio::task::spawn_blocking(write).await.expect("the ledger does not panic")
    }

    fn show_spare(&self, plan: &Plan) {
        let empty = |a: &evenkeel_worker::SlotAddress| {
            plan.layers[a.layer.index()].physical_to_logical[a.slot as usize].is_none()
        };
        self.metrics.spare_slots.set(self.worker.layout().addresses().filter(empty).count() as f64);
    }

    fn boot(&mut self, plan: Arc<Plan>) {
        let worker = self.worker.clone();
        self.work.spawn_blocking(move || match worker.boot(&plan) {
            Ok(()) => Event::Booted,
            Err(error) => Event::BootFailed { message: coded(&error) },
        });
    }

    fn stage(&mut self, attempt: u64, staging: Staging) {
        let slots = self.slots.clone();
        self.work.spawn_blocking(move || {
            let _alone = slots.lock().unwrap_or_else(PoisonError::into_inner);
            match staging.run() {
                Ok(tally) => Event::Staged { attempt, tally },
                Err((code, message)) => stage_failed(attempt, (code, message)),
            }
        });
    }

    fn flip(&mut self, attempt: u64, plan: Arc<Plan>) {
        let worker = self.worker.clone();
        let begun = Instant::now();
        self.work.spawn(async move {
            let id = (plan.epoch, plan.digest());
            let (arming, armed_plan) = (worker.clone(), plan.clone());
            let armed = tokio::task::spawn_blocking(move || arming.arm(&armed_plan)).await;
            if let Err(error) = armed.expect("arming does not panic") {
                return Event::FlipFailed { attempt, message: coded(&error) };
            }
            while worker.active() != Some(id) {
                if begun.elapsed() > FLIP_MAX {
                    let message = format!("the worker reached no step boundary within {FLIP_MAX:?}");
                    return Event::FlipFailed { attempt, message };
                }
                tokio::time::sleep(FLIP_POLL).await;
            }
            let elapsed_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            Event::Flipped { attempt, elapsed_us }
        });
    }
}

fn stage_failed(attempt: u64, (code, message): StageFault) -> Event {
    debug_assert!(code != RefusalCode::StaleTerm, "staging knows no terms");
    Event::StageFailed { attempt, code, message }
}

fn coded(error: &WorkerError) -> String {
    format!("{}: {error}", error.code())
}
