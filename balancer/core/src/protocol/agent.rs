//! The agent's side of the protocol.
//!
//! ```text
//!                     PREPARE            all staged            COMMIT             flipped
//!   (no plan) -boot-> Idle ----> Staging ----------> Prepared ------> Flipping ----------> Idle, next epoch
//!                      ^            |     persisted     |                |
//!                      +-- ABORT, failure, deadline ----+                | the flip failed: Prepared again
//! ```
//!
//! - There may be a stream to each of several balancers. One of them leads; whatever stream a command comes
//!   on, only its term counts. Answers go to the leader's stream: the one that was last welcomed by a leader
//!   or that last commanded.
//! - A higher term is persisted before anything is done in its name; a lower one is refused. If it cannot be
//!   persisted the command is refused, and nothing has changed, but that lower ones are refused too.
//! - Only the child of the plan in service can be prepared, and only what is prepared can be committed.
//! - A plan is persisted after the flip and before APPLIED is said. Whatever was said to be applied can
//!   therefore be read again after any crash, and what the workers serve is never older than that. While it
//!   cannot be persisted, it is tried again every second, and no further plan is prepared: what is on disk is
//!   at most one plan behind what is served.
//! - What is staged is persisted before PREPARED is said. A node that loses its weights after that boots with its last good
//!   plan and loads what was staged beside it, since others may serve the new plan by then. After a flip it is the plan
//!   before that is loaded beside the last good one, since others may serve that still.
//! - What is prepared outlives the stream: a balancer that comes back may commit it. Until then a PREPARE
//!   from a newer term, or on a newer stream, of another plan with the same epoch replaces it, since its
//!   ABORT may have been lost with the stream. On the same stream that is an `epoch_conflict`.
//!
//! The shell must carry out the actions of one event in order. An action that persists is the only one of
//! its event, and its outcome is the next event.

mod events;
mod messages;
mod moves;
#[cfg(test)]
mod tests;

pub use events::{Action, BalancerRole, Event, StreamId};
pub use messages::{Command, Outcome, PlanId, Prepare, RefusalCode, Reply, Tally};
pub use moves::{MovesError, NodeMove};

use crate::ids::{NodeId, Rank, Term, UnitId};
use crate::invariants;
use crate::plan::Plan;
use crate::planted;
use crate::topology::{TopologyError, UnitShape, UnitTopology};
use crate::units::Millis;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Before a plan in service that could not be persisted is tried again: room on a disk comes back by
/// somebody's hand, so more often would not help, and a balancer that waits for the answer waits 10 s.
const PERSIST_RETRY_MS: u64 = 1000;

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
    Staging {
        deadline: Millis,
    },
    /// Everything is staged; the shell persists that.
    Recording(Tally),
    Prepared(Tally),
    Flipping(Tally),
}

/// The one plan under way.
#[derive(Debug, Clone)]
struct Pending {
    named: Named,
    /// Term and stream of the last command about it: newer ones may replace it.
    term: Term,
    stream: StreamId,
    attempt: u64,
    /// Whether this node's slots receive anything.
    receives: bool,
    stage: Stage,
}

/// An open stream, as its balancer knows this agent.
#[derive(Debug, Clone, Copy)]
struct Stream {
    welcomed: bool,
    /// The plan in service when Hello was last said.
    introduced: Option<PlanId>,
}

/// What waits until its term is on disk.
#[derive(Debug, Clone)]
enum Awaiting {
    Welcome { stream: StreamId, role: BalancerRole, term: Term, boot_plan: Option<Arc<Plan>> },
    Command { stream: StreamId, command: Command },
}

/// Whether the plan in service is on disk.
#[derive(Debug, Clone)]
enum Record {
    Kept,
    /// The shell is at it.
    UnderWay {
        elapsed_us: u64,
    },
    /// The disk did not take it.
    Failed {
        elapsed_us: u64,
        code: RefusalCode,
        message: String,
        retry_at: Millis,
    },
}

/// The state of one agent.
#[derive(Debug, Clone)]
pub struct Agent {
    topology: UnitTopology,
    ranks: Vec<Rank>,
    /// The highest on disk.
    term: Term,
    /// The highest heard of, which the disk may have refused: nothing below it is obeyed either.
    seen: Term,
    /// Open streams.
    streams: BTreeMap<StreamId, Stream>,
    /// Where answers go.
    leader: Option<StreamId>,
    awaiting: Option<Awaiting>,
    attempts: u64,
    applied: Option<Named>,
    /// The plan in service before that one, since the start.
    before: Option<Arc<Plan>>,
    record: Record,
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
        Self {
            topology,
            ranks,
            term,
            seen: term,
            streams: BTreeMap::new(),
            leader: None,
            awaiting: None,
            attempts: 0,
            applied: applied.map(Named::new),
            before: None,
            record: Record::Kept,
            booting: None,
            pending: None,
        }
    }

    /// The plan in service.
    pub fn applied(&self) -> Option<PlanId> {
        self.applied.as_ref().map(|named| named.id)
    }

    /// The plan in service, whole.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.applied.as_ref().map(|named| &named.plan)
    }

    /// Streams that are open, as far as it knows.
    pub fn streams_open(&self) -> usize {
        self.streams.len()
    }

    /// The highest term heard of, on disk or not: what Hello says. A leader below it would be told that its Welcome is stale,
    /// so it has to hear why.
    pub fn seen(&self) -> Term {
        self.seen
    }

    /// The highest term that is on disk.
    pub fn term(&self) -> Term {
        self.term
    }

    /// When [`Event::Tick`] is due: the deadline of the plan that is being staged, or the next attempt to
    /// persist the plan in service.
    pub fn deadline(&self) -> Option<Millis> {
        let staging = self.pending.as_ref().and_then(|pending| match pending.stage {
            Stage::Staging { deadline } => Some(deadline),
            Stage::Recording(_) | Stage::Prepared(_) | Stage::Flipping(_) => None,
        });
        let retry = match self.record {
            Record::Failed { retry_at, .. } => Some(retry_at),
            Record::Kept | Record::UnderWay { .. } => None,
        };
        [staging, retry].into_iter().flatten().min()
    }

    /// Takes one event at time `now` and answers with what must be done, in order.
    pub fn on(&mut self, event: Event, now: Millis) -> Vec<Action> {
        let of_term = matches!(event, Event::TermPersisted | Event::TermNotPersisted { .. });
        assert_eq!(of_term, self.awaiting.is_some(), "the outcome of persisting a term is the next event");
        let of_plan = matches!(event, Event::PlanPersisted | Event::PlanNotPersisted { .. });
        let recording = matches!(self.record, Record::UnderWay { .. });
        assert_eq!(of_plan, recording, "the outcome of persisting a plan is the next event");
        let of_staged = matches!(event, Event::StagedPersisted | Event::StagedNotPersisted { .. });
        let keeping = self.pending.as_ref().is_some_and(|p| matches!(p.stage, Stage::Recording(_)));
        assert_eq!(of_staged, keeping, "the outcome of persisting what is staged is the next event");
        match event {
            Event::Connected { stream } => self.on_connected(stream),
            Event::Disconnected { stream } => self.on_disconnected(stream),
            Event::Welcomed { stream, role, term, boot_plan } => {
                self.on_welcome(stream, role, term, boot_plan)
            }
            Event::Command { stream, command } => self.on_command(stream, command, now),
            Event::TermPersisted => self.on_term_persisted(now),
            Event::TermNotPersisted { code, message } => self.on_term_not_persisted(code, message),
            Event::PlanPersisted => self.on_plan_persisted(),
            Event::PlanNotPersisted { code, message } => self.on_plan_not_persisted(code, message, now),
            Event::StagedPersisted => self.on_staged_persisted(),
            Event::StagedNotPersisted { code, message } => self.on_staged_not_persisted(code, message),
            Event::Booted => self.on_booted(),
            Event::BootFailed { message } => self.on_boot_failed(message),
            Event::Staged { attempt, tally } => self.on_staged(attempt, tally),
            Event::StageFailed { attempt, code, message } => self.on_stage_failed(attempt, code, message),
            Event::Flipped { attempt, elapsed_us } => self.on_flipped(attempt, elapsed_us),
            Event::FlipFailed { attempt, message } => self.on_flip_failed(attempt, message),
            Event::Tick => self.on_tick(now),
        }
    }

    /// An answer on the leader's stream; without one, Hello of the next tells.
    fn reply(&self, id: PlanId, outcome: Outcome) -> Vec<Action> {
        self.leader.map(|stream| self.reply_on(stream, id, outcome)).into_iter().collect()
    }

    fn reply_on(&self, stream: StreamId, id: PlanId, outcome: Outcome) -> Action {
        Action::Reply { stream, reply: Reply { term: self.term, id, outcome, applied: self.applied() } }
    }

    fn refuse(&self, id: PlanId, code: RefusalCode, message: impl Into<String>) -> Vec<Action> {
        self.reply(id, Outcome::Refused { code, message: message.into() })
    }

    fn stale(&self, term: Term) -> String {
        format!("term {term} is below {}, the highest term seen", self.seen)
    }

    fn on_connected(&mut self, stream: StreamId) -> Vec<Action> {
        let newest = self.streams.last_key_value().map(|(&stream, _)| stream);
        assert!(newest < Some(stream), "numbers of streams grow");
        // Hello is made from the state at this moment.
        let introduced = self.applied();
        self.streams.insert(stream, Stream { welcomed: false, introduced });
        Vec::new()
    }

    fn on_disconnected(&mut self, stream: StreamId) -> Vec<Action> {
        if !planted!(AgentStreamsKept) {
            self.streams.remove(&stream);
        }
        self.leader = self.leader.filter(|leader| *leader != stream);
        Vec::new()
    }

    fn on_welcome(
        &mut self,
        stream: StreamId,
        role: BalancerRole,
        term: Term,
        boot_plan: Option<Arc<Plan>>,
    ) -> Vec<Action> {
        if !self.streams.contains_key(&stream) {
            return Vec::new();
        }
        if term < self.seen {
            return match role {
                BalancerRole::Leader => vec![Action::CloseStream { stream, message: self.stale(term) }],
                BalancerRole::Standby => self.welcomed(stream, role, boot_plan),
            };
        }
        self.seen = term;
        if term > self.term && planted!(TermNotPersisted) {
            self.adopt(term);
        }
        if term > self.term {
            self.awaiting = Some(Awaiting::Welcome { stream, role, term, boot_plan });
            return vec![Action::PersistTerm(term)];
        }
        self.welcomed(stream, role, boot_plan)
    }

    /// By a leader of the highest term seen, or by a standby.
    fn welcomed(
        &mut self,
        stream: StreamId,
        role: BalancerRole,
        boot_plan: Option<Arc<Plan>>,
    ) -> Vec<Action> {
        let mut actions = self.introduce_again(stream);
        match role {
            BalancerRole::Leader => {
                self.leader = Some(stream);
                actions.extend(self.boot(boot_plan));
            }
            BalancerRole::Standby => self.leader = self.leader.filter(|leader| *leader != stream),
        }
        actions
    }

    /// After a Welcome: a balancer whose role or term has changed wants Hello again. So does one whose first Welcome comes
    /// late: another balancer may have had a plan applied since Hello was said, and the answers about it went there.
    fn introduce_again(&mut self, stream: StreamId) -> Vec<Action> {
        let applied = self.applied();
        let known = self.streams.insert(stream, Stream { welcomed: true, introduced: applied });
        let known = known.expect("only open streams are welcomed");
        let outdated = known.introduced != applied;
        if known.welcomed || outdated { vec![Action::Introduce { stream }] } else { Vec::new() }
    }

    /// A worker that holds no weights boots with the leader's plan.
    fn boot(&mut self, plan: Option<Arc<Plan>>) -> Vec<Action> {
        if (self.applied.is_some() && !planted!(RebootOnWelcome)) || self.booting.is_some() {
            return Vec::new();
        }
        let trivial = || Arc::new(Plan::boot(self.topology.unit().clone(), self.topology.shape()));
        let named = Named::new(plan.filter(|_| !planted!(BootWithoutHead)).unwrap_or_else(trivial));
        if let Err(violation) = invariants::check(&named.plan, None, &self.topology) {
            return self.refuse(named.id, RefusalCode::InvalidPlan, coded(violation.code(), &violation));
        }
        let plan = named.plan.clone();
        self.booting = Some(named);
        vec![Action::Boot(plan)]
    }

    fn on_term_persisted(&mut self, now: Millis) -> Vec<Action> {
        if planted!(RebootOnNewTerm)
            && let Some(named) = self.applied.clone()
        {
            self.awaiting = None;
            self.booting = Some(named.clone());
            return vec![Action::Boot(named.plan)];
        }
        match self.awaiting.take().expect("checked by the caller") {
            Awaiting::Welcome { stream, role, term, boot_plan } => {
                self.adopt(term);
                self.welcomed(stream, role, boot_plan)
            }
            Awaiting::Command { stream, command } => {
                self.adopt(command.name().0);
                self.obey(stream, command, now)
            }
        }
    }

    fn adopt(&mut self, term: Term) {
        assert!(term > self.term, "only a higher term is persisted");
        self.term = term;

        // Whoever led before does not any more; the stream of the new leader is set by what follows.
        self.leader = None;
    }

    fn on_term_not_persisted(&mut self, code: RefusalCode, message: String) -> Vec<Action> {
        if planted!(TermKeptDespiteFullDisk) {
            return self.on_term_persisted(Millis(0));
        }
        match self.awaiting.take().expect("checked by the caller") {
            // The leader's next Welcome tries again: without its term nothing can be booted.
            Awaiting::Welcome { stream, role: BalancerRole::Leader, .. } if self.applied.is_none() => {
                vec![Action::CloseStream { stream, message }]
            }
            // Reports go on. Its first command tries again.
            Awaiting::Welcome { stream, .. } => self.introduce_again(stream),
            Awaiting::Command { stream, command } => {
                vec![self.reply_on(stream, command.name().1, Outcome::Refused { code, message })]
            }
        }
    }

    fn on_plan_persisted(&mut self) -> Vec<Action> {
        let record = std::mem::replace(&mut self.record, Record::Kept);
        let Record::UnderWay { elapsed_us } = record else { panic!("only what was ordered is persisted") };
        let id = self.applied().expect("a plan in service was persisted");
        self.reply(id, Outcome::Applied { elapsed_us })
    }

    fn on_plan_not_persisted(&mut self, code: RefusalCode, message: String, now: Millis) -> Vec<Action> {
        let Record::UnderWay { elapsed_us } = self.record else {
            panic!("only what was ordered is persisted")
        };
        if planted!(AppliedDespiteFullDisk) {
            return self.on_plan_persisted();
        }
        let retry_at = now.after(PERSIST_RETRY_MS);
        self.record = Record::Failed { elapsed_us, code, message: message.clone(), retry_at };
        let id = self.applied().expect("a plan in service was to be persisted");
        self.refuse(id, code, message)
    }

    fn put_into_service(&mut self, named: Named, elapsed_us: u64) -> Vec<Action> {
        let plan = named.plan.clone();
        self.before = self.applied.replace(named).map(|named| named.plan);
        self.record_plan(plan, elapsed_us)
    }

    fn record_plan(&mut self, plan: Arc<Plan>, elapsed_us: u64) -> Vec<Action> {
        self.record = Record::UnderWay { elapsed_us };
        let before = self.before.clone().filter(|_| !planted!(PlanBeforeForgotten));
        let persist = Action::PersistPlan { plan, before };
        if planted!(AppliedBeforePersisted) {
            let id = self.applied().expect("it is in service");
            let mut actions = self.reply(id, Outcome::Applied { elapsed_us });
            actions.push(persist);
            return actions;
        }
        vec![persist]
    }

    fn on_booted(&mut self) -> Vec<Action> {
        let named = self.booting.take().expect("only a boot that was ordered ends");
        self.put_into_service(named, 0)
    }

    fn on_boot_failed(&mut self, message: String) -> Vec<Action> {
        let named = self.booting.take().expect("only a boot that was ordered ends");
        self.refuse(named.id, RefusalCode::WorkerFault, message)
    }

    fn on_command(&mut self, stream: StreamId, command: Command, now: Millis) -> Vec<Action> {
        // What was still in a closed stream has lost its meaning: its balancer takes it for unanswered.
        if !self.streams.contains_key(&stream) {
            return Vec::new();
        }
        let (term, id) = command.name();
        if planted!(TermFollowsCommands) {
            (self.term, self.seen) = (self.term.min(term), self.seen.min(term));
        }
        if term < self.seen && !planted!(StaleTermObeyed) {
            let (code, message) = (RefusalCode::StaleTerm, self.stale(term));
            return vec![self.reply_on(stream, id, Outcome::Refused { code, message })];
        }
        self.seen = term;
        if term > self.term && planted!(TermNotPersisted) {
            self.adopt(term);
        }
        if term > self.term {
            self.awaiting = Some(Awaiting::Command { stream, command });
            return vec![Action::PersistTerm(term)];
        }
        self.obey(stream, command, now)
    }

    /// A command of the highest term seen.
    fn obey(&mut self, stream: StreamId, command: Command, now: Millis) -> Vec<Action> {
        let (_, id) = command.name();
        self.leader = Some(stream);
        match command {
            Command::Prepare(prepare) => self.on_prepare(prepare, id, stream, now),
            Command::Commit { .. } => self.on_commit(id, stream),
            Command::Abort { .. } => self.on_abort(id),
            // A repeat need not be readable: a difference to the plan before is not, any more.
            Command::Unreadable { code, message, .. } => {
                self.answer_if_not_ahead(id).unwrap_or_else(|| self.refuse(id, code, message))
            }
        }
    }

    /// Answers a command about the plan in service.
    fn answer_in_service(&self, id: PlanId) -> Vec<Action> {
        match &self.record {
            Record::Kept => self.reply(id, Outcome::Applied { elapsed_us: 0 }),
            Record::Failed { code, message, .. } => self.refuse(id, *code, message),
            Record::UnderWay { .. } => unreachable!("the outcome of persisting is the next event"),
        }
    }

    /// Answers every command about a plan that is not ahead of the one in service.
    fn answer_if_not_ahead(&self, id: PlanId) -> Option<Vec<Action>> {
        let applied = self.applied()?;
        if id == applied {
            return Some(self.answer_in_service(id));
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

    fn on_prepare(&mut self, prepare: Prepare, id: PlanId, stream: StreamId, now: Millis) -> Vec<Action> {
        if let Some(answer) = self.answer_if_not_ahead(id) {
            return answer;
        }
        if let Some(actions) = self.answer_if_under_way(&prepare, id, stream) {
            return actions;
        }
        if let Err((code, message)) = self.check(&prepare) {
            return self.refuse(id, code, message);
        }
        let mut actions = self.unstage();
        self.attempts += 1;
        let Prepare { term, plan, moves, peers, deadline_ms, .. } = prepare;
        self.pending = Some(Pending {
            named: Named { id, plan: plan.clone() },
            term,
            stream,
            attempt: self.attempts,
            receives: !moves.is_empty(),
            stage: Stage::Staging { deadline: now.after(deadline_ms) },
        });
        actions.push(Action::Stage { attempt: self.attempts, plan, moves, peers });
        actions
    }

    /// `None` when the order is new, or replaces an unfinished one.
    fn answer_if_under_way(
        &mut self,
        prepare: &Prepare,
        id: PlanId,
        stream: StreamId,
    ) -> Option<Vec<Action>> {
        let pending = self.pending.as_mut()?;
        let newer = (prepare.term, stream) > (pending.term, pending.stream);
        if pending.named.id == id {
            match pending.stage {
                // Its sources may have other addresses by now.
                Stage::Staging { .. } if newer => return None,
                // The answer is on its way.
                Stage::Staging { .. } | Stage::Recording(_) | Stage::Flipping(_) => return Some(Vec::new()),
                Stage::Prepared(tally) => {
                    (pending.term, pending.stream) = (prepare.term, stream);
                    return Some(self.reply(id, Outcome::Prepared(tally)));
                }
            }
        }
        let other = pending.named.id;
        let committed = matches!(pending.stage, Stage::Flipping(_));
        if other.0 != id.0 || (newer && !committed) {
            return None;
        }
        let message = format!("plan {} has another digest than plan {} under way", name(id), name(other));
        Some(self.refuse(id, RefusalCode::EpochConflict, message))
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
        if let Record::Failed { code, message, .. } = &self.record {
            return Err((*code, message.clone()));
        }
        let invalid =
            |code: &str, error: &dyn std::fmt::Display| (RefusalCode::InvalidPlan, coded(code, error));
        invariants::check(&prepare.plan, Some(&applied.plan), &self.topology)
            .map_err(|violation| invalid(violation.code(), &violation))?;
        moves::check(prepare, &applied.plan, self.topology.shape(), &self.ranks)
            .map_err(|error| invalid(error.code(), &error))
    }

    fn on_commit(&mut self, id: PlanId, stream: StreamId) -> Vec<Action> {
        if let Some(answer) = self.answer_if_not_ahead(id) {
            return answer;
        }
        let term = self.term;
        let Some(pending) = &mut self.pending else {
            return self.refuse(id, RefusalCode::NotPrepared, format!("plan {} is not staged", name(id)));
        };
        let other = pending.named.id;
        match pending.stage {
            Stage::Staging { .. } if other == id && planted!(FlipWhileStaging) => {
                pending.stage = Stage::Flipping(Tally::default());
                vec![Action::Flip { attempt: pending.attempt, plan: pending.named.plan.clone() }]
            }
            Stage::Prepared(tally) if other == id => {
                pending.stage = Stage::Flipping(tally);
                (pending.term, pending.stream) = (term, stream);
                vec![Action::Flip { attempt: pending.attempt, plan: pending.named.plan.clone() }]
            }
            Stage::Flipping(_) if other == id => Vec::new(),
            _ if other.0 == id.0 && other != id => {
                let message =
                    format!("plan {} has another digest than plan {} under way", name(id), name(other));
                self.refuse(id, RefusalCode::EpochConflict, message)
            }
            _ => self.refuse(id, RefusalCode::NotPrepared, format!("plan {} is not staged yet", name(id))),
        }
    }

    fn on_abort(&mut self, id: PlanId) -> Vec<Action> {
        let aborts = |pending: &Pending| pending.named.id == id;
        match &self.pending {
            // Committed: only forward. The answer to COMMIT tells how it ended.
            Some(pending) if aborts(pending) && matches!(pending.stage, Stage::Flipping(_)) => Vec::new(),
            Some(pending) if aborts(pending) && planted!(AbortIgnored) => self.reply(id, Outcome::Aborted),
            Some(pending) if aborts(pending) => {
                let mut actions = self.unstage();
                actions.extend(self.reply(id, Outcome::Aborted));
                actions
            }
            _ if self.applied() == Some(id) => self.answer_in_service(id),
            _ => self.reply(id, Outcome::Aborted),
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
        let plan = pending.named.plan.clone();
        // Without a new expert the last good plan holds all that this one names here.
        if pending.receives && !planted!(PreparedBeforePersisted) {
            pending.stage = Stage::Recording(tally);
            return vec![Action::PersistStaged(plan)];
        }
        self.prepared(tally)
    }

    fn prepared(&mut self, tally: Tally) -> Vec<Action> {
        let pending = self.pending.as_mut().expect("asked for the plan under way");
        pending.stage = Stage::Prepared(tally);
        let id = pending.named.id;
        self.reply(id, Outcome::Prepared(tally))
    }

    fn on_staged_persisted(&mut self) -> Vec<Action> {
        match self.pending.as_ref().map(|pending| pending.stage) {
            Some(Stage::Recording(tally)) => self.prepared(tally),
            other => panic!("only what was ordered is persisted, not in {other:?}"),
        }
    }

    fn on_staged_not_persisted(&mut self, code: RefusalCode, message: String) -> Vec<Action> {
        let id = self.pending.as_ref().expect("checked by the caller").named.id;
        let mut actions = self.unstage();
        actions.extend(self.refuse(id, code, message));
        actions
    }

    fn on_stage_failed(&mut self, attempt: u64, code: RefusalCode, message: String) -> Vec<Action> {
        let Some(pending) = self.attempt(attempt) else { return Vec::new() };
        let id = pending.named.id;
        let mut actions = self.unstage();
        actions.extend(self.refuse(id, code, message));
        actions
    }

    fn on_flipped(&mut self, attempt: u64, elapsed_us: u64) -> Vec<Action> {
        let pending = self.pending.take().expect("only a flip that was ordered ends");
        assert_eq!(pending.attempt, attempt, "a flipping plan is never replaced");
        assert!(matches!(pending.stage, Stage::Flipping(_)), "only a committed plan flips");
        self.put_into_service(pending.named, elapsed_us)
    }

    fn on_flip_failed(&mut self, attempt: u64, message: String) -> Vec<Action> {
        let pending = self.attempt(attempt).expect("a flipping plan is never replaced");
        let Stage::Flipping(tally) = pending.stage else { panic!("only a committed plan flips") };
        pending.stage = Stage::Prepared(tally);
        let id = pending.named.id;
        self.refuse(id, RefusalCode::WorkerFault, message)
    }

    fn on_tick(&mut self, now: Millis) -> Vec<Action> {
        // One at a time: an action that persists is the only one of its event.
        if let Record::Failed { elapsed_us, retry_at, .. } = self.record
            && now >= retry_at
        {
            let plan = self.plan().expect("a plan in service could not be persisted").clone();
            return self.record_plan(plan, elapsed_us);
        }
        self.give_up_staging(now)
    }

    fn give_up_staging(&mut self, now: Millis) -> Vec<Action> {
        let Some(Pending { named, stage: Stage::Staging { deadline }, .. }) = &self.pending else {
            return Vec::new();
        };
        if now < *deadline {
            return Vec::new();
        }
        let id = named.id;
        let mut actions = self.unstage();
        let message = format!("plan {} was not staged within its deadline", name(id));
        actions.extend(self.refuse(id, RefusalCode::DeadlineExceeded, message));
        actions
    }
}

fn name(id: PlanId) -> String {
    format!("{} ({})", id.0, id.1.short())
}

fn coded(code: &str, error: &dyn std::fmt::Display) -> String {
    format!("{code}: {error}")
}
