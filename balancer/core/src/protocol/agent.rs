//! The agent's side of the protocol.
//!
//! ```text
//!                     PREPARE            all staged            COMMIT             flipped
//!   (no plan) -boot-> Idle ----> Staging ----------> Prepared ------> Flipping ----------> Idle, next epoch
//!                      ^            |                   |                |
//!                      +-- ABORT, failure, deadline ----+                | the flip failed: Prepared again
//! ```
//!
//! - A higher term is persisted before anything is done in its name; a lower one is refused.
//! - Only the child of the plan in service can be prepared, and only what is prepared can be committed.
//! - A plan is persisted after the flip and before APPLIED is said. Whatever was said to be applied can
//!   therefore be read again after any crash, and what the workers serve is never older than that.
//! - What is prepared outlives the stream: a balancer that comes back may commit it. Until then a PREPARE
//!   from a newer term, or on a newer stream, of another plan with the same epoch replaces it, since its
//!   ABORT may have been lost with the stream. On the same stream that is an `epoch_conflict`.
//!
//! The shell must carry out the actions of one event in order, and must stop if one that persists fails.

mod moves;
#[cfg(test)]
mod tests;

pub use moves::{MovesError, NodeMove};

use crate::ids::{Digest, Epoch, NodeId, Rank, Term, UnitId};
use crate::invariants;
use crate::plan::Plan;
use crate::topology::{TopologyError, UnitShape, UnitTopology};
use crate::units::{Bytes, Millis};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names one plan of a unit.
pub type PlanId = (Epoch, Digest);

/// Why a command was refused; the names are part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The command's term is below the highest one seen.
    StaleTerm,
    /// The plan's epoch is below the one in service.
    StaleEpoch,
    /// Another plan with this epoch is in service or under way: an alarm.
    EpochConflict,
    /// The plan does not start from the one in service.
    BaseMismatch,
    /// COMMIT of a plan that is not staged as a whole.
    NotPrepared,
    /// The plan or its moves break an invariant.
    InvalidPlan,
    /// The node that holds the bytes does not serve them.
    SourceUnreachable,
    /// The bytes that arrived are not those that were sent.
    FingerprintMismatch,
    /// Staging took longer than the command allows.
    DeadlineExceeded,
    /// The worker failed.
    WorkerFault,
}

impl RefusalCode {
    /// The stable code on the wire and in metrics.
    pub fn code(self) -> &'static str {
        match self {
            RefusalCode::StaleTerm => "stale_term",
            RefusalCode::StaleEpoch => "stale_epoch",
            RefusalCode::EpochConflict => "epoch_conflict",
            RefusalCode::BaseMismatch => "base_mismatch",
            RefusalCode::NotPrepared => "not_prepared",
            RefusalCode::InvalidPlan => "invalid_plan",
            RefusalCode::SourceUnreachable => "source_unreachable",
            RefusalCode::FingerprintMismatch => "fingerprint_mismatch",
            RefusalCode::DeadlineExceeded => "deadline_exceeded",
            RefusalCode::WorkerFault => "worker_fault",
        }
    }
}

/// An order to stage a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// Term of the leader that orders it.
    pub term: Term,
    /// The whole plan.
    pub plan: Arc<Plan>,
    /// The plan that the moves start from.
    pub base: PlanId,
    /// What this node's slots receive.
    pub moves: Vec<NodeMove>,
    /// Transfer addresses that the moves index.
    pub peers: Vec<String>,
    /// Milliseconds within which it must be staged.
    pub deadline_ms: u64,
}

/// An order of the balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Stage a plan; change nothing that is served.
    Prepare(Prepare),
    /// Flip to the staged plan.
    Commit {
        /// Term of the leader that orders it.
        term: Term,
        /// The plan.
        id: PlanId,
    },
    /// Forget the staged plan.
    Abort {
        /// Term of the leader that orders it.
        term: Term,
        /// The plan.
        id: PlanId,
    },
    /// A PREPARE whose content could not be read.
    Malformed {
        /// Term of the leader that sent it.
        term: Term,
        /// The plan it names.
        id: PlanId,
        /// What is wrong with it.
        message: String,
    },
}

/// What staging a plan took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes copied between slots of this node.
    pub bytes_local: Bytes,
    /// Bytes fetched from other nodes.
    pub bytes_from_peers: Bytes,
    /// Slots whose bytes were compared with their fingerprint.
    pub slots_verified: u64,
    /// Microseconds from the order to its completion.
    pub elapsed_us: u64,
}

/// All that triggers work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new stream to a balancer was opened.
    Connected,
    /// The balancer accepted this agent.
    Welcomed {
        /// Its term.
        term: Term,
        /// What to boot with when there is no plan yet.
        boot_plan: Option<Arc<Plan>>,
    },
    /// An order arrived.
    Command(Command),
    /// The worker holds the weights of the boot plan.
    Booted,
    /// The worker could not boot.
    BootFailed {
        /// Why, for people.
        message: String,
    },
    /// Everything of this attempt is staged and verified.
    Staged {
        /// Number of the attempt.
        attempt: u64,
        /// What it took.
        tally: Tally,
    },
    /// An attempt to stage came to nothing.
    StageFailed {
        /// Number of the attempt.
        attempt: u64,
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
    /// Every rank of the node serves the plan.
    Flipped {
        /// Number of the attempt.
        attempt: u64,
        /// Microseconds from COMMIT to the flip.
        elapsed_us: u64,
    },
    /// The tables could not be flipped; the plan before is still served.
    FlipFailed {
        /// Number of the attempt.
        attempt: u64,
        /// Why, for people.
        message: String,
    },
    /// Time has passed; see [`Agent::deadline`].
    Tick,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Staged and verified.
    Prepared(Tally),
    /// In service. The time is that of the flip, zero when nothing had to be done.
    Applied {
        /// Microseconds from COMMIT to the flip.
        elapsed_us: u64,
    },
    /// Nothing of the plan is staged.
    Aborted,
    /// Nothing was changed.
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, for people.
        message: String,
    },
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The highest term seen: that of the command, unless it was stale.
    pub term: Term,
    /// The plan the command named.
    pub id: PlanId,
    /// How it ended.
    pub outcome: Outcome,
    /// The plan in service.
    pub applied: Option<PlanId>,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make this the highest term on disk.
    PersistTerm(Term),
    /// Make this the last good plan on disk.
    PersistPlan(Arc<Plan>),
    /// Load the weights of this plan into the worker.
    Boot(Arc<Plan>),
    /// Stage the moves into empty slots, and verify each.
    Stage {
        /// Number to name in the answer.
        attempt: u64,
        /// The plan.
        plan: Arc<Plan>,
        /// What this node's slots receive.
        moves: Vec<NodeMove>,
        /// Transfer addresses that the moves index.
        peers: Vec<String>,
    },
    /// Stop staging and forget what was staged.
    Unstage {
        /// Number of the attempt.
        attempt: u64,
    },
    /// Flip every rank's tables to the staged plan at the next step boundary.
    Flip {
        /// Number to name in the answer.
        attempt: u64,
        /// The plan.
        plan: Arc<Plan>,
    },
    /// Send an answer, if there is a stream to send it on.
    Reply(Reply),
    /// Close the stream: a balancer of a lower term is at its other end.
    CloseStream {
        /// Why, for people.
        message: String,
    },
}

/// A plan and its name, so that the digest is computed once.
#[derive(Debug, Clone)]
struct Named {
    id: PlanId,
    plan: Arc<Plan>,
}

impl Named {
    fn new(plan: Arc<Plan>) -> Self {
        Self { id: (plan.epoch, plan.digest()), plan }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Staging { deadline: Millis },
    Prepared(Tally),
    Flipping(Tally),
}

/// The one plan under way.
#[derive(Debug, Clone)]
struct Pending {
    named: Named,
    /// Term and stream of the last command about it: newer ones may replace it.
    term: Term,
    stream: u64,
    attempt: u64,
    stage: Stage,
}

/// The state of one agent.
#[derive(Debug, Clone)]
pub struct Agent {
    topology: UnitTopology,
    ranks: Vec<Rank>,
    term: Term,
    stream: u64,
    attempts: u64,
    applied: Option<Named>,
    booting: Option<Named>,
    pending: Option<Pending>,
}

/// The unit as one node sees it: its own ranks, and all others on one node elsewhere. Enough for
/// [`invariants::check`], which asks only for unit and shape.
pub fn node_view(
    unit: UnitId,
    shape: UnitShape,
    node: &NodeId,
    ranks: &[Rank],
) -> Result<UnitTopology, TopologyError> {
    let name = if node.as_str() == "elsewhere" { "elsewhere-2" } else { "elsewhere" };
    let elsewhere = NodeId::new(name).expect("the name is a DNS label");
    let others = (0..shape.ranks).map(Rank).filter(|rank| !ranks.contains(rank)).collect();
    UnitTopology::new(unit, shape, &BTreeMap::from([(node.clone(), ranks.to_vec()), (elsewhere, others)]))
}

impl Agent {
    /// An agent as it is after a start: the highest term and the plan that were found on its disk and in
    /// its workers. `topology` is the [`node_view`] of the node that has `ranks`.
    pub fn new(topology: UnitTopology, ranks: Vec<Rank>, term: Term, applied: Option<Arc<Plan>>) -> Self {
        let applied = applied.map(Named::new);
        Self { topology, ranks, term, stream: 0, attempts: 0, applied, booting: None, pending: None }
    }

    /// The plan in service.
    pub fn applied(&self) -> Option<PlanId> {
        self.applied.as_ref().map(|named| named.id)
    }

    /// The highest term seen.
    pub fn term(&self) -> Term {
        self.term
    }

    /// When [`Event::Tick`] is due: the deadline of the plan that is being staged.
    pub fn deadline(&self) -> Option<Millis> {
        match self.pending.as_ref()?.stage {
            Stage::Staging { deadline } => Some(deadline),
            Stage::Prepared(_) | Stage::Flipping(_) => None,
        }
    }

    /// Takes one event at time `now` and answers with what must be done, in order.
    pub fn on(&mut self, event: Event, now: Millis) -> Vec<Action> {
        match event {
            Event::Connected => {
                self.stream += 1;
                Vec::new()
            }
            Event::Welcomed { term, boot_plan } => self.on_welcome(term, boot_plan),
            Event::Command(command) => self.on_command(command, now),
            Event::Booted => self.on_booted(),
            Event::BootFailed { message } => self.on_boot_failed(message),
            Event::Staged { attempt, tally } => self.on_staged(attempt, tally),
            Event::StageFailed { attempt, code, message } => self.on_stage_failed(attempt, code, message),
            Event::Flipped { attempt, elapsed_us } => self.on_flipped(attempt, elapsed_us),
            Event::FlipFailed { attempt, message } => self.on_flip_failed(attempt, message),
            Event::Tick => self.on_tick(now),
        }
    }

    fn reply(&self, id: PlanId, outcome: Outcome) -> Action {
        Action::Reply(Reply { term: self.term, id, outcome, applied: self.applied() })
    }

    fn refuse(&self, id: PlanId, code: RefusalCode, message: impl Into<String>) -> Action {
        self.reply(id, Outcome::Refused { code, message: message.into() })
    }

    /// Adopts a term that is not below the highest seen; the persisting action comes before any other.
    fn adopt(&mut self, term: Term) -> Result<Vec<Action>, String> {
        if term < self.term {
            return Err(format!("term {term} is below {}, the highest term seen", self.term));
        }
        let raised = term > self.term;
        self.term = term;
        Ok(if raised { vec![Action::PersistTerm(term)] } else { Vec::new() })
    }

    fn on_welcome(&mut self, term: Term, boot_plan: Option<Arc<Plan>>) -> Vec<Action> {
        let mut actions = match self.adopt(term) {
            Ok(actions) => actions,
            Err(message) => return vec![Action::CloseStream { message }],
        };
        if self.applied.is_some() || self.booting.is_some() {
            return actions;
        }
        let plan = boot_plan
            .unwrap_or_else(|| Arc::new(Plan::boot(self.topology.unit().clone(), self.topology.shape())));
        let named = Named::new(plan);
        if let Err(violation) = invariants::check(&named.plan, None, &self.topology) {
            actions.push(self.refuse(
                named.id,
                RefusalCode::InvalidPlan,
                coded(violation.code(), &violation),
            ));
            return actions;
        }
        actions.push(Action::Boot(named.plan.clone()));
        self.booting = Some(named);
        actions
    }

    fn on_booted(&mut self) -> Vec<Action> {
        let named = self.booting.take().expect("only a boot that was ordered ends");
        let id = named.id;
        let persist = Action::PersistPlan(named.plan.clone());
        self.applied = Some(named);
        vec![persist, self.reply(id, Outcome::Applied { elapsed_us: 0 })]
    }

    fn on_boot_failed(&mut self, message: String) -> Vec<Action> {
        let named = self.booting.take().expect("only a boot that was ordered ends");
        vec![self.refuse(named.id, RefusalCode::WorkerFault, message)]
    }

    fn on_command(&mut self, command: Command, now: Millis) -> Vec<Action> {
        let (term, id) = command.name();
        let mut actions = match self.adopt(term) {
            Ok(actions) => actions,
            Err(message) => return vec![self.refuse(id, RefusalCode::StaleTerm, message)],
        };
        actions.extend(match command {
            Command::Prepare(prepare) => self.on_prepare(prepare, id, now),
            Command::Commit { .. } => self.on_commit(id),
            Command::Abort { .. } => self.on_abort(id),
            Command::Malformed { message, .. } => vec![self.refuse(id, RefusalCode::InvalidPlan, message)],
        });
        actions
    }

    /// Answers every command about a plan that is not ahead of the one in service.
    fn answer_if_not_ahead(&self, id: PlanId) -> Option<Action> {
        let applied = self.applied()?;
        if id == applied {
            return Some(self.reply(id, Outcome::Applied { elapsed_us: 0 }));
        }
        if id.0 > applied.0 {
            return None;
        }
        let (code, what) = if id.0 == applied.0 {
            (RefusalCode::EpochConflict, "has another digest than")
        } else {
            (RefusalCode::StaleEpoch, "is older than")
        };
        Some(self.refuse(id, code, format!("plan {} {what} plan {} in service", name(id), name(applied))))
    }

    fn on_prepare(&mut self, prepare: Prepare, id: PlanId, now: Millis) -> Vec<Action> {
        if let Some(answer) = self.answer_if_not_ahead(id) {
            return vec![answer];
        }
        if let Some(actions) = self.answer_if_under_way(&prepare, id) {
            return actions;
        }
        if let Err((code, message)) = self.check(&prepare) {
            return vec![self.refuse(id, code, message)];
        }
        let mut actions = self.unstage();
        self.attempts += 1;
        let Prepare { term, plan, moves, peers, deadline_ms, .. } = prepare;
        self.pending = Some(Pending {
            named: Named { id, plan: plan.clone() },
            term,
            stream: self.stream,
            attempt: self.attempts,
            stage: Stage::Staging { deadline: now.after(deadline_ms) },
        });
        actions.push(Action::Stage { attempt: self.attempts, plan, moves, peers });
        actions
    }

    /// `None` when the order is new, or replaces an unfinished one.
    fn answer_if_under_way(&mut self, prepare: &Prepare, id: PlanId) -> Option<Vec<Action>> {
        let pending = self.pending.as_mut()?;
        let newer = (prepare.term, self.stream) > (pending.term, pending.stream);
        if pending.named.id == id {
            match pending.stage {
                // Its sources may have other addresses by now.
                Stage::Staging { .. } if newer => return None,
                // The answer is on its way.
                Stage::Staging { .. } | Stage::Flipping(_) => return Some(Vec::new()),
                Stage::Prepared(tally) => {
                    (pending.term, pending.stream) = (prepare.term, self.stream);
                    return Some(vec![self.reply(id, Outcome::Prepared(tally))]);
                }
            }
        }
        let other = pending.named.id;
        let committed = matches!(pending.stage, Stage::Flipping(_));
        if other.0 != id.0 || (newer && !committed) {
            return None;
        }
        let message = format!("plan {} has another digest than plan {} under way", name(id), name(other));
        Some(vec![self.refuse(id, RefusalCode::EpochConflict, message)])
    }

    fn check(&self, prepare: &Prepare) -> Result<(), (RefusalCode, String)> {
        let Some(applied) = &self.applied else {
            return Err((RefusalCode::BaseMismatch, "the worker holds no weights yet".to_owned()));
        };
        if prepare.base != applied.id {
            let message = format!(
                "the plan starts from plan {}, but plan {} is in service",
                name(prepare.base),
                name(applied.id)
            );
            return Err((RefusalCode::BaseMismatch, message));
        }
        let invalid =
            |code: &str, error: &dyn std::fmt::Display| (RefusalCode::InvalidPlan, coded(code, error));
        invariants::check(&prepare.plan, Some(&applied.plan), &self.topology)
            .map_err(|violation| invalid(violation.code(), &violation))?;
        moves::check(prepare, &applied.plan, self.topology.shape(), &self.ranks)
            .map_err(|error| invalid(error.code(), &error))
    }

    fn on_commit(&mut self, id: PlanId) -> Vec<Action> {
        if let Some(answer) = self.answer_if_not_ahead(id) {
            return vec![answer];
        }
        let (term, stream) = (self.term, self.stream);
        let Some(pending) = &mut self.pending else {
            return vec![self.refuse(
                id,
                RefusalCode::NotPrepared,
                format!("plan {} is not staged", name(id)),
            )];
        };
        let other = pending.named.id;
        match pending.stage {
            Stage::Prepared(tally) if other == id => {
                pending.stage = Stage::Flipping(tally);
                (pending.term, pending.stream) = (term, stream);
                vec![Action::Flip { attempt: pending.attempt, plan: pending.named.plan.clone() }]
            }
            Stage::Flipping(_) if other == id => Vec::new(),
            _ if other.0 == id.0 && other != id => {
                let message =
                    format!("plan {} has another digest than plan {} under way", name(id), name(other));
                vec![self.refuse(id, RefusalCode::EpochConflict, message)]
            }
            _ => vec![self.refuse(
                id,
                RefusalCode::NotPrepared,
                format!("plan {} is not staged yet", name(id)),
            )],
        }
    }

    fn on_abort(&mut self, id: PlanId) -> Vec<Action> {
        let aborts = |pending: &Pending| pending.named.id == id;
        match &self.pending {
            // Committed: only forward. The answer to COMMIT tells how it ended.
            Some(pending) if aborts(pending) && matches!(pending.stage, Stage::Flipping(_)) => Vec::new(),
            Some(pending) if aborts(pending) => {
                let mut actions = self.unstage();
                actions.push(self.reply(id, Outcome::Aborted));
                actions
            }
            _ if self.applied() == Some(id) => vec![self.reply(id, Outcome::Applied { elapsed_us: 0 })],
            _ => vec![self.reply(id, Outcome::Aborted)],
        }
    }

    /// Forgets the plan under way, which must not be flipping.
    fn unstage(&mut self) -> Vec<Action> {
        let Some(pending) = self.pending.take() else { return Vec::new() };
        assert!(!matches!(pending.stage, Stage::Flipping(_)), "a committed plan is never forgotten");
        vec![Action::Unstage { attempt: pending.attempt }]
    }

    /// The plan under way, if this attempt is its latest.
    fn attempt(&mut self, attempt: u64) -> Option<&mut Pending> {
        self.pending.as_mut().filter(|pending| pending.attempt == attempt)
    }

    fn on_staged(&mut self, attempt: u64, tally: Tally) -> Vec<Action> {
        let Some(pending) = self.attempt(attempt) else { return Vec::new() };
        assert!(matches!(pending.stage, Stage::Staging { .. }), "an attempt is staged once");
        pending.stage = Stage::Prepared(tally);
        let id = pending.named.id;
        vec![self.reply(id, Outcome::Prepared(tally))]
    }

    fn on_stage_failed(&mut self, attempt: u64, code: RefusalCode, message: String) -> Vec<Action> {
        let Some(pending) = self.attempt(attempt) else { return Vec::new() };
        let id = pending.named.id;
        let mut actions = self.unstage();
        actions.push(self.refuse(id, code, message));
        actions
    }

    fn on_flipped(&mut self, attempt: u64, elapsed_us: u64) -> Vec<Action> {
        let pending = self.pending.take().expect("only a flip that was ordered ends");
        assert_eq!(pending.attempt, attempt, "a flipping plan is never replaced");
        assert!(matches!(pending.stage, Stage::Flipping(_)), "only a committed plan flips");
        let (id, plan) = (pending.named.id, pending.named.plan.clone());
        self.applied = Some(pending.named);
        vec![Action::PersistPlan(plan), self.reply(id, Outcome::Applied { elapsed_us })]
    }

    fn on_flip_failed(&mut self, attempt: u64, message: String) -> Vec<Action> {
        let pending = self.attempt(attempt).expect("a flipping plan is never replaced");
        let Stage::Flipping(tally) = pending.stage else { panic!("only a committed plan flips") };
        pending.stage = Stage::Prepared(tally);
        let id = pending.named.id;
        vec![self.refuse(id, RefusalCode::WorkerFault, message)]
    }

    fn on_tick(&mut self, now: Millis) -> Vec<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let id = self.pending.as_ref().expect("a deadline belongs to a plan").named.id;
        let mut actions = self.unstage();
        let message = format!("plan {} was not staged within its deadline", name(id));
        actions.push(self.refuse(id, RefusalCode::DeadlineExceeded, message));
        actions
    }
}

impl Command {
    fn name(&self) -> (Term, PlanId) {
        match self {
            Command::Prepare(prepare) => (prepare.term, (prepare.plan.epoch, prepare.plan.digest())),
            Command::Commit { term, id }
            | Command::Abort { term, id }
            | Command::Malformed { term, id, .. } => (*term, *id),
        }
    }
}

fn name(id: PlanId) -> String {
    format!("{} ({})", id.0, id.1.short())
}

fn coded(code: &str, error: &dyn std::fmt::Display) -> String {
    format!("{code}: {error}")
}
